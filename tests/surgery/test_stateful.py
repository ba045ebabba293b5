"""Any sequence of operations on an injected model, compared with a plain model that undergoes the same operations."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from everything import everything, users_hook
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from networks import CifarResNet, ConcatNet, ConvMixer, plain_conv_net, small_efficientnet
from torch import Tensor, nn

from dropblock_inject import (
    DropBlock,
    KeepProbSchedule,
    check_dropblock,
    dropblock_disabled,
    dropblock_sites,
    inject_dropblock,
    remove_dropblock,
)
from dropblock_inject.errors import AlreadyInjectedError, ScheduleError

NETWORKS = [CifarResNet, ConcatNet, ConvMixer, plain_conv_net, small_efficientnet]
RUNS = 500 if settings.get_current_profile_name() == "thorough" else 25
SEEDS = st.integers(0, 2**32)
REQUESTS = st.fixed_dictionaries(
    {
        "stages": st.sampled_from([-1, (-2, -1)]),
        "where": st.sampled_from(["paper", "branch", "skip", "output", ("branch", "skip", "output")]),
        "keep_prob": st.floats(0.2, 0.9),
        "block_size": st.sampled_from([1, 2, 3, 7, 0.5, (2, 3)]),
        "include": st.sampled_from([None, None, "*branch*", lambda name, host: len(name) % 2 == 0]),
        "per_channel": st.booleans(),
        "rescale": st.sampled_from(["batch", "sample", "expected", None]),
    }
)


def is_injected(machine: Machine) -> bool:
    return machine.sites > 0


def is_plain(machine: Machine) -> bool:
    return machine.sites == 0


def has_schedule(machine: Machine) -> bool:
    return machine.schedule is not None


class Machine(RuleBasedStateMachine):
    @initialize(network=st.sampled_from(NETWORKS), request=REQUESTS, seed=SEEDS)
    def build(self, network: Callable[[], nn.Module], request: dict[str, Any], seed: int) -> None:
        torch.manual_seed(seed)
        self.network = network
        self.net = network()
        self.plain = copy.deepcopy(self.net)
        self.sites = 0
        self.schedule: KeepProbSchedule | None = None
        self.dtype, self.layout = torch.float32, torch.contiguous_format
        self.inject(request)  # most rules are about an injected model

    @property
    def both(self) -> tuple[nn.Module, nn.Module]:
        return self.net, self.plain

    def images(self, seed: int, batch: int = 2) -> Tensor:
        return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

    # --- injection and removal ---

    @precondition(is_plain)
    @rule(request=REQUESTS)
    def inject(self, request: dict[str, Any]) -> None:
        report = inject_dropblock(self.net, example_input=self.images(0, 1), strict=False, **request)
        self.sites = len(report)
        names = [name for name, module in self.net.named_modules() if isinstance(module, DropBlock)]
        assert sorted(site.name for site in report) == sorted(names)

    @precondition(is_injected)
    @rule(request=REQUESTS)
    def inject_again(self, request: dict[str, Any]) -> None:
        before = everything(self.net)
        with pytest.raises(AlreadyInjectedError):
            inject_dropblock(self.net, **request)
        assert everything(self.net) == before

    @precondition(is_injected)
    @rule()
    def remove(self) -> None:
        assert remove_dropblock(self.net) == self.sites
        self.sites, self.schedule = 0, None
        assert repr(self.net) == repr(self.plain)
        assert shape_of(self.net) == shape_of(self.plain)

    # --- training ---

    @rule(seed=SEEDS)
    def train_with_masks(self, seed: int) -> None:
        torch.manual_seed(seed)
        step(self.net, self.images(seed))
        self.plain.load_state_dict(self.net.state_dict(), strict=True)

    @rule(seed=SEEDS)
    def train_without_masks(self, seed: int) -> None:
        with dropblock_disabled(self.net):
            outputs = [step(one, self.images(seed)) for one in self.both]
        assert torch.equal(*outputs)

    @precondition(is_injected)
    @rule(seed=SEEDS)
    def masks_change_the_output(self, seed: int) -> None:
        net = copy.deepcopy(self.net).train()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.track_running_stats = False
            if isinstance(layer, DropBlock):
                layer.keep_prob = 0.2
        images = self.images(seed, 4)
        torch.manual_seed(seed)
        with torch.no_grad():
            outputs = [net(images) for _ in range(6)]
        assert any(not torch.equal(output, outputs[0]) for output in outputs)

    # --- the schedule ---

    @precondition(is_injected)
    @rule(
        total=st.integers(1, 20),
        mode=st.sampled_from(["linear", "cosine", "constant", "step"]),
        end=st.none() | st.floats(0.1, 1),
    )
    def make_a_schedule(self, total: int, mode: str, end: float | None) -> None:
        self.schedule = KeepProbSchedule(self.net, total, mode=mode, end=end)

    @precondition(has_schedule)
    @rule(to=st.none() | st.integers(0, 25))
    def step_the_schedule(self, to: int | None) -> None:
        assert self.schedule is not None
        before = self.schedule.last_step
        self.schedule.step(to)
        assert self.schedule.last_step == (before + 1 if to is None else to)

    @precondition(has_schedule)
    @rule(to=st.integers(0, 25))
    def save_and_load_the_schedule(self, to: int) -> None:
        assert self.schedule is not None
        saved, values = saved_and_loaded(self.schedule.state_dict()), self.schedule.get_last_keep_prob()
        self.schedule.step(to)
        self.schedule.load_state_dict(saved)
        assert self.schedule.get_last_keep_prob() == values

    @precondition(is_plain)
    @rule()
    def make_a_schedule_for_a_plain_model(self) -> None:
        with pytest.raises(ScheduleError):
            KeepProbSchedule(self.net, 10)

    # --- copies and checkpoints ---

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.net, self.schedule = copy.deepcopy((self.net, self.schedule))

    @rule()
    def go_on_with_a_pickle(self) -> None:
        self.net, self.schedule = pickle.loads(pickle.dumps((self.net, self.schedule)))

    @rule(seed=SEEDS)
    def load_into_another(self, seed: int) -> None:
        torch.manual_seed(seed)
        weights = saved_and_loaded(self.net.state_dict())
        modes = [module.training for module in self.plain.modules()]
        other = self.network().to(self.dtype, memory_format=self.layout)
        other.load_state_dict(weights, strict=True)
        images = self.images(seed)
        with torch.no_grad():
            assert torch.equal(other.eval()(images), self.plain.eval()(images))
        for module, training in zip(self.plain.modules(), modes, strict=True):
            module.training = training

    @rule(seed=SEEDS)
    def load_from_another(self, seed: int) -> None:
        torch.manual_seed(seed)
        weights = saved_and_loaded(self.network().to(self.dtype).state_dict())
        for one in self.both:
            one.load_state_dict(weights, strict=True)

    # --- operations on any model ---

    @rule(dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    def change_dtype(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        for one in self.both:
            one.to(dtype)

    @rule(layout=st.sampled_from([torch.channels_last, torch.contiguous_format]))
    def change_layout(self, layout: torch.memory_format) -> None:
        self.layout = layout
        for one in self.both:
            one.to(memory_format=layout)

    @rule(training=st.booleans())
    def change_mode(self, training: bool) -> None:
        for one in self.both:
            one.train(training)
        assert all(layer.training == training for layer in drops(self))

    @rule()
    def freeze_batch_norm(self) -> None:
        for one in self.both:
            for module in one.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
                    module.requires_grad_(False)

    @rule(place=st.integers(0, 1000))
    def add_hooks(self, place: int) -> None:
        modules = [name for name, _ in self.plain.named_modules()]
        for one in self.both:
            module = one.get_submodule(modules[place % len(modules)])
            module.register_forward_hook(users_hook)
            module.register_forward_pre_hook(users_hook)

    # --- invariants ---

    @invariant()
    def all_sites_are_present_and_live(self) -> None:
        check_dropblock(self.net)
        rows = dropblock_sites(self.net)
        assert len(rows) == self.sites == len(drops(self))
        assert all(row.live for row in rows)
        if self.schedule is not None:
            assert self.schedule.model is self.net
            assert self.schedule.get_last_keep_prob() == [row.keep_prob for row in rows]

    @invariant()
    def state_and_modes_are_those_of_the_plain_model(self) -> None:
        state, expected = (one.state_dict() for one in self.both)
        assert list(state) == list(expected)
        assert all(torch.equal(state[key], expected[key]) for key in state)
        modules = {name: module.training for name, module in self.net.named_modules()}
        assert all(modules[name] == module.training for name, module in self.plain.named_modules())

    @invariant()
    def the_output_in_eval_mode_is_that_of_the_plain_model(self) -> None:
        outputs = []
        for one in self.both:
            modes = [module.training for module in one.modules()]
            with torch.no_grad():
                outputs.append(one.eval()(self.images(1)))
            for module, training in zip(one.modules(), modes, strict=True):
                module.training = training
        assert torch.equal(*outputs)


def drops(machine: Machine) -> list[DropBlock]:
    return [module for module in machine.net.modules() if isinstance(module, DropBlock)]


def step(net: nn.Module, images: Tensor) -> Tensor:
    net.zero_grad()
    output = net(images)
    output.square().mean().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.clamp(-1, 1), alpha=0.01)
    return output.detach()


def shape_of(net: nn.Module) -> dict[str, Any]:
    """A record that is equal for two models alike: attributes, children and hooks in their order, without hook ids."""

    def held(key: str, value: Any) -> Any:
        if key == "_modules":
            return list(value)
        return list(value.values()) if isinstance(value, dict) and "hooks" in key else None

    return {
        name: (type(module), [(key, held(key, value)) for key, value in vars(module).items()])
        for name, module in net.named_modules()
    }


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=RUNS)
