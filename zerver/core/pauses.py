"""Pauses: the steps of a run that wait for signals, and until when each does.

Law: they are kept here, and nothing is decided: the machine says when one begins and ends, and writes the records.
Parked time is not the run's: what a deadline of a nested flow around a parked step loses by it, it gets back.
"""

from __future__ import annotations

from collections.abc import Iterator

from zerver.core.decisions import Pause
from zerver.core.places import Activation, postpone
from zerver.core.signals import fitted, wanted
from zerver.errors import DefinitionError


class Pauses:
    """The pauses of one run, by signal. idle_since: when nothing but signals was left to wait for (ns)."""

    __slots__ = ("_parked", "idle_since")

    def __init__(self) -> None:
        self._parked: dict[str, tuple[Activation, Pause, int]] = {}  # and when its time is over
        self.idle_since = 0

    def __bool__(self) -> bool:
        return bool(self._parked)

    def __iter__(self) -> Iterator[Activation]:
        return iter([activation for activation, _, _ in self._parked.values()])

    @property
    def until(self) -> tuple[tuple[str, int], ...]:
        """The signals, each with when its time is over (ns)."""
        return tuple((signal, until_ns) for signal, (_, _, until_ns) in self._parked.items())

    def clash(self, flow: str, pause: Pause) -> DefinitionError | None:
        """What is wrong with one more pause of this signal, if another step waits for it."""
        if pause.signal not in self._parked:
            return None
        return DefinitionError(
            f"flow {flow!r}: two steps wait for signal {pause.signal!r} at once", "give each a name of its own"
        )

    def begin(self, activation: Activation, pause: Pause, now: int) -> None:
        """A step waits from now on (ns)."""
        self._parked[pause.signal] = activation, pause, now + int(pause.expires * 1e9)

    def end(self, signal: str, now: int) -> tuple[Activation, Pause, int]:
        """A step waits no more: which, for what, and how long the run was idle (ns). Raises KeyError when none does."""
        idle, places = now - self.idle_since, [activation.place for activation in self]
        activation, pause, _ = self._parked.pop(signal)
        postpone(places, idle)
        return activation, pause, idle

    def check(self, signal: str, value: object, where: str) -> None:
        """Raise InvalidData for a value that the step which waits for this signal could not take, if one does."""
        if signal in self._parked:
            activation, pause, _ = self._parked[signal]
            fitted(value, wanted(activation.node, pause), where)

    def clear(self) -> None:
        """The run is over: nothing is waited for."""
        self._parked.clear()
