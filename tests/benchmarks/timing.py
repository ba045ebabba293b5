"""Fair timing: every candidate in turn, many rounds, medians; only ratios of one run mean anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median

import torch


def interleaved(candidates: dict[str, Callable[[], object]], seconds: float, rounds: int = 1000) -> dict[str, float]:
    """Median seconds of each candidate, run in turn for about so long, or for so many rounds if that is less.

    The first round is for warming up, and five more rounds are run in any case.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        timed(run)
    started = time.perf_counter()
    while len(times[next(iter(times))]) < 5 or (
        time.perf_counter() - started < seconds and len(times[next(iter(times))]) < rounds
    ):
        for name, run in candidates.items():
            times[name].append(timed(run))
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
