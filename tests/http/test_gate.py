"""The gate refuses what is not HTTP/1.1, each vector with its status, whole or byte by byte, in linear time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def head(*lines: str, first: str = "GET / HTTP/1.1", host: str = "Host: a\r\n") -> bytes:
    return (first + "\r\n" + host + "".join(line + "\r\n" for line in lines) + "\r\n").encode("latin-1")


ACCEPTED = {
    "plain": (head(), Framing()),
    "1.0 without Host": (b"GET / HTTP/1.0\r\n\r\n", Framing(keep_alive=False)),
    "1.0 asks for keep-alive": (head("Connection: keep-alive", first="GET / HTTP/1.0"), Framing(0, False)),
    "close": (head("Connection: x, Close"), Framing(keep_alive=False)),
    "close in a second line": (head("Connection: x", "connection: close"), Framing(keep_alive=False)),
    "length": (head("Content-Length:  15 "), Framing(15)),
    "zero length": (head("Content-Length: 0"), Framing(0)),
    "18 digits": (head("Content-Length: 999999999999999999"), Framing(999999999999999999)),
    "chunked": (head("Transfer-Encoding: Chunked"), Framing(None)),
    "expects": (head("Content-Length: 1", "Expect: 100-Continue"), Framing(1, expects_continue=True)),
    "1.0 expects": (head("Expect: 100-continue", first="GET / HTTP/1.0"), Framing(keep_alive=False)),
    "1.0 expects anything": (head("Expect: tea", first="GET / HTTP/1.0"), Framing(keep_alive=False)),
    "empty value": (head("X:"), Framing()),
    "tab and obs-text": (head("X: a\tb\xff"), Framing()),
    "strange method": (head(first="M-SEARCH / HTTP/1.1"), Framing()),
    "absolute form": (head(first="GET http://A/x HTTP/1.1"), Framing()),
    "asterisk": (head(first="OPTIONS * HTTP/1.1"), Framing()),
    "host with port": (head(host="Host: a.b:8080\r\n"), Framing()),
    "IPv6 host": (head(host="Host: [::1]:80\r\n"), Framing()),
}

REFUSED = {
    # the start line
    "bare LF after it": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare LF everywhere": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare CR in it": (b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "two blanks": (head(first="GET  / HTTP/1.1"), 400),
    "tab": (head(first="GET\t/ HTTP/1.1"), 400),
    "trailing blank": (head(first="GET / HTTP/1.1 "), 400),
    "leading blank": (head(first=" GET / HTTP/1.1"), 400),
    "leading CRLF": (b"\r\n" + head(), 400),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01", 400),
    "no version": (head(first="GET /"), 400),
    "lower-case version": (head(first="GET / http/1.1"), 400),
    "HTTP/1.2": (head(first="GET / HTTP/1.2"), 505),
    "HTTP/2.0": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/9.9": (head(first="GET / HTTP/9.9"), 505),
    "HTTP/1.10": (head(first="GET / HTTP/1.10"), 400),
    "method with a colon": (head(first="G:T / HTTP/1.1"), 400),
    "raw bytes in the target": (head(first="GET /\xe9 HTTP/1.1"), 400),
    "fragment in the target": (head(first="GET /a#b HTTP/1.1"), 400),
    "NUL in the target": (head(first="GET /\0 HTTP/1.1"), 400),
    "relative target": (head(first="GET a HTTP/1.1"), 400),
    "asterisk without OPTIONS": (head(first="GET * HTTP/1.1"), 400),
    "authority form": (head(first="GET a:80 HTTP/1.1"), 400),
    "other scheme": (head(first="GET ftp://a/ HTTP/1.1"), 400),
    "absolute form of another host": (head(first="GET http://b/ HTTP/1.1"), 400),
    "absolute form with userinfo": (head(first="GET http://x@a/ HTTP/1.1"), 400),
    "CONNECT": (head(first="CONNECT a:80 HTTP/1.1"), 501),
    # fields
    "folded line": (head("X: a", " b"), 400),
    "folded first field": (head(" X: a", host=""), 400),
    "blank before the colon": (head("X : a"), 400),
    "empty name": (head(": a"), 400),
    "no colon": (head("X"), 400),
    "name with a parenthesis": (head("X(: a"), 400),
    "name with obs-text": (head("X\xe9: a"), 400),
    "NUL in a value": (head("X: a\0b"), 400),
    "BEL in a value": (head("X: a\x07b"), 400),
    "DEL in a value": (head("X: a\x7fb"), 400),
    "bare LF in a value": (head("X: a\nY: b"), 400),
    "bare CR in a value": (head("X: a\rY: b"), 400),
    # Host
    "no Host": (head(host=""), 400),
    "two Hosts": (head("Host: a"), 400),
    "two Hosts on 1.0": (head("Host: a", first="GET / HTTP/1.0"), 400),
    "empty Host": (head(host="Host:\r\n"), 400),
    "Host with userinfo": (head(host="Host: u@a\r\n"), 400),
    "Host with a path": (head(host="Host: a/b\r\n"), 400),
    "Host with a comma": (head(host="Host: a, b\r\n"), 400),
    "Host with a bad port": (head(host="Host: a:b\r\n"), 400),
    # framing
    "TE and CL": (head("Transfer-Encoding: chunked", "Content-Length: 5"), 400),
    "CL and TE": (head("Content-Length: 5", "Transfer-Encoding: chunked"), 400),
    "TE on 1.0": (head("Transfer-Encoding: chunked", first="POST / HTTP/1.0"), 400),
    "xchunked": (head("Transfer-Encoding: xchunked"), 400),
    "gzip": (head("Transfer-Encoding: gzip"), 501),
    "gzip, chunked": (head("Transfer-Encoding: gzip, chunked"), 400),
    "chunked twice": (head("Transfer-Encoding: chunked, chunked"), 400),
    "two TE lines": (head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400),
    "TE with a comma": (head("Transfer-Encoding: chunked,"), 400),
    "empty TE": (head("Transfer-Encoding:"), 400),
    "VT in TE": (head("Transfer-Encoding: \x0bchunked"), 400),
    "two lengths": (head("Content-Length: 5", "Content-Length: 5"), 400),
    "length list": (head("Content-Length: 5, 5"), 400),
    "signed length": (head("Content-Length: +5"), 400),
    "negative length": (head("Content-Length: -5"), 400),
    "hex length": (head("Content-Length: 0x5"), 400),
    "underscore in length": (head("Content-Length: 5_0"), 400),
    "other digits": (head("Content-Length: \xb2"), 400),
    "leading zero": (head("Content-Length: 05"), 400),
    "2**64": (head("Content-Length: 18446744073709551616"), 400),
    "empty length": (head("Content-Length:"), 400),
    "length with a blank inside": (head("Content-Length: 1 2"), 400),
    "other expectation": (head("Expect: tea"), 417),
    "two expectations": (head("Expect: 100-continue", "Expect: 100-continue"), 417),
}


@pytest.mark.parametrize(("data", "framing"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(data: bytes, framing: Framing) -> None:
    assert verdict(data) == framing
    assert slow_verdict(data) == framing
    assert verdict(data + b"rest \n\0") == framing


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
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


RESPONSES = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "GET", Framing(5)),
    "no phrase": (b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n", "GET", Framing(5)),
    "no phrase, no blank": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", "GET", Framing(5)),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", Framing(None)),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\n", "GET", Framing(None, False, until_close=True)),
    "HEAD": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", Framing(0)),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", Framing(0)),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET", Framing(0)),
    "100": (b"HTTP/1.1 100 Continue\r\n\r\n", "GET", Framing(0)),
    "close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "GET", Framing(0, False)),
    "1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "GET", Framing(0, False)),
}


@pytest.mark.parametrize(("data", "method", "framing"), RESPONSES.values(), ids=RESPONSES)
def test_responses(data: bytes, method: str, framing: Framing) -> None:
    assert check_response_head(data, method, LIMITS) == framing


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 200 O\0K\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
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
