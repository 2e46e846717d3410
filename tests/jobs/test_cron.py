"""Schedules keep to the clock on the wall when it changes, begin once over all workers, and make up for missed times as
they were told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.working import LEASE, SEND, an_app, until
from zerver import App, Done, Flow, step
from zerver.core.jobs import CronRule, Misfire
from zerver.effects import clock
from zerver.errors import DefinitionError
from zerver.jobs import WorkerSettings, open_worker
from zerver.jobs.capability import desk_of
from zerver.jobs.cron import AT_ONCE, GRACE, Schedule, firing, in_words
from zerver.jobs.memory import JobDisk
from zerver.jobs.port import Wanted
from zerver.runtime import open_runtime

BERLIN = ZoneInfo("Europe/Berlin")
SECOND = 1_000_000_000
HOUR = 3600 * SECOND


def ns(*moment: int, zone: ZoneInfo | None = None, fold: int = 0) -> int:
    return round(datetime(*moment, tzinfo=zone or UTC, fold=fold).timestamp()) * SECOND  # type: ignore[arg-type,misc]


def told(at: int, zone: ZoneInfo = BERLIN) -> str:
    return datetime.fromtimestamp(at / SECOND, zone).isoformat()


def times(expression: str, after: int, count: int, zone: str = "Europe/Berlin") -> list[str]:
    schedule, found = Schedule(expression, zone), []
    for _ in range(count):
        after = schedule.after(after)
        found.append(told(after, ZoneInfo(zone)))
    return found


# ---- the clock on the wall ------------------------------------------------------------------


def test_a_time_that_is_left_out_in_spring_is_made_up_for_at_once() -> None:
    assert times("30 2 * * *", ns(2026, 3, 27, 12), 3) == [
        "2026-03-28T02:30:00+01:00",
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_a_time_that_comes_twice_in_autumn_is_taken_once() -> None:
    assert times("30 2 * * *", ns(2026, 10, 24, 12), 2) == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]


def test_every_half_hour_goes_on_through_the_hour_that_comes_twice() -> None:
    assert times("*/30 * * * *", ns(2026, 10, 24, 23, 45), 5) == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:00:00+01:00",
        "2026-10-25T02:30:00+01:00",
        "2026-10-25T03:00:00+01:00",
    ]


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Sao_Paulo"]
EXPRESSIONS = ["0 3 * * *", "30 2 * * *", "*/15 * * * *", "0 * * * *", "0 0 1 * *", "15 1,2,3 * * 0", "59 23 31 12 *"]

#: Days on which some clock changes, and any others.
DAYS = st.one_of(
    st.sampled_from([datetime(2026, 3, 29), datetime(2026, 10, 25), datetime(2026, 3, 8), datetime(2026, 4, 5)]),
    st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1)),
)


@given(
    expression=st.sampled_from(EXPRESSIONS),
    zone=st.sampled_from(ZONES),
    day=DAYS,
    offset=st.integers(-3 * 86_400, 3 * 86_400),
    extra=st.integers(0, SECOND - 1),
)
def test_the_next_time_is_later_and_there_is_none_in_between(
    expression: str, zone: str, day: datetime, offset: int, extra: int
) -> None:
    schedule = Schedule(expression, zone)
    at = round((day.replace(tzinfo=UTC) + timedelta(seconds=offset)).timestamp()) * SECOND + extra
    following = schedule.after(at)
    assert following > at
    between = at + (following - at) // 2
    assert schedule.after(between) == following


@given(zone=st.sampled_from(ZONES), day=DAYS)
def test_what_has_a_fixed_hour_comes_once_a_day(zone: str, day: datetime) -> None:
    schedule = Schedule("30 2 * * *", zone)
    at = ns(day.year, day.month, day.day) - 3 * 24 * HOUR
    days = []
    for _ in range(7):
        at = schedule.after(at)
        days.append(datetime.fromtimestamp(at / SECOND, ZoneInfo(zone)).date())
    assert days == [days[0] + timedelta(days=n) for n in range(7)]


# ---- what was missed ------------------------------------------------------------------------


def rule(misfire: Misfire) -> CronRule:
    return CronRule("nightly", "0 * * * *", SEND, misfire=misfire)


HOURLY = Schedule("0 * * * *")
DUE = ns(2026, 1, 1, 12)


def test_missed_times_are_one_run_none_or_one_for_each() -> None:
    now = DUE + 5 * HOUR + 600 * SECOND
    following = DUE + 6 * HOUR
    assert firing(HOURLY, rule("once"), DUE, now).times == (DUE,)
    assert firing(HOURLY, rule("skip"), DUE, now).times == ()
    assert firing(HOURLY, rule("all"), DUE, now).times == tuple(DUE + n * HOUR for n in range(6))
    for misfire in ("once", "skip", "all"):
        assert firing(HOURLY, rule(misfire), DUE, now).next == following  # type: ignore[arg-type] # one of them


@given(late=st.integers(0, round(GRACE)), misfire=st.sampled_from(["once", "skip", "all"]))
def test_a_little_late_is_not_missed(late: int, misfire: Misfire) -> None:
    assert firing(HOURLY, rule(misfire), DUE, DUE + late * SECOND).times == (DUE,)


def test_what_is_on_time_is_begun_though_others_were_skipped() -> None:
    assert firing(HOURLY, rule("skip"), DUE, DUE + 5 * HOUR + 10 * SECOND).times == (DUE + 5 * HOUR,)


def test_years_of_missed_times_are_made_up_for_in_portions() -> None:
    found = firing(HOURLY, rule("all"), DUE, DUE + 10_000 * HOUR)
    assert len(found.times) == AT_ONCE
    assert found.next == DUE + AT_ONCE * HOUR


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "zone", "says"),
    [
        ("0 3 * * *", "Europe/Bernil", "time zone 'Europe/Bernil' is not known"),
        ("0 3 * * *", "../etc/passwd", "is not known"),
        ("0 25 * * *", "UTC", "is no schedule: bad hour"),
        ("0 0 30 2 *", "UTC", "is no schedule: bad day-of-month"),
    ],
)
async def test_what_cannot_work_is_said_when_the_app_opens(expression: str, zone: str, says: str) -> None:
    app = an_app(JobDisk())
    app.cron(expression, SEND, timezone=zone, name="nightly")
    with pytest.raises(DefinitionError, match=r"cron 'nightly': ") as caught:
        async with open_runtime(app):
            pass
    assert says in caught.value.problem


def test_what_is_no_schedule_at_first_sight_is_said_at_once() -> None:
    app = App()
    with pytest.raises(DefinitionError, match="is no schedule"):
        app.cron("@daily", SEND)
    with pytest.raises(DefinitionError, match="misfire='twice'"):
        app.cron("* * * * *", SEND, misfire="twice")  # type: ignore[arg-type] # what is tested
    app.cron("* * * * *", SEND)
    with pytest.raises(DefinitionError, match="cron 'send' is declared twice"):
        app.cron("0 * * * *", SEND)


# ---- workers --------------------------------------------------------------------------------


async def test_of_all_workers_one_begins_it_each_time(autojump_clock: object) -> None:
    disk = JobDisk()
    app = an_app(disk)
    app.cron("*/10 * * * *", SEND, body={"to": "a"})
    async with trio.open_nursery() as nursery:

        async def work(name: str) -> None:
            settings = WorkerSettings(owner=name, lease=LEASE)
            async with open_runtime(app) as runtime, open_worker(runtime, settings):
                await trio.sleep(3 * 3600 + 30)

        for name in ("one", "two", "three"):
            nursery.start_soon(work, name)
    begun = [row.job for row in disk.rows.values()]
    assert len(begun) in (18, 19)  # as the wall clock stood when it began: it takes three hours and a half minute
    assert {job.state for job in begun} == {"done"}
    assert {job.origin for job in begun} == {"cron send"}


async def test_what_is_still_running_is_not_begun_beside_itself(autojump_clock: object) -> None:
    running, most = [0], [0]

    @step
    async def slow() -> Done:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await clock.sleep(1500)
        running[0] -= 1
        return Done()

    disk = JobDisk()
    app = an_app(disk)
    app.cron("*/10 * * * *", Flow("slow", [slow]))
    async with open_runtime(app) as runtime, open_worker(runtime):
        await trio.sleep(4 * 3600)
    assert most == [1]
    assert 6 <= len(disk.rows) <= 10


async def test_a_time_when_no_worker_was_there_is_made_up_for(autojump_clock: object) -> None:
    disk = JobDisk()
    app = an_app(disk)
    app.cron("0 * * * *", SEND, body={"to": "a"}, misfire="all")
    async with open_runtime(app) as runtime, open_worker(runtime):
        await trio.sleep(1)
    assert not disk.rows
    await trio.sleep(5 * 3600)
    async with open_runtime(app) as runtime, open_worker(runtime):
        await trio.sleep(10)
        found = await desk_of(runtime).store.search(Wanted(flows=("send",)))
        assert len(found) == 5
        for job in found:
            await until(runtime, job.job_id, "done")


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 3 * * *", "At 03:00 every day"),
        ("*/5 * * * *", "Every fifth minute of every hour"),
        ("not a schedule", "not a schedule"),
    ],
)
def test_a_schedule_is_told_in_words(expression: str, words: str) -> None:
    assert in_words(expression) == words
