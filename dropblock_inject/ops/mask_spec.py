"""The parameters of a mask without its random numbers: the input of all three backends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .gamma import gamma

Rescale = Literal["batch", "sample", "expected"] | None


class Options(NamedTuple):
    """The arguments of :func:`dropblock_inject.drop_block` that describe the mask, except `keep_prob`.

    `block_size` is the one in force: one int per spatial axis, none larger than the map.
    """

    block_size: tuple[int, ...]
    per_channel: bool
    rescale: Rescale
    calibrated: bool
    channel_dim: int


@dataclass(frozen=True)
class MaskSpec:
    """The masks of one tensor: blocks of one size, whose seeds are drawn independently with one probability.

    Attributes:
        shape: shape of the tensor.
        channel: axis of the channels.
        block: size of a block in pixels, per spatial axis.
        keep_prob: share of the map to keep, in (0, 1).
        probability: gamma, the probability that a position is the seed of a block.
        per_channel: whether each channel has its own seeds.
        rescale: see :func:`dropblock_inject.drop_block`.
        precision: dtype of the scale, fp32 or fp64.
    """

    shape: tuple[int, ...]
    channel: int
    block: tuple[int, ...]
    keep_prob: float
    probability: float
    per_channel: bool
    rescale: Rescale
    precision: torch.dtype

    @cached_property
    def spatial(self) -> tuple[int, ...]:
        """The spatial axes."""
        return tuple(axis for axis in range(1, len(self.shape)) if axis != self.channel)

    @cached_property
    def map_size(self) -> tuple[int, ...]:
        """Size of the map in pixels, per spatial axis."""
        return tuple(self.shape[axis] for axis in self.spatial)

    @cached_property
    def valid(self) -> tuple[int, ...]:
        """Number of positions, per spatial axis, at which a block can start without being cut off."""
        return tuple(size - block + 1 for size, block in zip(self.map_size, self.block, strict=True))

    @cached_property
    def masks_per_sample(self) -> int:
        return self.shape[self.channel] if self.per_channel else 1

    @cached_property
    def pixels(self) -> int:
        """Number of pixels in the masks of one sample."""
        return self.masks_per_sample * prod(self.map_size)

    @cached_property
    def may_overlap(self) -> bool:
        """Whether two blocks can have a pixel in common."""
        return any(block > 1 and valid > 1 for block, valid in zip(self.block, self.valid, strict=True))

    @cached_property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the scale: one number for the tensor, or one per sample."""
        return (self.shape[0], *(1 for _ in self.shape[1:])) if self.rescale == "sample" else ()


@lru_cache(maxsize=1024)
def mask_spec(shape: tuple[int, ...], dtype: torch.dtype, keep_prob: float, options: Options) -> MaskSpec:
    """The masks of a tensor of this shape and dtype."""
    block, per_channel, rescale, calibrated, channel_dim = options
    channel = channel_dim % len(shape)
    map_size = tuple(size for axis, size in enumerate(shape) if axis not in (0, channel))
    probability = gamma(keep_prob, map_size, block, calibrated)
    precision = torch.promote_types(dtype, torch.float32)
    return MaskSpec(shape, channel, block, keep_prob, probability, per_channel, rescale, precision)


def scale_for(dropped: Tensor, spec: MaskSpec) -> Tensor:
    """The scale that keeps the expectation.

    Args:
        dropped (Tensor[N]): number of dropped pixels in the masks of each sample. With `rescale` "expected" or None
            only its device matters.
    """
    if spec.rescale is None or spec.rescale == "expected":
        largest = torch.finfo(spec.precision).max  # an infinite scale would make NaN of a zero
        scale = 1.0 if spec.rescale is None else min(1 / spec.keep_prob, largest)
        return torch.full((), scale, dtype=spec.precision, device=dropped.device)
    total = spec.pixels
    if spec.rescale == "batch":
        total, dropped = total * spec.shape[0], dropped.sum()
    return (total / (total - dropped).clamp(min=1).to(spec.precision)).view(spec.scale_shape)


def rescale(input: Tensor, scale: Tensor, output: Tensor | None) -> Tensor:
    """Writes ``input * scale`` to `output`, which may be the input, or to a new tensor. One pass, in fp32 or fp64."""
    if scale.dim() or not scale.is_cpu:
        scale = scale.view(scale.shape or (1,) * input.dim())  # torch rounds a tensor without axes to half precision
        return torch.mul(input, scale, out=torch.empty_like(input) if output is None else output)
    factor = scale.item()  # torch multiplies faster by a number than by a tensor
    if output is None:
        return input * factor
    if factor != 1:
        return torch.mul(input, factor, out=output)
    return output if output is input else output.copy_(input)
