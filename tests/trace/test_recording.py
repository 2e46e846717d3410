"""Proves that a run reads back as it was written, that secrets are in no byte of it, and that no bytes do harm."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import attrs
import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trace import shop
from tests.trace.made import Made, made
from zerver import Done, Fail, Flow, Part, Slot, dag, parallel, step
from zerver import join as joins
from zerver.core import timeline as t
from zerver.core.plan import StepNode, compile_plan
from zerver.core.timeline import Ending, Timeline
from zerver.effects import http
from zerver.errors import ConnectionLost, TraceError
from zerver.runtime import Result
from zerver.trace import format_timeline, replay
from zerver.trace.failures import traceback_of
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.inert import MASK, Opaque
from zerver.trace.recording import Recording, decode_run, encode_run
from zerver.trace.recording.skeleton import skeleton_of
from zerver.trace.recording.vocabulary import Vocabulary
from zerver.trace.same import same

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def result_of(timeline: Timeline, unresolved: Any = ()) -> Result:
    return Result(timeline, timeline.ending or Ending("cancelled", reason="cut short"), tuple(unresolved))


def written(result: Result, hidden: Hidden = NOTHING_HIDDEN) -> Recording:
    return encode_run(result, began_unix_ns=1, hidden=hidden)


def check_same_run(result: Result, vocabulary: Vocabulary | None = None) -> Result:
    recording = written(result)
    found = decode_run(recording, vocabulary=vocabulary)
    one, other = result.timeline, found.timeline
    assert format_timeline(other, unresolved=found.unresolved) == format_timeline(one, unresolved=result.unresolved)
    assert [record[:2] for record in other.records] == [record[:2] for record in one.records]
    assert other.accounts == one.accounts
    assert (found.run_id, found.status, found.reason, found.sealed) == (
        result.run_id, result.status, result.reason, result.sealed,
    )  # fmt: skip
    assert [entry.state for entry in found.unresolved] == [entry.state for entry in result.unresolved]
    assert written(found) == recording, "what was read is written as it was"
    return found


# ---- any run ---------------------------------------------------------------------------------


@FEW
@given(made())
def test_any_run_reads_back_and_replays(run: Made) -> None:
    found = check_same_run(result_of(run.timeline, run.unresolved))
    replayed = replay(run.again, found.timeline)
    assert replayed.divergence is None
    assert [record[:2] for record in replayed.records] == [record[:2] for record in run.timeline.records]


@FEW
@given(made(), st.data())
def test_a_run_under_way_reads_back(run: Made, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(run.timeline.records)))
    check_same_run(result_of(attrs.evolve(run.timeline, records=run.timeline.records[:count])))


@FEW
@given(made(), st.data())
def test_any_list_of_records_reads_back(run: Made, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(range(len(run.timeline.records))), unique=True).map(sorted))
    check_same_run(result_of(attrs.evolve(run.timeline, records=[run.timeline.records[i] for i in kept])))


@FEW
@given(made())
def test_what_identity_tells_apart_stays_apart(run: Made) -> None:
    live, found = run.timeline.records, check_same_run(result_of(run.timeline)).timeline.records
    for which in (2, 3):
        first: dict[int, int] = {}
        pairs = [(a[which], b[which]) for a, b in zip(live, found, strict=True) if _has_identity(a[which])]
        for one, other in pairs:
            assert first.setdefault(id(one), id(other)) == id(other)


def _has_identity(thing: object) -> bool:
    return isinstance(thing, t.Ending | StepNode) or type(thing).__name__ in ("Call", "Entry")


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
@pytest.mark.parametrize("known", [True, False])
async def test_runs_of_the_runtime_read_back_and_replay(world: str, known: bool, autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, WORLDS[world])
    plan = compile_plan(shop.CHECKOUT)
    found = check_same_run(result, Vocabulary.of(plan) if known else None)
    replayed = replay(plan, found.timeline)
    assert replayed.divergence is None
    assert replayed.ending is not None
    assert replayed.ending.status == result.status


FLOWS: dict[str, Callable[[], Awaitable[Result]]] = {
    "joins, hedges and races": lambda: shop.run(
        Flow("front", [shop.front, shop.prices], gives=[shop.Cart]), {"http.read": shop.slow_once}
    ),
    "refused": shop.refused,
    "parked": shop.parked,
    "cancelled": shop.cancelled,
    "a defect": lambda: shop.run(Flow("broken", [shop.count], gives=[shop.Cart]), {}),
    "a dag and a fork": lambda: shop.run(
        Flow("wide", [dag(shop.verify, shop.plain_charge), parallel(shop.receipt, shop.notice)], gives=[shop.Payment]),
        {},
    ),
}


@pytest.mark.parametrize("name", FLOWS)
async def test_other_runs_read_back(name: str, autojump_clock: object) -> None:
    check_same_run(await FLOWS[name]())


async def test_a_run_of_the_edge_keeps_its_label_parent_and_answer(autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    timeline = result.timeline
    timeline.records.append((t.ANSWERED, timeline.records[-1][1] + 5, timeline.flow, 201))
    named = attrs.evolve(timeline, label="POST /v2/checkout", parent="00-aa-bb-01")
    found = check_same_run(attrs.evolve(result, timeline=named)).timeline
    assert (found.label, found.parent, found.answered) == ("POST /v2/checkout", "00-aa-bb-01", 201)


async def test_a_defect_keeps_its_traceback(autojump_clock: object) -> None:
    found = decode_run(written(await shop.run(Flow("broken", [shop.count], gives=[shop.Cart]), {})))
    assert isinstance(found.cause, ZeroDivisionError)
    assert "return 1 // 0" in traceback_of(found.cause)
    assert "shop.py" in traceback_of(found.cause)


async def test_a_plan_is_written_once_and_forgotten_with_its_flow(autojump_clock: object) -> None:
    flow = Flow("short", [shop.verify], gives=[shop.User])
    one, other = written(await shop.run(flow, {})), written(await shop.run(flow, {}))
    assert one.plan_id == other.plan_id
    plan = compile_plan(flow)
    assert skeleton_of(plan) is skeleton_of(plan)
    assert skeleton_of(plan).id == one.plan_id, "it names what the plan says, and no process"
    gone = weakref.ref(plan)
    del plan
    gc.collect()
    assert gone() is None


async def test_a_usual_run_is_small(autojump_clock: object) -> None:
    result = await shop.run(Flow("usual", [shop.verify, shop.plain_charge, shop.audit], gives=[shop.Payment]), {})
    assert len(written(result).body) < 2_500


async def test_steps_say_where_they_stand(autojump_clock: object) -> None:
    found = decode_run(written(await shop.run(shop.CHECKOUT, {})))
    node = next(record[2] for record in found.timeline.records if record[0] == t.STEP)
    code = node.step.function.__code__
    assert code.co_filename.endswith("trace/shop.py")
    assert code.co_firstlineno > 1
    assert node.is_async
    assert node.step.is_async
    with pytest.raises(TraceError, match="only recorded"):
        node.step.function().send(None)


# ---- values ----------------------------------------------------------------------------------


@attrs.frozen
class Basket:
    id: str
    skus: tuple[str, ...]


Chosen = Annotated[Basket, Slot("basket")]


@step
async def choose() -> Chosen:
    reply = await http.get("http://near/prices")
    return Basket(f"b{reply.status}", ("a", "b"))


@step
def total(basket: Chosen) -> Done:
    if not isinstance(basket, Basket):
        raise TypeError("no basket")
    return Done(basket)


BASKETS = Flow("baskets", [choose, total])


async def test_values_are_the_users_own_again(autojump_clock: object) -> None:
    result = await shop.run(BASKETS, {})
    found = decode_run(written(result), vocabulary=Vocabulary.of(BASKETS))
    assert found.value == Basket("b200", ("a", "b"))
    assert type(found.value) is Basket
    assert replay(compile_plan(BASKETS), found.timeline).same


async def test_without_a_vocabulary_values_stand_in(autojump_clock: object) -> None:
    result = await shop.run(BASKETS, {})
    found = decode_run(written(result))
    assert isinstance(found.value, Opaque)
    assert repr(found.value) == repr(result.value)
    assert replay(compile_plan(BASKETS), found.timeline).same, "the steps make baskets of their own"


async def test_a_huge_value_is_cut_and_the_rest_is_there(autojump_clock: object) -> None:
    huge = http.Reply(200, {}, b"x" * 10_000_000)
    result = await shop.run(BASKETS, {"http.read": shop.after(0.001, huge)})
    recording = written(result)
    assert len(recording.body) < 100_000
    assert decode_run(recording).timeline.accounts == result.timeline.accounts


# ---- secrets ---------------------------------------------------------------------------------

SECRET = "tok_4111111111111111"
Token = Annotated[str, Slot("card.token", secret=True)]


class Header(Part):
    source = "header"


@step
async def tokenize() -> Token:
    return await shop.tokenize("card_1")


@step
async def use_token(token: Token) -> None:
    await shop.check(token, f"note of {token}")
    await http.post("http://bank/", json={"t": token}, headers={"X-T": token}).optional()
    await joins.all(shop.check(token, "a"), shop.check("b", token))


@step
async def fail_with_token(token: Token) -> Fail | None:
    return Fail.conflict("card", token, f"refused {token}")


@step
async def raise_token(token: Token) -> None:
    raise ValueError(f"bad {token}", {"token": token})


@step
async def lose_token() -> Token:
    raise LookupError(await shop.tokenize("card_1"))


@step
async def effect_fails() -> Token:
    return await shop.tokenize(SECRET)


@step
async def from_header(authorization: Annotated[str, Header()]) -> shop.User:
    scheme, _, token = authorization.partition(" ")
    if scheme != "Bearer":
        raise ValueError(authorization)
    await shop.check(token, "x")
    return "ann"


LEAKY: dict[str, tuple[Flow, dict[str, Any]]] = {
    "handed on": (Flow("leaky", [tokenize, use_token]), {}),
    "given": (Flow("leaky", [tokenize, use_token], gives=[Token]), {}),
    "given with a defect": (Flow("leaky", [tokenize, shop.count], gives=[Token, shop.Cart]), {}),
    "in a Fail": (Flow("leaky", [tokenize, fail_with_token]), {}),
    "in a defect": (Flow("leaky", [tokenize, raise_token]), {}),
    "lost on the way": (Flow("leaky", [lose_token], gives=[Token]), {}),
    "in an error of the world": (
        Flow("leaky", [effect_fails], gives=[Token]),
        {"vault.tokenize": shop.after(0.001, ConnectionLost(f"no {SECRET}"))},
    ),
    "in a header": (Flow("leaky", [from_header], gives=[shop.User]), {}),
    "brought by the caller": (Flow("leaky", [use_token], takes=[Token]), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", LEAKY)
@pytest.mark.parametrize("cut", [False, True])
async def test_no_secret_is_in_any_byte_and_the_run_still_replays(name: str, cut: bool, autojump_clock: object) -> None:
    flow, world = LEAKY[name]
    given = {"in a header": {"authorization": f"Bearer {SECRET}"}, "brought by the caller": {"card.token": SECRET}}
    how: dict[str, Any] = {"given": given[name]} if name in given else {}
    result = await shop.run(flow, world, **how)
    if cut:
        for count in range(len(result.timeline.records)):
            begun = attrs.evolve(result.timeline, records=result.timeline.records[:count])
            assert SECRET.encode() not in written(result_of(begun)).body
        return
    recording = written(result)
    assert SECRET.encode() not in recording.body
    assert SECRET.encode() not in recording.plan
    found = check_same_run(result)
    assert replay(compile_plan(flow), found.timeline).divergence is None
    shown = format_timeline(found.timeline)
    assert SECRET not in shown


async def test_configured_names_hide_slots_fields_and_headers(autojump_clock: object) -> None:
    result = await shop.run(BASKETS, {})
    assert b'"skus"' in written(result).body
    hidden = written(result, Hidden(frozenset({"skus"})))
    assert b'"a"' not in hidden.body
    found = decode_run(hidden, vocabulary=Vocabulary.of(BASKETS))
    assert found.value == Basket("b200", (MASK, MASK))
    assert replay(compile_plan(BASKETS), found.timeline).same
    slot = decode_run(written(result, Hidden(frozenset({"basket"}))), vocabulary=Vocabulary.of(BASKETS))
    assert slot.timeline.secret == {"basket"}
    assert slot.value == Basket(MASK, (MASK, MASK))
    assert same(slot.value, result.value)


async def test_a_name_found_late_hides_what_was_written_before(autojump_clock: object) -> None:
    @step
    async def hand_on(user: shop.User) -> Done:
        await shop.check(user, "first without its name")
        return Done({"password": user})

    result = await shop.run(Flow("late", [hand_on], takes=[shop.User]), {}, given={"auth.user": "hunter2hunter2"})
    assert b"hunter2" in written(result).body
    assert b"hunter2" not in written(result, Hidden(frozenset({"password"}))).body


# ---- hostile bytes ---------------------------------------------------------------------------


def check_harmless(recording: Recording) -> None:
    try:
        found = decode_run(recording)
    except TraceError:
        return
    format_timeline(found.timeline, unresolved=found.unresolved)


@settings(FEW, max_examples=40)
@given(made(), st.data())
def test_mutated_bytes_are_a_run_or_an_error(run: Made, data: st.DataObject) -> None:
    recording = written(result_of(run.timeline, run.unresolved))
    octets = bytearray(recording.body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(octets) - 1))
        octets[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check_harmless(attrs.evolve(recording, body=bytes(octets)))


@settings(FEW, max_examples=60)
@given(made(), st.data())
def test_mutated_trees_are_a_run_or_an_error(run: Made, data: st.DataObject) -> None:
    recording = written(result_of(run.timeline, run.unresolved))
    body = msgspec.json.decode(recording.body)
    for _ in range(data.draw(st.integers(1, 3))):
        _mutate(body, data)
    check_harmless(attrs.evolve(recording, body=msgspec.json.encode(body)))


OTHERS: list[Any] = [
    None, True, -1, 0, 1, 1 << 61, 1e300, "", "x", "n0", "c0", "e0", "p", "undo", [], [0], {}, {"$": 0}, {"$": "tuple"},
    {"ok": 1}, {"no": {"$": 0}}, {"$": "object", "type": "zerver.core.decisions:Fail", "fields": {"kind": 3}},
]  # fmt: skip


def _mutate(tree: Any, data: st.DataObject) -> None:
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(tree[key], dict | list) and tree[key] and data.draw(st.booleans()):
            tree = tree[key]
            continue
        tree[key] = data.draw(st.sampled_from(OTHERS))
        return


@FEW
@given(made(), st.data())
def test_mutated_plans_are_a_run_or_an_error(run: Made, data: st.DataObject) -> None:
    recording = written(result_of(run.timeline, run.unresolved))
    plan = msgspec.json.decode(recording.plan)
    _mutate(plan, data)
    body = msgspec.json.encode(plan)
    with pytest.raises(TraceError, match="not the one of the recording"):
        decode_run(attrs.evolve(recording, plan=recording.plan + b" "))
    check_harmless(attrs.evolve(recording, plan=body, plan_id=_id_of(body)))


def _id_of(body: bytes) -> str:
    from zerver.trace.recording.skeleton import plan_id

    return plan_id(body)


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"null", b"[" * 100_000, b'{"v":1}', b'{"a":' * 100_000, b"\xff", b"[" + b"[]," * 700_000 + b"[]]"],
)
def test_other_bytes_are_an_error(body: bytes) -> None:
    with pytest.raises(TraceError):
        decode_run(Recording("r", 0, "", b"", body))
    with pytest.raises(TraceError):
        decode_run(Recording("r", 0, _id_of(body), body or b" ", b"{}"))


async def test_another_version_is_refused(autojump_clock: object) -> None:
    recording = written(await shop.run(BASKETS, {}))
    with pytest.raises(TraceError, match="a recording of version 2, and this code reads 1"):
        decode_run(attrs.evolve(recording, body=recording.body.replace(b'"v":1', b'"v":2')))


async def test_an_error_says_where(autojump_clock: object) -> None:
    recording = written(await shop.run(BASKETS, {}))
    body = msgspec.json.decode(recording.body)
    body["records"][4][2] = "n0"
    with pytest.raises(TraceError, match="record 4: not what belongs there"):
        decode_run(attrs.evolve(recording, body=msgspec.json.encode(body)))


async def test_trio_is_not_needed_to_read(autojump_clock: object) -> None:
    recording = written(await shop.run(BASKETS, {}))
    assert await trio.to_thread.run_sync(lambda: decode_run(recording).status) == "done"
