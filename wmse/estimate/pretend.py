"""A GPU that need not be there: torch's fake tensors on "cuda", with launches, waits of the host and memory counted.

A fake tensor has a device, a type, a shape and strides, but no values. Tensors of the CPU stay real beside them, so
whatever the host decides (random draws, sizes of filters) is decided as in a real run.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from wmse.views.tensors import hue_table

aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.convolution.default)
GPU = torch.device("cuda:0")
CPU = torch.device("cpu")
META = torch.device("meta")
FOUND = 8  # How many entries `nonzero` finds, more than the neighbours of k-NN.
BLOCK = 512  # CUDA's allocator rounds every size up to a multiple of so many bytes.


class LiveBytes:
    """The memory of all storages that were seen and are still in use: now, and at most so far."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def see(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, if it is new, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = id(storage), -(-storage.nbytes() // BLOCK) * BLOCK

        def freed(_: weakref.ref[torch.UntypedStorage]) -> None:
            del self.storages[key]
            self.now -= size

        if key not in self.storages:
            self.storages[key] = weakref.ref(storage, freed)
            self.now += size
            self.peak = max(self.peak, self.now)


@contextmanager
def pretend_gpu() -> Iterator[PretendGpu]:
    """Within this context, "cuda" is a GPU of unlimited memory whose tensors have no values."""
    hue_table.cache_clear()  # it keeps a tensor for every device; those of this context are of no use elsewhere
    gpu = PretendGpu(FakeTensorMode())
    try:
        with (
            mock.patch("torch.cuda.Event", partial(_Event, gpu)),
            mock.patch("torch.cuda.mem_get_info", return_value=(2**60, 2**60)),
            mock.patch("torch.cuda.is_bf16_supported", return_value=True),
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
            mock.patch.object(FakeTensor, "tolist", _copied_list),
            gpu.fakes,
            gpu,
            _Calls(gpu),
        ):
            yield gpu
    finally:
        hue_table.cache_clear()


