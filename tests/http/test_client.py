"""The client against peers of every kind: whole answers, honest errors, and every slot back in the pool."""

from __future__ import annotations

import gc
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from zerver.effects.http import Reply
from zerver.errors import AddressRefused, ConnectFailed, DefinitionError, ExchangeFailed, HttpError, ProtocolViolation
from zerver.http.client import ClientLimits, HttpClient, open_http_client
from zerver.http.gate import HeadLimits
from zerver.http.messages import RequestHead
from zerver.http.outgoing import Origin
from zerver.http.reading import EndOfMessage, Mark
from zerver.http.wire import ServerWire
from zerver.testing.scheduler import seeded
from zerver.testing.sweep import sweep_calls

URL = "http://peer.example/path?query"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: 1\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"

Script = Callable[["Line"], Awaitable[object]]


class Line:
    """A peer's end of one connection."""

    def __init__(self, stream: trio.abc.Stream, asked: list[tuple[RequestHead, bytes]]) -> None:
        self.stream = stream
        self.asked = asked
        self.wire = ServerWire()

    async def read(self) -> bool:
        """Read a whole request. False when the client has closed."""
        head: RequestHead | None = None
        body = b""
        while True:
            event = self.wire.next_event()
            if isinstance(event, RequestHead):
                head = event
            elif isinstance(event, bytes):
                body += event
            elif isinstance(event, EndOfMessage):
                break
            elif event is Mark.NEED_DATA:
                try:
                    self.wire.receive(bytes(await self.stream.receive_some()))
                except trio.BrokenResourceError:
                    return False
            else:
                return False
        assert head is not None
        self.asked.append((head, body))
        self.wire = ServerWire()  # the answer is none of its business
        return True

    async def say(self, data: bytes, step: int = 1 << 30) -> None:
        for at in range(0, len(data), step):
            await self.stream.send_all(data[at : at + step])


class Peers:
    """Dials in memory: each connection gets the next script, the last script for ever."""

    def __init__(self, nursery: trio.Nursery, *scripts: Script) -> None:
        self.asked: list[tuple[RequestHead, bytes]] = []
        self.dialled: list[Origin] = []
        self.nursery = nursery
        self.scripts = list(scripts)

    async def dial(self, origin: Origin) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.dialled.append(origin)
        ours, theirs = memory_stream_pair()
        self.nursery.start_soon(self.run, theirs)
        return ours

    async def run(self, stream: trio.abc.Stream) -> None:
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        try:
            await script(Line(stream, self.asked))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client was quicker
        finally:
            await trio.aclose_forcefully(stream)

    def heads(self) -> list[RequestHead]:
        return [head for head, _ in self.asked]


def answering(*answers: bytes, step: int = 1 << 30) -> Script:
    """Answer requests with these, in turn and then the last one for ever."""

    async def script(line: Line) -> None:
        left = list(answers)
        while await line.read():
            await line.say(left.pop(0) if len(left) > 1 else left[0], step)

    return script


def once(answer: bytes, step: int = 1 << 30) -> Script:
    """Answer one request, then close."""

    async def script(line: Line) -> None:
        if await line.read():
            await line.say(answer, step)

    return script


async def deaf(line: Line) -> None:
    """Read, and never answer."""
    while await line.read():
        pass


async def hang_up(_: Line) -> None:
    """Close at once."""


@asynccontextmanager
async def client_of(
    *scripts: Script, limits: ClientLimits | None = None, tell_deadline: bool = False
) -> AsyncIterator[tuple[HttpClient, Peers]]:
    async with trio.open_nursery() as nursery:
        peers = Peers(nursery, *scripts)
        async with open_http_client(
            dial=peers.dial, limits=limits or ClientLimits(), tell_deadline=tell_deadline
        ) as client:
            yield client, peers
            statistics = client.statistics()
            assert (statistics.busy, statistics.waiting) == (0, 0)
        nursery.cancel_scope.cancel()


def idle(client: HttpClient) -> int:
    return client.statistics().idle


# ---- requests ---------------------------------------------------------------------------------


