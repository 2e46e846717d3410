"""Kept: the trace file that `zerver trace`, `replay` and `diff` read, and which of its runs is meant.

Law: the file is the one that a server with the same settings writes, and what these hide is hidden here too: also what
was kept before they said so. Nothing is written. Status 2: there is no such file or run, with what to do about it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from zerver.cli.config import load_settings
from zerver.core.settings import Settings
from zerver.errors import TraceError

if TYPE_CHECKING:
    from zerver.trace.hidden import Hidden
    from zerver.trace.keeping.store import TraceStore
    from zerver.trace.recording import Recording
    from zerver.trace.summary import Summary

F = TypeVar("F", bound=Callable[..., Any])

#: Of those that an id may mean.
SHOWN = 10


class NothingThere(click.ClickException):
    """There is no such file, or no such run in it."""

    exit_code = 2


@attrs.frozen
class Kept:
    """Where runs are kept. hidden: names that are masked, beside what the code calls secret."""

    path: str
    hidden: Hidden


def db_option(command: F) -> F:
    """`--db FILE`; without it, what a server would write to."""
    return click.option("--db", metavar="FILE", help="The trace file.  [default: as `zerver config` shows trace.db]")(
        command
    )


def kept_in(db: str | None) -> Kept:
    """What the command line, the environment and zerver.toml say together. Raises WrongSettings."""
    return kept_by(load_settings(given={"trace.db": ("--db", db)}, quiet=True))


def kept_by(settings: Settings) -> Kept:
    """What these settings say."""
    from zerver.trace.hidden import Hidden

    return Kept(settings.trace.db, Hidden(settings.trace.hide))


@contextmanager
def opened(path: str) -> Iterator[TraceStore]:
    """The trace file. Raises NothingThere."""
    from zerver.trace.keeping.store import open_store

    try:
        if not path:
            raise TraceError("trace.db is empty, and so nothing is kept: give a file by --db or ZERVER_TRACE_DB")
        with open_store(path) as store:
            yield store
    except TraceError as error:
        cure = ""
        if path and not os.path.exists(path):
            cure = "\n  a server keeps its runs there by itself; give another file by --db or ZERVER_TRACE_DB"
        raise NothingThere(f"{error}{cure}") from None


def meant(store: TraceStore, said: str) -> Summary | None:
    """The run that is meant, None for none of these. Raises NothingThere when it may be several."""
    matching: Sequence[Summary] = store.matching(said, SHOWN)
    if len(matching) < 2:
        return matching[0] if matching else None
    from zerver.trace.veil import escaped

    listed = "".join(f"\n  {escaped(f'{one.run_id}  {one.route}  {one.status}')}" for one in matching)
    more = " at least" if len(matching) == SHOWN else ""
    raise NothingThere(f"{said!r} may be any of these{more}: give more of the id{listed}")


def read(store: TraceStore, said: str) -> Recording:
    """The recording of the run that is meant. Raises NothingThere."""
    summary = meant(store, said)
    if summary is None:
        raise NothingThere(f"no run in {store.path} begins with {said!r}; `zerver trace` lists them")
    return recording_of(store, summary)


def recording_of(store: TraceStore, summary: Summary) -> Recording:
    """The recording behind a summary. Raises NothingThere."""
    recording = store.read(summary.run_id)
    if recording is None:  # pruned, between the two questions
        raise NothingThere(f"run {summary.run_id} is no longer in {store.path}")
    return recording
