"""The command line of a study: the runs that it does, how many at a time, and where their results are kept."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.command_line import whole_number
from lib.settings import Setting


def add_study_options(
    parser: argparse.ArgumentParser,
    networks: Sequence[str],
    parts: Mapping[str, Iterable[Setting]],
    output: str,
    several_epochs: bool = False,
) -> None:
    """Adds the options that choose the runs.

    Args:
        parser: that of the script.
        networks: their names.
        parts: the settings of each part of the study.
        output: the CSV file, if no other is given.
        several_epochs: whether --epochs takes several numbers.
    """
    names = dict.fromkeys(setting.name for settings in parts.values() for setting in settings)
    add, count = parser.add_argument, whole_number(1)
    add("--max-samples", type=count, metavar="N", help="at most N training images, of each class alike (by recipe)")
    several: dict[str, Any] = {"nargs": "+"} if several_epochs else {}
    add("--epochs", type=count, metavar="N", help="passes over the training images (by recipe and setting)", **several)
    add("--networks", nargs="+", default=networks, choices=networks, metavar="NAME", help=f"({' '.join(networks)})")
    add("--parts", nargs="+", default=list(parts), choices=parts, metavar="NAME", help=f"({' '.join(parts)})")
    add("--settings", nargs="+", choices=names, metavar="NAME", help="only these rows of the tables (all)")
    add("--seeds", type=count, default=5, metavar="N", help="runs of each setting (%(default)s)")
    add("--jobs", type=count, default=os.cpu_count(), metavar="N", help="runs at a time (%(default)s)")
    add("--output", type=Path, default=Path(output), metavar="FILE", help="(%(default)s)")
    add(
        "--report", action="store_true", help="train nothing; print the tables and draw the pictures of the runs so far"
    )


def run_or_report(
    args: argparse.Namespace, run: Callable[[argparse.Namespace], None], report: Callable[[Path], None]
) -> None:
    """Does the runs, unless only the report is asked for, and reports."""
    try:
        if not args.report:
            run(args)
    except KeyboardInterrupt:
        raise SystemExit("\ninterrupted; the same command goes on") from None
    report(args.output)
