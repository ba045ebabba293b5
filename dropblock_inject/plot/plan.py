"""A plan: the network as a strip of stages, with the sites in its blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..anatomy.stages import Stage, find_stages
from ..placement.plan import InjectionPlan
from ..surgery.site import Site
from .canvas import COLORS, GREY, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_plan(plan: InjectionPlan, example_input: Any = None) -> Figure:
    """A network as a strip of stages, shallow to deep, with its blocks in a row and the sites of a plan in them.

    Args:
        plan: of :func:`dropblock_inject.plan_dropblock`, applied or not.
        example_input: the one that the plan was made with.

    Raises:
        PlotError: matplotlib is not installed.
    """
    stages = find_stages(plan.model, example_input)
    by_block: dict[str, list[Site]] = {}
    for site in plan:
        by_block.setdefault(site.block, []).append(site)
    panels = [_panel_of(stage, by_block) for stage in stages] + _panels_off_the_trunk(plan)
    widths = [max(sum(map(_width, panel.blocks)) + 0.6, 2.8) for panel in panels]  # the text needs 2.8
    figure = new_figure(min(max(0.34 * sum(widths), 7.5), 22), 3.3)
    axis = figure.subplots()
    axis.set_axis_off()
    left = 0.0
    for number, (panel, width) in enumerate(zip(panels, widths, strict=True)):
        _draw_panel(axis, panel, left, width)
        if 0 < number < len(stages):
            axis.annotate("", (left, 0), (left - 0.5, 0), arrowprops={"arrowstyle": "-|>", "color": GREY})
        left += width + 0.5
    counts: Counter[str] = Counter(site.where for site in plan)
    for where, color in COLORS.items():
        if counts[where]:
            axis.plot([], [], "s", markersize=8, label=f"{where} ({counts[where]})", color=color)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3, frameon=False)
    axis.set_xlim(-0.2, left - 0.3)
    axis.set_ylim(-2.1, 2.3)
    axis.set_title(f"DropBlock in {type(plan.model).__name__}: {len(plan)} sites in {len(by_block)} blocks", loc="left")
    return figure


class _Panel(NamedTuple):
    """A stage, or a part of the network off the trunk: two lines of text, and the sites of each of its blocks."""

    title: str
    subtitle: str
    blocks: list[list[Site]]


def _panel_of(stage: Stage, by_block: dict[str, list[Site]]) -> _Panel:
    size = "x".join(map(str, stage.map_size))
    blocks = [by_block.get(block.name, []) for block in stage.blocks]
    return _Panel(f"stage {stage.index}", f"{stage.channels} x {size}", blocks)


def _panels_off_the_trunk(plan: InjectionPlan) -> list[_Panel]:
    """The parts off the trunk that have sites, each with the blocks that have some."""
    parts: dict[str, dict[str, list[Site]]] = {}
    for site in plan:
        if site.stage is None:
            parts.setdefault(site.part, {}).setdefault(site.block, []).append(site)
    return [_Panel(part, "off the trunk", list(blocks.values())) for part, blocks in parts.items()]


def _draw_panel(axis: Axes, panel: _Panel, left: float, width: float) -> None:
    """A panel with its blocks in a row."""
    from matplotlib.patches import FancyBboxPatch

    sites = [site for block in panel.blocks for site in block]
    face, edge = ("#f2f5fa", "#2e4057") if sites else ("#fafafa", "#bbbbbb")
    style = "round,pad=0.08"
    axis.add_patch(FancyBboxPatch((left, -1.2), width, 2.4, boxstyle=style, facecolor=face, edgecolor=edge))
    kept = ", ".join(sorted({f"{site.keep_prob:g}" for site in sites}))
    middle = left + width / 2
    axis.text(middle, 1.75, panel.title, ha="center", weight="bold", fontsize=10)
    axis.text(middle, 1.4, panel.subtitle, ha="center", fontsize=8, color=GREY)
    axis.text(middle, -1.6, f"keep {kept}" if sites else "no DropBlock", ha="center", fontsize=8, color=GREY)
    at = middle - sum(map(_width, panel.blocks)) / 2
    for own in panel.blocks:
        _draw_block(axis, own, at, _width(own))
        at += _width(own)


def _draw_block(axis: Axes, sites: Sequence[Site], left: float, width: float) -> None:
    """A block: the sites of the shortcut above, the other ones below."""
    from matplotlib.patches import Rectangle

    box = Rectangle((left + 0.05, -0.95), width - 0.1, 1.9, facecolor="white", edgecolor="#9aa3af", linewidth=0.8)
    axis.add_patch(box)
    skips = [site for site in sites if site.where == "skip"]
    others = sorted((site for site in sites if site.where != "skip"), key=lambda site: site.where)  # branch, output
    for lane, height in ((skips, 0.5), (others, -0.3)):
        if lane:
            axis.plot([left + 0.05, left + width - 0.05], [height, height], color="#9aa3af", linewidth=0.8, zorder=1)
        first = left + width / 2 - 0.3 * len(lane) + 0.05
        for number, site in enumerate(lane):
            corner = (first + 0.6 * number, height - 0.22)
            axis.add_patch(Rectangle(corner, 0.5, 0.44, facecolor=COLORS[site.where], zorder=2))


def _width(sites: Sequence[Site]) -> float:
    """The width of a block: its sites are side by side."""
    lower = sum(site.where != "skip" for site in sites)
    upper = sum(site.where == "skip" for site in sites)
    return 0.6 * max(lower, upper, 1) + 0.2
