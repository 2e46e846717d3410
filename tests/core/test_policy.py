"""Policies: the strongest level that says something wins, and is named."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver import Policy
from zerver.core.policy import DEFAULT_POLICY, backoff_seconds, resolve
from zerver.errors import DefinitionError

seconds = st.one_of(st.none(), st.floats(0.001, 100))
policies = st.builds(
    Policy,
    timeout=seconds,
    retries=st.one_of(st.none(), st.integers(0, 5)),
    backoff=seconds,
    backoff_cap=seconds,
)


@given(st.lists(st.one_of(st.none(), policies), max_size=4))
def test_each_field_comes_from_the_strongest_level_that_says_it(levels: list[Policy | None]) -> None:
    named = [(f"level {i}", policy) for i, policy in enumerate(levels)]
    policy, sources = resolve(named)
    for field in attrs.fields_dict(Policy):
        said = [(level, getattr(p, field)) for level, p in [*named, ("default", DEFAULT_POLICY)] if p is not None]
        first = next(((level, value) for level, value in said if value is not None), (None, None))
        assert (sources.get(field), getattr(policy, field)) == first


@given(policies, st.integers(0, 5000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_jittered_below_its_doubling_and_its_cap(policy: Policy, attempt: int, draw: float) -> None:
    wait = backoff_seconds(policy, attempt, draw)
    base = policy.backoff if policy.backoff is not None else 0.05
    cap = policy.backoff_cap if policy.backoff_cap is not None else 2.0
    assert 0.0 <= wait <= cap
    assert wait == pytest.approx(draw * min(cap, base * 2.0 ** min(attempt, 60)))


@pytest.mark.parametrize("field", ["timeout", "backoff", "backoff_cap"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_seconds_are_above_0(field: str, value: float) -> None:
    with pytest.raises(DefinitionError, match=f"policy {field}="):
        Policy(**{field: value})


def test_retries_are_not_negative() -> None:
    with pytest.raises(DefinitionError, match="policy retries=-1 is negative"):
        Policy(retries=-1)
