"""Laws of the journal port about parked runs: put down, given their signals, taken up.

Law: as `zerver.testing.journals`, whose kit these are a part of.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from zerver.errors import LeaseLost
from zerver.runtime.journal import Awaited, Journal, Page, Parking, StoredRun
from zerver.testing.laws import Laws, cut_after, require
from zerver.testing.open_cases import Case

PARKED_RUNS = Laws[Case]()

#: Seconds that no law takes.
_LONG = 3600.0

#: After how many turns of the loop calls are cancelled.
_STEPS = (*(3 * tuple(range(8))), *range(8, 60, 8))


def _page(run: StoredRun | None, run_id: str, *awaits: Awaited) -> Page:
    """A page that puts a run down: one that has begun, or this one, which was claimed."""
    if run is None:
        return Page(run_id, 1, 1, [b"parked"], parked=Parking(awaits))
    return Page(run_id, run.fence, len(run.lines), [b"again"], parked=Parking(awaits))


async def _parked(case: Case, *awaits: Awaited) -> str:
    """A run that is put down."""
    run_id = await case.begun(await case.owner())
    await case.journal.write(_page(None, run_id, *awaits))
    return run_id


async def _claimed(journal: Journal, owner: str) -> Sequence[StoredRun]:
    return [run for run in await journal.claim(owner, 1000) if run.head.owner == owner]


async def _has(case: Case, run_id: str, signals: dict[str, bytes | None]) -> None:
    found = {one.signal: one.value for one in (await case.run(run_id)).signals}
    require(found == signals, f"its signals are {found!r}; {signals!r} were due")


@PARKED_RUNS("a run that is put down is nobody's, and stays so while nothing comes")
async def _put_down(case: Case) -> None:
    await case.clear()
    heir = await case.owner("heir")
    run_id = await _parked(case, Awaited(1, "go", _LONG), Awaited(2, "stop", 2 * _LONG))
    require(not await _claimed(case.journal, heir), "it was claimed, and nothing had come")
    require(await case.journal.claim_one(run_id, heir) is None, "it was claimed alone, and nothing had come")
    found = await case.run(run_id)
    require((found.head.owner, found.status, found.lines) == ("", "", (b"0", b"parked")), f"it is {found!r}")
    require(bool(found.wakes_unix_ns), f"it wakes at {found.wakes_unix_ns}")
    require([(one.number, one.signal) for one in found.signals] == [(1, "go"), (2, "stop")], f"{found.signals!r}")
    require(found.wakes_unix_ns == found.signals[0].expires_unix_ns, "it does not wake when the first one expires")
    between = found.signals[1].expires_unix_ns - found.signals[0].expires_unix_ns
    require(abs(between - _LONG * 1e9) < 1e9, f"they expire {between} ns apart")


@PARKED_RUNS("a page that puts a run down may be written again, and undoes nothing that has come since")
async def _put_down_again(case: Case) -> None:
    run_id = await case.begun(await case.owner())
    page = _page(None, run_id, Awaited(1, "go", _LONG))
    await case.journal.write(page)
    before = await case.run(run_id)
    await case.journal.write(page)
    require(await case.run(run_id) == before, "the second time has changed it")
    require(await case.journal.signal(run_id, "go", b"1"), "the signal was not taken")
    await case.journal.write(page)
    require((await case.run(run_id)).wakes_unix_ns == 0, "the signal had come, and is forgotten")


@PARKED_RUNS("who has lost a run does not put it down")
async def _put_down_late(case: Case) -> None:
    await case.clear()
    zombie, heir = await case.owner("zombie"), await case.owner("heir")
    run_id = await case.begun(zombie)
    await case.journal.renew(zombie, 0.0)
    (run,) = await _claimed(case.journal, heir)
    try:
        await case.journal.write(_page(None, run_id, Awaited(1, "go", _LONG)))
    except LeaseLost:
        pass
    else:
        raise AssertionError("a former owner has put it down")
    found = await case.run(run_id)
    require((found.head.owner, found.wakes_unix_ns, found.signals) == (heir, None, ()), f"it is {found!r}")
    await case.journal.write(Page(run_id, run.fence, 1, (), "cancelled"))


@PARKED_RUNS("a signal is taken once, and then the run is to be taken up, by one owner")
async def _signalled(case: Case) -> None:
    await case.clear()
    run_id = await _parked(case, Awaited(1, "go", _LONG))
    require(not await case.journal.signal(run_id, "other", b"1"), "a signal was taken that it does not wait for")
    require(not await case.journal.signal(run_id, "go", b"1", 2), "a signal was taken for a pause that there is not")
    require(not await case.journal.signal("nobody", "go", b"1"), "a signal was taken for a run that there is not")
    taken: list[bytes] = []

    async def give(journal: Journal, value: bytes, number: int | None) -> None:
        if await journal.signal(run_id, "go", value, number):
            taken.append(value)

    heirs = [await case.owner("heir") for _ in range(4)]
    found: list[StoredRun] = []

    async def claim(journal: Journal, heir: str) -> None:
        one = await journal.claim_one(run_id, heir)
        found.extend([one] if one is not None else await _claimed(journal, heir))

    async with case.open_journal() as other:
        async with trio.open_nursery() as nursery:
            for place in range(8):
                journal = (case.journal, other)[place % 2]
                nursery.start_soon(give, journal, b"\x00%d" % place, (None, 1)[place % 3 == 0])
        require(len(taken) == 1, f"it was taken {len(taken)} times")
        require(await other.due() == 0.0, "nothing is due, and the signal has come")
        async with trio.open_nursery() as nursery:
            for place, heir in enumerate(heirs):
                nursery.start_soon(claim, (case.journal, other)[place % 2], heir)
    require(len(found) == 1, f"it was given to {len(found)} owners")
    require((found[0].fence, found[0].lines) == (2, (b"0", b"parked")), f"it was claimed as {found[0]!r}")
    require(found[0].signals[0].value == taken[0], f"it has the signals {found[0].signals!r}")
    require(not await case.journal.signal(run_id, "go", b"late"), "it was taken a second time")


@PARKED_RUNS("a pause that has expired is taken away with the claim, and its signal comes too late")
async def _expired(case: Case) -> None:
    await case.clear()
    heir = await case.owner("heir")
    run_id = await _parked(case, Awaited(1, "go", -1.0), Awaited(2, "stop", _LONG))
    require(await case.journal.due() == 0.0, "nothing is due, and it has expired")
    require(not await case.journal.signal(run_id, "go", b"1"), "a signal was taken after its time")
    (run,) = await _claimed(case.journal, heir)
    require(run.wakes_unix_ns is not None, "a run that was claimed is not put down any more, and nobody has said so")
    require([one.signal for one in run.signals] == ["stop"], f"it was claimed with {run.signals!r}")
    require(not await case.journal.signal(run_id, "go", b"1"), "a signal was taken for a pause that is over")
    require(await case.journal.signal(run_id, "stop", b"2"), "a signal was not taken while the run is carried on")
    await case.journal.write(Page(run_id, run.fence, 2, [b"on"], resumes=True))
    require((await case.run(run_id)).wakes_unix_ns is None, "it was resumed, and is still put down")
    require(not await _claimed(case.journal, await case.owner("other")), "it was claimed while it is carried on")
    await case.journal.write(Page(run_id, run.fence, 3, [b"parked"], parked=Parking((Awaited(2, "stop", _LONG),))))
    again = await case.journal.claim_one(run_id, heir)
    require(again is not None, "a signal that came meanwhile is not found")
    await _has(case, run_id, {"stop": b"2"})


@PARKED_RUNS("a run that was put down again does not wake for what it has had")
async def _had(case: Case) -> None:
    await case.clear()
    heir = await case.owner("heir")
    run_id = await _parked(case, Awaited(1, "go", _LONG))
    await case.journal.signal(run_id, "go", b"1")
    (run,) = await _claimed(case.journal, heir)
    await case.journal.write(_page(run, run_id, Awaited(2, "go", _LONG)))
    require(not await _claimed(case.journal, heir), "it was claimed again for a signal that it had had")
    require(await case.journal.signal(run_id, "go", b"2"), "the second pause takes no signal")
    (run,) = await _claimed(case.journal, heir)
    require([one.value for one in run.signals] == [b"1", b"2"], f"it has {run.signals!r}")


@PARKED_RUNS("a run that ends while it is put down takes no signal and is claimed by nobody")
async def _over(case: Case) -> None:
    await case.clear()
    heir = await case.owner("heir")
    run_id = await _parked(case, Awaited(1, "go", _LONG))
    await case.journal.signal(run_id, "go", b"1")
    (run,) = await _claimed(case.journal, heir)
    await case.journal.write(Page(run_id, run.fence, 2, [b"end"], "done", resumes=True))
    require(not await case.journal.signal(run_id, "go", b"2"), "a run that is over took a signal")
    require(await case.journal.claim_one(run_id, heir) is None, "a run that is over was claimed")


@PARKED_RUNS("a run that is put down can be cancelled once, and then it is to be taken up, and takes no signal")
async def _cancelled(case: Case) -> None:
    await case.clear()
    heir = await case.owner("heir")
    run_id = await case.begun(await case.owner())
    require(not await case.journal.cancel(run_id, b"early"), "a run was cancelled that somebody has")
    require(not await case.journal.cancel("nobody", b"never"), "a run was cancelled that there is not")
    page = _page(None, run_id, Awaited(1, "go", _LONG))
    await case.journal.write(page)
    said: list[bytes] = []

    async def cancel(journal: Journal, reason: bytes) -> None:
        if await journal.cancel(run_id, reason):
            said.append(reason)

    async with case.open_journal() as other, trio.open_nursery() as nursery:
        for place in range(8):
            nursery.start_soon(cancel, (case.journal, other)[place % 2], b"\x00%d" % place)
    require(len(said) == 1, f"it was cancelled {len(said)} times")
    require(not await case.journal.signal(run_id, "go", b"1"), "a signal was taken by a run that is cancelled")
    await case.journal.write(page)
    require(await case.journal.due() == 0.0, "nothing is due, and it was cancelled")
    (run,) = await _claimed(case.journal, heir)
    require((run.cut, run.fence, run.lines) == (said[0], 2, (b"0", b"parked")), f"it was claimed as {run!r}")
    require(run.wakes_unix_ns is not None, "it is put down no more, and nobody has said so")
    require(not await case.journal.signal(run_id, "go", b"1"), "it takes a signal while it is undone")
    await case.journal.renew(heir, 0.0)
    (run,) = await _claimed(case.journal, await case.owner("next"))
    require(run.cut == said[0], "whoever takes it over does not find that it was cancelled")
    await case.journal.write(Page(run_id, run.fence, 2, [b"end"], "cancelled", resumes=True))
    require(not await case.journal.cancel(run_id, b"late"), "a run was cancelled that is over")


@PARKED_RUNS("what comes of a run first stands: a signal or the end of its time, or that it is cancelled")
async def _first(case: Case) -> None:
    await case.clear()
    signalled = await _parked(case, Awaited(1, "go", _LONG), Awaited(2, "stop", _LONG))
    require(await case.journal.signal(signalled, "go", b"1"), "the signal was not taken")
    require(not await case.journal.cancel(signalled, b"late"), "it was cancelled after its signal had come")
    expired = await _parked(case, Awaited(1, "go", -1.0))
    require(not await case.journal.cancel(expired, b"late"), "it was cancelled after its time")
    ids = [await _parked(case, Awaited(1, "go", _LONG)) for _ in range(12)]
    came: dict[str, list[str]] = {run_id: [] for run_id in ids}

    async def cancel(journal: Journal, run_id: str) -> None:
        if await journal.cancel(run_id, b"enough"):
            came[run_id].append("cancelled")

    async def give(journal: Journal, run_id: str) -> None:
        if await journal.signal(run_id, "go", b"1"):
            came[run_id].append("signalled")

    async with case.open_journal() as other, trio.open_nursery() as nursery:
        for place, run_id in enumerate(ids):
            first, second = (cancel, give) if place % 2 else (give, cancel)
            nursery.start_soon(first, case.journal, run_id)
            nursery.start_soon(second, other, run_id)
    require(all(len(told) == 1 for told in came.values()), f"of the runs came {came!r}")
    for run_id, told in came.items():
        run = await case.run(run_id)
        found = [word for word, has in (("cancelled", run.cut), ("signalled", run.signals[0].value)) if has is not None]
        require(found == told and run.wakes_unix_ns == 0, f"{told} was said, and it is {run!r}")


@PARKED_RUNS("it is known how many runs are put down")
async def _counted(case: Case) -> None:
    before = await case.journal.parked()
    await case.begun(await case.owner())
    run_id = await _parked(case, Awaited(1, "go", _LONG))
    require(await case.journal.parked() == before + 1, "one was put down, and another was not")
    await case.journal.signal(run_id, "go", b"1")
    heir = await case.owner("heir")
    require(await case.journal.claim_one(run_id, heir) is not None, "it was not claimed")
    require(await case.journal.parked() == before, "it was taken up")


@PARKED_RUNS("the next one that is due is the one that wakes first")
async def _due(case: Case) -> None:
    await case.clear()
    for seconds in (3 * _LONG, _LONG / 36, 2 * _LONG):
        await _parked(case, Awaited(1, "go", seconds))
    due = await case.journal.due()
    require(due is not None and 0 < due <= _LONG / 36, f"the next one is due in {due} s")


@PARKED_RUNS("a claim of one run that was cancelled does not lose it: the owner's next claim has it")
async def _cancelled_claims(case: Case) -> None:
    await case.clear()
    heir = await case.owner("heir")
    for steps in _STEPS:
        run_id = await _parked(case, Awaited(1, "go", _LONG))
        await case.journal.signal(run_id, "go", b"1")
        claimed: list[StoredRun | None] = []

        async def claim(run_id: str = run_id, claimed: list[StoredRun | None] = claimed) -> None:
            claimed.append(await case.journal.claim_one(run_id, heir))

        await cut_after(claim, steps)
        claimed += await case.journal.claim(heir, 10)
        found = [run.head.run_id for run in claimed if run is not None]
        require(found == [run_id], f"cancelled after {steps} steps, {found} were claimed; {[run_id]} were due")


@PARKED_RUNS("a key is made once for its name, whoever asks first")
async def _keys(case: Case) -> None:
    keys: list[bytes] = []

    async def ask(journal: Journal) -> None:
        keys.append(await journal.key("law"))

    async with case.open_journal() as other, trio.open_nursery() as nursery:
        for journal in (case.journal, other, case.journal):
            nursery.start_soon(ask, journal)
    require(len(set(keys)) == 1 and len(keys[0]) == 32, f"{len(set(keys))} keys were made")
    require(await case.journal.key("other law") not in keys, "another name has the same key")
