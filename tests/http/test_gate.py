"""The gate refuses what is not HTTP/1.1, each vector with its status, whole or byte by byte, in linear time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.vectors import (
    ACCEPTED_HEADS,
    ACCEPTED_RESPONSES,
    REFUSED_HEADS,
    REFUSED_RESPONSES,
    head,
)
from zerver.errors import ProtocolViolation
from zerver.http.gate import (
    Framing,
    HeadLimits,
    check_outgoing_fields,
    check_request_head,
    check_response_head,
    find_head_end,
)

LIMITS = HeadLimits()
SMALL = HeadLimits(start_line=40, field=30, head=185, fields=6)


def verdict(data: bytes, limits: HeadLimits = LIMITS) -> int | Framing | None:
    """The status it is refused with, what it says, or None if it is no whole head yet."""
    try:
        end = find_head_end(bytearray(data), 0, limits)
        return None if end < 0 else check_request_head(data[:end], limits)
    except ProtocolViolation as violation:
        return violation.status


def slow_verdict(data: bytes, limits: HeadLimits = LIMITS) -> int | Framing | None:
    buffer = bytearray()
    try:
        for at in range(len(data)):
            searched = len(buffer)
            buffer.append(data[at])
            end = find_head_end(buffer, searched, limits)
            if end >= 0:
                return check_request_head(bytes(buffer[:end]), limits)
    except ProtocolViolation as violation:
        return violation.status
    return None


@pytest.mark.parametrize(("data", "framing"), ACCEPTED_HEADS.values(), ids=ACCEPTED_HEADS)
def test_accepted(data: bytes, framing: Framing) -> None:
    assert verdict(data) == framing
    assert slow_verdict(data) == framing
    assert verdict(data + b"rest \n\0") == framing


@pytest.mark.parametrize(("data", "status"), REFUSED_HEADS.values(), ids=REFUSED_HEADS)
def test_refused(data: bytes, status: int) -> None:
    assert verdict(data) == status
    assert slow_verdict(data) == status


def at_limit(kind: str, over: int) -> bytes:
    """A head that is exactly at one of the SMALL limits, plus `over`."""
    if kind == "start line":
        return head(first="GET /" + "x" * (40 - 14 + over) + " HTTP/1.1")
    if kind == "field":
        return head("X: " + "x" * (27 + over))
    if kind == "fields":
        return head(*["X: y"] * (5 + over))
    lines = ["X: " + "x" * 27] * 4
    return head(*lines, "Y: " + "y" * (185 - len(head(*lines, "Y: ")) + over))


@pytest.mark.parametrize(("kind", "status"), [("start line", 414), ("field", 431), ("fields", 431), ("head", 431)])
def test_limits_hold_exactly(kind: str, status: int) -> None:
    for check in (verdict, slow_verdict):
        assert check(at_limit(kind, 0), SMALL) == Framing()
        assert check(at_limit(kind, 1), SMALL) == status


def test_an_endless_head_is_refused_before_its_end() -> None:
    assert verdict(b"G" * 42, SMALL) == 414
    assert verdict(b"G" * 41, SMALL) is None
    assert verdict(b"GET / HTTP/1.1\r\n" + b"x" * 170, SMALL) == 431
    assert verdict(b"GET / HTTP/1.1\r\n" + b"x" * 169, SMALL) is None


PIECES = st.sampled_from(
    [
        *(b"GET", b" ", b"/", b"*", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\t", b"\0"),
        *(b"Host", b": ", b":", b"a", b"\xff", b"x" * 40),
        *(b"Content-Length: 5", b"Content-Length: 05", b"Transfer-Encoding: chunked"),
    ]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=20).map(b"".join))
def test_how_bytes_are_cut_never_matters(data: bytes) -> None:
    for limits in (LIMITS, SMALL):
        for start in (b"", b"GET / HTTP/1.1\r\nHost: a\r\n"):
            assert verdict(start + data, limits) == slow_verdict(start + data, limits)


@pytest.mark.parametrize(("data", "method", "framing"), ACCEPTED_RESPONSES.values(), ids=ACCEPTED_RESPONSES)
def test_responses(data: bytes, method: str, framing: Framing) -> None:
    assert check_response_head(data, method, LIMITS) == framing


@pytest.mark.parametrize("data", REFUSED_RESPONSES.values(), ids=REFUSED_RESPONSES)
def test_refused_responses(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        check_response_head(data, "GET", LIMITS)


@pytest.mark.parametrize(
    "field",
    [(b"", b"x"), (b"a b", b"x"), (b"a:", b"x"), (b"a\r\n", b"x"), (b"a", b"x\r\ny: z"), (b"a", b"\n"), (b"a", b"\0")],
)
def test_fields_that_would_split_a_head_cannot_be_sent(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="header"):
        check_outgoing_fields((field,))


def test_ordinary_fields_can_be_sent() -> None:
    check_outgoing_fields(((b"x-y", b"a\tb \xff"), (b"z", b"")))
