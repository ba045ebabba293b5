"""The level of each block: log2 of the reduction that it would have without dilation."""

from __future__ import annotations

from collections import defaultdict
from math import log2

from ..tracing.trace import Value
from .blocks import Block

_DEEPEST_DILATED_LEVEL = 5  # strides are dilated away to come back from reduction 32, not from more


class _Group(list[Block]):
    """The blocks with the same parent, channels and map size. They have one dilation.

    The first block of a dilated stage still has the dilation of the stage before, so that the largest counts.
    """

    @property
    def level(self) -> int:
        return self[0].map.level

    @property
    def dilation(self) -> int:
        return max(block.dilation for block in self)


def blocks_by_level(blocks: list[Block], dilated_away: dict[str, int]) -> dict[int, list[Block]]:
    """The blocks of each level, in order, from the highest resolution to the lowest.

    Dilation stands for strides if it doubles from stage to stage at the lowest resolution of the network, and only
    there: `output_stride` and ``replace_stride_with_dilation`` do that. Any other dilation is there for context.

    Args:
        blocks: the blocks of a trunk in the order of execution.
        dilated_away: the strides that the model says it has given up, see ``strides_dilated_away``.
    """
    grouped: dict[tuple[str, int, int], _Group] = defaultdict(_Group)
    for block in blocks:
        grouped[_parent(block), block.map.channels, block.map.level].append(block)
    groups = list(grouped.values())
    strides = _strides_by_dilation(groups, trusted=bool(dilated_away))
    levels: dict[int, list[Block]] = defaultdict(list)
    for group, count in zip(groups, strides, strict=True):
        for block in group:
            said = max((n for prefix, n in dilated_away.items() if block.name.startswith(prefix)), default=0)
            levels[block.map.level + max(count, said)].append(block)
    return {level: sorted(levels[level], key=lambda block: block.order) for level in sorted(levels)}


def _parent(block: Block) -> str:
    return block.name.rpartition(".")[0]


def _reads(block: Block, above: set[Value], deepest: set[Value]) -> bool:
    """Whether a block reads a tensor from above other than through the deepest blocks, as those of a decoder do."""
    pending, seen = [block.output[1]], set(deepest)
    while pending:
        value = pending.pop()
        if value in above:
            return True
        if value not in seen and value.producer is not None:
            seen.add(value)
            pending += value.producer.inputs
    return False


def _strides_by_dilation(groups: list[_Group], trusted: bool) -> list[int]:
    """The number of strides that each group has traded for dilation; all 0 if the dilation is there for context.

    A stride that is dilated away was that of a stage, which ends in other channels than the one before.
    """
    smallest = min(group.dilation for group in groups)  # some networks are dilated everywhere
    counts = [round(log2(group.dilation / smallest)) for group in groups]
    if trusted:
        return counts
    lowest = max(group.level for group in groups)
    strides: list[int] = []
    reached, is_first = 0, True
    deepest: set[Value] = set()
    above: set[Value] = set()
    last_channels = {_parent(block): block.map.channels for group in groups for block in group}
    channels = 0, 0
    for group, count in zip(groups, counts, strict=True):
        if count and (group.level < lowest or is_first):
            return [0] * len(groups)
        before, channels = channels, (group[0].map.channels, last_channels[_parent(group[0])])
        if count > reached and channels == before:
            return [0] * len(groups)
        is_first = is_first and group.level < lowest
        if group.level == lowest and count > reached:
            reached += 1  # a last stage with several dilations (a multi-grid) has lost one stride
            above, deepest = above | deepest, set()
        is_last = group.level == lowest and (count >= reached or not _reads(group[0], above, deepest))
        strides.append(reached if is_last else count)
        (deepest if is_last else above).update(block.output[1] for block in group)
    if lowest + reached > _DEEPEST_DILATED_LEVEL:
        return [0] * len(groups)
    return strides
