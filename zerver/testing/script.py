"""Scripted handlers: a whole flow runs in the real runtime, and the world answers as the test says.

Law: a scripted handler stands exactly where a real one would: deadlines, retries, joins, breakers and the rollback are
the runtime's own. Every call is recorded before it is answered. A fault wraps any handler, a real one included, and
faults compose: `slow(0.2)(fails(2, ConnectFailed("down"))(payments.charge))`.

Precedent: the faults of Temporal's own tests, which tell "it failed" from "it was done, but nobody was told"
(`loses_reply`): the second is the one that finds double charges.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import wraps
from inspect import Parameter, Signature
from random import Random
from typing import Any, TypeAlias

import attrs
import trio

from zerver.core.effects import (
    INJECTED,
    CallInfo,
    Cancelled,
    EffectKind,
    Failure,
    Success,
    Unknown,
    injected_parameters,
)
from zerver.errors import ConnectFailed, DefinitionError, OutcomeUnknown, Rejected
from zerver.testing.answers import Script, Source, by_name, called, is_function, kind_name
from zerver.testing.answers import script as script

#: Performs one kind of effect.
Handler: TypeAlias = Callable[..., Awaitable[Any]]

#: From a handler, a kind with a handler of its own, or an answer, to a handler with the fault.
Fault: TypeAlias = Callable[[object], Handler]


# ---- the scripted world ---------------------------------------------------------------------


@attrs.frozen
class ScriptedCall:
    """One attempt at an effect. args, kwargs: the effect's own. key: the same over all attempts of one effect."""

    kind: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    info: CallInfo

    @property
    def key(self) -> str:
        return self.info.key

    @property
    def attempt(self) -> int:
        """1 for the first."""
        return self.info.attempt


class Scripted(Mapping[str, Handler]):
    """Handlers by the names of kinds, and what they were asked. Made by `scripted`.

    calls: in the order in which they began, over all runs.
    """

    def __init__(self, effects: Mapping[Any, object]) -> None:
        self.calls: list[ScriptedCall] = []
        self._handlers = {name: self._recorded(name, answer) for name, answer in by_name(effects).items()}

    def calls_of(self, kind: object) -> list[ScriptedCall]:
        """The calls of one kind: an @effect, a constructor like `sql.fetch_one`, or a kind's name."""
        name = kind_name(kind)
        return [call for call in self.calls if call.kind == name]

    def __getitem__(self, kind: str) -> Handler:
        return self._handlers[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)

    def _recorded(self, kind: str, answer: object) -> Handler:
        handler = as_handler(answer, f"effect {kind!r}")
        needs = _needs_of(handler)

        async def record(*args: object, scripted_call: CallInfo, **kwargs: object) -> object:
            own = {name: value for name, value in kwargs.items() if name not in needs}
            self.calls.append(ScriptedCall(kind, args, own, scripted_call))
            return await handler(*args, **kwargs)

        return _needing(record, {**needs, "scripted_call": CallInfo})


def scripted(effects: Mapping[Any, object]) -> Scripted:
    """Handlers for `open_runtime(app, handlers=...)` and `client(app, handlers=...)`.

    effects: from a kind (an @effect, a constructor like `sql.fetch_one`, or a kind's name) to an answer (see
    `zerver.testing.answers`), to a handler (a coroutine function; what the runtime injects, it gets), or to a kind
    whose own handler is to be used and recorded. An exception is what the handler raised, and the runtime judges it;
    a Failure is a definite no, an Unknown a write in doubt.
    """
    return Scripted(effects)


# ---- faults ---------------------------------------------------------------------------------


def slow(seconds: float, *, times: int | None = None) -> Fault:
    """Wait before performing. times: only the first so many calls; None for all."""

    async def fault(perform: Callable[[], Awaitable[Any]]) -> Any:
        await trio.sleep(seconds)
        return await perform()

    return _first(times, fault)


def fails(times: int, error: Exception) -> Fault:
    """The first `times` calls raise the error, and nothing is performed; later ones go through."""

    async def fault(perform: Callable[[], Awaitable[Any]]) -> Any:
        await trio.lowlevel.checkpoint()
        raise error.with_traceback(None)

    return _first(times, fault)


def hangs(*, times: int | None = None) -> Fault:
    """Never answer, and perform nothing: the request was lost. times: only the first so many calls; None for all."""

    async def fault(perform: Callable[[], Awaitable[Any]]) -> Any:
        await trio.sleep_forever()

    return _first(times, fault)


