"""Steps: pure functions from slots to a decision.

Law: a step is its function. Calling it in a test calls that function with nothing in between; everything else a Step
knows (what it reads, writes, may ask for, where it runs) is read once, and never changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar, get_args, overload

from zerver.core.discover import Mention, mentions
from zerver.core.effects import EffectKind
from zerver.core.signatures import Signature, read_signature
from zerver.errors import DefinitionError

P = ParamSpec("P")
R = TypeVar("R")

#: Where a plain step runs instead of on the loop.
Offload: TypeAlias = Literal["thread", "process"]


class Step(Generic[P, R]):
    """A function with a name in the plan. Made by `@step`; call it to call the function."""

    __slots__ = ("__dict__", "__weakref__", "_declared", "_mentions", "function", "name", "offload", "signature")

    def __init__(
        self,
        function: Callable[P, R],
        name: str,
        effects: tuple[EffectKind[..., Any], ...],
        offload: Offload | None = None,
    ) -> None:
        self.function = function
        self.name = name
        self.offload: Offload | None = offload
        self.signature: Signature = read_signature(f"step {name!r}", function)
        self._declared = effects
        self._mentions: tuple[Mention, ...] | None = None
        self.__doc__ = function.__doc__
        self.__name__ = name
        self.__wrapped__ = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    @property
    def is_async(self) -> bool:
        """Whether it awaits effects."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def mentions(self) -> tuple[Mention, ...]:
        """The effects its code can ask for, and those it declares."""
        if self._mentions is None:
            self._mentions = (*map(Mention, self._declared), *mentions(self.function))
        return self._mentions

    def __repr__(self) -> str:
        return f"<step {self.name}>"


@overload
def step(function: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *, name: str | None = None, effects: Iterable[EffectKind[..., Any]] = (), offload: Offload | None = None
) -> Callable[[Callable[P, R]], Step[P, R]]: ...
def step(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    effects: Iterable[EffectKind[..., Any]] = (),
    offload: Offload | None = None,
) -> Step[P, R] | Callable[[Callable[P, R]], Step[P, R]]:
    """Make a step of a plain or async function: its parameters are what it reads, its return annotation what it writes.

    name: how it is called in plans and timelines; the function's name by default. effects: kinds that its code picks
    dynamically, so that reading it cannot find them.
    offload: where a plain step runs that computes for longer than its class may hold the loop (3, 10 or 20 ms).
    "thread": for what releases the GIL, as compression, hashing and numpy do; other code makes the loop share its time.
    "process": for any other; what it reads and returns must be picklable, and it must stand at the top of a module. It
    needs trio-parallel, and some 0.1 ms a call. What it reads must not be changed by others while it runs. Cut short, a
    thread computes on for nobody, until it has ended; a process is killed.

    Raises DefinitionError for a parameter or a return annotation that nothing explains.
    """

    def make(function: Callable[P, R]) -> Step[P, R]:
        chosen = getattr(function, "__name__", "") if name is None else name
        if not chosen or not callable(function):
            raise DefinitionError(f"@step was put on {function!r}", "put it on a function, or give it a name=")
        if "#" in chosen:
            raise DefinitionError(
                f"step name {chosen!r} has a '#' in it",
                "leave it out: 'name#2' is how a plan calls the second of a name",
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise DefinitionError(
                f"step {chosen!r} is a generator", "return its result; await effects instead of yielding"
            )
        if offload is not None:
            _check_offload(function, chosen, offload)
        return Step(function, chosen, tuple(effects), offload)

    return make if function is None else make(function)


def _check_offload(function: Callable[..., Any], name: str, offload: Offload) -> None:
    if offload not in get_args(Offload):
        raise DefinitionError(
            f"step {name!r}: offload={offload!r} is no place", f"choose one of {', '.join(get_args(Offload))}"
        )
    if inspect.iscoroutinefunction(function):
        raise DefinitionError(
            f"step {name!r} awaits effects, and cannot be offloaded",
            "move what it computes into a plain step of its own, and offload that",
        )
    if offload == "process" and "<locals>" in getattr(function, "__qualname__", ""):
        raise DefinitionError(
            f"step {name!r} is defined inside a function, where no other process finds it",
            'move it to the top of its module, or use offload="thread"',
        )
