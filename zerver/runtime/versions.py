"""Versions: which code a stored run goes on with.

Law: a run goes on by the version of its flow that it began with, when that is known here (`App(older=[…])`). Else it is
for the flow of today, whose `on_upgrade` says what then: it is led along the records and goes on if it agrees with them
("resume"), or only undoes what they say was done ("compensate"). Nothing is guessed: a run that no code here agrees
with is Astray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from zerver.core.app import App
from zerver.core.flows import Flow
from zerver.core.plan import Plan, compile_plan
from zerver.core.timeline import Timeline
from zerver.runtime.journal import RunHead
from zerver.runtime.recovery import Astray


@attrs.frozen(eq=False)
class Found:
    """The code of a run. upgraded: it is not of the version that the run began with."""

    flow: Flow
    plan: Plan
    upgraded: bool


class Versions:
    """The durable flows of an app, and what else is known. flows: those of no route; of two with one name the first
    is today's.
    """

    def __init__(self, app: App, flows: Sequence[Flow] = ()) -> None:
        self._today: dict[tuple[str, str], tuple[Flow, Plan]] = {}
        self._known: dict[tuple[str, str, str], tuple[Flow, Plan]] = {}
        for label, flow, plan in _plans(app, flows):
            if flow.durability != "off":
                self._known.setdefault((label, flow.name, flow.version), (flow, plan))
                if flow not in app.older:
                    self._today.setdefault((label, flow.name), (flow, plan))

    def find(self, head: RunHead) -> Found:
        """The code of a run. Raises Astray when there is none."""
        own = self._known.get((head.label, head.flow, head.version)) or self._known.get(("", head.flow, head.version))
        if own is not None:
            return Found(*own, upgraded=False)
        today = self._today.get((head.label, head.flow))
        if today is None:
            raise Astray(f"there is no flow {head.flow!r} here" + (f" at {head.label}" if head.label else ""))
        return Found(*today, upgraded=True)


def _plans(app: App, flows: Sequence[Flow]) -> Iterator[tuple[str, Flow, Plan]]:
    """Flows, what their edge calls their runs, and their plans; older ones behind the routes of today's, too."""
    for route in app.routes:
        for flow in route.flows:
            yield route.label, flow, route.plan_for(flow)
            for older in app.older:
                if older.name == flow.name:
                    yield route.label, older, route.plan_for(older)
    for job in app.jobs.values():
        for flow in (job.flow, *(older for older in app.older if older.name == job.name)):
            yield job.label, flow, compile_plan(flow)
    routed = (flow for route in app.routes for flow in route.flows)  # which programs may run themselves, too
    for flow in dict.fromkeys((*flows, *routed, *app.older)):
        yield "", flow, compile_plan(flow)


def code_of(app: App, flows: Sequence[Flow] = ()) -> tuple[App | Flow, ...]:
    """What a reader of stored runs has to know."""
    return (app, *flows, *app.older, *(job.flow for job in app.jobs.values()))


def head_of(timeline: Timeline) -> RunHead:
    """What a run's records say of its head, for `Versions.find`."""
    it = timeline
    return RunHead(it.run_id, it.flow, it.version, it.tenant, it.priority, 0, "", it.label, it.parent)
