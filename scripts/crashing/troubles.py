"""What befalls a shop beside death: processes that stand still for longer than their lease, databases that are away.

    kill       nothing but death
    zombie     of many crews one process stands still (SIGSTOP) for twice its lease, and goes on when others have its
               work
    outage     the database is stopped at once and started again, or it is there and does not answer
    mixed      any of them

Law: a trouble ends by itself. A SQLite file is no process: it is away while somebody else has its write lock.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing, suppress
from typing import Final, Literal, TypeAlias

import attrs
import trio

from scripts.crashing.servers import children_of
from tests.sql.postgresql import Server

Profile: TypeAlias = Literal["kill", "zombie", "outage", "mixed"]
Trouble: TypeAlias = Literal["", "zombie", "stopped", "frozen"]

#: How often which trouble befalls a crew.
RATES: Final[dict[Profile, dict[Trouble, float]]] = {
    "kill": {},
    "zombie": {"zombie": 0.7},
    "outage": {"stopped": 0.15, "frozen": 0.15},
    "mixed": {"zombie": 0.3, "stopped": 0.1, "frozen": 0.1},
}

#: Seconds that a database is away, at most, unless a campaign says how long. Longer than who writes to a locked file
#: waits for it.
AWAY: Final = 6.0


def draw(profile: Profile, rng: random.Random) -> Trouble:
    chance = rng.random()
    for trouble, rate in RATES[profile].items():
        chance -= rate
        if chance < 0:
            return trouble
    return ""


@attrs.frozen
class Databases:
    """journal: its URL. shop: a file, or a URL; the jobs are there too. server: of the URLs, None for files."""

    journal: str
    shop: str
    server: Server | None = None

    @property
    def jobs(self) -> str:
        """The URL of the store of jobs."""
        return self.shop if "://" in self.shop else f"sqlite:///{self.shop}"

    @property
    def journal_place(self) -> str:
        """As `scripts.crashing.evidence.ask` takes it."""
        return self.journal.removeprefix("sqlite:///")

    async def away(self, trouble: Trouble, rng: random.Random, longest: float = AWAY) -> None:
        """For some seconds, so many at most."""
        seconds = rng.uniform(0.0, longest)
        if self.server is None:
            await trio.to_thread.run_sync(_lock, rng.choice((self.journal_place, self.shop)), seconds)
        elif trouble == "stopped":
            await trio.to_thread.run_sync(self.server.stop, signal.SIGQUIT)
            await trio.sleep(seconds / 2)
            await trio.to_thread.run_sync(self.server.start)
        else:
            stopped = _stop(self.server)
            try:
                await trio.sleep(seconds)
            finally:
                for pid in stopped:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)


def _lock(file: str, seconds: float) -> None:
    with closing(sqlite3.connect(file, timeout=30.0, isolation_level=None)) as database:
        database.execute("begin immediate")
        time.sleep(seconds)
        database.execute("rollback")


def _stop(server: Server) -> list[int]:
    """Stop a server and all its backends in their tracks."""
    pids = [server.pid, *sorted(children_of(server.pid))]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return pids
