"""What injection and removal leave as it was, for every network named in networks.py."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
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


def inject(net: nn.Module, name: str, **options):
    options = {"stages": DEEPEST, "where": EVERYWHERE, "example_input": example_for(name), **options}
    return inject_dropblock(net, **options)


def snapshot(net: nn.Module) -> dict:
    """All that must not change: values, structure, hooks, attributes, modes."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        "state": {key: value.clone() for key, value in net.state_dict().items()},
        "parameters": [name for name, _ in net.named_parameters()],
        "buffers": [name for name, _ in net.named_buffers()],
        "identities": [id(p) for p in net.parameters()] + [id(module) for module in net.modules()],
        "repr": repr(net),
        "attributes": {name: sorted(vars(module)) for name, module in net.named_modules()},
        "children": {name: list(module._modules) for name, module in net.named_modules()},
        "hooks": {(name, h): list(getattr(module, h)) for name, module in net.named_modules() for h in hooks},
        "training": {name: module.training for name, module in net.named_modules()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
    }


def assert_same(before: dict, after: dict, *aspects: str) -> None:
    for aspect in aspects or before:
        if aspect in ("state", "gradients"):
            torch.testing.assert_close(before[aspect], after[aspect], rtol=0, atol=0, equal_nan=True)
        else:
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


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    def test_planning_and_finding_stages_touch_nothing(self, name: str) -> None:
        net = NETWORKS[name]().train()
        net(images_for(name)).sum().backward()
        next(iter(net.children())).eval()  # a mixed mode must stay mixed
        before, random_state = snapshot(net), torch.get_rng_state()
        find_stages(net, example_for(name))
        plan_dropblock(net, DEEPEST, where=EVERYWHERE, example_input=example_for(name))
        assert_same(before, snapshot(net))
        assert torch.equal(random_state, torch.get_rng_state())

    def test_injection_keeps_keys_and_removal_restores_all(self, name: str) -> None:
        net = NETWORKS[name]().train()
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

    def test_strict_loading_works_both_ways(self, name: str) -> None:
        plain, injected = NETWORKS[name](), NETWORKS[name]()
        inject(injected, name)
        injected.load_state_dict(plain.state_dict(), strict=True)
        plain.load_state_dict(injected.state_dict(), strict=True)

    def test_eval_output_is_bit_identical(self, name: str) -> None:
        net = NETWORKS[name]().eval()
        images = images_for(name)
        with torch.no_grad():
            expected = net(images)
            inject(net, name)
            assert torch.equal(net(images), expected)

    def test_training_at_keep_prob_1_is_bit_identical_and_draws_nothing(self, name: str) -> None:
        net = NETWORKS[name]().train()
        twin = copy.deepcopy(net)
        images = images_for(name)
        torch.manual_seed(1)
        expected = twin(images)
        expected.sum().backward()
        random_state = torch.get_rng_state()
        inject(net, name, keep_prob=1.0)
        torch.manual_seed(1)
        output = net(images)
        output.sum().backward()
        assert torch.equal(output, expected)
        assert torch.equal(random_state, torch.get_rng_state())
        assert_same(snapshot(twin), snapshot(net), "state", "gradients")

    def test_each_site_runs_once_on_the_map_that_the_plan_says(self, name: str) -> None:
        net = NETWORKS[name]().train()
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
            of_its_stage = {
                round(images.shape[-1] / reduction[s]) for s in (site.stage, site.stage - 1) if s in reduction
            }
            assert site.map_size[-1] in of_its_stage

    def test_every_residual_block_has_its_skip_site(self, name: str) -> None:
        report = plan_dropblock(NETWORKS[name](), DEEPEST, where=EVERYWHERE, example_input=example_for(name))
        kinds = Counter((site.block, site.where) for site in report)
        for block in {site.block for site in report}:
            assert kinds[block, "branch"] >= 1
            assert kinds[block, "output"] == 1
            assert kinds[block, "skip"] <= (2 if "mixer" in name else 1)
        assert (sum(site.where == "skip" for site in report) > 0) is (
            not any(plain in name for plain in ("vgg", "densenet", "plain"))
        )

    def test_every_site_makes_a_difference(self, name: str) -> None:
        net = NETWORKS[name]().train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
            for attribute in ("layer_scale", "gamma"):
                if isinstance(getattr(module, attribute, None), nn.Parameter):
                    nn.init.ones_(getattr(module, attribute))
        images = images_for(name)
        inject(net, name, keep_prob=0.5, block_size=2, depth_scaling=False)
        drops = {n: m for n, m in net.named_modules() if isinstance(m, DropBlock)}
        for drop in drops.values():
            drop.enabled = False
        torch.manual_seed(1)
        expected = net(images)
        for site, drop in drops.items():
            drop.enabled = True
            torch.manual_seed(1)
            assert not torch.allclose(net(images), expected), site
            drop.enabled = False

    def test_gradients_flow_and_are_finite(self, name: str) -> None:
        net = NETWORKS[name]().train()
        inject(net, name, keep_prob=0.7, block_size=3)
        net(images_for(name, batch=4)).square().mean().backward()
        for key, parameter in net.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key

    def test_sites_are_live_and_can_be_paused(self, name: str) -> None:
        net = NETWORKS[name]().train()
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


def test_sites_and_stages_read_the_same_from_an_injected_model() -> None:
    for name in ("torchvision:resnet18", "timm:resnet18", "timm:test_convnext", "own:cifar_resnet"):
        net = NETWORKS[name]()
        before = find_stages(net, example_for(name))
        inject(net, name)
        assert find_stages(net, example_for(name)) == before


def test_the_branch_does_not_see_the_mask_of_the_skip() -> None:
    """With everything dropped on an identity shortcut the block puts out its branch, computed from the whole input."""
    net = NETWORKS["torchvision:resnet18"]().train()
    block = net.layer3[1]
    x = torch.randn(4, 256, 8, 8)
    block.eval()
    expected = torch.relu(block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())))
    inject_dropblock(net, 3, where="skip", keep_prob=1e-9, block_size=0.99, depth_scaling=False)
    block.drop_skip.train()
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)
