"""``dropblock-inject bench``: the time of drop_block on this machine, beside other layers that drop."""

from __future__ import annotations

import json
import random
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DropBlockValueError
from ..ops.functional import drop_block
from ..surgery.text_table import text_table

FLOOR = "x * scalar"


def run(arguments: Namespace) -> tuple[str, None, str]:
    shape, keep_prob, block_size = arguments.shape, arguments.keep_prob, arguments.block_size
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = "x".join(map(str, shape))
    try:
        found = bench(shape, keep_prob, block_size, device, arguments.seconds)
    except (AssertionError, RuntimeError) as error:  # no such device, or not enough memory
        raise DropBlockValueError(f"maps of {size} on {device}: {str(error).splitlines()[0]}") from None
    if arguments.json:
        about = {"machine": machine(), "device": device, "shape": shape}
        settings = {"keep_prob": keep_prob, "block_size": block_size}
        return json.dumps({**about, **settings, "seconds": found}, indent=2), None, ""
    rows = [("forward and backward", "ms", f"times {FLOOR}")]
    rows += [(name, f"{seconds * 1e3:.2f}", f"{seconds / found[FLOOR]:.2f}") for name, seconds in found.items()]
    heading = f"{machine()}; {size}, keep_prob {keep_prob:g}, block {block_size}; medians of one run"
    return "\n".join([heading, "", *text_table(rows, right={1, 2})]), None, ""


def interleaved(
    candidates: dict[str, Callable[[], object]], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each candidate, by `clock`. They run in turn for about `seconds`, at least five times each.

    Each round has another order, because the caches and the heap that a candidate leaves behind make the next one
    faster or slower.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order, shuffle = list(candidates), random.Random(0).shuffle
    for run in candidates.values():
        timed(run, clock)  # warm-up
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(times[order[0]]) < 5:
        shuffle(order)
        for name in order:
            times[name].append(timed(candidates[name], clock))
    return {name: median(of_one) for name, of_one in times.items()}


def timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one run, including the work on the GPU."""
    synchronize()
    started = clock()
    run()
    synchronize()
    return clock() - started


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> str:
    """The version of torch and the processor, for a line above the figures."""
    where = f"{torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return f"torch {torch.__version__}, {where}"


def layers(keep_prob: float, block_size: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Layers that drop, as functions of a feature map in training mode, and a multiplication as the floor.

    torchvision's layer is there if torchvision is installed and `block_size` is odd: it refuses even ones.
    """
    found: dict[str, Callable[[Tensor], Tensor]] = {
        FLOOR: lambda x: x * 1.1,
        "dropblock_inject": lambda x: drop_block(x, keep_prob, block_size),
        "F.dropout": lambda x: F.dropout(x, 1 - keep_prob),
    }
    if find_spec("torchvision") and block_size % 2:
        from torchvision.ops import drop_block2d

        found["torchvision"] = lambda x: drop_block2d(x, 1 - keep_prob, block_size)
    return found


def bench(
    shape: Sequence[int], keep_prob: float, block_size: int, device: str, seconds: float = 5.0
) -> dict[str, float]:
    """Median seconds of forward and backward pass of each layer, for feature maps of shape (N, C, H, W)."""
    x = torch.randn(shape, device=device, requires_grad=True)
    upstream = torch.randn_like(x)

    def both(layer: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(x), x, upstream)

    return interleaved({name: both(layer) for name, layer in layers(keep_prob, block_size).items()}, seconds)
