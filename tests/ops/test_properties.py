"""Properties of the operator, of gamma and of the schedule that hold for every input and every choice of options."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from brute_force import covered_by
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dropblock_inject import DropBlock, KeepProbSchedule, drop_block
from dropblock_inject.errors import DropBlockInjectError, DropBlockTypeError, DropBlockValueError, ScheduleError
from dropblock_inject.ops.gamma import gamma

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
RESCALES = ["batch", "sample", "expected", None]
# Below 1e-38 the inverse, the scale of rescale="expected", overflows fp32.
KEEP_PROBS = st.sampled_from([1e-30, 1e-7, 0.5, 0.9, 1 - 2**-53]) | st.floats(1e-3, 1, exclude_max=True)
SEEDS = st.integers(0, 2**63 - 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- inputs and options ----------------------------------------------------------------------------------------------


def through(order):
    """A layout in which the axes have this order in memory."""
    return lambda x: x.permute(order).contiguous().permute(np.argsort(order).tolist())


def sliced(x):
    """A layout that is every second element of a larger tensor along each axis."""
    base = torch.full([2 * size + 3 for size in x.shape], 7.0, dtype=x.dtype)
    view = base[tuple(slice(1, 1 + 2 * size, 2) for size in x.shape)]
    return view.copy_(x)


def expanded(axis):
    """A layout in which all elements along this axis share their memory."""
    return lambda x: x.narrow(axis, 0, min(1, x.shape[axis])).expand_as(x)


@dataclass
class Case:
    """A call of drop_block that can be repeated with the same random numbers."""

    shape: tuple
    layout: object
    dtype: torch.dtype
    keep_prob: float
    block_size: object
    options: dict
    seed: int

    def input(self):
        """Random numbers away from 0."""
        x = torch.randn(self.shape, generator=seeded(self.seed), dtype=torch.float64)
        return self.layout(torch.where(x < 0, x - 0.5, x + 0.5).to(self.dtype))

    def __call__(self, x, **options):
        options = {"generator": seeded(self.seed), **self.options, **options}
        return drop_block(x, self.keep_prob, self.block_size, **options)

    @property
    def channel(self):
        return self.options["channel_dim"] % len(self.shape)

    @property
    def map_size(self):
        return tuple(size for axis, size in enumerate(self.shape) if axis not in (0, self.channel))

    @property
    def block(self):
        """The block size in force."""
        if isinstance(self.block_size, float):
            return tuple(max(1, round(self.block_size * size)) for size in self.map_size)
        asked = [self.block_size] * len(self.map_size) if isinstance(self.block_size, int) else self.block_size
        return tuple(map(min, asked, self.map_size))


@st.composite
def cases(draw, empty=False, in_memory_once=False):
    axes = draw(st.integers(1, 3))
    sizes = [draw(st.integers(0 if empty else 1, 4)) for _ in range(2)]
    sizes += [draw(st.integers(0 if empty else 1, (16, 11, 6)[axes - 1])) for _ in range(axes)]
    channel = draw(st.integers(1, axes + 1))
    sizes.insert(channel, sizes.pop(1))
    orders = st.permutations(range(axes + 2)).map(through)
    layouts = [st.just(lambda x: x), st.just(through([a for a in range(axes + 2) if a != channel] + [channel]))]
    layouts += [orders, st.just(sliced)]
    layouts += [] if in_memory_once else [st.integers(0, axes + 1).map(expanded)]
    return Case(
        shape=tuple(sizes),
        layout=draw(st.one_of(layouts)),
        dtype=draw(st.sampled_from(DTYPES)),
        keep_prob=draw(KEEP_PROBS),
        block_size=draw(
            st.integers(1, 13)
            | st.floats(0, 1, exclude_min=True, exclude_max=True)
            | st.tuples(*[st.integers(1, 13)] * axes)
            | st.lists(st.integers(1, 5), min_size=axes, max_size=axes)
        ),
        options={
            "per_channel": draw(st.booleans()),
            "rescale": draw(st.sampled_from(RESCALES)),
            "calibrated": draw(st.booleans()),
            "channel_dim": channel - draw(st.sampled_from([0, axes + 2])),
        },
        seed=draw(SEEDS),
    )


# --- references without the library ----------------------------------------------------------------------------------


def opened(dropped, block):
    """The union of all blocks within the dropped pixels, on the last axes (a morphological opening)."""
    axes = tuple(range(-len(block), 0))
    starts = np.lib.stride_tricks.sliding_window_view(dropped, block, axis=axes).all(axis=axes)
    union = np.zeros_like(dropped)
    for offsets in itertools.product(*map(range, block)):
        union[(..., *(slice(o, o + s) for o, s in zip(offsets, starts.shape[axes[0] :], strict=True)))] |= starts
    return union


def assert_masked_and_rescaled(case, values, dropped, result):
    """Asserts that `result` is 0 where dropped, and elsewhere `values` times the scale, rounded once."""
    precision = torch.promote_types(case.dtype, torch.float32)
    per_sample = case.options["rescale"] == "sample"
    groups = zip(values, dropped, result, strict=True) if per_sample else [(values, dropped, result)]
    for before, gone, after in groups:
        assert after[gone].eq(0).all()
        kept = gone.numel() - int(gone.sum())
        counted = gone.numel() / max(kept, 1)
        scale = {None: 1.0, "expected": 1 / case.keep_prob}.get(case.options["rescale"], counted)
        scale = torch.tensor(scale, dtype=torch.float64).to(precision)
        infinity = torch.tensor(math.inf, dtype=precision)
        rounded = [
            scale,
            *(torch.nextafter(scale, end) for end in (infinity, -infinity)),
        ]  # the division may round either way
        expected = [(before[~gone].to(precision) * one).to(case.dtype) for one in rounded]
        assert any(torch.equal(after[~gone], one) for one in expected)


# --- the operator ----------------------------------------------------------------------------------------------------


@given(cases())
def test_the_output_has_shape_dtype_and_layout_of_the_input_and_the_input_is_unchanged(case):
    x = case.input()
    before = x.clone()
    output = case(x)
    assert (output.shape, output.dtype, output.device) == (x.shape, x.dtype, x.device)
    assert output.stride() == torch.clone(x).stride()
    assert output.data_ptr() != x.data_ptr()
    assert torch.equal(x, before)
    assert not output.requires_grad


@given(cases())
def test_an_element_is_0_or_rescaled_by_the_counted_share_and_rounded_once(case):
    x = case.input()
    output = case(x)
    assert_masked_and_rescaled(case, x, output == 0, output)


@given(cases())
def test_whole_blocks_within_the_map_are_dropped(case):
    dropped = (case(case.input()) == 0).movedim(case.channel, 1).numpy()
    assert (opened(dropped, case.block) == dropped).all()
    if math.prod(case.block) == math.prod(case.map_size):
        flat = dropped.reshape(*dropped.shape[:2], -1)
        assert (flat.all(-1) == flat.any(-1)).all()


@given(cases())
def test_channels_share_their_mask_if_asked_to(case):
    case.options["per_channel"] = False
    dropped = (case(case.input()) == 0).movedim(case.channel, 0)
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))


@given(cases(), SEEDS)
def test_the_mask_depends_on_the_seed_alone(case, other):
    """Values, layout, dtype and rescaling do not change it."""
    dropped = case(case.input()) == 0
    x = torch.ones(case.shape, dtype=DTYPES[other % 4])
    assert torch.equal(case(x, rescale=RESCALES[other % 3]) == 0, dropped)
    torch.manual_seed(case.seed)
    first = case(x, generator=None)
    torch.manual_seed(case.seed)
    assert torch.equal(case(x, generator=None), first)
    torch.manual_seed(other)
    state = torch.get_rng_state()
    case(x)
    assert torch.equal(torch.get_rng_state(), state)


@given(cases(), st.data())
def test_kept_inf_and_nan_stay_and_dropped_ones_become_zero(case, data):
    x = case.input().contiguous()
    clean = case(x)
    dropped = clean == 0
    poison = data.draw(st.sampled_from([math.inf, -math.inf, math.nan]))
    where = torch.rand(case.shape, generator=seeded(case.seed + 1)) < data.draw(st.sampled_from([0.05, 0.5, 1.0]))
    output = case(torch.where(where, poison, x).to(case.dtype))
    expected = torch.where(where & ~dropped, torch.full_like(clean, poison), clean)
    assert torch.equal(torch.isnan(output), torch.isnan(expected))
    assert torch.equal(output.nan_to_num(-3), expected.nan_to_num(-3))


@given(cases(), st.data())
def test_finite_inputs_give_finite_outputs(case, data):
    """Zeros and subnormal numbers too. Only a scale beyond the dtype could overflow."""
    tiny = torch.finfo(case.dtype).smallest_normal * torch.finfo(case.dtype).eps
    value = data.draw(st.sampled_from([0.0, -0.0, tiny, -tiny, 1.0]))
    if case.options["rescale"] == "expected":
        case.keep_prob = max(case.keep_prob, 1e-3)
    assert case(torch.full(case.shape, value, dtype=case.dtype)).isfinite().all()


@given(cases(), st.booleans(), st.permutations(range(5)))
def test_the_gradient_is_that_of_a_mask_and_a_scale(case, inplace, order):
    """Also if the upstream gradient has a different layout from the output."""
    x = case.input().detach().requires_grad_()
    output = case(x * 1, inplace=inplace) if inplace else case(x)
    upstream = torch.randn(case.shape, generator=seeded(case.seed + 1), dtype=torch.float64).to(case.dtype)
    upstream = through([axis for axis in order if axis < x.dim()])(upstream)
    output.backward(upstream)
    assert x.grad.dtype == case.dtype
    assert_masked_and_rescaled(case, upstream, output == 0, x.grad)


@given(cases(in_memory_once=True))
def test_in_place_gives_the_same_result_and_writes_only_to_the_input(case):
    expected = case(case.input())
    x = case.input()
    memory = torch.empty(0, dtype=case.dtype).set_(x.untyped_storage())
    untouched = memory.clone()
    output = case(x, inplace=True)
    assert output.data_ptr() == x.data_ptr()
    assert output.stride() == x.stride()
    assert torch.equal(x, expected)
    untouched.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(expected)
    assert torch.equal(memory, untouched)


@given(cases(), st.booleans(), st.booleans())
def test_an_inactive_call_returns_the_input_itself_and_draws_no_random_number(case, training, inplace):
    if training:
        case.keep_prob = 1.0
    x = case.input().requires_grad_()
    generator = seeded(case.seed)
    states = generator.get_state(), torch.get_rng_state()
    for source in (generator, None):
        assert case(x, training=training, inplace=inplace, generator=source) is x
    assert torch.equal(generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


@given(cases(empty=True))
def test_empty_tensors_and_maps_of_one_pixel_keep_their_shape(case):
    x = case.input()
    output = case(x)
    assert output.shape == x.shape
    assert x.numel() > 0 or output is x


@given(cases(), st.data())
def test_the_layer_computes_the_function(case, data):
    x = case.input()
    layer = DropBlock(case.keep_prob, case.block_size, generator=seeded(case.seed), **case.options)
    assert torch.equal(layer(x), case(x))
    layer.enabled = data.draw(st.booleans())
    layer.train(not layer.enabled)
    assert layer(x) is x


OUTSIDE = st.floats(max_value=0) | st.floats(min_value=1, exclude_min=True) | st.just(math.nan) | st.integers(2)
NO_NUMBER = st.none() | st.booleans() | st.text() | st.complex_numbers()
WRONG = {  # argument: pairs of an error and the values that raise it
    "keep_prob": [(DropBlockValueError, OUTSIDE), (DropBlockTypeError, NO_NUMBER)],
    "block_size": [
        (DropBlockValueError, st.integers(max_value=0) | st.floats(max_value=0) | st.floats(min_value=1)),
        (DropBlockValueError, st.lists(st.integers(1, 5), min_size=4) | st.lists(st.integers(max_value=0)).map(tuple)),
        (DropBlockTypeError, st.none() | st.booleans() | st.text()),
    ],
    "rescale": [(DropBlockValueError, st.text().filter(lambda text: text not in RESCALES))],
    "channel_dim": [(DropBlockValueError, st.just(0) | st.integers(min_value=5) | st.integers(max_value=-5))],
}


@given(cases(), st.data())
def test_a_wrong_argument_raises_the_documented_error_and_changes_nothing(case, data):
    name = data.draw(st.sampled_from(list(WRONG)))
    error, values = data.draw(st.sampled_from(WRONG[name]))
    arguments = {"keep_prob": case.keep_prob, "block_size": case.block_size, **case.options}
    arguments |= {name: data.draw(values), "generator": seeded(case.seed)}
    assert_refused(error, case.input(), arguments, inplace=data.draw(st.booleans()))


@given(cases(), st.sampled_from(["rank", "dtype", "type", "expanded", "leaf"]))
def test_a_wrong_input_raises_the_documented_error_and_is_unchanged(case, wrong):
    x = case.input().contiguous()
    arguments = {"keep_prob": case.keep_prob, "block_size": 3, **case.options, "generator": seeded(case.seed)}
    error, inplace = (DropBlockTypeError, DropBlockValueError)[wrong in ("rank", "expanded", "leaf")], False
    if wrong == "rank":
        x = x.flatten() if case.seed % 2 else x.view(1, 1, 1, *x.shape)
    elif wrong == "dtype":
        x = x.to((torch.int64, torch.bool, torch.complex64)[case.seed % 3])
    elif wrong == "type":
        x = x.to(torch.float64).numpy()
    elif wrong == "expanded":
        x, inplace = x.narrow(0, 0, 1).expand(3, *x.shape[1:]), True
    else:
        x, inplace = x.requires_grad_(), True
    assert_refused(error, x, arguments, inplace)


def assert_refused(error, x, arguments, inplace):
    before = x.copy() if isinstance(x, np.ndarray) else x.detach().clone()
    states = arguments["generator"].get_state(), torch.get_rng_state()
    with pytest.raises(error) as caught:
        drop_block(x, **arguments, inplace=inplace)
    assert type(caught.value) is error
    assert isinstance(caught.value, DropBlockInjectError)
    assert (x == before).all()
    assert torch.equal(arguments["generator"].get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


# --- gamma -----------------------------------------------------------------------------------------------------------


@st.composite
def maps_and_blocks(draw):
    axes = draw(st.integers(1, 3))
    map_size = tuple(draw(st.integers(1, (20, 10, 5)[axes - 1])) for _ in range(axes))
    return map_size, tuple(draw(st.integers(1, size)) for size in map_size)


@given(maps_and_blocks(), st.floats(1e-6, 1))
def test_the_expected_kept_share_is_keep_prob_by_enumeration_of_the_pixels(sizes, keep_prob):
    seeds_of = covered_by(*sizes).sum(0)
    probability = gamma(keep_prob, *sizes)
    assert 0 <= probability <= 1
    assert ((1 - probability) ** seeds_of).mean() == pytest.approx(keep_prob, abs=1e-9)


@given(maps_and_blocks(), st.floats(1e-6, 1))
def test_the_formula_of_the_paper_never_keeps_too_little(sizes, keep_prob):
    by_formula = gamma(keep_prob, *sizes, calibrated=False)
    seeds_of = covered_by(*sizes).sum(0)
    assert ((1 - by_formula) ** seeds_of).mean() >= keep_prob - 1e-9
    assert gamma(keep_prob, *sizes) >= by_formula - 1e-9
    covered = by_formula * seeds_of.sum()  # overlaps count twice
    assert covered == pytest.approx(min((1 - keep_prob) * seeds_of.size, seeds_of.sum()), abs=1e-9)


@given(maps_and_blocks(), st.floats(1e-6, 1), st.floats(1e-6, 1), st.booleans())
def test_gamma_falls_as_keep_prob_rises(sizes, one, other, calibrated):
    fewer, more = (gamma(keep_prob, *sizes, calibrated) for keep_prob in sorted((one, other), reverse=True))
    assert fewer <= more


# --- the schedule ----------------------------------------------------------------------------------------------------


@st.composite
def schedules(draw):
    """Settings of a schedule for a model with two layers, and a step of it."""
    total = draw(st.integers(1, 40) | st.integers(1, 10**7))
    settings = {
        "total_steps": total,
        "start": draw(st.just(1.0) | st.floats(1e-6, 1)),
        "end": draw(st.none() | st.just(1.0) | st.floats(1e-6, 1)),
        "mode": draw(st.sampled_from(["linear", "cosine", "constant", "step", math.sqrt])),
        "warmup_steps": draw(st.integers(0, total - 1)),
    }
    return settings, [draw(st.floats(1e-6, 1)) for _ in range(2)], draw(st.integers(0, 2 * total))


def model_with(targets):
    return nn.Sequential(DropBlock(targets[0]), nn.Linear(1, 1), DropBlock(targets[1]))


@given(schedules(), st.data())
def test_values_are_monotone_between_start_and_end_and_clamped(drawn, data):
    settings, targets, step = drawn
    schedule = KeepProbSchedule(model_with(targets), **settings)
    start, end = settings["start"], settings["end"] or min(targets)
    total, warm = settings["total_steps"], settings["warmup_steps"]
    later = step + data.draw(st.integers(0, total))
    value, then = schedule.value_at(step), schedule.value_at(later)
    assert 0 < value <= 1
    rounding = 4 * math.ulp(1)
    assert min(start, end) - rounding <= value <= max(start, end) + rounding
    assert (then - value) * (end - start) >= -rounding
    assert schedule.value_at(total + later) == end
    assert all(schedule.value_at(early) == start for early in (warm - 1, -later - 1) if early < warm and warm > 0)


@given(schedules(), st.booleans())
def test_the_value_at_a_step_does_not_depend_on_how_it_is_reached(drawn, through_state):
    settings, targets, step = drawn
    schedule = KeepProbSchedule(model_with(targets), **settings)
    ends = [settings["end"] or target for target in targets]
    expected = [schedule.value_at(step, end) for end in ends]
    schedule.step(step)
    assert schedule.get_last_keep_prob() == expected
    again = KeepProbSchedule(model_with(targets), **settings, last_step=-1 if through_state else step - 1)
    if through_state:
        again.load_state_dict(schedule.state_dict())
    assert again.get_last_keep_prob() == expected
    assert again.state_dict() == schedule.state_dict()
    for one in (schedule, again):
        one.step()
        assert one.last_step == step + 1
    assert again.get_last_keep_prob() == schedule.get_last_keep_prob()


@given(schedules(), st.integers(0, 12), st.integers(0, 12))
def test_attached_stepped_and_resumed_schedules_agree(drawn, steps, more):
    settings, targets, _ = drawn
    model, other = model_with(targets), model_with(targets)
    attached, stepped = (KeepProbSchedule(one, **settings) for one in (model, other))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attached.attach(optimizer)
    for number in range(steps + more):
        if number == steps:  # resumes in another process
            saved = attached.state_dict()
            handle.remove()
            attached = KeepProbSchedule(model, **settings)
            attached.load_state_dict(saved)
            attached.attach(optimizer)
        optimizer.step()
        stepped.step()
        assert attached.get_last_keep_prob() == stepped.get_last_keep_prob()
    assert attached.state_dict() == stepped.state_dict()
    assert [layer.target_keep_prob for layer in model if isinstance(layer, DropBlock)] == targets


@given(schedules(), schedules())
def test_the_state_of_another_schedule_is_refused_and_changes_nothing(drawn, other):
    settings, targets, step = drawn
    schedule = KeepProbSchedule(model_with(targets), **settings)
    before = schedule.state_dict(), schedule.get_last_keep_prob()
    foreign = KeepProbSchedule(model_with(targets), **other[0], last_step=step).state_dict()
    if other[0] == settings:
        schedule.load_state_dict(foreign)
        return
    with pytest.raises(ScheduleError, match="the saved schedule is another one"):
        schedule.load_state_dict(foreign)
    assert (schedule.state_dict(), schedule.get_last_keep_prob()) == before
