"""The optimizer that makes the updates, where one holds another: SAM, a lookahead, Accelerate's wrapper."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import DropBlockTypeError


def innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that makes the updates: the one itself, or the one that it holds."""
    seen: list[Any] = []
    inner: Any = optimizer
    while inner not in seen:
        seen.append(inner)
        held = {id(value): value for value in vars(inner).values() if isinstance(value, torch.optim.Optimizer)}
        if len(held) == 1:
            (inner,) = held.values()
    if not getattr(type(inner).step, "hooked", False):  # set by the constructor of torch's optimizers
        raise DropBlockTypeError(
            f"{type(optimizer).__name__} runs no hooks after its steps, and which optimizer it steps is not clear; "
            "attach to the optimizer inside it, or call schedule.step() after each update"
        )
    return inner
