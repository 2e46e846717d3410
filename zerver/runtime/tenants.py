"""Tenants from a file, for as long as the runtime runs.

Law: what applies is the newest text that made sense. A file that does not is told of once, on one line of the log, and
the old tenants stay; a file that is still being written is left alone until it has stood still for one look.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final, Protocol

import trio

from zerver.core.tenancy import read_tenants
from zerver.core.tenants import Tenants
from zerver.errors import DefinitionError

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0

_Stamp = tuple[int, int, int] | None


class TakesTenants(Protocol):
    """What tenants are set on: a Runtime."""

    def set_tenants(self, tenants: Tenants) -> None: ...


def load_tenants(path: str) -> Tenants:
    """The tenants that a file names now. Raises DefinitionError that begins with the file's name."""
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors begin a file with a mark that TOML does not know
            return read_tenants(file.read())
    except OSError as error:
        raise DefinitionError(f"{path}: {error.strerror or error}", "name a file that can be read") from None
    except UnicodeDecodeError:
        raise DefinitionError(f"{path}: it is not UTF-8", "TOML is always UTF-8") from None
    except DefinitionError as error:
        raise DefinitionError(f"{path}: {error.problem}", error.cure) from None


class TenantsFile:
    """A file of tenants, read when this is made, and followed. tenants: those that it named when it last made sense.

    log: told, on one line, of a file that makes no sense. Raises DefinitionError when it makes none at first. It reads
    where it is made, which on an event loop is a thread's work.
    """

    def __init__(self, path: str, log: Callable[[str], None] = _log.error) -> None:
        self.path = path
        self._log = log
        self._read = self._seen = _stamp(path)  # before it is read, so that no change in between is lost
        self.tenants = load_tenants(path)

    async def reload(self, runtime: TakesTenants) -> bool:
        """Take the file as it is now; False when it makes no sense."""
        self._read = self._seen = await trio.to_thread.run_sync(_stamp, self.path)
        try:
            self.tenants = await trio.to_thread.run_sync(load_tenants, self.path)
        except DefinitionError as error:
            self._log(f"tenants are not reloaded, the old ones stay: {error.problem}; {error.cure}")
            return False
        runtime.set_tenants(self.tenants)
        return True

    async def follow(self, runtime: TakesTenants) -> None:
        """Look once a second, and take what has changed, until cancelled."""
        while True:
            await trio.sleep(_LOOK_SECONDS)
            stamp = await trio.to_thread.run_sync(_stamp, self.path)
            if stamp != self._read and stamp == self._seen:
                await self.reload(runtime)
            self._seen = stamp


async def watch_tenants(path: str, runtime: TakesTenants) -> None:
    """Set the tenants of a file on a runtime, now and whenever it changes, until cancelled.

        nursery.start_soon(watch_tenants, "tenants.toml", runtime)

    A changed file is taken one to two seconds after it was written. Raises DefinitionError when it makes no sense at
    first; later that is logged, and the old tenants stay.
    """
    file = await trio.to_thread.run_sync(TenantsFile, path)
    runtime.set_tenants(file.tenants)
    await file.follow(runtime)


def _stamp(path: str) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
