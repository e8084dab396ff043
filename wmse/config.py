"""From the configuration to the runs: recipes, presets, overrides, validation and the hash of a run.

A *cell* is a benchmark and a method label, written ``cifar10/wmse-4`` (``@variant`` may follow). A *run* is a cell and
a seed; everything that decides its result is in its `RunSpec`, and nothing else is. Settings that decide only how
fast it goes (device, threads, memory format) are no part of it, so results stay valid across machines.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wmse.datasets import SOURCES
from wmse.errors import ConfigError

SPEC_VERSION = 1  # part of every hash: raise it when a default or the meaning of a parameter changes
IDENTITY = ("benchmark", "method", "d", "variant", "seed")


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides the result of one run.

    Identity: `benchmark`, `method` ("wmse", "simclr", "byol", or the baselines "random" encoder and raw "pixels"), `d`
    (number of positives, that is views of an image), `variant` and `seed`.
    """

    benchmark: str
    method: str
    d: int = 2
    variant: str = ""
    seed: int = 0
    # training
    epochs: int = 1000
    batch_size: int = 512  # images N per step; each gives d views
    optimizer: str = "adam"
    lr: float = 3e-3
    momentum: float = 0.9  # of LARS
    weight_decay: float = 1e-6  # L2, added to the gradient
    schedule: str = "step"  # "step" (drops at the end) or "cosine"
    warmup_iterations: int = 500  # linear warm-up
    warmup_epochs: int = 0  # warm-up in epochs, if not 0
    lr_drops: tuple[int, ...] = (50, 25)  # epochs before the end at which the rate is multiplied by lr_drop_factor
    lr_drop_factor: float = 0.2
    precision: str = "auto"  # of encoder and head: "fp32", "tf32", "bf16", or "auto": bf16 where the hardware has it
    # network
    arch: str = "resnet18"
    stem: str = "cifar"
    width: int = 64  # channels of the first stage
    head_hidden: int = 1024
    head_layers: int = 2
    embedding: int = 64  # k
    # loss
    whitening: str = (
        "auto"  # of the embeddings: "cholesky", "batch_norm", "identity"; "auto": cholesky for wmse, else identity
    )
    w_size: int = 128  # images in a whitened sub-batch
    w_iter: int = 1  # slicings per step
    normalize: bool = True  # cosine (True) or Euclidean distance
    temperature: float = 0.5  # of NT-Xent
    target_decay: float = 0.99  # of BYOL's target, at the start; it rises to 1
    # views
    view_size: int = 32
    crop_scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    grayscale_p: float = 0.1
    flip_p: float = 0.5
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    # evaluation
    eval_resize: int = 0  # shorter side before the central crop of view_size; 0 when images have that size already
    eval_every: int = 20  # epochs between 5-nn evaluations
    eval_every_final: int = 5  # the same after the first drop of the learning rate
    probe_epochs: int = 500
    probe_batch_size: int = 1000
    probe_lr: tuple[float, float] = (1e-2, 1e-6)  # first and last, exponential per epoch
    probe_weight_decay: float = 5e-6
    knn_k: int = 5

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
        return self.method in recipes()["methods"]

    @property
    def resolved_whitening(self) -> str:
        """`whitening` with "auto" replaced by what it stands for."""
        if self.whitening != "auto":
            return self.whitening
        return "cholesky" if self.method == "wmse" else "identity"

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of `compact` and the version of its meaning, in hexadecimal."""
        content = json.dumps([SPEC_VERSION, self.compact()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def run(self) -> str:
        """The run's name and its directory below ``results/runs``: cell, seed and hash."""
        return f"{self.cell}/seed{self.seed}-{self.hash[:8]}"

    def compact(self) -> dict[str, Any]:
        """The identity and what differs from the defaults, as plain values; `from_dict` takes it back.

        A parameter that is added later, with a default that changes nothing, leaves every older run its hash.
        """
        defaults = RunSpec(self.benchmark, self.method).to_dict()
        return {key: value for key, value in self.to_dict().items() if key in IDENTITY or value != defaults[key]}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, runnable: bool = True) -> RunSpec:
        """Check names and types, and choices, ranges and combinations unless it need not be `runnable` here and now.

        Raises:
            ConfigError: naming cell, key and allowed values.
        """
        where = shorten(f"{values.get('benchmark', '?')!s:.100}/{values.get('method', '?')!s:.100}")
        known = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise ConfigError(f"{where}: {unknown('parameter', str(key), known)}")
        for key in ("benchmark", "method"):
            if key not in values:
                raise ConfigError(f"run specification: the key '{key}' is missing")
        kinds = typing.get_type_hints(cls)
        spec = cls(**{key: _typed(where, key, value, kinds[key]) for key, value in values.items()})
        if runnable:
            for key in values:
                choices = method_names() if key == "method" else CHOICES.get(key)
                if choices is not None and values[key] not in choices:
                    raise ConfigError(f"{where}: {key}: {unknown('value', values[key], choices)}")
            _check(spec)
        return spec


