"""Residual adds: where a branch and its shortcut are added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..tracing.operations import NONLINEAR, SAME_VALUES, SLICES, WEIGHTED
from ..tracing.trace import Call, Op, Trace, Value, ancestors
from .feature_maps import Geometry

_MAX_SHORTCUT_LAYERS = 2


@dataclass(eq=False)
class Residual:
    """``y = F(x) + S(x)``, recognised by its data flow; the names of modules play no part.

    Attributes:
        block: the innermost module call around the addition and the weights of the branch.
        call: the innermost one around the addition and the whole way from x to it. It is the same but where a block is
            given its shortcut, or a module is given what it is to add.
        add: the addition.
        skip, branch: what it adds: S(x) and F(x).
        branch_ops: the operations of F, in order.
    """

    block: Call
    call: Call
    add: Op
    skip: Value
    branch: Value
    branch_ops: list[Op] = field(repr=False)


def find_residuals(trace: Trace, geometry: Geometry) -> list[Residual]:
    """The residual adds of feature maps in a trace, in the order of execution."""
    found = [
        residual
        for residual in _residual_adds(trace)
        if geometry.map_of(residual.skip)
        and (residual.call is residual.add.call or not _goes_lower(residual, geometry))
    ]
    for residual in found:
        _add_further_branches(residual)
    return found


def count_residuals(trace: Trace) -> int:
    """How many residual adds there are, be they of feature maps, of tokens or of anything else."""
    return sum(1 for _ in _residual_adds(trace))


def _residual_adds(trace: Trace) -> Iterator[Residual]:
    for op in trace.ops:
        if op.kind == "add" and len(op.inputs) >= 2:
            left, right = op.inputs[:2]
            if left is not right and left.shape == right.shape:
                residual = _residual(op, left, right)
                if residual:
                    yield residual


def _residual(add: Op, left: Value, right: Value) -> Residual | None:
    """The residual that a sum is, as seen from the calls around it; None if it is not one."""
    call: Call | None = add.call
    while call is not None:
        residual = _within(call, add, left, right) or _within(call, add, right, left)
        arguments = call.arguments.values()
        if residual or not (original(left, call) in arguments or original(right, call) in arguments):
            return residual
        call = call.parent  # the module is given what it adds: the fork is further out
    return None


def _within(call: Call, add: Op, skip: Value, branch: Value) -> Residual | None:
    """The residual that a sum is within a call if `skip` is its shortcut."""
    behind_branch = ancestors([branch], call)
    behind_skip = ancestors([skip], call)
    shared = behind_skip & behind_branch
    skip_ops, branch_ops = _producers(behind_skip - shared, call), _producers(behind_branch - shared, call)
    if not shared or not any(op.kind in NONLINEAR for op in branch_ops):
        return None
    if any(_takes_some_channels(op) for op in skip_ops) and any(
        _takes_some_channels(op) and shared.issuperset(op.inputs) for op in branch_ops
    ):
        return None  # a sum of slices of the same tensor (Res2Net), not a shortcut
    weights = [op for op in skip_ops if op.kind in WEIGHTED]
    nonlinear = [op for op in skip_ops if op.kind in NONLINEAR]
    preactivated = len(nonlinear) == len(weights) == 1 and nonlinear[0].index < weights[0].index
    is_identity = original(skip, call) in shared
    if not is_identity and (len(weights) > _MAX_SHORTCUT_LAYERS or (nonlinear and not preactivated)):
        return None
    block = add.call
    while not all(block.contains(op) for op in branch_ops if op.kind in WEIGHTED):
        assert block.parent is not None  # the call itself contains them all
        block = block.parent
    return Residual(block, call, add, skip, branch, branch_ops)


def _add_further_branches(residual: Residual) -> None:
    """In x + F(x) + G(x) the second sum is of another branch of the same shortcut."""
    total = residual.add.outputs[0]
    while len(total.readers) == 1 and total.readers[0].kind == "add" and total.readers[0].call is residual.call:
        add = total.readers[0]
        others = [value for value in add.inputs if value is not total]
        if len(others) != 1 or residual.skip not in (behind := ancestors(others, residual.call)):
            return
        residual.branch_ops += _producers(behind - ancestors([residual.skip], residual.call), residual.call)
        total = add.outputs[0]


def _goes_lower(residual: Residual, geometry: Geometry) -> bool:
    """Whether the branch passes through maps of lower resolution, as decoders and top-down sums do."""
    total = geometry.map_of(residual.skip)
    outputs = [geometry.map_of(value) for op in residual.branch_ops for value in op.outputs]
    return any(total and feature_map and feature_map.level > total.level for feature_map in outputs)


def original(value: Value, inside: Call, kinds: frozenset[str] = SAME_VALUES) -> Value:
    """The value inside a call from which this one is merely handed on, by identity modules and copies."""
    while value.producer is not None and value.producer.kind in kinds and inside.contains(value.producer):
        value = value.producer.inputs[0]
    return value


def _producers(values: Iterable[Value], call: Call) -> list[Op]:
    ops = {v.producer for v in values if v.producer is not None and call.contains(v.producer)}
    return sorted(ops, key=lambda op: op.index)


def _takes_some_channels(op: Op) -> bool:
    return op.kind in SLICES and op.outputs[0].shape[1:2] != op.inputs[0].shape[1:2]
