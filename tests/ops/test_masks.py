"""The three backends that draw masks, against each other, against numpy, and against the distribution by definition.

``dense`` is the definition in tensor operations, ``sparse`` runs on the CPU, ``kernels`` on a GPU or in the interpreter
of Triton.
"""

import itertools
import math
import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from brute_force import covered_by, seed_positions

from dropblock_inject.ops import dense, operator, sparse
from dropblock_inject.ops.gamma import gamma
from dropblock_inject.ops.mask_spec import Options, mask_spec, rescale

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["dense", "sparse", "kernels", *(["dense on a GPU"] if DEVICE == "cuda" else [])]


def drop_by_blocks(input, output, seed, scale, spec):
    return sparse.drop(input, output, seed, scale, None, spec)[1]


BY_NAME = {
    "dense": dense,
    "sparse": SimpleNamespace(drop=drop_by_blocks, __name__="sparse"),
    "dense on a GPU": SimpleNamespace(drop=dense.drop, __name__="dense on a GPU"),
}


def device_of(backend):
    """Where a backend runs. The kernels run on a GPU if there is one, and else in the interpreter."""
    return DEVICE if backend.__name__.endswith(("kernels", "GPU")) else "cpu"


@pytest.fixture
def backend(request):
    """A backend by its name: an object with a function `drop`."""
    if request.param != "kernels":
        return BY_NAME[request.param]
    return pytest.importorskip("dropblock_inject.ops.triton_kernels", reason="Triton is not installed")


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS, indirect=True)


