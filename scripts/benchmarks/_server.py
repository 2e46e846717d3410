"""A server under measurement: a process group of its own on the first core, and what it has used of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PEERS = Path(__file__).parent / "peers"

_TICKS = os.sysconf("SC_CLK_TCK")
_START_SECONDS = 20
_SAID_BYTES = 2000  # of a server's last words


@contextmanager
def serving(
    command: Sequence[str], port_option: str = "--port", *, cores: str = "0", env: Mapping[str, str] | None = None
) -> Iterator[tuple[int, int]]:
    """Start a command in `peers/`, wait until it listens, and give its port and process group; left, it is ended.

    port_option: how it is told where to listen; "--bind" gets the address too. cores: where it may run. env: beside
    what there is.

    Raises SystemExit when it ends or does not listen.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    where = f"127.0.0.1:{port}" if port_option == "--bind" else str(port)
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            ["taskset", "-c", cores, *command, port_option, where],
            cwd=PEERS,
            env={**os.environ, **(env or {})},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_port(port, server, log)
            yield port, server.pid
        finally:
            for process, _ in list(_processes(server.pid)):
                try:
                    os.kill(int(process.name), signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it went with the one above it
            server.wait()


def _wait_port(port: int, server: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends:
        if server.poll() is not None:
            log.seek(0)
            said = log.read()[-_SAID_BYTES:].decode(errors="replace")
            raise SystemExit(f"{server.args} ended with status {server.returncode}:\n{said}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{server.args} does not listen")


def cpu_seconds(group: int) -> float:
    """User and system time of the process group's processes, and of their workers."""
    return sum((int(fields[11]) + int(fields[12])) / _TICKS for _, fields in _processes(group))


def memory_bytes(group: int) -> int:
    """What the process group's processes have in memory; what they share counts once (PSS)."""
    total = 0
    for process, _ in _processes(group):
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _processes(group: int) -> Iterator[tuple[Path, list[str]]]:
    """The group's processes and their descendants, which may have a group of their own; with what `stat` says."""
    found: dict[int, tuple[Path, list[str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = entry, (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
    for process, (entry, fields) in found.items():
        above, about = process, fields
        while above != group and int(about[2]) != group and int(about[1]) in found:
            above = int(about[1])
            about = found[above][1]
        if above == group or int(about[2]) == group:
            yield entry, fields
