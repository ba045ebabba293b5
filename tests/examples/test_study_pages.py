"""The pages of the studies: the tables are what the commands print of the CSV files, each figure is one of them."""

from __future__ import annotations

import csv
import inspect
import re
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType

import pytest
import regularizers
import uncertainty

from dropblock_inject import inject_dropblock, presets
from lib.results import SAME

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "study"
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


# The short trainings

BASELINE, SCHEDULED, CONSTANT, BOTH = (
    *("baseline", "DropBlock, scheduled", "DropBlock, constant"),
    "DropBlock, scheduled + label smoothing",
)
DROPOUT = {"Dropout (block_size=1)", "Dropout (torch's)"}
SPATIAL = {"SpatialDropout (block as the map)", "SpatialDropout (torch's Dropout2d)"}
SETTINGS = {part: [setting.name for setting in settings] for part, settings in regularizers.PARTS.items()}
TABLE, SWEEPS = SETTINGS["table"], SETTINGS["sweeps"]
RUNS: dict[tuple[str, str], dict[str, float]] = {}
for run in csv.DictReader((FOLDER / "fashion-mnist.csv").read_text().splitlines()):
    RUNS.setdefault((run["network"], run["setting"]), {})[run["seed"]] = float(run["accuracy"])


def difference(network: str, setting: str, reference: str) -> tuple[float, float]:
    """The mean over the seeds of the difference between two runs of the same seed, and its standard error."""
    left, right = RUNS[network, setting], RUNS[network, reference]
    assert left.keys() == right.keys() == set("01234")
    differences = [left[seed] - right[seed] for seed in left]
    return mean(differences), stdev(differences) / len(differences) ** 0.5


def is_shown(network: str, setting: str, reference: str) -> bool:
    value, error = difference(network, setting, reference)
    return abs(value) > 2 * error


# Every figure with an error in a sentence: the words around it, what less what, and whether a difference is shown.
# After "by" and "lost" it has no sign.
CLAIMS = {
    "README.md": [
        ("a network with shortcuts | {} |", "resnet", SCHEDULED, BASELINE, True),
        ("a network without shortcuts | {}: no gain shown", "plain", SCHEDULED, BASELINE, False),
        ("label smoothing: {} |", "plain", "label smoothing", BASELINE, True),
        ("12 epochs | {}: no gain shown", "lite0", "last stage only", BASELINE, False),
        ("A constant keep_prob lost {} points against it in a fine-tuning of 12", "lite0", SCHEDULED, CONSTANT, True),
        ("keep_prob 0.8 lost {} points in that fine-tuning", "lite0", SCHEDULED, "keep_prob 0.8", True),
        ("and 0.7 lost {} from scratch.", "resnet", SCHEDULED, "keep_prob 0.7", True),
    ],
    "examples/study/README.md": [
        ("no DropBlock | {} points: no gain shown", "lite0", "last stage only", BASELINE, False),
        ("SMALL_IMAGES` | {} points |", "resnet", SCHEDULED, BASELINE, True),
        ("label smoothing | {} points; DropBlock", "plain", "label smoothing", BASELINE, True),
        ("; DropBlock {}: no gain shown", "plain", SCHEDULED, BASELINE, False),
        ("constant less scheduled: {} points", "lite0", CONSTANT, SCHEDULED, True),
        ("0.8 less 0.9: {} points", "lite0", "keep_prob 0.8", SCHEDULED, True),
        ("scheduled DropBlock was better than no regulariser, by {} points", "resnet", SCHEDULED, BASELINE, True),
        ("and no regulariser no difference is shown ({}).", "plain", SCHEDULED, BASELINE, False),
        ("Label smoothing was better than none, by {}.", "plain", "label smoothing", BASELINE, True),
        ("the difference is {} in two stages", "lite0", SCHEDULED, BASELINE, False),
        ("and {} in the last stage alone", "lite0", "last stage only", BASELINE, False),
        ("constant less scheduled is {} in `plain`", "plain", CONSTANT, SCHEDULED, False),
        ("in `plain`, {} in `resnet`", "resnet", CONSTANT, SCHEDULED, False),
        ("and {} in `lite0`. A difference is shown in one network of three", "lite0", CONSTANT, SCHEDULED, True),
        ("0.7 was worse than 0.9 in both networks, by {} in `resnet`", "resnet", SCHEDULED, "keep_prob 0.7", True),
        ("in `resnet` and by {} in `lite0`.", "lite0", SCHEDULED, "keep_prob 0.7", True),
        ("0.8 was worse in `lite0`, by {}.", "lite0", SCHEDULED, "keep_prob 0.8", True),
        ("0.9 no difference is shown: {} in `resnet`", "resnet", "keep_prob 0.95", SCHEDULED, False),
        ("`resnet`, {} in `lite0`.", "lite0", "keep_prob 0.95", SCHEDULED, False),
    ],
}


