"""What is hidden by configuration is shown nowhere: not in any text or JSON that is made of a run, live or stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import attrs
import pytest

from zerver import INJECTED, App, Done, Fail, Flow, IdempotencyKey, Slot, effect, step
from zerver.cli.regression import regression_test
from zerver.core.plan import compile_plan
from zerver.runtime import Result, open_runtime
from zerver.trace import Hidden, Vocabulary, decode_run, diff, encode_run, format_timeline, retell, summarize
from zerver.trace.comparing.cohorts import cohorts_json, compare, format_cohorts
from zerver.trace.comparing.diff import diff_json, format_diff
from zerver.trace.replaying.telling import format_story
from zerver.trace.spans import spans
from zerver.trace.telemetry.exported import Exporting, exported
from zerver.trace.telemetry.logs import _Ended, run_event
from zerver.trace.telemetry.promotion import Promotion
from zerver.trace.view import view

IBAN, PIN, TOKEN = "DE02120300000000202051", 471_147, "tok-9f8e7d6c"
SECRET = (IBAN, str(PIN), TOKEN)
HIDDEN = Hidden(["iban", "pin", "notes"])


@attrs.frozen
class Order:
    item: str
    iban: str
    pin: int


Given = Annotated[Order, Slot("given")]
Notes = Annotated[str, Slot("notes")]
Charged = Annotated[str, Slot("charged")]


@effect(kind="pay.charge", access="write")
async def charge(iban: str, pin: int, headers: dict[str, str], *, key: IdempotencyKey = INJECTED) -> dict[str, str]:
    if pin:
        raise RuntimeError(f"no such account: {iban} ({pin}), by {headers['Authorization']}")
    return {"iban": iban}


@effect(kind="pay.refund", access="write")
async def refund(iban: str, *, key: IdempotencyKey = INJECTED) -> None:
    raise RuntimeError(f"refused {iban}")


@effect(kind="audit.note", access="write")
async def note(text: str) -> str:
    return text


@step
async def remember(given: Given) -> Notes:
    return await note(f"{given.item} for {given.iban}").compensate(
        lambda text: refund(given.iban).with_policy(retries=0)
    )


@step
async def pay(given: Given, notes: Notes) -> Charged | Fail:
    paid = await charge(given.iban, given.pin, {"Authorization": f"Bearer {TOKEN}"})
    return str(paid)


@step
def deny(given: Given, notes: Notes) -> Done | Fail:
    return Fail.conflict("account", given.iban, f"{given.iban} with {given.pin}: {notes}")


FLOWS = [
    Flow("pays", [remember, pay], takes=[Given], gives=[Charged]),
    Flow("denies", [remember, deny], takes=[Given]),
]


async def run(flow: Flow) -> Result:
    async with open_runtime(App("shop")) as runtime:
        return await runtime.run(flow, given={"given": Order("tea", IBAN, PIN)}, tenant="acme")


def told(flow: Flow, result: Result, live: Result) -> Iterator[tuple[str, str]]:
    """All that is made of a run, by who makes it."""
    plan = compile_plan(flow)
    yield "timeline", format_timeline(result.timeline, unresolved=result.unresolved, hidden=HIDDEN)
    yield "summary", repr(summarize(result, began_unix_ns=1, hidden=HIDDEN))
    yield "recording", repr(encode_run(result, began_unix_ns=1, hidden=HIDDEN))
    yield "view", json.dumps(view(result, hidden=HIDDEN))
    yield "spans", repr(spans(result, hidden=HIDDEN))
    yield "exported", repr(exported(result, "error", 1, Exporting(hidden=HIDDEN), Promotion(5.0, 5.0).bars(flow.name)))
    yield "log", repr(run_event(_Ended(result, "error", 1.0, 0), HIDDEN))
    for code in (plan, None):
        story = retell(code, result, hidden=HIDDEN)
        yield f"story {code}", format_story(story) + json.dumps(story.to_plain())
    story = retell(plan, result, changes={"given": Order("milk", IBAN, PIN)}, hidden=HIDDEN)
    yield (
        "changed story",
        format_story(story) + json.dumps(story.to_plain()) + json.dumps(view(story.result, hidden=HIDDEN)),
    )
    found = diff(result, story.result, HIDDEN)
    yield "diff", format_diff(found) + json.dumps(diff_json(found))
    cohorts = compare("pays", [result] * 5, [story.result] * 5, hidden=HIDDEN)
    yield "cohorts", format_cohorts(cohorts) + json.dumps(cohorts_json(cohorts))
    yield "test", regression_test(plan, result, HIDDEN).text


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
@pytest.mark.parametrize("how", ["live", "kept hidden", "kept before it was hidden", "kept, of unknown classes"])
async def test_hidden_names_are_shown_nowhere(flow: Flow, how: str, autojump_clock: object) -> None:
    live = result = await run(flow)
    assert any(one in format_timeline(live.timeline) for one in SECRET)
    if how != "live":
        recording = encode_run(live, began_unix_ns=1, hidden=HIDDEN if how == "kept hidden" else Hidden())
        vocabulary = None if "unknown" in how else Vocabulary.of(flow)
        result = decode_run(recording, vocabulary=vocabulary)
    for who, text in told(flow, result, live):
        for secret in SECRET:
            assert secret not in text, who
    assert "pay.charge" in format_timeline(live.timeline, hidden=HIDDEN) or flow.name == "denies"
