"""KeepProbSchedule: its values and steps, its state, and its hook on the optimizer."""

import copy
import functools
import io
import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import dropblock_inject
from dropblock_inject import DropBlock, KeepProbSchedule, inject_dropblock
from dropblock_inject.errors import DropBlockInjectError, ScheduleError

TARGETS = [0.875, 0.5]


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), DropBlock(TARGETS[0], 3), nn.Conv2d(2, 2, 3), DropBlock(TARGETS[1], 3))


def keep_probs(model):
    return [module.keep_prob for module in model.modules() if isinstance(module, DropBlock)]


def snapshot(schedule):
    return schedule.state_dict(), keep_probs(schedule.model), torch.get_rng_state().tolist()


# --- values ----------------------------------------------------------------------------------------------------------

MODES = ["linear", "cosine", "constant", "step", lambda progress: progress**2]
QUARTER_OF_COSINE = (1 - math.sqrt(0.5)) / 2

VALUES = [  # mode; the fraction of the way from start to end at each fraction of the time
    ("linear", {0: 0, 0.25: 0.25, 0.5: 0.5, 0.99: 0.99, 1: 1}),
    ("cosine", {0: 0, 0.25: QUARTER_OF_COSINE, 0.5: 0.5, 0.75: 1 - QUARTER_OF_COSINE, 1: 1}),
    ("constant", {0: 1, 0.5: 1, 1: 1}),
    ("step", {0: 0, 0.19: 0, 0.21: 0.25, 0.39: 0.25, 0.41: 0.5, 0.61: 0.75, 0.79: 0.75, 0.81: 1, 1: 1}),
    (lambda progress: progress**2, {0: 0, 0.25: 0.0625, 0.5: 0.25, 1: 1}),
    (lambda progress: 0, {0: 0, 0.5: 0, 1: 0}),
]


@pytest.mark.parametrize("warmup_steps", [0, 40])
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.5), (0.9, 0.75), (0.5, 1.0), (0.8, 0.8)])
@pytest.mark.parametrize(("mode", "fractions"), VALUES)
def test_the_values_of_every_mode(mode, fractions, start, end, warmup_steps):
    model = net()
    schedule = KeepProbSchedule(model, 100 + warmup_steps, start=start, end=end, mode=mode, warmup_steps=warmup_steps)
    for time, fraction in fractions.items():
        step = warmup_steps + round(100 * time)
        expected = start + fraction * (end - start)
        assert schedule.value_at(step) == pytest.approx(expected, abs=1e-12)
        schedule.step(step)
        assert keep_probs(model) == [pytest.approx(expected, abs=1e-12)] * 2


@pytest.mark.parametrize("mode", MODES)
def test_the_value_is_clamped_at_both_ends(mode):
    schedule = KeepProbSchedule(net(), 100, mode=mode)
    assert {schedule.value_at(step) for step in (100, 101, 150, 10**9)} == {0.5}
    before = 1.0 if mode != "constant" else schedule.value_at(-1)
    assert {schedule.value_at(step) for step in (-1, -100)} == {before}


@pytest.mark.parametrize("mode", MODES)
def test_the_warm_up_stays_at_the_start(mode):
    schedule = KeepProbSchedule(net(), 50, start=0.75, mode=mode, warmup_steps=20)
    assert {schedule.value_at(step) for step in range(20)} == {0.75}
    assert schedule.value_at(21) <= 0.75
    assert schedule.value_at(50) == 0.5


@pytest.mark.parametrize("warmup_steps", [0, 7])
@pytest.mark.parametrize("mode", MODES)
def test_the_values_are_monotonic_from_start_to_end(mode, warmup_steps):
    for start, end in ((1.0, 0.5), (0.5, 1.0), (0.2, 0.9)):
        schedule = KeepProbSchedule(net(), 37, start=start, end=end, mode=mode, warmup_steps=warmup_steps)
        values = [schedule.value_at(step) for step in range(45)]
        assert values == sorted(values, reverse=start > end)
        assert values[-1] == end
        assert mode == "constant" or values[0] == start


