"""The places of the blocks off the trunk: stem, transition, neck, decoder, head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from small_networks import DoubleConv, Residual, conv, names
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject.anatomy.stages import find_trunk

IMAGE = torch.empty(1, 3, 64, 64)


def places(net: nn.Module, example_input: Any = None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for block in find_trunk(net, example_input).off_trunk:
        assert block.place is not None
        found.setdefault(block.place, []).append(block.name)
    return found


class UNet(nn.Module):
    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8))
        self.down = nn.ModuleList([block(8, 16, 2), block(16, 32, 2), block(32, 64, 2)])
        self.raise_2, self.raise_1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.up_2, self.up_1 = block(64, 32), block(32, 16)
        self.head, self.auxiliary = nn.Conv2d(16, 2, 1), nn.Sequential(conv(32, 16), nn.Conv2d(16, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = self.down[0](self.stem(x))
        two = self.down[1](one)
        out = self.up_2(torch.cat((self.raise_2(self.down[2](two)), two), 1))
        out = self.up_1(torch.cat((self.raise_1(out), one), 1))
        return self.head(out), self.auxiliary(two)


@pytest.mark.parametrize("block", [Residual, DoubleConv])
def test_the_decoder_of_a_u_net(block: type[nn.Module]) -> None:
    assert places(UNet(block), IMAGE) == {
        "stem": ["stem.0.0"],
        "decoder": ["raise_2", "up_2", "raise_1", "up_1"],
        "head": ["auxiliary.0.0"],  # the last convolutions put out results
    }


def test_a_decoder_without_skips() -> None:
    up = [nn.Upsample(scale_factor=2), conv(16, 8), conv(8, 8), nn.Conv2d(8, 3, 1)]
    net = nn.Sequential(conv(3, 8), Residual(8, 16, 2), Residual(16, 16, 2), *up)
    assert places(net, IMAGE) == {"stem": ["0.0"], "decoder": ["4.0", "5.0"]}


def test_a_pyramid_in_the_code_of_the_model_is_a_neck() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(3, 8)
            self.stages = nn.ModuleList([Residual(8, 16, 2), Residual(16, 32, 2)])
            self.lateral = nn.ModuleList([nn.Conv2d(width, 16, 1) for width in (16, 32)])
            self.smooth = conv(16, 16)
            self.heads = nn.ModuleList([nn.Sequential(conv(16, 16), nn.Conv2d(16, 4, 1)) for _ in range(2)])

        def forward(self, x: Tensor) -> list[Tensor]:
            high = self.stages[0](self.stem(x))
            low = self.lateral[1](self.stages[1](high))
            high = self.smooth(self.lateral[0](high) + F.interpolate(low, scale_factor=2))
            return [head(x) for head, x in zip(self.heads, (high, low), strict=True)]

    assert places(Pyramid(), IMAGE) == {
        "stem": ["stem.0"],
        "neck": ["lateral.1", "lateral.0", "smooth.0"],
        "head": ["heads.0.0.0", "heads.1.0.0"],
    }


def test_the_heads_of_a_pyramid_without_a_way_down_are_no_trunk() -> None:
    """As in YOLOv3-tiny: one level's head is behind the pyramid, the other's directly behind the trunk."""

    class Detect(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            branches = [nn.Sequential(conv(16, 16), conv(16, 16), nn.Conv2d(16, 2, 1)) for _ in range(4)]
            self.boxes, self.classes = nn.ModuleList(branches[:2]), nn.ModuleList(branches[2:])

        def forward(self, *maps: Tensor) -> Tensor:
            levels = zip(self.boxes, self.classes, maps, strict=True)
            return torch.cat([torch.cat([box(x), score(x)], 1).flatten(2) for box, score, x in levels], 2)

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(conv(3, 16, 2), conv(16, 16, 2), conv(16, 16, 2))
            self.lateral, self.merge, self.detect = conv(16, 16), conv(32, 16), Detect()

        def forward(self, x: Tensor) -> Tensor:
            one = self.body[1](self.body[0](x))
            two = self.body[2](one)
            raised = F.interpolate(self.lateral(two), scale_factor=2)
            return self.detect(self.merge(torch.cat([raised, one], 1)), two)

    assert names(Detector(), IMAGE)[-1] == (8, ["body.2.0", "lateral.0"])
    assert places(Detector(), IMAGE)["head"] == [
        *("detect.boxes.1.0.0", "detect.boxes.1.1.0"),
        *("detect.classes.1.0.0", "detect.classes.1.1.0"),
    ]


def test_a_convolution_between_two_blocks_of_the_trunk_is_a_transition() -> None:
    net = nn.Sequential(conv(3, 8, 2), Residual(8, 8), conv(8, 16, 2), Residual(16, 16), conv(16, 32))
    assert places(net, IMAGE) == {"stem": ["0.0"], "transition": ["2.0"], "head": ["4.0"]}


def test_the_pyramid_and_the_region_proposals_of_a_detector() -> None:
    with torch.device("meta"):
        net = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    found = places(net)
    assert found["stem"] == ["backbone.body.conv1"]
    assert len(found["neck"]) == 8
    assert all(name.startswith("backbone.fpn.") for name in found["neck"])
    assert found["head"] == ["rpn.head.conv.0.0"]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("deeplabv3_resnet50", ["classifier.0", "classifier.1"]),
        ("fcn_resnet50", ["classifier.0"]),
    ],
)
def test_the_heads_of_segmentation_networks(name: str, head: list[str]) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=True)
    found = places(net)
    assert found.keys() == {"stem", "head"}
    assert found["head"] == [*head, "aux_classifier.0"]
