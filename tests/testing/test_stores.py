"""check_store finds what is wrong with a store, and names the law that it breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from zerver.kv import MemoryStore, Store
from zerver.testing.stores import check_store


class Forgetful(MemoryStore):
    async def get(self, key: str) -> object:
        return await super().get(key) or None


class Racing(MemoryStore):
    async def increment(self, key: str, by: int) -> int:
        value: Any = await self.get(key) or 0
        await self.put(key, value + by, None)
        return int(value + by)


class Eager(MemoryStore):
    async def add(self, key: str, value: object, ttl: float | None) -> bool:
        missing = await self.get(key) is None
        await self.put(key, value, ttl)
        return missing


class Aliasing(MemoryStore):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.given: dict[str, object] = {}

    async def put(self, key: str, value: object, ttl: float | None) -> None:
        await super().put(key, value, ttl)
        self.given[key] = value

    async def get(self, key: str) -> object:
        found = await super().get(key)
        return self.given.get(key) if isinstance(found, list) else found


class Immortal(MemoryStore):
    async def put(self, key: str, value: object, ttl: float | None) -> None:
        await super().put(key, value, None)


class Stubborn(MemoryStore):
    async def delete(self, key: str) -> bool:
        with trio.CancelScope(shield=True):
            return await super().delete(key)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (Forgetful, "values come back as they went in"),
        (Racing, "increments add up, also at once"),
        (Eager, "put replaces, add does not"),
        (Aliasing, "a list that was changed after put had changed in the store"),
        (Immortal, "a key is forgotten when its time has come"),
        (Stubborn, "delete is no checkpoint"),
    ],
)
async def test_a_broken_store_is_found(broken: type[MemoryStore], complaint: str, autojump_clock: MockClock) -> None:
    @asynccontextmanager
    async def open_store() -> AsyncIterator[Store]:
        yield broken(100)

    with pytest.raises(AssertionError, match=complaint):
        await check_store(open_store)
