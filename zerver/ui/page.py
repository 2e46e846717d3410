"""The page: what happens in this server, to be looked at from this machine.

Law: it answers when the app has no time, as it needs no ticket of admission, and takes no more than its own small room:
so many of its requests at once, and so many feeds. Nothing is answered before `Access` has let the request in, and
every answer, an error too, carries the headers that keep a browser from doing anything else with it.

    page = Page(Access(token), recorder)
    serving = await nursery.start(partial(serve, app, observers=[recorder.add], beside={"/_zerver": page.handle}))
    page.attach(Server(serving.runtime, serving.addresses))
    print(page.access.url(serving.addresses[0]))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from zerver.errors import HttpError, ProtocolViolation
from zerver.http import Exchange, Response, problem, redirect
from zerver.http.connection import log_defect
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.recorder import Recorder
from zerver.trace.telemetry.instruments import MetricsSnapshot
from zerver.trace.telemetry.prometheus import OPENMETRICS, negotiate, prometheus
from zerver.ui.access import Access, Barred, Entrance, Session
from zerver.ui.api import Api
from zerver.ui.archive import Archive
from zerver.ui.asked import wrong_method
from zerver.ui.assets import read_assets
from zerver.ui.desk import Desk
from zerver.ui.feed import Feed
from zerver.ui.lists import Lists
from zerver.ui.overview import Overviews, Server, trace_numbers
from zerver.ui.rates import Rates

#: Requests of the page that are answered at once; feeds have a number of their own.
AT_ONCE: Final = 16

_MOST_RUNNING: Final = 50

_GUARD: Final = (
    ("content-security-policy",
     "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
     "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
)  # fmt: skip

_LOCKED: Final = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Locked</title>
<p>This page is locked. Open it with the URL that the server has printed.
"""


class Page:
    """The live page of one server. To be closed with it.

    recorder: what tells of runs; None for a page without. archive: the kept runs. metrics: gives a snapshot, for
    Prometheus. hidden: names that are masked, beside what the code says. on_defect: told of what went wrong here. To be
    made inside Trio.
    """

    def __init__(
        self,
        access: Access,
        recorder: Recorder | None = None,
        *,
        archive: Archive | None = None,
        metrics: Callable[[], MetricsSnapshot] | None = None,
        hidden: Hidden = NOTHING_HIDDEN,
        on_defect: Callable[[Exception], None] = log_defect,
    ) -> None:
        self.access = access
        self._on_defect = on_defect
        self._recorder = recorder
        self._metrics = metrics
        self._assets = read_assets()
        self._busy = 0
        self._rates = Rates()
        self.desk = Desk(None if recorder is None else lambda: recorder.ring, archive, hidden)
        self.overviews = Overviews(self._rates, self._trace)
        self._lists = Lists(self.desk)
        self.feed = Feed(self._lists.told, lambda: self._lists.running(_MOST_RUNNING), self._overview)
        self._api = Api(self._lists, self.feed, self.overviews)
        if recorder is not None:
            recorder.listen(self._rates)
            recorder.listen(self.feed)

    def attach(self, server: Server) -> None:
        """The app is open: look at it. Before that, the API answers 503."""
        self.desk.runtime = server.runtime
        self._api.server = server

    def close(self) -> None:
        """Hear of no more runs, and close the archive."""
        if self._recorder is not None:
            self._recorder.leave(self._rates)
            self._recorder.leave(self.feed)
        if self.desk.archive is not None:
            self.desk.archive.close()

    async def handle(self, exchange: Exchange) -> Response:
        """Answer one request below the page's path: for `serve(…, beside={"/_zerver": page.handle})`."""
        judged = self.access.judge(exchange.head, exchange.peer, exchange.scheme)
        if isinstance(judged, Barred):
            return _guarded(_barred(judged))
        if isinstance(judged, Entrance):
            return _guarded(redirect(judged.location, headers=(("set-cookie", judged.cookie),)))
        if self._busy >= AT_ONCE:
            return _guarded(_later(problem(503, detail="too many requests of this page at once")))
        self._busy += 1
        try:
            return _guarded(await self._answer(exchange, judged))
        except ProtocolViolation as violation:
            return _guarded(problem(violation.status, detail=str(violation)))
        except HttpError:  # the client has left
            raise
        except Exception as defect:  # a user's class may show itself in ways that nobody thought of
            self._on_defect(defect)
            return _guarded(problem(500))
        finally:
            self._busy -= 1

    async def _answer(self, exchange: Exchange, session: Session) -> Response:
        head = exchange.head
        path = head.segments[self.access.path.count("/") :]
        if not path:  # relative URLs need the slash
            return redirect(f"{self.access.path}/", status=308)
        if path[0] == "api":
            answer = await self._api.answer(exchange, session, path[1:])
            return _later(answer) if answer.status == 503 else answer
        if head.method not in ("GET", "HEAD"):
            return wrong_method(("GET",))
        if path == ("metrics",) and self._metrics is not None:
            return self._scraped(head.headers.get("accept"))
        asset = self._assets.get("/".join(path))
        return problem(404) if asset is None else asset.response(head)

    def _scraped(self, accept: str | None) -> Response:
        if self._metrics is None:
            return problem(404)
        kind = negotiate(accept)
        return Response(200, (("content-type", kind),), prometheus(self._metrics(), openmetrics=kind == OPENMETRICS))

    async def _overview(self) -> dict[str, Any]:
        server = self._api.server
        return {} if server is None else await self.overviews.get(server)

    def _trace(self) -> dict[str, Any]:
        recorder, feed = self._recorder, self.feed.statistics()
        return {
            "ring": trace_numbers(self.desk.ring),
            "recorder": None if recorder is None else attrs.asdict(recorder.statistics()),
            "store": self.desk.archive is not None,
            "feed": attrs.asdict(feed),
        }


def _guarded(response: Response) -> Response:
    """The answer with the headers that every one has; what is not said to be kept is not."""
    headers = response.headers
    for name, value in _GUARD:
        headers = headers.setting(name, value)
    if "cache-control" not in headers:
        headers = headers.adding("cache-control", "no-store")
    return attrs.evolve(response, headers=headers)


def _barred(barred: Barred) -> Response:
    """As little as can be said."""
    if barred.barrier == "token":
        return Response(401, (("content-type", "text/html; charset=utf-8"), ("www-authenticate", "Bearer")), _LOCKED)
    answer = problem(barred.status)
    return (
        attrs.evolve(answer, headers=answer.headers.adding("retry-after", str(barred.wait))) if barred.wait else answer
    )


def _later(response: Response) -> Response:
    return attrs.evolve(response, headers=response.headers.setting("retry-after", "1"))
