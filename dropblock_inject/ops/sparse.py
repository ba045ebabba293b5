"""Masks as lists of blocks, for the CPU: one random number per block, and writes where the blocks are.

The blocks are few in a large tensor, so a random number or a mask entry per element would be a waste. Seeds that are
independent with one probability have geometric gaps between them. The gaps are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import Tensor

from .block_layout import BlockLayout, layout_of, layout_of_masks
from .mask_spec import MaskSpec, rescale, scale_for

_FLAGS = 1 << 20  # that are counted at a time


def drop(
    input: Tensor, output: Tensor | None, seed: Tensor, scale: Tensor | None, blocks: Tensor | None, spec: MaskSpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the masked and rescaled `input` to `output`, which may be the input, or to a new tensor.

    The mask is a function of `seed`. What is given of scale and blocks is not computed again.

    Args:
        blocks (Tensor[blocks]): indices of the blocks in the layout of `output`.

    Returns:
        The output, the scale and the blocks.
    """
    if output is None and not input.is_contiguous():
        output = torch.empty_like(input)
    layout = layout_of(input.stride() if output is None else output.stride(), spec)
    if scale is None or blocks is None:
        seeds = _draw(spec.probability, spec.shape[0] * spec.masks_per_sample * prod(spec.valid), int(seed))
        blocks = layout.blocks(seeds)
        scale = _scale(seeds, blocks, layout, spec) if scale is None else scale
    output = rescale(input, scale, output)
    layout.fill(output, blocks, 0)
    return output, scale, blocks


def _draw(probability: float, positions: int, seed: int) -> Tensor:
    """The seeds among `positions` positions, in ascending order."""
    if probability >= 1:
        return torch.arange(positions, device="cpu")
    if 1 - probability == 1:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    expected = positions * probability
    gaps = torch.empty(int(expected + 4 * sqrt(expected) + 8), dtype=torch.int64, device="cpu")
    drawn = []
    last = -1
    while True:
        drawn.append(gaps.geometric_(probability, generator=generator).cumsum(0).add_(last))
        wanted = int(torch.searchsorted(drawn[-1], positions))
        if wanted < len(gaps):
            drawn[-1] = drawn[-1][:wanted]
            return torch.cat(drawn) if len(drawn) > 1 else drawn[0]
        last = int(drawn[-1][-1])


def _scale(seeds: Tensor, blocks: Tensor, layout: BlockLayout, spec: MaskSpec) -> Tensor:
    if spec.rescale is None or spec.rescale == "expected":
        return scale_for(seeds, spec)
    samples, total = spec.shape[0], spec.shape[0] * spec.pixels
    if spec.rescale == "batch":
        dropped = _count_dropped(seeds, blocks, layout, spec) if spec.may_overlap else len(seeds) * prod(spec.block)
        return torch.scalar_tensor(total / max(total - dropped, 1), dtype=spec.precision, device="cpu")
    if spec.may_overlap:
        flags = torch.zeros(samples, spec.pixels, dtype=torch.bool, device="cpu")
        masks = layout_of_masks(spec, total)
        masks.fill(flags, masks.blocks(seeds), True)
        return scale_for(flags.sum(1), spec)
    of_sample = seeds.div(spec.masks_per_sample * prod(spec.valid), rounding_mode="floor")
    return scale_for(of_sample.bincount(minlength=samples) * prod(spec.block), spec)


def _count_dropped(seeds: Tensor, blocks: Tensor, layout: BlockLayout, spec: MaskSpec) -> int:
    """The number of dropped pixels. They are flagged and counted in some masks at a time, which fit into the cache."""
    total, pixels = spec.shape[0] * spec.pixels, prod(spec.map_size)
    length = min(total, max(_FLAGS // pixels, 1) * pixels)
    masks = layout_of_masks(spec, length)
    if layout.terms != masks.terms:
        blocks = masks.blocks(seeds)
    starts = range(0, total, length)
    parts: Sequence[Tensor] = (blocks,)
    if len(starts) > 1:
        parts = blocks.tensor_split(torch.searchsorted(blocks, torch.tensor(starts[1:], device="cpu")))
    # Eight flags are added at a time, as the bytes of one integer. No byte of a sum of 255 of them overflows.
    words = torch.zeros(-(-length // (8 * 255)), 255, dtype=torch.int64, device="cpu")
    dropped = 0
    for start, part in zip(starts, parts, strict=True):
        if start:
            words.zero_()
        masks.fill(words.view(torch.bool), part - start if start else part, True)
        dropped += int(words.sum(1).view(torch.uint8).sum())
    return dropped
