"""Proves that runs are grouped only where they are alike, and that groups come to the same numbers as single runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from random import Random
from typing import Final

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trace import shop
from tests.trace.made import Made, made
from tests.trace.test_metrics import MS, ended
from zerver import Flow
from zerver.core import timeline as t
from zerver.core.timeline import Account, Ending, Record
from zerver.runtime import Result
from zerver.trace.batch import _SHAPES, Batch
from zerver.trace.keeping.keep import Keeper, Keeping, Kept
from zerver.trace.ring import ALIKE, Ring
from zerver.trace.telemetry.metrics import Metrics
from zerver.ui.rates import Rates

NAMES: Final[tuple[Account, ...]] = ("admission", "turn", "cpu", "io", "parked")


def waited(at: int, since: int) -> Record:
    return (t.TURN, at, "f", since)


usual = st.builds(
    ended,
    label=st.sampled_from(["GET /a", "GET /b", ""]),
    took=st.integers(8 * MS, 200 * MS),
    http=st.sampled_from([None, 200, 404]),
    tenant=st.sampled_from(["acme", "globex"]),
    between=st.sampled_from([(), (waited(5 * MS, 3 * MS),), (waited(5 * MS, 0), waited(8 * MS, 9 * MS))]),
)
unusual = st.one_of(
    st.builds(ended, st.sampled_from(["failed", "defect", "deadline"]), http=st.sampled_from([404, 500])),
    st.builds(ended, http=st.just(503)),
    st.builds(ended, between=st.just(((t.PARKED, 4 * MS, None, None), (t.SIGNALLED, 9 * MS, None, 1)))),
    st.builds(ended, unresolved=st.just((object(),))),
)


@given(st.lists(st.one_of(usual, usual, unusual), max_size=40))
def test_a_run_is_in_one_group_or_one_of_the_others(listed: list[Result]) -> None:
    batch = Batch(listed)
    grouped = [run for group in batch.alike for run in group.runs]
    assert sorted(map(id, [*grouped, *batch.others])) == sorted(map(id, listed))
    for group in batch.alike:
        for run, took in zip(group.runs, group.took, strict=True):
            assert (run.timeline.label, run.timeline.tenant) == (group.timeline.label, group.timeline.tenant)
            assert (run.status, run.timeline.answered) == ("done", group.http)
            assert took == run.timeline.accounts.total


@given(st.lists(st.one_of(usual, unusual), min_size=1, max_size=40))
def test_what_a_group_spent_is_what_its_runs_did(listed: list[Result]) -> None:
    for group in Batch(listed).alike:
        for account in NAMES:
            spent = [getattr(run.timeline.accounts, account) for run in group.runs]
            assert group.spent(account) == spent


@given(st.lists(st.one_of(usual, usual, unusual), max_size=40))
def test_metrics_are_those_of_each_run_alone(listed: list[Result]) -> None:
    together, alone = Metrics(clock=lambda: 7), Metrics(clock=lambda: 7)
    together.take(listed)
    for result in listed:
        alone._count(result, 7)
    one, other = together.snapshot(), alone.snapshot()
    for family in other.families:
        for point in family.points:
            found = one.value(family.instrument.name, *point.labels)
            assert found == pytest.approx(other.value(family.instrument.name, *point.labels))
    counted = [{(family.instrument.name, point.labels) for family in it.families for point in family.points
                if it.value(family.instrument.name, *point.labels)} for it in (one, other)]  # fmt: skip
    assert counted[0] == counted[1]


@settings(max_examples=60, deadline=None)
@given(made())
def test_the_accounts_of_any_usual_run_are_those_of_its_records(run: Made) -> None:
    result = Result(run.timeline, run.timeline.ending or Ending("cancelled"), tuple(run.unresolved))
    for group in Batch([result]).alike:
        for account in NAMES:
            assert group.spent(account) == [getattr(run.timeline.accounts, account)]


def test_a_long_run_is_like_no_other_and_nothing_of_it_is_kept() -> None:
    shapes = len(_SHAPES)
    runs = [ended(between=[waited(5 * MS, 3 * MS)] * (1_000 + number)) for number in range(3)]
    assert Batch(runs).others == runs
    assert len(_SHAPES) == shapes


async def test_effects_that_had_no_success_are_looked_at_one_by_one(autojump_clock: object) -> None:
    fine, sold_out = await shop.run(shop.CHECKOUT, {}), await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out})
    joined = await shop.run(Flow("front", [shop.front, shop.prices]), {})
    batch = Batch([fine, fine, sold_out, joined])
    assert sold_out in batch.others
    assert joined in batch.others
    for group in batch.alike:
        assert group.runs == [fine, fine]
        assert group.effects[0] == "sql.fetch_one"


@given(st.lists(st.one_of(usual, usual, unusual), max_size=40), st.integers(0, 9))
def test_a_keeper_counts_each_run_once_and_keeps_all_with_a_sample_of_one(listed: list[Result], seed: int) -> None:
    keeper = Keeper(Keeping(sample=1.0), Random(seed))
    kept = keeper.choose(listed)
    assert sorted(id(result) for result, _ in kept) == sorted(map(id, listed))
    some = Keeper(Keeping(sample=0.1), Random(seed))
    chosen = some.choose(listed)
    held = some.statistics()
    assert held.seen == len(listed) == sum(held.kept.values()) + sum(held.passed.values())
    assert sum(held.kept.values()) == len(chosen)
    unusual = {id(run) for run in listed if run.status in ("defect", "deadline") or run.unresolved}
    assert unusual <= {id(result) for result, _ in chosen}


def run_at(at: int, took: int = 20 * MS) -> Result:
    """A usual run that ended at so many ms."""
    one = ended(took=took)
    moved = [(kind, when + at * MS - took, subject, detail) for kind, when, subject, detail in one.timeline.records]
    return Result(attrs.evolve(one.timeline, records=moved, run_id=f"req_{at:024x}"), one.ending)


def test_a_slow_run_of_a_group_is_kept_for_being_slow() -> None:
    keeper = Keeper(Keeping(sample=0.0, floor=0.0, budget=0.1))
    kept = keeper.choose([run_at(1000), run_at(1001, took=150 * MS), run_at(1002)])
    assert [(result.run_id[-3:], one.why, one.slow) for result, one in kept] == [("3e9", "slow", True)]


def test_a_route_is_kept_up_to_its_floor_and_those_passed_are_counted() -> None:
    keeper = Keeper(Keeping(sample=0.0))
    kept = [one.beside for at in range(0, 3000, 50) for _, one in keeper.choose([run_at(at + n) for n in range(50)])]
    assert len(kept) in (7, 8)  # two at once, then two a second
    assert sum(kept) + len(kept) <= 3000


def test_of_many_slow_runs_some_are_kept_and_the_others_are_counted() -> None:
    keeper = Keeper(Keeping(sample=0.0, floor=0.0, slow=3.0, budget=0.1))
    kept = keeper.choose([run_at(1000 + n, took=150 * MS if n % 2 else 20 * MS) for n in range(40)])
    assert [(one.why, one.slow) for _, one in kept] == [("slow", True)] * 3
    held = keeper.statistics()
    assert (held.seen, held.kept["slow"], held.passed["slow"], held.passed["sample"]) == (40, 3, 17, 20)
    (again,) = keeper.choose([run_at(1400, took=150 * MS)])
    assert again[1] == Kept("slow", 17, True)


def test_what_nobody_keeps_is_freed_with_its_batch() -> None:
    run = run_at(1000)
    seen = weakref.ref(run)
    batch = Batch([run])
    assert batch.alike
    batch.remembered = Ring(10).take(batch)
    del run
    was = gc.isenabled()
    gc.disable()
    try:
        del batch
        assert seen() is None
    finally:
        if was:
            gc.enable()


def test_of_many_that_are_alike_the_ring_takes_some() -> None:
    ring = Ring(200)
    failed = ended("failed", http=404, run_id="req_" + "f" * 24)
    kept: list[Result] = []
    for at in range(0, 10_000, 20):
        batch: Sequence[Result] = [run_at(at + n) for n in range(20)]
        kept += ring.take([*batch, failed] if at == 5_000 else batch)
    assert len(kept) == pytest.approx(200 + 10 * ALIKE, abs=25)
    assert failed in kept
    held = ring.statistics()
    assert (held.added, held.runs, held.added - held.dropped, held.failed) == (10_001, 200, 200, 1)
    assert [run.run_id for run in ring.latest(300)] == [run.run_id for run in kept[:-201:-1]]


def test_while_little_happens_the_ring_takes_all() -> None:
    ring = Ring(100)
    for at in range(0, 5_000, 50):
        assert len(ring.take([run_at(at), run_at(at + 10)])) == 2


@given(st.lists(st.one_of(usual, usual, unusual), max_size=40))
def test_rates_count_every_run(listed: list[Result]) -> None:
    rates = Rates(lambda: 1.0)
    rates.take(listed)
    counted: dict[str, int] = {}
    for run in listed:
        name = run.timeline.label or run.timeline.flow
        counted[name] = counted.get(name, 0) + 1
    assert {one["label"]: one["count"] for one in rates.routes()} == counted
