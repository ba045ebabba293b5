"""The short examples, on a few digits: each trains with DropBlock in the right place, to the end of its schedule."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import ModuleType

import cifar100
import detection
import distributed
import plain_loop
import pytest
import segmentation
import timm
import torch

from dropblock_inject import KeepProbSchedule, dropblock_sites, remove_dropblock
from lib.scenes import CLASSES, Scenes


@pytest.fixture
def scheduled(monkeypatch: pytest.MonkeyPatch) -> list[KeepProbSchedule]:
    """The schedules that an example makes, and with them its models."""
    made: list[KeepProbSchedule] = []
    attach = KeepProbSchedule.attach

    def remember(schedule, optimizer):
        made.append(schedule)
        return attach(schedule, optimizer)

    monkeypatch.setattr(KeepProbSchedule, "attach", remember)
    return made


@pytest.mark.parametrize(
    ("example", "model", "arguments", "sites", "prefix"),
    [
        (plain_loop, "", "--image-size 64 --max-samples 20", 12, "layer"),
        (cifar100, "", "--dataset digits --image-size 16 --max-samples 20 --batch-size 10", 12, "layer"),
        (detection, "lite0", "--image-size 64 --max-samples 6", 40, "backbone.body.blocks"),
        (detection, "fasterrcnn_mobilenet_v3_large_fpn", "--image-size 64 --max-samples 4", 33, "backbone.body."),
        (detection, "fasterrcnn_resnet50_fpn", "--image-size 64 --max-samples 4", 36, "backbone.body.layer"),
        (detection, "lite0", "--image-size 64 --max-samples 4 --include backbone.fpn.*", 6, "backbone.fpn."),
        (
            segmentation,
            "unet",
            "--image-size 64 --max-samples 16 --include encoder.*.blocks.6.* decoder.*",
            13,
            ("encoder", "decoder"),
        ),
        (segmentation, "lite0", "--image-size 64 --max-samples 16 --uncertainty maps.png", 40, "backbone.body.blocks"),
        (segmentation, "lraspp_mobilenet_v3_large", "--image-size 64 --max-samples 16", 33, "backbone."),
        (segmentation, "fcn_resnet50", "--image-size 64 --max-samples 4 --batch-size 2", 36, "backbone.layer"),
    ],
    ids=lambda value: getattr(value, "__name__", None if "--" in str(value) else str(value)),
)
def test_it_trains_to_the_end_of_the_schedule(
    example: ModuleType,
    model: str,
    arguments: str,
    sites: int,
    prefix: str | tuple[str, ...],
    scheduled: list[KeepProbSchedule],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    example.main(["--epochs", "1", *(["--model", model] if model else []), *arguments.split()])
    printed = capsys.readouterr().out
    assert Path("maps.png").exists() == ("maps.png" in arguments)
    (schedule,) = scheduled
    assert schedule.last_step == schedule.total_steps > 0
    found = dropblock_sites(schedule.model)
    assert len(found) == sites
    assert all(site.name.startswith(prefix) for site in found)
    deepest = max((site.stage for site in found if site.stage), default=None)
    assert {site.keep_prob for site in found if site.stage == deepest} == {0.9}
    assert re.search(r"^epoch \d .*keep_prob 0\.900", printed, flags=re.MULTILINE)
    assert "nan" not in printed
    assert all(parameter.isfinite().all() for parameter in schedule.model.parameters())
    if example is not plain_loop:
        weights = tmp_path / "runs" / example.__name__ / "model.pt"
        remove_dropblock(schedule.model)
        schedule.model.load_state_dict(torch.load(weights, weights_only=True), strict=True)


def test_scenes_are_what_they_say() -> None:
    scenes = Scenes(20, 96, train=True)
    assert len(list(scenes)) == 20
    counts = []
    for image, target in scenes:
        assert image.shape == (3, 96, 96)
        assert 0 <= image.min() < image.max() <= 1
        counts.append(len(target["labels"]))
        assert set(target["labels"].tolist()) == set(target["mask"].unique().tolist()) - {0}
        assert set(target["labels"].tolist()) <= set(range(1, len(CLASSES) + 1))
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            left, top, right, bottom = map(int, box)
            inside = target["mask"][top:bottom, left:right]
            assert {label.item()} == set(inside.unique().tolist()) - {0}
            # It is tight: there is something of the digit on each of its sides.
            assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    assert min(counts) >= 1 < max(counts)
    again, _ = scenes[3]
    assert torch.equal(again, scenes[3][0])
    assert not torch.equal(Scenes(20, 96, train=False)[3][0], again)


@pytest.mark.filterwarnings("ignore:You are using `torch.load` with `weights_only=False`")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_distributed_in_one_process(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tests/training/test_distributed.py has two, one of which is killed."""
    for name in ("LOCAL_RANK", "RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = ["--model", "test_resnet", "--image-size", "64", "--max-samples", "8", "--batch-size", "4", "--epochs", "1"]
    for printed in ("step    2/2 of epoch 1", "resumed  after step 2 of 2"):
        distributed.main([*small, "--strategy", strategy, "--output", str(tmp_path)])
        assert printed in capsys.readouterr().out
    plain = timm.create_model("test_resnet", num_classes=10)
    plain.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    with pytest.raises(SystemExit, match="is from a training with other options; give another --output"):
        distributed.main([*small, "--seed", "1", "--strategy", strategy, "--output", str(tmp_path)])
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # Lightning's own, about itself and about small data
def test_lightning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning")
    import with_lightning

    small = ["--model", "test_resnet", "--max-samples", "40", "--output", str(tmp_path)]
    with_lightning.main([*small, "--epochs", "2"])
    captured = capsys.readouterr()
    assert "accuracy" in captured.out
    assert "it/s" not in captured.out + captured.err  # no progress bar where there is no terminal
    plain = timm.create_model("test_resnet", num_classes=10)
    plain.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    with (tmp_path / "metrics.csv").open() as file:
        logged = [row["keep_prob/stage4"] for row in csv.DictReader(file) if row.get("keep_prob/stage4")]
    assert logged
    assert all(0.9 <= float(value) <= 1 for value in logged)
    # A longer training goes on from the last checkpoint.
    with_lightning.main([*small, "--epochs", "3", "--resume", str(tmp_path / "last.ckpt")])
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["epoch"] == 2
    (schedule,) = (value for name, value in state["callbacks"].items() if "DropBlock" in name)
    assert "'last_step': 6" in str(schedule)


@pytest.mark.filterwarnings("ignore")  # the library's own, about what a newer torch deprecates
def test_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    import with_transformers
    from transformers import AutoModelForImageClassification

    with_transformers.main(["--max-samples", "16", "--epochs", "1", "--output", str(tmp_path)])
    captured = capsys.readouterr()
    assert "accuracy" in captured.out
    assert "it/s" not in captured.out + captured.err
    plain, loading = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[name] for name in ("missing_keys", "unexpected_keys"))
    assert plain.config.num_labels == 10
    with pytest.raises(SystemExit, match="none is no checkpoint of the Trainer, and has none in it"):
        with_transformers.main(["--resume", str(tmp_path / "none")])
