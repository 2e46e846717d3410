"""Chance and time belong to the test.

Law: the same seed gives the same run. Trio shuffles its runnable tasks on purpose, so that
nobody relies on an order; `seeded` takes that shuffle in hand, `explore` looks for the order that breaks a
program, and `mock_clock` lets a hundred days of timeouts pass at once.

What a seed cannot reach: threads, real sockets, and the order of sets (fix PYTHONHASHSEED for that one).
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from importlib.metadata import version
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

import attrs
import trio
from trio._core import _run as _trio_run
from trio.testing import MockClock

from zerver.errors import InternalError

_P = ParamSpec("_P")
_R = TypeVar("_R")

# The two names inside Trio that make scheduling deterministic. They are private, but Trio's own suite
# (_tests/test_scheduler_determinism.py) and its Hypothesis plugin stand on them too.
_SWITCH = "_ALLOW_DETERMINISTIC_SCHEDULING"
_DICE = "_r"


def mock_clock() -> MockClock:
    """A Trio clock that jumps to the next deadline as soon as every task waits.

    It sees Trio's tasks only: a program that waits for a thread or a real socket looks idle to it, and
    its timeouts fire at once. Such programs need the real clock.
    """
    return MockClock(autojump_threshold=0)


# ---- one seed -------------------------------------------------------------------------------


def seeded(seed: int) -> Seeded:
    """Make Trio's scheduling order, and the `random` module, follow from `seed`; restore both afterwards.

    A context manager around `trio.run` or inside a running test, and a decorator for plain and async
    functions. May be nested. Raises InternalError if this Trio no longer has the hooks it needs.

    The `random` module is included because retries with jitter are part of what happens: a seed that left
    them out would not replay.
    """
    return Seeded(seed)


@attrs.define
class Seeded:
    """What `seeded` returns: a reusable, reentrant context manager and decorator."""

    seed: int
    _saved: list[tuple[bool, tuple[Any, ...], tuple[Any, ...]]] = attrs.field(factory=list, init=False)

    def __enter__(self) -> None:
        switch, dice = _scheduler()
        self._saved.append((switch, dice.getstate(), random.getstate()))
        setattr(_trio_run, _SWITCH, True)
        dice.seed(self.seed)
        random.seed(self.seed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _, dice = _scheduler()
        switch, dice_state, random_state = self._saved.pop()
        setattr(_trio_run, _SWITCH, switch)
        dice.setstate(dice_state)
        random.setstate(random_state)

    def __call__(self, fn: Callable[_P, _R]) -> Callable[_P, _R]:
        # contextlib's ContextDecorator would leave the block when an async function *returns its
        # coroutine*, before any of it has run; so the two kinds are told apart here.
        if inspect.iscoroutinefunction(fn):

            @wraps(fn)
            async def run_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                with self:
                    return await fn(*args, **kwargs)

            return cast("Callable[_P, _R]", run_async)

        @wraps(fn)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self:
                return fn(*args, **kwargs)

        return run


def _scheduler() -> tuple[bool, random.Random]:
    """Trio's switch and its dice; an error that can be acted on if this Trio has moved them."""
    switch, dice = getattr(_trio_run, _SWITCH, None), getattr(_trio_run, _DICE, None)
    if not isinstance(switch, bool) or not isinstance(dice, random.Random):
        raise InternalError(
            f"trio {version('trio')} has no trio._core._run.{_SWITCH} and {_DICE}, "
            "which deterministic scheduling needs; use a Trio that Zerver is tested with"
        )
    return switch, dice


# ---- many seeds -----------------------------------------------------------------------------


class SeedFailure(AssertionError):
    """A program fails under one scheduling order. `seed` replays it; `__cause__` is the failure."""

    def __init__(self, message: str, seed: int) -> None:
        super().__init__(message)
        self.seed = seed


@attrs.frozen
class Exploration:
    """What `explore` saw. seeds: how many were run. schedules: how many different orders they gave.

    One schedule for many seeds means that the program never has two tasks ready at once: nothing was explored.
    """

    seeds: int
    schedules: int


def explore(fn: Callable[[], Awaitable[object]], seeds: Iterable[int] = range(100)) -> Exploration:
    """Run `trio.run(fn)` once per seed, each time on a new mock clock, until one fails.

    Raises SeedFailure (an AssertionError) whose message holds the seed and the line that replays it.
    Call it from a plain test, not from inside Trio. `fn` must build its world anew each time.
    """
    orders: set[int] = set()
    tried = 0
    for seed in seeds:
        tried += 1
        order = _OrderSeen()
        try:
            with seeded(seed):
                trio.run(fn, clock=mock_clock(), instruments=[order])
        except Exception as error:
            name = getattr(fn, "__qualname__", repr(fn))
            raise SeedFailure(
                f"seed {seed} fails: {_told(error)}\n  replay: explore({name}, seeds=[{seed}])", seed
            ) from error
        orders.add(hash(tuple(order.steps)))
    return Exploration(tried, len(orders))


def _told(error: Exception) -> str:
    """Type and text, those of the leaves if it is a group."""
    if isinstance(error, ExceptionGroup):
        return "; ".join(_told(member) for member in error.exceptions)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _OrderSeen(trio.abc.Instrument):
    """The order in which tasks stepped, as numbers given in order of first sight's spawning."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._numbers: dict[trio.lowlevel.Task, int] = {}

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._numbers[task] = len(self._numbers)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps.append(self._numbers[task])
