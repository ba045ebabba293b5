"""The scripts that make the tables and pictures of the pages, with tiny settings."""

from __future__ import annotations

import re
from pathlib import Path

import kept_share
import pictures
import pytest

IMAGES = Path(__file__).parents[2] / "examples" / "pictures"


def test_kept_share(capsys: pytest.CaptureFixture[str]) -> None:
    kept_share.main(["--pixels", "100000"])
    header, *rows = capsys.readouterr().out.splitlines()
    asked = [float(share) for share in re.findall(r"block \d, ([\d.]+)", header)]
    found = {}
    for row in rows:
        name, mean_error, worst, *shares = re.fullmatch(
            r" *(\w+) +([\d.]+) pp +([\d.]+) pp" + r" +([\d.]+)" * len(asked), row
        ).groups()
        assert float(mean_error) <= float(worst)
        found[name] = [float(share) for share in shares]
    assert list(found) == ["dropblock_inject", "uncalibrated", "torchvision", "timm"]
    assert found["dropblock_inject"] == pytest.approx(asked, abs=0.03)
    # The numbers of the README: the paper's formula keeps too much, timm too little.
    assert found["uncalibrated"] == pytest.approx([0.9, 0.907, 0.642, 0.628], abs=0.03)
    assert found["torchvision"] == pytest.approx([0.9, 0.907, 0.642, 0.628], abs=0.03)
    assert found["timm"] == pytest.approx([0.07, 0.79, 0.318, 0.492], abs=0.03)


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(pictures, "DETECTOR", "torchvision:resnet18")
    monkeypatch.setattr(pictures, "SHOWN_SIZE", 64)
    pictures.main([str(tmp_path)])
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in IMAGES.iterdir()}
    for file in tmp_path.iterdir():
        assert 5_000 < file.stat().st_size < 200_000
    for file in IMAGES.iterdir():
        assert file.stat().st_size < 200_000
