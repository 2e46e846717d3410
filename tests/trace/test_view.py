"""Proves what a view says of a run: whole, veiled, JSON, the same in windows, and the same for a run out of a file."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trace import shop
from tests.trace.made import Made, made
from zerver.core import timeline as t
from zerver.core.plan import compile_plan
from zerver.core.timeline import Ending, Timeline
from zerver.runtime import Result
from zerver.trace import format_timeline
from zerver.trace.drawing import drawing
from zerver.trace.hidden import Hidden
from zerver.trace.recording import decode_run, encode_run
from zerver.trace.view import Opened, view

FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def as_result(run: Made, records: list[t.Record] | None = None) -> Result:
    timeline = run.timeline if records is None else attrs.evolve(run.timeline, records=records)
    ending = timeline.ending
    return Result(timeline, ending or Ending("cancelled", reason="under way"), run.unresolved, ending is not None)


def without_files(told: dict[str, Any]) -> dict[str, Any]:
    """The view without what a file cannot keep: the names of Python's types."""
    slots = [{name: said for name, said in slot.items() if name not in ("type", "editable")} for slot in told["slots"]]
    return {**told, "slots": slots}


def step_node(told: dict[str, Any], name: str) -> dict[str, Any]:
    (node,) = [node for node in told["graph"]["nodes"] if node["step"] == name]
    return dict(node)


# ---- a run of the shop ----------------------------------------------------------------------


async def test_the_header_and_the_accounts(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {}, tenant="acme", priority="interactive")
    told = view(result, began_unix_ns=1_800_000_000_123_456_789)
    header = told["header"]
    assert (header["id"], header["label"], header["status"]) == (shop.RUN_ID, "checkout", "done")
    assert (header["tenant"], header["priority"], header["under_way"]) == ("acme", "interactive", False)
    assert header["began_unix_ms"] == pytest.approx(1_800_000_000_123.456789)
    assert header["total_ns"] == told["accounts"]["total"] == 18_800_000
    assert sum(ns for name, ns in told["accounts"].items() if name != "total") == told["accounts"]["total"]


async def test_the_rows_are_those_of_the_text(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out})
    text = format_timeline(result.timeline, unresolved=result.unresolved)
    told = view(result)
    for row in told["rows"]["items"]:
        assert row["text"].rstrip() in text
        assert result.timeline.records[row["index"]][0] == row["kind"]
    for line in told["causes"]:
        assert line in text


async def test_the_graph_has_the_times_laid_over_it(autojump_clock: object) -> None:
    told = view(await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out}))
    charge, reserve, render = (step_node(told, name) for name in ("charge", "reserve", "render"))
    assert (charge["status"], charge["io_ns"], charge["effects"]) == ("ok", 10_000_000, 1)
    assert (reserve["status"], render["status"], render["took_ns"]) == ("failed", None, None)
    ids = {node["id"]: node["step"] or node["label"] for node in told["graph"]["nodes"]}
    taken = [(ids[edge["source"]], ids[edge["target"]]) for edge in told["graph"]["edges"] if edge["taken"]]
    assert taken == [
        ("checkout", "verify"),
        ("verify", "charge"),
        ("charge", "create_order"),
        ("create_order", "reserve"),
    ]


async def test_slots_say_who_wrote_and_who_read(autojump_clock: object) -> None:
    told = view(await shop.run(shop.CHECKOUT, {}))
    user = next(slot for slot in told["slots"] if slot["name"] == "auth.user")
    assert (user["writer"], user["written"], user["secret"]) == ("verify", True, False)
    assert "charge" in user["readers"]
    assert user["at_ns"] == 1_800_000


async def test_effects_say_what_came_of_them(autojump_clock: object) -> None:
    told = view(await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out}))
    charge = next(one for one in told["effects"]["items"] if one["step"] == "charge" and not one["rollback"])
    assert (charge["kind"], charge["access"], charge["outcome"]) == ("payments.charge", "write", "success")
    assert (charge["committed"], charge["undone"], charge["attempts"]) == (True, True, 1)
    assert charge["key"] == "…:charge:1"


async def test_what_nobody_knows_is_loud(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {"payments.charge": shop.keyed((9, 0)), "payments.find": shop.after(9)})
    told = view(result)
    assert bool(told["unresolved"]) is bool(result.unresolved)
    assert any(line.startswith("UNRESOLVED") for line in told["causes"]) is bool(result.unresolved)


async def test_a_run_that_waited_has_a_gap(autojump_clock: object) -> None:
    told = view(await shop.parked())
    assert "parked" in {gap["account"] for gap in told["gaps"]}
    for gap in told["gaps"]:
        assert 0 <= gap["began_ns"] < gap["ended_ns"] <= told["header"]["total_ns"]


