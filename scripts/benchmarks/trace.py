"""What a timeline costs: requests per second with it and without it, and beside FastAPI with OpenTelemetry spans of the
same detail; the memory and the disk that a kept run takes; and how long it takes to list and to open one of a million.

"On" is `zerver serve` as it is without any setting: records, recorder, ring, metrics, rates for the page, trace file.
"Off" is the same without anybody who observes, and with an engine compiled without the statements that append records;
"records only" appends them, for nobody (peers/trace_off.py). FastAPI "with spans" makes them as cheaply as can be and
throws them away (peers/spans.py); "instrumented, exporting" is what OpenTelemetry's documentation says, with a
collector beside it (peers/trace_instrumented.py). CPU per request is the server's own, and what counts where the load
generator and others share the machine; its least value is the one that others have disturbed least. Needs `wrk`, two
cores, and about a gigabyte in the temporary folder for each million of stored runs.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio
from _load import Ask, check_loader, load
from _rates import System, instrumented, measured, opened, uvicorn, zerver
from _report import Figures, Table, figure, is_installed, print_versions, ranged, write_json
from _server import PEERS

sys.path.insert(0, str(PEERS))
from zerver_app import app

from zerver.runtime import Result, open_runtime
from zerver.trace.keeping.store import make_store, open_store
from zerver.trace.recording import decode_run, encode_run
from zerver.trace.ring import Ring
from zerver.trace.summary import Filter, summarize
from zerver.trace.text import format_timeline

STEPS: Final = "three steps and an effect"  # what the peers have spans for
PATHS: Final = {"plaintext": "/plain", STEPS: "/steps/7"}
BATCH: Final = 2_000
PACKAGES: Final = (
    "trio", "fastapi", "uvicorn", "uvloop", "opentelemetry-sdk", "opentelemetry-instrumentation-fastapi",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of load, per server and round")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--kept", type=int, default=5_000, help="runs to hold in memory")
    parser.add_argument("--stored", type=int, default=1_000_000, help="runs to store; 80 seconds for a million")
    parser.add_argument("--only", choices=("rate", "memory", "store"), help="one part alone")
    parser.add_argument("--system", default="", metavar="TEXT", help="only systems whose name has this text")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    print_versions(PACKAGES, f"Medians (least-most) of {options.rounds} rounds.")
    figures: Figures = []
    if options.only in (None, "rate"):
        figures += rates(options.rounds, options.seconds, options.connections, options.system)
    if options.only in (None, "memory"):
        figures += memory(options.kept)
    if options.only in (None, "store"):
        figures += stored(options.stored, options.rounds)
    write_json(options.json, figures)


# ---- requests per second --------------------------------------------------------------------


ON: Final = "zerver, timeline on"
OFF: Final = "zerver, timeline off"
RECORDS: Final = "zerver, records only"
SPANS: Final = "fastapi with spans"
BARE: Final = "fastapi without spans"
EXPORTING: Final = "fastapi instrumented, exporting"


def systems() -> list[System]:
    """On and off, what is in between, and the peers."""
    on = zerver(ON, "zerver_app:app")
    off = (sys.executable, "trace_off.py", "serve", "zerver_app:app")
    traced, sdk = "trace_fastapi:traced", ("fastapi", "opentelemetry-sdk")
    return [
        on,
        attrs.evolve(on, name="zerver, on without a file", env={"ZERVER_TRACE_DB": ""}),
        System(RECORDS, off, on.packages, env={"RECORDS": "1"}),
        System(OFF, off, on.packages),
        uvicorn(SPANS, traced, *sdk, cases=(STEPS,)),
        uvicorn(
            "fastapi, spans of 1% of its runs", traced, *sdk, cases=(STEPS,), env={"OTEL_TRACES_SAMPLER_ARG": "0.01"}
        ),
        instrumented(STEPS),
        uvicorn(BARE, "fastapi_app:app", "fastapi", cases=(STEPS,)),
    ]


def rates(rounds: int, seconds: float, connections: int, only: str) -> Figures:
    """Every system in every round, in rotated order; all are up the whole time, and one at a time is loaded."""
    check_loader("wrk")
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("requests per second need two cores; see --only")
    figures: Figures = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        there = [it for it in systems() if all(map(is_installed, it.packages)) and only in it.name]
        up = {it.name: stack.enter_context(opened(it, Path(folder))) for it in there}
        for case, path in PATHS.items():
            players = {it.name: up[it.name] for it in there if it.plays(case)}
            wrk = partial(load, "wrk", connections=connections)
            found = measured(players, Ask(path), rounds, seconds, wrk)
            print(f"{path}, {case}: medians (min-max) of {rounds} rounds", flush=True)
            figures += _told(case, found.rate, found.cpu)
    return figures


def _told(case: str, rate: Table, cpu: Table) -> Figures:
    """One case, printed. Ratios are of the same round: what else the machine did then is in both."""
    for name, values in rate.items():
        said = ""
        if name != ON and ON in rate:
            by_rate = statistics.median(on / other for on, other in zip(rate[ON], values, strict=True))
            by_cpu = statistics.median(other / on for on, other in zip(cpu[ON], cpu[name], strict=True))
            said = f"   {ON} is {by_rate:.2f}x of it by rate, {by_cpu:.2f}x by CPU"
        print(f"  {name:34}{ranged(values, 0)}/s  {ranged(cpu[name], 1)} µs CPU{said}")
    costs = {
        "records": _paired(cpu.get(RECORDS, []), cpu.get(OFF, [])),
        "the whole timeline": _paired(cpu.get(ON, []), cpu.get(OFF, [])),
        "OpenTelemetry spans": _paired(cpu.get(SPANS, []), cpu.get(BARE, [])),
        "the same, instrumented, exporting": _paired(cpu.get(EXPORTING, []), cpu.get(BARE, [])),
    }
    print("  what it adds to a request, by rounds:")
    for name, values in costs.items():
        if values:
            print(f"    {name:36}{ranged(values, 1)} µs CPU")
    print(flush=True)
    added = {name: values for name, values in costs.items() if values}
    return [
        figure(f"{case}: rate", "requests/s", rate),
        figure(f"{case}: cpu", "µs/request", cpu),
        figure(f"{case}: added cpu", "µs/request", added),
    ]


def _paired(on: Sequence[float], off: Sequence[float]) -> list[float]:
    """The differences round by round: what else the machine did in a round is in both."""
    return [one - other for one, other in zip(on, off, strict=True)] if on and off else []


# ---- memory ---------------------------------------------------------------------------------


def memory(count: int) -> Figures:
    """Bytes of a run in the ring, as Python's allocator counts them, and of its records in a file."""
    ring = Ring(capacity=count, records=1 << 40)

    async def fill() -> int:
        async with open_runtime(app, observers=[ring.add]) as runtime:
            await _runs(runtime, 200)
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            await _runs(runtime, count)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
            tracemalloc.stop()
            return grown

    grown = trio.run(fill)
    records = len(ring.latest(1)[0].timeline.records)
    print(f"a run of {records} records: {grown / count:.0f} bytes in memory", flush=True)
    return [figure("a kept run in memory", "bytes", {"zerver": [grown / count]})]


