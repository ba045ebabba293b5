"""Convolution units: a convolution with the normalisation and the activation that follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ..tracing.operations import (
    CURVED,
    GATES,
    HOMOGENEOUS,
    MOVES,
    NONLINEAR,
    NORMS,
    POINTWISE,
    PRODUCTS,
    RESHAPES,
    SAME_VALUES,
    WEIGHTED,
)
from ..tracing.trace import Call, Op, Trace, Value, original
from .feature_maps import Geometry


@dataclass(eq=False)
class ConvNormAct:
    """A convolution with the normalisation and the activation that follow it, where it has them.

    Attributes:
        op: the convolution (of a linear layer over the channels: its matrix product).
        convolved: what the convolution puts out.
    """

    op: Op
    convolved: Value

    @property
    def dilation(self) -> int:
        """The dilation that a stride may have been traded for: a power of two; 1 if it cannot be."""
        largest = max(self.op.arguments[5]) if max(self._kernel_size) > 1 else 1
        return largest if largest.bit_count() == 1 else 1

    @property
    def cuts_patches(self) -> bool:
        """Whether the convolution reads patches side by side, as the embedding before a transformer does."""
        return max(self._kernel_size) > 1 and tuple(self.op.arguments[3]) == self._kernel_size

    @property
    def _kernel_size(self) -> tuple[int, ...]:
        return tuple(self.op.arguments[1].shape[2:]) if self.op.kind == "convolution" else (1,)

    def tail(self, inside: Call) -> Value:
        """What the unit puts out, its norm and activation included as far as they are inside the given call."""
        return self._follow(inside).tail

    def is_gate(self, inside: Call) -> bool:
        """Whether it ends in a sigmoid or softmax: weights for a feature map, not a feature map."""
        activation = self._follow(inside).activation
        return activation is not None and activation.kind in GATES

    def is_activated(self, inside: Call) -> bool:
        """Whether it ends in an activation that is no gate."""
        activation = self._follow(inside).activation
        return activation is not None and activation.kind not in GATES

    def before_activation(self, inside: Call) -> Value | None:
        """What goes into the activation, if a mask and its scale may as well stand before it; else None."""
        tail, _, activation = self._follow(inside)
        if activation is None or activation.kind not in HOMOGENEOUS or tail not in activation.outputs:
            return None
        return activation.inputs[0]

    def layers(self, inside: Call) -> list[str]:
        """The dotted names of the modules inside a call that compute it: convolution, normalisation, activation."""
        end = self._follow(inside)
        ops = [op for op in (self.op, end.norm, end.activation) if op is not None]
        return list(dict.fromkeys(op.call.name for op in ops if inside.encloses(op.call)))

    def _follow(self, inside: Call) -> _End:
        tail = value = self.convolved
        norm, activation = None, None
        while value.readers and all(map(inside.contains, value.readers)):
            op = value.readers[0]
            is_alone = len(value.readers) == 1
            if is_alone and (
                op.kind in SAME_VALUES or (op.kind in MOVES and len(op.outputs[0].shape) == len(tail.shape))
            ):
                value = op.outputs[0]
            elif is_alone and op.kind in NORMS and norm is None:
                tail = value = op.outputs[0]
                norm = op
            elif is_alone and norm is None and (reshaped := _norm_between_views(value)):
                tail = value = reshaped[1]
                norm = reshaped[0]
            elif is_alone and norm is None and (shifted := _frozen_norm(op)):
                tail = value = shifted
                norm = op
            elif activation is None and (activation := _activation(value, inside)):
                tail = value = activation.outputs[0]
            else:
                break
            if norm is not None and activation is not None:
                break
        return _End(tail, norm, activation)


class _End(NamedTuple):
    """What a convolution unit puts out, and the operations of its norm and its activation, where it has them."""

    tail: Value
    norm: Op | None
    activation: Op | None


def _activation(value: Value, inside: Call) -> Op | None:
    """The last operation of the activation that a tensor goes into, within a call; None if it goes into anything else.

    An activation may be written by hand, as ``x * sigmoid(x)`` is: functions of each pixel of that tensor alone, of
    which one is no straight line, and one tensor comes out.
    """
    if len(value.readers) == 1 and value.readers[0].kind in NONLINEAR - POINTWISE and len(value.readers[0].inputs) == 1:
        return value.readers[0]
    last, is_curved = None, False
    known, pending = {value}, set(value.readers)
    while pending:
        op = min(pending, key=lambda op: op.index)
        if op.kind not in POINTWISE or not known.issuperset(op.inputs) or not inside.contains(op):
            break
        known.update(op.outputs)
        pending.remove(op)
        is_bent = op.kind in CURVED or (op.kind in PRODUCTS and len(op.inputs) > 1)
        is_curved = is_curved or is_bent
        if is_curved and not pending and (is_bent or len(op.inputs) > 1):
            last = op
        pending.update(op.outputs[0].readers)
    return last


def _norm_between_views(value: Value) -> tuple[Op, Value] | None:
    """A normalisation between two views, as instance norm is one, and what comes out; None if there is none."""
    ops: list[Op] = []
    inner = value
    while len(ops) < 3 and len(inner.readers) == 1:
        ops.append(inner.readers[0])
        inner = ops[-1].outputs[0]
    if len(ops) < 3 or ops[0].kind not in RESHAPES or ops[1].kind not in NORMS or ops[2].kind not in RESHAPES:
        return None
    return (ops[1], inner) if inner.shape == value.shape else None


def _frozen_norm(op: Op) -> Value | None:
    """What a normalisation written as ``x * scale + shift`` puts out, if `op` begins one."""
    if op.kind == "mul" and len(op.inputs) == 1 and len(op.outputs[0].readers) == 1:
        following = op.outputs[0].readers[0]
        if following.kind == "add" and len(following.inputs) == 1 and following.call is op.call:
            return following.outputs[0]
    return None


def find_units(trace: Trace, geometry: Geometry) -> list[ConvNormAct]:
    """The convolution units on feature maps in a trace, in the order of execution.

    A linear layer over the channels of a map whose channels come last is one of a 1x1 convolution.
    """
    linear = {}
    for call in trace.calls:
        if isinstance(call.module, nn.Linear) and None in call.outputs:
            feature_map = geometry.map_of(call.outputs[None])
            if feature_map and feature_map.channel_dim == -1 and call.last > call.first:
                linear[call.first] = call.outputs[None]
    units: dict[Op, ConvNormAct] = {}
    scores = _attention_scores(trace, geometry)
    for op in trace.ops:
        if op.kind == "convolution" and geometry.map_of(op.outputs[0]) and op.inputs[0] not in scores:
            units[op] = ConvNormAct(op, _put_out(op, geometry))
        elif op.index in linear:
            units[op] = ConvNormAct(op, linear[op.index])
    for unit in list(units.values()):
        while unit.op in units and (adapter := _adapter_beside(unit)):
            unit.convolved = adapter[-1].outputs[0]
            for op in adapter:
                units.pop(op, None)
    return list(units.values())


def _attention_scores(trace: Trace, geometry: Geometry) -> set[Value]:
    """The tensors with a number for each pair of tokens, and an axis for the heads. They have the shape of a map.

    A map of which the rows or columns are mixed by a matrix is a map: a factor of the product has its shape.
    """
    scores: set[Value] = set()
    for op in trace.ops:
        for value in op.outputs:
            if len(value.shape) < 4 or value.shape[-1] != value.shape[-2]:
                continue
            made_of = op.inputs[0].producer if op.kind in RESHAPES else None
            if made_of is not None and made_of.kind in ("baddbmm", "bmm"):
                if not any(_is_view_of_map(factor, value.shape, geometry) for factor in made_of.inputs):
                    scores.add(value)
            elif op.inputs[0].shape[-2:] == value.shape[-2:] and scores.issuperset(op.inputs):
                scores.add(value)
    return scores


def _is_view_of_map(value: Value, shape: tuple[int, ...], geometry: Geometry) -> bool:
    """Whether a tensor is a view of a feature map of some shape."""
    while value.shape != shape and value.producer is not None and value.producer.kind in RESHAPES | SAME_VALUES:
        value = value.producer.inputs[0]
    return value.shape == shape and geometry.map_of(value) is not None


def _adapter_beside(unit: ConvNormAct) -> list[Op]:
    """The operations of a second linear map of the unit's input, which its module adds to the convolution (LoRA).

    They end in the addition. Empty if there is none.
    """
    readers = unit.convolved.readers
    if len(readers) != 1 or readers[0].kind != "add" or len(readers[0].inputs) != 2:
        return []
    add = readers[0]
    if (
        add.call is unit.op.call
        or not add.call.encloses(unit.op.call)
        or add.outputs[0] not in add.call.outputs.values()
    ):
        return []
    path, value = [add], next(value for value in add.inputs if value is not unit.convolved)
    source = original(unit.op.inputs[0], add.call)
    while original(value, add.call) is not source:
        op = original(value, add.call).producer
        is_linear = op is not None and (op.kind in WEIGHTED or op.kind == "mul") and len(op.inputs) == 1
        if op is None or not is_linear or not add.call.contains(op):
            return []
        path.insert(0, op)
        value = op.inputs[0]
    return path if len(path) > 1 else []


def _put_out(op: Op, geometry: Geometry) -> Value:
    """The map that a convolution puts out: with weights for each image its module puts them side by side before it."""
    value = op.outputs[0]
    while value not in op.call.outputs.values():
        if len(value.readers) != 1 or value.readers[0].call is not op.call:
            return op.outputs[0]
        following = value.readers[0]
        if following.kind not in RESHAPES | MOVES | SAME_VALUES:
            return op.outputs[0]
        value = following.outputs[0]
    return value if geometry.map_of(value) is not None else op.outputs[0]
