"""Whether what lies on disk is still what was written: data, checkpoints, encoders, histories and result files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wmse.config import DIGITS
from wmse.datasets import SOURCES, Source, find_folders, load
from wmse.datasets.build import placed_raw, verify_raw
from wmse.datasets.prepared import MANIFEST, prepared_folder
from wmse.datasets.source import Archive
from wmse.errors import DataError, explain
from wmse.files import file_digest, hashing_seen_by
from wmse.progress import progress_bar
from wmse.runs.folder import CHECKPOINT_NAME, ENCODER, IMPORTED, PRETRAINED, RESULT, RunFolder, run_folders
from wmse.runs.record import VOUCHED, WRITE_AGAIN, misfits, read_record, vouch_for_file


@dataclass
class Findings:
    """What was looked at, by kind, and what is wrong with it: a line each that names the file and what to do."""

    checked: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """`no problem in 2 prepared data, 12 encoder.safetensors`."""
        if not self.checked:
            return "nothing to verify: there are no data and no runs"
        things = ", ".join(f"{number} {kind}" for kind, number in self.checked.items())
        count = len(self.problems)
        return f"{count or 'no'} problem{'s' if count > 1 else ''} in {things}"


def verify(run_dirs: Sequence[Path], data_root: Path, results: Path) -> Findings:
    """Hash the data in `data_root` and `run_dirs` (none: all below `results`) again; no file is read as a whole.

    Raises DataError if one of `run_dirs` is no folder.
    """
    for folder in run_dirs:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name directories of runs, such as {results}/runs/*/*/*")
    folders = list(run_dirs) or run_folders(results)
    find_folders(data_root)
    sources = [source for name, source in SOURCES.items() if (data_root / name).is_dir()]
    findings = Findings()
    digests: dict[str, str] = {}
    total = sum(map(_size, (path for source in sources for path in _data_files(source, data_root))))
    total += sum(_size(path) for folder in folders for path in _vouched_files(RunFolder(folder)))
    with progress_bar(total, "B") as bar, hashing_seen_by(bar.update):
        for source in sources:
            bar.set_description(source.name)
            _verify_data(source, data_root, digests, findings)
        for folder in folders:
            bar.set_description("/".join(folder.parts[-3:]))
            _verify_run(RunFolder(folder), digests, findings)
    return findings


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # missing, or not to be looked at, which the verification itself reports
        return 0


def _data_files(source: Source, data_root: Path) -> Iterator[Path]:
    """What `_verify_data` hashes."""
    for path, archive in _published(source, data_root):
        yield from [path] if path.is_file() else [path / name for name in archive.files]
    yield from prepared_folder(source, data_root).glob("*")


def _vouched_files(folder: RunFolder) -> Iterator[Path]:
    """What `_verify_run` hashes."""
    yield from folder.checkpoints.glob("*.pt")
    yield from (folder.path / name for name in VOUCHED)


def _verify_data(source: Source, data_root: Path, digests: dict[str, str], findings: Findings) -> None:
    """Every archive or folder that was placed or downloaded, where its digests are published; the prepared form."""
    for path, archive in _published(source, data_root):
        findings.checked["raw data"] += 1
        _attempt(findings, verify_raw, path, archive)
    if (prepared_folder(source, data_root) / MANIFEST).exists():
        findings.checked["prepared data"] += 1
        if prepared := _attempt(findings, load, source.name, data_root, verify=True):
            own = prepared.manifest.get("own", {}).get("digest")
            digests[f"{source.name}:{own[:DIGITS]}" if own else source.name] = prepared.digest


def _published(source: Source, data_root: Path) -> Iterator[tuple[Path, Archive]]:
    """The raw data that are there and have published digests."""
    for path, archive in placed_raw(source, data_root / source.name / "raw"):
        if archive.digest if path.is_file() else any(archive.files.values()):
            yield path, archive


def _attempt(findings: Findings, check: Any, *arguments: Any, **options: Any) -> Any:
    """The result of a check; if it raises DataError or OSError, None, and the findings have one more problem."""
    try:
        return check(*arguments, **options)
    except DataError as error:
        findings.problems.append(str(error))
    except OSError as error:
        findings.problems.append(explain(error))
    return None


def _verify_run(folder: RunFolder, digests: Mapping[str, str], findings: Findings) -> None:
    for path in sorted(folder.checkpoints.glob("*.pt")):
        findings.checked["checkpoints"] += 1
        named = CHECKPOINT_NAME.fullmatch(path.name)
        digest = _attempt(findings, file_digest, path)
        if digest and not (named and digest.startswith(named[2])):
            findings.problems.append(f"{path}: is not what its name says: remove it, an older one will do")
    vouched: dict[str, str] = {}
    for path in (folder.pretrained, folder.result):
        if not path.exists():
            continue
        findings.checked[path.name] += 1
        files = _attempt(findings, _verify_record, path, digests, findings)
        if files is None:
            continue
        if files.get(ENCODER) != vouched.get(ENCODER, files.get(ENCODER)):
            problem = f"was computed with another encoder than {PRETRAINED} describes"
            findings.problems.append(f"{path}: {problem}: {WRITE_AGAIN[path.name]}")
        vouched = files | vouched
    trained = folder.pretrained.exists()
    for name, digest in sorted(vouched.items()):
        path = folder.path / name
        if path.exists():
            findings.checked[name] += 1
            _attempt(findings, vouch_for_file, path, digest, PRETRAINED if trained else RESULT)
        elif trained:  # else these are results alone, copied without the encoders
            findings.problems.append(f"{path}: is missing: run `snakemake --cores all` (or `wmse pretrain`)")
    if folder.imported.exists():
        findings.checked[IMPORTED] += 1
        _attempt(findings, _verify_origin, folder.imported)


def _verify_origin(path: Path) -> None:
    record = read_record(path)
    if not record.sealed:
        raise record.error("was changed after it was written")


def _verify_record(path: Path, digests: Mapping[str, str], findings: Findings) -> dict[str, str] | None:
    """The digests that a record holds of other files; None if it was changed, so that it vouches for nothing."""
    record = read_record(path)
    findings.problems += [str(record.error(reason)) for reason in misfits(record, folder=path.parent, data=digests)]
    return record.files if record.sealed else None
