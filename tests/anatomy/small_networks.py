"""Parts of small networks, and the stages of a network in a short form."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dropblock_inject import find_stages


def conv(inputs: int, outputs: int, stride: int | tuple[int, int] = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int | tuple[int, int] = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, stride, dilation), conv(outputs, outputs, 1, dilation)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.shortcut(x)


class DoubleConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, outputs, stride), conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def names(net: nn.Module, example_input: Any = None) -> list[tuple[int, list[str]]]:
    """The reduction and the blocks of every stage."""
    return [(stage.reduction, [block.name for block in stage.blocks]) for stage in find_stages(net, example_input)]
