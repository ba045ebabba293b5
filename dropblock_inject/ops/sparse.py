"""Masks as lists of blocks, for the CPU: one random number per block, and writes where the blocks are.

The blocks are few in a large tensor, so a random number or a mask entry per element would be a waste. Seeds that are
independent with one probability have geometric gaps between them. The gaps are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod, sqrt

import torch
from torch import Tensor

from .mask_spec import MaskSpec, rescale, scale_for

_FLAGS_PER_SUM = 8 * 255  # eight flags in an integer: no byte of a sum of 255 of them overflows


def drop(
    input: Tensor, output: Tensor, seed: Tensor, scale: Tensor | None, blocks: Tensor | None, spec: MaskSpec
) -> tuple[Tensor, Tensor]:
    """Writes the masked and rescaled `input` to `output`, which may be the input. Returns the scale and the blocks.

    The mask is a function of `seed`. What is given of scale and blocks is not computed again.

    Args:
        blocks (Tensor[blocks]): offsets in the memory of `output`, at which the blocks start.
    """
    if scale is None or blocks is None:
        maps, positions = _draw_seeds(seed, spec)
        blocks = _offsets(maps, positions, output.stride(), spec)
        scale = _scale(maps, positions, spec) if scale is None else scale
    rescale(input, scale, output)
    strides = output.stride()
    block, steps = spec.block, tuple(strides[axis] for axis in spec.spatial)
    if not spec.per_channel:
        block, steps = (spec.shape[spec.channel], *block), (strides[spec.channel], *steps)
    last = sum((size - 1) * stride for size, stride in zip(spec.shape, strides, strict=True))
    _windows(output, last, block, steps).index_fill_(0, blocks, 0)
    return scale, blocks


def _draw_seeds(seed: Tensor, spec: MaskSpec) -> tuple[Tensor, Tensor | None]:
    """For each seed the index of its map, and its position in the map. None if a map has one position."""
    per_map = prod(spec.valid)
    drawn = _draw(spec.probability, spec.shape[0] * spec.masks_per_sample * per_map, int(seed))
    if per_map == 1:
        return drawn, None
    maps = drawn.div(per_map).floor_()
    return maps, drawn.sub_(maps, alpha=per_map).to(torch.int64)


def _draw(probability: float, positions: int, seed: int) -> Tensor:
    """The seeds among `positions` positions: ascending integers in float64."""
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


def _offsets(maps: Tensor, positions: Tensor | None, strides: Sequence[int], spec: MaskSpec) -> Tensor:
    """The offsets in memory of the blocks of these seeds."""
    offsets = _map_offsets(maps, strides[0], strides[spec.channel], spec)
    if positions is None:
        return offsets
    return offsets.add_(_offsets_in_map(spec.valid, tuple(strides[axis] for axis in spec.spatial))[positions])


def _map_offsets(maps: Tensor, sample_stride: int, channel_stride: int, spec: MaskSpec) -> Tensor:
    """The offsets in memory of the first pixels of these maps."""
    masks = spec.masks_per_sample
    if masks == 1 or sample_stride == masks * channel_stride:
        return maps.mul(sample_stride if masks == 1 else channel_stride).to(torch.int64)
    samples = maps.div(masks).floor_()
    channels = maps.sub(samples, alpha=masks)
    return samples.mul_(sample_stride).add_(channels, alpha=channel_stride).to(torch.int64)


@lru_cache(maxsize=256)
def _offsets_in_map(valid: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """For each position in a map, the offset in memory of its block from the first pixel of the map."""
    offsets = torch.zeros((), dtype=torch.int64, device="cpu")
    for size, stride in zip(valid, strides, strict=True):
        offsets = offsets.unsqueeze(-1) + torch.arange(size, device="cpu") * stride
    return offsets.flatten()


def _windows(tensor: Tensor, last: int, block: Sequence[int], steps: Sequence[int]) -> Tensor:
    """A view with one row per offset in the memory of `tensor`: the block that starts there. Rows overlap.

    Args:
        last: offset of the last element of the tensor.
        block, steps: shape and strides of a block.
    """
    inside = sum((size - 1) * step for size, step in zip(block, steps, strict=True))
    return tensor.as_strided((last - inside + 1, *block), (1, *steps), tensor.storage_offset())


def _scale(maps: Tensor, positions: Tensor | None, spec: MaskSpec) -> Tensor:
    if spec.rescale is None or spec.rescale == "expected":
        return scale_for(maps, spec)
    samples, area = spec.shape[0], prod(spec.block)
    if area == 1:
        positions = None  # blocks cannot overlap
    if spec.rescale == "batch":
        total = samples * spec.pixels
        dropped = len(maps) * area if positions is None else _count_dropped(maps, positions, spec)
        return torch.tensor(total / max(total - dropped, 1), dtype=spec.precision, device="cpu")
    if positions is None:
        per_sample = maps.div(spec.masks_per_sample).floor_().to(torch.int64).bincount(minlength=samples) * area
    else:
        flags = _dropped_flags(maps.to(torch.int64), positions, samples * spec.masks_per_sample, spec)
        per_sample = flags.view(samples, -1).sum(1)
    return scale_for(per_sample, spec)


def _count_dropped(maps: Tensor, positions: Tensor, spec: MaskSpec) -> int:
    """The number of dropped pixels. Only blocks that may overlap are counted pixel by pixel."""
    # The seeds of a map are in row-major order: blocks overlap only if a seed is less than the height of a block behind
    # the one before it.
    near = positions[1:] - positions[:-1] < spec.block[0] * prod(spec.valid[1:])
    near.logical_and_(maps[1:] == maps[:-1])
    is_crowded = torch.zeros(len(maps), dtype=torch.bool, device="cpu")
    is_crowded[1:] = near
    is_crowded[: len(near)] |= near
    crowded = is_crowded.nonzero().squeeze(1)
    alone = (len(maps) - len(crowded)) * prod(spec.block)
    if len(crowded) == 0:
        return alone
    maps = maps[crowded]
    rows = torch.zeros(len(crowded), dtype=torch.int64, device="cpu")
    torch.cumsum(maps[1:] != maps[:-1], 0, out=rows[1:])
    return alone + _count_set(_dropped_flags(rows, positions[crowded], int(rows[-1]) + 1, spec))


def _dropped_flags(maps: Tensor, positions: Tensor, count: int, spec: MaskSpec) -> Tensor:
    """Whether each pixel of `count` maps is dropped, as one flat tensor of bool."""
    size = prod(spec.map_size)
    strides = tuple(prod(spec.map_size[axis + 1 :]) for axis in range(len(spec.map_size)))
    flags = torch.zeros(count * size, dtype=torch.bool, device="cpu")
    starts = maps.mul(size).add_(_offsets_in_map(spec.valid, strides)[positions])
    _windows(flags, len(flags) - 1, spec.block, strides).index_fill_(0, starts, True)
    return flags


def _count_set(flags: Tensor) -> int:
    """The number of flags that are set. Eight flags are added at a time, as the bytes of one integer."""
    whole = len(flags) // _FLAGS_PER_SUM * _FLAGS_PER_SUM
    words = flags[:whole].view(torch.int64).view(-1, _FLAGS_PER_SUM // 8)
    return int(words.sum(1).view(torch.uint8).sum()) + int(flags[whole:].sum())
