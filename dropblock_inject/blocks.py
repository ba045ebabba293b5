"""Convolution units, and the blocks they form."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from .geometry import FeatureMap, Geometry
from .kinds import GATES, HOMOGENEOUS, MOVES, NONLINEAR, NORMS, SAME_VALUES
from .residuals import Residual, find_residuals
from .trace import Call, Op, Trace, Value

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(eq=False)
class Unit:
    """A convolution with the normalisation and the activation that follow it, where it has them.

    Attributes:
        op: the convolution (of a linear layer over the channels: its matrix product).
        convolved: what the convolution puts out.
    """

    op: Op
    convolved: Value

    @property
    def dilation(self) -> int:
        """The largest dilation of the convolution; 1 if it reads a single pixel."""
        return max(self.op.arguments[5]) if max(self._kernel_size) > 1 else 1

    @property
    def cuts_patches(self) -> bool:
        """Whether the convolution reads patches side by side, as the embedding before a transformer does."""
        return max(self._kernel_size) > 1 and tuple(self.op.arguments[3]) == self._kernel_size

    @property
    def _kernel_size(self) -> tuple[int, ...]:
        return tuple(self.op.arguments[1].shape[2:]) if self.op.kind == "convolution" else (1,)

    def tail(self, inside: Call) -> Value:
        """What the unit puts out, its norm and activation included as far as they are inside the given call."""
        return self._follow(inside)[0]

    def is_gate(self, inside: Call) -> bool:
        """Whether it ends in a sigmoid or softmax: weights for a feature map, not a feature map."""
        activation = self._follow(inside)[1]
        return activation is not None and activation.kind in GATES

    def before_activation(self, inside: Call) -> Value | None:
        """What goes into the activation, if a mask and its scale may as well stand before it; else None."""
        activation = self._follow(inside)[1]
        return activation.inputs[0] if activation is not None and activation.kind in HOMOGENEOUS else None

    def _follow(self, inside: Call) -> tuple[Value, Op | None]:
        tail = value = self.convolved
        normalised = False
        while len(value.readers) == 1 and inside.contains(value.readers[0]):
            op = value.readers[0]
            if op.kind in NONLINEAR and len(op.inputs) == 1:
                return op.outputs[0], op
            if op.kind in SAME_VALUES or (op.kind in MOVES and len(op.outputs[0].shape) == len(tail.shape)):
                value = op.outputs[0]
            elif op.kind in NORMS and not normalised:
                tail = value = op.outputs[0]
                normalised = True
            elif not normalised and (shifted := _frozen_norm(op)):
                tail = value = shifted
                normalised = True
            else:
                break
        return tail, None


def _frozen_norm(op: Op) -> Value | None:
    """What a normalisation written as ``x * scale + shift`` puts out, if `op` begins one."""
    if op.kind == "mul" and len(op.inputs) == 1 and len(op.outputs[0].readers) == 1:
        following = op.outputs[0].readers[0]
        if following.kind == "add" and len(following.inputs) == 1 and following.call is op.call:
            return following.outputs[0]
    return None


@dataclass(eq=False)
class Block:
    """A residual block, or a module of convolution units without a shortcut, or a single such unit.

    Attributes:
        name: dotted name of its module.
        scope: the call in which its parts are to be found: its own, or the model's for a single unit.
        residuals: its residual joins, in order; empty if it has no shortcut.
        units: its convolution units on feature maps, those of a projected shortcut left out.
        output: what it puts out; the key is its place in a tuple, else None.
        map: the feature map it puts out.
    """

    name: str
    scope: Call
    residuals: list[Residual] = field(repr=False)
    units: list[Unit] = field(repr=False)
    output: tuple[int | str | None, Value] = field(repr=False)
    map: FeatureMap

    @property
    def dilation(self) -> int:
        return max((unit.dilation for unit in self.units), default=1)


def find_blocks(trace: Trace, geometry: Geometry) -> list[Block]:
    """The blocks of a trace in the order of execution; of a module that is called several times the first call."""
    units = _find_units(trace, geometry)
    blocks = _residual_blocks(trace, geometry, units)
    inside = [block.scope for block in blocks]
    free = [unit for unit in units if not any(call.contains(unit.op) for call in inside)]
    composites, single = _composites(trace, geometry, free, inside)
    blocks += composites
    if not blocks:  # a plain network; beside blocks, single units are the stem, transitions and the head
        blocks = [_single_unit_block(trace, geometry, unit) for unit in single if not unit.cuts_patches]
    return sorted(blocks, key=lambda block: (block.scope.first, block.units[0].op.index if block.units else 0))


def _find_units(trace: Trace, geometry: Geometry) -> list[Unit]:
    linear = {}
    for call in trace.calls:
        if isinstance(call.module, nn.Linear) and None in call.outputs:
            feature_map = geometry.map_of(call.outputs[None])
            if feature_map and feature_map.channel_dim == -1 and call.last > call.first:
                linear[call.first] = call.outputs[None]
    units = []
    for op in trace.ops:
        if op.kind == "convolution" and geometry.map_of(op.outputs[0]):
            units.append(Unit(op, op.outputs[0]))
        elif op.index in linear:
            units.append(Unit(op, linear[op.index]))
    first_calls: dict[str, Call] = {}
    for unit in units:
        first_calls.setdefault(unit.op.call.name, unit.op.call)
    return [unit for unit in units if unit.op.call is first_calls[unit.op.call.name]]


def _residual_blocks(trace: Trace, geometry: Geometry, units: list[Unit]) -> list[Block]:
    by_module: dict[str, list[Residual]] = {}
    for residual in find_residuals(trace, geometry):
        group = by_module.setdefault(residual.call.name, [])
        if not group or group[0].call is residual.call:
            group.append(residual)
    calls = [group[0].call for group in by_module.values()]
    blocks = []
    for name, group in by_module.items():
        call = group[0].call
        inner = [other for other in calls if call.encloses(other)]
        branch = {op for residual in group for op in residual.branch_ops}
        own = [u for u in units if _ops_of(u) & branch and not any(c.contains(u.op) for c in inner)]
        feature_map = geometry.map_of(group[-1].join.outputs[0])
        if feature_map:
            output = _map_output(call, geometry) or (None, group[-1].join.outputs[0])
            blocks.append(Block(name, call, group, own, output, feature_map))
    return blocks


def _ops_of(unit: Unit) -> set[Op]:
    return {unit.op, unit.convolved.producer or unit.op}


def _composites(
    trace: Trace, geometry: Geometry, units: list[Unit], residual_calls: list[Call]
) -> tuple[list[Block], list[Unit]]:
    """Blocks made of the units under one module, and the units that are left single."""
    root = trace.calls[0]
    by_call: dict[Call, list[Unit]] = {}
    single = []
    for unit in units:
        call: Call | None = unit.op.call
        while call is not None and call is not root:
            together = [other for other in units if call.contains(other.op)]
            if (
                len(together) > 1
                and not isinstance(call.module, CONTAINERS)
                and not any(call.encloses(c) for c in residual_calls)
                and _map_output(call, geometry)
                and _at_most_halves(geometry, together)
            ):
                by_call.setdefault(call, []).append(unit)
                break
            call = call.parent
        else:
            single.append(unit)
    blocks = []
    for call, group in by_call.items():
        output = _map_output(call, geometry)
        feature_map = geometry.map_of(output[1]) if output else None
        if output and feature_map:
            blocks.append(Block(call.name, call, [], group, output, feature_map))
    return blocks, single


def _at_most_halves(geometry: Geometry, units: list[Unit]) -> bool:
    maps = [geometry.map_of(unit.convolved) for unit in units]
    levels = [feature_map.level for feature_map in maps if feature_map]
    return max(levels) - min(levels) <= 1


def _map_output(call: Call, geometry: Geometry) -> tuple[int | str | None, Value] | None:
    for key, value in call.outputs.items():
        if geometry.map_of(value):
            return key, value
    return None


def _single_unit_block(trace: Trace, geometry: Geometry, unit: Unit) -> Block:
    root = trace.calls[0]
    tail = unit.tail(root)
    feature_map = geometry.map_of(tail)
    assert feature_map is not None  # a unit is one on a feature map
    return Block(unit.op.call.name, root, [], [unit], (None, tail), feature_map)