# --- validation -------------------------------------------------------------------------------------------------------

CHOICES: dict[str, tuple[Any, ...]] = {
    "benchmark": tuple(SOURCES),
    "optimizer": ("adam", "lars"),
    "schedule": ("step", "cosine"),
    "precision": ("auto", "fp32", "tf32", "bf16"),
    "arch": ("resnet18", "resnet50"),
    "stem": ("cifar", "small", "imagenet"),
    "whitening": ("auto", "cholesky", "batch_norm", "identity"),
}
LARGEST = 2**31 - 1  # of every number: far above what can be computed, far below what overflows
MOST_VALUES = 100_000  # in a YAML file, with every alias counted as what it stands for
VARIANT = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}", re.ASCII)  # part of a folder's name
# Inclusive bounds; None stands for LARGEST.
RANGES: dict[str, tuple[float, float | None]] = {
    "d": (1, 64),
    "seed": (0, 2**31 - 1),
    "epochs": (0, None),
    "batch_size": (2, None),
    "lr": (0, None),
    "momentum": (0, 1),
    "weight_decay": (0, None),
    "warmup_iterations": (0, None),
    "warmup_epochs": (0, None),
    "lr_drops": (0, None),
    "lr_drop_factor": (0, 1),
    "width": (1, 4096),
    "head_hidden": (1, None),
    "head_layers": (1, 16),
    "embedding": (1, None),
    "w_size": (2, None),
    "w_iter": (1, None),
    "temperature": (1e-6, None),
    "target_decay": (0, 1),
    "view_size": (8, 4096),
    "crop_scale": (1e-6, 1),
    "jitter": (0, 1),
    "jitter_p": (0, 1),
    "grayscale_p": (0, 1),
    "flip_p": (0, 1),
    "blur_p": (0, 1),
    "blur_sigma": (0, 64),
    "eval_resize": (0, 4096),
    "eval_every": (1, None),
    "eval_every_final": (1, None),
    "probe_epochs": (1, None),
    "probe_batch_size": (1, None),
    "probe_lr": (0, None),
    "probe_weight_decay": (0, None),
    "knn_k": (1, None),
}


def unknown(what: str, name: str, allowed: Iterable[str]) -> str:
    """'unknown <what> <name>', with the likely meaning and the allowed values."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name[:100], names, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"unknown {what} '{shorten(name)}'{hint}; allowed: {', '.join(names)}"


def shorten(text: str, width: int = 200) -> str:
    """Text for a message of one line: at most `width` characters, control characters escaped."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= width else text[: width - 3] + "..."


