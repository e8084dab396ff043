"""A folder of one's own images: which files it holds, and their classes and splits. No image is opened here.

Three layouts, told apart by what is there:

    csv          a CSV file with the columns file, and perhaps label and split
    train/CLASS  beside val/CLASS or test/CLASS; the test images are those of test/, if both are there
    CLASS        one folder per class, of which a part becomes the test images (`_split`)

A class is the first folder below the split's; images that lie in none have no label, as have those of a CSV file with
an empty one. Without a label, an image is for pretraining alone.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wmse.errors import DataError, explain, unknown

ARRAYS, FILES = "arrays", "files"
LARGEST_ARRAYS = 4 << 30  # Bytes of pixels up to which images are stored as arrays.
REFUSED = {
    "EPS": "a program, which is not run",
    "WMF": "a drawing that only Windows renders",
    "BUFR": "",  # these four are formats that Pillow knows by name alone
    "GRIB": "",
    "HDF5": "",
    "MPEG": "",
}
NAMED = 20  # Most files that one message names.


@dataclass(frozen=True)
class FolderSet:
    """A data set as config.yaml describes it, under `datasets`.

    Attributes:
        folder: of the images; relative to the folder with config.yaml.
        image_size: side in pixels of a stored image, and of a view.
        csv: a file that lists the images, relative to `folder`; empty if the folders say it all.
        labelled: false ignores folders' names and labels: all images are for pretraining alone.
        test_share, split_seed: of the split where none is given.
        leave_out_broken: whether images that cannot be read are left out, instead of ending the preparation.
        store: "arrays", "files" (they are read where they lie), or "auto": as arrays up to LARGEST_ARRAYS.
    """

    folder: str
    image_size: int
    csv: str = ""
    labelled: bool = True
    test_share: float = 0.2
    split_seed: int = 0
    leave_out_broken: bool = False
    store: str = "auto"
    title: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """An image file: its name relative to the folder, its class ("" for none), "train" or "test", bytes, date (ns)."""

    name: str
    label: str
    split: str
    size: int = 0
    date: int = 0


@dataclass(frozen=True)
class Survey:
    """What a folder holds; the entries are sorted by label and name, those without a label last.

    `notes` are lines for the user: what was not taken, and why.
    """

    name: str
    wanted: FolderSet
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def classes(self) -> list[str]:
        """The labels of the training images, sorted; a label in numbers is its position here."""
        return sorted({entry.label for entry in self.entries if entry.label and entry.split == "train"})

    def count(self, split: str) -> int:
        """Images with a label, of "train" or "test"; of all images to pretrain on, for "pretrain"."""
        if split == "pretrain":
            return sum(entry.split == "train" for entry in self.entries)
        return sum(entry.split == split and entry.label != "" for entry in self.entries)

    @property
    def store(self) -> str:
        """How the images are stored: ARRAYS or FILES."""
        if self.wanted.store != "auto":
            return self.wanted.store
        return ARRAYS if len(self.entries) * 3 * self.wanted.image_size**2 <= LARGEST_ARRAYS else FILES

    @functools.cached_property
    def digest(self) -> str:
        """Tells data sets apart, wherever they lie: names, sizes, labels, splits, and what is made of the images."""
        lines = (f"{entry.split}/{entry.label}/{entry.name} {entry.size}\n" for entry in self.entries)
        treatment = [self.wanted.image_size, self.store, self.wanted.leave_out_broken]
        return _sha256(json.dumps(treatment) + "\n", *lines)

    @functools.cached_property
    def state(self) -> str:
        """As `digest`, with the folder's place and the dates of the files: whether anything has happened to them."""
        return _sha256(json.dumps(asdict(self.wanted)), self.digest, *(f"{entry.date}\n" for entry in self.entries))


