"""Doubling what an attacker controls at most doubles the work, field by field: nothing grows faster than its input.

Work is counted, not timed: lines of Python that run, functions that are called, and bytes of its buffer that a wire
looks at or moves. Most holes of the last years in Python's servers would have failed here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from inspect import Parameter
from types import FrameType
from typing import Any

import attrs
import pytest

from tests.http.talking import PARSERS
from tests.http.vectors import head
from zerver.core.signatures import PartRead
from zerver.core.timeline import Ending, Timeline
from zerver.errors import InvalidData, ProtocolViolation
from zerver.http.client_wire import ClientWire
from zerver.http.conditions import Validators, judge, read_range
from zerver.http.conversions import check_is_json, compile_json
from zerver.http.extract import compile_extractor
from zerver.http.gate import HeadLimits
from zerver.http.messages import Headers, RequestHead, ResponseHead
from zerver.http.outgoing import outgoing
from zerver.http.parsers import head_parser
from zerver.http.parts import Cookie, Form, Header, Query
from zerver.http.reading import Mark
from zerver.http.redirects import next_hop
from zerver.http.render import render
from zerver.http.router import Entry, Router
from zerver.http.trust import Trust
from zerver.http.wire import ServerWire
from zerver.runtime.result import Result

GROWTH = 2.3  # twice the input, and a little for what is rounded up

#: Wide enough that growth is seen: within the default limits much that is quadratic looks harmless.
WIDE = HeadLimits(start_line=2**20, field=2**20, head=2**22, fields=2**16)


class Counted(bytearray):
    """A buffer that counts the bytes looked at by its methods, and those copied out of it."""

    looked_at = 0

    def find(self, sub: Any, start: int = 0, end: int = sys.maxsize) -> int:  # type: ignore[override]  # as it is used
        found = super().find(sub, start, end)
        self.looked_at += max(0, (found if found >= 0 else min(end, len(self))) - start)
        return found

    def count(self, sub: Any, start: int = 0, end: int = sys.maxsize) -> int:  # type: ignore[override]  # as it is used
        self.looked_at += max(0, min(end, len(self)) - start)
        return super().count(sub, start, end)

    def __getitem__(self, key: Any) -> Any:
        got = super().__getitem__(key)
        self.looked_at += len(got) if isinstance(got, bytearray) else 1
        return got


def work(once: Callable[[], object]) -> int:
    """Lines that `once` runs and functions that it calls; what it refuses counts until it does."""
    count = 0

    def line(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += 1
        return line

    def call(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event == "c_call"

    before, profiler = sys.gettrace(), sys.getprofile()
    sys.settrace(line)
    sys.setprofile(call)
    try:
        with suppress(ProtocolViolation, InvalidData):
            once()
    finally:
        sys.settrace(before)
        sys.setprofile(profiler)
    return count


def check_linear(costs: Callable[[int], tuple[int, ...]], n: int) -> None:
    costs(n)  # what is cached and imported on the way is paid for
    for one, two in zip(costs(n), costs(2 * n), strict=True):
        assert two <= GROWTH * one


# ---- the wire -------------------------------------------------------------------------------


def feed(wire: ServerWire | ClientWire, data: bytes, step: int) -> None:
    for at in range(0, len(data), step):
        wire.receive(data[at : at + step])
        while (event := wire.next_event()) is not Mark.NEED_DATA:
            if event is Mark.PAUSED and isinstance(wire, ServerWire):
                wire.send_head(204, Headers(), 0)
                wire.send_end()
                wire.next_cycle()
            elif isinstance(event, Mark):
                return


def wire_costs(wire: ServerWire | ClientWire, data: bytes, step: int) -> tuple[int, int]:
    """Work, and bytes looked at."""
    buffer = wire._reader._buffer = Counted()
    done = work(lambda: feed(wire, data, step))
    return done, buffer.looked_at


CHUNKED = head("Transfer-Encoding: chunked", first="POST / HTTP/1.1")


def body(n: int) -> bytes:
    return head(f"Content-Length: {n}", first="POST / HTTP/1.1") + b"x" * n


#: name: (bytes in a segment, n). Tracing is slow, so few where much is traced.
WAYS = {"whole": (2**30, 800), "in segments": (40, 400), "byte by byte": (1, 100)}

ON_THE_WIRE: dict[str, Callable[[int], bytes]] = {
    "header count": lambda n: head(*["X: y"] * n),
    "different headers": lambda n: head(*[f"X{i}: y" for i in range(n)]),
    "empty headers": lambda n: head(*["X:"] * n),
    "header value": lambda n: head("X: " + "y" * n),
    "blanks in a value": lambda n: head("X: " + " " * n + "y" + " " * n + "y"),
    "blanks before what is refused": lambda n: head("X: " + " \t" * n + "\0"),  # waitress, CVE-2020-5236
    "colons": lambda n: head("X: " + ":" * n),
    "header name": lambda n: head("X" * n + ": y"),
    "bad header name": lambda n: head("X" * n + " : y"),
    "target": lambda n: head(first="GET /" + "x" * n + " HTTP/1.1"),
    "authority": lambda n: head(first="GET http://" + "a" * n + "/ HTTP/1.1", host="Host: " + "A" * n + "\r\n"),
    "host": lambda n: head(host="Host: " + "a." * n + "\r\n"),
    "bad host": lambda n: head(host="Host: " + "a:1" * n + "\r\n"),
    "method": lambda n: head(first="X" * n + " / HTTP/1.1"),
    "connection tokens": lambda n: head("Connection: " + "a," * n),
    "connection headers": lambda n: head(*["Connection: a"] * n),
    "expectations": lambda n: head(*["Expect: 100-continue"] * n),
    "lengths": lambda n: head(*["Content-Length: 1"] * n),
    "digits of a length": lambda n: head("Content-Length: " + "1" * n),
    "codings": lambda n: head("Transfer-Encoding: " + "chunked," * n),
    "body": body,
    "chunks of one byte": lambda n: CHUNKED + b"1\r\nx\r\n" * n + b"0\r\n\r\n",  # aiohttp, CVE-2024-69229's kind
    "one large chunk": lambda n: CHUNKED + b"%x\r\n" % n + b"x" * n + b"\r\n0\r\n\r\n",
    "chunk extensions": lambda n: CHUNKED + b"1" + b";a" * n + b"\r\nx\r\n" + b"0\r\n\r\n",
    "a quoted chunk extension": lambda n: CHUNKED + b'1;a="' + b"\\x" * n + b"\r\nx\r\n",
    "chunks with extensions": lambda n: CHUNKED + b"1;\r\nx\r\n" * n,
    "trailers": lambda n: CHUNKED + b"0\r\n" + b"X: y\r\n" * n + b"\r\n",
    "a long trailer": lambda n: CHUNKED + b"0\r\nX: " + b"y" * n + b"\r\n\r\n",
    "pipelined requests": lambda n: head() * n,
    "pipelined requests with bodies": lambda n: body(3) * n,
    "line ends after a body": lambda n: body(3) + b"\r\n" * n,
}


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(("step", "n"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", ON_THE_WIRE.values(), ids=ON_THE_WIRE)
def test_reading_requests(make: Callable[[int], bytes], step: int, n: int, parser: Any) -> None:
    def costs(n: int) -> tuple[int, int]:
        return wire_costs(ServerWire(WIDE, head_parser(parser)), make(n), step)

    check_linear(costs, n)


ANSWER = b"HTTP/1.1 200 OK\r\n"
ANSWERS: dict[str, Callable[[int], bytes]] = {
    "headers": lambda n: ANSWER + b"X: y\r\n" * n + b"\r\n",
    "a long header": lambda n: ANSWER + b"X: " + b"y" * n + b"\r\n\r\n",
    "the phrase": lambda n: b"HTTP/1.1 200 " + b"x" * n + b"\r\n\r\n",
    "interim responses": lambda n: b"HTTP/1.1 100 Continue\r\n\r\n" * n,
    "chunks": lambda n: ANSWER + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * n,
    "a body until the end": lambda n: ANSWER + b"\r\n" + b"x" * n,
}


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(("step", "n"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", ANSWERS.values(), ids=ANSWERS)
def test_reading_responses(make: Callable[[int], bytes], step: int, n: int, parser: Any) -> None:
    def costs(n: int) -> tuple[int, int]:
        wire = ClientWire(WIDE, head_parser(parser))
        wire.send_head(RequestHead("GET", "/", Headers.of({"host": "a"})))
        wire.send_end()
        return wire_costs(wire, make(n), step)

    check_linear(costs, n)


# ---- above the wire -------------------------------------------------------------------------


def asked(target: str = "/", *fields: tuple[str, str]) -> RequestHead:
    return RequestHead("GET", target, Headers.of([("host", "a"), *fields]))


OVERLAPPING: Router[str] = Router(
    Entry("GET", path, path)
    for path in (
        *("/", "/a", "/a/{x}", "/{x}/a", "/{x:int}/a", "/{x}/{y}", "/a/{x}/{y:int}/a", "/{a}/{b}/{c}/{d}/{e}"),
        *("/{x}/b/{rest:path}", "/a/{rest:path}", "/{rest:path}"),
    )
)
FEW: Router[str] = Router([Entry("GET", "/a", "a"), Entry("GET", "/{x:int}/{y:uuid}", "b")])


def extract(part: Any, type_: Any, name: str) -> Callable[..., object]:
    extractor = compile_extractor([PartRead(name, part, type_, False, Parameter.empty)], "route")
    return extractor.extract


QUERY_ONE, QUERY_ALL = extract(Query(), str, "q"), extract(Query(), list[int], "q")
COOKIE, HEADER, HEADERS = (
    extract(Cookie(), str, "c"),
    extract(Header(), str, "accept"),
    extract(Header(), list[str], "accept"),
)


@attrs.frozen
class Item:
    name: str
    count: int = 0
    inner: list[Item] = attrs.Factory(list)


ANY, ITEMS = compile_json(Any, "here"), compile_json(list[Item], "here")
JSON_TYPES = {"content-type": "application/json"}


FORM = extract(Form(), list[str], "q")
FORM_TYPE = ("content-type", "application/x-www-form-urlencoded")
MULTIPART = ("content-type", "multipart/form-data; boundary=x")
FIELD = b"Content-Disposition: form-data; name=q\r\n\r\n1\r\n--x\r\n"
VALIDATORS = Validators('"now"', 0)
BELIEVED = Trust(proxies=["10.0.0.0/8"], hosts=["*.example"])
BELIEVED_FORWARDED = Trust(proxies=["10.0.0.0/8"], form="forwarded")


def judged(*fields: tuple[str, str], host: str = "a.example", form: str = "x-forwarded") -> object:
    trust = BELIEVED if form == "x-forwarded" else BELIEVED_FORWARDED
    return trust.judge(RequestHead("GET", "/", Headers.of([("host", host), *fields])), "10.0.0.1")


NOTHING = Timeline("req_0", "flow", "1", "acme", "default", [])


def render_problems(n: int) -> object:
    bad = InvalidData([(f"body[{i}]", "is not valid") for i in range(n)])
    return render(Result(NOTHING, Ending("failed", None, bad)), on_defect=pytest.fail)


ABOVE: dict[str, Callable[[int], Callable[[], object]]] = {
    "path segments": lambda n: lambda: asked("/a" * n).segments,
    "empty path segments": lambda n: lambda: asked("/" * n).segments,
    "dot segments": lambda n: lambda: asked("/.." * n).segments,
    "percent escapes": lambda n: lambda: asked("/" + "%61" * n).segments,
    "percent escapes of more bytes": lambda n: lambda: asked("/" + "%C3%A9" * n).segments,
    "percents that start no escape": lambda n: lambda: asked("/" + "%" * n).segments,
    "escaped segments": lambda n: lambda: asked("/%61" * n).segments,
    "question marks": lambda n: lambda: (asked("/" + "?" * n).path, asked("/" + "?" * n).query),
    "slashes after an authority": lambda n: lambda: asked("http://a" + "/?" * n).path,
    "routing a deep path": lambda n: lambda: OVERLAPPING.find(asked("/a" * n)),
    "routing a path that is nowhere": lambda n: lambda: FEW.find(asked("/a" * n)),
    "routing a path of digits": lambda n: lambda: FEW.find(asked("/" + "1" * n + "/" + "1" * n)),
    "routing dots": lambda n: lambda: OVERLAPPING.find(asked("/.." * n)),
    "routing a long segment": lambda n: lambda: OVERLAPPING.find(asked("/" + "a" * n)),
    "query fields": lambda n: lambda: QUERY_ALL(asked("/?" + "q=1&" * (n // 5))),  # 1,000 at most
    "other query fields": lambda n: lambda: QUERY_ONE(asked("/?q=1" + "".join(f"&x{i}" for i in range(n // 5)))),
    "too many query fields": lambda n: lambda: QUERY_ONE(asked("/?" + "&" * (n * 10))),
    "a long query value": lambda n: lambda: QUERY_ONE(asked("/?q=" + "+%20" * n)),
    "a bad query value": lambda n: lambda: QUERY_ONE(asked("/?q=" + "%" * n)),
    "names of query fields": lambda n: lambda: QUERY_ONE(asked("/?" + "%61+" * n + "=1")),
    "bad numbers in a query": lambda n: lambda: QUERY_ALL(asked("/?q=" + "x" * n)),
    "cookies": lambda n: lambda: COOKIE(asked("/", ("cookie", "c=1; " * n))),  # tornado, CVE-2024-52804
    "cookie headers": lambda n: lambda: COOKIE(asked("/", *[("cookie", "c=1")] * n)),
    "a quoted cookie": lambda n: lambda: COOKIE(asked("/", ("cookie", 'c="' + "\\042" * n + '"'))),
    "what is no cookie": lambda n: lambda: COOKIE(asked("/", ("cookie", ";" * n + "=" * n))),
    "a repeated header": lambda n: lambda: HEADER(asked("/", *[("accept", "a/b")] * n)),  # tornado, CVE-2025-67725
    "a repeated header, all of it": lambda n: lambda: HEADERS(asked("/", *[("accept", "a/b")] * n)),
    "an accept list": lambda n: lambda: asked("/", ("accept", "a/b;q=0.1, " * n)).headers.tokens("accept"),
    "parameters of a content type": lambda n: (
        lambda: check_is_json(
            asked("/", ("content-type", "application/json" + "; a=b" * n))  # tornado, CVE-2025-67726
        )
    ),
    "escaped path segments": lambda n: lambda: asked("/%61" * n).segments,
    "X-Forwarded-For": lambda n: lambda: judged(("x-forwarded-for", "10.0.0.1, " * n + "1.1.1.1")),
    "X-Forwarded-For, all of proxies": lambda n: lambda: judged(("x-forwarded-for", "10.0.0.1," * n)),
    "X-Forwarded-For lines": lambda n: lambda: judged(*[("x-forwarded-for", "10.0.0.1")] * n),
    "X-Forwarded-Proto": lambda n: lambda: judged(("x-forwarded-proto", "http," * n + "https")),
    "X-Forwarded-Host": lambda n: lambda: judged(("x-forwarded-host", "a.example," * n + "a.example")),
    "Forwarded elements": lambda n: (
        lambda: judged(("forwarded", "for=10.0.0.1," * n + "for=1.1.1.1"), form="forwarded")
    ),
    "Forwarded pairs": lambda n: lambda: judged(("forwarded", ";".join(f"x{i}=y" for i in range(n))), form="forwarded"),
    "a quoted Forwarded": lambda n: lambda: judged(("forwarded", 'for="' + "\\a" * n + '"'), form="forwarded"),
    "an open Forwarded": lambda n: lambda: judged(("forwarded", 'for="' + "\\a" * n), form="forwarded"),
    "labels of a host": lambda n: lambda: judged(host="a." * n + "example"),
    "labels of a long host": lambda n: lambda: judged(host="a." * (n + 200) + "example"),
    "If-None-Match": lambda n: lambda: judge(asked("/", ("if-none-match", '"a", W/"b", ' * n)), VALIDATORS),
    "If-Match": lambda n: lambda: judge(asked("/", ("if-match", '"a", ' * n)), VALIDATORS),
    "an open If-None-Match": lambda n: lambda: judge(asked("/", ("if-none-match", '"a ' * n)), VALIDATORS),
    "If-Modified-Since": lambda n: lambda: judge(asked("/", ("if-modified-since", "Mon, " * n)), VALIDATORS),
    "Range": lambda n: lambda: read_range(asked("/", ("range", "bytes=" + "0-1," * n)), VALIDATORS, 10),
    "digits of a Range": lambda n: lambda: read_range(asked("/", ("range", "bytes=1-" + "1" * n)), VALIDATORS, 10),
    "If-Range": lambda n: (
        lambda: read_range(asked("/", ("range", "bytes=1-"), ("if-range", '"a"' * n)), VALIDATORS, 10)
    ),
    "form fields": lambda n: lambda: FORM(asked("/", FORM_TYPE), body=b"q=1&" * (n // 5)),  # 1,000 at most
    "too many form fields": lambda n: lambda: FORM(asked("/", FORM_TYPE), body=b"&" * n),
    "other form fields": lambda n: (
        lambda: FORM(asked("/", FORM_TYPE), body=b"q=1" + b"".join(b"&x%d" % i for i in range(n // 5)))
    ),
    "a long form value": lambda n: lambda: FORM(asked("/", FORM_TYPE), body=b"q=" + b"+%20" * n),
    "parts of a form": lambda n: lambda: FORM(asked("/", MULTIPART), body=b"--x\r\n" + FIELD * n + b"--x--"),
    "a form that is cut": lambda n: lambda: FORM(asked("/", MULTIPART), body=(b"--x\r\n" + FIELD * n)[:-9]),
    "a form in pieces": lambda n: lambda: FORM(asked("/", MULTIPART), body=b"--x\r\n" * n),
    "text before a form": lambda n: lambda: FORM(asked("/", MULTIPART), body=b"\r\n" * n + FIELD + b"--x--"),
    "text after a form": lambda n: (
        lambda: FORM(asked("/", MULTIPART), body=b"--x\r\n" + FIELD + b"--x--" + b"\r\n" * n)
    ),
    "line ends in a file": lambda n: (
        lambda: FORM(asked("/", MULTIPART), body=b"--x\r\n" + FIELD[:-3] + b"\r\n--" * n + b"\r\n--x--")
    ),
    "a part's head": lambda n: (
        lambda: FORM(asked("/", MULTIPART), body=b"--x\r\n" + b"X: y\r\n" * n + FIELD + b"--x--")
    ),
    "a part's name": lambda n: (
        lambda: FORM(asked("/", MULTIPART), body=b"--x\r\n" + FIELD.replace(b"=q", b'="' + b"\\" * n + b'"'))
    ),
    "parameters of a form": lambda n: (
        lambda: FORM(asked("/", ("content-type", "multipart/form-data" + "; a=b" * n + "; boundary=x")), body=b"--x--")
    ),
    "a Location": lambda n: (
        lambda: next_hop(
            outgoing("GET", "http://a/" + "b/" * n, None, b"", None),
            ResponseHead(302, Headers.of({"location": "../" * n + "?" * n})),
        )
    ),
    "headers of an answer": lambda n: lambda: ResponseHead(200, Headers.of([("x", "y")] * n)).joined,
    "JSON nesting": lambda n: lambda: ANY(b"[" * n + b"]" * n),
    "JSON lists": lambda n: lambda: ANY(b"[" + b"[]," * n + b"0]"),
    "JSON objects": lambda n: lambda: ANY(b"[" + b"{}," * n + b"0]"),
    "JSON zigzag": lambda n: lambda: ANY(b"[" + (b"[" * 60 + b"]" * 60 + b",") * (n // 100) + b"0]"),
    "JSON numbers": lambda n: lambda: ANY(b"[" + b"1.5," * n + b"0]"),
    "JSON numbers that are hard": lambda n: lambda: ANY(b"[" + b"1e308," * (n * 2) + b"0]"),
    "JSON exponents": lambda n: lambda: ANY(b"[1e" + b"0" * n * 10 + b"," + b"1e0," * n * 2 + b"0]"),
    "JSON members": lambda n: lambda: ANY(b"{" + b",".join(b'"%d":1' % i for i in range(n)) + b"}"),
    "JSON members with one name": lambda n: lambda: ANY(b"{" + b'"a":1,' * n + b'"a":1}'),
    "JSON escapes": lambda n: lambda: ANY(b'{"a":"' + b'\\u003a\\"\\\\' * n + b'"}'),
    "JSON digits": lambda n: lambda: ANY(b"1" * n),
    "problems in an answer": lambda n: lambda: render_problems(n),
    "JSON of the wrong shape": lambda n: lambda: ITEMS(b"[" + b'{"name":1},' * (n // 2) + b"0]"),
    "JSON with unknown members": lambda n: (
        lambda: ITEMS(b'[{"name":"a",' + b",".join(b'"x%d":1' % i for i in range(n)) + b"}]")
    ),
}


@pytest.mark.parametrize("make", ABOVE.values(), ids=ABOVE)
def test_reading_what_a_request_says(make: Callable[[int], Callable[[], object]]) -> None:
    check_linear(lambda n: (work(make(n)),), 900)
