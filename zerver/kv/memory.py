"""Keys and values in memory: a store for one process, and the model for others.

Law: every verb is atomic because nothing is awaited inside it. What goes in and what comes out are copies: a value in
the store cannot be changed from outside. The store is bounded: the entry that expires first, or else the oldest one,
makes room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Protocol

import attrs
import trio

from zerver.core.app import Capability
from zerver.core.effects import INJECTED
from zerver.effects import kv
from zerver.errors import DefinitionError, Rejected


class Store(Protocol):
    """What a key-value store must do. `zerver.testing.check_store` is this page as a program.

    Every verb is atomic, and a checkpoint. When it raises, or is cancelled, it has not happened; only ConnectionLost
    means that nobody knows. Values are as `zerver.effects.kv` says, and never None, which is what a missing key has.
    ttl: seconds until the key is forgotten, None for never; a key that is set again gets its ttl anew.
    """

    async def get(self, key: str) -> object:
        """The value, or None."""
        ...

    async def put(self, key: str, value: object, ttl: float | None) -> None:
        """Set the key, whatever it was."""
        ...

    async def add(self, key: str, value: object, ttl: float | None) -> bool:
        """Set the key if it is missing; whether it was."""
        ...

    async def delete(self, key: str) -> bool:
        """Forget the key; whether it was there."""
        ...

    async def increment(self, key: str, by: int) -> int:
        """Add to the key's integer, 0 if it is missing, and keep its ttl. Raises Rejected for any other value."""
        ...


@attrs.frozen
class StoreStatistics:
    """keys: kept now. evicted: forgotten before their time because the store was full."""

    keys: int
    capacity: int
    evicted: int


@attrs.frozen(eq=False)
class _Entry:
    """until: on Trio's clock, inf for ever."""

    value: object
    until: float


_NEVER = float("inf")


class MemoryStore:
    """A Store that lives and ends with the runtime."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # oldest first
        self._ends: list[tuple[float, int, str, _Entry]] = []  # a heap; entries that were replaced are passed over
        self._number = count()  # so that the heap never compares entries
        self._evicted = 0

    async def get(self, key: str) -> object:
        await trio.lowlevel.checkpoint()
        entry = self._live(key)
        return None if entry is None else _copy(entry.value)

    async def put(self, key: str, value: object, ttl: float | None) -> None:
        await trio.lowlevel.checkpoint()
        self._set(key, _copy(value), _NEVER if ttl is None else trio.current_time() + ttl)

    async def add(self, key: str, value: object, ttl: float | None) -> bool:
        await trio.lowlevel.checkpoint()
        if self._live(key) is not None:
            return False
        self._set(key, _copy(value), _NEVER if ttl is None else trio.current_time() + ttl)
        return True

    async def delete(self, key: str) -> bool:
        await trio.lowlevel.checkpoint()
        was_there = self._live(key) is not None
        self._entries.pop(key, None)
        return was_there

    async def increment(self, key: str, by: int) -> int:
        await trio.lowlevel.checkpoint()
        entry = self._live(key) or _Entry(0, _NEVER)
        if type(entry.value) is not int:
            raise Rejected(f"kv.increment: the value of {key!r} is a {type(entry.value).__name__}, not an int")
        self._set(key, entry.value + by, entry.until)
        return entry.value + by

    def statistics(self) -> StoreStatistics:
        self._forget_expired()
        return StoreStatistics(len(self._entries), self._capacity, self._evicted)

    # -- inside, where nothing is awaited --

    def _live(self, key: str) -> _Entry | None:
        entry = self._entries.get(key)
        return entry if entry is not None and entry.until > trio.current_time() else None

    def _set(self, key: str, value: object, until: float) -> None:
        self._forget_expired()
        self._entries.pop(key, None)
        if len(self._entries) >= self._capacity:
            self._make_room()
        entry = self._entries[key] = _Entry(value, until)
        if until != _NEVER:
            heappush(self._ends, (until, next(self._number), key, entry))
            self._compact()

    def _forget_expired(self) -> None:
        now = trio.current_time()
        while (first := self._first_to_end()) is not None and self._entries[first].until <= now:
            del self._entries[first]

    def _make_room(self) -> None:
        first = self._first_to_end()
        if first is not None:
            del self._entries[first]
        else:
            self._entries.popitem(last=False)
        self._evicted += 1

    def _first_to_end(self) -> str | None:
        """The key that expires first, None if none does."""
        while self._ends:
            _, _, key, entry = self._ends[0]
            if self._entries.get(key) is entry:
                return key
            heappop(self._ends)  # it was deleted or replaced
        return None

    def _compact(self) -> None:
        """Drop what was replaced, once it is most of the heap: each key set again and again would fill it."""
        if len(self._ends) > 2 * len(self._entries) + 16:
            self._ends = [end for end in self._ends if self._entries.get(end[2]) is end[3]]
            heapify(self._ends)


def _copy(value: Any) -> Any:
    if type(value) is list:
        return [_copy(item) for item in value]
    if type(value) is dict:
        return {key: _copy(item) for key, item in value.items()}
    return value


# ---- the capability -------------------------------------------------------------------------


def memory(*, capacity: int = 100_000) -> Capability:
    """The `kv` effects in memory, for one process. capacity: keys kept at the most.

    Raises DefinitionError for a capacity below 1.
    """
    if capacity < 1:
        raise DefinitionError(f"kv.memory(capacity={capacity!r})", "give it room for one key at least")

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Store]:
        yield MemoryStore(capacity)

    return store_capability(open_store)


def store_capability(open_store: Callable[[], AbstractAsyncContextManager[Store]]) -> Capability:
    """The `kv` effects on a Store that `open_store` opens. A handler of yours may take `Store` as a resource."""
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
