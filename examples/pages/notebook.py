"""Runs examples/quickstart.ipynb and writes it with its outputs; its pictures are made small.

    pip install -e ".[test]"
    python examples/pages/notebook.py

It goes to the same place, or to the file that is given.
"""

from __future__ import annotations

import argparse
import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

NOTEBOOK = Path(__file__).resolve().parents[1] / "quickstart.ipynb"
_WIDTH, _COLORS = 720, 128  # of a picture, in pixels; in the notebook


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run the notebook and write it with its outputs.")
    parser.add_argument("file", nargs="?", type=Path, default=NOTEBOOK, help="(%(default)s)")
    file = parser.parse_args(argv).file
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=folder).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if "outputs" in cell:  # without warnings about what is installed on this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for result in cell.get("outputs", []):
            _make_small(result.get("data", {}))
    notebook.metadata.pop("language_info", None)  # the version of Python
    nbformat.write(notebook, file)


def _make_small(data: dict[str, Any]) -> None:
    """A picture among the data of an output gets fewer pixels and colours."""
    if "image/png" in data:
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        picture.thumbnail((_WIDTH, _WIDTH), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        picture.quantize(_COLORS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
        data["image/png"] = base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main()
