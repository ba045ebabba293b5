"""The cost of DropBlock: this package, torchvision's, timm's and PyPI's, Dropout2d, and the floor ``x * scalar``.

    python tests/benchmarks/operators.py             # the maps of ResNet-50, batch 32: 2 minutes on two cores
    python tests/benchmarks/operators.py --full      # EfficientNet-B0, keep_prob .7, block 3 and bf16 too

All candidates take turns in one run. The figures are medians; compare the ratios to the floor. It prints a table, and
writes it as CSV and as a picture.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from layers import OURS, layers
from tables import markdown, saved_bytes
from torch import Tensor

from dropblock_inject.command.bench import FLOOR, interleaved, machine

RESNET_50 = ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7))
EFFICIENTNET_B0 = ((240, 28, 28), (672, 14, 14), (1152, 7, 7))


class Case(NamedTuple):
    map: tuple[int, int, int]
    keep_prob: float
    block_size: int
    dtype: torch.dtype

    def __str__(self) -> str:
        size = "x".join(map(str, self.map))
        return f"{size}, keep_prob {self.keep_prob}, block {self.block_size}, {str(self.dtype).removeprefix('torch.')}"


def cases(full: bool) -> list[Case]:
    if not full:
        return [Case(shape, 0.9, 7, torch.float32) for shape in RESNET_50[1:]]
    grid = itertools.product(RESNET_50 + EFFICIENTNET_B0, (0.9, 0.7), (7, 3), (torch.float32, torch.bfloat16))
    return [Case(*cell) for cell in grid]


def measure(case: Case, batch: int, device: str, seconds: float) -> dict[str, tuple[float, float, int]]:
    """Seconds forward, seconds forward and backward, and bytes saved for the backward pass, of each candidate."""
    x = torch.randn(batch, *case.map, dtype=case.dtype, device=device, requires_grad=True)
    upstream = torch.randn_like(x)
    candidates = layers(case.keep_prob, case.block_size)

    def forward(layer: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: layer(x)

    def both(layer: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(x), x, upstream)

    saved = {name: saved_bytes(forward(layer)) for name, layer in candidates.items()}
    with torch.no_grad():
        alone = interleaved({name: forward(layer) for name, layer in candidates.items()}, seconds)
    together = interleaved({name: both(layer) for name, layer in candidates.items()}, seconds)
    return {name: (alone[name], together[name], saved[name]) for name in candidates}


def plot(results: dict[Case, dict[str, tuple[float, float, int]]], path: Path) -> None:
    from matplotlib import pyplot

    columns = min(len(results), 4)
    rows = -(-len(results) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False, sharey=True)
    for axis in axes.flat[len(results) :]:
        axis.remove()
    for axis, (case, found) in zip(axes.flat, results.items(), strict=False):
        names = list(found)[::-1]
        ratios = [found[name][1] / found[FLOOR][1] for name in names]
        colors = ["#d1495b" if name.startswith(OURS) else "#30638e" for name in names]
        axis.barh(names, ratios, color=colors)
        axis.bar_label(axis.containers[0], fmt="%.3g", padding=3, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xlim(0.5, max(ratios) * 3)
        axis.set_title(str(case).replace(", keep_prob", "\nkeep_prob"), fontsize=9)
        axis.set_xlabel("forward and backward, times x * scalar", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every map, keep_prob, block size and dtype")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="for each measurement (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("operators"), help="CSV and PNG (default: %(default)s.*)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    results = {}
    print(f"{machine()}; batch {arguments.batch}; medians, in one run")
    for case in cases(arguments.full):
        results[case] = found = measure(case, arguments.batch, arguments.device, arguments.seconds)
        bytes_in = arguments.batch * torch.Size(case.map).numel() * case.dtype.itemsize
        header = (str(case), "forward, ms", "ratio", "forward and backward, ms", "ratio", "saved for backward")
        rows = [
            (
                name,
                f"{alone * 1e3:.2f}",
                f"{alone / found[FLOOR][0]:.2f}",
                f"{both * 1e3:.2f}",
                f"{both / found[FLOOR][1]:.2f}",
                f"{saved / bytes_in:.2%}",
            )
            for name, (alone, both, saved) in found.items()
        ]
        print(f"\n{markdown(header, rows)}", flush=True)
    with open(arguments.output.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("map", "keep_prob", "block_size", "dtype", "layer", "forward_s", "both_s", "saved_bytes"))
        for case, found in results.items():
            writer.writerows((*case, name, *figures) for name, figures in found.items())
    plot(results, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
