"""Jobs: runs that are asked for now, and made later, elsewhere, and again if need be. How they are asked for, and how
they are judged.

Law: pure. What a step asks for is an Ask; with what the app declares about the flow (`JobRule`) it becomes an Order,
which a store takes. Whoever asks makes the id, out of the key of the effect: to ask again, after a crash or in a
replay, is to have asked once.

What becomes of a job when an attempt has ended is a table (`fate`), and read from top to bottom:

    the attempt                                         the job
    left writes of which nobody knows                   dead, and said aloud; it is never repeated by itself
    was cut because its worker drains                   begun again, and this time does not count
    was refused by admission                            the same, when admission says that there may be room
    was done with `Discard(reason)`                     cancelled: there is nothing to do any more
    was done with `Snooze(seconds)`                     begun again then, and this time does not count
    was done                                            done
    got a body that does not fit                        dead: no repetition changes it
    decided Fail: unavailable, rate_limited, failed or  tried again, after its backoff
    conflict
    decided Fail: anything else                         dead: it has said no
    failed by an effect, a defect, or its deadline      tried again, after its backoff
    was cancelled, and nobody has cancelled the job     the same: who wants the job to end cancels that

Tried again, until its attempts are spent; then it is dead, and waits for somebody who looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final, Literal, TypeAlias, get_args

import attrs

from zerver.core.codec import encode_json
from zerver.core.decisions import Fail, FailKind
from zerver.core.flows import Flow
from zerver.core.orders import Order as Order
from zerver.core.plan import compile_plan
from zerver.core.priorities import PRIORITIES, Priority
from zerver.core.timeline import Status
from zerver.errors import DefinitionError, InvalidData

#: What the ids of a job's runs begin with: `job_<job id>.<number>`.
RUN_PREFIX: Final = "job_"

#: What a job is unique by; see `Unique`.
UniqueBy: TypeAlias = Literal["flow", "tenant", "queue", "body"]

_UNIQUE_BY: Final[tuple[UniqueBy, ...]] = get_args(UniqueBy)


# ---- what is asked for ----------------------------------------------------------------------


@attrs.frozen
class Unique:
    """Of jobs that are alike there is one. by: in what they are alike. period: seconds for which a job that is over
    still counts; 0 counts those alone that are not over. Precedent: Oban's `unique: [fields, period]`.
    """

    by: tuple[UniqueBy, ...] = ("flow", "tenant", "body")
    period: float = 0.0

    def __attrs_post_init__(self) -> None:
        if not self.by or not set(self.by) <= set(_UNIQUE_BY):
            raise DefinitionError(f"Unique(by={self.by!r})", f"choose from {', '.join(_UNIQUE_BY)}")
        if not 0 <= self.period < float("inf"):
            raise DefinitionError(f"Unique(period={self.period!r})", "give seconds, 0 for as long as it is not over")


@attrs.frozen
class Backoff:
    """How long a job waits for its next attempt: U(0, min(cap, base * 2**n)) seconds after the n-th failure, n from 0.

    Full jitter, as for effects: what failed together does not come back together. By default 20 attempts (Oban's
    number) are spread over some four days: long enough for somebody to come back from a weekend.
    """

    base: float = 15.0
    cap: float = 86_400.0

    def __attrs_post_init__(self) -> None:
        if not 0 < self.base <= self.cap < float("inf"):
            raise DefinitionError(f"{self!r}", "give seconds above 0, the cap not below the base")

    def seconds(self, failures: int, draw: float) -> float:
        """failures: so far, 1 for the first. draw: uniform in [0, 1)."""
        return draw * min(self.cap, self.base * 2.0 ** min(failures - 1, 60))


@attrs.frozen
class QueueLimit:
    """What of a queue runs at once, over all workers. limit, per_tenant: jobs; None for no bound."""

    name: str
    limit: int | None = None
    per_tenant: int | None = None


@attrs.frozen(eq=False)
class JobRule:
    """How jobs of one flow are treated, where whoever asks for one says nothing else. deadline: seconds of a run."""

    flow: Flow
    queue: str = "default"
    attempts: int = 20
    backoff: Backoff = Backoff()
    priority: Priority = "batch"
    unique: Unique | None = None
    deadline: float | None = None

    @property
    def name(self) -> str:
        return self.flow.name

    @property
    def label(self) -> str:
        """What its runs are called."""
        return f"job {self.flow.name}"

    def check_parts(self) -> None:
        """Raise DefinitionError for a flow that reads more of a request than a job has."""
        for read in compile_plan(self.flow).parts:
            if read.part.source != "body" and read.required:
                raise DefinitionError(
                    f"{self.label} reads the {read.part.source} {read.name!r}, and a job has nothing but a body",
                    "read it from the body, or give the parameter a default",
                )


#: What becomes of times at which nobody could begin the job: one run for all of them, none, or one for each.
Misfire: TypeAlias = Literal["once", "skip", "all"]

MISFIRES: Final[tuple[Misfire, ...]] = get_args(Misfire)


@attrs.frozen(eq=False)
class CronRule:
    """A flow that is begun by the clock. expression: five fields, as cron has them, in the time of `timezone`."""

    name: str
    expression: str
    flow: Flow
    timezone: str = "UTC"
    body: str | None = attrs.field(default=None, repr=False)
    misfire: Misfire = "once"


@attrs.frozen
class Ask:
    """One job, as a step asks for it; what is None is as the app declares it, or as the run that asks has it.

    delay: seconds. unique: a text of the caller's own, or by what.
    """

    flow: str
    body: str | None = attrs.field(default=None, repr=False)
    delay: float = 0.0
    at_unix_ns: int = 0
    priority: Priority | None = None
    tenant: str | None = None
    unique: str | Unique | None = None
    attempts: int | None = None
    queue: str | None = None


#: How several jobs hang together: not at all, each after the one before it, or the last one after all others.
Shape: TypeAlias = Literal["each", "chain", "fan_out"]


@attrs.frozen
class Asker:
    """Who asks. key: of the effect; the ids are made of it. parent: the traceparent that is handed on."""

    key: str
    tenant: str = "default"
    parent: str = ""
    now_unix_ns: int = 0


def orders_for(shape: Shape, asks: Sequence[Ask], declared: Declared, asker: Asker) -> list[Order]:
    """What a store is to take, in the order of the asks. Raises DefinitionError for a flow or queue not known here."""
    ids = [job_id_for(asker.key, number) for number in range(len(asks))]
    orders = [_order(ask, declared.rule_of(ask.flow), one, asker) for ask, one in zip(asks, ids, strict=True)]
    declared.check_queues({order.queue for order in orders})
    if shape == "chain":
        after = [*ids[1:], ""]
        return [
            _awaited(attrs.evolve(order, awaits=int(number > 0)), after[number], asks[number])
            for number, order in enumerate(orders)
        ]
    if shape == "fan_out":
        *members, last = orders
        awaited = [
            attrs.evolve(_awaited(order, last.job_id, ask), place=place)
            for place, (order, ask) in enumerate(zip(members, asks, strict=False))
        ]
        return [*awaited, attrs.evolve(last, awaits=len(members))]
    return orders


def job_id_for(key: str, number: int = 0) -> str:
    """The id of the job that is asked for by an effect with this key: 24 digits, as those of runs."""
    return blake2b(f"{key}\0{number}".encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def run_id_for(job_id: str, number: int) -> str:
    """The id of a job's run. number: 1 for the first; an attempt whose worker has died has the number of the next."""
    return f"{RUN_PREFIX}{job_id}.{number}"


