"""Mounted applications get what no route takes, are told the truth, and end with whom they answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver import App, Done, Flow, step
from zerver.errors import DefinitionError, ExchangeFailed
from zerver.http import Limits
from zerver.serve import serve
from zerver.testing import cancel_sweep, client

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def app_with(mounted: object, prefix: str = "/old") -> App:
    app = App()
    app.mount(prefix, mounted)
    return app


async def answer(send: Send, body: bytes = b"ok", status: int = 200, headers: list[Any] | None = None) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers or []})
    await send({"type": "http.response.body", "body": body})


def http_only(function: Callable[[dict[str, Any], Receive, Send], Awaitable[None]]) -> object:
    """An application that does not know the lifespan."""

    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        await function(scope, receive, send)

    return application


# ---- a framework ----------------------------------------------------------------------------


class Old:
    """An application as teams have them."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def hello(self, request: Request) -> Response:
        url = f"{request.scope['path']} {request.scope['root_path']} {request.state.name} {request.url_for('echo')}"
        return PlainTextResponse(url, background=BackgroundTask(self.later))

    async def later(self) -> None:
        await trio.sleep(1)
        self.log.append("background")

    async def echo(self, request: Request) -> Response:
        return JSONResponse({"body": (await request.body()).decode(), "query": dict(request.query_params)}, 201)

    async def stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(3):
                await trio.sleep(1)
                yield b"%d\n" % number

        return StreamingResponse(pieces())

    async def broken(self, request: Request) -> Response:
        raise ValueError("broken")

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[dict[str, str]]:
        self.log.append("up")
        yield {"name": "old shop"}
        self.log.append("down")

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/hello", self.hello),
                Route("/echo", self.echo, methods=["POST"], name="echo"),
                Route("/stream", self.stream),
                Route("/broken", self.broken),
            ],
            lifespan=self.lifespan,
        )


async def test_starlette(autojump_clock: MockClock) -> None:
    old = Old()
    defects: list[Exception] = []
    async with client(app_with(old.application()), on_defect=defects.append) as c:
        assert old.log == ["up"]
        reply = await c.get("/old/hello")
        assert (reply.status, reply.text) == (200, "/old/hello /old old shop http://app.test/old/echo")
        assert reply.headers.get("content-length") == str(len(reply.body))
        assert reply.run is not None
        assert (reply.run.timeline.label, reply.run.status) == ("GET /old/…", "done")
        reply = await c.post("/old/echo?a=b%20c", body=b"x" * 100_000)
        assert (reply.status, reply.json()["query"], len(reply.json()["body"])) == (201, {"a": "b c"}, 100_000)
        assert (await c.get("/old/stream")).body == b"0\n1\n2\n"
        assert (await c.head("/old/hello")).body == b""
        assert (await c.get("/old/none")).status == 404
        assert (await c.get("/old/broken")).status == 500
        assert [str(defect) for defect in defects] == ["broken"]
        await trio.sleep(2)
    assert old.log == ["up", "background", "background", "down"]


async def test_background_work_has_a_moment_when_the_server_ends(autojump_clock: MockClock) -> None:
    old = Old()
    async with client(app_with(old.application())) as c:
        await c.get("/old/hello")
    assert old.log == ["up", "background", "down"]


# ---- whose requests -------------------------------------------------------------------------


