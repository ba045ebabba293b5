"""Where a DropBlock can be hooked in: from the blocks of a trace to the spots in its modules."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import nn

from .blocks import Block
from .geometry import FeatureMap, Geometry
from .kinds import MOVES, SAME_VALUES, SAVES_OUTPUT
from .residuals import Residual, original
from .sites import Argument, Point, Sight, Splice, Where
from .trace import Call, Key, Op, Trace, Value
from .units import Unit

NORM_MODULES = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_SLOT = "drop_block"  # what timm calls the identity that waits for a DropBlock


@dataclass(frozen=True)
class Spot:
    """A place for a DropBlock in a block: what is masked there, and how to get at it."""

    where: Where
    host: str
    map: FeatureMap
    splice: Splice


@dataclass(frozen=True)
class _Reached:
    """A way to a tensor, here as the value of the trace: see :class:`Splice`."""

    value: Value
    host: str
    point: Point
    key: Key = None
    unmasked: tuple[Argument, ...] = ()
    sight: Sight | None = None


class Placement:
    """Finds the spots of blocks of one trace."""

    def __init__(self, trace: Trace, geometry: Geometry) -> None:
        self._geometry = geometry
        self._iterated = trace.iterated
        self._calls_of: dict[str, list[Call]] = defaultdict(list)
        self._put_out_by: dict[Value, list[tuple[Call, Key]]] = defaultdict(list)
        self._attributes: Counter[tuple[str, str]] = Counter()
        self.unreachable: list[str] = []  # blocks that have a shortcut which no module gives a hold on
        for call in trace.calls:
            self._calls_of[call.name].append(call)
            for key, value in call.outputs.items():
                self._put_out_by[value].append((call, key))

    def spots(self, block: Block) -> Iterator[Spot]:
        """The spots of a block: along its branches, on its shortcuts, after its output."""
        for unit in block.units:
            yield from self._after_unit(block, unit)
        for residual in block.residuals:
            yield from self._at_branch_end(block, residual)
            yield from self._on_skip(block, residual)
        yield from self._at_output(block)

    # Each of these yields one spot, or none where there is nothing to mask.

    def _after_unit(self, block: Block, unit: Unit) -> Iterator[Spot]:
        tail = unit.tail(block.scope)
        if unit.is_gate(block.scope):
            return
        reached = self._after(tail, block.scope)
        before_activation = unit.before_activation(block.scope)
        if before_activation is not None:
            slot = self._slot(before_activation, block.scope)
            if slot is not None:
                yield self._spot(block, "branch", slot, host=(reached or slot).host)
                return
            reached = reached or self._after(original(before_activation, block.scope), block.scope)
        reached = reached or self._before(tail, block.scope) or self._after(unit.convolved, block.scope)
        if reached is not None:
            yield self._spot(block, "branch", reached, [unit])

    def _at_branch_end(self, block: Block, residual: Residual) -> Iterator[Spot]:
        """Where the branch does not end in a convolution unit: its end, before drop path."""
        call = residual.call
        end = original(residual.branch, call)
        if _unmoved(end, call) in {_unmoved(unit.tail(call), call) for unit in block.units}:
            return
        reached = self._after(end, call) or self._before(end, call)
        if reached is not None:
            yield self._spot(block, "branch", reached)

    def _on_skip(self, block: Block, residual: Residual) -> Iterator[Spot]:
        """As near to the addition as there is a module to hook: a projection, an identity, else the block's input.

        What the branch reads of the same tensor is given to it unmasked.
        """
        call = residual.call
        branch = [unit for unit in block.units if unit.op in residual.branch_ops]
        value: Value = residual.skip
        passed = {residual.join}
        while (readers := self._other_readers(value, passed, call)) is not None:
            reached = self._put_out(value, call) or _given(value, call)
            unmasked = readers
            if reached is None:
                reached, unmasked = self._beside(value, readers, passed, call), readers[1:]
            if reached is not None:
                yield self._spot(block, "skip", replace(reached, unmasked=self._arguments(unmasked, call)), branch)
                return
            op = value.producer
            if readers or op is None or not call.contains(op) or len(op.inputs) != 1:
                break  # behind the fork the branch would be masked as well
            passed.add(op)
            value = op.inputs[0]
        reached = self._branch_end(residual)
        if reached is None:
            self.unreachable.append(block.name)
        else:
            yield self._spot(block, "skip", reached, branch)

    def _at_output(self, block: Block) -> Iterator[Spot]:
        key, value = block.output
        if block.scope.parent is not None:
            yield self._spot(block, "output", _Reached(value, block.name, "after", key))
        elif block.residuals:
            reached = self._after(value, block.scope) or self._before(value, block.scope)
            if reached is not None:
                yield self._spot(block, "output", reached)
        else:
            for spot in self._after_unit(block, block.units[0]):
                yield replace(spot, where="output")

    def _after(self, value: Value, scope: Call) -> _Reached | None:
        """The innermost module inside `scope`, called once there, that puts out `value`.

        If there is none, one that puts it out after identities inside it have handed it on, or moved its axes.
        """
        while True:
            for call, key in reversed(self._put_out_by[value]):
                if scope.encloses(call) and self._is_only_call(call, scope) and not _is_identity(call):
                    return _Reached(value, call.name, "after", key)
            if len(value.readers) != 1 or value.readers[0].kind not in SAME_VALUES | MOVES:
                return None
            value = value.readers[0].outputs[0]
            if self._geometry.map_of(value) is None:
                return None

    def _put_out(self, value: Value, scope: Call) -> _Reached | None:
        """The outermost module inside `scope`, called once there, that puts out just `value`; maybe an identity."""
        for call, key in self._put_out_by[value]:
            if scope.encloses(call) and self._is_only_call(call, scope):
                return _Reached(value, call.name, "after", key)
        return None

    def _before(self, value: Value, scope: Call) -> _Reached | None:
        """A module inside `scope`, called once there, that alone reads `value`."""
        readers = {call: key for op in value.readers for call, key in [self._reading_call(value, op, scope)]}
        if len(readers) != 1:
            return None
        [(call, key)] = readers.items()
        return _Reached(value, call.name, "before", key) if call and self._is_only_call(call, scope) else None

    def _slot(self, value: Value, scope: Call) -> _Reached | None:
        """The identity that waits for a DropBlock on the way to an activation whose input is `value`."""
        while value.producer is not None and value.producer.kind in SAME_VALUES:
            call = value.producer.call
            if call.name.rpartition(".")[2] == _SLOT and type(call.module) is nn.Identity:
                return _Reached(value, call.name, "slot") if self._is_only_call(call, scope) else None
            value = value.producer.inputs[0]
        return None

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

    def _arguments(self, readers: list[tuple[Call, int | str]], scope: Call) -> tuple[Argument, ...]:
        return tuple(dict.fromkeys(Argument(call.name, key, self._is_only_call(call, scope)) for call, key in readers))

    def _beside(
        self, value: Value, readers: list[tuple[Call, int | str]], passed: set[Op], scope: Call
    ) -> _Reached | None:
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
        return _Reached(value, call.name, "beside", key) if self._is_only_call(call, scope) else None

    def _branch_end(self, residual: Residual) -> _Reached | None:
        """The end of the branch beside a shortcut that the code of the block reads, and where that shortcut is seen."""
        scope, end = residual.call, residual.branch
        while True:
            if len(end.readers) != 1:
                return None
            for call, key in reversed(self._put_out_by[end]):
                if scope.encloses(call):
                    return self._seen_before(residual, call, key)
            if end.producer is None or end.producer.kind not in SAME_VALUES:
                return None
            end = end.producer.inputs[0]

    def _seen_before(self, residual: Residual, host: Call, key: Key) -> _Reached | None:
        """The host, the end of a branch, and a place before it that sees the shortcut: as a map, or else as tokens."""
        scope, shortcut = residual.call, original(residual.skip, residual.call)
        as_tokens = _as_tokens(shortcut)
        sights: list[tuple[Call, Key, bool, bool]]
        sights = [(scope, k, False, False) for k, value in scope.arguments.items() if value is shortcut]
        for call in self._calls_in(scope):
            if call.first < host.first and call is not host and self._is_only_call(call, scope):
                sights += [(call, k, False, False) for k, value in call.arguments.items() if value is shortcut]
                sights += [(call, k, False, True) for k, value in call.arguments.items() if value in as_tokens]
                sights += [(call, k, True, False) for k, value in call.outputs.items() if value is shortcut]
        if not sights:
            return None
        call, seen_as, output, tokens = min(sights, key=lambda sight: sight[3])
        seen_at = call.last if output else call.first
        calls = sum(
            scope.encloses(other) and other.last > seen_at and other.first <= host.first
            for other in self._calls_of[host.name]
        )
        sight = Sight(call.name, seen_as, output, tokens, calls)
        return _Reached(residual.skip, host.name, "end", key, sight=sight)

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

    def _spot(
        self,
        block: Block,
        where: Where,
        reached: _Reached,
        near: Sequence[Unit] = (),
        host: str | None = None,
    ) -> Spot:
        feature_map = self._geometry.map_of(reached.value)
        assert feature_map is not None  # spots are on feature maps by construction
        if reached.point == "slot":
            owner, _, attribute = reached.host.rpartition(".")
        else:
            owner = self._owner(block, where, reached, near)
            attribute = self._free_attribute(owner, where)
        splice = Splice(owner, attribute, reached.host, reached.point, reached.key, reached.unmasked, reached.sight)
        return Spot(where, host or reached.host, feature_map, splice)

    def _owner(self, block: Block, where: Where, reached: _Reached, near: Sequence[Unit]) -> str:
        """The module to register a DropBlock on: one that runs with it, so that it shares mode and fate.

        On a branch the convolution of the unit, else the module it hangs on. Not one that runs whatever is registered
        on it, nor a normalisation: who freezes that with ``norm.eval()`` would switch the DropBlock off.
        """
        behind = _convolution_behind(reached.value, block.scope)
        convolutions = [op.call.name for op in ([behind] if behind else []) + [unit.op for unit in near]]
        candidates = [*convolutions, reached.host] if where == "branch" else [reached.host, *convolutions]
        candidates += [block.name, *(unit.op.call.name for unit in block.units)]
        return next((name for name in candidates if self._can_own(name)), candidates[0])

    def _can_own(self, name: str) -> bool:
        call: Call | None = self._calls_of[name][0]
        if name in self._iterated:
            return False
        while call is not None:
            if isinstance(call.module, NORM_MODULES):
                return False
            call = call.parent
        return True

    def _free_attribute(self, owner: str, where: Where) -> str:
        self._attributes[owner, where] += 1
        number = self._attributes[owner, where]
        attribute = f"drop_{where}{number if number > 1 else ''}"
        while hasattr(self._calls_of[owner][0].module, attribute):
            attribute += "_"
        return attribute


def _convolution_behind(value: Value, scope: Call) -> Op | None:
    """The convolution inside `scope` that `value` comes from by operations on a single tensor."""
    op = value.producer
    while op is not None and scope.contains(op) and len(op.inputs) == 1:
        if op.kind == "convolution":
            return op
        op = op.inputs[0].producer
    return None


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


def _unmoved(value: Value, inside: Call) -> Value:
    """The value this one has the numbers of, whatever the order of the axes."""
    return original(value, inside, SAME_VALUES | MOVES)


def _given(value: Value, call: Call) -> _Reached | None:
    """The call's own argument that `value` is."""
    for key, argument in call.arguments.items():
        if argument is value:
            return _Reached(value, call.name, "before", key)
    return None
