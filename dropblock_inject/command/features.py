"""The feature maps of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.stages import find_stages
from ..errors import DropBlockValueError
from .models import example_of, in_one_line
from .pictures import open_picture
from .spelling import did_you_mean

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY = (0.5,), (0.5,)
_MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels


def features_of(
    model: nn.Module, file: Path, layer: str | None = None, image_size: Sequence[int] | None = None
) -> tuple[Any, Tensor, str]:
    """The feature maps of a picture.

    Args:
        model: a network that takes images (N, 3, H, W), or grey ones (N, 1, H, W).
        file: the picture; it is resized and cropped around its centre.
        layer: dotted name of the module whose output is returned; None: the last block of the last stage but one.
        image_size: height and width in pixels, or one number for both; None: the size that the model declares, or 224.

    Returns:
        The picture as the network sees it (a PIL image), the feature maps (C, H, W), the name of the layer.

    Raises:
        DropBlockValueError: the file is no picture, there is no such layer, its output is no feature map, or the model
            failed on the picture.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    example = example_of(model, image_size or config.get("input_size", (3, 224, 224))[1:])
    assert example is not None
    channels, *size = example.shape[1:]
    if channels not in _MODES or len(size) != 2:
        raise DropBlockValueError(f"{type(model).__name__} takes images of {channels} channels; a picture has 3, or 1")
    picture = open_picture(file, _MODES[channels])
    picture = import_module("PIL.ImageOps").fit(picture, size[::-1])
    if layer is None:
        stages = find_stages(model, example)
        layer = stages[max(len(stages) - 2, 0)].blocks[-1].name
    modules = dict(model.named_modules())
    if layer not in modules:
        raise DropBlockValueError(f"no layer {layer!r} in {type(model).__name__}{did_you_mean(layer, modules)}")

    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(*size, channels)
    usual = _GREY if channels == 1 else (config.get("mean", _IMAGENET[0]), config.get("std", _IMAGENET[1]))
    mean, deviation = map(torch.tensor, usual)
    found: list[Any] = []
    handle = modules[layer].register_forward_hook(lambda module, args, output: found.append(output))
    mode = model.training
    try:
        with torch.no_grad(), in_one_line(f"{type(model).__name__} on a picture of {size[0]}x{size[1]} pixels"):
            model.eval()(((pixels / 255 - mean) / deviation).permute(2, 0, 1)[None])
    finally:
        handle.remove()
        model.train(mode)
    if not found or not isinstance(found[0], Tensor) or found[0].dim() != 4:
        raise DropBlockValueError(f"{layer} puts out no feature maps (N, C, H, W); name another one with --layer")
    return picture, found[0][0], layer
