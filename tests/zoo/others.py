"""Networks of other libraries, built from their configurations with random weights. Nothing is downloaded.

The libraries are not in the test extra. A sweep over one of them says what to install.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LIBRARIES = ("pytorchcv", "transformers", "ultralytics", "monai", "segmentation_models_pytorch")
_MOST_PIXELS = 224  # per side, where a network has no size of its own that it insists on


@dataclass(frozen=True)
class Network:
    """A network of another library, by its name there, or by that of its configuration."""

    library: str
    name: str

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    @property
    def family(self) -> str:
        """The file or the group of configurations that it comes from."""
        return f"{self.library}.{_NETWORKS[self.library]()[self.name][0]}"

    @property
    def is_transformer(self) -> bool:
        return False

    def build(self, device: str = "cpu") -> nn.Module:
        with torch.device(device):
            return _NETWORKS[self.library]()[self.name][1]()

    def images(self, net: nn.Module) -> list[Tensor]:
        """An image of each size that it may be called with, the smallest first."""
        shape = _NETWORKS[self.library]()[self.name][2]
        declared = getattr(net, "in_size", None)
        sizes = [shape] if shape else []
        if not shape and declared is not None and len(declared) == 2:
            own = tuple(map(int, declared))
            smaller = tuple(min(side, _MOST_PIXELS) for side in own)
            sizes = [(3, *smaller), (3, *own)] if smaller != own else [(3, *own)]
        channels = getattr(net, "in_channels", None)
        if isinstance(channels, int):
            sizes = [(channels, *size[1:]) for size in sizes]
        generator = torch.Generator().manual_seed(0)
        return [torch.rand(1, *size, generator=generator) for size in sizes or [(3, _MOST_PIXELS, _MOST_PIXELS)]]


def networks_of(library: str) -> list[Network]:
    """The networks of a library, sorted by family.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        importlib.import_module(library)
    except ImportError as problem:
        raise SystemExit(f"{problem}; for this sweep: pip install {library}") from problem
    return [Network(library, name) for name in _NETWORKS[library]()]


Entry = tuple[str, Callable[[], nn.Module], "tuple[int, ...] | None"]  # family, how it is built, shape of an image


def _of_pytorchcv() -> dict[str, Entry]:
    models = importlib.import_module("pytorchcv.model_provider")._models
    families = {name: make.__module__.rpartition(".")[2] for name, make in models.items()}
    # Not called with one image, or not built without a package for sound.
    others = ("jasper", "nvpattexp", "propainter", "quartznet", "raft", "visemenet", "voca")
    shapes = {"pfpcnet": (1, 320, 240), "superpointnet": (1, 224, 224)}
    return {
        name: (families[name], make, shapes.get(name))
        for name, make in models.items()
        if not families[name].startswith(others)
    }


def _of_transformers() -> dict[str, Entry]:
    library: Any = importlib.import_module("transformers")

    def entry(name: str, size: int = 128, kind: str = "Model", **options: Any) -> tuple[str, Entry]:
        config, model = getattr(library, f"{name}Config"), getattr(library, f"{name}{kind}")
        return name, (name, lambda: model(config(**options)), (3, size, size))

    def of_sound(name: str, shape: tuple[int, ...], **options: Any) -> tuple[str, Entry]:
        make = entry(name, **options)[1][1]
        # Of a model that writes text, too, the part that listens.
        return name, (name, lambda: make().get_encoder() if name == "Whisper" else make(), shape)

    small: dict[str, Any] = {"depths": [1, 1, 2, 1]}
    few: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64}
    whisper = {f"{part}_{of}": 2 for part in ("encoder", "decoder") for of in ("layers", "attention_heads")}
    resnet = library.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    channels: dict[str, Any] = {"backbone_config": resnet, "auxiliary_in_channels": 1024}
    wanted = [
        entry("ResNet"),
        entry("RegNet", depths=[1, 1, 2, 1]),
        entry("ConvNext", **small),
        entry("ConvNextV2", **small),
        entry("DINOv3ConvNext", **small),
        entry("MobileNetV1"),
        entry("MobileNetV2"),
        entry("EfficientNet"),
        entry("Bit"),
        entry("PoolFormer"),
        entry("FocalNet"),
        entry("Cvt", size=224),
        entry("Levit", size=224),
        entry("MobileViT", size=256),
        entry("MobileViTV2", size=256),
        entry("SwiftFormer", size=224),
        entry("TextNet"),
        entry("HGNetV2", kind="ForImageClassification"),
        entry("RTDetrResNet", kind="Backbone"),
        entry("PPLCNet", kind="ForImageClassification"),
        entry("PPLCNetV3", kind="Backbone"),
        entry("PPLCNetV4", kind="Backbone"),
        entry("PPOCRV5MobileDet"),
        entry("PPOCRV6TinyRec"),
        entry("SLANet", kind="Backbone"),
        entry("AlignVision"),
        entry("SuperPoint", kind="ForKeypointDetection"),
        entry("RTDetr", size=256),
        entry("RTDetrV2", size=256),
        entry("DFine", size=256),
        entry("Detr", size=128, use_timm_backbone=False, backbone_config=resnet, encoder_layers=1, decoder_layers=1),
        entry("UperNet", kind="ForSemanticSegmentation", **channels),
        of_sound("Wav2Vec2", (16000,), **few),
        of_sound("Hubert", (16000,), **few),
        of_sound("Whisper", (80, 3000), d_model=64, **whisper),
        of_sound("Encodec", (1, 16000)),
        of_sound("Dac", (1, 16000)),
    ]
    return dict(wanted)


