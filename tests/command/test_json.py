"""What the command prints as data, and what it says of the library of a model."""

import json
import re
from dataclasses import asdict

import pytest
import timm
import torch
from networks import CifarResNet
from test_command import NETWORKS, OWN, figures, run  # noqa: F401
from torchvision.models import densenet121

from dropblock_inject import find_stages, plan_dropblock
from dropblock_inject.command.main import main


def data_of(capsys, *words):
    return json.loads(run(capsys, *words, "--json"))


def test_stages(capsys):
    found = data_of(capsys, "stages", OWN, "--image-size", 32)
    stages = find_stages(CifarResNet(), torch.empty(1, 3, 32, 32))
    assert found["stages"] == json.loads(json.dumps([asdict(stage) for stage in stages]))
    assert [block["name"] for block in found["stages"][2]["blocks"]] == ["stage3.0", "stage3.1"]
    assert (found["source"], found["model"], found["image_size"]) == (OWN, "CifarResNet", [32, 32])


def test_plan(capsys):
    found = data_of(capsys, "plan", "timm:resnet18", "--where", "skip")
    plan = plan_dropblock(timm.create_model("resnet18"), where="skip")
    assert found == {"source": "timm:resnet18", **json.loads(json.dumps(plan.as_dict()))}


def test_a_summary_counts_the_sites_of_the_plan(capsys):
    words = ("plan", "torchvision:densenet121", "--stages", "all", "--where", "paper", "output", "end", "--summary")
    found = data_of(capsys, *words)
    plan = plan_dropblock(densenet121(), stages=None, where=["paper", "output", "end"])
    assert found["image_size"] == [224, 224]
    assert [row["stage"] for row in found["stages"]] == [1, 2, 3, 4, "stem", "transition"]
    for row in found["stages"]:
        sites = [site for site in plan if (site.stage or site.part) == row["stage"]]
        assert row["blocks"] == len({site.block for site in sites})
        assert row["sites"] == len(sites) == sum(row["by_kind"].values())
        assert row["by_kind"].get("branch", 0) == sum(site.where == "branch" for site in sites)
        assert row["whole_maps"] == sum(site.block_size == site.map_size for site in sites)
        assert {tuple(size) for size in row["map_sizes"]} == {site.map_size for site in sites}
        assert {tuple(size) for size in row["block_sizes"]} == {site.block_size for site in sites}
        assert {site.keep_prob for site in sites} == {row["keep_prob"]}
    total = found["total"]
    assert total["sites"] == len(plan) == sum(total["by_kind"].values())
    assert total["blocks"] == len({site.block for site in plan})
    assert total["whole_maps"] == sum(row["whole_maps"] for row in found["stages"])

    lines = run(capsys, *words).splitlines()
    assert lines[0] == str(plan).splitlines()[0]
    assert lines[2].split()[:3] == ["stage", "blocks", "sites"]
    table = [line.split() for line in lines[4 : 4 + len(found["stages"]) + 1]]
    assert [row[:3] for row in table[:-1]] == [
        [str(row[key]) for key in ("stage", "blocks", "sites")] for row in found["stages"]
    ]
    assert table[-1] == ["all", *map(str, (total["blocks"], total["sites"], *total["by_kind"].values()))]
    assert lines[-2:] == run(capsys, *words[:-1]).splitlines()[-2:]  # the notes below both tables


def test_a_summary_in_lines(capsys):
    assert run(capsys, "plan", "torchvision:resnet50", "--summary") == (
        "DropBlock in ResNet: 36 sites in 9 blocks; maps for an input of 224x224 pixels\n\n"
        "stage  blocks  sites  branch  skip           map  block  keep_prob\n"
        "-----  ------  -----  ------  ----  ------------  -----  ---------\n"
        "    3       6     24      18     6  28x28, 14x14    7x7      0.975\n"
        "    4       3     12       9     3    14x14, 7x7   7x7*        0.9\n"
        "  all       9     36      27     9\n\n"
        "* 11 of 36 sites drop whole channels, as Dropout2d does, because the block is as large as the map\n"
        "  (--block-size 0.5 makes it half of each map)\n"
    )


