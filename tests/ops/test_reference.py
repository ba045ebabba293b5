"""An injected network against the same network written by hand with calls of drop_block.

The generator makes the masks deterministic: both sides draw them from one seed, in the order of execution.
"""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
import torchvision
from networks import ConvMixer
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock_inject import drop_block, dropblock_sites, inject_dropblock

KEEP_PROB = 0.8
BLOCK_SIZE = 3


class Masks:
    """Calls drop_block with the keep_prob of the current stage."""

    def __init__(self, seed: int, where: tuple[str, ...]) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.where = where
        self.keep_prob = 1.0

    def __call__(self, where: str, x: Tensor) -> Tensor:
        if where not in self.where or self.keep_prob == 1:
            return x
        return drop_block(x, self.keep_prob, BLOCK_SIZE, generator=self.generator)


def basic_block(block: nn.Module, x: Tensor, mask: Masks) -> Tensor:
    identity = mask("skip", x) if block.downsample is None else None
    out = mask("branch", F.relu(block.bn1(block.conv1(x))))
    out = mask("branch", block.bn2(block.conv2(out)))
    if identity is None:
        identity = mask("skip", block.downsample(x))
    return mask("output", F.relu(out + identity))


def bottleneck(block: nn.Module, x: Tensor, mask: Masks) -> Tensor:
    identity = mask("skip", x) if block.downsample is None else None
    out = mask("branch", F.relu(block.bn1(block.conv1(x))))
    out = mask("branch", F.relu(block.bn2(block.conv2(out))))
    out = mask("branch", block.bn3(block.conv3(out)))
    if identity is None:
        identity = mask("skip", block.downsample(x))
    return mask("output", F.relu(out + identity))


def resnet(net: nn.Module, x: Tensor, mask: Masks, block_forward) -> Tensor:
    x = F.max_pool2d(F.relu(net.bn1(net.conv1(x))), 3, 2, 1)
    for stage, layer in enumerate((net.layer1, net.layer2, net.layer3, net.layer4), start=1):
        mask.keep_prob = {3: 1 - (1 - KEEP_PROB) / 4, 4: KEEP_PROB}.get(stage, 1.0)
        for block in layer:
            x = block_forward(block, x, mask)
    return net.fc(x.mean((2, 3)))


NETWORKS = {
    "torchvision:resnet18": (partial(torchvision.models.resnet18, num_classes=7), basic_block),
    "torchvision:resnet50": (partial(torchvision.models.resnet50, num_classes=7), bottleneck),
    "timm:resnet18": (partial(timm.create_model, "resnet18", num_classes=7), basic_block),
    "timm:resnet50": (partial(timm.create_model, "resnet50", num_classes=7), bottleneck),
}


@pytest.mark.parametrize("where", [("branch",), ("skip",), ("output",), ("branch", "skip", "output")], ids="+".join)
@pytest.mark.parametrize("name", NETWORKS)
def test_injected_resnet_equals_the_one_written_by_hand(name: str, where: tuple[str, ...]) -> None:
    build, block_forward = NETWORKS[name]
    net = build().double().train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm starts branches with zeros, which would hide their masks
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.randn(2, 3, 96, 96, dtype=torch.double, requires_grad=True)
    plain = resnet(net, x, Masks(3, ()), block_forward)
    statistics = {key: buffer.clone() for key, buffer in net.named_buffers()}

    expected = resnet(net, x, Masks(3, where), block_forward)
    expected.square().sum().backward()
    expected_gradients = [p.grad.clone() for p in net.parameters()] + [x.grad.clone()]
    expected_statistics = {key: buffer.clone() for key, buffer in net.named_buffers()}
    net.zero_grad()
    x.grad = None
    for key, buffer in net.named_buffers():
        buffer.copy_(statistics[key])

    generator = torch.Generator().manual_seed(3)
    inject_dropblock(net, keep_prob=KEEP_PROB, block_size=BLOCK_SIZE, where=where, generator=generator)
    output = net(x)
    output.square().sum().backward()
    gradients = [p.grad for p in net.parameters()] + [x.grad]

    torch.testing.assert_close(output, expected)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)
    for key, buffer in net.named_buffers():
        torch.testing.assert_close(buffer, expected_statistics[key])
    assert not torch.allclose(output, plain), "the masks change nothing, so the comparison proves nothing"


def test_a_block_with_two_residual_adds_equals_the_one_written_by_hand() -> None:
    """The shortcut of the second residual add is an intermediate result of the block."""

    def mixer(block: nn.Module, x: Tensor, mask: Masks) -> Tensor:
        skip = mask("skip", x)
        x = skip + mask("branch", block.mixer(block.norm1(x)))
        skip = mask("skip", x)
        out = mask("branch", block.mlp[1](block.mlp[0](block.norm2(x))))
        return skip + mask("branch", block.mlp[2](out))

    net = ConvMixer().double().train()
    block = net[-4]
    x = torch.randn(2, 32, 8, 8, dtype=torch.double, requires_grad=True)
    masks = Masks(3, ("branch", "skip"))
    masks.keep_prob = KEEP_PROB
    expected = mixer(block, x * 1, masks)
    expected_gradients = torch.autograd.grad(expected.square().sum(), [x, *block.parameters()])
    plain = block(x * 1)

    generator = torch.Generator().manual_seed(3)
    options = {"keep_prob": KEEP_PROB, "block_size": BLOCK_SIZE, "generator": generator}
    plan = inject_dropblock(net, -1, include="5", example_input=torch.empty(1, 3, 32, 32).double(), **options)
    assert sorted(site.where for site in plan) == ["branch"] * 3 + ["skip"] * 2
    output = block(x * 1)
    gradients = torch.autograd.grad(output.square().sum(), [x, *block.parameters()])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients, expected_gradients)
    assert not torch.allclose(output, plain)


@pytest.mark.parametrize(("name", "sites"), [("resnet50", 36), ("resnet18", 12), ("resnet34", 36 - 9)])
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_paper_sites_are_as_many_as_in_the_authors_code(library: str, name: str, sites: int) -> None:
    net = torchvision.models.get_model(name) if library == "torchvision" else timm.create_model(name)
    assert len(inject_dropblock(net, stages=[3, 4])) == sites
    assert len(dropblock_sites(net)) == sites
    per_stage = {site.stage: site.keep_prob for site in dropblock_sites(net)}
    assert per_stage == {3: pytest.approx(0.975), 4: pytest.approx(0.9)}
