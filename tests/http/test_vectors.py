"""Every vector has one verdict, whole or byte by byte, on both parsers, on the wire and on a connection."""

from __future__ import annotations

import attrs
import pytest
from trio.testing import MockClock

from tests.http.talking import PARSERS, Server, answers_to, bytewise, parse_answers
from tests.http.vectors import (
    ACCEPTED_HEADS,
    ACCEPTED_RESPONSES,
    INVALID_CHUNKS,
    REFUSED_HEADS,
    REFUSED_RESPONSES,
    VALID_CHUNKS,
    head,
)
from zerver.errors import ProtocolViolation
from zerver.http.client_wire import ClientWire
from zerver.http.exchange import Limits
from zerver.http.gate import Framing, HeadLimits
from zerver.http.messages import Headers, RequestHead, ResponseHead
from zerver.http.parsers import HeadParser, head_parser
from zerver.http.reading import EndOfMessage, Mark
from zerver.http.wire import ServerWire

CHUNKED = head("Transfer-Encoding: chunked", first="POST /chunked HTTP/1.1")
NEXT = head(first="GET /next HTTP/1.1")
LAST = head("Connection: close", first="GET /last HTTP/1.1")


@attrs.frozen
class Read:
    """What a wire gave for one message."""

    head: RequestHead | ResponseHead
    body: bytes
    trailers: Headers | None  # None: the message did not end


def read_message(wire: ServerWire | ClientWire, data: bytes, step: int) -> Read | int | None:
    """The first message in the data, or the status it is refused with, or None while there is no head."""
    found: RequestHead | ResponseHead | None = None
    body, trailers = b"", None
    try:
        for at in range(0, len(data), step):
            wire.receive(data[at : at + step])
            while not isinstance(event := wire.next_event(), Mark):
                if isinstance(event, bytes):
                    body += event
                elif isinstance(event, EndOfMessage):
                    trailers = event.trailers
                else:
                    found = event
    except ProtocolViolation as violation:
        return violation.status
    return None if found is None else Read(found, body, trailers)


def every_way(data: bytes, limits: HeadLimits | None = None) -> Read | int | None:
    """The one verdict on a request, on both parsers and however it is cut."""
    verdicts = [
        read_message(ServerWire(limits or HeadLimits(), head_parser(name)), data, step)
        for name in PARSERS
        for step in (len(data), 1, 7)
    ]
    assert all(verdict == verdicts[0] for verdict in verdicts)
    return verdicts[0]


@pytest.fixture(params=PARSERS)
def parser(request: pytest.FixtureRequest) -> HeadParser:
    return head_parser(request.param)


# ---- on the wire ----------------------------------------------------------------------------


def body_for(framing: Framing) -> bytes:
    if framing.length is None:
        return b"5\r\nhello\r\n0\r\n\r\n"
    return b"x" * framing.length if framing.length < 100 else b""


@pytest.mark.parametrize(("data", "framing"), ACCEPTED_HEADS.values(), ids=ACCEPTED_HEADS)
def test_accepted_heads(data: bytes, framing: Framing) -> None:
    read = every_way(data + body_for(framing) + NEXT)
    assert isinstance(read, Read)
    assert isinstance(read.head, RequestHead)
    start, *fields = data[:-4].split(b"\r\n")
    assert start.decode("latin-1") == f"{read.head.method} {read.head.target} HTTP/{read.head.http_version}"
    assert [(name, value.lower()) for name, value in read.head.headers.raw] == [
        (name.lower(), value.strip(b" \t").lower()) for name, _, value in (field.partition(b":") for field in fields)
    ]


@pytest.mark.parametrize(("data", "status"), REFUSED_HEADS.values(), ids=REFUSED_HEADS)
def test_refused_heads(data: bytes, status: int) -> None:
    assert every_way(data) == status
    assert every_way(data + NEXT) == status


@pytest.mark.parametrize(("data", "body", "trailers"), VALID_CHUNKS.values(), ids=VALID_CHUNKS)
def test_valid_chunks(data: bytes, body: bytes, trailers: Headers) -> None:
    read = every_way(CHUNKED + data + NEXT)
    assert isinstance(read, Read)
    assert (read.body, read.trailers) == (body, trailers)


@pytest.mark.parametrize("data", INVALID_CHUNKS.values(), ids=INVALID_CHUNKS)
def test_invalid_chunks(data: bytes) -> None:
    assert every_way(CHUNKED + data) == 400


def client_wire(method: str, parser: HeadParser) -> ClientWire:
    wire = ClientWire(parser=parser)
    headers = {"host": "a", "connection": "upgrade", "upgrade": "websocket"}
    wire.send_head(RequestHead(method, "/", Headers.of(headers)))
    wire.send_end()
    return wire


@pytest.mark.parametrize(("data", "method", "framing"), ACCEPTED_RESPONSES.values(), ids=ACCEPTED_RESPONSES)
def test_accepted_responses(data: bytes, method: str, framing: Framing) -> None:
    read = [
        read_message(client_wire(method, head_parser(name)), data + body_for(framing), step)
        for name in PARSERS
        for step in (len(data), 1)
    ]
    assert read == [read[0]] * 4
    if data[9:12] == b"100":
        assert read[0] is None  # passed over
    else:
        assert isinstance(read[0], Read)
        assert isinstance(read[0].head, ResponseHead)
        assert read[0].head.status == int(data[9:12])


