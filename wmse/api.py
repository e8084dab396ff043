"""Training from Python, for notebooks: `wmse.pretrain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wmse.config import RunSpec, make_spec
from wmse.datasets import Dataset, load
from wmse.encoder import Encoder
from wmse.errors import ConfigError
from wmse.pretrained import load_encoder
from wmse.runs.folder import RunFolder
from wmse.runs.job import CheckpointPolicy, Job
from wmse.runtime import resolve
from wmse.training import pretrain as train


def pretrain(
    run: RunSpec | str,
    data: Dataset | str | Path = "data",
    out: str | Path | None = None,
    *,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    device: str = "auto",
    threads: int | None = None,
    checkpoints: CheckpointPolicy | None = None,
    log: Callable[[str], None] = print,
    progress_bar: bool | None = None,
) -> Encoder:
    """Train a run as `wmse pretrain` does, or go on with it; returns its encoder (`load_encoder`).

    Args:
        run: its specification, or a cell such as "cifar10/wmse-4", whose recipe `parameters` change.
        data: the folder of the prepared data sets, or the images and labels themselves: an `ArrayDataset` with the
            splits "pretrain", "train" and "test", normalised as those of the run's benchmark.
        out: the run's folder; the default is results/runs/RUN.
        seed: of a cell's run.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: of the CPU; the default is all cores.
        checkpoints: when they are written; the default is every ten minutes.
        log: gets lines of text, among them one an epoch.
        progress_bar: the default shows one on a terminal only.

    Raises:
        ConfigError, DataError, CheckpointError, TrainingError: the message says what to do.
        wmse.training.Stopped: by Ctrl-C or a signal, with a checkpoint; the same call goes on.
    """
    if isinstance(run, RunSpec):
        if parameters or seed:
            raise ConfigError("pretrain: `parameters` and `seed` change a cell; a specification has its own")
        spec = run
    else:
        spec = make_spec(run, seed, [parameters or {}])
    if not spec.trained:
        raise ConfigError(f"{spec.run}: the baseline '{spec.method}' has nothing to train: run `wmse evaluate`")
    content = load(spec.benchmark, Path(data)) if isinstance(data, str | Path) else data
    folder = RunFolder(Path(out)) if out is not None else RunFolder.of(Path("results"), spec.run)
    runtime = resolve(device, spec.precision, threads=threads, say=log)
    policy = checkpoints or CheckpointPolicy()
    train(Job(spec, content, folder, runtime, "", policy, log, progress_bar))
    return load_encoder(folder.path)
