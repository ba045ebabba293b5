"""Injected networks for the tests, and an assertion that each of their sites drops something."""

from __future__ import annotations

from typing import Any

import networks
import timm
import torch
from networks import example_for
from torch import Tensor, nn

from dropblock_inject import DropBlock, check_dropblock, inject_dropblock
from dropblock_inject.surgery.keep_prob import keep_prob_of, set_keep_prob
from dropblock_inject.surgery.place import Label

WHERE = ("branch", "skip", "output")
BATCH_NORM = nn.modules.batchnorm._BatchNorm


class DropRows(nn.Module):
    """A layer of a user's own: it zeroes rows of the maps, and scales the others up."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * (torch.rand_like(x[..., :1]) >= self.p) / (1 - self.p)


# Networks with other layers than DropBlock at their sites, and what is injected.
OTHER_LAYERS: dict[str, dict[str, Any]] = {
    "own:concat_net, DropRows": {"layer": lambda site: DropRows(1 - site.keep_prob)},
    "own:cifar_resnet, Dropout2d": {"layer": lambda site: nn.Dropout2d(1 - site.keep_prob)},
    "timm:resnet18, DropPath": {
        "layer": lambda site: timm.layers.DropPath(1 - site.keep_prob, scale_by_keep=False),
        "where": "end",
    },
}
NETWORKS = networks.NETWORKS | {name: networks.NETWORKS[name.partition(",")[0]] for name in OTHER_LAYERS}


def injected(name: str, **options) -> nn.Module:
    net = NETWORKS[name]().train()
    wake_branches(net)
    inject_dropblock(net, **{**options_for(name), **options})
    return net


def options_for(name: str) -> dict[str, Any]:
    return {"stages": (-2, -1), "where": WHERE, "block_size": 2, "example_input": example_for(name)} | (
        OTHER_LAYERS.get(name, {})
    )


def wake_branches(net: nn.Module) -> None:
    """Sets scales to about 1 that are initialised to (almost) zero: a mask before them would not change the output."""
    for module in net.modules():
        if isinstance(module, BATCH_NORM):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        for attribute in ("layer_scale", "gamma"):
            if isinstance(getattr(module, attribute, None), nn.Parameter):
                nn.init.ones_(getattr(module, attribute))


def drops(net: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in net.named_modules() if isinstance(module, DropBlock) or Label.of(module)}


def assert_live(net: nn.Module, images: Tensor, sites: int | None = None) -> None:
    """Asserts that each site on its own changes the output in training mode."""
    check_dropblock(net)
    layers = drops(net)
    assert layers
    assert sites is None or len(layers) == sites
    keep_prob = {name: keep_prob_of(layer) for name, layer in layers.items()}
    for layer in layers.values():
        set_keep_prob(layer, 1.0)

    def output() -> Tensor:
        torch.manual_seed(5)
        with torch.no_grad():
            return net(images).float()

    expected = output()
    assert torch.equal(output(), expected), (
        "the output is random although nothing is dropped: the comparison proves nothing"
    )
    for name, layer in layers.items():
        set_keep_prob(layer, 0.3)
        assert not torch.equal(output(), expected), f"{name} drops nothing"
        set_keep_prob(layer, 1.0)
    for name, layer in layers.items():
        set_keep_prob(layer, keep_prob[name])
