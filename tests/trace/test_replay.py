"""Proves that any recorded run replays to the same records, and that changed code is found where it departs."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trace import shop
from tests.trace.made import Made, made
from zerver import Deadline, Done, Fail, Flow, Part, Slot, step
from zerver.core import timeline as t
from zerver.core.plan import Plan, compile_plan
from zerver.core.timeline import Timeline
from zerver.errors import ConnectionLost, InvalidData
from zerver.runtime import Result
from zerver.trace import Inputs, Replayed, replay

FEW = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def check_same(replayed: Replayed, timeline: Timeline) -> None:
    assert replayed.divergence is None
    assert [record[:2] for record in replayed.records] == [record[:2] for record in timeline.records]


# ---- any run -------------------------------------------------------------------------------


@FEW
@given(made())
def test_any_run_replays_to_the_same_records(run: Made) -> None:
    replayed = replay(run.again, run.timeline)
    check_same(replayed, run.timeline)
    assert replayed.ending is not None
    assert replayed.ending.status == run.timeline.ending.status


@FEW
@given(made(), st.data())
def test_a_run_under_way_replays_as_far_as_it_came(run: Made, data: st.DataObject) -> None:
    whole = run.timeline.records
    count = data.draw(st.integers(0, len(whole)))
    begun = attrs.evolve(run.timeline, records=whole[:count])
    replayed = replay(run.again, begun)
    # The machine writes several records for one event: what it would have written next is no departure before that.
    at = replayed.divergence.index if replayed.divergence is not None else count
    assert at == count
    assert [record[:2] for record in replayed.records] == [record[:2] for record in whole[:count]]


@FEW
@given(made(), st.data())
def test_a_mutilated_timeline_gives_a_divergence_and_never_an_error(run: Made, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(range(len(run.timeline.records))), unique=True).map(sorted))
    replay(run.again, attrs.evolve(run.timeline, records=[run.timeline.records[i] for i in kept]))


WORLDS: dict[str, dict[str, Any]] = {
    "clean": {},
    "retried": {"payments.charge": shop.keyed((9, 0), (0.04, 71))},
    "lost reply": {"payments.charge": shop.keyed((9, 0))},
    "never happened": {"payments.charge": shop.keyed((9, 0)), "payments.find": shop.scripted((0.003, None))},
    "sold out": {"sql.execute": shop.sold_out},
    "refund fails": {"sql.execute": shop.sold_out, "payments.refund": shop.keyed((0.01, ConnectionLost("gone")))},
    "deadline": {"sql.execute": shop.after(9)},
    "no database": {"sql.fetch_one": shop.after(0.001, ConnectionLost("gone"))},
}


@pytest.mark.parametrize("world", WORLDS)
async def test_runs_of_the_runtime_replay(world: str, autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, WORLDS[world])
    replayed = replay(compile_plan(shop.CHECKOUT), result.timeline)
    check_same(replayed, result.timeline)
    assert replayed.ending is not None
    assert replayed.ending.status == result.status


async def test_joins_hedges_and_races_replay(autojump_clock: object) -> None:
    flow = Flow("front", [shop.front, shop.prices], gives=[shop.Cart])
    result = await shop.run(flow, {"http.read": shop.slow_once})
    replayed = replay(compile_plan(flow), result.timeline)
    check_same(replayed, result.timeline)
    assert replayed.slots == {"cart": 2}


async def test_a_refused_run_replays_to_nothing(autojump_clock: object) -> None:
    result = await shop.refused()
    check_same(replay(compile_plan(shop.CHECKOUT), result.timeline), result.timeline)


# ---- what a replay is given ------------------------------------------------------------------

Note = Annotated[str, Slot("note")]
Left = Annotated[float, Slot("left")]


class Word(Part):
    source = "word"


@step
async def read_note(word: Annotated[str, Word()], user: shop.User) -> Note:
    return f"{word} of {user}"


@step
async def time_left(note: Note, deadline: Deadline) -> Left:
    await shop.check(note, "x")
    return deadline.remaining


GIVEN = Flow("given", [read_note, time_left], takes=[shop.User], gives=[Left], deadline=2.0)


async def given_run() -> Result:
    return await shop.run(GIVEN, {}, given={"word": "hello", "auth.user": "ann"})


async def test_the_records_bring_the_inputs_and_the_deadline(autojump_clock: object) -> None:
    result = await given_run()
    replayed = replay(compile_plan(GIVEN), result.timeline)
    check_same(replayed, result.timeline)
    assert replayed.slots == {"auth.user": "ann", "note": "hello of ann", "left": result.value}


async def test_other_inputs_lead_elsewhere(autojump_clock: object) -> None:
    result = await given_run()
    replayed = replay(compile_plan(GIVEN), result.timeline, Inputs(["bye"], ["ann"]))
    assert replayed.divergence is not None
    assert replayed.divergence.recorded is not None
    assert replayed.divergence.recorded[0] == t.STEP
    assert replayed.divergence.recorded[3][1] == "hello of ann"
    assert replayed.divergence.replayed is not None
    assert replayed.divergence.replayed[3][1] == "bye of ann"


async def test_code_that_takes_what_was_not_recorded_is_refused(autojump_clock: object) -> None:
    @step
    async def read_more(word: Annotated[str, Word("other")], user: shop.User) -> Note:
        return word + user

    result = await given_run()
    plan = compile_plan(Flow("given", [read_more, time_left], takes=[shop.User], gives=[Left]))
    with pytest.raises(InvalidData, match="word other: was not recorded"):
        replay(plan, result.timeline)


# ---- changed code ----------------------------------------------------------------------------


@step(name="reserve")
async def reserve_always(order: shop.Order) -> Fail | None:
    await shop.sql.execute("update stock set n = n - 1 where cart = ? and n > 0", "c")
    return None


@step(name="reserve")
async def reserve_elsewhere(order: shop.Order) -> Fail | None:
    touched = await shop.sql.execute("update shelf set n = n - 1 where cart = ?", "c")
    return None if touched else Fail.conflict("cart", "cart_soldout", "sold out")


@step(name="reserve")
async def reserve_twice(order: shop.Order) -> Fail | None:
    await shop.sql.execute("update stock set n = n - 1 where cart = ? and n > 0", "c")
    touched = await shop.sql.execute("update stock set n = n - 1 where cart = ? and n > 0", "c")
    return None if touched else Fail.conflict("cart", "cart_soldout", "sold out")


@step(name="reserve")
def reserve_never(order: shop.Order) -> Fail | None:
    return None


@step(name="reserve")
def reserve_crashes(order: shop.Order) -> Fail | None:
    raise LookupError("no such shelf")


def plan_with(reserve: Any) -> Plan:
    return compile_plan(Flow("checkout", [shop.verify, shop.charge, shop.create_order, reserve, shop.render]))


@pytest.mark.parametrize(
    ("changed", "recorded", "replayed"),
    [
        (reserve_always, t.STEP, t.STEP),
        (reserve_elsewhere, t.ASKED, t.ASKED),
        (reserve_twice, t.STEP, t.ASKED),
        (reserve_never, t.ASKED, t.STEP),
        (reserve_crashes, t.ASKED, t.DEFECT),
    ],
)
async def test_changed_code_departs_at_the_changed_step(
    changed: Any, recorded: str, replayed: str, autojump_clock: object
) -> None:
    flow = Flow("checkout", [shop.verify, shop.charge, shop.create_order, shop.reserve, shop.render])
    result = await shop.run(flow, {"sql.execute": shop.sold_out})
    found = replay(plan_with(changed), result.timeline).divergence
    assert found is not None
    assert found.recorded is not None
    assert found.replayed is not None
    assert (found.recorded[0], found.replayed[0]) == (recorded, replayed)
    assert {_step_of(found.recorded), _step_of(found.replayed)} == {"reserve"}


def _step_of(record: t.Record) -> str:
    return record[2].step if record[0] == t.ASKED else record[2].name


async def test_the_steps_that_still_wait_are_closed(autojump_clock: object) -> None:
    closed: list[str] = []

    @step(name="reserve")
    async def reserve_careful(order: shop.Order) -> Fail | None:
        try:
            await shop.sql.execute("update stock set n = n - 1 where cart = ? and n > 0", "c")
            await shop.sql.execute("insert into log values (1)")
        finally:
            closed.append("reserve")
        return None

    flow = Flow("checkout", [shop.verify, shop.charge, shop.create_order, shop.reserve, shop.render])
    result = await shop.run(flow, {})
    assert not replay(plan_with(reserve_careful), result.timeline).same
    assert closed == ["reserve"]


async def test_a_parked_run_replays_its_signal(autojump_clock: object) -> None:
    result = await shop.parked()
    assert result.ok
    check_same(replay(compile_plan(shop.APPROVAL), result.timeline), result.timeline)


def test_replay_is_no_coroutine_and_needs_no_event_loop() -> None:
    assert not inspect.iscoroutinefunction(replay)
    flow = Flow("pure", [_pure])
    timeline = Timeline("run", "pure", "1", "acme", "default", [("input", 1, compile_plan(flow), ((), (), None, None))])
    replayed = replay(compile_plan(flow), timeline)
    assert replayed.divergence is not None
    assert replayed.divergence.index == 1
    assert replayed.divergence.recorded is None


@step
def _pure() -> Done:
    return Done(1)
