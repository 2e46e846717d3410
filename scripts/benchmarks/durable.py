"""What durability costs: a step and a run of `sync` beside DBOS Transact on the same SQLite and the same PostgreSQL;
the dial at `async` against `off`; and jobs per second beside procrastinate and pgqueuer on the same PostgreSQL. fsync
is on for all of them.

A step is a write that does nothing: Zerver has its intent on the disk before it starts, and what came of it goes there
with the intent of the next one, or the end; DBOS has what came of it there before the next step. So both wait for the
disk once a step. Its latency is the time from the body of one step to that of the next of the same run. DBOS's SQLite
has synchronous=FULL, because that is what SQLite does, and no write-ahead log unless it is given one; both are shown.
Each system has a process of its own, and one at a time works.
The dial is measured by CPU time, and with --instructions by what cachegrind counts, which other work does not disturb.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from _peer import PEERS, Peer, peer, percentile
from _postgres import as_url, postgres
from _report import Figures, Table, told, turns, write_json

PACKAGES: Final = ("trio", "psycopg", "dbos", "sqlalchemy", "procrastinate", "pgqueuer", "asyncpg")
ZERVER: Final = "zerver"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="of work, per system, case and round")
    parser.add_argument("--instructions", action="store_true", help="count those of the dial, with valgrind; minutes")
    parser.add_argument("--only", choices=("sqlite", "postgres", "dial", "jobs"), help="one part alone")
    parser.add_argument(
        "--folder", metavar="DIR", help="on the disk that is to be waited for; a temporary one by default"
    )
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.instructions and shutil.which("valgrind") is None:
        raise SystemExit("instructions are counted by valgrind (apt-get install valgrind)")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"Python {platform.python_version()}, {platform.machine()}; {versions}", flush=True)
    parts: Mapping[str, Callable[[], Figures]]
    with tempfile.TemporaryDirectory(prefix="zerver-bench-", dir=options.folder) as made, ExitStack() as stack:
        folder = Path(made)
        folder.chmod(0o755)  # PostgreSQL works as somebody else when this is run by root
        print(
            f"One fdatasync of 4 KiB takes {_flushes(folder)} here. Medians (least-most) of {options.rounds} rounds.\n"
        )
        bench = Bench(folder, options.rounds, options.seconds, options.instructions, stack)
        parts = {"sqlite": bench.sqlite, "postgres": bench.postgres, "dial": bench.dial, "jobs": bench.jobs}
        figures = [figure for name, part in parts.items() if options.only in (None, name) for figure in part()]
    write_json(options.json, figures)


class Bench:
    """The parts. folder: what is measured writes there. seconds: of work, per system, case and round."""

    def __init__(self, folder: Path, rounds: int, seconds: float, instructions: bool, stack: ExitStack) -> None:
        self.folder = folder
        self.rounds = rounds
        self.seconds = seconds
        self.instructions = instructions
        self._stack = stack
        self._server: Any = None

    def _peer(self, script: str, *arguments: str, **env: str) -> Peer:
        return self._stack.enter_context(peer(script, *arguments, env=env, log=self.folder / "log"))

    # -- steps and runs of durability "sync" --

    def sqlite(self) -> Figures:
        systems = {
            ZERVER: self._peer("durable_zerver.py", f"sqlite://{self.folder}/zerver.journal"),
            "dbos, with a write-ahead log": self._peer(
                "durable_dbos.py", f"sqlite:///{self.folder}/wal.db", DURABLE_WAL="1"
            ),
            "dbos, as it comes": self._peer("durable_dbos.py", f"sqlite:///{self.folder}/dbos.db"),
        }
        for name, it in systems.items():
            if name != ZERVER and it.about["synchronous"] != 2:
                raise SystemExit(f"{name} has synchronous={it.about['synchronous']}, and not FULL")
        modes = ", ".join(
            f"{name}: journal_mode={it.about['journal_mode']}"
            for name, it in systems.items()
            if it.about.get("journal_mode")
        )
        print(f"SQLite. {modes}; synchronous=FULL for all\n")
        return self._steps("SQLite", systems)

    def postgres(self) -> Figures:
        ours, theirs = self._database(), self._database()
        systems = {
            ZERVER: self._peer("durable_zerver.py", ours),
            "dbos": self._peer("durable_dbos.py", as_url(theirs, "postgresql+psycopg")),
        }
        print(f"PostgreSQL {self._server.ask('show server_version')[0][0]}, fsync on, synchronous_commit on for all\n")
        return self._steps("PostgreSQL", systems)

    def _steps(self, where: str, systems: Mapping[str, Peer]) -> Figures:
        figures: Figures = []
        for steps, concurrency in ((10, 1), (10, 8), (10, 64), (1, 8)):
            rate: Table = {name: [] for name in systems}
            half: Table = {name: [] for name in systems}
            most: Table = {name: [] for name in systems}
            for name in self._turns(systems):
                answer = systems[name].ask(steps=steps, concurrency=concurrency, seconds=self.seconds)
                took = answer["steps"] if steps > 1 else answer["runs"]
                rate[name].append(answer["rate"])
                half[name].append(percentile(took, 0.5) * 1e3)
                most[name].append(percentile(took, 0.99) * 1e3)
            self._drop_warm_up(rate, half, most)
            what = "a step, in runs of ten" if steps > 1 else "a run of one step"
            case = f"{where}: {what}, {concurrency} at once"
            figures += told(case, {("per second", "/s", 0): rate, ("p50", "ms", 2): half, ("p99", "ms", 2): most})
        return figures

    # -- the dial --

    def dial(self) -> Figures:
        """ "async" against "off", the engine alone."""
        it = self._peer("durable_dial.py", str(self.folder))
        figures: Figures = []
        for flow, about, runs, at_once in _DIAL:
            cpu: Table = {"async": [], "off": []}
            for dial in self._turns(cpu):
                cpu[dial].append(it.ask(flow=flow, dial=dial, runs=runs, at_once=at_once)["cpu"] * 1e6)
            self._drop_warm_up(cpu)
            figures += told(f"the dial: {about}", {("CPU of a run", "µs", 1): cpu})
        if self.instructions:
            for flow, about, _, at_once in _DIAL:
                counted = {dial: [self._instructions(flow, dial, at_once)] for dial in ("async", "off")}
                figures += told(f"the dial: {about}", {("instructions of a run", "k", 1): counted})
        return figures

    def _instructions(self, flow: str, dial: str, at_once: int) -> float:
        """Thousands of instructions of a run: what more runs take, divided by them. Two processes at once."""
        few, many = at_once * 2, at_once * 2 + 600
        with ThreadPoolExecutor(2) as pool:
            least, most = pool.map(lambda runs: _counted(self.folder, flow, dial, runs, at_once), (few, many))
        return (most - least) / (many - few) / 1e3

    # -- jobs --

    def jobs(self) -> Figures:
        systems = {
            name: self._peer(script.split()[0], self._database(), *script.split()[1:])
            for name, script in _JOBS.items()
            if (PEERS / script.split()[0]).exists()
        }
        print(_PROMISES)
        figures: Figures = []
        for task, about, count, at_once in _TASKS:
            rate: Table = {name: [] for name in systems}
            for name in self._turns(systems):
                rate[name].append(count / systems[name].ask(task=task, count=count, at_once=at_once)["seconds"])
            self._drop_warm_up(rate)
            figures += told(f"jobs: {about}", {("jobs per second", "/s", 0): rate})
        return figures

    # -- what they share --

    def _database(self) -> str:
        """A new database, on a server of this benchmark's own."""
        if self._server is None:
            self._server = self._stack.enter_context(postgres(self.folder / "postgres"))
        return str(self._server.make_database())

    def _turns(self, systems: Mapping[str, Any]) -> Iterator[str]:
        """Who is next: all of them in every round, in rotated order, after a round to warm up."""
        return (name for _, name in turns(systems, self.rounds))

    def _drop_warm_up(self, *tables: Table) -> None:
        for table in tables:
            for values in table.values():
                del values[0]


