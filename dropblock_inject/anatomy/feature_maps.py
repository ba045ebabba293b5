"""Feature maps: which tensors are maps of the image, where their channels are, how far they are reduced.

Maps are followed operation by operation from the image on: a convolution says where the channels are, a permutation
moves them, strides reduce the map. Only where the shape is all that is left, behind windows and tokens, it decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log2, prod
from typing import NamedTuple

from ..tracing.operations import MOVES, POOLS, RESAMPLES, RESIZES, SAME_VALUES
from ..tracing.trace import Op, Trace, Value, ancestors, first_convolution
from .gates import gate_values

_SIZE_TOLERANCE = 2  # pixels that convolutions without padding may take from an axis


@dataclass(frozen=True)
class FeatureMap:
    """Shape of a feature map.

    Attributes:
        channels: number of channels.
        size: spatial size, in pixels.
        channel_dim: axis of the channels: 1 or -1.
        log_reduction: log2 of the reduction of the image, along the axis that is reduced most; a whole number if all
            strides are powers of two. Of a video height and width count.
    """

    channels: int
    size: tuple[int, ...]
    channel_dim: int
    log_reduction: float

    @property
    def level(self) -> int:
        """The number of times that the image is halved, rounded."""
        return round(self.log_reduction)


class _Layout(NamedTuple):
    """The axis of the channels, and log2 of the reduction along height and width."""

    channel_dim: int
    reductions: tuple[float, ...]

    def size(self, value: Value) -> tuple[int, ...]:
        return value.shape[2:] if self.channel_dim == 1 else value.shape[1:-1]

    def reduced(self, steps: Iterable[float], channel_dim: int | None = None) -> _Layout:
        """The layout of a map that is halved this often along height and width."""
        reductions = tuple(before + step for before, step in zip(self.reductions, steps, strict=True))
        return _Layout(channel_dim or self.channel_dim, reductions)


@dataclass(frozen=True)
class Geometry:
    """The feature maps of a trace, measured against the image that it started from.

    Attributes:
        image_size: spatial size of the image, in pixels.
        gates: the tensors that only weigh others, see :func:`gate_values`.
    """

    image_size: tuple[int, ...]
    gates: set[Value] = field(repr=False)
    _layouts: dict[Value, _Layout] = field(repr=False)

    @classmethod
    def of(cls, trace: Trace) -> Geometry | None:
        """The geometry of a trace; None if it has no convolution over more than one pixel."""
        convolution = first_convolution(trace)
        if convolution is None:
            return None
        first = convolution.inputs[0]
        # The image is an argument of the model if one has the right rank: a stem may fold pixels into channels. Else,
        # or if the image is resized first, it is the input of the first convolution: detectors resize lists of images.
        images = [] if _is_resized(first) else [v for v in trace.inputs if len(v.shape) == len(first.shape)]
        image = max(images, key=lambda value: prod(value.shape[2:]), default=first)
        return cls(image.shape[2:], gate_values(trace), _Layouts(image, first).of(trace, images))

    def map_of(self, value: Value) -> FeatureMap | None:
        """The feature map that a tensor is; None if it is not one, has one pixel, or one channel (a gate)."""
        layout = self._layouts.get(value)
        if layout is None or value.shape[layout.channel_dim] == 1 or prod(layout.size(value)) == 1:
            return None
        return FeatureMap(
            value.shape[layout.channel_dim], layout.size(value), layout.channel_dim, max(0.0, *layout.reductions)
        )


class _Layouts:
    """Finds the layout of every feature map of a trace."""

    def __init__(self, image: Value, first: Value) -> None:
        self._image, self._first = image, first
        self._batches = {image.shape[0], first.shape[0]}  # windows of a map have another number
        self._layouts: dict[Value, _Layout] = {}
        self._origins: dict[Value, dict[int, Value]] = {}  # see _origins_of; a map is its own

    def of(self, trace: Trace, images: list[Value]) -> dict[Value, _Layout]:
        for value in (*images, *([self._first] if self._first.producer is None else [])):
            self._start_at(value)
        for op in trace.ops:
            for output in op.outputs:
                self._add(op, output)
        return self._layouts

    def _add(self, op: Op, output: Value) -> None:
        origins = self._origins_of(op)
        origin = origins.get(len(output.shape))
        layout = self._followed(op, output) or self._refolded(origins, output)
        is_moved = op.kind in SAME_VALUES or (op.kind in MOVES and op.inputs[0] is origin)  # and no map any more
        if layout is None and origin is not None and not is_moved and self._is_like(output, origin):
            layout = self._guessed(origin, output)
        layout = layout or self._convolved(op, output, is_new=not origins)
        if layout is not None:
            self._layouts[output] = layout
        elif output is self._first:
            self._start_at(output)
        if output in self._layouts:
            origins[len(output.shape)] = output
        if origins:
            self._origins[output] = origins

    def _origins_of(self, op: Op) -> dict[int, Value]:
        """The last maps that the inputs of an operation were computed from, for each number of axes that they have."""
        origins: dict[int, Value] = {}
        for value in op.inputs:
            for rank, origin in self._origins.get(value, {}).items():
                other = origins.setdefault(rank, origin)
                if other is not origin and self._reduction(origin) < self._reduction(other):
                    origins[rank] = origin
        return origins

    def _reduction(self, value: Value) -> tuple[tuple[float, ...], int]:
        return self._layouts[value].reductions, _place(value)

    def _start_at(self, value: Value) -> None:
        self._layouts[value] = _Layout(1, _halvings(self._image.shape[2:], value.shape[2:]))
        self._origins[value] = {len(value.shape): value}

    def _is_like(self, output: Value, value: Value) -> bool:
        """Whether two tensors have the same number of axes, and one has the images of the other or of the network."""
        return len(output.shape) == len(value.shape) and output.shape[0] in (*self._batches, value.shape[0])

    def _followed(self, op: Op, output: Value) -> _Layout | None:
        """The layout of what an operation makes of a map, if the operation tells."""
        maps = [value for value in op.inputs if value in self._layouts and self._is_like(output, value)]
        if not maps:
            return None
        source = maps[0]
        layout = self._layouts[source]
        if op.kind in MOVES:
            return _moved(op, layout, len(output.shape))
        if op.strides is not None:
            before, after = source.shape[2:], output.shape[2:]
            if op.kind in POOLS and any(old > 2 and new == 1 for old, new in zip(before, after, strict=True)):
                return None  # a mean of all of an axis
            steps = list(map(log2, op.strides[-2:]))
            return layout.reduced(steps if len(steps) > 1 else steps * len(layout.reductions), channel_dim=1)
        # Of what is added or concatenated the oldest: a shortcut is a surer way back than the branch beside it.
        same = [value for value in maps if self._layouts[value].size(value) == self._layouts[value].size(output)]
        if same:
            return self._layouts[min(same, key=_place)]
        before, after = layout.size(source), layout.size(output)
        return layout.reduced(_halvings(before, after)) if op.kind in RESIZES and _fits(before, after) else None

    def _guessed(self, origin: Value, output: Value) -> _Layout | None:
        """The layout that the shape tells, from the last map on the way."""
        layout = self._layouts[origin]
        size = layout.size(origin)
        choices = [choice for dim in (1, -1) if _fits(size, (choice := layout._replace(channel_dim=dim)).size(output))]
        if len(size) > 1:
            choices = [choice for choice in choices if choice.size(output) == size] or choices
        if not choices:
            return None
        chosen = choices[-1] if _channel_axis(output) == len(output.shape) - 1 else choices[0]
        halvings = _halvings(size, chosen.size(output))
        # A larger one is no map unless pixels are made of channels: attention scores have a number per pair of tokens.
        is_larger = min(halvings) < 0 and prod(output.shape) != prod(origin.shape)
        return None if is_larger else chosen.reduced(halvings)

    def _refolded(self, origins: dict[int, Value], output: Value) -> _Layout | None:
        """The layout of a map with another number of axes: frames that are images of their own, or axes of one pixel.

        Both have the same numbers and the same channels.
        """
        others = [origin for rank, origin in origins.items() if rank != len(output.shape)]
        origin = max(others, key=_place, default=None)
        if origin is None or prod(origin.shape) != prod(output.shape):
            return None
        layout, size, other = self._layouts[origin], origin.shape[2:], output.shape[2:]
        if layout.channel_dim != 1 or origin.shape[1:2] != output.shape[1:2]:
            return None
        if len(size) > 1 and len(other) > 1:
            return layout if size[-2:] == other[-2:] else None
        if origin.shape[0] != output.shape[0] or [n for n in size if n > 1] != [n for n in other if n > 1]:
            return None
        axis = max(range(len(size)), key=lambda axis: size[axis])
        return _Layout(1, layout.reductions[axis - len(size) :][:1] * min(len(other), 2))

    def _convolved(self, op: Op, output: Value, is_new: bool) -> _Layout | None:
        """The layout of what a convolution makes of a tensor that is not known as a map, such as a part of the image.

        With another number of axes than the image, it must have the size of the image along the axes that it has.

        Args:
            is_new: whether nothing that is known as a map is before it.
        """
        if op.kind != "convolution" or op.strides is None or output.shape[0] not in self._batches:
            return None
        of_image, size = self._image.shape[2:], op.inputs[0].shape[2:]
        axes = min(len(of_image), len(size))
        if not (_fits(of_image, size) if len(of_image) == len(size) else is_new and of_image[-axes:] == size[-axes:]):
            return None
        halvings = _halvings(of_image[-axes:], size[-axes:])
        return _Layout(1, halvings).reduced(map(log2, op.strides[-min(axes, 2) :]))


def _place(value: Value) -> int:
    """The key that sorts tensors in the order of execution."""
    return value.producer.index if value.producer is not None else -1


def _moved(op: Op, layout: _Layout, rank: int) -> _Layout | None:
    """The layout behind a permutation or transposition; None if the channels are then between other axes."""
    order = _order(op, rank)
    axis = order.index(layout.channel_dim % rank)
    if order[0] != 0 or axis not in (1, rank - 1):
        return None
    spatial = [old for old in order[1:] if old != layout.channel_dim % rank]
    reductions = layout.reductions
    if len(reductions) == 2 and spatial[-2] > spatial[-1]:
        reductions = reductions[::-1]
    return _Layout(1 if axis == 1 else -1, reductions)


def _fits(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a map of one size may be a map of another size at another resolution."""
    if prod(other) <= 1:
        return False
    if len(size) == 1:
        return True
    (short, of_short), (long, of_long) = sorted(zip(size[-2:], other[-2:], strict=True))
    return abs(of_short - of_long * short / long) <= _SIZE_TOLERANCE


