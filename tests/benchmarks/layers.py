"""The DropBlock implementations that the benchmarks compare, and a multiplication as the floor.

They come as functions of a map, and as operators that take the place of :func:`drop_block` at the sites of a network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from timm.layers.drop import drop_block_2d as timm_drop_block
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import drop_block2d

from dropblock_inject import drop_block
from dropblock_inject.command import bench
from dropblock_inject.command.bench import FLOOR
from dropblock_inject.ops.gamma import block_size_in_force

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from dropblock import DropBlock2D as PyPIDropBlock


OURS, OURS_SHARED = "dropblock_inject", "dropblock_inject, shared mask"
TORCHVISION, TIMM, TIMM_SHARED = "torchvision's layer", "timm, mask per channel", "timm, shared mask"
Operator = Callable[..., Tensor]


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


def stand_in(function: Callable[[Tensor, float, int], Tensor]) -> Operator:
    """An operator with the arguments of :func:`drop_block` from a function of map, drop_prob and block size."""

    def operator(input: Tensor, keep_prob: float, block_size: Any, *, training: bool = True, **_: Any) -> Tensor:
        if not training:
            return input
        return function(input, 1 - keep_prob, min(block_size_in_force(block_size, input.shape[2:])))

    return operator


OPERATORS: dict[str, Operator] = {
    FLOOR: stand_in(lambda x, drop_prob, block: x * 1.1),
    "F.dropout2d": stand_in(lambda x, drop_prob, block: F.dropout2d(x, drop_prob)),
    OURS: drop_block,
    TORCHVISION: stand_in(lambda x, drop_prob, block: drop_block2d(x, drop_prob, block - (block + 1) % 2)),  # odd only
    TIMM: stand_in(lambda x, drop_prob, block: timm_drop_block(x, drop_prob, block, couple_channels=False)),
}
