"""The pages of the studies: the tables are what the commands print of the CSV files, each figure is one of them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType

import pytest
import regularizers
import uncertainty
from study_claims import (
    BASELINE,
    BOTH,
    CLAIMS,
    CONSTANT,
    FASHION,
    FOLDER,
    LETTERS,
    NONE,
    OURS,
    PASSES,
    ROWS,
    RUNS,
    SCHEDULED,
    Key,
    doubts,
    long,
    short,
)

from dropblock_inject import inject_dropblock, presets
from lib.results import SAME

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
PAGES = {page: " ".join((ROOT / page).read_text().split()) for page in ("README.md", "examples/study/README.md")}
README, STUDY = PAGES.values()


@pytest.mark.parametrize(
    ("script", "name"), [(regularizers, "fashion-mnist"), (regularizers, "long"), (uncertainty, "uncertainty")]
)
def test_the_tables_are_what_the_command_prints(
    script: ModuleType, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{name}.csv").write_text((FOLDER / f"{name}.csv").read_text())
    script.main(["--report", "--output", str(tmp_path / f"{name}.csv")])
    assert capsys.readouterr().out == (FOLDER / f"{name}.md").read_text()


def pairs(left: Key, right: Key) -> list[float]:
    """The differences between two runs of the same seed."""
    return [RUNS[left][seed] - RUNS[right][seed] for seed in RUNS[left].keys() & RUNS[right].keys()]


def difference(left: Key, right: Key) -> tuple[float, float]:
    """The mean over the seeds of the difference between two runs of the same seed, and its standard error."""
    differences = pairs(left, right)
    return mean(differences), stdev(differences) / len(differences) ** 0.5


def is_shown(left: Key, right: Key) -> bool:
    value, error = difference(left, right)
    return abs(value) > 2 * error


@pytest.mark.parametrize("page", PAGES)
def test_the_figures_in_the_sentences(page: str) -> None:
    text = PAGES[page]
    for words, left, right, shown in CLAIMS[page]:
        value, error = difference(left, right)
        found = f"{value:+.2f} ± {error:.2f}"
        if re.search(r"(by|lost) \{}", words):
            found = found.removeprefix("+")
        assert text.count(words.format(found)) == 1
        assert (abs(value) > 2 * error) == shown
    in_rows = len(re.findall(r"\d ± \d", " ".join(map(row_of, ROWS)))) if page == "examples/study/README.md" else 0
    assert len(re.findall(r"\d ± \d", text)) == len(CLAIMS[page]) + in_rows


def row_of(label: str) -> str:
    """A row of a table: how many pairs, and the differences, in bold if they are shown."""
    cells = []
    for one in ROWS[label]:
        value, error = difference(*one) if one else (0, 0)
        cell = f"{value:+.2f} ± {error:.2f}" if one else ""
        cells.append(f"**{cell}**" if abs(value) > 2 * error else cell)
    counts = sorted({len(pairs(*one)) for one in ROWS[label] if one})
    return f"| {label} | {' or '.join(map(str, counts))} | {' | '.join(cells)} |".replace("  ", " ")


@pytest.mark.parametrize("label", ROWS)
def test_the_rows_of_the_tables_in_the_page(label: str) -> None:
    assert row_of(label) in STUDY


@pytest.mark.parametrize("dataset", [FASHION, LETTERS])
@pytest.mark.parametrize("setting", [NONE, OURS])
def test_the_best_number_of_epochs(dataset: str, setting: str) -> None:
    means = {epochs: mean(RUNS[long(dataset, setting, epochs)].values()) for epochs in (12, 24, 40, 80)}
    assert max(means, key=lambda epochs: means[epochs]) == 80


def test_the_numbers_of_pairs() -> None:
    """Ten of the long fine-tunings with 250 images that are compared, five of their variants and of Lite1."""
    for dataset in (FASHION, LETTERS):
        rows = {key: runs for key, runs in RUNS.items() if key[:4] == ("long", dataset, "lite0", "250")}
        for (*_, setting, epochs, score), runs in rows.items():
            if score == "accuracy" and (epochs == "80" or setting in (NONE, OURS)):
                assert len(runs) == (5 if setting.startswith("DropBlock,") and setting != OURS else 10)
    for network in ("plain", "resnet"):
        assert all(len(RUNS[short(network, setting)]) == 10 for setting in (BASELINE, SCHEDULED, CONSTANT, BOTH))


@pytest.mark.parametrize("dataset", [FASHION, LETTERS])
def test_passes_are_calibrated_after_a_long_training(dataset: str) -> None:
    """As the page on sites says."""
    for epochs, is_better in ((12, False), (40, True), (80, True)):
        pair = long(dataset, OURS, epochs, "mc_ece"), long(dataset, NONE, epochs, "ece")
        assert is_shown(*pair)
        assert (difference(*pair)[0] < 0) == is_better


@pytest.mark.parametrize(("network", "with_another_accuracy"), [("resnet", ["keep_prob 0.95"]), ("plain", [])])
def test_the_settings_of_the_passes(network: str, with_another_accuracy: list[str]) -> None:
    """Of the networks from scratch: what changes the calibration error of ten passes, and what their accuracy."""
    for name, sign in (("keep_prob 0.8", -1), ("keep_prob 0.95", 1), ("block three quarters of the map", -1)):
        key = doubts(FASHION, network, (f"DropBlock, {name}", "10 passes"), "ece")
        assert is_shown(key, doubts(FASHION, network, PASSES, "ece"))
        assert sign * difference(key, doubts(FASHION, network, PASSES, "ece"))[0] > 0
    accuracies = {
        setting.removeprefix("DropBlock, "): key
        for key in RUNS
        if key[:3] == ("doubts", FASHION, network) and key[4:] == ("10 passes", "accuracy")
        if (setting := key[3]).startswith("DropBlock, ")
    }
    plain = doubts(FASHION, network, PASSES, "accuracy")
    assert [name for name, key in accuracies.items() if is_shown(key, plain)] == with_another_accuracy


# The sentences without figures: of these settings, those that were better or worse than the reference.
DROPOUT = {"Dropout (block_size=1)", "Dropout (torch's)"}
SPATIAL = {"SpatialDropout (block as the map)", "SpatialDropout (torch's Dropout2d)"}
TABLE, SWEEPS = ([setting.name for setting in regularizers.PARTS[part]] for part in ("table", "sweeps"))


@pytest.mark.parametrize(
    ("network", "reference", "settings", "better", "worse"),
    [
        ("resnet", BASELINE, {*TABLE}, {"label smoothing", CONSTANT, SCHEDULED, BOTH}, set()),
        ("resnet", SCHEDULED, {*TABLE} - {BASELINE, BOTH}, set(), set()),
        ("resnet", SCHEDULED, {*SWEEPS}, {"block three quarters of the map"}, set()),
        ("plain", BASELINE, {*TABLE}, {"label smoothing", SCHEDULED, BOTH}, set()),
        ("plain", SCHEDULED, DROPOUT | SPATIAL, set(), DROPOUT | {"SpatialDropout (torch's Dropout2d)"}),
        (
            "plain",
            SCHEDULED,
            {*SWEEPS},
            set(),
            {"block of one pixel", "block a quarter of the map", "keep_prob 0.95", "keep_prob 0.7"},
        ),
        (
            "lite0",
            BASELINE,
            {*TABLE, *SWEEPS},
            set(),
            {
                *(CONSTANT, "Dropout (block_size=1)", *SPATIAL),
                *("block three quarters of the map", "keep_prob 0.8", "keep_prob 0.7"),
            },
        ),
        ("lite0", SCHEDULED, {*SWEEPS}, {"branch only"}, {"keep_prob 0.8", "keep_prob 0.7"}),
    ],
)
def test_the_verdicts_on_the_short_trainings(
    network: str, reference: str, settings: set[str], better: set[str], worse: set[str]
) -> None:
    key = short(network, reference)
    found = {name: difference(short(network, name), key) for name in settings if short(network, name) in RUNS}
    assert {name for name, (value, error) in found.items() if value > 2 * error} == better
    assert {name for name, (value, error) in found.items() if value < -2 * error} == worse


@pytest.mark.parametrize("network", ["plain", "resnet", "lite0"])
def test_our_dropout_and_torch_s_agree(network: str) -> None:
    for ours, torch_s in SAME:
        assert not is_shown(short(network, ours), short(network, torch_s))
    assert "No difference to torch's own layers is shown" in STUDY


def test_the_settings_that_the_study_advises() -> None:
    assert "`presets.FINE_TUNING`: last stage, keep_prob 0.9, blocks of half the map" in README
    assert "`presets.SMALL_IMAGES`: the last two stages, keep_prob 0.975 and 0.9" in README
    small = dict(presets.SMALL_IMAGES)
    assert (small["stages"], small["keep_prob"], small["block_size"]) == ((-2, -1), 0.9, 0.5)
    assert dict(presets.FINE_TUNING) == {**small, "stages": (-1,)}
    defaults = inspect.signature(inject_dropblock).parameters
    assert all(defaults[name].default == value for name, value in presets.PAPER.items())
