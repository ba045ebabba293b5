"""Masks by their blocks: random numbers only for the blocks there are, and writes only where they are (CPU).

What is dropped is a few blocks in a large tensor, so nothing asks for a random number or a mask entry per element.
Seeds that are independent with probability p have geometric gaps between them: these are drawn, one for each block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import prod, sqrt

import torch
from torch import Tensor

from .mask_spec import MaskSpec, rescale, scale_for

_ADDED_AT_ONCE = 8 * 255  # flags, so that no byte of a sum of 255 integers overflows


def find_blocks(strides: Sequence[int], seed: Tensor, spec: MaskSpec) -> tuple[Tensor, Callable[[], Tensor]]:
    """Where in a tensor of these strides the blocks start, as offsets in its memory; and how to get at the scale.

    The blocks are a function of `seed`.
    """
    positions = prod(spec.valid)
    maps = _draw(spec.probability, spec.shape[0] * spec.masks_per_sample * positions, int(seed))
    within = None
    if positions > 1:
        seeds, maps = maps, maps.div(positions).floor_()
        within = seeds.sub_(maps, alpha=positions).to(torch.int64)
    return _offsets(maps, within, strides, spec), partial(_scale, maps, within, spec)


def mask(input: Tensor, output: Tensor, blocks: Tensor, scale: Tensor, spec: MaskSpec) -> None:
    """Writes ``input * scale`` to `output`, with zeros where the blocks are."""
    rescale(input, scale, output)
    strides = output.stride()
    block, steps = spec.block, tuple(strides[axis] for axis in spec.spatial)
    if not spec.per_channel:
        block, steps = (spec.shape[spec.channel], *block), (strides[spec.channel], *steps)
    last = sum((size - 1) * stride for size, stride in zip(spec.shape, strides, strict=True))
    _windows(output, last, block, steps).index_fill_(0, blocks, 0)


def _draw(probability: float, positions: int, seed: int) -> Tensor:
    """The positions of the seeds, ascending, as whole numbers in float64."""
    if probability >= 1:
        return torch.arange(positions, dtype=torch.float64, device="cpu")
    if 1 - probability == 1:
        return torch.empty(0, dtype=torch.float64, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    expected = positions * probability
    gaps = torch.empty(int(expected + 4 * sqrt(expected) + 8), dtype=torch.float64, device="cpu")
    drawn = []
    last = -1.0
    while True:
        drawn.append(gaps.geometric_(probability, generator=generator).cumsum(0).add_(last))
        wanted = int(torch.searchsorted(drawn[-1], positions - 0.5))
        if wanted < len(gaps):
            drawn[-1] = drawn[-1][:wanted]
            return torch.cat(drawn) if len(drawn) > 1 else drawn[0]
        last = drawn[-1][-1].item()


def _offsets(maps: Tensor, within: Tensor | None, strides: Sequence[int], spec: MaskSpec) -> Tensor:
    """Where in memory blocks start."""
    offsets = _first_pixels(maps, strides[0], strides[spec.channel], spec)
    if within is None:
        return offsets
    return offsets.add_(_in_map(spec.valid, tuple(strides[axis] for axis in spec.spatial))[within])


def _first_pixels(maps: Tensor, sample_stride: int, channel_stride: int, spec: MaskSpec) -> Tensor:
    """Where in memory these maps start."""
    masks = spec.masks_per_sample
    if masks == 1 or sample_stride == masks * channel_stride:
        return maps.mul(sample_stride if masks == 1 else channel_stride).to(torch.int64)
    samples = maps.div(masks).floor_()
    channels = maps.sub(samples, alpha=masks)
    return samples.mul_(sample_stride).add_(channels, alpha=channel_stride).to(torch.int64)


@lru_cache(maxsize=256)
def _in_map(valid: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """How far from the first pixel of its map the block of each seed position starts, in memory."""
    offsets = torch.zeros((), dtype=torch.int64, device="cpu")
    for size, stride in zip(valid, strides, strict=True):
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
        return scale_for(maps, spec)  # nothing need be counted
    samples, area = spec.shape[0], prod(spec.block)
    if area == 1:
        within = None  # as if there were one position in a map: blocks cannot overlap
    if spec.rescale == "batch":
        total = samples * spec.pixels
        lost = len(maps) * area if within is None else _count(maps, within, spec)
        return torch.tensor(total / max(total - lost, 1), dtype=spec.precision, device="cpu")
    if within is None:
        lost_by = maps.div(spec.masks_per_sample).floor_().to(torch.int64).bincount(minlength=samples) * area
    else:
        covered = _covered(maps.to(torch.int64), within, samples * spec.masks_per_sample, spec)
        lost_by = covered.view(samples, -1).sum(1)
    return scale_for(lost_by, spec)


def _count(maps: Tensor, within: Tensor, spec: MaskSpec) -> int:
    """How many pixels are in a block: of those blocks that may overlap counted one by one."""
    # Seeds come row by row: of those that a block lies over, each is less than a block's height behind the one before.
    near = within[1:] - within[:-1] < spec.block[0] * prod(spec.valid[1:])
    near.logical_and_(maps[1:] == maps[:-1])
    crowded = torch.zeros(len(maps), dtype=torch.bool, device="cpu")
    crowded[1:] = near
    crowded[: len(near)] |= near
    crowd = crowded.nonzero().squeeze(1)
    alone = (len(maps) - len(crowd)) * prod(spec.block)
    if len(crowd) == 0:
        return alone
    maps = maps[crowd]
    rows = torch.zeros(len(crowd), dtype=torch.int64, device="cpu")
    torch.cumsum(maps[1:] != maps[:-1], 0, out=rows[1:])
    return alone + _count_set(_covered(rows, within[crowd], int(rows[-1]) + 1, spec))


def _covered(rows: Tensor, within: Tensor, count: int, spec: MaskSpec) -> Tensor:
    """Which pixels of `count` maps are in a block, all in one row; the seeds are in these maps at these positions."""
    size = prod(spec.map_size)
    along = tuple(prod(spec.map_size[axis + 1 :]) for axis in range(len(spec.map_size)))
    covered = torch.zeros(count * size, dtype=torch.bool, device="cpu")
    starts = rows.mul(size).add_(_in_map(spec.valid, along)[within])
    _windows(covered, len(covered) - 1, spec.block, along).index_fill_(0, starts, True)
    return covered


def _count_set(flags: Tensor) -> int:
    """How many of many flags are set: eight at a time, as the bytes of one integer."""
    whole = len(flags) // _ADDED_AT_ONCE * _ADDED_AT_ONCE
    words = flags[:whole].view(torch.int64).view(-1, _ADDED_AT_ONCE // 8)
    return int(words.sum(1).view(torch.uint8).sum()) + int(flags[whole:].sum())
