"""Proves that the spans of any run are a tree that covers it, tells each record once, and agrees with its accounts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trace import shop
from tests.trace.made import Made, made
from zerver import Flow, step
from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.effects import EffectKind, Failure, Success
from zerver.core.timeline import Timeline
from zerver.errors import ConnectionLost, EffectError
from zerver.trace.recording import decode_run, encode_run
from zerver.trace.spans import Span, spans

MANY = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def check_tree(timeline: Timeline) -> tuple[Span, ...]:
    found = spans(timeline)
    if not timeline.records:
        assert found == ()
        return found
    root, *others = found
    assert (root.kind, root.parent, root.began) == ("run", None, 0)
    last = timeline.records[-1][1] - timeline.records[0][1]
    assert root.ended in (None, last)
    assert [span.id for span in found] == list(range(len(found)))
    for span in found:
        assert span.ended is None or span.ended >= span.began >= 0
        assert (span.ended is None) == (span.status == "running")
        check_segments(span, last)
    for span in others:
        assert span.parent is not None
        assert span.parent < span.id
        around = found[span.parent]
        assert around.began <= span.began
        assert around.ended is None or (span.ended is not None and span.ended <= around.ended)
    assert len({(span.kind, span.path) for span in found}) == len(found)
    told = sorted(index for span in found for index in span.records)
    assert told == list(range(len(timeline.records)))
    sums = dict.fromkeys(attrs.asdict(timeline.accounts), 0)
    for account, began, ended in root.segments:
        sums[account] += ended - began
    assert sums == attrs.asdict(timeline.accounts)
    return found


def check_segments(span: Span, last: int) -> None:
    """They follow one another from the span's beginning to its end."""
    at = span.began
    for _, began, ended in span.segments:
        assert began == at
        assert ended > began
        at = ended
    assert at == (max(last, span.began) if span.ended is None else span.ended)


# ---- any run -------------------------------------------------------------------------------


@MANY
@given(made())
def test_any_run_is_a_tree(run: Made) -> None:
    found = check_tree(run.timeline)
    assert all(span.ended is not None for span in found)
    unresolved = {entry.call for entry in run.unresolved}
    assert unresolved <= {span.subject for span in found if span.status == "unresolved"} | hedged(found, unresolved)


def hedged(found: tuple[Span, ...], calls: set[Call]) -> set[Call]:
    """Calls that are told by the span of the hedge around them."""
    shown = {span.subject for span in found if span.status == "unresolved"}
    return {call for call in calls if call.parent in shown}


@MANY
@given(made(), st.data())
def test_a_run_under_way_is_a_tree(run: Made, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(run.timeline.records)))
    check_tree(attrs.evolve(run.timeline, records=run.timeline.records[:count]))


@MANY
@given(made(), st.data())
def test_what_is_left_of_a_run_is_a_tree(run: Made, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(range(len(run.timeline.records))), unique=True).map(sorted))
    check_tree(attrs.evolve(run.timeline, records=[run.timeline.records[i] for i in kept]))


@MANY
@given(made())
def test_steps_last_as_long_as_their_records_say(run: Made) -> None:
    by_name = {span.name: span for span in spans(run.timeline) if span.kind == "step"}
    start = run.timeline.records[0][1]
    for kind, at, node, detail in run.timeline.records:
        if kind == t.STEP:
            assert by_name[node.name].began == detail[0] - start
            assert by_name[node.name].ended == at - start


# ---- runs of the runtime -------------------------------------------------------------------

FRONT = Flow("front", [shop.front, shop.prices], gives=[shop.Cart])


def shape(found: tuple[Span, ...]) -> list[str]:
    """The tree as lines: indented, with times in milliseconds."""
    deep: dict[int | None, int] = {None: -1}
    lines = []
    for span in found:
        deep[span.id] = deep[span.parent] + 1
        ended = "…" if span.ended is None else f"{span.ended / 1e6:.0f}"
        lines.append(f"{'  ' * deep[span.id]}{span.kind} {span.name} {span.began / 1e6:.0f}-{ended} {span.status}")
    return lines


def below(lines: list[str], line: str) -> list[str]:
    """A line and those below it."""
    at = next(i for i, other in enumerate(lines) if other.strip().startswith(line))
    deep = len(lines[at]) - len(lines[at].lstrip())
    end = next((i for i in range(at + 1, len(lines)) if len(lines[i]) - len(lines[i].lstrip()) <= deep), len(lines))
    return [other[deep:] for other in lines[at:end]]


