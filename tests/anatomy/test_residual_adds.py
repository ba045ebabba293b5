"""Residual adds: which additions join a branch and its shortcut, and which are something else."""

from __future__ import annotations

import pytest
import torch
from small_networks import Residual, conv, names
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import plan_dropblock

IMAGE = torch.empty(1, 3, 64, 64)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer1 = conv(3, 8, 2), nn.Sequential(Residual(8, 16, 2), Residual(16, 16))
        self.layer2, self.layer3 = Residual(16, 16, 2), Residual(16, 16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = self.layer1(self.stem(x))
        two = self.layer2(one)
        return one, two, self.layer3(two)


class AdditiveDecoder(Encoder):
    """Adds projections of maps of two resolutions in its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.project2, self.project3, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, two, three = super().forward(x)
        return self.head(self.project2(two) + F.interpolate(self.project3(three), scale_factor=2))


class LinkNet(Encoder):
    """Adds what the encoder put out, as it is, to what a decoder makes of the next level."""

    def __init__(self) -> None:
        super().__init__()
        self.up3, self.up2 = nn.Sequential(conv(16, 16), nn.Upsample(scale_factor=2)), nn.ConvTranspose2d(16, 16, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = super().forward(x)
        return one + self.up2(two + self.up3(three))


class Wrapper(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("network", [AdditiveDecoder, LinkNet])
def test_long_skips_to_a_decoder_are_not_residual(network: type[nn.Module], wrapped: bool) -> None:
    net, prefix = (Wrapper(network()), "net.") if wrapped else (network(), "")
    assert names(net, IMAGE) == [
        (4, [f"{prefix}layer1.0", f"{prefix}layer1.1"]),
        (8, [f"{prefix}layer2"]),
        (16, [f"{prefix}layer3"]),
    ]
    skips = [site.block for site in plan_dropblock(net, [1, 2, 3], where="skip", example_input=IMAGE)]
    assert skips == [f"{prefix}{block}" for block in ("layer1.0", "layer1.1", "layer2", "layer3")]


def test_a_branch_with_attention_at_a_lower_resolution_is_a_branch() -> None:
    class LowAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.norm = nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16)
            self.qkv, self.up = nn.Conv2d(16, 48, 1), nn.ConvTranspose2d(16, 16, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            low = self.norm(self.down(x))
            q, k, v = self.qkv(low).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)
            out = F.scaled_dot_product_attention(q, k, v)
            return x + self.up(out.squeeze(1).transpose(1, 2).reshape(low.shape))

    net = nn.Sequential(conv(3, 16, 2), Residual(16, 16, 2), LowAttention(), Residual(16, 16))
    assert names(net, IMAGE) == [(4, ["1", "2", "3"])]
    assert len(plan_dropblock(net, 1, where="skip", example_input=IMAGE)) == 3


def test_residual_adds_of_several_levels_in_the_code_of_one_module_are_blocks_one_by_one() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.down, self.second = conv(16, 16), conv(16, 16, 2), conv(16, 16)
            self.block = Residual(16, 16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.first(x)
            x = self.down(x)
            return self.block(x + self.second(x))

    expected = [(2, ["first.0"]), (4, ["second.0"]), (8, ["block"])]
    assert names(nn.Sequential(conv(3, 16, 2), Flat()), IMAGE) == [
        (reduction, [f"1.{name}" for name in blocks]) for reduction, blocks in expected
    ]


class AddOfList(nn.Module):
    def forward(self, operands: list[Tensor]) -> Tensor:
        return operands[0] + operands[1]


class AddOfDict(nn.Module):
    def forward(self, operands: dict[str, Tensor]) -> Tensor:
        return operands["a"] + operands["b"]


@pytest.mark.parametrize("add", [AddOfList, AddOfDict])
def test_a_module_that_adds_may_be_given_its_operands_in_a_list(add: type[nn.Module]) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.add = conv(16, 16), nn.Conv2d(16, 16, 1), add()

        def forward(self, x: Tensor) -> Tensor:
            branch = self.second(self.first(x))
            return self.add([x, branch] if isinstance(self.add, AddOfList) else {"a": x, "b": branch})

    plan = plan_dropblock(nn.Sequential(conv(3, 16, 2), Block(), Block()), 1, example_input=IMAGE)
    assert [(site.block, site.where) for site in plan] == [
        (block, where) for block in "12" for where in ("branch", "branch", "skip")
    ]


def test_a_shortcut_that_pools_is_a_shortcut() -> None:
    class Cell(nn.Module):
        """As in PNASNet-A: the activation is behind the sum."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x) + F.max_pool2d(x, 3, stride=1, padding=1))

    net = nn.Sequential(conv(3, 8, 2), Cell(8), Cell(8), conv(8, 16, 2), Cell(16), Cell(16))
    assert names(net, IMAGE) == [(2, ["1", "2"]), (4, ["4", "5"])]
    sites = plan_dropblock(net, -1, example_input=IMAGE)
    assert [(site.name, site.where) for site in sites] == [
        *(("4.drop_branch1", "branch"), ("4.drop_skip", "skip")),
        *(("5.drop_branch1", "branch"), ("5.drop_skip", "skip")),
    ]


def test_a_gate_that_is_computed_by_layers_at_a_lower_resolution_makes_no_long_skip() -> None:
    class Air(nn.Module):
        """As in AirNet."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body, self.attention = conv(channels, channels), nn.Sequential(conv(channels, 4, 2), conv(4, channels))

        def forward(self, x: Tensor) -> Tensor:
            gate = torch.sigmoid(F.interpolate(self.attention(x), size=x.shape[-2:]))
            return x + self.body(x) * gate

    assert names(nn.Sequential(conv(3, 8, 2), Air(8), Air(8)), IMAGE) == [(2, ["1", "2"])]
