"""The world of durable runs: one database and one provider that outlive every process, and the faults between them.

Law: what has happened has happened in the database or at the provider, at one instant, and is noted there; what a
process believes is its own affair. Every chance is drawn from the seed, in the order in which the program asks for it,
so that the same seed is the same world. The journal on top of it is the real one (`zerver.journal.sql`): its
statements run in a SQLite database in memory; only the disk and the wire are simulated.

    a call may be     slow | refused (it has not happened) | cut (it has happened, and its caller hears that the line
                      broke) | dropped (it has not, and its caller hears the same)
    a process may be  killed, between any two steps of its tasks or beside any call | held for longer than its lease,
                      or only its renewals, and then let go | told to end in good order
    and the database may be away for a while, for all or for one; the wall clock may be set; the machine restarted

Precedent for the list: the fault injection of Temporal's persistence layer (there "Timeout", "ExecuteAndTimeout",
"Unavailable"), and Jepsen's nemeses.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from random import Random
from typing import Any, Final

import attrs
import trio

from zerver import IdempotencyKey
from zerver.errors import ConnectFailed, ConnectionLost, DatabaseDown, Rejected
from zerver.journal.schema import SCRIPTS, first_script, script
from zerver.runtime import Runtime
from zerver.sql.dialects import CLOCKS, SQLITE, Dialect
from zerver.sql.driver import Answer, Changed, Driver, DriverStatistics, Rows, Statement, check_answer
from zerver.sql.sqlite_statements import explained, sendable

SOLD_OUT: Final = 13  # a charge of so much is refused, always


class Killed(BaseException):
    """This process is no more: whatever of it still runs reaches nobody."""


@attrs.frozen
class Faults:
    """How bad it is. calls: the part of calls, to database or provider, that go wrong. kill_beside: the part of them
    beside which their process is killed. every_page: kill it after each page that says something new instead. kills:
    at most so many between two steps, so many steps apart on average. holds, outages, steps_of_time: how many of each.
    seconds: until when all that may happen.
    """

    calls: float = 0.0
    kill_beside: float = 0.0
    every_page: bool = False
    kills: int = 0
    apart: int = 1_000
    holds: int = 0
    outages: int = 0
    steps_of_time: int = 0
    seconds: float = 20.0


class Process:
    """One worker. gate: what all it does to the world passes, in both directions."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.runtime: Runtime | None = None
        self.scope = trio.CancelScope()
        self.told_to_end = trio.Event()
        self.held: trio.Event | None = None
        self.held_renewals: trio.Event | None = None

    async def gate(self, renews: bool = False) -> None:
        """Wait while it is held. Raises Killed."""
        while self.alive:
            event = self.held_renewals if renews and self.held is None else self.held
            if event is None:
                return
            await event.wait()
        raise Killed

    def kill(self, where: str) -> None:
        """From this moment on nothing of it reaches anybody."""
        if self.alive:
            self.alive = False
            self.world.note("killed", self.name, where)
            self.let_go()
            self.scope.cancel()

    def let_go(self) -> None:
        for event in (self.held, self.held_renewals):
            if event is not None:
                event.set()
        self.held = self.held_renewals = None


@attrs.frozen
class PageNoted:
    """A page that is on the disk. at: its place in the world's notes."""

    at: int
    run_id: str
    first: int
    lines: tuple[bytes, ...]
    by: str
    owner: str


