"""The results of uncertainty.py: a CSV file with a line per run and method, tables, a picture of the curves."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from lib.estimates import Runs, cell, paired, standard_error
from lib.results import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEY = ("dataset", "network", "images", "epochs", "setting", "seed")  # of a run
OTHERS = ("fashion-mnist", "letters", "digits")  # the datasets whose images are unknown to a network of another one
_NUMBERS = ("accuracy", "nll", "ece", "rejection_area", *(f"auroc_{name}" for name in OTHERS))
_CURVES = ("occluded", "dropped", "rejection", "shares", "confidences", "accuracies")
FIELDS = (*KEY, "method", *_NUMBERS, *_CURVES)
COLUMNS = {
    "accuracy, %": "accuracy",
    "NLL": "nll",
    "ECE, %": "ece",
    "area under accuracy-rejection, %": "rejection_area",
    **{f"AUROC {name}, %": f"auroc_{name}" for name in OTHERS},
    "accuracy under a square, %": "occluded",
    "accuracy with dropped blocks, %": "dropped",
}
REFERENCES = ("none", "none, temperature scaling")


def write(key: Sequence[str], lines: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """Adds the lines of a run, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(KEY, key, strict=True), method=method, **cells) for method, cells in lines.items()]
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


class Training(NamedTuple):
    """What a network was trained on."""

    dataset: str
    network: str
    images: str
    epochs: str

    def __str__(self) -> str:
        return f"{self.network}, {self.images} images of {self.dataset}, {self.epochs} epochs"


Curves = dict[str, dict[str, list[float]]]  # by measure and seed; a number is a curve with one point


class DoubtsResults:
    """The measures in a file, by training and by row of the tables, which is a setting with a method.

    Args:
        path: the file.
        order: the names of the settings, in the order of the tables.
    """

    def __init__(self, path: Path, order: Sequence[str]) -> None:
        found: dict[Training, dict[tuple[str, str], Curves]] = {}
        for line in read(path, FIELDS):
            training = Training(*(line[name] for name in Training._fields))
            row = found.setdefault(training, {}).setdefault((line["setting"], line["method"]), {})
            for name in (*_NUMBERS, *_CURVES):
                if line[name]:
                    row.setdefault(name, {})[line["seed"]] = [float(value) for value in line[name].split()]
        if not found:
            raise SystemExit(f"error: there are no results in {path} yet")
        places = {name: place for place, name in enumerate(order)}
        self.rows = {
            training: {_title(*row): rows[row] for row in sorted(rows, key=lambda row: places.get(row[0], len(places)))}
            for training, rows in found.items()
        }

    def as_markdown(self) -> str:
        """Tables for each training: means, and differences from no regulariser and from temperature scaling."""
        parts = []
        for training, rows in self.rows.items():
            columns = {title: name for title, name in COLUMNS.items() if any(name in row for row in rows.values())}
            parts += [f"### {training}", "Mean and standard error over the seeds."]
            parts.append(_table("method", columns, rows, lambda row, name: _estimate(_numbers(row, name))))
            for reference in REFERENCES:
                if reference not in rows:
                    continue
                base = rows[reference]
                others = {title: row for title, row in rows.items() if title != reference}
                parts.append(f"Differences from {reference!r} of the same seed.")
                parts.append(
                    _table(
                        "difference",
                        columns,
                        others,
                        lambda row, name, base=base: cell(paired(_numbers(row, name), _numbers(base, name))),
                    )
                )
        return "\n\n".join(parts)

    def plot(self) -> Figure:
        """A row of panels for each training: reliability, accuracy-rejection curve, occlusion, dropped blocks."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(17, 4 * len(self.rows)), layout="constrained", dpi=130)
        grid = figure.subplots(len(self.rows), 4, squeeze=False)
        for panels, (training, rows) in zip(grid, self.rows.items(), strict=True):
            shown = {title: rows[title] for title in _COLORS if title in rows}
            for title, row in shown.items():
                _draw_reliability(panels[0], row, title)
                _draw(panels[1], row, "rejection", range(10, 101, 10), title)
                _draw(panels[2], row, "occluded", (10, 20, 30, 40, 50), title)
                _draw(panels[3], row, "dropped", (10, 25, 50), title)
            panels[0].plot([0, 100], [0, 100], color="#888888", linewidth=0.8, linestyle="--")
            panels[0].set_title(str(training), fontsize=9)
            panels[0].legend(fontsize=7, frameon=False)
            labels = ("confidence, %", "images kept, the most confident, %", "square, % of the image", "dropped, %")
            for panel, label in zip(panels, labels, strict=True):
                panel.set_xlabel(label)
                panel.set_ylabel("accuracy, %")
                panel.grid(color="#dddddd", linewidth=0.6)
                panel.spines[["top", "right"]].set_visible(False)
        return figure


_COLORS = {
    "none": "#30638e",
    "none, temperature scaling": "#00798c",
    "none, ensemble of five": "#555555",
    "Dropout, 10 passes": "#b5838d",
    "SpatialDropout, 10 passes": "#edae49",
    "DropBlock": "#f4a6ad",
    "DropBlock, 10 passes": "#d1495b",
}


def _title(setting: str, method: str) -> str:
    return setting if method == "one pass" else f"{setting}, {method}"


def _numbers(row: Curves, name: str) -> Runs:
    """A number for each seed: that of a curve is its mean."""
    return {seed: mean(values) for seed, values in row.get(name, {}).items()}


def _estimate(runs: Runs) -> str:
    error = f" ± {standard_error(runs):.2f}" if len(runs) > 1 else ""
    return f"{mean(runs.values()):.2f}{error}" if runs else ""


def _table(corner: str, columns: Mapping[str, str], rows: Mapping[str, Curves], text: Callable[..., str]) -> str:
    lines = [f"| {corner} | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for title, row in rows.items():
        cells = [text(row, name) for name in columns.values()]
        lines.append(f"| {title} | {len(row['accuracy'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _draw(axis: Axes, row: Curves, name: str, places: Sequence[int], title: str) -> None:
    """The mean over the seeds, in a band of one standard error to both sides."""
    if name in row:
        points = [dict(zip(row[name], values, strict=True)) for values in zip(*row[name].values(), strict=True)]
        means, errors = [mean(runs.values()) for runs in points], [standard_error(runs) for runs in points]
        axis.plot(places, means, color=_COLORS[title], marker="o", markersize=3, label=title)
        low, high = ([value + sign * error for value, error in zip(means, errors, strict=True)] for sign in (-1, 1))
        axis.fill_between(places, low, high, color=_COLORS[title], alpha=0.2, linewidth=0)


def _draw_reliability(axis: Axes, row: Curves, title: str) -> None:
    """Accuracy over confidence, all seeds together, without bins of less than half a percent of the images."""
    if "shares" not in row:
        return
    seeds = list(row["shares"])
    points = []
    for place in range(len(row["shares"][seeds[0]])):
        shares = [row["shares"][seed][place] for seed in seeds]
        if sum(shares) > 0.5 * len(seeds):
            weighted = [
                sum(share * row[name][seed][place] for share, seed in zip(shares, seeds, strict=True)) / sum(shares)
                for name in ("confidences", "accuracies")
            ]
            points.append(weighted)
    axis.plot(*zip(*points, strict=True), color=_COLORS[title], marker="o", markersize=3, label=title)
