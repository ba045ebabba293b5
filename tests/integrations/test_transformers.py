"""The callback for Hugging Face's Trainer, in real trainings."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from digits import digits
from torch import nn

from dropblock_inject import DropBlockInjectError, dropblock_sites, inject_dropblock

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from dropblock_inject.integrations.transformers import DropBlockCallback  # noqa: E402

# The library uses functions that torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"block_size": 3, "keep_prob": 0.7, "example_input": torch.empty(1, 3, 64, 64)}


def network() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 1, 2], layer_type="basic", num_labels=10
    )
    return transformers.ResNetForImageClassification(config)


class Preempted(Exception):
    pass


class Trace(transformers.TrainerCallback):
    def __init__(self, stop_at: int | None = None) -> None:
        self.values: dict[int, list[float]] = {}
        self.stop_at = stop_at

    def on_step_begin(self, args, state, control, *, model, **kwargs) -> None:
        self.values[state.global_step] = [site.effective_keep_prob for site in dropblock_sites(model.train())]

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.stop_at:
            raise Preempted


def trainer(folder: Path, *callbacks, model: nn.Module | None = None, samples: int = 64, **options):
    images, labels = digits(samples, 64)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    options = {"num_train_epochs": 2, "learning_rate": 3e-3, "per_device_train_batch_size": 16, **options}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
    arguments = transformers.TrainingArguments(str(folder), **quiet, **options)
    model = network() if model is None else model
    return transformers.Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))


def test_a_fine_tune_learns_with_dropblock_on(tmp_path: Path) -> None:
    callback, trace = DropBlockCallback((3, 4), **SMALL), Trace()
    fit = trainer(tmp_path, callback, trace, samples=256, num_train_epochs=4, save_strategy="no")
    assert dropblock_sites(fit.model)  # before the Trainer wraps or compiles it
    fit.train()
    losses = [entry["loss"] for entry in fit.state.log_history if "loss" in entry]
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    assert trace.values[0] == [1.0] * len(trace.values[0])
    assert min(trace.values[63]) == pytest.approx(callback.schedule.value_at(63)) != 1
    logged = [entry["keep_prob/stage4"] for entry in fit.state.log_history]
    assert logged[:64] == pytest.approx([callback.schedule.value_at(step) for step in range(1, 65)])
    network().load_state_dict(fit.model.state_dict(), strict=True)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_interrupted_and_resumed_training_has_the_same_trace(tmp_path: Path, accumulate: int) -> None:
    def run(name: str, resume: Path | None = None, stop_at: int | None = None) -> tuple[dict, list[float]]:
        trace = Trace(stop_at)
        saving = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": accumulate}
        fit = trainer(tmp_path / name, DropBlockCallback((3, 4), **SMALL), trace, **saving)
        if stop_at is None:
            fit.train(resume_from_checkpoint=str(resume) if resume else None)
        else:
            with pytest.raises(Preempted):
                fit.train()
        return trace.values, [entry["loss"] for entry in fit.state.log_history if "loss" in entry]

    whole, losses = run("whole")
    steps = 8 // accumulate
    assert sorted(whole) == list(range(steps))
    assert len({tuple(values) for values in whole.values()}) == steps
    first, _ = run("first", stop_at=3)
    checkpoint = tmp_path / "first" / "checkpoint-2"
    second, resumed_losses = run("second", resume=checkpoint)
    assert min(second) == 2  # in the middle of the run
    assert {**first, **second} == whole
    assert resumed_losses == losses  # the Trainer restores the random state too: the same masks
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["log_history"][0]["keep_prob/stage4"] < 1


def test_a_callback_that_stops_early_leaves_the_schedule_there(tmp_path: Path) -> None:
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3
            return control

    callback = DropBlockCallback((3, 4), schedule={"mode": "cosine"}, **SMALL)
    trainer(tmp_path, callback, Stop(), save_strategy="no").train()
    assert (callback.schedule.last_step, callback.schedule.total_steps) == (3, 8)


def test_added_later_or_to_an_injected_model(tmp_path: Path) -> None:
    callback = DropBlockCallback((3, 4), **SMALL)
    fit = trainer(tmp_path, save_strategy="no", num_train_epochs=1)
    fit.add_callback(callback)
    fit.train()
    assert callback.schedule.last_step == 4
    model = network()
    inject_dropblock(model, 4, **SMALL)
    callback = DropBlockCallback(None, schedule={"total_steps": 100})
    trainer(tmp_path, callback, model=model, save_strategy="no", num_train_epochs=1).train()
    assert {site.stage for site in dropblock_sites(model)} == {4}
    assert callback.schedule.last_step == 4


def test_dropblock_that_is_silently_off_is_an_error_in_the_first_step(tmp_path: Path) -> None:
    class Freeze(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, *, model, **kwargs) -> None:
            stage = model.resnet.encoder.stages[3]
            stage.register_forward_pre_hook(lambda *_: stage.eval() and None)

    fit = trainer(tmp_path, DropBlockCallback((3, 4), **SMALL), Freeze(), save_strategy="no")
    with pytest.raises(DropBlockInjectError, match=r"stages\.3\..*: ran in eval mode or paused only"):
        fit.train()
    assert fit.state.global_step == 1


def test_compiled_by_the_trainer(tmp_path: Path, caplog) -> None:
    torch._dynamo.reset()
    callback = DropBlockCallback((3, 4), **SMALL)
    compiling = {"torch_compile": True, "torch_compile_backend": "aot_eager", "save_strategy": "no"}
    with caplog.at_level(logging.INFO, "dropblock_inject"):
        trainer(tmp_path, callback, num_train_epochs=1, **compiling).train()
    assert "DropBlocks took part in the training by step 1" in caplog.text
    assert callback.schedule.last_step == 4
