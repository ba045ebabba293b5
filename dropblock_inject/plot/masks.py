"""Masks, and feature maps under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DropBlockValueError
from ..ops.functional import BlockSize, drop_block
from .canvas import new_figure, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DROPPED = "#e4e4e4"


def plot_masks(
    map_size: tuple[int, int] = (28, 28),
    keep_prob: float = 0.75,
    block_size: BlockSize = 7,
    *,
    channels: int = 5,
    seed: int = 0,
) -> Figure:
    """Masks of Dropout, SpatialDropout and DropBlock, a row each, with the share that each keeps. Black is dropped.

    Args:
        map_size: height and width of the feature maps, in pixels.
        keep_prob: share to keep, in (0, 1].
        block_size: as in :func:`dropblock_inject.drop_block`.
        channels: number of masks in a row. The share is measured on 2,000 masks.
        seed: of the random numbers.

    Raises:
        PlotError: matplotlib is not installed.
        DropBlockValueError, DropBlockTypeError: as :func:`dropblock_inject.drop_block`.
    """
    figure = new_figure(1.5 * channels + 1.6, 5.2)
    axes = figure.subplots(3, channels, squeeze=False)
    for row, (name, kept) in zip(axes, _masks((2000, *map_size), keep_prob, block_size, seed).items(), strict=True):
        for axis, mask in zip(row, kept, strict=False):
            show_image(axis, mask, cmap="gray", vmin=0, vmax=1)
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
    """An image, some of its feature maps, and these under Dropout, SpatialDropout and DropBlock at one keep_prob.

    Args:
        image: an argument of matplotlib's ``imshow``: a PIL image, an array (H, W, 3).
        features (Tensor[C, H, W]): feature maps of the image; the maps with the largest variance are shown.
        keep_prob: share to keep, in (0, 1].
        block_size: as in :func:`dropblock_inject.drop_block`.
        channels: number of maps to show.
        seed: of the random numbers.
        title: of the whole figure.

    Raises:
        PlotError: matplotlib is not installed.
        DropBlockValueError: `features` is not of shape (C, H, W).
        DropBlockValueError, DropBlockTypeError: as :func:`dropblock_inject.drop_block`.
    """
    if features.dim() != 3:
        raise DropBlockValueError(f"features must be of shape (C, H, W), got {tuple(features.shape)}")
    features = features.detach().float().cpu()
    # A channel with a large variance answers to parts of the image, not to all of it.
    shown = features[features.flatten(1).var(1).argsort(descending=True)[:channels]]
    masks = _masks(tuple(shown.shape), keep_prob, block_size, seed)
    left = {name: shown.masked_fill(~kept, float("nan")) for name, kept in masks.items()}
    figure = new_figure(13.2, 1.34 * len(shown) + 0.9)
    parts: Any = figure.subfigures(1, 3, width_ratios=(3.1, 4, 3))
    show_image(parts[0].subplots(), image)
    parts[0].suptitle("input")
    _draw_columns(parts[1], {"feature map": shown, **left}, _colormap(), [(map.min(), map.max()) for map in shown])
    parts[1].suptitle(f"activations at keep_prob {keep_prob:g}")
    _draw_columns(parts[2], masks, "gray", [(0, 1)] * len(shown))
    parts[2].suptitle(f"masks, block {_as_text(block_size)}")
    if title:
        figure.suptitle(title)
    return figure


def _draw_columns(part: Any, columns: Mapping[str, Tensor], colormap: Any, limits: Sequence[tuple[Any, Any]]) -> None:
    """Maps (rows, H, W) in titled columns; `limits` are the lowest and the highest value of each row."""
    axes = part.subplots(len(limits), len(columns), squeeze=False)
    for column, (name, maps) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize=10)
        for axis, map, (low, high) in zip(column, maps, limits, strict=True):
            show_image(axis, map, cmap=colormap, vmin=low, vmax=high)


def _masks(shape: tuple[int, ...], keep_prob: float, block_size: BlockSize, seed: int) -> dict[str, Tensor]:
    """The pixels of maps (C, H, W) that Dropout, SpatialDropout and DropBlock keep."""
    blocks: dict[str, BlockSize] = {"Dropout": 1, "SpatialDropout": max(shape[1:]), "DropBlock": block_size}
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(1, *shape)
    return {
        name: drop_block(ones, keep_prob, block, rescale=None, generator=generator)[0] > 0
        for name, block in blocks.items()
    }


def _colormap() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad=_DROPPED)


def _as_text(block_size: BlockSize) -> str:
    if isinstance(block_size, int):
        return f"{block_size}x{block_size}"
    return f"{block_size:g} of the map" if isinstance(block_size, float) else "x".join(map(str, block_size))
