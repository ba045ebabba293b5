"""A picture from a file, upright and in 8 bits, whatever the file has."""

from __future__ import annotations

import warnings
from math import isfinite
from pathlib import Path
from typing import Any

from ..errors import DropBlockValueError


def open_picture(file: Path, mode: str) -> Any:
    """Opens a picture as a PIL image.

    Greys of 16 bits keep their range. Greys of 32 bits, integer or floating point, have no range of their own: the
    darkest becomes 0 and the brightest 255.

    Args:
        file: any format that Pillow reads; an orientation in its EXIF data is applied.
        mode: ``"L"`` or ``"RGB"``.

    Raises:
        DropBlockValueError: the file is no picture, or Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DropBlockValueError('Pillow is not installed: pip install "dropblock-inject[plot]"') from None
    if not file.is_file():
        raise DropBlockValueError(f"{file} is a folder; name a picture" if file.is_dir() else f"no file {file}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an image of twice that size is an error
            with Image.open(file) as opened:
                return _in_8_bits(ImageOps.exif_transpose(opened)).convert(mode)
    except Exception as error:  # a corrupt file leads to any error
        reason = str(error).split("\n")[0]
        raise DropBlockValueError(f"{file} is no picture that can be read: {reason}") from None


def _in_8_bits(picture: Any) -> Any:
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    low, high = (0, 65535) if picture.mode.startswith("I;16") else picture.getextrema()
    if not isfinite(high - low):
        raise ValueError("its values are not finite")
    scale = 255 / ((high - low) or 1)
    return picture.convert("F").point(lambda value: value * scale + (0.5 - low * scale)).convert("L")
