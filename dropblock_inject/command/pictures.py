"""A picture from a file, upright and in 8 bits, whatever the file has."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DropBlockValueError


def open_picture(file: Path, mode: str) -> Any:
    """Opens a picture as a PIL image.

    Greys of 16 bits keep their range. Greys of 32 bits do not say which value is white. It is the least that fits the
    values of 255, 65535 and the largest integer; for floating point, of 1, 255 and 65535.

    Args:
        file: any format that Pillow reads; an orientation in its EXIF data is applied.
        mode: ``"L"`` or ``"RGB"``.

    Raises:
        DropBlockValueError: the file is no picture, the white of its greys is not known, or Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DropBlockValueError('Pillow is not installed: pip install "dropblock-inject[plot]"') from None
    if not file.is_file():
        raise DropBlockValueError(f"{file} is a folder; name a picture" if file.is_dir() else f"no file {file}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an image of twice that size is an error
            with Image.open(file) as opened:
                return upright_in_8_bits(opened).convert(mode)
    except Exception as error:  # a corrupt file leads to any error
        reason = str(error).split("\n")[0]
        raise DropBlockValueError(f"{file} is no picture that can be read: {reason}") from None


def upright_in_8_bits(picture: Any) -> Any:
    """A PIL image as its EXIF data say it stands, with 8 bits per channel.

    Raises:
        ValueError: the image is grey with values whose white is not known.
    """
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(picture)
    if picture.mode not in ("F", "I") and not picture.mode.startswith("I;16"):
        return upright
    values = _values(upright, picture)  # convert() would cut them off at 255
    grey = (values * (255 / _white_of(values, picture))).round()
    return Image.frombytes("L", upright.size, bytes(grey.to(torch.uint8).tolist()))


_SAMPLE_FORMAT = 339  # the TIFF tag; 1 is unsigned


def _values(upright: Any, picture: Any) -> Tensor:
    """The greys as float64."""
    if picture.mode == "F":
        kind = torch.float32
    elif picture.mode == "I":
        kind = torch.uint32 if _is_unsigned(picture) else torch.int32
    else:
        upright, kind = upright.convert("I"), torch.int32
    return torch.frombuffer(bytearray(upright.tobytes()), dtype=kind).double()


def _is_unsigned(picture: Any) -> bool:
    return picture.format == "TIFF" and picture.tag_v2.get(_SAMPLE_FORMAT, (1,)) == (1,)


def _white_of(values: Tensor, picture: Any) -> float:
    """The value of white: the largest that the file can hold, or if it does not say, the least that fits its values."""
    if picture.mode.startswith("I;16") or picture.format in ("PNG", "PPM"):
        return 65535
    low, high = float(values.min()), float(values.max())
    largest = 2**32 - 1 if _is_unsigned(picture) else 2**31 - 1
    candidates = [255, 65535, largest] if picture.mode == "I" else [1, 255, 65535]
    if not 0 <= low <= high <= candidates[-1] or (picture.mode == "F" and 1 < high < 16):
        raise ValueError(f"grey values from {low:g} to {high:g}, where white may be {', '.join(map(str, candidates))}")
    return next(white for white in candidates if high <= white)