@pytest.mark.parametrize("data", REFUSED_RESPONSES.values(), ids=REFUSED_RESPONSES)
def test_refused_responses(data: bytes) -> None:
    for name in PARSERS:
        for step in (len(data), 1):
            assert isinstance(read_message(client_wire("GET", head_parser(name)), data, step), int)


# ---- limits, exactly ------------------------------------------------------------------------

DEFAULT = HeadLimits()
LINE = "GET /{} HTTP/1.1"


def filled(size: int) -> list[str]:
    """Fields that make a head of this size, each within its limit."""
    lines = ["X: " + "x" * 16_000] * 4
    return [*lines, "Y: " + "y" * (size - len(head(*lines, "Y: ")))]


AT_LIMIT = {
    "start line": (lambda over: head(first=LINE.format("x" * (8192 - len(LINE) + 2 + over))), 414),
    "field": (lambda over: head("X: " + "x" * (16_384 - 3 + over)), 431),
    "fields": (lambda over: head(*["X: y"] * (99 + over)), 431),
    "head": (lambda over: head(*filled(65_536 + over)), 431),
    "trailer": (lambda over: CHUNKED + b"0\r\nX: " + b"x" * (16_384 - 3 + over) + b"\r\n\r\n", 431),
    "trailers": (lambda over: CHUNKED + b"0\r\n" + b"X: y\r\n" * (100 + over) + b"\r\n", 431),
    "chunk extensions": (lambda over: CHUNKED + b"1;" + b"x" * (4095 + over) + b"\r\nx\r\n0\r\n\r\n", 400),
}


@pytest.mark.parametrize(("at_limit", "status"), AT_LIMIT.values(), ids=AT_LIMIT)
def test_default_limits_hold_exactly_in_one_segment_and_dribbled(at_limit, status: int) -> None:  # type: ignore[no-untyped-def]  # rows of a table
    assert isinstance(every_way(at_limit(0)), Read)
    assert every_way(at_limit(1)) == status


async def test_the_default_body_limit_holds_exactly(parser: HeadParser, autojump_clock: MockClock) -> None:
    size = 1024 * 1024
    for over in (0, 1):
        body = b"x" * (size + over)
        sized = head(f"Content-Length: {len(body)}", "Connection: close", first="POST / HTTP/1.1")
        chunked = head("Transfer-Encoding: chunked", "Connection: close", first="POST / HTTP/1.1")
        for pieces in (
            [sized + body],
            [sized, body[:1000], body[1000:]],
            [chunked, b"%x\r\n" % len(body), body, b"\r\n0\r\n\r\n"],
            [chunked, *[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 1024, *[b"1\r\nx\r\n"] * over, b"0\r\n\r\n"],
        ):
            server = Server()
            answers = await answers_to(pieces, server, parser=parser, on_defect=server.defects.append)
            assert [answer.status for answer in parse_answers(answers)] == [413 if over else 200]


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(
    parser: HeadParser, autojump_clock: MockClock
) -> None:
    server = Server()
    data = head("Content-Length: 1048577", "Expect: 100-continue", first="POST / HTTP/1.1")
    answers = await answers_to([data], server, parser=parser, on_defect=server.defects.append)
    assert [answer.status for answer in parse_answers(answers)] == [413]  # no 100 before it


# ---- on a connection ------------------------------------------------------------------------

QUICK = Limits(linger_seconds=0.1)


async def exchange(data: bytes, parser: HeadParser) -> list[tuple[Server, bytes]]:
    """The server, and what it said, for the data whole and byte by byte."""
    seen = []
    for pieces in ([data], bytewise(data)):
        server = Server()
        said = await answers_to(pieces, server, parser=parser, limits=QUICK, on_defect=server.defects.append)
        assert server.defects == []
        seen.append((server, said))
    return seen


@pytest.mark.parametrize(("data", "framing"), ACCEPTED_HEADS.values(), ids=ACCEPTED_HEADS)
async def test_what_is_accepted_is_answered_and_the_next_request_too(
    data: bytes, framing: Framing, parser: HeadParser, autojump_clock: MockClock
) -> None:
    for server, said in await exchange(data + body_for(framing) + LAST, parser):
        statuses = [answer.status for answer in parse_answers(said) if answer.status != 100]
        if framing.length is not None and framing.length > 100:
            assert statuses == [413]
        else:
            assert statuses == ([200, 200] if framing.keep_alive else [200])
        assert server.paths.count("/last") == (statuses == [200, 200])


REFUSED = {
    **REFUSED_HEADS,
    **{f"chunks: {name}": (CHUNKED + data, 400) for name, data in INVALID_CHUNKS.items()},
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
async def test_what_is_refused_is_answered_once_and_nothing_runs_after_it(
    data: bytes, status: int, parser: HeadParser, autojump_clock: MockClock
) -> None:
    for server, said in await exchange(NEXT + data + NEXT + LAST, parser):
        first, refusal = parse_answers(said)
        assert (first.status, refusal.status) == (200, status)
        assert refusal.headers["connection"] == "close"
        assert refusal.headers["content-type"] == "application/problem+json"
        assert server.paths.count("/next") == 1
        assert "/last" not in server.paths
        assert server.bodies == [b""]  # of NEXT; a body that broke off was given to nobody
