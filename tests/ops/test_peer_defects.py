"""Defects of other DropBlock implementations, as tests of this one.

A docstring or a test's id names the implementations that have the defect. `examples/peers.md` shows those of the
libraries that still run, each with the line and what it prints.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dropblock_inject import DropBlock, KeepProbSchedule, drop_block


def kept_share(keep_prob, block_size, map_size, maps=4096, **options):
    """The share of ones that a call keeps, averaged over many maps."""
    torch.manual_seed(0)
    return drop_block(torch.ones(maps, 8, *map_size), keep_prob, block_size, **options).ne(0).float().mean().item()


@pytest.mark.parametrize(
    ("keep_prob", "block_size", "map_size"),
    [
        pytest.param(0.9, 7, (7, 7), id="timm keeps far too little"),
        pytest.param(0.8, 5, (7, 7), id="timm keeps too little"),
        pytest.param(0.5, 7, (14, 14), id="torchvision keeps too much"),
        pytest.param(0.5, 7, (7, 7), id="dropblock keeps too much"),
        pytest.param(0.9, 5, (14, 7), id="KerasCV keeps too much where height and width differ"),
        pytest.param(0.9, 5, (7, 14), id="KerasCV, the other way round"),
        pytest.param(0.9, 7, (4, 16), id="PaddleDetection keeps all: gamma is negative"),
        pytest.param(0.9, 5, (14, 7), id="glasses keeps too little: gamma is that of a square"),
        pytest.param(0.9, 7, (14, 14), id="torchtoolbox keeps too much: a typo in gamma"),
        pytest.param(0.9, 7, (6, 6), id="torchvision and pylocron raise: the block is clipped to an even map"),
        pytest.param(0.9, 7, (4, 4), id="torchvision raises, timm keeps too little"),
        pytest.param(0.9, 4, (14, 14), id="torchregularize and pylocron crash on even blocks"),
        pytest.param(
            0.9, 8, (7, 7), id="torchtoolbox and KerasCV divide by zero: the block is one larger than the map"
        ),
    ],
)
def test_the_kept_share_is_keep_prob(keep_prob, block_size, map_size):
    maps = 16 * 4096 if block_size >= max(map_size) else 4096
    assert kept_share(keep_prob, block_size, map_size, maps) == pytest.approx(keep_prob, abs=0.005)


def test_half_precision_with_everything_dropped_is_not_nan():
    """timm: NaN."""
    torch.manual_seed(0)
    outputs = [drop_block(torch.randn(1, 2, 7, 7).half(), 0.1, 7) for _ in range(50)]
    assert sum(not output.any() for output in outputs) > 20
    assert all(output.isfinite().all() for output in outputs)


def test_the_layer_can_be_traced_by_fx_in_train_mode():
    """timm: TraceError."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), DropBlock(0.5, 3), nn.ReLU()).train()
    traced = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, 9, 9)
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(traced(x), expected)


