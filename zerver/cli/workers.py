"""`zerver serve --workers N`: one supervisor, and N processes that serve.

Law: the supervisor touches no request and imports no app; it starts workers, and starts another when one ends. Each
worker has a socket pair with it. A byte from the worker says that it serves; the end of the stream, in either
direction, says that the other is dead. So a worker never outlives its supervisor, even one killed by SIGKILL.

- A TCP port is shared (SO_REUSEPORT): the supervisor holds it and each worker listens for itself. A Unix socket is
  opened once, by the supervisor, and accepted from by all.
- The first worker starts alone. If it cannot serve, it has said why, once, and the supervisor ends with status 1.
- A worker that ends later is replaced after 0.1 s, doubled each time up to 10 s; after a minute of health it is 0.1 s
  again. When no worker serves and several in a row could not start, the supervisor gives up with status 1.
- The first SIGTERM or SIGINT is passed on: workers drain, and the supervisor ends when they have, with status 0. The
  second one kills them. SIGHUP is passed on where there is a file of tenants, to those that serve.
- Workers tell each other in shared memory what tenants take (`zerver.runtime.neighbours`): each has a row, which is
  cleared when it ends, so that nobody counts the runs of the dead.

Processes are spawned, never forked: a fork copies a Trio loop, its threads not included, and what they had locked.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import Final

import attrs
import click
import trio

from zerver.cli.announce import announced
from zerver.cli.options import ServeOptions
from zerver.http.listeners import address_of, bind_tcp, open_unix_listener, url_of
from zerver.runtime.groups import unwrapped
from zerver.runtime.neighbours import Neighbourhood, SharedNeighbours, open_neighbourhood

PAGE_TOKEN: Final = "ZERVER_PAGE_TOKEN"  # of the environment
JOURNAL: Final = "ZERVER_JOURNAL"

_READY: Final = b"+"
_MOST_FAILED_STARTS: Final = 3
_SPOKE: Final = (1, 2)  # statuses of one who has said what is wrong; trying again would say it again
_KILL_SECONDS: Final = 5.0  # for processes that were killed to end


class Backoff:
    """How long to wait before the next start. Pure."""

    FIRST = 0.1
    LONGEST = 10.0
    HEALTHY = 60.0

    def __init__(self) -> None:
        self._next = self.FIRST

    def after(self, served: float) -> float:
        """Seconds to wait, after a worker that served for so many seconds."""
        if served >= self.HEALTHY:
            self._next = self.FIRST
        delay = self._next
        self._next = min(delay * 2, self.LONGEST)
        return delay


# ---- the supervisor ---------------------------------------------------------------------------


@attrs.frozen
class _Place:
    """Where the workers will listen. port: 0 for a Unix socket. fds: what workers inherit, the listener's or none."""

    addresses: Sequence[str]
    port: int = 0
    listener: int | None = None


async def supervise(options: ServeOptions) -> int:
    """Run the workers until a signal ends them, or they cannot be kept; the status to exit with."""
    options.certificates()  # what is wrong with these is said once, and now
    tenants = options.tenants_file()
    async with _held_place(options) as place:
        neighbours = open_neighbourhood(options.workers)
        access = options.access() if options.has_page else None
        if access is not None:
            os.environ[PAGE_TOKEN] = access.token  # of all workers: a browser may come to any of them
        if options.settings.serve.journal:
            os.environ[JOURNAL] = options.settings.serve.journal  # and not on a command line, which others can read
        with os.fdopen(neighbours), Neighbourhood(neighbours) as neighbourhood, ExitStack() as stack:
            command = [*_interpreter(), "-m", "zerver.cli", "serve", *options.worker_arguments(place.port)]
            inherited = [neighbours]
            if place.listener is not None:
                inherited.append(place.listener)
                command += ["--listener", str(place.listener)]
            workers = Workers(
                lambda number: [*command, "--neighbours", str(neighbours), str(number)],
                options.workers,
                inherited,
                on_ready=lambda: stack.enter_context(announced(place.addresses, access, known=options.knows_token)),
                on_end=neighbourhood.clear,
            )
            return await _run(workers, pass_on_hangups=tenants is not None)


