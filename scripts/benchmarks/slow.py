"""Do slow clients hurt the others? 5,000 connections that are silent, drip or do not read, beside one normal client.

Three processes: a server, alone on one core; on another an attacker, which goes last there (nice 19), and here a normal
client, which asks for a flow on one connection, a request every 4 ms. Each kind of attack is made by itself, in rounds
that take turns with rounds of peace; the attacker opens again what the server cuts off.

    silent      connects, and sends nothing
    dripping    sends a head, one byte a second
    unread      asks for 1 MiB, and reads none of it
    elsewhere   drips to a socket of its own: what the attacker alone does to the client's core, the server untouched

"p50" and "p99" are the client's latencies, medians over the rounds. "server" is the server's CPU, of one core.
"memory" is what the server's resident memory grows by for each connection held, in the first round of that kind.

A machine that does other things too shows in these figures more than 5,000 slow clients do. --real-time, for root,
puts server and client before all else on their cores, and the kernel's own network threads before them.

    scripts/bench slow [--connections N] [--rounds N] [--seconds S] [--only KIND] [--real-time] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from zerver import App, Done, Flow, step
from zerver.http import Response, text
from zerver.serve import Serving, serve

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ENDLESS = b"GET /large HTTP/1.1\r\nHost: a\r\nX-Drip: "
PACE = 0.004
OPENING = 5.0  # seconds, for the attacker to open all of its connections
KINDS = ("silent", "dripping", "unread", "elsewhere")
LARGE = Response(200, {"content-type": "application/octet-stream"}, b"x" * 1024 * 1024)


# ---- the server -------------------------------------------------------------------------------


@step
def hello() -> Done:
    return Done(text("hello"))


@step
def large() -> Done:
    return Done(LARGE)


async def serve_app() -> None:
    app = App()
    app.route("GET", "/", Flow("hello", [hello]))
    app.route("GET", "/large", Flow("large", [large]))
    async with trio.open_nursery() as nursery:
        serving: Serving = await nursery.start(partial(serve, app))
        gc.collect()
        gc.freeze()  # as `zerver serve` does, and so is this:
        gc.set_threshold(10_000, 5, 1_000)
        print(serving.addresses[0].rpartition(":")[2], flush=True)


def memory_of(pid: int) -> int:
    """Resident bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_of(pid: int) -> float:
    """Seconds on a core so far; of the first thread, which is the one that serves."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


# ---- the attacker -----------------------------------------------------------------------------


class Attacker:
    """Holds `count` connections to a port. Each drips at a moment of its own, so that they do not come in one burst."""

    def __init__(self, kind: str, port: int, count: int) -> None:
        self.kind = kind
        self.epoll = select.epoll()
        self.held: dict[int, socket.socket] = {}
        self.drips: deque[tuple[float, socket.socket, int]] = deque()
        self.sink = socket.create_server(("127.0.0.1", 0)) if kind == "elsewhere" else None
        self.sunk: list[socket.socket] = []
        self.port = self.sink.getsockname()[1] if self.sink else port
        began = time.monotonic()
        for number in range(count):
            self.open()
            time.sleep(max(0.0, began + number * OPENING / count - time.monotonic()))
            self.drip()
        print("holding", flush=True)

    def open(self) -> None:
        client = socket.socket()
        if self.kind == "unread":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", self.port))
        client.setblocking(False)
        if self.sink:
            self.sunk.append(self.sink.accept()[0])
        if self.kind in ("dripping", "elsewhere"):
            self.drips.append((time.monotonic() + 1, client, 0))
        elif self.kind == "unread":
            client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        self.held[client.fileno()] = client
        self.epoll.register(client, select.EPOLLRDHUP)  # nothing is read; only the end is looked for

    def hold(self) -> None:
        while True:
            wait = max(0.0, self.drips[0][0] - time.monotonic()) if self.drips else 1.0
            for fd, _ in self.epoll.poll(min(wait, 0.1)):
                self.epoll.unregister(fd)
                self.held.pop(fd).close()
                self.open()
            self.drip()

    def drip(self) -> None:
        now = time.monotonic()
        while self.drips and self.drips[0][0] <= now:
            due, client, sent = self.drips.popleft()
            if client.fileno() >= 0:
                try:
                    client.send((ENDLESS + b"x" * 100)[sent : sent + 1])
                except OSError:
                    continue
                self.drips.append((due + 1, client, sent + 1))


# ---- the normal client ------------------------------------------------------------------------


def admitted(port: int) -> socket.socket:
    """A connection that has been answered: a server that is short of time turns newcomers away for a second."""
    for _ in range(50):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            client.sendall(GET)
            if client.recv(4096).startswith(b"HTTP/1.1 200"):
                return client
        client.close()
        time.sleep(0.2)
    raise SystemExit("the server refuses the normal client")


def latencies(port: int, seconds: float) -> list[float]:
    """Milliseconds of each request, one every PACE seconds."""
    found = []
    with admitted(port) as client:
        end = due = time.perf_counter()
        end += seconds
        while due < end:
            due += PACE
            time.sleep(max(0.0, due - time.perf_counter()))
            started = time.perf_counter()
            client.sendall(GET)
            client.recv(4096)
            found.append((time.perf_counter() - started) * 1000)
    return found


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# ---- the measurement --------------------------------------------------------------------------


def raise_file_limit(wanted: int) -> int:
    """How many files may be open, as many as wanted if the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


