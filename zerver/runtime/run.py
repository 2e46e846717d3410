"""The runtime: an app, open. Runs flows inside any Trio program.

Law: structured concurrency all the way. A run lives in the task that asked for it; resources live in `open_runtime`;
when that block is left, for whatever reason, no run is under way and every resource is closed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from inspect import Parameter
from random import Random
from typing import Any

import attrs
import trio

from zerver.core import timeline as t
from zerver.core.app import App
from zerver.core.codec import convert
from zerver.core.commands import Unwind
from zerver.core.flows import Flow
from zerver.core.load import Neighbours
from zerver.core.machine import Machine
from zerver.core.plan import Plan, compile_plan
from zerver.core.priorities import PRIORITIES, Priority, demoted_by
from zerver.core.quotas import Quota
from zerver.core.tenants import NOBODY, Tenants, classify
from zerver.core.tickets import Refusal, Ticket
from zerver.core.timeline import Ending, Record, Timeline
from zerver.core.values import value
from zerver.core.work import Work
from zerver.errors import DefinitionError, InvalidData
from zerver.runtime.admission import AdmissionActor, AdmissionStatistics
from zerver.runtime.drain import drain
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.handlers import BUILTIN_KINDS, Handlers
from zerver.runtime.interpreter import Interpreter
from zerver.runtime.live import Run
from zerver.runtime.offload import check_offloads
from zerver.runtime.request import Reader, drive, unwind
from zerver.runtime.resources import open_resources
from zerver.runtime.result import Result
from zerver.runtime.targets import Targets, TargetStatistics
from zerver.runtime.turns import Turns, TurnStatistics, open_turns

#: Told of every run once it has ended: must be quick, and its errors are reported, not raised.
Observer = Callable[[Result], None]


@attrs.frozen
class RuntimeStatistics:
    """running: runs under way. ended: runs that have ended, refused ones included. unresolved: runs that ended
    unresolved.
    """

    running: int
    ended: int
    unresolved: int
    observer_errors: int
    admission: AdmissionStatistics
    targets: tuple[TargetStatistics, ...]
    turns: TurnStatistics


@value(eq=False)
class Order:
    """What to run: a flow, compiled, and what it reads.

    parts: values in the order of `plan.parts`, or an async function that gives them, called once the run is admitted:
    so a body is read only for a run that has a ticket. takes: values in the order of `plan.takes`.
    """

    flow: Flow
    plan: Plan
    parts: Sequence[Any] | Reader = ()
    takes: Sequence[Any] = ()


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
    ) -> None:
        self.app = app
        self.resources = resources
        self.interpreter = interpreter
        self.handled = BUILTIN_KINDS | interpreter.handlers.overridden  # kinds that no capability has to bring
        self.admission = AdmissionActor(app.admission, app.tenants, neighbours, rng)
        self.observers = list(observers)
        self.clock = _nanoseconds()
        self.turns = Turns(self.clock, self.admission.tell, self.admission.waits)
        self._rng = rng
        self._rollbacks = rollbacks
        self._runs: dict[str, Run] = {}
        self._plans: dict[Flow, Plan] = {}
        self._works: dict[Plan, Work] = {}  # of every plan that has been run
        self._ended = self._unresolved = self._observer_errors = 0

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
        order = self._order(flow, body, given or {})
        degrade = None if flow.degrade is None else self._order(flow.degrade, body, given or {})
        run_id = self.new_id()
        task_status.started(run_id)
        return await self.execute(
            order, tenant=tenant, priority=priority, deadline=deadline, run_id=run_id, degrade=degrade
        )

    async def execute(
        self,
        order: Order,
        *,
        tenant: str = NOBODY,
        priority: Priority | None = None,
        deadline: float | None = None,
        label: str = "",
        run_id: str = "",
        on_wait: Callable[[Run], None] | None = None,
        after: Observer | None = None,
        degrade: Order | None = None,
    ) -> Result:
        """Run a compiled plan: what `run` and the edges are made of.

        priority: as `classify` has found it; by default what the flow and the tenant say. on_wait: see Run. label: see
        Timeline. degrade: run in its place when it is refused, if there is room for that.
        after: a run whose deadline passes then gives its Result at once, not yet sealed; its rollback goes on in the
        runtime, and `after` gets the sealed Result.
        """
        records: list[Record] = []
        clock = self.clock
        received = clock()
        flow = order.flow
        chosen: Priority = classify(flow.priority, self.tenants.get(tenant)) if priority is None else priority
        if chosen not in PRIORITIES:
            raise DefinitionError(f"priority {chosen!r} is unknown", f"choose one of {', '.join(PRIORITIES)}")
        seconds = _shorter(deadline, flow.deadline)
        arrived = trio.current_time()
        run_id = run_id or self.new_id()
        records.append((t.RECEIVED, received, flow.name, None))
        timeline = _timeline(run_id, order, tenant, chosen, records, label)
        self.turns.notice()  # also of a run that has to wait for its ticket, when all others wait for the world
        try:
            # The run stays what it is; only its place among others is a lower one while its flow overruns.
            queued_as = demoted_by(chosen, self.turns.demoted(flow.name))
            ticket = await self.admission.acquire(queued_as, tenant, arrived + seconds, self._work(order.plan))
        except BaseException:  # the caller went away while it waited: nothing was begun, but it was here
            records.append((t.ENDED, clock(), flow.name, _CUT))
            self._seal(Result(timeline, _CUT))
            raise
        if isinstance(ticket, Refusal):
            records.append((t.REFUSED, clock(), flow.name, ticket))
            instead = None if degrade is None else self.admission.degrade(tenant, chosen, ticket)
            if degrade is None or instead is None:
                return self._seal(Result(timeline, Ending("refused", cause=ticket)))
            order, ticket, flow = degrade, instead, degrade.flow
            seconds = _shorter(seconds, flow.deadline)
            timeline = _timeline(run_id, order, tenant, chosen, records, label)
        records.append((t.ADMITTED, clock(), flow.name, chosen))
        deadline_ns = None if seconds == _NEVER else received + int(seconds * 1e9)
        machine = Machine(order.plan, run_id, clock, records, deadline_ns, ticket.rule.parallel)
        run = Run(run_id, flow, machine, tenant, chosen, arrived + seconds, on_wait, ticket.rule)
        self._runs[run_id] = run
        if after is not None:
            run.hand_over = partial(self._roll_back_behind, timeline, ticket, after)
        try:
            ending = await drive(self.interpreter, self.turns, run, order.parts, order.takes)
        except BaseException:  # the caller is cancelled and gets no result, but what it left behind must be told
            self._leave(run, ticket)
            self._seal(Result(timeline, timeline.ending or _CUT, machine.saga.unresolved))
            raise
        if not machine.finished:  # its rollback was handed over
            return Result(timeline, ending, sealed=False)
        self._leave(run, ticket)
        return self._seal(Result(timeline, ending, machine.saga.unresolved))

    def _roll_back_behind(self, timeline: Timeline, ticket: Ticket, after: Observer, run: Run, command: Unwind) -> None:
        """Carry a rollback on in a task of the runtime's own; the run keeps its ticket until it is over."""

        async def carry_on() -> None:
            try:
                await unwind(self.interpreter, run, command)
            finally:
                self._leave(run, ticket)
                result = self._seal(Result(timeline, timeline.ending or _CUT, run.machine.saga.unresolved))
                self._tell(after, result)

        self._rollbacks.start_soon(carry_on)

    def signal(self, run_id: str, signal: str, value: object = None) -> bool:
        """Tell a parked run what it waits for; False when no such run waits for this signal."""
        run = self._runs.get(run_id)
        return run is not None and run.tell(signal, value)

    def cancel(self, run_id: str, reason: str) -> bool:
        """End a run from outside: its effects are cut, what it committed is compensated. Whether it was under way."""
        run = self._runs.get(run_id)
        if run is not None:
            run.cancel(reason)
        return run is not None

    async def drain(self, deadline: float) -> None:
        """Refuse new runs, let those under way finish for `deadline` seconds, then cancel and compensate them."""
        await drain(self.admission, self._runs, deadline)

    def plan(self, flow: Flow) -> Plan:
        """The compiled plan of a flow. Raises DefinitionError when nothing handles one of its effects."""
        plan = self._plans.get(flow)
        if plan is None:
            self.app.check_handlers(f"flow {flow.name!r}", flow.stages, self.handled, flow.policy)
            check_offloads(flow.stages)
            plan = self._plans[flow] = compile_plan(flow)
        return plan

    @property
    def tenants(self) -> Tenants:
        """How tenants are treated."""
        return self.admission.tenants

    def set_tenants(self, tenants: Tenants) -> None:
        """Treat tenants by other rules from now on. What is under way goes on by the old ones, and counts."""
        self.admission.tenants = tenants

    def quota(self, tenant: str) -> Quota | None:
        """What is left of a tenant's rate; None when it is not bounded."""
        return self.admission.quota(tenant)

    def statistics(self) -> RuntimeStatistics:
        return RuntimeStatistics(
            running=len(self._runs),
            ended=self._ended,
            unresolved=self._unresolved,
            observer_errors=self._observer_errors,
            admission=self.admission.statistics(),
            targets=self.interpreter.targets.statistics(),
            turns=self.turns.statistics(),
        )

    def new_id(self) -> str:
        """An id as runs have: 96 random bits, because keys of writes are made of it and must not meet again."""
        return f"req_{self._rng.getrandbits(96):024x}"

    def _order(self, flow: Flow, body: object, given: Mapping[str, object]) -> Order:
        plan = self.plan(flow)
        return Order(flow, plan, *_inputs(plan, body, given))

    def _work(self, plan: Plan) -> Work:
        work = self._works.get(plan)
        if work is None:
            work = self._works[plan] = Work()
        return work

    def _leave(self, run: Run, ticket: Ticket) -> None:
        del self._runs[run.run_id]
        self.admission.release(ticket, run.cpu, run.waited)

    def _seal(self, result: Result) -> Result:
        self._ended += 1
        if result.unresolved:
            self._unresolved += 1
        for observe in self.observers:
            self._tell(observe, result)
        return result

    def _tell(self, observe: Observer, result: Result) -> None:
        try:
            observe(result)
        except Exception:  # whoever watches a run must not be able to fail it
            self._observer_errors += 1


