"""A thousand worlds in which workers, database and provider fail: no order is lost, charged twice, or stuck.

The checkers of `scripts.simulations.durable_checks` are proven, too: with a law of the runtime taken out, a seed fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import pytest
import trio

from scripts.simulations.durable import PROFILES, play
from scripts.simulations.durable_checks import CHECKERS
from tests.runtime.dying import SHOP, Witness
from zerver import App
from zerver.core.calls import Call
from zerver.core.effects import Failure, IdempotencyKey, Success
from zerver.core.saga import Saga
from zerver.core.timeline import SETTLED
from zerver.errors import EffectError, JournalUnavailable
from zerver.journal import Disk, open_memory_journal
from zerver.journal.lines import LineWriter
from zerver.journal.sql import SqlJournal
from zerver.runtime import open_runtime, takeover
from zerver.runtime.book import Book
from zerver.runtime.journal import Entry, Page
from zerver.runtime.parking import Letter, letters
from zerver.runtime.recovery import doubt
from zerver.runtime.sheets import Sheets
from zerver.runtime.takeover import Successor

#: How many seeds of each profile: a thousand together. The run without asserts has less to prove.
SEEDS: Final[Mapping[str, int]] = {"crash": 280, "fault": 260, "zombie": 200, "mixed": 220, "suspend": 40}
CHUNK: Final = 20
CHUNKS: Final = [
    (profile, first)
    for profile, count in SEEDS.items()
    for first in range(0, CHUNK if sys.flags.optimize else count, CHUNK)
]


@pytest.mark.parametrize(("profile", "first"), CHUNKS)
def test_whatever_fails_every_order_ends_right(profile: str, first: int) -> None:
    for seed in range(first, first + CHUNK):
        played = play(seed, profile)
        assert not played.complaints, "\n".join((*played.complaints, f"replay: {played.replay}"))


def test_undisturbed_every_order_ends_as_it_would_for_one_who_waits() -> None:
    for seed in range(CHUNK):
        assert not play(seed, "quiet").complaints, seed


def test_there_are_a_thousand() -> None:
    assert sum(SEEDS.values()) == 1_000
    assert set(SEEDS) | {"quiet"} == set(PROFILES)


# ---- the same seed is the same world --------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_the_same_seed_gives_the_same_course(profile: str) -> None:
    first, second, other = play(3, profile), play(3, profile), play(4, profile)
    assert first.world.notes == second.world.notes
    assert first.digest != other.digest


def test_the_command_replays_it_in_another_process() -> None:
    played = play(5, "mixed")
    module = played.replay.replace("scripts/sim durable", "scripts.simulations.durable")
    told = subprocess.run(
        [sys.executable, "-m", *module.split()],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert f"digest {played.digest}" in told.stdout


# ---- every checker can fail -----------------------------------------------------------------


def without_intents(patch: pytest.MonkeyPatch) -> None:
    """A write does not wait for its intent."""

    async def write(self: Book, run: Any, call: Call) -> Any:
        return await self.interpreter.perform(run, call)

    patch.setattr(Book, "_write", write)


def without_fences(patch: pytest.MonkeyPatch) -> None:
    """The journal takes pages from anybody."""
    real = SqlJournal._page

    def page(self: SqlJournal, page: Any) -> Any:
        (fence,) = self._driver.process.world.database.connection.execute(  # type: ignore[attr-defined]  # it is a Line
            "select coalesce(max(fence), 0) from zerver_runs where run_id = ?", (page.run_id,)
        ).fetchone()
        return real(self, attrs.evolve(page, fence=fence))

    patch.setattr(SqlJournal, "_page", page)


def without_questions(patch: pytest.MonkeyPatch) -> None:
    """Who takes a run over believes that what was under way has not happened."""

    async def take_up(self: Book, run: Any, call: Call) -> Any:
        return Failure(EffectError(call.effect.kind.name, "nobody has told me"))

    patch.setattr(Book, "_take_up", take_up)


def with_new_keys(patch: pytest.MonkeyPatch) -> None:
    """Every attempt has a key of its own."""
    made: list[int] = []

    def key(self: Call) -> IdempotencyKey:
        made.append(1)
        return IdempotencyKey(f"{self.run_id}:{self.step}:{self.ordinal}.{len(made)}")

    patch.setattr(Call, "key", property(key))


def in_order(patch: pytest.MonkeyPatch) -> None:
    """What was done first is undone first."""
    real = Saga.next_task

    def next_task(self: Saga, failing: bool) -> Any:
        self.entries.reverse()
        try:
            return real(self, failing)
        finally:
            self.entries.reverse()

    patch.setattr(Saga, "next_task", next_task)


def without_takeover(patch: pytest.MonkeyPatch) -> None:
    """Nobody carries on what others have left."""

    async def claim(self: Successor, nursery: Any) -> None:
        return None

    patch.setattr(Successor, "claim", claim)


def without_ends(patch: pytest.MonkeyPatch) -> None:
    """A run is answered before its end is on the disk, and the journal is told nothing of it."""

    async def close(self: Book) -> bool:
        return True

    patch.setattr(Book, "close", close)


def twice(patch: pytest.MonkeyPatch) -> None:
    """What has settled is asked for again."""
    real = Book._write

    async def write(self: Book, run: Any, call: Call) -> Any:
        outcome = await real(self, run, call)
        run.records.append((SETTLED, run.clock(), call, outcome))
        await self._keep()
        await self.interpreter.fly(run, call, None)
        return outcome

    patch.setattr(Book, "_write", write)


def without_word(patch: pytest.MonkeyPatch) -> None:
    """What is undone is not written down before."""

    async def compensate(self: Book, run: Any, call: Call) -> Any:
        return await self.interpreter.compensate(run, call)

    patch.setattr(Book, "compensate", compensate)


def without_what_came_of_it(patch: pytest.MonkeyPatch) -> None:
    """A run ends, and what came of its last write does not get to the disk with that."""
    real = Sheets.next

    def next_entry(self: Sheets, status: str = "", park: Any = None) -> Any:
        entry = real(self, status, park)
        return attrs.evolve(entry, lines=()) if isinstance(entry, Page) and entry.status else entry

    patch.setattr(Sheets, "next", next_entry)


def without_undoing(patch: pytest.MonkeyPatch) -> None:
    """A refund is said to be done, and is not asked for."""

    async def compensate(self: Book, run: Any, call: Call) -> Any:
        return Success(None)

    patch.setattr(Book, "compensate", compensate)


def without_keys_in_doubt(patch: pytest.MonkeyPatch) -> None:
    """A write in doubt is never asked about, nor asked for again."""

    async def resolve(self: Book, run: Any, call: Call, outcome: Any) -> Any:
        return outcome

    patch.setattr(Book, "_take_up", lambda self, run, call: resolve(self, run, call, doubt(call)))
    patch.setattr(Book, "compensate", lambda self, run, call: resolve(self, run, call, doubt(call)))


def with_garbage(patch: pytest.MonkeyPatch) -> None:
    """A line is written twice."""
    real = LineWriter.lines

    def lines(self: LineWriter, records: Any) -> list[bytes]:
        written = real(self, records)
        return [*written, written[-1]]

    patch.setattr(LineWriter, "lines", lines)


def without_letters(patch: pytest.MonkeyPatch) -> None:
    """A signal that was taken is taken for one that has not come in time."""

    def late(*given: Any) -> tuple[Letter, ...]:
        return tuple((letter[0],) for letter in letters(*given))

    patch.setattr(takeover, "letters", late)


MUTATIONS: Final[list[tuple[Callable[[pytest.MonkeyPatch], None], str, str]]] = [
    (without_intents, "crash", "intent"),
    (without_fences, "zombie", "one_owner"),
    (without_questions, "crash", "money"),
    (with_new_keys, "fault", "money"),
    (in_order, "quiet", "in_reverse"),
    (without_takeover, "crash", "finished"),
    (without_ends, "quiet", "finished"),
    (twice, "quiet", "once"),
    (without_ends, "crash", "promises"),
    (without_word, "quiet", "intent"),
    (without_what_came_of_it, "quiet", "replays"),
    (without_undoing, "quiet", "money"),
    (without_keys_in_doubt, "crash", "resolved"),
    (with_garbage, "quiet", "replays"),
    (without_letters, "crash", "signalled"),
    (without_questions, "suspend", "as_ever"),
]
WITHIN: Final = 60  # seeds


def test_every_checker_can_fail() -> None:
    assert {checker for _, _, checker in MUTATIONS} == {checker.__name__ for checker in CHECKERS}


@pytest.mark.parametrize(("mutate", "profile", "checker"), MUTATIONS)
def test_a_law_taken_out_is_missed(
    mutate: Callable[[pytest.MonkeyPatch], None], profile: str, checker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    for seed in range(WITHIN):
        if any(complaint.startswith(f"{checker}:") for complaint in play(seed, profile).complaints):
            return
    pytest.fail(f"{WITHIN} seeds of {profile} do not notice: {mutate.__doc__}")


# ---- what seeds have found, each by name ----------------------------------------------------


async def test_who_loses_its_run_at_the_last_page_does_not_say_how_it_ended(autojump_clock: object) -> None:
    disk = Disk()
    async with open_memory_journal(disk) as journal, open_memory_journal(disk) as other:
        write = journal.write

        async def lose(entry: Entry) -> None:
            if isinstance(entry, Page) and entry.status:
                await journal.renew("me", 0.0)
                await other.renew("other", 10.0)
                await other.claim("other", 1)
            await write(entry)

        journal.write = lose  # type: ignore[method-assign]  # to be there at the last moment
        handlers = Witness().handlers()
        async with open_runtime(App(), handlers=handlers, journal=journal, owner="me") as runtime:
            result = await runtime.run(SHOP)
    assert (result.status, result.reason) == ("cancelled", "another worker carries it on")


async def test_a_worker_that_cannot_say_that_it_lives_begins_no_write(autojump_clock: object) -> None:
    witness = Witness()
    async with open_memory_journal(witness.disk) as journal:
        handlers = witness.handlers()
        paid = handlers["bank.charge"]

        async def slow(cents: int, *, key: IdempotencyKey) -> str:
            journal.renew = unheard  # type: ignore[method-assign]  # from the first charge on
            await trio.sleep(8.0)
            return str(await paid(cents, key=key))

        async def unheard(owner: str, lease_seconds: float) -> None:
            await trio.lowlevel.checkpoint()
            raise JournalUnavailable("the line is cut")

        handlers["bank.charge"] = slow
        async with open_runtime(App(), handlers=handlers, journal=journal, lease=10.0) as runtime:
            result = await runtime.run(SHOP)
    assert (result.status, result.reason) == ("cancelled", "the journal could not be reached")
    assert list(witness.world.done.values()) == ["ch_12"]
