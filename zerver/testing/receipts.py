"""What a store of receipts promises, as a program: `await check_receipts(open_receipts)`.

Law: each law stands alone, on a store of its own, and says in its failure what was due. Time is a number that the laws
set: a store is opened with the clock that it is to look at, for leases and for lifetimes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import trio

from zerver.runtime.receipts import Asked, Claim, Receipt, Receipts, StoredAnswer
from zerver.testing.laws import Laws, require

#: Seconds; what a store asks for the time.
Clock: TypeAlias = Callable[[], float]

_LEASE = 30.0
_LIFE = 3600.0
_AT_ONCE = 20  # tasks
_ASKED = Asked(b"head", b"body", 4)
_FIRST = Receipt("r1", b"head", b"body", 4)
_ANSWER = StoredAnswer(201, ((b"content-type", b"text/plain"),), b"done")


class _Case:
    """A store and its clock."""

    def __init__(self) -> None:
        self.time = 1e9
        self.receipts: Receipts

    def now(self) -> float:
        return self.time

    async def claim(
        self, run_id: str, place: bytes = b"p", lease: float | None = _LEASE, said: bytes = b"body"
    ) -> Receipt:
        return await self.receipts.claim(Claim(place, run_id, b"head", said, len(said)), lease)


_law = Laws[_Case]()


async def check_receipts(open_receipts: Callable[[Clock], AbstractAsyncContextManager[Receipts]]) -> None:
    """Prove that a store keeps the promises of `zerver.runtime.receipts.Receipts`.

    open_receipts: opens an empty one, given its clock; called once for each law. Raises AssertionError, which names the
    law.
    """
    for name, law in _law:
        case = _Case()
        async with open_receipts(case.now) as case.receipts:
            try:
                await law(case)
            except AssertionError as broken:
                raise AssertionError(f"check_receipts: {name}: {broken}") from broken


def _same(got: object, due: object, what: str) -> None:
    require(got == due, f"{what} gave {got!r}; {due!r} was due")


@_law("a place that nobody has claimed has no receipt")
async def _empty(case: _Case) -> None:
    _same(await case.receipts.find(b"p"), None, "find in an empty store")
    _same(await case.receipts.store("r1", _ANSWER, _LIFE), False, "store without a claim")
    _same(await case.receipts.release("r1"), False, "release without a claim")
    await case.receipts.renew(["r1"], _LEASE)
    _same(await case.receipts.find(b"p"), None, "find after verbs without a claim")


@_law("the first claim gets the place, and the others learn of it")
async def _first(case: _Case) -> None:
    due = Receipt("r1", b"head", b"body", 4)
    _same(await case.claim("r1"), due, "the first claim")
    _same(await case.claim("r2"), due, "the second claim")
    _same(await case.claim("r1"), due, "the first run's claim, again")
    _same(await case.receipts.find(b"p"), due, "find of a claimed place")
    _same((await case.claim("r2", b"q")).run_id, "r2", "the claim of another place")
    _same((await case.receipts.tally()).under_way, 2, "tally().under_way")


@_law("of several claims at once, one gets the place")
async def _at_once(case: _Case) -> None:
    seen: list[tuple[str, str]] = []

    async def one(run_id: str) -> None:
        seen.append((run_id, (await case.claim(run_id)).run_id))

    async with trio.open_nursery() as nursery:
        for number in range(_AT_ONCE):
            nursery.start_soon(one, f"r{number}")
    owners = {owner for _, owner in seen}
    require(len(owners) == 1, f"{_AT_ONCE} claims at once heard of {len(owners)} owners")
    _same(sum(asked == owner for asked, owner in seen), 1, "the number of claims that got the place")


@_law("an answer comes back as it went in")
async def _answers(case: _Case) -> None:
    fields = ((b"x-a", b"1"), (b"x-a", b"2"), (b"set-cookie", b"\xe9=\xff"), (b"empty", b""))
    for number, answer in enumerate(
        (
            _ANSWER,
            StoredAnswer(204),
            StoredAnswer(500, fields, bytes(range(256))),
            StoredAnswer(200, (), b"x" * 200_000),
        )
    ):
        place, run_id = b"p%d" % number, f"r{number}"
        await case.claim(run_id, place)
        _same(await case.receipts.store(run_id, answer, _LIFE), True, "store")
        found = await case.receipts.find(place)
        require(found is not None and found.answer == answer, "an answer that was found is not the one stored")
        _same((await case.claim("other", place)).answer, answer, "the answer that a later claim hears of")


@_law("the first answer stands")
async def _final(case: _Case) -> None:
    await case.claim("r1")
    await case.receipts.store("r1", _ANSWER, _LIFE)
    _same(await case.receipts.store("r1", StoredAnswer(500), _LIFE), True, "store, again")
    _same(await case.receipts.release("r1"), False, "release after store")
    found = await case.receipts.find(b"p")
    require(found is not None and found.answer == _ANSWER, "the first answer is not there any more")


@_law("an answer is there until its lifetime is over, and not after")
async def _lifetime(case: _Case) -> None:
    await case.claim("r1")
    await case.receipts.store("r1", _ANSWER, _LIFE)
    case.time += _LIFE - 1
    require(await case.receipts.find(b"p") is not None, "an answer was forgotten before its time")
    case.time += 2
    _same(await case.receipts.find(b"p"), None, "find of an expired answer")
    _same(await case.claim("r2"), Receipt("r2", b"head", b"body", 4), "a claim after an answer has expired")
    _same(await case.receipts.store("r1", _ANSWER, _LIFE), False, "store by a run whose receipt has expired")


@_law("a released place is free")
async def _released(case: _Case) -> None:
    await case.claim("r1")
    _same(await case.receipts.release("r1"), True, "release")
    _same(await case.receipts.release("r1"), False, "release, again")
    _same(await case.claim("r2"), Receipt("r2", b"head", b"body", 4), "a claim after a release")


@_law("a claim lapses unless it is renewed")
async def _lapsed(case: _Case) -> None:
    await case.claim("r1")
    case.time += _LEASE - 1
    await case.receipts.renew(["unknown", "r1"], _LEASE)
    case.time += _LEASE - 1
    _same((await case.claim("r2")).run_id, "r1", "the owner after a renewal")
    case.time += 2
    _same(await case.receipts.find(b"p"), None, "find of a lapsed claim")
    _same(await case.claim("r2"), Receipt("r2", b"head", b"body", 4, None, "r1", _ASKED), "the claim of a lapsed place")
    _same(await case.claim("r2"), Receipt("r2", b"head", b"body", 4, None, "r1", _ASKED), "the same claim, again")


@_law("a claim that never lapses does not, until its run is settled by its id")
async def _kept(case: _Case) -> None:
    await case.claim("r1", lease=None)
    case.time += 365 * 86_400
    await case.receipts.renew(["r1"], _LEASE)
    case.time += 365 * 86_400
    _same((await case.claim("r2")).run_id, "r1", "the owner after two years")
    _same(await case.receipts.store("r1", _ANSWER, _LIFE), True, "store after two years")


@_law("whoever has lost the place changes nothing any more")
async def _fenced(case: _Case) -> None:
    await case.claim("r1")
    case.time += _LEASE + 1
    await case.claim("r2")
    _same(await case.receipts.store("r1", _ANSWER, _LIFE), False, "store by a run that was taken over from")
    _same(await case.receipts.release("r1"), False, "release by a run that was taken over from")
    await case.receipts.renew(["r1"], _LEASE)
    _same((await case.claim("r1")).run_id, "r2", "the owner")
    _same(await case.receipts.store("r2", _ANSWER, _LIFE), True, "store by the new owner")


@_law("a claim that has lapsed, and that nobody took, is still its run's to settle")
async def _late(case: _Case) -> None:
    await case.claim("r1")
    case.time += _LEASE + 1
    _same(await case.receipts.store("r1", _ANSWER, _LIFE), True, "store after the lease was over")
    found = await case.receipts.find(b"p")
    require(found is not None and found.answer == _ANSWER, "the answer is not there")


@_law("a place that was taken over can be given back, and is the earlier run's again")
async def _given_back(case: _Case) -> None:
    await case.claim("r1")
    case.time += _LEASE + 1
    taken = await case.claim("r2", said=b"second")
    _same((taken.before, taken.asked), ("r1", _ASKED), "a claim of a place whose lease was over")
    _same(await case.receipts.give_back("r2", "r1", _LEASE), True, "give_back")
    _same(await case.receipts.give_back("r2", "r1", _LEASE), False, "give_back, again")
    _same(await case.claim("r3", said=b"third"), _FIRST, "a claim of a place that was given back")
    case.time += _LEASE - 1
    _same((await case.claim("r3")).run_id, "r1", "the owner before its new lease was over")
    _same(await case.receipts.release("r2"), False, "release by the run that gave it back")
    _same(await case.receipts.store("r1", _ANSWER, _LIFE), True, "store by the earlier run")
    _same(await case.receipts.give_back("r1", "r0", _LEASE), False, "give_back of an answer")


@_law("a run that was taken over from is not forgotten before whoever has its place begins")
async def _begun(case: _Case) -> None:
    await case.claim("r1")
    for run_id in ("r2", "r3"):  # each of them dies before it has looked
        case.time += _LEASE + 1
        taken = await case.claim(run_id, said=b"another")
        _same((taken.before, taken.asked), ("r1", _ASKED), f"the claim of {run_id}")
    _same(await case.receipts.give_back("r3", "r1", _LEASE), True, "give_back")
    _same(await case.receipts.find(b"p"), _FIRST, "find after it was given back")
    case.time += _LEASE + 1
    await case.claim("r4")
    await case.receipts.begin("r4")
    await case.receipts.begin("nobody")
    taken = await case.claim("r4")
    _same((taken.before, taken.asked), ("", None), "a claim of the run that has begun")
    case.time += _LEASE + 1
    _same((await case.claim("r5")).before, "r4", "the run before the fifth")


@_law("every verb is a checkpoint")
async def _checkpoints(case: _Case) -> None:
    receipts = case.receipts
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "find": lambda: receipts.find(b"p"),
        "claim": lambda: case.claim("r1"),
        "renew": lambda: receipts.renew(["r1"], _LEASE),
        "store": lambda: receipts.store("r1", _ANSWER, _LIFE),
        "release": lambda: receipts.release("r1"),
        "begin": lambda: receipts.begin("r1"),
        "give_back": lambda: receipts.give_back("r1", "r0", _LEASE),
    }
    for name, call in calls.items():
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        require(scope.cancelled_caught, f"{name} is no checkpoint")
