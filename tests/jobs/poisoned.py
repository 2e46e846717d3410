"""A job that kills: run as `python -m tests.jobs.poisoned FOLDER LIFE`, it is one life of a worker, which asks for the
jobs, takes over from the life before, and works until all are over, or until the process is ended by one of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import trio

from zerver import App, Done, Flow, Slot, step
from zerver.effects import queue
from zerver.jobs import WorkerSettings, jobs_capability, open_worker, order
from zerver.jobs.capability import desk_of
from zerver.jobs.places import open_sqlite_jobs
from zerver.jobs.port import FINAL, Wanted
from zerver.runtime import open_runtime

JOBS = 20

#: Neither the first nor the last of those that are taken at once.
POISON = 8

#: What the process ends with when the poison ends it.
KILLED = 77

Number = Annotated[int, Slot("number")]


@step
def swallow(number: Number) -> Done:
    if number == POISON:
        os._exit(KILLED)
    return Done(number)


SWALLOW = Flow("swallow", [swallow], takes=[Number])


async def live(folder: Path, life: int) -> None:
    app = App(capabilities=[jobs_capability(lambda: open_sqlite_jobs(folder / "jobs.db"))])
    app.job(SWALLOW)
    with trio.fail_after(60):
        async with open_runtime(app) as runtime:
            store = desk_of(runtime).store
            await store.renew(f"life {life - 1}", 0.0)
            for number in range(JOBS):
                await order(runtime, queue.enqueue(SWALLOW, {"number": number}), key=str(number))
            async with open_worker(runtime, WorkerSettings(owner=f"life {life}", lease=10.0)):
                while any(job.state not in FINAL for job in await store.search(Wanted())):
                    await trio.sleep(0.002)


if __name__ == "__main__":
    trio.run(live, Path(sys.argv[1]), int(sys.argv[2]))
