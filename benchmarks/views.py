"""Augmented views per second: batched tensors against the PIL pipeline of torchvision in the authors' order.

python benchmarks/views.py
"""

from __future__ import annotations

import torch
from PIL import Image
from timing import alternate, show
from torchvision import transforms as T

from wmse.views import ViewRecipe, draw_params, make_view

N = 512


def main() -> None:
    torch.set_num_threads(1)
    for source, size in ((32, 32), (96, 64)):
        images = torch.randint(0, 256, (N, 3, source, source), dtype=torch.uint8)
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        recipe, generator = ViewRecipe(size=size), torch.Generator().manual_seed(0)
        pil = T.Compose(
            [
                T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                T.RandomGrayscale(0.1),
                T.RandomResizedCrop(size, (0.2, 1), interpolation=T.InterpolationMode.BICUBIC),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize((0.5,) * 3, (0.2,) * 3),
            ]
        )

        def ours() -> torch.Tensor:
            return make_view(images, recipe, draw_params(N, source, source, recipe, generator))

        medians = alternate({"wmse.views": ours, "torchvision, PIL": lambda: [pil(p) for p in pictures]}, rounds=7)
        show(f"{N} views, {source} -> {size} pixels, one core", medians, "wmse.views")


if __name__ == "__main__":
    main()
