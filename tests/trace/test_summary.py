"""Proves that a summary says what mattered most in a run, on one line, without its secrets; and what a filter takes."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given

from tests.trace import shop
from tests.trace.made import Made, made
from zerver import Flow, step
from zerver.core import timeline as t
from zerver.core.timeline import Ending, Timeline
from zerver.errors import ConnectFailed
from zerver.runtime import Result
from zerver.trace.summary import Filter, Summary, summarize, trace_id

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def of(result: Result) -> Summary:
    return summarize(result, began_unix_ns=7, kept="sample")


async def test_a_run_that_was_done(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {}, tenant="acme")
    result.timeline.records.append((t.ANSWERED, result.timeline.records[-1][1], "checkout", 201))
    labelled = attrs.evolve(result.timeline, label="POST /v2/checkout", parent=TRACEPARENT)
    assert of(attrs.evolve(result, timeline=labelled)) == Summary(
        run_id=shop.RUN_ID,
        began_unix_ns=7,
        label="POST /v2/checkout",
        flow="checkout",
        version=result.timeline.version,
        tenant="acme",
        priority="default",
        status="done",
        http=201,
        took_ns=18_800_000,
        kept="sample",
        slow_step="charge",
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        records=len(result.timeline.records),
    )


async def test_what_matters_most_is_the_cause(autojump_clock: object) -> None:
    async def cause(flow: Flow, handlers: dict[str, object]) -> str:
        return of(await shop.run(flow, handlers)).cause  # type: ignore[arg-type] # handlers

    assert (await cause(shop.CHECKOUT, {"sql.execute": shop.sold_out})).startswith("FAILED cart: sold out (conflict")
    lost = {"http.write": shop.keyed((0.0, ConnectFailed("no")))}
    assert (await cause(shop.CHECKOUT, lost)).startswith("DONE WITHOUT http.write in receipt: ")
    stuck = {"payments.charge": shop.keyed((9.0, None)), "payments.refund": shop.keyed((0.0, ValueError("gone")))}
    unknown = of(await shop.run(Flow("plain", [shop.verify, shop.plain_charge], gives=[shop.Payment]), stuck))
    assert unknown.cause.startswith("UNRESOLVED payments.charge in plain_charge may or may not have happened")
    assert unknown.unresolved == 1
    assert of(await shop.refused()).cause.startswith("REFUSED by admission: draining")


async def test_time_in_which_it_was_parked_is_not_counted(autojump_clock: object) -> None:
    assert of(await shop.parked()).took_ns < 1_000_000_000


async def test_a_secret_stays_one(autojump_clock: object) -> None:
    @step
    async def tokenize() -> shop.Token:
        return await shop.tokenize("4111")

    @step
    async def use(token: shop.Token) -> None:
        raise ValueError(f"bad token {token}")

    told = of(await shop.run(Flow("vault", [tokenize, use]), {}))
    assert "tok_4111" not in repr(told)
    assert told.cause.startswith("DEFECT")


def test_whatever_comes_from_outside_stays_on_its_line_and_is_bounded() -> None:
    ending = Ending("cancelled", reason="\x1b[2J\n" + "x" * 10_000)
    records = [(t.RECEIVED, 0, "f", None), (t.ENDING, 1, "f", ending), (t.ENDED, 2, "f", ending)]
    told = of(Result(Timeline("req_1", "f", "1", "a\nb" * 1000, "default", records, label="GET /\x07"), ending))
    assert told.label == "GET /\\x07"
    assert told.tenant.startswith("a\\nba\\nb")
    assert told.cause.isprintable()
    assert max(len(told.tenant), len(told.cause)) <= 240


@given(made())
def test_every_run_has_a_summary(run: Made) -> None:
    ending = run.timeline.ending or Ending("cancelled")
    told = of(Result(run.timeline, ending, run.unresolved))
    assert told.records == len(run.timeline.records)
    assert told.took_ns >= 0
    assert told.cause.isprintable()
    if run.unresolved:
        assert told.cause.startswith("UNRESOLVED")


@pytest.mark.parametrize(
    ("header", "known"),
    [
        (TRACEPARENT, "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("", ""),
        (TRACEPARENT.upper(), ""),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", ""),
        (f"{TRACEPARENT}-more", ""),
        (f"{TRACEPARENT}\n", ""),
    ],
)
def test_a_trace_is_known_by_a_header_that_is_one(header: str, known: str) -> None:
    assert trace_id(header) == known


@pytest.mark.parametrize(
    ("status", "fits"),
    [("", True), ("failed", True), ("done", False), ("503", True), ("500", False), ("5xx", True), ("4XX", False)],
)
def test_a_status_is_a_word_or_a_number_or_a_class(status: str, fits: bool) -> None:
    told = Summary("req_1", 0, "", "f", "1", "a", "default", "failed", 503, 1)
    assert Filter(status=status).fits(told) is fits
    assert Filter(status="5xx").fits(attrs.evolve(told, http=None)) is False
