"""The command, as people type it."""

import gc
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dropblock_inject import plan_dropblock
from dropblock_inject.command import main as command
from dropblock_inject.command import models
from dropblock_inject.command.main import main

TESTS = Path(__file__).parents[1]
NETWORKS = TESTS / "helpers" / "networks.py"
OWN = f"{NETWORKS}:CifarResNet"


def run(capsys, *words):
    code = main(list(map(str, words)))
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def test_stages(capsys):
    headings, rule, *rows = run(capsys, "stages", "timm:resnet18").splitlines()
    assert headings.split() == ["stage", "reduction", "channels", "map", "blocks", "from", "to"]
    assert set(rule) == {"-", " "}
    assert [row.split() for row in rows] == [
        ["1", "4", "64", "56x56", "2", "layer1.0", "layer1.1"],
        ["2", "8", "128", "28x28", "2", "layer2.0", "layer2.1"],
        ["3", "16", "256", "14x14", "2", "layer3.0", "layer3.1"],
        ["4", "32", "512", "7x7", "2", "layer4.0", "layer4.1"],
    ]


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18", "timm:resnet18.a1_in1k"])
def test_plan_is_the_table_of_the_plan(capsys, name):
    table = str(plan_dropblock(timm.create_model("resnet18")))
    assert run(capsys, "plan", name) == table.replace("block_size=0.5", "--block-size 0.5") + "\n"
    assert "--block-size 0.5" not in table


def test_a_plan_of_one_site(capsys):
    words = ("plan", "torchvision:resnet18", "--include", "layer4.1.conv2", "--where", "branch")
    first, *_ = run(capsys, *words).splitlines()
    assert first == "DropBlock in ResNet: 1 site in 1 block; maps for an input of 224x224 pixels"


def test_hints_name_the_options_of_the_command(capsys):
    printed = run(capsys, "plan", "torchvision:deeplabv3_resnet50")
    assert "(--stages all reaches them)" in printed
    assert "=" not in printed


def test_every_option_of_plan(capsys):
    words = ["--stages", -2, -1, "--where", "branch", "output", "--keep-prob", 0.8, "--block-size", 0.5]
    words += [
        "--include",
        "*conv1*",
        "*output*",
        "--exclude",
        "stage2.0*",
        "--no-depth-scaling",
        "--image-size",
        32,
        48,
    ]
    data = json.loads(run(capsys, "plan", OWN, *words, "--json"))
    assert data["image_size"] == [32, 48]
    assert [site["name"] for site in data["sites"]] == [
        "stage2.1.drop_branch1",
        "stage2.1.drop_output",
        "stage3.0.drop_branch1",
        "stage3.0.drop_output",
        "stage3.1.drop_branch1",
        "stage3.1.drop_output",
    ]
    assert {site["keep_prob"] for site in data["sites"]} == {0.8}
    assert [site["block_size"] for site in data["sites"]][::5] == [[8, 12], [4, 6]]


def test_the_largest_models_are_planned_without_their_weights(capsys):
    assert "block" in run(capsys, "plan", "timm:convnext_xxlarge", "--where", "skip")


@pytest.fixture
def figures(monkeypatch):
    """The figures that the command writes into files."""
    matplotlib = pytest.importorskip("matplotlib.figure")
    written, save = [], matplotlib.Figure.savefig
    monkeypatch.setattr(matplotlib.Figure, "savefig", lambda figure, file: (save(figure, file), written.append(figure)))
    return written


@pytest.fixture
def photograph(tmp_path):
    file = tmp_path / "photograph.png"
    Image.effect_noise((80, 60), 50).convert("RGB").save(file)
    return file


def test_pictures_of_a_network(capsys, tmp_path, figures):
    run(capsys, "plan", OWN, "--image-size", 32, "--stages", -1, "-o", tmp_path / "plan.png")
    run(capsys, "stages", OWN, "--image-size", 32, "--block", "stage2.0", "-o", tmp_path / "stages.svg")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "stages.svg").read_text()
    plan, stages = figures
    assert [text.get_text() for text in plan.axes[0].texts].count("keep_prob 0.9") == 1
    assert "block stage2.0" in [text.get_text() for text in stages.axes[0].texts]


