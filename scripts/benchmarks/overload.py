"""Overload beside FastAPI: open-loop load on a server with one core, and what is still served, to whom, and how late.

Arrivals are Poisson and wait for nobody: what a slow server does not answer, it is asked all the same. Times count from
the moment a request was due, so a generator that falls behind does not flatter anybody. Good is what was answered with
200 within its class's deadline (1, 2 and 30 s); goodput is the CPU of good answers as a share of the core.

The ceiling under overload is 1 - lambda * r: each refusal costs r of the same CPU. r is measured for each server with
clients that are all refused. Every figure is a median over rounds; each server runs on core 0, the load on core 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from _server import PEERS, cpu_seconds, serving

sys.path.insert(0, str(PEERS))
from work import SHAPES  # the peers' own module, beside them on purpose

DEADLINES = {"interactive": 1.0, "default": 2.0, "batch": 30.0, "dependent": 2.0}
COSTS = {name: sum(slices) for name, (slices, _) in SHAPES.items()}
COSTS["dependent"] = COSTS["default"]
MIX = {"interactive": 0.2, "default": 0.3, "batch": 0.5}  # of the CPU that is asked for
MOST_CONNECTIONS = 4000
REST_SECONDS = 2.5  # of work for a client, between two of its requests


@attrs.frozen
class System:
    """A server that is measured: its name and its command; --port comes behind."""

    name: str
    command: tuple[str, ...]


def _uvicorn(*options: str) -> tuple[str, ...]:
    common = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "critical")
    return (sys.executable, "-m", "uvicorn", "overload_fastapi:app", *common, *options)


SYSTEMS = [
    System("zerver", (sys.executable, "-m", "zerver.cli", "serve", "overload_zerver:app")),
    System("fastapi", _uvicorn()),
    System("fastapi, limit 100", _uvicorn("--limit-concurrency", "100")),
]


# ---- what is asked ------------------------------------------------------------------------------


@attrs.frozen
class Arrival:
    """One request: when it is due, of what kind, whose, and how much harder than usual it is."""

    at: float
    kind: str
    tenant: str = "acme"
    cpu: float = 1.0
    io: float = 1.0
    attempt: int = 0

    @property
    def request(self) -> bytes:
        return (
            f"GET /{self.kind}?cpu={self.cpu:g}&io={self.io:g} HTTP/1.1\r\nHost: localhost\r\n"
            f"X-Tenant: {self.tenant}\r\nX-Request-Timeout-Ms: {DEADLINES[self.kind] * 1000:.0f}\r\n\r\n"
        ).encode()


def poisson(rng: random.Random, rate: float, seconds: float, begin: float = 0.0) -> Iterator[float]:
    at = begin
    while (at := at + rng.expovariate(rate)) < begin + seconds:
        yield at


def mixed(rng: random.Random, load: float, seconds: float, begin: float = 0.0) -> list[Arrival]:
    """Arrivals that ask for `load` times the core, as MIX says."""
    return [
        Arrival(at, kind)
        for kind, share in MIX.items()
        for at in poisson(rng, load * share / COSTS[kind], seconds, begin)
    ]


# ---- what came of it ----------------------------------------------------------------------------


@attrs.define
class Outcome:
    arrival: Arrival
    status: int = 0  # 0: no answer
    seconds: float = float("inf")

    @property
    def good(self) -> bool:
        return self.status == 200 and self.seconds <= DEADLINES[self.arrival.kind]


@attrs.frozen
class Measured:
    """One run of one scenario: every outcome, the seconds of load, and the server's CPU meanwhile."""

    outcomes: Sequence[Outcome]
    seconds: float
    cpu: float

    def goodput(self, begin: float = 0.0, end: float = float("inf"), kinds: Sequence[str] = tuple(COSTS)) -> float:
        """CPU of good answers per second, of those given between begin and end, and while the load lasts."""
        end = min(end, self.seconds)
        useful = sum(
            COSTS[o.arrival.kind] * o.arrival.cpu
            for o in self.outcomes
            if o.good and begin <= o.arrival.at + o.seconds < end and o.arrival.kind in kinds
        )
        return useful / (end - begin)

    def p99(self, kind: str) -> float:
        """Milliseconds, of those served."""
        times = sorted(o.seconds for o in self.outcomes if o.status == 200 and o.arrival.kind == kind)
        return times[int(len(times) * 0.99)] * 1000 if times else float("inf")

    def served(self, kind: str) -> float:
        mine = [o for o in self.outcomes if o.arrival.kind == kind]
        return sum(o.good for o in mine) / max(1, len(mine))

    def jain(self) -> float:
        """Of served work by tenant over its max-min fair share of what was served at all."""
        asked: dict[str, float] = defaultdict(float)
        got: dict[str, float] = defaultdict(float)
        for o in self.outcomes:
            asked[o.arrival.tenant] += COSTS[o.arrival.kind]
            got[o.arrival.tenant] += COSTS[o.arrival.kind] * o.good
        shares = max_min(asked, sum(got.values()))
        ratios = [got[tenant] / shares[tenant] for tenant in asked]
        return sum(ratios) ** 2 / (len(ratios) * sum(ratio * ratio for ratio in ratios) or 1.0)


