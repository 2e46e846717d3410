"""Departures: the first place where code does otherwise than was recorded, with both sides, as a diff has them.

Law: both sides are said in the same words, and never in words that hide the difference: where the short form of two
effects is the same, the long one is told, and where two values differ, the place inside them is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import Done, Fail
from zerver.core.effects import Effect
from zerver.core.following import Divergence
from zerver.core.frames import defined_at, is_users, short_place
from zerver.core.plan import StepNode
from zerver.core.timeline import Record, Timeline
from zerver.trace import describe
from zerver.trace.facts import Facts
from zerver.trace.same import same
from zerver.trace.veil import MASK, Veil

_SHOWN: Final = 200  # characters of a side
_DEEPEST: Final = 6


@attrs.frozen
class Departure:
    """Where it departs.

    index: of the recorded record. step: "" when it is none's. place: where the step's function begins, or the line that
    raised. about: the slot, or the effect by its place in the step, as "payment.charge.1"; "" for neither. at: the
    place inside a value, as "cart.lines[0].price: 1200, now 1100". masked: whether a placeholder is in sight.
    """

    index: int
    step: str
    kind: str
    place: str
    about: str
    recorded: str
    replayed: str
    at: str = ""
    masked: bool = False

    def __str__(self) -> str:
        """Three lines, or four:

        payment.charge departs (shop/steps.py:31), payment.charge.1
          - recorded  asks for payments.charge(6000, 'user_1')
          + replayed  asks for payments.charge(5400, 'user_1')
        """
        who = f"{self.step or 'the run'} departs" + (f" ({self.place})" if self.place else "")
        lines = [who + (f", {self.about}" if self.about else "")]
        lines += [f"  - recorded  {self.recorded}", f"  + replayed  {self.replayed}"]
        return "\n".join([*lines, *([f"    {self.at}"] if self.at else [])])


def departure_of(found: Divergence, recorded: Timeline, old: Veil, replayed: Timeline, new: Veil) -> Departure:
    """Both sides of a divergence. old, new: what hides the secrets of the recorded run and of the replayed one."""
    one, other = found.recorded, found.replayed
    about, at = "", ""
    if one is not None and other is not None and one[0] == other[0]:
        about, at = _inside(one, other, recorded.secret | replayed.secret)
    elif (record := other or one) is not None and isinstance(record[2], Call):
        about = f"{record[2].step}.{record[2].ordinal}"
    says, says_now = _say(one, old, recorded.secret), _say(other, new, replayed.secret)
    if says == says_now and one is not None and other is not None:
        says, says_now = _at_length(one, old), _at_length(other, new)
    node = _node(found, replayed)
    return Departure(
        index=found.index,
        step=found.step,
        kind=(other or one or ("nothing", 0, None, None))[0],
        place=_place(other, node),
        about=about,
        recorded=says if one is not None else "nothing more",
        replayed=says_now if other is not None else _nothing(one),
        at=new.text(old.text(at)),
        masked=MASK in says + says_now or _reads_masked(node, replayed),
    )


def place_of(node: StepNode) -> str:
    """Where a step's function begins, as `shop/steps.py:12`; "" for one that is no function."""
    code = getattr(inspect.unwrap(node.step.function), "__code__", None)
    return "" if code is None else defined_at(code).removeprefix("<recorded>/")


def _node(found: Divergence, replayed: Timeline) -> StepNode | None:
    for record in (found.replayed, found.recorded):
        if record is not None and isinstance(record[2], StepNode):
            return record[2]
    return Facts(replayed).step(found.step).node if found.step else None


def _place(record: Record | None, node: StepNode | None) -> str:
    if record is not None and record[0] in (t.DEFECT, t.FAULT):
        line, at = "", record[3][1].__traceback__
        while at is not None:
            code = at.tb_frame.f_code
            if is_users(str(at.tb_frame.f_globals.get("__name__", "")), code.co_filename):
                line = short_place(code.co_filename, at.tb_lineno)
            at = at.tb_next
        if line:
            return line
    return "" if node is None else place_of(node)


