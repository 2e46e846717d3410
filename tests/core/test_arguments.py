"""What an effect is made with is checked when it is made: the same is refused that Python itself would refuse."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver import IdempotencyKey, effect
from zerver.core.arguments import Arguments
from zerver.core.effects import INJECTED
from zerver.errors import DefinitionError


async def plain(a: int, b: int = 2) -> None: ...
async def keyed(a: int, *, note: str, key: IdempotencyKey) -> None: ...
async def filled_by_place(a: int, http: int = INJECTED, b: int = 3) -> None: ...
async def any_number(a: int, *more: int, note: str = "") -> None: ...
async def any_name(a: int, /, **more: int) -> None: ...
async def nothing() -> None: ...


HANDLERS: list[tuple[Callable[..., Any], set[str]]] = [
    *((handler, set()) for handler in (plain, any_number, any_name, nothing)),
    (keyed, {"key"}),
    (filled_by_place, {"http"}),
]


@given(
    st.sampled_from(HANDLERS),
    st.integers(0, 4),
    st.lists(st.sampled_from(["a", "b", "note", "key", "http", "other"]), unique=True, max_size=4),
)
def test_what_fits_is_what_python_takes(
    handler: tuple[Callable[..., Any], set[str]], given: int, names: list[str]
) -> None:
    function, filled = handler
    args, kwargs = (1,) * given, dict.fromkeys(names, 1)
    try:
        inspect.signature(function).bind(*args, **kwargs, **dict.fromkeys(filled, 1))
        fits = True
    except TypeError:  # also for a name that is given twice to `**`
        fits = False
    takes = Arguments(function, filled)
    if fits:
        takes.check("pay.charge", given, names)
        assert (given, *names) in takes.known
    else:
        with pytest.raises(DefinitionError, match=r"effect 'pay.charge'"):
            takes.check("pay.charge", given, names)
        assert not takes.known


@effect(kind="pay.charge", access="write")
async def pay(cents: int, *, note: str = "", key: IdempotencyKey) -> int:
    return cents


@effect(kind="pay.find", access="read")
async def look_up(key: IdempotencyKey) -> int:
    return 1


def test_the_cure_names_the_parameter() -> None:
    charge: Any = pay  # a type checker would refuse all of this
    find: Any = look_up
    wrong: list[tuple[Callable[[], Any], str]] = [
        (partial(charge), "effect 'pay.charge': 'cents' is missing\n  give 'cents'"),
        (partial(charge, 1, nota=""), "its handler takes no 'nota'\n  what it takes by name: note"),
        (partial(charge, 1, 2), "2 arguments were given, and its handler takes 1 by their place\n  these are: cents"),
        (partial(charge, 1, cents=2), "'cents' was given twice"),
        (partial(charge, 1, key="k"), "'key' was given, and is filled in by the runtime\n  leave 'key' out"),
        (partial(find), r"'key' is missing\n  give 'key', or let the runtime fill it in: `\*, key: …` in its handler"),
    ]
    for make, said in wrong:
        with pytest.raises(DefinitionError, match=said):
            make()
    assert charge(5, note="x").args == (5,)
