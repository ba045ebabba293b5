"""A training that is interrupted and resumed equals one that was never interrupted: every step, every number."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from dropblock_inject import KeepProbSchedule

STEPS = 3  # in each of two epochs
SHORT = "--epochs 2 --batch-size 2 --max-samples 6 --seed 3"
SCRIPTS = {
    "finetune": "--model test_resnet --image-size 64",
    "finetune with a worker": "--model test_resnet --image-size 64 --workers 1",
    "cifar100": "--dataset digits --image-size 8",
    "detection": "--image-size 64",
    "segmentation": "--image-size 64",
    "with_lightning": "--model test_resnet --image-size 64",
    "with_transformers": "--image-size 64",
}


class Recorder:
    """Runs a script, records keep_prob and the loss of each step, and interrupts it after so many steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trace: list[list[float]] = []
        self.losses: list[float] = []
        self.stop_after: int | None = None
        step, backward = KeepProbSchedule.step, torch.Tensor.backward

        def recorded_step(schedule: KeepProbSchedule, *args: int) -> None:
            step(schedule, *args)
            self.trace.append(schedule.get_last_keep_prob())
            if len(self.trace) == self.stop_after:
                raise KeyboardInterrupt

        def recorded_backward(loss: torch.Tensor, *args: object, **options: object) -> None:
            self.losses.append(loss.item())
            backward(loss, *args, **options)

        monkeypatch.setattr(KeepProbSchedule, "step", recorded_step)
        monkeypatch.setattr(torch.Tensor, "backward", recorded_backward)

    def run(self, script: str, arguments: list[str], stop_after: int | None = None) -> tuple[list, list]:
        self.trace, self.losses, self.stop_after = [], [], stop_after
        torch.manual_seed(os.getpid())  # the script must not depend on this state
        main = import_module(script).main
        if stop_after is None:
            main(arguments)
        else:
            with pytest.raises(SystemExit):
                main(arguments)
        return self.trace, self.losses


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.filterwarnings("ignore")  # the trainers' own, about themselves and about small data
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_resumed_training_equals_an_uninterrupted_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = name.split()[0]
    if script.startswith("with_"):
        pytest.importorskip(script.removeprefix("with_"))
    assert not sys.stderr.isatty()
    recorder = Recorder(monkeypatch)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = [*SHORT.split(), *SCRIPTS[name].split()]
    trace, losses = recorder.run(script, [*options, "--output", str(whole)])
    first = recorder.run(script, [*options, "--output", str(parts)], stop_after=2 * STEPS - 1)
    assert not [*parts.glob("model.*")]
    if script.startswith("with_"):  # their checkpoints do not have the options of the script
        resumed = [*options, "--output", str(parts)]
        resumed += ["--resume", str(parts / "last.ckpt" if script == "with_lightning" else parts)]
    else:
        resumed = ["--resume", str(parts), "--workers", "1" if "worker" in name else "0"]
    second = recorder.run(script, resumed)

    assert len(trace) == len(losses) == 2 * STEPS
    assert min(trace[-1]) == pytest.approx(0.9)
    assert first == (trace[:-1], losses[:-1])
    assert second == (trace[STEPS:], losses[STEPS:])
    assert len(set(losses)) == len(losses)
    if script != "with_transformers":
        for file in {"model.pt", *({"last.pt"} if (whole / "last.pt").exists() else ())}:
            ours, theirs = (torch.load(run / file, weights_only=True) for run in (parts, whole))
            assert equal(ours, theirs)
    assert "it/s" not in capfd.readouterr().err
