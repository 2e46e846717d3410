"""The holes that other servers and clients had, by their CVE numbers: none of them is here.

Those that cannot be here are excused below, each with its reason; every other id is in the name of a test.
"""

from __future__ import annotations

import ast
import logging
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

import zerver.http
from tests.http import test_linear
from tests.http.talking import PARSERS, MemoryListener, Server, answers_to, bytewise, parse_answers, talk
from tests.http.vectors import head
from zerver import App, Done, Flow, step
from zerver.errors import ProtocolViolation
from zerver.http import Body, Form, Query, Upload, json, redirect, static, text
from zerver.http.client import open_http_client
from zerver.http.client_wire import ClientWire
from zerver.http.conditions import Validators, read_range
from zerver.http.connection import Connection, Service
from zerver.http.conversions import check_is_json, compile_json
from zerver.http.exchange import Exchange, Limits
from zerver.http.messages import Headers, RequestHead, Response
from zerver.http.multipart import read_multipart
from zerver.http.parsers import HeadParser, head_parser
from zerver.http.wire import ServerWire
from zerver.serve import serve

#: id: why it cannot be here.
EXCUSED = {
    "CVE-2026-50269": "no multipart is written here, by servers or clients",  # aiohttp
    **dict.fromkeys(
        ("CVE-2026-54274", "CVE-2026-42544", "CVE-2018-1000518"),
        "there is no WebSocket here",
    ),
    "CVE-2021-33880": "there is no basic authentication here",
    **dict.fromkeys(("CVE-2022-29217", "CVE-2017-11424"), "there are no JSON Web Tokens here"),
}

LAST = head("Connection: close", first="GET /last HTTP/1.1")
TE = "Transfer-Encoding: "


@pytest.fixture(params=PARSERS)
def parser(request: pytest.FixtureRequest) -> HeadParser:
    return head_parser(request.param)


# ---- smuggling ------------------------------------------------------------------------------


def post(*lines: str) -> bytes:
    return head(*lines, first="POST / HTTP/1.1")


CHUNKED = post(TE + "chunked")

SMUGGLED: dict[str, list[bytes]] = {
    "h11 CVE-2025-43859, any two bytes end a chunk": [CHUNKED + b"5\r\nhelloXX0\r\n\r\n"],
    "gunicorn CVE-2024-1135, several codings": [
        post(TE + "chunked", TE + "identity"),
        post(TE + "identity, chunked"),
        post(TE + "chunked", "Content-Length: 5"),
    ],
    "gunicorn CVE-2024-6827, an unknown coding falls back to the length": [
        post(TE + "chunkedx", "Content-Length: 5"),
        post(TE + "gzip", "Content-Length: 5"),
    ],
    "waitress CVE-2019-16785, a bare LF ends a line": [
        b"GET / HTTP/1.1\r\nHost: a\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
    ],
    "waitress CVE-2019-16786, a coding with something before it": [
        post(TE + "gzip, chunked", "Content-Length: 5"),
        post(TE + "x, chunked", "Content-Length: 5"),
    ],
    "waitress CVE-2019-16789, white space that is none": [
        post(TE + "\x0bchunked", "Content-Length: 5"),
        post(TE + "\x1cchunked"),
        post("Content-Length: \x0c5"),
    ],
    "waitress CVE-2019-16792, lengths are joined": [
        post("Content-Length: 5", "Content-Length: 5"),
        post("Content-Length: 5, 5"),
    ],
    "waitress CVE-2022-24761, int() takes more than digits": [
        post("Content-Length: +5"),
        post("Content-Length: 5_0"),
        post("Content-Length: 0x5"),
        CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    ],
    "aiohttp CVE-2023-37276, CR alone ends a field": [
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
    ],
    "aiohttp CVE-2023-47627, numbers, names and versions that the other parser would not take": [
        post("Content-Length: -0"),
        post("Content-Length : 5"),
        head("X[]: y"),
        head(first="GET / HTTP/1.10"),
        post("Content-Length: \xb2"),
    ],
    "aiohttp CVE-2023-47641, a coding and a length": [post("Content-Length: 0", TE + "chunked")],
    "aiohttp CVE-2024-23829, names and white space that are none": [
        head("X\x0c: y"),
        head("X\xa0: y"),
        head(first="GET\x0b/ HTTP/1.1"),
        head(first="GET / HTTP/1.1\x1f"),
        head(first="G{T / HTTP/1.1"),
    ],
    "aiohttp CVE-2024-52304, a line ends within a chunk extension": [
        CHUNKED + b"2;\nxx\r\nxx\r\n0\r\n\r\n",
        CHUNKED + b"2;a\rb\r\nxx\r\n0\r\n\r\n",
    ],
    "aiohttp CVE-2025-69224, digits and letters of other scripts": [
        post("Content-Length: \xd9\xa5"),
        post(TE + "chun\xe2\x84\xaaed"),  # the Kelvin sign, a K in lower case
        CHUNKED + b"\xd9\xa5\r\nhello\r\n0\r\n\r\n",
    ],
    "aiohttp CVE-2026-34520, control characters in a value": [
        head("X: a\0b"),
        head("X: a\x01b"),
        head("X: a\x7fb"),
    ],
    "aiohttp CVE-2026-34525, two Hosts": [head("Host: b"), head("host: a")],
    "starlette CVE-2026-48710, a path in the Host": [
        head(host="Host: a/admin\r\n"),
        head(host="Host: a?b\r\n"),
        head(host="Host: a#b\r\n"),
        head(host="Host: u@a\r\n"),
    ],
}


