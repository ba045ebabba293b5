"""Hook points: for a tensor of a trace, the module whose argument or output it is."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from ..anatomy.feature_maps import Geometry
from ..anatomy.residual_adds import Residual
from ..surgery.mask_hooks import MaskArgument, MaskInPlace, MaskOutput
from ..surgery.site import PlannedHook
from ..surgery.unmask_hook import UnmaskArgument
from ..tracing.operations import MOVES, NONLINEAR, SAME_VALUES, SAVES_OUTPUT
from ..tracing.trace import Call, Key, Op, Trace, Value, original

_Reader = tuple[Call, int | str]  # a call, and the argument as which it is given a tensor


@dataclass(frozen=True)
class HookPoint:
    """A way to mask a tensor.

    Attributes:
        value: the tensor.
        host: dotted name of the module that puts it out, or that is given it.
        hooks: the hooks that mask it.
    """

    value: Value
    host: str
    hooks: tuple[PlannedHook, ...]


class HookFinder:
    """Finds hook points in one trace."""

    def __init__(self, trace: Trace, geometry: Geometry) -> None:
        self._geometry = geometry
        self.calls_of = trace.calls_of
        self.put_out_by: dict[Value, list[tuple[Call, Key]]] = defaultdict(list)
        for call in trace.calls:
            for key, value in call.outputs.items():
                self.put_out_by[value].append((call, key))

    def after(self, value: Value, scope: Call) -> HookPoint | None:
        """The innermost module inside `scope` that puts out the tensor.

        If there is none, one that puts it out after identities have handed it on, or after its axes were moved.
        """
        while True:
            for call, key in reversed(self.put_out_by[value]):
                if scope.encloses(call) and self.is_only_call(call, scope) and not _is_identity(call):
                    return _output(value, call, key)
            if len(value.readers) != 1 or value.readers[0].kind not in SAME_VALUES | MOVES:
                return None
            value = value.readers[0].outputs[0]
            if self._geometry.map_of(value) is None:
                return None

    def before(self, value: Value, scope: Call) -> HookPoint | None:
        """A module inside `scope` that alone reads the tensor."""
        readers = {call: key for op in value.readers for call, key in [_reading_call(value, op, scope)]}
        if len(readers) != 1:
            return None
        [(call, key)] = readers.items()
        return _argument(value, call, key) if call and self.is_only_call(call, scope) else None

    def shortcut(self, residual: Residual) -> HookPoint | None:
        """A way to mask a shortcut alone, as near to the addition as there is one.

        The modules of the branch that read the same tensor are given it unmasked. Where the code of the block itself
        reads the tensor there is no such way.
        """
        scope, value = residual.call, residual.skip
        passed = {residual.add}
        while (readers := self._other_readers(value, passed, scope)) is not None:
            point, unmasked = self._put_out(value, scope) or _given(value, scope), readers
            if point is None:
                point, unmasked = self._in_place(value, readers, passed, scope), readers[1:]
            if point is not None:
                return replace(point, hooks=(*point.hooks, *self._unmasking(unmasked, scope)))
            op = value.producer
            if readers or op is None or not scope.contains(op) or len(op.inputs) != 1:
                return None  # before the fork the branch would be masked as well
            if any(other.readers for other in op.outputs if other is not value):
                return None  # others read another part of the same split
            passed.add(op)
            value = op.inputs[0]
        return None

    def is_only_call(self, call: Call, scope: Call) -> bool:
        """Whether the module runs once in each call of the scope's module, and nowhere else in the network."""
        calls = self.calls_of[call.name]
        return len(calls) == len(self.calls_of[scope.name]) and sum(map(scope.encloses, calls)) == 1

    def calls_in(self, scope: Call) -> list[Call]:
        """The calls that happen inside a call."""
        return [call for calls in self.calls_of.values() for call in calls if scope.encloses(call)]

    def _other_readers(self, value: Value, passed: set[Op], scope: Call) -> list[_Reader] | None:
        """The calls in `scope` through which operations read the tensor, without the operations passed already.

        None if the code of the scope's module itself reads it.
        """
        readers = []
        for op in value.readers:
            if op not in passed and scope.contains(op):
                call, key = _reading_call(value, op, scope)
                if call is None or key is None:
                    return None
                if (call, key) not in readers:
                    readers.append((call, key))
        return readers

    def _put_out(self, value: Value, scope: Call) -> HookPoint | None:
        """The outermost module inside `scope` that puts out just the tensor; it may be an identity.

        A module that works in place does not count: the code may go on with the tensor that it was given.
        """
        if _is_argument_overwritten(value):
            return None
        for call, key in self.put_out_by[value]:
            if scope.encloses(call) and self.is_only_call(call, scope):
                return _output(value, call, key)
        return None

    def _in_place(self, value: Value, readers: list[_Reader], passed: set[Op], scope: Call) -> HookPoint | None:
        """The first module of the branch, where the shortcut is a tensor that the block's own code makes.

        The module must be the first to read the tensor. The tensor must be free to be overwritten: in memory of its
        own, and not needed by the backward pass of the operation that made it.
        """
        made_by = value.producer
        if not readers or made_by is None or not scope.contains(made_by):
            return None
        saves_output = made_by.kind in SAVES_OUTPUT or (made_by.kind in NONLINEAR and made_by.in_place)
        if made_by.view or saves_output:
            return None
        call, key = readers[0]
        if any(op in passed and op.index < call.first for op in value.readers):
            return None
        if not self.is_only_call(call, scope):
            return None
        return HookPoint(value, call.name, (PlannedHook(call.name, MaskInPlace, (key,)),))

    def _unmasking(self, readers: list[_Reader], scope: Call) -> tuple[PlannedHook, ...]:
        return tuple(
            dict.fromkeys(
                PlannedHook(call.name, UnmaskArgument, (key, self.is_only_call(call, scope))) for call, key in readers
            )
        )


def block_output(name: str, value: Value, key: Key) -> HookPoint:
    """The output of a block."""
    return HookPoint(value, name, (PlannedHook(name, MaskOutput, (key,)),))


def _output(value: Value, call: Call, key: Key) -> HookPoint:
    return HookPoint(value, call.name, (PlannedHook(call.name, MaskOutput, (key,)),))


def _argument(value: Value, call: Call, key: Key) -> HookPoint:
    return HookPoint(value, call.name, (PlannedHook(call.name, MaskArgument, (key,)),))


def _given(value: Value, call: Call) -> HookPoint | None:
    """The call's own argument that is this tensor."""
    for key, argument in call.arguments.items():
        if argument is value:
            return _argument(value, call, key)
    return None


def _reading_call(value: Value, op: Op, scope: Call) -> tuple[Call | None, Key]:
    """The outermost call inside `scope` that was given the tensor which an operation reads, and as which argument."""
    found: tuple[Call | None, Key] = None, None
    call: Call | None = op.call
    while call is not None and call is not scope:
        for key, argument in call.arguments.items():
            if argument is value:
                found = call, key
        call = call.parent
    return found


def _is_argument_overwritten(value: Value) -> bool:
    """Whether a module made the tensor by overwriting the one that it was given."""
    op = value.producer
    return op is not None and op.in_place and not set(op.inputs).isdisjoint(op.call.arguments.values())


def _is_identity(call: Call) -> bool:
    """Whether a call did nothing but hand on its argument."""
    output = call.outputs.get(None)
    return output is not None and original(output, call) in call.arguments.values()
