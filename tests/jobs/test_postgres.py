"""The store of jobs in a real PostgreSQL: the port's promises; and workers of other processes hear of orders."""

from __future__ import annotations

from functools import partial

import trio

from zerver.jobs.places import open_postgres_jobs
from zerver.jobs.port import Order
from zerver.sql import open_postgres
from zerver.sql.enqueueing import CHANNEL
from zerver.testing.jobs import check_jobs


async def test_kit(conninfo: str) -> None:
    await check_jobs(partial(open_postgres_jobs, conninfo))


async def test_who_orders_and_leaves_has_told_others(conninfo: str) -> None:
    async with open_postgres(conninfo) as driver, driver.listen(CHANNEL) as listener:
        async with open_postgres_jobs(conninfo) as store:
            await store.order([Order("job", "flow")])
        with trio.fail_after(30):
            assert (await listener.__anext__()).channel == CHANNEL
