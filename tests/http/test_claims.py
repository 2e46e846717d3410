"""Claims outlive the answers of their requests: those of runs that others carry on are settled when these end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver import App, Done, Flow, step
from zerver.core import timeline as t
from zerver.core.timeline import Ending, Timeline
from zerver.http.claims import Claims, lease_of, open_claims
from zerver.journal import Disk, open_memory_journal
from zerver.runtime import Claim, MemoryReceipts, Receipts, Result, Runtime, open_runtime, receipts_capability
from zerver.runtime.receipts import LEASE, LONGEST_LEASE


@step
def pay() -> Done:
    return Done({"paid": True})


def app_in(store: Receipts) -> App:
    @asynccontextmanager
    async def open_receipts() -> AsyncGenerator[Receipts, None]:
        yield store

    app = App(capabilities=[receipts_capability(open_receipts)])
    app.route("POST", "/pay", Flow("pay", [pay], idempotency="required", durability="sync"))
    return app


@asynccontextmanager
async def opened(store: Receipts) -> AsyncGenerator[tuple[Runtime, Claims], None]:
    async with (
        open_memory_journal(Disk()) as journal,
        open_runtime(app_in(store), journal=journal) as runtime,
        open_claims(runtime, pytest.fail) as claims,
    ):
        yield runtime, claims


def ended(kinds: Sequence[str], ending: Ending, run_id: str = "req_dead") -> Result:
    """A run of another process, as it ends here."""
    details = {t.KEYED: ("claimed", ""), t.ENDED: ending}
    records = [(kind, at, "pay", details.get(kind)) for at, kind in enumerate(kinds)]
    return Result(Timeline(run_id, "pay", "1", "default", "default", records), ending)


CARRIED_ON = (t.RECEIVED, t.KEYED, t.RECOVERED, t.ENDED)


async def test_the_answer_of_a_run_that_was_carried_on_is_there_for_whoever_asks_again() -> None:
    store = MemoryReceipts()
    await store.claim(Claim(b"p", "req_dead", b"", b"", 0), LONGEST_LEASE)
    async with opened(store) as (runtime, _):
        for observe in runtime.telling.observers:
            observe(ended(CARRIED_ON, Ending("done", {"paid": True})))
        await wait_all_tasks_blocked()
        receipt = await store.find(b"p")
    assert receipt is not None
    assert receipt.answer is not None
    assert (receipt.answer.status, receipt.answer.body) == (200, b'{"paid":true}')


async def test_a_run_that_was_carried_on_and_undone_frees_its_key() -> None:
    store = MemoryReceipts()
    await store.claim(Claim(b"p", "req_dead", b"", b"", 0), LONGEST_LEASE)
    async with opened(store) as (runtime, _):
        for observe in runtime.telling.observers:
            observe(ended(CARRIED_ON, Ending("cancelled", reason="its process died")))
        await wait_all_tasks_blocked()
        assert await store.find(b"p") is None


@pytest.mark.parametrize("without", [t.KEYED, t.RECOVERED])
async def test_runs_that_have_somebody_who_answers_are_left_alone(without: str) -> None:
    store = MemoryReceipts()
    await store.claim(Claim(b"p", "req_dead", b"", b"", 0), LONGEST_LEASE)
    async with opened(store) as (runtime, claims):
        for observe in runtime.telling.observers:
            observe(ended([kind for kind in CARRIED_ON if kind != without], Ending("done")))
        await wait_all_tasks_blocked()
        receipt = await store.find(b"p")
        assert receipt is not None
        assert receipt.answer is None
        assert claims.statistics().held == 0


def test_a_run_that_can_be_carried_on_has_the_longer_lease() -> None:
    assert lease_of(Flow("a", [pay])) == LEASE
    assert lease_of(Flow("a", [pay], durability="sync")) == LONGEST_LEASE


async def test_each_claim_is_renewed_with_its_own_lease(autojump_clock: MockClock) -> None:
    store = MemoryReceipts()
    async with opened(store) as (_, claims):
        for run_id, place, lease in (("a", b"a", LEASE), ("b", b"b", LONGEST_LEASE)):
            await store.claim(Claim(place, run_id, b"", b"", 0), lease)
            claims.hold(run_id, lease)
        await trio.sleep(2 * LONGEST_LEASE)
        assert [await store.find(place) is not None for place in (b"a", b"b")] == [True, True]
        claims.drop("a")
        claims.drop("b")
        await trio.sleep(LEASE + 1)
        assert [await store.find(place) is not None for place in (b"a", b"b")] == [False, True]
