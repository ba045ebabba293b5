"""The study of regularisers, on a few digits."""

from __future__ import annotations

import csv
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import regularizers
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from dropblock_inject import dropblock_sites
from lib import pool
from lib.fonts import load_letters
from lib.long_results import LongResults
from lib.results import FIELDS, Results, row_of, write
from lib.settings import LONG, PARTS, RECIPES, SWEEPS, TABLE, Recipe, Setting, applies
from lib.trials import Outcome, Scores, make_network, put_in, recalibrate, run_once, scores

matplotlib = pytest.importorskip("matplotlib")

TINY = Recipe(image_size=28, images=40, epochs=1, lr=0.05, batch_size=20, test_images=50)
SETTINGS = {setting.name: setting for setting in (*TABLE, *SWEEPS)}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "plain", TINY)
    monkeypatch.setitem(RECIPES, "resnet", TINY)


def run(folder: Path, *words: str) -> None:
    regularizers.main(["--dataset", "digits", "--jobs", "1", "--output", str(folder / "study.csv"), *words])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "study.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_settings_run_go_on_and_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, for speed."""
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda jobs, context: ThreadPoolExecutor(jobs))
    baseline, scheduled = SETTINGS["baseline"], SETTINGS["DropBlock, scheduled"]
    monkeypatch.setitem(PARTS, "table", (baseline, scheduled))
    monkeypatch.setitem(PARTS, "sweeps", (SETTINGS["branch only"],))
    run(tmp_path, "--networks", "resnet", "plain", "--seeds", "1")
    first = rows(tmp_path)
    assert [(row["network"], row["setting"]) for row in first] == [
        ("resnet", "baseline"),
        ("resnet", "DropBlock, scheduled"),
        ("resnet", "branch only"),
        ("plain", "baseline"),
        ("plain", "DropBlock, scheduled"),
    ]
    run(tmp_path, "--networks", "resnet", "plain", "--seeds", "2")
    both = rows(tmp_path)
    assert both[:5] == first
    assert [row["seed"] for row in both] == ["0"] * 5 + ["1"] * 5
    captured = capsys.readouterr()
    assert "## Less 'baseline'" in captured.out
    assert "## Less 'DropBlock, scheduled'" in captured.out
    assert "run/s" not in captured.err  # no progress bar where there is no terminal


def test_all_settings_run_in_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--networks", "resnet", "--parts", "table", "--seeds", "1")
    first = rows(tmp_path)
    assert {row["setting"] for row in first} == {setting.name for setting in TABLE}
    assert all(0 <= float(row["accuracy"]) <= 100 for row in first)
    capsys.readouterr()
    run(tmp_path, "--networks", "resnet", "--parts", "table", "--seeds", "2")
    both = rows(tmp_path)
    assert both[: len(first)] == first
    assert len(both) == 2 * len(first)
    printed = capsys.readouterr().out
    values = [float(row["accuracy"]) for row in both if row["setting"] == "baseline"]
    assert f"| baseline | {mean(values):.2f} ± {stdev(values):.2f} |" in printed
    assert "| test accuracy on digits, % | resnet, 40 images, 1 epochs (2 seeds) |" in printed
    assert "Dropout (block_size=1) less Dropout (torch's), with the standard error: resnet " in printed
    assert (tmp_path / "study.png").stat().st_size > 10_000
    run(tmp_path, "--report")
    assert rows(tmp_path) == both
    assert capsys.readouterr().out == printed


def test_differences_pair_the_runs_of_a_seed(tmp_path: Path) -> None:
    accuracies = {
        "baseline": (70.0, 80.0, 90.0),
        "label smoothing": (71.0, 81.5, 90.5),  # by 1, 1.5 and 0.5: 1.00 ± 0.29
        "DropPath": (71.0, 80.0, 89.0),  # by 1, 0 and -1
        "branch only": (60.0,),
    }
    for setting, values in accuracies.items():
        part = "sweeps" if setting == "branch only" else "table"
        runs = [*enumerate(values)]
        for seed, accuracy in (
            runs if setting == "baseline" else reversed(runs)
        ):  # the order of the lines does not matter
            write(("digits", "resnet", 40, 1, part, setting, seed, accuracy), tmp_path / "some.csv")
    order = {"table": ["baseline", "DropPath", "label smoothing"], "sweeps": ["branch only"]}
    table = Results(tmp_path / "some.csv", order).differences_as_markdown("baseline")
    assert table.splitlines() == [
        "| difference, points | resnet |",
        "|---|---|",
        "| DropPath | +0.00 ± 0.58 |",
        "| label smoothing | **+1.00 ± 0.29** |",
    ]


