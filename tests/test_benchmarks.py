"""The benchmarks run, with tiny settings, and measure the implementations that they name."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("dropblock", reason="the benchmarks compare with it: pip install -e '.[benchmark]'")

import layers
import monte_carlo
import operators
import scaling
import sites
import training_step


def rows(printed: str) -> list[list[str]]:
    """The cells of the lines of all tables, without headers."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "ratio" not in line]


def test_operators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(operators, "RESNET_50", ((4, 28, 28), (4, 14, 14)))
    operators.main(["--seconds", "0", "--batch", "8", "--device", "cpu", "--output", str(tmp_path / "table")])
    names = list(layers.layers(0.9, 7))
    printed = rows(capsys.readouterr().out)
    assert [row[0] for row in printed] == names
    with (tmp_path / "table.csv").open() as file:
        found = {row["layer"]: row for row in csv.DictReader(file)}
    assert list(found) == names
    assert all(float(row[column]) > 0 for row in found.values() for column in ("forward_s", "both_s"))
    size = 8 * 4 * 14 * 14 * 4
    saved = {name: int(row["saved_bytes"]) for name, row in found.items()}
    assert saved[operators.FLOOR] == 0
    assert 0 < saved[layers.OURS] < size / 10
    assert saved["F.dropout2d"] < size <= saved[layers.TIMM]
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_scaling(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(scaling, "BASE", {"batch": 2, "side": 8, "channels": 4, "sites": 1})
    monkeypatch.setattr(scaling, "GROWTH", {"batch": (1, 2), "sites": (3,)})
    calls: list[torch.Size] = []
    operator = scaling.drop_block
    monkeypatch.setattr(scaling, "drop_block", lambda x, *options: calls.append(x.shape) or operator(x, *options))
    scaling.main(["--seconds", "0", "--device", "cpu"])
    assert [row[:2] for row in rows(capsys.readouterr().out)] == [["batch", "1"], ["batch", "2"], ["sites", "3"]]
    # A warm-up and five timed runs of each row: one with images of one, one and three sites with two images.
    assert calls == [torch.Size((1, 4, 8, 8))] * 6 + [torch.Size((2, 4, 8, 8))] * 24


def test_training_step(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    calls = {layers.OURS: 0, layers.TORCHVISION: 0}

    def counted(name: str) -> Callable:
        operator = layers.OPERATORS[name]

        def call(*args, **options):
            calls[name] += 1
            return operator(*args, **options)

        return call

    for name in calls:
        monkeypatch.setitem(layers.OPERATORS, name, counted(name))
    arguments = ["--networks", "test_resnet", "--batch", "2", "--image-size", "64", "--seconds", "0"]
    training_step.main([*arguments, "--device", "cpu"])
    printed = rows(capsys.readouterr().out)
    kinds = [row[1] for row in printed]
    sites = int(kinds[1].split(", ")[1].split()[0])
    assert kinds == ["none, 0 sites", f"dropblock_inject, {sites} sites", f"torchvision's layer, {sites} sites"]
    assert sites > 0
    assert calls == {layers.OURS: 6 * sites, layers.TORCHVISION: 6 * sites}  # a warm-up and five timed runs


def test_sites(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    on_the_page = sites.MAPS
    monkeypatch.setattr(sites, "MAPS", (((2, 4, 7, 7), 0.9, 0.5),))
    calls: list[torch.Size] = []
    operator = layers.OPERATORS[layers.OURS]
    monkeypatch.setitem(
        layers.OPERATORS,
        layers.OURS,
        lambda x, *args, **options: calls.append(x.shape) or operator(x, *args, **options),
    )
    picture = tmp_path / "sites.png"
    arguments = ["--networks", "cifar_resnet14", "--seconds", "0", "--device", "cpu", "--output", str(picture)]
    sites.main(arguments)
    printed = capsys.readouterr().out
    header, of_map, of_network = rows(printed)
    assert of_map[0] == "2x4x7x7, keep_prob 0.9, block 0.5"
    assert all(float(cell.removesuffix(" µs")) > 0 for cell in of_map[1:])
    assert of_network[0].startswith("cifar_resnet14")
    assert len(of_map) == len(of_network) == 1 + len(layers.OPERATORS)
    assert all(0.5 < float(ratio) < 20 for ratio in of_network[1:])
    # A warm-up and five timed runs: of ten calls for the map, and of the twelve sites of stages 2 and 3.
    assert calls.count(torch.Size((2, 4, 7, 7))) == 6 * 10
    assert calls.count(torch.Size((64, 64, 8, 8))) == calls.count(torch.Size((64, 32, 16, 16))) == 6 * 6
    assert picture.stat().st_size > 1000
    page = (Path(sites.__file__).parent / "README.md").read_text().split("## A site on a small map")[1]
    shown = rows(page.split("The second command")[0])
    assert shown[0] == header
    labels = [f"{'x'.join(map(str, shape))}, keep_prob {keep}, block {block}" for shape, keep, block in on_the_page]
    assert [re.sub(r", step.*", "", row[0]) for row in shown[1:]] == [*labels, *sites.NETWORKS]


def test_monte_carlo(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    calls = {"forward": 0, "mc_predict": 0}
    mc_predict, get_model, inject = monte_carlo.mc_predict, monte_carlo.get_model, monte_carlo.inject_dropblock

    def counted_predict(*args, **options):
        calls["mc_predict"] += 1
        return mc_predict(*args, **options)

    def counted_model(name: str) -> torch.nn.Module:
        model = get_model(name)
        model.conv1.register_forward_hook(lambda *_: calls.update(forward=calls["forward"] + 1))
        return model

    def inject_and_count(*args) -> None:
        inject(*args)
        calls["forward"] = 0  # the plan runs the model too

    monkeypatch.setattr(monte_carlo, "inject_dropblock", inject_and_count)
    monkeypatch.setattr(monte_carlo, "mc_predict", counted_predict)
    monkeypatch.setattr(monte_carlo, "get_model", counted_model)
    monkeypatch.setattr(monte_carlo, "STAGES", ((4,),))
    options = ["--model", "resnet18", "--batch", "1", "--samples", "3", "--seconds", "0", "--device", "cpu"]
    monte_carlo.main(options)
    header, row = rows(capsys.readouterr().out)
    assert header[0] == "DropBlock in stages"
    assert row[0] == "4"
    assert calls["mc_predict"] == 6  # a warm-up and five timed runs
    # A plain pass, mc_predict, which runs the beginning once, and the loop. Two traces find where the beginning ends.
    assert calls["forward"] == 6 * (1 + 1 + 3) + 2
