"""What applies to a route, and who says so: values, read from the app and from nowhere else.

Law: nothing is decided here. Each answer comes from the function that decides it when a request comes (`resolve` for
policies, `classify` for classes, `Tenants.get` for tenants), so that the explanation cannot say anything else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from inspect import unwrap
from typing import Any

import attrs

from zerver.core.app import App, Route
from zerver.core.check import steps_of
from zerver.core.classes import AdmissionPolicy, ClassPolicy
from zerver.core.discover import Mention
from zerver.core.policy import COMPENSATION, Policy, resolve
from zerver.core.priorities import RANK
from zerver.core.signatures import PartRead, Read, SlotRead
from zerver.core.stages import Block, Branch, Dag, Parallel, Pivot, Stage
from zerver.core.steps import Offload, Step
from zerver.core.targets import Target
from zerver.core.tenants import Tenants, classify
from zerver.core.turns import BUDGETS

#: Methods after which a client that leaves is not missed (RFC 9110 §9.2.1).
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


@attrs.frozen
class Said:
    """A value, and who says so."""

    value: Any
    by: str


@attrs.frozen
class StageLine:
    """A stage, in order. depth: of nesting. what: "step", "parallel", "dag", "branch", "then", "otherwise", "pivot" or
    "flow". chain: whether it is of a before-chain. place: file and line of a step. effects: their kinds. offload: where
    a step runs that does not run on the loop.
    """

    depth: int
    what: str
    name: str
    chain: bool = False
    place: str = ""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()
    offload: Offload | None = None


@attrs.frozen
class EffectLine:
    """An effect that a step's code mentions. target: None when its arguments choose it. policy: by field. rule: how the
    target is treated, by field; None with the target. handed_on: it is an undoing, or the like; a rollback tries harder
    than others where nobody says otherwise, and that is the level "compensation".
    """

    step: str
    kind: str
    access: str
    place: str
    target: str | None
    compensated: bool
    handed_on: bool
    policy: dict[str, Said]
    rule: dict[str, Any] | None


@attrs.frozen
class TenantLine:
    """What a tenant may take. by: "its own rule" or "the default"."""

    name: str
    by: str
    rule: dict[str, Any]


@attrs.frozen
class Explanation:
    """Everything that applies to a route. patience: seconds that a run of its class waits for a ticket at most; budget:
    seconds that one of its steps may take. idempotency_expires: seconds for which answers are kept. admission: the
    numbers of the app's AdmissionPolicy, by name. limits: of the HTTP server, by name.
    """

    route: str
    flow: str
    version: str
    owner: str | None
    priority: Said
    patience: float
    budget: float
    deadline: float | None
    undo_deadline: float
    on_disconnect: Said
    degrade: str | None
    idempotency: str | None
    idempotency_expires: float
    tenant: TenantLine
    stages: tuple[StageLine, ...]
    effects: tuple[EffectLine, ...]
    admission: dict[str, Any]
    limits: dict[str, Any]


def explain_route(app: App, route: Route, tenants: Tenants, tenant: str, limits: dict[str, Any]) -> Explanation:
    """The explanation of a route, for requests of one tenant."""
    flow = route.flow
    rule = tenants.get(tenant)
    own = len(flow.before)
    priority = _priority(route, tenants, tenant)
    rank = RANK[priority.value]
    return Explanation(
        route=route.label,
        flow=flow.name,
        version=flow.version,
        owner=flow.owner,
        priority=priority,
        patience=app.admission.classes[rank].patience,
        budget=BUDGETS[rank] / 1e9,
        deadline=flow.deadline,
        undo_deadline=flow.undo_deadline,
        on_disconnect=_on_disconnect(route),
        degrade=None if flow.degrade is None else flow.degrade.name,
        idempotency=flow.idempotency,
        idempotency_expires=flow.idempotency_expires,
        tenant=TenantLine(tenant, "its own rule" if tenant in tenants.named else "the default", attrs.asdict(rule)),
        stages=(
            *_stages(route.before, 0, True),
            *_stages(flow.stages[:own], 0, True),
            *_stages(flow.stages[own:], 0, False),
        ),
        effects=tuple(
            _effect(app, flow.policy, step, mention)
            for step in steps_of((*route.before, *flow.stages))
            for mention in step.mentions
        ),
        admission=_admission(app.admission),
        limits=limits,
    )


def policy_levels(
    app: App,
    flow: Policy | None,
    kind: Policy | None,
    target: Target | None,
    effect: Policy | None,
    undo: Policy | None = None,
) -> list[tuple[str, Policy | None]]:
    """The policies that may apply to an effect, strongest first: those of `Interpreter.levels`, and what the rollback
    says (undo) of those that it performs.
    """
    levels = [
        ("effect", effect),
        ("flow", flow),
        ("target", None if target is None else target.policy),
        ("kind", kind),
        ("app", app.policy),
    ]
    return levels if undo is None else [*levels, ("compensation", undo)]


def _priority(route: Route, tenants: Tenants, tenant: str) -> Said:
    said = route.flow.priority if route.priority is None else route.priority
    chosen = classify(said, tenants.get(tenant))
    if chosen != said:
        return Said(chosen, f"tenant {tenant}")
    return Said(chosen, "flow" if route.priority is None else "route")


def _admission(policy: AdmissionPolicy) -> dict[str, Any]:
    """By field, but those of the classes: a route is told of its own."""
    fields = attrs.asdict(policy, filter=lambda _, given: not isinstance(given, ClassPolicy))
    return {name: tuple(value.values()) if isinstance(value, dict) else value for name, value in fields.items()}


def _on_disconnect(route: Route) -> Said:
    if route.flow.on_disconnect is not None:
        return Said(route.flow.on_disconnect, "flow")
    return Said("cancel" if route.method in _SAFE else "finish", "method")


# ---- stages ---------------------------------------------------------------------------------


def _stages(stages: Sequence[Stage], depth: int, chain: bool) -> Iterator[StageLine]:
    for stage in stages:
        yield from _stage(stage, depth, chain)


def _stage(stage: Stage, depth: int, chain: bool) -> Iterator[StageLine]:
    if isinstance(stage, Step):
        yield _step(stage, depth, chain)
    elif isinstance(stage, Parallel | Dag):
        yield StageLine(depth, type(stage).__name__.lower(), "", chain)
        yield from _stages(stage.members, depth + 1, chain)
    elif isinstance(stage, Pivot):
        yield StageLine(depth, "pivot", "", chain)
        yield from _stage(stage.stage, depth + 1, chain)
    elif isinstance(stage, Branch):
        reads = tuple(map(_read, stage.signature.reads))
        yield StageLine(depth, "branch", stage.predicate.__name__, chain, reads=reads)
        for side, inner in (("then", stage.then), ("otherwise", stage.otherwise)):
            if inner:
                yield StageLine(depth + 1, side, "", chain)
                yield from _stages(inner, depth + 2, chain)
    else:
        yield _block(stage, depth, chain)
        yield from _stages(stage.stages, depth + 1, chain)


def _block(block: Block, depth: int, chain: bool) -> StageLine:
    within = "" if block.deadline is None else f", within {block.deadline:g} s"
    return StageLine(depth, "flow", block.name + within, chain)


def _step(step: Step[..., Any], depth: int, chain: bool) -> StageLine:
    return StageLine(
        depth,
        "step",
        step.name,
        chain,
        _place(step),
        tuple(map(_read, step.signature.reads)),
        tuple(write.slot.name + ("?" if write.optional else "") for write in step.signature.writes),
        tuple(dict.fromkeys(mention.kind.name for mention in step.mentions)),
        step.offload,
    )


def _read(read: Read) -> str:
    if isinstance(read, SlotRead):
        return read.slot.name + ("?" if read.optional else "")
    if isinstance(read, PartRead):
        return f"{read.part.source} {read.name}" + ("" if read.required else "?")
    return "deadline"


def _place(step: Step[..., Any], line: int = 0) -> str:
    code = getattr(unwrap(step.function), "__code__", None)
    return "" if code is None else f"{os.path.basename(code.co_filename)}:{line or code.co_firstlineno}"


# ---- effects --------------------------------------------------------------------------------


def _effect(app: App, flow: Policy | None, step: Step[..., Any], mention: Mention) -> EffectLine:
    kind = mention.kind
    target = kind.target if isinstance(kind.target, str) else None
    rule = None if target is None else app.targets.get(target, Target())
    said = {name: value for name, value in mention.policy.items() if name in attrs.fields_dict(Policy)}
    undo = COMPENSATION if mention.undoes else None
    policy, sources = resolve(policy_levels(app, flow, kind.policy, rule, Policy(**said) if said else None, undo))
    return EffectLine(
        step=step.name,
        kind=kind.name,
        access=kind.access,
        place=_place(step, mention.line),
        target=target,
        compensated=mention.compensated,
        handed_on=mention.handed_on,
        policy={name: Said(getattr(policy, name), sources.get(name, "nobody")) for name in attrs.fields_dict(Policy)},
        rule=None if rule is None else _rule(rule),
    )


def _rule(rule: Target) -> dict[str, Any]:
    """By field; the policy is told with the effect's."""
    return {name: value for name, value in attrs.asdict(rule).items() if name != "policy"}
