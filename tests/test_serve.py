"""An app over real sockets: every status, the run behind each answer, leaving clients, deadlines, draining, ending."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver import AdmissionPolicy, App, Capability, Done, Fail, Flow, Slot, effect, step
from zerver.edge import check_app
from zerver.effects import clock, kv
from zerver.errors import DefinitionError
from zerver.http import Body, Header, Path, Response, open_http_listeners
from zerver.http import Limits as HttpLimits
from zerver.http import json as as_json
from zerver.runtime import Result
from zerver.serve import Serving, serve
from zerver.testing import cancel_sweep, no_leaks

# ---- an app ---------------------------------------------------------------------------------


@attrs.frozen
class Item:
    sku: str
    quantity: int


class World:
    """What the app's effects have done, and a gate that `wait` stands at."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.waiting = trio.Event()
        self.gate = trio.Event()


def app_in(world: World, **options: Any) -> App:
    """An app with a route for each way in which a run can end."""

    @effect(kind="world.reserve", access="write")
    async def reserve(name: str) -> str:
        await trio.lowlevel.checkpoint()
        world.done.append(name)
        return name

    @effect(kind="world.release", access="write")
    async def release(name: str) -> None:
        await trio.lowlevel.checkpoint()
        world.done.append(f"un{name}")

    @effect(kind="world.wait", access="read")
    async def wait() -> None:
        world.waiting.set()
        await world.gate.wait()

    @step
    def hello() -> Done:
        return Done({"hello": "world"})

    @step
    def created(item: Annotated[Item, Body()]) -> Done:
        return Done(as_json({"sku": item.sku}, status=201))

    @step
    def nothing() -> Done:
        return Done()

    @step
    def show(id: Annotated[int, Path()]) -> Done | Fail:
        return Done(id) if id < 100 else Fail.not_found("item", str(id))

    @step
    def refuse() -> Fail:
        return Fail.unauthorized("token")

    @step
    def crash() -> Done:
        raise RuntimeError("the traceback stays here")

    @step
    async def work() -> Done:
        await reserve("work").compensate(release)
        await wait()
        return Done("worked")

    app = App(**options)
    app.route("GET", "/", Flow("hello", [hello]))
    app.route("POST", "/items", Flow("created", [created]))
    app.route("DELETE", "/items", Flow("nothing", [nothing]))
    app.route("GET", "/items/{id}", Flow("show", [show]))
    app.route("GET", "/refuse", Flow("refuse", [refuse]))
    app.route("GET", "/crash", Flow("crash", [crash]))
    app.route("GET", "/work", Flow("get_work", [work]))
    app.route("POST", "/work", Flow("post_work", [work], deadline=30))
    app.route("PUT", "/work", Flow("put_work", [work], on_disconnect="cancel"))
    return app


# ---- a client made of bytes -----------------------------------------------------------------


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection to the app; says and hears bytes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def say(self, line: str, *headers: str, body: bytes | None = None) -> None:
        fields = ["Host: test", *headers]
        if body is not None:
            fields += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
        await self.stream.send_all("\r\n".join([f"{line} HTTP/1.1", *fields, "", ""]).encode() + (body or b""))

    async def hear(self, *, head_only: bool = False) -> Answer:
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if head_only else int(headers.get("content-length", 0))
        while len(self._buffer) < length:
            await self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(int(first.split(" ")[1]), headers, body)

    async def ask(self, line: str, *headers: str, body: bytes | None = None) -> Answer:
        await self.say(line, *headers, body=body)
        return await self.hear(head_only=line.startswith("HEAD "))

    async def hears_the_end(self) -> bool:
        return not self._buffer and not await self.stream.receive_some()

    async def leave(self) -> None:
        await self.stream.aclose()

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError(f"the server closed after {self._buffer!r}")
        self._buffer += data


class Place:
    """An app that is being served, and what it has said about its runs."""

    def __init__(self, serving: Serving, runs: list[tuple[Result, int | None]], defects: list[Exception]) -> None:
        self.serving = serving
        self.runs = runs
        self.defects = defects
        self.port = int(serving.addresses[0].rpartition(":")[2])

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Wire]:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            yield Wire(stream)

    async def ask(self, line: str, *headers: str, body: bytes | None = None) -> Answer:
        async with self.connect() as wire:
            return await wire.ask(line, *headers, body=body)

    async def wait_run(self) -> Result:
        """The first run, once it has ended."""
        while not self.runs:
            await trio.lowlevel.checkpoint()
        return self.runs[0][0]


