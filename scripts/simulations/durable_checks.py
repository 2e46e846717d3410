"""What must hold when the world has come to rest: the invariants of a payment, looked at from outside.

Law: a checker believes the database and the provider, and nobody else. Each of them says what is wrong in one line
that names the order.

Of durability "async" a crash may take the last moments along: such runs have ended, in whatever way, and those that
say that they are done are held to it.

One thing is forgiven: a charge that was on the wire while its successor asked for its key, was told that nothing is
known of it, and believed that. No program can know better; `by_key=`, which voids the key, can do something about it.

    finished      every run that was begun has ended, and no code was at a loss with one
    money         what stands at the provider is what the run's end says: all of it, or nothing from behind its pivot
    intent        no write, and no undoing of one, reached the provider before its intent was on the disk
    once          no write reached it any more after its outcome was
    in_reverse    what was undone was undone in reverse order, and once
    one_owner     nobody wrote a page of a run that was not theirs
    replays       the lines of every run can be read, and lead the same code to the same end
    promises      what a client was told is what the journal says
    resolved      nothing is unresolved, since the provider answers questions in the end
    signalled     a signal that was taken is found by its run, once, and none that nobody has given
    as_ever       in a profile where no call goes wrong, every run ends as it does when nobody dies
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.plan import compile_plan
from zerver.core.timeline import Timeline
from zerver.errors import JournalError
from zerver.runtime.journal import UNRESOLVED, RunHead, StoredRun
from zerver.runtime.recovery import Astray, recover

if TYPE_CHECKING:
    from scripts.simulations.durable import Played
    from scripts.simulations.durable_flows import Made


@attrs.frozen
class Story:
    """A run as the database has it. at: by the number of a line, when it was written."""

    run_id: str
    order: int
    made: Made
    status: str
    timeline: Timeline
    at: Mapping[int, int]

    @property
    def is_known(self) -> bool:
        """Whether its records are all that has happened: no crash has taken some of them along."""
        return self.made.flow.durability == "sync"

    def says(self, what: str) -> str:
        return f"order {self.order} ({self.status or 'unfinished'}): {what}"

    def first(self, kinds: tuple[str, ...]) -> dict[str, int]:
        """When the first record of one of these kinds was on the disk, by the key of its call."""
        found: dict[str, int] = {}
        for number, (kind, _, call, _) in enumerate(self.timeline.records):
            if kind in kinds and isinstance(call, Call):
                found.setdefault(call.key, self.at.get(number, 0))
        return found


def check(played: Played) -> list[str]:
    """All that does not hold."""
    complaints: list[str] = []
    stories = _stories(played, complaints)
    for checker in CHECKERS:
        complaints += [f"{checker.__name__}: {what}" for what in checker(played, stories)]
    return complaints


def _stories(played: Played, complaints: list[str]) -> dict[int, Story]:
    """The runs that are in the database, by order."""
    stories: dict[int, Story] = {}
    reader = played.notation.reader(*(made.flow for made in played.flows))
    at: dict[str, dict[int, int]] = {}
    for page in played.world.database.pages:
        known = at.setdefault(page.run_id, {})
        for number in range(page.first, page.first + len(page.lines)):
            known.setdefault(number, page.at)
    for run in stored_runs(played.world.database.connection):
        order = played.ids[run.head.run_id]
        try:
            timeline = reader.read(run)
        except JournalError as error:
            complaints.append(f"replays: order {order}: {error}")
            continue
        stories[order] = Story(run.head.run_id, order, played.orders[order], run.status, timeline, at[run.head.run_id])
    return stories


_HEAD: Final = "run_id, flow, version, tenant, priority, began, owner, label, parent, deadline, durability"


def stored_runs(connection: Any) -> Iterator[StoredRun]:
    """The runs of a journal, by looking and not by asking."""
    rows = connection.execute(
        f"select {_HEAD}, fence, status, plans.id, plans.plan, seq from zerver_runs "
        "join zerver_plans plans on plans.id = zerver_runs.plan order by seq"
    ).fetchall()
    for *head, fence, status, plan_id, plan, seq in rows:
        pages = connection.execute("select body from zerver_pages where run = ? order by first", (seq,)).fetchall()
        lines = [line for (body,) in pages for line in body.split(b"\n")]
        yield StoredRun(RunHead(*head), fence, status, plan_id, plan, tuple(lines))


# ---- the checkers ---------------------------------------------------------------------------


def finished(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    for story in stories.values():
        if not story.status:
            yield story.says("was begun and has not ended")
    for run_id, why in played.stuck.items():
        yield f"run {run_id} is stuck: {why}"


def money(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    standing: dict[int, Counter[str]] = {order: Counter() for order in played.orders}
    for charge in played.world.provider.charges.values():
        if not charge.late:
            standing[charge.order][charge.label] += not charge.refunded
    for order, found in standing.items():
        story = stories.get(order)
        if story is None:
            if +found and played.orders[order].flow.durability == "sync":
                yield f"order {order} is not in the journal, and {dict(+found)} stands"
            continue
        if story.status in ("", UNRESOLVED) or not (story.is_known or story.status == "done"):
            continue
        passed = any(record[0] == t.PIVOT for record in story.timeline.records)
        due = story.made.done(order) if story.status == "done" else story.made.kept(order) if passed else {}
        for label in due.keys() | found.keys():
            least, most = due.get(label, (0, 0))
            if not least <= found[label] <= most:
                yield story.says(f"{found[label]} of {label} stand, and not {least} to {most}")


def intent(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    asked = {key: at for story in stories.values() for key, at in story.first((t.ASKED,)).items()}
    for story in stories.values():
        for number, (kind, _, entry, detail) in enumerate(story.timeline.records):
            if kind == t.UNDO:
                asked.setdefault(f"{entry.call.key}.{detail}", story.at.get(number, 0))
    known = {f"req_{order}" for order, made in played.orders.items() if made.flow.durability == "sync"}
    for called in played.world.provider.called:
        is_known = called.verb in ("charge", "refund", "void") and called.key.partition(":")[0] in known
        if is_known and not asked.get(called.key, called.at) < called.at:
            yield f"{called.key} was called at note {called.at}, and its intent written after it, or never"


def once(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    settled = {key: at for story in stories.values() for key, at in story.first((t.SETTLED,)).items()}
    for called in played.world.provider.called:
        if called.verb == "charge" and settled.get(called.key, called.at) < called.at:
            yield f"{called.key} was called at note {called.at}, and had settled at {settled[called.key]}"
    for text, count in played.world.provider.notices.items():
        if count > 1:
            yield f"notice {text} was sent {count} times, and has no key"


def in_reverse(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    for story in stories.values():
        committed: dict[str, int] = {}
        undone: list[int] = []
        for kind, _, subject, detail in story.timeline.records:
            if kind in (t.COMMITTED, t.DOUBTED):
                committed.setdefault(subject.key, len(committed))
            elif kind == t.UNDONE and detail[0] == "undo" and story.status != "done":
                undone.append(committed.get(subject.call.key, -1))
        if undone != sorted(set(undone), reverse=True):
            yield story.says(f"what was committed in order is undone as {undone}")


def one_owner(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    for page in played.world.database.pages:
        if page.by != page.owner:
            yield f"{page.by} wrote page {page.first} of {page.run_id}, which was {page.owner}'s"


def replays(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    for story in stories.values():
        try:
            found = recover(compile_plan(story.made.flow), story.timeline)
        except Astray as astray:
            yield story.says(f"does not replay: {astray}")
            continue
        ending = found.machine.ending
        if story.status and story.is_known and ending is None:
            yield story.says("has ended, and its records have not")
        if story.status and ending is not None and story.status not in (ending.status, UNRESOLVED):
            yield story.says(f"replays to {ending.status}")


#: What a client is told of a run whose end is not known to who tells it.
_UNSURE: Final = ("another worker", "could not be told", "could not be reached")


#: What a client is told when the journal has not taken a run. If it has all the same, and nobody could withdraw it
#: before its lease lapsed, it is carried on by another worker, and the client's answer was a guess: forgiven.
_UNWRITTEN: Final = "could not be written down"


def promises(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    for heard in played.heard:
        story, result = stories.get(heard.order), heard.result
        if any(said in result.reason for said in _UNSURE):
            continue
        if result.status == "parked" or played.orders[heard.order].flow.durability == "async":
            continue
        if story is None:
            calls = (call for kind, _, call, _ in result.timeline.records if kind == t.ASKED)
            if result.ok and any(call.effect.kind.access == "write" for call in calls):
                yield f"order {heard.order}: its client was told {result.status}, and it is not in the journal"
        elif _UNWRITTEN in result.reason and any(record[0] == t.RECOVERED for record in story.timeline.records):
            continue
        elif story.status != UNRESOLVED and result.ok != (story.status == "done"):
            yield story.says(f"its client was told {result.status} {result.reason}")


def resolved(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    for story in stories.values():
        if story.status == UNRESOLVED and story.is_known:
            left = [str(record[2]) for record in story.timeline.records if record[0] == t.UNRESOLVED]
            yield story.says(f"unresolved: {', '.join(left)}")


def signalled(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    given = {(told.order, told.signal, told.value) for told in played.told}
    for story in stories.values():
        waits = {subject.name: detail.signal for kind, _, subject, detail in story.timeline.records if kind == t.PARKED}
        found = Counter(
            (story.order, waits[subject.name], detail)
            for kind, _, subject, detail in story.timeline.records
            if kind == t.SIGNALLED
        )
        expired = {waits[subject.name] for kind, _, subject, _ in story.timeline.records if kind == t.EXPIRED}
        for one, times in found.items():
            if times > 1 or one not in given:
                yield story.says(f"found {one[1]} {one[2]} {times} times")
        for told in played.told:
            is_lost = told.taken and not found[told.order, told.signal, told.value]
            if told.order == story.order and is_lost and (told.signal in expired or story.status == "done"):
                yield story.says(f"{told.signal} {told.value} was taken, and not found")


def as_ever(played: Played, stories: Mapping[int, Story]) -> Iterator[str]:
    if played.is_steady:
        for story in stories.values():
            if story.status not in ("", story.made.ends):
                yield story.says(f"undisturbed, it would have been {story.made.ends}")


CHECKERS: Final = (
    *(finished, money, intent, once, in_reverse, one_owner, replays, promises, resolved, signalled, as_ever),
)
