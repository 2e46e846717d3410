"""Law: what leaves a room of Zerver is one bare exception, never the group of a nursery nobody can see.

A Trio nursery wraps what its tasks raise in an ExceptionGroup, even a single ValueError, because the author
of a nursery has to be ready for several errors at once. A caller who sees no nursery is not ready for that:
`except ValueError` around a library call would miss. So every nursery that is an inner detail is opened as

    with unwrapped():
        async with trio.open_nursery() as nursery:
            ...

and a nursery that lives around the caller's own code (the body of an `open_x`) as

    async with open_body_nursery() as nursery:
        yield thing

Precedent: `trio._util.raise_single_exception_from_group`, which Trio uses around an inner nursery of its own.
It refuses several errors at once; a runtime, which runs other people's code, cannot.
"""

from __future__ import annotations

import traceback
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from types import TracebackType

import trio


class unwrapped:  # noqa: N801 (a context manager that reads as a word, like contextlib.suppress)
    """Turn the exception group of an inner nursery into the one exception the caller should see.

    One leaf: that leaf, with its own traceback, `__cause__` and `__context__`. Several: the one that `bare()`
    chooses. An exception that is no group passes untouched. Nothing is ever swallowed.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    # Returning None, not bool, tells type checkers that the block never swallows.
    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if exc is None or not _is_plain_group(exc):
            return
        leaf = bare(exc)
        context = leaf.__context__
        try:
            raise leaf
        finally:
            # `raise` has just set leaf.__context__ to the group that holds the leaf: a wrong story, since the
            # group is only packing, and a reference cycle. Trio's own scopes repair it in the same way.
            leaf.__context__ = context
            # This frame is now part of leaf.__traceback__: a local that names the leaf would be a cycle too.
            del leaf, context, exc, tb


def bare(exc: BaseException) -> BaseException:
    """The one exception that stands for `exc`: itself or, of a nursery's group, the leaf that matters most.

    1. KeyboardInterrupt, SystemExit and their like: they are meant for the whole program.
    2. The first real error. A nursery lists errors in the order in which they happened, so the first one is
       the cause and the later ones are mostly its echoes; they are kept as notes, tracebacks included.
    3. trio.Cancelled, if nothing else is there, so that the scope it belongs to can catch it.

    Dropping a Cancelled beside an error is sound in Trio, though it would not be in asyncio. A nursery's own
    scope has already removed the Cancelled that it caused itself; one that gets this far belongs to a scope
    further out. That scope would let the error pass and eat the Cancelled anyway (CancelScope splits groups),
    just as an error raised in a `finally` replaces the Cancelled in flight. And cancellation in Trio is a
    level, not an edge: whoever catches the error gets a fresh Cancelled at the next checkpoint. The only
    visible difference is `scope.cancelled_caught`: False, not True, beside an error that escapes anyway.

    Only plain groups are taken apart: those are what nurseries make. A subclass of ExceptionGroup (cattrs'
    ClassValidationError, say) is an error with a meaning of its own, and stays whole.
    """
    if not _is_plain_group(exc):
        return exc
    leaves = list(_leaves(exc))
    chosen = min(leaves, key=_rank)  # min() is stable: among equals, the first
    for other in leaves:
        if other is not chosen and not isinstance(other, trio.Cancelled):
            add_echo(chosen, other)
    return chosen


def add_echo(exc: BaseException, other: BaseException) -> None:
    """Keep `other` as a note of `exc`, as text: a reference to it could close a cycle of tracebacks."""
    exc.add_note("Raised beside it:\n" + "".join(traceback.format_exception(other)).rstrip())


@asynccontextmanager
async def open_body_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """A nursery for tasks that serve the body of an `async with`, and which the body does not see.

    - The body raises: the tasks are cancelled, and the body's exception leaves *as it is*. If it is a group,
      it is the body's own group, of the body's own nursery, and none of our business to take apart.
    - A task raises: the body is cancelled, and the task's error leaves bare. If the body's cleanup raises as
      well, that one leaves, with the task's as a note, as an error in a `finally` replaces the one in flight.
    - The body ends: the tasks are awaited; whoever opened the nursery ends them.
    """
    failure: Exception | None = None
    try:
        try:
            with unwrapped():
                async with trio.open_nursery() as nursery:
                    try:
                        yield nursery
                    except Exception as exc:
                        failure = exc  # kept out of the nursery, which would wrap it
                        nursery.cancel_scope.cancel()
        except (Exception, trio.Cancelled) as exc:
            # Cancelled gives way to an error, as in bare(). KeyboardInterrupt and its like do not.
            if failure is None:
                raise
            if not isinstance(exc, trio.Cancelled):
                add_echo(failure, exc)
        if failure is not None:
            raise failure
    finally:
        del failure


def _is_plain_group(exc: BaseException) -> bool:
    return type(exc) in (ExceptionGroup, BaseExceptionGroup)


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    """The leaves from left to right. A stack and no recursion: groups may nest as deep as tasks do."""
    stack = [exc]
    while stack:
        top = stack.pop()
        if isinstance(top, BaseExceptionGroup) and _is_plain_group(top):
            stack.extend(reversed(top.exceptions))
        else:
            yield top


def _rank(leaf: BaseException) -> int:
    if isinstance(leaf, trio.Cancelled):
        return 2
    return 1 if isinstance(leaf, Exception) else 0
