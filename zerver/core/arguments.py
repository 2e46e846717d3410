"""Arguments: what an effect may be made with, checked when it is made, at the step's own line.

Law: a handler's signature is read once, when its kind is defined, and each way of calling it is looked at once: so many
arguments by their place, and these by their names. What does not fit is told with the parameter and the cure. Python
itself would say it when the handler is called, in the middle of an attempt, where it looks like trouble of the world's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from inspect import Parameter
from typing import Any, Final, NoReturn

from zerver.errors import DefinitionError

#: With `**names` there is no end of ways to call it.
_MOST_KNOWN: Final = 100

_BY_PLACE: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """What the handler of one kind takes. Parameters that the runtime fills in are none of the caller's business.

    known: ways of calling it that fit, as (how many by place, name, name, …).
    """

    __slots__ = ("_allowed", "_filled", "_first", "_most", "_named", "_required", "_takes_any_name", "known")

    def __init__(self, function: Callable[..., Any], filled: Collection[str]) -> None:
        """filled: the names of those that the runtime fills in."""
        parameters = inspect.signature(function).parameters.values()
        self._filled = frozenset(filled)
        places = [parameter for parameter in parameters if parameter.kind in _BY_PLACE]
        by_place: list[Parameter] = []
        for parameter in places:
            if parameter.name in self._filled:  # what is behind it can be given by its name only
                break
            by_place.append(parameter)
        own = [p for p in parameters if p.name not in self._filled]
        named = [p.name for p in own if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
        first = [parameter.name for parameter in by_place]
        self._named = frozenset(named)
        required = [
            p.name
            for p in own
            if p.default is p.empty and p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        ]
        # By the number of arguments that are given by their place: which names must be there, and which may be.
        self._first = first
        self._required = [frozenset(required) - frozenset(first[:count]) for count in range(len(first) + 1)]
        self._allowed = [frozenset(named) - frozenset(first[:count]) for count in range(len(first) + 1)]
        self._takes_any_name = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in own)
        takes_more = len(by_place) == len(places) and any(p.kind is Parameter.VAR_POSITIONAL for p in own)
        self._most: float = float("inf") if takes_more else len(first)
        self.known: set[tuple[int | str, ...]] = set()

    def check(self, kind: str, given: int, names: Sequence[str]) -> None:
        """Raises DefinitionError for arguments that the handler does not take. given: how many by their place."""
        count = min(given, len(self._first))
        missing = self._required[count].difference(self._named.intersection(names))
        if given > self._most:
            raise DefinitionError(
                f"effect {kind!r}: {given} arguments were given, and its handler takes {count} by their place",
                f"these are: {', '.join(self._first) or 'none'}",
            )
        if missing:
            self._refuse_missing(kind, self._in_order(missing)[0])
        for name in names:
            if name not in self._allowed[count]:
                self._look_at(kind, name, count)
        if len(self.known) < _MOST_KNOWN:
            self.known.add((given, *names))

    def _look_at(self, kind: str, name: str, count: int) -> None:
        if name in self._filled:
            raise DefinitionError(
                f"effect {kind!r}: {name!r} was given, and is filled in by the runtime", f"leave {name!r} out"
            )
        if name in self._named and name in self._first[:count]:
            raise DefinitionError(f"effect {kind!r}: {name!r} was given twice", "give it by its place or by its name")
        if not self._takes_any_name:
            known = ", ".join(self._in_order(self._allowed[count])) or "none"
            raise DefinitionError(f"effect {kind!r}: its handler takes no {name!r}", f"what it takes by name: {known}")

    def _in_order(self, names: Collection[str]) -> list[str]:
        """By place first, as the signature has them."""
        return [*(name for name in self._first if name in names), *sorted(set(names) - set(self._first))]

    def _refuse_missing(self, kind: str, name: str) -> NoReturn:
        cure = f"give {name!r}"
        if name in ("key", "info"):  # what is meant to be filled in must not look like an argument
            cure += f", or let the runtime fill it in: `*, {name}: …` in its handler, behind a star"
        raise DefinitionError(f"effect {kind!r}: {name!r} is missing", cure)
