"""Additions and convolutions inside the blocks of a trunk that the walker saw and has no use for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..tracing.operations import NONLINEAR
from ..tracing.trace import Op, Trace, Value, ancestors
from .blocks import Block, enclosing_calls
from .conv_norm_act import ConvNormAct
from .feature_maps import Geometry


class Leftovers(NamedTuple):
    """Parts of blocks that get no site.

    Attributes:
        additions: for each addition of two feature maps that may be a shortcut and is not known as one, its block.
        units: the names of the convolutions that are part of no branch and no shortcut.
    """

    additions: tuple[str, ...]
    units: tuple[str, ...]


def leftovers(
    blocks: Iterable[Block], off_trunk: Iterable[Block], units: list[ConvNormAct], trace: Trace, geometry: Geometry
) -> Leftovers:
    """The additions and the units inside the blocks of some stages that get no site.

    Gates, which get none, and the units of later calls of a module are left out.

    Args:
        units: all units of the trace.
    """
    chosen = [block for block in blocks if block.is_module]
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
    return Leftovers(tuple(additions), tuple(dict.fromkeys(rest)))


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


def _may_be_residual(op: Op, block: Block, geometry: Geometry) -> bool:
    """Whether an operation adds two maps of a block that have an origin in common, with an activation on the way."""
    if op.kind != "add" or len(op.inputs) < 2:
        return False
    left, right = op.inputs[:2]
    if left is right or left.shape != right.shape or not (geometry.map_of(left) and geometry.map_of(right)):
        return False
    behind = ancestors([left], block.scope), ancestors([right], block.scope)
    shared = behind[0] & behind[1]
    own = {value.producer for value in (behind[0] | behind[1]) - shared}
    return bool(shared) and any(op.kind in NONLINEAR for op in own if op is not None)
