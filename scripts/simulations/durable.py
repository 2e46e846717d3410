"""Durable runs on a virtual clock: workers that die, a database and a provider that fail, and what must hold after all.

Law: the same seed is the same world, step for step, whatever the machine: `scripts/sim durable --seed N --profile X`
plays it again and shows what happened. The runtime, its books, takeovers and the journal are the real ones.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from random import Random
from typing import Any, Final

import attrs
import trio

from scripts.simulations.durable_checks import check
from scripts.simulations.durable_flows import Made, make_flow
from scripts.simulations.durable_trouble import Steps, make_trouble
from scripts.simulations.durable_world import Faults, Killed, Line, Process, World
from zerver import App
from zerver.errors import JournalUnavailable
from zerver.journal.lines import Lines
from zerver.journal.scribe import open_scribe
from zerver.journal.sql import SqlJournal
from zerver.runtime import Result, open_runtime
from zerver.runtime.executor import finished
from zerver.runtime.journal import Reader
from zerver.testing.scheduler import mock_clock, seeded

LEASE: Final = 3.0
PATIENCE: Final = 1.0  # for one answer of the database
FLOWS: Final = 60  # of which a seed takes two
CALM: Final = 300.0  # seconds that may pass, once nothing fails any more, until all runs have ended


@attrs.frozen
class Profile:
    """What a seed plays. steady: only flows that come to the same whatever happens, and all of them must."""

    faults: Faults
    workers: int = 2
    orders: int = 4
    steady: bool = False


PROFILES: Final[Mapping[str, Profile]] = {
    "quiet": Profile(Faults(seconds=3.0), steady=True),
    "crash": Profile(Faults(kills=4, apart=300, kill_beside=0.02, seconds=12.0)),
    "fault": Profile(Faults(calls=0.08, outages=3, steps_of_time=1, seconds=15.0)),
    "zombie": Profile(Faults(holds=4, calls=0.02, kill_beside=0.005, seconds=20.0), workers=3),
    "mixed": Profile(
        Faults(calls=0.05, kill_beside=0.01, kills=2, holds=2, outages=2, steps_of_time=2, seconds=20.0), workers=3
    ),
    "suspend": Profile(Faults(every_page=True, seconds=10_000.0), orders=2, workers=1, steady=True),
}


@attrs.define
class Told:
    """What a run was told, and whether somebody said that it was taken; None when nobody knows."""

    order: int
    signal: str
    value: int
    taken: bool | None = None


@attrs.define
class Heard:
    """What a client was told."""

    order: int
    result: Result
    by: str


class OneReader(Lines):
    """The notation, with one reader for all flows: to look through them for their classes costs more than to play."""

    def reader(self, *code: Any) -> Reader:
        return _reader()


@cache
def _reader() -> Reader:
    return Lines().reader(*(_flow(number, steady).flow for number in range(FLOWS) for steady in (False, True)))


@cache
def _flow(number: int, steady: bool) -> Made:
    return make_flow(Random(number), f"flow{number}", steady=steady)


@attrs.define
class Played:
    """A seed that was played. complaints: what does not hold; none is what must be."""

    seed: int
    profile: str
    world: World
    flows: list[Made]
    orders: dict[int, Made]
    ids: dict[str, int]
    heard: list[Heard]
    told: list[Told] = attrs.Factory(list)
    notation: OneReader = attrs.Factory(OneReader)
    waiting: int = 0
    stuck: dict[str, str] = attrs.Factory(dict)
    complaints: list[str] = attrs.Factory(list)

    @property
    def is_steady(self) -> bool:
        return PROFILES[self.profile].steady

    @property
    def digest(self) -> str:
        """What names the whole course of it."""
        return hashlib.sha256(repr(self.world.notes).encode()).hexdigest()[:16]

    @property
    def replay(self) -> str:
        return f"scripts/sim durable --seed {self.seed} --profile {self.profile}"


def play(seed: int, profile: str = "mixed") -> Played:
    """Play one seed, and check what must hold."""
    how = PROFILES[profile]
    world = World(seed, how.faults)
    flows = [_flow(number, how.steady) for number in world.chance.sample(range(FLOWS), 2)]
    played = Played(seed, profile, world, flows, {}, {}, [])
    with seeded(seed), _wall_clock(world):
        trio.run(_main, played, how, clock=mock_clock(), instruments=[Steps(world)])
    played.complaints += check(played)
    return played


@contextmanager
def _wall_clock(world: World) -> Iterator[None]:
    """Everybody's `time.time_ns()` is the world's."""
    real = time.time_ns
    time.time_ns = world.wall_ns  # type: ignore[assignment]  # it is as good a function
    try:
        yield
    finally:
        time.time_ns = real


async def _main(played: Played, how: Profile) -> None:
    world = played.world
    async with trio.open_nursery() as nursery:
        for slot in range(how.workers):
            nursery.start_soon(_keep_worker, played, slot)
        nursery.start_soon(make_trouble, world)
        async with trio.open_nursery() as clients:
            for order in range(how.orders):
                made = played.flows[order % len(played.flows)]
                played.orders[order] = made
                clients.start_soon(_client, played, order, made)
                for signal in made.signals:
                    nursery.start_soon(_signaller, played, order, signal)
        await _come_to_rest(played, how)
        world.over = world.calm = True
        played.stuck = {
            run_id: why
            for process in world.living()
            if process.runtime is not None
            for run_id, why in process.runtime.statistics().stuck.items()
        }
        for process in world.living():
            process.told_to_end.set()
        nursery.cancel_scope.deadline = trio.current_time() + 60.0


async def _come_to_rest(played: Played, how: Profile) -> None:
    """Wait until nothing is left to do."""
    world, waited = played.world, 0.0
    while waited < CALM:
        await trio.sleep(1.0)
        busy = any(process.runtime is not None and process.runtime.statistics().running for process in world.living())
        if not (world.database.unfinished() or played.waiting or busy):
            return
        waited += 1.0 if world.calm else 1.0 / 16


async def _client(played: Played, order: int, made: Made) -> None:
    """Asks for one order, at some worker that listens, and may hang up."""
    world = played.world
    await trio.sleep(world.chance.uniform(0.0, min(10.0, world.faults.seconds / 2)))
    hangs_up = not played.is_steady and world.happens(0.1)  # a run that nobody waits for is cut
    patience = world.chance.uniform(0.0, 0.2) if hangs_up else float("inf")
    for _ in range(50):
        listening = [p for p in world.living() if p.runtime is not None and not p.told_to_end.is_set()]
        if listening:
            process = world.chance.choice(listening)
            process.nursery.start_soon(_serve, played, process, order, made, patience)
            return
        await trio.sleep(0.5)


async def _signaller(played: Played, order: int, signal: str) -> None:
    """Gives a run its signal, now and then, at some worker that listens; of some runs it is forgotten."""
    chance = played.world.chance
    for _ in range(chance.choice((0, 2, 5, 5))):
        await trio.sleep(chance.uniform(0.5, 6.0))
        listening = [p for p in played.world.living() if p.runtime is not None and not p.told_to_end.is_set()]
        if listening:
            process = chance.choice(listening)
            process.nursery.start_soon(_tell, played, process, order, signal)


async def _tell(played: Played, process: Process, order: int, signal: str) -> None:
    runtime = process.runtime
    if runtime is None:
        return
    told = Told(order, signal, len(played.told))
    played.told.append(told)
    try:
        taken = await runtime.signal(f"req_{order}", signal, told.value)
    except (Killed, JournalUnavailable):
        return
    if process.alive:
        played.world.note("told", process.name, order, signal, told.value, taken)
        told.taken = taken


async def _serve(played: Played, process: Process, order: int, made: Made, patience: float) -> None:
    played.waiting += 1
    try:
        runtime = process.runtime
        if runtime is None:
            return
        run_id = f"req_{order}"
        prepared = runtime.prepare(made.flow)
        played.ids[run_id] = order
        with trio.move_on_after(patience):
            result = await finished(runtime.execute(prepared, (), (order,), run_id=run_id))
            if process.alive:
                played.world.note("heard", process.name, run_id, result.status, result.reason)
                played.heard.append(Heard(order, result, process.name))
    except Killed:
        pass
    finally:
        played.waiting -= 1


async def _keep_worker(played: Played, slot: int) -> None:
    """One worker after the other, for as long as the world lasts."""
    world = played.world
    for life in range(10_000):
        process = Process(world, f"w{slot}.{life}")
        world.processes.append(process)
        await _live(played, process)
        process.alive = False
        process.runtime = None
        await trio.sleep(world.chance.uniform(0.05, 1.0))
        if world.over:
            return


async def _live(played: Played, process: Process) -> None:
    try:
        with process.scope:
            async with _opened(played, process):
                played.world.note("up", process.name)
                await process.told_to_end.wait()
    except JournalUnavailable:
        played.world.note("not up", process.name)
    except BaseException as error:
        if process.alive or not _only_killed(error):
            raise


def _only_killed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_only_killed(one) for one in error.exceptions)
    return isinstance(error, Killed | trio.Cancelled)


@asynccontextmanager
async def _opened(played: Played, process: Process) -> AsyncIterator[None]:
    world = played.world
    journal = SqlJournal(
        Line(process),
        world.database.dialect(),
        played.notation,
        place="the database",
        patience=PATIENCE,
        wall_ns=world.wall_ns,
    )
    async with (
        open_scribe(journal.scribe, close_seconds=1.0),
        open_runtime(
            App(),
            handlers=world.provider.handlers(process),
            journal=journal,
            owner=process.name,
            lease=LEASE,
            flows=[made.flow for made in played.flows],
            seed=world.chance.getrandbits(32),
        ) as runtime,
        trio.open_nursery() as nursery,
    ):
        process.nursery = nursery
        process.runtime = runtime
        yield


# ---- the command ----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/sim durable", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many, of each profile")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone, with all that happened")
    parser.add_argument("--profile", action="append", choices=sorted(PROFILES), help="only this one; may be repeated")
    options = parser.parse_args()
    failed = 0
    if options.seed is not None:
        for profile in options.profile or ["mixed"]:
            played = play(options.seed, profile)
            for note in played.world.notes:
                print(*note)
            failed += tell(played)
            print(f"seed {options.seed}, {profile}: {len(played.world.notes)} notes, digest {played.digest}")
        sys.exit(1 if failed else 0)
    for profile in options.profile or PROFILES:
        began = time.process_time()
        bad = sum(tell(play(seed, profile)) for seed in range(options.first, options.first + options.seeds))
        print(f"{profile}: {options.seeds} seeds, {bad} failed, {time.process_time() - began:.1f} s", flush=True)
        failed += bad
    sys.exit(1 if failed else 0)


def tell(played: Played) -> bool:
    """Print what does not hold. Whether there is anything."""
    for complaint in played.complaints:
        print(f"FAIL {complaint}")
    if played.complaints:
        print(f"  replay: {played.replay}", flush=True)
    return bool(played.complaints)


if __name__ == "__main__":
    main()
