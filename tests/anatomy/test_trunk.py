"""What is a trunk and what is none: decoders, pyramids, heads, stems, recurrent and transformer parts."""

from __future__ import annotations

import pytest
import torch
from small_networks import DoubleConv, Residual, conv, names
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import DropBlockInjectError, find_stages

IMAGE = torch.empty(1, 3, 64, 64)


class UNet(nn.Module):
    """Encoder and decoder of the same kind of block, and an auxiliary head of it on the way down."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), conv(8, 8))
        self.down1, self.down2, self.down3 = block(8, 16, 2), block(16, 32, 2), block(32, 64, 2)
        self.up2, self.up1 = block(64 + 32, 32), block(32 + 16, 16)
        self.auxiliary = nn.Sequential(block(16, 16), nn.Conv2d(16, 2, 1))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = self.down1(self.stem(x))
        two = self.down2(one)
        three = self.down3(two)
        out = self.up2(torch.cat((F.interpolate(three, scale_factor=2), two), 1))
        out = self.up1(torch.cat((F.interpolate(out, scale_factor=2), one), 1))
        return self.head(out), self.auxiliary(one)


@pytest.mark.parametrize("block", [Residual, DoubleConv])
def test_decoder_and_auxiliary_head_are_no_trunk(block: type[nn.Module]) -> None:
    assert names(UNet(block), IMAGE) == [(2, ["down1"]), (4, ["down2"]), (8, ["down3"])]


def test_a_pyramid_is_no_trunk() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(3, 8)
            self.stages = nn.ModuleList([Residual(8, 16, 2), Residual(16, 32, 2), Residual(32, 64, 2)])
            self.lateral = nn.ModuleList([nn.Conv2d(width, 16, 1) for width in (16, 32, 64)])
            self.smooth = nn.ModuleList([conv(16, 16) for _ in range(3)])
            self.lower = nn.Sequential(conv(16, 16, 2), conv(16, 16, 2))
            self.head = nn.Sequential(conv(16, 16), conv(16, 16), nn.Conv2d(16, 4, 1))

        def forward(self, x: Tensor) -> list[Tensor]:
            x = self.stem(x)
            maps = []
            for stage in self.stages:
                x = stage(x)
                maps.append(x)
            top, out = None, []
            for lateral, smooth, feature in reversed(list(zip(self.lateral, self.smooth, maps, strict=True))):
                side = lateral(feature)
                top = side if top is None else side + F.interpolate(top, scale_factor=2)
                out.append(smooth(top))
            return [self.head(feature) for feature in (*out, self.lower(out[0]))]

    assert names(Pyramid(), IMAGE) == [(2, ["stages.0"]), (4, ["stages.1"]), (8, ["stages.2"])]


def test_stages_without_a_shortcut_beside_residual_ones() -> None:
    """Two of four stages have no shortcut at all: their units count, those of the stem and of the head do not."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(conv(3, 8, 2), conv(8, 8))
            self.blocks = nn.Sequential(
                nn.Sequential(conv(8, 16, 2), conv(16, 16)),
                nn.Sequential(Residual(16, 16), Residual(16, 32, 2)),
                nn.Sequential(Residual(32, 32), Residual(32, 64, 2)),
                nn.Sequential(DoubleConv(64, 64, 2), DoubleConv(64, 64)),
            )
            self.head = DoubleConv(64, 128)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blocks(self.stem(x)))

    net = Net()
    assert names(net, IMAGE) == [
        (4, ["blocks.0", "blocks.1.0"]),
        (8, ["blocks.1.1", "blocks.2.0"]),
        (16, ["blocks.2.1"]),
        (32, ["blocks.3.0", "blocks.3.1"]),
    ]


class WithTokens(nn.Module):
    """Convolutions, and a transformer on what they put out."""

    def __init__(self, convolutions: nn.Module, layers: int, width: int) -> None:
        super().__init__()
        self.convolutions = convolutions
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(self.convolutions(x).flatten(2).transpose(1, 2))


def test_a_convolutional_network_before_a_transformer_has_a_trunk() -> None:
    residual = nn.Sequential(conv(3, 8, 2), Residual(8, 16, 2), Residual(16, 16))
    assert names(WithTokens(residual, 6, 16), IMAGE) == [(4, ["convolutions.1", "convolutions.2"])]
    plain = nn.Sequential(*(conv(3 if i == 0 else 16, 16, 2 if i % 3 == 0 else 1) for i in range(9)))
    assert [reduction for reduction, _ in names(WithTokens(plain, 3, 16), IMAGE)] == [2, 4, 8]


def test_a_transformer_behind_a_stem_of_convolutions_has_none() -> None:
    stem = nn.Sequential(conv(3, 8, 2), conv(8, 16, 2), nn.Conv2d(16, 16, 4, 4))
    with pytest.raises(DropBlockInjectError, match="it has 12 residual adds, and none of them adds what convolutions"):
        find_stages(WithTokens(stem, 6, 16), IMAGE)


