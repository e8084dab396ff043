"""The records of a run, pretrain.json and result.json: written with their own digest, read and vouched for in one way.

Both hold the run's specification, the digest of its data, and the digests of the files that belong to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wmse.config import RunSpec, paper_differences
from wmse.errors import ConfigError, DataError, explain
from wmse.files import content_digest, file_digest, write_sealed_json
from wmse.runs.folder import ENCODER, HISTORY, IMPORTED, PRETRAINED, RESULT
from wmse.runs.job import Job

RECORD_FORMAT = 1
# The accuracies of a result, in percent, with their headings.
METRICS = {"linear_top1": "linear top-1", "linear_top5": "linear top-5", "knn5_top1": "5-nn"}
LARGEST_NUMBER = 1e18  # Views, bytes, seconds and every other number of a record stay far below.
# What to do about a record that is not to be trusted.
WRITE_AGAIN = {
    PRETRAINED: (
        "remove it and run `snakemake --cores all` (or `wmse pretrain`), which continues from the last checkpoint"
    ),
    RESULT: "remove it and run `snakemake --cores all` (or `wmse evaluate`)",
    IMPORTED: "remove it, as the run does not need it, or the run's folder, and import the bundle again",
}
VOUCHED = {ENCODER, HISTORY}  # The files whose digests a record holds.


class Record:
    """Typed access to a record by dotted key; every failure is a DataError that names the file and the key."""

    def __init__(self, file: Path, content: dict[str, Any], advice: str = "") -> None:
        self.file, self.content, self.advice = file, content, advice or WRITE_AGAIN[file.name]

    def error(self, problem: str) -> DataError:
        """What is wrong with the record, and what to do."""
        return DataError(f"{self.file}: {problem}: {self.advice}")

    def get(self, key: str, kind: type, none: bool = False, optional: bool = False) -> Any:
        """The value of a key, of type `kind`, or null with `none`; None if the key is missing with `optional`."""
        value: Any = self.content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                if optional:
                    return None
                raise self.error(f"key '{key}' is missing")
            value = value[part]
        kinds = (int, float) if kind is float else (kind,)
        fits = isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
        if not fits and not (none and value is None):
            raise self.error(f"key '{key}' must be of type {kind.__name__}, not {json.dumps(value)[:60]}")
        return value

    @property
    def sealed(self) -> bool:
        """Whether it is as it was written."""
        return self.content.get("sha256") == content_digest(self.content)

    @property
    def files(self) -> dict[str, str]:
        """The digests ("sha256:<hex>") of the run's files for which it vouches."""
        files = self.get("files", dict)
        if not VOUCHED.issuperset(files):
            raise self.error("holds the digest of a file that no run has")
        return files


def write_record(file: Path, job: Job, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a record atomically: what identifies the run, `content`, and the digest of it all. Returns it."""
    spec = job.spec
    record = {
        "format": RECORD_FORMAT,
        "run": spec.run,
        "preset": job.preset,
        "spec": spec.to_dict(),
        "spec_hash": spec.hash,
        "paper_differences": paper_differences(spec),
        "data": {"benchmark": spec.benchmark, "digest": job.data.digest},
        **content,
    }
    write_sealed_json(file, record)
    return record


def read_record(file: Path, shown: Path | None = None, advice: str = "") -> Record:
    """Read a record of any content; `misfits` says whether to believe it. DataError if it is no JSON object.

    Messages name the file as `shown`, and end in the `advice` instead of that for a record in a run's folder.
    """
    shown = shown or file
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_number)
    except OSError as error:
        raise DataError(explain(error)) from None
    except (ValueError, RecursionError) as error:
        raise Record(shown, {}, advice).error(f"cannot be read as JSON ({error!s:.200})") from None
    if not isinstance(content, dict):
        raise Record(shown, {}, advice).error("must hold a JSON object")
    return Record(shown, content, advice)


def _number(text: str) -> float:
    """A number of a record; ValueError for what no run can measure, and arithmetic would overflow on."""
    value = float(text)
    if not abs(value) < LARGEST_NUMBER:
        raise ValueError(f"it holds {text[:40]}, which is not a number of a record")
    return int(text) if text.removeprefix("-").isdecimal() else value


def misfits(
    record: Record, *, folder: Path | None = None, spec: RunSpec | None = None, data: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Every reason why a record is not as it was written, or not of this folder, this run or the data there are now.

    `data` holds the digests of the prepared data by `RunSpec.data_key`. DataError if a key is missing or of another
    type.
    """
    if "sha256" not in record.content:
        yield "has no digest of its own, as those of an earlier version"
        return
    if not record.sealed:
        yield "was changed after it was written"
        return
    try:
        found = RunSpec.from_dict(record.get("spec", dict), runnable=False)
    except ConfigError as error:
        yield f"key 'spec' is no specification of this version ({error})"
        return
    spec_hash = record.get("spec_hash", str)
    run = record.get("run", str)
    name = Path(found.run).name
    if spec_hash != found.hash:
        yield f"key 'spec_hash' is {spec_hash:.8}, but the hash of 'spec' is {found.hash[:8]}"
    if Path(run).name != name:
        yield f"key 'run' is {run}, which does not end in {name}"
    if folder and folder.resolve().name != name:
        yield f"belongs to the run {found.run}, not into this folder"
    if spec and spec.hash != found.hash:
        yield f"belongs to the run {found.run}, not to {spec.run}"
    digest = record.get("data.digest", str)
    prepared = (data or {}).get(found.data_key, digest)
    if digest != prepared:
        yield f"was computed on data with digest {digest}, the prepared data has {prepared}"


def vouch_for_file(file: Path, digest: str, record: str) -> None:
    """Check a file against the digest ("sha256:<hex>") that a `record` holds of it. Raises DataError."""
    if digest != f"sha256:{file_digest(file)}":
        raise DataError(f"{file}: is not what {record} vouches for: {WRITE_AGAIN[PRETRAINED]}")


def is_trained(job: Job) -> bool:
    """Whether the run's pretraining is finished, on these data, and its encoder and history are what it left."""
    try:
        record = read_record(job.folder.pretrained)
        for name in VOUCHED:
            vouch_for_file(job.folder.path / name, record.files.get(name, ""), PRETRAINED)
        return not any(misfits(record, spec=job.spec, data={job.spec.data_key: job.data.digest}))
    except (DataError, OSError):
        return False
