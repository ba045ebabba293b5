"""The page of the long fine-tunings is what its command prints of the runs in the CSV file."""

from __future__ import annotations

from pathlib import Path

from lib.long_results import LongResults
from lib.settings import LONG

STUDY = Path(__file__).parents[2] / "examples" / "study"


def test_the_tables_of_the_long_fine_tunings() -> None:
    results = LongResults(STUDY / "long.csv", [setting.name for setting in LONG])
    assert (STUDY / "long.md").read_text() == results.as_markdown() + "\n"
