"""Feature maps: the axis of their channels and their reduction, for sides that are reduced unequally."""

from __future__ import annotations

import pytest
import torch
from small_networks import Residual, conv, names
from torch import Tensor, nn

from dropblock_inject import find_stages, plan_dropblock


def test_channels_equal_to_a_side_of_a_map_are_still_the_channels() -> None:
    """A map of 32 channels is 64 x 64 on an image of 128 x 256: axes 1 and 2 have the aspect of the image."""
    net = nn.Sequential(Residual(1, 8), Residual(8, 16, (1, 2)), Residual(16, 32, 2), Residual(32, 64, 2))
    plan = plan_dropblock(net, [1, 2, 3, 4], where=("paper", "output"), example_input=torch.empty(1, 1, 128, 256))
    expected = {1: (8, (128, 256)), 2: (16, (128, 128)), 3: (32, (64, 64)), 4: (64, (32, 32))}
    assert {site.stage: (site.channels, site.map_size) for site in plan} == expected
    assert {site.channel_dim for site in plan} == {1}
    assert len(plan) == 4 * 4


def test_strides_along_one_axis_make_stages() -> None:
    """As in text recognition, where the height is reduced more often than the width."""
    net = nn.Sequential(Residual(3, 16, 2), Residual(16, 32, 2), Residual(32, 64, (2, 1)), Residual(64, 64, (2, 1)))
    stages = find_stages(net, torch.empty(1, 3, 32, 128))
    assert [(stage.reduction, stage.map_size, len(stage.blocks)) for stage in stages] == [
        (2, (16, 64), 1),
        (4, (8, 32), 1),
        (8, (4, 32), 1),
        (16, (2, 32), 1),
    ]


def test_a_map_of_a_single_row_is_a_map() -> None:
    net = nn.Sequential(conv(1, 8, 2), conv(8, 16, 2), conv(16, 32, (2, 1)), conv(32, 32, (2, 1)))
    assert [stage.map_size for stage in find_stages(net, torch.empty(1, 1, 16, 64))] == [
        (8, 32),
        (4, 16),
        (2, 16),
        (1, 16),
    ]


def test_strips_that_a_pooling_makes_are_not_maps() -> None:
    """The gate of coordinate attention: convolutions over the means of the rows and of the columns."""

    class StripGate(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.rows, self.columns = nn.AdaptiveAvgPool2d((None, 1)), nn.AvgPool2d((16, 1))
            self.of_rows, self.of_columns = conv(width, width), conv(width, width)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.of_rows(self.rows(x)) * self.of_columns(self.columns(x))

    net = nn.Sequential(conv(3, 8, 2), conv(8, 8), StripGate(8))
    plan = plan_dropblock(net, 1, example_input=torch.empty(1, 3, 32, 32))
    assert [site.map_size for site in plan] == [(16, 16), (16, 16)]


@pytest.mark.parametrize("width", [16, 32])  # 16 is a side of the map as well
def test_channels_that_are_moved_to_the_end_are_followed(width: int) -> None:
    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.grow, self.shrink = conv(width, width), nn.Linear(width, 32), nn.Linear(32, width)

        def forward(self, x: Tensor) -> Tensor:
            out = self.shrink(self.grow(self.mix(x).permute(0, 2, 3, 1)).relu())
            return x + out.permute(0, 3, 1, 2)

    plan = plan_dropblock(
        nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), ChannelsLast()), 1, example_input=torch.empty(1, 3, 32, 32)
    )
    assert {site.host.rpartition(".")[2]: site.channel_dim for site in plan if site.where == "branch"} == {
        "2": 1,
        "grow": -1,
        "shrink": -1,
    }
    assert {site.map_size for site in plan} == {(16, 16)}


@pytest.mark.parametrize("channels", [24, 64])  # 64 is the length of the signal behind the first stride as well
def test_signals(channels: int) -> None:
    def layer(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(inputs, outputs, 3, padding=1), nn.BatchNorm1d(outputs), nn.ReLU())

    net = nn.Sequential(
        layer(1, channels), nn.MaxPool1d(2), layer(channels, channels), nn.MaxPool1d(2), layer(channels, 8)
    )
    plan = plan_dropblock(net, [1, 2, 3], example_input=torch.empty(1, 1, 128))
    assert [(site.channels, site.map_size, site.channel_dim) for site in plan] == [
        (channels, (128,), 1),
        (channels, (64,), 1),
        (8, (32,), 1),
    ]
    assert names(net, torch.empty(1, 1, 128)) == [(1, ["0.0"]), (2, ["2.0"]), (4, ["4.0"])]
