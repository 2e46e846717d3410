"""The runtime: an app, open. Runs flows inside any Trio program.

Law: structured concurrency all the way. A run lives in the task that asked for it; resources live in `open_runtime`;
when that block is left, for whatever reason, no run is under way and every resource is closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from random import Random
from types import MappingProxyType
from typing import Any, TypeAlias

import attrs
import trio

from zerver.core import timeline as t
from zerver.core.app import App
from zerver.core.commands import Park, Unwind
from zerver.core.flows import Flow
from zerver.core.load import Neighbours
from zerver.core.machine import Machine
from zerver.core.plan import Plan, compile_plan
from zerver.core.priorities import PRIORITIES, RANK, Priority, demoted_by
from zerver.core.quotas import Quota
from zerver.core.tenants import NOBODY, Tenant, Tenants, as_tenants, classify
from zerver.core.tickets import Refusal, Ticket, Waiting
from zerver.core.timeline import Ending, Record, Timeline
from zerver.core.turns import PACES
from zerver.core.work import Work
from zerver.errors import DefinitionError, InternalError
from zerver.runtime.admission import AdmissionActor
from zerver.runtime.book import Book, Draft
from zerver.runtime.clerk import Clerk, check_durable, open_book
from zerver.runtime.clocks import NEVER, nanoseconds, shorter
from zerver.runtime.drain import drain
from zerver.runtime.handlers import BUILTIN_KINDS
from zerver.runtime.inputs import inputs
from zerver.runtime.interpreter import Interpreter
from zerver.runtime.live import Run, forget, wait_put_down
from zerver.runtime.offload import check_offloads
from zerver.runtime.parking import put_down
from zerver.runtime.recovery import Recovered
from zerver.runtime.request import Reader, Values, begin, carry_on, drive, unwind
from zerver.runtime.result import Result
from zerver.runtime.statistics import RuntimeStatistics
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


class Runtime:
    """Runs the flows of an app. Made by `open_runtime`."""

    def __init__(
        self,
        app: App,
        interpreter: Interpreter,
        resources: Mapping[type, Any],
        rng: Random,
        observers: Sequence[Observer],
        rollbacks: trio.Nursery,
        neighbours: Neighbours | None,
        clerk: Clerk | None = None,
    ) -> None:
        self.app = app
        self.resources = resources
        self.interpreter = interpreter
        self.handled = BUILTIN_KINDS | interpreter.handlers.overridden  # kinds that no capability has to bring
        self._seconds = trio.lowlevel.current_clock().current_time
        self.admission = AdmissionActor(app.admission, app.tenants, neighbours, rng, self._seconds)
        self.clerk = clerk
        self.successor: Successor | None = None
        self.telling = Telling(observers, app.on_unresolved)
        self.clock = nanoseconds()
        self.turns = Turns(self.clock, self.admission.tell, self.admission.waits)
        self._rng = rng
        self._rollbacks = rollbacks
        self._runs: dict[str, Run] = {}
        self._prepared: dict[Flow, Prepared] = {}

    async def run(
        self,
        flow: Flow,
        body: object = None,
        *,
        given: Mapping[str, object] | None = None,
        tenant: str = "default",
        priority: Priority | None = None,
        deadline: float | None = None,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> Result:
        """Run a flow to its end, and tell what it came to.

        body: for a parameter that reads the request's body; a dict is read as JSON would be. given: other
        request parts and taken slots, by name.
        deadline: seconds; the flow's own by default, and never beyond it. task_status: `await nursery.start(partial(
        runtime.run, flow))` gives the run's id at once, for `signal` and `cancel`; observers get the Result.

        Raises InvalidData when a required part or taken slot is not given; trio.Cancelled when the caller is cancelled,
        after what was committed has been compensated.
        """
        await trio.lowlevel.checkpoint()
        prepared = self.prepare(flow)
        parts, takes = inputs(prepared.plan, body, given or {})
        degrade = None
        if flow.degrade is not None:
            instead = self.prepare(flow.degrade)
            degrade = (instead, *inputs(instead.plan, body, given or {}))
        run_id = self.new_id()
        task_status.started(run_id)
        return await self.execute(
            prepared, parts, takes, tenant=tenant, priority=priority, deadline=deadline, run_id=run_id, degrade=degrade
        )

    async def execute(
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
        degrade: tuple[Prepared, Parts, Sequence[Any]] | None = None,
    ) -> Result:
        """Run a prepared flow: what `run` and the edges are made of.

        takes: values in the order of `plan.takes`. priority: as `classify` has found it; by default what the flow and
        the tenant say. on_wait: see Run. on_queued: called when it has to wait for a ticket, with what to call if
        nobody wants it any more. label, parent: see Timeline. degrade: what to run in its place when it is refused, if
        there is room for that, with its parts and takes.
        after: given by an edge, which tells the observers itself, with `answered`, once it has an answer. A run whose
        deadline passes then gives its Result at once, not yet sealed; its rollback goes on in the runtime, and `after`
        gets the sealed Result. So it does when the caller is cancelled and gets none.
        """
        clock, admission, turns, flow = self.clock, self.admission, self.turns, prepared.flow
        received, arrived = clock(), self._seconds()
        chosen = classify(flow.priority, admission.tenants.get(tenant)) if priority is None else priority
        if chosen not in RANK:
            raise DefinitionError(f"priority {chosen!r} is unknown", f"choose one of {', '.join(PRIORITIES)}")
        seconds = prepared.seconds if deadline is None else shorter(deadline, prepared.seconds)
        run_id = run_id or self.new_id()
        records: list[Record] = [(t.RECEIVED, received, flow.name, None)]
        timeline = Timeline(
            run_id, flow.name, flow.version, tenant, chosen, records, prepared.plan.secret, label, parent
        )
        # The run stays what it is; only its place among others is a lower one while its flow overruns.
        down = turns.demoted(flow.name) if turns.offenders.down else 0
        queued_as = demoted_by(chosen, down) if down else chosen
        answer = admission.arrive(queued_as, tenant, arrived, arrived + seconds, prepared.work)
        admitted = received  # what admission answers at once is about the time at which it was asked
        if isinstance(answer, Waiting):
            answer = await self._queue(answer, arrived, timeline, on_queued)
            admitted = clock()
        if isinstance(answer, Ticket):
            ticket = answer
        elif isinstance(answer, Waiting):  # nobody wants it any more
            return self.telling.seal(Result(timeline, _LEFT), after is not None)
        else:
            records.append((t.REFUSED, admitted, flow.name, answer))
            instead = None if degrade is None else admission.degrade(tenant, chosen, answer)
            if degrade is None or instead is None:
                return self.telling.seal(Result(timeline, Ending("refused", cause=answer)), after is not None)
            ticket, (prepared, parts, takes) = instead, degrade
            flow, seconds = prepared.flow, shorter(seconds, prepared.seconds)
            down, secret = turns.demoted(flow.name), prepared.plan.secret
            timeline = attrs.evolve(timeline, flow=flow.name, version=flow.version, secret=secret)
        records.append((t.ADMITTED, admitted, flow.name, chosen))
        deadline_ns = None if seconds == NEVER else received + int(seconds * 1e9)
        machine = Machine(prepared.plan, run_id, clock, records, deadline_ns, ticket.rule.parallel)
        ends, pace = arrived + seconds, PACES[chosen][down]
        run = Run(flow, machine, timeline, admission, ticket, chosen, pace, ends, on_wait, after)
        self._runs[run_id] = run
        book = None if flow.durability == "off" else open_book(self.clerk, run, prepared.plan, self.interpreter)
        written = True
        try:
            ended = begin(turns, run, parts, takes)
            if not isinstance(ended, Ending):  # it has something to wait for
                ended = await drive(book or self.interpreter, turns, run, ended, takes)
            if book is not None:
                if isinstance(ended, Park):
                    return self._put_down(run, ended)
                written = isinstance(ended, Unwind) or await book.close()
        except BaseException as reason:  # the caller gets no result, but what it left behind must be told
            if book is not None and isinstance(reason, trio.Cancelled):  # else it is left to the next process
                await book.close()
            result = self._leave(run, after is not None)
            if after is not None:
                after(result)
            raise
        if isinstance(ended, Unwind):
            self._rollbacks.start_soon(self._roll_back, run, ended, book)
            return Result(timeline, machine.ending or _CUT, sealed=False)
        result = self._leave(run, after is not None)
        return result if written or not result.ok else attrs.evolve(result, ending=_UNWRITTEN)

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
            result = self._put_down(run, park) if isinstance(park, Park) else self._leave(run, edge=False)
        self.telling.carried_on(result)
        return result

    def follow(self, prefix: str, follower: Observer) -> AbstractContextManager[None]:
        """Be told, for as long as the block takes, of runs whose id begins so and that were carried on here: after a
        crash, or a pause. Nobody waits for their result. The follower must be quick, and not raise.
        """
        return self.telling.follow(prefix, follower)

    def _put_down(self, run: Run, park: Park) -> Result:
        """A parked run is nobody's now, and is forgotten here: what its caller is told."""
        forget(self._runs, run)
        self.admission.release(run.ticket, run.cpu_ns * 1e-9, run.waited_ns * 1e-9)
        if self.clerk is None or self.successor is None:
            raise InternalError(f"run {run.run_id} was put down, and there is no journal")
        self.successor.wakes.put_down(run, park)
        return put_down(run.timeline, park, self.clerk.to_unix)

    async def retry(self, run_id: str) -> Result:
        """Try a run of the journal again that ended unresolved, or carry one on that was set aside; what it came to.

        Of an unresolved run only the unresolved writes are looked at: those in doubt are asked about, else undone by
        their key; those that had happened are undone. It ends as it had, resolved or not. Whoever is cancelled while it
        waits leaves that under way, in the runtime.

        Raises CannotRetry when there is no such run, it needs nobody, or the code for it is not here;
        JournalUnavailable.
        """
        if self.successor is None:
            raise DefinitionError("a run is to be tried again, but there is no journal", "open_runtime(app, journal=…)")
        return await self.successor.cases.retry(run_id)

    async def recall(self, run_id: str) -> Result | None:
        """What the journal has of a run, as `zerver.runtime.takeover.Successor.recall`; None without a journal."""
        return None if self.successor is None else await self.successor.recall(run_id)

    async def _roll_back(self, run: Run, command: Unwind, book: Book | Draft | None) -> None:
        """Carry a rollback on behind the answer; the run keeps its ticket until it is over."""
        try:
            await unwind(book or self.interpreter, run, command)
            if book is not None:
                await book.close()
        finally:
            result = self._leave(run, run.after is not None)
            if run.after is not None:
                run.after(result)

    async def signal(self, run_id: str, signal: str, value: object = None, number: int | None = None) -> bool:
        """Tell a parked run what it waits for, wherever it is parked; whether it was taken. Of all who tell it for one
        pause, one gets True. False when no such run waits for this signal, or its time is over.

        value: becomes the type that the step waits for: that of its slot, or of the first parameter of its `resume`;
        for a durable run it is what JSON can say. number: for this pause of the run alone. Raises InvalidData for a
        value that is not of that type, or no JSON, and then the run waits on; JournalUnavailable when nobody can say
        whether it was taken.
        """
        run = self._runs.get(run_id)
        if self.successor is None or (run is not None and run.flow.durability == "off"):
            await trio.lowlevel.checkpoint()
            run = self._runs.get(run_id)
            return run is not None and run.tell(signal, value)
        taken = await self.successor.wakes.give(run_id, signal, value, number)
        if taken:
            self.successor.wakes.call(run_id)
        return taken

    async def cancel(self, run_id: str, reason: str) -> bool:
        """End a run from outside: its effects are cut, what it committed is compensated. Whether it was under way here,
        or put down, parked, by whatever worker: then it is taken up, and undone, by this one or the next that looks.

        Returns as soon as that is certain. What comes of a parked run first stands: False when its signal has come, or
        its time is over. False, too, for one that is under way elsewhere. One under way here that has nothing left to
        wait for ends as it would have. Raises JournalUnavailable when nobody can say
        whether it was taken; to ask again is safe.
        """
        await wait_put_down(self._runs.get(run_id))  # the journal says what comes of a run that is down
        if self.successor is None or run_id in self._runs:
            return self.cancel_nowait(run_id, reason)
        if await self.successor.wakes.cancel(run_id, reason):
            self.successor.wakes.call(run_id)
            return True
        return self.cancel_nowait(run_id, reason)  # it may have been taken up here meanwhile

    def cancel_nowait(self, run_id: str, reason: str) -> bool:
        """The same for a run that is under way here, in memory; whether it is."""
        run = self._runs.get(run_id)
        if run is not None:
            run.cancel(reason)
        return run is not None

    async def drain(self, deadline: float) -> None:
        """Refuse new runs, let those under way finish for `deadline` seconds, then cancel and compensate them."""
        if self.successor is not None:  # what is signalled from now on is for workers that admit it
            self.successor.wakes.close()
        await drain(self.admission, self._runs, deadline)

    def prepare(self, flow: Flow) -> Prepared:
        """The flow, ready to be run. Raises DefinitionError when nothing handles one of its effects."""
        prepared = self._prepared.get(flow)
        if prepared is None:
            self.app.check_handlers(f"flow {flow.name!r}", flow.stages, self.handled, flow.policy)
            check_offloads(flow.stages)
            prepared = Prepared(flow, compile_plan(flow))
            check_durable(flow, prepared.plan, None if self.clerk is None else self.clerk.journal)
            self._prepared[flow] = prepared
        return prepared

    def plan(self, flow: Flow) -> Plan:
        """The compiled plan of a flow. Raises as `prepare`."""
        return self.prepare(flow).plan

    @property
    def tenants(self) -> Tenants:
        """How tenants are treated."""
        return self.admission.tenants

    def set_tenants(self, tenants: Tenants | Mapping[str, Tenant]) -> None:
        """Treat tenants by other rules from now on. What is under way goes on by the old ones, and counts.

        Raises DefinitionError for what are no tenants.
        """
        self.admission.tenants = as_tenants("set_tenants(…)", tenants)

    def quota(self, tenant: str) -> Quota | None:
        """What is left of a tenant's rate; None when it is not bounded."""
        return self.admission.quota(tenant)

    def statistics(self) -> RuntimeStatistics:
        return RuntimeStatistics(
            running=len(self._runs),
            ended=self.telling.ended,
            unresolved=self.telling.unresolved,
            observer_errors=self.telling.errors,
            admission=self.admission.statistics(),
            targets=self.interpreter.targets.statistics(),
            turns=self.turns.statistics(),
            recovered=0 if self.successor is None else self.successor.taken,
            stuck=MappingProxyType({} if self.successor is None else dict(self.successor.cases.stuck)),
            set_aside=self.telling.set_aside,
            open_unresolved=0 if self.successor is None else self.successor.cases.unresolved,
            open_parked=0 if self.successor is None else self.successor.cases.parked,
        )

    def new_id(self) -> str:
        """An id as runs have: 96 random bits, because keys of writes are made of it and must not meet again."""
        return "req_" + self._rng.getrandbits(96).to_bytes(12, "big").hex()  # half of what a format takes

    def under_way(self) -> tuple[Run, ...]:
        """The runs that have a ticket and have not ended, the oldest first."""
        return tuple(self._runs.values())

    def _leave(self, run: Run, edge: bool) -> Result:
        """A run that had a ticket is over: with an ending of its own, or because its program ends."""
        forget(self._runs, run)
        self.admission.release(run.ticket, run.cpu_ns * 1e-9, run.waited_ns * 1e-9)
        if run.cut is not None and run.is_left:  # what it came to here is not what it comes to
            return self.telling.seal(Result(run.timeline, run.cut), edge)
        machine = run.machine
        return self.telling.seal(Result(run.timeline, machine.ending or _CUT, machine.unresolved), edge)


_LEFT = Ending("cancelled", reason="the client has gone")
_CUT = Ending("cancelled", reason="the host cancelled it")
_UNWRITTEN = Ending("cancelled", reason="it was done, and the journal could not be told in time")
