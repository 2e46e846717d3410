"""A connection answers, streams, waits, refuses and closes as promised, and survives cancellation at every step."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import h11
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from zerver.errors import ExchangeFailed, ProtocolViolation
from zerver.http.connection import Connection, Service
from zerver.http.exchange import Exchange, Limits
from zerver.http.gate import HeadLimits
from zerver.http.messages import Response
from zerver.http.response import no_content, stream, text

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@attrs.define
class Answer:
    """What a client made of one response."""

    status: int
    headers: dict[str, str]
    body: bytes


@attrs.define
class Talk:
    """What a client saw of a connection: the answers, and whether the last one was whole."""

    answers: list[Answer]
    whole: bool
    defects: list[Exception]

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


async def echo(exchange: Exchange) -> Response:
    """The method, the path and the body."""
    body = await exchange.read_body()
    return text(f"{exchange.head.method} {exchange.head.path} {body.decode('latin-1')}")


def parse(data: bytes, method: str) -> tuple[list[Answer], bool]:
    """The answers in what a server sent before it closed. Interim ones count."""
    answers: list[Answer] = []
    while data:
        peer = h11.Connection(h11.CLIENT)
        peer.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        peer.send(h11.EndOfMessage())
        peer.receive_data(data)
        while True:
            try:
                event = peer.next_event()
            except h11.RemoteProtocolError:
                return answers, False
            if event is h11.NEED_DATA:
                peer.receive_data(b"")
            elif isinstance(event, h11.Response | h11.InformationalResponse):
                headers = {name.decode(): value.decode() for name, value in event.headers}
                answers.append(Answer(event.status_code, headers, b""))
            elif isinstance(event, h11.Data):
                answers[-1].body += bytes(event.data)
            else:
                break
        data = peer.trailing_data[0]
    return answers, True


async def talk(
    *sent: bytes,
    handler: Callable[[Exchange], Awaitable[Response]] = echo,
    limits: Limits = Limits(),  # noqa: B008  # a frozen value
    eof: bool = False,
    method: str = "GET",
) -> Talk:
    """Send the pieces, read to the end of the stream, and take the connection's leave for granted."""
    client, server = memory_stream_pair()
    defects: list[Exception] = []
    received = bytearray()

    async def send() -> None:
        for piece in sent:
            try:
                await client.send_all(piece)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the server has closed before it had read all
        if eof:
            await client.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(handler, limits, defects.append)).run)
        nursery.start_soon(send)
        try:
            async for data in client:
                received += data
        except trio.BrokenResourceError:
            pass
        await client.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await server.receive_some(1)
    return Talk(*parse(bytes(received), method), defects)


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def post(body: bytes, *headers: str, close: bool = True) -> bytes:
    lines = [f"Content-Length: {len(body)}", *headers, *(["Connection: close"] if close else [])]
    return ("POST /p HTTP/1.1\r\nHost: a\r\n" + "".join(line + "\r\n" for line in lines) + "\r\n").encode() + body


def chunked(*chunks: bytes, close: bool = True) -> bytes:
    head = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + b"Connection: close\r\n" * close
    return head + b"\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


# ---- plain exchanges ------------------------------------------------------------------------------

PLAIN = {
    "get": (LAST, [b"GET /last "]),
    "sized body": (post(b"hello"), [b"POST /p hello"]),
    "chunked body": (chunked(b"he", b"llo"), [b"POST /c hello"]),
    "keep-alive": (GET + post(b"x", close=False) + LAST, [b"GET / ", b"POST /p x", b"GET /last "]),
    "pipelined after chunks": (chunked(b"x", close=False) + LAST, [b"POST /c x", b"GET /last "]),
    "1.0": (b"GET /old HTTP/1.0\r\n\r\n", [b"GET /old "]),
    "1.0 asks for keep-alive": (b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET, [b"GET /old "]),
    "nothing after close": (LAST + GET, [b"GET /last "]),
}


