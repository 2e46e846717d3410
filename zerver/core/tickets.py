"""Tickets: what admission answers. Permission to run, a place in the queue, or an honest no.

Law: values that admission makes and others carry; only `zerver.core.admission` writes to them.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import attrs

from zerver.core.priorities import RANK, Priority
from zerver.core.quotas import Quota
from zerver.core.tallies import Tally
from zerver.core.tenants import Tenant
from zerver.core.work import Work

Reason: TypeAlias = Literal[
    "draining",
    "queue full",
    "deadline too close",
    "deadline passed while waiting",
    "waited too long",
    "tenant over its rate",
    "tenant over its runs",
    "tenant over its share",
]

#: Reasons that are the tenant's own doing, and so 429 in every class.
OWN_DOING: Final = frozenset[Reason](["tenant over its rate", "tenant over its runs", "tenant over its share"])


@attrs.frozen
class Refusal:
    """Why a run was not admitted. status: as HTTP counts, 429 for who asks too much or can wait (batch), 503 otherwise.
    retry_after: seconds. quota: the tenant's rate, if it is bounded.
    """

    reason: Reason
    status: int = 503
    retry_after: float | None = 1.0
    quota: Quota | None = None


class Ticket:
    """Permission to run, to be given back once.

    rule: what the tenant may take, as it was when the run began. begun: seconds, on the clock of `now`. cost: what the
    run's tenant was charged in the queue; 0 when nobody waited. beside: it has no seat, and counts in no limit. parked:
    since when its seat is for others; None while it has one.
    """

    __slots__ = ("begun", "beside", "cost", "held", "parked", "priority", "rank", "rule", "tally", "tenant", "work")

    def __init__(
        self, tally: Tally, tenant: str, rule: Tenant, rank: int, priority: Priority, work: Work,
        begun: float, cost: float, beside: bool = False,
    ) -> None:  # fmt: skip
        self.tally = tally
        self.tenant = tenant
        self.rule = rule
        self.rank = rank
        self.priority: Priority = priority
        self.work = work
        self.begun = begun
        self.cost = cost
        self.beside = beside
        self.parked: float | None = None
        self.held = True

    def quota(self, now: float) -> Quota | None:
        """What is left of the tenant's rate; None when it is not bounded."""
        bucket = self.tally.bucket
        return None if bucket is None else bucket.quota(now)

    def __repr__(self) -> str:
        return f"<Ticket {self.priority} of {self.tenant}{'' if self.held else ', given back'}>"


class Waiting:
    """A run that waits for its ticket.

    deadline: seconds on the clock of `now`, or inf. due: when it has to be answered, whatever the answer is.
    """

    __slots__ = ("cost", "deadline", "due", "priority", "rank", "since", "tally", "tenant", "waits", "work")

    def __init__(
        self, tally: Tally, tenant: str, priority: Priority, work: Work, since: float, deadline: float, due: float,
        cost: float,
    ) -> None:  # fmt: skip
        self.tally = tally
        self.tenant = tenant
        self.priority: Priority = priority
        self.rank = RANK[priority]
        self.work = work
        self.since = since
        self.deadline = deadline
        self.due = due
        self.cost = cost
        self.waits = True

    def __repr__(self) -> str:
        return f"<Waiting {self.priority} of {self.tenant}, since {self.since:.3f}>"
