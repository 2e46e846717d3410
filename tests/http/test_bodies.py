"""Bodies are opened once, with what they need, and are closed in bounded time whatever they do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from zerver import INJECTED, CallInfo
from zerver.errors import DefinitionError
from zerver.http import Headers, RequestHead, Response, Send, Writer, finish, stream, text
from zerver.http.bodies import call_source, dispose, pour

HEAD = RequestHead("GET", "/")


class Unit:
    sign = "€"


async def prices(*amounts: int, unit: Unit = INJECTED) -> AsyncIterator[bytes]:
    for amount in amounts:
        yield f"{amount}{unit.sign}".encode()


async def collected(body: object) -> bytes:
    pieces: list[bytes] = []

    async def send(piece: bytes) -> None:
        pieces.append(piece)

    await pour(body, send)  # type: ignore[arg-type]  # what it is, the test knows
    return b"".join(pieces)


async def test_a_source_is_called_with_its_resources_each_time() -> None:
    response = stream(partial(prices, 1, 2), "text/plain", headers={"x-own": "1"})
    for _ in range(2):
        opened = await finish(response, HEAD, {Unit: Unit()})
        assert opened.headers == Headers.of({"content-type": "text/plain", "x-own": "1"})
        assert await collected(opened.body) == "1€2€".encode()


async def test_what_needs_no_opening_is_as_it_was() -> None:
    response = text("x")
    assert await finish(response, HEAD) is response


async def test_a_source_that_wants_what_there_is_not() -> None:
    async def of_a_call(*, info: CallInfo = INJECTED) -> AsyncIterator[bytes]:
        yield b""

    of_a_call.__annotations__["info"] = CallInfo
    with pytest.raises(DefinitionError, match="wants a Unit for 'unit', but no capability"):
        await finish(stream(prices), HEAD)
    with pytest.raises(DefinitionError, match="its run is over"):
        call_source(of_a_call, {})


async def test_a_writer_sends_itself() -> None:
    class Two(Writer):
        async def write_to(self, send: Send) -> None:
            await send(b"one ")
            await send(b"two")

        async def aclose(self) -> None:
            pass

    body = Two()
    body.end_soon()
    assert await collected(body) == b"one two"
    assert (await finish(Response(body=body), HEAD)).body is body


async def test_closing_is_bounded_and_reported(autojump_clock: MockClock) -> None:
    class Stubborn:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        async def aclose(self) -> None:
            await trio.sleep(self.seconds)
            raise ValueError("a bug")

    defects: list[Exception] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await dispose(Stubborn(1), 5, defects.append)
        await dispose(Stubborn(10), 5, defects.append)
        await dispose(object(), 5, defects.append)
    assert trio.current_time() == 6
    assert [type(defect) for defect in defects] == [ValueError, TimeoutError]
