"""The clerk: keeps a runtime's books. One lease for all its runs, what nobody waits for, and what is still owed.

Law: whoever says that a worker lives is the worker itself: its own loop renews the lease, and a process that stands
still loses its runs. The clerk decides nothing about a run; what it cannot write now it writes when the journal is
back, and what it may not write any more it forgets.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from zerver.core.flows import Flow
from zerver.core.plan import Plan
from zerver.errors import DefinitionError, InternalError, JournalError, JournalUnavailable, NotKeepable
from zerver.runtime.book import PATIENCE, Book, Draft
from zerver.runtime.crash import crash_point
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.interpreter import Interpreter
from zerver.runtime.journal import Journal
from zerver.runtime.live import Run
from zerver.runtime.sheets import Sheets

#: Seconds that the records of "async" runs may gather before they are handed to the journal. A run is handed over when
#: it has been there for once or twice as long: most are over by then, and cost nothing. PostgreSQL, for one, may lose
#: 0.6 s of what it commits asynchronously.
GATHERS: Final = 0.1

#: How many times per lease it is renewed: a renewal may fail twice, and the runs are still this worker's.
RENEWALS: Final = 4


class Clerk:
    """The books of one runtime. owner: the lease's. lease: seconds. clock: the runtime's, nanoseconds."""

    def __init__(self, journal: Journal, owner: str, lease: float, clock: Callable[[], int]) -> None:
        self.journal = journal
        self.owner = owner
        self.lease = lease
        self._said = -float("inf")  # when this worker has said that it lives, and the journal has heard it
        self.clock = clock
        self.refused = 0  # "async" runs with a value that could not be read again, and which are not in the journal
        # The wall clock is looked at once: what is done to it while this process lives moves no deadline of a run.
        self._unix = time.time_ns() - clock()
        self._young: dict[Draft, None] = {}  # were not there when last was handed over
        self._drafts: dict[Draft, None] = {}
        self._owed: dict[Sheets, None] = {}
        self.left: dict[Sheets, None] = {}  # of runs that have stopped where they were, and are to be undone
        self._called = trio.Event()
        self._known: list[Book] = []  # of runs that have heard of a write
        self._heard = trio.Event()

    def to_unix(self, at: int) -> int:
        """Wall time (ns) of a time on the runtime's clock."""
        return at + self._unix

    def bring(self, book: Book) -> None:
        """What came of a write is known: have it brought to the disk, unless its run goes there at once."""
        self._known.append(book)
        self._heard.set()

    def write_behind(self, draft: Draft) -> None:
        """Write soon what the run has done, until it has ended."""
        self._young[draft] = None
        self._called.set()

    def forget(self, draft: Draft) -> None:
        """It has ended before it was written, and there is nothing in it that anybody would ask for."""
        self._young.pop(draft, None)
        self._drafts.pop(draft, None)

    def owe(self, sheets: Sheets) -> None:
        """The run has ended, and the journal could not be told: tell it when it is back."""
        self._owed[sheets] = None

    def leave(self, sheets: Sheets) -> None:
        """The run has stopped where it was: have it undone when the journal is back."""
        self.left[sheets] = None

    @property
    def holds(self) -> bool:
        """Whether the lease lasts for as long again as it has; renewed in time, it always does."""
        return trio.current_time() < self._said + self.lease / 2

    async def renew(self) -> None:
        """Say that this worker lives. Raises JournalUnavailable."""
        crash_point("renew.before")
        said = trio.current_time()
        await self.journal.renew(self.owner, self.lease)
        self._said = said  # and not when it was answered: the lease counts from some moment between the two
        crash_point("renew.after")

    async def keep_lease(self) -> None:
        """Say so again and again; and when the journal answers, tell it what is owed to it."""
        while True:
            await trio.sleep(self.lease / RENEWALS)
            with trio.move_on_after(self.lease / RENEWALS):
                try:
                    await self.renew()
                    await self._pay()
                except JournalUnavailable:
                    continue

    async def bring_what_is_known(self, nursery: trio.Nursery) -> None:
        """Bring to the disk what came of writes whose runs wait for something else by now. A run that goes straight on,
        to its next write or its end, has handed it over before this task comes to look.
        """
        while True:
            await self._heard.wait()
            known, self._known, self._heard = self._known, [], trio.Event()
            for book in known:
                if book.sheets.lies_about:
                    nursery.start_soon(book.bring)

    async def keep_drafts(self) -> None:
        """Hand over what has gathered."""
        while True:
            await self._called.wait()
            await trio.sleep(GATHERS)
            self._hand_over()
            self._grow_up()
            if not self._drafts:
                self._called = trio.Event()

    async def close(self) -> None:
        """Hand over the rest, and give up the lease: what is unfinished is for others."""
        self._grow_up()
        self._hand_over()
        try:
            await self.journal.flush()
            await self._pay()
            await self.journal.renew(self.owner, 0.0)
        except JournalUnavailable:
            return  # it finds out by itself that nobody renews

    async def _pay(self) -> None:
        while self._owed:
            sheets = next(iter(self._owed))
            try:
                await sheets.deliver(sheets.status)
            except JournalUnavailable:
                raise
            except JournalError:  # the run is another's by now
                pass
            self._owed.pop(sheets, None)  # while the runtime is closed, two of us may be at it

    def _grow_up(self) -> None:
        self._drafts.update(self._young)
        self._young.clear()

    def _hand_over(self) -> None:
        for draft in list(self._drafts):
            if draft.sheets is None:
                draft.sheets = Sheets(self, draft.run, draft.plan)
            sheets = draft.sheets
            status = sheets.status
            try:
                while (entry := sheets.next(status)) is not None:
                    self.journal.write_behind(entry)
            except NotKeepable:
                self.refused += 1
                del self._drafts[draft]
                continue
            if status:
                del self._drafts[draft]


@asynccontextmanager
async def open_clerk(journal: Journal, owner: str, lease: float, clock: Callable[[], int]) -> AsyncIterator[Clerk]:
    """A clerk at work. Raises JournalUnavailable."""
    clerk = Clerk(journal, owner, lease, clock)
    await clerk.renew()
    async with open_body_nursery() as nursery:
        nursery.start_soon(clerk.keep_lease)
        nursery.start_soon(clerk.keep_drafts)
        nursery.start_soon(clerk.bring_what_is_known, nursery)
        try:
            yield clerk
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
                await clerk.close()


def open_book(clerk: Clerk | None, run: Run, plan: Plan, interpreter: Interpreter) -> Book | Draft:
    """The book of a durable run that begins. `check_durable` has been there before."""
    if clerk is None:
        raise InternalError(f"flow {run.flow.name!r} is durable, and was begun without a journal")
    if run.flow.durability == "sync":
        return Book(clerk, Sheets(clerk, run, plan), interpreter)
    return Draft(clerk, run, plan, interpreter)


def check_durable(flow: Flow, plan: Plan, journal: Journal | None) -> None:
    """Raise DefinitionError when there is no journal that could keep the flow's runs."""
    if flow.durability == "off":
        return
    where = f"flow {flow.name!r} has durability={flow.durability!r}"
    if journal is None:
        raise DefinitionError(
            f"{where}, but there is no journal",
            "give the runtime one: `open_runtime(app, journal=…)`, `zerver serve --journal sqlite:///shop.journal`",
        )
    if plan.secret and not journal.notation.keeps_secrets:
        raise DefinitionError(
            f"{where} and the secret slot {min(plan.secret)!r}, and the journal would keep it in the clear",
            "open the journal with a cipher, or with keep_secrets=True",
        )
