"""The exporter: kept runs, as spans, to whoever collects them; and the metrics, now and then.

Law: event-first. A run pays nothing for it; when it has ended and is kept, its spans are made from its records, in a
thread, and sent from there. A collector that is slow, broken or gone costs a bounded queue, in which the newest runs
find no place, and nothing else: no request waits for it, and neither does the end of the program for longer than it
was told to. How a batch is tried again is the sender's business.

    recorder ── take ──▶ keep? ──▶ a bounded queue ──▶ one thread: spans, sender.send_spans
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeAlias

import attrs
import trio

from zerver.errors import DefinitionError
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.result import Result
from zerver.trace.recorder import WallClock
from zerver.trace.telemetry.exported import ExportedSpan, Exporting, exported
from zerver.trace.telemetry.instruments import MetricsSnapshot
from zerver.trace.telemetry.promotion import Promotion, Wait

#: Why a run that has ended is kept, None if it is not.
Keep: TypeAlias = Callable[[Result], str | None]

#: Runs that one thread takes at once, and spans that are sent at once: to encode them takes the interpreter 5 ms.
BATCH: Final = 64
MOST_AT_ONCE: Final = 256

_log = logging.getLogger("zerver.trace")


class Sender(Protocol):
    """Sends to a collector. Blocking: called in threads, one for spans and one for metrics."""

    def send_spans(self, spans: Sequence[ExportedSpan], /) -> bool:
        """Send spans; whether they were taken. To come back within a bounded time, having tried again or not."""
        ...

    def send_metrics(self, snapshot: MetricsSnapshot, /) -> bool:
        """Send a snapshot; whether it was taken."""
        ...

    def close(self) -> None:
        """Give up what is being sent. From another thread; must not block."""
        ...


@attrs.frozen
class ExporterStatistics:
    """runs, spans: sent and taken. pending: runs. dropped: runs that found no place. failed: spans that were not taken.
    defects: runs of which no spans could be made.
    """

    runs: int
    spans: int
    pending: int
    dropped: int
    failed: int
    defects: int


@attrs.frozen
class _Job:
    result: Result
    why: str
    began: int
    bars: Mapping[Wait, int]


class Exporter:
    """Exports the runs that it is told of and that are kept. Made by `open_exporter`; a listener of a recorder."""

    def __init__(self, sender: Sender, keep: Keep, how: Exporting, promotion: Promotion, most_pending: int) -> None:
        self._sender = sender
        self._keep = keep
        self._how = how
        self._promotion = promotion
        self._most_pending = most_pending
        self._pending: deque[_Job] = deque()
        self._limiter = trio.CapacityLimiter(1)  # of its own: the others are for those who serve
        self._arrived = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._busy = False
        self._runs = self._spans = self._dropped = self._failed = self._defects = 0

    def take(self, results: Sequence[Result]) -> None:
        """Note the runs that are kept."""
        clock, pending, promotion = WallClock(), self._pending, self._promotion
        for result in results:
            timeline = result.timeline
            route = timeline.label or timeline.flow
            why = self._keep(result)
            if why is not None and len(pending) >= self._most_pending:
                self._dropped += 1
            elif why is not None:
                pending.append(_Job(result, why, clock.began(result), promotion.bars(route)))
            promotion.learn(route, timeline.records)
        if pending:
            self._arrived.unpark_all()

    def statistics(self) -> ExporterStatistics:
        return ExporterStatistics(
            self._runs, self._spans, len(self._pending), self._dropped, self._failed, self._defects
        )

    async def run(self) -> None:
        """Send what is noted, until cancelled."""
        while True:
            while not self._pending:
                await self._arrived.park()
            self._busy = True
            while self._pending:
                batch = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]
                try:
                    # An abandoned thread ends by itself: the sender is closed then, and its waits are bounded.
                    await trio.to_thread.run_sync(self._send, batch, abandon_on_cancel=True, limiter=self._limiter)
                except Exception:  # there is no thread to be had: no reason to end a server
                    self._dropped += len(batch)
                    _log.exception("%d runs could not be exported", len(batch))
            self._busy = False
            self._drained.unpark_all()

    async def flush(self) -> None:
        """Wait until all that is noted has been sent, or given up."""
        while self._pending or self._busy:
            await self._drained.park()

    def _send(self, batch: Sequence[_Job]) -> None:
        """In a thread. Nobody else changes these counts, and a reader is told what was true a moment ago."""
        made: list[ExportedSpan] = []
        for job in batch:
            try:
                found = exported(job.result, job.why, job.began, self._how, job.bars)
            except Exception:  # one run that cannot be shown must not keep the others from being
                self._defects += 1
                _log.exception("run %s could not be exported", job.result.run_id)
                continue
            self._runs += 1
            made += found
            while len(made) >= MOST_AT_ONCE:
                self._hand_over(made[:MOST_AT_ONCE])
                made = made[MOST_AT_ONCE:]
            time.sleep(0)  # the loop may have the interpreter between two runs, and not when five milliseconds are over
        if made:
            self._hand_over(made)

    def _hand_over(self, spans: Sequence[ExportedSpan]) -> None:
        try:
            taken = self._sender.send_spans(spans)
        except Exception:  # a sender says so by its answer; whatever else it does is reported, and is no end of exports
            _log.exception("%d spans could not be sent", len(spans))
            taken = False
        if taken:
            self._spans += len(spans)
        else:
            self._failed += len(spans)


@asynccontextmanager
async def open_exporter(
    sender: Sender,
    keep: Keep,
    *,
    how: Exporting | None = None,
    promotion: Promotion | None = None,
    most_pending: int = 1_000,
    metrics: Callable[[], MetricsSnapshot] | None = None,
    metrics_every: float = 60.0,
    flush_seconds: float = 5.0,
) -> AsyncGenerator[Exporter, None]:
    """Export kept runs while the block lasts; when it is left, what is noted is sent, for so many seconds at most.

        async with open_exporter(sender, keep) as exporter, open_recorder(listeners=[exporter]) as recorder: ...

    It goes around the recorder, which hands over its last runs when it is closed. keep: called for each run, once.
    most_pending: runs; new ones are dropped beyond that, and counted. metrics: gives a snapshot, every so many seconds
    and once at the end; 0: never. Raises DefinitionError for a queue that holds nothing.
    """
    if most_pending < 1 or metrics_every < 0 or flush_seconds < 0:
        raise DefinitionError(
            f"open_exporter(most_pending={most_pending}, metrics_every={metrics_every}, flush_seconds={flush_seconds})",
            "give 1 or more runs, and seconds that are not below 0",
        )
    exporter = Exporter(sender, keep, how or Exporting(), promotion or Promotion(), most_pending)
    measuring = _Measuring(sender, metrics) if metrics is not None and metrics_every > 0 else None
    working = trio.CancelScope()
    async with open_body_nursery() as nursery:
        nursery.start_soon(_work, working, exporter, measuring, metrics_every)
        try:
            yield exporter
        finally:
            with trio.move_on_after(flush_seconds, shield=True):
                await exporter.flush()
                if measuring is not None:
                    await measuring.send()
            working.cancel()
            sender.close()


def otlp_sender(
    endpoint: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    service: str = "",
    resource: Mapping[str, str] | None = None,
) -> Sender:
    """A sender to a collector that speaks OTLP over HTTP; see `zerver.trace.telemetry.otel.OtlpSender`.

    Loads OpenTelemetry's packages, some tenths of a second. Raises DefinitionError where they are not installed.
    """
    try:
        from zerver.trace.telemetry.otel import OtlpSender
    except ModuleNotFoundError as missing:
        if not str(missing.name).startswith("opentelemetry"):
            raise
        raise DefinitionError(
            f"spans cannot be sent to {endpoint!r}: {missing.name} is not installed", "pip install zerver[otel]"
        ) from missing
    return OtlpSender(endpoint, headers=headers, timeout=timeout, service=service, resource=resource)


async def _work(
    scope: trio.CancelScope, exporter: Exporter, measuring: _Measuring | None, metrics_every: float
) -> None:
    """Shielded: what was noted last is sent when all around has been cancelled. Whoever opened it ends it."""
    scope.shield = True
    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exporter.run)
            if measuring is not None:
                nursery.start_soon(measuring.run, metrics_every)


class _Measuring:
    """Sends snapshots. A thread of its own: a batch of spans that is tried again must not make them late."""

    def __init__(self, sender: Sender, snapshot: Callable[[], MetricsSnapshot]) -> None:
        self._sender = sender
        self._snapshot = snapshot
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, every: float) -> None:
        while True:
            await trio.sleep(every)
            await self.send()

    async def send(self) -> None:
        send = self._sender.send_metrics
        try:
            await trio.to_thread.run_sync(send, self._snapshot(), abandon_on_cancel=True, limiter=self._limiter)
        except Exception:  # the next one says all that this one would have
            _log.exception("the metrics could not be sent")
