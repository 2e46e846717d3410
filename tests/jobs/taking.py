"""A worker process for tests: takes jobs from the store at argv[1] and settles them, until it is killed.

Each job is noted, by a line with its id in the file argv[2], after its verdict was taken: what stands there was done.
"""

from __future__ import annotations

import os
import sys

import trio

from zerver.jobs.places import open_jobs, open_postgres_jobs
from zerver.jobs.port import QueueRule, Verdict


async def main(place: str, notes: str) -> None:
    owner = f"taker-{os.getpid()}"
    opening = open_jobs(place) if "://" in place else open_postgres_jobs(place)
    file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    async with opening as store:
        await store.renew(owner, 600.0)
        print("ready", flush=True)
        while True:
            jobs = await store.take(owner, [QueueRule("default")], 5)
            if not jobs:
                await store.wait()
            held = await store.settle([(job.job_id, job.fence, Verdict("done", result='"r"')) for job in jobs])
            for job, taken in zip(jobs, held, strict=True):
                if taken:
                    os.write(file, f"{job.job_id}\n".encode())


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
