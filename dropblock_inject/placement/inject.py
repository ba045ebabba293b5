"""From a request to the sites that it means, and on to the injected model: the functions that users call."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ParamSpec

from torch import nn

from ..anatomy.blocks import Block
from ..anatomy.leftovers import leftovers
from ..anatomy.stages import find_trunk
from ..errors import DropBlockTypeError, NoMatchError
from ..ops.functional import BlockSize
from ..surgery.splice import unsplice
from .layers import MakeLayer, check_maker, dropblock_for
from .patterns import Pattern, check_pattern
from .plan import InjectionPlan, InjectionReport, check_model
from .plan_table import TraceSummary
from .selection import by_stage, check_layer_options, choose_sites, choose_stages, kinds_of, targets_of
from .site_finder import SiteFinder

P = ParamSpec("P")

_PARTS = ("stem", "transition", "neck", "decoder", "head")  # in the order of a table


def plan_dropblock(
    model: nn.Module,
    stages: int | Sequence[int] | None = (3, 4),
    *,
    keep_prob: float | Mapping[int | None, float] = 0.9,
    block_size: BlockSize = 7,
    where: str | Sequence[str] = "paper",
    include: Pattern = None,
    exclude: Pattern = None,
    layer: MakeLayer | None = None,
    depth_scaling: bool = True,
    example_input: Any = None,
    strict: bool = True,
    **layer_options: Any,
) -> InjectionPlan:
    """What :func:`inject_dropblock` would do with the same arguments, raising the same errors; changes nothing.

    Returns:
        A sequence of :class:`Site`; ``print()`` shows it as a table, ``apply()`` carries it out.

    >>> from torchvision.models import resnet18
    >>> print(plan_dropblock(resnet18(), stages=[3, 4], where="output", include="layer4.*"))
    DropBlock in ResNet: 2 sites in 2 blocks; maps for an input of 224x224 pixels
    <BLANKLINE>
    stage  site                  where   after     channels  map  block  keep_prob
    -----  --------------------  ------  --------  --------  ---  -----  ---------
        4  layer4.0.drop_output  output  layer4.0       512  7x7   7x7*        0.9
           layer4.1.drop_output  output  layer4.1       512  7x7   7x7*        0.9
    <BLANKLINE>
    * 2 of 2 sites drop whole channels, as Dropout2d does, because the block is as large as the map
      (block_size=0.5 makes it half of each map)
    """
    check_model(model)
    kinds = kinds_of(where)
    check_layer_options(keep_prob, block_size, layer_options)
    if layer is not None:
        check_maker(layer, layer_options)
    check_pattern("include", include)
    check_pattern("exclude", exclude)
    trunk = find_trunk(model, example_input)
    chosen = choose_stages(trunk.stages, stages, trunk.geometry.image_size, strict)
    deepest = trunk.stages[-1].index
    if isinstance(keep_prob, Mapping):
        keep_prob = by_stage(keep_prob, trunk.stages)
    if stages is not None:
        targets_of(keep_prob, [stage.index for stage in chosen], deepest, depth_scaling)
    asked: list[tuple[int | None, Block]] = []
    others: list[Block] = []
    for stage, blocks in zip(trunk.stages, trunk.blocks, strict=True):
        if stage in chosen:
            asked += [(stage.index, block) for block in blocks]
        else:
            others += blocks
    if stages is None:
        asked += [(None, block) for block in sorted(trunk.off_trunk, key=lambda block: _PARTS.index(block.place))]
    else:
        others += trunk.off_trunk
    finder = SiteFinder(trunk.trace, trunk.geometry)
    sites = [site for stage, block in asked for site in finder.sites(block, stage, block_size) if site.where in kinds]
    if not sites and strict:
        reason = (
            "no module puts out what its convolutions make. Hooks do not see a layer whose forward is called directly, "
            "as conv.forward(x), nor a weight that is given to a function; call the layer, conv(x)"
            if "branch" in kinds and finder.without_site
            else "a network without shortcuts has no 'skip' and no 'end', and an 'end' needs a module that gives the "
            "end of the branch; try where='branch' or 'output'"
        )
        raise NoMatchError(
            f"where={where!r} finds no site in stages {[stage.index for stage in chosen]} of {type(model).__name__}: "
            f"{reason}"
        )
    sites = choose_sites(model, sites, include, exclude, strict, elsewhere=[name for b in others for name in _names(b)])
    targets = targets_of(keep_prob, {site.stage for site in sites}, deepest, depth_scaling)
    sites = [replace(site, keep_prob=targets[site.stage]) for site in sites]
    every = [block for blocks in trunk.blocks for block in blocks]
    left = leftovers([block for _, block in asked], every, trunk.off_trunk, trunk.units, trunk.trace, trunk.geometry)
    summary = TraceSummary(
        image_size=trunk.geometry.image_size,
        without_skip=tuple(finder.unreachable) if "skip" in kinds else (),
        without_end=tuple(finder.without_end) if "end" in kinds else (),
        additions=left.additions if "skip" in kinds else (),
        sums=left.sums if "skip" in kinds else (),
        shared=left.shared if "branch" in kinds else (),
        without_site=(*left.units, *finder.without_site) if "branch" in kinds else (),
        off_trunk={} if stages is None else dict(Counter(str(block.place) for block in trunk.off_trunk)),
        results=trunk.results if stages is None else (),
        error=trunk.trace.error,
    )
    return InjectionPlan(model, sites, summary, layer or dropblock_for(block_size, layer_options))


def _with_signature_of(
    plan: Callable[P, InjectionPlan],
) -> Callable[[Callable[..., InjectionReport]], Callable[P, InjectionReport]]:
    """A decorator: the function has the parameters of another one, for type checkers and for ``inspect.signature``."""

    def decorate(function: Callable[..., InjectionReport]) -> Callable[P, InjectionReport]:
        own = inspect.signature(plan).replace(return_annotation="InjectionReport")
        function.__signature__ = own  # type: ignore[attr-defined]
        return function

    return decorate


@_with_signature_of(plan_dropblock)
def inject_dropblock(*args: Any, **kwargs: Any) -> InjectionReport:
    """Puts DropBlocks into a built model, in place. Checkpoint keys, eval output and parameters stay as they are.

    The defaults are those of the paper (arXiv 1810.12890, section 4.1: groups 3 and 4 of a ResNet, block 7, keep 0.9,
    after each convolution and on the shortcuts) and of its authors' code. It is
    ``plan_dropblock(...).apply()``: all or nothing.

    The order of things: load weights, convert to SyncBatchNorm, inject, then compile or wrap in DDP or FSDP, then
    build the optimizer and attach a :class:`KeepProbSchedule`.

    Args:
        model: any network with a convolutional trunk, in any mode, on any device.
        stages: which stages, as :func:`find_stages` counts them; negative from the deepest: -1 is the last. None:
            every block of the network, in the trunk or off it (neck, decoder, heads), to be chosen by `include` and
            `exclude`.
        keep_prob: share of the feature map to keep in the deepest stage, in (0, 1]; or a mapping
            ``{stage: keep_prob}``, taken as it is, with None for what is off the trunk. A float is the keep_prob of
            everything off the trunk too.
        block_size: as in :func:`drop_block`.
        where: ``"branch"``: after each convolution unit of a block (and at the branch's end where that is something
            else); ``"skip"``: on the shortcut, identity or projected, unseen by the branch; ``"output"``: after the
            addition and its activation; ``"end"``: at the end of each branch, before the addition, which is the place
            for drop path; ``"paper"``: branch and skip; or a sequence of them.
        include, exclude: name patterns over the sites. A site answers to the names of its convolution, of its
            normalisation and activation, of its block and of its DropBlock: ``"layer4.*.conv2"`` means the same sites
            in every library. A string is an exact name, a dotted suffix, a shell wildcard, or a regular expression
            after ``"re:"``. A sequence of strings means any of them. A callable ``(name, module) -> bool`` is asked
            for each of these names.
        layer: a callable ``(site) -> nn.Module`` that makes another layer for each :class:`Site`:
            ``layer=lambda site: nn.Dropout2d(1 - site.keep_prob)``. It must have no parameters and no buffers. The
            schedule moves its `keep_prob`, or else its `p` or `drop_prob` as 1 - keep_prob. None: a DropBlock.
        depth_scaling: with a float `keep_prob`, let each stage further up drop a quarter as much, which is the
            authors' rule: ``1 - (1 - keep_prob) / 4 ** (deepest - stage)``.
        example_input: see :func:`find_stages`.
        strict: if True a stage or pattern that matches nothing is an error, else it is passed over.
        layer_options: `per_channel`, `rescale`, `calibrated`, `generator`, `inplace` of :class:`DropBlock`.

    Returns:
        A sequence of :class:`Site`; ``print()`` shows it as a table.

    Raises:
        DropBlockTypeError, DropBlockValueError: an argument is of a wrong type or out of range.
        NoTrunkError, TraceError: see :func:`find_stages`.
        NoMatchError: a stage or pattern matches nothing.
        AlreadyInjectedError: the model has injected DropBlocks.
        CompiledModelError: the model is compiled or scripted.

    >>> from torchvision.models import resnet18
    >>> model = resnet18()
    >>> keys = list(model.state_dict())
    >>> report = inject_dropblock(model, stages=[3, 4])
    >>> report
    <InjectionReport of 12 sites in ResNet>
    >>> [(site.name, site.keep_prob) for site in report[5:7]]
    [('layer3.1.drop_skip', 0.975), ('layer4.0.drop_branch1', 0.9)]
    >>> list(model.state_dict()) == keys
    True
    """
    return plan_dropblock(*args, **kwargs).apply()


def remove_dropblock(model: nn.Module) -> int:
    """Takes every injected DropBlock out again and restores the model exactly; returns how many there were.

    Does nothing to a model without any. Works on a copy and on an unpickled model as on the original. With a part of
    the model, such as ``model.layer3``, it takes out what is in there. DropBlock layers that are part of the model's
    own code stay.

    Raises:
        DropBlockTypeError: `model` is not a module.

    >>> from torchvision.models import resnet18
    >>> model = resnet18()
    >>> _ = inject_dropblock(model)
    >>> remove_dropblock(model), remove_dropblock(model)
    (12, 0)
    """
    if not isinstance(model, nn.Module):
        raise DropBlockTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return unsplice(model)


def _names(block: Block) -> Iterator[str]:
    """The names that the sites of a block might answer to."""
    yield block.name
    for unit in block.units:
        yield from unit.layers(block.scope)
