"""The study of uncertainty: its measures against counting, and a run of it on a few digits."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import uncertainty

from dropblock_inject import dropblock_sites, inject_dropblock
from lib import doubts
from lib.doubts_results import DoubtsResults, write
from lib.settings import RECIPES, Recipe
from lib.small_networks import PlainConvNet
from lib.trials import Images, load

pytest.importorskip("matplotlib")

TINY = Recipe(image_size=28, images=40, epochs=1, lr=0.05, batch_size=20, test_images=50)
DIGITS = ("digits", None, "", False)


def test_the_temperature_of_overconfident_logits_is_found() -> None:
    logits = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0)) * 2
    labels = torch.distributions.Categorical(logits=logits).sample()
    assert doubts.fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)


def test_curves_against_counting() -> None:
    probabilities = torch.tensor([[0.62, 0.38], [0.05, 0.95], [0.75, 0.25], [0.48, 0.52]])
    labels = torch.tensor([1, 1, 0, 1])  # by confidence: right, right, wrong, right
    curve = doubts.rejection_curve(probabilities, labels)
    assert curve.tolist() == pytest.approx([100, 100, 200 / 3, 75])
    assert doubts.area_under_rejection(probabilities, labels) == pytest.approx((275 + 200 / 3) / 4)
    bins = doubts.reliability(probabilities, labels)
    assert bins["shares"] == [0, 0, 0, 0, 0, 25, 25, 25, 0, 25]
    assert bins["confidences"] == pytest.approx([0, 0, 0, 0, 0, 52, 62, 75, 0, 95])
    assert bins["accuracies"] == [0, 0, 0, 0, 0, 100, 0, 100, 0, 100]


def test_the_auroc_is_the_share_of_pairs_in_order() -> None:
    known = torch.tensor([[0.9, 0.1], [0.6, 0.4], [1.0, 0.0]])
    unknown = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    # The pair of (0.6, 0.4) and (0.2, 0.8) alone is in the wrong order.
    assert doubts.unknown_auroc(known, unknown) == pytest.approx(100 * 5 / 6, abs=1e-3)


@pytest.mark.parametrize("percent", [10, 50])
def test_a_square_covers_its_share_of_each_image(percent: int) -> None:
    images = torch.rand(50, 3, 40, 40) + 1
    found = doubts.occlude(images, percent)
    grey = (found == 0).all(1)
    assert torch.equal(found[:, 0][~grey], images[:, 0][~grey])
    side = round(40 * (percent / 100) ** 0.5)
    assert grey.sum((1, 2)).tolist() == [side**2] * 50
    assert (grey.any(1).sum(1) == side).all()  # a square in one piece
    assert len({tuple(square.flatten().tolist()) for square in grey}) > 10
    assert torch.equal(found, doubts.occlude(images, percent))


def test_blocks_dropped_at_test_time() -> None:
    net = PlainConvNet(10).eval()
    images = torch.randn(64, 3, 28, 28)
    labels = net(images).argmax(1)
    inject_dropblock(net, (-2, -1), block_size=1, where="branch", example_input=images)
    accuracies = [
        doubts.accuracy_with_dropped_blocks(net, "branch", images, labels, percent) for percent in (0, 10, 90)
    ]
    assert accuracies[0] == 100
    assert accuracies[0] > accuracies[2]
    sites = dropblock_sites(net)
    assert {site.block_size for site in sites} == {0.5}
    assert len({site.stage for site in sites}) == 1


def test_held_out_images_are_not_trained_on() -> None:
    recipe = replace(TINY, images=50)
    images, held_out, labels = uncertainty.load_with_held_out(DIGITS, recipe)
    assert torch.equal(images.train, load(DIGITS, 28, (50, 50)).train)
    assert labels.tolist() == [*range(10)]
    trained = {image.numpy().tobytes() for image in images.train}
    assert not trained & {image.numpy().tobytes() for image in held_out}


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few digits, in this process; random images stand for those of other datasets."""

    def some_images(source, size: int, limits: tuple[int, int]) -> Images:
        if source[0] == "digits":
            return load(source, size, (limits[0], 50))
        return load(DIGITS, size, (10, 10))._replace(train=torch.randn(20, 3, size, size))

    def run_all(function, runs, jobs, keep) -> None:
        for key, arguments in runs.items():
            keep(key, function(*arguments))

    monkeypatch.setitem(RECIPES, "resnet", replace(TINY, images=50))
    monkeypatch.setattr(uncertainty, "load", some_images)
    monkeypatch.setattr(uncertainty, "run_all", run_all)