def test_tables_and_picture_of_both_parts(tmp_path: Path) -> None:
    for part, settings in (("table", TABLE), ("sweeps", SWEEPS)):
        for setting in settings:
            odd = setting.name == "Dropout (torch's)"  # its runs differ by 0, 1 and -1 from those of the same seed
            for seed, accuracy in enumerate((70.0, 71.0, 75.0) if odd else (70.0, 72.0, 74.0)):
                less = {"label smoothing": -40, "DropPath": 1}.get(setting.name, 0)
                write(("digits", "resnet", 40, 1, part, setting.name, seed, accuracy + less), tmp_path / "some.csv")
    write(("digits", "plain", 40, 1, "table", "baseline", 0, 50.0), tmp_path / "some.csv")
    order = {"table": [setting.name for setting in TABLE], "sweeps": [setting.name for setting in SWEEPS]}
    results = Results(tmp_path / "some.csv", order)
    table, agreement, sweeps = results.as_markdown().split("\n\n")
    assert "| baseline | 72.00 ± 2.00 | 50.00 |" in table
    assert "Dropout (torch's), with the standard error: resnet +0.00 ± 0.58." in agreement
    assert sweeps.splitlines()[2] == "| DropBlock, scheduled (as above) | 72.00 ± 2.00 |"
    assert len(sweeps.splitlines()) == 3 + len(SWEEPS)
    panels = results.plot().get_axes()
    low, shown = "label smoothing", "DropPath"
    assert [len(panel.containers) for panel in panels] == [len(TABLE) - 1, 0, len(SWEEPS) + 1]  # points with error bars
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [setting.name for setting in TABLE]
    points = {int(bars[0].get_ydata()[0]): float(bars[0].get_xdata()[0]) for bars in panels[0].containers}
    names = [setting.name for setting in TABLE]
    assert {names[place]: value for place, value in points.items() if value} == {shown: 1.0}
    (arrow,) = panels[0].texts
    assert arrow.get_text().strip() == "-40.00 ± 0.00"
    assert arrow.xy == (-10, names.index(low))
    assert panels[0].get_xlim() == panels[1].get_xlim()  # one scale for a row


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-samples", "9"], "--max-samples 9 for 10 classes; give two for each"),
        (["--device", "nowhere"], "no device nowhere"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, "--networks", "plain", *words)
    assert not (tmp_path / "study.csv").exists()


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "study.csv").write_text("dataset,network,accuracy\ndigits,resnet,70\n")
    for words in (["--networks", "resnet"], ["--report"]):
        with pytest.raises(SystemExit, match=r"the columns of .*study\.csv are not dataset, network, images"):
            run(tmp_path, *words)
    assert len((tmp_path / "study.csv").read_text().splitlines()) == 2


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there are no results in"):
        run(tmp_path, "--report")


def stages(sites) -> set[int]:
    return {site.stage for site in sites}


