"""Whatever bytes a data set consists of: prepared, or refused by one clear message.

Never another exception, never a hang, nothing written outside the folder that was named, nothing executed.
"""

from __future__ import annotations

import copy
import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from builders.hostile import PIECES, Canary, as_json, changed, idx, mutated, outcome, picture
from builders.raw import (
    WNIDS,
    cifar_source,
    imagenet_source,
    prepare_raw,
    python2_pickle,
    stl_source,
    tiny_source,
    write_cifar,
    write_imagenet,
    write_stl10,
    write_tiny,
)
from wmse.datasets import cifar, fashion_mnist, stl10, tiny_imagenet
from wmse.datasets.archives import FolderFiles
from wmse.datasets.decode import decode_image
from wmse.datasets.prepared import load_prepared
from wmse.errors import DataError

# What is made here is meant to be strange; a warning about it is no finding.
pytestmark = pytest.mark.filterwarnings("ignore:Reading `.npy`")


# --- data sets --------------------------------------------------------------------------------------------------------

BATCH = {b"data": np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072), b"labels": [3, 9]}
PICKLES = [python2_pickle(BATCH), *(pickle.dumps(BATCH, protocol=protocol) for protocol in (2, 3, 4, 5))]
SMALL = [content.replace(BATCH[b"data"].tobytes(), b"") for content in PICKLES]  # so that changes hit more than pixels


def opcodes(canary: bytes) -> st.SearchStrategy[bytes]:
    """Programs for the unpickler: its operations in any order, with any arguments."""
    codes = [
        getattr(pickle, name)[:1] for name in dir(pickle) if name.isupper() and isinstance(getattr(pickle, name), bytes)
    ]
    globals_ = [b"cos\nmkdir\n", b"cbuiltins\neval\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n"]
    some = st.sampled_from([*codes, *globals_, b"(", b"t", b"R", b"b", b"0", b"2", b"}", b"]", b"X" + canary, b"."])
    return st.lists(st.one_of(some, PIECES), max_size=25).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")


def test_fuzzed_cifar_pickles(tmp_path: Path, fuzz: Any) -> None:
    source, files = cifar_source("cifar10"), FolderFiles(tmp_path, "python")
    canary = tmp_path / "canary"
    name = len(str(canary)).to_bytes(4, "little") + str(canary).encode()

    def check(content: bytes) -> None:
        (tmp_path / "data_batch_1").write_bytes(content)
        result = outcome(lambda: next(cifar.parse(source, files)), "data_batch_1")
        assert not canary.exists()
        if not isinstance(result, DataError):
            array, images, labels = result
            assert (array, images.dtype, labels.dtype) == ("train", np.uint8, np.int64)
            assert images.shape == (len(labels), 3, 32, 32)

    attack = pickle.dumps({b"data": Canary(canary), b"labels": [1]})
    fuzz(check, mutated(*PICKLES, *SMALL, attack), few=120, many=1500, examples=[*PICKLES, attack])
    fuzz(check, opcodes(name), few=100, many=1500)


def test_fuzzed_cifar_records(tmp_path: Path, fuzz: Any) -> None:
    files = FolderFiles(tmp_path, "binary")
    record = bytes(3073)

    def check(content: bytes) -> None:
        (tmp_path / "data_batch_1.bin").write_bytes(content)
        outcome(lambda: next(cifar.parse(cifar_source("cifar10"), files)), "data_batch_1.bin")

    fuzz(check, mutated(record * 2, b""), few=30, many=300, examples=[b"", record])


def test_fuzzed_stl10(tmp_path: Path, fuzz: Any) -> None:
    folder, _, _ = write_stl10(tmp_path)
    files, good = FolderFiles(folder, "binary"), (folder / "train_y.bin").read_bytes()

    def check(content: bytes) -> None:
        (folder / "train_y.bin").write_bytes(content)
        outcome(lambda: list(stl10.parse(stl_source(), files)), "train_y.bin")

    fuzz(check, mutated(good), few=30, many=300, examples=[b""])


def test_fuzzed_idx_files(tmp_path: Path, fuzz: Any) -> None:
    files, good = FolderFiles(tmp_path, "idx"), idx(2, 28, 28, values=1568)

    def check(content: bytes) -> None:
        (tmp_path / "x.gz").write_bytes(content)
        result = outcome(lambda: fashion_mnist.read_idx(files, "x.gz", 3), "x.gz")
        assert isinstance(result, DataError) or result.dtype == np.uint8

    wraps = idx(1 << 22, 1 << 21, 1 << 21, values=0)  # 2 ** 64 values, which is 0 to NumPy
    fuzz(
        check, mutated(good, b"").map(lambda c: gzip.compress(c, 1)), few=60, many=500, examples=[gzip.compress(wraps)]
    )
    fuzz(check, mutated(gzip.compress(good)), few=60, many=500)


