"""Images of the letters A to J in the fonts of a Debian package, like the dataset notMNIST."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LETTERS = "ABCDEFGHIJ"
FOLDER = Path("/usr/share/fonts/truetype/aenigma")
_SIZE = 64  # pixels of an image
_MARGIN = 6  # pixels around the letter


def load_letters(folder: Path = FOLDER) -> tuple[list[tuple[Image.Image, int]], list[tuple[Image.Image, int]]]:
    """Training and test images: the fonts in the first and in the second half of the alphabet.

    Fonts that lie together belong together: only one family can be in both halves.

    Raises:
        SystemExit: the fonts are not there.
    """
    files = sorted(folder.glob("*.ttf"))
    if not files:
        raise SystemExit(f"error: no fonts in {folder}; on Debian or Ubuntu: apt-get install fonts-aenigma")
    half = len(files) // 2
    return [*_images(files[:half])], [*_images(files[half:])]


def _images(files: Sequence[Path]) -> Iterator[tuple[Image.Image, int]]:
    for file in files:
        letters = [draw_letter(file, letter) for letter in LETTERS]
        if len({image.tobytes() for image in letters}) == len(letters):  # else some letters are missing in the font
            yield from zip(letters, range(len(letters)), strict=True)


def draw_letter(file: Path, letter: str) -> Image.Image:
    """The letter in white on black, as large as fits."""
    large = ImageFont.truetype(file, 4 * _SIZE)
    left, top, right, bottom = large.getbbox(letter)
    size = max(int(right - left), int(bottom - top), 1)
    page = Image.new("L", (size, size))
    corner = ((size - right - left) / 2, (size - bottom - top) / 2)
    ImageDraw.Draw(page).text(corner, letter, fill=255, font=large)
    image = Image.new("L", (_SIZE, _SIZE))
    inner = _SIZE - 2 * _MARGIN
    image.paste(page.resize((inner, inner), Image.Resampling.LANCZOS), (_MARGIN, _MARGIN))
    return image
