"""Random views of images: colour jitter, grayscale, resized crop, flip, blur (paper, Section 5 and Appendix).

The order and the arithmetic are those of the authors' torchvision/PIL pipeline, but every operation takes a whole
batch: parameters are drawn per image and per view on the CPU (so that one seed means the same views on every device)
and the pixels are computed where the images are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wmse.views.params import ViewParams, ViewRecipe, draw_params
from wmse.views.tensors import normalize, resize_center_crop, resize_center_crop_one, view_by_tensors

__all__ = [
    "ViewParams",
    "ViewRecipe",
    "draw_params",
    "make_view",
    "normalize",
    "resize_center_crop",
    "resize_center_crop_one",
]


def make_view(
    images: Tensor, recipe: ViewRecipe, params: ViewParams, sizes: Tensor | None = None, replayed: bool = False
) -> Tensor:
    """One view of each image.

    By operations on tensors on a GPU, by compiled loops on a CPU: these take one image after the other through all
    operations while it is in the innermost cache. The pixels are the same.

    Args:
        images: (N, 3, h, w) uint8.
        params: on the CPU.
        sizes: (N, 2) height and width of each image where they differ; the rest of (h, w), below and to the right, is
            zero. None: all images fill (h, w).
        replayed: on a GPU, launch the operations together, as a CUDA graph that is recorded for every shape of images.

    Returns:
        (N, 3, H, W) float32, normalised, on the images' device.
    """
    if sizes is None:
        sizes = torch.tensor(images.shape[-2:]).expand(len(images), 2)
    if images.is_cuda:
        return view_by_tensors(images, recipe, params, sizes, replayed)
    from wmse.views.loops import view_by_loops  # here, because numba is slow to import

    return view_by_loops(images, recipe, params, sizes)
