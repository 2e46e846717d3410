"""Every error Zerver raises, in one tree.

Law: three kinds of trouble are kept apart: *you* made a mistake (DefinitionError, ImpureStepError), *the world* failed
(EffectError, DriverError, HttpError, RunError), or *we* did (InternalError). A class is a meaning: there is a new one
only where somebody would do something else about it. Cancellation is none of them: it is Trio's, and is never wrapped.

    ZerverError
    ├─ DefinitionError         the app is wrong; raised while it is built, or by what a step makes
    ├─ ImpureStepError         a step awaited something that is not an effect
    ├─ EffectError             an effect came to nothing; raised at its `await` inside a step
    │   ├─ EffectTimeout           no attempt answered within its timeout
    │   ├─ EffectRefused           not attempted: breaker open, bulkhead full, or budget spent
    │   ├─ OutcomeUnknown          a write may or may not have happened
    │   └─ JoinFailed              a join cannot be met any more
    ├─ Rejected                raised by a handler: the other side said a definite no
    ├─ RunError                a run did not end with Done; raised by Result.unwrap()
    │   ├─ RunFailed               a step decided Fail, an effect failed uncaught, or the request was bad
    │   ├─ RunDefect               a step raised: a bug in the flow
    │   ├─ DeadlinePassed          the run's deadline came first
    │   ├─ RunCancelled            the client left, the host cancelled, or the runtime drained
    │   ├─ RunRefused              admission refused the run
    │   └─ RunParked               it was put down, and goes on when its signal comes
    ├─ ActorError              talking to an actor did not work out
    │   ├─ ActorStopped            it has ended, or ended before it answered
    │   ├─ ActorCrashed            it crashed on this very message; `__cause__` is the defect
    │   ├─ MailboxFull             `tell_nowait` found no room
    │   └─ AskTimeout              the answer did not come in time
    ├─ DriverError             a database driver failed
    │   ├─ StatementError          the statement is wrong, or broke a constraint
    │   ├─ DriverClosed            the driver was closed, by you
    │   ├─ DatabaseDown            no connection was to be had, or it broke before the commit: nothing has happened
    │   └─ ConnectionLost          the connection broke, by the world; a write may have happened
    ├─ HttpError               an HTTP exchange failed
    │   ├─ ProtocolViolation       the peer's bytes are not HTTP, or are over a limit
    │   ├─ ConnectFailed           no connection was made: nothing was sent
    │   │   └─ AddressRefused          the name leads to an address that this client may not talk to
    │   ├─ ExchangeFailed          the connection broke after the request was (partly) sent
    │   └─ KeyRefused              an Idempotency-Key is missing, malformed, in use, or another request's
    ├─ InvalidData             a value does not have the shape that was asked for; `.problems` lists all
    ├─ TraceError              a recorded run cannot be read: torn, hostile, or of another version
    ├─ JournalError            the journal has not taken, or cannot give, what a run needs to survive
    │   ├─ JournalUnavailable      it cannot be reached or written now; the very same may be asked again
    │   ├─ LeaseLost               the run is another worker's by now, or over: let go of it
    │   ├─ NotKeepable             a value could not be read again as what it is
    │   ├─ CannotRetry             a run that is to be tried again cannot be, here; the run is as it was
    │   └─ DamagedJournal          what stands there is not what was written, or of a version not known here
    └─ InternalError           a bug in Zerver; please report it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ZerverError(Exception):
    """The root: `except ZerverError` catches everything Zerver raises on purpose."""


# ---- you ------------------------------------------------------------------------------------


class DefinitionError(ZerverError):
    """The app is wrong. Names the thing and the place on its first line, the cure on the second.

    Source: building a Step, Flow or App, `zerver check`, or opening a runtime; and inside a step, an effect or
    Insert that cannot work, which is the run's defect.
    """

    def __init__(self, problem: str, cure: str = "") -> None:
        self.problem = problem
        self.cure = cure
        super().__init__(f"{problem}\n  {cure}" if cure else problem)


class ImpureStepError(ZerverError):
    """An async step awaited something that is not an effect; the message names file and line."""


# ---- the world: effects ---------------------------------------------------------------------


class EffectError(ZerverError):
    """An effect failed. A step may catch it at its `await`; uncaught, it is the run's failure.

    kind: the effect's kind, as `sql.fetch_one`. cause: what the handler raised, if it raised.
    """

    def __init__(self, kind: str, reason: str, cause: BaseException | None = None) -> None:
        self.kind = kind
        self.reason = reason
        self.cause = cause
        super().__init__(f"{kind}: {reason}")


class EffectTimeout(EffectError):
    """The last attempt did not answer within its timeout (seconds, in the reason)."""


class EffectRefused(EffectError):
    """The effect was not attempted: breaker open, bulkhead full or retry budget spent.

    A refused effect has certainly not happened.
    """


class OutcomeUnknown(EffectError):
    """A write was sent and no answer told whether it happened.

    A handler raises it to say so itself; the runtime raises it when a write times out or loses its
    connection and could not be resolved.
    """


class JoinFailed(EffectError):
    """The join cannot be met any more; `failures` holds the errors of its members, in argument order."""

    def __init__(self, kind: str, reason: str, failures: Sequence[EffectError] = ()) -> None:
        super().__init__(kind, reason, failures[0] if failures else None)
        self.failures = tuple(failures)


class Rejected(ZerverError):
    """Raised by an effect's handler: the other side answered, and the answer is a definite no.

    The effect has certainly not happened, is not tried again, and says nothing bad about its target. Anything else that
    a handler raises while it performs a write leaves the write in doubt, unless it says that nothing was sent
    (ConnectFailed, EffectRefused). The step sees an EffectError whose `cause` is this.
    """


# ---- the world: runs ------------------------------------------------------------------------


class RunError(ZerverError):
    """A run did not end with Done. `result` is the run's Result, timeline included."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result


