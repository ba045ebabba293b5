"""Fair timing: every candidate in turn, many rounds, medians; only ratios of one run mean anything."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from statistics import median

import torch


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
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def saved_bytes(run: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass of what is run."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(storages.values())


def machine() -> str:
    """What the figures were measured on, in words."""
    where = f"{torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available():
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return f"torch {torch.__version__}, {where}"


def markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |"]
    lines.append("|" + "---|" * lines[0].count(" | ") + "---|")
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)
