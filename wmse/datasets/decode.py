"""Decoding image files that nobody vouches for: only formats that data sets have, and sizes that fit into memory."""

from __future__ import annotations

import functools
import io

import numpy as np

from wmse.errors import DataError

_FORMATS = ("JPEG", "PNG")  # One of ImageNet's .JPEG files is a PNG; some of Pillow's other readers start programs.
# The highest ratio of the long side squared to the short side: a strip one pixel high would be enlarged to the height
# of a view, and its length by the same factor. 500 x 1 pixels pass.
_MOST_ELONGATED = 1 << 18


def decode_image(content: bytes, where: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The image in a file of this content as uint8 (h, w, 3), RGB; `size` is the (w, h) that it must have, if any.

    The levels are Pillow's. An EXIF orientation is not applied, as in the loaders of torchvision. Raises DataError
    naming `where`: broken, or of a format or size that is refused.
    """
    pixels = _decode_jpeg(content, where, size)
    return _decode_by_pillow(content, where, size) if pixels is None else pixels


def _decode_jpeg(content: bytes, where: str, size: tuple[int, int] | None) -> np.ndarray | None:
    """What simplejpeg gives, in less time than Pillow; None for what it does not decode without any warning."""
    import simplejpeg

    if not _pillow_has_libjpeg_turbo():
        return None
    try:
        h, w, colors, _ = simplejpeg.decode_jpeg_header(content)
        if colors not in ("YCbCr", "Gray"):  # from the four channels of CMYK it makes others than Pillow
            return None
        _check_size(w, h, where, size)  # from the header: nothing has been decoded yet
        return simplejpeg.decode_jpeg(content, "RGB")
    except ValueError:  # no JPEG, or a damaged one: whether it can be used after all is for Pillow to say
        return None


@functools.cache
def _pillow_has_libjpeg_turbo() -> bool:
    """Whether Pillow decodes with the library that simplejpeg comes with: another may round differently."""
    from PIL import features

    return features.check_feature("libjpeg_turbo")


def _decode_by_pillow(content: bytes, where: str, size: tuple[int, int] | None) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_size(*image.size, where, size)
            return np.array(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise DataError(f"{where}: not a readable image ({error}): restore it from the original archive") from error


def _check_size(w: int, h: int, where: str, size: tuple[int, int] | None) -> None:
    from PIL import Image

    if size is not None and (w, h) != size:
        raise DataError(f"{where}: {w}x{h} pixels, expected {size[0]}x{size[1]}")
    if w * h > Image.MAX_IMAGE_PIXELS or max(w, h) ** 2 > _MOST_ELONGATED * min(w, h):
        raise DataError(f"{where}: {w}x{h} pixels, which is refused because it would fill the memory")
