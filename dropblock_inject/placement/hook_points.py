"""Ways to the tensors of a trace: which module, and which of its arguments or outputs, gives a hold on one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

from torch import nn

from ..anatomy.feature_maps import Geometry
from ..anatomy.residual_adds import Residual, original
from ..surgery.site import Argument, Channels, Point, Sight
from ..tracing.operations import MOVES, SAME_VALUES, SAVES_OUTPUT
from ..tracing.trace import Call, Key, Op, Trace, Value

_SLOT = "drop_block"  # what timm calls the identity that waits for a DropBlock


@dataclass(frozen=True)
class Reached:
    """A way to a tensor, here as the value of the trace: see :class:`Splice`."""

    value: Value
    host: str
    point: Point
    key: Key = None
    unmasked: tuple[Argument, ...] = ()
    sight: Sight | None = None


class Reach:
    """Finds ways to the tensors of one trace."""

    def __init__(self, trace: Trace, geometry: Geometry) -> None:
        self._geometry = geometry
        self._calls_of: dict[str, list[Call]] = defaultdict(list)
        self._put_out_by: dict[Value, list[tuple[Call, Key]]] = defaultdict(list)
        for call in trace.calls:
            self._calls_of[call.name].append(call)
            for key, value in call.outputs.items():
                self._put_out_by[value].append((call, key))

    def after(self, value: Value, scope: Call) -> Reached | None:
        """The innermost module inside `scope`, called once there, that puts out `value`.

        If there is none, one that puts it out after identities inside it have handed it on, or moved its axes.
        """
        while True:
            for call, key in reversed(self._put_out_by[value]):
                if scope.encloses(call) and self._is_only_call(call, scope) and not _is_identity(call):
                    return Reached(value, call.name, "after", key)
            if len(value.readers) != 1 or value.readers[0].kind not in SAME_VALUES | MOVES:
                return None
            value = value.readers[0].outputs[0]
            if self._geometry.map_of(value) is None:
                return None

    def before(self, value: Value, scope: Call) -> Reached | None:
        """A module inside `scope`, called once there, that alone reads `value`."""
        readers = {call: key for op in value.readers for call, key in [self._reading_call(value, op, scope)]}
        if len(readers) != 1:
            return None
        [(call, key)] = readers.items()
        return Reached(value, call.name, "before", key) if call and self._is_only_call(call, scope) else None

    def slot(self, value: Value, scope: Call) -> Reached | None:
        """The identity that waits for a DropBlock on the way to an activation whose input is `value`."""
        while value.producer is not None and value.producer.kind in SAME_VALUES:
            call = value.producer.call
            if call.name.rpartition(".")[2] == _SLOT and type(call.module) is nn.Identity:
                return Reached(value, call.name, "slot") if self._is_only_call(call, scope) else None
            value = value.producer.inputs[0]
        return None

    def shortcut(self, residual: Residual) -> Reached | None:
        """A way to a shortcut, as near to the addition as there is one: a projection, an identity, the block's input.

        What the branch reads of the same tensor is given to it unmasked. Where the code of the block itself reads the
        tensor there is no such way; then it is the end of the branch that is corrected.
        """
        scope, value = residual.call, residual.skip
        passed = {residual.add}
        while (readers := self._other_readers(value, passed, scope)) is not None:
            reached, unmasked = self._put_out(value, scope) or _given(value, scope), readers
            if reached is None:
                reached, unmasked = self._beside(value, readers, passed, scope), readers[1:]
            if reached is not None:
                return replace(reached, unmasked=self._arguments(unmasked, scope))
            op = value.producer
            if readers or op is None or not scope.contains(op) or len(op.inputs) != 1:
                break  # behind the fork the branch would be masked as well
            if any(other.readers for other in op.outputs if other is not value):
                break  # a split, of which others read another part
            passed.add(op)
            value = op.inputs[0]
        return self._branch_end(residual)

    def _other_readers(self, value: Value, known: set[Op], scope: Call) -> list[tuple[Call, int | str]] | None:
        """The calls in `scope` through which all but the `known` operations read `value`, in order, as which argument.

        None if it is also read otherwise, by the code of the module itself.
        """
        readers = []
        for op in value.readers:
            if op not in known and scope.contains(op):
                call, key = self._reading_call(value, op, scope)
                if call is None or key is None:
                    return None
                if (call, key) not in readers:
                    readers.append((call, key))
        return readers

    def _put_out(self, value: Value, scope: Call) -> Reached | None:
        """The outermost module inside `scope`, called once there, that puts out just `value`; maybe an identity."""
        for call, key in self._put_out_by[value]:
            if scope.encloses(call) and self._is_only_call(call, scope):
                return Reached(value, call.name, "after", key)
        return None

    def _beside(
        self, value: Value, readers: list[tuple[Call, int | str]], passed: set[Op], scope: Call
    ) -> Reached | None:
        """The first module of the branch, where the shortcut is a tensor of the block's own making.

        It has to be the first to read it, and the tensor must be free to be written: in memory of its own, and not
        needed by the backward pass of what made it.
        """
        made_by = value.producer
        if not readers or made_by is None or not scope.contains(made_by):
            return None
        if made_by.view or made_by.kind in SAVES_OUTPUT:
            return None
        call, key = readers[0]
        if any(op in passed and op.index < call.first for op in value.readers):
            return None
        return Reached(value, call.name, "beside", key) if self._is_only_call(call, scope) else None

    def _arguments(self, readers: list[tuple[Call, int | str]], scope: Call) -> tuple[Argument, ...]:
        return tuple(dict.fromkeys(Argument(call.name, key, self._is_only_call(call, scope)) for call, key in readers))

    def _branch_end(self, residual: Residual) -> Reached | None:
        """The end of the branch beside a shortcut that the code of the block reads, and where that shortcut is seen.

        It may be some of the channels that a module puts out, if nobody else reads those.
        """
        scope, end = residual.call, residual.branch
        channels: Channels | None = None
        while len(end.readers) == 1 or (channels and self._is_split(end)):
            for call, key in reversed(self._put_out_by[end]):
                if scope.encloses(call):
                    return self._seen_before(residual, call, key, channels)
            part = self._part_of(end)
            if part and not channels:
                end, channels = part
            elif end.producer is not None and end.producer.kind in SAME_VALUES:
                end = end.producer.inputs[0]
            else:
                return None
        return None

    def _seen_before(self, residual: Residual, host: Call, key: Key, channels: Channels | None) -> Reached | None:
        """The host, the end of a branch, and a place before it that sees the shortcut.

        The shortcut is looked for as the map it is, then as tokens, then as some of the channels of another map.
        """
        scope, shortcut = residual.call, original(residual.skip, residual.call)
        guises: list[tuple[Value, bool, Channels | None]] = [(shortcut, False, None)]
        guises += [(tokens, True, None) for tokens in _as_tokens(shortcut)]
        part = self._part_of(shortcut)
        if part:
            guises.append((original(part[0], scope), False, part[1]))
        for seen, as_tokens, seen_channels in guises:
            for call, seen_as, output in self._sights(seen, scope, host):
                seen_at = call.last if output else call.first
                calls = sum(
                    scope.encloses(other) and other.last > seen_at and other.first <= host.first
                    for other in self._calls_of[host.name]
                )
                sight = Sight(call.name, seen_as, output, as_tokens, seen_channels, calls, channels)
                return Reached(residual.skip, host.name, "end", key, sight=sight)
        return None

    def _sights(self, value: Value, scope: Call, host: Call) -> Iterator[tuple[Call, Key, bool]]:
        """The calls that are given a value, or put it out, before the host is called; as what; whether put out."""
        for key, argument in scope.arguments.items():
            if argument is value:
                yield scope, key, False
        for call in self._calls_in(scope):
            if call.first < host.first and call is not host and self._is_only_call(call, scope):
                yield from ((call, key, False) for key, argument in call.arguments.items() if argument is value)
                yield from ((call, key, True) for key, output in call.outputs.items() if output is value)

    def _part_of(self, value: Value) -> tuple[Value, Channels] | None:
        """The feature map of which `value` is some of the channels, and from which one to which."""
        op, feature_map = value.producer, self._geometry.map_of(value)
        if op is None or feature_map is None or op.kind not in ("slice", "split", "split_with_sizes"):
            return None
        axis, step = feature_map.channel_dim % len(value.shape), 1
        if op.kind == "slice":  # its arguments: the tensor, dim, start, end, step
            defaults: tuple[Any, ...] = (None, 0, None, None, 1)
            _, dim, start, _, step = op.arguments + defaults[len(op.arguments) :]
            first = range(op.inputs[0].shape[axis])[start:].start
        else:  # the tensor, size or sizes, dim
            dim = (*op.arguments, 0)[2]
            first = sum(output.shape[axis] for output in op.outputs[: op.outputs.index(value)])
        if dim % len(value.shape) != axis or step != 1:
            return None
        return op.inputs[0], (first, first + value.shape[axis])

    def _is_split(self, value: Value) -> bool:
        """Whether all who read a feature map take some channels of it, and no two the same."""
        parts = [self._part_of(output) for op in value.readers for output in op.outputs]
        taken = sorted(part[1] for part in parts if part)
        return len(taken) == len(parts) and all(one[1] <= other[0] for one, other in pairwise(taken))

    def _calls_in(self, scope: Call) -> list[Call]:
        return [call for calls in self._calls_of.values() for call in calls if scope.encloses(call)]

    def _reading_call(self, value: Value, op: Op, scope: Call) -> tuple[Call | None, Key]:
        """The outermost call inside `scope` that was given the `value` which `op` reads, and as which argument."""
        found: tuple[Call | None, Key] = None, None
        call: Call | None = op.call
        while call is not None and call is not scope:
            for key, argument in call.arguments.items():
                if argument is value:
                    found = call, key
            call = call.parent
        return found

    def _is_only_call(self, call: Call, scope: Call) -> bool:
        return sum(scope.encloses(other) for other in self._calls_of[call.name]) == 1


def _as_tokens(value: Value) -> list[Value]:
    """The feature map as tokens, if it is flattened and then transposed to be such."""
    if len(value.shape) < 3:
        return []
    batch, channels, *size = value.shape
    flat = [op.outputs[0] for op in value.readers if op.kind == "view"]
    return [
        op.outputs[0]
        for between in flat
        for op in between.readers
        if op.kind == "transpose" and op.outputs[0].shape == (batch, prod(size), channels)
    ]


def _is_identity(call: Call) -> bool:
    """Whether a call did nothing but hand on its argument."""
    output = call.outputs.get(None)
    return output is not None and original(output, call) in call.arguments.values()


def _given(value: Value, call: Call) -> Reached | None:
    """The call's own argument that `value` is."""
    for key, argument in call.arguments.items():
        if argument is value:
            return Reached(value, call.name, "before", key)
    return None
