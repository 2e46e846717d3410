"""`zerver serve`: an app over HTTP, until a signal ends it.

Law: SIGTERM and SIGINT drain: nothing new is begun, what is under way may finish until the deadline, then it is
cancelled and compensated, and the command ends with status 0. A second signal ends at once. SIGHUP is heeded where
there is a file of tenants, which is then read again; elsewhere it ends the process, as it does everywhere.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import click
import trio

from zerver.cli.announce import announced
from zerver.cli.config import load_settings
from zerver.cli.load import load_app
from zerver.cli.options import ServeOptions, WrongOption
from zerver.cli.process import ending_signals, heed, journal_of, prepare_process, print_timeline, report
from zerver.cli.work import Working, worker_settings
from zerver.cli.workers import Lifeline, inherited_listener, inherited_neighbours, supervise
from zerver.core.app import App
from zerver.edge import check_app
from zerver.http import Certificates, open_http_listeners, open_unix_listener, over_tls
from zerver.http.claims import check_shared
from zerver.observing import open_observing
from zerver.runtime import Runtime
from zerver.runtime.groups import unwrapped
from zerver.runtime.tenants import TenantsFile
from zerver.serve import Serving
from zerver.serve import serve as serve_app
from zerver.trace.hidden import Hidden


@click.command()
@click.argument("app", metavar="MODULE:APP", required=False)
@click.option("--host", metavar="ADDRESS", help="Where to listen.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: any free one.  [default: 8000]")
@click.option("--unix", metavar="PATH", help="Listen on a Unix socket instead.")
@click.option("--unix-mode", default="660", show_default=True, metavar="MODE", help="Who may connect to it, in octal.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes that serve.  [default: 1]")
@click.option(
    "--parser", default="auto", show_default=True, type=click.Choice(["auto", "h11", "httptools"]),
    help="Reads request heads. auto: httptools if it is installed.",
)  # fmt: skip
@click.option(
    "--tls-cert", multiple=True, metavar="FILE",
    help="Certificate chain, PEM. Again for each name (SNI); the first one is the default. Reloaded when it changes.",
)  # fmt: skip
@click.option("--tls-key", multiple=True, metavar="FILE", help="The key to each --tls-cert, PEM, in the same order.")
@click.option(
    "--proxy-headers", multiple=True, metavar="FROM",
    help="A proxy whose word on client, scheme and host is believed: an address, a network, or unix. Repeatable.",
)  # fmt: skip
@click.option(
    "--proxy-form", default="x-forwarded", show_default=True, type=click.Choice(["x-forwarded", "forwarded"]),
    help="What proxies say it in: X-Forwarded-For, -Proto, -Host; or Forwarded (RFC 7239).",
)  # fmt: skip
@click.option(
    "--allow-host", multiple=True, metavar="NAME",
    help="A host that is served; 421 for others. *.NAME: its subdomains; *: any. Repeatable. "
    "Without it, where others can connect, only IP addresses and localhost are served.",
)  # fmt: skip
@click.option(
    "--limit", multiple=True, metavar="NAME=VALUE",
    help="What a client may take, as body=10MiB or head_seconds=5. Repeatable. Names: see the page on limits.",
)  # fmt: skip
@click.option(
    "--tenants", metavar="FILE",
    help="What tenants may take, TOML; in place of what the app says. Reloaded when it changes, and on SIGHUP.",
)  # fmt: skip
@click.option("--timeline", is_flag=True, help="Print the timeline of every run.")
@click.option(
    "--drain", type=click.FloatRange(min=0), metavar="SECONDS", help="What runs may take after SIGTERM.  [default: 10]"
)
@click.option("--config", metavar="FILE", help="The file of settings.  [default: zerver.toml, if it is there]")
@click.option("--journal", metavar="URL", help="Keeps durable runs: sqlite:///FILE, or postgresql://….")
@click.option(
    "--journal-lease", type=click.FloatRange(min=1), metavar="SECONDS",
    help="After so long without a sign of life its runs are for others.  [default: 10]",
)  # fmt: skip
@click.option("--journal-keys", metavar="FILE", help="Keys that the journal is encrypted with, one a line.")
@click.option("--no-jobs", is_flag=True, help="Leave the app's jobs to `zerver work`.")
@click.option("--log", type=click.Choice(["off", "console", "json"]), help="Log lines, on stderr.  [default: off]")
@click.option("--trace-db", metavar="FILE", help='Where runs are kept; "": nowhere.  [default: .zerver/traces.db]')
@click.option(
    "--page", type=click.Choice(["auto", "on", "off"]),
    help="The live page. auto: where only this machine can connect.  [default: auto]",
)  # fmt: skip
@click.option("--worker", type=int, hidden=True)
@click.option("--listener", type=int, hidden=True)
@click.option("--neighbours", type=int, nargs=2, hidden=True)
def serve(unix_mode: str, **given: Any) -> None:
    """Serve an app over HTTP. What no option says, `zerver config` shows."""
    options = _options(unix_mode, given)
    if options.workers > 1:
        sys.exit(trio.run(supervise, options))
    certificates, tenants = options.certificates(), options.tenants_file()
    app = load_app(options.app)
    if tenants is not None:
        app.tenants = tenants.tenants
    check_app(app)
    if options.worker is not None:
        check_shared(app)
    prepare_process()
    trio.run(_serve, app, options, certificates, tenants)


#: The options that are settings too, by the setting's key.
_SETTINGS = {
    "serve.app": "app", "serve.host": "host", "serve.port": "port", "serve.workers": "workers", "serve.drain": "drain",
    "serve.tenants": "tenants", "serve.journal": "journal", "serve.journal_lease": "journal_lease",
    "serve.journal_keys": "journal_keys", "log.form": "log", "trace.db": "trace_db",
    "page.mode": "page",
}  # fmt: skip


def _options(unix_mode: str, given: dict[str, Any]) -> ServeOptions:
    """What the command line, the environment and the file say together."""
    said = {key: ("--" + name.replace("_", "-"), given.pop(name)) for key, name in _SETTINGS.items()}
    settings = load_settings(given["config"], said, quiet=given["worker"] is not None)
    serving = settings.serve
    if not serving.app:
        raise WrongOption("which app? Write MODULE:APP, as `zerver serve shop.api:app`, or set ZERVER_APP")
    # A host or port that stands in the environment is not said beside --unix; one on the same command line is.
    sources = ("option",) if given["unix"] is not None else ("option", "environment", "file")
    try:
        mode = int(unix_mode, 8)
    except ValueError:
        raise WrongOption(f"--unix-mode is octal, as 660; not {unix_mode!r}") from None
    return ServeOptions(
        app=serving.app,
        host=serving.host if settings.origin("serve.host").source in sources else None,
        port=serving.port if settings.origin("serve.port").source in sources else None,
        unix_mode=mode,
        workers=serving.workers,
        drain=serving.drain,
        tenants=serving.tenants or None,
        settings=settings,
        **given,
    )


async def _serve(
    app: App, options: ServeOptions, certificates: Certificates | None, tenants: TenantsFile | None
) -> None:
    listeners = await _listen(options, certificates)
    lifeline = None if options.worker is None else Lifeline(options.worker)
    serving: Serving | None = None
    access = options.access() if options.has_page else None
    hidden = Hidden(options.settings.trace.hide)
    works = bool(app.jobs) and not options.no_jobs
    with unwrapped(), ending_signals() as signals:
        async with (
            journal_of(options.settings) as journal,
            open_observing(app, options.settings, page=access) as observing,
            trio.open_nursery() as nursery,
        ):
            working = Working(worker_settings(options.settings), observing)
            serve_it = partial(
                serve_app,
                app,
                listeners=listeners,
                limits=options.limits(),
                trust=options.trust(),
                parser=options.parser,
                journal=journal,
                lease=options.settings.serve.journal_lease,
                neighbours=None if options.neighbours is None else inherited_neighbours(*options.neighbours),
                observers=[*observing.observers, *([partial(print_timeline, hidden)] if options.timeline else [])],
                beside=observing.beside,
                on_defect=report if options.settings.log.form == "off" else observing.on_defect,
            )
            with trio.CancelScope() as until_signal:
                nursery.start_soon(heed, signals, until_signal, lifeline is None)
                started: Serving = await nursery.start(serve_it)
                serving = started
                observing.attach(started.runtime, started.addresses)
                if tenants is not None:
                    await nursery.start(_follow, tenants, started.runtime)
                if works:
                    await started.nursery.start(working.run, started.runtime)
                if lifeline is None:
                    with announced(started.addresses, access, known=options.knows_token):
                        await trio.sleep_forever()
                else:
                    await lifeline.tell_ready()
                    await lifeline.wait_broken()
            if serving is not None:
                async with trio.open_nursery() as draining:
                    draining.start_soon(working.drain, options.drain)
                    await serving.drain(options.drain)
            nursery.cancel_scope.cancel()


async def _listen(options: ServeOptions, certificates: Certificates | None) -> list[trio.abc.Listener[Any]]:
    listeners: Sequence[trio.abc.Listener[trio.SocketStream]]
    try:
        if options.listener is not None:
            listeners = [inherited_listener(options.listener)]
        elif options.unix is not None:
            listeners = [await open_unix_listener(options.unix, options.unix_mode)]
        else:
            shared = options.worker is not None
            listeners = await open_http_listeners(options.bind_host, options.bind_port, reuse_port=shared)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {options.place}: {error.strerror or error}") from None
    return [listener if certificates is None else over_tls(listener, certificates.context) for listener in listeners]


async def _follow(
    tenants: TenantsFile, runtime: Runtime, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Keep to the file as it changes, and look at once when told by SIGHUP."""
    with unwrapped(), trio.open_signal_receiver(signal.SIGHUP) as hangups:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tenants.follow, runtime)
            task_status.started()
            async for _ in hangups:
                await tenants.reload(runtime)
