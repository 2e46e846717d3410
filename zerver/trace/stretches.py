"""Stretches: to which account each moment of a run belongs.

Law: the time between two records belongs to the record that ends it, as `zerver.core.timeline.accounts` has it; the
stretches of a run follow one another without a gap, and sum up to its accounts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

from zerver.core import timeline as t

#: (account, began, ended): nanoseconds since the run began.
Segment: TypeAlias = tuple[t.Account, int, int]


def stretches(records: Sequence[t.Record]) -> tuple[Segment, ...]:
    """The accounts of a run, laid out in time; neighbours of one account are one stretch."""
    found: list[Segment] = []
    if not records:
        return ()
    start = records[0][1]
    waiting = parked = 0
    started = False
    for (_, before, _, _), (kind, at, subject, detail) in itertools.pairwise(records):
        account = t.ACCOUNTS.get(kind, "cpu")
        if kind == t.ASKED and subject.parent is None:
            waiting += 1
        elif kind in (t.SETTLED, t.LATE) and subject.parent is None:
            waiting -= 1
        elif kind == t.PARKED:
            parked += 1
        elif kind == t.INPUT:
            started = True
        elif kind == t.TURN:
            since = min(max(before, detail), at)
            put(found, "io" if waiting else "parked" if parked else "cpu", before - start, since - start)
            before = since
        elif kind == t.ENDING and detail.status in ("deadline", "cancelled"):
            account = "parked" if parked and not waiting else "io" if waiting or not started else "cpu"
        if kind in (t.SIGNALLED, t.EXPIRED):
            parked -= 1
        put(found, account, before - start, at - start)
    return tuple(found)


def put(segments: list[Segment], account: t.Account, began: int, ended: int) -> None:
    """Add a stretch at the end; nothing for an empty one."""
    if ended <= began:
        return
    if segments and segments[-1][0] == account and segments[-1][2] == began:
        segments[-1] = (account, segments[-1][1], ended)
    else:
        segments.append((account, began, ended))
