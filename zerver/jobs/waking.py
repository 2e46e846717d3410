"""Waking: how a worker that found nothing to take learns that there may be something now.

Law: nobody who waits is forgotten: what happens between a take and the wait after it ends the wait at once, and where
nothing tells, the tables are looked at. Three things tell: this process, at once; PostgreSQL, by LISTEN; and the time
at which the next scheduled job is due.

Of orders PostgreSQL is told behind their commit, and once for many. Within it NOTIFY holds a lock of the whole server's
until the commit is on the disk, and no two processes share an fsync: of six that ordered without a pause, all together
had no more orders than one. Who dies in between has told nobody, and then workers see by themselves.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from zerver.errors import DriverError
from zerver.sql.dialects import Dialect
from zerver.sql.driver import Driver, Statement
from zerver.sql.enqueueing import CHANNEL

#: Seconds between looks at the tables, where another process cannot tell; and where it can, but may have failed to.
POLL_SECONDS: Final = 0.25
CHECK_SECONDS: Final = 1.0

#: Seconds between two times that other processes are told; and that the last one may take when the store is closed.
_TELL_SECONDS: Final = 0.01
_LAST_SECONDS: Final = 1.0

#: It is lost with the server, and so nobody waits for the disk: its lock is held for a moment.
_TELL: Final = Statement("select pg_notify(?, ''), set_config('synchronous_commit', 'off', true)", (CHANNEL,))

#: Seconds after which a database that told nothing any more is listened to again.
_AGAIN_SECONDS: Final = 1.0

LOOK: Final = (
    "select (select wakes from zerver_jobs_store), "
    "(select min(due) from zerver_jobs where state = 'scheduled'), {wall}, "
    "exists (select 1 from zerver_jobs where state = 'available')"
)


class Waking:
    """Tells one worker. Several may wait: each is told."""

    def __init__(self, driver: Driver, dialect: Dialect) -> None:
        self._driver = driver
        self._dialect = dialect
        self._woken = trio.Event()
        self._wakes: object = None
        self._wanted = trio.Event()  # whether anybody here has ever waited
        self._untold = trio.Event()  # whether other processes are to be told

    def seen(self) -> None:
        """What has happened so far is about to be looked at."""
        if self._woken.is_set():
            self._woken = trio.Event()

    def seen_wakes(self, wakes: object) -> None:
        """Looked at was what stood there when the database had counted so many."""
        self._wakes = wakes

    def wake(self) -> None:
        """Something has happened in this process."""
        self._woken.set()

    def ordered(self) -> None:
        """Jobs were ordered in this process: who waits here is told at once, and those of others by `tell`."""
        self.wake()
        self._untold.set()

    async def tell(self) -> None:
        """Tell other processes, until cancelled, and what they were not told then; to be run by the opener."""
        if not self._dialect.notifies:
            return
        try:
            while True:
                await self._untold.wait()
                await self._tell()
                await trio.sleep(_TELL_SECONDS)
        finally:
            if self._untold.is_set():
                with trio.move_on_after(_LAST_SECONDS, shield=True):
                    await self._tell()

    async def _tell(self) -> None:
        self._untold = trio.Event()
        try:
            await self._driver.fetch(_TELL)
        except DriverError:  # they see by themselves
            pass
        except trio.Cancelled:
            self._untold.set()
            raise

    async def wait(self) -> None:
        """Wait until told, or until the time of the next scheduled job has come."""
        woken, looks = self._woken, 0
        self._wanted.set()
        await trio.lowlevel.checkpoint()
        while not woken.is_set():
            pause = await self._look(woken, looks)
            looks += 1
            with trio.move_on_after(pause):
                await woken.wait()

    async def _look(self, woken: trio.Event, looks: int) -> float:
        """Set the event if there is a reason; for how many seconds there is no need to look again."""
        found: Any = await self._driver.fetch(Statement(LOOK.format(wall=self._dialect.wall())))
        wakes, due, wall, available = found.rows[0]
        if self._dialect.notifies:
            # Not at the first look: a job that may not begin, for its queue is full, would be asked for without end.
            told = bool(looks and available)
        else:
            told = wakes != self._wakes
            self._wakes = wakes
        if told or (due is not None and due <= wall):
            woken.set()
        pause = CHECK_SECONDS if self._dialect.notifies else POLL_SECONDS
        return pause if due is None else max(0.0, min(pause, (due - wall) / 1e9))

    async def listen(self) -> None:
        """Be told by the database, for ever; to be run by the opener.

        Not before somebody waits: a process that only orders would be woken by each order of its own, and needs no
        connection for that.
        """
        listen: Any = getattr(self._driver, "listen", None)
        if not self._dialect.notifies or listen is None:
            return
        await self._wanted.wait()
        while True:
            try:
                async with listen(CHANNEL) as listener:
                    self.wake()  # what was notified before is lost
                    async for _ in listener:
                        self.wake()
            except DriverError:
                self.wake()
                await trio.sleep(_AGAIN_SECONDS)
