"""The results of regularizers.py: a CSV file with a line per run; tables and a picture of the short trainings."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lib.estimates import Runs, average, cell, paired, spread
from lib.settings import NETWORK_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lib.trials import Outcome

KEY = ("dataset", "network", "images", "epochs", "part", "setting", "seed")  # of a run
_SCORES = ("accuracy", "nll", "ece")
# Scores with the prefix mc_ are those of ten Monte Carlo passes, with bn_ those with BatchNorm's statistics anew.
FIELDS = (*KEY, *_SCORES, *(prefix + name for prefix in ("mc_", "bn_") for name in _SCORES), "seconds")
# The setting of the table from which each setting of the sweeps differs in one thing.
REFERENCE = "DropBlock, scheduled"
_LOWEST = -10.0  # points in the picture
_RECALIBRATED = {"accuracy": "accuracy", "NLL": "nll", "ECE": "ece"}
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


def read(path: Path, fields: Sequence[str] = FIELDS) -> list[dict[str, str]]:
    """The lines of a file; none if it is not there.

    Raises:
        SystemExit: the columns are not `fields`.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != tuple(fields):
            raise SystemExit(f"error: the columns of {path} are not {', '.join(fields)}; give another --output")
        return list(reader)


def write(row: Sequence[object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        csv.writer(file).writerows([FIELDS, row] if new else [row])
        file.flush()
        os.fsync(file.fileno())


def row_of(key: Sequence[str], outcome: Outcome) -> list[str]:
    """The line of a run."""
    three = (outcome.once, outcome.monte_carlo or ("",) * 3, outcome.recalibrated)
    cells = [
        cell if cell == "" else f"{cell:.{digits}f}"
        for part in three
        for cell, digits in zip(part, (2, 4, 2), strict=True)
    ]
    return [*key, *cells, f"{outcome.seconds:.0f}"]


class Results:
    """The short trainings in a file.

    Args:
        path: the file.
        order: the names of the settings of each part, in the order of the tables.

    Attributes:
        parts: accuracies, by part of the study, column, setting and seed.
        recalibrated: what BatchNorm's statistics anew add to a score, by column and score, setting and seed.
    """

    def __init__(self, path: Path, order: Mapping[str, Sequence[str]]) -> None:
        self.order = order
        self.parts: dict[str, dict[Column, dict[str, dict[str, float]]]] = {}
        self.recalibrated: dict[tuple[Column, str], dict[str, dict[str, float]]] = {}
        for row in read(path):
            if row["part"] not in order:
                continue
            column = Column(*(row[name] for name in Column._fields))
            settings = self.parts.setdefault(row["part"], {}).setdefault(column, {})
            settings.setdefault(row["setting"], {})[row["seed"]] = float(row["accuracy"])
            for name, score in _RECALIBRATED.items():
                if row[f"bn_{score}"]:
                    gains = self.recalibrated.setdefault((column, name), {}).setdefault(row["setting"], {})
                    gains[row["seed"]] = float(row[f"bn_{score}"]) - float(row[score])
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
        differences = [line for pair in SAME if (line := _agreement(columns, *pair))]
        return "\n".join([*lines, *(["", *differences] if differences else [])])

    def differences_as_markdown(self, reference: str) -> str:
        """A table of the differences from the setting `reference`, in points: runs with the same seed make a pair.

        A cell has the mean and its standard error, in bold if the mean is more than two standard errors.
        """
        columns: dict[Column, dict[str, dict[str, float]]] = {}
        for part in self.parts.values():
            for column, settings in part.items():
                columns.setdefault(column, {}).update(settings)
        columns = {column: settings for column, settings in columns.items() if reference in settings}
        lines = [
            f"| difference, points | {' | '.join(column.network for column in columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for name in (name for names in self.order.values() for name in names if name != reference):
            cells = [cell(paired(settings.get(name, {}), settings[reference])) for settings in columns.values()]
            if any(cells):
                lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def recalibrated_as_markdown(self) -> str:
        """A table of what the scores gain or lose where BatchNorm's statistics are estimated anew."""
        titles = [f"{column.network}, {name}" for column, name in self.recalibrated]
        lines = [f"| setting | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
        for name in (name for names in self.order.values() for name in names):
            cells = [cell(average(settings.get(name, {}))) for settings in self.recalibrated.values()]
            if any(cells):
                lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Differences with their standard errors: a row of panels with one scale for each part, a panel per network."""
        from matplotlib.figure import Figure

        width = max(map(len, self.parts.values()))
        figure = Figure(figsize=(4 * width + 2.6, 3.9 * len(self.parts)), layout="constrained", dpi=110)
        grid = figure.subplots(len(self.parts), width, squeeze=False, sharex="row")
        for row, (part, columns) in zip(grid, self.parts.items(), strict=True):
            for axis in row[len(columns) :]:
                axis.remove()
            names = self._names(part)
            reference = "baseline" if part == "table" else f"{REFERENCE} (as above)"
            for axis, (column, settings) in zip(row, columns.items(), strict=False):
                _draw(axis, column, [settings.get(name, {}) for name in names], settings.get(reference, {}))
                axis.set_yticks(range(len(names)), names if axis is row[0] else [""] * len(names))
                axis.set_xlabel(f"points, less {reference.removesuffix(' (as above)')!r}")
        return figure

    def _names(self, part: str) -> list[str]:
        there = {name for settings in self.parts[part].values() for name in settings}
        return [name for name in (f"{REFERENCE} (as above)", *self.order[part]) if name in there]


def _cell(runs: Runs, seeds: int) -> str:
    if not runs:
        return ""
    return spread(runs) + (f" ({len(runs)} seeds)" if len(runs) != seeds else "")


def _agreement(columns: Mapping[Column, Mapping[str, Runs]], ours: str, theirs: str) -> str:
    """The paired differences of two rows, in a sentence."""
    parts = []
    for column, settings in columns.items():
        difference = paired(settings.get(ours, {}), settings.get(theirs, {}))
        if difference:
            parts.append(f"{column.network} {difference}")
    return f"{ours} less {theirs}, with the standard error: {'; '.join(parts)}." if parts else ""


def _draw(axis: Axes, column: Column, rows: list[Runs], reference: Runs) -> None:
    """The paired differences; one that is out of reach is an arrow at the edge, with its number."""
    for place, runs in enumerate(rows):
        difference = paired(runs, reference)
        if difference is None:
            continue
        color = "#d1495b" if difference.is_shown else "#30638e"
        if difference.value < _LOWEST:
            axis.plot(_LOWEST, place, marker="<", color=color)
            axis.annotate(f" {difference}", (_LOWEST, place), xytext=(6, 0), textcoords="offset points", va="center")
        else:
            axis.errorbar(difference.value, place, xerr=difference.error, fmt="o", color=color, capsize=3)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.axvline(0, color="#888888", linewidth=0.8, linestyle="--")
    seeds = max(map(len, rows))
    name = NETWORK_NAMES.get(column.network, column.network)
    axis.set_title(f"{name}\n{column.images} images of {column.dataset}, {seeds} seeds", fontsize=10)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
