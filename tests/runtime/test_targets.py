"""State is kept per target and operation, counts what happened to it, and stays bounded whatever names there are."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from zerver import Target
from zerver.core.bulkhead import Adaptive
from zerver.errors import DefinitionError
from zerver.runtime.targets import Targets


async def test_a_target_is_made_when_it_is_first_named_and_kept(mock_clock: MockClock) -> None:
    targets = Targets({"bank": Target(bulkhead=3, breaker=None)})
    bank = targets.get("bank")
    assert targets.get("bank") is bank
    assert (bank.operation("bank.rate").breaker, bank.bulkhead is not None) == (None, True)
    assert targets.get("shop").operation("shop.ask").breaker is not None  # on unless said otherwise
    assert [(seen.name, seen.limit) for seen in targets.statistics()] == [("bank", 3), ("shop", None)]


async def test_percentiles_are_of_all_operations_together(mock_clock: MockClock) -> None:
    targets = Targets({})
    bank = targets.get("bank")
    for number in range(60):
        bank.operation("one").latencies.add(1.0 + number, 0.0)
        bank.operation("two").latencies.add(100.0 + number, 0.0)
    (seen,) = targets.statistics()
    assert (seen.p50, seen.p99) == (100.0, 158.0)
    assert [operation.p50 for operation in seen.operations] == [None, None]


async def test_statistics_show_places_budgets_and_classes(mock_clock: MockClock) -> None:
    targets = Targets({"bank": Target(bulkhead=Adaptive(initial=7))})
    bank = targets.get("bank")
    if bank.bulkhead is None:
        raise AssertionError("it has no bulkhead")
    bank.bulkhead.acquire_nowait()
    (seen,) = targets.statistics()
    assert (seen.limit, seen.at_once, seen.waiting, seen.waiting_by_class) == (7, 1, 0, (0, 0, 0))
    assert (seen.retry_tokens, seen.hedge_tokens, seen.breaker) == (10.0, 5.0, "closed")


def test_an_auto_bulkhead_is_for_those_whose_handlers_say_how_many() -> None:
    state = Targets({}).get("shop")
    assert state.bulkhead_for(None) is None
    made = state.bulkhead_for(3)
    assert made is not None
    assert made.limit == 3
    assert state.bulkhead_for(3) is made
    assert state.bulkhead_for(None) is None
    assert Targets({"shop": Target(bulkhead=None)}).get("shop").bulkhead_for(3) is None
    ruled = Targets({"shop": Target(bulkhead=5)}).get("shop")
    assert ruled.bulkhead_for(None) is ruled.bulkhead_for(3) is ruled.bulkhead


def test_what_is_no_size_is_refused() -> None:
    for size in (0, -1, 2.5, "many"):
        with pytest.raises(DefinitionError, match="no size"):
            Target(bulkhead=size)  # type: ignore[arg-type]  # the point


def test_hedges_are_held_back_when_their_budget_is_spent() -> None:
    state = Targets({}).get("bank")
    operation = state.operation("bank.rate")

    def hold(lag: float = 0.0) -> str:
        return state.hold_hedge(operation, 1.0, lag, 0.0)

    assert [hold() for _ in range(7)] == [""] * 5 + ["its budget is spent"] * 2
    assert state.hedges == 5
    state.firsts += 50
    assert hold() == ""
    state.firsts += 500
    assert hold(lag=0.011) == "the event loop lags"
    assert hold() == ""


def test_the_last_tokens_are_for_the_slowest() -> None:
    state = Targets({}).get("bank")
    operation = state.operation("bank.rate")
    for number in range(1000):
        operation.latencies.add(number / 1000, 0.0)

    def hold(waited: float) -> str:
        return state.hold_hedge(operation, waited, 0.0, 5.0)

    assert hold(0.97) == "its budget is kept for slower ones"
    assert hold(0.98) == ""  # the slowest two in a hundred, with all tokens left
    assert hold(0.98) == "its budget is kept for slower ones"
    assert [hold(0.99) for _ in range(3)] == ["", "", "its budget is kept for slower ones"]
    assert [hold(1.0) for _ in range(3)] == ["", "", "its budget is spent"]


async def test_the_number_of_targets_is_bounded(mock_clock: MockClock) -> None:
    targets = Targets({})
    for number in range(5_000):
        targets.get(f"host-{number}")
    assert len(targets.statistics()) == 4096
    assert "host-4999" in {seen.name for seen in targets.statistics()}


def test_the_number_of_operations_is_bounded() -> None:
    state = Targets({}).get("host")
    made = [state.operation(f"read /{number}") for number in range(100)]
    assert len(set(map(id, made))) == 33
    assert {operation.name for operation in made[32:]} == {"others"}


def test_the_least_recently_used_is_forgotten_first_and_knows_it() -> None:
    targets = Targets({})
    busy, named, idle = targets.get("busy"), targets.get("named"), targets.get("idle")
    for number in range(20_000):
        targets.get(f"host-{number}")
        targets.get("named")
        busy.attempts += 1  # by one who keeps its state, and does not name it
    assert targets.get("busy") is busy
    assert targets.get("named") is named
    assert targets.get("idle") is not idle
    assert [busy.gone, named.gone, idle.gone] == [False, False, True]


def test_one_whose_places_are_taken_is_not_forgotten() -> None:
    targets = Targets({})
    held = targets.get("held").bulkhead_for(2)
    if held is None:
        raise AssertionError("it has no bulkhead")
    held.acquire_nowait()
    for number in range(20_000):
        targets.get(f"host-{number}")
    assert targets.get("held").bulkhead_for(2) is held


def test_a_target_with_a_rule_is_never_forgotten() -> None:
    targets = Targets({"bank": Target(bulkhead=1)})
    bank = targets.get("bank")
    for number in range(5_000):
        targets.get(f"host-{number}")
    assert targets.get("bank") is bank


def test_what_the_runtime_brings_has_no_breaker() -> None:
    assert Targets({}).get("clock").operation("clock.sleep").breaker is None
    assert Targets({"clock": Target()}).get("clock").operation("clock.sleep").breaker is not None
