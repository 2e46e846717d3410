"""Wakes: when a worker looks for runs that were put down, and how their signals reach them.

Law: the journal decides whether a signal is taken and whose a run is; here it is only seen to that somebody looks in
time. A signal that comes to this worker has its run taken up here at once; what another worker was told, or has put
down, is found by a look, which comes when the next run is due, and twice per lease at least. A run that is taken up
belongs to the runtime, not to who has given the signal: whoever waits for its end may leave.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from zerver.core.codec import encode_json
from zerver.errors import JournalError
from zerver.runtime.clerk import Clerk
from zerver.runtime.crash import crash_point
from zerver.runtime.elsewhere import done_in
from zerver.runtime.journal import StoredRun
from zerver.runtime.result import Result

#: Seconds between two looks at least: a run that is due may be another worker's before this one comes to it.
LEAST: Final = 0.02


class Wakes:
    """Of one runtime. take: carries on a run that was claimed; None when this worker does not."""

    def __init__(self, clerk: Clerk, take: Callable[[StoredRun], Awaitable[Result | None]]) -> None:
        self._clerk = clerk
        self._take = take
        self._nursery: trio.Nursery | None = None
        self._called = trio.Event()
        self._looks_at = float("inf")  # when the next look is, on Trio's clock; inf while that is being found out

    def open(self, nursery: trio.Nursery) -> None:
        """Take up runs in this nursery, until `close`."""
        self._nursery = nursery

    def close(self) -> None:
        self._nursery = None

    async def wait(self, least: float = 0.0) -> None:
        """Wait until it is time to look. least: seconds, when the last look was in vain."""
        if least:
            await trio.sleep(least)
        seconds = self._clerk.lease / 2
        try:
            due = await self._clerk.journal.due()
        except JournalError:
            due = None
        if due is not None:
            seconds = min(seconds, max(due, LEAST))
        self._looks_at = trio.current_time() + seconds
        with trio.move_on_after(seconds):
            await self._called.wait()
        self._called, self._looks_at = trio.Event(), float("inf")

    def notice(self, seconds: float) -> None:
        """A run was put down that is to be taken up in so many seconds."""
        if trio.current_time() + seconds < self._looks_at:
            self._called.set()

    async def give(self, run_id: str, signal: str, value: object, number: int | None) -> bool:
        """Give a signal to a run that was put down; whether it was taken. Raises InvalidData, JournalUnavailable."""
        journal = self._clerk.journal
        sealed = journal.notation.seal(encode_json(value))
        crash_point("signal.before")
        taken = await journal.signal(run_id, signal, sealed, number)
        crash_point("signal.after")
        return taken

    def call(self, run_id: str) -> None:
        """A signal has come: take the run up, unless another worker does."""
        if self._nursery is not None:
            self._nursery.start_soon(self._carry, run_id)

    async def carry(self, run_id: str) -> Result | None:
        """The same, and wait for what it comes to; None when another worker has it, or this one cannot carry it on."""
        return None if self._nursery is None else await done_in(self._nursery, lambda: self._carry(run_id))

    async def _carry(self, run_id: str) -> Result | None:
        try:
            crash_point("claim.before")
            stored = await self._clerk.journal.claim_one(run_id, self._clerk.owner)
            crash_point("claim.after")
        except JournalError:
            return None  # the next look finds it
        return None if stored is None else await self._take(stored)
