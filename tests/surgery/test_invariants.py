"""Injection and removal leave a network as it was: each invariant for every network of networks.py."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from injected import wake_branches
from networks import NETWORKS, example_for, images_for
from torch import Tensor, nn

from dropblock_inject import (
    DropBlock,
    check_dropblock,
    dropblock_disabled,
    dropblock_sites,
    find_stages,
    inject_dropblock,
    plan_dropblock,
    remove_dropblock,
)

DEEPEST = (-2, -1)
EVERYWHERE = ("branch", "skip", "output")
# The shortcuts in the two deepest stages, counted in the tables of the papers and in the code of our own networks.
SHORTCUTS = {
    "torchvision:convnext_tiny": 9 + 3,
    "torchvision:densenet121": 0,
    "torchvision:efficientnet_b0": 4 + 3,
    "torchvision:mobilenet_v2": 5 + 2,
    "torchvision:mobilenet_v3_large": 4 + 2,
    "torchvision:regnet_y_400mf": 6 + 6,
    "torchvision:resnet18": 2 + 2,
    "torchvision:resnet34": 6 + 3,
    "torchvision:resnet50": 6 + 3,
    "torchvision:resnet101": 23 + 3,
    "torchvision:resnext50_32x4d": 6 + 3,
    "torchvision:vgg16_bn": 0,
    "torchvision:wide_resnet50_2": 6 + 3,
    "timm:convnext_tiny": 9 + 3,
    "timm:efficientnet_b0": 4 + 3,
    "timm:mobilenetv3_large_100": 4 + 2,
    "timm:regnety_004": 6 + 6,
    "timm:resnet18": 2 + 2,
    "timm:resnet50": 6 + 3,
    "timm:resnet50d": 6 + 3,
    "timm:seresnext50_32x4d": 6 + 3,
    "timm:test_convnext": 4 + 2,
    "timm:tf_efficientnet_lite0": 4 + 3,
    "own:cifar_resnet": 2 + 2,
    "own:concat_net": 2 + 2,
    "own:conv_mixer": 4 + 4,
    "own:plain_conv_net": 0,
    "own:small_efficientnet": 1 + 1,
    "own:video_net": 1 + 2,
}


@pytest.fixture(scope="module", params=NETWORKS)
def original(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """A network and its name. It is made once; each test works on a copy."""
    torch.manual_seed(0)
    return request.param, NETWORKS[request.param]().train()


@pytest.fixture
def name(original: tuple[str, nn.Module]) -> str:
    return original[0]


@pytest.fixture
def net(original: tuple[str, nn.Module]) -> nn.Module:
    return copy.deepcopy(original[1])


def inject(net: nn.Module, name: str, **options):
    options = {"stages": DEEPEST, "where": EVERYWHERE, "example_input": example_for(name), **options}
    return inject_dropblock(net, **options)


def snapshot(net: nn.Module) -> dict:
    """Everything that must not change: values, structure, hooks, attributes, modes."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        "state": {key: digest(value) for key, value in net.state_dict().items()},
        "parameters": [name for name, _ in net.named_parameters()],
        "buffers": [name for name, _ in net.named_buffers()],
        "identities": [id(p) for p in net.parameters()] + [id(module) for module in net.modules()],
        "repr": repr(net),
        "attributes": {name: sorted(vars(module)) for name, module in net.named_modules()},
        "children": {name: list(module._modules) for name, module in net.named_modules()},
        "hooks": {(name, h): list(getattr(module, h)) for name, module in net.named_modules() for h in hooks},
        "training": {name: module.training for name, module in net.named_modules()},
        "gradients": [digest(p.grad) for p in net.parameters()],
    }


def digest(tensor: Tensor | None) -> str | None:
    """Equal for tensors that are equal bit for bit."""
    return None if tensor is None else hashlib.sha256(tensor.detach().contiguous().numpy()).hexdigest()


def assert_same(before: dict, after: dict, *aspects: str) -> None:
    for aspect in aspects or before:
        assert before[aspect] == after[aspect], aspect


@contextmanager
def recorded_sites(net: nn.Module):
    """Counts how often each DropBlock runs, and on maps of which shape."""
    runs: Counter[str] = Counter()
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, module in net.named_modules():
        if isinstance(module, DropBlock):

            def record(module: nn.Module, args: tuple[Tensor], name: str = name) -> None:
                runs[name] += 1
                shapes[name] = tuple(args[0].shape)

            handles.append(module.register_forward_pre_hook(record))
    yield runs, shapes
    for handle in handles:
        handle.remove()


def test_plan_dropblock_and_find_stages_change_nothing(net: nn.Module, name: str) -> None:
    net(images_for(name)).sum().backward()
    next(iter(net.children())).eval()  # some modules in eval mode, some in training mode: that must stay so
    before, random_state = snapshot(net), torch.get_rng_state()
    find_stages(net, example_for(name))
    plan_dropblock(net, DEEPEST, where=EVERYWHERE, example_input=example_for(name))
    assert_same(before, snapshot(net))
    assert torch.equal(random_state, torch.get_rng_state())


