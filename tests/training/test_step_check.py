"""The schedule notices in the first updates when it is not stepped once per update."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dropblock_inject import DropBlock, KeepProbSchedule
from dropblock_inject.errors import DropBlockWarning


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), DropBlock(0.9, 3), nn.Flatten(), nn.LazyLinear(2))


class Training:
    """A model, an optimizer and a schedule; `run` trains and returns the warnings."""

    def __init__(self, total_steps: int = 40, optimizer: Callable = torch.optim.SGD) -> None:
        self.model = net()
        self.images = torch.randn(2, 1, 8, 8)
        self.model(self.images)
        self.optimizer = optimizer(self.model.parameters(), lr=0.01)
        self.schedule = KeepProbSchedule(self.model, total_steps)

    def backward(self) -> None:
        self.model(self.images).sum().backward()

    def run(self, updates: int, passes: int = 1, after: Callable[[], None] | None = None) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(updates):
                for _ in range(passes):
                    self.backward()
                self.optimizer.step()
                if after:
                    after()
        assert all(issubclass(warning.category, DropBlockWarning) for warning in caught)
        return [str(warning.message) for warning in caught]


def test_once_per_update_is_silent_attached_or_by_hand() -> None:
    training = Training()
    training.schedule.attach(training.optimizer)
    assert training.run(20) == []
    training = Training()
    assert training.run(20, after=training.schedule.step) == []


def test_a_schedule_that_is_never_stepped() -> None:
    (message,) = Training().run(20)
    assert "never stepped" in message
    assert "schedule.attach(optimizer)" in message


def test_a_schedule_that_is_attached_and_stepped_by_hand() -> None:
    training = Training()
    training.schedule.attach(training.optimizer)
    (message,) = training.run(20, after=training.schedule.step)
    assert "steps in 5 updates" in message
    assert "too fast" in message


def test_steps_by_batch_under_gradient_accumulation() -> None:
    training = Training()
    training.backward = lambda: (Training.backward(training), training.schedule.step())
    (message,) = training.run(10, passes=4)
    assert "too fast" in message


def test_several_backward_passes_per_update_ask_what_total_steps_counts() -> None:
    training = Training(total_steps=400)
    training.schedule.attach(training.optimizer)
    (message,) = training.run(20, passes=4)
    assert "4 backward passes per update" in message
    assert "Does total_steps=400 count updates? Then all is well" in message
    assert "pass total_steps=100" in message


def test_updates_that_cannot_be_seen() -> None:
    """Without a change of the parameters' version, many backward passes without a step are reported too."""
    training = Training()
    training.optimizer.step = lambda: None
    (message,) = training.run(150)
    assert "100 backward passes" in message


class SAM(torch.optim.Optimizer):
    """The usual class: two steps per update, and the optimizer that makes the update inside (arXiv 2010.01412)."""

    def __init__(self, params, base: Callable = torch.optim.SGD, **options) -> None:
        super().__init__(params, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def parameters(self):
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self) -> None:
        for parameter in self.parameters():
            self.state[parameter]["moved"] = 0.01 * parameter.grad
            parameter.add_(self.state[parameter]["moved"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter in self.parameters():
            parameter.sub_(self.state[parameter]["moved"])
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure=None) -> None:
        with torch.enable_grad():
            closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


@pytest.mark.parametrize("form", ["two calls", "closure"])
def test_sam_counts_one_step_per_update(form: str) -> None:
    training = Training(total_steps=10, optimizer=SAM)
    training.schedule.attach(training.optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            if form == "closure":
                training.optimizer.step(training.backward)
            else:
                training.backward()
                training.optimizer.first_step()
                training.backward()
                training.optimizer.second_step()
    assert training.schedule.last_step == 10
    assert training.schedule.get_last_keep_prob() == [pytest.approx(0.9)]


def test_an_update_that_takes_many_passes_is_one_update() -> None:
    training = Training(total_steps=10, optimizer=lambda parameters, lr: torch.optim.LBFGS(parameters, lr, max_iter=20))
    training.schedule.attach(training.optimizer)

    def closure() -> torch.Tensor:
        training.optimizer.zero_grad()
        loss = (training.model(training.images) - 1).square().sum()
        loss.backward()
        return loss.detach()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(7):
            training.optimizer.step(closure)
    assert training.schedule.last_step == 7


def test_an_optimizer_of_another_model_is_a_warning() -> None:
    training = Training()
    with pytest.warns(DropBlockWarning, match="the Adam has no parameter of this schedule's model"):
        training.schedule.attach(torch.optim.Adam(nn.Linear(2, 2).parameters()))


def test_a_model_under_a_look_is_copied_and_saved() -> None:
    training = Training()
    training.schedule.attach(training.optimizer)
    training.run(2)
    copy.deepcopy(training.model)(training.images).sum().backward()
    torch.save(training.model, io.BytesIO())
    model, schedule = pickle.loads(pickle.dumps((training.model, training.schedule)))
    model(training.images).sum().backward()
    schedule.step()
    assert schedule.last_step == 3


def test_keep_prob_changes_after_the_backward_pass_where_an_optimizer_steps_within_it() -> None:
    """Activation checkpointing recomputes in the backward pass: with the keep_prob of the forward pass."""
    from torch.utils.checkpoint import checkpoint

    drop = DropBlock(0.3, 3)
    body, first = nn.Sequential(nn.Conv2d(1, 4, 3), drop), nn.Parameter(torch.ones(()))
    last = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([last], lr=0.1)
    schedule = KeepProbSchedule(nn.ModuleList([body, nn.ParameterList([first, last])]), 2, start=0.9)
    schedule.attach(optimizer)
    last.register_post_accumulate_grad_hook(lambda parameter: optimizer.step())
    used: list[float] = []
    drop.register_forward_pre_hook(lambda *_: used.append(drop.keep_prob))
    output = checkpoint(body, torch.randn(2, 1, 8, 8) * first, use_reentrant=False)
    (output.sum() * last).backward()
    assert used == [0.9, 0.9]
    assert schedule.last_step == 1
    assert drop.keep_prob < 0.9
