"""Processes to be killed: `zerver serve`, with one process or several, started again and again.

Law: SIGKILL, and nothing gentler, ends them; nobody is told before. Who has died is known by its process id, which
begins the name that a worker has in the journal.

Nearly all that a start costs is importing. So there is a `Warmer` for servers of one process: it has imported all of it
(`scripts.crashing.warm`), and each server is a fork of it that then does what `zerver serve` does. A supervisor and its
workers are started cold.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import attrs
import trio

ROOT: Final = Path(__file__).parents[2]

#: Seconds that anything may take to start or to die.
PATIENCE: Final = 60.0


class Group:
    """A process, and those that it starts. output: what it says. process: None when it is somebody else's child."""

    def __init__(self, pid: int, output: trio.abc.ReceiveStream, process: trio.Process | None = None) -> None:
        self.pid = pid
        self._output = output
        self._process = process

    async def wait_said(self, what: bytes) -> str | None:
        """The rest of the first line that begins so; None when it ends without saying that."""
        said = b""
        with trio.fail_after(PATIENCE):
            while what not in said or b"\n" not in said[said.index(what) :]:
                data = await self._output.receive_some()
                if not data:
                    return None
                said += data
        return said.partition(what)[2].partition(b"\n")[0].decode()

    async def wait_ready(self) -> str | None:
        """Until it serves: where; None when it has ended before."""
        return await self.wait_said(b"listening on ")

    @property
    def lives(self) -> bool:
        return is_alive(self.pid)

    def workers(self) -> list[int]:
        """Those that it has started, and that live."""
        return sorted(children_of(self.pid))

    async def kill(self) -> set[int]:
        """All of it, at once; the process ids, when none of them lives any more."""
        pids = {self.pid, *self.workers()}
        for pid in (self.pid, *sorted(pids)):  # first who would start others
            kill(pid)
        return await self._wait_gone(pids)

    def terminate(self) -> None:
        """Tell it to drain."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Send it to all of it, first to who would start others."""
        for pid in (self.pid, *self.workers()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def drain(self) -> set[int]:
        """Tell it to, and wait."""
        pids = {self.pid, *self.workers()}
        self.terminate()
        return await self._wait_gone(pids)

    async def _wait_gone(self, pids: set[int]) -> set[int]:
        with trio.fail_after(PATIENCE):
            if self._process is not None:
                await self._process.wait()
            while any(is_alive(pid) for pid in pids):  # noqa: ASYNC110 - not all are children of ours
                await trio.sleep(0.005)
        await self._output.aclose()
        return pids


@attrs.frozen(eq=False)
class Crew:
    """A server, and processes beside it that work on jobs alone. groups: the server first, while it is not left."""

    groups: list[Group]

    async def wait_ready(self) -> str | None:
        """Until the server serves: where; None when it has ended before."""
        return await self.groups[0].wait_ready()

    def workers(self) -> list[int]:
        """All processes that carry runs and jobs on, and that live."""
        return [pid for group in self.groups for pid in group.workers() or [group.pid] if is_alive(pid)]

    async def kill(self) -> set[int]:
        """All of it, at once; the process ids, when none of them lives any more."""
        for group in self.groups:
            group.signal(signal.SIGKILL)
        return {pid for group in self.groups for pid in await group.kill()}

    def terminate(self) -> None:
        """Tell all of it to drain."""
        for group in self.groups:
            group.terminate()

    async def drain(self) -> None:
        """Tell it to, and wait."""
        self.terminate()
        for group in self.groups:
            await group.drain()


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# ---- starting -------------------------------------------------------------------------------


async def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Group:
    """Start `python -m …`. What ZERVER_… says in our own environment does not reach it; stderr goes to the log."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZERVER_")}
    path = os.pathsep.join(filter(None, (str(ROOT), inherited.get("PYTHONPATH"))))
    ours, theirs = os.pipe()
    with log.open("ab") as errors, os.fdopen(theirs, "wb") as said:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
            env=inherited | {"PYTHONPATH": path, **environment},
            start_new_session=True,  # Ctrl-C is for us
        )
    return Group(process.pid, trio.lowlevel.FdStream(ours), process)


class Warmer:
    """Starts `python -m …` as a fork of a process that has imported what it needs. Made by `open_warmer`."""

    def __init__(self, channel: trio.socket.SocketType) -> None:
        self._channel = channel

    async def start(self, command: Sequence[str], log: Path) -> Group:
        """As `start`, in the warmer's environment."""
        ours, theirs = os.pipe()
        with log.open("ab") as errors, os.fdopen(theirs, "wb") as said:
            rights = array("i", [said.fileno(), errors.fileno()])
            await self._channel.sendmsg(
                [json.dumps(command).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            )
            pid = int(await self._channel.recv(64))
        return Group(pid, trio.lowlevel.FdStream(ours))


@asynccontextmanager
async def open_warmer(environment: Mapping[str, str], log: Path) -> AsyncIterator[Warmer]:
    """A process that forks servers. It ends with the block; those that it has started are for who asked for them."""
    path = log.with_name("warm")
    path.unlink(missing_ok=True)
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        await listener.bind(str(path))
        listener.listen(1)
        group = await start(["scripts.crashing.warm", str(path)], environment, log)
        try:
            with trio.fail_after(PATIENCE):
                channel, _ = await listener.accept()
            with channel:
                yield Warmer(channel)
        finally:
            with trio.CancelScope(shield=True):
                await group.kill()


# ---- looking --------------------------------------------------------------------------------


def children_of(parent: int) -> set[int]:
    """The processes that one has started, and that have not ended."""
    return {pid for pid in _pids() if _parent_of(pid) == parent}


def is_alive(pid: int) -> bool:
    """Whether it has not ended; one that has, and that nobody has looked after yet, does not live."""
    return _parent_of(pid) >= 0


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _parent_of(pid: int) -> int:
    """-1 for a process that has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return -1
    return -1 if state in "ZX" else int(parent)
