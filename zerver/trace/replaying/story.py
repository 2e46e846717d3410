"""The story of a run: what each step read, decided and wrote, why it ended so, and what did not happen.

Law: pure, and offline: the code's own plan is run once more against the records, and nothing is performed. What is told
comes from records, be they the run's own or those that a rerun with changes gives; whatever is text here is veiled.
Where the code departs from the records, both sides are told; where the records have no answer, the story ends, and
says so.

`retell` makes a Story. `zerver.trace.replaying.telling` makes text of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.following import Divergence
from zerver.core.plan import Plan, StepNode
from zerver.core.replan import steps_in
from zerver.errors import InvalidData
from zerver.runtime.result import Result
from zerver.trace import describe
from zerver.trace.cause import causes
from zerver.trace.comparing.sides import REQUEST, ROLLBACK, StepSide, sides
from zerver.trace.facts import Facts, WriteFacts
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.replaying.absent import Absence, absences
from zerver.trace.replaying.changes import Changes, input_name, pinned, read_changes, writers
from zerver.trace.replaying.departure import Departure, departure_of, place_of
from zerver.trace.replaying.rerun import Rerun, rerun
from zerver.trace.veil import MASK, Veil

State: TypeAlias = Literal["done", "ended the run", "cut", "waits", "under way"]


@attrs.frozen
class Told:
    """A value as it may be seen. changed: it is not the recorded one, because somebody said so."""

    name: str
    text: str
    changed: bool = False


@attrs.frozen
class ToldEffect:
    """One effect. name: its place, as "1", or "1.0" in a join. came_to: its outcome, "" if it has none. write: what
    is known of it as a write, as "committed"; "" for a read, and where nothing is known.
    """

    name: str
    kind: str
    asked: str
    came_to: str
    attempts: int
    write: str


@attrs.frozen
class ToldStep:
    """One step. place: where its function begins. decided: in words. effects: those of joins follow their join."""

    name: str
    place: str
    state: State
    reads: tuple[Told, ...]
    effects: tuple[ToldEffect, ...]
    decided: str
    wrote: tuple[Told, ...]


@attrs.frozen
class Deed:
    """One write that happened, or may have. state: "done", "undone", "kept", "unresolved" or "to undo" (the rollback
    would look at it, and the records do not say what came of that).
    """

    step: str
    kind: str
    text: str
    state: Literal["done", "undone", "kept", "unresolved", "to undo"]


@attrs.frozen(eq=False)
class Story:
    """What `retell` tells.

    recorded: the run as it was. result: the run as it is told, which is the same run unless something was changed;
    whatever takes a Result (a view, a diff, a timeline as text) takes this one. replayed: whether code was run.
    changed: names that got another value.
    given: what the run was given. departure: the first thing that is not as recorded. open_end: why the story ends
    before the run does; "" if it does not. ended: "done", "failed" …, or "" where nobody knows. causes: why, the most
    important first. deeds: what was done, and undone. absent: which writes did not happen. notes: what a reader should
    know before he believes it.
    """

    recorded: Result
    result: Result
    replayed: bool
    until: str
    changed: tuple[str, ...]
    given: tuple[Told, ...]
    steps: tuple[ToldStep, ...]
    slots: tuple[Told, ...]
    departure: Departure | None
    open_end: str
    ended: str
    causes: tuple[str, ...]
    deeds: tuple[Deed, ...]
    absent: tuple[Absence, ...]
    notes: tuple[str, ...]

    @property
    def faithful(self) -> bool:
        """Whether the code did again what was recorded, as far as it is told."""
        return self.departure is None

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready, and veiled."""
        timeline = self.recorded.timeline
        departure = None if self.departure is None else {**attrs.asdict(self.departure), "text": str(self.departure)}
        return {
            "run": timeline.run_id,
            "label": timeline.label,
            "flow": timeline.flow,
            "version": timeline.version,
            "recorded_status": self.recorded.status if timeline.ending is not None else "running",
            "status": self.ended or None,
            "replayed": self.replayed,
            "faithful": self.faithful,
            "changed": list(self.changed),
            "until": self.until or None,
            "given": [attrs.asdict(told) for told in self.given],
            "steps": [attrs.asdict(step) for step in self.steps],
            "slots": [attrs.asdict(told) for told in self.slots],
            "divergence": departure,
            "open_end": self.open_end or None,
            "causes": list(self.causes),
            "done": [attrs.asdict(deed) for deed in self.deeds],
            "not_done": [{**attrs.asdict(absence), "line": str(absence)} for absence in self.absent],
            "notes": list(self.notes),
        }


