"""What does it cost to say no? The server's CPU for each refused request, on keep-alive and on new connections.

The server runs on a core of its own; a client on another one asks on 32 connections at once. All requests are answered
by a bare handler, without an app: what is measured is the edge. CPU is the server's own, as the kernel counts it.

    echo         Trio alone: wait until the socket is readable, read, write 200 bytes; nothing below it is possible
    problem      a 503 that is made, checked and written for each request
    prewritten   the same, its fields written once (`zerver.http.prewritten.Prewritten`)
    brake        prewritten, from clients that ask on at once: they are not read for a second after three refusals
    accept       503 as it comes, for each new connection: too many are open

    scripts/bench refusals [--rounds N] [--requests N] [--parser NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import trio

from zerver.http import Exchange, Limits, Response, open_http_listeners, problem, serve_http
from zerver.http.connection import random_id
from zerver.http.prewritten import Prewritten

KINDS = ("echo", "problem", "prewritten", "brake", "accept")
GET = b"GET / HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: bench/1\r\nAccept: */*\r\nAuthorization: Bearer xyz\r\n\r\n"
CONNECTIONS = 32
DETAIL = "the request was not started; try again later"
BODY = b'{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"%b","instance":"%b"}'
FIELDS = Prewritten.of({"content-type": "application/problem+json", "retry-after": "1"})


# ---- the server -------------------------------------------------------------------------------


async def made(exchange: Exchange) -> Response:
    answer = problem(503, detail=DETAIL, instance=(id_ := random_id()))
    return Response(503, answer.headers.adding("retry-after", "1").adding("x-request-id", id_), answer.body)


def prewritten(refusal: bool) -> Callable[[Exchange], Awaitable[Response]]:
    detail = DETAIL.encode()

    async def handler(exchange: Exchange) -> Response:
        id_ = random_id().encode()
        return Response(503, FIELDS.extended(b"x-request-id", id_), BODY % (detail, id_), refusal)

    return handler


async def echo(stream: trio.SocketStream) -> None:
    descriptor = stream.socket.fileno()
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        if not os.read(descriptor, 65536):
            return
        os.write(descriptor, b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 150\r\n\r\n" + b"x" * 150)


async def serve_kind(kind: str, parser: str) -> None:
    listeners = await open_http_listeners()
    print(listeners[0].socket.getsockname()[1], flush=True)
    if kind == "echo":
        await trio.serve_listeners(echo, listeners)
    handler = made if kind == "problem" else prewritten(kind == "brake")
    limits = Limits(connections=0) if kind == "accept" else Limits()
    await serve_http(handler, listeners, limits=limits, parser=parser)  # type: ignore[arg-type]  # argparse checks it


def cpu_of(pid: int) -> float:
    """Seconds on a core so far; of the first thread, which is the one that serves."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


# ---- the clients ------------------------------------------------------------------------------


def ask(port: int, requests: int, seconds: float) -> int:
    """Ask on all connections, each again as soon as it is answered. How many were."""
    clients = {}
    epoll = select.epoll()
    for _ in range(CONNECTIONS):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(GET)
        clients[client.fileno()] = client
        epoll.register(client, select.EPOLLIN)
    done, ends = 0, time.monotonic() + seconds
    while done < requests and time.monotonic() < ends:
        for descriptor, _ in epoll.poll(0.1):
            if not clients[descriptor].recv(4096):
                raise SystemExit("the server has closed a connection")
            clients[descriptor].sendall(GET)
            done += 1
    for client in clients.values():
        client.close()
    return done


def knock(port: int, requests: int) -> int:
    """Connect, hear the refusal, close."""
    done, ends = 0, time.monotonic() + 5
    while done < requests and time.monotonic() < ends:
        with socket.create_connection(("127.0.0.1", port)) as client:
            done += client.recv(4096).startswith(b"HTTP/1.1 503")
    return done


# ---- the measurement --------------------------------------------------------------------------


def measure(kind: str, options: argparse.Namespace) -> tuple[float, float]:
    """Microseconds of the server's CPU for each refusal, and refusals a second."""
    command = [sys.executable, __file__, "--serve", kind, "--parser", options.parser]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            time.sleep(0.2)
            knock(port, 50) if kind == "accept" else ask(port, 500, 1.0)
            used, began = cpu_of(server.pid), time.monotonic()
            done = knock(port, options.requests // 10) if kind == "accept" else ask(port, options.requests, 5.0)
            took = time.monotonic() - began
            return (cpu_of(server.pid) - used) / done * 1e6, done / took
        finally:
            server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--parser", choices=("auto", "h11", "httptools"), default="auto")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0] if options.serve else cores[-1]})
    if options.serve:
        trio.run(serve_kind, options.serve, options.parser)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            found[kind].append(measure(kind, options))
    figures = {}
    for kind, values in found.items():
        cost, rate = (statistics.median([value[at] for value in values]) for at in (0, 1))
        figures[kind] = {"cpu_us": cost, "least_cpu_us": min(value[0] for value in values), "per_second": rate}
        load = cost * rate / 1e4
        print(f"{kind:11} {cost:7.1f} µs (least {figures[kind]['least_cpu_us']:.1f})  {rate:7.0f}/s  {load:5.1f} % CPU")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
