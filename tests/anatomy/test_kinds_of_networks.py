"""The smallest network of each kind that a rule of the walker was made for."""

from __future__ import annotations

import pytest
import torch
from small_networks import DoubleConv, Residual, conv, names
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import find_stages, inject_dropblock, plan_dropblock
from dropblock_inject.anatomy.stages import find_trunk
from dropblock_inject.errors import NoTrunkError, TraceError

IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Times(nn.Module):
    """A layer for a site: it multiplies in training."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.p = factor, 0.5  # p as a dropout has it: at 0 a site would be at rest

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor if self.training else x


class Sum(nn.Module):
    """A block of one or two convolutions, with the sum written in different ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.second = how, nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x, x)

    def of(self, skip: Tensor, x: Tensor) -> Tensor:
        if self.how == "one convolution":
            return torch.relu(skip + self.first(x))
        branch = self.second(torch.relu(self.first(x)))
        return skip - branch if self.how == "difference" else torch.lerp(skip, branch, 0.25)


@pytest.mark.parametrize("how", ["one convolution", "difference", "lerp"])
def test_the_skip_of_a_sum_that_is_no_plain_addition(how: str) -> None:
    block = Sum(how)
    net = nn.Sequential(conv(3, 8, 2), block).eval()
    x = net[0](IMAGE)
    wanted = block.of(3 * x, x)
    inject_dropblock(net, -1, where="skip", layer=lambda site: Times(3), example_input=IMAGE)
    block.train()
    torch.testing.assert_close(net(IMAGE), wanted)