def _nothing(recorded: Record | None) -> str:
    """The replay did nothing where something is recorded."""
    if recorded is not None and recorded[0] in (t.SETTLED, t.LATE, t.COMMITTED, t.DOUBTED, t.CUT, t.LOST):
        return "has not asked for that"
    return "nothing"


def _reads_masked(node: StepNode | None, timeline: Timeline) -> bool:
    """Whether an input or a slot that the step reads is a placeholder."""
    if node is None:
        return False
    slots = {read.slot.name for read in node.step.signature.slots}
    parts = {(read.part.source, read.name) for read in node.step.signature.parts}
    for kind, _, subject, detail in timeline.records:
        values: list[Any] = []
        if kind == t.INPUT:
            read = zip(subject.parts, detail[0], strict=False)
            values += [value for part, value in read if (part.part.source, part.name) in parts]
            values += [value for slot, value in zip(subject.takes, detail[1], strict=False) if slot.name in slots]
        elif kind == t.STEP and {write.slot.name for write in subject.step.signature.writes} & slots:
            values.append(detail[1])
        if any(MASK in _repr(value) for value in values):
            return True
    return False


# ---- one side -------------------------------------------------------------------------------


def _say(record: Record | None, veil: Veil, secret: frozenset[str]) -> str:
    if record is None:
        return ""
    tell = _TELL.get(record[0])
    if tell is not None:
        return tell(record, veil, secret)
    subject = record[2]
    if isinstance(subject, Call):
        return f"{record[0]} {describe.effect(subject.effect, veil, subject.step)}"
    return f"{record[0]} {getattr(subject, 'name', subject)}"


def _asks(record: Record, veil: Veil, secret: frozenset[str]) -> str:
    return f"asks for {describe.effect(record[2].effect, veil, record[2].step)}"


def _answers(record: Record, veil: Veil, secret: frozenset[str]) -> str:
    node, answer = record[2], record[3][1]
    if isinstance(answer, Fail):
        return f"fails: {describe.fail(answer, veil, node.name)}"
    if isinstance(answer, Done):
        return f"is done with {_value(answer.value, veil, node.name)}"
    writes = [write.slot.name for write in node.step.signature.writes]
    if not writes:
        return "goes on"
    values = answer if len(writes) > 1 and isinstance(answer, tuple) else (answer,)
    said = [f"{n} = {MASK if n in secret else _value(v, veil)}" for n, v in zip(writes, values, strict=False)]
    return f"writes {', '.join(said)}"


def _raises(record: Record, veil: Veil, secret: frozenset[str]) -> str:
    verb = "raises" if record[0] == t.DEFECT else "stops at"
    return f"{verb} {describe.message(record[3][1], veil, getattr(record[2], 'name', ''))}"


def _parks(record: Record, veil: Veil, secret: frozenset[str]) -> str:
    return f"waits for {veil.text(repr(record[3].signal))}, for {record[3].expires:g}s at most"


def _branches(record: Record, veil: Veil, secret: frozenset[str]) -> str:
    return f"branch {record[2].name} says {'yes' if record[3] else 'no'}"


def _plans(record: Record, veil: Veil, secret: frozenset[str]) -> str:
    verb, names = record[3]
    return f"{'inserts' if verb == 'insert' else 'replaces the rest by'} {', '.join(names) or 'nothing'}"


def _ends(record: Record, veil: Veil, secret: frozenset[str]) -> str:
    return f"the run ends: {record[3].status}"


def _undoes(record: Record, veil: Veil, secret: frozenset[str]) -> str:
    call = record[2].call
    return f"the rollback looks at {describe.effect(call.effect, veil, call.step)} ({call.step}.{call.ordinal})"


