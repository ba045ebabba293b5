"""Defects found in other DropBlock implementations, each reproduced against ours: none of them is here.

Each docstring or test id gives the row of the survey, the library and what happens there with the same few lines.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dropblock_inject import DropBlock, KeepProbSchedule, drop_block


def kept_share(keep_prob, block_size, map_size, maps=4096, **options):
    """As measured in each library: the share of ones that a call leaves, averaged over many maps."""
    torch.manual_seed(0)
    return drop_block(torch.ones(maps, 8, *map_size), keep_prob, block_size, **options).ne(0).float().mean().item()


@pytest.mark.parametrize(
    ("keep_prob", "block_size", "map_size"),
    [
        pytest.param(0.9, 7, (7, 7), id="1 timm 1.0.31 keeps 0.07 of 0.9"),
        pytest.param(0.8, 5, (7, 7), id="1 timm 1.0.31 keeps 0.47 of 0.8"),
        pytest.param(0.5, 7, (14, 14), id="1 torchvision 0.29 keeps 0.64 of 0.5"),
        pytest.param(0.5, 7, (7, 7), id="18 miguelvr keeps 0.755 of 0.5"),
        pytest.param(0.9, 5, (14, 7), id="23 keras-cv keeps 0.972 of 0.9 where height and width differ"),
        pytest.param(0.9, 5, (7, 14), id="23 keras-cv, the other way round"),
        pytest.param(0.9, 7, (4, 16), id="24 Paddle keeps all: gamma is negative"),
        pytest.param(0.9, 5, (14, 7), id="24 glasses keeps 0.666 of 0.9: gamma from the width only"),
        pytest.param(0.9, 7, (14, 14), id="26 torchtoolbox keeps 0.981 of 0.9: a typo in gamma"),
        pytest.param(0.9, 7, (6, 6), id="8 torchvision and pylocron raise: block clipped to an even map"),
        pytest.param(0.9, 7, (4, 4), id="8 torchvision raises, timm keeps 0.41"),
        pytest.param(0.9, 4, (14, 14), id="20 torchregularize and pylocron crash on even sizes"),
        pytest.param(0.9, 8, (7, 7), id="26 torchtoolbox and keras-cv divide by zero: block = map + 1"),
    ],
)
def test_the_kept_share_is_the_one_asked_for(keep_prob, block_size, map_size):
    maps = 16 * 4096 if block_size >= max(map_size) else 4096
    assert kept_share(keep_prob, block_size, map_size, maps) == pytest.approx(keep_prob, abs=0.005)


def test_half_precision_with_everything_dropped_is_not_nan():
    """2, timm: nan in 48 % of the forwards of one 7x7 sample."""
    torch.manual_seed(0)
    outputs = [drop_block(torch.randn(1, 2, 7, 7).half(), 0.1, 7) for _ in range(50)]
    assert sum(not output.any() for output in outputs) > 20
    assert all(output.isfinite().all() for output in outputs)


def test_the_layer_can_be_traced_by_fx_in_train_mode():
    """3, timm: TraceError."""
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
    """6, timm: a mask shared by the channels, rescaled over the batch, scales single samples by 0.01 to 2.65."""
    torch.manual_seed(0)
    for _ in range(20):
        means = drop_block(torch.ones(8, 64, 14, 14), 0.7, 7, **options).mean((1, 2, 3))
        assert (means - 1).abs().max() < spread


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((64, 256, 28, 28), id="7 torchvision"),
        pytest.param((128, 8, 28, 28), id="27 pylocron"),
        pytest.param((64, 64, 28, 28), id="26 torchtoolbox: nan"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_maps_survive_half_precision(dtype, shape):
    """The count of what is kept overflows fp16."""
    torch.manual_seed(0)
    output = drop_block(torch.ones(shape, dtype=dtype), 0.9, 7)
    assert output.max().item() == pytest.approx(1 / 0.9, rel=0.01)
    assert output.float().mean().item() == pytest.approx(1, abs=0.005)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_scripting_is_refused_with_the_way_out():
    """9, torchvision: an error from inside the compiler."""
    with pytest.raises(RuntimeError, match=r"remove_dropblock\(model\)"):
        torch.jit.script(DropBlock(0.9, 3))


def test_an_fx_graph_of_the_train_mode_drops_nothing_in_eval():
    """10, torchvision: the graph goes on dropping."""

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


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("aot_eager", id="11 timm and torchvision: FailOnRecompileLimitHit at the 9th value"),
        pytest.param("eager", id="12 timm and torchvision: AssertionError at the 2nd to 4th value"),
    ],
)
@pytest.mark.parametrize("model", [DropBlock(0.5, 3), nn.Sequential(nn.Conv2d(4, 4, 3), DropBlock(0.5, 3), nn.ReLU())])
def test_a_schedule_of_30_values_compiles_at_most_twice(model, backend):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layer = next(module for module in model.modules() if isinstance(module, DropBlock))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(2, 4, 9, 9)
    for step in range(30):  # miguelvr and torchregularize hold out as long: 1 to 2 graphs
        layer.keep_prob = 1 - 0.01 * step
        compiled(x)
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_inplace_after_relu_is_refused_in_the_forward():
    """13, timm and torchvision: RuntimeError in the backward."""
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    with pytest.raises(ValueError, match="inplace=True cannot overwrite this input"):
        nn.Sequential(nn.ReLU(), DropBlock(0.8, 5, inplace=True))(x)  # at the forward already
    nn.Sequential(nn.ReLU(), DropBlock(0.8, 5))(x).sum().backward()
    assert x.grad.isfinite().all()


def test_a_float_number_of_steps_is_refused_by_name():
    """14, miguelvr: its own example, with 5e3 steps, is a TypeError from inside numpy."""
    model = DropBlock(0.75, 3)
    with pytest.raises(TypeError, match=r"total_steps must be an int, got 5000\.0"):
        KeepProbSchedule(model, 5e3)
    schedule = KeepProbSchedule(model, 5000)
    schedule.step(5000)
    assert model.keep_prob == 0.75


def test_the_state_of_a_schedule_is_saved():
    """15, miguelvr: the state dict is empty."""
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
    """16, miguelvr and mmdet, 20, torchregularize: fp32 comes out and the next convolution crashes."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), DropBlock(0.9, 3), nn.Conv2d(3, 3, 1)).to(dtype)
    assert model(torch.randn(2, 3, 9, 9, dtype=dtype)).dtype == dtype
    assert drop_block(torch.ones(2, 3, 9, 9, dtype=dtype), 0.9, 4).dtype == dtype  # 20 torchregularize


