"""The veil: keeps secrets, and bytes that terminals obey, out of text.

Law: what a secret slot held, a cookie, or what stands under a hidden name, as an Authorization header, is shown
nowhere: whatever contains it is masked before it is cut, so that no half of it is left. A step whose secret no record
knows (it failed before it wrote it) shows nothing of what it asked for. Over-masking is a nuisance, under-masking is a
leak: in doubt, mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import Continue, Done, Insert, Replace
from zerver.core.effects import Cancelled, Failure, Success, Unknown
from zerver.core.plan import StepNode
from zerver.core.signatures import PartRead
from zerver.trace.facts import Facts
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden, Secrets, under
from zerver.trace.hidden import escaped as escaped
from zerver.trace.inert import MASK as MASK
from zerver.trace.naming import Namer

#: Parts of values that are looked through for names; each record adds a few.
_MOST_SEARCHED: Final = 200_000


class Veil:
    """What must not be shown of one run. hidden: names that are configured to be, beside what the code says."""

    def __init__(self, facts: Facts, hidden: Hidden = NOTHING_HIDDEN) -> None:
        self.run_id = facts.timeline.run_id
        self._hidden: set[str] = set()
        self._known: set[str] = set()
        secret = secret_slots(facts, hidden)
        found: list[object] = [*_sensitive_parts(facts, hidden)]
        if secret:
            found += self._written(facts, secret)
            self._hide(facts, secret)
        named = Namer(hidden)
        named.search(_held(facts), _MOST_SEARCHED + 10 * len(facts.timeline.records))
        self.values = [*found, *named.found]
        self.secrets = Secrets(self.values, everything=named.blind)

    def text(self, text: str) -> str:
        """The text with every secret in it masked."""
        return self.secrets.text(text)

    def hides(self, step: str) -> bool:
        """Whether nothing may be shown of what this step asked for or failed with; "" is one that nobody knows."""
        return step in self._hidden or (not step and bool(self._hidden))

    def _written(self, facts: Facts, secret: frozenset[str]) -> Iterator[object]:
        """The values of secret slots: written by steps, or brought by the caller."""
        for record in facts.timeline.records:
            if record[0] == t.STEP and isinstance(record[2], StepNode):
                writes = record[2].step.signature.writes
                if not any(write.slot.name in secret for write in writes):
                    continue
                answer = record[3][1]
                values = answer if record[2].write == -2 and isinstance(answer, tuple) else (answer,)
                for write, value in zip(writes, values, strict=False):
                    if write.slot.name in secret and facts.step(record[2].name).ok:
                        self._known.add(write.slot.name)
                        yield value
        if facts.plan is not None and facts.inputs:
            for slot, value in zip(facts.plan.takes, facts.inputs[1], strict=False):
                if slot.name in secret:
                    self._known.add(slot.name)
                    yield value

    def _hide(self, facts: Facts, secret: frozenset[str]) -> None:
        """Steps that touch a secret no record knows, and steps of which no record says what they touch."""
        shown = set()
        for node in facts.nodes:
            signature = node.step.signature
            touched = {read.slot.name for read in signature.slots} | {write.slot.name for write in signature.writes}
            if not (touched & secret) - self._known:
                shown.add(node.name)
        self._hidden = set(facts.steps) - shown


# ---- what is secret -------------------------------------------------------------------------


def _held(facts: Facts) -> Iterator[object]:
    """All that the records hold of values: what was given, asked for, answered."""
    for kind, _, subject, detail in facts.timeline.records:
        if kind in (t.ASKED, t.FAILED) and isinstance(subject, Call):  # a rollback's are asked for by no step
            yield subject.effect
        if kind == t.INPUT:
            yield from (*detail[0], *detail[1])
        elif kind in _WITH_VALUES:
            for value in detail if kind in _OF_SEVERAL else (detail,):
                # What the runtime has put around a value is looked into by name: a hidden `reason` is not its own.
                around = _AROUND.get(value.__class__)
                yield value if around is None else getattr(value, around)


#: Records whose detail is a value or has one in it; and those where it is a tuple of the runtime's.
_WITH_VALUES: Final = frozenset(
    {t.STEP, t.DEFECT, t.FAULT, t.FAILED, t.COMMITTED, t.DOUBTED, t.RESOLVED, t.SETTLED, t.LATE, t.ENDING, t.UNDONE,
     t.SIGNALLED, t.UNRESOLVED, t.ENDED}
)  # fmt: skip
_OF_SEVERAL: Final = frozenset({t.STEP, t.DEFECT, t.FAULT, t.FAILED, t.UNDONE})

#: Where the value is in what the runtime has put around it; a run's value is a step's.
_AROUND: Final[dict[type, str]] = {
    **dict.fromkeys((Success, Continue, Insert, Replace, Done), "value"),
    **dict.fromkeys((Failure, Unknown), "error"),
    Cancelled: "reason",
    t.Ending: "cause",
}


def secret_slots(facts: Facts, hidden: Hidden) -> frozenset[str]:
    """The names of the slots that are secret, by the code or by configuration."""
    secret = facts.timeline.secret
    if not hidden.names or facts.plan is None:
        return secret
    return secret | {name for name in _slot_names(facts) if hidden.hides(name)}


def _slot_names(facts: Facts) -> Iterator[str]:
    if facts.plan is not None:
        yield from facts.plan.slots
    for node in facts.nodes:
        yield from (write.slot.name for write in node.step.signature.writes)


def _sensitive_parts(facts: Facts, hidden: Hidden) -> Iterator[object]:
    if facts.plan is None or not facts.inputs:
        return
    for read, value in zip(facts.plan.parts, facts.inputs[0], strict=False):
        if is_hidden_part(read, hidden):
            yield from under(read.name, value)


def is_hidden_part(read: PartRead, hidden: Hidden) -> bool:
    """Whether what a request brought for this part is secret."""
    return read.part.source == "cookie" or hidden.hides(read.name)
