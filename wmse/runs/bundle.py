"""A finished run as one archive or folder, for others to check or continue: `wmse bundle` and `wmse import`.

A bundle holds the run's files and `bundle.json`, a sealed record of their digests. That record's own digest names the
bundle: the same run gives the same one, in whatever form. An import trusts nothing that it has not checked against it.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import wmse
from wmse.config import RunSpec, baselines
from wmse.datasets.archives import Member, checked_members, open_tar, readable
from wmse.errors import DataError, shorten, show
from wmse.files import (
    atomic_path,
    digests,
    durable_rename,
    file_digest,
    flush_to_disk,
    json_text,
    sealed,
    write_json,
    write_sealed_json,
)
from wmse.locks import exclusive_lock, lock_holder
from wmse.runs.folder import (
    CHECKPOINT_NAME,
    CHECKPOINTS,
    ENCODER,
    EVALUATE_LOG,
    HISTORY,
    PRETRAIN_LOG,
    PRETRAINED,
    RESULT,
    RESULTS_LOCK,
    RunFolder,
)
from wmse.runs.record import VOUCHED, Record, misfits, read_record

BUNDLE = "bundle.json"
BUNDLE_FORMAT = 1
ARCHIVES = (".tar.gz", ".tgz", ".tar")
TRAINED = (ENCODER, HISTORY, PRETRAINED)
LOGS = (PRETRAIN_LOG, EVALUATE_LOG)
RUN_NAME = re.compile(r"[a-z0-9_]+/[a-z0-9_][a-z0-9_@.-]*/seed\d+-[0-9a-f]{8}", re.ASCII)  # It becomes a path.
DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
STAGE = ".import"  # In the folder of the results, where a run lies until it is complete and checked.
AGAIN = "get the bundle again, or make it again with `wmse bundle`"
CHUNK = 1 << 20
LARGEST_BUNDLE_JSON = 1 << 20
# Weights hardly compress; logs and histories do, and are far below the fixed part.
LARGEST_RATIO, LARGEST_TEXT = 4, 1 << 26


# --- write ------------------------------------------------------------------------------------------------------------


def write_bundle(folder: RunFolder, out: Path | None = None, checkpoint: bool = True) -> tuple[Path, str]:
    """Write a finished run as an archive (.tar.gz, .tgz or .tar) or else a folder; the same run gives the same bytes.

    Args:
        out: the run's name in the current folder, as a .tar.gz, if None.
        checkpoint: with the last checkpoint, which holds the head and the state of the optimiser beside the encoder.

    Returns:
        Where it was written, and the bundle's digest ("sha256:<hex>").

    Raises:
        DataError: not finished, at work, damaged, without its last checkpoint; or `out` is a folder that is not empty.
    """
    records = _records_of_finished(folder)
    names = [*records, *(TRAINED if PRETRAINED in records else ())]
    for name in names:
        if not (folder.path / name).is_file():
            raise DataError(f"{folder.path / name}: is missing: run `wmse verify`, which says what to do")
    if checkpoint and PRETRAINED in records:
        names.append(_last_checkpoint(folder, records[PRETRAINED].get("pretrain.steps", int)))
    names += [name for name in LOGS if (folder.path / name).is_file()]
    run = records[RESULT].get("run", str)
    files = digests(folder.path, *sorted({*names}))
    _check_records(records, run, files)
    manifest = sealed({"format": BUNDLE_FORMAT, "wmse": wmse.__version__, "run": run, "files": files})
    name = run.replace("/", "-")
    out = out or Path(f"{name}.tar.gz")
    if out.name.endswith(ARCHIVES):
        _write_archive(out, name, folder, manifest)
    else:
        _write_folder(out, folder, manifest)
    return out, f"sha256:{manifest['sha256']}"


def _records_of_finished(folder: RunFolder) -> dict[str, Record]:
    """The records of a run that is trained, if there is anything to train, and evaluated."""
    if not folder.path.is_dir():
        raise DataError(f"{folder.path}: there is no such run: `wmse runs` lists those of the configuration")
    if holder := lock_holder(folder.lock):
        raise DataError(f"{folder.path}: {holder} is at work here: wait for it to finish")
    if not folder.result.exists():
        method = folder.path.resolve().parent.name
        stage = "evaluate" if folder.pretrained.exists() or method in baselines() else "pretrain"
        name = "/".join(folder.path.resolve().parts[-3:]).rsplit("-", 1)[0]
        raise DataError(f"{folder.path}: the run is not finished: `wmse {stage} {name}` goes on with it")
    result = read_record(folder.result)
    if result.get("pretrain", dict, none=True) is None:
        return {RESULT: result}
    if not folder.pretrained.exists():
        raise DataError(f"{folder.pretrained}: is missing: of results alone there is no bundle")
    return {PRETRAINED: read_record(folder.pretrained), RESULT: result}


def _last_checkpoint(folder: RunFolder, steps: int) -> str:
    for path in folder.checkpoints.glob("*"):
        if (named := CHECKPOINT_NAME.fullmatch(path.name)) and int(named[1]) == steps:
            if not file_digest(path).startswith(named[2]):
                raise DataError(f"{path}: is not what its name says: `wmse bundle --without-checkpoint` leaves it out")
            return f"{CHECKPOINTS}/{path.name}"
    raise DataError(
        f"{folder.checkpoints}: has no checkpoint of the last step ({steps}), which holds the head and the optimiser's "
        "state: `wmse bundle --without-checkpoint` leaves both out"
    )


def _write_archive(out: Path, top: str, folder: RunFolder, manifest: Mapping[str, Any]) -> None:
    with atomic_path(out) as temporary, contextlib.ExitStack() as opened:
        file: Any = opened.enter_context(open(temporary, "wb"))
        if not out.name.endswith(".tar"):
            file = opened.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0))
        tar = opened.enter_context(tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT))
        record = json_text(manifest).encode()
        _add(tar, f"{top}/{BUNDLE}", len(record), io.BytesIO(record))
        for name in manifest["files"]:
            with open(folder.path / name, "rb") as content:
                _add(tar, f"{top}/{name}", os.fstat(content.fileno()).st_size, content)


def _add(tar: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)  # of no owner and no date
    member.size = size
    tar.addfile(member, content)


def _write_folder(out: Path, folder: RunFolder, manifest: Mapping[str, Any]) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: exists already and stays as it is: name a new folder, or a file with {ARCHIVES[0]}")
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for name in manifest["files"]:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.path / name, part / name)
            flush_to_disk(part / name)
        write_json(part / BUNDLE, manifest)
        _place(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


# --- import -----------------------------------------------------------------------------------------------------------


def import_bundle(bundle: Path, results: Path) -> tuple[RunFolder, str, bool]:
    """Put the run of a bundle into the folder of the results, as if it had been computed there: all of it or nothing.

    Its files stay as they are, so that the run's own records vouch for them; `imported.json` says where they came from.

    Returns:
        The run's folder, the bundle's digest ("sha256:<hex>"), and whether it was written: a run that is there already,
        with the same content, stays as it is.

    Raises:
        DataError: no bundle, damaged, hostile, or not of the run that it names; or another one of that name is there.
    """
    if not (bundle.is_file() or bundle.is_dir()):
        raise DataError(f"{bundle}: no such file or folder: name a bundle that `wmse bundle` wrote")
    with exclusive_lock(results / RESULTS_LOCK, f"wmse import {bundle}", DataError):
        stage = results / STAGE
        shutil.rmtree(stage, ignore_errors=True)  # of an import that was killed
        try:
            return _import(bundle, results, stage)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _import(bundle: Path, results: Path, stage: Path) -> tuple[RunFolder, str, bool]:
    manifest = _unpack(bundle, stage)
    run, files, digest = manifest.content["run"], manifest.content["files"], f"sha256:{manifest.content['sha256']}"
    _check_records(_records_in(bundle, stage, files), run, files)
    folder = RunFolder.of(results, run)
    if folder.path.exists() and any(folder.path.iterdir()):
        for name in sorted(files.keys() - set(LOGS)):
            path = folder.path / name
            if not path.is_file() or f"sha256:{file_digest(path)}" != files[name]:
                raise DataError(
                    f"{folder.path}: exists already, with another {name} or none, and stays as it is: move it away, or "
                    "import into another folder (--results)"
                )
        return folder, digest, False
    (stage / BUNDLE).unlink()
    origin = {
        "format": BUNDLE_FORMAT,
        "run": run,
        "bundle": bundle.resolve().name,
        "digest": digest,
        "wmse": manifest.content.get("wmse"),
        "imported": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_sealed_json(RunFolder(stage).imported, origin)
    # Snakemake evaluates a run again whose result is older than its encoder.
    os.utime(stage / RESULT)
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    _place(stage, folder.path)
    return folder, digest, True


def _place(part: Path, target: Path) -> None:
    """Rename a complete folder, whose files are on disk."""
    if (part / CHECKPOINTS).exists():
        flush_to_disk(part / CHECKPOINTS)
    durable_rename(part, target)


def _unpack(bundle: Path, stage: Path) -> Record:
    """Copy a bundle into the new folder `stage`, checked against its record of all files, which is returned."""
    with _open_bundle(bundle) as members:
        name, size, opened = next(members, ("", 0, None))
        if name != BUNDLE or opened is None or size > LARGEST_BUNDLE_JSON:
            raise DataError(f"{bundle}: is no bundle, which begins with {BUNDLE}: {AGAIN}")
        _copy(opened, size, stage / BUNDLE, bundle)
        manifest = read_record(stage / BUNDLE, Path(f"{bundle}: {BUNDLE}"), AGAIN)
        missing = dict(_listed_files(manifest))
        for name, size, opened in members:
            expected = missing.pop(name, None)
            if expected is None:
                raise DataError(f"{bundle}: holds {show(name)}, which {BUNDLE} does not list, or twice: {AGAIN}")
            if _copy(opened, size, stage / name, bundle) != expected:
                raise DataError(f"{bundle}: {name}: damaged: it is not what {BUNDLE} lists: {AGAIN}")
    if missing:
        raise DataError(f"{bundle}: {', '.join(sorted(missing))}: missing: {AGAIN}")
    return manifest


def _listed_files(manifest: Record) -> dict[str, str]:
    """The files of a bundle with their digests; DataError if its record is not to be trusted."""
    if not manifest.sealed:
        raise manifest.error("was changed after it was written")
    if (version := manifest.get("format", int)) != BUNDLE_FORMAT:
        raise manifest.error(f"key 'format' is {version}, this version reads {BUNDLE_FORMAT}")
    if not RUN_NAME.fullmatch(run := manifest.get("run", str)):
        raise manifest.error(f"key 'run' is not the name of a run: {show(run)}")
    files = manifest.get("files", dict)
    for name, digest in files.items():
        folder, _, base = name.rpartition("/")
        named = CHECKPOINT_NAME.fullmatch(base) if folder == CHECKPOINTS else None
        if not (named or name in (RESULT, *TRAINED, *LOGS)):
            raise manifest.error(f"lists a file that no run has: {show(name)}")
        if not (isinstance(digest, str) and DIGEST.fullmatch(digest)):
            raise manifest.error(f"lists no digest of {name}")
        if named and not digest.startswith(f"sha256:{named[2]}"):
            raise manifest.error(f"lists a checkpoint that is not what its name says: {name}")
    return files


def _check_records(records: Mapping[str, Record], run: str, files: Mapping[str, str]) -> None:
    """Raise DataError unless a run's own records are of this run and vouch for the files that are bundled."""
    for record in records.values():
        for reason in misfits(record):
            raise record.error(reason)
    for record in records.values():
        found = RunSpec.from_dict(record.get("spec", dict), runnable=False).run
        if found != run or record.get("run", str) != run:
            raise record.error(f"belongs to the run {shorten(found)}, not to {run}")
        if wrong := [name for name in sorted(VOUCHED) if record.files.get(name) != files.get(name)]:
            raise record.error(f"vouches for another {' and '.join(wrong)} than there is")


