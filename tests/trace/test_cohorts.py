"""Proves that the parts of a run add up to its time, and that a comparison of cohorts names what makes runs slow."""

from __future__ import annotations

import json
import math
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trace import shop
from tests.trace.made import Made, made
from zerver import Flow, parallel, step
from zerver.core.timeline import Timeline
from zerver.runtime import Result
from zerver.trace.comparing.cohorts import FEWEST, Cohorts, Shares, Split, cohorts_json, compare, format_cohorts, split
from zerver.trace.comparing.path import critical_path, parts
from zerver.trace.facts import Facts
from zerver.trace.summary import Summary, summarize

FEW = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


# ---- parts -----------------------------------------------------------------------------------


@FEW
@given(made(), st.data())
def test_the_parts_of_any_run_add_up(run: Made, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(run.timeline.records)))
    timeline = attrs.evolve(run.timeline, records=run.timeline.records[:count])
    accounts = timeline.accounts
    found = parts(timeline)
    assert sum(found.values()) == accounts.total - accounts.parked
    assert found.get("(admission)", 0) == accounts.admission
    assert found.get("(turn wait)", 0) == accounts.turn
    path = critical_path(Facts(timeline))
    assert [began for _, began, _ in path] == [0, *(ended for _, _, ended in path)][: len(path)]


async def test_what_is_not_waited_for_has_no_part(autojump_clock: object) -> None:
    flow = Flow("post", [parallel(shop.verify, shop.notice)], gives=[shop.User])
    short = await shop.run(
        flow, {"http.write": shop.keyed((0.010, None)), "sql.fetch_one": shop.after(0.001, shop.Row("u"))}
    )
    long = await shop.run(
        flow, {"http.write": shop.keyed((0.010, None)), "sql.fetch_one": shop.after(0.009, shop.Row("u"))}
    )
    assert parts(short.timeline) == parts(long.timeline) == {"notice": 10_000_000}


async def test_a_rollback_is_a_part(autojump_clock: object) -> None:
    found = parts((await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out})).timeline)
    assert found == {
        "verify": 1_800_000,
        "charge": 10_000_000,
        "create_order": 2_000_000,
        "reserve": 2_000_000,
        "(rollback)": 14_000_000,
    }


async def test_parked_time_is_nobodys(autojump_clock: object) -> None:
    assert sum(parts((await shop.parked()).timeline).values()) == 0


# ---- what makes them slow --------------------------------------------------------------------


def slow_world() -> dict[str, Any]:
    return {"payments.charge": shop.keyed((9, 0), (0.04, 71)), "sql.execute": shop.after(0.003, 1)}


async def cohorts(slow: int = 8, fast: int = 12) -> Cohorts:
    left = [await shop.run(shop.CHECKOUT, slow_world(), tenant="acme") for _ in range(slow)]
    right = [await shop.run(shop.CHECKOUT, {}, tenant="acme" if i == 0 else f"t{i % 3}") for i in range(fast)]
    return compare("POST /checkout", left, right)


async def test_the_step_that_explains_the_difference(autojump_clock: object) -> None:
    found = await cohorts()
    first = found.parts[0]
    assert first.name == "charge"
    assert first.share > 0.9
    assert math.isclose(math.fsum(part.share for part in found.parts), 1.0)
    assert math.isclose(found.more_ns, math.fsum(part.more_ns for part in found.parts))
    assert first.traits == (Shares("timeouts", 1.0, 0.0), Shares("retries", 1.0, 0.0))
    assert first.effects[0].fast_ns == 10_000_000
    assert {shares.what for shares in found.along} == {"tenant acme", "charge: timeouts", "charge: retries"}


async def test_its_text(autojump_clock: object) -> None:
    lines = format_cohorts(await cohorts()).splitlines()
    assert lines[0] == "POST /checkout: 8 slow runs beside 12 fast ones"
    assert lines[1] == (
        "charge explains 98% of the difference: +77.2ms of +79.2ms; "
        "timeouts in 100% of the slow runs and 0% of the fast ones"
    )
    table = [line.split() for line in lines if "%" in line and line.startswith("  ")]
    percents = {row[0]: row[4] for row in table if row[0] in ("charge", "create_order", "reserve", "verify")}
    assert percents == {"charge": "98%", "create_order": "1%", "reserve": "1%", "verify": "0%"}
    assert [row[-1] for row in table if row[:2] == ["in", "all"]] == ["100%"]
    assert "  tenant acme: 100% of the slow runs, 8% of the fast ones" in lines
    json.dumps(cohorts_json(await cohorts()))


