"""Instruments: what is measured, by name, unit and labels; and what was measured, as values.

Law: every metric is declared in this file, and a snapshot holds nothing but what is declared here, with a value for
each of its labels. Names are those of OpenTelemetry where its semantic conventions have one (HTTP, 1.23 and later), and
begin with `zerver.` elsewhere. Times are seconds. Whoever exports them, as text or over OTLP, translates and adds
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import attrs

InstrumentKind = Literal["counter", "gauge", "histogram"]

#: The bounds that semantic conventions advise for `http.server.request.duration` (seconds).
HTTP_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

#: Of waits and effects, which may be far shorter, and of runs that may be parked and are jobs.
FINE_BOUNDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, *HTTP_BOUNDS, 30.0, 60.0)


@attrs.frozen(eq=False)
class Instrument:
    """One metric, which is equal to itself alone. labels: their names. bounds: a histogram's, in its unit; the bucket
    above them has none.

    unit: as UCUM has it, "s" or "By"; what stands in braces is counted, as "{run}"; "1" is a share, or a yes.
    """

    name: str
    kind: InstrumentKind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


@attrs.frozen
class Exemplar:
    """The last run that fell into a bucket. at: nanoseconds since 1970. trace_id, span_id: of the run, in hexadecimal,
    as `zerver.core.tracing` has them; "" for none.
    """

    value: float
    at: int
    run_id: str
    trace_id: str = ""
    span_id: str = ""


@attrs.frozen
class Number:
    """What a counter has come to, or a gauge says. labels: values, in the order of the instrument's."""

    labels: tuple[str, ...]
    value: float


@attrs.frozen
class Distribution:
    """What a histogram has come to. counts: of each bucket alone, one more than there are bounds. exemplars: one for
    each bucket, None for one without.
    """

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    sum: float
    exemplars: tuple[Exemplar | None, ...]

    @property
    def count(self) -> int:
        return sum(self.counts)


@attrs.frozen
class Family:
    """All that one instrument has measured; a set of labels is there once."""

    instrument: Instrument
    points: tuple[Number, ...] | tuple[Distribution, ...]


@attrs.frozen
class MetricsSnapshot:
    """All metrics at one moment. began: when counting began, which is what counters count from; at: now. Both in
    nanoseconds since 1970.
    """

    began: int
    at: int
    families: tuple[Family, ...]

    def family(self, name: str) -> Family:
        """The family of this name, empty if it has measured nothing. Raises KeyError for what is not declared."""
        instrument = INSTRUMENTS[name]
        return next((one for one in self.families if one.instrument is instrument), Family(instrument, ()))

    def value(self, name: str, *labels: str) -> float:
        """One number, or how many a histogram has counted; 0.0 for what has not been measured."""
        for point in self.family(name).points:
            if point.labels == labels:
                return point.value if isinstance(point, Number) else float(point.count)
        return 0.0


# ---- of runs --------------------------------------------------------------------------------

ROUTE, CLASS, STATUS, KIND = "zerver.route", "zerver.class", "zerver.status", "zerver.effect.kind"
TARGET, REASON, TENANT, QUEUE = "zerver.target", "zerver.reason", "zerver.tenant", "zerver.job.queue"

_PER_ROUTE: Final = (ROUTE, CLASS)

