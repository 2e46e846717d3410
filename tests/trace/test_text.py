"""Proves what the timeline's text says, whole runs at a time, and what it never says: secrets, control characters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trace import shop
from tests.trace.golden import GOLDEN
from tests.trace.made import Made, made
from zerver import Effect, Fail, Flow, Insert, Part, branch, pivot, step
from zerver.core import timeline as t
from zerver.core.timeline import Timeline
from zerver.errors import ConnectFailed, ConnectionLost, Rejected, StatementError
from zerver.runtime import Result
from zerver.trace import format_timeline

FEW = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def text(result: Result, **how: Any) -> str:
    return format_timeline(result.timeline, unresolved=result.unresolved, **how)


def check_text(result: Result, expected: str, **how: Any) -> None:
    """The whole text, ID standing for the run's id."""
    said = text(result, **how).replace(shop.RUN_ID, "ID")
    assert said.splitlines() == expected.strip("\n").splitlines()


# ---- whole runs ------------------------------------------------------------------------------


async def test_a_clean_run(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {}, tenant="acme", priority="interactive")
    answered = ("answered", result.timeline.records[-1][1], "checkout", 201)
    named = attrs.evolve(result.timeline, label="POST /v2/checkout", records=[*result.timeline.records, answered])
    check_text(attrs.evolve(result, timeline=named), GOLDEN["clean"])


@pytest.mark.parametrize(
    ("name", "world"),
    [
        ("retry", {"payments.charge": shop.keyed((9, 0), (0.04, 71))}),
        ("lost reply", {"payments.charge": shop.keyed((9, 0))}),
        ("sold out", {"sql.execute": shop.sold_out}),
        ("deadline", {"sql.execute": shop.after(9)}),
        (
            "refund fails",
            {"sql.execute": shop.sold_out, "payments.refund": shop.keyed((0.01, Rejected("account closed")))},
        ),
        ("no user", {"sql.fetch_one": shop.after(0.001)}),
    ],
)
async def test_a_checkout(name: str, world: dict[str, Any], autojump_clock: object) -> None:
    check_text(await shop.run(shop.CHECKOUT, world), GOLDEN[name])


async def test_attempts_that_fail_in_the_same_way_have_two_rows(autojump_clock: object) -> None:
    world = {"sql.execute": shop.sold_out, "payments.refund": shop.keyed((0.01, ConnectionLost("gone")))}
    result = await shop.run(shop.CHECKOUT, world)
    told = [line for line in text(result).splitlines() if "payments.refund attempt" in line]
    failed = [record[3][0] for record in result.timeline.records if record[0] == t.FAILED]
    assert len(told) == 2
    assert f"attempts 2 to {failed[-1]} failed in the same way, outcome unknown; gave up" in told[1]


async def test_an_unresolved_run(autojump_clock: object) -> None:
    flow = Flow("checkout", [shop.verify, shop.plain_charge, shop.create_order, shop.render])
    check_text(await shop.run(flow, {"payments.charge": shop.keyed((9, 0))}), GOLDEN["unresolved"])


async def test_joins_hedges_and_races(autojump_clock: object) -> None:
    flow = Flow("front", [shop.front, shop.prices], gives=[shop.Cart])
    check_text(await shop.run(flow, {"http.read": shop.slow_once}), GOLDEN["joins"])


async def test_what_a_run_did_without_is_told(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {"http.write": shop.keyed((0.0, ConnectFailed("no")))})
    assert result.status == "done"
    assert "\nDONE WITHOUT http.write in receipt: " in text(result)


async def test_a_defect(autojump_clock: object) -> None:
    flow = Flow("bad", [shop.verify, shop.audit, shop.count], gives=[shop.User, shop.Cart])
    line = shop.count.function.__code__.co_firstlineno + 2
    check_text(await shop.run(flow, {}), GOLDEN["defect"].replace("LINE", str(line)))


async def test_a_cancelled_run(autojump_clock: object) -> None:
    check_text(await shop.cancelled(), GOLDEN["cancelled"])


async def test_a_refused_run(autojump_clock: object) -> None:
    check_text(await shop.refused(), GOLDEN["refused"])


async def test_a_parked_run(autojump_clock: object) -> None:
    check_text(await shop.parked(), GOLDEN["parked"])


def _rich(cart: shop.Cart) -> bool:
    return cart > 1


@step
def more() -> Insert:
    return Insert([shop.audit])


async def test_branches_plans_and_the_point_of_no_return(autojump_clock: object) -> None:
    flow = Flow("front", [shop.front, branch(_rich, more), pivot(shop.notice)], gives=[shop.Cart])
    said = text(await shop.run(flow, {"http.read": shop.slow_once}))
    assert "branch(_rich)  yes → more" in said
    assert "plan: insert audit" in said
    assert "pivot(notice)  point of no return" in said


