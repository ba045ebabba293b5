"""plan_dropblock: the sites, their block sizes and keep_prob, and the printed table."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import timm
import torch
import torchvision
from networks import CifarResNet, plain_conv_net
from torch import nn

from dropblock_inject import DropBlock, DropBlockInjectError, inject_dropblock, plan_dropblock, remove_dropblock
from dropblock_inject.placement.patterns import matches


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return torchvision.models.resnet18()


# network, stages, number of sites on branches, skips and outputs
COUNTS = [
    ("torchvision:resnet50", (3, 4), 27, 9, 9),
    ("timm:resnet50", (3, 4), 27, 9, 9),
    ("timm:seresnext50_32x4d", (3, 4), 27 + 9, 9, 9),  # one more after each squeeze-excite, at the end of the branch
    ("torchvision:convnext_tiny", (3, 4), 3 * 12, 12, 12),  # depthwise, two linear layers; not before the layer scale
    ("timm:convnext_tiny", (3, 4), 3 * 12, 12, 12),
    ("torchvision:efficientnet_b0", (3, 4), 33, 7, 11),  # four of the eleven blocks have no shortcut
    ("timm:efficientnet_b0", (3, 4), 33, 7, 11),
    ("torchvision:densenet121", (3, 4), 80, 0, 40),
    ("torchvision:vgg16_bn", (3, 4), 6, 0, 6),
    ("torchvision:regnet_y_400mf", (1,), 3, 1, 1),
    ("torchvision:mobilenet_v2", (0,), 2, 0, 1),
]


@pytest.mark.parametrize(("name", "stages", "branch", "skip", "output"), COUNTS)
def test_where_chooses_the_sites(name: str, stages: tuple[int, ...], branch: int, skip: int, output: int) -> None:
    library, _, model = name.partition(":")
    net = torchvision.models.get_model(model) if library == "torchvision" else timm.create_model(model)
    kinds = Counter(site.where for site in plan_dropblock(net, stages, where=("branch", "skip", "output")))
    assert kinds == Counter({"branch": branch, "skip": skip, "output": output})
    assert len(plan_dropblock(net, stages)) == branch + skip
    assert len(plan_dropblock(net, stages, where="branch")) == branch


def test_the_mask_is_after_an_activation_that_does_not_commute_with_it() -> None:
    net = torchvision.models.efficientnet_b0()
    for site in plan_dropblock(net, 4, where="branch", include="*.block.0.*"):
        assert isinstance(net.get_submodule(site.host), nn.SiLU)


def test_stages_count_from_the_end_too(resnet: nn.Module) -> None:
    def stages(asked) -> set[int]:
        return {site.stage for site in plan_dropblock(resnet, asked)}

    assert stages(-1) == stages([4]) == {4}
    assert stages((-2, 4)) == {3, 4}
    assert stages([4, 3, 3]) == {3, 4}
    assert stages((1, -1)) == {1, 4}
    assert stages(range(1, 5)) == {1, 2, 3, 4}


# keyword arguments, targets of stages 2, 3, 4
TARGETS = [
    ({"keep_prob": 0.9}, (0.99375, 0.975, 0.9)),
    ({"keep_prob": 0.6}, (0.975, 0.9, 0.6)),
    ({"keep_prob": 1}, (1.0, 1.0, 1.0)),
    ({"keep_prob": 0.9, "depth_scaling": False}, (0.9, 0.9, 0.9)),
    ({"keep_prob": {2: 0.5, 3: 0.6, 4: 0.7}}, (0.5, 0.6, 0.7)),
    ({"keep_prob": {2: 0.5, 3: 0.6, 4: 0.7}, "depth_scaling": False}, (0.5, 0.6, 0.7)),
    ({"keep_prob": {-3: 0.5, -2: 0.6, -1: 0.7, 1: 0.1}}, (0.5, 0.6, 0.7)),
]


@pytest.mark.parametrize(("options", "expected"), TARGETS)
def test_target_of_each_stage(resnet: nn.Module, options: dict, expected: tuple[float, ...]) -> None:
    targets = {site.stage: site.keep_prob for site in plan_dropblock(resnet, (2, 3, 4), **options)}
    assert targets == {stage: pytest.approx(keep_prob) for stage, keep_prob in zip((2, 3, 4), expected, strict=True)}


def test_a_stage_alone_has_the_same_target(resnet: nn.Module) -> None:
    assert all(site.keep_prob == pytest.approx(0.975) for site in plan_dropblock(resnet, 3, keep_prob=0.9))


# block_size, in force on the maps of stages 3 (14x14) and 4 (7x7)
BLOCK_SIZES = [
    (7, (7, 7), (7, 7)),
    (9, (9, 9), (7, 7)),
    (4, (4, 4), (4, 4)),
    ((3, 9), (3, 9), (3, 7)),
    ([5, 5], (5, 5), (5, 5)),
    (0.5, (7, 7), (4, 4)),
    (0.01, (1, 1), (1, 1)),
]


@pytest.mark.parametrize(("block_size", "stage3", "stage4"), BLOCK_SIZES)
def test_block_size_in_force(resnet: nn.Module, block_size, stage3, stage4) -> None:
    in_force = {site.stage: site.block_size for site in plan_dropblock(resnet, block_size=block_size)}
    assert in_force == {3: stage3, 4: stage4}


# include, exclude, names of the remaining branch sites in stage 4 of a ResNet-18
CONV = [f"layer4.{block}.drop_branch{conv}" for block in (0, 1) for conv in (1, 2)]
PATTERNS = [
    (None, None, CONV),
    ("layer4.1", None, CONV[2:]),  # the block's name
    ("layer4.1.bn2", None, CONV[3:]),  # the host's name
    ("layer4.1.drop_branch2", None, CONV[3:]),  # the site's name
    ("conv2", None, [CONV[1], CONV[3]]),  # the convolution's name
    ("bn2", None, [CONV[1], CONV[3]]),  # a dotted suffix
    ("*.conv1", None, [CONV[0], CONV[2]]),
    ("layer4.*.conv2", None, [CONV[1], CONV[3]]),
    ("*.relu", None, [CONV[0], CONV[2]]),  # the activation's name
    (["layer4.0", "layer4.1.bn1"], None, CONV[:3]),
    ("re:layer4\\.[01]\\.bn1", None, [CONV[0], CONV[2]]),
    (lambda name, module: isinstance(module, nn.Conv2d) and "conv1" in name, None, [CONV[0], CONV[2]]),
    (None, "bn1", [CONV[1], CONV[3]]),
    (None, ["layer4.0", "bn1"], CONV[3:]),
    ("layer4.0", "re:.*bn1", [CONV[1]]),
    (None, lambda name, module: "4.0" in name, CONV[2:]),
]


@pytest.mark.parametrize(("include", "exclude", "expected"), PATTERNS)
def test_include_and_exclude(resnet: nn.Module, include, exclude, expected: list[str]) -> None:
    plan = plan_dropblock(resnet, 4, where="branch", include=include, exclude=exclude)
    assert [site.name for site in plan] == expected


# pattern, name, whether it matches
MATCHES = [
    ("layer4", "layer4", True),
    ("layer4", "layer41", False),
    ("layer4", "layer4.0", False),
    ("4", "layer4", False),
    ("0.bn1", "layer4.0.bn1", True),
    ("0.bn1", "layer4.10.bn1", False),
    ("layer?.*", "layer4.0", True),
    ("layer[12].*", "layer4.0", False),
    ("layer4.0", "module.layer4.0", True),
    ("layer4.*", "module.layer4.0", True),
    ("layer4.0", "_orig_mod.module.layer4.0", True),
    ("module.layer4.0", "module.layer4.0", True),
    ("re:layer4", "layer4.0", False),
    ("re:layer4.*", "layer4.0", True),
    ("re:layer4.*", "module.layer4.0", True),
    ("re:^l.*1$", "layer4.0.bn1", True),
]


@pytest.mark.parametrize(("pattern", "name", "expected"), MATCHES)
def test_pattern(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_without_strict_patterns_that_match_nothing_are_ignored(resnet: nn.Module) -> None:
    plan = plan_dropblock(resnet, (4, 9), where="branch", include=["layer4.1", "layer9"], strict=False)
    assert [site.block for site in plan] == ["layer4.1", "layer4.1"]
    assert len(plan_dropblock(resnet, 4, include="nothing", strict=False)) == 0
    assert len(plan_dropblock(resnet, 9, strict=False)) == 0
    assert str(plan_dropblock(resnet, 9, strict=False)).startswith("DropBlock in ResNet: 0 sites")


def test_layer_options_reach_the_layers() -> None:
    net = CifarResNet()
    options = {"per_channel": False, "rescale": "sample", "calibrated": False}
    inject_dropblock(net, -1, example_input=torch.empty(1, 3, 32, 32), block_size=(3, 2), **options)
    layers = [module for module in net.modules() if isinstance(module, DropBlock)]
    assert layers
    for layer in layers:
        assert (layer.per_channel, layer.rescale, layer.calibrated) == (False, "sample", False)
        assert layer.block_size == (3, 2)


def test_a_plan_changes_nothing_until_it_is_applied() -> None:
    net = CifarResNet()
    before = repr(net)
    plan = plan_dropblock(net, -1, example_input=torch.empty(1, 3, 32, 32))
    assert repr(net) == before
    report = plan.apply()
    assert list(report) == list(plan)
    assert str(report) == str(plan)
    assert repr(net) != before
    assert {site.name for site in report} == {n for n, m in net.named_modules() if isinstance(m, DropBlock)}
    with pytest.raises(DropBlockInjectError, match="injected DropBlocks already"):
        plan.apply()


def test_a_model_that_asks_for_its_parameters_does_not_run_what_is_registered() -> None:
    """As those of diffusers ask for their dtype."""

    class Asking(CifarResNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert len({parameter.dtype for parameter in self.parameters()}) == 1
            return super().forward(x)

    plan = plan_dropblock(Asking(), None, example_input=torch.empty(1, 3, 32, 32))
    assert [site.name for site in plan] == [
        site.name for site in plan_dropblock(CifarResNet(), None, example_input=torch.empty(1, 3, 32, 32))
    ]


def test_the_table() -> None:
    plan = plan_dropblock(plain_conv_net(), (3, 4), example_input=torch.empty(1, 3, 32, 32))
    assert str(plan) == (
        "DropBlock in Sequential: 2 sites in 2 blocks; maps for an input of 32x32 pixels\n"
        "\n"
        "stage  site             where   after     channels  map  block  keep_prob\n"
        "-----  ---------------  ------  --------  --------  ---  -----  ---------\n"
        "    3  10.drop_branch1  branch  8 9 10          64  8x8    7x7      0.975\n"
        "\n"
        "    4  14.drop_branch1  branch  12 13 14        64  4x4   4x4*        0.9\n"
        "\n"
        "* 1 of 2 sites drop whole channels, as Dropout2d does, because the block is as large as the map\n"
        "  (block_size=0.5 makes it half of each map)"
    )
    assert repr(plan) == "<InjectionPlan of 2 sites in Sequential>"
    assert plan[0].name == "10.drop_branch1"
    assert [site.stage for site in plan[:2]] == [3, 4]


def test_the_table_says_that_the_pass_without_data_ended_early() -> None:
    class NeedsData(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.mean().item()

    net = nn.Sequential(CifarResNet(), NeedsData())
    text = str(plan_dropblock(net, -1, example_input=torch.empty(1, 3, 32, 32)))
    assert re.search(
        r"\n\nThe pass without data ended early.* Sites behind that point are not listed: RuntimeError: .*meta", text
    )


@pytest.mark.parametrize("statement", ["add_module", "register_forward_hook", "register_forward_pre_hook"])
def test_an_interrupted_injection_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    net = CifarResNet()
    plan = plan_dropblock(net, (2, 3), where=("paper", "output"), example_input=torch.empty(1, 3, 32, 32))
    original = getattr(nn.Module, statement)

    def state() -> tuple:
        hooks = {n: (list(m._forward_hooks), list(m._forward_pre_hooks)) for n, m in net.named_modules()}
        return repr(net), hooks

    def calls_until_fault(fails_at: int) -> int:
        count = 0

        def failing(self: nn.Module, *args, **kwargs):
            nonlocal count
            count += 1
            if count == fails_at:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, statement, failing)
            plan.apply()
        return count

    before = state()
    total = calls_until_fault(fails_at=0)
    assert total >= 4
    remove_dropblock(net)
    for fails_at in range(1, total + 1):
        with pytest.raises(KeyboardInterrupt):
            calls_until_fault(fails_at)
        assert state() == before
