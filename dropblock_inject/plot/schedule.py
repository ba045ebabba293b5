"""A schedule: keep_prob over the steps of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ..surgery.place import Label, target_of
from ..surgery.site import Site
from ..surgery.splice import dropping_layers
from ..training.schedule import KeepProbSchedule
from .canvas import GREY, MEDIUM, PAGE_WIDTH, PART_COLORS, SMALL, draw_title, new_figure, stage_color

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_schedule(schedule: KeepProbSchedule) -> Figure:
    """keep_prob over the steps of a schedule, a curve for each stage; a dot marks the present step, if it is not 0.

    Raises:
        PlotError: matplotlib is not installed.
    """
    curves: dict[str, float] = {}
    colors: dict[str, str] = {}
    layers = dropping_layers(schedule.model)
    stages = sorted({site.stage for layer in layers.values() if (site := _site(layer)) and site.stage is not None})
    for name, layer in layers.items():
        site = _site(layer)
        curve = name if site is None else "off the trunk" if site.stage is None else f"stage {site.stage}"
        curves[curve] = target_of(layer) if schedule.end is None else schedule.end
        if site is not None:
            number = None if site.stage is None else stages.index(site.stage)
            colors[curve] = PART_COLORS["head"] if number is None else stage_color(number, len(stages))
    figure = new_figure(PAGE_WIDTH, 3.6)
    from matplotlib.lines import Line2D

    axis = figure.subplots()
    points = min(schedule.total_steps, 1000)
    steps = sorted({round(i * schedule.total_steps / points) for i in range(points + 1)})
    for number, (curve, end) in enumerate(curves.items()):
        color = colors.get(curve, stage_color(number, len(curves)))
        values = [schedule.value_at(step, end) for step in steps]
        axis.plot(steps, values, color=color, linewidth=2, label=f"{curve}, to {end:g}")
        if schedule.last_step:
            value = schedule.value_at(schedule.last_step, end)
            axis.plot(schedule.last_step, value, "o", color=color, clip_on=False, zorder=3)
    axis.set_xlabel("optimizer step", fontsize=MEDIUM)
    axis.set_ylabel("keep_prob", fontsize=MEDIUM)
    axis.tick_params(labelsize=SMALL)
    axis.set_xlim(0, schedule.total_steps)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    handles = axis.get_legend_handles_labels()[0]
    if schedule.last_step:
        now = f"now: step {schedule.last_step}"
        handles.append(Line2D([], [], marker="o", linestyle="none", color=GREY, label=now))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=SMALL)
    mode = schedule.mode if isinstance(schedule.mode, str) else getattr(schedule.mode, "__name__", "own")
    draw_title(figure, f"{mode} schedule over {schedule.total_steps} steps")
    return figure


def _site(layer: nn.Module) -> Site | None:
    label = Label.of(layer)
    return None if label is None else label.site
