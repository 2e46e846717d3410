"""Proves that the ring keeps the newest runs within both its bounds, and finds them by id, prefix and filter."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trace import shop
from zerver import Fail
from zerver.core.timeline import Ending, Record, Timeline
from zerver.runtime import Result
from zerver.trace import Ring, RingStatistics

MS = 1_000_000


def made(number: int, *, records: int = 2, status: str = "done", took: int = MS, **how: str) -> Result:
    run_id = f"req_{number:024x}"
    fields = {"flow": "checkout", "version": "1", "tenant": "acme", "priority": "default", **how}
    listed: list[Record] = [("received", 0, "checkout", None)]
    listed += [("settled", took * at // (records - 1), _Top(), None) for at in range(1, records)]
    ending = Ending(status, cause=Fail.gone("cart") if status == "failed" else None)  # type: ignore[arg-type] # a word of Status
    return Result(Timeline(run_id, records=listed, **fields), ending)  # type: ignore[arg-type] # fields are all str


class _Top:
    parent = None


def ids(results: list[Result]) -> list[int]:
    return [int(result.run_id.removeprefix("req_"), 16) for result in results]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(2, 40)), max_size=80), st.integers(1, 8), st.integers(1, 100))
def test_it_holds_the_newest_runs_within_both_bounds(added: list[tuple[int, int]], capacity: int, most: int) -> None:
    ring = Ring(capacity, records=most)
    model: list[Result] = []
    for number, records in added:
        result = made(number, records=records)
        ring.add(result)
        model = [kept for kept in model if kept.run_id != result.run_id] + [result]
        while len(model) > capacity or (sum(len(r.timeline.records) for r in model) > most and len(model) > 1):
            del model[0]
        assert ring.latest(1000) == model[::-1]
        assert all(ring.get(kept.run_id) is kept for kept in model)
        assert ring.statistics().records == sum(len(r.timeline.records) for r in model)
    assert len(ring) == len(model)


def test_a_run_is_found_by_the_beginning_of_its_id() -> None:
    ring = Ring(10)
    one = attrs.evolve(made(1), timeline=attrs.evolve(made(1).timeline, run_id="req_7a8f3c2b1111"))
    two = attrs.evolve(made(2), timeline=attrs.evolve(made(2).timeline, run_id="req_7a8f3c2b2222"))
    ring.add(one)
    ring.add(two)
    assert ring.get("req_7a8f3c2b1111") is one
    assert ring.get("7a8f3c2b1111") is one
    assert ring.get("req_7a8f3c2b2") is two
    assert ring.get("7a8f3c2b2") is two
    assert ring.get("7a8f3c2b") is None  # both
    assert ring.get("req_7") is None  # too short
    assert ring.get("") is None
    assert ring.get("req_ffffffff") is None


def test_filters_are_joined_by_and_and_the_newest_comes_first() -> None:
    ring = Ring(10)
    ring.add(made(1, tenant="acme"))
    ring.add(made(2, status="failed"))
    ring.add(made(3, status="failed", tenant="zeta", label="POST /v2/checkout"))
    ring.add(made(4, took=90 * MS, flow="home"))
    ring.add(made(5, status="deadline", took=70 * MS))
    assert ids(ring.latest(2)) == [5, 4]
    assert ids(ring.latest()) == [5, 4, 3, 2, 1]
    assert ids(ring.latest(failed=True)) == [5, 3, 2]
    assert ids(ring.latest(failed=False)) == [4, 1]
    assert ids(ring.latest(status="failed", tenant="zeta")) == [3]
    assert ids(ring.latest(flow="home")) == [4]
    assert ids(ring.latest(flow="POST /v2/checkout")) == [3]
    assert ids(ring.latest(slower_than=0.05)) == [5, 4]
    assert ids(ring.latest(unresolved=True)) == []
    assert ids(ring.latest(where=lambda result: result.ok, count=1)) == [4]
    assert ring.latest(0) == []


def test_it_counts() -> None:
    ring = Ring(2)
    for number in range(3):
        ring.add(made(number, status="failed" if number else "done"))
    assert ring.statistics() == RingStatistics(runs=2, records=4, added=3, dropped=1, failed=2)


@pytest.mark.parametrize(("capacity", "records"), [(0, 1), (1, 0)])
def test_a_ring_that_can_hold_nothing_is_refused(capacity: int, records: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Ring(capacity, records=records)


async def test_it_observes_a_runtime(autojump_clock: object) -> None:
    ring = Ring()
    result = await shop.run(shop.CHECKOUT, {}, observers=[ring.add])
    assert ring.get(result.run_id) is result
    assert ring.latest() == [result]
