"""The lines of the page for the training scripts of timm and torchvision, inserted into the scripts.

The scripts are in no package. Two environment variables say where they are:

    TIMM_TRAIN=.../pytorch-image-models/train.py
    TORCHVISION_TRAIN=.../vision/references/classification/train.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from digits import digits
from torchvision.transforms.functional import to_pil_image

import dropblock_inject

README = Path(__file__).parents[2] / "examples" / "README.md"
# Inserted after the lines of the page: records keep_prob at each step, and interrupts the training.
TRACE = """
def record(*_):
    import json, os
    from dropblock_inject import dropblock_sites
    values = schedule.get_last_keep_prob()
    assert all(site.live for site in dropblock_sites(model))
    with open(os.environ["TRACE"], "a") as file:
        file.write(json.dumps([schedule.last_step, values]) + "\\n")
    if schedule.last_step == int(os.environ["STOP_AT"]):
        os._exit(9)
optimizer.register_step_post_hook(record)
"""


def script(variable: str) -> Path:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} does not say where the script is")
    return Path(path)


def patched(title: str, source: str) -> str:
    """The script with each line of the page inserted before the line that the page names."""
    section = README.read_text().split(f"**{title}")[1]
    code = section.split("```python\n")[1].split("```")[0]
    imports, *pieces = re.split(r"\n# before the line: (.*)\n", code)
    lines = source.split("\n")
    for anchor, piece in zip(pieces[::2], pieces[1::2], strict=True):
        (found,) = (i for i, line in enumerate(lines) if line.strip().startswith(anchor))
        indent = lines[found][: len(lines[found]) - len(lines[found].lstrip())]
        added = piece.strip().split("\n")
        if "attach" in piece:
            added += TRACE.split("\n")
        lines[found:found] = [indent + line for line in added]
    return f"{imports.strip()}\n" + "\n".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits")
    images, labels = digits(96, 64)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = path / ("val" if index >= 64 else "train") / str(int(label)) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image((image + 1) / 2).save(file)
    return path


def run(code: str, original: Path, arguments: list[str], trace: Path, stop_at: int = -1) -> dict[int, list[float]]:
    file = trace.with_suffix(".py")
    file.write_text(code)
    environment = {
        **os.environ,
        "TRACE": str(trace),
        "STOP_AT": str(stop_at),
        "PYTHONPATH": os.pathsep.join([str(Path(dropblock_inject.__file__).parents[1]), str(original.parent)]),
    }
    done = subprocess.run(
        [sys.executable, str(file), *arguments], env=environment, cwd=trace.parent, capture_output=True, text=True
    )
    assert done.returncode == (9 if stop_at > 0 else 0), done.stdout[-2000:] + done.stderr[-4000:]
    return dict(json.loads(line) for line in trace.read_text().splitlines())


def check(whole: dict[int, list[float]], first: dict[int, list[float]], second: dict[int, list[float]]) -> None:
    """Two epochs of four updates of ResNet-18. The first run ended with update 6, the second began with update 5."""
    assert sorted(whole) == list(range(1, 9))
    assert len(whole[8]) == 12
    assert min(whole[8]) == pytest.approx(0.9)
    assert (max(first), min(second)) == (6, 5)
    assert {**first, **second} == whole


def test_timm(tmp_path: Path, folder: Path) -> None:
    original = script("TIMM_TRAIN")
    code = patched("timm's `train.py`", original.read_text())
    common = ["--data-dir", str(folder), "--model", "resnet18", "--num-classes", "10", "--img-size", "64", "-b", "16"]
    common += ["--epochs", "2", "--workers", "0", "--device", "cpu", "--warmup-epochs", "0", "--cooldown-epochs", "0"]

    def start(name: str, *more: str, stop_at: int = -1) -> dict[int, list[float]]:
        output = ["--output", str(tmp_path / name), "--experiment", "run"]
        return run(code, original, [*common, *output, *more], tmp_path / f"{name}.jsonl", stop_at)

    whole = start("whole")
    first = start("first", stop_at=6)
    second = start("second", "--resume", str(tmp_path / "first" / "run" / "last.pth.tar"))
    check(whole, first, second)


def test_torchvision(tmp_path: Path, folder: Path) -> None:
    original = script("TORCHVISION_TRAIN")
    # The script's checkpoints contain its options, which torch.load (since 2.6) reads only with weights_only=False.
    code = patched("torchvision's", original.read_text()).replace(
        'map_location="cpu")', 'map_location="cpu", weights_only=False)'
    )
    common = ["--data-path", str(folder), "--model", "resnet18", "-b", "16", "--epochs", "2", "-j", "0"]
    common += ["--device", "cpu", "--train-crop-size", "64", "--val-crop-size", "64", "--val-resize-size", "64"]

    def start(name: str, *more: str, stop_at: int = -1) -> dict[int, list[float]]:
        output = ["--output-dir", str(tmp_path / name)]
        return run(code, original, [*common, *output, *more], tmp_path / f"{name}.jsonl", stop_at)

    whole = start("whole")
    first = start("first", stop_at=6)
    second = start("second", "--resume", str(tmp_path / "first" / "checkpoint.pth"))
    check(whole, first, second)
