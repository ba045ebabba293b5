"""Choosing sites by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..errors import DropBlockTypeError, DropBlockValueError

Pattern = str | Sequence[str] | Callable[[str, nn.Module], bool] | None

_REGEX = "re:"
# Names by which wrappers hold a model: DDP, torch.compile, FSDP, checkpoint_wrapper.
_WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_CLOSEST = 3


def check_pattern(argument: str, pattern: Pattern) -> None:
    """Raises if `pattern`, given as the named argument, is none."""
    if pattern is None or callable(pattern):
        return
    entries = [pattern] if isinstance(pattern, str) else pattern
    if not isinstance(entries, Sequence) or not all(isinstance(entry, str) for entry in entries):
        raise DropBlockTypeError(
            f"{argument} must be a name pattern, a sequence of them, a regular expression as 're:...' or a callable "
            f"(name, module) -> bool, got {pattern!r}"
        )
    for entry in entries:
        if entry.startswith(_REGEX):
            try:
                re.compile(entry.removeprefix(_REGEX))
            except re.error as error:
                raise DropBlockValueError(f"{argument}={entry!r} is not a valid regular expression: {error}") from None


def matches(entry: str, name: str) -> bool:
    """Whether a name fits a pattern: the exact name, a dotted suffix of it, a shell wildcard, or ``re:`` and a
    regular expression that matches it in full.

    >>> [matches(p, "layer4.1.bn1") for p in ("layer4.1.bn1", "1.bn1", "bn1", "n1", "layer4.*", "re:layer[34].*")]
    [True, True, True, False, True, True]
    """
    for candidate in {name, _WRAPPERS.sub("", name)}:
        if entry.startswith(_REGEX):
            if re.fullmatch(entry.removeprefix(_REGEX), candidate):
                return True
        elif candidate == entry or candidate.endswith(f".{entry}") or fnmatchcase(candidate, entry):
            return True
    return False


def entries_of(pattern: Pattern) -> list[str]:
    """The entries of a pattern that is made of names; empty for a callable or None."""
    if isinstance(pattern, str):
        return [pattern]
    return list(pattern) if isinstance(pattern, Sequence) else []


def closest(entry: str, names: Iterable[str]) -> list[str]:
    """The names most like `entry`, best first."""
    names = list(dict.fromkeys(names))
    plain = entry.removeprefix(_REGEX).strip("*")
    return difflib.get_close_matches(plain, names, n=_CLOSEST, cutoff=0.0)
