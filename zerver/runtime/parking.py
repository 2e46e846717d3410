"""Parking: what of a parked run is told to the journal when it is put down, and what is found when it is taken up.

Law: pure. A pause is known by its number among the pauses of its run, which is the same in every process, because the
records are. What a run finds is decided by the journal alone: a signal whose value is there has come; a pause that is
there no more, although the run was put down with it, has expired; anything else is still to be waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs
import msgspec

from zerver.core import timeline as t
from zerver.core.codec import encode_json
from zerver.core.commands import Park
from zerver.core.timeline import Ending, Record, Timeline
from zerver.errors import DamagedJournal
from zerver.runtime.journal import Awaited, Notation, Parking, StoredRun
from zerver.runtime.result import Continuation, Result

#: What has come of a pause: its signal and the value, or the signal alone when it has not come in time.
Letter: TypeAlias = tuple[str] | tuple[str, object]


@attrs.frozen
class Wait:
    """One pause that a run is parked on. until_ns: on the clock of its records."""

    number: int
    signal: str
    until_ns: int


def waits(records: Sequence[Record], park: Park) -> list[Wait]:
    """The pauses that a run is parked on, the first to expire first."""
    numbers: dict[str, int] = {}
    pauses = (detail.signal for kind, _, _, detail in records if kind == t.PARKED)
    for number, signal in enumerate(pauses, 1):
        numbers[signal] = number
    found = [Wait(numbers[signal], signal, until_ns) for signal, until_ns in park.until]
    return sorted(found, key=lambda wait: (wait.until_ns, wait.number))


def parking(records: Sequence[Record], park: Park, now_ns: int) -> Parking:
    """What the journal is told. now_ns: on the clock of the records."""
    return Parking(
        tuple(Awaited(wait.number, wait.signal, (wait.until_ns - now_ns) / 1e9) for wait in waits(records, park))
    )


def may_have_come(records: Sequence[Record], park: Park) -> bool:
    """Whether a signal may have been given while the run was carried on: it had been put down with a pause that it is
    parked on still.
    """
    before = max((at for at, (kind, *_) in enumerate(records) if kind == t.RESUMED), default=0)
    known = sum(1 for kind, *_ in records[:before] if kind == t.PARKED)
    return before > 0 and any(wait.number <= known for wait in waits(records, park))


def put_down(timeline: Timeline, park: Park, to_unix: Callable[[int], int]) -> Result:
    """What the caller of a run gets that was put down. to_unix: wall time of a time in the records."""
    found = waits(timeline.records, park)
    told = tuple(Continuation(wait.signal, wait.number, to_unix(wait.until_ns)) for wait in found)
    return Result(timeline, _parked_on(told), sealed=False, continuations=told)


def still_down(timeline: Timeline, stored: StoredRun) -> Result | None:
    """What the caller of a stored run would have got that is put down; None when it is not."""
    if stored.wakes_unix_ns is None or stored.cut is not None or not stored.signals:
        return None
    waiting = [one for one in stored.signals if one.value is None] or [*stored.signals]
    waiting.sort(key=lambda one: (one.expires_unix_ns, one.number))
    told = tuple(Continuation(one.signal, one.number, one.expires_unix_ns) for one in waiting)
    return Result(timeline, _parked_on(told), sealed=False, continuations=told)


def sealed_reason(stored: StoredRun | None, reason: str, notation: Notation) -> bytes | None:
    """Why this run is cancelled, as the journal keeps it; None when there is no such run, or it is over.

    Raises DamagedJournal when the run cannot be read with these keys: nobody who can read it could read the reason.
    """
    if stored is None or stored.status:
        return None
    notation.reader().read(stored)
    return notation.seal(encode_json(reason))


def is_called_off(stored: StoredRun) -> bool:
    """Whether a stored run was cancelled while it was put down, and is not over: whatever comes, it is undone."""
    return stored.cut is not None and not stored.status


def _parked_on(told: Sequence[Continuation]) -> Ending:
    awaited = " or ".join(repr(one.signal) for one in told)
    return Ending("parked", reason=f"it waits for {awaited}")


def letters(records: Sequence[Record], park: Park, stored: StoredRun, notation: Notation) -> tuple[Letter, ...]:
    """What a run that is taken up finds: signals that have come, and then pauses that have expired.

    Raises DamagedJournal for a value that does not open, or is none.
    """
    there = {signal.number: signal for signal in stored.signals}
    came: list[Letter] = []
    late: list[Letter] = []
    for wait in waits(records, park):
        signal = there.get(wait.number)
        if signal is not None and signal.value is not None:
            came.append((wait.signal, _opened(signal.value, notation)))
        elif signal is None and stored.wakes_unix_ns is not None:
            late.append((wait.signal,))
    return (*came, *late)


def _opened(sealed: bytes, notation: Notation) -> object:
    value = notation.unseal(sealed)
    try:
        opened: object = msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise DamagedJournal(f"the value of a signal is not what was written: {error}") from error
    return opened
