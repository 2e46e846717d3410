"""A run that is under way: what the rooms of the runtime share about it.

Law: one Run is owned by one request actor; others may only call `cancel` and `tell`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeAlias

import trio

from zerver.core import timeline as t
from zerver.core.budget import RUN_RETRIES
from zerver.core.calls import Call
from zerver.core.effects import CallInfo, Outcome
from zerver.core.flows import Flow
from zerver.core.machine import Machine
from zerver.core.priorities import Priority
from zerver.core.tickets import Ticket
from zerver.core.timeline import Timeline
from zerver.runtime.admission import AdmissionActor
from zerver.runtime.bulkhead import Bulkhead
from zerver.runtime.parking import Letter
from zerver.runtime.result import Result

#: The end of a run that another worker has by now: it stops where it is, and nothing is undone.
LOST: Final = t.Ending("cancelled", reason="another worker carries it on")

#: The end of a run whose journal cannot be written: it stops where it is, as by a crash, and is undone when the journal
#: is back. Undone before that, it would be carried on from its records by a process that knows nothing of it.
AWAY: Final = t.Ending("cancelled", reason="the journal could not be reached")

#: Ends that are none: somebody carries the run on, and its answer is not known yet.
LEFT: Final = (LOST, AWAY)

#: What is left of performing a call: gives its outcome.
Rest: TypeAlias = Callable[[], Coroutine[Any, Any, Outcome[Any]]]

_NOTHING: Final = frozenset[str]()  # values, and no containers: most runs are never parked


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
    given; there is one only while the run is parked. found: what had come of its pauses when it was taken up.
    going_down: set when it is known whether it is put down; there is one only while it is not. gate: bounds the
    attempts in flight at once, if its tenant does. admission: to which it leaves its seat while it is parked. after:
    who gets its Result if its rollback outlives the answer; None if it may not. may_undo: asked before each
    compensation; False: the run stops where it is. alone: the call that was last performed with nothing else under way,
    and may have borrowed the scope (see `bounds`). outlived: that call, and how it goes on, if the scope was used up by
    it.
    """

    __slots__ = (
        "_scope", "admission", "after", "alone", "awaited", "clock", "cut", "deadline", "flow", "found",
        "gate", "going_down", "inbox", "machine", "may_undo", "on_wait", "outlived", "priority", "records",
        "retries_left", "run_id", "tenant", "ticket", "timeline", "wake",
    )  # fmt: skip

    def __init__(
        self,
        flow: Flow,
        machine: Machine,
        timeline: Timeline,
        admission: AdmissionActor,
        ticket: Ticket,
        priority: Priority,
        deadline: float,
        on_wait: Callable[[Run], None] | None = None,
        after: Callable[[Result], None] | None = None,
    ) -> None:
        self.run_id = machine.run_id
        self.flow = flow
        self.machine = machine
        self.timeline = timeline
        self.admission = admission
        self.ticket = ticket
        self.tenant = ticket.tenant
        self.priority: Priority = priority
        self.deadline = deadline
        self.on_wait = on_wait
        self.after = after
        self.records = machine.records
        self.clock = machine.clock
        effects = ticket.rule.effects
        self.gate = None if effects is None else Bulkhead(effects)
        self.retries_left = RUN_RETRIES
        self._scope: trio.CancelScope | None = None
        self.alone: Call | None = None
        self.outlived: tuple[Call, Rest] | None = None
        self.cut: t.Ending | None = None
        self.awaited: frozenset[str] = _NOTHING
        self.inbox: tuple[tuple[str, object], ...] = ()
        self.wake: trio.Event | None = None
        self.found: tuple[Letter, ...] = ()
        self.going_down: trio.Event | None = None
        self.may_undo: Callable[[], Awaitable[bool]] | None = None

    @property
    def scope(self) -> trio.CancelScope:
        """What ends it in time. Made when somebody asks for it: a run that waits for nothing needs none."""
        if self._scope is None:
            self._scope = trio.CancelScope(deadline=self.deadline)
        return self._scope

    def postpone(self, deadline: float) -> None:
        """It has more time than was said: parked time is not its own."""
        self.deadline = self.scope.deadline = deadline

    def take_back(self) -> tuple[Call, Rest] | None:
        """The call that has used up the scope, and how it goes on, in another scope. None if no call has, or the run is
        over: then the scope was cancelled because of the run itself.
        """
        outlived, self.outlived = self.outlived, None
        if outlived is None or self.cut is not None:
            return None
        self._scope = None
        return outlived

    @property
    def is_left(self) -> bool:
        """Whether it stops where it is: what it has done is not for this task to undo."""
        return self.cut is LOST or self.cut is AWAY

    def cancel(self, reason: str) -> bool:
        """End the run from outside: effects are cut, compensations run. The first reason stands. False when it comes
        too late, because what the run ends with is decided, or nothing is decided here any more.
        """
        ended = self.machine.ending
        if self.cut is None and ended is None:
            self.stop(t.Ending("cancelled", reason=reason))
        return self.cut is not None and not self.is_left and (ended is None or ended is self.cut)

    def stop(self, ending: t.Ending) -> None:
        """The same, with an ending that stands whatever the reason was before, as LOST must."""
        self.cut = ending
        self.scope.cancel(reason=ending.reason)

    def tell(self, signal: str, value: object) -> bool:
        """Give a signal to the run; whether it waits for it. One that is taken will be handled, in order of arrival.

        Raises InvalidData for a value that the step cannot take which waits.
        """
        if signal not in self.awaited:
            return False
        self.machine.check_signal(signal, value)
        self.awaited -= {signal}
        self.inbox += ((signal, value),)
        if self.wake is not None:
            self.wake.set()
        return True

    def info(self, call: Call, attempt: int) -> CallInfo:
        """What a handler may know about the call it performs."""
        flow, parent = self.flow.name, self.timeline.parent
        return CallInfo(self.run_id, flow, call.step, call.key, attempt, self.tenant, self.priority, parent)


async def wait_put_down(run: Run | None) -> None:
    """Wait while nobody knows whether the run is put down; a checkpoint in any case."""
    if run is not None and run.going_down is not None:
        await run.going_down.wait()
    else:
        await trio.lowlevel.checkpoint()
