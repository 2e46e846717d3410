"""The app: routes, before-chains and capabilities, as one value that can be checked before it serves.

Law: an App opens nothing and knows no protocol: a route is a method, a path and a flow, which an edge compiles.
`check()` finds what single flows cannot know: slots from before-chains, effects without handlers, clashing routes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from inspect import iscoroutinefunction
from types import ModuleType
from typing import Any, Protocol

import attrs

from zerver.core.check import check_flow, steps_of
from zerver.core.classes import AdmissionPolicy
from zerver.core.effects import CallInfo, EffectKind, IdempotencyKey
from zerver.core.flows import Flow, check_older, check_on_error, check_plain
from zerver.core.jobs import Backoff, CronRule, Declared, JobRule, Misfire, QueueLimit, Unique, as_body
from zerver.core.plan import Plan, compile_plan
from zerver.core.policy import Policy
from zerver.core.priorities import PRIORITIES, Priority
from zerver.core.stages import Stage, as_stages
from zerver.core.targets import Target
from zerver.core.tenants import Identity, Tenant, Tenants, as_tenants
from zerver.errors import DefinitionError


@attrs.frozen(kw_only=True)
class Capability:
    """Something an app can do: handlers for kinds of effects, and the resources they use.

    handlers: from an effect kind's name to the coroutine function that performs it; its parameters with a default
    of INJECTED are filled by type. resources: from a type to the function that opens one (an async context manager
    whose parameters are other resources); opened when the runtime opens, closed in reverse order. file: where they are
    kept, if that is a file which opening them would make: whoever only looks can see first whether it is there.
    """

    name: str
    handlers: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)
    resources: Mapping[type, Callable[..., AbstractAsyncContextManager[Any]]] = attrs.field(factory=dict)
    file: str = ""


class HasCapability(Protocol):
    """An object that brings a capability, as a group of the app's own effects does."""

    def capability(self) -> Capability: ...


