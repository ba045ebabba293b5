"""An injected network survives what is done to networks in practice: its sites are live afterwards.

A site is live if it changes the output; attributes prove nothing. Each test runs for every kind of site.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import timm
import torch
import torchvision
from injected import BATCH_NORM, NETWORKS, OTHER_LAYERS, assert_live, drops, injected, options_for, wake_branches
from networks import EVERY_KIND, images_for
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from dropblock_inject import (
    DropBlock,
    DropBlockInjectError,
    KeepProbSchedule,
    check_dropblock,
    dropblock_sites,
    inject_dropblock,
    plan_dropblock,
    remove_dropblock,
)
from dropblock_inject.surgery.keep_prob import keep_prob_of, set_keep_prob
from dropblock_inject.surgery.place import Label

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(
    params=[
        *EVERY_KIND,
        *OTHER_LAYERS,
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in NETWORKS
            if name not in EVERY_KIND and name not in OTHER_LAYERS
        ),
    ]
)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def net(name: str) -> nn.Module:
    return injected(name)


def kinds(name: str) -> set[str]:
    """The kinds of sites of a network. Every test below shows that each site of the network is live."""
    net = NETWORKS[name]()
    plan = plan_dropblock(net, **options_for(name))
    ends = {site.host for site in plan if site.where == "branch"}
    found = set()
    for site in plan:
        found |= {f"{len(site.map_size)}-d", f"channels at {site.channel_dim}"}
        if site.where != "skip":
            found.add(site.where)
        elif site.host == site.block:
            found.add("the input of the block")
        elif site.host in ends:
            found.add("a shortcut read by the block itself")
        elif isinstance(net.get_submodule(site.host), BATCH_NORM):
            found.add("a shortcut made within the block")
        else:
            found.add("the output of a projection")
    return found


def test_the_networks_have_every_kind_of_site() -> None:
    shortcuts = {"the input of the block", "the output of a projection"}
    shortcuts |= {"a shortcut read by the block itself", "a shortcut made within the block"}
    everywhere = {"branch", "output", "2-d", "3-d", "channels at 1", "channels at -1"}
    assert set().union(*map(kinds, EVERY_KIND)) == shortcuts | everywhere


def test_deepcopy_has_sites_of_its_own(net: nn.Module, name: str) -> None:
    sites = len(drops(net))
    other = copy.deepcopy(net)
    assert_live(other, images_for(name), sites)
    set_keep_prob(next(iter(drops(other).values())), 0.123)
    assert all(keep_prob_of(layer) != 0.123 for layer in drops(net).values())
    assert remove_dropblock(other) == sites
    assert not drops(other)
    assert_live(net, images_for(name), sites)


def test_pickle_into_another_process(net: nn.Module, name: str, tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    torch.save(net, file)
    code = (
        "import sys, torch; from torch import nn\n"
        f"sys.path.insert(0, {str(HELPERS)!r})\n"
        "from injected import assert_live, drops; from networks import images_for\n"
        "net = torch.load(sys.argv[1], weights_only=False)\n"
        "for module in net.modules():\n"  # hooks that are added later must not replace ours
        "    module.register_forward_hook(lambda *_: None); module.register_forward_pre_hook(lambda *_: None)\n"
        f"assert_live(net, images_for({name!r}), {len(drops(net))})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_pickle_of_a_pickle(net: nn.Module, name: str) -> None:
    assert_live(pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(net)))), images_for(name), len(drops(net)))


def test_moving_and_changing_dtype(net: nn.Module, name: str) -> None:
    if images_for(name).dim() == 4:
        assert_live(net.to("cpu").to(memory_format=torch.channels_last), images_for(name))
    assert_live(net.double(), images_for(name).double())
    assert_live(net.bfloat16(), images_for(name).bfloat16())


def test_half_precision_gives_finite_numbers(net: nn.Module, name: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        output = net.to(dtype)(images_for(name).to(dtype))
        assert output.dtype == dtype
        assert output.isfinite().all()


def test_autocast(net: nn.Module, name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert_live(net, images_for(name))
        net(images_for(name)).float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters() if parameter.grad is not None)


def test_frozen_batch_norm_leaves_the_sites_on(net: nn.Module, name: str) -> None:
    for module in net.modules():
        if isinstance(module, BATCH_NORM):
            module.eval()
    assert_live(net, images_for(name))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_draws_the_same_masks_in_the_recomputation(
    net: nn.Module, name: str, reentrant: bool
) -> None:
    images = images_for(name).requires_grad_()

    def gradients(forward) -> list[Tensor]:
        net.zero_grad()
        torch.manual_seed(2)
        forward().square().sum().backward()
        return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]

    for module in net.modules():  # the recomputation would update the running statistics once more
        if isinstance(module, BATCH_NORM):
            module.momentum = 0.0
    expected = gradients(lambda: net(images))
    recomputed = gradients(lambda: checkpoint(net, images, use_reentrant=reentrant))
    torch.testing.assert_close(recomputed, expected)


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:test_convnext"])
def test_checkpointing_of_timm(name: str) -> None:
    net = injected(name)
    net.set_grad_checkpointing(True)
    assert_live(net, images_for(name))
    net(images_for(name)).sum().backward()


def test_averaged_models(net: nn.Module, name: str) -> None:
    images = images_for(name)
    of_the_plain = torch.optim.swa_utils.AveragedModel(NETWORKS[name](), use_buffers=True)
    of_the_plain.update_parameters(net)
    averaged = torch.optim.swa_utils.AveragedModel(net, use_buffers=True)
    averaged.update_parameters(net)
    assert_live(averaged.module, images)
    ema = timm.utils.ModelEmaV3(net)
    ema.update(net)
    with torch.no_grad():
        assert torch.equal(ema.module.eval()(images), ema.module(images))


def test_compile_makes_two_graphs_over_a_schedule(net: nn.Module, name: str) -> None:
    """Of DropBlock. Each value of p makes a graph of its own of torch's dropout, so that such layers get few values."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    steps = 3 if name in OTHER_LAYERS else 12
    schedule = KeepProbSchedule(net, total_steps=steps)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    images = images_for(name)
    for _ in range(steps):
        compiled(images).sum().backward()
        schedule.step()
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= (steps if name in OTHER_LAYERS else 2)
    assert not torch._dynamo.utils.counters["graph_break"]
    check_dropblock(compiled)
    assert len(dropblock_sites(compiled)) == len(drops(net))
    for layer in drops(net).values():
        set_keep_prob(layer, 0.3)
    torch.manual_seed(1)
    first = compiled(images)
    torch.manual_seed(2)
    assert not torch.equal(compiled(images), first)