async def _run(workers: Workers, pass_on_hangups: bool) -> int:
    with unwrapped(), trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_heed, signals, workers)
            if pass_on_hangups:
                nursery.start_soon(_pass_on_hangups, workers)
            status = await workers.run()
            nursery.cancel_scope.cancel()
    return status


@asynccontextmanager
async def _held_place(options: ServeOptions) -> AsyncGenerator[_Place, None]:
    async with AsyncExitStack() as held:
        try:
            place = await _hold(options, held)
        except OSError as error:
            raise click.ClickException(f"cannot listen on {options.place}: {error.strerror or error}") from None
        yield place


async def _hold(options: ServeOptions, held: AsyncExitStack) -> _Place:
    """A TCP port is bound, so that nobody else takes it; connections come to those who listen, and that is not us."""
    if options.unix is not None:
        listener = await held.enter_async_context(await open_unix_listener(options.unix, options.unix_mode))
        return _Place([address_of(listener)], listener=listener.socket.fileno())
    bound = [held.enter_context(one) for one in await bind_tcp(options.bind_host, options.bind_port, reuse_port=True)]
    scheme = "https" if options.tls_cert else "http"
    return _Place([url_of(one, scheme) for one in bound], port=bound[0].getsockname()[1])


def _interpreter() -> list[str]:
    """This Python, run as it was itself run: -O, -X dev, -W."""
    flags = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    flags += ["-X", "dev"] if sys.flags.dev_mode else []
    return [sys.executable, *flags, *(f"-W{option}" for option in sys.warnoptions)]


async def _heed(signals: AsyncIterator[int], workers: Workers) -> None:
    await anext(signals)
    _say("draining; a second signal ends at once")
    workers.drain()
    number = await anext(signals)
    workers.kill()
    sys.stdout.flush()
    os._exit(128 + number)


async def _pass_on_hangups(workers: Workers) -> None:
    with trio.open_signal_receiver(signal.SIGHUP) as hangups:
        async for number in hangups:
            workers.tell(number)


def _say(line: str) -> None:
    with suppress(OSError):  # whoever reads it may have gone, and that must not end the workers
        print(line, file=sys.stderr, flush=True)


