"""Blocks without shortcuts: which modules are blocks."""

from __future__ import annotations

import torch
from small_networks import conv, names
from torch import Tensor, nn


class Dense(nn.Sequential):
    """A dense layer: a sequence that concatenates its input with what it makes of it."""

    def __init__(self, inputs: int) -> None:
        super().__init__(conv(inputs, 16), conv(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, super().forward(x)), 1)


def test_a_sequence_with_a_forward_of_its_own_is_a_block() -> None:
    transition = nn.Sequential(nn.Conv2d(32, 16, 1), nn.AvgPool2d(2))
    net = nn.Sequential(conv(3, 16, 2), Dense(16), Dense(24), transition, Dense(16), Dense(24))
    assert names(net, torch.empty(1, 3, 64, 64)) == [(2, ["1", "2"]), (4, ["4", "5"])]


def test_a_sequence_with_a_forward_of_its_own_inside_a_block_is_part_of_it() -> None:
    class Aggregate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.merge = Dense(16), conv(24, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.merge(self.dense(x))

    net = nn.Sequential(conv(3, 16, 2), Aggregate(), Aggregate())
    assert names(net, torch.empty(1, 3, 64, 64)) == [(2, ["1", "2"])]
