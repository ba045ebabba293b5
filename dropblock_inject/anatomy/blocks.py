"""The blocks that residual adds and convolution units form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from torch import nn

from ..tracing.operations import NONLINEAR
from ..tracing.trace import Call, Op, Trace, Value
from .conv_norm_act import ConvNormAct, find_units
from .feature_maps import FeatureMap, Geometry
from .residual_adds import Residual, find_residuals
from .upsampling import is_larger, raising_ops

Place = Literal["stem", "transition", "neck", "decoder", "head"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SEQUENCES = (nn.Sequential, nn.ModuleList)  # not the classes derived from them, which are units more often than not


@dataclass(eq=False)
class Block:
    """A residual block, or a module of convolution units without a shortcut, or a single such unit.

    Attributes:
        name: dotted name of its module; without a module around it, of its first convolution.
        scope: the call that contains its parts: the call of its module, or without a module around it of the model (of
            a unit that runs several times: of the outermost module that runs as often).
        residuals: its residual adds, in order; empty if it has no shortcut.
        units: its convolution units on feature maps, without those of a projected shortcut.
        output: the tensor that it puts out; the key is its place in a tuple, else None.
        map: the feature map that it puts out.
        place: the part of the network off the trunk that it is in, see :func:`off_trunk.placed`; None in the trunk.
    """

    name: str
    scope: Call
    residuals: list[Residual] = field(repr=False)
    units: list[ConvNormAct] = field(repr=False)
    output: tuple[int | str | None, Value] = field(repr=False)
    map: FeatureMap
    place: Place | None = None

    @property
    def is_module(self) -> bool:
        """Whether it is a module with all of its parts, and not only a part of the model's own code."""
        return self.scope.parent is not None and self.scope.name == self.name

    @property
    def dilation(self) -> int:
        return max((unit.dilation for unit in self.units), default=1)

    @property
    def order(self) -> tuple[int, int]:
        """The key that sorts blocks in the order of execution."""
        first = self.units[0].op.index if self.units else self.scope.first
        return (first if self.scope.parent is None else self.scope.first), first


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network, each list in the order of execution; no unit is in two of them.

    Attributes:
        residual: blocks with a shortcut.
        composite: modules of several convolution units without a shortcut.
        single: the other convolution units, each a block.
        units: all convolution units, whether they are in a block or not.
    """

    residual: list[Block]
    composite: list[Block]
    single: list[Block]
    units: list[ConvNormAct]

    def __iter__(self) -> Iterator[Block]:
        return chain(self.residual, self.composite, self.single)

    def filter(self, condition: Callable[[Block], bool]) -> Blocks:
        """The blocks that fulfil a condition."""
        kinds = self.residual, self.composite, self.single
        residual, composite, single = ([block for block in kind if condition(block)] for kind in kinds)
        return Blocks(residual, composite, single, self.units)


def find_blocks(trace: Trace, geometry: Geometry) -> Blocks:
    """All blocks of a trace. The first call of a module that is called several times is its block."""
    units = find_units(trace, geometry)
    residual = _residual_blocks(trace, geometry, units)
    free = _units_outside(residual, units, trace)
    composite = _composite_blocks(trace, geometry, free, residual)
    used = {unit for block in composite for unit in block.units}
    single = [single_block(trace, geometry, unit) for unit in free if unit not in used]
    return Blocks(residual, composite, single, units)


def single_block(trace: Trace, geometry: Geometry, unit: ConvNormAct) -> Block:
    """A unit as a block of its own.

    Its scope is the model. If its convolution runs more often than the model, as a head does that several levels share,
    it is the outermost module that runs as often: a site is to run once per call of its block.
    """
    calls = trace.calls_of
    times = len(calls[unit.op.call.name])
    scope = next(c for c in reversed([*enclosing_calls(unit.op.call)]) if len(calls[c.name]) == times)
    feature_map = geometry.map_of(unit.tail(scope))
    assert feature_map is not None  # a unit is one on a feature map
    return Block(unit.op.call.name, scope, [], [unit], (None, unit.tail(scope)), feature_map)


def enclosing_calls(call: Call | None) -> Iterator[Call]:
    """A call and the calls around it, from the inside out."""
    while call is not None:
        yield call
        call = call.parent


def enclosing_sequences(name: str, trace: Trace) -> list[str]:
    """The names of the sequences around a module, from the inside out, up to the first module of another kind."""
    sequences = []
    while (name := name.rpartition(".")[0]) and type(trace.modules[name]) in _SEQUENCES:
        sequences.append(name)
    return sequences


def sequences_of_blocks(scopes: list[Call], trace: Trace) -> set[str]:
    """The names of the sequences, the model itself left out, with residual blocks in several entries."""
    entries: dict[str, set[str]] = defaultdict(set)
    for scope in scopes:
        name = scope.name
        while sequence := name.rpartition(".")[0]:
            entries[sequence].add(name)
            name = sequence
    return {name for name in entries if len(entries[name]) > 1 and type(trace.modules[name]) in _SEQUENCES}


def _residual_blocks(trace: Trace, geometry: Geometry, units: list[ConvNormAct]) -> list[Block]:
    blocks = []
    groups = _without_inner_levels(_by_block(find_residuals(trace, geometry, units), geometry), geometry)
    scopes = [scope for scope, _ in groups]
    for scope, residuals in groups:
        inner = [other for other in scopes if scope.encloses(other)]
        branch = {op for residual in residuals for op in residual.branch_ops}
        total = residuals[-1].add.outputs[0]
        feature_map = geometry.map_of(total)
        assert feature_map is not None  # both operands are maps
        own = [
            unit
            for unit in units
            if not branch.isdisjoint((unit.op, unit.convolved.producer))
            and not any(other.contains(unit.op) for other in inner)
            and _is_on(geometry, unit, feature_map)
            and (unit.convolved not in geometry.gates or unit.is_gate(scope))
        ]
        if scope.parent is not None:
            output = _map_output(scope, geometry) or (None, total)
            blocks.append(Block(scope.name, scope, residuals, own, output, feature_map))
        elif own:
            output = None, _activated(total)
            blocks.append(Block(own[0].op.call.name, scope, residuals, own, output, feature_map))
    return blocks


def _by_block(residuals: list[Residual], geometry: Geometry) -> list[tuple[Call, list[Residual]]]:
    """The scope and the residuals of each block.

    Residual adds on several levels in the code of one module, as in that of the model itself, are blocks one by one.
    """
    groups: dict[str, list[Residual]] = {}
    for residual in residuals:
        group = groups.setdefault(residual.block.name, [])
        if not group or group[0].block is residual.block:
            group.append(residual)
    blocks = []
    for group in groups.values():
        scope = group[0].block
        if scope.parent is None or len({_level(residual, geometry) for residual in group}) > 1:
            while scope.parent is not None:
                scope = scope.parent
            blocks += [(scope, [residual]) for residual in group]
        else:
            blocks.append((scope, group))
    return blocks


def _without_inner_levels(
    groups: list[tuple[Call, list[Residual]]], geometry: Geometry
) -> list[tuple[Call, list[Residual]]]:
    """The blocks without those at a lower resolution inside the branch of another: they are part of how it computes."""
    level_around: dict[Op, int] = {}
    for _, residuals in groups:
        for residual in residuals:
            level = _level(residual, geometry)
            level_around |= {op: min(level, level_around.get(op, level)) for op in residual.branch_ops}
    return [
        (scope, residuals)
        for scope, residuals in groups
        if level_around.get(residuals[-1].add, 99) >= _level(residuals[-1], geometry)
    ]


def _level(residual: Residual, geometry: Geometry) -> int:
    feature_map = geometry.map_of(residual.skip)
    assert feature_map is not None  # residuals are those of feature maps
    return feature_map.level


def _activated(value: Value) -> Value:
    """The output of the activation behind a sum; the sum itself if there is none."""
    if len(value.readers) == 1 and value.readers[0].kind in NONLINEAR:
        return value.readers[0].outputs[0]
    return value


def _is_on(geometry: Geometry, unit: ConvNormAct, feature_map: FeatureMap) -> bool:
    """Whether a unit puts out a map as large as this one, or as the map that this one was halved from."""
    own = geometry.map_of(unit.convolved)
    return own is not None and own.level in (feature_map.level, feature_map.level - 1)


def _units_outside(residual: list[Block], units: list[ConvNormAct], trace: Trace) -> list[ConvNormAct]:
    """The units outside of residual blocks, without those of repeated calls."""
    scopes = {block.scope for block in residual if block.scope.parent is not None}
    used = {unit for block in residual for unit in block.units}
    first_calls = {calls[0] for calls in trace.calls_of.values()}

    def is_free(unit: ConvNormAct) -> bool:
        enclosing = set(enclosing_calls(unit.op.call))
        return unit not in used and scopes.isdisjoint(enclosing) and enclosing <= first_calls

    return list(filter(is_free, units))


def _composite_blocks(trace: Trace, geometry: Geometry, units: list[ConvNormAct], residual: list[Block]) -> list[Block]:
    """The modules of several units.

    The block of a unit is the innermost module that has several units, at most halves the map and is no container; a
    sequence that is a stage among stages counts as well. Failing that, it is the innermost container with a forward of
    its own, such as a dense layer derived from ``nn.Sequential``. No such module contains a residual block, or goes
    down and up again: that is a level of nested U-Nets.
    """
    units_in: dict[Call, list[ConvNormAct]] = defaultdict(list)
    for unit in units:
        for call in enclosing_calls(unit.op.call):
            units_in[call].append(unit)
    around_residual = {call for block in residual for call in enclosing_calls(block.scope.parent)}
    sequences = sequences_of_blocks([block.scope for block in residual], trace)

    def is_stage(call: Call) -> bool:
        return type(call.module) is nn.Sequential and call.name.rpartition(".")[0] in sequences

    raising = raising_ops(trace, geometry)

    def goes_down_and_up(call: Call) -> bool:
        maps = [value for value in call.arguments.values() if geometry.map_of(value)]
        return any(call.contains(op) and any(not is_larger(op.outputs[0], value) for value in maps) for op in raising)

    outputs: dict[Call, tuple[int | str | None, Value]] = {}
    for call, inside in units_in.items():
        if len(inside) > 1 and call.parent is not None and call not in around_residual:
            times = len(trace.calls_of[call.name])
            is_block = not _is_container(call.module) or is_stage(call)
            is_block = is_block and _at_most_halves(geometry, inside) and not goes_down_and_up(call)
            is_block = is_block and all(len(trace.calls_of[unit.op.call.name]) == times for unit in inside)
            if is_block and (output := _map_output(call, geometry)):
                outputs[call] = output
    grouped: dict[Call, list[ConvNormAct]] = defaultdict(list)
    for unit in units:
        modules = [call for call in enclosing_calls(unit.op.call) if call in outputs]
        own = [call for call in modules if not isinstance(call.module, _CONTAINERS) or is_stage(call)]
        for call in (own or modules)[:1]:
            grouped[call].append(unit)
    blocks = []
    for call, group in grouped.items():
        feature_map = geometry.map_of(outputs[call][1])
        assert feature_map is not None
        blocks.append(Block(call.name, call, [], group, outputs[call], feature_map))
    return blocks


def _is_container(module: nn.Module) -> bool:
    """Whether a module only calls its children one after the other."""
    return isinstance(module, _CONTAINERS) and type(module).forward in [kind.forward for kind in _CONTAINERS]


def _at_most_halves(geometry: Geometry, units: list[ConvNormAct]) -> bool:
    maps = [geometry.map_of(unit.convolved) for unit in units]
    levels = [feature_map.level for feature_map in maps if feature_map]
    return max(levels) - min(levels) <= 1


def _map_output(call: Call, geometry: Geometry) -> tuple[int | str | None, Value] | None:
    return next(((key, value) for key, value in call.outputs.items() if geometry.map_of(value)), None)
