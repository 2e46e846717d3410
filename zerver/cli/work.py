"""`zerver work`: an app's jobs, and the runs that others have left, without HTTP; and the worker beside `zerver serve`.

Law: SIGTERM and SIGINT drain: nothing new is taken, what is under way may finish until the deadline, then it is cut,
undone, and put back as if it had not been begun. The command ends with status 0. A second signal ends at once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click
import trio

from zerver.cli.config import load_settings
from zerver.cli.load import load_app
from zerver.cli.options import WrongOption
from zerver.cli.process import ending_signals, heed, journal_of, prepare_process, print_timeline
from zerver.cli.scrape import open_metrics_listeners, read_address, scraped
from zerver.core.app import App
from zerver.core.settings import Settings
from zerver.http import serve_http
from zerver.jobs import WorkerSettings, open_worker
from zerver.observing import Observing, open_observing
from zerver.runtime import Runtime, open_runtime
from zerver.runtime.groups import open_body_nursery, unwrapped
from zerver.trace.hidden import Hidden


@click.command()
@click.argument("app", metavar="MODULE:APP", required=False)
@click.option("--queues", metavar="NAME,…", help="Take jobs from these alone.  [default: all of the app's]")
@click.option("--seats", type=click.IntRange(1, 10_000), help="Jobs at once.  [default: 16]")
@click.option("--journal", metavar="URL", help="Keeps durable runs: sqlite:///FILE, or postgresql://….")
@click.option(
    "--journal-lease", type=click.FloatRange(min=1), metavar="SECONDS",
    help="After so long without a sign of life its runs are for others.  [default: 10]",
)  # fmt: skip
@click.option("--journal-keys", metavar="FILE", help="Keys that the journal is encrypted with, one a line.")
@click.option(
    "--drain", type=click.FloatRange(min=0), metavar="SECONDS", help="What jobs may take after SIGTERM.  [default: 10]"
)
@click.option("--timeline", is_flag=True, help="Print the timeline of every run.")
@click.option("--log", type=click.Choice(["off", "console", "json"]), help="Log lines, on stderr.  [default: off]")
@click.option("--trace-db", metavar="FILE", help='Where runs are kept; "": nowhere.  [default: .zerver/traces.db]')
@click.option(
    "--metrics", metavar="HOST:PORT", help="Answer GET /metrics there, for a scraper. No token: keep it private."
)
@click.option("--config", metavar="FILE", help="The file of settings.  [default: zerver.toml, if it is there]")
def work(timeline: bool, metrics: str | None, config: str | None, **given: Any) -> None:
    """Work on an app's jobs, and carry on runs whose process has died. Start as many of these as you need."""
    said = {key: ("--" + name.replace("_", "-"), given[name]) for key, name in _SETTINGS.items()}
    settings = load_settings(config, said)
    if not settings.serve.app:
        raise WrongOption("which app? Write MODULE:APP, as `zerver work shop.api:app`, or set ZERVER_APP")
    app = load_app(settings.serve.app)
    if not app.jobs and not settings.serve.journal:
        raise WrongOption(
            f"{settings.serve.app} has no jobs, and there is no journal: nothing to work on; "
            "declare jobs by app.job(flow), or give --journal"
        )
    if metrics is not None:
        read_address(metrics)
        if not settings.metrics.on:
            raise WrongOption("--metrics, and nothing is counted: turn metrics on, or leave it out")
    prepare_process()
    trio.run(_work, app, settings, timeline, metrics)


#: The options that are settings too, by the setting's key.
_SETTINGS = {
    "serve.app": "app", "work.queues": "queues", "work.seats": "seats", "serve.journal": "journal",
    "serve.journal_lease": "journal_lease", "serve.journal_keys": "journal_keys",
    "serve.drain": "drain", "log.form": "log", "trace.db": "trace_db",
}  # fmt: skip


def worker_settings(settings: Settings) -> WorkerSettings:
    """How jobs are worked on, as the settings say."""
    work = settings.work
    return WorkerSettings(seats=work.seats, queues=work.queues, lease=work.lease, keep=work.keep)


class Working:
    """A worker in a task of its own, which ends before the runtime that it works in."""

    def __init__(self, settings: WorkerSettings, observing: Observing) -> None:
        self._settings = settings
        self._observing = observing
        self._seconds = 0.0
        self._until = trio.Event()
        self._ended: trio.Event | None = None

    async def run(self, runtime: Runtime, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until `drain`. Raises as `open_worker`."""
        ended = trio.Event()
        try:
            async with open_worker(runtime, self._settings) as worker, open_body_nursery() as nursery:
                self._ended = ended
                nursery.start_soon(self._observing.watch_worker, worker)
                task_status.started()
                await self._until.wait()
                await worker.drain(self._seconds)
                nursery.cancel_scope.cancel()
        finally:
            ended.set()

    async def drain(self, seconds: float) -> None:
        """Take no more, let jobs finish for so long, and put back what is left. Does nothing if it never ran."""
        self._seconds = seconds
        self._until.set()
        if self._ended is not None:
            await self._ended.wait()


async def _work(app: App, settings: Settings, timeline: bool, metrics: str | None) -> None:
    hidden = Hidden(settings.trace.hide)
    listeners = () if metrics is None else await open_metrics_listeners(metrics)
    with unwrapped(), ending_signals() as signals:
        async with (
            journal_of(settings) as journal,
            open_observing(app, settings) as observing,
            open_runtime(
                app,
                observers=[*observing.observers, *([partial(print_timeline, hidden)] if timeline else [])],
                journal=journal,
                lease=settings.serve.journal_lease,
            ) as runtime,
            trio.open_nursery() as nursery,
        ):
            observing.attach(runtime)
            told = _told(app, settings)
            if observing.metrics is not None and listeners:
                # Until the end: how it drains is to be seen too.
                server = await nursery.start(partial(serve_http, scraped(observing.metrics), listeners))
                told += f"; metrics on {server.addresses[0]}/metrics"
            working = Working(worker_settings(settings), observing)
            with trio.CancelScope() as until_signal:
                nursery.start_soon(heed, signals, until_signal)
                if app.jobs:
                    await nursery.start(working.run, runtime)
                print(told, flush=True)
                await trio.sleep_forever()
            async with trio.open_nursery() as draining:
                draining.start_soon(working.drain, settings.serve.drain)
                await runtime.drain(settings.serve.drain)
            nursery.cancel_scope.cancel()


def _told(app: App, settings: Settings) -> str:
    """What it works on, for who has started it."""
    if not app.jobs:
        return "working on runs that others have left"
    return f"working on jobs of {', '.join(settings.work.queues or sorted(app.declared.queue_names))}"
