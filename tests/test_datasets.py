"""Every benchmark's parser on small files of the official layout, the prepared form, and unsafe archives."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wmse.datasets import SOURCES, Prepared, Source, find_sources, load, prepare
from wmse.datasets import imagenet as imagenet_module
from wmse.datasets.archives import extract_class_tars, open_raw
from wmse.datasets.build import prepare_source
from wmse.datasets.prepared import load_prepared
from wmse.datasets.source import Rows
from wmse.errors import DataError
from wmse.runs.verify import verify

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)


def quiet(line: str) -> None:
    pass


def run(source: Source, data_root: Path) -> Prepared:
    return prepare_source(source, data_root, download=False, log=quiet)


def small(source: Source, counts: dict[str, tuple[int, int | None]], **changes) -> Source:
    """`source` with `counts` = {split: (rows, per class)} and no published file digests."""
    splits = {name: Rows(source.splits[name].array, 0, rows, each) for name, (rows, each) in counts.items()}
    archives = tuple(
        dataclasses.replace(archive, files=dict.fromkeys(archive.files, "")) for archive in source.archives
    )
    return dataclasses.replace(source, splits=splits, archives=archives, **changes)


def with_archive(source: Source, path: Path) -> Source:
    """`source` whose archive of that name has the size and digest of the file at `path`."""
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    archives = tuple(
        dataclasses.replace(archive, size=path.stat().st_size, digest=digest) if archive.name == path.name else archive
        for archive in source.archives
    )
    return dataclasses.replace(source, archives=archives)


def pack(folder: Path, archive: Path) -> None:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(folder.parent))
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(folder, folder.name)


def jpeg(shade: int, size: int = 64, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (size, size), shade if mode == "L" else (shade, 0, 255 - shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- descriptions ----------------------------------------------------------------------------------------------------


def test_every_source_is_complete():
    assert set(SOURCES) == {
        "cifar10", "cifar100", "stl10", "tiny_imagenet", "imagenet100", "imagenet", "fashion_mnist",
        "imagenet100_mini", "imagenet_mini",
    }  # fmt: skip
    for name, source in SOURCES.items():
        assert source.name == name
        assert {"pretrain", "train", "test"} == set(source.splits)
        assert len(source.mean) == len(source.std) == 3
        assert source.licence
        assert source.homepage.startswith("http")
        assert source.streamed == (source.image_size is None) == name.startswith("imagenet")
        assert (source.parse is None) != (source.scan is None)
        for archive in source.archives:
            algorithm, _, value = archive.digest.partition(":")
            assert len(value) == len(hashlib.new(algorithm).hexdigest())
            assert all(url.startswith("http") for url in archive.urls)
            assert bool(archive.urls) != source.streamed


def write_package(folder: Path, **modules: str) -> Path:
    """A package of benchmark modules, each with copies of CIFAR-10 under the given names."""
    for module, names in modules.items():
        sources = ", ".join(f"replace(CIFAR10, name={name!r})" for name in names.split())
        code = f"from dataclasses import replace\nfrom wmse.datasets.cifar import CIFAR10\nSOURCES = ({sources},)\n"
        put(folder / f"{module}.py", code)
    put(folder / "__init__.py", "")
    put(folder / "helper.py", "SIZE = 3\n")  # a module without benchmarks
    return folder


def test_the_benchmarks_of_every_module_are_found(tmp_path, monkeypatch):
    folder = write_package(tmp_path / "found_benchmarks", first="one two", second="three")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(find_sources("found_benchmarks", [str(folder)])) == ["one", "two", "three"]
    folder = write_package(tmp_path / "twice_benchmarks", first="one", second="one")
    with pytest.raises(ValueError, match=r"twice_benchmarks.second: there is another benchmark named 'one'"):
        find_sources("twice_benchmarks", [str(folder)])


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cifar10", {"pretrain": 50_000, "train": 50_000, "test": 10_000}),
        ("cifar100", {"pretrain": 50_000, "train": 50_000, "test": 10_000}),
        ("stl10", {"pretrain": 105_000, "train": 5_000, "test": 8_000}),
        ("tiny_imagenet", {"pretrain": 100_000, "train": 100_000, "test": 10_000}),
        ("imagenet100", {"pretrain": 126_689, "train": 126_689, "test": 5_000}),
        ("imagenet", {"pretrain": 1_281_167, "train": 1_281_167, "test": 50_000}),
        ("fashion_mnist", {"pretrain": 10_000, "train": 10_000, "test": 2_000}),
    ],
)
def test_published_counts(name, counts):
    source = SOURCES[name]
    assert {split: rows.stop - rows.start for split, rows in source.splits.items()} == counts
    for rows in source.splits.values():
        assert rows.per_class is None or rows.per_class * source.num_classes == rows.stop - rows.start


def test_imagenet100_list_is_the_published_one():
    wnids = imagenet_module.imagenet100_wnids()
    assert len(set(wnids)) == 100
    assert list(wnids) == sorted(wnids)
    content = "".join(f"{wnid}\n" for wnid in wnids).encode()
    assert hashlib.sha256(content).hexdigest() == "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"


def test_the_package_needs_no_torch():
    code = "import sys, wmse.datasets; print([name for name in ('torch', 'PIL', 'tqdm') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def cifar_source(name: str) -> Source:
    classes = SOURCES[name].num_classes
    train = 5 * classes if name == "cifar10" else 2 * classes
    return small(SOURCES[name], {"pretrain": (train, None), "train": (train, train // classes), "test": (classes, 1)})


def cifar_batches(name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Batch name -> pixels (n, 3072) and labels (n,) with every class equally often."""
    classes = SOURCES[name].num_classes
    if name == "cifar10":
        sizes = {**{f"data_batch_{i}": classes for i in range(1, 6)}, "test_batch": classes}
    else:
        sizes = {"train": 2 * classes, "test": classes}
    rng = np.random.default_rng(1)
    return {
        batch: (rng.integers(0, 256, (size, 3072), dtype=np.uint8), rng.permutation(np.arange(size) % classes))
        for batch, size in sizes.items()
    }


