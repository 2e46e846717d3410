"""The interpreter: performs one effect, with all that its policy says, and tells what came of it.

Law: an outcome is never a guess. A write is a success when its handler returned, a failure when it is certain that it
has not happened, and unknown otherwise (`zerver.runtime.judge` reads that from what was raised). Whatever cuts an
attempt short, the saga is told of a write that may have happened before anything else runs.
"""

from __future__ import annotations

from inspect import iscoroutinefunction
from random import Random
from typing import Any

import trio

from zerver.core import timeline as t
from zerver.core.app import App
from zerver.core.calls import Call
from zerver.core.effects import Effect, Failure, Outcome, Success, Unknown
from zerver.core.joins import Join
from zerver.core.policy import Policy, backoff_seconds, resolve
from zerver.errors import EffectError, EffectRefused, OutcomeUnknown
from zerver.runtime.handlers import Bound, Handlers
from zerver.runtime.joins import perform_join
from zerver.runtime.judge import Judgement, judge, judge_timeout
from zerver.runtime.live import Flight, Run
from zerver.runtime.targets import Targets, TargetState

#: How hard a rollback tries when nobody says otherwise: until its undo deadline, rather than until its patience ends.
_COMPENSATION = Policy(timeout=5.0, retries=20, backoff=0.05, backoff_cap=1.0)

_NEVER = float("inf")


class Way:
    """How effects of one kind, policy and target are performed; looked up once.

    instant: the handler is a plain function. What a test puts in its place need not be one.
    """

    __slots__ = ("bound", "instant", "policy", "state")

    def __init__(self, bound: Bound, policy: Policy, state: TargetState, instant: bool) -> None:
        self.bound = bound
        self.instant = instant
        self.policy = policy
        self.state = state


