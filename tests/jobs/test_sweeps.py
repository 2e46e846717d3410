"""Whoever uses jobs may be cancelled at any moment: no job is left running, and none is lost."""

from __future__ import annotations

import pytest
import trio

from tests.jobs.working import an_app, at_work
from zerver import INJECTED, Done, Flow, IdempotencyKey, effect, step
from zerver.effects import queue
from zerver.jobs import order
from zerver.jobs.memory import JobDisk
from zerver.testing import cancel_sweep

CHARGED: dict[str, int] = {}  # by key: 1 for a charge that stands, 0 for one that was undone


@effect(kind="bank.charge", access="write")
async def charge(*, key: IdempotencyKey = INJECTED) -> str:
    await trio.lowlevel.checkpoint()
    CHARGED[key] = 1
    return key


@effect(kind="bank.refund", access="write")
async def refund(charged: str, *, key: IdempotencyKey = INJECTED) -> None:
    await trio.lowlevel.checkpoint()
    CHARGED[charged] = 0


@effect(kind="bank.find", access="read")
async def find(key: str) -> str | None:
    await trio.lowlevel.checkpoint()
    return key if key in CHARGED else None


@effect(kind="world.wait", access="read")
async def a_while() -> None:
    await trio.sleep(1)


@step
async def pay() -> Done:
    await charge().compensate(refund, resolve=find)
    await a_while()
    return Done()


PAY = Flow("pay", [pay])

DISKS: list[JobDisk] = []


async def working() -> None:
    """Two jobs, of which one is begun when the other has ended."""
    CHARGED.clear()
    disk = JobDisk()
    DISKS[:] = [disk]
    app = an_app(disk, PAY)
    async with at_work(app, seats=1, owner="one") as (runtime, worker):
        await order(runtime, queue.chain(queue.enqueue(PAY), queue.enqueue(PAY)))
        while worker.statistics().done < 2:
            await trio.sleep(0.5)


def nothing_is_left() -> None:
    (disk,) = DISKS
    states = [row.job.state for row in disk.rows.values()]
    assert len(states) in (0, 2), "a chain is there whole, or not at all"
    assert "running" not in states, states
    done = states.count("done")
    assert sum(CHARGED.values()) == done, (CHARGED, states)
    attempts = [row.job.attempt for row in disk.rows.values()]
    assert attempts == [int(state == "done") for state in states], "what was cut has cost no attempt"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_program_with_a_worker_can_be_cancelled_at_any_moment(seed: int) -> None:
    report = cancel_sweep(working, check=nothing_is_left, seed=seed, max_points=60)
    assert report.points >= 30