async def test_what_is_sent() -> None:
    async with client_of(answering(HELLO)) as (client, peers):
        await client.request("GET", URL)
        await client.request("POST", "http://peer.example:81/", headers={"X-A": "b"}, body=b"hi", key="k")
        await client.request("PUT", "http://[2001:db8::1]/", headers={"host": "me", "accept": "a/b"})
    (get, nothing), (post, body), (put, _) = peers.asked
    assert nothing == b""
    assert (get.method, get.target, dict(get.headers)) == (
        "GET",
        "/path?query",
        {"host": "peer.example", "user-agent": "zerver", "accept": "*/*", "accept-encoding": "identity"},
    )
    assert body == b"hi"
    assert dict(post.headers).items() >= {"host": "peer.example:81", "x-a": "b", "idempotency-key": "k"}.items()
    assert post.headers.get("content-length") == "2"
    assert (put.headers.get("host"), put.headers.get("accept"), put.headers.get("content-length")) == ("me", "a/b", "0")
    assert peers.dialled == [
        Origin("http", "peer.example", 80),
        Origin("http", "peer.example", 81),
        Origin("http", "2001:db8::1", 80),
    ]


async def test_nothing_is_sent_of_what_cannot_be_sent() -> None:
    async with client_of(answering(HELLO)) as (client, peers):
        for attempt in (
            lambda: client.request("GET", "http://peer.example/\r\nX: 1"),
            lambda: client.request("GET", URL, headers={"X": "1\r\nY: 2"}),
            lambda: client.request("GET\r\n", URL),
            lambda: client.request("POST", URL, key="\n"),
        ):
            with pytest.raises(DefinitionError):
                await attempt()
    assert peers.dialled == []


async def body_of(*pieces: bytes) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        await trio.lowlevel.checkpoint()
        yield piece


async def test_a_body_in_pieces_is_sent_chunked() -> None:
    async with client_of(answering(HELLO)) as (client, peers):
        await client.request("POST", URL, body=body_of(b"a", b"", b"bc"))
        assert idle(client) == 1
    head, body = peers.asked[0]
    assert (head.headers.get("transfer-encoding"), body) == ("chunked", b"abc")


async def test_a_large_body() -> None:
    large = random.Random(1).randbytes(300_000)
    async with client_of(answering(HELLO)) as (client, peers):
        assert (await client.request("POST", URL, body=large)).body == b"hello"
        await wait_all_tasks_blocked()
        assert (await client.request("POST", URL, body=large)).body == b"hello"
    assert [body for _, body in peers.asked] == [large, large]


async def test_an_error_of_the_body_comes_out_bare_and_cuts_the_exchange() -> None:
    closed: list[bool] = []

    async def body() -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            raise ZeroDivisionError
        finally:
            closed.append(True)

    async with client_of(answering(HELLO)) as (client, _):
        with pytest.raises(ZeroDivisionError):
            await client.request("POST", URL, body=body())
        assert idle(client) == 0
    assert closed == [True]


async def test_an_answer_before_the_end_of_the_body_ends_the_sending() -> None:
    closed: list[bool] = []

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                await trio.lowlevel.checkpoint()
                yield b"x" * 1000
        finally:
            closed.append(True)

    async def impatient(line: Line) -> None:
        await line.stream.receive_some()
        await line.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await trio.sleep_forever()

    async with client_of(impatient) as (client, _):
        reply = await client.request("POST", URL, body=endless())
        assert (reply.status, reply.body) == (413, b"no")
        assert idle(client) == 0
    assert closed == [True]