def test_injection_keeps_the_keys_and_removal_restores_everything(net: nn.Module, name: str) -> None:
    before, random_state = snapshot(net), torch.get_rng_state()
    report = inject(net, name)
    assert len(report) > 0
    during = snapshot(net)
    assert_same(before, during, "state", "parameters", "buffers", "gradients")
    assert list(before["state"]) == list(during["state"])
    assert before["repr"] != during["repr"]
    assert remove_dropblock(net) == len(report)
    assert_same(before, snapshot(net))
    assert torch.equal(random_state, torch.get_rng_state())
    assert remove_dropblock(net) == 0


def test_strict_loading_works_both_ways(net: nn.Module, name: str) -> None:
    plain = copy.deepcopy(net)
    inject(net, name)
    net.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(net.state_dict(), strict=True)


def test_eval_output_is_bit_identical(net: nn.Module, name: str) -> None:
    net.eval()
    images = images_for(name)
    with torch.no_grad():
        expected = net(images)
        inject(net, name)
        assert torch.equal(net(images), expected)


def test_training_at_keep_prob_1_is_bit_identical_and_draws_nothing(net: nn.Module, name: str) -> None:
    plain = copy.deepcopy(net)
    images = images_for(name)
    torch.manual_seed(1)
    expected = plain(images)
    expected.sum().backward()
    random_state = torch.get_rng_state()
    inject(net, name, keep_prob=1.0)
    torch.manual_seed(1)
    output = net(images)
    output.sum().backward()
    assert torch.equal(output, expected)
    assert torch.equal(random_state, torch.get_rng_state())
    assert_same(snapshot(plain), snapshot(net), "state", "gradients")


def test_each_site_runs_once_on_a_map_of_the_planned_size(net: nn.Module, name: str) -> None:
    images = images_for(name)
    report = inject(net, name, example_input=images)
    with recorded_sites(net) as (runs, shapes):
        net(images)
    assert runs == dict.fromkeys((site.name for site in report), 1)
    reduction = {stage.index: stage.reduction for stage in find_stages(net, images)}
    for site in report:
        channels, size = shapes[site.name][site.channel_dim], list(shapes[site.name])
        del size[0], size[site.channel_dim if site.channel_dim < 0 else site.channel_dim - 1]
        assert (channels, tuple(size)) == (site.channels, site.map_size)
        of_its_stage = {round(images.shape[-1] / reduction[s]) for s in (site.stage, site.stage - 1) if s in reduction}
        assert site.map_size[-1] in of_its_stage


def test_every_shortcut_has_its_skip_site_and_every_block_its_output_site(net: nn.Module, name: str) -> None:
    plan = plan_dropblock(net, DEEPEST, where=EVERYWHERE, example_input=example_for(name))
    sites = Counter((site.block, site.where) for site in plan)
    for block in {site.block for site in plan}:
        assert sites[block, "branch"] >= 1
        assert sites[block, "output"] == 1
        assert sites[block, "skip"] in ((2,) if "mixer" in name else (0, 1))
    assert sum(site.where == "skip" for site in plan) == SHORTCUTS[name]


def test_every_site_changes_the_output(net: nn.Module, name: str) -> None:
    wake_branches(net)
    images = images_for(name)
    inject(net, name, keep_prob=0.5, block_size=2, depth_scaling=False)
    drops = {n: m for n, m in net.named_modules() if isinstance(m, DropBlock)}
    for drop in drops.values():
        drop.enabled = False

    def output() -> Tensor:
        torch.manual_seed(1)
        with torch.no_grad():
            return net(images)

    expected = output()
    for site, drop in drops.items():
        drop.enabled = True
        assert not torch.allclose(output(), expected), site
        drop.enabled = False


def test_gradients_flow_and_are_finite(net: nn.Module, name: str) -> None:
    inject(net, name, keep_prob=0.7, block_size=3)
    net(images_for(name, batch=4)).square().mean().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_sites_are_live_and_can_be_paused(net: nn.Module, name: str) -> None:
    report = inject(net, name)
    check_dropblock(net)
    rows = dropblock_sites(net)
    assert sorted(row.name for row in rows) == sorted(site.name for site in report)
    assert all(row.live and row.training for row in rows)
    with dropblock_disabled(net):
        assert not any(row.training for row in dropblock_sites(net))
        with dropblock_disabled(net):
            pass
        assert not any(row.training for row in dropblock_sites(net))
    assert all(row.training for row in dropblock_sites(net))
    net.eval()
    assert not any(row.training for row in dropblock_sites(net))


def test_find_stages_returns_the_same_for_an_injected_model() -> None:
    for name in ("torchvision:resnet18", "timm:resnet18", "timm:test_convnext", "own:cifar_resnet"):
        net = NETWORKS[name]()
        before = find_stages(net, example_for(name))
        inject(net, name)
        assert find_stages(net, example_for(name)) == before


def test_the_branch_does_not_see_the_mask_of_the_skip() -> None:
    """If the whole identity shortcut is dropped, the block returns its branch, computed from the unmasked input."""
    net = NETWORKS["torchvision:resnet18"]().train()
    block = net.layer3[1]
    x = torch.randn(4, 256, 8, 8)
    block.eval()
    expected = torch.relu(block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())))
    inject_dropblock(net, 3, where="skip", keep_prob=1e-9, block_size=0.99, depth_scaling=False)
    block.drop_skip.train()
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)
