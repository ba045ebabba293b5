"""stages=None: every block of a network, in the trunk or off it, chosen by name."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from injected import assert_live, wake_branches
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import (
    DropBlockInjectError,
    dropblock_sites,
    inject_dropblock,
    plan_dropblock,
    remove_dropblock,
)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Up(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))


class UNet(nn.Module):
    """Three levels down and two up again."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1, self.encoder2, self.encoder3 = conv(3, 8), conv(8, 16, 2), conv(16, 32, 2)
        self.decoder2, self.decoder1 = Up(48, 16), Up(24, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.encoder1(x)
        two = self.encoder2(one)
        return self.head(self.decoder1(self.decoder2(self.encoder3(two), two), one))


IMAGE = torch.empty(1, 3, 32, 32)


def unet() -> tuple[nn.Module, Tensor, dict]:
    return UNet(), torch.randn(2, 3, 32, 32), {"include": "decoder*", "example_input": IMAGE}


def deeplab() -> tuple[nn.Module, Tensor, dict]:
    net = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3)
    return Only(net, "out"), torch.randn(2, 3, 64, 64), {"include": "net.classifier.*"}


class Only(nn.Module):
    """A model of which one output counts."""

    def __init__(self, net: nn.Module, key: str) -> None:
        super().__init__()
        self.net, self.key = net, key

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[self.key]


CASES = {"the decoder of a U-Net": unet, "the head of a DeepLabV3": deeplab}


@pytest.mark.parametrize("case", CASES)
def test_sites_off_the_trunk_keep_all_promises(case: str) -> None:
    net, images, request = CASES[case]()
    wake_branches(net)
    plain = copy.deepcopy(net)
    before, keys = repr(net), list(net.state_dict())
    report = inject_dropblock(net, stages=None, keep_prob=0.8, block_size=3, **request)
    assert report
    assert {(site.stage, site.keep_prob) for site in report} == {(None, 0.8)}
    assert list(net.state_dict()) == keys
    with torch.no_grad():
        assert torch.equal(net.eval()(images), plain.eval()(images))
    net.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    assert_live(net, images, len(report))
    assert remove_dropblock(net) == len(report)
    assert repr(net) == before


def test_the_pyramid_of_a_detector() -> None:
    net = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    net.transform.min_size, net.transform.max_size = (96,), 96
    keys, before = list(net.state_dict()), repr(net)
    report = inject_dropblock(net, stages=None, include="backbone.fpn.*", keep_prob=0.5)
    assert {site.part for site in report} == {"neck"}
    assert len(report) == 8
    assert list(net.state_dict()) == keys
    images = [torch.rand(3, 96, 96)]
    features = net.backbone(torch.rand(1, 3, 96, 96))
    net.train()
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.rand(1, 3, 96, 96)
    first, second = net.backbone(x), net.backbone(x)
    assert features.keys() == first.keys()
    assert all(not torch.equal(first[key], second[key]) for key in "0123")
    assert all(row.live for row in dropblock_sites(net))
    with torch.no_grad():
        net.eval()(images)
    assert remove_dropblock(net) == 8
    assert repr(net) == before


def test_all_sites_are_listed_by_where_they_are() -> None:
    plan = plan_dropblock(UNet(), stages=None, example_input=IMAGE)
    parts = [site.part if site.stage is None else site.stage for site in plan]
    assert parts == [1, 2, 3, "decoder", "decoder"]
    assert [site.keep_prob for site in plan] == pytest.approx([1 - 0.1 / 16, 1 - 0.1 / 4, 0.9, 0.9, 0.9])
    firsts = [line.split()[0] for line in str(plan).splitlines()[4:] if line.strip()]
    assert firsts[:4] == ["1", "2", "3", "decoder"]


def test_a_mapping_speaks_of_what_is_off_the_trunk() -> None:
    request = {"stages": None, "example_input": IMAGE}
    plan = plan_dropblock(UNet(), keep_prob={None: 0.7}, include="decoder*", **request)
    assert {site.keep_prob for site in plan} == {0.7}
    plan = plan_dropblock(UNet(), keep_prob={None: 0.7, -1: 0.8, 1: 0.9, 2: 0.95}, **request)
    assert [site.keep_prob for site in plan] == [0.9, 0.95, 0.8, 0.7, 0.7]
    with pytest.raises(DropBlockInjectError, match="says nothing of stage None"):
        plan_dropblock(UNet(), keep_prob={1: 0.9, 2: 0.9, 3: 0.9}, **request)


def test_a_pattern_that_only_names_what_is_off_the_trunk_is_told_of_the_way_there() -> None:
    with pytest.raises(DropBlockInjectError, match="stages=None reaches what it matches"):
        plan_dropblock(UNet(), stages=-1, include="decoder1.*", example_input=IMAGE)


def test_the_stem_keeps_its_site_where_its_map_is_the_shortcut_of_all_blocks() -> None:
    """As in EDSR: the shortcut's mask comes behind that of the stem, and the blocks are given what is between."""

    class Res(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = conv(8, 8), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(self.first(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Conv2d(3, 8, 3, 1, 1), nn.Sequential(Res(), Res())
            self.after, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.after(self.body(x)))

    net, seen = Net(), {}
    report = inject_dropblock(net, None, keep_prob=0.5, block_size=3, example_input=torch.rand(1, 3, 16, 16))
    stem, skip = (
        site.name for where in ("branch", "skip") for site in report if (site.host, site.where) == ("stem", where)
    )
    for name in (stem, skip):
        net.get_submodule(name).register_forward_hook(
            lambda _, given, out, name=name: seen.update({name: (given[0], out)})
        )
    net.body.register_forward_hook(lambda _, given, out: seen.update(body=given[0]))
    net.train()(torch.rand(2, 3, 16, 16)).sum().backward()
    assert torch.equal(seen[skip][0], seen[stem][1]), "the shortcut is masked behind the stem's site"
    assert torch.equal(seen["body"], seen[stem][1]), "the branch must not see the mask of the shortcut"
    assert not torch.equal(seen[skip][1], seen[stem][1])
