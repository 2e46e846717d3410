"""Orders in bulk: whatever text they hold comes back as it was, or is refused; what was ordered before is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerver.errors import NotKeepable
from zerver.jobs.places import open_postgres_jobs, open_sqlite_jobs
from zerver.jobs.port import JobStore, Order, Wanted
from zerver.sql.dialects import POSTGRES

BODIES = [
    '"',
    "\\",
    '\\"',
    '{"a": "b\\n\\""}',
    "{}",
    ",",
    "null",
    "NULL",
    "",
    " ",
    "\t\r\n",
    "ü€😀",
    "'",
    "$1 ? ??",
    None,
]


async def check(store: JobStore) -> None:
    for bodies in (BODIES, BODIES[:-1]):
        orders = [Order(f'{len(bodies)} {body} {{}},"\\', "flow", body=body) for body in bodies]
        assert await store.order(orders) == [order.job_id for order in orders]
        for order in orders:
            job = await store.find(order.job_id)
            assert job is not None
            assert (job.job_id, job.body) == (order.job_id, order.body)
    with pytest.raises(NotKeepable):
        await store.order([Order(f"half {number}", "flow", body="\ud800") for number in range(3)])
    # Some of these are there already: the others are put in, and each has its id.
    again = [Order(f"again {number}", "flow") for number in range(6)]
    await store.order(again[::2])
    assert await store.order(again) == [order.job_id for order in again]
    assert len(await store.search(Wanted(prefix="again"), 50)) == 6
    assert await store.search(Wanted(prefix="half"), 50) == []


async def test_sqlite(tmp_path: Path) -> None:
    async with open_sqlite_jobs(tmp_path / "jobs.db") as store:
        await check(store)


async def test_postgres(conninfo: str) -> None:
    async with open_postgres_jobs(conninfo) as store:
        await check(store)
        with pytest.raises(NotKeepable):
            await store.order([Order(f"zero {number}", "flow", body="a\0b") for number in range(3)])


def test_an_array_is_written_alike_both_ways() -> None:
    texts = [body for body in BODIES if body is not None]
    (quick,), (slow,) = POSTGRES.as_texts([texts]), POSTGRES.as_texts([[*texts, None]])
    assert slow == quick[:-1] + ",null}"
