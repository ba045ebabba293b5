"""The DropBlock implementations that the benchmarks compare, and a multiplication as the floor."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from timm.layers.drop import drop_block_2d as timm_drop_block
from torch import Tensor
from torch.nn import functional as F

from dropblock_inject import drop_block
from dropblock_inject.command import bench

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from dropblock import DropBlock2D as PyPIDropBlock


OURS, OURS_SHARED = "dropblock_inject", "dropblock_inject, shared mask"
TIMM, TIMM_SHARED = "timm, mask per channel", "timm, shared mask"


def layers(keep_prob: float, block_size: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of a feature map in training mode."""
    drop_prob = 1 - keep_prob
    return {
        **bench.layers(keep_prob, block_size),
        OURS_SHARED: lambda x: drop_block(x, keep_prob, block_size, per_channel=False),
        TIMM: lambda x: timm_drop_block(x, drop_prob, block_size, couple_channels=False),
        TIMM_SHARED: lambda x: timm_drop_block(x, drop_prob, block_size),
        "dropblock 0.3 (PyPI)": PyPIDropBlock(drop_prob, block_size).train(),
        "F.dropout2d": lambda x: F.dropout2d(x, drop_prob),
    }
