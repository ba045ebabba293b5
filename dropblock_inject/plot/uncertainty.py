"""What a segmentation does not know, beside what it gets wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DropBlockTypeError, DropBlockValueError
from .canvas import MEDIUM, PAGE_WIDTH, SMALL, draw_title, new_figure, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..inference.prediction import Prediction

_CLASSES = "tab20"  # a colormap with 20 colours, in turn
_RIGHT, _WRONG, _IGNORED = (1.0, 1.0, 1.0), (0.82, 0.29, 0.36), (0.85, 0.85, 0.85)


def plot_uncertainty(
    image: Any,
    prediction: Prediction,
    target: Tensor | None = None,
    *,
    index: int = 0,
    ignore_index: int | None = 255,
    title: str = "",
) -> Figure:
    """An image, its predicted classes, the wrong pixels, and two maps of uncertainty: entropy, mutual information.

    The entropy is all of the uncertainty. The mutual information is the part that comes from the network, on which its
    passes disagree. With a `target` the means over the wrong and over the right pixels stand below.

    Args:
        image: an argument of matplotlib's ``imshow``: a PIL image, an array (H, W, 3).
        prediction: of :func:`dropblock_inject.mc_predict` for a segmentation, with `mean` of shape (N, C, H, W).
        target (Tensor[H, W]): the classes of the pixels; None: no map of errors.
        index: which image of the batch.
        ignore_index: pixels of this class in `target` are neither right nor wrong; None: all count.
        title: of the whole figure.

    Raises:
        PlotError: matplotlib is not installed.
        DropBlockTypeError: `prediction` is not a prediction.
        DropBlockValueError: it is not one of pixels, it has no entropy of a pixel (``activation="softmax"`` gives it),
            `index` is not in the batch, or `target` is of another size.
    """
    mean, entropy, information = (getattr(prediction, name, None) for name in _NAMES)
    if not isinstance(mean, Tensor):
        raise DropBlockTypeError(f"prediction must be what mc_predict returns, got {type(prediction).__name__}")
    if mean.dim() != 4:
        raise DropBlockValueError(f"prediction.mean must be of shape (N, C, H, W), got {tuple(mean.shape)}")
    if entropy is None or information is None or entropy.dim() != 3:
        raise DropBlockValueError(
            "prediction has no entropy of each pixel: call mc_predict with activation='softmax', or with a callable "
            "that gives probabilities over axis 1"
        )
    if not -len(mean) <= index < len(mean):
        raise DropBlockValueError(f"index {index} is not in a batch of {len(mean)}")
    classes, entropy, information = (part[index].detach().cpu() for part in (mean.argmax(1), entropy, information))
    if target is not None and target.shape != classes.shape:
        raise DropBlockValueError(f"target must be of shape {tuple(classes.shape)}, got {tuple(target.shape)}")

    columns = 2 if target is None else 3
    height, width = classes.shape
    side = PAGE_WIDTH / 3 - 0.55  # of an image, in inches; beside it is the room for a colour bar
    figure = new_figure(columns * PAGE_WIDTH / 3, 1.2 + 2 * side * height / width)
    axes = figure.subplots(2, columns).flat
    _show(axes[0], image, "image")
    _show_classes(axes[columns - 1], classes, "prediction")
    wrong = counted = None
    if target is not None:
        target = target.detach().cpu()
        counted = torch.ones_like(classes, dtype=torch.bool) if ignore_index is None else target != ignore_index
        wrong = counted & (classes != target)
        _show_classes(axes[1], target.masked_fill(~counted, 0), "target")
        errors = torch.tensor(_RIGHT).expand(*classes.shape, 3).clone()
        errors[wrong], errors[~counted] = torch.tensor(_WRONG), torch.tensor(_IGNORED)
        _show(axes[3], errors, f"errors: {float(wrong.sum() / counted.sum().clamp_min(1)):.1%}")
    for axis, name, values in zip(
        list(axes)[-2:], ("entropy", "mutual information"), (entropy, information), strict=True
    ):
        if wrong is not None and counted is not None:
            means = f"mean: wrong {_mean(values, wrong)}, right {_mean(values, counted & ~wrong)}"
            axis.set_xlabel(means, fontsize=SMALL)
        drawn = axis.imshow(values.float().numpy(), cmap="magma", vmin=0, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(f"{name}, nats", fontsize=MEDIUM)
        figure.colorbar(drawn, ax=axis, fraction=0.046).ax.tick_params(labelsize=SMALL)
    if title:
        draw_title(figure, title)
    return figure


_NAMES = ("mean", "entropy", "mutual_information")


def _show(axis: Axes, image: Any, title: str, **options: Any) -> None:
    show_image(axis, image, **options)
    axis.set_title(title, fontsize=MEDIUM)


def _show_classes(axis: Axes, classes: Tensor, title: str) -> None:
    _show(axis, classes % 20, title, cmap=_CLASSES, vmin=-0.5, vmax=19.5)


def _mean(values: Tensor, where: Tensor) -> str:
    return f"{float(values[where].mean()):.2f}" if bool(where.any()) else "–"
