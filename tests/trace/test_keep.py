"""Proves which runs are kept and why, that no storm is kept whole, and that the same runs are kept again."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trace import shop
from zerver import Fail
from zerver.core import timeline as t
from zerver.core.effects import Failure
from zerver.core.saga import Entry
from zerver.core.tickets import Refusal
from zerver.core.timeline import Ending, Record, Timeline
from zerver.errors import ConnectFailed, DefinitionError, EffectError, InvalidData
from zerver.runtime import Result
from zerver.trace.keeping.keep import WHYS, Keeper, Keeping, Kept

SECOND = 1_000_000_000
MS = 1_000_000

DONE = Ending("done")
DEFECT = Ending("defect", cause=ZeroDivisionError())
LOST = Ending("failed", cause=EffectError("sql.fetch_one", "no"))
GONE = Ending("failed", cause=Fail.gone("cart"))
DOWN = Ending("failed", cause=Fail.unavailable("bank"))
BAD = Ending("failed", cause=InvalidData([("body", "no")]))
FULL = Ending("refused", cause=Refusal("queue full"))


class _Top:
    parent = None


class _Member:
    parent = _Top()


def run(
    ending: Ending = DONE, *, at: float = 0.0, took: int = MS, label: str = "GET /", http: int | None = None, **how: Any
) -> Result:
    """A run that ended at so many seconds and took so many nanoseconds. also: further records."""
    ended = round(at * SECOND)
    also: Sequence[Record] = how.pop("also", ())
    records: list[Record] = [(t.RECEIVED, ended - took, "f", None), *also, (t.ENDED, ended, "f", ending)]
    if http is not None:
        records.append((t.ANSWERED, ended, "f", http))
    return Result(Timeline("req_1", "f", "1", "acme", "default", records, label=label), ending, **how)


def all_but(**how: Any) -> Keeper:
    """A keeper that keeps nothing, but for what is said."""
    nothing = {"sample": 0.0, "beyond": 0.0, "unresolved": 0.0, "errors": 0.0, "refused": 0.0, "declined": 0.0}
    return Keeper(Keeping(**{**nothing, "slow": 0.0, "floor": 0.0, **how}), Random(1))


FAILED: Record = (t.SETTLED, 0, _Top(), Failure(EffectError("http.read", "no")))
LOSER: Record = (t.SETTLED, 0, _Member(), Failure(EffectError("http.read", "no")))
DOUBTED: Record = (t.DOUBTED, 0, _Top(), None)
UNDONE: Record = (t.UNDONE, 0, None, ("undo", None))
OPEN: Any = (Entry.__new__(Entry),)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (run(), "sample"),
        (run(http=200), "sample"),
        (run(http=500), "error"),
        (run(DEFECT), "error"),
        (run(LOST), "error"),
        (run(DOWN), "error"),
        (run(Ending("deadline")), "error"),
        (run(Ending("cancelled", reason="the client has gone")), "error"),
        (run(FULL), "refused"),
        (run(GONE), "declined"),
        (run(GONE, http=410), "declined"),
        (run(GONE, http=503), "error"),
        (run(BAD), "declined"),
        (run(GONE, also=[UNDONE]), "trouble"),
        (run(also=[FAILED]), "trouble"),
        (run(also=[LOSER]), "sample"),
        (run(also=[DOUBTED]), "trouble"),
        (run(unresolved=OPEN), "unresolved"),
        (run(DEFECT, unresolved=OPEN), "unresolved"),
    ],
)
def test_every_run_is_judged_by_what_somebody_will_ask_of_it(result: Result, why: str) -> None:
    kept = Keeper(Keeping(floor=1.0)).decide(result)
    assert kept == Kept(why)  # type: ignore[arg-type] # one of them


def test_a_storm_is_kept_up_to_its_rate_and_counted_beyond() -> None:
    keeper = all_but(errors=10.0)
    kept = [keeper.decide(run(DEFECT, at=number / 1000)) for number in range(3000)]
    assert len([one for one in kept if one]) in range(38, 42)  # ten at once, then ten a second
    assert [one.beside for one in kept if one][:12] == [0] * 10 + [90, 99]
    last = max(number for number, one in enumerate(kept) if one)
    assert sum(one.beside + 1 for one in kept if one) == last + 1  # each is counted once, by the next that is kept
    held = keeper.statistics()
    assert held.seen == 3000
    assert held.kept["error"] + held.passed["error"] == 3000


def test_a_storm_on_one_route_leaves_the_others_their_place() -> None:
    keeper = all_but(errors=2.0)
    for number in range(100):
        keeper.decide(run(DEFECT, at=number / 1000, label="GET /broken"))
    assert keeper.decide(run(DEFECT, at=0.1, label="GET /fine")) == Kept("error")
    assert keeper.decide(run(Ending("deadline"), at=0.1, label="GET /broken")) == Kept("error")  # another kind of it


def test_a_quiet_route_is_kept_whole_and_a_busy_one_sampled() -> None:
    quiet = [Keeper(Keeping(sample=0.0)).decide(run(at=float(second))) for second in range(50)]
    assert quiet == [Kept("sample")] * 50
    keeper = Keeper(Keeping(sample=0.1, floor=2.0), Random(1))
    kept = [keeper.decide(run(at=number / 1000)) for number in range(10_000)]
    assert 900 < len([one for one in kept if one]) < 1_150  # a tenth, and two a second


def test_with_a_sample_of_one_every_run_is_kept() -> None:
    keeper = Keeper(Keeping(sample=1.0))
    endings = [DONE, DEFECT, GONE, FULL, LOST]
    assert all(keeper.decide(run(endings[number % 5], at=number / 1e6)) for number in range(5_000))


def test_refusals_are_counted_by_their_reason() -> None:
    keeper = all_but(refused=1.0)
    full = [keeper.decide(run(FULL, label=f"GET /{number}")) for number in range(10)]
    assert full == [Kept("refused")] + [None] * 9
    assert keeper.decide(run(Ending("refused", cause=Refusal("draining")))) == Kept("refused")


def test_slow_is_what_is_over_the_usual_p99_once_that_is_known() -> None:
    keeper = all_but(slow=5.0)
    rng = Random(2)
    for number in range(99):
        assert keeper.decide(run(at=float(number), took=rng.randrange(MS, 10 * MS))) is None
    assert keeper.decide(run(at=99.0, took=50 * MS)) is None  # nobody knows what is usual
    kept = [keeper.decide(run(at=100.0 + number, took=rng.randrange(MS, 10 * MS))) for number in range(600)]
    assert len([one for one in kept if one]) < 20
    assert keeper.decide(run(at=701.0, took=50 * MS)) == Kept("slow", beside=0, slow=True)
    assert keeper.decide(run(at=702.0, took=50 * MS, label="GET /other")) is None


def test_a_slow_error_is_an_error_and_slow() -> None:
    assert all_but(errors=1.0, budget=0.02).decide(run(DEFECT, took=50 * MS)) == Kept("error", slow=True)


def test_a_budget_takes_the_place_of_the_p99_and_parked_time_is_no_ones() -> None:
    keeper = all_but(slow=100.0, budget=0.02)
    assert keeper.decide(run(took=20 * MS)) is None
    assert keeper.decide(run(took=21 * MS)) == Kept("slow", slow=True)
    node: Any = None
    parked: list[Record] = [(t.PARKED, -49 * MS, node, None), (t.SIGNALLED, -10 * MS, node, 1)]
    assert keeper.decide(run(took=50 * MS, also=parked)) is None


def test_a_busy_route_that_turns_slow_is_slow_for_longer_than_a_moment() -> None:
    keeper = all_but(slow=1000.0)
    for number in range(60_000):
        keeper.decide(run(at=number / 1000, took=MS + number % 7))
    slow = [keeper.decide(run(at=60 + number / 1000, took=9 * MS)) for number in range(500)]
    assert all(slow)  # half a second of them has not made it usual


async def test_a_write_that_was_undone_makes_a_declined_run_trouble(autojump_clock: object) -> None:
    keeper = Keeper()
    assert keeper.decide(await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out})) == Kept("trouble")
    assert keeper.decide(await shop.run(shop.CHECKOUT, {})) == Kept("sample")
    assert keeper.decide(await shop.refused()) == Kept("refused")
    assert keeper.decide(await shop.cancelled()) == Kept("error")
    without = {"http.write": shop.keyed((0.0, ConnectFailed("no")))}  # no receipt was sent, and the order stands
    assert keeper.decide(await shop.run(shop.CHECKOUT, without)) == Kept("trouble")


def test_strangers_who_invent_routes_make_it_hold_no_more() -> None:
    keeper = Keeper(Keeping(sample=0.0))
    for number in range(3000):
        keeper.decide(run(at=number / 10_000, label=f"M{number} /files/…"))
    assert len(keeper._taps) <= 1001
    assert keeper.statistics().kept["sample"] < 1100
    keeper.decide(run(at=1000.0, label="GET /new"))
    assert len(keeper._taps) < 10  # those of whom nothing was heard are forgotten


runs = st.builds(
    run,
    st.sampled_from([DONE, DEFECT, LOST, GONE, DOWN, BAD, FULL, Ending("deadline")]),
    at=st.floats(0, 100),
    took=st.integers(0, SECOND),
    label=st.sampled_from(["GET /a", "GET /b", ""]),
    http=st.sampled_from([None, 200, 404, 500]),
    also=st.lists(st.sampled_from([FAILED, DOUBTED, UNDONE]), max_size=2),
    unresolved=st.sampled_from([(), OPEN]),
)


@given(st.lists(runs, max_size=60), st.integers(0, 9))
def test_the_same_runs_are_kept_again_and_every_run_is_counted_once(listed: list[Result], seed: int) -> None:
    one, other = Keeper(rng=Random(seed)), Keeper(rng=Random(seed))
    kept = [one.decide(result) for result in listed]
    assert kept == [other.decide(result) for result in listed]
    held = one.statistics()
    assert held.seen == len(listed) == sum(held.kept.values()) + sum(held.passed.values())
    assert sum(held.kept.values()) == len([decision for decision in kept if decision])
    assert set(held.kept) == set(WHYS)
    assert sum(decision.beside for decision in kept if decision) <= sum(held.passed.values())


@given(st.lists(st.floats(0, 30), min_size=1, max_size=300), st.floats(0.5, 20))
def test_however_they_come_no_more_are_kept_than_the_rate_allows(times: list[float], rate: float) -> None:
    keeper = all_but(errors=rate)
    kept = [at for at in sorted(times) if keeper.decide(run(DEFECT, at=at))]
    assert len(kept) <= max(1.0, rate) + rate * (max(times) - min(times)) + 1


def test_a_run_without_records_is_judged_too() -> None:
    assert Keeper().decide(Result(Timeline("req_1", "f", "1", "a", "default", []), DONE)) == Kept("sample")


@pytest.mark.parametrize(
    "how", [{"sample": 1.1}, {"beyond": -0.1}, {"errors": -1}, {"floor": float("inf")}, {"budget": 0.0}]
)
def test_what_makes_no_sense_is_refused(how: dict[str, float]) -> None:
    with pytest.raises(DefinitionError, match=f"Keeping was given {next(iter(how))}="):
        Keeping(**how)


def test_every_run_of_a_job_is_kept_where_somebody_looks_for_a_fault_in_jobs() -> None:
    records: list[Record] = [(t.RECEIVED, 0, "f", None), (t.ENDED, MS, "f", DONE)]
    ids = [f"{prefix}{n}" for n in range(20) for prefix in ("job_", "req_")]
    results = [Result(Timeline(run_id, "f", "1", "acme", "batch", records), DONE) for run_id in ids]
    keeper = all_but(jobs=True)
    one_by_one = [result.run_id for result in results if keeper.decide(result) is not None]
    assert one_by_one == [f"job_{n}" for n in range(20)]
    together = {result.run_id for result, _ in all_but(jobs=True).choose(results)}
    assert together == {f"job_{n}" for n in range(20)}
    assert all_but().choose(results) == []
