"""Masks as dense tensors, by plain operations of torch. This backend serves every device and defines what a mask is."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from .mask_spec import MaskSpec, rescale, scale_for

_UNIFORM_BITS = 53
# The constants of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) as signed integers.
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def drop(input: Tensor, output: Tensor, seed: Tensor, scale: Tensor | None, spec: MaskSpec) -> Tensor:
    """Writes the masked and rescaled `input` to `output`, which may be the input. Returns the scale.

    The mask is a function of `seed`. The scale is counted if `scale` is None.
    """
    dropped = dropped_pixels(seed, spec)
    if scale is None:
        scale = scale_for(dropped.flatten(1).sum(1), spec)
    rescale(input, scale, output)
    output.masked_fill_(dropped, 0)
    return scale


def dropped_pixels(seed: Tensor, spec: MaskSpec) -> Tensor:
    """Bool mask of the dropped pixels. A seed is where a uniform number is below gamma, and grows to a block."""
    shape = list(spec.shape)
    shape[spec.channel] = spec.masks_per_sample
    for axis, size in zip(spec.spatial, spec.valid, strict=True):
        shape[axis] = size
    seeds = _random_bits(seed, prod(shape)).view(shape) < round(spec.probability * 2**_UNIFORM_BITS)
    return _grow(seeds, spec.spatial, spec.block)


def _random_bits(seed: Tensor, count: int) -> Tensor:
    """`count` random integers below 2 ** 53. They depend on the seed alone, on every device, and need no generator."""
    bits = torch.arange(1, count + 1, device=seed.device).mul_(_GOLDEN).add_(seed)
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits.bitwise_xor_(_shifted(bits, shift)).mul_(factor)
    return bits.bitwise_xor_(_shifted(bits, 31)).bitwise_and_((1 << _UNIFORM_BITS) - 1)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """A logical shift to the right. The shift of torch is arithmetic."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _grow(seeds: Tensor, axes: Sequence[int], block: Sequence[int]) -> Tensor:
    """Bool mask in which a block starts at every seed: the OR over a window, axis by axis."""
    for axis, size in zip(axes, block, strict=True):
        padding = [0, 0] * (seeds.dim() - axis - 1) + [size - 1, size - 1]
        seeds = F.pad(seeds, padding) if size > 1 else seeds
        window = 1
        while window < size:  # the window doubles: a block of 7 takes 3 steps
            shift = min(window, size - window)
            length = seeds.shape[axis] - shift
            seeds = seeds.narrow(axis, 0, length) | seeds.narrow(axis, shift, length)
            window += shift
    return seeds
