"""`zerver jobs`: what is to be done, what has become of it, and what somebody does about that.

Law: what changes more than the jobs that were named says how many they are, and asks; `--yes` is the answer. What was
done is one line. Nothing of the app is run. Status 1: it was not done; 2: there is no such store, job or queue, or the
command line makes no sense.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import click

from zerver.cli.job_choice import (
    Choice,
    Deed,
    Filters,
    Moment,
    Seconds,
    count_of,
    do,
    named_jobs,
    search,
    with_choice,
    with_filters,
)
from zerver.cli.job_places import NoJobs, Place, with_place
from zerver.core.priorities import PRIORITIES

if TYPE_CHECKING:
    from zerver.jobs.port import Job, JobStore, QueueState, ScheduleState

_BEGIN_AGAIN: Final = Deed("begin again", "will begin again", ("dead", "cancelled", "scheduled"), ("dead",))
_NOT_OVER: Final = ("waiting", "scheduled", "available", "running", "parked")
_CANCEL: Final = Deed("be cancelled", "cancelled", _NOT_OVER, _NOT_OVER)
_OVER: Final = ("done", "dead", "cancelled")
_DELETE: Final = Deed("be deleted", "deleted", _OVER, _OVER)


@click.group()
def jobs() -> None:
    """List an app's jobs, and look after them: those of the app that ZERVER_APP or --app names, or of a store that
    ZERVER_JOBS or --jobs does.
    """


# ---- looking --------------------------------------------------------------------------------


@jobs.command("list")
@click.option("--since", type=Moment(ago=True), metavar="TIME", help="Ordered since then: 15m, 2h, or ISO 8601.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_filters
def list_(place: Place, filters: Filters, since: int | None, limit: int, as_json: bool) -> None:
    """List jobs, the newest first."""
    from zerver.cli.job_texts import job_table, plain_job

    found = place.ask(lambda store: search(store, filters.wanted(), limit + 1, since or 0))
    if as_json:
        _print_json([plain_job(job, place.hidden) for job in found[:limit]])
    elif not found:
        click.echo(f"no such jobs in {place.name}", err=True)
    else:
        _print(job_table(found[:limit], time.time_ns()))
        if len(found) > limit:
            click.echo(f"and more: --limit shows up to 10000 (now {limit})", err=True)


@jobs.command()
@click.argument("job", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_place()
def show(place: Place, job: str, as_json: bool) -> None:
    """Tell all that is known of a job. Also why it has not begun, and which its runs were. ID may be the beginning of
    one, or the id of a run of it.
    """
    from zerver.cli.job_texts import job_lines, plain_job, runs_of

    async def asked(store: JobStore) -> tuple[Job, str]:
        (found,) = await named_jobs(store, place, [job])
        return found, await store.why(found.job_id)

    found, why = place.ask(asked)
    if as_json:
        _print_json(plain_job(found, place.hidden, why=why or None, runs=runs_of(found)))
    else:
        _print(job_lines(found, why, place.hidden))


@jobs.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_place()
def queues(place: Place, as_json: bool) -> None:
    """Count the jobs of each queue. OLDEST: for how long the first one that may begin has been able to."""
    from zerver.cli.job_texts import plain_queue, queue_table

    found = place.ask(_queues)
    if as_json:
        _print_json([plain_queue(queue) for queue in found])
    elif not found:
        click.echo(f"no jobs in {place.name}", err=True)
    else:
        _print(queue_table(found, time.time_ns()))


@jobs.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_place()
def schedules(place: Place, as_json: bool) -> None:
    """Say what is due when, of the flows that are begun by the clock."""
    from zerver.cli.job_texts import Due, due_table, plain_due

    kept = {one.name: one for one in place.ask(_schedules)}
    declared = {} if place.app is None else place.app.crons
    found = []
    for name in sorted({**kept, **declared}):
        if name not in kept:
            rule = declared[name]
            found.append(Due(name, rule.expression, rule.timezone, 0, "no worker has asked after it yet"))
            continue
        expression, _, zone = kept[name].spec.rpartition(" ")
        strange = "" if place.app is None or name in declared else "the app has it no more"
        found.append(Due(name, expression, zone, kept[name].due_unix_ns, strange))
    if as_json:
        _print_json([plain_due(due) for due in found])
    elif not found:
        click.echo(f"no schedules in {place.name}", err=True)
    else:
        _print(due_table(found, time.time_ns()))


# ---- doing ----------------------------------------------------------------------------------


@jobs.command()
@with_choice
def retry(place: Place, choice: Choice) -> None:
    """Let jobs begin again, with all their attempts. These, or, by filters, those that are dead."""
    do(place, choice, _BEGIN_AGAIN, lambda store, wanted: store.retry(wanted))


@jobs.command()
@click.option("--reason", default="cancelled by hand", show_default=True, help="Kept with the job.")
@with_choice
def cancel(place: Place, choice: Choice, reason: str) -> None:
    """End jobs that are not over: these, or those that filters mean. One that runs is cut by its worker, and undone."""
    do(place, choice, _CANCEL, lambda store, wanted: store.cancel(wanted, reason))


@jobs.command()
@with_choice
def delete(place: Place, choice: Choice) -> None:
    """Forget jobs that are over: these, or those that filters mean."""
    do(place, choice, _DELETE, lambda store, wanted: store.delete(wanted))


@jobs.command()
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Though nobody has heard of the queue.")
@with_place()
def pause(place: Place, queue: str, yes: bool) -> None:
    """Begin nothing of a queue any more. It holds for all workers; what runs goes on."""
    known = {one.rule.name for one in place.ask(_queues)}
    known |= frozenset() if place.app is None else place.app.declared.queue_names
    if queue not in known and not yes:
        others = ", ".join(sorted(known)) or "none"
        raise NoJobs(f"there is no queue {queue!r} in {place.name}; there are: {others}; --yes pauses it all the same")
    place.ask(lambda store: store.pause(queue, True))
    click.echo(f"queue {queue} is paused; `zerver jobs resume {queue}` lets it go on")


@jobs.command()
@click.argument("queue")
@with_place()
def resume(place: Place, queue: str) -> None:
    """Let a paused queue go on."""
    paused = [one.rule.name for one in place.ask(_queues) if one.paused]
    if queue not in paused:
        raise NoJobs(f"queue {queue!r} is not paused in {place.name}; those that are: {', '.join(paused) or 'none'}")
    place.ask(lambda store: store.pause(queue, False))
    click.echo(f"queue {queue} goes on")


@jobs.command()
@click.argument("flow")
@click.option("--body", metavar="JSON", help="What the flow is given; - reads it from stdin.")
@click.option("--at", type=Moment(ago=False), metavar="TIME", help="Not before then: ISO 8601, with its zone.")
@click.option("--delay", type=Seconds(), metavar="SECONDS", help="Not before so long from now, as 30 or 15m.")
@click.option("--queue", metavar="NAME", help="[default: as the app declares it]")
@click.option("--tenant", metavar="NAME", default="default", show_default=True)
@click.option("--priority", type=click.Choice(PRIORITIES), help="[default: as the app declares it]")
@click.option("--attempts", type=click.IntRange(1), help="[default: as the app declares it]")
@click.option("--unique", metavar="TEXT", help="Of jobs with this text there is one that is not over.")
@click.option("--key", metavar="TEXT", help="Whoever enqueues twice with the same one has enqueued once.")
@with_place(needs_app=True)
def enqueue(
    place: Place, flow: str, body: str | None, at: int | None, delay: float | None, key: str | None, **options: Any
) -> None:
    """Enqueue a job of a flow, and print its id."""
    from zerver.core.jobs import Ask, Asker, orders_for

    if at is not None and delay is not None:
        raise click.UsageError("--at and --delay are two ways to say one thing: give one of them")
    if place.app is None:
        raise NoJobs("which app? Give --app MODULE:APP")
    asked = Ask(flow, _json(body), delay or 0.0, at or 0, **options)
    asker = Asker(f"outside {key or token_hex(12)}", now_unix_ns=time.time_ns())
    orders = orders_for("each", [asked], place.app.declared, asker)
    (job_id,) = place.ask(lambda store: store.order(orders))
    click.echo(job_id)
    if job_id != orders[0].job_id:
        click.echo("a job that is alike stands there already: this is its id, and none was added", err=True)


@jobs.command()
@click.option("--older", type=Seconds(), metavar="SECONDS", help="As 12h or 30d.  [default: as work.keep]")
@with_place()
def prune(place: Place, older: float | None) -> None:
    """Forget jobs that were over long ago. Done and cancelled ones, as workers do every hour; dead ones stay."""
    before = time.time_ns() - round((place.settings.work.keep if older is None else older) * 1e9)

    async def pruned(store: JobStore) -> int:
        number = latest = await store.prune(before)
        while latest:
            latest = await store.prune(before)
            number += latest
        return number

    click.echo(f"{count_of(place.ask(pruned))} forgotten")


# ---- asking and telling ---------------------------------------------------------------------


async def _queues(store: JobStore) -> list[QueueState]:
    return await store.queues()


async def _schedules(store: JobStore) -> list[ScheduleState]:
    return await store.schedules()


def _json(body: str | None) -> str | None:
    """The text, when it is JSON. Raises UsageError."""
    if body is None:
        return None
    text = sys.stdin.read() if body == "-" else body
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--body is no JSON: {error}") from None
    return text


def _print_json(told: object) -> None:
    click.echo(json.dumps(told, indent=2, ensure_ascii=False))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
