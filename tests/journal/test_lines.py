"""Lines: any run, written a few records at a time, reads back as it was; what was changed on the way is found."""

from __future__ import annotations

from typing import Annotated, Any
from zlib import crc32

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trace import shop
from tests.trace.made import Made, made
from zerver import Flow, Slot, step
from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.effects import Success
from zerver.core.plan import Plan, compile_plan
from zerver.core.saga import Entry
from zerver.core.secret import Secret
from zerver.core.timeline import Timeline
from zerver.errors import DamagedJournal, NotKeepable
from zerver.journal.lines import Lines
from zerver.runtime.journal import Notation, RunHead, StoredRun
from zerver.runtime.result import Result
from zerver.trace import format_timeline
from zerver.trace.recording.skeleton import nodes_in
from zerver.trace.same import same

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def stored(timeline: Timeline, plan: Plan, lines: list[bytes], notation: Notation | None = None) -> StoredRun:
    pen = (notation or Lines(keep_secrets=True)).pen(timeline, plan)
    head = RunHead(
        timeline.run_id, timeline.flow, timeline.version, timeline.tenant, timeline.priority, 1, "me", timeline.label
    )
    return StoredRun(head, 1, "", pen.plan_id, pen.plan, tuple(lines))


def plan_of(timeline: Timeline) -> Plan:
    plan = next(record[2] for record in timeline.records if record[0] == t.INPUT)
    assert isinstance(plan, Plan)
    return plan


def check_same(one: Timeline, other: Timeline) -> None:
    assert format_timeline(other) == format_timeline(one)
    assert [record[:2] for record in other.records] == [record[:2] for record in one.records]
    for mine, its in zip(one.records, other.records, strict=True):
        if isinstance(mine[2], Call):
            assert mine[2].key == its[2].key
        if isinstance(mine[2], Entry):
            assert mine[2].state == its[2].state
    assert other.accounts == one.accounts


def in_parts(data: st.DataObject, records: list[Any]) -> list[list[Any]]:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(records)), max_size=4)))
    return [records[a:b] for a, b in zip([0, *cuts], [*cuts, len(records)], strict=True)]


@FEW
@given(made(), st.data())
def test_any_run_reads_back_however_it_was_cut(run: Made, data: st.DataObject) -> None:
    timeline = attrs.evolve(run.timeline, secret=frozenset())
    notation = Lines()
    pen = notation.pen(timeline, run.plan)
    lines = [line for part in in_parts(data, timeline.records) for line in pen.lines(part)]
    assert pen.count == len(lines) == len(timeline.records)
    check_same(timeline, notation.reader().read(stored(timeline, run.plan, lines)))


@FEW
@given(made(), st.data())
def test_every_beginning_of_a_run_is_a_run(run: Made, data: st.DataObject) -> None:
    timeline = attrs.evolve(run.timeline, secret=frozenset())
    count = data.draw(st.integers(0, len(timeline.records)))
    lines = Lines().pen(timeline, run.plan).lines(timeline.records)
    found = Lines().reader().read(stored(timeline, run.plan, lines[:count]))
    assert [record[:2] for record in found.records] == [record[:2] for record in timeline.records[:count]]


@FEW
@given(made(), st.data())
def test_another_owner_goes_on_with_the_numbers_of_the_first(run: Made, data: st.DataObject) -> None:
    """The second owner has read the run: its calls, entries and nodes are other objects, and the same things."""
    timeline = attrs.evolve(run.timeline, secret=frozenset())
    count = data.draw(st.integers(0, len(timeline.records)))
    first = Lines().pen(timeline, run.plan).lines(timeline.records)
    whole = Lines().reader().read(stored(timeline, run.plan, first))
    before = first[:count]
    pen = Lines().pen(timeline, run.again, stored(timeline, run.plan, before))
    assert pen.count == count
    rest = [_live(record, plan_of(whole), run.again) for record in whole.records[count:]]
    both = [*before, *pen.lines(rest)]
    check_same(whole, Lines().reader().read(stored(timeline, run.plan, both)))


def _live(record: Any, read: Plan, live: Plan) -> Any:
    """The record with the live plan and its nodes in it; those that steps have inserted stay inert."""
    kind, at, subject, detail = record
    if kind == t.INPUT:
        return kind, at, live, detail
    for inert, node in zip(nodes_in(read.line), nodes_in(live.line), strict=True):
        if subject is inert:
            return kind, at, node, detail
    return record


@FEW
@given(made(), st.data())
def test_a_changed_missing_or_moved_line_is_found(run: Made, data: st.DataObject) -> None:
    timeline = attrs.evolve(run.timeline, secret=frozenset())
    lines = Lines().pen(timeline, run.plan).lines(timeline.records)
    at = data.draw(st.integers(0, len(lines) - 1))
    kind = data.draw(st.sampled_from(["bit", "cut", "missing", "twice", "foreign"]))
    if kind == "bit":
        place = data.draw(st.integers(0, len(lines[at]) - 1))
        lines[at] = lines[at][:place] + bytes([lines[at][place] ^ 1]) + lines[at][place + 1 :]
    elif kind == "cut":
        lines[at] = lines[at][: data.draw(st.integers(0, len(lines[at]) - 1))]
    elif kind == "missing" and at < len(lines) - 1:
        del lines[at]
    elif kind == "twice":
        lines.insert(at, lines[at])
    else:
        other = attrs.evolve(timeline, run_id="other")
        lines[at] = Lines().pen(other, run.plan).lines(timeline.records)[at]
    with pytest.raises(DamagedJournal, match="cannot be read"):
        Lines().reader().read(stored(timeline, run.plan, lines))


# ---- real runs ------------------------------------------------------------------------------


