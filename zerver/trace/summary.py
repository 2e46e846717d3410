"""Summaries: one run in the words and numbers of one line.

Law: a summary is made once, from the records, when a run is kept or shown, and can be shown to anybody: what is secret
was masked first. What lists are filtered and ordered by is in it, so that no list ever opens a run.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from zerver.core import timeline as t
from zerver.runtime.result import Result
from zerver.trace import describe
from zerver.trace.cause import causes
from zerver.trace.facts import Facts
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.veil import Veil, escaped

_LONGEST: Final = 240  # characters of a cause
_LONGEST_NAME: Final = 200
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@attrs.frozen
class Summary:
    """One run. Times in nanoseconds; of `took_ns` the time it was parked is left out.

    http: the status that an edge answered. kept: why it is in a store, "" for a run that is not. beside: how many more
    of its kind had gone by since one was kept. slow: it took longer than its route is wont to, or may. cause: the first
    line that says why it ended as it did, or was slow. slow_step: what took most of its time: a step, "admission" or
    "turn". unresolved: writes of which nobody can say that they are right. trace_id: of the caller's `traceparent`.
    """

    run_id: str
    began_unix_ns: int
    label: str
    flow: str
    version: str
    tenant: str
    priority: str
    status: str
    http: int | None
    took_ns: int
    kept: str = ""
    beside: int = 0
    slow: bool = False
    cause: str = ""
    slow_step: str = ""
    unresolved: int = 0
    trace_id: str = ""
    records: int = 0

    @property
    def route(self) -> str:
        """What the run is counted under: its edge's label, or its flow."""
        return self.label or self.flow


@attrs.frozen
class Filter:
    """Which runs a list shows: those that fit all of it.

    route: a label, as "POST /v2/checkout", or a flow's name. status: a run's word, as "defect", an HTTP status, as
    "503", or a class of them, as "5xx". failed: True for runs that were not done. slow: True for those that were slow
    for their route. slower_than_ns: took longer. since_unix_ns, until_unix_ns: began then or later; before then. kept:
    why it is kept, as "error".
    """

    route: str = ""
    status: str = ""
    tenant: str | None = None
    failed: bool = False
    unresolved: bool = False
    slow: bool = False
    slower_than_ns: int | None = None
    since_unix_ns: int | None = None
    until_unix_ns: int | None = None
    kept: str = ""

    def fits(self, summary: Summary) -> bool:
        """Whether a run is one of those."""
        return (
            (not self.route or self.route in (summary.label, summary.flow))
            and (not self.status or self._fits_status(summary))
            and (self.tenant is None or self.tenant == summary.tenant)
            and (not self.failed or summary.status != "done")
            and (not self.unresolved or summary.unresolved > 0)
            and (not self.slow or summary.slow)
            and (self.slower_than_ns is None or summary.took_ns > self.slower_than_ns)
            and (self.since_unix_ns is None or summary.began_unix_ns >= self.since_unix_ns)
            and (self.until_unix_ns is None or summary.began_unix_ns < self.until_unix_ns)
            and (not self.kept or self.kept == summary.kept)
        )

    @property
    def http(self) -> tuple[int, int] | None:
        """The first and the last HTTP status that `status` means; None when it is a run's word."""
        if self.status.isdecimal() and len(self.status) == 3:
            return int(self.status), int(self.status)
        if len(self.status) == 3 and self.status[0].isdecimal() and self.status[1:].lower() == "xx":
            return int(self.status[0]) * 100, int(self.status[0]) * 100 + 99
        return None

    def _fits_status(self, summary: Summary) -> bool:
        if self.http is None:
            return self.status == summary.status
        first, last = self.http
        return summary.http is not None and first <= summary.http <= last


def summarize(
    result: Result,
    *,
    began_unix_ns: int,
    kept: str = "",
    beside: int = 0,
    slow: bool = False,
    facts: Facts | None = None,
    hidden: Hidden = NOTHING_HIDDEN,
) -> Summary:
    """The summary of a run. facts: the run's, by whoever has them already. hidden: names that are masked beside those
    that the code calls secret.
    """
    timeline = result.timeline
    facts = facts or Facts(timeline)
    veil = Veil(facts, hidden)
    accounts = timeline.accounts
    return Summary(
        run_id=timeline.run_id,
        began_unix_ns=began_unix_ns,
        label=_line(veil.text(timeline.label), _LONGEST_NAME),
        flow=_line(timeline.flow, _LONGEST_NAME),
        version=_line(timeline.version, _LONGEST_NAME),
        tenant=_line(veil.text(timeline.tenant), _LONGEST_NAME),
        priority=timeline.priority,
        status=result.status,
        http=timeline.answered,
        took_ns=accounts.total - accounts.parked,
        kept=kept,
        beside=beside,
        slow=slow,
        cause=_line(_cause(result, facts, veil), _LONGEST),
        slow_step=_line(_slowest(facts, accounts), _LONGEST_NAME),
        unresolved=len(result.unresolved),
        trace_id=trace_id(timeline.parent),
        records=len(timeline.records),
    )


def trace_id(traceparent: str) -> str:
    """The trace id of a `traceparent` header, "" if it has none (W3C Trace Context, 3.2)."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found[1] if found and found[1].strip("0") else ""


def _line(text: str, longest: int) -> str:
    return describe.cut(escaped(text), longest)


def _cause(result: Result, facts: Facts, veil: Veil) -> str:
    """What matters most: a write that nobody knows about, then why it ended, then why it was slow, then troubles."""
    first = ""
    for line in causes(facts, veil, result.unresolved, None):
        if line.startswith("UNRESOLVED"):
            return line
        first = first or line
    return first


def _slowest(facts: Facts, accounts: t.Accounts) -> str:
    took = {step.name: facts.took(step) - step.parked for step in facts.steps.values()}
    took |= {"admission": accounts.admission, "turn": accounts.turn}
    name = max(took, key=lambda name: took[name])
    return name if took[name] > 0 else ""
