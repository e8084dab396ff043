"""The paper's recipes and experiments, as recipes.yaml and experiments.yaml list them."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmse.config.yaml_io import plain_values, read_yaml
from wmse.errors import ConfigError, show, unknown

FOLDER = Path(__file__).parent
LARGEST = 2**31 - 1  # No number may be larger: this is far above what can be computed, and far below what overflows.
VIEWS_PER_STEP = 1024  # The paper has this many, d * N, for d = 2 and for d = 4.
AUGMENTATIONS: dict[str, dict[str, Any]] = {}  # Those of plugins; the package's own are parameters.
MOST_VIEWS = 64  # The most positives of an image.


@functools.cache
def recipes() -> dict[str, Any]:
    """The content of recipes.yaml."""
    return plain_values(read_yaml(FOLDER / "recipes.yaml"))


@functools.cache
def experiments() -> dict[str, Any]:
    """The content of experiments.yaml."""
    return plain_values(read_yaml(FOLDER / "experiments.yaml"))


@functools.cache
def paper_variants() -> dict[str, dict[str, Any]]:
    """The variants of all experiments by name."""
    return merge_variants(experiments())


def merge_variants(blocks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The variants of some experiments by name. ConfigError if two experiments have one of the same name."""
    merged: dict[str, dict[str, Any]] = {}
    for experiment, block in blocks.items():
        for name, parameters in block.get("variants", {}).items():
            if name in merged:
                raise ConfigError(
                    f"experiments.yaml: '{experiment}' is not the first with a variant '{name}': rename it"
                )
            merged[name] = parameters
    return merged


def benchmarks() -> tuple[str, ...]:
    """Every benchmark that has a recipe."""
    return tuple(recipes()["benchmarks"])


def trained_methods() -> tuple[str, ...]:
    """Every method that can be trained."""
    return tuple(recipes()["methods"])


def baselines() -> tuple[str, ...]:
    """What is evaluated without any training."""
    return tuple(recipes()["baselines"])


def title_of(method: str) -> str:
    """The name of a method or baseline in tables; of an unknown one, `method` itself."""
    return {**recipes()["methods"], **recipes()["baselines"]}.get(method, {}).get("title", method)


def method_class(method: str) -> str:
    """The dotted path of the class that implements a method."""
    return recipes()["methods"][method]["class"]


def augmentations() -> tuple[str, ...]:
    """The augmentations of plugins."""
    return tuple(AUGMENTATIONS)


def loss_over(method: str) -> str | None:
    """What the loss of a method is a mean over, as recipes.yaml has it; None if it does not say."""
    return recipes()["methods"][method].get("loss_over")


def in_paper(benchmark: str) -> bool:
    """Whether the paper has runs on this benchmark, whose recipe ours may differ from."""
    return recipes()["benchmarks"].get(benchmark, {"paper": False}).get("paper", True)


def add_benchmark(name: str, block: Mapping[str, Any]) -> None:
    """Know a folder's derived recipe, which is `like` another one. ConfigError if recipes.yaml has one of that name."""
    if of_package(name):
        raise ConfigError(f"key 'datasets': '{name}' is a benchmark of this package: take another name")
    recipes()["benchmarks"][name] = block