def _of_ultralytics() -> dict[str, Entry]:
    tasks: Any = importlib.import_module("ultralytics.nn.tasks")
    folder = Path(importlib.import_module("ultralytics").__file__ or "").parent / "cfg" / "models"
    kinds = {
        "rtdetr": tasks.RTDETRDetectionModel,
        "world": tasks.WorldModel,
        "yoloe": tasks.YOLOEModel,
        "-cls": tasks.ClassificationModel,
        "-seg": tasks.SegmentationModel,
        "-pose": tasks.PoseModel,
        "-obb": tasks.OBBModel,
        "-depth": tasks.DepthModel,
        "-sem": tasks.SemanticSegmentationModel,
    }

    def make(file: Path) -> nn.Module:
        kind = next((kind for part, kind in kinds.items() if part in file.stem), tasks.DetectionModel)
        return kind(str(file), verbose=False)

    return {
        file.stem: (file.parent.name, lambda file=file: make(file), (3, 128, 128))  # type: ignore[misc]
        for file in sorted(folder.rglob("*.yaml"))
        if file.stem != "yolo11-cls-resnet18"  # it downloads torchvision's weights
    }


def _of_monai() -> dict[str, Entry]:
    nets: Any = importlib.import_module("monai.networks.nets")

    def entry(name: str, shape: tuple[int, ...], *args: Any, **options: Any) -> tuple[str, Entry]:
        sides = len(shape) - 1
        return f"{name}-{sides}d", (name, lambda: getattr(nets, name)(*args, **options), shape)

    unet = {"channels": (8, 16, 32, 64), "strides": (2, 2, 2)}
    kernels = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2, 2, 2]}
    flat, solid = (1, 64, 64), (1, 32, 32, 32)
    wanted = [
        entry("UNet", flat, 2, 1, 2, **unet),
        entry("UNet", solid, 3, 1, 2, **unet, num_res_units=2),
        entry("BasicUNet", flat, 2, 1, 2),
        entry("BasicUNet", solid, 3, 1, 2),
        entry("BasicUNetPlusPlus", flat, 2, 1, 2),
        entry("AttentionUnet", flat, 2, 1, 2, **unet),
        entry("DynUNet", flat, 2, 1, 2, **kernels),
        entry("DynUNet", solid, 3, 1, 2, **kernels, res_block=True),
        entry("SegResNet", flat, 2, 8, 1, 2),
        entry("SegResNet", solid, 3, 8, 1, 2),
        entry("SegResNetDS", solid, 3, 8, 1, 2),
        entry("SegResNetVAE", solid, solid[1:], spatial_dims=3, init_filters=8, in_channels=1),
        entry("VNet", solid, 3),
        entry("FlexibleUNet", (3, 64, 64), 3, 2, "efficientnet-b0"),
        entry("DenseNet121", flat, 2, 1, 2),
        entry("DenseNet121", solid, 3, 1, 2),
        entry("EfficientNetBN", (3, 64, 64), "efficientnet-b0", pretrained=False),
        entry("SEResNet50", flat, spatial_dims=2, in_channels=1, num_classes=2),
        entry("SEResNext50", flat, spatial_dims=2, in_channels=1, num_classes=2),
        entry("ResNet", solid, "basic", [1, 1, 1, 1], [8, 16, 32, 64], n_input_channels=1),
        entry("HighResNet", solid, 3, 1, 2),
        entry("AHNet", (1, 128, 128, 32), spatial_dims=3, psp_block_num=0),
        entry("MedNeXtS", solid, in_channels=1, out_channels=2),
        entry("AutoEncoder", flat, 2, 1, 1, channels=(8, 16, 32), strides=(2, 2, 2)),
        entry("VarAutoEncoder", flat, 2, flat, 1, 4, channels=(8, 16, 32), strides=(2, 2, 2)),
        entry("RegUNet", solid, 3, 1, 8, depth=3, out_kernel_initializer="zeros", out_activation=None),
        entry("PatchDiscriminator", flat, 2, 16, 1),
        entry("Quicknat", flat),
        entry("HoVerNet", (3, 256, 256)),
        entry("MedNeXtB", solid, in_channels=1, out_channels=2),
        entry("SegResNetDS2", solid, 3, 8, 1, 2),
        entry("DenseNet169", flat, 2, 1, 2),
        entry("DenseNet201", flat, 2, 1, 2),
        entry("SENet154", (3, 64, 64), spatial_dims=2, in_channels=3, num_classes=2),
        entry("SEResNet101", flat, spatial_dims=2, in_channels=1, num_classes=2),
        entry("SEResNext101", flat, spatial_dims=2, in_channels=1, num_classes=2),
        entry("resnet18", solid, spatial_dims=3, n_input_channels=1, num_classes=2),
        entry("resnet50", solid, spatial_dims=3, n_input_channels=1, num_classes=2),
        entry("TorchVisionFCModel", (3, 224, 224), pretrained=False),
        entry("Regressor", flat, flat, 2, (8, 16, 32), (2, 2, 2)),
        entry("Classifier", flat, flat, 2, (8, 16, 32), (2, 2, 2)),
        entry("Discriminator", flat, flat, (8, 16, 32), (2, 2, 2)),
        entry("Critic", flat, flat, (8, 16, 32), (2, 2, 2)),
        entry("GlobalNet", solid, solid[1:], 3, 1, 8, depth=3),
        entry("LocalNet", solid, 3, 1, 8, (0, 1, 2), out_activation=None),
        entry("VoxelMorphUNet", (2, 32, 32, 32), 3, 2, 8, (8, 16, 16, 16, 16, 16), (16, 16)),
        entry("UNETR", (1, 32, 32, 32), 1, 2, (32, 32, 32), hidden_size=48, mlp_dim=48, num_heads=4),
    ]
    return dict(wanted)