# The same for the long fine-tunings: the dataset, and the two rows with a score of each.
LONG: dict[tuple[str, ...], dict[str, float]] = {}
for run in csv.DictReader((FOLDER / "long.csv").read_text().splitlines()):
    assert (run["network"], run["images"]) == ("lite0", "250")
    for score in (prefix + name for prefix in ("", "mc_", "bn_") for name in ("accuracy", "nll", "ece")):
        if run[score]:
            row = (run["dataset"], run["setting"], run["epochs"], score)
            LONG.setdefault(row, {})[run["seed"]] = float(run[score])
FASHION, LETTERS = "fashion-mnist", "letters"
NONE, OURS = ("none", "40"), ("DropBlock, last stage", "40")
BEST, LONGER = ("none", "80"), ("DropBlock, last stage", "80")  # the best number of epochs
SPATIAL_80 = ("SpatialDropout (block as the map)", "80")
Claim = tuple[str, str, tuple[str, ...], tuple[str, ...], bool]
GAINS: list[Claim] = [
    ("80 epochs | {} and", FASHION, (*LONGER, "accuracy"), (*BEST, "accuracy"), False),
    ("and {} on two datasets;", LETTERS, (*LONGER, "accuracy"), (*BEST, "accuracy"), True),
    ("ten passes {} and", FASHION, (*LONGER, "mc_accuracy"), (*BEST, "accuracy"), True),
    ("and {} | `presets.FINE_TUNING`", LETTERS, (*LONGER, "mc_accuracy"), (*BEST, "accuracy"), True),
    ("the same, 40 epochs | {} and", FASHION, (*OURS, "accuracy"), (*NONE, "accuracy"), True),
    ("and {}; against 80 without,", LETTERS, (*OURS, "accuracy"), (*NONE, "accuracy"), True),
    ("against 80 without, {} and", FASHION, (*OURS, "accuracy"), (*BEST, "accuracy"), False),
    ("and {} | the same |", LETTERS, (*OURS, "accuracy"), (*BEST, "accuracy"), True),
    ("lower than without DropBlock, by {} points on one", FASHION, (*BEST, "ece"), (*LONGER, "mc_ece"), True),
    ("and by {} on the other.", LETTERS, (*BEST, "ece"), (*LONGER, "mc_ece"), True),
]
LONG_CLAIMS: dict[str, list[Claim]] = {
    "README.md": GAINS,
    "examples/study/README.md": [
        ("ten passes | {} points on Fashion-MNIST,", FASHION, (*LONGER, "mc_accuracy"), (*BEST, "accuracy"), True),
        ("{} on letters |", LETTERS, (*LONGER, "mc_accuracy"), (*BEST, "accuracy"), True),
        ("of two | {} on Fashion-MNIST,", FASHION, (*LONGER, "accuracy"), (*BEST, "accuracy"), False),
        ("{} on letters |", LETTERS, (*LONGER, "accuracy"), (*BEST, "accuracy"), True),
        ("half the time | {} and", FASHION, (*OURS, "accuracy"), (*NONE, "accuracy"), True),
        ("and {}; against 80 epochs without", LETTERS, (*OURS, "accuracy"), (*NONE, "accuracy"), True),
        ("against 80 epochs without {} and", FASHION, (*OURS, "accuracy"), (*BEST, "accuracy"), False),
        ("and {} |", LETTERS, (*OURS, "accuracy"), (*BEST, "accuracy"), True),
        ("`mc_predict` | NLL {} and", FASHION, (*LONGER, "mc_nll"), (*BEST, "nll"), True),
        ("and {}, calibration error", LETTERS, (*LONGER, "mc_nll"), (*BEST, "nll"), True),
        ("calibration error {} and", FASHION, (*LONGER, "mc_ece"), (*BEST, "ece"), True),
        ("and {} points |", LETTERS, (*LONGER, "mc_ece"), (*BEST, "ece"), True),
        ("without DropBlock | NLL {} and", FASHION, (*LONGER, "nll"), (*BEST, "nll"), True),
        ("and {}, calibration error", LETTERS, (*LONGER, "nll"), (*BEST, "nll"), True),
        ("calibration error {} and", FASHION, (*LONGER, "ece"), (*BEST, "ece"), True),
        ("and {} points |", LETTERS, (*LONGER, "ece"), (*BEST, "ece"), True),
        ("--recalibrate` | {} and", FASHION, (*LONGER, "bn_accuracy"), (*LONGER, "accuracy"), True),
        ("and {} points; NLL", LETTERS, (*LONGER, "bn_accuracy"), (*LONGER, "accuracy"), False),
        ("points; NLL {} and", FASHION, (*LONGER, "bn_nll"), (*LONGER, "nll"), False),
        ("and {} |", LETTERS, (*LONGER, "bn_nll"), (*LONGER, "nll"), True),
        ("ten passes: {} on Fashion-MNIST", FASHION, (*SPATIAL_80, "mc_accuracy"), (*LONGER, "mc_accuracy"), False),
        (
            "Fashion-MNIST, {} on letters | | BatchNorm",
            LETTERS,
            (*SPATIAL_80, "mc_accuracy"),
            (*LONGER, "mc_accuracy"),
            True,
        ),
        ("without was {} on Fashion-MNIST", FASHION, (*SPATIAL_80, "accuracy"), (*BEST, "accuracy"), True),
        ("and {} on letters. Less DropBlock", LETTERS, (*SPATIAL_80, "accuracy"), (*BEST, "accuracy"), True),
        ("Less DropBlock it was {} and", FASHION, (*SPATIAL_80, "accuracy"), (*LONGER, "accuracy"), False),
        ("and {}: no difference shown. The mean", LETTERS, (*SPATIAL_80, "accuracy"), (*LONGER, "accuracy"), False),
        ("better than 40 by {} points on Fashion-MNIST", FASHION, (*BEST, "accuracy"), (*NONE, "accuracy"), True),
        ("Fashion-MNIST and by {} on letters.", LETTERS, (*BEST, "accuracy"), (*NONE, "accuracy"), True),
        ("one pass by {} and", FASHION, (*LONGER, "accuracy"), (*OURS, "accuracy"), True),
        ("and by {}. Against 80", LETTERS, (*LONGER, "accuracy"), (*OURS, "accuracy"), True),
        ("same network: {} points", FASHION, (*LONGER, "mc_accuracy"), (*LONGER, "accuracy"), False),
        ("Fashion-MNIST, {} on letters.", LETTERS, (*LONGER, "mc_accuracy"), (*LONGER, "accuracy"), True),
    ],
}


