"""How the walker decides: the blocks it finds by the resolution they put out, and one of them from the inside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

from torch import nn

from ..anatomy.blocks import Block, enclosing_calls, find_blocks
from ..anatomy.stages import Trunk, find_trunk
from ..errors import DropBlockValueError
from ..placement.site_finder import SiteFinder
from ..surgery.site import Site
from ..tracing.operations import SAME_VALUES
from ..tracing.trace import Call, Op, ancestors
from .canvas import COLORS, GREY, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STAGES = ("#a3bfd9", "#7ba3c8", "#5086b5", "#2f6699", "#143f6b")  # the deepest last
_OUTSIDE = "#c9c9c9"
_LINE = "#9aa3af"
_GAP = 0.35  # inches between the steps of a block, where its sites are


def plot_stages(model: nn.Module, example_input: Any = None, block: str | None = None) -> Figure:
    """The blocks of a network by the resolution that they put out, those of the trunk in the colour of their stage; and
    what a residual block computes, with the sites in it.

    Args:
        model: any network with a convolutional trunk; it is not touched.
        example_input: see :func:`dropblock_inject.find_stages`.
        block: dotted name of the block to show from the inside; None: the first with a shortcut in the deepest stage.

    Raises:
        PlotError: matplotlib is not installed.
        DropBlockValueError: there is no such block.
        The errors of :func:`dropblock_inject.find_stages`.
    """
    trunk = find_trunk(model, example_input)
    shown = _block_to_show(trunk, block)
    width = _width_of(shown) + 2 if shown else 0
    figure = new_figure(max(11.0, width), 6.6 if shown else 3.8)
    parts: Any = figure.subplots(2 if shown else 1, 1, squeeze=False, height_ratios=(3, 2) if shown else None)
    _draw_levels(parts[0, 0], trunk, type(model).__name__)
    if shown:
        _draw_block(parts[1, 0], shown, list(SiteFinder(trunk.trace, trunk.geometry).sites(shown, 0, 1.0, 1)))
    return figure


def _block_to_show(trunk: Trunk, name: str | None) -> Block | None:
    levels = [[block for block in level if block.residuals] for level in trunk.blocks]
    if name is None:
        return next((level[0] for level in reversed(levels) if level), None)
    residual = {block.name: block for level in levels for block in level}
    if name not in residual:
        raise DropBlockValueError(f"no residual block {name!r} in the trunk; it has {', '.join(residual) or 'none'}")
    return residual[name]


def _draw_levels(axis: Axes, trunk: Trunk, name: str) -> None:
    """The blocks in the order of execution from left to right, the image being reduced downwards."""
    found = find_blocks(trunk.trace, trunk.geometry)
    blocks = sorted((*found.residual, *found.composite, *found.single), key=_place)
    stage_of = {block.name: stage for stage, level in zip(trunk.stages, trunk.blocks, strict=True) for block in level}
    colors = {stage.index: _STAGES[-1 - number % len(_STAGES)] for number, stage in enumerate(trunk.stages[::-1])}
    lowest = max(block.map.log_reduction for block in blocks)

    def color_of(block: Block) -> str:
        return colors[stage_of[block.name].index] if block.name in stage_of else _OUTSIDE

    for stage in trunk.stages:
        own = [number for number, block in enumerate(blocks) if stage_of.get(block.name) is stage]
        # Dilated stages have maps of the same size: each is labelled where it is.
        at = blocks[own[0]].map.log_reduction
        color = colors[stage.index]
        axis.axvspan(own[0] - 0.5, own[-1] + 0.5, color=color, alpha=0.08, linewidth=0)
        label = f"stage {stage.index}\n{stage.channels} x {'x'.join(map(str, stage.map_size))}"
        middle = (own[0] + own[-1]) / 2
        axis.text(middle, at - 0.28, label, ha="center", va="bottom", fontsize=8.5, color=color, weight="bold")
    kinds = {"residual block": ("o", True), "convolution unit or block without a shortcut": ("s", False)}
    for label, (marker, residual) in kinds.items():
        dots = [
            (number, block.map.log_reduction, color_of(block))
            for number, block in enumerate(blocks)
            if bool(block.residuals) is residual
        ]
        if dots:
            places, heights, shades = zip(*dots, strict=True)
            axis.scatter(places, heights, marker=marker, s=42, color=shades, zorder=3)
            axis.plot([], [], marker, color=GREY, label=label)
    if any(block.name not in stage_of for block in blocks):
        axis.plot([], [], "o", color=_OUTSIDE, label="not of the trunk")
    axis.set_ylim(lowest + 0.5, min(block.map.log_reduction for block in blocks) - 1.1)
    ticks = range(round(lowest) + 1)
    axis.set_yticks(list(ticks), [f"/{2**tick}" for tick in ticks])
    axis.set_ylabel("reduction of the map")
    axis.set_xlabel("blocks in the order of execution")
    axis.set_xticks([])
    axis.set_xlim(-1, len(blocks))
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"stages of {name}", loc="left", fontsize=11)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False, fontsize=8.5)


def _place(block: Block) -> int:
    """When it is executed."""
    return block.units[0].op.index if block.units else block.residuals[0].add.index


def _draw_block(axis: Axes, block: Block, sites: Sequence[Site]) -> None:
    """x, the branch to the right below, the shortcut above, and their sum; a step is as wide as its name."""
    branch, skip = _ways(block)
    end = _width_of(block)
    axis.set_axis_off()
    for height, where, steps in ((0.0, "branch", branch), (1.0, "skip", skip)):
        axis.plot([0, 0.35, end, end], [0.5, height, height, 0.5], color=_LINE, linewidth=1.2, zorder=1)
        labels = [_label(step[0], block.scope) for step in steps]
        widths = list(map(_room_for, labels))
        starts = list(accumulate(widths, initial=0.6 + (end - 1.2 - sum(widths)) / 2))
        for label, left, right in zip(labels, starts, starts[1:], strict=False):
            _box(axis, (left + right - _GAP) / 2, height, label)
        for site in sites:
            if site.where == where:
                behind = _step_before(site, steps)
                _diamond(axis, end - 0.6 if behind is None else starts[behind + 1] - _GAP / 2, height, where)
    axis.plot([end, end + 1.1], [0.5, 0.5], color=_LINE, linewidth=1.2, zorder=1)
    if any(site.where == "output" for site in sites):
        _diamond(axis, end + 0.7, 0.5, "output")
    _circle(axis, 0, "x")
    _circle(axis, end, "+")
    for where in ("branch", "skip", "output"):
        if any(site.where == where for site in sites):
            axis.plot([], [], "D", markersize=7, color=COLORS[where], label=f"a site of where={where!r}")
    axis.set_xlim(-0.4, end + 1.3)
    axis.set_ylim(-0.75, 1.6)
    title = f"the block {block.name}: y = F(x) + S(x), the branch F below and the shortcut S above"
    axis.set_title(title, loc="left", fontsize=11)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.06), ncols=3, frameon=False, fontsize=8.5)


def _width_of(block: Block) -> float:
    """In inches: of its longer way, with x and the sum."""
    return 1.2 + max(sum(_room_for(_label(step[0], block.scope)) for step in way) for way in _ways(block))


def _room_for(label: str) -> float:
    return 0.075 * len(label) + 0.15 + _GAP


def _ways(block: Block) -> tuple[list[list[Op]], list[list[Op]]]:
    """Branch and shortcut of its first residual add, step by step: the operations of one module are one step."""
    residual = block.residuals[0]
    own = ancestors([residual.skip], residual.call) - ancestors([residual.branch], residual.call)
    skip = {value.producer for value in own if value.producer and residual.call.contains(value.producer)}

    def steps(ops: Iterable[Op]) -> list[list[Op]]:
        computing = sorted((op for op in ops if op.kind not in SAME_VALUES), key=lambda op: op.index)
        return [list(group) for _, group in groupby(computing, key=lambda op: _label(op, block.scope))]

    return steps(residual.branch_ops), steps(skip)


def _step_before(site: Site, steps: Sequence[list[Op]]) -> int | None:
    """The last step of the module behind which a site is; None if it is not of a part of the way, but all of it."""
    names = [{call.name for call in enclosing_calls(step[0].call)} for step in steps]
    inside = [number for number, enclosing in enumerate(names) if site.host in enclosing]
    return inside[-1] if inside and len(inside) < len(steps) else None


def _label(op: Op, scope: Call) -> str:
    """The name of the module that computes it, as the block calls it; else of the operation."""
    if op.call is scope or not op.call.name.startswith(scope.name):
        return op.kind
    return op.call.name[len(scope.name) :].lstrip(".")


def _box(axis: Axes, left: float, height: float, label: str) -> None:
    style = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": _LINE}
    axis.text(left, height, label, ha="center", va="center", fontsize=8, bbox=style, zorder=2)


def _diamond(axis: Axes, left: float, height: float, where: str) -> None:
    axis.plot(left, height, "D", markersize=9, color=COLORS[where], zorder=4, gid=f"site {where}")


def _circle(axis: Axes, left: float, label: str) -> None:
    style = {"boxstyle": "circle,pad=0.3", "facecolor": "#f2f5fa", "edgecolor": "#2e4057"}
    axis.text(left, 0.5, label, ha="center", va="center", fontsize=10, bbox=style, zorder=3)
