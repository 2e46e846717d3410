"""Law: a mailbox is bounded, keeps its order and loses no message: each is received once, or still inside.

Built on Trio's memory channel, which has the hard part right: a cancelled `send` has put nothing in, a
cancelled `receive` has taken nothing out, and waiting senders are served in their order. Added here: a bound
that is never zero nor infinite, counters, and `seize`, which empties a closed mailbox so that its owner can
answer for what nobody will handle. Refused: an unbounded mailbox (Erlang's), which turns a slow actor into a
memory leak, and priorities within a mailbox: order is what makes an actor easy to think about.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import attrs
import trio

from zerver.errors import MailboxFull

T = TypeVar("T")


@attrs.frozen
class MailboxStatistics:
    """A mailbox at one moment.

    capacity: how many messages may wait. waiting: how many do. senders_waiting: tasks that wait in `send` for
    room. received: messages taken out since the beginning, by all receivers. closed: no more are let in.
    """

    capacity: int
    waiting: int
    senders_waiting: int
    received: int
    closed: bool


class Mailbox(Generic[T]):
    """A bounded queue from many senders to one receiver at a time.

    capacity: at least 1. Raises ValueError otherwise.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a mailbox holds at least one message, not {capacity}")
        self._capacity = capacity
        self._into, self._out_of = trio.open_memory_channel[T](capacity)
        self._received = 0
        self._closed = False

    async def send(self, message: T) -> None:
        """Put a message in, waiting for room: this is the back-pressure. A checkpoint.

        Raises trio.ClosedResourceError if the mailbox is closed, now or while this waits; the message is
        then not in it.
        """
        await self._into.send(message)

    def send_nowait(self, message: T) -> None:
        """Put a message in now. Raises MailboxFull, or trio.ClosedResourceError."""
        try:
            self._into.send_nowait(message)
        except trio.WouldBlock:
            raise MailboxFull(f"{self._capacity} messages wait already") from None

    async def receive(self) -> T:
        """Take the oldest message out, waiting for one. A checkpoint.

        Raises trio.EndOfChannel when the mailbox is closed and empty.
        """
        message = await self._out_of.receive()
        self._received += 1
        return message

    def close(self) -> None:
        """Let no more in. Senders that wait are refused; what is inside can still be received. Idempotent."""
        self._closed = True
        self._into.close()

    def seize(self) -> list[T]:
        """Close, and take everything that is inside, oldest first. Does not wait and cannot be cancelled."""
        self.close()
        messages: list[T] = []
        while True:
            try:
                messages.append(self._out_of.receive_nowait())
            except trio.EndOfChannel:
                return messages

    def statistics(self) -> MailboxStatistics:
        channel = self._out_of.statistics()
        return MailboxStatistics(
            capacity=self._capacity,
            waiting=channel.current_buffer_used,
            senders_waiting=channel.tasks_waiting_send,
            received=self._received,
            closed=self._closed,
        )