def python2_pickle(batch: dict[bytes, object]) -> bytes:
    """The pickle that Python 2 wrote: protocol 2, byte strings, numpy.core."""
    data = batch[b"data"]
    out = [b"\x80\x02}("]
    for key, value in batch.items():
        out.append(b"U" + bytes([len(key)]) + key)
        if value is data:
            out.append(
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(J"
                + len(data).to_bytes(4, "little") + b"M\x00\x0ct" + b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
                + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
                + data.nbytes.to_bytes(4, "little") + data.tobytes() + b"tb"
            )  # fmt: skip
        else:
            out.append(b"](" + b"".join(b"K" + bytes([label]) for label in value) + b"e")
    return b"".join(out) + b"u."


def write_cifar(name: str, form: str, raw: Path, dump: Callable[[dict], bytes] = python2_pickle) -> Path:
    archive = next(archive for archive in SOURCES[name].archives if archive.form == form)
    folder = raw / archive.folder
    for batch, (pixels, labels) in cifar_batches(name).items():
        coarse = labels // 5
        if form == "python":
            keys = {b"labels": labels.tolist()}
            if name == "cifar100":
                keys = {b"coarse_labels": coarse.tolist(), b"fine_labels": labels.tolist()}
            put(folder / batch, dump({b"data": pixels, **keys}))
        else:
            columns = [labels[:, None]] if name == "cifar10" else [coarse[:, None], labels[:, None]]
            put(folder / f"{batch}.bin", np.concatenate([*columns, pixels], axis=1).astype(np.uint8).tobytes())
    return folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_all_forms_of_cifar_give_the_same_prepared_bytes(name, tmp_path):
    source, results = cifar_source(name), {}
    dumps = {
        "python": python2_pickle,
        "python3": lambda batch: pickle.dumps(batch, protocol=4),
        "by-columns": lambda batch: pickle.dumps({**batch, b"data": np.asfortranarray(batch[b"data"])}, protocol=4),
        "python3-protocol2": lambda batch: pickle.dumps(batch, protocol=2),  # stores bytes by _codecs.encode
    }
    for label, dump in dumps.items():
        write_cifar(name, "python", tmp_path / label / name / "raw", dump)
        results[label] = run(source, tmp_path / label)
    folder = write_cifar(name, "binary", tmp_path / "binary" / name / "raw")
    results["binary"] = run(source, tmp_path / "binary")
    raw = tmp_path / "flat" / name / "raw"
    raw.parent.mkdir(parents=True)
    folder.rename(raw)
    results["flat"] = run(source, tmp_path / "flat")
    for archive in source.archives:
        place = tmp_path / archive.form / name / "raw"
        if archive.form == "binary":
            write_cifar(name, "binary", place)
        packed = tmp_path / f"tar-{archive.form}" / name / "raw" / archive.name
        packed.parent.mkdir(parents=True)
        pack(place / archive.folder, packed)
        results[f"tar {archive.form}"] = run(with_archive(source, packed), tmp_path / f"tar-{archive.form}")

    assert len({result.digest for result in results.values()}) == 1
    expected = cifar_batches(name)
    train = [value for batch, value in expected.items() if "test" not in batch]
    for result in results.values():
        assert result["train"].images.dtype == np.uint8
        assert result["train"].images.flags.c_contiguous
        assert not result["train"].images.flags.writeable
        assert isinstance(result["train"].images, np.memmap)
        assert result["train"].labels.dtype == np.int64
        np.testing.assert_array_equal(
            result["train"].images, np.concatenate([pixels for pixels, _ in train]).reshape(-1, 3, 32, 32)
        )
        np.testing.assert_array_equal(result["train"].labels, np.concatenate([labels for _, labels in train]))
        assert len(result["pretrain"]) == len(result["train"])
        assert len(result["test"]) == source.num_classes


def test_changed_pixels_change_the_digest(tmp_path):
    source = cifar_source("cifar10")
    write_cifar("cifar10", "binary", tmp_path / "a/cifar10/raw")
    folder = write_cifar("cifar10", "binary", tmp_path / "b/cifar10/raw")
    content = bytearray((folder / "test_batch.bin").read_bytes())
    content[-1] ^= 1
    (folder / "test_batch.bin").write_bytes(content)
    assert run(source, tmp_path / "a").digest != run(source, tmp_path / "b").digest


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_hostile_pickle_is_refused(tmp_path):
    folder = write_cifar("cifar10", "python", tmp_path / "cifar10/raw")
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": Attack(tmp_path / "owned"), b"labels": []}))
    with pytest.raises(DataError, match=r"data_batch_2.*mkdir.*refused"):
        run(cifar_source("cifar10"), tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02}.", b"no pickle", pickle.dumps({b"data": [1], b"labels": [1]})])
def test_malformed_pickle_is_named(tmp_path, content):
    folder = write_cifar("cifar10", "python", tmp_path / "cifar10/raw")
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch"):
        run(cifar_source("cifar10"), tmp_path)


def test_truncated_batch_is_named(tmp_path):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    path = folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin.*truncated"):
        run(cifar_source("cifar10"), tmp_path)


def test_missing_batch_is_named(tmp_path):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin.*missing"):
        run(cifar_source("cifar10"), tmp_path)


def test_wrong_file_digest_names_file_expected_and_found(tmp_path):
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    with pytest.raises(DataError, match=r"data_batch_1\.bin: md5 is \w{32}, expected 5dd7e06a14cb22eb9f671a540d1b7c25"):
        run(SOURCES["cifar10"], tmp_path)


def test_wrong_archive_names_file_expected_and_found(tmp_path):
    path = put(tmp_path / "cifar10/raw/cifar-10-binary.tar.gz", b"partial")
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz: 7 bytes, expected 170,052,171"):
        run(SOURCES["cifar10"], tmp_path)
    source = with_archive(SOURCES["cifar10"], path)
    path.write_bytes(b"changed")
    with pytest.raises(DataError, match="sha256 is"):
        run(source, tmp_path)


def test_wrong_class_counts_name_class_expected_and_found(tmp_path):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    path = folder / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[0] = (content[0] + 1) % 10
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"class \d of cifar10 test has [02] images, expected 1"):
        run(cifar_source("cifar10"), tmp_path)
    with pytest.raises(DataError, match="not prepared"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("records", [9, 11])
def test_wrong_number_of_images(tmp_path, records):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    put(folder / "test_batch.bin", bytes(records * 3073))
    with pytest.raises(DataError, match=rf"cifar10 test has.* {records} images, expected 10"):
        run(cifar_source("cifar10"), tmp_path)
    assert list((tmp_path / "cifar10/prepared").glob("*test*")) == []


def real_cifar10() -> Path | None:
    folders = [Path(os.environ.get("WMSE_REAL_CIFAR10", "/nonexistent")), ROOT / "data/cifar10/raw"]
    return next((folder for folder in folders if (folder / "cifar-10-batches-bin").is_dir()), None)


def test_real_cifar10(tmp_path):
    raw = real_cifar10()
    if raw is None:
        pytest.skip("no cifar-10-batches-bin in $WMSE_REAL_CIFAR10 or data/cifar10/raw")
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10/raw").symlink_to(raw.resolve())
    data = prepare("cifar10", tmp_path, download=False, log=quiet)
    assert data["train"].labels[:5].tolist() == [6, 9, 9, 4, 1]  # as every loader of CIFAR-10 shows them
    assert data["test"].labels[:5].tolist() == [3, 8, 8, 0, 6]
    mean = data["train"].images[:].mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(mean, SOURCES["cifar10"].mean, atol=1e-3)


# --- STL-10 ----------------------------------------------------------------------------------------------------------


def stl_source() -> Source:
    return small(SOURCES["stl10"], {"pretrain": (23, None), "train": (20, 2), "test": (10, 1)})


def write_stl10(raw: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Returns the folder and the images (33, 3, 96, 96) and labels (33,): 20 train, 3 unlabeled, 10 test."""
    images = RNG.integers(0, 256, (33, 3, 96, 96), dtype=np.uint8)
    labels = np.concatenate([RNG.permutation(np.arange(20) % 10), [-1] * 3, RNG.permutation(10)])
    columns_first = images.swapaxes(2, 3)
    folder = raw / "stl10_binary"
    put(folder / "train_X.bin", columns_first[:20].tobytes())
    put(folder / "unlabeled_X.bin", columns_first[20:23].tobytes())
    put(folder / "test_X.bin", columns_first[23:].tobytes())
    put(folder / "train_y.bin", (labels[:20] + 1).astype(np.uint8).tobytes())
    put(folder / "test_y.bin", (labels[23:] + 1).astype(np.uint8).tobytes())
    return folder, images, labels


def test_stl10_folder_and_archive(tmp_path, monkeypatch):
    monkeypatch.setattr("wmse.datasets.stl10._CHUNK", 7)
    folder, images, labels = write_stl10(tmp_path / "stl10/raw")
    data = run(stl_source(), tmp_path)
    np.testing.assert_array_equal(data["pretrain"].images, images[:23])
    np.testing.assert_array_equal(data["train"].images, images[:20])
    np.testing.assert_array_equal(data["test"].images, images[23:])
    np.testing.assert_array_equal(data["pretrain"].labels, labels[:23])
    np.testing.assert_array_equal(data["test"].labels, labels[23:])
    assert (data["pretrain"].labels[20:] == -1).all()
    packed = tmp_path / "packed/stl10/raw/stl10_binary.tar.gz"
    packed.parent.mkdir(parents=True)
    pack(folder, packed)
    assert run(with_archive(stl_source(), packed), tmp_path / "packed").digest == data.digest


def test_stl10_orientation(tmp_path):
    folder, _, _ = write_stl10(tmp_path / "stl10/raw")
    # The first published image: red plane, first column (not row) white.
    content = bytearray((folder / "train_X.bin").read_bytes())
    content[: 3 * 96 * 96] = bytes([255] * 96) + bytes(3 * 96 * 96 - 96)
    (folder / "train_X.bin").write_bytes(content)
    first = run(stl_source(), tmp_path)["train"].images[0]
    assert (first[0, :, 0] == 255).all()
    assert (first[0, :, 1:] == 0).all()
    assert (first[1:] == 0).all()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("unlabeled_X.bin", bytes(100), "truncated"),
        ("train_y.bin", bytes([1] * 19), "19 labels for 20 images"),
        ("train_y.bin", bytes(20), r"1\.\.10"),
    ],
)
def test_stl10_damage_is_named(tmp_path, name, content, message):
    folder, _, _ = write_stl10(tmp_path / "stl10/raw")
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        run(stl_source(), tmp_path)


# --- Tiny ImageNet ---------------------------------------------------------------------------------------------------

WNIDS = ["n02124075", "n04067472", "n04540053"]  # not sorted by chance or otherwise in the official file


def tiny_source() -> Source:
    return small(
        SOURCES["tiny_imagenet"], {"pretrain": (6, None), "train": (6, 2), "test": (3, 1)}, num_classes=len(WNIDS)
    )


def write_tiny(raw: Path) -> Path:
    folder = raw / "tiny-imagenet-200"
    order = [WNIDS[1], WNIDS[0], WNIDS[2]]
    put(folder / "wnids.txt", "\n".join(order) + "\n")
    for label, wnid in enumerate(order):
        put(folder / f"train/{wnid}/{wnid}_boxes.txt", "boxes")
        for number in range(2):
            grey = label == 2 and number == 1
            content = jpeg(90, mode="L") if grey else jpeg(80 * label + 20 * number)
            put(folder / f"train/{wnid}/images/{wnid}_{number}.JPEG", content)
    lines = [f"val_{i}.JPEG\t{order[2 - i]}\t0\t0\t62\t62\n" for i in range(3)]
    put(folder / "val/val_annotations.txt", "".join(lines))
    for i in range(3):
        put(folder / f"val/images/val_{i}.JPEG", jpeg(50 * i))
    return folder


def test_tiny_imagenet(tmp_path):
    folder = write_tiny(tmp_path / "tiny_imagenet/raw")
    data = run(tiny_source(), tmp_path)
    assert data["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data["test"].labels.tolist() == [2, 1, 0]
    assert data["train"].images.shape == (6, 3, 64, 64)
    np.testing.assert_allclose(data["train"].images.mean(axis=(2, 3))[:4, 0], [0, 20, 80, 100], atol=3)
    np.testing.assert_allclose(data["train"].images.mean(axis=(2, 3))[5], 90, atol=1)  # grey became RGB
    np.testing.assert_allclose(data["test"].images.mean(axis=(2, 3))[:, 0], [0, 50, 100], atol=3)
    packed = tmp_path / "zip/tiny_imagenet/raw/tiny-imagenet-200.zip"
    packed.parent.mkdir(parents=True)
    pack(folder, packed)
    assert run(with_archive(tiny_source(), packed), tmp_path / "zip").digest == data.digest


def test_tiny_imagenet_damage_is_named(tmp_path):
    folder = write_tiny(tmp_path / "tiny_imagenet/raw")
    image = f"{WNIDS[0]}_1.JPEG"
    path = folder / f"train/{WNIDS[0]}/images" / image
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=f"{image}: not a readable image"):
        run(tiny_source(), tmp_path)
    path.write_bytes(jpeg(3, size=32))
    with pytest.raises(DataError, match=f"{image}: 32x32 pixels, expected 64x64"):
        run(tiny_source(), tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=f"class {WNIDS[0]} has 1 images, expected 2"):
        run(tiny_source(), tmp_path)
    path.write_bytes(good)
    (folder / "val/images/val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_1\.JPEG: missing"):
        run(tiny_source(), tmp_path)
    for other in (folder / "val/images").iterdir():
        other.unlink()
    with pytest.raises(DataError, match=r"val/images: no images"):
        run(tiny_source(), tmp_path)


def test_tiny_imagenet_uneven_validation_classes(tmp_path):
    folder = write_tiny(tmp_path / "tiny_imagenet/raw")
    path = folder / "val/val_annotations.txt"
    path.write_text(path.read_text().replace(WNIDS[0], WNIDS[1]))
    with pytest.raises(DataError, match=r"val_annotations\.txt: class n\d+ has [02] images, expected 1"):
        run(tiny_source(), tmp_path)


# --- ImageNet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet100_mini", "imagenet_mini"])
def test_imagenet_in_miniature_is_a_folder_of_jpegs_in_imagenets_layout(name, tmp_path):
    data = prepare(name, tmp_path, log=lambda line: None)
    assert {split: len(data[split]) for split in data} == {"pretrain": 1000, "train": 1000, "test": 200}
    first, last = data["train"].paths[0], data["test"].paths[-1]
    assert first.relative_to(tmp_path / name).as_posix() == "raw/train/n00000000/n00000000_0.JPEG"
    assert last.relative_to(tmp_path / name).as_posix() == "raw/val/n00000009/n00000009_9.JPEG"
    sizes = set()
    for path, label in zip(data["train"].paths, data["train"].labels, strict=True):
        assert path.parent.name == f"n{label:08d}"
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.add(image.size)
    assert len(sizes) > 20
    assert min(min(size) for size in sizes) >= 36
    assert max(max(size) for size in sizes) <= 64
    again = prepare(name, tmp_path / "again", log=lambda line: None)
    assert again.digest == data.digest


def test_the_miniatures_images_are_those_of_the_sample(tmp_path):
    data, sample = prepare("imagenet_mini", tmp_path, log=lambda line: None), prepare("fashion_mnist", tmp_path)
    images = sample["test"].images[sample["test"].labels == 3]
    for i in (0, 7, 19):
        path = tmp_path / f"imagenet_mini/raw/val/n00000003/n00000003_{i}.JPEG"
        small = np.array(Image.open(path).convert("L").resize((28, 28), Image.Resampling.BICUBIC)).astype(float)
        assert np.abs(small - images[i, 0, 2:-2, 2:-2]).mean() < 6
    assert len(data["test"]) == 200


def test_an_interrupted_miniature_is_written_again_and_a_damaged_one_refused(tmp_path):
    put(tmp_path / "imagenet_mini/raw/.train.partial/n00000000/half.JPEG", b"x")
    put(tmp_path / "imagenet_mini/raw/train/n00000000/half.JPEG", b"x")  # no val folder: not complete
    data = prepare("imagenet_mini", tmp_path, log=lambda line: None)
    assert not (tmp_path / "imagenet_mini/raw/train/n00000000/half.JPEG").exists()
    data["train"].paths[5].unlink()
    (tmp_path / "imagenet_mini/prepared/manifest.json").unlink()
    with pytest.raises(DataError, match="imagenet_mini train has 999 images, expected 1,000"):
        prepare("imagenet_mini", tmp_path, log=lambda line: None)


def imagenet_source(name: str = "imagenet", classes: int = 3) -> Source:
    counts = {"pretrain": (2 * classes, None), "train": (2 * classes, None), "test": (classes, 1)}
    return small(SOURCES[name], counts, num_classes=classes)


def write_imagenet(raw: Path, wnids: list[str], flat_val: bool = False) -> None:
    rows = ["ImageId,PredictionString"]
    for index, wnid in enumerate(wnids):
        for number in range(2):
            put(raw / f"train/{wnid}/{wnid}_{number}.JPEG", bytes(10 + number))
        name = f"ILSVRC2012_val_{len(wnids) - index:08d}"
        put(raw / "val" / ("" if flat_val else wnid) / f"{name}.JPEG", bytes(5))
        rows.append(f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8")
    if flat_val:
        put(raw / "LOC_val_solution.csv", "\n".join(rows) + "\n")


def test_imagenet_class_folders(tmp_path):
    write_imagenet(tmp_path / "imagenet/raw", list(reversed(WNIDS)))
    data = run(imagenet_source(), tmp_path)
    assert data["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [path.name for path in data["train"].paths[:2]] == ["n02124075_0.JPEG", "n02124075_1.JPEG"]
    assert all(path.is_absolute() and path.is_file() for name in data for path in data[name].paths)
    assert len(data["test"]) == 3
    with pytest.raises(DataError, match="use `paths`"):
        _ = data["train"].images


def test_imagenet_layouts_give_the_same_digest(tmp_path):
    write_imagenet(tmp_path / "a/imagenet/raw", WNIDS)
    write_imagenet(tmp_path / "b/imagenet/raw", WNIDS, flat_val=True)
    raw = tmp_path / "c/imagenet/raw"
    write_imagenet(raw, WNIDS, flat_val=True)
    for split in ("train", "val"):
        (raw / "ILSVRC/Data/CLS-LOC").mkdir(parents=True, exist_ok=True)
        (raw / split).rename(raw / "ILSVRC/Data/CLS-LOC" / split)
    results = [run(imagenet_source(), tmp_path / name) for name in "abc"]
    assert len({result.digest for result in results}) == 1
    for result in results:
        assert [path.name for path in result["test"].paths] == [path.name for path in results[0]["test"].paths]
        assert all(path.is_file() for path in result["test"].paths)
    put(tmp_path / "b/imagenet/raw/train/n02124075/n02124075_0.JPEG", bytes(99))
    (tmp_path / "b/imagenet/prepared/manifest.json").unlink()
    assert run(imagenet_source(), tmp_path / "b").digest != results[0].digest


def test_imagenet_damage_is_named(tmp_path):
    raw = tmp_path / "imagenet/raw"
    write_imagenet(raw, WNIDS, flat_val=True)
    with pytest.raises(DataError, match="3 class folders, expected 1000"):
        run(SOURCES["imagenet"], tmp_path)
    (raw / "train/n02124075/n02124075_0.JPEG").unlink()
    with pytest.raises(DataError, match="imagenet train has 5 images, expected 6"):
        run(imagenet_source(), tmp_path)
    put(raw / "val/ILSVRC2012_val_00000009.JPEG", b"")
    with pytest.raises(DataError, match=r"00000009\.JPEG: .*no label"):
        run(imagenet_source(), tmp_path)
    (raw / "val/ILSVRC2012_val_00000009.JPEG").unlink()
    (raw / "val/ILSVRC2012_val_00000001.JPEG").unlink()
    with pytest.raises(DataError, match=r"class n04540053 has 0 images, expected 1"):
        run(imagenet_source(), tmp_path)
    (raw / "LOC_val_solution.csv").unlink()
    with pytest.raises(DataError, match=r"LOC_val_solution\.csv: missing"):
        run(imagenet_source(), tmp_path)


@pytest.mark.parametrize("home", ["imagenet", "imagenet100"])
def test_imagenet100_takes_its_classes_from_either_place(tmp_path, home):
    wnids = [*imagenet_module.imagenet100_wnids(), "n00000001", "n99999999"]
    write_imagenet(tmp_path / home / "raw", wnids, flat_val=home == "imagenet")
    data = run(imagenet_source("imagenet100", 100), tmp_path)
    assert len(data["train"]) == 200
    assert sorted({path.parent.name for path in data["train"].paths}) == list(imagenet_module.imagenet100_wnids())
    assert data["test"].labels.tolist() == list(range(100))
    (tmp_path / "imagenet100/prepared/manifest.json").unlink()
    splits = SOURCES["imagenet100"].splits | {"test": Rows("test", 0, 100, 1)}
    with pytest.raises(DataError, match="imagenet100 train has 200 images, expected 126,689"):
        run(dataclasses.replace(SOURCES["imagenet100"], splits=splits), tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "imagenet100"])
def test_imagenet_is_never_downloaded(tmp_path, name):
    with pytest.raises(DataError) as failure:
        prepare(name, tmp_path, log=quiet)
    for expected in (
        str(tmp_path / name / "raw"),
        "train/<wnid>/*.JPEG",
        "ILSVRC2012_img_train.tar",
        "LOC_val_solution.csv",
    ):
        assert expected in str(failure.value)


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_imagenet_official_archives_are_unpacked(tmp_path):
    write_imagenet(tmp_path / "plain/imagenet/raw", WNIDS)
    write_imagenet(tmp_path / "model", WNIDS, flat_val=True)
    raw = tmp_path / "tars/imagenet/raw"
    classes = {
        f"{wnid}.tar": tar_bytes({p.name: p.read_bytes() for p in (tmp_path / "model/train" / wnid).iterdir()})
        for wnid in WNIDS
    }
    train = put(raw / "ILSVRC2012_img_train.tar", tar_bytes(classes))
    val_images = {path.name: path.read_bytes() for path in (tmp_path / "model/val").iterdir()}
    val = put(raw / "ILSVRC2012_img_val.tar", tar_bytes(val_images))
    put(raw / "LOC_val_solution.csv", (tmp_path / "model/LOC_val_solution.csv").read_bytes())
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train\.tar: .* bytes, expected 147,897,477,120"):
        run(imagenet_source(), tmp_path / "tars")
    (raw / "train" / f".{WNIDS[1]}.partial").mkdir(parents=True)  # left by an interrupted run
    data = run(with_archive(with_archive(imagenet_source(), train), val), tmp_path / "tars")
    assert data.digest == run(imagenet_source(), tmp_path / "plain").digest
    assert not list((raw / "train").glob(".*"))


def test_where_nothing_of_imagenet_can_be_hashed_nothing_counts_as_verified(tmp_path):
    (tmp_path / "imagenet").mkdir()
    assert verify([], tmp_path, tmp_path).checked == {}
    write_imagenet(tmp_path / "imagenet/raw", WNIDS)  # images alone, of which no digest is published
    assert verify([], tmp_path, tmp_path).checked == {}


@pytest.mark.parametrize("damaged", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_both_archives_of_imagenet_are_verified(tmp_path, monkeypatch, damaged):
    source = SOURCES["imagenet"]
    for archive in source.archives:
        source = with_archive(source, put(tmp_path / "imagenet/raw" / archive.name, archive.name))
    monkeypatch.setitem(SOURCES, "imagenet", source)
    findings = verify([], tmp_path, tmp_path)
    assert (findings.checked, findings.problems) == ({"raw data": 2}, [])
    path = put(tmp_path / "imagenet/raw" / damaged, damaged.swapcase())
    (problem,) = verify([], tmp_path, tmp_path).problems
    assert problem.startswith(f"{path}: sha256 is ")


def test_class_archives_are_chosen_and_checked(tmp_path):
    outer = put(
        tmp_path / "train.tar",
        tar_bytes({"n00000001.tar": tar_bytes({"a.JPEG": b"1"}), "n00000002.tar": tar_bytes({"../b.JPEG": b"2"})}),
    )
    extract_class_tars(outer, tmp_path / "train", ["n00000001"], quiet)
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["n00000001"]
    with pytest.raises(DataError, match=r"n00000002\.tar: member '\.\./b\.JPEG' points outside"):
        extract_class_tars(outer, tmp_path / "train", None, quiet)
    assert not list(tmp_path.rglob("b.JPEG"))


# --- Fashion-MNIST ---------------------------------------------------------------------------------------------------


def test_fashion_mnist_needs_no_network(tmp_path):
    data = prepare("fashion_mnist", tmp_path, download=False, log=quiet)
    source = SOURCES["fashion_mnist"]
    assert data["train"].images.shape == (10_000, 3, 32, 32)
    assert data["test"].images.shape == (2_000, 3, 32, 32)
    assert np.bincount(data["train"].labels).tolist() == [1000] * 10
    assert np.bincount(data["test"].labels).tolist() == [200] * 10
    images = data["train"].images[:]
    assert (images[:, 0] == images[:, 1]).all()
    assert (images[:, 0] == images[:, 2]).all()
    border = np.ones((32, 32), bool)
    border[2:30, 2:30] = False
    assert images[:, :, border].max() == 0
    assert images.max() == 255
    np.testing.assert_allclose(images.mean(axis=(0, 2, 3)) / 255, source.mean, atol=1e-4)
    np.testing.assert_allclose(images.std(axis=(0, 2, 3)) / 255, source.std, atol=1e-4)


def test_fashion_mnist_sample_is_small_licensed_and_traceable():
    folder = ROOT / "wmse/datasets/fashion_mnist_sample"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6_000_000
    assert "Copyright © 2017 Zalando SE" in (folder / "LICENSE").read_text(encoding="utf-8")
    for split, count, total in (("train", 10_000, 60_000), ("t10k", 2_000, 10_000)):
        rows = np.loadtxt(folder / f"{split}-rows.txt", dtype=int)
        assert rows.shape == (count,)
        assert (np.diff(rows) > 0).all()
        assert 0 <= rows[0] < rows[-1] < total
        labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())
        assert len(labels) == 8 + count


def test_fashion_mnist_sample_is_rebuilt_from_the_official_files(tmp_path):
    official = Path(os.environ.get("WMSE_REAL_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    if not official.is_dir():
        pytest.skip("no official Fashion-MNIST files in $WMSE_REAL_FASHION_MNIST or /usr/share/datasets/fashion-mnist")
    tool = ROOT / "tools/sample_fashion_mnist.py"
    subprocess.run([sys.executable, tool, official, tmp_path], check=True, capture_output=True)
    for path in tmp_path.iterdir():
        read = gzip.open if path.suffix == ".gz" else open  # compressed bytes differ between builds of zlib
        with read(path, "rb") as new, read(ROOT / "wmse/datasets/fashion_mnist_sample" / path.name, "rb") as shipped:
            assert new.read() == shipped.read(), path.name


# --- the prepared form -----------------------------------------------------------------------------------------------


def test_load_of_missing_data_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="not prepared: run `wmse prepare cifar10`"):
        load("cifar10", tmp_path)
    with pytest.raises(DataError, match=r"unknown benchmark 'mnist'.*cifar10"):
        prepare("mnist", tmp_path)


def test_prepare_is_idempotent_and_needs_raw_files_no_more(tmp_path):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    first = run(cifar_source("cifar10"), tmp_path)
    times = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    second = run(cifar_source("cifar10"), tmp_path)
    assert second.digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == times
    assert not [path for path in first.folder.iterdir() if path.name.endswith(".tmp")]


def test_damaged_prepared_form_is_noticed_and_rebuilt(tmp_path):
    source = cifar_source("cifar10")
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    digest = run(source, tmp_path).digest
    images = tmp_path / "cifar10/prepared/train-images.npy"
    good = images.read_bytes()
    images.write_bytes(good[:-1])
    with pytest.raises(DataError, match=r"train-images\.npy: .* bytes, expected"):
        load_prepared(source, tmp_path)
    assert run(source, tmp_path).digest == digest
    images.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    load_prepared(source, tmp_path)
    with pytest.raises(DataError, match=r"train-images\.npy: sha256 of the content"):
        load_prepared(source, tmp_path, verify=True)
    images.unlink()
    assert run(source, tmp_path).digest == digest
    load_prepared(source, tmp_path, verify=True)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 0, "benchmark": "cifar10"}', "\0"])
def test_unusable_manifest_is_rebuilt(tmp_path, content):
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    put(tmp_path / "cifar10/prepared/manifest.json", content)
    put(tmp_path / "cifar10/prepared/.train-images.npy.1.tmp", "left by a killed process")
    with pytest.raises(DataError, match=r"manifest\.json.*wmse prepare cifar10"):
        load("cifar10", tmp_path)
    data = run(cifar_source("cifar10"), tmp_path)
    assert not list(data.folder.glob(".*.tmp"))


def test_manifest_describes_splits_and_raw_files(tmp_path):
    folder = write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    data = run(cifar_source("cifar10"), tmp_path)
    manifest = json.loads((tmp_path / "cifar10/prepared/manifest.json").read_text())
    assert manifest == data.manifest
    assert manifest["benchmark"] == "cifar10"
    assert manifest["splits"]["test"]["shape"] == [10, 3, 32, 32]
    assert manifest["splits"]["test"]["count"] == len(data["test"]) == 10
    sha256 = hashlib.sha256((folder / "test_batch.bin").read_bytes()).hexdigest()
    assert {"file": "test_batch.bin", "bytes": 30730, "digest": f"sha256:{sha256}"} in manifest["sources"]
    assert str(tmp_path) not in json.dumps(manifest)
    with pytest.raises(DataError, match="no split 'val'"):
        data["val"]


def _prepare_in_process(root: str) -> str:
    return run(cifar_source("cifar10"), Path(root)).digest


def test_two_processes_prepare_at_the_same_time(tmp_path):
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        digests = pool.map(_prepare_in_process, [str(tmp_path)] * 4)
    assert len(set(digests)) == 1
    assert load_prepared(cifar_source("cifar10"), tmp_path, verify=True).digest == digests[0]


def test_too_little_disk_space_is_said_before_writing(tmp_path, monkeypatch):
    write_cifar("cifar10", "binary", tmp_path / "cifar10/raw")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match=r"cifar10 needs 0\.0 GB, only"):
        run(cifar_source("cifar10"), tmp_path)


# --- unsafe and damaged archives -------------------------------------------------------------------------------------


def cifar_tar(path: Path, *extra: tuple[tarfile.TarInfo, bytes]) -> Source:
    """A valid small binary archive of CIFAR-10 with `extra` members in front."""
    write_cifar("cifar10", "binary", path.parent.parent / "unpacked")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for info, content in extra:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        tar.add(path.parent.parent / "unpacked/cifar-10-batches-bin", "cifar-10-batches-bin")
    return with_archive(cifar_source("cifar10"), path)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("info", "content", "message"),
    [
        (member("/etc/evil"), b"x", "'/etc/evil' points outside"),
        (member("cifar-10-batches-bin/../../evil"), b"x", "points outside"),
        (member("..\\evil"), b"x", "points outside"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), b"", "'link' is a link"),
        (member("hard", tarfile.LNKTYPE, "/etc/passwd"), b"", "'hard' is a link"),
        (member("device", tarfile.CHRTYPE), b"", "'device' is a link or a device"),
        (member("bomb"), bytes(8 << 20), "unpacks to more than .*'bomb'"),
    ],
)
def test_unsafe_tar_is_refused(tmp_path, info, content, message):
    path = tmp_path / "cifar10/raw/cifar-10-binary.tar.gz"
    source = cifar_tar(path, (info, content))
    with pytest.raises(DataError, match=rf"cifar-10-binary\.tar\.gz.*{message}"):
        run(source, tmp_path)


def test_truncated_tar_is_named(tmp_path):
    path = tmp_path / "cifar10/raw/cifar-10-binary.tar.gz"
    cifar_tar(path)
    content = path.read_bytes()
    for cut in (len(content) // 2, len(content) * 9 // 10, 30, 0):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
            run(with_archive(cifar_source("cifar10"), path), tmp_path)


@pytest.mark.parametrize(
    ("name", "mode", "size", "message"),
    [
        ("/evil", 0o100644, 1, "points outside"),
        ("tiny-imagenet-200/../../evil", 0o100644, 1, "points outside"),
        ("C:evil", 0o100644, 1, "points outside"),
        ("link", 0o120777, 1, "is a link"),
        ("bomb", 0o100644, 8 << 20, "unpacks to more than"),
    ],
)
def test_unsafe_zip_is_refused(tmp_path, name, mode, size, message):
    path = tmp_path / "tiny_imagenet/raw/tiny-imagenet-200.zip"
    folder = write_tiny(tmp_path / "unpacked")
    path.parent.mkdir(parents=True)
    pack(folder, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        file.writestr(info, bytes(size), zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=rf"tiny-imagenet-200\.zip.*{message}"):
        run(with_archive(tiny_source(), path), tmp_path)


def test_damaged_zip_is_named(tmp_path):
    path = tmp_path / "tiny_imagenet/raw/tiny-imagenet-200.zip"
    folder = write_tiny(tmp_path / "unpacked")
    path.parent.mkdir(parents=True)
    pack(folder, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip: damaged or truncated"):
        run(with_archive(tiny_source(), path), tmp_path)
    broken = bytearray(content)
    start = content.index(b"\xff\xd8\xff")
    broken[start + 20 : start + 40] = bytes(20)
    path.write_bytes(broken)
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip: tiny-imagenet-200/\S+: damaged or truncated"):
        run(with_archive(tiny_source(), path), tmp_path)


def test_archive_members_are_read_in_place(tmp_path):
    path = tmp_path / "cifar10/raw/cifar-10-binary.tar.gz"
    source = cifar_tar(path)
    archive = next(archive for archive in source.archives if archive.form == "binary")
    with open_raw(path, archive) as files:
        assert files.size("test_batch.bin") == 10 * 3073
        assert "test_batch.bin" in files.listing("")
        with pytest.raises(DataError, match=r"nothing\.bin: .*missing"), files.open("nothing.bin"):
            pass
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
