"""The growth of the cost of DropBlock with the batch, the map, the channels and the number of sites.

    python tests/benchmarks/scaling.py

Forward and backward, keep_prob 0.9, block 7, fp32. Both take turns in one run; the figures are medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from tables import markdown
from torch import Tensor

from dropblock_inject import drop_block
from dropblock_inject.command.bench import interleaved, machine

BASE = {"batch": 16, "side": 14, "channels": 512, "sites": 1}
GROWTH = {
    "batch": (1, 4, 16, 64),
    "side": (7, 14, 28, 56),
    "channels": (32, 128, 512, 2048),
    "sites": (1, 4, 12, 36),
}


def repeated(layer: Callable[[Tensor], Tensor], x: Tensor, sites: int) -> Callable[[], object]:
    def run() -> None:
        y = x
        for _ in range(sites):
            y = layer(y)
        torch.autograd.grad(y, x, torch.ones_like(y))

    return run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="for each measurement (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    base = " x ".join(str(BASE[quantity]) for quantity in ("batch", "channels", "side", "side"))
    print(f"{machine()}; {base}, with one quantity changed in each row")
    rows = []
    for quantity, values in GROWTH.items():
        for value in values:
            size = {**BASE, quantity: value}
            shape = (size["batch"], size["channels"], size["side"], size["side"])
            x = torch.randn(shape, device=arguments.device, requires_grad=True)
            runs = {
                "floor": repeated(lambda x: x * 1.1, x, size["sites"]),
                "ours": repeated(lambda x: drop_block(x, 0.9, 7), x, size["sites"]),
            }
            found = interleaved(runs, arguments.seconds)
            ratio = found["ours"] / found["floor"]
            rows.append((quantity, value, f"{found['ours'] * 1e3:.2f}", f"{found['floor'] * 1e3:.2f}", f"{ratio:.2f}"))
    print(markdown(("quantity", "value", "ours, ms", "x * scalar, ms", "ratio"), rows))


if __name__ == "__main__":
    main()
