"""The main example: its output, its files, and its answers to mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import finetune
import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from dropblock_inject import dropblock_sites
from lib import checkpoint, models
from lib.data import open_image

ROOT = Path(__file__).parents[2]

# A small network (timm has it for tests) and few images: 3 steps per epoch.
SMALL = ["--model", "test_resnet", "--image-size", "64", "--max-samples", "48", "--batch-size", "16", "--epochs", "2"]


def run_script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "finetune.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def message_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the script says when it refuses; checks that it does, in one line and with a failing exit status."""
    with pytest.raises(SystemExit) as exit_:
        finetune.main(arguments)
    if isinstance(exit_.value.code, str):  # goes to stderr, with exit status 1
        assert exit_.value.code.startswith("error: ")
        assert "\n" not in exit_.value.code
        return exit_.value.code
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def accuracies(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(before|after|removed|plain) +accuracy ([\d.]+%)", output, flags=re.MULTILINE))


def test_default_run(tmp_path: Path) -> None:
    """As a user starts it, with fewer and smaller images; from a directory of the user's."""
    run = run_script("--epochs", "1", "--max-samples", "32", "--batch-size", "16", "--image-size", "64", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "tiger cat" in run.stdout  # the weights are the real ones
    assert "digits: 32 training and 32 validation images of 10 classes" in run.stdout
    assert "blocks.6.0" in run.stdout  # the table
    assert "keep_prob 0.900" in run.stdout
    assert run.stderr == ""  # no progress bar where there is no terminal
    found = accuracies(run.stdout)
    assert found.keys() == {"before", "after", "removed", "plain"}
    assert found["after"] == found["removed"] == found["plain"]

    assert sorted(path.name for path in (tmp_path / "runs" / "finetune").iterdir()) == ["last.pt", "model.pt"]
    state = torch.load(tmp_path / "runs" / "finetune" / "model.pt", weights_only=True)
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=10)
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state, strict=True)


def test_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From random weights, so that what counts is the training."""
    arguments = "--model test_efficientnet --image-size 64 --max-samples 320 --lr 3e-3 --epochs 4"
    finetune.main([*arguments.split(), "--output", str(tmp_path)])
    found = {name: float(value.rstrip("%")) for name, value in accuracies(capsys.readouterr().out).items()}
    assert found["before"] < 25
    assert found["after"] > 50


def test_recalibrated_statistics_are_those_of_whole_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only BatchNorm's statistics change, and without DropBlock they become other ones."""
    states = {}
    for name, options in {"off": [], "on": ["--recalibrate"], "off again": []}.items():
        finetune.main([*SMALL, "--keep-prob", "0.3", *options, "--output", str(tmp_path / name)])
        assert ("dropped  accuracy" in capsys.readouterr().out) == bool(options)
        states[name] = torch.load(tmp_path / name / "model.pt", weights_only=True)
    differing = {key for key, value in states["off"].items() if not torch.equal(value, states["on"][key])}
    assert differing
    assert {key.rpartition(".")[2] for key in differing} == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(torch.equal(value, states["off again"][key]) for key, value in states["off"].items())


def test_recalibration_pauses_dropblock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def update_bn(loader, model: nn.Module, device: torch.device) -> None:
        seen.append({site.effective_keep_prob for site in dropblock_sites(model.train())})

    monkeypatch.setattr(finetune, "update_bn", update_bn)
    finetune.main([*SMALL, "--recalibrate", "--output", str(tmp_path)])
    assert seen == [{1.0}]


