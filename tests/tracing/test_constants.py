"""Values that a model's code asks for in the pass without data: those that no input decides are there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dropblock_inject import find_stages
from dropblock_inject.errors import TraceError
from dropblock_inject.tracing.example_input import trace_model

IMAGE = torch.empty(1, 3, 32, 32)


class Asking(nn.Module):
    """Two convolutions, of which the second runs if the code in between gets a right answer."""

    def __init__(self, ask: Callable[[nn.Module, Tensor], bool]) -> None:
        super().__init__()
        self.ask = ask
        self.first, self.second = (nn.Sequential(nn.Conv2d(n, 8, 3, 2, 1), nn.ReLU()) for n in (3, 8))
        self.register_buffer("rate", torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if self.ask(self, x) else x


def _written(net: nn.Module, x: Tensor) -> bool:
    order = torch.arange(4)
    order[1:3] = order[1:3].flip(0)
    order += 1
    return order.tolist() == [1, 3, 2, 4]


def _written_into_a_buffer(net: nn.Module, x: Tensor) -> bool:
    net.rate += 1
    return int(net.rate) == 3


@pytest.mark.parametrize(
    "ask",
    [
        lambda net, x: torch.arange(1, x.dim()).tolist() == [1, 2, 3],
        lambda net, x: x.permute(*torch.tensor([1, 0, 2, 3], device=x.device)).shape[0] == 8,
        lambda net, x: bool((torch.linspace(0, 1, 3) * 2).max() == 2),
        lambda net, x: int(torch.cat((torch.as_tensor([3]), torch.ones(2)))[0].item()) == 3,
        lambda net, x: (torch.zeros(2, dtype=torch.int64).numpy() + 1).sum() == 2,
        lambda net, x: torch.eye(2).cpu()[1, 1] == 1,
        lambda net, x: net.rate.item() == 2,
        lambda net, x: torch.tensor([x.mean(), x.mean()]).shape[0] == 2,
        _written,
        _written_into_a_buffer,
    ],
)
def test_values_that_no_input_decides(ask: Callable[[nn.Module, Tensor], bool]) -> None:
    net = Asking(ask)
    assert [stage.reduction for stage in find_stages(net, IMAGE)] == [2, 4]
    assert net.rate.tolist() == [2]


def _written_by_the_image(net: nn.Module, x: Tensor) -> bool:
    count = torch.zeros(3)
    view = count[1:]
    count[0] = x.sum()
    return bool(view[0] == 0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda net, x: bool(x.sum() > 0),
        lambda net, x: bool(torch.rand(1) < 2),
        lambda net, x: bool(torch.rand_like(torch.zeros(1)) < 2),
        lambda net, x: bool(torch.empty(1) == torch.empty(1)),
        lambda net, x: bool((torch.arange(1) + x.mean()) > 0),
        _written_by_the_image,
    ],
)
def test_other_values_have_no_answer(ask: Callable[[nn.Module, Tensor], bool]) -> None:
    net = Asking(ask)
    state = torch.random.get_rng_state()
    assert "meta" in str(trace_model(net, IMAGE).error)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_pass_that_ends_before_any_block_is_no_network_without_a_trunk() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Asking(lambda net, x: True))
    net[1].first[0] = nn.Conv2d(8, 8, 3, 2, 1)
    net[1].register_forward_pre_hook(lambda module, args: None if args[0].sum() > 0 else args)
    with pytest.raises(TraceError, match=r"ended early: .*The part before it is no trunk"):
        find_stages(net, torch.empty(1, 3, 64, 64))
