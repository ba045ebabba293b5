"""Checks every model that timm and torchvision name: python tests/sweep.py

What is checked stands in tests/zoo/checks.py; for other libraries (--zoo) in tests/zoo/record.py. Results are kept
line by line in a file, and a sweep that was stopped goes on from there. It ends in a table per family, and with exit
status 1 if a model failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from zoo import table
from zoo.catalog import Model, all_models
from zoo.checks import check
from zoo.others import LIBRARIES, Network, networks_of
from zoo.record import check_by_record

_HEAVY = 300_000_000  # parameters: of models as large as that only one at a time is in memory


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.fresh:
        options.results.unlink(missing_ok=True)
    done = {record["model"] for record in table.read(options.results) if "failed" not in record}
    every: list[Model | Network] = [*all_models()] if options.zoo is None else [*networks_of(options.zoo)]
    models = [model for model in every if any(fnmatchcase(str(model), f"*{o}*") for o in options.only or ["*"])]
    models = _at_most(options.per_family, models)
    todo = [model for model in models if str(model) not in done]
    if todo and not options.table:
        print(f"{len(models)} models, {len(models) - len(todo)} of them done before, results in {options.results}")
        _sweep(todo, options.jobs, options.results)
    names = {str(model) for model in models}
    latest = {record["model"]: record for record in table.read(options.results) if record["model"] in names}
    records = list(latest.values())
    if options.markdown:
        print(table.for_readme(records))
    else:
        print(f"\n{table.by_family(records)}\n\n{table.summary(records)}")
    return int(any("failed" in record for record in records))


def _at_most(count: int | None, models: list[Model | Network]) -> list[Model | Network]:
    """The first models of each family."""
    if count is None:
        return models
    by_family: dict[str, list[Model | Network]] = defaultdict(list)
    for model in models:
        by_family[model.family].append(model)
    return [model for members in by_family.values() for model in members[:count]]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="models whose library:name contains one of these")
    parser.add_argument(
        "--zoo", choices=LIBRARIES, help="the networks of another library, held against a record of what ran"
    )
    parser.add_argument("--per-family", type=int, metavar="N", help="at most so many models of each family")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--results", type=Path, default=Path("zoo.jsonl"), help="default: zoo.jsonl")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--table", action="store_true", help="only show the results there are")
    parser.add_argument("--markdown", action="store_true", help="show them as the table in tests/README.md")
    return parser.parse_args(arguments)


def _sweep(models: list[Model | Network], jobs: int, results: Path) -> None:
    context = multiprocessing.get_context("spawn")
    heavy = context.Lock()
    # A process starts anew now and then, so that what libraries cache does not pile up.
    with (
        context.Pool(jobs, _start_worker, (heavy,), maxtasksperchild=50) as pool,
        results.open("a") as file,
        tqdm(total=len(models), unit="model", smoothing=0.02, disable=None) as progress,
    ):
        for record in pool.imap_unordered(_check, models):
            file.write(json.dumps(record) + "\n")
            file.flush()
            progress.update()
            progress.set_postfix_str(record["model"])
            if "failed" in record:
                progress.write(f"FAILED {record['model']}: {record['failed'].splitlines()[0]}")


def _start_worker(heavy: Any) -> None:
    global _heavy
    _heavy = heavy
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def _check(model: Model | Network) -> dict[str, Any]:
    record: dict[str, Any] = {"model": str(model), "family": model.family}
    start = time.perf_counter()
    try:
        if isinstance(model, Network):
            record |= check_by_record(model)
            return {**record, "total": time.perf_counter() - start}
        size = sum(parameter.numel() for parameter in model.build("meta").parameters())
        if size >= _HEAVY and not model.is_transformer:
            with _heavy:
                start = time.perf_counter()
                record |= check(model)
        else:
            record |= check(model)
    except Exception as problem:  # whatever goes wrong with one model is for the table, and the sweep goes on
        where = traceback.extract_tb(problem.__traceback__)[-1]
        record["failed"] = f"{type(problem).__name__}: {problem} ({Path(where.filename).name}:{where.lineno})"
    record["total"] = time.perf_counter() - start
    return record


_heavy: Any = None

if __name__ == "__main__":
    sys.exit(main())
