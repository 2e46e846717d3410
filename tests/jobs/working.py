"""A small app with jobs on a disk in memory, for tests of workers: time is the mock clock's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import attrs
import trio

from zerver import App, Done, step
from zerver.core.flows import Flow
from zerver.core.jobs import Order
from zerver.http import Body
from zerver.jobs import Worker, WorkerSettings, jobs_capability, open_worker
from zerver.jobs.capability import desk_of
from zerver.jobs.memory import JobDisk, open_memory_jobs
from zerver.jobs.port import Job
from zerver.runtime import Runtime, open_runtime

LEASE = 10.0


@attrs.frozen
class Mail:
    to: str


@step
async def send(mail: Annotated[Mail, Body()]) -> Done:
    return Done({"sent": mail.to})


SEND = Flow("send", [send])


def an_app(disk: JobDisk, *flows: Flow, **options: Any) -> App:
    """An app whose flows are jobs, kept on this disk. options: of each."""
    app = App(capabilities=[jobs_capability(lambda: open_memory_jobs(disk), disk.wall_ns)])
    for flow in flows:
        app.job(flow, **options)
    return app


@asynccontextmanager
async def at_work(
    app: App, *, seats: int = 16, owner: str = "", queues: Sequence[str] = (), **runtime_options: Any
) -> AsyncIterator[tuple[Runtime, Worker]]:
    settings = WorkerSettings(seats=seats, owner=owner, queues=tuple(queues), lease=LEASE)
    async with open_runtime(app, **runtime_options) as runtime, open_worker(runtime, settings, seed=1) as worker:
        yield runtime, worker


async def until(runtime: Runtime, job_id: str, *states: str, seconds: float = 3600.0) -> Job:
    """The job, once it is in one of these states."""
    store = desk_of(runtime).store
    with trio.fail_after(seconds):
        while True:
            job = await store.find(job_id)
            if job is not None and job.state in states:
                return job
            await trio.sleep(0.05)


def bare_order(job_id: str, flow: str, **options: Any) -> Order:
    """An order as no effect of ours would make it."""
    return Order(job_id, flow, **options)
