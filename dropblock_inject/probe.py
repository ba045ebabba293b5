"""What to call a model with in order to trace it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .errors import NoTrunkError, TraceError
from .geometry import Geometry
from .timm_info import declared_input_size
from .trace import Trace, trace_forward

# By spatial rank: signal, image, video; the second where the first does not go through.
_SIZES: dict[int, list[tuple[int, ...]]] = {1: [(1024,)], 2: [(224, 224)], 3: [(16, 112, 112), (16, 224, 224)]}


def trace_model(model: nn.Module, example_input: Any = None) -> Trace:
    """Traces a model on `example_input`, or on an input that fits its first convolution.

    Raises:
        NoTrunkError: no convolution to go by.
        TraceError: the forward pass failed before any convolution ran.
    """
    calls = [_as_call(example_input)] if example_input is not None else [((x,), {}) for x in _made_up_inputs(model)]
    for args, kwargs in calls:
        trace = trace_forward(model, args, kwargs)
        if trace.error is None:
            break
    if trace.error is not None and Geometry.of(trace) is None:
        raise TraceError(
            f"{type(model).__name__} could not be traced with an input of shape {shapes_of(trace)}: "
            f"{as_text(trace.error)}. Pass {'an' if example_input is None else 'another'} example_input: a tensor with "
            "its batch axis, a tuple of positional arguments, or a dict of keyword arguments, just what model(...) is "
            f"called with, here {_signature(model)}; only shapes and dtypes matter"
        ) from trace.error
    return trace


def shapes_of(trace: Trace) -> str:
    """The shapes of what a model was given."""
    return ", ".join(str(tuple(value.shape)) for value in trace.inputs)


def as_text(error: Exception) -> str:
    """An error of the model's own code, as part of a sentence."""
    return f"{type(error).__name__}: {error}".rstrip(".")


def _signature(model: nn.Module) -> str:
    parameters = inspect.signature(model.forward).parameters.values()
    return f"({', '.join(parameter.name for parameter in parameters)})"


def _as_call(example_input: Any) -> tuple[tuple, dict[str, Any]]:
    if isinstance(example_input, dict):
        return (), example_input
    if isinstance(example_input, tuple):
        return example_input, {}
    return (example_input,), {}


def _made_up_inputs(model: nn.Module) -> list[torch.Tensor]:
    convolution = next(_convolutions(model), None)
    if convolution is None:
        raise NoTrunkError(
            f"no convolution in {type(model).__name__}: DropBlock drops parts of the feature maps of a convolutional "
            "network; for a transformer use drop path (stochastic depth)"
        )
    channels, sizes = convolution.in_channels, _SIZES[len(convolution.kernel_size)]
    declared = declared_input_size(model)
    if declared is not None and len(declared) == len(sizes[0]) + 1:
        channels, sizes = declared[0], [declared[1:]]
    return [torch.empty(1, channels, *size, device="meta", dtype=convolution.weight.dtype) for size in sizes]


def _convolutions(model: nn.Module) -> Iterator[_ConvNd]:
    return (module for module in model.modules() if isinstance(module, _ConvNd))
