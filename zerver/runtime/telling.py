"""Telling: who hears of runs that have ended, and how many there were.

Law: whoever is told must be quick, and cannot fail a run: what he raises is counted, and goes no further. Of what
somebody must look at, somebody is told: the app's `on_unresolved`, an observer of the run, or else the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from zerver.runtime.alarm import Alarm, unresolved_alarm
from zerver.runtime.result import Result

#: Told of every run once it has ended: must be quick, and its errors are counted, not raised.
Observer = Callable[[Result], None]

_log = logging.getLogger(__name__)


class Telling:
    """Those who listen to one runtime. ended, unresolved, set_aside: runs. errors: what listeners have raised."""

    def __init__(self, observers: Sequence[Observer], on_alarm: Callable[[Alarm], object] | None) -> None:
        self.observers = list(observers)
        self.ended = self.unresolved = self.set_aside = self.errors = 0
        self._on_alarm = on_alarm
        self._followers: dict[str, Observer] = {}

    def seal(self, result: Result, edge: bool) -> Result:
        """Count a run that has ended. edge: there is one, which has the observers told when it has an answer."""
        self.ended += 1
        if result.unresolved:
            alarm = unresolved_alarm(result)
            if self._on_alarm is None and not self.observers:
                _log.error("run %s of flow %r is unresolved: %s", alarm.run_id, alarm.flow, alarm.why)
            self._raise(alarm)
        if not edge:
            self.tell(result)
        return result

    def tell(self, result: Result) -> None:
        """Tell the observers."""
        for observe in self.observers:
            try:
                observe(result)
            except Exception:  # whoever watches a run must not be able to fail it
                self.errors += 1

    def alarm(self, alarm: Alarm) -> None:
        """Somebody must look at a run that is only in the journal: no observer hears of it."""
        if self._on_alarm is None:
            what, why = "stuck" if alarm.stuck else "unresolved", alarm.why.partition("\n")[0]
            _log.error("run %s of flow %r is %s: %s; see `zerver sagas`", alarm.run_id, alarm.flow, what, why)
        self._raise(alarm)

    def _raise(self, alarm: Alarm) -> None:
        """Count it, and tell the app."""
        if alarm.stuck:
            self.set_aside += 1
        else:
            self.unresolved += 1
        if self._on_alarm is not None:
            try:
                self._on_alarm(alarm)
            except Exception:  # as an observer
                self.errors += 1

    @contextmanager
    def follow(self, prefix: str, follower: Observer) -> Iterator[None]:
        """See `Runtime.follow`."""
        self._followers[prefix] = follower
        try:
            yield
        finally:
            del self._followers[prefix]

    def carried_on(self, result: Result) -> None:
        """A run that was carried on here has ended, or is parked again: nobody waits for it but who follows it."""
        for prefix, follower in self._followers.items():
            if result.run_id.startswith(prefix):
                follower(result)