class RunFailed(RunError):
    """A step decided Fail, an effect failed and no step caught it, or the request could not be read."""


class RunDefect(RunError):
    """A step raised an exception that is no EffectError; `__cause__` is that exception."""


class DeadlinePassed(RunError):
    """The run's deadline passed before it ended; what it had committed was compensated."""


class RunCancelled(RunError):
    """The run was cancelled; `result.reason` says by whom."""


class RunRefused(RunError):
    """Admission refused the run; nothing of it was started. `retry_after` is in seconds, or None."""

    def __init__(self, message: str, result: Any, retry_after: float | None = None) -> None:
        super().__init__(message, result)
        self.retry_after = retry_after


class RunParked(RunError):
    """The run has not ended: it was put down, and goes on when a signal comes. `result.continuations` says which."""


# ---- the world: actors ----------------------------------------------------------------------


class ActorError(ZerverError):
    """Talking to an actor did not work out."""


class ActorStopped(ActorError):
    """The actor has ended, or ended before it answered this message."""


class ActorCrashed(ActorError):
    """The actor crashed while it handled this message. `__cause__` is what it raised."""


class MailboxFull(ActorError):
    """`tell_nowait` found the mailbox full."""


class AskTimeout(ActorError):
    """The answer did not come within the deadline given to `ask`."""


# ---- the world: drivers and HTTP ------------------------------------------------------------


class DriverError(ZerverError):
    """A database driver failed."""


#: Codes of errors that speak of the moment, and not of the statement: SQLite's, and classes of PostgreSQL's.
_PASSING = (
    *("SQLITE_FULL", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN"),
    *("SQLITE_NOMEM", "SQLITE_PROTOCOL", "08", "25006", "40", "53", "55P03", "57", "58"),
)


class StatementError(DriverError):
    """The statement is wrong or broke a constraint; it has certainly not taken effect.

    code: the driver's own name of the error, as `SQLITE_CONSTRAINT_UNIQUE`.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code

    @property
    def passes(self) -> bool:
        """Whether the same statement may pass another time: no room, no lock, no right to write just now."""
        return self.code.startswith(_PASSING)


class DriverClosed(DriverError):
    """The driver was closed, by its owner, before the call or while it ran; what it asked for has not happened."""


class DatabaseDown(DriverError):
    """The database could not be reached, or went away before the commit was sent: the call has certainly not happened.

    retry_after: seconds for which it is of no use to try again; 0 if nobody knows.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ConnectionLost(DriverError):
    """The connection broke during the call: a write may or may not have happened."""


class HttpError(ZerverError):
    """An HTTP exchange failed."""


class ProtocolViolation(HttpError):
    """The peer's bytes are not HTTP/1.1, or are over a limit. status: what a server should answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ConnectFailed(HttpError):
    """No connection was made: the request has certainly not been sent."""


class AddressRefused(ConnectFailed):
    """The host has only addresses that this client may not talk to, as those of private networks.

    Trying again changes nothing: the URL is wrong, or the client needs `allow_private=True`.
    """


class ExchangeFailed(HttpError):
    """The connection broke after at least part of the request was sent."""


class KeyRefused(HttpError):
    """The request's Idempotency-Key does not do: nothing was run for it.

    what: "missing", "malformed", "in_use" (a run is under way for it), "other_request" (it belongs to one that is not
    the same), or "unavailable" (nobody can say). status: of the answer. retry_after: seconds, when asking again helps.
    """

    def __init__(self, what: str, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.what = what
        self.status = status
        self.retry_after = retry_after


# ---- values, and us -------------------------------------------------------------------------


class InvalidData(ZerverError):
    """A value does not have the shape that was asked for.

    problems: every one found, as (where, what): where is a path like `body.items[2].sku`.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{where}: {what}" for where, what in self.problems))


class TraceError(ZerverError):
    """A recorded run cannot be read: its bytes are torn, are no recording at all, or are of a version not known here.

    Nothing of it was used. The message says where, and never what stands there.
    """


class JournalError(ZerverError):
    """The journal has not taken, or cannot give, what a run needs to survive."""


class JournalUnavailable(JournalError):
    """The journal cannot be reached or written now: a database that is away, a full disk, a lock that stays held.

    What was to be written may be there or not, and was not acknowledged; to write the very same again is safe.
    retry_after: seconds for which it is of no use to try again; 0 if nobody knows.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LeaseLost(JournalError):
    """Another worker has taken the run over, or it has ended: nothing was written, and its old owner lets go of it."""


class NotKeepable(JournalError):
    """A value of a durable run could not be read again as what it is: an open file, or an object without fields.

    The message names its class, the record, and what to do.
    """


class CannotRetry(JournalError):
    """A run that is to be tried again cannot be: there is none, it needs nobody, or its code is not here.

    Nothing was done to it. The message says why, and what can be done.
    """


class DamagedJournal(JournalError):
    """What stands in the journal is not what was written, or it is no journal, or one of a version not known here.

    Nothing of it was used. The message names the way out.
    """


class InternalError(ZerverError):
    """A bug in Zerver: something that cannot happen did. Please report it with the timeline."""
