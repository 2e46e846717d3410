"""A worker may die at any moment: no job is lost, nobody is charged twice, a write is asked for once more at most."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("durability", ["off", "sync"])
def test_a_worker_that_dies_at_any_moment_loses_no_job(durability: str, tmp_path: Path) -> None:
    optimized = ["-O"] if not __debug__ else []
    ran = subprocess.run(
        [sys.executable, *optimized, "-m", "tests.jobs.crashing", durability, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    deaths, _, _ = ran.stdout.partition(" ")
    assert int(deaths) >= 16