def job_of_run(run_id: str) -> str:
    """The id of the job whose run this is; "" for no job's."""
    return run_id.removeprefix(RUN_PREFIX).partition(".")[0] if run_id.startswith(RUN_PREFIX) else ""


def _awaited(order: Order, by: str, ask: Ask) -> Order:
    """The order, awaited by that job. Nothing else may stand for it then, whatever its flow's jobs are unique by."""
    if not by:
        return order
    if ask.unique is not None:
        raise DefinitionError(
            f"a job of flow {order.flow!r} is to be unique, and another one waits for it",
            "leave unique out: if another job stood for this one, nobody would be told when it is done",
        )
    return attrs.evolve(order, releases=by, unique="", unique_seconds=0.0)


def _order(ask: Ask, rule: JobRule, job_id: str, asker: Asker) -> Order:
    tenant = asker.tenant if ask.tenant is None else ask.tenant
    queue = ask.queue or rule.queue
    unique = rule.unique if ask.unique is None else ask.unique
    at = ask.at_unix_ns or (asker.now_unix_ns + round(ask.delay * 1e9) if ask.delay > 0 else 0)
    return Order(
        job_id,
        ask.flow,
        queue,
        ask.body,
        tenant,
        ask.priority or rule.priority,
        at,
        ask.attempts or rule.attempts,
        unique="" if unique is None else _alike(unique, ask, tenant, queue),
        unique_seconds=unique.period if isinstance(unique, Unique) else 0.0,
        parent=asker.parent,
    )