@pytest.mark.parametrize(("sent", "bodies"), PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("cut", [lambda data: [data], bytewise], ids=["whole", "bytewise"])
async def test_exchanges(
    sent: bytes, bodies: list[bytes], cut: Callable[[bytes], list[bytes]], autojump_clock: MockClock
) -> None:
    seen = await talk(*cut(sent))
    assert [answer.body for answer in seen.answers] == bodies
    assert seen.whole
    assert set(seen.statuses) == {200}
    assert seen.answers[-1].headers["connection"] == "close"
    assert all("connection" not in answer.headers for answer in seen.answers[:-1])
    assert all("date" in answer.headers and "server" not in answer.headers for answer in seen.answers)
    assert not seen.defects


async def test_a_whole_answer_is_one_write() -> None:
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(echo)).run)
        await client.send_all(GET)
        assert bytes(await client.receive_some()).endswith(b"\r\n\r\nGET / ")
        await client.aclose()


async def test_head_has_the_headers_of_get_and_no_body(autojump_clock: MockClock) -> None:
    seen = await talk(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", method="HEAD")
    assert (seen.answers[0].headers["content-length"], seen.answers[0].body, seen.whole) == ("7", b"", True)

    async def declared(exchange: Exchange) -> Response:
        return text("", headers={"content-length": "99"})

    head = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
    seen = await talk(head + head, eof=True, handler=declared, method="HEAD")
    assert [answer.headers["content-length"] for answer in seen.answers] == ["99", "99"]


async def test_a_204_has_no_body_and_keeps_the_connection(autojump_clock: MockClock) -> None:
    async def nothing(exchange: Exchange) -> Response:
        return no_content() if exchange.head.path == "/" else Response(304, {}, b"ignored")

    seen = await talk(GET + LAST, handler=nothing)
    assert [(answer.status, answer.body) for answer in seen.answers] == [(204, b""), (304, b"")]
    assert "content-length" not in seen.answers[0].headers
    assert not seen.defects


async def test_a_large_answer_arrives_whole(autojump_clock: MockClock) -> None:
    body = b"0123456789abcdef" * 20_000

    async def large(exchange: Exchange) -> Response:
        return Response(200, {}, body)

    seen = await talk(LAST, handler=large)
    assert seen.answers[0].body == body


# ---- the request's body ---------------------------------------------------------------------------


async def test_the_body_is_read_only_when_it_is_asked_for(autojump_clock: MockClock) -> None:
    client, server = memory_stream_pair()
    admitted = trio.Event()

    async def late(exchange: Exchange) -> Response:
        await admitted.wait()
        return text((await exchange.read_body()).decode())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(late)).run)
        await client.send_all(post(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 2"))
        with pytest.raises(trio.TooSlowError):
            with trio.fail_after(100):
                await client.receive_some()
        admitted.set()
        assert bytes(await client.receive_some()) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send_all(b"ok")
        assert bytes(await client.receive_some()).endswith(b"\r\n\r\nok")


async def test_continue_is_not_said_to_the_impatient_the_old_or_the_refused(autojump_clock: MockClock) -> None:
    expecting = post(b"ok", "Expect: 100-continue")
    assert (await talk(expecting)).statuses == [200]
    assert (await talk(expecting.replace(b"HTTP/1.1", b"HTTP/1.0"))).statuses == [200]

    async def refuse(exchange: Exchange) -> Response:
        return text("no", 403)

    seen = await talk(
        post(b"", "Expect: 100-continue", close=False).replace(b"Length: 0", b"Length: 9"), handler=refuse
    )
    assert (seen.statuses, seen.answers[0].headers["connection"]) == ([403], "close")
    assert (await talk(post(b"ok", "Expect: tea"))).statuses == [417]


async def test_a_body_can_be_read_again_and_after_a_cancelled_read(autojump_clock: MockClock) -> None:
    async def patient(exchange: Exchange) -> Response:
        with trio.move_on_after(1):
            await exchange.read_body()
        assert await exchange.read_body() is await exchange.read_body()
        return text((await exchange.read_body()).decode())

    async with trio.open_nursery() as nursery:
        client, server = memory_stream_pair()
        nursery.start_soon(Connection(server, Service(patient)).run)
        await client.send_all(post(b"hello")[:-2])
        await trio.sleep(2)
        await client.send_all(b"lo")
        assert bytes(await client.receive_some()).endswith(b"\r\n\r\nhello")


async def test_a_body_that_is_here_can_be_read_without_waiting(autojump_clock: MockClock) -> None:
    came: list[bool] = []

    async def hasty(exchange: Exchange) -> Response:
        body = exchange.read_body_nowait()
        came.append(body is not None)
        assert exchange.read_body_nowait() is None or body == b""
        again = await exchange.read_body()
        assert body is None or body == again
        return text(again.decode())

    for sent, here in ((post(b"hello"), True), (post(b""), True), (chunked(b"hello"), False)):
        for cut in (bytewise, lambda data: [data]):
            came.clear()
            seen = await talk(*cut(sent), handler=hasty)
            assert ([answer.status for answer in seen.answers], seen.defects) == ([200], [])
            assert came == [here and (cut is not bytewise or not seen.answers[0].body)]
    limited = await talk(post(b"123456"), handler=hasty, limits=Limits(body=5))
    assert (limited.statuses, came[-1], limited.defects) == ([413], False, [])


@pytest.mark.parametrize("sent", [lambda size: post(b"x" * size), lambda size: chunked(b"x", b"x" * (size - 1))])
async def test_the_body_limit_holds_exactly(sent: Callable[[int], bytes], autojump_clock: MockClock) -> None:
    for cut in (bytewise, lambda data: [data]):
        limits = Limits(body=20)
        assert (await talk(*cut(sent(20)), limits=limits)).statuses == [200]
        seen = await talk(*cut(sent(21)), limits=limits)
        assert seen.statuses == [413]
        assert seen.answers[0].headers["content-type"] == "application/problem+json"
        assert not seen.defects


@pytest.mark.parametrize("sent", [post(b"12345", close=False), chunked(b"12345", close=False)])
async def test_a_body_over_the_limit_ends_the_connection_whoever_answers(
    sent: bytes, autojump_clock: MockClock
) -> None:
    async def small(exchange: Exchange) -> Response:
        try:
            return text((await exchange.read_body(limit=4)).decode())
        except ProtocolViolation as violation:
            return Response(violation.status)

    seen = await talk(sent + LAST, handler=small)
    assert seen.statuses == [413]
    assert seen.answers[0].headers["connection"] == "close"


async def test_a_body_that_says_it_is_too_large_is_not_waited_for(autojump_clock: MockClock) -> None:
    seen = await talk(post(b"").replace(b"Length: 0", b"Length: 1048577"))
    assert seen.statuses == [413]


async def test_a_handler_may_ask_for_less(autojump_clock: MockClock) -> None:
    async def small(exchange: Exchange) -> Response:
        return text((await exchange.read_body(limit=4)).decode())

    assert (await talk(post(b"1234"), handler=small)).statuses == [200]
    assert (await talk(post(b"12345"), handler=small)).statuses == [413]


async def test_an_unread_body_is_drained_if_small_and_closes_the_connection_if_large(autojump_clock: MockClock) -> None:
    async def blind(exchange: Exchange) -> Response:
        return text(exchange.head.path)

    limits = Limits(drain=1000)
    small = post(b"GET /smuggled HTTP/1.1\r\n", close=False)
    assert [a.body for a in (await talk(small + LAST, handler=blind, limits=limits)).answers] == [b"/p", b"/last"]
    small = chunked(b"x" * 900, close=False)
    assert [a.body for a in (await talk(small + LAST, handler=blind, limits=limits)).answers] == [b"/c", b"/last"]
    for large in (post(b"x" * 1001, close=False), chunked(b"x" * 1001, close=False)):
        seen = await talk(large + LAST, handler=blind, limits=limits)
        assert (seen.statuses, seen.whole) == ([200], True)
    endless = post(b"x" * 9, close=False).replace(b"Length: 9", b"Length: 10")
    assert (await talk(endless, handler=blind)).statuses == [200]


async def test_a_malformed_body_is_400_and_its_error_reaches_the_handler(autojump_clock: MockClock) -> None:
    caught: list[Exception] = []

    async def curious(exchange: Exchange) -> Response:
        for _ in range(2):
            try:
                await exchange.read_body()
            except ProtocolViolation as violation:
                caught.append(violation)
        return text("never mind")

    bad = chunked(b"x").replace(b"\r\n1\r\n", b"\r\n1 \r\n")
    assert (await talk(bad + GET)).statuses == [400]
    seen = await talk(bad.replace(b"Connection: close\r\n", b"") + GET, handler=curious)
    assert (seen.statuses, seen.answers[0].headers["connection"]) == ([200], "close")
    assert caught[0] is caught[1]


async def test_a_client_that_leaves_in_its_body_is_no_defect(autojump_clock: MockClock) -> None:
    failures: list[Exception] = []

    async def handler(exchange: Exchange) -> Response:
        try:
            return await echo(exchange)
        except ExchangeFailed as failure:
            failures.append(failure)
            raise

    seen = await talk(post(b"hello")[:-1], eof=True, handler=handler)
    assert (seen.answers, seen.defects, len(failures)) == ([], [], 1)


async def test_an_exchange_ends_with_its_handler(autojump_clock: MockClock) -> None:
    exchanges: list[Exchange] = []

    async def keep(exchange: Exchange) -> Response:
        exchanges.append(exchange)
        return text("")

    await talk(post(b"hello"), handler=keep)
    with pytest.raises(RuntimeError, match="over"):
        await exchanges[0].read_body()


# ---- refusals -------------------------------------------------------------------------------------

REFUSED = {
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "TE and CL": (chunked(b"x").replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n", 1), 400),
    "bad escape": (b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "version": (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    "TLS": (b"\x16\x03\x01", 400),
    "long line": (b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "many fields": (GET[:-2] + b"X: y\r\n" * 100 + b"\r\n", 431),
    "large head": (GET[:-2] + (b"X: " + b"y" * 16000 + b"\r\n") * 5 + b"\r\n", 431),
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
}


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
async def test_a_refusal_is_a_problem_and_the_end(sent: bytes, status: int, autojump_clock: MockClock) -> None:
    for pieces in ([GET + sent + GET], [GET, *bytewise(sent)]):
        seen = await talk(*pieces)
        assert (seen.statuses, seen.whole, seen.defects) == ([200, status], True, [])
        refusal = seen.answers[1]
        assert refusal.headers["connection"] == "close"
        assert refusal.headers["content-type"] == "application/problem+json"
        assert json.loads(refusal.body)["status"] == status
        assert refusal.headers["x-request-id"].startswith("req_")


SMALL = Limits(head=HeadLimits(200, 200, 400, 5), body=100)
FRAGMENTS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([GET, LAST, post(b"hello", close=False), chunked(b"hello", close=False)]),
    st.sampled_from([b"GET / HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n", b"\n", b"5\r\n", b"Content-Length: 3\r\n", b"\0"]),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FRAGMENTS, max_size=6).map(b"".join))
async def test_garbage_gets_our_own_4xx_and_a_close(autojump_clock: MockClock, data: bytes) -> None:
    whole = await talk(data, eof=True, limits=SMALL)
    assert not whole.defects
    assert whole.whole
    assert all(status == 200 or 400 <= status < 500 or status in (501, 505) for status in whole.statuses)
    assert all(status == 200 for status in whole.statuses[:-1])
    slow = await talk(*bytewise(data), eof=True, limits=SMALL)
    assert (slow.statuses, slow.defects) == (whole.statuses, [])


# ---- defects --------------------------------------------------------------------------------------


def answering(response: Any) -> Callable[[Exchange], Awaitable[Response]]:
    async def handler(exchange: Exchange) -> Response:
        if isinstance(response, Exception):
            raise response
        return response

    return handler


@pytest.mark.parametrize(
    "response",
    [
        ValueError("secret"),
        ExceptionGroup("secret", [ValueError("secret")]),
        ProtocolViolation("of another peer: secret", 413),
        None,
        Response(99),
        Response(200, {"x": "secret\r\nset-cookie: a=b"}),
        Response(200, {"x y": "secret"}),
        Response(200, {}, "secret"),  # type: ignore[arg-type]  # what a handler may do wrong
        Response(200, {"content-length": "secret"}, stream(None).body),  # type: ignore[arg-type]  # as above
    ],
    ids=repr,
)
async def test_a_defect_is_a_bare_500_and_reported(response: Any, autojump_clock: MockClock) -> None:
    seen = await talk(GET + GET, handler=answering(response))
    assert (seen.statuses, seen.whole) == ([500], True)
    assert json.loads(seen.answers[0].body) == {"type": "about:blank", "title": "Internal Server Error", "status": 500}
    assert b"secret" not in seen.answers[0].body
    assert seen.answers[0].headers["connection"] == "close"
    assert len(seen.defects) == 1


async def test_a_reporter_that_raises_changes_nothing(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(defect: Exception) -> None:
        raise RuntimeError("broken reporter")

    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(answering(ValueError()), on_defect=broken)).run)
        await client.send_all(GET)
        assert b" 500 " in bytes(await client.receive_some())
        await client.aclose()
    assert "on_defect raised" in caplog.text


async def test_by_default_a_defect_is_logged(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(answering(ValueError("here it is")))).run)
        await client.send_all(GET)
        await client.aclose()
    assert "here it is" in caplog.text


# ---- streams --------------------------------------------------------------------------------------


class Pieces:
    """An async iterator that knows whether it was closed."""

    def __init__(self, *pieces: Any) -> None:
        self.left = list(pieces)
        self.given = 0
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self.left:
            raise StopAsyncIteration
        piece = self.left.pop(0)
        if isinstance(piece, Exception):
            raise piece
        if piece is Ellipsis:
            await trio.sleep_forever()
        return piece  # type: ignore[no-any-return]  # bytes, or a defect that a test wants

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed += 1


async def test_streams_are_chunked_for_1_1_and_end_the_connection_for_1_0(autojump_clock: MockClock) -> None:
    pieces = Pieces(b"a", b"", b"bc")
    seen = await talk(LAST, handler=answering(stream(pieces, "text/plain")))
    assert (seen.answers[0].body, seen.answers[0].headers["transfer-encoding"]) == (b"abc", "chunked")
    assert (pieces.closed, seen.whole, seen.defects) == (1, True, [])

    pieces = Pieces(b"a", b"bc")
    seen = await talk(b"GET / HTTP/1.0\r\n\r\n", handler=answering(stream(pieces)))
    assert (seen.answers[0].body, "transfer-encoding" in seen.answers[0].headers) == (b"abc", False)
    assert pieces.closed == 1


async def test_a_stream_may_know_its_length(autojump_clock: MockClock) -> None:
    pieces = Pieces(b"a", b"bc")
    seen = await talk(LAST, handler=answering(stream(pieces, headers={"content-length": "3"})))
    assert (seen.answers[0].body, seen.answers[0].headers["content-length"]) == (b"abc", "3")


@pytest.mark.parametrize(
    "pieces",
    [(b"a", ValueError()), (b"a", "not bytes"), (b"abcd",), (b"ab",)],
    ids=["raises", "wrong type", "too long", "too short"],
)
async def test_a_stream_that_breaks_is_cut_and_reported(pieces: tuple[Any, ...], autojump_clock: MockClock) -> None:
    body = Pieces(*pieces)
    seen = await talk(GET + GET, handler=answering(stream(body, headers={"content-length": "3"})))
    assert (seen.statuses, seen.whole, body.closed, len(seen.defects)) == ([200], False, 1, 1)


async def test_a_stream_is_closed_unread_where_no_body_is_sent(autojump_clock: MockClock) -> None:
    pieces = Pieces(b"a")
    seen = await talk(LAST.replace(b"GET", b"HEAD"), handler=answering(stream(pieces)), method="HEAD")
    assert (seen.statuses, pieces.left, pieces.closed) == ([200], [b"a"], 1)
    pieces = Pieces(b"a")
    seen = await talk(LAST, handler=answering(stream(pieces, status=204)))
    assert (seen.statuses, pieces.left, pieces.closed) == ([204], [b"a"], 1)
    pieces = Pieces(b"a")
    seen = await talk(LAST, handler=answering(stream(pieces, headers={"x": "\n"})))
    assert (seen.statuses, pieces.left, pieces.closed) == ([500], [b"a"], 1)


async def test_a_silent_stream_ends_when_its_client_leaves() -> None:
    pieces = Pieces(b"a", ...)
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(answering(stream(pieces)))).run)
        await client.send_all(GET)
        await wait_all_tasks_blocked()
        assert pieces.closed == 0
        await client.aclose()
    assert pieces.closed == 1


