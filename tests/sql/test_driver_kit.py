"""Proves that check_driver accepts the SQLite driver, and catches drivers that break one promise each."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from zerver.errors import DriverClosed, StatementError
from zerver.sql.driver import Answer, Changed, Driver, DriverStatistics, Rows, Statement
from zerver.sql.sqlite import open_sqlite
from zerver.testing.drivers import LAWS, check_driver

OpenDriver = Callable[[], AbstractAsyncContextManager[Driver]]


async def test_sqlite_in_a_file_keeps_every_law(tmp_path: Path) -> None:
    await check_driver(lambda: open_sqlite(tmp_path / "kit.db", readers=2))


async def test_sqlite_in_memory_keeps_every_law() -> None:
    await check_driver(lambda: open_sqlite(":memory:"), persistent=False)


def test_every_law_has_a_name_of_its_own() -> None:
    names = [name for name, _ in LAWS]
    assert len(set(names)) == len(names) >= 20


# ---- drivers that break one promise each ---------------------------------------------------------


class Honest:
    """A driver that passes everything on; each driver below differs from it in one thing."""

    def __init__(self, inner: Driver, nursery: trio.Nursery) -> None:
        self.inner = inner
        self.nursery = nursery

    async def fetch(self, statement: Statement) -> Rows:
        return await self.inner.fetch(statement)

    async def execute(self, statement: Statement) -> Changed:
        return await self.inner.execute(statement)

    async def execute_returning(self, statement: Statement) -> Rows:
        return await self.inner.execute_returning(statement)

    async def transaction(self, statements: Sequence[Statement]) -> list[Answer]:
        return await self.inner.transaction(statements)

    def statistics(self) -> DriverStatistics:
        return self.inner.statistics()


class BendsBytes(Honest):
    async def fetch(self, statement: Statement) -> Rows:
        answer = await super().fetch(statement)
        bent = [tuple(v.hex() if isinstance(v, bytes) else v for v in row) for row in answer.rows]
        return Rows(answer.columns, bent)


class Torn(Honest):
    """Does a transaction's statements one by one."""

    async def transaction(self, statements: Sequence[Statement]) -> list[Answer]:
        await trio.lowlevel.checkpoint()
        answers: list[Answer] = []
        for statement in statements:
            answers += await self.inner.transaction([statement])
        return answers


class IgnoresExpect(Honest):
    async def execute(self, statement: Statement) -> Changed:
        return await super().execute(attrs.evolve(statement, expect=None))


class AnswersEarly(Honest):
    """Answers an insert when it is queued, and flushes before anything else: only another driver can tell."""

    def __init__(self, inner: Driver, nursery: trio.Nursery) -> None:
        super().__init__(inner, nursery)
        self.queued: list[Statement] = []
        self.lock = trio.Lock()

    async def flush(self) -> None:
        async with self.lock:
            while self.queued:
                await self.inner.execute(self.queued.pop(0))

    async def fetch(self, statement: Statement) -> Rows:
        await self.flush()
        return await super().fetch(statement)

    async def execute(self, statement: Statement) -> Changed:
        if statement.sql.startswith("insert into zerver_check (id, label)"):
            self.queued.append(statement)
            return Changed(1)
        await self.flush()
        return await super().execute(statement)


class ReadsStale(Honest):
    """Keeps what a read answered, as a cache would."""

    kept: Rows | None = None

    async def fetch(self, statement: Statement) -> Rows:
        if statement.sql != "select id from zerver_check order by id":
            return await super().fetch(statement)
        self.kept, kept = await super().fetch(statement), self.kept
        return kept or self.kept


@attrs.define
class Batch:
    statements: list[Statement] = attrs.Factory(list)
    answers: list[Answer] = attrs.Factory(list)
    error: StatementError | None = None
    done: trio.Event = attrs.Factory(trio.Event)


