"""The edge of an app: from one HTTP request to its answer, by way of a run.

Law: here routes are compiled, and requests and runs are introduced to each other; nothing is decided. A request becomes
a run, and a run's result a response; what admits, walks, undoes, parses and renders lives in the rooms. Who listens,
and who opens the app, is the business of `serve.py`, of `asgi.py`, and of tests.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import attrs

from zerver.core.app import App, Route
from zerver.core.flows import Flow
from zerver.core.plan import compile_plan
from zerver.core.priorities import RANK, Priority
from zerver.core.tenants import NOBODY, Identity, classify
from zerver.core.timeline import Timeline
from zerver.errors import DefinitionError, ProtocolViolation
from zerver.http import (
    NO_TRUST,
    Caller,
    Deferred,
    Entry,
    Exchange,
    Extractor,
    Headers,
    Match,
    Passage,
    RequestHead,
    Response,
    Router,
    Trust,
    compile_extractor,
    finish,
    limited,
    parse_pattern,
    problem,
    render,
    render_miss,
    stamped,
)
from zerver.http.claims import Claims, open_claims
from zerver.http.connection import log_defect
from zerver.http.continuation import PREFIX as CONTINUE
from zerver.http.continuation import Continuations, open_continuations
from zerver.http.idempotency import again
from zerver.http.keyed import Visit
from zerver.http.mounts import Mounted, mounted_at, open_mounts
from zerver.http.prewritten import check_sendable
from zerver.http.relay import SAFE_METHODS, Relays, check_passable, open_relays
from zerver.runtime import Result, Runtime
from zerver.runtime.handlers import BUILTIN_KINDS
from zerver.runtime.live import Run
from zerver.runtime.request import Reader, Values
from zerver.runtime.run import Parts, Prepared

#: Answers requests that are no runs, as those for the live page. It says itself what may be asked of it, and by whom.
Handler: TypeAlias = Callable[[Exchange], Awaitable[Response]]

_TIMEOUT_HEADER: Final = "x-request-timeout-ms"
_PRIORITY_HEADER: Final = "x-request-priority"
_TRACE_HEADER: Final = "traceparent"
_WISH_FIELDS: Final = frozenset(name.encode() for name in (_TIMEOUT_HEADER, _PRIORITY_HEADER, _TRACE_HEADER))

_ANYBODY = Identity(NOBODY)


@attrs.frozen(eq=False)
class Endpoint:
    """A route or a mount, compiled. label: of a route with its method, of a mount without. degrade: what runs in its
    place when it is refused.
    """

    prepared: Prepared
    extractor: Extractor
    label: str
    priority: Priority
    degrade: Endpoint | None = None

    def is_watched(self, method: str) -> bool:
        """Whether a client that leaves ends the run. Nobody misses the answer of a method that only looks."""
        return (self.prepared.flow.on_disconnect or ("cancel" if method in SAFE_METHODS else "finish")) == "cancel"


def compile_routes(app: App, handled: frozenset[str] = BUILTIN_KINDS) -> Router[Endpoint]:
    """The app's routes as a router. handled: kinds of effects that no capability has to bring.

    Raises DefinitionError for the first thing that cannot work.
    """
    app.check(handled)
    _check_mounts(app)
    return Router(Entry(route.method, route.path, _compile(route), route.flow.name) for route in app.routes)


def _check_mounts(app: App) -> None:
    """Raise DefinitionError for a mount that a wildcard route hides: routes come first."""
    for route in app.routes:
        head, is_wildcard, _ = route.path.partition("{")
        if is_wildcard and route.path.endswith(":path}") and route.path.count("/") == head.count("/"):
            for mount in app.mounts:
                if mount.prefix and f"{mount.prefix}/".startswith(head):
                    raise DefinitionError(
                        f"mount {mount.prefix!r} is behind route {route.label}, which takes all of its paths",
                        "give the route a prefix of its own, or mount the application where no route leads",
                    )


def _compile(route: Route) -> Endpoint:
    label, priority = f"route {route.label}", route.priority or route.flow.priority
    names = parse_pattern(route.path, label).names
    degrade, degrade_plan = None, route.degrade_plan()
    if route.flow.degrade is not None and degrade_plan is not None:
        extractor = compile_extractor(degrade_plan.parts, label, names)
        degrade = Endpoint(Prepared(route.flow.degrade, degrade_plan), extractor, route.label, priority)
    plan = route.plan()
    extractor = compile_extractor(plan.parts, label, names)
    _check_keyed(route, extractor, label)
    return Endpoint(Prepared(route.flow, plan), extractor, route.label, priority, degrade)


def _check_keyed(route: Route, extractor: Extractor, label: str) -> None:
    """Raise DefinitionError where an idempotency key could protect nothing, or not be judged."""
    if route.flow.idempotency is None:
        return
    said = f"{label}: flow {route.flow.name!r} has idempotency={route.flow.idempotency!r}"
    if route.method in SAFE_METHODS:
        raise DefinitionError(
            f"{said}, but {route.method} only looks",
            "serve it with POST, PUT, PATCH or DELETE, or leave idempotency out",
        )
    if extractor.needs_passage:
        raise DefinitionError(
            f"{said}, but passes requests on piece by piece, so that nobody can tell one from another",
            "leave idempotency out: the key goes along to whom the request is passed on",
        )


def _compile_mount(mounted: Mounted) -> Endpoint:
    flow, label = mounted.flow(), f"{mounted.mount.prefix}/…"
    plan = compile_plan(flow)
    return Endpoint(Prepared(flow, plan), compile_extractor(plan.parts, label), label, flow.priority)


def check_app(app: App, handled: frozenset[str] = BUILTIN_KINDS) -> None:
    """Check all that can be checked without opening the app. handled: as `compile_routes`. Raises DefinitionError."""
    compile_routes(app, handled)


class Edge:
    """The handler of an app: from an exchange to a response, by way of a run. Made by `open_edge`."""

    def __init__(
        self,
        runtime: Runtime,
        mounts: Sequence[Mounted],
        relays: Relays,
        on_defect: Callable[[Exception], None],
        trust: Trust,
        beside: Mapping[str, Handler],
        claims: Claims,
        continuations: Continuations | None,
    ) -> None:
        self.app = runtime.app
        self.runtime = runtime
        self.router = compile_routes(runtime.app, runtime.handled)
        self.on_defect = on_defect
        self.trust = trust
        self._beside = tuple(beside.items())
        self._aside = (*beside, *(() if continuations is None else (CONTINUE,)))
        self._relays = relays
        self._claims = claims
        self._continuations = continuations
        self._mounts = {mounted: _compile_mount(mounted) for mounted in mounts}

    async def handle(self, exchange: Exchange) -> Response:
        """Answer one request."""
        head = exchange.head
        try:
            caller = self.trust.judge(head, exchange.peer, exchange.scheme)
        except ProtocolViolation as violation:
            return stamped(problem(violation.status, detail=str(violation)), self.runtime.new_id())
        if head.target.startswith(self._aside) or head.target[:1] != "/":
            answer = await self._answer_aside(exchange)
            if answer is not None:
                return answer
        found = self.router.find(head)
        if isinstance(found, Match):
            return await self._run(exchange, caller, found.payload, found.params, found.payload.label)
        mounted = mounted_at(self._mounts, head)
        if mounted is None:
            return stamped(render_miss(found), self.runtime.new_id())
        endpoint = self._mounts[mounted]
        return await self._run(exchange, caller, endpoint, {}, f"{head.method} {endpoint.label}")

    async def _answer_aside(self, exchange: Exchange) -> Response | None:
        """The answer to a request that is looked at before routes are; None if it is not one."""
        head, path, continuations = exchange.head, exchange.head.path, self._continuations
        if continuations is not None and continuations.is_asked(head):
            said = await continuations.handle(exchange)
            return said if isinstance(said, Response) else await self._answer(said, continuations.flow_of(said), head)
        for prefix, handler in self._beside:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                return await handler(exchange)
        return None

    async def _run(
        self, exchange: Exchange, caller: Caller, endpoint: Endpoint, params: Mapping[str, str], label: str
    ) -> Response:
        head, flow, runtime = exchange.head, endpoint.prepared.flow, self.runtime
        wishes = _wishes_of(head.headers)
        who = _ANYBODY if self.app.identify is None else _identity(self.app.identify(head))
        rule = runtime.tenants.get(who.tenant)
        watched, cheaper = endpoint.is_watched(head.method), endpoint.degrade
        priority = classify(endpoint.priority, rule, who.priority, wishes.priority)
        visit = None
        if flow.idempotency is not None:
            run_id, route = runtime.new_id(), endpoint.label
            visit = Visit(self._claims, exchange, flow, tenant=who.tenant, route=route, params=params, run_id=run_id)

        def parts(endpoint: Endpoint) -> Parts:
            reads = endpoint.prepared.plan.parts
            given = self._reader(exchange, caller, endpoint.extractor, params) if reads else ()
            return given if visit is None else visit.reading(given)

        def watch(run: Run) -> None:
            exchange.watch_disconnect(lambda: run.cancel("the client has gone"))

        def after(sealed: Result) -> None:  # its rollback has outlived the answer, or there is none
            runtime.answered(sealed, None)
            if visit is not None:
                visit.ended(sealed)

        try:
            known = None if visit is None else await visit.look()
            if visit is not None and known is not None:
                secret = endpoint.prepared.plan.secret
                told = Timeline(
                    visit.run_id, flow.name, flow.version, who.tenant, priority, [], secret, label, wishes.parent
                )
                result = runtime.forgo(told, known, visit.keyed)
            else:
                result = await runtime.execute(
                    endpoint.prepared,
                    parts(endpoint),
                    tenant=who.tenant,
                    priority=priority,
                    deadline=wishes.deadline,
                    label=label,
                    run_id="" if visit is None else visit.run_id,
                    on_wait=watch if watched else None,
                    on_queued=exchange.watch_disconnect if watched else None,
                    parent=wishes.parent,
                    after=after,
                    degrade=None if cheaper is None else (cheaper.prepared, parts(cheaper), ()),
                )
                if visit is not None:
                    visit.ended(result)
            status = None
            try:
                response = await self._answer(result, flow, head, visit)
                status = response.status
            finally:
                runtime.answered(result, status)
        finally:
            if visit is not None:
                await visit.settle()
        if rule.rate is not None:
            quota = runtime.quota(who.tenant)
            response = response if quota is None else limited(response, quota)
        if response.refusal and caller.client != exchange.peer:  # it shares its connection with others of its proxy's
            response = attrs.evolve(response, refusal=False)
        return response

    async def _answer(
        self, result: Result, flow: Flow | None, head: RequestHead, visit: Visit | None = None
    ) -> Response:
        """What the client gets for what the run came to. flow: None for one that is no route's."""
        if visit is not None and visit.answer is not None:
            return stamped(again(visit.answer), result.run_id)
        if result.status == "parked" and self._continuations is not None:
            response = self._continuations.parked(result)
        else:
            on_error = (None if flow is None else flow.on_error) or self.app.on_error
            response = render(result, on_error=on_error, on_defect=self.on_defect)
        if not isinstance(response.body, bytes) and isinstance(response.body, Deferred):  # the second test costs more
            response = await self._open(response, head, result)
        if self.runtime.telling.observers or visit is not None:
            response = self._sendable(response, result)
        if visit is not None:
            visit.answered(response)
        return response

    def _reader(self, exchange: Exchange, caller: Caller, extractor: Extractor, params: Mapping[str, str]) -> Reader:
        head = exchange.head

        def read() -> Values | Awaitable[Values]:
            body = exchange.read_body_nowait() if extractor.needs_body else b""
            return read_later() if body is None else read_now(body)

        async def read_later() -> Values:
            return read_now(await exchange.read_body())

        def read_now(body: bytes) -> Values:
            if not extractor.needs_passage:
                return extractor.extract(head, params, body, caller)
            check_passable(head)
            return extractor.extract(head, params, body, caller, Passage(exchange, caller, params, self._relays))

        return read

    async def _open(self, response: Response, head: RequestHead, result: Result) -> Response:
        """The answer with its file or stream opened, or a 500."""
        try:
            opened = await finish(response, head, self.runtime.resources)
        except Exception as defect:
            self.on_defect(defect)
            opened = problem(500, instance=result.run_id)
        return stamped(opened, result.run_id)

    def _sendable(self, response: Response, result: Result) -> Response:
        """The answer, or a 500 for one that the wire would refuse: whoever is told of its status is told the truth."""
        try:
            check_sendable(response.status, response.headers)
        except ValueError as defect:
            self.on_defect(defect)
            return stamped(problem(500, instance=result.run_id), result.run_id)
        return response


