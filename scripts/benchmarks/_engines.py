"""Engines of others, as cases of `engine`: steps per second of runs of ten steps, one run after the other.

Law: a step adds one to a number, in each engine's own plainest way, and nothing is kept on disk; with DBOS, which keeps
all, Zerver keeps as much, in SQLite with synchronous=FULL. Graphs are built once. What is not installed is left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypedDict

import trio
from _peer import peer
from _report import Case, Measure, is_installed

from zerver import App, Flow, Slot, effect, step
from zerver.runtime import open_runtime
from zerver.runtime.executor import finished

PACKAGES = ("trio", "langgraph", "apache-burr", "pydantic-graph", "dbos")
STEPS = 10
RUNS = 50
SECONDS = 0.5  # of durable steps, per round
NAMES = [f"s{number}" for number in range(STEPS)]

Run = Callable[[], Awaitable[object]]


@contextmanager
def opened() -> Iterator[list[Case]]:
    """The cases; leaving it ends the processes that some of them have started."""
    with TemporaryDirectory(prefix="zerver-bench-") as folder, ExitStack() as stack:
        packages = {"langgraph": langgraph, "apache-burr": burr, "pydantic-graph": pydantic_graph}
        others = {name: timed(make) for name, make in packages.items() if is_installed(name)}
        systems = {"zerver": of_zerver(pure), "zerver, an effect in each": of_zerver(asking), **others}
        cases = [Case("steps per second, in memory", "steps/s", systems)]
        if is_installed("dbos"):
            cases.append(Case("steps per second, kept in SQLite", "steps/s", durable(Path(folder), stack)))
        yield cases


def timed(make: Callable[[], Run]) -> Measure:
    """Steps per second on asyncio."""

    def measure() -> float:
        run = make()

        async def runs() -> float:
            began = time.perf_counter()
            for _ in range(RUNS):
                await run()
            return RUNS * STEPS / (time.perf_counter() - began)

        return asyncio.run(runs())

    return measure


# ---- in memory ------------------------------------------------------------------------------


@effect(kind="bench.add", access="read")
async def add(n: int) -> int:
    await trio.lowlevel.checkpoint()
    return n + 1


def pure() -> Any:
    def one(n: int) -> int:
        return n + 1

    return one


def asking() -> Any:
    async def one(n: int) -> int:
        return await add(n)

    return one


def of_zerver(make: Callable[[], Any]) -> Measure:
    """With records and admission, as every run has them."""
    aliases: list[Any] = [Annotated[int, Slot(f"n{number}")] for number in range(STEPS + 1)]

    def one(i: int) -> Any:
        function = make()
        function.__annotations__ = {"n": aliases[i], "return": aliases[i + 1]}
        return step(name=NAMES[i])(function)

    flow = Flow("ten", [one(i) for i in range(STEPS)], takes=[aliases[0]], gives=[aliases[-1]], deadline=60.0)

    async def runs() -> float:
        async with open_runtime(App()) as runtime:
            prepared = runtime.prepare(flow)
            began = time.perf_counter()
            for _ in range(RUNS):
                await finished(runtime.execute(prepared, takes=(0,)))
            return RUNS * STEPS / (time.perf_counter() - began)

    return lambda: trio.run(runs)


class Count(TypedDict):
    """What a graph of LangGraph carries. Here, since it looks its annotations up in the module."""

    n: int


def langgraph() -> Run:
    from langgraph.graph import END, START, StateGraph

    async def one(state: Count) -> Count:
        return {"n": state["n"] + 1}

    graph = StateGraph(Count)
    for name in NAMES:
        graph.add_node(name, one)
    for before, after in zip([START, *NAMES], [*NAMES, END], strict=True):
        graph.add_edge(before, after)
    compiled = graph.compile()
    return lambda: compiled.ainvoke({"n": 0})


def burr() -> Run:
    """One application that goes round and round: to build one for each run would cost more."""
    from burr.core import ApplicationBuilder, action

    @action(reads=["n"], writes=["n"])
    async def one(state: Any) -> Any:
        return state.update(n=state["n"] + 1)

    builder = ApplicationBuilder().with_actions(**dict.fromkeys(NAMES, one)).with_state(n=0)
    around = zip(NAMES, [*NAMES[1:], NAMES[0]], strict=True)
    application = builder.with_transitions(*around).with_entrypoint(NAMES[0]).build()
    return lambda: application.arun(halt_after=[NAMES[-1]])


def pydantic_graph() -> Run:
    from pydantic_graph import GraphBuilder

    builder = GraphBuilder(input_type=int, output_type=int, auto_instrument=False)

    async def one(context: Any) -> int:
        return int(context.inputs) + 1

    steps = [builder.step(one, node_id=name) for name in NAMES]
    for before, after in zip([builder.start_node, *steps], [*steps, builder.end_node], strict=True):
        builder.add(builder.edge_from(before).to(after))
    graph = builder.build()
    return lambda: graph.run(inputs=0)


# ---- kept -----------------------------------------------------------------------------------


def durable(folder: Path, stack: ExitStack) -> dict[str, Measure]:
    """The peers of the benchmark `durable`, eight runs at once; each is started when it is first measured."""

    def measure(script: str, url: str, **env: str) -> Measure:
        started: list[Any] = []

        def steps_per_second() -> float:
            if not started:
                started.append(stack.enter_context(peer(script, url, env=env, log=folder / "log")))
            return float(started[0].ask(steps=STEPS, concurrency=8, seconds=SECONDS)["rate"])

        return steps_per_second

    return {
        "zerver": measure("durable_zerver.py", f"sqlite://{folder}/zerver.journal"),
        "dbos, with a write-ahead log": measure("durable_dbos.py", f"sqlite:///{folder}/wal.db", DURABLE_WAL="1"),
        "dbos, as it comes": measure("durable_dbos.py", f"sqlite:///{folder}/dbos.db"),
    }
