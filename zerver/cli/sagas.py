"""`zerver sagas`: runs that somebody must look at, what can be tried again, and what somebody has looked at.

Law: what is listed and shown is read from the journal alone, without the app's code, and nothing secret is printed.
What changes a run says so in one line, and is recorded in the journal. Status 1: it did not come right; 2: there is no
such journal or run.
"""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from zerver.cli.journals import Place, journal_option, loose_flows, place_of
from zerver.cli.load import load_app

if TYPE_CHECKING:
    from zerver.core.calls import Call
    from zerver.runtime import Result
    from zerver.runtime.journal import Glance, Journal, StoredRun
    from zerver.trace.facts import Facts
    from zerver.trace.hidden import Hidden
    from zerver.trace.veil import Veil

_HEADER: Final[tuple[str, ...]] = ("RUN", "FLOW", "TENANT", "SINCE", "STATE", "WHAT")


class NoCase(click.ClickException):
    """There is no such run, or it is none that somebody must look at."""

    exit_code = 2


@attrs.frozen
class Write:
    """A write of which nobody can say that it is right. state: "happened", or "in doubt". why: what went wrong."""

    step: str
    kind: str
    state: str
    key: str
    why: str

    def __str__(self) -> str:
        state = "happened, and was not undone" if self.state == "happened" else "may or may not have happened"
        key = f", key {self.key}" if self.key else ", without a key"
        return f"{self.kind} in {self.step} {state}{key}{f': {self.why}' if self.why else ''}"


@attrs.frozen
class Case:
    """A run of the list. state: "unresolved", or "stuck": no code that was there could carry it on. why: of one that is
    stuck, or whose writes the records do not tell.
    """

    run: str
    flow: str
    version: str
    tenant: str
    label: str
    state: str
    since_unix_ns: int
    why: str
    writes: tuple[Write, ...] = ()

    def lines(self) -> list[str]:
        """What is to be looked at, one line each."""
        return [*([self.why.partition("\n")[0]] if self.why else []), *map(str, self.writes)] or [
            "nothing is known of it"
        ]


@click.group(invoke_without_command=True)
@journal_option
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many at most.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def sagas(ctx: click.Context, journal: str | None, config: str | None, limit: int, as_json: bool) -> None:
    """List the runs that somebody must look at, the oldest first: those that ended with a write in doubt, or one that
    could not be undone; and those that no code could carry on.
    """
    ctx.obj = (journal, config)
    if ctx.invoked_subcommand is not None:
        return
    place = place_of(journal, config)
    found, more = place.ask(partial(_cases, limit=limit, hidden=place.hidden))
    if as_json:
        click.echo(json.dumps([_plain(case) for case in found], indent=2, ensure_ascii=False))
        return
    if not found:
        click.echo("no run is unresolved or stuck", err=True)
        return
    for line in _table(found):
        click.echo(line)
    if more:
        click.echo(f"and more: --limit shows up to 1000 (now {limit})", err=True)


@sagas.command()
@click.argument("run", metavar="ID")
@journal_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def show(above: tuple[str | None, str | None], /, run: str, as_json: bool, **said: str | None) -> None:
    """Tell what happened in the run with this ID, and what is to be looked at."""
    place = _place(above, said)
    stored, reader = place.ask(partial(_read, run=run))
    timeline = reader.read(stored)
    if as_json:
        from zerver.runtime import Result
        from zerver.trace.view import view

        ending = timeline.ending
        if ending is None:
            raise click.ClickException(f"run {run} has not ended: --json tells those that have")
        told = view(Result(timeline, ending), began_unix_ns=stored.head.began_unix_ns, hidden=place.hidden)
        told["case"] = {"status": stored.status or None, "aside": stored.aside or None, "reason": stored.reason or None}
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    from zerver.trace.text import format_timeline
    from zerver.trace.veil import escaped

    click.echo(format_timeline(timeline, hidden=place.hidden))
    click.echo(escaped(f"began {_moment(stored.head.began_unix_ns)} · version {stored.head.version} of its flow"))
    for line in _standing(stored):
        click.echo(escaped(line))


