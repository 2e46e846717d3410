"""A shop whose mail is sent by jobs, its workers as processes, and its store as the test looks into it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.cli.commands import Server, started
from zerver.jobs.places import open_sqlite_jobs
from zerver.jobs.port import Job, JobStore, Order, Wanted

#: An order and its mail are one write; mail waits for the file "go", and is a line in "sent": to whom, and its key.
SHOP = """
from pathlib import Path as File
from typing import Annotated

import attrs
import trio

from zerver import INJECTED, App, Done, Fail, Flow, IdempotencyKey, effect, step
from zerver.effects import queue, sql
from zerver.http import Body, Path
from zerver.jobs import jobs
from zerver.sql import sqlite


def note(name: str, line: str) -> None:
    with open(name, "a") as file:
        file.write(line + "\\n")


@attrs.frozen
class Mail:
    to: str


@effect(kind="post.wait", access="read")
async def wait(to: str) -> None:
    note("begun", to)
    while not File("go").exists():
        await trio.sleep(0.01)


@effect(kind="post.send", access="write")
async def send(to: str, *, key: IdempotencyKey = INJECTED) -> None:
    note("sent", f"{to} {key}")


@step
async def deliver(mail: Annotated[Mail, Body()]) -> Done | Fail:
    if mail.to == "nobody":
        return Fail.not_found("there is nobody of this name")
    await wait(mail.to)
    await send(mail.to)
    return Done({"sent": mail.to})


@step
async def place(name: Annotated[str, Path()]) -> Done:
    _, job_id = await sql.transaction(
        sql.execute("insert into orders (customer) values (?)", name),
        queue.enqueue(send_mail, Mail(name)),
    )
    return Done(job_id)


@step
def count() -> Done:
    return Done()


send_mail = Flow("send_mail", [deliver])
send_report = Flow("send_report", [deliver])

app = App(
    "shop",
    capabilities=[sqlite("shop.db", schema="create table if not exists orders (customer text)"), jobs()],
)
app.job(send_mail, queue="mail")
app.job(send_report, queue="reports")
app.cron("0 3 * * *", Flow("count", [count]), timezone="Europe/Berlin", name="nightly")
app.route("POST", "/orders/{name}", Flow("order", [place]))

idle = App("idle")


@effect(kind="bank.charge", access="write")
async def charge(*, key: IdempotencyKey = INJECTED) -> None:
    note("charged", key)


@step
async def pay() -> None:
    await charge()


send_parcel = Flow("send_parcel", [pay, deliver], durability="sync")
durable = App("durable", capabilities=[sqlite("shop.db"), jobs()])
durable.job(send_parcel, queue="mail")
"""


#: For those whose worker is killed: a lease that is over soon, and long enough for a machine that is busy.
SHORT_LEASE = {"ZERVER_WORK_LEASE": "3"}


@asynccontextmanager
async def working(
    folder: Path, *options: str, app: str = "shop:app", said: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """`zerver work` on the shop, which is killed if the block leaves it running. said: its environment's variables,
    beside the usual ones.
    """
    (folder / "shop.py").write_text(SHOP)
    async with started(folder, "work", app, *options, said=said) as (worker, announced):
        if not announced.startswith("working on jobs of "):
            raise AssertionError(f"it printed {announced!r} when it was to say what it works on")
        worker.address = announced.partition("; metrics on ")[2].removesuffix("/metrics")
        yield worker


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[JobStore]:
    """The store that the workers have, made if it is missing."""
    async with open_sqlite_jobs(folder / "shop.db") as store:
        yield store


def mail(to: str, flow: str = "send_mail") -> Order:
    return Order(to, flow, queue="mail" if flow == "send_mail" else "reports", body=f'{{"to": "{to}"}}')


def lines(path: Path) -> list[str]:
    """The whole lines of a file; none when it is not there."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds, for 30 seconds at most: these are real processes, on a machine that may be busy."""
    with trio.fail_after(30):
        while not await what():
            await trio.sleep(0.02)


async def until_lines(path: Path, number: int = 1) -> list[str]:
    async def enough() -> bool:
        return len(lines(path)) >= number

    await until(enough)
    return lines(path)


async def until_state(store: JobStore, job_id: str, *states: str) -> Job:
    """The job, as soon as it is in one of these states."""

    async def is_there() -> bool:
        job = await store.find(job_id)
        return job is not None and job.state in states

    await until(is_there)
    return await known(store, job_id)


async def known(store: JobStore, job_id: str) -> Job:
    job = await store.find(job_id)
    if job is None:
        raise AssertionError(f"there is no job {job_id}")
    return job


def children(pid: int) -> list[int]:
    """Its child processes, on Linux: those of all its threads."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


async def all_jobs(store: JobStore) -> list[Job]:
    return await store.search(Wanted(), 10_000)


async def ended(worker: Server) -> int:
    """Its exit status, as soon as it has ended."""
    with trio.fail_after(30):
        return await worker.process.wait()