HTTP_DURATION: Final = Instrument(
    "http.server.request.duration",
    "histogram",
    "s",
    "From the request's head to its answer, of requests that were runs.",
    ("http.request.method", "http.route", "http.response.status_code", "error.type"),
    HTTP_BOUNDS,
)
RUNS: Final = Instrument("zerver.runs", "counter", "{run}", "Runs that have ended.", (*_PER_ROUTE, STATUS))
RUN_DURATION: Final = Instrument(
    "zerver.run.duration",
    "histogram",
    "s",
    "From asked for to ended, rollback included, parked time left out.",
    _PER_ROUTE,
    FINE_BOUNDS,
)
QUEUE_WAIT: Final = Instrument(
    "zerver.run.queue.duration", "histogram", "s", "What runs waited for a ticket.", _PER_ROUTE, FINE_BOUNDS
)
TURN_WAIT: Final = Instrument(
    "zerver.run.turn.duration", "histogram", "s", "What runs waited for their turns.", _PER_ROUTE, FINE_BOUNDS
)
RUN_TIME: Final = Instrument(
    "zerver.run.time",
    "counter",
    "s",
    "Where the time of runs went; the accounts add up.",
    (ROUTE, "zerver.account"),
)
REFUSALS: Final = Instrument("zerver.refusals", "counter", "{run}", "Runs that got no ticket.", (ROUTE, CLASS, REASON))
UNRESOLVED: Final = Instrument(
    "zerver.unresolved", "counter", "{write}", "Writes of which nobody knows whether they are right.", (ROUTE,)
)
OVERRUNS: Final = Instrument(
    "zerver.overruns", "counter", "{step}", "Steps that held the loop for too long.", ("zerver.flow", "zerver.step")
)
EFFECTS: Final = Instrument(
    "zerver.effects", "counter", "{effect}", "Effects, by what they came to.", (KIND, "zerver.outcome")
)
EFFECT_DURATION: Final = Instrument(
    "zerver.effect.duration",
    "histogram",
    "s",
    "From asked for to settled, all attempts included.",
    (KIND,),
    FINE_BOUNDS,
)
RETRIES: Final = Instrument("zerver.effect.retries", "counter", "{attempt}", "Further attempts.", (KIND,))
HEDGES: Final = Instrument(
    "zerver.effect.hedges", "counter", "{attempt}", "Second attempts beside a slow one.", (KIND,)
)
TIMEOUTS: Final = Instrument("zerver.effect.timeouts", "counter", "{attempt}", "Attempts that timed out.", (KIND,))
FAILURES: Final = Instrument("zerver.effect.failures", "counter", "{attempt}", "Attempts that failed.", (KIND,))
TENANT_RUNS: Final = Instrument(
    "zerver.tenant.runs", "counter", "{run}", "Runs that have ended, by tenant.", (TENANT, STATUS)
)

# ---- of the runtime, now --------------------------------------------------------------------