@attrs.frozen
class Round:
    """Latencies in milliseconds, the server's CPU as a share of a core, its memory in bytes."""

    p50: float
    p99: float
    server: float
    memory: int


def measure(port: int, server: int, seconds: float) -> Round:
    used, began = cpu_of(server), time.perf_counter()
    found = latencies(port, seconds)
    share = (cpu_of(server) - used) / (time.perf_counter() - began)
    return Round(statistics.median(found), percentile(found, 0.99), share, memory_of(server))


def under_attack(kind: str, port: int, server: int, connections: int, seconds: float) -> Round:
    attacker = subprocess.Popen(
        [sys.executable, __file__, "attack", kind, str(port), str(connections)], stdout=subprocess.PIPE, text=True
    )
    assert attacker.stdout is not None
    try:
        if attacker.stdout.readline() != "holding\n":
            raise SystemExit("the attacker could not open its connections")
        return measure(port, server, seconds)
    finally:
        attacker.kill()
        attacker.wait()
        time.sleep(1.5)  # for the server to see them leave


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round; a head's deadline is 10")
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind of attack; repeatable")
    parser.add_argument("--real-time", action="store_true", help="before all else on this machine; for root")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON too")
    options = parser.parse_args()
    with undisturbed() if options.real_time else nullcontext():
        run(options)


def run(options: argparse.Namespace) -> None:
    connections = options.connections
    most = raise_file_limit(2 * connections + 200) - 200
    if most < connections:
        print(f"this system allows {most + 200} open files (ulimit -Hn): {most} connections, not {connections}")
        connections = most
    figures = {kind: attack(kind, connections, options) for kind in options.only or KINDS}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


def attack(kind: str, connections: int, options: argparse.Namespace) -> dict[str, float]:
    """All rounds of one kind, against a server of their own."""
    server = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    calm, attacked = [], []
    try:
        port = int(server.stdout.readline())
        latencies(port, 1.0)  # warm-up
        for _ in range(options.rounds):
            calm.append(measure(port, server.pid, options.seconds))
            attacked.append(under_attack(kind, port, server.pid, connections, options.seconds))
    finally:
        server.terminate()
        server.wait()
    return report(kind, connections, calm, attacked)


def report(kind: str, connections: int, calm: list[Round], attacked: list[Round]) -> dict[str, float]:
    figures: dict[str, float] = {"connections": connections, "rounds": len(calm)}
    line = f"{kind:10}"
    for name in ("p50", "p99"):
        alone, under = (statistics.median([getattr(each, name) for each in rounds]) for rounds in (calm, attacked))
        figures |= {f"{name}_alone": alone, f"{name}_attacked": under, f"{name}_ratio": under / alone}
        line += f" {name} {alone:.3f} -> {under:.3f} ms ({under / alone:.2f}x) "
    for name in ("alone", "attacked"):
        rounds = calm if name == "alone" else attacked
        figures[f"server_{name}"] = statistics.median([each.server for each in rounds])
    figures["memory"] = (attacked[0].memory - calm[0].memory) / connections  # later rounds find freed memory
    line += f" server {figures['server_alone']:.1%} -> {figures['server_attacked']:.1%} "
    print(f"{line} memory {figures['memory'] / 1024:.1f} KiB each", flush=True)
    return figures


def pin(core: int) -> None:
    """The server has one core for itself, if there are two: who attacks it takes no time from it but by asking."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core]})


@contextmanager
def undisturbed() -> Iterator[None]:
    """This process and those it starts come first on their cores; after the threads that hand packets over, or these
    would wait for them.
    """
    threads = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and is_softirq(entry)]
    try:
        for thread in threads:
            os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(2))
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        yield
    except PermissionError:
        raise SystemExit("--real-time is for root") from None
    finally:
        for process in (*threads, 0):
            with suppress(PermissionError):
                os.sched_setscheduler(process, os.SCHED_OTHER, os.sched_param(0))


def is_softirq(process: Path) -> bool:
    """Whether it is one of the kernel's threads that do what interrupts have left over, as handing packets over."""
    with suppress(OSError):
        return (process / "comm").read_text().startswith("ksoftirqd/")
    return False


if __name__ == "__main__":
    role = sys.argv[1] if len(sys.argv) > 1 else ""
    pin(0 if role == "serve" else -1)
    if role == "serve":
        raise_file_limit(20_000)
        trio.run(serve_app)
    elif role == "attack":
        raise_file_limit(20_000)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.nice(19)  # the client goes first
        Attacker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])).hold()
    else:
        main()
