"""Which heads are HTTP/1.1, where they end, and what they say about the body. Bytes in, verdict out; no
parser, no I/O.

Parsers of the field are each loose somewhere: h11 lets through `HTTP/9.9`, bare LF, folded lines and
`Content-Length: 5, 5`; httptools lets through missing and repeated Hosts. So no parser is asked. Every head
passes this gate whole and raw before a parser sees it, and it is the gate's word, never the parser's, that
says how the body is framed. Two parsers behind one gate cannot differ on where a request ends, which is
what request smuggling is made of.

Refused on purpose, though RFC 9112 allows a lenient server to take it: bare LF and an empty line before the
request (§2.2), folded lines (§5.2), equal repeated Content-Lengths (§6.3).

Law: each verdict depends on the bytes alone, never on how they were cut into reads; what is refused is refused for
ever, and time is linear in what was sent.
"""

from __future__ import annotations

import re

import attrs

from zerver.core import values
from zerver.errors import ProtocolViolation
from zerver.http.messages import RawField


@attrs.frozen
class HeadLimits:
    """How large a head may be, in bytes and in fields. Precedents: nginx 8k a line and 32k, node 16k and
    2,000 fields.

    start_line: without its CRLF; 414. field: one line without its CRLF; 431. head: with the blank line; 431.
    fields: how many; 431. Trailers are held to the same limits.
    """

    start_line: int = 8 * 1024
    field: int = 16 * 1024
    head: int = 64 * 1024
    fields: int = 100


@values.value
class Framing:
    """What a head says about the connection. length: of the body in bytes; None means chunked."""

    length: int | None = 0
    keep_alive: bool = True
    expects_continue: bool = False
    until_close: bool = False


_PLAIN = Framing()


