"""Observing: whoever wants to know of a server's runs, put together as the settings say.

Law: nothing is decided here, and nothing here is on a run's way but one append. The runtime tells the recorder of every
run that has ended; the recorder tells the rest: logs, metrics, the trace file, the collector, the live page.

    async with open_observing(app, settings, page=Access(token)) as observing:
        serving = await nursery.start(
            partial(serve, app, observers=observing.observers, beside=observing.beside)
        )
        observing.attach(serving.runtime, serving.addresses)
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

import attrs

from zerver.core.app import App
from zerver.core.settings import OtelSettings, Settings
from zerver.edge import Handler
from zerver.jobs import Worker
from zerver.jobs.gauges import QueueGauges, worker_families
from zerver.runtime import Result, Runtime
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.supervisor import Supervisor
from zerver.trace.hidden import Hidden
from zerver.trace.keeping.keep import Keeper, Keeping, Kept
from zerver.trace.keeping.writer import TraceWriter, open_trace_writer
from zerver.trace.recorder import Listener, Recorder, log_defect, open_recorder
from zerver.trace.ring import Ring
from zerver.trace.telemetry.exported import Exporting
from zerver.trace.telemetry.exporter import Exporter, open_exporter, otlp_sender
from zerver.trace.telemetry.gauges import LoopLag, recorder_families, runtime_families
from zerver.trace.telemetry.logs import open_logs
from zerver.trace.telemetry.metrics import Metrics
from zerver.trace.telemetry.promotion import Promotion
from zerver.ui import Access, Archive, Page, Server

_REMEMBERED: Final = 256


@attrs.frozen(eq=False)
class Observing:
    """What `open_observing` has opened. on_defect: where defects of the edge are told, for `serve(on_defect=…)`."""

    recorder: Recorder
    lag: LoopLag
    on_defect: Callable[[Exception], None]
    metrics: Metrics | None = None
    writer: TraceWriter | None = None
    page: Page | None = None

    @property
    def observers(self) -> Sequence[Callable[[Result], None]]:
        """For `serve`, `asgi` and `open_runtime`."""
        return (self.recorder.add,)

    @property
    def beside(self) -> Mapping[str, Handler]:
        """For `serve` and `asgi`."""
        return {} if self.page is None else {self.page.access.path: self.page.handle}

    def attach(
        self, runtime: Runtime, addresses: Sequence[str] = (), *, supervisors: Sequence[Supervisor] = ()
    ) -> None:
        """The app is open: gauges read its runtime from now on, and the page shows it."""
        runtime.interpreter.targets.loop_lag = self.lag.seconds
        if self.metrics is not None:
            self.metrics.watch(lambda: runtime_families(runtime.statistics()))
        if self.page is not None:
            self.page.attach(Server(runtime, addresses, supervisors))

    async def watch_worker(self, worker: Worker) -> None:
        """Gauges read this worker from now on, and what waits in its queues, until this is cancelled."""
        if self.metrics is None:
            return
        queues = QueueGauges(worker.store)
        self.metrics.watch(lambda: worker_families(worker.statistics()))
        self.metrics.watch(queues.families)
        await queues.watch()


@asynccontextmanager
async def open_observing(
    app: App, settings: Settings | None = None, *, page: Access | None = None
) -> AsyncGenerator[Observing, None]:
    """Open what the settings ask for; left, after the runtime, all that has not been told yet is told.

    settings: by default those without any file or environment. page: who is let in to the live page; None for no page,
    whatever the settings say, because only whoever listens knows who can come.

    Raises DefinitionError for settings that cannot work, as a collector without OpenTelemetry's packages.
    """
    settings = settings or Settings()
    trace, hidden = settings.trace, Hidden(settings.trace.hide)
    metrics = Metrics(tenants=settings.metrics.tenants) if settings.metrics.on else None
    budget = None if trace.slow_ms is None else trace.slow_ms / 1e3
    keeping = Keeping(sample=trace.sample, budget=budget, jobs=trace.debug_jobs)
    keeper = _OneVerdict(keeping) if settings.otel.endpoint else Keeper(keeping)
    on_defect, writer = log_defect, None
    listeners: list[Listener] = [] if metrics is None else [metrics]
    async with AsyncExitStack() as stack:
        if settings.log.form != "off":
            logs = await stack.enter_async_context(
                open_logs(settings.log.form, sys.stderr, level=settings.log.level, hidden=hidden)
            )
            listeners.append(logs)
            on_defect = logs.report
            if metrics is not None:
                metrics.watch(logs.families)
        if trace.db:
            writer = await stack.enter_async_context(
                open_trace_writer(
                    trace.db, keeper=keeper, hidden=hidden, most_bytes=trace.most_bytes, most_age=trace.most_age
                )
            )
            listeners.append(writer)
        if settings.otel.endpoint:
            listeners.append(await stack.enter_async_context(_open_export(app, settings.otel, keeper, hidden, metrics)))
        recorder = await stack.enter_async_context(
            open_recorder(ring=Ring(trace.ring), listeners=listeners, on_defect=on_defect)
        )
        lag = LoopLag()
        if metrics is not None:
            metrics.watch(lambda: recorder_families(recorder.statistics()))
            metrics.watch(lag.families)
        shown = None
        if page is not None:
            archive = Archive(trace.db) if trace.db else None
            snapshot = None if metrics is None else metrics.snapshot
            shown = Page(page, recorder, archive=archive, metrics=snapshot, hidden=hidden, on_defect=on_defect)
            stack.callback(shown.close)
        nursery = await stack.enter_async_context(open_body_nursery())
        nursery.start_soon(lag.watch)
        try:
            yield Observing(recorder, lag, on_defect, metrics, writer, shown)
        finally:
            nursery.cancel_scope.cancel()


def _open_export(
    app: App, otel: OtelSettings, keeper: Keeper, hidden: Hidden, metrics: Metrics | None
) -> AbstractAsyncContextManager[Exporter]:
    """The export of kept runs, and of metrics, to a collector."""
    headers = {} if otel.headers is None else dict(otel.headers.reveal())

    def keep(result: Result) -> str | None:
        kept = keeper.decide(result)
        return None if kept is None else kept.why

    return open_exporter(
        otlp_sender(otel.endpoint, headers=headers, timeout=otel.timeout, service=otel.service or app.name),
        keep,
        how=Exporting(hidden=hidden, systems=_systems(app)),
        promotion=Promotion(otel.promote_queue_ms, otel.promote_park_ms),
        metrics=None if metrics is None else metrics.snapshot,
        metrics_every=otel.metrics_every,
    )


def _systems(app: App) -> dict[str, str]:
    """Which database is behind the effects of a room, as {"sql": "sqlite"}."""
    return {kind.partition(".")[0]: capability.name for capability in app.capabilities for kind in capability.handlers}


class _OneVerdict(Keeper):
    """A keeper that is asked by several, about the same runs: each run is decided on once."""

    def __init__(self, keeping: Keeping) -> None:
        super().__init__(keeping)
        self._said: OrderedDict[str, Kept | None] = OrderedDict()

    def choose(self, results: Sequence[Result]) -> list[tuple[Result, Kept]]:
        """One by one: whoever asks next will ask so."""
        judged = [(result, self.decide(result)) for result in results]
        return [(result, kept) for result, kept in judged if kept is not None]

    def decide(self, result: Result) -> Kept | None:
        if result.run_id in self._said:
            return self._said[result.run_id]
        kept = self._said[result.run_id] = super().decide(result)
        if len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)
        return kept