class World:
    """All that outlives a process, and all that happens to it."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.chance = Random(seed)
        self.faults = faults
        self.notes: list[tuple[Any, ...]] = []
        self.processes: list[Process] = []
        self.restarts = 0  # of the machine
        self.set_back = 0  # seconds by which the wall clock is wrong
        self.furthest = 0  # by which it was ahead at most
        self.calm = False  # no faults any more
        self.over = False  # no new processes any more
        self.away: set[str] = set()  # to whom the database is away; "" is everybody
        self.provider_down = False
        self.database = Database(self)
        self.provider = Provider(self)

    def note(self, *what: Any) -> int:
        self.notes.append((round(trio.current_time(), 6), *what))
        return len(self.notes) - 1

    def wall_ns(self) -> int:
        return 1_800_000_000 * 10**9 + round((trio.current_time() + self.set_back) * 1e9)

    def happens(self, part: float) -> bool:
        return not self.calm and part > 0 and self.chance.random() < part

    def living(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    def beside(self, process: Process, where: str) -> None:
        """A moment beside a call: this may be the process's last. Raises Killed."""
        if self.happens(self.faults.kill_beside):
            process.kill(where)
        if not process.alive:
            raise Killed

    async def travel(self, process: Process, wrong: bool = True) -> str:
        """A message is on its way; what will go wrong with it."""
        fault = self.chance.choice(_FAULTS) if wrong and self.happens(self.faults.calls) else ""
        await trio.sleep(self.chance.uniform(0.3, 3.0) if fault == "slow" else self.chance.choice(_LATENCIES))
        return fault


_FAULTS: Final = ("slow", "slow reply", "refused", "cut", "cut", "dropped")
_LATENCIES: Final = (0.0, 0.0, 0.001, 0.002, 0.005)


# ---- the database ---------------------------------------------------------------------------


@cache
def _empty() -> bytes:
    """A journal without runs."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(first_script(SQLITE))
    for version in sorted(SCRIPTS)[1:]:
        connection.executescript(script(SQLITE, version))
    connection.execute("update zerver_journal set version = ?", (max(SCRIPTS),))
    connection.commit()
    return connection.serialize()


#: What is noted when a transaction is committed, whatever statement did it.
_TRIGGERS: Final = """
create temp trigger begun after insert on zerver_runs begin
    select noted('run', new.run_id, new.fence, new.owner, null); end;
create temp trigger taken after update of fence on zerver_runs when new.fence <> old.fence begin
    select noted('taken', new.run_id, new.fence, new.owner, null); end;
create temp trigger over after update of status on zerver_runs when new.status <> old.status begin
    select noted('over', new.run_id, new.fence, new.owner, new.status); end;
create temp trigger gone after delete on zerver_runs begin
    select noted('gone', old.run_id, old.fence, old.owner, null); end;
create temp trigger page after insert on zerver_pages begin
    select noted('page', run_id, new.first, owner, new.body) from zerver_runs where seq = new.run; end;
"""


_NEWS: Final = frozenset({"asked", "committed", "doubted", "settled", "late", "cut", "ending", "undone", "ended"})


class Database:
    """SQLite in memory. pages: that are there, in the order in which they were committed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pages: list[PageNoted] = []
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for name, clock in CLOCKS.items():
            self.connection.create_function(name, 0, clock)
        self.connection.deserialize(_empty())
        self.connection.execute("pragma foreign_keys = on")
        self.connection.create_function("noted", 5, self._noted)
        self.connection.executescript(_TRIGGERS)
        self._open: list[tuple[Any, ...]] = []
        self._said: set[tuple[Any, ...]] = set()

    def dialect(self) -> Dialect:
        """As a process sees it that is started now."""
        return attrs.evolve(SQLITE, now=lambda: str(round(trio.current_time() * 1e9)), boot=str(self.world.restarts))

    def perform(self, process: Process, statements: Sequence[Statement], wants: type[Answer] | None) -> list[Answer]:
        """All of them or none, at this instant."""
        self._open.clear()
        execute = self.connection.execute
        execute("begin")
        try:
            answers = [self._answer(statement, wants) for statement in statements]
        except BaseException as error:
            execute("rollback")
            self.world.note("refused", process.name, f"{error}")
            raise
        execute("commit")
        for what, run_id, number, owner, more in self._open:
            if what == "page":
                lines = tuple(more.split(b"\n"))
                at = self.world.note("page", process.name, run_id, number, len(lines))
                self.pages.append(PageNoted(at, run_id, number, lines, process.name, owner))
            else:
                self.world.note(what, process.name, run_id, number, owner, more)
        return answers

    def _answer(self, statement: Statement, wants: type[Answer] | None) -> Answer:
        given = sendable(statement)
        try:
            cursor = self.connection.execute(given.sql, given.params)
            answer: Answer
            if cursor.description is None:
                answer = Changed(cursor.rowcount)
            else:
                answer = Rows(tuple(column[0] for column in cursor.description), cursor.fetchall())
        except sqlite3.Error as error:
            raise explained(error, statement) from error
        check_answer(statement, answer, wants)
        return answer

    def _noted(self, *what: Any) -> None:
        self._open.append(what)

    def fresh(self, since: int) -> bool:
        """Whether a page noted since then says what no page before has said, but for who carries the run on."""
        before = len(self._said)
        for page in self.pages[-8:]:
            if page.at >= since:
                for line in page.lines:
                    kind, _, subject, *_ = json.loads(line[9:])["r"]
                    if kind in _NEWS:
                        self._said.add((page.run_id, kind, subject))
        return len(self._said) > before

    def unfinished(self) -> int:
        (count,) = self.connection.execute("select count(*) from zerver_runs where status = ''").fetchone()
        return int(count)


