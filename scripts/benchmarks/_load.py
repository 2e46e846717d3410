"""Load on a server: by `wrk`, from the second core; or by this process, with connections that it holds itself.

Law: an answer counts when it is whole and of status 2xx. A few others are passed over, because a server may refuse one
when something else takes its core for a moment; more than a fiftieth of them end the benchmark.
"""

from __future__ import annotations

import json
import re
import resource
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Final

import attrs
from _peer import percentile

LOADERS: Final = ("wrk", "python")

_SLACK_SECONDS = 60  # what wrk is told beyond what it gets: it is interrupted, since it counts in whole seconds
_ANSWER_SECONDS = 20.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, so that ten thousand ports are free again


@attrs.frozen
class Ask:
    """One request."""

    path: str
    method: str = "GET"
    body: bytes = b""

    @property
    def wire(self) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        if self.body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n"
        return head.encode() + b"\r\n" + self.body


@attrs.frozen
class Load:
    """done: requests with a good answer; refused: with another. took: each one's seconds, where they were taken. cpu:
    seconds of processor time that the load itself used, where they were counted.
    """

    done: int
    refused: int
    seconds: float
    took: Sequence[float] = ()
    cpu: float = 0.0

    def check(self, name: str, ask: Ask) -> None:
        """Raises SystemExit when the server has not really been measured."""
        if self.done == 0 or self.refused > max(1, self.done // 50):
            raise SystemExit(
                f"{name}: {self.refused} of {self.done + self.refused} requests for {ask.path} were refused"
            )

    @property
    def rate(self) -> float:
        return self.done / self.seconds

    def milliseconds(self, share: float) -> float:
        return percentile(self.took, share) * 1e3


def check_loader(name: str) -> None:
    """Raises SystemExit when it is not there."""
    if name == "wrk" and shutil.which("wrk") is None:
        raise SystemExit("this benchmark needs wrk (apt-get install wrk); --loader python does to see that it works")


def load(loader: str, port: int, ask: Ask, seconds: float, connections: int, cores: str = "1") -> Load:
    """As fast as the server answers on so many connections. cores: where `wrk` may run."""
    if loader == "wrk":
        return by_wrk(port, ask, seconds, connections, cores)
    return by_python(port, ask, seconds, connections)


def by_wrk(port: int, ask: Ask, seconds: float, connections: int, cores: str) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        command = ["taskset", "-c", cores, "wrk", "-t1", f"-c{connections}", f"-d{round(seconds) + _SLACK_SECONDS}s"]
        if ask.body:
            script.write(f"wrk.method = {json.dumps(ask.method)}\nwrk.body = {json.dumps(ask.body.decode())}\n")
            script.write('wrk.headers["Content-Type"] = "application/json"\n')
            script.flush()
            command += ["-s", script.name]
        before = _children_seconds()
        process = subprocess.Popen(
            [*command, f"http://127.0.0.1:{port}{ask.path}"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            out = process.communicate(timeout=_ANSWER_SECONDS)[0]
        finally:
            process.kill()
            process.wait()
    found = re.search(r"(\d+) requests in ([\d.]+)(m?)s", out)
    if found is None or re.search(r"Socket errors: connect [^0]|read [1-9]|write [1-9]", out):
        raise SystemExit(f"errors under load on {ask.path}:\n{out}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    bad = int(refused[1]) if refused else 0
    passed = float(found[2]) / (1000 if found[3] else 1)
    return Load(int(found[1]) - bad, bad, passed, cpu=_children_seconds() - before)


def _children_seconds() -> float:
    """CPU of the children that have ended and were waited for: no server is among them yet."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- by this process ------------------------------------------------------------------------


class Link:
    """One connection that is kept. since: when its request was due; None while it has none under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), _ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.since: float | None = None
        self._read = b""

    def send(self, wire: bytes, since: float) -> None:
        self.since = since
        self.socket.sendall(wire)

    def receive(self) -> int | None:
        """The status, once the answer is whole. Raises SystemExit when the server hangs up."""
        got = self.socket.recv(65536)
        if not got:
            raise SystemExit("the server has closed a connection that was to be kept")
        self._read += got
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return None
        size = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not (len(body) >= int(size[1]) if size else body.endswith(b"0\r\n\r\n")):
            return None
        self._read, self.since = b"", None
        return int(head[9:12])


class Links:
    """Connections that this process holds."""

    def __init__(self) -> None:
        self.all: list[Link] = []
        self._selector = selectors.EpollSelector()

    def open(self, port: int, count: int, wire: bytes) -> None:
        """So many more, with an answer on each: a connection that never had one is not being kept."""
        for number in range(count):
            link = Link(port)
            self.all.append(link)
            self._selector.register(link.socket, selectors.EVENT_READ, link)
            link.send(wire, time.perf_counter())
            while link.since is not None:
                for _, _, status in self.answered(_ANSWER_SECONDS):
                    if status // 100 != 2:
                        raise SystemExit(f"of {count} new connections number {number} was answered {status}")

    def close(self) -> None:
        for link in self.all:
            link.socket.close()
        self._selector.close()

    def answered(self, seconds: float) -> Iterator[tuple[Link, float, int]]:
        """Whose answer has come within so many seconds, for when it was due, and its status."""
        for key, _ in self._selector.select(max(0.0, seconds)):
            since = key.data.since
            status = key.data.receive()
            if status is not None and since is not None:
                yield key.data, since, status


def by_python(port: int, ask: Ask, seconds: float, connections: int) -> Load:
    """Slower than a server may be: to see that all works, and not to measure."""
    links, wire = Links(), ask.wire
    try:
        links.open(port, connections, wire)
        began, before = time.perf_counter(), time.process_time()
        for link in links.all:
            link.send(wire, began)
        statuses: list[int] = []
        while (now := time.perf_counter()) < began + seconds:
            for link, _, status in links.answered(0.05):
                statuses.append(status)
                link.send(wire, now)
        bad = sum(it // 100 != 2 for it in statuses)
        cpu = time.process_time() - before
        return Load(len(statuses) - bad, bad, time.perf_counter() - began, cpu=cpu)
    finally:
        links.close()


def paced(links: Links, busy: int, ask: Ask, rate: float, seconds: float) -> Load:
    """Requests at a rate, on the first so many connections in turn; each one's time counts from when it was due.

    One that is due while its connection still waits is sent when it can be: a slow answer is not left out by asking
    less (Tene's coordinated omission).
    """
    wire, began, sent, took, refused = ask.wire, time.perf_counter(), 0, [], 0
    total, under_way = int(rate * seconds), 0
    while sent < total or under_way:
        now = time.perf_counter()
        if now > began + seconds + _ANSWER_SECONDS:
            raise SystemExit(f"{under_way} requests for {ask.path} were never answered")
        due = began + sent / rate
        link = links.all[sent % busy]
        if sent < total and due <= now and link.since is None:
            link.send(wire, due)
            sent, under_way = sent + 1, under_way + 1
            continue
        wait = due - now if sent < total and link.since is None else 0.05
        for _, since, status in links.answered(min(wait, 0.05)):
            took.append(time.perf_counter() - since)
            under_way -= 1
            refused += status // 100 != 2
    return Load(len(took) - refused, refused, time.perf_counter() - began, took)
