"""Stages: the resolution levels of the trunk, numbered as the paper numbers the groups of a ResNet."""

from __future__ import annotations

import gc
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import DropBlockTypeError, NoTrunkError, TraceError
from ..tracing.example_input import failure_of, shapes_of, trace_model
from ..tracing.trace import Trace
from .blocks import Block
from .conv_norm_act import ConvNormAct
from .feature_maps import Geometry
from .stage_numbers import stage_numbers
from .timm_feature_info import levels_cut_off
from .trunk import find_trunk_levels


@dataclass(frozen=True)
class StageBlock:
    """A residual block of a stage, or a convolution unit where there is none: the dotted name of its module."""

    name: str


@dataclass(frozen=True)
class Stage:
    """One resolution level of a model's trunk.

    Attributes:
        index: its number, see :func:`find_stages`.
        blocks: its blocks, shallow to deep; each has the dotted `name` of its module.
        reduction: image size over map size, as it would be without dilation.
        channels: channels that its last block puts out.
        map_size: spatial size of its feature maps, in pixels, for the input the model was traced with.
    """

    index: int
    blocks: tuple[StageBlock, ...]
    reduction: int
    channels: int
    map_size: tuple[int, ...]


@dataclass(frozen=True)
class Trunk:
    """A model's stages, the traced blocks of each, and the trace they were found in.

    Attributes:
        off_trunk: the other blocks, in the order of execution; each has its `place`.
        results: the convolutions that put out the results of the network, without a block.
        units: all convolution units, whether they are in a block or not.
    """

    stages: list[Stage]
    blocks: list[list[Block]]
    off_trunk: tuple[Block, ...]
    results: tuple[str, ...]
    units: list[ConvNormAct] = field(repr=False)
    trace: Trace = field(repr=False)
    geometry: Geometry


def find_stages(model: nn.Module, example_input: Any = None) -> list[Stage]:
    """The stages of a model, shallow to deep, found by one shape-only forward pass; the model is not touched.

    A stage is one resolution level of the trunk: of the residual blocks and of the convolution blocks beside them. The
    trunk leads down to the lowest resolution. A decoder, a pyramid and a head are not in it, nor is what follows an
    encoder: a module with all of the way down that puts out maps of several resolutions.

    Stage k is the level at reduction 2^(k+1). Where the deepest level is not at 32: if it is deeper, or if there are
    four levels or more, the deepest is stage 4 and the others count back from it; otherwise they count 1, 2, 3 from
    the shallowest. Dilation does not merge stages. No number is below 0, because -1 means the deepest stage wherever
    stages are asked for: in a trunk of six levels or more, stage 0 has the blocks of all levels above it too.

    Args:
        model: any network with a convolutional trunk.
        example_input: what to call the model with: a tensor (batch included), a tuple of positional arguments or a
            dict of keyword arguments. Only shapes and dtypes matter. Default: one image of the size the model
            declares, or 224 pixels.

    Raises:
        DropBlockTypeError: `model` is not a module.
        CompiledModelError: a part of it is compiled by torch.jit.
        NoTrunkError: it has no convolutional trunk.
        TraceError: the forward pass failed before the trunk; `example_input` is the way out.

    >>> from torchvision.models import resnet50
    >>> for stage in find_stages(resnet50()):
    ...     print(stage.index, stage.reduction, stage.channels, stage.map_size, len(stage.blocks), stage.blocks[0].name)
    1 4 256 (56, 56) 3 layer1.0
    2 8 512 (28, 28) 4 layer2.0
    3 16 1024 (14, 14) 6 layer3.0
    4 32 2048 (7, 7) 3 layer4.0
    """
    return find_trunk(model, example_input).stages


def find_trunk(model: nn.Module, example_input: Any = None) -> Trunk:
    """The stages as :func:`find_stages` returns them, with what they were found from."""
    if not isinstance(model, nn.Module):
        raise DropBlockTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    with _without_garbage_collection():
        trace = trace_model(model, example_input)
        geometry = Geometry.of(trace)
        try:
            by_level, off_trunk, units = find_trunk_levels(model, trace, geometry)
        except NoTrunkError as problem:
            if trace.error is None:
                raise
            raise _ended_early(model, trace, "") from problem
    assert geometry is not None  # where there is a trunk
    is_behind = any(block.place in ("neck", "decoder", "head") for block in off_trunk.blocks)
    _refuse_half_a_trunk(model, trace, [block for blocks in by_level.values() for block in blocks], is_behind)
    levels = list(by_level)
    cut_off = levels_cut_off(model, levels[-1], by_level[levels[-1]][-1].name)
    blocks: dict[int, list[Block]] = defaultdict(list)
    lowest: dict[int, int] = {}  # the lowest resolution of each stage: stage 0 may have several
    for index, level in zip(stage_numbers(levels + cut_off), levels, strict=False):
        blocks[index] += by_level[level]
        lowest[index] = level
    stages = [
        Stage(
            index,
            tuple(StageBlock(block.name) for block in blocks[index]),
            _reduction(by_level[level], level),
            _last(by_level[level]).map.channels,
            Counter(block.map.size for block in by_level[level]).most_common(1)[0][0],
        )
        for index, level in lowest.items()
    ]
    return Trunk(stages, list(blocks.values()), *off_trunk, units, trace, geometry)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A trace makes many objects and no garbage among them: looking for it takes up to half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _refuse_half_a_trunk(model: nn.Module, trace: Trace, blocks: list[Block], is_behind: bool) -> None:
    """Raises if the forward pass failed while there were still blocks to come.

    Behind the trunk a failure does no harm: detectors ask for the values of their outputs, which are not there.

    Args:
        blocks: those of the trunk.
        is_behind: whether the pass went through parts of the network that are behind the trunk.
    """
    if trace.error is None:
        return
    called = {call.name for call in trace.calls}
    kinds = {type(block.scope.module) for block in blocks if block.name}
    if not is_behind:
        kinds |= {type(call.module) for call in trace.ended_in}  # one of a row of blocks that are no convolutional ones
    kinds -= {nn.Sequential, type(model)}
    missed = [name for name, module in model.named_modules() if type(module) in kinds and name not in called]
    if missed:
        raise _ended_early(model, trace, f", before {missed[0]}") from trace.error


def _ended_early(model: nn.Module, trace: Trace, where: str) -> TraceError:
    """The error that says why a pass did not come to its end, or to some block."""
    only = "DropBlock would only come into the part before it" if where else "The part before it is no trunk"
    return TraceError(
        f"the forward pass of {type(model).__name__} without data, on an input of shape {shapes_of(trace)}, ended "
        f"early{where}: {failure_of(trace)}. {only}. If the model takes images of another size or other arguments, "
        "pass what it is called with as example_input. What its code asks of the values of a tensor (item(), numpy(), "
        "if tensor:) has no answer there: leave it out in eval mode"
    )


def _last(blocks: list[Block]) -> Block:
    """The one that ends last: of a block and one nested in it the outer."""
    return max(blocks, key=lambda block: block.output[1].producer.index if block.output[1].producer else 0)


def _reduction(blocks: list[Block], level: int) -> int:
    """That of most of the blocks of a level, as it would be without dilation."""
    reductions = Counter(round(2 ** (block.map.log_reduction + level - block.map.level)) for block in blocks)
    return reductions.most_common(1)[0][0]