@pytest.mark.parametrize(
    ("network", "setting"),
    [
        *((network, setting) for network in ("plain", "resnet") for setting in (*TABLE, *SWEEPS)),
        *(("resnet", setting) for setting in LONG),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_setting_is_what_its_name_says(network: str, setting: Setting) -> None:
    if not applies(network, "table", setting):
        return
    net = make_network(network, 10, setting).train()
    schedule = put_in(net, setting, TINY.image_size, steps=2)
    sites = dropblock_sites(net)
    assert bool(sites) == setting.drops == (schedule is not None)
    if setting in LONG and sites:
        assert len(stages(sites)) == (2 if "two stages" in setting.name else 1)
        places = (
            {"output"} if "output" in setting.name else {"end"} if "DropPath" in setting.name else {"branch", "skip"}
        )
        assert {site.where for site in sites} == places
    goal = {stage: 1 - (1 - setting.keep_prob) / 4 ** (max(stages(sites)) - stage) for stage in stages(sites)}
    assert {site.keep_prob for site in sites} == ({1.0} if sites and setting.scheduled else set(goal.values()))
    torch.manual_seed(1)
    first = net(torch.randn(4, 3, 28, 28))
    assert first.shape == (4, 10)
    if schedule is not None:
        schedule.step(2)
        assert {site.stage: pytest.approx(site.keep_prob) for site in dropblock_sites(net)} == goal


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        (SETTINGS["Dropout (torch's)"], nn.Dropout),
        (SETTINGS["SpatialDropout (torch's Dropout2d)"], nn.Dropout2d),
        (Setting("", where="end", torch_layer="drop path"), StochasticDepth),
    ],
)
def test_torch_s_layers_stand_at_the_same_sites(setting: Setting, kind: type[nn.Module]) -> None:
    net = make_network("resnet", 10, setting).train()
    empty = [module for module in net.modules() if isinstance(module, kind)]
    schedule = put_in(net, setting, TINY.image_size, steps=2)
    layers = [module for module in net.modules() if isinstance(module, kind) and module not in empty]
    own = make_network("resnet", 10, Setting("")).train()
    put_in(own, replace(setting, torch_layer=""), TINY.image_size, steps=2)
    assert len(layers) == len(dropblock_sites(own))
    schedule.step(2)
    assert {round(layer.p, 6) for layer in layers} == {0.1, 0.025}


def test_letters_of_test_fonts_are_not_seen_in_training(tmp_path: Path) -> None:
    for number in range(4):
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        shutil.copy(fonts / ("DejaVuSans.ttf" if number < 2 else "cmr10.ttf"), tmp_path / f"{number}.ttf")
    train, val = load_letters(tmp_path)
    assert [label for _, label in train] == [label for _, label in val] == [*range(10)] * 2
    assert len({image.tobytes() for image, _ in train}) == len({image.tobytes() for image, _ in val}) == 10
    assert not {image.tobytes() for image, _ in train} & {image.tobytes() for image, _ in val}
    for image, _ in train:
        assert image.size == (64, 64)
        assert 6 <= image.getbbox()[1] <= 8  # the letter fills the image up to the margin
        assert 56 <= image.getbbox()[3] <= 58
    with pytest.raises(SystemExit, match="apt-get install fonts-aenigma"):
        load_letters(tmp_path / "nothing")


def test_scores_against_counting() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    found = scores(probabilities, torch.tensor([0, 1, 0, 1]))
    assert found.accuracy == 75
    assert found.nll == pytest.approx(-sum(map(math.log, (0.9, 0.1, 0.6, 0.8))) / 4)
    # Bins: two of 0.9, half of them right; one of 0.6 and one of 0.8, both right.
    assert found.ece == pytest.approx(100 * (2 * 0.4 + 0.4 + 0.2) / 4, abs=1e-4)


