"""`zerver check`, `zerver routes`, `zerver graph`: looking at an app.

Law: nothing is opened and nothing is served; what is found wrong is one message and status 1.
"""

from __future__ import annotations

import click

from zerver.cli.load import find_flow, load_app
from zerver.core.flows import Flow


@click.command()
@click.argument("app", metavar="MODULE:APP")
def check(app: str) -> None:
    """Check every route, flow, effect, job and schedule; status 1 and the first problem when something cannot work."""
    from zerver.edge import check_app
    from zerver.jobs.cron import schedules_of  # here, because these load trio, and --help must not

    loaded = load_app(app)
    check_app(loaded)
    schedules = schedules_of(loaded)
    mounts = [_counted(len(loaded.mounts), "mount")] if loaded.mounts else []
    jobs = [_counted(len(found), noun) for found, noun in ((loaded.jobs, "job"), (schedules, "schedule")) if found]
    counts = [_counted(len(loaded.routes), "route"), *mounts, _counted(len(loaded.flows), "flow"), *jobs]
    click.echo(f"{app}: {', '.join(counts)}: ok")


@click.command()
@click.argument("app", metavar="MODULE:APP")
def routes(app: str) -> None:
    """List the routes: method, path, flow, class, deadline; and the mounts, which take what is left."""
    loaded = load_app(app)
    rows = [(r.method, r.path, r.flow.name, r.priority or r.flow.priority, _seconds(r.flow)) for r in loaded.routes]
    rows += [("*", f"{mount.prefix}/…", f"mount {mount.prefix or '/'}", "default", "-") for mount in loaded.mounts]
    header = ("METHOD", "PATH", "FLOW", "CLASS", "DEADLINE")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _seconds(flow: Flow) -> str:
    return f"{flow.deadline:g}s" if flow.deadline else "-"


@click.command()
@click.argument("app", metavar="MODULE:APP")
@click.argument("flow")
@click.option("--format", "format_", type=click.Choice(["mermaid", "dot"]), default="mermaid", show_default=True)
def graph(app: str, flow: str, format_: str) -> None:
    """Draw a flow, as Mermaid or DOT."""
    drawn = find_flow(load_app(app), flow).graph()
    click.echo(drawn.mermaid() if format_ == "mermaid" else drawn.dot(), nl=False)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
