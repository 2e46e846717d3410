"""What a key-value store promises, as a program: `await check_store(open_store)`.

Law: each law stands alone, on a store of its own, and says in its failure what was due. Time passes by
`trio.sleep`: with an autojump clock the memory store is checked at once; a store on a network takes a second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import trio

from zerver.errors import Rejected
from zerver.kv import Store
from zerver.testing.laws import Laws, require

_law = Laws[Store]()

_TTL = 0.2  # seconds: long enough for a few calls across a network
_AT_ONCE = 20  # tasks


async def check_store(open_store: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
    """Prove that a store keeps the promises of `zerver.kv.Store`.

    open_store: opens an empty one; it is called once for each law. Raises AssertionError, which names the law.
    """
    for name, law in _law:
        async with open_store() as store:
            try:
                await law(store)
            except AssertionError as broken:
                raise AssertionError(f"check_store: {name}: {broken}") from broken


async def _expect(call: Awaitable[object], due: object, what: str) -> None:
    got = await call
    require(got == due and type(got) is type(due), f"{what} gave {got!r}; {due!r} was due")


async def _at_once(call: Callable[[], Awaitable[object]]) -> list[object]:
    """What came of the same call, made by several tasks at the same time."""
    results: list[object] = []

    async def one() -> None:
        results.append(await call())

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(one)
    return results


# ---- the laws -------------------------------------------------------------------------------


@_law("a missing key has no value")
async def _missing(store: Store) -> None:
    await _expect(store.get("k"), None, "get of a missing key")
    await _expect(store.delete("k"), False, "delete of a missing key")


@_law("values come back as they went in, and as copies")
async def _values(store: Store) -> None:
    nested = {"list": [1, None, {"deep": b"\x00\xff"}], "": "empty"}
    samples: tuple[object, ...] = (True, False, 0, -(2**53), 1.5, "", "naïve ✓ 🦉", b"", b"\x00\xff", [], {}, nested)
    for value in samples:
        await store.put("k", value, None)
        await _expect(store.get("k"), value, f"get after put of {value!r}")
    items: list[object] = [1]
    await store.put("k", items, None)
    items.append(2)
    got = await store.get("k")
    require(got == [1], "a list that was changed after put had changed in the store")
    if isinstance(got, list):
        got.append(3)
    await _expect(store.get("k"), [1], "get after a list that get had given was changed")


@_law("put replaces, add does not, delete forgets")
async def _verbs(store: Store) -> None:
    await store.put("k", 1, None)
    await store.put("k", "two", None)
    await _expect(store.get("k"), "two", "get after a second put")
    await _expect(store.add("k", 3, None), False, "add of a key that is there")
    await _expect(store.get("k"), "two", "get after an add that set nothing")
    await _expect(store.delete("k"), True, "delete of a key that is there")
    await _expect(store.add("k", False, None), True, "add after delete")
    await _expect(store.add("k", 4, None), False, "add of a key whose value is False")
    await _expect(store.get("other"), None, "get of another key")


@_law("of several adds at once, one sets the key")
async def _one_add(store: Store) -> None:
    results = await _at_once(partial(store.add, "k", 1, None))
    require(results.count(True) == 1, f"{results.count(True)} of {_AT_ONCE} adds said that they set the key")


@_law("increments add up, also at once")
async def _increments(store: Store) -> None:
    await _expect(store.increment("k", 5), 5, "the first increment by 5")
    await _expect(store.increment("k", -7), -2, "an increment by -7")
    results = await _at_once(partial(store.increment, "k", 1))
    require(sorted(map(repr, results)) == sorted(map(repr, range(-1, _AT_ONCE - 1))), f"increments gave {results}")
    await _expect(store.get("k"), _AT_ONCE - 2, "get after increments")


@_law("only integers can be incremented")
async def _no_number(store: Store) -> None:
    for value in ("1", 1.5, True, [1]):
        await store.put("k", value, None)
        try:
            got = await store.increment("k", 1)
        except Rejected:
            await _expect(store.get("k"), value, "get after an increment that was rejected")
        else:
            raise AssertionError(f"an increment of {value!r} gave {got!r}; Rejected was due")


@_law("a key is forgotten when its time has come, and not before")
async def _lifetime(store: Store) -> None:
    for set_key in (store.put, store.add):
        await set_key("k", 1, _TTL)
        await _expect(store.get("k"), 1, "get before the ttl was over")
        await trio.sleep(2 * _TTL)
        await _expect(store.get("k"), None, "get after the ttl was over")
        await _expect(store.delete("k"), False, "delete after the ttl was over")
    await _expect(store.add("k", 2, None), True, "add after the ttl was over")


@_law("a key that is set again gets its ttl anew")
async def _renewed(store: Store) -> None:
    await store.put("k", 1, _TTL)
    await store.put("k", 2, None)
    await trio.sleep(2 * _TTL)
    await _expect(store.get("k"), 2, "get of a key that was put again without a ttl")


@_law("an increment keeps the ttl")
async def _incremented_lifetime(store: Store) -> None:
    await store.put("k", 1, _TTL)
    await _expect(store.increment("k", 1), 2, "increment before the ttl was over")
    await trio.sleep(2 * _TTL)
    await _expect(store.increment("k", 1), 1, "increment after the ttl was over")


@_law("a cancelled verb has not happened")
async def _cancelled(store: Store) -> None:
    await store.put("k", 1, None)
    for name, call in (
        ("put", partial(store.put, "k", 2, None)),
        ("add", partial(store.add, "new", 2, None)),
        ("delete", partial(store.delete, "k")),
        ("increment", partial(store.increment, "k", 1)),
        ("get", partial(store.get, "k")),
    ):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        require(scope.cancelled_caught, f"{name} is no checkpoint")
    await _expect(store.get("k"), 1, "get after cancelled verbs")
    await _expect(store.get("new"), None, "get of a key whose add was cancelled")