# The same for the study of uncertainty: the network, and the two rows; then the measure, that of a curve is its mean.
DOUBTS: dict[tuple[str, ...], dict[str, float]] = {}
for run in csv.DictReader((FOLDER / "uncertainty.csv").read_text().splitlines()):
    for name in ("accuracy", "nll", "ece", "rejection_area", "auroc_letters", "auroc_digits", "occluded", "dropped"):
        if run[name]:
            row = (run["network"], run["setting"], run["method"], name)
            DOUBTS.setdefault(row, {})[run["seed"]] = mean(map(float, run[name].split()))
PLAIN, ONCE, PASSES = ("none", "one pass"), ("DropBlock", "one pass"), ("DropBlock", "10 passes")
TEMPERATURE, ENSEMBLE = ("none", "temperature scaling"), ("none", "ensemble of five")
DOUBTS_CLAIMS: list[tuple[str, str, tuple[str, str], tuple[str, str], str, bool]] = [
    ("calibration error {} with shortcuts", "resnet", TEMPERATURE, PLAIN, "ece", True),
    ("shortcuts, {} without; ten", "plain", TEMPERATURE, PLAIN, "ece", True),
    ("ten passes of DropBlock {} and", "resnet", PASSES, PLAIN, "ece", True),
    ("and {} | | images", "plain", PASSES, PLAIN, "ece", True),
    ("with shortcuts | accuracy {} points", "resnet", PASSES, PLAIN, "occluded", True),
    ("without shortcuts {}: no gain shown", "plain", PASSES, PLAIN, "occluded", False),
    ("scaling lowered the NLL by {} in `resnet`", "resnet", PLAIN, TEMPERATURE, "nll", True),
    ("and by {} in `plain`, and the calibration", "plain", PLAIN, TEMPERATURE, "nll", True),
    ("both too: the NLL by {} and", "resnet", PLAIN, PASSES, "nll", True),
    ("and by {}. For one pass", "plain", PLAIN, PASSES, "nll", True),
    ("calibration error: {} and", "resnet", ONCE, PLAIN, "ece", False),
    ("and {}. - **Accuracy**: the ensemble", "plain", ONCE, PLAIN, "ece", False),
    ("ensemble gained by {} points", "resnet", ENSEMBLE, PLAIN, "accuracy", True),
    ("`resnet` and by {} in `plain`. For ten", "plain", ENSEMBLE, PLAIN, "accuracy", True),
    ("no gain is shown: {} and", "resnet", PASSES, PLAIN, "accuracy", False),
    ("and {}. - **Rejection", "plain", PASSES, PLAIN, "accuracy", False),
    ("in `plain`, by {} points, and not", "plain", ONCE, PLAIN, "rejection_area", True),
    ("not in `resnet` ({}).", "resnet", ONCE, PLAIN, "rejection_area", False),
    ("AUROC {} and", "resnet", ENSEMBLE, PLAIN, "auroc_letters", True),
    ("and {}. Ten passes of DropBlock: ", "plain", ENSEMBLE, PLAIN, "auroc_letters", True),
    ("Ten passes of DropBlock: {} and", "resnet", PASSES, PLAIN, "auroc_letters", False),
    ("and {}. - **Robustness", "plain", PASSES, PLAIN, "auroc_letters", False),
    ("is better, by {} points in `resnet`", "resnet", ONCE, PLAIN, "dropped", True),
    ("and by {} in `plain`. With a square", "plain", ONCE, PLAIN, "dropped", True),
]