def retell(
    plan: Plan | None,
    result: Result,
    *,
    changes: Mapping[str, object] | None = None,
    until: str | None = None,
    answers: Mapping[str, object] | None = None,
    version: str | None = None,
    hidden: Hidden = NOTHING_HIDDEN,
) -> Story:
    """Run a recorded run once more, offline, and tell it.

    plan: of the code at hand, compiled (`Route.plan()`, `runtime.plan(flow)`), behind the same before-chain as the run;
    None when there is no code, and then the records are told as they are. result: a live one, one of the ring, or
    `decode_run(recording, vocabulary=…)`; a run under way is told as far as it has come.
    changes: other values, from a slot's name (`cart`) or an input's (`header.authorization`, `body`) to JSON as bytes,
    decoded into the declared type, or to a value that is used as it is. until: tell no further than this step.
    answers: what calls give that the records have no answer to, from a name like "charge.1" to a value.
    version: of the code's flow, to be told when it is not the recorded one. hidden: names that are masked beside what
    the code calls secret; a stored run was masked when it was written.

    It performs nothing, takes as long as the steps' own code, and is safe to call for a run of anybody: what steps ask
    for is answered from the records or not at all. `story.to_plain()` is JSON-ready and veiled, `story.result` the run
    as it would have been, `telling.format_story(story)` the text that `zerver replay` prints.

    Raises InvalidData for a change that names nothing, or has the wrong type; for an unknown `until`; and when the code
    takes an input that was not recorded.
    """
    began = any(record[0] == t.INPUT for record in result.timeline.records)
    if plan is None or not began:
        if changes:
            why = "nothing ran" if not began else "there is no code to run"
            raise InvalidData([(name, f"cannot be changed: {why}") for name in changes])
        told = Rerun(tuple(result.timeline.records), None)
        return _Teller(plan, result, Changes(), told, until or "", version, hidden).tell()
    read = read_changes(plan, result.timeline, changes or {})
    told = rerun(pinned(plan, read.pins), result.timeline, read.inputs, answers, writers(plan, read.pins))
    if until is not None:
        _check_step(plan, told, until)
    teller = _Teller(plan, result, read, told, until or "", version, hidden)
    teller.changed = tuple(changes or ())
    return teller.tell()


def _check_step(plan: Plan, told: Rerun, until: str) -> None:
    known = dict.fromkeys(node.name for node in steps_in(plan.line))
    known |= dict.fromkeys(r[2].name for r in told.records if isinstance(r[2], StepNode))
    if until not in known:
        raise InvalidData([("until", f"there is no step {until!r}; the steps are: {', '.join(known)}")])


