"""Play a step without an event loop, with scripted effects.

Law: what the runtime would hand to the step is what the step gets, and nothing is performed. An answer is what the
effect came to in the end: retries, hedges and the resolving of doubt lie behind it. Joins follow their own rules
(`zerver.core.joins`), with all members answered at once, in the order of the arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import CoroutineType, FrameType, MappingProxyType
from typing import Any, Final, Generic, TypeVar, overload

import attrs

from zerver.core.decisions import DECISIONS, Continue, Insert, Need, Replace
from zerver.core.effects import (
    Cancelled,
    Effect,
    EffectKind,
    Failure,
    IdempotencyKey,
    Outcome,
    Success,
    Unknown,
    deliver,
)
from zerver.core.joins import Join, JoinState
from zerver.core.steps import Step
from zerver.errors import EffectError, ImpureStepError, InternalError, OutcomeUnknown
from zerver.runtime.judge import judge
from zerver.testing.answers import Sources, called, is_function

T = TypeVar("T")

_NO_EFFECTS: Final[Mapping[Any, object]] = MappingProxyType({})

#: Event loops, by package: an error out of one of them means that the step wanted a loop.
_LOOPS: Final = frozenset({"trio", "asyncio", "anyio", "sniffio"})


@attrs.frozen
class Played(Generic[T]):
    """What a step did.

    asked: every effect it asked for, in order; the members of a join follow the join. error: what it raised, if
    it did: an EffectError that it did not catch, or a defect.
    """

    asked: tuple[Effect[Any], ...]
    error: Exception | None
    _answer: Any = None

    @property
    def answer(self) -> T:
        """What the step returned: a value or a decision. Raises `error` if there is one."""
        if self.error is not None:
            raise self.error
        answer: T = self._answer
        return answer

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of `asked`, by name."""
        return tuple(effect.kind.name for effect in self.asked)


@overload
def play(
    step: Callable[..., Coroutine[Any, Any, T]],
    /,
    *args: object,
    effects: Mapping[Any, object] = ...,
    **kwargs: object,
) -> Played[T]: ...
@overload
def play(
    step: Callable[..., T], /, *args: object, effects: Mapping[Any, object] = ..., **kwargs: object
) -> Played[T]: ...
def play(
    step: Callable[..., Any], /, *args: object, effects: Mapping[Any, object] = _NO_EFFECTS, **kwargs: object
) -> Played[Any]:
    """Call a step with these arguments and see it through; `Need` decisions are followed to their end.

    step: a step, or a plain function like the `resume` of a Pause. effects: from a kind (an @effect, a constructor
    like `sql.fetch_one`, or a kind's name) to its answer; see `zerver.testing.answers`. An EffectError is raised
    as it is; any other exception is judged as the runtime would, and reaches the step as an EffectError.

    Raises Unscripted for an effect without an answer, and ImpureStepError, which names the line, when the step
    awaits something that is not an effect.
    """
    play = _Play(step, Sources(effects))
    try:
        answer = play.follow(partial(step, *args, **kwargs))
    except _Raised as raised:
        return Played(tuple(play.asked), raised.error)
    wrong = _misfit(step, answer)
    return Played(tuple(play.asked), wrong, answer)


