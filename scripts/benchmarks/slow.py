"""Do slow clients hurt the others? 5,000 connections that are silent, drip or do not read, beside one normal client.

Three processes: a server; an attacker that holds the connections, a third of each kind, and opens again what the server
cuts off; and here a normal client, which asks for a flow on one connection, a request every 4 ms. Rounds without and
with the attack take turns. "p99" is the client's; "memory" what the server's grows by, for each connection held.

    silent    connects, and sends nothing
    dripping  sends a head, one byte a second
    unread    asks for 1 MiB, and reads none of it

    scripts/bench slow [--connections N] [--rounds N] [--seconds S] [--json FILE]
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
from functools import partial

import attrs
import trio

from zerver import App, Done, Flow, step
from zerver.http import Response, text
from zerver.serve import Serving, serve

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ENDLESS = b"GET /large HTTP/1.1\r\nHost: a\r\nX-Drip: "
PACE = 0.004
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
        gc.freeze()  # as `zerver serve` does
        print(serving.addresses[0].rpartition(":")[2], flush=True)


def memory_of(pid: int) -> int:
    """Resident bytes."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- the attacker -----------------------------------------------------------------------------


class Attacker:
    """Holds `count` connections to a port. Each drips at a moment of its own, so that they do not come in one burst."""

    def __init__(self, port: int, count: int) -> None:
        self.port = port
        self.epoll = select.epoll()
        self.held: dict[int, tuple[socket.socket, int]] = {}
        self.drips: deque[tuple[float, socket.socket, int]] = deque()
        for number in range(count):
            self.open(number % 3)
            if number % 20 == 0:
                time.sleep(0.01)
        print("holding", flush=True)

    def open(self, kind: int) -> None:
        client = socket.socket()
        if kind == 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", self.port))
        client.setblocking(False)
        if kind == 1:
            self.drips.append((time.monotonic() + 1, client, 0))
        elif kind == 2:
            client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        self.held[client.fileno()] = client, kind
        self.epoll.register(client, select.EPOLLRDHUP)  # nothing is read; only the end is looked for

    def hold(self) -> None:
        while True:
            wait = max(0.0, self.drips[0][0] - time.monotonic()) if self.drips else 1.0
            for fd, _ in self.epoll.poll(min(wait, 0.1)):
                client, kind = self.held.pop(fd)
                self.epoll.unregister(fd)
                client.close()
                self.open(kind)
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


def latencies(port: int, seconds: float) -> list[float]:
    """Milliseconds of each request, one every PACE seconds."""
    found = []
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
    p50: float
    p99: float
    memory: int


def measure(port: int, server: int, seconds: float) -> Round:
    found = latencies(port, seconds)
    return Round(statistics.median(found), percentile(found, 0.99), memory_of(server))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each round")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON too")
    options = parser.parse_args()
    connections = options.connections
    most = raise_file_limit(connections + 200) - 200
    if most < connections:
        print(f"this system allows {most + 200} open files (ulimit -Hn): {most} connections, not {connections}")
        connections = most
    server = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        latencies(port, 1.0)  # warm-up
        calm, attacked = [], []
        for number in range(options.rounds):
            calm.append(measure(port, server.pid, options.seconds))
            attacked.append(under_attack(port, server.pid, connections, options.seconds))
            print(
                f"round {number + 1}: p99 {calm[-1].p99:.2f} ms alone, {attacked[-1].p99:.2f} ms under attack",
                flush=True,
            )
    finally:
        server.terminate()
        server.wait()
    report(connections, calm, attacked, options.json)


def under_attack(port: int, server: int, connections: int, seconds: float) -> Round:
    attacker = subprocess.Popen(
        [sys.executable, __file__, "attack", str(port), str(connections)], stdout=subprocess.PIPE, text=True
    )
    assert attacker.stdout is not None
    try:
        if attacker.stdout.readline() != "holding\n":
            raise SystemExit("the attacker could not open its connections")
        return measure(port, server, seconds)
    finally:
        attacker.kill()
        attacker.wait()
        time.sleep(1)  # for the server to see them leave


def report(connections: int, calm: list[Round], attacked: list[Round], path: str | None) -> None:
    figures: dict[str, dict[str, float]] = {}
    print(f"\n{connections} slow connections, {len(calm)} rounds; a machine that others use too disturbs some of them")
    for name in ("p50", "p99"):
        for label, choose in (("median", statistics.median), ("least disturbed", min)):
            alone, under = (choose([getattr(each, name) for each in rounds]) for rounds in (calm, attacked))
            figures[f"{name} {label}"] = {"alone": alone, "attacked": under, "ratio": under / alone}
            print(f"  {name} {label:16} {alone:6.2f} ms alone  {under:6.2f} ms under attack  {under / alone:.2f}x")
    each = (attacked[0].memory - calm[0].memory) / connections  # the first round: later ones find freed memory
    figures["memory"] = {"bytes_per_connection": each}
    print(f"  memory  {each / 1024:6.1f} KiB for each connection")
    if path:
        with open(path, "w") as file:
            json.dump(figures, file, indent=1)


def pin(core: int) -> None:
    """The server has one core for itself, if there are two: who attacks it takes no time from it but by asking."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core]})


if __name__ == "__main__":
    pin(0 if sys.argv[1:2] == ["serve"] else -1)
    if sys.argv[1:2] == ["serve"]:
        raise_file_limit(20_000)
        trio.run(serve_app)
    elif sys.argv[1:2] == ["attack"]:
        raise_file_limit(20_000)
        os.nice(19)  # the client goes first
        Attacker(int(sys.argv[2]), int(sys.argv[3])).hold()
    else:
        main()