@asynccontextmanager
async def served(app: App, **options: Any) -> AsyncIterator[Place]:
    runs: list[tuple[Result, int | None]] = []
    defects: list[Exception] = []
    options = {"on_defect": defects.append} | options
    options["observers"] = [
        lambda result: runs.append((result, result.timeline.answered)),
        *options.get("observers", ()),
    ]
    async with trio.open_nursery() as nursery:
        yield Place(await nursery.start(partial(serve, app, **options)), runs, defects)
        nursery.cancel_scope.cancel()


# ---- statuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "headers", "body", "status"),
    [
        ("GET /", (), None, 200),
        ("HEAD /", (), None, 200),
        ("GET /items/7", (), None, 200),
        ("POST /items", (), b'{"sku": "tea", "quantity": 1}', 201),
        ("DELETE /items", (), None, 204),
        ("GET /items/700", (), None, 404),
        ("GET /items/x", (), None, 422),
        ("POST /items", (), b'{"sku": 7}', 422),
        ("POST /items", (), b"{", 400),
        ("POST /items", (), b"x" * 2000, 413),
        ("GET /refuse", (), None, 401),
        ("GET /crash", (), None, 500),
        ("GET /work", ("X-Request-Timeout-Ms: 0",), None, 504),
    ],
)
async def test_every_answer_of_a_run_has_its_status_and_carries_its_id(
    line: str, headers: Sequence[str], body: bytes | None, status: int
) -> None:
    async with served(app_in(World()), limits=HttpLimits(body=1000)) as place:
        answer = await place.ask(line, *headers, body=body)
        ((result, told),) = place.runs
        assert (answer.status, told) == (status, status)
        assert answer.headers["x-request-id"] == result.run_id
        assert place.defects == []


@pytest.mark.parametrize(
    ("line", "status", "allow"),
    [
        ("GET /nowhere", 404, None),
        ("PATCH /items", 405, "DELETE, OPTIONS, POST"),
        ("OPTIONS /items", 204, "DELETE, OPTIONS, POST"),
        ("GET /%zz", 400, None),
    ],
)
async def test_what_finds_no_route_is_answered_without_a_run(line: str, status: int, allow: str | None) -> None:
    async with served(app_in(World())) as place:
        answer = await place.ask(line)
        assert answer.status == status
        allowed = answer.headers.get("allow")
        assert (sorted(allowed.split(", ")) if allowed else None) == (allow.split(", ") if allow else None)
        assert place.runs == []


async def test_bodies_say_what_happened_and_no_more() -> None:
    async with served(app_in(World())) as place:
        assert (await place.ask("GET /")).json == {"hello": "world"}
        head = await place.ask("HEAD /")
        assert (head.headers["content-length"], head.body) == ("17", b"")
        assert (await place.ask("DELETE /items")).body == b""
        invalid = (await place.ask("POST /items", body=b'{"sku": 7}')).json
        assert {error["at"] for error in invalid["errors"]} == {"body.sku", "body.quantity"}
        crash = await place.ask("GET /crash")
        assert b"traceback" not in crash.body
        assert crash.headers["content-type"] == "application/problem+json"
        assert "the traceback stays here" in str(place.runs[-1][0].cause)


async def test_one_connection_serves_many_requests_each_with_a_run_of_its_own() -> None:
    async with served(app_in(World())) as place, place.connect() as wire:
        ids = [(await wire.ask("GET /")).headers["x-request-id"] for _ in range(5)]
        assert ids == [result.run_id for result, _ in place.runs]
        assert len(set(ids)) == 5


# ---- clients that leave ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_run_ends_with_its_client_and_what_was_committed_is_undone(method: str) -> None:
    world = World()
    async with served(app_in(world)) as place:
        async with place.connect() as wire:
            await wire.say(f"{method} /work")
            await world.waiting.wait()
            assert world.done == ["work"]
        result = await place.wait_run()
        assert (result.status, result.reason) == ("cancelled", "the client has gone")
        assert world.done == ["work", "unwork"]


