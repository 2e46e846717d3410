"""Runs of one flow with the dial at "off" and at "async", engine alone. Arguments: folder, "off" or "async", which
flow, how many runs, how many at once, and by how much this process is slowed down (as by cachegrind), so that what is
to happen ten times a second does not happen ten times as often.

Without a number of runs: a peer, which tells the CPU seconds that runs with each setting take.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import trio
import trio.testing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _peer import Line

from zerver import AdmissionPolicy, App, Flow, Slot, effect, step
from zerver.journal import open_sqlite_journal
from zerver.runtime import Runtime, open_runtime
from zerver.runtime.executor import finished

N = Annotated[int, Slot("n")]
M = Annotated[int, Slot("m")]


@effect(kind="bench.read", access="read")
async def read(seconds: float) -> int:
    await trio.sleep(seconds)
    return 1


@effect(kind="bench.write", access="write")
async def write(n: int, seconds: float) -> int:
    await trio.sleep(seconds)
    return n


def make(name: str, seconds: float, durability: Any) -> Flow:
    """Three steps: one reads, one writes, one is pure."""

    @step
    async def first() -> N:
        return await read(seconds).with_policy(timeout=5.0)

    @step
    async def second(n: N) -> M:
        return await write(n, seconds).with_policy(timeout=5.0)

    @step
    def third(m: M) -> None:
        return None

    return Flow(f"{name}_{durability}", [first, second, third], deadline=60.0, durability=durability)


#: Seconds that the read and the write take. Runs of "long" are written behind; those of the others are over before.
FLOWS = {"quick": 0.0, "slow": 0.04, "long": 0.3}


#: Whoever comes may run: what is measured is not how runs are admitted.
FREE = App(admission=AdmissionPolicy(running=1000))


async def work(runtime: Runtime, prepared: Any, count: int, at_once: int) -> None:
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            result = await finished(runtime.execute(prepared))
            if result.status != "done":
                raise SystemExit(f"a run of {prepared.flow.name} was {result.status}: {result.ending.reason}")

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(client)


async def main(folder: str, *asked: str) -> None:
    async with open_sqlite_journal(f"{folder}/dial.journal") as journal, open_runtime(FREE, journal=journal) as runtime:
        flows = {
            (name, dial): runtime.prepare(make(name, seconds, dial))
            for name, seconds in FLOWS.items()
            for dial in ("off", "async")
        }
        if asked:
            dial, name, count, at_once, _ = asked
            await work(runtime, flows[name, dial], int(count), int(at_once))
            await journal.flush()
            return
        line = Line()
        line.say({"packages": ["trio"]})
        for question in line.questions():
            began = time.process_time()
            await work(runtime, flows[question["flow"], question["dial"]], question["runs"], question["at_once"])
            await journal.flush()
            line.say({"cpu": (time.process_time() - began) / question["runs"]})


clock = trio.testing.MockClock(rate=1 / float(sys.argv[6])) if len(sys.argv) > 2 else None
trio.run(main, *sys.argv[1:], clock=clock)