def _sha256(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


def folder_set(name: str, block: Mapping[str, Any], root: Path = Path()) -> FolderSet:
    """The data set `name` from its block, whose types the schema has checked; `root` is the folder with config.yaml."""
    wanted = FolderSet(**{field.name: block[field.name] for field in fields(FolderSet) if field.name in block})
    given = {**asdict(wanted), "folder": str((root / wanted.folder).absolute()), "title": wanted.title or name}
    return FolderSet(**given)


def survey(name: str, wanted: FolderSet) -> Survey:
    """List the images of a data set.

    Raises DataError naming the folder or file: nothing there, a layout that says no or two things, names that cannot be
    listed, classes that only the test images have.
    """
    root = Path(wanted.folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder: correct `folder` of the data set '{name}'")
    notes: list[str] = []
    found = _listed(root, wanted, notes) if wanted.csv else _laid_out(root, wanted, notes)
    if not found:
        raise DataError(
            f"{root}: holds no image of a known kind (by the ends of the files' names); see docs/own-images.md"
        )
    strange = next((entry.name for entry in found if not entry.name.isprintable()), None)
    if strange is not None:
        raise DataError(f"{root}: the file name {strange!r} cannot be listed: rename or remove it")
    if not wanted.labelled:
        found = [Entry(entry.name, "", "train", entry.size, entry.date) for entry in found]
    result = Survey(name, wanted, tuple(sorted(found, key=lambda e: (e.split, e.label == "", e.label, e.name))), ())
    if useless := sum(entry.split == "test" and not entry.label for entry in found):
        notes.append(f"{useless} test images have no label and are of no use")
        kept = tuple(entry for entry in result.entries if entry.split == "train" or entry.label)
        result = Survey(name, wanted, kept)
    extra = sorted({entry.label for entry in result.entries} - set(result.classes) - {""})
    if extra:
        raise DataError(f"{root}: no training image of {_some(extra, 'class', 'classes')}, which test images have")
    if not result.count("pretrain"):
        raise DataError(f"{root}: no image to train on")
    return Survey(name, wanted, result.entries, tuple(notes))


def _some(names: list[str], one: str, many: str) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{one if len(names) == 1 else many} {', '.join(map(repr, names[:NAMED]))}{more}"


# --- folders ----------------------------------------------------------------------------------------------------------


@functools.cache
def image_suffixes() -> dict[str, str]:
    """Pillow's format by suffix, of those that it reads and of those that are refused by name."""
    from PIL import Image

    unreadable = {kind for kind, reason in REFUSED.items() if not reason}
    known = Image.registered_extensions().items()
    return {suffix: kind for suffix, kind in known if kind in Image.OPEN and kind not in unreadable}


def _laid_out(root: Path, wanted: FolderSet, notes: list[str]) -> list[Entry]:
    given = {split for split in ("train", "val", "test") if (root / split).is_dir()} if wanted.labelled else set()
    if given and "train" not in given:
        raise DataError(f"{root}: has {' and '.join(sorted(given))}/ but no train/")
    if len(given) < 2:
        base = root / "train" if given else root
        files = [(e, e.name.partition("/")[0] if "/" in e.name else "") for e in _walk(base, notes)]
        prefix = "train/" if given else ""
        entries = [Entry(prefix + e.name, label, "train", e.size, e.date) for e, label in files]
        return _split(entries, wanted) if wanted.labelled else entries
    test = "test" if "test" in given else "val"
    if len(given) == 3:
        notes.append("val/ is not used, because test/ is there")
    found = []
    for split in ("train", test):
        for e in _walk(root / split, notes):
            label = e.name.partition("/")[0] if "/" in e.name else ""
            found.append(Entry(f"{split}/{e.name}", label, "train" if split == "train" else "test", e.size, e.date))
    return found


def _walk(base: Path, notes: list[str]) -> Iterator[Entry]:
    """The image files below `base`, at any depth; hidden ones are not looked at, links are followed."""
    others: Counter[str] = Counter()
    top = base.stat()
    waiting, seen = [""], {(top.st_dev, top.st_ino)}
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(base / folder) as listed:
                items = [(item.name, item.is_dir(), item.stat()) for item in listed if not item.name.startswith(".")]
        except OSError as error:
            raise DataError(explain(error)) from None
        for name, is_folder, status in sorted(items, key=lambda item: item[0]):
            if is_folder and (status.st_dev, status.st_ino) not in seen:  # a link may lead back
                seen.add((status.st_dev, status.st_ino))
                waiting.append(f"{folder}{name}/")
            elif not is_folder and (suffix := os.path.splitext(name)[1].lower()) in image_suffixes():  # noqa: PTH122
                yield Entry(folder + name, "", "", status.st_size, status.st_mtime_ns)
            elif not is_folder:
                others[suffix or name] += 1
    if others:
        kinds = ", ".join(f"{number} {kind}" for kind, number in others.most_common(5))
        notes.append(f"no images by their names below {base}: {sum(others.values())} files ({kinds})")


def _split(entries: list[Entry], wanted: FolderSet) -> list[Entry]:
    """Make the share `test_share` of every class, rounded, test images; one image of a class at least stays.

    Those whose names have the smallest hashes are taken. So the split is the same everywhere, and an image that comes
    later moves hardly any other.
    """
    classes: dict[str, list[Entry]] = {}
    for entry in entries:
        classes.setdefault(entry.label, []).append(entry)
    result = classes.pop("", [])
    for members in classes.values():
        members.sort(key=lambda entry: _sha256(f"{wanted.split_seed}/{entry.name}"))
        count = min(max(round(wanted.test_share * len(members)), 1), len(members) - 1)
        result += [Entry(e.name, e.label, "test", e.size, e.date) for e in members[:count]] + members[count:]
    return result


# --- CSV --------------------------------------------------------------------------------------------------------------

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "": ""}


def _listed(root: Path, wanted: FolderSet, notes: list[str]) -> list[Entry]:
    """The images of a CSV file. DataError names every problem of its lines at once, up to NAMED."""
    table = root / wanted.csv
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = set(rows.fieldnames or ())
            if "file" not in columns:
                raise DataError(
                    f"{table}: has no column 'file'; its columns are {', '.join(sorted(columns)) or 'none'}"
                )
            lines = [(rows.line_num, row) for row in rows]
    except OSError as error:
        raise DataError(explain(error)) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table}: not a CSV file in UTF-8 ({error})") from None
    entries: dict[str, Entry] = {}
    problems = []
    for number, row in lines:
        entry = _row(root, row, entries)
        if isinstance(entry, Entry):
            entries[entry.name] = entry
        else:
            problems.append(f"  line {number}: {entry}")
    if problems:
        more = [f"  and {len(problems) - NAMED:,} more"] if len(problems) > NAMED else []
        raise DataError("\n".join([f"{table}: {len(problems):,} lines cannot be used:", *problems[:NAMED], *more]))
    return _resolved(list(entries.values()), wanted, notes)


