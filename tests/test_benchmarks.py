"""The benchmarks still run: each subject once, for a moment, with its figures written; nothing is timed.

Only Zerver takes part, since its peers are not among what the tests install; and the load is this Python's own, since
`wrk` is not there either. The parts that have nothing but peers are not run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"

#: By subject: the arguments, and how many cases it has.
SERVERS = {
    "bench_http": (("--connections", "2"), 8),
    "connections": (("--connections", "20", "--rate", "50"), 6),
    "fanout": (("--connections", "2"), 2),
    "sql": (("--connections", "2", "--database", "sqlite"), 4),
    "workers": (("--connections", "2"), 10),
}


#: Arguments of those that serve nothing to `wrk`, so that they take a second or two.
OTHERS = {
    "client": ("--only", "one after another, cpu"),
    "trace": ("--only", "memory", "--kept", "50"),
}


def run(subject: str, *arguments: str, figures: Path) -> tuple[str, list[dict[str, Any]]]:
    """What it says, and what it writes."""
    command = [sys.executable, str(BENCHMARKS / f"{subject}.py"), "--rounds", "1", "--json", str(figures), *arguments]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout, json.loads(figures.read_text())


@pytest.mark.parametrize("case", ["a pure step", "a run of three steps", "a join of three", "admission"])
def test_a_case_of_the_engine_is_measured(case: str, tmp_path: Path) -> None:
    told, (measured,) = run("engine", "--only", case, figures=tmp_path / "figures.json")
    assert measured["case"].startswith(case)
    assert measured["systems"]["zerver"]["min"] > 0
    assert "zerver is" in told


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the load has a core of its own")
@pytest.mark.parametrize("subject", SERVERS)
def test_a_server_is_measured(subject: str, tmp_path: Path) -> None:
    arguments, cases = SERVERS[subject]
    quick = ("--seconds", "0.1", "--loader", "python", "--only", "zerver")
    _, measured = run(subject, *quick, *arguments, figures=tmp_path / "figures.json")
    assert len(measured) == cases
    for figure in measured:
        assert set(figure) == {"case", "unit", "systems"}
        assert all(name.startswith("zerver") for name in figure["systems"])
        assert all(set(values) == {"median", "min", "max"} for values in figure["systems"].values())


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="some have a server on a core of its own")
@pytest.mark.parametrize("subject", OTHERS)
def test_another_subject_is_measured(subject: str, tmp_path: Path) -> None:
    _, measured = run(subject, *OTHERS[subject], figures=tmp_path / "figures.json")
    assert measured
    assert all(figure["systems"] for figure in measured)


def test_the_scripts_whose_instructions_are_counted_are_played() -> None:
    command = [sys.executable, str(BENCHMARKS / "instructions.py"), "--uncounted"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_every_subject_is_named_where_it_is_run() -> None:
    told = subprocess.run([str(BENCHMARKS.parent / "bench")], capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert set(told.stderr.split()) >= {"http", "connections", "fanout", "sql", "workers", "engine", "instructions"}
