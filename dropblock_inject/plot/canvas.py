"""The parts that all pictures share: the figure, the colours, the fonts, an image without axes.

Colours were chosen to differ for the colour-blind as well. A figure is as wide as a page, so that it is printed at its
own size: 8 points in it are 8 points on paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import DropBlockInjectError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE_WIDTH = 7.5  # inches
SMALL, MEDIUM, LARGE = 8, 9, 10.5  # sizes of text, in points

COLORS = {"branch": "#0072b2", "skip": "#e69f00", "end": "#5b1647", "output": "#009e73"}
STAGE_COLORS = ("#9ecae1", "#6aaed6", "#3787c0", "#105ba4", "#08306b")  # the deepest stage last
# The parts off the trunk; a block that has no site is in none of them.
PART_COLORS = {"stem": "#444444", "transition": "#f0e442", "neck": "#e69f00", "decoder": "#d55e00", "head": "#cc79a7"}
OUTSIDE = "#cfcfcf"
DROPPED = "#d55e00"
LINE, GREY = "#9aa3af", "#444444"


class PlotError(DropBlockInjectError, ImportError):
    """matplotlib is not installed."""


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """A figure; its size is in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotError('matplotlib is not installed: pip install "dropblock-inject[plot]"') from None
    return Figure(figsize=(width, height), layout=layout, dpi=150)


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure to draw on, with its axes all over it. Coordinates are inches from the upper left corner."""
    figure = new_figure(width, height, layout="none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    return figure, axis


def draw_title(figure: Figure, title: str) -> None:
    figure.suptitle(title, x=0.02, ha="left", fontsize=LARGE, weight="bold")


def show_image(axis: Axes, image: Any, **options: Any) -> None:
    axis.imshow(image.numpy() if isinstance(image, Tensor) else image, interpolation="nearest", **options)
    axis.set_xticks([])
    axis.set_yticks([])


def name_of(model: nn.Module) -> str:
    """The name of a model: that of timm if it has one, else its class."""
    config = getattr(model, "pretrained_cfg", None)
    return (config or {}).get("architecture") or type(model).__name__


def stage_color(number: int, count: int) -> str:
    """The colour of a stage, the first of which has number 0."""
    return STAGE_COLORS[(number - count) % len(STAGE_COLORS)]


def times(size: tuple[int, ...]) -> str:
    """A size as text, such as 14x14."""
    return "x".join(map(str, size))
