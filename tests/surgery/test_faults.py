"""An error or an interrupt at any line that injection and removal run through.

A line is everything that the package, torch's Module and its hook handles execute between the start of the call and its
end. One of them raises in each run; after it the model must be what it was, and must take an injection as before. Out
of scope are faults while a fault is being mended: the mend itself runs undisturbed.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from everything import everything, hook_of_the_user
from injected import assert_live, wake_branches
from networks import EVERY_KIND, NETWORKS, example_for, images_for
from torch import nn
from torch.utils.hooks import RemovableHandle

import dropblock_inject
from dropblock_inject import InjectionPlan, check_dropblock, plan_dropblock, remove_dropblock
from dropblock_inject.surgery import splice

OF_TORCH = (sys.modules["torch.nn.modules.module"].__file__, sys.modules["torch.utils.hooks"].__file__)
OF_THE_PACKAGE = dropblock_inject.__path__[0]

Place = tuple[str, int]  # file and line
LINES_THAT_CHANGE = {
    (code.co_filename, line)
    for code in (
        *(splice._splice_one.__code__, splice.unsplice.__code__, RemovableHandle.__init__.__code__),
        *(nn.Module.add_module.__code__, nn.Module.register_forward_hook.__code__),
        *(nn.Module.register_forward_pre_hook.__code__, nn.Module.train.__code__),
    )
    for _, _, line in code.co_lines()
}


class Fault(Exception):
    """What goes wrong in a library."""


class Interrupt(BaseException):
    """What a user or a scheduler sends: no Exception, as KeyboardInterrupt is none."""


def lines_of(call: Callable[[], Any], fault_at: int | None = None, fault: type[BaseException] = Fault) -> list[Place]:
    """Calls, with a fault instead of the line with that number; returns the lines that were executed."""
    lines: list[Place] = []

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        place = frame.f_code.co_filename, frame.f_lineno
        if place[0] not in OF_TORCH and not place[0].startswith(OF_THE_PACKAGE):
            return None
        if event == "line":
            if len(lines) == fault_at:
                raise fault(f"{place[0]}:{place[1]}")  # which ends the tracing too
            lines.append(place)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


def every(lines: list[Place]) -> list[int]:
    return list(range(len(lines)))


def some(lines: list[Place]) -> list[int]:
    """Each line the first and the last time, and each time those that change the model."""
    first = {place: number for number, place in reversed(list(enumerate(lines)))}
    last = {place: number for number, place in enumerate(lines)}
    changing = {number for number, place in enumerate(lines) if place in LINES_THAT_CHANGE}
    return sorted({*first.values(), *last.values(), *changing})


def values(net: nn.Module) -> list[torch.Tensor]:
    return [*(v.clone() for v in net.state_dict().values()), *(p.grad.clone() for p in net.parameters())]


def hook_of_the_user_with_kwargs(module: nn.Module, args: tuple, kwargs: dict, output: Any = None) -> None:
    pass


# Every kind of splice at some lines; every line under the marker.
@pytest.fixture(
    params=[
        *(pytest.param((name, some), id=name) for name in ("own:concat_net", "own:conv_mixer", "timm:resnet18")),
        *(pytest.param((name, every), id=f"{name}-every", marks=pytest.mark.exhaustive) for name in EVERY_KIND),
    ]
)
def case(request: pytest.FixtureRequest) -> tuple[str, Callable[[list[Place]], list[int]]]:
    return request.param


@pytest.fixture
def name(case: tuple) -> str:
    return case[0]


@pytest.fixture
def chosen(case: tuple) -> Callable[[list[Place]], list[int]]:
    return case[1]


@pytest.fixture
def net(name: str) -> Iterator[nn.Module]:
    """In use: with gradients, a mixed mode, and hooks of the user of every kind on all its modules."""
    net = NETWORKS[name]().train()
    wake_branches(net)
    net(images_for(name)).sum().backward()
    next(iter(net.children())).eval()
    for module in net.modules():
        module.register_forward_hook(hook_of_the_user)
        module.register_forward_hook(hook_of_the_user_with_kwargs, with_kwargs=True, always_call=True)
        module.register_forward_pre_hook(hook_of_the_user)
        module.register_forward_pre_hook(hook_of_the_user_with_kwargs, with_kwargs=True)
    before, bits = everything(net), values(net)
    yield net
    remove_dropblock(net)
    assert everything(net) == before
    assert all(torch.equal(now, then) for now, then in zip(values(net), bits, strict=True))


@pytest.fixture
def plan(net: nn.Module, name: str) -> InjectionPlan:
    where = ("branch", "skip", "output")
    return plan_dropblock(net, -1, where=where, block_size=2, example_input=example_for(name))


def test_a_fault_anywhere_in_an_injection_leaves_the_model_as_it_was(
    net: nn.Module, plan: InjectionPlan, name: str, chosen: Callable[[list[Place]], list[int]]
) -> None:
    before = everything(net)
    lines = lines_of(plan.apply)
    assert remove_dropblock(net) == len(plan)
    for number in chosen(lines):
        fault = (Fault, Interrupt)[number % 2]
        with pytest.raises(fault):
            lines_of(plan.apply, number, fault)
        if number == len(lines) - 1:  # it is the return of what is done already
            assert remove_dropblock(net) == len(plan)
        assert everything(net) == before, lines[number]
        plan.apply()
        check_dropblock(net)
        assert remove_dropblock(net) == len(plan)
    plan.apply()
    with torch.random.fork_rng(devices=[]):
        assert_live(copy.deepcopy(net).train(), images_for(name), len(plan))


def test_removal_after_a_removal_that_failed_restores_the_model(
    net: nn.Module, plan: InjectionPlan, chosen: Callable[[list[Place]], list[int]]
) -> None:
    before = everything(net)
    plan.apply()
    lines = lines_of(lambda: remove_dropblock(net))
    assert everything(net) == before
    for number in chosen(lines):
        fault = (Fault, Interrupt)[number % 2]
        plan.apply()
        with pytest.raises(fault):
            lines_of(lambda: remove_dropblock(net), number, fault)
        remove_dropblock(net)
        assert everything(net) == before, lines[number]
