"""Residual joins: where a branch and its shortcut are added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .geometry import Geometry
from .kinds import NONLINEAR, SAME_VALUES, SLICES, WEIGHTED
from .trace import Call, Op, Trace, Value

_MOST_WEIGHTS_ON_A_SHORTCUT = 2


@dataclass(eq=False)
class Residual:
    """``y = F(x) + S(x)``, recognised by its data flow; the names of modules play no part.

    Attributes:
        call: the innermost module call around the addition, and around the whole way from x to it.
        join: the addition.
        skip, branch: what it adds: S(x) and F(x).
        branch_ops: the operations of F, in order.
    """

    call: Call
    join: Op
    skip: Value
    branch: Value
    branch_ops: list[Op] = field(repr=False)


def find_residuals(trace: Trace, geometry: Geometry) -> list[Residual]:
    """The residual joins of a trace, in the order of execution."""
    return [residual for residual in _joins(trace) if geometry.map_of(residual.skip)]


def count_residuals(trace: Trace) -> int:
    """How many residual joins there are, be they of feature maps, of tokens or of anything else."""
    return sum(1 for _ in _joins(trace))


def _joins(trace: Trace) -> Iterator[Residual]:
    for op in trace.ops:
        if op.kind == "add" and len(op.inputs) >= 2:
            left, right = op.inputs[:2]
            if left is not right and left.shape == right.shape:
                residual = _residual(op, left, right) or _residual(op, right, left)
                if residual:
                    yield residual


def _residual(join: Op, skip: Value, branch: Value) -> Residual | None:
    """The residual that `join` is if `skip` is its shortcut; None if it is not one."""
    behind_branch = _ancestors(branch, join.call)
    behind_skip = _ancestors(skip, join.call)
    shared = behind_skip & behind_branch
    skip_ops, branch_ops = _producers(behind_skip - shared, join.call), _producers(behind_branch - shared, join.call)
    if not shared or not any(op.kind in NONLINEAR for op in branch_ops):
        return None
    if any(_takes_some_channels(op) for op in skip_ops):
        return None  # sums of slices (Res2Net), not a shortcut
    if original(skip, join.call) in shared:
        return Residual(join.call, join, skip, branch, branch_ops)
    weights = [op for op in skip_ops if op.kind in WEIGHTED]
    nonlinear = [op for op in skip_ops if op.kind in NONLINEAR]
    preactivated = len(nonlinear) == len(weights) == 1 and nonlinear[0].index < weights[0].index
    if len(weights) > _MOST_WEIGHTS_ON_A_SHORTCUT or (nonlinear and not preactivated):
        return None
    return Residual(join.call, join, skip, branch, branch_ops)


def original(value: Value, inside: Call, kinds: frozenset[str] = SAME_VALUES) -> Value:
    """The value inside a call from which this one is merely handed on, by identity modules and copies."""
    while value.producer is not None and value.producer.kind in kinds and inside.contains(value.producer):
        value = value.producer.inputs[0]
    return value


def _ancestors(value: Value, call: Call) -> set[Value]:
    """`value` and all it is computed from inside `call`, the inputs of the call included."""
    seen = {value}
    pending = [value]
    while pending:
        producer = pending.pop().producer
        if producer is not None and call.contains(producer):
            new = [v for v in producer.inputs if v not in seen]
            seen.update(new)
            pending += new
    return seen


def _producers(values: Iterable[Value], call: Call) -> list[Op]:
    ops = {v.producer for v in values if v.producer is not None and call.contains(v.producer)}
    return sorted(ops, key=lambda op: op.index)


def _takes_some_channels(op: Op) -> bool:
    return op.kind in SLICES and op.outputs[0].shape[1:2] != op.inputs[0].shape[1:2]
