"""The operator and the layer: the kept share, the masks, the scale, gradients, graphs, and errors for wrong input."""

import copy
import inspect
import io
import itertools
import math
import pickle
import re
import shutil
import time
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from brute_force import covered_by, seed_positions
from torch import library, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dropblock_inject import DropBlock, drop_block
from dropblock_inject.errors import DropBlockInjectError
from dropblock_inject.ops.gamma import block_size_in_force, gamma

HALVES = [torch.float16, torch.bfloat16]
RESCALES = ["batch", "sample", "expected", None]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def kept(keep_prob, block_size, shape, seed=0, **options):
    """Bool mask of the kept elements."""
    options = {"rescale": None, "generator": seeded(seed), **options}
    return drop_block(torch.ones(shape), keep_prob, block_size, **options) != 0


def is_union_of_full_blocks(dropped, block):
    """Whether every dropped pixel lies in a block of dropped pixels that the map does not cut off."""
    explained = np.zeros_like(dropped)
    for position in seed_positions(dropped.shape, block):
        window = tuple(slice(start, start + b) for start, b in zip(position, block, strict=True))
        if dropped[window].all():
            explained[window] = True
    return bool((explained == dropped).all())


# --- the kept share --------------------------------------------------------------------------------------------------

KEEP_PROBS = [0.95, 0.9, 0.8, 0.7, 0.5]
GRID = [((side, side), block) for side in (7, 14, 28) for block in (3, 5, 7)]
ODD_CASES = [  # map size, block size
    *(((14, 14), 4), ((6, 6), 7), ((5, 5), 7), ((4, 4), 7), ((3, 3), 7), ((7, 14), 5), ((14, 7), 5), ((4, 16), 7)),
    *(((12,), 3), ((5,), 7), ((1, 1), 7), ((1, 9), 3), ((14, 14), 1)),
    *(((10, 10), (2, 5)), ((7, 14), (7, 3)), ((14, 14), 0.5), ((7, 5), 0.3), ((14, 10), (20, 2))),
    *(((4, 6, 6), 3), ((2, 8, 8), (1, 3, 3)), ((3, 4, 5), 9)),
]
CASES = GRID + ODD_CASES


def variance_of_kept_share(map_size, block, probability):
    """The variance of the kept share of one map, from the probability that two pixels are both kept."""
    cover = covered_by(map_size, block).astype(float)
    seeds_of = cover.sum(0)
    none = 1 - probability
    both = none ** (seeds_of[:, None] + seeds_of[None, :] - cover.T @ cover)
    return both.mean() - (none**seeds_of).mean() ** 2


