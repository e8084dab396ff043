"""The recipe of a folder of one's own images: that of the paper's benchmark with images of about the same size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from wmse.config.recipes import MOST_VIEWS, recipes, views_like_the_paper
from wmse.errors import ConfigError
from wmse.image_folders import ARRAYS, Survey

SMALLEST = 8  # No smaller sub-batch is whitened.
MOST_NAMED = 10  # Classes in a line.


def own_benchmark(found: Survey, preset: str) -> dict[str, Any]:
    """The entry of `benchmarks` (recipes.yaml) for a folder; ConfigError if it has too few images.

    Epochs grow with the square root of the number of images that are missing to the paper's, up to four times the
    paper's: between as many epochs and as many steps. Where a preset is a budget of images, they follow from that. The
    rate drops 5 and 2.5 % of the epochs before the end, as on CIFAR in the paper.
    """
    book, size, count = recipes(), found.wanted.image_size, found.count("pretrain")
    basis = next(basis for basis in book["folders"]["sizes"] if size <= basis["up_to"])
    budget = book["folders"]["budgets"].get(preset, {})
    like = book["benchmarks"][basis["like"]]
    parameters = {**like["parameters"], **budget.get("parameters", {})}
    view = min(size, budget.get("view_size", size))
    margin = 1 if found.store == ARRAYS else 256 / 224
    epochs = parameters["epochs"] * min(math.sqrt(basis["images"] / count), 4)
    if "images" in budget:
        epochs = budget["images"] / count
    epochs = max(1, round(epochs))
    while parameters["w_size"] > count // 2:
        for key in ("w_size", "embedding"):
            parameters[key] //= 2
    if parameters["w_size"] < SMALLEST:
        raise ConfigError(
            f"data set '{found.name}': {count} images are too few to train on: {2 * SMALLEST} are the least"
        )
    parameters |= {
        "epochs": epochs,
        "view_size": view,
        "eval_resize": round(view * margin),
        "lr_drops": sorted({n for n in (math.ceil(epochs / 20), math.ceil(epochs / 40)) if n < epochs}, reverse=True),
        "eval_every": max(1, epochs // 50),
        "eval_every_final": max(1, epochs // 200),
    }
    if labelled := found.count("train"):
        parameters["knn_k"] = min(labelled, book["common"]["knn_k"])
        # At least five steps an epoch, as on the smallest benchmark of the paper: one leaves the probe half trained.
        parameters["probe_batch_size"] = min(max(labelled // 5, 1), book["common"]["probe_batch_size"])
    positives = dict(_positives(like["positives"], parameters["w_size"], budget.get("batch_size"), count))
    return {"parameters": parameters, "positives": positives, "paper": False, "like": basis["like"], "preset": preset}


def _positives(
    like: Mapping[int, Mapping[str, Any]], w_size: int, budget: int | None, count: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The batch for every number of positives: that of the recipe or budget, but at most a quarter of the images."""
    for d in range(2, MOST_VIEWS + 1):
        block = {**views_like_the_paper(d, w_size), **like.get(d, {})}
        batch = 2 * budget // d if budget else block["batch_size"]
        batch = max(min(batch, count // 4) // w_size, 1) * w_size
        yield d, {"batch_size": batch, "w_iter": block["w_iter"]}


def describe_recipe(found: Survey) -> list[str]:
    """What was derived for a folder, for people to read."""
    block = recipes()["benchmarks"][found.name]
    sizes = [f"{block['positives'][d]['batch_size']} ({d} views)" for d in (2, 4)]
    shown = {**block["parameters"], "batch_size": ", ".join(sizes)}
    notes = list(found.notes)
    counts = [f"{found.count('pretrain'):,} images to pretrain on"]
    if found.classes:
        counts.append(f"{len(found.classes)} classes with {found.count('train'):,} for training and")
        counts[-1] += f" {found.count('test'):,} for testing"
        named = ", ".join(found.classes[:MOST_NAMED]) + (", ..." if len(found.classes) > MOST_NAMED else "")
        split = found.wanted.csv or any(entry.name.startswith(("test/", "val/")) for entry in found.entries)
        notes.append(f"the classes are {named}" + ("" if split else ": if these are none, set `labelled: false`"))
    if (view := block["parameters"]["view_size"]) < (size := found.wanted.image_size):
        notes.append(f"views of {view} of the {size} pixels, as the preset {block['preset']} is meant to be short")
    values = ", ".join(f"{key} {value}" for key, value in shown.items())
    return [
        f"{found.name}: {', '.join(counts)}; to be stored as {found.store}",
        f"{found.name}: recipe derived from that of {block['like']} (to be changed under `parameters`): {values}",
        *(f"{found.name}: {note}" for note in notes),
    ]
