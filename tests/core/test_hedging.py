"""What holds a hedge back."""

from zerver.core.budget import hedge_budget
from zerver.core.hedging import LAG, held_back, kept_for_slower, payable


def test_nothing_holds_back_the_hedge_of_one_slow_answer() -> None:
    assert held_back("closed", False, 0.0, False) == ""
    assert held_back(None, False, LAG, False) == ""


def test_trouble_of_any_kind_does() -> None:
    assert held_back("open", False, 0.0, False) == "its breaker is open"
    assert held_back("half-open", False, 0.0, False) == "its breaker is half-open"
    assert held_back("closed", True, 0.0, False) == "its bulkhead is full"
    assert held_back("closed", False, 0.011, False) == "the event loop lags"
    assert held_back("closed", False, 0.0, True) == "all of it is slow"


def test_no_hedge_is_sooner_than_the_budget_can_pay_for() -> None:
    assert (payable(0.5), payable(0.95), payable(0.99)) == (0.98, 0.98, 0.99)


def test_as_tokens_run_low_they_are_kept_for_slower_ones() -> None:
    assert kept_for_slower(None, 0.0) == ""  # how slow it is for its target is not known
    assert kept_for_slower(0.02, 1.0) == kept_for_slower(0.01, 0.5) == kept_for_slower(0.0, 0.0) == ""
    assert kept_for_slower(0.02, 0.9) == kept_for_slower(0.03, 1.0) == "its budget is kept for slower ones"


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
