"""The reverse proxy passes requests and answers on whole, says who asked, and maps what goes wrong to 502, 503, 504."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from zerver import App, Capability, Flow
from zerver.core.tracing import effect_span_id, read_traceparent
from zerver.errors import ConnectFailed, DefinitionError, ExchangeFailed
from zerver.http import Exchange, HttpClient, Limits, Response, http_client, open_http_client, proxy, serve_http, stream
from zerver.http.connection import Connection, Service
from zerver.http.listeners import open_http_listeners
from zerver.http.outgoing import Origin
from zerver.testing import Client, cancel_sweep, client

Handler = Callable[[Exchange], Awaitable[Response]]

TRACE = "a" * 32


class Legacy:
    """The other server, over memory streams. What it has seen, and how often it was connected to."""

    def __init__(self, nursery: trio.Nursery, handler: Handler) -> None:
        self.nursery = nursery
        self.service = Service(handler, Limits(body=1 << 30))
        self.dialled: list[Origin] = []
        self.up = True
        self.instead: Callable[[Origin], Awaitable[trio.abc.Stream]] | None = None

    async def dial(self, origin: Origin) -> trio.abc.Stream:
        self.dialled.append(origin)
        if self.instead is not None:
            return await self.instead(origin)
        if not self.up:
            raise ConnectFailed(f"{origin}: connection refused")
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(Connection(theirs, self.service, "10.0.0.1").run)
        return ours


@asynccontextmanager
async def in_front_of(
    handler: Handler, base: str = "http://legacy:9000", *, deadline: float | None = None, body_limit: int | None = None
) -> AsyncGenerator[tuple[Client, Legacy], None]:
    async with trio.open_nursery() as nursery:
        legacy = Legacy(nursery, handler)

        @asynccontextmanager
        async def open_client() -> AsyncGenerator[HttpClient, None]:
            async with open_http_client(dial=legacy.dial, tell_deadline=True) as http:
                yield http

        app = App(capabilities=[Capability(name="http", resources={HttpClient: open_client})])
        for method in ("GET", "POST"):
            flow = Flow(f"legacy {method}", [proxy(base, body_limit=body_limit)], deadline=deadline)
            app.route(method, "/{rest:path}", flow)
        async with client(app, on_defect=lambda defect: None) as c:
            yield c, legacy
        nursery.cancel_scope.cancel()


async def echo(exchange: Exchange) -> Response:
    body = await exchange.read_body(1 << 30)
    fields = "\n".join(f"{name}: {value}" for name, value in exchange.head.headers)
    own = [("x-own", "1"), ("keep-alive", "timeout=5"), ("set-cookie", "a=b")]
    text = f"{exchange.head.method} {exchange.head.target} {len(body)}\n{fields}"
    return Response(201, own, text.encode())


async def test_what_is_passed_on() -> None:
    async with in_front_of(echo) as (c, _):
        reply = await c.post(
            "/v1/a%20b?q=%20",
            body=b"x" * 1000,
            headers=[("X-Forwarded-For", "6.6.6.6"), ("Forwarded", "for=6.6.6.6"), ("X-Real-IP", "6.6.6.6"),
                     ("TE", "trailers"), ("Cookie", "c=d"), ("traceparent", f"00-{TRACE}-{'b' * 16}-01"),
                     ("tracestate", "other=1"),
                     ("X-Request-Timeout-Ms", "60000"), ("Proxy-Authorization", "secret")],
        )  # fmt: skip
    assert reply.status == 201
    assert {name for name, _ in reply.headers} == {"x-own", "set-cookie", "date", "x-request-id", "content-length"}
    start, *fields = reply.text.splitlines()
    assert start == "POST /v1/a%20b?q=%20 1000"
    said = dict(field.split(": ", 1) for field in fields)
    assert reply.run is not None
    ours = read_traceparent(said.pop("traceparent"))
    assert [name for name, _ in (field.split(": ", 1) for field in fields)].count("traceparent") == 1
    assert ours is not None
    assert (ours.trace_id, ours.span_id) == (TRACE, effect_span_id(f"{reply.run.run_id}:proxy legacy:9000:1"))
    assert 59_000 < int(said.pop("x-request-timeout-ms")) <= 60_100
    assert said == {
        "host": "legacy:9000", "user-agent": "zerver", "accept": "*/*", "accept-encoding": "identity", "cookie": "c=d",
        "tracestate": "other=1",
        "x-request-id": reply.run.run_id, "x-forwarded-proto": "http", "x-forwarded-host": "app.test",
        "x-forwarded-for": "127.0.0.1", "content-length": "1000",
    }  # fmt: skip


async def test_what_belongs_to_the_connection_stays_on_it() -> None:
    async def dial(origin: Origin) -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        await theirs.send_all(
            b"HTTP/1.1 200 OK\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nProxy-Authenticate: x\r\n"
            b"Transfer-Encoding: chunked\r\n"
            b"Trailer: x\r\nX-Own: 1\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        )
        return ours

    async with in_front_of(echo) as (c, legacy):
        legacy.instead = dial
        reply = await c.get("/")
    assert (reply.status, reply.body) == (200, b"ok")
    assert {name for name, _ in reply.headers} == {"x-own", "date", "x-request-id", "transfer-encoding"}


async def test_what_the_client_says_of_its_connection_stays_on_it() -> None:
    async with in_front_of(echo) as (c, _), c.open_connection() as raw:
        await raw.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x-mine, close\r\nX-Mine: 1\r\nX-Other: 1\r\n\r\n")
        received = b""
        async for data in raw:
            received += bytes(data)
    assert b"x-other: 1" in received
    assert b"x-mine" not in received


async def test_a_base_path_comes_first() -> None:
    async with in_front_of(echo, "http://legacy:9000/base/") as (c, _):
        assert (await c.get("/a?b")).text.startswith("GET /base/a?b 0")


async def test_a_long_body_streams_both_ways() -> None:
    async def mirror(exchange: Exchange) -> Response:
        body = await exchange.read_body(1 << 30)

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 100_000):
                yield body[at : at + 100_000]

        return stream(pieces())

    async with in_front_of(mirror, body_limit=1 << 30) as (c, _):
        body = bytes(range(256)) * 20_000
        assert (await c.post("/", body=body)).body == body


async def test_a_body_over_the_limit_is_413() -> None:
    for size in (11, 2_000_000):
        async with in_front_of(echo, body_limit=10) as (c, _):
            assert (await c.post("/", body=b"x" * size)).status == 413


async def test_an_answer_before_the_body_is_there_is_passed_on(autojump_clock: MockClock) -> None:
    async def refuse(exchange: Exchange) -> Response:
        return Response(403, body=b"no")

    async with in_front_of(refuse, body_limit=1 << 30) as (c, _), c.open_connection() as stream_:
        await stream_.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n")
        await stream_.send_all(b"x" * 100_000)
        received = b""
        while not received.endswith(b"no"):
            received += bytes(await stream_.receive_some())
    assert received.startswith(b"HTTP/1.1 403")


async def test_pieces_arrive_when_they_are_made(autojump_clock: MockClock) -> None:
    async def slow(exchange: Exchange) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            await trio.sleep(10)
            yield b"second"

        return stream(pieces())

    async with in_front_of(slow, deadline=5) as (c, _), c.open_request("GET", "/") as request:
        pieces = request.pieces()
        assert (await anext(pieces), trio.current_time() < 1) == (b"first", True)
        assert (await anext(pieces), trio.current_time() >= 10) == (b"second", True)


async def test_what_goes_wrong(autojump_clock: MockClock) -> None:
    async def misbehave(exchange: Exchange) -> Response:
        if exchange.head.path == "/hangs":
            await trio.sleep(100)
        raise ValueError("a bug")

    async with in_front_of(misbehave, deadline=5) as (c, legacy):
        assert (await c.get("/bug")).status == 500  # an answer, if a sad one
        assert (await c.get("/hangs")).status == 504
        legacy.up = False
        refused = await c.get("/")
        assert (refused.status, refused.headers.get("retry-after")) == (503, "1")
        assert (await c.get("/%2e%2e/admin")).status == 404  # no route takes such a path


async def test_a_server_that_hangs_up_or_talks_nonsense_is_502(autojump_clock: MockClock) -> None:
    for nonsense in (b"", b"HTTP/1.1 200 OK\r\nbroken", b"SSH-2.0\r\n\r\n"):

        async def dial(origin: Origin, said: bytes = nonsense) -> trio.abc.Stream:
            ours, theirs = memory_stream_pair()
            if said:
                await theirs.send_all(said)
            await theirs.send_eof()
            return ours

        async with in_front_of(echo) as (c, legacy):
            legacy.instead = dial
            assert (await c.get("/")).status == 502


async def test_half_an_answer_is_cut(autojump_clock: MockClock) -> None:
    async def broken(exchange: Exchange) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"half"
            if exchange.head.path == "/stalls":
                await trio.sleep(1000)
            raise ValueError("a bug")

        return stream(pieces())

    async with in_front_of(broken) as (c, _):
        for path in ("/breaks", "/stalls"):
            began = trio.current_time()
            with pytest.raises(ExchangeFailed):
                await c.get(path)
            assert trio.current_time() - began < 100


async def test_a_client_that_leaves_is_told_to_the_other_server(autojump_clock: MockClock) -> None:
    left: list[float] = []

    async def slow(exchange: Exchange) -> Response:
        gone = trio.Event()
        exchange.watch_disconnect(gone.set)
        await gone.wait()
        left.append(trio.current_time())
        return Response()

    async with in_front_of(slow) as (c, _):
        with trio.move_on_after(3):
            await c.get("/")
        await c.wait_idle()
        await trio.lowlevel.checkpoint()
        assert left == [3.0]


@pytest.mark.parametrize("url", ["legacy:9000", "http://legacy/?a=b", "http://u:p@legacy/", "ftp://legacy/"])
def test_what_is_no_base(url: str) -> None:
    with pytest.raises(DefinitionError):
        proxy(url)


async def test_over_real_sockets() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_http, echo, await open_http_listeners())
        app = App(capabilities=[http_client(allow_private=True)])
        app.route("POST", "/{rest:path}", Flow("legacy", [proxy(server.addresses[0])]))
        async with client(app) as c:
            assert (await c.post("/x", body=b"123")).text.startswith("POST /x 3")
        nursery.cancel_scope.cancel()


def test_cancelled_at_any_step() -> None:
    async def program() -> None:
        async with in_front_of(echo, body_limit=1 << 30) as (c, _):
            for size in (10, 1_100_000):
                assert (await c.post("/", body=b"x" * size)).status == 201

    assert cancel_sweep(program, max_points=120).delivered > 20