async def test_a_retried_effect_has_a_span_for_each_attempt(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {"payments.charge": shop.keyed((9, 0), (0.04, 71))})
    found = check_tree(result.timeline)
    assert below(shape(found), "step charge") == [
        "step charge 2-89 ok",
        "  effect payments.charge 2-89 ok",
        "    attempt attempt 1 2-46 failed",
        "    attempt attempt 2 49-89 ok",
    ]
    (failed,) = [span for span in found if span.name == "attempt 1"]
    (event,) = failed.events
    assert (event.name, event.at) == ("exception", failed.ended)
    assert event.attributes["message"] == "timed out after 44ms"
    assert event.attributes["in_doubt"]


async def test_a_question_about_a_write_in_doubt_begins_when_its_attempts_are_over(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {"payments.charge": shop.keyed((9, 0))})
    found = check_tree(result.timeline)
    (question,) = [span for span in found if span.name == "payments.find"]
    last = [span for span in found if span.kind == "attempt"][-1]
    assert question.began == last.ended
    assert question.attributes["resolves"]


async def test_members_of_a_join_and_its_losers(autojump_clock: object) -> None:
    found = check_tree((await shop.run(FRONT, {"http.read": shop.slow_once})).timeline)
    assert shape(found)[2:] == [
        "  step front 0-60 ok",
        "    join join.all 0-60 ok",
        "      effect sql.fetch_all 0-2 ok",
        "      effect http.read 0-60 ok",
        "        attempt attempt 1 0-60 ok",
        "        hedge attempt 2 50-60 ok",
        "  step prices 60-64 ok",
        "    join join.race 60-64 ok",
        "      effect http.read 60-64 ok",
        "      effect http.read 60-64 cut",
    ]
    assert [span.attributes.get("one_of") for span in found if span.kind in ("attempt", "hedge")] == [2, 2]


async def test_the_rollback_is_one_span_with_its_tasks(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out})
    assert below(shape(check_tree(result.timeline)), "undo rollback") == [
        "undo rollback 16-30 ok",
        "  undo undo sql.execute 16-18 ok",
        "  undo undo payments.charge 18-30 ok",
    ]


async def test_what_an_undo_needed_lies_in_it(autojump_clock: object) -> None:
    refuse = shop.keyed((0.01, ConnectionLost("gone")))
    result = await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out, "payments.refund": refuse})
    found = check_tree(result.timeline)
    assert found[0].status == "unresolved"
    (task,) = [span for span in found if span.name == "undo payments.charge"]
    attempts = [span for span in found if span.parent == task.id]
    assert len(attempts) > 2
    assert {span.status for span in attempts} == {"failed"}
    (charge,) = [span for span in found if span.name == "payments.charge"]
    assert charge.status == "unresolved"


async def test_a_deadline_cuts_the_effect_and_its_step(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {"sql.execute": shop.after(9)})
    found = check_tree(result.timeline)
    assert below(shape(found), "step create_order") == [
        "step create_order 12-2000 cut",
        "  effect sql.execute 12-2000 cut",
    ]
    assert (found[0].status, found[0].attributes["ending"]) == ("failed", "deadline")


async def test_a_park_is_a_span_of_its_step(autojump_clock: object) -> None:
    found = check_tree((await shop.parked()).timeline)
    assert below(shape(found), "step ask_boss") == [
        "step ask_boss 0-600000 ok",
        "  park approval 0-600000 ok",
    ]
    (step,) = [span for span in found if span.name == "ask_boss"]
    assert [account for account, _, _ in step.segments] == ["parked"]


async def test_a_run_that_ends_while_it_is_parked_leaves_no_open_span(autojump_clock: object) -> None:
    async def leave(runtime: Any) -> None:
        await trio.sleep(1)
        runtime.cancel_nowait(shop.RUN_ID, "nobody waits")

    found = check_tree((await shop.run(shop.APPROVAL, {}, during=leave)).timeline)
    assert below(shape(found), "step ask_boss") == ["step ask_boss 0-1000 cut", "  park approval 0-1000 cut"]
    assert found[0].status == "cut"


async def test_a_refused_run_is_its_admission(autojump_clock: object) -> None:
    found = check_tree((await shop.refused()).timeline)
    assert [(span.kind, span.status) for span in found] == [("run", "failed"), ("admission", "failed")]


async def test_secrets_are_masked(autojump_clock: object) -> None:
    @step
    async def keep() -> shop.Token:
        return await shop.tokenize("4111")

    @step
    async def look(token: shop.Token) -> None:
        await shop.check(token, "note")

    result = await shop.run(
        Flow("vault", [keep, look]), {"vault.check": shop.after(0, EffectError("vault", "tok_4111111111111111 is bad"))}
    )
    result.timeline.tenant = "tok_4111111111111111"  # who takes a token for a name must not see it in a span either
    text = repr(spans(result))
    assert "‹secret›" in text
    assert "tok_4111111111111111" not in text


