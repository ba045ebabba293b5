"""The models that timm and torchvision name, how to build each, and what to call it with."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unittest import mock

import timm
import torch
import torchvision
from torch import Tensor, nn

# Families without a convolutional trunk: they must be refused. All others must not be.
TRANSFORMERS = frozenset(
    (
        *("beit", "cait", "coat", "convit", "crossvit", "davit", "deepseek_vit", "deit", "eva", "gemma4_vit", "hiera"),
        *("hieradet_sam2", "mlp_mixer", "mvitv2", "naflexvit", "nest", "pit", "pvt_v2", "qwen3_vit", "sequencer"),
        *("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tnt", "twins", "vision_transformer"),
        *("vision_transformer_relpos", "vision_transformer_sam", "volo", "xcit"),
        *("tv.swin_transformer", "tv.video.mvit", "tv.video.swin_transformer", "tv.vision_transformer"),
    )
)
_SIZES = (64, 96, 128, 160, 224, 299)  # for images that are cheap to compute on; some models take none of these
# Small images and few proposals for detectors, which have a size and a number of their own.
_FEW_PIXELS = {"min_size": 96, "max_size": 128}
_FEW_DETECTIONS = {"topk_candidates": 20, "detections_per_img": 5}
_FEW_PROPOSALS = {
    **{"rpn_pre_nms_top_n_train": 50, "rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_train": 20},
    **{"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5, "box_batch_size_per_image": 16},
}


@dataclass(frozen=True)
class Model:
    """One model, by the name its library has for it."""

    library: str
    name: str

    @property
    def family(self) -> str:
        """The file of its library that it is in."""
        if self.library == "timm":
            return timm.models.model_entrypoint(self.name).__module__.rpartition(".")[2]
        module = torchvision.models.get_model_builder(self.name).__module__
        return module.replace("torchvision.models", "tv")

    @property
    def is_transformer(self) -> bool:
        return self.family in TRANSFORMERS

    @property
    def is_detector(self) -> bool:
        return self.family.startswith("tv.detection")

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"

    def build(self, device: str = "cpu", **options: Any) -> nn.Module:
        """The model with random weights and its default arguments, but for those given."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.library == "timm":
                with torch.device(device), _cheap_weights():
                    return timm.create_model(self.name, **options)
            accepted = inspect.signature(torchvision.models.get_model_builder(self.name)).parameters
            if "weights_backbone" in accepted:
                options["weights_backbone"] = None
            if self.family.rpartition(".")[2] in ("googlenet", "inception"):
                options["init_weights"] = False  # takes half a minute
            if "regnet" in self.name:  # asks for the values of a tensor while it is built
                return torchvision.models.get_model(self.name, weights=None, **options).to(device)
            with torch.device(device), _cheap_weights():
                return torchvision.models.get_model(self.name, weights=None, **options)

    @cached_property
    def input_size(self) -> tuple[int, ...]:
        """Channels and spatial size of the images it is made for."""
        if self.library == "timm":
            return timm.get_pretrained_cfg(self.name).input_size
        if ".video" in self.family:
            return (3, 16, 224, 224) if self.name == "s3d" else (3, 16, 112, 112)
        return (3, 224, 224)

    def example_input(self, device: str = "cpu") -> Any:
        """What a plan needs beside the model; None where it finds out for itself."""
        return (torch.empty(1, 3, 128, 128, device=device),) * 2 if "raft" in self.name else None

    def arguments(self, batch: int, size: int | None = None, device: str = "cpu") -> tuple:
        """Images of random values to call it with, of its own size or of the given one."""
        shape = self.input_size if size is None else (self.input_size[0], *self.input_size[1:-2], size, size)
        if self.is_detector:
            return ([torch.rand(shape, device=device) for _ in range(batch)],)
        if "raft" in self.name:
            return tuple(torch.rand(batch, 3, 128, 128, device=device) for _ in range(2))
        return (torch.randn(batch, *shape, device=device),)

    def shrunken(self, reduction: int) -> tuple[dict[str, Any], int | None]:
        """Options to build it with and an image size (None: its own) that make it cheap to run.

        One that is built for smaller images is planned with them, so that its maps must have some pixels.
        """
        if self.is_detector:
            few = _FEW_PROPOSALS if "rcnn" in self.name else _FEW_DETECTIONS
            return few if "ssd" in self.name else {**_FEW_PIXELS, **few}, None
        if self.family == "tv.optical_flow.raft":
            return {}, None
        meta_model = self.build("meta")
        for size in _SIZES:
            if self._runs(meta_model, size):
                return {}, size
            if self.library == "timm" and size >= 3 * reduction:
                options = {"img_size": size}  # windows of a fixed size: those for smaller images are built so
                try:
                    smaller = self.build("meta", **options)
                except Exception:  # it has no such option, or does not come that small
                    continue
                if self._runs(smaller, size):
                    return options, size
        return {}, None

    def _runs(self, meta_model: nn.Module, size: int) -> bool:
        """Whether it can be called with images of a size, and be trained on them."""
        arguments = self.arguments(2, size, "meta")
        return runs_without_data(meta_model.eval(), arguments) and runs_without_data(meta_model.train(), arguments)


