"""Timelines of random flows, driven through the machine with no event loop."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import strategies as st

from tests.core.pump import Pump
from tests.core.strategies import flows
from zerver.core import timeline as t
from zerver.core.machine import Machine
from zerver.core.plan import Plan, compile_plan


@attrs.frozen
class Made:
    """A random run. again: the same flow's plan, compiled from anew, as another process would."""

    timeline: t.Timeline
    plan: Plan
    again: Plan
    machine: Machine
    unresolved: Any


@st.composite
def made(draw: Any) -> Made:
    flow = draw(flows())
    plan = compile_plan(flow.build())
    now = iter(range(1_000, 1 << 40, 70_000))
    records: list[t.Record] = [("received", next(now), plan.flow, None)]
    deadline_ns = draw(st.sampled_from([None, 5_000_000]))
    takes = [f"given {slot}" for slot in flow.takes]
    records.append(("input", next(now), plan, ((), takes, deadline_ns, None)))
    machine = Machine(plan, "run", lambda: next(now), records, deadline_ns)
    pump = Pump(machine, lambda n: draw(st.integers(0, n - 1)) if n > 1 else 0, True)
    pump.run((), takes)
    secret = draw(st.sampled_from([frozenset(), frozenset(plan.slots)]))
    timeline = t.Timeline("run", plan.flow, "1", "acme", "default", records, secret)
    return Made(timeline, plan, compile_plan(flow.build()), machine, machine.saga.unresolved)