def max_min(asked: Mapping[str, float], capacity: float) -> dict[str, float]:
    shares: dict[str, float] = {}
    left = sorted(asked.items(), key=lambda item: item[1])
    while left:
        tenant, wish = left.pop(0)
        shares[tenant] = min(wish, capacity / (len(left) + 1)) or 1e-9
        capacity -= shares[tenant]
    return shares


# ---- the generator ------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One keep-alive connection of one client; answers have a Content-Length, as both servers send."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.waiting: Outcome | None = None
        self.data = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, outcome: Outcome) -> None:
        assert self.transport is not None
        self.waiting = outcome
        self.transport.write(outcome.arrival.request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, rest = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(rest) < int(fields.get(b"content-length", b"0")):
            return
        self.data = b""
        outcome, self.waiting = self.waiting, None
        status, retry_after = int(head[9:12]), float(fields.get(b"retry-after", b"0"))
        if fields.get(b"connection") == b"close":
            assert self.transport is not None
            self.transport.close()
        else:
            self.clients.rest(self, retry_after)
        if outcome is not None:
            self.clients.load.answered(outcome, status, retry_after)

    def connection_lost(self, exc: Exception | None) -> None:
        self.clients.lost(self)
        if self.waiting is not None:
            self.clients.load.answered(self.waiting, 0, 0.0)


class Clients:
    """Those who ask for one kind of work for one tenant: a connection each, and a rest after a refusal, as it says."""

    def __init__(self, load: Load, most: int) -> None:
        self.load = load
        self.most = most
        self.open = 0
        self.idle: deque[Connection] = deque()

    async def connect(self) -> Connection | None:
        self.open += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self), "127.0.0.1", self.load.port
            )
        except OSError:
            self.open -= 1
            return None
        return connection

    def send(self, outcome: Outcome) -> bool:
        """Whether there was a client who could."""
        if self.idle:
            self.idle.popleft().ask(outcome)
        elif self.open < self.most:
            self.load.start(self._connect_and_ask(outcome))
        else:
            return False
        return True

    def rest(self, connection: Connection, seconds: float) -> None:
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self.idle.append, connection)
        else:
            self.idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self.open -= 1
        if connection in self.idle:
            self.idle.remove(connection)

    async def _connect_and_ask(self, outcome: Outcome) -> None:
        connection = await self.connect()
        if connection is None:
            self.load.answered(outcome, 0, 0.0)
        else:
            connection.ask(outcome)