def test_the_picture_of_feature_maps(capsys, tmp_path, photograph, figures):
    options = ("--image-size", 64, "--channels", 2, "--keep-prob", 0.5, "--block-size", 3)
    run(capsys, "show", photograph, "--model", OWN, *options, "--layer", "stage1.0", "-o", tmp_path / "show.pdf")
    (figure,) = figures
    shown, *maps = (axis.images[0].get_array() for axis in figure.get_axes())
    with Image.open(photograph) as original:
        assert (np.asarray(shown) == np.asarray(original.resize((64, 64), box=(10, 0, 70, 60)))).all()
    assert len(maps) == 2 * 4
    assert "stage1.0 of CifarResNet" in figure.get_suptitle()
    assert "block_size 3x3" in figure.legends[0].get_texts()[0].get_text()


def curves(figure):
    (axis,) = figure.get_axes()
    return {line.get_label(): line.get_data() for line in axis.lines if line.get_label()[0] != "_"}


def test_the_curve_of_a_schedule(capsys, tmp_path, figures):
    options = ("--mode", "cosine", "--start", 0.95, "--warmup-steps", 30, "--keep-prob", 0.8, "--stages", -1)
    run(capsys, "schedule", "--total-steps", 100, *options, "-o", tmp_path / "schedule.svg")
    ((label, (steps, values)),) = curves(figures[0]).items()
    assert label == "stage 4 of 4, to 0.8"
    assert list(steps) == list(range(101))
    progress = [max(step - 30, 0) / 70 for step in steps]
    assert list(values) == pytest.approx([0.95 - 0.15 * (1 - math.cos(math.pi * done)) / 2 for done in progress])


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ((), {3: 0.975, 4: 0.9}),
        (("--stages", 3), {3: 0.975}),
        (("--stages", -1, 3), {3: 0.975, 4: 0.9}),
        (("--stages", -2, 3, 1), {1: 1 - 0.1 / 64, 3: 0.975}),
        (("--stages", 2, 4, "--no-depth-scaling"), {2: 0.9, 4: 0.9}),
    ],
)
def test_a_schedule_ends_where_an_injection_of_a_resnet_does(capsys, tmp_path, figures, options, ends):
    run(capsys, "schedule", "--total-steps", 10, *options, "-o", tmp_path / "schedule.png")
    found = {int(label.split()[1]): values[-1] for label, (_, values) in curves(figures[0]).items()}
    assert found == pytest.approx(ends)
    sites = plan_dropblock(
        timm.create_model("resnet18"), sorted(ends), depth_scaling="--no-depth-scaling" not in options
    )
    assert found == pytest.approx({site.stage: site.keep_prob for site in sites})


def test_a_schedule_of_as_many_steps_as_there_are_integers(capsys, tmp_path, figures):
    run(capsys, "schedule", "--total-steps", 2**63 - 1, "-o", tmp_path / "schedule.png")
    assert curves(figures[0])["stage 4 of 4, to 0.9"][1][-1] == pytest.approx(0.9)


def test_a_network_for_grey_images(capsys, tmp_path, photograph, figures):
    file = tmp_path / "grey.py"
    file.write_text("import timm\n\ndef net():\n    return timm.create_model('test_resnet', in_chans=1)\n")
    assert "stage" in run(capsys, "stages", f"{file}:net", "--image-size", 96)
    run(capsys, "show", photograph, "--model", f"{file}:net", "-o", tmp_path / "grey.png")
    file.write_text(file.read_text().replace("in_chans=1", "in_chans=5"))
    assert main(["show", str(photograph), "--model", f"{file}:net", "-o", str(tmp_path / "five.png")]) == 1
    assert "takes images of 5 channels; a picture has 3, or 1" in capsys.readouterr().err


