"""No clock of a town is looked at: when its summer ends, no lease, expiry or receipt moves. Only cron knows towns."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Where local time is what somebody asked for: a schedule that names its zone, and times shown to a person here.
TOWNS = {"zerver/jobs/cron.py", "zerver/cli/trace.py"}

#: Calls that give, or read, the time of the place where the process happens to be.
ALWAYS = {"localtime", "mktime", "ctime", "tzset", "utcnow", "utcfromtimestamp", "today"}
WITHOUT = {"now": 0, "fromtimestamp": 1, "astimezone": 0, "gmtime": -1}  # as many arguments, and no zone among them


def local_times(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, said = node.func.attr, len(node.args) + len(node.keywords)
            about = node.func.value
            if name == "now" and not (isinstance(about, ast.Name | ast.Attribute) and "date" in ast.unparse(about)):
                continue
            if name in ALWAYS or WITHOUT.get(name, -1) == said:
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "source", ["datetime.now()", "datetime.datetime.fromtimestamp(5)", "time.localtime(5)", "a.astimezone()"]
)
def test_what_is_found(source: str) -> None:
    assert list(local_times(source))


@pytest.mark.parametrize(
    "source", ["datetime.now(UTC)", "datetime.fromtimestamp(5, UTC)", "clock.now()", "time.time()"]
)
def test_what_is_not(source: str) -> None:
    assert not list(local_times(source))


def test_nothing_looks_at_local_time() -> None:
    found = {
        str(path.relative_to(ROOT)): told
        for path in (ROOT / "zerver").rglob("*.py")
        if (told := list(local_times(path.read_text(encoding="utf-8"))))
    }
    assert found.keys() <= TOWNS, found


#: Plays the hours around a change of the clocks, in half hours, and prints what leases, expiries and receipts say.
HOURS = """
import json, sys, time

change, folder = int(sys.argv[1]), sys.argv[2]
now = change - 3 * 3600
time.tzset()
time.time, time.time_ns = lambda: float(now), lambda: now * 10**9

import trio
from zerver.journal import open_sqlite_journal, open_sqlite_receipts
from zerver.runtime.journal import Awaited, Opening, Page, Parking, RunHead
from zerver.runtime.receipts import Claim, StoredAnswer


async def main():
    global now
    told = []
    async with (
        open_sqlite_journal(folder + "/runs.journal") as journal,
        open_sqlite_receipts(folder + "/keys.db") as receipts,
    ):
        await journal.renew("one", 600.0)
        kept = RunHead("kept", "flow", "1", "t", "default", now * 10**9, "one")
        await journal.write(Opening(kept, "p", b"p", [b"0"]))
        for hours in range(1, 7):
            head = RunHead(f"run {hours}", "flow", "1", "t", "default", now * 10**9, "one")
            await journal.write(Opening(head, "p", b"p", [b"0"]))
            await journal.write(Page(head.run_id, 1, 1, [b"1"], parked=Parking((Awaited(1, "go", hours * 3600.0),))))
            await receipts.claim(Claim(b"%d" % hours, head.run_id, b"", b"", 0), 30.0)
            await receipts.store(head.run_id, StoredAnswer(200), hours * 3600.0)
        for half in range(14):
            claimed = sorted(run.head.run_id for run in await journal.claim("two", 10))
            due = await journal.due()
            known = [hours for hours in range(1, 7) if await receipts.find(b"%d" % hours) is not None]
            told.append([half, claimed, due and round(due), known])
            now += 1800
    print(json.dumps(told))


trio.run(main)
"""

SPRING, AUTUMN = 1774746000, 1792890000  # 2026-03-29 and 2026-10-25, 01:00 UTC, when the clocks of Berlin change


@pytest.mark.parametrize("change", [SPRING, AUTUMN], ids=["spring", "autumn"])
def test_a_change_of_the_clocks_moves_nothing(change: int, tmp_path: Path) -> None:
    told = []
    for zone in ("UTC", "Europe/Berlin", "America/St_Johns"):
        folder = tmp_path / zone.replace("/", "-")
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", HOURS, str(change), str(folder)],
            env={**os.environ, "TZ": zone}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    assert told[0] == told[1] == told[2]
    # Run n was parked for n hours; each is claimed in its half hour, its receipt is gone then, and "kept" never is.
    for half, claimed, _, known in told[0]:
        assert claimed == ([f"run {half // 2}"] if half % 2 == 0 and 0 < half < 13 else [])
        assert known == [hours for hours in range(1, 7) if hours * 2 > half]
