"""The end of a branch, corrected: how a shortcut is masked that the code of its block itself reads.

In ``x + self.attention(self.norm(x))`` no module is given the shortcut alone. So the shortcut is remembered where a
module sees it, and the change that the mask makes is added to the end of the branch: ``x + (F(x) + (masked(x) - x))``.
This file has all of it: the search in a trace, and the hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..anatomy.feature_maps import Geometry
from ..anatomy.residual_adds import Residual
from ..surgery.hook import ArgumentHook, Hook, Key, OutputHook, recorded
from ..surgery.place import Place, thread
from ..surgery.site import PlannedHook
from ..tracing.operations import SAME_VALUES
from ..tracing.trace import Call, Value, original
from .hook_points import HookFinder, HookPoint

_Channels = tuple[int, int]  # from the first channel up to, but not including, the second


class Layout(NamedTuple):
    """How a tensor that a module sees holds a feature map.

    Attributes:
        tokens: whether it is (N, H * W, C), and the map (N, C, H, W).
        channels: which of its channels are the map; None: all.
        channel_dim: the axis of its channels.
    """

    tokens: bool
    channels: _Channels | None
    channel_dim: int


# The search


def find_branch_end(residual: Residual, finder: HookFinder, geometry: Geometry) -> HookPoint | None:
    """The end of a branch, and a module before it that sees the shortcut.

    The end may be some of the channels that a module puts out, if nobody else reads those.
    """
    scope, end = residual.call, residual.branch
    channels: _Channels | None = None
    while len(end.readers) == 1 or (channels and _is_split(end, geometry)):
        for call, key in reversed(finder.put_out_by[end]):
            if scope.encloses(call):
                return _capture_before(residual, call, key, channels, finder, geometry)
        part = _part_of(end, geometry)
        if part and not channels:
            end, channels = part
        elif end.producer is not None and end.producer.kind in SAME_VALUES:
            end = end.producer.inputs[0]
        else:
            return None
    return None


def _capture_before(
    residual: Residual, host: Call, key: Key, channels: _Channels | None, finder: HookFinder, geometry: Geometry
) -> HookPoint | None:
    """The host, which ends the branch, and the module before it that sees the shortcut."""
    scope = residual.call
    feature_map = geometry.map_of(residual.skip)
    assert feature_map is not None  # a residual add is one of feature maps
    for seen, layout in _layouts(residual, feature_map.channel_dim, geometry):
        for call, seen_as, is_output in _calls_that_see(seen, scope, host, finder):
            seen_at = call.last if is_output else call.first
            # Which call of the host after that is the end of the branch: 1 for the next.
            number = sum(
                scope.encloses(other) and other.last > seen_at and other.first <= host.first
                for other in finder.calls_of[host.name]
            )
            capture = CaptureOutput if is_output else CaptureArgument
            hooks = (
                PlannedHook(host.name, CorrectOutput, (key, layout, channels)),
                PlannedHook(call.name, capture, (seen_as, number)),
            )
            return HookPoint(residual.skip, host.name, hooks)
    return None


def _layouts(residual: Residual, channel_dim: int, geometry: Geometry) -> Iterator[tuple[Value, Layout]]:
    """The tensors that hold the shortcut: the map itself, the map as tokens, a map that has it as some channels."""
    shortcut = original(residual.skip, residual.call)
    yield shortcut, Layout(False, None, channel_dim)
    for tokens in _as_tokens(shortcut):
        yield tokens, Layout(True, None, channel_dim)
    part = _part_of(shortcut, geometry)
    if part:
        yield original(part[0], residual.call), Layout(False, part[1], channel_dim)


def _calls_that_see(value: Value, scope: Call, host: Call, finder: HookFinder) -> Iterator[tuple[Call, Key, bool]]:
    """The calls that are given a tensor, or put it out, before the host is called; as what; whether it is put out."""
    for key, argument in scope.arguments.items():
        if argument is value:
            yield scope, key, False
    for call in finder.calls_in(scope):
        if call.first < host.first and call is not host and finder.is_only_call(call, scope):
            yield from ((call, key, False) for key, argument in call.arguments.items() if argument is value)
            if call.last <= host.first:  # a module around the host puts it out when the branch has ended already
                yield from ((call, key, True) for key, output in call.outputs.items() if output is value)


def _part_of(value: Value, geometry: Geometry) -> tuple[Value, _Channels] | None:
    """The feature map of which a tensor is some of the channels, and which of them."""
    op, feature_map = value.producer, geometry.map_of(value)
    if op is None or feature_map is None or op.kind not in ("slice", "split", "split_with_sizes"):
        return None
    axis, step = feature_map.channel_dim % len(value.shape), 1
    if op.kind == "slice":  # its arguments: the tensor, dim, start, end, step
        defaults: tuple[Any, ...] = (None, 0, None, None, 1)
        _, dim, start, _, step = op.arguments + defaults[len(op.arguments) :]
        first = range(op.inputs[0].shape[axis])[start:].start
    else:  # the tensor, size or sizes, dim
        dim = (*op.arguments, 0)[2]
        first = sum(output.shape[axis] for output in op.outputs[: op.outputs.index(value)])
    if dim % len(value.shape) != axis or step != 1:
        return None
    return op.inputs[0], (first, first + value.shape[axis])


def _is_split(value: Value, geometry: Geometry) -> bool:
    """Whether every reader of a feature map takes some of its channels, and no two readers the same."""
    parts = [_part_of(output, geometry) for op in value.readers for output in op.outputs]
    ranges = sorted(part[1] for part in parts if part)
    return len(ranges) == len(parts) and all(one[1] <= other[0] for one, other in pairwise(ranges))


def _as_tokens(value: Value) -> list[Value]:
    """The feature map as tokens, if it is flattened and then transposed to be such."""
    if len(value.shape) < 3:
        return []
    batch, channels, *size = value.shape
    flat = [op.outputs[0] for op in value.readers if op.kind == "view"]
    return [
        op.outputs[0]
        for between in flat
        for op in between.readers
        if op.kind == "transpose" and op.outputs[0].shape == (batch, prod(size), channels)
    ]


# The hooks

# The shortcuts of branches that have not ended yet, each with the number of calls of the host until then. The keys are
# the thread, because several threads may run a model, and the key of the place.
_captured: dict[tuple[int, str], tuple[Tensor, int]] = {}
# The same number of calls for a torch.fx trace, in which nothing has a value yet.
_traced: dict[str, int] = {}


class _Capture(Hook):
    """Remembers the shortcut that a block is about to add.

    Args:
        number: which call of the host from now on is the end of the branch: 1 for the next.
    """

    def __init__(self, place: Place, key: Key, number: int) -> None:
        super().__init__(place, key)
        self.number = number

    def change(self, tensor: Tensor, module: nn.Module) -> Tensor:
        if isinstance(tensor, torch.fx.Proxy):
            _traced[self.place.key] = self.number
        elif self.place.is_at_rest:
            return tensor
        return recorded(_capture, tensor, self.place.key, self.number)


class CaptureArgument(_Capture, ArgumentHook):
    """Remembers it where a module is given it."""


class CaptureOutput(_Capture, OutputHook):
    """Remembers it where a module puts it out."""


class CorrectOutput(OutputHook):
    """Adds to the end of a branch what the mask changes in the shortcut.

    Args:
        layout: how the tensor that was captured holds the shortcut.
        channels: which channels of the output are the end of the branch; None: all.
    """

    masks = True

    def __init__(self, place: Place, key: Key, layout: Layout, channels: _Channels | None) -> None:
        super().__init__(place, key)
        self.layout = layout
        self.channels = channels

    def change(self, tensor: Tensor, module: nn.Module) -> Tensor:
        if not _is_end(tensor, self.place.key):
            return tensor
        end = tensor if self.channels is None else _narrow(tensor, self.layout.channel_dim, self.channels)
        shortcut = recorded(_release, end, self.place.key, self.layout)
        masked = self.place.apply(shortcut, module)
        return recorded(_corrected, tensor, shortcut, masked, self.channels, self.layout.channel_dim)


def _capture(shortcut: Tensor, key: str, number: int) -> Tensor:
    _captured[thread(), key] = shortcut, number
    return shortcut


def _is_end(tensor: Tensor, key: str) -> bool:
    """Counts a call of the host; whether it ends the branch."""
    if isinstance(tensor, torch.fx.Proxy):
        number = _traced.pop(key, 1)
        if number > 1:
            _traced[key] = number - 1
        return number == 1
    if (thread(), key) not in _captured:
        return False
    shortcut, number = _captured[thread(), key]
    _captured[thread(), key] = shortcut, number - 1
    return number == 1


def _release(end: Tensor, key: str, layout: Layout) -> Tensor:
    """The captured shortcut, in the layout of the end of the branch; the end itself if nothing was captured."""
    shortcut, _ = _captured.pop((thread(), key), (None, 0))
    if shortcut is None:
        return end
    if layout[0]:  # a torch.fx graph makes a plain tuple of it
        return shortcut.transpose(1, 2).reshape(end.shape)
    return shortcut if layout[1] is None else _narrow(shortcut, layout[2], layout[1])


def _corrected(
    tensor: Tensor, shortcut: Tensor, masked: Tensor, channels: _Channels | None, channel_dim: int
) -> Tensor:
    if masked is shortcut:
        return tensor
    if channels is None:
        return tensor + (masked - shortcut)
    end = _narrow(tensor, channel_dim, channels)
    return tensor.slice_scatter(end + (masked - shortcut), channel_dim, *channels)


def _narrow(tensor: Tensor, channel_dim: int, channels: _Channels) -> Tensor:
    return tensor.narrow(channel_dim, channels[0], channels[1] - channels[0])
