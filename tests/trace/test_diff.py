"""Proves that a diff aligns two runs by step, names where they parted and why, and tells no secret."""

from __future__ import annotations

import json
from typing import Annotated, Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings

from tests.trace import shop
from tests.trace.made import Made, made
from zerver import Done, Fail, Flow, Insert, Slot, branch, join, parallel, step
from zerver.core.timeline import Timeline
from zerver.effects import http
from zerver.runtime import Result
from zerver.trace.comparing.diff import Diff, aligned, diff, diff_json, format_diff
from zerver.trace.hidden import Hidden
from zerver.trace.recording import decode_run, encode_run

FEW = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


async def compared(one: dict[str, Any], other: dict[str, Any], flow: Flow = shop.CHECKOUT, **how: Any) -> Diff:
    return diff(await shop.run(flow, one, **how), await shop.run(flow, other, **how))


def told(found: Diff, step: str) -> list[tuple[str, str, str | None, str | None]]:
    """The differences of a step, times left out."""
    (it,) = [s for s in found.steps if s.step == step]
    return [(d.kind, d.name, d.a, d.b) for d in it.differences if d.kind != "timing"]


# ---- any two runs ----------------------------------------------------------------------------


@FEW
@given(made(), made())
def test_any_two_runs_have_a_diff(one: Made, other: Made) -> None:
    found = diff(one.timeline, other.timeline)
    json.dumps(diff_json(found))
    assert all(line.isprintable() for line in format_diff(found).splitlines())
    assert {s.step for s in found.steps if s.a} | {s.step for s in found.steps if s.b} == {s.step for s in found.steps}


@FEW
@given(made())
def test_a_run_is_the_same_as_itself(run: Made) -> None:
    found = diff(run.timeline, run.timeline)
    assert found.same
    assert [s.step for s in found.steps if s.differences] == []
    assert "both did the same" in format_diff(found)


