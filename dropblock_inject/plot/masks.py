"""Masks, and what they leave of feature maps."""

from __future__ import annotations

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
    figure = new_figure(13.2, 1.34 * len(shown) + 0.9)
    parts: Any = figure.subfigures(1, 3, width_ratios=(3.1, 4, 3))
    pictured, maps, masked = parts
    show_image(pictured.subplots(), image)
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
                    show_image(axes[row, column], kept[row], cmap="gray", vmin=0, vmax=1)
                else:
                    left = activation if kept is None else activation.masked_fill(~kept[row], float("nan"))
                    show_image(axes[row, column], left, cmap=_colormap(), vmin=activation.min(), vmax=activation.max())
            axes[0, column].set_title(name, fontsize=10)
    maps.suptitle(f"activations at keep_prob {keep_prob:g}")
    masked.suptitle(f"masks, block {_as_text(block_size)}")
    if title:
        figure.suptitle(title)
    return figure


def _masks(shape: tuple[int, ...], keep_prob: float, block_size: BlockSize, seed: int) -> dict[str, Tensor]:
    """What each way of dropping keeps of maps (C, H, W)."""
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
