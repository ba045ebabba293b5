"""Masks by their blocks: random numbers only for the blocks there are, and writes only where they are (CPU).

What is dropped is a few blocks in a large tensor, so nothing asks for a random number or a mask entry per element.
Seeds that are independent with probability p have geometric gaps between them: these are drawn, one for each block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import log1p, prod, sqrt

import torch
from torch import Tensor

from .spec import MaskSpec, rescale

_ADDED_AT_ONCE = 8 * 255  # flags, so that no byte of a sum of 255 integers overflows


def drop(input: Tensor, output: Tensor, seed: Tensor, scale: Tensor | None, spec: MaskSpec) -> Tensor:
    """Writes the masked and rescaled `input` to `output`, which may be the input; returns the scale.

    The mask is a function of `seed`; a `scale` that is known already is not worked out again.
    """
    maps, within = _seeds(seed, spec)
    if scale is None:
        scale = _scale(maps, within, spec)
    rescale(input, scale, output)

    strides = output.stride()
    along = tuple(strides[axis] for axis in spec.spatial)
    starts = _first_pixels(maps, strides[0], strides[spec.channel], spec)
    if within is not None:
        starts.add_(_offsets(spec.valid, along)[within])
    block, steps = spec.block, along
    if not spec.per_channel:
        block, steps = (spec.shape[spec.channel], *block), (strides[spec.channel], *along)
    last = sum((size - 1) * stride for size, stride in zip(spec.shape, strides, strict=True))
    _windows(output, last, block, steps).index_fill_(0, starts, 0)
    return scale


def _seeds(seed: Tensor, spec: MaskSpec) -> tuple[Tensor, Tensor | None]:
    """Of each seed, in order: its map, a whole number in float64, and its position there; None if there is but one."""
    positions = prod(spec.valid)
    seeds = _draw(spec.probability, spec.shape[0] * spec.masks_per_sample * positions, int(seed))
    if positions == 1:
        return seeds, None
    maps = seeds.div(positions).floor_()
    return maps, seeds.sub_(maps, alpha=positions).to(torch.int64)


def _draw(probability: float, positions: int, seed: int) -> Tensor:
    """The positions of the seeds, ascending, as whole numbers in float64."""
    misses = log1p(-probability) if probability < 1 else float("-inf")
    if misses == 0:
        return torch.empty(0, dtype=torch.float64, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    drawn, last = [], -1.0
    while last < positions - 1:
        expected = (positions - 1 - last) * probability
        count = int(expected + 4 * sqrt(expected) + 8)
        uniform = torch.rand(count, dtype=torch.float64, generator=generator, device="cpu")
        # log(0) comes once in 2 ** 53 times and ends the seeds.
        drawn.append(uniform.log_().div_(misses).add_(1).floor_().cumsum_(0).add_(last))
        last = drawn[-1][-1].item()
    seeds = torch.cat(drawn) if len(drawn) > 1 else drawn[0]
    return seeds[: int(torch.searchsorted(seeds, positions - 0.5))]


def _first_pixels(maps: Tensor, sample_stride: int, channel_stride: int, spec: MaskSpec) -> Tensor:
    """Where in memory these maps start."""
    masks = spec.masks_per_sample
    if masks == 1 or sample_stride == masks * channel_stride:
        return maps.mul(sample_stride if masks == 1 else channel_stride).to(torch.int64)
    samples = maps.div(masks).floor_()
    channels = maps.sub(samples, alpha=masks)
    return samples.mul_(sample_stride).add_(channels, alpha=channel_stride).to(torch.int64)


@lru_cache(maxsize=256)
def _offsets(valid: Sequence[int], along: Sequence[int]) -> Tensor:
    """How far from the first pixel of its map the block of each seed position starts, in memory."""
    offsets = torch.zeros((), dtype=torch.int64, device="cpu")
    for size, stride in zip(valid, along, strict=True):
        offsets = offsets.unsqueeze(-1) + torch.arange(size, device="cpu") * stride
    return offsets.flatten()


def _windows(tensor: Tensor, last: int, block: Sequence[int], steps: Sequence[int]) -> Tensor:
    """Every block there is in the memory of a tensor, by where it starts: one row each, views that overlap.

    `last` is where the last element of the tensor is, `steps` are the strides inside a block.
    """
    inside = sum((size - 1) * step for size, step in zip(block, steps, strict=True))
    return tensor.as_strided((last - inside + 1, *block), (1, *steps), tensor.storage_offset())


def _scale(maps: Tensor, within: Tensor | None, spec: MaskSpec) -> Tensor:
    if spec.rescale is None or spec.rescale == "expected":
        scale = 1.0 if spec.rescale is None else 1 / spec.keep_prob
        return torch.tensor(scale, dtype=spec.precision, device="cpu")
    area = prod(spec.block)
    crowded, covered = _overlapping(maps, within, spec)
    if spec.rescale == "batch":
        total = spec.shape[0] * spec.pixels
        lost = (len(maps) - len(crowded)) * area + _count(covered)
        return torch.tensor(total / max(total - lost, 1), dtype=spec.precision, device="cpu")
    samples = maps.div(spec.masks_per_sample).floor_().to(torch.int64)
    lost_by = torch.full((len(maps),), area, device="cpu").index_fill_(0, crowded, 0)
    lost_by_sample = torch.zeros(spec.shape[0], dtype=torch.int64, device="cpu").index_add_(0, samples, lost_by)
    covered = covered.view(-1, prod(spec.map_size))
    lost_by_sample.index_add_(0, samples[crowded[_is_first(maps[crowded])]], covered.sum(1))
    return spec.pixels / (spec.pixels - lost_by_sample).clamp_(min=1).to(spec.precision).view(spec.scale_shape)


def _overlapping(maps: Tensor, within: Tensor | None, spec: MaskSpec) -> tuple[Tensor, Tensor]:
    """The seeds whose blocks may overlap, as indices, and what those blocks cover, as flat maps one after the other."""
    nothing = torch.zeros(0, dtype=torch.int64, device="cpu")
    if within is None or prod(spec.block) == 1:
        return nothing, nothing.to(torch.bool)
    shared = maps[1:] == maps[:-1]
    in_crowd = torch.zeros(len(maps), dtype=torch.bool, device="cpu")
    in_crowd[1:] = shared
    in_crowd[:-1] |= shared
    crowded, size = in_crowd.nonzero().squeeze(1), prod(spec.map_size)
    if len(crowded) == 0:
        return nothing, nothing.to(torch.bool)
    rows = _is_first(maps[crowded]).cumsum(0).sub_(1)
    covered = torch.zeros((int(rows[-1]) + 1) * size, dtype=torch.bool, device="cpu")
    along = tuple(prod(spec.map_size[axis + 1 :]) for axis in range(len(spec.map_size)))
    starts = rows.mul_(size).add_(_offsets(spec.valid, along)[within[crowded]])
    _windows(covered, len(covered) - 1, spec.block, along).index_fill_(0, starts, True)
    return crowded, covered


def _count(flags: Tensor) -> int:
    """How many of many flags are set: eight at a time, as the bytes of one integer."""
    whole = len(flags) // _ADDED_AT_ONCE * _ADDED_AT_ONCE
    words = flags[:whole].view(torch.int64).view(-1, _ADDED_AT_ONCE // 8)
    return int(words.sum(1).view(torch.uint8).sum()) + int(flags[whole:].sum())


def _is_first(maps: Tensor) -> Tensor:
    """Which seeds are the first of their map."""
    first = torch.ones(len(maps), dtype=torch.bool, device="cpu")
    first[1:] = maps[1:] != maps[:-1]
    return first
