"""A relay's task belongs to its run until the head is there, then to its answer; and whatever happens, it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.errors import ExchangeFailed, ProtocolViolation
from zerver.http import Caller, Exchange, Headers, Limits, Passage, RequestHead
from zerver.http.bodies import pour
from zerver.http.relay import Relay, check_passable, open_relays


class Quiet(Exchange):
    """A request without a body, whose client never leaves."""

    @property
    def body_length(self) -> int:
        return 0

    def watch_disconnect(self, on_gone: object) -> None:
        pass

    async def _fetch(self) -> None:
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def passage(method: str = "GET", defects: list[Exception] | None = None) -> AsyncGenerator[Passage, None]:
    told: list[Exception] = [] if defects is None else defects
    async with open_relays(told.append) as relays:
        yield Passage(Quiet(RequestHead(method, "/a"), "", "http", Limits()), Caller("", "", "http", "a"), {}, relays)


async def collected(body: object) -> bytes:
    pieces: list[bytes] = []

    async def send(piece: bytes) -> None:
        await trio.lowlevel.checkpoint()
        pieces.append(piece)

    await pour(body, send)  # type: ignore[arg-type]  # what it is, the test knows
    return b"|".join(pieces)


async def test_a_short_answer_is_whole_at_once() -> None:
    async def answer(relay: Relay) -> None:
        relay.start(201, Headers.of({"a": "b"}))
        await relay.send(b"all", more=False)

    async with passage() as p:
        assert repr(p) == "GET /a"
        response = await p.relay(answer)
    assert (response.status, response.headers.get("a"), response.body) == (201, "b", b"all")


async def test_a_long_one_comes_piece_by_piece_one_ahead_at_most() -> None:
    sent: list[int] = []

    async def answer(relay: Relay) -> None:
        relay.start(200, Headers())
        for number in range(10):
            await relay.send(b"%d" % number)
            sent.append(number)
        await relay.send(b"", more=False)

    async with passage() as p:
        response = await p.relay(answer)
        await wait_all_tasks_blocked()
        assert sent == [0]
        assert await collected(response.body) == b"0|1|2|3|4|5|6|7|8|9"


async def test_head_gets_no_pieces_and_does_not_hold_the_task_up() -> None:
    ended: list[str] = []

    async def answer(relay: Relay) -> None:
        relay.start(200, Headers.of({"content-length": "10"}))
        for _ in range(10):
            await relay.send(b"x")
        await relay.send(b"", more=False)
        ended.append("ended")

    async with passage("HEAD") as p:
        assert (await p.relay(answer)).body == b""
    assert ended == ["ended"]


async def test_of_an_answer_to_head_whose_length_nobody_told_none_is_told() -> None:
    async def answer(relay: Relay) -> None:
        relay.start(200, Headers())
        await relay.send(b"", more=False)

    async with passage("HEAD") as p:
        assert not isinstance((await p.relay(answer)).body, bytes)


async def test_what_is_raised_before_the_head_is_the_askers() -> None:
    async def broken(relay: Relay) -> None:
        raise ValueError("a bug")

    async def silent(relay: Relay) -> None:
        pass

    defects: list[Exception] = []
    async with passage(defects=defects) as p:
        with pytest.raises(ValueError, match="a bug"):
            await p.relay(broken)
        with pytest.raises(ExchangeFailed, match="no answer"):
            await p.relay(silent)
    assert defects == []


async def test_what_is_raised_after_it_breaks_the_answer_off_and_after_its_end_is_reported() -> None:
    async def answer(relay: Relay) -> None:
        relay.start(200, Headers())
        await relay.send(b"half")
        raise ValueError("amid")

    async def late(relay: Relay) -> None:
        relay.start(200, Headers())
        await relay.send(b"all", more=False)
        raise ValueError("after")

    defects: list[Exception] = []
    async with passage(defects=defects) as p:
        response = await p.relay(answer)
        with pytest.raises(ValueError, match="amid"):
            await collected(response.body)
        assert (await p.relay(late)).body == b"all"
    assert [str(defect) for defect in defects] == ["after"]


async def test_until_the_head_the_task_is_cut_with_its_asker(autojump_clock: MockClock) -> None:
    seen: list[float] = []

    async def slow(relay: Relay) -> None:
        seen.append(trio.current_effective_deadline())
        try:
            await trio.sleep(100)
        finally:
            seen.append(trio.current_time())

    async with passage() as p:
        with trio.move_on_after(5):
            await p.relay(slow)
        assert seen == [5.0, 5.0]


async def test_after_the_head_the_deadline_does_not_hold(autojump_clock: MockClock) -> None:
    async def slow(relay: Relay) -> None:
        relay.start(200, Headers())
        await trio.sleep(100)
        await relay.send(b"late", more=False)

    async with passage() as p:
        with trio.move_on_after(5):
            response = await p.relay(slow)
        assert await collected(response.body) == b"late"
        assert trio.current_time() == 100


async def test_closing_the_answer_ends_the_task_unless_it_has_sent_all(autojump_clock: MockClock) -> None:
    ended: list[str] = []

    async def endless(relay: Relay) -> None:
        relay.start(200, Headers())
        try:
            while True:
                await relay.send(b"x")
        finally:
            ended.append("endless")

    async def background(relay: Relay) -> None:
        relay.start(200, Headers())
        await relay.send(b"x", more=False)
        await trio.sleep(3)
        ended.append("background")

    async with passage() as p:
        response = await p.relay(endless)
        assert isinstance(response.body, Relay)
        await response.body.aclose()
        assert ended == ["endless"]
        await p.relay(background)
    assert ended == ["endless", "background"]


async def test_a_task_that_does_not_end_is_cancelled_when_the_server_does(autojump_clock: MockClock) -> None:
    async def forever(relay: Relay) -> None:
        relay.start(200, Headers())
        await relay.send(b"x", more=False)
        await trio.sleep_forever()

    async with passage() as p:
        await p.relay(forever)
    assert trio.current_time() == 5


@pytest.mark.parametrize("target", ["/..", "/a/./b", "/%2e%2E/a", "/a%2f..%2fb", "/a%5c..", "/a%5C.%5Cb"])
def test_dot_segments_are_not_passed_on(target: str) -> None:
    with pytest.raises(ProtocolViolation, match="dot segments"):
        check_passable(RequestHead("GET", target))


def test_what_is_passed_on() -> None:
    for target in ("/", "/a%2Fb", "/...", "/.well-known/x", "/a..b?..", "*"):
        check_passable(RequestHead("GET", target, Headers.of({"upgrade": "h2c"})))
    with pytest.raises(ProtocolViolation) as refused:
        check_passable(RequestHead("GET", "/", Headers.of({"upgrade": "websocket", "connection": "upgrade"})))
    assert refused.value.status == 501
