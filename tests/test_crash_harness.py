"""The crash harness finds what it is there to find: each invariant fails on a doctored history, and a shop that is
killed again and again violates none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio

from scripts.crashing import job_invariants
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
from zerver.jobs.port import Job
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


#: Orders by what is ordered with them: a receipt alone; pack and ship too; counts and a report.
ALONE, CHAINED, COUNTED = "000000", "000001", "000002"


def job(flow: str, order: str, **said: object) -> Job:
    """A job that is done, by its first run."""
    part = said.pop("part", 0)
    job_id = f"{flow}{part or ''}"
    body = json.dumps({"order": order, "part": part})
    numbers = {"job_id": job_id, "seq": 1, "flow": flow, "queue": "errands", "body": body, "tenant": "default"}
    numbers |= {"priority": "batch", "state": "done", "at_unix_ns": 1, "attempt": 1, "attempts": 8, "fence": 1}
    numbers |= {"rescues": 0, "owner": "", "run_id": f"job_{job_id}.1", "error": "", "result": body}
    numbers |= {"ordered_unix_ns": 1, "began_unix_ns": 2, "ended_unix_ns": 3, "releases": "", "awaits": 0, "unique": ""}
    numbers |= {"origin": "", "parent": "", "done": 0, "total": 0, "note": "", "settled": 1}
    return Job(**(numbers | said))


def work() -> Evidence:
    """The jobs of three orders, all done: one was rescued, another one cut off by the provider."""
    jobs = [
        job("receipt", ALONE),
        attrs.evolve(job("receipt", CHAINED), job_id="receipt2", run_id="job_receipt2.1"),
        attrs.evolve(job("receipt", COUNTED), job_id="receipt3", run_id="job_receipt3.2", settled=2, attempt=2),
        job("pack", CHAINED, releases="ship", rescues=1),
        job("ship", CHAINED),
        job("count", COUNTED, releases="report"),
        job("count", COUNTED, releases="report", part=1),
    ]
    results = [json.loads(one.result or "") for one in jobs[-2:]]
    jobs.append(attrs.evolve(job("report", COUNTED), body=json.dumps(results)))
    keys = ["receipt.1", "receipt2.1", "receipt3.1", "receipt3.2", "pack.1", "pack.1", "ship.1", "count.1", "count1.1"]
    calls = [Call("errand", done_by(run), done_by(run), "", "") for run in [*keys, "report.1"]]
    calls[2] = attrs.evolve(calls[2], fault="cut")
    taken_back = done_by("receipt3.1")
    calls.insert(3, Call("withdrawal", f"{taken_back}.undo", taken_back, "", ""))
    failed: list[Record] = [(t.ASKED, 0, called("job_receipt3.1", "do"), None), *undone("job_receipt3.1", "do")]
    stories = [Story("job_receipt3.1", "failed", 1, failed)]
    ended = [f"job_{run}" for run in (*keys[:2], "receipt3.2", "ship.1")]
    stories += [Story(run_id, "done", 1, asked(run_id, "do")) for run_id in ended]
    rows = [Row(order, f"ref_{order}", "", 0, "cancelled", {}, {}) for order in (ALONE, CHAINED, COUNTED)]
    return attrs.evolve(
        history(),
        rows=rows, orders=[], stock={}, charges={}, refunds={}, calls=calls, stories=stories, jobs=jobs,
        performed={call.key: 1 for call in calls if call.verb == "errand"}, withdrawn=[taken_back],
    )  # fmt: skip


def done_by(run: str) -> str:
    return key(f"job_{run}", "do")


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
    others = [check for check in CHECKS if check not in job_invariants.CHECKS]  # there are no jobs in it
    assert [violation for check in others for violation in check(history())] == []
    assert violations(work()) == []


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


def changed(evidence: Evidence, which: str, **changes: object) -> Evidence:
    """Another thing is said of the job of this id."""
    jobs = [attrs.evolve(one, **changes) if one.job_id == which else one for one in evidence.jobs]
    return attrs.evolve(evidence, jobs=jobs)


def without(evidence: Evidence, which: str) -> Evidence:
    return attrs.evolve(evidence, jobs=[one for one in evidence.jobs if one.job_id != which])


@doctor("ordered", "has the jobs {}")
def job_is_lost(evidence: Evidence) -> Evidence:
    return without(evidence, "receipt")


@doctor("ordered", "has the jobs {'receipt': 2}")
def job_is_there_twice(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, jobs=[*evidence.jobs, evidence.jobs[0]])


@doctor("ordered", "which is no order")
def order_is_lost(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, rows=evidence.rows[1:])


@doctor("over", "is dead before its time")
def given_up(evidence: Evidence) -> Evidence:
    return changed(evidence, "pack", state="dead")


@doctor("over", "is parked, and never ended")
def forgotten(evidence: Evidence) -> Evidence:
    return changed(evidence, "receipt", state="parked")


@doctor("over", "is cancelled, and never ended")
def cancelled_by_nobody(evidence: Evidence) -> Evidence:
    return changed(evidence, "receipt", state="cancelled")


@doctor("over", "waits, and what it waits for is done")
def never_told(evidence: Evidence) -> Evidence:
    return changed(evidence, "report", state="waiting", body=None, began_unix_ns=0)


@doctor("performed", "the provider has nothing of it")
def not_done(evidence: Evidence) -> Evidence:
    return changed(evidence, "ship", run_id="job_ship.9")


@doctor("performed", "the provider has nothing of it")
def done_and_taken_back(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, withdrawn=[*evidence.withdrawn, done_by("pack.1")])


@doctor("taken_back", "was not taken back")
def left_undone(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, withdrawn=[])


@doctor("runs", "there is no such job")
def job_of_nobody(evidence: Evidence) -> Evidence:
    return without(evidence, "receipt")


@doctor("runs", "had run 2, and 1 are known")
def one_run_too_many(evidence: Evidence) -> Evidence:
    again = attrs.evolve(evidence.calls[0], key=done_by("receipt.2"))
    return attrs.evolve(evidence, calls=[*evidence.calls, again])


@doctor("runs", "was called 2 times, with 0 rescues and 0 faults")
def begun_twice(evidence: Evidence) -> Evidence:
    return changed(evidence, "pack", rescues=0)


@doctor("in_turn", "ship ship began before pack pack was done")
def out_of_turn(evidence: Evidence) -> Evidence:
    return attrs.evolve(evidence, calls=evidence.calls[::-1])


@doctor("in_turn", "report report began before count count was done")
def before_all(evidence: Evidence) -> Evidence:
    return changed(evidence, "count", state="dead", attempt=8)


@doctor("in_turn", "the results are")
def another_result(evidence: Evidence) -> Evidence:
    return changed(evidence, "report", body='[{"order": "000002", "part": 0}, {"order": "000002", "part": 0}]')


@doctor("in_turn", "which is not there")
def successor_is_lost(evidence: Evidence) -> Evidence:
    return without(evidence, "ship")


@pytest.mark.parametrize("name", DOCTORS)
def test_each_invariant_fails_on_a_doctored_history(name: str) -> None:
    says, doctored = DOCTORS[name]
    check = next(check for check in CHECKS if check.__name__ == f"check_{name.partition(':')[0]}")
    made = work() if check in job_invariants.CHECKS else history()
    told = [str(violation) for violation in check(doctored(made))]
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
    "postgres, away": Plan(kills=6, journal="postgres", workers=1, seed=13, at_once=4, profile="outage"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_shop_that_is_killed_again_and_again(name: str, tmp_path: Path) -> None:
    figures, wrong = run(SMALL[name], tmp_path)
    assert [str(violation) for violation in wrong] == [], (tmp_path / "shop.log").read_text()
    assert figures.kills >= SMALL[name].kills
    assert figures.jobs > 0
    assert figures.acked > 0
    assert figures.recovered > 0
