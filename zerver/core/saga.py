"""Sagas: what has been committed, and what must be undone, in which order.

Law: the saga is the list of a run's writes in order of commit. It performs nothing: `next_task` names one thing to do,
the newest first, and is told how it went. A write in doubt is never assumed to have happened, nor not to have: it
is resolved by asking, else compensated by key, else it is unresolved, which is loud.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Literal

from zerver.core.calls import Call
from zerver.core.effects import Compensation, Effect, Outcome, Success
from zerver.core.values import value
from zerver.errors import EffectError

#: committed, in doubt --> kept | undone | absent (it turned out never to have happened) | unresolved
EntryState = Literal["committed", "unknown", "kept", "undone", "absent", "unresolved"]


class Entry:
    """One write of the run. loser: its result was not wanted (a join's loser), so it is undone in any case. happened:
    whether that is known, though it be unresolved.
    """

    __slots__ = ("asked", "call", "error", "happened", "loser", "state", "value")

    def __init__(self, call: Call, state: EntryState, value: object, error: EffectError | None) -> None:
        self.call = call
        self.state: EntryState = state
        self.value = value
        self.error: BaseException | None = error
        self.loser = False
        self.asked = False  # whether `resolve` was tried during the unwinding
        self.happened = state == "committed"

    def __repr__(self) -> str:
        return f"<entry {self.call.name} {self.state}>"


@value
class Task:
    """One thing to do while unwinding: ask whether the entry's write happened, or undo it."""

    verb: Literal["resolve", "undo"]
    entry: Entry
    effect: Effect[Any]


_NOTHING = Compensation()


class Saga:
    """The writes of one run, in order of commit."""

    __slots__ = ("_moving", "entries", "pivot")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.pivot = 0  # entries before this index are past the point of no return
        self._moving = 0  # entries from this index on have come to rest

    def committed(self, call: Call, value: object) -> Entry:
        """The write has happened."""
        return self._add(Entry(call, "committed", value, None))

    def doubted(self, call: Call, error: EffectError | None) -> Entry:
        """The write may have happened."""
        return self._add(Entry(call, "unknown", None, error))

    def _add(self, entry: Entry) -> Entry:
        self.entries.append(entry)
        self._moving = len(self.entries)
        return entry

    def lost(self, join: Call, winners: frozenset[Call]) -> None:
        """The join is decided: what other members of it committed, or may have, is not wanted."""
        for entry in self.entries:
            if _is_under(entry.call, join) and not any(_is_under(entry.call, winner) for winner in winners):
                entry.loser = True

    def abandon(self) -> None:
        """Another worker has the run: what it wrote is not for this one to undo, nor to worry about."""
        self.entries.clear()
        self._moving = 0

    def pass_pivot(self) -> None:
        """A pivot stage is done: nothing committed so far is undone any more."""
        self.pivot = len(self.entries)

    def next_task(self, failing: bool) -> Task | None:
        """The next thing to do, newest entry first; None when the saga has come to rest.

        failing: whether the run is being rolled back; otherwise only losers and writes in doubt are looked at.
        """
        while self._moving:
            index = self._moving - 1
            entry = self.entries[index]
            if entry.state in ("committed", "unknown"):
                task = self._task_for(entry, entry.loser or (failing and index >= self.pivot))
                if task is not None:
                    return task
            self._moving = index
        return None

    def done(self, task: Task, outcome: Outcome[Any]) -> Entry:
        """How the task went."""
        entry = task.entry
        if task.verb == "resolve":
            if isinstance(outcome, Success):
                if outcome.value is None:
                    entry.state = "absent"
                else:
                    entry.state, entry.value, entry.happened = "committed", outcome.value, True
        elif isinstance(outcome, Success):
            entry.state = "undone"
        else:
            entry.state = "unresolved"
            entry.error = getattr(outcome, "error", None)
        return entry

    def give_up(self, failing: bool) -> list[Entry]:
        """The time for compensations is over: whatever was still to be done is unresolved."""
        moving = [entry for entry in self.entries if entry.state in ("committed", "unknown")]
        while (task := self.next_task(failing)) is not None:
            task.entry.state = "unresolved"
        return [entry for entry in reversed(moving) if entry.state == "unresolved"]

    def reopen(self) -> None:
        """What is unresolved is to be tried again, by what was known of it before that went wrong."""
        for entry in self.unresolved:
            entry.state = "committed" if entry.happened else "unknown"
            entry.error = None
            entry.asked = entry.asked and entry.happened
        self._moving = len(self.entries)

    @property
    def unresolved(self) -> tuple[Entry, ...]:
        """Writes of which nobody can say that they are right."""
        if not self.entries:
            return ()
        return tuple(entry for entry in self.entries if entry.state == "unresolved")

    def _task_for(self, entry: Entry, rollback: bool) -> Task | None:
        """The task this entry needs; otherwise the entry comes to rest here."""
        how = entry.call.effect.compensation or _NOTHING
        optional = entry.call.effect.form == "optional"
        try:
            if entry.state == "unknown":
                if how.resolve is not None and not entry.asked:
                    entry.asked = True
                    return Task("resolve", entry, _effect(how.resolve(entry.call.key)))
                # In a run that succeeds, an optional write in doubt is welcome either way.
                if optional and (not rollback or (how.undo is None and how.by_key is None)):
                    entry.state = "kept"
                elif how.by_key is not None:
                    return Task("undo", entry, _effect(how.by_key(entry.call.key)))
                else:
                    entry.state = "unresolved"
                return None
            if rollback or (entry.asked and not optional):
                # `asked` and yet committed: the step had been told that it failed, and went on without it.
                if how.undo is not None:
                    return Task("undo", entry, _effect(how.undo(entry.value)))
                if how.by_key is not None:
                    return Task("undo", entry, _effect(how.by_key(entry.call.key)))
        except Exception as defect:  # a compensation's own constructor is user code, and this is the rollback
            entry.state, entry.error = "unresolved", defect
            return None
        entry.state = "kept"
        return None


def _effect(made: object) -> Effect[Any]:
    """What a compensation made: a handler called by mistake would give a coroutine, and nothing would be undone."""
    if isinstance(made, Effect):
        return made
    if isinstance(made, Coroutine):
        made.close()
    raise TypeError(f"the compensation gave {made!r}, which is not an effect")


def _is_under(call: Call, ancestor: Call) -> bool:
    at: Call | None = call
    while at is not None:
        if at is ancestor:
            return True
        at = at.parent
    return False
