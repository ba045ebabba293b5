"""The stages of a network: its blocks by the resolution of their output, and one residual block in detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..anatomy.blocks import Block, find_blocks
from ..anatomy.stages import Trunk, find_trunk
from ..errors import DropBlockValueError
from .block import draw_block, picture_of
from .canvas import COLORS, GREY, LARGE, OUTSIDE, PAGE_WIDTH, PART_COLORS, SMALL, name_of, sheet, stage_color, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVELS = 3.9  # inches for the upper part of the picture, with its title and its legend
_BELOW = 0.9  # of them for its axis and its legend


def plot_stages(
    model: nn.Module, example_input: Any = None, block: str | None = None, name: str | None = None
) -> Figure:
    """The blocks of a network by the resolution of their output, in the colours of their stages; below, the operations
    of a residual block with the places of its sites.

    Args:
        model: any network with a convolutional trunk. It is not changed.
        example_input: see :func:`dropblock_inject.find_stages`.
        block: dotted name of the block to show in detail; None: the first residual block of the deepest stage that has
            one.
        name: of the model, for the title; None: its name in timm, or else its class.

    Raises:
        PlotError: matplotlib is not installed.
        DropBlockValueError: there is no such block.
        The errors of :func:`dropblock_inject.find_stages`.
    """
    trunk = find_trunk(model, example_input)
    shown = _block_to_show(trunk, block)
    detail = None if shown is None else picture_of(shown, trunk)
    width, height = PAGE_WIDTH, _LEVELS
    if detail is not None:
        width, height = max(width, detail.width), height + detail.height
    figure, page = sheet(width, height)
    frame = (0.75 / width, 1 - (_LEVELS - _BELOW) / height, 1 - 0.95 / width, (_LEVELS - _BELOW - 0.45) / height)
    _draw_levels(figure.add_axes(frame), trunk, name or name_of(model))
    if detail is not None:
        draw_block(page, detail, _LEVELS)
        for where in detail.kinds:
            default = " (default)" if where in ("branch", "skip") else ""
            page.plot([], [], "D", markersize=6, color=COLORS[where], label=f"site, where={where!r}{default}")
        options: dict[str, Any] = {
            "ncols": 4,
            "frameon": False,
            "fontsize": SMALL,
            "handletextpad": 0.2,
            "columnspacing": 1.2,
        }
        page.legend(loc="center", bbox_to_anchor=(width / 2, height - 0.17), bbox_transform=page.transData, **options)
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
    colors = dict.fromkeys((block.name for block in blocks), OUTSIDE)
    parts = {block.name: str(block.place) for block in trunk.off_trunk}
    colors.update({name: PART_COLORS[part] for name, part in parts.items()})
    in_trunk = {block.name for level in trunk.blocks for block in level}
    ends: dict[float, float] = {}  # where the last label at a height ends
    for number, (stage, level) in enumerate(zip(trunk.stages, trunk.blocks, strict=True)):
        color = stage_color(number, len(trunk.stages))
        names = {block.name for block in level}
        colors.update(dict.fromkeys(names, color))
        own = [place for place, block in enumerate(blocks) if block.name in names]
        if not {block.name for block in blocks[own[0] : own[-1]]} & in_trunk - names:  # parallel branches take turns
            axis.axvspan(own[0] - 0.5, own[-1] + 0.5, color=color, alpha=0.1, linewidth=0)
        label = f"stage {stage.index}\n{stage.channels} x {times(stage.map_size)}"
        half = 0.034 * max(map(len, label.split("\n"))) * (len(blocks) + 1) / 6.5  # of the label, in blocks
        middle = max((own[0] + own[-1]) / 2, half - 1)
        # Stages of a dilated network share a height; then labels are above and below the blocks in turn.
        above = ends.get(heights[own[0]], -2) <= middle - half
        ends[heights[own[0]]] = middle + half
        height, side = (heights[own[0]] - 0.2, "bottom") if above else (heights[own[0]] + 0.2, "top")
        axis.text(middle, height, label, ha="center", va=side, fontsize=SMALL, color=GREY, weight="bold")
    size = min(40.0, (0.85 * 6.5 / (len(blocks) + 1) * 72) ** 2)  # square points: next to each other they do not touch
    kinds = (("residual block", "o", True), ("convolution or block without a shortcut", "s", False))
    for label, marker, residual in kinds:
        places = [place for place, block in enumerate(blocks) if bool(block.residuals) is residual]
        if places:
            shades = [colors[blocks[place].name] for place in places]
            style: dict[str, Any] = {"s": size, "edgecolors": GREY, "linewidths": 0.4 if size > 12 else 0, "zorder": 3}
            axis.scatter(places, [heights[place] for place in places], marker=marker, color=shades, **style)
            axis.plot([], [], marker, color="white", markeredgecolor=GREY, label=label)
    for label, color in (*PART_COLORS.items(), ("without a site", OUTSIDE)):
        if color in colors.values():
            axis.plot([], [], "s", color=color, markeredgecolor=GREY, markeredgewidth=0.4, label=label)
    axis.set_ylim(max(heights) + 0.6, min(heights) - 1.1)
    ticks = range(round(max(heights)) + 1)
    axis.set_yticks(list(ticks), [f"/{2**tick}" for tick in ticks])
    axis.tick_params(labelsize=SMALL)
    axis.set_ylabel("reduction of the map", fontsize=SMALL)
    axis.set_xlabel("blocks in the order of execution", fontsize=SMALL)
    axis.set_xticks([])
    axis.set_xlim(-1, len(blocks))
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"stages of {name}", loc="left", fontsize=LARGE, weight="bold")
    options: dict[str, Any] = {"handletextpad": 0.2, "columnspacing": 1.2, "frameon": False, "fontsize": SMALL}
    columns = 4 if len(axis.get_legend_handles_labels()[0]) <= 4 else 3
    axis.legend(loc="upper center", bbox_to_anchor=(0.45, -0.1), ncols=columns, **options)


def _first_operation(block: Block) -> int:
    return block.units[0].op.index if block.units else block.residuals[0].add.index
