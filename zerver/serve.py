"""The composition root: an app, its runtime and the HTTP edge, put together and served.

Law: whatever is opened here is closed here, in reverse; all that can be found out without opening anything is found
out first, and nobody is listened to before all is open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import trio

from zerver.core.app import App
from zerver.core.load import Neighbours
from zerver.edge import Handler, check_app, open_edge
from zerver.http import DEFAULT_LIMITS, NO_TRUST, Limits, ParserName, Server, Trust, open_http_listeners, serve_http
from zerver.http.connection import log_defect
from zerver.runtime import Result, Runtime, open_runtime
from zerver.runtime.groups import unwrapped
from zerver.runtime.handlers import BUILTIN_KINDS
from zerver.runtime.journal import Journal


class Serving:
    """An app that is being served: what `nursery.start(serve, app)` returns.

    addresses: URLs, as "http://127.0.0.1:8000". runtime: to run flows beside HTTP, or to look at statistics. nursery:
    for tasks that use it, as a worker on jobs; when the server has ended, the runtime stays open until they have too.
    """

    def __init__(self, runtime: Runtime, server: Server, nursery: trio.Nursery) -> None:
        self.runtime = runtime
        self.server = server
        self.nursery = nursery

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.server.addresses

    async def drain(self, seconds: float) -> None:
        """Accept nobody, refuse new runs, finish those under way for `seconds`, then cancel and compensate them."""
        # The server waits longer than the runs may take, so that even a run that was rolled back gets its answer.
        longest = max((route.flow.undo_deadline for route in self.runtime.app.routes), default=0.0)
        with unwrapped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.runtime.drain, seconds)
                nursery.start_soon(self.server.drain, seconds + longest + 1.0)


async def serve(
    app: App,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    listeners: Sequence[trio.abc.Listener[Any]] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    trust: Trust = NO_TRUST,
    parser: ParserName = "auto",
    handlers: Mapping[str, Callable[..., Any]] | None = None,
    observers: Sequence[Callable[[Result], None]] = (),
    beside: Mapping[str, Handler] | None = None,
    on_defect: Callable[[Exception], None] = log_defect,
    seed: int | None = None,
    neighbours: Neighbours | None = None,
    journal: Journal | None = None,
    lease: float = 10.0,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Open an app and serve it over HTTP until cancelled or drained.

        serving = await nursery.start(partial(serve, app, port=8000))
        print(*serving.addresses)

    listeners: used instead of host and port, and closed in the end. handlers, observers, seed, neighbours,
    journal, lease: as `open_runtime`.
    limits: what a client may take. trust: which proxies are believed and which hosts are served; by default no proxy,
    and any host. parser: as `serve_http`. beside: what answers requests below a path, as {"/_zerver": page.handle},
    before routes are looked at, and without a run. on_defect: told of exceptions that are nobody's
    answer, as those of an `on_error`; by default they are logged.

    Raises DefinitionError when the app cannot work, OSError when the address cannot be bound; both before it listens.
    """
    bound = [] if listeners is None else list(listeners)
    try:
        check_app(app, BUILTIN_KINDS | frozenset(handlers or ()))  # the routes too, and before anything is opened
        async with (
            open_runtime(
                app,
                observers=observers,
                handlers=handlers,
                seed=seed,
                neighbours=neighbours,
                journal=journal,
                lease=lease,
            ) as runtime,
            open_edge(app, runtime, on_defect=on_defect, trust=trust, beside=beside) as edge,
        ):
            if listeners is None:
                bound += await open_http_listeners(host, port)
            with unwrapped():
                async with trio.open_nursery() as nursery:
                    server: Server = await nursery.start(
                        partial(
                            serve_http,
                            edge.handle,
                            bound,
                            limits=limits,
                            on_defect=on_defect,
                            parser=parser,
                            new_id=runtime.new_id,
                        )
                    )
                    task_status.started(Serving(runtime, server, nursery))
    finally:
        for listener in bound:  # the server has closed them, unless the app did not open
            await trio.aclose_forcefully(listener)