def test_inductor_makes_two_graphs_over_a_schedule() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    name = "own:cifar_resnet"
    net = injected(name, stages=-1, include="stage3.1")
    schedule = KeepProbSchedule(net, total_steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor warns while it starts
        compiled = torch.compile(net, fullgraph=True)
        for _ in range(5):
            compiled(images_for(name)).sum().backward()
            schedule.step()
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_network_in_eval_mode_has_no_trace_of_dropblock(net: nn.Module, name: str, strict: bool) -> None:
    images = images_for(name)
    program = torch.export.export(net.eval(), (images,), strict=strict)
    kinds = {node.target.name() for node in program.graph.nodes if hasattr(node.target, "name")}
    assert not any("rand" in kind or "dropblock" in kind for kind in kinds)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), net(images))


def test_onnx_export_in_eval_equals_the_plain_network(net: nn.Module, name: str, tmp_path: Path) -> None:
    images = images_for(name)
    plain = NETWORKS[name]()
    plain.load_state_dict(net.state_dict())
    outputs, operators = [], []
    for model in (net.eval(), plain.eval()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own parts
            program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
        program.save(tmp_path / "net.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
        operators.append([node.op_type for node in program.model.graph])
    assert (outputs[0] == outputs[1]).all()
    assert operators[0] == operators[1]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(outputs[0]), plain(images), rtol=1e-4, atol=1e-5)


def test_jit_trace_in_eval_equals_the_plain_network(net: nn.Module, name: str) -> None:
    images = images_for(name)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that TorchScript is deprecated
        traced = torch.jit.trace(net.eval(), images)
        plain = torch.jit.trace(NETWORKS[name]().eval(), images)
        torch.testing.assert_close(traced(images), net(images))
    operators = [
        sorted(node.kind() for node in graph.inlined_graph.nodes() if node.kind().startswith(("aten", "dropblock")))
        for graph in (traced, plain)
    ]
    assert operators[0] == operators[1]


def test_jit_script_is_refused_with_the_mend(net: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that TorchScript is deprecated
        with pytest.raises(DropBlockInjectError, match=r"torch\.jit\.script: call remove_dropblock"):
            torch.jit.script(net)


@pytest.fixture
def traceable(name: str) -> None:
    """Skips a network that torch.fx cannot trace without DropBlock either: timm's padding as in TensorFlow branches."""
    if name == "timm:tf_efficientnet_lite0":
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(NETWORKS[name]())
        pytest.skip("torch.fx cannot trace it without DropBlock either")


@pytest.mark.usefixtures("traceable")
def test_a_traced_graph_follows_its_mode_and_keep_prob(net: nn.Module, name: str) -> None:
    graph = torch.fx.symbolic_trace(net)
    images = images_for(name)
    layers = drops(graph)
    assert len(layers) == len(drops(net))

    def output(keep_prob: float, layer: DropBlock) -> Tensor:
        set_keep_prob(layer, keep_prob)
        torch.manual_seed(5)
        with torch.no_grad():
            return graph(images)

    KeepProbSchedule(graph, total_steps=1)  # to 1.0
    for layer in layers.values():
        assert not torch.equal(output(0.3, layer), output(1.0, layer))
    graph.eval()
    for layer in layers.values():
        assert torch.equal(output(0.3, layer), output(1.0, layer))


@pytest.mark.usefixtures("traceable")
def test_a_traced_graph_computes_the_output_of_the_network(net: nn.Module, name: str) -> None:
    """In training mode too: the same seed gives the same output, so shortcuts and branches read the same tensors."""
    graph = torch.fx.symbolic_trace(net)
    images = images_for(name)
    torch.manual_seed(4)
    expected = net(images)
    torch.manual_seed(4)
    torch.testing.assert_close(graph(images), expected)


@pytest.mark.usefixtures("traceable")
def test_a_graph_that_ran_leaves_the_network_it_was_traced_from_alone(net: nn.Module, name: str) -> None:
    images = images_for(name)
    graph = torch.fx.symbolic_trace(copy.deepcopy(net)).eval()

    def output() -> Tensor:
        torch.manual_seed(5)
        with torch.no_grad():
            return net(images)

    expected = output()
    graph(images)
    assert torch.equal(output(), expected)


def test_a_network_compiles_after_a_graph_of_it_ran() -> None:
    torch._dynamo.reset()
    name = "own:cifar_resnet"
    net = injected(name, stages=-1)
    graph = torch.fx.symbolic_trace(copy.deepcopy(net))
    graph(images_for(name))
    with pytest.raises(RuntimeError):
        graph(images_for(name)[:, :1])  # a graph that does not run to its end
    torch.compile(net, fullgraph=True, backend="eager")(images_for(name))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:efficientnet_b0"])
def test_feature_extractor_of_torchvision(name: str) -> None:
    net = injected(name)
    node = "layer4" if "resnet" in name else "features.7"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision says that the graphs for training and evaluation may differ
        extractor = torchvision.models.feature_extraction.create_feature_extractor(net, return_nodes=[node])
    images = images_for(name)
    with torch.no_grad():
        assert torch.equal(extractor.eval()(images)[node], extractor(images)[node])
        extractor.train()
        torch.manual_seed(1)
        first = extractor(images)[node]
        torch.manual_seed(2)
        assert not torch.equal(extractor(images)[node], first)


def test_feature_extractor_of_timm() -> None:
    net = injected("timm:resnet18")
    extractor = timm.models._features_fx.create_feature_extractor(net, ["layer4"])
    images = images_for("timm:resnet18")
    with torch.no_grad():
        extractor.eval()
        first = extractor(images)
        second = extractor(images)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_conversion_to_sync_batch_norm_is_noticed() -> None:
    net = injected("torchvision:resnet18")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    dead = [row.name for row in dropblock_sites(converted) if not row.live]
    assert dead
    with pytest.raises(DropBlockInjectError, match=r"layer3\.0\.drop_branch1, after layer3\.0\.bn1"):
        check_dropblock(converted)
    schedule = KeepProbSchedule(converted, total_steps=10)
    with pytest.raises(DropBlockInjectError, match="no longer take part"):
        schedule.attach(torch.optim.SGD(converted.parameters(), lr=0.1))
    with pytest.raises(DropBlockInjectError, match="no longer take part"):
        schedule.step()
    assert remove_dropblock(converted) > 0
    inject_dropblock(converted)
    check_dropblock(converted)


def test_a_replaced_first_convolution_of_a_branch_is_noticed() -> None:
    net = injected("torchvision:resnet18")
    # The new one would read the masked shortcut.
    net.layer3[1].conv1 = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    with pytest.raises(
        DropBlockInjectError, match=r"layer3\.1\.drop_skip, after layer3\.1: layer3\.1\.conv1 is another module now"
    ):
        check_dropblock(net)


def test_parameters_and_buffers_pair_up_with_those_of_a_plain_network(net: nn.Module, name: str) -> None:
    plain = NETWORKS[name]()
    assert [b.shape for b in plain.buffers()] == [b.shape for b in net.buffers()]
    assert [p.shape for p in plain.parameters()] == [p.shape for p in net.parameters()]
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    plain.load_state_dict(torch.load(buffer, weights_only=True), strict=True)


def test_no_tensor_of_a_step_is_held_after_it(net: nn.Module, name: str) -> None:
    """DropBlocks and their hooks hand tensors to each other. They must let go of every one of them."""
    references: list[weakref.ref] = []

    def remember(module: nn.Module, args: tuple, output: Tensor) -> None:
        references.extend(weakref.ref(tensor) for tensor in (*args, output))

    for module in net.modules():
        module.register_forward_hook(remember)
    net(images_for(name)).sum().backward()
    assert len(references) > 20
    gc.collect()
    assert [tuple(tensor.shape) for reference in references if (tensor := reference()) is not None] == []


@pytest.mark.parametrize("inject_first", [True, False])
@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings(
    "ignore:Grad strides do not match"
)  # depthwise convolutions cause it, without DropBlock too
def test_distributed_data_parallel_around_it(name: str, inject_first: bool) -> None:
    if inject_first:
        wrapped = nn.parallel.DistributedDataParallel(injected(name))
    else:
        wrapped = nn.parallel.DistributedDataParallel(NETWORKS[name]())
        wake_branches(wrapped)
        report = inject_dropblock(wrapped, **options_for(name))
        assert all(site.name.startswith("module.") for site in report)
    assert_live(wrapped, images_for(name))
    schedule = KeepProbSchedule(wrapped, total_steps=2)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    schedule.attach(optimizer)
    for _ in range(2):
        wrapped(images_for(name)).sum().backward()
        optimizer.step()
    assert min(schedule.get_last_keep_prob()) == pytest.approx(0.9)
    assert remove_dropblock(wrapped) > 0


@pytest.fixture
def sharding(process_group: None) -> None:
    """Skips where FSDP2 does not run on the CPU, without DropBlock either: up to torch 2.6."""
    try:
        fully_shard(nn.Linear(1, 1))(torch.zeros(1, 1)).sum().backward()
    except AttributeError as error:
        pytest.skip(f"FSDP2 of torch {torch.__version__} does not run on the CPU: {error}")


@pytest.mark.usefixtures("sharding")
def test_fully_sharded_around_it(net: nn.Module, name: str) -> None:
    for block in {site.block for site in report_of(net)}:
        fully_shard(net.get_submodule(block))
    fully_shard(net)
    assert_live(net, images_for(name))
    net(images_for(name)).sum().backward()


def report_of(net: nn.Module) -> list[Any]:
    return [label.site for module in net.modules() if (label := Label.of(module))]


@pytest.mark.usefixtures("sharding")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")  # timm's LayerNorm2d causes it
def test_fully_sharded_by_the_layer(net: nn.Module, name: str) -> None:
    """FSDP2 then gives a view of the masked shortcut to the module that must read the unmasked one."""
    whole = copy.deepcopy(net)
    for layer in reversed([module for module in net.modules() if list(module.parameters(recurse=False))]):
        fully_shard(layer)
    fully_shard(net)
    images = images_for(name)
    torch.manual_seed(5)
    expected = whole(images)
    torch.manual_seed(5)
    output = net(images)
    assert torch.equal(output, expected)
    expected.square().mean().backward()
    output.square().mean().backward()
    gradients = [parameter.grad.full_tensor() for parameter in net.parameters()]
    torch.testing.assert_close(gradients, [parameter.grad for parameter in whole.parameters()])
