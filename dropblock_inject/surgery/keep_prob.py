"""The keep_prob of a layer: of a DropBlock, or of another layer that drops something."""

from __future__ import annotations

import numbers
from typing import Any, TypeGuard

from torch import nn

NEEDED = "a number as its attribute keep_prob, p or drop_prob"  # by a layer that is to be set, for error messages

# The attributes by which layers hold a drop probability: torch's and torchvision's, timm's.
_DROP_PROBABILITIES = ("p", "drop_prob")


def keep_prob_of(layer: nn.Module) -> float | None:
    """The `keep_prob` of a layer, or 1 less its `p` or `drop_prob`; None if it has none of them."""
    keep_prob: Any = getattr(layer, "keep_prob", None)
    if _is_number(keep_prob):
        return float(keep_prob)
    name = _drop_probability(layer)
    return None if name is None else 1.0 - float(getattr(layer, name))


def set_keep_prob(layer: nn.Module, keep_prob: float) -> None:
    """Sets what :func:`keep_prob_of` gives. A layer that has none of the attributes stays as it is."""
    name = _drop_probability(layer)
    if _is_number(getattr(layer, "keep_prob", None)):
        layer.keep_prob = keep_prob  # type: ignore[assignment]
    elif name is not None:
        setattr(layer, name, 1.0 - keep_prob)


def _drop_probability(layer: nn.Module) -> str | None:
    for name in _DROP_PROBABILITIES:
        if _is_number(getattr(layer, name, None)):
            return name
    return None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