async def test_a_write_goes_on_without_its_client() -> None:
    world = World()
    async with served(app_in(world)) as place:
        async with place.connect() as wire:
            await wire.say("POST /work")
            await world.waiting.wait()
        await wait_all_tasks_blocked()
        world.gate.set()
        assert (await place.wait_run()).status == "done"
        assert world.done == ["work"]


async def test_a_client_that_leaves_within_its_body_starts_nothing() -> None:
    async with served(app_in(World())) as place:
        async with place.connect() as wire:
            await wire.say("POST /items", "Content-Length: 100", "Content-Type: application/json")
            await wire.stream.send_all(b'{"sku"')
        assert (await place.wait_run()).status == "failed"
        assert place.defects == []


# ---- deadlines ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("5000", 5), ("60000", 30), ("", 30), ("-1", 30), ("1e3", 30), ("5000, 6000", 30), ("9" * 30, 30)],
)
async def test_the_shorter_of_the_callers_and_the_flows_deadline_counts(
    header: str, seconds: int, mock_clock: MockClock
) -> None:
    world = World()
    async with served(app_in(world)) as place, place.connect() as wire:
        await wire.say("POST /work", f"X-Request-Timeout-Ms: {header}")
        await world.waiting.wait()
        mock_clock.jump(seconds - 0.001)
        await wait_all_tasks_blocked()
        assert place.runs == []
        mock_clock.jump(0.001)
        assert (await wire.hear()).status == 504
        assert (await place.wait_run()).status == "deadline"
        assert world.done == ["work", "unwork"]


async def test_the_deadline_bounds_the_answer_and_not_the_rollback(mock_clock: MockClock) -> None:
    waiting, undoing, undo = trio.Event(), trio.Event(), trio.Event()

    @effect(kind="late.wait", access="read")
    async def wait() -> None:
        waiting.set()
        await trio.sleep_forever()

    @effect(kind="late.write", access="write")
    async def write() -> int:
        return 1

    @effect(kind="late.undo", access="write")
    async def undo_it(written: int) -> None:
        undoing.set()
        await undo.wait()

    @step
    async def work() -> None:
        await write().compensate(undo_it)
        await wait()

    app = App()
    app.route("POST", "/late", Flow("late", [work], deadline=2.0))
    async with served(app) as place, place.connect() as wire:
        await wire.say("POST /late")
        await waiting.wait()
        mock_clock.jump(2.0)
        reply = await wire.hear()
        await undoing.wait()
        assert (reply.status, place.runs) == (504, [])
        assert place.serving.runtime.statistics().admission.running == 1
        undo.set()
        told = await place.wait_run()
        assert (told.run_id, told.status, told.unresolved) == (reply.headers["x-request-id"], "deadline", ())
        assert place.serving.runtime.statistics().admission.running == 0


# ---- admission ------------------------------------------------------------------------------


async def test_a_refused_request_is_not_read() -> None:
    world = World()
    async with served(app_in(world, admission=AdmissionPolicy(running=1, queued=0))) as place:
        async with place.connect() as first, place.connect() as second:
            await first.say("POST /work")
            await world.waiting.wait()
            expecting = ("Expect: 100-continue", "Content-Length: 29", "Content-Type: application/json")
            refused = await second.ask("POST /items", *expecting)
            assert refused.status == 503  # and no 100 before it, which would be the first that is heard
            assert "retry-after" in refused.headers
            assert refused.headers["x-request-id"] == place.runs[0][0].run_id
            assert await second.hears_the_end()
            world.gate.set()
            assert (await first.hear()).status == 200
        async with place.connect() as third:  # there is room again: now the body is asked for
            await third.say("POST /items", *expecting)
            assert (await third.hear()).status == 100
            await third.stream.send_all(b'{"sku": "tea", "quantity": 1}')
            assert (await third.hear()).status == 201


# ---- draining, and being cancelled ----------------------------------------------------------