def _records_in(bundle: Path, stage: Path, files: Mapping[str, str]) -> dict[str, Record]:
    """The run's own records, if nothing that belongs to them is missing."""
    found = [name for name in (PRETRAINED, RESULT) if name in files]
    records = {name: read_record(stage / name, Path(f"{bundle}: {name}"), AGAIN) for name in found}
    needed = {RESULT}
    if RESULT in records and records[RESULT].get("pretrain", dict, none=True) is not None:
        needed |= {*TRAINED}
    if missing := needed - files.keys():
        raise DataError(f"{bundle}: {', '.join(sorted(missing))}: missing: {AGAIN}")
    return records


def _copy(opened: Callable[[], IO[bytes]], size: int, target: Path, bundle: Path) -> str:
    """Write `size` bytes to a new file, and return their digest ("sha256:<hex>")."""
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with readable(bundle):
        source = opened()
    with source, open(target, "xb") as file:
        while size:
            with readable(bundle):
                chunk = source.read(min(size, CHUNK))
            if not chunk:
                raise DataError(f"{bundle}: {target.name}: ends too early: {AGAIN}")
            size -= len(chunk)
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return f"sha256:{digest.hexdigest()}"


@contextlib.contextmanager
def _open_bundle(bundle: Path) -> Iterator[Iterator[Member]]:
    """The files of a bundle in their order, `bundle.json` first."""
    if bundle.is_dir():
        yield _folder_members(bundle)
        return
    limit = LARGEST_RATIO * bundle.stat().st_size + LARGEST_TEXT
    with contextlib.ExitStack() as opened:
        with readable(bundle):
            tar = opened.enter_context(open_tar(bundle, limit))
        yield _tar_members(tar, bundle, limit)


def _folder_members(bundle: Path) -> Iterator[Member]:
    first = bundle / BUNDLE
    for path in [first, *sorted(set(bundle.rglob("*")) - {first})] if first.exists() else ():
        kind = path.lstat()
        if stat.S_ISDIR(kind.st_mode):
            continue
        if not stat.S_ISREG(kind.st_mode):
            raise DataError(f"{path}: is a link or a device; refused")
        yield path.relative_to(bundle).as_posix(), kind.st_size, functools.partial(open, path, "rb")


def _tar_members(tar: tarfile.TarFile, bundle: Path, limit: int) -> Iterator[Member]:
    top = None
    with readable(bundle):
        for member in checked_members(tar, bundle, limit):
            folder, _, name = member.name.partition("/")
            if member.isdir() or not name or folder != (top := top or folder):
                raise DataError(f"{bundle}: member {member.name!r} is no file in the bundle's folder; refused")
            yield name, member.size, functools.partial(tar.extractfile, member)
