"""The rooms of the package: what each says that it may import is all that it imports, and there is no circle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dropblock_inject

PACKAGE = Path(dropblock_inject.__file__).parent
ROOMS = sorted(folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file())
AT_THE_TOP = {"__init__.py", "__main__.py", "errors.py", "presets.py", "public_names.py"}


def may_import(room: str) -> set[str]:
    """What the docstring of a room allows it."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    allowed = re.search(r"^May import: (.*)\.$", docstring, re.MULTILINE)
    assert allowed, f"{room}/__init__.py does not say what it may import"
    return {*ROOMS, "errors", "presets"} - {room} if allowed[1] == "everything else" else set(allowed[1].split(", "))


def imports_of(file: Path) -> set[str]:
    """The modules of the package that a file imports, in full, wherever in the file it does."""
    package = file.relative_to(PACKAGE).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            names = [alias.name for alias in node.names if alias.name != "__version__"]
            modules = [".".join(filter(None, (*base, name))) for name in names]
            found |= {m if is_module(m) else ".".join(filter(None, base)) for m in modules}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dropblock_inject"):
            found.add("an absolute import")
        elif isinstance(node, ast.Import):
            found |= {"an absolute import" for alias in node.names if alias.name.startswith("dropblock_inject")}
    return found


def is_module(name: str) -> bool:
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_nothing_but_the_rooms_and_five_modules_is_at_the_top() -> None:
    assert {file.name for file in PACKAGE.glob("*.py")} == AT_THE_TOP


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_it_says(room: str) -> None:
    imported = {m.split(".")[0]: m for file in (PACKAGE / room).glob("*.py") for m in imports_of(file)}
    imported.pop(room, None)
    forbidden = {name: module for name, module in imported.items() if name not in may_import(room)}
    assert not forbidden, f"{room} imports {forbidden}, which its docstring does not allow"


def test_every_permission_is_used() -> None:
    for room in set(ROOMS) - {"command"}:
        used = {m.split(".")[0] for file in (PACKAGE / room).glob("*.py") for m in imports_of(file)}
        assert may_import(room) <= used, f"{room} may import {may_import(room) - used}, and does not"


def test_the_rooms_stand_on_each_other_without_a_circle() -> None:
    TopologicalSorter({room: may_import(room) & set(ROOMS) for room in ROOMS}).prepare()


def test_two_wings_know_nothing_of_each_other() -> None:
    wings = {"ops", "surgery"}, {"tracing", "anatomy"}
    for wing, other in (wings, wings[::-1]):
        assert not other & {room for member in wing for room in may_import(member)}


def test_files_do_not_import_each_other_in_a_circle() -> None:
    files = {".".join(f.relative_to(PACKAGE).with_suffix("").parts): f for f in PACKAGE.rglob("*.py")}
    TopologicalSorter({name: imports_of(file) - {""} for name, file in files.items()}).prepare()
