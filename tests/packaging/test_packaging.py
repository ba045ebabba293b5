"""The version of the package and what it imports. ``smoke.py`` beside this file tries the wheel; CI runs it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dropblock_inject
from dropblock_inject import public_names

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_version_is_that_of_the_changelog_and_stands_in_one_place() -> None:
    newest = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[0]
    assert dropblock_inject.__version__ == newest
    assert 'dynamic = ["version"]' in PROJECT
    assert '[tool.hatch.version]\npath = "dropblock_inject/__init__.py"' in PROJECT


def printed_by(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        *("import dropblock_inject", "import dropblock_inject.errors, dropblock_inject.presets"),
        *("import dropblock_inject.command.main", "import dropblock_inject; dropblock_inject.__version__"),
    ],
)
def test_torch_is_not_imported_before_it_is_needed(statement: str) -> None:
    assert printed_by(f"import sys; {statement}; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        (
            "from dropblock_inject import *; print(sorted(n for n in dir() if n[0] != '_'))",
            sorted(public_names.__all__),
        ),
        ("import dropblock_inject as d; print(set(d.__all__) - set(dir(d)))", set()),
        ("import dropblock_inject as d; print(d.presets.__name__)", "dropblock_inject.presets"),
        ("import dropblock_inject as d; print(d.drop_block.__name__, d.errors.__name__)", None),
        ("from dropblock_inject import presets, plot; print(presets.__name__, plot.__name__)", None),
    ],
)
def test_names_are_there_from_the_first_use(code: str, printed: object) -> None:
    names = {"errors": "drop_block dropblock_inject.errors", "plot": "dropblock_inject.presets dropblock_inject.plot"}
    wanted = names["errors" if "errors" in code else "plot"] if printed is None else str(printed)
    assert printed_by(code) == wanted


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'dropblock_inject' has no attribute 'inject_dropblok'"):
        dropblock_inject.inject_dropblok  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'inject_dropblok' from 'dropblock_inject'"):
        exec("from dropblock_inject import inject_dropblok")


def test_every_public_name_is_imported_once_and_listed() -> None:
    tree = ast.parse(Path(public_names.__file__).read_text())
    imported = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(imported) == sorted([*public_names.__all__, "errors", "presets"])
