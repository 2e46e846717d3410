"""Servers beside one another: requests per second, and what each of them costs the server's CPU.

Law: all servers are up, on the first core, and one at a time is loaded, from the second one; who is first is rotated.
CPU is the server's own, as the kernel counts it: it says what a request costs even where the load is what ran out.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import attrs
from _load import LOADERS, Ask, Load, check_loader, load
from _report import Figures, Table, is_installed, print_versions, told, turns
from _server import cpu_seconds, serving

ZERVER: Final = "zerver"
_WARM_UP: Final = 0.3  # seconds
_QUIET_SECONDS: Final = 0.04  # four of the kernel's ticks
_QUIET_TRIES: Final = 25


@attrs.frozen
class System:
    """A server: its command without the port, what must be installed for it, and the cases it is for; (): all.

    port: the option that takes it. cores: where it may run. env: beside what there is. exports: whether it is told of a
    collector of its spans, which is another process on the other core.
    """

    name: str
    command: tuple[str, ...]
    packages: tuple[str, ...]
    cases: tuple[str, ...] = ()
    port: str = "--port"
    cores: str = "0"
    env: Mapping[str, str] = attrs.field(factory=dict)
    exports: bool = False

    def plays(self, case: str) -> bool:
        return not self.cases or case in self.cases


def zerver(name: str, app: str, *options: str, cores: str = "0", env: Mapping[str, str] | None = None) -> System:
    """With its timeline, and all that is on by itself."""
    command = (sys.executable, "-m", "zerver.cli", "serve", app, *options)
    return System(name, command, ("trio", "httptools"), cores=cores, env=env or {})


def uvicorn(
    name: str, app: str, *packages: str, options: Sequence[str] = (), cases: tuple[str, ...] = (),
    cores: str = "0", env: Mapping[str, str] | None = None,
) -> System:  # fmt: skip
    command = (sys.executable, "-m", "uvicorn", app, "--loop", "uvloop", "--http", "httptools", "--no-access-log")
    return System(
        name, (*command, *options), ("uvicorn", "uvloop", "httptools", *packages), cases, cores=cores, env=env or {}
    )


def instrumented(case: str) -> System:
    """FastAPI with OpenTelemetry as its documentation has it: instrumented by its package, and exporting."""
    packages = ("fastapi", "opentelemetry-instrumentation-fastapi", "opentelemetry-exporter-otlp-proto-http")
    made = uvicorn("fastapi instrumented, exporting", "trace_instrumented:traced", *packages, cases=(case,))
    return attrs.evolve(made, exports=True)


def granian(name: str, interface: str, app: str, *options: str, cores: str = "0") -> System:
    command = (sys.executable, "-m", "granian", "--interface", interface, "--loop", "uvloop", *options, app)
    return System(name, command, ("granian", "uvloop"), cores=cores)


def hypercorn(name: str, app: str, *packages: str, env: Mapping[str, str] | None = None) -> System:
    """On Trio."""
    command = (sys.executable, "-m", "hypercorn", "-k", "trio", "--log-level", "warning", app)
    return System(name, command, ("hypercorn", *packages), port="--bind", env=env or {})


def arguments(description: str | None, *, seconds: float = 0.6, connections: int = 64) -> argparse.ArgumentParser:
    """What the benchmarks of servers are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=seconds, help="of load, per server, case and round")
    parser.add_argument("--connections", type=int, default=connections)
    parser.add_argument("--only", default="", metavar="TEXT", help="only servers whose name has this text, and zerver")
    parser.add_argument("--loader", choices=LOADERS, default="wrk", help="python: only to see that all works")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON too")
    return parser


def present(systems: Sequence[System], options: argparse.Namespace) -> list[System]:
    """Who can take part; the others are named. Raises SystemExit where there is nothing to load with, or one core."""
    check_loader(options.loader)
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("this benchmark needs two cores: one for the server, one for the load")
    os.sched_setaffinity(0, {1})
    there = []
    for it in systems:
        missing = [package for package in it.packages if not is_installed(package)]
        if missing:
            print(f"left out: {it.name} (not installed: {', '.join(missing)})")
        elif options.only in it.name or it.name.startswith(ZERVER):
            there.append(it)
    rounds = f"{options.rounds} rounds of {options.seconds:g} s, {options.connections} connections"
    print_versions([package for it in there for package in it.packages], f"Medians (least-most) of {rounds}.")
    return there


def rates(systems: Sequence[System], cases: Mapping[str, Ask], options: argparse.Namespace) -> Figures:
    """Every case on every server that plays it, in every round, printed."""
    figures: Figures = []
    for case, it in measurements(systems, cases, options):
        figures += it.told(case)
    return figures


def measurements(
    systems: Sequence[System], cases: Mapping[str, Ask], options: argparse.Namespace
) -> Iterator[tuple[str, Measured]]:
    """Every case, measured on every server that plays it. The servers are up until all is done."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        up = {it.name: stack.enter_context(opened(it, Path(folder))) for it in systems}
        for case, ask in cases.items():
            players = {it.name: up[it.name] for it in systems if it.plays(case)}
            cores = "1" if all(it.cores == "0" for it in systems) else "0,1"
            loaded = partial(load, options.loader, connections=options.connections, cores=cores)
            yield case, measured(players, ask, options.rounds, options.seconds, loaded)


@attrs.frozen
class Measured:
    """Of each server and round: requests per second, and microseconds of CPU per request: the server's, and the load's
    own.
    """

    rate: Table
    cpu: Table
    load: Table

    def told(self, case: str) -> Figures:
        """The servers' figures, printed as a table."""
        return told(case, {("rate", "requests/s", 0): self.rate, ("CPU", "µs/request", 1): self.cpu})


def measured(
    up: Mapping[str, tuple[int, int]], ask: Ask, rounds: int, seconds: float, loaded: Callable[..., Load]
) -> Measured:
    """What servers do that are up: their ports and groups. loaded: is called with a port, what to ask, and how long."""
    rate: Table = {name: [] for name in up}
    cpu: Table = {name: [] for name in up}
    own: Table = {name: [] for name in up}
    for number, name in turns(up, rounds):
        port, group = up[name]
        before = cpu_seconds(group)
        done = loaded(port, ask, seconds if number >= 0 else min(_WARM_UP, seconds))
        if number >= 0:
            if done.done == 0:  # a slow one on a busy machine: it may have four times as long
                before = cpu_seconds(group)
                done = loaded(port, ask, seconds * 4)
            done.check(name, ask)
            rate[name].append(done.rate)
            cpu[name].append((cpu_seconds(group) - before) / done.done * 1e6)
            own[name].append(done.cpu / done.done * 1e6)
        _wait_quiet(group)
    return Measured(rate, cpu, own)


def _wait_quiet(group: int) -> None:
    """Until the server has done what it still had to do for a load that is over: it would take the next one's time."""
    for _ in range(_QUIET_TRIES):
        before = cpu_seconds(group)
        time.sleep(_QUIET_SECONDS)
        if cpu_seconds(group) - before < _QUIET_SECONDS / 2:
            return


@contextmanager
def opened(it: System, folder: Path) -> Iterator[tuple[int, int]]:
    """The server, up. Zerver's runs are kept in this folder, where they are kept at all."""
    env = {"ZERVER_TRACE_DB": str(folder / f"{it.name.replace(' ', '-')}.db"), **it.env}
    with ExitStack() as stack:
        if it.exports:
            port, _ = stack.enter_context(serving((sys.executable, "sink.py"), cores="1"))
            env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port}"
        yield stack.enter_context(serving(it.command, it.port, cores=it.cores, env=env))
