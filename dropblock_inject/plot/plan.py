"""A plan: the stages of a network as rows, with the sites in their blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..anatomy.stages import find_stages
from ..placement.plan import InjectionPlan
from ..placement.plan_table import totals
from ..surgery.site import Site
from .canvas import COLORS, GREY, LARGE, LINE, MEDIUM, PAGE_WIDTH, SMALL, name_of, sheet, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# All in inches.
_LEFT, _RIGHT = 2.45, PAGE_WIDTH - 0.15  # of the blocks
_TOP = 0.72  # the height of the title
_SITE, _PITCH, _MARGIN = 0.13, 0.16, 0.06
_LINE_HEIGHT = 0.155


def plot_plan(plan: InjectionPlan, example_input: Any = None, name: str | None = None) -> Figure:
    """The stages of a network as rows, shallow to deep, with their blocks and the sites of a plan in them.

    A star marks a site whose block is as large as the map. The small square shows a block on a map, to scale.

    Args:
        plan: of :func:`dropblock_inject.plan_dropblock`, applied or not.
        example_input: the one that the plan was made with.
        name: of the model, for the title; None: its name in timm, or else its class.

    Raises:
        PlotError: matplotlib is not installed.
    """
    facts = plan.as_dict()
    layers = sorted({site["layer"] for site in facts["sites"]})
    has_blocks = layers == ["DropBlock"]
    rows = _rows(plan, example_input)
    heights = [row.height(has_blocks) for row in rows]
    sites = Counter[str](site.where for site in plan)
    covering = sum(_covers(site) for site in plan) if has_blocks else 0
    lines = (len(sites) + bool(covering) + has_blocks + 2) // 2  # of the legend, which has two columns
    bottom = _TOP + sum(heights) + 0.1 + 0.1 * lines  # the middle of the legend
    figure, axis = sheet(PAGE_WIDTH, bottom + 0.15 + 0.1 * lines)
    title = f"{' and '.join(layers) or 'DropBlock'} in {name or name_of(plan.model)}"
    axis.text(0.15, 0.24, title, fontsize=LARGE, va="center", weight="bold")
    axis.text(0.15, 0.47, totals(list(plan), facts["image_size"]), fontsize=SMALL, va="center", color=GREY)
    top = _TOP
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        _draw_row(axis, row, top, height, has_blocks)
        if number and row.in_trunk and rows[number - 1].in_trunk:
            axis.annotate("", (0.3, top + 0.02), (0.3, top - 0.16), arrowprops={"arrowstyle": "-|>", "color": GREY})
        top += height
    _draw_legend(axis, bottom, sites, covering, has_blocks)
    return figure


class _Row(NamedTuple):
    """A stage, or a part of the network off the trunk: its name, its maps, and the sites of each of its blocks."""

    title: str
    maps: str
    blocks: list[list[Site]]
    in_trunk: bool

    @property
    def sites(self) -> list[Site]:
        return [site for block in self.blocks for site in block]

    @property
    def block_height(self) -> float:
        """The height of each block; one with both lanes is higher."""
        lanes = len({site.where == "skip" for site in self.sites})
        return 0.24 + 0.22 * max(lanes - 1, 0)

    def labels(self, has_blocks: bool) -> list[str]:
        if not self.sites:
            return [f"{self.maps}, no site"]
        kept = ", ".join(f"{value:.4g}" for value in sorted({site.keep_prob for site in self.sites}))
        sizes = sorted({site.block_size for site in self.sites}, reverse=True)
        blocks = times(sizes[0]) if len(sizes) == 1 else f"{times(sizes[-1])} to {times(sizes[0])}"
        labels = [] if self.in_trunk else ["off the trunk"]
        return labels + [self.maps, f"keep_prob {kept}"] + ([f"block_size {blocks}"] if has_blocks else [])

    def lines(self) -> list[list[list[Site]]]:
        """The blocks line by line, as many in a line as fit."""
        lines: list[list[list[Site]]] = [[]]
        left = _LEFT
        for block in self.blocks:
            if left + _width(block) > _RIGHT and lines[-1]:
                lines.append([])
                left = _LEFT
            lines[-1].append(block)
            left += _width(block)
        return lines

    def height(self, has_blocks: bool) -> float:
        text = (len(self.labels(has_blocks)) + 1) * _LINE_HEIGHT
        return max(text, len(self.lines()) * (self.block_height + _MARGIN)) + 0.24


def _rows(plan: InjectionPlan, example_input: Any) -> list[_Row]:
    """The stem if it has sites, all stages, and the other parts off the trunk that have sites."""
    by_block: dict[str, list[Site]] = {}
    parts: dict[str, dict[str, list[Site]]] = {}
    for site in plan:
        if site.stage is None:
            parts.setdefault(site.part, {}).setdefault(site.block, []).append(site)
        else:
            by_block.setdefault(site.block, []).append(site)
    rows = {part: _row_off_the_trunk(part, list(blocks.values())) for part, blocks in parts.items()}
    stem = [rows.pop("stem")] if "stem" in rows else []
    stages = [
        _Row(
            f"stage {stage.index}",
            f"puts out {stage.channels} x {times(stage.map_size)}",
            [by_block.get(block.name, []) for block in stage.blocks],
            in_trunk=True,
        )
        for stage in find_stages(plan.model, example_input)
    ]
    return [*stem, *stages, *rows.values()]


def _row_off_the_trunk(part: str, blocks: list[list[Site]]) -> _Row:
    sizes = sorted({site.map_size for block in blocks for site in block})
    maps = times(sizes[0]) if len(sizes) == 1 else f"{times(sizes[0])} to {times(sizes[-1])}"
    return _Row(part, f"maps {maps}", blocks, in_trunk=False)


def _draw_row(axis: Axes, row: _Row, top: float, height: float, has_blocks: bool) -> None:
    """A row: its labels, a block on a map to scale, and its blocks in lines."""
    from matplotlib.patches import FancyBboxPatch

    face, edge = ("#f2f5fa", "#2e4057") if row.sites else ("#fafafa", "#bbbbbb")
    frame: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=0.05",
        "facecolor": face,
        "edgecolor": edge,
        "linewidth": 0.8,
    }
    axis.add_patch(FancyBboxPatch((0.1, top + 0.02), PAGE_WIDTH - 0.2, height - 0.16, **frame))
    text = top + 0.13
    axis.text(0.2, text, row.title, fontsize=MEDIUM, weight="bold", va="center")
    for label in row.labels(has_blocks):
        text += _LINE_HEIGHT
        axis.text(0.2, text, label, fontsize=SMALL, va="center", color=GREY)
    if row.sites and has_blocks:
        _draw_block_on_map(axis, row.sites, top + 0.13)
    corner = top + 0.09
    for line in row.lines():
        left = _LEFT
        for block in line:
            _draw_block(axis, block, left, corner, row.block_height, has_blocks)
            left += _width(block)
        corner += row.block_height + _MARGIN


def _draw_block_on_map(axis: Axes, sites: Sequence[Site], top: float) -> None:
    """The most frequent block on its map, to scale; of more than two axes the last two."""
    from matplotlib.patches import Rectangle

    ((map_size, block_size), _) = Counter((site.map_size, site.block_size) for site in sites).most_common(1)[0]
    side = 0.45
    (height, width), block = ((1, *map_size)[-2:]), (1, *block_size)[-2:]
    scale = side / max(height, width)
    left = _LEFT - side - 0.2
    options: dict[str, Any] = {"edgecolor": GREY, "linewidth": 0.8}
    axis.add_patch(Rectangle((left, top), width * scale, height * scale, facecolor="white", gid="map", **options))
    offsets = (width - block[1]) * scale / 2, (height - block[0]) * scale / 2
    size = block[1] * scale, block[0] * scale
    axis.add_patch(Rectangle((left + offsets[0], top + offsets[1]), *size, facecolor=GREY, gid="block"))


def _draw_block(axis: Axes, sites: Sequence[Site], left: float, top: float, height: float, has_blocks: bool) -> None:
    """A block: the sites of the shortcut above, the other ones below."""
    from matplotlib.patches import Rectangle

    width = _width(sites) - 0.04
    box = Rectangle((left, top), width, height, facecolor="white", edgecolor=LINE, linewidth=0.7)
    axis.add_patch(box)
    order = list(COLORS)
    skips = [site for site in sites if site.where == "skip"]
    others = sorted((site for site in sites if site.where != "skip"), key=lambda site: order.index(site.where))
    for lane, middle in ((skips, top + 0.12), (others, top + height - 0.12)):
        if lane:
            axis.plot([left, left + width], [middle, middle], color=LINE, linewidth=0.7, zorder=1)
        first = left + width / 2 - _PITCH * len(lane) / 2 + (_PITCH - _SITE) / 2
        for number, site in enumerate(lane):
            corner = (first + _PITCH * number, middle - _SITE / 2)
            axis.add_patch(Rectangle(corner, _SITE, _SITE, facecolor=COLORS[site.where], zorder=2))
            if has_blocks and _covers(site):
                _star(axis, corner[0] + _SITE / 2, middle)


def _covers(site: Site) -> bool:
    return site.block_size == site.map_size


def _star(axis: Axes, left: float, top: float) -> None:
    style: dict[str, Any] = {"markersize": 6, "markerfacecolor": "white", "markeredgecolor": "none"}
    axis.plot(left, top, "*", zorder=3, gid="whole map", **style)


def _width(sites: Sequence[Site]) -> float:
    """The width of a block with the gap behind it: its sites are side by side."""
    lower = sum(site.where != "skip" for site in sites)
    upper = sum(site.where == "skip" for site in sites)
    return _PITCH * max(lower, upper, 1) + 0.11


def _draw_legend(axis: Axes, middle: float, sites: Counter[str], covering: int, has_blocks: bool) -> None:
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D

    def marker(shape: str, color: str, edge: str = "none", size: float = 8) -> Line2D:
        style: dict[str, Any] = {"markersize": size, "markerfacecolor": color, "markeredgecolor": edge}
        return Line2D([], [], marker=shape, linestyle="none", **style)

    handles: list[Any] = [marker("s", color) for where, color in COLORS.items() if sites[where]]
    labels = [f"{where} ({sites[where]})" for where in COLORS if sites[where]]
    if covering:
        handles.append((marker("s", GREY), marker("*", "white", size=6)))
        labels.append(f"drops whole channels: block_size is the whole map ({covering})")
    handles.append(marker("s", "white", LINE, 9))
    labels.append("a block of the network" + (": shortcut above, branch below" if sites["skip"] else ""))
    if has_blocks:
        handles.append((marker("s", "white", GREY, 9), marker("s", GREY, size=5)))
        labels.append("block_size on the map, to scale")
    axis.legend(
        handles,
        labels,
        handler_map={tuple: HandlerTuple(ndivide=1)},
        loc="center",
        bbox_to_anchor=(PAGE_WIDTH / 2, middle),
        bbox_transform=axis.transData,
        ncols=2,
        frameon=False,
        fontsize=SMALL,
        handletextpad=0.3,
        columnspacing=1.2,
    )
