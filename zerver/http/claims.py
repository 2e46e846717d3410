"""The claims of one process: renewed while their runs are under way, and settled when these are over.

Law: a claim that this process has made is renewed until it is settled, and settled whatever became of its request: its
answer is stored, or its place is free again. What cannot be stored now is tried until it can.

A "sync" run that a crash has cut off is carried on by another process, and nobody is left who would answer: its answer
is made when it ends, for whoever asks again. Its claim lapses later than others, so that nobody begins it anew before
it has been found. For all others a crash is the end, and what they did before it may be done again by the next one to
ask: see docs/how-to/idempotency-keys.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from zerver.core import timeline as t
from zerver.core.app import App
from zerver.core.flows import Flow
from zerver.core.timeline import Ending, Timeline
from zerver.errors import DefinitionError, JournalError
from zerver.http import idempotency as rules
from zerver.http.continuation import open_continuations
from zerver.http.messages import Response
from zerver.http.render import render
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.live import LEFT
from zerver.runtime.receipts import (
    LEASE,
    LONGEST_LEASE,
    MemoryReceipts,
    Receipts,
    StoredAnswer,
    brings_receipts,
    receipts_in,
)
from zerver.runtime.recovery import Astray
from zerver.runtime.result import Result
from zerver.runtime.run import Runtime

#: Seconds that an answer waits for its receipt to be on the disk. Later it is sent without, and its receipt is tried
#: again behind it: the claim stays until then, so that nobody does the same twice meanwhile.
SETTLE_SECONDS: Final = 5.0

_FIRST_PAUSE: Final = 0.1  # seconds between two tries, doubled …
_LONGEST_PAUSE: Final = 5.0  # … up to this


@attrs.frozen
class ClaimStatistics:
    """held: claims of this process that are not settled. lost: answers that were not stored because another run had
    taken the place over: each is a request that was carried out twice.
    """

    held: int
    lost: int


class Claims:
    """The claims of one process. Made by `open_claims`."""

    def __init__(
        self,
        runtime: Runtime,
        receipts: Receipts,
        flows: Mapping[str, Flow],
        nursery: trio.Nursery,
        on_defect: Callable[[Exception], None],
        answer_parked: Callable[[Result], Response] | None = None,
    ) -> None:
        """flows: those with idempotency, by name. answer_parked: to whose run was put down; None where none can be."""
        self.runtime = runtime
        self.receipts = receipts
        self.nursery = nursery
        self.on_defect = on_defect
        self.answer_parked = answer_parked
        self.here: dict[bytes, tuple[str, bytes]] = {}  # by place, requests that have come and not gone: run id, head
        self._flows = flows
        self._held: dict[str, float] = {}  # run ids, and for how long each claims
        self._changed = trio.Event()
        self._lost = 0

    def statistics(self) -> ClaimStatistics:
        return ClaimStatistics(len(self._held), self._lost)

    def hold(self, run_id: str, lease: float) -> None:
        """The run may have a claim from now on: renew it until it is settled."""
        self._held[run_id] = lease
        self._tell()

    def holds(self, run_id: str) -> bool:
        """Whether the run's claim is this process's to settle."""
        return run_id in self._held

    def drop(self, run_id: str) -> None:
        self._held.pop(run_id, None)
        self._tell()

    async def wait_settled(self) -> None:
        """Wait until no claim of this process is left, those of runs that are still rolled back included."""
        while self._held:
            await self._changed.wait()

    async def keep_renewing(self) -> None:
        """While there are claims, begin their leases anew three times before one could lapse."""
        while True:
            if not self._held:
                await self._changed.wait()
                continue
            await trio.sleep(LEASE / 3)
            try:
                with trio.move_on_after(LEASE / 3):
                    for lease in set(self._held.values()):
                        await self.receipts.renew([run for run, its in self._held.items() if its == lease], lease)
            except JournalError:
                pass  # there is another try before any of them lapses

    def observe(self, result: Result) -> None:
        """Told of every run that has ended. One that was carried on after a crash has nobody left who would answer: its
        answer is made for whoever asks again.
        """
        flow = self._flows.get(result.timeline.flow)
        kinds = {kind for kind, *_ in result.timeline.records} if flow is not None else frozenset[str]()
        if flow is not None and kinds >= {t.KEYED, t.RECOVERED}:
            response = render(result, on_error=flow.on_error or self.runtime.app.on_error, on_defect=self.on_defect)
            self.hold(result.run_id, lease_of(flow))
            self.nursery.start_soon(self.settle_behind, flow, result, response)

    async def recall(self, flow: Flow, run_id: str) -> tuple[Result, StoredAnswer | None] | None:
        """What an earlier run of a "sync" flow came to, and its answer if that is final, by what the journal has of it;
        None when it has nothing of it. It may have died between its end and its receipt; or when it had parked, and
        before its 202 was sent: then that is its answer. Of an "async" run the journal knows only that it has parked.
        Raises JournalError.
        """
        if flow.durability == "off":
            return None
        try:
            result = await self.runtime.recall(run_id)
        except Astray:  # it was carried out by other code; what it said, nobody knows any more
            result = Result(Timeline(run_id, flow.name, flow.version, "", "default", []), Ending("done"))
            return result, rules.not_stored(run_id)
        if result is not None and result.status == "parked" and self.answer_parked is not None:
            return result, rules.stored(self.answer_parked(result))
        if result is None or flow.durability != "sync":
            return None
        if not result.sealed:
            return result, None
        response = render(result, on_error=flow.on_error or self.runtime.app.on_error, on_defect=self.on_defect)
        return result, self._to_store(flow, result, response)

    async def settle(self, flow: Flow, result: Result, response: Response) -> bool:
        """Store the answer of a run that is over, or free its place. False when the store does not take it now."""
        run_id = result.run_id
        if result.ending in LEFT:  # whoever carries it on settles it
            self.drop(run_id)
            return True
        answer = self._to_store(flow, result, response)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + SETTLE_SECONDS):
            try:
                if answer is None:
                    await self.receipts.release(run_id)
                elif not await self.receipts.store(run_id, answer, flow.idempotency_expires):
                    self._lost += 1
            except JournalError:
                return False
            self.drop(run_id)
            return True
        return False

    async def settle_behind(self, flow: Flow, result: Result, response: Response) -> None:
        """The same for an answer that has gone out, as often as it takes."""
        pause = _FIRST_PAUSE
        while not await self.settle(flow, result, response):
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def give_back(self, flow: Flow, run_id: str, before: str) -> bool:
        """Make the run's place that of the earlier run again, from whom it was taken. False when the store does not
        take it now: then the claim is held.
        """
        with trio.CancelScope(shield=True, deadline=trio.current_time() + SETTLE_SECONDS):
            try:
                await self.receipts.give_back(run_id, before, lease_of(flow))
            except JournalError:
                return False
            self.drop(run_id)
            return True
        return False

    async def give_back_behind(self, flow: Flow, run_id: str, before: str) -> None:
        """The same, as often as it takes."""
        pause = _FIRST_PAUSE
        while not await self.give_back(flow, run_id, before):
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _to_store(self, flow: Flow, result: Result, response: Response) -> StoredAnswer | None:
        """None to free the place."""
        if not rules.is_final(result, response.status):
            return None
        answer = rules.stored(response)
        if answer is not None:
            return answer
        self.on_defect(
            DefinitionError(
                f"flow {flow.name!r} has idempotency={flow.idempotency!r}, and its run {result.run_id} gave an answer "
                "that cannot be stored: a stream, or a large body",
                "answer with a whole body, as json(…), and serve what is streamed or large from a GET route",
            )
        )
        return rules.not_stored(result.run_id)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def open_claims(runtime: Runtime, on_defect: Callable[[Exception], None]) -> AsyncGenerator[Claims, None]:
    """The claims of an app that is open, in the store that its capabilities bring; else in memory.

    Left, those of runs whose rollback outlives their answer are waited for, as long as that may take.
    """
    keyed = {route.flow.name: route.flow for route in runtime.app.routes if route.flow.idempotency is not None}
    longest = max((flow.undo_deadline for flow in keyed.values()), default=0.0) + SETTLE_SECONDS
    receipts = receipts_in(runtime.resources) or MemoryReceipts()
    async with open_body_nursery() as nursery:
        continuations = await open_continuations(runtime) if keyed else None
        answer_parked = None if continuations is None else continuations.parked
        claims = Claims(runtime, receipts, keyed, nursery, on_defect, answer_parked)
        if keyed:
            nursery.start_soon(claims.keep_renewing)
        recovers = any(flow.durability == "sync" for flow in keyed.values())
        if recovers:
            runtime.telling.observers.append(claims.observe)
        try:
            yield claims
        finally:
            if recovers:
                runtime.telling.observers.remove(claims.observe)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + longest):
                await claims.wait_settled()
        nursery.cancel_scope.cancel()


def lease_of(flow: Flow) -> float:
    """Seconds: a run that is carried on after a crash has to be found before its claim lapses."""
    return LONGEST_LEASE if flow.durability == "sync" else LEASE


def check_shared(app: App) -> None:
    """Raise DefinitionError for an app that cannot be served by several processes, as workers: each would have receipts
    of its own, and two of the same request would be carried out by two of them.
    """
    keyed = next((route for route in app.routes if route.flow.idempotency is not None), None)
    if keyed is not None and not brings_receipts(app):
        raise DefinitionError(
            f"route {keyed.label}: flow {keyed.flow.name!r} has idempotency={keyed.flow.idempotency!r}, but workers "
            "would not know of each other's keys",
            'give them a store to share: App(capabilities=[sqlite_receipts("receipts.db"), …]), of zerver.journal',
        )
