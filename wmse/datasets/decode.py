"""Decoding image files that nobody vouches for: only formats that data sets have, and sizes that fit into memory."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from wmse.errors import DataError

_FORMATS = ("JPEG", "PNG")  # One of ImageNet's .JPEG files is a PNG; some of Pillow's other readers start programs.
# The highest ratio of the long side squared to the short side: a strip one pixel high would be enlarged to the height
# of a view, and its length by the same factor. 500 x 1 pixels pass.
_MOST_ELONGATED = 1 << 18


def decode_image(file: IO[bytes] | Path, where: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image as uint8 (h, w, 3), RGB; `size` is the (w, h) that it must have, None for any.

    Raises DataError naming `where`: broken, or of a format or size that is refused.
    """
    from PIL import Image

    try:
        with Image.open(file, formats=_FORMATS) as image:
            w, h = image.size  # from the header: nothing has been decoded yet
            if size is not None and (w, h) != size:
                raise DataError(f"{where}: {w}x{h} pixels, expected {size[0]}x{size[1]}")
            if w * h > Image.MAX_IMAGE_PIXELS or max(w, h) ** 2 > _MOST_ELONGATED * min(w, h):
                raise DataError(f"{where}: {w}x{h} pixels, which is refused because it would fill the memory")
            return np.array(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise DataError(f"{where}: not a readable image ({error}): restore it from the original archive") from error
