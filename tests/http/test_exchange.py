"""What is made of a request's fields is kept while a connection brings the very same ones, and no longer."""

from __future__ import annotations

import gc
import weakref

import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.http.talking import PARSERS, answers_to
from zerver.http.exchange import Exchange
from zerver.http.messages import Headers, Response
from zerver.http.parsers import ParserName, head_parser
from zerver.http.response import text

TARGETS = ("/", "/a", "/b?c=d")
FIELDS = (b"", b"A: 1\r\n", b"A: 2\r\n", b"a: 1\r\n", b"A: 1\r\nA: 1\r\n", b"Content-Length: 0\r\n")


def said(exchange: Exchange) -> str:
    return repr([exchange.head.headers.raw, exchange.peer, exchange.scheme])


def length(exchange: Exchange) -> int:
    return len(exchange.head.headers)


@given(
    asked=st.lists(st.tuples(st.sampled_from(TARGETS), st.sampled_from(FIELDS)), max_size=8),
    at_once=st.booleans(),
    parser=st.sampled_from(PARSERS),
)
def test_it_is_always_what_would_be_made_anew(
    asked: list[tuple[str, bytes]], at_once: bool, parser: ParserName
) -> None:
    """Whatever came before on the connection, whoever asks, and however often."""

    async def answer(exchange: Exchange) -> Response:
        for _ in range(2):
            assert exchange.of_fields(said) == said(exchange)
        assert exchange.of_fields(length) == length(exchange)
        assert exchange.of_fields(said) == said(exchange)
        return text("right")

    heads = [b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target.encode(), fields) for target, fields in asked]
    heads.append(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    defects: list[Exception] = []

    async def main() -> bytes:
        pieces = [b"".join(heads)] if at_once else heads
        return await answers_to(pieces, answer, parser=head_parser(parser), on_defect=defects.append)

    assert trio.run(main).count(b"right") == len(heads)
    assert not defects


async def test_it_is_made_once_for_requests_that_say_the_same() -> None:
    made: list[str] = []

    def make(exchange: Exchange) -> str:
        made.append(exchange.head.target)
        return exchange.head.target

    async def answer(exchange: Exchange) -> Response:
        return text(exchange.of_fields(make))

    head = b"GET /%d HTTP/1.1\r\nHost: a\r\n%b\r\n"
    pieces = [head % (1, b""), head % (1, b""), head % (2, b"A: 1\r\n"), head % (3, b"Connection: close\r\n")]
    await answers_to(pieces, answer, on_defect=lambda defect: made.append(str(defect)))
    assert made == ["/1", "/2", "/3"]


async def test_fields_that_are_too_large_to_be_kept_are_let_go_with_their_request() -> None:
    """Thousands of clients may be connected and say nothing, and fields hold credentials."""
    fields: list[weakref.ref[Headers]] = []

    async def answer(exchange: Exchange) -> Response:
        if fields:
            gc.collect()
            return text("kept" if fields[0]() else "let go")
        fields.append(weakref.ref(exchange.head.headers))
        return text(str(exchange.of_fields(length)))

    large = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: %b\r\n\r\n" % (b"a" * 4096)
    pieces = [large, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"]
    assert b"let go" in await answers_to(pieces, answer, on_defect=lambda defect: None)
