"""Residual adds: the additions that join a branch and its shortcut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..tracing.operations import BENT, GATES, NONLINEAR, NORMS, POOLS, PRODUCTS, SAME_VALUES, SLICES, WEIGHTED
from ..tracing.trace import Call, Op, Trace, Value, ancestors, original
from .conv_norm_act import ConvNormAct
from .feature_maps import Geometry
from .upsampling import leads_to_gates

_MAX_SHORTCUT_LAYERS = 2
_JOINS = ("add", "lerp", "sub")  # x - F(x) is a residual, F(x) - x is not


@dataclass(eq=False)
class Residual:
    """``y = F(x) + S(x)``, recognised by its data flow; the names of modules play no part.

    ``x - F(x)`` and ``torch.lerp(x, F(x), w)`` are residual adds too. F has a nonlinearity, or the sum has one behind
    it and S is the identity, or pools.

    Attributes:
        block: the innermost module call that contains the addition and the weights of the branch.
        call: the innermost module call that contains the addition and everything between x and it. This is a call
            further out than `block` where a block is given its shortcut, or a module is given both operands.
        add: the addition.
        skip, branch: its operands S(x) and F(x).
        branch_ops: the operations of F, in order.
    """

    block: Call
    call: Call
    add: Op
    skip: Value
    branch: Value
    branch_ops: list[Op] = field(repr=False)


def find_residuals(trace: Trace, geometry: Geometry, units: list[ConvNormAct]) -> list[Residual]:
    """The residual adds of feature maps in a trace, in the order of execution.

    Long skips of decoders, top-down sums of pyramids and the image that a network corrects are none of them.
    """
    level_of_activated = {
        unit.op: feature_map.level
        for unit in units
        if unit.is_activated(trace.calls[0]) and (feature_map := geometry.map_of(unit.convolved))
    }
    found = [
        residual
        for residual in _residual_adds(trace)
        if geometry.map_of(residual.skip)
        and not _is_long_skip(residual, geometry, level_of_activated)
        and not _is_of_the_image(residual, trace)
    ]
    for residual in found:
        _add_further_branches(residual)
    return found


def count_residuals(trace: Trace) -> int:
    """The number of residual adds with weights in the branch, whether of feature maps, of tokens or of others."""
    return sum(any(op.kind in WEIGHTED for op in residual.branch_ops) for residual in _residual_adds(trace))


def _residual_adds(trace: Trace) -> Iterator[Residual]:
    for op in trace.ops:
        if op.kind in _JOINS and len(op.inputs) >= 2:
            left, right = op.inputs[:2]
            if left is not right and left.shape == right.shape:
                residual = _residual(op, left, right)
                if residual:
                    yield residual


def _residual(add: Op, left: Value, right: Value) -> Residual | None:
    """The residual add that an addition is, looked for in its call and then further out; None if it is not one."""
    call: Call | None = add.call
    while call is not None:
        residual = _within(call, add, left, right)
        if residual is None and add.kind != "sub":
            residual = _within(call, add, right, left)
        if residual or not (_comes_from_outside(left, call) or _comes_from_outside(right, call)):
            return residual
        call = call.parent
    return None


def _comes_from_outside(value: Value, call: Call) -> bool:
    """Whether a call is given a value, as an argument or in a list, so that x may be outside of the call."""
    producer = original(value, call).producer
    return producer is None or not call.contains(producer)


def _within(call: Call, add: Op, skip: Value, branch: Value) -> Residual | None:
    """The residual add that an addition is within a call if `skip` is its shortcut; None if it is not one."""
    behind_skip, behind_branch = ancestors([skip], call), ancestors([branch], call)
    shared = behind_skip & behind_branch
    skip_ops, branch_ops = _producers(behind_skip - shared, call), _producers(behind_branch - shared, call)
    is_shortcut = original(skip, call) in shared or _is_projection(skip_ops)
    is_layered = any(op.kind in WEIGHTED for op in branch_ops)
    is_branch = any(op.kind in NONLINEAR or (is_layered and _is_bent(op)) for op in branch_ops)
    is_plain_shortcut = original(skip, call) in shared or all(op.kind in POOLS for op in skip_ops)
    is_branch = is_branch or (is_layered and is_plain_shortcut and _is_activated(add))
    if not (shared and is_shortcut and is_branch) or _is_sum_of_slices(skip_ops, branch_ops, shared):
        return None
    return Residual(_block_around(add, branch_ops), call, add, skip, branch, branch_ops)


def _is_activated(add: Op) -> bool:
    """Whether a sum goes into an activation and nothing else: ``relu(x + conv(x))``, ``relu(bn(x + conv(x) + z))``."""
    readers = add.outputs[0].readers
    while len(readers) == 1 and (readers[0].kind == "add" or readers[0].kind in NORMS | SAME_VALUES):
        readers = readers[0].outputs[0].readers
    return len(readers) == 1 and readers[0].kind in NONLINEAR - GATES


def _is_bent(op: Op) -> bool:
    """Whether activations are written by hand with an operation: a product of two tensors, a square, a function."""
    if op.kind == "pow":  # the mean of squares is part of a normalisation
        return not any(reader.kind in ("mean", "sum") for reader in op.outputs[0].readers)
    return op.kind in BENT or (op.kind in PRODUCTS and len(op.inputs) > 1)


def _is_projection(skip_ops: list[Op]) -> bool:
    """Whether these are the operations of a projected shortcut: few layers, an activation only before a single one."""
    layers = [op for op in skip_ops if op.kind in WEIGHTED]
    activations = [op for op in skip_ops if op.kind in NONLINEAR or _is_bent(op)]
    is_preactivated = len(activations) == len(layers) == 1 and activations[0].index < layers[0].index
    return len(layers) <= _MAX_SHORTCUT_LAYERS and (not activations or is_preactivated)


def _is_sum_of_slices(skip_ops: list[Op], branch_ops: list[Op], shared: set[Value]) -> bool:
    """Whether both operands are made of slices of one tensor, as in Res2Net."""
    return any(_takes_some_channels(op) for op in skip_ops) and any(
        _takes_some_channels(op) and shared.issuperset(op.inputs) for op in branch_ops
    )


def _takes_some_channels(op: Op) -> bool:
    return op.kind in SLICES and op.outputs[0].shape[1:2] != op.inputs[0].shape[1:2]


def _block_around(add: Op, branch_ops: list[Op]) -> Call:
    """The innermost call that contains an addition and the weights of its branch."""
    weights = [op for op in branch_ops if op.kind in WEIGHTED]
    block = add.call
    while not all(block.contains(op) for op in weights):
        assert block.parent is not None  # the model contains them all
        block = block.parent
    return block


def _add_further_branches(residual: Residual) -> None:
    """Extends the branch of x + F(x) + G(x), where the second addition joins another branch of the same shortcut."""
    total = residual.add.outputs[0]
    while len(total.readers) == 1 and total.readers[0].kind == "add" and total.readers[0].call is residual.call:
        add = total.readers[0]
        others = [value for value in add.inputs if value is not total]
        if len(others) != 1 or residual.skip not in (behind := ancestors(others, residual.call)):
            return
        residual.branch_ops += _producers(behind - ancestors([residual.skip], residual.call), residual.call)
        total = add.outputs[0]


def _is_long_skip(residual: Residual, geometry: Geometry, level_of_activated: dict[Op, int]) -> bool:
    """Whether the branch is a part of the network of its own at a lower resolution: an encoder with its decoder.

    It is if it has activated convolutions there, unless they only compute a gate. A branch with only attention or a
    gate at a lower resolution is that of a block, if the module that adds also has the shortcut.
    """
    total = geometry.map_of(residual.skip)
    assert total is not None
    if any(level_of_activated.get(op, 0) > total.level for op in residual.branch_ops):
        return not leads_to_gates(residual.branch_ops, geometry)
    if residual.call is residual.add.call:
        return False
    outputs = [geometry.map_of(value) for op in residual.branch_ops for value in op.outputs]
    return any(feature_map and feature_map.level > total.level for feature_map in outputs)


def _is_of_the_image(residual: Residual, trace: Trace) -> bool:
    """Whether a network adds its input, or its input enlarged, to what it puts out, as one that removes noise does."""
    values = ancestors([residual.skip], trace.calls[0])
    is_input = not any(value.producer and value.producer.kind in WEIGHTED for value in values)
    return is_input and not residual.add.outputs[0].readers


def _producers(values: Iterable[Value], call: Call) -> list[Op]:
    ops = {v.producer for v in values if v.producer is not None and call.contains(v.producer)}
    return sorted(ops, key=lambda op: op.index)
