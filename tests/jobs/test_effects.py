"""What a step asks for with `zerver.effects.queue` is there once, on its own or with the rest of its run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
import trio

from tests.jobs.working import SEND, Mail, an_app, at_work, until
from zerver import App, Done, Fail, Flow, Slot, step
from zerver.effects import queue, sql
from zerver.errors import DefinitionError, RunFailed
from zerver.http import Body
from zerver.jobs import Unique, enqueue, jobs, order
from zerver.jobs.capability import desk_of
from zerver.jobs.memory import JobDisk
from zerver.jobs.port import Job, Wanted
from zerver.runtime import open_runtime
from zerver.sql import sqlite
from zerver.testing import play

# ---- one job --------------------------------------------------------------------------------


def asking(effect: Any, name: str = "ask") -> Flow:
    @step
    async def ask() -> Done:
        return Done(await effect)

    return Flow(name, [ask])


async def asked(effect: Any, **options: Any) -> tuple[Any, list[Job], JobDisk]:
    """What the step got, and the jobs that are there."""
    disk = JobDisk()
    app = an_app(disk, SEND, **options)
    async with open_runtime(app) as runtime:
        got = (await runtime.run(asking(effect), tenant="acme")).unwrap()
        return got, sorted(await desk_of(runtime).store.search(Wanted(), 9999), key=lambda job: job.seq), disk


async def test_a_job_is_its_runs_tenants_and_in_its_trace(autojump_clock: object) -> None:
    job_id, (job,), _ = await asked(queue.enqueue(SEND, Mail("a")))
    assert (job.job_id, job.flow, job.body, job.tenant) == (job_id, "send", '{"to":"a"}', "acme")
    assert job.parent.startswith("00-")


async def test_what_the_effect_says_wins_over_the_declaration(autojump_clock: object) -> None:
    _, (job,), _ = await asked(
        queue.enqueue("send", None, priority="interactive", tenant="other", attempts=3), attempts=7, queue="mail"
    )
    assert (job.priority, job.tenant, job.attempts, job.queue) == ("interactive", "other", 3, "mail")
    _, (job,), _ = await asked(queue.enqueue("send"), attempts=7, priority="default")
    assert (job.priority, job.tenant, job.attempts, job.queue) == ("default", "acme", 7, "default")


async def test_a_job_waits_for_its_time(autojump_clock: object) -> None:
    _, (job,), disk = await asked(queue.enqueue(SEND, delay=90))
    assert job.state == "scheduled"
    assert abs(job.at_unix_ns - disk.wall_ns() - 90e9) < 1e9
    at = datetime(2040, 1, 1, tzinfo=UTC)
    _, (job,), _ = await asked(queue.enqueue(SEND, at=at))
    assert job.at_unix_ns == at.timestamp() * 1e9


async def test_a_delayed_job_runs_then(autojump_clock: object) -> None:
    async with at_work(an_app(JobDisk(), SEND)) as (runtime, _):
        began = trio.current_time()
        await until(runtime, await enqueue(runtime, SEND, Mail("a"), delay=600), "done")
        assert 600 <= trio.current_time() - began < 602


async def test_the_same_effect_asked_for_again_is_the_same_job(autojump_clock: object) -> None:
    async with open_runtime(an_app(JobDisk(), SEND)) as runtime:
        first = await enqueue(runtime, SEND, Mail("a"), key="nightly 1")
        assert await enqueue(runtime, SEND, Mail("a"), key="nightly 1") == first
        assert await enqueue(runtime, SEND, Mail("a"), key="nightly 2") != first
        assert len(await desk_of(runtime).store.search(Wanted())) == 2


async def test_two_effects_of_one_step_are_two_jobs(autojump_clock: object) -> None:
    @step
    async def ask() -> Done:
        return Done([await queue.enqueue(SEND, Mail("a")), await queue.enqueue(SEND, Mail("a"))])

    async with open_runtime(an_app(JobDisk(), SEND)) as runtime:
        one, two = (await runtime.run(Flow("ask", [ask]))).unwrap()
        assert one != two


@pytest.mark.parametrize(
    ("unique", "others"),
    [
        (Unique(), {"same": True, "body": False, "tenant": False}),
        (Unique(by=("flow",)), {"same": True, "body": True, "tenant": True}),
        (Unique(by=("flow", "tenant")), {"same": True, "body": True, "tenant": False}),
        ("key", {"same": True, "body": True, "tenant": False}),
    ],
)
async def test_of_jobs_that_are_alike_there_is_one(
    unique: Any, others: dict[str, bool], autojump_clock: object
) -> None:
    async with open_runtime(an_app(JobDisk(), SEND)) as runtime:
        first = await enqueue(runtime, SEND, Mail("a"), unique=unique)
        again = {
            "same": await enqueue(runtime, SEND, Mail("a"), unique=unique),
            "body": await enqueue(runtime, SEND, Mail("b"), unique=unique),
            "tenant": await enqueue(runtime, SEND, Mail("a"), unique=unique, tenant="other"),
        }
        assert {what: job_id == first for what, job_id in again.items()} == others


async def test_a_unique_job_that_is_over_makes_room_unless_its_period_holds(autojump_clock: object) -> None:
    async with at_work(an_app(JobDisk(), SEND, unique=True)) as (runtime, _):
        first = await enqueue(runtime, SEND, Mail("a"))
        await until(runtime, first, "done")
        assert await enqueue(runtime, SEND, Mail("a")) != first
        hourly = await enqueue(runtime, SEND, Mail("h"), unique=Unique(period=3600))
        await until(runtime, hourly, "done")
        assert await enqueue(runtime, SEND, Mail("h"), unique=Unique(period=3600)) == hourly
        await trio.sleep(3600)
        assert await enqueue(runtime, SEND, Mail("h"), unique=Unique(period=3600)) != hourly


async def test_a_run_that_fails_can_take_its_job_back(autojump_clock: object) -> None:
    @step
    async def ask() -> None:
        await queue.enqueue(SEND, Mail("a")).compensate(queue.cancel)

    @step
    async def fail() -> Done | Fail:
        return Fail.conflict("it")

    async with open_runtime(an_app(JobDisk(), SEND)) as runtime:
        with pytest.raises(RunFailed):
            (await runtime.run(Flow("ask", [ask, fail]))).unwrap()
        (job,) = await desk_of(runtime).store.search(Wanted())
        assert job.state == "cancelled"
        assert "of flow 'ask' cancelled it" in job.error


# ---- several --------------------------------------------------------------------------------


@step
async def add(number: Annotated[int, Slot("number")]) -> Done:
    return Done({"number": number + 1})


ADD = Flow("add", [add], takes=[Annotated[int, Slot("number")]])


@step
async def collect(all_: Annotated[list[dict[str, int]], Body()]) -> Done:
    return Done([one["number"] for one in all_])


COLLECT = Flow("collect", [collect])


async def test_many_are_one_order(autojump_clock: object) -> None:
    ids, jobs, _ = await asked(queue.enqueue_many(SEND, [Mail(str(n)) for n in range(5000)]))
    assert ids == [job.job_id for job in jobs]
    assert len(set(ids)) == 5000


async def test_a_chain_hands_results_on(autojump_clock: object) -> None:
    async with at_work(an_app(JobDisk(), ADD)) as (runtime, _):
        one, two, three = await order(
            runtime, queue.chain(queue.enqueue(ADD, {"number": 1}), queue.enqueue(ADD), queue.enqueue(ADD))
        )
        assert (await until(runtime, three, "done")).result == '{"number":4}'
        assert [(await until(runtime, job_id, "done")).body for job_id in (one, two)] == [
            '{"number":1}',
            '{"number":2}',
        ]


async def test_a_join_gets_the_results_of_all_in_their_order(autojump_clock: object) -> None:
    async with at_work(an_app(JobDisk(), ADD, COLLECT)) as (runtime, _):
        members = [queue.enqueue(ADD, {"number": n}, delay=10 - n) for n in range(10)]
        *_, last = await order(runtime, queue.fan_out(members, then=queue.enqueue(COLLECT)))
        assert (await until(runtime, last, "done")).result == "[1,2,3,4,5,6,7,8,9,10]"


async def test_who_waits_for_a_job_that_is_dead_goes_on_waiting(autojump_clock: object) -> None:
    @step
    def never() -> Done | Fail:
        return Fail.invalid("it")

    flow = Flow("never", [never])
    async with at_work(an_app(JobDisk(), flow, SEND)) as (runtime, _):
        one, two = await order(runtime, queue.chain(queue.enqueue(flow), queue.enqueue(SEND)))
        await until(runtime, one, "dead")
        await trio.sleep(1000)
        assert (await until(runtime, two, "waiting")).awaits == 1


async def test_progress_is_the_jobs_and_nothing_outside_of_one(autojump_clock: object) -> None:
    flow = asking(queue.progress(3, 10, "a third"))
    async with at_work(an_app(JobDisk(), flow)) as (runtime, _):
        assert (await runtime.run(flow)).ok
        job = await until(runtime, await enqueue(runtime, flow), "done")
        assert (job.done, job.total, job.note) == (3, 10, "a third")


# ---- with the app's own writes --------------------------------------------------------------


SCHEMA = "create table if not exists orders (number integer primary key)"


@step
async def place(number: Annotated[int, Slot("number")]) -> Done:
    made = await sql.transaction(
        sql.execute("insert into orders values (?)", number),
        queue.enqueue(ADD, {"number": number}),
        queue.fan_out([queue.enqueue(ADD, {"number": n}) for n in (1, 2)], then=queue.enqueue(COLLECT)),
    )
    return Done(made)


PLACE = Flow("place", [place], takes=[Annotated[int, Slot("number")]])


async def test_a_job_is_there_if_and_only_if_what_was_written_with_it_is(tmp_path: Path) -> None:
    app = App(capabilities=[sqlite(tmp_path / "shop.db", schema=SCHEMA), jobs()])
    app.job(ADD)
    app.job(COLLECT)
    async with at_work(app) as (runtime, _):
        count, one, several = (await runtime.run(PLACE, given={"number": 7})).unwrap()
        assert count == 1
        assert len(several) == 3
        assert (await until(runtime, one, "done", seconds=20)).result == '{"number":8}'
        assert (await until(runtime, several[-1], "done", seconds=20)).result == "[2,3]"
        before = len(await desk_of(runtime).store.search(Wanted()))
        result = await runtime.run(PLACE, given={"number": 7})  # there is such an order
        assert result.status == "failed"
        assert len(await desk_of(runtime).store.search(Wanted())) == before


async def test_jobs_of_another_database_are_no_members_of_a_transaction(tmp_path: Path) -> None:
    app = App(capabilities=[sqlite(tmp_path / "shop.db", schema=SCHEMA), jobs(f"sqlite:///{tmp_path}/jobs.db")])
    app.job(ADD)
    app.job(COLLECT)
    async with open_runtime(app) as runtime:
        result = await runtime.run(PLACE, given={"number": 7})
        assert "jobs are not kept in its database" in str(result.cause)
        assert (await desk_of(runtime).store.search(Wanted())) == []


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: queue.enqueue(""), "which is no flow"),
        (lambda: queue.enqueue(3), "which is no flow"),  # type: ignore[arg-type] # what is tested
        (lambda: queue.enqueue("f", delay=-1), "delay=-1"),
        (lambda: queue.enqueue("f", at=datetime(2026, 1, 1)), "needs a time zone"),
        (lambda: queue.enqueue("f", at=datetime.now(UTC) + timedelta(1), delay=3), "give one of them"),
        (lambda: queue.enqueue("f", priority="high"), "priority='high'"),  # type: ignore[arg-type] # the same
        (lambda: queue.enqueue("f", attempts=0), "attempts=0"),
        (queue.chain, "no jobs"),
        (lambda: queue.fan_out([], then=queue.enqueue("f")), "no jobs"),
        (lambda: queue.chain(queue.cancel("x")), "was given 'queue.cancel'"),  # type: ignore[arg-type] # the same
        (lambda: queue.chain(queue.enqueue("f").optional()), "a policy or compensation of its own"),  # type: ignore[arg-type] # the same
        (lambda: Unique(by=("owner",)), "choose from"),  # type: ignore[arg-type] # the same
    ],
)
def test_what_cannot_work_is_said_where_it_is_asked_for(make: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match="(?s)" + says):
        make()


async def test_an_unknown_flow_or_queue_is_refused_when_it_is_enqueued(autojump_clock: object) -> None:
    async with open_runtime(an_app(JobDisk(), SEND)) as runtime:
        with pytest.raises(DefinitionError, match="flow 'sned' is no job of this app; known are send"):
            await enqueue(runtime, "sned")
        with pytest.raises(DefinitionError, match="queue 'mial' is not declared; known are default"):
            await enqueue(runtime, SEND, queue="mial")
        with pytest.raises(DefinitionError, match="another one waits for it"):
            await order(runtime, queue.chain(queue.enqueue(SEND, unique="x"), queue.enqueue(SEND)))


@step
async def ask_for_a_stranger() -> Done:
    return Done(await queue.enqueue("stranger"))


STRANGE = Flow("strange", [ask_for_a_stranger])


@step
async def ask_for_mail() -> Done:
    return Done(await queue.enqueue(SEND, {"to": "a"}))


ASKS = Flow("asks", [ask_for_mail])


async def test_an_unknown_flow_that_stands_in_the_code_is_found_when_the_app_opens(tmp_path: Path) -> None:
    app = an_app(JobDisk(), SEND)
    app.route("POST", "/strange", STRANGE)
    with pytest.raises(DefinitionError, match="step 'ask_for_a_stranger' enqueues flow 'stranger'"):
        async with open_runtime(app):
            pass
    app = an_app(JobDisk())
    app.route("POST", "/", ASKS)
    with pytest.raises(DefinitionError, match="enqueues flow 'send', which is no job of this app"):
        async with open_runtime(app):
            pass
    app.job(SEND)
    async with open_runtime(app):
        pass


def test_an_app_without_jobs_says_what_to_add() -> None:
    app = App()
    app.job(SEND)
    app.route("POST", "/", ASKS)
    with pytest.raises(DefinitionError, match=r"(?s)nothing handles it.*zerver\.jobs\.jobs\(\)"):
        app.check()


def test_a_step_that_enqueues_is_played_as_any_other() -> None:
    played = play(ask_for_mail, effects={queue.enqueue: "j1"})
    assert played.answer == Done("j1")
    (effect,) = played.asked
    assert effect.args == ("send", '{"to":"a"}')


async def test_a_flow_that_enqueues_runs_in_a_scripted_world(autojump_clock: object) -> None:
    app = App()
    async with open_runtime(app, handlers={"queue.enqueue": lambda *args, **options: scripted_id(*args)}) as runtime:
        assert (await runtime.run(ASKS)).unwrap() == "id of send"


async def scripted_id(flow: str, body: str | None) -> str:
    return f"id of {flow}"
