"""The veil: keeps secrets, and bytes that terminals obey, out of text.

Law: what a secret slot held, a cookie or an Authorization header, is shown nowhere: whatever contains it is masked
before it is cut, so that no half of it is left. A step whose secret no record knows (it failed before it wrote it)
shows nothing of what it asked for. Over-masking is a nuisance, under-masking is a leak: in doubt, mask.
"""

from __future__ import annotations

from collections.abc import Iterator

from zerver.core.plan import StepNode
from zerver.core.signatures import PartRead
from zerver.trace.facts import Facts
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden, Secrets, under
from zerver.trace.hidden import escaped as escaped
from zerver.trace.inert import MASK as MASK


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
        self.values = found
        self.secrets = Secrets(found)

    def text(self, text: str) -> str:
        """The text with every secret in it masked."""
        return self.secrets.text(text)

    def hides(self, step: str) -> bool:
        """Whether nothing may be shown of what this step asked for or failed with."""
        return step in self._hidden

    def _written(self, facts: Facts, secret: frozenset[str]) -> Iterator[object]:
        """The values of secret slots: written by steps, or brought by the caller."""
        for record in facts.timeline.records:
            if record[0] == "step" and isinstance(record[2], StepNode):
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
