"""What a block opened, it has closed.

Law: count before, count after, and name what grew. Counted are file descriptors, threads,
Trio's tasks, async generators that were begun and not closed and, when asked, objects of given types. Things
are compared by kind and not one by one, because a pool that replaced a broken connection has leaked nothing;
what is reported are the new ones of a kind that has become more numerous.

Trio keeps idle worker threads for ten seconds, to use them again: they are Trio's, and not counted.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import linecache
import os
import re
import socket
import sys
import sysconfig
import threading
import time
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from pathlib import Path
from types import AsyncGeneratorType, FrameType
from typing import Any, TextIO
from weakref import WeakSet

import attrs
import trio

_FDS = Path("/proc/self/fd")
_IDLE_WORKER = re.compile(r"Trio thread \d+")  # to_thread renames a worker for as long as it works
_POLL = 0.005  # seconds between two looks at things that end on their own


class LeakFound(AssertionError):
    """A block left something behind. `leaks` holds one line for each thing."""

    def __init__(self, leaks: Collection[str]) -> None:
        self.leaks = tuple(leaks)
        super().__init__("\n  ".join((f"{len(self.leaks)} leaked:", *self.leaks)))


@attrs.frozen
class LeakCheck:
    """What `no_leaks` gives to its block. notes: what could not be counted here, and why."""

    notes: tuple[str, ...]


@contextlib.contextmanager
def no_leaks(*types: type, grace: float = 1.0) -> Iterator[LeakCheck]:
    """Raise LeakFound if the block leaves a file descriptor, thread or task behind, or an object of `types`.

    Inside Trio it counts tasks too. grace: real seconds given to threads that were told to end and are about
    to; they are spent only when something is left, and without letting Trio run. An exception of the block
    goes through untouched: it is the better news.

    Run the block once before measuring it if its first call fills caches.
    """
    gc.collect()
    before = take_census(types)
    with heard_warnings() as warned, seen_generators() as generators:
        yield LeakCheck(before.notes)
        gc.collect()  # what was dropped in a cycle warns now, or never
    leaks = (*settled_growth(before, grace), *unclosed(generators), *warned)
    if leaks:
        raise LeakFound(leaks)


@contextlib.contextmanager
def heard_warnings() -> Iterator[list[str]]:
    """Collect what Python says about things dropped unclosed or never awaited; other warnings go their way.

    Such warnings come out of finalizers, where a filter that turns them into errors has nobody to raise to.
    """
    heard: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", ResourceWarning)
        warnings.filterwarnings("always", ".* was never awaited", RuntimeWarning)
        pass_on = warnings.showwarning

        def listen(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, ResourceWarning) or "was never awaited" in str(message):
                heard.append(f"{category.__name__}: {str(message).splitlines()[0]}")
            else:
                pass_on(message, category, filename, lineno, file, line)

        warnings.showwarning = listen
        yield heard


@contextlib.contextmanager
def seen_generators() -> Iterator[WeakSet[AsyncGeneratorType[Any, Any]]]:
    """The async generators begun inside the block. Trio closes those that are left over, without a word."""
    seen: WeakSet[AsyncGeneratorType[Any, Any]] = WeakSet()
    hooks = sys.get_asyncgen_hooks()

    def first_iteration(generator: AsyncGenerator[Any, Any]) -> None:
        if isinstance(generator, AsyncGeneratorType):
            seen.add(generator)
        if hooks.firstiter is not None:
            hooks.firstiter(generator)

    sys.set_asyncgen_hooks(firstiter=first_iteration)
    try:
        yield seen
    finally:
        sys.set_asyncgen_hooks(firstiter=hooks.firstiter)


def unclosed(generators: Iterable[AsyncGeneratorType[Any, Any]]) -> tuple[str, ...]:
    """One line for each generator that still stands at a `yield`."""
    frames: list[tuple[str, FrameType | None]] = [(gen.__qualname__, gen.ag_frame) for gen in generators]
    return tuple(
        f"async generator {name!r} at {frame.f_code.co_filename}:{frame.f_lineno}"
        for name, frame in frames
        if frame is not None
    )


# ---- counting -------------------------------------------------------------------------------


@attrs.frozen
class Thing:
    """Something that can leak. key: its identity. kind: what it is counted under. label: its name for people."""

    key: object
    kind: str
    label: str


@attrs.frozen
class Census:
    """Everything of interest that is alive at one moment."""

    things: tuple[Thing, ...]
    types: tuple[type, ...]
    notes: tuple[str, ...]


def take_census(types: Collection[type] = ()) -> Census:
    """Count file descriptors, threads, objects of `types` and, inside Trio, tasks."""
    things = [*_fds(), *_threads(), *_objects(tuple(types))]
    if trio.lowlevel.in_trio_run():
        things += [_task(task) for task in living_tasks()]
    notes = () if _FDS.is_dir() else (f"file descriptors are not counted: there is no {_FDS} here",)
    return Census(tuple(things), tuple(types), notes)


def growth(before: Census, after: Census) -> tuple[Thing, ...]:
    """The new things of those kinds that are more numerous after than before."""
    known = {thing.key for thing in before.things}
    surplus = Counter(thing.kind for thing in after.things) - Counter(thing.kind for thing in before.things)
    grown: list[Thing] = []
    # From the end: of several that look alike, those opened last are the more likely to be the surplus.
    for thing in reversed(after.things):
        if surplus[thing.kind] > 0 and thing.key not in known:
            surplus[thing.kind] -= 1
            grown.append(thing)
    return tuple(reversed(grown))


def settled_growth(before: Census, grace: float) -> tuple[str, ...]:
    """The labels of what has grown since `before`, after `grace` real seconds at most for threads to end.

    Only threads are waited for, with all that they hold open: nothing else ends by itself while Trio stands still.
    """
    give_up = time.monotonic() + grace
    while grown := growth(before, take_census(before.types)):
        if time.monotonic() >= give_up or not any(isinstance(thing.key, threading.Thread) for thing in grown):
            break
        time.sleep(_POLL)
    return tuple(thing.label for thing in grown)


def _fds() -> Iterator[Thing]:
    if not _FDS.is_dir():
        return
    for name in sorted(os.listdir(_FDS), key=int):
        try:
            target = os.readlink(_FDS / name)
        except OSError:
            continue  # the descriptor by which the list was read: closed by now
        kind = target.partition(":[")[0]  # socket:[4711] and socket:[4712] are of one kind; a file is its own
        yield Thing((name, target), f"fd {kind}", f"file descriptor {name} → {_target(int(name), target)}")


def _target(fd: int, target: str) -> str:
    """Where the descriptor leads; for a socket its addresses, which say more than its inode."""
    if not target.startswith("socket:"):
        return target
    try:
        with socket.socket(fileno=os.dup(fd)) as twin:
            here = _address(twin.getsockname())
            with contextlib.suppress(OSError):  # not connected
                return f"{target} {here} → {_address(twin.getpeername())}"
            return f"{target} {here}"
    except OSError:
        return target


def _address(address: object) -> str:
    return ":".join(str(part) for part in address[:2]) if isinstance(address, tuple) else str(address)


def _threads() -> Iterator[Thing]:
    for thread in threading.enumerate():
        if not _IDLE_WORKER.fullmatch(thread.name):
            yield Thing(thread, f"thread {re.sub(r'[0-9]+', '#', thread.name)}", f"thread {thread.name!r}")


def _objects(types: tuple[type, ...]) -> Iterator[Thing]:
    if not types:
        return
    for thing in gc.get_objects():
        # type() and not isinstance(): proxies may run code of theirs when asked for their __class__.
        if issubclass(type(thing), types):
            name = f"{type(thing).__module__}.{type(thing).__qualname__}"
            yield Thing(id(thing), f"object {name}", f"object {name} at {id(thing):#x}")


# ---- tasks ----------------------------------------------------------------------------------


def living_tasks() -> Iterator[trio.lowlevel.Task]:
    """Every task of this run, parents before children, without the root that Trio itself waits in."""
    root = trio.lowlevel.current_root_task()
    queue = [root]
    while queue:
        task = queue.pop()
        if task is None:  # only while Trio is still opening the run
            continue
        if task is not root:
            yield task
        for nursery in task.child_nurseries:
            queue += nursery.child_tasks


def _task(task: trio.lowlevel.Task) -> Thing:
    return Thing(task, f"task {task.name}", f"task {task.name!r} {task_place(task)}")


def task_place(task: trio.lowlevel.Task) -> str:
    """`at FILE:LINE: source`: the innermost line of this task's wait that is neither Trio's nor Python's own."""
    if inspect.getcoroutinestate(task.coro) == inspect.CORO_CREATED:
        return "at its start"
    places = [(frame.f_code.co_filename, line) for frame, line in task.iter_await_frames()]
    if not places:
        return "at its end"
    file, line = next((place for place in reversed(places) if not _is_machinery(place[0])), places[0])
    source = linecache.getline(file, line).strip()
    shown = file.removeprefix(os.getcwd() + os.sep)
    return f"at {shown}:{line}: {source}" if source else f"at {shown}:{line}"


def _is_machinery(file: str) -> bool:
    return file.startswith((_TRIO, "<")) or (file.startswith(_STDLIB) and "site-packages" not in file)


_TRIO = os.path.dirname(trio.__file__) + os.sep
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
