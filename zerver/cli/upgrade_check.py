"""`zerver upgrade-check`: what new code would do with the runs that are stored, before it is deployed.

Law: nothing is performed, claimed or written. What is said of a run of the journal is what a worker with this code
would do with it; runs that have ended stand for those that will be under way at the moment of the deploy. Status 1: a
run would be stuck; 2: the command line makes no sense.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import click

from zerver.cli.journals import journal_option, loose_flows, place_of
from zerver.cli.kept import opened
from zerver.cli.load import load_app

if TYPE_CHECKING:
    from zerver.core.app import App
    from zerver.core.flows import Flow
    from zerver.core.timeline import Timeline
    from zerver.runtime.journal import Glance, Journal, Which
    from zerver.runtime.judging import Prospect
    from zerver.runtime.recovery import Astray
    from zerver.runtime.versions import Versions
    from zerver.trace.hidden import Hidden


@attrs.frozen
class Checked:
    """What would become of one run. source: "journal" or "trace". state: "unfinished", "parked", "stuck" or how it
    ended. departs: where the code does otherwise, as `zerver replay` says it; "" when it does not.
    """

    run: str
    flow: str
    version: str
    source: str
    state: str
    fate: str
    why: str
    departs: str = ""

    def __str__(self) -> str:
        why = f": {self.why.partition(chr(10))[0]}" if self.why and not self.departs else ""
        return f"{self.fate:<12} {self.run}  {self.flow} v{self.version}  {self.state}{why}"


@click.command()
@click.argument("app", metavar="MODULE:APP")
@journal_option
@click.option("--db", metavar="FILE", help="A trace file, whose runs of durable flows are tried too.")
@click.option(
    "--recent", type=click.IntRange(0, 10_000), default=100, show_default=True,
    help="How many runs that have ended are tried as well, the newest ones.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def upgrade_check(
    app: str, journal: str | None, config: str | None, db: str | None, recent: int, as_json: bool
) -> None:
    """Try stored runs against the code of an app, offline: which would go on, which would be undone, and which would be
    stuck, and where the code goes another way than they went.
    """
    place = place_of(journal, config, needed=db is None)
    loaded = load_app(app)
    from zerver.edge import check_app

    check_app(loaded)
    flows = loose_flows(app, loaded)
    checked: list[Checked] = []
    if place.url:
        checked += place.ask(partial(_of_journal, app=loaded, flows=flows, recent=recent, hidden=place.hidden))
    if db is not None:
        checked += _of_traces(db, loaded, flows, recent, place.hidden)
    if as_json:
        click.echo(json.dumps([attrs.asdict(one) for one in checked], indent=2, ensure_ascii=False))
    else:
        _print(checked)
    if any(one.fate == "stuck" for one in checked):
        sys.exit(1)


# ---- the journal ----------------------------------------------------------------------------


async def _of_journal(
    journal: Journal, app: App, flows: tuple[Flow, ...], recent: int, hidden: Hidden
) -> list[Checked]:
    from zerver.runtime.versions import Versions, code_of

    versions, reader = Versions(app, flows), journal.notation.reader(*code_of(app, flows))
    checked: list[Checked] = []
    for glance in [*await _listed(journal, "unfinished"), *await _listed(journal, "ended", recent)]:
        one = await _of_run(journal, glance, versions, reader, hidden)
        if one is not None:
            checked.append(one)
    return checked


async def _listed(journal: Journal, which: Which, most: int | None = None) -> list[Glance]:
    """Many, a page at a time."""
    found: list[Glance] = []
    while most is None or len(found) < most:
        after = found[-1].head.run_id if found else ""
        page = await journal.list_runs(which, min(1000, 1000 if most is None else most - len(found)), after)
        if not page:
            break
        found += page
    return found


async def _of_run(journal: Journal, glance: Glance, versions: Versions, reader: Any, hidden: Hidden) -> Checked | None:
    from zerver.runtime.judging import judge

    stored = await journal.read(glance.head.run_id)
    if stored is None:  # pruned meanwhile
        return None
    judged = judge(stored, versions, reader)
    if judged.fate == "closed":
        return None
    departs = "" if judged.astray is None else _departs(judged.astray, reader.read(stored), hidden)
    parked = stored.wakes_unix_ns is not None
    state = glance.status or ("stuck" if glance.aside else "parked" if parked else "unfinished")
    return _checked(glance.head.run_id, glance.head.flow, glance.head.version, "journal", state, judged, departs)


def _checked(run: str, flow: str, version: str, source: str, state: str, judged: Prospect, departs: str) -> Checked:
    why = judged.why or ("by another version of the flow, which agrees with it" if judged.upgraded else "")
    return Checked(run, flow, version, source, state, judged.fate, why, departs)


def _departs(astray: Astray, recorded: Timeline, hidden: Hidden) -> str:
    """Where, in the words of `zerver replay`, with what is secret masked."""
    from zerver.trace.facts import Facts
    from zerver.trace.replaying.departure import departure_of
    from zerver.trace.veil import Veil

    if astray.divergence is None:
        return ""
    replayed = attrs.evolve(recorded, records=list(astray.records))
    old, new = Veil(Facts(recorded), hidden), Veil(Facts(replayed), hidden)
    return str(departure_of(astray.divergence, recorded, old, replayed, new))


# ---- the trace file -------------------------------------------------------------------------


def _of_traces(db: str, app: App, flows: tuple[Flow, ...], recent: int, hidden: Hidden) -> list[Checked]:
    """Runs of a trace file: values in it may be masked, so that what is masked on both sides is the same."""
    from zerver.runtime.judging import Prospect
    from zerver.runtime.recovery import Astray
    from zerver.runtime.versions import Versions, code_of, head_of
    from zerver.trace.recording import decode_run
    from zerver.trace.recording.vocabulary import Vocabulary
    from zerver.trace.replaying.retracing import retrace

    versions, vocabulary = Versions(app, flows), Vocabulary.of(*code_of(app, flows))
    checked: list[Checked] = []
    with opened(db) as store:
        for summary in store.search(None, recent):
            recording = store.read(summary.run_id)
            if recording is None:
                continue
            result = decode_run(recording, vocabulary=vocabulary)
            try:
                found = versions.find(head_of(result.timeline))
            except Astray:  # of a flow that is not durable, or not of this app
                continue
            departs, judged = "", Prospect("goes on", "", found.upgraded)
            try:
                retrace(found.plan, result.timeline)
            except Astray as astray:
                departs, judged = _departs(astray, result.timeline, hidden), Prospect("stuck", str(astray))
            run = result.timeline
            checked.append(_checked(run.run_id, run.flow, run.version, "trace", result.status, judged, departs))
    return checked


# ---- telling --------------------------------------------------------------------------------


def _print(checked: list[Checked]) -> None:
    for line in _lines(checked):
        click.echo(line)
    count = Counter(one.fate for one in checked)
    told = ", ".join(f"{count[fate]} {said}" for fate, said in _SAID.items() if count[fate])
    runs = f"{len(checked)} run{'' if len(checked) == 1 else 's'}"
    click.echo(f"{runs}: {told}" if checked else "no run of a durable flow is stored")
    if count["stuck"]:
        click.echo(
            "  keep the old version beside the new one, as App(older=[…]), and give the flow a new version=;\n"
            '  or give the flow on_upgrade="compensate"; or let them end before the deploy',
            err=True,
        )


def _lines(checked: list[Checked]) -> Iterator[str]:
    from zerver.trace.veil import escaped

    for one in checked:
        if one.fate == "goes on" and not one.why:
            continue
        yield escaped(str(one))
        yield from (f"  {escaped(line)}" for line in one.departs.splitlines())


_SAID = {"goes on": "would go on", "compensated": "would be compensated", "stuck": "would be stuck"}
