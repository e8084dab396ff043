"""The specification of a run: every parameter with its default, meaning, bounds and role, and what they may not be."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from wmse.config.plugins import plugins
from wmse.config.recipes import LARGEST, MOST_VIEWS, augmentations, baselines, benchmarks, loss_over, trained_methods
from wmse.errors import ConfigError, shorten, show, unknown

SPEC_VERSION = 1  # It is part of every hash: raise it when a default or the meaning of a parameter changes.
VARIANT = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}", re.ASCII)  # The name of a variant is part of a folder's name.
DIGITS = 16  # Of a digest in `outside`.
EVERY = ("random", "pixels")  # Baselines whose result depends on how an evaluation is done.


def param(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = (),
    identity: bool = False,
    costs: bool = True,
    recipe: bool = True,
    baselines: tuple[str, ...] = (),
) -> Any:
    """A field of `RunSpec`.

    Args:
        default: MISSING if there is none.
        low, high: inclusive bounds of a number, or of every number in a list; without `high` it is `LARGEST`.
        choices: the allowed values of a string, or what gives them where they become more.
        identity: it is part of the run's name, and cannot be overridden.
        costs: it may change what a step of the training costs. A new parameter does until it is known not to.
        recipe: it belongs to the method, so that changing it departs from the paper; not how often a run is looked at,
            and not the arithmetic of a device.
        baselines: the baselines whose result it decides. It keeps its default in the others, so that changing it
            does not repeat them.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "meaning": meaning,
            "low": low,
            "high": high,
            "choices": choices,
            "identity": identity,
            "costs": costs,
            "recipe": recipe,
            "baselines": baselines,
        },
    )


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides the result of one run."""

    benchmark: str = param(MISSING, "name of the data set", choices=benchmarks, identity=True, costs=False)
    method: str = param(
        MISSING,
        "of training, or a baseline",
        choices=lambda: (*trained_methods(), *baselines()),
        identity=True,
    )
    d: int = param(2, "number of positives, that is views of an image", low=1, high=MOST_VIEWS, identity=True)
    variant: str = param("", "of the method, in an ablation", identity=True, costs=False)
    seed: int = param(0, "of every random number", low=0, identity=True, costs=False)
    # training
    epochs: int = param(1000, "passes over the training images", low=0, costs=False)
    batch_size: int = param(512, "images N per step; each gives d views", low=2)
    optimizer: str = param("adam", "of encoder and head", choices=("adam", "lars"))
    lr: float = param(3e-3, "learning rate after the warm-up", low=0, costs=False)
    momentum: float = param(0.9, "of LARS", low=0, high=1, costs=False)
    weight_decay: float = param(1e-6, "L2, added to the gradient", low=0, costs=False)
    schedule: str = param("step", "of the rate; step: drops at the end", choices=("step", "cosine"), costs=False)
    warmup_iterations: int = param(500, "steps of linear warm-up", low=0, costs=False)
    warmup_epochs: int = param(0, "warm-up in epochs instead, if not 0", low=0, costs=False)
    lr_drops: tuple[int, ...] = param((50, 25), "epochs before the end at which the rate drops", low=0, costs=False)
    lr_drop_factor: float = param(0.2, "by which the rate is multiplied at every drop", low=0, high=1, costs=False)
    precision: str = param(
        "auto",
        "of encoder and head; auto: bf16 where the hardware has it, else fp32",
        choices=("auto", "fp32", "tf32", "bf16"),
        recipe=False,
        baselines=("random",),
    )
    # network
    arch: str = param("resnet18", "of the encoder", choices=("resnet18", "resnet50"), baselines=("random",))
    stem: str = param("cifar", "the first layers", choices=("cifar", "small", "imagenet"), baselines=("random",))
    width: int = param(64, "channels of the first stage", low=1, high=4096, baselines=("random",))
    head_hidden: int = param(1024, "units of a hidden layer of the projection head", low=1)
    head_layers: int = param(2, "layers of the projection head", low=1, high=16)
    embedding: int = param(64, "dimensions k of an embedding", low=1)
    head_batch_norm: bool = param(False, "a batch norm after the head's last layer; SimCLR's head always has one")
    joint_batch_norm: bool = param(False, "over all views at once (true) or over each view alone")
    # loss
    whitening: str = param(
        "auto",
        "of the embeddings; auto: cholesky for wmse, else identity",
        choices=("auto", "cholesky", "batch_norm", "identity"),
    )
    w_size: int = param(128, "images in a whitened sub-batch", low=2)
    w_iter: int = param(1, "slicings of the batch per step", low=1)
    normalize: bool = param(True, "cosine (true) or Euclidean distance", costs=False)
    temperature: float = param(0.5, "of NT-Xent", low=1e-6, costs=False)
    target_decay: float = param(0.99, "of BYOL's target at the start; it rises to 1", low=0, high=1, costs=False)
    # views
    view_size: int = param(32, "pixels of a view's side", low=8, high=4096, baselines=EVERY)
    crop_scale: tuple[float, float] = param((0.2, 1.0), "smallest and largest share of the image", low=1e-6, high=1)
    jitter: tuple[float, float, float, float] = param(
        (0.4, 0.4, 0.4, 0.1), "strength in brightness, contrast, saturation and hue", low=0, high=1
    )
    jitter_p: float = param(0.8, "probability of colour jitter", low=0, high=1)
    grayscale_p: float = param(0.1, "probability of grayscale", low=0, high=1)
    flip_p: float = param(0.5, "probability of a horizontal flip", low=0, high=1)
    blur_p: float = param(0.0, "probability of a Gaussian blur", low=0, high=1)
    blur_sigma: tuple[float, float] = param((0.1, 2.0), "smallest and largest width of the blur", low=0, high=64)
    crop_first: bool = param(False, "crop and flip before the colours change (true) or after that")
    augmentation: str = param("", "of a plugin, which every view goes through at last", choices=augmentations)
    # evaluation
    eval_resize: int = param(
        0,
        "shorter side before the central crop of view_size; 0: view_size",
        low=0,
        high=4096,
        costs=False,
        baselines=EVERY,
    )
    eval_every: int = param(20, "epochs between 5-nn evaluations", low=1, costs=False, recipe=False)
    eval_every_final: int = param(5, "the same after the first drop of the rate", low=1, costs=False, recipe=False)
    probe_epochs: int = param(500, "of the linear probe", low=1, costs=False, baselines=EVERY)
    probe_batch_size: int = param(1000, "features per step of the linear probe", low=1, costs=False, baselines=EVERY)
    probe_lr: tuple[float, float] = param(
        (1e-2, 1e-6), "first and last, exponential per epoch", low=0, costs=False, baselines=EVERY
    )
    probe_weight_decay: float = param(5e-6, "of the linear probe", low=0, costs=False, baselines=EVERY)
    knn_k: int = param(5, "neighbours that vote", low=1, costs=False, baselines=EVERY)
    evaluate_on: str = param("", "benchmark of the evaluation; empty: its own", costs=False, baselines=EVERY)
    # what is not of this package
    outside: tuple[str, ...] = param(
        (),
        "NAME:SHA256 of every data set and source file of one's own that the run uses; follows from them",
        costs=False,
        recipe=False,
        baselines=EVERY,
    )

    @property
    def label(self) -> str:
        """The method label, e.g. ``wmse-4``, ``simclr``, ``wmse-2@euclidean``."""
        suffix = f"-{self.d}" if self.method == "wmse" or self.d > 2 else ""
        return self.method + suffix + (f"@{self.variant}" if self.variant else "")

    @property
    def cell(self) -> str:
        """``benchmark/label``."""
        return f"{self.benchmark}/{self.label}"

    @property
    def trained(self) -> bool:
        """Whether there is anything to train: not for the baselines."""
        return self.method in trained_methods()

    @property
    def resolved_whitening(self) -> str:
        """`whitening` with "auto" replaced by what it stands for."""
        if self.whitening != "auto":
            return self.whitening
        return "cholesky" if self.method == "wmse" else "identity"

    def loss_over(self, processes: int) -> str | None:
        """What a process of `processes` computes the loss over: its "images", its "sub-batches", or the whole "batch".

        Sub-batches are those of the only slicing, if each process can have as many. None if the method does not say
        so, and its batch cannot be divided.
        """
        over = loss_over(self.method)
        if over != "sub-batches":
            return over
        if self.resolved_whitening == "identity":
            return "images"
        return over if self.w_iter == 1 and self.batch_size // self.w_size % processes == 0 else "batch"

    def check_processes(self, processes: int, nodes: int = 1) -> None:
        """Raise ConfigError if the run cannot be divided among so many processes, or these among so many hosts.

        The message names the possible numbers.
        """
        if processes > 1 and self.loss_over(processes) is None:
            raise ConfigError(
                f"{self.cell}: processes: must be 1: the method '{self.method}' does not say under `loss_over` in "
                "recipes.yaml how its batch can be divided"
            )
        if processes < 1 or self.batch_size % processes:
            raise ConfigError(
                f"{self.cell}: processes: must divide the batch of {self.batch_size} images, got {processes}; "
                f"allowed: {_divisors(self.batch_size)}"
            )
        if nodes < 1 or processes % nodes:
            raise ConfigError(
                f"{self.cell}: nodes: must divide the {processes} processes, got {nodes}; allowed: "
                f"{_divisors(processes)}"
            )

    @property
    def probed(self) -> str:
        """The benchmark that the run is evaluated on."""
        return self.evaluate_on or self.benchmark

    def digest_of(self, name: str) -> str | None:
        """The digest of a data set or source file of one's own; None for what belongs to this package."""
        return dict(text.rsplit(":", 1) for text in self.outside if ":" in text).get(name)

    @property
    def data_key(self) -> str:
        """Tells the data of runs apart: the benchmark, and of a folder of one's own also its digest."""
        digest = self.digest_of(self.benchmark)
        return f"{self.benchmark}:{digest}" if digest else self.benchmark

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of `compact` and the version of its meaning, in hexadecimal."""
        content = json.dumps([SPEC_VERSION, self.compact()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def name(self) -> str:
        """``cell/seedN``, which tells the runs of one configuration apart."""
        return f"{self.cell}/seed{self.seed}"

    @property
    def run(self) -> str:
        """The run's name and its directory below ``results/runs``: cell, seed and hash."""
        return f"{self.name}-{self.hash[:8]}"

    def compact(self) -> dict[str, Any]:
        """The identity and what differs from the defaults, as plain values; `from_dict` takes it back.

        A parameter that is added later, with a default that changes nothing, leaves every older run its hash.
        """
        defaults = RunSpec(self.benchmark, self.method).to_dict()
        return {key: value for key, value in self.to_dict().items() if key in IDENTITY or value != defaults[key]}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def evaluation_due(self, epoch: int) -> bool:
        """Whether the 5-nn accuracy is taken after this epoch (1, 2, ...): more often after the rate's first drop."""
        final = self.lr_drops[0] if self.lr_drops else 0
        every = self.eval_every_final if epoch > self.epochs - final else self.eval_every
        return epoch % every == 0 or epoch == self.epochs

    def same_step(self) -> RunSpec:
        """A specification to compare: equal for runs whose training steps cost the same on images of one size."""
        neutral = {
            name: "" if field.default is MISSING else field.default
            for name, field in FIELDS.items()
            if not field.metadata["costs"]
        }
        return dataclasses.replace(self, whitening=self.resolved_whitening, **neutral)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, runnable: bool = True) -> RunSpec:
        """Check names and types, and choices, ranges and combinations unless it need not be `runnable` here and now.

        Raises ConfigError: naming cell, key and allowed values.
        """
        plugins()  # whose methods are possible, too
        where = shorten(f"{values.get('benchmark', '?')!s:.100}/{values.get('method', '?')!s:.100}")
        for key in values:
            if key not in FIELDS:
                raise ConfigError(f"{where}: {unknown('parameter', str(key), FIELDS)}")
        for key in ("benchmark", "method"):
            if key not in values:
                raise ConfigError(f"run specification: the key '{key}' is missing")
        kinds = typing.get_type_hints(cls)
        spec = cls(**{key: _typed(where, key, value, kinds[key]) for key, value in values.items()})
        if runnable:
            for key, value in values.items():
                choices = FIELDS[key].metadata["choices"]
                choices = choices() if callable(choices) else choices
                if choices and value not in (*choices, FIELDS[key].default) and spec.digest_of(value) is None:
                    raise ConfigError(f"{where}: {key}: {unknown('value', value, choices)}")
            for problem in _problems(spec):
                raise ConfigError(f"{shorten(spec.cell)}: {problem}")
        return spec