def _row(root: Path, row: Mapping[str, str | None], before: Mapping[str, Entry]) -> Entry | str:
    """The image of a line, or what is wrong with it."""
    name, label, split = ((row.get(key) or "").strip() for key in ("file", "label", "split"))
    if split.lower() not in SPLITS:
        return unknown("split", split, [split for split in SPLITS if split])
    name = os.path.normpath(os.path.join(root, name))  # noqa: PTH118 (not resolved: a link is a name of its own)
    if not Path(name).is_relative_to(root):
        return f"{name} does not lie in {root}"
    name = Path(name).relative_to(root).as_posix()
    if name in before:
        return f"{name} is listed twice"
    try:
        status = (root / name).stat()
    except OSError as error:
        return f"{name}: {error.strerror}"
    except ValueError as error:
        return f"{name!r}: {error}"
    if not (root / name).is_file():
        return f"{name}: not a file"
    return Entry(name, label, SPLITS[split.lower()], status.st_size, status.st_mtime_ns)


def _resolved(entries: list[Entry], wanted: FolderSet, notes: list[str]) -> list[Entry]:
    """With "train" and "test" alone: by the column `split` if it says anything, else as of class folders."""
    given = {entry.split for entry in entries} - {""}
    if not given:
        return _split([Entry(e.name, e.label, "train", e.size, e.date) for e in entries], wanted)
    if "train" not in given:
        raise DataError(f"{wanted.csv}: the column 'split' has {' and '.join(sorted(given))} but no train")
    unused = "val" if "test" in given else ""
    if count := sum(entry.split == unused != "" for entry in entries):
        notes.append(f"{count} images of the split val are not used, because there are some of test")
    kept = [entry for entry in entries if not unused or entry.split != unused]
    return [Entry(e.name, e.label, "train" if e.split in ("train", "") else "test", e.size, e.date) for e in kept]
