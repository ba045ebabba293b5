"""Parts beside the trunk: maps pooled for context, heads of each level, results, the beginning of a decoder."""

from __future__ import annotations

import pytest
import torch
from small_networks import DoubleConv, Residual, conv, names
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import plan_dropblock

IMAGE = torch.empty(1, 3, 64, 64)


class Context(nn.Module):
    """A pyramid of pooled maps beside the map itself, as in PSPNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), *conv(channels, channels)) for size in (1, 2, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(F.interpolate(branch(x), x.shape[2:]) for branch in self.branches)], 1)


def test_maps_that_are_pooled_for_context_are_no_trunk() -> None:
    stages = [DoubleConv(3, 8, 2), DoubleConv(8, 16, 2), DoubleConv(16, 32, 2)]
    net = nn.Sequential(*stages, Context(32), nn.Conv2d(128, 2, 1))
    assert names(net, IMAGE) == [(2, ["0"]), (4, ["1"]), (8, ["2"])]
    plain = nn.Sequential(conv(3, 8, 2), conv(8, 16, 2), conv(16, 32, 2), Context(32), nn.Conv2d(128, 2, 1))
    assert names(plain, IMAGE) == [(2, ["0.0"]), (4, ["1.0"]), (8, ["2.0"])]


class Levels(nn.Module):
    """A plain network with a convolution beside each of its levels, the lowest included."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(DoubleConv(*widths, 2) for widths in ((3, 8), (8, 16), (16, 32)))
        self.beside = nn.ModuleList(conv(width, 8) for width in (8, 16, 32))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage, beside in zip(self.stages, self.beside, strict=True):
            x = stage(x)
            found.append(beside(x))
        return found


def test_a_convolution_beside_each_level_is_no_trunk() -> None:
    assert names(Levels(), IMAGE) == [(2, ["stages.0"]), (4, ["stages.1"]), (8, ["stages.2"])]
    net = Levels()
    net.stages = nn.ModuleList(conv(*widths, 2) for widths in ((3, 8), (8, 16), (16, 32)))
    assert names(net, IMAGE) == [(2, ["stages.0.0"]), (4, ["stages.1.0"]), (8, ["stages.2.0"])]


def test_residual_blocks_on_parallel_levels_are_trunk() -> None:
    """As in HRNet, where the last blocks of the other levels lead nowhere."""

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.high, self.low = (nn.Sequential(Residual(8, 8), Residual(8, 8)) for _ in range(2))

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.high(x), self.low(F.avg_pool2d(x, 2))]

    net = nn.Sequential(Residual(3, 8), Parallel())
    assert names(net, IMAGE) == [(1, ["0"]), (2, ["1.low.0", "1.low.1"])]


def test_a_module_that_ends_in_the_result_is_no_trunk() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = conv(32, 32), nn.Conv2d(32, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    net = nn.Sequential(DoubleConv(3, 8, 2), DoubleConv(8, 16, 2), DoubleConv(16, 32, 2), Head())
    assert names(net, IMAGE) == [(2, ["0"]), (4, ["1"]), (8, ["2"])]


def test_a_last_stage_that_ends_in_tokens_is_trunk() -> None:
    """As in CvT: a module that convolves, and puts out something else than its last convolution does."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.values = conv(16, 32, 2), nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            values = self.values(x).flatten(2)
            return (values @ (values.transpose(1, 2) @ values).softmax(2)).reshape(x.shape)

    net = nn.Sequential(DoubleConv(3, 8, 2), DoubleConv(8, 16, 2), Mixed())
    assert names(net, IMAGE) == [(2, ["0"]), (4, ["1"]), (8, ["2"])]


@pytest.mark.parametrize("block", [Residual, DoubleConv])
def test_a_decoder_that_begins_at_the_lowest_resolution_is_no_trunk(block: type[nn.Module]) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.stages = conv(3, 8), nn.ModuleList([block(8, 16, 2), block(16, 32, 2)])

        def forward(self, x: Tensor) -> list[Tensor]:
            high = self.stages[0](self.stem(x))
            return [high, self.stages[1](high)]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.center, self.up, self.head = Encoder(), block(32, 32), block(48, 16), conv(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            high, low = self.encoder(x)
            raised = F.interpolate(self.center(low), scale_factor=2)
            return self.head(self.up(torch.cat((raised, high), 1)))

    assert names(Net(), IMAGE) == [(2, ["encoder.stages.0"]), (4, ["encoder.stages.1"])]
    decoder = [site.block for site in plan_dropblock(Net(), None, where="output", example_input=IMAGE)]
    assert decoder[-3:-1] == ["center", "up"]


def test_a_decoder_behind_a_plain_encoder_is_no_trunk() -> None:
    """As in CRAFT: the convolutions of a VGG are blocks one by one."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.levels = nn.ModuleList([conv(3, 8, 2), conv(8, 16, 2), conv(16, 32, 2)])

        def forward(self, x: Tensor) -> list[Tensor]:
            maps = [x]
            for level in self.levels:
                maps.append(level(maps[-1]))
            return maps[1:]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.center, self.up, self.head = Encoder(), conv(32, 32), conv(48, 16), nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            *_, high, low = self.encoder(x)
            raised = F.interpolate(self.center(low), scale_factor=2)
            return self.head(self.up(torch.cat((raised, high), 1)))

    assert names(Net(), IMAGE) == [(2 ** (n + 1), [f"encoder.levels.{n}.0"]) for n in range(3)]


@pytest.mark.parametrize("is_list", [False, True])
def test_the_last_dense_layer_is_trunk_although_no_layer_reads_its_map(is_list: bool) -> None:
    class Dense(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.norm, self.squeeze = nn.BatchNorm2d(inputs), conv(inputs, 8)
            self.grow = nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x: Tensor | list[Tensor]) -> Tensor:
            x = torch.cat(x, 1) if is_list else x
            return self.grow(self.squeeze(F.relu(self.norm(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layers = conv(3, 8, 2), nn.ModuleList([Dense(8), Dense(12), Dense(16)])

        def forward(self, x: Tensor) -> Tensor:
            maps = [self.stem(x)]
            for layer in self.layers:
                maps = [*maps, layer(maps)] if is_list else [torch.cat((maps[0], layer(maps[0])), 1)]
            return torch.cat(maps, 1)

    assert names(Net(), IMAGE) == [(2, ["layers.0", "layers.1", "layers.2"])]


def test_a_stage_that_puts_out_its_map_twice_is_no_encoder() -> None:
    class Down(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.block = Residual(inputs, outputs)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.block(x)
            return x, F.max_pool2d(x, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.downs, self.bottom = nn.ModuleList([Down(3, 8), Down(8, 16)]), Residual(16, 32)

        def forward(self, x: Tensor) -> list[Tensor]:
            maps = []
            for down in self.downs:
                kept, x = down(x)
                maps.append(kept)
            return [*maps, self.bottom(x)]

    assert names(Net(), IMAGE) == [(1, ["downs.0.block"]), (2, ["downs.1.block"]), (4, ["bottom"])]
