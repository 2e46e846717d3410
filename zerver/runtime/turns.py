"""Turns: pure steps take turns on their loop, by class, outside of Trio's run queue.

Law: one call into a machine is one turn, and no turn waits for anything. As long as nobody waits and the loop has
looked at I/O within 3 ms of steps, a turn is begun at once: no task switch, nothing allocated. Otherwise whoever wants
one parks, and a baton goes round: whoever holds it wakes the next (`zerver.core.turns` says who), so there is a look
at I/O, timers and refusals between any two.

As long as somebody is in the queue, somebody has the baton: a task that was woken and has not run yet, or the first to
come, who lets a pass of the loop go by and then chooses among all who have come meanwhile. Trio cannot wake a task
without waking the loop, so the baton never sleeps.

Time is that of the runtime's clock. It is not the thread's CPU time: a step that blocks on a socket burns none, and
holds up everybody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.frames import defined_at
from zerver.core.load import Load
from zerver.core.overruns import Offenders, Overrun, OverrunStatistics, longest_stretch
from zerver.core.plan import StepNode
from zerver.core.priorities import PRIORITIES
from zerver.core.replan import steps_in
from zerver.core.saga import Entry
from zerver.core.turns import GUARANTEES, PASS, Pace, TurnQueue, Waiting, pace_of
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.live import Run
from zerver.runtime.watchdog import Watchdog

#: What `begin` answers instead of a time: wait.
WAITS: Final = -1

#: Seconds between two Loads while there is work.
TICK: Final = 0.1

#: The newest turn's weight in what a turn of a flow is expected to cost, and how many flows are known.
_ALPHA: Final = 0.25
_KNOWN: Final = 10_000

#: What a turn is expected to take (ns) before any has been measured.
_UNKNOWN: Final = 1_000_000.0

_NOBODY: Final = len(PRIORITIES)


@attrs.frozen
class TurnStatistics:
    """waiting: runs that wait for a turn, by class. seconds: of steps run so far. demoted: flows put down, because
    they overran.
    """

    waiting: tuple[int, ...]
    seconds: float
    overruns: tuple[OverrunStatistics, ...]
    demoted: tuple[str, ...]


class Turns(trio.abc.Instrument):
    """The turns of one loop. Used as

        began = turns.begin(run)
        if began < 0:
            began = await turns.wait(run, call)
        try:
            command = machine.settled(call, outcome)
        finally:
            turns.end(run, began)

    clock: nanoseconds. tell: given a Load every 100 ms while there is work. waits: whether runs of a level wait for a
    ticket; asked once per pass of the loop.
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
        self._pause_at = PASS  # what `spent_ns` may come to before the loop is to look at I/O
        self._baton = False  # whether somebody has it
        self._queue = TurnQueue()
        self._costs: dict[str, float] = {}  # by flow: what a turn is expected to take (ns)
        self._usual = _UNKNOWN  # the same for a flow that is not known
        self._working = False  # whether the ticks go on
        self._ticker: trio.lowlevel.Task | None = None  # while it is parked
        self._pressed = _NOBODY  # the highest class of which a run waits for a ticket
        self._sleeps = _Sleeps(self.clock)
        self._starved = [0] * len(PRIORITIES)  # ns of this tick, by level
        self._filled = [0] * len(
            PRIORITIES
        )  # ns of lower classes' turns, with a level pressed and nobody of it runnable

    # -- a turn --

    def begin(self, run: Run) -> int:
        """Begin a turn: the time (ns), to be given to `end`; or WAITS."""
        if self._baton or self.spent_ns >= self._pause_at:
            return WAITS
        now, pace = self.clock(), run.pace
        run.machine.slice_ns = now + pace.slice_ns
        self.due_ns = now + pace.look_ns
        return now

    async def wait(self, run: Run, subject: Call | str | None) -> int:
        """Wait for a turn, and begin it. At least one pass of the loop goes by.

        subject: what the TURN record names; None if the machine writes it, as `resume` does.
        """
        since = self.clock()
        self.notice()
        entry = Waiting(run.pace.rank, self._costs.get(run.flow.name, self._usual), trio.lowlevel.current_task())
        self._queue.add(entry)
        await (self._parked(entry) if self._baton else self._first(entry))
        self._baton = False  # laid down: a turn ends before any other task runs, and takes it up again
        self._pause_at = self.spent_ns + PASS
        began = self.begin(run)
        run.waited += (began - since) / 1e9
        if subject is not None:
            run.records.append((t.TURN, began, subject, since))
        return began

    def end(self, run: Run, began: int) -> None:
        """End the turn, and wake the next."""
        now = self.clock()
        took = now - began
        self.due_ns = 0
        self.spent_ns += took
        run.cpu += took * 1e-9
        pace = run.pace
        if took > pace.budget_ns:
            self._look_for_overrun(run, began, now)
        if self._queue.waiting:
            self._learn(run.flow.name, took)
            self._queue.charge(pace.rank, took)
            self._hand_on()
        if not self._working:
            self.notice()
        if self._pressed < pace.rank:
            self._fill(pace.rank, took)

    def pace(self, run: Run) -> Pace:
        """How the turns of a run go that begins now."""
        return pace_of(run.priority, self.demoted(run.flow.name))

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

    # -- the baton --

    async def _first(self, entry: Waiting) -> None:
        """Nobody has the baton: take it through a pass of the loop, and give it to who is next by then."""
        self._baton = True
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            self._queue.withdraw(entry)
            self._hand_on()
            raise
        chosen = self._queue.next()
        if chosen is not entry:
            self._wake(chosen)
            await self._parked(entry)

    async def _parked(self, entry: Waiting) -> None:
        """Wait to be given the baton. Once it is given, no cancellation takes it away: that comes after the turn."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._queue.withdraw(entry)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _hand_on(self) -> None:
        self._wake(self._queue.next())

    def _wake(self, chosen: Waiting | None) -> None:
        self._baton = chosen is not None
        if chosen is not None and isinstance(chosen.task, trio.lowlevel.Task):
            trio.lowlevel.reschedule(chosen.task)

    def _learn(self, flow: str, took: int) -> None:
        """What turns cost is learnt while there is a queue, since only then anybody asks."""
        known = self._costs.get(flow)
        if known is None and len(self._costs) >= _KNOWN:
            self._costs.clear()
        self._costs[flow] = float(took) if known is None else known + _ALPHA * (took - known)
        self._usual += _ALPHA * (took - self._usual)

    # -- overruns --

    def _look_for_overrun(self, run: Run, began: int, now: int) -> None:
        """The turn took longer than a step may: was it one step, or several that could not be parted in time?"""
        budget = run.pace.budget_ns
        took, subject = longest_stretch(run.records, began, now)
        if took <= budget:
            return
        node, name = _step_of(run, subject)
        seen = self.watchdog.seen(began + run.pace.look_ns) if self.watchdog is not None else ""
        place = seen or (defined_at(node.step.function.__code__) if node is not None else "")
        overrun = Overrun(name, took, budget, place, bool(seen))
        run.records.append((t.OVERRUN, now, name, overrun))
        self.offenders.note(run.flow.name, overrun, now / 1e9)

    # -- load --

    def notice(self) -> None:
        """There is work, or there is about to be: the ticks go on."""
        if self._working:
            return
        self._working = True
        if self.watchdog is not None:
            self.watchdog.wake()
        ticker, self._ticker = self._ticker, None
        if ticker is not None:
            trio.lowlevel.reschedule(ticker)

    async def tick(self) -> None:
        """Tell the load, ten times a second while there is work; parked, without a timer, while there is none."""
        while True:
            if not self._working:
                if self.watchdog is not None:
                    self.watchdog.park()
                self._ticker = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._unpark)
            began, spent = self.clock(), self.spent_ns
            self.measure()
            await trio.sleep(TICK)
            load = self.load(self.clock() - began)
            if self.tell is not None:
                self.tell(load)
            self._working = self.spent_ns > spent or self._queue.waiting > 0 or self._pressed < _NOBODY

    def _unpark(self, _: object) -> trio.lowlevel.Abort:
        self._ticker = None
        return trio.lowlevel.Abort.SUCCEEDED

    def measure(self) -> None:
        """A tick begins: what is known of load is of the last one."""
        self._queue.standing()
        self._starved[:] = self._filled[:] = (0,) * len(PRIORITIES)
        self._look_who_waits()

    def load(self, took: int) -> Load:
        """What the tick of so many ns was like.

        A level starves while the loop sleeps, and while lower classes have more than they are guaranteed. Their
        guaranteed share is nobody's loss: to count it made the limit run away (research: second failed design).
        """
        starved = []
        for level in range(len(PRIORITIES)):
            due = took * sum(GUARANTEES[level + 1 :])
            starved.append(min(took, self._starved[level] + max(0.0, self._filled[level] - due)) / 1e9)
        interactive, default, batch = (ns / 1e9 for ns in self._queue.standing())
        return Load((interactive, default, batch), (starved[0], starved[1], starved[2]), took / 1e9)

    def after_io_wait(self, timeout: float) -> None:
        """Trio tells: the loop has looked at I/O."""
        self._pause_at = self.spent_ns + PASS
        if self._working:
            slept = self._sleeps.ended()
            if slept:
                for level in range(self._pressed, _NOBODY):
                    self._starved[level] += slept
            self._look_who_waits()

    def _look_who_waits(self) -> None:
        was, self._pressed = self._pressed, _NOBODY
        if self.waits is not None and self.waits(_NOBODY - 1):
            self._pressed = next(level for level in range(_NOBODY) if self.waits(level))
        if (was < _NOBODY) != (self._pressed < _NOBODY):
            self._sleeps.watch(self._pressed < _NOBODY)

    def _fill(self, rank: int, took: int) -> None:
        """A class had a turn while runs of a higher one waited for a ticket: was nobody of that one runnable?"""
        runnable = 0
        for level in range(rank):
            runnable += self._queue.count(level)
            if level >= self._pressed and not runnable:
                self._filled[level] += took


class _Sleeps(trio.abc.Instrument):
    """How long the loop sleeps; watched only while runs wait for a ticket, as an instrument costs half a µs a pass."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
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
        self._began = self._clock() if timeout > 0 else -1

    def ended(self) -> int:
        """Nanoseconds of the sleep that has just ended."""
        began, self._began = self._began, -1
        return 0 if began < 0 else self._clock() - began


def _step_of(run: Run, subject: object) -> tuple[StepNode | None, str]:
    """The step that a record is about, and its name; the flow's name when it is about none."""
    if isinstance(subject, StepNode):
        return subject, subject.name
    if isinstance(subject, Entry):
        subject = subject.call
    if isinstance(subject, Call):
        name = subject.step
        return next((node for node in steps_in(run.machine.plan.line) if node.name == name), None), name
    return None, subject if isinstance(subject, str) else str(getattr(subject, "name", run.flow.name))


@asynccontextmanager
async def open_turns(turns: Turns) -> AsyncIterator[None]:
    """Have Trio tell the turns when it looks at I/O, watch them, and let them tell their load."""
    if (
        type(trio.lowlevel.current_clock()).__name__ == "SystemClock"
    ):  # under a mock clock real time must change nothing
        turns.watchdog = Watchdog(turns.clock, lambda: turns.due_ns)
    trio.lowlevel.add_instrument(turns)
    try:
        async with open_body_nursery() as nursery:
            nursery.start_soon(turns.tick)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.remove_instrument(turns)
        turns.close()
