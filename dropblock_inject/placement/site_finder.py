"""The sites of a block: along its branches, on its shortcuts, after its output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..anatomy.blocks import Block
from ..anatomy.conv_norm_act import ConvNormAct
from ..anatomy.feature_maps import Geometry
from ..anatomy.residual_adds import Residual
from ..errors import DropBlockValueError
from ..ops.functional import BlockSize
from ..ops.gamma import block_size_in_force
from ..surgery.site import Site, Splice, Where
from ..tracing.operations import MOVES, NONLINEAR, NORMS, SAME_VALUES, WEIGHTED
from ..tracing.trace import Call, Op, Trace, Value, original
from .branch_end import find_branch_end
from .hook_points import HookFinder, HookPoint, block_output

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class SiteFinder:
    """Finds the sites of the blocks of one trace.

    Attributes:
        unreachable: names of the blocks with a shortcut that no hook can mask.
        without_end: names of the blocks with a branch of which no module gives the end.
        without_site: names of the convolutions behind which no hook stands.
    """

    def __init__(self, trace: Trace, geometry: Geometry) -> None:
        self.unreachable: list[str] = []
        self.without_end: list[str] = []
        self.without_site: list[str] = []
        self._finder = HookFinder(trace, geometry)
        self._geometry = geometry
        self._iterated = trace.iterated
        self._call_of = {call.name: call for call in reversed(trace.calls)}
        self._attributes: Counter[tuple[str, Where]] = Counter()

    def sites(self, block: Block, stage: int | None, block_size: BlockSize) -> Iterator[Site]:
        """The sites of a block, in order; `stage` and `block_size` are written on them. Their keep_prob is 1."""
        for where, point, layers in self._points(block):
            feature_map = self._geometry.map_of(point.value)
            assert feature_map is not None  # sites are on feature maps by construction
            splice = self._splice(block, where, point, layers)
            yield Site(
                name=f"{splice.owner}.{splice.attribute}".lstrip("."),
                host=point.host,
                block=block.name,
                stage=stage,
                part=block.place or "trunk",
                where=where,
                channels=feature_map.channels,
                map_size=feature_map.size,
                block_size=_in_force(block_size, feature_map.size),
                keep_prob=1.0,
                channel_dim=feature_map.channel_dim,
                layers=tuple(layers),
                splice=splice,
            )

    def _points(self, block: Block) -> Iterator[tuple[Where, HookPoint, list[str]]]:
        """Where the sites of a block are: each with the hook point, and the layers that it stands behind."""
        scope = block.scope
        scaled_ends = {_unscaled(residual): residual for residual in block.residuals}
        for unit in block.units:
            residual = scaled_ends.get(_unmoved(unit.tail(scope), scope))
            point = (self._branch_end(residual) if residual else None) or self._behind_unit(block, unit)
            if point:
                yield "branch", point, unit.layers(scope)
            elif not unit.is_gate(scope):
                self.without_site.append(unit.op.call.name)
        tails = {
            _unmoved(unit.tail(residual.call), residual.call) for unit in block.units for residual in block.residuals
        }
        for residual in block.residuals:
            end = self._branch_end(residual)
            if end and _unscaled(residual) not in tails:
                yield "branch", end, []
            if end:
                yield "end", end, []
            else:
                self.without_end.append(block.name)
            point = self._finder.shortcut(residual)
            if point is None and residual.add.kind == "add":  # else the end of the branch is not added as it is
                point = find_branch_end(residual, self._finder, self._geometry)
            if point:
                yield "skip", point, _layers_behind(residual.skip, residual.call)
            else:
                self.unreachable.append(block.name)
        point = self._output(block)
        if point:
            alone = not block.is_module and not block.residuals
            yield "output", point, block.units[0].layers(scope) if alone else []

    def _behind_unit(self, block: Block, unit: ConvNormAct) -> HookPoint | None:
        """Behind a convolution unit; before its activation where no module gives the tensor behind it."""
        scope = block.scope
        if unit.is_gate(scope):
            return None
        if unit.op.call is scope and self._puts_out(scope, unit):
            return block_output(block.name, unit.convolved, None)
        tail, before_activation = unit.tail(scope), unit.before_activation(scope)
        point = self._finder.after(tail, scope)
        if point is None and before_activation is not None:
            point = self._finder.after(original(before_activation, scope), scope)
        return point or self._finder.before(tail, scope) or self._finder.after(unit.convolved, scope)

    def _puts_out(self, scope: Call, unit: ConvNormAct) -> bool:
        """Whether a module that convolves in its own code puts out what the convolution made.

        A convolution module does. A block that calls a layer's forward directly goes on with the result.
        """
        output = scope.outputs.get(None)
        if output is None or self._geometry.map_of(output) != self._geometry.map_of(unit.convolved):
            return False
        return _convolution_behind(output, scope) is unit.op

    def _branch_end(self, residual: Residual) -> HookPoint | None:
        """The end of a branch, before drop path."""
        end = original(residual.branch, residual.call)
        point = self._finder.after(end, residual.call) or self._finder.before(end, residual.call)
        if point and self._geometry.map_of(point.value) is None:  # of windows put together; it has the shortcut's shape
            return replace(point, value=residual.skip)
        return point

    def _output(self, block: Block) -> HookPoint | None:
        key, value = block.output
        put_out = block.scope.outputs.get(key)
        if block.is_module and put_out is not None and self._geometry.map_of(put_out) == self._geometry.map_of(value):
            return block_output(block.name, value, key)
        if block.residuals:
            return self._finder.after(value, block.scope) or self._finder.before(value, block.scope)
        return self._behind_unit(block, block.units[0])

    def _splice(self, block: Block, where: Where, point: HookPoint, layers: list[str]) -> Splice:
        behind = _convolution_behind(point.value, block.scope)
        convolutions = [behind] if behind else [unit.op for unit in block.units]
        # A block may convolve in its own code, as it does where it calls a layer's forward directly.
        name = next((op.call.name for op in convolutions if _is_layer(op.call.module)), None)
        owner = self._owner(block, point.host, layers, name)
        return Splice(owner, self._free_attribute(owner, where), name, point.hooks)

    def _owner(self, block: Block, host: str, layers: list[str], convolution: str | None) -> str:
        """The module that the DropBlock is registered on: the block.

        A block that is no module, or that runs whatever is registered on it, cannot have it. Then it is the module
        around the host. Where that one runs whatever is registered on it too, it is the activation, a module further
        out, or else the convolution.
        """
        if block.is_module and self._can_own(block.name):
            return block.name
        around, *further = self._names_around(host)
        activations = [name for name in layers if self._is_bare_layer(name)]
        candidates = [name for name in (around, *further) if self._can_own(name)]
        if activations and around not in candidates:
            return activations[-1]
        return candidates[0] if candidates else convolution or host

    def _names_around(self, name: str) -> list[str]:
        """The names of the modules around one, from the inside out, without it."""
        names = []
        call = self._call_of[name].parent
        while call is not None:
            names.append(call.name)
            call = call.parent
        return names or [""]

    def _can_own(self, name: str) -> bool:
        """Whether something may be registered on a module: it is no layer, and does not run all that is registered."""
        call: Call | None = self._call_of.get(name)
        if call is None or name in self._iterated or isinstance(call.module, torch.fx.GraphModule):
            return False
        if not call.module._modules:
            return False
        while call is not None:
            if isinstance(call.module, _NORMS):  # who freezes it with norm.eval() would switch the DropBlock off
                return False
            call = call.parent
        return True

    def _is_bare_layer(self, name: str) -> bool:
        """Whether a module is a layer without parameters that runs once: an activation."""
        call = self._call_of.get(name)
        if call is None or len(self._finder.calls_of[name]) != 1:
            return False
        return not (call.module._parameters or call.module._buffers or call.module._modules)

    def _free_attribute(self, owner: str, where: Where) -> str:
        """A name for the DropBlock on its owner, such as ``drop_branch1``, ``drop_skip`` or ``drop_output``."""
        self._attributes[owner, where] += 1
        number = self._attributes[owner, where]
        attribute = f"drop_{where}{number if number > 1 or where == 'branch' else ''}"
        while hasattr(self._call_of[owner].module, attribute):
            attribute += "_"
        return attribute


def _in_force(block_size: BlockSize, map_size: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(block_size, Sequence) and len(block_size) != len(map_size):
        raise DropBlockValueError(
            f"block_size={tuple(block_size)} has {len(block_size)} entries, but the feature maps have {len(map_size)} "
            "spatial axes; give one entry per spatial axis, or one int"
        )
    return block_size_in_force(block_size, map_size)


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is a single layer. One with parametrized weights has children, which compute them."""
    return not module._modules or is_parametrized(module)


