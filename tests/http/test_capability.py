"""Effects of http, performed by a runtime over real sockets: what is said downstream, and what failures come to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import pytest
import trio

from zerver import App, Done, Flow, Slot, join, step
from zerver.core.effects import INJECTED, CallInfo, Failure, IdempotencyKey, Success, Unknown, effect
from zerver.core.tracing import effect_span_id, read_traceparent, trace_id
from zerver.effects import http
from zerver.effects.http import Reply
from zerver.errors import ConnectFailed, EffectError, Rejected
from zerver.http.capability import downstream, http_client
from zerver.http.client import HttpClient
from zerver.http.exchange import Exchange
from zerver.http.listeners import open_http_listeners
from zerver.http.messages import RequestHead, Response
from zerver.http.server import serve_http
from zerver.runtime import Result, open_runtime

Url = Annotated[str, Slot("url")]
Handler = Callable[[Exchange], Awaitable[Response]]


@asynccontextmanager
async def service(handler: Handler) -> AsyncIterator[str]:
    """A service on a loopback socket: Zerver's own server."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_http, handler, await open_http_listeners())
        yield server.addresses[0]
        nursery.cancel_scope.cancel()


def noting(heads: list[RequestHead], status: int = 200) -> Handler:
    async def handler(exchange: Exchange) -> Response:
        heads.append(exchange.head)
        return Response(status, {}, await exchange.read_body())

    return handler


async def run(flow: Flow, url: str, *, deadline: float | None = None, allow_private: bool = True) -> Result:
    app = App(capabilities=[http_client(allow_private=allow_private)])
    async with open_runtime(app) as runtime:
        return await runtime.run(flow, given={"url": url}, deadline=deadline)


def asking(make: Callable[[str], object]) -> Flow:
    """A flow of one step that asks for this effect and gives its outcome."""

    @step
    async def ask(url: Url) -> Done:
        return Done(await make(url).outcome())  # type: ignore[attr-defined]  # an effect; its kind does not matter here

    return Flow("ask", [ask], takes=[Url])


async def test_reads_and_writes() -> None:
    heads: list[RequestHead] = []
    async with service(noting(heads, 404)) as url:
        read = await run(asking(lambda url: http.get(url + "/a")), url, deadline=5)
        wrote = await run(asking(lambda url: http.post(url + "/b", json={"x": 1})), url)
    assert isinstance(read.value, Success)
    assert isinstance(read.value.value, Reply)
    assert (read.value.value.status, wrote.value.value.body) == (404, b'{"x":1}')  # any status is an answer
    get, post = heads
    assert (get.method, get.path, post.method, post.path) == ("GET", "/a", "POST", "/b")
    assert [head.headers.get("x-request-id") for head in heads] == [read.run_id, wrote.run_id]
    assert "idempotency-key" not in get.headers
    assert post.headers.get("idempotency-key")
    assert 0 < int(get.headers.get("x-request-timeout-ms") or 0) <= 5050
    assert post.headers.get("content-type") == "application/json"


async def test_each_request_is_a_part_of_its_runs_trace() -> None:
    heads: list[RequestHead] = []
    make = asking(lambda url: http.get(url).with_policy(retries=1))
    caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    async with (
        service(noting(heads)) as url,
        open_runtime(App(capabilities=[http_client(allow_private=True)])) as runtime,
    ):
        alone = await runtime.run(make, given={"url": url})
        prepared = runtime.prepare(make)
        called = await runtime.execute(prepared, (), [url], parent=caller)
    told = [read_traceparent(head.headers.get("traceparent") or "") for head in heads]
    assert [parent and parent.trace_id for parent in told] == [trace_id(alone.run_id), caller[3:35]]
    assert [parent and parent.sampled for parent in told] == [True, False]
    for parent, result in zip(told, (alone, called), strict=True):
        assert parent is not None
        assert parent.span_id == effect_span_id(f"{result.run_id}:ask:1")


async def test_how_often_it_was_tried_is_told_from_the_second_attempt_on() -> None:
    told: list[str | None] = []

    async def verbose(exchange: Exchange) -> Response:
        told.append(exchange.head.headers.get("x-request-attempt"))
        return Response(200, {}, b"" if len(told) > 2 else b"more than is wanted")

    async with service(verbose) as url:
        make = asking(lambda url: http.get(url, limit=1).with_policy(retries=2, backoff=0.001))
        result = await run(make, url)
    assert isinstance(result.value, Success)
    assert told == [None, "2", "3"]


