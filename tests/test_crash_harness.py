"""The crash harness finds what it is there to find: each invariant fails on a doctored history, and a shop that is
killed again and again violates none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio

from scripts.crashing.campaign import Plan, run
from scripts.crashing.evidence import STOCK, Call, Evidence, Order, Row, Story, read_story
from scripts.crashing.invariants import CHECKS, hits, violations
from zerver import App, Done, Flow, effect, step
from zerver.core import timeline as t
from zerver.core.calls import Call as Asked
from zerver.core.effects import Success
from zerver.core.saga import Entry
from zerver.core.timeline import Record
from zerver.effects import clock
from zerver.journal import open_memory_journal
from zerver.runtime import open_runtime
from zerver.runtime.journal import UNRESOLVED

# ---- a history in which nothing is wrong ------------------------------------------------------

CHARGE = "payment.charge"


class Step:
    """What a record of a step is about."""

    def __init__(self, name: str) -> None:
        self.name = name


def called(run_id: str, step: str) -> Asked:
    return Asked(run_id, step, "1", clock.sleep(1.0))


def asked(run_id: str, step: str) -> list[Record]:
    call = called(run_id, step)
    return [(t.ASKED, 0, call, None), (t.COMMITTED, 0, call, 1), (t.SETTLED, 0, call, Success(1))]


def answered(step: str) -> Record:
    return (t.STEP, 0, Step(step), (0, 1))


def undone(run_id: str, step: str) -> list[Record]:
    entry = Entry(called(run_id, step), "undone", 1, None)
    return [(t.UNDO, 0, entry, "undo"), (t.UNDONE, 0, entry, ("undo", Success(1)))]


def recovered() -> Record:
    return (t.RECOVERED, 0, "checkout", "4.other")


def key(run_id: str, step: str = CHARGE) -> str:
    return f"{run_id}:{step}:1"


def history() -> Evidence:
    """Two orders: one stands, and its charge was hit by a crash; the other was sold out, and was undone."""
    stands, sold_out = "run_1", "run_2"
    call = called(stands, CHARGE)
    settled: list[Record] = [(t.COMMITTED, 0, call, 1), (t.SETTLED, 0, call, Success(1))]
    good: list[Record] = [(t.ASKED, 0, call, None), recovered(), *settled, answered(CHARGE)]
    good += [*asked(stands, "order.create"), answered("order.create")]
    bad = [*asked(sold_out, CHARGE), answered(CHARGE), *asked(sold_out, "order.create"), answered("order.create")]
    bad += [*undone(sold_out, "order.create"), *undone(sold_out, CHARGE)]
    lines = {"tea": 2}
    return Evidence(
        dedupe=True,
        orders=[Order("ref_1", 201, "order_1", key(stands)), Order("ref_2", 409), Order("ref_3", 0)],
        rows=[
            Row("order_1", "ref_1", key(stands), 900, "placed", lines, lines),
            Row("order_2", "ref_2", key(sold_out), 900, "cancelled", {}, lines),
        ],
        stock={"tea": STOCK - 2},
        calls=[
            Call("charge", key(stands), key(stands), "user_1 ref_1", ""),
            Call("charge", key(stands), key(stands), "user_1 ref_1", ""),
            Call("charge", key(sold_out), key(sold_out), "user_2 ref_2", ""),
            Call("refund", key(sold_out) + ".undo", key(sold_out), "", "cut"),
            Call("refund", key(sold_out) + ".undo", key(sold_out), "", ""),
        ],
        charges={key(stands): [900], key(sold_out): [900]},
        refunds={key(sold_out): 900},
        stories=[Story(stands, "done", 2, good), Story(sold_out, "failed", 1, bad)],
    )


def test_nothing_is_wrong_with_a_history_in_which_nothing_is() -> None:
    assert violations(history()) == []


# ---- doctored histories -----------------------------------------------------------------------

Doctor = Callable[[Evidence], Evidence]
DOCTORS: dict[str, tuple[str, Doctor]] = {}


def doctor(name: str, says: str) -> Callable[[Doctor], Doctor]:
    """says: words of the violation that the check of this name is to tell."""

    def register(made: Doctor) -> Doctor:
        DOCTORS[f"{name}: {says}"] = (says, made)
        return made

    return register


def story(evidence: Evidence, number: int, **changes: object) -> Evidence:
    stories = list(evidence.stories)
    stories[number] = attrs.evolve(stories[number], **changes)
    return attrs.evolve(evidence, stories=stories)


def row(evidence: Evidence, number: int, **changes: object) -> Evidence:
    rows = list(evidence.rows)
    rows[number] = attrs.evolve(rows[number], **changes)
    return attrs.evolve(evidence, rows=rows)


@doctor("ended", "has not ended")
def unfinished(evidence: Evidence) -> Evidence:
    return story(evidence, 0, status="")


@doctor("ended", "is unresolved")
def unresolved(evidence: Evidence) -> Evidence:
    return story(evidence, 0, status=UNRESOLVED)


@doctor("acked", "was acknowledged, and gone")
def lost(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, rows=evidence.rows[1:])


@doctor("acked", "was acknowledged, and cancelled")
def taken_back(evidence: Evidence) -> Evidence:
    return row(evidence, 0, status="cancelled")


@doctor("acked", "with another payment")
def other_payment(evidence: Evidence) -> Evidence:
    return row(evidence, 0, payment="run_9:payment.charge:1")


@doctor("acked", "was answered with 409, and stands")
def refused_and_stands(evidence: Evidence) -> Evidence:
    return row(evidence, 1, status="placed")


@doctor("acked", "stands 2 times")
def ordered_twice(evidence: Evidence) -> Evidence:
    return row(evidence, 1, status="placed", reference="ref_1")


@doctor("money", "was charged []")
def never_charged(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, charges={key("run_2"): [900]})


@doctor("money", "was charged [900, 900]")
def charged_twice(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, charges={**evidence.charges, key("run_1"): [900, 900]})


@doctor("money", "was charged [1]")
def charged_otherwise(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, charges={**evidence.charges, key("run_1"): [1]})


@doctor("money", "stands, and its charge was refunded")
def refunded_and_stands(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, refunds={**evidence.refunds, key("run_1"): 900})


@doctor("money", "charged, no order, 0 refunded")
def never_refunded(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, refunds={})


@doctor("money", "charged, no order, 450 refunded")
def refunded_in_part(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, refunds={key("run_2"): 450})


@doctor("money", "is cancelled, with stock")
def kept_its_stock(evidence: Evidence) -> Evidence:
    return row(evidence, 1, taken={"tea": 2})


@doctor("money", "left the stock, 2 were taken")
def stock_is_gone(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, stock={"tea": STOCK - 4})


@doctor("calls", "was called 3 times, with 1 crashes in it and 0 faults")
def called_too_often(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, calls=[*evidence.calls, evidence.calls[0]])


@doctor("calls", "was called 3 times, with 0 crashes in it and 1 faults")
def refunded_too_often(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, calls=[*evidence.calls, evidence.calls[-1]])


@doctor("calls", "was called 2 times, with 0 crashes in it and 0 faults")
def crashed_behind_it(evidence: Evidence) -> Evidence:
    """The outcome was in the journal when the process died, and it was called again all the same."""
    records = list(evidence.stories[0].records)
    records.remove(recovered())
    return story(evidence, 0, records=[*records, recovered()])


@doctor("once", "was asked for after its step had answered")
def asked_again(evidence: Evidence) -> Evidence:
    again = Asked("run_1", CHARGE, "2", clock.sleep(1.0))
    return story(evidence, 0, records=[*evidence.stories[0].records, (t.ASKED, 0, again, None)])


@doctor("once", "has answered twice")
def answered_twice(evidence: Evidence) -> Evidence:
    return story(evidence, 0, records=[*evidence.stories[0].records, answered(CHARGE)])


@doctor("once", "is recorded as committed 2 times")
def committed_twice(evidence: Evidence) -> Evidence:
    again = (t.COMMITTED, 0, called("run_1", CHARGE), 1)
    return story(evidence, 0, records=[*evidence.stories[0].records, again])


@doctor("keys", "has the keys run_1:payment.charge:1, run_9:payment.charge:1")
def another_key(evidence: Evidence) -> Evidence:
    other = attrs.evolve(evidence.calls[0], key=key("run_9"))
    return attrs.evolve(evidence, calls=[other, *evidence.calls[1:]])


@doctor("keys", "was refunded with the key")
def another_refund(evidence: Evidence) -> Evidence:
    other = attrs.evolve(evidence.calls[-1], key="run_2:payment.charge:1.again")
    return attrs.evolve(evidence, calls=[*evidence.calls[:-1], other])


@doctor("reverse", "undone in the order")
def forwards(evidence: Evidence) -> Evidence:
    records = evidence.stories[1].records
    return story(evidence, 1, records=[*records[:-4], *records[-2:], *records[-4:-2]])


@doctor("reverse", "was undone 2 times")
def undone_twice(evidence: Evidence) -> Evidence:
    records = evidence.stories[1].records
    return story(evidence, 1, records=[*records, records[-1]])


@doctor("ghosts", "the journal has no such run")
def ghost_run(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, stories=evidence.stories[:1])


@doctor("ghosts", "the journal has no intent of it")
def ghost_refund(evidence: Evidence) -> Evidence:
    return story(evidence, 1, records=evidence.stories[1].records[:-2])


@doctor("replay", "goes another way")
def astray(evidence: Evidence) -> Evidence:
    return story(evidence, 0, trouble="goes another way")


@pytest.mark.parametrize("name", DOCTORS)
def test_each_invariant_fails_on_a_doctored_history(name: str) -> None:
    says, doctored = DOCTORS[name]
    check = next(check for check in CHECKS if check.__name__ == f"check_{name.partition(':')[0]}")
    told = [str(violation) for violation in check(doctored(history()))]
    assert any(says in violation for violation in told), told


def test_every_invariant_is_doctored() -> None:
    assert {name.partition(":")[0] for name in DOCTORS} == {check.__name__.removeprefix("check_") for check in CHECKS}


def test_a_crash_that_hit_nothing_is_not_counted() -> None:
    records = [recovered(), *asked("run_1", CHARGE), recovered(), *undone("run_1", CHARGE), recovered()]
    assert hits(records, (CHARGE, "1")) == hits(records, (CHARGE, "1.undo")) == 0
    assert hits([*records[:2], recovered(), *records[2:]], (CHARGE, "1")) == 1
    undo = [*records[:-2], recovered(), recovered(), *records[-2:]]
    assert hits(undo, (CHARGE, "1.undo")) == 2


# ---- the replay of what is stored -------------------------------------------------------------


@effect(kind="shop.write", access="write")
async def write(text: str) -> str:
    await trio.lowlevel.checkpoint()
    return text


def small_app(*texts: str) -> App:
    @step
    async def first() -> None:
        await write(texts[0])

    @step
    async def second() -> Done:
        return Done(await write(texts[1]))

    app = App()
    app.route("POST", "/small", Flow("small", [first, second], durability="sync"))
    return app


async def test_what_is_stored_replays_to_the_same_history() -> None:
    app = small_app("one", "two")
    async with open_memory_journal() as journal, open_runtime(app, journal=journal) as runtime:
        result = await runtime.run(app.routes[0].flow)
        stored = await journal.read(result.run_id)
        assert stored is not None
        assert read_story(journal, stored, app).trouble == ""
        assert read_story(journal, stored, small_app("one", "two")).trouble == ""
        assert "three" in read_story(journal, stored, small_app("one", "three")).trouble
        assert "it is kept as failed" in read_story(journal, attrs.evolve(stored, status="failed"), app).trouble
        torn = attrs.evolve(stored, lines=stored.lines[1:])
        assert read_story(journal, torn, app).trouble
        less = attrs.evolve(stored, lines=stored.lines[:-1])
        assert "recorded nothing" in read_story(journal, less, app).trouble


# ---- a small campaign --------------------------------------------------------------------------

SMALL = {
    "sqlite, one worker": Plan(kills=15, journal="sqlite", workers=1, seed=11, at_once=4),
    "postgres, two workers": Plan(kills=10, journal="postgres", workers=2, seed=12, at_once=4, asks=True),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_shop_that_is_killed_again_and_again(name: str, tmp_path: Path) -> None:
    figures, wrong = run(SMALL[name], tmp_path)
    assert [str(violation) for violation in wrong] == [], (tmp_path / "shop.log").read_text()
    assert figures.kills == SMALL[name].kills
    assert figures.acked > 0
    assert figures.recovered > 0
