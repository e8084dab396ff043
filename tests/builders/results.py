"""Results of runs that never ran, and what stands in the tables that are made of them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from wmse.config import RunSpec
from wmse.files import write_sealed_json
from wmse.report import write_tables

REDUCED = {"epochs": {"run": 10, "paper": 1000}, "width": {"run": 16, "paper": 64}}
PNG = b"\x89PNG\r\n\x1a\n"
GRAPH = """digraph snakemake_dag {
    0[label = "all", color = "0.1 0.6 0.85"];
    1[label = "tables", color = "0.1 0.6 0.85"];
    2[label = "evaluate", color = "0.1 0.6 0.85"];
    3[label = "dag", color = "0.1 0.6 0.85"];
    1 -> 0
    2 -> 0
    2 -> 1
    3 -> 0
}"""


def make_run(
    root: Path,
    benchmark: str = "cifar10",
    method: str = "wmse",
    d: int | None = 4,
    seed: int = 0,
    linear: float = 55.0,
    knn: float = 50.0,
    top5: float | None = 94.0,
    epochs: int = 10,
    differences: dict[str, Any] | None = REDUCED,
    **spec_extra: Any,
) -> Path:
    """Write one synthetic run and return its directory."""
    trained = method not in ("random", "pixels")
    if not trained:
        epochs, differences, d = 0, None, None
    spec = {"benchmark": benchmark, "method": method, "seed": seed, "epochs": epochs, **spec_extra}
    spec |= {"d": 1} if not trained else {} if d is None else {"d": d}
    digest = RunSpec.from_dict(spec, runnable=False).hash
    label = f"wmse-{d}" if method == "wmse" else method
    run = f"{benchmark}/{label}/seed{seed}-{digest[:8]}"
    pretrain = {"epochs": epochs, "wall_seconds": 2800.4, "views_per_second": 712.6, "resumed": 0}
    pretrain |= {"steps": 100 * epochs, "views": 2e5 * epochs, "embedding_std": 0.9, "effective_rank": 12.0}
    content = {
        "format": 1,
        "run": run,
        "benchmark": benchmark,
        "method": method,
        "d": d,
        "seed": seed,
        "preset": "cpu",
        "spec": spec,
        "spec_hash": digest,
        "paper_differences": differences,
        "metrics": {"linear_top1": linear, "linear_top5": top5, "knn5_top1": knn},
        "pretrain": pretrain if trained else None,
        "evaluation": {"wall_seconds": 30.0, "train_images": 50000, "test_images": 10000, "features": 128},
        "data": {"benchmark": benchmark, "digest": "sha256:" + "ab" * 32},
        "provenance": {
            "commit": "0123456789abcdef",
            "dirty": seed == 1,
            "versions": {"python": "3.11.2", "torch": "2.15.0", "wmse": "0.1.0"},
            "hardware": {"cpu": "AMD | EPYC", "cores": 2, "gpu": None},
            "runtime": {"device": "cpu", "precision": "bf16", "threads": 1},
            "finished": "2026-11-23T20:00:00+00:00",
        },
    }
    directory = root / run
    directory.mkdir(parents=True)
    if trained:
        _write_history(directory / "history.csv", epochs, linear, seed)
    write_sealed_json(directory / "result.json", {**content, "files": {}})
    return directory


def _write_history(file: Path, epochs: int, level: float, seed: int) -> None:
    head = "epoch,step,views,seconds,loss,lr,views_per_second,embedding_std,effective_rank,knn5_top1,peak_memory_mb"
    lines = [head]
    for epoch in range(1, epochs + 1):
        part = epoch / epochs
        knn = f"{level * part + seed:.2f}" if epoch % 2 == 0 else ""
        lines.append(f"{epoch},{epoch},{epoch},{60 * epoch}.0,{2 - part + seed / 10},0.003,700,0.1,{40 * part},{knn},")
    file.write_text("\n".join(lines) + "\n")


def edit(directory: Path, key: str, value: Any = None, delete: bool = False) -> None:
    """Change or delete one dotted key of a run's result.json, as if it had been written so."""
    file = directory / "result.json"
    content = json.loads(file.read_text())
    *parents, last = key.split(".")
    target = content
    for parent in parents:
        target = target[parent]
    if delete:
        del target[last]
    else:
        target[last] = value
    write_sealed_json(file, content)


def tables(run_dirs: list[Path], out: Path) -> str:
    write_tables(run_dirs, out)
    return (out / "tables.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """The part of tables.md under one heading."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def cells(text: str, title: str, method: str) -> list[str]:
    """Cells of the first row of a section that begins with `method`."""
    line = next(line for line in section(text, title).splitlines() if line.startswith(f"| {method} "))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def read_csv(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def rows_of(part: str) -> list[str]:
    """First cells of a section's table, without its head."""
    return [line.split(" | ")[0].strip("| ") for line in part.splitlines() if line.startswith("| ")][2:]


def markdown_rows(path: Path) -> list[tuple[str, ...]]:
    """The cells of every table's rows, heads included, as they are read."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"\| +[^-]", line)]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [tuple(re.sub(r"\*\*|\\", "", cell).strip() for cell in row) for row in rows]
