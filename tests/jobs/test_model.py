"""The store in SQLite does what the plain one in memory does, whatever is asked of it in whatever order."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import attrs
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zerver.core.priorities import PRIORITIES
from zerver.jobs.memory import open_memory_jobs
from zerver.jobs.places import open_sqlite_jobs
from zerver.jobs.port import STATES, Job, JobStore, Order, QueueRule, Verdict, Wanted

LATER_NS = 3600 * 10**9

#: What of a job is the same in both, though time goes by.
SAME = (
    *("job_id", "seq", "queue", "body", "tenant", "priority", "state", "attempt", "fence", "rescues", "owner"),
    *("run_id", "error", "result", "awaits", "unique", "done", "settled"),
)

numbers = st.integers(0, 5)
queues = st.sampled_from(["one", "two"])
orders = st.builds(
    lambda number, queue, tenant, priority, later, unique: Order(
        *(f"job {number}", "flow", queue, None, tenant, priority, time.time_ns() + LATER_NS if later else 0),
        unique=unique,
    ),
    st.integers(0, 12), queues, st.sampled_from("ab"), st.sampled_from(PRIORITIES), st.booleans(),
    st.sampled_from(["", "", "u"]),
)  # fmt: skip
wanted = st.builds(
    lambda state, queue: Wanted(states=state, queues=queue),
    st.one_of(st.just(()), st.sampled_from(STATES).map(lambda state: (state,))),
    st.one_of(st.just(()), queues.map(lambda queue: (queue,))),
)
verdicts = st.builds(
    Verdict,
    st.sampled_from(["done", "done", "scheduled", "dead", "cancelled", "parked"]),
    st.sampled_from([1, time.time_ns() + LATER_NS]),
    st.sampled_from([None, '"r"']),
    st.sampled_from(["", "error"]),
    st.booleans(),
)
limits = st.one_of(st.none(), st.integers(1, 3))
steps = st.one_of(
    st.tuples(st.just("order"), st.lists(orders, min_size=1, max_size=3, unique_by=lambda order: order.job_id)),
    st.tuples(st.just("fan_out"), st.integers(1, 3), st.integers(0, 99)),
    st.tuples(st.just("take"), st.integers(1, 4), limits, limits),
    st.tuples(st.just("begin"), numbers),
    st.tuples(st.just("settle"), st.lists(st.tuples(numbers, verdicts), max_size=3)),
    st.tuples(st.just("unpark"), numbers, verdicts.filter(lambda verdict: verdict.state != "parked")),
    st.tuples(st.just("die")),
    st.tuples(st.sampled_from(["retry", "cancel", "delete"]), wanted),
    st.tuples(st.just("pause"), queues, st.booleans()),
)


@attrs.define
class Player:
    """Does the steps on one store. taken: jobs as they were when they were taken, the last ones first."""

    store: JobStore
    taken: list[Job] = attrs.Factory(list)

    async def play(self, what: str, *args: Any) -> object:
        """What the store answers."""
        store, job = (
            self.store,
            self.taken[args[0]] if what in ("begin", "unpark") and args[0] < len(self.taken) else None,
        )
        match what, args:
            case "order", (given,):
                return await store.order(given)
            case "fan_out", (number, name):
                members = [Order(f"m {name} {place}", "flow", "one", releases=f"s {name}") for place in range(number)]
                placed = [attrs.evolve(member, place=-place) for place, member in enumerate(members)]
                return await store.order([*placed, Order(f"s {name}", "flow", "two", awaits=number)])
            case "take", (count, limit, per_tenant):
                await store.renew("worker", 600.0)
                found = await store.take("worker", [QueueRule("one", limit, per_tenant), QueueRule("two")], count)
                self.taken[:0] = found
                return [same(one) for one in found]
            case "begin", _ if job is not None:
                try:
                    await store.began(job.job_id, job.fence, f"run {job.job_id} {job.settled}")
                except Exception as error:
                    return type(error)
            case "settle", (chosen,):
                given = [(place, said) for place, said in chosen if place < len(self.taken)]
                by_job = {self.taken[place].job_id: (self.taken[place], said) for place, said in given}
                return await store.settle([(one.job_id, one.fence, said) for one, said in by_job.values()])
            case "unpark", (_, verdict) if job is not None:
                return await store.unpark(f"run {job.job_id} {job.settled}", verdict)
            case "die", _:
                await store.renew("worker", 0.0)
                return sorted(same(one) for one in await store.rescue())
            case (("retry" | "cancel" | "delete"), (which,)):
                reason = ("by hand",) if what == "cancel" else ()
                return await getattr(store, what)(which, *reason)
            case "pause", (queue, paused):
                await store.pause(queue, paused)
        return None


def same(job: Job) -> list[str]:
    return [f"{name}={getattr(job, name)!r}" for name in SAME if name != "seq"]


async def play_both(played: list[Any], place: Path) -> None:
    async with open_memory_jobs() as plain, open_sqlite_jobs(place) as stored:
        players = Player(plain), Player(stored)
        for step in played:
            due, found = [await player.play(*step) for player in players]
            assert found == due, step
            rows = [[same(job) for job in await store.search(Wanted(), 500)] for store in (plain, stored)]
            assert rows[1] == rows[0], step


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, max_size=25))
def test_sqlite_does_what_memory_does(played: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(play_both, played, Path(folder) / "jobs.db")
