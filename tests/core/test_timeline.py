"""Accounts add up for any records; a timeline knows how its run ended."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.core.strategies import READ
from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.tickets import Refusal

KINDS = sorted({value for name, value in vars(t).items() if name.isupper() and isinstance(value, str)})

CALL = Call("run", "step", "1", READ())
ENDINGS = [t.Ending("done"), t.Ending("failed"), t.Ending("deadline"), t.Ending("cancelled")]


@st.composite
def records(draw: Any) -> list[t.Record]:
    """Any kinds in any order, with what their kind has for subject and detail."""
    now, drawn = 0, list[t.Record]()
    for kind in draw(st.lists(st.sampled_from(KINDS), max_size=40)):
        now += draw(st.integers(0, 1_000))
        since = draw(st.integers(0, 40_000))
        drawn.append((kind, now, CALL, draw(st.sampled_from(ENDINGS)) if kind == t.ENDING else since))
    return drawn


@given(records())
def test_total_is_the_sum_of_the_accounts_and_the_time_from_first_to_last(drawn: list[t.Record]) -> None:
    found = t.accounts(drawn)
    assert found.total == found.admission + found.turn + found.cpu + found.io + found.parked
    assert found.total == (drawn[-1][1] - drawn[0][1] if drawn else 0)
    assert min(found.admission, found.turn, found.cpu, found.io, found.parked) >= 0


def test_each_gap_belongs_to_the_record_that_ends_it() -> None:
    stamps = [(t.RECEIVED, 0), (t.ADMITTED, 1), (t.TURN, 11), (t.STEP, 111), (t.ASKED, 112), (t.SETTLED, 1112)]
    stamps += [(t.PARKED, 1113), (t.SIGNALLED, 11113), (t.ENDED, 11114)]
    assert t.accounts([(kind, at, CALL, 0) for kind, at in stamps]) == t.Accounts(
        admission=1, turn=10, cpu=100 + 1 + 1 + 1, io=1000, parked=10000
    )


def test_a_wait_for_a_turn_begins_when_the_world_has_answered() -> None:
    stamps = [(t.INPUT, 0, None), (t.ASKED, 5, None), (t.TURN, 105, 95), (t.SETTLED, 106, None), (t.STEP, 116, None)]
    stamps += [(t.PARKED, 117, None), (t.TURN, 1117, 1017), (t.SIGNALLED, 1117, None), (t.TURN, 1127, 1120)]
    assert t.accounts([(kind, at, CALL, detail) for kind, at, detail in stamps]) == t.Accounts(
        turn=10 + 100 + 7, cpu=5 + 10 + 1 + 3, io=90 + 1, parked=900
    )


def test_every_kind_is_in_the_table_and_every_account_is_of_a_kind() -> None:
    table = {line.split()[0] for line in str(t.__doc__).splitlines() if line.startswith("    ") and line.strip()}
    assert set(KINDS) <= table
    assert set(t.ACCOUNTS) <= set(KINDS)


def timeline(*records: t.Record) -> t.Timeline:
    return t.Timeline("run", "f", "1", "acme", "default", list(records))


def test_how_a_run_ended() -> None:
    ending, refusal = t.Ending("done", 1), Refusal("draining")
    assert timeline((t.RECEIVED, 0, "f", None)).ending is None
    assert timeline((t.ENDING, 0, "f", ending)).ending is None, "its rollback is still under way"
    assert timeline((t.ENDING, 0, "f", ending), (t.ENDED, 1, "f", ending)).ending is ending
    refused = timeline((t.REFUSED, 0, "f", refusal)).ending
    assert refused is not None
    assert (refused.status, refused.cause) == ("refused", refusal)
    assert timeline((t.RECEIVED, 3, "f", None), (t.ENDED, 9, "f", ending)).accounts.total == 6


def test_a_wait_that_was_cut_short_from_outside_is_a_wait() -> None:
    for first, account in ((t.ASKED, "io"), (t.PARKED, "parked")):
        for status, wanted in (("deadline", account), ("failed", "cpu")):
            drawn: list[t.Record] = [(t.ADMITTED, 0, None, None), (first, 1, CALL, None)]
            drawn.append((t.ENDING, 100, "f", t.Ending(status)))  # type: ignore[arg-type]  # one of them
            assert getattr(t.accounts(drawn), wanted) >= 99
