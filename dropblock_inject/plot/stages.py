"""The stages of a network: its blocks by the resolution of their output, and one residual block in detail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

from torch import nn

from ..anatomy.blocks import Block, enclosing_calls, find_blocks
from ..anatomy.stages import Trunk, find_trunk
from ..errors import DropBlockValueError
from ..placement.site_finder import SiteFinder
from ..tracing.operations import SAME_VALUES
from ..tracing.trace import Op, ancestors
from .canvas import COLORS, GREY, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STAGES = ("#a3bfd9", "#7ba3c8", "#5086b5", "#2f6699", "#143f6b")  # the deepest last
# The parts off the trunk; a block that has no site is in none of them.
_PARTS = {"stem": "#8d96a3", "transition": "#c7b198", "neck": "#66a182", "decoder": "#d1495b", "head": "#edae49"}
_OUTSIDE = "#d9d9d9"
_LINE = "#9aa3af"
_GAP = 0.35  # inches between two steps of a block, with room for a site

Step = tuple[str, set[str]]  # the label, and the names of the modules that the step runs in


def plot_stages(model: nn.Module, example_input: Any = None, block: str | None = None) -> Figure:
    """The blocks of a network by the resolution of their output, in the colours of their stages; below, the operations
    of a residual block with the places of its sites.

    Args:
        model: any network with a convolutional trunk. It is not changed.
        example_input: see :func:`dropblock_inject.find_stages`.
        block: dotted name of the block to show in detail; None: the first residual block of the deepest stage that has
            one.

    Raises:
        PlotError: matplotlib is not installed.
        DropBlockValueError: there is no such block.
        The errors of :func:`dropblock_inject.find_stages`.
    """
    trunk = find_trunk(model, example_input)
    shown = _block_to_show(trunk, block)
    if shown is None:
        figure = new_figure(11, 3.8)
        _draw_levels(figure.subplots(), trunk, type(model).__name__)
        return figure
    paths = _paths(shown)
    length = max(sum(map(_room_for, steps)) for steps in paths.values()) + 1.2
    figure = new_figure(max(11, length + 2), 6.6)
    levels, detail = figure.subplots(2, 1, height_ratios=(3, 2))
    _draw_levels(levels, trunk, type(model).__name__)
    finder = SiteFinder(trunk.trace, trunk.geometry)
    sites = [(site.where, site.host) for site in finder.sites(shown, 0, 1)]
    _draw_block(detail, shown.name, paths, length, sites)
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
    """The blocks from left to right in the order of execution, and downwards by the reduction of their output."""
    found = find_blocks(trunk.trace, trunk.geometry)
    blocks = sorted((*found.residual, *found.composite, *found.single), key=_first_operation)
    heights = [block.map.log_reduction for block in blocks]
    colors = dict.fromkeys((block.name for block in blocks), _OUTSIDE)
    parts = {block.name: str(block.place) for block in trunk.off_trunk}
    colors.update({name: _PARTS[part] for name, part in parts.items()})
    for number, (stage, level) in enumerate(zip(trunk.stages, trunk.blocks, strict=True)):
        color = _STAGES[(number - len(trunk.stages)) % len(_STAGES)]
        names = {block.name for block in level}
        colors.update(dict.fromkeys(names, color))
        own = [place for place, block in enumerate(blocks) if block.name in names]
        axis.axvspan(own[0] - 0.5, own[-1] + 0.5, color=color, alpha=0.08, linewidth=0)
        label = f"stage {stage.index}\n{stage.channels} x {'x'.join(map(str, stage.map_size))}"
        middle, above = (own[0] + own[-1]) / 2, heights[own[0]] - 0.28  # stages of a dilated network share a height
        axis.text(middle, above, label, ha="center", va="bottom", fontsize=8.5, color=color, weight="bold")
    kinds = (("residual block", "o", True), ("convolution unit or block without a shortcut", "s", False))
    for label, marker, residual in kinds:
        places = [place for place, block in enumerate(blocks) if bool(block.residuals) is residual]
        if places:
            shades = [colors[blocks[place].name] for place in places]
            axis.scatter(places, [heights[place] for place in places], marker=marker, s=42, color=shades, zorder=3)
            axis.plot([], [], marker, color=GREY, label=label)
    for label, color in (*_PARTS.items(), ("without a site", _OUTSIDE)):
        if color in colors.values():
            axis.plot([], [], "o", color=color, label=label)
    axis.set_ylim(max(heights) + 0.5, min(heights) - 1.1)
    ticks = range(round(max(heights)) + 1)
    axis.set_yticks(list(ticks), [f"/{2**tick}" for tick in ticks])
    axis.set_ylabel("reduction of the map")
    axis.set_xlabel("blocks in the order of execution")
    axis.set_xticks([])
    axis.set_xlim(-1, len(blocks))
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"stages of {name}", loc="left", fontsize=11)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4, frameon=False, fontsize=8.5)


def _first_operation(block: Block) -> int:
    return block.units[0].op.index if block.units else block.residuals[0].add.index


def _draw_block(
    axis: Axes, name: str, paths: Mapping[str, list[Step]], length: float, sites: Sequence[tuple[str, str]]
) -> None:
    """A block: x on the left, the branch below, the shortcut above, their sum on the right; `length` in inches.

    A site is a place in the block and the name of its host.
    """
    axis.set_axis_off()
    for height, (where, steps) in enumerate(paths.items()):
        axis.plot([0, 0.35, length, length], [0.5, height, height, 0.5], color=_LINE, linewidth=1.2, zorder=1)
        widths = list(map(_room_for, steps))
        starts = list(accumulate(widths, initial=0.6 + (length - 1.2 - sum(widths)) / 2))
        for step, left, right in zip(steps, starts, starts[1:], strict=False):
            _box(axis, (left + right - _GAP) / 2, height, step[0])
        for host in (host for kind, host in sites if kind == where):
            last = _last_step(host, steps)
            _diamond(axis, length - 0.6 if last is None else starts[last + 1] - _GAP / 2, height, where)
    axis.plot([length, length + 1.1], [0.5, 0.5], color=_LINE, linewidth=1.2, zorder=1)
    kinds = {kind for kind, _ in sites}
    if "output" in kinds:
        _diamond(axis, length + 0.7, 0.5, "output")
    if "end" in kinds:
        _diamond(axis, length - 0.3, 0, "end")
    _circle(axis, 0, "x")
    _circle(axis, length, "+")
    for where, color in COLORS.items():
        if where in kinds:
            axis.plot([], [], "D", markersize=7, color=color, label=f"a site of where={where!r}")
    axis.set_xlim(-0.4, length + 1.3)
    axis.set_ylim(-0.75, 1.6)
    title = f"the block {name}: y = F(x) + S(x), the branch F below and the shortcut S above"
    axis.set_title(title, loc="left", fontsize=11)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.06), ncols=4, frameon=False, fontsize=8.5)


def _room_for(step: Step) -> float:
    """The width of a step in inches, with the gap behind it."""
    return 0.075 * len(step[0]) + 0.15 + _GAP


def _paths(block: Block) -> dict[str, list[Step]]:
    """The steps of the branch and of the shortcut of a block, up to its first residual add.

    The operations of one module are one step; its label is the name of the module in the block.
    """
    residual = block.residuals[0]
    own = ancestors([residual.skip], residual.call) - ancestors([residual.branch], residual.call)
    skip = {value.producer for value in own if value.producer and residual.call.contains(value.producer)}

    def label(op: Op) -> str:
        if op.call is block.scope or not op.call.name.startswith(block.scope.name):
            return op.kind
        return op.call.name[len(block.scope.name) :].lstrip(".")

    def steps(ops: Iterable[Op]) -> list[Step]:
        computing = sorted((op for op in ops if op.kind not in SAME_VALUES), key=lambda op: op.index)
        first = [next(group) for _, group in groupby(computing, key=label)]
        return [(label(op), {call.name for call in enclosing_calls(op.call)}) for op in first]

    return {"branch": steps(residual.branch_ops), "skip": steps(skip)}


def _last_step(host: str, steps: Sequence[Step]) -> int | None:
    """The number of the last step in the host of a site; None if no step is in it, or all steps are."""
    inside = [number for number, (_, modules) in enumerate(steps) if host in modules]
    return inside[-1] if inside and len(inside) < len(steps) else None


def _box(axis: Axes, left: float, height: float, label: str) -> None:
    style = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": _LINE}
    axis.text(left, height, label, ha="center", va="center", fontsize=8, bbox=style, zorder=2)


def _diamond(axis: Axes, left: float, height: float, where: str) -> None:
    axis.plot(left, height, "D", markersize=9, color=COLORS[where], zorder=4, gid=f"site {where}")


def _circle(axis: Axes, left: float, label: str) -> None:
    style = {"boxstyle": "circle,pad=0.3", "facecolor": "#f2f5fa", "edgecolor": "#2e4057"}
    axis.text(left, 0.5, label, ha="center", va="center", fontsize=10, bbox=style, zorder=3)