@pytest.mark.parametrize("mode", MODES)
def test_a_schedule_from_1_to_1_is_exactly_1(mode):
    schedule = KeepProbSchedule(net(), 97, end=1.0, mode=mode, warmup_steps=3)
    assert {schedule.value_at(step) for step in range(100)} == {1.0}


def test_a_callable_mode_is_given_progress_from_0_to_1():
    given = []
    schedule = KeepProbSchedule(net(), 30, mode=lambda progress: given.append(progress) or progress, warmup_steps=10)
    given.clear()
    for step in range(40):
        schedule.value_at(step)
    assert given == pytest.approx([min(1, step / 20) for step in range(30)])
    assert (min(given), max(given)) == (0, 1)


@pytest.mark.parametrize(
    ("bad", "shown"),
    [(1.5, r"1\.5"), (-0.1, r"-0\.1"), (math.nan, "nan"), (math.inf, "inf"), (None, "None"), ("0.5", "'0.5'")],
)
def test_a_callable_mode_that_returns_no_fraction_is_refused(bad, shown):
    model = net()
    schedule = KeepProbSchedule(model, 10, mode=lambda progress: bad if 0.25 < progress < 0.35 else progress)
    schedule.step(2)
    before = keep_probs(model)
    message = rf"mode\(0\.3\) returned {shown}; it must be the share of the way from start to end, in \[0, 1\]"
    for call in (lambda: schedule.value_at(3), schedule.step):
        with pytest.raises(DropBlockInjectError, match=message):
            call()
    assert keep_probs(model) == before
    assert schedule.last_step == 2
    with pytest.raises(DropBlockInjectError, match=rf"mode\(1\) returned {shown}"):
        KeepProbSchedule(model, 10, mode=lambda progress: bad if progress == 1 else progress)
    assert keep_probs(model) == before


def test_without_an_end_every_layer_runs_to_its_own_target():
    model = net()
    schedule = KeepProbSchedule(model, 100)
    assert keep_probs(model) == [1.0, 1.0]
    schedule.step(50)
    assert keep_probs(model) == [0.9375, 0.75]
    schedule.step(100)
    assert keep_probs(model) == TARGETS
    assert schedule.value_at(50) == 0.75  # the value of the site with the lowest target
    assert schedule.value_at(50, end=0.875) == 0.9375


def test_with_an_end_every_layer_runs_to_it():
    model = net()
    schedule = KeepProbSchedule(model, 100, end=0.75)
    schedule.step(50)
    assert keep_probs(model) == [0.875, 0.875]
    schedule.step(100)
    assert keep_probs(model) == [0.75, 0.75]
    assert [module.target_keep_prob for module in model if isinstance(module, DropBlock)] == TARGETS


# --- steps -----------------------------------------------------------------------------------------------------------


def test_the_start_is_in_force_before_the_first_step():
    model = net()
    assert keep_probs(model) == TARGETS
    KeepProbSchedule(model, 10, start=0.95)
    assert keep_probs(model) == [0.95, 0.95]


def test_steps_follow_value_at_and_an_explicit_step_goes_there():
    model = net()
    schedule = KeepProbSchedule(model, 10)
    for done in range(1, 15):
        schedule.step()
        assert (schedule.last_step, keep_probs(model)[1]) == (done, schedule.value_at(done))
    for done in (3, 0, 10, 7):
        schedule.step(done)
        assert (schedule.last_step, keep_probs(model)[1]) == (done, schedule.value_at(done))
    schedule.step()
    assert schedule.last_step == 8


@pytest.mark.parametrize("mode", MODES)
def test_value_at_changes_nothing(mode):
    schedule = KeepProbSchedule(net(), 10, mode=mode)
    schedule.step(4)
    before = snapshot(schedule)
    values = [schedule.value_at(step) for step in (0, 9, 4, 100, -3)]
    assert [schedule.value_at(step) for step in (0, 9, 4, 100, -3)] == values
    assert snapshot(schedule) == before


