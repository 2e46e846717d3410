"""Signatures: what a function reads and writes, from its annotations alone."""

from __future__ import annotations

from inspect import Parameter
from typing import Annotated, Any, ClassVar

import attrs
import pytest

from zerver import Deadline, Done, Fail, Insert, Part, Pause, Slot
from zerver.core.signatures import DeadlineRead, PartRead, SlotRead, Write, read_predicate, read_signature, slot_of
from zerver.errors import DefinitionError

A = Annotated[str, Slot("a")]
B = Annotated[int, Slot("b")]
Nullable = Annotated[int | None, Slot("n")]


@attrs.frozen
class Header(Part):
    source: ClassVar[str] = "header"


class Request:
    """A part by itself."""

    __zerver_part__ = Part("request")


def of(returns: Any, **parameters: Any) -> Any:
    """The signature of a function with these annotations."""
    space: dict[str, Any] = {}
    exec(f"def made({', '.join(parameters)}): ...", space)
    space["made"].__annotations__ = {**parameters, "return": returns}
    return read_signature("step 'made'", space["made"])


def test_reads() -> None:
    header_alias, bare_alias = Annotated[str | None, Header("x-h")], Annotated[str, Header]
    shape = of(None, a=A, b=B | None, left=Deadline, h=header_alias, bare=bare_alias)
    assert shape.slots == (SlotRead("a", Slot("a"), str, False), SlotRead("b", Slot("b"), int, True))
    assert shape.reads[2] == DeadlineRead("left")
    header, bare = shape.parts
    assert header == PartRead("h", Header("x-h"), str | None, True, Parameter.empty)
    assert (header.name, header.optional, header.required) == ("x-h", True, False)
    assert (bare.name, bare.optional, bare.required) == ("bare", False, True)
    assert shape.wants_deadline
    (request,) = of(None, request=Request).parts
    assert (request.part, request.type) == (Part("request"), Request)


def test_a_part_with_a_default_is_not_required() -> None:
    def made(page: Annotated[int, Part()] = 1) -> None: ...

    made.__annotations__["page"] = Annotated[int, Part()]
    (read,) = read_signature("step 'made'", made).parts
    assert (read.default, read.required) == (1, False)


@pytest.mark.parametrize(
    ("returns", "writes", "several", "ends"),
    [
        (None, (), False, False),
        (A, (Write(Slot("a"), str, False),), False, False),
        (A | None, (Write(Slot("a"), str, True),), False, False),
        (A | Fail, (Write(Slot("a"), str, False),), False, False),
        (tuple[A, B | None], (Write(Slot("a"), str, False), Write(Slot("b"), int, True)), True, False),
        (tuple[A, B] | Fail, (Write(Slot("a"), str, False), Write(Slot("b"), int, False)), True, False),
        (Done, (), False, True),
        (Done | Fail, (), False, True),
        (Done | None, (), False, False),
        (Done | Pause, (), False, False),
        (Insert | None, (), False, False),
        (Nullable, (Write(Slot("n"), int | None, False),), False, False),
    ],
)
def test_writes(returns: Any, writes: tuple[Write, ...], several: bool, ends: bool) -> None:
    shape = of(returns)
    assert (shape.writes, shape.several, shape.ends) == (writes, several, ends)


@pytest.mark.parametrize(
    ("type_", "optional", "fits"),
    [(str, False, False), (str, True, True), (str | None, False, True), (Any, False, True), (object, False, True)],
)
def test_where_none_fits(type_: Any, optional: bool, fits: bool) -> None:
    assert Write(Slot("a"), type_, optional).none_fits == fits


@pytest.mark.parametrize(
    ("returns", "parameters", "words"),
    [
        (None, {"x": str}, "parameter 'x' is neither a slot nor a part of the request"),
        (None, {"x": Annotated[str, Slot]}, "parameter 'x' is neither a slot nor a part of the request"),
        (None, {"x": Annotated[str, "note"]}, "parameter 'x' is neither a slot nor a part of the request"),
        (str, {}, "returns str, which is neither a slot nor a decision"),
        (A | B, {}, "writes one slot or another"),
        (A | tuple[A, B], {}, "writes one slot or another"),
        (tuple[A, str], {}, "returns a tuple with str, which is not a slot"),
        (tuple[A, A], {}, "writes slot 'a' twice"),
        (tuple[A, B] | None, {}, "writes a tuple or None"),
        ("Missing", {}, "an annotation cannot be resolved: name 'Missing' is not defined"),
    ],
)
def test_what_is_refused(returns: Any, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        of(returns, **parameters)
    assert str(caught.value).startswith("step 'made'")
    assert words in str(caught.value)
    assert "\n  " in str(caught.value), "the cure is on the second line"


def test_what_a_parameter_list_may_not_be() -> None:
    def stars(*args: str) -> None: ...
    def bare(a) -> None: ...  # type: ignore[no-untyped-def]  # the test
    def endless(): ...  # type: ignore[no-untyped-def]  # the test
    def default(a: A = "x") -> None: ...

    default.__annotations__["a"] = A
    for function, words in [
        (stars, "takes *args"),
        (bare, "parameter 'a' has no annotation"),
        (endless, "has no return annotation"),
        (default, "parameter 'a' reads slot 'a' and has a default"),
    ]:
        with pytest.raises(DefinitionError) as caught:
            read_signature("step 'made'", function)
        assert words in str(caught.value)


def test_predicates_answer_bool() -> None:
    def good(a: A) -> bool:
        return True

    def text(a: A) -> str:
        return ""

    async def late(a: A) -> bool:
        return True

    assert [read.slot.name for read in read_predicate("predicate 'good'", good).slots] == ["a"]
    for function in (text, late):
        with pytest.raises(DefinitionError, match="must be a plain function that returns bool"):
            read_predicate("predicate", function)


def test_slot_of() -> None:
    assert slot_of(A) == (Slot("a"), str)
    with pytest.raises(DefinitionError, match="names no slot"):
        slot_of(str)