async def test_a_real_run_comes_back_with_its_own_types() -> None:
    result: Result = await shop.run(shop.CHECKOUT, {})
    timeline, plan = result.timeline, plan_of(result.timeline)
    lines = Lines().pen(timeline, plan).lines(timeline.records)
    check_same(timeline, Lines().reader(plan).read(stored(timeline, plan, lines)))


# ---- values ---------------------------------------------------------------------------------


@attrs.frozen
class Cart:
    items: tuple[str, ...]
    authorization: str


class Handle:
    """No declared fields: nobody can make it again."""


CartSlot = Annotated[Cart, Slot("cart")]


@step
async def load() -> CartSlot:
    raise NotImplementedError


PLAN = compile_plan(Flow("values", [load], gives=[CartSlot]))


def answered(value: object, kind: str = t.SETTLED) -> Timeline:
    call = Call("run", "load", "1", shop.find("k"))
    detail = Success(value) if kind == t.SETTLED else (1, value)
    subject: Any = call if kind == t.SETTLED else PLAN.line[0]
    records = [(t.RECEIVED, 1, "values", None), (t.INPUT, 2, PLAN, ((), (), None, None)), (kind, 3, subject, detail)]
    return Timeline("run", "values", "1", "acme", "default", records)


def back(timeline: Timeline, notation: Lines) -> Any:
    lines = notation.pen(timeline, PLAN).lines(timeline.records)
    return notation.reader(PLAN, Cart).read(stored(timeline, PLAN, lines)).records[-1][3]


@pytest.mark.parametrize(
    "value",
    [
        Cart(("a",) * 100_000, "Bearer t0ps3cret"),
        {"set-cookie": "session=1", "x": [("authorization", "Basic eDp5")]},
        "password=hunter2&authorization=x",
        2**5000,
        float("inf"),
        "half \ud800",
        b"\x00\xff",
        [1, [2, {3: {4}}]],
    ],
)
def test_values_are_neither_masked_nor_cut(value: object) -> None:
    assert same(back(answered(value), Lines()).value, value)


def test_what_could_not_be_read_again_is_refused_where_a_replay_needs_it() -> None:
    pen = Lines().pen(answered(1), PLAN)
    pen.lines(answered(1).records[:2])
    handle = Handle()
    for value in (handle, handle, [handle], {"f": lambda: 1}, Secret("x")):
        with pytest.raises(NotKeepable, match=r"Handle|function|Secret"):
            pen.lines(answered(value).records[2:])
    assert pen.count == 2


def test_after_a_refused_value_the_pen_goes_on() -> None:
    timeline = answered([1, 2])
    pen = Lines().pen(timeline, PLAN)
    lines = pen.lines(timeline.records[:2])
    with pytest.raises(NotKeepable):
        pen.lines(answered([Handle()]).records[2:])
    lines += pen.lines(timeline.records[2:])
    found = Lines().reader().read(stored(timeline, PLAN, lines))
    assert found.records[-1][3] == Success([1, 2])


def test_a_step_may_answer_anything_since_a_replay_asks_it_again() -> None:
    _, value = back(answered(Handle(), t.STEP), Lines())
    assert "Handle" in repr(value)


def test_a_secret_is_kept_only_where_that_was_said() -> None:
    timeline = answered(Secret("t0ps3cret"))
    assert back(timeline, Lines(keep_secrets=True)).value == Secret("t0ps3cret")
    lines = Lines().pen(answered(1), PLAN).lines(answered(Secret("t0ps3cret"), t.STEP).records)
    assert b"t0ps3cret" not in b"".join(lines)
    assert not Lines().keeps_secrets


class Rot:
    """A cipher for tests: it hides, and knows its own key."""

    def __init__(self, key: int) -> None:
        self.key = key

    def encrypt(self, data: bytes, /) -> bytes:
        return bytes(octet ^ self.key for octet in b"ok" + data)

    def decrypt(self, token: bytes, /) -> bytes:
        opened = bytes(octet ^ self.key for octet in token)
        if not opened.startswith(b"ok"):
            raise ValueError("another key")
        return opened[2:]


def test_a_cipher_seals_the_values_of_signals() -> None:
    sealed = Lines(cipher=Rot(0x80)).seal(b'"t0ps3cret"')
    assert b"t0ps3cret" not in sealed
    assert Lines(cipher=Rot(0x80)).unseal(sealed) == b'"t0ps3cret"'
    with pytest.raises(DamagedJournal, match="does not open with this key"):
        Lines(cipher=Rot(0x40)).unseal(sealed)
    assert Lines().unseal(Lines().seal(b"1")) == b"1"


def test_a_cipher_encrypts_every_line() -> None:
    notation = Lines(cipher=Rot(0x80))
    assert notation.keeps_secrets
    timeline = answered(Secret("t0ps3cret"))
    lines = notation.pen(timeline, PLAN).lines(timeline.records)
    assert b"t0ps3cret" not in b"".join(lines)
    assert back(timeline, notation).value == Secret("t0ps3cret")
    run = stored(timeline, PLAN, lines)
    with pytest.raises(DamagedJournal, match="does not open with this key"):
        Lines(cipher=Rot(0x90)).reader().read(run)
    with pytest.raises(DamagedJournal, match="without a cipher"):
        Lines().reader().read(run)


def test_lines_of_another_version_are_refused() -> None:
    timeline = answered(1)
    lines = Lines().pen(timeline, PLAN).lines(timeline.records)
    checksum, changed = crc32(b"run"), []
    for line in lines:
        payload = line[9:].replace(b'"z":1', b'"z":9')
        checksum = crc32(payload, checksum)
        changed.append(b"%08x %b" % (checksum, payload))
    with pytest.raises(DamagedJournal, match="version 9, and this code reads 1"):
        Lines().reader().read(stored(timeline, PLAN, changed))
