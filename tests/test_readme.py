"""What the README says can be done: its lines of Python, its commands, its table, its pictures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from networks import CifarResNet

from dropblock_inject import dropblock_sites, inject_dropblock
from dropblock_inject.cli import _parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_lines_run(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    names = {"loader": range(100), "epochs": 3}
    exec(next(text for kind, text in BLOCKS if kind == "python"), names)
    assert "DropBlock in ResNet: 36 sites in 9 blocks" in capsys.readouterr().out
    for _ in range(300):
        names["optimizer"].step()
    assert {site.keep_prob for site in dropblock_sites(names["model"])} == {0.975, 0.9}


def test_the_table_is_what_it_prints() -> None:
    torchvision = pytest.importorskip("torchvision")
    table = next(text for kind, text in BLOCKS if not kind and text.startswith("DropBlock in ResNet"))
    assert str(inject_dropblock(torchvision.models.resnet18())) == table.strip()


def test_the_lines_for_an_own_network_run() -> None:
    net = CifarResNet(1)
    exec(
        next(text for _, text in BLOCKS if "inject_dropblock(net" in text),
        {
            "net": net,
            "torch": torch,
            "inject_dropblock": inject_dropblock,
        },
    )
    assert len(dropblock_sites(net)) > 0


def test_the_commands_are_understood() -> None:
    lines = [line.split(" #")[0] for _, text in BLOCKS for line in text.splitlines() if line.startswith("dropblock-")]
    assert len(lines) >= 5
    for line in lines:
        _parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("page", ["README.md", "dropblock_inject/README.md", "examples/peers.md"])
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    for target in targets:
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).is_file(), target


def test_every_example_is_named() -> None:
    """But for those that others import."""
    shared = {"checkpoint", "data", "models", "results", "scenes", "small_networks"}
    for script in (ROOT / "examples").glob("*.py"):
        assert script.stem in shared or f"{script.name}`" in README, script.name
