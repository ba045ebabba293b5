"""Means over seeds with their spread, and paired differences with their standard error."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, stdev
from typing import NamedTuple

Runs = Mapping[str, float]  # a score by seed


class Difference(NamedTuple):
    """A mean over pairs of runs with the same seed, and its standard error."""

    value: float
    error: float

    @property
    def is_shown(self) -> bool:
        """True if the mean is more than two standard errors."""
        return abs(self.value) > 2 * self.error

    def __str__(self) -> str:
        return f"{self.value:+.2f} ± {self.error:.2f}"


def spread(runs: Runs) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {stdev(runs.values()):.2f}" if len(runs) > 1 else ""
    return f"{mean(runs.values()):.2f}{deviation}"


def standard_error(runs: Runs) -> float:
    """The standard error of the mean; 0 for a single run."""
    return stdev(runs.values()) / len(runs) ** 0.5 if len(runs) > 1 else 0.0


def paired(runs: Runs, reference: Runs) -> Difference | None:
    """`runs` less `reference`; None if they have fewer than two seeds in common."""
    return average({seed: runs[seed] - reference[seed] for seed in runs if seed in reference})


def average(differences: Runs) -> Difference | None:
    """Their mean; None for fewer than two."""
    return Difference(mean(differences.values()), standard_error(differences)) if len(differences) > 1 else None


def cell(difference: Difference | None) -> str:
    """The difference as text, in bold if it is shown; nothing if there is none."""
    if difference is None:
        return ""
    return f"**{difference}**" if difference.is_shown else str(difference)
