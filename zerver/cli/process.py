"""Processes that an operator starts and a signal ends: what `zerver serve` and `zerver work` have in common.

Law: the first SIGTERM or SIGINT drains, the second ends at once. What is set up here belongs to the process, and so is
set up by commands alone, never by the library.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any

import trio

from zerver.cli.journals import cipher_of
from zerver.core.settings import Settings
from zerver.journal import open_journal
from zerver.runtime import Result
from zerver.runtime.journal import Journal
from zerver.trace.hidden import Hidden
from zerver.trace.text import format_timeline


def prepare_process() -> None:
    """Before anything is opened: as many files as there may be, and a heap that is seldom looked through."""
    _lift_file_limit()
    _settle_heap()


def _lift_file_limit() -> None:
    """As many open files as the system allows: the soft limit, often 1,024, is there for programs that call select."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS says "infinity" and does not mean it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _settle_heap() -> None:
    """Make collections of garbage, for which everybody has to wait, few and short.

    What is loaded by now stays, and is not looked at again. What comes is freed by counting references, connections
    and runs too: of 240,000 objects that 5,000 connections are, 130 are left when they have gone, and no collection has
    had anything to do with it. But each is looked at until then. By Python's own thresholds (700, 10, 10), while 5,000
    came, asked 10,000 times, were replaced and went, that took 460 ms, up to 157 at a time: full collections as they
    came, and young ones as they went, since whatever a request has replaced is young. By these it was 90 ms, up to 25
    at a time, the young of 10,000 objects taking 2. Garbage in circles, which an app may make, waits longer for that: a
    few megabytes of it. To collect the young once a second was tried, and looked at all that requests had replaced in
    it, for 50 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 5, 1_000)


def journal_of(settings: Settings) -> AbstractAsyncContextManager[Journal | None]:
    """The journal that the settings name, to be opened; None without one."""
    if not settings.serve.journal:
        return nullcontext()
    serve = settings.serve
    cipher = cipher_of(serve.journal_keys)
    return open_journal(serve.journal, cipher=cipher, keep_secrets=serve.journal_secrets, keep=serve.journal_keep)


async def heed(signals: AsyncIterator[int], until_signal: trio.CancelScope, aloud: bool = True) -> None:
    """The first signal ends the scope, the second the process. aloud: unless a supervisor says it for all."""
    await anext(signals)
    until_signal.cancel()  # first: whoever reads what we say may have gone, and that must not keep anything from ending
    if aloud:
        with suppress(OSError):
            print("draining; a second signal ends at once", file=sys.stderr, flush=True)
    number = await anext(signals)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(128 + number)  # at once, rollbacks included: that is what a second signal asks for


def ending_signals() -> Any:
    """A context manager that gives the signals which end a process, for `heed`."""
    return trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT)


def print_timeline(hidden: Hidden, result: Result) -> None:
    """What `--timeline` does with each run."""
    print(format_timeline(result.timeline, unresolved=result.unresolved, hidden=hidden), end="\n\n", flush=True)


def report(defect: Exception) -> None:
    """A defect of nobody's run, where there are no logs."""
    traceback.print_exception(defect, file=sys.stderr)
