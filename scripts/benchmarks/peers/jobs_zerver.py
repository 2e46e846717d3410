"""Zerver's jobs in a process of their own: ordered through the store, done by a worker. Arguments: the database.

The flow of a job does nothing; it is a run as any other, with its admission and its timeline.
"""

import sys
import time
from itertools import count as numbers
from pathlib import Path
from typing import Annotated

import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _peer import Line

from zerver import AdmissionPolicy, App, Done, Flow, step
from zerver.http import Body
from zerver.jobs import WorkerSettings, jobs, open_worker
from zerver.jobs.capability import desk_of
from zerver.jobs.port import JobStore, Order
from zerver.runtime import open_runtime
from zerver.sql import postgres

serial = numbers()


@step
def nothing(number: Annotated[int, Body()]) -> Done:
    return Done(None)


BENCH, ORDERED = Flow("bench", [nothing]), Flow("ordered", [nothing])
app = App("jobs", capabilities=[postgres(sys.argv[1]), jobs()], admission=AdmissionPolicy(running=1000))
app.job(BENCH, queue="bench")
app.job(ORDERED, queue="ordered")


def one(flow: str) -> Order:
    number = next(serial)
    return Order(f"job{number}", flow, queue=flow, body=str(number))


async def order(store: JobStore, count: int, at_once: int) -> None:
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            await store.order([one("ordered")])

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(client)


async def main() -> None:
    line = Line()
    async with open_runtime(app) as runtime:
        store = desk_of(runtime).store
        line.say({})
        for asked in line.questions():
            count, at_once = asked["count"], asked["at_once"]
            if asked["task"] == "work":
                await store.order([one("bench") for _ in range(count)])
            began = time.perf_counter()
            if asked["task"] == "one":
                await order(store, count, at_once)
            elif asked["task"] == "bulk":
                for _ in range(0, count, at_once):
                    await store.order([one("ordered") for _ in range(at_once)])
            else:
                settings = WorkerSettings(seats=at_once, queues=("bench",))
                async with open_worker(runtime, settings) as worker:
                    while worker.statistics().done < count:  # noqa: ASYNC110  (a worker has no event for that)
                        await trio.sleep(0.002)
                    took = time.perf_counter() - began  # when the last one is settled
                line.say({"seconds": took})
                continue
            line.say({"seconds": time.perf_counter() - began})


trio.run(main)
