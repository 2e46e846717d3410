"""Admission over HTTP: whose a request is, in which class it runs, and what it hears when it may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from zerver import AdmissionPolicy, App, Done, Flow, Identity, Tenant, Tenants, effect, step
from zerver.core.priorities import Priority
from zerver.edge import open_edge
from zerver.http import DEFAULT_LIMITS, Exchange, Headers, RequestHead, Trust, json, text
from zerver.runtime import open_runtime
from zerver.testing import client


@step
def answer() -> Done:
    return Done(text("whole"))


@step
def cheap() -> Done:
    return Done(text("from the cache"))


@effect(kind="test.hang", access="read")
async def hang() -> None:
    await trio.sleep_forever()


@step
async def wait() -> Done:
    await hang()
    return Done(json(None))


def app(flow: Flow | None = None, *, priority: Priority | None = None, **settings: Any) -> App:
    app = App(**settings)
    app.route("GET", "/", flow or Flow("plain", [answer], priority="default"), priority=priority)
    return app


class Asked(Exchange):
    """A request without a body, from nowhere."""

    @property
    def body_length(self) -> int:
        return 0

    def watch_disconnect(self, on_gone: Callable[[], None]) -> None: ...

    async def _fetch(self) -> bytes | None:
        return None


def by_header(head: RequestHead) -> str | None:
    return head.headers.get("x-key")


@pytest.mark.parametrize(
    ("said", "asked", "runs_as"),
    [
        ({}, None, "default"),
        ({}, "batch", "batch"),
        ({}, "interactive", "default"),  # a client may lower its class, and never raise it
        ({}, "urgent", "default"),
        ({"priority": "interactive"}, None, "interactive"),
        ({"priority": "interactive"}, "default", "default"),
        ({"tenants": {"default": Tenant(priority="batch")}}, None, "batch"),
        ({"tenants": {"default": Tenant(priority="interactive")}}, None, "default"),
        ({"identify": lambda head: Identity("acme", "interactive")}, None, "interactive"),
        ({"identify": lambda head: Identity("acme", "interactive")}, "batch", "batch"),
        ({"identify": lambda head: Identity("acme", "batch"), "priority": "interactive"}, None, "batch"),
    ],
)
async def test_the_class_of_a_request(said: dict[str, Any], asked: str | None, runs_as: str) -> None:
    async with client(app(**said)) as c:
        await c.get("/", headers={} if asked is None else {"X-Request-Priority": asked})
        assert c.runs[0].timeline.priority == runs_as


@pytest.mark.parametrize(
    ("identify", "tenant"),
    [
        (None, "default"),
        (lambda head: None, "default"),
        (lambda head: "acme", "acme"),
        (lambda head: Identity("acme"), "acme"),
        (by_header, "k1"),
    ],
)
async def test_whose_a_request_is(identify: Callable[[Any], Any] | None, tenant: str) -> None:
    async with client(app(identify=identify)) as c:
        await c.get("/", headers={"X-Key": "k1"})
        assert c.runs[0].timeline.tenant == tenant


@pytest.mark.parametrize("said", [42, ValueError("no such key")], ids=["what is none", "an error"])
async def test_an_identify_that_fails_is_a_defect_and_runs_nothing(said: object) -> None:
    def identify(head: RequestHead) -> Any:
        if isinstance(said, Exception):
            raise said
        return said

    defects: list[Exception] = []
    async with client(app(identify=identify), on_defect=defects.append) as c:
        assert (await c.get("/")).status == 500
        assert not c.runs
    assert len(defects) == 1


async def test_a_tenant_over_its_rate_hears_when_to_come_back(autojump_clock: trio.testing.MockClock) -> None:
    tenants = Tenants({"acme": Tenant(rate=2.0, burst=3.0)})
    async with client(app(identify=by_header, tenants=tenants)) as c:
        first = await c.get("/", headers={"X-Key": "acme"})
        assert first.status == 200
        assert first.headers["ratelimit-policy"] == '"tenant";q=3;w=2'
        assert first.headers["ratelimit"] == '"tenant";r=2;t=1'
        for _ in range(2):
            assert (await c.get("/", headers={"X-Key": "acme"})).status == 200
        over = await c.get("/", headers={"X-Key": "acme"})
        assert over.status == 429
        assert over.headers["content-type"] == "application/problem+json"
        assert over.headers["ratelimit"] == '"tenant";r=0;t=2'
        assert int(over.headers["retry-after"]) >= 1
        problem = over.json(dict[str, Any])
        assert (problem["status"], problem["title"]) == (429, "Too Many Requests")
        assert problem["instance"] == over.headers["x-request-id"] == c.runs[-1].run_id
        assert [kind for kind, *_ in c.runs[-1].timeline.records] == ["received", "refused", "answered"]
        assert (await c.get("/", headers={"X-Key": "other"})).status == 200  # whose rate is nobody's business
        assert "ratelimit" not in (await c.get("/", headers={"X-Key": "other"})).headers
        await trio.sleep(0.5)
        assert (await c.get("/", headers={"X-Key": "acme"})).status == 200


async def test_rules_may_be_replaced_while_it_runs(autojump_clock: trio.testing.MockClock) -> None:
    async with client(app(tenants=Tenants(default=Tenant(rate=1.0)))) as c:
        assert [(await c.get("/")).status for _ in range(2)] == [200, 429]
        c.runtime.set_tenants(Tenants())
        assert (await c.get("/")).status == 200


# ---- in place of a refusal --------------------------------------------------------------------

DEAR = Flow("dear", [wait], degrade=Flow("cheap", [cheap]))
SLOW_DEGRADE = Flow("dear", [wait], degrade=Flow("slow", [wait]))
NO_ROOM = AdmissionPolicy(running=1, queued=0)


async def test_the_degrade_flow_answers_in_place_of_a_refusal(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with client(app(DEAR, admission=NO_ROOM)) as c:
        nursery.start_soon(c.get, "/")
        await trio.testing.wait_all_tasks_blocked()
        reply = await c.get("/")
        assert (reply.status, reply.text) == (200, "from the cache")
        (run,) = c.runs
        assert run.timeline.flow == "cheap"
        told = [(kind, subject) for kind, _, subject, _ in run.timeline.records[:3]]
        assert told == [("received", "dear"), ("refused", "dear"), ("admitted", "cheap")]
        assert c.runtime.statistics().admission.degraded == 0
        nursery.cancel_scope.cancel()


async def test_few_degraded_runs_at_once_and_then_the_refusal_stands(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    policy = AdmissionPolicy(running=1, queued=0, degraded=2)
    async with client(app(SLOW_DEGRADE, admission=policy)) as c:
        for _ in range(3):
            nursery.start_soon(c.get, "/")
            await trio.testing.wait_all_tasks_blocked()
        assert c.runtime.statistics().admission.degraded == 2
        assert (await c.get("/")).status == 503
        nursery.cancel_scope.cancel()


async def test_who_is_refused_because_of_a_drain_gets_no_degraded_answer(nursery: trio.Nursery) -> None:
    async with client(app(DEAR, admission=NO_ROOM)) as c:
        await c.runtime.drain(0.0)
        reply = await c.get("/")
        assert reply.status == 503
        assert "shutting down" in reply.json(dict[str, Any])["detail"]


async def test_a_drain_waits_for_degraded_runs_too(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with client(app(SLOW_DEGRADE, admission=NO_ROOM)) as c:
        for _ in range(2):
            nursery.start_soon(c.get, "/")
            await trio.testing.wait_all_tasks_blocked()
        await c.runtime.drain(1.0)
        assert c.runtime.statistics().running == 0
        assert c.runtime.statistics().admission.degraded == 0
        nursery.cancel_scope.cancel()


# ---- behind a proxy ---------------------------------------------------------------------------


async def test_a_refusal_behind_a_proxy_brakes_nobody_else_on_its_connection() -> None:
    tenants = Tenants(default=Tenant(rate=0.001))
    trust = Trust(["127.0.0.1"], ["*"])
    async with open_runtime(app(tenants=tenants)) as runtime, open_edge(runtime.app, runtime, trust=trust) as edge:
        refusals = []
        for forwarded in [None, "192.0.2.1", None]:
            fields = {"host": "app.test"} | ({} if forwarded is None else {"x-forwarded-for": forwarded})
            exchange = Asked(RequestHead("GET", "/", Headers.of(fields)), "127.0.0.1", "http", DEFAULT_LIMITS)
            response = await edge.handle(exchange)
            refusals.append((response.status, response.refusal))
    assert refusals == [(200, False), (429, False), (429, True)]


# ---- while it waits ---------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "queued"), [("GET", 0), ("POST", 1)])
async def test_a_client_that_leaves_gives_up_its_place(
    method: str, queued: int, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Of a POST, which is finished whatever its client does, the place is kept."""
    patient = AdmissionPolicy(running=1, default=attrs.evolve(AdmissionPolicy().default, patience=60.0))
    served = App(admission=patient)
    served.route(method, "/", Flow("waits", [wait]))
    async with client(served) as c:
        nursery.start_soon(c.request, method, "/")
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1.0):
            await c.request(method, "/")
        await trio.testing.wait_all_tasks_blocked()
        assert c.runtime.statistics().admission.queued == queued
        assert [(run.status, run.reason) for run in c.runs] == [("cancelled", "the client has gone")][: 1 - queued]
        nursery.cancel_scope.cancel()