class PretendGpu(TorchDispatchMode):
    """What `pretend_gpu` counts.

    An operation that a GPU could not do raises, as one on tensors of two devices does. Where the host asks for a value,
    it is told 1 (true); what it copies to itself is zero; `nonzero` finds FOUND entries.

    Attributes:
        launches: operations on the GPU, each of one or several kernels.
        waits: how often the host had to wait for the GPU, by what it did; empty if it never had to.
        event_ages: for every event that the host waited for, how many operations were launched since it was recorded.
        memory: of all tensors on the GPU. Not in it: workspaces of operations, fragmentation, the CUDA context.
    """

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self.fakes = fakes
        self.launches = 0
        self.waits: Counter[str] = Counter()
        self.event_ages: list[int] = []
        self.memory = LiveBytes()
        self.new: set[int] = set()  # the tensors that the current call has made, by `id`
        self.casts = False  # whether the current call was made under autocast

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return self._device(args[0])
        if kwargs.get("device") is not None and torch.device(kwargs["device"]) != CPU:
            kwargs["device"] = GPU  # "meta" is what torch's own code was told; see _device
        on_gpu = any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs)))
        if not on_gpu and kwargs.get("device") != GPU:
            return self._on_host(func, args, kwargs)
        if func in (aten.item.default, aten._local_scalar_dense.default):
            self.waits["item"] += 1
            with _disable_current_modes():
                return torch.ones((), dtype=args[0].dtype).item()
        if func in (aten._to_copy.default, aten.copy_.default):
            return self._copy(func, args, kwargs)
        if func is aten.nonzero.default:
            self.waits["nonzero"] += 1
            func, args, kwargs = aten.new_zeros.default, (args[0], (FOUND, args[0].dim())), {"dtype": torch.int64}
        return self._launch(func, args, kwargs)

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        with _disable_current_modes():
            if func is not aten._pin_memory.default:
                return func(*args, **kwargs)
            pinned = args[0].clone()
        pinned.is_page_locked = True
        return pinned

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A copy with or without another type, on the GPU, to it or from it."""
        into = func is aten.copy_.default
        source = args[1] if into else args[0]
        non_blocking = kwargs.get("non_blocking") or (into and len(args) > 2 and args[2])
        from_gpu = isinstance(source, FakeTensor)
        to_gpu = isinstance(args[0], FakeTensor) if into else kwargs.get("device", GPU) == GPU
        if from_gpu and not to_gpu:
            if not non_blocking:
                self.waits["copy to the host"] += 1
            with _disable_current_modes():
                return args[0].zero_() if into else torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if not from_gpu and not non_blocking:
            self.waits["copy to the GPU"] += 1
        elif not from_gpu and not hasattr(source, "is_page_locked"):
            self.waits["copy of pageable memory"] += 1
        if from_gpu or into:
            return self._launch(func, args, kwargs)
        with _disable_current_modes():
            copy = func(*args, **{**kwargs, "device": META, "non_blocking": False})
        return self._made(FakeTensor(self.fakes, copy, GPU))

    def _launch(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in INDEXING:
            index = [leaf for leaf in args[1] if leaf is not None]
            if not all(isinstance(leaf, FakeTensor) for leaf in index):
                self.waits["index by tensors of the host"] += 1
            if any(leaf.dtype == torch.bool for leaf in index):
                self.waits["index by a mask"] += 1
        tensors = [leaf for leaf in args if isinstance(leaf, Tensor)]
        if func in PRODUCTS and len({tensor.dtype for tensor in tensors}) > 1:  # which fake tensors let pass
            raise RuntimeError(f"{func}: operands of different dtype: {[tensor.dtype for tensor in tensors]}")
        self.launches += 1
        args, kwargs = tree_map_only(Tensor, self._faked, (args, kwargs))
        return tree_map_only(FakeTensor, self._made, func(*args, **kwargs))

    def _faked(self, tensor: Tensor) -> FakeTensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        with _disable_current_modes():
            return FakeTensor(self.fakes, tensor.detach().to(META), tensor.device)

    def _made(self, tensor: FakeTensor) -> FakeTensor:
        self.new.add(id(tensor))
        self.memory.see(tensor)
        return tensor

    def _device(self, tensor: FakeTensor) -> torch.device:
        """What torch's own code is told about a tensor's device, as far as it asks: "meta" whenever autograd may ask.

        For nodes on a GPU, autograd's engine looks for CUDA's streams, which need a driver. Autocast must get the true
        answer, as it changes only what is on a GPU. It asks about arguments of a call, and switches itself off before.
        """
        if tensor.fake_device == CPU:
            return CPU
        asked_by_autocast = self.casts and not torch.is_autocast_enabled("cuda") and id(tensor) not in self.new
        return GPU if asked_by_autocast else META


class _Calls(TorchFunctionMode):
    """Tells Python's code where a tensor really is, and notes for `_device` in which call torch is."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu
        self.accumulators: dict[int, Any] = {}  # autograd's nodes of parameters, by the parameter's `id`

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fake = args[0] if args and isinstance(args[0], FakeTensor) else None
        if fake is not None and func == Tensor.device.__get__:
            return fake.fake_device
        if fake is not None and func == Tensor.is_cuda.__get__:
            return fake.fake_device.type == "cuda"
        self.gpu.new.clear()
        self.gpu.casts = False
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, nn.Parameter) and leaf.requires_grad and id(leaf) not in self.accumulators:
                # Made now, as its question for the device could not be told from autocast's.
                self.accumulators[id(leaf)] = get_gradient_edge(leaf)
        self.gpu.casts = torch.is_autocast_enabled("cuda")
        return func(*args, **kwargs)


def _copied_list(fake: FakeTensor) -> list[Any]:
    """`tolist` by one copy, as a GPU's tensors do it; fake ones would ask for value after value."""
    return fake.cpu().tolist()


class _Event:
    """Stands for torch.cuda.Event."""

    def __init__(self, gpu: PretendGpu) -> None:
        self.gpu, self.recorded = gpu, 0

    def record(self) -> None:
        self.recorded = self.gpu.launches

    def synchronize(self) -> None:
        self.gpu.event_ages.append(self.gpu.launches - self.recorded)
