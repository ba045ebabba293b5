"""Tries an installed wheel where torch is, and neither timm nor torchvision, from outside the checkout.

    cd / && python CHECKOUT/tests/packaging/smoke.py

It ends with an error if the package is not the installed one, if files are missing in it or too many, or if a plan, an
injection, a training step, the removal or the command does not work.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

import dropblock_inject
from dropblock_inject import KeepProbSchedule, dropblock_sites, inject_dropblock, plan_dropblock, remove_dropblock

CHECKOUT = Path(__file__).resolve().parents[2]
MESSAGE = "dropblock-inject: error: timm or torchvision is not installed: pip install timm\n"


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def small_cnn() -> nn.Module:
    """Two stages, at half and a quarter of the image."""
    stages = [nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.ReLU(), Block(o), Block(o)) for i, o in ((3, 8), (8, 16))]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def check_files() -> None:
    """The wheel has the package, its py.typed and its metadata, and nothing of the rest of the repository."""
    assert Path(dropblock_inject.__file__).is_relative_to(sys.prefix), dropblock_inject.__file__
    files = {file.as_posix() for file in metadata.files("dropblock-inject") or ()}
    source = {path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.glob("dropblock_inject/**/*.py")}
    assert source | {"dropblock_inject/py.typed"} <= files, source - files
    others = {file for file in files if "dropblock_inject" not in file.split("/")[0]}
    assert all(Path(file).stem == "dropblock-inject" for file in others), others  # the command
    assert metadata.version("dropblock-inject") == dropblock_inject.__version__


def check_training() -> None:
    model, images = small_cnn(), torch.randn(8, 3, 32, 32)
    keys, parameters = list(model.state_dict()), [parameter.clone() for parameter in model.parameters()]
    request = {"stages": (-2, -1), "block_size": 0.5, "example_input": images}
    planned = [site.name for site in plan_dropblock(model, **request)]
    report = inject_dropblock(model, **request)
    assert [site.name for site in report] == planned == [site.name for site in dropblock_sites(model)]
    assert len(planned) >= 12, planned
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = KeepProbSchedule(model, total_steps=2, start=0.95)
    schedule.attach(optimizer)
    for _ in range(2):
        nn.functional.cross_entropy(model(images), torch.arange(8)).backward()
        optimizer.step()
    assert schedule.last_step == 2
    assert any((now != before).any() for now, before in zip(model.parameters(), parameters, strict=True))
    assert remove_dropblock(model) == len(planned)
    assert list(model.state_dict()) == keys


def command(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("dropblock-inject")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def check_command() -> None:
    lines = command("--version").stdout.splitlines()
    assert lines[0] == f"dropblock-inject {dropblock_inject.__version__}", lines
    assert lines[1].startswith("torch "), lines
    assert lines[2:4] == ["timm is not installed", "torchvision is not installed"], lines
    network = f"{Path(__file__).resolve()}:small_cnn"
    plan = command("plan", network, "--image-size", "32", "--stages", "-1", "--summary").stdout
    assert plan.startswith("DropBlock in Sequential: "), plan
    assert command("plan", "resnet18", code=1).stderr.endswith(MESSAGE)  # torch warns that numpy is missing
    assert "step  stage 3  stage 4" in command("schedule", "--total-steps", "10").stdout


if __name__ == "__main__":
    assert not find_spec("timm"), "this environment has timm"
    assert not find_spec("torchvision"), "this environment has torchvision"
    check_files()
    check_training()
    check_command()
    print(f"dropblock-inject {dropblock_inject.__version__} works, installed beside torch {torch.__version__} alone")
