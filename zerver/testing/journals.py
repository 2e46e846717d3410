"""The proof kit of the journal port: each promise of `zerver/runtime/journal.py`, as a law that can be broken.

Law: a law knows the port and nothing else, and it fails with an AssertionError that names it. Raised, not asserted, so
that it holds under `python -O` too. Precedent: `zerver.testing.check_driver`.

Nothing here sleeps: a lease that is to lapse is given up. Threads and sockets do not stop for a mock clock, so use the
real one. What a law cannot show is the disk: that nothing is acknowledged before its fsync, and that a process which
was killed has lost nothing, is for tests that look at system calls and kill processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import count

import attrs
import trio

from zerver.errors import JournalUnavailable, LeaseLost
from zerver.runtime.groups import bare
from zerver.runtime.journal import UNRESOLVED, Awaited, Entry, Journal, Opening, Page, Parking, RunHead, StoredRun
from zerver.testing.laws import Laws, cut_after, require
from zerver.testing.open_cases import OPEN_CASES
from zerver.testing.parked_runs import PARKED_RUNS

#: Tasks that use the journal at once.
_AT_ONCE = 50

#: After how many turns of the loop calls are cancelled: the first few often, since who is first in one turn is chance.
_STEPS = (*(4 * tuple(range(8))), *range(8, 80, 4))

#: Seconds of a lease that does not lapse by itself while a law runs.
_LONG = 600.0


async def check_journal(
    open_journal: Callable[[], AbstractAsyncContextManager[Journal]], *, patience: float = 60.0
) -> None:
    """Prove that a journal keeps the port's promises; AssertionError names the first law it breaks.

    open_journal: opens the same journal each time, several at once too, as other processes do. It need not be empty,
    and is left with what the laws wrote; give one of the test's own. patience: seconds after which a law is taken to
    hang.
    """
    for name, law in (*_law, *OPEN_CASES, *PARKED_RUNS):
        try:
            with trio.fail_after(patience):
                async with open_journal() as journal:
                    await law(_Case(journal, open_journal))
        except trio.TooSlowError as error:
            raise AssertionError(f"check_journal: {name}: it hangs: not over after {patience} s") from error
        except Exception as error:
            broken = bare(error)
            what = broken if isinstance(broken, AssertionError) else repr(broken)
            raise AssertionError(f"check_journal: {name}: {what}") from broken


_numbers = count(1)


def _name(what: str) -> str:
    """A name that no law has used before in this process."""
    return f"{what}-{next(_numbers)}"


@attrs.frozen
class _Case:
    """A journal, and a few ways to use it."""

    journal: Journal
    open_journal: Callable[[], AbstractAsyncContextManager[Journal]]

    async def owner(self, what: str = "owner") -> str:
        """An owner who lives."""
        name = _name(what)
        await self.journal.renew(name, _LONG)
        return name

    def opening(self, owner: str, lines: Sequence[bytes] = (b"0",), run_id: str = "") -> Opening:
        head = RunHead(run_id or _name("run"), "flow", "1", "acme", "default", 1_700_000_000_000_000_000, owner)
        return Opening(head, "plan-1", b'{"plan": 1}', lines)

    async def begun(self, owner: str, lines: Sequence[bytes] = (b"0",)) -> str:
        """A run that has begun."""
        opening = self.opening(owner, lines)
        await self.journal.write(opening)
        return opening.head.run_id

    async def run(self, run_id: str, journal: Journal | None = None) -> StoredRun:
        found = await (journal or self.journal).read(run_id)
        if found is None:
            raise AssertionError(f"run {run_id} is not there")
        return found

    async def lines(self, run_id: str, journal: Journal | None = None) -> tuple[bytes, ...]:
        return (await self.run(run_id, journal)).lines

    async def clear(self) -> None:
        """See that nothing is left to be claimed."""
        owner = await self.owner("cleaner")
        while runs := await self.journal.claim(owner, 100):
            for run in runs:
                await self.journal.write(Page(run.head.run_id, run.fence, len(run.lines), (), "cancelled"))


_law = Laws[_Case]()


async def _refused(journal: Journal, entry: Entry, what: str) -> None:
    try:
        await journal.write(entry)
    except LeaseLost:
        return
    raise AssertionError(f"{what} was written; LeaseLost was due")


# ---- what is written ------------------------------------------------------------------------


@_law("what was written comes back as it was, and another process sees it at once")
async def _comes_back(case: _Case) -> None:
    owner = await case.owner()
    lines = [b"\x00\xff no text", b"", b"{}" * 50_000, "✓ é".encode()]
    head = RunHead(
        *(_name("run"), "flüw", "2.1", "täntɘ 'x'; --", "batch", 1_700_000_000_000_000_001, owner, "POST /x?y=%00"),
        *("00-abc", 1_700_000_001_000_000_000, "async"),
    )
    await case.journal.write(Opening(head, "plan-2", b"\x00plan", lines[:2]))
    await case.journal.write(Page(head.run_id, 1, 2, lines[2:3]))
    await case.journal.write(Page(head.run_id, 1, 3, lines[3:]))
    due = StoredRun(head, 1, "", "plan-2", b"\x00plan", tuple(lines))
    async with case.open_journal() as other:
        for journal in (case.journal, other):
            found = await case.run(head.run_id, journal)
            require(found == due, f"it came back as {found!r}, {found.lines!r}")
        require(await other.read(_name("run")) is None, "a run that was never written is there")


@_law("pages are in the order of their numbers, however many lines each has")
async def _order(case: _Case) -> None:
    owner = await case.owner()
    due = [b"%d" % number for number in range(60)]
    run_id = await case.begun(owner, due[:3])
    at = 3
    for size in (1, 7, 2, 20, 1, 26):
        await case.journal.write(Page(run_id, 1, at, due[at : at + size]))
        at += size
    require(await case.lines(run_id) == tuple(due), "the lines are in another order")


@_law("an entry that is written again changes nothing; another one in its place is refused")
async def _again(case: _Case) -> None:
    owner = await case.owner()
    opening = case.opening(owner, [b"0", b"1"])
    run_id = opening.head.run_id
    page, last = Page(run_id, 1, 2, [b"2"]), Page(run_id, 1, 3, [b"3"], "done")
    for entry in (opening, opening, page, opening, page, last, last):
        await case.journal.write(entry)
    await _refused(case.journal, Page(run_id, 1, 2, [b"other"]), "another page in the place of one")
    await _refused(case.journal, attrs.evolve(opening, head=attrs.evolve(opening.head, owner=_name("x"))), "a taken id")
    found = await case.run(run_id)
    require(found.lines == (b"0", b"1", b"2", b"3") and found.status == "done", f"it is {found!r}, {found.lines!r}")


@_law("a run that has ended takes no further page")
async def _ended(case: _Case) -> None:
    run_id = await case.begun(await case.owner())
    await case.journal.write(Page(run_id, 1, 1, [b"1"], "failed"))
    for page in (Page(run_id, 1, 2, [b"2"]), Page(run_id, 1, 2, [b"2"], "failed"), Page(run_id, 1, 2, (), "done")):
        await _refused(case.journal, page, f"{page} of a run that had failed")
    found = await case.run(run_id)
    require((found.status, found.lines) == ("failed", (b"0", b"1")), f"it is {found!r}, {found.lines!r}")


@_law(f"{_AT_ONCE} runs at once: each line is there once, in order")
async def _at_once(case: _Case) -> None:
    owner = await case.owner()
    ids: list[str] = []

    async def one() -> None:
        run_id = await case.begun(owner)
        ids.append(run_id)
        for number in range(1, 6):
            await case.journal.write(Page(run_id, 1, number, [b"%d" % number], "done" if number == 5 else ""))

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(one)
    async with case.open_journal() as other:
        for run_id in ids:
            found = await case.run(run_id, other)
            due = tuple(b"%d" % number for number in range(6))
            require((found.lines, found.status) == (due, "done"), f"run {run_id} has {found.lines!r}")


@_law("an entry that is refused takes none of its neighbours with it")
async def _neighbours(case: _Case) -> None:
    owner = await case.owner()
    ids = [await case.begun(owner) for _ in range(20)]
    refused: list[str] = []

    async def one(place: int) -> None:
        try:
            await case.journal.write(Page(ids[place], 1 if place % 3 else 7, 1, [b"1"]))
        except LeaseLost:
            refused.append(ids[place])

    async with trio.open_nursery() as nursery:
        for place in range(len(ids)):
            nursery.start_soon(one, place)
    require(sorted(refused) == sorted(ids[::3]), f"{len(refused)} pages were refused; {len(ids[::3])} were due")
    for place, run_id in enumerate(ids):
        due = (b"0", b"1") if place % 3 else (b"0",)
        require(await case.lines(run_id) == due, f"run {place} has other lines than {due}")


# ---- leases ---------------------------------------------------------------------------------


@_law("an owner renews before its first run")
async def _unknown_owner(case: _Case) -> None:
    opening = case.opening(_name("nobody"))
    await _refused(case.journal, opening, "a run of an owner nobody knows")
    require(await case.journal.read(opening.head.run_id) is None, "it is there all the same")


@_law("a lease that holds is respected, and one that has lapsed is not; the oldest runs come first")
async def _leases(case: _Case) -> None:
    await case.clear()
    one, other = await case.owner("one"), await case.owner("other")
    ids = [await case.begun(one) for _ in range(5)]
    kept = await case.begun(other)
    await case.journal.write(Page(ids[1], 1, 1, [b"1"], "done"))
    require(await case.journal.claim(other, 10) == [], "runs were claimed whose lease holds")
    await case.journal.renew(one, 0.0)
    claimed = [*await case.journal.claim(other, 2), *await case.journal.claim(other, 10)]
    due = [ids[0], *ids[2:]]
    require([run.head.run_id for run in claimed] == due, f"{claimed!r} were claimed; {due} were due")
    for run in claimed:
        require((run.head.owner, run.fence, run.lines) == (other, 2, (b"0",)), f"it was claimed as {run!r}")
    require((await case.run(kept)).fence == 1, "an owner claimed a run that was its own already")
    require(await case.journal.claim(other, 10) == [], "the same runs were claimed twice")


@_law("who has lost a run writes nothing to it any more; who has it does")
async def _fencing(case: _Case) -> None:
    await case.clear()
    zombie, heir = await case.owner("zombie"), await case.owner("heir")
    run_id = await case.begun(zombie)
    await case.journal.renew(zombie, 0.0)
    (run,) = await case.journal.claim(heir, 10)
    await case.journal.renew(zombie, _LONG)  # it was only asleep
    for page in (Page(run_id, 1, 1, [b"zombie"]), Page(run_id, 1, 1, [b"zombie"], "done"), Page(run_id, 1, 1, (), "x")):
        await _refused(case.journal, page, "a page of a former owner")
    await _refused(case.journal, case.opening(zombie, run_id=run_id), "an opening of a run that somebody took over")
    await case.journal.write(Page(run_id, run.fence, 1, [b"heir"], "done"))
    require(await case.lines(run_id) == (b"0", b"heir"), "the zombie has written")


@_law("who asks for its own run anew has it with a new fence, as often as it asks; nobody else has")
async def _retaken(case: _Case) -> None:
    owner, other = await case.owner(), await case.owner("other")
    run_id = await case.begun(owner)
    for fence in (2, 3):
        for nobody in (other, "", "nobody"):
            require(await case.journal.retake(run_id, nobody, fence - 1) is None, f"it was given to {nobody!r}")
        for time in ("first", "second"):
            run = await case.journal.retake(run_id, owner, fence - 1)
            require(run is not None and run.fence == fence, f"the {time} time it was given as {run!r}")
            require(await case.run(run_id) == run, "it is another one than was given")
        await _refused(case.journal, Page(run_id, fence - 1, fence - 1, [b"late"]), "what was sent before")
        await case.journal.write(Page(run_id, fence, fence - 1, [b"%d" % fence]))
    require(await case.lines(run_id) == (b"0", b"2", b"3"), "what it wrote in between is lost")


@_law("who has put a run down has it anew, unless somebody has taken it up")
async def _retaken_parked(case: _Case) -> None:
    owner = await case.owner()
    ids = [await case.begun(owner) for _ in range(2)]
    for run_id in ids:
        await case.journal.write(Page(run_id, 1, 1, [b"1"], parked=Parking((Awaited(1, "go", _LONG),))))
        require(await case.journal.retake(run_id, owner, 2) is None, "it was given for a fence that nobody has had")
    run = await case.journal.retake(ids[0], owner, 1)
    require(run is not None and (run.fence, run.head.owner) == (2, owner), f"it was given as {run!r}")
    await case.journal.signal(ids[1], "go", b"1")
    require(await case.journal.claim_one(ids[1], owner) is not None, "it was not claimed")
    require(await case.journal.retake(ids[1], owner, 1) is None, "it was given anew, and was taken up before")
    for run_id in ids:
        await case.journal.write(Page(run_id, 2, 2, [b"2"], "done", resumes=True))


@_law("a run that has ended, that is nobody's, or that is not there, is not given anew")
async def _not_retaken(case: _Case) -> None:
    owner = await case.owner()
    ended, aside, left = [await case.begun(owner) for _ in range(3)]
    await case.journal.write(Page(ended, 1, 1, [b"1"], "done"))
    await case.journal.set_aside(aside, 1, "why")
    await case.journal.renew(owner, 0.0)
    await case.clear()
    for run_id, fence in ((ended, 1), (aside, 2), (left, 1), (left, 2), (_name("run"), 1)):
        before = await case.journal.read(run_id)
        require(await case.journal.retake(run_id, owner, fence) is None, f"{run_id} was given to who had it")
        require(await case.journal.read(run_id) == before, f"{run_id} was not given, and changed")
    await case.journal.call_resolved(aside, "nothing is left of it", "this law")


@_law("claims at once never give one run twice, and leave none")
async def _claims(case: _Case) -> None:
    await case.clear()
    gone = await case.owner("gone")
    ids = [await case.begun(gone) for _ in range(40)]
    heirs = [await case.owner("heir") for _ in range(6)]
    await case.journal.renew(gone, 0.0)
    taken: list[str] = []

    async def one(journal: Journal, heir: str) -> None:
        while runs := await journal.claim(heir, 3):
            taken.extend(run.head.run_id for run in runs)
            for run in runs:
                require(run.fence == 2, f"a run was claimed with the fence {run.fence}")

    async with case.open_journal() as other, trio.open_nursery() as nursery:
        for place, heir in enumerate(heirs):
            nursery.start_soon(one, (case.journal, other)[place % 2], heir)
    left = [run.head.run_id for run in await case.journal.claim(heirs[0], 100)]
    require(sorted([*taken, *left]) == sorted(ids), f"{len(taken)} claims of {len(ids)} runs, {len(left)} left over")


@_law("a claim and a late page of the former owner: one of them comes first")
async def _late_pages(case: _Case) -> None:
    await case.clear()
    for _ in range(10):
        zombie, heir = await case.owner("zombie"), await case.owner("heir")
        run_id = await case.begun(zombie)
        await case.journal.renew(zombie, 0.0)
        late: list[bool] = []
        claimed: list[StoredRun] = []

        async def write(run_id: str = run_id, late: list[bool] = late) -> None:
            try:
                await case.journal.write(Page(run_id, 1, 1, [b"late"]))
            except LeaseLost:
                late.append(False)
            else:
                late.append(True)

        async with case.open_journal() as other, trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while not claimed:
                claimed += await other.claim(heir, 10)
        due = (b"0", b"late") if late[0] else (b"0",)
        require(claimed[0].lines == due, f"the claim saw {claimed[0].lines!r}, and in the end it is {due!r}")


# ---- behind ---------------------------------------------------------------------------------


@_law("what is written behind comes in order, and before what is written after it")
async def _behind(case: _Case) -> None:
    owner = await case.owner()
    opening = case.opening(owner)
    run_id = opening.head.run_id
    case.journal.write_behind(opening)
    for number in range(1, 20):
        case.journal.write_behind(Page(run_id, 1, number, [b"%d" % number]))
    await case.journal.write(Page(run_id, 1, 20, [b"20"]))
    due = tuple(b"%d" % number for number in range(21))
    require(await case.lines(run_id) == due, "after a write, what was written behind before it is not there")
    case.journal.write_behind(Page(run_id, 1, 21, [b"21"], "done"))
    await case.journal.flush()
    found = await case.run(run_id)
    require((found.lines, found.status) == ((*due, b"21"), "done"), f"after a flush it is {found!r}")


@_law("what is written behind is written by itself, and when the journal is closed")
async def _behind_alone(case: _Case) -> None:
    owner = await case.owner()
    run_id = await case.begun(owner)
    case.journal.write_behind(Page(run_id, 1, 1, [b"1"]))
    while await case.lines(run_id) != (b"0", b"1"):
        await trio.lowlevel.checkpoint()
    async with case.open_journal() as other:
        other.write_behind(Page(run_id, 1, 2, [b"2"]))
    require(await case.lines(run_id) == (b"0", b"1", b"2"), "closing has lost what was to be written behind")


@_law("what is written behind without a lease is dropped and counted, and leaves no hole")
async def _behind_refused(case: _Case) -> None:
    owner = await case.owner()
    run_id = await case.begun(owner)
    before = case.journal.statistics()
    case.journal.write_behind(Page(run_id, 9, 1, [b"1"]))
    await case.journal.flush()
    case.journal.write_behind(Page(run_id, 1, 2, [b"2"]))
    await case.journal.flush()
    after = case.journal.statistics()
    require((after.dropped - before.dropped, after.behind) == (2, 0), f"the statistics say {after!r}")
    require(await case.lines(run_id) == (b"0",), "there is a hole in the run")


# ---- cancellation and closing ---------------------------------------------------------------


@_law("a write that was cancelled has not happened, and one that returned has")
async def _cancelled_writes(case: _Case) -> None:
    owner = await case.owner()
    for steps in _STEPS:
        opening = case.opening(owner)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(case.begun, owner)  # so that there is something to wait for
            await trio.lowlevel.checkpoint()
            ended = await cut_after(partial(case.journal.write, opening), steps)
        there = await case.journal.read(opening.head.run_id) is not None
        require(there == (ended == "done"), f"after {steps} steps: {ended}, and there: {there}")
        if there:
            ended = await cut_after(partial(case.journal.write, Page(opening.head.run_id, 1, 1, [b"1"])), steps)
            await case.begun(owner)
            lines = await case.lines(opening.head.run_id)
            require((len(lines) == 2) == (ended == "done"), f"after {steps} steps: {ended}, and there: {lines!r}")


@_law("a claim that was cancelled loses no run: the next one has it")
async def _cancelled_claims(case: _Case) -> None:
    await case.clear()
    heir = await case.owner("heir")
    for steps in _STEPS:
        gone = await case.owner("gone")
        run_id = await case.begun(gone)
        await case.journal.renew(gone, 0.0)
        claimed: list[StoredRun] = []

        async def claim(claimed: list[StoredRun] = claimed) -> None:
            claimed += await case.journal.claim(heir, 10)

        await cut_after(claim, steps)
        claimed += await case.journal.claim(heir, 10)
        found = [run.head.run_id for run in claimed]
        require(found == [run_id], f"cancelled after {steps} steps, {found} were claimed; {[run_id]} were due")


@_law("a journal that was closed refuses to write, at once")
async def _closed(case: _Case) -> None:
    owner = await case.owner()
    async with case.open_journal() as other:
        pass
    opening = case.opening(owner)
    try:
        await other.write(opening)
    except JournalUnavailable:
        pass
    else:
        raise AssertionError("a closed journal took an entry")
    other.write_behind(opening)
    require(await case.journal.read(opening.head.run_id) is None, "it is there all the same")


# ---- retention and numbers ------------------------------------------------------------------


@_law("what ended long ago is pruned; what is unfinished or unresolved stays")
async def _pruned(case: _Case) -> None:
    owner = await case.owner()
    statuses = ("done", "failed", UNRESOLVED, "")
    ids = {status: await case.begun(owner) for status in statuses}
    for status, run_id in ids.items():
        if status:
            await case.journal.write(Page(run_id, 1, 1, [b"1"], status))
    before = await case.journal.tallies()
    require(all(before[status] >= 1 for status in statuses), f"the tallies are {dict(before)!r}")
    require(await case.journal.prune(0) == 0, "runs were pruned that ended after 1970")
    require(await case.journal.prune(1 << 62, 1) == 1, "of several old runs one was to be pruned, and was not")
    while await case.journal.prune(1 << 62):
        pass
    left = [status for status, run_id in ids.items() if await case.journal.read(run_id) is not None]
    require(left == [UNRESOLVED, ""], f"after pruning there are {left}")
    after = await case.journal.tallies()
    for status in (UNRESOLVED, ""):
        require(after[status] == before[status], f"the tallies went from {dict(before)!r} to {dict(after)!r}")


@_law("statistics count every entry once")
async def _statistics(case: _Case) -> None:
    owner = await case.owner()
    before = case.journal.statistics()
    run_id = await case.begun(owner)
    await _refused(case.journal, Page(run_id, 2, 1, [b"1"]), "a page with another fence")
    case.journal.write_behind(Page(run_id, 1, 1, [b"123"]))
    between = case.journal.statistics()
    require((between.behind, between.behind_bytes) == (1, 3), f"with one page behind they say {between!r}")
    await case.journal.flush()
    after = case.journal.statistics()
    gained = (after.written - before.written, after.written_behind - before.written_behind)
    require(gained == (1, 1) and after.refused - before.refused == 1, f"they went from {before!r} to {after!r}")
    require((after.behind, after.behind_bytes, after.waiting) == (0, 0, 0), f"at rest they say {after!r}")
    require(after.trouble == "" and bool(after.place), f"without trouble they say {after!r}")