def loses_reply(*, times: int | None = None) -> Fault:
    """Perform, then never answer: it is done, but nobody is told. times: only the first so many calls; None for all."""

    async def fault(perform: Callable[[], Awaitable[Any]]) -> Any:
        await perform()
        await trio.sleep_forever()

    return _first(times, fault)


def flaky(rate: float, fault: Fault | None = None, *, seed: int = 0) -> Fault:
    """A share of the calls has the fault, the others go through.

    rate: from 0 to 1. fault: ConnectFailed, which a runtime tries again, by default. seed: which calls; the same seed
    is the same calls, in the order in which they are made.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"a rate is between 0 and 1, not {rate}")
    rng = Random(seed)

    def wrap(subject: object) -> Handler:
        sound = as_handler(subject)
        faulty = (fault or fails(2**63, ConnectFailed("flaky, as scripted")))(sound)

        @wraps(sound)
        async def handler(*args: object, **kwargs: object) -> object:
            return await (faulty if rng.random() < rate else sound)(*args, **kwargs)

        return handler

    return wrap


def _first(times: int | None, fault: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]) -> Fault:
    """A fault of the first `times` calls of each handler that it is put on."""

    def wrap(subject: object) -> Handler:
        sound = as_handler(subject)
        left = times

        @wraps(sound)
        async def handler(*args: object, **kwargs: object) -> object:
            nonlocal left
            if left is not None:
                if left <= 0:
                    return await sound(*args, **kwargs)
                left -= 1
            return await fault(lambda: sound(*args, **kwargs))

        return handler

    return wrap


# ---- handlers from answers ------------------------------------------------------------------


def as_handler(subject: object, label: str = "a scripted effect") -> Handler:
    """A handler: the coroutine function itself, a kind's own, or one that gives an answer.

    Raises DefinitionError for a kind whose handler a capability brings.
    """
    if isinstance(subject, EffectKind):
        if subject.handler is None:
            raise DefinitionError(
                f"effect {subject.name!r} has no handler of its own: a capability brings it",
                f"give the capability's: `its_capability.handlers[{subject.name!r}]`",
            )
        return subject.handler
    if inspect.iscoroutinefunction(subject):
        return subject
    source, needs = Source(subject, label), _needs_of(subject)

    async def answer(*args: object, **kwargs: object) -> object:
        await trio.lowlevel.checkpoint()  # as every handler does: before this, it was not performed
        given: Any = source.next()
        if isinstance(given, EffectKind):
            given = as_handler(given)
        if is_function(given):
            wanted = _needs_of(given)
            kept = {name: value for name, value in kwargs.items() if name not in needs or name in wanted}
            given = called(given, args, kept, label)
            if inspect.isawaitable(given):
                given = await given
        return _told(given, label)

    return _needing(answer, needs)


def _told(answer: object, label: str) -> object:
    """An answer in the way in which handlers speak: a value, or an exception."""
    if isinstance(answer, Success):
        return answer.value
    if isinstance(answer, Failure):
        raise Rejected(answer.error.reason) from answer.error
    if isinstance(answer, Unknown):
        raise OutcomeUnknown(answer.error.kind, answer.error.reason, answer.error)
    if isinstance(answer, Cancelled):
        raise TypeError(f"{label} is answered with Cancelled, which is the runtime's to say: use hangs() and a timeout")
    if isinstance(answer, BaseException):
        raise answer.with_traceback(None)
    return answer


def _needs_of(subject: object) -> dict[str, Any]:
    """What the functions in an answer want to be given beside the effect's arguments, as a key or a client."""
    if isinstance(subject, Script):
        return {name: type_ for answer in (*subject.answers, subject.then) for name, type_ in _needs_of(answer).items()}
    if isinstance(subject, EffectKind):
        return dict(subject.injected)
    if not is_function(subject):
        return {}
    try:
        return injected_parameters("a scripted handler", subject)  # type: ignore[arg-type]  # it is callable
    except (TypeError, ValueError):  # a builtin or a partial: it has no annotations, and so no such wish
        return {}


def _needing(handler: Handler, needs: Mapping[str, Any]) -> Handler:
    """The handler with a signature that says what it is to be given: that is where the runtime looks."""
    given = [Parameter(name, Parameter.KEYWORD_ONLY, default=INJECTED, annotation=needs[name]) for name in needs]
    rest = Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD)
    typed: Any = handler
    typed.__signature__ = Signature([rest[0], *given, rest[1]])
    typed.__annotations__ = dict(needs)
    return handler