def _halvings(before: Sequence[int], after: Sequence[int]) -> tuple[float, ...]:
    """How often height and width of one size must be halved to give those of another."""
    return tuple(float(round(log2(old / max(new, 1)))) for old, new in zip(before[-2:], after[-2:], strict=True))


def _is_resized(value: Value) -> bool:
    """Whether a tensor was made by resampling an argument of the model."""
    return any(v.producer is not None and v.producer.kind in RESAMPLES for v in ancestors([value]))


def _channel_axis(value: Value) -> int:
    """The axis of the channels of a tensor: behind the batch, unless they were moved on the way to it."""
    rank = len(value.shape)
    moves: list[list[int]] = []
    while value.producer is not None and value.producer.kind != "convolution":
        op = value.producer
        if len(op.inputs[0].shape) == rank and op.kind in MOVES:
            moves.append(_order(op, rank))
        value = op.inputs[0]
    axis = 1
    for order in reversed(moves):
        axis = order.index(axis)
    return axis


def _order(op: Op, rank: int) -> list[int]:
    """The axes of the input in the order in which a permutation or transposition puts them out."""
    order = list(range(rank))
    if op.kind == "permute":
        return [axis % rank for axis in op.arguments[1]]
    first, second = (axis % rank for axis in op.arguments[1:3])
    order[first], order[second] = order[second], order[first]
    return order