# ---- grammar (RFC 9110 §5.6.2, RFC 9112 §2.3 and §5) -----------------------------------------
# Possessive quantifiers throughout: no backtracking, so time is linear in the attacker's bytes.

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"
_FIELDS = rb"(?:" + TOKEN + rb":" + VALUE + rb"\r\n)*+\r\n"
_TARGET = rb"[\x21-\x22\x24-\x7e]++"  # visible ASCII, but for "#"
_REQUEST = re.compile(rb"(" + TOKEN + rb") (" + _TARGET + rb") HTTP/1\.([01])\r\n" + _FIELDS)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: " + VALUE + rb")?\r\n" + _FIELDS)
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") (" + _TARGET + rb") HTTP/1\.1")
_OTHER_VERSION = re.compile(rb"[^ \r\n]++ [^ \r\n]++ HTTP/[0-9]\.[0-9]\r\n")
_CRUCIAL = re.compile(rb"\r\n(host|content-length|transfer-encoding|connection|expect):([^\r]*+)", re.IGNORECASE)
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]++\]|[0-9A-Za-z\-._~!$&'()*+;=%]++)(?::[0-9]{1,5}+)?")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
_START = re.compile(TOKEN + rb" " + _TARGET)
_NAME = re.compile(TOKEN)
_VALUE = re.compile(VALUE)

_EXACT = frozenset((b"transfer-encoding",))
_TCHARS = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


# ---- where a head ends ------------------------------------------------------------------------


def find_head_end(buffer: bytearray, searched: int, limits: HeadLimits) -> int:
    """The length of the head at the start of the buffer, or -1 while it is incomplete.

    searched: bytes known from an earlier call to hold no end; they are not looked at again, so a head that comes byte
    by byte costs no more than one that comes whole. Raises ProtocolViolation as soon as the bytes at hand can become
    no acceptable head: a TLS hello or bare LF is refused at once, not timed out.
    """
    if buffer and buffer[0] not in _TCHARS:
        raise ProtocolViolation("the message does not start with a start line")
    blank_line = buffer.find(b"\r\n\r\n", max(0, searched - 3))
    end = blank_line + 4 if blank_line >= 0 else -1
    if searched < limits.start_line + 2 <= len(buffer):  # now it is known whether the start line is too long
        find_line_end(buffer, 0, limits.start_line, 414, "the start line is over the limit")
    extent = end if end >= 0 else len(buffer)
    _check_no_bare_lf(buffer, searched, min(extent, limits.head + 1))
    if extent > limits.head:
        raise ProtocolViolation("the head is over the limit", status=431)
    return end


def find_line_end(buffer: bytearray, at: int, limit: int, status: int, problem: str, searched: int = 0) -> int:
    """Where the line that starts at `at` ends (before its CRLF), or -1 while that is open. limit: without CRLF.

    searched: bytes of the line known from an earlier call to hold no end.
    """
    end = buffer.find(b"\r\n", at + max(0, searched - 1), at + limit + 2)
    if end < 0:
        _check_no_bare_lf(buffer, at + searched, at + limit + 2)
        if len(buffer) - at >= limit + 2:
            raise ProtocolViolation(problem, status=status)
    return end


def _check_no_bare_lf(buffer: bytearray, start: int, end: int) -> None:
    # Two counts in C are eight times as fast as a regex that looks behind each LF.
    if buffer.count(b"\n", start, end) != buffer.count(b"\r\n", max(0, start - 1), end):
        raise ProtocolViolation("a line ends in LF without CR")


# ---- what a head says -------------------------------------------------------------------------


def check_request_head(raw: bytes, limits: HeadLimits) -> Framing:
    """The verdict on a whole request head, blank line included. Raises ProtocolViolation with a status."""
    _check_field_sizes(raw, limits)
    matched = _REQUEST.fullmatch(raw)
    if matched is None:
        if _OTHER_VERSION.match(raw) and not raw.partition(b"\r\n")[0].endswith((b" HTTP/1.0", b" HTTP/1.1")):
            raise ProtocolViolation("only HTTP/1.0 and HTTP/1.1 are spoken here", status=505)
        raise ProtocolViolation("the request head is malformed")
    method, target, minor = matched.groups()
    crucial = _crucial_fields(raw)
    host = _check_host(crucial, required=minor == b"1")
    _check_target(method, target, host)
    if minor == b"1" and len(crucial) == 1:  # Host alone, as in most requests without a body
        return _PLAIN
    length = _body_length(crucial, minor)
    return Framing(
        length=0 if length == _ABSENT else length,
        keep_alive=minor == b"1" and not _says_close(crucial),
        expects_continue=_expects_continue(crucial, minor),
    )


def check_request_line(line: bytes, host: bytes | None) -> tuple[bytes, bytes] | None:
    """Method and target of a request line of HTTP/1.1, without its CRLF, above fields that have passed already, of
    which Host said this. None for any other line: then the whole head is to be judged. Raises ProtocolViolation.
    """
    matched = _REQUEST_LINE.fullmatch(line)
    if matched is None:
        return None
    method, target = matched.groups()
    _check_target(method, target, host)
    return method, target


def check_response_head(raw: bytes, method: str, limits: HeadLimits) -> Framing:
    """The verdict on a whole response head to a request with this method. Raises ProtocolViolation."""
    _check_field_sizes(raw, limits)
    matched = _RESPONSE.fullmatch(raw)
    if matched is None:
        raise ProtocolViolation("the response head is malformed")
    minor, status = matched[1], int(matched[2])
    crucial = _crucial_fields(raw)
    keep_alive = minor == b"1" and not _says_close(crucial)
    length = _body_length(crucial, minor)  # also of a response that has no body: malformed is malformed
    if method == "HEAD" or status < 200 or status in (204, 304) or (method == "CONNECT" and status < 300):
        return Framing(0, keep_alive)  # no body, whatever the fields say (RFC 9112 §6.3)
    if length == _ABSENT:
        return Framing(None, keep_alive=False, until_close=True)
    return Framing(length, keep_alive)


def _check_field_sizes(raw: bytes, limits: HeadLimits) -> None:
    if len(raw) <= limits.field and raw.count(b"\r\n") - 2 <= limits.fields:
        return  # the whole head is smaller than one field may be
    lines = raw.split(b"\r\n")  # the start line, the fields, and two empty pieces of the blank line
    if len(lines) - 3 > limits.fields:
        raise ProtocolViolation("too many fields", status=431)
    if max(map(len, lines[1:])) > limits.field:
        raise ProtocolViolation("a field is over the limit", status=431)


def _crucial_fields(raw: bytes) -> dict[bytes, list[bytes]]:
    crucial: dict[bytes, list[bytes]] = {}
    for name, value in _CRUCIAL.findall(raw):
        name = name.lower()
        # Blanks after a value mean nothing, but after "chunked" only those write them who hope that we and a proxy
        # disagree about it.
        crucial.setdefault(name, []).append(value.lstrip(b" \t") if name in _EXACT else value.strip(b" \t"))
    return crucial


def _check_host(crucial: dict[bytes, list[bytes]], *, required: bool) -> bytes | None:
    hosts = crucial.get(b"host", [])
    if len(hosts) > 1 or (required and not hosts):
        raise ProtocolViolation("exactly one Host is required")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise ProtocolViolation("the Host is malformed")
    return hosts[0] if hosts else None


def _check_target(method: bytes, target: bytes, host: bytes | None) -> None:
    """origin-form, or absolute-form that agrees with Host, or `OPTIONS *` (RFC 9112 §3.2)."""
    if method == b"CONNECT":
        raise ProtocolViolation("CONNECT is not implemented: this is no proxy", status=501)
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return
    scheme, separator, rest = target.partition(b"://")
    authority = re.split(rb"[/?]", rest, maxsplit=1)[0]
    if not separator or scheme.lower() not in (b"http", b"https") or not _HOST.fullmatch(authority):
        raise ProtocolViolation("the request target is malformed")
    if host is not None and authority.lower() != host.lower():
        raise ProtocolViolation("the request target and Host disagree")


_ABSENT = -1  # neither Content-Length nor Transfer-Encoding


def _body_length(crucial: dict[bytes, list[bytes]], minor: bytes) -> int | None:
    codings = crucial.get(b"transfer-encoding")
    lengths = crucial.get(b"content-length")
    if codings:
        if lengths:
            raise ProtocolViolation("Transfer-Encoding together with Content-Length")
        if minor == b"0":
            raise ProtocolViolation("Transfer-Encoding in HTTP/1.0")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            known = len(codings) > 1 or b"chunked" in codings[0].lower() or not codings[0]
            raise ProtocolViolation("only 'Transfer-Encoding: chunked' is known", status=400 if known else 501)
        return None
    if not lengths:
        return _ABSENT
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise ProtocolViolation("the Content-Length is malformed")
    return int(lengths[0])


def _says_close(crucial: dict[bytes, list[bytes]]) -> bool:
    said = crucial.get(b"connection")
    return said is not None and b"close" in [token.strip(b" \t").lower() for token in b",".join(said).split(b",")]


def _expects_continue(crucial: dict[bytes, list[bytes]], minor: bytes) -> bool:
    expectations = crucial.get(b"expect")
    if not expectations or minor == b"0":  # a 1.0 client cannot wait for 100 (RFC 9110 §10.1.1)
        return False
    if len(expectations) > 1 or expectations[0].lower() != b"100-continue":
        raise ProtocolViolation("the expectation cannot be met", status=417)
    return True


def check_outgoing_request(start: bytes) -> None:
    """Refuse a method and target, joined by a blank, that would not be read as these two. Raises ValueError."""
    if not _START.fullmatch(start):
        raise ValueError(f"not a method and a target: {start!r}")


def check_outgoing_fields(fields: tuple[RawField, ...]) -> None:
    """Refuse to write a field that would not be read as one field. Raises ValueError naming it."""
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a header name: {name!r}")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value of header {name.decode()!r} has a control character in it")
