"""The modes of a schedule: the share of the way from start to end, as a function of progress."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..errors import DropBlockValueError

_STEPS = 4  # the "step" mode goes down in so many steps of equal height

MODES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
    "constant": lambda progress: 1.0,
    "step": lambda progress: min(math.floor(progress * (_STEPS + 1)), _STEPS) / _STEPS,
}


def fraction_at(progress: float, mode: str | Callable[[float], float]) -> float:
    """The share of the way from start to end, in [0, 1]. Raises DropBlockValueError if a callable gives another."""
    if isinstance(mode, str):
        return MODES[mode](progress)
    fraction = mode(progress)
    if not (isinstance(fraction, int | float) and 0 <= fraction <= 1):
        raise DropBlockValueError(
            f"mode({progress:g}) returned {fraction!r}; it must be the share of the way from start to end, in [0, 1]"
        )
    return float(fraction)