async def test_routes_come_first_one_method_at_a_time() -> None:
    @step
    def moved() -> Done:
        return Done("moved")

    async def old(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await answer(send, scope["method"].encode() + b" old")

    app = App()
    app.route("GET", "/orders", Flow("orders", [moved]))
    app.mount("/", http_only(old))
    async with client(app) as c:
        assert (await c.get("/orders")).json() == "moved"
        assert (await c.post("/orders")).text == "POST old"
        assert (await c.request("OPTIONS", "/orders")).text == "OPTIONS old"
        assert (await c.request("PURGE", "/any")).text == "PURGE old"


async def test_the_longest_prefix_wins_and_ends_at_a_slash() -> None:
    def named(name: bytes) -> object:
        async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
            await answer(send, name + b" " + scope["raw_path"])

        return http_only(application)

    app = App()
    app.mount("/a", named(b"a"))
    app.mount("/a/b", named(b"ab"))
    async with client(app) as c:
        assert (await c.get("/a")).text == "a /a"
        assert (await c.get("/a/")).text == "a /a/"
        assert (await c.get("/a/c%2Fd?q")).text == "a /a/c%2Fd"
        assert (await c.get("/a/b/c")).text == "ab /a/b/c"
        assert (await c.get("/%61/b")).text == "ab /%61/b"
        assert (await c.get("/ab")).status == 404


@pytest.mark.parametrize(
    "target", ["/old/../admin", "/old/%2e%2e/admin", "/old/..%2fadmin", "/old/x%5c..%5cy", "/old/."]
)
async def test_paths_that_lead_upwards_are_not_passed_on(target: str) -> None:
    async def never(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        raise AssertionError("it was asked")

    async with client(app_with(http_only(never))) as c:
        assert (await c.get(target)).status == 400


async def test_other_protocols_are_refused_with_a_word() -> None:
    async with client(app_with(Old().application())) as c:
        headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-key": "x"}
        reply = await c.get("/old/hello", headers=headers)
    assert (reply.status, "WebSocket" in reply.text) == (501, True)


@pytest.mark.parametrize("prefix", ["old", "/old/", "/{id}", "/a?b", "/a%20b"])
def test_what_is_no_prefix(prefix: str) -> None:
    with pytest.raises(DefinitionError, match="prefix"):
        App().mount(prefix, Old().application())


def test_a_prefix_has_one_application() -> None:
    app = app_with(Old().application(), "/")
    with pytest.raises(DefinitionError, match="taken"):
        app.mount("", Old().application())
    with pytest.raises(DefinitionError, match="ASGI"):
        app.mount("/x", object())
    assert [mount.prefix for mount in app.mounts] == [""]


# ---- what is said between the two -----------------------------------------------------------


async def test_the_scope() -> None:
    seen: dict[str, Any] = {}

    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        seen.update(scope)
        await answer(send)

    async with client(app_with(http_only(application))) as c:
        await c.get("/old/%C3%A9?a=%20", headers={"X-Own": "1"})
    wanted = {
        "type": "http", "method": "GET", "scheme": "http", "path": "/old/é", "raw_path": b"/old/%C3%A9",
        "query_string": b"a=%20", "root_path": "/old",
    }  # fmt: skip
    assert {name: seen[name] for name in wanted} == wanted
    assert seen["headers"] == [(b"host", b"app.test"), (b"x-own", b"1")]
    assert seen["client"] == ("127.0.0.1", 0)


async def test_an_answer_is_sent_while_it_is_made(autojump_clock: MockClock) -> None:
    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 202, "headers": [(b"X-Own", b"1")]})
        await trio.sleep(5)
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"piece", "more_body": True})
        await send({"type": "http.response.body"})

    async with client(app_with(http_only(application))) as c, c.open_request("GET", "/old") as request:
        began = trio.current_time()
        head = await request.head()
        assert (head.status, head.headers.get("x-own"), trio.current_time()) == (202, "1", began)
        assert [piece async for piece in request.pieces()] == [b"piece"] * 3


async def test_a_body_over_the_limit_is_413() -> None:
    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await answer(send)

    async with client(app_with(http_only(application)), limits=Limits(body=10)) as c:
        assert (await c.post("/old", body=b"x" * 10)).status == 200
        assert (await c.post("/old", body=b"x" * 11)).status == 413


@pytest.mark.parametrize("framework", ["answers 500", "answers 400", "raises a group", "goes on"])
async def test_a_body_over_the_limit_is_413_whatever_a_framework_makes_of_it(framework: str) -> None:
    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        try:
            while (await receive()).get("more_body"):
                pass
        except Exception as error:
            if framework.startswith("answers"):
                await answer(send, b"broken", int(framework[-3:]))
            if framework == "raises a group":
                raise ExceptionGroup("of a task group", [error]) from None

    async with client(app_with(http_only(application)), limits=Limits(body=10)) as c:
        assert (await c.post("/old", body=b"x" * 11)).status == 413


async def test_head_of_an_answer_without_a_length_has_none() -> None:
    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with client(app_with(http_only(application))) as c:
        assert "content-length" not in (await c.head("/old")).headers


async def test_a_client_that_leaves_ends_the_task(autojump_clock: MockClock) -> None:
    ended: list[float] = []

    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        try:
            if scope["path"] == "/old/late":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await trio.sleep(100)
        finally:
            ended.append(trio.current_time())

    async with client(app_with(http_only(application))) as c:
        for path in ("/old/early", "/old/late"):
            async with c.open_request("GET", path) as request:
                with trio.move_on_after(1):
                    await request.reply()
            await c.wait_idle()
        assert ended == [1.0, 2.0]
        assert [run.status for run in c.runs] == ["cancelled", "done"]


async def test_disconnect_is_told_to_who_listens(autojump_clock: MockClock) -> None:
    heard: list[str] = []

    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        await answer(send)
        heard.append((await receive())["type"])

    async with client(app_with(http_only(application))) as c:
        await c.get("/old")
    assert heard == ["http.disconnect"]


