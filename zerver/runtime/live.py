"""A run that is under way: what the rooms of the runtime share about it.

Law: one Run is owned by one request actor; others may only call `cancel` and `tell`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from zerver.core import timeline as t
from zerver.core.budget import RUN_RETRIES
from zerver.core.calls import Call
from zerver.core.commands import Unwind
from zerver.core.effects import CallInfo
from zerver.core.flows import Flow
from zerver.core.machine import Machine
from zerver.core.priorities import Priority
from zerver.core.tenants import Tenant
from zerver.core.turns import pace_of
from zerver.runtime.bulkhead import Bulkhead

_ANY: Final = Tenant()


class Flight:
    """A write that is being performed. sent: it may have happened by now, should it be cut here."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


class Run:
    """One execution of a flow.

    deadline: on Trio's clock, inf for none. on_wait: called once, when the run first waits for the world; an edge
    starts to watch its client then. cut: why the run's scope was cancelled by `cancel`. awaited: the signals that it is
    parked on and nobody has given yet. inbox: those that were given, and are not handled yet. wake: set when one is
    given; there is one only while the run is parked. gate: bounds the attempts in flight at once, if its tenant does.
    cpu: seconds of its steps so far; waited: for turns. pace: how its turns go.
    """

    __slots__ = (
        "awaited", "clock", "cpu", "cut", "deadline", "flow", "gate", "hand_over", "inbox", "machine", "on_wait",
        "pace", "priority", "records", "retries_left", "rule", "run_id", "scope", "tenant", "waited", "wake",
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
        rule: Tenant = _ANY,
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
        self.rule = rule
        self.gate = None if rule.effects is None else Bulkhead(rule.effects)
        self.cpu = 0.0
        self.waited = 0.0
        self.pace = pace_of(priority)
        self.retries_left = RUN_RETRIES
        self.scope = trio.CancelScope(deadline=deadline)
        self.cut: t.Ending | None = None
        self.hand_over: Callable[[Run, Unwind], None] | None = None
        self.awaited: set[str] = set()
        self.inbox: deque[tuple[str, object]] = deque()
        self.wake: trio.Event | None = None

    def cancel(self, reason: str) -> None:
        """End the run from outside: effects are cut, compensations run. The first reason stands."""
        if self.cut is None:
            self.cut = t.Ending("cancelled", reason=reason)
            self.scope.cancel(reason=reason)

    def tell(self, signal: str, value: object) -> bool:
        """Give a signal to the run; whether it waits for it. One that is taken will be handled, in order of arrival."""
        if signal not in self.awaited:
            return False
        self.awaited.discard(signal)
        self.inbox.append((signal, value))
        if self.wake is not None:
            self.wake.set()
        return True

    def info(self, call: Call, attempt: int) -> CallInfo:
        """What a handler may know about the call it performs."""
        return CallInfo(self.run_id, self.flow.name, call.step, call.key, attempt, self.tenant, self.priority)