RUNNING: Final = Instrument("zerver.runs.running", "gauge", "{run}", "Runs that have a seat.", (CLASS,))
QUEUED: Final = Instrument("zerver.runs.queued", "gauge", "{run}", "Runs that wait for a ticket.", (CLASS,))
LIMIT: Final = Instrument(
    "zerver.runs.limit", "gauge", "{run}", "Runs of a class and those above that may run at once.", (CLASS,)
)
OVERLOADED: Final = Instrument("zerver.overloaded", "gauge", "1", "Whether the queue of a class stands.", (CLASS,))
PARKED: Final = Instrument("zerver.runs.parked", "gauge", "{run}", "Runs that wait for a signal.")
DEGRADED: Final = Instrument("zerver.runs.degraded", "gauge", "{run}", "Runs in place of refused ones.")
DRAINING: Final = Instrument("zerver.draining", "gauge", "1", "Whether nobody is admitted any more.")
TURNS_WAITING: Final = Instrument("zerver.turns.waiting", "gauge", "{run}", "Runs that wait for a turn.", (CLASS,))
STEP_TIME: Final = Instrument("zerver.steps.time", "counter", "s", "What steps took of the CPU.")
DEMOTED: Final = Instrument("zerver.flows.demoted", "gauge", "{flow}", "Flows put down, as they overran.")
OBSERVER_ERRORS: Final = Instrument("zerver.observer.errors", "counter", "{error}", "Observers that raised.")
OPEN_UNRESOLVED: Final = Instrument(
    "zerver.journal.unresolved", "gauge", "{run}", "Runs of the journal that are unresolved; each worker sees them all."
)
OPEN_STUCK: Final = Instrument(
    "zerver.journal.stuck", "gauge", "{run}", "Runs of the journal that no code carries on; each worker sees them all."
)
OPEN_PARKED: Final = Instrument(
    "zerver.journal.parked", "gauge", "{run}", "Runs of the journal that are put down; each worker sees them all."
)
SET_ASIDE: Final = Instrument("zerver.runs.set_aside", "counter", "{run}", "Runs that could not be carried on.")
RECOVERED: Final = Instrument("zerver.runs.recovered", "counter", "{run}", "Runs of workers that had died.")
BREAKER: Final = Instrument(
    "zerver.target.breaker", "gauge", "1", "1 for the state that the worst breaker of a target is in.",
    (TARGET, "zerver.state"),
)  # fmt: skip
ATTEMPTS: Final = Instrument("zerver.target.attempts", "counter", "{attempt}", "Attempts made.", (TARGET,))
TARGET_FAILURES: Final = Instrument("zerver.target.failures", "counter", "{attempt}", "Those that failed.", (TARGET,))
TARGET_REFUSED: Final = Instrument("zerver.target.refused", "counter", "{attempt}", "Attempts not made.", (TARGET,))
BULKHEAD_LIMIT: Final = Instrument("zerver.target.bulkhead.limit", "gauge", "{place}", "Its places.", (TARGET,))
BULKHEAD_USED: Final = Instrument("zerver.target.bulkhead.used", "gauge", "{place}", "Places in use.", (TARGET,))
BULKHEAD_WAITING: Final = Instrument(
    "zerver.target.bulkhead.waiting", "gauge", "{attempt}", "Attempts that wait for a place.", (TARGET,)
)
RETRY_TOKENS: Final = Instrument(
    "zerver.target.retry.tokens", "gauge", "{token}", "What is left of the budget for retries.", (TARGET,)
)
QUEUE_JOBS: Final = Instrument(
    "zerver.queue.jobs", "gauge", "{job}", "Jobs of the store that are not over, and dead ones; each worker sees all.",
    (QUEUE, "zerver.job.state"),
)  # fmt: skip
QUEUE_AGE: Final = Instrument(
    "zerver.queue.age", "gauge", "s", "For how long the first job that may begin has been able to.", (QUEUE,)
)
QUEUE_PAUSED: Final = Instrument("zerver.queue.paused", "gauge", "1", "Whether nothing of it is begun.", (QUEUE,))
JOBS_SEATS: Final = Instrument("zerver.jobs.seats", "gauge", "{job}", "Jobs that this worker works on at once.")
JOBS_RUNNING: Final = Instrument("zerver.jobs.running", "gauge", "{job}", "Jobs that it works on now.", (QUEUE,))
JOBS_TAKEN: Final = Instrument("zerver.jobs.taken", "counter", "{job}", "Jobs that it has taken.")
JOBS_ENDED: Final = Instrument(
    "zerver.jobs.ended", "counter", "{attempt}", "What became of a job after an attempt; `again`, `back`: not over.",
    ("zerver.job.outcome",),
)  # fmt: skip
JOBS_RESCUED: Final = Instrument("zerver.jobs.rescued", "counter", "{job}", "Jobs of workers that had died.")
LOOP_LAG: Final = Instrument("zerver.loop.lag", "gauge", "s", "How late the event loop has lately been, at worst.")
RECORDER_DROPPED: Final = Instrument(
    "zerver.recorder.dropped", "counter", "{run}", "Runs that nobody could look at, as too many came."
)
LOGS_DROPPED: Final = Instrument("zerver.logs.dropped", "counter", "{line}", "Log lines that were not written.")

#: Every instrument there is, by name.
INSTRUMENTS: Final[Mapping[str, Instrument]] = {
    made.name: made for made in list(vars().values()) if isinstance(made, Instrument)
}
