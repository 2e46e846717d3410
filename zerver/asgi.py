"""An app behind another server: the same flows, served by hypercorn or any ASGI server that runs on Trio.

Law: this only changes who owns the socket. What is admitted, run, undone and recorded is what `serve` would have
admitted, run, undone and recorded; the app is opened in the server's lifespan and closed in it.

    # shop/asgi.py, for `hypercorn -k trio shop.asgi:application`
    application = asgi(app)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import trio

from zerver.core.app import App
from zerver.edge import Handler, check_app, open_edge
from zerver.http import DEFAULT_LIMITS, NO_TRUST, Limits, Trust
from zerver.http.connection import Service, log_defect
from zerver.http.gateway import Receive, Scope, SendMessage, serve_scope
from zerver.runtime import Result, open_runtime
from zerver.runtime.handlers import BUILTIN_KINDS

_NO_TRIO: Final = "the app runs on Trio, and this server does not: start it as `hypercorn -k trio …`"
_NOT_OPEN: Final = "the app is not open: the server must run the ASGI lifespan, as `hypercorn` does"


def asgi(
    app: App,
    *,
    limits: Limits = DEFAULT_LIMITS,
    trust: Trust = NO_TRUST,
    handlers: Mapping[str, Callable[..., Any]] | None = None,
    observers: Sequence[Callable[[Result], None]] = (),
    beside: Mapping[str, Handler] | None = None,
    on_defect: Callable[[Exception], None] = log_defect,
    seed: int | None = None,
) -> AsgiApplication:
    """The app as an ASGI 3 application.

    The arguments are those of `serve`. Of limits, those on heads and on idle connections are the other server's to set;
    body, body_grace_seconds, body_rate, write_seconds and cleanup_seconds hold here too.

    Raises DefinitionError when the app cannot work. It is opened when the server starts: what goes wrong then is told
    to the server, which ends.
    """
    check_app(app, BUILTIN_KINDS | frozenset(handlers or ()))

    @asynccontextmanager
    async def open_service() -> AsyncGenerator[Service, None]:
        async with (
            open_runtime(app, observers=observers, handlers=handlers, seed=seed) as runtime,
            open_edge(app, runtime, on_defect=on_defect, trust=trust, beside=beside) as edge,
        ):
            yield Service(edge.handle, limits, on_defect)

    return AsgiApplication(open_service)


class AsgiApplication:
    """An ASGI 3 application: call it with a scope. Made by `asgi`."""

    def __init__(self, open_service: Callable[[], AbstractAsyncContextManager[Service]]) -> None:
        self._open_service = open_service
        self._service: Service | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: SendMessage) -> None:
        """Serve one scope. Raises RuntimeError for a request before the lifespan, NotImplementedError for what is
        neither `http`, `websocket` nor `lifespan`.
        """
        if scope["type"] == "http":
            if self._service is None:
                raise RuntimeError(_NOT_OPEN)
            await serve_scope(self._service, scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1003})  # before it is accepted: the client sees a 403
        else:
            raise NotImplementedError(f"an ASGI scope of type {scope['type']!r}")

    async def _live(self, receive: Receive, send: SendMessage) -> None:
        await receive()
        if not trio.lowlevel.in_trio_run():
            await send({"type": "lifespan.startup.failed", "message": _NO_TRIO})
            return
        started = False
        try:
            async with self._open_service() as service:
                self._service, started = service, True
                await send({"type": "lifespan.startup.complete"})
                try:
                    await receive()  # the server ends
                finally:
                    self._service = None
        except Exception as error:
            log_defect(error)
            word = "shutdown" if started else "startup"
            await send({"type": f"lifespan.{word}.failed", "message": f"{type(error).__name__}: {error}"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
