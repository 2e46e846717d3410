"""Promotion: which waits are worth a span of their own, and which are a number on the span around them.

Law: pure state, learned from every run that has ended, kept or not. A wait has a span when it took longer than its
setting, and longer than 95 of 100 waits of that route have lately taken: on a route whose runs all wait for 8 ms, 8 ms
are no news. But a route where everybody waits must not hide it, so the bar is never higher than twenty times the
setting; and below a hundred waits nothing is usual, and the setting alone counts.

    bar = setting                               while the route has had fewer than 100 waits in the last minute
        = max(setting, min(p95, 20 x setting))  otherwise

Refused: to lower the bar to the p95 of a route that hardly waits. One run in twenty of every route would carry spans
of microseconds that nobody has asked for; the sum is on the run in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from zerver.core import timeline as t
from zerver.core.latencies import Latencies
from zerver.errors import DefinitionError

Wait: TypeAlias = Literal["admission", "turn", "park"]

WAITS: Final[tuple[Wait, ...]] = ("admission", "turn", "park")

_SHARE: Final = 0.95
_HIGHEST: Final = 20  # times the setting
_MOST_ROUTES: Final = 1_000  # strangers may invent methods, and a mount's label has them in it
_OTHERS: Final = "(others)"


class Promotion:
    """Decides which waits are promoted. queue_ms: for admission and turns. park_ms: for signals. Both in milliseconds.

    Raises DefinitionError for less than 0.
    """

    def __init__(self, queue_ms: float = 5.0, park_ms: float = 5.0) -> None:
        if not (0 <= queue_ms < float("inf") and 0 <= park_ms < float("inf")):
            raise DefinitionError(f"Promotion(queue_ms={queue_ms}, park_ms={park_ms})", "give milliseconds, 0 or more")
        self._settings: dict[Wait, float] = {
            "admission": queue_ms / 1e3, "turn": queue_ms / 1e3, "park": park_ms / 1e3
        }  # fmt: skip
        self._waits: dict[tuple[str, str], Latencies] = {}
        self._now = 0.0

    def learn(self, route: str, records: Sequence[t.Record]) -> None:
        """Remember the waits of a run that has ended: one look at each of its records."""
        parked: dict[int, int] = {}
        for kind, at, subject, detail in records:
            if kind in (t.ADMITTED, t.REFUSED):
                self._add(route, "admission", at - records[0][1], at)
            elif kind == t.TURN:
                self._add(route, "turn", at - detail, at)
            elif kind == t.PARKED:
                parked[id(subject)] = at
            elif kind in (t.SIGNALLED, t.EXPIRED):
                self._add(route, "park", at - parked.pop(id(subject), at), at)

    def bars(self, route: str) -> dict[Wait, int]:
        """How long (ns) each wait must take on this route, from now on, to be promoted."""
        return {wait: round(self._bar(route, wait) * 1e9) for wait in WAITS}

    def _bar(self, route: str, wait: Wait) -> float:
        setting = self._settings[wait]
        known = self._waits.get((route, wait)) or self._waits.get((_OTHERS, wait))
        usual = None if known is None else known.percentile(_SHARE, self._now)
        return setting if usual is None else max(setting, min(usual, _HIGHEST * setting))

    def _add(self, route: str, wait: Wait, ns: int, at: int) -> None:
        known = self._waits.get((route, wait))
        if known is None:
            key = (route if len(self._waits) < _MOST_ROUTES else _OTHERS, wait)
            known = self._waits.setdefault(key, Latencies())
        self._now = max(self._now, at / 1e9)
        known.add(max(0, ns) / 1e9, self._now)
