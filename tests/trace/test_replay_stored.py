"""Proves that a run which was written and read again replays as it was, and that other code departs where it did."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.trace import shop
from tests.trace.made import Made, made
from tests.trace.mutants import MUTANTS, mutate
from tests.trace.test_replay_mutants import begun
from zerver import Flow
from zerver.core import timeline as t
from zerver.core.plan import Plan, compile_plan
from zerver.core.replan import steps_in
from zerver.errors import ConnectionLost
from zerver.runtime import Result
from zerver.trace.recording import decode_run, encode_run
from zerver.trace.recording.vocabulary import Vocabulary
from zerver.trace.replaying.replay import replay
from zerver.trace.replaying.story import retell
from zerver.trace.replaying.telling import format_story

FEW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def stored(result: Result, plan: Plan | None = None) -> Result:
    """The run, written and read again."""
    recording = encode_run(result, began_unix_ns=0)
    return decode_run(recording, vocabulary=None if plan is None else Vocabulary.of(plan))


def result_of(run: Made) -> Result:
    return Result(run.timeline, run.timeline.ending or t.Ending("cancelled"), run.unresolved)


@FEW
@given(made())
def test_any_run_replays_after_it_was_written_and_read(run: Made) -> None:
    read = stored(result_of(run), run.again)
    found = replay(run.again, read.timeline)
    assert found.divergence is None, str(found.divergence)
    assert [record[:2] for record in found.records] == [record[:2] for record in run.timeline.records]


@pytest.mark.parametrize("how", MUTANTS)
@FEW
@given(made(), st.data())
def test_other_code_departs_from_a_stored_run_where_it_departs_from_the_run(
    how: str, run: Made, data: st.DataObject
) -> None:
    steps = begun(run)
    assume(steps and not run.timeline.secret)
    read = stored(result_of(run), run.again)
    name = data.draw(st.sampled_from(sorted(steps)))
    mutate(next(node for node in steps_in(run.again.line) if node.name == name), how)
    one, other = replay(run.again, run.timeline).divergence, replay(run.again, read.timeline).divergence
    assert (one and one.index) == (other and other.index)
    assert other is None or other.step == name


@FEW
@given(made(), st.data())
def test_a_stored_run_has_a_story_with_code_and_without(run: Made, data: st.DataObject) -> None:
    recorded = stored(result_of(run), run.again)
    slots = sorted(run.again.slots)
    changes = dict.fromkeys(data.draw(st.lists(st.sampled_from(slots), max_size=2)), b'"other"') if slots else {}
    for story in (
        retell(run.again, recorded),
        retell(run.again, recorded, changes=changes),
        retell(None, stored(result_of(run))),
    ):
        text = format_story(story) + json.dumps(story.to_plain(), ensure_ascii=False)
        for secret in run.timeline.secret:
            assert f"wrote {secret} of" not in text
            assert f"given {secret}" not in text


WORLDS: dict[str, dict[str, Any]] = {
    "clean": {},
    "retried": {"payments.charge": shop.keyed((9, 0), (0.04, 71))},
    "lost reply": {"payments.charge": shop.keyed((9, 0))},
    "sold out": {"sql.execute": shop.sold_out},
    "refund fails": {"sql.execute": shop.sold_out, "payments.refund": shop.keyed((0.01, ConnectionLost("gone")))},
    "deadline": {"sql.execute": shop.after(9)},
    "no database": {"sql.fetch_one": shop.after(0.001, ConnectionLost("gone"))},
}


@pytest.mark.parametrize("world", WORLDS)
async def test_runs_of_the_runtime_tell_the_same_story_from_a_file(world: str, autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, WORLDS[world])
    plan = compile_plan(shop.CHECKOUT)
    live, read = retell(plan, result), retell(plan, stored(result, plan))
    assert (read.faithful, read.ended) == (True, result.status)
    assert read.causes == live.causes
    assert read.absent == live.absent
    assert read.deeds == live.deeds
    assert [attrs.evolve(step, place="") for step in read.steps] == [
        attrs.evolve(step, place="") for step in live.steps
    ]


async def test_joins_tell_the_same_story_from_a_file(autojump_clock: object) -> None:
    flow = Flow("front", [shop.front, shop.prices], gives=[shop.Cart])
    result = await shop.run(flow, {"http.read": shop.slow_once})
    read = retell(compile_plan(flow), stored(result, compile_plan(flow)))
    assert (read.faithful, read.steps) == (True, retell(compile_plan(flow), result).steps)


async def test_parked_and_refused_runs_too(autojump_clock: object) -> None:
    plan = compile_plan(shop.APPROVAL)
    assert retell(plan, stored(await shop.parked(), plan)).faithful
    refused = retell(compile_plan(shop.CHECKOUT), stored(await shop.refused()))
    assert {absence.why for absence in refused.absent} == {"nothing ran"}