def test_get_last_keep_prob_is_keep_prob_in_the_order_of_the_modules():
    model = net()
    schedule = KeepProbSchedule(model, 10)
    for step in (0, 5, 10):
        schedule.step(step)
        assert schedule.get_last_keep_prob() == keep_probs(model)
    model[1].keep_prob = 0.3
    assert schedule.get_last_keep_prob() == [0.3, 0.5]
    schedule.step()
    assert schedule.get_last_keep_prob() == TARGETS


def test_last_step_continues_after_earlier_steps():
    for done in range(12):
        stepped, resumed = net(), net()
        schedule = KeepProbSchedule(stepped, 10)
        for _ in range(done):
            schedule.step()
        again = KeepProbSchedule(resumed, 10, last_step=done - 1)
        assert (again.last_step, keep_probs(resumed)) == (schedule.last_step, keep_probs(stepped))


def test_forward_passes_and_modes_do_not_move_the_schedule():
    model = net()
    schedule = KeepProbSchedule(model, 10)
    schedule.step(5)
    before = schedule.state_dict(), keep_probs(model)
    for mode in (True, False, True):
        model.train(mode)
        model(torch.randn(2, 1, 9, 9))
    assert (schedule.state_dict(), keep_probs(model)) == before


def test_a_model_that_lost_its_dropblocks_is_an_error_at_the_next_step():
    model = net()
    schedule = KeepProbSchedule(model, 10)
    model[1] = model[3] = nn.Identity()
    for call in (schedule.step, schedule.get_last_keep_prob):
        with pytest.raises(ScheduleError, match=r"no DropBlock to schedule; call inject_dropblock\(model, \.\.\.\)"):
            call()


# --- saving and resuming ---------------------------------------------------------------------------------------------


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("end", [None, 0.75])
@pytest.mark.parametrize("mode", [*MODES, functools.partial(pow, 1)])
def test_the_state_is_plain_scalars_and_survives_a_weights_only_load(mode, end):
    schedule = KeepProbSchedule(net(), 10, mode=mode, end=end, warmup_steps=2)
    schedule.attach(torch.optim.SGD(schedule.model.parameters()))
    schedule.step(7)
    state = schedule.state_dict()
    assert {type(value) for value in state.values()} <= {int, float, str, type(None)}
    assert saved(state) == state
    model = net()
    again = KeepProbSchedule(model, 10, mode=mode, end=end, warmup_steps=2)
    again.load_state_dict(saved(state))
    assert again.state_dict() == state
    assert keep_probs(model) == keep_probs(schedule.model)


def train(steps, checkpoint=None, **options):
    """Trains `steps` updates. Returns a record of each (keep_prob, dropped elements) and a checkpoint."""
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = KeepProbSchedule(model, 10, **options)
    schedule.attach(optimizer)
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        schedule.load_state_dict(checkpoint["schedule"])
        torch.set_rng_state(checkpoint["rng"])
    trace = []
    for _ in range(steps):
        output = model(torch.randn(2, 1, 12, 12))
        trace.append((schedule.get_last_keep_prob(), output.eq(0).flatten().tolist()))
        optimizer.zero_grad()
        output.square().mean().backward()
        optimizer.step()
    state = {"model": model.state_dict(), "schedule": schedule.state_dict(), "rng": torch.get_rng_state()}
    return trace, state


@pytest.mark.parametrize("options", [{}, {"mode": "cosine", "warmup_steps": 3}, {"mode": "step", "end": 0.6}], ids=str)
def test_resuming_at_any_step_gives_the_values_and_masks_of_an_uninterrupted_run(options):
    whole, _ = train(12, **options)
    assert any(any(dropped) for _, dropped in whole)
    assert len({tuple(values) for values, _ in whole}) > 3
    for split in range(13):
        first, state = train(split, **options)
        second, _ = train(12 - split, saved(state), **options)
        assert first + second == whole


