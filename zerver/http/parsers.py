"""From the raw bytes of one head to a value: h11 and httptools behind one port, and nowhere else.

Law: a parser sees one whole head that the gate has passed, and nothing after it; what it gives does not depend on
which parser it is. The gate has decided by then, so a parser can only object, and neither does to what the gate lets
through (`scripts/fuzz http` compares them).

    h11         the reference, in Python: says no to what it does not know
    httptools   llhttp, in C: a tenth of the time

A fresh parser for each head, on purpose. To reset one costs no less than to make one, and one that lives as long as its
connection carries state from a stranger's message into the next: it would take a body's bytes for a head, or be in
the midst of an upgrade. What is kept from head to head is nothing.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, get_args

import h11

from zerver.errors import ProtocolViolation
from zerver.http.messages import Headers, RawField, RequestHead, ResponseHead

if TYPE_CHECKING:
    from httptools import HttpRequestParser, HttpResponseParser


class HeadParser(Protocol):
    """Turns one whole head, which the gate has passed, into a value. Keeps nothing, so all connections share one.

    Raises ProtocolViolation if it objects.
    """

    def request(self, raw: bytes) -> RequestHead: ...

    def response(self, raw: bytes) -> ResponseHead: ...


ParserName: TypeAlias = Literal["auto", "h11", "httptools"]


@cache
def head_parser(name: ParserName = "auto") -> HeadParser:
    """The parser of this name. auto: httptools if it is installed, else h11.

    Raises ImportError for httptools where it is not installed, ValueError for another name.
    """
    if name not in get_args(ParserName):
        raise ValueError(f"no parser is called {name!r}: choose one of {', '.join(get_args(ParserName))}")
    if name == "h11":
        return H11Parser()
    try:
        return HttptoolsParser()
    except ImportError:
        if name == "auto":
            return H11Parser()
        raise ImportError("the parser httptools is not installed: pip install 'zerver[fast]'") from None


# ---- h11 --------------------------------------------------------------------------------------


class H11Parser:
    """h11, the reference. Bodies and life cycle, of which h11 knows much, are not its business here."""

    def request(self, raw: bytes) -> RequestHead:
        event = self._only_event(h11.Connection(h11.SERVER, len(raw)), raw)
        if not isinstance(event, h11.Request):
            raise ProtocolViolation("the request head is malformed")
        return RequestHead(
            event.method.decode("ascii"),
            event.target.decode("ascii"),
            Headers(tuple(event.headers)),
            event.http_version.decode("ascii"),
        )

    def response(self, raw: bytes) -> ResponseHead:
        connection = h11.Connection(h11.CLIENT, len(raw))
        connection.send(_ANY_REQUEST)  # h11 reads a 1xx only after a request; these bytes go nowhere
        event = self._only_event(connection, raw)
        if not isinstance(event, h11.Response | h11.InformationalResponse):
            raise ProtocolViolation("the response head is malformed")
        return ResponseHead(event.status_code, Headers(tuple(event.headers)), event.http_version.decode("ascii"))

    @staticmethod
    def _only_event(connection: h11.Connection, raw: bytes) -> object:
        connection.receive_data(raw)
        try:
            return connection.next_event()
        except h11.RemoteProtocolError as error:
            raise ProtocolViolation(str(error), status=error.error_status_hint) from None


# It offers an upgrade, so that h11 reads a 101; whether one was asked for is for ClientWire to know.
_ANY_REQUEST: Final = h11.Request(
    method="GET", target="/", headers=[("host", "zerver"), ("connection", "upgrade"), ("upgrade", "any")]
)


# ---- httptools --------------------------------------------------------------------------------


class _Collected:
    """What llhttp's callbacks say. Only these three: httptools pays for each callback that is there."""

    __slots__ = ("complete", "fields", "target")

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[RawField] = []
        self.complete = False

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"transfer-encoding":
            value = value.lower()  # its only value here is "chunked", and names of codings have no case: as h11 has it
        self.fields.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


class HttptoolsParser:
    """httptools, which is llhttp, the parser of node. Raises ImportError where it is not installed: it is an extra."""

    # llhttp knows methods by name and refuses others, and some of those it knows belong to RTSP. Which methods are
    # served is for the router to say, so llhttp is shown the name of one that means nothing to it.
    _PLAIN: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"))

    def __init__(self) -> None:
        import httptools  # here, since only this class may need it

        self._request_parser = httptools.HttpRequestParser
        self._response_parser = httptools.HttpResponseParser
        self._errors = (httptools.HttpParserUpgrade, httptools.HttpParserError)

    def request(self, raw: bytes) -> RequestHead:
        method, _, rest = raw.partition(b" ")
        seen = _Collected()
        parser = self._request_parser(seen)
        self._feed(parser, seen, raw if method in self._PLAIN else b"GET " + rest)
        return RequestHead(
            method.decode("ascii"), seen.target.decode("ascii"), Headers(tuple(seen.fields)), parser.get_http_version()
        )

    def response(self, raw: bytes) -> ResponseHead:
        seen = _Collected()
        parser = self._response_parser(seen)
        self._feed(parser, seen, raw)
        return ResponseHead(parser.get_status_code(), Headers(tuple(seen.fields)), parser.get_http_version())

    def _feed(self, parser: HttpRequestParser | HttpResponseParser, seen: _Collected, raw: bytes) -> None:
        problem = "the head is malformed"
        try:
            parser.feed_data(raw)
        except self._errors as error:
            problem = str(error)  # once the head is complete, it is about what follows: an upgrade, or a body
        # llhttp gives names and values in pieces that httptools puts together. A lost field would be an attack.
        if not seen.complete or len(seen.fields) != raw.count(b"\r\n") - 2:
            raise ProtocolViolation(problem)
