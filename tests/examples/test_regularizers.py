"""The study of regularisers, on a few digits."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import pytest
import regularizers
import torch
from regularizers import RECIPES, SWEEPS, TABLE, Recipe, Setting, applies, make_network, put_in
from torch.nn import functional as F

from dropblock_inject import DropBlock, dropblock_sites
from lib.results import Results, write

pytest.importorskip("matplotlib")

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
    monkeypatch.setattr(regularizers, "ProcessPoolExecutor", lambda jobs, context: ThreadPoolExecutor(jobs))
    baseline, scheduled = SETTINGS["baseline"], SETTINGS["DropBlock, scheduled"]
    monkeypatch.setitem(regularizers.PARTS, "table", (baseline, scheduled))
    monkeypatch.setitem(regularizers.PARTS, "sweeps", (SETTINGS["branch only"],))
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
    assert "Reference: baseline." in captured.out
    assert "Reference: DropBlock, scheduled." in captured.out
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
    for part, settings in regularizers.PARTS.items():
        for setting in settings:
            for seed, accuracy in enumerate((70.0, 72.0, 74.0)):
                write(("digits", "resnet", 40, 1, part, setting.name, seed, accuracy), tmp_path / "some.csv")
    write(("digits", "plain", 40, 1, "table", "baseline", 0, 50.0), tmp_path / "some.csv")
    order = {"table": [setting.name for setting in TABLE], "sweeps": [setting.name for setting in SWEEPS]}
    results = Results(tmp_path / "some.csv", order)
    table, agreement, sweeps = results.as_markdown().split("\n\n")
    assert "| baseline | 72.00 ± 2.00 | 50.00 |" in table
    assert "Dropout (torch's), with the standard error: resnet +0.00 ± 1.63." in agreement
    assert sweeps.splitlines()[2] == "| DropBlock, scheduled (as above) | 72.00 ± 2.00 |"
    assert len(sweeps.splitlines()) == 3 + len(SWEEPS)
    panels = results.plot().get_axes()
    assert [len(panel.containers) for panel in panels] == [len(TABLE), 1, len(SWEEPS) + 1]  # points with error bars
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [setting.name for setting in TABLE]
    assert {float(bars[0].get_xdata()[0]) for bars in panels[0].containers} == {72.0}


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


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there are no results in"):
        run(tmp_path, "--report")


def stages(sites) -> set[int]:
    return {site.stage for site in sites}


@pytest.mark.parametrize("network", ["plain", "resnet"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_what_its_name_says(network: str, name: str) -> None:
    setting = SETTINGS[name]
    if not applies(network, setting):
        return
    net = make_network(network, 10, setting).train()
    schedule = put_in(net, setting, TINY.image_size, steps=2)
    sites = dropblock_sites(net)
    assert bool(sites) == setting.drops == (schedule is not None)
    goal = {stage: 1 - (1 - setting.keep_prob) / 4 ** (max(stages(sites)) - stage) for stage in stages(sites)}
    assert {site.keep_prob for site in sites} == ({1.0} if sites and setting.scheduled else set(goal.values()))
    torch.manual_seed(1)
    first = net(torch.randn(4, 3, 28, 28))
    assert first.shape == (4, 10)
    if schedule is not None:
        schedule.step(2)
        assert {site.stage: pytest.approx(site.keep_prob) for site in dropblock_sites(net)} == goal


@pytest.mark.parametrize(
    ("name", "layer"), [("Dropout (torch's)", F.dropout), ("SpatialDropout (torch's Dropout2d)", F.dropout2d)]
)
def test_torch_s_layers_stand_at_the_same_sites(name: str, layer) -> None:
    net = make_network("resnet", 10, SETTINGS[name]).train()
    put_in(net, SETTINGS[name], TINY.image_size, steps=2)
    sites = [module for module in net.modules() if isinstance(module, DropBlock)]
    deepest = max(sites, key=lambda site: 1 - site.keep_prob)
    own = make_network("resnet", 10, Setting("")).train()
    put_in(own, Setting(""), TINY.image_size, steps=2)
    assert len(sites) == len(dropblock_sites(own))
    x = torch.rand(2, 8, 7, 7)
    torch.manual_seed(3)
    found = deepest(x)
    torch.manual_seed(3)
    assert torch.equal(found, layer(x, 1 - 0.9))
    assert torch.equal(deepest.eval()(x), x)
