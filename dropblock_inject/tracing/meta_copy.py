"""Copies of models without data: the same structure, shapes and dtypes, every tensor on the meta device."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from ..errors import TraceError


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy of which every tensor is on the meta device.

    Raises:
        TraceError: there is something in the model that cannot be copied.
    """
    name = type(model).__name__
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise TraceError(f"{name} has lazy layers that know no shapes yet: run it once on a batch, then try again")
    memo: dict[int, Any] = {
        id(module): type(module).__new__(type(module)) for module in model.modules() if _is_plain(module)
    }
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    try:
        with _TensorsCopiedToMeta():
            for module in model.modules():
                if _is_plain(module):
                    memo[id(module)].__dict__.update(_copied_attributes(module, memo))
            meta_model = copy.deepcopy(model, memo)
    except Exception as problem:
        raise TraceError(
            f"{name} cannot be copied, which tracing does so that the model itself is not touched: "
            f"{type(problem).__name__}: {problem}"
        ) from problem
    for module in meta_model.modules():
        if isinstance(module, nn.RNNBase):
            module.forward = partial(_recurrent, module)
    return meta_model


def _recurrent(layer: nn.RNNBase, input: Any, hx: Any = None) -> Any:
    """What a recurrent layer puts out, in one product instead of thousands of steps."""
    packed = isinstance(input, PackedSequence)
    data = input.data if packed else input
    directions = 2 if layer.bidirectional else 1
    width = layer.proj_size or layer.hidden_size
    output = data @ data.new_empty(data.shape[-1], directions * width)
    time = 0 if packed or not layer.batch_first else data.dim() - 2
    batch = () if data.dim() == 2 and not packed else (int(input.batch_sizes[0]) if packed else data.shape[1 - time],)
    hidden = output.new_empty(layer.num_layers * directions, *batch, width)
    cell = output.new_empty(layer.num_layers * directions, *batch, layer.hidden_size)
    state = (hidden, cell) if isinstance(layer, nn.LSTM) else hidden
    return (input._replace(data=output) if packed else output), state


def _is_plain(module: nn.Module) -> bool:
    """Whether copying a module is copying its attributes, and nothing that its own class has to say in it."""
    kind = type(module)
    hooks = (getattr(kind, name, None) for name in ("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__"))
    own = (hook for hook in hooks if inspect.isfunction(hook) and not hook.__module__.startswith("torch.nn."))
    return not hasattr(kind, "__deepcopy__") and not any(own)


def _copied_attributes(module: nn.Module, memo: dict[int, Any]) -> dict[str, Any]:
    """What deepcopy would make of the attributes of a module, without the detours that take most of its time."""
    copied: dict[str, Any] = {}
    for name, entry in vars(module).items():
        if type(entry) in _IMMUTABLE:
            copied[name] = entry
        elif name in _TABLES:  # of parameters, children, hooks: no two modules share one
            copied[name] = type(entry)((key, copy.deepcopy(value, memo)) for key, value in entry.items())
        elif name != "_compiled_call_impl":
            copied[name] = copy.deepcopy(entry, memo)
    return copied


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


# Of parameters, children and hooks.
_TABLES = frozenset(name for name, entry in vars(nn.Module()).items() if isinstance(entry, dict))
_IMMUTABLE = frozenset((bool, bytes, complex, float, int, str, type(None), torch.Size, torch.device, torch.dtype, type))
