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
from zerver.core.flows import Flow, check_on_error
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
    whose parameters are other resources); opened when the runtime opens, closed in reverse order.
    """

    name: str
    handlers: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)
    resources: Mapping[type, Callable[..., AbstractAsyncContextManager[Any]]] = attrs.field(factory=dict)


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
        return self._plan_of(self.flow)

    def degrade_plan(self) -> Plan | None:
        """The plan of the flow's `degrade=`, behind the same before-chain: what that forbids stays forbidden."""
        return None if self.flow.degrade is None else self._plan_of(self.flow.degrade)

    def _plan_of(self, flow: Flow) -> Plan:
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
        _check_identify(f"app {name!r}", identify)
        self._mounts: list[Mount] = []
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
        _ = self.flows

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
                if kind.handler is not None and kind.name not in builtin:
                    self._check_resources(where, step.name, kind)
                if not mention.handed_on and "retries" not in mention.policy:
                    self._check_retries(f"{where}: step {step.name!r}", kind, policy)

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

    def _check_resources(self, where: str, step: str, kind: EffectKind[..., Any]) -> None:
        for wanted in kind.injected.values():
            told = wanted in (IdempotencyKey, CallInfo)
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
}
