"""Wakes: when a worker looks for runs that were put down, and how their signals reach them.

Law: the journal decides whether a signal is taken and whose a run is; here it is only seen to that somebody looks in
time. A signal that comes to this worker has its run taken up here at once, or when this worker puts it down again;
what another worker was told, or has put down, is found by a look, which comes when the next run is due, and twice per
lease at least. A run that is taken up belongs to the runtime, not to who has given the signal: whoever waits for its
end may leave. A signal's value fits the step that waits for it, as far as there is code for that here. Who cannot read
a run gives it nothing: what was sealed with keys that are not the run's is read by nobody, and the run would be stuck.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from zerver.core.codec import decode_json, encode_json
from zerver.core.commands import Park
from zerver.errors import JournalError, JournalUnavailable
from zerver.runtime.clerk import Clerk
from zerver.runtime.crash import crash_point
from zerver.runtime.elsewhere import done_in
from zerver.runtime.journal import StoredRun
from zerver.runtime.live import Run
from zerver.runtime.parking import is_called_off, may_have_come, sealed_reason
from zerver.runtime.result import Result

#: Seconds between two looks at least: a run that is due may be another worker's before this one comes to it.
LEAST: Final = 0.02

#: Seconds after which a journal that could not be told is told again.
_A_WHILE: Final = 1.0


class Check(Protocol):
    """Raises InvalidData for a value that a stored run could not take. where: as in `zerver.core.signals.fitted`."""

    def __call__(self, stored: StoredRun, signal: str, value: object, where: str) -> None: ...


class Wakes:
    """Of one runtime. take: carries on a run that was claimed; None when this worker does not."""

    def __init__(self, clerk: Clerk, take: Callable[[StoredRun], Awaitable[Result | None]], check: Check) -> None:
        self._clerk = clerk
        self._check = check
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

    def put_down(self, run: Run, park: Park) -> None:
        """This worker has put a run down: look when the first of its pauses expires, or at once."""
        seconds = min(until_ns - run.clock() for _, until_ns in park.until) / 1e9
        if trio.current_time() + seconds < self._looks_at:
            self._called.set()
        if self._nursery is None:
            return
        if run.cut is not None:  # by `cancel`, when nothing could stop it any more from being put down
            self._nursery.start_soon(self._cancel_behind, run.run_id, run.cut.reason)
        elif may_have_come(run.records, park):
            self._nursery.start_soon(self._carry, run.run_id)

    async def give(
        self, run_id: str, signal: str, value: object, number: int | None = None, where: str = "value"
    ) -> bool:
        """Give a signal to a run that was put down; whether it was taken. where: how the value is called in problems.

        Raises InvalidData for what the run could not take, or is no JSON; DamagedJournal; JournalUnavailable.
        """
        journal = self._clerk.journal
        encoded = encode_json(value)
        stored = await journal.read(run_id)
        if stored is None:
            return False
        if number is None or any(one.number == number and one.value is None for one in stored.signals):
            self._check(stored, signal, decode_json(encoded, object, where), where)
        sealed = journal.notation.seal(encoded)
        crash_point("signal.before")
        taken = await journal.signal(run_id, signal, sealed, number)
        crash_point("signal.after")
        return taken

    async def cancel(self, run_id: str, reason: str) -> bool:
        """Cancel a run that is put down; whether that is what comes of it, or was before: then the first reason stands.

        Raises DamagedJournal when the run cannot be read here; JournalUnavailable.
        """
        journal = self._clerk.journal
        sealed = sealed_reason(await journal.read(run_id), reason, journal.notation)
        if sealed is None:
            return False
        crash_point("cancel.before")
        taken = await journal.cancel(run_id, sealed)
        crash_point("cancel.after")
        if taken:
            return True
        stored = await journal.read(run_id)  # whoever asks again may have been taken at their word the first time
        return stored is not None and is_called_off(stored)

    async def _cancel_behind(self, run_id: str, reason: str) -> None:
        while self._nursery is not None:
            try:
                if await self.cancel(run_id, reason):
                    await self._carry(run_id)
                return
            except JournalUnavailable:
                await trio.sleep(_A_WHILE)
            except JournalError:  # its records are not what was written: whoever takes it up says so
                return

    def call(self, run_id: str) -> None:
        """Something has come of a run: take it up, unless another worker does."""
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
            self._called.set()  # a look finds it
            return None
        return None if stored is None else await self._take(stored)
