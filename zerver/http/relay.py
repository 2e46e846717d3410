"""Relays: answers that somebody else makes, in a task that outlives the run which asked for them.

Law: until the head of the answer is there, the task belongs to whoever waits for it: it is cut with it, by its deadline
too, and its errors are raised there. From then on it belongs to the answer's body: it gets no further than one piece
ahead of the client, and it is cancelled when the body is closed before its end. A task that has sent all may go on for
as long as the server runs: other servers' applications do their background work there.

An application behind ASGI and a server behind a proxy are both of this kind.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import ClassVar, Final, TypeAlias

import attrs
import trio

from zerver.core.slots import Part
from zerver.errors import ExchangeFailed, ProtocolViolation
from zerver.http.exchange import Exchange
from zerver.http.messages import Caller, Headers, RequestHead, Response, Send, Writer
from zerver.http.parts import Untouched
from zerver.http.response import problem
from zerver.runtime.groups import open_body_nursery

#: Methods that only look (RFC 9110 §9.2.1): passing one on is a read, and passing on any other a write.
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_BODILESS: Final = (204, 304)
_GRACE: Final = 5.0  # seconds that tasks which have sent all may take to end when the server does


class Relays:
    """Where the tasks of relays run, as long as a server does. Made by `open_relays`."""

    def __init__(self, nursery: trio.Nursery, on_defect: Callable[[Exception], None]) -> None:
        self.nursery = nursery
        self.on_defect = on_defect
        self._running = 0
        self._idle = trio.Event()

    async def run(self, relay: Relay, answer: Answer) -> None:
        """One relay, to its end. Raises nothing but cancellation."""
        self._running += 1
        try:
            with relay.scope:
                try:
                    await answer(relay)
                except Exception as error:
                    if not relay.fail(error):
                        self.on_defect(error)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
            relay.end()

    async def wait_idle(self) -> None:
        """Wait until none is running."""
        while self._running:
            self._idle = trio.Event()
            await self._idle.wait()


@asynccontextmanager
async def open_relays(on_defect: Callable[[Exception], None]) -> AsyncGenerator[Relays, None]:
    """A place for relays. Left, those still running have a few seconds to end, and are cancelled then.

    on_defect: told what a task raises when its answer is out.
    """
    async with open_body_nursery() as nursery:
        relays = Relays(nursery, on_defect)
        yield relays
        with trio.move_on_after(_GRACE):
            await relays.wait_idle()
        nursery.cancel_scope.cancel()


class Relay(Writer):
    """One answer under way, from the task that makes it to the client. The task calls `start`, then `send`."""

    def __init__(self, head: RequestHead) -> None:
        self.scope = trio.CancelScope()
        self.closed = trio.Event()  # nobody waits for the answer any more, or it is complete
        self._ended = trio.Event()
        self._started = trio.Event()
        self._head_only = self._bodiless = head.method == "HEAD"
        self._head: tuple[int, Headers] | None = None
        self._give, self._take = trio.open_memory_channel[bytes](1)
        self._complete = False
        self._error: Exception | None = None

    # ---- the task's side ----------------------------------------------------------------------

    def start(self, status: int, headers: Headers) -> None:
        """The head of the answer; once. From here on the deadline of whoever waited does not hold any more."""
        self._head = (status, headers)
        self._bodiless = self._bodiless or status in _BODILESS
        self.scope.deadline = math.inf
        self._started.set()

    async def send(self, piece: bytes, *, more: bool = True) -> None:
        """A piece of the body; waits for room. Pieces that nobody will get are dropped, as after HEAD."""
        if piece and not self._bodiless:
            try:
                self._give.send_nowait(piece)  # the first piece needs no checkpoint, so a short answer is seen as whole
            except trio.WouldBlock:
                await self._give.send(piece)
        if not more:
            self._complete = True
            self._give.close()
            self.closed.set()

    def fail(self, error: Exception) -> bool:
        """The task has raised: whether somebody hears of it, or wants to."""
        self._error = error
        return not self._complete

    def end(self) -> None:
        """The task has ended."""
        self._give.close()
        self._started.set()
        self._ended.set()

    # ---- the waiting side ---------------------------------------------------------------------

    async def response(self) -> Response:
        """The answer as soon as its head is there. Raises what the task raises before."""
        await self._started.wait()
        if self._head is None:  # and the task has ended
            if self._error is not None:
                raise self._error
            raise ExchangeFailed("no answer was made")
        status, headers = self._head
        if not self._complete or (self._head_only and "content-length" not in headers):
            return Response(status, headers, self)  # bytes would be given a length: of HEAD's answer, a wrong one
        try:
            body = self._take.receive_nowait()
        except (trio.EndOfChannel, trio.WouldBlock):
            body = b""
        return Response(status, headers, body)

    async def write_to(self, send: Send) -> None:
        async for piece in self._take:
            await send(piece)
        if not self._complete:
            raise self._error or ExchangeFailed("the answer broke off")

    async def aclose(self) -> None:
        self.closed.set()
        if not self._complete:
            self.scope.cancel()  # first: a task that waits in `send` is to see this, and no broken channel
        self._take.close()
        if not self._complete:
            await self._ended.wait()


#: Makes one answer.
Answer: TypeAlias = Callable[[Relay], Awaitable[None]]


@attrs.frozen(eq=False, repr=False)
class Passage:
    """A request that somebody else is to answer: what a step reads to pass it on whole. It cannot be replayed."""

    __zerver_part__: ClassVar[Part] = Untouched()

    exchange: Exchange
    caller: Caller
    params: Mapping[str, str]
    relays: Relays

    @property
    def head(self) -> RequestHead:
        return self.exchange.head

    async def relay(self, answer: Answer) -> Response:
        """Start the task that answers; the answer, as soon as its head is there.

        The request's body can be read until then. Cancelled before, the task is cancelled and waited for. A body that
        is malformed, too large or too slow is answered as such. Raises what else the task raises before it has a head.
        """
        relay = Relay(self.head)
        relay.scope.deadline = trio.current_effective_deadline()
        self.relays.nursery.start_soon(self.relays.run, relay, answer)
        try:
            return await relay.response()
        except ProtocolViolation as violation:
            if not self.exchange.owns(violation):
                raise
            return problem(violation.status, detail=str(violation))
        except trio.Cancelled:
            with trio.move_on_after(_GRACE, shield=True):
                await relay.aclose()
            raise

    def __repr__(self) -> str:
        return f"{self.head.method} {self.head.path}"


def check_passable(head: RequestHead) -> None:
    """Raise ProtocolViolation for what is not passed on: another protocol, or a path that leads upwards.

    Whoever resolves "..", in whatever spelling, would see another path than our routes and their guards have seen.
    """
    if "upgrade" in head.headers.tokens("connection") and "upgrade" in head.headers:
        raise ProtocolViolation("no other protocol is spoken here, WebSocket included", status=501)
    for segment in head.segments:
        if any(part in (".", "..") for part in segment.replace("\\", "/").split("/")):
            raise ProtocolViolation("the path has dot segments")
