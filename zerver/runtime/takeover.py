"""Takeover: runs whose worker has died are carried on by one that lives.

Law: a run that is taken over ends, as it would have ended, or undone, or somebody is told that it is stuck and why. It
waits for a ticket as all do, and is never refused: it asks again. What is stuck is left alone, with its records: code
that goes another way than they went must not touch it.

An unfinished run of durability "async" is not carried on: its last moments are not known, so nobody could say what of
it had been started. It is closed, as unresolved if it had asked for a write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import attrs
import trio

from zerver.core import timeline as t
from zerver.core.app import App
from zerver.core.calls import Call
from zerver.core.flows import Flow
from zerver.core.plan import Plan, compile_plan
from zerver.core.priorities import RANK, Priority
from zerver.core.tickets import Ticket
from zerver.core.timeline import Timeline
from zerver.core.turns import pace_of
from zerver.errors import JournalError, JournalUnavailable
from zerver.runtime.admission import AdmissionActor
from zerver.runtime.book import Book, Sheets
from zerver.runtime.clerk import Clerk
from zerver.runtime.crash import crash_point
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.interpreter import Interpreter
from zerver.runtime.journal import UNRESOLVED, Page, RunHead, StoredRun
from zerver.runtime.live import Run
from zerver.runtime.recovery import CRASHED, Astray, Recovered, rebased, recover

#: How many runs are claimed at once; the next ones when these have been begun.
AT_ONCE: Final = 32

#: Seconds after which one asks again for a ticket if nobody says when.
_A_WHILE: Final = 1.0


class Host(Protocol):
    """What a takeover needs of the runtime."""

    admission: AdmissionActor
    interpreter: Interpreter

    async def carry(self, run: Run, book: Book, found: Recovered) -> None:
        """Carry a run to its end; it has a ticket."""
        ...


class Successor:
    """Takes over runs. stuck: those that cannot be carried on by this code, and why."""

    def __init__(self, clerk: Clerk, host: Host, app: App, flows: Sequence[Flow]) -> None:
        self.clerk = clerk
        self.host = host
        self.taken = 0
        self.stuck: dict[str, str] = {}
        self._code = _code_of(app, flows)
        self._reader = clerk.journal.notation.reader(app, *flows)

    async def claim(self, nursery: trio.Nursery) -> None:
        """Claim runs whose lease has lapsed, for as long as this worker lives."""
        clerk = self.clerk
        while True:
            claimed: list[StoredRun] = []
            try:
                crash_point("claim.before")
                claimed = await clerk.journal.claim(clerk.owner, AT_ONCE)
                crash_point("claim.after")
            except JournalError:
                pass  # the clerk tries too, and says when it is back
            for stored in claimed:
                nursery.start_soon(self.take, stored)
            if len(claimed) < AT_ONCE:
                await trio.sleep(clerk.lease / 2)

    async def take(self, stored: StoredRun) -> None:
        """Carry one run on."""
        head = stored.head
        try:
            timeline = self._reader.read(stored)
            if head.durability != "sync":
                await self._close(stored, timeline)
                return
            flow, plan = self._find(head)
            ticket = await self._ticket(head)
            if ticket is None:
                return
            try:
                run, book, found = self._recovered(stored, timeline, flow, plan, ticket)
            except BaseException:
                self.host.admission.release(ticket)
                raise
        except (Astray, JournalError) as error:
            self.stuck[head.run_id] = str(error)
            return
        self.taken += 1
        await self.host.carry(run, book, found)

    def _recovered(
        self, stored: StoredRun, timeline: Timeline, flow: Flow, plan: Plan, ticket: Ticket
    ) -> tuple[Run, Book, Recovered]:
        """The run as it was. Raises Astray."""
        clerk, head, host = self.clerk, stored.head, self.host
        if not timeline.records:
            raise Astray("it has no records")
        shift = head.began_unix_ns - clerk.to_unix(timeline.records[0][1])
        timeline.records[:] = rebased(timeline.records, shift)
        undo = flow.on_crash == "compensate"
        found = recover(plan, timeline, to_undo=undo)
        machine = found.machine
        machine.clock = clerk.clock
        live = attrs.evolve(timeline, records=machine.records, priority=ticket.priority, secret=plan.secret)
        left = None if machine.deadline_ns is None else (machine.deadline_ns - clerk.clock()) / 1e9
        ends = float("inf") if left is None else trio.current_time() + left
        run = Run(flow, machine, live, host.admission, ticket, ticket.priority, pace_of(ticket.priority, 0), ends, None)
        if undo and machine.ending is None:
            run.cut = CRASHED
        book = Book(Sheets(clerk, run, plan, stored, shift), host.interpreter, found.known)
        run.records.append((t.RECOVERED, run.clock(), flow.name, clerk.owner))
        return run, book, found

    def _find(self, head: RunHead) -> tuple[Flow, Plan]:
        found = self._code.get((head.label, head.flow))
        if found is None:
            raise Astray(f"there is no flow {head.flow!r} here" + (f" at {head.label}" if head.label else ""))
        return found

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
        while True:
            try:
                await self.clerk.journal.write(page)
            except JournalUnavailable:
                await trio.sleep(_A_WHILE)
            else:
                return


@asynccontextmanager
async def open_successor(successor: Successor) -> AsyncIterator[None]:
    """Takes over until the block is left; then waits for those that it had taken."""
    async with open_body_nursery() as nursery:
        claims = trio.CancelScope()

        async def claim() -> None:
            with claims:
                await successor.claim(nursery)

        nursery.start_soon(claim)
        try:
            yield
        finally:
            claims.cancel()


def _code_of(app: App, flows: Sequence[Flow]) -> Mapping[tuple[str, str], tuple[Flow, Plan]]:
    """Flows and their plans by what a run's head says of them: what its edge calls it, and its flow."""
    code = {("", flow.name): (flow, compile_plan(flow)) for flow in flows if flow.durability != "off"}
    for route in app.routes:
        for flow, plan in ((route.flow, route.plan()), (route.flow.degrade, route.degrade_plan())):
            if flow is not None and plan is not None and flow.durability != "off":
                code[route.label, flow.name] = (flow, plan)
    return code
