"""A served app with its page, in a thread of its own, as a browser sees it from outside."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

import attrs
import trio

from zerver import App
from zerver.effects.http import Reply
from zerver.http import encode_json, open_http_client
from zerver.jobs import open_worker
from zerver.runtime import Result
from zerver.runtime.journal import Journal
from zerver.serve import Serving, serve
from zerver.trace import Ring
from zerver.trace.recorder import open_recorder
from zerver.ui import Access, Page, Server, new_token

T = TypeVar("T")


@attrs.frozen(eq=False)
class Served:
    """url: of the page, with its token. address: of the app. ended: runs, as they end."""

    url: str
    address: str
    serving: Serving
    page: Page
    token: trio.lowlevel.TrioToken
    ended: queue.Queue[Result]

    @property
    def bare(self) -> str:
        """The page's URL without the token."""
        return f"{self.address}{self.page.access.path}/"

    def do(self, act: Callable[..., Any], *args: Any) -> Any:
        """Do something in the server's loop, and wait for it."""
        return trio.from_thread.run(act, *args, trio_token=self.token)

    def ask(self, method: str, path: str, body: object = None) -> Reply:
        """A request to the app."""
        return self.do(_ask, method, f"{self.address}{path}", body)

    def result(self, method: str, path: str, body: object = None) -> Result:
        """The same; what its run came to, once it has ended."""
        self.ask(method, path, body)
        return self.ended.get(timeout=30)

    def run(self, method: str, path: str, body: object = None) -> str:
        """The same; the run's id."""
        return self.result(method, path, body).run_id

    def start(self, path: str, signal: str) -> Callable[[], str]:
        """Begin a GET whose run parks, and go on; what is returned gives the signal, waits for the end of the run, and
        gives its id.
        """
        thread = threading.Thread(target=self.ask, args=("GET", path), name="asking")
        thread.start()

        def done() -> str:
            self.do(self._signal, signal)
            thread.join(timeout=30)
            return self.ended.get(timeout=30).run_id

        return done

    async def _signal(self, signal: str) -> None:
        for run in self.serving.runtime.under_way():
            await self.serving.runtime.signal(run.run_id, signal, "yes")


async def _ask(method: str, url: str, body: object) -> Reply:
    async with open_http_client(allow_private=True) as client:
        if body is None:
            return await client.request(method, url)
        return await client.request(method, url, headers=[("content-type", "application/json")], body=encode_json(body))


Opener: TypeAlias = Callable[[], AbstractAsyncContextManager[Journal]]


@contextmanager
def open_served(app: App, open_journal: Opener | None = None) -> Iterator[Served]:
    """Serve an app and its page until the block is left, and work on its jobs if it has any."""
    told: queue.Queue[Served | BaseException] = queue.Queue()
    leave: list[Callable[[], None]] = []
    thread = threading.Thread(target=_main, args=(app, open_journal, told, leave), name="served")
    thread.start()
    try:
        found = told.get(timeout=30)
        if isinstance(found, BaseException):
            raise found
        yield found
    finally:
        for end in leave:
            end()
        thread.join(timeout=30)


def _main(app: App, open_journal: Opener | None, told: queue.Queue[Any], leave: list[Callable[[], None]]) -> None:
    try:
        trio.run(_serve, app, open_journal, told, leave)
    except BaseException as error:
        told.put(error)


async def _serve(
    app: App, open_journal: Opener | None, told: queue.Queue[Any], leave: list[Callable[[], None]]
) -> None:
    token = trio.lowlevel.current_trio_token()
    ended: queue.Queue[Result] = queue.Queue()
    async with AsyncExitStack() as stack:
        journal = None if open_journal is None else await stack.enter_async_context(open_journal())
        recorder = await stack.enter_async_context(open_recorder(ring=Ring()))
        nursery = await stack.enter_async_context(trio.open_nursery())
        page = Page(Access(new_token()), recorder)

        def observe(result: Result) -> None:
            recorder.add(result)
            ended.put(result)

        beside = {page.access.path: page.handle}
        serving = await nursery.start(partial(serve, app, observers=[observe], beside=beside, journal=journal))
        if app.jobs:
            await stack.enter_async_context(open_worker(serving.runtime))
        page.attach(Server(serving.runtime, serving.addresses))
        leave.append(partial(token.run_sync_soon, nursery.cancel_scope.cancel))
        address = serving.addresses[0]
        told.put(Served(page.access.url(address), address, serving, page, token, ended))
        try:
            await trio.sleep_forever()
        finally:
            page.close()
