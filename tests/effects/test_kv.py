"""The constructors of zerver.effects.kv make data of the right kind, and refuse what not every store can keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from zerver import Done, Effect, step
from zerver.effects import kv
from zerver.errors import DefinitionError


@attrs.frozen
class User:
    name: str


@pytest.mark.parametrize(
    ("made", "kind", "access", "args", "kwargs"),
    [
        (kv.get("k"), kv.GET, "read", ("k",), {}),
        (kv.put("k", [1]), kv.PUT, "write", ("k", [1]), {"ttl": None}),
        (kv.put("k", 1, ttl=2), kv.PUT, "write", ("k", 1), {"ttl": 2}),
        (kv.add("k", 1, ttl=0.5), kv.ADD, "write", ("k", 1), {"ttl": 0.5}),
        (kv.delete("k"), kv.DELETE, "write", ("k",), {}),
        (kv.increment("k"), kv.INCREMENT, "write", ("k", 1), {}),
        (kv.increment("k", -3), kv.INCREMENT, "write", ("k", -3), {}),
    ],
)
def test_an_effect_is_data(made: Effect[Any], kind: object, access: str, args: object, kwargs: object) -> None:
    assert (made.kind, made.kind.access, made.args, made.kwargs) == (kind, access, args, kwargs)
    assert made.target == "kv"
    assert made.kind.exact


@pytest.mark.parametrize(
    "value", [True, 0, 1.5, "", b"", [], {}, [None, [1, {"a": None}]], {"a": {"b": [b"c", "d", False]}}]
)
def test_plain_values_can_be_kept(value: object) -> None:
    assert kv.put("k", value).args == kv.add("k", value).args == ("k", value)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (User("Ada"), "a User"),
        ([1, {"a": [User("Ada")]}], "a User"),
        ((1, 2), "a tuple"),
        ({1, 2}, "a set"),
        ({1: "a"}, "a int"),
        ({"a": {2: "b"}}, "a int"),
        (1j, "a complex"),
        (bytearray(b"x"), "a bytearray"),
    ],
)
def test_other_values_are_refused_by_name(value: object, named: str) -> None:
    for make in (kv.put, kv.add):
        with pytest.raises(DefinitionError) as raised:
            make("k", value)
        assert named in raised.value.problem
        assert "attrs.asdict" in raised.value.cure


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: kv.put("k", None), "kv.put('k') was given None"),
        (lambda: kv.add("k", None), "kv.add('k') was given None"),
        (lambda: kv.put("k", 1, ttl=0), "kv.put('k', ttl=0)"),
        (lambda: kv.add("k", 1, ttl=-1), "kv.add('k', ttl=-1)"),
        (lambda: kv.put("k", 1, ttl=float("nan")), "ttl=nan"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], problem: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        make()
    assert problem in raised.value.problem
    assert raised.value.cure


def test_every_constructor_is_found_in_the_code_of_a_step() -> None:
    @step
    async def ask() -> Done:
        await kv.get("k")
        await kv.put("k", 1)
        await kv.add("k", 1)
        await kv.delete("k")
        await kv.increment("k")
        return Done()

    assert [mention.kind for mention in ask.mentions] == [kv.GET, kv.PUT, kv.ADD, kv.DELETE, kv.INCREMENT]