def test_random_weights_are_said_to_be(capsys, tmp_path, photograph, figures):
    assert "its weights are random" in run(
        capsys, "show", photograph, "--model", "test_resnet", "-o", tmp_path / "show.png"
    )
    assert figures[0].get_suptitle().endswith("of test_resnet (timm), random weights")


def test_the_pictures_name_the_model(capsys, tmp_path, figures):
    run(capsys, "plan", "torchvision:resnet18", "-o", tmp_path / "plan.png")
    run(capsys, "stages", "torchvision:resnet18", "-o", tmp_path / "stages.png")
    plan, stages = figures
    assert plan.axes[0].texts[0].get_text() == "DropBlock in resnet18 (torchvision)"
    assert stages.axes[1].get_title(loc="left") == "stages of resnet18 (torchvision)"


def test_show_with_weights_of_a_file(capsys, tmp_path, photograph, figures):
    net, weights = timm.create_model("test_resnet"), tmp_path / "net.pt"
    for factor in (1.0, 0.0):
        net.load_state_dict({name: value * factor for name, value in net.state_dict().items()})
        torch.save({"state_dict": net.state_dict()}, weights)
        run(capsys, "show", photograph, "--model", "test_resnet", "--checkpoint", weights, "-o", tmp_path / "show.png")
    first, zero = (figure.get_axes()[1].images[0].get_array() for figure in figures)
    assert np.ptp(first) > 0 == np.ptp(zero)


@pytest.mark.parametrize("block_size", [5, 6])
def test_bench(capsys, block_size):
    out = run(capsys, "bench", "--shape", 2, 8, 14, 14, "--block-size", block_size, "--seconds", 0.1)
    assert f"2x8x14x14, keep_prob 0.9, block {block_size}" in out
    rows = dict([*line.rsplit(None, 2)[:1], line.rsplit(None, 2)[1:]] for line in out.splitlines()[4:])
    torchvision = ["torchvision"] if block_size % 2 else []  # it refuses even blocks
    assert list(rows) == ["x * scalar", "dropblock_inject", "F.dropout", *torchvision]
    assert rows["x * scalar"][1] == "1.00"
    assert all(float(ms) > 0 for ms, _ in rows.values())


def test_what_the_code_of_a_model_prints_is_no_part_of_the_output(capsys, tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "import timm\nprint('one')\n\ndef net():\n    print('two')\n    return timm.create_model('resnet18')\n"
    )
    assert main(["plan", f"{file}:net", "--json"]) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["sites"]) == 12
    assert printed.err == "one\ntwo\n"


OWN_CODE = [
    ("import sys\nsys.exit(0)", r"net\.py failed: SystemExit: 0"),
    ("def net():\n    exit()", r"net\(\) of .*net\.py failed: SystemExit: None"),
    ("def net():\n    raise KeyError('one\\ntwo')", r"net\(\) of .*net\.py failed: KeyError: 'one.*two'"),
    ("def net():\n    raise RuntimeError('one\\ntwo')", r"net\(\) of .*net\.py failed: RuntimeError: one$"),
    (
        "from torch import nn\n\nclass Net(nn.Conv2d):\n    def forward(self, x):\n"
        "        raise RuntimeError('no memory')\n\ndef net():\n    return nn.Sequential(Net(3, 3, 3))",
        r"Sequential on a picture of 64x64 pixels failed: RuntimeError: no memory$",
    ),
]


@pytest.mark.parametrize(("code", "message"), OWN_CODE)
def test_errors_in_the_code_of_a_model_are_said_in_a_line(capsys, tmp_path, photograph, code, message):
    file = tmp_path / "net.py"
    file.write_text(code)
    words = ["show", photograph, "--model", f"{file}:net", "--layer", "0", "--image-size", 64, "-o", tmp_path / "x.png"]
    assert main(list(map(str, words))) == 1
    assert re.match(rf"dropblock-inject: error: .*{message}", capsys.readouterr().err)