def measured_kept_share(map_size, block_size, keep_prob, per_channel, standard_error=0.00045):
    block = block_size_in_force(block_size, map_size)
    variance = variance_of_kept_share(map_size, block, gamma(keep_prob, map_size, block))
    channels = 8 if per_channel else 1
    maps = math.ceil(variance / standard_error**2 / channels) * channels
    chunk = max(1, 2_000_000 // math.prod(map_size) // channels)
    generator, total = seeded(1), 0
    for done in range(0, maps // channels, chunk):
        ones = torch.ones(min(chunk, maps // channels - done), channels, *map_size, dtype=torch.bfloat16)
        output = drop_block(ones, keep_prob, block_size, per_channel=per_channel, rescale=None, generator=generator)
        total += output.count_nonzero().item()
    return total / maps / math.prod(map_size)


@pytest.mark.parametrize("keep_prob", KEEP_PROBS)
@pytest.mark.parametrize(("map_size", "block_size"), GRID)
def test_the_measured_kept_share_is_keep_prob(map_size, block_size, keep_prob):
    assert measured_kept_share(map_size, block_size, keep_prob, per_channel=True) == pytest.approx(keep_prob, abs=0.002)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("map_size", "block_size"), ODD_CASES)
def test_the_measured_kept_share_is_keep_prob_on_odd_maps_and_blocks(map_size, block_size, per_channel):
    assert measured_kept_share(map_size, block_size, 0.9, per_channel) == pytest.approx(0.9, abs=0.002)


@pytest.mark.parametrize(("map_size", "block_size"), CASES)
def test_gamma_keeps_exactly_keep_prob_by_enumeration_of_the_seeds(map_size, block_size):
    block = block_size_in_force(block_size, map_size)
    seeds_of = covered_by(map_size, block).sum(0)
    for keep_prob in (*KEEP_PROBS, 1.0, 0.999999, 0.99, 0.1, 1e-3):
        expected_share = ((1 - gamma(keep_prob, map_size, block)) ** seeds_of).mean()
        assert expected_share == pytest.approx(keep_prob, abs=1e-9)


@pytest.mark.parametrize("map_size", [(512, 512), (384, 640), (160_000,), (48, 64, 64)], ids=str)
def test_gamma_is_exact_and_fast_for_large_blocks_on_large_maps(map_size):
    block = block_size_in_force(0.5, map_size)
    along_axes = [
        np.minimum(np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)), min(b, size - b + 1))
        for size, b in zip(map_size, block, strict=True)
    ]
    seeds_of = along_axes[0].astype(float)
    for one in along_axes[1:]:
        seeds_of = np.multiply.outer(seeds_of, one)
    keep_probs = [1 - 0.001 * step for step in range(1, 101)]
    start = time.process_time()
    probabilities = [gamma(keep_prob, map_size, block) for keep_prob in keep_probs]
    assert time.process_time() - start < 0.01 * len(keep_probs)
    for keep_prob, probability in list(zip(keep_probs, probabilities, strict=True))[::20]:
        assert np.exp(np.log1p(-probability) * seeds_of).mean() == pytest.approx(keep_prob, abs=1e-12)


def test_uncalibrated_gamma_is_equation_1_of_the_paper():
    for keep_prob, side, block in itertools.product(KEEP_PROBS, (7, 14, 28), (1, 3, 7)):
        equation_1 = (1 - keep_prob) / block**2 * side**2 / (side - block + 1) ** 2
        assert gamma(keep_prob, (side, side), (block, block), calibrated=False) == pytest.approx(equation_1, rel=1e-12)
    shape = (1000, 32, 14, 14)
    assert kept(0.5, 7, shape, calibrated=False).float().mean().item() == pytest.approx(0.638, abs=0.01)


@pytest.mark.parametrize(
    ("block_size", "map_size", "in_force"),
    [
        (7, (14, 14), (7, 7)),
        (7, (6, 5), (6, 5)),
        ((3, 20), (14, 14), (3, 14)),
        (0.5, (14, 7), (7, 4)),
        (0.01, (14, 7), (1, 1)),
        (0.99, (14, 7), (14, 7)),
        (0.4, (5, 10, 20), (2, 4, 8)),
        (2, (9,), (2,)),
    ],
)
def test_the_block_size_in_force_is_clipped_to_the_map_and_a_float_is_a_share_of_it(block_size, map_size, in_force):
    assert block_size_in_force(block_size, map_size) == in_force
    dropped = ~kept(0.98, block_size, (64, 8, *map_size)).numpy().reshape(-1, *map_size)
    assert all(is_union_of_full_blocks(one, in_force) for one in dropped)
    assert min(int(one.sum()) for one in dropped if one.any()) == math.prod(in_force)  # the smallest union is one block


# --- the masks -------------------------------------------------------------------------------------------------------


def test_the_probability_of_a_pixel_follows_from_the_number_of_blocks_that_cover_it():
    drop_share = 1 - kept(0.9, 7, (4000, 16, 14, 14)).float().mean((0, 1)).numpy()
    expected = 1 - (1 - gamma(0.9, (14, 14), (7, 7))) ** covered_by((14, 14), (7, 7)).sum(0).reshape(14, 14)
    assert np.abs(drop_share - expected).max() < 5 * math.sqrt(0.25 / 64000)


def test_samples_and_channels_are_masked_independently():
    whole_map = kept(0.5, 7, (4000, 2, 7, 7))[:, :, 0, 0]
    for pair in (whole_map, whole_map.T.reshape(-1, 2)):  # two channels of a sample, two samples
        assert (pair[:, 0] & pair[:, 1]).float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("keep_prob", [0.9, 0.5])
def test_block_size_1_is_dropout(keep_prob):
    ours = kept(keep_prob, 1, (2000, 8, 6, 6))
    torch.manual_seed(0)
    theirs = F.dropout(torch.ones(2000, 8, 6, 6), 1 - keep_prob) != 0
    for mask in (ours, theirs):
        assert mask.float().mean().item() == pytest.approx(keep_prob, abs=0.004)
        per_map = mask.float().mean((2, 3))
        assert per_map.var().item() == pytest.approx(keep_prob * (1 - keep_prob) / 36, rel=0.1)
        neighbours = (mask[..., 1:] & mask[..., :-1]).float().mean().item()
        assert neighbours == pytest.approx(keep_prob**2, abs=0.006)
    x = torch.randn(2000, 8, 6, 6, generator=seeded())
    output = drop_block(x, keep_prob, 1, rescale="expected", generator=seeded())
    torch.testing.assert_close(output, x * ours / keep_prob)


@pytest.mark.parametrize("keep_prob", [0.9, 0.5])
def test_a_block_as_large_as_the_map_is_dropout2d(keep_prob):
    ours = kept(keep_prob, 7, (4000, 8, 7, 7))
    torch.manual_seed(0)
    theirs = F.dropout2d(torch.ones(4000, 8, 7, 7), 1 - keep_prob) != 0
    for mask in (ours, theirs):
        per_map = mask.float().mean((2, 3))
        assert set(per_map.unique().tolist()) == {0.0, 1.0}
        assert per_map.mean().item() == pytest.approx(keep_prob, abs=0.012)
        assert per_map.var().item() == pytest.approx(keep_prob * (1 - keep_prob), abs=0.012)


# --- rescaling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("rescale", RESCALES)
def test_the_scale_of_kept_elements_is_that_of_the_option_rescale(rescale, per_channel):
    x = torch.randn(6, 4, 9, 9, generator=seeded(1))
    mask = kept(0.7, 3, x.shape, per_channel=per_channel).double()
    scale = {
        "batch": mask.numel() / mask.sum(),
        "sample": mask[0].numel() / mask.sum((1, 2, 3), keepdim=True),
        "expected": 1 / 0.7,
        None: 1.0,
    }[rescale]
    output = drop_block(x, 0.7, 3, per_channel=per_channel, rescale=rescale, generator=seeded())
    torch.testing.assert_close(output, (x * mask * scale).float())


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("rescale", ["batch", "sample", "expected"])
def test_rescaling_keeps_the_expectation(rescale, dtype):
    output = drop_block(torch.ones(500, 32, 7, 7, dtype=dtype), 0.8, 3, rescale=rescale, generator=seeded())
    mean = output.float().mean((1, 2, 3))
    half_step = torch.finfo(dtype).eps  # the product is rounded to the dtype once
    assert mean.mean().item() == pytest.approx(1, abs=0.01)
    if rescale == "batch":
        assert mean.mean().item() == pytest.approx(1, abs=half_step + 1e-5)
    if rescale == "sample":
        torch.testing.assert_close(mean, torch.ones(500), atol=half_step + 1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("rescale", RESCALES)
def test_nothing_kept_gives_zeros(rescale, dtype):
    x = torch.randn(3, 4, 7, 7).to(dtype)
    output = drop_block(x, 1e-7, 7, rescale=rescale, generator=seeded())
    assert torch.equal(output, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_sample_dropped_whole_does_not_change_the_others(dtype):
    ones = torch.ones(400, 2, 7, 7, dtype=dtype)
    output = drop_block(ones, 0.5, 7, rescale="sample", generator=seeded())
    means = output.float().mean((1, 2, 3))
    assert set(means.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("dtype", HALVES)
def test_large_tensors_of_half_precision_are_right(dtype):
    output = drop_block(torch.ones(64, 256, 28, 28, dtype=dtype), 0.9, 7, generator=seeded())
    assert output.dtype == dtype
    share = output.count_nonzero().item() / output.numel()
    assert share == pytest.approx(0.9, abs=0.002)
    assert output.max().item() == torch.tensor(1 / share).to(dtype).item()


# --- inputs and outputs ----------------------------------------------------------------------------------------------

LAYOUTS = {
    "1-d": lambda: torch.randn(40, 6, 9),
    "contiguous": lambda: torch.randn(4, 6, 9, 8),
    "contiguous_3d": lambda: torch.randn(4, 6, 5, 9, 8),
    "channels_last": lambda: torch.randn(4, 6, 9, 8).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: torch.randn(4, 6, 5, 9, 8).to(memory_format=torch.channels_last_3d),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shape_dtype_and_memory_format_are_those_of_the_input(layout, dtype):
    x = LAYOUTS[layout]().to(dtype)
    for rescale, per_channel, inplace in itertools.product(RESCALES, (True, False), (True, False)):
        output = drop_block(x.clone(), 0.7, 3, rescale=rescale, per_channel=per_channel, inplace=inplace)
        assert (output.shape, output.dtype, output.stride()) == (x.shape, dtype, x.stride())
        assert output.eq(0).any()
        assert output.ne(0).any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(4, 6, 18, 8)[:, :, ::2],
        lambda: torch.randn(4, 9, 6, 8).transpose(1, 2),
        lambda: torch.randn(1, 6, 9, 8).expand(4, 6, 9, 8),
    ],
    ids=["strided", "permuted", "expanded"],
)
def test_the_layout_of_the_input_does_not_change_the_result(make):
    x = make()
    before = x.clone()
    output = drop_block(x, 0.7, 3, generator=seeded())
    torch.testing.assert_close(output, drop_block(before, 0.7, 3, generator=seeded()))
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(1, 500, 3, 3), (500, 1, 3, 3), (1, 1, 40, 40), (1, 1, 3, 500)])
def test_strides_of_axes_of_one_element_do_not_matter(shape):
    """torch leaves them as they are. The backward pass uses the blocks of the forward pass."""
    contiguous = torch.ones(shape).stride()
    odd = [stride if size > 1 else 12345 for size, stride in zip(shape, contiguous, strict=True)]
    x = torch.ones(shape).as_strided(shape, odd).requires_grad_()
    for like in (torch.ones(shape), torch.ones(shape).as_strided(shape, odd)):
        output = drop_block(x, 0.95, 3, generator=seeded())
        assert torch.equal(output, drop_block(torch.ones(shape), 0.95, 3, generator=seeded()))
        assert output.eq(0).any()
        assert torch.equal(torch.autograd.grad(output, x, like)[0], output)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # torch 2.14 says that it will be removed
def test_when_not_training_any_tensor_is_returned():
    """For example the quantized tensor of a converted network in eval mode."""
    for x in (torch.quantize_per_tensor(torch.rand(2, 3, 8, 8), 0.1, 0, torch.quint8), torch.arange(6)):
        assert DropBlock(0.5, 3).eval()(x) is x


INACTIVE = {
    "keep_prob 1": lambda x: drop_block(x, 1.0, 3),
    "keep_prob int 1": lambda x: drop_block(x, 1, 3),
    "not training": lambda x: drop_block(x, 0.5, 3, training=False),
    "inplace": lambda x: drop_block(x, 0.5, 3, training=False, inplace=True),
    "layer in eval mode": lambda x: DropBlock(0.5, 3).eval()(x),
    "layer at 1": lambda x: DropBlock(1.0, 3)(x),
}


@pytest.mark.parametrize("call", INACTIVE.values(), ids=INACTIVE)
def test_when_inactive_the_output_is_the_input_and_no_random_number_is_drawn(call):
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    before = torch.get_rng_state()
    assert call(x) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (0, 3, 8)])