async def test_draining_finishes_what_is_under_way_and_refuses_the_rest() -> None:
    world = World()
    async with trio.open_nursery() as nursery, served(app_in(world)) as place:
        async with place.connect() as busy, place.connect() as late, place.connect() as idle:
            await busy.say("POST /work")
            await late.stream.send_all(b"GET / HTTP/1.1\r\n")  # has begun a request, and so is not idle
            await world.waiting.wait()
            await wait_all_tasks_blocked()
            nursery.start_soon(place.serving.drain, 1000.0)
            assert await idle.hears_the_end()
            with pytest.raises(OSError, match="all attempts to connect"):
                await place.ask("GET /")
            await late.stream.send_all(b"Host: test\r\n\r\n")
            refused = await late.hear()
            assert (refused.status, refused.headers["connection"]) == (503, "close")
            assert "retry-after" in refused.headers
            world.gate.set()
            answer = await busy.hear()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert world.done == ["work"]


async def test_runs_over_the_drains_deadline_are_undone_and_answered(autojump_clock: MockClock) -> None:
    world = World()
    async with served(app_in(world)) as place, place.connect() as wire:
        await wire.say("PUT /work")
        await world.waiting.wait()
        await place.serving.drain(5.0)
        answer = await wire.hear()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert place.runs[0][0].reason == "the runtime is draining"
        assert world.done == ["work", "unwork"]


async def test_serve_returns_once_it_is_drained() -> None:
    async with trio.open_nursery() as nursery:
        ended = trio.Event()

        async def main(task_status: trio.TaskStatus[Serving]) -> None:
            await serve(app_in(World()), task_status=task_status)
            ended.set()

        serving: Serving = await nursery.start(main)
        await serving.drain(1.0)
        await ended.wait()


async def test_the_runtime_stays_open_until_those_who_use_it_beside_http_have_ended() -> None:
    """Found by `zerver serve` with a job under way: it had no connection, and took the runtime along."""
    open_still: list[bool] = []
    finished = trio.Event()
    resource = Capability(name="thing", resources={World: lambda: held(open_still)})
    async with trio.open_nursery() as nursery:
        serving: Serving = await nursery.start(partial(serve, App(capabilities=[resource])))
        serving.nursery.start_soon(finished.wait)
        await serving.drain(1.0)
        await wait_all_tasks_blocked()
        assert open_still == [True]
        finished.set()
    assert open_still == [True, False]


@asynccontextmanager
async def held(open_still: list[bool]) -> AsyncIterator[World]:
    open_still.append(True)
    yield World()
    open_still.append(False)


async def test_cancelling_the_host_undoes_runs_and_leaves_nothing_behind() -> None:
    async def once() -> World:
        world = World()
        async with served(app_in(world)) as place, place.connect() as wire:
            await wire.say("POST /work")
            await world.waiting.wait()
        return world

    await once()  # fills caches
    with no_leaks():
        world = await once()
    assert world.done == ["work", "unwork"]


def test_serving_may_be_cancelled_at_any_moment() -> None:
    """While it opens, accepts, runs, rolls back, answers, drains: it ends, undoes, and leaves nothing behind."""
    worlds: list[World] = []

    async def program() -> None:
        worlds.append(world := World())
        async with served(app_in(world)) as place, trio.open_nursery() as nursery, place.connect() as wire:
            await wire.say("PUT /work")
            await world.waiting.wait()
            nursery.start_soon(place.serving.drain, 0.0)
            await wire.hear()

    def check() -> None:
        assert worlds[-1].done in ([], ["work", "unwork"])

    report = cancel_sweep(program, check=check, clock=None, max_points=80)
    assert report.delivered > 20


# ---- failing to begin -----------------------------------------------------------------------


async def test_a_port_in_use_is_a_bare_error() -> None:
    (listener,) = await open_http_listeners()
    async with listener:
        with pytest.raises(OSError, match=f"Errno {errno.EADDRINUSE}"):
            await serve(app_in(World()), port=listener.socket.getsockname()[1])