def resolve_benchmark(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a plugin's benchmark: that of the one it is `like`, with its own `parameters`."""
    like = recipes()["benchmarks"].get(block["like"])
    if like is None:
        raise ConfigError(f"BENCHMARKS: '{name}': like: {unknown('benchmark', str(block['like']), benchmarks())}")
    parameters = {**like["parameters"], **block.get("parameters", {})}
    return {**like, "paper": False, **block, "parameters": parameters}


def of_package(benchmark: str) -> bool:
    """Whether a benchmark is one of recipes.yaml, not a folder of one's own and not of a plugin."""
    return "like" not in recipes()["benchmarks"].get(benchmark, {"like": ""})


def views_like_the_paper(d: int, w_size: int) -> dict[str, int]:
    """The batch for d views where the paper has no recipe: a step gets about as many views as with 2 or 4."""
    return {"batch_size": max(VIEWS_PER_STEP // d // w_size, 1) * w_size, "w_iter": 1}


def paper_table(benchmark: str) -> int:
    """The number of the paper's table that the benchmark's methods stand in; Table 1 for a benchmark without recipe."""
    return recipes()["benchmarks"].get(benchmark, {}).get("table", 1)


def parse_label(label: str) -> tuple[str, int, str]:
    """``wmse-4@euclidean`` as (method, d, variant); baselines have d = 1, `simclr` alone has d = 2.

    Raises ConfigError: the label names no method.
    """
    name, _, variant = label.partition("@")
    method, dash, number = name.partition("-")
    if method not in (*trained_methods(), *baselines()):
        allowed = [*trained_methods(), *(f"{m}-<d>" for m in trained_methods()), *baselines()]
        raise ConfigError(unknown("method", label, allowed))
    if method in baselines():
        if dash:
            raise ConfigError(f"method '{label}': the baseline '{method}' takes no number of positives")
        return method, 1, variant
    if dash and not (re.fullmatch(r"[0-9]{1,2}", number) and 2 <= int(number) <= MOST_VIEWS):
        raise ConfigError(f"method {show(label)}: the number of positives must be an integer from 2 to {MOST_VIEWS}")
    return method, int(number) if dash else 2, variant


def paper_parameters(
    benchmark: str, method: str, d: int, variant: str = "", overrides: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The paper's parameters of a cell with `overrides` applied in order; relative values are applied last.

    Raises ConfigError: no such benchmark, or a relative value or a rate that cannot be computed.
    """
    book = recipes()
    if benchmark not in book["benchmarks"]:
        raise ConfigError(unknown("benchmark", benchmark, book["benchmarks"]))
    recipe = book["benchmarks"][benchmark]
    changes = {**book["methods"], **book["baselines"]}[method]
    parameters = {**book["common"], **recipe["parameters"]}
    parameters |= recipe["positives"].get(d) or views_like_the_paper(d, parameters["w_size"])
    parameters |= changes.get("parameters", {})
    parameters |= changes.get("benchmarks", {}).get(benchmark, {})
    relative = {}
    for block in (paper_variants().get(variant, {}), *overrides):
        for key, value in block.items():
            if isinstance(value, str) and value.startswith("*"):
                relative[key] = value
            else:
                parameters[key] = value
    where = f"{benchmark}/{method}" + (f"@{variant}" if variant else "")
    lr_factor = relative.pop("lr", None)
    for key, value in relative.items():
        parameters[key] = _scaled(where, key, parameters.get(key), value, d)
    if "lr" in parameters:  # when the batch, which it may depend on, is settled
        parameters["lr"] = _rate(where, parameters["lr"], parameters["batch_size"])
    if lr_factor:
        parameters["lr"] = _scaled(where, "lr", parameters.get("lr"), lr_factor, d)
    return {**parameters, "benchmark": benchmark, "method": method, "d": d, "variant": variant}


def _rate(where: str, rate: Any, batch_size: Any) -> Any:
    """The learning rate "NUMBER * sqrt(batch_size)" as a number; what is no text, as it is."""
    if not isinstance(rate, str):
        return rate
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*\*\s*sqrt\(batch_size\)", rate)
    if not match:
        raise ConfigError(f"{where}: lr must be a number or 'NUMBER * sqrt(batch_size)', got {show(rate)}")
    if not isinstance(batch_size, int) or not 1 <= batch_size <= LARGEST:
        raise ConfigError(f"{where}: batch_size must be an integer, at least 1, got {show(batch_size)}")
    return float(match[1]) * math.sqrt(batch_size)


def _scaled(where: str, key: str, value: Any, factor: str, d: int) -> int | float:
    """`value` times the relative value `factor`, "* NUMBER" or "* NUMBER / d"; an integer stays one, at least 1."""
    match = re.fullmatch(r"\*\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)(\s*/\s*d)?", factor)
    usable = isinstance(value, int | float) and abs(value) <= LARGEST  # false for NaN as well
    if not match or not usable or float(match[1]) == 0:
        raise ConfigError(f"{where}: {key}: {show(factor)} must be '* NUMBER' or '* NUMBER / d' of a numeric parameter")
    product = value * float(match[1]) / (d if match[2] else 1)
    return max(1, round(product)) if isinstance(value, int) else product
