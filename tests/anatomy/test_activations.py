"""Convolution units: activations written by hand, and normalisations between views."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import inject_dropblock, plan_dropblock
from dropblock_inject.ops.layer import DropBlock

BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / sqrt(2))),
    "tanh gelu": lambda x: 0.5 * x * (1 + torch.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "leaky relu": lambda x: torch.where(x > 0, x, 0.1 * x),
    "maximum": lambda x: torch.maximum(x, 0.2 * x),
    "snake": lambda x: x + torch.sin(2 * x) ** 2 / 2,
    "squared relu": lambda x: F.relu(x) ** 2,
    "square": lambda x: x * x,
}


class Act(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Block(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), Act(function)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act(self.bn1(self.conv1(x))))


@pytest.mark.parametrize("name", BY_HAND)
def test_a_site_stands_behind_an_activation_that_is_written_by_hand(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Block(BY_HAND[name]))
    plan = plan_dropblock(net, -1, example_input=torch.empty(1, 3, 32, 32))
    assert [(site.where, site.layers) for site in plan] == [
        ("branch", ("1.conv1", "1.bn1", "1.act")),
        ("branch", ("1.conv2",)),
        ("skip", ()),
    ]
    assert plan[0].host == "1.act"


def test_the_mask_is_on_the_activated_map() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Block(BY_HAND["swish"]))
    inject_dropblock(net, -1, where="branch", keep_prob=0.5, example_input=torch.empty(1, 3, 32, 32), block_size=3)
    given = {}
    first = next(module for module in net.modules() if isinstance(module, DropBlock))
    first.register_forward_pre_hook(lambda module, args: given.setdefault("x", args[0].clone()))
    net[1].act.register_forward_pre_hook(lambda module, args: given.setdefault("before", args[0].clone()))
    net.train()(torch.randn(1, 3, 32, 32))
    assert torch.allclose(given["x"], F.silu(given["before"]))


@pytest.mark.parametrize("name", ["swish", "snake"])
def test_one_in_the_code_of_the_block(name: str) -> None:
    class Inline(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(BY_HAND[name](self.bn1(self.conv1(x))))

    plan = plan_dropblock(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Inline(F.relu)), -1, example_input=torch.empty(1, 3, 32, 32)
    )
    assert [site.where for site in plan] == ["branch", "branch", "skip"]
    assert plan[0].host == "1.conv2"  # what reads the activated map


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, lambda channels: nn.GroupNorm(2, channels)])
def test_a_site_stands_behind_the_normalisation(norm: Callable[[int], nn.Module]) -> None:
    """Instance norm reshapes its map to one image with as many channels, and back."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3), norm(8), nn.SiLU()))
    plan = plan_dropblock(net, -1, example_input=torch.empty(2, 3, 32, 32))
    assert [site.layers for site in plan] == [("0", "1"), ("2.0", "2.1", "2.2")]
