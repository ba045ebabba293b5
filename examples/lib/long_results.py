"""Tables and a picture of the long fine-tunings: scores by setting and number of epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from lib.estimates import Runs, cell, paired, spread, standard_error
from lib.results import read
from lib.settings import NETWORK_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NONE, OURS = "none", "DropBlock, last stage"
PASSES = "ten passes"
SCORES = {
    "accuracy, %": "accuracy",
    "NLL": "nll",
    "ECE, %": "ece",
    f"accuracy, {PASSES}": "mc_accuracy",
    f"NLL, {PASSES}": "mc_nll",
    f"ECE, {PASSES}": "mc_ece",
    "accuracy, BatchNorm anew": "bn_accuracy",
    "NLL, BatchNorm anew": "bn_nll",
    "ECE, BatchNorm anew": "bn_ece",
}


class Training(NamedTuple):
    """What a network was trained on."""

    dataset: str
    network: str
    images: str

    def __str__(self) -> str:
        return f"{self.network}, {self.images} images of {self.dataset}"


class Row(NamedTuple):
    """A row of a table."""

    setting: str
    epochs: int


class LongResults:
    """The scores of part "long" in a file.

    Args:
        path: the file.
        order: the names of the settings, in the order of the tables.

    Attributes:
        runs: by training, row, and name of the score.
    """

    def __init__(self, path: Path, order: Sequence[str]) -> None:
        self.runs: dict[Training, dict[Row, dict[str, dict[str, float]]]] = {}
        found: dict[Training, dict[Row, dict[str, dict[str, float]]]] = {}
        for line in read(path):
            if line["part"] == "long":
                training = Training(*(line[name] for name in Training._fields))
                row = Row(line["setting"], int(line["epochs"]))
                scores = found.setdefault(training, {}).setdefault(row, {})
                for name in SCORES.values():
                    if line[name]:
                        scores.setdefault(name, {})[line["seed"]] = float(line[name])
        places = {name: place for place, name in enumerate(order)}
        for training, rows in found.items():
            self.runs[training] = {
                row: rows[row] for row in sorted(rows, key=lambda row: (places.get(row[0], len(places)), row[1]))
            }

    def best(self, training: Training) -> dict[str, Row]:
        """Of each setting its best number of epochs: the highest mean accuracy among those with the most seeds."""
        best: dict[str, Row] = {}
        rows = self.runs[training]
        for row, scores in rows.items():
            if row.setting not in best or _rank(scores) > _rank(rows[best[row.setting]]):
                best[row.setting] = row
        return best

    def summary(self, training: Training) -> str:
        """A table of the differences between settings, each at its best number of epochs."""
        best, rows = self.best(training), self.runs[training]
        return _differences({row: rows[row] for row in best.values()}, best[NONE]) if NONE in best else ""

    def as_markdown(self) -> str:
        """Tables for each training: the summary, means with standard deviations, two of paired differences."""
        parts = []
        for training, rows in self.runs.items():
            best = self.best(training)
            parts.append(f"## {training}")
            if NONE in best:
                words = f"{NONE!r} with {best[NONE].epochs} epochs and one pass, with the same seed"
                parts += [f"Each setting with its best number of epochs, less {words}.", self.summary(training)]
            parts += ["All: mean and standard deviation over the seeds.", _means(rows)]
            if NONE in best:
                parts += [f"All, less {words}.", _differences(rows, best[NONE])]
            parts += ["All, with BatchNorm's statistics estimated anew, less as trained.", _recalibrated(rows)]
        return "\n\n".join(parts)

    def plot(self) -> Figure:
        """Scores over the number of epochs, with and without DropBlock.

        A column of panels for each training that has the most numbers of epochs.
        """
        from matplotlib.figure import Figure

        lengths = {training: len({row.epochs for row in rows}) for training, rows in self.runs.items()}
        shown = {training: self.runs[training] for training in self.runs if lengths[training] == max(lengths.values())}
        figure = Figure(figsize=(4.2 * len(shown) + 0.6, 7.5), layout="constrained", dpi=150)
        grid = figure.subplots(3, len(shown), squeeze=False, sharex=True, sharey="row")
        lines = [(NONE, "", "#30638e"), (OURS, "", "#edae49"), (OURS, "mc_", "#d1495b")]
        for column, (training, rows) in enumerate(shown.items()):
            for panel, (score, unit) in zip(grid[:, column], _PANELS.items(), strict=True):
                for setting, prefix, color in lines:
                    label = setting + (f", {PASSES}" if prefix else "")
                    points = {row.epochs: of[prefix + score] for row, of in rows.items() if row.setting == setting}
                    _draw(panel, points, label, color)
                panel.set_ylabel(unit if column == 0 else "")
            name = NETWORK_NAMES.get(training.network, training.network)
            grid[0, column].set_title(f"{name}, {training.images} images of {training.dataset}", fontsize=10)
            grid[-1, column].set_xlabel("epochs")
        epochs = sorted({row.epochs for rows in shown.values() for row in rows})
        grid[0, 0].set_xticks(epochs, [str(number) for number in epochs])
        grid[0, 0].minorticks_off()
        grid[0, 0].legend(fontsize=8, frameon=False)
        return figure


_PANELS = {"accuracy": "test accuracy, %", "nll": "negative log-likelihood", "ece": "calibration error, %"}


def _rank(scores: Mapping[str, Runs]) -> tuple[int, float]:
    return len(scores["accuracy"]), mean(scores["accuracy"].values())


def _means(rows: Mapping[Row, Mapping[str, Runs]]) -> str:
    lines = [f"| setting | epochs | seeds | {' | '.join(SCORES)} |", "|---" * (len(SCORES) + 3) + "|"]
    for row, scores in rows.items():
        cells = [spread(scores[name]) if name in scores else "" for name in SCORES.values()]
        lines.append(f"| {row.setting} | {row.epochs} | {len(scores['accuracy'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _differences(rows: Mapping[Row, Mapping[str, Runs]], reference: Row) -> str:
    lines = [f"| difference | epochs | pairs | {' | '.join(SCORES)} |", "|---" * (len(SCORES) + 3) + "|"]
    for row, scores in rows.items():
        if row != reference:
            base = rows[reference]
            cells = [cell(paired(scores.get(name, {}), base[name.split("_")[-1]])) for name in SCORES.values()]
            pairs = len(scores["accuracy"].keys() & base["accuracy"].keys())
            lines.append(f"| {row.setting} | {row.epochs} | {pairs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _recalibrated(rows: Mapping[Row, Mapping[str, Runs]]) -> str:
    names = {"accuracy, %": "accuracy", "NLL": "nll", "ECE, %": "ece"}
    lines = [f"| setting | epochs | seeds | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for row, scores in rows.items():
        cells = [cell(paired(scores[f"bn_{name}"], scores[name])) for name in names.values()]
        lines.append(f"| {row.setting} | {row.epochs} | {len(scores['accuracy'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _draw(axis: Axes, points: Mapping[int, Runs], label: str, color: str) -> None:
    """A line through the means, with bars of one standard error. Rows of a single seed are left out."""
    epochs = sorted(number for number, runs in points.items() if len(runs) > 1)
    means = [mean(points[number].values()) for number in epochs]
    errors = [standard_error(points[number]) for number in epochs]
    if epochs:
        axis.errorbar(epochs, means, errors, color=color, marker="o", markersize=3.5, capsize=3, label=label)
    axis.set_xscale("log", base=2)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
