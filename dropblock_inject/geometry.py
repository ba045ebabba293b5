"""Feature maps: which tensors are maps of the image, where their channels are, how far they are reduced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from math import log2, prod

from .kinds import MOVES
from .trace import Trace, Value

_ASPECT_TOLERANCE = (
    1.6  # how far the reductions of two axes may differ: 106 px give maps of 4, an odd map of 3 one of 2
)


@dataclass(frozen=True)
class FeatureMap:
    """Shape of a feature map: channels, spatial size in pixels, axis of the channels (1 or -1), log2 of reduction."""

    channels: int
    size: tuple[int, ...]
    channel_dim: int
    level: int


@dataclass(frozen=True)
class Geometry:
    """The image that a trace started from: everything else is measured against it.

    Attributes:
        image_size: its spatial size, in pixels.
        batches: how many images there are at a time; what has another number is no map but its windows, say.
    """

    image_size: tuple[int, ...]
    batches: frozenset[int]
    _levels: dict[Value, int] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, trace: Trace) -> Geometry | None:
        """The geometry of a trace; None if it has no convolution over more than one pixel."""
        for op in trace.ops:
            if op.kind == "convolution" and op.inputs and prod(op.inputs[0].shape[2:]) > 1:
                first = op.inputs[0].shape
                break
        else:
            return None
        # What the model was given if it is an image of that rank: a stem may fold pixels into channels first.
        # Else what the first convolution reads: detectors take lists of images and resize them.
        images = [value.shape for value in trace.inputs if len(value.shape) == len(first)]
        image = max(images, key=lambda shape: prod(shape[2:]), default=first)
        return cls(tuple(image[2:]), frozenset((first[0], image[0])))

    def map_of(self, value: Value) -> FeatureMap | None:
        """The feature map that a tensor is; None if it is none, or of a single pixel."""
        layout = self._layout(value)
        if layout is None:
            return None
        channel_dim, size = layout
        return FeatureMap(value.shape[channel_dim], size, channel_dim, max(0, self._level(value)))

    def _layout(self, value: Value) -> tuple[int, tuple[int, ...]] | None:
        """The axis of the channels and the spatial size."""
        shape = value.shape
        if len(shape) != len(self.image_size) + 2 or shape[0] not in self.batches:
            return None
        fitting = [
            (channel_dim, tuple(size))
            for channel_dim, size in ((1, shape[2:]), (-1, shape[1:-1]))
            if prod(size) > 1 and self._keeps_aspect(size)
        ]
        if len(fitting) == 2 and _channel_axis(value) == len(shape) - 1:
            return fitting[1]
        return fitting[0] if fitting else None

    def _keeps_aspect(self, size: tuple[int, ...]) -> bool:
        ratios = _ratios(self.image_size, size)
        return max(ratios) <= _ASPECT_TOLERANCE * min(ratios)

    def _level(self, value: Value) -> int:
        """log2 of the reduction: step by step along the way from the image, so that missing padding adds up to nothing.

        Where that way is lost, in windows or tokens, by the ratio of the sizes.
        """
        way = [value]
        while way[-1] not in self._levels:
            producer = way[-1].producer
            maps = [v for v in producer.inputs if self._layout(v)] if producer is not None else []
            if not maps:
                self._levels[way[-1]] = self._halvings(self.image_size, way[-1])
                break
            way.append(maps[0])
        for before, after in pairwise(reversed(way)):
            self._levels[after] = self._levels[before] + self._step(before, after)
        return self._levels[value]

    def _step(self, before: Value, after: Value) -> int:
        strides = after.producer.strides if after.producer is not None else None
        if strides is not None:
            return round(_mean(map(log2, strides[-2:])))
        layout = self._layout(before)
        assert layout is not None
        return self._halvings(layout[1], after)

    def _halvings(self, size: tuple[int, ...], value: Value) -> int:
        """How often a map of this size must be halved to give the one that `value` is."""
        layout = self._layout(value)
        assert layout is not None
        return round(_mean(map(log2, _ratios(size, layout[1]))))


def _channel_axis(value: Value) -> int:
    """Where the channels of a tensor are: behind the batch, unless they were moved there on the way to it."""
    rank = len(value.shape)
    moves: list[list[int]] = []
    while value.producer is not None and value.producer.kind != "convolution":
        op = value.producer
        if len(op.inputs[0].shape) == rank and op.kind in MOVES:
            order = list(range(rank))
            if op.kind == "permute":
                order = [axis % rank for axis in op.arguments[1]]
            else:
                first, second = (axis % rank for axis in op.arguments[1:3])
                order[first], order[second] = order[second], order[first]
            moves.append(order)
        value = op.inputs[0]
    axis = 1
    for order in reversed(moves):
        axis = order.index(axis)
    return axis


def _mean(numbers: Iterable[float]) -> float:
    listed = list(numbers)
    return sum(listed) / len(listed)


def _ratios(image: tuple[int, ...], size: tuple[int, ...]) -> list[float]:
    # Of video only height and width: time is reduced on its own.
    return [before / max(after, 1) for before, after in zip(image[-2:], size[-2:], strict=True)]
