"""The memory store keeps every promise of a store, stays within its capacity, and agrees with a dict."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from zerver import App, Done, Flow, step
from zerver.effects import kv
from zerver.errors import DefinitionError, EffectError, Rejected
from zerver.kv import MemoryStore, Store, StoreStatistics, memory, store_capability
from zerver.runtime import open_runtime
from zerver.testing.stores import check_store


@asynccontextmanager
async def open_store() -> AsyncIterator[Store]:
    yield MemoryStore(100)


async def test_it_keeps_the_promises_of_a_store(autojump_clock: MockClock) -> None:
    await check_store(open_store)


# ---- capacity -------------------------------------------------------------------------------


async def kept(store: MemoryStore, keys: str) -> str:
    return "".join([key for key in keys if await store.get(key) is not None])


async def test_the_oldest_makes_room() -> None:
    store = MemoryStore(3)
    for key in "abc":
        await store.put(key, 1, None)
    await store.put("a", 2, None)  # now the youngest
    await store.put("d", 1, None)
    assert await kept(store, "abcd") == "acd"
    assert store.statistics() == StoreStatistics(keys=3, capacity=3, evicted=1)


async def test_what_expires_first_makes_room_before_what_never_does(mock_clock: MockClock) -> None:
    store = MemoryStore(3)
    await store.put("a", 1, None)
    await store.put("late", 1, 20.0)
    await store.put("soon", 1, 10.0)
    await store.put("b", 1, None)
    await store.add("c", 1, None)
    await store.increment("d", 1)
    assert [key for key in ("a", "late", "soon", "b", "c", "d") if await store.get(key)] == ["b", "c", "d"]
    assert store.statistics().evicted == 3


async def test_replacing_a_key_evicts_nobody() -> None:
    store = MemoryStore(2)
    for key in "abaabb":
        await store.put(key, 1, None)
        await store.increment(key, 1)
    assert store.statistics() == StoreStatistics(keys=2, capacity=2, evicted=0)


async def test_what_has_expired_takes_no_room_and_is_not_counted_as_evicted(mock_clock: MockClock) -> None:
    store = MemoryStore(2)
    await store.put("a", 1, None)
    await store.put("b", 1, 5.0)
    mock_clock.jump(5.0)
    assert store.statistics().keys == 1
    await store.put("c", 1, None)
    assert await kept(store, "abc") == "ac"
    assert store.statistics().evicted == 0


async def test_setting_one_key_for_ever_does_not_fill_the_memory() -> None:
    store = MemoryStore(10)
    for _ in range(1000):
        await store.put("session", 1, 60.0)
        await store.increment("session", 1)
    assert len(store._ends) < 50


def test_a_store_without_room_is_refused() -> None:
    with pytest.raises(DefinitionError, match="room for one key"):
        memory(capacity=0)


# ---- against a dict -------------------------------------------------------------------------

KEYS = st.sampled_from("abcd")
TTLS = st.none() | st.sampled_from([1.0, 2.0, 5.0])
ACTIONS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.integers(0, 9), TTLS),
    st.tuples(st.just("add"), KEYS, st.integers(0, 9), TTLS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("increment"), KEYS, st.integers(-3, 3)),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 3.0])),
)


@attrs.define
class Model:
    """The store as a dict that looks at all of itself, every time."""

    capacity: int
    now: float = 0.0
    entries: dict[str, tuple[int, float]] = attrs.field(factory=dict)

    def act(self, verb: str, *args: Any) -> object:
        self.entries = {key: entry for key, entry in self.entries.items() if entry[1] > self.now}
        return getattr(self, verb)(*args)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def get(self, key: str) -> int | None:
        return self.entries[key][0] if key in self.entries else None

    def put(self, key: str, value: int, ttl: float | None) -> None:
        self.set(key, value, float("inf") if ttl is None else self.now + ttl)

    def add(self, key: str, value: int, ttl: float | None) -> bool:
        if key in self.entries:
            return False
        self.put(key, value, ttl)
        return True

    def delete(self, key: str) -> bool:
        return self.entries.pop(key, None) is not None

    def increment(self, key: str, by: int) -> int:
        value, until = self.entries.get(key, (0, float("inf")))
        self.set(key, value + by, until)
        return value + by

    def set(self, key: str, value: int, until: float) -> None:
        self.entries.pop(key, None)
        if len(self.entries) >= self.capacity:
            del self.entries[min(self.entries, key=lambda k: self.entries[k][1])]  # the oldest among equals
        self.entries[key] = (value, until)


@given(st.integers(1, 4), st.lists(ACTIONS, max_size=40))
@settings(max_examples=200, deadline=None)
def test_it_agrees_with_a_dict(capacity: int, actions: list[tuple[Any, ...]]) -> None:
    async def main() -> None:
        store, model = MemoryStore(capacity), Model(capacity)
        for verb, *args in actions:
            expected = model.act(verb, *args)
            if verb == "wait":
                clock.jump(*args)
            else:
                assert await getattr(store, verb)(*args) == expected
            model.act("get", "a")  # forgets what has expired
            assert store.statistics().keys == len(model.entries)

    clock = MockClock()
    trio.run(main, clock=clock)


# ---- as effects -----------------------------------------------------------------------------


async def test_the_effects_reach_the_store() -> None:
    @step
    async def use() -> Done:
        return Done(
            [
                await kv.add("k", {"n": [1]}),
                await kv.add("k", 2, ttl=5),
                await kv.get("k"),
                await kv.increment("n"),
                await kv.increment("n", 4),
                await kv.put("k", "x"),
                await kv.delete("k"),
                await kv.get("k"),
            ]
        )

    async with open_runtime(App(capabilities=[memory()])) as runtime:
        result = await runtime.run(Flow("use", [use]))
        assert result.unwrap() == [True, False, {"n": [1]}, 1, 5, None, True, None]


async def test_a_rejected_increment_is_a_failure_with_its_cause() -> None:
    @step
    async def use() -> Done:
        await kv.put("k", "x")
        return Done(await kv.increment("k"))

    async with open_runtime(App(capabilities=[memory()])) as runtime:
        result = await runtime.run(Flow("use", [use]))
        assert isinstance(result.cause, EffectError)
        assert isinstance(result.cause.cause, Rejected)
        assert str(result.cause.cause) == "kv.increment: the value of 'k' is a str, not an int"


async def test_a_store_of_ones_own_serves_the_same_effects() -> None:
    store = MemoryStore(10)

    @asynccontextmanager
    async def open_mine() -> AsyncIterator[Store]:
        yield store

    @step
    async def use() -> Done:
        return Done(await kv.increment("n"))

    async with open_runtime(App(capabilities=[store_capability(open_mine)])) as runtime:
        await runtime.run(Flow("use", [use]))
    assert await store.get("n") == 1
