"""Pictures: of masks, of what they do to a feature map, of a schedule, of where the DropBlocks of a plan are.

Each function returns a matplotlib figure and shows nothing: ``figure.savefig("masks.png")``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import DropBlockInjectError, DropBlockValueError
from .functional import BlockSize, drop_block
from .hooks import InjectedDropBlock
from .layer import DropBlock
from .plan import InjectionPlan
from .schedule import KeepProbSchedule
from .sites import Site
from .stages import Stage, find_stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"branch": "#d1495b", "skip": "#edae49", "output": "#00798c"}
_STAGE_COLORS = ("#7d8491", "#8d96a3", "#66a182", "#2e4057", "#d1495b", "#00798c", "#edae49")
_DROPPED, _GREY = "#e4e4e4", "#444444"


class PlotError(DropBlockInjectError, ImportError):
    """matplotlib is not installed."""


def plot_masks(
    map_size: tuple[int, int] = (28, 28),
    keep_prob: float = 0.75,
    block_size: BlockSize = 7,
    *,
    channels: int = 5,
    seed: int = 0,
) -> Figure:
    """What Dropout, SpatialDropout and DropBlock drop of feature maps, black; in the title, the share kept by each.

    Args:
        map_size: spatial size of the feature maps, in pixels.
        keep_prob: share to keep, in (0, 1].
        block_size: of DropBlock, as in :func:`dropblock_inject.drop_block`.
        channels: how many maps to show of each; the share kept is that of 2,000 maps.
        seed: for the random numbers.

    Raises:
        PlotError: matplotlib is not installed.
    """
    figure = _figure(1.5 * channels + 1.6, 5.2)
    axes = figure.subplots(3, channels, squeeze=False)
    for row, (name, kept) in zip(axes, _masks((2000, *map_size), keep_prob, block_size, seed).items(), strict=True):
        for axis, mask in zip(row, kept, strict=False):
            _image(axis, mask, cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(f"{name}\nkept {kept.float().mean():.1%}", rotation=0, ha="right", va="center", labelpad=8)
    height, width = map_size
    figure.suptitle(f"{width}x{height} maps at keep_prob {keep_prob:g}, block {_as_text(block_size)}; black is dropped")
    return figure


def plot_feature_maps(
    image: Any,
    features: Tensor,
    keep_prob: float = 0.75,
    block_size: BlockSize = 7,
    *,
    channels: int = 4,
    seed: int = 0,
    title: str = "",
) -> Figure:
    """An image, feature maps of it, and what Dropout, SpatialDropout and DropBlock leave of them at the same keep_prob.

    Args:
        image: anything that matplotlib's ``imshow`` takes: a PIL image, an array (H, W, 3).
        features (Tensor[C, H, W]): feature maps of the image; those with the strongest activations are shown.
        keep_prob: share to keep, in (0, 1].
        block_size: of DropBlock, as in :func:`dropblock_inject.drop_block`.
        channels: how many maps to show.
        seed: for the random numbers.
        title: what is seen, above all of it.

    Raises:
        PlotError: matplotlib is not installed.
        DropBlockValueError: `features` is not of shape (C, H, W).
    """
    if features.dim() != 3:
        raise DropBlockValueError(f"features must be of shape (C, H, W), got {tuple(features.shape)}")
    features = features.detach().float().cpu()
    # The channels that answer to parts of the image, not to all of it.
    strongest = features.flatten(1).var(1).argsort(descending=True)[: min(channels, len(features))]
    shown = features[strongest]
    masks = _masks(tuple(shown.shape), keep_prob, block_size, seed)
    figure = _figure(13.2, 1.34 * len(shown) + 0.9)
    parts: Any = figure.subfigures(1, 3, width_ratios=(3.1, 4, 3))
    pictured, maps, masked = parts
    _image(pictured.subplots(), image)
    pictured.suptitle("input")
    for part, columns in (
        (maps, {"feature map": None, **masks}),
        (masked, masks),
    ):
        axes = part.subplots(len(shown), len(columns), squeeze=False)
        for column, (name, kept) in enumerate(columns.items()):
            for row, activation in enumerate(shown):
                if part is masked:
                    assert kept is not None
                    _image(axes[row, column], kept[row], cmap="gray", vmin=0, vmax=1)
                else:
                    left = activation if kept is None else activation.masked_fill(~kept[row], float("nan"))
                    _image(axes[row, column], left, cmap=_colormap(), vmin=activation.min(), vmax=activation.max())
            axes[0, column].set_title(name, fontsize=10)
    maps.suptitle(f"activations at keep_prob {keep_prob:g}")
    masked.suptitle(f"masks, block {_as_text(block_size)}")
    if title:
        figure.suptitle(title)
    return figure


def plot_schedule(schedule: KeepProbSchedule) -> Figure:
    """keep_prob over the steps of a schedule, a curve for each target; a dot is where the schedule stands.

    Raises:
        PlotError: matplotlib is not installed.
    """
    curves: dict[str, float] = {}
    for name, module in schedule.model.named_modules():
        if isinstance(module, DropBlock):
            label = f"stage {module.site.stage}" if isinstance(module, InjectedDropBlock) else name
            curves[label] = module.target_keep_prob if schedule.end is None else schedule.end
    figure = _figure(6.4, 3.6)
    axis = figure.subplots()
    points = min(schedule.total_steps, 1000)
    steps = sorted({round(i * schedule.total_steps / points) for i in range(points + 1)})
    for number, (label, end) in enumerate(curves.items()):
        color = _STAGE_COLORS[-1 - number % len(_STAGE_COLORS)]
        values = [schedule.value_at(step, end) for step in steps]
        axis.plot(steps, values, color=color, linewidth=2, label=f"{label}, to {end:g}")
        axis.plot(schedule.last_step, schedule.value_at(schedule.last_step, end), "o", color=color)
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("keep_prob")
    axis.set_xlim(0, schedule.total_steps)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.legend(frameon=False)
    mode = schedule.mode if isinstance(schedule.mode, str) else getattr(schedule.mode, "__name__", "own")
    axis.set_title(f"{mode} schedule over {schedule.total_steps} steps")
    return figure


def plot_plan(plan: InjectionPlan, example_input: Any = None) -> Figure:
    """The network as a strip of stages, shallow to deep, its blocks in a row and the DropBlocks of each drawn in.

    Args:
        plan: of :func:`dropblock_inject.plan_dropblock`, not applied yet or applied.
        example_input: what the plan was made with, if anything.

    Raises:
        PlotError: matplotlib is not installed.
    """
    stages = find_stages(plan.model, example_input)
    by_block: dict[str, list[Site]] = {}
    for site in plan:
        by_block.setdefault(site.block, []).append(site)
    blocks = [sum(_width(by_block.get(block.name, [])) for block in stage.blocks) for stage in stages]
    widths = [max(width + 0.6, 2.8) for width in blocks]  # room for the writing above and below
    figure = _figure(min(max(0.34 * sum(widths), 7.5), 22), 3.3)
    axis = figure.subplots()
    axis.set_axis_off()
    left = 0.0
    for number, (stage, width) in enumerate(zip(stages, widths, strict=True)):
        _draw_stage(axis, stage, left, width, by_block)
        if number:
            axis.annotate("", (left, 0), (left - 0.5, 0), arrowprops={"arrowstyle": "-|>", "color": _GREY})
        left += width + 0.5
    for where in ("skip", "branch", "output"):
        count = sum(site.where == where for site in plan)
        if count:
            axis.plot([], [], "s", markersize=8, label=f"{where} ({count})", color=_COLORS[where])
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3, frameon=False)
    axis.set_xlim(-0.2, left - 0.3)
    axis.set_ylim(-2.1, 2.3)
    axis.set_title(f"DropBlock in {type(plan.model).__name__}: {len(plan)} sites in {len(by_block)} blocks", loc="left")
    return figure


def _draw_stage(axis: Axes, stage: Stage, left: float, width: float, by_block: dict[str, list[Site]]) -> None:
    """A panel with the blocks of a stage: shortcuts above, branches below, and the output behind the branches."""
    from matplotlib.patches import FancyBboxPatch

    sites = [site for block in stage.blocks for site in by_block.get(block.name, [])]
    face, edge = ("#f2f5fa", "#2e4057") if sites else ("#fafafa", "#bbbbbb")
    style = "round,pad=0.08"
    axis.add_patch(FancyBboxPatch((left, -1.2), width, 2.4, boxstyle=style, facecolor=face, edgecolor=edge))
    size = "x".join(map(str, stage.map_size))
    kept = ", ".join(sorted({f"{site.keep_prob:g}" for site in sites}))
    middle = left + width / 2
    axis.text(middle, 1.75, f"stage {stage.index}", ha="center", weight="bold", fontsize=10)
    axis.text(middle, 1.4, f"{stage.channels} x {size}", ha="center", fontsize=8, color=_GREY)
    axis.text(middle, -1.6, f"keep {kept}" if sites else "no DropBlock", ha="center", fontsize=8, color=_GREY)
    at = middle - sum(_width(by_block.get(block.name, [])) for block in stage.blocks) / 2
    for block in stage.blocks:
        own = by_block.get(block.name, [])
        _draw_block(axis, own, at, _width(own))
        at += _width(own)


def _draw_block(axis: Axes, sites: Sequence[Site], left: float, width: float) -> None:
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
            axis.add_patch(Rectangle(corner, 0.5, 0.44, facecolor=_COLORS[site.where], zorder=2))


def _width(sites: Sequence[Site]) -> float:
    """Of a block: room for its sites side by side."""
    lower = sum(site.where != "skip" for site in sites)
    upper = sum(site.where == "skip" for site in sites)
    return 0.6 * max(lower, upper, 1) + 0.2


def _masks(shape: tuple[int, ...], keep_prob: float, block_size: BlockSize, seed: int) -> dict[str, Tensor]:
    """What each way of dropping keeps of maps (C, H, W)."""
    blocks: dict[str, BlockSize] = {"Dropout": 1, "SpatialDropout": max(shape[1:]), "DropBlock": block_size}
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(1, *shape)
    return {
        name: drop_block(ones, keep_prob, block, rescale=None, generator=generator)[0] > 0
        for name, block in blocks.items()
    }


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotError('matplotlib is not installed: pip install "dropblock-inject[plot]"') from None
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def _image(axis: Axes, image: Any, **options: Any) -> None:
    axis.imshow(image.numpy() if isinstance(image, Tensor) else image, interpolation="nearest", **options)
    axis.set_xticks([])
    axis.set_yticks([])


def _colormap() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad=_DROPPED)


def _as_text(block_size: BlockSize) -> str:
    if isinstance(block_size, int):
        return f"{block_size}x{block_size}"
    return f"{block_size:g} of the map" if isinstance(block_size, float) else "x".join(map(str, block_size))
