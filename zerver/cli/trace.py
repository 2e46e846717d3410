"""`zerver trace`: the runs that were kept, and what happened in one of them.

Law: it reads the trace file; only for a run that is not in it, it asks the server of this folder, which may have it in
memory. Whatever comes out of these is printed on lines of its own, and speaks to no terminal. Status 2: there is no
such file or run, with what to do about it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import quote

import attrs
import click

from zerver.cli.kept import SHOWN, Kept, NothingThere, db_option, kept_in, opened, recording_of
from zerver.core.units import SECONDS

if TYPE_CHECKING:
    from zerver.trace.hidden import Hidden
    from zerver.trace.keeping.store import TraceStore
    from zerver.trace.summary import Filter, Summary

_POLL: Final = 0.2  # seconds between two looks at a number in the file's header
_BEFORE: Final = 10  # of the runs before those that are followed
_ID: Final = 12  # characters of an id in a list: `req_` and eight, which is enough to give it back
_ALWAYS: Final = "unresolved, failed, slow and troubled runs are kept, and of the others a sample"


def _length(ctx: click.Context, param: click.Parameter, said: str | None) -> int | None:
    """A length of time, as 15m, in nanoseconds."""
    if said is None:
        return None
    try:
        return int(SECONDS.read(said) * 1e9)
    except ValueError:
        raise click.BadParameter(f"{said!r} is not {SECONDS.wanted}", ctx, param) from None


def _moment(ctx: click.Context, param: click.Parameter, said: str | None) -> int | None:
    """So long ago, as 15m, or a moment of this machine's time, as 2026-11-21T14:00; in nanoseconds since 1970."""
    if said is None:
        return None
    try:
        if said.count("-") == 2:
            return round(datetime.fromisoformat(said).timestamp() * 1e9)
        return max(0, time.time_ns() - int(SECONDS.read(said) * 1e9))
    except (ValueError, OverflowError, OSError):
        wanted = f"{SECONDS.wanted}, or a moment, as 2026-11-21T14:00"
        raise click.BadParameter(f"{said!r} is not {wanted}", ctx, param) from None


