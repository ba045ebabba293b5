"""Feature maps: which tensors are maps of the image, where their channels are, how far they are reduced."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2, prod

from .trace import Trace

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

    def map_of(self, shape: tuple[int, ...]) -> FeatureMap | None:
        """The feature map a tensor of this shape is; None if it is none, or of a single pixel."""
        if len(shape) != len(self.image_size) + 2 or shape[0] not in self.batches:
            return None
        for channel_dim, size in ((1, shape[2:]), (-1, shape[1:-1])):
            if prod(size) > 1 and self._keeps_aspect(size):
                return FeatureMap(shape[channel_dim], tuple(size), channel_dim, self._level(size))
        return None

    def _ratios(self, size: tuple[int, ...]) -> list[float]:
        # Of video only height and width: time is reduced on its own.
        return [image / length for image, length in zip(self.image_size[-2:], size[-2:], strict=True)]

    def _keeps_aspect(self, size: tuple[int, ...]) -> bool:
        ratios = self._ratios(size)
        return max(ratios) <= _ASPECT_TOLERANCE * min(ratios)

    def _level(self, size: tuple[int, ...]) -> int:
        return max(0, round(sum(map(log2, self._ratios(size))) / len(self._ratios(size))))
