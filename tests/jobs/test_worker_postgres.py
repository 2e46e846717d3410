"""Two workers share one PostgreSQL: each job is done once, and is ordered with the app's own writes."""

from __future__ import annotations

from typing import Annotated

from tests.jobs.working import until
from zerver import App, Done, Flow, Slot, step
from zerver.effects import queue, sql
from zerver.jobs import WorkerSettings, jobs, open_worker
from zerver.runtime import open_runtime
from zerver.sql import postgres

Number = Annotated[int, Slot("number")]

SCHEMA = "create table if not exists marks (number integer not null)"


@step
async def mark(number: Number) -> Done:
    await sql.execute("insert into marks values (?)", number)
    return Done({"number": number + 1})


MARK = Flow("mark", [mark], takes=[Number])


@step
async def place() -> Done:
    _, ids = await sql.transaction(
        sql.execute("insert into marks values (0)"),
        queue.enqueue_many(MARK, [{"number": number} for number in range(1, 41)]),
    )
    (_, chained) = await queue.chain(queue.enqueue(MARK, {"number": 41}), queue.enqueue(MARK))
    return Done([*ids, chained])


@step
async def count() -> Done:
    return Done(await sql.fetch_all(int, "select number from marks order by number"))


PLACE, COUNT = Flow("place", [place]), Flow("count", [count])


async def test_each_job_is_done_once_by_one_of_two_workers(conninfo: str) -> None:
    def app() -> App:
        made = App(capabilities=[postgres(conninfo, schema=SCHEMA), jobs()])
        made.job(MARK, queue="marks")
        made.queue("marks", limit=6)
        return made

    async with (
        open_runtime(app()) as one,
        open_worker(one, WorkerSettings(owner="one", seats=4)) as first,
        open_runtime(app()) as two,
        open_worker(two, WorkerSettings(owner="two", seats=4)) as second,
    ):
        for job_id in (await one.run(PLACE)).unwrap():
            await until(two, job_id, "done", seconds=60)
        assert (await one.run(COUNT)).unwrap() == [*range(43)]
        assert first.statistics().done + second.statistics().done == 42