@click.command()
@click.argument("run", required=False, metavar="[ID]")
@click.option("--route", default="", metavar="ROUTE", help="A route, as 'POST /orders', or a flow's name.")
@click.option("--status", default="", metavar="STATUS", help="503, 5xx, or a word: done, failed, defect, deadline, …")
@click.option("--tenant", metavar="NAME", help="Of this tenant.")
@click.option("--failed", is_flag=True, help="That were not done.")
@click.option("--unresolved", is_flag=True, help="With a write of which nobody can say that it is right.")
@click.option("--slow", is_flag=True, help="That were slow for their route.")
@click.option("--slower-than", "slower_than", callback=_length, metavar="TIME", help="That took longer, as 500ms.")
@click.option(
    "--since", callback=_moment, metavar="TIME", help="That began since then: 15m ago, or at 2026-11-21T14:00."
)
@click.option("--until", callback=_moment, metavar="TIME", help="That began before then.")
@click.option(
    "--kept", default="", metavar="WHY", help="Kept for this: error, trouble, slow, declined, refused, sample."
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=25, show_default=True, help="How many at most.")
@click.option("--follow", is_flag=True, help="Show new ones as they are written, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@db_option
def trace(
    run: str | None,
    slower_than: int | None,
    since: int | None,
    until: int | None,
    limit: int,
    follow: bool,
    as_json: bool,
    db: str | None,
    **said: Any,
) -> None:
    """List the runs that were kept, newest first; or tell what happened in the one with this ID.

    ID is what an answer has as X-Request-Id, or the beginning of it; or the id of a trace that the run belongs to.
    """
    from zerver.trace.summary import Filter

    wanted = Filter(**said, slower_than_ns=slower_than, since_unix_ns=since, until_unix_ns=until)
    kept = kept_in(db)
    if run is not None:
        if follow or wanted != Filter():
            raise click.UsageError("an ID is one run: it takes no filters, and cannot be followed")
        with opened(kept.path) as store:
            summary = _meant(store, run)
            if summary is None and _live(run, as_json):
                return
            _one(store, summary or _missed(store, run), kept.hidden, as_json)
    elif follow:
        _follow(kept, wanted, min(limit, _BEFORE), as_json)
    else:
        with opened(kept.path) as store:
            _list(store, wanted, limit, as_json)


# ---- lists ----------------------------------------------------------------------------------


def _list(store: TraceStore, wanted: Filter, limit: int, as_json: bool) -> None:
    from zerver.trace.summary import Filter

    found = store.search(wanted, limit)
    if as_json:
        click.echo(json.dumps([_plain(summary) for summary in found], indent=2))
    elif found:
        _print(found, header=True)
    else:
        fits = "" if wanted == Filter() else " that fits"
        click.echo(f"no run{fits} in {store.path}: {_ALWAYS}", err=True)


def _print(summaries: Sequence[Summary], *, header: bool) -> None:
    """A table as wide as the terminal; of any width where there is none."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    rows = [_HEADER] if header else []
    for cells, color in [(row, None) for row in rows] + [(_cells(one), _color(one)) for one in summaries]:
        line = "  ".join(cell.ljust(size) for cell, size in zip(cells, _WIDTHS, strict=False)).rstrip()
        if width is not None and len(line) > width:
            line = f"{line[: width - 1]}…"
        click.secho(line, fg=color)


_HEADER: Final = ("BEGAN", "ID", "ROUTE", "STATUS", "TOOK", "TENANT", "KEPT", "WHY")
_WIDTHS: Final = (14, _ID, 26, 12, 8, 10, 10, 0)


def _cells(it: Summary) -> tuple[str, ...]:
    from zerver.trace.describe import briefly
    from zerver.trace.veil import escaped

    status = it.status if it.http is None else str(it.http) if it.status == "done" else f"{it.http} {it.status}"
    kept = f"{it.kept} +{it.beside}" if it.beside else it.kept
    cells = (
        _clock(it.began_unix_ns),
        it.run_id[:_ID],
        it.route,
        status,
        briefly(it.took_ns),
        it.tenant,
        kept,
        it.cause,
    )
    return tuple(map(escaped, cells))


def _clock(unix_ns: int, form: str = "%m-%d %H:%M:%S") -> str:
    """A moment, in this machine's time."""
    try:
        return datetime.fromtimestamp(unix_ns / 1e9).strftime(form)
    except (ValueError, OverflowError, OSError):  # in a file that was made by somebody else
        return "?"


def _color(it: Summary) -> str | None:
    return "magenta" if it.unresolved else "red" if it.kept == "error" else "yellow" if it.slow else None


def _plain(it: Summary) -> dict[str, Any]:
    """As the page's API has it, with what only a file knows."""
    fields = attrs.asdict(it)
    began = fields.pop("began_unix_ns")
    return {
        "id": fields.pop("run_id"),
        "began_unix_ms": began / 1e6,
        **fields,
        "unresolved": it.unresolved > 0,
        "kept": it.kept or None,
        "cause": it.cause or None,
        "slow_step": it.slow_step or None,
        "trace_id": it.trace_id or None,
        "source": "store",
    }


# ---- one run --------------------------------------------------------------------------------


def _one(store: TraceStore, summary: Summary, hidden: Hidden, as_json: bool) -> None:
    from zerver.trace.recording import decode_run

    recording = recording_of(store, summary)
    result = decode_run(recording)
    if as_json:
        from zerver.trace.view import view

        told = view(result, began_unix_ns=recording.began_unix_ns, hidden=hidden)
        told["header"] |= {"kept": summary.kept, "beside": summary.beside, "source": "store"}
        click.echo(json.dumps(told, indent=2))
        return
    from zerver.trace.text import format_timeline

    click.echo(format_timeline(result.timeline, unresolved=result.unresolved, hidden=hidden))
    click.echo(_origin(summary))


def _meant(store: TraceStore, said: str) -> Summary | None:
    """The run that is meant, None for none of these. Raises NothingThere when it may be several."""
    matching = store.matching(said, SHOWN)
    if len(matching) < 2:
        return matching[0] if matching else None
    _print(matching, header=True)
    more = " at least" if len(matching) == SHOWN else ""
    raise NothingThere(f"{said!r} may be any of these{more}: give more of the id")


def _live(said: str, as_json: bool) -> bool:
    """Print the run that the server of this folder has in memory, or has under way; whether there is one."""
    from zerver.cli.asking import NoAnswer
    from zerver.cli.top import find_server
    from zerver.trace.veil import escaped

    path = f"runs/{quote(said, safe='')}"
    try:
        asking = find_server(None, None)
        told = asking.get(path if as_json else f"{path}/text")
    except NoAnswer:  # there is no server here, or it does not know the run: what the file says stands
        return False
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return True
    click.echo("\n".join(map(escaped, str(told.get("text")).splitlines())))
    click.echo("still in the memory of the server, and not kept")
    return True


def _missed(store: TraceStore, said: str) -> NoReturn:
    """Say why a run may not be there."""
    held = store.statistics()
    count = sum(held.runs.values())
    since = "" if held.oldest_unix_ns is None else f" since {_clock(held.oldest_unix_ns, '%Y-%m-%d %H:%M')}"
    raise NothingThere(
        f"no run in {store.path} begins with {said!r}; {count} {'is' if count == 1 else 'are'} kept there{since}\n"
        f"  {_ALWAYS}: ZERVER_TRACE_SAMPLE=1 keeps all from now on"
    )


def _origin(it: Summary) -> str:
    """When it was, why it is kept, and what can be done with it."""
    from zerver.trace.veil import escaped

    began = _clock(it.began_unix_ns, "%Y-%m-%d %H:%M:%S.%f")[:-3]
    beside = f" (and {it.beside} like it that were not)" if it.beside else ""
    trace = f" · trace {it.trace_id}" if it.trace_id else ""
    return escaped(f"began {began} · kept: {it.kept}{beside}{trace} · again: zerver replay {it.run_id[:_ID]}")


# ---- following ------------------------------------------------------------------------------


def _follow(kept: Kept, wanted: Filter, before: int, as_json: bool) -> None:
    """Print the last ones, then each new one, until somebody has seen enough."""
    path, number = kept.path, -1
    try:
        while True:
            _wait_for(path)  # it may be moved or deleted, and is made anew when there is something to write
            try:
                with opened(path) as store:
                    if number < 0:
                        number = store.last()
                        found = list(reversed(store.search(wanted, before)))
                        if not as_json:
                            click.secho("  ".join(c.ljust(n) for c, n in zip(_HEADER, _WIDTHS, strict=True)).rstrip())
                        _show(found, as_json)
                    _show_new(store, number, wanted, as_json)
                number = 0
            except NothingThere:
                if os.path.exists(path):
                    raise
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _show_new(store: TraceStore, number: int, wanted: Filter, as_json: bool) -> None:
    """Print the runs that are written after this one, for as long as the file is where it is."""
    while not store.was_moved:
        if store.has_changed():
            while new := store.after(number):
                number = new[-1][0]
                _show([summary for _, summary in new if wanted.fits(summary)], as_json)
        time.sleep(_POLL)


def _show(summaries: Sequence[Summary], as_json: bool) -> None:
    if as_json:
        for summary in summaries:
            click.echo(json.dumps(_plain(summary)))
    else:
        _print(summaries, header=False)
    sys.stdout.flush()


def _wait_for(path: str) -> None:
    if not os.path.exists(path):
        click.echo(f"waiting for {path}, which a server makes when it starts", err=True)
    while not os.path.exists(path):
        time.sleep(_POLL)
