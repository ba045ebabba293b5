"""An error or an interrupt at any line of an injection or a removal leaves the model as it was, ready to be injected.

The lines are those of the package, of torch's Module and of its hook handles that run during the call. Each run raises
at one of them. A second fault while the model is being restored is out of scope.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from everything import everything, users_hook
from injected import assert_live, wake_branches
from networks import EVERY_KIND, NETWORKS, example_for, images_for
from torch import nn

import dropblock_inject
from dropblock_inject import InjectionPlan, check_dropblock, plan_dropblock, remove_dropblock

OF_TORCH = (sys.modules["torch.nn.modules.module"].__file__, sys.modules["torch.utils.hooks"].__file__)
OF_THE_PACKAGE = dropblock_inject.__path__[0]

Line = tuple[str, int, bool]  # file, number in the file, whether the line before it changed the model
Choice = Callable[[list[Line]], list[int]]


class Fault(Exception):
    """An error in a library."""


class Interrupt(BaseException):
    """A signal of the user or of a scheduler: not an Exception, like KeyboardInterrupt."""


def lines_of(
    net: nn.Module, call: Callable[[], Any], fault_at: int | None = None, fault: type[BaseException] = Fault
) -> list[Line]:
    """Calls, and raises `fault` in place of line number `fault_at`. Returns the lines that were executed."""
    lines: list[Line] = []
    modules = list(net.modules())
    now = sizes(modules)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal now
        file = frame.f_code.co_filename
        if file not in OF_TORCH and not file.startswith(OF_THE_PACKAGE):
            return None
        if event == "line":
            if len(lines) == fault_at:
                raise fault(f"{file}:{frame.f_lineno}")  # this ends the tracing too
            before, now = now, sizes(modules) if fault_at is None else now
            lines.append((file, frame.f_lineno, now != before))
        return trace

    tracing = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(tracing)
    return lines


def sizes(modules: list[nn.Module]) -> list[tuple]:
    """Differs after every change of attributes, children, hooks and modes."""
    tables = [[len(value) for value in vars(module).values() if isinstance(value, dict)] for module in modules]
    return [(len(vars(module)), module.training, *table) for module, table in zip(modules, tables, strict=True)]


def every(lines: list[Line]) -> list[int]:
    return list(range(len(lines)))


def some(lines: list[Line]) -> list[int]:
    """Each line the first and the last time, and the lines around every change of the model."""
    first = {line[:2]: number for number, line in reversed(list(enumerate(lines)))}
    last = {line[:2]: number for number, line in enumerate(lines)}
    changed = [number for number, line in enumerate(lines) if line[2]]
    assert len(changed) >= 10
    around = {number + offset for number in changed for offset in (-1, 0, 1, 2)}
    return sorted({*first.values(), *last.values(), *around & {*range(len(lines))}})


def values(net: nn.Module) -> list[torch.Tensor]:
    return [*(v.clone() for v in net.state_dict().values()), *(p.grad.clone() for p in net.parameters())]


def users_hook_with_kwargs(module: nn.Module, args: tuple, kwargs: dict, output: Any = None) -> None:
    pass


# Together the networks have every kind of site.
@pytest.fixture(
    params=[
        *(pytest.param((name, some), id=name) for name in ("own:concat_net", "own:conv_mixer", "timm:resnet18")),
        *(pytest.param((name, every), id=f"{name}-every", marks=pytest.mark.exhaustive) for name in EVERY_KIND),
    ]
)
def case(request: pytest.FixtureRequest) -> tuple[str, Choice]:
    return request.param


@pytest.fixture
def name(case: tuple) -> str:
    return case[0]


@pytest.fixture
def chosen(case: tuple) -> Choice:
    return case[1]


@pytest.fixture
def net(name: str) -> Iterator[nn.Module]:
    """A network in use: gradients, some modules in eval mode, the user's hooks of every kind on all modules."""
    net = NETWORKS[name]().train()
    wake_branches(net)
    net(images_for(name)).sum().backward()
    next(iter(net.children())).eval()
    for module in net.modules():
        module.register_forward_hook(users_hook)
        module.register_forward_hook(users_hook_with_kwargs, with_kwargs=True, always_call=True)
        module.register_forward_pre_hook(users_hook)
        module.register_forward_pre_hook(users_hook_with_kwargs, with_kwargs=True)
    before, bits = everything(net), values(net)
    yield net
    remove_dropblock(net)
    assert everything(net) == before
    assert all(torch.equal(now, then) for now, then in zip(values(net), bits, strict=True))


@pytest.fixture
def plan(net: nn.Module, name: str) -> InjectionPlan:
    where = ("branch", "skip", "output")
    plan = plan_dropblock(net, -1, where=where, block_size=2, example_input=example_for(name))
    plan.apply()  # a first time, in which it puts in the layers that it made to check them; later it makes them anew
    remove_dropblock(net)
    return plan


def test_a_fault_in_an_injection_leaves_the_model_as_it_was(
    net: nn.Module, plan: InjectionPlan, name: str, chosen: Choice
) -> None:
    before = everything(net)
    lines = lines_of(net, plan.apply)
    assert remove_dropblock(net) == len(plan)
    for number in chosen(lines):
        fault = (Fault, Interrupt)[number % 2]
        with pytest.raises(fault):
            lines_of(net, plan.apply, number, fault)
        if number == len(lines) - 1:  # the return statement: the injection is complete
            assert remove_dropblock(net) == len(plan)
        assert everything(net) == before, lines[number]
        plan.apply()
        check_dropblock(net)
        assert remove_dropblock(net) == len(plan)
    plan.apply()
    with torch.random.fork_rng(devices=[]):
        assert_live(copy.deepcopy(net).train(), images_for(name), len(plan))


def test_removal_restores_the_model_after_a_removal_that_failed(
    net: nn.Module, plan: InjectionPlan, chosen: Choice
) -> None:
    before = everything(net)
    plan.apply()
    lines = lines_of(net, lambda: remove_dropblock(net))
    assert everything(net) == before
    for number in chosen(lines):
        fault = (Fault, Interrupt)[number % 2]
        plan.apply()
        with pytest.raises(fault):
            lines_of(net, lambda: remove_dropblock(net), number, fault)
        remove_dropblock(net)
        assert everything(net) == before, lines[number]
