"""Masks, and feature maps under them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DropBlockValueError
from ..ops.functional import BlockSize, drop_block
from .canvas import DROPPED, GREY, MEDIUM, PAGE_WIDTH, SMALL, draw_title, new_figure, show_image, times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CANDIDATES = 8  # for each channel that is shown


def plot_masks(
    map_size: tuple[int, int] = (28, 28),
    keep_prob: float = 0.75,
    block_size: BlockSize = 7,
    *,
    channels: int = 5,
    seed: int = 0,
) -> Figure:
    """Masks of Dropout, SpatialDropout and DropBlock, a row each, with the share that each keeps.

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
    masks = _masks((2000, *map_size), keep_prob, block_size, seed)
    figure = new_figure(PAGE_WIDTH, 1.2 + 3 * (PAGE_WIDTH - 1.3) / channels * map_size[0] / map_size[1])
    axes = figure.subplots(3, channels, squeeze=False)
    for row, (name, kept) in zip(axes, masks.items(), strict=True):
        for axis, mask in zip(row, kept, strict=False):
            show_image(axis, ~mask, cmap=_mask_colors(), vmin=0, vmax=1)
        label = f"{name}\nkept {kept.float().mean():.1%}"
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, fontsize=MEDIUM)
    height, width = map_size
    title = f"masks of {width}x{height} pixels at keep_prob {keep_prob:g}, block_size {_as_text(block_size)}"
    draw_title(figure, title)
    _explain_colors(figure)
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

    Masks are drawn for many channels. Those in which DropBlock drops something are shown, and among them one that
    SpatialDropout drops, if there is one.

    Args:
        image: an argument of matplotlib's ``imshow``: a PIL image, an array (H, W, 3).
        features (Tensor[C, H, W]): feature maps of the image; those with a large variance are shown.
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
    varied = features.flatten(1).var(1).argsort(descending=True)[: _CANDIDATES * channels]
    masks = _masks(tuple(features[varied].shape), keep_prob, block_size, seed)
    rows = _rows_to_show(masks, channels)
    shown = features[varied][rows]
    columns = {"no dropping": shown}
    columns |= {name: shown.masked_fill(~kept[rows], float("nan")) for name, kept in masks.items()}
    side = (PAGE_WIDTH - 2.2) / len(columns)
    figure = new_figure(PAGE_WIDTH, 0.95 + len(shown) * side * features.shape[1] / features.shape[2])
    axes = figure.subplot_mosaic(
        [["image", *(f"{name} {row}" for name in columns)] for row in range(len(shown))],
        width_ratios=[2.1 / side, *(1 for _ in columns)],
    )
    axes["image"].set_title("image", fontsize=MEDIUM)
    show_image(axes["image"], image)
    axes["image"].set_anchor("N")
    for name, maps in columns.items():
        axes[f"{name} 0"].set_title(name, fontsize=MEDIUM)
        for row, map in enumerate(maps):
            low, high = shown[row].aminmax()
            show_image(axes[f"{name} {row}"], map, cmap=_map_colors(), vmin=low, vmax=high)
    draw_title(figure, title or "feature maps")
    _explain_colors(figure, f", at keep_prob {keep_prob:g} and block_size {_as_text(block_size)}")
    axes["image"].set_xlabel(
        f"each row: one of {len(features)} channels,\nin which DropBlock drops;\n{times(features.shape[1:])} pixels",
        fontsize=SMALL,
    )
    return figure


def _rows_to_show(masks: dict[str, Tensor], count: int) -> list[int]:
    """The channels to show: with something that DropBlock drops, and with one that SpatialDropout drops."""
    blocks, whole = (~masks[name].flatten(1).all(1) for name in ("DropBlock", "SpatialDropout"))
    order = (~blocks).long().argsort(stable=True).tolist()
    rows = order[:count]
    lost = [row for row in order if whole[row]]
    if lost and not any(whole[rows]):
        rows[-1] = next((row for row in lost if blocks[row]), lost[0])
    return rows


def _masks(shape: tuple[int, ...], keep_prob: float, block_size: BlockSize, seed: int) -> dict[str, Tensor]:
    """The pixels of maps (C, H, W) that Dropout, SpatialDropout and DropBlock keep."""
    blocks: dict[str, BlockSize] = {"Dropout": 1, "SpatialDropout": max(shape[1:]), "DropBlock": block_size}
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(1, *shape)
    return {
        name: drop_block(ones, keep_prob, block, rescale=None, generator=generator)[0] > 0
        for name, block in blocks.items()
    }


def _explain_colors(figure: Figure, settings: str = "") -> None:
    from matplotlib.patches import Patch

    style: dict[str, Any] = {"edgecolor": GREY, "linewidth": 0.5}
    handles = [Patch(facecolor=DROPPED, label=f"dropped: set to zero{settings}", **style)]
    if not settings:
        handles.append(Patch(facecolor="white", label="kept", **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=SMALL)


def _mask_colors() -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap(["white", DROPPED])


def _map_colors() -> Any:
    from matplotlib import colormaps

    return colormaps["gray"].with_extremes(bad=DROPPED)


def _as_text(block_size: BlockSize) -> str:
    if isinstance(block_size, int):
        return f"{block_size}x{block_size}"
    return f"{block_size:g} of the map" if isinstance(block_size, float) else times(tuple(block_size))