def test_resuming_in_another_process_gives_the_values_and_masks_of_an_uninterrupted_run(tmp_path):
    script = (
        "import sys, torch; from test_schedule import train\n"
        "source, target = sys.argv[1:]\n"
        "trace, state = train(6, torch.load(source, weights_only=True)['state'] if source else None)\n"
        "torch.save({'trace': trace, 'state': state}, target)"
    )
    package, here = Path(dropblock_inject.__file__).parents[1], Path(__file__).parent
    path = os.pathsep.join([str(package), str(here), os.environ.get("PYTHONPATH", "")])
    files = ["", str(tmp_path / "first.pt"), str(tmp_path / "second.pt")]
    for source, target in itertools.pairwise(files):
        subprocess.run(
            [sys.executable, "-c", script, source, target], check=True, env={**os.environ, "PYTHONPATH": path}
        )
    halves = [torch.load(file, weights_only=True)["trace"] for file in files[1:]]
    assert halves[0] + halves[1] == train(12)[0]


CHANGED = [
    ({"total_steps": 20}, r"total_steps was 10 and is now 20"),
    ({"mode": "cosine"}, r"mode was 'linear' and is now 'cosine'"),
    ({"mode": lambda progress: progress}, r"mode was 'linear' and is now '.*lambda.*'"),
    ({"end": 0.6}, r"end was None and is now 0\.6"),
    ({"start": 0.9}, r"start was 1\.0 and is now 0\.9"),
    ({"total_steps": 20, "warmup_steps": 5}, r"total_steps was 10 and is now 20; warmup_steps was 0 and is now 5"),
]


@pytest.mark.parametrize(("options", "message"), CHANGED)
def test_the_state_of_another_schedule_is_refused_with_the_difference_and_the_mend(options, message):
    first = KeepProbSchedule(net(), 10)
    first.step(4)
    other = KeepProbSchedule(net(), **{"total_steps": 10, **options})
    other.step(2)
    before = snapshot(other)
    message = rf"the saved schedule is another one: {message}\..* call load_state_dict\(state, strict=False\)$"
    with pytest.raises(ScheduleError, match=message):
        other.load_state_dict(first.state_dict())
    assert snapshot(other) == before


@pytest.mark.parametrize(("options", "message"), CHANGED)
def test_without_strict_another_schedule_continues_from_there_and_warns(options, message, caplog):
    first = KeepProbSchedule(net(), 10)
    first.step(4)
    other = KeepProbSchedule(net(), **{"total_steps": 10, **options})
    other.load_state_dict(first.state_dict(), strict=False)
    assert other.last_step == 4
    assert min(keep_probs(other.model)) == other.value_at(4)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("dropblock_inject.training.schedule", "WARNING")
    assert re.fullmatch(
        rf"went on at step 4 with another schedule than the saved one: {message}; keep_prob is [\d.]+ now",
        record.getMessage(),
    )
    same = KeepProbSchedule(net(), 10)
    same.load_state_dict(first.state_dict(), strict=False)
    assert len(caplog.records) == 1


def injected(**options):
    from networks import CifarResNet  # another process that imports this file does not find it

    model = CifarResNet(1)
    inject_dropblock(model, **{"stages": (-2, -1), **options}, example_input=torch.empty(1, 3, 32, 32))
    return KeepProbSchedule(model, 10)


INJECTED_OTHERWISE = [
    (
        {"keep_prob": 0.8},
        r"the target at stage2.0.drop_branch1 was 0.975 and is now 0.95 \(and 5 more targets differ\)",
    ),
    ({"stages": -1}, r"the target at stage2.0.drop_branch1 was 0.975 and is now missing \(and 2 more targets differ\)"),
    ({"exclude": "stage2.0.drop_skip"}, r"the target at stage2.0.drop_skip was 0.975 and is now missing"),
]


@pytest.mark.parametrize(("options", "message"), INJECTED_OTHERWISE)
def test_the_state_of_a_model_that_was_injected_otherwise_is_refused(options, message):
    first, other = injected(), injected(**options)
    first.step(4)
    before = snapshot(other)
    with pytest.raises(ScheduleError, match=rf"the saved schedule is another one: {message}\. Inject and construct"):
        other.load_state_dict(first.state_dict())
    assert snapshot(other) == before
    other.load_state_dict(first.state_dict(), strict=False)
    assert other.last_step == 4


