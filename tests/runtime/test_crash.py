"""A process may die at any place at any time: every order has one charge, every other charge is refunded, nothing is
asked for more often than the process has died."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sql.postgresql import as_url
from zerver.errors import DefinitionError
from zerver.runtime.crash import SITES, VARIABLE, CrashPoint

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("site", SITES)
def test_dying_here_loses_nothing_and_does_nothing_twice(site: str, tmp_path: Path) -> None:
    sweep(site, tmp_path)


@pytest.mark.parametrize("site", SITES)
def test_nor_with_a_journal_in_postgresql(site: str, tmp_path: Path, conninfo: str) -> None:
    sweep(site, tmp_path, as_url(conninfo))


def sweep(site: str, folder: Path, *journal: str) -> None:
    optimized = ["-O"] if not __debug__ else []
    ran = subprocess.run(
        [sys.executable, *optimized, "-m", "tests.runtime.crashing", site, str(folder), *journal],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != VARIABLE},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    deaths, _, _ = ran.stdout.partition(" ")
    assert int(deaths) >= 1


def test_a_place_that_is_none_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"effect\.sent names no place"):
        CrashPoint("effect.sent")
    with pytest.raises(DefinitionError, match="write site:n"):
        CrashPoint("effect.send:soon")


def test_nowhere_is_the_default() -> None:
    point = CrashPoint("")
    for site in SITES:
        point(site)