async def test_an_iterator_that_will_not_close_is_given_up(autojump_clock: MockClock) -> None:
    class Stubborn(Pieces):
        async def aclose(self) -> None:
            await trio.sleep_forever()

    seen = await talk(LAST, handler=answering(stream(Stubborn(b"a"))))
    assert (seen.statuses, seen.whole, [type(defect) for defect in seen.defects]) == ([200], True, [TimeoutError])
    assert trio.current_time() < 60

    class Broken(Pieces):
        async def aclose(self) -> None:
            raise ValueError

    seen = await talk(LAST, handler=answering(stream(Broken(b"a"))))
    assert [type(defect) for defect in seen.defects] == [ValueError]


# ---- time -----------------------------------------------------------------------------------------


async def test_a_silent_connection_is_closed_without_a_word(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    assert (await talk()).answers == []
    assert trio.current_time() - start == pytest.approx(10)
    start = trio.current_time()
    assert (await talk(GET)).statuses == [200]
    assert trio.current_time() - start == pytest.approx(60)


async def test_half_a_head_is_408_however_busy_it_looks(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    seen = await talk(GET + GET[:10])
    assert seen.statuses == [200, 408]
    assert seen.answers[1].headers["connection"] == "close"
    assert 10 <= trio.current_time() - start <= 12.1

    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(echo)).run)
        start = trio.current_time()
        await client.send_all(GET[:-2])
        for _ in range(9):
            await trio.sleep(1)
            await client.send_all(b"X: y\r\n")
        assert b" 408 " in bytes(await client.receive_some())
        assert trio.current_time() - start == pytest.approx(10)
        await client.aclose()


