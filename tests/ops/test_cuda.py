"""DropBlock on a GPU: the operator, and injected networks of every kind. Skipped where there is none.

The masks themselves are tested in ``test_masks.py``, whose kernels run on a GPU if there is one. With
``DROPBLOCK_DEVICE=cpu`` the tests that need nothing of a GPU run on the CPU.
"""

import copy
import os
import pickle

import pytest
import torch
from injected import assert_live, drops, injected
from networks import EVERY_KIND, images_for
from torch import nn
from torch.utils.checkpoint import checkpoint

from dropblock_inject import DropBlock, KeepProbSchedule, drop_block

DEVICE = os.environ.get("DROPBLOCK_DEVICE", "cuda")
HAS_GPU = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not HAS_GPU, reason="there is no GPU")
needs_gpu = pytest.mark.skipif(DEVICE != "cuda" or not HAS_GPU, reason="there is no GPU")

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
RESCALES = ["batch", "sample", "expected", None]


def maps(dtype=torch.float32, memory_format=torch.contiguous_format, shape=(4, 24, 14, 14)):
    ones = torch.ones(shape, dtype=dtype, device=DEVICE)
    return ones.to(memory_format=memory_format).requires_grad_()


# --- the operator: on ones the gradient of a sum is the output -------------------------------------------------------


@pytest.mark.parametrize("upstream_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_the_output(dtype, rescale, per_channel, memory_format, upstream_format):
    x = maps(dtype, memory_format)
    output = drop_block(x, 0.8, 5, rescale=rescale, per_channel=per_channel)
    assert output.device == x.device
    assert output.stride() == x.stride()
    assert output.eq(0).any()
    output.backward(torch.ones_like(output).to(memory_format=upstream_format))
    assert torch.equal(x.grad, output)
    if rescale == "batch":
        kept = output.count_nonzero().item() / output.numel()
        assert output.max().item() == pytest.approx(1 / kept, rel=2 * torch.finfo(dtype).eps)


def test_the_kept_share_is_keep_prob():
    for keep_prob in (0.9, 0.5):
        output = drop_block(torch.ones(256, 128, 14, 14, device=DEVICE), keep_prob, 7)
        assert output.ne(0).float().mean().item() == pytest.approx(keep_prob, abs=0.003)
        assert output.mean().item() == pytest.approx(1, abs=1e-5)


def test_the_mask_is_a_function_of_the_seed():
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(drop_block(maps(), 0.7, 5))
    generators = [torch.Generator(DEVICE).manual_seed(5) for _ in range(2)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert torch.equal(*(drop_block(maps(), 0.7, 5, generator=generator) for generator in generators))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_mask_is_the_same(reentrant):
    layer, x = DropBlock(0.5, 3), maps()
    output = checkpoint(lambda x: layer(x * x).square(), x, use_reentrant=reentrant)
    torch.rand(7, device=DEVICE)
    output.sum().backward()
    assert torch.equal(x.grad != 0, output != 0)


@needs_gpu
def test_the_host_does_not_wait():
    x = maps()
    drop_block(x, 0.9, 7).sum().backward()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for rescale in RESCALES:
            for inplace in (False, True):
                drop_block(x * 1, 0.9, 7, rescale=rescale, inplace=inplace).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_cuda_graph_draws_a_new_mask_in_each_replay():
    x = maps().detach()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles the kernels
        drop_block(x, 0.9, 7)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = drop_block(x, 0.9, 7)
    masks = set()
    for _ in range(4):
        graph.replay()
        masks.add(output.ne(0).cpu().numpy().tobytes())
        assert output.mean().item() == pytest.approx(1, abs=1e-4)
    assert len(masks) == 4


# --- injected networks -----------------------------------------------------------------------------------------------


@pytest.fixture(params=EVERY_KIND)
def name(request):
    return request.param


@pytest.fixture
def net(name):
    return injected(name).to(DEVICE)


def images_on_device(name):
    return images_for(name).to(DEVICE)


def test_moved_copied_and_pickled_networks_are_live(net, name):
    images, sites = images_on_device(name), len(drops(net))
    for other in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_live(other, images, sites)
    assert_live(net.cpu(), images.cpu(), sites)
    assert_live(net.to(DEVICE), images, sites)


def test_dtypes_and_channels_last(net, name):
    images = images_on_device(name)
    if images.dim() == 4:
        assert_live(net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last))
    for dtype in (torch.float64, torch.bfloat16):
        assert_live(net.to(dtype), images.to(dtype))
    for dtype in (torch.float16, torch.bfloat16):
        assert net.to(dtype)(images.to(dtype)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_with_autocast(net, name, dtype):
    with torch.autocast(DEVICE, dtype):
        assert_live(net, images_on_device(name))
        net(images_on_device(name)).float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_network_has_the_same_gradients(net, name, reentrant):
    images = images_on_device(name).requires_grad_()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.0  # the recomputation would update the running statistics once more
    gradients = []
    for forward in (net, lambda images: checkpoint(net, images, use_reentrant=reentrant)):
        net.zero_grad()
        torch.manual_seed(2)
        forward(images).square().sum().backward()
        gradients.append([one.grad.clone() for one in net.parameters() if one.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")  # of inductor's own start-up
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_gpu)])
def test_a_compiled_network_follows_its_schedule_in_two_graphs(net, name, backend):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    schedule = KeepProbSchedule(net, total_steps=6)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for _ in range(6):
        compiled(images_on_device(name)).sum().backward()
        schedule.step()
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    images = images_on_device(name)
    assert not torch.equal(compiled(images), compiled(images))


def test_a_traced_graph_computes_the_output_of_the_network(net, name):
    graph, images = torch.fx.symbolic_trace(net), images_on_device(name)
    torch.manual_seed(4)
    expected = net(images)
    torch.manual_seed(4)
    torch.testing.assert_close(graph(images), expected)
    assert torch.equal(graph.eval()(images), graph(images))
