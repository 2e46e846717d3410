"""Steps are their functions, with a name in the plan."""

from __future__ import annotations

from typing import Annotated

import pytest

from tests.core.strategies import READ
from zerver import Slot, step
from zerver.errors import DefinitionError

A = Annotated[str, Slot("a")]


def test_calling_a_step_calls_its_function() -> None:
    @step
    def double(a: A) -> Annotated[str, Slot("b")]:
        """Twice."""
        return a + a

    assert double("x") == "xx"
    assert double(a="y") == "yy"
    assert (double.name, double.__doc__, double.is_async) == ("double", "Twice.", False)
    assert repr(double) == "<step double>"


def test_names_and_declared_effects() -> None:
    @step(name="look", effects=[READ])
    async def anything() -> None: ...

    assert anything.name == "look"
    assert anything.is_async
    assert [mention.kind for mention in anything.mentions] == [READ]


def test_what_is_no_step() -> None:
    def generator() -> None:  # type: ignore[misc]  # the test
        yield

    async def generators() -> None:  # type: ignore[misc]  # the test
        yield

    for thing, words in [
        (generator, "step 'generator' is a generator"),
        (generators, "step 'generators' is a generator"),
        (3, "@step was put on 3"),
    ]:
        with pytest.raises(DefinitionError, match=words):
            step(thing)  # type: ignore[call-overload]  # the test
    with pytest.raises(DefinitionError, match="has a '#' in it"):
        step(name="a#2")(lambda: None)
