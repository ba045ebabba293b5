"""The types of the options: a word of the command line becomes a value, or an error that says what it may be."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path


def integer(low: int, high: int = 2**63 - 1) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not an integer{_advice_on(text)}") from None
        if not low <= number <= high:
            raise ArgumentTypeError(f"must be from {low} to {high}, got {number}")
        return number

    return convert


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number{_advice_on(text)}") from None


def stage(text: str) -> int | str:
    return text if text == "all" else integer(-(2**63))(text)


def pixels_or_share(text: str) -> int | float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise ArgumentTypeError(f"must be pixels or a share of the map, got {text!r}") from None


def picture_file(text: str) -> Path:
    file = Path(text)
    if file.is_dir() or not file.suffix:
        example = file / "picture.png" if file.is_dir() else f"{file}.png"
        raise ArgumentTypeError(f"{text!r} is not the name of a picture; give one such as {example}")
    return file


def _advice_on(text: str) -> str:
    if "," in text:
        return "; put spaces between several"
    return "; if it is the model, put it before the options" if text[:1].isalpha() else ""