@FEW
@given(made())
def test_half_a_run_has_a_diff_too(run: Made) -> None:
    records = run.timeline.records
    half = attrs.evolve(run.timeline, records=records[: len(records) // 2])
    format_diff(diff(half, run.timeline))
    format_diff(diff(Timeline("none", "f", "1", "a", "default", []), run.timeline))


def test_names_of_both_in_one_order() -> None:
    assert aligned("abc", "abc") == list("abc")
    assert aligned("abc", "axc") == list("axbc")
    assert aligned("abc", "cba") == list("abc")  # as parallel steps, which begin in any order
    assert aligned("ab", "xyaz") == list("xyazb")
    assert aligned("", "ab") == list("ab")


# ---- where they parted -----------------------------------------------------------------------


async def test_the_first_step_that_decided_otherwise_and_why(autojump_clock: object) -> None:
    found = await compared({"sql.execute": shop.sold_out}, {})
    assert found.first is not None
    assert found.first.step == "reserve"
    assert told(found, "reserve") == [
        ("effect", "1", "gave 0", "gave 1"),
        ("decision", "decision", "cart: sold out (conflict cart cart_soldout)", "goes on"),
    ]
    assert told(found, "render") == [("missing", "render", None, 'is done with {"order": 1}')]
    assert [(d.name, d.a, d.b) for d in found.run] == [("status", "failed", "done")]
    text = format_diff(found)
    assert (
        "first divergence: reserve\n"
        "  - cart: sold out (conflict cart cart_soldout)\n"
        "  + goes on\n"
        "    because sql.execute update stock gave 0 | gave 1\n"
    ) in text
    rollback = next(s for s in found.steps if s.step == "(rollback)")
    assert rollback.a is not None
    assert [(e.asked.text, e.way) for e in rollback.a.effects.values()] == [
        ("undo sql.execute insert orders", "gave"),
        ("undo payments.charge(1200, 'user_1')", "gave"),
    ]


async def test_attempts_differ_and_the_way_does_not(autojump_clock: object) -> None:
    found = await compared({"payments.charge": shop.keyed((9, 0), (0.04, 71))}, {})
    assert found.first is None
    assert not found.same
    assert told(found, "charge") == [("attempts", "1", "attempts 2, timeouts 1", "attempts 1")]
    (charge,) = [s for s in found.steps if s.step == "charge"]
    assert charge.a is not None
    assert charge.b is not None
    assert charge.a.took_ns == charge.a.io_ns + charge.a.cpu_ns + charge.a.turn_ns
    assert [d.text for d in charge.differences if d.kind == "timing"] == ["took 87.2ms | 10.0ms", "io 87.2ms | 10.0ms"]
    assert "both went the same way; the first difference is in charge" in format_diff(found)


async def test_hedges_are_counted(autojump_clock: object) -> None:
    flow = Flow("front", [shop.front], gives=[shop.Cart])
    found = await compared({"http.read": shop.slow_once}, {}, flow)
    assert found.first is None
    assert told(found, "front") == [("attempts", "1.1", "attempts 1, hedges 1", "attempts 1")]


async def test_a_step_that_was_cut(autojump_clock: object) -> None:
    found = await compared({"sql.execute": shop.after(9)}, {})
    assert found.first is not None
    assert found.first.step == "create_order"
    assert "because sql.execute insert orders was cut: the deadline has passed | gave 1" in format_diff(found)


# ---- two versions of a flow ------------------------------------------------------------------

Kind = Annotated[str, Slot("kind")]


@step
def kind(cart: shop.Cart) -> Kind:
    return "big" if cart > 3 else "small"


def is_big(kind: Kind) -> bool:
    return kind == "big"


@step
async def wrap() -> None:
    await http.get("http://wrap/")


@step
async def ship(cart: shop.Cart) -> Done:
    await http.get("http://ship/")
    return Done(cart)


@step(name="ship")
async def ship_later(cart: shop.Cart) -> Done | Fail:
    await join.all(http.get("http://ship/"), http.get("http://wait/"))
    return Done(cart)


@step
def more() -> Insert:
    return Insert([wrap])


async def test_branches_and_values(autojump_clock: object) -> None:
    flow = Flow("send", [kind, branch(is_big, [wrap], []), ship], takes=[shop.Cart])
    found = diff(await shop.run(flow, {}, given={"cart": 1}), await shop.run(flow, {}, given={"cart": 5}))
    assert [s.step for s in found.steps] == ["(request)", "kind", "branch(is_big)", "wrap", "ship"]
    assert told(found, "(request)") == [("slot", "cart", "1", "5")]
    assert told(found, "kind") == [("slot", "cart", "1", "5"), ("slot", "kind", '"small"', '"big"')]
    assert told(found, "branch(is_big)") == [("decision", "decision", "no", "yes")]
    assert told(found, "ship") == [
        ("slot", "cart", "1", "5"),
        ("decision", "decision", "is done with 1", "is done with 5"),
    ]
    assert found.first is not None
    assert found.first.step == "branch(is_big)"
    assert found.first_value is not None
    assert found.first_value.step == "(request)"


async def test_two_versions(autojump_clock: object) -> None:
    old = Flow("send", [ship], takes=[shop.Cart])
    new = Flow("send", [more, ship_later], takes=[shop.Cart], version="2")
    found = diff(await shop.run(old, {}, given={"cart": 1}), await shop.run(new, {}, given={"cart": 1}))
    assert [(d.name, d.a, d.b) for d in found.run] == [("version", "1", "2")]
    assert [s.step for s in found.steps] == ["(request)", "more", "wrap", "ship"]
    assert told(found, "more") == [("missing", "more", None, "inserts wrap")]
    assert told(found, "ship")[0] == ("effect", "1", "http.get ship/", "join.all of 2")
    assert found.first is not None
    assert found.first.step == "more"


async def test_steps_at_once_are_aligned_whatever_began_first(autojump_clock: object) -> None:
    one = Flow("post", [parallel(shop.receipt, shop.notice)])
    other = Flow("post", [parallel(shop.notice, shop.receipt)])
    found = diff(await shop.run(one, {}), await shop.run(other, {}))
    assert found.same


@step
async def crawl(cart: shop.Cart) -> None:
    for number in range(cart):
        await http.get(f"http://far/{number}")


async def test_a_step_that_did_much_has_a_bounded_diff(autojump_clock: object) -> None:
    flow = Flow("crawl", [crawl], takes=[shop.Cart])
    found = diff(await shop.run(flow, {}, given={"cart": 10}), await shop.run(flow, {}, given={"cart": 600}))
    lines = format_diff(found).splitlines()
    assert len(lines) < 80
    assert any(line.strip() == "… and 552 more" for line in lines)  # 590 effects, a slot and the io; 40 are told
    told = diff_json(found)["steps"][1]
    assert (len(told["differences"]), told["more"]) == (200, 393)
    assert (len(told["b"]["effects"]), told["b"]["more"]) == (200, 400)


# ---- secrets ---------------------------------------------------------------------------------


@step
async def tokenize() -> shop.Token:
    return await shop.tokenize("card")


@step
async def check(token: shop.Token) -> Done:
    return Done(await shop.check(token, f"Bearer {token}"))


async def test_a_secret_is_neither_shown_nor_compared(autojump_clock: object) -> None:
    flow = Flow("vault", [tokenize, check])
    found = await compared(
        {"vault.tokenize": shop.after(0, "tok_one_1")}, {"vault.tokenize": shop.after(0, "tok_two_2")}, flow
    )
    shown = format_diff(found) + json.dumps(diff_json(found))
    assert "tok_" not in shown
    assert "‹secret›" in json.dumps(diff_json(found), ensure_ascii=False)
    assert found.same


@pytest.mark.parametrize("side", ["a", "b"])
async def test_the_json_has_what_the_page_shows(side: str, autojump_clock: object) -> None:
    result: Result = await shop.run(shop.CHECKOUT, {}, tenant="acme")
    told = diff_json(diff(result, result))
    assert told["same"] is True
    assert told["first"] is None
    assert told[side]["tenant"] == "acme"
    assert told[side]["took_ns"] == told[side]["accounts"]["total"]
    charge = next(s for s in told["steps"] if s["step"] == "charge")
    assert set(charge) == {"step", "same", "a_took_ns", "b_took_ns", "a", "b", "differences", "more"}
    assert charge[side]["writes"] == {"payment": "71"}
    assert charge[side]["effects"][0]["outcome"] == "gave 71"


# ---- runs out of a file ----------------------------------------------------------------------


def stored(result: Result) -> Result:
    return decode_run(encode_run(result, began_unix_ns=1))


@pytest.mark.parametrize("world", [{}, {"sql.execute": shop.sold_out}, {"sql.execute": shop.after(9)}])
async def test_a_stored_run_is_the_same_as_it_was(world: dict[str, Any], autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, world)
    again = stored(result)
    assert diff(again, stored(result)).same
    live, found = diff(result, result), diff(again, again)
    assert json.dumps(diff_json(found)) == json.dumps(diff_json(live))


async def test_the_secret_of_a_stored_run_is_no_difference(autojump_clock: object) -> None:
    flow = Flow("vault", [tokenize, check])
    one = await shop.run(flow, {"vault.tokenize": shop.after(0, "tok_one_1")})
    other = await shop.run(flow, {"vault.tokenize": shop.after(0, "tok_two_2")})
    found = diff(stored(one), stored(other))
    assert found.same
    assert "tok_" not in format_diff(found) + json.dumps(diff_json(found))
    hidden = diff(other, one, Hidden(frozenset({"order.id"})))
    assert hidden.same


async def test_configured_names_are_hidden(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    shown = json.dumps(diff_json(diff(result, result, Hidden(frozenset({"payment"})))))
    assert '"payment": "71"' not in shown
    assert '"order.id": "1"' in shown
