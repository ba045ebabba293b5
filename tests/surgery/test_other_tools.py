"""The tools of other libraries on an injected network: right numbers, or an error with a name before any is wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.ao.quantization as quantization
import torchvision
from injected import WHERE, options_for
from networks import EVERY_KIND, NETWORKS, images_for
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from dropblock_inject import check_dropblock, dropblock_sites, inject_dropblock, plan_dropblock
from dropblock_inject.errors import DeadSiteError

peft = pytest.importorskip("peft")
torchinfo = pytest.importorskip("torchinfo")

IMAGES = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _deprecations_of_torch_are_not_ours() -> None:
    warnings.simplefilter("ignore")


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.quantization.resnet18(num_classes=5, quantize=False)


def in_leaves(net: nn.Module) -> int:
    """The parameters as many a loop counts them: those of modules without children."""
    leaves = [module for module in net.modules() if not list(module.children())]
    return sum(parameter.numel() for module in leaves for parameter in module.parameters(recurse=False))


@pytest.mark.parametrize("name", EVERY_KIND)
def test_summaries_and_loops_over_leaves_see_the_same_network(name: str) -> None:
    net = NETWORKS[name]()
    shape = images_for(name, 1).shape

    def seen() -> tuple:
        summary = torchinfo.summary(net, shape, verbose=0)
        return in_leaves(net), summary.total_mult_adds, [n for n, _ in net.named_parameters()]

    before = seen()
    inject_dropblock(net, **options_for(name))
    assert seen() == before


def eager(net: nn.Module, fuse: bool) -> nn.Module:
    if fuse:
        net.fuse_model()
    net.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(net, inplace=True)
    net(IMAGES)
    return quantization.convert(net)


def graph(net: nn.Module, fuse: bool) -> nn.Module:
    prepared = prepare_fx(net, quantization.get_default_qconfig_mapping("x86"), (IMAGES,))
    prepared(IMAGES)
    return convert_fx(prepared)


@pytest.mark.parametrize(("quantize", "fuse"), [(eager, False), (eager, True), (graph, True)])
def test_an_injected_network_is_quantized_as_well_as_the_plain_one(quantize: Callable, fuse: bool) -> None:
    errors = []
    for inject in (False, True):
        net = resnet().eval() if quantize is eager else torchvision.models.resnet18(num_classes=5).eval()
        net.load_state_dict(resnet().state_dict(), strict=False)
        if inject:
            inject_dropblock(net, where=("paper", "output"))
        with torch.no_grad():
            expected = net(IMAGES)
            errors.append(float((quantize(net, fuse)(IMAGES) - expected).norm() / expected.norm()))
    assert errors[0] < 0.5
    assert errors[1] == pytest.approx(errors[0], rel=0.1)


def test_injected_after_the_preparation_for_quantization_it_trains_and_converts() -> None:
    net = resnet().train()
    net.fuse_model(is_qat=True)
    net.qconfig = quantization.get_default_qat_qconfig("x86")
    quantization.prepare_qat(net, inplace=True)
    inject_dropblock(net, keep_prob=0.9)
    check_dropblock(net)
    net(IMAGES).sum().backward()
    net.eval()
    expected = net(IMAGES)
    assert (quantization.convert(net)(IMAGES) - expected).norm() / expected.norm() < 0.5


def test_fusion_after_the_injection_is_an_error_in_training() -> None:
    net = resnet().train()
    inject_dropblock(net, keep_prob=0.9)
    net.fuse_model(is_qat=True)
    with pytest.raises(DeadSiteError, match="no longer take part"):
        check_dropblock(net)
    with pytest.raises(DeadSiteError, match="no longer takes part"):
        net(IMAGES)


def with_adapters(net: nn.Module) -> nn.Module:
    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules=r".*\.conv\d", r=4), net)


@pytest.mark.parametrize("where", ["skip", "branch"])
def test_adapters_put_on_later_see_the_tensors_of_their_convolution_or_it_is_an_error(where: str) -> None:
    net = torchvision.models.resnet18().train()
    inject_dropblock(net, where=where, keep_prob=0.5)
    adapted = with_adapters(net)
    if where == "skip":  # the adapter would read the masked shortcut
        with pytest.raises(DeadSiteError, match=r"layer\d\.1\.drop_skip.*conv1"):
            adapted(IMAGES)
        with pytest.raises(DeadSiteError, match=r"conv1 is on layer\d\.1\.conv1\.base_layer"):
            check_dropblock(adapted)
    else:  # the DropBlocks stand behind the norms, which see convolution and adapter together
        check_dropblock(adapted)
        adapted(IMAGES).sum().backward()
        assert all(row.live for row in dropblock_sites(adapted))


def test_a_convolution_with_an_adapter_is_one_convolution() -> None:
    plain = plan_dropblock(torchvision.models.resnet18(), where=WHERE)
    adapted = with_adapters(torchvision.models.resnet18())
    plan = plan_dropblock(adapted, where=WHERE)
    assert [(site.name, site.host, site.map_size, site.channels) for site in plan] == [
        (site.name, site.host, site.map_size, site.channels) for site in plain
    ]
    inject_dropblock(adapted.train(), where="branch", keep_prob=0.5, block_size=1)
    zeros: list[float] = []
    block = adapted.layer3[1]
    block.drop_branch1.register_forward_hook(
        lambda module, args, output: zeros.append(float(((output == 0) & (args[0] != 0)).float().mean()))
    )
    adapted(IMAGES)
    assert zeros == [pytest.approx(1 - block.drop_branch1.keep_prob, abs=0.01)]
    assert copy.deepcopy(adapted).eval()(IMAGES).isfinite().all()
