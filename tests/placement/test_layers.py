"""Other layers than DropBlock at the sites: what is made for them, what is refused, and how the schedule moves them."""

from __future__ import annotations

import re

import pytest
import timm
import torch
import torchvision
from networks import CifarResNet
from torch import nn
from torchvision.ops import StochasticDepth

from dropblock_inject import (
    DropBlock,
    DropBlockInjectError,
    KeepProbSchedule,
    check_dropblock,
    dropblock_disabled,
    dropblock_sites,
    inject_dropblock,
    plan_dropblock,
    remove_dropblock,
)

SMALL_INPUT = {"example_input": torch.empty(1, 3, 32, 32)}
SMALL = {"stages": (-2, -1), "example_input": torch.empty(1, 3, 32, 32)}


def drop_path(site):
    return StochasticDepth(1 - site.keep_prob, "row")


def test_a_scheduled_drop_path_equals_one_written_by_hand_step_by_step():
    """torchvision's ResNet-50, its drop path before each addition of the last two stages, beside our injection."""
    net = torchvision.models.resnet50(num_classes=10).train()
    by_hand = torchvision.models.resnet50(num_classes=10).train()
    by_hand.load_state_dict(net.state_dict())
    rates = {"layer3": 0.05, "layer4": 0.2}
    paths = []
    for stage, rate in rates.items():
        for block in getattr(by_hand, stage):
            path = StochasticDepth(0.0, "row")
            block.bn3 = nn.Sequential(block.bn3, path)
            paths.append((path, rate))
    inject_dropblock(net, keep_prob=0.8, where="end", layer=drop_path)
    steps = 6
    schedule = KeepProbSchedule(net, steps)
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for model in (net, by_hand)]
    schedule.attach(optimizers[0])
    for step in range(steps):
        for path, rate in paths:
            path.p = rate * step / steps
        images = torch.randn(2, 3, 64, 64)
        losses = []
        for model, optimizer in zip((net, by_hand), optimizers, strict=True):
            torch.manual_seed(step)
            loss = model(images).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses)
    assert sorted(set(schedule.get_last_keep_prob())) == pytest.approx([0.8, 0.95])


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_an_end_is_one_site_per_residual_in_every_library(library):
    net = timm.create_model("resnet50") if library == "timm" else torchvision.models.resnet50()
    plan = plan_dropblock(net, where="end")
    assert [site.name for site in plan] == [f"layer3.{i}.drop_end" for i in range(6)] + [
        f"layer4.{i}.drop_end" for i in range(3)
    ]
    assert {site.host.rpartition(".")[2] for site in plan} == {"bn3"}
    assert len(plan_dropblock(net)) == 36  # the paper's places are without the ends


def test_an_end_stands_on_the_branch_alone():
    """With the whole branch dropped, a block hands on its input: the shortcut is not masked."""
    net = torchvision.models.resnet18().train()
    inject_dropblock(net, 4, where="end", keep_prob=1e-6, layer=drop_path)
    images = torch.rand(2, 512, 7, 7)
    assert torch.equal(net.layer4[1](images), images)


def test_a_branch_whose_end_no_module_gives_is_named():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)

        def forward(self, x):
            return x + 0.2 * torch.relu(self.norm(self.conv(x)))

    net = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), Block(), timm.models.resnet.BasicBlock(16, 16))
    plan = plan_dropblock(net, -1, where="end", **SMALL_INPUT)
    assert [site.block for site in plan] == ["2"]
    assert "No module gives the end of a branch of 1: no end site there" in str(plan)
    with pytest.raises(DropBlockInjectError, match="an 'end' needs a module that gives the end"):
        plan_dropblock(net[:2], -1, where="end", **SMALL_INPUT)


def test_the_plan_shows_the_layers():
    plan = plan_dropblock(CifarResNet(1), layer=lambda site: nn.Dropout2d(1 - site.keep_prob), **SMALL)
    assert str(plan).startswith("Dropout2d in CifarResNet: 6 sites in 2 blocks")
    assert {site["layer"] for site in plan.as_dict()["sites"]} == {"Dropout2d"}
    assert "drop whole channels" not in str(plan)  # that note is about blocks


def test_a_layer_is_made_once_per_site_with_its_record():
    asked = []

    def layer(site):
        asked.append(site.name)
        return nn.Dropout2d(1 - site.keep_prob)

    net = CifarResNet(1)
    report = inject_dropblock(net, layer=layer, **SMALL)
    assert asked == [site.name for site in report]
    assert [net.get_submodule(site.name).p for site in report] == pytest.approx([1 - s.keep_prob for s in report])


