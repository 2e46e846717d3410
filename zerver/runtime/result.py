"""Results: what a run came to, as a value.

Law: a run that was begun has a Result whatever became of it; only `unwrap` makes an exception of one.
"""

from __future__ import annotations

from typing import Any

from zerver.core.saga import Entry
from zerver.core.tickets import Refusal
from zerver.core.timeline import Ending, Status, Timeline
from zerver.core.values import value
from zerver.errors import DeadlinePassed, RunCancelled, RunDefect, RunError, RunFailed, RunParked, RunRefused


@value
class Continuation:
    """How a run that was put down can be made to go on: `await runtime.signal(run_id, signal, value, number)`.

    number: which pause of the run, so that one signal ends one pause; the first is 1. expires_unix_ns: wall time.
    """

    signal: str
    number: int
    expires_unix_ns: int


@value(eq=False)
class Result:
    """What a run came to. A failure is a value here; `unwrap` makes an exception of it.

    status: "done", "failed", "defect", "deadline", "cancelled", "refused"; or "parked", when a durable run was put down
    and has not ended. unresolved: writes of which nobody can say that they are right; when there are any, somebody must
    look. sealed: False while the rollback is still going on, which only who asked for it by `after=` gets to see; and
    of a run that was put down. continuations: of such a run, what it waits for, the first to expire first.
    """

    timeline: Timeline
    ending: Ending
    unresolved: tuple[Entry, ...] = ()
    sealed: bool = True
    continuations: tuple[Continuation, ...] = ()

    @property
    def run_id(self) -> str:
        return self.timeline.run_id

    @property
    def status(self) -> Status:
        return self.ending.status

    @property
    def ok(self) -> bool:
        """Whether the run was done."""
        return self.ending.status == "done"

    @property
    def value(self) -> Any:
        """What Done carried, or the slots that the flow gives; None when the run was not done."""
        return self.ending.value

    @property
    def cause(self) -> object:
        """Why it was not done: a Fail, an EffectError, the exception of a defect, or a Refusal."""
        return self.ending.cause

    @property
    def reason(self) -> str:
        """Who cancelled it, in words."""
        return self.ending.reason

    def unwrap(self) -> Any:
        """The value. Raises RunFailed, RunDefect, DeadlinePassed, RunCancelled, RunRefused or RunParked when there is
        none.
        """
        if self.ok:
            return self.value
        raise self._error() from (self.cause if isinstance(self.cause, BaseException) else None)

    def _error(self) -> RunError:
        label = f"run {self.run_id} of flow {self.timeline.flow!r}"
        cause = self.cause
        if isinstance(cause, Refusal):
            return RunRefused(f"{label} was refused: {cause.reason}", self, cause.retry_after)
        error, said = _ERRORS[self.status]
        return error(f"{label} {said.format(cause=cause, reason=self.reason)}", self)


_ERRORS: dict[Status, tuple[type[RunError], str]] = {
    "failed": (RunFailed, "failed: {cause}"),
    "defect": (RunDefect, "has a defect: {cause!r}"),
    "deadline": (DeadlinePassed, "passed its deadline"),
    "cancelled": (RunCancelled, "was cancelled: {reason}"),
    "parked": (RunParked, "is parked: {reason}"),
}