def test_the_state_fits_the_model_in_a_wrapper_and_the_plain_one():
    first = injected()
    first.step(4)
    wrapped = KeepProbSchedule(nn.DataParallel(injected().model), 10)
    wrapped.load_state_dict(first.state_dict())
    assert wrapped.get_last_keep_prob() == first.get_last_keep_prob()
    first.load_state_dict(wrapped.state_dict())


def test_a_state_without_targets_as_version_0_1_saved_it_is_loaded():
    first, other = injected(), injected()
    first.step(4)
    state = first.state_dict()
    del state["targets"]
    other.load_state_dict(state)
    assert other.last_step == 4


GOOD = KeepProbSchedule(net(), 10).state_dict()
NO_STATE = r"not the state of a KeepProbSchedule: expected keys \['end', 'last_step', .*\], got "
FOREIGN = [
    ({}, NO_STATE + r"keys \[\]"),
    (None, NO_STATE + "NoneType"),
    ([1, 2], NO_STATE + "list"),
    ({"last_epoch": 3, 7: 8}, NO_STATE + r"keys \['7', 'last_epoch'\]"),
    ({**GOOD, "gamma": 0.1}, NO_STATE + r"keys \[.*'gamma'.*\]"),
    ({name: value for name, value in GOOD.items() if name != "mode"}, NO_STATE + "keys"),
    ({**GOOD, "last_step": "3"}, "last_step must be an int, got '3'"),
    ({**GOOD, "last_step": 2.5}, r"last_step must be an int, got 2\.5"),
    ({**GOOD, "last_step": True}, "last_step must be an int, got True"),
    ({**GOOD, "last_step": -1}, "last_step must be at least 0, got -1"),
    ({**GOOD, "targets": "0.9"}, "its targets are '0.9'"),
    ({**GOOD, "targets": {"1": 0.9}}, "its targets are {'1': 0.9}"),
    ({**GOOD, "start": None}, r"start was None and is now 1\.0"),
]


@pytest.mark.parametrize(("state", "message"), FOREIGN)
def test_anything_but_a_state_is_refused_and_changes_nothing(state, message):
    schedule = KeepProbSchedule(net(), 10)
    schedule.step(4)
    before = snapshot(schedule)
    with pytest.raises(DropBlockInjectError, match=message):
        schedule.load_state_dict(state)
    assert snapshot(schedule) == before


# --- attach ----------------------------------------------------------------------------------------------------------


def attached(total_steps=10, optimizer=torch.optim.SGD, **options):
    model = net()
    optimizer = optimizer(model.parameters(), **{"lr": 0.01, **options})
    schedule = KeepProbSchedule(model, total_steps)
    return model, optimizer, schedule, schedule.attach(optimizer)


def backward(model, factor=1.0):
    loss = model(torch.randn(2, 1, 9, 9)).square().sum() * factor
    loss.backward()
    return loss


def test_attached_it_steps_once_after_each_optimizer_step():
    model, optimizer, schedule, _ = attached()
    for done in range(1, 15):
        backward(model)
        assert schedule.last_step == done - 1
        optimizer.step()
        assert schedule.last_step == done
        assert keep_probs(model)[1] == schedule.value_at(done)


def test_gradient_accumulation_counts_updates_not_backward_passes():
    model, optimizer, schedule, _ = attached()
    for micro_batch in range(1, 13):
        backward(model)
        if micro_batch % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert schedule.last_step == 3


def test_a_closure_called_many_times_counts_as_one_step():
    model, optimizer, schedule, _ = attached(optimizer=torch.optim.LBFGS, max_iter=5)
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        return backward(model).detach()

    optimizer.step(closure)
    assert len(calls) > 1
    assert schedule.last_step == 1


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_gradient_scaler_skips_do_not_count(fused):
    model, optimizer, schedule, _ = attached(optimizer=torch.optim.AdamW, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor, done in ((1.0, 1), (math.inf, 1), (1.0, 2), (math.nan, 2)):
        weight = model[0].weight.clone()
        optimizer.zero_grad()
        loss = model(torch.rand(2, 1, 9, 9) + 1).square().sum() * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model[0].weight, weight) == (not math.isfinite(factor))
        assert schedule.last_step == done


