"""`zerver serve`: an app over HTTP, until a signal ends it.

Law: SIGTERM and SIGINT drain: nothing new is begun, what is under way may finish until the deadline, then it is
cancelled and compensated, and the command ends with status 0. A second signal ends at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from functools import partial

import click
import trio

from zerver.cli.load import load_app
from zerver.core.app import App
from zerver.http import open_http_listeners
from zerver.runtime import Result
from zerver.runtime.groups import unwrapped
from zerver.serve import Serving, check_app
from zerver.serve import serve as serve_app
from zerver.trace.text import format_timeline


@click.command()
@click.argument("app", metavar="MODULE:APP")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--timeline", is_flag=True, help="Print the timeline of every run.")
@click.option(
    "--drain",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="What runs may take after SIGTERM.",
)
def serve(app: str, host: str, port: int, timeline: bool, drain: float) -> None:
    """Serve an app over HTTP."""
    loaded = load_app(app)
    check_app(loaded)
    trio.run(_serve, loaded, host, port, drain, _print_timeline if timeline else None)


async def _serve(app: App, host: str, port: int, drain: float, on_run: Callable[[Result, int], None] | None) -> None:
    listeners = await _listen(host, port)
    serving: Serving | None = None
    with unwrapped(), trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as until_signal:
                nursery.start_soon(_heed, signals, until_signal)
                serving = await nursery.start(
                    partial(serve_app, app, listeners=listeners, on_run=on_run, on_defect=_report)
                )
                print(*(f"listening on {address}" for address in serving.addresses), sep="\n", flush=True)
                await trio.sleep_forever()
            if serving is not None:
                await serving.drain(drain)
            nursery.cancel_scope.cancel()


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await open_http_listeners(host, port)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


async def _heed(signals: AsyncIterator[int], until_signal: trio.CancelScope) -> None:
    """The first signal ends the serving, the second the process."""
    await anext(signals)
    print("draining; a second signal ends at once", file=sys.stderr, flush=True)
    until_signal.cancel()
    number = await anext(signals)
    sys.stdout.flush()
    os._exit(128 + number)  # at once, rollbacks included: that is what a second signal asks for


def _print_timeline(result: Result, status: int) -> None:
    print(format_timeline(result.timeline, status=status, unresolved=result.unresolved), end="\n\n", flush=True)


def _report(defect: Exception) -> None:
    traceback.print_exception(defect, file=sys.stderr)