FIELDS = {field.name: field for field in dataclasses.fields(RunSpec)}
IDENTITY = tuple(name for name, field in FIELDS.items() if field.metadata["identity"])


# --- validation -------------------------------------------------------------------------------------------------------


def _divisors(n: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, n + 1) if n % divisor == 0)


def _typed(where: str, key: str, value: Any, kind: Any) -> Any:
    """`value` as the annotated type `kind`, or a ConfigError. Integers pass as floats, lists as tuples."""
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        variadic = len(kinds) == 2 and kinds[1] is Ellipsis
        if not isinstance(value, list | tuple) or (not variadic and len(value) != len(kinds)):
            size = "a list" if variadic else f"a list of {len(kinds)} numbers"
            raise ConfigError(f"{where}: {key} must be {size}, got {show(value)}")
        kinds = (kinds[0],) * len(value) if variadic else kinds
        return tuple(_typed(where, key, v, k) for v, k in zip(value, kinds, strict=True))
    accepted = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        name = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind]
        raise ConfigError(f"{where}: {key} must be {name}, got {show(value)}")
    low, high = FIELDS[key].metadata["low"], FIELDS[key].metadata["high"]
    if low is not None and not low <= value <= (LARGEST if high is None else high):
        bound = f"at least {low:g} and at most {LARGEST}" if high is None else f"from {low:g} to {high:g}"
        raise ConfigError(f"{where}: {key} must be {bound}, got {show(value)}")
    return kind(value)