def run(folder: Path, *words: str) -> list[dict[str, str]]:
    words = ("--dataset", "digits", "--networks", "resnet", "--jobs", "1", *words)
    uncertainty.main([*words, "--output", str(folder / "doubts.csv")])
    with (folder / "doubts.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("_tiny")
def test_the_study_runs_goes_on_and_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path, "--settings", "none", "DropBlock", "--seeds", "1")
    methods = [("none", method) for method in ("one pass", "temperature scaling", "ensemble of five")]
    methods += [("DropBlock", method) for method in ("one pass", "3 passes", "10 passes")]
    assert [(line["setting"], line["method"]) for line in first] == methods
    for line in first:
        whole = line["method"] != "3 passes"
        assert len(line["occluded"].split()) == (5 if whole else 0)
        assert bool(line["auroc_letters"]) == bool(line["auroc_fashion-mnist"]) == whole
        assert not line["auroc_digits"]
        assert len(line["dropped"].split()) == (3 if line["method"] == "one pass" else 0)
    plain, scaled, ensemble, *_ = first
    assert plain["accuracy"] == scaled["accuracy"]
    assert len({plain["nll"], scaled["nll"], ensemble["nll"]}) == 3
    both = run(tmp_path, "--settings", "none", "--seeds", "2")
    assert both[: len(first)] == first
    assert [line["seed"] for line in both] == ["0"] * 6 + ["1"] * 3
    printed = capsys.readouterr().out
    assert "### resnet, 50 images of digits, 1 epochs" in printed
    run(tmp_path, "--report")
    assert capsys.readouterr().out in printed
    assert (tmp_path / "doubts.png").stat().st_size > 10_000


def test_tables_pair_the_runs_of_a_seed(tmp_path: Path) -> None:
    def lines(setting: str, seed: int, method: str, accuracy: float, occluded: str) -> None:
        key = ("digits", "resnet", "40", "1", setting, str(seed))
        write(key, {method: {"accuracy": str(accuracy), "occluded": occluded}}, tmp_path / "some.csv")

    for seed, accuracy in enumerate((70, 80, 90)):
        lines("DropBlock", seed, "10 passes", accuracy + (1, 1.5, 0.5)[seed], "60 40")
        lines("none", seed, "one pass", accuracy, "50 40")
        lines("none", seed, "temperature scaling", accuracy - 1, "50 40")
    lines("DropBlock", 0, "3 passes", 70, "")
    table = DoubtsResults(tmp_path / "some.csv", uncertainty.NAMES).as_markdown().splitlines()
    assert "| method | seeds | accuracy, % | accuracy under a square, % |" in table
    assert "| none | 3 | 80.00 ± 5.77 | 45.00 ± 0.00 |" in table
    assert "| DropBlock, 3 passes | 1 | 70.00 |  |" in table  # a single seed has no error
    assert "| DropBlock, 10 passes | 3 | **+1.00 ± 0.29** | **+5.00 ± 0.00** |" in table
    scaled = table[table.index("Differences from 'none, temperature scaling' of the same seed.") :]
    assert "| DropBlock, 10 passes | 3 | **+2.00 ± 0.29** | **+5.00 ± 0.00** |" in scaled


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there are no results in"):
        uncertainty.main(["--report", "--output", str(tmp_path / "nothing.csv")])
