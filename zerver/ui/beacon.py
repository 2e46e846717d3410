"""The beacon: a file that says where a serving process is, so that commands beside it find its page.

Law: for its owner's eyes only, as it holds the token: made with mode 600 before anything is in it, and never written
through a link. It appears whole or not at all, and is removed by whoever wrote it, unless another server has put its
own there. One whose process has ended is stale, whatever it says, and so is one that others could have written.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs

from zerver.core.codec import decode_json, encode_json
from zerver.errors import InvalidData

#: Where it stands, below the directory in which the server was started.
PLACE: Final = Path(".zerver/live.json")

_MOST: Final = 16 * 1024  # bytes


@attrs.frozen
class Live:
    """A serving process. address: as "http://127.0.0.1:8000". page: the path of its page."""

    address: str
    pid: int
    token: str = attrs.field(repr=False)
    page: str = "/_zerver"
    began_unix_ms: float = 0.0

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"{self.address}{self.page}/api/"


@contextmanager
def beacon(live: Live, path: str | os.PathLike[str] = PLACE) -> Iterator[None]:
    """Keep the file for as long as the block takes. Raises OSError where it cannot be written."""
    place = Path(path)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(place, encode_json(live))
    try:
        yield
    finally:
        with suppress(OSError):  # it may have been removed with its directory
            if _read(place) == live:
                place.unlink()


def read_beacon(path: str | os.PathLike[str] = PLACE) -> Live | None:
    """The process that serves here; None when there is no file, its process has ended, or it is not to be trusted."""
    live = _read(Path(path))
    return live if live is not None and _is_alive(live.pid) else None


def _write(place: Path, data: bytes) -> None:
    """Beside its place first, under a name that nobody knows, and then moved there."""
    made = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(made, place)
    except BaseException:
        with suppress(OSError):
            made.unlink()
        raise


def _read(place: Path) -> Live | None:
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
            return None
        return decode_json(os.read(descriptor, _MOST), Live)
    except (OSError, InvalidData):
        return None
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's: ours would not refuse us
        return False
    return True
