"""Turns: pure steps take turns on their loop, by class, outside of Trio's run queue.

Law: one call into a machine is one turn, and no turn waits for anything. As long as nobody waits and the loop has
looked at I/O within 3 ms of steps, a turn is begun at once: no task switch, nothing allocated. Otherwise whoever wants
one parks, and a baton goes round: whoever holds it wakes the next (`zerver.core.turns` says who), so there is a look
at I/O, timers and refusals between any two.

As long as somebody is in the queue, somebody has the baton: a task that was woken and has not run yet, or one that lets
a pass of the loop go by and then chooses among all who have come meanwhile. Trio cannot wake a task without waking the
loop, so the baton never sleeps.

Time is that of the runtime's clock. It is not the thread's CPU time: a step that blocks on a socket burns none, and
holds up everybody.

Refused: an instrument that counts the passes of the loop. It costs each of them half a microsecond, and whether one has
gone by matters once in a millisecond of steps: then a parked task is woken, which runs after the next look.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import attrs
import outcome
import trio

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.frames import defined_at
from zerver.core.load import Load
from zerver.core.machine import Machine
from zerver.core.overruns import Offenders, Overrun, OverrunStatistics, longest_stretch
from zerver.core.plan import StepNode
from zerver.core.priorities import GUARANTEES, PRIORITIES
from zerver.core.replan import steps_in
from zerver.core.saga import Entry
from zerver.core.turns import PASS, TurnQueue, Waiter
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.watchdog import Watchdog

#: What `take` answers instead of a time: wait.
WAITS: Final = -1

#: Nanoseconds between two Loads while there is work.
TICK: Final = 100_000_000

#: Nanoseconds of steps after a look at I/O, after which it is to be found out when the next one is.
_CURIOUS: Final = PASS // 3

#: The newest turn's weight in what a turn of a flow is expected to cost, and how many flows are known.
_ALPHA: Final = 0.25
_KNOWN: Final = 10_000

#: What a turn is expected to take (ns) before any has been measured.
_UNKNOWN: Final = 1_000_000.0

#: Seconds that the ticker sleeps at least.
_A_MOMENT: Final = 0.001

_NOBODY: Final = len(PRIORITIES)
_FAR: Final = 1 << 62


@attrs.frozen
class TurnStatistics:
    """waiting: runs that wait for a turn, by class. seconds: of steps run so far. demoted: flows put down, because
    they overran.
    """

    waiting: tuple[int, ...]
    seconds: float
    overruns: tuple[OverrunStatistics, ...]
    demoted: tuple[str, ...]


class Turns:
    """The turns of one loop. Used as

        began = turns.take(machine)
        if began < 0:
            began = await turns.wait(machine, call)
        try:
            command = machine.settled(call, outcome)
        finally:
            turns.end(machine, began)

    clock: nanoseconds. tell: given a Load ten times a second while there are turns, or runs that wait for a ticket.
    waits: whether runs of a level wait for a ticket; asked once per pass of the loop after `notice`, until none does.
    """

    def __init__(
        self,
        clock: Callable[[], int],
        tell: Callable[[Load], None] | None = None,
        waits: Callable[[int], bool] | None = None,
    ) -> None:
        self.clock = clock
        self.tell = tell
        self.waits = waits
        self.due_ns = 0  # when the turn under way has taken twice its budget; 0 between turns
        self.spent_ns = 0  # of steps, since the beginning
        self.offenders = Offenders()
        self.watchdog: Watchdog | None = None
        self._pause_at = PASS  # what `spent_ns` may come to before a turn has to wait; see `_reckon`
        self._heed_at = _FAR  # what it may come to before the end of a turn is more than that
        self._tick_at = 0  # when the next turn, or the ticker, closes a tick
        self._ticked = clock()
        self._looked_at = 0  # what `spent_ns` was when the loop last looked at I/O, as far as is known
        self._asked_at = 0  # what it was when the looker was last woken
        self._baton = False  # whether somebody has it
        self._queue = TurnQueue()
        self._costs: dict[str, float] = {}  # by flow: what a turn is expected to take (ns)
        self._usual = _UNKNOWN  # the same for a flow that is not known
        self._looker: trio.lowlevel.Task | None = None  # while it is parked
        self._ticker: trio.lowlevel.Task | None = None  # the same
        self._pressed = _NOBODY  # the highest class of which a run waits for a ticket
        self._sleeps = _Sleeps(self)
        self._starved = [0] * len(PRIORITIES)  # ns of this tick, by level
        self._filled = [0] * len(PRIORITIES)  # the same: turns of lower classes while nobody of the level was runnable

    # -- a turn: what every run pays for, once and then once for each effect --

    def take(self, machine: Machine) -> int:
        """Take a turn: the time (ns), to be given to `end`; or WAITS."""
        now = self.clock()
        if now >= self._tick_at:
            self._tick(now)
        if self.spent_ns >= self._pause_at:
            return WAITS
        pace = machine.pace
        machine.slice_ns = now + pace.slice_ns
        self.due_ns = now + pace.look_ns
        return now

    def end(self, machine: Machine, began: int) -> None:
        """End the turn, and wake the next."""
        took = self.clock() - began
        self.due_ns = 0
        self.spent_ns = spent = self.spent_ns + took
        machine.cpu_ns += took
        if took > machine.pace.budget_ns:
            self._look_for_overrun(machine, began, began + took)
        if spent >= self._heed_at:
            self._heed(machine, took)

    async def wait(self, machine: Machine, subject: Call | str | None) -> int:
        """Wait for a turn, and take it. At least one pass of the loop goes by.

        subject: what the TURN record names; None if the machine writes it, as `resume` does.
        """
        since = self.clock()
        cost = self._costs.get(machine.plan.flow, self._usual)
        entry = Waiter(machine.pace.rank, cost, trio.lowlevel.current_task())
        self._queue.add(entry)
        await self._come_first(entry)
        self._baton = False  # laid down: a turn ends before any other task runs, and takes it up again
        self._looked_at = self.spent_ns
        self._reckon()
        began = self.take(machine)
        machine.waited_ns += began - since
        if subject is not None:
            machine.records.append((t.TURN, began, subject, since))
        return began

    def demoted(self, flow: str) -> int:
        """By how many classes a flow is put down, because it overran: 0 or 1."""
        return self.offenders.demoted(flow, self.clock() / 1e9)

    def statistics(self) -> TurnStatistics:
        return TurnStatistics(
            waiting=tuple(self._queue.count(rank) for rank in range(len(PRIORITIES))),
            seconds=self.spent_ns / 1e9,
            overruns=self.offenders.statistics(),
            demoted=self.offenders.flows(self.clock() / 1e9),
        )

    def close(self) -> None:
        """Look at nothing any more."""
        self._sleeps.watch(False)
        if self.watchdog is not None:
            self.watchdog.close()

    # -- what a turn has to heed --

    def _reckon(self) -> None:
        """What `take` and `end` compare `spent_ns` with, so that each has one question only."""
        waiting = self._baton or self._queue.waiting > 0
        self._pause_at = 0 if self._baton else self._looked_at + PASS
        if waiting or self._pressed < _NOBODY:
            self._heed_at = 0
        else:
            self._heed_at = _FAR if self._looker is None else self._looked_at + _CURIOUS

    def _heed(self, machine: Machine, took: int) -> None:
        """The end of a turn for which others wait, or after which the next look at I/O is not to be missed."""
        rank = machine.pace.rank
        if self._queue.waiting:
            self._learn(machine.plan.flow, took)
            self._queue.charge(rank, took)
            self._hand_on()
        elif self._looker is not None and self.spent_ns >= self._looked_at + _CURIOUS:
            looker, self._looker = self._looker, None
            self._asked_at = self.spent_ns
            trio.lowlevel.reschedule(looker)
            self._reckon()
        if self._pressed < rank:
            self._fill(rank, took)

    async def look(self) -> None:
        """Runs after the next look at I/O, whenever it is woken."""
        while True:
            self._looker = trio.lowlevel.current_task()
            self._reckon()
            await trio.lowlevel.wait_task_rescheduled(self._without_looker)
            self._looked_at = max(self._looked_at, self._asked_at)  # it was then at the earliest

    def _without_looker(self, _: object) -> trio.lowlevel.Abort:
        self._looker = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _learn(self, flow: str, took: int) -> None:
        """What turns cost is learnt while there is a queue, since only then anybody asks."""
        known = self._costs.get(flow)
        if known is None and len(self._costs) >= _KNOWN:
            self._costs.clear()
        self._costs[flow] = float(took) if known is None else known + _ALPHA * (took - known)
        self._usual += _ALPHA * (took - self._usual)

    # -- the baton --

    async def _come_first(self, entry: Waiter) -> None:
        """Wait until one who is in the queue has the baton, and its turn has come."""
        is_free = not self._baton
        if is_free:
            self._baton = True
            self._reckon()
        while True:
            if not is_free and not await self._parked(entry):
                return
            try:
                await trio.lowlevel.checkpoint()
                first = self._queue.first()
                if is_free and first is not None and first.worth_a_look:
                    await trio.lowlevel.checkpoint()  # the last look has woken some who have not come here yet
            except BaseException:
                self._queue.withdraw(entry)
                self._hand_on()
                raise
            chosen = self._queue.next()
            if chosen is entry:
                return
            self._wake(chosen, look=False)
            is_free = False

    async def _parked(self, entry: Waiter) -> bool:
        """Wait to be given the baton; whether only to look, and to choose then. Once it is given for a turn, no
        cancellation takes it away: that comes after the turn.
        """

        def abort(_: object) -> trio.lowlevel.Abort:
            self._queue.withdraw(entry)
            return trio.lowlevel.Abort.SUCCEEDED

        looks: bool = await trio.lowlevel.wait_task_rescheduled(abort)
        return looks

    def _hand_on(self) -> None:
        """Give the baton to who is next. If that one is worth a look, it stays in the queue until it has looked."""
        chosen = self._queue.first()
        look = chosen is not None and chosen.worth_a_look
        if chosen is not None and not look:
            self._queue.withdraw(chosen)
        self._wake(chosen, look)

    def _wake(self, chosen: Waiter | None, look: bool) -> None:
        self._baton = chosen is not None
        self._reckon()
        if chosen is not None and isinstance(chosen.task, trio.lowlevel.Task):
            trio.lowlevel.reschedule(chosen.task, outcome.Value(look))

    # -- overruns --

    def _look_for_overrun(self, machine: Machine, began: int, now: int) -> None:
        """The turn took longer than a step may: was it one step, or several that could not be parted in time?"""
        budget = machine.pace.budget_ns
        took, subject = longest_stretch(machine.records, began, now)
        if took <= budget:
            return
        node, name = _step_of(machine, subject)
        seen = self.watchdog.seen(began + machine.pace.look_ns) if self.watchdog is not None else ""
        place = seen or (defined_at(node.step.function.__code__) if node is not None else "")
        overrun = Overrun(name, took, budget, place, bool(seen))
        machine.records.append((t.OVERRUN, now, name, overrun))
        self.offenders.note(machine.plan.flow, overrun, now / 1e9)

    # -- load --

    def notice(self) -> None:
        """A run waits for a ticket: who starves meanwhile is measured from now on, until none waits any more."""
        if self._pressed == _NOBODY:
            self._look_who_waits()

    async def tick(self) -> None:
        """Close ticks while runs wait for a ticket, and perhaps no turn comes that would; parked, without a timer,
        while none waits.
        """
        while True:
            if self._pressed == _NOBODY:
                self._ticker = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._without_ticker)
            await trio.sleep(max(_A_MOMENT, (self._tick_at - self.clock()) / 1e9))
            now = self.clock()
            if now >= self._tick_at:
                self._tick(now)

    def _without_ticker(self, _: object) -> trio.lowlevel.Abort:
        self._ticker = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _tick(self, now: int) -> None:
        """A tick is over: tell what it was like. After a time without work it is a long one, in which nothing stood."""
        took = now - self._ticked
        self._ticked, self._tick_at = now, now + TICK
        if self.watchdog is not None:
            self.watchdog.wake()
        load = self.load(took)
        if self.tell is not None:
            self.tell(load)

    def load(self, took: int) -> Load:
        """What the tick of so many ns was like; the next one begins.

        A level starves while the loop sleeps, and while lower classes have more than they are guaranteed. Their
        guaranteed share is nobody's loss: to count it made the limit run away (research: second failed design).
        """
        starved = []
        for level in range(len(PRIORITIES)):
            due = took * sum(GUARANTEES[level + 1 :])
            starved.append(min(took, self._starved[level] + max(0.0, self._filled[level] - due)) / 1e9)
        self._starved[:] = self._filled[:] = (0,) * len(PRIORITIES)
        interactive, default, batch = (ns / 1e9 for ns in self._queue.standing())
        return Load((interactive, default, batch), (starved[0], starved[1], starved[2]), took / 1e9)

    def slept(self, ns: int) -> None:
        """The loop has looked at I/O while runs waited for a ticket, and slept for so long before."""
        for level in range(self._pressed, _NOBODY):
            self._starved[level] += ns
        self._look_who_waits()

    def _look_who_waits(self) -> None:
        was, self._pressed = self._pressed, _NOBODY
        if self.waits is not None and self.waits(_NOBODY - 1):
            self._pressed = next(level for level in range(_NOBODY) if self.waits(level))
        if (was < _NOBODY) != (self._pressed < _NOBODY):
            self._sleeps.watch(self._pressed < _NOBODY)
            self._reckon()
            ticker, self._ticker = self._ticker, None
            if ticker is not None:
                trio.lowlevel.reschedule(ticker)

    def _fill(self, rank: int, took: int) -> None:
        """A class had a turn while runs of a higher one waited for a ticket: was nobody of that one runnable?"""
        runnable = 0
        for level in range(rank):
            runnable += self._queue.count(level)
            if level >= self._pressed and not runnable:
                self._filled[level] += took


class _Sleeps(trio.abc.Instrument):
    """How long the loop sleeps; watched only while runs wait for a ticket, as an instrument costs half a µs a pass."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._began = -1  # a clock may begin at 0
        self._watching = False

    def watch(self, on: bool) -> None:
        """Have Trio tell, or tell no more."""
        if on and not self._watching:
            trio.lowlevel.add_instrument(self)
        elif self._watching and not on:
            trio.lowlevel.remove_instrument(self)
        self._watching, self._began = on, -1

    def before_io_wait(self, timeout: float) -> None:
        self._began = self._turns.clock() if timeout > 0 else -1

    def after_io_wait(self, timeout: float) -> None:
        began, self._began = self._began, -1
        self._turns.slept(0 if began < 0 else self._turns.clock() - began)


def _step_of(machine: Machine, subject: object) -> tuple[StepNode | None, str]:
    """The step that a record is about, and its name; the flow's name when it is about none."""
    if isinstance(subject, StepNode):
        return subject, subject.name
    if isinstance(subject, Entry):
        subject = subject.call
    if isinstance(subject, Call):
        name = subject.step
        return next((node for node in steps_in(machine.plan.line) if node.name == name), None), name
    return None, subject if isinstance(subject, str) else str(getattr(subject, "name", machine.plan.flow))


@asynccontextmanager
async def open_turns(turns: Turns) -> AsyncIterator[None]:
    """Know when the loop looks at I/O, watch the turns, and let them tell their load."""
    if type(trio.lowlevel.current_clock()).__name__ == "SystemClock":  # a mock clock's time tells nothing of steps
        turns.watchdog = Watchdog(turns.clock, lambda: turns.due_ns)
    try:
        async with open_body_nursery() as nursery:
            nursery.start_soon(turns.look)
            nursery.start_soon(turns.tick)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
    finally:
        turns.close()
