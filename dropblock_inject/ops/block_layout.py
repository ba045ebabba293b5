"""The places of blocks in the memory of a tensor, from the strides of the tensor."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from .mask_spec import MaskSpec


class BlockLayout(NamedTuple):
    """The places of the blocks of a mask in the memory of a tensor.

    Attributes:
        terms: pairs (count, factor). The block of a seed starts at offset ``sum(factor * (seed // count))``.
        outer: pairs (size, stride) of the axes of a block, without the innermost.
        run: size and stride of the innermost axis of a block.
        reach: offset of the last element of a block from its first.
        length: number of elements in memory, from the first of the tensor to its last.
    """

    terms: tuple[tuple[int, int], ...]
    outer: tuple[tuple[int, int], ...]
    run: tuple[int, int]
    reach: int
    length: int

    def offsets(self, seeds: Tensor) -> Tensor:
        """The offsets in memory at which the blocks of these seeds start."""
        (_, factor), *others = self.terms
        offsets = seeds.mul(factor)
        for count, factor in others:
            offsets.add_(seeds.div(count, rounding_mode="floor"), alpha=factor)
        return offsets

    def fill(self, tensor: Tensor, offsets: Tensor, value: float, length: int | None = None) -> None:
        """Writes `value` to the blocks that start at these offsets.

        Args:
            length: number of elements in memory, if `tensor` is only the first part of the one described here.
        """
        # A view with one entry per offset: the block that starts there. Torch writes the last axes in its inner loop.
        starts = ((length or self.length) - self.reach, 1)
        size, stride = zip(*self.outer, starts, self.run, strict=True)
        tensor.as_strided(size, stride).index_fill_(len(self.outer), offsets, value)


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
def layout_of_masks(spec: MaskSpec) -> BlockLayout:
    """The layout of a contiguous tensor that has one element per pixel of the masks."""
    strides: list[int] = []
    length = 1
    for size in (*reversed(spec.map_size), spec.masks_per_sample, spec.shape[0]):
        strides.insert(0, length)
        length *= size
    return _layout(tuple(strides), list(zip(strides[2:], spec.block, strict=True)), length, spec)


def _layout(strides: tuple[int, ...], block: list[tuple[int, int]], length: int, spec: MaskSpec) -> BlockLayout:
    """A layout from the strides of sample, mask and map axes, and from pairs (stride, size) of the axes of a block."""
    terms: dict[int, int] = {}
    count, covered = 1, 0
    sizes = (spec.shape[0], spec.masks_per_sample, *spec.valid)
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        terms[count] = terms.get(count, 0) + stride - covered
        count, covered = count * size, stride * size
    axes: list[tuple[int, int]] = []
    for stride, size in sorted(block, reverse=True):
        if axes and axes[-1][1] == stride * size:  # the two axes are contiguous in memory: one longer run
            size *= axes.pop()[0]
        axes.append((size, stride))
    needed = tuple((count, factor) for count, factor in terms.items() if factor or count == 1)
    return BlockLayout(needed, tuple(axes[:-1]), axes[-1], sum((size - 1) * stride for size, stride in axes), length)
