"""The edge of an app: from one HTTP request to its answer, by way of a run.

Law: here routes are compiled, and requests and runs are introduced to each other; nothing is decided. A request becomes
a run, and a run's result a response; what admits, walks, undoes, parses and renders lives in the rooms. Who listens,
and who opens the app, is the business of `serve.py`, of `asgi.py`, and of tests.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
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
from zerver.runtime.executor import Parts, Prepared
from zerver.runtime.handlers import BUILTIN_KINDS
from zerver.runtime.live import Run
from zerver.runtime.request import Values

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
        self._trust = trust
        self._beside = tuple(beside.items())
        self._aside = (*beside, *(() if continuations is None else (CONTINUE,)))
        self._relays = relays
        self._claims = claims
        self._continuations = continuations
        self._mounts = {mounted: _compile_mount(mounted) for mounted in mounts}
        self._hears = self._hear  # the same object at each request, as `Exchange.of_fields` wants it
        self._answered_late = partial(runtime.answered, status=None)

    def handle(self, exchange: Exchange) -> Awaitable[Response]:
        """Answer one request."""
        # No coroutine of its own: one of three answers, and this finds out which.
        target = exchange.head.target
        try:
            said = exchange.of_fields(self._hears)
        except ProtocolViolation as violation:
            return self._at_once(problem(violation.status, detail=str(violation)))
        if target.startswith(self._aside) or target[:1] != "/":
            return self._look_aside(exchange, said)
        return self._route(exchange, said)

    def _hear(self, exchange: Exchange) -> _Said:
        """Raises ProtocolViolation as `Trust.judge`."""
        return _said_in(exchange.head.headers, self._trust.judge(exchange.head, exchange.peer, exchange.scheme))

    async def _at_once(self, answer: Response) -> Response:
        """Answer what is no run."""
        return stamped(answer, self.runtime.new_id())

    async def _look_aside(self, exchange: Exchange, said: _Said) -> Response:
        """Answer what may be for somebody else than a route."""
        head, path, continuations = exchange.head, exchange.head.path, self._continuations
        if continuations is not None and continuations.is_asked(head):
            told = await continuations.handle(exchange)
            if isinstance(told, Response):
                return told
            response = self._render(told, continuations.flow_of(told), None)
            return self._sendable(await self._open(response, head, told), told)
        for prefix, handler in self._beside:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                return await handler(exchange)
        return await self._route(exchange, said)

    def _route(self, exchange: Exchange, said: _Said) -> Awaitable[Response]:
        head = exchange.head
        found = self.router.find(head)
        if isinstance(found, Match):
            return self._run(exchange, said, found.payload, found.params, found.payload.label)
        mounted = mounted_at(self._mounts, head)
        if mounted is None:
            return self._at_once(render_miss(found))
        endpoint = self._mounts[mounted]
        return self._run(exchange, said, endpoint, {}, f"{head.method} {endpoint.label}")

    async def _run(
        self, exchange: Exchange, said: _Said, endpoint: Endpoint, params: Mapping[str, str], label: str
    ) -> Response:
        head, runtime, flow, cheaper = exchange.head, self.runtime, endpoint.prepared.flow, endpoint.degrade
        who = _ANYBODY if self.app.identify is None else _identity(self.app.identify(head))
        rule = runtime.tenants.get(who.tenant)
        priority = classify(endpoint.priority, rule, who.priority, said.priority)
        watched = endpoint.is_watched(head.method)
        visit, run_id, after = None, "", self._answered_late  # when its rollback has outlived the answer, or none came
        if flow.idempotency is not None:
            run_id, route = runtime.new_id(), endpoint.label
            visit = Visit(self._claims, exchange, flow, tenant=who.tenant, route=route, params=params, run_id=run_id)
            after = partial(_end_visit, visit, after)
        try:
            known = None if visit is None else await visit.look()
            if visit is not None and known is not None:
                secret = endpoint.prepared.plan.secret
                told = Timeline(run_id, flow.name, flow.version, who.tenant, priority, [], secret, label, said.parent)
                result = runtime.forgo(told, known, visit.keyed)
            else:
                instead = None
                if cheaper is not None:
                    instead = cheaper.prepared, self._parts(cheaper, exchange, said.caller, params, visit), ()
                answer = runtime.execute(
                    endpoint.prepared,
                    self._parts(endpoint, exchange, said.caller, params, visit),
                    tenant=who.tenant,
                    priority=priority,
                    deadline=said.deadline,
                    label=label,
                    run_id=run_id,
                    on_wait=partial(_watch, exchange) if watched else None,
                    on_queued=exchange.watch_disconnect if watched else None,
                    parent=said.parent,
                    after=after,
                    degrade=instead,
                )
                result = answer if isinstance(answer, Result) else await answer
                if visit is not None:
                    visit.ended(result)
            status = None
            try:
                response = self._render(result, flow, visit)
                if not isinstance(response.body, bytes):
                    response = await self._open(response, head, result)
                if visit is not None or runtime.telling.observers:
                    response = self._sendable(response, result)
                if visit is not None:
                    visit.answered(response)
                status = response.status
            finally:
                runtime.answered(result, status)
        finally:
            if visit is not None:
                await visit.settle()
        if rule.rate is not None:
            quota = runtime.quota(who.tenant)
            response = response if quota is None else limited(response, quota)
        if response.refusal and said.caller.client != exchange.peer:  # it shares its connection with others' requests
            response = attrs.evolve(response, refusal=False)
        return response

    # -- what a run reads --

    def _parts(
        self, endpoint: Endpoint, exchange: Exchange, caller: Caller, params: Mapping[str, str], visit: Visit | None
    ) -> Parts:
        extractor = endpoint.extractor
        given = () if extractor.empty else partial(self._read, extractor, exchange, caller, params)
        return given if visit is None else visit.reading(given)

    def _read(
        self, extractor: Extractor, exchange: Exchange, caller: Caller, params: Mapping[str, str]
    ) -> Values | Awaitable[Values]:
        head, passage = exchange.head, None
        if extractor.needs_passage:
            check_passable(head)
            passage = Passage(exchange, caller, params, self._relays)
        body = exchange.read_body_nowait() if extractor.needs_body else b""
        if body is not None:
            return extractor.extract(head, params, body, caller, passage)

        async def read_later() -> Values:
            return extractor.extract(head, params, await exchange.read_body(), caller, passage)

        return read_later()

    # -- what a client gets --

    def _render(self, result: Result, flow: Flow | None, visit: Visit | None) -> Response:
        """The answer to what the run came to; its body may have to be opened. flow: None for one that is no route's."""
        if visit is not None and visit.answer is not None:
            return stamped(again(visit.answer), result.run_id)
        if self._continuations is not None and result.status == "parked":
            return self._continuations.parked(result)
        on_error = (None if flow is None else flow.on_error) or self.app.on_error
        return render(result, on_error=on_error, on_defect=self.on_defect)

    async def _open(self, response: Response, head: RequestHead, result: Result) -> Response:
        """The answer with its file or stream opened, if it has one, or a 500."""
        if not isinstance(response.body, Deferred):
            return response
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


def _watch(exchange: Exchange, run: Run) -> None:
    """The run waits for the world, and is cancelled if its client goes."""

    def cancel() -> None:
        run.cancel("the client has gone")

    exchange.watch_disconnect(cancel)


def _end_visit(visit: Visit, answered: Callable[[Result], None], sealed: Result) -> None:
    answered(sealed)
    visit.ended(sealed)


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
class _Said:
    """What a request says in its fields. caller: who sends it. priority: it is content with. deadline: seconds that its
    caller gives us. parent: see Timeline.
    """

    caller: Caller
    priority: Priority | None = None
    deadline: float | None = None
    parent: str = ""


def _said_in(headers: Headers, caller: Caller) -> _Said:
    """A header that names no class, or makes no sense, asks for nothing, as if it were not there."""
    if _WISH_FIELDS.isdisjoint([name for name, _ in headers.raw]):
        return _Said(caller)
    said = headers.get(_PRIORITY_HEADER)
    seconds = _asked_deadline(headers.get(_TIMEOUT_HEADER))
    return _Said(caller, said if said in RANK else None, seconds, headers.get(_TRACE_HEADER) or "")


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
