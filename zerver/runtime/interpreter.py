"""The interpreter: performs one effect, with all that its policy says, and tells what came of it.

Law: an outcome is never a guess. A write is a success when its handler returned, a failure when it is certain that it
has not happened, and unknown otherwise (`zerver.runtime.judge` reads that from what was raised). Whatever cuts an
attempt short, the saga is told of a write that may have happened before anything else runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from random import Random
from typing import Any, Final, TypeAlias

import trio

from zerver.core import timeline as t
from zerver.core.app import App
from zerver.core.breaker import Breaker
from zerver.core.budget import RUN_RETRIES
from zerver.core.calls import Call
from zerver.core.commands import Park
from zerver.core.effects import Cancelled, Effect, EffectKind, Failure, Outcome, Success, Unknown
from zerver.core.hedging import payable
from zerver.core.joins import Join
from zerver.core.policy import COMPENSATION, Policy, backoff_seconds, resolve
from zerver.errors import EffectError, EffectRefused, EffectTimeout, OutcomeUnknown
from zerver.runtime.bounds import UNBOUNDED, Bounds, Loan, bounds_of
from zerver.runtime.bulkhead import Bulkhead
from zerver.runtime.groups import bare
from zerver.runtime.handlers import Bound, Handlers
from zerver.runtime.joins import perform_join
from zerver.runtime.judge import Judgement, asked_to_wait, judge, judge_timeout
from zerver.runtime.live import Flight, Run
from zerver.runtime.targets import Operation, Targets, TargetState, slow_to

_NEVER: Final = float("inf")

#: Gives a Judgement only if it is not told to be the last one, which no type can say.
Attempt: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]


class Way:
    """How effects of one kind, policy, target and operation are performed; looked up once.

    instant: the handler is a plain function. What a test puts in its place need not be one. rollback: for a task of
    one, which is tried in any case. slow: seconds; what took no longer is not slow to anybody.
    """

    __slots__ = (
        "bound", "breaker", "bulkhead", "instant", "invoke", "latencies", "operation", "policy", "retries",
        "rollback", "slow", "state", "timeout",
    )  # fmt: skip

    def __init__(
        self, bound: Bound, policy: Policy, state: TargetState, operation: Operation, instant: bool, rollback: bool
    ) -> None:
        self.bound = bound
        self.invoke = bound.invoke
        self.bulkhead = state.bulkhead_for(bound.serves)
        self.breaker = operation.breaker
        self.slow = _NEVER if self.breaker is None else self.breaker.policy.slow
        self.latencies = operation.latencies
        self.instant = instant
        self.operation = operation
        self.policy = policy
        self.retries = policy.retries or 0
        self.rollback = rollback
        self.timeout = policy.timeout
        self.state = state


class Interpreter:
    """Performs effects for all runs of a runtime."""

    def __init__(self, app: App, handlers: Handlers, targets: Targets, rng: Random) -> None:
        self.app = app
        self.handlers = handlers
        self.targets = targets
        self.rng = rng
        self._draw = rng.random
        self._gated: Attempt = self._attempt_in_place
        self._ungated: Attempt = self._attempt
        self._clock = trio.lowlevel.current_clock().current_time  # half of what `trio.current_time` costs
        self._ways: dict[tuple[object, ...], Way] = {}

    # -- the verbs --

    # Some only choose, and wait for nothing themselves: every coroutine more is a frame more under each effect.

    def perform(self, run: Run, call: Call) -> Coroutine[Any, Any, Outcome[Any]]:
        """Perform a call of a step; the saga is told of what it committed, or may have."""
        effect = call.effect
        if effect.kind.access == "write":
            return self._write(run, call)
        if isinstance(effect, Join):
            return perform_join(self, run, call)
        return self.fly(run, call, None)

    async def put_down(self, run: Run, park: Park) -> bool:
        """Nobody keeps this run: it is parked in memory."""
        return False

    async def _write(self, run: Run, call: Call) -> Outcome[Any]:
        flight = Flight()
        try:
            outcome = await self.fly(run, call, flight)
            if isinstance(outcome, Unknown):
                outcome = await self.resolve(run, call, outcome)
        except BaseException:  # Cancelled, also in the group of a handler's own nursery; or the program ends
            if flight.sent:
                run.machine.doubted(call, OutcomeUnknown(call.effect.kind.name, "cut while it was under way"))
            raise
        if isinstance(outcome, Success):
            run.machine.committed(call, outcome.value)
        elif isinstance(outcome, Unknown):
            run.machine.doubted(call, outcome.error)
        return outcome

    def compensate(self, run: Run, call: Call) -> Coroutine[Any, Any, Outcome[Any]]:
        """Perform a task of the rollback: tried harder, and never itself compensated.

        Budgets and breakers do not hold it back: they are against storms, and a refund is none.
        """
        if isinstance(call.effect, Join):
            return self._compensate_join(run, call, call.effect)
        flight = None if call.effect.kind.access == "read" else Flight()
        return self.fly(run, call, flight, COMPENSATION)

    async def _compensate_join(self, run: Run, call: Call, join: Join[Any]) -> Outcome[Any]:
        """Members are tried as hard as one alone, and all must have worked: a settle says only that they have ended."""
        outcome = await perform_join(_Compensating(self), run, call)
        if join.rule.name == "settle" and isinstance(outcome, Success):
            failed = next((member for member in outcome.value if not isinstance(member, Success)), None)
            if failed is not None:
                reason = failed.reason if isinstance(failed, Cancelled) else failed.error.reason
                return Failure(EffectError(join.kind.name, f"not all of it was done: {reason}"))
        return outcome

    async def resolve(self, run: Run, call: Call, outcome: Unknown) -> Outcome[Any]:
        """Ask the other side whether a write in doubt has happened, if the effect says how."""
        how = call.effect.compensation
        if how is None or how.resolve is None:
            return outcome
        try:
            ask = Call(run.run_id, call.step, f"{call.ordinal}.resolve", how.resolve(call.key), call, call.until_ns)
            answer = await (perform_join(self, run, ask) if isinstance(ask.effect, Join) else self.fly(run, ask, None))
        except Exception as defect:  # resolve= is user code; that it cannot even be asked leaves the write in doubt
            reason = f"{type(defect).__name__}: {defect}"
            answer = Failure(EffectError(call.effect.kind.name, f"resolve could not be asked: {reason}", defect))
        run.records.append((t.RESOLVED, run.clock(), call, answer))
        if not isinstance(answer, Success):
            return outcome
        if answer.value is None:
            return Failure(
                EffectError(call.effect.kind.name, f"it did not happen: {outcome.error.reason}", outcome.error)
            )
        return Success(answer.value)

    def fly(
        self,
        run: Run,
        call: Call,
        flight: Flight | None,
        weaker: Policy | None = None,
        numbers: Iterator[int] | None = None,
    ) -> Coroutine[Any, Any, Outcome[Any]]:
        """Attempts until one succeeds or the policy gives up; tells nobody. flight is None for reads.

        numbers: those of its attempts, where it shares them with others of a hedge.
        """
        way = self.way(run.flow.policy, call.effect, weaker)
        if way.instant:
            return self._instantly(run, call, way)
        way.state.firsts += 1
        number = 1 if numbers is None else next(numbers)
        gated = way.bulkhead is not None or (run.gate is not None and not way.rollback)
        attempt = self._gated if gated else self._ungated
        if way.retries:
            return self._insist(run, call, way, number, flight, attempt, numbers)
        return attempt(run, call, way, number, flight, True)

    async def _insist(
        self,
        run: Run,
        call: Call,
        way: Way,
        number: int,
        flight: Flight | None,
        attempt: Attempt,
        numbers: Iterator[int] | None,
        made: Outcome[Any] | Judgement | None = None,
    ) -> Outcome[Any]:
        """Attempt, and once more as long as the policy allows it and it makes sense. made: what came of an attempt that
        has been made already.
        """
        retries, doubtful = number - 1 if numbers is None else 0, False
        while True:
            judged: Outcome[Any] | Judgement
            judged = await attempt(run, call, way, number, flight, False) if made is None else made
            if not isinstance(judged, Judgement):
                return judged
            doubtful = doubtful or judged.doubt
            if flight is not None:
                flight.sent = doubtful
            more = retries < way.retries
            wait, why = self._next_wait(run, call, way, judged, retries) if more else (None, "")
            run.records.append((t.FAILED, run.clock(), call, (number, judged.error, judged.doubt, wait, why)))
            if wait is None:
                return _given_up(call, judged.error, doubtful)
            retries, made = retries + 1, None
            await trio.sleep(wait)
            number = number + 1 if numbers is None else next(numbers)
            run.records.append((t.ATTEMPT, run.clock(), call, number))

    def hedge_delay(self, run: Run, effect: Effect[Any], q: float) -> float | None:
        """Seconds after which a hedge at this percentile is due; None below 100 samples."""
        return self.way(run.flow.policy, effect).operation.latencies.percentile(payable(q), trio.current_time())

    def hold_hedge(self, run: Run, effect: Effect[Any], waited: float, again: bool) -> str:
        """Why the effect, so many seconds under way, may not be started once more now; "" takes a token of the budget.

        again: it was held back before.
        """
        way = self.way(run.flow.policy, effect)
        why = way.state.hold_hedge(way.operation, waited, self.targets.loop_lag(), trio.current_time())
        if why and not again:
            way.state.hedges_held_back += 1
        return why

    # -- the way --

    def way(self, flow: Policy | None, effect: Effect[Any], weaker: Policy | None = None) -> Way:
        """The handler, policy, target and operation of an effect."""
        kind = effect.kind
        key: tuple[object, ...] = (kind, effect.policy, flow, weaker)
        if kind.target.__class__ is not str or kind.operation.__class__ is not str:  # mostly they are names
            key += (effect.target, effect.operation)
        way = self._ways.get(key)
        if way is None or way.state.gone:
            policy, _ = resolve([*self.levels(flow, effect), ("compensation", weaker)])
            bound = self.handlers.bound(kind)
            instant = kind.instant and not bound.lazy
            state = self.targets.get(effect.target)
            way = Way(bound, policy, state, state.operation(effect.operation), instant, weaker is not None)
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

    async def _instantly(self, run: Run, call: Call, way: Way) -> Outcome[Any]:
        try:
            return Success(way.bound.invoke(call, 1, run.info))
        except Exception as raised:
            return Failure(judge(call.effect.kind, raised).error)

    async def _attempt_in_place(
        self, run: Run, call: Call, way: Way, number: int, flight: Flight | None, last: bool
    ) -> Outcome[Any] | Judgement:
        """One attempt, when its run or its target bounds how many there are at once.

        The run's place first, then the target's: everybody takes them in this order, and nobody waits for a place while
        a place of the same kind is held, because joins hold none. So there is no circle to wait in. A rollback has no
        place of its run's: the run is over.
        """
        gate, bulkhead = None if way.rollback else run.gate, way.bulkhead
        if gate is not None:
            late = await self._wait_for_place(run, call, way, gate, "of its run")
            if late is not None:
                return _final(run, call, number, late, flight) if last else late
        try:
            if bulkhead is None:
                return await self._attempt(run, call, way, number, flight, last)
            late = await self._wait_for_place(run, call, way, bulkhead, f"at {way.state.name!r}")
            if late is not None:
                return _final(run, call, number, late, flight) if last else late
            began, in_use, tells = trio.current_time(), bulkhead.in_use, False
            try:
                judged = await self._attempt(run, call, way, number, flight, False)
                tells = not isinstance(judged, Judgement) or judged.timeout
            except trio.Cancelled:
                tells = run.outlived is not None  # its own time was over, and it took at least so long
                raise
            finally:
                bulkhead.release(began, trio.current_time(), in_use, tells)
            return _final(run, call, number, judged, flight) if last and isinstance(judged, Judgement) else judged
        finally:
            if gate is not None:
                gate.release()

    async def _wait_for_place(self, run: Run, call: Call, way: Way, places: Bulkhead, where: str) -> Judgement | None:
        """Wait for one of the places, within the run's deadline and outside the attempt's own timeout: to stand in line
        is no attempt. None when it is taken; else why not, and it has certainly not been sent.
        """
        if places.acquire_nowait():
            return None
        state, kind, now = way.state, call.effect.kind, trio.current_time()
        ends = trio.current_effective_deadline()
        if call.until_ns is not None:
            ends = min(ends, now + max(0.0, (call.until_ns - run.clock()) / 1e9))
        if ends == _NEVER and way.policy.timeout is not None:  # nobody else says how long anybody will wait
            ends = now + way.policy.timeout
        breaker = way.operation.breaker
        if not way.rollback:
            if breaker is not None and breaker.would_refuse(now):
                state.refused += 1
                return judge(kind, EffectRefused(kind.name, f"the circuit breaker of {state.name!r} is open"))
            if now + places.expected_seconds(run.priority) > ends:
                # It would be served, if at all, when nobody wants it any more, and in the place of one who does.
                return _no_place(state, kind, where)
        with trio.CancelScope(deadline=ends) as scope:
            # What a rollback does is owed; it goes first, whoever's it is, and is not sent away.
            if way.rollback:
                await places.acquire("interactive")
            elif not await places.acquire(run.priority, ends):
                return _no_place(state, kind, where)
        if not scope.cancelled_caught:
            return None
        state.refused += 1
        error = EffectTimeout(
            kind.name, f"no place {where} came free within {(trio.current_time() - now) * 1000:.0f}ms"
        )
        return Judgement(error, again=False, trouble=False, doubt=False)

    async def _attempt(
        self, run: Run, call: Call, way: Way, number: int, flight: Flight | None, last: bool
    ) -> Outcome[Any] | Judgement:
        """One attempt, in the books of its target. All in one frame: this is what every effect goes through.

        last: there will be no other, so that the judgement of this one is the outcome.
        """
        state, breaker, era = way.state, way.breaker, 0
        state.attempts += 1
        began = self._clock()
        if breaker is not None and not way.rollback:
            era = breaker.allow(began, run.priority, self._draw)
            if not era:
                refused = _held_back(state, call.effect.kind, breaker)
                return _final(run, call, number, refused, flight) if last else refused
        judged: Success[Any] | Judgement | None = None
        bounds: Bounds = UNBOUNDED
        if way.timeout is not None or call.until_ns is not None:
            bounds = bounds_of(run, call, way.timeout, began, way.rollback, flight is None)
        try:
            with bounds:
                try:
                    if flight is None:
                        judged = Success(await way.invoke(call, number, run.info))
                    else:
                        # Let a cancellation that is due come before the write is sent, and not at the handler's first
                        # checkpoint: then nobody could tell.
                        if trio.current_effective_deadline() <= began:
                            await trio.lowlevel.checkpoint()
                        judged = Success(await _sent(run, call, way, number, flight))
                except Exception as raised:
                    judged = judge(call.effect.kind, raised)
                except BaseExceptionGroup as group:
                    # A handler's own nursery was cut, and its cleanup raised beside the Cancelled. A scope takes the
                    # Cancelled out and lets the rest go on, as an error of nobody's that passes everybody by.
                    raise bare(group.split(Exception)[1] or group) from None
        except BaseException:  # cut from outside: it says nothing about the target, but that it took at least so long
            if breaker is not None:
                breaker.forget(era)
            ended = trio.current_time()
            way.latencies.add_cut(ended - began, ended)
            raise
        now = self._clock()
        took = now - began
        outcome: Outcome[Any] | Judgement
        if isinstance(judged, Success):
            outcome = judged
            way.latencies.add(took, now)
            if took > way.slow and breaker is not None and slow_to(way.operation, took, self.targets.loop_lag):
                breaker.record(era, False, True, now, self._draw())
            elif breaker is not None:
                breaker.succeeded(era, now)
        else:
            if judged is None:  # only what bounds it, and caught its own cancellation, leaves nothing
                judged = judge_timeout(call.effect.kind, took, flight is not None and flight.sent)
            state.failures += 1
            if breaker is not None:
                breaker.record(era, judged.trouble, False, now, self._draw() if judged.trouble else 0.0)
            outcome = _final(run, call, number, judged, flight) if last else judged
        if isinstance(bounds, Loan) and now >= bounds.ends and bounds.is_used_up:
            attempt = self._ungated if run.gate is None and way.bulkhead is None else self._gated
            await bounds.leave(call, partial(self._insist, run, call, way, number, None, attempt, None, outcome))
        return outcome

    def _next_wait(self, run: Run, call: Call, way: Way, judged: Judgement, retries: int) -> tuple[float | None, str]:
        """Seconds until the next attempt, or None when there is to be none, and why, though the policy allows one."""
        if not judged.again:
            return None, "it may have happened, and its handler takes no key" if judged.doubt else ""
        asked = asked_to_wait(judged.error)
        wait = max(asked, backoff_seconds(way.policy, retries, self.rng.random()))
        now = trio.current_time()
        late = now + wait >= trio.current_effective_deadline()
        if late or (call.until_ns is not None and run.clock() + wait * 1e9 >= call.until_ns):
            return None, f"it asked to be left alone for {asked:g}s" if asked == wait else "there is no time left"
        if not way.rollback:
            if run.retries_left <= 0:
                return None, f"the run has made its {RUN_RETRIES} retries"
            if not way.state.may_retry(now):
                return None, f"the retry budget of {way.state.name!r} is spent"
            run.retries_left -= 1
        way.state.retries += 1
        return wait, ""


def _no_place(state: TargetState, kind: EffectKind[..., Any], where: str) -> Judgement:
    state.refused += 1
    refused = EffectRefused(kind.name, f"no place {where} would come free in time")
    return Judgement(refused, again=False, trouble=False, doubt=False)


def _sent(run: Run, call: Call, way: Way, number: int, flight: Flight) -> Awaitable[Any]:
    """Call the handler of a write: from here on it may have happened, but not if an `async def` could not be called."""
    exact = call.effect.kind.exact
    if not exact and not way.bound.lazy:
        flight.sent = True
    awaitable: Awaitable[Any] = way.bound.invoke(call, number, run.info)
    if not exact:
        flight.sent = True
    return awaitable


class _Compensating:
    """The interpreter, as a join of the rollback sees it."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._interpreter = interpreter
        self.hedge_delay = interpreter.hedge_delay
        self.hold_hedge = interpreter.hold_hedge
        self.perform = interpreter.compensate
        self.resolve = interpreter.resolve

    def fly(
        self, run: Run, call: Call, flight: Flight | None, *, numbers: Iterator[int]
    ) -> Coroutine[Any, Any, Outcome[Any]]:
        return self._interpreter.fly(run, call, flight, COMPENSATION, numbers)


def _held_back(state: TargetState, kind: EffectKind[..., Any], breaker: Breaker) -> Judgement:
    state.refused += 1
    held = "is open" if breaker.state != "closed" else "holds some back, because it fails too often"
    return judge(kind, EffectRefused(kind.name, f"the circuit breaker of {state.name!r} {held}"))


def _final(run: Run, call: Call, number: int, judged: Judgement, flight: Flight | None) -> Outcome[Any]:
    """The outcome of a call whose only attempt failed."""
    if flight is not None:
        flight.sent = judged.doubt
    run.records.append((t.FAILED, run.clock(), call, (number, judged.error, judged.doubt, None, "")))
    return _given_up(call, judged.error, judged.doubt)


def _given_up(call: Call, error: EffectError, doubtful: bool) -> Outcome[Any]:
    """The outcome of a call whose last attempt failed: one attempt in doubt puts all of it in doubt."""
    if not doubtful:
        return Failure(error)
    if not isinstance(error, OutcomeUnknown):
        reason = f"an earlier attempt may have happened; the last one: {error.reason}"
        error = OutcomeUnknown(call.effect.kind.name, reason, error)
    return Unknown(error, call.key)
