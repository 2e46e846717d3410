"""Regression tests: a stored run as Python that a reader understands, one test for each of its steps.

Law: a test that is written is green with the code at hand: each is played here first, with the values that it will
have, and held against the record. What cannot be written down, or is not as recorded, is left out, and the file says
why. It never holds a secret: what was one is made up, and so is all that the code makes of it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from zerver.cli.sources import Group, NoSource, Source, Sources, flat, lines, quoted
from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import Continue, Insert, Pause, Replace
from zerver.core.effects import Cancelled, Failure, Outcome, Success, Unknown
from zerver.core.joins import Join
from zerver.core.plan import Plan, StepNode
from zerver.core.replan import steps_in
from zerver.core.signatures import PartRead, Read, SlotRead
from zerver.core.slots import Deadline
from zerver.runtime import Result
from zerver.testing import Played, play, script
from zerver.testing.answers import Script
from zerver.trace.cause import causes
from zerver.trace.comparing.sides import REQUEST, StepSide, sides
from zerver.trace.facts import Facts, StepFacts
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.veil import Veil, escaped

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


@attrs.frozen
class PinnedTest:
    """A test file. said: in a line, what is in it and what is not."""

    text: str
    said: str


class _LeftOut(Exception):
    """A step cannot be pinned; its words are for the file."""


def regression_test(plan: Plan, result: Result, hidden: Hidden = NOTHING_HIDDEN) -> PinnedTest:
    """A run as a test file. plan: of the code at hand. result: of a recording, whose secrets are placeholders. hidden:
    names that are secret by now, and may not have been when it was recorded.
    """
    return _Author(plan, result, hidden).write()


class _Author:
    def __init__(self, plan: Plan, result: Result, hidden: Hidden) -> None:
        secret = result.timeline.secret | plan.secret
        self.result = result
        self.timeline = attrs.evolve(result.timeline, secret=secret)
        self.facts = Facts(self.timeline)
        self.veil = Veil(self.facts, hidden)
        self.sides = sides(self.timeline, hidden)
        self.nodes = {node.name: node for node in steps_in(plan.line)}
        self.sources = Sources(self.veil.text)
        self.sources.imports["zerver.testing"] = {"play"}

    def write(self) -> PinnedTest:
        written: list[str] = []
        left_out: list[str] = []
        for name, step in self.facts.steps.items():
            kept = {module: set(names) for module, names in self.sources.imports.items()}, set(self.sources.modules)
            try:
                written.append(self.test(name, step))
            except (_LeftOut, NoSource) as why:
                self.sources.imports, self.sources.modules = kept
                reason = str(why) if isinstance(why, _LeftOut) else f"it would take {why} to write it down"
                left_out.append(self.comment(f"{name} is left out: {reason}."))
        text = "\n".join([self.head(), *self.imports(), *(f"\n\n{one}" for one in written)]) + "\n"
        if left_out:
            text += "\n\n" + "\n".join(left_out) + "\n"
        more = f", {len(left_out)} left out" if left_out else ""
        return PinnedTest(text, f"{len(written)} {'step' if len(written) == 1 else 'steps'} pinned{more}")

    # -- the file --

    def head(self) -> str:
        timeline = self.timeline
        why = next(causes(self.facts, self.veil, None, None), "")
        said = f"Run {timeline.run_id} of flow {timeline.flow}, version {timeline.version}: {self.result.status}"
        lines_ = [
            f'"""{self.safe(said)}.',
            "",
            *([self.safe(why), ""] if why else []),
            "Written by `zerver replay --pytest`. What each step reads, and what its effects give, is as it was in",
            "that run; what it asks for and decides must stay the same. What was secret is made up.",
            '"""',
        ]
        return "\n".join(lines_) + "\n"

    def safe(self, text: str) -> str:
        return escaped(self.sources.text(text)).replace("\\", "/").replace('"""', "'''")

    def comment(self, text: str) -> str:
        return f"# {self.safe(text)}"

    def imports(self) -> Iterator[str]:
        yield from (f"import {module}" for module in sorted(self.sources.modules))
        if self.sources.modules:
            yield ""
        for module, names in sorted(self.sources.imports.items()):
            yield f"from {module} import {', '.join(sorted(names))}"

    # -- one step --

    def test(self, name: str, step: StepFacts) -> str:
        node = self.nodes.get(name)
        if node is None:
            raise _LeftOut("the flow has no such step, or it was inserted while the run was under way")
        final = self.final(name)
        called = self.import_step(node)
        arguments = list(self.arguments(node, step))
        answers = self.answers(step) if node.step.offload is None else {}
        played = self.play(node, arguments, answers)
        self.compare(played, final, step if node.step.offload is None else None)
        effects = [_entry(kind, listed) for kind, listed in answers.items()]
        if effects:
            self.sources.imports["zerver.testing"].add("script")
        items: list[Source] = [called, *arguments]
        if effects:
            items.append(Group("effects={", tuple(effects), "}"))
        function = re.sub(r"\W", "_", name)
        body = [
            f"def test_{function}() -> None:",
            lines(Group("play(", tuple(items), ")"), 4, "played = "),
            self.asked(played),
            *self.decided(played),
        ]
        return "\n".join(body)

    def final(self, name: str) -> t.Record:
        """The record that says how the step decided; of one that parked, that it did."""
        for record in self.timeline.records:
            own = record[0] in (t.STEP, t.DEFECT, t.FAULT, t.PARKED) and isinstance(record[2], StepNode)
            if own and record[2].name == name:
                return record
        raise _LeftOut("it came to no decision in that run")

    def import_step(self, node: StepNode) -> str:
        module = sys.modules.get(node.step.function.__module__)
        for name, value in vars(module).items() if module is not None else ():
            if value is node.step and name.isidentifier():
                self.sources.imports.setdefault(module.__name__ if module else "", set()).add(name)
                return name
        raise _LeftOut("its step stands at the top of no module, and cannot be imported")

    def arguments(self, node: StepNode, step: StepFacts) -> Iterator[Source]:
        parameters = inspect.signature(node.step.function).parameters
        for read in node.step.signature.reads:
            source = self.sources.of(self.value(read, node.name, step))
            keyed = parameters[read.param].kind is inspect.Parameter.KEYWORD_ONLY
            yield Group(f"{read.param}=", (source,), "") if keyed else source

    def value(self, read: Read, name: str, step: StepFacts) -> Any:
        side, request = self.sides.get(name), self.sides.get(REQUEST)
        if isinstance(read, SlotRead):
            return _raw(side, read.slot.name)
        if isinstance(read, PartRead):
            return _raw(request, f"{read.part.source} {read.name}")
        deadline_ns = self.facts.inputs[2] if self.facts.inputs else None
        began = step.began or 0
        return Deadline(float("inf") if deadline_ns is None else max(0.0, (deadline_ns - began) / 1e9))

    def answers(self, step: StepFacts) -> dict[str, list[Source]]:
        """What the effects gave, by kind, in the order in which `play` asks."""
        found: dict[str, list[Source]] = {}
        outcomes = {(c.call.step, c.call.ordinal): c.outcome for c in self.facts.calls.values()}
        for call in step.calls:
            for leaf, outcome in _leaves(call.call, outcomes):
                found.setdefault(leaf.effect.kind.name, []).append(self.answer(outcome))
        return found

    def answer(self, outcome: Outcome[Any]) -> Source:
        if isinstance(outcome, Success) and not _means_more(outcome.value):
            return self.sources.of(outcome.value)
        return self.sources.of(outcome)

    # -- playing it --

    def play(self, node: StepNode, arguments: list[Source], answers: Mapping[str, list[Source]]) -> Played[Any]:
        known: dict[str, Any] = {module: sys.modules[module] for module in self.sources.modules}
        for module, names in self.sources.imports.items():
            known |= {name: getattr(sys.modules[module], name) for name in names}
        keyed: dict[str, Any] = {}
        plain: list[Any] = []
        for source in arguments:
            if isinstance(source, Group) and source.opening.endswith("=") and not source.closing:
                keyed[source.opening[:-1]] = _evaluated(flat(source.items[0]), known)
            else:
                plain.append(_evaluated(flat(source), known))
        effects = {kind: script([_evaluated(flat(one), known) for one in listed]) for kind, listed in answers.items()}
        try:
            return play(node.step, *plain, effects=effects, **keyed)
        except (Exception, AssertionError) as error:
            first = str(error).partition("\n")[0]
            raise _LeftOut(f"played with what was recorded, it does not come to its end ({first})") from None

    def compare(self, played: Played[Any], final: t.Record, step: StepFacts | None) -> None:
        """Raise _LeftOut when the play is not what was recorded."""
        kind, _, _, detail = final
        if kind in (t.DEFECT, t.FAULT):
            recorded, now = self.clean(repr(detail[1])), self.clean(repr(played.error))
        else:
            recorded = self.clean(repr(detail if kind == t.PARKED else detail[1]))
            now = self.clean(repr(_answer(played))) if played.error is None else self.clean(repr(played.error))
            if kind == t.PARKED and isinstance(detail, Pause):
                recorded = _pause(detail)
                now = _pause(played.answer) if isinstance(_answer(played), Pause) else now
        if recorded != now:
            raise _LeftOut("the code at hand, or a secret that is made up, makes it decide otherwise than recorded")
        if step is not None:
            before = [self.clean(repr(call.call.effect)) for call in step.calls]
            asked = [self.clean(repr(effect)) for effect in _roots(played)]
            if kind == t.PARKED:
                before = before[: len(asked)]
            if before != asked:
                raise _LeftOut("the code at hand, or a secret that is made up, makes it ask for other effects")

    def clean(self, text: str) -> str:
        return _ADDRESS.sub("", self.sources.text(text))

    # -- what is asserted --

    def asked(self, played: Played[Any]) -> str:
        shown = [repr(effect) for effect in played.asked]
        if any(_ADDRESS.search(one) for one in shown):
            kinds = Group("(", tuple(quoted(kind) for kind in played.kinds), ",)" if len(played.kinds) == 1 else ")")
            return lines(kinds, 4, "assert played.kinds == ")
        if not shown:
            return "    assert played.asked == ()"
        return lines(
            Group("[", tuple(map(quoted, shown)), "]"), 4, "assert [repr(effect) for effect in played.asked] == "
        )

    def decided(self, played: Played[Any]) -> Iterator[str]:
        if played.error is not None:
            yield lines(quoted(repr(played.error)), 4, "assert repr(played.error) == ")
            return
        answer = played.answer
        if isinstance(answer, Insert | Replace | Pause):
            yield f"    assert isinstance(played.answer, {self.sources.name(type(answer))})"
            if isinstance(answer, Pause):
                yield f"    assert (played.answer.signal, played.answer.expires) == {(answer.signal, answer.expires)!r}"
            return
        if answer is None:
            yield "    assert played.answer is None"
            return
        try:
            yield lines(self.sources.of(answer), 4, "assert played.answer == ")
        except NoSource:
            shown = repr(answer)
            if _ADDRESS.search(shown):
                yield f"    assert type(played.answer).__name__ == {quoted(type(answer).__name__)}"
            else:
                yield lines(quoted(shown), 4, "assert repr(played.answer) == ")