def test_a_layer_with_a_probability_of_its_own_keeps_it_as_the_target():
    net = CifarResNet(1).train()
    plan = plan_dropblock(net, layer=lambda site: nn.Dropout2d(0.3 if site.stage == 3 else 1 - site.keep_prob), **SMALL)
    assert {(site.stage, round(site.keep_prob, 9)) for site in plan} == {(2, 0.975), (3, 0.7)}
    report = plan.apply()
    schedule = KeepProbSchedule(net, 10)
    schedule.step(10)
    assert schedule.get_last_keep_prob() == pytest.approx([site.keep_prob for site in report])
    remove_dropblock(net)
    assert [site.keep_prob for site in plan.apply()] == [site.keep_prob for site in report]  # made anew


def test_schedule_pause_and_removal_as_with_dropblock():
    net = CifarResNet(1).train()
    before = repr(net)
    inject_dropblock(net, layer=lambda site: nn.Dropout2d(1 - site.keep_prob), keep_prob=0.6, **SMALL)
    layers = [module for module in net.modules() if isinstance(module, nn.Dropout2d)]
    schedule = KeepProbSchedule(net, 10)
    assert {layer.p for layer in layers} == {0.0}
    schedule.step(5)
    assert sorted({layer.p for layer in layers}) == pytest.approx([0.05, 0.2])
    images = torch.randn(2, 3, 32, 32)
    with dropblock_disabled(net):
        assert torch.equal(net(images), net(images))
        assert all(row.effective_keep_prob == 1 for row in dropblock_sites(net))
    assert not torch.equal(net(images), net(images))
    assert all("enabled" not in vars(layer) for layer in layers)
    assert remove_dropblock(net) == len(layers)
    assert repr(net) == before
    assert all(set(vars(layer)) == set(vars(nn.Dropout2d())) for layer in layers)


def test_layers_that_act_in_eval_mode_too_are_not_called_there():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    net = CifarResNet(1).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = net(images)
    inject_dropblock(net, layer=lambda site: Noise(), **SMALL)
    assert torch.equal(net(images), expected)
    assert not torch.equal(net.train()(images), net(images))


def test_a_layer_that_drops_now_and_then_leaves_its_branch_unmasked():
    """A layer that hands on its input is no lost hook."""

    class Sometimes(nn.Module):
        def forward(self, x):
            return x if torch.rand(()) < 0.5 else x * 0

    net = CifarResNet(1).train()
    inject_dropblock(net, where="skip", layer=lambda site: Sometimes(), **SMALL)
    for _ in range(8):
        net(torch.randn(2, 3, 32, 32)).sum().backward()


SHARED = nn.Dropout()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Dropout2d, "a callable that takes a site .* got Dropout2d"),
        (nn.Dropout2d(0.1), "a callable that takes a site"),
        (lambda site: nn.BatchNorm2d(site.channels), r"parameters or buffers \(weight, bias, running_mean"),
        (lambda site: None, "made a NoneType for .*; it must make a torch.nn.Module"),
        (lambda site: SHARED, "the same Dropout for .* as before"),
        (lambda site: timm.layers.DropPath(None), "a DropPath with drop_prob=None for .*; give it a number"),
        (lambda site: nn.Dropout2d(0.1, inplace=True), "inplace=True for .*drop_skip, where the branch still reads"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused_and_nothing_is_changed(layer, message):
    net = CifarResNet(1)
    before = repr(net)
    for call in (plan_dropblock, inject_dropblock):
        with pytest.raises(DropBlockInjectError) as error:
            call(net, layer=layer, **SMALL)
        assert re.search(message, str(error.value)), error.value
    assert repr(net) == before
    assert not dropblock_sites(net)


@pytest.mark.parametrize("planned_first", [True, False])
def test_a_layer_is_in_one_model_at_a_time(planned_first):
    first, second = CifarResNet(1), CifarResNet(1)
    layers = {}

    def layer(site):
        return layers.setdefault(site.name, nn.Dropout2d(1 - site.keep_prob))

    plan = plan_dropblock(second, layer=layer, **SMALL) if planned_first else None
    inject_dropblock(first, layer=layer, **SMALL)
    before = repr(second)
    with pytest.raises(DropBlockInjectError, match=r"a Dropout2d for (\S+) that is at the site \1 of a model already"):
        plan.apply() if planned_first else plan_dropblock(second, layer=layer, **SMALL)
    assert repr(second) == before
    check_dropblock(first)
    remove_dropblock(first)
    inject_dropblock(second, layer=layer, **SMALL)
    check_dropblock(second)


def test_options_of_dropblock_beside_a_layer_are_refused():
    with pytest.raises(DropBlockInjectError, match="rescale would not have any effect"):
        plan_dropblock(CifarResNet(1), layer=lambda site: DropBlock(), rescale="sample", **SMALL)
