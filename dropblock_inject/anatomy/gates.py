"""Gates: tensors that only weigh other tensors, as those of an attention module do."""

from __future__ import annotations

from ..tracing.operations import GATES, POINTWISE
from ..tracing.trace import Op, Trace, Value


def gate_values(trace: Trace) -> set[Value]:
    """The tensors from which all paths lead to a sigmoid or softmax that is nothing but a factor of another tensor."""
    ends = {op for op in trace.ops if op.kind in GATES and is_factor(op.outputs[0])}
    gates: set[Value] = set()
    pending = [value for op in ends for value in op.inputs]

    def is_inside(op: Op) -> bool:
        used = [value for value in op.outputs if value.readers]
        return op in ends or (bool(used) and gates.issuperset(used))

    while pending:
        value = pending.pop()
        if value not in gates and all(map(is_inside, value.readers)):
            gates.add(value)
            if value.producer is not None:
                pending += value.producer.inputs
    return gates


def is_factor(value: Value) -> bool:
    """Whether a tensor, or a function of each of its pixels, is nothing but a factor of another tensor."""
    if not value.readers:
        return False
    for op in value.readers:
        if op.kind == "mul" and len(op.inputs) > 1:
            continue
        if op.kind not in POINTWISE or len(op.inputs) > 1 or not is_factor(op.outputs[0]):
            return False
    return True
