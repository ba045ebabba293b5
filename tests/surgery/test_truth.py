"""The tree tells the truth: the module that stands at a site is the one that acts, and layers stay leaves."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from everything import everything
from injected import WHERE, injected, options_for
from networks import EVERY_KIND, NETWORKS, CifarResNet, example_for, images_for
from torch import Tensor, nn

from dropblock_inject import (
    DropBlock,
    KeepProbSchedule,
    check_dropblock,
    dropblock_sites,
    inject_dropblock,
    plan_dropblock,
    presets,
    remove_dropblock,
)
from dropblock_inject.errors import DeadSiteError, DropBlockWarning


@pytest.fixture(params=EVERY_KIND)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def at_sites(net: nn.Module) -> list[tuple[nn.Module, str]]:
    """The parent and the attribute of every DropBlock."""
    names = [name for name, module in net.named_modules() if isinstance(module, DropBlock)]
    return [(net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]


def output(net: nn.Module, images: Tensor) -> Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        return net(images)


STRIPPED: dict[str, Callable[[nn.Module, str], None]] = {
    "identity": lambda parent, attribute: setattr(parent, attribute, nn.Identity()),
    "deleted": delattr,
}


@pytest.mark.parametrize("how", STRIPPED)
def test_nothing_drops_after_every_dropblock_is_stripped(name: str, how: str) -> None:
    net = injected(name)
    plain = copy.deepcopy(net)
    remove_dropblock(plain)
    for parent, attribute in at_sites(net):
        STRIPPED[how](parent, attribute)
    images = images_for(name)
    for mode in (True, False):
        assert torch.equal(output(copy.deepcopy(net).train(mode), images), output(plain.train(mode), images))
        plain.load_state_dict(net.state_dict())
    check_dropblock(net)


@pytest.mark.parametrize("how", [*STRIPPED, "another"])
def test_removal_restores_the_model_exactly_whatever_stands_at_the_sites(name: str, how: str) -> None:
    net = NETWORKS[name]().train()
    before = everything(net)
    sites = len(inject_dropblock(net, **options_for(name)))
    for parent, attribute in at_sites(net):
        STRIPPED.get(how, lambda p, a: setattr(p, a, nn.Dropout2d(0.2)))(parent, attribute)
    assert remove_dropblock(net) == sites
    assert everything(net) == before


def test_another_layer_at_a_site_is_what_acts(name: str) -> None:
    class Squared(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            calls.append(input.shape)
            return input.square() + 1

    net = injected(name).eval()
    images = images_for(name)
    for parent, attribute in at_sites(net):
        calls: list[torch.Size] = []
        before, drop = output(net, images), getattr(parent, attribute)
        setattr(parent, attribute, Squared())
        assert not torch.equal(output(net, images), before)
        assert len(calls) == 1
        setattr(parent, attribute, drop)


def test_the_status_names_what_stands_there() -> None:
    net = torchvision.models.resnet18().train()
    inject_dropblock(net, 4, where="skip", keep_prob=0.8)
    net.layer4[0].drop_skip = nn.Dropout2d(0.25)
    del net.layer4[1].drop_skip
    rows = [(row.name, row.layer, row.keep_prob, row.live) for row in dropblock_sites(net)]
    assert rows == [("layer4.0.drop_skip", "Dropout2d", 0.75, True), ("layer4.1.drop_skip", "nothing", 1.0, True)]
    assert "Dropout2d" in str(dropblock_sites(net))


def test_layers_stay_leaves(name: str) -> None:
    net = NETWORKS[name]()

    def leaves() -> list[tuple[str, str]]:
        layers = [(n, m) for n, m in net.named_modules() if next(m.parameters(recurse=False), None) is not None]
        return [(n, repr(m)) for n, m in layers if not list(m.children())]

    before = leaves()
    inject_dropblock(net, **options_for(name))
    assert leaves() == before


def test_a_container_with_convolutions_alone_has_its_dropblocks_on_them_and_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3))
    plan = plan_dropblock(net, -1, where="branch", example_input=torch.empty(1, 3, 32, 32))
    assert {site.splice.owner for site in plan} <= {"0", "1", "3"}
    assert "Registered on a convolution, which is then no leaf module" in str(plan)


@pytest.mark.parametrize("pattern", ["layer4.*.conv2", "layer4.*.conv*", "*.bn1", "layer4.1", "*.downsample.*"])
def test_names_mean_the_same_sites_in_every_library(pattern: str) -> None:
    for option in ("include", "exclude"):
        plans = [
            plan_dropblock(net, (3, 4), **{option: pattern})
            for net in (torchvision.models.resnet50(), timm.create_model("resnet50"))
        ]
        first, second = ([(site.name, site.where, site.map_size) for site in plan] for plan in plans)
        assert first == second != []


def test_one_activation_for_the_whole_network_is_no_place_for_a_site() -> None:
    act = nn.SiLU()

    class Residual(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)
            self.act = act

        def forward(self, x: Tensor) -> Tensor:
            return x + self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))

    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), act, Residual(8), nn.Conv2d(8, 16, 3, 2, 1), act, Residual(16)
    ).train()
    inject_dropblock(net, (-2, -1), where=WHERE, block_size=2, example_input=torch.empty(1, 3, 32, 32))
    runs: dict[str, int] = {}
    for name, module in net.named_modules():
        if isinstance(module, DropBlock):
            module.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    net(torch.randn(2, 3, 32, 32))
    assert set(runs.values()) == {1}


def test_an_activation_that_overwrites_the_shortcut_leaves_it_maskable() -> None:
    """``identity = x; x = relu_(x)``: with all of the shortcut dropped the output is that of the branch."""

    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 1, 1)
            self.act2, self.conv2 = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            identity = x
            return self.conv2(self.act2(self.conv(self.act(x)))) + identity

    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), PreActivation()).train()
    plan = inject_dropblock(
        net, 1, where="skip", keep_prob=1e-9, block_size=16, example_input=torch.empty(1, 3, 32, 32)
    )
    assert len(plan) == 1
    x = torch.randn(2, 8, 16, 16)
    block = net[1]
    branch = block.conv2(block.conv(x.relu()).relu())
    torch.testing.assert_close(block(x.clone()), branch, rtol=1e-4, atol=1e-5)
    net(torch.randn(2, 3, 32, 32)).sum().backward()


# A module that is exchanged after the injection: the first training pass that drops says so.
EXCHANGED: dict[str, Callable[[nn.Module], None]] = {
    "a norm": lambda block: setattr(block, "bn2", nn.BatchNorm2d(32)),
    "a wrapped convolution": lambda block: setattr(block, "conv1", nn.Sequential(block.conv1)),
}


@pytest.mark.parametrize("what", EXCHANGED)
def test_a_lost_hook_is_an_error_in_training_and_harmless_before(what: str) -> None:
    net = NETWORKS["own:cifar_resnet"]().train()
    inject_dropblock(net, (-2, -1), block_size=2, example_input=example_for("own:cifar_resnet"))
    block = net.stage2[1]
    EXCHANGED[what](block)
    images = images_for("own:cifar_resnet")
    net.eval()(images)
    with pytest.raises(DeadSiteError, match=r"stage2\.1\.drop_\w+, after stage2\.1.* is another module now: a "):
        net.train()(images)
    with pytest.raises(DeadSiteError, match=r"no longer take part"):
        check_dropblock(net)
    remove_dropblock(net)
    net(images)


def test_a_module_that_is_used_in_a_second_place_is_noticed() -> None:
    net = NETWORKS["own:cifar_resnet"]()
    inject_dropblock(net, (-2, -1), example_input=example_for("own:cifar_resnet"))
    net.stage2[1].another = net.stage2[1].bn1
    with pytest.raises(DeadSiteError, match=r"stage2\.1\.bn1 is used in 2 places now"):
        check_dropblock(net)


def test_a_network_in_two_places_as_a_whole_is_fine() -> None:
    net = NETWORKS["own:cifar_resnet"]()
    inject_dropblock(net, (-2, -1), example_input=example_for("own:cifar_resnet"))
    check_dropblock(nn.ModuleDict({"first": net, "second": net, "average": copy.deepcopy(net)}))


def test_a_stage_replaced_in_one_of_two_injected_networks_is_noticed() -> None:
    nets = nn.ModuleList(NETWORKS["own:cifar_resnet"]() for _ in range(2))
    for net in nets:
        inject_dropblock(net, (-2, -1), example_input=example_for("own:cifar_resnet"))
    check_dropblock(nets)
    nets[1].stage3 = NETWORKS["own:cifar_resnet"]().stage3
    with pytest.raises(DeadSiteError, match=r"1\.stage3\.0\.drop_branch1, which is gone"):
        check_dropblock(nets)


def test_a_layer_copied_without_its_block_warns_in_training_and_keeps_no_model_alive() -> None:
    net = torchvision.models.resnet18().train()
    inject_dropblock(net, 4, where="branch")
    alone = copy.deepcopy(net.layer4[0].bn1)
    block = weakref.ref(net.layer4[0])
    del net
    gc.collect()
    assert block() is None
    with pytest.warns(UserWarning, match=r"copied without its block, which has the DropBlock layer4\.0\.drop_branch1"):
        alone(torch.randn(2, 512, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone(torch.randn(2, 512, 4, 4))  # once is enough


def test_the_copy_of_a_graph_module_drops_what_stands_in_its_own_tree() -> None:
    net = injected("own:cifar_resnet")
    graph = copy.deepcopy(torch.fx.symbolic_trace(net))
    images = images_for("own:cifar_resnet")
    del net
    sites = at_sites(graph)
    assert sites
    for parent, attribute in sites:
        before, drop = output(graph, images), getattr(parent, attribute)
        setattr(parent, attribute, nn.Identity())
        assert not torch.equal(output(graph, images), before), f"{attribute} did not act"
        setattr(parent, attribute, drop)


@pytest.mark.parametrize("copied", [False, True])
def test_the_sites_of_a_part_are_taken_out_and_the_others_stay(copied):
    net = CifarResNet(1).train()
    inject_dropblock(net, (-2, -1), example_input=torch.empty(1, 3, 32, 32))
    whole = copy.deepcopy(net)
    if copied:
        net = copy.deepcopy(net)
    assert remove_dropblock(net.stage3) == 3
    check_dropblock(net)
    assert {row.stage for row in dropblock_sites(net)} == {2}
    KeepProbSchedule(net, 10).attach(torch.optim.SGD(net.parameters(), 0.1))
    check_dropblock(whole)
    whole.stage3[0] = CifarResNet(1).stage3[0]  # a copy still misses what was not taken out on purpose
    with pytest.raises(DeadSiteError):
        check_dropblock(whole)


def test_maps_of_a_single_pixel_that_were_planned_larger_are_warned_of_once():
    net = torchvision.models.resnet18().train()
    inject_dropblock(net, **presets.SMALL_IMAGES)  # planned for 224 pixels
    with pytest.warns(DropBlockWarning, match=r"^layer4.0.drop_branch1 was planned for maps of 7x7 .* example_input="):
        net(torch.randn(2, 3, 32, 32))
    net(torch.randn(2, 3, 32, 32))  # no second one
    remove_dropblock(net)
    inject_dropblock(net, **presets.SMALL_IMAGES, example_input=torch.empty(1, 3, 32, 32))
    net(torch.randn(2, 3, 32, 32))  # a warning would be an error