async def test_a_peer_that_answers_and_hangs_up_before_it_has_read_is_heard() -> None:
    async def impatient(line: Line) -> None:
        await line.stream.receive_some(10)
        await line.say(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")

    async with client_of(impatient) as (client, _):
        for body in (b"x", b"x" * 1_000_000, body_of(b"x", b"y")):
            reply = await client.request("POST", URL, body=body)
            assert (reply.status, reply.body) == (413, b"no")
            assert idle(client) == 0


async def test_a_peer_that_echoes_does_not_lock_up() -> None:
    async def echo(line: Line) -> None:
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        seen = bytearray()
        while b"\r\n\r\n" not in seen:
            seen += await line.stream.receive_some()
        data, left = bytes(seen.partition(b"\r\n\r\n")[2]), 1_000_000
        while left:
            await line.stream.send_all(data)
            left -= len(data)
            data = bytes(await line.stream.receive_some(4096)) if left else b""

    large = random.Random(2).randbytes(1_000_000)
    async with serving(echo) as port, open_http_client(allow_private=True) as client:
        assert (await client.request("POST", f"http://127.0.0.1:{port}/", body=large)).body == large


# ---- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 1 << 30])
@pytest.mark.parametrize(
    ("answer", "body", "kept"),
    [
        (HELLO, b"hello", True),
        (CHUNKED, b"hello", True),
        (UNTIL_CLOSE, b"hello", False),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", b"", True),
        (HELLO.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), b"hello", False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + HELLO, b"hello", True),
        (HELLO + b"HTTP/1.1 200 OK\r\n", b"hello", None),  # unasked for: dropped at once, or at the next look
    ],
)
async def test_answers(answer: bytes, body: bytes, kept: bool | None, step: int) -> None:
    script = once(answer, step) if kept is False else answering(answer, step=step)
    async with client_of(script) as (client, peers):
        assert (await client.request("GET", URL)).body == body
        if kept is not None:
            assert idle(client) == kept
            assert (await client.request("GET", URL)).body == body
            assert len(peers.dialled) == (1 if kept else 2)