def _leaves(call: Call, outcomes: Mapping[tuple[str, str], Outcome[Any] | None]) -> Iterator[tuple[Call, Outcome[Any]]]:
    """The effects that are performed for a call, with what they came to; what was cut lost its join."""
    effect = call.effect
    outcome = outcomes.get((call.step, call.ordinal))
    if isinstance(effect, Join):
        if effect.rule.name == "hedge":
            yield call.member(call.run_id, 0), outcome or Cancelled("it was cut")
        else:
            for number in range(len(effect.members)):
                yield from _leaves(call.member(call.run_id, number), outcomes)
        return
    yield call, outcome or Cancelled("the join was decided")


def _means_more(value: Any) -> bool:
    """Whether an answer kit would take the value for something else than a value."""
    return isinstance(value, Success | Failure | Unknown | Cancelled | Exception | Script) or callable(value)


def _roots(played: Played[Any]) -> Iterator[Any]:
    """What the step itself asked for: members of a join follow it."""
    skip = 0
    for effect in played.asked:
        if skip:
            skip -= 1
        else:
            yield effect
        if isinstance(effect, Join):
            skip += len(effect.members)


def _entry(kind: str, listed: list[Source]) -> Source:
    """`"payments.charge": script([…])`."""
    return Group(f"{quoted(kind)}: script([", tuple(listed), "])")


def _raw(side: StepSide | None, name: str) -> Any:
    shown = None if side is None else side.reads.get(name)
    return None if shown is None else shown.raw


def _answer(played: Played[Any]) -> Any:
    """The answer as records have it: what is written, not the decision that says so."""
    answer = played.answer
    return answer.value if isinstance(answer, Continue | Insert | Replace) else answer


def _pause(pause: Pause) -> str:
    return f"waits for {pause.signal!r}, {pause.expires!r}"


def _evaluated(source: str, known: Mapping[str, Any]) -> Any:
    """What a source of ours evaluates to, as the test will: literals, and classes of the app."""
    return eval(source, {"__builtins__": {"set": set, "frozenset": frozenset, "float": float}}, dict(known))