def test_the_image_that_a_network_corrects_is_no_shortcut() -> None:
    class Denoise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), nn.Conv2d(8, 3, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            return x - self.net(x)

    assert names(Denoise(), IMAGE) == [(1, ["net.0.0", "net.1.0", "net.2.0"])]


def test_the_enlarged_image_that_a_network_corrects_is_no_shortcut() -> None:
    class Enlarge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), nn.Conv2d(8, 12, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            return F.pixel_shuffle(self.net(x), 2) + F.interpolate(x, scale_factor=2)

    assert names(Enlarge(), IMAGE) == [(1, ["net.0.0", "net.1.0", "net.2.0"])]


def test_no_stage_number_is_below_0() -> None:
    net = nn.Sequential(*(Residual(3 if not i else 8, 8, 1 if not i else 2) for i in range(7)))
    stages = find_stages(net, IMAGE.repeat(1, 1, 2, 2))
    assert [(stage.index, stage.reduction, len(stage.blocks)) for stage in stages] == [
        *((0, 4, 3), (1, 8, 1), (2, 16, 1), (3, 32, 1)),
        (4, 64, 1),
    ]
    plan = plan_dropblock(net, 0, example_input=IMAGE.repeat(1, 1, 2, 2), where="skip", keep_prob={-5: 0.5})
    assert [(site.block, site.map_size) for site in plan] == [("0", (128, 128)), ("1", (64, 64)), ("2", (32, 32))]


def test_the_bottom_of_a_nested_u_net_is_trunk() -> None:
    class Bottom(nn.Module):
        """It goes down and up again, so that its module is no block."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv(8, 8), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            out, where = F.max_pool2d(x, 2, return_indices=True)
            return F.max_unpool2d(self.second(self.first(out)), where, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.bottom, self.up = DoubleConv(3, 8), DoubleConv(8, 8, 2), Bottom(), DoubleConv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.bottom(self.two(self.one(x))))

    assert names(Net(), IMAGE) == [(1, ["one"]), (2, ["two"]), (4, ["bottom.first.0", "bottom.second.0"])]


def test_a_neck_of_residual_blocks_beside_a_plain_backbone_is_no_trunk() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + x * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([DoubleConv(3, 8, 2), DoubleConv(8, 8, 2), DoubleConv(8, 8, 2)])
            self.beside = nn.ModuleList([Gated(), Gated(), Gated()])

        def forward(self, x: Tensor) -> Tensor:
            maps = []
            for down, beside in zip(self.down, self.beside, strict=True):
                x = down(x)
                maps.append(beside(x))
            out = maps[2]
            for lower in (maps[1], maps[0]):
                out = lower + F.interpolate(out, scale_factor=2)
            return out

    assert names(Net(), IMAGE) == [(2, ["down.0"]), (4, ["down.1"]), (8, ["down.2"])]


def test_the_decoder_of_a_transformer_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.patches = Residual(3, 8), nn.Conv2d(3, 16, 16, 16)
            self.encoder = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
            self.up, self.block = nn.ConvTranspose2d(16, 8, 2, 2), Residual(8, 8)
            self.out = nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.encoder(self.patches(x).flatten(2).transpose(1, 2))
            low = self.block(self.up(tokens.transpose(1, 2).reshape(len(x), 16, 4, 4)))
            return self.out(torch.cat((self.stem(x), F.interpolate(low, scale_factor=8)), 1))

    with pytest.raises(NoTrunkError, match="such as block, come behind maps of a lower resolution"):
        find_stages(Net(), IMAGE)


def test_a_map_with_rows_mixed_by_a_matrix_is_a_map() -> None:
    class Mix(nn.Module):
        """A matrix of each channel's own, made of the map, mixes its rows (bilinear attention)."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.matrix, self.last = conv(8, 8), nn.Conv2d(8, 8 * 32, 1), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            out = self.first(x)
            rows = self.matrix(F.adaptive_max_pool2d(out, (32, 1)))  # (N, 8 * 32, 32, 1)
            return x + self.last(rows.view(len(x), 8, 32, 32).sigmoid() @ out)

    net = nn.Sequential(conv(3, 8, 2), Mix())
    plan = plan_dropblock(net, -1, where="branch", example_input=IMAGE)
    assert [site.layers[0] for site in plan] == ["1.first.0", "1.last.0"]


def test_a_result_that_ends_in_a_sigmoid_is_named() -> None:
    net = nn.Sequential(conv(3, 8, 2), Residual(8, 8), Residual(8, 8, 2), nn.Conv2d(8, 2, 1), nn.Sigmoid())
    assert plan_dropblock(net, None, example_input=IMAGE).as_dict()["results"] == ("3",)


def test_a_head_that_ends_in_the_result_keeps_its_other_units() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out = conv(8, 8), conv(8, 8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.second(self.first(x)))

    trunk = find_trunk(nn.Sequential(conv(3, 8, 2), Residual(8, 8), Residual(8, 8, 2), Head()), IMAGE)
    assert [(block.place, block.name) for block in trunk.off_trunk][1:] == [
        ("head", "3.first.0"),
        ("head", "3.second.0"),
    ]
    assert trunk.results == ("3.out",)


class Asks(nn.Module):
    """A layer of a decoder that asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * int(x.amax().item() > 0)


def test_a_pass_that_ends_behind_a_neck_is_good_enough() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([Residual(3, 8, 2), Residual(8, 8, 2)])
            self.neck, self.decoder = conv(8, 8), nn.Sequential(Asks(), Asks())

        def forward(self, x: Tensor) -> Tensor:
            one = self.down[0](x)
            out = self.neck(one + F.interpolate(self.down[1](one), scale_factor=2))
            return self.decoder(out.flatten(2).transpose(1, 2))

    plan = plan_dropblock(Net(), None, example_input=IMAGE)
    assert {site.part for site in plan} == {"trunk", "neck"}
    assert "ended early" in str(plan)


def test_a_value_that_is_asked_for_before_the_first_convolution_is_said() -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (0, int(x.amax().item()))))

    with pytest.raises(TraceError, match="before its first convolution it asks for the values of a tensor"):
        find_stages(Net(conv(3, 8)), IMAGE)


def test_a_shortcut_that_an_activation_overwrites_and_the_branch_hands_on() -> None:
    class Body(nn.Module):
        """It puts out the activated map beside the branch: the block's own tensor, written in place."""

        def __init__(self) -> None:
            super().__init__()
            self.act, self.first, self.last = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, padding=2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.act(x)
            return self.last(torch.relu(self.first(x))), x

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body()

        def forward(self, x: Tensor) -> Tensor:
            branch, skip = self.body(x)
            return branch + skip

    block = Block().eval()
    net = nn.Sequential(conv(3, 8, 2), block).eval()
    branch, skip = block.body(net[0](IMAGE))
    inject_dropblock(net, -1, where="skip", layer=lambda site: Times(3), example_input=IMAGE)
    block.train()
    torch.testing.assert_close(net(IMAGE), branch + 3 * skip)


def test_a_residual_block_that_is_the_branch_of_another() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    net = nn.Sequential(conv(3, 8, 2), Outer()).eval()
    x = net[0](IMAGE)
    wanted = 3 * x + (3 * x + net[1].inner.body(x))
    report = inject_dropblock(net, -1, where="skip", layer=lambda site: Times(3), example_input=IMAGE)
    assert {site.block for site in report} == {"1", "1.inner"}
    net[1].train()
    torch.testing.assert_close(net(IMAGE), wanted)
