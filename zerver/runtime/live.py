"""A run that is under way: what the rooms of the runtime share about it.

Law: one Run is owned by one request actor; others may only call `cancel`.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from zerver.core import timeline as t
from zerver.core.budget import RUN_RETRIES
from zerver.core.calls import Call
from zerver.core.effects import CallInfo
from zerver.core.flows import Flow, Priority
from zerver.core.machine import Machine


class Flight:
    """A write that is being performed. sent: it may have happened by now, should it be cut here."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


class Run:
    """One execution of a flow.

    deadline: on Trio's clock, inf for none. on_wait: called once, when the run first waits for the world; an edge
    starts to watch its client then. cut: why the run's scope was cancelled by `cancel`.
    """

    __slots__ = (
        "clock", "cut", "deadline", "flow", "machine", "on_wait", "priority", "records", "retries_left", "run_id",
        "scope", "signals", "tenant",
    )  # fmt: skip

    def __init__(
        self,
        run_id: str,
        flow: Flow,
        machine: Machine,
        tenant: str,
        priority: Priority,
        deadline: float,
        on_wait: Callable[[Run], None] | None,
    ) -> None:
        self.run_id = run_id
        self.flow = flow
        self.machine = machine
        self.tenant = tenant
        self.priority: Priority = priority
        self.deadline = deadline
        self.on_wait = on_wait
        self.records = machine.records
        self.clock = machine.clock
        self.retries_left = RUN_RETRIES
        self.scope = trio.CancelScope(deadline=deadline)
        self.cut: t.Ending | None = None
        self.signals: trio.MemorySendChannel[tuple[str, object]] | None = None

    def cancel(self, reason: str) -> None:
        """End the run from outside: effects are cut, compensations run. The first reason stands."""
        if self.cut is None:
            self.cut = t.Ending("cancelled", reason=reason)
            self.scope.cancel(reason=reason)

    def info(self, call: Call, attempt: int) -> CallInfo:
        """What a handler may know about the call it performs."""
        return CallInfo(self.run_id, self.flow.name, call.step, call.key, attempt, self.tenant, self.priority)
