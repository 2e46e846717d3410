"""Reading: a recording's body as a Result again.

Law: what comes out is what the readers of timelines count on, or nothing comes out: a subject is of the kind that its
record has, a time is a number, an outcome is an outcome. Whatever else stands there is a TraceError that names the
record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar, get_args

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import Done, Pause
from zerver.core.effects import Cancelled, Effect, Failure, IdempotencyKey, Outcome, Success, Unknown
from zerver.core.joins import Join
from zerver.core.overruns import Overrun
from zerver.core.plan import BlockNode, BranchNode, DagNode, ForkNode, Node, PivotNode, Plan, StepNode
from zerver.core.replan import steps_in
from zerver.core.saga import Entry, EntryState
from zerver.core.steps import Step
from zerver.core.tickets import Refusal
from zerver.core.timeline import Ending, Record, Status, Timeline
from zerver.errors import EffectError, TraceError
from zerver.runtime.result import Result
from zerver.trace.recording.revive import Decoder
from zerver.trace.recording.skeleton import bare_step, nodes_in, read_line, read_plan
from zerver.trace.recording.vocabulary import Vocabulary
from zerver.trace.recording.written import Body

T = TypeVar("T")

Tree: TypeAlias = Any

#: How many calls may stand inside one another: joins in joins, and questions about their members.
_DEEPEST: Final = 100

#: The largest time or number that a record may have.
_LARGEST: Final = 1 << 62

_NODES: Final = (StepNode, ForkNode, DagNode, BranchNode, PivotNode, BlockNode)


class RunReader:
    """Reads one run. where: what is being read, for errors."""

    def __init__(self, body: Body, plan: bytes, vocabulary: Vocabulary) -> None:
        self.body = body
        self.where = "the plan"
        self.plan: Plan | None = read_plan(plan) if plan else None
        self.nodes: list[Node] = []
        self.steps: dict[str, Step[..., Any]] = {}
        for line in (() if self.plan is None else self.plan.line, read_line(body.nodes)):
            self.nodes += nodes_in(line)
            self.steps.update((node.name, node.step) for node in steps_in(line))
        self.where = "values"
        self.values = Decoder(vocabulary, body.values, body.kinds, self.step_named)
        self.calls: list[Call] = []
        self.depths: list[int] = []
        for number, call in enumerate(body.calls):
            self.at(f"call {number}")
            self.calls.append(self.call(call))
        self.entries = [self.entry(number, entry) for number, entry in enumerate(body.entries)]
        self.endings = [self.ending(number, ending) for number, ending in enumerate(body.endings)]

    def result(self) -> Result:
        """The run."""
        body, timeline = self.body, self.timeline()
        self.at("the ending")
        unresolved = tuple(self.entries[number] for number in body.unresolved)
        return Result(timeline, self.endings[body.ending], unresolved, body.sealed)

    def timeline(self) -> Timeline:
        """Its records alone: of a run that has no ending yet."""
        body = self.body
        records: list[Record] = []
        at = body.began
        for number, record in enumerate(body.records):
            self.at(f"record {number}")
            read = self.record(record, at)
            at = read[1]
            records.append(read)
        return Timeline(
            body.run, body.flow, body.version, body.tenant, body.priority, records, frozenset(body.secret), body.label,
            body.parent,
        )  # fmt: skip

    def at(self, where: str) -> None:
        self.where = self.values.where = where

    def wrong(self) -> TraceError:
        return TraceError(f"{self.where}: not what belongs there")

    def step_named(self, name: str) -> Step[..., Any]:
        return self.steps.get(name) or bare_step(name)

    # -- what records are about --

    def call(self, tree: list[Any]) -> Call:
        step, ordinal, effect, around, *until = tree
        parent: Call | None = None
        deep = 0
        if around is not None:
            parent = self.calls[self.place(around)]
            deep = self.depths[around] + 1
        if deep > _DEEPEST or not isinstance(step, str) or not isinstance(ordinal, str):
            raise self.wrong()
        until_ns = self.number(until[0]) if until else None
        made = Call(self.body.run, step, ordinal, self.effect(effect, parent), parent, until_ns)
        self.depths.append(deep)
        return made

    def effect(self, tree: Tree, parent: Call | None) -> Effect[Any]:
        if isinstance(tree, int) and parent is not None and isinstance(parent.effect, Join):
            return parent.effect.members[self.place(tree)]
        found = self.values.node(tree)
        if not isinstance(found, Effect):
            raise self.wrong()
        return found

    def entry(self, number: int, tree: list[Any]) -> Entry:
        self.at(f"entry {number}")
        call, state, value, error, loser, asked = tree
        raised = self.values.node(error)
        if state not in get_args(EntryState) or not isinstance(raised, BaseException | None):
            raise self.wrong()
        made = Entry(self.calls[self.place(call)], state, self.values.node(value), None)
        made.error, made.loser, made.asked = raised, loser is True, asked is True
        return made

    def ending(self, number: int, tree: list[Any]) -> Ending:
        self.at(f"ending {number}")
        status, reason, cause, value = tree
        if status not in get_args(Status) or status == "parked" or not isinstance(reason, str):
            raise self.wrong()
        return Ending(status, self.values.node(value), self.values.node(cause), reason)

    def subject(self, kind: str, tree: Any) -> Any:
        if not isinstance(tree, str):
            raise self.wrong()
        first, number = tree[:1], tree[1:]
        if first == "":
            subject: Any = self.body.flow
        elif first == "=":
            subject = number
        elif first == "p":
            subject = self.plan
        else:
            lists: dict[str, list[Any]] = {"n": self.nodes, "c": self.calls, "e": self.entries}
            subject = lists[first][self.place(int(number[:12]))]
        wanted = _SUBJECTS.get(kind)
        if wanted is not None and not isinstance(subject, wanted):
            raise self.wrong()
        return subject

    # -- records --

    def record(self, tree: list[Any], before: int) -> Record:
        kind, ns, subject, *rest = tree
        at = before + self.number(ns)
        if not isinstance(kind, str) or len(kind) > 64 or abs(at) > _LARGEST:
            raise self.wrong()
        about = self.subject(kind, subject)
        detail = rest[0] if rest else None
        read = _READ.get(kind, RunReader.value)
        return kind, at, about, read(self, detail, at)

    def nothing(self, tree: Tree, at: int) -> None:
        if tree is not None:
            raise self.wrong()

    def value(self, tree: Tree, at: int) -> Any:
        return self.values.node(tree)

    def error(self, tree: Tree, at: int) -> EffectError | None:
        found = self.values.node(tree)
        if not isinstance(found, EffectError | None):
            raise self.wrong()
        return found

    def raised(self, tree: Tree, at: int) -> Exception | None:
        found = self.values.node(tree)
        if not isinstance(found, Exception | None):
            raise self.wrong()
        return found

    def refusal(self, tree: Tree, at: int) -> Refusal:
        return self._of(Refusal, tree)

    def overrun(self, tree: Tree, at: int) -> Overrun:
        return self._of(Overrun, tree)

    def pause(self, tree: Tree, at: int) -> Pause:
        return self._of(Pause, tree)

    def _of(self, known: type[T], tree: Tree) -> T:
        found = self.values.node(tree)
        if not isinstance(found, known):
            raise self.wrong()
        return found

    def text(self, tree: Tree, at: int) -> str:
        if not isinstance(tree, str):
            raise self.wrong()
        return tree

    def word(self, tree: Tree, at: int) -> str | None:
        return None if tree is None else self.text(tree, at)

    def count(self, tree: Tree, at: int) -> int:
        return self.number(tree)

    def flag(self, tree: Tree, at: int) -> bool:
        if not isinstance(tree, bool):
            raise self.wrong()
        return tree

    def input(self, tree: Tree, at: int) -> Any:
        parts, takes, deadline_ns, parallel = tree
        deadline = None if deadline_ns is None else self.number(deadline_ns)
        if not isinstance(parts, list) or not isinstance(takes, list):
            raise self.wrong()
        given = [self.values.node(part) for part in parts], [self.values.node(value) for value in takes]
        return (*given, deadline, None if parallel is None else self.number(parallel))

    def turn(self, tree: Tree, at: int) -> int:
        return at - self.number(tree)

    def step(self, tree: Tree, at: int) -> Any:
        took, answer, *done = tree
        value = self.values.node(answer)
        return at - self.number(took), Done(value) if done else value

    def defect(self, tree: Tree, at: int) -> Any:
        took, raised = tree
        error = self.values.node(raised)
        if not isinstance(error, Exception):
            raise self.wrong()
        return at - self.number(took), error

    def fault(self, tree: Tree, at: int) -> Any:
        began, error = self.defect(tree, at)
        if not isinstance(error, EffectError):
            raise self.wrong()
        return began, error

    def replanned(self, tree: Tree, at: int) -> Any:
        verb, names = tree
        if verb not in ("insert", "replace") or not all(isinstance(name, str) for name in names):
            raise self.wrong()
        return verb, list(names)

    def keyed(self, tree: Tree, at: int) -> Any:
        found, before = tree
        if found not in get_args(t.Keyed) or not isinstance(before, str):
            raise self.wrong()
        return found, before

    def job(self, tree: Tree, at: int) -> Any:
        queue, attempt, attempts, waited = tree
        return self.text(queue, at), self.number(attempt), self.number(attempts), self.number(waited)

    def failed(self, tree: Tree, at: int) -> Any:
        number, raised, doubt, wait, why = tree
        error = self.error(raised, at)
        if error is None or not isinstance(wait, int | float | None) or not 0 <= (wait or 0) < 1e12:
            raise self.wrong()
        return self.number(number), error, doubt is True, wait, self.text(why, at)

    def outcome(self, tree: Tree, at: int) -> Outcome[Any]:
        if "ok" in tree:
            return Success(self.values.node(tree["ok"]))
        if "cancelled" in tree:
            return Cancelled(self.text(tree["cancelled"], at))
        error = self.error(tree["unknown"] if "unknown" in tree else tree["no"], at)
        if error is None:
            raise self.wrong()
        return Unknown(error, IdempotencyKey(self.text(tree["key"], at))) if "unknown" in tree else Failure(error)

    def lost(self, tree: Tree, at: int) -> Any:
        return tuple(self.calls[self.place(number)] for number in tree)

    def end(self, tree: Tree, at: int) -> Ending:
        return self.endings[self.place(tree)]

    def verb(self, tree: Tree, at: int) -> str:
        if tree not in ("resolve", "undo"):
            raise self.wrong()
        return str(tree)

    def undone(self, tree: Tree, at: int) -> Any:
        verb, outcome = tree
        return self.verb(verb, at), self.outcome(outcome, at)

    # -- numbers --

    def number(self, tree: Any) -> int:
        if not isinstance(tree, int) or isinstance(tree, bool) or abs(tree) > _LARGEST:
            raise self.wrong()
        return tree

    def place(self, tree: Any) -> int:
        """A place in a list: never from its end."""
        number = self.number(tree)
        if number < 0:
            raise self.wrong()
        return number


_NODE: Final = frozenset(
    {t.BREATH, t.STEP, t.DEFECT, t.FAULT, t.BRANCH, t.PLAN, t.PIVOT, t.PARKED, t.SIGNALLED, t.EXPIRED}
)
_CALL: Final = frozenset({t.ASKED, t.ATTEMPT, t.FAILED, t.HEDGED, t.HELD, t.COMMITTED, t.DOUBTED, t.RESOLVED}) | {
    *(t.SETTLED, t.LATE, t.LOST, t.CUT)
}
_ENTRY: Final = frozenset({t.UNDO, t.UNDONE, t.GAVE_UP, t.UNRESOLVED})
_FLOW: Final = frozenset(
    {t.RECEIVED, t.ADMITTED, t.REFUSED, t.KEYED, t.JOB, t.READ, t.OVERRUN, t.ENDING, t.ENDED, t.ANSWERED}
)

_SUBJECTS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(_NODE, _NODES),
    **dict.fromkeys(_CALL, Call),
    **dict.fromkeys(_ENTRY, Entry),
    **dict.fromkeys(_FLOW, str),
    t.BRANCH: BranchNode,
    t.PARKED: StepNode,
    t.STEP: StepNode,
    t.INPUT: Plan,
    t.TURN: (str, Call, *_NODES),
}

_READ: Final[Mapping[str, Callable[[RunReader, Tree, int], Any]]] = {
    t.RECEIVED: RunReader.nothing,
    t.ADMITTED: RunReader.word,
    t.REFUSED: RunReader.refusal,
    t.KEYED: RunReader.keyed,
    t.JOB: RunReader.job,
    t.READ: RunReader.nothing,
    t.INPUT: RunReader.input,
    t.TURN: RunReader.turn,
    t.BREATH: RunReader.nothing,
    t.OVERRUN: RunReader.overrun,
    t.STEP: RunReader.step,
    t.DEFECT: RunReader.defect,
    t.FAULT: RunReader.fault,
    t.BRANCH: RunReader.flag,
    t.PLAN: RunReader.replanned,
    t.PIVOT: RunReader.nothing,
    t.ASKED: RunReader.nothing,
    t.ATTEMPT: RunReader.count,
    t.FAILED: RunReader.failed,
    t.HEDGED: RunReader.count,
    t.HELD: RunReader.text,
    t.COMMITTED: RunReader.value,
    t.DOUBTED: RunReader.error,
    t.RESOLVED: RunReader.outcome,
    t.SETTLED: RunReader.outcome,
    t.LATE: RunReader.outcome,
    t.LOST: RunReader.lost,
    t.CUT: RunReader.text,
    t.ENDING: RunReader.end,
    t.UNDO: RunReader.verb,
    t.UNDONE: RunReader.undone,
    t.GAVE_UP: RunReader.nothing,
    t.PARKED: RunReader.pause,
    t.SIGNALLED: RunReader.value,
    t.EXPIRED: RunReader.nothing,
    t.UNRESOLVED: RunReader.raised,
    t.ENDED: RunReader.end,
    t.ANSWERED: RunReader.count,
}