def test_recalibration_sees_whole_maps() -> None:
    """Afterwards BatchNorm's statistics are those that the images give in the plain network."""
    setting = replace(SETTINGS["DropBlock, constant"], keep_prob=0.3)
    net, plain = make_network("resnet", 10, setting), make_network("resnet", 10, setting)
    plain.load_state_dict(net.state_dict())
    put_in(net, setting, TINY.image_size, steps=2)
    images = torch.rand(40, 3, 28, 28)
    recalibrate(net.eval(), images)
    assert not net.training
    norms = [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1
    plain.train()(images)
    found = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, other in zip(norms, found, strict=True):
        torch.testing.assert_close(norm.running_mean, other.running_mean)
        torch.testing.assert_close(norm.running_var, other.running_var)


def test_a_run_of_ours_has_all_three_scores() -> None:
    source = ("digits", None, "", False)
    plain = run_once("resnet", TINY, SETTINGS["baseline"], 0, source, "cpu")
    ours = run_once("resnet", TINY, SETTINGS["DropBlock, constant"], 0, source, "cpu")
    assert plain.monte_carlo is None
    assert ours.monte_carlo is not None
    assert len({ours.once.nll, ours.monte_carlo.nll, ours.recalibrated.nll}) == 3
    row = dict(zip(FIELDS, row_of(("digits", "resnet", "40", "1", "table", "x", "0"), plain), strict=True))
    assert row["mc_nll"] == ""
    assert float(row["bn_nll"]) == pytest.approx(plain.recalibrated.nll, abs=1e-4)


def test_a_report_of_batchnorm_anew(tmp_path: Path) -> None:
    for seed, gain in enumerate((0.5, 1.5)):
        key = ("fashion-mnist", "resnet", "500", "60", "table", "baseline", str(seed))
        anew = Scores(70 + seed + gain, 0.8, 9 - gain)
        write(row_of(key, Outcome(Scores(70 + seed, 1.0, 9), None, anew, 1)), tmp_path / "short.csv")
    results = Results(tmp_path / "short.csv", {"table": ["baseline"], "sweeps": ["DropBlock"]})
    assert results.recalibrated_as_markdown().splitlines() == [
        "| setting | resnet, accuracy | resnet, NLL | resnet, ECE |",
        "|---|---|---|---|",
        "| baseline | +1.00 ± 0.50 | **-0.20 ± 0.00** | -1.00 ± 0.50 |",
    ]


def test_a_report_of_long_fine_tunings(tmp_path: Path) -> None:
    """Means, paired differences from none at its best number of epochs, and the points of the picture."""
    runs = {
        ("none", 12): ((70, 0.8), (74, 1.0)),
        ("none", 40): ((71, 0.9), (75, 1.1)),
        ("none", 80): ((90, 0.1),),  # fewer seeds: not in the running
        ("DropBlock, last stage", 40): ((72, 1.0), (75.5, 1.0)),
    }
    for (setting, epochs), pairs in runs.items():
        for seed, (accuracy, nll) in enumerate(pairs):
            once = Scores(accuracy, nll, 10)
            passes = Scores(accuracy + 1, nll / 2, 5) if "DropBlock" in setting else None
            anew = Scores(accuracy + 0.5 + seed, nll, 10)
            key = ("fashion-mnist", "lite0", "250", str(epochs), "long", setting, str(seed))
            write(row_of(key, Outcome(once, passes, anew, 1)), tmp_path / "long.csv")
    results = LongResults(tmp_path / "long.csv", [setting.name for setting in LONG])
    (training,) = results.runs
    assert results.best(training)["none"] == ("none", 40)
    lines = results.as_markdown().splitlines()
    assert "All, less 'none' with 40 epochs and one pass, with the same seed." in lines
    assert any(line.startswith("| none | 12 | 2 | 72.00 ± 2.83 | 0.90 ± 0.14 | 10.00 ± 0.00 |") for line in lines)
    difference, same = [
        line for line in lines if line.startswith("| DropBlock, last stage | 40 | 2 | **+0.75 ± 0.25**")
    ]
    assert difference == same  # in the summary and in the whole table
    assert sum(line.startswith("| none | 12 |") for line in lines) == 3  # not in the summary
    assert "| none | 40 | 2 | +1.00 ± 0.50 | +0.00 ± 0.00 | +0.00 ± 0.00 |" in lines  # BatchNorm anew: +0.5, +1.5
    assert "| **+1.75 ± 0.25** | **-0.50 ± 0.10** | **-5.00 ± 0.00** |" in difference
    panels = results.plot().get_axes()
    assert [len(panel.containers) for panel in panels] == [3, 3, 3]
    line, _, (bars,) = panels[0].containers[0].lines
    assert [*line.get_xdata()] == [12, 40]  # the point of a single seed has no error, so it is left out
    assert [*line.get_ydata()] == [72, 73]
    lengths = [top - bottom for (_, bottom), (_, top) in bars.get_segments()]
    assert lengths == pytest.approx([2 * 2, 2 * 2])  # one standard error to both sides
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == ["12", "40", "80"]
    key = ("fashion-mnist", "lite1", "250", "40", "long", "none", "0")
    write(row_of(key, Outcome(once, None, anew, 1)), tmp_path / "long.csv")
    with_another = LongResults(tmp_path / "long.csv", [])
    assert len(with_another.runs) == 2
    assert len(with_another.plot().get_axes()) == 3  # of the training with the most numbers of epochs
    regularizers.main(["--report", "--output", str(tmp_path / "long.csv")])
    assert (tmp_path / "long-epochs.png").stat().st_size > 10_000