@pytest.mark.parametrize("vectors", SMUGGLED.values(), ids=SMUGGLED)
async def test_smuggled_requests_are_refused(
    vectors: list[bytes], parser: HeadParser, autojump_clock: MockClock
) -> None:
    for data in vectors:
        for pieces in ([data + LAST], bytewise(data + LAST)):
            server = Server()
            said = await answers_to(
                pieces, server, parser=parser, limits=Limits(linger_seconds=0.1), on_defect=server.defects.append
            )
            (refusal,) = parse_answers(said)
            assert refusal.status in (400, 501)
            assert refusal.headers["connection"] == "close"
            assert (server.bodies, server.defects) == ([], [])


async def ask(data: bytes, parser: HeadParser, server: Server | None = None) -> tuple[Server, list[Any]]:
    server = server or Server()
    said = await answers_to([data], server, parser=parser, on_defect=server.defects.append)
    return server, parse_answers(said)


async def test_aiohttp_cve_2025_53643_trailers_are_read_as_trailers(
    parser: HeadParser, autojump_clock: MockClock
) -> None:
    data = CHUNKED + b"0\r\nHost: b\r\nContent-Length: 30\r\nX: GET /smuggled HTTP/1.1\r\n\r\n" + LAST
    server, _ = await ask(data, parser)
    assert server.paths == ["/", "/last"]


async def test_aiohttp_cve_2026_22815_trailers_are_bounded(parser: HeadParser, autojump_clock: MockClock) -> None:
    for trailers in (b"X: y\r\n" * 101, b"X: " + b"y" * 16_400 + b"\r\n", (b"X: " + b"y" * 16_000 + b"\r\n") * 5):
        server, (answer,) = await ask(CHUNKED + b"0\r\n" + trailers + b"\r\n" + LAST, parser)
        assert answer.status == 431
        assert server.bodies == []


# ---- the life of a connection ---------------------------------------------------------------


async def test_waitress_cve_2024_49768_nothing_runs_after_an_error(
    parser: HeadParser, autojump_clock: MockClock
) -> None:
    server, answers = await ask(head("Bad Name: x") + LAST * 3, parser)
    assert ([answer.status for answer in answers], server.heads) == ([400], [])


