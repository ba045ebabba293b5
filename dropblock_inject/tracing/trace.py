"""The record of a forward pass: which module ran, what it read, what it put out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from torch import nn

from .operations import PADS, POOLS, SAME_VALUES

SHARED_WRITE = "shared_write"  # the kind of the operation that carries a write to the other views of the same memory

Key = int | str | None  # an argument's position or name, an output's place in a tuple; None: the output itself


@dataclass(eq=False)
class Value:
    """One tensor at one moment: an operation that writes in place makes a new value."""

    shape: tuple[int, ...]
    producer: Op | None = field(repr=False)
    readers: list[Op] = field(default_factory=list, repr=False)


@dataclass(eq=False)
class Op:
    """One operation on tensors that depend on the model's input.

    Attributes:
        index: its place in the order of execution.
        kind: its name without namespace and without the underscore of the in-place form: ``add``, ``convolution``.
        inputs: the tensors it reads, weights left out.
        call: the innermost module call it happens in.
        view: whether its output shares memory with an input.
        in_place: whether it overwrites an input.
        arguments: its positional arguments, with values in the place of the tensors that depend on the input.
    """

    index: int
    kind: str
    inputs: tuple[Value, ...]
    outputs: list[Value]
    call: Call
    view: bool
    in_place: bool
    arguments: tuple[Any, ...] = field(repr=False)

    @property
    def strides(self) -> tuple[int, ...] | None:
        """The strides of a convolution, pooling or padding; None for everything else."""
        if self.kind == "convolution" and not self.arguments[6]:  # not a transposed one
            return tuple(self.arguments[3])
        if self.kind in POOLS:
            kernel_size, *stride = self.arguments[1:3]
            return tuple((stride and stride[0]) or kernel_size)
        if self.kind in PADS:
            return (1,)
        return None


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        name: dotted name of the module.
        parent: the call it happens in; None for the model.
        first, last: the operations inside it are those with ``first <= index < last``.
        arguments, outputs: the tensors among them.
    """

    name: str
    module: nn.Module
    parent: Call | None
    first: int
    last: int = 0
    arguments: dict[int | str, Value] = field(default_factory=dict, repr=False)
    outputs: dict[int | str | None, Value] = field(default_factory=dict, repr=False)

    def contains(self, op: Op) -> bool:
        return self.first <= op.index < self.last

    def encloses(self, other: Call) -> bool:
        """Whether `other` happens inside this call; a call does not enclose itself."""
        parent = other.parent
        while parent is not None and parent is not self:
            parent = parent.parent
        return parent is self


@dataclass(eq=False)
class Trace:
    """The record of one forward pass.

    Attributes:
        calls, ops: in the order in which they began.
        inputs: the tensors given to the model.
        modules: those of the copy that ran, by name, whether they were called or not.
        iterated: names of the modules that went through their children instead of calling each by its name.
        error: what ended the pass early, if anything did: the record then goes as far as that.
        ended_in: the calls it ended in, from the outside in.
    """

    calls: list[Call]
    ops: list[Op]
    inputs: list[Value]
    modules: dict[str, nn.Module]
    iterated: set[str]
    error: Exception | None = None
    ended_in: tuple[Call, ...] = ()

    @cached_property
    def calls_of(self) -> dict[str, list[Call]]:
        """The calls of each module, in order, by its name. A module with several names goes by the first one."""
        calls = defaultdict(list)
        for call in self.calls:
            calls[call.name].append(call)
        return dict(calls)


def first_convolution(trace: Trace) -> Op | None:
    """The first convolution over more than one pixel; None if there is none."""
    for op in trace.ops:
        if op.kind == "convolution" and op.inputs and prod(op.inputs[0].shape[2:]) > 1:
            return op
    return None


def original(value: Value, inside: Call, kinds: frozenset[str] = SAME_VALUES) -> Value:
    """The value inside a call that identity modules and copies have handed on as this one."""
    while value.producer is not None and value.producer.kind in kinds and inside.contains(value.producer):
        value = value.producer.inputs[0]
    return value


def ancestors(values: Iterable[Value], inside: Call | None = None) -> set[Value]:
    """The values and all they are computed from; inside a call, its inputs included, if one is given."""
    pending = list(values)
    seen = set(pending)
    while pending:
        producer = pending.pop().producer
        if producer is not None and (inside is None or inside.contains(producer)):
            new = [value for value in producer.inputs if value not in seen]
            seen.update(new)
            pending += new
    return seen
