"""Requests with an idempotency key, from their arrival to their receipt.

Law: what a key protects is decided by the store alone, in one atomic claim, made when the whole request is known; what
is looked at before that only saves work. A claim that was made is settled whatever becomes of its request: its answer
is stored, or its place is free again, before anybody has the answer.

    look     before admission: no ticket is spent on a request whose answer is known
    reading  after admission: the body is read, the request judged, the place claimed
    settle   after the answer is made and before it is sent: stored, or released

Why the claim is not made before admission. To claim early, a request would have to be claimed without its body, which
is read for admitted runs only; and each refused request would cost two writes, when there is least to spare. So two of
the same may both be waiting for a ticket. In one process they are not: the second is told 409 as long as the first is
here. Behind several workers the later one to be admitted finds the claim of the earlier, and has cost a ticket.

Why a stored answer may have a body read without a ticket. It must be compared with the first one's, and its answer must
not cost a ticket. What is read then is bounded by what was admitted under the same key: a length that is announced and
differs is another request, and from one that is not announced no more is taken than the first had. No piece is kept.

A request whose shape is wrong has claimed nothing, because it is read before it claims. Precedent: Stripe, which saves
nothing of a request that fails validation.
"""

from __future__ import annotations

from collections.abc import Mapping

from zerver.core.flows import Flow
from zerver.core.tenants import NOBODY
from zerver.core.timeline import Ending, Keyed
from zerver.errors import HttpError, JournalError, JournalUnavailable, KeyRefused, ProtocolViolation
from zerver.http import idempotency as rules
from zerver.http.claims import Claims, lease_of
from zerver.http.exchange import Exchange
from zerver.http.messages import Response
from zerver.http.render import render
from zerver.runtime.executor import Parts
from zerver.runtime.receipts import Asked, Claim, Foregone, Receipt, StoredAnswer
from zerver.runtime.request import Values
from zerver.runtime.result import Result