@asynccontextmanager
async def open_runtime(
    app: App,
    *,
    observers: Sequence[Observer] = (),
    handlers: Mapping[str, Callable[..., Any]] | None = None,
    seed: int | None = None,
    neighbours: Neighbours | None = None,
) -> AsyncIterator[Runtime]:
    """Open an app: check it, open its resources, and yield a Runtime.

    observers: told of every run that has ended. handlers: by the name of an effect's kind, used instead of its own;
    tests script the world with them. seed: makes run ids, and so idempotency keys, jitter and `random` effects
    repeatable: for tests alone, as a provider takes a key it knows for a charge it has made. neighbours: the other
    processes that serve the same tenants, as the workers of one machine are.

    Raises DefinitionError when the app cannot work.
    """
    app.check(BUILTIN_KINDS | frozenset(handlers or ()))
    for route in app.routes:
        for flow in route.flows:
            check_offloads((*route.before, *flow.stages))
    rng = Random(seed)
    async with AsyncExitStack() as stack:
        resources = await open_resources(stack, app.capabilities)
        bound = Handlers(app.capabilities, resources, rng, handlers or {})
        rollbacks = await stack.enter_async_context(open_body_nursery())
        interpreter = Interpreter(app, bound, Targets(app.targets), rng)
        runtime = Runtime(app, interpreter, resources, rng, observers, rollbacks, neighbours)
        await stack.enter_async_context(open_turns(runtime.turns))
        try:
            yield runtime
        finally:
            with trio.CancelScope(shield=True):
                await runtime.drain(0.0)


