"""Cancelled at every moment, a server answers whole or hangs up, a client gives its slot back, and nothing is left.

One side stays and looks: what a cut server's client has heard is whole answers and at most one that is seen to be half;
what a cut client's server has met are ends of connections and no defect. In memory every moment is tried; over sockets,
whose kernel is not deterministic, as many as the clock allows.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import attrs
import h11
import pytest
import trio
import trustme
from trio.testing import MockClock

from tests.http.talking import MemoryListener
from tests.http.vectors import head
from zerver import App, Done, Flow, Slot, effect, step
from zerver.http import Body, json
from zerver.http import Path as InPath
from zerver.http.client import ClientLimits, HttpClient, open_http_client
from zerver.http.dial import Dial, TcpDialer
from zerver.http.exchange import Exchange, Limits
from zerver.http.listeners import open_http_listeners, open_unix_listener, over_tls
from zerver.http.messages import NO_HEADERS, Response
from zerver.http.outgoing import Origin
from zerver.http.response import redirect, text
from zerver.http.server import Server, serve_http
from zerver.serve import Serving, serve
from zerver.testing import cancel_sweep
from zerver.testing.sweep import sweep_calls

AUTHORITY = trustme.CA()


def server_tls() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


def client_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


SERVER_TLS, CLIENT_TLS = server_tls(), client_tls()
LARGE = b"x" * 200_000


# ---- the handler ----------------------------------------------------------------------------


@attrs.define
class Desk:
    """A handler that counts what it has open. begun: of handlers and bodies; ended: of those."""

    begun: int = 0
    ended: int = 0
    defects: list[Exception] = attrs.Factory(list)

    async def __call__(self, exchange: Exchange) -> Response:
        self.begun += 1
        try:
            match exchange.head.path:
                case "/upload":
                    return text(str(len(await exchange.read_body())))
                case "/stream":
                    return Response(200, NO_HEADERS, self.pieces())
                case "/away":
                    return redirect("/stream")
                case "/watched":
                    exchange.watch_disconnect(lambda: None)
            await trio.lowlevel.checkpoint()
            return text("hello")
        finally:
            self.ended += 1

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        self.begun += 1
        try:
            for piece in (b"one,", b"two,", b"three"):
                yield piece
                await trio.lowlevel.checkpoint()
        finally:
            self.ended += 1

    def check(self) -> None:
        assert self.begun == self.ended
        assert self.defects == []


BODIES = {b"hello", b"one,two,three", b"7", b"200000", b""}


def check_answers(heard: bytes) -> int:
    """How many whole answers are in it. What comes after them must be seen to be half."""
    whole = 0
    while heard:
        peer = h11.Connection(h11.CLIENT)
        peer.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
        peer.send(h11.EndOfMessage())
        peer.receive_data(heard)
        peer.receive_data(b"")
        body = b""
        try:
            while not isinstance(event := peer.next_event(), h11.EndOfMessage | h11.InformationalResponse):
                body += bytes(event.data) if isinstance(event, h11.Data) else b""
        except h11.RemoteProtocolError:
            return whole
        if isinstance(event, h11.InformationalResponse):
            heard = heard.partition(b"\r\n\r\n")[2]
            continue
        assert body in BODIES or body.startswith(b'{"type"')
        whole += 1
        heard = peer.trailing_data[0]
    return whole


# ---- a server is cut, its client looks ------------------------------------------------------

LAST = head("Connection: close", first="GET /last HTTP/1.1")


def post(path: str, *lines: str) -> bytes:
    return head(*lines, first=f"POST {path} HTTP/1.1")


#: name: (what is sent, how many answers come of it).
TALKS = {
    "pipelined": (head(first="GET /watched HTTP/1.1") * 2 + LAST, 3),
    "a stream": (head(first="GET /stream HTTP/1.1") + LAST, 2),
    "an upload": (
        post("/upload", "Content-Length: 7", "Expect: 100-continue") + b"content" + LAST,
        2,
    ),
    "a large upload": (
        post("/upload", "Transfer-Encoding: chunked") + b"30d40\r\n" + LARGE + b"\r\n0\r\n\r\n" + LAST,
        2,
    ),
    "an upload that nobody reads": (post("/", "Content-Length: 7") + b"content" + LAST, 2),
    "what is refused": (head(first="GET / HTTP/1.1") + head("Bad Name: x") + LAST, 2),
    "half a head": (head()[:-2], 1),
    "half a body": (post("/upload", "Content-Length: 9") + b"content", 1),
}
LIMITS = Limits(linger_seconds=0.1, head_seconds=1.0, body_grace_seconds=1.0, idle_seconds=1.0)


class Backlog(MemoryListener):
    """Closes whom nobody has accepted, as the kernel does with the queue of a listener that is closed."""

    async def aclose(self) -> None:
        while True:
            try:
                await trio.aclose_forcefully(self._receive.receive_nowait())
            except (trio.WouldBlock, trio.ClosedResourceError):
                break
        await super().aclose()


@attrs.define
class Visit:
    """One client in memory, that stays when the server is cut."""

    listener: Backlog = attrs.Factory(Backlog)
    desk: Desk = attrs.Factory(Desk)
    heard: bytearray = attrs.Factory(bytearray)
    over: trio.Event = attrs.Factory(trio.Event)
    servers: list[Server] = attrs.Factory(list)

    async def talk(self, data: bytes, secure: bool) -> None:
        stream: trio.abc.Stream = self.listener.connect()
        if secure:
            stream = trio.SSLStream(stream, CLIENT_TLS, server_hostname="localhost")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.say, stream, data)
                async for piece in stream:
                    self.heard += piece
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it hung up; over TLS, without a goodbye
        finally:
            await trio.aclose_forcefully(stream)
            self.over.set()

    async def say(self, stream: trio.abc.Stream, data: bytes) -> None:
        for at in range(0, len(data), 50_000):
            await stream.send_all(data[at : at + 50_000])

    async def serve(self, secure: bool) -> None:
        listener: trio.abc.Listener[Any] = trio.SSLListener(self.listener, SERVER_TLS) if secure else self.listener
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(
                partial(serve_http, self.desk, [listener], limits=LIMITS, on_defect=self.desk.defects.append)
            )
            self.servers.append(server)
            await self.over.wait()
            await server.drain(1)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("name", TALKS)
async def test_a_server_cut_at_any_moment_has_answered_whole_or_hangs_up(
    name: str, secure: bool, autojump_clock: MockClock
) -> None:
    data, answers = TALKS[name]
    visit = Visit()
    most = 0

    async with trio.open_nursery() as nursery:

        async def setup() -> None:
            nonlocal visit
            visit = Visit()
            nursery.start_soon(visit.talk, data, secure)

        async def check() -> None:
            nonlocal most
            await visit.listener.aclose()
            await visit.over.wait()
            visit.desk.check()
            most = max(most, check_answers(bytes(visit.heard)))
            for server in visit.servers:
                statistics = server.statistics()
                assert (statistics.idle, statistics.busy, statistics.defects) == (0, 0, 0)

        report = await sweep_calls(partial(visit_of(lambda: visit), secure), setup=setup, check=check, max_points=150)
        assert report.delivered > 20
    assert most == answers


def visit_of(now: Callable[[], Visit]) -> Callable[[bool], Awaitable[None]]:
    async def call(secure: bool) -> None:
        await now().serve(secure)

    return call


# ---- a client is cut, its server looks ------------------------------------------------------


async def stale(stream: trio.abc.Stream) -> None:
    """A peer that answers one request of a connection, hears a second, and hangs up."""
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    await stream.receive_some()


@attrs.define
class Place:
    """Where a server of the desk listens, and how one gets there."""

    desk: Desk
    server: Server | None
    url: str
    dial: Dial

    def client(self) -> Any:
        return open_http_client(dial=self.dial, limits=ClientLimits(per_origin=1))


@asynccontextmanager
async def at(
    kind: str, folder: Path, peer: Callable[[trio.abc.Stream], Awaitable[None]] | None
) -> AsyncIterator[Place]:
    """A server over "tcp", "tls" or "unix"; or the peer in its stead."""
    listeners: list[Any] = [await open_unix_listener(folder / "desk.sock")] if kind == "unix" else []
    listeners = listeners or list(await open_http_listeners())
    dial: Dial = TcpDialer(allow_private=True, tls=CLIENT_TLS)
    if kind == "unix":
        url = "http://localhost"

        async def dial(origin: Origin) -> trio.abc.Stream:
            return await trio.open_unix_socket(listeners[0].path)

    else:
        scheme, port = {"tcp": "http", "tls": "https"}[kind], listeners[0].socket.getsockname()[1]
        url = f"{scheme}://localhost:{port}"  # a name of two addresses, of which one may be refused
    if kind == "tls":
        listeners = [over_tls(listeners[0], SERVER_TLS)]
    desk, server = Desk(), None
    async with trio.open_nursery() as nursery:
        if peer is None:
            serving = partial(serve_http, desk, listeners, limits=LIMITS, on_defect=desk.defects.append)
            server = await nursery.start(serving)
        else:
            nursery.start_soon(trio.serve_listeners, partial(politely, peer), listeners)
        yield Place(desk, server, url, dial)
        nursery.cancel_scope.cancel()


async def politely(peer: Callable[[trio.abc.Stream], Awaitable[None]], stream: trio.abc.Stream) -> None:
    try:
        await peer(stream)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client was quicker
    finally:
        await trio.aclose_forcefully(stream)


async def in_pieces() -> AsyncGenerator[bytes, None]:
    for _ in range(2):
        yield LARGE[:100_000]
        await trio.lowlevel.checkpoint()


async def fresh(client: HttpClient, url: str) -> None:
    reply = await client.request("GET", url + "/", headers={"Connection": "close"})
    assert reply.body == b"hello"


async def reused(client: HttpClient, url: str) -> None:
    for _ in range(2):
        assert (await client.request("GET", url + "/")).body == b"hello"


async def redirected(client: HttpClient, url: str) -> None:
    assert (await client.request("GET", url + "/away", redirects=1)).body == b"one,two,three"


async def streamed(client: HttpClient, url: str) -> None:
    async with client.stream("GET", url + "/stream") as response:
        assert await response.read() == b"one,two,three"


async def uploaded(client: HttpClient, url: str) -> None:
    assert (await client.request("POST", url + "/upload", body=in_pieces())).body == b"200000"


async def waited(client: HttpClient, url: str) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):  # for one connection
            nursery.start_soon(client.request, "GET", url + "/")


CALLS = [
    *((call, "tls") for call in (fresh, reused, redirected, streamed, uploaded, waited, stale)),
    *((call, "tcp") for call in (fresh, redirected, stale)),
    *((call, "unix") for call in (fresh, uploaded, stale)),
]


@pytest.mark.parametrize(("call", "kind"), CALLS, ids=[f"{call.__name__}-{kind}" for call, kind in CALLS])
async def test_a_client_cut_at_any_moment_keeps_no_slot_and_no_connection(
    call: Callable[..., Awaitable[None]], kind: str, tmp_path: Path
) -> None:
    async with at(kind, tmp_path, stale if call is stale else None) as place, place.client() as client:
        asked = reused if call is stale else call

        async def setup() -> None:
            await (fresh if call is fresh else reused)(client, place.url)  # and one connection is idle, or none

        def check() -> None:
            statistics = client.statistics()
            assert (statistics.busy, statistics.waiting) == (0, 0)
            assert statistics.idle <= 1
            assert place.desk.defects == []
            assert place.server is None or place.server.statistics().defects == 0

        report = await sweep_calls(lambda: asked(client, place.url), setup=setup, check=check, max_points=25)
        assert report.delivered > 0
        await setup()  # the only slot still serves


# ---- the whole edge: an app, its router, its runs -------------------------------------------

Thing = Annotated[int, Slot("thing")]
held: list[int] = []


@effect(kind="sweep.hold", access="write")
async def hold(number: int) -> int:
    held.append(number)
    await trio.sleep(0.01)
    return number


@effect(kind="sweep.release", access="write")
async def release(number: int) -> None:
    held.remove(number)


@step
async def take(id: Annotated[int, InPath()]) -> Thing:
    return await hold(id).compensate(lambda _: release(id), by_key=lambda _: release(id))


@step
async def put_back(thing: Thing, body: Annotated[Any, Body()] = None) -> Done:
    await release(thing)
    return Done(json({"thing": thing, "body": body}))


def make_app() -> App:
    app = App()
    things = Flow("things", [take, put_back], on_disconnect="cancel")
    app.route("GET", "/things/{id}", things)
    app.route("POST", "/things/{id}", things)
    return app


ASKED = [
    head(first="GET /things/1 HTTP/1.1"),
    head(first="HEAD /things/2 HTTP/1.1"),
    post("/things/3", "Content-Type: application/json", "Content-Length: 7") + b'{"a":1}',
    post("/things/4", "Content-Type: application/json", "Content-Length: 2") + b"{}",
    head(first="GET /things/x HTTP/1.1"),
    head(first="GET /nowhere HTTP/1.1"),
    head(first="DELETE /things/1 HTTP/1.1"),
    head(first="OPTIONS /things/1 HTTP/1.1"),
    head("Connection: close", first="GET /things/5 HTTP/1.1"),
]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_an_app_and_its_clients_cut_at_any_moment_leave_no_run_and_no_ticket(secure: bool) -> None:
    serving: list[Serving] = []

    async def visitor(listener: MemoryListener, requests: list[bytes]) -> None:
        try:
            stream: trio.abc.Stream = listener.connect()
        except trio.ClosedResourceError:
            return  # the server has been cut before
        if secure:
            stream = trio.SSLStream(stream, CLIENT_TLS, server_hostname="localhost")
        try:
            await stream.send_all(b"".join(requests))
            async for _ in stream:
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def program() -> None:
        serving.clear()
        held.clear()
        below = MemoryListener()
        listener: Any = trio.SSLListener(below, SERVER_TLS) if secure else below
        async with trio.open_nursery() as nursery:
            serving.append(await nursery.start(partial(serve, make_app(), listeners=[listener], seed=1)))
            async with trio.open_nursery() as visitors:
                visitors.start_soon(visitor, below, ASKED)
                visitors.start_soon(visitor, below, ASKED[-1:])
            await serving[0].drain(1.0)

    def check() -> None:
        assert held == []
        for served in serving:
            statistics = served.runtime.statistics()
            assert (statistics.running, statistics.admission.running, statistics.admission.queued) == (0, 0, 0)
            seen = served.server.statistics()
            assert (seen.idle, seen.busy, seen.defects) == (0, 0, 0)

    assert cancel_sweep(program, check=check, max_points=200).delivered > 50
