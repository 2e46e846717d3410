"""What must hold, whatever died and when: the invariants, each a pure function from the evidence to what violates it.

Law: a check reads the evidence and nothing else, and trusts no two witnesses to agree: the client's word, the
provider's log, the shop's rows and the journal's records are held against each other. Each is proved able to fail by a
test that doctors the evidence.

    I1  ended      no run is unfinished, none is unresolved
    I1  acked      an order that was acknowledged stands, with one charge, not refunded; one that was refused does not
    I1  money      a charge without an order that stands is refunded, and none with one; the stock agrees
    I2  calls      per key, 1 + the crashes that hit its step + the faults that the provider itself has made
    I4  once       what has a journaled result is never run again
    I5  one key    a reference is charged with one key, that of its run and step; a charge is refunded with one key
    I6  reverse    compensations run in reverse order of commit, once each
    I7  no ghost   whatever the provider saw, the journal has the intent of
    I8  replay     the records replay to the same history

I3, of jobs: `scripts.crashing.job_invariants`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

from scripts.crashing import errands, job_invariants
from scripts.crashing.evidence import STOCK, Evidence, Story
from scripts.crashing.violations import Violation, by_key, run_of
from zerver.core import timeline as t
from zerver.core.calls import Call as Asked
from zerver.core.jobs import job_of_run
from zerver.core.saga import Entry
from zerver.core.timeline import Record
from zerver.runtime.journal import UNRESOLVED

#: An effect in a run: its step, and its ordinal there; "1.undo" is the compensation of "1".
Place: TypeAlias = tuple[str, str]

VOID: Final = ":void"  # the provider is told never to charge with a key: part of asking about it


def violations(evidence: Evidence) -> list[Violation]:
    """All that is wrong."""
    return [violation for check in CHECKS for violation in check(evidence)]


# ---- what runs, clients, shop and provider came to ------------------------------------------


def check_ended(evidence: Evidence) -> Iterator[Violation]:
    for story in evidence.stories:
        if story.status == "":
            yield Violation("I1", story.run_id, "has not ended")
        elif story.status == UNRESOLVED:
            yield Violation("I1", story.run_id, "is unresolved, though the provider can be reached")


def check_acked(evidence: Evidence) -> Iterator[Violation]:
    rows = {row.id: row for row in evidence.rows}
    standing = {row.reference: row for row in evidence.rows if row.status == "placed"}
    for order in evidence.orders:
        run_id = run_of(order.payment)
        if order.status == 201:
            row = rows.get(order.order)
            if row is None or row.status != "placed":
                yield Violation(
                    "I1", run_id, f"{order.reference} was acknowledged, and {row.status if row else 'gone'}"
                )
            elif row.payment != order.payment:
                yield Violation("I1", run_id, f"{order.reference} was acknowledged with another payment than it has")
        elif 400 <= order.status < 500 and order.reference in standing:
            yield Violation("I1", run_id, f"{order.reference} was answered with {order.status}, and stands")
    for reference, times in Counter(row.reference for row in evidence.rows if row.status == "placed").items():
        if times > 1:
            yield Violation("I1", "", f"{reference} stands {times} times")


def check_money(evidence: Evidence) -> Iterator[Violation]:
    standing = {row.payment: row for row in evidence.rows if row.status == "placed"}
    for key, row in standing.items():
        charged = list(evidence.charges.get(key, ()))
        most = 1 if evidence.dedupe else len(charged)
        if not 1 <= len(charged) <= most or charged[0] != row.amount:
            yield Violation("I1", run_of(key), f"order {row.id} over {row.amount} stands, and was charged {charged}")
        if key in evidence.refunds:
            yield Violation("I1", run_of(key), f"order {row.id} stands, and its charge was refunded")
    for key, cents in evidence.charges.items():
        if key not in standing and evidence.refunds.get(key) != sum(cents):
            yield Violation("I1", run_of(key), f"{cents} charged, no order, {evidence.refunds.get(key, 0)} refunded")
    taken: Counter[str] = Counter()
    for row in evidence.rows:
        taken.update(row.taken)
        if dict(row.taken) != (dict(row.wanted) if row.status == "placed" else {}):
            yield Violation("I1", run_of(row.payment), f"order {row.id} is {row.status}, with stock {dict(row.taken)}")
    for sku, left in evidence.stock.items():
        if left != STOCK - taken[sku]:
            yield Violation("I1", "", f"{STOCK - left} of {sku} left the stock, {taken[sku]} were taken")


# ---- what was asked for, and how often --------------------------------------------------------


def check_calls(evidence: Evidence) -> Iterator[Violation]:
    stories = {story.run_id: story for story in evidence.stories}
    for key, calls in by_key(evidence).items():
        story = stories.get(run_of(key))
        if story is None or key.endswith(VOID):
            continue
        crashes = hits(story.records, place_of(key))
        faults = sum(bool(call.fault) for call in calls)
        if len(calls) > 1 + crashes + faults:
            what = f"{key} was called {len(calls)} times, with {crashes} crashes in it and {faults} faults of others"
            yield Violation("I2", story.run_id, what)


def check_once(evidence: Evidence) -> Iterator[Violation]:
    for story in evidence.stories:
        answered: set[str] = set()
        seen: Counter[tuple[str, Place]] = Counter()
        for kind, _, subject, _ in story.records:
            if isinstance(subject, Asked):
                seen[kind, (subject.step, subject.ordinal)] += kind in (t.ASKED, t.COMMITTED, t.SETTLED)
                if kind == t.ASKED and subject.step in answered:
                    yield Violation("I4", story.run_id, f"{subject.name} was asked for after its step had answered")
            elif kind in (t.STEP, t.DEFECT, t.FAULT):
                if subject.name in answered:
                    yield Violation("I4", story.run_id, f"step {subject.name} has answered twice")
                answered.add(subject.name)
        for (kind, (step, ordinal)), times in seen.items():
            if times > 1:
                yield Violation("I4", story.run_id, f"{step}.{ordinal} is recorded as {kind} {times} times")


def check_keys(evidence: Evidence) -> Iterator[Violation]:
    charged: defaultdict[str, set[str]] = defaultdict(set)
    refunded: defaultdict[str, set[str]] = defaultdict(set)
    for call in evidence.calls:
        if call.verb == "charge":
            charged[call.told].add(call.key)
        elif call.verb == "refund" and not call.key.endswith(VOID):
            refunded[call.of].add(call.key)
            if call.key != f"{call.of}.undo":
                yield Violation("I5", run_of(call.key), f"{call.of} was refunded with the key {call.key}")
    for told, keys in (charged | refunded).items():
        if len(keys) > 1:
            yield Violation("I5", run_of(min(keys)), f"{told} has the keys {', '.join(sorted(keys))}")


def check_reverse(evidence: Evidence) -> Iterator[Violation]:
    for story in evidence.stories:
        order: dict[Place, int] = {}
        begun: list[Place] = []
        undone: Counter[Place] = Counter()
        for kind, _, subject, detail in story.records:
            if isinstance(subject, Asked) and kind in (t.COMMITTED, t.DOUBTED):
                order.setdefault((subject.step, subject.ordinal), len(order))
            elif isinstance(subject, Entry):
                place = (subject.call.step, subject.call.ordinal)
                if kind == t.UNDO and detail == "undo":
                    begun.append(place)
                undone[place] += kind == t.UNDONE and detail[0] == "undo"
        places = [order.get(place, -1) for place in begun]
        if places != sorted(set(places), reverse=True):
            yield Violation("I6", story.run_id, f"undone in the order {[step for step, _ in begun]}")
        for (step, ordinal), times in undone.items():
            if times > 1:
                yield Violation("I6", story.run_id, f"{step}.{ordinal} was undone {times} times")


def check_ghosts(evidence: Evidence) -> Iterator[Violation]:
    intents = {story.run_id: intents_of(story) for story in evidence.stories}
    unwritten = {job.job_id for job in evidence.jobs if job.flow not in errands.DURABLE}
    for key in by_key(evidence):
        run_id = run_of(key)
        if job_of_run(run_id) in unwritten:
            continue
        if run_id not in intents:
            yield Violation("I7", run_id, f"the provider saw {key}, and the journal has no such run")
        elif place_of(key.removesuffix(VOID)) not in intents[run_id]:
            yield Violation("I7", run_id, f"the provider saw {key}, and the journal has no intent of it")


def check_replay(evidence: Evidence) -> Iterator[Violation]:
    for story in evidence.stories:
        if story.trouble:
            yield Violation("I8", story.run_id, story.trouble)


CHECKS: Final[Sequence[Callable[[Evidence], Iterator[Violation]]]] = (
    check_ended,
    check_acked,
    check_money,
    check_calls,
    check_once,
    check_keys,
    check_reverse,
    check_ghosts,
    check_replay,
    *job_invariants.CHECKS,
)

# ---- small questions --------------------------------------------------------------------------


def place_of(key: str) -> Place:
    _, step, ordinal = (*key.split(":", 2), "", "")[:3]
    return step, ordinal


def intents_of(story: Story) -> set[Place]:
    """What the run has written down that it would ask for."""
    found: set[Place] = set()
    for kind, _, subject, detail in story.records:
        if kind == t.ASKED:
            found.add((subject.step, subject.ordinal))
        elif kind == t.UNDO:
            found.add((subject.call.step, f"{subject.call.ordinal}.{detail}"))
    return found


def hits(records: Sequence[Record], place: Place) -> int:
    """How many crashes have hit an effect: the run was taken over between its intent and its outcome."""
    step, ordinal = place
    under_way = False
    found = 0
    for kind, _, subject, detail in records:
        if isinstance(subject, Entry) and (subject.call.step, f"{subject.call.ordinal}.undo") == place:
            under_way = kind == t.UNDO and detail == "undo"
        elif isinstance(subject, Asked) and (subject.step, subject.ordinal) == (step, ordinal):
            if kind == t.ASKED:
                under_way = True
            elif kind in (t.COMMITTED, t.DOUBTED, t.SETTLED):
                under_way = False
        found += kind == t.RECOVERED and under_way
    return found