class CommitsBlindly(Honest):
    """Group commit without savepoints: what fails, fails for everybody in the batch."""

    batch: Batch | None = None

    async def execute(self, statement: Statement) -> Changed:
        await trio.lowlevel.checkpoint_if_cancelled()
        leads = self.batch is None
        batch = self.batch = self.batch or Batch()
        batch.statements.append(statement)
        place = len(batch.statements) - 1
        if leads:
            await trio.lowlevel.cancel_shielded_checkpoint()  # whoever is ready joins
            self.batch = None
            if len(batch.statements) == 1:
                return await super().execute(statement)
            try:
                batch.answers = await self.inner.transaction(batch.statements)
            except StatementError as error:
                batch.error = error
            batch.done.set()
        await batch.done.wait()
        if batch.error is not None:
            raise StatementError(str(batch.error), batch.error.code)
        answer = batch.answers[place]
        return answer if isinstance(answer, Changed) else Changed(len(answer.rows))


class LetsCommitThrough(Honest):
    async def fetch(self, statement: Statement) -> Rows:
        if statement.sql == "COMMIT":
            return Rows((), [])
        return await super().fetch(statement)


class CountsNothing(Honest):
    def statistics(self) -> DriverStatistics:
        return DriverStatistics(1, 0, 0, 0, 0, 0, 0, 0)


class SwallowsCancellation(Honest):
    async def fetch(self, statement: Statement) -> Rows:
        try:
            return await super().fetch(statement)
        except trio.Cancelled:
            return Rows((), [])


class DoesItAndSaysCancelled(Honest):
    """Delivers a cancellation after the commit, as a naive shield does."""

    async def execute(self, statement: Statement) -> Changed:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            changed = await super().execute(statement)
        await trio.lowlevel.checkpoint_if_cancelled()
        return changed


class SurvivesItsClosing(Honest):
    async def fetch(self, statement: Statement) -> Rows:
        try:
            return await super().fetch(statement)
        except DriverClosed:
            return Rows((), [])


BROKEN: list[tuple[type[Honest], str]] = [
    (BendsBytes, "values come back"),
    (Torn, "all or nothing"),
    (IgnoresExpect, "an expected number of rows"),
    (AnswersEarly, "another driver sees it"),
    (CommitsBlindly, "its neighbours are unharmed"),
    (ReadsStale, "is seen by every later read"),
    (LetsCommitThrough, "begin, commit and their kin"),
    (CountsNothing, "statistics add up"),
    (SwallowsCancellation, "every verb is a checkpoint"),
    (DoesItAndSaysCancelled, "cancelled at any moment"),
    (SurvivesItsClosing, "a closed driver"),
]


def opening(kind: type[Honest], path: Path) -> OpenDriver:
    @asynccontextmanager
    async def open_driver() -> AsyncGenerator[Driver, None]:
        async with open_sqlite(path, readers=2) as inner, trio.open_nursery() as nursery:
            yield kind(inner, nursery)
            nursery.cancel_scope.cancel()

    return open_driver


async def test_a_driver_that_passes_everything_on_keeps_every_law(tmp_path: Path) -> None:
    await check_driver(opening(Honest, tmp_path / "kit.db"))


@pytest.mark.parametrize(("kind", "law"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_broken_driver_is_caught_by_the_law_it_breaks(kind: type[Honest], law: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=f"check_driver: .*{law}"):
        await check_driver(opening(kind, tmp_path / "kit.db"))


async def test_a_driver_that_leaks_a_file_is_caught(tmp_path: Path) -> None:
    leaked: list[int] = []

    @asynccontextmanager
    async def open_leaky() -> AsyncGenerator[Driver, None]:
        async with open_sqlite(tmp_path / "kit.db", readers=2) as driver:
            leaked.append(os.open(os.devnull, os.O_RDONLY))
            yield driver

    try:
        with pytest.raises(AssertionError, match=r"check_driver: nothing leaks: .*: files: "):
            await check_driver(open_leaky)
    finally:
        for descriptor in leaked:
            os.close(descriptor)


async def test_a_driver_that_hangs_is_caught(autojump_clock: trio.testing.MockClock) -> None:
    class Stuck:
        async def execute(self, statement: Statement) -> Changed:
            await trio.sleep_forever()
            raise AssertionError("unreachable")

        fetch = execute_returning = transaction = execute

        def statistics(self) -> DriverStatistics:
            return DriverStatistics(1, 0, 0, 0, 0, 0, 0, 0)

    @asynccontextmanager
    async def open_stuck() -> AsyncGenerator[Driver, None]:
        yield Stuck()  # type: ignore[misc]  # its other verbs only hang

    with pytest.raises(AssertionError, match="check_driver: values come back as they went in: it hangs"):
        await check_driver(open_stuck)
