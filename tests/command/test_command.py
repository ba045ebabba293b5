"""The command, as people type it."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
from networks import CifarResNet
from PIL import Image

from dropblock_inject import find_stages, plan_dropblock
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
    out = run(capsys, "stages", "timm:resnet18")
    assert [line.split() for line in out.splitlines()] == [
        ["stage", "reduction", "channels", "map", "blocks", "from", "to"],
        ["1", "4", "64", "56x56", "2", "layer1.0", "layer1.1"],
        ["2", "8", "128", "28x28", "2", "layer2.0", "layer2.1"],
        ["3", "16", "256", "14x14", "2", "layer3.0", "layer3.1"],
        ["4", "32", "512", "7x7", "2", "layer4.0", "layer4.1"],
    ]


def test_stages_as_data(capsys):
    found = json.loads(run(capsys, "stages", OWN, "--image-size", 32, "--json"))
    stages = find_stages(CifarResNet(), torch.empty(1, 3, 32, 32))
    assert found == json.loads(json.dumps([asdict(stage) for stage in stages]))
    assert [block["name"] for block in found[2]["blocks"]] == ["stage3.0", "stage3.1"]


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18", "timm:resnet18.a1_in1k"])
def test_plan_is_the_table_of_the_plan(capsys, name):
    assert run(capsys, "plan", name) == f"{plan_dropblock(timm.create_model('resnet18'))}\n"


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
        "stage2.1.conv1.drop_branch",
        "stage2.1.drop_output",
        "stage3.0.conv1.drop_branch",
        "stage3.0.drop_output",
        "stage3.1.conv1.drop_branch",
        "stage3.1.drop_output",
    ]
    assert {site["keep_prob"] for site in data["sites"]} == {0.8}
    assert [site["block_size"] for site in data["sites"]][::5] == [[8, 12], [4, 6]]


def test_the_largest_models_are_planned_without_their_weights(capsys):
    assert "block" in run(capsys, "plan", "timm:convnext_xxlarge", "--where", "skip")


def test_pictures(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    photograph = tmp_path / "photograph.png"
    Image.effect_noise((80, 60), 50).save(photograph)
    run(capsys, "show", photograph, "--model", OWN, "--image-size", 64, "-o", tmp_path / "show.png")
    run(capsys, "show", photograph, "--model", OWN, "--layer", "stage1.0", "-o", tmp_path / "layer.pdf")
    run(capsys, "schedule", "--total-steps", 100, "--mode", "cosine", "-o", tmp_path / "schedule.svg")
    run(capsys, "plan", OWN, "--image-size", 32, "--stages", -1, "-o", tmp_path / "plan.png")
    run(capsys, "stages", OWN, "--image-size", 32, "--block", "stage2.0", "-o", tmp_path / "stages.png")
    names = ("show.png", "layer.pdf", "schedule.svg", "plan.png", "stages.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in names)


def test_a_network_for_grey_images(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    photograph, file = tmp_path / "photograph.png", tmp_path / "grey.py"
    Image.effect_noise((80, 60), 50).convert("RGB").save(photograph)
    file.write_text("import timm\n\ndef net():\n    return timm.create_model('test_resnet', in_chans=1)\n")
    assert "stage" in run(capsys, "stages", f"{file}:net", "--image-size", 96)
    run(capsys, "show", photograph, "--model", f"{file}:net", "-o", tmp_path / "grey.png")
    file.write_text(file.read_text().replace("in_chans=1", "in_chans=5"))
    assert main(["show", str(photograph), "--model", f"{file}:net", "-o", str(tmp_path / "five.png")]) == 1
    assert "takes images of 5 channels; a picture has 3, or 1" in capsys.readouterr().err


def test_random_weights_are_said_to_be(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    photograph = tmp_path / "photograph.png"
    Image.effect_noise((80, 60), 50).save(photograph)
    assert main(["show", str(photograph), "--model", "test_resnet", "-o", str(tmp_path / "show.png")]) == 0
    assert "its weights are random" in capsys.readouterr().err


def test_show_with_weights_of_a_file(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    photograph, weights = tmp_path / "photograph.png", tmp_path / "net.pt"
    Image.effect_noise((80, 80), 50).convert("RGB").save(photograph)
    net = timm.create_model("test_resnet")
    written = []
    for factor in (1.0, 0.0):
        net.load_state_dict({name: value * factor for name, value in net.state_dict().items()})
        torch.save({"state_dict": net.state_dict()}, weights)
        picture = tmp_path / f"{factor}.png"
        run(capsys, "show", photograph, "--model", "test_resnet", "--checkpoint", weights, "-o", picture)
        written.append(picture.read_bytes())
    assert written[0] != written[1]


def test_bench(capsys):
    out = run(capsys, "bench", "--shape", 2, 8, 14, 14, "--seconds", 0.1)
    rows = dict([*line.rsplit(None, 2)[:1], line.rsplit(None, 2)[1:]] for line in out.splitlines()[3:])
    assert list(rows) == ["x * scalar", "dropblock_inject", "F.dropout", "torchvision"]
    assert rows["x * scalar"][1] == "1.00"
    assert all(float(ms) > 0 for ms, _ in rows.values())


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
        "--stages -2 -1 means its last two, 2 and 3; .*give a larger --image-size",
    ),
    (["plan", "resnet18", "--include", "lair"], "dropblock-inject plan MODEL lists them all"),
    (["stages", "resnet18", "--block", "layer1.0"], "--block says what to draw; give -o FILE.png too"),
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
    (["schedule", "--total-steps", "0", "-o", "x.png"], "total_steps must be at least 1, got 0"),
    (["schedule", "--total-steps", "10", "--keep-prob", "2", "-o", "x.png"], r"keep_prob must be in \(0, 1\], got 2"),
    (["bench", "--keep-prob", "2"], r"keep_prob must be in \(0, 1\], got 2"),
    (["bench", "--device", "nowhere"], "nowhere"),
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
    assert printed.out == "" or words[0] == "bench"
    assert re.match(rf"dropblock-inject: error: .*{message}", printed.err, re.S), printed.err


@pytest.mark.parametrize(
    "words",
    [
        *([], ["draw"], ["plan"], ["plan", "resnet18", "--where", "there"], ["plan", "x", "--k"]),
        *(["plan", "resnet18", "--stages", "3,4"], ["stages", "resnet18", "-o", "noext"], ["stages", "x", "-o", "."]),
        ["show", "a.png", "--model", "resnet18", "-o", "b.png", "--channels", "9999"],
    ],
)
def test_wrong_usage_ends_with_2(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: dropblock-inject" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_colours_on_a_terminal_only(capsys, monkeypatch, terminal):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert ("\033[1m" in run(capsys, "stages", OWN, "--image-size", 32)) == terminal
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in run(capsys, "stages", OWN, "--image-size", 32)


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