def _alike(unique: str | Unique, ask: Ask, tenant: str, queue: str) -> str:
    """The text that jobs have in common which are alike. One of the caller's own holds for a flow and a tenant."""
    if isinstance(unique, str):
        told = ["own", ask.flow, tenant, unique]
    else:
        parts = {"flow": ask.flow, "tenant": tenant, "queue": queue, "body": ask.body or ""}
        told = [part for name in _UNIQUE_BY if name in unique.by for part in (name, parts[name])]
    plain = "".join(f"{len(part)}:{part}" for part in told)  # with lengths, so that no two are the same text
    return blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


# ---- what a job's flow may answer -----------------------------------------------------------


def _is_time(_: object, field: attrs.Attribute[float], seconds: float) -> None:
    if not 0 <= seconds < float("inf"):
        raise DefinitionError(f"Snooze({seconds!r})", "give seconds")


@attrs.frozen
class Snooze:
    """`Done(Snooze(30))`: not now; begin the job again in so many seconds. It was no failure, and no attempt."""

    seconds: float = attrs.field(validator=_is_time)


@attrs.frozen
class Discard:
    """`Done(Discard("the account is gone"))`: there is nothing to do any more; the job is cancelled."""

    reason: str


# ---- what becomes of it ---------------------------------------------------------------------

#: "done"; "again": after its backoff, if it has attempts left; "back": not counted, and soon; "snoozed": not counted,
#: and then; "dead"; "cancelled".
Fate: TypeAlias = Literal["done", "again", "back", "snoozed", "dead", "cancelled"]

#: What a Fail of this kind says of the next time. What is not named here is a no.
_WORTH_TRYING: Final[frozenset[FailKind]] = frozenset({"unavailable", "rate_limited", "failed", "conflict"})


def fate(status: Status, value: object, cause: object, *, unresolved: bool = False, drained: bool = False) -> Fate:
    """What becomes of a job by an attempt that ended so. drained: it was cut because its worker ends."""
    if unresolved:
        return "dead"
    if status == "refused" or (drained and status == "cancelled"):
        return "back"
    if status == "done":
        return "cancelled" if isinstance(value, Discard) else "snoozed" if isinstance(value, Snooze) else "done"
    if isinstance(cause, InvalidData):
        return "dead"
    if isinstance(cause, Fail):
        return "again" if cause.kind in _WORTH_TRYING else "dead"
    return "again"


# ---- what an app declares -------------------------------------------------------------------


