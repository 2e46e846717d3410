"""Causes: the lines that say why a run was slow, failed, or needs somebody to look.

Law: one line per kind of trouble, its name in capitals first; each names the step, and says what was undone, what was
kept, and what nobody knows. A run that was done, in good time and with all that it had asked for, has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import Fail
from zerver.core.effects import Failure, Success
from zerver.core.joins import Join
from zerver.core.saga import Entry
from zerver.core.tickets import Refusal
from zerver.errors import EffectError, InvalidData
from zerver.trace import describe
from zerver.trace.describe import briefly
from zerver.trace.facts import Facts, StepFacts, WriteFacts, in_rollback
from zerver.trace.veil import MASK, Veil

#: Without a budget, a run is worth a line when it took longer than this (ns) and one step took more than half of it.
_SLOW = 50_000_000


def causes(facts: Facts, veil: Veil, unresolved: Sequence[Entry] | None, slow: float | None) -> Iterator[str]:
    """The cause lines of a run. unresolved, slow: as `format_timeline` has them."""
    open_writes = _open_writes(facts, unresolved)
    if facts.ending is not None:
        tell = _TELL.get(facts.ending.status)
        if tell is not None:
            yield tell(facts, veil, facts.ending) + _rollback(facts, open_writes)
    if not facts.over and facts.timeline.records:
        yield _running(facts)
    if facts.ending is None or facts.ending.status in ("done", "deadline"):
        yield from _slowness(facts, slow)
    if facts.ending is not None and facts.ending.status == "done":
        yield from _trouble(facts, veil)
    for write in open_writes:
        yield from _unresolved(facts, veil, write)


# ---- why it ended ---------------------------------------------------------------------------


def _failed(facts: Facts, veil: Veil, ending: t.Ending) -> str:
    name = facts.ended_by
    where = f" in {name}" if name else ""
    cause = ending.cause
    if isinstance(cause, Fail):
        return f"FAILED {describe.fail(cause, veil, name)}{where}"
    if isinstance(cause, EffectError):
        return f"FAILED {cause.kind}{where}: {describe.reason(cause, veil, name)}"
    if isinstance(cause, InvalidData):
        return f"FAILED invalid request: {veil.text('; '.join(f'{at} {what}' for at, what in cause.problems))}"
    if isinstance(cause, BaseException):
        return f"FAILED {describe.message(cause, veil, name)}{where}"
    return f"FAILED{where}"


def _defect(facts: Facts, veil: Veil, ending: t.Ending) -> str:
    name = facts.ended_by
    where = f" in {name}" if name else ""
    if not isinstance(ending.cause, BaseException):
        return f"DEFECT{where}"
    at = describe.place(ending.cause)
    return f"DEFECT {describe.message(ending.cause, veil, name)}{where}{f' at {at}' if at else ''}"


def _deadline(facts: Facts, veil: Veil, ending: t.Ending) -> str:
    return f"DEADLINE passed after {briefly(_until_ending(facts))}{_under_way(facts)}"


def _cancelled(facts: Facts, veil: Veil, ending: t.Ending) -> str:
    return f"CANCELLED after {briefly(_until_ending(facts))}{_under_way(facts)}: {veil.text(ending.reason)}"


def _refused(facts: Facts, veil: Veil, ending: t.Ending) -> str:
    refusal = ending.cause
    if not isinstance(refusal, Refusal):
        return "REFUSED"
    again = "" if refusal.retry_after is None else f", retry after {refusal.retry_after:g}s"
    return f"REFUSED by admission: {refusal.reason} ({refusal.status}{again})"


_TELL: dict[str, Callable[[Facts, Veil, t.Ending], str]] = {
    "failed": _failed,
    "defect": _defect,
    "deadline": _deadline,
    "cancelled": _cancelled,
    "refused": _refused,
}


def _running(facts: Facts) -> str:
    return f"UNDER WAY for {briefly(facts.ended - facts.began)}{_under_way(facts)}"


def _until_ending(facts: Facts) -> int:
    return next((at for kind, at, _, _ in facts.timeline.records if kind == t.ENDING), facts.ended) - facts.began


def _under_way(facts: Facts) -> str:
    """` in charge: payments.charge under way for 44ms`, for what had not come to an end."""
    names = []
    for step in facts.steps.values():
        call = step.calls[-1] if step.calls else None
        if (step.ended is None or step.cut) and call is not None and call.outcome is None and call.asked is not None:
            until = facts.ended if call.ended is None else call.ended
            names.append(f"{step.name} ({call.call.effect.kind.name} under way for {briefly(until - call.asked)})")
        elif step.ended is None and step.parked_at is not None:
            names.append(f"{step.name} (parked)")
    return f" in {', '.join(names)}" if names else ""


def _rollback(facts: Facts, open_writes: Sequence[WriteFacts]) -> str:
    """`; undone: create_order, charge; kept: audit`."""
    if facts.ending is None or facts.ending.status == "refused":
        return ""
    undone = list(_undone(facts))
    left = {id(write.call) for write in open_writes}
    kept = [
        w.call.step
        for w in facts.writes.values()
        if w.happened and w.touched and not w.undone and id(w.call) not in left
    ]
    said = f"; undone: {_names(undone)}" if undone else ""
    said += f"; kept: {_names(kept)}" if kept else ""
    return said or ("" if open_writes else "; nothing to undo")


def _undone(facts: Facts) -> Iterator[str]:
    """The steps whose writes were undone, in the order of undoing."""
    for kind, _, entry, detail in facts.timeline.records:
        if kind == t.UNDONE and detail[0] == "undo" and isinstance(detail[1], Success):
            yield entry.call.step


def _names(names: Iterable[str]) -> str:
    counted: dict[str, int] = {}
    for name in names:
        counted[name] = counted.get(name, 0) + 1
    return ", ".join(name if count == 1 else f"{name} (x{count})" for name, count in counted.items())


# ---- why it was slow ------------------------------------------------------------------------


def _slowness(facts: Facts, slow: float | None) -> Iterator[str]:
    accounts = facts.timeline.accounts
    total = accounts.total - accounts.parked
    if total <= (_SLOW if slow is None else int(slow * 1e9)):
        return
    steps = {step.name: facts.took(step) - step.parked for step in facts.steps.values()}
    waits = {"admission": accounts.admission, "waiting for turns": accounts.turn}
    name, took = max((*steps.items(), *waits.items()), key=lambda item: item[1])
    if slow is None and 2 * took <= total:
        return
    if name in steps and facts.steps[name].cut:
        return  # the line above has said where the time went
    why = _why_slow(facts, facts.steps[name], took) if name in steps else ""
    yield f"SLOW {name} took {briefly(took)} of {briefly(total)}{why}"


def _why_slow(facts: Facts, step: StepFacts, took: int) -> str:
    io = step.io(facts.ended)
    timeouts, failures = step.count("timeouts"), step.count("failures")
    counted = [
        _count(timeouts, "timeout"),
        _count(failures - timeouts, "failure"),
        _count(step.count("retries"), "retry", "retries"),
        _count(step.count("hedges"), "hedge"),
    ]
    said = " + ".join(part for part in counted if part)
    if said:
        return f": {said}"
    if 2 * io < took:
        return f": {briefly(took - io)} of it was cpu"
    waited = {c.call.effect.kind.name: (c.ended or facts.ended) - c.asked for c in step.calls if c.asked is not None}
    name, longest = max(waited.items(), key=lambda item: item[1])
    return f": {name} {briefly(longest)}"


def _count(number: int, word: str, words: str = "") -> str:
    return "" if number <= 0 else f"{number} {word if number == 1 else words or word + 's'}"


# ---- what it did without --------------------------------------------------------------------


def _trouble(facts: Facts, veil: Veil) -> Iterator[str]:
    """What went wrong in a run that was done all the same: an effect that its step did without, or a write undone."""
    for call, told in facts.calls.items():
        if isinstance(told.outcome, Failure) and _was_wanted(call) and not in_rollback(call):
            why = describe.reason(told.outcome.error, veil, call.step)
            yield f"DONE WITHOUT {call.effect.kind.name} in {call.step}: {why}"
            return
    undone = [write.call.step for write in facts.writes.values() if write.undone]
    if undone:
        yield f"UNDONE {', '.join(dict.fromkeys(undone))}"


def _was_wanted(call: Call) -> bool:
    """Whether its failure is one of the step's: not that of a join that goes on with others of its members."""
    while call.parent is not None:
        if not isinstance(call.parent.effect, Join) or call.parent.effect.rule.name != "all":
            return False
        call = call.parent
    return True