@pytest.mark.parametrize("make", [shop.refused, shop.parked, shop.cancelled])
async def test_every_kind_of_ending_has_a_view(make: Any, autojump_clock: object) -> None:
    result = await make()
    told = view(result)
    assert told["header"]["status"] == result.status
    json.dumps(told, allow_nan=False)


async def test_hidden_names_are_masked(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    told = view(result, hidden=Hidden(["payment", "id"]))
    payment = next(slot for slot in told["slots"] if slot["name"] == "payment")
    assert (payment["secret"], payment["value"], payment["editable"]) == (True, None, False)


# ---- any run --------------------------------------------------------------------------------


@given(made())
@FEW
def test_any_run_and_any_part_of_one_has_a_view_that_is_json(run: Made) -> None:
    records = run.timeline.records
    for count in {0, 1, len(records) // 2, len(records) - 1, len(records)}:
        told = view(as_result(run, records[:count]))
        json.dumps(told, allow_nan=False)
        assert told["header"]["records"] == count


@given(made(), st.integers(1, 7))
@FEW
def test_windows_are_cut_out_of_the_whole(run: Made, size: int) -> None:
    opened = Opened(as_result(run))
    for whole in (opened.rows, opened.spans, opened.effects):
        pieces: list[Any] = []
        at: int | None = 0
        while at is not None:
            window = whole(at, size)
            pieces += window["items"]
            at = window["next"]
        assert pieces == whole(0, 10**9)["items"]


@given(made())
@FEW
def test_spans_come_in_the_order_of_the_tree(run: Made) -> None:
    seen: dict[int, tuple[int, int | None]] = {}
    for span in Opened(as_result(run)).spans(0, 10**9)["items"]:
        if span["parent"] is None:
            assert not seen
        else:
            began, ended = seen[span["parent"]]
            assert span["began_ns"] >= began
            assert ended is None or span["ended_ns"] <= ended
        seen[span["id"]] = (span["began_ns"], span["ended_ns"])


@given(made())
@FEW
def test_a_run_out_of_a_file_has_the_same_view(run: Made) -> None:
    result = as_result(run)
    again = decode_run(encode_run(result, began_unix_ns=5))
    one, other = (without_files(view(each, began_unix_ns=5)) for each in (result, again))
    assert other["graph"] == one["graph"]
    assert other["header"] == one["header"]
    assert [(s["name"], s["writer"], s["readers"], s["at_ns"]) for s in other["slots"]] == [
        (s["name"], s["writer"], s["readers"], s["at_ns"]) for s in one["slots"]
    ]


@given(made())
@FEW
def test_a_secret_slot_shows_nothing(run: Made) -> None:
    told = view(as_result(run))
    for slot in told["slots"]:
        if slot["name"] in run.timeline.secret:
            assert slot["secret"]
            assert slot["value"] is None
            assert slot["shown"] in ("", "‹secret›")
            assert not slot["editable"]


@given(made())
@FEW
def test_the_graph_of_a_plan_reaches_every_step(run: Made) -> None:
    graph = drawing(run.plan)
    ids = [node["id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids)
    known, reached = set(ids), {"n0"}
    for edge in graph["edges"]:
        assert {edge["source"], edge["target"]} <= known
    for _ in ids:
        reached |= {edge["target"] for edge in graph["edges"] if edge["source"] in reached}
    assert reached == known


# ---- large ones -----------------------------------------------------------------------------


def ticking(count: int) -> Result:
    """A run of so many breaths: cheap to make, and each has a row or a span to be left out."""
    plan = compile_plan(shop.CHECKOUT)
    node = plan.line[0]
    records: list[t.Record] = [("received", 0, "checkout", None), ("input", 1, plan, ((), (), None, None))]
    records += [("turn", 100_000 * at, node, 100_000 * at - 60_000) for at in range(1, count)]
    records.append(("ended", 100_000 * count, "checkout", Ending("done")))
    return Result(Timeline("req_1", "checkout", "1", "t", "default", records), Ending("done"))


def test_segments_are_as_many_as_a_screen_can_show() -> None:
    (root,) = [span for span in view(ticking(5000))["spans"]["items"] if span["kind"] == "run"]
    segments = root["segments"]
    assert 1 <= len(segments) <= 256
    assert all(one["ended_ns"] == other["began_ns"] for one, other in pairwise(segments))
    assert (segments[0]["began_ns"], segments[-1]["ended_ns"]) == (0, 500_000_000)


def test_a_window_looks_at_its_own_records_only() -> None:
    opened = Opened(ticking(3000))
    window = opened.rows(1000, 10)
    assert [row["index"] for row in window["items"]] == list(range(1000, 1010))
    assert (window["from"], window["next"], window["total"]) == (1000, 1010, 3002)
    assert opened.rows(10**9, 10) == {"from": 3002, "next": None, "total": 3002, "items": []}