async def test_a_body_has_a_minimum_rate(autojump_clock: MockClock) -> None:
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(echo, Limits(body_rate=100))).run)
        start = trio.current_time()
        await client.send_all(post(b"x" * 600)[:-600])
        for _ in range(5):  # 100 bytes each 2 s: always within 10 s of grace and 1 s for each 100 bytes
            await trio.sleep(2)
            await client.send_all(b"x" * 100)
        answer = bytes(await client.receive_some())
        assert b" 408 " in answer
        assert trio.current_time() - start == pytest.approx(15)
        await client.aclose()


async def test_a_peer_that_does_not_read_is_cut(autojump_clock: MockClock) -> None:
    blocked = trio.Event()

    async def never() -> None:
        blocked.set()
        await trio.sleep_forever()

    for body in (b"x" * 200_000, Pieces(b"x")):
        client, server = memory_stream_pair()
        server.send_stream.send_all_hook = never  # type: ignore[attr-defined]  # of memory streams
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Connection(server, Service(answering(Response(200, {}, body)))).run)
            await client.send_all(GET)
        assert blocked.is_set()
        assert trio.current_time() - start == pytest.approx(30)
        if isinstance(body, Pieces):
            assert body.closed == 1


# ---- leaving --------------------------------------------------------------------------------------