def test_a_removed_handle_stops_the_schedule_and_it_can_be_attached_again():
    model, optimizer, schedule, handle = attached()
    for _ in range(2):
        optimizer.step()
        assert schedule.last_step == 1
        handle.remove()
    handle = schedule.attach(optimizer)
    optimizer.step()
    assert schedule.last_step == 2
    handle.remove()
    other = torch.optim.Adam(model.parameters())
    with schedule.attach(other):
        other.step()
        optimizer.step()
        assert schedule.last_step == 3
    other.step()
    assert schedule.last_step == 3


def test_a_schedule_follows_the_optimizer_that_it_was_attached_to_last():
    model, first, schedule, _ = attached()
    schedule.attach(first)
    first.step()
    assert schedule.last_step == 1
    second = torch.optim.Adam(model.parameters())
    schedule.attach(second)
    first.step()
    assert schedule.last_step == 1
    second.step()
    assert schedule.last_step == 2


@pytest.mark.parametrize("wrong", [None, net(), "sgd", torch.optim.SGD], ids=["None", "module", "str", "class"])
def test_attaching_to_anything_but_an_optimizer_is_refused(wrong):
    message = (
        rf"attach expects a torch\.optim\.Optimizer, got {type(wrong).__name__}; .*call schedule\.step\(\) after each"
    )
    with pytest.raises(TypeError, match=message) as caught:
        KeepProbSchedule(net(), 10).attach(wrong)
    assert isinstance(caught.value, DropBlockInjectError)