def show(value: Any) -> str:
    """A value for a message, as Python writes it."""
    try:
        return shorten(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list of lists of lists
        return f"some {type(value).__name__}"


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
    if key in RANGES:
        low, high = RANGES[key]
        if not low <= value <= (LARGEST if high is None else high):
            bound = f"from {low:g} to {high:g}" if high is not None else f"at least {low:g} and at most {LARGEST}"
            raise ConfigError(f"{where}: {key} must be {bound}, got {show(value)}")
    return kind(value)


def _check(spec: RunSpec) -> None:
    """Combinations that cannot work."""

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"{shorten(spec.cell)}: {message}")

    require(
        not spec.variant or VARIANT.fullmatch(spec.variant) is not None,
        f"variant must be of the characters a-z, 0-9, '-' and '.', got {show(spec.variant)}",
    )
    for key in ("crop_scale", "blur_sigma"):
        low, high = getattr(spec, key)
        require(low <= high, f"{key} must be [low, high] with low <= high, got {[low, high]}")
    require(spec.jitter[3] <= 0.5, f"jitter: the hue's strength must be at most 0.5, got {spec.jitter[3]}")
    require(min(spec.probe_lr) > 0, f"probe_lr must be above 0, got {list(spec.probe_lr)}")
    require(
        not spec.eval_resize or spec.eval_resize >= spec.view_size,
        f"eval_resize ({spec.eval_resize}) must be 0 or at least view_size ({spec.view_size})",
    )
    if not spec.trained:
        return
    require(spec.d >= 2, f"d (the number of positives) must be at least 2, got {spec.d}")
    require(spec.epochs >= 1, f"epochs must be at least 1, got {spec.epochs}")
    drops = spec.lr_drops
    require(
        all(0 < drop < spec.epochs for drop in drops) and list(drops) == sorted(set(drops), reverse=True),
        f"lr_drops must be decreasing numbers of epochs before the end, between 1 and epochs - 1 "
        f"({spec.epochs - 1}), got {list(drops)}",
    )
    require(
        spec.method != "byol" or spec.resolved_whitening == "identity",
        f"whitening: '{spec.whitening}' is not possible for byol; allowed: auto, identity",
    )
    if spec.resolved_whitening == "cholesky":
        require(
            spec.w_size > spec.embedding,
            f"w_size ({spec.w_size}) must be greater than embedding ({spec.embedding}); twice as much is advised",
        )
    if spec.resolved_whitening != "identity":
        require(
            spec.batch_size % spec.w_size == 0,
            f"batch_size ({spec.batch_size}) must be a multiple of w_size ({spec.w_size})",
        )


# --- recipes ----------------------------------------------------------------------------------------------------------

VIEWS_PER_STEP = 1024  # d * N in the paper, for d = 2 and d = 4
PACKAGE = Path(__file__).parent


@functools.cache
def recipes() -> dict[str, Any]:
    """The content of recipes.yaml."""
    return plain_values(read_yaml(PACKAGE / "recipes.yaml"))


@functools.cache
def experiments() -> dict[str, Any]:
    """The content of experiments.yaml."""
    return plain_values(read_yaml(PACKAGE / "experiments.yaml"))


@functools.cache
def paper_variants() -> dict[str, dict[str, Any]]:
    """The variants of all experiments by name."""
    return {name: block for e in experiments().values() for name, block in e.get("variants", {}).items()}


def method_names() -> tuple[str, ...]:
    """Every method that can be trained, then the baselines."""
    return (*recipes()["methods"], *recipes()["baselines"])


def parse_label(label: str) -> tuple[str, int, str]:
    """``wmse-4@euclidean`` as (method, d, variant); baselines have d = 1, `simclr` alone has d = 2.

    Raises:
        ConfigError: the label names no method.
    """
    name, _, variant = label.partition("@")
    method, dash, number = name.partition("-")
    trained, baselines = recipes()["methods"], recipes()["baselines"]
    if method not in method_names():
        raise ConfigError(unknown("method", label, [*trained, *(f"{m}-<d>" for m in trained), *baselines]))
    if method in baselines:
        if dash:
            raise ConfigError(f"method '{label}': the baseline '{method}' takes no number of positives")
        return method, 1, variant
    if dash and not (re.fullmatch(r"[0-9]{1,2}", number) and 2 <= int(number) <= 64):
        raise ConfigError(f"method {show(label)}: the number of positives must be an integer from 2 to 64")
    return method, int(number) if dash else 2, variant