async def test_a_watched_client_is_seen_leaving_once() -> None:
    seen: list[str] = []

    async def watching(exchange: Exchange) -> Response:
        gone = trio.Event()

        def on_gone() -> None:
            seen.append("gone")
            gone.set()

        exchange.watch_disconnect(on_gone)
        await gone.wait()
        exchange.watch_disconnect(lambda: seen.append("still gone"))
        return text("")

    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(watching)).run)
        await client.send_all(GET)
        await wait_all_tasks_blocked()
        assert seen == []
        await client.aclose()
    assert seen == ["gone", "still gone"]


async def test_a_reset_counts_as_leaving() -> None:
    reset = trio.Event()

    async def fail() -> None:
        await reset.wait()
        raise trio.BrokenResourceError

    async def watching(exchange: Exchange) -> Response:
        gone = trio.Event()
        server.receive_stream.receive_some_hook = fail  # type: ignore[attr-defined]  # of memory streams
        exchange.watch_disconnect(gone.set)
        await gone.wait()
        return text("")

    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(watching)).run)
        await client.send_all(GET)
        await wait_all_tasks_blocked()
        reset.set()


async def test_without_a_watch_nothing_is_started_and_nothing_read() -> None:
    client, server = memory_stream_pair()
    go_on = trio.Event()

    async def waiting(exchange: Exchange) -> Response:
        await go_on.wait()
        return text("")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(waiting)).run)
        await client.send_all(GET)
        await wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        await client.send_all(LAST)
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert bytes(await server.receive_some()) == LAST  # it was left in the stream
        go_on.set()
        await client.aclose()


