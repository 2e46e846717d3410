"""The admission actor: gives tickets, keeps who must wait, and refuses honestly.

Law: the state has one owner, and nothing is awaited between reading and changing it, so it needs no mailbox: an arrival
that finds a seat costs one function call and no task switch. `zerver.core.admission` decides.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import outcome
import trio

from zerver.core.admission import Admission, Limits, Refusal, Waiting
from zerver.core.priorities import Priority


@attrs.frozen
class AdmissionStatistics:
    """running: runs with a ticket. queued: runs that wait for one. admitted, refused: since the start. waited:
    seconds, moving.
    """

    running: int
    queued: int
    admitted: int
    refused: int
    waited: float
    draining: bool


class AdmissionActor:
    """Tickets for one runtime."""

    def __init__(self, limits: Limits) -> None:
        self._state = Admission(limits)
        self._tasks: dict[Waiting, trio.lowlevel.Task] = {}
        self._admitted = 0
        self._refused = 0
        self._idle: list[Callable[[], None]] = []

    async def acquire(self, priority: Priority, deadline: float) -> Refusal | None:
        """Wait for a ticket: None when it is given, to be followed by one `release`; otherwise why not.

        deadline: on Trio's clock, or inf. Not a checkpoint when a seat is free.
        """
        answer = self._state.arrive(priority, trio.current_time(), deadline)
        if answer is None:
            self._admitted += 1
            return None
        if isinstance(answer, Refusal):
            self._refused += 1
            return answer
        return await self._wait(answer)

    def release(self) -> None:
        """A run with a ticket has ended: the next one is served."""
        self._state.leave()
        if self._state.queued:
            self._serve()
        if not self._state.running:
            for tell in self._idle:
                tell()

    def drain(self) -> None:
        """Admit nobody any more; who waits is refused."""
        self._state.draining = True
        for entry, task in list(self._tasks.items()):
            self._state.abandon(entry)
            del self._tasks[entry]
            self._refused += 1
            trio.lowlevel.reschedule(task, _value(Refusal("draining")))

    async def wait_idle(self) -> None:
        """Wait until no run holds a ticket."""
        while self._state.running:
            event = trio.Event()
            self._idle.append(event.set)
            try:
                await event.wait()
            finally:
                self._idle.remove(event.set)

    def statistics(self) -> AdmissionStatistics:
        state = self._state
        return AdmissionStatistics(
            state.running, state.queued, self._admitted, self._refused, state.waited, state.draining
        )

    async def _wait(self, entry: Waiting) -> Refusal | None:
        self._tasks[entry] = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            # Still waiting, or it would have been rescheduled: the place is given up and nothing is owed.
            self._state.abandon(entry)
            del self._tasks[entry]
            return trio.lowlevel.Abort.SUCCEEDED

        answer: Refusal | None = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    def _serve(self) -> None:
        while (granted := self._state.grant(trio.current_time())) is not None:
            entry, refusal = granted
            if refusal is None:
                self._admitted += 1
            else:
                self._refused += 1
            trio.lowlevel.reschedule(self._tasks.pop(entry), _value(refusal))


def _value(refusal: Refusal | None) -> outcome.Value[Refusal | None]:
    return outcome.Value(refusal)
