"""mypy and pyright find each line of tests/typing that is marked `# error:`, and no other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
FILES = sorted(HERE.glob("*.py"))
ROOT = HERE.parent.parent

Found = dict[str, dict[int, str]]


@pytest.fixture(scope="module")
def by_mypy() -> Found:
    """Per file and line, what mypy --strict says; what it knew last time of the modules it need not find out again."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary"]
    told = _run("mypy", *options, "--output", "json", *map(str, FILES))
    found: Found = defaultdict(dict)
    for line in told.stdout.splitlines():
        error = json.loads(line)
        if error["severity"] == "error":
            found[Path(error["file"]).name].setdefault(error["line"], error["message"])
    if told.stderr:
        pytest.fail(told.stderr)
    return found


@pytest.fixture(scope="module")
def by_pyright() -> Found:
    """Per file and line, what pyright says."""
    told = _run("pyright", "--outputjson", *map(str, FILES))
    found: Found = defaultdict(dict)
    for error in json.loads(told.stdout)["generalDiagnostics"]:
        if error["severity"] == "error":
            start = error["range"]["start"]["line"] + 1
            found[Path(error["file"]).name].setdefault(start, error["message"])
    return found


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)


def wanted(path: Path) -> set[int]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if re.search(r"# error: \S", line)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_mypy_keeps_the_promises(path: Path, by_mypy: Found) -> None:
    found = by_mypy[path.name]
    assert found.keys() == wanted(path), found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_pyright_keeps_the_promises(path: Path, by_pyright: Found) -> None:
    found = by_pyright[path.name]
    assert found.keys() == wanted(path), found
