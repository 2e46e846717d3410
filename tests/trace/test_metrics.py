"""Runs are counted as their records say, under names whose number is bounded, with the last run of each bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from trio.testing import MockClock

from tests.trace import shop
from tests.trace.made import Made, made
from zerver import Flow
from zerver.core import timeline as t
from zerver.core import tracing
from zerver.core.overruns import Overrun
from zerver.core.tickets import Refusal
from zerver.core.timeline import Ending, Record, Timeline
from zerver.runtime import Result
from zerver.trace.telemetry.instruments import INSTRUMENTS, Distribution, Family, MetricsSnapshot, Number
from zerver.trace.telemetry.metrics import OTHER, Metrics

MS = 1_000_000


def ended(
    status: Any = "done",
    *,
    label: str = "GET /orders/{id}",
    took: int = 20 * MS,
    http: int | None = 200,
    tenant: str = "acme",
    run_id: str = "req_" + "a" * 24,
    parent: str = "",
    between: Sequence[Record] = (),
    unresolved: Any = (),
) -> Result:
    """A run with no steps. took: until its answer, 2 ms in the queue included."""
    ending = Ending(status)
    records: list[Record] = [("received", 0, "f", None), ("admitted", 2 * MS, "f", "default"), *between]
    records += [("ending", took, "f", ending), ("ended", took, "f", ending)]
    if http is not None:
        records.append(("answered", took, "f", http))
    return Result(
        Timeline(run_id, "f", "1", tenant, "default", records, frozenset(), label, parent), ending, unresolved
    )


def counted(*results: Result, **how: Any) -> MetricsSnapshot:
    metrics = Metrics(clock=lambda: 7, **how)
    metrics.take(results)
    return metrics.snapshot()


def histogram(snapshot: MetricsSnapshot, name: str, *labels: str) -> Distribution:
    (found,) = (point for point in snapshot.family(name).points if point.labels == labels)
    assert isinstance(found, Distribution)
    return found


# ---- runs -----------------------------------------------------------------------------------


def test_runs_are_counted_by_route_class_and_status() -> None:
    snapshot = counted(ended(), ended(), ended("failed", http=404), ended("defect", label="", http=None))
    assert snapshot.value("zerver.runs", "GET /orders/{id}", "default", "done") == 2
    assert snapshot.value("zerver.runs", "GET /orders/{id}", "default", "failed") == 1
    assert snapshot.value("zerver.runs", "f", "default", "defect") == 1
    assert snapshot.value("zerver.runs", "f", "default", "done") == 0


def test_requests_are_measured_under_the_names_that_conventions_give() -> None:
    snapshot = counted(ended(took=20 * MS), ended(took=25 * MS), ended(took=11_000 * MS, http=503))
    found = histogram(snapshot, "http.server.request.duration", "GET", "/orders/{id}", "200", "")
    assert found.count == 2
    assert found.sum == pytest.approx(0.045)
    bounds = INSTRUMENTS["http.server.request.duration"].bounds
    assert dict(zip(bounds, found.counts, strict=False))[0.025] == 2  # a bound belongs to the bucket below it
    failed = histogram(snapshot, "http.server.request.duration", "GET", "/orders/{id}", "503", "503")
    assert failed.counts[-1] == 1


def test_runs_that_did_not_come_over_http_are_no_requests() -> None:
    assert counted(ended(label="", http=None)).family("http.server.request.duration").points == ()


def test_the_time_of_a_run_is_told_by_account_and_its_waits_by_route() -> None:
    snapshot = counted(ended(took=20 * MS))
    assert snapshot.value("zerver.run.time", "GET /orders/{id}", "admission") == pytest.approx(0.002)
    assert snapshot.value("zerver.run.time", "GET /orders/{id}", "cpu") == pytest.approx(0.018)
    assert histogram(snapshot, "zerver.run.queue.duration", "GET /orders/{id}", "default").sum == pytest.approx(0.002)
    assert histogram(snapshot, "zerver.run.duration", "GET /orders/{id}", "default").sum == pytest.approx(0.020)


def test_refusals_are_counted_by_reason_and_are_no_quick_runs() -> None:
    refusal = Refusal("tenant over its rate", 429)
    records: list[Record] = [("received", 0, "f", None), ("refused", 1, "f", refusal)]
    timeline = Timeline("r", "f", "1", "acme", "batch", records, frozenset(), "GET /a")
    snapshot = counted(Result(timeline, Ending("refused", cause=refusal)))
    assert snapshot.value("zerver.refusals", "GET /a", "batch", "tenant over its rate") == 1
    assert snapshot.value("zerver.runs", "GET /a", "batch", "refused") == 1
    assert snapshot.value("zerver.run.duration", "GET /a", "batch") == 0


def test_unresolved_writes_and_overruns_are_counted() -> None:
    overrun: Record = ("overrun", 5 * MS, "count", Overrun("count", 9 * MS, 3 * MS))
    snapshot = counted(ended(unresolved=(object(), object()), between=[overrun]))
    assert snapshot.value("zerver.unresolved", "GET /orders/{id}") == 2
    assert snapshot.value("zerver.overruns", "f", "count") == 1


# ---- effects --------------------------------------------------------------------------------


async def test_effects_are_counted_by_kind_and_outcome(autojump_clock: MockClock) -> None:
    late = shop.keyed((9.0, None), (0.010, 71))
    result = await shop.run(shop.CHECKOUT, {"payments.charge": late, "sql.execute": shop.sold_out})
    snapshot = counted(result)
    assert result.status == "failed"
    assert snapshot.value("zerver.effects", "payments.charge", "success") == 1
    assert snapshot.value("zerver.effect.retries", "payments.charge") == 1
    assert snapshot.value("zerver.effect.timeouts", "payments.charge") == 1
    assert snapshot.value("zerver.effect.failures", "payments.charge") == 1
    assert snapshot.value("zerver.effects", "sql.fetch_one", "success") == 1
    assert histogram(snapshot, "zerver.effect.duration", "sql.fetch_one").sum == pytest.approx(0.0018)


async def test_a_join_is_counted_by_its_members_and_a_hedge_once(autojump_clock: MockClock) -> None:
    snapshot = counted(await shop.run(Flow("front", [shop.front, shop.prices]), {"http.read": shop.slow_once}))
    assert snapshot.value("zerver.effect.hedges", "http.read") == 1
    assert snapshot.value("zerver.effects", "http.read", "success") == 2
    assert snapshot.value("zerver.effects", "http.read", "cancelled") == 1
    assert {point.labels[0] for point in snapshot.family("zerver.effects").points} == {"http.read", "sql.fetch_all"}


@settings(max_examples=60, deadline=None)
@given(made())
def test_every_effect_of_any_run_has_one_outcome(run: Made) -> None:
    result = Result(run.timeline, run.timeline.ending or Ending("cancelled"), tuple(run.unresolved))
    snapshot = counted(result)
    ends = {
        id(subject)
        for kind, _, subject, _ in run.timeline.records
        if kind in (t.SETTLED, t.LATE, t.CUT) and not subject.effect.kind.name.startswith("join.")
    }
    points = snapshot.family("zerver.effects").points
    assert sum(point.value for point in points if isinstance(point, Number)) == len(ends)
    spent = sum(point.value for point in snapshot.family("zerver.run.time").points if isinstance(point, Number))
    assert spent == pytest.approx(run.timeline.accounts.total / 1e9)


# ---- bounds ---------------------------------------------------------------------------------


def test_invented_methods_and_routes_do_not_make_series() -> None:
    snapshot = counted(*(ended(label=f"M{n} /old/…") for n in range(5_000)))
    assert snapshot.value("zerver.runs", "_OTHER /old/…", "default", "done") == 5_000
    assert len(snapshot.family("http.server.request.duration").points) == 1
    snapshot = counted(*(ended(label=f"GET /{n}") for n in range(600)))
    assert len(snapshot.family("zerver.runs").points) == 501
    assert snapshot.value("zerver.runs", OTHER, "default", "done") == 100
    assert snapshot.value("http.server.request.duration", "GET", OTHER, "200", "") == 100


def test_tenants_are_not_told_apart_unless_one_says_so() -> None:
    assert counted(ended(tenant="acme")).family("zerver.tenant.runs").points == ()


def test_so_many_tenants_are_told_by_name_once_they_have_come_often() -> None:
    strangers = [ended(tenant=f"stranger {n}") for n in range(3_000)]
    often = [ended(tenant=name) for _ in range(150) for name in ("acme", "globex", "initech")]
    snapshot = counted(*strangers, *often, tenants=2)
    named = {point.labels[0]: point.value for point in snapshot.family("zerver.tenant.runs").points
             if isinstance(point, Number)}  # fmt: skip
    assert named == {"acme": 51, "globex": 51, OTHER: 3_000 + 99 * 2 + 150}


def test_counters_never_go_down_whoever_comes() -> None:
    metrics = Metrics(tenants=1)
    before: dict[tuple[str, ...], float] = {}
    for n in range(40):
        metrics.take([ended(tenant=f"t{n % 3}") for _ in range(25)])
        points = metrics.snapshot().family("zerver.tenant.runs").points
        now = {point.labels: point.value for point in points if isinstance(point, Number)}
        assert all(now[labels] >= value for labels, value in before.items())
        before = now


# ---- exemplars and snapshots ----------------------------------------------------------------


def test_a_bucket_knows_the_last_run_that_fell_into_it() -> None:
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    first, last = ended(run_id="req_" + "b" * 24), ended(run_id="req_" + "c" * 24, parent=parent)
    found = histogram(counted(first, last), "zerver.run.duration", "GET /orders/{id}", "default")
    (exemplar,) = (one for one in found.exemplars if one is not None)
    assert (exemplar.run_id, exemplar.value, exemplar.at) == (last.run_id, pytest.approx(0.020), 7)
    assert (exemplar.trace_id, exemplar.span_id) == ("1" * 32, tracing.root_span_id(last.run_id))


def test_a_snapshot_is_a_value_that_does_not_change() -> None:
    metrics = Metrics(clock=iter(range(100)).__next__)
    metrics.take([ended()])
    before = metrics.snapshot()
    again = attrs.evolve(before)
    metrics.take([ended()])
    assert before == again
    assert metrics.snapshot().value("zerver.runs", "GET /orders/{id}", "default", "done") == 2
    assert before.value("zerver.runs", "GET /orders/{id}", "default", "done") == 1
    assert before.began == 0 < before.at


def test_only_what_is_declared_is_in_a_snapshot_and_in_order() -> None:
    metrics = Metrics()
    metrics.take([ended(), ended("defect")])
    lag = INSTRUMENTS["zerver.loop.lag"]
    metrics.watch(lambda: [Family(lag, (Number((), 0.5),))])
    snapshot = metrics.snapshot()
    names = [family.instrument.name for family in snapshot.families]
    assert names == [name for name in INSTRUMENTS if name in names]
    assert snapshot.value("zerver.loop.lag") == 0.5
    assert all(
        len(point.labels) == len(family.instrument.labels) for family in snapshot.families for point in family.points
    )
    with pytest.raises(KeyError):
        snapshot.value("zerver.nothing")


def test_names_of_instruments_are_lower_case_words_with_dots() -> None:
    for instrument in INSTRUMENTS.values():
        for name in (instrument.name, *instrument.labels):
            assert all(part.replace("_", "").isalpha() and part.islower() for part in name.split("."))
        assert bool(instrument.bounds) == (instrument.kind == "histogram")
        assert list(instrument.bounds) == sorted(instrument.bounds)
