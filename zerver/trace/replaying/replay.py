"""Replay: the same run once more, from its records, with nothing performed.

Law: pure. The machine is led through the records (`zerver.core.following`), and the first record that is not the same
is the answer; with none, the run is told as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from zerver.core import timeline as t
from zerver.core.following import Divergence, Follower, Inputs, promises, step_of
from zerver.core.plan import Plan
from zerver.core.timeline import Record, Timeline
from zerver.trace.same import same, same_record


@attrs.frozen(eq=False)
class Replayed:
    """What a replay came to.

    records: those of the replay, with the times of the recorded ones, up to the divergence. divergence: None when every
    record is the same. slots: what the slots held when it stopped. ending: how the replayed run ended, if it did.
    """

    records: tuple[Record, ...]
    divergence: Divergence | None
    slots: Mapping[str, Any]
    ending: t.Ending | None

    @property
    def same(self) -> bool:
        return self.divergence is None


def replay(plan: Plan, timeline: Timeline, inputs: Inputs | None = None) -> Replayed:
    """Run the plan against a timeline. inputs: instead of the recorded ones, for "what if".

    Raises InvalidData when the plan, of other code, takes an input that was not recorded.
    """
    follower = Follower(plan, timeline, says_the_same, inputs)
    follower.run()
    found = follower.divergence
    upto = len(timeline.records) if found is None else found.index
    records, slots = tuple(follower.records[:upto]), follower.slots()
    return Replayed(records, found, slots, follower.stop())


def says_the_same(recorded: Record, replayed: Record) -> bool:
    """Whether a record of a replay says what was recorded, stand-ins and masks in it included."""
    if recorded[0] == t.PARKED == replayed[0] and step_of(recorded) == step_of(replayed):
        one, other = recorded[3], replayed[3]  # what it does with the signal is code, and shows when it comes
        said = [same(getattr(one, name), getattr(other, name)) for name in ("signal", "expires", "expired")]
        return all(said)
    if not same_record(recorded, replayed):
        return False
    return recorded[0] != t.ASKED or promises(recorded[2]) == promises(replayed[2])
