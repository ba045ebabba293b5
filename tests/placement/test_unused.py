"""The line of a plan on what the walker saw and did not use."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import plan_dropblock
from dropblock_inject.errors import NoMatchError


def unused(net: nn.Module, *args: object, **kwargs: object) -> list[str]:
    lines = str(plan_dropblock(net, *args, **kwargs)).splitlines()
    return [line for line in lines if line.startswith("Not used")]


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, weights_backbone=None)


def test_blocks_off_the_trunk_are_counted_by_place() -> None:
    wanted = "Not used: blocks off the trunk: stem 1, neck 8, head 1 (stages=None reaches them)"
    assert unused(on_meta("fasterrcnn_resnet50_fpn")) == [wanted]
    assert plan_dropblock(on_meta("fcn_resnet50")).as_dict()["off_trunk"] == {"stem": 1, "head": 1}


def test_a_stem_alone_is_not_worth_a_line() -> None:
    assert not unused(torchvision.models.resnet18())


def test_additions_that_are_no_shortcuts_are_named_where_skip_sites_are_asked_for() -> None:
    with torch.device("meta"):
        net = timm.create_model("res2net50_14w_8s")
    assert unused(net, -1) == ["Not used: additions without a skip site: 12 (in layer4.1, layer4.2)"]
    assert not unused(net, -1, where="branch")


def test_convolutions_of_a_block_without_a_site_are_named() -> None:
    class Attention(nn.Module):
        """Its context is computed at a lower resolution: those convolutions are part of no branch on its own level."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.context = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            context = self.context(F.avg_pool2d(x, 4)).mean((2, 3), keepdim=True)
            return x + F.relu(self.conv(x)) * torch.sigmoid(context)

    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Attention())
    image = torch.empty(1, 3, 64, 64)
    assert unused(net, -1, example_input=image) == ["Not used: convolutions without a site: 1 (1.context)"]
    assert not unused(net, -1, where="output", example_input=image)


def test_layers_whose_forward_is_called_directly_have_no_site() -> None:
    """Hooks pass them by. What the code of a block does with the result goes on behind them."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            out = self.relu(self.conv1.forward(x))
            return self.relu(x + self.conv2.forward(out))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, 2)
            self.blocks = nn.Sequential(Block(), Block())

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(F.relu(self.stem.forward(x)))
            return self.head(x.mean((2, 3)))

    image = torch.empty(1, 3, 32, 32)
    plan = plan_dropblock(Net(), None, example_input=image)
    assert [(site.name, site.part, site.where, site.host) for site in plan] == [
        ("drop_branch1", "stem", "branch", "blocks")
    ]
    assert "Registered on a convolution" not in str(plan)
    assert unused(Net(), None, example_input=image) == ["Not used: convolutions without a site: 4 (blocks.0, blocks.1)"]
    with pytest.raises(NoMatchError, match=r"Hooks do not see a layer whose forward is called directly, as conv\.f"):
        plan_dropblock(Net(), -1, example_input=image)