@pytest.mark.parametrize("when", ["during", "after"])
@pytest.mark.parametrize("body", [b"", b"hello"])
async def test_what_a_watch_reads_is_kept_for_the_next_request(when: str, body: bytes) -> None:
    go_on = trio.Event()

    async def watching(exchange: Exchange) -> Response:
        if exchange.head.path == "/last":
            return text("last")
        exchange.watch_disconnect(lambda: pytest.fail("nobody has left"))
        read = await exchange.read_body()
        await go_on.wait()
        return text("first " + read.decode())

    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(watching)).run)
        await client.send_all(post(body, close=False))
        await wait_all_tasks_blocked()
        if when == "during":
            await client.send_all(LAST)
            await wait_all_tasks_blocked()
        go_on.set()
        assert bytes(await client.receive_some()).endswith(b"first " + body)
        if when == "after":
            await client.send_all(LAST)
        assert bytes(await client.receive_some()).endswith(b"last")


async def test_a_client_that_leaves_between_requests_disturbs_nobody() -> None:
    called: list[str] = []

    async def watching(exchange: Exchange) -> Response:
        exchange.watch_disconnect(lambda: called.append("too late"))
        return text("")

    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(watching)).run)
        await client.send_all(GET)
        await client.receive_some()
        await client.aclose()
    assert called == []


