"""Joins: how several effects become one. This file decides who won; `zerver.runtime.joins` cancels the others.

Law: a JoinState is told what arrived and when to look again, and answers with a Verdict. It starts nothing, cancels
nothing and knows no clock. Results are in argument order whatever the order of arrival.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar, TypeVarTuple, cast, overload

import attrs

from zerver.core.effects import (
    Cancelled,
    Compensation,
    Effect,
    EffectKind,
    Failure,
    Form,
    Outcome,
    Success,
    Unknown,
    deliver,
)
from zerver.core.policy import Policy
from zerver.core.values import value
from zerver.errors import DefinitionError, EffectError, JoinFailed

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
Ts = TypeVarTuple("Ts")

JoinName = Literal["all", "settle", "race", "quorum", "hedge"]

KINDS: dict[JoinName, EffectKind[..., Any]] = {
    name: EffectKind(f"join.{name}", "read", target="join") for name in ("all", "settle", "race", "quorum", "hedge")
}


@attrs.frozen
class JoinRule:
    """What a join waits for. k: quorum's count. after: seconds, or "pNN" of the target's latency. limit: attempts."""

    name: JoinName
    k: int = 0
    after: float | str = 0.0
    limit: int = 0


class Join(Effect[T]):
    """Several effects as one effect: it nests in other joins and carries a policy of its own.

    A join's own timeout bounds the whole of it; it is not retried (its members are, by their own policies).
    """

    __slots__ = ("members", "rule")

    def __init__(
        self,
        kind: EffectKind[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        compensation: Compensation | None = None,
        form: Form = "value",
    ) -> None:
        super().__init__(kind, args, kwargs, policy, compensation, form)
        self.rule: JoinRule = args[0]
        self.members: tuple[Effect[Any], ...] = args[1:]
        if self.rule.name == "hedge":  # the hedge is the effect: what `.optional()` says of one holds for the other
            self.members = (self.members[0]._formed(form),)
        if policy is not None and policy.retries:
            raise DefinitionError(
                f"{kind.name} was given retries={policy.retries}",
                "give retries to its members; a join is not repeated",
            )

    def __repr__(self) -> str:
        return f"{self.kind.name}({', '.join(map(repr, self.members))})"


_ALL, _SETTLE, _RACE = JoinRule("all"), JoinRule("settle"), JoinRule("race")


def _join(rule: JoinRule, members: tuple[Effect[Any], ...]) -> Join[Any]:
    for member in members:
        if not isinstance(member, Effect):
            raise DefinitionError(
                f"join.{rule.name} was given {member!r}, which is not an effect",
                "give it effects, not awaited values",
            )
    if not members and rule.name != "settle" and rule.name != "all":
        raise DefinitionError(f"join.{rule.name} was given no effects", "give it at least one")
    return Join(KINDS[rule.name], (rule, *members))


# The overloads spell out tuples of two to five, which is what editors show best; more members give a tuple of Any.
@overload
def all(a: Effect[A], b: Effect[B], /) -> Effect[tuple[A, B]]: ...
@overload
def all(a: Effect[A], b: Effect[B], c: Effect[C], /) -> Effect[tuple[A, B, C]]: ...
@overload
def all(a: Effect[A], b: Effect[B], c: Effect[C], d: Effect[D], /) -> Effect[tuple[A, B, C, D]]: ...
@overload
def all(a: Effect[A], b: Effect[B], c: Effect[C], d: Effect[D], e: Effect[E], /) -> Effect[tuple[A, B, C, D, E]]: ...
@overload
def all(*effects: Effect[T]) -> Effect[tuple[T, ...]]: ...
def all(*effects: Effect[Any]) -> Effect[Any]:
    """Every result, as a tuple. Fails on the first required failure, and cancels the rest.

    A member with `.optional()` is not required: its failure gives None in its place.
    """
    return _join(_ALL, effects)


@overload
def settle(a: Effect[A], b: Effect[B], /) -> Effect[tuple[Outcome[A], Outcome[B]]]: ...
@overload
def settle(a: Effect[A], b: Effect[B], c: Effect[C], /) -> Effect[tuple[Outcome[A], Outcome[B], Outcome[C]]]: ...
@overload
def settle(
    a: Effect[A], b: Effect[B], c: Effect[C], d: Effect[D], /
) -> Effect[tuple[Outcome[A], Outcome[B], Outcome[C], Outcome[D]]]: ...
@overload
def settle(*effects: Effect[T]) -> Effect[tuple[Outcome[T], ...]]: ...
def settle(*effects: Effect[Any]) -> Effect[Any]:
    """Every outcome, as a tuple; never fails."""
    return _join(_SETTLE, effects)


def race(*effects: Effect[T]) -> Effect[T]:
    """The first success; fails when all have failed. Losers are cancelled; one that committed is compensated."""
    return cast("Effect[T]", _join(_RACE, effects))


def quorum(k: int, *effects: Effect[T]) -> Effect[tuple[T, ...]]:
    """The first k successes, in argument order; fails as soon as k is out of reach.

    Raises DefinitionError when k is below 1 or above the number of effects.
    """
    if not 1 <= k <= len(effects):
        raise DefinitionError(
            f"join.quorum wants {k} of {len(effects)} effects", f"give k between 1 and {max(1, len(effects))}"
        )
    return _join(JoinRule("quorum", k=k), effects)


def hedge(effect: Effect[T], *, after: float | str, limit: int = 2) -> Effect[T]:
    """Start the effect again when the first attempt is slow; the first success wins, the others are cancelled.

    after: seconds, or "p95": that percentile of what the target has lately needed (no hedge before 100 samples).
    limit: attempts in all. All attempts of a hedged write carry one idempotency key, and commit once.
    Precedent: Dean and Barroso, "The Tail at Scale": p99.9 from 1800 to 74 ms for 2 % more requests.

    Raises DefinitionError for a write whose handler takes no key, and for a join.
    """
    if isinstance(effect, Join):
        raise DefinitionError("join.hedge was given a join", "hedge the members instead")
    if effect.kind.access == "write" and not effect.kind.takes_key:
        raise DefinitionError(
            f"join.hedge would start the write {effect.kind.name!r} twice, but its handler takes no key",
            "give the handler a parameter `key: IdempotencyKey`, or do not hedge it",
        )
    if limit < 2:
        raise DefinitionError(f"join.hedge with limit={limit} never hedges", "give a limit of 2 or more")
    percentile(after)
    # The hedge is the effect: what `.optional()` or `.outcome()` said of one holds for the other.
    rule = JoinRule("hedge", after=after, limit=limit)
    return cast("Effect[T]", Join(KINDS["hedge"], (rule, effect), form=effect.form))


#: "p5", "p95", "p999" for 99.9; more digits begin with a 9, since "p100" is no percentile and "p250" means nothing.
_PERCENTILE = re.compile("p([1-9]|[0-9][1-9]|[1-9]0|9[0-9]{2,6})")


def percentile(after: float | str) -> float | None:
    """0.95 for "p95", None for seconds. Raises DefinitionError for anything else."""
    if isinstance(after, int | float):
        if not after >= 0:
            raise DefinitionError(f"join.hedge with after={after!r}", "give seconds, 0 or more")
        return None
    if _PERCENTILE.fullmatch(after):
        return int(after[1:]) / 10.0 ** max(2, len(after) - 1)
    raise DefinitionError(f"join.hedge with after={after!r}", 'give seconds, or a percentile like "p95"')


# ---- who won --------------------------------------------------------------------------------


@value
class Verdict:
    """What to do now: start these members, look again after `wake` seconds, or stop with `outcome`.

    A member number of a hedge is its attempt. winners: the members whose results are in the outcome.
    """

    start: tuple[int, ...] = ()
    wake: float | None = None
    outcome: Outcome[Any] | None = None
    winners: tuple[int, ...] = ()


#: Nothing is decided, and nothing more to start: what most arrivals come to.
WAIT = Verdict()


@lru_cache(maxsize=64)
def _all_of(count: int) -> Verdict:
    """Start so many members: joins have the same few numbers of them over and over. Without any, it is decided."""
    return Verdict(tuple(range(count))) if count else Verdict(outcome=Success(()))


class JoinState:
    """One join under way. `begin` once, then `arrived` per member (and `tick` when a wake comes) until an outcome.

    running: members (or attempts) that were to be started and have not arrived.
    """

    __slots__ = ("_decide", "_outcomes", "_started", "_values", "after", "join", "running")

    _values: list[object]  # what the members have given, for a join that wants them all

    def __init__(self, join: Join[Any], after: float | None = None) -> None:
        """after: the hedge's delay in seconds, None when it must not hedge (too few samples)."""
        self.join = join
        self.after = after
        self._decide = _RULES[join.rule.name]
        self._outcomes: dict[int, Outcome[Any]] = {}
        self._started = 0
        self.running = 0

    def begin(self) -> Verdict:
        """The first members to start; an empty join is decided at once."""
        if self.join.rule.name == "hedge":
            return self._start_attempt()
        count = self.running = len(self.join.members)
        self._values = [None] * count
        return _all_of(count)

    def tick(self) -> Verdict:
        """The hedge's delay is over: start another attempt if one is left."""
        if self.running and self._started < self.join.rule.limit:
            return self._start_attempt()
        return WAIT

    def arrived(self, member: int, outcome: Outcome[Any]) -> Verdict:
        """A member came to an outcome; anything after the verdict has one is late, and is not to be told here."""
        self._outcomes[member] = outcome
        self.running -= 1
        return self._decide(self, member, outcome)

    def _start_attempt(self) -> Verdict:
        number = self._started
        self._started += 1
        self.running += 1
        more = self._started < self.join.rule.limit
        return Verdict(start=(number,), wake=self.after if more else None)

    def _all(self, member: int, outcome: Outcome[Any]) -> Verdict:
        self._values[member], error = deliver(self.join.members[member], outcome)
        if error is not None:
            return Verdict(outcome=Failure(error))
        return WAIT if self.running else self._everybody()

    def _settle(self, member: int, outcome: Outcome[Any]) -> Verdict:
        self._values[member] = outcome
        return WAIT if self.running else self._everybody()

    def _everybody(self) -> Verdict:
        values = tuple(self._values)
        return Verdict((), None, Success(values), _all_of(len(values)).start)

    def _race(self, member: int, outcome: Outcome[Any]) -> Verdict:
        if isinstance(outcome, Success):
            return Verdict(outcome=Success(self._value(member)), winners=(member,))
        return WAIT if self.running else self._lost(f"all {len(self.join.members)} members failed")

    def _quorum(self, member: int, outcome: Outcome[Any]) -> Verdict:
        won = sorted(i for i, arrived in self._outcomes.items() if isinstance(arrived, Success))
        k = self.join.rule.k
        if len(won) >= k:
            return Verdict(outcome=Success(tuple(map(self._value, won))), winners=tuple(won))
        if len(won) + self.running < k:
            return self._lost(f"{k} of {len(self.join.members)} is out of reach: {len(won)} succeeded")
        return WAIT

    def _hedge(self, member: int, outcome: Outcome[Any]) -> Verdict:
        if isinstance(outcome, Success):
            return Verdict(outcome=outcome, winners=(member,))
        if self.running:
            return WAIT
        # A hedge is against slowness, not failure: retries are the policy's. The doubtful outcome is the one to tell.
        worst = next((o for o in self._outcomes.values() if isinstance(o, Unknown)), outcome)
        return Verdict(outcome=worst)

    def _value(self, member: int) -> object:
        """What a member gives, in the form that it was asked for."""
        return deliver(self.join.members[member], self._outcomes[member])[0]

    def _lost(self, reason: str) -> Verdict:
        errors = [self._error(i) for i in sorted(self._outcomes) if not isinstance(self._outcomes[i], Success)]
        return Verdict(outcome=Failure(JoinFailed(self.join.kind.name, reason, errors)))

    def _error(self, member: int) -> EffectError:
        outcome = self._outcomes[member]
        if isinstance(outcome, Failure | Unknown):
            return outcome.error
        reason = outcome.reason if isinstance(outcome, Cancelled) else "succeeded"
        return EffectError(self.join.members[member % len(self.join.members)].kind.name, f"cancelled: {reason}")


_RULES: Final[Mapping[JoinName, Callable[[JoinState, int, Outcome[Any]], Verdict]]] = {
    "all": JoinState._all,
    "settle": JoinState._settle,
    "race": JoinState._race,
    "quorum": JoinState._quorum,
    "hedge": JoinState._hedge,
}