async def _runs(runtime: Any, count: int) -> list[Result]:
    flow = app.routes[1].flow
    return [await runtime.run(flow, given={"id": number}) for number in range(count)]


# ---- a million runs -------------------------------------------------------------------------


def stored(count: int, rounds: int) -> Figures:
    """Fill a trace file through the store's own writer, then list and open what is in it, by a store opened anew."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traces.db"
        began = time.perf_counter()
        ids = list(_fill(path, count))
        seconds = time.perf_counter() - began
        with open_store(path) as store:
            used = store.statistics().used_bytes / count
        print(f"\n{count} runs stored: {seconds / count * 1e6:.0f} µs and {used:.0f} bytes each")
        asked: dict[str, Callable[[], object]] = {
            "list the newest 50": lambda: _search(path, None),
            "list the failed ones of a route": lambda: _search(path, Filter(route="steps", failed=True)),
            "list those of a tenant over 5 ms": lambda: _search(path, Filter(tenant="t7", slower_than_ns=5_000_000)),
            "those of a route and a tenant": lambda: _search(path, Filter(route="steps", tenant="t7")),
            "of a route and a tenant, none": lambda: _search(path, Filter(route="steps", tenant="nobody")),
            "those of a status that none has": lambda: _search(path, Filter(status="defect")),
            "open one by the beginning of its id": lambda: _open(path, ids[len(ids) // 3][4:16]),
        }
        took = {name: [_milliseconds(ask) for _ in range(max(3, rounds))] for name, ask in asked.items()}
    for name, values in took.items():
        print(f"  {name:36}{ranged(values, 2)} ms")
    print(flush=True)
    return [figure(f"{count} stored: {name}", "ms", {"zerver": values}) for name, values in took.items()] + [
        figure("a stored run", "bytes", {"zerver": [used]})
    ]


def _fill(path: Path, count: int) -> Iterator[str]:
    """Store runs of a hundred real ones: one in a hundred failed, of a hundred tenants. Gives some of their ids."""

    async def made() -> list[Result]:
        async with open_runtime(app) as runtime:
            return await _runs(runtime, 100)

    results = trio.run(made)
    began = 1_700_000_000_000_000_000
    patterns = [(summarize(run, began_unix_ns=0, kept="sample"), encode_run(run, began_unix_ns=0)) for run in results]
    with make_store(path) as store:
        for first in range(0, count, BATCH):
            batch = []
            for number in range(first, min(first + BATCH, count)):
                summary, recording = patterns[number % 100]
                run_id = f"req_{number * 0x9E3779B97F4A7C15 % (1 << 96):024x}"  # as spread as chance would
                at = began + number * 1_000_000
                failed = number % 100 == 0
                status, kept = ("failed", "error") if failed else ("done", "sample")
                body = recording.body.replace(summary.run_id.encode(), run_id.encode())
                about = attrs.evolve(
                    summary, run_id=run_id, began_unix_ns=at, tenant=f"t{number % 101}", status=status, kept=kept
                )
                batch.append((about, attrs.evolve(recording, run_id=run_id, began_unix_ns=at, body=body)))
            store.write(batch)
            yield batch[0][0].run_id


def _search(path: Path, wanted: Filter | None) -> object:
    with open_store(path) as store:
        return store.search(wanted, 50)


def _open(path: Path, said: str) -> object:
    with open_store(path) as store:
        recording = store.find(said)
    if recording is None:
        raise SystemExit(f"{said} is not in {path}")
    return format_timeline(decode_run(recording).timeline)


def _milliseconds(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    main()
