"""Runs whose steps are writes with durability "sync", in a process of their own. Arguments: the journal's URL."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _peer import Line, Window

from zerver import AdmissionPolicy, App, Flow, Slot, effect, step
from zerver.journal import open_postgres_journal, open_sqlite_journal
from zerver.runtime import Runtime, open_runtime
from zerver.runtime.executor import finished

#: Whoever comes may run: what is measured is not how runs are admitted.
FREE = App("bench", admission=AdmissionPolicy(running=1000))


class Now:
    """What is measured at the moment. began: when the last step of a run did."""

    window = Window(0.0)
    began: ClassVar[dict[str, float]] = {}


@effect(kind="bench.work", access="write")
async def work(run: str, number: int) -> int:
    Now.began[run] = Now.window.step(Now.began.get(run))
    return number + 1


def make(count: int, durability: Any) -> Flow:
    """A flow of so many steps, each of which performs one write."""
    names: Any = [Annotated[str, Slot("run")], *(Annotated[int, Slot(f"n{i}")] for i in range(count))]

    def one(i: int) -> Any:
        async def first(run: str) -> int:
            return await work(run, 0)

        async def later(run: str, n: int) -> int:
            return await work(run, n)

        function: Any = later if i else first
        function.__annotations__ = {"run": names[0], "return": names[i + 1]} | ({"n": names[i]} if i else {})
        return step(name=f"s{i}")(function)

    return Flow(
        f"bench{count}", [one(i) for i in range(count)], takes=[names[0]], gives=[names[-1]], durability=durability
    )


async def client(runtime: Runtime, prepared: Any, name: str, window: Window) -> None:
    """Asks for one run after the other."""
    number = 0
    while not window.over:
        number += 1
        since = time.perf_counter()
        result = await finished(runtime.execute(prepared, takes=(f"{name}.{number}",)))
        if result.status != "done":
            raise RuntimeError(repr(result))
        window.run(since)


async def main() -> None:
    line, url = Line(), sys.argv[1]
    path = url.removeprefix("sqlite://")
    async with (
        open_postgres_journal(url) if path == url else open_sqlite_journal(path) as journal,
        open_runtime(FREE, journal=journal) as runtime,
    ):
        flows = {count: runtime.prepare(make(count, "sync")) for count in (1, 10)}
        line.say({"packages": ["trio", "psycopg"]})
        questions = line.questions()
        while (
            asked := await trio.to_thread.run_sync(lambda: next(questions, None), abandon_on_cancel=True)
        ) is not None:
            Now.began.clear()
            window = Now.window = Window(asked["seconds"])
            async with trio.open_nursery() as nursery:
                for number in range(asked["concurrency"]):
                    nursery.start_soon(client, runtime, flows[asked["steps"]], f"c{number}", window)
            line.say(window.told())


trio.run(main)
