"""Whether what lies on disk is still what was written: data, checkpoints, encoders, histories and result files."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wmse.config import RunSpec
from wmse.datasets import SOURCES, Source, load
from wmse.datasets.build import placed_raw, verify_raw
from wmse.datasets.prepared import MANIFEST, prepared_folder
from wmse.errors import ConfigError, DataError, explain
from wmse.files import content_digest, file_digest
from wmse.report.results import RESULT

PRETRAINED, ENCODER = "pretrain.json", "encoder.safetensors"
VOUCHED = {ENCODER, "history.csv"}  # what a record may hold the digest of
CHECKPOINT = re.compile(r"step-\d{9,}-([0-9a-f]{16})\.pt")
AGAIN = "remove it and run `snakemake --cores all` (or `wmse pretrain`), which continues from the last checkpoint"
EVALUATE_AGAIN = "remove it and run `snakemake --cores all` (or `wmse evaluate`)"


@dataclass
class Findings:
    """What was looked at, by kind, and what is wrong with it: a line each that names the file and what to do."""

    checked: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """`no problem in 2 prepared data, 12 encoder.safetensors`."""
        things = ", ".join(f"{number} {kind}" for kind, number in self.checked.items()) or "nothing: nothing is there"
        count = len(self.problems)
        return f"{count or 'no'} problem{'s' if count > 1 else ''} in {things}"


def verify(run_dirs: Sequence[Path], data_root: Path, results: Path, progress: bool | None = None) -> Findings:
    """Hash the data in `data_root` and `run_dirs` (none: all below `results`) again; no file is read as a whole.

    `progress` shows a bar (None: on a terminal only). Raises DataError if one of `run_dirs` is no folder.
    """
    from tqdm import tqdm

    for folder in run_dirs:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name directories of runs, such as {results}/runs/*/*/*")
    folders = list(run_dirs) or sorted(path for path in (results / "runs").glob("*/*/*") if path.is_dir())
    sources = [source for name, source in SOURCES.items() if (data_root / name).is_dir()]
    findings = Findings()
    digests: dict[str, str] = {}
    bar = tqdm(total=len(sources) + len(folders), disable=not (sys.stderr.isatty() if progress is None else progress))
    with bar:
        for source in sources:
            bar.set_description(source.name)
            _verify_data(source, data_root, digests, findings)
            bar.update()
        for folder in folders:
            bar.set_description("/".join(folder.parts[-3:]))
            _verify_run(folder, digests, findings)
            bar.update()
    return findings


def _verify_data(source: Source, data_root: Path, digests: dict[str, str], findings: Findings) -> None:
    """Every archive or folder that was placed or downloaded, where its digests are published; the prepared form."""
    for path, archive in placed_raw(source, data_root / source.name / "raw"):
        if archive.digest if path.is_file() else any(archive.files.values()):
            findings.checked["raw data"] += 1
            _attempt(findings, verify_raw, path, archive)
    if (prepared_folder(source, data_root) / MANIFEST).exists():
        findings.checked["prepared data"] += 1
        if prepared := _attempt(findings, load, source.name, data_root, verify=True):
            digests[source.name] = prepared.digest


def _attempt(findings: Findings, check: Any, *arguments: Any, **options: Any) -> Any:
    """The result of a check that raises DataError, or None and a problem more."""
    try:
        return check(*arguments, **options)
    except DataError as error:
        findings.problems.append(str(error))
    except OSError as error:
        findings.problems.append(explain(error))
    return None


def _verify_run(folder: Path, digests: Mapping[str, str], findings: Findings) -> None:
    for path in sorted((folder / "checkpoints").glob("*.pt")):
        findings.checked["checkpoints"] += 1
        named, digest = CHECKPOINT.fullmatch(path.name), _attempt(findings, file_digest, path)
        if digest and not (named and digest.startswith(named[1])):
            findings.problems.append(f"{path}: is not what its name says: remove it, an older one will do")
    vouched: dict[str, str] = {}
    for name, advice in ((PRETRAINED, AGAIN), (RESULT, EVALUATE_AGAIN)):
        path = folder / name
        if not path.exists():
            continue
        findings.checked[name] += 1
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            reasons = list(_misfits(content, folder, digests))
            given = dict(content.get("files", {}))
            if not VOUCHED.issuperset(given):
                reasons.append("holds the digest of a file that no run has")
            files = {file: given[file] for file in VOUCHED.intersection(given)}
        except PermissionError as error:
            findings.problems.append(explain(error))
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
            findings.problems.append(f"{path}: cannot be read ({error!r}): {advice}")
            continue
        if name == RESULT and files.get(ENCODER) != vouched.get(ENCODER, files.get(ENCODER)):
            reasons.append(f"was computed with another encoder than {PRETRAINED} describes")
        findings.problems += [f"{path}: {reason}: {advice}" for reason in reasons]
        if content.get("sha256") == content_digest(content):  # else it vouches for nothing
            vouched = files | vouched
    trained = (folder / PRETRAINED).exists()
    for name, expected in sorted(vouched.items()):
        path = folder / name
        if not path.exists():
            if trained:  # else these are results alone, copied without the encoders
                findings.problems.append(f"{path}: is missing: run `snakemake --cores all` (or `wmse pretrain`)")
            continue
        findings.checked[name] += 1
        digest = _attempt(findings, file_digest, path)
        if digest and f"sha256:{digest}" != expected:
            findings.problems.append(f"{path}: is not what {PRETRAINED if trained else RESULT} vouches for: {AGAIN}")


def _misfits(content: Mapping[str, Any], folder: Path, digests: Mapping[str, str]) -> Iterable[str]:
    """Why a pretrain.json or result.json cannot be trusted."""
    if "sha256" not in content:
        yield "has no digest of its own, as those of an earlier version"
        return
    if content["sha256"] != content_digest(content):
        yield "was changed after it was written"
        return
    spec = RunSpec.from_dict(content["spec"], runnable=False)
    if spec.hash != content["spec_hash"]:
        yield f"its specification has the hash {spec.hash[:8]}, it says {content['spec_hash'][:8]}"
    if folder.resolve().name != f"seed{spec.seed}-{spec.hash[:8]}":
        yield f"belongs to the run {spec.run}, not into this folder"
    digest = content["data"]["digest"]
    if digest != digests.get(spec.benchmark, digest):
        yield f"was computed on data with digest {digest}, prepared is {digests[spec.benchmark]}"
