"""Injected networks for the tests, and an assertion that each of their sites drops something."""

from __future__ import annotations

from typing import Any

import torch
from networks import NETWORKS, example_for
from torch import Tensor, nn

from dropblock_inject import DropBlock, check_dropblock, inject_dropblock

WHERE = ("branch", "skip", "output")
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def injected(name: str, **options) -> nn.Module:
    net = NETWORKS[name]().train()
    wake_branches(net)
    inject_dropblock(net, **{**options_for(name), **options})
    return net


def options_for(name: str) -> dict[str, Any]:
    return {"stages": (-2, -1), "where": WHERE, "block_size": 2, "example_input": example_for(name)}


def wake_branches(net: nn.Module) -> None:
    """Sets scales to about 1 that are initialised to (almost) zero: a mask before them would not change the output."""
    for module in net.modules():
        if isinstance(module, BATCH_NORM):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        for attribute in ("layer_scale", "gamma"):
            if isinstance(getattr(module, attribute, None), nn.Parameter):
                nn.init.ones_(getattr(module, attribute))


def drops(net: nn.Module) -> dict[str, DropBlock]:
    return {name: module for name, module in net.named_modules() if isinstance(module, DropBlock)}


def assert_live(net: nn.Module, images: Tensor, sites: int | None = None) -> None:
    """Asserts that each site on its own changes the output in training mode."""
    check_dropblock(net)
    layers = drops(net)
    assert layers
    assert sites is None or len(layers) == sites
    keep_prob = {name: layer.keep_prob for name, layer in layers.items()}
    for layer in layers.values():
        layer.keep_prob = 1.0

    def output() -> Tensor:
        torch.manual_seed(5)
        with torch.no_grad():
            return net(images).float()

    expected = output()
    assert torch.equal(output(), expected), (
        "the output is random although nothing is dropped: the comparison proves nothing"
    )
    for name, layer in layers.items():
        layer.keep_prob = 0.3
        assert not torch.equal(output(), expected), f"{name} drops nothing"
        layer.keep_prob = 1.0
    for name, layer in layers.items():
        layer.keep_prob = keep_prob[name]
