"""The design, which is `zerver.core` itself, and designs that failed on the way to it.

Law: no decision is made here. `Zerver` tells the real admission and the real turns what happens, and does what they
answer; `Loop` plays what Trio does for them. A design that failed is the same, with one part of it put back as it was.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Final

import attrs

from scripts.simulations.figures import quantile
from scripts.simulations.scenario import Scenario
from scripts.simulations.world import Answer, Job, Policy, Refused
from zerver.core.admission import Admission
from zerver.core.classes import AdmissionPolicy
from zerver.core.load import Load
from zerver.core.overruns import Offenders, Overrun
from zerver.core.priorities import GUARANTEES, PRIORITIES, RANK
from zerver.core.tenants import Tenant, Tenants
from zerver.core.tickets import Ticket
from zerver.core.tickets import Waiting as Queued
from zerver.core.turns import PACES, PASS, Pace, TurnQueue, Waiter
from zerver.core.work import Work

_NS: Final = 1e-9
_LEARNS: Final = 0.25  # the newest turn's weight in what a flow's turns are expected to cost
_NOBODY: Final = len(PRIORITIES)


class Parked:
    """What turns have to know of a job."""

    __slots__ = ("began", "cpu", "entry", "job", "pace", "waited")

    def __init__(self, job: Job, pace: Pace) -> None:
        self.job = job
        self.pace = pace
        self.cpu = self.waited = 0.0
        self.began = 0
        self.entry: Waiter | None = None


class Loop:
    """A loop whose steps take turns as `zerver.core.turns` says, with the rules that `zerver.runtime.turns` keeps: who
    finds nobody waiting begins at once, for 3 ms of steps at most; otherwise there is a look at I/O between any two
    turns, and who has the next is settled when the last one ends, or after that look if it is worth one. All times are
    nanoseconds.
    """

    def __init__(self, pressed: Callable[[], int]) -> None:
        self.pressed = pressed
        self.queue = TurnQueue()
        self.offenders = Offenders()
        self.spent = 0
        self._pause_at = PASS
        self._baton = False
        self._given: Waiter | None = None
        self._woken: deque[Parked] = deque()
        self._costs: dict[str, float] = {}
        self._pressed = _NOBODY  # the highest class of which a run waits for a ticket, when last asked
        self._starved = [0.0] * _NOBODY
        self._filled = [0.0] * _NOBODY

    # ---- turns --------------------------------------------------------------------------------

    def pace(self, job: Job, now: int) -> Pace:
        return PACES[job.flow.priority][self.offenders.demoted(job.name, now * _NS)]

    def park(self, run: Parked) -> None:
        run.entry = None
        self._woken.append(run)

    def unpark(self, run: Parked) -> None:
        if run.entry is None:
            self._woken.remove(run)
        elif run.entry is self._given:
            self._hand_on()
        else:
            self.queue.withdraw(run.entry)

    def next(self, looked: bool, now: int) -> Parked | None:
        """Who begins a turn. looked: whether the loop has looked at I/O since the last one."""
        if not self._woken and not (looked and self._baton):
            return None
        if self._woken and not self._baton and self.spent < self._pause_at:
            run = self._woken.popleft()
            run.began = now
            return run
        for run in self._woken:
            run.entry = Waiter(run.pace.rank, self._costs.get(run.job.name, 0.0), run)
            self.queue.add(run.entry)
            self._baton = True
        self._woken.clear()
        if not looked or not self._baton:
            return None
        entry = self._given or self.queue.next()
        self._baton, self._given = False, None
        if entry is None or not isinstance(entry.task, Parked):
            raise RuntimeError(f"{entry!r} has the baton, and was never parked")
        run = entry.task
        self._pause_at = self.spent + PASS
        run.began = now
        run.waited += now * _NS - run.job.parked
        return run

    def end(self, run: Parked, now: int) -> None:
        took = now - run.began
        self.spent += took
        run.cpu += took * _NS
        if took > run.pace.budget_ns:
            self.offenders.note(run.job.name, Overrun(run.job.name, took, run.pace.budget_ns), now * _NS)
        if self.queue.waiting:
            known = self._costs.get(run.job.name, took)
            self._costs[run.job.name] = known + _LEARNS * (took - known)
            self.queue.charge(run.pace.rank, took)
            self._hand_on()
        runnable = 0
        for level in range(run.pace.rank if self._pressed < run.pace.rank else 0):
            runnable += self.queue.count(level)
            if level >= self._pressed and not runnable:
                self._filled[level] += took

    def _hand_on(self) -> None:
        chosen = self.queue.first()
        self._baton = chosen is not None
        self._given = None if chosen is None or chosen.worth_a_look else self.queue.next()

    # ---- load ---------------------------------------------------------------------------------

    def look(self, slept: int) -> None:
        """The loop looks at I/O, after having slept."""
        self._pause_at = self.spent + PASS
        if slept:
            for level in range(self._pressed, _NOBODY):
                self._starved[level] += slept
        self._pressed = self.pressed()

    def load(self, took: float) -> Load:
        """What the tick since the last load was like. A level starves while the loop sleeps, and while lower classes
        have more than they are guaranteed.
        """
        one, two, three = (
            min(took, starved + max(0.0, filled - took * sum(GUARANTEES[level + 1 :]))) * _NS
            for level, (starved, filled) in enumerate(zip(self._starved, self._filled, strict=True))
        )
        first, second, third = self.queue.standing()
        self._starved, self._filled = [0.0] * _NOBODY, [0.0] * _NOBODY
        return Load((first * _NS, second * _NS, third * _NS), (one, two, three), took * _NS)


class Zerver:
    """The real admission in front of the real turns."""

    name = "zerver"

    def __init__(self, scenario: Scenario, seed: int) -> None:
        named = {name: Tenant(weight=tenant.weight) for tenant in scenario.tenants for name in tenant.names}
        chance = Random(f"{scenario.name}/{seed}/policy")
        self.admission = Admission(AdmissionPolicy(), Tenants(named), draw=chance.random)
        self.loop = Loop(self.pressed)
        self._works: defaultdict[str, Work] = defaultdict(Work)
        self._queued: dict[Queued, Job] = {}
        self._ticked = 0.0

    # ---- admission ----------------------------------------------------------------------------

    def arrive(self, job: Job, now: float) -> Answer:
        rank = min(RANK["batch"], RANK[job.flow.priority] + self.loop.offenders.demoted(job.name, now))
        answer = self.admission.arrive(PRIORITIES[rank], job.tenant, now, job.deadline, self._works[job.name])
        job.noted = answer
        if isinstance(answer, Ticket):
            return "admitted"
        if isinstance(answer, Queued):
            self._queued[answer] = job
            return "waiting"
        return Refused(answer.retry_after, answer.reason)

    def leave(self, job: Job, now: float) -> None:
        run: Parked = job.extra
        self.admission.leave(job.noted, now, run.cpu, run.waited)

    def abandon(self, job: Job, now: float) -> None:
        if self._queued.pop(job.noted, None) is not None:
            self.admission.abandon(job.noted, now)

    def granted(self, now: float) -> Iterable[tuple[Job, Refused | None]]:
        for entry, answer in self.admission.answers(now):
            job = self._queued.pop(entry)
            job.noted = answer
            yield job, None if isinstance(answer, Ticket) else Refused(answer.retry_after, answer.reason)

    @property
    def due(self) -> float:
        return self.admission.due

    # ---- turns --------------------------------------------------------------------------------

    def park(self, job: Job, now: float) -> None:
        if job.extra is None:
            job.extra = Parked(job, self.loop.pace(job, round(now / _NS)))
        self.loop.park(job.extra)

    def unpark(self, job: Job, now: float) -> None:
        self.loop.unpark(job.extra)

    def turn(self, now: float, looked: bool) -> tuple[Job, float] | None:
        run = self.loop.next(looked, round(now / _NS))
        return None if run is None else (run.job, run.pace.slice_ns * _NS)

    def spent(self, job: Job, seconds: float, now: float) -> None:
        self.loop.end(job.extra, round(now / _NS))

    def look(self, now: float, slept: float) -> None:
        self.loop.look(round(slept / _NS))

    # ---- load ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        self.admission.tell(self.load(now))
        self._ticked = now

    def pressed(self) -> int:
        """The highest class of which a run waits for a ticket."""
        admission = self.admission
        if not admission.queued:
            return _NOBODY
        return 0 if admission.waits(0) else 1 if admission.waits(1) else 2

    def load(self, now: float) -> Load:
        """What the last tick was like."""
        return self.loop.load((now - self._ticked) / _NS)

    def gauges(self) -> dict[str, float]:
        limits = dict(zip(PRIORITIES, self.admission.limits, strict=True))
        queued = {one.priority: one.queued for one in self.admission.statistics()}
        return {
            **{f"limit {name}": limit for name, limit in limits.items()},
            **{f"queued {name}": count for name, count in queued.items()},
            **{f"demoted {flow}": 1.0 for flow in self.loop.offenders.flows(self._ticked)},
        }


class TrimmedByDelay(Zerver):
    """Failed: limits trimmed by the p90 of how long steps waited for their turn. One long step looks like overload."""

    name = "step delay"

    def __init__(self, scenario: Scenario, seed: int) -> None:
        super().__init__(scenario, seed)
        self._delays: tuple[list[float], ...] = ([], [], [])

    def turn(self, now: float, looked: bool) -> tuple[Job, float] | None:
        turn = super().turn(now, looked)
        if turn is not None:
            for level in range(RANK[turn[0].flow.priority], len(PRIORITIES)):
                self._delays[level].append(now - turn[0].parked)
        return turn

    def load(self, now: float) -> Load:
        load = super().load(now)
        first, second, third = (quantile(delays, 0.9) if delays else 0.0 for delays in self._delays)
        self._delays = ([], [], [])
        return attrs.evolve(load, standing=(first, second, third))


class StarvedByGuarantee(Zerver):
    """Failed: a level was called starved, whatever stood waiting, while a class below it used what it is guaranteed.
    In a long overload that is always so: the limit ran away.
    """

    name = "starved by guarantee"

    def __init__(self, scenario: Scenario, seed: int) -> None:
        super().__init__(scenario, seed)
        self._passed = [0.0] * len(PRIORITIES)

    def spent(self, job: Job, seconds: float, now: float) -> None:
        super().spent(job, seconds, now)
        for level in range(RANK[job.flow.priority]):
            if self.admission.waits(level):
                self._passed[level] += seconds

    def load(self, now: float) -> Load:
        load = super().load(now)
        passed, self._passed = self._passed, [0.0] * len(PRIORITIES)
        one, two, three = (0.0 if lost else standing for standing, lost in zip(load.standing, passed, strict=True))
        first, second, third = map(max, load.starved, passed)
        return attrs.evolve(load, standing=(one, two, three), starved=(first, second, third))


DESIGN: Final[Callable[[Scenario, int], Policy]] = Zerver
FAILED: Final[Mapping[str, Callable[[Scenario, int], Policy]]] = {
    design.name: design for design in (TrimmedByDelay, StarvedByGuarantee)
}
