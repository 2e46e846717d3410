"""Proves that what is exported of any run is a tree under declared names, with the ids that others have been told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings

from tests.trace import shop
from tests.trace.made import Made, made
from zerver import CallInfo, Flow, IdempotencyKey, step
from zerver.core import timeline as t
from zerver.core.effects import INJECTED, Effect, EffectKind
from zerver.core.tracing import read_traceparent, root_span_id, trace_id
from zerver.effects import http, kv, sql
from zerver.errors import ConnectionLost, EffectError
from zerver.runtime import Result
from zerver.trace.facts import Facts
from zerver.trace.telemetry.conventions import ATTRIBUTES, EVENTS
from zerver.trace.telemetry.exported import ExportedSpan, Exporting, described, exported
from zerver.trace.telemetry.promotion import Wait
from zerver.trace.veil import Veil

ALL: Mapping[Wait, int] = {"admission": -1, "turn": -1, "park": -1}
NONE: Mapping[Wait, int] = {"admission": 1 << 62, "turn": 1 << 62, "park": 1 << 62}
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TYPES = {"string": str, "int": int, "double": float, "boolean": bool}
DECLARED = {attribute.name: TYPES[attribute.type] for attribute in ATTRIBUTES}
FEW = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def export(result: Result, bars: Mapping[Wait, int] = NONE, **how: Any) -> list[ExportedSpan]:
    found = list(exported(result, "error", 1_000_000_000, Exporting(**how), bars))
    check(found)
    return found


def check(found: list[ExportedSpan]) -> None:
    ids = [span.span_id for span in found]
    assert len(set(ids)) == len(ids)
    assert len({span.trace_id for span in found}) == 1
    for index, span in enumerate(found):
        assert span.ended >= span.began >= 1_000_000_000
        assert (index == 0) or span.parent_id in ids[:index]
        for attributes in (span.attributes, *(event[2] for event in span.events)):
            for name, said in attributes.items():
                assert type(said) is DECLARED[name], name
        assert {event[1] for event in span.events} <= {convention.name for convention in EVENTS.values()}


def one(found: list[ExportedSpan], name: str) -> ExportedSpan:
    (span,) = [span for span in found if span.name == name]
    return span


def labelled(result: Result, label: str, status: int | None = None) -> Result:
    """The same run, as if it had come over HTTP."""
    records = list(result.timeline.records)
    if status is not None:
        records.append((t.ANSWERED, records[-1][1], result.timeline.flow, status))
    return attrs.evolve(result, timeline=attrs.evolve(result.timeline, label=label, records=records))


# ---- any run -------------------------------------------------------------------------------


@FEW
@given(made())
def test_any_run_is_exported_under_declared_names(run: Made) -> None:
    result = Result(run.timeline, run.timeline.ending or t.Ending("cancelled"))
    whole = export(result, ALL)
    plain = export(result)
    assert {span.span_id for span in plain} <= {span.span_id for span in whole}
    some = export(result, ALL, most_spans=3)
    assert len(some) <= 3
    assert some[0].attributes.get("zerver.spans.dropped", 0) == len(whole) - len(some)


# ---- names and errors ----------------------------------------------------------------------


async def test_a_run_over_http_is_a_server_span(autojump_clock: object) -> None:
    result = labelled(await shop.run(shop.CHECKOUT, {}, tenant="acme"), "POST /v2/checkout", 201)
    root, *others = export(result)
    assert (root.name, root.kind, root.parent_id, root.error) == ("POST /v2/checkout", "SERVER", None, None)
    assert root.attributes == {
        "zerver.run.id": result.run_id,
        "zerver.flow": "checkout",
        "zerver.flow.version": result.timeline.version,
        "zerver.tenant": "acme",
        "zerver.class": "default",
        "zerver.status": "done",
        "zerver.kept": "error",
        "zerver.time.io_ms": pytest.approx(18.8),
        "http.request.method": "POST",
        "http.route": "/v2/checkout",
        "http.response.status_code": 201,
    }
    assert [span.name for span in others][:4] == [
        "zerver.step.verify",
        "zerver.effect.sql.fetch_one",
        "zerver.step.charge",
        "zerver.effect.payments.charge",
    ]


async def test_a_caller_is_the_parent(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    timeline = attrs.evolve(result.timeline, parent=CALLER)
    root, first, *_ = export(attrs.evolve(result, timeline=timeline))
    assert (root.trace_id, root.parent_id, root.remote) == (CALLER[3:35], CALLER[36:52], True)
    assert (root.span_id, first.parent_id, first.remote) == (root_span_id(result.run_id), root.span_id, False)


async def test_a_method_that_nobody_knows_is_no_name(autojump_clock: object) -> None:
    root, *_ = export(labelled(await shop.run(shop.CHECKOUT, {}), "BREW /coffee"))
    assert root.name == "HTTP /coffee"
    assert root.attributes["http.request.method"] == "_OTHER"
    assert root.attributes["http.request.method_original"] == "BREW"


async def test_a_run_without_http_is_internal(autojump_clock: object) -> None:
    root, *_ = export(await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out}))
    assert (root.name, root.kind) == ("zerver.run.checkout", "INTERNAL")
    assert root.attributes["error.type"] == "failed"


@pytest.mark.parametrize(("status", "error"), [(409, None), (503, "503")])
async def test_what_is_the_callers_doing_is_no_error(status: int, error: str | None, autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out})
    found = export(labelled(result, "POST /v2/checkout", status))
    assert found[0].attributes.get("error.type") == error
    assert (found[0].error is None) == (error is None)
    reserve = one(found, "zerver.step.reserve")
    assert reserve.error is None  # it has answered Fail, which is what it is for
    assert reserve.attributes["zerver.decision"] == "Fail"
    assert reserve.attributes["zerver.reason"] == "cart: sold out (conflict cart cart_soldout)"


async def test_failed_attempts_are_exceptions_of_their_spans(autojump_clock: object) -> None:
    found = export(await shop.run(shop.CHECKOUT, {"payments.charge": shop.keyed((9, 0), (0.04, 71))}))
    first, second = [span for span in found if span.name == "zerver.attempt"]
    effect = one(found, "zerver.effect.payments.charge")
    assert {first.parent_id, second.parent_id} == {effect.span_id}
    assert (first.error, second.error, effect.error) == ("", None, None)
    ((_, name, said),) = first.events
    assert name == "exception"
    assert said["exception.message"] == "timed out after 44ms"
    assert said["zerver.attempt.retry_after_ms"] == pytest.approx(3.2, abs=0.1)
    assert second.attributes["zerver.attempt.number"] == 2


async def test_a_defect_shows_where_it_was_raised(autojump_clock: object) -> None:
    found = export(await shop.run(Flow("bad", [shop.count], gives=[shop.Cart]), {}))
    defect = one(found, "zerver.step.count")
    assert defect.attributes["error.type"] == "ZeroDivisionError"
    (event,) = defect.events
    assert "in count" in event[2]["exception.stacktrace"]
    assert found[0].attributes["error.type"] == "defect"


async def test_an_unresolved_write_is_an_error_of_its_run(autojump_clock: object) -> None:
    refuse = shop.keyed((0.01, ConnectionLost("gone")))
    result = await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out, "payments.refund": refuse})
    found = export(labelled(result, "POST /v2/checkout", 409))
    assert found[0].attributes["error.type"] == "unresolved"
    assert one(found, "zerver.effect.payments.charge").attributes["zerver.span.status"] == "unresolved"
    undo = one(found, "zerver.undo.payments.charge")
    assert undo.parent_id == one(found, "zerver.rollback").span_id
    assert undo.attributes["zerver.step.name"] == "charge"


# ---- ids that others have been told --------------------------------------------------------


async def test_the_spans_that_headers_name_are_exported(autojump_clock: object) -> None:
    """Retried, hedged, in a join, asked about, undone: whoever was asked knows the span by its id."""
    told: dict[str, set[str]] = {}

    def telling(perform: Any) -> Any:
        async def handler(*args: Any, key: IdempotencyKey = INJECTED, info: CallInfo = INJECTED, **kwargs: Any) -> Any:
            told.setdefault(info.run_id, set()).add(info.traceparent)
            return await perform(*args)

        return handler

    checkout = await shop.run(
        shop.CHECKOUT,
        {
            "sql.execute": telling(shop.sold_out),
            "payments.charge": telling(shop.keyed((9, 0))),
            "payments.find": telling(shop.scripted((0.003, 71))),
            "payments.refund": telling(shop.keyed((0.01, None))),
        },
    )
    flow = Flow("front", [shop.front, shop.prices], gives=[shop.Cart])
    front = await shop.run(
        flow, {"http.read": telling(shop.slow_once), "sql.fetch_all": telling(shop.after(0.001, []))}
    )
    assert checkout.run_id == front.run_id  # both are the first of their runtime
    found = [*export(checkout), *export(front)]
    parents = [read_traceparent(text) for text in told[checkout.run_id]]
    assert {parent and parent.trace_id for parent in parents} == {trace_id(checkout.run_id)}
    ids = {parent.span_id for parent in parents if parent is not None}
    assert len(ids) == 6 + 4
    named = {span.name for span in found if span.span_id in ids}
    assert ids <= {span.span_id for span in found}
    assert named == {
        "zerver.effect.sql.execute",
        "zerver.effect.sql.fetch_all",
        "zerver.effect.http.read",
        "zerver.effect.payments.charge",
        "zerver.effect.payments.find",
        "zerver.undo.payments.charge",
        "zerver.undo.sql.execute",
    }


# ---- effects -------------------------------------------------------------------------------


def describe(effect: Effect[Any], **systems: str) -> dict[str, Any]:
    return described(effect, Veil(Facts(t.Timeline("run", "flow", "1", "acme", "default", []))), systems)


def test_an_exchange() -> None:
    assert describe(http.post("https://Pay.example:8443/v1/charges?token=abc#x", json=1)) == {
        "http.request.method": "POST",
        "url.full": "https://Pay.example:8443/v1/charges",
        "server.address": "pay.example",
        "server.port": 8443,
    }
    assert describe(http.get("http://[::1]/"))["server.port"] == 80
    assert describe(http.request("PURGE", "http://a/"))["http.request.method_original"] == "PURGE"


@pytest.mark.parametrize(
    ("effect", "operation", "table", "summary"),
    [
        (sql.fetch_one(int, "select n from users where token = ?", "x"), "SELECT", "users", "SELECT users"),
        (sql.fetch_all(int, "select 'from no one' from a join \"b\" on 1"), "SELECT", None, "SELECT a b"),
        (sql.execute("insert into orders (user) values (?)", 1), "INSERT", "orders", "INSERT orders"),
        (sql.execute("-- note\nUPDATE stock set n = 1"), "UPDATE", "stock", "UPDATE stock"),
        (sql.execute("vacuum"), "VACUUM", None, "VACUUM"),
    ],
)
def test_a_statement(effect: Effect[Any], operation: str, table: str | None, summary: str) -> None:
    said = describe(effect, sql="sqlite")
    assert said["db.system.name"] == "sqlite"
    assert said["db.operation.name"] == operation
    assert said.get("db.collection.name") == table
    assert said["db.query.summary"] == summary


def test_a_transaction_is_a_batch() -> None:
    update = sql.execute("update stock set n = 1")
    said = describe(sql.transaction(update, update))
    assert (said["db.operation.name"], said["db.operation.batch.size"]) == ("BATCH UPDATE", 2)
    said = describe(sql.transaction(update, sql.execute("delete from carts")))
    assert (said["db.operation.name"], said["db.query.summary"]) == ("BATCH", "BATCH stock carts")
    assert describe(sql.transaction(update))["db.operation.name"] == "UPDATE"


def test_keys_queues_and_strangers() -> None:
    assert describe(kv.get("k")) == {"db.system.name": "zerver.kv", "db.operation.name": "get"}
    publish: EffectKind[..., None] = EffectKind("queue.publish", "write", target="mails")
    assert describe(publish(1)) == {
        "messaging.system": "zerver",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "mails",
    }
    stranger: EffectKind[..., None] = EffectKind("sql.mine", "read")
    assert describe(stranger()) == {}


async def test_an_answer_from_400_on_is_an_error_of_the_exchange(autojump_clock: object) -> None:
    lost = shop.keyed((0.001, http.Reply(404, {}, b"")))
    found = export(await shop.run(shop.CHECKOUT, {"http.write": lost}))
    sent = [span for span in found if span.name == "zerver.effect.http.write"]
    assert {span.attributes["error.type"] for span in sent} == {"404"}
    assert {span.kind for span in sent} == {"CLIENT"}
    assert found[0].error is None


# ---- waits, secrets ------------------------------------------------------------------------


async def test_waits_below_the_bar_are_numbers(autojump_clock: object) -> None:
    result = await shop.parked()
    found = export(result)
    assert [span.name for span in found] == ["zerver.run.approval", "zerver.step.ask_boss", "zerver.step.use"]
    assert found[0].attributes["zerver.time.parked_ms"] == found[1].attributes["zerver.time.parked_ms"] == 600_000
    found = export(result, {**NONE, "park": 5_000_000})
    park = one(found, "zerver.park")
    assert (park.parent_id, park.attributes) == (found[1].span_id, {"zerver.signal": "approval"})


async def test_secrets_are_masked(autojump_clock: object) -> None:
    @step
    async def keep() -> shop.Token:
        return await shop.tokenize("4111")

    @step
    async def use(token: shop.Token) -> None:
        await http.get(f"http://vault/{token}/look?{token}")
        await shop.check(token, "note")

    bad = EffectError("vault.check", "tok_4111111111111111 is bad")
    found = export(await shop.run(Flow("vault", [keep, use]), {"vault.check": shop.after(0, bad)}))
    text = repr(found)
    assert "tok_" not in text
    assert one(found, "zerver.effect.http.read").attributes["url.full"] == "http://vault/‹secret›/look"


async def test_the_spans_with_trouble_are_those_that_are_sent(autojump_clock: object) -> None:
    @step
    async def many() -> None:
        for number in range(50):
            await shop.check("t", str(number)).optional()

    calls = 0

    async def seventh(token: str, note: str) -> bool:
        nonlocal calls
        calls += 1
        await trio.sleep(0.001)
        if calls == 40:
            raise ConnectionLost("gone")
        return True

    found = export(await shop.run(Flow("many", [many]), {"vault.check": seventh}), most_spans=10)
    assert len(found) == 10
    assert found[0].attributes["zerver.spans.dropped"] == 52 - 10
    assert [span.error is None for span in found] == [True] * 9 + [False]