@pytest.mark.parametrize("sent", [b"", b"GET", LAST, CHUNKED, CHUNKED + b"5\r\nhe", head("Bad Name: x")])
async def test_waitress_cve_2024_49769_and_cve_2022_31015_an_early_leave_frees_all(
    sent: bytes, autojump_clock: MockClock
) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    server = Server()
    for how in ("close", "half", "reset"):
        client, stream = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Connection(stream, Service(server, on_defect=server.defects.append)).run)
            if sent:
                await client.send_all(sent)
            if how == "half":
                await client.send_eof()
                await wait_all_tasks_blocked()
            elif how == "close":
                await wait_all_tasks_blocked()
            await client.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)
    assert server.defects == []
    assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_aiohttp_cve_2026_54273_pipelined_requests_wait_as_bytes(
    parser: HeadParser, autojump_clock: MockClock
) -> None:
    client, stream = memory_stream_pair()
    started, go_on = trio.Event(), trio.Event()

    async def slow(exchange: Exchange) -> Response:
        started.set()
        await go_on.wait()
        return text("")

    service = Service(slow, parser=parser)
    connection = Connection(stream, service)

    async def pipeline() -> None:
        for _ in range(1000):
            await client.send_all(head() * 100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        nursery.start_soon(pipeline)
        await started.wait()
        await wait_all_tasks_blocked()
        assert connection.requests == 0
        assert len(connection._wire.take_rest()) <= 64 * 1024  # one read, and no more until the answer is out
        nursery.cancel_scope.cancel()
    await client.aclose()


async def test_aiohttp_cve_2026_54277_limits_hold_for_what_comes_in_drips(
    parser: HeadParser, autojump_clock: MockClock
) -> None:
    server = Server()
    for data, status in ((b"GET /" + b"x" * 9000, 414), (head()[:-2] + b"X: y\r\n" * 12_000, 431)):
        said = await answers_to(bytewise(data), server, parser=parser, on_defect=server.defects.append)
        assert [answer.status for answer in parse_answers(said)] == [status]


# ---- what is written ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "id_", ["gunicorn CVE-2018-1000164", "uvicorn CVE-2020-7695", "tornado CVE-2025-67724", "aiohttp CVE-2026-34519"]
)
async def test_no_answer_can_be_split(id_: str, parser: HeadParser, autojump_clock: MockClock) -> None:
    """There is no way to give a reason phrase; the wire writes it. Names and values are checked as they are sent."""
    for status, fields in (
        (200, [("x", "a\r\nSet-Cookie: b")]),
        (200, [("x\r\nSet-Cookie", "b")]),
        (200, [("x", "a\nb")]),
        (200, [("x", "a\0b")]),
    ):
        server = Server()

        async def split(exchange: Exchange) -> Response:
            return Response(status, Headers.of(fields), b"")  # noqa: B023  # called before the loop goes on

        said = await answers_to([LAST], split, parser=parser, on_defect=server.defects.append)
        (answer,) = parse_answers(said)
        assert answer.status == 500
        assert b"set-cookie" not in said.lower()
        assert len(server.defects) == 1
    assert "reason" not in {field.name for field in Response.__attrs_attrs__}
    for location in ("/a\r\nSet-Cookie: b", "/a\nb", "/\0"):
        with pytest.raises(ValueError, match=r"."):
            ServerWire().send_head(303, redirect(location).headers, 0)


@pytest.mark.parametrize("id_", ["aiohttp CVE-2023-49081", "aiohttp CVE-2023-49082"])
def test_no_request_can_be_split(id_: str) -> None:
    for method, target, fields in (
        ("GET / HTTP/1.1\r\nX: y\r\n\r\nGET", "/", {"host": "a"}),
        ("GET\n", "/", {"host": "a"}),
        ("GET", "/ HTTP/1.1\r\nX: y", {"host": "a"}),
        ("GET", "/", {"host": "a\r\nX: y"}),
        ("GET", "/", {"host": "a", "x": "y\r\nZ: 1"}),
    ):
        with pytest.raises(ValueError, match=r"."):
            ClientWire().send_head(RequestHead(method, target, Headers.of(fields)))
    sent = ClientWire().send_head(RequestHead("GET", "/", Headers.of({"host": "a"}), "1.1\r\nX: y"))
    assert sent == b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"  # the version is the wire's


async def test_tornado_cve_2026_49853_no_redirect_is_followed_with_credentials() -> None:
    asked: list[RequestHead] = []

    async def away(exchange: Exchange) -> Response:
        asked.append(exchange.head)
        return redirect("http://other.example/")

    async def dial(*where: Any) -> trio.abc.Stream:
        client, stream = memory_stream_pair()
        nursery.start_soon(Connection(stream, Service(away)).run)
        return client

    async with trio.open_nursery() as nursery:
        async with open_http_client(dial=dial) as client:
            response = await client.request("GET", "http://a.example/", headers={"authorization": "Bearer secret"})
            assert (response.status, len(asked)) == (303, 1)
        nursery.cancel_scope.cancel()