@pytest.mark.parametrize("attach_first", [True, False])
def test_a_learning_rate_scheduler_beside_it_is_not_disturbed(attach_first):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = KeepProbSchedule(model, 10)
    if attach_first:
        schedule.attach(optimizer)
    learning_rate = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    if not attach_first:
        schedule.attach(optimizer)
    rates = []
    for done in range(1, 7):
        optimizer.step()
        learning_rate.step()
        rates.append(learning_rate.get_last_lr()[0])
        assert schedule.last_step == done
    assert rates == [1.0, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_a_copy_of_the_optimizer_does_not_step_the_schedule():
    _, optimizer, schedule, _ = attached()
    copy.deepcopy(optimizer).step()
    assert schedule.last_step == 0


def test_an_optimizer_made_anew_takes_over():
    model, optimizer, schedule, handle = attached()
    optimizer.step()
    state = optimizer.state_dict()
    handle.remove()
    again = torch.optim.SGD(model.parameters(), lr=0.01)
    again.load_state_dict(state)
    schedule.attach(again)
    again.step()
    assert schedule.last_step == 2


def test_it_follows_only_the_optimizer_it_is_attached_to():
    model, optimizer, schedule, _ = attached()
    other = torch.optim.Adam(model.parameters())
    for _ in range(3):
        optimizer.step()
        other.step()
    assert schedule.last_step == 3


def test_evaluation_in_between_does_not_count():
    model, optimizer, schedule, _ = attached()
    for done in range(1, 4):
        backward(model)
        optimizer.step()
        with torch.no_grad():
            model.eval()(torch.randn(2, 1, 9, 9))
        model.train()
        assert schedule.last_step == done


class Wrapper(torch.optim.Optimizer):
    """A typical wrapper: it does not call torch's constructor, so its step runs no hooks."""

    def __init__(self, *held):
        self.held, self.second = (*held, None, None)[:2]

    @property
    def param_groups(self):
        return self.held.param_groups

    def step(self, closure=None):
        self.held.step(closure)


def test_it_counts_the_steps_of_the_optimizer_inside_a_wrapper():
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = Wrapper(Wrapper(inner))
    schedule = KeepProbSchedule(model, 10)
    handle = schedule.attach(optimizer)
    for _ in range(3):
        optimizer.step()
    assert schedule.last_step == 3
    handle.remove()
    optimizer.step()
    assert schedule.last_step == 3


def test_lookahead_of_timm_counts_as_one():
    timm_optim = pytest.importorskip("timm.optim")
    model = net()
    optimizer = timm_optim.Lookahead(torch.optim.SGD(model.parameters(), lr=0.01), k=2)
    schedule = KeepProbSchedule(model, 10)
    schedule.attach(optimizer)
    for done in range(1, 6):
        backward(model)
        optimizer.step()
        assert schedule.last_step == done


@pytest.mark.parametrize("held", [0, 2])
def test_a_wrapper_without_exactly_one_optimizer_inside_is_refused(held):
    model = net()
    optimizer = Wrapper(*(torch.optim.SGD(model.parameters(), lr=0.01) for _ in range(held)))
    with pytest.raises(
        TypeError, match=r"Wrapper runs no hooks after its steps, .* call schedule\.step\(\) after each"
    ):
        KeepProbSchedule(model, 10).attach(optimizer)


# --- wrong arguments -------------------------------------------------------------------------------------------------

KEEP_PROB = r"{} must be a keep_prob in \(0, 1\], got {}"
MODE = r"mode must be one of 'linear', 'cosine', 'constant', 'step' or a callable of progress, got {}"

WRONG = [
    ({"total_steps": 0}, ValueError, "total_steps must be at least 1, got 0"),
    ({"total_steps": -5}, ValueError, "total_steps must be at least 1, got -5"),
    ({"total_steps": True}, TypeError, "total_steps must be an int, got True"),
    ({"total_steps": 10.0}, TypeError, r"total_steps must be an int, got 10\.0"),
    ({"total_steps": None}, TypeError, "total_steps must be an int, got None"),
    ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0, got -1"),
    ({"warmup_steps": 2.0}, TypeError, r"warmup_steps must be an int, got 2\.0"),
    ({"warmup_steps": 10}, ValueError, "warmup_steps=10 leaves nothing of total_steps=10; it must be smaller"),
    ({"warmup_steps": 11}, ValueError, "warmup_steps=11 leaves nothing of total_steps=10; it must be smaller"),
    ({"last_step": -2}, ValueError, "last_step must be at least -1, got -2"),
    ({"last_step": 1.0}, TypeError, r"last_step must be an int, got 1\.0"),
    *[
        ({name: value}, error, KEEP_PROB.format(name, shown))
        for name in ("start", "end")
        for value, error, shown in (
            (0, ValueError, "0"),
            (-0.1, ValueError, r"-0\.1"),
            (1.1, ValueError, r"1\.1"),
            (math.nan, ValueError, "nan"),
            (True, DropBlockInjectError, "True"),
            ("0.9", DropBlockInjectError, r"'0\.9'"),
        )
    ],
    ({"mode": "quadratic"}, ValueError, MODE.format("'quadratic'")),
    ({"mode": None}, ValueError, MODE.format("None")),
    ({"mode": ["linear"]}, DropBlockInjectError, MODE.format(r"\['linear'\]")),
    ({"model": nn.Linear(1, 1)}, ScheduleError, r"the model has no DropBlock to schedule; call inject_dropblock"),
    ({"model": None}, TypeError, r"model must be a torch\.nn\.Module, got NoneType"),
    ({"model": [DropBlock()]}, TypeError, r"model must be a torch\.nn\.Module, got list"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=str)
def test_wrong_arguments_are_refused_and_change_nothing(options, error, message):
    model = net()
    with pytest.raises(error, match=message) as caught:
        KeepProbSchedule(**{"model": model, "total_steps": 10, **options})
    assert isinstance(caught.value, DropBlockInjectError)
    assert keep_probs(model) == TARGETS


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (-1, ValueError, "step must be at least 0, got -1"),
        (1.0, TypeError, r"step must be an int, got 1\.0"),
        (True, TypeError, "step must be an int, got True"),
    ],
)
def test_a_wrong_step_is_refused_and_changes_nothing(step, error, message):
    schedule = KeepProbSchedule(net(), 10)
    schedule.step(4)
    before = snapshot(schedule)
    with pytest.raises(error, match=message) as caught:
        schedule.step(step)
    assert isinstance(caught.value, DropBlockInjectError)
    assert snapshot(schedule) == before
