"""pgqueuer in a process of its own: orders and works on jobs that do nothing. Arguments: the database, and "plain" for
a worker with the batches and bounds that pgqueuer has if it is told nothing.
"""

import asyncio
import logging
import sys
import time
from pathlib import Path

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.domain.types import QueueExecutionMode
from pgqueuer.models import Job
from pgqueuer.queries import Queries

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _peer import Line

logging.disable(logging.WARNING)
PLAIN = sys.argv[2:] == ["plain"]


async def order(queries: Queries, count: int, at_once: int) -> None:
    left = iter(range(count))

    async def client() -> None:
        for number in left:
            await queries.enqueue("ordered", b"%d" % number)

    await asyncio.gather(*(client() for _ in range(at_once)))


async def fill(queries: Queries, name: str, count: int) -> None:
    await queries.enqueue([name] * count, [b"%d" % number for number in range(count)], [0] * count)


async def work(pool: asyncpg.Pool, count: int, at_once: int) -> float:
    """Seconds that so many jobs took, from the first worker's start to the end of the last job's function."""
    queue = PgQueuer.from_asyncpg_pool(pool)
    done = 0

    @queue.entrypoint("bench")
    async def nothing(job: Job) -> None:
        nonlocal done
        done += 1

    began = time.perf_counter()
    bounds = {} if PLAIN else {"batch_size": at_once, "max_concurrent_tasks": 2 * at_once}
    await queue.qm.run(mode=QueueExecutionMode.drain, **bounds)
    if done != count:
        raise RuntimeError(f"{done} of {count} jobs were done")
    return time.perf_counter() - began


async def main() -> None:
    line = Line()
    said = dict(part.split("=", 1) for part in sys.argv[1].split())
    async with asyncpg.create_pool(
        host=said["host"], port=int(said["port"]), user=said["user"], database=said["dbname"], max_size=20
    ) as pool:
        queries = Queries.from_asyncpg_pool(pool)
        await queries.install()
        line.say({})
        for asked in line.questions():
            count, at_once = asked["count"], asked["at_once"]
            if asked["task"] == "work":
                await fill(queries, "bench", count)
            began = time.perf_counter()
            took = None
            if asked["task"] == "one":
                await order(queries, count, at_once)
            elif asked["task"] == "bulk":
                for _ in range(0, count, at_once):
                    await fill(queries, "ordered", at_once)
            else:
                took = await work(pool, count, at_once)
            line.say({"seconds": took or time.perf_counter() - began})


asyncio.run(main())