def _convolution_behind(value: Value, scope: Call) -> Op | None:
    """The convolution inside `scope` that a tensor comes from by operations on a single tensor."""
    op = value.producer
    while op is not None and scope.contains(op) and len(op.inputs) == 1:
        if op.kind == "convolution":
            return op
        op = op.inputs[0].producer
    return None


def _unmoved(value: Value, inside: Call) -> Value:
    """The value that has the same numbers, whatever the order of the axes."""
    return original(value, inside, SAME_VALUES | MOVES)


def _unscaled(residual: Residual) -> Value:
    """The end of a branch before a scale per channel (layer scale), which does not change what is masked."""
    value = _unmoved(residual.branch, residual.call)
    while value.producer is not None and value.producer.kind == "mul" and len(value.producer.inputs) == 1:
        if not residual.call.contains(value.producer):
            break
        value = _unmoved(value.producer.inputs[0], residual.call)
    return value


def _layers_behind(value: Value, scope: Call) -> list[str]:
    """The dotted names of the modules inside a call that compute a projected shortcut, back to its convolution."""
    names: list[str] = []
    op = value.producer
    while op is not None and scope.contains(op) and len(op.inputs) == 1:
        if scope.encloses(op.call) and op.kind in WEIGHTED | NORMS | NONLINEAR:
            names.insert(0, op.call.name)
        if op.kind in WEIGHTED:
            return list(dict.fromkeys(names))
        op = op.inputs[0].producer
    return []
