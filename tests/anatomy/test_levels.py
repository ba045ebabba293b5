"""Levels: dilation that stands for strides, and dilation that is there for context."""

from __future__ import annotations

import pytest
import torch
from small_networks import Residual, conv, names
from torch import nn

IMAGE = torch.empty(1, 3, 64, 64)


def stage(inputs: int, outputs: int, stride: int, dilations: list[int]) -> nn.Sequential:
    first, *others = dilations
    return nn.Sequential(Residual(inputs, outputs, stride, first), *(Residual(outputs, outputs, 1, d) for d in others))


def reductions(*stages: nn.Module) -> list[int]:
    return [reduction for reduction, _ in names(nn.Sequential(conv(3, 8, 2), *stages), IMAGE)]


@pytest.mark.parametrize("last", [[2, 4, 4], [4, 4, 4], [4, 8, 16]], ids=["as torchvision", "all alike", "multi-grid"])
def test_dilation_that_doubles_from_stage_to_stage_stands_for_strides(last: list[int]) -> None:
    stages = stage(8, 8, 1, [1, 1]), stage(8, 16, 2, [1, 1]), stage(16, 32, 1, [1, 2, 2]), stage(32, 64, 1, last)
    assert reductions(*stages) == [2, 4, 8, 16]


def test_stages_behind_dilated_ones_with_less_dilation_are_of_the_lowest_level() -> None:
    """DRN takes the dilation back in its last layers."""
    stages = stage(8, 8, 2, [1, 1]), stage(8, 16, 1, [2, 2]), stage(16, 32, 1, [4, 4]), stage(32, 64, 1, [2, 2])
    assert reductions(*stages, stage(64, 16, 1, [1])) == [4, 8, 16]


@pytest.mark.parametrize(
    "dilations",
    [
        [[4, 4], [2, 2], [1, 1]],  # as ESPNetv2
        [[1, 1], [1, 1], [2, 4, 8, 16]],  # as ERFNet
        [[1, 1], [2, 2], [4, 4, 8, 8]],  # as DABNet
        [[2, 2], [2, 2], [4, 4]],  # as CGNet
        [[1, 1], [1, 2, 5, 9], [1, 2, 5, 9, 17]],  # as LEDNet
        [[1, 1], [1, 1], [1, 2, 1, 4, 1, 8, 1, 16]],  # as ENet
    ],
)
def test_dilation_for_context_changes_no_level(dilations: list[list[int]]) -> None:
    one, two, three = dilations
    assert reductions(stage(8, 8, 1, one), stage(8, 16, 2, two), stage(16, 32, 2, three)) == [2, 4, 8]


def test_dilation_that_grows_from_block_to_block_of_the_same_channels_is_for_context() -> None:
    """As in temporal convolutional networks, each block with a sequence of its own around it."""
    blocks = (nn.Sequential(Residual(8, 8, 1, dilation)) for dilation in (1, 2, 4))
    assert names(nn.Sequential(conv(3, 8, 2), *blocks), IMAGE) == [(2, ["1.0", "2.0", "3.0"])]


def test_a_dilated_stage_may_begin_with_the_channels_of_the_one_before() -> None:
    """As with depthwise convolutions before those that change the channels."""
    first = nn.Sequential(Residual(8, 8, 2), Residual(8, 16))
    second = nn.Sequential(Residual(16, 16, 1, 2), Residual(16, 32, 1, 2))
    assert reductions(first, second) == [4, 8]
