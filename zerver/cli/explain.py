"""`zerver explain`: what applies to a route, and who says so.

Law: nothing is opened and nothing is served. A request that no route takes is status 2, with what would have been near;
an app that cannot work is status 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

import attrs
import click

from zerver.cli.explanation import EffectLine, Explanation, Said, StageLine, TenantLine, explain_route
from zerver.cli.limits import flat_limits, read_limits
from zerver.cli.load import WrongName, load_app
from zerver.core.app import App, Mount, Route
from zerver.core.tenants import NOBODY, Tenants
from zerver.edge import check_app
from zerver.errors import DefinitionError, ProtocolViolation
from zerver.http import Entry, Match, Miss, RequestHead, Router
from zerver.http.mounts import Mounted, mounted_at
from zerver.runtime.tenants import load_tenants

_WIDTH: Final = 16  # of what stands before a value
_HINT: Final = {"flow": "as the flow says", "route": "as the route says", "method": "because of the method"}


@click.command()
@click.argument("app", metavar="MODULE:APP")
@click.argument("method")
@click.argument("path")
@click.option("--tenant", default=NOBODY, metavar="NAME", help="Whose request it is.")
@click.option("--tenants", metavar="FILE", help="As for `zerver serve`.")
@click.option("--limit", multiple=True, metavar="NAME=VALUE", help="As for `zerver serve`.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def explain(
    app: str, method: str, path: str, tenant: str, tenants: str | None, limit: Sequence[str], as_json: bool
) -> None:
    """Say what applies to a request: steps, class, deadline, tenant, policies, targets and limits, and who says so.

    PATH is a path, as /orders/7, or a route's own, as /orders/{id}.
    """
    limits = flat_limits(read_limits(limit))
    loaded = load_app(app)
    check_app(loaded)
    rules = loaded.tenants if tenants is None else _read_tenants(tenants)
    found = _find(loaded, method.upper(), path)
    if isinstance(found, Mount):
        prefix = found.prefix or "/"
        told = {"mount": prefix, "limits": limits}
        words = [f"{method.upper()} {path} → the application mounted at {prefix}: what it does, it knows itself"]
    elif isinstance(found, Miss):
        told = {"allow": found.allow, "limits": limits}
        words = [f"{method.upper()} {path} → answered by the server itself, with Allow: {', '.join(found.allow)}"]
    else:
        explanation = explain_route(loaded, found, rules, tenant, limits)
        told, words = attrs.asdict(explanation), list(_text(explanation))
    click.echo(json.dumps(told, indent=2, default=str) if as_json else "\n".join(words))


def _read_tenants(path: str) -> Tenants:
    try:
        return load_tenants(path)
    except DefinitionError as error:
        raise WrongName(f"{error.problem}; {error.cure}") from None


# ---- finding --------------------------------------------------------------------------------


def _find(app: App, method: str, path: str) -> Route | Mount | Miss:
    """What takes the request; a Miss when it asks what others it may ask."""
    own = [route for route in app.routes if (route.method, route.path) == (method, path)]
    if own:
        return own[0]
    head = RequestHead(method, path)
    try:
        found = Router(Entry(route.method, route.path, route) for route in app.routes).find(head)
        mounted = mounted_at((Mounted(mount, {}) for mount in app.mounts), head)
    except ProtocolViolation as violation:
        raise WrongName(f"{path} is no path: {violation}") from None
    if isinstance(found, Match):
        return found.payload
    if mounted is not None:
        return mounted.mount
    if found.status == 204:
        return found
    if found.allow:
        raise WrongName(f"{path} takes no {method}; it takes {', '.join(found.allow)}")
    raise WrongName(f"no route takes {method} {path}; " + _near(app, method, path))


def _near(app: App, method: str, path: str) -> str:
    labels = [route.label for route in app.routes]
    near = get_close_matches(f"{method} {path}", labels, 3, 0.4)
    return f"near are: {', '.join(near)}" if near else f"there are {len(labels)} routes: see `zerver routes`"


# ---- words ----------------------------------------------------------------------------------


def _text(it: Explanation) -> Iterator[str]:
    owner = f", owner {it.owner}" if it.owner else ""
    yield f"{it.route} → flow {it.flow}, version {it.version}{owner}"
    yield ""
    yield _line("class", f"{it.priority.value}, {_by(it.priority)}")
    yield _line("waits", f"{_time(it.patience)} at most for its ticket")
    yield _line("a step", f"may take {_time(it.budget)}; a longer one is recorded as an overrun")
    yield _line("deadline", "none" if it.deadline is None else _time(it.deadline))
    yield _line("undo deadline", _time(it.undo_deadline))
    ends = "the run is cancelled" if it.on_disconnect.value == "cancel" else "the run goes on"
    yield _line("client leaves", f"{ends}, {_by(it.on_disconnect)}")
    yield _line("when refused", "429 or 503" if it.degrade is None else f"flow {it.degrade} runs in its place")
    yield _line("idempotency", _idempotency(it))
    yield _line("tenant", _tenant(it.tenant))
    yield ""
    yield "steps"
    yield from map(_stage, it.stages)
    if it.effects:
        yield ""
        yield "effects"
        for effect in it.effects:
            yield from _effect(effect)
        yield ""
        yield "targets"
        for target, rule in {effect.target: effect.rule for effect in it.effects if effect.rule is not None}.items():
            yield f"  {target}: {_pairs(rule.items())}"
    yield ""
    yield "limits of admission"
    yield from (f"  {name:20}{_range(value)}" for name, value in it.admission.items())
    yield ""
    yield "limits of the HTTP server"
    yield from (f"  {name:20}{_plain(value)}" for name, value in it.limits.items())


def _line(name: str, value: str) -> str:
    return f"{name:{_WIDTH}}{value}"


def _by(said: Said) -> str:
    return _HINT.get(said.by, f"because of {said.by}")


def _idempotency(it: Explanation) -> str:
    if it.idempotency is None:
        return "keys mean nothing"
    needed = "a key is required" if it.idempotency == "required" else "a key may come"
    return f"{needed}; answers are kept for {_time(it.idempotency_expires)}"


def _tenant(tenant: TenantLine) -> str:
    rule = ", ".join(f"{name} {_plain(value)}" for name, value in tenant.rule.items() if value is not None)
    return f"{tenant.name or repr('')}, by {tenant.by}: {rule}"


def _stage(line: StageLine) -> str:
    name = line.name if line.what == "step" else f"{line.what} {line.name}".strip()
    parts = [
        "of the before-chain" if line.chain and line.what == "step" else "",
        _listed("reads", line.reads),
        _listed("writes", line.writes),
        _listed("asks for", line.effects),
        f"runs in a {line.offload}" if line.offload else "",
    ]
    about = "; ".join(filter(None, parts))
    place = f"  ({line.place})" if line.place else ""
    return f"{'  ' * (line.depth + 1)}{name}{': ' if about else ''}{about}{place}"


def _listed(verb: str, names: Sequence[str]) -> str:
    return f"{verb} {', '.join(names)}" if names else ""


def _effect(effect: EffectLine) -> Iterator[str]:
    how = ", compensated" if effect.compensated else ", handed on" if effect.handed_on else ""
    yield f"  {effect.kind}, a {effect.access} in {effect.step}{how}  ({effect.place})"
    yield f"    {'policy':{_WIDTH}}" + "; ".join(_policies(effect.policy))
    yield f"    {'target':{_WIDTH}}{effect.target or 'chosen by its arguments'}"


def _policies(policy: Mapping[str, Said]) -> Iterator[str]:
    for name, said in policy.items():
        yield f"{name} none" if said.value is None else f"{name} {said.value:g} ({said.by})"


def _pairs(fields: Iterable[tuple[str, Any]]) -> str:
    """Fields and their values; those that have fields themselves in parentheses."""
    return ", ".join(
        f"{name} ({_pairs(value.items())})" if isinstance(value, dict) else f"{name} {_plain(value)}"
        for name, value in fields
    )


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1.0 else f"{1000 * seconds:g} ms"


def _range(value: Any) -> str:
    """A number; or least and most, when it is found between them."""
    if not isinstance(value, tuple):
        return _plain(value)
    least, most = value
    return _plain(most) if least == most else f"{least} to {most}"


def _plain(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