def test_tokens_in_the_shape_of_a_map_are_no_trunk() -> None:
    """Attention and linear layers with the channels last, as in a Swin transformer."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mlp(self.norm(x))

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut = nn.Conv2d(3, 16, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.cut(x).permute(0, 2, 3, 1)

    with pytest.raises(DropBlockInjectError, match="it has 3 residual adds"):
        find_stages(nn.Sequential(Patches(), Layer(), Layer(), Layer()), IMAGE)


def test_a_residual_block_behind_a_plain_network_is_not_all_of_the_trunk() -> None:
    stages = [conv(3, 8, 2), conv(8, 8), conv(8, 16, 2), conv(16, 16), conv(16, 32, 2), conv(32, 32)]
    net = nn.Sequential(*stages, conv(32, 32), Residual(32, 32))
    assert names(net, IMAGE) == [
        (2, ["0.0", "1.0"]),
        (4, ["2.0", "3.0"]),
        (8, ["4.0", "5.0", "6.0", "7"]),
    ]


def test_a_residual_block_before_a_plain_network_is_not_all_of_the_trunk() -> None:
    net = nn.Sequential(conv(3, 8, 2), Residual(8, 8), conv(8, 16, 2), conv(16, 16), conv(16, 32, 2), conv(32, 32))
    assert names(net, IMAGE) == [(2, ["0.0", "1"]), (4, ["2.0", "3.0"]), (8, ["4.0", "5.0"])]


def test_a_few_convolutions_behind_residual_blocks_are_no_trunk() -> None:
    """As the extra levels of a detector."""
    net = nn.Sequential(*(Residual(n, 8) for n in (3, 8, 8)), conv(8, 16, 2), conv(16, 32, 2))
    assert names(net, IMAGE) == [(1, ["0", "1", "2"])]


def test_an_activation_with_an_addition_in_it_is_no_residual_branch() -> None:
    """As in the entropy models of image compression: x + a * tanh(x), many times behind the trunk."""

    class Likelihood(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(9):
                x = x + 0.5 * torch.tanh(x)
            return x

    net = nn.Sequential(conv(3, 8, 2), conv(8, 16, 2), nn.Flatten(2), Likelihood())
    assert names(net, IMAGE) == [(2, ["0.0"]), (4, ["1.0"])]


def test_a_module_of_several_units_behind_a_plain_network_is_not_all_of_the_trunk() -> None:
    stages = [conv(3, 8, 2), conv(8, 8), conv(8, 16, 2), conv(16, 16), conv(16, 32, 2), conv(32, 32)]
    net = nn.Sequential(*stages, DoubleConv(32, 32))
    assert names(net, IMAGE) == [(2, ["0.0", "1.0"]), (4, ["2.0", "3.0"]), (8, ["4.0", "5.0", "6"])]


def test_a_stem_before_residual_blocks_of_one_resolution_is_no_trunk() -> None:
    net = nn.Sequential(conv(3, 8, 2), conv(8, 8, 2), conv(8, 16, 2), *(Residual(16, 16) for _ in range(3)))
    assert names(net, IMAGE) == [(8, ["3", "4", "5"])]


@pytest.mark.parametrize("end", [[], [nn.Sigmoid()], [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)]])
def test_the_classifier_of_a_fully_convolutional_network_is_no_trunk(end: list[nn.Module]) -> None:
    net = nn.Sequential(conv(3, 16, 2), conv(16, 32, 2), nn.Conv2d(32, 10, 1), *end)
    assert names(net, IMAGE) == [(2, ["0.0"]), (4, ["1.0"])]
    longer = nn.Sequential(conv(3, 16, 2), nn.Conv2d(16, 32, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert names(nn.Sequential(longer, nn.Linear(32, 10)), IMAGE) == [(2, ["0.0.0"]), (4, ["0.1"])]


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), conv(8, 8)), "it only raises the resolution, as a decoder"),
        (nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU()), "none of its convolutions puts out a feature map"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "its convolutions only cut patches or put out the result"),
    ],
)
def test_a_network_without_a_trunk_is_refused_with_the_true_reason(net: nn.Module, reason: str) -> None:
    with pytest.raises(DropBlockInjectError, match=reason) as refusal:
        find_stages(net, IMAGE)
    assert "transformer" not in str(refusal.value)


def test_a_transformer_behind_a_convolutional_embedding_of_a_signal_is_refused() -> None:
    """As in Wav2Vec2: its positions are embedded by a convolution with a shortcut, which is no trunk either."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + F.gelu(self.conv(x.transpose(1, 2)).transpose(1, 2))

    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Sequential(*(nn.Sequential(nn.Conv1d(n, 16, 3, 2, 1), nn.GELU()) for n in (1, 16, 16)))
            self.positions = Positions()
            self.layers = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(4)])

        def forward(self, x: Tensor) -> Tensor:
            x = self.positions(self.embed(x).transpose(1, 2))
            for layer in self.layers:
                x = layer(x)
            return x

    with pytest.raises(DropBlockInjectError, match=r"9 residual adds.* transformer or an MLP"):
        find_stages(Speech(), torch.empty(1, 1, 256))
