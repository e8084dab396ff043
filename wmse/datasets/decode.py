"""Decoding image files that nobody vouches for: only formats that run no program, and sizes that fit into memory."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wmse.errors import DataError
from wmse.image_folders import REFUSED, image_suffixes

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("JPEG", "PNG")  # One of ImageNet's .JPEG files is a PNG; some of Pillow's other readers start programs.
_EXIF = b"Exif\0\0"  # How the block begins that may say which side is up.
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
# Modes that have no one translation into levels from 0 to 255, and what there is to do.
_NO_LEVELS = {
    "I": "32-bit integers: scale them to 8 or 16 bits",
    "F": "floating-point numbers: scale them to 8 or 16 bits",
    "LAB": "L*a*b* colours: convert them to RGB",
}
# The highest ratio of the long side squared to the short side: a strip one pixel high would be enlarged to the height
# of a view, and its length by the same factor. 500 x 1 pixels pass.
_MOST_ELONGATED = 1 << 18
RESTORE = ": restore it from the original archive"  # The end of a message, which does not suit one's own images.


def decode_image(content: bytes, where: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The image in a file of this content as uint8 (h, w, 3), RGB; `size` is the (w, h) that it must have, if any.

    The levels are Pillow's. An EXIF orientation is not applied, as in the loaders of torchvision. Raises DataError
    naming `where`: broken, or of a format or size that is refused.
    """
    pixels = _decode_jpeg(content, where, size)
    return _decode_by_pillow(content, where, size) if pixels is None else pixels


def decode_any(content: bytes, where: str) -> np.ndarray:
    """As `decode_image`, of whatever format Pillow reads: somebody's own images, as a viewer shows them.

    The first image of several; turned as its EXIF orientation says; on white where it is transparent; of 16 bits the
    upper 8; CMYK and palettes as Pillow translates them.
    """
    kind = image_suffixes().get(Path(where).suffix.lower())
    if kind in REFUSED:
        raise DataError(f"{where}: {kind} is {REFUSED[kind]}: convert it to another format")
    pixels = None if _EXIF in content[:4096] else _decode_jpeg(content, where, None)
    return _decode_by_pillow(content, where, None, _readable_formats(), _as_shown) if pixels is None else pixels


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in REFUSED)


def _as_shown(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB; ValueError for the modes that cannot be."""
    from PIL import Image, ImageOps

    if image.format == "PPM" and image.mode == "I":  # 16 bits, which only this format gives as 32
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in _NO_LEVELS:
        raise ValueError(_NO_LEVELS[image.mode])
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


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


def _decode_by_pillow(
    content: bytes,
    where: str,
    size: tuple[int, int] | None,
    formats: Sequence[str] = _FORMATS,
    as_rgb: Callable[[Image.Image], Image.Image] = lambda image: image.convert("RGB"),
) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            _check_size(*image.size, where, size)
            return np.array(as_rgb(image))
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds for a broken file
        if isinstance(error, UnidentifiedImageError):  # its message names an object in memory
            error = "of no known kind"
        raise DataError(f"{where}: not a readable image ({error}){RESTORE}") from None


def _check_size(w: int, h: int, where: str, size: tuple[int, int] | None) -> None:
    from PIL import Image

    if size is not None and (w, h) != size:
        raise DataError(f"{where}: {w}x{h} pixels, expected {size[0]}x{size[1]}")
    if w * h > Image.MAX_IMAGE_PIXELS or max(w, h) ** 2 > _MOST_ELONGATED * min(w, h):
        raise DataError(f"{where}: {w}x{h} pixels, which is refused because it would fill the memory")
