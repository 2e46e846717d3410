"""Takeover: runs whose worker has died are carried on by one that lives.

Law: a run that is taken over ends, as it would have ended, or undone, or it is set aside and somebody is told why
(`cases.py`): nothing that a stored run makes code stumble over takes the worker along, or the next one would be next.
It waits for a ticket as all do, and is never refused: it asks again. A worker that drains takes over nothing more.

An unfinished run of durability "async" is not carried on: its last moments are not known, so nobody could say what of
it had been started. It is closed, as unresolved if it had asked for a write.

A run that was put down while it was parked is taken up in the same way when it is due (`wakes.py`); its process has not
died, so it goes on whatever `on_crash` says, and of durability "async" too: it is on the disk whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import attrs
import trio

from zerver.core import timeline as t
from zerver.core.app import App
from zerver.core.calls import Call
from zerver.core.codec import decode_json
from zerver.core.commands import Park
from zerver.core.flows import Flow
from zerver.core.priorities import RANK, Priority
from zerver.core.retrial import try_again
from zerver.core.tickets import Ticket
from zerver.core.timeline import Ending, Timeline
from zerver.core.turns import PACES
from zerver.errors import JournalError, JournalUnavailable, LeaseLost
from zerver.runtime.admission import AdmissionActor
from zerver.runtime.alarm import stored_alarm
from zerver.runtime.book import Book, Draft
from zerver.runtime.cases import Cases
from zerver.runtime.clerk import Clerk
from zerver.runtime.crash import crash_point
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.interpreter import Interpreter
from zerver.runtime.journal import UNRESOLVED, Page, RunHead, StoredRun
from zerver.runtime.judging import check_signal, lead, why_stuck
from zerver.runtime.live import AWAY, Run
from zerver.runtime.parking import letters, still_down
from zerver.runtime.recovery import CRASHED, Astray, Recovered, rebased, recover
from zerver.runtime.result import Result
from zerver.runtime.sheets import Sheets
from zerver.runtime.telling import Telling
from zerver.runtime.versions import Found, Versions, code_of
from zerver.runtime.wakes import Wakes

#: How many runs are claimed at once; the next ones when these have been begun.
AT_ONCE: Final = 32

#: What a run comes to that this worker had to leave where it was.
_STOPPED: Final = Ending("cancelled", reason=f"{AWAY.reason} while it ran")

#: Seconds after which one asks again for a ticket if nobody says when.
_A_WHILE: Final = 1.0

_ASYNC: Final = 'its process died, and it was of durability "async": what of its writes has happened is not known'


class Host(Protocol):
    """What a takeover needs of the runtime."""

    admission: AdmissionActor
    interpreter: Interpreter
    telling: Telling

    async def carry(self, run: Run, book: Book | Draft, found: Recovered) -> Result:
        """Carry a run to its end, or until it is put down; it has a ticket."""
        ...


class Successor:
    """Takes over runs. taken: how many whose worker had died, or that were tried again. cases: what it could not carry
    on. wakes: what was put down. versions, reader: the code that there is for stored runs.
    """

    def __init__(self, clerk: Clerk, host: Host, app: App, flows: Sequence[Flow]) -> None:
        self.clerk = clerk
        self.host = host
        self.taken = 0
        self.closing = False
        self.versions = Versions(app, flows)
        self.reader = clerk.journal.notation.reader(*code_of(app, flows))
        self.cases = Cases(clerk, self.versions, self.reader, self.take, host.telling.alarm)
        self.wakes = Wakes(clerk, self.take, self._check)
        self._room = trio.Semaphore(AT_ONCE)  # for runs that wait for a ticket: the others stay on the disk

    async def claim(self, nursery: trio.Nursery) -> None:
        """Claim runs whose lease has lapsed, or that are to be taken up, for as long as this worker admits any."""
        clerk = self.clerk
        while not self.host.admission.draining:
            claimed, pause = list[StoredRun](), 0.0
            try:
                await self._retake(nursery)
                crash_point("claim.before")
                claimed = await clerk.journal.claim(clerk.owner, AT_ONCE)
                crash_point("claim.after")
            except JournalError:
                pause = _A_WHILE  # the clerk tries too, and says when it is back
            for stored in claimed:
                await self._room.acquire()
                nursery.start_soon(self._take_claimed, stored)
            if len(claimed) < AT_ONCE:
                await self.wakes.wait(pause)

    async def _take_claimed(self, stored: StoredRun) -> None:
        """Carry it on; when it has a ticket, or needs none, there is room for the next."""
        held = [self._room]

        def release() -> None:
            while held:
                held.pop().release()

        try:
            await self.take(stored, on_ticket=release)
        finally:
            release()

    async def _retake(self, nursery: trio.Nursery) -> None:
        """Runs that this worker had to leave where they were, because the journal was away, are undone."""
        clerk = self.clerk
        for sheets in [*clerk.left]:
            stored = await sheets.retake()
            del clerk.left[sheets]
            if stored is not None:
                nursery.start_soon(self.take, stored, _STOPPED)

    async def take(
        self, stored: StoredRun, ending: Ending | None = None, *, on_ticket: Callable[[], None] | None = None
    ) -> Result | None:
        """Carry one run on. ending: what it has come to, if it is not to go on. on_ticket: called when it has a ticket.
        None when it was set aside, or is for another worker.
        """
        head = stored.head
        try:
            timeline = self.reader.read(stored)
            ending = self._cut(stored) or ending
            if head.durability != "sync" and stored.wakes_unix_ns is None and ending is None:
                await self._close(stored, timeline)
                return None
            code = self.versions.find(head)
            ticket = await self._ticket(head)
            if ticket is None:
                return None
            if on_ticket is not None:
                on_ticket()
            try:
                run, book, found = self._recovered(stored, timeline, code, ticket, ending)
                if isinstance(book, Draft):
                    await self._resume(book)
            except BaseException:
                self.host.admission.release(ticket)
                raise
            self.taken += stored.wakes_unix_ns is None
            return await self.host.carry(run, book, found)
        except (LeaseLost, JournalUnavailable):  # it is another worker's by now, or will be, since this one ends
            return None
        except Exception as error:
            await self.cases.set_aside(stored, why_stuck(error))
            return None

    async def recall(self, run_id: str) -> Result | None:
        """What the journal has of a run: what it came to, not sealed while it has not ended; None if it has nothing. Of
        one that is put down, where it goes on, as whoever put it down was told.

        Raises JournalError; Astray when no code here can say what it came to.
        """
        stored = await self.clerk.journal.read(run_id)
        if stored is None:
            return None
        timeline = self.reader.read(stored)
        if not stored.status:
            return still_down(timeline, stored) or Result(timeline, _STOPPED, sealed=False)
        machine = recover(self.versions.find(stored.head).plan, timeline, to_undo=True).machine
        if machine.ending is None:
            raise Astray("its records have no end")
        return Result(attrs.evolve(timeline, records=machine.records), machine.ending, machine.unresolved)

    def _recovered(
        self, stored: StoredRun, timeline: Timeline, code: Found, ticket: Ticket, ending: Ending | None
    ) -> tuple[Run, Book | Draft, Recovered]:
        """The run as it was. Raises Astray."""
        clerk, head, host, flow, plan = self.clerk, stored.head, self.host, code.flow, code.plan
        if not timeline.records:
            raise Astray("it has no records")
        shift = head.began_unix_ns - clerk.to_unix(timeline.records[0][1])
        # It is as old as its records at least: a wall clock that was set back since must not make its deadline later.
        shift -= max(0, timeline.records[-1][1] + shift - clerk.clock())
        timeline.records[:] = rebased(timeline.records, shift)
        was_put_down = stored.wakes_unix_ns is not None
        is_taken_up = was_put_down and (ending is None or stored.cut is not None)
        found, ending = lead(timeline, code, self.reader, ending, crashed=not was_put_down)
        machine = found.machine
        machine.clock, machine.pace = clerk.clock, PACES[ticket.priority][0]
        live = attrs.evolve(timeline, records=machine.records, priority=ticket.priority, secret=plan.secret)
        park = found.command if isinstance(found.command, Park) else None
        left = None if machine.deadline_ns is None or park else (machine.deadline_ns - clerk.clock()) / 1e9
        ends = float("inf") if left is None else trio.current_time() + left
        run = Run(flow, machine, live, host.admission, ticket, ticket.priority, ends)
        if machine.ending is None:
            run.cut = ending
        if park is not None:
            run.found = letters(machine.records, park, stored, clerk.journal.notation)
        sheets = Sheets(clerk, run, plan, stored, shift)
        book: Book | Draft = Book(clerk, sheets, host.interpreter, found.known)
        if head.durability != "sync":
            book = Draft(clerk, run, plan, host.interpreter, sheets)
        if machine.finished:  # it had ended, and was reopened
            return run, book, attrs.evolve(found, command=try_again(machine, clerk.owner))
        run.records.append((t.RESUMED if is_taken_up else t.RECOVERED, run.clock(), flow.name, clerk.owner))
        return run, book, found

    def _cut(self, stored: StoredRun) -> Ending | None:
        """What a run has come to that was cancelled while it was put down; None when it was not, or its records say it
        by now. Raises DamagedJournal for a reason that does not open.
        """
        if stored.cut is None or stored.wakes_unix_ns is None:
            return None
        return Ending("cancelled", reason=decode_json(self.clerk.journal.notation.unseal(stored.cut), str))

    def _check(self, stored: StoredRun, signal: str, value: object, where: str) -> None:
        check_signal(stored, self.versions, self.reader, signal, value, where)

    async def _resume(self, draft: Draft) -> None:
        """An "async" run goes on only when the journal knows. Raises LeaseLost."""
        while True:
            try:
                return await draft.resume()
            except JournalUnavailable:
                if self.closing:  # it is put down still, and for the next worker
                    raise
                await trio.sleep(_A_WHILE)

    async def _ticket(self, head: RunHead) -> Ticket | None:
        """Permission to run, however long that takes; None when this runtime takes in nobody any more."""
        priority: Priority = head.priority if head.priority in RANK else "batch"
        while True:
            answer = await self.host.admission.acquire(priority, head.tenant)
            if isinstance(answer, Ticket):
                return answer
            if answer.reason == "draining":
                return None
            await trio.sleep(answer.retry_after or _A_WHILE)

    async def _close(self, stored: StoredRun, timeline: Timeline) -> None:
        """An "async" run ends here."""
        calls = [subject for _, _, subject, _ in timeline.records if isinstance(subject, Call)]
        wrote = any(call.effect.kind.access == "write" for call in calls)
        status = UNRESOLVED if wrote else CRASHED.status
        page = Page(stored.head.run_id, stored.fence, len(stored.lines), (), status)
        while not self.closing:
            try:
                await self.clerk.journal.write(page)
            except JournalUnavailable:
                await trio.sleep(_A_WHILE)
            else:
                break
        if wrote and not self.closing:
            self.host.telling.alarm(stored_alarm(stored.head, False, _ASYNC))


@asynccontextmanager
async def open_successor(successor: Successor, takeover: bool = True) -> AsyncIterator[None]:
    """Takes over until the block is left; then waits for those that it had taken. takeover: whether it does at all."""
    async with open_body_nursery() as nursery:
        claims = trio.CancelScope()

        async def work() -> None:
            with claims:
                async with trio.open_nursery() as loops:
                    loops.start_soon(successor.claim, nursery)
                    loops.start_soon(successor.cases.look)

        successor.cases.open(nursery)
        if takeover:
            successor.wakes.open(nursery)
            nursery.start_soon(work)
        try:
            yield
        finally:
            successor.closing = True
            successor.wakes.close()
            successor.cases.close()
            claims.cancel()
