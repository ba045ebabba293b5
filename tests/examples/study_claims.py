"""What the pages claim of the studies: every figure with an error, as the difference of two rows of the CSV files."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import mean

FOLDER = Path(__file__).parents[2] / "examples" / "study"
Key = tuple[str, ...]  # of a score; the study comes first
Claim = tuple[str, Key, Key, bool]  # the words around a figure, left less right, whether a difference is shown

BASELINE, SCHEDULED, CONSTANT = "baseline", "DropBlock, scheduled", "DropBlock, constant"
BOTH = "DropBlock, scheduled + label smoothing"
NONE, OURS = "none", "DropBlock, last stage"
SPATIAL, DROPOUT = "SpatialDropout (block as the map)", "Dropout (block_size=1)"
FASHION, LETTERS = "fashion-mnist", "letters"
PLAIN, TEMPERATURE, ENSEMBLE = ("none", "one pass"), ("none", "temperature scaling"), ("none", "ensemble of five")
ONCE, THREE, PASSES = (("DropBlock", passes) for passes in ("one pass", "3 passes", "10 passes"))

SCORES = [prefix + name for prefix in ("", "mc_", "bn_") for name in ("accuracy", "nll", "ece")]
MEASURES = ("accuracy", "nll", "ece", "rejection_area", "auroc_letters", "auroc_digits", "occluded", "dropped")


def short(network: str, setting: str, score: str = "accuracy") -> Key:
    """A score of a short training."""
    return ("short", network, setting, score)


def long(
    dataset: str, setting: str, epochs: int, score: str = "accuracy", *, network: str = "lite0", images: int = 250
) -> Key:
    """A score of a long fine-tuning."""
    return ("long", dataset, network, str(images), setting, str(epochs), score)


def doubts(dataset: str, network: str, row: tuple[str, str], measure: str) -> Key:
    """A measure of a row of the study of uncertainty; that of a curve is its mean."""
    return ("doubts", dataset, network, *row, measure)


RUNS: dict[Key, dict[str, float]] = {}  # by seed
for name in ("fashion-mnist", "long"):
    for run in csv.DictReader((FOLDER / f"{name}.csv").read_text().splitlines()):
        for score in filter(run.get, SCORES):
            key = short(run["network"], run["setting"], score)
            if name == "long":
                place = {"network": run["network"], "images": int(run["images"])}
                key = long(run["dataset"], run["setting"], int(run["epochs"]), score, **place)
            RUNS.setdefault(key, {})[run["seed"]] = float(run[score])
for run in csv.DictReader((FOLDER / "uncertainty.csv").read_text().splitlines()):
    for measure in filter(run.get, MEASURES):
        key = doubts(run["dataset"], run["network"], (run["setting"], run["method"]), measure)
        RUNS.setdefault(key, {})[run["seed"]] = mean(map(float, run[measure].split()))

CLAIMS: dict[str, list[Claim]] = {
    "README.md": [
        ("80 epochs | {} and", long(FASHION, OURS, 80), long(FASHION, NONE, 80), True),
        (" and {} on two", long(LETTERS, OURS, 80), long(LETTERS, NONE, 80), True),
        ("datasets; ten passes {} and", long(FASHION, OURS, 80, "mc_accuracy"), long(FASHION, NONE, 80), True),
        (" and {} | `presets.FINE_TUNING`:", long(LETTERS, OURS, 80, "mc_accuracy"), long(LETTERS, NONE, 80), True),
        ("40 epochs | {} and", long(FASHION, OURS, 40), long(FASHION, NONE, 40), True),
        (" and {}; against", long(LETTERS, OURS, 40), long(LETTERS, NONE, 40), True),
        ("against 80 without, {} and", long(FASHION, OURS, 40), long(FASHION, NONE, 80), False),
        (" and {} | the", long(LETTERS, OURS, 40), long(LETTERS, NONE, 80), True),
        ("12 epochs | {} and", long(FASHION, OURS, 12), long(FASHION, NONE, 12), False),
        (" and {}: no gain", long(LETTERS, OURS, 12), long(LETTERS, NONE, 12), True),
        ("label smoothing {}", short("resnet", BOTH), short("resnet", BASELINE), True),
        ("with shortcuts, {}", short("plain", BOTH), short("plain", BASELINE), True),
        ("without; alone {}", short("resnet", SCHEDULED), short("resnet", BASELINE), True),
        (" and {} | `presets.SMALL_IMAGES`:", short("plain", SCHEDULED), short("plain", BASELINE), True),
        ("keep_prob lost {}", short("lite0", SCHEDULED), short("lite0", CONSTANT), True),
        ("keep_prob 0.8 lost {} points", short("lite0", SCHEDULED), short("lite0", "keep_prob 0.8"), True),
        (
            "temperature scaling, by {} points",
            doubts(FASHION, "lite0", TEMPERATURE, "ece"),
            doubts(FASHION, "lite0", PASSES, "ece"),
            True,
        ),
        (
            "dataset and by {} on",
            doubts(LETTERS, "lite0", TEMPERATURE, "ece"),
            doubts(LETTERS, "lite0", PASSES, "ece"),
            True,
        ),
    ],
    "examples/study/README.md": [
        ("the schedule | {} points", long(FASHION, OURS, 80), long(FASHION, NONE, 80), True),
        ("Fashion-MNIST, {}", long(LETTERS, OURS, 80), long(LETTERS, NONE, 80), True),
        ("or better | {} and", long(FASHION, OURS, 40), long(FASHION, NONE, 80), False),
        (" and {} | |", long(LETTERS, OURS, 40), long(LETTERS, NONE, 80), True),
        ("no DropBlock | {} and", long(FASHION, OURS, 12), long(FASHION, NONE, 12), False),
        (" and {} points:", long(LETTERS, OURS, 12), long(LETTERS, NONE, 12), True),
        (
            "of two | {} and",
            long(FASHION, OURS, 80, network="lite0-224"),
            long(FASHION, NONE, 80, network="lite0-224"),
            False,
        ),
        (
            " and {} | |",
            long(LETTERS, OURS, 80, network="lite0-224"),
            long(LETTERS, NONE, 80, network="lite0-224"),
            True,
        ),
        (
            "scaling: NLL {}",
            doubts(FASHION, "lite0", PASSES, "nll"),
            doubts(FASHION, "lite0", TEMPERATURE, "nll"),
            True,
        ),
        (
            " and {}, calibration",
            doubts(LETTERS, "lite0", PASSES, "nll"),
            doubts(LETTERS, "lite0", TEMPERATURE, "nll"),
            True,
        ),
        (
            ", calibration error {} and",
            doubts(FASHION, "lite0", PASSES, "ece"),
            doubts(FASHION, "lite0", TEMPERATURE, "ece"),
            True,
        ),
        (
            " and {} points |",
            doubts(LETTERS, "lite0", PASSES, "ece"),
            doubts(LETTERS, "lite0", TEMPERATURE, "ece"),
            True,
        ),
        ("worse | NLL {} and", long(FASHION, OURS, 80, "nll"), long(FASHION, NONE, 80, "nll"), True),
        (" and {} | |", long(LETTERS, OURS, 80, "nll"), long(LETTERS, NONE, 80, "nll"), True),
        ("less DropBlock {}", long(FASHION, SPATIAL, 80), long(FASHION, OURS, 80), False),
        (" and {}; ten passes", long(LETTERS, SPATIAL, 80), long(LETTERS, OURS, 80), False),
        (
            "; ten passes {} and",
            long(FASHION, SPATIAL, 80, "mc_accuracy"),
            long(FASHION, OURS, 80, "mc_accuracy"),
            False,
        ),
        (" and {} | |", long(LETTERS, SPATIAL, 80, "mc_accuracy"), long(LETTERS, OURS, 80, "mc_accuracy"), True),
        ("label smoothing | {} points", short("resnet", BOTH), short("resnet", BASELINE), True),
        ("points with shortcuts, {} without;", short("plain", BOTH), short("plain", BASELINE), True),
        ("DropBlock alone {}", short("resnet", SCHEDULED), short("resnet", BASELINE), True),
        (" and {} | |", short("plain", SCHEDULED), short("plain", BASELINE), True),
        (
            "| calibration error {} with",
            doubts(FASHION, "resnet", TEMPERATURE, "ece"),
            doubts(FASHION, "resnet", PLAIN, "ece"),
            True,
        ),
        (
            " with shortcuts, {} without; ten",
            doubts(FASHION, "plain", TEMPERATURE, "ece"),
            doubts(FASHION, "plain", PLAIN, "ece"),
            True,
        ),
        ("of DropBlock {}", doubts(FASHION, "resnet", PASSES, "ece"), doubts(FASHION, "resnet", PLAIN, "ece"), True),
        (" and {} | |", doubts(FASHION, "plain", PASSES, "ece"), doubts(FASHION, "plain", PLAIN, "ece"), True),
        (
            "| fine-tuned {}",
            doubts(FASHION, "lite0", PASSES, "occluded"),
            doubts(FASHION, "lite0", PLAIN, "occluded"),
            False,
        ),
        (
            " and {}, from scratch",
            doubts(LETTERS, "lite0", PASSES, "occluded"),
            doubts(LETTERS, "lite0", PLAIN, "occluded"),
            True,
        ),
        (
            "from scratch {}",
            doubts(FASHION, "resnet", PASSES, "occluded"),
            doubts(FASHION, "resnet", PLAIN, "occluded"),
            True,
        ),
        (
            "shortcuts and {}",
            doubts(FASHION, "plain", PASSES, "occluded"),
            doubts(FASHION, "plain", PLAIN, "occluded"),
            False,
        ),
        (
            "after 12 epochs {} points",
            short("lite0", "keep_prob 0.8", "bn_accuracy"),
            short("lite0", "keep_prob 0.8"),
            True,
        ),
        ("keep_prob 0.8, {}", short("lite0", "keep_prob 0.7", "bn_accuracy"), short("lite0", "keep_prob 0.7"), True),
        ("epochs with 0.9 {} and", long(FASHION, OURS, 80, "bn_accuracy"), long(FASHION, OURS, 80), False),
        (" and {} | |", long(LETTERS, OURS, 80, "bn_accuracy"), long(LETTERS, OURS, 80), True),
        ("less scheduled: {}", short("lite0", CONSTANT), short("lite0", SCHEDULED), True),
        ("than 40 by {} and", long(FASHION, NONE, 80), long(FASHION, NONE, 40), True),
        (" and by {} points. With", long(LETTERS, NONE, 80), long(LETTERS, NONE, 40), True),
        ("epochs without: {}", long(FASHION, OURS, 24), long(FASHION, NONE, 24), True),
        (" and {}, after 40", long(LETTERS, OURS, 24), long(LETTERS, NONE, 24), True),
        ("after 40 epochs {} and", long(FASHION, OURS, 40), long(FASHION, NONE, 40), True),
        (" and {}. - **Ten", long(LETTERS, OURS, 40), long(LETTERS, NONE, 40), True),
        ("Fashion-MNIST, by {}", long(FASHION, OURS, 80, "mc_accuracy"), long(FASHION, OURS, 80), True),
        ("points, and lost {} on", long(LETTERS, OURS, 80), long(LETTERS, OURS, 80, "mc_accuracy"), True),
        ("DropBlock, by {}", long(FASHION, NONE, 80, "ece"), long(FASHION, OURS, 80, "mc_ece"), True),
        (" and by {} points. -", long(LETTERS, NONE, 80, "ece"), long(LETTERS, OURS, 80, "mc_ece"), True),
        ("less DropBlock: {}", long(FASHION, DROPOUT, 80), long(FASHION, OURS, 80), True),
        (" and {}. All sites", long(LETTERS, DROPOUT, 80), long(LETTERS, OURS, 80), True),
        ("stages gained {}", long(LETTERS, "DropBlock, last two stages", 80), long(LETTERS, OURS, 80), True),
        (
            "passes rose by {} and",
            long(FASHION, "DropBlock, last two stages", 80, "mc_ece"),
            long(FASHION, OURS, 80, "mc_ece"),
            True,
        ),
        (
            " and by {} points. keep_prob",
            long(LETTERS, "DropBlock, last two stages", 80, "mc_ece"),
            long(LETTERS, OURS, 80, "mc_ece"),
            True,
        ),
        ("that is shown, {} and", long(FASHION, "DropBlock, keep_prob 0.8", 80), long(FASHION, OURS, 80), False),
        (" and {}, and that", long(LETTERS, "DropBlock, keep_prob 0.8", 80), long(LETTERS, OURS, 80), False),
        (
            "error rose by {} and",
            long(FASHION, "DropBlock, keep_prob 0.8", 80, "mc_ece"),
            long(FASHION, OURS, 80, "mc_ece"),
            True,
        ),
        (
            " and by {}; 0.95",
            long(LETTERS, "DropBlock, keep_prob 0.8", 80, "mc_ece"),
            long(LETTERS, OURS, 80, "mc_ece"),
            True,
        ),
        ("; 0.95 lost {} on", long(LETTERS, OURS, 80), long(LETTERS, "DropBlock, keep_prob 0.95", 80), True),
        (
            "the blocks lost {} there,",
            long(LETTERS, OURS, 80),
            long(LETTERS, "DropBlock, output of the last stage", 80),
            True,
        ),
        (
            "the map lost {}. Blocks",
            long(LETTERS, OURS, 80),
            long(LETTERS, "DropBlock, block a quarter of the map", 80),
            True,
        ),
        ("NLL there by {}. On", long(LETTERS, OURS, 80, "nll"), long(LETTERS, OURS, 80, "bn_nll"), True),
        ("regulariser, by {}", short("resnet", SCHEDULED), short("resnet", BASELINE), True),
        ("(`resnet`) and by {} without", short("plain", SCHEDULED), short("plain", BASELINE), True),
        ("smoothing it gained {} and", short("resnet", BOTH), short("resnet", BASELINE), True),
        (" and {}, label smoothing", short("plain", BOTH), short("plain", BASELINE), True),
        ("smoothing alone {}", short("resnet", "label smoothing"), short("resnet", BASELINE), True),
        (" and {}. - **Rivals,", short("plain", "label smoothing"), short("plain", BASELINE), True),
        ("difference is {}", short("lite0", SCHEDULED), short("lite0", BASELINE), False),
        ("two stages and {} in", short("lite0", "last stage only"), short("lite0", BASELINE), False),
        ("scheduled is {}", short("plain", CONSTANT), short("plain", SCHEDULED), True),
        (" in `plain`, {} in", short("resnet", CONSTANT), short("resnet", SCHEDULED), False),
        (" in `resnet` and {} in `lite0`.", short("lite0", CONSTANT), short("lite0", SCHEDULED), True),
        ("than 0.9 by {} points,", short("lite0", SCHEDULED), short("lite0", "keep_prob 0.8"), True),
        ("points, and 0.7 by {}. In", short("lite0", SCHEDULED), short("lite0", "keep_prob 0.7"), True),
        ("was worse, by {}, and", short("plain", SCHEDULED), short("plain", "keep_prob 0.95"), True),
        (", and 0.7 by {}. In `resnet`", short("plain", SCHEDULED), short("plain", "keep_prob 0.7"), True),
        ("`resnet`, by {}.", short("resnet", "block three quarters of the map"), short("resnet", SCHEDULED), True),
        ("`lite0`, by {}.", short("lite0", "branch only"), short("lite0", SCHEDULED), True),
        (
            "`lite0` came back, {} points",
            short("lite0", "keep_prob 0.7", "bn_accuracy"),
            short("lite0", "keep_prob 0.7"),
            True,
        ),
        ("DropBlock gained {}", short("resnet", SCHEDULED, "bn_accuracy"), short("resnet", SCHEDULED), True),
        (" and {}, and no", short("plain", SCHEDULED, "bn_accuracy"), short("plain", SCHEDULED), True),
        ("no regulariser {}", short("resnet", BASELINE, "bn_accuracy"), short("resnet", BASELINE), True),
        (" and {}. - **Agreement**:", short("plain", BASELINE, "bn_accuracy"), short("plain", BASELINE), True),
        (
            "accuracy, by {}",
            doubts(FASHION, "lite0", PASSES, "accuracy"),
            doubts(FASHION, "lite0", TEMPERATURE, "accuracy"),
            True,
        ),
        (
            " and by {} points. Three",
            doubts(LETTERS, "lite0", PASSES, "accuracy"),
            doubts(LETTERS, "lite0", TEMPERATURE, "accuracy"),
            True,
        ),
        (
            "ten they lost {} points",
            doubts(FASHION, "lite0", PASSES, "accuracy"),
            doubts(FASHION, "lite0", THREE, "accuracy"),
            True,
        ),
        (
            "dataset and lost {} on",
            doubts(LETTERS, "lite0", PASSES, "accuracy"),
            doubts(LETTERS, "lite0", THREE, "accuracy"),
            True,
        ),
        (
            "one network was {} and",
            doubts(FASHION, "lite0", PASSES, "nll"),
            doubts(FASHION, "lite0", ENSEMBLE, "nll"),
            False,
        ),
        (
            " and {}, the accuracy",
            doubts(LETTERS, "lite0", PASSES, "nll"),
            doubts(LETTERS, "lite0", ENSEMBLE, "nll"),
            True,
        ),
        (
            "the accuracy {}",
            doubts(FASHION, "lite0", PASSES, "accuracy"),
            doubts(FASHION, "lite0", ENSEMBLE, "accuracy"),
            True,
        ),
        (
            " and {} points.",
            doubts(LETTERS, "lite0", PASSES, "accuracy"),
            doubts(LETTERS, "lite0", ENSEMBLE, "accuracy"),
            True,
        ),
        (
            "the NLL by {} in",
            doubts(FASHION, "resnet", PLAIN, "nll"),
            doubts(FASHION, "resnet", TEMPERATURE, "nll"),
            True,
        ),
        (
            " in `resnet` and by {} in `plain`,",
            doubts(FASHION, "plain", PLAIN, "nll"),
            doubts(FASHION, "plain", TEMPERATURE, "nll"),
            True,
        ),
        ("the NLL by {} and", doubts(FASHION, "resnet", PLAIN, "nll"), doubts(FASHION, "resnet", PASSES, "nll"), True),
        (
            " and by {}. - **Accuracy,",
            doubts(FASHION, "plain", PLAIN, "nll"),
            doubts(FASHION, "plain", PASSES, "nll"),
            True,
        ),
        (
            "ensemble gained {}",
            doubts(FASHION, "resnet", ENSEMBLE, "accuracy"),
            doubts(FASHION, "resnet", PLAIN, "accuracy"),
            True,
        ),
        (
            "points in `resnet` and {} in",
            doubts(FASHION, "plain", ENSEMBLE, "accuracy"),
            doubts(FASHION, "plain", PLAIN, "accuracy"),
            True,
        ),
        (
            "gain is shown: {} and",
            doubts(FASHION, "resnet", PASSES, "accuracy"),
            doubts(FASHION, "resnet", PLAIN, "accuracy"),
            False,
        ),
        (
            " and {}. - **Rejection**:",
            doubts(FASHION, "plain", PASSES, "accuracy"),
            doubts(FASHION, "plain", PLAIN, "accuracy"),
            False,
        ),
        (
            "in `lite0` by {} and",
            doubts(FASHION, "lite0", PASSES, "rejection_area"),
            doubts(FASHION, "lite0", PLAIN, "rejection_area"),
            True,
        ),
        (
            " and by {} points. From",
            doubts(LETTERS, "lite0", PASSES, "rejection_area"),
            doubts(LETTERS, "lite0", PLAIN, "rejection_area"),
            True,
        ),
        (
            "one pass gained {} in",
            doubts(FASHION, "plain", ONCE, "rejection_area"),
            doubts(FASHION, "plain", PLAIN, "rejection_area"),
            True,
        ),
        (
            "in `resnet` ({}).",
            doubts(FASHION, "resnet", ONCE, "rejection_area"),
            doubts(FASHION, "resnet", PLAIN, "rejection_area"),
            False,
        ),
        (
            "letters: AUROC {}",
            doubts(FASHION, "lite0", ENSEMBLE, "auroc_letters"),
            doubts(FASHION, "lite0", PLAIN, "auroc_letters"),
            True,
        ),
        (
            " in `lite0`, {} in",
            doubts(FASHION, "resnet", ENSEMBLE, "auroc_letters"),
            doubts(FASHION, "resnet", PLAIN, "auroc_letters"),
            True,
        ),
        (
            " in `resnet` and {} in `plain`.",
            doubts(FASHION, "plain", ENSEMBLE, "auroc_letters"),
            doubts(FASHION, "plain", PLAIN, "auroc_letters"),
            True,
        ),
        (
            "of DropBlock: {},",
            doubts(FASHION, "lite0", PASSES, "auroc_letters"),
            doubts(FASHION, "lite0", PLAIN, "auroc_letters"),
            True,
        ),
        (
            ", {} and ",
            doubts(FASHION, "resnet", PASSES, "auroc_letters"),
            doubts(FASHION, "resnet", PLAIN, "auroc_letters"),
            False,
        ),
        (
            " and {}. - **Robustness**:",
            doubts(FASHION, "plain", PASSES, "auroc_letters"),
            doubts(FASHION, "plain", PLAIN, "auroc_letters"),
            False,
        ),
        (
            "is better, by {} and",
            doubts(FASHION, "lite0", ONCE, "dropped"),
            doubts(FASHION, "lite0", PLAIN, "dropped"),
            True,
        ),
        (
            " and by {} points in",
            doubts(LETTERS, "lite0", ONCE, "dropped"),
            doubts(LETTERS, "lite0", PLAIN, "dropped"),
            True,
        ),
        (
            "in `lite0`, by {} in",
            doubts(FASHION, "resnet", ONCE, "dropped"),
            doubts(FASHION, "resnet", PLAIN, "dropped"),
            True,
        ),
        (
            " in `resnet` and by {} in `plain`.",
            doubts(FASHION, "plain", ONCE, "dropped"),
            doubts(FASHION, "plain", PLAIN, "dropped"),
            True,
        ),
    ],
}

# The rows of the tables in the page of the study: less what, for each cell.
ROWS: dict[str, list[tuple[Key, Key] | None]] = {
    "EfficientNet-Lite0, 250 images": [
        (long(FASHION, OURS, 80), long(FASHION, NONE, 80)),
        (long(LETTERS, OURS, 80), long(LETTERS, NONE, 80)),
        (long(FASHION, OURS, 80, "mc_accuracy"), long(FASHION, NONE, 80)),
        (long(LETTERS, OURS, 80, "mc_accuracy"), long(LETTERS, NONE, 80)),
    ],
    "EfficientNet-Lite1, 250 images": [
        (long(FASHION, OURS, 80, network="lite1"), long(FASHION, NONE, 80, network="lite1")),
        (long(LETTERS, OURS, 80, network="lite1"), long(LETTERS, NONE, 80, network="lite1")),
        (long(FASHION, OURS, 80, "mc_accuracy", network="lite1"), long(FASHION, NONE, 80, network="lite1")),
        (long(LETTERS, OURS, 80, "mc_accuracy", network="lite1"), long(LETTERS, NONE, 80, network="lite1")),
    ],
    "EfficientNet-Lite0, 100 images": [
        (long(FASHION, OURS, 80, images=100), long(FASHION, NONE, 80, images=100)),
        (long(LETTERS, OURS, 80, images=100), long(LETTERS, NONE, 80, images=100)),
        (long(FASHION, OURS, 80, "mc_accuracy", images=100), long(FASHION, NONE, 80, images=100)),
        (long(LETTERS, OURS, 80, "mc_accuracy", images=100), long(LETTERS, NONE, 80, images=100)),
    ],
    "EfficientNet-Lite0, 1,000 images, 40 epochs": [
        (long(FASHION, OURS, 40, images=1000), long(FASHION, NONE, 40, images=1000)),
        (long(LETTERS, OURS, 40, images=1000), long(LETTERS, NONE, 40, images=1000)),
        (long(FASHION, OURS, 40, "mc_accuracy", images=1000), long(FASHION, NONE, 40, images=1000)),
        (long(LETTERS, OURS, 40, "mc_accuracy", images=1000), long(LETTERS, NONE, 40, images=1000)),
    ],
    "EfficientNet-Lite0, 250 images of 224 pixels": [
        (long(FASHION, OURS, 80, network="lite0-224"), long(FASHION, NONE, 80, network="lite0-224")),
        (long(LETTERS, OURS, 80, network="lite0-224"), long(LETTERS, NONE, 80, network="lite0-224")),
        (long(FASHION, OURS, 80, "mc_accuracy", network="lite0-224"), long(FASHION, NONE, 80, network="lite0-224")),
        (long(LETTERS, OURS, 80, "mc_accuracy", network="lite0-224"), long(LETTERS, NONE, 80, network="lite0-224")),
    ],
    "SpatialDropout at the same places": [
        (long(FASHION, SPATIAL, 80), long(FASHION, NONE, 80)),
        (long(LETTERS, SPATIAL, 80), long(LETTERS, NONE, 80)),
        (long(FASHION, SPATIAL, 80, "mc_accuracy"), long(FASHION, NONE, 80)),
        (long(LETTERS, SPATIAL, 80, "mc_accuracy"), long(LETTERS, NONE, 80)),
    ],
    "Dropout at the same places": [
        (long(FASHION, DROPOUT, 80), long(FASHION, NONE, 80)),
        (long(LETTERS, DROPOUT, 80), long(LETTERS, NONE, 80)),
        (long(FASHION, DROPOUT, 80, "mc_accuracy"), long(FASHION, NONE, 80)),
        (long(LETTERS, DROPOUT, 80, "mc_accuracy"), long(LETTERS, NONE, 80)),
    ],
    "DropPath 0.2 in all blocks": [
        (long(FASHION, "DropPath 0.2", 80), long(FASHION, NONE, 80)),
        (long(LETTERS, "DropPath 0.2", 80), long(LETTERS, NONE, 80)),
        None,
        None,
    ],
    "DropPath, last stage": [
        (long(FASHION, "DropPath, last stage", 80), long(FASHION, NONE, 80)),
        (long(LETTERS, "DropPath, last stage", 80), long(LETTERS, NONE, 80)),
        (long(FASHION, "DropPath, last stage", 80, "mc_accuracy"), long(FASHION, NONE, 80)),
        (long(LETTERS, "DropPath, last stage", 80, "mc_accuracy"), long(LETTERS, NONE, 80)),
    ],
    "weight decay 0.005": [
        (long(FASHION, "weight decay 0.005", 80), long(FASHION, NONE, 80)),
        (long(LETTERS, "weight decay 0.005", 80), long(LETTERS, NONE, 80)),
        None,
        None,
    ],
    "label smoothing 0.1": [
        (long(FASHION, "label smoothing 0.1", 80), long(FASHION, NONE, 80)),
        (long(LETTERS, "label smoothing 0.1", 80), long(LETTERS, NONE, 80)),
        None,
        None,
    ],
}