async def test_a_hedge_is_a_second_attempt_and_says_so() -> None:
    told: list[str | None] = []
    second = trio.Event()

    async def stuck(exchange: Exchange) -> Response:
        told.append(exchange.head.headers.get("x-request-attempt"))
        if len(told) > 1:
            second.set()
        await second.wait()
        return Response(200, {}, b"")

    async with service(stuck) as url:
        result = await run(asking(lambda url: join.hedge(http.get(url), after=0.0)), url)
    assert isinstance(result.value, Success)
    assert sorted(map(str, told)) == ["2", "None"]


async def test_how_long_anybody_waits_is_told_whatever_says_so() -> None:
    heads: list[RequestHead] = []
    plain = asking(http.get)
    timed = asking(lambda url: http.get(url).with_policy(timeout=200.0))
    joined = asking(lambda url: join.all(http.get(url), http.get(url)).with_policy(timeout=300.0))
    async with (
        service(noting(heads)) as url,
        open_runtime(App(capabilities=[http_client(allow_private=True)])) as runtime,
    ):
        for flow in (plain, timed, joined):  # as an edge asks
            await runtime.execute(runtime.prepare(flow), (), [url], deadline=500.0, after=lambda _: None)
        with trio.move_on_after(400):
            await runtime.run(plain, given={"url": url}, deadline=500.0)
        with trio.move_on_after(100):  # as a server has that drains, or is in a program that ends
            await runtime.execute(runtime.prepare(timed), (), [url], deadline=500.0, after=lambda _: None)
        await runtime.execute(runtime.prepare(plain), (), [url], after=lambda _: None)  # where nobody says anything
    left = [int(head.headers["x-request-timeout-ms"]) / 1000 for head in heads]
    waits = (500, 200, 300, 300, 400, 100, 30)
    assert all(wait * 0.8 < told <= wait + 0.05 for wait, told in zip(waits, left, strict=True))


async def test_what_the_exchange_says_wins() -> None:
    heads: list[RequestHead] = []
    said = {"x-request-ID": "mine", "Idempotency-key": "mine", "x-request-timeout-MS": "7", "Traceparent": "mine"}
    async with service(noting(heads)) as url:
        await run(asking(lambda url: http.post(url, headers=said)), url, deadline=5)
    assert {name.lower(): heads[0].headers.get_all(name) for name in said} == {
        name.lower(): [value] for name, value in said.items()
    }


async def test_handlers_of_ones_own_get_the_client() -> None:
    @effect(kind="mail.send", access="write")
    async def send(
        url: str, *, key: IdempotencyKey, info: CallInfo = INJECTED, http: HttpClient = INJECTED
    ) -> str | None:
        reply = await http.request("POST", url, headers=downstream(info), key=key)
        return f"{reply.status}"

    @step
    async def ask(url: Url) -> Done:
        return Done(await send(url))

    heads: list[RequestHead] = []
    async with service(noting(heads)) as url:
        result = await run(Flow("mail", [ask], takes=[Url]), url, deadline=5)
    assert result.unwrap() == "200"
    assert heads[0].headers.get("x-request-id") == result.run_id
    assert heads[0].headers.get("idempotency-key")
    assert heads[0].headers.get("x-request-timeout-ms")


@pytest.mark.parametrize("make", [http.get, http.post])
async def test_what_was_never_sent_has_certainly_not_happened(make: Callable[[str], object]) -> None:
    for url in ("http://localhost:1/", "http://a.example/\r\n"):
        outcome = (await run(asking(make), url, allow_private=False)).value
        assert isinstance(outcome, Failure)
        assert isinstance(outcome.error.cause, Rejected)
    # A URL with a user in it would stand in the timeline: there is no such effect.
    assert (await run(asking(make), "http://user@a.example/", allow_private=False)).status == "defect"
    outcome = (await run(asking(make), "http://nowhere.invalid/")).value
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error.cause, ConnectFailed)


async def test_an_exchange_that_broke_leaves_a_write_in_doubt_and_a_read_failed() -> None:
    async def break_off(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, break_off, 0)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        read = await run(asking(http.get), url)
        wrote = await run(asking(http.post), url)
        nursery.cancel_scope.cancel()
    assert isinstance(read.value, Failure)
    assert isinstance(wrote.value, Unknown)
    assert isinstance(read.value.error, EffectError)


async def test_a_body_over_the_limit_of_the_effect() -> None:
    async with service(noting([])) as url:
        outcome = (await run(asking(lambda url: http.request("OPTIONS", url, body=b"12345", limit=4)), url)).value
    assert isinstance(outcome, Failure)
    assert "over 4 bytes" in outcome.error.reason