async def test_head_has_no_body() -> None:
    async with client_of(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")) as (client, _):
        for _ in range(2):
            reply = await client.request("HEAD", URL)
            assert (reply.headers["content-length"], reply.body) == ("99999999999", b"")
        assert idle(client) == 1


async def test_headers_of_a_reply() -> None:
    answer = b"HTTP/1.1 201 Yes\r\nX-A: 1\r\nContent-Length: 0\r\nX-a:  2 \r\n\r\n"
    async with client_of(answering(answer)) as (client, _):
        assert await client.request("GET", URL) == Reply(201, {"x-a": "1, 2", "content-length": "0"}, b"")


async def test_bytes_after_the_answer_close_the_connection() -> None:
    async with client_of(answering(HELLO + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")) as (client, peers):
        for _ in range(3):
            assert (await client.request("GET", URL)).body == b"hello"
            assert idle(client) == 0
    assert len(peers.dialled) == 3


BAD = [
    b"\x16\x03\x01",
    b"SSH-2.0-x\r\n\r\n",
    b"HTTP/2 200 OK\r\n\r\n",
    b"HTTP/1.1 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
    b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 17,
    b"HTTP/1.1 200 " + b"x" * 9_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"b" * 17_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"A: %b\r\n" % (b"b" * 1_000) * 70,
]


@pytest.mark.parametrize("answer", BAD)
async def test_what_is_not_http_is_a_violation(answer: bytes) -> None:
    async with client_of(answering(answer)) as (client, peers):
        with pytest.raises(ProtocolViolation):
            await client.request("GET", URL)
        assert idle(client) == 0
    assert len(peers.asked) == 1  # it is not asked again


async def test_limits_on_heads_can_be_set() -> None:
    async with client_of(answering(HELLO), limits=ClientLimits(head=HeadLimits(fields=0))) as (client, _):
        with pytest.raises(ProtocolViolation, match="fields"):
            await client.request("GET", URL)


@pytest.mark.parametrize("answer", [HELLO, CHUNKED, UNTIL_CLOSE])
async def test_a_body_over_the_limit(answer: bytes) -> None:
    async with client_of(once(answer)) as (client, _):
        with pytest.raises(ProtocolViolation, match="over 4 bytes"):
            await client.request("GET", URL, limit=4)
        assert idle(client) == 0
        assert (await client.request("GET", URL, limit=5)).body == b"hello"


async def test_an_announced_body_over_the_limit_is_not_read() -> None:
    async with client_of(once(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")) as (client, _):
        with pytest.raises(ProtocolViolation, match="over 5 bytes"):
            await client.request("GET", URL, limit=5)


@pytest.mark.parametrize("answer", [HELLO, CHUNKED])
async def test_a_cut_answer_is_a_failed_exchange(answer: bytes) -> None:
    for cut in range(1, len(answer)):
        async with client_of(once(answer[:cut])) as (client, peers):
            with pytest.raises(ExchangeFailed, match=r"GET http://peer\.example: .*middle"):
                await client.request("GET", URL)
            assert (idle(client), len(peers.asked)) == (0, 1)


# ---- stale connections ------------------------------------------------------------------------


async def test_a_stale_connection_is_replaced_once_where_that_is_safe() -> None:
    for method, key in (("GET", None), ("HEAD", None), ("OPTIONS", None), ("POST", "k"), ("DELETE", "k")):
        async with client_of(once(b"HTTP/1.1 204 \r\n\r\n"), answering(b"HTTP/1.1 204 \r\n\r\n")) as (client, peers):
            await client.request("GET", URL)
            await client.request(method, URL, key=key)
            assert (len(peers.dialled), idle(client)) == (2, 1)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_refused_repetition_of_a_write_says_nothing_of_the_first_time(status: int) -> None:
    refused = b"HTTP/1.1 %d No\r\nContent-Length: 5\r\n\r\nlater" % status
    async with client_of(once(HELLO), answering(refused)) as (client, peers):
        await client.request("GET", URL)
        with pytest.raises(ExchangeFailed, match=f"answered {status} when asked again"):
            await client.request("POST", URL, key="k")
        assert (len(peers.dialled), idle(client)) == (2, 0)
    async with client_of(once(HELLO), answering(refused)) as (client, _):
        await client.request("GET", URL)
        assert (await client.request("GET", URL)).status == status


async def test_a_large_body_is_sent_again_on_the_new_connection() -> None:
    large = b"x" * 200_000
    async with client_of(once(HELLO), answering(HELLO)) as (client, peers):
        await client.request("GET", URL)
        assert (await client.request("POST", URL, body=large, key="k")).body == b"hello"
        assert (len(peers.dialled), peers.asked[-1][1]) == (2, large)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_a_write_without_a_key_is_never_sent_twice(method: str) -> None:
    async with client_of(once(HELLO), answering(HELLO)) as (client, peers):
        await client.request("GET", URL)
        with pytest.raises(ExchangeFailed, match="before it answered"):
            await client.request(method, URL)
        assert (len(peers.dialled), idle(client)) == (1, 0)


async def test_a_body_in_pieces_is_never_sent_twice() -> None:
    async with client_of(once(HELLO), answering(HELLO)) as (client, peers):
        await client.request("GET", URL)
        with pytest.raises(ExchangeFailed, match="before it answered"):
            await client.request("POST", URL, body=body_of(b"a"), key="k")
        assert len(peers.dialled) == 1


async def test_a_new_connection_is_not_tried_twice() -> None:
    async def read_and_go(line: Line) -> None:
        await line.read()

    async with client_of(read_and_go) as (client, peers):
        with pytest.raises(ExchangeFailed, match="before it answered"):
            await client.request("GET", URL)
        assert len(peers.dialled) == 1


async def test_only_one_more_try() -> None:
    async with client_of(once(HELLO), hang_up, answering(HELLO)) as (client, peers):
        await client.request("GET", URL)
        with pytest.raises(ExchangeFailed):
            await client.request("GET", URL)
        assert len(peers.dialled) == 2


async def test_not_again_once_a_byte_has_come() -> None:
    async def half(line: Line) -> None:
        await line.read()
        await line.say(HELLO)
        await line.read()
        await line.say(b"H")

    async with client_of(half, answering(HELLO)) as (client, peers):
        await client.request("GET", URL)
        with pytest.raises(ExchangeFailed, match="middle of a head"):
            await client.request("GET", URL)
        assert len(peers.dialled) == 1


async def test_when_the_new_connection_fails_too_something_has_been_sent() -> None:
    async with client_of(once(HELLO)) as (client, peers):
        await client.request("GET", URL)

        async def refuse(origin: Origin) -> trio.abc.Stream:
            raise ConnectFailed("refused")

        client._dial = refuse
        with pytest.raises(ExchangeFailed, match=r"in vain.*refused"):
            await client.request("POST", URL, key="k")
        with pytest.raises(ConnectFailed):
            await client.request("POST", URL, key="k")
    assert len(peers.dialled) == 1


# ---- streams ----------------------------------------------------------------------------------


async def test_an_answer_is_streamed_as_it_comes() -> None:
    more = trio.Event()

    async def slow(line: Line) -> None:
        await line.read()
        await line.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n")
        await more.wait()
        await line.say(b"3\r\nllo\r\n0\r\n\r\n")
        await line.read()

    async with client_of(slow) as (client, _):
        got = []
        async with client.stream("GET", URL) as response:
            assert (response.status, response.headers.get("transfer-encoding")) == (200, "chunked")
            async for chunk in response:
                got.append(chunk)
                more.set()
            assert await response.read() == b""  # it stays at its end
        assert got == [b"he", b"llo"]
        assert idle(client) == 1


async def test_the_unread_rest_costs_the_connection() -> None:
    async with client_of(answering(CHUNKED, step=1)) as (client, _):
        async with client.stream("GET", URL) as response:
            async for _ in response:
                break
        assert idle(client) == 0


async def test_an_answer_without_a_body_need_not_be_read() -> None:
    async with client_of(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as (client, _):
        async with client.stream("GET", URL):
            pass
        assert idle(client) == 1


async def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    async with client_of(answering(HELLO)) as (client, _):
        for body in (b"", b"x" * 100_000):
            with pytest.raises(ZeroDivisionError):
                async with client.stream("POST", URL, body=body):
                    raise ZeroDivisionError
            assert idle(client) == 0


async def test_an_answer_is_not_read_outside_its_block() -> None:
    async with client_of(answering(HELLO)) as (client, _):
        async with client.stream("GET", URL) as response:
            pass
        with pytest.raises(ExchangeFailed, match="outside of its block"):
            await response.read()


# ---- time -------------------------------------------------------------------------------------


async def test_a_total_timeout_after_sending(autojump_clock: MockClock) -> None:
    async with client_of(deaf) as (client, _):
        with pytest.raises(ExchangeFailed, match="time was up"):
            await client.request("GET", URL, timeout=3)
        assert trio.current_time() == 3
        assert idle(client) == 0


async def test_a_trickle_does_not_outlive_the_timeout(autojump_clock: MockClock) -> None:
    async def trickle(line: Line) -> None:
        await line.read()
        await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await trio.sleep(0.05)
            await line.say(b"x")

    async with client_of(trickle) as (client, _):
        with pytest.raises(ExchangeFailed, match="time was up"):
            await client.request("GET", URL, timeout=0.3)
        assert trio.current_time() == pytest.approx(0.3)
        async with client.stream("GET", URL, timeout=1) as response:
            with pytest.raises(ExchangeFailed, match="time was up"):
                async for _ in response:
                    pass
        assert trio.current_time() == pytest.approx(1.3)


async def test_the_timeout_of_a_stream_does_not_cut_the_block(autojump_clock: MockClock) -> None:
    async with client_of(answering(HELLO)) as (client, _), client.stream("GET", URL, timeout=1) as response:
        await trio.sleep(5)
        assert await response.read() == b"hello"  # it had arrived in time


async def test_a_timeout_before_sending(autojump_clock: MockClock) -> None:
    async def never(origin: Origin) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    async with open_http_client(dial=never, limits=ClientLimits(per_origin=1, connect_seconds=5)) as client:
        with pytest.raises(ConnectFailed, match="time was up"):
            await client.request("GET", URL, timeout=3)
        with pytest.raises(ConnectFailed, match="no connection within 5 s"):
            await client.request("GET", URL, timeout=None)
        assert trio.current_time() == 8
        assert client.statistics().busy == 0


async def test_the_wait_for_a_connection_counts(autojump_clock: MockClock) -> None:
    async with client_of(deaf, limits=ClientLimits(per_origin=1)) as (client, peers):
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                with pytest.raises(ExchangeFailed):
                    await client.request("GET", URL, timeout=10)

            nursery.start_soon(first)
            await wait_all_tasks_blocked()
            with pytest.raises(ConnectFailed, match="time was up"):
                await client.request("GET", URL, timeout=3)
            assert trio.current_time() == 3
        assert len(peers.dialled) == 1


async def test_the_callers_scope_is_obeyed(autojump_clock: MockClock) -> None:
    async with client_of(deaf) as (client, _):
        with trio.move_on_after(2) as scope:
            await client.request("GET", URL)
        assert scope.cancelled_caught
        assert trio.current_time() == 2
        assert idle(client) == 0


async def test_the_deadline_is_told_downstream(autojump_clock: MockClock) -> None:
    name = "x-request-timeout-ms"
    async with client_of(answering(HELLO), tell_deadline=True) as (client, peers):
        with trio.fail_after(2.5):
            await client.request("GET", URL, timeout=None)
            await client.request("GET", URL, timeout=1)
            await client.request("GET", URL, headers={name: "7"})
        await client.request("GET", URL, timeout=None)
    # 50 ms on top, so that our own timeout comes before the other side's 504.
    assert [head.headers.get(name) for head in peers.heads()] == ["2550", "1050", "7", None]
    async with client_of(answering(HELLO)) as (client, peers):
        await client.request("GET", URL)
    assert name not in peers.heads()[0].headers


async def test_an_idle_connection_is_closed_in_time(autojump_clock: MockClock) -> None:
    async with client_of(answering(HELLO), limits=ClientLimits(idle_seconds=4)) as (client, peers):
        await client.request("GET", URL)
        await trio.sleep(3)
        await client.request("GET", URL)
        assert len(peers.dialled) == 1
        await trio.sleep(5)
        assert client.statistics().origins == ()
        await client.request("GET", URL)
        assert len(peers.dialled) == 2


# ---- sharing ----------------------------------------------------------------------------------


async def test_the_limit_of_connections_is_kept(autojump_clock: MockClock) -> None:
    now = most = 0

    async def counting(line: Line) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            while await line.read():
                await trio.sleep(0.01)
                await line.say(HELLO)
        finally:
            now -= 1

    async with client_of(counting, limits=ClientLimits(per_origin=3)) as (client, peers):
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(client.request, "GET", URL)
        assert (most, len(peers.asked), len(peers.dialled)) == (3, 30, 3)


@pytest.mark.parametrize("seed", range(4))
async def test_random_cancellations_lose_no_slot(seed: int, autojump_clock: MockClock) -> None:
    """The load under which httpx 0.28 fills its pool for ever: 5 slots, 8 rounds of 300 cut requests."""
    rng = random.Random(seed)

    async def slow(line: Line) -> None:
        while await line.read():
            await trio.sleep(rng.random() * 0.01)
            await line.say(CHUNKED, step=40)
            if rng.random() < 0.1:
                return

    async def ask() -> None:
        nonlocal answered
        with trio.move_on_after(rng.random() * 0.02):
            try:
                if rng.random() < 0.5:
                    await client.request("POST", URL, body=b"x" * rng.choice((0, 10, 100_000)))
                else:
                    async with client.stream("GET", URL) as response:
                        await trio.sleep(rng.random() * 0.01)
                        await response.read()
                answered += 1
            except ExchangeFailed:
                pass

    answered = 0
    with seeded(seed):
        async with client_of(slow, limits=ClientLimits(per_origin=5)) as (client, _):
            for _ in range(8):
                async with trio.open_nursery() as nursery:
                    for _ in range(300):
                        nursery.start_soon(ask)
                statistics = client.statistics()
                assert (statistics.busy, statistics.waiting) == (0, 0)
                assert statistics.idle <= 5
            async with trio.open_nursery() as nursery:  # all five slots still serve
                for _ in range(20):
                    nursery.start_soon(client.request, "GET", URL)
    assert answered > 0


@pytest.mark.parametrize("kind", ["fresh", "reused", "stale", "upload", "stream", "waiting"])
async def test_cancelled_at_every_step(kind: str, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        fresh = kind in ("fresh", "upload")
        closing = HELLO.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")
        peers = Peers(
            nursery, {"stale": once(HELLO), "fresh": once(closing), "upload": once(closing)}.get(kind, answering(HELLO))
        )
        limits = ClientLimits(per_origin=1)
        async with open_http_client(dial=peers.dial, limits=limits) as client:

            async def setup() -> None:
                if not fresh:
                    await client.request("GET", "http://peer.example/setup", limit=100)

            async def call() -> None:
                if kind == "upload":
                    await client.request("POST", URL, body=body_of(b"a", b"b"))
                elif kind == "stream":
                    async with client.stream("GET", URL) as response:
                        async for _ in response:
                            pass
                elif kind == "waiting":
                    async with trio.open_nursery() as inner:
                        inner.start_soon(client.request, "GET", URL)
                        inner.start_soon(client.request, "GET", URL)
                else:
                    await client.request("GET", URL)

            def check() -> None:
                statistics = client.statistics()
                assert (statistics.busy, statistics.waiting) == (0, 0)

            report = await sweep_calls(call, setup=setup, check=check, seed=1)
            assert report.delivered > 0
        nursery.cancel_scope.cancel()


async def test_closing_the_client_with_an_exchange_under_way() -> None:
    async with trio.open_nursery() as nursery:
        peers = Peers(nursery, deaf)
        with trio.CancelScope() as scope:
            async with open_http_client(dial=peers.dial) as client:
                nursery.start_soon(wait_and_cancel, scope)
                await client.request("GET", URL, timeout=None)
        assert scope.cancelled_caught
        assert client.statistics().origins == ()
        with pytest.raises(ConnectFailed, match="closed"):
            await client.request("GET", URL)
        nursery.cancel_scope.cancel()


async def wait_and_cancel(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_an_error_in_the_clients_block_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_http_client():
            raise ZeroDivisionError


# ---- real sockets -----------------------------------------------------------------------------


@asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A scripted peer on a loopback socket."""

    async def handler(stream: trio.abc.Stream) -> None:
        secured = trio.SSLStream(stream, tls, server_side=True) if tls else stream
        try:
            await script(Line(secured, []))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(secured)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handler, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_private_addresses_are_refused_unless_allowed() -> None:
    async with serving(answering(HELLO)) as port, open_http_client() as client:
        for host in ("127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]"):
            with pytest.raises(AddressRefused):
                await client.request("GET", f"http://{host}:{port}/")
        assert client.statistics().origins == ()


async def test_a_connection_closed_between_requests_is_not_used() -> None:
    closed = trio.Event()

    async def polite(line: Line) -> None:
        await once(HELLO)(line)
        await line.stream.aclose()
        closed.set()

    async with serving(polite) as port, open_http_client(allow_private=True) as client:
        for _ in range(3):
            # A write without a key would fail on a stale connection; this one is seen to be closed beforehand.
            assert (await client.request("POST", f"http://127.0.0.1:{port}/")).body == b"hello"
            await closed.wait()
            closed = trio.Event()


async def test_garbage_between_requests_is_never_an_answer() -> None:
    said = trio.Event()

    async def babbling(line: Line) -> None:
        while await line.read():
            await line.say(HELLO)
            await wait_all_tasks_blocked()
            await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            said.set()

    async with serving(babbling) as port, open_http_client(allow_private=True) as client:
        for _ in range(3):
            assert (await client.request("GET", f"http://127.0.0.1:{port}/")).body == b"hello"
            await said.wait()
            said = trio.Event()


async def test_https() -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    large = random.Random(3).randbytes(500_000)

    async def echo(line: Line) -> None:
        while await line.read():
            _, body = line.asked[-1]
            await line.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with serving(echo, server) as port:
        async with open_http_client(allow_private=True, tls=trusting) as client:
            for host in ("localhost", "127.0.0.1"):
                for _ in range(3):
                    reply = await client.request("POST", f"https://{host}:{port}/", body=large)
                    assert reply.body == large
            assert idle(client) == 2
        async with open_http_client(allow_private=True) as client:
            with pytest.raises(ConnectFailed, match=r"TLS failed.*certificate"):
                await client.request("GET", f"https://localhost:{port}/")


@pytest.mark.parametrize("goodbye", [True, False])
async def test_a_body_that_ends_with_the_connection_is_whole_only_if_tls_says_so(goodbye: bool) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def script(line: Line) -> None:
        await once(UNTIL_CLOSE)(line)
        if goodbye:
            await line.stream.aclose()

    async with serving(script, server) as port, open_http_client(allow_private=True, tls=trusting) as client:
        if goodbye:
            assert (await client.request("GET", f"https://localhost:{port}/")).body == b"hello"
        else:
            with pytest.raises(ExchangeFailed, match="broke"):
                await client.request("GET", f"https://localhost:{port}/")


async def test_a_reset_in_the_middle() -> None:
    async def reset(line: Line) -> None:
        await line.say(HELLO[:-1])  # and closes with the request unread, which resets the connection

    async with serving(reset) as port, open_http_client(allow_private=True) as client:
        with pytest.raises(ExchangeFailed):
            await client.request("POST", f"http://127.0.0.1:{port}/", body=b"x" * 10_000)


async def test_what_nobody_waits_for_is_not_sent() -> None:
    asked: list[bytes] = []

    async def noting(line: Line) -> None:
        while await line.read():
            asked.append(line.asked[-1][1])
            await line.say(HELLO)

    async with serving(noting) as port, open_http_client(allow_private=True) as client:
        url = f"http://127.0.0.1:{port}/"
        await client.request("POST", url, body=b"1")
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.request("POST", url, body=b"2")
        assert (scope.cancelled_caught, idle(client)) == (True, 0)
        assert (await client.request("POST", url, body=b"3")).body == b"hello"
    assert asked == [b"1", b"3"]


async def test_cut_at_random_over_real_sockets() -> None:
    rng = random.Random(5)

    async def ask() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cut, scope, rng.randrange(60))
                await client.request("GET", f"http://127.0.0.1:{port}/")
                nursery.cancel_scope.cancel()

    async def cut(scope: trio.CancelScope, steps: int) -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    limits = ClientLimits(per_origin=5)
    async with serving(answering(HELLO)) as port, open_http_client(allow_private=True, limits=limits) as client:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(ask)
            statistics = client.statistics()
            assert (statistics.busy, statistics.waiting) == (0, 0)
        for _ in range(10):
            assert (await client.request("GET", f"http://127.0.0.1:{port}/")).body == b"hello"
    gc.collect()


# ---- anything at all --------------------------------------------------------------------------

_PARTS = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"HTTP/1.1 ", b"200 OK", b"\r\n", b"\r\n\r\n", b"Content-Length: ", b"5", b"Transfer-Encoding: chunked", b"\n"]
    ),
    st.sampled_from([HELLO, CHUNKED, UNTIL_CLOSE, *BAD]).flatmap(lambda whole: st.just(whole[:200])),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PARTS, max_size=6), st.integers(1, 40), st.sampled_from(["GET", "HEAD", "POST"]))
def test_no_bytes_give_anything_but_a_reply_or_an_error_of_ours(parts: list[bytes], step: int, method: str) -> None:
    async def main() -> None:
        async with client_of(once(b"".join(parts), step)) as (client, _):
            for _ in range(2):
                try:
                    reply = await client.request(method, URL, timeout=5)
                    assert 200 <= reply.status < 600
                except HttpError:
                    pass

    trio.run(main, clock=MockClock(autojump_threshold=0))
