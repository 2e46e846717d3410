"""Bounds: what ends an attempt in time. Its run alone; or the run's own scope, lent to it; or a scope of its own.

Law: a run's scope is lent to one call, for which the run's own task waits, and nothing else. It is given back with the
deadline that it had. One that is used up, because the call's time was over, is not waited in again: the next checkpoint
takes the run out of it, and in another one it goes on with the call (`Run.take_back`).

Half of what Trio spends on an effect with a timeout is its scope; to move the deadline of an open one is a fifth of
that. To leave it moved until the next effect moves it would spare half of this again; refused, because every other wait
of the run would have to know.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import TracebackType
from typing import Final, NoReturn, TypeAlias, cast

import trio

from zerver.core.calls import Call
from zerver.errors import InternalError
from zerver.runtime.clocks import NEVER
from zerver.runtime.live import Rest, Run


class Loan:
    """The scope of a run until `ends`, on Trio's clock, which is before the run's own deadline."""

    __slots__ = ("_run", "_scope", "ends")

    def __init__(self, run: Run, ends: float) -> None:
        self._run = run
        self._scope = run.scope
        self.ends = ends

    def __enter__(self) -> None:
        self._scope.deadline = self.ends

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> bool:
        """Give it back. Catches the Cancelled that says that the call's time is over, as a scope of its own would:
        `leave` lets the next one through.
        """
        self._scope.deadline = self._run.deadline
        return kind is trio.Cancelled and self.is_used_up

    @property
    def is_used_up(self) -> bool:
        """Whether the scope was cancelled because the call's time is over, and for no other reason that is known."""
        run = self._run
        return self._scope.cancel_called and run.cut is None and trio.current_time() < run.deadline

    async def leave(self, call: Call, rest: Rest) -> NoReturn:
        """Leave the scope, which is used up and lets no checkpoint pass. rest: what is left to do for the call."""
        run = self._run
        run.outlived = call, rest
        await trio.lowlevel.checkpoint()
        raise InternalError(f"run {run.run_id} is in a cancelled scope, and goes on")


Bounds: TypeAlias = trio.CancelScope | Loan

#: Which it is, as far as `with` can tell.
UNBOUNDED: Final = cast("trio.CancelScope", nullcontext())


def bounds_of(run: Run, call: Call, timeout: float | None, now: float, rollback: bool, lends: bool) -> Bounds:
    """What ends an attempt in time. lends: it may be the run's scope, because nobody has to know what comes of the
    attempt before that is left.
    """
    ends = NEVER if timeout is None else now + timeout
    if call.until_ns is not None:
        ends = min(ends, now + max(0.0, (call.until_ns - run.clock()) / 1e9))
    if ends >= run.deadline and not rollback:  # a rollback is outside the run's scope
        return UNBOUNDED
    if lends and call is run.alone:
        return Loan(run, ends)
    return trio.CancelScope(deadline=ends)
