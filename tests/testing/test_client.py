"""The client speaks real HTTP to an app in memory, sees what a client sees, and may leave at any moment."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from zerver import INJECTED, App, Done, Fail, Flow, IdempotencyKey, Slot, effect, step
from zerver.effects import clock
from zerver.errors import DefinitionError, ExchangeFailed, InvalidData, Rejected
from zerver.http import Body, Header, Limits, Path, Request, Response, json, stream, text
from zerver.runtime import Result
from zerver.testing import cancel_sweep, client, hangs, normal, script, scripted


@attrs.frozen
class Order:
    cart: str
    cents: int


Payment = Annotated[str, Slot("payment")]


@effect(kind="bank.charge", access="write")
async def charge(cents: int, *, key: IdempotencyKey = INJECTED) -> str:
    raise NotImplementedError


@effect(kind="bank.refund", access="write")
async def refund(payment: str, *, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


@step
async def pay(order: Annotated[Order, Body()]) -> Payment:
    return await charge(order.cents).compensate(refund)


@step
async def ship(order: Annotated[Order, Body()], payment: Payment) -> Done | Fail:
    await clock.sleep(1)
    return Fail.conflict("cart", order.cart) if order.cart == "soldout" else Done(json({"paid": payment}, status=201))


@step
def show(id: Annotated[str, Path()], x_who: Annotated[str | None, Header()]) -> Done:
    return Done({"id": id, "who": x_who})


@step
def echo(request: Request) -> Done:
    return Done(text(f"{request.method} {request.path}?{request.query} {request.peer} {request.body!r}"))


@step
def broken() -> Done:
    raise ZeroDivisionError("mine")


@step
def unsendable() -> Done:
    return Done(object())


async def ticks() -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"tick %d\n" % number
        await trio.sleep(1)


async def breaks() -> AsyncIterator[bytes]:
    yield b"half"
    raise ZeroDivisionError("in the middle")


@step
def streaming() -> Done:
    return Done(stream(ticks()))


@step
def breaking() -> Done:
    return Done(stream(breaks()))


@step
async def waits() -> Done:
    await clock.sleep(60)
    return Done("late")


def shop() -> App:
    app = App()
    app.route("POST", "/orders", Flow("order", [pay, ship]))
    app.route("GET", "/orders/{id}", Flow("show", [show]))
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        app.route(method, "/echo", Flow(f"echo.{method}", [echo]))
    app.route("GET", "/broken", Flow("broken", [broken]))
    app.route("GET", "/unsendable", Flow("unsendable", [unsendable]))
    app.route("GET", "/ticks", Flow("ticks", [streaming]))
    app.route("GET", "/breaks", Flow("breaks", [breaking]))
    app.route("GET", "/waits", Flow("waits", [waits]))
    app.route("POST", "/waits", Flow("waits.on", [waits]))
    return app


ORDER = {"cart": "c1", "cents": 500}


async def test_a_request_and_its_run(autojump_clock: MockClock) -> None:
    world = scripted({charge: "ch_1"})
    async with client(shop(), handlers=world, seed=1) as c:
        reply = await c.post("/orders", json=ORDER)
        assert (reply.status, reply.json(), reply.json(dict[str, str])) == (201, {"paid": "ch_1"}, {"paid": "ch_1"})
        assert reply.headers.get("content-type") == "application/json"
        assert reply.run is c.runs[0]
        assert reply.run.status == "done"
        assert reply.headers.get("X-Request-Id") == reply.run.run_id
        assert world.calls[0].args == (500,)
        assert "POST /orders" in normal(reply.run)


async def test_a_failure_is_an_answer(autojump_clock: MockClock) -> None:
    world = scripted({charge: "ch_1", refund: None})
    async with client(shop(), handlers=world) as c:
        reply = await c.post("/orders", json={"cart": "soldout", "cents": 500})
        assert reply.status == 409
        assert len(world.calls_of(refund)) == 1
        assert (await c.post("/orders", json={"cart": "c1"})).status == 422
        assert (await c.get("/broken")).status == 500
        assert [run.status for run in c.runs] == ["failed", "failed", "defect"]


async def test_what_is_no_run_has_none(autojump_clock: MockClock) -> None:
    async with client(shop()) as c:
        reply = await c.get("/nowhere")
        assert (reply.status, reply.run) == (404, None)
        assert (await c.put("/broken")).status == 405
        with pytest.raises(InvalidData):
            (await c.get("/orders/5")).json(int)


async def test_every_method_headers_and_bodies(autojump_clock: MockClock) -> None:
    async with client(shop()) as c:
        assert (await c.get("/echo?a=1%202")).text == "GET /echo?a=1%202 127.0.0.1 b''"
        for verb, ask in (("POST", c.post), ("PUT", c.put), ("PATCH", c.patch)):
            assert (await ask("/echo", body=b"raw")).text == f"{verb} /echo? 127.0.0.1 b'raw'"
        assert (await c.delete("/echo")).text == "DELETE /echo? 127.0.0.1 b''"
        head = await c.head("/echo")
        assert (head.status, head.body) == (200, b"")
        reply = await c.get("/orders/7%2F8", headers={"X-Who": "eve"})
        assert reply.json() == {"id": "7/8", "who": "eve"}
        assert (await c.post("/orders", body=b"{}", headers={"content-type": "text/csv"})).status == 415
        with pytest.raises(DefinitionError, match="json= and body="):
            await c.post("/echo", json=1, body=b"1")


async def test_a_big_body_both_ways(autojump_clock: MockClock) -> None:
    async with client(shop(), limits=Limits(body=1000)) as c:
        assert (await c.post("/echo", body=b"x" * 1000)).status == 200
        assert (await c.post("/echo", body=b"x" * 1001)).status == 413


async def test_requests_at_once(autojump_clock: MockClock) -> None:
    async with client(shop(), handlers=scripted({charge: script(["a", "b", "c"])})) as c:
        replies: list[Any] = []

        async def ask() -> None:
            replies.append((await c.post("/orders", json=ORDER)).json()["paid"])

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        assert sorted(replies) == ["a", "b", "c"]
        assert trio.current_time() == pytest.approx(1)


# ---- errors of the edge itself --------------------------------------------------------------


async def test_an_error_of_the_edge_is_raised_because_nobody_else_would_see_it(autojump_clock: MockClock) -> None:
    async with client(shop()) as c:
        with pytest.raises(TypeError, match="Encoding objects"):
            await c.get("/unsendable")
        with pytest.raises(ZeroDivisionError, match="in the middle"):
            await c.get("/breaks")
        assert (await c.get("/echo")).status == 200


async def test_unless_somebody_listens(autojump_clock: MockClock) -> None:
    heard: list[Exception] = []
    async with client(shop(), on_defect=heard.append) as c:
        assert (await c.get("/unsendable")).status == 500
        with pytest.raises(ExchangeFailed, match="before its answer was complete"):
            await c.get("/breaks")
    assert [type(defect) for defect in heard] == [TypeError, ZeroDivisionError]


async def test_definition_errors_come_first() -> None:
    with pytest.raises(DefinitionError):
        async with client(App()) as c:
            c.runtime.app.route("get", "/x", Flow("x", [show]))
    twice = App()
    for _ in range(2):
        twice.route("GET", "/echo", Flow("echo", [echo]))
    with pytest.raises(DefinitionError):
        async with client(twice):
            raise AssertionError("not reached")


# ---- leaving --------------------------------------------------------------------------------


async def test_a_cancelled_request_has_left(autojump_clock: MockClock) -> None:
    async with client(shop()) as c:
        with trio.move_on_after(1):
            await c.get("/waits")
        await c.wait_idle()
        assert c.runs[0].status == "cancelled"
        assert c.runs[0].reason == "the client has gone"
        assert trio.current_time() == pytest.approx(1)


async def test_a_run_that_finishes_whatever_its_client_does(autojump_clock: MockClock) -> None:
    async with client(shop()) as c:
        async with c.open_request("POST", "/waits"):
            await trio.sleep(1)
        await c.wait_idle()
        assert c.runs[0].status == "done"
        assert trio.current_time() == pytest.approx(60)


async def test_a_stream_is_read_piece_by_piece_and_can_be_left(autojump_clock: MockClock) -> None:
    async with client(shop()) as c:
        assert (await c.get("/ticks")).text == "tick 0\ntick 1\ntick 2\n"
        began = trio.current_time()
        async with c.open_request("GET", "/ticks") as request:
            assert (await request.head()).status == 200
            async for piece in request.pieces():
                assert piece == b"tick 0\n"
                break
        await c.wait_idle()
        assert trio.current_time() - began < 2


async def test_half_a_request_and_garbage(autojump_clock: MockClock) -> None:
    async with client(shop()) as c:
        async with c.open_connection() as connection:
            await connection.send_all(b"POST /echo HTTP/1.1\r\nhost: app.test\r\ncontent-length: 10\r\n\r\nhalf")
            await trio.sleep(1)
        await c.wait_idle()
        async with c.open_connection() as connection:
            await connection.send_all(b"\x00\x01\r\n\r\n")
            assert (await connection.receive_some(100)).startswith(b"HTTP/1.1 400 ")
        await c.wait_idle()
        assert (await c.get("/echo")).status == 200


async def test_leaving_the_client_ends_what_is_under_way(autojump_clock: MockClock) -> None:
    seen: list[Result] = []
    world = scripted({charge: "ch_1", refund: None})
    async with client(shop(), handlers=world, observers=(seen.append,)) as c, trio.open_nursery() as nursery:
        nursery.start_soon(partial(c.post, "/orders", json=ORDER))
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert [run.status for run in seen] == ["cancelled"]
    assert len(world.calls_of(refund)) == 1


async def test_an_error_of_the_body_comes_out_bare(autojump_clock: MockClock) -> None:
    with pytest.raises(Rejected, match=r"^mine$"):
        async with client(shop()):
            raise Rejected("mine")


def test_cancel_sweep_over_a_request() -> None:
    worlds: list[tuple[Any, list[Result]]] = []

    async def program() -> None:
        world, seen = scripted({charge: "ch_1", refund: None}), list[Result]()
        worlds[:] = [(world, seen)]
        async with client(shop(), handlers=world, observers=(seen.append,)) as c:
            await c.post("/orders", json=ORDER)
            await c.post("/orders", json={"cart": "soldout", "cents": 500})

    def every_charge_is_kept_or_refunded() -> None:
        world, seen = worlds[0]
        for result in seen:
            charged = [call for call in world.calls_of(charge) if call.info.run_id == result.run_id]
            refunded = [call for call in world.calls_of(refund) if call.info.run_id == result.run_id]
            if result.status != "done" and len(charged) > len(refunded) + len(result.unresolved):
                raise AssertionError(f"{result.status}: charged and forgotten")

    report = cancel_sweep(program, check=every_charge_is_kept_or_refunded)
    assert report.delivered


async def test_it_never_outlives_a_hanging_handler(autojump_clock: MockClock) -> None:
    async with client(shop(), handlers=scripted({charge: hangs()(None)})) as c:
        with trio.move_on_after(5) as scope:
            await c.post("/orders", json=ORDER)
        assert scope.cancelled_caught
    assert isinstance(Response(200), Response)