_NEVER = float("inf")
_CUT = Ending("cancelled", reason="the host cancelled it")


def _timeline(
    run_id: str, order: Order, tenant: str, priority: Priority, records: list[Record], label: str
) -> Timeline:
    flow = order.flow
    return Timeline(run_id, flow.name, flow.version, tenant, priority, records, order.plan.secret, label)


def _shorter(one: float | None, other: float | None) -> float:
    return min(_NEVER if one is None else one, _NEVER if other is None else other)


def _nanoseconds() -> Callable[[], int]:
    """Trio's clock in nanoseconds. Its system clock is `perf_counter` plus an offset, and records only need
    differences.
    """
    clock = trio.lowlevel.current_clock()
    if type(clock).__name__ == "SystemClock":
        return time.perf_counter_ns
    return lambda: round(clock.current_time() * 1e9)


def _inputs(plan: Plan, body: object, given: Mapping[str, object]) -> tuple[list[object], list[object]]:
    problems: list[tuple[str, str]] = []
    parts: list[object] = []
    for read in plan.parts:
        if read.name in given:
            parts.append(given[read.name])
        elif read.part.source == "body" and body is not None:
            parts.append(convert(body, read.type, "body") if isinstance(body, dict) else body)
        elif read.required:
            problems.append((f"{read.part.source} {read.name}", "is required: give it in given={…}"))
        else:
            parts.append(None if read.default is Parameter.empty else read.default)
    takes: list[object] = []
    for slot in plan.takes:
        if slot.name in given:
            takes.append(given[slot.name])
        else:
            problems.append((f"slot {slot.name}", "is taken by the flow: give it in given={…}"))
    if problems:
        raise InvalidData(problems)
    return parts, takes
