"""Cancel a call at every moment, one run per moment, and look at what is left.

Law: whatever the moment, a cancelled call ends, ends with Cancelled and nothing else, and leaves
nothing behind. Trio's authors have asked for such a helper since 2017 (python-trio/trio#77).

How. An instrument counts *moments*: the instants just before and just after each step of each task. The two
differ, and bugs live in both. Cancelled *before* a step, a task goes on with what it was given (the lock, the
connection) and meets the cancellation at its next await; cancelled *after* a step, it is torn out of the
wait that it has just begun. Every task's steps count, not only those of the cancelled call: a server in the
same run gets further with each of its steps, and a client may leave at any of them.

The scheduler is seeded, so moment 7 is the same moment in every run. Where it is not (threads, sockets), a
run may end before its moment comes; that is counted as missed, and the sweep ends all the same, since the
number of runs is fixed by the first.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVarTuple, Unpack

import attrs
import trio
from trio.testing import MockClock

from zerver.errors import InternalError
from zerver.runtime.groups import unwrapped

from .leaks import (
    growth,
    heard_warnings,
    living_tasks,
    seen_generators,
    settled_growth,
    take_census,
    task_place,
    unclosed,
)
from .scheduler import mock_clock, seeded

_Args = TypeVarTuple("_Args")

_PATIENCE = 60.0  # seconds of the run's clock that a cancelled call, or a check, may take to end
_SETTLE = 3.0  # seconds of the run's clock for tasks outside to finish what the call caused; servers linger for 2
_LOOKS = 20  # how often to look whether they have
_GRACE = 1.0  # real seconds in which threads may notice that they were told to end
_TOO_MANY = 1_000  # cancellations delivered to one task: it eats them in a loop
_REASON = "zerver.testing.sweep"


class SweepFailure(AssertionError):
    """Some moments of cancellation do harm. `findings` holds all of them; the message says each in full."""

    def __init__(self, message: str, findings: tuple[SweepFinding, ...]) -> None:
        super().__init__(message)
        self.findings = findings


@attrs.frozen
class SweepFinding:
    """One moment that does harm.

    point: its number, from 1; 0 if the call does harm without being cancelled. moment: the step of the program
    at which it was cancelled. cuts: the awaits that raised Cancelled then, in order. problems: what went wrong.
    """

    point: int
    moment: str
    cuts: tuple[str, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        cuts = [f"Cancelled raised in {cut}" for cut in self.cuts]
        return "\n      ".join((f"point {self.point}: {self.moment}", *cuts, *self.problems))


@attrs.frozen
class SweepReport:
    """What a clean sweep has tried.

    moments: counted in the run that was not cancelled. points: how many of them were tried. delivered: how
    often Cancelled reached an await; in the other runs it came after the last one. missed: runs that ended
    before their moment came, 0 if the program is deterministic. places: each await that was cut, once.
    """

    moments: int
    points: int
    delivered: int
    missed: int
    places: tuple[str, ...]


def cancel_sweep(
    fn: Callable[[Unpack[_Args]], Awaitable[object]],
    *args: *_Args,
    check: Callable[[], object] | None = None,
    clock: Callable[[], trio.abc.Clock] | None = mock_clock,
    seed: int = 0,
    max_points: int | None = None,
) -> SweepReport:
    """Run the program `fn(*args)` again and again in `trio.run`, cancelled at another moment each time.

    For plain tests; inside Trio use `sweep_calls`. The program must end by itself and build its world anew.

    check: called after each run, inside Trio, sync or async; it raises if an invariant is broken.
    clock: makes each run's clock; None is the real clock, for programs that wait for threads or sockets.
    max_points: try so many moments at most, spread evenly; None tries all. n moments cost n runs.

    Raises SweepFailure (an AssertionError), which names each moment that does harm, the await that was cut
    and what went wrong: something leaked, Cancelled was swallowed or replaced by another error, the call
    did not end, or `check` complained. An error of a run that was not cancelled comes out as it is.
    """
    call = partial(fn, *args)
    sweep = _Sweep(seed, max_points)
    with _quick_gc():
        for point in sweep.points():
            with seeded(seed):
                run_clock = None if clock is None else clock()
                sweep.record(trio.run(_attempt, call, point, check, clock=run_clock))
    return sweep.report()


async def sweep_calls(
    make_call: Callable[[], Awaitable[object]],
    *,
    setup: Callable[[], Awaitable[object]] | None = None,
    check: Callable[[], object] | None = None,
    seed: int = 0,
    max_points: int | None = None,
) -> SweepReport:
    """`cancel_sweep` for one call against something that stays open: a runtime, a pool, a database.

    make_call: an async function that makes the call under test once. setup: awaited before each call, never
    cancelled. The other arguments, and the errors, are those of `cancel_sweep`; the clock is the run's own.

    A thing that stays open stays broken, too: unless `setup` renews it, the sweep ends at the first moment
    after which `check` complains, because what comes later would be blamed on the wrong moments.
    """
    _check_clock()
    sweep = _Sweep(seed, max_points, one_world=setup is None)
    with _quick_gc():
        for point in sweep.points():
            with seeded(seed):
                if setup is not None:
                    await setup()
                sweep.record(await _attempt(make_call, point, check))
    return sweep.report()


# ---- which moments, and what came of them ---------------------------------------------------


@attrs.frozen
class _Attempted:
    """One run, cancelled or not."""

    moments: int
    reached: bool
    moment: str
    cuts: tuple[str, ...]
    problems: tuple[str, ...]
    sound: bool


@attrs.define
class _Sweep:
    """The plan of a sweep and its tally. Knows nothing of Trio, so that both front doors share it."""

    _seed: int
    _max_points: int | None
    _one_world: bool = attrs.field(default=False, alias="one_world")
    _moments: int = attrs.field(default=0, init=False)
    _tried: list[_Attempted] = attrs.field(factory=list, init=False)
    _findings: list[SweepFinding] = attrs.field(factory=list, init=False)
    _untried: int = attrs.field(default=0, init=False)
    _point: int = attrs.field(default=0, init=False)

    def points(self) -> Iterator[int | None]:
        """None for a run that is not cancelled, else the moment to cancel at."""
        yield None  # warms caches and worker threads up
        self._tried.clear()
        self._findings.clear()
        yield None  # this one counts
        if self._findings:
            return
        self._moments = self._tried.pop().moments
        chosen = _spread(self._moments, self._max_points)
        for number, self._point in enumerate(chosen, 1):
            yield self._point
            if self._one_world and not self._tried[-1].sound:
                self._untried = len(chosen) - number
                return

    def record(self, run: _Attempted) -> None:
        self._tried.append(run)
        if run.problems:
            self._findings.append(SweepFinding(self._point, run.moment, run.cuts, run.problems))

    def report(self) -> SweepReport:
        if self._findings:
            raise SweepFailure(self._complaint(), tuple(self._findings))
        return SweepReport(
            moments=self._moments,
            points=len(self._tried),
            delivered=sum(bool(run.cuts) for run in self._tried),
            missed=sum(not run.reached for run in self._tried),
            places=tuple(sorted({cut for run in self._tried for cut in run.cuts})),
        )

    def _complaint(self) -> str:
        if self._moments:
            head = f"harm at {len(self._findings)} of {len(self._tried)} points of cancellation (seed {self._seed})"
        else:
            head = f"harm without any cancellation (seed {self._seed})"
        lines = [head, *map(str, self._findings)]
        if self._untried:
            lines.append(f"{self._untried} later points were not tried: what stays open is no longer sound")
        return "\n    ".join(lines)


def _spread(moments: int, most: int | None) -> list[int]:
    """`most` of the numbers 1..moments, the first and the last among them, evenly apart."""
    if most is None or moments <= most:
        return list(range(1, moments + 1))
    if most < 1:
        raise ValueError(f"max_points must be at least 1, not {most}")
    return sorted({1 + round(i * (moments - 1) / max(most - 1, 1)) for i in range(most)})


# ---- one run --------------------------------------------------------------------------------


async def _attempt(
    call: Callable[[], Awaitable[object]], point: int | None, check: Callable[[], object] | None
) -> _Attempted:
    """Make the call once, cancelled at moment `point`; then look around."""
    before = take_census()
    with heard_warnings() as warned, seen_generators() as generators:
        canceller = _Canceller(point)
        error = await canceller.run(call)
        if error is not None and point is None:
            raise error
        problems = canceller.problems(error)
        error = None  # its traceback holds the call's locals, and so what they should not keep alive
        for _ in range(_LOOKS):
            if not growth(before, take_census()):
                break
            await trio.sleep(_SETTLE / _LOOKS)
        problems += [f"leaked: {label}" for label in unclosed(generators)]
        gc.collect()  # what was dropped in a cycle warns now
        problems += [f"leaked: {label}" for label in settled_growth(before, _GRACE)]
    problems += warned
    complaint = await _complaint_of(check)
    problems += complaint
    return _Attempted(
        moments=canceller.moments,
        reached=canceller.moment is not None,
        moment=canceller.moment or "not cancelled",
        cuts=tuple(canceller.cuts),
        problems=tuple(problems),
        sound=not complaint,
    )


class _Canceller(trio.abc.Instrument):
    """Counts moments, cancels the call at the chosen one, sees where Cancelled arrives, and ends what hangs."""

    def __init__(self, point: int | None) -> None:
        self.moments = 0
        self.moment: str | None = None  # told, once it has come
        self.cuts: list[str] = []  # where Cancelled arrived
        self._point = point
        self._stuck: list[str] = []
        self._scope = trio.CancelScope()
        self._cancelled = trio.Event()
        self._ended = trio.Event()
        self._deliveries: Counter[trio.lowlevel.Task] = Counter()
        self._not_counted: set[trio.lowlevel.Task | None] = set()
        self._error: Exception | None = None

    async def run(self, call: Callable[[], Awaitable[object]]) -> Exception | None:
        """Make the call in a task of its own; its exception, unless that is Cancelled."""
        root = trio.lowlevel.current_root_task()
        self._not_counted = {root, trio.lowlevel.current_task()}
        # Trio's own tasks, and the host's first one, are the root's children. They are the stage, not the play.
        self._not_counted |= {task for task in living_tasks() if _parent(task) is root}
        with unwrapped():
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch)
                with self._installed():
                    nursery.start_soon(self._call, call, name=getattr(call, "func", call))
                    await self._ended.wait()
                nursery.cancel_scope.cancel()
        error, self._error = self._error, None  # handed over: see `_attempt`
        return error

    @contextlib.contextmanager
    def _installed(self) -> Iterator[None]:
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            try:
                trio.lowlevel.remove_instrument(self)
            except KeyError:
                # Trio throws an instrument out when it raises. Without it nothing was cancelled, so a sweep
                # that went on would pass everything.
                raise InternalError("the sweep's instrument failed; Trio has logged the traceback") from None

    async def _call(self, call: Callable[[], Awaitable[object]]) -> None:
        try:
            with self._scope:
                await call()
        except Exception as error:
            self._error = error
        self._ended.set()

    def problems(self, error: Exception | None) -> list[str]:
        found = list(self._stuck)
        if error is not None:
            instead = " instead of Cancelled" if self.cuts else ""
            found += [f"raised{instead}: {told}" for told in _leaves(error)]
        elif self.cuts and not self._scope.cancelled_caught and not self._stuck:
            found.append("swallowed Cancelled: the call returned as if nothing had happened")
        return found

    # -- the instrument --

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        # Cancelled has arrived if the task is about to be resumed with it. There is no public way to see
        # that; without it, a Cancelled that was swallowed looks like one that came too late.
        arriving = getattr(task._next_send, "error", None)
        if isinstance(arriving, trio.Cancelled) and arriving.reason == _REASON:
            self._deliveries[task] += 1
            if self._deliveries[task] == 1:
                self.cuts.append(f"task {task.name!r} {task_place(task)}")
            if self._deliveries[task] > _TOO_MANY:
                self._give_up_on(task)
        self._count(task, "before")

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._count(task, "after")

    def _count(self, task: trio.lowlevel.Task, side: str) -> None:
        if task in self._not_counted:
            return
        self.moments += 1
        if self.moments == self._point:
            self.moment = f"cancelled {side} a step of task {task.name!r} {task_place(task)}"
            self._scope.cancel(reason=_REASON)
            self._cancelled.set()

    # -- calls that do not end --

    async def _watch(self, task_status: trio.TaskStatus[None]) -> None:
        self._not_counted.add(trio.lowlevel.current_task())
        task_status.started()
        await self._cancelled.wait()
        await trio.sleep(_PATIENCE)
        inside = list(_subtree(self._scope._cancel_status))
        for status in inside:
            for task in status.tasks:
                self._stuck.append(f"did not end: task {task.name!r} still waits {task_place(task)}")
        # A shield is all that can hold a cancelled task back for so long. Without it the sweep can go on.
        for status in inside:
            status._scope.shield = False

    def _give_up_on(self, task: trio.lowlevel.Task) -> None:
        """Leave a task where it is: one that catches every Cancelled, in a loop, would never let Trio end."""
        self._stuck.append(f"did not end: task {task.name!r} catches Cancelled again and again {task_place(task)}")
        task._next_send_fn = _finished
        # It must outlive the interpreter: when it is closed, its loop catches the GeneratorExit too, for ever.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(task.coro))
        self._ended.set()


def _finished(_: object) -> None:
    raise StopIteration


def _subtree(status: Any) -> Iterator[Any]:
    """A cancel status and all below it. Private to Trio, but the only way to see who sits in a scope."""
    if status is not None:
        yield status
        for child in status.children:
            yield from _subtree(child)


def _parent(task: trio.lowlevel.Task) -> trio.lowlevel.Task | None:
    return None if task.parent_nursery is None else task.parent_nursery.parent_task


# ---- looking around -------------------------------------------------------------------------


async def _complaint_of(check: Callable[[], object] | None) -> list[str]:
    if check is None:
        return []
    try:
        with trio.move_on_after(_PATIENCE) as limit:
            result = check()
            if inspect.isawaitable(result):
                await result
    except Exception as error:
        return [f"check: {told}" for told in _leaves(error)]
    return [f"check: did not end within {_PATIENCE:g} s"] if limit.cancelled_caught else []


def _leaves(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [told for member in error.exceptions for told in _leaves(member)]
    return [f"{type(error).__name__}: {error}" if str(error) else type(error).__name__]


@contextlib.contextmanager
def _quick_gc() -> Iterator[None]:
    """A collection after each run must not walk the whole program: set aside all that is older than the sweep."""
    _check_trio()
    gc.collect()
    mine = gc.get_freeze_count() == 0
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


def _check_clock() -> None:
    clock = trio.lowlevel.current_clock()
    if isinstance(clock, MockClock) and clock.rate == 0 and math.isinf(clock.autojump_threshold):
        raise ValueError("sweep_calls waits for time to pass, but this MockClock stands still: let it autojump")


def _check_trio() -> None:
    needed = {"_next_send": trio.lowlevel.Task, "_next_send_fn": trio.lowlevel.Task, "_cancel_status": trio.CancelScope}
    missing = [name for name, owner in needed.items() if not hasattr(owner, name)]
    if missing:
        raise InternalError(f"this Trio has no {', '.join(missing)}, by which a sweep sees Cancelled arrive")
