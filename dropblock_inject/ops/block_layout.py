"""The places of blocks in the memory of a tensor, from the strides of the tensor."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from .mask_spec import MaskSpec


class BlockLayout(NamedTuple):
    """The places of the blocks of a mask in the memory of a tensor.

    Attributes:
        terms: pairs (count, factor). The block of a seed has the index ``sum(factor * (seed // count))``.
        size, stride: of a view of the tensor that has, along one axis, the block of each index. The blocks overlap.
        axis: that axis. Only the innermost axis of a block is behind it, because torch loops over the last two axes
            faster than over the others.
    """

    terms: tuple[tuple[int, int], ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    axis: int

    def blocks(self, seeds: Tensor) -> Tensor:
        """The indices of the blocks of these seeds."""
        (_, factor), *others = self.terms
        blocks = seeds if factor == 1 else seeds.mul(factor)
        for count, factor in others:
            blocks = blocks.add(seeds.div(count, rounding_mode="floor"), alpha=factor)
        return blocks

    def fill(self, tensor: Tensor, blocks: Tensor, value: float) -> None:
        """Writes `value` to the blocks of these indices."""
        tensor.as_strided(self.size, self.stride).index_fill_(self.axis, blocks, value)


@lru_cache(maxsize=1024)
def layout_of(strides: tuple[int, ...], spec: MaskSpec) -> BlockLayout:
    """The layout of a tensor of `spec.shape` that has these strides."""
    in_map = tuple(strides[axis] for axis in spec.spatial)
    block = list(zip(in_map, spec.block, strict=True))
    if not spec.per_channel:
        block.append((strides[spec.channel], spec.shape[spec.channel]))
    length = 1 + sum((size - 1) * stride for size, stride in zip(spec.shape, strides, strict=True))
    return _layout((strides[0], strides[spec.channel], *in_map), block, length, spec)


@lru_cache(maxsize=1024)
def layout_of_masks(spec: MaskSpec, length: int) -> BlockLayout:
    """The layout of the first `length` elements of a contiguous tensor with one element per pixel of the masks."""
    strides = [1]
    for size in (*reversed(spec.map_size), spec.masks_per_sample):
        strides.insert(0, strides[0] * size)
    return _layout(tuple(strides), list(zip(strides[2:], spec.block, strict=True)), length, spec)


def _layout(strides: tuple[int, ...], block: list[tuple[int, int]], length: int, spec: MaskSpec) -> BlockLayout:
    """A layout from the strides of sample, mask and map axes, and from pairs (stride, size) of the axes of a block."""
    terms: dict[int, int] = {}
    count, covered = 1, 0
    sizes = (spec.shape[0], spec.masks_per_sample, *spec.valid)
    for number, step in zip(reversed(sizes), reversed(strides), strict=True):
        if number > 1:
            terms[count] = step - covered
            count, covered = count * number, step * number
    axes: list[tuple[int, int]] = []
    for step, number in sorted(block, reverse=True):
        if axes and axes[-1][1] == step * number:  # the two axes are contiguous in memory: one longer run
            number *= axes.pop()[0]
        axes.append((number, step))
    needed = tuple((count, factor) for count, factor in terms.items() if factor) or ((1, 1),)
    starts, step = length - sum((size - 1) * stride for size, stride in axes), 1
    if len(needed) == 1 and needed[0][1] > 1:  # blocks at a constant distance: the seeds are the indices
        step, needed = needed[0][1], ((1, 1),)
    axes.insert(-1, (-(-starts // step), step))
    size, stride = zip(*axes, strict=True)
    return BlockLayout(needed, size, stride, len(axes) - 2)
