"""What drop_block costs on this machine, beside the floor under it and what others offer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.functional import drop_block

FLOOR = "x * scalar"


def interleaved(candidates: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each candidate, run in turn for about so long, at least five times each.

    The order is another one in each round: what a candidate leaves behind in caches and in the allocator's heap makes
    the next one faster or slower.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order, shuffle = list(candidates), random.Random(0).shuffle
    for run in candidates.values():
        timed(run)  # a first time, for warming up
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(times[order[0]]) < 5:
        shuffle(order)
        for name in order:
            times[name].append(timed(candidates[name]))
    return {name: median(of_one) for name, of_one in times.items()}


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run, the GPU's work included."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> str:
    """What the figures were measured on, in words."""
    where = f"{torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return f"torch {torch.__version__}, {where}"


def layers(keep_prob: float, block_size: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to drop, each as a function of a feature map in training mode; of libraries those that are installed."""
    found: dict[str, Callable[[Tensor], Tensor]] = {
        FLOOR: lambda x: x * 1.1,
        "dropblock_inject": lambda x: drop_block(x, keep_prob, block_size),
        "F.dropout": lambda x: F.dropout(x, 1 - keep_prob),
    }
    if find_spec("torchvision"):
        from torchvision.ops import drop_block2d

        found["torchvision"] = lambda x: drop_block2d(x, 1 - keep_prob, block_size)
    return found


def bench(
    shape: tuple[int, int, int, int], keep_prob: float, block_size: int, device: str, seconds: float = 5.0
) -> dict[str, float]:
    """Median seconds forward and backward of each way, for a batch of feature maps (N, C, H, W)."""
    x = torch.randn(shape, device=device, requires_grad=True)
    upstream = torch.randn_like(x)

    def both(layer: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(layer(x), x, upstream)

    return interleaved({name: both(layer) for name, layer in layers(keep_prob, block_size).items()}, seconds)
