"""The keep_prob of a layer: of a DropBlock, or of another layer that drops something."""

from __future__ import annotations

import inspect
import numbers
from typing import Any, TypeGuard

from torch import nn

# What a layer that is to be set needs, for error messages.
NEEDED = "a number as its attribute keep_prob, p or drop_prob, and one that is no read-only property"

# The attributes by which layers hold it, or a drop probability: torch's and torchvision's, timm's.
_DROP_PROBABILITIES = ("p", "drop_prob")
ATTRIBUTES = ("keep_prob", *_DROP_PROBABILITIES)


def keep_prob_of(layer: nn.Module) -> float | None:
    """The `keep_prob` of a layer, or 1 less its `p` or `drop_prob`; None if it has none of them."""
    keep_prob: Any = getattr(layer, "keep_prob", None)
    if _is_number(keep_prob):
        return float(keep_prob)
    for name in _DROP_PROBABILITIES:
        if _is_number(drop_prob := getattr(layer, name, None)):
            return 1.0 - float(drop_prob)
    return None


def has_settable_keep_prob(layer: nn.Module) -> bool:
    """Whether :func:`set_keep_prob` can set it."""
    return _attribute_to_set(layer) is not None


def set_keep_prob(layer: nn.Module, keep_prob: float) -> None:
    """Sets what :func:`keep_prob_of` gives. A layer without an attribute that can be set stays as it is."""
    name = _attribute_to_set(layer)
    if name is not None:
        setattr(layer, name, keep_prob if name == "keep_prob" else 1.0 - keep_prob)


def can_be_set(layer: nn.Module, name: str) -> bool:
    """Whether an attribute is no read-only property."""
    of_class = inspect.getattr_static(type(layer), name, None)
    return not (isinstance(of_class, property) and of_class.fset is None)


def _attribute_to_set(layer: nn.Module) -> str | None:
    for name in ATTRIBUTES:
        if _is_number(getattr(layer, name, None)) and can_be_set(layer, name):
            return name
    return None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
