"""Requests with idempotency keys over HTTP: carried out once, whatever comes twice, at once, late, or is cut off."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeAlias

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver import AdmissionPolicy, App, Capability, Done, Fail, Flow, Pause, Slot, Tenant, effect, step
from zerver.core import timeline as t
from zerver.core.tenants import Identity
from zerver.edge import check_app
from zerver.errors import DefinitionError, JournalUnavailable
from zerver.http import Body, Header, Path, Query, Response, json, stream
from zerver.journal import Disk, open_memory_journal
from zerver.runtime.receipts import (
    LEASE,
    LONGEST_LEASE,
    Claim,
    MemoryReceipts,
    Receipt,
    Receipts,
    ReceiptTally,
    StoredAnswer,
    receipts_capability,
)
from zerver.testing import Client, Reply, cancel_sweep, client
from zerver.trace import decode_run, encode_run, format_timeline, replay
from zerver.trace.spans import spans

Charge = Annotated[str, Slot("charge")]

HOUR = 3600.0


class World:
    """A bank, and how it behaves. gate: closed, payments wait at it."""

    def __init__(self) -> None:
        self.paid: list[int] = []
        self.refunded: list[str] = []
        self.noted: list[str] = []
        self.gate = trio.Event()
        self.gate.set()

    @property
    def net(self) -> int:
        return len(self.paid) - len(self.refunded)


def app_in(world: World, receipts: Receipts | None = None, **options: Any) -> App:
    """POST /pay charges, and then answers as the body says; `compensated` says whether the charge can be undone."""

    @effect(kind="bank.pay", access="write")
    async def pay(amount: int) -> str:
        await world.gate.wait()
        world.paid.append(amount)
        return f"charge {len(world.paid)}"

    @effect(kind="bank.refund", access="write")
    async def refund(charge: str) -> None:
        await trio.lowlevel.checkpoint()
        world.refunded.append(charge)

    @effect(kind="world.sleep", access="read")
    async def sleep(seconds: float) -> None:
        await trio.sleep(seconds)

    @step
    async def charge(body: Annotated[dict[str, Any], Body()]) -> Charge:
        paying = pay(int(body["amount"]))
        return await (paying.compensate(refund) if body.get("compensated", True) else paying)

    @step
    async def finish(body: Annotated[dict[str, Any], Body()], charge: Charge) -> Done | Fail:
        end = body.get("end", "done")
        if end == "slow":
            await sleep(1e6)
        if end == "defect":
            raise ZeroDivisionError
        if end == "large":
            return Done(Response(200, (), b"x" * (2 << 20)))
        if end == "stream":
            return Done(stream(pieces))
        if end == "raw 503":
            return Done(Response(503, (), b"busy"))
        return Done(json({"charge": charge}, 201, {"x-shop": "1"})) if end == "done" else Fail(end, "payment")

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield b"b"

    flow: dict[str, Any] = {"idempotency": "required", **options.pop("flow", {})}
    capabilities = [] if receipts is None else [borrowed(receipts)]
    app = App(capabilities=capabilities, **options)
    app.route("POST", "/pay", Flow("pay", [charge, finish], **flow))
    app.route("POST", "/shops/{shop}/pay", Flow("pay at", [charge, at_shop], **flow))
    app.route("PUT", "/note", Flow("note", [note], idempotency="optional"))
    return app


@step
def at_shop(charge: Charge, shop: Annotated[str, Path()], tip: Annotated[int, Query()] = 0) -> Done:
    return Done({"charge": charge, "shop": shop, "tip": tip})


@step
def note(authorization: Annotated[str | None, Header()] = None) -> Done | Fail:
    return Done({"for": authorization}) if authorization else Fail.unauthorized("token")


def borrowed(receipts: Receipts) -> Capability:
    """A store that outlives the app, as one that workers share."""

    @asynccontextmanager
    async def open_receipts() -> AsyncGenerator[Receipts, None]:
        yield receipts

    return receipts_capability(open_receipts)


def keyed(key: str = "k", **fields: str) -> dict[str, str]:
    return {"idempotency-key": key, **{name.replace("_", "-"): value for name, value in fields.items()}}


async def pay(c: Client, key: str = "k", **body: Any) -> Reply:
    return await c.post("/pay", json={"amount": 5, **body}, headers=keyed(key))


def found(reply: Reply) -> list[tuple[str, str]]:
    assert reply.run is not None
    return [detail for kind, _, _, detail in reply.run.timeline.records if kind == t.KEYED]


def is_repeated(reply: Reply) -> bool:
    return reply.headers.get("idempotent-replayed") == "true"


# ---- the rules --------------------------------------------------------------------------------


async def test_the_same_request_is_carried_out_once_and_answered_twice() -> None:
    world = World()
    async with client(app_in(world)) as c:
        first, second = await pay(c), await pay(c, '"k"')
    assert (first.status, first.body) == (second.status, second.body) == (201, b'{"charge":"charge 1"}')
    assert second.headers["x-shop"] == "1"
    assert (is_repeated(first), is_repeated(second)) == (False, True)
    assert world.paid == [5]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.run is not None
    assert second.run is not None
    assert found(first) == [("claimed", "")]
    assert found(second) == [("repeats", first.run.run_id)]
    assert [record[0] for record in second.run.timeline.records] == [t.RECEIVED, t.KEYED, t.ENDING, t.ENDED, t.ANSWERED]
    assert (second.run.status, second.run.timeline.answered) == ("done", 201)


async def test_a_key_that_is_required_and_missing_or_none() -> None:
    world = World()
    async with client(app_in(world)) as c:
        missing = await c.post("/pay", json={"amount": 5})
        malformed = await c.post("/pay", json={"amount": 5}, headers=keyed("a b"))
    assert (missing.status, missing.json()["what"]) == (400, "missing")
    assert (malformed.status, malformed.json()["what"]) == (400, "malformed")
    assert missing.headers["content-type"] == "application/problem+json"
    assert world.paid == []
    assert missing.run is not None
    assert (missing.run.status, found(missing)) == ("failed", [])


async def test_without_a_key_an_optional_one_protects_nothing() -> None:
    async with client(app_in(World())) as c:
        replies = [await c.put("/note", headers={"authorization": "a"}) for _ in range(2)]
        again = [await c.put("/note", headers=keyed(authorization="a")) for _ in range(2)]
    assert [is_repeated(reply) for reply in replies + again] == [False, False, False, True]


async def test_another_request_with_the_same_key_is_refused() -> None:
    world = World()
    async with client(app_in(world)) as c:
        await pay(c)
        replies = [await pay(c, amount=6), await pay(c, amount=50), await pay(c, end="not_found")]
    assert [(reply.status, reply.json()["what"]) for reply in replies] == [(422, "other_request")] * 3
    assert world.paid == [5]


async def test_path_parameters_and_query_tell_requests_apart_and_flows_have_keys_of_their_own() -> None:
    world = World()
    async with client(app_in(world)) as c:
        targets = ("/shops/a/pay", "/shops/a/pay", "/shops/b/pay", "/shops/a/pay?tip=1", "/pay")
        replies = [await c.post(target, json={"amount": 5}, headers=keyed()) for target in targets]
    assert [reply.status for reply in replies] == [200, 200, 422, 422, 201]
    assert is_repeated(replies[1])
    assert world.paid == [5, 5]


async def test_tenants_have_keys_of_their_own() -> None:
    world = World()
    app = app_in(world, identify=lambda head: head.headers.get("x-tenant"))
    async with client(app) as c:
        body = {"amount": 5}
        replies = [await c.post("/pay", json=body, headers=keyed(x_tenant=name)) for name in ("a", "b", "a")]
    assert [is_repeated(reply) for reply in replies] == [False, False, True]
    assert replies[0].body == replies[2].body != replies[1].body


async def test_nobody_is_told_the_answer_of_somebody_else() -> None:
    async with client(app_in(World())) as c:
        mine = await c.put("/note", headers=keyed(authorization="Bearer mine"))
        theirs = await c.put("/note", headers=keyed(authorization="Bearer theirs"))
    assert (mine.status, theirs.status) == (200, 422)


async def test_a_named_tenant_may_renew_its_credential() -> None:
    async with client(app_in(World(), identify=lambda head: Identity("acme"))) as c:
        replies = [await c.put("/note", headers=keyed(authorization=f"Bearer {n}")) for n in range(2)]
    assert replies[1].body == replies[0].body
    assert is_repeated(replies[1])


async def test_the_same_while_the_first_is_under_way_is_told_to_come_again() -> None:
    world = World()
    world.gate = trio.Event()
    replies: list[Reply] = []
    async with client(app_in(world)) as c:
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                replies.append(await pay(c))

            nursery.start_soon(first)
            await wait_all_tasks_blocked()
            second = await pay(c)
            other = await c.post("/pay?x=1", json={"amount": 5}, headers=keyed())
            world.gate.set()
        third = await pay(c)
    assert (second.status, second.json()["what"], second.headers["retry-after"]) == (409, "in_use", "1")
    assert (other.status, other.json()["what"]) == (422, "other_request")
    assert replies[0].run is not None
    assert found(second) == [("in use", replies[0].run.run_id)]
    assert third.body == replies[0].body
    assert world.paid == [5]


async def test_an_answer_expires(autojump_clock: MockClock) -> None:
    world = World()
    async with client(app_in(world, flow={"idempotency_expires": HOUR})) as c:
        await pay(c)
        await trio.sleep(HOUR - 1)
        assert is_repeated(await pay(c))
        await trio.sleep(2)
        assert not is_repeated(await pay(c))
    assert world.paid == [5, 5]


# ---- what is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "compensated", "status", "repeated", "left"),
    [
        ("conflict", True, 409, True, 0),  # the flow has decided
        ("payment_required", True, 402, True, 0),
        ("not_found", False, 404, True, 1),
        ("unauthorized", True, 401, False, 0),  # not now
        ("rate_limited", True, 429, False, 0),
        ("unavailable", True, 503, False, 0),
        ("defect", True, 500, False, 0),  # undone: it might as well never have been
        ("unavailable", False, 503, True, 1),  # what was done stands
        ("defect", False, 500, True, 1),
        ("unauthorized", False, 401, True, 1),
        ("raw 503", True, 503, True, 1),  # the run was done, and nothing undone
    ],
)
async def test_which_answers_are_kept(end: str, compensated: bool, status: int, repeated: bool, left: int) -> None:
    world = World()
    async with client(app_in(world), on_defect=lambda defect: None) as c:
        first, second = [await pay(c, end=end, compensated=compensated) for _ in range(2)]
    assert (first.status, second.status) == (status, status)
    assert is_repeated(second) == repeated
    assert world.net == left
    if repeated:
        assert first.body == second.body
        assert len(world.paid) == 1


async def test_a_request_that_is_not_right_claims_nothing() -> None:
    world = World()
    async with client(app_in(world)) as c:
        for _ in range(2):
            bad = await c.post("/pay", body=b"{", headers=keyed(content_type="application/json"))
            assert bad.status == 400
            assert not is_repeated(bad)
        assert (await pay(c)).status == 201


async def test_a_deadline_is_kept_only_if_something_stands(autojump_clock: MockClock) -> None:
    world = World()
    async with client(app_in(world, flow={"deadline": 1.0})) as c:
        for compensated in (True, False):
            replies = []
            for _ in range(2):
                replies.append(await pay(c, f"k {compensated}".replace(" ", "_"), end="slow", compensated=compensated))
                await c.wait_idle()
                await wait_all_tasks_blocked()  # its rollback has outlived the answer
            assert [reply.status for reply in replies] == [504, 504]
            assert is_repeated(replies[1]) == (not compensated)
    assert world.net == 1


async def test_a_key_is_in_use_until_the_rollback_is_over(autojump_clock: MockClock) -> None:
    world = World()
    app = App()

    @effect(kind="bank.pay", access="write")
    async def charge() -> str:
        return "c"

    @effect(kind="bank.refund", access="write")
    async def refund(charge: str) -> None:
        await trio.sleep(2)
        world.refunded.append(charge)

    @effect(kind="world.sleep", access="read")
    async def sleep() -> None:
        await trio.sleep_forever()

    @step
    async def work() -> Done:
        await charge().compensate(refund)
        await sleep()
        return Done()

    app.route("POST", "/pay", Flow("pay", [work], deadline=1.0, idempotency="required"))
    async with client(app) as c:
        statuses = [(await c.post("/pay", headers=keyed())).status for _ in range(2)]
        await trio.sleep(3)
        third = await c.post("/pay", headers=keyed())
        assert [*statuses, third.status] == [504, 409, 504]
        assert not is_repeated(third)
    assert world.refunded == ["c", "c"]  # the app is not closed before


@pytest.mark.parametrize("end", ["stream", "large"])
async def test_an_answer_that_cannot_be_kept_is_sent_once_and_its_work_is_not_done_twice(end: str) -> None:
    world, defects = World(), list[Exception]()
    async with client(app_in(world), on_defect=defects.append) as c:
        first, second = await pay(c, end=end), await pay(c, end=end)
    assert (first.status, second.status) == (200, 410)
    assert is_repeated(second)
    assert world.paid == [5]
    assert isinstance(defects[0], DefinitionError)
    assert "idempotency" in str(defects[0])


def test_where_a_key_could_mean_nothing() -> None:
    app = App()
    app.route("GET", "/look", Flow("look", [at_nothing], idempotency="optional"))
    with pytest.raises(DefinitionError, match="only looks"):
        check_app(app)
    for options in ({"idempotency": "always"}, {"idempotency_expires": 0}, {"idempotency_expires": float("nan")}):
        with pytest.raises(DefinitionError, match="idempotency"):
            Flow("x", [at_nothing], **options)  # type: ignore[arg-type]  # that is the mistake


@step
def at_nothing() -> Done:
    return Done()


# ---- where it stands in the way of a request ---------------------------------------------------


async def test_a_repeated_answer_costs_no_ticket() -> None:
    world = World()
    app = app_in(world, tenants={"default": Tenant(rate=0.001, burst=1)})
    async with client(app) as c:
        first, second, refused = await pay(c), await pay(c), await pay(c, "other")
    assert (first.status, second.status, refused.status) == (201, 201, 429)
    assert not is_repeated(refused)


async def test_a_refused_request_leaves_its_key_free(autojump_clock: MockClock) -> None:
    world = World()
    app = app_in(world, tenants={"default": Tenant(rate=1.0, burst=1)})
    async with client(app) as c:
        await pay(c, "other")
        refused = await pay(c)
        await trio.sleep(2)
        assert (refused.status, (await pay(c)).status) == (429, 201)


async def test_of_two_that_wait_for_a_ticket_the_second_is_told_at_once() -> None:
    world = World()
    world.gate = trio.Event()
    app = app_in(world, admission=AdmissionPolicy(running=1))
    statuses: dict[str, int] = {}
    async with client(app) as c, trio.open_nursery() as nursery:

        async def one(name: str, key: str) -> None:
            statuses[name] = (await pay(c, key)).status

        nursery.start_soon(one, "busy", "other")
        await wait_all_tasks_blocked()
        nursery.start_soon(one, "first", "k")
        await wait_all_tasks_blocked()
        await one("second", "k")
        assert statuses == {"second": 409}
        world.gate.set()
    assert statuses == {"busy": 201, "first": 201, "second": 409}


async def test_the_body_of_a_repeated_request_is_read_no_further_than_the_first() -> None:
    world = World()
    async with client(app_in(world)) as c:
        await pay(c)
        async with c.open_connection() as stream:
            fields = b"host: a\r\nidempotency-key: k\r\ncontent-type: application/json\r\n"
            await stream.send_all(b"POST /pay HTTP/1.1\r\n%bcontent-length: 900000\r\n\r\n" % fields)
            answer = bytes(await stream.receive_some())  # nothing of the body was sent
            assert answer.startswith(b"HTTP/1.1 422 ")
        async with c.open_connection() as stream:
            await stream.send_all(b"POST /pay HTTP/1.1\r\n%btransfer-encoding: chunked\r\n\r\n" % fields)
            await stream.send_all(b"64\r\n" + b"x" * 100 + b"\r\n")
            answer = bytes(await stream.receive_some())
            assert answer.startswith(b"HTTP/1.1 422 ")
        async with c.open_connection() as stream:
            await stream.send_all(b"POST /pay HTTP/1.1\r\n%btransfer-encoding: chunked\r\n\r\n" % fields)
            await stream.send_all(b'5\r\n{"amo\r\n7\r\nunt":5}\r\n0\r\n\r\n')
            answer = bytes(await stream.receive_some())
            assert answer.startswith(b"HTTP/1.1 201 ")
            assert b"idempotent-replayed: true" in answer


async def test_two_workers_that_share_a_store() -> None:
    world, receipts = World(), MemoryReceipts()
    world.gate = trio.Event()
    replies: list[Reply] = []
    async with client(app_in(world, receipts)) as one, client(app_in(world, receipts)) as two:
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                replies.append(await pay(one))

            nursery.start_soon(first)
            await wait_all_tasks_blocked()
            assert (await pay(two)).status == 409
            world.gate.set()
        second = await pay(two)
    assert is_repeated(second)
    assert second.body == replies[0].body
    assert world.paid == [5]


async def test_flows_without_idempotency_do_not_look_at_the_header() -> None:
    app = App()
    app.route("POST", "/plain", Flow("plain", [at_nothing]))
    async with client(app) as c:
        reply = await c.post("/plain", headers=[("idempotency-key", ""), ("idempotency-key", "x")])
    assert reply.status == 204
    assert found(reply) == []


async def test_the_answer_of_a_cheaper_flow_is_an_answer_too() -> None:
    world, queued = World(), list[str]()

    @step
    def queue() -> Done:
        queued.append("order")
        return Done(json({"queued": len(queued)}, 202))

    app = app_in(
        world,
        flow={"degrade": Flow("queue it", [queue])},
        tenants={"default": Tenant(rate=0.001, burst=1)},
    )
    async with client(app) as c:
        await pay(c, "other")
        first, second = await pay(c), await pay(c)
    assert (first.status, second.status, second.body) == (202, 202, b'{"queued":1}')
    assert is_repeated(second)
    assert len(queued) == 1


async def test_what_was_found_is_told_recorded_and_replayed() -> None:
    world = World()
    async with client(app_in(world)) as c:
        replies = [await pay(c), await pay(c), await pay(c, amount=6), await c.post("/pay", json={"amount": 5})]
    rows = ["", "answered as req_", "is that of another request, req_", "this operation needs an Idempotency-Key"]
    for reply, row in zip(replies, rows, strict=True):
        assert reply.run is not None
        back = decode_run(encode_run(reply.run, began_unix_ns=0))
        told = format_timeline(back.timeline, unresolved=back.unresolved)
        assert told == format_timeline(reply.run.timeline, unresolved=reply.run.unresolved)
        assert row in told
        assert [event.name for span in spans(back) for event in span.events].count("keyed") == len(found(reply))
        plan = c.runtime.plan(app_flow(c))
        assert replay(plan, reply.run.timeline).same


def app_flow(c: Client) -> Flow:
    return c.runtime.app.routes[0].flow


# ---- a world that breaks ------------------------------------------------------------------------


class Breaking:
    """A store that can be made to fail, or to be cut off from one process, as if that had died. dead: for good."""

    def __init__(self, receipts: Receipts, *broken: str) -> None:
        self.receipts = receipts
        self.broken = set(broken)
        self.dead = False
        self.goes_on = trio.Event()  # not set: the process stands still
        self.goes_on.set()
        self.was_stalled = False

    async def _reach(self, verb: str) -> None:
        await trio.lowlevel.checkpoint()
        await self.goes_on.wait()
        if self.dead or verb in self.broken:
            raise JournalUnavailable("the disk is full", 3.0)

    async def find(self, place: bytes) -> Receipt | None:
        await self._reach("find")
        return await self.receipts.find(place)

    async def claim(self, claim: Claim, lease: float | None) -> Receipt:
        await self._reach("claim")
        return await self.receipts.claim(claim, lease)

    async def renew(self, run_ids: Sequence[str], lease: float) -> None:
        await self._reach("renew")
        await self.receipts.renew(run_ids, lease)

    async def store(self, run_id: str, answer: StoredAnswer, lifetime: float) -> bool:
        await self._reach("store")
        return await self.receipts.store(run_id, answer, lifetime)

    async def begin(self, run_id: str) -> None:
        await self._reach("begin")
        await self.receipts.begin(run_id)

    async def give_back(self, run_id: str, before: str, lease: float) -> bool:
        await self._reach("give_back")
        return await self.receipts.give_back(run_id, before, lease)

    async def release(self, run_id: str) -> bool:
        await self._reach("release")
        return await self.receipts.release(run_id)

    async def tally(self) -> ReceiptTally:
        return await self.receipts.tally()


@pytest.mark.parametrize("verb", ["find", "claim"])
async def test_without_the_store_nothing_is_begun(verb: str, autojump_clock: MockClock) -> None:
    world = World()
    receipts = Breaking(MemoryReceipts(), verb)
    async with client(app_in(world, receipts)) as c:
        reply = await pay(c)
        assert (reply.status, reply.json()["what"], reply.headers["retry-after"]) == (503, "unavailable", "3")
        assert world.paid == []
        receipts.broken.clear()
        assert (await pay(c)).status == 201


async def test_an_answer_is_sent_though_it_cannot_be_stored_and_its_claim_stays_until_it_is(
    autojump_clock: MockClock,
) -> None:
    world, receipts = World(), Breaking(MemoryReceipts(), "store")
    async with client(app_in(world, receipts)) as c:
        first = await pay(c)
        await trio.sleep(10 * LEASE)  # it is renewed meanwhile
        busy = await pay(c)
        receipts.broken.clear()
        await trio.sleep(6)
        second = await pay(c)
    assert (first.status, busy.status, second.status) == (201, 409, 201)
    assert second.body == first.body
    assert world.paid == [5]


async def test_the_claim_of_a_process_that_died_lapses(autojump_clock: MockClock) -> None:
    world, store = World(), MemoryReceipts()
    world.gate = trio.Event()
    dying = Breaking(store)
    async with (
        client(app_in(world, store)) as two,
        client(app_in(world, dying)) as one,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(pay, one)
        await wait_all_tasks_blocked()
        dying.dead = True
        assert (await pay(two)).status == 409
        await trio.sleep(LEASE + 1)
        world.gate.set()
        second = await pay(two)
        nursery.cancel_scope.cancel()
    assert second.status == 201
    assert [word for word, _ in found(second)] == ["took over"]


class Forgetful(MemoryReceipts):
    """Its process dies when a run has ended, and before its answer is stored."""

    dying = True

    async def store(self, run_id: str, answer: StoredAnswer, lifetime: float) -> bool:
        return self.dying or await super().store(run_id, answer, lifetime)

    async def release(self, run_id: str) -> bool:
        return self.dying or await super().release(run_id)

    async def renew(self, run_ids: Sequence[str], lease: float) -> None:
        if not self.dying:
            await super().renew(run_ids, lease)


SYNC = {"durability": "sync"}


async def after_its_end(world: World, again: dict[str, Any], **first: Any) -> tuple[Reply, Reply, Reply]:
    """The answer of a run whose process died before its receipt was stored, and those of two that come much later."""
    store = Forgetful()
    async with open_memory_journal(Disk()) as journal:
        async with client(app_in(world, store, flow=SYNC), journal=journal) as one:
            ended = await pay(one, **first)
        store.dying = False
        await trio.sleep(LONGEST_LEASE + 1)
        async with client(app_in(world, store, flow=SYNC), journal=journal) as two:
            return ended, await pay(two, **again), await pay(two, **again)


async def test_a_process_that_dies_between_a_runs_end_and_its_receipt_does_nothing_twice(
    autojump_clock: MockClock,
) -> None:
    world = World()
    first, second, third = await after_its_end(world, {})
    assert (first.status, second.status, third.status) == (201, 201, 201)
    assert first.body == second.body == third.body
    assert is_repeated(second)
    assert is_repeated(third)
    assert world.paid == [5]


async def test_a_run_that_goes_on_though_its_claim_has_lapsed_is_not_begun_anew(autojump_clock: MockClock) -> None:
    world, store = World(), Forgetful()
    world.gate = trio.Event()
    async with (
        open_memory_journal(Disk()) as journal,
        client(app_in(world, store, flow=SYNC), journal=journal) as one,
        client(app_in(world, store, flow=SYNC), journal=journal) as two,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(pay, one)
        await trio.sleep(LONGEST_LEASE + 1)
        store.dying = False
        assert (await pay(two)).status == 409
        world.gate.set()
        await trio.sleep(1.0)
        third = await pay(two)
    assert third.status == 201
    assert is_repeated(third)
    assert world.paid == [5]


async def test_code_that_cannot_say_what_a_run_came_to_does_not_do_it_again(autojump_clock: MockClock) -> None:
    world, store = World(), Forgetful()

    @effect(kind="bank.transfer", access="write")
    async def transfer(amount: int) -> str:
        raise NotImplementedError

    @step
    async def charge(body: Annotated[dict[str, Any], Body()]) -> Done:
        return Done(await transfer(int(body["amount"])))

    other = App(capabilities=[borrowed(store)])
    other.route("POST", "/pay", Flow("pay", [charge], idempotency="required", durability="sync"))
    async with open_memory_journal(Disk()) as journal:
        async with client(app_in(world, store, flow=SYNC), journal=journal) as one:
            assert (await pay(one)).status == 201
        store.dying = False
        await trio.sleep(LONGEST_LEASE + 1)
        async with client(other, journal=journal) as two:
            assert (await pay(two)).status == 410


async def test_another_request_does_not_get_the_answer_of_a_process_that_died(autojump_clock: MockClock) -> None:
    world = World()
    first, second, third = await after_its_end(world, {"note": "another"})
    assert (first.status, second.status, third.status) == (201, 422, 422)
    assert world.paid == [5]


async def test_whose_key_another_request_has_found_lapsed_gets_its_own_answer_all_the_same(
    autojump_clock: MockClock,
) -> None:
    world, store = World(), Forgetful()
    async with open_memory_journal(Disk()) as journal:
        async with client(app_in(world, store, flow=SYNC), journal=journal) as one:
            first = await pay(one)
        store.dying = False
        await trio.sleep(LONGEST_LEASE + 1)
        async with client(app_in(world, store, flow=SYNC), journal=journal) as two:
            other, again = await pay(two, note="another"), await pay(two)
    assert (first.status, other.status, again.status) == (201, 422, 201)
    assert (again.body, is_repeated(again)) == (first.body, True)
    assert world.paid == [5]


@pytest.mark.parametrize("second", [{}, {"note": "another"}], ids=["the same", "another"])
async def test_a_second_death_before_it_has_looked_does_not_forget_the_first_run(
    second: dict[str, Any], autojump_clock: MockClock
) -> None:
    world, store = World(), Forgetful()
    async with open_memory_journal(Disk()) as journal:
        async with client(app_in(world, store, flow=SYNC), journal=journal) as one:
            first = await pay(one)
        store.dying = False
        await trio.sleep(LONGEST_LEASE + 1)
        dying = Breaking(store, "give_back")  # its process dies when it has taken the place, and can do no more
        async with client(app_in(world, dying, flow=SYNC), journal=journal) as two:
            assert (await pay(two, **second)).status == (422 if second else 201)
            dying.dead = True
        await trio.sleep(LONGEST_LEASE + 1)
        async with client(app_in(world, store, flow=SYNC), journal=journal) as three:
            third, other = await pay(three), await pay(three, note="a third")
    assert (third.status, third.body, other.status) == (201, first.body, 422)
    assert world.paid == [5]


async def test_a_run_that_had_come_to_nothing_is_begun_anew_only_when_that_is_written(
    autojump_clock: MockClock,
) -> None:
    world, store = World(), Forgetful()
    async with open_memory_journal(Disk()) as journal:
        async with client(app_in(world, store, flow=SYNC), journal=journal) as one:
            assert (await pay(one, end="defect")).status == 500
        store.dying = False
        await trio.sleep(LONGEST_LEASE + 1)
        broken = Breaking(store, "begin")
        async with client(app_in(world, broken, flow=SYNC), journal=journal) as two:
            assert (await pay(two)).status == 503
            broken.broken.clear()
            await trio.sleep(10)
        await trio.sleep(LONGEST_LEASE + 1)
        async with client(app_in(world, store, flow=SYNC), journal=journal) as three:
            assert (await pay(three)).status == 201


class Unanswered(MemoryReceipts):
    """Begins once, and nobody is told."""

    lost = False

    async def begin(self, run_id: str) -> None:
        await super().begin(run_id)
        if not self.lost:
            self.lost = True
            raise JournalUnavailable("no answer", 1.0)


async def test_a_beginning_of_which_nobody_knows_leaves_the_key_free(autojump_clock: MockClock) -> None:
    world, store = World(), Unanswered()
    world.gate = trio.Event()
    dying = Breaking(store)
    async with (
        client(app_in(world, store)) as two,
        client(app_in(world, dying)) as one,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(pay, one)
        await wait_all_tasks_blocked()
        dying.dead = True
        await trio.sleep(LEASE + 1)
        world.gate.set()
        replies = [await pay(two), await pay(two)]
        nursery.cancel_scope.cancel()
    assert [reply.status for reply in replies] == [503, 201]


@pytest.mark.parametrize("durability", ["sync", "async"])
@pytest.mark.parametrize("late", [1.0, LONGEST_LEASE + 1], ids=["at once", "when its claim has lapsed"])
async def test_whose_202_was_lost_gets_it_again(late: float, durability: str, autojump_clock: MockClock) -> None:
    @step
    async def ask() -> Annotated[str, Slot("said")] | Pause:
        return Pause("go", 86_400)

    @step
    def tell(said: Annotated[str, Slot("said")]) -> Done:
        return Done(said)

    def app() -> App:
        made = App(capabilities=[borrowed(store)])
        made.route("POST", "/pay", Flow("pay", [ask, tell], idempotency="required", durability=durability))  # type: ignore[arg-type]  # parametrized
        return made

    store, disk = Forgetful(), Disk()
    async with open_memory_journal(disk) as journal:
        async with client(app(), journal=journal) as one:
            first = await pay(one)
            assert first.status == 202
        store.dying = False
        await trio.sleep(late)
        async with client(app(), journal=journal) as two:
            second = await pay(two)
            assert (second.status, is_repeated(second)) == (202, True), second.text
            assert second.json()["run"] == first.json()["run"]
            assert (await pay(two, note="another")).status == 422
            done = await two.post(second.headers["location"], json="yes")
            assert (done.status, done.json()) == (200, "yes")
            assert (await two.post(first.headers["location"], json="again")).status == 409
            assert (await pay(two)).status == 202
    assert len(disk.runs) == 1


async def test_a_run_that_was_undone_before_its_process_died_frees_its_key(autojump_clock: MockClock) -> None:
    world = World()
    first, second, _ = await after_its_end(world, {"end": "defect"}, end="defect")
    assert (first.status, second.status) == (500, 500)
    assert not is_repeated(second)
    assert world.paid == [5, 5, 5]
    assert world.refunded == ["charge 1", "charge 2", "charge 3"]


async def test_a_long_run_keeps_its_claim(autojump_clock: MockClock) -> None:
    world, store = World(), MemoryReceipts()
    world.gate = trio.Event()
    async with (
        client(app_in(world, store)) as one,
        client(app_in(world, store)) as two,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(pay, one)
        for _ in range(5):
            await trio.sleep(LEASE - 1)
            assert (await pay(two)).status == 409
        world.gate.set()
    assert world.paid == [5]


async def test_a_client_that_leaves_before_its_answer_gets_it_when_it_comes_back() -> None:
    world = World()
    world.gate = trio.Event()
    async with client(app_in(world)) as c:
        async with c.open_request("POST", "/pay", json={"amount": 5}, headers=keyed()):
            await wait_all_tasks_blocked()
        world.gate.set()
        await c.wait_idle()
        assert is_repeated(await pay(c))
    assert world.paid == [5]


async def test_a_run_that_was_cut_because_its_client_left_frees_its_key_when_all_is_undone() -> None:
    world = World()
    app = app_in(world, flow={"on_disconnect": "cancel"})
    async with client(app) as c:
        for compensated in (True, False):
            body = {"amount": 5, "end": "slow", "compensated": compensated}
            async with c.open_request("POST", "/pay", json=body, headers=keyed(str(compensated))):
                await wait_all_tasks_blocked()
            await c.wait_idle()
        assert world.net == 1
        with trio.move_on_after(0):
            await pay(c, "True", end="slow")
        stands = await pay(c, "False", end="slow", compensated=False)
    assert (stands.status, is_repeated(stands)) == (503, True)
    assert "retry-after" not in stands.headers


def test_wherever_the_host_ends_it_the_key_is_answered_or_free() -> None:
    worlds: list[tuple[World, MemoryReceipts]] = []

    async def program() -> None:
        world, store = World(), MemoryReceipts()
        worlds.append((world, store))
        async with client(app_in(world, store)) as c:
            assert (await pay(c)).status == 201
            assert is_repeated(await pay(c))

    async def check() -> None:
        world, store = worlds[-1]
        tally = await store.tally()
        assert tally.under_way == 0
        assert world.net <= tally.stored <= 1  # an answer without a payment: it was cut while it may have been paid

    assert cancel_sweep(program, check=check, max_points=200).delivered > 50


# ---- any order of events -------------------------------------------------------------------------

SENDS = st.tuples(st.just("send"), st.integers(0, 1), st.sampled_from(["j", "k"]), st.sampled_from([5, 6]))
OTHERS = st.tuples(
    st.sampled_from(["open", "close", "settle", "settle", "crash", "stall", "resume"]),
    st.integers(0, 1),
    st.just(""),
    st.just(0),
)
WAITS = st.tuples(st.just("wait"), st.just(0), st.just(""), st.sampled_from([1, 40, 4000]))
EVENTS = st.lists(st.one_of(SENDS, SENDS, OTHERS, WAITS), max_size=14)

Events: TypeAlias = list[tuple[str, int, str, int]]


def script(text: str) -> Events:
    """Events from words, as "send:0:k:5 wait:0::40"."""
    padded = [(word + ":::").split(":") for word in text.split()]
    return [(kind, int(number or 0), key, int(amount or 0)) for kind, number, key, amount, *_ in padded]


class Shop:
    """Two workers with one store. A worker that crashes takes its runs with it, unsettled, and another one is there."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.store = MemoryReceipts()
        self.worlds = [World(), World()]
        self.clients: list[Client] = []
        self.links: list[Breaking] = []
        self.gate = trio.Event()
        self.gate.set()
        self.paid: list[tuple[str, int]] = []
        self.replies: list[tuple[float, str, int, Reply]] = []
        self.crashes = 0

    async def start(self, number: int) -> None:
        """A worker of this number, in the place of one that has died."""
        await self.nursery.start(self._work, number)

    async def _work(self, number: int, task_status: trio.TaskStatus[None]) -> None:
        link = Breaking(self.store)
        async with client(app_of(self, link)) as c:
            self.clients[number : number + 1] = [c]
            self.links[number : number + 1] = [link]
            task_status.started()
            await trio.sleep_forever()

    async def send(self, number: int, key: str, amount: int) -> None:
        c, link = self.clients[number], self.links[number]
        reply = await c.post(f"/pay?key={key}", json={"amount": amount}, headers=keyed(key))
        # A dead process answers nobody; one that stood still may have lost its claim, and then answers for itself.
        if not link.dead and (is_repeated(reply) or not link.was_stalled):
            self.replies.append((trio.current_time(), key, amount, reply))


