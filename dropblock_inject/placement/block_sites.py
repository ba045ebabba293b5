"""Where a DropBlock can be hooked in: from the blocks of a trace to the spots in its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..anatomy.blocks import Block
from ..anatomy.conv_norm_act import ConvNormAct
from ..anatomy.feature_maps import FeatureMap, Geometry
from ..anatomy.residual_adds import Residual, original
from ..surgery.site import Splice, Where
from ..tracing.operations import MOVES, SAME_VALUES
from ..tracing.trace import Call, Op, Trace, Value
from .hook_points import Reach, Reached

NORM_MODULES = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Spot:
    """A place for a DropBlock in a block: what is masked there, and how to get at it."""

    where: Where
    host: str
    map: FeatureMap
    splice: Splice


class Placement:
    """Finds the spots of blocks of one trace."""

    def __init__(self, trace: Trace, geometry: Geometry) -> None:
        self._reach = Reach(trace, geometry)
        self._geometry = geometry
        self._iterated = trace.iterated
        self._call_of = {call.name: call for call in reversed(trace.calls)}
        self._attributes: Counter[tuple[str, str]] = Counter()
        self.unreachable: list[str] = []  # blocks that have a shortcut which no module gives a hold on

    def spots(self, block: Block) -> Iterator[Spot]:
        """The spots of a block: along its branches, on its shortcuts, after its output."""
        for unit in block.units:
            yield from self._after_unit(block, unit)
        for residual in block.residuals:
            yield from self._at_branch_end(block, residual)
            yield from self._on_skip(block, residual)
        yield from self._at_output(block)

    # Each of these yields one spot, or none where there is nothing to mask.

    def _after_unit(self, block: Block, unit: ConvNormAct) -> Iterator[Spot]:
        tail = unit.tail(block.scope)
        if unit.is_gate(block.scope):
            return
        reached = self._reach.after(tail, block.scope)
        before_activation = unit.before_activation(block.scope)
        if before_activation is not None:
            slot = self._reach.slot(before_activation, block.scope)
            if slot is not None:
                yield self._spot(block, "branch", slot, host=(reached or slot).host)
                return
            reached = reached or self._reach.after(original(before_activation, block.scope), block.scope)
        reached = reached or self._reach.before(tail, block.scope) or self._reach.after(unit.convolved, block.scope)
        if reached is not None:
            yield self._spot(block, "branch", reached, [unit])

    def _at_branch_end(self, block: Block, residual: Residual) -> Iterator[Spot]:
        """Where the branch does not end in a convolution unit: its end, before drop path."""
        call = residual.call
        end = original(residual.branch, call)
        if _unmoved(end, call) in {_unmoved(unit.tail(call), call) for unit in block.units}:
            return
        reached = self._reach.after(end, call) or self._reach.before(end, call)
        if reached is not None:
            yield self._spot(block, "branch", reached)

    def _on_skip(self, block: Block, residual: Residual) -> Iterator[Spot]:
        reached = self._reach.shortcut(residual)
        if reached is None:
            self.unreachable.append(block.name)
        else:
            branch = [unit for unit in block.units if unit.op in residual.branch_ops]
            yield self._spot(block, "skip", reached, branch)

    def _at_output(self, block: Block) -> Iterator[Spot]:
        key, value = block.output
        if block.scope.parent is not None:
            yield self._spot(block, "output", Reached(value, block.name, "after", key))
        elif block.residuals:
            reached = self._reach.after(value, block.scope) or self._reach.before(value, block.scope)
            if reached is not None:
                yield self._spot(block, "output", reached)
        else:
            for spot in self._after_unit(block, block.units[0]):
                yield replace(spot, where="output")

    def _spot(
        self,
        block: Block,
        where: Where,
        reached: Reached,
        near: Sequence[ConvNormAct] = (),
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

    def _owner(self, block: Block, where: Where, reached: Reached, near: Sequence[ConvNormAct]) -> str:
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
        call: Call | None = self._call_of[name]
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
        while hasattr(self._call_of[owner].module, attribute):
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


def _unmoved(value: Value, inside: Call) -> Value:
    """The value this one has the numbers of, whatever the order of the axes."""
    return original(value, inside, SAME_VALUES | MOVES)
