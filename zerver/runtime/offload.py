"""Offloaded steps: called in a thread or a process, while the loop serves others.

Law: a step is a function, so it may run anywhere, and be dropped anywhere. Cut short, its thread computes on for nobody
and keeps its place among the threads until it has ended; its process is killed. What it raises is its own defect, and
so is what cannot go to another process or come back from it: that is said by name, since no traceback of pickle's says
which argument it was.

Under a mock clock it is called in place: a clock that jumps whenever the loop is idle would jump over every thread, and
a test would find another result each time. Precedent for doing so: Celery's `task_always_eager`.
"""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import signature
from typing import Any, Final

import trio

from zerver.core.calls import Call
from zerver.core.check import steps_of
from zerver.core.effects import Failure, Outcome, Success
from zerver.core.offload import Answered, OffloadKind, Raised
from zerver.core.stages import Stage
from zerver.core.steps import Step
from zerver.errors import DefinitionError, EffectTimeout
from zerver.runtime.live import Run

_CORES: Final = os.cpu_count() or 1

# Of their own, per Trio run as Trio's default limiter is: steps that compute must not take the threads of those that
# only wait for a disk. One more thread than cores, for what waits a little all the same.
_threads: Final[trio.lowlevel.RunVar[trio.CapacityLimiter]] = trio.lowlevel.RunVar("zerver offload threads")
_processes: Final[trio.lowlevel.RunVar[trio.CapacityLimiter]] = trio.lowlevel.RunVar("zerver offload processes")


async def perform_offloaded(run: Run, call: Call) -> Outcome[Any]:
    """Call the step's function elsewhere. Failure only when a nested flow's deadline passes meanwhile."""
    kind = call.effect.kind
    if not isinstance(kind, OffloadKind):
        raise TypeError(f"{call!r} is not offloaded")
    if call.until_ns is None:
        return Success(await _answer(kind.step, call))
    with trio.CancelScope(relative_deadline=max(0.0, (call.until_ns - run.clock()) / 1e9)):
        return Success(await _answer(kind.step, call))
    return Failure(EffectTimeout(kind.name, "the nested flow's deadline has passed"))


async def _answer(step: Step[..., Any], call: Call) -> Answered | Raised:
    args, kwargs = call.effect.args, call.effect.kwargs
    try:
        if type(trio.lowlevel.current_clock()).__name__ != "SystemClock":
            await trio.lowlevel.checkpoint()
            return Answered(step.function(*args, **kwargs))
        if step.offload == "thread":
            return Answered(await _in_thread(partial(step.function, *args, **kwargs)))
        return Answered(await _in_process(step, args, kwargs))
    except Exception as error:  # also what cannot be pickled, and a process that died: the step's defect
        return Raised(error)


async def _in_thread(work: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=_limiter(_threads, _CORES + 1))


async def _in_process(step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    parallel: Any = importlib.import_module("trio_parallel")  # an extra, imported for its users only
    function = step.function
    try:
        sent = pickle.dumps((args, dict(kwargs)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise _unpicklable(
            f"what step {step.name!r} reads as {_culprit(function, args, kwargs)} cannot go to another process", error
        ) from error
    try:
        sent_back = await parallel.run_sync(
            _call,
            step.name,
            function.__module__,
            function.__qualname__,
            sent,
            kill_on_cancel=True,
            limiter=_limiter(_processes, _CORES),
        )
    except parallel.BrokenWorkerError as broken:
        status = next((one.exitcode for one in broken.args if hasattr(one, "exitcode")), None)
        raise ChildProcessError(f"the process of step {step.name!r} died, with exit code {status}") from broken
    return pickle.loads(sent_back)


def _culprit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Which argument cannot be pickled."""
    for name, value in signature(function).bind(*args, **kwargs).arguments.items():
        try:
            pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        except Exception:
            return repr(name)
    return "its arguments"


def _unpicklable(problem: str, error: Exception) -> DefinitionError:
    return DefinitionError(f"{problem}: {error}", 'let it be plain data, or use offload="thread"')


def _limiter(var: trio.lowlevel.RunVar[trio.CapacityLimiter], tokens: int) -> trio.CapacityLimiter:
    try:
        return var.get()
    except LookupError:
        limiter = trio.CapacityLimiter(tokens)
        var.set(limiter)
        return limiter


# ---- in the other process -------------------------------------------------------------------


def _call(step: str, module: str, name: str, sent: bytes) -> bytes:
    """Call a step by its name: pickle cannot send the function, since under that name its module has the step.

    What goes both ways is pickled here and not by trio-parallel, which could not tell a step's TypeError from pickle's.
    """
    args, kwargs = pickle.loads(sent)
    try:
        value = _found(module, name)(*args, **kwargs)
    except SystemExit as left:  # it ends this process, and not the one that serves
        raise RuntimeError(f"step {step!r} has left its process by SystemExit: {left}") from left
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise _unpicklable(
            f"what step {step!r} returns, a {type(value).__name__}, cannot come back from its process", error
        ) from None


def _found(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found.function if isinstance(found, Step) else found


# ---- when an app is opened ------------------------------------------------------------------


def check_offloads(stages: Iterable[Stage]) -> None:
    """Raise DefinitionError for a step that no other process could run."""
    for step in steps_of(tuple(stages)):
        if step.offload != "process":
            continue
        try:
            importlib.import_module("trio_parallel")  # now, rather than in the first run that needs it
        except ImportError as missing:
            raise DefinitionError(
                f'step {step.name!r} has offload="process", and trio-parallel is not installed',
                'install "zerver[process]", or use offload="thread"',
            ) from missing
        function = step.function
        try:
            found = _found(function.__module__, function.__qualname__)
        except (ImportError, AttributeError):
            found = None
        if found is not function:
            raise DefinitionError(
                f"step {step.name!r} is not found as {function.__module__}.{function.__qualname__}, "
                "where another process would look for it",
                "let the module have it under the name of its function",
            )
