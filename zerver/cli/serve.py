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
from zerver.errors import DefinitionError
from zerver.runtime import Result
from zerver.runtime.groups import unwrapped
from zerver.serve import Serving
from zerver.serve import serve as serve_app
from zerver.trace.text import format_timeline


@click.command()
@click.argument("app", metavar="MODULE:APP")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--timeline", is_flag=True, help="Print the timeline of every run.")
@click.option("--drain", default=10.0, show_default=True, metavar="SECONDS", help="What runs may take after SIGTERM.")
def serve(app: str, host: str, port: int, timeline: bool, drain: float) -> None:
    """Serve an app over HTTP."""
    loaded = load_app(app)
    try:
        trio.run(_serve, loaded, host, port, drain, _print_timeline if timeline else None)
    except DefinitionError as error:
        raise click.ClickException(f"DefinitionError: {error}") from None
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


async def _serve(app: App, host: str, port: int, drain: float, on_run: Callable[[Result, int], None] | None) -> None:
    with unwrapped(), trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            serving: Serving = await nursery.start(
                partial(serve_app, app, host=host, port=port, on_run=on_run, on_defect=_report)
            )
            for address in serving.addresses:
                print(f"listening on {address}", flush=True)
            nursery.start_soon(_end_on_signal, signals, serving, drain, nursery.cancel_scope)


async def _end_on_signal(
    signals: AsyncIterator[int], serving: Serving, drain: float, scope: trio.CancelScope
) -> None:
    await anext(signals)
    print("draining; a second signal ends at once", file=sys.stderr, flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_exit_on_signal, signals)
        await serving.drain(drain)
        nursery.cancel_scope.cancel()
    scope.cancel()


async def _exit_on_signal(signals: AsyncIterator[int]) -> None:
    number = await anext(signals)
    sys.stdout.flush()
    os._exit(128 + number)  # at once, rollbacks included: that is what a second signal asks for


def _print_timeline(result: Result, status: int) -> None:
    print(format_timeline(result.timeline, status=status, unresolved=result.unresolved), end="\n\n", flush=True)


def _report(defect: Exception) -> None:
    traceback.print_exception(defect, file=sys.stderr)
