"""Bodies end where they say, whole or byte by byte; the chunked decoder agrees with h11 on all that is valid."""

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.vectors import INVALID_CHUNKS, VALID_CHUNKS
from zerver.errors import ProtocolViolation
from zerver.http.framing import BodyWriter, ChunkedBody, SizedBody, UnboundedBody, body_of
from zerver.http.gate import Framing, HeadLimits
from zerver.http.messages import Headers

LIMITS = HeadLimits()


def decode(body: ChunkedBody | SizedBody, data: bytes, step: int) -> tuple[bytes, bytes, bool]:
    """(the body, what is left, whether the body is done) after the data came in pieces of `step` bytes."""
    buffer, out = bytearray(), b""
    for at in range(0, len(data), step):
        buffer += data[at : at + step]
        while not body.done and (piece := body.read(buffer)):
            out += piece
    return out, bytes(buffer), body.done


def outcome(data: bytes, step: int, limits: HeadLimits = LIMITS) -> object:
    body = ChunkedBody(limits)
    try:
        return *decode(body, data, step), body.trailers
    except ProtocolViolation as violation:
        return violation.status


@pytest.mark.parametrize(("data", "expected", "trailers"), VALID_CHUNKS.values(), ids=VALID_CHUNKS)
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_valid_chunks(data: bytes, expected: bytes, trailers: Headers, step: int) -> None:
    assert outcome(data + b"NEXT", step) == (expected, b"NEXT", True, trailers)


@pytest.mark.parametrize("data", INVALID_CHUNKS.values(), ids=INVALID_CHUNKS)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_invalid_chunks(data: bytes, step: int) -> None:
    assert outcome(data, step) == 400


@pytest.mark.parametrize("step", [1, 1_000_000])
def test_limits_of_extensions_and_trailers_hold_exactly(step: int) -> None:
    def extended(size: int) -> bytes:
        return b"1;" + b"x" * (size - 1) + b"\r\nx\r\n0\r\n\r\n"

    assert outcome(extended(4096), step) == (b"x", b"", True, Headers())
    assert outcome(extended(4097), step) == 400
    assert outcome(b"1;xxx\r\nx\r\n" * 1025 + b"0\r\n\r\n", step) == 400

    limits = HeadLimits(field=10, head=40, fields=3)
    assert outcome(b"0\r\n" + b"X: 4567890\r\n" * 3 + b"\r\n", step, limits) != 431
    assert outcome(b"0\r\n" + b"X: 45678901\r\n" + b"\r\n", step, limits) == 431
    assert outcome(b"0\r\n" + b"X: y\r\n" * 4 + b"\r\n", step, limits) == 431
    assert outcome(b"0\r\n" + b"Te: 567890\r\n" * 4 + b"\r\n", step, limits) == 431


@settings(deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.tuples(st.sampled_from(["x-a", "x-b"]), st.from_regex(r"[a-z]{0,9}", fullmatch=True)), max_size=3),
    st.integers(1, 50),
)
def test_what_h11_writes_is_read_back_and_what_we_write_h11_reads(
    pieces: list[bytes], trailers: list[tuple[str, str]], step: int
) -> None:
    sender = h11.Connection(h11.CLIENT)
    sender.send(h11.Request(method="POST", target="/", headers=[("host", "a"), ("transfer-encoding", "chunked")]))
    data = b"".join(sender.send(h11.Data(data=piece)) for piece in pieces)
    data += sender.send(h11.EndOfMessage(headers=trailers))
    assert outcome(data, step) == (b"".join(pieces), b"", True, Headers.of(trailers))

    writer = BodyWriter()
    writer.start(None)
    assert b"".join(map(writer.data, pieces)) + writer.end(Headers.of(trailers)) == data.replace(b": \r", b": \r")


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([b"5\r\n", b"hello", b"\r\n", b"0\r\n", b"\r\n\r\n", b"\n", b"a", b";", b"X: y"])).map(
        b"".join
    )
)
def test_how_bytes_are_cut_never_matters(data: bytes) -> None:
    assert outcome(data, 1) == outcome(data, 10_000)


def test_sized_bodies_leave_what_follows() -> None:
    for step in (1, 2, 100):
        assert decode(SizedBody(5), b"helloNEXT", step) == (b"hello", b"NEXT", True)
        assert decode(SizedBody(5), b"hell", step) == (b"hell", b"", False)
        assert decode(SizedBody(0), b"NEXT", step) == (b"", b"NEXT", True)


def test_the_head_chooses_the_decoder() -> None:
    assert isinstance(body_of(Framing(3), LIMITS), SizedBody)
    assert isinstance(body_of(Framing(None), LIMITS), ChunkedBody)
    assert isinstance(body_of(Framing(None, until_close=True), LIMITS), UnboundedBody)


def started(framing: Framing, *, silent: bool = False) -> BodyWriter:
    writer = BodyWriter()
    writer.start(framing.length, until_close=framing.until_close, silent=silent)
    return writer


def test_writers_frame() -> None:
    assert [started(Framing(2)).data(b"ab"), started(Framing(None)).data(b"ab")] == [b"ab", b"2\r\nab\r\n"]
    assert started(Framing(None)).data(b"") == b""
    assert started(Framing(None)).end(Headers()) == b"0\r\n\r\n"
    assert started(Framing(None, until_close=True)).data(b"ab") == b"ab"
    silent = started(Framing(2), silent=True)
    assert silent.data(b"abc") + silent.end(Headers()) == b""


def test_writers_refuse_what_breaks_the_framing() -> None:
    with pytest.raises(ValueError, match="1 bytes longer"):
        started(Framing(2)).data(b"abc")
    with pytest.raises(ValueError, match="2 bytes shorter"):
        started(Framing(2)).end(Headers())
    with pytest.raises(ValueError, match="header"):
        started(Framing(None)).end(Headers(((b"a", b"\r\n"),)))
    with pytest.raises(RuntimeError):
        BodyWriter().data(b"x")
    with pytest.raises(RuntimeError):
        started(Framing(2)).start(2)
    ended = started(Framing(0))
    ended.end(Headers())
    with pytest.raises(RuntimeError):
        ended.end(Headers())