class Line(Driver):
    """One process's connection to the database."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def fetch(self, statement: Statement) -> Rows:
        (answer,) = await self._call([statement], Rows)
        return answer  # type: ignore[return-value]  # check_answer has looked

    async def execute(self, statement: Statement) -> Changed:
        (answer,) = await self._call([statement], Changed)
        return answer  # type: ignore[return-value]  # check_answer has looked

    async def execute_returning(self, statement: Statement) -> Rows:
        (answer,) = await self._call([statement], Rows)
        return answer  # type: ignore[return-value]  # check_answer has looked

    async def transaction(self, statements: Sequence[Statement]) -> list[Answer]:
        return await self._call(statements, None)

    def statistics(self) -> DriverStatistics:
        return DriverStatistics(1, 0, 0, 0, 0, 0, 0, 0)

    async def _call(self, statements: Sequence[Statement], wants: type[Answer] | None) -> list[Answer]:
        process, world = self.process, self.process.world
        renews = any("zerver_owners (" in statement.sql for statement in statements)
        await process.gate(renews)
        world.beside(process, "before a transaction")
        try:
            fault = await world.travel(process)
        except trio.Cancelled:  # a living caller takes back what has not arrived; a dead one takes back nothing
            if not process.alive and world.happens(0.5):
                world.database.perform(process, statements, wants)
            raise
        away = bool({"", process.name} & world.away)
        if fault or away:
            world.note("fault", process.name, "away" if away else fault, statements[-1].sql[:30])
        if fault == "refused" or away:
            raise DatabaseDown("the database is away")
        if fault == "dropped":
            raise ConnectionLost("the line broke")
        since = len(world.notes)
        answers = world.database.perform(process, statements, wants)
        if world.faults.every_page and not world.calm and world.database.fresh(since):
            process.kill("after a page")
        world.beside(process, "after a transaction")
        if fault == "cut":
            raise ConnectionLost("the line broke")
        try:
            await world.travel(process, wrong=False)
            if fault == "slow reply":
                await trio.sleep(world.chance.uniform(0.3, 3.0))
            await process.gate(renews)
        except trio.Cancelled:  # it has happened, and that must not be denied: see the law of `zerver.sql.driver`
            if not process.alive:
                raise Killed from None
            raise ConnectionLost("given up before the answer came") from None
        return answers


# ---- the provider ---------------------------------------------------------------------------


@attrs.define
class Charge:
    """What a key has come to. late: its message was on the way while somebody asked for the key, and was told that
    nothing is known of it. No program can do anything about that one: see `money`.
    """

    order: int
    label: str
    made: str
    late: bool = False
    refunded: bool = False


@attrs.frozen
class Called:
    """A write that has reached the provider. at: its place in the world's notes."""

    at: int
    verb: str
    key: str
    by: str


