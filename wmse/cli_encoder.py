"""The commands that use a trained encoder: export, features, neighbours."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wmse.cli_config import find_run
from wmse.errors import CheckpointError

if TYPE_CHECKING:
    from wmse.pretrained import Pretrained
    from wmse.runtime import Runtime

FORMATS = ("torchvision", "timm", "onnx", "torchscript")

Add = Callable[..., argparse.ArgumentParser]
Say = Callable[[str], None]


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A type of arguments for argparse: a number above 0."""

    def number(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    number.__name__ = f"{kind.__name__} above 0"  # argparse puts it into "invalid ... value"
    return number


def add_encoder_commands(add: Add) -> None:
    """Add them by `add(name, function, help)`."""
    command = add(
        "export", run_export, "a trained encoder for another library, with its preprocessing and a model card"
    )
    _add_run(command)
    command.add_argument("--format", choices=FORMATS, default="torchvision", help="default: torchvision")
    command.add_argument("--out", type=Path, help="a folder (default: export/FORMAT in the run's)")

    command = add(
        "features", run_features, "the features of a folder's images, in one file; goes on where it was stopped"
    )
    _add_run(command)
    _add_folder(command)
    command.add_argument("--out", type=Path, required=True, help="a file, .npz or .parquet")

    command = add("neighbours", run_neighbours, "a contact sheet of the nearest images of a folder, and a map of all")
    _add_run(command)
    _add_folder(command)
    command.add_argument("--out", type=Path, default=Path("neighbours"), help="a folder (default: neighbours)")
    command.add_argument("--samples", type=positive(int), default=8, help="rows of the sheet (default: 8)")
    command.add_argument("--neighbours", type=positive(int), default=8, help="in a row (default: 8)")
    command.add_argument("--seed", type=int, default=0, help="which samples are drawn (default: 0)")
    command.add_argument("--features", type=Path, help="an .npz file of `wmse features`, instead of computing them")


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run", help="a run's folder, its encoder.safetensors, or the name of a run of the configuration"
    )
    command.add_argument("--root", type=Path, default=Path(), help="the folder with config.yaml, for a name")
    command.add_argument("--preset", help="instead of the preset in config.yaml, for a name")


def _add_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="images, at any depth")
    command.add_argument("--skip-broken", action="store_true", help="leave out what cannot be read, and name it")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    command.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32", help="default: fp32")


def run_export(options: argparse.Namespace, output: Say) -> None:
    """`wmse export`."""
    from wmse.export import export_encoder

    run = _open(options)
    for file in export_encoder(run, options.format, options.out or run.file.parent / "export" / options.format, output):
        output(f"wrote {file}")


def run_features(options: argparse.Namespace, output: Say) -> None:
    """`wmse features`."""
    run = _open(options)  # first, because a wrong name needs no torch
    from wmse.image_features import write_folder_features

    runtime = _runtime(options, output)
    rows = write_folder_features(run, options.folder, options.out, runtime, skip_broken=options.skip_broken, log=output)
    output(f"wrote {options.out}: the features of {rows:,} images")


def run_neighbours(options: argparse.Namespace, output: Say) -> None:
    """`wmse neighbours`."""
    run = _open(options)
    from wmse.image_neighbours import write_neighbours

    runtime = _runtime(options, output)
    files = write_neighbours(
        run,
        options.folder,
        options.out,
        runtime,
        samples=options.samples,
        neighbours=options.neighbours,
        seed=options.seed,
        features=options.features,
        skip_broken=options.skip_broken,
        log=output,
    )
    for file in files:
        output(f"wrote {file}")


def _open(options: argparse.Namespace) -> Pretrained:
    """The run that the arguments name: by its place, or as one of the configuration."""
    path, spec = find_run(options, options.run)
    if spec and not path.exists():
        raise CheckpointError(f"{path}: the run has not been trained: run `wmse pretrain {spec.name}` first")
    from wmse.pretrained import open_run

    return open_run(path)


def _runtime(options: argparse.Namespace, say: Say) -> Runtime:
    from wmse.runtime import resolve

    return resolve(options.device, options.precision, threads=options.threads, say=say)