async def test_a_slow_effect_without_any_trouble_is_named(autojump_clock: object) -> None:
    slow = [await shop.run(shop.CHECKOUT, {"payments.charge": shop.keyed((0.040, 71))}) for _ in range(5)]
    fast = [await shop.run(shop.CHECKOUT, {}) for _ in range(5)]
    found = compare("checkout", slow, fast)
    assert found.along == ()
    assert "; payments.charge(1200, 'user_1') takes 40.0ms there and 10.0ms otherwise" in format_cohorts(found)


async def test_cohorts_that_are_alike(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    found = compare("checkout", [result], [result])
    assert found.more_ns == 0
    assert "there is nothing to explain" in format_cohorts(found)


@step
async def tokenize() -> shop.Token:
    return await shop.tokenize("card")


async def test_a_secret_goes_along_with_nothing(autojump_clock: object) -> None:
    async def vault(token: str, seconds: float) -> Result:
        flow = Flow("vault", [tokenize], gives=[shop.Token])
        return await shop.run(flow, {"vault.tokenize": shop.after(seconds, token)})

    slow = [await vault("tok_slow_1", 1.0) for _ in range(8)]
    fast = [await vault("tok_fast_1", 0.1) for _ in range(8)]
    text = format_cohorts(compare("vault", slow, fast))
    assert "tok_" not in text
    assert "goes with being slow" not in text


@FEW
@given(st.lists(made(), min_size=1, max_size=3), st.lists(made(), min_size=1, max_size=3))
def test_any_runs_can_be_compared(slow: list[Made], fast: list[Made]) -> None:
    found = compare("f", [run.timeline for run in slow], [run.timeline for run in fast])
    format_cohorts(found)
    json.dumps(cohorts_json(found))
    mean = [sum(_took(run.timeline) for run in side) / len(side) for side in (slow, fast)]
    assert math.isclose(found.more_ns, mean[0] - mean[1], abs_tol=1e-3)


def _took(timeline: Timeline) -> int:
    return timeline.accounts.total - timeline.accounts.parked


def test_a_side_without_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="0 slow and 0 fast"):
        compare("f", [], [])


# ---- which runs are compared -----------------------------------------------------------------


@pytest.fixture
async def summary(autojump_clock: object) -> Summary:
    return summarize(await shop.run(shop.CHECKOUT, {}), began_unix_ns=0)


def runs(summary: Summary, *took: int, **also: Any) -> list[Summary]:
    return [attrs.evolve(summary, run_id=f"{ms}{also}", took_ns=ms * 1_000_000, **also) for ms in took]


async def test_slow_is_over_the_p95_and_fast_below_the_median(summary: Summary) -> None:
    chosen = split("checkout", runs(summary, *range(1, 101)))
    assert chosen.enough
    assert (chosen.slow_ns, chosen.fast_ns) == (96_000_000, 50_000_000)
    assert (len(chosen.slow), len(chosen.fast), chosen.runs) == (5, 50, 100)


async def test_runs_that_were_kept_as_slow_are_slow(summary: Summary) -> None:
    chosen = split("checkout", runs(summary, *range(30, 60), kept="slow", slow=True) + runs(summary, *range(1, 11)))
    assert (len(chosen.slow), len(chosen.fast)) == (30, 10)


async def test_refused_and_cancelled_runs_are_in_neither(summary: Summary) -> None:
    odd = [run for status in ("refused", "cancelled") for run in runs(summary, 0, 500, status=status)]
    assert split("checkout", runs(summary, *range(1, 101)) + odd) == split("checkout", runs(summary, *range(1, 101)))


async def test_failures_are_not_fast(summary: Summary) -> None:
    chosen = split("checkout", runs(summary, *range(50, 151)) + runs(summary, *range(1, 20), status="failed"))
    assert all("failed" not in run_id for run_id in chosen.fast)


async def test_no_more_than_asked_for(summary: Summary) -> None:
    chosen = split("checkout", runs(summary, *range(1, 1001)), most=20)
    assert (len(chosen.slow), len(chosen.fast), chosen.found_slow, chosen.found_fast) == (20, 20, 50, 500)


@pytest.mark.parametrize("count", [0, 1, 2, FEWEST])
async def test_too_few_runs_are_told_with_a_cure(count: int, summary: Summary) -> None:
    chosen: Split = split("checkout", runs(summary, *range(1, count + 1)))
    assert not chosen.enough
    assert f"{chosen.found_slow} slow and {chosen.found_fast} fast ones of {count}" in chosen.too_few
    assert "ZERVER_TRACE_SAMPLE" in chosen.too_few
