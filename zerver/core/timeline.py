"""The timeline: the ordered records of a run, and the only source of truth about it.

Law: a record is a tuple `(kind, at, subject, detail)`, appended when something happens and never changed; `at` is in
nanoseconds of the runtime's monotonic clock. Values are kept by reference and formatted only when somebody looks.

    kind        subject     detail                                written when
    received    flow        None                                  the runtime was asked to run the flow
    admitted    flow        priority                              admission gave a ticket
    refused     flow        Refusal                               admission gave none
    keyed       flow        (Keyed, run id)                       the request's idempotency key was looked up; which
                                                                  run had it before, or ""
    job         flow        (queue, attempt, attempts, ns)        the run is an attempt of a job, which waited so long
    read        flow        None                                  the edge has read the request
    input       plan        (parts, takes, deadline_ns, parallel) the machine is started with them: what a replay needs
    turn        flow, call  since                                 the run had waited for its turn since then (ns)
                or node                                           a node: it had breathed, and goes on there
    breath      node        None                                  its slice was over before this step: others go first
    overrun     step name   Overrun                               a step held its loop for longer than its class may
    step        node        (began, answer)                       a step answered: a value or a decision
    defect      node        (began, exception)                    a step raised
    fault       node        (began, EffectError)                  a failed effect was not caught by its step
    branch      node        bool                                  a branch was decided
    plan        node        ("insert" | "replace", names)         a step changed the rest of the plan
    pivot       node        None                                  the point of no return was passed
    asked       call        None                                  a step asked for an effect
    attempt     call        number                                a further attempt starts (2 for the first retry)
    failed      call        (number, EffectError, doubt, wait,    an attempt failed; seconds until the next, or None and
                             why)                                 why there is none though the policy allows it, or ""
    hedged      call        number                                a hedge starts attempt `number`
    held        call        reason                                a hedge was due, and is held back for now
    committed   call        value                                 a write has happened
    doubted     call        EffectError                           a write may have happened
    resolved    call        Outcome                               the other side was asked about a write in doubt
    settled     call        Outcome                               the effect came to its outcome
    late        call        Outcome                               the same, when nobody wanted it any more
    lost        call        winners                               a join was decided; its other members are losers
    cut         call        reason                                the effect was cancelled
    ending      flow        Ending                                the run is over, but for its rollback
    undo        entry       "resolve" | "undo"                    the rollback starts one task
    undone      entry       (verb, Outcome)                       the task came to its outcome
    gave_up     entry       None                                  the rollback ran out of time
    parked      node        Pause                                 the run waits for a signal
    signalled   node        value                                 the signal came
    expired     node        None                                  it did not
    unresolved  entry       exception, or None                    nobody can say that the write is right
    ended       flow        Ending                                nothing is left to do for the run
    answered    flow        status                                its edge has an answer for it, with this HTTP status
    recovered   flow        owner                                 its process had died; this worker goes on with it
    resumed     flow        owner                                 it was put down, parked; this worker goes on with it
    retried     flow        owner                                 it had ended unresolved; this worker tries again

After `ended` there may still be an overrun of the last turn; `answered` may also come before a rollback is over. What
was retried ends once more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import attrs

from zerver.core.values import value

Record: TypeAlias = tuple[str, int, Any, Any]

RECEIVED: Final = "received"
ADMITTED: Final = "admitted"
REFUSED: Final = "refused"
KEYED: Final = "keyed"
JOB: Final = "job"
READ: Final = "read"
INPUT: Final = "input"
TURN: Final = "turn"
BREATH: Final = "breath"
OVERRUN: Final = "overrun"
STEP: Final = "step"
DEFECT: Final = "defect"
FAULT: Final = "fault"
BRANCH: Final = "branch"
PLAN: Final = "plan"
PIVOT: Final = "pivot"
ASKED: Final = "asked"
ATTEMPT: Final = "attempt"
FAILED: Final = "failed"
HEDGED: Final = "hedged"
HELD: Final = "held"
COMMITTED: Final = "committed"
DOUBTED: Final = "doubted"
RESOLVED: Final = "resolved"
SETTLED: Final = "settled"
LATE: Final = "late"
LOST: Final = "lost"
CUT: Final = "cut"
ENDING: Final = "ending"
UNDO: Final = "undo"
UNDONE: Final = "undone"
GAVE_UP: Final = "gave_up"
UNRESOLVED: Final = "unresolved"
PARKED: Final = "parked"
SIGNALLED: Final = "signalled"
EXPIRED: Final = "expired"
ENDED: Final = "ended"
ANSWERED: Final = "answered"
RECOVERED: Final = "recovered"
RESUMED: Final = "resumed"
RETRIED: Final = "retried"

Account = Literal["admission", "turn", "cpu", "io", "parked"]

#: (account, from, to), in nanoseconds.
Stretch: TypeAlias = tuple[Account, int, int]

#: Which account the time before a record belongs to; what is not named here ends a stretch of CPU work.
ACCOUNTS: Final[dict[str, Account]] = {
    ADMITTED: "admission",
    REFUSED: "admission",
    KEYED: "io",
    READ: "io",
    TURN: "turn",
    ATTEMPT: "io",
    FAILED: "io",
    HEDGED: "io",
    HELD: "io",
    COMMITTED: "io",
    DOUBTED: "io",
    RESOLVED: "io",
    SETTLED: "io",
    LATE: "io",
    CUT: "io",
    UNDONE: "io",
    GAVE_UP: "io",
    SIGNALLED: "parked",
    EXPIRED: "parked",
    RECOVERED: "parked",  # nobody worked on it
    RESUMED: "parked",
    RETRIED: "parked",
}

#: What came of a request's idempotency key: the run has it now, or has it in place of a run that was cut off; or there
#: is nothing to run, since the request gets the answer that another run has made, that one is under way, or it was
#: begun by another request.
Keyed = Literal["claimed", "took over", "repeats", "in use", "other request"]

#: "parked" is no end: it is what a caller gets whose run was put down, and no record says it.
Status = Literal["done", "failed", "defect", "deadline", "cancelled", "refused", "parked"]


@value(eq=False)
class Ending:
    """How a run ended.

    status: "done"; "failed" (a Fail, or an effect's error); "defect" (a step raised); "deadline"; "cancelled";
    "refused"; "parked": it has not ended, and goes on when its signal comes.
    value: what Done carried. cause: the Fail, EffectError, exception or refusal. reason: who cancelled, in words.
    """

    status: Status
    value: object = None
    cause: object = None
    reason: str = ""


@attrs.frozen
class Accounts:
    """Where a run's time went, in nanoseconds. total is the sum of the others: `admission + turn + cpu + io +
    parked`.
    """

    admission: int = 0
    turn: int = 0
    cpu: int = 0
    io: int = 0
    parked: int = 0

    @property
    def total(self) -> int:
        return self.admission + self.turn + self.cpu + self.io + self.parked


def accounts(records: Sequence[Record], stretches: list[Stretch] | None = None) -> Accounts:
    """Sum up the time between records. stretches: gets what is summed up, in order of time; some of it takes none.

    Each gap belongs to exactly one account, named by the record that ends it: that is why the accounts add up to the
    time between the first record and the last, whatever happened in between, and however much of it at once.
    """
    sums: dict[Account, int] = {"admission": 0, "turn": 0, "cpu": 0, "io": 0, "parked": 0}
    waiting = parked = 0
    started = False
    for (_, before, _, _), (kind, at, subject, detail) in itertools.pairwise(records):
        account = ACCOUNTS.get(kind, "cpu")
        if kind == ASKED and subject.parent is None:
            waiting += 1
        elif kind in (SETTLED, LATE) and subject.parent is None:
            waiting -= 1
        elif kind == PARKED:
            parked += 1
        elif kind == INPUT:
            started = True
        elif kind == TURN:  # the wait for the turn began in the middle of the gap: when the world had answered
            since = min(max(before, detail), at)
            meanwhile: Account = "io" if waiting else "parked" if parked else "cpu"
            sums[meanwhile] += since - before
            if stretches is not None:
                stretches.append((meanwhile, before, since))
            before = since
        elif kind == ENDING and detail.status in ("deadline", "cancelled"):  # perhaps from outside, in a wait
            account = "parked" if parked and not waiting else "io" if waiting or not started else "cpu"
        if kind in (SIGNALLED, EXPIRED):
            parked -= 1
        sums[account] += at - before
        if stretches is not None:
            stretches.append((account, before, at))
    return Accounts(**sums)


@value(eq=False)
class Timeline:
    """One run's records and what the run was.

    records: in order of time; the list grows until the run has ended. secret: names of slots whose values are not
    shown.
    """

    run_id: str
    flow: str
    version: str
    tenant: str
    priority: str
    records: list[Record]
    secret: frozenset[str] = frozenset()
    label: str = ""  # what an edge calls the run, as "POST /v2/checkout"
    parent: str = ""  # of which trace the caller says it is a part: a `traceparent` header, as it came

    @property
    def accounts(self) -> Accounts:
        return accounts(self.records)

    @property
    def answered(self) -> int | None:
        """The HTTP status of the answer, or None while there is none, and for a run that did not come over HTTP."""
        for kind, _, _, detail in reversed(self.records):
            if kind == ANSWERED:
                return int(detail)
        return None

    @property
    def ending(self) -> Ending | None:
        """How the run ended, or None while it is under way."""
        for kind, _, _, detail in reversed(self.records):
            if kind in (ENDED, REFUSED):
                return detail if isinstance(detail, Ending) else Ending("refused", cause=detail)
        return None
