"""The whole path of a GPU on a machine without one: devices, types and shapes fit, and the host never waits in a step.

A step of every benchmark's recipe and of every method and ablation at the paper's shapes, views of arrays and of files,
and both probes. The same code runs on real tensors in `test_real.py` where there is a GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builders.data import make_images
from builders.runs import make_job, tiny_spec
from wmse import images as images_module
from wmse.config import experiments, load_project
from wmse.datasets import ArrayDataset
from wmse.estimate.memory import two_steps
from wmse.estimate.plan import image_counts
from wmse.estimate.pretend import FOUND, pretend_gpu
from wmse.features import probe_features, run_features
from wmse.images import CHUNK, ArrayImages, FileImages
from wmse.probes import embedding_spread, knn_accuracy, linear_accuracy
from wmse.runtime import Runtime
from wmse.training import Trainer, loop
from wmse.views import ViewRecipe

NOWHERE = Path("/nonexistent")
GPU = torch.device("cuda:0")
GB = 1e9
# The smallest set with every benchmark, method, number of positives of the paper, and kind of ablation.
CELLS = (
    "cifar10/simclr",
    "cifar10/byol",
    "cifar10/wmse-2",
    "cifar10/wmse-4",
    "cifar10/wmse-3@equal-views",
    "cifar10/simclr@short-whitened-unnormalized",
    "cifar10/wmse-2@euclidean",
    "cifar10/wmse-2@batch-norm",
    "cifar10/wmse-2@no-whitening",
    "cifar10/wmse-2@w-size-x4",
    "cifar10/wmse-2@w-iter-4",
    "stl10/wmse-2",
    "tiny_imagenet/wmse-2",
    "imagenet100/wmse-4",
    "imagenet/wmse-4",
)


@pytest.mark.parametrize("cell", CELLS)
def test_the_host_waits_for_nothing_in_a_step_of_the_papers_size(cell: str) -> None:
    spec = load_project({"preset": "paper"}).find(f"{cell}/seed0")
    gpu = two_steps(spec, image_counts(spec.benchmark, NOWHERE))
    assert gpu.waits == {}
    # The figures of the first step were read in the second one, after all but its end had been launched.
    assert len(gpu.event_ages) == 1
    assert gpu.event_ages[0] > gpu.launches / 3
    assert gpu.memory.peak > 1 * GB
    assert gpu.memory.now == 0  # nothing outlives the training


def test_every_benchmark_method_and_experiment_of_the_preset_is_among_them() -> None:
    project = load_project({"preset": "paper"})
    tested = [project.find(f"{cell}/seed0") for cell in CELLS]
    trained = [spec for spec in project.runs if spec.trained and spec.benchmark != "cifar100"]  # as CIFAR-10
    for what in ("benchmark", "method", "optimizer", "arch", "stem", "resolved_whitening", "normalize"):
        assert {getattr(spec, what) for spec in tested} == {getattr(spec, what) for spec in trained}, what
    for name, block in experiments().items():
        assert {spec.label for spec in tested} & set(block["methods"]), name


@pytest.mark.parametrize(
    ("precision", "whitening"),
    [("fp32", "cholesky"), ("bf16", "cholesky"), ("bf16", "batch_norm"), ("bf16", "identity")],
)
def test_loss_and_gradient_are_float32_in_every_precision(precision: str, whitening: str, tmp_path: Path) -> None:
    split = make_images(64, 1)
    data = ArrayDataset(pretrain=split, train=split, test=split)
    spec = tiny_spec("wmse-2", whitening=whitening, normalize=whitening == "cholesky")
    with pretend_gpu() as gpu:
        trainer = Trainer(make_job(spec, data, tmp_path, Runtime(GPU, precision)))
        gpu.waits.clear()
        output = trainer.step(torch.arange(64))
        trainer.guard.flush()
        state = trainer.optimizer.state_dict()["state"]
    assert output.loss.dtype == torch.float32
    assert output.embeddings.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert {p.grad.dtype for p in trainer.method.parameters()} == {torch.float32}
    assert all(value.is_cuda or value.fake_device == GPU for values in state.values() for value in values.values())
    assert gpu.waits == {"copy to the GPU": 1}  # the table of hues, in the first step only


@pytest.mark.parametrize("crop_first", [False, True])
def test_views_of_files_of_all_sizes_keep_the_host_free(crop_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randint(30, 90, (2 * CHUNK, 2), generator=generator).tolist()
    photos = [torch.zeros(3, *shape, dtype=torch.uint8) for shape in shapes]
    monkeypatch.setattr(images_module, "decode", lambda path, read: photos[int(path.name)])
    paths = [Path(str(i)) for i in range(len(shapes))]
    recipe = ViewRecipe(size=24, crop_scale=(0.08, 1.0), grayscale_p=0.2, blur_p=0.5, crop_first=crop_first)
    with pretend_gpu() as gpu:
        images = FileImages(paths, recipe, 32, GPU, threads=1)
        for step in range(2):
            gpu.waits.clear()
            views = images.views(torch.arange(len(paths)), 2, 0, step)
        assert gpu.waits == {}
        for view in views:
            assert (view.shape, view.dtype, view.device) == ((128, 3, 24, 24), torch.float32, GPU)
        assert [len(batch) for batch in images.plain(batch=100)] == [100, 28]
        images.close()


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("blur_p", [0.0, 0.5])
def test_views_of_arrays_keep_the_host_free(resident: bool, blur_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretend_gpu() as gpu:
        if not resident:
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
        images = ArrayImages(make_images(80, 0).images, ViewRecipe(size=24, grayscale_p=0.1, blur_p=blur_p), 26, GPU)
        assert images.images.is_cuda == resident
        for step in range(2):
            gpu.waits.clear()
            views = images.views(torch.arange(70), 3, 0, step)
        assert gpu.waits == {}
        assert [view.shape for view in views] == [(70, 3, 24, 24)] * 3


def test_waits_of_the_probes_are_few_and_do_not_grow_with_the_number_of_samples() -> None:
    labels = {"dtype": torch.int64, "device": GPU}
    with pretend_gpu() as gpu:
        train, test = torch.empty(50_000, 512, device=GPU), torch.empty(1024, 512, device=GPU)
        train_labels, test_labels = torch.zeros(50_000, **labels), torch.zeros(1024, **labels)
        knn_accuracy(train, train_labels, test, test_labels)
        chunks = 1024 // 256
        doubtful = FOUND * chunks
        # A chunk asks once which rows are in doubt; each of these asks for its neighbours.
        assert gpu.waits == {"nonzero": chunks + doubtful, "copy to the host": chunks, "item": 3}
        gpu.waits.clear()
        generator = torch.Generator()
        linear_accuracy(train, train_labels, test, test_labels, num_classes=100, generator=generator, epochs=2)
        # Weight and bias, and the order of every epoch; both accuracies.
        assert gpu.waits == {"copy to the GPU": 2 + 2, "item": 2}
        gpu.waits.clear()
        embedding_spread(test)
        assert gpu.waits == {}


@pytest.mark.parametrize("label", ["random", "pixels"])
def test_the_evaluation_of_a_run_from_end_to_end(label: str, tmp_path: Path) -> None:
    train, test = make_images(200, 1), make_images(60, 2)
    job = make_job(tiny_spec(label), ArrayDataset(train=train, test=test), tmp_path, Runtime(GPU, "bf16"))
    with pretend_gpu():
        features = run_features(job)
        assert [(x.shape[0], x.dtype, x.is_cuda) for x in features] == [(n, torch.float32, True) for n in (200, 60)]
        assert set(probe_features(job, *features)) == {"linear_top1", "linear_top5", "knn5_top1"}


def test_all_epochs_of_a_run(data: ArrayDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(loop, "save_checkpoint", lambda folder, spec, step, state, keep: saved.append(step))
    monkeypatch.setattr(loop, "peak_memory_bytes", lambda device: 0)
    with pretend_gpu() as gpu:
        spec = tiny_spec(epochs=1, lr_drops=[])
        trainer = Trainer(make_job(spec, data, tmp_path, Runtime(GPU, "bf16"), progress_bar=False))
        gpu.waits.clear()
        history = trainer.run()
    assert [record.step for record in history] == [3]
    assert saved == [3]
    assert len(gpu.event_ages) == 3
    epoch = 3  # loss, spread and rank
    knn = 2 + 3  # whether the features of both splits are finite, and as in the test above
    assert gpu.waits["item"] == epoch + knn + 1  # and whether the checkpoint is finite
    assert gpu.waits["copy to the GPU"] == 1  # the table of hues
    assert gpu.waits["copy to the host"] == 1  # one chunk of the 5-nn
