"""Joins at run time: one nursery for a join's members; `zerver.core.joins` says who won, this file cancels the others.

Law: a nursery opens only here and for parallel steps. When a join is left, for whatever reason, none of its members is
running any more, and the saga knows which of them were not wanted.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping
from itertools import chain, count
from types import MappingProxyType
from typing import Any, Protocol

import trio

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.effects import Cancelled, Effect, Failure, Outcome, Success, Unknown
from zerver.core.hedging import SHORTEST
from zerver.core.joins import Join, JoinState, Verdict, percentile
from zerver.errors import EffectTimeout, OutcomeUnknown
from zerver.runtime.groups import unwrapped
from zerver.runtime.live import Flight, Run


class Performer(Protocol):
    """What a join needs of the interpreter."""

    def perform(self, run: Run, call: Call) -> Coroutine[Any, Any, Outcome[Any]]:
        """Perform a call and tell the saga."""
        ...

    def fly(
        self, run: Run, call: Call, flight: Flight | None, *, numbers: Iterator[int]
    ) -> Coroutine[Any, Any, Outcome[Any]]:
        """Perform a call and tell nobody: a hedge's attempts are one write. numbers: those of its attempts."""
        ...

    async def resolve(self, run: Run, call: Call, outcome: Unknown) -> Outcome[Any]:
        """Ask whether a write in doubt has happened."""
        ...

    def hedge_delay(self, run: Run, effect: Effect[Any], q: float) -> float | None:
        """Seconds after which a hedge at this percentile is due; None while that is not known."""
        ...

    def hold_hedge(self, run: Run, effect: Effect[Any], waited: float, again: bool) -> str:
        """Why the effect, so many seconds under way, may not be started once more now; "" if it may, and will be."""
        ...


async def perform_join(
    performer: Performer, run: Run, call: Call, asked: Mapping[int, Call] = MappingProxyType({})
) -> Outcome[Any]:
    """Perform a join: its outcome, with losers cancelled and told to the saga.

    asked: members that were asked for before, in another process, by number.
    """
    join = call.effect
    if not isinstance(join, Join):
        raise TypeError(f"{call!r} is not a join")
    kind = _Hedge if join.rule.name == "hedge" else _Members
    conduct = kind(performer, run, call, join, asked)
    timeout = join.policy.timeout if join.policy is not None else None
    try:
        with unwrapped():
            async with trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                if timeout is not None:
                    scope.deadline = trio.current_time() + timeout
                own = conduct.begin(nursery)
                if own is not None:
                    await conduct.member(own)
        if conduct.outcome is None and scope.cancelled_caught and timeout is not None:
            conduct.cut()
            conduct.outcome = Failure(EffectTimeout(join.kind.name, f"timed out after {timeout * 1000:.0f}ms"))
    except BaseException:  # Cancelled; or the program ends, and what was sent must be told all the same
        conduct.cut()
        conduct.abandon()
        raise
    return await conduct.end()


class _Conduct:
    """One join under way: a nursery, and what has arrived."""

    __slots__ = ("asked", "call", "join", "nursery", "on", "outcome", "performer", "state", "winners")

    nursery: trio.Nursery
    state: JoinState

    def __init__(self, performer: Performer, run: Run, call: Call, join: Join[Any], asked: Mapping[int, Call]) -> None:
        self.performer = performer
        self.on = run
        self.asked = asked
        self.call = call
        self.join = join
        self.outcome: Outcome[Any] | None = None
        self.winners: tuple[int, ...] = ()

    def begin(self, nursery: trio.Nursery) -> int | None:
        """Start what is to be started first, but one: its number, for the caller to perform. A task of its own would
        only be waited for. None if there is nothing to do.
        """
        self.nursery = nursery
        verdict = self.state.begin()
        if verdict.outcome is not None:
            self.decide(verdict.outcome, ())
            return None
        own = verdict.start[-1]
        self.start(verdict, verdict.start[:-1])
        return own

    def start(self, verdict: Verdict, members: tuple[int, ...]) -> None:
        """Start these members, and look again when the verdict says so."""
        name, start_soon = self.join.kind.name, self.nursery.start_soon  # of a task without a name Trio makes one up
        for number in members:
            start_soon(self.member, number, name=name)
        if verdict.wake is not None:
            start_soon(self.wake, verdict.wake, name=name)

    def decide(self, outcome: Outcome[Any], winners: tuple[int, ...]) -> None:
        """This is what comes of it."""
        self.outcome, self.winners = outcome, winners
        if self.state.running:  # else all have ended, and to cancel nobody costs as much as a member
            self.nursery.cancel_scope.cancel()

    async def wake(self, seconds: float) -> None:
        """When so many seconds are over, ask what to do. Only a hedge's verdict wants it."""
        raise NotImplementedError

    async def member(self, number: int) -> None:
        raise NotImplementedError

    def cut(self) -> None:
        """All of it is cut."""

    def abandon(self) -> None:
        """The join was cut from outside: tell the saga what nobody has told it yet."""

    async def end(self) -> Outcome[Any]:
        raise NotImplementedError