def drop(backend, input, keep_prob, block, *, seed=0, channel_dim=1, per_channel=True, rescale=None, inplace=False):
    """The output and the scale for a tensor on the CPU."""
    device = device_of(backend)
    on_device = input.to(device)
    spec = mask_spec(
        tuple(on_device.shape), on_device.dtype, keep_prob, Options(block, per_channel, rescale, True, channel_dim)
    )
    output = on_device if inplace else torch.empty_like(on_device)
    large = {}
    if backend.__name__.endswith("kernels") and device == "cpu":  # the interpreter is faster with few large programs
        large = {
            "_MAPS": power_of_2(on_device.numel() // math.prod(spec.map_size)),
            "_ELEMENTS": power_of_2(on_device.numel()),
        }
    with mock.patch.multiple(backend, **large) if large else nullcontext():
        scale = backend.drop(on_device, output, torch.tensor(seed, device=device), None, spec)
    if inplace:
        input.copy_(on_device)
    return output.cpu(), scale.cpu()


def power_of_2(at_least):
    return min(1 << max(at_least - 1, 31).bit_length(), 1 << 20)  # the largest that Triton allows


def dropped(backend, shape, keep_prob, block, **options):
    return drop(backend, torch.ones(shape), keep_prob, block, **options)[0] == 0


def grown(seeds, map_size, block):
    """The flat maps covered by the blocks of these seeds (maps, positions), by brute force."""
    return (seeds.astype(int) @ covered_by(map_size, block).astype(int)) > 0


MASK_CASES = [
    *(((13,), (3,)), ((13,), (4,)), ((6,), (6,))),
    *(((9, 9), (3, 3)), ((9, 9), (4, 4)), ((8, 11), (2, 5)), ((11, 8), (5, 2)), ((6, 6), (1, 4)), ((3, 9), (3, 3))),
    *(((5, 6, 7), (2, 3, 4)), ((4, 4, 4), (3, 3, 3)), ((2, 7, 7), (1, 3, 3))),
]


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("map_size", "block"), MASK_CASES)
@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_the_dropped_pixels_are_the_blocks_of_the_seeds(name, map_size, block, per_channel, channel_dim):
    samples, channels = 6, 5
    shape = (samples, channels, *map_size) if channel_dim == 1 else (samples, *map_size, channels)
    masks = channels if per_channel else 1
    count = len(seed_positions(map_size, block))
    probability = gamma(0.6, map_size, block)
    if name == "sparse":
        seeds = np.zeros(samples * masks * count, dtype=bool)
        seeds[sparse._draw(probability, seeds.size, 7).long().numpy()] = True
        seeds = seeds.reshape(samples, masks, count)
    else:
        valid = [size - b + 1 for size, b in zip(map_size, block, strict=True)]
        order = (samples, masks, *valid) if channel_dim == 1 else (samples, *valid, masks)
        uniform = dense._random_bits(torch.tensor(7), samples * masks * count).numpy() / 2**53
        seeds = np.moveaxis((uniform < probability).reshape(order), channel_dim, 1).reshape(samples, masks, count)
    expected = grown(seeds.reshape(-1, count), map_size, block).reshape(samples, masks, *map_size)

    mask = dropped(
        BY_NAME[name],
        shape,
        0.6,
        block,
        seed=7,
        per_channel=per_channel,
        channel_dim=channel_dim,
    )
    found = mask.movedim(channel_dim, 1).numpy()
    assert found.any()
    assert (found == expected).all()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("map_size", "block", "channel_dim"),
    [((5,), (2,), 1), ((5,), (3,), -1), ((3, 4), (2, 3), 1), ((4, 3), (3, 2), -1), ((3, 2, 3), (2, 2, 2), 1)],
)
def test_every_mask_has_the_frequency_that_independent_seeds_give_it(
    backend, map_size, block, channel_dim, per_channel
):
    """The distribution over all masks, by enumeration of the sets of seeds, independent of how they are drawn."""
    cover, probability = covered_by(map_size, block), gamma(0.6, map_size, block)
    expected = Counter()
    for seeds in itertools.product((False, True), repeat=len(cover)):
        mask = cover[list(seeds)].any(0)
        expected[mask.tobytes()] += probability ** sum(seeds) * (1 - probability) ** (len(seeds) - sum(seeds))

    samples, channels = (100, 200) if per_channel else (1000, 2)
    shape = (samples, channels, *map_size) if channel_dim == 1 else (samples, *map_size, channels)
    maps = dropped(backend, shape, 0.6, block, per_channel=per_channel, channel_dim=channel_dim)
    maps = maps.movedim(channel_dim, 1).numpy()
    if not per_channel:
        assert (maps == maps[:, :1]).all()
        maps = maps[:, :1]
    maps = maps.reshape(-1, math.prod(map_size))
    found = Counter(one.tobytes() for one in maps)
    assert found.keys() <= expected.keys()
    for mask, share in expected.items():
        error = math.sqrt(share * (1 - share) / len(maps))
        assert found[mask] / len(maps) == pytest.approx(share, abs=5 * error)


