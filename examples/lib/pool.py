"""Runs of a study in several processes; each result is kept as soon as it is there."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from tqdm import tqdm

Key = TypeVar("Key")


def run_all(
    function: Callable[..., Any], runs: Mapping[Key, tuple[Any, ...]], jobs: int, keep: Callable[[Key, Any], None]
) -> None:
    """Calls `function` with the arguments of each run, and `keep` with its key and its result.

    Args:
        function: of a module, as it is called in other processes.
        runs: arguments by key; they are begun in this order.
        jobs: runs at a time.
        keep: called in this process.
    """
    # Processes are spawned: a forked process cannot use a GPU that its parent uses.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool, tqdm(total=len(runs), unit="run", disable=None) as bar:
        futures = {pool.submit(function, *arguments): key for key, arguments in runs.items()}
        try:
            for future in as_completed(futures):
                keep(futures[future], future.result())
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
