"""The blocks that residual adds and convolution units form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import nn

from ..tracing.operations import NONLINEAR
from ..tracing.trace import Call, Op, Trace, Value
from .conv_norm_act import ConvNormAct, find_units
from .feature_maps import FeatureMap, Geometry
from .residual_adds import Residual, find_residuals

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_PLAIN = (nn.Sequential, nn.ModuleList)  # and nothing derived from them


@dataclass(eq=False)
class Block:
    """A residual block, or a module of convolution units without a shortcut, or a single such unit.

    Attributes:
        name: dotted name of its module; where there is none around it, of its first convolution.
        scope: the call in which its parts are to be found: its own, or the model's where there is none around it.
        residuals: its residual adds, in order; empty if it has no shortcut.
        units: its convolution units on feature maps, those of a projected shortcut left out.
        output: what it puts out; the key is its place in a tuple, else None.
        map: the feature map it puts out.
    """

    name: str
    scope: Call
    residuals: list[Residual] = field(repr=False)
    units: list[ConvNormAct] = field(repr=False)
    output: tuple[int | str | None, Value] = field(repr=False)
    map: FeatureMap

    @property
    def dilation(self) -> int:
        return max((unit.dilation for unit in self.units), default=1)

    @property
    def place(self) -> tuple[int, int]:
        """By which blocks are put in the order of execution."""
        return self.scope.first, self.units[0].op.index if self.units else 0


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network, each list in the order of execution; no unit is in two of them.

    Attributes:
        residual: those with a shortcut.
        composite: modules of several convolution units without a shortcut.
        single: the convolution units that are left.
    """

    residual: list[Block]
    composite: list[Block]
    single: list[Block]

    def filter(self, condition: Callable[[Block], bool]) -> Blocks:
        """The blocks that fulfil a condition."""
        return Blocks(*([b for b in kind if condition(b)] for kind in (self.residual, self.composite, self.single)))


def find_blocks(trace: Trace, geometry: Geometry) -> Blocks:
    """All blocks of a trace; of a module that is called several times the first call."""
    units = find_units(trace, geometry)
    residual = _residual_blocks(trace, geometry, units)
    scopes = {block.scope for block in residual if block.scope.parent is not None}
    used = {unit for block in residual for unit in block.units}
    first_calls: dict[str, Call] = {}
    for call in trace.calls:
        first_calls.setdefault(call.name, call)
    free = [
        unit
        for unit in units
        if unit not in used
        and scopes.isdisjoint(enclosing_calls(unit.op.call))
        and all(call is first_calls[call.name] for call in enclosing_calls(unit.op.call))
    ]
    composite, single = _composites(trace, geometry, free, [block.scope for block in residual])
    return Blocks(residual, composite, [_single_unit_block(trace, geometry, unit) for unit in single])


def enclosing_sequences(name: str, trace: Trace) -> list[str]:
    """The names of the plain containers, one in the other, that a module is an entry of; not the model itself."""
    rows = []
    while (name := name.rpartition(".")[0]) and type(trace.modules[name]) in _PLAIN:
        rows.append(name)
    return rows


def sequences_of_blocks(scopes: list[Call], trace: Trace) -> set[str]:
    """The names of the plain containers, the model itself left out, that have residual blocks in several entries."""
    entries: dict[str, set[str]] = defaultdict(set)
    for scope in scopes:
        name = scope.name
        while row := name.rpartition(".")[0]:
            entries[row].add(name)
            name = row
    return {row for row in entries if len(entries[row]) > 1 and type(trace.modules[row]) in _PLAIN}


def enclosing_calls(call: Call | None) -> Iterator[Call]:
    """A call and those around it, from the inside out."""
    while call is not None:
        yield call
        call = call.parent


def _residual_blocks(trace: Trace, geometry: Geometry, units: list[ConvNormAct]) -> list[Block]:
    groups = _by_block(find_residuals(trace, geometry))
    level_of = {group[0].block: _level_of(group, geometry) for group in groups}
    # A residual block at a lower resolution inside the branch of another block is part of how that one computes.
    too_low = {
        block
        for block, level in level_of.items()
        if any(level > level_of.get(call, level) for call in enclosing_calls(block))
    }
    groups = [group for group in groups if group[0].block not in too_low]
    calls = [group[0].block for group in groups]
    blocks = []
    for group in groups:
        call = group[0].block
        inner = [other for other in calls if call.encloses(other)]
        branch = {op for residual in group for op in residual.branch_ops}
        total = group[-1].add.outputs[0]
        feature_map = geometry.map_of(total)
        if feature_map is None:
            continue
        own = [
            unit
            for unit in units
            if _ops_of(unit) & branch
            and not any(other.contains(unit.op) for other in inner)
            and _is_on(geometry, unit, feature_map)
        ]
        if call.parent is not None:
            output = _map_output(call, geometry) or (None, total)
            blocks.append(Block(call.name, call, group, own, output, feature_map))
        elif own:
            blocks.append(Block(own[0].op.call.name, call, group, own, (None, _activated(total)), feature_map))
    return blocks


