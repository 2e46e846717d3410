"""The runtime: an app, open. Runs flows inside any Trio program.

Law: structured concurrency all the way. A run lives in the task that asked for it; resources live in `open_runtime`;
when that block is left, for whatever reason, no run is under way and every resource is closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from random import Random
from types import MappingProxyType
from typing import Any

import trio

from zerver.core.app import App
from zerver.core.flows import Flow
from zerver.core.load import Neighbours
from zerver.core.plan import Plan, compile_plan
from zerver.core.priorities import Priority
from zerver.core.quotas import Quota
from zerver.core.tenants import Tenant, Tenants, as_tenants
from zerver.errors import DefinitionError
from zerver.runtime.clerk import Clerk, check_durable
from zerver.runtime.drain import drain
from zerver.runtime.executor import Executor, Prepared, finished
from zerver.runtime.handlers import BUILTIN_KINDS
from zerver.runtime.inputs import inputs
from zerver.runtime.interpreter import Interpreter
from zerver.runtime.live import Run, wait_put_down
from zerver.runtime.offload import check_offloads
from zerver.runtime.result import Result
from zerver.runtime.statistics import RuntimeStatistics
from zerver.runtime.telling import Observer


class Runtime(Executor):
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
        super().__init__(app, interpreter, rng, observers, rollbacks, neighbours, clerk)
        self.app = app
        self.resources = resources
        self.handled = BUILTIN_KINDS | interpreter.handlers.overridden  # kinds that no capability has to bring
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
        answer = self.execute(
            prepared, parts, takes, tenant=tenant, priority=priority, deadline=deadline, run_id=run_id, degrade=degrade
        )
        return await finished(answer)

    def follow(self, prefix: str, follower: Observer) -> AbstractContextManager[None]:
        """Be told, for as long as the block takes, of runs whose id begins so and that were carried on here: after a
        crash, or a pause. Nobody waits for their result. The follower must be quick, and not raise.
        """
        return self.telling.follow(prefix, follower)

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

    async def signal(self, run_id: str, signal: str, value: object = None, number: int | None = None) -> bool:
        """Tell a parked run what it waits for, wherever it is parked; whether it was taken. Of all who tell it for one
        pause, one gets True. False when no such run waits for this signal, or its time is over.

        value: becomes the type that the step waits for: that of its slot, or of the first parameter of its `resume`;
        for a durable run it is what JSON can say. number: for this pause of the run alone. Raises InvalidData for a
        value that is not of that type, or no JSON, and then the run waits on; JournalUnavailable when nobody can say
        whether it was taken; DamagedJournal for a run that cannot be read here, since its keys are others.
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
        its time is over. False, too, for one that is under way elsewhere, or whose end is decided. One under way here
        that has nothing left to wait for ends as it would have. Raises JournalUnavailable when nobody can say whether
        it was taken; to ask again is safe. Raises DamagedJournal as `signal` does.
        """
        await wait_put_down(self._runs.get(run_id))  # the journal says what comes of a run that is down
        if self.successor is None or run_id in self._runs:
            return self._cancel_here(run_id, reason)
        if await self.successor.wakes.cancel(run_id, reason):
            self.successor.wakes.call(run_id)
            return True
        return self._cancel_here(run_id, reason)  # it may have been taken up here meanwhile

    def _cancel_here(self, run_id: str, reason: str) -> bool:
        run = self._runs.get(run_id)
        return run is not None and run.cancel(reason)

    def cancel_nowait(self, run_id: str, reason: str) -> bool:
        """The same for a run that is under way here, in memory; whether it is, be its end decided or not."""
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

    def under_way(self) -> tuple[Run, ...]:
        """The runs that have a ticket and have not ended, the oldest first."""
        return tuple(self._runs.values())