class _Raised(Exception):
    """The step raised `error`. Wrapped, so that a slip of the test never looks like an error of the step."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _Play:
    """One step being played."""

    def __init__(self, step: Callable[..., Any], sources: Sources) -> None:
        self.asked: list[Effect[Any]] = []
        self._name = str(getattr(step, "name", None) or getattr(step, "__name__", step))
        self._sources = sources

    def follow(self, call: Callable[[], Any]) -> Any:
        """From the call of a step to its last word."""
        answer = self._step(call)
        while True:
            if isinstance(answer, CoroutineType):
                answer = self._walk(answer)
            elif isinstance(answer, Need):
                value, error = self._given(answer.effect)
                if error is not None:
                    raise _Raised(error)
                answer = self._step(answer.resume, value)
            else:
                return answer

    def _walk(self, coroutine: CoroutineType[Any, Any, Any]) -> Any:
        value: object = None
        error: EffectError | None = None
        try:
            while True:
                asked = self._step(coroutine.send, value) if error is None else self._step(coroutine.throw, error)
                if not isinstance(asked, Effect):
                    raise self._impure(*_waits_at(coroutine))
                value, error = self._given(asked)
        except StopIteration as stop:
            return stop.value
        finally:
            try:
                coroutine.close()
            except RuntimeError:  # its cleanup awaits; there is nobody left to perform that
                pass

    def _step(self, function: Callable[..., Any], *args: object) -> Any:
        """Run code of the step."""
        try:
            return function(*args)
        except StopIteration:
            raise
        except Exception as error:
            self._refuse_loop(error)
            raise _Raised(error) from error

    def _given(self, effect: Effect[Any]) -> tuple[object, EffectError | None]:
        return deliver(effect, self._performed(effect))

    def _performed(self, effect: Effect[Any]) -> Outcome[Any]:
        self.asked.append(effect)
        if not isinstance(effect, Join):
            return self._outcome(effect)
        state = JoinState(effect)
        verdict = state.begin()
        for number in verdict.start:
            if verdict.outcome is None:
                verdict = state.arrived(number, self._performed(effect.members[number]))
            else:  # it was asked for at once with the others, and cancelled before it was done
                self.asked.append(effect.members[number])
        if verdict.outcome is None:
            raise InternalError(f"{effect!r} is undecided although all of its members have arrived")
        return verdict.outcome

    def _outcome(self, effect: Effect[Any]) -> Outcome[Any]:
        kind = effect.kind
        answer = self._sources.next(kind)
        if is_function(answer):
            if inspect.iscoroutinefunction(answer):
                raise TypeError(f"the function that answers {kind.name!r} is async, but there is no event loop")
            answer = _call(answer, effect)
        if isinstance(answer, Success | Failure | Unknown | Cancelled):
            return answer
        if not isinstance(answer, BaseException):
            return Success(answer)
        if not isinstance(answer, Exception):
            raise answer
        return _failed(kind, answer)

    def _impure(self, file: str, line: int) -> ImpureStepError:
        return ImpureStepError(
            f"step {self._name!r} awaited something that is not an effect, at {file}:{line}\n"
            "  make an effect of it with @effect, and await that"
        )

    def _refuse_loop(self, error: Exception) -> None:
        """Without a loop `await trio.sleep(1)` raises at once; with one, it would yield something that is no effect."""
        place, at, package = None, error.__traceback__, ""
        while at is not None:
            package = _package(at.tb_frame)
            if package not in _LOOPS:
                place = at
            at = at.tb_next
        if place is not None and package in _LOOPS and isinstance(error, RuntimeError):
            raise self._impure(place.tb_frame.f_code.co_filename, place.tb_lineno) from error


def _waits_at(coroutine: CoroutineType[Any, Any, Any]) -> tuple[str, int]:
    """File and line of the user's code that waits: the step's own, or that of a helper it awaits."""
    place = coroutine.cr_code.co_filename, coroutine.cr_code.co_firstlineno
    inner: object = coroutine
    while isinstance(inner, CoroutineType):
        frame = inner.cr_frame
        if frame is None or _package(frame) in _LOOPS:
            break
        place, inner = (frame.f_code.co_filename, frame.f_lineno), inner.cr_await
    return place


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _call(answer: Any, effect: Effect[Any]) -> object:
    """A function's answer. What it raises, the handler has raised; but a TypeError is more likely a slip of the test,
    and a failed assertion is the test's own.
    """
    try:
        return called(answer, effect.args, effect.kwargs, effect.kind.name)
    except (AssertionError, TypeError):
        raise
    except Exception as raised:
        return raised


def _failed(kind: EffectKind[..., Any], raised: Exception) -> Outcome[Any]:
    raised = raised.with_traceback(None)  # one exception may answer many calls
    if isinstance(raised, EffectError):
        doubtful = isinstance(raised, OutcomeUnknown) and kind.access == "write"
        return Unknown(raised, IdempotencyKey("played")) if doubtful else Failure(raised)
    judged = judge(kind, raised)
    return Unknown(judged.error, IdempotencyKey("played")) if judged.doubt else Failure(judged.error)


def _misfit(step: Callable[..., Any], answer: Any) -> TypeError | None:
    """The runtime's complaint about an answer that the step's annotation does not say."""
    if not isinstance(step, Step):
        return None
    written: Any = answer
    if isinstance(answer, Continue | Insert | Replace):
        written = answer.value
    elif answer.__class__ in DECISIONS:
        return None
    shape = step.signature
    if not shape.writes:
        fits = written is None
    elif shape.several:
        fits = isinstance(written, tuple) and len(written) == len(shape.writes)
        fits = fits and all(v is not None or w.none_fits for v, w in zip(written, shape.writes, strict=True))
    else:
        fits = written is not None or shape.writes[0].none_fits
    return None if fits else TypeError(f"step {step.name!r} answered {answer!r}, which its annotation does not say")
