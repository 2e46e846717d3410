"""Ten thousand connections and cancellations later, every count is back where it began."""

import random
from functools import partial
from typing import Annotated

import trio

from zerver import App, Done, Flow, Slot, Target, effect, join, parallel, step
from zerver.effects import sql
from zerver.http import http_client, open_http_client
from zerver.runtime import Runtime, open_runtime
from zerver.serve import Serving, serve
from zerver.sql import sqlite
from zerver.testing import no_leaks

CONNECTIONS = 10_000
AT_ONCE = 100

Count = Annotated[int, Slot("count")]
committed: set[int] = set()


@effect(kind="soak.read", access="read")
async def read(seconds: float) -> int:
    await trio.sleep(seconds)
    return 1


@effect(kind="soak.write", access="write")
async def write(number: int, seconds: float) -> int:
    await trio.sleep(seconds)
    committed.add(number)
    return number


@effect(kind="soak.undo", access="write")
async def undo(number: int) -> None:
    await trio.lowlevel.checkpoint()
    committed.discard(number)


numbers = iter(range(10**9))


@step
async def first() -> Count:
    a, b = await join.all(read(0.0005), join.hedge(read(0.001), after=0.0005))
    await sql.execute("insert into seen (n) values (?)", a)
    return a + b


@step
async def left(count: Count) -> None:
    number = next(numbers)
    await write(number, 0.001).compensate(lambda _: undo(number), by_key=lambda _: undo(number))


@step
async def right(count: Count) -> None:
    await read(0.001).optional()


@step
def end(count: Count) -> Done:
    return Done({"count": count})


FLOW = Flow("soak", [first, parallel(left, right), end], deadline=5.0, on_disconnect="cancel")


def make_app() -> App:
    app = App(
        capabilities=[sqlite(":memory:", schema="create table seen (n integer)"), http_client()],
        targets={"soak": Target(bulkhead=40)},
    )
    app.route("GET", "/soak", FLOW)
    return app


def check_at_rest(runtime: Runtime) -> None:
    statistics = runtime.statistics()
    assert statistics.running == 0
    assert statistics.admission.running == 0
    assert statistics.admission.queued == 0
    assert statistics.unresolved == 0
    assert [(t.at_once, t.waiting) for t in statistics.targets] == [(0, 0)] * len(statistics.targets)


async def test_ten_thousand_cancelled_runs_leave_nothing_behind() -> None:
    rng = random.Random(1)
    committed.clear()
    finished: list[int] = []
    with no_leaks():
        async with open_runtime(make_app(), seed=1) as runtime:
            turns = iter(range(CONNECTIONS))

            async def caller() -> None:
                for _ in turns:
                    with trio.move_on_after(rng.choice([0.0, rng.uniform(0.0, 0.02), 5.0])):
                        result = await runtime.run(FLOW)
                        finished.append(result.ok)

            async with trio.open_nursery() as nursery:
                for _ in range(AT_ONCE):
                    nursery.start_soon(caller)
            check_at_rest(runtime)
    assert len(committed) == sum(finished), "what a run that did not end well had written, it has undone"


async def test_ten_thousand_connections_leave_nothing_behind() -> None:
    rng = random.Random(2)
    with no_leaks():
        async with trio.open_nursery() as nursery:
            serving: Serving = await nursery.start(partial(serve, make_app(), seed=2))
            url = f"{serving.addresses[0]}/soak"
            turns = iter(range(CONNECTIONS))
            async with open_http_client(allow_private=True) as client:

                async def visitor() -> None:
                    for _ in turns:
                        with trio.move_on_after(rng.choice([0.0, rng.uniform(0.0, 0.02), 5.0])):
                            # A connection of its own each time: Connection: close.
                            await client.request("GET", url, headers={"Connection": "close"})

                async with trio.open_nursery() as visitors:
                    for _ in range(20):
                        visitors.start_soon(visitor)
                pool = client.statistics()
                assert (pool.busy, pool.waiting) == (0, 0)
            await serving.drain(5.0)
            check_at_rest(serving.runtime)
            assert serving.server.statistics().busy == 0
            nursery.cancel_scope.cancel()