def test_monte_carlo_passes_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They drop: with hardly anything kept the network guesses, where one pass in eval mode is as before."""
    arguments = "--model test_efficientnet --image-size 64 --max-samples 320 --lr 3e-3 --epochs 4 --keep-prob 0.02"
    finetune.main([*arguments.split(), "--stages", "4", "--passes", "3", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    (passes,) = re.findall(r"^passes   accuracy ([\d.]+)%, the mean of 3 that drop", printed, flags=re.MULTILINE)
    found = accuracies(printed)
    assert found["after"] == found["removed"] == found["plain"]
    assert passes + "%" != found["after"]


def test_resume_refuses_other_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune.main([*SMALL, "--output", str(tmp_path)])
    last = tmp_path / "last.pt"
    before = last.read_bytes()
    for options, expected in {
        "--epochs 3": "has --epochs 2, not 3; leave --epochs out",
        "--keep-prob 0.8": "has --keep-prob 0.9, not 0.8; leave --keep-prob out",
        "--where skip": "has --where ['paper'], not ['skip']; leave --where out",
        "--max-samples 64": "has --max-samples 48, not 64; leave --max-samples out",
    }.items():
        assert expected in message_of(["--resume", str(last), *options.split()], capsys)
    message = message_of(["--resume", str(tmp_path / "model.pt")], capsys)
    assert message.endswith("model.pt is no last.pt of finetune.py; weights go in --checkpoint")

    state = torch.load(last, weights_only=True)
    foreign = tmp_path / "foreign.pt"
    torch.save({**state, "settings": {**state["settings"], "script": "cifar100.py"}}, foreign)
    assert "foreign.pt is no last.pt of finetune.py" in message_of(["--resume", str(foreign)], capsys)
    for part, damage in {"keep_prob_schedule": {}, "optimizer": {"state": {}}, "model": {}, "random": {}}.items():
        torch.save({**state, part: damage}, foreign)
        assert "foreign.pt does not fit" in message_of(["--resume", str(foreign)], capsys)
        foreign.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "model.pt"]
    assert last.read_bytes() == before


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("option", ["--checkpoint", "--resume"])
@pytest.mark.parametrize(
    "kind", ["missing", "empty", "noise", "text", "truncated", "flipped", "harmful", "list", "other model", "nan"]
)
def test_bad_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, option: str) -> None:
    file, harm, output = tmp_path / "weights.pt", tmp_path / "harm", tmp_path / "output"
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    torch.save(state, file)
    data = file.read_bytes()
    if kind == "missing":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "noise":
        file.write_bytes(bytes(range(256)) * 16)
    elif kind == "text":
        file.write_text("<html>404 not found</html>")
    elif kind == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif kind == "flipped":
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes(255 - byte for byte in data[middle : middle + 64]) + data[middle + 64 :])
    elif kind == "harmful":
        torch.save({"state_dict": Harmful(harm)}, file)
    elif kind == "list":
        torch.save([1, 2, 3], file)
    elif kind == "other model":
        torch.save(torchvision.models.resnet18().state_dict(), file)
    elif kind == "nan":
        first = next(iter(state))
        torch.save({**state, first: state[first] * float("nan")}, file)
    message = message_of([*SMALL, option, str(file), "--output", str(output)], capsys)
    assert str(file) in message
    assert not output.exists()
    assert not harm.exists()


def test_bad_checkpoint_at_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"not a checkpoint")
    run = run_script("--checkpoint", "bad.pt", cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr == (
        "error: bad.pt is no readable checkpoint: corrupt, cut off or not made of tensors and plain values\n"
    )
    assert os.listdir(tmp_path) == ["bad.pt"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--model resnet1O", "error: unknown model resnet1O; did you mean resnet1"),
        ("--model torchvision:resnet10t", "error: unknown model torchvision:resnet10t; did you mean resnet10"),
        ("--model keras:resnet18", "error: unknown library in keras:resnet18; use timm:NAME or torchvision:"),
        ("--model qqqqqqqq", "error: unknown model qqqqqqqq; timm.list_models("),
        ("--dataset cifar", "argument --dataset: invalid choice: 'cifar' (choose from "),
        ("--dataset cifar10", "error: cifar10 is not in data/; pass --download, or --root with its folder"),
        (
            "--data-dir nowhere",
            "error: no folder nowhere; --data-dir needs train/ and val/, in each a folder per class",
        ),
        ("--data-dir a --dataset mnist", "error: --data-dir and --dataset exclude each other"),
        ("--pretrained --checkpoint a", "error: --pretrained and --checkpoint exclude each other"),
        ("--max-samples 1", "error: there must be two training images or more"),
        ("--epochs 0", "argument --epochs: must be at least 1, got 0"),
        ("--lr 0", "argument --lr: must be above 0 and at most 1e6, got 0"),
        ("--lr 1e308", "argument --lr: must be above 0 and at most 1e6, got 1e308"),
        ("--seed 99999999999999999999", "argument --seed: must be at most 9223372036854775807, got 999999"),
        ("--image-size 100000", "argument --image-size: must be at most 10000, got 100000"),
        ("--block-size big", "argument --block-size: must be pixels or a share of the map, got 'big'"),
        ("--keep-prob 0", "error: keep_prob must be in (0, 1], got 0.0"),
        ("--device abacus", "error: no device abacus: "),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in options else ["--model", "test_resnet"]
    assert expected in message_of([*model, *options.split()], capsys)
    assert not any(tmp_path.iterdir())


def make_folder(path: Path, classes: dict[str, tuple[int, int, int]], images: int = 8) -> Path:
    for part in ("train", "val"):
        for name, color in classes.items():
            (path / part / name).mkdir(parents=True)
            for i in range(images):
                Image.new("RGB", (40 + i, 36), color).save(path / part / name / f"{i}.png")
    return path


def test_image_folder_and_torchvision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "images", {"red": (200, 30, 40), "green": (30, 190, 50)})
    output = tmp_path / "output"
    arguments = ["--data-dir", str(folder), "--model", "torchvision:resnet18", "--image-size", "32", "--epochs", "1"]
    finetune.main([*arguments, "--batch-size", "4", "--stages", "-1", "--where", "output", "--output", str(output)])
    found = accuracies(capsys.readouterr().out)
    assert found["after"] == found["removed"] == found["plain"]
    plain = torchvision.models.resnet18(num_classes=2)
    plain.load_state_dict(torch.load(output / "model.pt", weights_only=True), strict=True)

    # These weights start another training: with their classifier, or for other classes with a new one.
    two, three = (models.build_model("torchvision:resnet18", classes) for classes in (2, 3))
    for model in (two, three):
        models.load_weights(model, str(output / "model.pt"))
        assert torch.equal(model.get_parameter("conv1.weight"), plain.conv1.weight)
    assert torch.equal(two.get_parameter("fc.weight"), plain.fc.weight)
    assert three.get_parameter("fc.weight").shape == (3, 512)


def test_bad_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "output"), *SMALL]

    folder = make_folder(tmp_path / "one", {"red": (200, 0, 0)})
    assert "has only the class red; there must be two" in message_of(["--data-dir", str(folder), *output], capsys)

    folder = make_folder(tmp_path / "more", {"red": (200, 0, 0), "blue": (0, 0, 200)})
    (folder / "val" / "blue").rename(folder / "val" / "bleu")
    message = message_of(["--data-dir", str(folder), *output], capsys)
    assert message.endswith("differ in their classes: only one has bleu, blue")
    (folder / "val" / "bleu").rename(folder / "val" / "blue")

    (folder / "val" / "red" / "3.png").write_bytes(b"no image")
    message = message_of(["--data-dir", str(folder), *output], capsys)
    assert "3.png is not a readable image" in message

    for image in (folder / "train" / "red").iterdir():
        image.unlink()
    assert "Found no valid file for the classes red" in message_of(["--data-dir", str(folder), *output], capsys)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121", "vgg11"])
def test_classifiers_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        model = models.build_model(f"torchvision:{name}", 7).eval()
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 7)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing more bytes than that to a file fails, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_checkpoints_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "weights.pt"
    checkpoint.write_file(nn.Linear(2, 2).state_dict(), file)
    before = file.read_bytes()
    message = "weights.pt cannot be written: File too large; the file from before is unchanged"
    with file_size_limit(50_000), pytest.raises(SystemExit, match=message):
        checkpoint.write_file(nn.Linear(200, 200).state_dict(), file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["weights.pt"]
    with pytest.raises(SystemExit, match=r"error: .*weights.pt/a.pt cannot be written: "):
        checkpoint.write_file({}, file / "a.pt")


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "output"
    with file_size_limit(200_000):
        message = message_of([*SMALL, "--output", str(output)], capsys)
    assert message == f"error: {output / 'last.pt'} cannot be written: File too large"
    assert os.listdir(output) == []


def test_an_image_alone_in_its_batch_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--model resnet10t --image-size 32 --max-samples 8 --batch-size 1 --stages -1"
    message = message_of([*arguments.split(), "--output", str(tmp_path)], capsys)
    assert message.startswith("error: batch normalisation needs more than one value per channel")
    assert "give a larger --batch-size or --image-size" in message


def test_a_loss_that_is_no_number_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = message_of([*SMALL, "--lr", "1e6", "--output", str(tmp_path)], capsys)
    assert message == "error: the loss is infinite or not a number; try a smaller --lr"


GREYS = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("8 bits.png", np.round(GREYS * 255).astype("uint8")),
        ("16 bits.png", np.round(GREYS * 65535).astype("uint16")),
        ("16 bits.tif", np.round(GREYS * 65535).astype("uint16")),
        ("16 bits, big-endian.tif", np.round(GREYS * 65535).astype(">u2")),
        ("16 bits.pgm", np.round(GREYS * 65535).astype("uint16")),
        ("32 bits with values of 8.tif", np.round(GREYS * 255).astype("int32")),
        ("32 bits with values of 16.tif", np.round(GREYS * 65535).astype("int32")),
        ("32 bits.tif", np.round(GREYS * (2**31 - 1)).astype("int32")),
        ("float.tif", GREYS.astype("float32")),
        ("float to 255.tif", (GREYS * 255).astype("float32")),
    ],
)
def test_greys_keep_their_values(tmp_path: Path, name: str, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / name)
    image = open_image(str(tmp_path / name))
    assert image.mode == "RGB"
    for channel in image.split():
        assert np.abs(np.asarray(channel) - GREYS * 255).max() <= 0.51


def test_dark_greys_stay_dark(tmp_path: Path) -> None:
    """A file of 16 bits says where white is, however dark its image."""
    for name in ("dark.png", "dark.tif", "dark.pgm"):
        Image.fromarray(np.full((8, 8), 200, dtype="uint16")).save(tmp_path / name)
        assert np.asarray(open_image(str(tmp_path / name))).max() == 1


@pytest.mark.parametrize("values", [GREYS - 0.5, GREYS * 1.5, GREYS * 1e6, GREYS * np.nan])
def test_greys_without_a_known_white_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype("float32")).save(tmp_path / "odd.tif")
    with pytest.raises(
        OSError, match=r"odd.tif is not a readable image \(grey values from .* white may be 1, 255, 65535"
    ):
        open_image(str(tmp_path / "odd.tif"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.round(GREYS[:, :5] * 255).astype("uint8")
    turned = {  # how a camera stores it, by the definition of the EXIF tag
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(turned))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(str(tmp_path / "turned.png")))[..., 0], upright)


def test_the_weights_of_the_other_pretrained_network_are_real() -> None:
    assert "cat" in models.describe_photograph(models.imagenet_lite(1))