async def test_a_run_under_way(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    begun = attrs.evolve(result.timeline, records=result.timeline.records[:7])
    assert format_timeline(begun).replace(shop.RUN_ID, "ID").splitlines() == [
        "checkout  under way  [ID]  default · tenant default",
        "  0.0ms  verify  → sql.fetch_one users",
        "  1.8ms  verify  ✓ 1.8ms  io 1.8ms",
        "  1.8ms  charge  → payments.charge(1200, 'user_1')  key=…:charge:1",
        "UNDER WAY for 1.8ms in charge (payments.charge under way for 0.0ms)",
        "slots  written auth.user   read auth.user",
        "total 1.8ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 1.8 + parked 0.0",
    ]


async def test_slow_is_what_the_budget_says(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    assert "SLOW" not in text(result)
    assert "SLOW charge took 10ms of 19ms: payments.charge 10ms" in text(result, slow=0.015)
    retried = await shop.run(shop.CHECKOUT, {"payments.charge": shop.keyed((9, 0), (0.04, 71))})
    assert "SLOW" not in text(retried, slow=1.0)


# ---- any run ---------------------------------------------------------------------------------

_LAST = re.compile(
    r"total ([\d.]+)ms = admission ([\d.]+) \+ turn ([\d.]+) \+ cpu ([\d.]+) \+ io ([\d.]+) \+ parked ([\d.]+)"
)


@FEW
@given(made())
def test_the_accounts_that_are_printed_add_up(run: Made) -> None:
    said = format_timeline(run.timeline, unresolved=run.unresolved)
    found = _LAST.fullmatch(said.splitlines()[-1])
    assert found is not None
    total, *parts = (round(float(part) * 10) for part in found.groups())
    assert total == sum(parts)
    span = run.timeline.records[-1][1] - run.timeline.records[0][1]
    assert abs(total - span / 100_000) <= 1


@FEW
@given(made())
def test_every_unresolved_write_is_loud(run: Made) -> None:
    said = format_timeline(run.timeline, unresolved=run.unresolved)
    assert said.count("UNRESOLVED") == len(run.unresolved)
    for entry in run.unresolved:
        assert entry.call.key in said
    # The records alone know nearly as much: what they name is unresolved indeed.
    assert format_timeline(run.timeline).count("UNRESOLVED") <= len(run.unresolved)


@FEW
@given(made(), st.data())
def test_any_part_of_a_timeline_has_a_text(run: Made, data: st.DataObject) -> None:
    records = run.timeline.records
    kept = data.draw(st.lists(st.sampled_from(range(len(records))), unique=True).map(sorted))
    for some in (records[: len(kept)], records[len(kept) :], [records[index] for index in kept]):
        said = format_timeline(attrs.evolve(run.timeline, records=some), unresolved=run.unresolved)
        assert all(line.isprintable() for line in said.splitlines())


# ---- what is never said ----------------------------------------------------------------------

SECRET = "tok_4111111111111111"


@step
async def tokenize(user: shop.User) -> shop.Token:
    return await shop.tokenize(user)


@step
async def mint_and_use(user: shop.User) -> shop.Token:
    token = await shop.tokenize(user)
    await shop.check(token, "note")
    return token


@step
async def use(token: shop.Token) -> Fail:
    await shop.check(token, "a note")
    await shop.http.get(f"http://vault/cards/{token}?t={token}")
    await shop.sql.execute(f"insert into {token} values (1)")
    return Fail.conflict("card", token, f"the card {token} is stolen")


@step
async def use_badly(token: shop.Token) -> None:
    await shop.check([{"nested": (token + "x", token.encode())}], "n")  # type: ignore[arg-type] # what people do
    raise ValueError(f"cannot use {token}")


async def test_a_secret_slot_is_masked_wherever_it_goes(autojump_clock: object) -> None:
    said = text(await shop.run(Flow("pay", [shop.verify, tokenize, use]), {}))
    assert SECRET not in said
    assert "vault.check('‹secret›', 'a note')" in said
    assert "http.get vault/cards/‹secret›?…" in said
    assert "conflict card ‹secret›" in said
    assert "written auth.user card.token" in said


async def test_a_secret_inside_other_values_and_errors_is_masked(autojump_clock: object) -> None:
    said = text(await shop.run(Flow("pay", [shop.verify, tokenize, use_badly]), {}))
    assert "4111" not in said
    assert "DEFECT ValueError: cannot use ‹secret› in use_badly" in said


async def test_a_step_that_failed_before_it_wrote_its_secret_shows_nothing(autojump_clock: object) -> None:
    refuse = shop.after(0.001, StatementError(f"{SECRET} is no good"))
    flow = Flow("pay", [shop.verify, mint_and_use, use])
    said = text(await shop.run(flow, {"vault.check": refuse}))
    assert "4111" not in said
    assert "vault.check(‹secret›)" in said


@pytest.mark.parametrize("cut", range(1, 30))
async def test_half_a_timeline_does_not_tell_the_secret_either(cut: int, autojump_clock: object) -> None:
    result = await shop.run(Flow("pay", [shop.verify, mint_and_use, use]), {})
    assert "4111" not in format_timeline(attrs.evolve(result.timeline, records=result.timeline.records[:cut]))


class Head(Part):
    source = "header"


@step
async def log_in(authorization: Annotated[str, Head()]) -> shop.Cart:
    await shop.check(authorization.removeprefix("Bearer "), "x")
    return 1


async def test_who_logs_in_is_masked_without_being_declared(autojump_clock: object) -> None:
    flow = Flow("login", [log_in], gives=[shop.Cart])
    said = text(await shop.run(flow, {}, given={"authorization": "Bearer token-user_1"}))
    assert "vault.check('‹secret›', 'x')" in said


async def test_long_arguments_are_masked_before_they_are_cut(autojump_clock: object) -> None:
    long = "s3cr3t" * 30
    said = text(await shop.run(Flow("pay", [shop.verify, tokenize, use]), {"vault.tokenize": shop.after(0, long)}))
    assert "s3cr3t" not in said


@pytest.mark.parametrize("nasty", ["\x1b[2J", "a\nFAILED b", "\u202e", "\r", "\x00", "\u2028"])
async def test_nothing_from_outside_forges_a_line_or_speaks_to_the_terminal(nasty: str, autojump_clock: object) -> None:
    world = {"sql.fetch_one": shop.after(0.001, StatementError(f"no {nasty}"))}
    result = await shop.run(shop.CHECKOUT, world, tenant=f"acme{nasty}")
    plain = await shop.run(shop.CHECKOUT, {"sql.fetch_one": shop.after(0.001, StatementError("no"))})
    said = text(result)
    assert nasty not in said
    assert len(said.splitlines()) == len(text(plain).splitlines())
    assert all(line.isprintable() for line in said.split("\n"))


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (shop.sql.fetch_all(str, "select a from users u join carts c on c.user = u.id"), "sql.fetch_all users carts"),
        (shop.sql.execute("-- from nowhere\n UPDATE  stock SET n = 'from x'"), "sql.execute update stock"),
        (shop.sql.execute("delete from carts where id = ?", 1), "sql.execute delete carts"),
        (shop.sql.execute("pragma optimize"), "sql.execute pragma"),
        (
            shop.sql.transaction(shop.sql.execute("update a set b = 1"), shop.sql.execute("insert into c values (1)")),
            "sql.transaction update a + insert c",
        ),
        (shop.http.post("https://shop.example:8443/a/b?c=d"), "http.post shop.example:8443/a/b?…"),
        (shop.pay(1, "x" * 100), "payments.charge(1, 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…)"),
    ],
)
async def test_effects_are_named_in_a_few_honest_words(effect: Effect[Any], said: str, autojump_clock: object) -> None:
    @step(effects=[effect.kind])
    async def ask() -> None:
        await effect

    world: dict[str, Callable[..., Any]] = {"sql.transaction": shop.after(0.001, ())}
    lines = text(await shop.run(Flow("one", [ask]), world)).splitlines()
    assert lines[1].split("→ ")[1].split("  ")[0] == said


def test_an_empty_timeline_has_a_text() -> None:
    assert format_timeline(Timeline("req_1", "flow", "1", "acme", "batch", [])).splitlines() == [
        "flow  under way  [req_1]  batch · tenant acme",
        "total 0.0ms = admission 0.0 + turn 0.0 + cpu 0.0 + io 0.0 + parked 0.0",
    ]


def test_parts_are_rounded_so_that_they_add_up() -> None:
    kinds = [t.ADMITTED, t.TURN, t.STEP, t.SETTLED]
    records: list[t.Record] = [(t.RECEIVED, 0, "flow", None)]
    for kind in kinds[:2]:
        records.append((kind, records[-1][1] + 140_000, "flow", records[-1][1] if kind == t.TURN else None))
    records.append((t.ENDED, records[-1][1] + 140_000, "flow", t.Ending("done")))
    said = format_timeline(Timeline("req_1", "flow", "1", "acme", "batch", records)).splitlines()[-1]
    assert said == "total 0.4ms = admission 0.2 + turn 0.1 + cpu 0.1 + io 0.0 + parked 0.0"
