"""Proves that a vocabulary knows the classes that code uses, and that recordings become values of them again."""

from __future__ import annotations

import enum
from typing import Annotated

import attrs

from tests.trace import shop
from zerver import App, Flow, Part, Slot, effect, step
from zerver.core.plan import compile_plan
from zerver.effects import http
from zerver.errors import EffectError
from zerver.trace.inert import type_name
from zerver.trace.recording.vocabulary import NO_VOCABULARY, Vocabulary


class Size(enum.Enum):
    SMALL = 1


@attrs.frozen
class Line:
    sku: str
    size: Size


@attrs.frozen
class Order:
    lines: tuple[Line, ...]
    parent: Order | None = None


@attrs.frozen
class Charge:
    cents: int


class SoldOut(Exception):
    """Stands at the top of the module and in no annotation."""


class Body(Part):
    source = "body"


@effect(kind="payments.charge", access="read")
async def charge(order: Order) -> Charge | None:
    raise NotImplementedError


Placed = Annotated[Order, Slot("order")]


@step
async def place(body: Annotated[list[Line], Body()]) -> Placed:
    await charge(Order(()))
    return Order(tuple(body))


FLOW = Flow("place", [place], gives=[Placed])


def test_classes_of_annotations_and_their_fields_are_known() -> None:
    known = Vocabulary.of(FLOW)
    for used in (Order, Line, Size, Charge, SoldOut):
        assert known.find(type_name(used)) is used


def test_plans_apps_steps_and_classes_may_be_given() -> None:
    app = App("shop")
    app.route("POST", "/orders", FLOW)
    for code in (compile_plan(FLOW), app, place, Order):
        assert Vocabulary.of(code).find(type_name(Line)) is Line


def test_several_make_one() -> None:
    known = Vocabulary.of(FLOW, shop.CHECKOUT)
    assert known.find("tests.trace.shop:Row") is shop.Row
    assert known.find(type_name(Line)) is Line


def test_classes_of_zerver_and_python_are_known_to_all() -> None:
    assert NO_VOCABULARY.find("zerver.effects.http:Reply") is http.Reply
    assert NO_VOCABULARY.find("zerver.errors:EffectError") is EffectError
    assert NO_VOCABULARY.find("builtins:int") is int


def test_nothing_else_is_known() -> None:
    for name in (
        "os:system",
        "builtins:eval",
        "tests.trace.shop:Row",
        "subprocess:Popen",
        "",
        ":",
        "zerver.errors:Any",
    ):
        assert NO_VOCABULARY.find(name) is None


def test_no_class_of_the_users_takes_the_place_of_one_of_ours() -> None:
    class Impostor:
        __module__ = "zerver.errors"
        __qualname__ = "EffectError"

    assert Vocabulary({"zerver.errors:EffectError": Impostor}).find("zerver.errors:EffectError") is EffectError


def test_a_recorded_plan_teaches_nothing() -> None:
    assert isinstance(Vocabulary.of(compile_plan(FLOW)), Vocabulary)
    assert Vocabulary.of() == NO_VOCABULARY