@sagas.command()
@click.argument("run", metavar="ID")
@click.argument("app", metavar="MODULE:APP")
@journal_option
@click.pass_obj
def retry(above: tuple[str | None, str | None], /, run: str, app: str, **said: str | None) -> None:
    """Try a run again: what it left unresolved, by the code of this app; or all of it, if it was stuck."""
    place = _place(above, said)
    loaded = load_app(app)
    from zerver.edge import check_app
    from zerver.runtime import open_runtime

    check_app(loaded)
    flows = loose_flows(app, loaded)

    async def tried(journal: Journal) -> Result:
        await _known(journal, run)
        async with open_runtime(loaded, journal=journal, flows=flows, takeover=False) as runtime:
            return await runtime.retry(run)

    result = place.ask(tried)
    if result.unresolved:
        from zerver.trace.text import format_timeline

        click.echo(format_timeline(result.timeline, hidden=place.hidden))
        click.echo(f"run {run} is unresolved as before", err=True)
        sys.exit(1)
    click.echo(f"run {run} is {result.status}, and nothing of it is unresolved")


@sagas.command()
@click.argument("run", metavar="ID")
@click.option("--reason", required=True, help="What was found, and what was done about it.")
@click.option("--by", metavar="WHO", help="Who says so.  [default: who is logged in]")
@journal_option
@click.pass_obj
def resolve(above: tuple[str | None, str | None], /, run: str, reason: str, by: str | None, **said: str | None) -> None:
    """Say that what a run has left is right by now, because somebody has looked. The journal keeps who, and why."""
    if not reason.strip():
        raise click.UsageError("--reason says nothing")
    who = by or _who()

    async def called(journal: Journal) -> tuple[StoredRun, bool]:
        stored = await _known(journal, run)
        return stored, await journal.call_resolved(run, _printable(reason), _printable(who))

    stored, done = _place(above, said).ask(called)
    if not done:
        raise NoCase(f"run {run} needs nobody: it is {stored.status or 'under way'}")
    click.echo(f"run {run} is resolved, says {who}: {reason}")


@sagas.command()
@click.argument("run", metavar="ID")
@click.option("--reason", required=True, help="Why; it stands in the run's timeline.")
@journal_option
@click.pass_obj
def cancel(above: tuple[str | None, str | None], /, run: str, reason: str, **said: str | None) -> None:
    """Cancel a run that is parked: the next worker that looks undoes what it has done. Whichever came first stands: a
    run whose signal has come, or whose time is over, is not cancelled any more. To say it again is safe: the first
    reason stands.
    """
    if not reason.strip():
        raise click.UsageError("--reason says nothing")
    from zerver.runtime.parking import is_called_off, sealed_reason

    async def cancelled(journal: Journal) -> tuple[StoredRun, bool]:
        sealed = sealed_reason(await _known(journal, run), _printable(reason), journal.notation)
        done = sealed is not None and await journal.cancel(run, sealed)
        return await _known(journal, run), done

    stored, done = _place(above, said).ask(cancelled)
    if not done and not is_called_off(stored):
        raise NoCase(f"run {run} does not wait: {_why_not_parked(stored)}")
    click.echo(f"run {run} {'is' if done else 'was'} cancelled; the next worker that looks undoes it")


# ---- reading --------------------------------------------------------------------------------


def _place(above: tuple[str | None, str | None], said: dict[str, str | None]) -> Place:
    """The options may stand before the subcommand, or behind it."""
    return place_of(said["journal"] or above[0], said["config"] or above[1])


async def _known(journal: Journal, run: str) -> StoredRun:
    stored = await journal.read(run)
    if stored is None:
        raise NoCase(f"no run {run} in {journal.statistics().place}; `zerver sagas` lists those to look at")
    return stored


async def _read(journal: Journal, run: str) -> tuple[StoredRun, Any]:
    return await _known(journal, run), journal.notation.reader()


async def _cases(journal: Journal, limit: int, hidden: Hidden) -> tuple[list[Case], bool]:
    found = await journal.list_runs("open", limit + 1)
    cases = [await _case(journal, glance, hidden) for glance in found[:limit]]
    return [case for case in cases if case is not None], len(found) > limit


