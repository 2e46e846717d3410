"""An app with jobs of every fate, durable runs that park, and writes that nobody knows of.

The page's views of jobs and cases are tested with it. A workshop is a world of its own: its jobs, its journal, and a
bank that may be away.

The body of a letter says how it goes: {"to": "ada", "how": "fine" | "refused" | "broken" | "waits"}.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Annotated

import attrs
import trio

from zerver import INJECTED, App, Done, Fail, Flow, IdempotencyKey, Pause, Slot, effect, step
from zerver.effects import queue
from zerver.errors import Rejected
from zerver.http import Body, Path, json
from zerver.jobs import Backoff, JobDesk, jobs_capability
from zerver.jobs.memory import JobDisk, open_memory_jobs
from zerver.journal import Disk, open_memory_journal
from zerver.runtime import Runtime
from zerver.runtime.journal import Journal

SECRET = "sk_live_4242424242"

Letter = Annotated[str, Slot("letter")]
Sent = Annotated[str, Slot("sent")]
Name = Annotated[str, Slot("name")]
Pin = Annotated[str, Slot("pin", secret=True)]
Token = Annotated[str, Slot("token", secret=True)]
Paid = Annotated[str, Slot("paid")]
Signed = Annotated[str, Slot("signed")]


@attrs.frozen
class Mail:
    to: str = "ada"
    how: str = "fine"
    x_api_key: str = "none"


class Workshop:
    """One world. gate: letters that wait go on when it is set, by the server's loop. away: the bank refuses refunds."""

    def __init__(self) -> None:
        self.jobs = JobDisk()
        self.disk = Disk()
        self.gate = trio.Event()
        self.away = True
        self._make_mail()
        self._make_bank()
        self.app = App(
            "workshop", capabilities=[jobs_capability(lambda: open_memory_jobs(self.jobs), self.jobs.wall_ns)]
        )
        for flow in (self.letter, self.pins, self.tokens):
            self.app.job(flow, queue="mail", attempts=2, backoff=Backoff(0.001, 0.001))
        self.app.job(self.contract, queue="legal")
        self.app.queue("mail", limit=3, per_tenant=2)
        self.app.route("POST", "/orders/{id}", self.order)
        self.app.route("POST", "/contracts/{id}", self.deal)

    def open_journal(self) -> AbstractAsyncContextManager[Journal]:
        return open_memory_journal(self.disk, keep_secrets=True)

    def _make_mail(self) -> None:
        @effect(kind="post.wait", access="read")
        async def wait() -> None:
            await self.gate.wait()

        @effect(kind="post.send", access="write")
        async def post(to: str, *, key: IdempotencyKey = INJECTED) -> str:
            await trio.lowlevel.checkpoint()
            return f"sent to {to}"

        @effect(kind="vault.token", access="read")
        async def find_token() -> str:
            await trio.lowlevel.checkpoint()
            return SECRET

        @step(name="letter.write")
        async def write(mail: Annotated[Mail, Body()]) -> Letter | Fail:
            if mail.how == "refused":
                return Fail.not_found("reader", mail.to)
            if mail.how == "broken":
                raise ZeroDivisionError(f"the letter to {mail.to} is torn")
            if mail.how == "waits":
                await queue.progress(3, 10, f"writing to {mail.to}")
                await wait()
            return f"dear {mail.to}"

        @step(name="letter.send")
        async def send(letter: Letter, mail: Annotated[Mail, Body()]) -> Done:
            return Done({"sent": await post(mail.to), "letter": letter, "x_api_key": mail.x_api_key})

        @step(name="pin.check")
        def check(name: Name, pin: Pin) -> Done:
            return Done({"name": name, "checked": f"pin {pin}"})

        @step(name="token.find")
        async def find() -> Token:
            return await find_token()

        @step(name="token.use")
        def use(token: Token, mail: Annotated[Mail, Body()]) -> Done:
            raise ValueError(f"{mail.to} may not use {token}")

        self.letter = Flow("letter", [write, send])
        self.pins = Flow("pins", [check], takes=[Name, Pin])
        self.tokens = Flow("tokens", [find, use])

    def _make_bank(self) -> None:
        @effect(kind="bank.charge", access="write")
        async def charge(of: str, *, key: IdempotencyKey = INJECTED) -> str:
            await trio.sleep(0.002)
            return f"charge of {of}"

        @effect(kind="bank.refund", access="write")
        async def refund(made: str, *, key: IdempotencyKey = INJECTED) -> None:
            await trio.lowlevel.checkpoint()
            if self.away:
                raise Rejected(f"the bank is closed for {made}")

        @step(name="order.pay")
        async def pay(id: Annotated[str, Path()]) -> Paid:
            return await charge(id).compensate(refund)

        @step(name="order.ship")
        def ship(paid: Paid) -> Fail:
            return Fail.conflict("stock", detail="sold out")

        @step(name="contract.draw")
        async def draw() -> Paid:
            return await charge("contract")

        @step(name="contract.sign")
        def ask() -> Signed | Pause:
            return Pause("signed", expires=7 * 86_400.0)

        @step(name="contract.send")
        async def file(signed: Signed, paid: Paid) -> Done:
            return Done(json({"signed": signed, "again": await charge("stamp")}))

        @step(name="contract.keep")
        async def keep(signed: Signed, paid: Paid) -> Done:
            return Done({"signed": signed, "again": await charge("stamp")})

        self.order = Flow("order", [pay, ship], durability="sync")
        self.deal = Flow("deal", [draw, ask, file], durability="sync")
        self.contract = Flow("contract", [draw, ask, keep], durability="sync")


async def settled(runtime: Runtime, job_id: str, *states: str) -> str:
    """Wait until the job is in one of these states; which it is."""
    store = runtime.resources[JobDesk].store
    with trio.fail_after(30):
        while True:
            job = await store.find(job_id)
            if job is not None and job.state in states:
                return job.state
            await trio.sleep(0.005)
