"""Proves what a story tells: what was read, decided and written, why it ended so, and what did not happen."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trace import shop
from tests.trace.made import Made, made
from zerver import Done, Fail, Flow, Insert, Part, Slot, branch, effect, step
from zerver.core import timeline as t
from zerver.core.joins import Join
from zerver.core.plan import compile_plan
from zerver.errors import ConnectionLost, InvalidData
from zerver.runtime import Result
from zerver.trace.facts import in_rollback
from zerver.trace.replaying.absent import Absence
from zerver.trace.replaying.story import Story, Told, retell
from zerver.trace.replaying.telling import format_story

FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
PLAN = compile_plan(shop.CHECKOUT)


def step_of(story: Story, name: str) -> Any:
    return next(step for step in story.steps if step.name == name)


def absent(story: Story, step: str) -> Absence:
    return next(absence for absence in story.absent if absence.step == step)


def shown(story: Story, step: str) -> tuple[dict[str, str], dict[str, str]]:
    told = step_of(story, step)
    return {one.name: bare(one) for one in told.reads}, {one.name: bare(one) for one in told.wrote}


def bare(told: Told) -> str:
    """What is shown of a value, without its quotes."""
    return told.text.strip("'\"")


# ---- a run as it was -------------------------------------------------------------------------


async def test_each_step_says_what_it_read_asked_and_wrote(autojump_clock: object) -> None:
    story = retell(PLAN, await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out}))
    assert story.faithful
    assert [step.name for step in story.steps] == ["verify", "charge", "create_order", "reserve"]
    assert shown(story, "create_order") == ({"auth.user": "user_1", "payment": "71"}, {"order.id": "1"})
    (asked,) = step_of(story, "charge").effects
    assert (asked.name, asked.asked, asked.came_to) == ("1", "payments.charge(1200, 'user_1')", "gave 71")
    assert asked.write == "undone"
    assert step_of(story, "charge").place.startswith("trace/shop.py:")
    assert step_of(story, "reserve").decided == "cart: sold out (conflict cart cart_soldout)"


async def test_it_says_why_what_was_undone_and_what_did_not_happen(autojump_clock: object) -> None:
    story = retell(PLAN, await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out}))
    assert story.causes == (
        "FAILED cart: sold out (conflict cart cart_soldout) in reserve; undone: create_order, charge",
    )
    assert [(deed.step, deed.state) for deed in story.deeds] == [
        ("charge", "undone"), ("create_order", "undone"), ("reserve", "done"),
    ]  # fmt: skip
    assert str(absent(story, "charge")) == (
        "no committed effect in charge (payments.charge): it happened, and was undone"
    )
    assert absent(story, "receipt").why == "not reached"
    assert absent(story, "receipt").text.startswith("reserve ended the run before: cart: sold out")


async def test_a_run_that_was_done_has_done_everything(autojump_clock: object) -> None:
    story = retell(PLAN, await shop.run(shop.CHECKOUT, {}))
    assert (story.ended, story.absent, story.causes, story.departure) == ("done", (), (), None)
    assert {deed.state for deed in story.deeds} == {"done"}


@pytest.mark.parametrize(
    ("world", "step", "why", "said"),
    [
        ({"sql.fetch_one": shop.after(0.001, None)}, "charge", "not reached", "verify ended the run before"),
        ({"sql.execute": shop.after(9)}, "reserve", "not reached", "the deadline came first"),
        (
            {"payments.charge": shop.keyed((9, 0)), "payments.find": shop.scripted((0.003, None))},
            "charge", "failed", "it was tried and failed",
        ),
        (
            {"sql.execute": shop.sold_out, "payments.refund": shop.keyed((0.01, ConnectionLost("gone")))},
            "charge", "unresolved", "nobody can say",
        ),
    ],
)  # fmt: skip
async def test_every_write_that_is_missing_has_its_reason(
    world: dict[str, Any], step: str, why: str, said: str, autojump_clock: object
) -> None:
    story = retell(PLAN, await shop.run(shop.CHECKOUT, world))
    assert story.faithful
    found = absent(story, step)
    assert found.why == why
    assert said in found.text


async def test_a_refused_run_says_that_nothing_ran(autojump_clock: object) -> None:
    story = retell(PLAN, await shop.refused())
    assert story.steps == ()
    assert {absence.why for absence in story.absent} == {"nothing ran"}
    assert "refused by admission" in absent(story, "charge").text
    assert "REFUSED by admission: draining" in format_story(story)
    with pytest.raises(InvalidData, match="nothing ran"):
        retell(PLAN, await shop.refused(), changes={"payment": 5})


async def test_a_run_under_way_is_told_as_far_as_it_has_come(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    for count in range(len(result.timeline.records)):
        begun = attrs.evolve(result, timeline=attrs.evolve(result.timeline, records=result.timeline.records[:count]))
        story = retell(PLAN, begun)
        assert story.departure is None
        if story.steps and not story.ended:
            missing = {absence.step: absence.why for absence in story.absent}
            happened = {deed.step for deed in story.deeds}
            assert "notice" in happened or missing["notice"] in ("not reached", "under way")
        json.dumps(story.to_plain())
        format_story(story)


async def test_a_parked_run_says_what_it_waits_for(autojump_clock: object) -> None:
    result = await shop.parked()
    records = result.timeline.records
    (at,) = (index for index, record in enumerate(records) if record[0] == t.PARKED)
    begun = attrs.evolve(result, timeline=attrs.evolve(result.timeline, records=records[: at + 1]))
    story = retell(compile_plan(shop.APPROVAL), begun)
    assert step_of(story, "ask_boss").state == "waits"
    assert step_of(story, "ask_boss").decided == "waits for 'approval'"


async def test_without_code_the_records_are_told(autojump_clock: object) -> None:
    story = retell(None, await shop.run(shop.CHECKOUT, {}))
    assert [step.name for step in story.steps][:2] == ["verify", "charge"]
    assert any("no code here" in note for note in story.notes)


async def test_another_version_of_the_flow_is_said(autojump_clock: object) -> None:
    story = retell(PLAN, await shop.run(shop.CHECKOUT, {}), version="2")
    assert story.notes == ("recorded with version 1 of flow checkout, replayed with 2",)
    assert story.faithful


@effect(kind="gift.wrap", access="write")
async def wrap(what: str) -> None:
    raise NotImplementedError


@step
async def wrapped(cart: shop.Cart) -> None:
    if cart > 100:
        await wrap("all")


@step
async def ribbon() -> None:
    await wrap("ribbon")


@step
def three() -> shop.Cart:
    return 3


def is_gift(cart: shop.Cart) -> bool:
    return False


async def test_branches_and_steps_that_did_not_ask_are_told_apart(autojump_clock: object) -> None:
    flow = Flow("gifts", [three, wrapped, branch(is_gift, ribbon)], gives=[shop.Cart])
    story = retell(compile_plan(flow), await shop.run(flow, {"gift.wrap": shop.after(0)}))
    assert absent(story, "wrapped").text == "the step ran and did not ask for it"
    assert absent(story, "ribbon").text == "branch branch(is_gift) said no"


# ---- what if ---------------------------------------------------------------------------------


async def test_a_slot_with_another_value_shows_where_it_leads(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    story = retell(PLAN, result, changes={"order.id": b"12"})
    assert story.changed == ("order.id",)
    assert story.ended == "done"
    assert not story.open_end
    assert next(one for one in step_of(story, "render").reads if one.changed).text == "12"
    assert story.departure is not None
    assert (story.departure.step, story.departure.recorded, story.departure.replayed) == (
        "render", "is done with {'order': 1}", "is done with {'order': 12}",
    )  # fmt: skip
    assert story.result.value == {"order": 12}
    assert result.value == {"order": 1}


async def test_where_the_world_has_no_answer_the_story_ends(autojump_clock: object) -> None:
    story = retell(PLAN, await shop.run(shop.CHECKOUT, {}), changes={"auth.user": "ann"})
    assert story.ended == ""
    assert story.open_end == "the recorded world has no answer to payments.charge(1200, 'ann') (charge.1)"
    assert story.departure is not None
    assert story.departure.at == "argument 2: 'user_1', now 'ann'"
    assert absent(story, "charge").why == "under way"
    answered = retell(PLAN, story.recorded, changes={"auth.user": "ann"}, answers={"charge.1": 71})
    assert answered.open_end == "the recorded world has no answer to sql.execute insert orders (create_order.1)"
    assert [(deed.step, deed.state) for deed in answered.deeds] == [("charge", "done")]


class Word(Part):
    source = "word"


Note = Annotated[str, Slot("note")]


@step
async def read_note(word: Annotated[str, Word()], user: shop.User) -> Note | Fail:
    return Fail.invalid("word") if not word else f"{word} of {user}"


@step
async def use_note(note: Note) -> Done:
    await shop.tokenize(note)
    return Done(note)


WORDS = Flow("words", [read_note, use_note], takes=[shop.User])


async def words(word: str = "") -> Result:
    return await shop.run(WORDS, {}, given={"word": word, "auth.user": "ann"})


async def test_inputs_and_taken_slots_take_other_values(autojump_clock: object) -> None:
    plan, result = compile_plan(WORDS), await words()
    assert retell(plan, result).ended == "failed"
    story = retell(plan, result, changes={"word.word": b'"hello"', "auth.user": b'"bob"'})
    assert shown(story, "read_note")[0] == {"word.word": "hello", "auth.user": "bob"}
    assert shown(story, "read_note")[1] == {"note": "hello of bob"}
    assert "vault.tokenize" in story.open_end
    assert retell(plan, result, changes={"word": b'"x"'}).changed == ("word",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"payment": b'"much"'}, "payment: expected `int`, got `str`; payment is declared as int"),
        ({"payment": b"{"}, "payment: input data was truncated; payment is declared as int"),
        ({"paymnt": b"1"}, "paymnt: is no slot or input of flow 'checkout'; near are: payment"),
        ({"header.x": b"1"}, "is no slot or input of flow"),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused(
    changes: dict[str, object], said: str, autojump_clock: object
) -> None:
    with pytest.raises(InvalidData, match=said):
        retell(PLAN, await shop.run(shop.CHECKOUT, {}), changes=changes)


async def test_a_change_that_no_step_comes_to_write_is_said(autojump_clock: object) -> None:
    story = retell(PLAN, await shop.run(shop.CHECKOUT, {"sql.fetch_one": shop.after(0, None)}), changes={"payment": 5})
    assert story.notes == ("payment was given another value, but no step came to write it",)


async def test_a_cut_run_is_cut_again(autojump_clock: object) -> None:
    story = retell(PLAN, await shop.cancelled(), changes={"payment": 5})
    assert story.ended == "cancelled"
    assert not story.open_end


# ---- until -----------------------------------------------------------------------------------


async def test_until_stops_behind_a_step_and_shows_the_slots(autojump_clock: object) -> None:
    story = retell(PLAN, await shop.run(shop.CHECKOUT, {}), until="charge")
    assert [step.name for step in story.steps] == ["verify", "charge"]
    assert [(slot.name, bare(slot)) for slot in story.slots] == [("auth.user", "user_1"), ("payment", "71")]
    assert (story.ended, story.absent, story.causes) == ("", (), ())
    with pytest.raises(InvalidData, match="there is no step 'chrge'; the steps are: verify, charge"):
        retell(PLAN, story.recorded, until="chrge")


# ---- other code ------------------------------------------------------------------------------


def rendered(answer: Any) -> Any:
    @step(name="render")
    def render(order: shop.Order, payment: shop.Payment) -> Done:
        return Done(answer())

    return render


def plan_with(**steps: Any) -> Any:
    line: list[Any] = [shop.verify, shop.charge, shop.create_order, shop.reserve, shop.render]
    return compile_plan(Flow("checkout", [steps.get(one.name, one) for one in line], deadline=2.0))


async def recorded() -> Result:
    return await shop.run(
        Flow("checkout", [shop.verify, shop.charge, shop.create_order, shop.reserve, shop.render]), {}
    )


async def test_other_code_is_told_with_both_sides(autojump_clock: object) -> None:
    @step(name="charge")
    async def dearer(user: shop.User) -> shop.Payment:
        cents = 1300
        return (
            await shop.pay(cents, user).with_policy(timeout=0.044, retries=2).compensate(shop.refund, resolve=shop.find)
        )

    story = retell(plan_with(charge=dearer), await recorded())
    assert story.departure is not None
    first, recorded_, replayed, at = str(story.departure).splitlines()
    assert first.startswith("charge departs (trace/test_story.py:")
    assert first.endswith("), charge.1")
    assert recorded_ == "  - recorded  asks for payments.charge(1200, 'user_1')"
    assert replayed == "  + replayed  asks for payments.charge(1300, 'user_1')"
    assert at == "    argument 1: 1200, now 1300"
    assert "the code departs from the record" in format_story(story)


async def test_a_policy_or_a_compensation_that_is_other_is_told_at_length(autojump_clock: object) -> None:
    @step(name="charge")
    async def careless(user: shop.User) -> shop.Payment:
        return await shop.pay(1200, user).with_policy(timeout=0.044, retries=2)

    story = retell(plan_with(charge=careless), await recorded())
    assert story.departure is not None
    assert story.departure.recorded.endswith("undone by undo and resolve")
    assert story.departure.replayed.endswith("never undone")


async def test_a_step_that_looks_at_a_clock_is_found_out(autojump_clock: object) -> None:
    story = retell(plan_with(render=rendered(time.perf_counter)), await recorded())
    assert story.departure is not None
    assert story.departure.step == "render"
    assert story.notes[0].startswith("render is no function of what it reads (two replays of it differ)")
    assert "clock.now()" in story.notes[0]
    same = retell(plan_with(render=rendered(lambda: 5)), await recorded())
    assert same.notes == ()


async def test_a_defect_is_told_with_its_line(autojump_clock: object) -> None:
    story = retell(plan_with(render=rendered(lambda: 1 // 0)), await recorded())
    assert story.departure is not None
    assert story.departure.replayed.startswith("raises ZeroDivisionError")
    assert story.departure.place.startswith("trace/test_story.py:")


@attrs.frozen
class Line:
    price: int


Lines = Annotated[list[Line], Slot("lines")]


async def test_the_place_inside_a_value_is_named(autojump_clock: object) -> None:
    def lines(price: int) -> Any:
        @step
        def load() -> Lines:
            return [Line(1), Line(price)]

        return Flow("lines", [load], gives=[Lines])

    story = retell(compile_plan(lines(700)), await shop.run(lines(500), {}))
    assert story.departure is not None
    assert (story.departure.about, story.departure.at) == ("slot lines", "lines[1].price: 500, now 700")


@step
def insert_two() -> Insert:
    return Insert([three])


async def test_inserted_steps_are_told(autojump_clock: object) -> None:
    flow = Flow("insert", [insert_two])
    story = retell(compile_plan(flow), await shop.run(flow, {}))
    assert story.faithful
    assert [step.name for step in story.steps] == ["insert_two", "three"]
    assert retell(compile_plan(flow), story.recorded, until="three").slots[0].text == "3"


# ---- any run ---------------------------------------------------------------------------------


@FEW
@given(made(), st.data())
def test_any_run_has_a_story_and_no_secret_in_it(run: Made, data: st.DataObject) -> None:
    result = Result(run.timeline, run.timeline.ending or t.Ending("cancelled"), run.unresolved)
    slots = sorted(run.again.slots)
    changes = dict.fromkeys(data.draw(st.lists(st.sampled_from(slots), max_size=2)), "other") if slots else {}
    names = [node.name for node in run.again.line if hasattr(node, "step")]
    until = data.draw(st.sampled_from([None, *names]))
    story = retell(run.again, result, changes=changes, until=until)
    text = format_story(story) + json.dumps(story.to_plain(), ensure_ascii=False)
    for secret in run.timeline.secret:
        assert f"wrote {secret} of" not in text
        assert f"given {secret}" not in text
    if not changes:
        assert story.faithful
        assert until is not None or story.ended == result.status


@FEW
@given(made())
def test_every_write_that_was_asked_for_is_accounted_for(run: Made) -> None:
    result = Result(run.timeline, run.timeline.ending or t.Ending("cancelled"), run.unresolved)
    story = retell(run.again, result)
    told = {(deed.step, deed.kind) for deed in story.deeds} | {(one.step, one.kind) for one in story.absent}
    for kind, _, subject, _ in run.timeline.records:
        if kind != t.ASKED or in_rollback(subject) or isinstance(subject.effect, Join):
            continue
        assert subject.effect.kind.access == "read" or (subject.step, subject.effect.kind.name) in told