class Visit:
    """One request for a flow with idempotency. tenant: whose it is. route: as "POST /v2/checkout". run_id: of its run.

    After `look` and `reading`: keyed, what came of the key, as the record's detail; answer, that of an earlier run,
    when this is what the request gets.
    """

    def __init__(
        self,
        claims: Claims,
        exchange: Exchange,
        flow: Flow,
        *,
        tenant: str,
        route: str,
        params: Mapping[str, str],
        run_id: str,
    ) -> None:
        self.flow = flow
        self.run_id = run_id
        self.keyed: tuple[Keyed, str] | None = None
        self.answer: StoredAnswer | None = None
        self._claims = claims
        self._exchange = exchange
        self._tenant = tenant
        self._route = route
        self._params = params
        self._place: bytes | None = None
        self._head = b""
        self._claiming = False  # the place may be this run's
        self._left = False  # whoever answers has gone: the end of the rollback settles it
        self._sealed: Result | None = None
        self._response: Response | None = None

    async def look(self) -> Ending | None:
        """What the request comes to if that is known without a run; None if it is to be run."""
        try:
            key = rules.read_key(self._exchange.head)
            if key is None:
                if self.flow.idempotency == "required":
                    raise rules.missing()
                return None
            self._place = rules.place_of(self._tenant, self.flow.name, key)
            self._head = rules.head_of(self._exchange.head, self._route, self._params, self._tenant != NOBODY)
            run_id, head = self._claims.here.setdefault(self._place, (self.run_id, self._head))
            if run_id != self.run_id:
                return self._judged(Receipt(run_id, head, b"", 0), head == self._head)
            receipt = await self._settled(self._place, await self._find(self._place))
            return None if receipt is None else self._judged(receipt, await self._is_same(receipt))
        except HttpError as bad:
            return Ending("failed", cause=bad)

    def reading(self, parts: Parts) -> Parts:
        """What an admitted run reads, and then the claim."""
        if self._place is None:
            return parts
        place = self._place

        async def read() -> Values:
            given = parts() if callable(parts) else parts
            values = given if isinstance(given, (list, tuple)) else await given
            await self._claim(place, await self._exchange.read_body())
            return values

        return read

    def ended(self, result: Result) -> None:
        """The run has ended; nothing is known yet while its rollback goes on, and this is called again after that. Of
        one that was put down, the answer is where it goes on, and stays that.
        """
        if not result.sealed and result.status != "parked":
            return
        self._sealed = result
        if self._left and self._claiming:
            self._claims.nursery.start_soon(self._claims.settle_behind, self.flow, result, self._answer(result))

    def answered(self, response: Response) -> None:
        """This is what the request gets."""
        self._response = response

    async def settle(self) -> None:
        """Called in every case, when the answer is made or will never be."""
        if self._place is not None and self._claims.here.get(self._place, ("",))[0] == self.run_id:
            del self._claims.here[self._place]
        self._left, result = True, self._sealed
        if self._claiming and result is not None:
            response = self._answer(result)
            if not await self._claims.settle(self.flow, result, response):
                self._claims.nursery.start_soon(self._claims.settle_behind, self.flow, result, response)

    # -- inside --

    def _answer(self, result: Result) -> Response:
        """What the request got; of one whose handler was cut before it had an answer, what it would have got."""
        return self._response or render(result, on_defect=self._claims.on_defect)

    async def _find(self, place: bytes) -> Receipt | None:
        try:
            return await self._claims.receipts.find(place)
        except JournalError as trouble:
            raise _unavailable(trouble) from trouble

    async def _settled(self, place: bytes, receipt: Receipt | None) -> Receipt | None:
        """The receipt; of a run that has ended without leaving its answer, because its process died in between, or a
        worker that answers nobody has carried it on, by what the journal has of it.
        """
        claims = self._claims
        if receipt is None or receipt.answer is not None or claims.holds(receipt.run_id):
            return receipt
        try:
            known = await claims.recall(self.flow, receipt.run_id)
            if known is None or not (known[0].sealed or known[1] is not None):
                return receipt
            if known[1] is None:
                await claims.receipts.release(receipt.run_id)
            else:
                await claims.receipts.store(receipt.run_id, known[1], self.flow.idempotency_expires)
        except JournalError as trouble:
            raise _unavailable(trouble) from trouble
        return await self._find(place)

    async def _is_same(self, receipt: Receipt) -> bool:
        """Whether the request is that of the receipt. Of one under way the body is not asked for: 409 in any case."""
        if receipt.head != self._head:
            return False
        if receipt.answer is None:
            return True
        exchange, digest = self._exchange, rules.new_body_digest()
        if exchange.body_length is not None and exchange.body_length != receipt.size:
            return False
        try:
            while piece := await exchange.next_piece(receipt.size):
                digest.update(piece)
        except ProtocolViolation as violation:
            if violation.status == 413:
                return False
            raise
        return digest.digest() == receipt.body

    async def _claim(self, place: bytes, body: bytes) -> None:
        """Take the place for this run. Raises Foregone or KeyRefused when there is nothing to run."""
        digest = rules.new_body_digest()
        digest.update(body)
        claim = Claim(place, self.run_id, self._head, digest.digest(), len(body))
        self._claiming = True
        self._claims.hold(self.run_id, lease_of(self.flow))
        try:
            receipt = await self._claims.receipts.claim(claim, lease_of(self.flow))
        except JournalError as trouble:
            raise _unavailable(trouble) from trouble
        if receipt.run_id == self.run_id:
            if receipt.before:
                await self._heed(claim, receipt.before, receipt.asked)
            self._claims.runtime.keyed(self.run_id, "took over" if receipt.before else "claimed", receipt.before)
            return
        self._claiming = False
        self._claims.drop(self.run_id)
        is_same = (receipt.head, receipt.body, receipt.size) == (claim.head, claim.body, claim.size)
        ending = self._judged(receipt, is_same)
        if self.keyed is not None:
            self._claims.runtime.keyed(self.run_id, *self.keyed)
        raise Foregone(ending)

    async def _heed(self, claim: Claim, before: str, asked: Asked | None) -> None:
        """The claim of an earlier run has lapsed. One that survives crashes may have ended before its process died, or
        may go on yet: then the place is its own again, and this request gets what that one came to, or is to come
        again. asked: by the earlier request. Raises Foregone or KeyRefused.
        """
        claims = self._claims
        try:
            known = await claims.recall(self.flow, before)
        except JournalError as trouble:
            await self._hand_back(before)
            raise _unavailable(trouble) from trouble
        if known is None or (known[0].sealed and known[1] is None):
            # It had done nothing, or was undone: its key is free. Should nobody know whether that is written, it is
            # free again when this request has its answer; handed back, it would be that run's until its lease is over.
            try:
                return await claims.receipts.begin(self.run_id)
            except JournalError as trouble:
                raise _unavailable(trouble) from trouble
        _, answer = known
        if await self._hand_back(before) and answer is not None:
            try:
                await claims.receipts.store(before, answer, self.flow.idempotency_expires)
            except JournalError as trouble:
                raise _unavailable(trouble) from trouble
        is_same = asked == Asked(claim.head, claim.body, claim.size)
        ending = self._judged(Receipt(before, claim.head, claim.body, claim.size, answer), is_same)
        claims.runtime.keyed(self.run_id, *(self.keyed or ("in use", before)))
        raise Foregone(ending)

    async def _hand_back(self, before: str) -> bool:
        """The place is the earlier run's again: whoever comes next must find it there. Whether it is already."""
        self._claiming = False
        claims, told = self._claims, (self.flow, self.run_id, before)
        given = await claims.give_back(*told)
        if not given:
            claims.nursery.start_soon(claims.give_back_behind, *told)
        return given

    def _judged(self, receipt: Receipt, is_same: bool) -> Ending:
        found, ending = rules.judge(receipt, is_same)
        self.keyed = (found, receipt.run_id)
        self.answer = receipt.answer if found == "repeats" else None
        return ending


def _unavailable(trouble: JournalError) -> KeyRefused:
    return rules.unavailable(trouble.retry_after if isinstance(trouble, JournalUnavailable) else 0.0)