def chi_square(found, expected):
    """Pearson's statistic over many cells, in standard deviations from its mean."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    cells = expected > 5
    statistic = ((found[cells] - expected[cells]) ** 2 / expected[cells]).sum()
    return (statistic - (cells.sum() - 1)) / math.sqrt(2 * (cells.sum() - 1))


@pytest.mark.parametrize("keep_prob", [0.98, 0.7])
def test_seeds_are_binomial_in_number_uniform_in_position_and_independent(backend, keep_prob):
    """Blocks of one pixel are the seeds themselves."""
    maps, side = 20_000, 6
    seeds = dropped(backend, (maps // 20, 20, side, side), keep_prob, (1, 1)).reshape(maps, -1).numpy()
    pixels = side * side
    binomial = [math.comb(pixels, k) * (1 - keep_prob) ** k * keep_prob ** (pixels - k) for k in range(pixels + 1)]
    number = np.bincount(seeds.sum(1), minlength=pixels + 1)
    assert abs(chi_square(number, np.array(binomial) * maps)) < 5
    assert abs(chi_square(seeds.sum(0), np.full(pixels, maps * (1 - keep_prob)))) < 5
    both = (1 - keep_prob) ** 2
    for one, other in [
        *((seeds[:, i], seeds[:, j]) for i, j in ((0, 1), (0, side), (5, 30), (17, 18))),  # two pixels of a map
        *((seeds[:-shift].ravel(), seeds[shift:].ravel()) for shift in (1, 20)),  # two channels, two samples
        (seeds.ravel()[:-1], seeds.ravel()[1:]),  # neighbours in memory, across the ends of maps
    ]:
        error = math.sqrt(both * (1 - both) / len(one))
        assert np.mean(one & other) == pytest.approx(both, abs=5 * error)


@pytest.mark.parametrize(("side", "block", "keep_prob"), [(14, 7, 0.9), (28, 7, 0.9), (14, 3, 0.7), (7, 7, 0.5)])
def test_the_number_of_dropped_pixels_of_a_map_has_the_distribution_of_the_definition(backend, side, block, keep_prob):
    shape, block = (1000, 10, side, side), (block, block)
    counts = [
        dropped(which, shape, keep_prob, block, seed=seed).sum((2, 3)).flatten().bincount(minlength=side**2 + 1)
        for which, seed in ((dense, 1), (backend, 2))
    ]
    one, two = (count.numpy() for count in counts)
    seen = one + two >= 10
    statistic = ((one[seen] - two[seen]) ** 2 / (one[seen] + two[seen])).sum()
    assert abs(statistic - seen.sum()) / math.sqrt(2 * seen.sum()) < 5
    kept = [1 - (count * np.arange(len(count))).sum() / 10_000 / side**2 for count in (one, two)]
    assert kept == pytest.approx([keep_prob] * 2, abs=0.012)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "reversed axes": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 4, 11), (3, 4, 9, 10), (3, 2, 5, 6, 7)])
def test_the_mask_is_the_same_in_every_memory_layout(backend, shape, layout, per_channel, inplace):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    block = (3, 2, 3)[: len(shape) - 2]
    options = {"per_channel": per_channel, "rescale": "sample"}
    expected, _ = drop(backend, x.clone(), 0.7, block, **options)
    assert (expected == 0).any()
    laid_out = LAYOUTS[layout](x.clone())
    output, _ = drop(backend, laid_out, 0.7, block, inplace=inplace, **options)
    assert torch.equal(output, expected)
    if not inplace:
        assert torch.equal(laid_out, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rescale", ["batch", "sample", "expected", None])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_result_is_mask_times_scale_rounded_once(backend, per_channel, rescale, dtype):
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64).to(dtype)
    kept = ~dropped(backend, x.shape, 0.7, (3, 3), per_channel=per_channel, seed=1)
    wanted = {
        "batch": kept.numel() / kept.sum(),
        "sample": (kept[0].numel() / kept.sum((1, 2, 3))).view(4, 1, 1, 1),
        "expected": torch.tensor(1 / 0.7),
        None: torch.tensor(1.0),
    }[rescale]
    output, scale = drop(backend, x, 0.7, (3, 3), per_channel=per_channel, rescale=rescale, seed=1)
    assert scale.shape == wanted.shape
    if rescale in ("batch", "expected"):
        assert scale != scale.bfloat16()  # else it might be rounded before and nobody would see it
    torch.testing.assert_close(scale.double(), wanted.double(), rtol=1e-6, atol=0)
    expected = torch.where(kept, x.to(scale.dtype) * scale, 0).to(dtype)
    # Triton's interpreter truncates to bfloat16 where a GPU rounds: the last bit differs.
    interpreted = backend.__name__.endswith("kernels") and DEVICE == "cpu"
    last_bit = 2**-7 if interpreted and dtype == torch.bfloat16 else 0
    torch.testing.assert_close(output, expected, rtol=last_bit, atol=0)
    assert (output.dtype, scale.dtype) == (dtype, torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scale_on_another_device_is_not_rounded_before_the_product(dtype):
    """A GPU computes a product in the dtype that torch gives it. Of a number and a half-precision tensor it is half."""

    class OnAnotherDevice(torch.Tensor):
        is_cpu = False

    x, scale = torch.ones(3, 4, 9, 9, dtype=dtype), torch.tensor(1 / 0.7)
    with mock.patch("torch.mul", wraps=torch.mul) as product:
        rescale(x, scale.as_subclass(OnAnotherDevice), torch.empty_like(x))
    assert torch.result_type(*product.call_args.args) == torch.float32


@pytest.mark.parametrize("flags", [1, 100, 81 * 7, 81 * 12])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pixels_counted_in_parts_are_all_counted(layout, flags):
    """The parts are of one mask, of seven of the twelve and of all."""
    x = LAYOUTS[layout](torch.ones(3, 4, 9, 9))
    for seed in range(20):
        with mock.patch.object(sparse, "_FLAGS", flags):
            output, scale = drop(BY_NAME["sparse"], x, 0.7, (3, 3), seed=seed, rescale="batch")
        assert scale.item() == pytest.approx(x.numel() / output.count_nonzero().item(), rel=1e-6)


def test_a_given_scale_is_used(backend):
    device = device_of(backend)
    x = torch.ones(2, 3, 8, 8, device=device)
    spec = mask_spec((2, 3, 8, 8), x.dtype, 0.7, Options((3, 3), True, "batch", True, 1))
    output = torch.empty_like(x)
    backend.drop(x, output, torch.tensor(0, device=device), torch.tensor(3.0, device=device), spec)
    assert set(output.unique().tolist()) == {0.0, 3.0}


@pytest.mark.parametrize("keep_prob", [1 - 1e-9, 1 - 1e-16, 1e-7, 1e-300])
def test_extreme_values_of_keep_prob_drop_nothing_or_all(backend, keep_prob):
    mask = dropped(backend, (2, 4, 9, 9), keep_prob, (3, 3))
    assert not mask.any() if keep_prob > 0.5 else mask.all()


def test_different_seeds_give_different_masks_and_equal_seeds_equal_ones(backend):
    seeds = [0, 1, -1, 2**62 + 5, -(2**63) + 7, 2**32 - 2]
    masks = [dropped(backend, (2, 8, 9, 9), 0.7, (3, 3), seed=seed) for seed in (*seeds, *seeds)]
    assert len({mask.numpy().tobytes() for mask in masks[:6]}) == 6
    assert all(torch.equal(one, two) for one, two in zip(masks[:6], masks[6:], strict=True))


def test_the_kernels_compile_for_gpus(tmp_path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_kernels.py")
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 18


@pytest.mark.parametrize(
    ("capability", "dtypes"),
    [
        ((6, 1), set()),
        ((7, 0), {torch.float16, torch.float32}),
        ((7, 5), {torch.float16, torch.float32}),
        ((8, 0), {torch.float16, torch.float32, torch.bfloat16}),
    ],
)
def test_the_kernels_serve_the_gpus_and_dtypes_that_triton_compiles_for(capability, dtypes):
    kernels = pytest.importorskip("dropblock_inject.ops.triton_kernels", reason="Triton is not installed")
    with mock.patch("torch.cuda.get_device_capability", return_value=capability):
        for dtype in (torch.float16, torch.float32, torch.bfloat16):
            backend = operator._backend.__wrapped__(torch.device("cuda", 0), dtype)
            assert backend is (kernels if dtype in dtypes else dense)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("keep_prob", [1e-40, 1e-300])
def test_the_expected_scale_is_finite_for_every_keep_prob(backend, keep_prob, calibrated):
    """An infinite scale would turn zeros, for example those of ReLU, into NaN."""
    device = device_of(backend)
    x = torch.zeros(2, 3, 9, 9, device=device)
    spec = mask_spec(tuple(x.shape), x.dtype, keep_prob, Options((3, 3), True, "expected", calibrated, 1))
    output = torch.empty_like(x)
    scale = backend.drop(x, output, torch.tensor(0, device=device), None, spec)
    assert scale.isfinite()
    assert not output.any()
