"""procrastinate in a process of its own: orders and works on jobs that do nothing. Arguments: the database."""

import asyncio
import logging
import sys
import time
from pathlib import Path

import procrastinate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _peer import Line

logging.disable(logging.WARNING)
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=sys.argv[1], max_size=20))


@app.task(queue="bench")
async def nothing(number: int) -> None:
    pass


@app.task(queue="ordered")
async def ordered(number: int) -> None:
    pass


async def order(count: int, at_once: int) -> None:
    left = iter(range(count))

    async def client() -> None:
        for number in left:
            await ordered.defer_async(number=number)

    await asyncio.gather(*(client() for _ in range(at_once)))


async def main() -> None:
    line = Line()
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        line.say({})
        for asked in line.questions():
            count, at_once = asked["count"], asked["at_once"]
            if asked["task"] == "work":
                await nothing.batch_defer_async(*({"number": number} for number in range(count)))
            began = time.perf_counter()
            if asked["task"] == "one":
                await order(count, at_once)
            elif asked["task"] == "bulk":
                for first in range(0, count, at_once):
                    await ordered.batch_defer_async(*({"number": first + number} for number in range(at_once)))
            else:
                await app.run_worker_async(
                    queues=["bench"], wait=False, concurrency=at_once, install_signal_handlers=False
                )
            line.say({"seconds": time.perf_counter() - began})


asyncio.run(main())