# ---- what nobody knows ----------------------------------------------------------------------


def _open_writes(facts: Facts, unresolved: Sequence[Entry] | None) -> list[WriteFacts]:
    found = facts.unresolved
    known = {id(write.call) for write in found}
    for entry in unresolved or ():
        if id(entry.call) in known:
            continue
        write = facts.writes.get(entry.call) or WriteFacts(entry.call, True if entry.value is not None else None)
        write.settle_by_hand(entry.error)
        found.append(write)
    return found


def _unresolved(facts: Facts, veil: Veil, write: WriteFacts) -> Iterator[str]:
    """Loud: what, which, and how to look."""
    call = write.call
    kind = call.effect.kind
    state = "happened" if write.happened else "may or may not have happened"
    because = f": {describe.reason(write.error, veil, call.step)}" if write.error is not None else ""
    if write.trouble:
        because += f"{';' if because else ', and'} {MASK if veil.hides(call.step) else veil.text(write.trouble)}"
    yield f"UNRESOLVED {kind.name} in {call.step} {state}{because}"
    target = veil.text(describe.target(call.effect))
    if kind.takes_key:
        yield f"  look at {target} for key {call.key}, then settle it by hand"
    else:
        shown = describe.effect(call.effect, veil, call.step)
        yield f"  it took no key: look at {target} for what {shown} writes, then settle it by hand"
