"""The module tree tells the truth: layers stay leaves, and whatever stands at a site is what acts there."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from everything import everything
from injected import drops, options_for, wake_branches
from networks import EVERY_KIND, NETWORKS, images_for
from torch import Tensor, nn

from dropblock_inject import DropBlockInjectError, check_dropblock, inject_dropblock, remove_dropblock


@pytest.fixture(params=EVERY_KIND)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def plain(name: str) -> nn.Module:
    net = NETWORKS[name]().train()
    wake_branches(net)
    return net


@pytest.fixture
def net(plain: nn.Module, name: str) -> nn.Module:
    """An injected copy of `plain`."""
    net = copy.deepcopy(plain)
    inject_dropblock(net, **options_for(name), keep_prob=0.3, depth_scaling=False)
    return net


def output(net: nn.Module, images: Tensor) -> Tensor:
    torch.manual_seed(5)
    return net(images)


# --- leaves ----------------------------------------------------------------------------------------------------------


def leaves(net: nn.Module) -> dict[str, str]:
    """The leaf modules with parameters."""
    return {
        name: repr(module)
        for name, module in net.named_modules()
        if list(module.parameters()) and not list(module.children())
    }


def test_layers_with_parameters_are_the_same_leaves_as_before(net: nn.Module, plain: nn.Module) -> None:
    assert leaves(net) == leaves(plain)
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_torchinfo_counts_the_same_operations(net: nn.Module, plain: nn.Module, name: str) -> None:
    torchinfo = pytest.importorskip("torchinfo")
    counts = [torchinfo.summary(m, input_data=images_for(name), verbose=0).total_mult_adds for m in (net, plain)]
    assert counts[0] == counts[1] > 0


# --- what stands at a site acts there --------------------------------------------------------------------------------


def by_setattr(net: nn.Module, site: str) -> None:
    parent, _, attribute = site.rpartition(".")
    setattr(net.get_submodule(parent), attribute, nn.Identity())


def by_set_submodule(net: nn.Module, site: str) -> None:
    net.set_submodule(site, nn.Identity())


def by_delattr(net: nn.Module, site: str) -> None:
    parent, _, attribute = site.rpartition(".")
    delattr(net.get_submodule(parent), attribute)


@pytest.mark.parametrize("strip", [by_setattr, by_set_submodule, by_delattr])
def test_without_its_dropblocks_an_injected_network_computes_what_the_plain_one_does(
    net: nn.Module, plain: nn.Module, name: str, strip: Callable[[nn.Module, str], None]
) -> None:
    for site in drops(net):
        strip(net, site)
    images = images_for(name)
    for training in (True, False):
        assert torch.equal(output(net.train(training), images), output(plain.train(training), images))
    assert all(map(torch.equal, net.state_dict().values(), plain.state_dict().values()))


class Doubled(nn.Module):
    """Doubles its input in training mode, and counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 2 * x if self.training else x


def test_another_module_in_the_place_of_a_dropblock_acts_there(
    net: nn.Module, plain: nn.Module, name: str, request: pytest.FixtureRequest
) -> None:
    if name == "own:concat_net":
        request.applymarker(pytest.mark.xfail(strict=True, reason="a shortcut is remembered for dropout layers only"))
    sites = list(drops(net))
    for site in sites:
        net.set_submodule(site, nn.Identity())
    images = images_for(name)
    expected = output(plain, images)
    for site in sites:
        doubled = Doubled()
        net.set_submodule(site, doubled)
        assert not torch.allclose(output(net, images), expected), f"the module at {site} does not act"
        assert doubled.calls == 1
        net.set_submodule(site, nn.Identity())


def test_modules_in_the_place_of_dropblocks_follow_the_mode_and_copies(
    net: nn.Module, plain: nn.Module, name: str
) -> None:
    for site in drops(net):
        net.set_submodule(site, nn.Dropout(0.5))
    images = images_for(name)
    for model in (net, copy.deepcopy(net)):
        assert not torch.equal(output(model.train(), images), output(plain.train(), images))
        plain.load_state_dict(model.state_dict())
        assert torch.equal(output(model.eval(), images), output(plain.eval(), images))


@pytest.mark.parametrize("strip", [None, by_setattr, by_delattr])
def test_removal_restores_the_network_whatever_stands_at_its_sites(
    plain: nn.Module, name: str, strip: Callable[[nn.Module, str], None] | None
) -> None:
    before = everything(plain)
    report = inject_dropblock(plain, **options_for(name))
    for site in drops(plain) if strip is not None else ():
        strip(plain, site)
    assert remove_dropblock(plain) == len(report)
    assert everything(plain) == before


# --- parts that were replaced ----------------------------------------------------------------------------------------


def test_a_replaced_stage_of_one_of_two_injected_networks_is_noticed() -> None:
    pair = nn.ModuleDict({"first": torchvision.models.resnet18(), "second": torchvision.models.resnet18()})
    for net in pair.values():
        inject_dropblock(net)
    check_dropblock(pair)
    pair["second"].layer4 = torchvision.models.resnet18().layer4
    with pytest.raises(DropBlockInjectError, match=r"6 of 24 .*\n  second\.layer4\.0\.drop_branch1, which is gone"):
        check_dropblock(pair)


def test_a_training_step_through_a_replaced_layer_is_an_error() -> None:
    """Nobody has to call check_dropblock: the block notices that the layer with the hook is gone."""
    net = torchvision.models.resnet18().train()
    inject_dropblock(net, 4, where="branch")
    net(torch.zeros(2, 3, 64, 64))
    net.layer4[1].bn2 = nn.BatchNorm2d(512)
    with pytest.raises(DropBlockInjectError, match=r"layer4\.1\.drop_branch2, after layer4\.1\.bn2, no longer"):
        net(torch.zeros(2, 3, 64, 64))
    net.eval()(torch.zeros(2, 3, 64, 64))
