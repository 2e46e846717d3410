"""Absent: the writes of a run that did not happen, and why.

Law: every write that the flow's steps could have asked for is accounted for, once: it has happened, or there is a line
that says why not. What nobody knows is never said not to have happened.

Which writes there could have been is read from the code (`zerver.core.discover`) and from what was asked for; an effect
that a step picks dynamically, does not declare, and did not ask for is known to neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core.decisions import Done, Fail
from zerver.core.effects import Cancelled, Effect, Failure, Unknown
from zerver.core.joins import Join
from zerver.core.plan import BranchNode, Line, Plan, StepNode
from zerver.core.replan import lines_of, steps_in
from zerver.core.tickets import Refusal
from zerver.trace import describe
from zerver.trace.facts import CallFacts, Facts, StepFacts
from zerver.trace.veil import Veil

Why: TypeAlias = Literal[
    "nothing ran", "not reached", "not asked", "failed", "cut", "under way", "undone", "unresolved"
]


@attrs.frozen
class Absence:
    """One write that is not there. why: in a word; text: in a sentence, veiled.

    step: its name in the plan. kind: of the effect, as `payments.charge`.
    """

    step: str
    kind: str
    why: Why
    text: str

    def __str__(self) -> str:
        """`no committed effect in payment.charge (payments.charge): the step was not reached, …`."""
        return f"no committed effect in {self.step} ({self.kind}): {self.text}"


def absences(facts: Facts, veil: Veil, plan: Plan | None, open_end: str = "") -> tuple[Absence, ...]:
    """What did not happen, in the order of the plan.

    plan: that of the code, since a recorded one need not say what its steps could ask for. open_end: why nobody knows
    how the run goes on, if that is so.
    """
    return tuple(_Absences(facts, veil, plan or facts.plan, open_end).all())


class _Absences:
    def __init__(self, facts: Facts, veil: Veil, plan: Plan | None, open_end: str) -> None:
        self.facts = facts
        self.veil = veil
        self.plan = plan
        self.open_end = open_end
        self.branches = {r[2].name: r[3] for r in facts.timeline.records if r[0] == t.BRANCH}
        self.replaced = next((r[2].name for r in facts.timeline.records if r[0] == t.PLAN and r[3][0] == "replace"), "")

    def all(self) -> Iterator[Absence]:
        skipped = dict(self._skipped(self.plan.line)) if self.plan is not None else {}
        nodes: dict[str, StepNode | None] = {}
        if self.plan is not None:
            nodes |= {node.name: node for node in steps_in(self.plan.line)}
        for step in self.facts.steps.values():
            nodes.setdefault(step.name, step.node)  # of an inserted step that was cut, no record has the node
        for name, node in nodes.items():
            facts = self.facts.steps.get(name)
            asked = [] if facts is None else [call for call in (*facts.calls, *facts.inner) if _is_write(call)]
            for call in asked:
                yield from self._of_call(call)
            if node is None:
                continue
            if facts is not None and facts.began is not None:
                yield from self._of_rest(node, facts, set(_kinds(call.call.effect for call in asked)))
                continue
            for kind in _could_write(node):
                yield Absence(name, kind, *self._unreached(name, skipped))

    # -- what was asked for --

    def _of_call(self, call: CallFacts) -> Iterator[Absence]:
        write, kind = self.facts.writes.get(call.call), call.call.effect.kind.name
        name = call.call.step
        if write is not None and write.unresolved:
            yield Absence(name, kind, "unresolved", "nobody can say whether it happened, or whether its undo did")
        elif write is not None and write.undone:
            yield Absence(name, kind, "undone", "it happened, and was undone")
        elif write is not None and write.happened:
            return
        elif write is not None and write.happened is False:
            yield Absence(name, kind, "failed", "the other side was asked, and it never happened")
        elif isinstance(call.outcome, Failure):
            said = describe.reason(call.outcome.error, self.veil, name)
            yield Absence(name, kind, "failed", f"it was tried and failed: {said}")
        elif write is not None or isinstance(call.outcome, Unknown):
            yield Absence(name, kind, "unresolved", "it may or may not have happened")
        elif isinstance(call.outcome, Cancelled) or call.ended is not None:
            yield Absence(name, kind, "cut", "it was cut before it could have happened")
        elif self.open_end:
            yield Absence(name, kind, "under way", "it was asked for, and nobody knows what it would have come to")
        elif self.facts.over:
            yield Absence(name, kind, "cut", "it was asked for in the moment the run ended, and never begun")
        else:
            yield Absence(name, kind, "under way", "it has not come to an end yet")

    def _of_rest(self, node: StepNode, step: StepFacts, asked: set[str]) -> Iterator[Absence]:
        for kind in _could_write(node):
            if kind in asked:
                continue
            if step.ended is None:
                waits = f"it waits for {step.signal!r}" if step.parked_at is not None else "the step is under way"
                yield Absence(step.name, kind, "under way", self.open_end or f"{waits}, and has not asked for it yet")
            elif step.cut:
                yield Absence(step.name, kind, "cut", "the step was cut before it asked for it")
            elif step.ok:
                yield Absence(step.name, kind, "not asked", "the step ran and did not ask for it")
            else:
                yield Absence(step.name, kind, "not asked", f"the step ended the run before: {self._answer(step.name)}")

    # -- what was not reached --

    def _unreached(self, name: str, skipped: dict[str, str]) -> tuple[Why, str]:
        facts = self.facts
        ending = facts.ending
        if isinstance(getattr(ending, "cause", None), Refusal):
            return "nothing ran", "the run was refused by admission, and nothing of it ran"
        if facts.plan is None and facts.over:
            return "nothing ran", "the run ended before its first step"
        if name in skipped:
            return "not reached", skipped[name]
        if self.open_end:
            return "not reached", self.open_end
        if self.replaced:
            return "not reached", f"{self.replaced} replaced the rest of the plan"
        if ending is None:
            return "not reached", "the run has not come to it yet"
        by = facts.ended_by
        if ending.status == "deadline":
            return "not reached", "the deadline came first"
        if ending.status == "cancelled":
            return "not reached", f"the run was cancelled before: {self.veil.text(ending.reason)}"
        return "not reached", f"{by} ended the run before: {self._answer(by)}" if by else "the run ended before"

    def _skipped(self, line: Line) -> Iterator[tuple[str, str]]:
        """The steps on the sides that branches did not take."""
        for node in line:
            if isinstance(node, BranchNode) and node.name in self.branches:
                answer = self.branches[node.name]
                said = f"branch {node.name} said {'yes' if answer else 'no'}"
                yield from ((step.name, said) for step in steps_in(node.otherwise if answer else node.then))
            for inner in lines_of(node):
                yield from self._skipped(inner)

    def _answer(self, name: str) -> str:
        """What a step said that ended the run."""
        for kind, _, subject, detail in self.facts.timeline.records:
            if kind not in (t.STEP, t.DEFECT, t.FAULT) or subject.name != name:
                continue
            answer: Any = detail[1]
            if isinstance(answer, Fail):
                return describe.fail(answer, self.veil, name)
            if isinstance(answer, BaseException):
                return describe.message(answer, self.veil, name)
            return "Done" if isinstance(answer, Done) else "its answer"
        return "it was cut"


def _is_write(call: CallFacts) -> bool:
    return call.call.effect.kind.access == "write" and not isinstance(call.call.effect, Join)


def _kinds(effects: Iterable[Effect[Any]]) -> Iterator[str]:
    """The kinds of these effects, and of those they are made of, as a transaction is of statements."""
    for effect in effects:
        yield effect.kind.name
        yield from _kinds(arg for arg in effect.args if isinstance(arg, Effect))


def _could_write(node: StepNode) -> Iterator[str]:
    """The kinds of write that the code of a step can ask for, those of its rollback left out."""
    found: dict[str, None] = {}
    for mention in node.step.mentions:
        if mention.kind.access == "write" and not mention.undoes:
            found[mention.kind.name] = None
    yield from found