def app_of(shop: Shop, link: Breaking) -> App:
    @effect(kind="bank.pay", access="write")
    async def charge(key: str, amount: int) -> str:
        while not shop.gate.is_set():
            await shop.gate.wait()
        if link.dead:
            await trio.sleep_forever()
        shop.paid.append((key, amount))
        return f"{key} {len(shop.paid)}"

    @step
    async def work(body: Annotated[dict[str, int], Body()], key: Annotated[str, Query()]) -> Done:
        return Done({"charge": await charge(key, body["amount"])})

    app = App(capabilities=[borrowed(link)])
    app.route("POST", "/pay", Flow("pay", [work], idempotency="required", idempotency_expires=HOUR))
    return app


async def _play(events: Events) -> None:
    async with trio.open_nursery() as workers:
        shop = Shop(workers)
        await shop.start(0)
        await shop.start(1)
        async with trio.open_nursery() as nursery:
            for kind, number, key, amount in events:
                if kind == "send":
                    nursery.start_soon(shop.send, number, key, amount)
                elif kind == "open":
                    shop.gate.set()
                elif kind == "settle":
                    await wait_all_tasks_blocked()
                elif kind == "stall":
                    shop.links[number].goes_on = trio.Event()
                    shop.links[number].was_stalled = True
                    shop.crashes += 1
                elif kind == "resume":
                    shop.links[number].goes_on.set()
                elif kind == "close":
                    shop.gate = trio.Event() if shop.gate.is_set() else shop.gate
                elif kind == "crash":
                    shop.links[number].dead = True
                    shop.links[number].goes_on.set()
                    shop.crashes += 1
                    await shop.start(number)
                else:
                    await trio.sleep(amount)
            shop.gate.set()
            for link in shop.links:
                link.goes_on.set()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        workers.cancel_scope.cancel()
    _judge(shop, sum(amount // 3600 for kind, *_, amount in events if kind == "wait"))


def _judge(shop: Shop, expiries: int) -> None:
    assert {reply.status for *_, reply in shop.replies} <= {200, 409, 422}
    for key in ("j", "k"):
        # Whoever paid has answered, or was cut off by a crash: once for each time the key was free.
        paid = [amount for name, amount in shop.paid if name == key]
        assert len(paid) <= 1 + expiries + shop.crashes
        answers = [
            (at, amount, reply) for at, name, amount, reply in shop.replies if name == key and reply.status == 200
        ]
        for at, amount, reply in answers:
            same = [r.body for when, a, r in answers if abs(when - at) < HOUR - 1 and a == amount]
            assert set(same) == {reply.body} or expiries
        firsts = [reply for *_, reply in answers if not is_repeated(reply)]
        assert len({reply.body for reply in firsts}) == len(firsts)  # each was carried out, and only once
        for _, amount, reply in answers:
            assert shop.paid[int(reply.json()["charge"].split()[1]) - 1] == (key, amount)
        if not shop.crashes and not expiries:
            assert len(paid) <= 1
            assert len({amount for _, amount, _ in answers}) <= 1


@settings(deadline=None, max_examples=60)
@given(EVENTS)
@example(script("send:0:k:5 send:1:k:5 send:0:k:5 settle send:1:k:5 settle"))  # at once, in two workers
@example(script("close send:0:k:5 wait:0::40 send:1:k:5 settle open settle send:1:k:5 settle"))  # a long run
@example(script("send:0:k:5 settle send:1:k:6 settle send:0:k:6 settle"))  # another body
@example(script("close send:0:k:5 settle crash:0 wait:0::40 send:1:k:5 settle open settle send:0:k:5 settle"))
@example(script("close send:0:k:5 settle stall:0 wait:0::40 send:1:k:5 settle open settle resume:0 settle send:0:k:5"))
@example(script("send:0:k:5 settle wait:0::4000 send:1:k:6 settle send:0:k:6 settle"))  # expired
def test_in_any_order_of_requests_crashes_and_expiries_nothing_is_done_twice(events: Events) -> None:
    trio.run(_play, events, clock=MockClock(autojump_threshold=0))
