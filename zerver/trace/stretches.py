"""Stretches: to which account each moment of a run belongs.

Law: which account that is says `zerver.core.timeline.accounts`, here they are laid out; the stretches of a run follow
one another without a gap, and sum up to its accounts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from zerver.core import timeline as t

#: (account, began, ended): nanoseconds since the run began.
Segment: TypeAlias = t.Stretch


def stretches(records: Sequence[t.Record]) -> tuple[Segment, ...]:
    """The accounts of a run, laid out in time; neighbours of one account are one stretch."""
    if not records:
        return ()
    laid_out: list[t.Stretch] = []
    t.accounts(records, laid_out)
    found: list[Segment] = []
    start = records[0][1]
    for account, began, ended in laid_out:
        put(found, account, began - start, ended - start)
    return tuple(found)


def put(segments: list[Segment], account: t.Account, began: int, ended: int) -> None:
    """Add a stretch at the end; nothing for an empty one."""
    if ended <= began:
        return
    if segments and segments[-1][0] == account and segments[-1][2] == began:
        segments[-1] = (account, segments[-1][1], ended)
    else:
        segments.append((account, began, ended))