# ---- logs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("id_", ["uvicorn CVE-2020-7694", "tornado CVE-2025-47287", "aiohttp CVE-2025-69230"])
async def test_bad_requests_write_no_log(
    id_: str, parser: HeadParser, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Not one line, and so neither a storm nor a terminal that obeys strangers: refusals are counted, not told."""
    caplog.set_level(logging.DEBUG)
    listener = MemoryListener()
    app = App()
    app.route("POST", "/", Flow("echo", [echo]))
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, listeners=[listener]))
        for data in (
            head(first="GET /\x1b[31m HTTP/1.1"),
            head(first="GET /%1b%5b31m%0d%0a HTTP/1.1"),
            head("Cookie: " + "a\x1b=;" * 500),
            head("Cookie: " + '="\\;,' * 500),
            post(TE + "chunked") + b"1\r\nx\r\n" * 100 + b"zz",
            post("Content-Type: multipart/form-data; boundary=x", "Content-Length: 90") + b"--x\r\n" * 18,
            post("Content-Type: application/json", "Content-Length: 90") + b"[" * 90,
        ):
            await talk(listener.connect(), [data])
        nursery.cancel_scope.cancel()
    assert [record for record in caplog.records if record.name.startswith("zerver")] == []


# ---- cost -----------------------------------------------------------------------------------

#: id: the tests of test_linear.py that show it.
LINEAR = {
    "waitress CVE-2020-5236": ["blanks before what is refused", "blanks in a value"],
    "aiohttp CVE-2025-69229": ["chunks of one byte"],
    "tornado CVE-2024-52804": ["cookies", "a quoted cookie"],
    "tornado CVE-2025-67725": ["a repeated header", "header count"],
    "tornado CVE-2025-67726": ["parameters of a content type"],
    "aiohttp CVE-2024-30251": ["a form that is cut", "a form in pieces"],
    "python-multipart CVE-2026-40347": ["text before a form", "text after a form"],
    "werkzeug CVE-2023-46136": ["line ends in a file"],
}


@pytest.mark.parametrize("names", LINEAR.values(), ids=LINEAR)
def test_what_was_quadratic_elsewhere_is_linear(names: list[str]) -> None:
    for name in names:
        if name in test_linear.ABOVE:
            test_linear.check_linear(lambda n: (test_linear.work(test_linear.ABOVE[name](n)),), 900)  # noqa: B023  # now
        else:
            for parser in PARSERS:
                test_linear.test_reading_requests(test_linear.ON_THE_WIRE[name], 2**30, 500, parser)


def test_starlette_cve_2025_62727_ranges_are_one_or_none() -> None:
    now = Validators('"a"', 0)
    for n in (2, 1000):
        asked = RequestHead("GET", "/", Headers.of({"range": "bytes=" + "0-1," * n + "5-"}))
        assert read_range(asked, now, 100) is None


def test_orjson_cve_2024_27454_depth_is_bounded() -> None:
    for body in (b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000):
        with pytest.raises(ProtocolViolation):
            compile_json(Any, "here")(body)


# ---- limits on what is decoded --------------------------------------------------------------


@step
def echo(anything: Annotated[Any, Body()] = None, a: Annotated[str | None, Query()] = None) -> Done:
    return Done(json(anything))


async def served(app: App, *requests: bytes) -> list[int]:
    listener, statuses = MemoryListener(), []
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, listeners=[listener]))
        for data in requests:
            statuses += [answer.status for answer in parse_answers(await talk(listener.connect(), [data]))]
        nursery.cancel_scope.cancel()
    return statuses


async def test_aiohttp_cve_2025_69228_bodies_are_bounded(autojump_clock: MockClock) -> None:
    app = App()
    app.route("POST", "/", Flow("echo", [echo]))
    large = b'"' + b"x" * 1_100_000 + b'"'
    sized = post("Connection: close", f"Content-Length: {len(large)}") + large
    chunked = post("Connection: close", TE + "chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large)
    assert await served(app, sized, chunked) == [413, 413]


async def test_starlette_cve_2026_54283_fields_of_forms_are_bounded(autojump_clock: MockClock) -> None:
    app = App()
    app.route("GET", "/", Flow("echo", [echo]))
    app.route("POST", "/", Flow("echo2", [echo]))
    fields_of_a_form = b"a=1&" * 100
    lines = (
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(fields_of_a_form)}",
        "Connection: close",
    )
    fields = "&".join(["a"] + ["b"] * 1000)
    assert await served(
        app, head("Connection: close", first=f"GET /?{fields} HTTP/1.1"), post(*lines) + fields_of_a_form
    ) == [
        400,
        415,
    ]  # of a query; and no form is read as a body


def form(*parts: bytes) -> bytes:
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"


TEXT_PART = b"Content-Disposition: form-data; name=a\r\n"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(form(*[TEXT_PART + b"\r\n1"] * 1001), 413, id="starlette CVE-2023-30798, werkzeug CVE-2023-25577"),
        pytest.param(
            form(TEXT_PART + b"\r\n" + b"x" * 65_537), 413, id="starlette CVE-2024-47874, aiohttp CVE-2026-34517"
        ),
        pytest.param(form(TEXT_PART + b"X: y\r\n" * 9 + b"\r\n1"), 431, id="aiohttp CVE-2026-34516"),
    ],
)
def test_parts_of_forms_are_bounded(body: bytes, status: int) -> None:
    with pytest.raises(ProtocolViolation) as refused:
        read_multipart("multipart/form-data; boundary=x", body)
    assert refused.value.status == status


async def test_starlette_cve_2025_54121_no_file_of_a_form_is_spooled(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on disk is written by the loop, or by threads that can run out: what is within the limit is in memory."""

    @step
    def keep(a: Annotated[Upload, Form()]) -> Done:
        return Done(json(len(a.body)))

    app = App()
    app.route("POST", "/", Flow("keep", [keep]))
    monkeypatch.setattr("tempfile._get_default_tempdir", lambda: pytest.fail("a temporary file is made"))
    monkeypatch.setattr("tempfile.tempdir", None)
    data = form(b"Content-Disposition: form-data; name=a; filename=b\r\n\r\n" + b"x" * 1_000_000)
    lines = ("Content-Type: multipart/form-data; boundary=x", f"Content-Length: {len(data)}", "Connection: close")
    assert await served(app, post(*lines) + data) == [200]


def test_tornado_cve_2026_49855_nothing_is_decompressed() -> None:
    for coding in ("gzip", "deflate", "br", "GZIP", "identity, gzip"):
        with pytest.raises(ProtocolViolation) as refused:
            check_is_json(RequestHead("POST", "/", Headers.of({"content-encoding": coding})))
        assert refused.value.status == 415


# ---- files, paths, asserts ------------------------------------------------------------------


@pytest.mark.parametrize("id_", ["sanic CVE-2017-16762", "starlette CVE-2023-29159", "aiohttp CVE-2024-23334"])
async def test_nothing_outside_of_a_directory_is_served(id_: str, tmp_path: Path) -> None:
    root = tmp_path / "public"
    root.mkdir()
    (root / "a.txt").write_text("public")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "public2").mkdir()
    (tmp_path / "public2" / "a.txt").write_text("secret")
    (root / "link").symlink_to(tmp_path)
    app = App()
    app.route("GET", "/{path:path}", static(root))
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, listeners=[listener]))
        for path in (
            *("../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "..%5csecret.txt", "link/secret.txt"),
            *("../public2/a.txt", "..%2fpublic2/a.txt", "/etc/passwd", "%2fetc%2fpasswd", "a.txt%00.html"),
        ):
            said = await talk(listener.connect(), [head("Connection: close", first=f"GET /{path} HTTP/1.1")])
            assert b"secret" not in said.partition(b"\r\n\r\n")[2]
            assert parse_answers(said)[0].status in (400, 404)
        said = await talk(listener.connect(), [head("Connection: close", first="GET /a.txt HTTP/1.1")])
        assert said.endswith(b"public")
        nursery.cancel_scope.cancel()


async def test_starlette_cve_2026_48710_the_host_is_no_part_of_the_path(
    parser: HeadParser, autojump_clock: MockClock
) -> None:
    hosts = "Host: a:80\r\n", "Host: public.example\r\n"
    for host in hosts:
        server, _ = await ask(head("Connection: close", first="GET /admin HTTP/1.1", host=host), parser)
        assert server.paths == ["/admin"]


def test_aiohttp_cve_2025_69227_no_check_is_an_assert() -> None:
    """`python -O` strips asserts; there, they had been checks of a client's input."""
    for path in Path(zerver.http.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)], path.name


