"""Accelerate needs no integration: it checkpoints the schedule, and attach takes its optimizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from digits import digits
from networks import CifarResNet
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dropblock_inject import KeepProbSchedule, inject_dropblock

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")


class Run:
    def __init__(self, accumulate: int = 1, total_steps: int = 12) -> None:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        torch.manual_seed(0)
        model = CifarResNet(1)
        inject_dropblock(model, (-2, -1), keep_prob=0.7, block_size=3, example_input=torch.empty(1, 3, 32, 32))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        loader = DataLoader(TensorDataset(*digits(96)), 16)
        self.model, self.optimizer, loader = accelerator.prepare(model, optimizer, loader)
        self.batches = [batch for _ in range(2) for batch in loader]  # now, because a loader draws random numbers
        self.schedule = KeepProbSchedule(self.model, total_steps, verify=True)
        self.schedule.attach(self.optimizer)
        accelerator.register_for_checkpointing(self.schedule)
        self.accelerator = accelerator

    def train(self, first: int, last: int) -> list[tuple[list[float], float]]:
        """Trains on the micro-batches first, ..., last - 1. Returns keep_prob of all sites and the loss of each."""
        trace = []
        for images, labels in self.batches[first:last]:
            with self.accelerator.accumulate(self.model):
                loss = F.cross_entropy(self.model(images), labels)
                trace.append((self.schedule.get_last_keep_prob(), loss.item()))
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return trace


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_and_resumed_training_is_the_uninterrupted_one(tmp_path: Path, accumulate: int) -> None:
    whole = Run(accumulate)
    trace = whole.train(0, 12)
    assert whole.schedule.last_step == 12 // accumulate
    assert len({tuple(values) for values, _ in trace}) == 12 // accumulate
    first = Run(accumulate)
    begun = first.train(0, 4)
    first.accelerator.save_state(str(tmp_path))
    first.train(4, 6)
    second = Run(accumulate)
    second.accelerator.load_state(str(tmp_path))
    assert second.schedule.last_step == 4 // accumulate
    assert begun + second.train(4, 12) == trace


def test_another_length_is_refused(tmp_path: Path) -> None:
    run = Run()
    run.train(0, 2)
    run.accelerator.save_state(str(tmp_path))
    with pytest.raises(RuntimeError, match="total_steps was 12 and is now 20"):
        Run(total_steps=20).accelerator.load_state(str(tmp_path))