class Declared:
    """The jobs, queues and schedules of one app, each by its name. Used by App."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobRule] = {}
        self._begun_by_clock: dict[str, JobRule] = {}
        self.queues: dict[str, QueueLimit] = {}
        self.crons: dict[str, CronRule] = {}

    @property
    def jobs(self) -> Mapping[str, JobRule]:
        """Those that are declared, and the flows of schedules."""
        return {**self._begun_by_clock, **self._jobs}

    @property
    def queue_names(self) -> frozenset[str]:
        """Those that jobs are declared with, and those that are bounded."""
        return frozenset(rule.queue for rule in self.jobs.values()) | frozenset(self.queues)

    def rule_of(self, flow: str) -> JobRule:
        """How jobs of this flow are treated. Raises DefinitionError for a flow that is no job."""
        found = self.jobs.get(flow)
        if found is None:
            known = f"known are {', '.join(sorted(self.jobs))}" if self.jobs else "none is declared"
            raise DefinitionError(f"flow {flow!r} is no job of this app; {known}", f"declare it: app.job({flow})")
        return found

    def check_queues(self, names: frozenset[str] | set[str]) -> None:
        """Raise DefinitionError for a queue that no worker would look at."""
        strange = sorted(names - self.queue_names)
        if strange:
            raise DefinitionError(
                f"queue {strange[0]!r} is not declared; known are {', '.join(sorted(self.queue_names)) or 'none'}",
                f"declare it: app.queue({strange[0]!r})",
            )

    def add_job(self, rule: JobRule) -> None:
        """Raises DefinitionError for a rule that cannot work, and for a second one of this name."""
        if not isinstance(rule.flow, Flow):
            raise DefinitionError(f"app.job was given {rule.flow!r}, which is no flow", 'give it Flow("name", [steps])')
        where = f"job {rule.name!r}"
        if rule.name in self._jobs:
            again = self._jobs[rule.name].flow is rule.flow
            raise DefinitionError(
                f"{where} is declared twice" if again else f"{where}: another flow of this name is a job already",
                "remove one of them" if again else "give each flow a name of its own",
            )
        if not rule.queue:
            raise DefinitionError(f"{where}: queue=''", "name it, or leave it out")
        if rule.attempts < 1:
            raise DefinitionError(f"{where}: attempts={rule.attempts!r}", "1 is the first and only one")
        if rule.priority not in PRIORITIES:
            raise DefinitionError(f"{where}: priority={rule.priority!r}", f"choose one of {', '.join(PRIORITIES)}")
        if rule.deadline is not None and not 0 < rule.deadline < float("inf"):
            raise DefinitionError(f"{where}: deadline={rule.deadline!r}", "give seconds above 0, or leave it out")
        self._same_flow(where, rule.flow, self._begun_by_clock)
        self._jobs[rule.name] = rule

    def add_queue(self, limit: QueueLimit) -> None:
        """Raises DefinitionError for bounds that let nothing through, and for a second one of this name."""
        where = f"queue {limit.name!r}"
        for label, bound in (("limit", limit.limit), ("per_tenant", limit.per_tenant)):
            if bound is not None and bound < 1:
                raise DefinitionError(f"{where}: {label}={bound!r}", "give 1 or more; to stop a queue, pause it")
        if not limit.name or limit.name in self.queues:
            raise DefinitionError(f"{where} is declared twice" if limit.name else "a queue has no name", "name it once")
        self.queues[limit.name] = limit

    def add_cron(self, rule: CronRule) -> None:
        """Its flow becomes a job, if it is none. Raises as `add_job`."""
        where = f"cron {rule.name!r}"
        if rule.name in self.crons:
            raise DefinitionError(f"{where} is declared twice", "give one of them a name of its own: name=…")
        if rule.misfire not in MISFIRES:
            raise DefinitionError(f"{where}: misfire={rule.misfire!r}", f"choose one of {', '.join(MISFIRES)}")
        if len(rule.expression.split()) != 5:
            raise DefinitionError(
                f"{where}: {rule.expression!r} is no schedule",
                'write five fields: minute, hour, day of month, month, day of week, as "0 3 * * *"',
            )
        if not isinstance(rule.flow, Flow):
            raise DefinitionError(f"{where} was given {rule.flow!r}, which is no flow", 'give it Flow("name", [steps])')
        self._same_flow(where, rule.flow, self.jobs)
        self._begun_by_clock.setdefault(rule.flow.name, JobRule(rule.flow))
        self.crons[rule.name] = rule

    def _same_flow(self, where: str, flow: Flow, known: Mapping[str, JobRule]) -> None:
        if flow.name in known and known[flow.name].flow is not flow:
            raise DefinitionError(
                f"{where}: another flow called {flow.name!r} is a job already", "give each flow a name of its own"
            )


def as_body(body: object) -> str | None:
    """A body as JSON text. Raises InvalidData."""
    return None if body is None else encode_json(body).decode()
