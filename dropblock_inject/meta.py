"""Copies without data: the same structure, shapes and dtypes, every tensor on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import TraceError


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy of which every tensor is on the meta device.

    Raises:
        TraceError: there is something in the model that cannot be copied.
    """
    name = type(model).__name__
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise TraceError(f"{name} has lazy layers that know no shapes yet: run it once on a batch, then try again")
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    try:
        with _TensorsCopiedToMeta():
            return copy.deepcopy(model, memo)
    except Exception as problem:
        raise TraceError(
            f"{name} cannot be copied, which tracing does so that the model itself is not touched: "
            f"{type(problem).__name__}: {problem}"
        ) from problem


def to_meta(nested: Any) -> Any:
    if isinstance(nested, Tensor):
        return torch.empty_like(nested, device="meta")
    if isinstance(nested, dict):
        return type(nested)({key: to_meta(entry) for key, entry in nested.items()})
    if isinstance(nested, tuple | list):
        entries = [to_meta(entry) for entry in nested]
        return type(nested)(*entries) if hasattr(nested, "_fields") else type(nested)(entries)
    return nested


class _TensorsCopiedToMeta(TorchFunctionMode):
    """Within it, ``deepcopy`` of a tensor that is neither parameter nor buffer gives a meta tensor too."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            return torch.empty_like(args[0], device="meta")
        return func(*args, **(kwargs or {}))
