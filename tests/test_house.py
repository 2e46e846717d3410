"""The house keeps its own rules: what loads what, a law in each file, one error tree, nothing that -O removes."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zerver
from zerver import errors

HOUSE = Path(zerver.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
MODULES = [path for path in FILES if path.stat().st_size]
LAWFUL = [path for path in FILES if path.name not in ("__init__.py", "__main__.py")]
ROOMS = ["zerver", *(f"zerver.{room.name}" for room in pkgutil.iter_modules([str(HOUSE)]) if room.ispkg)]


def name_of(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_front_door_loads_neither_trio_nor_an_edge() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import sys, zerver; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(told.stdout.split())
    assert "zerver.core.machine" in loaded or "zerver.core.flows" in loaded
    rooms = {module.split(".")[1] for module in loaded if module.startswith("zerver.")}
    assert rooms == {"core", "errors"}
    assert not loaded & {"trio", "asyncio", "h11", "sqlite3", "click", "rich", "cattrs", "ssl"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


@pytest.mark.parametrize("path", LAWFUL, ids=name_of)
def test_every_module_states_its_law(path: Path) -> None:
    docstring = ast.get_docstring(tree_of(path)) or ""
    assert re.search(r"^Law: ", docstring, re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_module_is_longer_than_500_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", [path for path in FILES if "testing" not in path.parts], ids=name_of)
def test_nothing_that_matters_is_an_assert(path: Path) -> None:
    """`python -O` removes them."""
    assert [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.Assert)] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_left_to_be_done_later(path: Path) -> None:
    assert not re.findall(r"\b(TODO|FIXME|XXX)\b", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_docstring(room: str) -> None:
    module = importlib.import_module(room)
    path = Path(str(module.__file__))
    public = [
        alias.asname
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None and alias.asname == alias.name
    ]
    undocumented = [
        name
        for name in public
        if (inspect.isclass(getattr(module, name)) or inspect.isroutine(getattr(module, name)))
        and not _own_docstring(getattr(module, name))
    ]
    assert undocumented == []


def _own_docstring(thing: object) -> str | None:
    """A class's own; attrs and the bases write none."""
    return thing.__dict__.get("__doc__") if isinstance(thing, type) else inspect.getdoc(thing)


def test_the_error_tree_is_drawn_as_it_is() -> None:
    drawn: dict[str, str] = {}
    around: list[str] = []
    for line in str(errors.__doc__).splitlines():
        found = re.fullmatch(r"(    [│├└─ ]*?)([A-Z]\w+)(?:  +\S.*)?", line)
        if found:
            depth = (len(found[1]) - 4) // 3
            around = [*around[:depth], found[2]]
            drawn[found[2]] = around[-2] if depth else "Exception"
    there = {
        name: thing.__bases__[0].__name__
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, BaseException) and thing.__module__ == errors.__name__
    }
    assert drawn == there
    assert all(vars(errors)[name].__doc__ for name in there)
