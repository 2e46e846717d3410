"""What a job came to is told until the store has taken it; of what it cannot keep it is told that, even at the end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from zerver.errors import NotKeepable
from zerver.jobs.memory import JobDisk, MemoryJobs
from zerver.jobs.port import Order, QueueRule, Verdict
from zerver.jobs.seats import Seat
from zerver.jobs.settling import Settling


class Choosy(MemoryJobs):
    """Keeps no result that is "bad"."""

    async def settle(self, verdicts: Sequence[tuple[str, int, Verdict]]) -> list[bool]:
        if any(verdict.result == "bad" for _, _, verdict in verdicts):
            raise NotKeepable("it is bad")
        return await super().settle(verdicts)


@pytest.mark.parametrize("ends", [False, True])
async def test_a_result_that_cannot_be_kept_is_the_end_of_its_job_alone(ends: bool, autojump_clock: object) -> None:
    store, gone = Choosy(JobDisk()), list[Seat]()
    await store.renew("worker", 60.0)
    await store.order([Order(name, "flow") for name in ("bad", "good")])
    settling = Settling(store, lambda _: False, gone.append)
    settling.ends = ends
    for job in await store.take("worker", [QueueRule("default")], 2):
        settling.add(Seat(job, trio.current_time()), Verdict("done", result=job.job_id))
    with trio.move_on_after(60):
        await settling.run()
    jobs = [await store.find(name) for name in ("bad", "good")]
    assert [(job.state, job.error) for job in jobs if job is not None] == [
        ("dead", "what it came to cannot be kept: it is bad"), ("done", ""),
    ]  # fmt: skip
    assert len(gone) == 2


async def test_a_job_that_was_put_back_and_is_begun_elsewhere_is_left_alone(autojump_clock: object) -> None:
    store, gone = MemoryJobs(JobDisk()), list[Seat]()
    await store.renew("worker", 60.0)
    await store.order([Order("job", "flow")])
    (job,) = await store.take("worker", [QueueRule("default")], 1)
    back = Verdict("scheduled", counts=False, ran=False)
    await store.settle([(job.job_id, job.fence, back)])  # the answer is lost, and so it is told again, too late
    (again,) = await store.take("other", [QueueRule("default")], 1)
    assert again.run_id == job.run_id
    await store.began(again.job_id, again.fence, again.run_id)
    settling = Settling(store, lambda _: True, gone.append)
    settling.add(Seat(job, trio.current_time()), back)
    with trio.move_on_after(60):
        await settling.run()
    assert [seat.lost for seat in gone] == [True]
    assert await store.find("job") == again