async def test_an_app_that_cannot_work_is_a_bare_error_before_anything_listens() -> None:
    opened: list[str] = []

    @asynccontextmanager
    async def open_thing() -> AsyncIterator[World]:
        opened.append("thing")
        yield World()

    @step
    async def ask(id: Annotated[int, Path()]) -> Done:
        return Done(await clock.monotonic())

    app = App(capabilities=[Capability(name="thing", resources={World: open_thing})])
    app.route("GET", "/", Flow("ask", [ask]))
    (listener,) = await open_http_listeners()
    with pytest.raises(DefinitionError, match="reads path parameter 'id', which the route does not have"):
        await serve(app, listeners=[listener])
    assert listener.socket.fileno() == -1  # whoever hands over listeners is rid of them
    assert opened == []
    with pytest.raises(DefinitionError):
        check_app(app)


async def test_an_error_while_resources_open_comes_out_bare() -> None:
    @asynccontextmanager
    async def open_thing() -> AsyncIterator[World]:
        raise ConnectionRefusedError("no database")
        yield World()

    app = App(capabilities=[Capability(name="thing", resources={World: open_thing})])
    with pytest.raises(ConnectionRefusedError):
        await serve(app)


async def test_an_error_of_a_listener_comes_out_bare() -> None:
    class Broken(trio.abc.Listener[trio.SocketStream]):
        closed = False

        async def accept(self) -> trio.SocketStream:
            raise RuntimeError("the network is gone")

        async def aclose(self) -> None:
            self.closed = True

    listener = Broken()
    with pytest.raises(RuntimeError, match="the network is gone"):
        await serve(app_in(World()), listeners=[listener])
    assert listener.closed


# ---- on_error, before-chains, observers -----------------------------------------------------


def failing(**options: Any) -> Flow:
    @step
    def fail() -> Fail:
        return Fail.conflict("cart", "cart_1")

    return Flow("fail", [fail], **options)


@pytest.mark.parametrize(
    ("of_app", "of_flow", "status", "body"),
    [
        (None, None, 409, None),
        (lambda result: {"app": result.status}, None, 409, {"app": "failed"}),
        (None, lambda result: as_json({"flow": 1}, status=418), 418, {"flow": 1}),
        (lambda result: {"app": 1}, lambda result: {"flow": str(result.cause)}, 409, {"flow": "conflict: cart cart_1"}),
        (None, lambda result: Fail.gone("cart"), 410, None),
    ],
)
async def test_on_error_of_the_flow_else_of_the_app_makes_the_answer(
    of_app: Any, of_flow: Any, status: int, body: object
) -> None:
    app = App(on_error=of_app)
    app.route("GET", "/", failing(on_error=of_flow))
    async with served(app) as place:
        answer = await place.ask("GET /")
        assert answer.status == status
        assert body is None or answer.json == body
        assert answer.headers["x-request-id"] == place.runs[0][0].run_id


async def test_an_on_error_that_raises_is_a_500_and_is_reported() -> None:
    def on_error(result: Result) -> object:
        raise ZeroDivisionError(result.run_id)

    app = App(on_error=on_error)
    app.route("GET", "/", failing())
    async with served(app) as place:
        answer = await place.ask("GET /")
        assert answer.status == 500
        assert answer.headers["x-request-id"] == place.runs[0][0].run_id
        assert [type(defect) for defect in place.defects] == [ZeroDivisionError]


async def test_an_observer_of_runs_that_raises_is_counted_and_spoils_no_answer() -> None:
    def broken(result: Result) -> None:
        raise BrokenPipeError(result.run_id)

    async with served(app_in(World()), observers=[broken]) as place:
        assert (await place.ask("GET /")).status == 200
        assert place.serving.runtime.statistics().observer_errors == 1
        assert place.defects == []


async def test_an_observer_of_runs_is_told_of_the_500_that_an_unsendable_answer_becomes() -> None:
    @step
    def broken() -> Done:
        return Done(Response(200, {"x-bad": "a\nb"}))

    app = App()
    app.route("GET", "/", Flow("broken", [broken]))
    async with served(app) as place:
        answer = await place.ask("GET /")
        ((result, status),) = place.runs
        assert (answer.status, status, result.status) == (500, 500, "done")
        assert answer.headers["x-request-id"] == result.run_id
        assert [type(defect) for defect in place.defects] == [ValueError]


Tenant = Annotated[str, Slot("tenant")]
Trail = Annotated[list[str], Slot("trail")]


