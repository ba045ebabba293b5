"""Bad input is answered with an error that says what was asked, what was found and what to do; nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from networks import CifarResNet
from torch import nn

import dropblock_inject
from dropblock_inject import (
    DropBlockInjectError,
    check_dropblock,
    dropblock_sites,
    find_stages,
    inject_dropblock,
    plan_dropblock,
    remove_dropblock,
)
from dropblock_inject.errors import CompiledModelError

IMAGE = torch.empty(1, 3, 32, 32)

# keyword arguments, the built-in error, a part of the message
REQUESTS = [
    (
        {"stages": 7},
        ValueError,
        r"no stage 7 in the model; for an input of 32x32 pixels it has\n  1: reduction 1, 16 channels, stage1\.0 to",
    ),
    ({"stages": (3, 5, 6)}, ValueError, r"no stage 5, 6 in the model"),
    ({"stages": -4}, ValueError, r"no stage -4 in the model"),
    ({"stages": "3"}, TypeError, r"stages must be an int, a sequence of ints, or None for every block, got '3'"),
    ({"stages": ()}, TypeError, r"stages must be an int, a sequence of ints, or None for every block, got \(\)"),
    (
        {"stages": (3.0,)},
        TypeError,
        r"stages must be an int, a sequence of ints, or None for every block, got \(3\.0,\)",
    ),
    ({"stages": True}, TypeError, r"stages must be an int, a sequence of ints, or None for every block, got True"),
    (
        {"keep_prob": 0},
        ValueError,
        r"keep_prob must be in \(0, 1\], got 0: it is the share of the feature map that is kept",
    ),
    ({"keep_prob": 1.1}, ValueError, r"keep_prob must be in \(0, 1\], got 1\.1"),
    ({"keep_prob": float("nan")}, ValueError, r"keep_prob must be in \(0, 1\], got nan"),
    ({"keep_prob": "0.9"}, TypeError, r"keep_prob must be a float in \(0, 1\], got '0\.9'"),
    ({"keep_prob": {3: 0.9}}, ValueError, r"keep_prob=\{3: 0\.9\} says nothing of stage 2"),
    ({"keep_prob": {2: 0.9, 3: 2}}, ValueError, r"keep_prob must be in \(0, 1\], got 2"),
    ({"keep_prob": {2: 0.9, 3: 0.9, 7: 0.8}}, ValueError, r"speaks of stage 7, but the model has stages 1, 2, 3"),
    ({"block_size": 0}, ValueError, r"block_size must be at least 1, got 0"),
    ({"block_size": -3}, ValueError, r"block_size must be at least 1, got -3"),
    ({"block_size": 1.5}, ValueError, r"block_size=1\.5: a float is a share of the map and must be in \(0, 1\)"),
    (
        {"block_size": (3, 3, 3)},
        ValueError,
        r"block_size=\(3, 3, 3\) has 3 entries, but the feature maps have 2 spatial",
    ),
    ({"block_size": "7"}, TypeError, r"block_size must be an int, a sequence of ints or a float in \(0, 1\), got '7'"),
    (
        {"where": "shortcut"},
        ValueError,
        r"where must be 'paper', 'branch', 'skip', 'output', 'end' or a sequence.*got 'shortcut'",
    ),
    ({"where": ()}, ValueError, r"where must be .*got \(\)"),
    ({"where": 3}, ValueError, r"where must be .*got 3"),
    ({"rescale": "mean"}, ValueError, r"rescale must be 'batch', 'sample', 'expected' or None, got 'mean'"),
    ({"block": 7}, TypeError, r"unknown argument 'block', did you mean block_size\?; the layer options are"),
    ({"keepprob": 0.9}, TypeError, r"unknown argument 'keepprob', did you mean keep_prob\?"),
    ({"zzz": 7}, TypeError, r"unknown argument 'zzz'; the layer options are per_channel, rescale, calibrated"),
    ({"example_input": 32}, TypeError, r"is a shape, .*; pass torch.empty\(1, 3, 32, 32\)"),
    ({"example_input": [64, 32]}, TypeError, r"is a shape, .*; pass torch.empty\(1, 3, 64, 32\)"),
    ({"example_input": (1, 3, 32, 32)}, TypeError, r"is a shape, .*; pass torch.empty\(1, 3, 32, 32\)"),
    ({"channel_dim": -1}, TypeError, r"unknown argument 'channel_dim'.*found by itself"),
    (
        {"include": "stage3.0.conv11"},
        ValueError,
        r"include='stage3\.0\.conv11' matches none of the .* closest: stage3\.0",
    ),
    ({"exclude": ["stage3.0", "stagee3.1"]}, ValueError, r"exclude='stagee3\.1' matches none .* closest: stage3\.1"),
    ({"include": "re:("}, ValueError, r"include='re:\(' is not a valid regular expression"),
    ({"include": 3}, TypeError, r"include must be a name pattern, a sequence of them, .*got 3"),
    ({"exclude": [nn.Conv2d]}, TypeError, r"exclude must be a name pattern"),
    ({"include": "stage3.0", "exclude": "stage3.*"}, ValueError, r"together leave none of the"),
    (
        {"example_input": torch.empty(3, 32)},
        RuntimeError,
        r"could not be traced with an input of shape \(3, 32\): .*Pass",
    ),
    (
        {"example_input": torch.empty(1, 1, 32, 32)},
        RuntimeError,
        r"shape \(1, 1, 32, 32\): RuntimeError: .* \(in .*, Conv2d\(3, .*, given \(1, 1, 32, 32\)\)\. Pass another",
    ),
]


@pytest.mark.parametrize(("request_", "builtin", "message"), REQUESTS)
def test_a_request_that_cannot_be_fulfilled(request_: dict, builtin: type, message: str) -> None:
    net = CifarResNet()
    before = repr(net), {key: value.clone() for key, value in net.state_dict().items()}
    options = {"stages": (2, 3), "example_input": IMAGE, **request_}
    for call in (plan_dropblock, inject_dropblock):
        with pytest.raises(DropBlockInjectError, match=message) as caught:
            call(net, **options)
        assert isinstance(caught.value, builtin)
    assert repr(net) == before[0]
    torch.testing.assert_close(net.state_dict(), before[1], rtol=0, atol=0)


@pytest.mark.parametrize("not_a_model", [None, "resnet50", CifarResNet, [CifarResNet()]])
@pytest.mark.parametrize("call", [plan_dropblock, inject_dropblock, find_stages, remove_dropblock])
def test_not_a_module(call, not_a_model) -> None:
    with pytest.raises(DropBlockInjectError, match=r"model must be a torch\.nn\.Module, got") as caught:
        call(not_a_model)
    assert isinstance(caught.value, TypeError)


def test_a_transformer() -> None:
    net = timm.create_model("vit_tiny_patch16_224")
    with pytest.raises(DropBlockInjectError, match="no convolutional trunk in VisionTransformer") as caught:
        inject_dropblock(net)
    assert isinstance(caught.value, ValueError)


def test_a_network_without_shortcuts_has_no_skip() -> None:
    from networks import plain_conv_net

    with pytest.raises(
        DropBlockInjectError, match=r"where='skip' finds no site in stages \[3, 4\].*try where='branch'"
    ):
        inject_dropblock(plain_conv_net(), where="skip", example_input=IMAGE)


def test_already_injected() -> None:
    net = CifarResNet()
    inject_dropblock(net, -1, example_input=IMAGE)
    before = repr(net)
    for call in (plan_dropblock, inject_dropblock):
        with pytest.raises(
            DropBlockInjectError, match=r"CifarResNet has 6 injected DropBlocks already.*remove_dropblock"
        ) as caught:
            call(net, -1, example_input=IMAGE)
        assert isinstance(caught.value, RuntimeError)
    assert repr(net) == before
    remove_dropblock(net)
    assert len(inject_dropblock(net, -1, example_input=IMAGE)) == 6


def test_a_plan_for_a_model_that_was_changed_afterwards() -> None:
    for change in ("stage3.1.conv1", "stage3.1"):
        net = CifarResNet()
        plan = plan_dropblock(net, -1, example_input=IMAGE)
        parent, _, name = change.rpartition(".")
        setattr(net.get_submodule(parent), name, nn.Sequential(net.get_submodule(change)))
        before = repr(net)
        with pytest.raises(
            DropBlockInjectError, match=r"stage3\.1\S* is not the module it was when this plan was made"
        ):
            plan.apply()
        assert repr(net) == before


def test_a_forward_that_fails_within_the_trunk() -> None:
    class AsksForValues(type(CifarResNet().stage1[0])):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum().item() else x

    net = CifarResNet()
    net.stage2[1] = AsksForValues(32, 32, 1)
    with pytest.raises(
        DropBlockInjectError, match=r"ended early, before stage3\.0: .*item\(\).*leave it out"
    ) as caught:
        inject_dropblock(net, -1, example_input=IMAGE)
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize("part", ["stage3", "stage3.1"])
def test_a_replaced_part_with_sites(part: str) -> None:
    net = CifarResNet()
    inject_dropblock(net, (-2, -1), example_input=IMAGE)
    parent, _, name = part.rpartition(".")
    setattr(net.get_submodule(parent), name, CifarResNet().get_submodule(part))
    with pytest.raises(DropBlockInjectError, match=r"stage3\.1\.drop_branch1, which is gone"):
        check_dropblock(net)


def test_compiled() -> None:
    wrapped = torch.compile(CifarResNet(), backend="eager")
    inside = CifarResNet()
    inside.stage3.compile(backend="eager")
    for net in (wrapped, inside, nn.Sequential(wrapped)):
        with pytest.raises(DropBlockInjectError, match=r"is compiled.*inject first, then compile") as caught:
            inject_dropblock(net, -1, example_input=IMAGE)
        assert isinstance(caught.value, RuntimeError)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
@pytest.mark.parametrize("function", [find_stages, plan_dropblock, inject_dropblock])
def test_compiled_by_torch_jit(function: Callable[..., object]) -> None:
    net = CifarResNet().eval()
    whole = torch.jit.trace(net, IMAGE)
    net.stage3[1] = torch.jit.trace(net.stage3[1], torch.empty(1, 64, 8, 8))
    for model, part in ((net, ", 'stage3.1'"), (whole, "")):
        with pytest.raises(CompiledModelError, match=rf"compiled by torch\.jit{part};.* use the original module"):
            function(model, example_input=IMAGE)


def test_a_model_without_sites() -> None:
    net = CifarResNet()
    assert dropblock_sites(net) == []
    check_dropblock(net)
    assert remove_dropblock(net) == 0


def test_all_errors_derive_from_one_error_and_from_a_builtin() -> None:
    from dropblock_inject import errors

    raised = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    raised = [e for e in raised if not issubclass(e, Warning) and e is not DropBlockInjectError]
    assert len(raised) > 5
    for error in raised:
        assert issubclass(error, DropBlockInjectError)
        assert issubclass(error, ValueError | TypeError | RuntimeError)


def test_the_public_names_exist() -> None:
    for name in dropblock_inject.__all__:
        assert hasattr(dropblock_inject, name)
