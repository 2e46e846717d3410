"""Changed code: one step of a compiled plan made to do otherwise, in every way in which a step can."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Generator
from typing import Any

import attrs

from tests.core.strategies import READ
from zerver import Continue, Done, Fail, Insert, Need, Pause, Replace
from zerver.core.effects import Effect
from zerver.core.plan import StepNode

Change = Callable[[Any], Any]


def mutate(node: StepNode, how: str) -> None:
    """Change what a step does. Its plan must be nobody else's."""
    MUTANTS[how](node, node.call)


def other(answer: Any) -> Any:
    """Another answer of the same kind; the same one where there is no other."""
    if isinstance(answer, str):
        return answer + "!"
    if isinstance(answer, tuple):
        return tuple(map(other, answer))
    if isinstance(answer, Continue):
        return Continue(other(answer.value))
    if isinstance(answer, Done):
        return Done([answer.value, "!"])
    if isinstance(answer, Fail):
        return Fail.not_found(answer.what)
    if isinstance(answer, Pause):
        return attrs.evolve(answer, signal=answer.signal + "!")
    if isinstance(answer, Need):
        return attrs.evolve(answer, effect=READ("other"))
    if isinstance(answer, Insert | Replace):
        return Continue(other(answer.value))
    return answer


def _value(node: StepNode, call: Change) -> None:
    def sync(cells: Any) -> Any:
        return other(call(cells))

    async def waiting(cells: Any) -> Any:
        return other(await call(cells))

    node.call = waiting if node.is_async else sync


def _decision(node: StepNode, call: Change) -> None:
    node.is_async = False
    node.call = lambda cells: Fail.gone("mutant")


def _defect(node: StepNode, call: Change) -> None:
    def crash(cells: Any) -> Any:
        raise KeyError("mutant")

    node.is_async = False
    node.call = crash


def _late_defect(node: StepNode, call: Change) -> None:
    async def crash(cells: Any) -> Any:
        answer = call(cells)
        if inspect.isawaitable(answer):
            await answer
        raise KeyError("mutant")

    node.is_async = True
    node.call = crash


def _more_first(node: StepNode, call: Change) -> None:
    async def more(cells: Any) -> Any:
        await READ("more")
        answer = call(cells)
        return await answer if inspect.isawaitable(answer) else answer

    node.is_async = True
    node.call = more


def _more_last(node: StepNode, call: Change) -> None:
    async def more(cells: Any) -> Any:
        answer = call(cells)
        answer = await answer if inspect.isawaitable(answer) else answer
        await READ("more")
        return answer

    node.is_async = True
    node.call = more


def _arguments(node: StepNode, call: Change) -> None:
    if node.is_async:
        node.call = lambda cells: _driven(call(cells), _with_argument)


def _missing(node: StepNode, call: Change) -> None:
    if node.is_async:
        node.call = lambda cells: _driven(call(cells), lambda effect: None)


async def _driven(coroutine: Any, change: Callable[[Effect[Any]], Effect[Any] | None]) -> Any:
    return await _drive(coroutine, change)


@types.coroutine
def _drive(coroutine: Any, change: Callable[[Effect[Any]], Effect[Any] | None]) -> Generator[Effect[Any], Any, Any]:
    """See a step through, with its first effect changed, or left out (None)."""
    value: Any = None
    error: BaseException | None = None
    first = True
    try:
        while True:
            asked = coroutine.send(value) if error is None else coroutine.throw(error)
            value, error = None, None
            mine = change(asked) if first else asked
            first = False
            if mine is None:
                value = "made up"
                continue
            try:
                value = yield mine
            except Exception as raised:
                error = raised
    except StopIteration as stop:
        return stop.value
    finally:
        coroutine.close()


def _with_argument(effect: Effect[Any]) -> Effect[Any]:
    kwargs = {**effect.kwargs, "changed": 1}
    return type(effect)(effect.kind, effect.args, kwargs, effect.policy, effect.compensation, effect.form)


MUTANTS: dict[str, Callable[[StepNode, Change], None]] = {
    "value": _value,
    "decision": _decision,
    "defect": _defect,
    "late defect": _late_defect,
    "more first": _more_first,
    "more last": _more_last,
    "arguments": _arguments,
    "missing": _missing,
}
