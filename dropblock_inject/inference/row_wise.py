"""Whether the images of a batch stay apart in a part of a network: each row of the first axis on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..tracing.operations import NONLINEAR, NORMS, PADS, POOLS, RESAMPLES, RESHAPES, SAME_VALUES
from ..tracing.trace import Op, Trace, Value

_ELEMENTWISE = frozenset(
    (
        *("abs", "add", "clamp", "div", "eq", "erf", "exp", "ge", "gt", "le", "log", "log1p", "logical_not", "lt"),
        *("maximum", "minimum", "mul", "neg", "pow", "reciprocal", "rsqrt", "rsub", "sign", "sin", "cos", "sqrt"),
        *("square", "sub", "where", "addcmul", "copy", "fill", "zero", "zeros_like", "ones_like", "new_empty"),
    )
)
# Operations that take each row on its own, whatever their arguments.
_ALWAYS = (
    _ELEMENTWISE
    | (NONLINEAR - {"_softmax", "softmax", "_safe_softmax"})
    | (NORMS - {"_batch_norm_with_update", "native_batch_norm"})
    | POOLS
    | PADS
    | RESAMPLES
    | RESHAPES
    | SAME_VALUES
    | {
        *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "baddbmm"),
        *("bmm", "convolution", "expand", "im2col", "pixel_shuffle", "pixel_unshuffle", "shared_write", "squeeze"),
    }
)
# The position of the argument that names one axis or several, which must not be the first axis.
_BY_AXIS = {
    **dict.fromkeys(("amax", "amin", "argmax", "cat", "chunk", "flip", "mean", "select"), 1),
    **dict.fromkeys(("_softmax", "softmax", "_safe_softmax", "slice", "stack", "std", "sum", "unbind", "unsqueeze"), 1),
    **dict.fromkeys(("narrow", "topk", "unfold", "var"), 1),
    **dict.fromkeys(("linalg_vector_norm", "roll", "split", "split_with_sizes", "unsafe_split"), 2),
}


def stay_apart(ops: Iterable[Op], repeats: Callable[[Op], bool], rows: int) -> bool:
    """Whether all that is computed from repeated tensors takes each row of the first axis on its own.

    Unknown kinds of operations count as mixing.

    Args:
        ops: all operations of a pass.
        repeats: tells the operations that repeat a tensor.
        rows: number of rows of a repeated tensor. A view of it may have a multiple of that.
    """
    behind: set[Value] = set()
    for op in ops:
        if repeats(op):
            behind.update(op.outputs)
        elif not behind.isdisjoint(op.inputs):
            if not (behind.issuperset(op.inputs) and _stays_apart(op, rows)):
                return False
            behind.update(op.outputs)
    return True


def numbers_in(trace: Trace) -> list[Any]:
    """The numbers by which the arithmetic of a pass adds, multiplies and compares, in order."""
    return [
        (op.kind, [argument for argument in op.arguments if isinstance(argument, int | float)])
        for op in trace.ops
        if op.kind in _ELEMENTWISE
    ]


def _has_rows(value: Value, rows: int) -> bool:
    return len(value.shape) > 0 and value.shape[0] > 0 and value.shape[0] % rows == 0


def _stays_apart(op: Op, rows: int) -> bool:
    if not all(_has_rows(value, rows) for value in (*op.inputs, *op.outputs)):
        # Statistics that a normalisation puts out beside its map are read by nothing.
        unread = [value for value in op.outputs if not value.readers]
        if not all(_has_rows(value, rows) or value in unread for value in (*op.inputs, *op.outputs)):
            return False
    if op.kind in _ALWAYS:
        return True
    if op.kind in _CHECKS:
        return _CHECKS[op.kind](op)
    if op.kind not in _BY_AXIS:
        return False
    return _names_no_first_axis(op, _BY_AXIS[op.kind])


def _names_no_first_axis(op: Op, position: int) -> bool:
    if op.outputs and op.inputs and op.kind == "slice" and op.outputs[0].shape[0] == op.inputs[0].shape[0]:
        return True  # x[:, a:b] is two slices, and the first of them takes all
    rank = len(op.inputs[0].shape)
    axes: Any = op.arguments[position] if len(op.arguments) > position else None
    if axes is None or axes == []:
        return False
    named = axes if isinstance(axes, list | tuple) else [axes]
    return all(axis % (rank + (op.kind in ("stack", "unsqueeze"))) != 0 for axis in named)


def _only_traced(position: int) -> Callable[[Op], bool]:
    """A product of matrices, of which only the one at a position depends on the images."""
    return lambda op: all((argument in op.inputs) == (i == position) for i, argument in enumerate(op.arguments[:3]))


_CHECKS: dict[str, Callable[[Op], bool]] = {
    "addmm": _only_traced(1),
    "as_strided": lambda op: op.outputs[0].shape == op.inputs[0].shape and set(op.inputs[0].shape[2:]) <= {1},
    "mm": _only_traced(0),
    "native_batch_norm": lambda op: op.arguments[5] is False,
    "permute": lambda op: op.arguments[1][0] == 0,
    "repeat": lambda op: op.arguments[1][0] == 1 and len(op.arguments[1]) == len(op.inputs[0].shape),
    "transpose": lambda op: all(axis % len(op.inputs[0].shape) != 0 for axis in op.arguments[1:3]),
}
