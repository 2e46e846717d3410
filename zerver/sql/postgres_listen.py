"""LISTEN: notifications as an async iterator that ends with an error, never with silence.

Law: who iterates is told when the server has gone: at once if it hangs up, and by a question after some silence if it
has vanished. (A listener that is never told is the worst of all clients: triopg's waits for ever.)

Nothing is read ahead: a listener that is slow leaves its notifications with the server, which keeps them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import trio

from zerver.errors import ConnectionLost, DatabaseDown
from zerver.sql.driver import Statement
from zerver.sql.postgres_statements import Query, quoted

if TYPE_CHECKING:
    from zerver.sql.postgres_link import Link


@attrs.frozen
class Notification:
    """What `notify` sent. pid: the backend that sent it."""

    channel: str
    payload: str
    pid: int


class Listener:
    """Notifications, in the order of their commits; made by `PostgresDriver.listen`. One task may iterate at a time."""

    def __init__(self, link: Link, keepalive: float) -> None:
        self._link = link
        self._keepalive = keepalive
        self._come: deque[Notification] = deque()

    async def start(self, channels: Sequence[str]) -> None:
        """Begin to listen. What is notified after this has returned will come."""
        if not channels:
            raise ValueError("listen() needs at least one channel")
        sql = [f"listen {quoted(channel)}" for channel in channels]
        for text, result in zip(sql, await self._link.talk([Query(text.encode()) for text in sql]), strict=True):
            self._link.answer(Statement(text), result)

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Notification:
        """Wait for the next one. Raises ConnectionLost, this time and ever after, when the server has gone."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while not self._come:
                found = None
                with trio.move_on_after(self._keepalive):
                    found = await self._link.notifications()
                if found is None:
                    if not await self._link.check():
                        raise DatabaseDown("the server does not answer any more")
                    found = self._link.notifications_nowait()
                self._come.extend(Notification(*one) for one in found)
            await trio.lowlevel.cancel_shielded_checkpoint()
        except DatabaseDown as error:
            raise ConnectionLost(f"no more notifications: {error}") from error
        return self._come.popleft()
