"""The timeline as text: what a run did, when, what it waited for, and why it ended as it did.

Law: a pure function of the records. Times are the records' differences, values are not shown, whatever comes from
outside is masked and escaped, and any list of records makes a text, a run that is still under way included.

    POST /v2/checkout  201  [req_7a8f3c2b…]  interactive · tenant acme
      0.0ms  verify  → sql.fetch_one users
      1.9ms  verify  ✓ 1.9ms   io 1.8ms
      2.0ms  charge  → payments.charge(1200, 'user_1')  key=…:charge:1
     46.1ms  charge  ⚠ attempt 1 timed out after 44ms, outcome unknown; retrying with the same key
     89.9ms  charge  ✓ 87.9ms  io 87.6ms  attempts 2
    SLOW charge took 88ms of 90ms: 1 timeout + 1 retry
    slots  written auth.user payment   read auth.user cart
    total 89.9ms = admission 0.0 + turn 0.0 + cpu 0.5 + io 89.4 + parked 0.0
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from zerver.core.saga import Entry
from zerver.core.timeline import Accounts, Timeline
from zerver.trace.cause import causes
from zerver.trace.facts import Facts
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.rows import Row, rows
from zerver.trace.veil import Veil, escaped

_WIDEST_NAME = 28


def format_timeline(
    timeline: Timeline,
    *,
    unresolved: Sequence[Entry] | None = None,
    slow: float | None = None,
    hidden: Hidden = NOTHING_HIDDEN,
) -> str:
    """The text of a run, without a newline at its end.

    unresolved: the Result's, for records that do not reach to the end of the run; whole ones tell it themselves.
    slow: seconds above which a run is called slow; by default 0.05, if one step took more than half of it. hidden:
    names that are masked beside those that the code calls secret.
    """
    facts = Facts(timeline)
    veil = Veil(facts, hidden)
    lines = [
        _header(facts, veil),
        *_table(list(rows(facts, veil))),
        *causes(facts, veil, unresolved, slow),
        *_slots(facts),
        _accounts(timeline.accounts),
    ]
    return "\n".join(map(escaped, lines))


def _header(facts: Facts, veil: Veil) -> str:
    timeline = facts.timeline
    ended = facts.ending.status if facts.ending is not None and facts.over else "under way"
    word = ended if timeline.answered is None else str(timeline.answered)
    whose = f"{timeline.priority} · tenant {veil.text(timeline.tenant)}"
    return f"{veil.text(timeline.label) or timeline.flow}  {word}  [{timeline.run_id}]  {whose}"


def _table(listed: Sequence[Row]) -> Iterator[str]:
    times = [_clock(row.at, listed[-1].at) for row in listed]
    names = [_short(escaped(row.subject)) for row in listed]
    time_width = max([7, *map(len, times)])
    name_width = max(map(len, names), default=0)
    for row, time, name in zip(listed, times, names, strict=True):
        yield f"{time:>{time_width}}  {name:<{name_width}}  {row.text}".rstrip()


def _clock(at: int, last: int) -> str:
    """Milliseconds since the run was received; seconds for a run of minutes, as one that was parked."""
    return f"{at / 1e6:.1f}ms" if last < 100_000_000_000 else f"{at / 1e9:.3f}s"


def _short(name: str) -> str:
    return name if len(name) <= _WIDEST_NAME else name[: _WIDEST_NAME - 1] + "…"


def _slots(facts: Facts) -> Iterator[str]:
    """Which slots the run's steps wrote and read, in the order of their first use. Names only: values may be secret."""
    written: dict[str, None] = {}
    read: dict[str, None] = {}
    for step in facts.steps.values():
        if step.node is None or step.began is None:
            continue
        signature = step.node.step.signature
        read.update(dict.fromkeys(item.slot.name for item in signature.slots))
        if step.ok:
            written.update(dict.fromkeys(item.slot.name for item in signature.writes))
    said = [f"{word} {' '.join(names)}" for word, names in (("written", written), ("read", read)) if names]
    if said:
        yield "slots  " + "   ".join(said)


def _accounts(accounts: Accounts) -> str:
    """`total 96.1ms = admission 0.0 + …`: rounded by largest remainder, so that what is printed adds up too."""
    named = attrs.asdict(accounts)
    tenths = {name: ns // 100_000 for name, ns in named.items()}
    missing = round(accounts.total / 100_000) - sum(tenths.values())
    for name in sorted(named, key=lambda name: -(named[name] % 100_000))[:missing]:
        tenths[name] += 1
    parts = " + ".join(f"{name} {count / 10:.1f}" for name, count in tenths.items())
    return f"total {sum(tenths.values()) / 10:.1f}ms = {parts}"