async def test_an_on_gone_that_raises_is_a_defect() -> None:
    defects: list[Exception] = []

    async def watching(exchange: Exchange) -> Response:
        def broken() -> None:
            left.set()
            raise ValueError

        left = trio.Event()
        exchange.watch_disconnect(broken)
        await left.wait()
        return text("")

    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(watching, on_defect=defects.append)).run)
        await client.send_all(GET)
        await client.aclose()
    assert [type(defect) for defect in defects] == [ValueError]


async def test_a_half_closed_client_gets_its_answer_if_nobody_watches(autojump_clock: MockClock) -> None:
    assert (await talk(GET, eof=True)).statuses == [200]


# ---- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True])
async def test_close_soon_waits_for_a_busy_connection_only(busy: bool) -> None:
    go_on = trio.Event()

    async def waiting(exchange: Exchange) -> Response:
        await go_on.wait()
        return text("done")

    client, server = memory_stream_pair()
    connection = Connection(server, Service(waiting))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await wait_all_tasks_blocked()
        assert connection.idle
        if busy:
            await client.send_all(GET + GET)
            await wait_all_tasks_blocked()
        assert connection.idle is not busy
        connection.close_soon()
        await wait_all_tasks_blocked()
        go_on.set()
        answers, whole = parse(b"".join([bytes(data) async for data in client]), "GET")
        await client.aclose()
    assert (len(answers), whole, connection.requests) == (int(busy), True, int(busy))
    assert not busy or answers[0].headers["connection"] == "close"


