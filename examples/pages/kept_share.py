"""Measures the share of a feature map that DropBlock keeps: this package beside torchvision's and timm's layers.

    pip install "dropblock-inject[examples]"
    python examples/pages/kept_share.py

It takes maps of ones of {7, 14, 28}^2 pixels, blocks of {3, 5, 7} pixels, and keep_prob {.95, .9, .8, .7, .5}.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
from timm.layers.drop import drop_block_2d as timm_drop_block
from torch import Tensor
from torchvision.ops import drop_block2d as torchvision_drop_block

from dropblock_inject import drop_block

MAPS, BLOCKS, KEEP_PROBS = (7, 14, 28), (3, 5, 7), (0.95, 0.9, 0.8, 0.7, 0.5)
MAPS_AT_A_TIME = 8192

IMPLEMENTATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "dropblock_inject": lambda maps, keep_prob, block: drop_block(maps, keep_prob, block),
    "  uncalibrated": lambda maps, keep_prob, block: drop_block(maps, keep_prob, block, calibrated=False),
    "torchvision": lambda maps, keep_prob, block: torchvision_drop_block(maps, 1 - keep_prob, block),
    "timm": lambda maps, keep_prob, block: timm_drop_block(maps, 1 - keep_prob, block),
}


def kept_share(implementation: Callable, size: int, block: int, keep_prob: float, pixels: int) -> float:
    """The share of ones that are not zeroed, over maps with about `pixels` pixels in all."""
    maps = max(1, min(MAPS_AT_A_TIME, pixels // size**2))
    chunks = max(1, pixels // (maps * size**2))
    # One channel each, because timm's channels share their mask.
    ones = torch.ones(maps, 1, size, size)
    return sum((implementation(ones, keep_prob, block) != 0).float().mean().item() for _ in range(chunks)) / chunks


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=20_000_000, metavar="N", help="pixels per setting (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    cells = list(itertools.product(MAPS, BLOCKS, KEEP_PROBS))
    examples = [(7, 7, 0.9), (14, 7, 0.9), (14, 7, 0.5), (28, 7, 0.5)]
    columns = "".join(f"{f'{size}x{size} block {block}, {kp:g}':>20}" for size, block, kp in examples)
    print(f"{'':18}{'mean error':>12}{'worst':>9}{columns}")
    for name, implementation in IMPLEMENTATIONS.items():
        kept = {cell: kept_share(implementation, *cell, arguments.pixels) for cell in cells}
        errors = [abs(kept[cell] - cell[2]) * 100 for cell in cells]
        shown = "".join(f"{kept[cell]:20.3f}" for cell in examples)
        print(f"{name:18}{sum(errors) / len(errors):9.2f} pp{max(errors):6.2f} pp{shown}")


if __name__ == "__main__":
    main()
