"""Alarms: that somebody must look at a run, as a value.

Law: an alarm says what an operator needs to begin with, and no values: what the run wrote is read from the journal, by
`zerver sagas show`.
"""

from __future__ import annotations

import attrs

from zerver.core.saga import Entry
from zerver.runtime.journal import RunHead
from zerver.runtime.result import Result


@attrs.frozen
class Alarm:
    """A run that somebody must look at.

    stuck: no code here can carry it on, and it was set aside; otherwise it ended with writes of which nobody can say
    that they are right. why: in words. writes: of an unresolved run, as "payments.charge in charge, key req_7a….1".
    """

    run_id: str
    flow: str
    version: str
    tenant: str
    label: str
    stuck: bool
    why: str
    writes: tuple[str, ...] = ()


def unresolved_alarm(result: Result) -> Alarm:
    """The alarm of a run that ended unresolved."""
    run = result.timeline
    why = "; ".join(dict.fromkeys(_why(entry) for entry in result.unresolved))
    writes = tuple(_write(entry) for entry in result.unresolved)
    return Alarm(run.run_id, run.flow, run.version, run.tenant, run.label, False, why, writes)


def stored_alarm(head: RunHead, stuck: bool, why: str) -> Alarm:
    """The alarm of a run that is only in the journal."""
    return Alarm(head.run_id, head.flow, head.version, head.tenant, head.label, stuck, why)


def _why(entry: Entry) -> str:
    state = "happened, and was not undone" if entry.happened else "may or may not have happened"
    return f"{entry.call.effect.kind.name} in {entry.call.step} {state}"


def _write(entry: Entry) -> str:
    call = entry.call
    key = f", key {call.key}" if call.effect.kind.takes_key else ", without a key"
    return f"{call.effect.kind.name} in {call.step}{key}"
