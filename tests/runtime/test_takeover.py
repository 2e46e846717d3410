"""Whoever finds a run whose process has died ends it as it would have ended, or leaves it alone and says why."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import trio
import trio.lowlevel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.runtime.dying import (
    FLOWS,
    SHOP,
    Paid,
    Rate,
    Witness,
    after_crash,
    charge,
    charged,
    check_once,
    look,
    no_more,
    pay,
    pay_more,
    post,
    rate,
    run_once,
    statuses,
    tell,
)
from zerver import (
    Effect,
    Flow,
    join,
    parallel,
    step,
)
from zerver.core import timeline as t
from zerver.core.stages import Stage
from zerver.trace import format_timeline

# ---- recovery -------------------------------------------------------------------------------


async def test_a_run_that_dies_anywhere_ends_as_it_would_have_ended(autojump_clock: object) -> None:
    witness, result = await run_once(SHOP)
    assert result.value == ("ch_12", "ch_13")
    assert statuses(witness.disk) == ["done"]
    assert len(witness.moments) == 10
    for moment in witness.moments:
        begun = bool(moment.disk.runs)
        later = await after_crash(moment, SHOP)
        assert statuses(later.disk) == ["done"] * begun, moment.where
        assert sorted(later.world.done.values()) == ["ch_12", "ch_13"] * begun, moment.where
        assert later.world.undone == set()
        check_once(later.world)
        if later.ended:
            assert later.ended[0].value == ("ch_12", "ch_13")
            assert t.RECOVERED in [record[0] for record in later.ended[0].timeline.records]


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("on_crash", ["resume", "compensate"])
async def test_nothing_is_lost_and_nothing_is_done_twice(name: str, on_crash: Any, autojump_clock: object) -> None:
    flow = Flow("shop", FLOWS[name], durability="sync", on_crash=on_crash)
    sold_out = name.startswith("sold out")
    witness, result = await run_once(flow, sold_out)
    stands = Counter(made for key, made in witness.world.done.items() if key not in witness.world.undone)
    assert witness.moments
    for moment in witness.moments:
        begun = [run.status for run in moment.disk.runs.values()]
        later = await after_crash(moment, flow, sold_out)
        check_once(later.world)
        now = Counter(made for key, made in later.world.done.items() if key not in later.world.undone)
        over = begun == ["done"] or begun == ["failed"]
        if not begun:
            assert not later.world.calls, moment.where
        elif on_crash == "resume" or over:
            assert statuses(later.disk) == [result.status], moment.where
            assert sum(now.values()) == sum(stands.values()), moment.where
            if name not in ("race", "quorum"):
                assert now == stands, moment.where
        else:
            assert statuses(later.disk) in (["cancelled"], [result.status]), moment.where
            assert not now or statuses(later.disk) == ["done"], moment.where


@pytest.mark.parametrize("name", ["sold out", "at once", "joins undone", "hedge"])
async def test_a_run_whose_second_process_dies_too_ends_right(name: str, autojump_clock: object) -> None:
    flow = Flow("shop", FLOWS[name], durability="sync")
    sold_out = name == "sold out"
    witness, result = await run_once(flow, sold_out)
    stands = Counter(made for key, made in witness.world.done.items() if key not in witness.world.undone)
    for first in witness.moments[::3]:
        for second in (await after_crash(first, flow, sold_out)).moments:
            last = await after_crash(second, flow, sold_out)
            assert statuses(last.disk) in ([], [result.status]), (first.where, second.where)
            now = Counter(made for key, made in last.world.done.items() if key not in last.world.undone)
            assert now == stands or not last.disk.runs, (first.where, second.where)
            assert all(count <= 3 for count in last.world.calls.values())


# ---- writes that nobody can ask about -------------------------------------------------------


@step
async def post_it() -> None:
    await post("hello")


@step
async def post_perhaps() -> None:
    await post("hello").optional()


@step
async def charge_blindly() -> None:
    await charge(1)


async def test_a_write_without_a_key_is_never_sent_twice(autojump_clock: object) -> None:
    for steps, ends in (([post_it], "unresolved"), ([post_perhaps], "done")):
        flow = Flow("shop", steps, durability="sync")
        witness, _ = await run_once(flow)
        seen = set()
        for moment in witness.moments:
            later = await after_crash(moment, flow)
            assert later.world.calls.total() <= 1, moment.where
            seen |= set(statuses(later.disk))
        assert seen == {ends, "done"}


async def test_a_write_with_a_key_is_sent_again_with_the_same_one(autojump_clock: object) -> None:
    flow = Flow("shop", [charge_blindly], durability="sync")
    witness, _ = await run_once(flow)
    for moment in witness.moments:
        later = await after_crash(moment, flow)
        assert len(later.world.calls) <= 1
        assert set(statuses(later.disk)) <= {"done"}


async def test_a_no_to_the_second_asking_says_nothing_of_the_first(autojump_clock: object) -> None:
    flow = Flow("shop", [step(name="buy")(charge_13)], durability="sync")
    witness, _ = await run_once(flow)
    before = next(moment for moment in witness.moments if moment.where == "before charge")
    later = await after_crash(before, flow, sold_out=True)
    assert statuses(later.disk) == ["unresolved"]


async def charge_13() -> None:
    await charge(13)


# ---- code that is not what it was -----------------------------------------------------------


@step(name="pay")
async def pay_twice_as_much(rate: Rate) -> Paid:
    return await charged(rate * 8)


async def test_code_that_goes_another_way_does_not_touch_the_run(autojump_clock: object) -> None:
    witness, _ = await run_once(SHOP)
    other = Flow("shop", [look, pay_twice_as_much, pay_more, tell], version="2", durability="sync")
    moment = next(moment for moment in witness.moments if moment.where == "after charge")
    later = Witness(moment.disk, moment.world)
    async with later.open(other) as runtime:
        await trio.sleep(60)
        ((_, why),) = runtime.statistics().stuck.items()
        assert why == "recorded asked pay.1 bank.charge; replayed asked pay.1 bank.charge, with other values"
    assert statuses(later.disk) == [""]
    assert later.world.calls == moment.world.calls


async def test_a_flow_that_is_not_here_leaves_the_run_alone(autojump_clock: object) -> None:
    witness, _ = await run_once(SHOP)
    moment = next(moment for moment in witness.moments if moment.where == "after charge")
    later = Witness(moment.disk, moment.world)
    async with later.open() as runtime:
        await trio.sleep(60)
        assert list(runtime.statistics().stuck.values()) == ["there is no flow 'shop' here"]
    assert statuses(later.disk) == [""]


async def test_a_deadline_goes_on_while_nobody_works_on_the_run(autojump_clock: object) -> None:
    flow = Flow("shop", [look, pay, pay_more, tell], durability="sync", deadline=5.0)
    witness, _ = await run_once(flow)
    moment = next(moment for moment in witness.moments if moment.where == "after page 7 ")
    for run in moment.disk.runs.values():
        run.opening = attrs.evolve(
            run.opening, head=attrs.evolve(run.opening.head, began_unix_ns=run.opening.head.began_unix_ns - 10**10)
        )
    later = await after_crash(moment, flow)
    assert statuses(later.disk) == ["deadline"]
    assert len(later.world.undone) == 1


async def test_the_timeline_tells_who_carried_the_run_on(autojump_clock: object) -> None:
    witness, _ = await run_once(SHOP)
    moment = next(moment for moment in witness.moments if moment.where == "after charge")
    later = await after_crash(moment, SHOP)
    assert "⚠ its process had died; carried on by " in format_timeline(later.ended[0].timeline)


# ---- any flow, any moment -------------------------------------------------------------------


@attrs.frozen
class Drawn:
    """A random flow. steady: whether it comes to the same whatever order things happen in."""

    stages: list[Stage]
    steady: bool


def _effects(numbers: Iterator[int]) -> st.SearchStrategy[tuple[Effect[Any], bool]]:
    def leaf(kind: str) -> tuple[Effect[Any], bool]:
        made: dict[str, Callable[[], Effect[Any]]] = {
            "charge": lambda: charged(next(numbers)),
            "sold out": lambda: charged(13).optional(),
            "rate": rate,
        }
        return made[kind](), True

    def joined(drawn: tuple[str, list[tuple[Effect[Any], bool]]]) -> tuple[Effect[Any], bool]:
        name, members = drawn
        effects = [effect for effect, _ in members]
        steady = all(steady for _, steady in members)
        if name == "hedge":
            return join.hedge(charged(next(numbers)), after=0.015, limit=2), True
        if name == "race":
            return join.race(*effects), False
        return (join.all if name == "all" else join.settle)(*effects), steady

    leaves = st.sampled_from(["charge", "charge", "rate", "sold out"]).map(leaf)
    names = st.sampled_from(["all", "settle", "race", "hedge"])
    return st.recursive(
        leaves, lambda inner: st.tuples(names, st.lists(inner, min_size=1, max_size=3)).map(joined), max_leaves=4
    )


@st.composite
def drawn_flows(draw: st.DrawFn) -> Drawn:
    numbers, names = itertools.count(20), itertools.count()
    steady = True

    def one() -> Stage:
        nonlocal steady
        asked = draw(st.lists(_effects(numbers), min_size=1, max_size=2))
        steady = steady and all(stable for _, stable in asked)

        async def ask() -> None:
            for effect, _ in asked:
                await effect

        return step(name=f"step{next(names)}")(ask)

    stages: list[Stage] = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 3))
        stages.append(one() if count == 1 else parallel(*(one() for _ in range(count))))
    if draw(st.booleans()):
        stages.append(no_more)
    return Drawn(stages, steady)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn_flows(), st.data())
def test_any_run_that_dies_at_any_moment_ends_right(drawn: Drawn, data: st.DataObject) -> None:
    flow = Flow("shop", drawn.stages, durability="sync")

    async def check() -> None:
        witness, result = await run_once(flow, sold_out=True)
        if not witness.moments:
            return
        moment = data.draw(st.sampled_from(witness.moments), label="dies")
        begun = bool(moment.disk.runs)
        later = await after_crash(moment, flow, sold_out=True)
        check_once(later.world)
        (status,) = statuses(later.disk) or [""]
        standing = {key for key in later.world.done if key not in later.world.undone}
        assert bool(status) == begun
        assert status == result.status or not (begun and drawn.steady)
        if status == "failed":
            assert not standing
        elif status == "done" and drawn.steady:
            assert len(standing) == len([key for key in witness.world.done if key not in witness.world.undone])

    trio.run(check, clock=MockClock(autojump_threshold=0))