class Workers:
    """Keeps `count` processes alive, numbered from 0. command: the words of the one with a number.

    inherited: file descriptors that they get beside the one that leads here. on_ready: called once, when all of them
    serve. on_end: told of the number of each that has ended, before another one has it.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        count: int,
        inherited: Sequence[int],
        *,
        on_ready: Callable[[], object],
        on_end: Callable[[int], None],
    ) -> None:
        self._command = command
        self._count = count
        self._inherited = tuple(inherited)
        self._on_ready = on_ready
        self._on_end = on_end
        self._processes: set[trio.Process] = set()
        self._serving: set[trio.Process] = set()
        self._announced = False
        self._failed_starts = 0  # in a row, while none serves
        self._status = 0
        self._first_serves = trio.Event()  # or there will be none
        self._draining = trio.Event()
        self._running = trio.CancelScope()

    async def run(self) -> int:
        """Until drained (0, or 1 if a worker ended badly meanwhile), or given up (1)."""
        try:
            with unwrapped(), self._running:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep, 0)
                    await self._first_serves.wait()
                    for number in range(1, self._count):
                        nursery.start_soon(self._keep, number)
        finally:
            self.kill()
            with trio.move_on_after(_KILL_SECONDS, shield=True):
                for process in list(self._processes):
                    await process.wait()
        return self._status

    def drain(self) -> None:
        """Start no more workers, and let those that run finish what is under way."""
        self._draining.set()
        self._first_serves.set()
        for process in self._processes:
            process.terminate()

    def tell(self, number: int) -> None:
        """Send a signal to those that serve: who is only starting would die of it."""
        for process in self._serving:
            process.send_signal(number)

    def kill(self) -> None:
        for process in self._processes:
            process.kill()

    async def _keep(self, number: int) -> None:
        """One worker after the other, until drained."""
        backoff = Backoff()
        while not self._draining.is_set():
            pid, status, served = await self._run_one(number)
            if self._draining.is_set():
                self._judge_drained(pid, status)
            elif self._is_hopeless(status, served):
                if status not in _SPOKE:
                    _say(f"worker {pid} {_told(status)}; no worker can start")
                self._status = 1
                self._running.cancel()
                return
            else:
                delay = backoff.after(served or 0.0)
                _say(f"worker {pid} {_told(status)}; another one starts in {delay:g} s")
                with trio.move_on_after(delay):
                    await self._draining.wait()

    async def _run_one(self, number: int) -> tuple[int, int, float | None]:
        """A worker from its start to its end. Its pid, its status, and how many seconds it served, if it did."""
        ours, theirs = trio.socket.socketpair()
        with ours:
            with theirs:
                fd = theirs.fileno()
                process = await trio.lowlevel.open_process(
                    [*self._command(number), "--worker", str(fd)],
                    pass_fds=(fd, *self._inherited),
                    process_group=0,  # else Ctrl-C would reach it twice, from the terminal and from here
                )
            self._processes.add(process)  # until it has ended, come what may: run() kills what is left
            if self._draining.is_set():
                process.terminate()
            since = trio.current_time() if await self._comes_up(ours, process) else None
            status = await process.wait()
        self._processes.discard(process)
        self._serving.discard(process)
        self._on_end(number)
        return process.pid, status, None if since is None else trio.current_time() - since

    async def _comes_up(self, channel: trio.socket.SocketType, process: trio.Process) -> bool:
        try:
            ready = await channel.recv(1) == _READY
        except OSError:
            ready = False
        if ready:
            self._serving.add(process)
            self._failed_starts = 0
            self._first_serves.set()
            if len(self._serving) == self._count and not self._announced:
                self._announced = True
                self._on_ready()
        return ready

    def _is_hopeless(self, status: int, served: float | None) -> bool:
        """Whether there is no point in going on."""
        if served is not None or self._serving:
            return False
        self._failed_starts += 1
        at_first = not self._first_serves.is_set()
        return (at_first and status in _SPOKE) or self._failed_starts >= _MOST_FAILED_STARTS

    def _judge_drained(self, pid: int, status: int) -> None:
        if status not in (0, -signal.SIGTERM):  # by SIGTERM: it had not come so far as to heed it
            _say(f"worker {pid} {_told(status)} while it drained")
            self._status = 1


def _told(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


# ---- the worker's end of it -------------------------------------------------------------------


class Lifeline:
    """What ties a worker to its supervisor. fd: the one it inherited."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)  # a child of ours that held it would make us look alive
        self._socket = trio.socket.socket(fileno=fd)

    async def tell_ready(self) -> None:
        """Say that this worker serves. Does nothing if the supervisor has died."""
        with suppress(OSError):
            await self._socket.send(_READY)

    async def wait_broken(self) -> None:
        """Wait until the supervisor has died."""
        with suppress(OSError):
            await self._socket.recv(1)


def inherited_listener(fd: int) -> trio.SocketListener:
    """The listener that the supervisor has opened for all its workers."""
    os.set_inheritable(fd, False)
    return trio.SocketListener(trio.socket.socket(fileno=fd))


def inherited_neighbours(fd: int, row: int) -> SharedNeighbours:
    """This worker among the others. fd: the one it inherited, which it has no further use for."""
    try:
        return SharedNeighbours(Neighbourhood(fd), row)
    finally:
        os.close(fd)