def doubts_difference(network: str, row: tuple[str, str], reference: tuple[str, str], name: str) -> tuple[float, float]:
    left, right = DOUBTS[(network, *row, name)], DOUBTS[(network, *reference, name)]
    assert left.keys() == right.keys() == set("01234")
    differences = [left[seed] - right[seed] for seed in left]
    return mean(differences), stdev(differences) / len(differences) ** 0.5


def long_difference(dataset: str, setting: tuple[str, ...], reference: tuple[str, ...]) -> tuple[float, float]:
    left, right = LONG[(dataset, *setting)], LONG[(dataset, *reference)]
    differences = [left[seed] - right[seed] for seed in left.keys() & right.keys()]
    assert len(differences) == 10
    return mean(differences), stdev(differences) / len(differences) ** 0.5


@pytest.mark.parametrize("page", CLAIMS)
def test_the_figures_in_the_sentences_about_the_study(page: str) -> None:
    text = PAGES[page]
    claims = [(words, *difference(*of), shown) for words, *of, shown in CLAIMS[page]]
    claims += [(words, *long_difference(*of), shown) for words, *of, shown in LONG_CLAIMS[page]]
    if page == "examples/study/README.md":
        claims += [(words, *doubts_difference(*of), shown) for words, *of, shown in DOUBTS_CLAIMS]
    for words, value, error, shown in claims:
        found = f"{value:+.2f} ± {error:.2f}"
        if "by {}" in words or "lost {}" in words:
            found = found.removeprefix("+")
        assert words.format(found) in text
        assert (abs(value) > 2 * error) == shown
    assert len(re.findall(r"\d ± \d", text)) == len(claims)


