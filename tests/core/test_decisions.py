"""Decisions: values, and refusals of what could never work."""

from __future__ import annotations

from typing import get_args

import pytest

from zerver import Done, Fail, Pause
from zerver.core.decisions import DECISIONS, FAIL_KINDS, FailKind
from zerver.errors import DefinitionError


def test_there_are_seven() -> None:
    assert [kind.__name__ for kind in DECISIONS] == ["Continue", "Need", "Insert", "Replace", "Done", "Fail", "Pause"]
    assert frozenset(get_args(FailKind)) == FAIL_KINDS


@pytest.mark.parametrize("kind", sorted(FAIL_KINDS - {"expired", "failed"}))
def test_each_kind_of_failure_has_a_short_form(kind: str) -> None:
    made = getattr(Fail, kind)("cart", "cart_1", "no such cart")
    assert made == Fail(kind, "cart", "cart_1", "no such cart")  # type: ignore[arg-type]  # one of them
    assert str(made) == f"{kind}: cart cart_1 (no such cart)"
    assert str(getattr(Fail, kind)("cart")) == f"{kind}: cart"


@pytest.mark.parametrize("expires", [0, -1.0, float("inf"), float("nan")])
def test_a_pause_ends_some_day(expires: float) -> None:
    with pytest.raises(DefinitionError, match="Pause was given expires="):
        Pause("paid", expires)


def test_done_carries_nothing_by_default() -> None:
    assert Done() == Done(None)