def test_schedule(capsys):
    options = ("--total-steps", 1000, "--warmup-steps", 50, "--start", 0.95, "--stages", 2, -1)
    heading, _, headings, _, *rows = run(capsys, "schedule", *options).splitlines()
    assert heading == "linear schedule over 1000 optimizer steps: keep_prob of each stage"
    assert re.split(" {2,}", headings) == ["step", "stage 2", "stage 4"]
    steps = [0, 50, *range(100, 1001, 100)]
    ends = {2: 1 - 0.1 / 16, 4: 0.9}
    values = {stage: [0.95 + (end - 0.95) * max(s - 50, 0) / 950 for s in steps] for stage, end in ends.items()}
    table = [list(map(float, row.split())) for row in rows]
    assert table == [pytest.approx(row, rel=1e-3) for row in zip(steps, *values.values(), strict=True)]
    found = data_of(capsys, "schedule", *options)
    assert found["keep_prob"] == {str(stage): pytest.approx(row) for stage, row in values.items()}
    settings = {"mode": "linear", "start": 0.95, "warmup_steps": 50, "total_steps": 1000, "steps": steps}
    assert {name: found[name] for name in settings} == settings


@pytest.mark.parametrize(("total", "steps"), [(1, [0, 1]), (3, [0, 1, 2, 3]), (2**63 - 1, None)])
def test_a_schedule_of_few_steps_or_very_many(capsys, total, steps):
    found = data_of(capsys, "schedule", "--total-steps", total)
    assert found["steps"] == steps or len(found["steps"]) == 11
    assert (found["steps"][0], found["steps"][-1]) == (0, total)


def test_bench(capsys):
    found = data_of(capsys, "bench", "--shape", 2, 8, 14, 14, "--seconds", 0.1)
    assert (found["shape"], found["keep_prob"], found["block_size"]) == ([2, 8, 14, 14], 0.9, 7)
    assert torch.__version__ in found["machine"]
    assert list(found["seconds"]) == ["x * scalar", "dropblock_inject", "F.dropout", "torchvision"]
    assert all(0 < seconds < 60 for seconds in found["seconds"].values())


def test_a_picture_leaves_the_data_as_it_is(capsys, tmp_path, figures):  # noqa: F811
    words = ("schedule", "--total-steps", 10)
    assert data_of(capsys, *words, "-o", tmp_path / "a.png") == data_of(capsys, *words)
    assert len(figures) == 1


@pytest.mark.parametrize(
    "words",
    [
        f"stages {OWN} --image-size 32",
        f"plan {OWN} --image-size 32 --stages -1",
        f"plan {OWN} --image-size 32 --stages -1 --summary",
        "schedule --total-steps 9",
        "bench --shape 1 2 14 14 --seconds 0.01",
    ],
)
def test_help_lists_the_keys(capsys, words):
    found = data_of(capsys, *words.split())
    with pytest.raises(SystemExit):
        main([words.split()[0], "--help"])
    documented = " ".join(capsys.readouterr().out.split()).split("Keys of the JSON: ")[1].rstrip(".")
    if words.startswith("plan"):
        whole, documented_summary = documented.split("; with --summary: ")
        documented = documented_summary if "--summary" in words else whole
    in_words = re.sub(r" \((of|at) .*?\)", "", documented)
    assert set(re.sub(r" \(.*?\)", "", in_words).split(", ")) == set(found)
    for name, inner in re.findall(r"(\w+) \((.*?)\)", in_words):
        rows = found[name] if isinstance(found[name], list) else [found[name]]
        assert all(set(inner.split(", ")) == set(row) for row in rows)


LIBRARIES = [
    ("resnet18", "timm:resnet18", "resnet18 of timm; torchvision has one too: torchvision:resnet18\n"),
    ("test_resnet", "timm:test_resnet", "test_resnet of timm\n"),
    ("regnet_y_400mf", "torchvision:regnet_y_400mf", "regnet_y_400mf of torchvision\n"),
    ("timm:test_resnet", "timm:test_resnet", ""),
    (f"{NETWORKS}:CifarResNet", f"{NETWORKS}:CifarResNet", ""),
]


@pytest.mark.parametrize("command", ["stages", "plan"])
@pytest.mark.parametrize(("name", "source", "said"), LIBRARIES)
def test_the_library_of_a_bare_name_is_said(capsys, command, name, source, said):
    assert main([command, name, "--json", *(["--stages", "-1"] if command == "plan" else [])]) == 0
    printed = capsys.readouterr()
    assert (json.loads(printed.out)["source"], printed.err) == (source, said)
