"""Behind another server a handler sees no difference: bodies, limits, clients that leave, answers of every kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from zerver.errors import ExchangeFailed
from zerver.http import Event, Exchange, Limits, Response, problem, sse, stream, text
from zerver.http.connection import Service
from zerver.http.gateway import serve_scope
from zerver.testing import cancel_sweep

Handler = Callable[[Exchange], Awaitable[Response]]
Message = dict[str, Any]


@attrs.define
class Seen:
    """What a server was told."""

    sent: list[Message] = attrs.field(factory=list)
    defects: list[Exception] = attrs.field(factory=list)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def whole(self) -> bool:
        return bool(self.sent) and not self.sent[-1].get("more_body", True)


def scope_of(method: str = "GET", target: str = "/", **headers: str) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http", "method": method, "path": path, "raw_path": path.encode("latin-1"), "http_version": "1.1",
        "query_string": query.encode(), "scheme": "https", "client": ("10.1.1.1", 1234),
        "headers": [(b"host", b"a"), *((n.replace("_", "-").encode(), v.encode()) for n, v in headers.items())],
    }  # fmt: skip


def request(*pieces: bytes) -> list[Message]:
    last = len(pieces) - 1
    return [{"type": "http.request", "body": p, "more_body": at < last} for at, p in enumerate(pieces)] or [
        {"type": "http.request", "body": b"", "more_body": False}
    ]


async def talk(
    handler: Handler,
    scope: dict[str, Any] | None = None,
    messages: Sequence[Message] = (),
    *,
    leaves_after: float | None = None,
    limits: Limits = Limits(),  # noqa: B008  # a frozen value
    send_seconds: float = 0,
) -> Seen:
    """One request; the messages are there at once, and the client leaves after so many seconds, or never."""
    seen, waiting, under_way = Seen(), list(messages), []

    async def receive() -> Message:
        if under_way:
            raise AssertionError("two receives at once")
        under_way.append(1)
        try:
            await trio.lowlevel.checkpoint()
            if waiting:
                return waiting.pop(0)
            if leaves_after is None:
                await trio.sleep_forever()
            await trio.sleep_until(began + leaves_after)
            return {"type": "http.disconnect"}
        finally:
            under_way.pop()

    async def send(message: Message) -> None:
        await trio.sleep(send_seconds)
        seen.sent.append(message)

    began = trio.current_time()
    service = Service(handler, limits, seen.defects.append)
    await serve_scope(service, scope or scope_of(), receive, send)  # type: ignore[arg-type]  # dicts are messages
    return seen


async def echo(exchange: Exchange) -> Response:
    body = await exchange.read_body()
    return text(f"{exchange.head.method} {exchange.head.target} {exchange.peer} {exchange.scheme} {body.decode()}")


async def test_an_exchange() -> None:
    seen = await talk(echo, scope_of("POST", "/a%20b?c=d"), request(b"on", b"", b"e"))
    assert (seen.status, seen.whole, seen.defects) == (200, True, [])
    assert seen.body == b"POST /a%20b?c=d 10.1.1.1 https one"
    assert seen.headers == {"content-type": "text/plain; charset=utf-8", "content-length": "34"}


async def test_a_scope_without_raw_path() -> None:
    scope = scope_of("GET", "/a")
    del scope["raw_path"]
    assert (await talk(echo, scope, request())).body == b"GET /a 10.1.1.1 https "
    scope["path"] = "/é %"
    assert (await talk(echo, scope, request())).body == b"GET /%C3%A9%20%25 10.1.1.1 https "


@pytest.mark.parametrize("raw", [b"/a%zz", b"/a\r\nb", b"/\xc3\xa9", b"/%00", b"/a b"])
async def test_what_is_no_target_is_400(raw: bytes) -> None:
    seen = await talk(echo, scope_of() | {"raw_path": raw}, request())
    assert (seen.status, seen.defects) == (400, [])


async def test_head_and_bodiless_statuses_send_none() -> None:
    async def handler(exchange: Exchange) -> Response:
        return Response(int(exchange.head.path[1:]), body=b"body")

    head = await talk(handler, scope_of("HEAD", "/200"), request())
    assert (head.body, head.headers, head.whole) == (b"", {"content-length": "4"}, True)
    for status in ("/204", "/304"):
        none = await talk(handler, scope_of("GET", status), request())
        assert (none.body, none.headers, none.whole) == (b"", {}, True)


async def test_limits_on_bodies(autojump_clock: MockClock) -> None:
    limits = Limits(body=3)
    assert (await talk(echo, scope_of("POST", content_length="4"), [], limits=limits)).status == 413
    assert (await talk(echo, scope_of("POST"), request(b"ab", b"cd"), limits=limits)).status == 413
    assert (await talk(echo, scope_of("POST"), request(b"ab", b"c"), limits=limits)).status == 200
    assert (await talk(echo, scope_of("POST"), request(b"ab", b"c")[:1])).status == 408


async def test_a_client_that_leaves_with_its_body_gets_nothing() -> None:
    seen = await talk(echo, scope_of("POST"), request(b"ab", b"c")[:1], leaves_after=0)
    assert (seen.sent, seen.defects) == ([], [])


async def test_streams(autojump_clock: MockClock) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b""
        yield b"two"

    async def events() -> AsyncIterator[Event]:
        await trio.sleep(20)
        yield Event("x")

    async def handler(exchange: Exchange) -> Response:
        return stream(pieces()) if exchange.head.path == "/pieces" else sse(events)

    seen = await talk(handler, scope_of("GET", "/pieces"), request())
    assert [message["body"] for message in seen.sent[1:]] == [b"one", b"two", b""]
    assert "content-length" not in seen.headers
    assert (await talk(handler, scope_of("GET", "/events"), request())).body == b":\n\ndata: x\n\n"


async def test_a_client_that_leaves_is_noticed(autojump_clock: MockClock) -> None:
    left: list[str] = []

    async def handler(exchange: Exchange) -> Response:
        gone = trio.Event()
        exchange.watch_disconnect(gone.set)
        if exchange.head.path == "/late":
            exchange.watch_disconnect(lambda: None)
            assert await exchange.read_body() == b"ab"
            exchange.watch_disconnect(gone.set)
        await gone.wait()
        left.append(f"{exchange.head.path} {trio.current_time()}")
        return problem(500)

    await talk(handler, scope_of("GET", "/early"), request(), leaves_after=5)
    await talk(handler, scope_of("POST", "/late"), request(b"a", b"b"), leaves_after=5)
    assert left == ["/early 5.0", "/late 10.0"]


async def test_a_client_that_leaves_ends_a_stream(autojump_clock: MockClock) -> None:
    closed: list[float] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield b"x"
            await trio.sleep_forever()
        finally:
            closed.append(trio.current_time())

    async def handler(exchange: Exchange) -> Response:
        return stream(endless)

    seen = await talk(handler, messages=request(b"unread", b"body"), leaves_after=5)
    assert (seen.whole, closed) == (False, [5.0])


async def test_a_client_that_takes_nothing_is_left(autojump_clock: MockClock) -> None:
    await talk(echo, messages=request(), send_seconds=1000, limits=Limits(write_seconds=30))
    assert trio.current_time() == 30


async def test_defects() -> None:
    async def handler(exchange: Exchange) -> Response:
        if exchange.head.path == "/raises":
            raise ValueError("a bug")
        if exchange.head.path == "/split":
            return Response(200, {"a": "b\r\nc: d"})
        if exchange.head.path == "/half":
            return stream(half())
        return None  # type: ignore[return-value]  # which is the bug

    async def half() -> AsyncIterator[bytes]:
        yield b"half"
        raise ValueError("a bug")

    for path in ("/raises", "/split", "/none"):
        seen = await talk(handler, scope_of("GET", path), request())
        assert (seen.status, len(seen.defects), b"bug" in seen.body) == (500, 1, False)
    seen = await talk(handler, scope_of("GET", "/half"), request())
    assert (seen.body, seen.whole, len(seen.defects)) == (b"half", False, 1)


async def test_a_body_is_read_once() -> None:
    async def handler(exchange: Exchange) -> Response:
        assert await exchange.next_piece() == b"a"
        with pytest.raises(RuntimeError):
            await exchange.read_body()
        assert [await exchange.next_piece(), await exchange.next_piece()] == [b"b", b""]
        return text("")

    assert (await talk(handler, messages=request(b"a", b"b"))).defects == []


async def test_failures_are_the_exchanges_own() -> None:
    async def handler(exchange: Exchange) -> Response:
        for _ in range(2):
            with pytest.raises(ExchangeFailed) as failed:
                await exchange.read_body()
        assert exchange.owns(failed.value)
        return text("")

    assert (await talk(handler, scope_of("POST"), leaves_after=0)).defects == []


def test_cancelled_at_any_step() -> None:
    closed: list[str] = []

    async def pieces() -> AsyncIterator[bytes]:
        closed.append("began")
        try:
            for _ in range(3):
                await trio.sleep(1)
                yield b"x"
        finally:
            closed.append("ended")

    async def handler(exchange: Exchange) -> Response:
        exchange.watch_disconnect(lambda: None)
        await exchange.read_body()
        return stream(pieces)

    async def program() -> None:
        assert (await talk(handler, messages=request(b"a", b"b"))).body == b"xxx"

    def all_closed() -> None:
        if closed.count("began") != closed.count("ended"):
            raise AssertionError("a stream was not closed")

    assert cancel_sweep(program, check=all_closed).delivered > 20
