"""Upsampling: the tensors behind a raise of the resolution, as in decoders and necks."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from ..tracing.operations import GRIDS, UPSAMPLES
from ..tracing.trace import Op, Trace, Value, first_convolution
from .feature_maps import Geometry
from .gates import is_factor


def raising_ops(trace: Trace, geometry: Geometry) -> set[Op]:
    """The operations that raise the resolution of a feature map.

    The upsampling of the image is none of them; nor is that of a gate, a map that another one is multiplied by.
    """
    first = first_convolution(trace)
    if first is None:
        return set()
    return {op for op in trace.ops[first.index :] if _raises(op, geometry) and not _is_of_gate(op, geometry)}


def raised_values(trace: Trace, geometry: Geometry, branches: Iterable[tuple[Value, list[Op]]]) -> set[Value]:
    """The tensors that are computed from a feature map of which the resolution was raised.

    An upsampling inside the branch of a residual block does not count if it goes no higher than the shortcut, for it is
    part of how the block computes.

    Args:
        branches: the shortcut of each residual add, and the operations of its branch.
    """
    raising = raising_ops(trace, geometry)
    if not raising:
        return set()
    for skip, branch_ops in branches:
        raising -= {op for op in raising.intersection(branch_ops) if not is_larger(op.outputs[0], skip)}
    raised: set[Value] = set()
    for op in trace.ops:
        if op in raising or not raised.isdisjoint(op.inputs):
            raised.update(op.outputs)
    return raised


def values_behind_grids(trace: Trace, geometry: Geometry) -> set[Value]:
    """The tensors computed from a feature map that was pooled to a fixed number of pixels, as for context."""
    first = first_convolution(trace)
    behind: set[Value] = set()
    for op in trace.ops[first.index :] if first is not None else ():
        is_grid = (
            op.kind in GRIDS and geometry.map_of(op.outputs[0]) is not None and is_larger(op.inputs[0], op.outputs[0])
        )
        if is_grid or not behind.isdisjoint(op.inputs):
            behind.update(op.outputs)
    return behind


def leads_to_gates(ops: list[Op], geometry: Geometry) -> bool:
    """Whether some of these operations raise the resolution, and only that of gates."""
    upsampling = [op for op in ops if _raises(op, geometry)]
    return bool(upsampling) and all(_is_of_gate(op, geometry) for op in upsampling)


def _is_of_gate(op: Op, geometry: Geometry) -> bool:
    return op.outputs[0] in geometry.gates or is_factor(op.outputs[0])


def _raises(op: Op, geometry: Geometry) -> bool:
    is_upsampling = op.kind in UPSAMPLES or (op.kind == "convolution" and op.strides is None)
    return is_upsampling and geometry.map_of(op.inputs[0]) is not None and is_larger(op.outputs[0], op.inputs[0])


def is_larger(value: Value, other: Value) -> bool:
    """Whether a map has more pixels than another one; the channels of both come first."""
    return prod(value.shape[2:]) > prod(other.shape[2:])
