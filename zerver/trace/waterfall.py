"""The waterfall: spans as JSON that a screen can draw, and the silences that it squeezes.

Law: no more than can be seen. A span of ten thousand waits is drawn by a few hundred stretches, each of the account
that has most of it; a silence is told when it is a good part of the whole. Linear in what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from zerver.core.timeline import Account, Record
from zerver.trace.bars import Span
from zerver.trace.stretches import Segment, put
from zerver.trace.veil import escaped

_MOST_SEGMENTS: Final = 256
_MOST_EVENTS: Final = 100
_GAP_PART: Final = 50  # a silence longer than a fiftieth of the whole is a gap; so there are fewer than fifty


def span_json(span: Span) -> dict[str, Any]:
    return {
        "id": span.id,
        "parent": span.parent,
        "kind": span.kind,
        "name": escaped(span.name),
        "began_ns": span.began,
        "ended_ns": span.ended,
        "status": span.status,
        "segments": [{"account": account, "began_ns": a, "ended_ns": b} for account, a, b in _coarse(span.segments)],
        "attributes": {
            name: escaped(said) if isinstance(said, str) else said for name, said in span.attributes.items()
        },
        "events": [
            {
                "at_ns": event.at,
                "name": event.name,
                "attributes": {n: escaped(v) if isinstance(v, str) else v for n, v in event.attributes.items()},
            }
            for event in span.events[:_MOST_EVENTS]
        ],
    }


def _coarse(segments: Sequence[Segment]) -> Sequence[Segment]:
    """The same with no more stretches than a screen can show: many short ones become one, of the account that has
    most of it.
    """
    if len(segments) <= _MOST_SEGMENTS:
        return segments
    first, last = segments[0][1], segments[-1][2]
    slices: list[dict[Account, int]] = [{} for _ in range(_MOST_SEGMENTS)]
    width = (last - first) // _MOST_SEGMENTS + 1
    for account, began, ended in segments:
        at, until = (began - first) // width, (ended - 1 - first) // width
        if at == until:  # most of them, where there are many
            slices[at][account] = slices[at].get(account, 0) + ended - began
            continue
        for number in range(at, until + 1):
            start = first + number * width
            part = min(ended, start + width) - max(began, start)
            slices[number][account] = slices[number].get(account, 0) + part
    found: list[Segment] = []
    for number, sums in enumerate(slices):
        start = first + number * width
        if sums and start < last:
            put(found, max(sums, key=lambda name: sums[name]), start, min(last, start + width))
    return found


def in_tree_order(spans: tuple[Span, ...]) -> Iterator[Span]:
    children: dict[int, list[Span]] = {}
    for span in spans:
        if span.parent is not None:
            children.setdefault(span.parent, []).append(span)
    stack = [span for span in reversed(spans) if span.parent is None]
    while stack:
        span = stack.pop()
        yield span
        stack += sorted(children.get(span.id, ()), key=lambda child: (-child.began, -child.id))


def gaps(records: Sequence[Record], segments: Sequence[Segment]) -> Iterator[dict[str, Any]]:
    """The long silences between records, in order of time, each with the account that most of it belongs to.

    segments: of the run, in order of time.
    """
    if not records:
        return
    start, before = records[0][1], records[0][1]
    shortest = max(1, (records[-1][1] - start) // _GAP_PART)
    at = 0
    for _, now, _, _ in records:
        began, ended, before = before - start, now - start, now
        if ended - began <= shortest:
            continue
        while at < len(segments) and segments[at][2] <= began:
            at += 1
        yield {"began_ns": began, "ended_ns": ended, "account": _mostly(segments, at, began, ended)}


def _mostly(segments: Sequence[Segment], at: int, began: int, ended: int) -> str:
    sums: dict[str, int] = {}
    while at < len(segments) and segments[at][1] < ended:
        account, a, b = segments[at]
        sums[account] = sums.get(account, 0) + min(b, ended) - max(a, began)
        at += 1
    return max(sums, key=lambda name: sums[name], default="cpu")
