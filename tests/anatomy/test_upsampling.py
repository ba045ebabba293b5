"""Where the trunk ends: at the first upsampling, if the lowest resolution is reached before it."""

from __future__ import annotations

import pytest
import torch
from small_networks import DoubleConv, Residual, conv, names
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE = torch.empty(1, 3, 64, 64)


class Pan(nn.Module):
    """Three levels of blocks, a top-down path and a path down again, all of the same kind of block."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.stages = nn.ModuleList([block(8, 16, 2), block(16, 16, 2), nn.Sequential(block(16, 16, 2), block(16, 16))])
        self.up = nn.ModuleList([block(32, 16), block(32, 16)])
        self.down = nn.ModuleList([conv(16, 16, 2), conv(16, 16, 2)])
        self.out = nn.ModuleList([block(32, 16), nn.Sequential(block(32, 16), block(16, 16))])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        _, one, two, three = maps
        middle = self.up[0](torch.cat((F.interpolate(three, scale_factor=2), two), 1))
        high = self.up[1](torch.cat((F.interpolate(middle, scale_factor=2), one), 1))
        again = self.out[0](torch.cat((self.down[0](high), middle), 1))
        return [high, again, self.out[1](torch.cat((self.down[1](again), three), 1))]


@pytest.mark.parametrize("block", [Residual, DoubleConv])
def test_a_neck_that_goes_down_again_is_no_trunk(block: type[nn.Module]) -> None:
    assert names(Pan(block), IMAGE) == [(2, ["stages.0"]), (4, ["stages.1"]), (8, ["stages.2.0", "stages.2.1"])]


def test_maps_that_are_raised_on_the_way_down_are_trunk() -> None:
    """As in HRNet: the map of the lowest resolution is computed from two that have exchanged what they know."""

    class Exchange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.high = conv(3, 16, 2), nn.ModuleList([Residual(16, 16) for _ in range(3)])
            self.to_middle, self.middle = conv(16, 16, 2), nn.ModuleList([Residual(16, 16) for _ in range(2)])
            self.to_low, self.low = conv(16, 16, 2), nn.ModuleList([Residual(16, 16) for _ in range(2)])
            self.down = nn.Conv2d(16, 16, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            high = self.high[0](self.stem(x))
            middle = self.middle[0](self.to_middle(high))
            high = self.high[1](torch.relu(high + F.interpolate(middle, scale_factor=2)))
            middle = self.middle[1](torch.relu(middle + self.down(high)))
            low = self.low[0](self.to_low(middle))
            high = self.high[2](torch.relu(high + F.interpolate(low, scale_factor=4)))
            return self.low[1](low + F.max_pool2d(high, 4))

    assert names(Exchange(), IMAGE) == [
        (2, ["high.0", "high.1", "high.2"]),
        (4, ["middle.0", "down", "middle.1"]),  # what goes up and down again is a branch around the middle map
        (8, ["low.0", "low.1"]),
    ]


def test_a_gate_that_is_computed_at_a_lower_resolution_ends_no_trunk() -> None:
    class Gated(nn.Module):
        """As in GhostNetV2."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.gate = DoubleConv(16, 16), conv(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            gate = torch.sigmoid(self.gate(F.avg_pool2d(x, 2)))
            return self.body(x) * F.interpolate(gate, size=x.shape[-2:])

    stages = Residual(3, 16, 2), nn.Sequential(Residual(16, 16, 2), Residual(16, 16), Gated(), Residual(16, 16))
    assert names(nn.Sequential(*stages), IMAGE) == [(2, ["0"]), (4, ["1.0", "1.1", "1.2", "1.3"])]


def test_the_residual_blocks_of_a_decoder_do_not_make_a_plain_encoder_vanish() -> None:
    encoder = [conv(3, 8, 2), conv(8, 8), conv(8, 16, 2), conv(16, 16)]
    net = nn.Sequential(*encoder, nn.Upsample(scale_factor=2), Residual(16, 8), nn.Upsample(scale_factor=2))
    assert names(nn.Sequential(net, Residual(8, 8)), IMAGE) == [(2, ["0.0.0", "0.1.0"]), (4, ["0.2.0", "0.3.0"])]


class Nested(nn.Module):
    """A U-Net in a U-Net: each level holds the next."""

    def __init__(self, inputs: int, width: int, inner: nn.Module | None) -> None:
        super().__init__()
        self.down, self.inner, self.up = conv(inputs, width, 2), inner, conv(width * (2 if inner else 1), inputs)

    def forward(self, x: Tensor) -> Tensor:
        low = self.down(x)
        low = torch.cat((low, self.inner(low)), 1) if self.inner else low
        return self.up(F.interpolate(low, scale_factor=2))


def test_the_encoder_of_nested_u_nets_is_trunk() -> None:
    net = Nested(3, 8, Nested(8, 16, Nested(16, 32, None)))
    assert names(net, IMAGE) == [(2, ["down.0"]), (4, ["inner.down.0"]), (8, ["inner.inner.down.0"])]


def test_a_decoder_by_unpooling_is_no_trunk() -> None:
    class SegNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Sequential(conv(3, 8), conv(8, 8)), nn.Sequential(conv(8, 16), conv(16, 16))
            self.up_two, self.up_one = nn.Sequential(conv(16, 8), conv(8, 8)), nn.Sequential(conv(8, 8), conv(8, 8))
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            one, first = F.max_pool2d(self.one(x), 2, return_indices=True)
            two, second = F.max_pool2d(self.two(one), 2, return_indices=True)
            out = F.max_unpool2d(self.up_two(F.max_unpool2d(two, second, 2)), first, 2)
            return self.head(self.up_one(out))

    assert names(SegNet(), IMAGE) == [(1, ["one.0.0", "one.1.0"]), (2, ["two.0.0", "two.1.0"])]


def test_an_hourglass_that_computes_a_gate_is_neither_trunk_nor_the_end_of_it() -> None:
    class Attention(nn.Module):
        """As in the residual attention network."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.middle, self.low = Residual(16, 16), Residual(16, 16), Residual(16, 16)
            self.mask = nn.Sequential(conv(16, 16), nn.Conv2d(16, 16, 1), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            middle = self.middle(F.max_pool2d(x, 2))
            mask = F.interpolate(
                middle + F.interpolate(self.low(F.max_pool2d(middle, 2)), scale_factor=2), scale_factor=2
            )
            return self.body(x) * (1 + self.mask(mask))

    net = nn.Sequential(Residual(3, 16, 2), Attention(), Residual(16, 16, 2), Attention(), Residual(16, 16, 2))
    assert names(net, IMAGE) == [(2, ["0", "1.body"]), (4, ["2", "3.body"]), (8, ["4"])]