_TELL: Mapping[str, Callable[[Record, Veil, frozenset[str]], str]] = {
    t.ASKED: _asks,
    t.STEP: _answers,
    t.DEFECT: _raises,
    t.FAULT: _raises,
    t.PARKED: _parks,
    t.BRANCH: _branches,
    t.PLAN: _plans,
    t.ENDING: _ends,
    t.ENDED: _ends,
    t.UNDO: _undoes,
}


def _at_length(record: Record, veil: Veil) -> str:
    """The same side with nothing left out: how an effect is to be performed belongs to it."""
    subject, detail = record[2], record[3]
    if isinstance(subject, Call) and not veil.hides(subject.step):
        effect = subject.effect
        more = [f"as {effect.form}" if effect.form != "value" else ""]
        more.append("" if effect.policy is None else repr(effect.policy))
        how = effect.compensation
        ways = [] if how is None else [name for name in ("undo", "by_key", "resolve") if getattr(how, name) is not None]
        more.append(f"undone by {' and '.join(ways)}" if ways else "never undone")
        return f"asks for {veil.text(_repr(effect))}, {', '.join(filter(None, more))}"
    return f"{record[0]} {veil.text(_repr(detail))}"


def _value(value: object, veil: Veil, step: str = "") -> str:
    return MASK if step and veil.hides(step) else describe.cut(veil.text(_repr(value)), _SHOWN)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # its repr is user code
        return f"<{type(value).__name__}>"


# ---- where two values differ ----------------------------------------------------------------


def _inside(one: Record, other: Record, secret: frozenset[str]) -> tuple[str, str]:
    """What two records of one kind are about, and where in it they differ."""
    if one[0] == t.ASKED:
        about = f"{other[2].step}.{other[2].ordinal}"
        return about, next(_differences(one[2].effect, other[2].effect, "", 0), "")
    if one[0] != t.STEP:
        return "", ""
    writes = [write.slot.name for write in other[2].step.signature.writes]
    a, b = one[3][1], other[3][1]
    several = len(writes) > 1 and isinstance(a, tuple) and isinstance(b, tuple)
    for name, mine, yours in zip(writes, a if several else (a,), b if several else (b,), strict=False):
        if isinstance(mine, Fail | Done) or isinstance(yours, Fail | Done):
            return "", ""
        if not same(mine, yours):
            return f"slot {name}", "" if name in secret else next(_differences(mine, yours, name, 0), "")
    return "", ""


def _arguments(effect: Effect[Any]) -> dict[str, Any]:
    return {f"argument {at + 1}": value for at, value in enumerate(effect.args)} | dict(effect.kwargs)


def _differences(one: Any, other: Any, at: str, deep: int) -> Iterator[str]:
    """`cart.lines[0].price: 1200, now 1100`: the places in two values where they differ, innermost."""
    if same(one, other):
        return
    inner = [] if deep > _DEEPEST else list(_members(one, other))
    if inner:
        for name, mine, yours in inner:
            yield from _differences(mine, yours, f"{at}{name}" if at else name.strip(" ."), deep + 1)
    elif deep:
        yield f"{at}: {describe.cut(_repr(one), _SHOWN)}, now {describe.cut(_repr(other), _SHOWN)}"


def _members(one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if type(one) is not type(other):
        return
    if isinstance(one, Effect):
        mine, yours = _arguments(one), _arguments(other)
        if mine.keys() == yours.keys():
            yield from ((f" {name}", mine[name], yours[name]) for name in mine)
    elif attrs.has(type(one)):
        for field in attrs.fields(type(one)):
            yield f".{field.name}", getattr(one, field.name, None), getattr(other, field.name, None)
    elif isinstance(one, Mapping):
        if one.keys() == other.keys():
            yield from ((f"[{key!r}]", one[key], other[key]) for key in one)
    elif isinstance(one, list | tuple) and len(one) == len(other):
        yield from ((f"[{index}]", mine, yours) for index, (mine, yours) in enumerate(zip(one, other, strict=True)))
