"""The right word for a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, words: Iterable[str], most: int = 4) -> str:
    """The words closest to a misspelt one, as the end of a message; empty if none is close."""
    close = get_close_matches(word, list(words), n=most)
    return f"; did you mean {', '.join(close)}?" if close else ""


def enumerated(words: Iterable[str], last: str = "and") -> str:
    """Words in a sentence: "one, two and three"."""
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final
