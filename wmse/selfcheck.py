"""Whether an installation works: packages, arithmetic, embedded data, folders (`wmse selfcheck`)."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

import wmse
from wmse.datasets import SOURCES
from wmse.datasets.build import placed_raw, verify_raw
from wmse.errors import WmseError
from wmse.losses import wmse_loss
from wmse.machine import existing_parent
from wmse.provenance import cpu_name
from wmse.whitening import whiten

Matrix = list[list[float]]


def plain_whiten(x: Matrix) -> Matrix:
    """Section 3 of the paper in plain loops over Python's floats: the reference of `whiten`."""
    n, k = len(x), len(x[0])
    mean = [sum(row[j] for row in x) / n for j in range(k)]
    x = [[row[j] - mean[j] for j in range(k)] for row in x]
    cov = [[sum(row[i] * row[j] for row in x) / (n - 1) for j in range(k)] for i in range(k)]
    low = [[0.0] * k for _ in range(k)]  # Cholesky: low low^T = cov
    for i in range(k):
        for j in range(i + 1):
            rest = cov[i][j] - sum(low[i][m] * low[j][m] for m in range(j))
            low[i][j] = math.sqrt(rest) if i == j else rest / low[j][j]
    z = []
    for row in x:  # low z = row, from the first component on
        solved: list[float] = []
        for i in range(k):
            solved.append((row[i] - sum(low[i][m] * solved[m] for m in range(i))) / low[i][i])
        z.append(solved)
    return z


def plain_loss(views: list[Matrix]) -> float:
    """W-MSE of one sub-batch in plain loops: mean over pairs of views and images of the unit vectors' distance."""
    unit = [[[v / math.hypot(*row) for v in row] for row in plain_whiten(view)] for view in views]
    distances = [
        sum((a - b) ** 2 for a, b in zip(unit[i][n], unit[j][n], strict=True))
        for i in range(len(unit))
        for j in range(i)
        for n in range(len(unit[0]))
    ]
    return sum(distances) / len(distances)


def _require(what: str, error: float, limit: float) -> None:
    if not error <= limit:  # also when it is not a number
        raise WmseError(f"{what}: differs by {error:.2e} from the plain computation, allowed is {limit:.0e}")


def check_arithmetic(device: torch.device, dtype: torch.dtype) -> str:
    """Whitening, loss and gradient on `device` against plain loops and central differences of them."""
    limit = 1e-8 if dtype == torch.float64 else 1e-3
    data = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    embeddings = data.to(device, dtype).requires_grad_()
    views: list[Matrix] = embeddings.detach().double().cpu().tolist()
    expected = torch.tensor(plain_whiten(views[0]), dtype=torch.float64)
    error = (whiten(embeddings.detach()[0]).double().cpu() - expected).abs().max().item()
    _require("whitening", error, limit)
    loss = wmse_loss(embeddings, w_size=9)
    _require("loss", abs(loss.item() - plain_loss(views)), limit)
    loss.backward()
    assert embeddings.grad is not None
    gradient = embeddings.grad.double().cpu()
    step = 1e-6
    for view, image, j in ((0, 0, 0), (0, 5, 2), (1, 3, 1), (1, 8, 0)):
        value = views[view][image][j]
        sides = []
        for shifted in (value + step, value - step):
            views[view][image][j] = shifted
            sides.append(plain_loss(views))
        views[view][image][j] = value
        difference = (sides[0] - sides[1]) / (2 * step)
        _require("gradient", abs(gradient[view, image, j].item() - difference), max(limit, 1e-7))
    return f"loss and gradient equal plain loops ({str(dtype).removeprefix('torch.')})"


def check_network(device: torch.device) -> str:
    """One training step of a convolution: the libraries below torch are there."""
    layer = torch.nn.Conv2d(3, 8, 3, device=device)
    layer(torch.ones(4, 3, 16, 16, device=device)).square().mean().backward()
    if layer.weight.grad is None or not layer.weight.grad.isfinite().all():
        raise WmseError("the gradient of a convolution is missing or not finite")
    return "a convolution and its gradient"


def check_embedded_data() -> str:
    """The data that comes with the package has the digests that the source names."""
    found = [next(placed_raw(source, Path())) for source in SOURCES.values() if source.embedded]
    checked = [file for path, form in found for file in verify_raw(path, form)]
    if not checked:
        raise WmseError("no embedded data found")
    return f"{len(checked)} files as published"


def check_versions() -> str:
    """The packages of the pipeline can be found."""
    names = ("torch", "torchvision", "numpy", "snakemake")
    return ", ".join([f"wmse {wmse.__version__}", *(f"{name} {metadata.version(name)}" for name in names)])


def check_writable(folder: Path) -> str:
    """A file can be written in `folder`, or the folder can be made where it would lie."""
    place = existing_parent(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        owner = place.stat().st_uid
        raise WmseError(f"{place} (owner {owner}) cannot be written by uid {os.getuid()}: {error.strerror}") from None
    return f"{folder} can be written by uid {os.getuid()}"


def describe_device() -> str:
    """What a run would be computed on."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"GPU: {', '.join(names)} (CUDA {torch.version.cuda})"
    return f"no GPU: {cpu_name()}, {len(os.sched_getaffinity(0))} cores"


class Check(NamedTuple):
    """What a check found, or why it failed."""

    name: str
    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok      ' if self.passed else 'FAILED  '}{self.name}: {self.text}"


def selfcheck(
    results: Path, data_root: Path, log: Callable[[str], None], quiet: bool = False, as_json: bool = False
) -> int:
    """Run every check; returns the number of those that failed. `quiet` reports failures only."""
    found = []
    for check in run_checks(results, data_root):
        found.append(check)
        if not as_json and not (quiet and check.passed):
            log(str(check))
    if as_json:
        log(json.dumps({"checks": [check._asdict() for check in found]}))
    return sum(not check.passed for check in found)


def run_checks(results: Path, data_root: Path) -> Iterator[Check]:
    """Every check, one after the other."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("packages", check_versions),
        ("device", describe_device),
        ("whitening", lambda: check_arithmetic(torch.device("cpu"), torch.float64)),
        ("network", lambda: check_network(torch.device("cpu"))),
        ("embedded data", check_embedded_data),
        ("results", lambda: check_writable(results)),
        ("data", lambda: check_writable(data_root)),
    ]
    if torch.cuda.is_available():
        checks += [
            ("whitening, GPU", lambda: check_arithmetic(torch.device("cuda"), torch.float32)),
            ("network, GPU", lambda: check_network(torch.device("cuda"))),
        ]
    for name, check in checks:
        try:
            yield Check(name, True, check())
        except Exception as error:  # whatever is broken, the other checks are still of use
            yield Check(name, False, str(error))
