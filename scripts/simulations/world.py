"""The world that policies are put in: one worker with one CPU, steps that nothing interrupts, waits, and clients.

Law: what happens follows from the scenario, the policy and the seed. The clock is a number; nothing here decides who
runs: that is asked of the policy. What a policy is not asked about is the same for all: an arrival costs `ingress` of
CPU before anybody can decide about it, and work whose client has gone is stopped where it stands (kinder to the
ablations than the servers are that they stand for).

The generator, the CPU and the next arrival stand outside the heap: they are half of all events.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import accumulate
from random import Random
from typing import Any, Final, Literal, Protocol

import attrs

from scripts.simulations.scenario import FlowSpec, Scenario
from zerver.core.budget import RetryBudget

TICK: Final = 0.1  # seconds between two looks that a policy takes at itself
NEVER: Final = float("inf")

State = Literal["arriving", "waiting", "ready", "running", "away", "gone"]


class Job:
    """One attempt of a call, from the socket to the end."""

    __slots__ = ("admitted", "arrived", "attempt", "called", "cpu", "deadline", "extra", "flow", "name", "noted",
                 "parked", "queued", "remaining", "stage", "state", "tenant")  # fmt: skip

    def __init__(self, name: str, flow: FlowSpec, tenant: str, called: float, now: float, attempt: int) -> None:
        self.name, self.flow, self.tenant = name, flow, tenant
        self.called, self.arrived, self.attempt = called, now, attempt
        self.deadline = now + flow.deadline
        self.state: State = "arriving"
        self.admitted = NEVER
        self.stage = 0
        self.remaining = flow.steps[0]
        self.cpu = 0.0  # seconds of it, as a clock beside the steps would measure
        self.queued = 0.0  # seconds that its steps waited for the CPU
        self.parked = NEVER  # since when its step waits for the CPU
        self.noted: Any = None  # the policy's: a ticket, a place in a queue
        self.extra: Any = None  # the policy's too: a place among the turns


@attrs.frozen
class Refused:
    """retry_after: seconds, or None for a policy that does not say."""

    retry_after: float | None = None
    reason: str = ""


Answer = Literal["admitted", "waiting"] | Refused


class Policy(Protocol):
    """Who may run, and who has the next turn. Everything is told with `now`, and nothing is told twice."""

    name: str

    def arrive(self, job: Job, now: float) -> Answer: ...

    def leave(self, job: Job, now: float) -> None:
        """An admitted job has ended; `job.cpu` is what it took."""

    def abandon(self, job: Job, now: float) -> None:
        """The client of a waiting job has gone."""

    def granted(self, now: float) -> Iterable[tuple[Job, Refused | None]]:
        """Jobs that wait no longer, each with its refusal, if it is refused after all."""

    def park(self, job: Job, now: float) -> None:
        """An admitted job has a step to run."""

    def unpark(self, job: Job, now: float) -> None:
        """It has none any more: its client has gone."""

    def turn(self, now: float, looked: bool) -> tuple[Job, float] | None:
        """Who runs now, and for how many seconds before a step that breathes must hand on its turn. None: nobody, or
        the sockets are to be looked at first. looked: they have just been.
        """

    def look(self, now: float, slept: float) -> None:
        """The sockets are looked at, after so many seconds with nothing to do. Replies and arrivals follow."""

    def spent(self, job: Job, seconds: float, now: float) -> None:
        """How long the turn was. If the step is not done, `park` follows."""

    def tick(self, now: float) -> None: ...

    @property
    def due(self) -> float:
        """When `granted` has something to say although nothing has happened."""

    def gauges(self) -> dict[str, float]: ...


@attrs.frozen
class Call:
    """What became of a call: all its attempts."""

    name: str
    tenant: str
    called: float
    ended: float
    ok: bool
    waited: float  # of the last attempt, in the queue
    attempts: int
    cpu: float  # that its flow asks for, whatever the worker's speed
    outcome: str


@attrs.define
class Recording:
    """What a run left behind; what the figures are made of."""

    scenario: Scenario
    policy: str
    seed: int
    calls: list[Call] = attrs.field(factory=list)
    arrivals: list[float] = attrs.field(factory=list)  # of attempts
    spent: list[tuple[float, str, str, float]] = attrs.field(factory=list)  # when, flow, tenant, CPU of all work
    gauges: list[tuple[float, dict[str, float]]] = attrs.field(factory=list)
    queued: int = 0
    expired: int = 0


class World:
    """One run of a scenario. `run` returns its recording."""

    def __init__(self, scenario: Scenario, policy: Policy, seed: int) -> None:
        self.scenario, self.policy = scenario, policy
        self.recording = Recording(scenario, policy.name, seed)
        self.chance = Random(f"{scenario.name}/{seed}/waits")
        self._arriving = Random(f"{scenario.name}/{seed}/arrivals")
        self._retrying = Random(f"{scenario.name}/{seed}/retries")
        self._heap: list[tuple[float, int, str, Job | None]] = []
        self._number = 0
        self._ingress: list[Job] = []
        self._replied: list[Job] = []
        self._idle_since = NEVER
        self._speed = 1.0
        self._slow: dict[str, float] = {}
        self._running: Job | None = None
        self._deciding: list[Job] = []
        self._cpu_until = NEVER
        self._turn = 0.0  # seconds that the turn takes
        retries = scenario.retries
        self._budget = RetryBudget() if retries is not None and retries.budget else None
        self._sources: list[tuple[str, FlowSpec, str]] = []
        self._rates: list[float] = []
        self._rate = 0.0

    # ---- time ---------------------------------------------------------------------------------

    def run(self) -> Recording:
        """Play the scenario to its end."""
        for moment in self._moments():
            self._at(moment, "change")
        self._at(TICK, "tick")
        arrival = self._next_arrival(0.0)
        heap, seconds = self._heap, self.scenario.seconds
        while True:
            happening = heap[0][0]
            if arrival <= happening and arrival <= self._cpu_until:
                now = arrival
                if now >= seconds:
                    return self.recording
                self._call(now)
                arrival = self._next_arrival(now)
            elif self._cpu_until <= happening:
                now = self._cpu_until
                if now >= seconds:
                    return self.recording
                self._cpu_done(now)
            else:
                now, _, what, job = heappop(heap)
                if now >= seconds:
                    return self.recording
                if what == "change":
                    self._change(now)
                    arrival = self._next_arrival(now)  # Poisson arrivals forget: to draw anew changes nothing
                elif what == "tick":
                    self.policy.tick(now)
                    self.recording.gauges.append((now, self.policy.gauges()))
                    self._at(now + TICK, "tick")
                    self._grants(now)
                elif job is not None:
                    self._happen(what, job, now)
            if self._cpu_until == NEVER:
                if self.policy.due <= now:
                    self._grants(now)
                self._work(now)

    def _at(self, when: float, what: str, job: Job | None = None) -> None:
        self._number += 1
        heappush(self._heap, (when, self._number, what, job))

    def _moments(self) -> set[float]:
        scenario = self.scenario
        moments = {0.0, *(phase.at for phase in scenario.phases)}
        for fault in scenario.faults:
            moments |= {fault.at, fault.end}
        for tenant in scenario.tenants:
            moments |= {moment for period in tenant.active for moment in period if moment < NEVER}
        return moments

    def _change(self, now: float) -> None:
        """Work out how fast the CPU is, how slow each dependency, and who calls how often."""
        scenario = self.scenario
        faults = [fault for fault in scenario.faults if fault.at <= now < fault.end]
        self._speed = min((fault.factor for fault in faults if fault.kind == "capacity"), default=1.0)
        self._slow = {fault.name: fault.factor for fault in faults if fault.kind == "dependency"}
        factor = [phase.load for phase in scenario.phases if phase.at <= now][-1]
        self._sources, rates = [], []
        for tenant in scenario.tenants:
            if not any(start <= now < end for start, end in tenant.active):
                continue
            shares = tenant.flows or {name: flow.share for name, flow in scenario.flows.items()}
            for name, share in shares.items():
                for called in tenant.names:
                    self._sources.append((name, scenario.flows[name], called))
                    rates.append(factor * tenant.load * share / scenario.flows[name].cpu)
        self._rates = list(accumulate(rates))
        self._rate = self._rates[-1] if rates else 0.0

    # ---- clients ------------------------------------------------------------------------------

    def _next_arrival(self, now: float) -> float:
        return now + self._arriving.expovariate(self._rate) if self._rate else NEVER

    def _call(self, now: float) -> None:
        name, flow, tenant = self._sources[bisect(self._rates, self._arriving.random() * self._rate)]
        if self._budget is not None:
            self._budget.earn()
        self._arrive(Job(name, flow, tenant, now, now, 0), now)

    def _arrive(self, job: Job, now: float) -> None:
        self.recording.arrivals.append(now)
        self._ingress.append(job)

    def _failed(self, job: Job, now: float, outcome: str) -> None:
        """A client is told no, or gives up; maybe it tries again."""
        job.state = "gone"
        retries = self.scenario.retries
        if retries is not None and job.attempt < retries.attempts and (
            self._budget is None or self._budget.spend(now)
        ):  # fmt: skip
            again = now + self._retrying.random() * retries.backoff * 2**job.attempt
            self._at(again, "retry", job)
        else:
            self._note(job, now, False, outcome)

    def _note(self, job: Job, now: float, ok: bool, outcome: str) -> None:
        waited = (job.admitted if job.admitted < NEVER else now) - job.arrived
        self.recording.calls.append(
            Call(job.name, job.tenant, job.called, now, ok, waited, job.attempt + 1, job.flow.cpu, outcome)
        )

    # ---- jobs ---------------------------------------------------------------------------------

    def _decide(self, job: Job, now: float) -> None:
        answer = self.policy.arrive(job, now)
        if answer == "admitted":
            self._admit(job, now)
        elif answer == "waiting":
            job.state = "waiting"
            self.recording.queued += 1
            self._at(job.deadline, "deadline", job)
        else:
            self._failed(job, now, "refused")

    def _admit(self, job: Job, now: float) -> None:
        if job.state == "arriving":
            self._at(job.deadline, "deadline", job)
        job.admitted = now
        self._park(job, now)

    def _park(self, job: Job, now: float) -> None:
        job.state, job.parked = "ready", now
        self.policy.park(job, now)

    def _grants(self, now: float) -> None:
        for job, refused in self.policy.granted(now):
            if refused is None:
                self._admit(job, now)
            else:
                self.recording.expired += 1
                self._failed(job, now, "refused waiting")

    def _happen(self, what: str, job: Job, now: float) -> None:
        if what == "back":
            self._replied.append(job)
        elif what == "retry":
            self._arrive(Job(job.name, job.flow, job.tenant, job.called, now, job.attempt + 1), now)
        elif job.state != "gone":  # its deadline
            self._give_up(job, now)

    def _give_up(self, job: Job, now: float) -> None:
        if job.state == "running":
            return  # nothing interrupts a step; `_cpu_done` sees to it
        if job.state == "waiting":
            self.recording.expired += 1
            self.policy.abandon(job, now)
        elif job.state == "ready":
            self.policy.unpark(job, now)
        admitted = job.admitted < NEVER
        self._failed(job, now, "late")
        if admitted:
            self.policy.leave(job, now)
        self._grants(now)

    # ---- the CPU ------------------------------------------------------------------------------

    def _work(self, now: float) -> None:
        turn = self.policy.turn(now, looked=False)
        if turn is None:
            self._look(now)
            if self._cpu_until < NEVER:
                return
            turn = self.policy.turn(now, looked=True)
            if turn is None:
                self._idle_since = min(self._idle_since, now)
                return
        job, budget = turn
        seconds = job.remaining / self._speed
        if job.flow.breathes and seconds > budget:
            seconds = budget
        job.state = "running"
        job.queued += now - job.parked
        self._running, self._turn, self._cpu_until = job, seconds, now + seconds

    def _look(self, now: float) -> None:
        """See replies, and take in arrivals, which costs CPU."""
        self.policy.look(now, max(0.0, now - self._idle_since))
        self._idle_since = NEVER
        if self._replied:
            replied, self._replied = self._replied, []
            for job in replied:
                if job.state == "away":
                    self._park(job, now)
        if self._ingress:
            self._deciding, self._ingress = self._ingress, []
            self._cpu_until = now + len(self._deciding) * self.scenario.ingress / self._speed

    def _cpu_done(self, now: float) -> None:
        job, self._running, self._cpu_until = self._running, None, NEVER
        if job is None:
            deciding, self._deciding = self._deciding, []
            for arrived in deciding:
                self._decide(arrived, now)
            return
        seconds = self._turn
        job.cpu += seconds
        job.remaining -= seconds * self._speed
        self.recording.spent.append((now, job.name, job.tenant, seconds))
        self.policy.spent(job, seconds, now)
        if now > job.deadline:
            job.state = "away"
            self._give_up(job, now)
        elif job.remaining > 1e-9:
            self._park(job, now)
        elif job.stage + 1 < len(job.flow.steps):
            self._send_away(job, now)
        else:
            job.state = "gone"
            self._note(job, now, True, "served")
            self.policy.leave(job, now)
            self._grants(now)

    def _send_away(self, job: Job, now: float) -> None:
        flow = job.flow
        wait = flow.waits[job.stage]
        if flow.spread:
            wait *= self.chance.lognormvariate(-(flow.spread**2) / 2, flow.spread)  # the mean stays
        job.stage += 1
        job.remaining = flow.steps[job.stage]
        job.state = "away"
        self._at(now + wait * self._slow.get(flow.dependency, 1.0), "back", job)


def simulate(scenario: Scenario, policy: Policy, seed: int) -> Recording:
    """Play a scenario once."""
    return World(scenario, policy, seed).run()


def merged(recordings: Sequence[Recording]) -> Recording:
    """Several seeds as one, for figures that one seed has too few calls for."""
    whole = Recording(recordings[0].scenario, recordings[0].policy, recordings[0].seed)
    for recording in recordings:
        whole.calls += recording.calls
        whole.arrivals += recording.arrivals
        whole.spent += recording.spent
        whole.queued += recording.queued
        whole.expired += recording.expired
    return whole