class Interpreter:
    """Performs effects for all runs of a runtime."""

    def __init__(self, app: App, handlers: Handlers, targets: Targets, rng: Random) -> None:
        self.app = app
        self.handlers = handlers
        self.targets = targets
        self.rng = rng
        self._ways: dict[tuple[object, ...], Way] = {}

    # -- the verbs --

    async def perform(self, run: Run, call: Call) -> Outcome[Any]:
        """Perform a call of a step; the saga is told of what it committed, or may have."""
        effect = call.effect
        if isinstance(effect, Join):
            return await perform_join(self, run, call)
        if effect.kind.access == "read":
            return await self.fly(run, call, None)
        flight = Flight()
        try:
            outcome = await self.fly(run, call, flight)
            if isinstance(outcome, Unknown):
                outcome = await self.resolve(run, call, outcome)
        except BaseException:  # Cancelled, also in the group of a handler's own nursery; or the program ends
            if flight.sent:
                run.machine.doubted(call, OutcomeUnknown(effect.kind.name, "cut while it was under way"))
            raise
        if isinstance(outcome, Success):
            run.machine.committed(call, outcome.value)
        elif isinstance(outcome, Unknown):
            run.machine.doubted(call, outcome.error)
        return outcome

    async def compensate(self, run: Run, call: Call) -> Outcome[Any]:
        """Perform a task of the rollback: tried harder, and never itself compensated.

        Budgets and breakers do not hold it back: they are against storms, and a refund is none.
        """
        if isinstance(call.effect, Join):
            return await perform_join(self, run, call)
        flight = None if call.effect.kind.access == "read" else Flight()
        return await self.fly(run, call, flight, _COMPENSATION)

    async def resolve(self, run: Run, call: Call, outcome: Unknown) -> Outcome[Any]:
        """Ask the other side whether a write in doubt has happened, if the effect says how."""
        how = call.effect.compensation
        if how is None or how.resolve is None:
            return outcome
        ask = Call(run.run_id, call.step, f"{call.ordinal}.resolve", how.resolve(call.key), call, call.until_ns)
        answer = await self.fly(run, ask, None)
        run.records.append((t.RESOLVED, run.clock(), call, answer))
        if not isinstance(answer, Success):
            return outcome
        if answer.value is None:
            return Failure(
                EffectError(call.effect.kind.name, f"it did not happen: {outcome.error.reason}", outcome.error)
            )
        return Success(answer.value)

    async def fly(self, run: Run, call: Call, flight: Flight | None, weaker: Policy | None = None) -> Outcome[Any]:
        """Attempts until one succeeds or the policy gives up; tells nobody. flight is None for reads."""
        way = self.way(run.flow.policy, call.effect, weaker)
        if way.instant:
            return self._instantly(run, call, way)
        number, retries_left, doubtful = 1, way.policy.retries or 0, False
        way.state.budget.earn()
        while True:
            judged = await self._attempt(run, call, way, number, flight, rollback=weaker is not None)
            if not isinstance(judged, Judgement):
                return judged
            doubtful = doubtful or judged.doubt
            if flight is not None:
                flight.sent = doubtful
            wait = self._next_wait(run, call, way, judged, number, retries_left, rollback=weaker is not None)
            run.records.append((t.FAILED, run.clock(), call, (number, judged.error, judged.doubt, wait)))
            if wait is None:
                return _given_up(call, judged.error, doubtful)
            retries_left -= 1
            await trio.sleep(wait)
            number += 1
            run.records.append((t.ATTEMPT, run.clock(), call, number))

    def latency(self, effect: Effect[Any], q: float) -> float | None:
        """A percentile of what the effect's target has lately needed, in seconds; None below 100 samples."""
        return self.targets.get(effect.target).percentile(q)

    # -- the way --

    def way(self, flow: Policy | None, effect: Effect[Any], weaker: Policy | None = None) -> Way:
        """The handler, policy and target of an effect."""
        kind, target = effect.kind, effect.target
        key = (kind, target, effect.policy, flow, weaker)
        way = self._ways.get(key)
        if way is None:
            policy, _ = resolve([*self.levels(flow, effect), ("compensation", weaker)])
            bound = self.handlers.bound(kind)
            instant = kind.instant and not iscoroutinefunction(bound.function)
            way = Way(bound, policy, self.targets.get(target), instant)
            if len(self._ways) > 10_000:  # targets come from URLs, and policies may be computed: do not keep them all
                self._ways.clear()
            self._ways[key] = way
        return way

    def levels(self, flow: Policy | None, effect: Effect[Any]) -> list[tuple[str, Policy | None]]:
        """The policies that may apply to an effect, strongest first."""
        return [
            ("effect", effect.policy),
            ("flow", flow),
            ("target", self.targets.get(effect.target).rule.policy),
            ("kind", effect.kind.policy),
            ("app", self.app.policy),
        ]

    # -- one attempt --

    def _instantly(self, run: Run, call: Call, way: Way) -> Outcome[Any]:
        try:
            return Success(way.bound.invoke(call, 1, run.info))
        except Exception as raised:
            return Failure(judge(call.effect.kind, raised).error)

    async def _attempt(
        self, run: Run, call: Call, way: Way, number: int, flight: Flight | None, *, rollback: bool
    ) -> Success[Any] | Judgement:
        state, kind = way.state, call.effect.kind
        state.attempts += 1
        began = trio.current_time()
        breaker = state.breaker
        if breaker is not None and not breaker.allow(began) and not rollback:
            state.refused += 1
            return judge(kind, EffectRefused(kind.name, f"the circuit breaker of {state.name!r} is open"))
        try:
            judged = await self._bounded(run, call, way, number, flight, began)
        except BaseException:  # cut from outside: it says nothing about the target
            if breaker is not None:
                breaker.forget()
            raise
        now = trio.current_time()
        if isinstance(judged, Success):
            state.latencies.append(now - began)
        else:
            state.failures += 1
        if breaker is not None:
            failed = isinstance(judged, Judgement) and judged.trouble
            breaker.record(failed, now, self.rng.random() if failed else 0.0)
        return judged

    async def _bounded(
        self, run: Run, call: Call, way: Way, number: int, flight: Flight | None, now: float
    ) -> Success[Any] | Judgement:
        """The handler in its cancel scope; without a timeout of its own the run's scope is enough."""
        timeout = way.policy.timeout
        ends = _NEVER if timeout is None else now + timeout
        if call.until_ns is not None:
            ends = min(ends, now + max(0.0, (call.until_ns - run.clock()) / 1e9))
        if ends == _NEVER:
            return await self._handled(run, call, way, number, flight)
        with trio.CancelScope(deadline=ends):
            return await self._handled(run, call, way, number, flight)
        # Only a scope that caught its own cancellation gets here.
        return judge_timeout(call.effect.kind, trio.current_time() - now, flight is not None and flight.sent)

    async def _handled(
        self, run: Run, call: Call, way: Way, number: int, flight: Flight | None
    ) -> Success[Any] | Judgement:
        bulkhead = way.state.bulkhead
        try:
            if bulkhead is None:
                if flight is not None and not call.effect.kind.exact:
                    flight.sent = True
                return Success(await way.bound.invoke(call, number, run.info))
            async with bulkhead:
                if flight is not None and not call.effect.kind.exact:
                    flight.sent = True
                return Success(await way.bound.invoke(call, number, run.info))
        except Exception as raised:
            return judge(call.effect.kind, raised)

    def _next_wait(
        self, run: Run, call: Call, way: Way, judged: Judgement, number: int, left: int, *, rollback: bool
    ) -> float | None:
        """Seconds until the next attempt, or None when there is to be none."""
        if left <= 0 or not judged.again:
            return None
        wait = backoff_seconds(way.policy, number - 1, self.rng.random())
        now = trio.current_time()
        if now + wait >= trio.current_effective_deadline():
            return None
        if call.until_ns is not None and run.clock() + wait * 1e9 >= call.until_ns:
            return None
        if not rollback:
            if run.retries_left <= 0 or not way.state.budget.spend(now):
                return None
            run.retries_left -= 1
        way.state.retries += 1
        return wait


def _given_up(call: Call, error: EffectError, doubtful: bool) -> Outcome[Any]:
    """The outcome of a call whose last attempt failed: one attempt in doubt puts all of it in doubt."""
    if not doubtful:
        return Failure(error)
    if not isinstance(error, OutcomeUnknown):
        reason = f"an earlier attempt may have happened; the last one: {error.reason}"
        error = OutcomeUnknown(call.effect.kind.name, reason, error)
    return Unknown(error, call.key)
