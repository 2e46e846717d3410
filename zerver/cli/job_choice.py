"""Which jobs are meant: by their ids, or by filters; and whether whoever means many has said that it is so.

Law: an id may be the beginning of one, or the id of a run. What is done to jobs that nobody named is counted first, and
asked; `--yes` is the answer. A time is said with its zone, or as how long ago it was.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from zerver.cli.job_places import NoJobs, Place, with_place
from zerver.core import units

if TYPE_CHECKING:
    from zerver.jobs.port import Job, JobState, JobStore, Wanted

#: Jobs that one question to the store answers with.
_PAGE: Final = 500

#: Of jobs that a filter means, so many are counted before somebody is asked.
_COUNTED: Final = 20_000

#: Jobs that an id may be the beginning of, as many as are told.
_ALIKE: Final = 10

_STATES: Final = ("waiting", "scheduled", "available", "running", "parked", "done", "dead", "cancelled")


# ---- how it is said -------------------------------------------------------------------------


class Moment(click.ParamType[int]):
    """A moment as ISO 8601 with its zone, or how long ago it was: wall time in nanoseconds."""

    name = "time"

    def __init__(self, *, ago: bool) -> None:
        self._ago = ago

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return self._read(value)
        except (ValueError, OverflowError):
            also = ", or how long ago it was, as 15m or 2h" if self._ago else ""
            self.fail(f"{value!r} is no time: write it with its zone, as 2026-11-21T03:00:00Z{also}", param, ctx)

    def _read(self, said: str) -> int:
        if self._ago:
            with suppress(ValueError):
                return time.time_ns() - round(float(units.SECONDS.read(said)) * 1e9)
        moment = datetime.fromisoformat(said)
        if moment.tzinfo is None:
            raise ValueError
        return round(moment.timestamp() * 1e6) * 1000


class Seconds(click.ParamType[float]):
    """A time as settings have it, as 30 or 15m: seconds."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(units.SECONDS.read(value))
        except ValueError:
            self.fail(f"{value!r}: give {units.SECONDS.wanted}", param, ctx)


@attrs.frozen
class Filters:
    """Which jobs are meant; several of one mean any of these, and none means all."""

    states: tuple[JobState, ...] = ()
    queues: tuple[str, ...] = ()
    flows: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    text: str = ""

    @property
    def any(self) -> bool:
        return self != Filters()

    def wanted(self) -> Wanted:
        """For the store."""
        from zerver.jobs.port import Wanted

        return Wanted(self.states, self.queues, self.flows, self.tenants, text=self.text)


@attrs.frozen
class Choice:
    """What the command line of a deed says. yes: nobody is asked."""

    ids: tuple[str, ...]
    filters: Filters
    everything: bool
    yes: bool


@attrs.frozen
class Deed:
    """What can be done with jobs. able: states that it can be done in. usual: those that are meant where none is said.
    would, done: how it is told.
    """

    would: str
    done: str
    able: tuple[JobState, ...]
    usual: tuple[JobState, ...]


def with_filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the place, and the filters, that are said."""

    @with_place()
    @wraps(command)
    def filtered(
        place: Place,
        *,
        states: tuple[JobState, ...],
        queues: tuple[str, ...],
        flows: tuple[str, ...],
        tenants: tuple[str, ...],
        text: str,
        **said: Any,
    ) -> None:
        command(place, Filters(states, queues, flows, tenants, text), **said)

    for option in (
        click.option("--text", metavar="TEXT", default="", help="Whose error contains this."),
        click.option("--tenant", "tenants", metavar="NAME", multiple=True, help="Of this tenant."),
        click.option("--flow", "flows", metavar="NAME", multiple=True, help="Of this flow."),
        click.option("--queue", "queues", metavar="NAME", multiple=True, help="In this queue."),
        click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="In this state."),
    ):
        filtered = option(filtered)
    return filtered


def with_choice(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the place, and the choice, that are said."""

    @with_filters
    @wraps(command)
    def chosen(
        place: Place, filters: Filters, *, ids: tuple[str, ...], everything: bool, yes: bool, **said: Any
    ) -> None:
        command(place, Choice(ids, filters, everything, yes), **said)

    for option in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--all", "everything", is_flag=True, help="All of them, without a filter."),
        click.argument("ids", metavar="[ID]…", nargs=-1),
    ):
        chosen = option(chosen)
    return chosen


