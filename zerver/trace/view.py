"""A view: everything there is to say of one run, as JSON. What the page shows and `zerver trace ID --json` prints.

Law: a pure function of the result, for a live run, one of the ring and one out of a file alike. What it says is veiled:
no secret slot, no cookie, no Authorization header, whatever text it stands in. Linear in the records, and what may be
long comes in windows, so that a run of 100,000 records opens as one of ten.

    header      what the run was, when, and how it ended
    accounts    where its time went (ns); the sum is the total
    gaps        long silences: what a waterfall squeezes
    rows        the lines of its text, by the index of the record that each tells
    spans       the tree of its stretches of time, parents before children, siblings in order of beginning
    graph       its plan, with the times laid over (`zerver.trace.drawing`)
    inputs      the parts of the request that it read
    slots       what it wrote, who wrote it and who read it
    effects     what it asked of the world, and what came of it
    causes      the lines that say why
    unresolved  writes of which nobody can say that they are right

A window is {from, next, total, items}: `next` is where the following one begins, None at the end. Times are nanoseconds
since the run was received. The fields of each are named in `zerver.ui.api`, which serves them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Final, TypeAlias

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import Continue, Done, Fail, Insert, Need, Pause, Replace
from zerver.core.effects import Cancelled, Failure, Success, Unknown
from zerver.core.joins import Join
from zerver.core.plan import StepNode
from zerver.core.signatures import PartRead
from zerver.runtime import Result
from zerver.trace import describe
from zerver.trace.bars import Span
from zerver.trace.cause import causes
from zerver.trace.drawing import drawing
from zerver.trace.facts import CallFacts, Facts, in_rollback
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.plain import plain
from zerver.trace.rows import rows
from zerver.trace.spans import spans_of
from zerver.trace.stretches import Segment
from zerver.trace.veil import MASK, Veil, escaped, secret_slots
from zerver.trace.waterfall import gaps, in_tree_order, span_json

#: From, and how many.
Window: TypeAlias = tuple[int, int]

ROWS: Final = 1000
SPANS: Final = 2000
EFFECTS: Final = 500

_MOST_TEXT: Final = 2000  # characters of a value that is shown as text


def view(
    result: Result,
    *,
    began_unix_ns: int | None = None,
    hidden: Hidden = NOTHING_HIDDEN,
    rows: Window = (0, ROWS),
    spans: Window = (0, SPANS),
    effects: Window = (0, EFFECTS),
) -> dict[str, Any]:
    """The view of a run. began_unix_ns: when it was received, since 1970, where that is known. hidden: names that are
    masked beside what the code says. rows: a window of its records; those that need no line have none.
    """
    return Opened(result, began_unix_ns, hidden).view(rows, spans, effects)


class Opened:
    """A run that is being looked at: what takes a pass over its records is made once, when it is first asked for.

    Of a run under way it is a moment: to be made of a copy of its records, and thrown away.
    """

    def __init__(self, result: Result, began_unix_ns: int | None = None, hidden: Hidden = NOTHING_HIDDEN) -> None:
        self.result = result
        self.began_unix_ns = began_unix_ns
        self.facts = Facts(result.timeline)
        self.veil = Veil(self.facts, hidden)
        self.hidden = hidden
        self.secret = secret_slots(self.facts, hidden)

    @cached_property
    def tree(self) -> tuple[Span, ...]:
        """Its spans, parents before children, siblings in order of beginning."""
        return tuple(in_tree_order(spans_of(self.facts, self.veil)))

    @property
    def _stretches(self) -> Sequence[Segment]:
        """To which account each moment of it belongs."""
        return self.tree[0].segments if self.tree else ()

    def view(
        self, rows: Window = (0, ROWS), spans: Window = (0, SPANS), effects: Window = (0, EFFECTS)
    ) -> dict[str, Any]:
        """As `zerver.trace.view.view`."""
        return {
            "header": self.header(),
            "accounts": self.accounts(),
            "gaps": self.gaps(),
            "rows": self.rows(*rows),
            "spans": self.spans(*spans),
            "graph": drawing(self.facts.plan, self.facts, self.tree),
            "inputs": list(self.inputs()),
            "slots": self.slots(),
            "effects": self.effects(*effects),
            "causes": [escaped(line) for line in causes(self.facts, self.veil, self.result.unresolved, None)],
            "unresolved": [self.open_write(write.call) for write in self.facts.unresolved],
        }

    # -- the run --

    def header(self) -> dict[str, Any]:
        timeline, facts = self.result.timeline, self.facts
        ending = facts.ending if facts.over else None
        return {
            "id": timeline.run_id,
            "label": self.text(timeline.label or timeline.flow),
            "flow": timeline.flow,
            "version": timeline.version,
            "tenant": self.text(timeline.tenant),
            "priority": timeline.priority,
            "status": "running" if ending is None else ending.status,
            "http": timeline.answered,
            "reason": None if ending is None or not ending.reason else self.text(ending.reason),
            "began_unix_ms": None if self.began_unix_ns is None else self.began_unix_ns / 1e6,
            "total_ns": facts.ended - facts.began,
            "under_way": not facts.over,
            "parent": escaped(timeline.parent),
            "records": len(timeline.records),
        }

    def accounts(self) -> dict[str, int]:
        sums = dict.fromkeys(("admission", "turn", "cpu", "io", "parked"), 0)
        for account, began, ended in self._stretches:
            sums[account] += ended - began
        return {**sums, "total": sum(sums.values())}

    def gaps(self) -> list[dict[str, Any]]:
        """The longest silences, in order of time."""
        return list(gaps(self.facts.timeline.records, self._stretches))

    def rows(self, begin: int = 0, count: int = ROWS) -> dict[str, Any]:
        """A window of records: the rows that tell them."""
        records = self.facts.timeline.records
        begin, end, following = _cut(begin, count, len(records))
        items = [
            {
                "index": row.index,
                "at_ns": row.at,
                "kind": records[row.index][0],
                "subject": escaped(row.subject),
                "text": escaped(row.text),
            }
            for row in rows(self.facts, self.veil, begin, end)
        ]
        return {"from": begin, "next": following, "total": len(records), "items": items}

    def spans(self, begin: int = 0, count: int = SPANS) -> dict[str, Any]:
        begin, end, following = _cut(begin, count, len(self.tree))
        items = [span_json(span) for span in self.tree[begin:end]]
        return {"from": begin, "next": following, "total": len(self.tree), "items": items}

    # -- values --

    def inputs(self) -> Iterator[dict[str, Any]]:
        """The parts of the request, as it was read."""
        plan = self.facts.plan
        if plan is None or not self.facts.inputs:
            return
        for read, held in zip(plan.parts, self.facts.inputs[0], strict=False):
            secret = self.hides(read)
            yield {"source": read.part.source, "name": read.name, "secret": secret, **self.value(held, secret)}

    def hides(self, read: PartRead) -> bool:
        """Whether a part of the request is secret: a cookie, an Authorization header, what is configured to be."""
        return read.part.source == "cookie" or self.hidden.hides(read.name)

    def slots(self) -> list[dict[str, Any]]:
        """Every slot of the plan, and of what was put into it, in the order of writing; those never written last."""
        made = _slots(self.facts)
        told = sorted(made.items(), key=lambda item: (item[1]["at"] is None, item[1]["at"] or 0))
        return [self.slot(name, found) for name, found in told]

    def slot(self, name: str, found: dict[str, Any]) -> dict[str, Any]:
        secret = name in self.secret
        written = found["at"] is not None
        held = self.value(found["value"], secret) if written else {"value": None, "shown": "", "editable": False}
        return {
            "name": name,
            "secret": secret,
            "type": found["type"],
            "writer": found["writer"],
            "readers": found["readers"],
            "written": written,
            "at_ns": None if not written else found["at"] - self.facts.began,
            **held,
            "editable": written and not secret and bool(held["editable"]),
        }

    def value(self, held: object, secret: bool = False) -> dict[str, Any]:
        """A value as JSON and as text. editable: whether the JSON says all of it."""
        if secret:
            return {"value": None, "shown": MASK, "editable": False}
        said = plain(held, self.veil.text, hidden=self.hidden)
        dumped = json.dumps(said, ensure_ascii=False)
        return {
            "value": said,
            "shown": describe.cut(escaped(dumped), _MOST_TEXT),
            "editable": MASK not in dumped and "…" not in dumped,
        }

    def shown(self, held: object) -> str:
        said = plain(held, self.veil.text, hidden=self.hidden, most=_MOST_TEXT)
        return describe.cut(escaped(json.dumps(said, ensure_ascii=False)), _MOST_TEXT)

    def text(self, text: str) -> str:
        return escaped(self.veil.text(text))

    # -- effects --

    def effects(self, begin: int = 0, count: int = EFFECTS) -> dict[str, Any]:
        asked = self._asked
        begin, end, following = _cut(begin, count, len(asked))
        items = [self.effect(number, asked[number]) for number in range(begin, end)]
        return {"from": begin, "next": following, "total": len(asked), "items": items}

    @cached_property
    def _asked(self) -> list[CallFacts]:
        return list(self.facts.calls.values())

    @cached_property
    def _late(self) -> set[Call]:
        return {subject for kind, _, subject, _ in self.facts.timeline.records if kind == t.LATE}

    def effect(self, number: int, told: CallFacts) -> dict[str, Any]:
        call, outcome = told.call, told.outcome
        kind, write = call.effect.kind, self.facts.writes.get(call)
        hidden = self.veil.hides(call.step)
        return {
            "id": number,
            "step": call.step,
            "kind": kind.name,
            "text": escaped(describe.effect(call.effect, self.veil, call.step)),
            "access": kind.access,
            "key": escaped(describe.key(call, self.result.run_id)) if kind.takes_key else None,
            "target": None if isinstance(call.effect, Join) else self.text(describe.target(call.effect)),
            "asked_ns": None if told.asked is None else told.asked - self.facts.began,
            "ended_ns": None if told.ended is None else told.ended - self.facts.began,
            "outcome": None if outcome is None else type(outcome).__name__.lower(),
            "error": self._error(call, outcome),
            "shown": (MASK if hidden else self.shown(outcome.value)) if isinstance(outcome, Success) else None,
            "attempts": 1 + told.retries + told.hedges,
            "timeouts": told.timeouts,
            "committed": None if write is None else write.happened,
            "undone": write is not None and write.undone,
            "late": call in self._late,
            "rollback": in_rollback(call),
        }

    def _error(self, call: Call, outcome: object) -> str | None:
        if isinstance(outcome, Failure | Unknown):
            return escaped(describe.reason(outcome.error, self.veil, call.step))
        return self.text(outcome.reason) if isinstance(outcome, Cancelled) else None

    def open_write(self, call: Call) -> dict[str, Any]:
        kind = call.effect.kind
        return {
            "step": call.step,
            "kind": kind.name,
            "target": self.text(describe.target(call.effect)),
            "key": escaped(call.key) if kind.takes_key else None,
            "text": escaped(describe.effect(call.effect, self.veil, call.step)),
        }


# ---- windows --------------------------------------------------------------------------------


def _cut(begin: int, count: int, total: int) -> tuple[int, int, int | None]:
    """From, to, and where the next window begins."""
    begin = min(max(0, begin), total)
    end = min(begin + max(0, count), total)
    return begin, end, end if end < total else None


# ---- slots ----------------------------------------------------------------------------------


def _slots(facts: Facts) -> dict[str, dict[str, Any]]:
    """Who wrote each slot, when, what, and who read it."""
    found: dict[str, dict[str, Any]] = {}

    def slot(name: str) -> dict[str, Any]:
        if name not in found:
            found[name] = {"writer": None, "readers": [], "at": None, "value": None, "type": ""}
        return found[name]

    if facts.plan is not None:
        for name in facts.plan.slots:
            slot(name)
        for taken, value in zip(facts.plan.takes, facts.inputs[1] if facts.inputs else (), strict=False):
            slot(taken.name).update(writer="given", at=facts.began, value=value)
    for node in {node.name: node for node in facts.nodes}.values():
        signature = node.step.signature
        began = facts.steps[node.name].began if node.name in facts.steps else None
        for read in signature.slots:
            slot(read.slot.name)["type"] = _type_name(read.type)
            if began is not None:
                slot(read.slot.name)["readers"].append(node.name)
        for write in signature.writes:
            slot(write.slot.name)["type"] = _type_name(write.type)
    for kind, at, node, detail in facts.timeline.records:
        if kind == t.STEP and isinstance(node, StepNode):
            for name, value in _written(node, detail[1]):
                slot(name).update(writer=node.name, at=at, value=value)
    return found


def _written(node: StepNode, answer: Any) -> Iterator[tuple[str, Any]]:
    """The slots that an answer wrote, and what."""
    if isinstance(answer, Done | Fail | Need | Pause):
        return
    if isinstance(answer, Continue | Insert | Replace):
        answer = answer.value
    writes = node.step.signature.writes
    values = answer if node.write == -2 and isinstance(answer, tuple) else (answer,)
    for write, value in zip(writes, values, strict=False):
        yield write.slot.name, value


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