async def test_who_answers_before_the_body_has_come_leaves_it_to_the_connection() -> None:
    heard: list[str] = []

    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        async def listen() -> None:
            heard.append((await receive())["type"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await wait_all_tasks_blocked()
            await answer(send)

    async def read_answer(stream: trio.SocketStream) -> bytes:
        said = b""
        while not said.endswith(b"\r\n\r\nok"):
            piece = await stream.receive_some()
            assert piece, said
            said += piece
        return said

    defects: list[Exception] = []
    request = b"POST /old HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
    async with trio.open_nursery() as nursery:
        app = app_with(http_only(application))
        serving = await nursery.start(partial(serve, app, on_defect=defects.append))
        host, port = serving.addresses[0].removeprefix("http://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            for _ in range(2):
                await stream.send_all(request)
                assert b" 200 OK\r\n" in await read_answer(stream)
                await stream.send_all(b"hello")
        nursery.cancel_scope.cancel()
    assert (heard, defects) == (["http.disconnect"] * 2, [])


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([], 502),
        ([{"type": "http.response.body", "body": b"x"}], 502),
        ([{"type": "nonsense"}], 502),
        ([{"type": "http.response.start", "status": 200, "headers": [(b"a", b"b\r\nc: d")]},
          {"type": "http.response.body"}], 500),
    ],
)  # fmt: skip
async def test_what_is_no_answer(messages: list[dict[str, Any]], status: int) -> None:
    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async with client(app_with(http_only(application)), on_defect=lambda defect: None) as c:
        assert (await c.get("/old")).status == status


async def test_half_an_answer_is_cut() -> None:
    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if scope["path"] == "/old/raises":
            raise ValueError("half")

    defects: list[Exception] = []
    async with client(app_with(http_only(application)), on_defect=defects.append) as c:
        for path in ("/old/raises", "/old/returns"):
            with pytest.raises(ExchangeFailed):
                await c.get(path)
    assert [str(defect) for defect in defects] == ["half", "the answer broke off"]


async def test_a_deadline_holds_until_the_head(autojump_clock: MockClock) -> None:
    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await trio.sleep(2)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await trio.sleep(2)
        await send({"type": "http.response.body", "body": b"x"})

    async with client(app_with(http_only(application))) as c:
        assert (await c.get("/old", headers={"x-request-timeout-ms": "1000"})).status == 504
        assert (await c.get("/old", headers={"x-request-timeout-ms": "3000"})).body == b"x"


# ---- lifespan -------------------------------------------------------------------------------


async def test_an_application_that_does_not_start(autojump_clock: MockClock) -> None:
    async def fails(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def hangs(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    for application, said in ((fails, "no database"), (hangs, "within 30 s")):
        with pytest.raises(DefinitionError, match=said):
            async with client(app_with(application)):
                pass


async def test_applications_end_in_reverse_order_and_in_time(autojump_clock: MockClock) -> None:
    log: list[str] = []

    def named(name: str, seconds: float = 0) -> object:
        async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
            assert (await receive())["type"] == "lifespan.startup"
            log.append(f"{name} up")
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            await trio.sleep(seconds)
            log.append(f"{name} down")
            await send({"type": "lifespan.shutdown.complete"})

        return application

    app = App()
    app.mount("/a", named("a"))
    app.mount("/b", named("b"))
    async with client(app):
        pass
    assert log == ["a up", "b up", "b down", "a down"]
    defects: list[Exception] = []
    async with client(app_with(named("slow", 1000)), on_defect=defects.append):
        pass
    assert [type(defect) for defect in defects] == [TimeoutError]


async def test_a_server_that_is_cancelled_lets_applications_end_as_well(autojump_clock: MockClock) -> None:
    log: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await trio.sleep(1)
        log.append("down")

    with trio.CancelScope() as scope:
        async with client(app_with(Starlette(lifespan=lifespan)), on_defect=lambda defect: log.append(repr(defect))):
            scope.cancel()
            await trio.sleep_forever()
    assert log == ["down"]


async def test_a_server_that_is_cancelled_does_not_wait_for_an_application_that_starts(
    autojump_clock: MockClock,
) -> None:
    async def hangs(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(1):
        async with client(app_with(hangs)):
            raise AssertionError("it has not started")
    assert trio.current_time() == 1


def test_cancelled_at_any_step() -> None:
    under_way: list[int] = []

    async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        under_way.append(1)
        try:
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(3):
                await trio.sleep(1)
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            under_way.pop()

    async def program() -> None:
        async with client(app_with(http_only(application))) as c:
            assert (await c.post("/old", body=b"y")).body == b"xxx"

    def all_ended() -> None:
        if under_way:
            raise AssertionError("an application goes on")

    assert cancel_sweep(program, check=all_ended).delivered > 20
