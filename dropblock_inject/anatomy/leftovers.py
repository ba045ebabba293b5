"""Additions, convolutions and shared modules that the walker saw and that get no site, or not one for each call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from ..tracing.operations import NONLINEAR, WEIGHTED
from ..tracing.trace import Op, Trace, Value, ancestors, original
from .blocks import Block, enclosing_calls
from .conv_norm_act import ConvNormAct
from .feature_maps import Geometry


class Leftovers(NamedTuple):
    """Parts of blocks that get no site.

    Attributes:
        additions: for each addition of two feature maps that may be a shortcut and is not known as one, its block.
        sums: for each addition of two feature maps outside of the blocks, the module that adds; "" is the model.
        units: the names of the convolutions that are part of no branch and no shortcut, or that convolve no map.
        shared: the names of the modules that run in one of these blocks and outside of it too.
    """

    additions: tuple[str, ...]
    sums: tuple[str, ...]
    units: tuple[str, ...]
    shared: tuple[str, ...]


def leftovers(
    chosen: Iterable[Block],
    trunk: Iterable[Block],
    off_trunk: Iterable[Block],
    units: list[ConvNormAct],
    trace: Trace,
    geometry: Geometry,
) -> Leftovers:
    """The additions, units and shared modules of some stages that get no site.

    Gates, which get none, and the units of later calls of a module are left out. Sums outside of the blocks count if
    they are at a resolution of the chosen blocks and lead to the trunk; off the trunk if any chosen block is.

    Args:
        chosen: the blocks of these stages, and those off the trunk if they are asked for.
        units: all units of the trace.
    """
    asked, every = list(chosen), [*trunk, *off_trunk]
    chosen = [block for block in asked if block.is_module]
    residuals = [residual for block in (*chosen, *off_trunk) for residual in block.residuals]
    used = {unit.op for block in (*chosen, *off_trunk) for unit in block.units}
    used |= {op for residual in residuals for op in _projection(residual.skip)}
    adds = {residual.add for residual in residuals}
    first_calls = {calls[0] for calls in trace.calls_of.values()}
    additions = [
        block.name
        for block in chosen
        for op in trace.ops[block.scope.first : block.scope.last]
        if op not in adds and _may_be_residual(op, block, geometry)
    ]
    rest = [
        unit.op.call.name
        for block in chosen
        for unit in units
        if block.scope.contains(unit.op) and unit.op not in used and not unit.is_gate(block.scope)
        if first_calls.issuperset(enclosing_calls(unit.op.call))
    ]
    rest += [
        op.call.name
        for op in trace.ops
        if _is_off_the_maps(op, geometry) and first_calls.issuperset(enclosing_calls(op.call))
        if len(asked) == len(every) or any(block.scope.contains(op) for block in chosen)
    ]
    sums = _sums_outside(asked, every, trace, geometry)
    return Leftovers(tuple(additions), tuple(sums), tuple(dict.fromkeys(rest)), tuple(_shared(chosen, trace)))


def _sums_outside(asked: list[Block], every: list[Block], trace: Trace, geometry: Geometry) -> list[str]:
    """The modules that add two maps outside of all blocks; with a name for each addition."""
    levels = {block.map.level for block in asked}
    leading = ancestors(block.output[1] for block in every if any(b.place for b in asked) or not block.place)
    adds = {residual.add for block in every for residual in block.residuals}
    inside = bytearray(len(trace.ops))
    for block in every:
        for call in trace.calls_of[block.name] if block.is_module else ():
            inside[call.first : call.last] = bytes([1]) * (call.last - call.first)
    return [
        op.call.name
        for op in trace.ops
        if op.kind == "add" and not inside[op.index] and op not in adds and op.outputs[0] in leading
        if _adds_maps(op, geometry) and (total := geometry.map_of(op.outputs[0])) and total.level in levels
    ]


def _is_off_the_maps(op: Op, geometry: Geometry) -> bool:
    """Whether an operation is a convolution of something else than a map of the image: of windows, of other data."""
    if op.kind != "convolution" or geometry.map_of(op.outputs[0]) is not None:
        return False
    return op.outputs[0].shape[1] > 1 and prod(op.outputs[0].shape[2:]) > 1


def _shared(chosen: list[Block], trace: Trace) -> list[str]:
    """The names of the modules without children that run in a block and outside of it too."""
    names = {block.name for block in chosen}
    places: dict[str, set[str]] = defaultdict(set)
    for call in trace.calls:
        if call.last > call.first and not call.module._modules:
            places[call.name].add(next((around.name for around in enclosing_calls(call) if around.name in names), ""))
    return [name for name, places_of in places.items() if len(places_of) > 1]


def _projection(skip: Value) -> list[Op]:
    """The operations of a projected shortcut, back to the tensor that the branch reads as well."""
    ops = []
    producer = skip.producer
    while producer is not None and producer.inputs:
        ops.append(producer)
        if len(producer.inputs[0].readers) > 1:
            break
        producer = producer.inputs[0].producer
    return ops


def _adds_maps(op: Op, geometry: Geometry) -> bool:
    """Whether an addition is one of two feature maps of one shape."""
    if len(op.inputs) < 2:
        return False
    left, right = op.inputs[:2]
    is_of_maps = geometry.map_of(left) is not None and geometry.map_of(right) is not None
    return is_of_maps and left is not right and left.shape == right.shape


def _may_be_residual(op: Op, block: Block, geometry: Geometry) -> bool:
    """Whether an operation adds two maps of a block that have an origin in common, with an activation on the way.

    Or one of them is the origin, or what the block is given, and there are weights on the way to the other.
    """
    if op.kind != "add" or not _adds_maps(op, geometry):
        return False
    left, right = op.inputs[:2]
    behind = ancestors([left], block.scope), ancestors([right], block.scope)
    shared = behind[0] & behind[1]
    own = {value.producer for value in (behind[0] | behind[1]) - shared}
    origins = shared.union(block.scope.arguments.values())
    is_identity = any(original(value, block.scope) in origins for value in (left, right))
    kinds = NONLINEAR | WEIGHTED if is_identity else NONLINEAR
    return (bool(shared) or is_identity) and any(op.kind in kinds for op in own if op is not None)
