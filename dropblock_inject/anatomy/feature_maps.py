"""Feature maps: which tensors are maps of the image, where their channels are, how far they are reduced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from math import log2, prod

from ..tracing.operations import MOVES, RESAMPLES, RESIZES
from ..tracing.trace import Trace, Value, ancestors, first_convolution

# In pixels: 106 pixels give maps of 4, and each convolution without padding takes some more.
_SIZE_TOLERANCE = 2


@dataclass(frozen=True)
class FeatureMap:
    """Shape of a feature map.

    Attributes:
        channels: how many.
        size: spatial size, in pixels.
        channel_dim: axis of the channels: 1 or -1.
        log_reduction: log2 of how far the image is reduced; of strides that are no powers of two no whole number.
    """

    channels: int
    size: tuple[int, ...]
    channel_dim: int
    log_reduction: float

    @property
    def level(self) -> int:
        """How often the image is halved, about."""
        return round(self.log_reduction)


@dataclass(frozen=True)
class Geometry:
    """The image that a trace started from: everything else is measured against it.

    Attributes:
        image_size: its spatial size, in pixels.
        batches: how many images there are at a time; what has another number is no map but its windows, say.
    """

    image_size: tuple[int, ...]
    batches: frozenset[int]
    _seen: dict[Value, float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, trace: Trace) -> Geometry | None:
        """The geometry of a trace; None if it has no convolution over more than one pixel."""
        convolution = first_convolution(trace)
        if convolution is None:
            return None
        first = convolution.inputs[0]
        # What the model was given if it is an image of that rank: a stem may fold pixels into channels first. Else, or
        # if the image is resized first, what the first convolution reads: detectors do that with lists of images.
        images = [] if _is_resized(first) else [v.shape for v in trace.inputs if len(v.shape) == len(first.shape)]
        image = max(images, key=lambda shape: prod(shape[2:]), default=first.shape)
        return cls(tuple(image[2:]), frozenset((first.shape[0], image[0])))

    def map_of(self, value: Value) -> FeatureMap | None:
        """The feature map that a tensor is; None if it is none, or of a single pixel, or of one channel: a gate."""
        layout = self._layout(value)
        if layout is None or value.shape[layout[0]] == 1:
            return None
        channel_dim, size = layout
        return FeatureMap(value.shape[channel_dim], size, channel_dim, max(0.0, self._log_reduction(value)))

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
        if len(size) == 1:
            return True
        (short, of_short), (long, of_long) = sorted(zip(self.image_size[-2:], size[-2:], strict=True))
        return abs(of_short - of_long * short / long) <= _SIZE_TOLERANCE

    def _log_reduction(self, value: Value) -> float:
        """log2 of the reduction: step by step along the way from the image, so that missing padding adds up to nothing.

        Where that way is lost, in windows or tokens, by the ratio of the sizes.
        """
        way = [value]
        while way[-1] not in self._seen:
            before = self._map_before(way[-1])
            if before is None:
                self._seen[way[-1]] = self._halvings(self.image_size, way[-1])
                break
            way.append(before)
        for before, after in pairwise(reversed(way)):
            self._seen[after] = self._seen[before] + self._step(before, after)
        return self._seen[value]

    def _map_before(self, value: Value) -> Value | None:
        """The map that this one was made of, if the operation says how their resolutions are related."""
        op = value.producer
        if op is None:
            return None
        maps = [v for v in op.inputs if self._layout(v)]
        # Of what is added or concatenated the oldest: a shortcut is a surer way back than the branch beside it.
        same = [v for v in maps if self._size(v) == self._size(value)]
        if same:
            return min(same, key=lambda v: v.producer.index if v.producer is not None else -1)
        return maps[0] if maps and (op.strides is not None or op.kind in RESIZES) else None

    def _step(self, before: Value, after: Value) -> float:
        strides = after.producer.strides if after.producer is not None else None
        if strides is not None:
            return _mean(map(log2, strides[-2:]))
        return self._halvings(self._size(before), after)

    def _size(self, value: Value) -> tuple[int, ...]:
        layout = self._layout(value)
        assert layout is not None
        return layout[1]

    def _halvings(self, size: tuple[int, ...], value: Value) -> int:
        """How often a map of this size must be halved to give the one that `value` is."""
        return round(_mean(map(log2, _ratios(size, self._size(value)))))


def _is_resized(value: Value) -> bool:
    """Whether it was made from what the model was given by resampling."""
    return any(v.producer is not None and v.producer.kind in RESAMPLES for v in ancestors([value]))


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
