"""Three classes in one order; a class can be lowered, and nothing here raises one."""

from __future__ import annotations

import pytest

from zerver.core.priorities import PRIORITIES, RANK, Priority, lower_of


def test_ranks_are_the_order() -> None:
    assert [RANK[priority] for priority in PRIORITIES] == [0, 1, 2]


@pytest.mark.parametrize("one", PRIORITIES)
@pytest.mark.parametrize("other", PRIORITIES)
def test_the_lower_of_two_is_the_same_either_way(one: Priority, other: Priority) -> None:
    assert lower_of(one, other) == lower_of(other, one) == PRIORITIES[max(RANK[one], RANK[other])]
    assert lower_of(one, None) == one
