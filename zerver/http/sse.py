"""Server-sent events: a stream of small messages that a browser reads with `EventSource`.

Law: an event is written by one function, which lets no line break out of a field. The connection is never silent for
longer than the heartbeat, so that neither a proxy nor the client takes it for dead, and a client that has left is
noticed. When the server drains, the stream ends after the event under way: clients come back by themselves, to a server
that stays.

The format is WHATWG HTML §9.2.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import attrs
import trio

from zerver.core.codec import encode_json
from zerver.errors import DefinitionError
from zerver.http.bodies import call_source, close_body
from zerver.http.messages import Deferred, Headers, HeadersLike, RequestHead, Response, Send, Writer
from zerver.runtime.groups import unwrapped

DEFAULT_HEARTBEAT: Final = 15.0  # seconds; proxies give up on a silent connection after 30 to 60

_LINE_BREAK: Final = re.compile(r"\r\n|\r|\n")  # what the format calls one; not str.splitlines, which knows more
_HEARTBEAT: Final = b":\n\n"  # a comment, which clients pass over


def _on_one_line(_: object, field: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and any(character in value for character in "\r\n\0"):
        raise ValueError(f"an event's {field.name} is one line without NUL, not {value!r}")


def _is_milliseconds(_: object, field: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and value < 0:
        raise ValueError(f"an event's {field.name} is in milliseconds, 0 or more, not {value!r}")


@attrs.frozen
class Event:
    """One event. data: any text; its lines arrive as lines. event: its type, "message" by default.

    id: what a client that comes back sends as Last-Event-ID. retry: milliseconds to wait before coming back.

    Raises ValueError for an `event` or `id` with a line break or NUL in it: it would write fields of its own.
    """

    data: str
    event: str | None = attrs.field(default=None, validator=_on_one_line, kw_only=True)
    id: str | None = attrs.field(default=None, validator=_on_one_line, kw_only=True)
    retry: int | None = attrs.field(default=None, validator=_is_milliseconds, kw_only=True)

    @classmethod
    def json(cls, value: object, *, event: str | None = None, id: str | None = None) -> Event:
        """An event whose data is a value as JSON. Raises InvalidData for what is no JSON."""
        return cls(encode_json(value).decode(), event=event, id=id)

    def encode(self) -> bytes:
        """As it is sent."""
        lines = [f"{name}: {value}" for name, value in self._fields() if value is not None]
        lines += [f"data: {line}" for line in _LINE_BREAK.split(self.data)]
        return ("\n".join(lines) + "\n\n").encode()

    def _fields(self) -> tuple[tuple[str, object], ...]:
        return (("event", self.event), ("id", self.id), ("retry", self.retry))


def sse(
    events: AsyncIterator[Event] | Callable[..., AsyncIterator[Event]],
    *,
    heartbeat: float = DEFAULT_HEARTBEAT,
    headers: HeadersLike = (),
) -> Response:
    """Events as they come, for as long as the client stays and there are some: `Done(sse(partial(prices, "ACME")))`.

    events: as `stream`'s body: an async iterator or, better, an async generator function, which is called when the
    stream begins and whose parameters with a default of INJECTED are filled with the app's resources. One event is
    read ahead of the client. Closed in every case.
    heartbeat: seconds of silence after which a comment is sent.

    Raises DefinitionError for a heartbeat that is no time.
    """
    if not 0 < heartbeat < float("inf"):
        raise DefinitionError(f"sse: heartbeat={heartbeat!r}", "give seconds above 0: a silent stream looks dead")
    given = Headers.of(headers)
    # no-store: an event that a cache keeps is old. x-accel-buffering: or nginx keeps events until its buffer is full.
    own = (("content-type", "text/event-stream"), ("cache-control", "no-store"), ("x-accel-buffering", "no"))
    for name, value in own:
        given = given if name in given else given.adding(name, value)
    return Response(200, given, EventSource(events, heartbeat) if callable(events) else EventStream(events, heartbeat))


@attrs.frozen
class EventSource(Deferred):
    """A stream of events that is made when it is to be sent."""

    make: Callable[..., AsyncIterator[Event]]
    heartbeat: float

    async def open(self, response: Response, head: RequestHead, resources: Mapping[type, Any]) -> Response:
        body = EventStream(call_source(self.make, resources), self.heartbeat)
        return Response(response.status, response.headers, body)


class EventStream(Writer):
    """Events on their way to one client."""

    def __init__(self, events: AsyncIterator[Event], heartbeat: float) -> None:
        self._events = events
        self._heartbeat = heartbeat
        self._ending = False
        self._error: Exception | None = None
        self._wait = trio.CancelScope()

    async def write_to(self, send: Send) -> None:
        with unwrapped():
            async with trio.open_nursery() as nursery:
                give, take = trio.open_memory_channel[Event](0)
                # In a task of its own: a wait for an event cannot be cut short for a heartbeat without ending the
                # generator that it waits in.
                nursery.start_soon(self._read, give)
                with take:
                    await self._write(take, send)
                nursery.cancel_scope.cancel()

    def end_soon(self) -> None:
        self._ending = True
        self._wait.cancel()

    async def aclose(self) -> None:
        await close_body(self._events)

    async def _read(self, give: trio.MemorySendChannel[Event]) -> None:
        with give:
            try:
                async for event in self._events:
                    await give.send(event)
            except Exception as error:
                self._error = error  # after the events before it have been sent

    async def _write(self, take: trio.MemoryReceiveChannel[Event], send: Send) -> None:
        while not self._ending:
            piece = _HEARTBEAT
            with trio.move_on_after(self._heartbeat) as self._wait:
                try:
                    piece = (await take.receive()).encode()
                except trio.EndOfChannel:
                    if self._error is not None:
                        raise self._error from None
                    return
            if not self._ending:
                await send(piece)