@contextmanager
def _cheap_weights() -> Iterator[None]:
    """Within it, what is to be drawn from a truncated normal distribution comes from a normal one, ten times faster."""

    def draw(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *args: Any, **kwargs: Any) -> Tensor:
        return nn.init.normal_(tensor, mean, std)

    with mock.patch("torch.nn.init.trunc_normal_", draw), mock.patch("timm.layers.weight_init._trunc_normal_", draw):
        yield


def runs_without_data(net: nn.Module, arguments: tuple) -> bool:
    """Whether a model on the meta device can be called with these arguments."""
    try:
        with torch.no_grad(), torch.device("meta"):
            net(*arguments)
    except Exception:  # whatever a model says to a size it was not made for, or to there being no data
        return False
    return True


def all_models() -> list[Model]:
    """Every model that either library names."""
    return [
        *(Model("timm", name) for name in timm.list_models()),
        *(Model("torchvision", name) for name in torchvision.models.list_models()),
    ]


def one_of_each_family() -> list[Model]:
    """A model of every family: one that is quick to check where we know it."""
    every = all_models()
    known = [Model(library, name) for library, names in _QUICK.items() for name in names]
    by_family: dict[str, Model] = {}
    for model in [*(model for model in known if model in every), *every]:
        by_family.setdefault(model.family, model)
    return list(by_family.values())


_QUICK = {
    "timm": (
        *("beit_base_patch16_224", "botnet26t_256", "cait_s24_384", "coat_lite_tiny", "convit_small"),
        *("convmixer_1024_20_ks9_p14", "cpubone_b1_bfrobust", "crossvit_9_dagger_240", "csatv2", "cspnext_tiny"),
        *("darknet17", "davit_tiny", "deepseek_vit_412m_enc", "deit_base_patch16_224", "densenetblur121d"),
        *("dla46x_c", "dpn48b", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0"),
        *("efficientvim_m1_dist", "efficientvit_b0", "efficientvit_m2", "ese_vovnet19b_slim"),
        *("eva02_tiny_patch14_336", "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny"),
        *("gemma4_vit_167m", "ghostnetv2_100", "hardcorenas_a", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small"),
        *("iformer_t", "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4"),
        *("lcnetv2_small", "legacy_seresnet18", "legacy_xception", "levit_128s", "lowformer_e1"),
        *("mobilenetv5_base", "mobilevitv2_050", "mvitv2_tiny", "naflexvit_base_patch16_par_gap", "nasnetalarge"),
        *("nest_tiny_jx", "nextvit_small", "pit_ti_224", "pnasnet5large", "poolformerv2_s12", "pvt_v2_b1"),
        *("qwen3_vit_88m_enc", "rdnet_tiny", "regnetx_002", "repghostnet_080", "repvit_m1", "res2net50_48w_2s"),
        *("resmlp_12_224", "resnest14d", "resnetv2_18d", "rexnetr_100", "sam2_hiera_tiny", "samvit_base_patch16"),
        *("selecsls42b", "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs"),
        *("swin_s3_tiny_224", "swinv2_cr_tiny_ns_224", "swinv2_tiny_window16_256", "test_byobnet", "test_coatnet"),
        *("test_convnext3", "test_efficientnet", "test_mambaout", "test_nfnet", "test_resnet", "test_vit"),
        *("tf_mobilenetv3_small_minimal_100", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m"),
        *("twins_pcpvt_small", "vgg13", "visformer_tiny", "vit_srelpos_small_patch16_224"),
        *("vit_tiny_r_s16_p8_224", "vitamin_small_224", "volo_d1_224", "xception41p", "xcit_nano_12_p8_384"),
    ),
    "torchvision": (
        *("alexnet", "convnext_tiny", "deeplabv3_mobilenet_v3_large", "densenet121", "efficientnet_b0"),
        *("fasterrcnn_mobilenet_v3_large_fpn", "fcn_resnet50", "fcos_resnet50_fpn", "googlenet", "inception_v3"),
        *("keypointrcnn_resnet50_fpn", "lraspp_mobilenet_v3_large", "maskrcnn_resnet50_fpn", "maxvit_t"),
        *("mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small", "mvit_v1_b", "quantized_googlenet"),
        *("quantized_inception_v3", "quantized_mobilenet_v2", "quantized_mobilenet_v3_large"),
        *("quantized_resnet18", "quantized_shufflenet_v2_x0_5", "r3d_18", "raft_small", "regnet_x_800mf"),
        *("resnet18", "retinanet_resnet50_fpn", "s3d", "shufflenet_v2_x0_5", "squeezenet1_1", "ssd300_vgg16"),
        *("ssdlite320_mobilenet_v3_large", "swin3d_t", "swin_t", "vgg11", "vit_b_32"),
    ),
}
