"""find_stages: numbers, reductions, blocks."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import timm
import torch
import torchvision
from networks import NETWORKS, CifarResNet, example_for, plain_conv_net
from torch import nn

from dropblock_inject import DropBlockInjectError, find_stages
from dropblock_inject.tracing.example_input import example_of_size

# network: (reduction, channels, map size, blocks, first block) of every stage from the shallowest; number of the first
EFFICIENTNET = [(2, 16, 112, 1), (4, 24, 56, 2), (8, 40, 28, 2), (16, 112, 14, 6), (32, 320, 7, 5)]
MOBILENET_V3 = [(2, 16, 112, 1), (4, 24, 56, 2), (8, 40, 28, 3), (16, 112, 14, 6), (32, 160, 7, 3)]
CONVNEXT = [(4, 96, 56, 3), (8, 192, 28, 3), (16, 384, 14, 9), (32, 768, 7, 3)]
REGNET = [(4, 48, 56, 1), (8, 104, 28, 3), (16, 208, 14, 6), (32, 440, 7, 6)]


def resnet(blocks: tuple[int, ...], expansion: int) -> list[tuple[int, int, int, int]]:
    return [(4 << i, (64 << i) * expansion, 56 >> i, count) for i, count in enumerate(blocks)]


EXPECTED = {
    "own:cifar_resnet": (1, [(1, 16, 32, 2), (2, 32, 16, 2), (4, 64, 8, 2)], "stage1.0"),
    "own:concat_net": (1, [(2, 16, 16, 2), (4, 32, 8, 2)], "3"),
    "own:conv_mixer": (1, [(2, 16, 16, 2), (4, 32, 8, 2)], "1"),
    "own:plain_conv_net": (1, [(1, 16, 32, 1), (2, 32, 16, 1), (4, 64, 8, 1), (8, 64, 4, 1)], "0"),
    "timm:convnext_tiny": (1, CONVNEXT, "stages.0.blocks.0"),
    "timm:efficientnet_b0": (0, EFFICIENTNET, "blocks.0.0"),
    "timm:mobilenetv3_large_100": (0, MOBILENET_V3, "blocks.0.0"),
    "timm:regnety_004": (1, REGNET, "s1.b1"),
    "timm:resnet18": (1, resnet((2, 2, 2, 2), 1), "layer1.0"),
    "timm:resnet50": (1, resnet((3, 4, 6, 3), 4), "layer1.0"),
    "timm:resnet50d": (1, resnet((3, 4, 6, 3), 4), "layer1.0"),
    "timm:seresnext50_32x4d": (1, resnet((3, 4, 6, 3), 4), "layer1.0"),
    "own:video_net": (1, [(2, 8, 8, 1), (4, 16, 4, 2)], "3"),
    "own:small_efficientnet": (1, [(2, 16, 16, 1), (4, 24, 8, 2), (8, 40, 4, 2)], "features.1.0"),
    "timm:test_convnext": (1, [(4, 24, 40, 1), (8, 32, 20, 2), (16, 48, 10, 4), (32, 64, 5, 2)], "stages.0.blocks.0"),
    "timm:tf_efficientnet_lite0": (0, EFFICIENTNET, "blocks.0.0"),
    "torchvision:convnext_tiny": (1, CONVNEXT, "features.1.0"),
    "torchvision:densenet121": (
        1,
        [(4, 32, 56, 6), (8, 32, 28, 12), (16, 32, 14, 24), (32, 32, 7, 16)],
        "features.denseblock1.denselayer1",
    ),
    "torchvision:efficientnet_b0": (0, EFFICIENTNET, "features.1.0"),
    "torchvision:mobilenet_v2": (
        0,
        [(2, 16, 112, 1), (4, 24, 56, 2), (8, 32, 28, 3), (16, 96, 14, 7), (32, 320, 7, 4)],
        "features.1",
    ),
    "torchvision:mobilenet_v3_large": (0, MOBILENET_V3, "features.1"),
    "torchvision:regnet_y_400mf": (1, REGNET, "trunk_output.block1.block1-0"),
    "torchvision:resnet101": (1, resnet((3, 4, 23, 3), 4), "layer1.0"),
    "torchvision:resnet18": (1, resnet((2, 2, 2, 2), 1), "layer1.0"),
    "torchvision:resnet34": (1, resnet((3, 4, 6, 3), 1), "layer1.0"),
    "torchvision:resnet50": (1, resnet((3, 4, 6, 3), 4), "layer1.0"),
    "torchvision:resnext50_32x4d": (1, resnet((3, 4, 6, 3), 4), "layer1.0"),
    "torchvision:vgg16_bn": (
        0,
        [(1, 64, 224, 2), (2, 128, 112, 2), (4, 256, 56, 3), (8, 512, 28, 3), (16, 512, 14, 3)],
        "features.0",
    ),
    "torchvision:wide_resnet50_2": (1, resnet((3, 4, 6, 3), 4), "layer1.0"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_of_every_network(name: str) -> None:
    net = NETWORKS[name]()
    first, expected, first_block = EXPECTED[name]
    stages = find_stages(net, example_for(name))
    assert [stage.index for stage in stages] == list(range(first, first + len(expected)))
    found = [(stage.reduction, stage.channels, stage.map_size[0], len(stage.blocks)) for stage in stages]
    assert found == expected
    assert all(stage.map_size[0] == stage.map_size[1] for stage in stages)
    assert stages[0].blocks[0].name == first_block
    modules = dict(net.named_modules())
    assert all(block.name in modules for stage in stages for block in stage.blocks)


@pytest.mark.parametrize("pixels", [(96, 96), (160, 160), (288, 288), (97, 131)])
@pytest.mark.parametrize("name", NETWORKS)
def test_stages_do_not_depend_on_the_size_of_the_image(name: str, pixels: tuple[int, int]) -> None:
    net = NETWORKS[name]()
    size = (16, *pixels) if name == "own:video_net" else pixels
    for expected, found in zip(find_stages(net), find_stages(net, torch.empty(1, 3, *size)), strict=True):
        assert (expected.index, expected.reduction, expected.channels, expected.blocks) == (
            found.index,
            found.reduction,
            found.channels,
            found.blocks,
        )
        assert found.map_size[-2] == pytest.approx(pixels[0] / found.reduction, abs=1)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet50", "resnet18", "efficientnet_b0", "regnety_004"])
def test_dilation_does_not_merge_stages(name: str, output_stride: int) -> None:
    plain = find_stages(timm.create_model(name))
    dilated = find_stages(timm.create_model(name, output_stride=output_stride))
    for before, after in zip(plain, dilated, strict=True):
        assert (before.index, before.blocks, before.reduction) == (after.index, after.blocks, after.reduction)
        assert after.map_size[0] == 224 // min(before.reduction, output_stride)


def test_dilation_of_torchvision() -> None:
    net = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    assert [(stage.index, stage.reduction, stage.map_size[0]) for stage in find_stages(net)] == [
        (1, 4, 56),
        (2, 8, 28),
        (3, 16, 28),
        (4, 32, 28),
    ]


class Wrapper(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.backbone = net

    def forward(self, batch: dict, *, key: str = "images"):
        return self.backbone(batch[key])


EXAMPLES = {
    "tensor": (lambda net: net, torch.empty(1, 3, 64, 64)),
    "batch of 4": (lambda net: net, torch.empty(4, 3, 64, 64)),
    "not square": (lambda net: net, torch.empty(1, 3, 64, 96)),
    "tuple of arguments": (lambda net: net, (torch.empty(1, 3, 64, 64),)),
    "keyword arguments": (lambda net: net, {"x": torch.empty(1, 3, 64, 64)}),
    "dict within a tuple": (Wrapper, ({"images": torch.empty(1, 3, 64, 64)},)),
    "dict within keywords": (Wrapper, {"batch": {"image": torch.empty(1, 3, 64, 64)}, "key": "image"}),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_input_is_what_the_model_is_called_with(example: str) -> None:
    wrap, example_input = EXAMPLES[example]
    stages = find_stages(wrap(torchvision.models.resnet18()), example_input)
    assert [stage.map_size[0] for stage in stages] == [16, 8, 4, 2]
    assert [stage.index for stage in stages] == [1, 2, 3, 4]


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tresnet_m"])  # the last folds pixels into channels
def test_images_of_other_channels_than_declared(name: str, channels: int) -> None:
    model = timm.create_model(name, in_chans=channels)
    assert find_stages(model) == find_stages(timm.create_model(name))
    assert find_stages(model, example_of_size(model, (96, 128)))[-1].map_size == (3, 4)


def test_names_within_a_wrapper_are_those_of_the_wrapper() -> None:
    for wrapped in (
        nn.Sequential(nn.Identity(), torchvision.models.resnet18()),
        Wrapper(torchvision.models.resnet18()),
    ):
        example = ({"images": torch.empty(1, 3, 64, 64)},) if isinstance(wrapped, Wrapper) else None
        modules = dict(wrapped.named_modules())
        blocks = [block.name for stage in find_stages(wrapped, example) for block in stage.blocks]
        assert len(blocks) == 8
        assert all(block in modules for block in blocks)


def test_a_forward_that_fails_after_the_trunk_is_no_obstacle() -> None:
    class Head(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:  # needs data
                raise AssertionError("unreachable without data")
            return x

    net = nn.Sequential(torchvision.models.resnet18(), Head())
    assert [stage.index for stage in find_stages(net)] == [1, 2, 3, 4]


def test_a_cut_network_counts_from_its_shallowest_stage() -> None:
    net = torchvision.models.resnet18()
    cut = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3)
    assert [(stage.index, stage.reduction) for stage in find_stages(cut)] == [(1, 4), (2, 8), (3, 16)]


def test_four_levels_end_at_stage_4_whatever_their_reduction() -> None:
    net = torchvision.models.resnet18()
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1), nn.Identity()  # the form for CIFAR
    stages = find_stages(net, torch.empty(1, 3, 32, 32))
    assert [(stage.index, stage.reduction) for stage in stages] == [(1, 1), (2, 2), (3, 4), (4, 8)]


def test_missing_padding_and_small_images_do_not_shift_the_levels() -> None:
    net = torchvision.models.inception_v3(init_weights=False)
    for pixels in (299, 224, 160, 128):
        stages = find_stages(net, torch.empty(1, 3, pixels, pixels))
        assert [(stage.index, stage.reduction) for stage in stages] == [(2, 8), (3, 16), (4, 32)]
    net = timm.create_model("tinynet_e")  # made for 106 pixels
    assert [stage.reduction for stage in find_stages(net)][-2:] == [16, 32]


def test_other_devices_dtypes_and_frozen_weights_do_not_matter() -> None:
    expected = find_stages(torchvision.models.resnet18())
    with torch.device("meta"):
        assert find_stages(torchvision.models.resnet18()) == expected
    assert find_stages(torchvision.models.resnet18().half()) == expected
    assert find_stages(torchvision.models.resnet18().double().requires_grad_(False)) == expected
    with torch.inference_mode():
        assert find_stages(torchvision.models.resnet18()) == expected


def test_tensors_that_are_plain_attributes_are_no_obstacle() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = torch.tensor([0.5, 0.5, 0.5]).view(3, 1, 1)
            self.scale = nn.Parameter(torch.ones(1)) * 2  # not a leaf: refuses to be copied
            self.net = CifarResNet()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net((x - self.mean) * self.scale * torch.ones(1))

    net = Normalised()
    assert len(find_stages(net, torch.empty(1, 3, 32, 32))) == 3
    assert net.mean.device.type == "cpu"


def test_1d_and_3d_networks() -> None:
    def net(conv: type, norm: type, pool: type) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, width in ((1, 8), (8, 16), (16, 32)):
            layers += [conv(inputs, width, 3, padding=1), norm(width), nn.ReLU(), pool(2)]
        return nn.Sequential(*layers)

    for built, example in (
        (net(nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d), torch.empty(1, 1, 64)),
        (net(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d), torch.empty(1, 1, 16, 16, 16)),
    ):
        stages = find_stages(built, example)
        assert [(stage.index, stage.reduction, stage.channels) for stage in stages] == [
            (1, 1, 8),
            (2, 2, 16),
            (3, 4, 32),
        ]
        assert len(stages[0].map_size) == example.dim() - 2


@pytest.mark.parametrize(
    "net", [nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), nn.Identity(), nn.TransformerEncoderLayer(8, 2)]
)
def test_without_a_convolution_the_refusal_says_why(net: nn.Module) -> None:
    with pytest.raises(DropBlockInjectError, match=rf"no convolution in {type(net).__name__}.*drop path"):
        find_stages(net)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mixer_s32_224", "deit_tiny_patch16_224"])
def test_a_transformer_is_refused_for_want_of_a_trunk(name: str) -> None:
    with pytest.raises(DropBlockInjectError, match=r"no convolutional trunk in .*drop path"):
        find_stages(timm.create_model(name))


def test_an_input_that_does_not_fit_says_what_to_pass() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain_conv_net()

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.net(left - right)

    net = TwoInputs()
    with pytest.raises(
        DropBlockInjectError, match=r"shape \(1, 3, 224, 224\): TypeError.*right.*Pass an example_input"
    ) as caught:
        find_stages(net)
    assert "tuple of positional arguments" in str(caught.value)
    images = torch.empty(1, 3, 32, 32)
    assert len(find_stages(net, (images, images))) == 4


def test_a_model_that_cannot_be_copied_or_is_not_ready_says_so() -> None:
    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain_conv_net()
            self.lock = threading.Lock()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    with pytest.raises(DropBlockInjectError, match=r"Locked cannot be copied, which tracing does .*: TypeError.*lock"):
        find_stages(Locked())
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(DropBlockInjectError, match="lazy layers that know no shapes yet: run it once"):
        find_stages(lazy)


class EndsHalfWay(nn.Module):
    """Asks for a value in the middle of the trunk, and has a layer of a sort that keeps count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet18()
        self.net.layer3[0].register_forward_hook(self.ask)
        self.calls = 0

    def ask(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        if output.sum() > 0:
            self.calls += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.net(x)


@pytest.mark.parametrize(
    ("build", "outcome"),
    [
        (torchvision.models.resnet18, nullcontext()),
        (EndsHalfWay, pytest.raises(DropBlockInjectError, match=r"ended early, before net\.layer3\.1")),
    ],
    ids=["goes through", "ends half-way"],
)
def test_nothing_is_touched(build: Callable[[], nn.Module], outcome: AbstractContextManager) -> None:
    net = build().train()
    frozen = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    versions = [tensor._version for tensor in net.state_dict(keep_vars=True).values()]
    modes = [module.training for module in net.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()]
    random = torch.get_rng_state()
    with outcome:
        find_stages(net)
    assert torch.equal(random, torch.get_rng_state())
    assert [module.training for module in net.modules()] == modes
    assert not frozen.training
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()] == hooks
    assert [tensor._version for tensor in net.state_dict(keep_vars=True).values()] == versions
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert getattr(net, "calls", 0) == 0
    assert gc.isenabled()
    assert torch.is_grad_enabled()
