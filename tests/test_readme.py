"""What the README says can be done: its lines of Python, its commands, its table, its pictures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from dropblock_inject import KeepProbSchedule, dropblock_sites, inject_dropblock, plan_dropblock
from dropblock_inject.command.arguments import parser

ROOT = Path(__file__).parents[1]
from regularizers import PARTS  # noqa: E402

from lib.results import Results  # noqa: E402

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


def test_the_own_network_trains_stops_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(next(text for _, text in BLOCKS if "# net.py" in text), names)
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(10, (4,))) for _ in range(8)]
    trace: list[float] = []
    step = KeepProbSchedule.step
    monkeypatch.setattr(
        KeepProbSchedule, "step", lambda self: (step(self), trace.extend(self.get_last_keep_prob()[:1]))
    )

    class Interrupted(list):
        def __getitem__(self, part: slice) -> Iterator:
            yield from list(self)[part][:3]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        names["train"](Interrupted(batches))
    assert len(trace) == 3
    net = names["train"](batches)
    assert trace == pytest.approx([1 - 0.1 * done / 8 for done in range(1, 9)])
    assert dropblock_sites(net) == []
    assert plan_dropblock(net, -1, example_input=torch.empty(1, 3, 32, 32))


def test_the_commands_are_understood() -> None:
    lines = [line.split(" #")[0] for _, text in BLOCKS for line in text.splitlines() if line.startswith("dropblock-")]
    assert len(lines) >= 5
    for line in lines:
        parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("page", ["README.md", "dropblock_inject/README.md", "examples/peers.md"])
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    for target in targets:
        assert target.startswith("https://") or (ROOT / page).parent.joinpath(target).is_file(), target


def test_every_example_is_named() -> None:
    for script in (ROOT / "examples").glob("*.py"):
        assert f"{script.name}`" in README, script.name


def test_the_study_is_what_its_runs_say() -> None:
    order = {part: [setting.name for setting in settings] for part, settings in PARTS.items()}
    results = Results(ROOT / "examples" / "study" / "fashion-mnist.csv", order)
    assert results.as_markdown() in README
    for columns in results.parts.values():
        for settings in columns.values():
            assert min(map(len, settings.values())) >= 5
