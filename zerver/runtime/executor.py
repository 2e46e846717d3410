"""The executor: from being asked for a run to its result.

Law: a run goes as far as it can in the call that asks for it, and only what is left to wait for is awaited: it arrives,
gets a ticket or an honest no, begins, is carried on, and leaves. Whoever waits for it, whatever is raised on the way,
its ticket is given back once, and what it came to is told once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import Any, Final, TypeAlias

import attrs
import trio

from zerver.core import timeline as t
from zerver.core.app import App
from zerver.core.commands import Command, Park, Unwind
from zerver.core.flows import Flow
from zerver.core.load import Neighbours
from zerver.core.machine import Machine
from zerver.core.plan import Plan
from zerver.core.priorities import PRIORITIES, RANK, Priority, demoted_by
from zerver.core.tenants import NOBODY, classify
from zerver.core.tickets import Refusal, Ticket, Waiting
from zerver.core.timeline import Ending, Timeline
from zerver.core.turns import PACES
from zerver.core.work import Work
from zerver.errors import DefinitionError, InternalError
from zerver.runtime.admission import AdmissionActor
from zerver.runtime.book import Book, Draft
from zerver.runtime.clerk import Clerk, open_book
from zerver.runtime.clocks import NEVER, ahead, nanoseconds, shorter
from zerver.runtime.interpreter import Interpreter
from zerver.runtime.live import Run
from zerver.runtime.parking import put_down
from zerver.runtime.recovery import Recovered
from zerver.runtime.request import Reader, Unbegun, Values, begin, carry_on, drive, unwind
from zerver.runtime.result import Result
from zerver.runtime.takeover import Successor
from zerver.runtime.telling import Observer, Telling
from zerver.runtime.turns import Turns


@attrs.frozen(eq=False)
class Prepared:
    """A flow that can be run: compiled, with what its runs have cost so far. Made once, by whoever runs it often."""

    flow: Flow
    plan: Plan
    work: Work = attrs.field(factory=Work)
    seconds: float = attrs.field(  # that a run may take, or inf
        init=False, default=attrs.Factory(lambda made: shorter(made.flow.deadline, None), takes_self=True)
    )


#: What a run reads: values in the order of `plan.parts`, or a function that brings them, called once the run is
#: admitted, so that a body is read only for a run that has a ticket.
Parts: TypeAlias = Values | Reader

#: What is run: its parts, and what it takes, in the order of `plan.takes`.
What: TypeAlias = tuple[Prepared, Parts, Sequence[Any]]

#: On what terms: its class, the seconds that it may take, and `on_wait` and `after` as `Executor.execute` says.
Terms: TypeAlias = tuple[Priority, float, Callable[[Run], None] | None, Observer | None]


class Executor:
    """Runs what is prepared. clock: nanoseconds; it alone is read, and Trio's time is worked out from what it says."""

    def __init__(
        self,
        app: App,
        interpreter: Interpreter,
        rng: Random,
        observers: Sequence[Observer],
        rollbacks: trio.Nursery,
        neighbours: Neighbours | None,
        clerk: Clerk | None,
    ) -> None:
        self.interpreter = interpreter
        self.clock = nanoseconds()
        self.admission = AdmissionActor(app.admission, app.tenants, neighbours, rng)
        self.clerk = clerk
        self.successor: Successor | None = None
        self.telling = Telling(observers, app.on_unresolved)
        self.turns = Turns(self.clock, self.admission.tell, self.admission.waits)
        self._ahead = ahead(self.clock)
        self._rng = rng
        self._rollbacks = rollbacks
        self._runs: dict[str, Run] = {}

    def execute(
        self,
        prepared: Prepared,
        parts: Parts = (),
        takes: Sequence[Any] = (),
        *,
        tenant: str = NOBODY,
        priority: Priority | None = None,
        deadline: float | None = None,
        label: str = "",
        parent: str = "",
        run_id: str = "",
        on_wait: Callable[[Run], None] | None = None,
        on_queued: Callable[[Callable[[], None]], None] | None = None,
        after: Observer | None = None,
        degrade: What | None = None,
    ) -> Result | Coroutine[Any, Any, Result]:
        """Run a prepared flow: what `run` and the edges are made of. A run that waits for nothing is over, and this is
        its Result; what is to be awaited otherwise, at once, is the rest of it.

        takes: values in the order of `plan.takes`. priority: as `classify` has found it; by default what the flow and
        the tenant say. on_wait: see Run. on_queued: called when it has to wait for a ticket, with what to call if
        nobody wants it any more. label, parent: see Timeline. degrade: what to run in its place when it is refused, if
        there is room for that.
        after: given by an edge, which tells the observers itself, with `answered`, once it has an answer. A run whose
        deadline passes then gives its Result at once, not yet sealed; its rollback goes on in the runtime, and `after`
        gets the sealed Result. So it does when the caller is cancelled and gets none.
        """
        flow, turns, received = prepared.flow, self.turns, self.clock()
        arrived = received / 1e9 + self._ahead
        chosen = classify(flow.priority, self.admission.tenants.get(tenant)) if priority is None else priority
        if chosen not in RANK:
            raise DefinitionError(f"priority {chosen!r} is unknown", f"choose one of {', '.join(PRIORITIES)}")
        seconds = prepared.seconds if deadline is None else shorter(deadline, prepared.seconds)
        run_id, secret = run_id or self.new_id(), prepared.plan.secret
        came: t.Record = (t.RECEIVED, received, flow.name, None)
        timeline = Timeline(run_id, flow.name, flow.version, tenant, chosen, [came], secret, label, parent)
        # The run stays what it is; only its place among others is a lower one while its flow overruns.
        down = turns.demoted(flow.name) if turns.offenders.down else 0
        queued_as = demoted_by(chosen, down) if down else chosen
        answer = self.admission.arrive(queued_as, tenant, arrived, arrived + seconds, prepared.work)
        what: What = prepared, parts, takes
        terms: Terms = chosen, seconds, on_wait, after
        if isinstance(answer, Ticket):  # what is answered at once is about the time at which it was asked
            return self._begin(timeline, answer, received, what, terms)
        if isinstance(answer, Waiting):
            return self._begin_late(timeline, self._queue(answer, arrived, timeline, on_queued), what, terms, degrade)
        return self._refuse(timeline, answer, received, terms, degrade)

    async def _queue(
        self,
        waiting: Waiting,
        arrived: float,
        timeline: Timeline,
        on_queued: Callable[[Callable[[], None]], None] | None,
    ) -> Ticket | Refusal | Waiting:
        """What came of waiting for a ticket: it itself when the wait was cut, by whom on_queued has told how."""
        self.turns.notice()
        answer: Ticket | Refusal | Waiting = waiting
        try:
            with trio.CancelScope() as scope:
                if on_queued is not None:
                    on_queued(scope.cancel)
                answer = await self.admission.wait(waiting, arrived)
        except BaseException:  # the caller went away while it waited: nothing was begun, but it was here
            timeline.records.append((t.ENDED, self.clock(), timeline.flow, _CUT))
            self.telling.seal(Result(timeline, _CUT), edge=False)
            raise
        if isinstance(answer, Waiting):
            timeline.records.append((t.ENDED, self.clock(), timeline.flow, _LEFT))
        return answer

    async def _begin_late(
        self,
        timeline: Timeline,
        answering: Awaitable[Ticket | Refusal | Waiting],
        what: What,
        terms: Terms,
        degrade: What | None,
    ) -> Result:
        """Run when there is a ticket, if one comes."""
        answer = await answering
        if isinstance(answer, Waiting):  # nobody wants it any more
            *_, after = terms
            return self.telling.seal(Result(timeline, _LEFT), after is not None)
        if isinstance(answer, Ticket):
            return await finished(self._begin(timeline, answer, self.clock(), what, terms))
        return await finished(self._refuse(timeline, answer, self.clock(), terms, degrade))

    def _refuse(
        self, timeline: Timeline, refusal: Refusal, now: int, terms: Terms, degrade: What | None
    ) -> Result | Coroutine[Any, Any, Result]:
        """There is no ticket for the run; perhaps there is one for what is to run in its place."""
        timeline.records.append((t.REFUSED, now, timeline.flow, refusal))
        chosen, seconds, on_wait, after = terms
        ticket = None if degrade is None else self.admission.degrade(timeline.tenant, chosen, refusal)
        if degrade is None or ticket is None:
            return self.telling.seal(Result(timeline, Ending("refused", cause=refusal)), after is not None)
        instead = degrade[0]
        flow, secret = instead.flow, instead.plan.secret
        timeline = attrs.evolve(timeline, flow=flow.name, version=flow.version, secret=secret)
        return self._begin(timeline, ticket, now, degrade, (chosen, shorter(seconds, instead.seconds), on_wait, after))

    def _begin(
        self, timeline: Timeline, ticket: Ticket, admitted: int, what: What, terms: Terms
    ) -> Result | Coroutine[Any, Any, Result]:
        """Run with a ticket, as far as that goes without waiting.

        Nobody looks for a run before it reads its request, is written down, or waits: one that never does needs no Run.
        """
        (prepared, parts, takes), (chosen, seconds, _, after) = what, terms
        flow, plan, turns, records = prepared.flow, prepared.plan, self.turns, timeline.records
        records.append((t.ADMITTED, admitted, flow.name, chosen))
        deadline_ns = None if seconds == NEVER else records[0][1] + int(seconds * 1e9)
        pace = PACES[chosen][turns.demoted(flow.name) if turns.offenders.down else 0]
        machine = Machine(plan, timeline.run_id, self.clock, records, deadline_ns, ticket.rule.parallel, pace)
        run, book = None, None
        if callable(parts) or flow.durability != "off":
            run = self._open(flow, machine, timeline, ticket, terms)
            book = None if flow.durability == "off" else open_book(self.clerk, run, plan, self.interpreter)
        try:
            begun = begin(turns, machine, parts, takes)
        except BaseException:  # the caller gets no result, but what it left behind must be told
            result = self._end(timeline, machine, ticket, after is not None, run)
            if after is not None:
                after(result)
            raise
        if isinstance(begun, Ending) and book is None:
            return self._end(timeline, machine, ticket, after is not None, run)
        return self._carry(run or self._open(flow, machine, timeline, ticket, terms), book, begun, takes)

    def _open(self, flow: Flow, machine: Machine, timeline: Timeline, ticket: Ticket, terms: Terms) -> Run:
        """From now on others can find the run."""
        chosen, seconds, on_wait, after = terms
        ends = timeline.records[0][1] / 1e9 + self._ahead + seconds
        run = Run(flow, machine, timeline, self.admission, ticket, chosen, ends, on_wait, after)
        self._runs[run.run_id] = run
        return run

    async def _carry(
        self, run: Run, book: Book | Draft | None, begun: Command | Unbegun, takes: Sequence[Any]
    ) -> Result:
        """Carry on a run that has something to wait for."""
        written = True
        try:
            ended = begun
            if not isinstance(begun, Ending):
                ended = await drive(book or self.interpreter, self.turns, run, begun, takes)
            if isinstance(ended, Ending) and book is not None:
                written = await book.close()
        except BaseException as reason:  # as in `_begin`
            if book is not None and isinstance(reason, trio.Cancelled):  # else it is left to the next process
                await book.close()
            result = self._leave(run)
            if run.after is not None:
                run.after(result)
            raise
        if isinstance(ended, Park):
            return self._put_down(run, ended)
        if isinstance(ended, Unwind):
            self._rollbacks.start_soon(self._roll_back, run, ended, book)
            return Result(run.timeline, run.machine.ending or _CUT, sealed=False)
        result = self._leave(run)
        return result if written or not result.ok else attrs.evolve(result, ending=_UNWRITTEN)

    async def _roll_back(self, run: Run, command: Unwind, book: Book | Draft | None) -> None:
        """Carry a rollback on behind the answer; the run keeps its ticket until it is over."""
        try:
            await unwind(book or self.interpreter, run, command)
            if book is not None:
                await book.close()
        finally:
            result = self._leave(run)
            if run.after is not None:
                run.after(result)

    async def carry(self, run: Run, book: Book | Draft, found: Recovered) -> Result:
        """Carry a run on that has lost its process; it has a ticket. Used by `zerver.runtime.takeover`."""
        self._runs[run.run_id] = run
        park: t.Ending | Park | None = None
        try:
            park = await carry_on(book, self.turns, run, found)
            if not isinstance(park, Park):
                await book.close()
        except trio.Cancelled:  # it was undone all the same, and the journal has to know
            await book.close()
            raise
        finally:
            result = self._put_down(run, park) if isinstance(park, Park) else self._leave(run)
        self.telling.carried_on(result)
        return result

    def answered(self, result: Result, status: int | None) -> None:
        """Told by an edge: this is the HTTP status of the answer, None if there is none. Observers of a sealed result
        hear of it now; those of another one when it is sealed, which the edge tells by calling this with None.
        """
        if status is not None:
            result.timeline.records.append((t.ANSWERED, self.clock(), result.timeline.flow, status))
        if result.sealed:
            self.telling.tell(result)

    def keyed(self, run_id: str, found: t.Keyed, before: str) -> None:
        """Told by an edge: what came of the key that this run's request has brought. before: whose it was."""
        run = self._runs.get(run_id)
        if run is not None:
            run.records.append((t.KEYED, run.clock(), run.flow.name, (found, before)))

    def is_job(
        self,
        run_id: str,
        detail: tuple[str, int, int, int],
        may_undo: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Told by a worker: this run is an attempt of a job. detail: as the record's. may_undo: asked before anything
        of it is undone; False: the job is another worker's, or may be, and the run stops where it is.
        """
        run = self._runs.get(run_id)
        if run is not None:
            run.may_undo = may_undo
            run.records.append((t.JOB, run.clock(), run.flow.name, detail))

    def forgo(self, timeline: Timeline, ending: Ending, keyed: tuple[t.Keyed, str] | None) -> Result:
        """A run that is over before it asks for a ticket, since an edge knows what it comes to; to be told with
        `answered`. timeline: without records. keyed: as the record's detail.
        """
        now, name, records = self.clock(), timeline.flow, timeline.records
        records.append((t.RECEIVED, now, name, None))
        if keyed is not None:
            records.append((t.KEYED, now, name, keyed))
        records += [(t.ENDING, now, name, ending), (t.ENDED, now, name, ending)]
        return self.telling.seal(Result(timeline, ending), True)

    def new_id(self) -> str:
        """An id as runs have: 96 random bits, because keys of writes are made of it and must not meet again."""
        return "req_" + self._rng.getrandbits(96).to_bytes(12, "big").hex()  # half of what a format takes

    def _put_down(self, run: Run, park: Park) -> Result:
        """A parked run is nobody's now, and is forgotten here: what its caller is told."""
        self._give_back(run.machine, run.ticket, run)
        if self.clerk is None or self.successor is None:
            raise InternalError(f"run {run.run_id} was put down, and there is no journal")
        self.successor.wakes.put_down(run, park)
        return put_down(run.timeline, park, self.clerk.to_unix)

    def _leave(self, run: Run) -> Result:
        """A run that could be found is over."""
        return self._end(run.timeline, run.machine, run.ticket, run.after is not None, run)

    def _end(self, timeline: Timeline, machine: Machine, ticket: Ticket, edge: bool, run: Run | None) -> Result:
        """A run that had a ticket is over: with an ending of its own, or because its program ends."""
        self._give_back(machine, ticket, run)
        if run is not None and run.cut is not None and run.is_left:  # what it came to here is not what it comes to
            return self.telling.seal(Result(timeline, run.cut), edge)
        return self.telling.seal(Result(timeline, machine.ending or _CUT, machine.unresolved), edge)

    def _give_back(self, machine: Machine, ticket: Ticket, run: Run | None) -> None:
        """A run is not under way here any more: its ticket is for others."""
        if run is not None and self._runs.get(run.run_id) is run:  # else it was put down, and taken up meanwhile
            del self._runs[run.run_id]
        now = self.clock() / 1e9 + self._ahead
        self.admission.release(ticket, machine.cpu_ns * 1e-9, machine.waited_ns * 1e-9, now)


_LEFT: Final = Ending("cancelled", reason="the client has gone")
_CUT: Final = Ending("cancelled", reason="the host cancelled it")
_UNWRITTEN: Final = Ending("cancelled", reason="it was done, and the journal could not be told in time")


async def finished(answer: Result | Awaitable[Result]) -> Result:
    """The result of `Runtime.execute`, waited for if need be."""
    return answer if isinstance(answer, Result) else await answer
