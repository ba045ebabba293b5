"""Checkpoints of an injected model are plain data: loading one runs no code."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch
from networks import CifarResNet

from dropblock_inject import KeepProbSchedule, inject_dropblock, remove_dropblock

_imported: list[str] | None = None


def _listen(event: str, arguments: tuple) -> None:
    if _imported is not None and event == "pickle.find_class":
        _imported.append(".".join(arguments[:2]))


sys.addaudithook(_listen)


@pytest.fixture
def imported_by_pickles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that pickles import while they are loaded during the test."""
    monkeypatch.setattr(sys.modules[__name__], "_imported", found := [])
    return found


def saved(state: dict[str, Any]) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_training_saving_and_resuming_load_no_pickled_code(imported_by_pickles) -> None:
    def start() -> tuple:
        net = CifarResNet()
        inject_dropblock(net, -1, block_size=2, example_input=torch.empty(1, 3, 32, 32))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        schedule = KeepProbSchedule(net, total_steps=4)
        schedule.attach(optimizer)
        return net, optimizer, schedule

    def step(net, optimizer) -> None:
        optimizer.zero_grad()
        net(torch.randn(2, 3, 32, 32)).square().mean().backward()
        optimizer.step()

    run = start()
    for _ in range(2):
        step(*run[:2])
    file = saved({str(number): part.state_dict() for number, part in enumerate(run)})
    assert imported_by_pickles == []

    checkpoint = torch.load(file, weights_only=True)  # refuses everything but plain data
    resumed = start()
    for number, part in enumerate(resumed):
        part.load_state_dict(checkpoint[str(number)])
    for net, optimizer, _ in (run, resumed):
        torch.manual_seed(1)
        step(net, optimizer)
    assert all(map(torch.equal, run[0].state_dict().values(), resumed[0].state_dict().values()))
    assert run[2].state_dict() == resumed[2].state_dict()
    for net, *_ in (run, resumed):
        assert remove_dropblock(net) > 0
    assert imported_by_pickles == []


def test_the_listener_records_a_pickle(imported_by_pickles) -> None:
    torch.load(saved({"module": torch.nn.ReLU()}), weights_only=False)
    assert "torch.nn.modules.activation.ReLU" in imported_by_pickles
