"""What holds a hedge back."""

from zerver.core.budget import hedge_budget
from zerver.core.hedging import LAG, held_back


def test_nothing_holds_back_the_hedge_of_one_slow_answer() -> None:
    assert held_back("closed", False, 0.0, 0.1, 0.1) == ""
    assert held_back(None, False, LAG, None, 0.0) == ""


def test_trouble_of_any_kind_does() -> None:
    assert held_back("open", False, 0.0, None, 0.0) == "its breaker is open"
    assert held_back("half-open", False, 0.0, None, 0.0) == "its breaker is half-open"
    assert held_back("closed", True, 0.0, None, 0.0) == "its bulkhead is full"
    assert held_back("closed", False, 0.011, None, 0.0) == "the event loop lags"
    assert held_back("closed", False, 0.0, 0.21, 0.1) == "all of it is slow"


def test_hedges_are_two_in_a_hundred_and_none_come_back_with_time() -> None:
    budget = hedge_budget()
    assert [budget.spend(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert not budget.spend(1e6)
    budget.earn(49)
    assert not budget.spend(1e6)
    budget.earn(1)
    assert budget.spend(1e6)
    budget.earn(10_000)
    assert sum(budget.spend(1e6) for _ in range(10)) == 5
