"""A schedule: keep_prob over the steps of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surgery.place import Label, target_of
from ..surgery.splice import dropping_layers
from ..training.schedule import KeepProbSchedule
from .canvas import STAGE_COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_schedule(schedule: KeepProbSchedule) -> Figure:
    """keep_prob over the steps of a schedule, a curve for each stage; a dot marks the present step.

    Raises:
        PlotError: matplotlib is not installed.
    """
    curves: dict[str, float] = {}
    for name, layer in dropping_layers(schedule.model).items():
        label = Label.of(layer)
        curve = name if label is None else "off the trunk" if (n := label.site.stage) is None else f"stage {n}"
        curves[curve] = target_of(layer) if schedule.end is None else schedule.end
    figure = new_figure(6.4, 3.6)
    axis = figure.subplots()
    points = min(schedule.total_steps, 1000)
    steps = sorted({round(i * schedule.total_steps / points) for i in range(points + 1)})
    for number, (curve, end) in enumerate(curves.items()):
        color = STAGE_COLORS[-1 - number % len(STAGE_COLORS)]
        values = [schedule.value_at(step, end) for step in steps]
        axis.plot(steps, values, color=color, linewidth=2, label=f"{curve}, to {end:g}")
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
