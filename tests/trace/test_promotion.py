"""Proves when a wait has a span of its own: over its setting, and over what is usual on its route, up to a point."""

from __future__ import annotations

import pytest

from zerver.core import timeline as t
from zerver.errors import DefinitionError
from zerver.trace.telemetry.promotion import Promotion

MS = 1_000_000


class Node:
    name = "step"


def waited(admission: float = 0, turn: float = 0, park: float = 0, at: int = 0) -> list[t.Record]:
    """The records of a run that waited so many milliseconds."""
    node = Node()
    now = at
    records: list[t.Record] = [(t.RECEIVED, now, "flow", None)]
    records.append((t.ADMITTED, now := now + int(admission * MS), "flow", "default"))
    records.append((t.TURN, now + int(turn * MS), "flow", now))
    now += int(turn * MS)
    records.append((t.PARKED, now, node, None))
    records.append((t.SIGNALLED, now + int(park * MS), node, None))
    return records


def test_below_a_hundred_runs_the_setting_counts() -> None:
    promotion = Promotion(queue_ms=5, park_ms=7)
    for _ in range(99):
        promotion.learn("route", waited(50, 50, 50))
    assert promotion.bars("route") == {"admission": 5 * MS, "turn": 5 * MS, "park": 7 * MS}


def test_on_a_route_that_always_waits_only_unusual_waits_are_promoted() -> None:
    promotion = Promotion()
    for number in range(200):
        promotion.learn("route", waited(number / 10, 0.1, 30, at=number * 10 * MS))
    bars = promotion.bars("route")
    assert bars["admission"] == pytest.approx(19 * MS, rel=0.02)
    assert bars["turn"] == 5 * MS  # it hardly waits: the setting is the least
    assert bars["park"] == 30 * MS
    assert promotion.bars("another") == {"admission": 5 * MS, "turn": 5 * MS, "park": 5 * MS}


def test_where_everybody_waits_for_long_it_is_not_hidden() -> None:
    promotion = Promotion(queue_ms=2)
    for number in range(200):
        promotion.learn("route", waited(10_000, at=number * 10 * MS))
    assert promotion.bars("route")["admission"] == 40 * MS


def test_what_was_usual_is_forgotten() -> None:
    promotion = Promotion()
    for number in range(200):
        promotion.learn("route", waited(20, at=number * 10 * MS))
    assert promotion.bars("route")["admission"] == 20 * MS
    promotion.learn("other", waited(at=200_000 * MS))
    assert promotion.bars("route")["admission"] == 5 * MS


def test_routes_that_strangers_make_up_are_bounded() -> None:
    promotion = Promotion()
    for number in range(3_000):
        promotion.learn(f"route {number}", waited(20))
    assert len(promotion._waits) <= 1_003
    assert promotion.bars("route never seen")["admission"] == 20 * MS


def test_zero_promotes_whatever_waits() -> None:
    promotion = Promotion(queue_ms=0, park_ms=0)
    assert promotion.bars("route") == {"admission": 0, "turn": 0, "park": 0}


@pytest.mark.parametrize("wrong", [{"queue_ms": -1}, {"park_ms": float("inf")}, {"queue_ms": float("nan")}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DefinitionError, match="milliseconds"):
        Promotion(**wrong)
