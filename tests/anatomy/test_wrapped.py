"""Models in models: wrappers, encoders of other libraries, models built from a configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from dropblock_inject import check_dropblock, find_stages, inject_dropblock, plan_dropblock

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import segmentation_models_pytorch as smp
    import transformers

RESNET18 = [(1, 4, 2), (2, 8, 2), (3, 16, 2), (4, 32, 2)]  # stage, reduction, blocks
CONVNEXT_ATTO = [(1, 4, 2), (2, 8, 2), (3, 16, 6), (4, 32, 2)]


def summary(net: nn.Module, example_input: object = None) -> list[tuple[int, int, int]]:
    return [(stage.index, stage.reduction, len(stage.blocks)) for stage in find_stages(net, example_input)]


class LikeLightning(nn.Module):
    """A training module: the model, a loss, a metric, and a forward that passes on what it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, nn.CrossEntropyLoss()

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class TwoStreams(nn.Module):
    """Two trunks side by side, for images and for differences of images."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.flow = torchvision.models.resnet18(), torchvision.models.resnet18()

    def forward(self, x: Tensor) -> Tensor:
        return self.rgb(x) + self.flow(x)


class Siamese(nn.Module):
    """One trunk, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = torchvision.models.resnet18()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.trunk(left) - self.trunk(right)


WRAPPED: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, int, int]], object]] = {
    "in a sequence": (lambda: nn.Sequential(nn.Identity(), torchvision.models.resnet18()), RESNET18, None),
    "in DataParallel": (lambda: nn.DataParallel(torchvision.models.resnet18()), RESNET18, None),
    "in a training module": (lambda: LikeLightning(torchvision.models.resnet18()), RESNET18, None),
    "two streams": (TwoStreams, [(i, r, 2 * n) for i, r, n in RESNET18], None),
    "siamese": (Siamese, RESNET18, (torch.empty(1, 3, 64, 64), torch.empty(1, 3, 64, 64))),
    "features of timm": (lambda: timm.create_model("resnet18", features_only=True), RESNET18, None),
    "cut features of timm": (
        lambda: timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3)),
        RESNET18[:3],
        None,
    ),
    "cut feature list of timm": (
        lambda: timm.create_model("convnext_atto", features_only=True, out_indices=(0, 1, 2)),
        CONVNEXT_ATTO[:3],
        None,
    ),
    "feature extractor of torchvision": (
        lambda: torchvision.models._utils.IntermediateLayerGetter(torchvision.models.resnet18(), {"layer3": "x"}),
        RESNET18[:3],
        None,
    ),
}
ENCODERS = {"resnet18": RESNET18, "tu-convnext_atto": CONVNEXT_ATTO}
DECODERS = ("Unet", "UnetPlusPlus", "Linknet", "FPN", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer")
BOTTLENECKS = [(1, 4, 1), (2, 8, 1), (3, 16, 2), (4, 32, 1)]
SMALL = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
HUGGING_FACE: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, int, int]]]] = {
    "ResNet": (
        lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig(embedding_size=16, **SMALL)),
        BOTTLENECKS,
    ),
    "RegNet": (
        lambda: transformers.RegNetForImageClassification(
            transformers.RegNetConfig(embedding_size=16, groups_width=8, **SMALL)
        ),
        BOTTLENECKS,
    ),
    "ConvNeXt": (
        lambda: transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**SMALL)),
        BOTTLENECKS,
    ),
    "MobileNetV2": (
        lambda: transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config()),
        [(1, 4, 2), (2, 8, 3), (3, 16, 7), (4, 32, 4)],
    ),
    "EfficientNet": (
        lambda: transformers.EfficientNetForImageClassification(
            transformers.EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280)
        ),
        [(0, 2, 1), (1, 4, 2), (2, 8, 2), (3, 16, 6), (4, 32, 5)],
    ),
    "timm": (
        lambda: transformers.TimmWrapperForImageClassification(transformers.TimmWrapperConfig(architecture="resnet18")),
        RESNET18,
    ),
}


def check_one_step(net: nn.Module, *images: Tensor) -> None:
    """Sites in the last two stages drop something in a training step."""
    inject_dropblock(
        net,
        [-2, -1],
        keep_prob=0.5,
        block_size=3,
        depth_scaling=False,
        example_input=images if len(images) > 1 else None,
    )
    check_dropblock(net)
    dropped = []
    for module in net.modules():
        if hasattr(module, "keep_prob"):
            module.register_forward_hook(lambda module, args, output: dropped.append(bool((output == 0).any())))
    net.train()
    net(*images)
    assert dropped
    assert all(dropped)


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped(name: str) -> None:
    build, expected, example = WRAPPED[name]
    net = build()
    assert summary(net, example) == expected
    check_one_step(net, *(torch.randn(2, 3, 96, 96) for _ in range(2 if name == "siamese" else 1)))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_encoder_and_decoder(decoder: str, encoder: str) -> None:
    net = getattr(smp, decoder)(encoder, encoder_weights=None)
    assert summary(net) == ENCODERS[encoder]
    assert all(block.name.startswith("encoder.") for stage in find_stages(net) for block in stage.blocks)


def test_encoder_without_shortcuts() -> None:
    net = smp.Unet("vgg11_bn", encoder_weights=None)
    names = [block.name for stage in find_stages(net) for block in stage.blocks]
    assert [name for name in names if name.startswith("encoder.features.")]
    assert not [name for name in names if name.startswith("decoder.blocks.")]


def test_an_encoder_trains() -> None:
    check_one_step(smp.Unet("resnet18", encoder_weights=None), torch.randn(2, 3, 96, 96))


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(name: str) -> None:
    build, expected = HUGGING_FACE[name]
    net = build()
    assert summary(net) == expected
    assert len(plan_dropblock(net, [3, 4], where="skip")) > 0
    check_one_step(net, torch.randn(2, 3, 96, 96))


def test_transformers_of_hugging_face_are_refused() -> None:
    for config, kind in (
        (transformers.ViTConfig(num_hidden_layers=2), transformers.ViTForImageClassification),
        (transformers.SegformerConfig(), transformers.SegformerForImageClassification),
        (transformers.SwinConfig(), transformers.SwinForImageClassification),
    ):
        with torch.device("meta"):
            net = kind(config)
        with pytest.raises(ValueError, match="no convolutional trunk"):
            find_stages(net)


def test_checkpointing_of_timm_is_no_obstacle() -> None:
    """With it on the same stages are found, and a step has the gradients of one without it, masks included."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = timm.create_model("resnet18", num_classes=5)
        net.set_grad_checkpointing(checkpointing)
        assert summary(net) == RESNET18
        inject_dropblock(net, [3, 4], keep_prob=0.7, block_size=3)
        torch.manual_seed(1)
        net.train()(torch.randn(2, 3, 64, 64)).square().mean().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for without, with_it in zip(*gradients, strict=True):
        torch.testing.assert_close(with_it, without)
