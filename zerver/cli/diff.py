"""`zerver diff`: two stored runs beside each other, or the slow runs of a route beside its fast ones.

Law: it reads the trace file, and nothing else. Status 2: there is nothing to compare, and why. That two runs differ is
no failure: whoever writes a script asks `--json` for `same`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from zerver.cli.kept import db_option, kept_in, opened, read
from zerver.errors import TraceError

if TYPE_CHECKING:
    from zerver.runtime import Result
    from zerver.trace.hidden import Hidden
    from zerver.trace.keeping.store import TraceStore

_MOST_SUMMARIES: Final = 10_000  # of the newest runs of a route; what is looked at is found by their numbers alone
_SHOWN: Final = 8


class NothingToCompare(click.ClickException):
    """There are too few runs."""

    exit_code = 2


@click.command()
@click.argument("words", nargs=-1, metavar="A B | ROUTE")
@click.option("--slow", is_flag=True, help="Compare the slow runs of ROUTE …")
@click.option("--fast", is_flag=True, help="… with its fast ones, and say which step explains the difference.")
@db_option
@click.option("--tenant", metavar="NAME", help="Only runs of this tenant, for --slow --fast.")
@click.option("--most", type=click.IntRange(5, 1000), default=200, metavar="N", help="Runs of each cohort at most.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def diff(
    words: Sequence[str], slow: bool, fast: bool, db: str | None, tenant: str | None, most: int, as_json: bool
) -> None:
    """Compare two runs step by step, by their ids or the beginnings of these: where did they part, and why?

    With --slow --fast, compare cohorts: `zerver diff --slow --fast 'POST /orders'`.
    """
    kept = kept_in(db)
    if slow or fast:
        with opened(kept.path) as store:
            _cohorts(store, " ".join(words), tenant, most, kept.hidden, as_json)
        return
    if len(words) != 2:
        raise click.UsageError("give two runs, or --slow --fast and a route")
    with opened(kept.path) as store:
        from zerver.trace.recording import decode_run

        a, b = (decode_run(read(store, said)) for said in words)
    _two(a, b, kept.hidden, as_json)


def _two(a: Result, b: Result, hidden: Hidden, as_json: bool) -> None:
    from zerver.trace.comparing.diff import diff as compared
    from zerver.trace.comparing.diff import diff_json, format_diff

    found = compared(a, b, hidden)
    click.echo(json.dumps(diff_json(found), indent=2) if as_json else format_diff(found))


def _cohorts(store: TraceStore, route: str, tenant: str | None, most: int, hidden: Hidden, as_json: bool) -> None:
    from zerver.trace.comparing.cohorts import cohorts_json, compare, format_cohorts, split
    from zerver.trace.summary import Filter

    if not route:
        raise click.UsageError(f"give a route or a flow: {_routes(store)}")
    summaries = store.search(Filter(route=route, tenant=tenant), _MOST_SUMMARIES)
    if not summaries:
        raise NothingToCompare(f"no run of {route} is stored; there are runs of: {_routes(store)}")
    chosen = split(route, summaries, most)
    if not chosen.enough:
        raise NothingToCompare(chosen.too_few)
    slow, unread_slow = _runs(store, chosen.slow)
    fast, unread_fast = _runs(store, chosen.fast)
    if not slow or not fast:
        raise NothingToCompare(f"none of these runs can be read: {store.path} is damaged, or of another version")
    found = compare(route, slow, fast, most, hidden)
    click.echo(json.dumps(cohorts_json(found, chosen), indent=2) if as_json else format_cohorts(found, chosen))
    if unread_slow or unread_fast:
        click.echo(f"{unread_slow + unread_fast} runs cannot be read and were left out", err=True)


# ---- runs out of the file -------------------------------------------------------------------


def _runs(store: TraceStore, ids: Sequence[str]) -> tuple[list[Result], int]:
    """Those that can be read, and how many cannot."""
    from zerver.trace.recording import decode_run

    found: list[Result] = []
    for run_id in ids:
        try:
            recording = store.read(run_id)
            if recording is not None:
                found.append(decode_run(recording))
        except TraceError:  # one damaged run among many is no reason to tell nothing
            continue
    return found, len(ids) - len(found)


def _routes(store: TraceStore) -> str:
    counted: dict[str, Any] = dict.fromkeys(summary.route for summary in store.search(None, 500))
    return ", ".join(list(counted)[:_SHOWN]) or "none"