def test_an_empty_input_is_returned(shape):
    x = torch.empty(shape)
    assert drop_block(x, 0.5, 3) is x


@pytest.mark.parametrize("shape", [(64, 32, 1), (64, 32, 1, 1), (64, 32, 1, 1, 1)])
def test_a_map_of_one_pixel_is_dropped_or_kept(shape):
    output = drop_block(torch.ones(shape), 0.8, 7, rescale="expected", generator=seeded())
    assert set(output.unique().tolist()) == {0.0, 1.25}
    assert output.ne(0).float().mean().item() == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("rescale", RESCALES)
def test_dropped_inf_and_nan_become_zero_and_kept_elements_stay_finite(rescale, dtype):
    mask = kept(0.7, 3, (4, 8, 9, 9))
    poison = torch.where(torch.arange(9 * 9).reshape(9, 9) % 2 == 0, torch.inf, torch.nan)
    x = torch.where(mask, 1.0, poison).to(dtype).requires_grad_()
    output = drop_block(x, 0.7, 3, rescale=rescale, generator=seeded())
    assert output[~mask].eq(0).all()
    assert output[mask].isfinite().all()
    output.float().sum().backward()
    assert x.grad[~mask].eq(0).all()
    assert x.grad.isfinite().all()


class Unchanged(TorchDispatchMode):
    """Calls each operation as it is, and notes its name."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("block_size", [3, 9])
def test_a_mode_that_looks_at_operations_sees_one_and_changes_nothing(block_size, inplace):
    results = []
    for mode in (nullcontext(), Unchanged()):
        x = torch.randn(2, 3, 9, 9, generator=seeded(1)).requires_grad_()
        with mode:
            output = drop_block(x * 1, 0.7, block_size, generator=seeded(), inplace=inplace)
            output.square().sum().backward()
        results.append((output.detach(), x.grad))
    assert all(map(torch.equal, *results))
    assert "dropblock_inject::drop_to" in mode.names
    assert not {name for name in mode.names if re.search("geometric|index_fill|cumsum", name)}


def test_a_gradient_that_is_none_stays_none():
    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, _):
            return None

    x = torch.ones(2, 3, 8, 8, requires_grad=True)
    NoGradient.apply(drop_block(x, 0.5, 3)).backward()
    assert x.grad is None


def test_a_kept_inf_stays_inf_and_changes_nothing_else():
    mask = kept(0.7, 3, (2, 2, 9, 9))
    x = torch.ones(2, 2, 9, 9)
    where = tuple(mask.nonzero()[0])
    x[where] = torch.inf
    output = drop_block(x, 0.7, 3, generator=seeded())
    assert output[where] == torch.inf
    assert output.isinf().sum() == 1
    assert not output.isnan().any()


# --- random numbers --------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_masks_and_different_seeds_different_ones():
    x = torch.randn(2, 3, 14, 14)
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(drop_block(x, 0.7, 5))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(drop_block(x, 0.7, 5), drop_block(x, 0.7, 5))


def test_a_generator_gives_reproducible_masks_and_leaves_the_global_stream_alone():
    x = torch.randn(2, 3, 14, 14)
    layers = [DropBlock(0.7, 5, generator=seeded(3)) for _ in range(2)]
    before = torch.get_rng_state()
    first, second = ([layer(x) for _ in range(2)] for layer in layers)
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("with_generator", [False, True])
def test_ranks_with_the_same_seed_draw_different_masks(with_generator):
    x, masks = torch.ones(2, 3, 14, 14), []
    for rank in (None, 0, 1, 2):
        torch.manual_seed(3)
        process_group = {"is_initialized": lambda rank=rank: rank is not None, "get_rank": lambda rank=rank: rank}
        with mock.patch.multiple(torch.distributed, is_available=lambda: True, **process_group):
            masks.append(drop_block(x, 0.7, 5, generator=seeded(3) if with_generator else None) != 0)
    assert torch.equal(masks[0], masks[1])  # one process is rank 0
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(masks[1:], 2))


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("rescale", RESCALES)
def test_the_gradient_is_mask_times_scale(rescale, inplace):
    factor = drop_block(torch.ones(3, 4, 9, 9), 0.7, 3, rescale=rescale, generator=seeded())
    x = torch.randn(3, 4, 9, 9, requires_grad=True)
    upstream = torch.randn(3, 4, 9, 9)
    drop_block(x * 1, 0.7, 3, rescale=rescale, generator=seeded(), inplace=inplace).backward(upstream)
    torch.testing.assert_close(x.grad, upstream * factor)


@pytest.mark.parametrize("shape", [(2, 2, 5), (2, 2, 4, 5), (1, 2, 3, 4, 3)])
@pytest.mark.parametrize("rescale", RESCALES)
def test_gradcheck_of_first_and_second_order(rescale, shape):
    def call(x):
        return drop_block(x, 0.7, 2, rescale=rescale, generator=seeded())

    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)


def saved_bytes(call, x):
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(x).sum()
    return sum(storages.values())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("block_size", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rescale", RESCALES)
def test_little_is_saved_for_backward(rescale, dtype, block_size, per_channel):
    """The seed, the scale, and the blocks if they take at most a 32nd of the tensor."""
    x = torch.randn(8, 64, 28, 28, requires_grad=True, dtype=dtype)
    saved = saved_bytes(lambda x: drop_block(x, 0.9, block_size, rescale=rescale, per_channel=per_channel), x)
    assert saved <= x.nbytes / 32 + 8 + 8 + 4 * (8 if rescale == "sample" else 1)


def test_the_gradient_has_the_same_mask_whatever_its_layout():
    for layout in (torch.contiguous_format, torch.channels_last):
        for upstream_layout in (torch.contiguous_format, torch.channels_last):
            x = torch.ones(4, 8, 14, 14).to(memory_format=layout).requires_grad_()
            output = drop_block(x, 0.9, 7)
            output.backward(torch.ones(4, 8, 14, 14).to(memory_format=upstream_layout))
            assert torch.equal(x.grad, output)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("rescale", RESCALES)
def test_inplace_overwrites_the_input_with_the_same_result(rescale, dtype):
    x = torch.randn(3, 4, 9, 9).to(dtype)
    expected = drop_block(x, 0.7, 3, rescale=rescale, generator=seeded())
    output = drop_block(x, 0.7, 3, rescale=rescale, generator=seeded(), inplace=True)
    assert output.data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("per_channel", [True, False])
def test_inplace_on_a_view_writes_only_to_the_view(per_channel, channel_dim):
    base = torch.randn(6, 20, 20, 20, generator=seeded(1))
    view = base[1:5, 3:17:2, :, 4:13].transpose(1, 2)
    beside = base.clone()
    beside[1:5, 3:17:2, :, 4:13] = 0
    options = {"per_channel": per_channel, "channel_dim": channel_dim}
    expected = drop_block(view.clone(), 0.7, 3, generator=seeded(), **options)
    drop_block(view, 0.7, 3, generator=seeded(), inplace=True, **options)
    assert torch.equal(view, expected)
    view.zero_()
    assert torch.equal(base, beside)


def test_inplace_is_refused_on_an_expanded_tensor():
    x = torch.randn(1, 4, 8, 8).expand(2, 4, 8, 8)
    with pytest.raises(ValueError, match=r"cannot overwrite this input: several of its elements share their memory"):
        drop_block(x, 0.5, 3, inplace=True)


@pytest.mark.parametrize(
    ("before", "named"),
    [
        (nn.Identity(), "it is a leaf that requires grad"),
        (nn.ReLU(), "it is the output of Relu"),
        (nn.Sigmoid(), "it is the output of Sigmoid"),
        (nn.Tanh(), "it is the output of Tanh"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_inplace_is_refused_where_autograd_needs_the_input(before, named):
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    message = f"inplace=True cannot overwrite this input: {named}.*; use inplace=False"
    with pytest.raises(ValueError, match=message) as caught:
        DropBlock(0.5, 3, inplace=True)(before(x))
    assert isinstance(caught.value, DropBlockInjectError)
    with torch.no_grad():
        DropBlock(0.5, 3, inplace=True)(before(x.clone()))


def made_without_grad(x):
    with torch.no_grad():
        return x[:, :2]


def made_in_inference_mode(x):
    with torch.inference_mode():
        return x.detach() * 1


UNREADABLE = "it is one of several views, .* or a view that autograd did not record"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda x: x[:, :2], "it is a view of a leaf that requires grad"),
        (lambda x: x.relu().permute(0, 2, 3, 1), "it is a view of the output of Relu"),
        (lambda x: (x * 1).chunk(2, 1)[0], UNREADABLE),
        (lambda x: (x * 1)[None].unbind()[0], UNREADABLE),
        (lambda x: made_without_grad(x * 1), UNREADABLE),
        (made_in_inference_mode, "it was made in inference mode"),
    ],
)
def test_inplace_is_refused_on_tensors_that_torch_does_not_overwrite(make, named):
    x = make(torch.randn(2, 4, 8, 8, requires_grad=True))
    before, state = x.clone(), torch.get_rng_state()
    with pytest.raises(ValueError, match=f"inplace=True cannot overwrite this input: {named}.*; use inplace=False"):
        DropBlock(0.5, 3, inplace=True)(x)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode():
        assert DropBlock(0.5, 3, inplace=True)(x).eq(0).any()


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, 1:3], lambda x: x.permute(0, 3, 1, 2), lambda x: x.movedim(1, -1)[..., ::2], lambda x: x[None][0]],
)
def test_inplace_on_a_view_gives_the_gradient_of_the_whole_tensor(view):
    grads = []
    for inplace in (False, True):
        x = torch.randn(2, 4, 8, 8, generator=seeded(1)).requires_grad_()
        whole = x.sin()
        part = view(whole)
        output = DropBlock(0.5, 3, inplace=inplace, generator=seeded())(part)
        assert (output is part) == inplace
        if not inplace:
            whole = whole.clone()
            view(whole).copy_(output)
        whole.square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize(
    "before",
    [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.SiLU(), nn.GELU(), nn.ReLU6(), nn.MaxPool2d(2)],
    ids=lambda module: type(module).__name__,
)
def test_inplace_gives_the_right_gradient_where_it_is_allowed(before):
    grads = []
    for inplace in (False, True):
        x = torch.randn(2, 4, 8, 8, generator=seeded(1)).requires_grad_()
        hidden = before(x)
        output = DropBlock(0.5, 3, inplace=inplace, generator=seeded())(hidden)
        assert (output is hidden) == inplace
        output.square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_recomputes_the_same_mask(use_reentrant):
    # With a square on both sides of the mask, a different mask on recomputation would change the gradient.
    layer = DropBlock(0.5, 3)

    def segment(x):
        return layer(x * x).square()

    grads = []
    for run in (segment, lambda x: checkpoint(segment, x, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        x = torch.linspace(1, 2, 4 * 4 * 64).reshape(4, 4, 8, 8).requires_grad_()
        output = run(x)
        torch.rand(7)  # random numbers between the forward and the backward pass
        output.sum().backward()
        assert torch.equal(x.grad != 0, output != 0)
        grads.append(x.grad)
    assert torch.equal(*grads)


# --- the layer -------------------------------------------------------------------------------------------------------

LAYERS = [
    DropBlock(),
    DropBlock(0.8, 3),
    DropBlock(0.75, (3, 4), per_channel=False),
    DropBlock(0.5, 0.25, rescale="sample", calibrated=False),
    DropBlock(1.0, rescale=None, channel_dim=-1, inplace=True),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_the_repr_is_the_call_that_makes_the_layer(layer):
    other = eval(repr(layer), {"DropBlock": DropBlock})
    assert repr(other) == repr(layer)
    options = ("keep_prob", "block_size", "per_channel", "rescale", "calibrated", "channel_dim", "inplace")
    assert all(getattr(other, option) == getattr(layer, option) for option in options)


def test_the_repr_leaves_out_the_defaults():
    assert repr(DropBlock()) == "DropBlock(keep_prob=0.9, block_size=7)"
    assert repr(DropBlock(0.8, 3, rescale="sample")) == "DropBlock(keep_prob=0.8, block_size=3, rescale='sample')"


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_is_an_equal_and_independent_layer(copied, layer):
    layer.train()
    x = torch.randn(2, 8, 8, 8)
    other = copied(layer)
    outputs = []
    for one in (layer, other):
        torch.manual_seed(0)
        outputs.append(one(x.clone()))
    assert torch.equal(*outputs)
    before = layer.keep_prob
    other.eval().keep_prob = 0.3
    assert (layer.training, layer.keep_prob, other.keep_prob) == (True, before, 0.3)


def test_a_copy_of_a_layer_with_a_generator_draws_the_same_masks():
    layer = DropBlock(0.5, 3, generator=seeded(5))
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    x = torch.ones(2, 4, 8, 8)
    expected = layer(x)
    assert all(torch.equal(other(x), expected) for other in copies)


def test_a_layer_adds_nothing_to_the_state_dict():
    layer = DropBlock(0.5)
    assert not layer.state_dict()
    assert not list(layer.parameters())
    assert not list(layer.buffers())
    layer.load_state_dict(nn.ReLU().state_dict(), strict=True)


def test_keep_prob_can_be_set_between_two_steps_and_the_target_stays():
    layer, x = DropBlock(0.9, 7), torch.ones(500, 16, 7, 7)
    for keep_prob in (1.0, 0.7, 0.3, 0.95):
        layer.keep_prob = keep_prob
        torch.manual_seed(0)
        assert layer(x).ne(0).float().mean().item() == pytest.approx(keep_prob, abs=0.02)
        assert (layer.keep_prob, layer.target_keep_prob) == (keep_prob, 0.9)


def test_the_layer_has_the_arguments_and_defaults_of_the_function():
    layer, function = (dict(inspect.signature(one).parameters) for one in (DropBlock, drop_block))
    assert function.pop("input").name == "input"
    assert function.pop("training").default is True
    assert layer == function


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_the_layer_computes_the_function(layer):
    x = torch.randn(4, 8, 8, 8)
    options = ("per_channel", "rescale", "calibrated", "channel_dim", "inplace")
    torch.manual_seed(0)
    expected = drop_block(x.clone(), layer.keep_prob, layer.block_size, **{o: getattr(layer, o) for o in options})
    torch.manual_seed(0)
    assert torch.equal(layer.train()(x.clone()), expected)


# --- graphs ----------------------------------------------------------------------------------------------------------


def small_net(**options):
    return nn.Sequential(nn.Conv2d(3, 8, 3), DropBlock(0.5, 3, **options), nn.Conv2d(8, 8, 3), DropBlock(0.8, 3))


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("model", [DropBlock(0.9, 3), small_net()], ids=["layer", "net"])
def test_scripting_is_refused_and_the_error_names_alternatives(model):
    message = r"cannot be compiled by torch\.jit\.script: call remove_dropblock\(model\) first.*or use torch\.compile"
    with pytest.raises(DropBlockInjectError, match=message):
        torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_jit_trace_in_eval_gives_the_plain_network():
    model, x = small_net().eval(), torch.randn(2, 3, 12, 12)
    traced = torch.jit.trace(model, x)
    assert torch.equal(traced(x), model(x))
    assert "rand" not in str(traced.inlined_graph)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("block_size", [3, (3, 4), 12, 20, 0.5])  # 20 is clipped to the map
def test_jit_trace_in_training_mode_draws_new_masks_in_each_call(block_size):
    x = torch.ones(2, 30, 12, 12)
    traced = torch.jit.trace(DropBlock(0.5, block_size), x, check_trace=False)
    first, second = traced(x), traced(x)
    assert first.eq(0).any()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("mode_when_traced", [True, False])
def test_an_fx_graph_follows_mode_and_keep_prob_of_the_layer(mode_when_traced):
    traced = torch.fx.symbolic_trace(nn.Sequential(DropBlock(0.5, 3), nn.Identity()).train(mode_when_traced))
    x = torch.ones(64, 16, 9, 9)
    assert torch.equal(traced.eval()(x), x)
    traced.train()
    for keep_prob in (0.5, 0.9, 1.0):
        next(m for m in traced.modules() if isinstance(m, DropBlock)).keep_prob = keep_prob
        torch.manual_seed(0)
        assert traced(x).ne(0).float().mean().item() == pytest.approx(keep_prob, abs=0.02)


def test_the_function_is_one_node_of_an_fx_graph():
    def call(x):
        return drop_block(x, 0.5, 3).relu()

    traced = torch.fx.symbolic_trace(call)
    x = torch.ones(4, 8, 9, 9)
    assert drop_block in [node.target for node in traced.graph.nodes]
    assert not torch.equal(traced(x), traced(x))


def skip_without_a_compiler():
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor compiles with a C++ compiler")


@pytest.mark.filterwarnings("ignore")  # of inductor's own start-up
@pytest.mark.parametrize("options", [{}, {"per_channel": False, "rescale": "sample"}], ids=str)
@pytest.mark.parametrize(("backend", "start"), [("aot_eager", 1.0), ("aot_eager", 0.97), ("inductor", 1.0)])
def test_a_thousand_scheduled_steps_need_at_most_two_graphs(backend, start, options):
    if backend == "inductor":
        skip_without_a_compiler()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = small_net(**options)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(4, 3, 14, 14)
    for step in range(1000):
        for layer in (model[1], model[3]):
            layer.keep_prob = start - step * (start - layer.target_keep_prob) / 999
        compiled(x).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_second_training_in_the_same_process_needs_as_many_graphs_as_the_first():
    """torch makes a symbol of a float that it has seen change, at keep_prob 1 too, where it must have a use."""
    torch._dynamo.reset()
    for channels in (4, 6):  # another network, so that the graphs of the first are of no use
        torch._dynamo.utils.counters.clear()
        model = nn.Sequential(nn.Conv2d(3, channels, 3), DropBlock(0.5, 3), DropBlock(0.8, 3))
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for step in range(6):
            for layer in (model[1], model[2]):
                layer.keep_prob = 1 - step / 20
            for enabled in (True, False):
                model[1].enabled = enabled
                x = torch.randn(2, 3, 14, 14)
                output = compiled(x)
                output.sum().backward()
            assert step or torch.equal(output, model[0](x))
        assert 2 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


@pytest.mark.parametrize("rescale", RESCALES)
def test_a_compiled_graph_saves_the_seed_and_not_the_mask(rescale):
    torch._dynamo.reset()
    compiled = torch.compile(DropBlock(0.9, 3, rescale=rescale), backend="aot_eager", fullgraph=True)
    x = torch.randn(8, 64, 28, 28, requires_grad=True)
    assert saved_bytes(compiled, x) <= 8 + 8 + 4 * 8
    (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
    assert (gradient == 0).any()


@pytest.mark.filterwarnings("ignore")  # of inductor's own start-up
@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_gradient_has_the_mask_and_the_scale_of_the_output(backend, rescale):
    """On ones the gradient is the output. keep_prob is a constant of the first graph and an input of the second."""
    if backend == "inductor":
        skip_without_a_compiler()
    for inplace in (False, True):
        torch._dynamo.reset()
        model = nn.Sequential(nn.Identity(), DropBlock(0.9, 3, rescale=rescale, inplace=inplace))
        compiled = torch.compile(lambda x, model=model: model(x * 1), backend=backend, fullgraph=True)
        for keep_prob in (0.9, 0.8, 0.7):
            model[1].keep_prob = keep_prob
            x = torch.ones(4, 8, 9, 9, requires_grad=True)
            output = compiled(x)
            output.backward(torch.ones_like(output))
            assert output.eq(0).float().mean().item() == pytest.approx(1 - keep_prob, abs=0.1)
            assert torch.equal(x.grad, output)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("block_size", [3, 9])  # with blocks of 3 they are drawn again, with blocks of 9 they are saved
def test_hooks_that_round_saved_tensors_do_not_change_the_mask(block_size, compiled):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Identity(), DropBlock(0.9, block_size, rescale="sample"))
    call = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor.bfloat16() if tensor.is_floating_point() else tensor

    for keep_prob in (0.9, 0.87, 0.77):
        model[1].keep_prob = keep_prob
        x = torch.ones(4, 64, 28, 28, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = call(x)
        output.sum().backward()
        assert torch.equal(x.grad == 0, output == 0)
        torch.testing.assert_close(x.grad, output, rtol=2**-8, atol=0)  # the scale was rounded
    assert packed


def test_a_compiled_layer_overwrites_its_input_if_asked():
    torch._dynamo.reset()
    compiled = torch.compile(DropBlock(0.5, 3, inplace=True), backend="aot_eager", fullgraph=True)
    x = torch.ones(2, 4, 8, 8)
    output = compiled(x)
    assert torch.equal(output, x)
    assert (x == 0).any()


def test_a_default_device_does_not_change_the_device_of_the_mask():
    with torch.device("meta"):
        output = drop_block(torch.ones(4, 8, 14, 14, device="cpu", requires_grad=True), 0.9, 7, rescale="sample")
        output.sum().backward()
    assert (output == 0).any()
    assert output.device.type == "cpu"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck itself
def test_the_custom_operations_pass_opcheck():
    x, seed, bits = torch.randn(2, 3, 8, 8), torch.tensor(5), torch.tensor(0.6, dtype=torch.float64).view(torch.int64)
    for rescale in RESCALES:
        options = [3, 3], True, rescale, True, 1
        library.opcheck(torch.ops.dropblock_inject.drop, (x.clone().requires_grad_(), seed, None, bits, *options))
        arguments = x, torch.empty_like(x), seed, None, None, 0.6, *options
        library.opcheck(torch.ops.dropblock_inject.drop_to, arguments)


@pytest.mark.filterwarnings("ignore:.torch.jit")  # which forward mode uses itself
def test_forward_mode_and_nested_derivatives():
    def call(x, inplace=False):
        return drop_block(x * 1, 0.6, 3, generator=seeded(), inplace=inplace)

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for inplace in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, inplace=inplace: call(x, inplace), (x.clone().requires_grad_(),), check_forward_ad=True
        )
    expected = 6 * call(torch.ones_like(x)) ** 3 * x * x
    torch.testing.assert_close(torch.func.jvp(torch.func.grad(lambda x: call(x).pow(3).sum()), (x,), (x,))[1], expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), x)
        (gradient,) = torch.autograd.grad(call(dual).pow(3).sum(), dual)
        torch.testing.assert_close(forward_ad.unpack_dual(gradient).tangent, expected)


def test_a_compiled_layer_keeps_keep_prob_at_each_value():
    torch._dynamo.reset()
    layer = DropBlock(0.9, 5)
    # With the layer alone the graph would be empty at keep_prob 1. torch 2.6 then gives up compiling the module.
    compiled = torch.compile(nn.Sequential(nn.ReLU(), layer), backend="aot_eager", fullgraph=True)
    x = torch.ones(400, 16, 10, 10)
    for keep_prob in (0.95, 0.9, 0.7, 0.5, 1.0, 0.6):
        layer.keep_prob = keep_prob
        torch.manual_seed(0)
        output = compiled(x)
        assert output.ne(0).float().mean().item() == pytest.approx(keep_prob, abs=0.012)
        assert output.mean().item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(compiled.eval()(x), x)


def test_an_export_in_eval_has_no_random_operation():
    exported = torch.export.export(small_net().eval(), (torch.randn(2, 3, 12, 12),))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert sum("conv" in target for target in targets) == 2
    assert not [t for t in targets if re.search(r"rand|bernoulli|dropout|masked_fill|dropblock", t)]


# --- wrong inputs ----------------------------------------------------------------------------------------------------

RANGE = r"keep_prob must be in \(0, 1\], got {}: it is the share of the feature map that is kept, 1 - drop_prob"
NO_FLOAT = r"keep_prob must be a float in \(0, 1\], got {}"
SHARE = r"block_size={}: a float is a share of the map and must be in \(0, 1\); give an int for a size in pixels"
AXES = r"block_size must hold an int of at least 1 per spatial axis, got {}"
KIND = r"block_size must be an int, a sequence of ints or a float in \(0, 1\), got {}"

WRONG_OPTIONS = [  # of the function and of the layer
    ({"keep_prob": 0}, ValueError, RANGE.format("0")),
    ({"keep_prob": 0.0}, ValueError, RANGE.format(r"0\.0")),
    ({"keep_prob": -0.1}, ValueError, RANGE.format(r"-0\.1")),
    ({"keep_prob": 1.5}, ValueError, RANGE.format(r"1\.5")),
    ({"keep_prob": math.nan}, ValueError, RANGE.format("nan")),
    ({"keep_prob": math.inf}, ValueError, RANGE.format("inf")),
    ({"keep_prob": "0.9"}, TypeError, NO_FLOAT.format(r"'0\.9'")),
    ({"keep_prob": True}, TypeError, NO_FLOAT.format("True")),
    ({"keep_prob": None}, TypeError, NO_FLOAT.format("None")),
    ({"keep_prob": 0.9j}, TypeError, NO_FLOAT.format(r"0\.9j")),
    ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
    ({"block_size": -3}, ValueError, "block_size must be at least 1, got -3"),
    ({"block_size": 1.5}, ValueError, SHARE.format(r"1\.5")),
    ({"block_size": 1.0}, ValueError, SHARE.format(r"1\.0")),
    ({"block_size": 0.0}, ValueError, SHARE.format(r"0\.0")),
    ({"block_size": math.nan}, ValueError, SHARE.format("nan")),
    ({"block_size": ()}, ValueError, AXES.format(r"\(\)")),
    ({"block_size": (3, 0)}, ValueError, AXES.format(r"\(3, 0\)")),
    ({"block_size": (3, 0.5)}, ValueError, AXES.format(r"\(3, 0\.5\)")),
    ({"block_size": (3, True)}, ValueError, AXES.format(r"\(3, True\)")),
    ({"block_size": "7"}, TypeError, KIND.format("'7'")),
    ({"block_size": True}, TypeError, KIND.format("True")),
    ({"block_size": None}, TypeError, KIND.format("None")),
    ({"rescale": "mean"}, ValueError, "rescale must be 'batch', 'sample', 'expected' or None, got 'mean'"),
]
RANK = r"drop_block expects an input of shape \(N, C, L\), \(N, C, H, W\) or \(N, C, D, H, W\), got {}"
CHANNEL = r"channel_dim={} is not an axis after the batch of an input of shape \(2, 3, 8, 8\)"

WRONG_INPUTS = [  # found in the forward pass
    (torch.ones(8), {}, ValueError, RANK.format(r"\(8,\)$")),
    (torch.ones(3, 8), {}, ValueError, RANK.format(r"\(3, 8\); add the batch axis with input\.unsqueeze\(0\)")),
    (torch.ones(1, 1, 1, 1, 1, 1), {}, ValueError, RANK.format(r"\(1, 1, 1, 1, 1, 1\)$")),
    (torch.ones(2, 3, 8, 8).int(), {}, TypeError, r"expects a floating point input, got dtype torch\.int32"),
    (torch.ones(2, 3, 8, 8).bool(), {}, TypeError, r"expects a floating point input, got dtype torch\.bool"),
    (torch.ones(2, 3, 8, 8).cfloat(), {}, TypeError, r"expects a floating point input, got dtype torch\.complex64"),
    (np.ones((2, 3, 8, 8)), {}, TypeError, r"drop_block expects a torch\.Tensor, got ndarray"),
    (None, {}, TypeError, r"drop_block expects a torch\.Tensor, got NoneType"),
    (torch.ones(2, 3, 8, 8), {"channel_dim": 0}, ValueError, CHANNEL.format("0")),
    (torch.ones(2, 3, 8, 8), {"channel_dim": 9}, ValueError, CHANNEL.format("9")),
    (torch.ones(2, 3, 8, 8), {"channel_dim": -4}, ValueError, CHANNEL.format("-4")),
    (
        torch.ones(2, 3, 8, 8),
        {"block_size": (3, 3, 3)},
        ValueError,
        r"block_size=\(3, 3, 3\) has 3 entries, but the input of shape \(2, 3, 8, 8\) has 2 spatial axes; "
        "give one entry per spatial axis, or one int",
    ),
    (
        torch.ones(2, 3, 8),
        {"block_size": [3, 3]},
        ValueError,
        r"block_size=\(3, 3\) has 2 entries.* has 1 spatial axes",
    ),
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS, ids=str)
def test_wrong_options_are_refused_with_the_value_in_the_message(options, error, message, training):
    x = torch.ones(2, 3, 8, 8)
    for call in (lambda: DropBlock(**options), lambda: drop_block(x, training=training, **options)):
        with pytest.raises(error, match=message) as caught:
            call()
        assert isinstance(caught.value, DropBlockInjectError)


@pytest.mark.parametrize(("options", "error", "message"), [row for row in WRONG_OPTIONS if "keep_prob" in row[0]])
def test_a_wrong_keep_prob_is_refused_and_not_set(options, error, message):
    layer = DropBlock(0.8)
    with pytest.raises(error, match=message):
        layer.keep_prob = options["keep_prob"]
    assert layer.keep_prob == 0.8


@pytest.mark.parametrize(("input", "options", "error", "message"), WRONG_INPUTS)
def test_wrong_inputs_are_refused_with_their_description(input, options, error, message):
    for call in (lambda: drop_block(input, **options), lambda: DropBlock(**options)(input)):
        with pytest.raises(error, match=message) as caught:
            call()
        assert isinstance(caught.value, DropBlockInjectError)


def test_a_compiled_layer_takes_different_batches_and_maps():
    torch._dynamo.reset()
    compiled = torch.compile(DropBlock(0.9, 2), fullgraph=True, backend="aot_eager")
    for shape in ((4, 8, 6, 6), (3, 8, 6, 6), (5, 8, 7, 9)):
        output = compiled(torch.ones(shape))
        assert output.shape == shape
        assert (output == 0).any()