class Load:
    """Sends arrivals when they are due, retries if the clients do, and keeps the outcomes."""

    def __init__(self, port: int, retries: int, rng: random.Random) -> None:
        self.port = port
        self.retries = retries
        self.rng = rng
        self.clients: dict[tuple[str, str], Clients] = {}
        self.outcomes: list[Outcome] = []
        self.under_way = 0
        self.began = 0.0
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(
        self, arrivals: Sequence[Arrival], seconds: float, patience: float, read_cpu: Callable[[], float] = lambda: 0.0
    ) -> float:
        """What the server's CPU was when all had connected and nobody had asked."""
        loop = asyncio.get_running_loop()
        await self._connect(Counter((one.tenant, one.kind) for one in arrivals), seconds)
        await asyncio.sleep(0.2)
        cpu = read_cpu()
        self.began = loop.time() + 0.2
        for arrival in sorted(arrivals, key=lambda one: one.at):
            due = self.began + arrival.at - loop.time()
            if due > 0:
                await asyncio.sleep(due)
            self.send(arrival)
        gives_up = loop.time() + patience
        while self.under_way and loop.time() < gives_up:  # noqa: ASYNC110 - a generator may look twenty times a second
            await asyncio.sleep(0.05)
        return cpu

    async def _connect(self, counts: Counter[tuple[str, str]], seconds: float) -> None:
        """As many clients as can ask that often if each is refused now and then; connected before it begins."""
        total = sum(counts.values())
        for who, count in counts.items():
            wanted = min(REST_SECONDS * count / seconds, MOST_CONNECTIONS * count / total)
            clients = self.clients[who] = Clients(self, int(wanted) + 8)
            for _ in range(int(wanted)):
                connection = await clients.connect()
                if connection is not None:
                    clients.idle.append(connection)
                await asyncio.sleep(0.0005)

    def send(self, arrival: Arrival) -> None:
        outcome = Outcome(arrival)
        self.outcomes.append(outcome)
        self.under_way += self.clients[arrival.tenant, arrival.kind].send(outcome)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def answered(self, outcome: Outcome, status: int, retry_after: float) -> None:
        loop = asyncio.get_running_loop()
        self.under_way -= 1
        outcome.status, outcome.seconds = status, loop.time() - self.began - outcome.arrival.at
        arrival = outcome.arrival
        if not outcome.good and arrival.attempt < self.retries:
            wait = max(retry_after, self.rng.uniform(0, 0.05 * 2**arrival.attempt))
            again = attrs.evolve(arrival, at=loop.time() - self.began + wait, attempt=arrival.attempt + 1)
            loop.call_later(wait, self.send, again)


# ---- the servers --------------------------------------------------------------------------------


def measure(system: System, arrivals: Sequence[Arrival], seconds: float, retries: int = 0) -> Measured:
    """Start the server anew, send it everything, and end it."""
    with serving(system.command) as (port, group):
        load = Load(port, retries, random.Random(1))
        warm = [Arrival(0.02 * n, kind) for n, kind in enumerate(["interactive", "default"] * 20)]
        asyncio.run(Load(port, 0, random.Random(0)).run(warm, 1.0, 3.0))
        before = asyncio.run(load.run(arrivals, seconds, 3.0, partial(cpu_seconds, group)))
        return Measured(load.outcomes, seconds, cpu_seconds(group) - before)


# ---- the scenarios ------------------------------------------------------------------------------


def unloaded(system: System, rng: random.Random, seconds: float) -> dict[str, float]:
    run = measure(system, mixed(rng, 0.05, seconds), seconds)
    return {"interactive p99 ms": run.p99("interactive")}


def overload(factor: float) -> object:
    def scenario(system: System, rng: random.Random, seconds: float) -> dict[str, float]:
        run = measure(system, mixed(rng, factor, seconds), seconds)
        useful = sum(COSTS[o.arrival.kind] for o in run.outcomes if o.status == 200)
        arrivals = len(run.outcomes)
        refused = sum(o.status in (429, 503) for o in run.outcomes)
        figures = {
            "goodput": run.goodput(),
            "interactive p99 ms": run.p99("interactive"),
            **{f"{kind} served": run.served(kind) for kind in MIX},
            "batch share of CPU": run.goodput(kinds=("batch",)),
            "offered per second": arrivals / seconds,
            "refused": refused / arrivals,
            # All CPU that was no asked-for work, over all arrivals: what it costs to answer or refuse one.
            "overhead µs per arrival": (run.cpu - useful) / arrivals * 1e6,
        }
        ceiling = 1 - (arrivals / seconds) * max(0.0, figures["overhead µs per arrival"]) / 1e6
        figures["goodput / (1 - λr)"] = figures["goodput"] / ceiling
        return figures

    return scenario


