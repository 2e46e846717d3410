"""The veil of a job: what must not be shown of its body, its result, and the texts that its runs have left.

Law: as with slots. What stands under a hidden name, or under that of a secret slot, is masked, and so is every text
that contains it. A flow may make further secrets of what it was given: they are known from a job's runs, and while
these are not there to be asked, nothing of such a job is shown that could hold one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec

from zerver.core.plan import Plan
from zerver.jobs.port import Job
from zerver.runtime import Result
from zerver.trace.facts import Facts
from zerver.trace.hidden import Hidden, Secrets
from zerver.trace.naming import Namer
from zerver.trace.plain import plain
from zerver.trace.veil import MASK, Veil, escaped

Document: TypeAlias = dict[str, Any]

_MOST_TEXT: Final = 2000  # characters of a value that is shown as text


class JobVeil:
    """What must not be shown of one job. plan: of its flow, None when that is not here. runs: of the job, as far as
    they are known and `whole` says that they are all that its texts come from.
    """

    def __init__(
        self, job: Job, plan: Plan | None, hidden: Hidden, runs: Sequence[Result] = (), *, whole: bool = False
    ) -> None:
        self._hidden = hidden
        self._error = job.error
        self._named = frozenset() if plan is None else _secret(plan, hidden)
        facts = [Facts(run.timeline) for run in runs]
        veils = [Veil(one, hidden) for one in facts]
        told = whole and all(_is_told(one, veil) for one, veil in zip(facts, veils, strict=True))
        self.blind = not told and needs_runs(plan, hidden)
        body = _document(job.body)
        named = Namer(hidden)
        named.search([body, _document(job.result)])
        found = [*named.found, *(value for veil in veils for value in veil.values)]
        if isinstance(body, dict):
            found += [body[name] for name in self._named if name in body]
        everything = named.blind or any(veil.secrets.everything for veil in veils)
        self._secrets = Secrets(found, everything=everything)

    def text(self, text: str) -> str:
        """A text that a run may have left."""
        return MASK if self.blind and text else escaped(self._secrets.text(text))

    def said(self, text: str) -> str:
        """A text of ours, that may repeat the job's error."""
        if self.blind and self._error:
            text = text.replace(self._error, MASK)
        return escaped(self._secrets.text(text))

    def value(self, written: str | None, *, of_caller: bool = False) -> Document | None:
        """A body or a result as JSON and as text. of_caller: its members are slots, by their names."""
        if written is None:
            return None
        if self.blind:
            return {"value": None, "shown": MASK}
        held = _document(written)
        if of_caller and isinstance(held, dict):
            held = {name: MASK if name in self._named else value for name, value in held.items()}
        shown = plain(held, self._secrets.text, hidden=self._hidden)
        line = escaped(msgspec.json.encode(shown).decode())
        return {"value": shown, "shown": line if len(line) <= _MOST_TEXT else f"{line[:_MOST_TEXT]}…"}


def needs_runs(plan: Plan | None, hidden: Hidden) -> bool:
    """Whether the flow makes secrets that no body names; of a flow that is not here nobody knows."""
    return plan is None or bool(_secret(plan, hidden) - {slot.name for slot in plan.takes})


def _secret(plan: Plan, hidden: Hidden) -> frozenset[str]:
    return plan.secret | {name for name in plan.slots if hidden.hides(name)}


def _is_told(facts: Facts, veil: Veil) -> bool:
    """Whether the run has ended, and its records know every secret that a step of it has touched."""
    return facts.over and not any(veil.hides(name) for name in facts.steps)


def _document(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):  # whoever wrote it was not us: it is a text
        return text
