"""The retry budget: retries are a share of first attempts, plus what time gives back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zerver.core.budget import RetryBudget


@given(st.lists(st.one_of(st.just("earn"), st.floats(0, 3)), max_size=80))
def test_retries_never_exceed_what_was_earned(events: list[object]) -> None:
    budget, now, spent, firsts = RetryBudget(ratio=0.2, cap=5.0, floor=0.5, tokens=5.0), 0.0, 0, 0
    for event in events:
        if isinstance(event, float):
            now += event
            spent += budget.spend(now)
        else:
            budget.earn()
            firsts += 1
        assert 0.0 <= budget.tokens <= 5.0
        assert spent <= 5.0 + 0.2 * firsts + 0.5 * now + 1e-6


def test_a_quiet_target_can_be_retried_again() -> None:
    budget = RetryBudget(tokens=0.0)
    assert [budget.spend(0.5), budget.spend(1.0), budget.spend(1.5)] == [False, True, False]
    assert [budget.spend(1.0), budget.spend(2.0)] == [False, True]  # a clock that goes back gives nothing
