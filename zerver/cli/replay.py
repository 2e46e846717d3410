"""`zerver replay`: a stored run once more, offline, and what it says.

Law: nothing is performed and nothing is opened but the trace file. Status 1: the code departs from the record; 2: the
command line makes no sense. A run with other values is no departure.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from zerver.cli.checkout import check_origin, run_in_checkout, use_checkout
from zerver.cli.config import load_settings
from zerver.cli.kept import Kept, db_option, kept_by, opened, read
from zerver.cli.load import load_app
from zerver.core.flows import Flow
from zerver.core.plan import Plan, compile_plan
from zerver.errors import DefinitionError, InvalidData, TraceError

if TYPE_CHECKING:
    from zerver.runtime import Result
    from zerver.trace.hidden import Hidden
    from zerver.trace.replaying.story import Story


class NoReplay(click.ClickException):
    """A run cannot be replayed so."""

    exit_code = 2


@attrs.frozen(eq=False)
class Code:
    """The code of a run: its flow, compiled as the route has it."""

    flow: Flow
    plan: Plan


@attrs.frozen
class Asked:
    """What the command line asks for. app: "" for nobody's code. test: the file to write."""

    run: str
    app: str
    sets: Sequence[str]
    answers: Sequence[str]
    until: str | None
    test: str | None
    as_json: bool

    def arguments(self) -> list[str]:
        """The same as a command line, from another directory."""
        return [
            *("--app", self.app),
            *(word for value in self.sets for word in ("--set", value)),
            *(word for value in self.answers for word in ("--answer", value)),
            *(("--until", self.until) if self.until is not None else ()),
            *(("--pytest", str(Path(self.test).absolute())) if self.test is not None else ()),
            *(("--json",) if self.as_json else ()),
            *("--", self.run),
        ]


@click.command()
@click.argument("run", metavar="ID")
@click.option(
    "--app", metavar="MODULE:APP",
    help="The app whose run it is. Without it, records are told.  [default: as `zerver config` shows serve.app]",
)  # fmt: skip
@db_option
@click.option(
    "--set", "sets", multiple=True, metavar="NAME=JSON",
    help="What if: another value for a slot, or an input, as header.authorization or body. Repeatable.",
)  # fmt: skip
@click.option(
    "--answer", "answers", multiple=True, metavar="CALL=JSON",
    help="What an effect gives that the records have no answer to, as payment.charge.1=…. Repeatable.",
)  # fmt: skip
@click.option("--until", metavar="STEP", help="Stop after this step, and show the slots.")
@click.option("--code", metavar="PATH", type=click.Path(exists=True, file_okay=False), help="Another checkout.")
@click.option("--pytest", "test", metavar="FILE", help="Write the run as a regression test.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--checkout", hidden=True)
def replay(app: str | None, db: str | None, code: str | None, checkout: str | None, **said: Any) -> None:
    """Re-execute the steps of a stored run, offline: what each read, decided and wrote; why it ended so; and what did
    not happen.

    ID: the beginning of a run's id. What its effects came to, the order in which they did, time, chance and
    cancellations are those of the record.
    """
    settings = load_settings(given={"serve.app": ("--app", app), "trace.db": ("--db", db)}, quiet=True)
    asked, kept = Asked(app=settings.serve.app, **said), kept_by(settings)
    if not asked.app and (asked.sets or asked.answers or code or asked.test):
        raise NoReplay("this runs code, and nobody says which: give --app MODULE:APP, or set ZERVER_APP")
    if code is not None:
        sys.exit(run_in_checkout(code, ["--db", str(Path(kept.path).absolute()), *asked.arguments()]))
    if checkout is not None:
        use_checkout(checkout)
    with _in_words():
        story = _story(asked, kept, checkout)
        _print(story, asked.as_json)
    if not story.faithful and not story.changed:
        sys.exit(1)


def _story(asked: Asked, kept: Kept, checkout: str | None) -> Story:
    from zerver.trace.recording import decode_run
    from zerver.trace.recording.vocabulary import Vocabulary
    from zerver.trace.replaying.story import retell

    changes, answers = _values(asked.sets, "--set"), _values(asked.answers, "--answer")
    with opened(kept.path) as store:
        recording = read(store, asked.run)
    recorded = decode_run(recording)
    if not asked.app:
        return retell(None, recorded, until=asked.until, hidden=kept.hidden)
    found = _code_of(asked.app, recorded, checkout)
    recorded = decode_run(recording, vocabulary=Vocabulary.of(found.plan))
    if asked.test is not None:
        _write_test(asked.test, found, recorded, kept.hidden)
    return retell(
        found.plan,
        recorded,
        changes=changes,
        until=asked.until,
        answers={name: json.loads(value) for name, value in answers.items()},
        version=found.flow.version,
        hidden=kept.hidden,
    )


def _print(story: Story, as_json: bool) -> None:
    from zerver.trace.replaying.telling import format_story

    click.echo(json.dumps(story.to_plain(), indent=2, ensure_ascii=False) if as_json else format_story(story))


def _write_test(path: str, code: Code, recorded: Result, hidden: Hidden) -> None:
    from zerver.cli.regression import regression_test

    written = regression_test(code.plan, recorded, hidden)
    Path(path).write_text(written.text, encoding="utf-8")
    click.echo(f"{path}: {written.said}", err=True)


# ---- what is on the command line ------------------------------------------------------------


def _values(said: Sequence[str], option: str) -> dict[str, bytes]:
    """NAME=JSON, by name. What is no JSON is a text: nobody wants to quote twice for a shell."""
    values: dict[str, bytes] = {}
    for one in said:
        name, equals, text = one.partition("=")
        if not equals or not name:
            raise NoReplay(f"{option} {one}: write {option} NAME=JSON, as {option} cart.id='\"cart_1\"'")
        try:
            json.loads(text)
        except ValueError:
            text = json.dumps(text)
        values[name.strip()] = text.encode()
    return values


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except InvalidData as bad:
        raise NoReplay("; ".join(f"{where} {what}" for where, what in bad.problems)) from None
    except TraceError as error:
        raise NoReplay(str(error)) from None
    except DefinitionError as error:
        raise click.ClickException(f"DefinitionError: {error}") from None


def _code_of(name: str, recorded: Result, checkout: str | None) -> Code:
    """The code of the run. The route that served it is asked first: its before-chain is part of the plan."""
    timeline = recorded.timeline
    app = load_app(name)
    module = name.partition(":")[0]
    if checkout is not None:
        check_origin(module, checkout)
    for route in sorted(app.routes, key=lambda route: route.label != timeline.label):
        if route.flow.name == timeline.flow:
            return Code(route.flow, route.plan())
        if route.flow.degrade is not None and route.flow.degrade.name == timeline.flow:
            plan = route.degrade_plan()
            if plan is not None:
                return Code(route.flow.degrade, plan)
    # A program that runs its flows itself has them in its modules, and no route for them.
    here = os.path.dirname(os.path.abspath(getattr(sys.modules[module], "__file__", None) or ""))
    for other in [sys.modules[module], *list(sys.modules.values())]:
        if not str(getattr(other, "__file__", None) or "").startswith(here):
            continue
        for value in list(vars(other).values()):
            if isinstance(value, Flow) and value.name == timeline.flow:
                return Code(value, compile_plan(value))
    known = ", ".join(sorted(app.flows)) or "none"
    raise NoReplay(f"{name} has no flow {timeline.flow!r}, which run {timeline.run_id} is of; it has: {known}")
