"""Masks by their blocks: random numbers only for the blocks there are, and writes only where they are (CPU).

What is dropped is a few blocks in a large tensor, so nothing asks for a random number or a mask entry per element.
Seeds that are independent with probability p have geometric gaps between them: these are drawn, one for each block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log1p, prod, sqrt

import torch
from torch import Tensor

from .spec import MaskSpec, rescale


def drop(input: Tensor, output: Tensor, seed: Tensor, scale: Tensor | None, spec: MaskSpec) -> Tensor:
    """Writes the masked and rescaled `input` to `output`, which may be the input; returns the scale.

    The mask is a function of `seed`; a `scale` that is known already is not worked out again.
    """
    per_map = prod(spec.valid)
    seeds = _draw(spec.probability, spec.shape[0] * spec.masks_per_sample * per_map, int(seed))
    maps = seeds.div(per_map).floor_()
    within = seeds.sub_(maps, alpha=per_map).to(torch.int64)
    if scale is None:
        scale = _scale(maps, within, spec)
    rescale(input, scale, output)

    strides = output.stride()
    along = [strides[axis] for axis in spec.spatial]
    samples = maps.div(spec.masks_per_sample).floor_()
    channels = maps.sub_(samples, alpha=spec.masks_per_sample)
    starts = samples.mul_(strides[0]).add_(channels, alpha=strides[spec.channel]).to(torch.int64)
    block, steps = list(spec.block), along
    if not spec.per_channel:
        block, steps = [spec.shape[spec.channel], *block], [strides[spec.channel], *along]
    last = sum((size - 1) * stride for size, stride in zip(spec.shape, strides, strict=True))
    windows = _windows(output, last, block, steps)
    windows.index_fill_(0, starts.add_(_starts(spec.valid, along)[within]), 0)
    return scale


def _draw(probability: float, positions: int, seed: int) -> Tensor:
    """The positions of the seeds, ascending, as whole numbers in float64."""
    misses = log1p(-probability) if probability < 1 else float("-inf")
    if misses == 0:
        return torch.empty(0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn, last = [], -1.0
    while last < positions - 1:
        expected = (positions - 1 - last) * probability
        uniform = torch.rand(int(expected + 4 * sqrt(expected) + 8), dtype=torch.float64, generator=generator)
        gaps = uniform.neg_().log1p_().div_(misses).floor_().add_(1)
        drawn.append(gaps.cumsum_(0).add_(last))
        last = drawn[-1][-1].item()
    seeds = torch.cat(drawn)
    return seeds[: int(torch.searchsorted(seeds, positions - 0.5))]


def _scale(maps: Tensor, within: Tensor, spec: MaskSpec) -> Tensor:
    if spec.rescale is None or spec.rescale == "expected":
        return torch.tensor(1.0 if spec.rescale is None else 1 / spec.keep_prob, dtype=spec.precision)
    with_seeds, lost = _lost(maps, within, spec)
    if spec.rescale == "batch":
        total = spec.shape[0] * spec.pixels
        return total / (total - lost.sum()).clamp_(min=1).to(spec.precision)
    kept = torch.full((spec.shape[0],), spec.pixels)
    kept.index_add_(0, with_seeds.div(spec.masks_per_sample).floor_().to(torch.int64), lost, alpha=-1)
    return spec.pixels / kept.clamp_(min=1).to(spec.precision).view(spec.scale_shape)


def _lost(maps: Tensor, within: Tensor, spec: MaskSpec) -> tuple[Tensor, Tensor]:
    """The maps that have seeds, and how many pixels of each are dropped. Blocks that overlap are counted once."""
    with_seeds, counts = torch.unique_consecutive(maps, return_counts=True)
    area = prod(spec.block)
    lost = counts * area
    if area > 1 and prod(spec.valid) > 1:
        pairs = counts == 2
        first = (counts.cumsum(0) - counts)[pairs]
        overlap = torch.ones_like(first)
        for distance, block in zip(_distances(within, first, spec.valid), reversed(spec.block), strict=True):
            overlap.mul_((block - distance).clamp_(min=0))
        lost[pairs] -= overlap
        many = counts > 2
        rows = many.cumsum(0).sub_(1).repeat_interleave(counts)
        in_many = many.repeat_interleave(counts)
        lost[many] = _covered(rows[in_many], within[in_many], spec)
    return with_seeds, lost


def _distances(within: Tensor, first: Tensor, valid: Sequence[int]) -> Iterator[Tensor]:
    """How far apart the seeds `first` and ``first + 1`` of a map are, axis by axis from the last."""
    one, other = within[first], within[first + 1]
    for size in reversed(valid):
        yield (one % size - other % size).abs_()
        one, other = one // size, other // size


def _covered(rows: Tensor, within: Tensor, spec: MaskSpec) -> Tensor:
    """How many pixels of each of some maps blocks cover; seed `i` is in map ``rows[i]``, and they are ascending."""
    count, size = int(rows[-1]) + 1 if len(rows) else 0, prod(spec.map_size)
    covered = torch.zeros(count, size, dtype=torch.bool)
    if count:
        along = [prod(spec.map_size[axis + 1 :]) for axis in range(len(spec.map_size))]
        windows = _windows(covered, count * size - 1, spec.block, along)
        windows.index_fill_(0, rows.mul_(size).add_(_starts(spec.valid, along)[within]), True)
    return covered.sum(1)


def _starts(valid: Sequence[int], along: Sequence[int]) -> Tensor:
    """Where in memory the block of each seed position of a map starts."""
    starts = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(valid, along, strict=True):
        starts = starts.unsqueeze(-1) + torch.arange(size) * stride
    return starts.flatten()


def _windows(tensor: Tensor, last: int, block: Sequence[int], steps: Sequence[int]) -> Tensor:
    """Every block there is in the memory of a tensor, by where it starts: one row each, views that overlap.

    `last` is where the last element of the tensor is, `steps` are the strides inside a block.
    """
    inside = sum((size - 1) * step for size, step in zip(block, steps, strict=True))
    return tensor.as_strided((last - inside + 1, *block), (1, *steps), tensor.storage_offset())