def _problems(spec: RunSpec) -> Iterator[str]:
    """Combinations that cannot work."""
    if spec.variant and not VARIANT.fullmatch(spec.variant):
        yield f"variant must be of the characters a-z, 0-9, '-' and '.', got {show(spec.variant)}"
    for key in ("crop_scale", "blur_sigma"):
        low, high = getattr(spec, key)
        if low > high:
            yield f"{key} must be [low, high] with low <= high, got {[low, high]}"
    if spec.jitter[3] > 0.5:
        yield f"jitter: the hue's strength must be at most 0.5, got {spec.jitter[3]}"
    if min(spec.probe_lr) <= 0:
        yield f"probe_lr must be above 0, got {list(spec.probe_lr)}"
    if 0 < spec.eval_resize < spec.view_size:
        yield f"eval_resize ({spec.eval_resize}) must be 0 or at least view_size ({spec.view_size})"
    if spec.probed not in benchmarks() and spec.digest_of(spec.probed) is None:
        yield f"evaluate_on: {unknown('benchmark', spec.probed, benchmarks())}"
    for plugin in plugins().values():
        if (spec.digest_of(plugin.name) or plugin.digest)[:DIGITS] != plugin.digest[:DIGITS]:
            yield f"{plugin.file} is not what the run was planned with: its source has changed"
    if spec.trained:
        yield from _training_problems(spec)


def _training_problems(spec: RunSpec) -> Iterator[str]:
    if spec.d < 2:
        yield f"d (the number of positives) must be at least 2, got {spec.d}"
    if spec.epochs < 1:
        yield f"epochs must be at least 1, got {spec.epochs}"
    drops = list(spec.lr_drops)
    last = spec.epochs - 1
    if not all(1 <= drop <= last for drop in drops) or drops != sorted(set(drops), reverse=True):
        yield (
            "lr_drops must be decreasing numbers of epochs before the end, "
            f"between 1 and epochs - 1 ({last}), got {drops}"
        )
    if spec.method == "byol" and spec.resolved_whitening != "identity":
        yield f"whitening: '{spec.whitening}' is not possible for byol; allowed: auto, identity"
    if spec.resolved_whitening == "cholesky" and spec.w_size <= spec.embedding:
        yield f"w_size ({spec.w_size}) must be greater than embedding ({spec.embedding}); twice as much is advised"
    if spec.resolved_whitening != "identity" and spec.batch_size % spec.w_size:
        yield f"batch_size ({spec.batch_size}) must be a multiple of w_size ({spec.w_size})"
