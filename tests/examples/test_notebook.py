"""The notebook: what is committed comes from one run from top to bottom, and it runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def code_cells(file: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]


def printed(file: Path) -> str:
    outputs = [output for cell in code_cells(file) for output in cell["outputs"]]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def pictures(file: Path) -> list[str]:
    outputs = [output for cell in code_cells(file) for output in cell["outputs"]]
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def test_the_committed_outputs_are_of_one_run() -> None:
    cells = code_cells(NOTEBOOK)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output.get("name") == "stderr"]
    assert len(pictures(NOTEBOOK)) == 4
    assert sum(map(len, pictures(NOTEBOOK))) < 150_000
    assert not re.search(r"/(home|root|tmp|Users)/", NOTEBOOK.read_text())


def test_it_runs(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    written = tmp_path / "run.ipynb"
    subprocess.run([sys.executable, EXAMPLES / "pages" / "notebook.py", written], check=True)
    assert [cell["source"] for cell in code_cells(written)] == [cell["source"] for cell in code_cells(NOTEBOOK)]
    assert len(pictures(written)) == 4
    assert shape(printed(written)) == shape(printed(NOTEBOOK))
    accuracies = [float(share) for share in re.findall(r"accuracy ([\d.]+)%", printed(written))]
    assert min(accuracies[1:]) > 90
    *_, plain, removed = accuracies
    assert plain == removed


def shape(text: str) -> list[str]:
    """The lines without their numbers; that on the errors is there only if there are some."""
    return [re.sub(r"[\d.]+", "N", line) for line in text.splitlines() if "where it is wrong" not in line]