class Provider:
    """Charges once for each key, and counts what it is asked for. charges: by key. voided: keys that must not come."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.charges: dict[str, Charge] = {}
        self.voided: set[str] = set()
        self.notices: Counter[str] = Counter()
        self.called: list[Called] = []
        self._denied: dict[str, int] = {}  # when somebody was told last that nothing is known of a key
        self._sent = 0  # when the message that has just arrived was sent

    def handlers(self, process: Process) -> dict[str, Callable[..., Any]]:
        """What the effects of the workload come to for this process."""

        async def charge(order: int, label: str, cents: int, *, key: IdempotencyKey) -> str:
            return str(await self._call(process, "charge", key, lambda: self._charge(order, label, cents, key)))

        async def refund(made: str, *, key: IdempotencyKey) -> None:
            await self._call(process, "refund", key, lambda: self._refund(made))

        async def void(charged: str, *, key: IdempotencyKey) -> None:
            await self._call(process, "void", key, lambda: self._void(charged))

        async def find(key: str) -> str | None:
            return await self._call(process, "", key, lambda: self._find(key))

        async def notice(text: str) -> None:
            await self._call(process, "notice", text, lambda: self.notices.update([text]))

        async def stock(order: int) -> int:
            return int(await self._call(process, "", "", lambda: order % 5))

        return {"shop.charge": charge, "shop.refund": refund, "shop.void": void, "shop.find": find,
                "shop.notice": notice, "shop.stock": stock}  # fmt: skip

    async def _call(self, process: Process, verb: str, key: str, act: Callable[[], Any]) -> Any:
        world = self.world
        await process.gate()
        world.beside(process, f"before {verb or 'a read'}")
        sent = len(world.notes)
        try:
            fault = await world.travel(process)
        except trio.Cancelled:  # cut on the way: it may have arrived all the same
            if verb and world.happens(0.5):
                self._sent = sent
                with suppress(Rejected):
                    self._act(process, verb, key, act)
            raise
        if fault:
            world.note("fault", process.name, fault, verb, key)
        if fault == "refused" or (world.provider_down and not world.calm):
            raise ConnectFailed("nobody listens")
        if fault == "dropped":
            raise OSError("the line broke")
        self._sent = sent
        answer = self._act(process, verb, key, act)
        world.beside(process, f"after {verb or 'a read'}")
        if fault == "cut":
            raise OSError("the line broke")
        await world.travel(process, wrong=False)
        if fault == "slow reply":
            await trio.sleep(world.chance.uniform(0.3, 3.0))
        await process.gate()
        return answer

    def _act(self, process: Process, verb: str, key: str, act: Callable[[], Any]) -> Any:
        at = self.world.note("called", process.name, verb, key)
        if verb:
            self.called.append(Called(at, verb, key, process.name))
        return act()

    def _charge(self, order: int, label: str, cents: int, key: str) -> str:
        if cents == SOLD_OUT or key in self.voided:
            raise Rejected("sold out")
        known = self.charges.get(key)
        if known is None:
            late = self._denied.get(key, -1) > self._sent
            known = self.charges[key] = Charge(order, label, f"ch_{len(self.charges)}", late)
        return known.made

    def _refund(self, made: str) -> None:
        for charge in self.charges.values():
            if charge.made == made:
                charge.refunded = True

    def _void(self, key: str) -> None:
        self.voided.add(key)
        if key in self.charges:
            self.charges[key].refunded = True

    def _find(self, key: str) -> str | None:
        charge = self.charges.get(key)
        if charge is None:
            self._denied[key] = len(self.world.notes)
        return None if charge is None else charge.made
