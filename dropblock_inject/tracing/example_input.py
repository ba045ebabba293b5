"""What to call a model with in order to trace it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import DropBlockTypeError, DropBlockValueError, NoTrunkError, TraceError
from .recorder import refuse_scripted, trace_forward
from .trace import Trace, first_convolution

# By spatial rank: signal, image, video or volume. The others are for models that the first does not go through: some
# halve their images more often than five times.
_SIZES: dict[int, list[tuple[int, ...]]] = {
    1: [(1024,), (16384,)],
    2: [(224, 224), (256, 256), (512, 512)],
    3: [(16, 112, 112), (16, 224, 224), (64, 64, 64), (128, 128, 128)],
}


def trace_model(model: nn.Module, example_input: Any = None) -> Trace:
    """Traces a model on `example_input`, or on an input that fits its first convolution.

    Raises:
        CompiledModelError: a part of the model is compiled by torch.jit.
        NoTrunkError: no convolution to go by.
        TraceError: the forward pass failed before any convolution ran.
    """
    refuse_scripted(model)
    calls = [_as_call(example_input)] if example_input is not None else [((x,), {}) for x in _made_up_inputs(model)]
    traces = []
    for args, kwargs in calls:
        traces.append(trace_forward(model, args, kwargs))
        if traces[-1].error is None or _asks_for_values(traces[-1].error):
            break
    trace = max(traces, key=lambda trace: (trace.error is None, len(trace.ops)))  # the one that got furthest
    if trace.error is not None and first_convolution(trace) is None and _asks_for_values(trace.error):
        raise TraceError(
            f"{type(model).__name__} could not be traced: before its first convolution it asks for the values of a "
            f"tensor (item(), numpy(), if tensor:), and the pass is without data: {failure_of(trace)}. Where its code "
            "can do without the values, in eval mode or with plain numbers, the walker can read it"
        ) from trace.error
    if trace.error is not None and first_convolution(trace) is None:
        raise TraceError(
            f"{type(model).__name__} could not be traced with an input of shape {shapes_of(trace)}: "
            f"{failure_of(trace)}. Pass {'an' if example_input is None else 'another'} example_input: a tensor with "
            "its batch axis, a tuple of positional arguments, or a dict of keyword arguments, just what model(...) is "
            f"called with, here {_signature(model)}; only shapes and dtypes matter"
        ) from trace.error
    return trace


def _asks_for_values(error: Exception) -> bool:
    """Whether it was the missing data that ended a pass, so that it would end in the same way at another size."""
    return "meta" in str(error).lower()


def shapes_of(trace: Trace) -> str:
    """The shapes of what a model was given."""
    return ", ".join(str(tuple(value.shape)) for value in trace.inputs)


def failure_of(trace: Trace) -> str:
    """What ended a pass, as part of a sentence: the error, the module it is of, and what that was given."""
    text = f"{type(trace.error).__name__}: {trace.error}".rstrip(".")
    if len(trace.ended_in) < 2:
        return text
    call = trace.ended_in[-1]
    arguments = " and ".join(str(value.shape) for value in call.arguments.values())
    kind = repr(call.module) if not list(call.module.children()) else type(call.module).__name__
    return f"{text} (in {call.name}, {kind}, given {arguments or 'no tensor'})"


def example_of_size(model: nn.Module, size: tuple[int, ...]) -> torch.Tensor:
    """One image of that size for a model, without data.

    Raises:
        NoTrunkError: no convolution to go by.
        DropBlockValueError: the images of the model have another number of axes.
    """
    made_up = _made_up_inputs(model)
    shape = made_up[0].shape
    if len({other.shape[1] for other in made_up}) > 1:
        shape = next((x.shape for x in made_up if trace_forward(model, (x,), {}).error is None), shape)
    if len(size) != len(shape) - 2:
        raise DropBlockValueError(
            f"an image of {'x'.join(map(str, size))} pixels for {type(model).__name__}, which takes images with "
            f"{len(shape) - 2} sides, such as {'x'.join(map(str, shape[2:]))}"
        )
    return torch.empty(*shape[:2], *size, device="meta")


def _signature(model: nn.Module) -> str:
    parameters = inspect.signature(model.forward).parameters.values()
    return f"({', '.join(parameter.name for parameter in parameters)})"


def _as_call(example_input: Any) -> tuple[tuple, dict[str, Any]]:
    numbers = [example_input] if isinstance(example_input, int) else example_input
    if isinstance(numbers, tuple | list) and numbers and all(isinstance(n, int) for n in numbers):
        sides = [*numbers, *numbers] if len(numbers) == 1 else [*numbers]
        size = ", ".join(map(str, [*[1, 3][: max(4 - len(sides), 0)], *sides]))
        raise DropBlockTypeError(
            f"example_input={example_input} is a shape, not what the model is called with; pass torch.empty({size})"
        )
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
    channels, sizes = [convolution.in_channels], _SIZES[len(convolution.kernel_size)]
    # A stem may fold 4 or 16 pixels into channels.
    folded = [channels[0] // pixels for pixels in (4, 16) if channels[0] % pixels == 0]
    declared = _declared_input_size(model)
    if declared is not None and len(declared) == len(sizes[0]) + 1:
        # A model may be made for other channels than it declares.
        channels, sizes = list(dict.fromkeys([declared[0], *channels, *folded])), [declared[1:]]
    elif declared is not None and len(declared) == len(sizes[0]):
        channels, sizes = [*channels, *folded], [declared, *sizes]
    elif 3 in folded:
        channels = [*channels, 3]
    dtype = convolution.weight.dtype
    return [torch.empty(1, count, *size, device="meta", dtype=dtype) for count in channels for size in sizes]


def _declared_input_size(model: nn.Module) -> tuple[int, ...] | None:
    """The size of the images a model is made for; with their channels, as timm says it, or without."""
    config = getattr(model, "pretrained_cfg", None)
    declared = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
    if not isinstance(declared, tuple | list):
        sides: Any = getattr(getattr(model, "config", None), "image_size", None) or getattr(model, "in_size", None)
        sides = (sides, sides) if type(sides) is int else sides
        is_size = isinstance(sides, tuple | list) and bool(sides) and all(type(side) is int for side in sides)
        return tuple(sides) if is_size else None
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)  # which may have been asked otherwise
    return (declared[0], *built_for) if isinstance(built_for, tuple | list) else tuple(declared)


def _convolutions(model: nn.Module) -> Iterator[_ConvNd]:
    return (module for module in model.modules() if isinstance(module, _ConvNd))