def _identity(said: Identity | str | None) -> Identity:
    """What an app's `identify` said. Raises TypeError for what is neither."""
    if said is None:
        return _ANYBODY
    if isinstance(said, str):
        return Identity(said)
    if not isinstance(said, Identity):
        raise TypeError(f"identify answered {said!r}; it is to give a tenant's name, an Identity, or None")
    return said


@attrs.frozen
class _Wishes:
    """What a request asks for itself. priority: it is content with. deadline: seconds that its caller gives us. parent:
    see Timeline.
    """

    priority: Priority | None = None
    deadline: float | None = None
    parent: str = ""


_NO_WISHES: Final = _Wishes()


def _wishes_of(headers: Headers) -> _Wishes:
    """A header that names no class, or makes no sense, asks for nothing, as if it were not there."""
    if _WISH_FIELDS.isdisjoint([name for name, _ in headers.raw]):
        return _NO_WISHES
    said = headers.get(_PRIORITY_HEADER)
    seconds = _asked_deadline(headers.get(_TIMEOUT_HEADER))
    return _Wishes(said if said in RANK else None, seconds, headers.get(_TRACE_HEADER) or "")


def _asked_deadline(header: str | None) -> float | None:
    if header is None or not header.isascii() or not header.isdigit() or len(header) > 9:
        return None
    return int(header) / 1000.0


@asynccontextmanager
async def open_edge(
    app: App,
    runtime: Runtime,
    *,
    on_defect: Callable[[Exception], None] = log_defect,
    trust: Trust = NO_TRUST,
    beside: Mapping[str, Handler] | None = None,
) -> AsyncGenerator[Edge, None]:
    """Start what is mounted, and make the handler. Left, the tasks of answers are ended, and then what is mounted.

    beside: as `serve`.

    Raises DefinitionError when the app cannot work, or a mounted application does not start.
    """
    async with (
        open_mounts(app.mounts, on_defect) as mounts,
        open_relays(on_defect) as relays,
        open_claims(runtime, on_defect) as claims,
    ):
        continuations = await open_continuations(runtime)
        yield Edge(runtime, mounts, relays, on_defect, trust, beside or {}, claims, continuations)
