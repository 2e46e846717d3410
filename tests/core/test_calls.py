"""Calls: their keys are stable, and no two calls of a run share one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.strategies import READ, WRITE
from zerver import join
from zerver.core.calls import Call

names = st.text("abc:.#1", min_size=1, max_size=3).filter(lambda name: "#" not in name)
ordinals = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda path: ".".join(map(str, path)))


@given(st.tuples(names, ordinals), st.tuples(names, ordinals))
def test_a_key_tells_step_and_ordinal_apart(one: tuple[str, str], other: tuple[str, str]) -> None:
    keys = [Call("run", step, ordinal, READ()).key for step, ordinal in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


def test_members_are_named_by_their_place() -> None:
    call = Call("run", "charge", "2", join.all(join.race(READ(), WRITE()), READ()), until_ns=9)
    inner = call.member("run", 0).member("run", 1)
    assert inner.key == "run:charge:2.0.1"
    assert inner.name == "charge.2.0.1 test.write"
    assert repr(inner) == "<call charge.2.0.1 test.write>"
    assert inner.until_ns == 9
    assert inner.parent is not None
    assert inner.parent.parent is call
    assert [member.key for member in call.members("run")] == [call.member("run", n).key for n in range(2)]
    with pytest.raises(TypeError):
        inner.member("run", 0)
