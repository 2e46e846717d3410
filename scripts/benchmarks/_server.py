"""A server under measurement: a process group of its own on the first core, and what it has used of it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PEERS = Path(__file__).parent / "peers"

_TICKS = os.sysconf("SC_CLK_TCK")
_START_SECONDS = 20


@contextmanager
def serving(command: Sequence[str], port_option: str = "--port") -> Iterator[tuple[int, int]]:
    """Start a command in `peers/`, wait until it listens, and give its port and process group; left, it is ended.

    port_option: how it is told where to listen; "--bind" gets the address too.

    Raises SystemExit when it ends or does not listen.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    where = f"127.0.0.1:{port}" if port_option == "--bind" else str(port)
    server = subprocess.Popen(
        ["taskset", "-c", "0", *command, port_option, where],
        cwd=PEERS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_port(port, server)
        yield port, server.pid
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def _wait_port(port: int, server: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends:
        if server.poll() is not None:
            raise SystemExit(f"{server.args} ended with status {server.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{server.args} does not listen")


def cpu_seconds(group: int) -> float:
    """User and system time of the process group's processes, children included."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group:
                total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total
