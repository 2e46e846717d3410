"""The memory store of receipts keeps every promise of the port, in any order of calls; when it is full it says so."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from zerver.errors import DefinitionError, JournalUnavailable
from zerver.runtime.receipts import Claim, MemoryReceipts, Receipts, StoredAnswer
from zerver.testing import check_receipts

ANSWER = StoredAnswer(201, (), b"done")


@asynccontextmanager
async def open_memory(clock: Callable[[], float]) -> AsyncGenerator[Receipts, None]:
    yield MemoryReceipts(clock=clock)


async def test_it_keeps_the_promises() -> None:
    await check_receipts(open_memory)


async def test_a_full_store_refuses_and_forgets_nothing() -> None:
    receipts = MemoryReceipts(most=2, most_bytes=4)
    await receipts.claim(Claim(b"a", "r1", b"", b"", 0), 30.0)
    await receipts.claim(Claim(b"b", "r2", b"", b"", 0), 30.0)
    with pytest.raises(JournalUnavailable):
        await receipts.claim(Claim(b"c", "r3", b"", b"", 0), 30.0)
    assert (await receipts.claim(Claim(b"a", "r4", b"", b"", 0), 30.0)).run_id == "r1"  # no room is needed to say so
    await receipts.release("r2")
    assert await receipts.store("r1", ANSWER, 60.0)
    with pytest.raises(JournalUnavailable):  # four bytes are all there is room for
        await receipts.claim(Claim(b"c", "r3", b"", b"", 0), 30.0)
    tally = await receipts.tally()
    assert (tally.under_way, tally.stored, tally.bytes) == (0, 1, 4)


async def test_room_comes_back_when_answers_expire(autojump_clock: trio.testing.MockClock) -> None:
    receipts = MemoryReceipts(most=1)
    await receipts.claim(Claim(b"a", "r1", b"", b"", 0), 30.0)
    await receipts.store("r1", ANSWER, 60.0)
    await trio.sleep(61)
    assert (await receipts.claim(Claim(b"b", "r2", b"", b"", 0), 30.0)).run_id == "r2"


async def test_what_bounds_nothing_is_refused() -> None:
    with pytest.raises(DefinitionError):
        MemoryReceipts(most=0)
    for lease in (0.0, -1.0, 1e9, float("nan")):
        with pytest.raises(ValueError, match="lease"):
            await MemoryReceipts().claim(Claim(b"a", "r1", b"", b"", 0), lease)


# ---- any order of calls -----------------------------------------------------------------------


class Model:
    """What the port says, as slowly and as plainly as possible: (run, answer, until, before) by place."""

    def __init__(self) -> None:
        self.time = 0.0
        self.held: dict[bytes, tuple[str, StoredAnswer | None, float, str]] = {}

    def find(self, place: bytes) -> tuple[str, StoredAnswer | None] | None:
        held = self.held.get(place)
        return None if held is None or held[2] <= self.time else held[:2]

    def claim(self, place: bytes, run: str, lease: float) -> tuple[str, StoredAnswer | None, str]:
        run_id, answer, until, before = self.held.get(place, ("", None, -1.0, ""))
        if until > self.time and run_id != run:
            return run_id, answer, before
        if until > self.time and answer is not None:
            return run_id, answer, before
        lapsed = bool(run_id) and answer is None
        before = "" if not lapsed else before if run_id == run or before else run_id
        self.held[place] = (run, None, self.time + lease, before)
        return run, None, before

    def settle(self, run: str, answer: StoredAnswer | None, lifetime: float) -> bool:
        for place, (run_id, known, until, before) in list(self.held.items()):
            if run_id != run or (known is not None and until <= self.time):
                continue
            if known is not None:
                return answer is not None
            if answer is None:
                del self.held[place]
            else:
                self.held[place] = (run, answer, self.time + lifetime, before)
            return True
        return False


PLACES = st.sampled_from([b"p", b"q"])
NUMBERS = st.integers(0, 3)
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), PLACES, NUMBERS),
        st.tuples(st.just("store"), PLACES, NUMBERS),
        st.tuples(st.just("release"), PLACES, NUMBERS),
        st.tuples(st.just("renew"), PLACES, NUMBERS),
        st.tuples(st.just("find"), PLACES, NUMBERS),
        st.tuples(st.just("wait"), PLACES, st.sampled_from([1, 20, 31, 61])),
    ),
    max_size=40,
)


async def follow(calls: list[tuple[str, bytes, int]], receipts: Receipts, model: Model) -> None:
    for verb, place, number in calls:
        run = f"{place.decode()}{number}"  # a run has one place: that is the port's, too
        if verb == "claim":
            got = await receipts.claim(Claim(place, run, b"", b"", 0), 30.0)
            assert (got.run_id, got.answer, got.before) == model.claim(place, run, 30.0)
        elif verb == "store":
            await receipts.tally()  # whatever has expired is forgotten by now, or not: it must not matter
            due = model.settle(run, ANSWER, 60.0)
            if model.find(place) is not None or due:
                assert await receipts.store(run, ANSWER, 60.0) == due
        elif verb == "release":
            held = model.held.get(place)
            due = held is not None and held[0] == run and held[1] is None
            assert await receipts.release(run) == due
            if due:
                model.settle(run, None, 0.0)
        elif verb == "renew":
            await receipts.renew([run], 30.0)
            held = model.held.get(place)
            if held is not None and held[0] == run and held[1] is None:
                model.held[place] = (run, None, model.time + 30.0, held[3])
        elif verb == "find":
            found = await receipts.find(place)
            assert (None if found is None else (found.run_id, found.answer)) == model.find(place)
        else:
            model.time += number


@given(CALLS)
def test_it_does_what_the_model_does(calls: list[tuple[str, bytes, int]]) -> None:
    model = Model()
    trio.run(follow, calls, MemoryReceipts(clock=lambda: model.time), model)