class _Teller:
    """Makes one story."""

    def __init__(
        self,
        plan: Plan | None,
        recorded: Result,
        changes: Changes,
        told: Rerun,
        until: str,
        version: str | None,
        hidden: Hidden,
    ) -> None:
        self.plan = plan
        self.recorded = recorded
        self.changes = changes
        self.rerun = told
        self.until = until
        self.version = version
        self.hidden = hidden
        self.changed: tuple[str, ...] = ()
        records = _up_to(told.records, until)
        self.stopped = len(records) < len(told.records)
        secret = recorded.timeline.secret
        if plan is not None:
            secret |= plan.secret | {name for name in plan.slots if hidden.hides(name)}
        self.timeline = attrs.evolve(recorded.timeline, records=list(records), secret=secret)
        self.facts = Facts(self.timeline)
        self.veil = Veil(self.facts, hidden)
        # What was a secret of the recorded run is one here too, even if another value stands in its place now.
        self.sides = sides(self.timeline, hidden)
        self.old = Veil(Facts(attrs.evolve(recorded.timeline, secret=secret)), hidden)

    def tell(self) -> Story:
        open_end = self.open_end()
        found = self.rerun.divergence
        if found is not None and self.stopped and found.index >= len(self.timeline.records):
            found = None
        departure = None if found is None else self.departure(found)
        return Story(
            recorded=self.recorded,
            result=self.result(),
            replayed=self.plan is not None,
            until=self.until,
            changed=self.changed,
            given=tuple(self.told(name, text) for name, text in self.reads(self.sides.get(REQUEST))),
            steps=tuple(self.step(name, side) for name, side in self.sides.items() if self.is_step(name)),
            slots=tuple(self.slots()),
            departure=departure,
            open_end=open_end,
            ended="" if self.facts.ending is None or not self.facts.over else self.facts.ending.status,
            causes=tuple(map(self.say, self.causes(open_end))),
            deeds=tuple(self.deeds()),
            absent=tuple(self.absent(open_end)),
            notes=tuple(map(self.say, self.notes(departure))),
        )

    def say(self, text: str) -> str:
        return self.old.text(text)

    def result(self) -> Result:
        if self.plan is None and not self.stopped:
            return attrs.evolve(self.recorded, timeline=self.timeline)
        entries = tuple(r[2] for r in self.timeline.records if r[0] == t.UNRESOLVED)
        ending = self.facts.ending or t.Ending("cancelled", reason=self.open_end() or "it is still under way")
        return Result(self.timeline, ending, entries, self.facts.over)

    # -- steps --

    def is_step(self, name: str) -> bool:
        return name not in (REQUEST, ROLLBACK) and name in self.facts.steps

    def step(self, name: str, side: StepSide) -> ToldStep:
        facts = self.facts.step(name)
        parts = () if facts.node is None else facts.node.step.signature.parts
        given = dict(self.reads(self.sides.get(REQUEST)))
        reads = [(input_name(part), given[input_name(part)]) for part in parts if input_name(part) in given]
        reads += self.reads(side)
        state: State = (
            "cut" if facts.cut
            else "waits" if facts.ended is None and facts.parked_at is not None
            else "under way" if facts.ended is None
            else "done" if facts.ok
            else "ended the run"
        )  # fmt: skip
        return ToldStep(
            name=name,
            place="" if facts.node is None else place_of(facts.node),
            state=state,
            reads=tuple(self.told(*pair) for pair in reads),
            effects=tuple(self.effect(name, side, number) for number in side.effects),
            decided=self.say(side.decision.text),
            wrote=tuple(self.told(slot, shown.text) for slot, shown in side.writes.items()),
        )

    def reads(self, side: StepSide | None) -> Iterator[tuple[str, str]]:
        for name, shown in (side.reads if side is not None else {}).items():
            source, _, rest = name.partition(" ")
            yield "body" if source == "body" and rest else name.replace(" ", "."), shown.text

    def told(self, name: str, text: str) -> Told:
        return Told(name, self.say(text), name in self.changed)

    def effect(self, step: str, side: StepSide, number: str) -> ToldEffect:
        asked = side.effects[number]
        facts = next((c for c in self.facts.calls.values() if c.call.step == step and c.call.ordinal == number), None)
        write = None if facts is None else self.write_of(facts.call)
        come = "" if asked.way == "under way" and self.facts.over else self.say(asked.outcome.text)
        return ToldEffect(number, asked.kind, self.say(asked.asked.text), come, asked.attempts, write or "")

    def write_of(self, call: Call) -> str:
        found = self.facts.writes.get(call)
        return "" if found is None else _state_of(found, frozenset(), self.facts.over)

    def slots(self) -> Iterator[Told]:
        """What the slots hold in the end, in the order in which they were written."""
        taken = {slot.name for slot in self.plan.takes} if self.plan is not None else set[str]()
        request = self.sides.get(REQUEST)
        for name, shown in (request.reads if request is not None else {}).items():
            if name in taken:
                yield self.told(name, shown.text)
        for name, side in self.sides.items():
            if self.is_step(name):
                for slot, shown in side.writes.items():
                    yield self.told(slot, shown.text)

    # -- why, and what became of it --

    def causes(self, open_end: str) -> Iterator[str]:
        if self.stopped:
            return
        # The calls of a rerun are its own, and it has told of those that are unresolved.
        unresolved = self.recorded.unresolved if self.plan is None else None
        for line in causes(self.facts, self.veil, unresolved, None):
            if not (open_end and line.startswith("UNDER WAY")):
                yield line

    def open_end(self) -> str:
        """Why nobody knows how it goes on."""
        left = self.rerun
        if self.stopped:
            return f"the story was to end after {self.until}"
        if left.calls:
            calls = [f"{describe.effect(c.effect, self.veil, c.step)} ({c.step}.{c.ordinal})" for c in left.calls]
            return self.say(f"the recorded world has no answer to {', '.join(calls)}")
        if left.signals:
            return self.say(f"the recorded world has no signal {', '.join(map(repr, left.signals))}")
        if left.task is not None:
            call, verb = left.task.entry.call, left.task.verb
            what = "undoing" if verb == "undo" else "whether there was"
            asked = describe.effect(left.task.effect, self.veil, call.step)
            return self.say(f"the recorded world has no answer to {asked}, for {what} {call.step}.{call.ordinal}")
        return ""

    def deeds(self) -> Iterator[Deed]:
        open_calls = frozenset(id(entry.call) for entry in self.rerun.to_undo)
        for call, write in self.facts.writes.items():
            if write.happened is False:
                continue
            state = _state_of(write, open_calls, self.facts.over)
            text = describe.effect(call.effect, self.veil, call.step)
            text += "" if write.touched else ", which changed no row"
            yield Deed(call.step, call.effect.kind.name, self.say(text), state)

    def absent(self, open_end: str) -> Iterator[Absence]:
        if self.stopped:
            return  # whoever asks for a part is not told that the rest is missing
        short = "the story ends before that" if open_end else ""
        for absence in absences(self.facts, self.veil, self.plan, short):
            yield attrs.evolve(absence, text=self.say(absence.text))

    # -- what is not as recorded --

    def departure(self, found: Divergence) -> Departure:
        made = departure_of(found, self.recorded.timeline, self.old, self.timeline, self.veil)
        return attrs.evolve(
            made, recorded=self.say(made.recorded), replayed=self.say(made.replayed), at=self.say(made.at)
        )

    def notes(self, departure: Departure | None) -> Iterator[str]:
        recorded = self.recorded.timeline
        if self.version is not None and self.version != recorded.version:
            yield f"recorded with version {recorded.version} of flow {recorded.flow}, replayed with {self.version}"
        if self.plan is None:
            yield "there is no code here: the record is told as it is, and nothing was run again"
        written = {slot for side in self.sides.values() for slot in side.writes}
        for name in self.changes.pins:
            if name not in written:
                yield f"{name} was given another value, but no step came to write it"
        for name in self.changed:
            if MASK in self.recorded_text(name):
                yield (
                    f"what {name} held was a secret, and is not recorded: what is asked for with another one is taken "
                    "for the same"
                )
        if departure is not None and not self.changed:
            yield from self.doubts(departure)

    def recorded_text(self, name: str) -> str:
        """What a slot or an input held in the record, as far as it can be seen; not veiled."""
        was = sides(self.recorded.timeline)
        for side in was.values():
            for held, shown in (*side.writes.items(), *side.reads.items()):
                source, _, rest = held.partition(" ")
                if name in (held, f"{source}.{rest}", source):
                    return repr(shown.raw)
        return ""

    def doubts(self, departure: Departure) -> Iterator[str]:
        """Reasons for a departure that are no change of the code."""
        again = rerun(self.plan, self.recorded.timeline) if self.plan is not None else self.rerun
        mine, other = self.rerun.divergence, again.divergence
        unstable = mine is not None and (other is None or str(mine) != str(other))
        same_code = any(r[0] == t.INPUT and r[2] is self.plan for r in self.recorded.timeline.records)
        if unstable or same_code:
            because = "two replays of it differ" if unstable else "its code is the very same"
            yield (
                f"{departure.step or 'a step'} is no function of what it reads ({because}): it looks at a clock, at "
                "chance or at something that changes. Ask for it: `await clock.now()`, `await random.uniform()`"
            )
        if departure.masked:
            yield (
                "what was secret is a placeholder in a stored run: the code may depart because it was given "
                f"{MASK}, and not because it has changed"
            )


def _state_of(write: WriteFacts, open_calls: frozenset[int], over: bool) -> Any:
    if write.undone:
        return "undone"
    if write.unresolved or (write.happened is None and over):
        return "unresolved"
    if id(write.call) in open_calls:
        return "to undo"
    return "done"


def _up_to(records: tuple[t.Record, ...], until: str) -> tuple[t.Record, ...]:
    """The records up to the last word of a step."""
    for index, (kind, _, subject, _) in enumerate(records):
        if until and kind in (t.STEP, t.DEFECT, t.FAULT) and subject.name == until:
            return records[: index + 1]
    return records
