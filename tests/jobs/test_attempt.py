"""Whatever a job's run comes to, it is that job's end: what cannot be written or said ends no worker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.jobs.working import SEND, Mail, an_app, at_work, until
from zerver import Done, Flow, step
from zerver.jobs import enqueue
from zerver.jobs.memory import JobDisk


class Mute(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)

#: What a step gives or raises, and what is told of it.
ODD = {
    "half a character": ("\ud800", "what it came to cannot be kept: value: 'utf-8' codec can't encode"),
    "endless": (ENDLESS, "what it came to cannot be kept: maximum recursion depth"),
    "not to be shown": ({"it": Mute()}, "what it came to cannot be kept: no words"),
    "raised, and without words": (Mute(), "Mute: it cannot say what it is"),
}


@pytest.mark.parametrize("name", ODD)
async def test_what_cannot_be_told_ends_its_job_and_no_other(name: str, autojump_clock: object) -> None:
    value, told = ODD[name]

    @step
    def act() -> Done:
        if isinstance(value, Exception):
            raise value
        return Done(value)

    odd = Flow("odd", [act])
    async with at_work(an_app(JobDisk(), odd, SEND, attempts=1)) as (runtime, worker):
        job = await until(runtime, await enqueue(runtime, odd), "dead")
        assert told in job.error
        await until(runtime, await enqueue(runtime, SEND, Mail("a@b")), "done")
        assert (worker.statistics().dead, worker.statistics().done) == (1, 1)
