"""The parts that all pictures share: the figure, the colours, an image without axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import DropBlockInjectError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"skip": "#edae49", "branch": "#d1495b", "output": "#00798c", "end": "#66a182"}
STAGE_COLORS = ("#7d8491", "#8d96a3", "#66a182", "#2e4057", "#d1495b", "#00798c", "#edae49")
GREY = "#444444"


class PlotError(DropBlockInjectError, ImportError):
    """matplotlib is not installed."""


def new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotError('matplotlib is not installed: pip install "dropblock-inject[plot]"') from None
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def show_image(axis: Axes, image: Any, **options: Any) -> None:
    axis.imshow(image.numpy() if isinstance(image, Tensor) else image, interpolation="nearest", **options)
    axis.set_xticks([])
    axis.set_yticks([])
