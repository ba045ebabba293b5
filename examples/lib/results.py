"""The results of regularizers.py: a CSV file with a line per run, tables with mean and spread, a picture."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIELDS = ("dataset", "network", "images", "epochs", "part", "setting", "seed", "accuracy")
Runs = dict[str, float]  # the accuracy in percent by seed
# The setting of the table from which each setting of the sweeps differs in one thing.
REFERENCE = "DropBlock, scheduled"
# Pairs of rows that may differ by the random numbers only.
SAME = (
    ("Dropout (block_size=1)", "Dropout (torch's)"),
    ("SpatialDropout (block as the map)", "SpatialDropout (torch's Dropout2d)"),
)


class Column(NamedTuple):
    """A column of a table: a network, and how many images of a dataset it was trained on."""

    dataset: str
    network: str
    images: str
    epochs: str

    def __str__(self) -> str:
        return f"{self.network}, {self.images} images, {self.epochs} epochs"


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(row: Sequence[object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        csv.writer(file).writerows([FIELDS, row] if new else [row])
        file.flush()
        os.fsync(file.fileno())


class Results:
    """The accuracies in a file, by part of the study, column, setting and seed.

    Args:
        path: the file.
        order: the names of the settings of each part, in the order of the tables.
    """

    def __init__(self, path: Path, order: Mapping[str, Sequence[str]]) -> None:
        self.order = order
        self.parts: dict[str, dict[Column, dict[str, Runs]]] = {}
        for row in read(path):
            column = Column(*(row[name] for name in Column._fields))
            settings = self.parts.setdefault(row["part"], {}).setdefault(column, {})
            settings.setdefault(row["setting"], {})[row["seed"]] = float(row["accuracy"])
        if not self.parts:
            raise SystemExit(f"error: there are no results in {path} yet")
        for column, settings in self.parts.get("sweeps", {}).items():
            reference = self.parts.get("table", {}).get(column, {}).get(REFERENCE)
            if reference:
                settings[f"{REFERENCE} (as above)"] = reference

    def as_markdown(self) -> str:
        """A table for each part: mean and standard deviation over the seeds, a column for each network."""
        return "\n\n".join(self._table(part) for part in self.parts)

    def _table(self, part: str) -> str:
        columns = self.parts[part]
        seeds = {column: max(map(len, settings.values())) for column, settings in columns.items()}
        titles = [f"{column} ({seeds[column]} seeds)" for column in columns]
        lines = [
            f"| test accuracy on {', '.join({column.dataset: 0 for column in columns})}, % | {' | '.join(titles)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for name in self._names(part):
            cells = [_cell(settings.get(name, {}), seeds[column]) for column, settings in columns.items()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        differences = [line for pair in SAME if (line := _difference(columns, *pair))]
        return "\n".join([*lines, *(["", *differences] if differences else [])])

    def differences_as_markdown(self, reference: str) -> str:
        """A table of the differences from the setting `reference`, in points: runs with the same seed make a pair.

        A cell has the mean and its standard error, in bold if the mean is more than two standard errors.
        """
        columns: dict[Column, dict[str, Runs]] = {}
        for part in self.parts.values():
            for column, settings in part.items():
                columns.setdefault(column, {}).update(settings)
        columns = {column: settings for column, settings in columns.items() if reference in settings}
        lines = [
            f"| difference, points | {' | '.join(column.network for column in columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for name in (name for names in self.order.values() for name in names if name != reference):
            cells = [_paired(settings.get(name, {}), settings[reference]) for settings in columns.values()]
            if any(cells):
                lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Means with their standard errors: a row of panels for each part, a panel for each network."""
        from matplotlib.figure import Figure

        width = max(map(len, self.parts.values()))
        figure = Figure(figsize=(4 * width + 2.6, 3.9 * len(self.parts)), layout="constrained", dpi=150)
        grid = figure.subplots(len(self.parts), width, squeeze=False)
        for row, (part, columns) in zip(grid, self.parts.items(), strict=True):
            for axis in row[len(columns) :]:
                axis.remove()
            names = self._names(part)
            for axis, (column, settings) in zip(row, columns.items(), strict=False):
                _draw(axis, column, [(name, [*settings.get(name, {}).values()]) for name in names], part)
                axis.set_yticks(range(len(names)), names if axis is row[0] else [""] * len(names))
        return figure

    def _names(self, part: str) -> list[str]:
        there = {name for settings in self.parts[part].values() for name in settings}
        return [name for name in (f"{REFERENCE} (as above)", *self.order[part]) if name in there]


def _cell(runs: Runs, seeds: int) -> str:
    if not runs:
        return ""
    spread = f" ± {stdev(runs.values()):.2f}" if len(runs) > 1 else ""
    return f"{mean(runs.values()):.2f}{spread}" + (f" ({len(runs)} seeds)" if len(runs) != seeds else "")


def _paired(runs: Runs, reference: Runs) -> str:
    differences = [runs[seed] - reference[seed] for seed in runs if seed in reference]
    if len(differences) < 2:
        return ""
    value, error = mean(differences), stdev(differences) / len(differences) ** 0.5
    text = f"{value:+.2f} ± {error:.2f}"
    return f"**{text}**" if abs(value) > 2 * error else text


def _difference(columns: dict[Column, dict[str, Runs]], ours: str, theirs: str) -> str:
    """The difference of two rows, with its standard error; the runs are not paired."""
    parts = []
    for column, settings in columns.items():
        left, right = ([*settings.get(name, {}).values()] for name in (ours, theirs))
        if len(left) > 1 and len(right) > 1:
            error = (stdev(left) ** 2 / len(left) + stdev(right) ** 2 / len(right)) ** 0.5
            parts.append(f"{column.network} {mean(left) - mean(right):+.2f} ± {error:.2f}")
    return f"{ours} less {theirs}, with the standard error: {'; '.join(parts)}." if parts else ""


def _draw(axis: Axes, column: Column, rows: list[tuple[str, list[float]]], part: str) -> None:
    for place, (name, values) in enumerate(rows):
        if values:
            error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0
            color = "#d1495b" if "DropBlock" in name or part == "sweeps" else "#30638e"
            axis.errorbar(mean(values), place, xerr=error, fmt="o", color=color, capsize=3)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    compared = next((values for name, values in rows if values and (name == "baseline" or "as above" in name)), None)
    if compared:
        axis.axvline(mean(compared), color="#888888", linewidth=0.8, linestyle="--")
    seeds = max(len(values) for _, values in rows)
    axis.set_title(f"{column.network}, {column.images} images of {column.dataset}, {seeds} seeds", fontsize=10)
    axis.set_xlabel("test accuracy, % (mean and standard error)")
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
