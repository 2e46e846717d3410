"""Resources are opened once, in the order of their needs, and closed in reverse order, whatever happens."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from zerver import Capability
from zerver.errors import DefinitionError
from zerver.runtime.resources import needed_for, open_resource, open_resources


class Pool:
    pass


class Cache:
    pass


class Search:
    pass


LOG: list[str] = []


@pytest.fixture(autouse=True)
def _fresh_log() -> None:
    LOG.clear()


@asynccontextmanager
async def open_pool() -> AsyncIterator[Pool]:
    LOG.append("open pool")
    try:
        yield Pool()
    finally:
        LOG.append("close pool")


@asynccontextmanager
async def open_cache(pool: Pool) -> AsyncIterator[Cache]:
    LOG.append("open cache")
    try:
        yield Cache()
    finally:
        LOG.append("close cache")


@asynccontextmanager
async def open_search(pool: Pool, cache: Cache, size: int = 5) -> AsyncIterator[Search]:
    LOG.append("open search")
    yield Search()
    LOG.append("close search")


def capability(name: str, resources: dict[type, Callable[..., Any]]) -> Capability:
    return Capability(name=name, resources=resources)


async def test_needs_come_first_and_closing_is_the_reverse() -> None:
    capabilities = [capability("search", {Search: open_search, Cache: open_cache}), capability("db", {Pool: open_pool})]
    async with AsyncExitStack() as stack:
        opened = await open_resources(stack, capabilities)
        assert LOG == ["open pool", "open cache", "open search"]
        assert {type_: type(thing) for type_, thing in opened.items()} == {Pool: Pool, Cache: Cache, Search: Search}
    assert LOG[3:] == ["close search", "close cache", "close pool"]


async def test_what_was_opened_is_closed_when_a_later_one_fails() -> None:
    @asynccontextmanager
    async def fail(pool: Pool) -> AsyncIterator[Cache]:
        raise OSError("no cache today")
        yield Cache()

    with pytest.raises(OSError, match="no cache today"):
        async with AsyncExitStack() as stack:
            await open_resources(stack, [capability("x", {Pool: open_pool, Cache: fail})])
    assert LOG == ["open pool", "close pool"]


async def refused(*capabilities: Capability) -> str:
    with pytest.raises(DefinitionError) as caught:
        async with AsyncExitStack() as stack:
            await open_resources(stack, capabilities)
    return str(caught.value)


async def test_two_that_open_the_same_are_refused() -> None:
    text = await refused(capability("one", {Pool: open_pool}), capability("two", {Pool: open_pool}))
    assert text.startswith("capability 'two' opens a Pool, and so does another one\n  remove one")


async def test_a_need_that_nobody_meets_is_refused() -> None:
    text = await refused(capability("one", {Cache: open_cache}))
    assert text.startswith("the resource Cache needs a Pool for 'pool', but no capability opens one\n  add")


async def test_a_circle_is_refused() -> None:
    @asynccontextmanager
    async def open_pool_from_cache(cache: Cache) -> AsyncIterator[Pool]:
        yield Pool()

    text = await refused(capability("one", {Pool: open_pool_from_cache, Cache: open_cache}))
    assert "in a circle: Pool → Cache → Pool" in text


async def test_one_is_opened_with_what_it_needs_and_nothing_else() -> None:
    db, search = capability("db", {Pool: open_pool}), capability("search", {Search: open_search})
    cache = capability("cache", {Cache: open_cache})
    async with AsyncExitStack() as stack:
        assert isinstance(await open_resource(stack, [search, cache, db], Cache), Cache)
        assert LOG == ["open pool", "open cache"]
    with pytest.raises(KeyError):
        await open_resource(AsyncExitStack(), [db], Cache)


def test_the_capabilities_that_one_needs_are_known_before_it_is_opened() -> None:
    db, search = capability("db", {Pool: open_pool}), capability("search", {Search: open_search})
    cache = capability("cache", {Cache: open_cache})
    assert needed_for([search, cache, db], Cache) == [cache, db]
    assert needed_for([search, cache, db], Search) == [search, cache, db]
    assert needed_for([db], Cache) == []
    assert LOG == []
