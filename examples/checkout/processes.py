"""Apps in processes of their own: `zerver serve` started, listened to, and drained at the end.

Law: settings of whoever runs this are not the servers': what ZERVER_… says in the environment does not reach them.
"""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

#: Seconds that a server may take to end: more than it drains for, and its flows' longest undo deadline, together.
#: Killed before, it would leave what it had begun to undo.
_PATIENCE: Final = 45.0

_ROOT: Final = Path(__file__).parents[2]


class Process:
    """A `zerver serve` under way. url: where it listens. page: the URL that opens its live page; "" for none."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.url = ""
        self.page = ""
        self._buffer = b""

    async def start(self, has_page: bool) -> None:
        self.url = await self._announced("listening on ")
        if has_page:
            self.page = await self._announced("live page ")

    async def _announced(self, what: str) -> str:
        line = await self._read_until(b"\n")
        if not line.startswith(what):
            raise SystemExit(f"the server did not start: {line}")
        return line.removeprefix(what).strip()

    async def timeline_of(self, run_id: str) -> str:
        """The timeline of a run, which the server prints with an empty line behind it."""
        while True:
            text = await self._read_until(b"\n\n")
            if run_id in text:
                return text.rstrip() + "\n"

    async def next_timeline(self) -> str:
        """The next timeline that the server prints."""
        return await self._read_until(b"\n\n")

    async def _read_until(self, mark: bytes) -> str:
        output = self.process.stdout
        while output is not None and mark not in self._buffer:
            data = await output.receive_some()
            if not data:
                raise SystemExit("a server ended before its time; what it said stands above")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(mark)
        return (text + mark).decode()


@asynccontextmanager
async def open_served(
    app: str, environment: dict[str, str], *options: str, folder: Path | None = None
) -> AsyncIterator[Process]:
    """Serve an app in a process of its own; it is drained, as SIGTERM asks, when the block is left.

    folder: where it serves, with a live page, and with all its runs kept below `.zerver/`; None for neither of them.
    """
    page = ("--page", "off", "--trace-db", "") if folder is None else ("--page", "on")
    command = [sys.executable, "-m", "zerver.cli", "serve", app, "--port", "0", *page, *options]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ZERVER_", "ZER_VER_"))}
    path = os.pathsep.join(filter(None, (str(_ROOT), inherited.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path, "ZERVER_TRACE_SAMPLE": "1"}
    async with trio.open_nursery() as nursery:
        run = partial(
            trio.run_process, command, stdout=subprocess.PIPE, check=False, cwd=folder,
            env=inherited | own | environment, deliver_cancel=_drain,
            start_new_session=True,  # Ctrl-C is for us; a server that got it too would take our SIGTERM as its second
        )  # fmt: skip
        process = Process(await nursery.start(run))
        try:
            await process.start(folder is not None)
            yield process
        finally:
            nursery.cancel_scope.cancel()  # trio.run_process calls _drain, and waits


async def _drain(process: trio.Process) -> None:
    """As trio.run_process does it, which kills after 5 seconds. Cancelled when the process has ended."""
    process.terminate()
    await trio.sleep(_PATIENCE)
    process.kill()
