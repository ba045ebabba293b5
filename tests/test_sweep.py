"""The sweep over all models, on one small model of each library."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import sweep


def test_a_sweep_records_each_model_goes_on_and_ends_in_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    results = tmp_path / "results.jsonl"
    options = ["--only", "timm:test_resnet", "torchvision:squeezenet1_1", "--results", str(results), "--jobs", "1"]
    assert sweep.main(options) == 0
    records = {record["model"]: record for record in map(json.loads, results.read_text().splitlines())}
    assert records.keys() == {"timm:test_resnet", "torchvision:squeezenet1_1"}
    assert not any("failed" in record for record in records.values())
    printed = capsys.readouterr().out
    assert "2 models, 0 of them done before" in printed
    assert sweep.main([*options, "--table"]) == 0
    assert "2" in capsys.readouterr().out
    before = results.read_text()
    assert sweep.main(options) == 0  # nothing is left to do
    assert results.read_text() == before
    failed = {**records["timm:test_resnet"], "failed": "AssertionError: of its own"}
    results.write_text(before + json.dumps(failed) + "\n")
    assert sweep.main([*options, "--table"]) == 1
    assert "AssertionError: of its own" in capsys.readouterr().out


def test_a_sweep_of_another_library_holds_its_networks_against_a_record_of_what_ran(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    results = tmp_path / "results.jsonl"
    only = ["--only", "transformers:ConvNextV2", "--results", str(results), "--jobs", "1"]
    assert sweep.main(["--zoo", "transformers", *only]) == 0
    [record] = map(json.loads, results.read_text().splitlines())
    assert [stage[1] for stage in record["stages"]] == [4, 8, 16, 32]
    assert record["sites"]["4"] == {"branch": 3, "skip": 1, "output": 1}


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchcv", None)
    with pytest.raises(SystemExit, match="pip install pytorchcv"):
        sweep.main(["--zoo", "pytorchcv"])