def _level_of(group: list[Residual], geometry: Geometry) -> int:
    feature_map = geometry.map_of(group[-1].add.outputs[0])
    return feature_map.level if feature_map else 0


def _by_block(residuals: list[Residual]) -> list[list[Residual]]:
    """The residuals of each block; those outside any block, in the code of the model itself, one by one."""
    groups: dict[str, list[Residual]] = {}
    alone = []
    for residual in residuals:
        if residual.block.parent is None:
            alone.append([residual])
        else:
            group = groups.setdefault(residual.block.name, [])
            if not group or group[0].block is residual.block:
                group.append(residual)
    return [*groups.values(), *alone]


def _activated(value: Value) -> Value:
    """What the activation behind a sum puts out; the sum itself if there is none."""
    if len(value.readers) == 1 and value.readers[0].kind in NONLINEAR:
        return value.readers[0].outputs[0]
    return value


def _is_on(geometry: Geometry, unit: ConvNormAct, feature_map: FeatureMap) -> bool:
    """Whether a unit puts out a map as large as this one or as the one this was halved from; and not a smaller one."""
    own = geometry.map_of(unit.convolved)
    return own is not None and own.level in (feature_map.level, feature_map.level - 1)


def _ops_of(unit: ConvNormAct) -> set[Op]:
    return {unit.op, unit.convolved.producer or unit.op}


def _composites(
    trace: Trace, geometry: Geometry, units: list[ConvNormAct], residual: list[Call]
) -> tuple[list[Block], list[ConvNormAct]]:
    """Blocks made of the units under one module, and the units that are left single.

    That module is the innermost with several units that is no container; or a sequence that is an entry of a row of
    blocks, and so a stage of its own.
    """
    root = trace.calls[0]
    under: dict[Call, list[ConvNormAct]] = {}
    for unit in units:
        for call in enclosing_calls(unit.op.call):
            under.setdefault(call, []).append(unit)
    around_residual = {call for scope in residual for call in enclosing_calls(scope.parent)}
    rows = sequences_of_blocks(residual, trace)

    def output_of(call: Call) -> tuple[int | str | None, Value] | None:
        if call is root or call in around_residual or len(under[call]) == 1:
            return None
        is_stage = type(call.module) is nn.Sequential and not rows.isdisjoint(enclosing_sequences(call.name, trace)[:1])
        if isinstance(call.module, CONTAINERS) and not is_stage:
            return None
        return _map_output(call, geometry) if _at_most_halves(geometry, under[call]) else None

    outputs = {call: output_of(call) for call in under}
    groups: dict[Call, list[ConvNormAct]] = {}
    single = []
    for unit in units:
        innermost = next((call for call in enclosing_calls(unit.op.call) if outputs[call]), None)
        if innermost is None:
            single.append(unit)
        else:
            groups.setdefault(innermost, []).append(unit)
    blocks = []
    for call, group in groups.items():
        output = outputs[call]
        feature_map = geometry.map_of(output[1]) if output else None
        if output and feature_map:
            blocks.append(Block(call.name, call, [], group, output, feature_map))
    return blocks, single


def _at_most_halves(geometry: Geometry, units: list[ConvNormAct]) -> bool:
    maps = [geometry.map_of(unit.convolved) for unit in units]
    levels = [feature_map.level for feature_map in maps if feature_map]
    return max(levels) - min(levels) <= 1


def _map_output(call: Call, geometry: Geometry) -> tuple[int | str | None, Value] | None:
    for key, value in call.outputs.items():
        if geometry.map_of(value):
            return key, value
    return None


def _single_unit_block(trace: Trace, geometry: Geometry, unit: ConvNormAct) -> Block:
    root = trace.calls[0]
    tail = unit.tail(root)
    feature_map = geometry.map_of(tail)
    assert feature_map is not None  # a unit is one on a feature map
    return Block(unit.op.call.name, root, [], [unit], (None, tail), feature_map)
