"""The model card of an exported encoder: everything in it comes from the run's own records."""

from __future__ import annotations

import json
from typing import Any

from wmse.config import title_of
from wmse.datasets import SOURCES
from wmse.pretrained import Pretrained

PAPER = "https://arxiv.org/abs/2007.06346"
METRICS = {"linear_top1": "linear probe, top 1", "linear_top5": "linear probe, top 5", "knn5_top1": "5-nn, top 1"}


def model_card(run: Pretrained, kind: str, weights: str) -> str:
    """The card as Markdown with a YAML head, for the file `weights` in a format of `wmse.export.FORMATS`."""
    spec, seen = run.spec, run.preprocessing
    title = f"{title_of(spec.method)} encoder, {_data_title(run)}, seed {spec.seed}"
    head = {"library_name": kind, "pipeline_tag": "image-feature-extraction", "tags": ["self-supervised", spec.method]}
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in head.items()),
            "---",
            "",
            f"# {title}",
            "",
            f"`{weights}` is the encoder of the run `{run.spec.run}`: {spec.arch} of width {spec.width} with the stem "
            f"`{spec.stem}`, pretrained without labels on {spec.d} views of each image. It maps an image to "
            f"{run.encoder.features} features. Method: {title_of(spec.method)}, as wmse-repro reproduces "
            f"[W-MSE]({PAPER}) and its baselines.",
            "",
            "## Use",
            "",
            "`load.py` shows it, and needs nothing of wmse-repro: `python load.py IMAGE` prints the features, and "
            "`load_encoder()` and `preprocess(image)` can be imported from it.",
            "",
            f"What the network sees: RGB, shorter side to {seen.resize} pixels (bicubic, antialiased as in Pillow), "
            f"central crop of {seen.size} x {seen.size}, scaled to 0..1, mean {list(seen.mean)} subtracted, divided by "
            f"{list(seen.std)}. `config.json` has these numbers for programs. Features are not normalised.",
            "",
            "## Accuracy",
            "",
            *_accuracy(run.result),
            "",
            "## Data",
            "",
            *_data(run),
            "",
            "## Recipe",
            "",
            "Parameters that differ from the defaults of `RunSpec`:",
            "",
            "```json",
            json.dumps(spec.compact(), indent=2),
            "```",
            "",
            *_departures(run.training),
            "## Licence",
            "",
            "The code of wmse-repro is under the MIT licence. Whoever passes the weights on has to see whether the "
            f"terms of the training images allow it: {_licence(run)}.",
            "",
            "## Provenance",
            "",
            *_provenance(run),
            "",
        ]
    )


def _data_title(run: Pretrained) -> str:
    source = SOURCES.get(run.spec.benchmark)
    return source.title if source else run.spec.benchmark


def _licence(run: Pretrained) -> str:
    source = SOURCES.get(run.spec.benchmark)
    return (source.licence if source else "") or "not stated"


def _data(run: Pretrained) -> list[str]:
    source = SOURCES.get(run.spec.benchmark)
    digest = run.training.get("data", {}).get("digest")
    lines = [f"- Trained on: {_data_title(run)} (`{run.spec.benchmark}`), the split `pretrain`, without labels"]
    if source and source.homepage:
        lines.append(f"- Homepage: {source.homepage}")
    lines.append(f"- Terms: {_licence(run)}")
    return [*lines, f"- Digest of the prepared data: `{digest}`"] if digest else lines


def _accuracy(result: dict[str, Any]) -> list[str]:
    if not result:
        return ["Not evaluated (`wmse evaluate`)."]
    counts = result["evaluation"]
    if not counts["test_images"]:
        return ["None: the images have no labels."]
    rows = [
        f"| {METRICS.get(key, key)} | {value:.2f} |" for key, value in result["metrics"].items() if value is not None
    ]
    return [
        f"Of frozen features, in percent, on {counts['test_images']:,} test images after {counts['train_images']:,} "
        "training images with labels; one run, no spread over seeds.",
        "",
        "| measure | % |",
        "|---|---|",
        *rows,
    ]


def _departures(training: dict[str, Any]) -> list[str]:
    differences = training.get("paper_differences")
    if not differences:
        return []
    rows = [f"| `{key}` | {value['run']} | {value['paper']} |" for key, value in differences.items()]
    return [
        "Where the recipe departs from the paper's:",
        "",
        "| parameter | here | paper |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _provenance(run: Pretrained) -> list[str]:
    lines = [f"- Run: `{run.spec.run}`, hash `{run.spec.hash}`", f"- Encoder: `{run.digest}`"]
    origin = run.training.get("provenance")
    if not origin:
        return [*lines, "- Its training's record was not there when this card was written."]
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    hardware = ", ".join(f"{key} {value}" for key, value in origin["hardware"].items() if value)
    dirty = " with local changes" if origin.get("dirty") else ""
    trained = run.training["pretrain"]
    return [
        *lines,
        f"- Training: {trained['epochs']} epochs, {trained['steps']:,} steps, {trained['views']:,} views, "
        f"{trained['wall_seconds']:,.0f} s; finished {origin['finished']}",
        f"- Source: commit `{origin['commit'] or 'unknown'}`{dirty}",
        f"- Versions: {versions}",
        f"- Machine: {hardware}",
    ]
