"""Both parsers give one value for every head that the gate passes, and each says so when it does not."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.talking import MemoryListener, talk
from tests.http.vectors import head
from zerver.errors import ProtocolViolation
from zerver.http.exchange import Exchange
from zerver.http.gate import HeadLimits, check_request_head, check_response_head
from zerver.http.messages import Headers, RequestHead, Response, ResponseHead
from zerver.http.parsers import H11Parser, HttptoolsParser, head_parser
from zerver.http.response import text
from zerver.http.server import serve_http

BOTH = (H11Parser(), HttptoolsParser())


def test_a_parser_is_chosen_by_name() -> None:
    assert isinstance(head_parser("h11"), H11Parser)
    assert isinstance(head_parser("httptools"), HttptoolsParser)
    assert isinstance(head_parser("auto"), HttptoolsParser)  # it is installed wherever tests run
    assert isinstance(head_parser(), HttptoolsParser)
    with pytest.raises(ValueError, match="auto, h11, httptools"):
        head_parser("llhttp")  # type: ignore[arg-type]  # the mistake


def test_without_httptools_auto_is_h11_and_the_name_is_an_error_that_tells_the_cure() -> None:
    script = """
import sys
sys.modules["httptools"] = None  # how Python says that a module cannot be imported
from zerver.http.parsers import head_parser
print(type(head_parser()).__name__)
try:
    head_parser("httptools")
except ImportError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == [
        "H11Parser",
        "the parser httptools is not installed: pip install 'zerver[fast]'",
    ]


@pytest.mark.parametrize("parser", BOTH, ids=["h11", "httptools"])
def test_a_parser_objects_to_what_is_no_head(parser: Any) -> None:
    for raw in (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r\n\r\n"):
        with pytest.raises(ProtocolViolation):
            parser.request(raw)
    for raw in (b"HTTP/1.1 2x0 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: a\r\n", b"\r\n\r\n"):
        with pytest.raises(ProtocolViolation):
            parser.response(raw)


def test_a_parser_keeps_nothing_from_head_to_head() -> None:
    for parser in BOTH:
        plain = parser.request(head())
        for other in (
            head("Connection: Upgrade", "Upgrade: websocket"),
            head("Content-Length: 500", first="POST / HTTP/1.1"),
            head("Transfer-Encoding: chunked", first="POST / HTTP/1.1"),
            head("Connection: close"),
            head(first="PLAY / HTTP/1.0"),
        ):
            parser.request(other)
            assert parser.request(head()) == plain
        with pytest.raises(ProtocolViolation):
            parser.request(b"GET / HTTP/1.1\r\nX\r\n\r\n")
        assert parser.request(head()) == plain


TOKEN = st.text(st.sampled_from("!#$%&'*+-.^_`|~09azAZ"), min_size=1, max_size=8)
NAME = TOKEN.filter(lambda name: name.lower() not in ("host", "content-length", "transfer-encoding", "connection"))
VALUE = st.text(st.sampled_from('\t ab,;="\\\x80\xff~!'), max_size=12)
FIELDS = st.lists(st.tuples(NAME | st.sampled_from(["Upgrade", "Proxy-Connection", "Cookie", "TE"]), VALUE), max_size=6)
TARGET = st.text(st.sampled_from("/?%:@[]{}|\\^\"'<>azAZ09._~-"), max_size=20).map("/{}".format)
FRAMING = st.sampled_from(
    ["", "Content-Length: 7\r\n", "Transfer-Encoding: Chunked\r\n", "Connection: upgrade, close\r\n", "Expect:\r\n"]
)


def lines(fields: list[tuple[str, str]]) -> str:
    return "".join(f"{name}:{value}\r\n" for name, value in fields)


def values(fields: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.strip(" \t").encode("latin-1")) for name, value in fields]


@settings(deadline=None, max_examples=300)
@given(TOKEN.filter(lambda method: method != "CONNECT"), TARGET, FIELDS, FRAMING, st.sampled_from("01"))
def test_both_read_every_request_that_the_gate_passes_alike(
    method: str, target: str, fields: list[tuple[str, str]], framing: str, minor: str
) -> None:
    raw = f"{method} {target} HTTP/1.{minor}\r\nHost: a\r\n{lines(fields)}{framing}\r\n".encode("latin-1")
    try:
        check_request_head(raw, HeadLimits())
    except ProtocolViolation:
        return
    one, two = (parser.request(raw) for parser in BOTH)
    assert one == two
    assert (one.method, one.target, one.http_version) == (method, target, f"1.{minor}")
    assert list(one.headers.raw[: len(fields) + 1]) == [(b"host", b"a"), *values(fields)]


@settings(deadline=None, max_examples=300)
@given(st.integers(100, 599), VALUE, FIELDS, FRAMING.filter(lambda line: "Expect" not in line))
def test_both_read_every_response_that_the_gate_passes_alike(
    status: int, phrase: str, fields: list[tuple[str, str]], framing: str
) -> None:
    raw = f"HTTP/1.1 {status} {phrase}\r\n{lines(fields)}{framing}\r\n".encode("latin-1")
    check_response_head(raw, "GET", HeadLimits())
    one, two = (parser.response(raw) for parser in BOTH)
    assert one == two
    assert one.status == status
    assert list(one.headers.raw[: len(fields)]) == values(fields)


def test_responses_have_a_value() -> None:
    for parser in BOTH:
        read = parser.response(b"HTTP/1.0 404 Not Found\r\nX-A: 1 \r\n\r\n")
        assert read == ResponseHead(404, Headers.of({"x-a": "1"}), "1.0")


@pytest.mark.parametrize("name", ["h11", "httptools"])
async def test_a_server_reads_with_the_parser_it_is_told(name: Any) -> None:
    seen: list[RequestHead] = []

    async def handler(exchange: Exchange) -> Response:
        seen.append(exchange.head)
        return text("")

    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_http, handler, [listener], parser=name))
        await talk(listener.connect(), [head("Connection: close")])
        nursery.cancel_scope.cancel()
    assert seen == [head_parser(name).request(head("Connection: close"))]