def test_errors_of_a_library_are_said_in_a_line(capsys, monkeypatch):
    def fail(*names, **options):
        raise RuntimeError("no operator nms\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(models, "import_module", fail)
        assert main(["plan", "torchvision:resnet18"]) == 1
        assert capsys.readouterr().err == (
            "dropblock-inject: error: import torchvision failed: RuntimeError: no operator nms\n"
        )
    monkeypatch.setattr(timm, "create_model", fail)
    assert main(["plan", "timm:resnet18"]) == 1
    assert capsys.readouterr().err == (
        "dropblock-inject: error: timm failed to build resnet18: RuntimeError: no operator nms\n"
    )


MISTAKES = [
    (["plan", "resnet999"], r"unknown model resnet999; did you mean .*resnet50"),
    (["plan", "timm:vgg_16"], r"unknown model timm:vgg_16; did you mean .*vgg16"),
    (["plan", "net.py"], "net.py is a file; say which of its functions makes the model: net.py:FUNCTION"),
    (["plan", "notes.txt:make"], "unknown library in notes.txt:make; .*or FILE.py:FUNCTION"),
    (
        ["plan", "resnet18", "--image-size", "9", "9", "9"],
        "of 9x9x9 pixels for ResNet, which takes images with 2 sides",
    ),
    (
        ["plan", "resnet18", "--image-size", "32"],
        "last two, 2 and 3; .*larger",
    ),
    (["plan", "resnet18", "--include", "lair"], "--include 'lair' matches none .*closest: layer"),
    (["plan", "resnet18", "--stages", "3", "--include", "layer4*"], "--stages all reaches what it matches outside"),
    (
        ["plan", "resnet18", "--include", "*", "--exclude", "*"],
        r"--include '\*' and --exclude '\*' together leave none",
    ),
    (
        ["stages", "resnet18", "--block", "layer1.0"],
        "--block chooses the block that the picture shows; give -o FILE.png too",
    ),
    (["show", ".", "--model", "resnet18", "-o", "a.png"], ". is a folder; name a picture"),
    (["stages", "keras:resnet50"], "unknown library in keras:resnet50; use timm:NAME or torchvision:NAME"),
    (["stages", "nowhere.py:net"], "no file nowhere.py"),
    (
        ["stages", f"{NETWORKS}:CifarResnet"],
        "no function 'CifarResnet' in .*; did you mean CifarResNet",
    ),
    (
        ["stages", f"{NETWORKS}:example_for"],
        r"example_for\(\) of .* failed: TypeError: .*missing 1 ",
    ),
    (["stages", f"{NETWORKS}:Callable"], "Callable.. of .* failed|not a torch.nn.Module"),
    (["plan", "timm:vit_tiny_patch16_224"], "no convolutional trunk in VisionTransformer"),
    (["plan", "timm:resnet18", "--stages", "7"], "no stage 7 in the model"),
    (["plan", "timm:resnet18", "--include", "conv9"], "conv9"),
    (["plan", "timm:resnet18", "--keep-prob", "0"], r"keep_prob must be in \(0, 1\], got 0"),
    (["plan", "timm:resnet18", "--block-size", "0"], "block_size must be at least 1, got 0"),
    (["show", "nowhere.png", "--model", "timm:test_resnet", "-o", "x.png"], "no file nowhere.png"),
    (["show", __file__, "--model", "timm:test_resnet", "-o", "x.png"], "is no picture that can be read"),
    (
        ["show", "{png}", "--model", "timm:test_resnet", "--layer", "layer9", "-o", "x.png"],
        "no layer .layer9.*did you mean layer",
    ),
    (["show", "{png}", "--model", "timm:test_resnet", "--layer", "fc", "-o", "x.png"], "fc puts out no feature maps"),
    (["show", "{png}", "--model", "timm:test_resnet", "-o", "{tmp}/x.doc"], "x.doc: Format 'doc' is not supported"),
    (["show", "{png}", "--model", "timm:test_resnet", "-o", "{tmp}/no/x.png"], "No such file or directory"),
    (
        ["show", "{png}", "--model", "timm:test_resnet", "--checkpoint", "{png}", "-o", "x.png"],
        "is no readable checkpoint",
    ),
    (["show", "{png}", "--model", "timm:test_resnet", "--checkpoint", "no.pt", "-o", "x.png"], "no file no.pt"),
    (
        ["show", "{png}", "--model", OWN, "--pretrained", "-o", "x.png"],
        "pretrained weights are for models of a library",
    ),
    (
        ["schedule", "--total-steps", "9", "--start", "0", "-o", "x.png"],
        r"start must be a keep_prob in \(0, 1\], got 0",
    ),
    (["schedule", "--total-steps", "10", "--keep-prob", "2", "-o", "x.png"], r"keep_prob must be in \(0, 1\], got 2"),
    (["bench", "--keep-prob", "2"], r"keep_prob must be in \(0, 1\], got 2"),
    (["schedule", "--total-steps", "10", "--stages", "0", "5", "-5", "-o", "x.png"], "no stage 0, 5, -5: .* 1 to 4"),
    (["bench", "--device", "nowhere"], "maps of 32x1024x14x14 on nowhere: "),
    (["bench", "--shape", "1000000", "1000000", "1000", "1000"], "maps of 1000000x1000000x1000x1000 on cpu: .*memory"),
    (["stages", "resnet18", "--image-size", "1000000000"], "an image of 1000000000x1000000000 pixels is too large"),
    (
        ["show", "{png}", "--model", "resnet18", "--image-size", "9", "9", "9", "-o", "x.png"],
        "an image of 9x9x9 pixels",
    ),
]


@pytest.mark.parametrize(
    ("words", "message"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_mistakes_get_a_sentence_and_no_traceback(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    png = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(png)
    code = main([word.format(png=png, tmp=tmp_path) for word in words])
    printed = capsys.readouterr()
    assert code == 1
    assert printed.out == ""
    assert re.match(rf"dropblock-inject: error: .*{message}", printed.err, re.S), printed.err


def test_a_model_that_takes_more_than_an_image(capsys, tmp_path):
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n\nclass Net(nn.Conv2d):\n    def forward(self, image, scale):\n"
        "        return super().forward(image) * scale\n\ndef net():\n    return Net(3, 8, 3)\n"
    )
    assert main(["plan", f"{file}:net"]) == 1
    assert re.search(
        r"Net could not be traced .*here \(image, scale\).*\. This command can only set the size of an image, with "
        "--image-size\n$",
        capsys.readouterr().err,
    )


@pytest.fixture
def run_process(monkeypatch):
    """The function that the process of the command runs; it raises SystemExit in place of ending the process."""

    def run_process(*words):
        monkeypatch.setattr(sys, "argv", ["dropblock-inject", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            command.run()
        return ended.value.code

    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(gc, "disable", lambda: None)
    return run_process


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream(capsys, tmp_path, monkeypatch, figures, run_process, closed):
    other = {"stdout": sys.stderr, "stderr": sys.stdout}[closed]
    monkeypatch.setattr(sys, closed, None)  # as Python does for `>&-`
    assert run_process("stages", OWN, "--image-size", 32, "-o", tmp_path / "stages.png") == 0
    getattr(sys, closed).close()
    assert len(figures) == 1
    assert ("stage3.0" in capsys.readouterr().out) == (other is sys.stdout)


def test_a_name_that_the_terminal_cannot_show(tmp_path, monkeypatch, run_process):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\nfrom networks import CifarResNet\n\ndef net():\n    net = torch.nn.Sequential()\n"
        "    net.add_module('größe', CifarResNet())\n    return net\n"
    )
    assert run_process("stages", f"{file}:net", "--image-size", 32) == 0
    assert "gr\\xf6\\xdfe.stage3.0" in out.buffer.getvalue().decode("ascii")


def test_as_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "dropblock_inject"]
    done = subprocess.run([*command, "stages", OWN, "--image-size", "32"], capture_output=True, text=True, cwd=TESTS)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stage3.0" in done.stdout
    done = subprocess.run([*command, "stages", "nowhere.py:net"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dropblock-inject: error: no file nowhere.py\n"
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "examples:" in done.stdout
