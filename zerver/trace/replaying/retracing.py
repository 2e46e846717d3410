"""Retracing: whether code goes the way that a kept run went, which may be one with masked values.

Law: pure. What a takeover would ask of a run of the journal is asked of a recording, where a value that is masked on
both sides is the same.
"""

from __future__ import annotations

from zerver.core.following import Follower, goes_alike
from zerver.core.plan import Plan
from zerver.core.timeline import Record, Timeline
from zerver.errors import InvalidData
from zerver.runtime.recovery import Astray
from zerver.trace.replaying.replay import says_the_same


def retrace(plan: Plan, timeline: Timeline) -> None:
    """Lead the plan along the records. Raises Astray."""
    try:
        follower = Follower(plan, timeline, _goes_alike)
    except InvalidData as missing:
        raise Astray(str(missing)) from missing
    follower.run()
    found, records = follower.divergence, tuple(follower.records)
    follower.stop()
    if found is not None:
        raise Astray(found.names, found, records)


def _goes_alike(recorded: Record, replayed: Record) -> bool:
    return goes_alike(recorded, replayed) or says_the_same(recorded, replayed)
