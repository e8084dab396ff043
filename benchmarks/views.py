"""Augmented views per second and core: batched tensors against pipelines that take one image at a time, and kornia."""

from __future__ import annotations

import statistics

import torch
from PIL import Image
from timing import Table, alternate, peak_memory, ratio
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from wmse.views import ViewRecipe, draw_params, make_view

N = 512
SIZES = ((32, 32), (64, 64), (96, 64))  # pixels of the image and of the view: CIFAR, Tiny ImageNet, STL-10
MEAN, STD = (0.5,) * 3, (0.2,) * 3


def pipeline(v: object, size: int) -> list:
    """The authors' order of operations in torchvision's classes of either version."""
    jitter = v.RandomApply([v.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = v.RandomResizedCrop(size, (0.2, 1), interpolation=v.InterpolationMode.BICUBIC)
    return [jitter, v.RandomGrayscale(0.1), crop, v.RandomHorizontalFlip()]


def kornia_pipeline(size: int) -> nn.Module:
    from kornia import augmentation as k

    return k.AugmentationSequential(
        k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        k.RandomGrayscale(p=0.1),
        k.RandomResizedCrop((size, size), (0.2, 1), resample="bicubic"),
        k.RandomHorizontalFlip(),
        k.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_keys=["input"],
    )


def measure(device: torch.device) -> list[Table]:
    table = Table(
        "Views",
        ["pixels", "ours, views/s", "PIL / ours", "torchvision v2 / ours", "kornia / ours", "memory / output"],
        f"{N} views, time per view against ours; on one core (ours and kornia on the GPU where there is one)."
        " torchvision"
        " v2 takes one uint8 tensor at a time, kornia the batch as float. Memory: the largest amount above what"
        " was there"
        " before, the output included, by the output's.",
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for source, size in SIZES:
            table.rows.append(_row(source, size, device))
    finally:
        torch.set_num_threads(threads)
    return [table]


def _row(source: int, size: int, device: torch.device) -> list[str]:
    images = torch.randint(0, 256, (N, 3, source, source), dtype=torch.uint8)
    images = torch.nn.functional.avg_pool2d(images.float(), 3, 1, 1).to(torch.uint8)  # not quite noise
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    recipe, generator = ViewRecipe(size=size, mean=MEAN, std=STD), torch.Generator().manual_seed(0)
    pil = v1.Compose([*pipeline(v1, size), v1.ToTensor(), v1.Normalize(MEAN, STD)])
    tensors = v2.Compose([*pipeline(v2, size), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    resident, kornia = images.to(device), kornia_pipeline(size)
    contestants = {
        "ours": lambda: make_view(resident, recipe, draw_params(N, source, source, recipe, generator)),
        "PIL": lambda: [pil(picture) for picture in pictures],
        "v2": lambda: [tensors(image) for image in images],
        "kornia": lambda: kornia(resident.float() / 255),
    }
    ours, *others = alternate(contestants, 9, device).values()
    rate = f"{N / statistics.median(ours):,.0f}"
    return [f"{source} to {size}", rate, *(ratio(other, ours) for other in others), _memory(source, size, device)]


def _memory(source: int, size: int, device: torch.device) -> str:
    n = 4 * N  # large beside what the interpreter itself takes and gives back
    recipe = ViewRecipe(size=size)
    images = torch.randint(0, 256, (n, 3, source, source), dtype=torch.uint8, device=device)
    params = draw_params(n, source, source, recipe, torch.Generator())
    peak = peak_memory(lambda: make_view(images, recipe, params), device)
    return f"{peak / (n * 3 * size * size * 4):.1f}"
