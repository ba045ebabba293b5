"""The networks that the tests inject into."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.efficientnet import EfficientNet, MBConvConfig

TORCHVISION = (
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "regnet_y_400mf",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "vgg16_bn",
    "wide_resnet50_2",
)
TIMM = (
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "regnety_004",
    "resnet18",
    "resnet50",
    "resnet50d",
    "seresnext50_32x4d",
    "test_convnext",
    "tf_efficientnet_lite0",
)


class PaddedShortcutBlock(nn.Module):
    """The block of the CIFAR ResNets, with the shortcut without weights ("option A"): strided and zero-padded."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.missing = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.missing:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for 32x32 images: three stages at full, half and quarter resolution."""

    def __init__(self, blocks_per_stage: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        stages = []
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            blocks = []
            for index in range(blocks_per_stage):
                blocks.append(PaddedShortcutBlock(inputs, width, stride if index == 0 else 1))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stage1, self.stage2, self.stage3 = stages
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean((2, 3)))


class MixerBlock(nn.Module):
    """Two residual adds. The block itself makes the shortcut of the second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.mixer = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.GELU())
        self.norm2 = nn.BatchNorm2d(width)
        self.mlp = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ConvMixer(nn.Sequential):
    """A mixer at a half and at a quarter of the resolution."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 2, 2),
            *(MixerBlock(16), MixerBlock(16)),
            nn.Conv2d(16, 32, 2, 2),
            *(MixerBlock(32), MixerBlock(32)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)),
        )


class ConcatBlock(nn.Module):
    """The block's own code reads the shortcut on the branch (as in HGNet), so no module can be given another tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.aggregate = nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.aggregate(torch.cat((x, self.conv(x)), 1))


class ConcatNet(nn.Sequential):
    """Blocks whose own code reads the shortcut, at a half and at a quarter of the resolution."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
            *(ConcatBlock(16), ConcatBlock(16)),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(ConcatBlock(32), ConcatBlock(32)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)),
        )


class VideoBlock(nn.Module):
    """The basic block in three dimensions, with a projected shortcut where the resolution or the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride), nn.BatchNorm3d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class VideoNet(nn.Sequential):
    """A residual network over clips (N, 3, T, H, W), at a half and at a quarter of the resolution."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            *(nn.Conv3d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm3d(8), nn.ReLU()),
            *(VideoBlock(8, 8, 1), VideoBlock(8, 16, 2), VideoBlock(16, 16, 1)),
            *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, classes)),
        )


def plain_conv_net(classes: int = 10) -> nn.Sequential:
    """Convolution, batch norm, ReLU and pooling, four times, in one flat sequence."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (16, 32, 64, 64):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def small_efficientnet(classes: int = 10) -> nn.Module:
    """torchvision's EfficientNet, narrow and short: SiLU, squeeze-excite, blocks with and without a shortcut."""
    settings = [
        MBConvConfig(1, 3, 1, 16, 16, 1, 1, 1),
        MBConvConfig(4, 3, 2, 16, 24, 2, 1, 1),
        MBConvConfig(4, 5, 2, 24, 40, 2, 1, 1),
    ]
    return EfficientNet(settings, dropout=0.0, stochastic_depth_prob=0.0, num_classes=classes)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, num_classes=10)


def _timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"torchvision:{name}": _torchvision(name) for name in TORCHVISION},
    **{f"timm:{name}": _timm(name) for name in TIMM},
    "own:cifar_resnet": CifarResNet,
    "own:concat_net": ConcatNet,
    "own:conv_mixer": ConvMixer,
    "own:plain_conv_net": plain_conv_net,
    "own:small_efficientnet": small_efficientnet,
    "own:video_net": VideoNet,
}
# Together they have every kind of site: on a branch, on an output, on the input of a block, on a projection (resnet18),
# on a shortcut that the block makes (conv_mixer) or reads (concat_net) itself; with channels last (test_convnext), in
# three dimensions (video_net), and in a sequence that runs every module registered on it (plain_conv_net).
EVERY_KIND = (
    "own:cifar_resnet",
    "own:concat_net",
    "own:conv_mixer",
    "own:plain_conv_net",
    "own:small_efficientnet",
    "own:video_net",
    "timm:resnet18",
    "timm:test_convnext",
    "torchvision:resnet18",
)


def image_shape(name: str) -> tuple[int, ...]:
    """Channels and pixels of the test images of a network."""
    if name == "own:video_net":
        return 3, 16, 16, 16
    return (3, 32, 32) if name.startswith("own:") else (3, 96, 96)


def example_for(name: str) -> Tensor | None:
    """The example input for a plan: a small image for the small networks, else None."""
    return torch.empty(1, *image_shape(name)) if name.startswith("own:") else None


def images_for(name: str, batch: int = 2) -> Tensor:
    """A small batch that the network can train on."""
    return torch.randn(batch, *image_shape(name))