def paper_parameters(
    benchmark: str, method: str, d: int, variant: str = "", overrides: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The paper's parameters of a cell with `overrides` applied in order; relative values are applied last."""
    book = recipes()
    if benchmark not in book["benchmarks"]:
        raise ConfigError(unknown("benchmark", benchmark, book["benchmarks"]))
    block = dict(book["benchmarks"][benchmark])
    positives = block.pop("positives")
    for key in ("paper", "table"):  # for the report, no parameters
        block.pop(key, None)
    changes = {**book["methods"], **book["baselines"]}[method]
    parameters = {
        **book["common"],
        **block,
        **positives.get(d, {"batch_size": _default_batch(d, block["w_size"]), "w_iter": 1}),
        **changes.get("all", {}),
        **changes.get(benchmark, {}),
    }
    relative = {}
    for block in (paper_variants().get(variant, {}), *overrides):
        for key, value in block.items():
            if isinstance(value, str) and value.startswith("*"):
                relative[key] = value
            else:
                parameters[key] = value
    for key, value in relative.items():
        parameters[key] = _scaled(f"{benchmark}/{method}@{variant}", key, parameters.get(key), value, d)
    return {**parameters, "benchmark": benchmark, "method": method, "d": d, "variant": variant}


def _scaled(where: str, key: str, value: Any, factor: str, d: int) -> int | float:
    """`value` times the relative value `factor`, "* NUMBER" or "* NUMBER / d"; an integer stays one, at least 1."""
    match = re.fullmatch(r"\*\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)(\s*/\s*d)?", factor)
    usable = isinstance(value, int | float) and abs(value) <= LARGEST  # false for NaN as well
    if not match or not usable or float(match[1]) == 0:
        raise ConfigError(f"{where}: {key}: {show(factor)} must be '* NUMBER' or '* NUMBER / d' of a numeric parameter")
    product = value * float(match[1]) / (d if match[2] else 1)
    return max(1, round(product)) if isinstance(value, int) else product


def _default_batch(d: int, w_size: int) -> int:
    """Images per step for a number of positives that the paper has no recipe for: equal number of views."""
    return max(VIEWS_PER_STEP // d // w_size, 1) * w_size


# What decides the result of a baseline; everything else keeps its default, so that changing it reruns no baseline.
_PIXELS = (*IDENTITY, "view_size", "eval_resize", *(f.name for f in dataclasses.fields(RunSpec) if "probe" in f.name))
BASELINE_FIELDS = {
    "pixels": (*_PIXELS, "knn_k"),
    "random": (*_PIXELS, "knn_k", "arch", "stem", "width", "precision"),
}


def make_spec(cell: str, seed: int, overrides: Sequence[Mapping[str, Any]] = ()) -> RunSpec:
    """The run of a cell: the paper's recipe with `overrides` applied in order.

    Raises:
        ConfigError: naming the cell and the key.
    """
    benchmark, _, label = cell.partition("/")
    method, d, variant = parse_label(label)
    for key in (key for override in overrides for key in override):
        if key in IDENTITY:
            raise ConfigError(f"{cell}: '{key}' cannot be overridden: it is part of the run's name")
    values = paper_parameters(benchmark, method, d, variant, overrides)
    spec = RunSpec.from_dict({**values, "seed": seed})
    if method in recipes()["baselines"]:
        kept = {key: value for key, value in spec.to_dict().items() if key in BASELINE_FIELDS[method]}
        spec = RunSpec.from_dict({**kept, "epochs": 0})
    return spec


# Parameters that leave the method as it is: how often it is looked at, and the arithmetic of the device.
NOT_THE_RECIPE = (*IDENTITY, "eval_every", "eval_every_final", "precision")


def paper_differences(spec: RunSpec) -> dict[str, dict[str, Any]] | None:
    """Parameters in which a run departs from the paper, each with both values; None where the paper has no such run."""
    if not spec.trained or not recipes()["benchmarks"][spec.benchmark].get("paper", True):
        return None
    paper = RunSpec.from_dict(paper_parameters(spec.benchmark, spec.method, spec.d, spec.variant)).to_dict()
    return {
        key: {"run": value, "paper": paper[key]}
        for key, value in spec.to_dict().items()
        if key not in NOT_THE_RECIPE and value != paper[key]
    }


# --- the project's configuration --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Project:
    """A resolved configuration: what to run and how.

    Attributes:
        settings: every top-level key with its value (preset and config.yaml merged).
        runs: the specifications, in the order of the experiments.
    """

    settings: dict[str, Any]
    runs: tuple[RunSpec, ...]

    def find(self, run: str) -> RunSpec:
        """The run with this name (``cell/seedN-hash`` or ``cell/seedN``)."""
        for spec in self.runs:
            if run in (spec.run, spec.run.rsplit("-", 1)[0]):
                return spec
        raise ConfigError(unknown("run", run, (spec.run.rsplit("-", 1)[0] for spec in self.runs)))


def load_project(root: Path, config: Mapping[str, Any] | None = None) -> Project:
    """Resolve the configuration of the project folder `root`.

    Args:
        config: the merged configuration that Snakemake passes; config.yaml itself if None.

    Raises:
        ConfigError: one message that names the key and what is allowed.
    """
    workflow = root / "workflow"
    config = read_yaml(root / "config.yaml") if config is None else dict(config)
    try:
        count_values(config, {})
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"configuration: {error}") from None
    config = plain_values(config)
    presets = {path.stem: path for path in sorted((workflow / "presets").glob("*.yaml"))}
    name = config.get("preset", "quick")
    if not isinstance(name, str) or name not in presets:
        raise ConfigError(f"key 'preset': {unknown('preset', str(name), presets)}")
    preset = plain_values(read_yaml(presets[name]))
    settings = {**preset, **config, "preset": name}
    settings["variants"] = {**_mapping(preset, "variants"), **_mapping(config, "variants")}
    schema = read_yaml(workflow / "schemas" / "config.schema.yaml")
    validate(settings, schema)
    for key, value in schema["properties"].items():
        settings.setdefault(key, value.get("default"))
    for key in ("data_root", "results"):
        _check_path(key, settings[key])
    # The preset's patterns come first, so that the user's have the last word.
    patterns = [*_mapping(preset, "parameters").items(), *_mapping(config, "parameters").items()]
    return Project(settings, tuple(_runs(settings, patterns)))


def _check_path(key: str, path: str) -> None:
    try:
        name = os.fsencode(path)
        usable = b"\0" not in name and len(name) <= 2000 and all(len(part) <= 255 for part in name.split(b"/"))
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise ConfigError(f"key '{key}': {show(path)} cannot be the name of a folder")


def plain_values(value: Any) -> Any:
    """Turn strings that spell a number, true, false or null into that value, at any depth.

    Snakemake hands over everything inside ``--config key='[...]'`` as strings, and YAML 1.1 reads 1e-3 as one.
    """
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_values(item) for item in value]
    if not isinstance(value, str):
        return value
    words = {"true": True, "false": False, "null": None, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _mapping(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    if not isinstance(value, dict | types.NoneType):
        raise ConfigError(f"key '{key}' must be a mapping, got {show(value)}")
    return value or {}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; ConfigError names the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        count_values(node, {})
        content = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None
    except Exception as error:  # PyYAML raises many kinds where a value does not fit its tag
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {shorten(detail, 500)}") from None
    if not isinstance(content, dict | types.NoneType):
        raise ConfigError(f"{path}: must hold a mapping of keys to values")
    return content or {}


def count_values(value: Any, sizes: dict[int, int]) -> int:
    """Values inside `value`, plain or nodes of YAML, with every alias written out; `sizes` is filled on the way.

    Without this, nine lines of aliases of aliases would fill the memory. ValueError if they are too many, or if one
    contains itself.
    """
    inside = value.value if isinstance(value, yaml.CollectionNode) else value
    if not isinstance(inside, list | dict):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = MOST_VALUES  # while it is being counted: whoever contains itself has too many
        pairs = inside.items() if isinstance(inside, dict) else inside
        items = [item for pair in pairs for item in (pair if isinstance(pair, tuple) else (pair,))]
        sizes[id(value)] = 1 + sum(count_values(item, sizes) for item in items)
    if sizes[id(value)] > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values, or one that contains itself")
    return sizes[id(value)]


def validate(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Check the top-level configuration against its JSON schema; one ConfigError for the first problem."""
    import jsonschema  # here, because it is needed in this place only and slows every start-up

    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(settings))
    if not errors:
        return
    error = jsonschema.exceptions.best_match(errors)
    key = shorten(".".join(map(str, error.absolute_path)))
    where = f"key '{key}': " if key else ""
    if error.validator == "additionalProperties":
        allowed = error.schema.get("properties", {})
        extra = next(str(name) for name in error.instance if name not in allowed)
        raise ConfigError(where + unknown("key", extra, allowed))
    if error.validator == "enum":
        raise ConfigError(where + unknown("value", str(error.instance), map(str, error.validator_value)))
    note = error.schema.get("description")
    raise ConfigError(where + shorten(error.message) + (f"; expected: {note}" if note else ""))


def _runs(settings: Mapping[str, Any], patterns: Sequence[tuple[str, Mapping[str, Any]]]) -> list[RunSpec]:
    cells = _selected_cells(settings)
    for pattern, _ in patterns:
        if not isinstance(pattern, str):
            raise ConfigError(f"key 'parameters': pattern {show(pattern)} must be text, e.g. '*/wmse-4'")
        benchmark = pattern.partition("/")[0]
        if "/" not in pattern and pattern != "*":
            raise ConfigError(
                f"key 'parameters': pattern '{pattern}' must be '*' or 'BENCHMARK/METHOD', e.g. '*/wmse-4'"
            )
        if not fnmatch.filter(SOURCES, benchmark):
            raise ConfigError(f"key 'parameters': pattern '{pattern}': {unknown('benchmark', benchmark, SOURCES)}")
    variants = settings["variants"]
    known = {**variants, **paper_variants()}
    runs = []
    for cell, seeds in cells.items():
        variant = parse_label(cell.partition("/")[2])[2]
        if variant and variant not in known:
            raise ConfigError(f"{cell}: {unknown('variant', variant, known)}")
        overrides = [block for pattern, block in patterns if fnmatch.fnmatchcase(cell, pattern)]
        for seed in seeds:
            runs.append(make_spec(cell, seed, [*overrides, variants.get(variant, {})]))
    return runs


def _selected_cells(settings: Mapping[str, Any]) -> dict[str, list[int]]:
    """The seeds of every cell of the experiments, restricted to `benchmarks` and `methods` where these are given."""
    blocks = [_experiment(block) for block in settings["experiments"]]
    for key in ("benchmarks", "methods"):
        offered = {name for block in blocks for name in block[key]}
        for name in settings[key] or ():
            if name not in offered:
                raise ConfigError(f"key '{key}': {unknown(key[:-1], name, offered)} (or add it under 'experiments')")
    cells: dict[str, list[int]] = {}
    for block in blocks:
        for benchmark in block["benchmarks"]:
            if benchmark not in SOURCES:
                raise ConfigError(f"key 'experiments': {unknown('benchmark', benchmark, SOURCES)}")
            for method in block["methods"]:
                if all(
                    name in (settings[key] or [name]) for key, name in (("benchmarks", benchmark), ("methods", method))
                ):
                    seeds = cells.setdefault(f"{benchmark}/{make_label(method)}", [])
                    seeds += [seed for seed in block.get("seeds", settings["seeds"]) if seed not in seeds]
    if not cells:
        raise ConfigError("keys 'benchmarks' and 'methods' together select no experiment")
    return cells


def _experiment(block: Mapping[str, Any]) -> dict[str, Any]:
    """A block of the key `experiments` with its methods, which a named experiment brings along."""
    name = block.get("experiment")
    if name is not None and name not in experiments():
        raise ConfigError(f"key 'experiments': {unknown('experiment', name, experiments())}")
    if name is None and "methods" not in block:
        raise ConfigError("key 'experiments': a block needs 'methods', or the name of an 'experiment' that has them")
    return {"methods": experiments()[name]["methods"] if name else [], **block}


def make_label(label: str) -> str:
    """The canonical form of a method label: `simclr-2` is `simclr`."""
    method, d, variant = parse_label(label)
    return RunSpec("", method, d, variant).label