# ---- what it means --------------------------------------------------------------------------


def do(place: Place, choice: Choice, deed: Deed, verb: Callable[[JobStore, Wanted], Awaitable[int]]) -> None:
    """Do it to the jobs that are meant, after a question if nobody has named them; and say what was done.

    Raises NoJobs, UsageError; Abort for a no; ClickException when it could not be done to all that were named.
    """
    wanted = _wanted(place, choice, deed)
    number = place.ask(lambda store: verb(store, wanted))
    click.echo(f"{count_of(number)} {deed.done}")
    if number < len(wanted.ids):
        left = f"{len(wanted.ids) - number} of {count_of(len(wanted.ids))}"
        raise click.ClickException(
            f"{left} cannot {deed.would}: only those can that are {', '.join(deed.able)}; `zerver jobs show` tells more"
        )


def _wanted(place: Place, choice: Choice, deed: Deed) -> Wanted:
    from zerver.jobs.port import Wanted

    filters = choice.filters
    if choice.ids:
        if choice.everything or filters.any:
            raise click.UsageError("give ids, or filters, not both")
        named = place.ask(lambda store: named_jobs(store, place, choice.ids))
        return Wanted(ids=tuple(dict.fromkeys(job.job_id for job in named)))
    if not choice.everything and not filters.any:
        raise click.UsageError("which jobs? Give their ids, or a filter as --flow or --queue, or --all")
    for state in filters.states:
        if state not in deed.able:
            raise click.UsageError(
                f"jobs that are {state} cannot {deed.would}; those can that are {', '.join(deed.able)}"
            )
    wanted = attrs.evolve(filters, states=filters.states or deed.usual).wanted()
    if not choice.yes:
        _ask_somebody(place, wanted, deed)
    return wanted


def _ask_somebody(place: Place, wanted: Wanted, deed: Deed) -> None:
    found = Counter(job.state for job in place.ask(lambda store: search(store, wanted, _COUNTED)))
    number = sum(found.values())
    if not number:
        raise NoJobs(f"no such jobs in {place.name}: none that is {' or '.join(wanted.states)}")
    more = " and more" if number >= _COUNTED else ""
    told = ", ".join(f"{count} {state}" for state, count in found.most_common())
    click.confirm(f"{count_of(number)}{more} would {deed.would}: {told}. Go on?", abort=True, err=True)


async def named_jobs(store: JobStore, place: Place, said: Sequence[str]) -> list[Job]:
    """The jobs of these ids, beginnings of ids, or ids of runs. Raises NoJobs for one that means none, or several."""
    from zerver.core.jobs import job_of_run
    from zerver.jobs.port import Wanted
    from zerver.trace.veil import escaped

    found = []
    for one in said:
        prefix = job_of_run(one) or one
        exact = await store.find(prefix)
        alike = [exact] if exact is not None else await store.search(Wanted(prefix=prefix), _ALIKE)
        if not alike:
            raise NoJobs(f"no job in {place.name} begins with {one!r}; `zerver jobs list` lists them")
        if len(alike) > 1:
            listed = "".join(f"\n  {escaped(f'{job.job_id}  {job.flow}  {job.state}')}" for job in alike)
            raise NoJobs(f"{one!r} may be any of these: give more of the id{listed}")
        found += alike
    return found


async def search(store: JobStore, wanted: Wanted, most: int, since: int = 0) -> list[Job]:
    """Jobs that were ordered since then, `most` of them, the newest first. since: wall time in nanoseconds."""
    found: list[Job] = []
    before: int | None = None
    while len(found) < most:
        page = await store.search(wanted, min(_PAGE, most - len(found)), before)
        young = [job for job in page if job.ordered_unix_ns >= since]
        found += young
        if not page or len(young) < len(page):
            break
        before = page[-1].seq
    return found


def count_of(number: int) -> str:
    """As "1 job"."""
    return f"{number} job{'s' * (number != 1)}"
