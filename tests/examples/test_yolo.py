"""The example with a YOLO of ultralytics: DropBlock in the network that is trained, none in the one that is saved."""

from __future__ import annotations

import zipfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from dropblock_inject import DropBlock, KeepProbSchedule, dropblock_sites, remove_dropblock

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own
TINY = ["--image-size", "64", "--max-samples", "8", "--batch-size", "4", "--keep-prob", "0.5"]


@pytest.fixture
def yolo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The example; an attempt to open a connection is an error."""
    if find_spec("ultralytics") is None:  # importing it here would come before the example's setting
        pytest.skip("ultralytics is not installed")

    def refuse(*address: object) -> None:
        pytest.fail(f"it tried to reach {address}")

    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))  # read by the first import
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    import yolo

    return yolo


def dropblocks(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, DropBlock)}


@pytest.mark.parametrize(
    ("arguments", "updates", "sites", "places"),
    [
        ("--epochs 2", 6, 21, ("model.6.", "model.8.", "model.9.", "model.10.")),
        ("--epochs 1 --include model.1[369].*", 2, 33, ("model.13.", "model.16.", "model.19.")),
    ],
    ids=["backbone, with a loss that is not finite", "neck"],
)
def test_it_drops_in_training_alone(
    arguments: str,
    updates: int,
    sites: int,
    places: tuple[str, ...],
    yolo: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    schedules: list[KeepProbSchedule] = []
    runs: Counter[str] = Counter()
    dropped: set[str] = set()
    validated: list[nn.Module] = []
    attach, validate = KeepProbSchedule.attach, DetectionTrainer.validate

    def watch(schedule, optimizer):
        schedules.append(schedule)
        for name, layer in dropblocks(schedule.model).items():

            def look(layer, inputs, output, name=name):
                runs[name] += 1
                if (output == 0).sum() > (inputs[0] == 0).sum():
                    dropped.add(name)

            layer.register_forward_hook(look)
        return attach(schedule, optimizer)

    def validate_plain(trainer):
        before = runs.total()
        assert not dropblocks(trainer.ema.ema)
        validated.append(trainer.ema.ema)
        result = validate(trainer)
        assert runs.total() == before
        if len(validated) == 2:
            trainer.loss = torch.tensor(torch.nan)  # the trainer repeats the epoch with a new copy of the network
        return result

    monkeypatch.setattr(KeepProbSchedule, "attach", watch)
    monkeypatch.setattr(DetectionTrainer, "validate", validate_plain)
    yolo.main([*TINY, *arguments.split(), "--output", str(tmp_path)])
    (schedule,) = schedules
    found = dropblock_sites(schedule.model)
    assert len(found) == sites
    assert all(site.name.startswith(places) and site.live for site in found)
    assert dropped == {site.name for site in found}
    assert set(runs.values()) == {updates}
    assert {site.keep_prob for site in found if site.stage in (4, None)} == {0.5}
    assert "keep_prob 0.500; the weights are in" in capfd.readouterr().out
    remove_dropblock(schedule.model)
    for name in ("best.pt", "last.pt"):
        with zipfile.ZipFile(tmp_path / "weights" / name) as archive:
            (pickled,) = (file for file in archive.namelist() if file.endswith("data.pkl"))
            assert b"dropblock_inject" not in archive.read(pickled)
        saved = torch.load(tmp_path / "weights" / name, weights_only=False)["model"]
        schedule.model.load_state_dict(saved.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--weights none.pt", "there is no file none.pt"),
        ("--model yolo26n-cls", "yolo26n-cls is for the task classify; give a detector"),
        ("--model yolo0", "yolo0"),
        ("--include nothing", "nothing"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments: str, message: str, yolo: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        yolo.main([*TINY, *arguments.split(), "--epochs", "1", "--output", str(tmp_path)])