def _of_segmentation_models_pytorch() -> dict[str, Entry]:
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    decoders = (
        "Unet",
        "UnetPlusPlus",
        "MAnet",
        "Linknet",
        "FPN",
        "PSPNet",
        "DeepLabV3Plus",
        "PAN",
        "UPerNet",
        "Segformer",
    )
    encoders = ("resnet18", "efficientnet-b0", "mobilenet_v2", "mobileone_s0", "vgg11_bn", "densenet121", "mit_b0")
    encoders += ("tu-convnext_atto", "tu-regnety_002")
    # With a U-Net alone: one encoder of each kind.
    others = ("resnext50_32x4d", "dpn68", "vgg11", "se_resnet50", "se_resnext50_32x4d", "inceptionresnetv2", "xception")
    others += (
        "inceptionv4",
        "timm-efficientnet-b0",
        "timm-tf_efficientnet_lite0",
        "timm-skresnet18",
        "tu-hrnet_w18_small",
    )
    others += ("tu-mobilenetv3_small_050",)
    # Encoders that a decoder refuses: it needs maps that they do not have, or dilation.
    refused = {
        "mit_b0": ("UnetPlusPlus", "Linknet"),
        "vgg11_bn": ("DeepLabV3Plus", "PAN"),
        "densenet121": ("DeepLabV3Plus", "PAN"),
    }

    def entry(decoder: str, encoder: str) -> tuple[str, Entry]:
        make = partial(getattr(smp, decoder), encoder, encoder_weights=None)
        return f"{decoder}-{encoder}", (decoder, make, (3, 128, 128))

    pairs = [(decoder, encoder) for decoder in decoders for encoder in encoders]
    pairs += [("Unet", encoder) for encoder in others]
    return dict(entry(decoder, encoder) for decoder, encoder in pairs if decoder not in refused.get(encoder, ()))


_NETWORKS = {
    "pytorchcv": _of_pytorchcv,
    "transformers": _of_transformers,
    "ultralytics": _of_ultralytics,
    "monai": _of_monai,
    "segmentation_models_pytorch": _of_segmentation_models_pytorch,
}
