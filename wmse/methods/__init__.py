"""The self-supervised methods: what happens to the views of a batch between the images and the loss.

A method is a module with an `encoder`; its `forward` maps the views of a batch to a `StepOutput`, and the trainer does
everything else. To add one, write a subclass of `Method`: in a module beside config.yaml (docs/extending.md), or here
with a block under `methods` in wmse/config/recipes.yaml that names the class.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmse.config import RunSpec, method_class, owner
from wmse.encoder import Encoder
from wmse.whitening import draw_slices


@dataclass
class StepOutput:
    """What one step of a method gives.

    Attributes:
        loss: scalar.
        embeddings: (d, N, k), detached: for the collapse diagnostics.
        factorisations: (d, w_iter, sub-batches) states of the whitening's Cholesky factors, None without whitening.
    """

    loss: Tensor
    embeddings: Tensor
    factorisations: Tensor | None = None


class Method(nn.Module):
    """A method with its networks.

    Args:
        encoder: with fresh weights; the only part that is kept after the pretraining.
        spec: the run; whatever else a method builds must draw its weights from torch's global generator.
    """

    collapse_expected = False  # True: embeddings that have become equal are a result, no reason to stop

    def __init__(self, encoder: Encoder, spec: RunSpec) -> None:
        super().__init__()
        self.encoder = encoder
        self.spec = spec

    @staticmethod
    def gather(embeddings: Tensor) -> Tensor:
        """The embeddings (d, N, k) of the whole batch, for a loss that needs all of them (`loss_over: batch`).

        Where a run is divided among processes, the trainer replaces this by what joins their shares.
        """
        return embeddings

    def draw(self, n: int, generator: torch.Generator) -> Tensor | None:
        """Whatever the method draws for a step on n images, as a tensor on the CPU: the slices, if it whitens.

        Args:
            generator: a CPU generator of this step's own.
        """
        spec = self.spec
        if spec.resolved_whitening == "identity":
            return None
        return draw_slices(n, spec.w_size, spec.w_iter, generator)

    def forward(self, views: list[Tensor], slices: Tensor | None) -> StepOutput:
        """The loss of one step; nothing in it is random, or known to the host alone.

        Args:
            views: d tensors (N, 3, H, W), on the device.
            slices: what `draw` gave for this step, on the device.
        """
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step; `progress` is the share of the epochs that were finished before it."""


def of_views(network: Callable[[Tensor], Tensor], views: Sequence[Tensor], joint: bool) -> Tensor:
    """A network's (d, N, ...) outputs for d views (N, ...), which its batch norms see all at once if `joint`.

    Otherwise they see one view at a time: the network runs once per view.
    """
    if joint:
        return network(torch.cat(list(views))).unflatten(0, (len(views), -1))
    return torch.stack([network(view) for view in views])


def embed(encoder: nn.Module, head: nn.Module, views: list[Tensor], joint: bool = False) -> Tensor:
    """Encoder on the views, joint or one at a time (`of_views`); head once on all views joined.

    Args:
        views: d tensors (N, 3, H, W).

    Returns:
        (d, N, k)
    """
    return of_views(head, of_views(encoder, views, joint).unbind(), joint=True)


def build_method(spec: RunSpec, generator_seed: int) -> Method:
    """The method of a run with its initial weights, which depend on `generator_seed` alone."""
    if plugin := owner("METHODS", spec.method):
        kind: type[Method] = plugin.thing("METHODS", spec.method)
    else:
        module, _, name = method_class(spec.method).rpartition(".")
        kind = getattr(importlib.import_module(module), name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        return kind(Encoder(spec.arch, spec.stem, spec.width), spec)


def build_encoder(spec: RunSpec, generator_seed: int) -> Encoder:
    """The run's encoder with the initial weights that `build_method` gives it for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        return Encoder(spec.arch, spec.stem, spec.width)
