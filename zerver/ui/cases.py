"""Cases: the journal's runs that somebody must look at, and what may be done about them.

Law: what is shown is read from the journal, veiled as every run is; what is done is done by the runtime, or said by
somebody, with a reason that the journal keeps. A write is named with its key, so that the other side can be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import attrs
import trio

from zerver.core.calls import Call
from zerver.errors import InternalError, JournalError, JournalUnavailable
from zerver.http import Response
from zerver.runtime import Result
from zerver.runtime.journal import Glance, Journal, StoredRun
from zerver.trace import describe
from zerver.trace.facts import Facts, in_rollback
from zerver.trace.veil import Veil, escaped
from zerver.ui.asked import Asked, as_json, refuse
from zerver.ui.desk import SMALL, Desk
from zerver.ui.overview import Server

Document: TypeAlias = dict[str, Any]

_CASES: Final = 50
_MOST_CASES: Final = 200
_MOST_SAID: Final = 2000  # characters of a reason

_NAMELESS: Final = "somebody at the live page"


@attrs.frozen
class Resolving:
    """The body of a resolution. by: who says so."""

    reason: str
    by: str = ""


class Cases:
    """The endpoints for cases. server: gives what is looked at, or raises Refused."""

    def __init__(self, desk: Desk, server: Callable[[], Server]) -> None:
        self._desk = desk
        self._server = server

    async def search(self, asked: Asked) -> Response:
        limit = asked.number("limit", _CASES, _MOST_CASES) or 1
        journal = self._journal()
        found = await journal.list_runs("open", limit + 1, asked.query.get("after", ""))
        told = [await self._case(journal, glance) for glance in found[:limit]]
        return as_json(
            {
                "place": escaped(journal.statistics().place),
                "cases": [case for case in told if case is not None],
                "after": found[limit - 1].head.run_id if len(found) > limit else None,
            }
        )

    async def retry(self, asked: Asked) -> Response:
        await asked.body(dict)
        run_id = asked.name()
        self._journal()
        result = await self._retried(run_id)
        return as_json({"status": result.status, "unresolved": len(result.unresolved)})

    async def resolve(self, asked: Asked) -> Response:
        resolving = await asked.body(Resolving)
        reason, by = _printable(resolving.reason), _printable(resolving.by) or _NAMELESS
        if not reason:
            refuse(400, "say what was found, and what was done about it")
        if len(reason) > _MOST_SAID or len(by) > _MOST_SAID:
            refuse(400, f"say it in {_MOST_SAID} characters")
        run_id = asked.name()
        if not await self._journal().call_resolved(run_id, reason, by):
            refuse(409, "there is no such run, or it needs nobody")
        return as_json({"run": escaped(run_id), "reason": escaped(reason), "by": escaped(by)})

    async def _retried(self, run_id: str) -> Result:
        """Whoever is cancelled in the midst of a retry leaves the run to another worker; so nobody is, by a reader who
        leaves. The runtime ends it when it drains, as every run.
        """
        with trio.CancelScope(shield=True):
            return await self._server().runtime.retry(run_id)
        raise InternalError("nobody has cancelled this scope")

    def _journal(self) -> Journal:
        clerk = self._server().runtime.clerk
        if clerk is None:
            refuse(404, "this server has no journal")
        return clerk.journal

    async def _case(self, journal: Journal, glance: Glance) -> Document | None:
        head = glance.head
        stored = await journal.read(head.run_id)
        if stored is None:  # it was resolved and forgotten between the two questions
            return None
        writes: list[Document] = []
        why, tenant, label = "", "", ""
        try:
            writes, why, tenant, label = await self._desk.work(
                lambda: self._read(journal, stored, glance), len(stored.lines) > SMALL
            )
        except JournalUnavailable:
            raise
        except JournalError as error:
            why = str(error)
        return {
            "run": escaped(head.run_id),
            "flow": escaped(head.flow),
            "version": escaped(head.version),
            "tenant": tenant,
            "label": label,
            "state": "stuck" if glance.aside else "unresolved",
            "since_unix_ms": glance.since_unix_ns / 1e6,
            "why": escaped(why or _why(stored)) or None,
            "writes": writes,
        }

    def _read(self, journal: Journal, stored: StoredRun, glance: Glance) -> tuple[list[Document], str, str, str]:
        facts = Facts(journal.notation.reader().read(stored))
        veil = Veil(facts, self._desk.hidden)
        head = glance.head
        return (
            list(_writes(facts, veil)),
            veil.text(glance.aside),
            escaped(veil.text(head.tenant)),
            escaped(veil.text(head.label)),
        )


def standing(stored: StoredRun, text: Callable[[str], str]) -> Document:
    """How a run stands in the journal. text: masks and escapes."""
    waits = None
    if not stored.status and stored.wakes_unix_ns is not None:
        waits = [
            {"signal": text(one.signal), "expires_unix_ms": one.expires_unix_ns / 1e6, "came": one.value is not None}
            for one in stored.signals
        ]
    return {
        "status": escaped(stored.status) or None,
        "aside": text(stored.aside) or None,
        "reason": text(stored.reason) or None,
        "waits": waits,
    }


def _why(stored: StoredRun) -> str:
    if stored.head.durability == "sync":
        return ""
    return f"its process died, and it was of durability {stored.head.durability!r}: its last moments are not known"


def _writes(facts: Facts, veil: Veil) -> Iterator[Document]:
    """What the saga called unresolved; of a run that did not come to its end, what was asked for and has no outcome."""
    told: set[Call] = set()
    for write in facts.unresolved:
        call = write.call
        why = [describe.reason(write.error, veil, call.step)] if write.error is not None else []
        why += [veil.text(write.trouble)] if write.trouble and not veil.hides(call.step) else []
        told.add(call)
        yield _write(call, veil, "happened" if write.happened else "in doubt", "; ".join(why))
    if not facts.over:
        for call, known in facts.calls.items():
            wrote = call.effect.kind.access == "write" and known.asked is not None and not in_rollback(call)
            if wrote and known.outcome is None and call not in told:
                yield _write(call, veil, "in doubt", "it was under way")


def _write(call: Call, veil: Veil, state: str, why: str) -> Document:
    kind = call.effect.kind
    return {
        "step": escaped(call.step),
        "kind": escaped(kind.name),
        "text": escaped(describe.effect(call.effect, veil, call.step)),
        "state": state,
        "key": escaped(veil.text(call.key)) if kind.takes_key else None,
        "why": escaped(why) or None,
    }


def _printable(text: str) -> str:
    """As any database takes it."""
    return text.replace("\0", "").encode("utf-8", "replace").decode().strip()