_DIAL: Final = (
    ("quick", "runs of three steps, one of them a write, that end at once", 1500, 16),
    ("slow", "the same, when the read and the write take 40 ms each", 400, 100),
    ("long", "the same, when they take 300 ms each, so that the runs are written behind", 200, 200),
)

_JOBS: Final = {
    ZERVER: "jobs_zerver.py",
    "procrastinate": "jobs_procrastinate.py",
    "pgqueuer": "jobs_pgqueuer.py",
    "pgqueuer, as it comes": "jobs_pgqueuer.py plain",
}

_PROMISES: Final = """\
Jobs. An order is on the disk when the call returns, in all three; a job is taken, done and called done, and the clock
stops when the last one is called done on the disk. A worker that dies leaves its jobs to others, who begin them again:
zerver     16 seats; takes and settles in batches, and takes ahead while jobs are short; connections: 10 at most
procrastinate  concurrency=16, takes and settles one by one; connections: 20 at most
pgqueuer   its tables are logged (durability=durable, the default); says what is done in batches, after 0.1 s at most,
           and begins others meanwhile; batch_size=16 and so max_concurrent_tasks=32, the least it allows; and beside it
           as it comes: batch_size=10 and no bound; connections: 20 at most
Nobody waits for a poll: the jobs are there when the worker starts, and it ends with the last one.
"""

_TASKS: Final = (
    ("one", "ordered one after the other", 100, 1),
    ("one", "ordered one by one, by 16 tasks at once", 320, 16),
    ("bulk", "ordered 1000 at a time", 2000, 1000),
    ("work", "worked on, 16 at once, each of which does nothing", 400, 16),
)


def _counted(folder: Path, flow: str, dial: str, runs: int, at_once: int) -> int:
    """Instructions of a process that performs so many runs. Its clock is as slow as cachegrind makes it."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", sys.executable]
        done = subprocess.run(
            [*command, PEERS / "durable_dial.py", own, dial, flow, str(runs), str(at_once), "200"],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None:
        raise SystemExit(f"cachegrind says nothing of instructions:\n{done.stderr}")
    return int(found[1].replace(",", ""))


def _flushes(folder: Path) -> str:
    """How long the disk takes; what waits for it once cannot be quicker."""
    took = []
    with (folder / "flushed").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1e3)
    return f"{percentile(took, 0.5):.2f} ms ({percentile(took, 0.1):.2f}-{percentile(took, 0.9):.2f})"


if __name__ == "__main__":
    main()
