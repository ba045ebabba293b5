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
from torch.utils._python_dispatch import TorchDispatchMode

from dropblock_inject.shapes import ShapeCache

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
_DETECTORS_SIZE = {"min_size": 96, "max_size": 128}


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
            return ({} if "ssd" in self.name else _DETECTORS_SIZE), None
        if self.family == "tv.optical_flow.raft":
            return {}, None
        twin = self.build("meta")
        for size in _SIZES:
            if self._runs(twin, size):
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

    def _runs(self, twin: nn.Module, size: int) -> bool:
        """Whether it can be called with images of a size, and be trained on them."""
        arguments = self.arguments(2, size, "meta")
        return runs_without_data(twin.eval(), arguments) and runs_without_data(twin.train(), arguments)


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
        with torch.no_grad(), torch.device("meta"), _Quick():
            net(*arguments)
    except Exception:  # whatever a model says to a size it was not made for, or to there being no data
        return False
    return True


class _Quick(TorchDispatchMode):
    """Works out the shapes of an operation once."""

    def __init__(self) -> None:
        super().__init__()
        self.run = ShapeCache()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})


def all_models() -> list[Model]:
    """Every model that either library names."""
    return [
        *(Model("timm", name) for name in timm.list_models()),
        *(Model("torchvision", name) for name in torchvision.models.list_models()),
    ]


def one_of_each_family() -> Iterator[Model]:
    """A model of every family: a small one where we know it."""
    seen = set()
    known = [Model(*entry.split(":")) for entry in _SMALL]
    available = set(all_models())
    for model in [*(model for model in known if model in available), *all_models()]:
        if model.family not in seen:
            seen.add(model.family)
            yield model


_SMALL: tuple[str, ...] = ()