async def _case(journal: Journal, glance: Glance, hidden: Hidden) -> Case | None:
    from zerver.errors import JournalError
    from zerver.trace.facts import Facts
    from zerver.trace.veil import Veil

    head, why = glance.head, glance.aside
    writes: tuple[Write, ...] = ()
    stored = await journal.read(head.run_id)
    if stored is None:  # resolved and pruned between the two questions
        return None
    state = "stuck" if glance.aside else "unresolved"
    tenant, label = head.tenant, head.label
    try:
        facts = Facts(journal.notation.reader().read(stored))
        veil = Veil(facts, hidden)
        writes, why = tuple(_writes(facts, veil)), veil.text(why)
        tenant, label = veil.text(tenant), veil.text(label)
    except JournalError as error:
        why = why or str(error)
    if not why and head.durability != "sync":
        why = f"its process died, and it was of durability {head.durability!r}: its last moments are not known"
    return Case(head.run_id, head.flow, head.version, tenant, label, state, glance.since_unix_ns, why, writes)


def _writes(facts: Facts, veil: Veil) -> Iterator[Write]:
    """What the saga called unresolved; of a run that did not come to its end, what was asked for and has no outcome."""
    from zerver.trace import describe
    from zerver.trace.facts import in_rollback

    told: set[Call] = set()
    for write in facts.unresolved:
        call = write.call
        why = [describe.reason(write.error, veil, call.step)] if write.error is not None else []
        why += [veil.text(write.trouble)] if write.trouble and not veil.hides(call.step) else []
        told.add(call)
        yield _write(call, "happened" if write.happened else "in doubt", "; ".join(why))
    if not facts.over:
        for call, known in facts.calls.items():
            wrote = call.effect.kind.access == "write" and known.asked is not None and not in_rollback(call)
            if wrote and known.outcome is None and call not in told:
                yield _write(call, "in doubt", "it was under way")


def _write(call: Call, state: str, why: str) -> Write:
    kind = call.effect.kind
    return Write(call.step, kind.name, state, call.key if kind.takes_key else "", why)


# ---- telling --------------------------------------------------------------------------------


def _table(cases: list[Case]) -> Iterator[str]:
    from zerver.trace.veil import escaped

    rows: list[tuple[str, ...]] = [_HEADER]
    for case in cases:
        first, *others = case.lines()
        rows.append(
            (case.run, f"{case.flow} v{case.version}", case.tenant, _moment(case.since_unix_ns), case.state, first)
        )
        rows += [("", "", "", "", "", line) for line in others]
    cells = [tuple(map(escaped, row)) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADER) - 1)]
    for row in cells:
        yield "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1])).rstrip()


def _plain(case: Case) -> dict[str, Any]:
    fields = attrs.asdict(case)
    return {**fields, "since": _moment(fields.pop("since_unix_ns")), "why": case.why or None}


def _standing(stored: StoredRun) -> Iterator[str]:
    """How the run stands in the journal, and what can be done about it."""
    run = stored.head.run_id
    if stored.reason:
        yield f"RESOLVED by {stored.reason}"
    elif stored.aside:
        yield f"STUCK {stored.aside}"
        yield f"  deploy code that agrees with it, or App(older=[…]); or: zerver sagas resolve {run} --reason …"
    elif stored.status == "unresolved":
        yield f"again: zerver sagas retry {run} MODULE:APP · by hand: zerver sagas resolve {run} --reason …"
    elif not stored.status and stored.cut is not None:
        yield "CANCELLED while it was parked; the next worker that looks undoes it"
    elif not stored.status and not stored.head.owner and stored.wakes_unix_ns:
        yield f"PARKED · no longer: zerver sagas cancel {run} --reason …"
    elif not stored.status:
        yield "UNDER WAY, or waiting for a worker"


def _why_not_parked(stored: StoredRun) -> str:
    if stored.status:
        return f"it is {stored.status}"
    if stored.aside:
        return "it is stuck"
    if stored.wakes_unix_ns is not None and not stored.head.owner:
        return "its signal has come, or its time is over"
    return "it is under way"


def _moment(unix_ns: int) -> str:
    try:
        return datetime.fromtimestamp(unix_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "?"


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # nobody has this number here, as in a container
        return "somebody"


def _printable(text: str) -> str:
    """As any database takes it."""
    return text.replace("\0", "").encode("utf-8", "replace").decode().strip()
