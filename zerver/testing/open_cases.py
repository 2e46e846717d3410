"""Laws of the journal port about runs that somebody must look at: unresolved ones, and those that were set aside.

Law: as `zerver.testing.journals`, whose kit these are a part of.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from zerver.errors import LeaseLost
from zerver.runtime.journal import RESOLVED, UNRESOLVED, Journal, Page, StoredRun, Which
from zerver.testing.laws import Laws, require


class Case(Protocol):
    """A journal, and a few ways to use it."""

    @property
    def journal(self) -> Journal: ...

    @property
    def open_journal(self) -> Callable[[], AbstractAsyncContextManager[Journal]]: ...

    async def owner(self, what: str = "owner") -> str:
        """An owner who lives."""
        ...

    async def begun(self, owner: str) -> str:
        """A run that has begun."""
        ...

    async def run(self, run_id: str, journal: Journal | None = None) -> StoredRun: ...

    async def clear(self) -> None:
        """See that nothing is left to be claimed."""
        ...


OPEN_CASES = Laws[Case]()


async def _listed(journal: Journal, which: Which) -> list[str]:
    """The ids of all that are listed, asked for a few at a time."""
    ids: list[str] = []
    while found := await journal.list_runs(which, 3, ids[-1] if ids else ""):
        ids += [one.head.run_id for one in found]
    return ids


async def _unresolved(case: Case) -> str:
    """A run that has ended unresolved."""
    run_id = await case.begun(await case.owner())
    await case.journal.write(Page(run_id, 1, 1, [b"1"], UNRESOLVED))
    return run_id


async def _set_aside(case: Case, why: str = "no way on") -> str:
    """A run that was set aside."""
    run_id = await case.begun(await case.owner())
    await case.journal.set_aside(run_id, 1, why)
    return run_id


@OPEN_CASES("a run that was set aside is nobody's, is claimed by nobody, and takes no page of who had it")
async def _aside(case: Case) -> None:
    await case.clear()
    run_id = await _set_aside(case, "it goes 'another' way; ünd so on\nsecond line")
    await case.journal.set_aside(run_id, 1, "it goes 'another' way; ünd so on\nsecond line")  # its answer was lost
    async with case.open_journal() as other:
        found = await case.run(run_id, other)
        require(found.aside.startswith("it goes 'another' way; ünd"), f"it was set aside, and is {found!r}")
        require((found.head.owner, found.status, found.lines) == ("", "", (b"0",)), f"it is {found!r}")
        require(await other.claim(await case.owner("heir"), 10) == [], "it was claimed")
    for page in (Page(run_id, 1, 1, [b"late"]), Page(run_id, 1, 1, [b"late"], "done"), Page(run_id, 1, 1, (), "done")):
        try:
            await case.journal.write(page)
        except LeaseLost:
            continue
        raise AssertionError("who has set a run aside wrote to it")


@OPEN_CASES("only who has a run sets it aside, and only while it goes on")
async def _others_run(case: Case) -> None:
    ended = await case.begun(await case.owner())
    await case.journal.write(Page(ended, 1, 1, (), "done"))
    other = await case.begun(await case.owner())
    for run_id, fence in ((ended, 1), (other, 2), (other, 0), ("nobody's", 1)):
        try:
            await case.journal.set_aside(run_id, fence, "why")
        except LeaseLost:
            continue
        raise AssertionError(f"run {run_id!r} was set aside with the fence {fence}")
    require((await case.run(other)).aside == "", "it was set aside all the same")


@OPEN_CASES("a run that is unresolved or set aside is given to one who tries it again, and to nobody else")
async def _reopened(case: Case) -> None:
    await case.clear()
    for made in (_unresolved, _set_aside):
        run_id = await made(case)
        before = await case.run(run_id)
        heirs = [await case.owner("heir") for _ in range(4)]
        given: list[StoredRun] = []

        async def reopen(journal: Journal, heir: str, run_id: str = run_id, given: list[StoredRun] = given) -> None:
            run = await journal.reopen(run_id, heir)
            if run is not None:
                require(run.head.owner == heir, f"a run of {heir!r} came as {run!r}")
                given.append(run)

        async with case.open_journal() as other, trio.open_nursery() as nursery:
            for place, heir in enumerate(heirs):
                nursery.start_soon(reopen, (case.journal, other)[place % 2], heir)
        require(len(given) == 1, f"it was given to {len(given)}")
        (run,) = given
        require((run.status, run.aside, run.lines) == ("", "", before.lines), f"it was reopened as {run!r}")
        require(run.fence > before.fence, f"its fence was {before.fence} and is {run.fence}")
        require(run_id not in await _listed(case.journal, "open"), "it is listed as one to look at all the same")
        await case.journal.write(Page(run_id, run.fence, len(run.lines), [b"again"], "failed"))
        require((await case.run(run_id)).status == "failed", "it could not be ended")
    for run_id in ("nobody's", await case.begun(await case.owner())):
        require(await case.journal.reopen(run_id, heirs[0]) is None, f"run {run_id!r} was reopened")


@OPEN_CASES("a run that was reopened is claimed when who tried it again lives no more")
async def _reopened_and_left(case: Case) -> None:
    await case.clear()
    run_id, retrier = await _unresolved(case), await case.owner("retrier")
    require(await case.journal.reopen(run_id, retrier) is not None, "it was not reopened")
    await case.journal.renew(retrier, 0.0)
    claimed = [run.head.run_id for run in await case.journal.claim(await case.owner("heir"), 10)]
    require(claimed == [run_id], f"{claimed} were claimed; {[run_id]} were due")


@OPEN_CASES("what is called resolved says who has said so and why; nothing else can be called so")
async def _resolved(case: Case) -> None:
    for made in (_unresolved, _set_aside):
        run_id = await made(case)
        require(await case.journal.call_resolved(run_id, "refunded by hand: é", "ann"), "it could not be resolved")
        async with case.open_journal() as other:
            found = await case.run(run_id, other)
        require((found.status, found.aside) == (RESOLVED, ""), f"it is {found!r}")
        require("ann" in found.reason and "refunded by hand: é" in found.reason, f"it says {found.reason!r}")
        require(not await case.journal.call_resolved(run_id, "again", "bob"), "it was resolved twice")
        require(await case.journal.reopen(run_id, await case.owner()) is None, "it was reopened")
        while await case.journal.prune(1 << 62):
            pass
        require(await case.journal.read(run_id) is None, "one that was resolved is never pruned")
    for run_id in ("nobody's", await case.begun(await case.owner())):
        require(not await case.journal.call_resolved(run_id, "why", "ann"), f"run {run_id!r} was resolved")


@OPEN_CASES("runs are listed by what they are, in order, and a list goes on where the last one ended")
async def _lists(case: Case) -> None:
    unresolved = [await _unresolved(case) for _ in range(3)]
    aside = [await _set_aside(case, f"why {number}") for number in range(3)]
    under_way = [await case.begun(await case.owner()) for _ in range(3)]
    async with case.open_journal() as other:
        found = {which: await _listed(other, which) for which in ("open", "unfinished", "ended")}
        about = {one.head.run_id: one for one in await other.list_runs("open")}
    due = {"open": [*unresolved, *aside], "unfinished": [*aside, *under_way], "ended": unresolved[::-1]}
    ours = {*unresolved, *aside, *under_way}
    for which, ids in due.items():
        listed = [run_id for run_id in found[which] if run_id in ours]
        require(listed == ids, f"{which}: {listed} were listed; {ids} were due")
    one, other_one = about[unresolved[0]], about[aside[0]]
    require((one.status, one.aside) == (UNRESOLVED, ""), f"it was listed as {one!r}")
    require(one.ended_unix_ns is not None and one.head.tenant == "acme", f"it was listed as {one!r}")
    require((other_one.status, other_one.aside) == ("", "why 0"), f"it was listed as {other_one!r}")
    require(other_one.since_unix_ns == other_one.head.began_unix_ns, f"it was listed as {other_one!r}")


@OPEN_CASES("what somebody must look at is never pruned")
async def _kept(case: Case) -> None:
    ids = [await _unresolved(case), await _set_aside(case)]
    while await case.journal.prune(1 << 62):
        pass
    for run_id in ids:
        require(await case.journal.read(run_id) is not None, f"run {run_id} was pruned")
