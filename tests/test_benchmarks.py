"""The benchmarks still run: one cheap case of the engine's, once, with its figures written; nothing is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[1] / "scripts" / "benchmarks" / "engine.py"


@pytest.mark.parametrize("case", ["a pure step", "a run of three steps", "a join of three"])
def test_a_case_of_the_engine_is_measured(case: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(ENGINE), "--rounds", "1", "--only", case, "--json", str(figures)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    (measured,) = json.loads(figures.read_text())
    assert measured["case"].startswith(case)
    assert measured["systems"]["zerver"]["min"] > 0
    assert "zerver is" in told.stdout