class CancelAt(trio.abc.Instrument):
    """Cancels a scope before the n-th step of any task in it."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def scene(pieces: Pieces, server: trio.StapledStream[Any, Any], client: trio.StapledStream[Any, Any]) -> None:
    """A connection with a body, a watch, a stream and a refusal."""

    async def handler(exchange: Exchange) -> Response:
        exchange.watch_disconnect(lambda: None)
        await exchange.read_body()
        if exchange.head.method == "GET":
            return text("")
        pieces.given = 1
        return stream(pieces)

    async def client_side() -> None:
        for piece in (GET, post(b"hello", close=False)[:-2], b"lo", b"\r\n"):
            await client.send_all(piece)
            await trio.lowlevel.checkpoint()
        async for _ in client:
            pass
        await client.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(handler)).run)
        nursery.start_soon(client_side)


async def test_cancelling_at_any_step_leaves_nothing_behind() -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    steps = 0
    finished = False
    while not finished:
        steps += 1
        client, server = memory_stream_pair()
        pieces = Pieces(b"a", b"b")
        with trio.CancelScope() as scope:
            instrument = CancelAt(scope, steps)
            trio.lowlevel.add_instrument(instrument)
            try:
                await scene(pieces, server, client)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        finished = not scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await server.receive_some(1)
        assert pieces.closed == pieces.given
        assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert steps > 20
    assert pieces.closed == 1


@pytest.mark.parametrize("body", [b"", b"x" * 100_000])
async def test_an_answer_that_cannot_be_sent_leaves_its_id_to_the_one_that_is(body: bytes) -> None:
    defects: list[Exception] = []
    for said, told in (("run_7", "run_7"), ("a\nb", "req_1"), (None, "req_1")):
        headers = {"x-bad": "a\nb"} | ({} if said is None else {"x-request-id": said})
        handler = answering(Response(200, headers, body))
        client, server = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            service = Service(handler, on_defect=defects.append, new_id=lambda: "req_1")
            nursery.start_soon(Connection(server, service).run)
            await client.send_all(LAST)
            answers, _ = parse(b"".join([bytes(data) async for data in client]), "GET")
            await client.aclose()
        assert [(answer.status, answer.headers["x-request-id"]) for answer in answers] == [(500, told)]
        assert defects.pop().__notes__ == [f"while serving {told}"]


async def test_a_defect_and_its_answer_carry_one_id() -> None:
    async def broken(exchange: Exchange) -> Response:
        raise ValueError("a bug")

    defects: list[Exception] = []
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(broken, on_defect=defects.append, new_id=lambda: "req_1")).run)
        await client.send_all(LAST)
        answers, _ = parse(b"".join([bytes(data) async for data in client]), "GET")
        await client.aclose()
    assert [(answer.status, answer.headers["x-request-id"]) for answer in answers] == [(500, "req_1")]
    assert [defect.__notes__ for defect in defects] == [["while serving req_1"]]