class _Members(_Conduct):
    """all, settle, race, quorum: each member is a call of its own."""

    __slots__ = ("calls",)

    def __init__(self, performer: Performer, run: Run, call: Call, join: Join[Any], asked: Mapping[int, Call]) -> None:
        super().__init__(performer, run, call, join, asked)
        self.state = JoinState(join)
        self.calls = call.members(run.run_id)
        for number, member in asked.items():
            self.calls[number] = member

    def begin(self, nursery: trio.Nursery) -> int | None:
        # All are asked for now, and not in their tasks: Trio starts tasks in any order.
        asked, records, now = self.asked, self.on.records, self.on.clock()
        for number, call in enumerate(self.calls):
            if number not in asked:
                records.append((t.ASKED, now, call, None))
        return super().begin(nursery)

    async def member(self, number: int) -> None:
        call, run = self.calls[number], self.on
        try:
            outcome = await self.performer.perform(run, call)
        except BaseException:  # Cancelled, also in the group of a handler's own nursery
            run.records.append((t.CUT, run.clock(), call, "the join was decided" if self.outcome else "cancelled"))
            raise
        if self.outcome is not None:
            run.records.append((t.LATE, run.clock(), call, outcome))
            return
        run.records.append((t.SETTLED, run.clock(), call, outcome))
        verdict = self.state.arrived(number, outcome)
        if verdict.outcome is not None:
            self.decide(verdict.outcome, verdict.winners)

    async def end(self) -> Outcome[Any]:
        outcome = self.outcome or Cancelled("the join was cut")
        if len(self.winners) < len(self.calls):
            self.on.machine.lost(self.call, [self.calls[number] for number in self.winners])
        return outcome


class _Hedge(_Conduct):
    """hedge: attempts of one call, with one idempotency key; what they write is committed once."""

    __slots__ = ("began", "flights", "is_over", "numbers", "one", "writes")

    def __init__(self, performer: Performer, run: Run, call: Call, join: Join[Any], asked: Mapping[int, Call]) -> None:
        super().__init__(performer, run, call, join, asked)
        self.state = JoinState(join, self.delay())
        self.one = asked.get(0) or call.member(run.run_id, 0)
        self.writes = self.one.effect.kind.access == "write"
        self.flights: list[Flight] = []  # of a write; a read has no doubt to keep
        self.began = trio.current_time()
        self.is_over = trio.Event()  # for its timers: to cancel a task costs three times as much as to wake it
        self.numbers = count(1)  # of all its attempts, retries too: what a server is told of them

    def delay(self) -> float | None:
        """Seconds until it is made once more; None while that is not known."""
        after = self.join.rule.after
        q = percentile(after)
        if q is None:
            return float(after)
        seconds = self.performer.hedge_delay(self.on, self.join.members[0], q)
        return None if seconds is None else max(SHORTEST, seconds)

    def begin(self, nursery: trio.Nursery) -> int | None:
        if not self.asked:
            self.on.records.append((t.ASKED, self.on.clock(), self.one, None))
        return super().begin(nursery)

    async def member(self, number: int) -> None:
        flight = None
        if self.writes:
            flight = Flight()
            self.flights.append(flight)
        first = next(self.numbers)
        if number:
            self.on.records.append((t.HEDGED, self.on.clock(), self.one, first))
        outcome = await self.performer.fly(self.on, self.one, flight, numbers=chain((first,), self.numbers))
        if self.outcome is None:
            verdict = self.state.arrived(number, outcome)
            if verdict.outcome is not None:
                self.decide(verdict.outcome, verdict.winners)
                self.is_over.set()

    async def wake(self, seconds: float) -> None:
        """Held back, it is looked at again when it has waited twice as long; each reason is told once."""
        told = ""
        while not await self._is_over_within(seconds):
            waited = max(seconds, trio.current_time() - self.began)
            why = self.performer.hold_hedge(self.on, self.one.effect, waited, bool(told))
            if not why:
                verdict = self.state.tick()
                self.start(verdict, verdict.start)
                return
            if why != told:
                self.on.records.append((t.HELD, self.on.clock(), self.one, why))
                told = why
            seconds = max(SHORTEST, waited)

    async def _is_over_within(self, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            await self.is_over.wait()
        return self.outcome is not None

    def cut(self) -> None:
        self.on.records.append((t.CUT, self.on.clock(), self.one, "cancelled"))

    def abandon(self) -> None:
        # An attempt may have won in the very moment in which the join was cut: what it did is done.
        self._tell(self._known("cut while it was under way"))

    async def end(self) -> Outcome[Any]:
        outcome = self._known("a hedged attempt was cut")
        if isinstance(outcome, Unknown):
            try:
                outcome = await self.performer.resolve(self.on, self.one, outcome)
            except BaseException:  # whatever it is, the write is in doubt
                self._tell(outcome)
                raise
        self._tell(outcome)
        self.on.records.append((t.SETTLED, self.on.clock(), self.one, outcome))
        return outcome

    def _known(self, doubt: str) -> Outcome[Any]:
        """What the attempts came to, all together: one that may have happened puts the whole hedge in doubt."""
        outcome: Outcome[Any] = self.outcome or Cancelled("the join was cut")
        if not isinstance(outcome, Success | Unknown) and any(flight.sent for flight in self.flights):
            return Unknown(OutcomeUnknown(self.one.effect.kind.name, doubt), self.one.key)
        return outcome

    def _tell(self, outcome: Outcome[Any]) -> None:
        if self.writes and isinstance(outcome, Success):
            self.on.machine.committed(self.one, outcome.value)
        elif self.writes and isinstance(outcome, Unknown):
            self.on.machine.doubted(self.one, outcome.error)