async def test_a_run_out_of_a_file_has_the_same_spans(autojump_clock: object) -> None:
    """But for the traceback of a defect, which is not kept."""
    for result in (
        await shop.run(shop.CHECKOUT, {"payments.charge": shop.keyed((9, 0))}),
        await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out}),
        await shop.run(FRONT, {"http.read": shop.slow_once}),
        await shop.run(Flow("bad", [shop.count], gives=[shop.Cart]), {}),
        await shop.refused(),
    ):
        kept = decode_run(encode_run(result, began_unix_ns=1))
        assert list(map(plain, spans(kept))) == list(map(plain, spans(result)))


def plain(span: Span) -> dict[str, Any]:
    """What a span says."""
    said = {name: getattr(span, name) for name in Span.__slots__ if name not in ("subject", "events", "__weakref__")}
    events = [(event.at, event.name, {**event.attributes, "stack": ""}) for event in span.events]
    return {**said, "events": events}


# ---- turns, by hand ------------------------------------------------------------------------

READ: EffectKind[..., int] = EffectKind("test.read", "read", target="test")


def hand(*records: t.Record) -> Timeline:
    return Timeline("run", "flow", "1", "acme", "default", list(records))


async def test_a_wait_for_a_turn_stands_beside_its_effect(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    records = list(result.timeline.records)
    at = next(i for i, record in enumerate(records) if record[0] == t.SETTLED)
    _, settled, call, _ = records[at]
    records.insert(at, (t.TURN, settled, call, settled - 700_000))
    found = check_tree(attrs.evolve(result.timeline, records=records))
    (step,) = [span for span in found if span.name == "verify"]
    inside = [(span.kind, span.began, span.ended) for span in found if span.parent == step.id]
    assert inside == [("effect", 0, 1_100_000), ("turn", 1_100_000, 1_800_000)]
    assert [(account, ended - began) for account, began, ended in step.segments] == [
        ("io", 1_100_000),
        ("turn", 700_000),
    ]


async def test_a_late_result_lies_in_its_step_which_was_cut(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    call = next(record[2] for record in result.timeline.records if record[0] == t.ASKED)
    ending = t.Ending("failed")
    found = check_tree(
        hand(
            (t.RECEIVED, 0, "flow", None),
            (t.ASKED, 10, call, None),
            (t.ENDING, 20, "flow", ending),
            (t.LATE, 30, call, Success(1)),
            (t.ENDED, 40, "flow", ending),
        )
    )
    assert [(span.kind, span.began, span.ended, span.status) for span in found[2:]] == [
        ("step", 10, 30, "cut"),
        ("effect", 10, 30, "late"),
    ]


# ---- size ----------------------------------------------------------------------------------


def long_run(effects: int) -> Timeline:
    """A run that asks for so many effects, one after the other, every tenth of which is retried."""
    records: list[t.Record] = [(t.RECEIVED, 0, "flow", None)]
    at = 0
    for number in range(effects):
        call = Call("run", f"step{number % 97}", str(number + 1), READ(number))
        failed = EffectError("test.read", "no")
        records.append((t.ASKED, at := at + 10, call, None))
        if number % 10 == 0:
            records.append((t.FAILED, at := at + 10, call, (1, failed, False, 0.1, "")))
            records.append((t.ATTEMPT, at := at + 10, call, 2))
        records.append((t.SETTLED, at := at + 10, call, Success(number) if number % 7 else Failure(failed)))
    ending = t.Ending("done")
    return hand(*records, (t.ENDING, at + 1, "flow", ending), (t.ENDED, at + 2, "flow", ending))


def operations(work: Callable[[], object]) -> int:
    """How many functions, Python's and C's, were called by it."""
    counted = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


def test_twice_the_records_are_twice_the_work() -> None:
    once, twice = long_run(2_000), long_run(4_000)
    assert operations(lambda: spans(twice)) < 2.1 * operations(lambda: spans(once))


def test_a_run_of_100_000_records() -> None:
    timeline = long_run(45_500)
    assert len(timeline.records) > 100_000
    check_tree(timeline)


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_of_hardly_any_records(count: int) -> None:
    records: list[t.Record] = [(t.RECEIVED, 5, "flow", None)]
    found = check_tree(hand(*records[:count]))
    assert [(span.kind, span.ended) for span in found] == [("run", None), ("admission", None)][: 2 * count]