def test_a_sample_dropped_whole_is_not_nan():
    """17, miguelvr: 0 / 0."""
    torch.manual_seed(0)
    nothing_kept = 0
    for _ in range(2000):
        output = drop_block(torch.ones(1, 1, 7, 7), 0.25, 7)
        assert not output.isnan().any()
        nothing_kept += not output.any()
    assert nothing_kept > 1000


@pytest.mark.parametrize("keep_prob", [-0.5, 1.1])
def test_a_keep_prob_out_of_range_is_refused(keep_prob):
    """18, miguelvr, torchregularize, Paddle: 1.5 and -0.1 are accepted as drop probabilities."""
    with pytest.raises(ValueError, match=r"keep_prob must be in \(0, 1\]"):
        DropBlock(keep_prob, 7)


def test_random_numbers_are_drawn_on_the_device_of_the_input():
    """18, miguelvr: drawn on the CPU and copied."""
    before = torch.get_rng_state()
    output = drop_block(torch.empty(2, 3, 14, 14, device="meta"), 0.5, 7)
    assert output.device.type == "meta"
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mean_is_kept():
    """19, torchregularize: no rescaling, 0.76."""
    torch.manual_seed(0)
    assert DropBlock(0.7, 3)(torch.ones(512, 1, 14, 14)).mean().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_recomputes_the_same_mask_and_counts_one_step(use_reentrant):
    """21, mmdet: a counter of forwards gives another mask on recomputation and runs at twice the pace."""
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
    """21, mmdet: ZeroDivisionError or a negative dimension."""
    output = DropBlock(0.9, 7)(torch.ones(64, 8, *map_size))
    assert output.eq(0).any()
    assert output.isfinite().all()


def test_a_schedule_that_starts_without_dropping_gets_going():
    """22, PyTorch-Encoding: 50 forwards later still nothing."""
    model = DropBlock(0.9, 3)
    schedule = KeepProbSchedule(model, 100, start=1.0)
    x = torch.ones(64, 8, 9, 9)
    assert model(x) is x
    for _ in range(50):
        schedule.step()
    assert model.keep_prob == pytest.approx(0.95)
    assert model(x).eq(0).any()


@pytest.mark.parametrize(
    "map_size", [pytest.param((6, 6), id="23 keras-cv: nan"), pytest.param((6, 7), id="24 glasses: ZeroDivisionError")]
)
def test_a_block_one_larger_than_the_map_works(map_size):
    output = drop_block(torch.ones(512, 8, *map_size), 0.9, 7)
    assert output.isfinite().all()
    assert output.mean().item() == pytest.approx(1, abs=1e-4)


def test_the_schedule_has_the_length_asked_for_and_forwards_do_not_move_it():
    """25, MetaOptNet and its copies: 40000 steps whatever the training, counted in eval too, not saved."""
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
    """26, torchtoolbox: twice the steps, twice the drop; loading leaves the layers as they are."""
    model = DropBlock(0.9, 3)
    schedule = KeepProbSchedule(model, 20)
    for _ in range(40):
        schedule.step()
    assert model.keep_prob == 0.9
    model.keep_prob = 0.5
    schedule.load_state_dict(schedule.state_dict())
    assert model.keep_prob == 0.9


def test_the_layer_compiles_into_one_graph():
    """27, pylocron: a branch on data breaks the graph."""
    torch._dynamo.reset()
    compiled = torch.compile(DropBlock(0.9, 3), backend="eager", fullgraph=True)
    assert compiled(torch.ones(64, 8, 9, 9)).eq(0).any()