@pytest.mark.parametrize("dataset", [FASHION, LETTERS])
@pytest.mark.parametrize("best", [BEST, LONGER])
def test_the_best_number_of_epochs(dataset: str, best: tuple[str, str]) -> None:
    means = {
        row[2]: mean(runs.values())
        for row, runs in LONG.items()
        if (row[0], row[1], row[3]) == (dataset, best[0], "accuracy")
    }
    assert max(means, key=lambda epochs: means[epochs]) == best[1]


# The sentences without figures: of these settings, those that were better or worse than the reference.
@pytest.mark.parametrize(
    ("network", "reference", "settings", "better", "worse"),
    [
        ("resnet", SCHEDULED, {*TABLE} - {BOTH}, set(), {BASELINE, "DropPath", *SPATIAL}),
        ("plain", BASELINE, {*TABLE} - {BOTH}, {"label smoothing"}, DROPOUT),
        (
            "lite0",
            BASELINE,
            {*TABLE, *SWEEPS} - {"keep_prob 0.8", "keep_prob 0.7"},
            set(),
            {"Dropout (torch's)", *SPATIAL, CONSTANT, BOTH},
        ),
        ("resnet", SCHEDULED, {*SWEEPS}, set(), {"keep_prob 0.7"}),
        ("lite0", SCHEDULED, {*SWEEPS}, set(), {"keep_prob 0.7", "keep_prob 0.8"}),
    ],
)
def test_the_verdicts_of_the_study(network: str, reference: str, settings: set, better: set, worse: set) -> None:
    differences = {s: difference(network, s, reference) for s in settings - {reference} if (network, s) in RUNS}
    assert {setting for setting, (value, error) in differences.items() if value > 2 * error} == better
    assert {setting for setting, (value, error) in differences.items() if value < -2 * error} == worse


@pytest.mark.parametrize("network", ["plain", "resnet", "lite0"])
def test_our_dropout_and_torch_s_agree(network: str) -> None:
    for ours, torch_s in SAME:
        assert not is_shown(network, ours, torch_s)
    assert "No difference to torch's own layers is shown" in STUDY


def test_the_settings_that_the_study_advises() -> None:
    assert "`presets.FINE_TUNING`: last stage, keep_prob 0.9, blocks of half the map" in README
    assert "`presets.SMALL_IMAGES`: the last two stages, keep_prob 0.975 and 0.9" in README
    small = dict(presets.SMALL_IMAGES)
    assert (small["stages"], small["keep_prob"], small["block_size"]) == ((-2, -1), 0.9, 0.5)
    assert dict(presets.FINE_TUNING) == {**small, "stages": (-1,)}
    defaults = inspect.signature(inject_dropblock).parameters
    assert all(defaults[name].default == value for name, value in presets.PAPER.items())