@attrs.frozen(eq=False)
class Route:
    """A flow behind a method and a path. before: the chain of the app and the scopes around it. priority: the class of
    its runs, where the route says so and not the flow.
    """

    method: str
    path: str
    flow: Flow
    before: tuple[Stage, ...]
    priority: Priority | None = None

    @property
    def label(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def flows(self) -> tuple[Flow, ...]:
        """The flow, and the one that runs in its place when it is refused."""
        return (self.flow,) if self.flow.degrade is None else (self.flow, self.flow.degrade)

    def plan(self) -> Plan:
        """The compiled plan. Raises DefinitionError, naming the route, when the before-chain does not fit the flow."""
        return self.plan_for(self.flow)

    def degrade_plan(self) -> Plan | None:
        """The plan of the flow's `degrade=`, behind the same before-chain: what that forbids stays forbidden."""
        return None if self.flow.degrade is None else self.plan_for(self.flow.degrade)

    def plan_for(self, flow: Flow) -> Plan:
        """The plan of a flow behind this route's before-chain, as of an older version of its own. Raises as `plan`."""
        try:
            check_flow(flow, self.before)
            if flow.takes and not self.before:
                missing = flow.takes[0][0].name
                raise DefinitionError(
                    f"flow {flow.name!r} takes slot {missing!r}, but no before-chain writes it",
                    f"add a step that writes {missing!r} with app.use(...) or scope(..., before=[...])",
                )
        except DefinitionError as error:
            raise DefinitionError(f"route {self.label}: {error.problem}", error.cure) from None
        return compile_plan(flow, self.before)


@attrs.frozen(eq=False)
class Mount:
    """An application of another kind below a prefix: whatever no route takes is its. The core only holds it.

    prefix: "" for all paths. app: an ASGI 3 application, for the HTTP edge.
    """

    prefix: str
    app: Any


class Scope:
    """A path prefix with a before-chain: routes under it run the chain first."""

    def __init__(self, app: App, prefix: str, before: Sequence[Stage], parent: Scope | None) -> None:
        if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
            raise DefinitionError(f"scope {prefix!r}", 'a prefix starts with "/" and does not end with one')
        self._app = app
        self._parent = parent
        self.prefix = prefix
        self._chain: list[Stage] = list(as_stages(f"scope {prefix or '/'!r}", before))

    def use(self, *steps: Stage) -> None:
        """Add steps to the before-chain of every route of this scope, those already there included."""
        self._chain += as_stages(f"scope {self.prefix or '/'!r}", steps)

    def route(
        self, method: str, path: str, flow: Flow, *, before: Sequence[Stage] = (), priority: Priority | None = None
    ) -> None:
        """Serve a flow at a method and a path like `/v2/orders/{id}`.

        before: a chain of this route's own. priority: of runs that come this way, in place of the flow's.
        """
        label = f"route {method} {path}"
        if not isinstance(flow, Flow):
            raise DefinitionError(f"{label} was given {flow!r}, which is not a flow", 'give it Flow("name", [steps])')
        if not path.startswith("/"):
            raise DefinitionError(f"{label}: the path does not start with '/'", f'write "/{path}"')
        if not method.isupper():
            raise DefinitionError(f"{label}: the method is not in capitals", f'write "{method.upper()}"')
        if priority is not None and priority not in PRIORITIES:
            raise DefinitionError(
                f"{label}: priority {priority!r} is unknown", f"choose one of {', '.join(PRIORITIES)}"
            )
        self._app.add_route(self, method, path, flow, as_stages(label, before), priority)

    def scope(self, prefix: str, *, before: Sequence[Stage] = ()) -> Scope:
        """A scope inside this one."""
        return Scope(self._app, prefix, before, self)

    @property
    def full_prefix(self) -> str:
        return (self._parent.full_prefix if self._parent else "") + self.prefix

    @property
    def chain(self) -> tuple[Stage, ...]:
        """The before-chain, outermost scope first."""
        return (*(self._parent.chain if self._parent else ()), *self._chain)


class App(Scope):
    """Everything a runtime needs to know: what can be asked for, and which flows are served where.

    capabilities: what handles effects; a module of `@effect` functions may stand here too. targets: how their targets
    are treated, by name. policy: the weakest that the app sets for all effects. on_error: as Flow's, for flows without
    one.
    admission: how much runs and waits at once, and for how long. tenants: what each of them may take, by name.
    identify: from a request to whose it is: a tenant's name, an Identity, or None for nobody's. It is asked before
    anything else is done for a request, so it must be quick and certain, as reading a signed token is: what it raises
    is a defect. Over HTTP it gets the RequestHead.
    older: versions of durable flows that are not begun any more; runs of theirs that were not over are finished by
    them. on_unresolved: told, with an Alarm, of each run that somebody must look at: one that ended unresolved, or that
    no code here can carry on. A plain and quick function; what it raises is counted.
    """

    def __init__(
        self,
        name: str = "app",
        *,
        capabilities: Sequence[Capability | HasCapability | ModuleType] = (),
        targets: Mapping[str, Target] | None = None,
        policy: Policy | None = None,
        admission: AdmissionPolicy | None = None,
        tenants: Tenants | Mapping[str, Tenant] | None = None,
        identify: Callable[[Any], Identity | str | None] | None = None,
        on_error: Callable[[Any], object] | None = None,
        older: Sequence[Flow] = (),
        on_unresolved: Callable[[Any], object] | None = None,
    ) -> None:
        super().__init__(self, "", (), None)
        self.name = name
        self.capabilities = tuple(map(_as_capability, capabilities))
        self.targets = dict(targets or {})
        self.policy = policy
        self.admission = _as_admission(f"app {name!r}", admission)
        self.tenants = as_tenants(f"app {name!r}: tenants=", tenants)
        self.identify = identify
        self.on_error = on_error
        check_on_error(f"app {name!r}", on_error)
        self.older = check_older(f"app {name!r}", older)
        self.on_unresolved = on_unresolved
        check_plain(f"app {name!r}: on_unresolved", on_unresolved)
        _check_identify(f"app {name!r}", identify)
        self._mounts: list[Mount] = []
        self.declared = Declared()
        self._routes: list[tuple[Scope, str, str, Flow, tuple[Stage, ...], Priority | None]] = []

    def add_route(
        self, scope: Scope, method: str, path: str, flow: Flow, before: tuple[Stage, ...], priority: Priority | None
    ) -> None:
        """Used by Scope.route, which is what to call."""
        self._routes.append((scope, method, scope.full_prefix + path, flow, before, priority))

    def mount(self, prefix: str, app: Any) -> None:
        """Give an ASGI application all requests at or below a path that no route takes, whatever their method.

            app.mount("/old", django_app)      # or "/", for all that has not been moved yet

        Routes come first, so an old application is moved one route at a time. The application is told where it is
        mounted, and sees whole paths. No before-chain runs for it: it has its own.

        Raises DefinitionError for a prefix that is none, or is taken.
        """
        label = f"mount {prefix!r}"
        prefix = "" if prefix == "/" else prefix
        if prefix and (not prefix.startswith("/") or prefix.endswith("/") or set(prefix) & set("{}%?#\\")):
            raise DefinitionError(label, 'a prefix starts with "/", does not end with one, and has no parameters')
        if any(mount.prefix == prefix for mount in self._mounts):
            raise DefinitionError(f"{label} is taken by another application", "mount one of them elsewhere")
        if not callable(app):
            raise DefinitionError(f"{label} was given {app!r}", "give it an ASGI application")
        self._mounts.append(Mount(prefix, app))

    def job(
        self,
        flow: Flow,
        *,
        queue: str = "default",
        attempts: int = 20,
        backoff: Backoff | float | None = None,
        priority: Priority = "batch",
        unique: Unique | bool = False,
        deadline: float | None = None,
    ) -> None:
        """Let a flow be run as a job, by `queue.enqueue(flow, body)`. What is said here holds where an effect says
        nothing.

        attempts: how often it is tried at most, the first included. backoff: between them; a number is its base in
        seconds. unique: one at a time of those with the same tenant and body, or by what else. deadline: seconds for a
        run, within the flow's own.

        Raises DefinitionError for what cannot work, and for two flows of one name.
        """
        self.declared.add_job(
            JobRule(
                flow,
                queue,
                attempts,
                backoff if isinstance(backoff, Backoff) else Backoff() if backoff is None else Backoff(backoff),
                priority,
                unique if isinstance(unique, Unique) else Unique() if unique else None,
                deadline,
            )
        )

    def queue(self, name: str, *, limit: int | None = None, per_tenant: int | None = None) -> None:
        """Bound how many jobs of a queue run at once, over all workers, and how many of one tenant.

        A queue that a job is declared with needs no more than that. Raises DefinitionError for a bound below 1, and for
        a second one of this name.
        """
        self.declared.add_queue(QueueLimit(name, limit, per_tenant))

    def cron(
        self,
        expression: str,
        flow: Flow,
        *,
        timezone: str = "UTC",
        body: object = None,
        misfire: Misfire = "once",
        name: str = "",
    ) -> None:
        """Run a flow as a job by the clock: `app.cron("0 3 * * *", nightly, timezone="Europe/Berlin")`.

        expression: minute, hour, day of month, month and day of week, as Debian's cron reads them, when the clocks
        change too. One worker of all begins it, and not while the one before it is not over. misfire: what becomes of
        times at which no worker was there: "once", one run for all of them; "skip", none; "all", one for each, even
        side by side. name: by default the flow's; a schedule is known by it when the app starts again.

        Raises DefinitionError for two of one name. Expression and time zone are checked when the app opens.
        """
        name = name or getattr(flow, "name", "?")
        self.declared.add_cron(CronRule(name, expression, flow, timezone, as_body(body), misfire))

    @property
    def jobs(self) -> Mapping[str, JobRule]:
        """The flows that can be run as jobs, by name."""
        return self.declared.jobs

    @property
    def queues(self) -> Mapping[str, QueueLimit]:
        """The bounds of queues, by name."""
        return self.declared.queues

    @property
    def crons(self) -> Mapping[str, CronRule]:
        """The schedules, by name."""
        return self.declared.crons

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """The applications behind this one, in order of definition."""
        return tuple(self._mounts)

    @property
    def routes(self) -> tuple[Route, ...]:
        """Every route with its whole before-chain, in order of definition."""
        return tuple(
            Route(method, path, flow, (*scope.chain, *before), priority)
            for scope, method, path, flow, before, priority in self._routes
        )

    @property
    def flows(self) -> dict[str, Flow]:
        """The flows that routes serve, by name. Raises DefinitionError when two share a name."""
        flows: dict[str, Flow] = {}
        for route in self.routes:
            for flow in route.flows:
                if flows.setdefault(flow.name, flow) is not flow:
                    raise DefinitionError(
                        f"route {route.label}: another flow is called {flow.name!r} too",
                        "give each flow a name of its own",
                    )
        return flows

    def check(self, builtin: frozenset[str] = frozenset()) -> None:
        """Raise DefinitionError for the first thing that cannot work. builtin: kinds that the runtime handles."""
        seen: dict[tuple[str, str], Route] = {}
        for route in self.routes:
            # What a parameter is called does not tell paths apart; its type does, and str is what one has without.
            place = (route.method, re.sub(r"\{\w*(?=[:}])", "{", route.path).replace("{:str}", "{}"))
            if place in seen:
                raise DefinitionError(
                    f"route {route.label} is defined twice"
                    if seen[place].path == route.path
                    else f"route {route.label} is the same path as {seen[place].label}",
                    "remove one of them",
                )
            seen[place] = route
            route.plan()
            route.degrade_plan()
            for flow in route.flows:
                self.check_handlers(f"route {route.label}", (*route.before, *flow.stages), builtin, flow.policy)
        for name, flow in self.flows.items():
            if name in self.jobs and self.jobs[name].flow is not flow:
                raise DefinitionError(
                    f"job {name!r}: a route serves another flow of this name", "give each flow a name of its own"
                )
        for flow in self.older:
            self._check_older(flow)
            self.check_handlers(f"older flow {flow.name!r} v{flow.version}", flow.stages, builtin, flow.policy)
        for job in self.jobs.values():
            job.check_parts()
            self.check_handlers(job.label, job.flow.stages, builtin, job.flow.policy)

    def check_handlers(
        self, where: str, stages: Sequence[Stage], builtin: frozenset[str], policy: Policy | None = None
    ) -> None:
        """Raise DefinitionError when a step can ask for an effect that nothing handles, or for a write that a policy
        retries though it cannot be. policy: the flow's.
        """
        for step in steps_of(stages):
            for mention in step.mentions:
                kind = mention.kind
                if kind.handler is None and kind.name not in builtin and not self.handles(kind.name):
                    room = kind.name.partition(".")[0]
                    raise DefinitionError(
                        f"{where}: step {step.name!r} asks for {kind.name!r}, but nothing handles it",
                        f"add a capability that does to App(capabilities=[…]), as {_CAPABLE.get(room, room + '(…)')}",
                    )
                if kind.name.startswith("queue.enqueue") and kind.name not in builtin:
                    self._check_enqueued(where, step.name, mention.about)
                if kind.handler is not None and kind.name not in builtin:
                    self._check_resources(where, step.name, kind)
                if not mention.handed_on and "retries" not in mention.policy:
                    self._check_retries(f"{where}: step {step.name!r}", kind, policy)

    def _check_older(self, flow: Flow) -> None:
        """Today's flow has another version, or nobody could tell whose a run is; and it fits the route."""
        for route in self.routes:
            for today in route.flows:
                if today.name == flow.name and today.version == flow.version:
                    raise DefinitionError(
                        f"route {route.label} serves flow {flow.name!r} v{flow.version}, which is in older=[…] too",
                        f'give the flow that is served another one: Flow({flow.name!r}, …, version="2")',
                    )
                if today.name == flow.name:
                    route.plan_for(flow)

    def _check_retries(self, where: str, kind: EffectKind[..., Any], flow: Policy | None) -> None:
        """Retries that an effect's own policy asks for are checked with the flow; these are said elsewhere."""
        own = kind.policy.retries if kind.policy is not None else None
        if kind.access == "read" or kind.takes_key or kind.exact or own == 0:
            return
        target = self.targets.get(kind.target) if isinstance(kind.target, str) else None
        levels = (("flow", flow), ("target", target.policy if target is not None else None), ("app", self.policy))
        for level, policy in levels:
            if policy is not None and policy.retries is not None:
                if policy.retries:
                    raise DefinitionError(
                        f"{where} asks for the write {kind.name!r}, which the {level}'s policy retries, but its "
                        "handler takes no key: nobody could tell a second one from the first",
                        "give the handler a parameter `key: IdempotencyKey` and send it along, or declare the kind "
                        "with policy=Policy(retries=0)",
                    )
                return

    def _check_enqueued(self, where: str, step: str, about: object) -> None:
        """What is enqueued by a name that can be read in the code must be a job."""
        name = about.name if isinstance(about, Flow) else about
        if isinstance(name, str) and name not in self.jobs:
            raise DefinitionError(
                f"{where}: step {step!r} enqueues flow {name!r}, which is no job of this app",
                f"declare it: app.job({name})",
            )

    def _check_resources(self, where: str, step: str, kind: EffectKind[..., Any]) -> None:
        for wanted in kind.injected.values():
            told = wanted in (IdempotencyKey, CallInfo, App)
            if not told and not any(wanted in capability.resources for capability in self.capabilities):
                label = getattr(wanted, "__name__", str(wanted))
                raise DefinitionError(
                    f"{where}: step {step!r} asks for {kind.name!r}, whose handler wants a {label}, "
                    "but nothing opens one",
                    f"add a capability to App(capabilities=[…]) whose resources open a {label}",
                )

    def handles(self, kind: str) -> bool:
        return any(kind in capability.handlers for capability in self.capabilities)


def _as_admission(where: str, given: AdmissionPolicy | None) -> AdmissionPolicy:
    if given is not None and not isinstance(given, AdmissionPolicy):
        raise DefinitionError(f"{where}: admission={given!r} is no policy", "give it AdmissionPolicy(running=…)")
    return given or AdmissionPolicy()


def _check_identify(where: str, identify: object) -> None:
    if identify is not None and (not callable(identify) or iscoroutinefunction(identify)):
        raise DefinitionError(
            f"{where}: identify={identify!r} is not a plain function",
            "write it as a plain `def`: whoever is not admitted yet must not cost a query; verify a signed token, or "
            "keep a table",
        )


def _as_capability(given: Capability | HasCapability | ModuleType) -> Capability:
    if isinstance(given, Capability):
        return given
    make = getattr(given, "capability", None)
    if callable(make):
        made = make()
        if isinstance(made, Capability):
            return made
    if isinstance(given, ModuleType):  # a module of @effect functions: they are their own handlers
        return Capability(name=given.__name__.rpartition(".")[2])
    raise DefinitionError(
        f"App(capabilities=[…]) was given {given!r}, which is none",
        "give it sqlite(…), http_client(…), or a Capability(…)",
    )


_CAPABLE = {
    "sql": 'zerver.sql.sqlite("file.db")',
    "http": "zerver.http.http_client()",
    "kv": "zerver.kv.memory()",
    "queue": "zerver.jobs.jobs()",
}
