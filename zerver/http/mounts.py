"""Applications behind this one: ASGI 3 applications that run inside our server, as one step of a run each.

Law: a mounted application is a stranger. It gets the request as it came, its answer is sent as it is, and the run that
it is part of tells honestly what is known: that it was asked, and how long the head of its answer took. Its lifespan is
inside of ours.

It must run on Trio: Starlette, FastAPI, Litestar (through anyio) and Quart-Trio do; what imports asyncio does not.

What differs from other servers: the body of a request can be read until the answer has begun, and no longer; a client
that leaves ends the application's task by cancellation; and there are no WebSockets (501).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeAlias

import attrs
import trio

from zerver.core.app import Mount
from zerver.core.decisions import Done
from zerver.core.effects import effect
from zerver.core.flows import Flow
from zerver.core.steps import step
from zerver.errors import DefinitionError, ExchangeFailed, ProtocolViolation
from zerver.http.messages import Headers, RequestHead, Response
from zerver.http.relay import SAFE_METHODS, Passage, Relay
from zerver.runtime.groups import open_body_nursery

Message: TypeAlias = MutableMapping[str, Any]
AsgiApp: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_VERSIONS: Final = {"version": "3.0", "spec_version": "2.4"}
_STARTUP_SECONDS: Final = 30.0
_SHUTDOWN_SECONDS: Final = 10.0


@attrs.frozen(eq=False)
class Mounted:
    """A mount that is open. state: what its lifespan left for its requests."""

    mount: Mount
    state: dict[str, Any]

    def takes(self, head: RequestHead) -> bool:
        """Whether a path is at or below the prefix; compared decoded, as the router does."""
        wanted = self.mount.prefix.split("/")[1:]
        return list(head.segments[: len(wanted)]) == wanted

    def flow(self) -> Flow:
        """What a request runs: one step, one effect, which is a read or a write as its method is."""
        prefix = self.mount.prefix or "/"
        answer = partial(call, self.mount, self.state)

        @effect(kind="asgi.read", access="read", target=f"asgi {prefix}")
        async def read(passage: Passage) -> Response:
            return await passage.relay(partial(answer, passage))

        @effect(kind="asgi.write", access="write", target=f"asgi {prefix}")
        async def write(passage: Passage) -> Response:
            return await passage.relay(partial(answer, passage))

        @step(name="mount.pass_on", effects=(read, write))
        async def pass_on(passage: Passage) -> Done:
            return Done(await (read if passage.head.method in SAFE_METHODS else write)(passage))

        return Flow(f"mount {prefix}", [pass_on])


def mounted_at(mounts: Iterable[Mounted], head: RequestHead) -> Mounted | None:
    """The mount with the longest prefix that takes a request."""
    takers = [mounted for mounted in mounts if mounted.takes(head)]
    return max(takers, key=lambda mounted: len(mounted.mount.prefix), default=None)


# ---- one request ----------------------------------------------------------------------------


async def call(mount: Mount, state: dict[str, Any], passage: Passage, relay: Relay) -> None:
    """Let the application answer one request."""
    conversation = _Conversation(passage, relay)
    try:
        await mount.app(_scope(mount, state, passage), conversation.receive, conversation.send)
    except Exception as error:
        if conversation.violation is None:
            raise
        raise conversation.violation from error
    conversation.check_complete()


class _Conversation:
    """What an application is told, and what it answers.

    violation: what was wrong with the body, if that was found before the answer began. It is the answer then, whatever
    the application makes of it: frameworks take it for a defect of theirs, and would say 500 where 413 is true.
    """

    def __init__(self, passage: Passage, relay: Relay) -> None:
        self._relay = relay
        self._exchange = passage.exchange
        self._body_over = False
        self._start: tuple[int, Headers] | None = None
        self._over = False
        self._reading = trio.CancelScope()  # of the body, while it is read
        self.violation: ProtocolViolation | None = None

    async def receive(self) -> Message:
        if not self._body_over and self._start is None:
            try:
                with trio.CancelScope() as self._reading:
                    piece = await self._exchange.next_piece()
                    self._body_over = not piece
                    return {"type": "http.request", "body": piece, "more_body": bool(piece)}
            except ExchangeFailed:
                return {"type": "http.disconnect"}
            except ProtocolViolation as violation:
                self.violation = violation
                raise
        await self._relay.closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self.violation is not None:
            raise self.violation
        if kind == "http.response.start" and self._start is None:
            fields = tuple((bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ()))
            self._start = (message["status"], Headers(fields))
            self._reading.cancel()  # by whoever listens for a disconnect: the rest of the body is the connection's now
            self._relay.start(*self._start)
        elif kind == "http.response.body" and self._start is not None:
            if self._over:
                raise RuntimeError("the answer is over: its last piece had no more_body")
            more = message.get("more_body", False)
            self._over = not more
            await self._relay.send(bytes(message.get("body", b"")), more=more)
        else:
            raise RuntimeError(f"{kind!r} is not expected now")

    def check_complete(self) -> None:
        if self.violation is not None:
            raise self.violation
        if self._start is None:
            raise ExchangeFailed("the mounted application returned without an answer")


def _scope(mount: Mount, state: dict[str, Any], passage: Passage) -> dict[str, Any]:
    head, caller = passage.head, passage.caller
    return {
        "type": "http",
        "asgi": _VERSIONS,
        "http_version": head.http_version,
        "method": head.method,
        "scheme": caller.scheme,
        "path": "/" + "/".join(head.segments),
        "raw_path": head.path.encode("latin-1"),
        "query_string": head.query.encode("latin-1"),
        "root_path": mount.prefix,
        "headers": list(head.headers.raw),
        "client": (caller.client, 0) if caller.client not in ("", "unix") else None,
        "server": None,
        "state": dict(state),
        "extensions": {},
    }


# ---- lifespan -------------------------------------------------------------------------------


@asynccontextmanager
async def open_mounts(
    mounts: Iterable[Mount], on_defect: Callable[[Exception], None]
) -> AsyncGenerator[tuple[Mounted, ...], None]:
    """Start the applications, one after the other; leaving the block ends them in reverse order, cancelled or not.

    on_defect: told what one raises after it has started, and when it does not end in time.
    Raises DefinitionError when one says that it failed to start, or does not say anything for half a minute.
    """
    async with open_body_nursery() as nursery:
        lives = []
        try:
            for mount in mounts:
                life = _Lifespan(mount, on_defect)
                lives.append(life)
                nursery.start_soon(life.run)
                await life.wait_started()
            yield tuple(Mounted(life.mount, life.state) for life in lives)
        finally:
            with trio.move_on_after(_SHUTDOWN_SECONDS, shield=True) as scope:
                for life in reversed(lives):
                    await life.end()
            if scope.cancelled_caught:
                on_defect(TimeoutError("a mounted application did not end in time"))
            for life in lives:
                life.cut()
            nursery.cancel_scope.cancel()


class _Lifespan:
    """The lifespan protocol with one application. One that does not know it (it raises at once) is served without."""

    def __init__(self, mount: Mount, on_defect: Callable[[Exception], None]) -> None:
        self.mount = mount
        self.state: dict[str, Any] = {}
        self._on_defect = on_defect
        self._settled = trio.Event()  # started, failed, or not interested
        self._ending = trio.Event()
        self._ended = trio.Event()
        self._asked = 0
        self._started = False
        self._failure: str | None = None
        # A server is ended by cancellation, too, and what an application closes in its end, it awaits. So that does not
        # reach in here; `end` asks, and `cut` insists.
        self._life = trio.CancelScope(shield=True)

    async def run(self) -> None:
        scope = {"type": "lifespan", "asgi": _VERSIONS, "state": self.state}
        try:
            with self._life:
                await self.mount.app(scope, self._receive, self._send)
        except Exception as error:
            if self._started:
                self._on_defect(error)
        finally:
            self._settled.set()
            self._ended.set()

    async def wait_started(self) -> None:
        label = f"mount {self.mount.prefix or '/'!r}"
        with trio.move_on_after(_STARTUP_SECONDS) as scope:
            await self._settled.wait()
        if scope.cancelled_caught:
            raise DefinitionError(
                f"{label}: the application did not start within {_STARTUP_SECONDS:g} s", "see what it waits for"
            )
        if self._failure is not None:
            raise DefinitionError(f"{label}: the application failed to start: {self._failure}", "see its own log")

    async def end(self) -> None:
        self._ending.set()
        if self._started:
            await self._ended.wait()

    def cut(self) -> None:
        self._life.cancel()

    async def _receive(self) -> Message:
        self._asked += 1
        if self._asked == 1:
            return {"type": "lifespan.startup"}
        await self._ending.wait()
        if self._asked == 2:
            return {"type": "lifespan.shutdown"}
        return await trio.sleep_forever()

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self._started = True
            self._settled.set()
        elif kind == "lifespan.startup.failed":
            self._failure = str(message.get("message", "")) or "it did not say why"
            self._settled.set()
        elif kind == "lifespan.shutdown.failed":
            self._on_defect(RuntimeError(f"a mounted application failed to end: {message.get('message', '')}"))
        if kind.startswith("lifespan.shutdown"):
            self._ended.set()