def tenants(system: System, rng: random.Random, seconds: float) -> dict[str, float]:
    """Twenty tenants; nineteen ask for 0.8 of the core together, one for a hundred times as much as one of them."""
    one = 0.8 / 19 / COSTS["interactive"]
    arrivals = [
        Arrival(at, "interactive", f"tenant-{number}")
        for number in range(20)
        for at in poisson(rng, one * (100 if number == 0 else 1), seconds)
    ]
    run = measure(system, arrivals, seconds)
    victims = [o for o in run.outcomes if o.arrival.tenant != "tenant-0"]
    return {"Jain": run.jain(), "victims served": sum(o.good for o in victims) / len(victims), "goodput": run.goodput()}


def storm(system: System, rng: random.Random, seconds: float) -> dict[str, float]:
    """At 0.8 load the work becomes five times as hard for a quarter of the time, and clients retry three times."""
    begin, end = seconds * 0.25, seconds * 0.5
    arrivals = [
        attrs.evolve(one, cpu=5.0 if begin <= one.at < end else 1.0)
        for one in mixed(rng, 0.8, seconds)
        if one.kind != "batch"
    ] + [one for one in mixed(rng, 0.4, seconds) if one.kind != "batch"]
    run = measure(system, arrivals, seconds, retries=3)
    asked: Counter[int] = Counter()
    good: Counter[int] = Counter()
    for o in run.outcomes:
        if o.arrival.at >= end:
            slot = int((o.arrival.at - end) * 4)
            asked[slot] += o.arrival.attempt == 0
            good[slot] += o.good
    recovered = next(
        (slot / 4 for slot in range(int((seconds - end) * 4) - 1)
         if all(good[s] >= 0.95 * asked[s] for s in range(slot, min(slot + 4, int((seconds - end) * 4) - 1)))),
        seconds - end,
    )  # fmt: skip
    return {
        "recovery s": recovered,
        "goodput in the fault": run.goodput(begin, end),
        "load": len(run.outcomes) / len(arrivals),
    }


def dependency(system: System, rng: random.Random, seconds: float) -> dict[str, float]:
    """At 0.7 load, half of it with a dependency that becomes twenty times slower."""
    begin = seconds * 0.3
    half = 0.35 / COSTS["default"]
    arrivals = [Arrival(at, "default") for at in poisson(rng, half, seconds)]
    arrivals += [Arrival(at, "dependent", io=20.0 if at >= begin else 1.0) for at in poisson(rng, half, seconds)]
    run = measure(system, arrivals, seconds)
    others = [o for o in run.outcomes if o.arrival.kind == "default" and o.arrival.at >= begin]
    return {
        "others served": sum(o.good for o in others) / len(others),
        "others p99 ms": run.p99("default"),
        "dependent served": run.served("dependent"),
    }


SCENARIOS = {
    "unloaded (0.05x)": unloaded,
    "1x": overload(1.0),
    "2x": overload(2.0),
    "10x": overload(10.0),
    "one tenant at 100x": tenants,
    "retry storm": storm,
    "slow dependency": dependency,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load, per server, scenario and round")
    parser.add_argument("--only", default="", metavar="TEXT", help="only scenarios whose name has this text")
    parser.add_argument("--systems", default="", metavar="TEXT", help="only systems whose name has this text")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {options.rounds} rounds of {options.seconds:g} s\n"
    )
    report: list[dict[str, object]] = []
    for name, scenario in SCENARIOS.items():
        if options.only not in name:
            continue
        figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        systems = [system for system in SYSTEMS if options.systems in system.name]
        for number in range(options.rounds):
            for system in systems[number % len(systems) :] + systems[: number % len(systems)]:
                for figure, value in scenario(system, random.Random(number), options.seconds).items():
                    figures[figure][system.name].append(value)
        print(name)
        for figure, values in figures.items():
            told = "   ".join(
                f"{system.name} {statistics.median(values[system.name]):.3g}"
                f" ({min(values[system.name]):.3g}-{max(values[system.name]):.3g})"
                for system in systems
            )
            print(f"  {figure:24} {told}")
            summary = {n: {"median": statistics.median(v), "min": min(v), "max": max(v)} for n, v in values.items()}
            report.append({"case": f"{name}: {figure}", "unit": figure, "systems": summary})
        print(flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
