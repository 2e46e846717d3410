"""Joins against a model that looks at all arrivals at once; percentiles, forms and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.strategies import READ, WRITE
from zerver import Effect, join
from zerver.core.effects import Cancelled, EffectKind, Failure, IdempotencyKey, Outcome, Success, Unknown, deliver
from zerver.core.joins import Join, JoinState, Verdict, percentile
from zerver.errors import DefinitionError, EffectError, JoinFailed, OutcomeUnknown


def _outcome(kind: int, number: int) -> Outcome[Any]:
    error = EffectError("test.read", f"no {number}")
    return [
        Success(f"v{number}"),
        Failure(error),
        Unknown(OutcomeUnknown("test.write", f"maybe {number}"), IdempotencyKey(f"k{number}")),
        Cancelled(f"cut {number}"),
    ][kind]


FORMS = {"value": lambda e: e, "optional": lambda e: e.optional(), "outcome": lambda e: e.outcome()}

members = st.lists(
    st.tuples(st.sampled_from(sorted(FORMS)), st.sampled_from([0, 0, 0, 1, 2, 3])), min_size=1, max_size=6
)


def _build(rule: str, forms: list[str], k: int) -> Join[Any]:
    effects = [FORMS[form](READ()) for form in forms]
    made: Effect[Any] = join.quorum(k, *effects) if rule == "quorum" else getattr(join, rule)(*effects)
    assert isinstance(made, Join)
    return made


def _model(made: Join[Any], arrived: dict[int, Outcome[Any]]) -> tuple[str, object] | None:
    """What a join has come to when these have arrived: nothing, ("success", values) or ("failure", who failed)."""
    count = len(made.members)
    won = [i for i in sorted(arrived) if isinstance(arrived[i], Success)]
    given_ = {i: deliver(made.members[i], outcome)[0] for i, outcome in arrived.items()}
    match made.rule.name:
        case "all":
            required = [i for i in arrived if deliver(made.members[i], arrived[i])[1] is not None]
            if required:
                return ("failure", None)
            return ("success", tuple(given_[i] for i in range(count))) if len(arrived) == count else None
        case "settle":
            return ("success", tuple(arrived[i] for i in range(count))) if len(arrived) == count else None
        case "race":
            if won:
                return ("success", given_[won[0]])
            return ("failure", None) if len(arrived) == count else None
        case _:
            if len(won) >= made.rule.k:
                return ("success", tuple(given_[i] for i in won))
            return ("failure", None) if len(won) + count - len(arrived) < made.rule.k else None


@settings(max_examples=400)
@given(st.sampled_from(["all", "settle", "race", "quorum", "quorum"]), members, st.data())
def test_joins_decide_as_the_model_does_and_at_the_first_moment_they_can(
    rule: str, drawn: list[tuple[str, int]], data: st.DataObject
) -> None:
    made = _build(rule, [form for form, _ in drawn], data.draw(st.integers(1, len(drawn))))
    state = JoinState(made)
    assert state.begin() == Verdict(start=tuple(range(len(drawn))))
    arrived: dict[int, Outcome[Any]] = {}
    for number in data.draw(st.permutations(range(len(drawn)))):
        arrived[number] = _outcome(drawn[number][1], number)
        verdict = state.arrived(number, arrived[number])
        wanted = _model(made, arrived)
        assert (verdict.outcome is None) == (wanted is None)
        assert verdict.start == ()
        if wanted is None:
            continue
        what, value = wanted
        if what == "success":
            assert verdict.outcome == Success(value)
            assert verdict.winners == tuple(sorted(verdict.winners))
            assert set(verdict.winners) <= set(arrived)
        else:
            assert isinstance(verdict.outcome, Failure)
            assert verdict.winners == ()
        return
    raise AssertionError("every join is decided when all have arrived")


@given(members)
def test_a_lost_quorum_names_its_failures_in_argument_order(drawn: list[tuple[str, int]]) -> None:
    made = _build("quorum", [form for form, _ in drawn], len(drawn))
    state = JoinState(made)
    state.begin()
    for number in reversed(range(len(drawn))):
        verdict = state.arrived(number, _outcome(drawn[number][1], number))
        if verdict.outcome is not None:
            break
    if isinstance(verdict.outcome, Failure):
        error = verdict.outcome.error
        assert isinstance(error, JoinFailed)
        assert "is out of reach" in error.reason
        assert len(error.failures) == 1  # it fails at the first that makes it impossible
        assert error.cause is error.failures[0]


def test_a_race_that_all_lose_names_them_all_in_argument_order() -> None:
    state = JoinState(_build("race", ["value", "value", "value"], 1))
    state.begin()
    state.arrived(2, _outcome(1, 2))
    state.arrived(0, _outcome(1, 0))
    verdict = state.arrived(1, _outcome(3, 1))
    assert isinstance(verdict.outcome, Failure)
    error = verdict.outcome.error
    assert isinstance(error, JoinFailed)
    assert [failure.reason for failure in error.failures] == ["no 0", "cancelled: cut 1", "no 2"]


def test_empty_joins_are_decided_at_once_or_refused() -> None:
    for empty in (join.all(), join.settle()):
        assert isinstance(empty, Join)
        assert JoinState(empty).begin() == Verdict(outcome=Success(()))
    for build in (join.race, lambda: join.quorum(1)):
        with pytest.raises(DefinitionError):
            build()


# ---- hedges ---------------------------------------------------------------------------------


@given(st.integers(2, 4), st.lists(st.one_of(st.just("tick"), st.integers(0, 3)), max_size=12))
def test_a_hedge_starts_no_more_than_its_limit_and_ends_with_its_first_success(limit: int, events: list[Any]) -> None:
    made = join.hedge(READ(), after=0.1, limit=limit)
    assert isinstance(made, Join)
    state = JoinState(made, 0.1)
    begin = state.begin()
    assert begin == Verdict(start=(0,), wake=0.1)
    started, arrived = [0], set[int]()
    for event in events:
        if event == "tick":
            verdict = state.tick()
            if verdict.start:
                started += verdict.start
                assert (verdict.wake is not None) == (len(started) < limit)
            assert len(started) <= limit
            assert started == list(range(len(started)))
            continue
        running = [number for number in started if number not in arrived]
        number = running[0]
        arrived.add(number)
        verdict = state.arrived(number, _outcome(event, number))
        if event == 0:
            assert verdict == Verdict(outcome=Success(f"v{number}"), winners=(number,))
            return
        assert (verdict.outcome is None) == (len(running) > 1)
        if verdict.outcome is not None:
            assert state.tick() == Verdict()  # a hedge is against slowness, not failure
            return


def test_a_hedge_that_fails_tells_the_doubtful_outcome() -> None:
    made = join.hedge(WRITE(), after=0.0)
    assert isinstance(made, Join)
    state = JoinState(made, 0.0)
    state.begin()
    state.tick()
    doubt = _outcome(2, 1)
    state.arrived(1, doubt)
    assert state.arrived(0, _outcome(1, 0)).outcome is doubt


def test_a_hedge_without_samples_does_not_wake() -> None:
    made = join.hedge(READ(), after="p95")
    assert isinstance(made, Join)
    assert JoinState(made, None).begin() == Verdict(start=(0,))


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_hedge_has_the_form_of_its_effect(form: str) -> None:
    assert join.hedge(FORMS[form](READ()), after=1.0).form == form


def test_what_a_hedge_refuses() -> None:
    blind: EffectKind[..., int] = EffectKind("blind.write", "write")
    for effect, options, words in [
        (join.all(READ(), READ()), {"after": 1.0}, "was given a join"),
        (blind(), {"after": 1.0}, "would start the write 'blind.write' twice, but its handler takes no key"),
        (READ(), {"after": 1.0, "limit": 1}, "limit=1 never hedges"),
        (READ(), {"after": -1.0}, "after=-1.0"),
        (READ(), {"after": float("nan")}, "after=nan"),
        (READ(), {"after": "fast"}, "after='fast'"),
    ]:
        with pytest.raises(DefinitionError, match=words):
            join.hedge(effect, **options)


@pytest.mark.parametrize(
    ("text", "part"), [("p5", 0.05), ("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999), ("p05", 0.05)]
)
def test_percentiles(text: str, part: float) -> None:
    assert percentile(text) == pytest.approx(part)


@pytest.mark.parametrize("text", ["p", "p0", "p00", "p100", "p250", "95", "p9.5", "p²", "P95", "p-5", ""])
def test_what_is_no_percentile(text: str) -> None:
    with pytest.raises(DefinitionError):
        percentile(text)


# ---- joins as effects -----------------------------------------------------------------------


def test_joins_nest_and_keep_their_members_through_policy_and_form() -> None:
    nested = join.all(join.race(READ(), READ()), WRITE()).with_policy(timeout=1.0).optional()
    assert isinstance(nested, Join)
    assert nested.form == "optional"
    assert nested.policy is not None
    assert nested.policy.timeout == 1.0
    assert [type(member) for member in nested.members] == [Join, Effect]
    assert repr(nested) == "join.all(join.race(test.read(), test.read()), test.write())"


def test_what_joins_refuse() -> None:
    for build, words in [
        (lambda: join.all(READ(), READ()).with_policy(retries=1), "was given retries=1"),
        (lambda: join.all(READ(), 3), "was given 3, which is not an effect"),  # type: ignore[call-overload]  # the test
        (lambda: join.quorum(3, READ(), READ()), "wants 3 of 2"),
        (lambda: join.quorum(0, READ()), "wants 0 of 1"),
        (lambda: join.all(READ(), READ()).compensate(WRITE), "cannot be compensated"),
    ]:
        with pytest.raises(DefinitionError, match=words):
            build()
