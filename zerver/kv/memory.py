"""Keys and values in memory: a store for one process, and the model for others.

Law: every verb is atomic because nothing is awaited inside it. The store is bounded: the entry that expires first, or
else the oldest one, makes room.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import attrs
import trio

from zerver.core.app import Capability
from zerver.core.effects import INJECTED
from zerver.effects import kv
from zerver.errors import Rejected


class Store(Protocol):
    """What a key-value store must do. ttl: seconds until the key is forgotten, None for never."""

    async def get(self, key: str) -> object: ...
    async def put(self, key: str, value: object, ttl: float | None) -> None: ...
    async def add(self, key: str, value: object, ttl: float | None) -> bool: ...
    async def delete(self, key: str) -> bool: ...
    async def increment(self, key: str, by: int) -> int: ...


@attrs.frozen
class StoreStatistics:
    """keys: kept now. evicted: forgotten because the store was full."""

    keys: int
    capacity: int
    evicted: int


class MemoryStore:
    """A Store that lives and ends with the runtime."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[str, tuple[object, float]] = {}  # value, and when it is forgotten
        self._evicted = 0

    async def get(self, key: str) -> object:
        await trio.lowlevel.checkpoint()
        return self._live(key)

    async def put(self, key: str, value: object, ttl: float | None) -> None:
        await trio.lowlevel.checkpoint()
        self._set(key, value, ttl)

    async def add(self, key: str, value: object, ttl: float | None) -> bool:
        await trio.lowlevel.checkpoint()
        if self._live(key) is not None:
            return False
        self._set(key, value, ttl)
        return True

    async def delete(self, key: str) -> bool:
        await trio.lowlevel.checkpoint()
        was_there = self._live(key) is not None
        self._entries.pop(key, None)
        return was_there

    async def increment(self, key: str, by: int) -> int:
        await trio.lowlevel.checkpoint()
        value = self._live(key)
        if value is None:
            value = 0
        if not isinstance(value, int) or isinstance(value, bool):
            raise Rejected(f"kv.increment: the value of {key!r} is a {type(value).__name__}, not a number")
        self._entries[key] = (value + by, self._entries.get(key, (0, float("inf")))[1])
        return value + by

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(len(self._entries), self._capacity, self._evicted)

    def _live(self, key: str) -> object:
        value, until = self._entries.get(key, (None, 0.0))
        if value is not None and until <= trio.current_time():
            del self._entries[key]
            return None
        return value

    def _set(self, key: str, value: object, ttl: float | None) -> None:
        if value is None:
            raise Rejected(f"kv: None cannot be the value of {key!r}: it means that there is none")
        self._entries.pop(key, None)
        if len(self._entries) >= self._capacity:
            self._make_room()
        self._entries[key] = (value, float("inf") if ttl is None else trio.current_time() + ttl)

    def _make_room(self) -> None:
        first = min(self._entries, key=lambda key: self._entries[key][1])  # the first in order of age, among equals
        del self._entries[first]
        self._evicted += 1


def memory(*, capacity: int = 100_000) -> Capability:
    """The `kv` effects in memory, for one process. capacity: keys kept at the most."""

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Store]:
        yield MemoryStore(capacity)

    return store_capability(open_store)


def store_capability(open_store: Callable[[], Any]) -> Capability:
    """The `kv` effects on a Store that `open_store` opens."""
    return Capability(name="kv", handlers=_HANDLERS, resources={_STORE: open_store})


_STORE: Any = Store  # a protocol is a type to those who annotate with it, and no class to type checkers


async def _get(key: str, *, store: Store = INJECTED) -> object:
    return await store.get(key)


async def _put(key: str, value: object, *, ttl: float | None, store: Store = INJECTED) -> None:
    await store.put(key, value, ttl)


async def _add(key: str, value: object, *, ttl: float | None, store: Store = INJECTED) -> bool:
    return await store.add(key, value, ttl)


async def _delete(key: str, *, store: Store = INJECTED) -> bool:
    return await store.delete(key)


async def _increment(key: str, by: int, *, store: Store = INJECTED) -> int:
    return await store.increment(key, by)


_HANDLERS: dict[str, Callable[..., Any]] = {
    kv.GET.name: _get,
    kv.PUT.name: _put,
    kv.ADD.name: _add,
    kv.DELETE.name: _delete,
    kv.INCREMENT.name: _increment,
}
