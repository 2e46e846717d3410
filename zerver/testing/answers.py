"""Answers: what a test says that an effect comes to, instead of performing it.

Law: one vocabulary for both kits, `play` and `scripted`. An answer is

    a value                       the effect gave it
    an exception                  the effect's handler raised it
    an Outcome                    the effect came to that
    a function of its arguments   called with what the handler would get; its result is an answer again
    script([...])                 one answer after the other

and an effect that nobody has an answer for is an error that names its kind and the cure, never a silent None.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs

from zerver.core.effects import EffectKind
from zerver.errors import Rejected

_NOTHING: Final[Any] = object()


class Unscripted(Rejected, AssertionError):
    """An effect was asked for that the test has no answer to; the message names its kind and the cure.

    It is a Rejected too, so that a runtime does not try again what cannot be answered.
    """


@attrs.frozen
class Script:
    """Successive answers; made by `script`. It keeps no place, so one script may serve many tests."""

    answers: tuple[object, ...]
    then: object = _NOTHING

    def at(self, number: int, label: str) -> object:
        """The answer to call `number`, from 0. Raises Unscripted behind the last one."""
        if number < len(self.answers):
            return self.answers[number]
        if self.then is _NOTHING:
            raise Unscripted(
                f"{label}: its script has {len(self.answers)} answers, and this is call {number + 1}\n"
                "  add an answer, or say what comes after the last one: script([...], then=...)"
            )
        return self.then


def script(answers: Iterable[object], *, then: object = _NOTHING) -> Script:
    """One answer for each call, in order. then: the answer to every later call; without it, that call is an error."""
    return Script(tuple(answers), then)


class Source:
    """Where the answers to one kind come from: an answer, and how often it was asked for."""

    __slots__ = ("_answer", "_count", "_label")

    def __init__(self, answer: object, label: str) -> None:
        if isinstance(answer, type) and issubclass(answer, BaseException):
            raise TypeError(
                f"{label} is answered with the class {answer.__name__}: give an exception, made with its text"
            )
        self._answer = answer
        self._label = label
        self._count = 0

    def next(self) -> object:
        """The next answer. Raises Unscripted when a script is used up."""
        number, self._count = self._count, self._count + 1
        return self._answer.at(number, self._label) if isinstance(self._answer, Script) else self._answer


class Sources:
    """Answers by kind."""

    def __init__(self, effects: Mapping[Any, object]) -> None:
        self._sources: dict[str, Source] = {
            name: Source(answer, f"effect {name!r}") for name, answer in by_name(effects).items()
        }

    def next(self, kind: EffectKind[..., Any]) -> object:
        """The next answer to a kind. Raises Unscripted when there is none."""
        source = self._sources.get(kind.name)
        if source is None:
            known = ", ".join(self._sources) or "none"
            raise Unscripted(
                f"effect {kind.name!r} was asked for, but it has no answer; answered kinds: {known}\n"
                f"  add one: effects={{{kind.name!r}: ...}}"
            )
        return source.next()


def by_name(effects: Mapping[Any, object]) -> dict[str, object]:
    """The same mapping by the names of kinds. Raises TypeError for what is no kind, or for one kind given twice."""
    named: dict[str, object] = {}
    for kind, answer in effects.items():
        name = kind_name(kind)
        if name in named:
            raise TypeError(f"effect {name!r} is answered twice: give one function, which looks at its arguments")
        named[name] = answer
    return named


def kind_name(kind: object) -> str:
    """The name of a kind given as a kind, as a constructor of built-in effects (`sql.fetch_one`), or as its name."""
    found = getattr(kind, "__zerver_kind__", kind)
    if isinstance(found, EffectKind):
        return found.name
    if isinstance(found, str):
        return found
    raise TypeError(
        f"{kind!r} is no kind of effect: give an @effect, a constructor like sql.fetch_one, or a kind's name"
    )


def is_function(answer: object) -> bool:
    """Whether an answer is a function of the effect's arguments, and not a value."""
    return callable(answer) and not isinstance(answer, type)


def called(
    function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object], kind: str
) -> object:
    """What a plain function answers. Raises TypeError, naming the kind, when it does not take these arguments."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except ValueError:
        pass  # a builtin that does not tell its parameters
    except TypeError as error:
        shown = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        raise TypeError(f"the function that answers {kind!r} does not take ({shown}): {error}") from None
    return function(*args, **kwargs)
