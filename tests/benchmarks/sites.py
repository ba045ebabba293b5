"""The price of a site: small maps, where the host's time counts, and whole training steps.

    python tests/benchmarks/sites.py                 # 6 minutes on one core
    python tests/benchmarks/sites.py --compile       # the networks, compiled
    python tests/benchmarks/sites.py --seconds 2     # rough figures

DropBlock, torchvision's and timm's, Dropout2d and a multiplication take turns in one run. The figures are medians of
CPU time on one thread, or of wall time with a GPU. It prints a table, and draws a picture of it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from layers import OPERATORS, OURS
from tables import markdown
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock
from training_step import NONE, step

from dropblock_inject import inject_dropblock
from dropblock_inject.command.bench import FLOOR, interleaved, machine

MAPS = (  # shape, keep_prob, block size
    ((8, 112, 14, 14), 0.975, 7),
    ((8, 512, 7, 7), 0.9, 7),
    ((8, 1152, 7, 7), 0.9, 7),
    ((64, 32, 14, 14), 0.975, 0.5),
    ((64, 64, 7, 7), 0.9, 0.5),
)
_REPEATS = 10  # calls in a measurement: one takes less time than a clock tells
_HEAP = 1 << 24  # bytes of a tensor that is made and freed first, so that the heap keeps the memory of smaller ones


def cifar_resnet14() -> nn.Module:
    """Three stages of two basic blocks for images of 32 pixels."""

    def stage(channels_in: int, channels: int, stride: int) -> list[nn.Module]:
        projection = None
        if stride > 1:
            projection = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))
        return [BasicBlock(channels_in, channels, stride, projection), BasicBlock(channels, channels)]

    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [*stage(16, 16, 1), *stage(16, 32, 2), *stage(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


NETWORKS = {  # how it is made, batch, pixels, arguments of the injection
    "resnet50": (partial(timm.create_model, "resnet50"), 8, 224, {}),
    "efficientnet_b0": (partial(timm.create_model, "efficientnet_b0"), 8, 224, {}),
    "cifar_resnet14": (cifar_resnet14, 64, 32, {"stages": (2, 3), "block_size": 0.5}),
}


def measure_map(shape: tuple[int, ...], keep_prob: float, block_size: float, device: str, seconds: float) -> dict:
    """Seconds forward and backward of each operator on a map. The heap is that of a network with larger maps."""
    torch.empty(_HEAP, dtype=torch.uint8)
    x = torch.randn(shape, device=device, requires_grad=True)
    upstream = torch.randn_like(x)

    def repeated(operator: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> None:
            for _ in range(_REPEATS):
                torch.autograd.grad(operator(x, keep_prob, block_size), x, upstream)

        return run

    found = interleaved({name: repeated(one) for name, one in OPERATORS.items()}, seconds, clock(device))
    return {name: taken / _REPEATS for name, taken in found.items()}


def measure_network(name: str, device: str, seconds: float, compiled: bool) -> dict[str, float]:
    """Seconds of a training step without DropBlock, and with each operator at its sites."""
    make, batch, pixels, options = NETWORKS[name]
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    labels = torch.randint(10, (batch,), device=device)
    plain = make().to(device).train()
    injected = copy.deepcopy(plain)
    inject_dropblock(injected, example_input=torch.empty(1, 3, pixels, pixels), **options)
    nets = {NONE: plain, **{operator: copy.deepcopy(injected) for operator in OPERATORS}}
    if compiled:
        nets = {kind: torch.compile(nets[kind], fullgraph=True) for kind in (NONE, OURS)}
    steps = {kind: step(net, images, labels, False, OPERATORS.get(kind, OPERATORS[OURS])) for kind, net in nets.items()}
    return interleaved(steps, seconds, clock(device))


def clock(device: str) -> Callable[[], float]:
    """On the CPU the time of this process, which other processes do not lengthen much."""
    return time.process_time if device == "cpu" else time.perf_counter


def plot(maps: dict[str, dict[str, float]], networks: dict[str, dict[str, float]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.6))
    panels = (
        (
            axes[0],
            "forward and backward, µs over x * scalar",
            maps,
            lambda found, name: found[name] - found[FLOOR],
            1e6,
        ),
        (axes[1], "training step, % over none", networks, lambda found, name: found[name] / found[NONE] - 1, 1e2),
    )
    width = 0.8 / len(OPERATORS)
    for axis, title, results, over, unit in panels:
        for number, name in enumerate(OPERATORS):
            shown = {case: over(found, name) * unit for case, found in results.items() if name in found}
            if axis is axes[0] and name == FLOOR:
                continue
            places = [list(results).index(case) + (number - len(OPERATORS) / 2 + 0.5) * width for case in shown]
            heights = [max(value, 0.1) for value in shown.values()]
            bars = axis.bar(places, heights, width, color=f"C{number}", label=name)
            axis.bar_label(bars, [f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in heights], fontsize=6)
        axis.set_yscale("log" if results else "linear")
        axis.set_xticks(range(len(results)), [case.replace(", ", "\n") for case in results], fontsize=7)
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[1 if networks else 0].get_legend_handles_labels(),
        loc="lower center",
        ncols=len(OPERATORS),
        fontsize=8,
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS, help="(all)")
    parser.add_argument("--seconds", type=float, default=60, help="for each measurement (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="the networks alone, by torch.compile; ours only")
    parser.add_argument("--output", type=Path, default=Path("sites.png"), help="picture (default: %(default)s)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    header = ("forward and backward", *OPERATORS)
    print(f"{machine()}; medians, in one run\n\n{markdown(header, [])}", flush=True)

    def print_row(*cells: str) -> None:
        print(markdown(header, [cells]).splitlines()[-1], flush=True)

    maps, networks = {}, {}
    for shape, keep_prob, block_size in () if arguments.compile else MAPS:
        case = f"{'x'.join(map(str, shape))}, keep_prob {keep_prob}, block {block_size}"
        maps[case] = found = measure_map(shape, keep_prob, block_size, arguments.device, arguments.seconds / 10)
        print_row(case, *(f"{found[name] * 1e6:.0f} µs" for name in OPERATORS))
    for name in arguments.networks:
        networks[name] = found = measure_network(name, arguments.device, arguments.seconds, arguments.compile)
        cells = (f"{found[one] / found[NONE]:.3f}" if one in found else "" for one in OPERATORS)
        print_row(f"{name}, step over that of {found[NONE] * 1e3:.0f} ms without DropBlock", *cells)
    plot(maps, networks, arguments.output)


if __name__ == "__main__":
    main()
