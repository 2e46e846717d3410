"""Server-sent events: nothing breaks out of a field, silence is filled, and every end closes the source."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from zerver import INJECTED, App, Capability, Done, Flow, step
from zerver.errors import DefinitionError, InvalidData
from zerver.http import Event, Exchange, Limits, Response, sse, stream
from zerver.http.connection import Connection, Service
from zerver.testing import cancel_sweep, client
from zerver.trace import format_timeline

# ---- events ---------------------------------------------------------------------------------


def test_an_event_as_it_is_sent() -> None:
    assert Event("hello").encode() == b"data: hello\n\n"
    assert Event("", event="ping", id="7", retry=3000).encode() == b"event: ping\nid: 7\nretry: 3000\ndata: \n\n"
    assert Event("a\nb\r\nc\rd").encode() == b"data: a\ndata: b\ndata: c\ndata: d\n\n"
    assert Event.json({"é": 1}, event="x").encode() == 'event: x\ndata: {"é":1}\n\n'.encode()


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "\n"])
def test_a_field_is_one_line(bad: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        Event("", event=bad)
    with pytest.raises(ValueError, match="one line"):
        Event("", id=bad)


def test_what_is_no_event() -> None:
    with pytest.raises(ValueError, match="milliseconds"):
        Event("", retry=-1)
    with pytest.raises(InvalidData):
        Event.json(object())
    for heartbeat in (0, -1, float("inf")):
        with pytest.raises(DefinitionError, match="heartbeat"):
            sse(numbers, heartbeat=heartbeat)


def parsed(data: str) -> tuple[str, dict[str, str]]:
    """What a browser makes of one event (WHATWG HTML §9.2.6)."""
    lines, fields = [], {}
    for line in data.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n\n").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            lines.append(value)
        else:
            fields[name] = value
    return "\n".join(lines), fields


_line = st.text(st.characters(blacklist_characters="\r\n\0", codec="utf-8"), max_size=8)


@given(st.text(st.sampled_from("a: \n\r\x0b\x85\u2028dt"), max_size=20), _line, _line)
def test_a_browser_reads_what_was_written(data: str, event: str, id_: str) -> None:
    sent = Event(data, event=event, id=id_).encode().decode()
    assert sent.count("\n\n") == 1
    assert parsed(sent) == (data.replace("\r\n", "\n").replace("\r", "\n"), {"event": event, "id": id_})


# ---- streams --------------------------------------------------------------------------------


async def numbers(count: int = 3) -> AsyncIterator[Event]:
    for number in range(count):
        yield Event(str(number))


def app_of(response: Response, *capabilities: Capability) -> App:
    @step
    def answer() -> Done:
        return Done(response)

    app = App(capabilities=capabilities)
    app.route("GET", "/", Flow("events", [answer]))
    return app


async def test_events_arrive_with_the_fields_that_keep_them_coming() -> None:
    async with client(app_of(sse(numbers, headers={"x-own": "1"}))) as c:
        reply = await c.get("/")
        again = await c.get("/")  # a function is called anew for each
    assert reply.body == again.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    wanted = {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no", "x-own": "1"}
    assert {name: reply.headers.get(name) for name in wanted} == wanted


async def test_the_timeline_says_that_it_ends_before_the_stream() -> None:
    async with client(app_of(sse(numbers))) as c:
        reply = await c.get("/")
    assert reply.run is not None
    assert "the body is sent after the run" in format_timeline(reply.run.timeline)


async def test_head_begins_no_stream() -> None:
    began = False

    async def events() -> AsyncIterator[Event]:
        nonlocal began
        began = True
        yield Event("")

    async with client(app_of(sse(events))) as c:
        assert (await c.head("/")).headers.get("content-type") == "text/event-stream"
    assert not began


class Prices:
    value = "9.99"


@asynccontextmanager
async def open_prices() -> AsyncGenerator[Prices, None]:
    yield Prices()


async def priced_events(of: str, *, prices: Prices = INJECTED) -> AsyncIterator[Event]:
    yield Event(f"{of} {prices.value}")


async def priced_lines(of: str, *, prices: Prices = INJECTED) -> AsyncIterator[bytes]:
    yield f"{of} {prices.value}".encode()


async def test_resources_are_filled_in() -> None:
    capability = Capability(name="prices", resources={Prices: open_prices})
    async with client(app_of(sse(partial(priced_events, "ACME")), capability)) as c:
        assert (await c.get("/")).body == b"data: ACME 9.99\n\n"
    async with client(app_of(stream(partial(priced_lines, "ACME"), "text/plain"), capability)) as c:
        assert (await c.get("/")).body == b"ACME 9.99"
    defects: list[Exception] = []
    async with client(app_of(stream(partial(priced_lines, "ACME"))), on_defect=defects.append) as c:
        reply = await c.get("/")
    assert (reply.status, "wants a Prices" in str(defects[0])) == (500, True)
    assert reply.run is not None
    assert reply.headers.get("x-request-id") == reply.run.run_id


async def test_silence_is_filled(autojump_clock: MockClock) -> None:
    async def slow() -> AsyncIterator[Event]:
        await trio.sleep(35)
        yield Event("at last")

    async with client(app_of(sse(slow))) as c:
        assert (await c.get("/")).body == b":\n\n:\n\ndata: at last\n\n"
    async with client(app_of(sse(slow, heartbeat=20))) as c:
        assert (await c.get("/")).body == b":\n\ndata: at last\n\n"


async def test_one_event_is_read_ahead_of_a_client_that_does_not_read(autojump_clock: MockClock) -> None:
    made: list[int] = []
    closed = trio.Event()

    async def many() -> AsyncIterator[Event]:
        try:
            for number in range(1000):
                made.append(number)
                yield Event("x")
        finally:
            closed.set()

    ours, theirs = lockstep_stream_pair()

    async def handler(exchange: Exchange) -> Response:
        return sse(many)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(theirs, Service(handler, Limits(write_seconds=30))).run)
        await ours.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await ours.receive_some()
        await ours.receive_some()
        await wait_all_tasks_blocked()
        assert len(made) <= 4
        await closed.wait()  # it has stalled for 30 s, and is cut
        assert trio.current_time() >= 30


async def test_a_client_that_leaves_ends_the_source(autojump_clock: MockClock) -> None:
    left: list[float] = []

    async def endless() -> AsyncIterator[Event]:
        try:
            while True:
                yield Event("x")
                await trio.sleep(3600)
        finally:
            left.append(trio.current_time())

    async with client(app_of(sse(endless))) as c:
        began = trio.current_time()
        async with c.open_request("GET", "/") as request:
            await anext(request.pieces())
        await c.wait_idle()
        assert left == [began]


async def test_a_source_that_raises_breaks_the_answer_off() -> None:
    async def broken() -> AsyncIterator[Event]:
        yield Event("one")
        raise RuntimeError("the feed is gone")

    defects: list[Exception] = []
    async with client(app_of(sse(broken)), on_defect=defects.append) as c, c.open_request("GET", "/") as request:
        pieces = request.pieces()
        assert await anext(pieces) == b"data: one\n\n"
        with pytest.raises(Exception, match="before its answer was complete"):
            await anext(pieces)
    assert [str(defect) for defect in defects] == ["the feed is gone"]


async def test_a_server_that_drains_ends_the_stream_politely(autojump_clock: MockClock) -> None:
    async def endless() -> AsyncIterator[Event]:
        while True:
            yield Event("x")
            await trio.sleep(3600)

    async def handler(exchange: Exchange) -> Response:
        return sse(endless)

    for early in (True, False):
        ours, theirs = memory_stream_pair()
        connection = Connection(theirs, Service(handler))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            await ours.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            if not early:
                await wait_all_tasks_blocked()
            began = trio.current_time()
            connection.close_soon()
            received = bytearray()
            async for data in ours:
                received += data
            await ours.aclose()
        assert trio.current_time() - began < 10
        assert early or received.endswith(b"x\n\n\r\n0\r\n\r\n")


def test_cancelled_at_any_step() -> None:
    ended: list[str] = []

    async def events() -> AsyncIterator[Event]:
        ended.append("began")
        try:
            for number in range(3):
                await trio.sleep(20)
                yield Event(str(number))
        finally:
            ended.append("ended")

    async def program() -> None:
        async with client(app_of(sse(events))) as c:
            assert (await c.get("/")).body.count(b"data") == 3

    def all_ended() -> None:
        if ended.count("began") != ended.count("ended"):
            raise AssertionError("a source was not closed")

    assert cancel_sweep(program, check=all_ended).delivered > 20
