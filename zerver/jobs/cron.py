"""Schedules: when a flow is begun by the clock. The one place that knows cronsim.

Law: a schedule is read as Debian's cron reads it, in its own time zone: when the clocks go forward, what falls into the
hour that is missing is begun right after it; when they go back, what has a fixed hour is begun once, and what runs
every so many minutes goes on. Of all workers one begins it: the store moves the schedule on and takes the order in one
step, for whoever comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import attrs
import trio
from cronsim import CronSim, CronSimError

from zerver.core.app import App
from zerver.core.jobs import Ask, Asker, CronRule, Declared, Order, job_id_for, orders_for
from zerver.errors import DefinitionError, JournalUnavailable
from zerver.jobs.port import JobStore

#: Seconds for which a time is not missed yet: workers are started anew in less, and a clock is not always right.
GRACE: Final = 60.0

#: Runs that are ordered at once for times that were missed, with misfire="all".
AT_ONCE: Final = 100

#: Seconds after which a worker that waits looks at the wall clock again: somebody may have set it.
_LOOKS: Final = 30.0

_SECOND: Final = 1_000_000_000


class Schedule:
    """The times of an expression in a time zone, as wall time in nanoseconds."""

    def __init__(self, expression: str, timezone: str = "UTC") -> None:
        """Raises DefinitionError for what is no schedule, or no time zone that is known here."""
        try:
            self._zone = ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise DefinitionError(
                f"time zone {timezone!r} is not known here", 'name it as "Europe/Berlin", or install the package tzdata'
            ) from None
        try:
            CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise DefinitionError(
                f"{expression!r} is no schedule: {str(error).lower()}",
                'write five fields: minute, hour, day of month, month, day of week, as "0 3 * * *"',
            ) from None
        self._expression = expression

    def after(self, unix_ns: int) -> int:
        """The first time after this one. Raises DefinitionError when there is none, as on the 30th of February."""
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=unix_ns // _SECOND)
        times = CronSim(self._expression, moment.astimezone(self._zone))
        try:
            found = round(next(times).timestamp()) * _SECOND
            while found <= unix_ns:  # of an hour that there is twice, cronsim takes the first for either
                found = round(next(times).timestamp()) * _SECOND
        except StopIteration:
            raise DefinitionError(f"{self._expression!r} never comes", "name a day that there is") from None
        return found


def in_words(expression: str) -> str:
    """As "At 03:00 every day"; the expression itself when it cannot be read."""
    try:
        return str(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)).explain())
    except CronSimError:
        return expression


@attrs.frozen
class Firing:
    """What is to be done for a schedule that is due. times: at which a run of it is begun now; next: when it is due
    again.
    """

    times: tuple[int, ...]
    next: int


def firing(schedule: Schedule, rule: CronRule, due: int, now: int) -> Firing:
    """What a schedule that was due at `due` comes to at `now`, both wall time in nanoseconds."""
    if rule.misfire == "all":
        times = [due]
        while len(times) < AT_ONCE and (later := schedule.after(times[-1])) <= now:
            times.append(later)
        return Firing(tuple(times), schedule.after(times[-1]))
    following = schedule.after(now)
    if rule.misfire == "once":
        return Firing((due,), following)
    in_time = due if now - due <= GRACE * _SECOND else schedule.after(now - round(GRACE * _SECOND))
    return Firing((in_time,) if in_time <= now else (), following)


def cron_orders(declared: Declared, rule: CronRule, times: Sequence[int]) -> list[Order]:
    """A job for each of these times. Its id is made of the schedule and the time: there is one, whoever orders it.

    While one of them is not over, the next one is not begun, but for misfire="all".
    """
    alike = "" if rule.misfire == "all" else job_id_for(f"cron {rule.name}")
    made = []
    for at in times:
        asker = Asker(f"cron {rule.name} {at}")
        (order,) = orders_for("each", [Ask(rule.flow.name, rule.body)], declared, asker)
        made.append(attrs.evolve(order, unique=alike, unique_seconds=0.0, origin=f"cron {rule.name}"))
    return made


def schedules_of(app: App) -> dict[str, Schedule]:
    """The app's schedules, by name. Raises DefinitionError, naming the one that cannot work."""
    schedules = {}
    for rule in app.crons.values():
        try:
            schedules[rule.name] = Schedule(rule.expression, rule.timezone)
            schedules[rule.name].after(0)
        except DefinitionError as error:
            raise DefinitionError(f"cron {rule.name!r}: {error.problem}", error.cure) from None
    return schedules


async def follow_schedule(
    store: JobStore, declared: Declared, rule: CronRule, schedule: Schedule, now: Callable[[], int]
) -> None:
    """Begin a flow whenever its schedule says so, until this is cancelled. now: wall time in nanoseconds."""
    spec = f"{rule.expression} {rule.timezone}"
    while True:
        try:
            due = await store.due(rule.name, spec, schedule.after(now()))
            left = (due - now()) / _SECOND
            if left > 0:
                await trio.sleep(min(left, _LOOKS))
                continue
            found = firing(schedule, rule, due, now())
            await store.fire(rule.name, due, found.next, cron_orders(declared, rule, found.times))
        except JournalUnavailable as error:
            await trio.sleep(max(1.0, error.retry_after))