@pytest.mark.parametrize(
    ("options", "spread"),
    [({}, 0.15), ({"rescale": "sample"}, 1e-5), ({"rescale": "sample", "per_channel": False}, 1e-5)],
    ids=str,
)
def test_every_sample_keeps_its_mean(options, spread):
    """timm: one mask for all channels, rescaled over the batch, scales single samples at random."""
    torch.manual_seed(0)
    for _ in range(20):
        means = drop_block(torch.ones(8, 64, 14, 14), 0.7, 7, **options).mean((1, 2, 3))
        assert (means - 1).abs().max() < spread


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((64, 256, 28, 28), id="torchvision"),
        pytest.param((128, 8, 28, 28), id="pylocron"),
        pytest.param((64, 64, 28, 28), id="torchtoolbox"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_maps_survive_half_precision(dtype, shape):
    """The number of kept pixels overflows fp16: zeros in torchvision and pylocron, NaN in torchtoolbox."""
    torch.manual_seed(0)
    output = drop_block(torch.ones(shape, dtype=dtype), 0.9, 7)
    assert output.max().item() == pytest.approx(1 / 0.9, rel=0.01)
    assert output.float().mean().item() == pytest.approx(1, abs=0.005)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_scripting_is_refused_and_the_error_names_an_alternative():
    """torchvision: an error from inside the compiler."""
    with pytest.raises(RuntimeError, match=r"remove_dropblock\(model\)"):
        torch.jit.script(DropBlock(0.9, 3))


def test_an_fx_graph_of_the_train_mode_drops_nothing_in_eval():
    """torchvision: the graph goes on dropping."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.d = DropBlock(0.5, 3)

        def forward(self, x):
            return self.d(x)

    x = torch.ones(2, 4, 9, 9)
    traced = torch.fx.symbolic_trace(Net().train())
    assert traced.train()(x).eq(0).any()
    assert torch.equal(traced.eval()(x), x)


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
@pytest.mark.parametrize("before", [nn.Conv2d(4, 4, 3), nn.ReLU()], ids=lambda module: type(module).__name__)
def test_a_schedule_of_30_values_compiles_at_most_twice(before, backend):
    """timm and torchvision: torch gives up at the ninth value, with the eager backend before it."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layer = DropBlock(0.5, 3)
    compiled = torch.compile(nn.Sequential(before, layer), backend=backend, fullgraph=True)
    x = torch.randn(2, 4, 9, 9)
    for step in range(30):
        layer.keep_prob = 1 - 0.01 * step
        compiled(x)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_inplace_after_relu_is_refused_in_the_forward_pass():
    """timm and torchvision: RuntimeError in the backward pass."""
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    with pytest.raises(ValueError, match="inplace=True cannot overwrite this input"):
        nn.Sequential(nn.ReLU(), DropBlock(0.8, 5, inplace=True))(x)
    nn.Sequential(nn.ReLU(), DropBlock(0.8, 5))(x).sum().backward()
    assert x.grad.isfinite().all()


def test_a_float_number_of_steps_is_refused_by_name():
    """dropblock: its own example, with 5e3 steps, is a TypeError from inside numpy."""
    model = DropBlock(0.75, 3)
    with pytest.raises(TypeError, match=r"total_steps must be an int, got 5000\.0"):
        KeepProbSchedule(model, 5e3)
    schedule = KeepProbSchedule(model, 5000)
    schedule.step(5000)
    assert model.keep_prob == 0.75


def test_the_state_of_a_schedule_is_saved():
    """dropblock: the state dict is empty."""
    model = DropBlock(0.75, 3)
    schedule = KeepProbSchedule(model, 5)
    for _ in range(3):
        schedule.step()
    resumed = DropBlock(0.75, 3)
    KeepProbSchedule(resumed, 5).load_state_dict(schedule.state_dict())
    assert schedule.state_dict()["last_step"] == 3
    assert resumed.keep_prob == model.keep_prob == pytest.approx(0.85)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_runs(dtype):
    """dropblock, MMDetection, torchregularize: the output is in fp32 and the next convolution crashes."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), DropBlock(0.9, 3), nn.Conv2d(3, 3, 1)).to(dtype)
    assert model(torch.randn(2, 3, 9, 9, dtype=dtype)).dtype == dtype
    assert drop_block(torch.ones(2, 3, 9, 9, dtype=dtype), 0.9, 4).dtype == dtype


def test_a_sample_dropped_whole_is_not_nan():
    """dropblock: 0 / 0."""
    torch.manual_seed(0)
    nothing_kept = 0
    for _ in range(2000):
        output = drop_block(torch.ones(1, 1, 7, 7), 0.25, 7)
        assert not output.isnan().any()
        nothing_kept += not output.any()
    assert nothing_kept > 1000


@pytest.mark.parametrize("keep_prob", [-0.5, 1.1])
def test_a_keep_prob_out_of_range_is_refused(keep_prob):
    """dropblock, torchregularize, PaddleDetection: 1.5 and -0.1 are accepted as drop probabilities."""
    with pytest.raises(ValueError, match=r"keep_prob must be in \(0, 1\]"):
        DropBlock(keep_prob, 7)


def test_random_numbers_are_drawn_on_the_device_of_the_input():
    """dropblock: they are drawn on the CPU and copied."""
    before = torch.get_rng_state()
    output = drop_block(torch.empty(2, 3, 14, 14, device="meta"), 0.5, 7)
    assert output.device.type == "meta"
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mean_is_kept():
    """torchregularize: nothing is rescaled."""
    torch.manual_seed(0)
    assert DropBlock(0.7, 3)(torch.ones(512, 1, 14, 14)).mean().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_recomputes_the_same_mask_and_counts_one_step(use_reentrant):
    """MMDetection: the schedule counts forward passes, so that recomputation has another mask and counts twice."""
    layer = DropBlock(0.5, 3)
    schedule = KeepProbSchedule(layer, 10)
    for step in range(1, 11):
        schedule.step()
        assert schedule.last_step == step
        x = torch.rand(2, 4, 9, 9).add_(1).requires_grad_()
        output = checkpoint(lambda x: layer(x * x).square(), x, use_reentrant=use_reentrant)
        output.sum().backward()
        assert torch.equal(x.grad != 0, output != 0)
        assert schedule.last_step == step
    assert layer.keep_prob == 0.5


@pytest.mark.parametrize("map_size", [(6, 6), (5, 5), (4, 4), (3, 3), (4, 16), (2, 2)], ids=str)
def test_maps_smaller_than_the_block_are_dropped_too(map_size):
    """MMDetection: ZeroDivisionError or a negative dimension."""
    output = DropBlock(0.9, 7)(torch.ones(64, 8, *map_size))
    assert output.eq(0).any()
    assert output.isfinite().all()


def test_a_schedule_that_starts_at_1_reaches_its_target():
    """PyTorch-Encoding: it never drops anything."""
    model = DropBlock(0.9, 3)
    schedule = KeepProbSchedule(model, 100, start=1.0)
    x = torch.ones(64, 8, 9, 9)
    assert model(x) is x
    for _ in range(50):
        schedule.step()
    assert model.keep_prob == pytest.approx(0.95)
    assert model(x).eq(0).any()


@pytest.mark.parametrize(
    "map_size", [pytest.param((6, 6), id="KerasCV: NaN"), pytest.param((6, 7), id="glasses: ZeroDivisionError")]
)
def test_a_block_one_larger_than_the_map_works(map_size):
    output = drop_block(torch.ones(512, 8, *map_size), 0.9, 7)
    assert output.isfinite().all()
    assert output.mean().item() == pytest.approx(1, abs=1e-4)


def test_the_schedule_has_the_given_length_and_forward_passes_do_not_move_it():
    """MetaOptNet and its copies: 40,000 steps whatever the training, counted in eval mode too, in no checkpoint."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), DropBlock(0.9, 3))
    schedule = KeepProbSchedule(model, 7)
    schedule.step()
    before = schedule.state_dict()
    for mode in (False, True):
        model.train(mode)
        model(torch.randn(2, 3, 9, 9))
    assert schedule.state_dict() == before
    for _ in range(6):
        schedule.step()
    assert schedule.get_last_keep_prob() == [0.9]


def test_a_schedule_stops_at_its_end_and_loading_restores_its_value():
    """torchtoolbox: it runs past its end, and loading leaves the layers as they are."""
    model = DropBlock(0.9, 3)
    schedule = KeepProbSchedule(model, 20)
    for _ in range(40):
        schedule.step()
    assert model.keep_prob == 0.9
    model.keep_prob = 0.5
    schedule.load_state_dict(schedule.state_dict())
    assert model.keep_prob == 0.9


def test_the_layer_compiles_into_one_graph():
    """pylocron: a branch on data breaks the graph."""
    torch._dynamo.reset()
    compiled = torch.compile(DropBlock(0.9, 3), backend="eager", fullgraph=True)
    assert compiled(torch.ones(64, 8, 9, 9)).eq(0).any()