async def test_chains_of_app_scope_and_route_run_in_order_and_feed_what_the_flow_takes() -> None:
    trail: list[str] = []

    def mark(name: str) -> Any:
        @step(name=name)
        def marked() -> None:
            trail.append(name)

        return marked

    @step
    def find_tenant(x_tenant: Annotated[str | None, Header()]) -> Tenant | Fail:
        return x_tenant or Fail.unauthorized("tenant")

    @step
    def show(tenant: Tenant) -> Done:
        return Done(tenant)

    app = App()
    app.use(mark("app"))
    outer = app.scope("/v2", before=[mark("outer")])
    inner = outer.scope("/shop", before=[find_tenant])
    inner.route("GET", "/me", Flow("me", [mark("flow"), show], takes=[Tenant]), before=[mark("route")])
    async with served(app) as place:
        assert (await place.ask("GET /v2/shop/me", "X-Tenant: acme")).json == "acme"
        assert trail == ["app", "outer", "route", "flow"]
        trail.clear()
        assert (await place.ask("GET /v2/shop/me")).status == 401
        assert trail == ["app", "outer"]


def test_a_flow_that_takes_what_no_chain_writes_is_refused() -> None:
    @step
    def show(tenant: Tenant) -> Done:
        return Done(tenant)

    app = App()
    app.route("GET", "/me", Flow("me", [show], takes=[Tenant]))
    with pytest.raises(
        DefinitionError, match="route GET /me: flow 'me' takes slot 'tenant', but no before-chain writes"
    ):
        check_app(app)


# ---- beside HTTP ----------------------------------------------------------------------------


async def test_the_runtime_serves_flows_beside_http_and_seeds_repeat_ids() -> None:
    @step
    def hello() -> Done:
        return Done("hello")

    flow = Flow("hello", [hello])
    app = App()
    app.route("GET", "/", flow)
    observed: list[str] = []
    ids = []
    for _ in range(2):
        async with served(app, seed=5, observers=[lambda result: observed.append(result.status)]) as place:
            assert (await place.serving.runtime.run(flow)).value == "hello"
            ids.append((await place.ask("GET /")).headers["x-request-id"])
    assert ids[0] == ids[1]
    assert observed == ["done"] * 4


async def test_handlers_stand_in_for_capabilities_too() -> None:
    @step
    async def ask() -> Done:
        return Done(await kv.get("k"))

    async def get(key: str) -> str:
        await trio.lowlevel.checkpoint()
        return f"the value of {key}"

    app = App()
    app.route("GET", "/", Flow("ask", [ask]))
    with pytest.raises(DefinitionError, match="nothing handles it"):
        await serve(app)
    async with served(app, handlers={"kv.get": get}) as place:
        assert (await place.ask("GET /")).json == "the value of k"


async def test_handlers_script_the_world() -> None:
    async def wait() -> None:
        await trio.lowlevel.checkpoint()

    handlers: dict[str, Callable[..., Any]] = {"world.wait": wait}
    async with served(app_in(World()), handlers=handlers) as place:
        assert (await place.ask("GET /work")).json == "worked"


@pytest.mark.parametrize("path", ["/{rest:path}", "/old/{rest:path}", "/old/app/{rest:path}"])
def test_a_mount_that_a_wildcard_hides_is_an_error_at_start_up(path: str) -> None:
    @step
    def hello() -> Done:
        return Done(None)

    app = App()
    app.mount("/old/app", lambda scope, receive, send: None)
    app.route("GET", path, Flow("all", [hello]))
    with pytest.raises(DefinitionError, match=r"mount '/old/app' is behind route GET"):
        check_app(app)


@pytest.mark.parametrize("path", ["/new/{rest:path}", "/older/{rest:path}", "/{one}", "/{one}/{rest:path}"])
def test_a_mount_beside_a_wildcard_is_fine(path: str) -> None:
    @step
    def hello() -> Done:
        return Done(None)

    app = App()
    app.mount("/old", lambda scope, receive, send: None)
    app.mount("/", lambda scope, receive, send: None)
    app.route("GET", path, Flow("all", [hello]))
    check_app(app)
