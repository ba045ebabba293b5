"""The right words: for a misspelt one, and for a hint that speaks Python."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_NAMES = "stages|where|include|exclude|block_size|keep_prob|warmup_steps|total_steps"
_ARGUMENT = re.compile(rf"\b({_NAMES})=(\[[^]]*\]|'[^']*'|None|[\d.]*\d)")


def did_you_mean(word: str, words: Iterable[str], most: int = 4) -> str:
    """The words closest to a misspelt one, as the end of a message; empty if none is close."""
    close = get_close_matches(word, list(words), n=most)
    return f"; did you mean {', '.join(close)}?" if close else ""


def in_options(text: str) -> str:
    """The arguments of Python in a text as options of the command: "stages=None" becomes "--stages all"."""
    return _ARGUMENT.sub(_as_option, text)


def _as_option(argument: re.Match[str]) -> str:
    name, value = argument.groups()
    words = "all" if value == "None" else value.strip("[]").replace(",", "")
    return f"--{name.replace('_', '-')} {words}"


def enumerated(words: Iterable[str], last: str = "and") -> str:
    """Words in a sentence: "one, two and three"."""
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final