# --- images and lists -------------------------------------------------------------------------------------------------

PICTURES = [
    *(picture(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(picture(mode, "JPEG") for mode in ("L", "RGB", "CMYK")),
    *(picture("RGB", form) for form in ("GIF", "BMP", "TIFF", "EPS", "PPM")),
]


def test_fuzzed_images(tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "x.JPEG"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        result = outcome(lambda: decode_image(path.read_bytes(), str(path)), "x.JPEG")
        assert isinstance(result, DataError) or (result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3)

    fuzz(check, mutated(*PICTURES), few=150, many=2000, examples=[*PICTURES, b"", b"%!PS-Adobe-3.0 EPSF-3.0\n"])


def test_fuzzed_lists_of_tiny_imagenet(tmp_path: Path, fuzz: Any) -> None:
    folder = write_tiny(tmp_path / "raw")
    files = FolderFiles(folder, "jpeg")
    for name in ("wnids.txt", "val/val_annotations.txt"):
        good = (folder / name).read_bytes()

        def check(content: bytes, name: str = name) -> None:
            (folder / name).write_bytes(content)
            outcome(lambda: list(tiny_imagenet.parse(tiny_source(), files)), str(folder))

        outside = good.replace(WNIDS[0].encode(), b"../../secret")
        fuzz(check, mutated(good), few=25, many=250, examples=[b"", outside, b"\xff" * 10])
        (folder / name).write_bytes(good)


def test_fuzzed_labels_of_imagenet(tmp_path: Path, fuzz: Any) -> None:
    write_imagenet(tmp_path / "imagenet/raw", WNIDS, flat_val=True)
    path = tmp_path / "imagenet/raw/LOC_val_solution.csv"
    good = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        result = outcome(lambda: prepare_raw(imagenet_source(), tmp_path), str(tmp_path))
        if not isinstance(result, DataError):
            assert result["test"].labels.tolist() == [0, 1, 2]
            (result.folder / "manifest.json").unlink()

    fuzz(check, mutated(good), few=30, many=300, examples=[b"", good.replace(b",", b"," + b"x" * 200_000), b'"\0'])


# --- the prepared form ------------------------------------------------------------------------------------------------


def use(root: Path, source: Any) -> None:
    prepared = load_prepared(source, root)
    for name in prepared:
        split = prepared[name]
        labels = split.labels
        images = split.paths if source.streamed else split.images
        assert len(labels) == len(images) == len(split)
        assert -1 <= labels.min() <= labels.max() < source.num_classes


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_fuzzed_manifests(tmp_path: Path, fuzz: Any, name: str) -> None:
    source = cifar_source("cifar10") if name == "cifar10" else imagenet_source()
    if name == "cifar10":
        write_cifar(name, "binary", tmp_path / "cifar10/raw")
    else:
        write_imagenet(tmp_path / "imagenet/raw", WNIDS)
    prepared = prepare_raw(source, tmp_path)
    path = prepared.folder / "manifest.json"
    good, text = prepared.manifest, path.read_bytes()

    def check(content: dict[str, Any] | bytes) -> None:
        path.write_bytes(content if isinstance(content, bytes) else as_json(content).encode())
        outcome(lambda: use(tmp_path, source), str(prepared.folder))

    halved = copy.deepcopy(good)
    halved["splits"]["train"].pop("raw", None)
    fuzz(check, changed(good), few=80, many=1000, examples=[{}, {"format": 1, "benchmark": name}, halved])
    fuzz(check, mutated(text), few=40, many=300, examples=[b"[" * 100_000, b"\xff"])


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_fuzzed_arrays(tmp_path: Path, fuzz: Any, kind: str) -> None:
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    source = cifar_source("cifar10")
    path = prepare_raw(source, tmp_path).folder / f"test-{kind}.npy"
    good = path.read_bytes()
    head = good[:128]

    def check(content: bytes) -> None:
        path.write_bytes(content[: len(good)].ljust(len(good), b"\0"))  # or its size betrays it
        outcome(lambda: use(tmp_path, source), path.name)

    sizes = head.replace(b"(10,", b"(99999999999999,")[:127] + b"\n"
    pickled = head.replace(b"'<i8'", b"'|O'").replace(b"'|u1'", b"'|O'").ljust(127)[:127] + b"\n"
    examples = [head[:10] + b"(" * 118, sizes, pickled, b"PK\3\4", pickle.dumps([1])]
    fuzz(check, mutated(head).map(lambda start: start + good[128:]), few=60, many=600, examples=examples)