# ---- the list is complete -------------------------------------------------------------------

LISTED = """
2025-43859 2020-7694 2020-7695 2018-1000164 2024-1135 2024-6827
2019-16785 2019-16786 2019-16789 2019-16792 2020-5236 2022-24761 2022-31015 2024-49768 2024-49769
2023-37276 2023-47627 2023-47641 2023-49081 2023-49082 2024-23334 2024-23829 2024-30251 2024-52304 2025-53643
2025-69224 2025-69227 2025-69228 2025-69229 2025-69230 2026-22815 2026-34516 2026-34517 2026-34519 2026-34520
2026-34525 2026-50269 2026-54273 2026-54274 2026-54277
2024-52804 2025-47287 2025-67724 2025-67725 2025-67726 2026-49853 2026-49855
2023-29159 2023-30798 2024-47874 2025-54121 2025-62727 2026-48710 2026-54283 2026-40347
2026-42544 2018-1000518 2021-33880 2023-25577 2023-46136 2017-16762 2024-27454 2022-29217 2017-11424
"""


def test_every_id_is_tested_or_excused() -> None:
    source = Path(__file__).read_text(encoding="utf-8").partition("# ---- smuggling")[2].partition("LISTED =")[0]
    tested = {f"CVE-{year}-{number}" for year, number in re.findall(r"(?i)cve[-_](\d{4})[-_](\d+)", source)}
    listed = {f"CVE-{id_}" for id_ in LISTED.split()}
    assert tested | set(EXCUSED) == listed
    assert not tested & set(EXCUSED)
