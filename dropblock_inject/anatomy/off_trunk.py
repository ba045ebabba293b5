"""The blocks beside the trunk, and the part of the network that each of them is in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ..tracing.operations import WEIGHTED
from ..tracing.trace import Call, Op, Trace, Value, ancestors
from .blocks import Block, Place, single_block
from .feature_maps import Geometry

# Bits of what a tensor comes from; those below are the levels of the trunk.
_JOINED = 1 << 62  # a join of levels, with no convolution in between
_LEVELS = _JOINED - 1


class OffTrunk(NamedTuple):
    """What is beside the trunk.

    Attributes:
        blocks: the blocks, in the order of execution; each has its place.
        results: the linear convolutions that put out the results of the network, which are part of no block.
    """

    blocks: tuple[Block, ...]
    results: tuple[str, ...]


def placed(
    blocks: list[Block], trunk: list[list[Block]], raised: set[Value], trace: Trace, geometry: Geometry
) -> OffTrunk:
    """The blocks off the trunk in the order of execution, each with its place, and the convolutions of the results.

    A place is a matter of the data flow. Before the trunk is the stem, between two blocks of the trunk a transition.
    Behind the trunk there may be joins: operations that read maps of several levels of the trunk. Their part is a neck
    unless all ends at one resolution above the lowest of the trunk: then it is a decoder. The heads behind a feature
    pyramid read several. A block is in that part if it leads to a join, is the first behind
    one, or is in the module that has all of the joins. What comes behind a raised map is in a decoder as well. All
    else behind the trunk is a head. A linear convolution that puts out a result of the network is in no block; if a
    block ends in one, its other units are blocks one by one.

    Args:
        blocks: all blocks of the network.
        trunk: those of the trunk, level by level.
        raised: the tensors behind a raise of the resolution, see :func:`raised_values`.
    """
    in_trunk = {block for level in trunk for block in level}
    flow = _Flow.of(trunk, raised, trace, geometry)
    others = [block for block in blocks if block not in in_trunk]
    ends = {block: block.units[-1] for block in others if puts_out_result(block, flow.before_layer)}
    others = [block for block in others if block not in ends and _has_a_site(block)]
    others += [single_block(trace, geometry, unit) for block in ends for unit in block.units[:-1]]
    others.sort(key=lambda block: block.order)
    placed = tuple(replace(block, place=flow.place_of(block)) for block in others)
    return OffTrunk(placed, tuple(unit.op.call.name for unit in ends.values()))


def read_by_layers(trace: Trace) -> set[Value]:
    """The tensors that a layer with weights is computed from."""
    return ancestors(value for op in trace.ops if op.kind in WEIGHTED for value in op.inputs)


def puts_out_result(block: Block, read: set[Value]) -> bool:
    """Whether a block ends in a linear convolution that no layer reads, as a fully convolutional network does.

    The last dense layer of a network is no such block: its map is concatenated to those that it was computed from.
    """
    if block.residuals or block.output[1] in read or block.units[-1].is_activated(block.scope):
        return False
    return block.scope.parent is None or not _is_concatenated_to_its_input(block)


def _is_concatenated_to_its_input(block: Block) -> bool:
    """Whether the output of a block is concatenated to one of the tensors that it was computed from."""
    value = block.output[1]
    given = ancestors([value], block.scope) - {value}
    return any(op.kind == "cat" and not given.isdisjoint(op.inputs) for op in value.readers)


def _has_a_site(block: Block) -> bool:
    return bool(block.residuals) or not all(unit.is_gate(block.scope) for unit in block.units)


@dataclass(frozen=True)
class _Flow:
    """Which parts of the trunk the tensors of a trace come from and lead to.

    Attributes:
        source: what each tensor comes from, as bits.
        before_trunk: the tensors that a block of the trunk is computed from.
        before_join: those that a join is computed from.
        before_layer: those that a layer with weights is computed from.
        raised: those that are computed from a map of raised resolution.
        joining: the module call with all of the joins, if no block of the trunk is in it.
        joins: the part of the network that the joins are in.
    """

    source: dict[Value, int]
    before_trunk: set[Value]
    before_join: set[Value]
    before_layer: set[Value]
    raised: set[Value]
    joining: Call | None
    joins: Literal["neck", "decoder"]

    @classmethod
    def of(cls, trunk: list[list[Block]], raised: set[Value], trace: Trace, geometry: Geometry) -> _Flow:
        levels = {block.output[1]: 1 << number for number, level in enumerate(trunk) for block in level}
        before_trunk = ancestors(levels)
        source, joins = _sources(trace, geometry, levels)
        joins = [op for op in joins if before_trunk.isdisjoint(op.outputs)]
        before_join = ancestors(value for op in joins for value in op.inputs)
        behind_join = _behind(joins, before_join - before_trunk, trace)
        before_layer = read_by_layers(trace)
        ends = {
            feature_map.level
            for op in trace.ops
            if op.kind == "convolution"
            and op.inputs[0] in behind_join
            and before_layer.isdisjoint(op.outputs)
            and (feature_map := geometry.map_of(op.inputs[0]))
        }
        raises = len(ends) == 1 and max(ends) < max(block.map.level for block in trunk[-1])
        joining = _call_around(joins)
        if joining is not None and any(map(joining.encloses, (block.scope for level in trunk for block in level))):
            joining = None
        part: Literal["neck", "decoder"] = "decoder" if raises or not joins else "neck"
        return cls(source, before_trunk, before_join, before_layer, raised, joining, part)

    def place_of(self, block: Block) -> Place:
        value = block.output[1]
        source = self.source.get(value, 0)
        if value in self.before_trunk or not source & _LEVELS:
            return "transition" if source & _LEVELS else "stem"
        first = block.units[0].op.inputs[0] if block.units else value
        is_at_a_join = value in self.before_join or bool(self.source.get(first, 0) & _JOINED)
        is_with_joins = self.joining is not None and self.joining.first <= block.order[1] < self.joining.last
        if is_at_a_join or is_with_joins:
            return self.joins
        return "decoder" if value in self.raised and self.joins == "decoder" else "head"


def _sources(trace: Trace, geometry: Geometry, levels: dict[Value, int]) -> tuple[dict[Value, int], list[Op]]:
    """What each tensor comes from, back to the nearest block of the trunk; and the joins, on the trunk as well."""
    source: dict[Value, int] = {}
    joins = []
    for op in trace.ops:
        bits = 0
        for value in op.inputs:
            bits |= source.get(value, 0)
        if bits:
            if op.kind in WEIGHTED:
                bits &= ~_JOINED
            elif len(op.inputs) > 1 and _several(bits) and _is_join(op, bits, source, geometry):
                joins.append(op)
                bits |= _JOINED
        for value in op.outputs:
            if found := levels.get(value, bits):
                source[value] = found
    return source, joins


def _is_join(op: Op, bits: int, source: dict[Value, int], geometry: Geometry) -> bool:
    """Whether an operation on maps reads a level from one of them that it does not read from another."""
    maps = [source.get(value, 0) for value in op.inputs if geometry.map_of(value) is not None]
    return len(maps) > 1 and any((one ^ bits) & _LEVELS for one in maps)


def _behind(joins: list[Op], before: set[Value], trace: Trace) -> set[Value]:
    """The tensors of the part with the joins, those that lead to one included, and all that is computed from them."""
    behind = before.union(*(op.outputs for op in joins))
    for op in trace.ops:
        if not behind.isdisjoint(op.inputs):
            behind.update(op.outputs)
    return behind


def _several(bits: int) -> bool:
    return (bits & _LEVELS).bit_count() > 1


def _call_around(ops: list[Op]) -> Call | None:
    """The innermost module call that contains some operations; None for the model."""
    call = ops[0].call if ops else None
    while call is not None and not all(map(call.contains, ops)):
        call = call.parent
    return call if call is not None and call.parent is not None else None
