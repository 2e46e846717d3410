"""Proves that a mailbox is bounded, ordered, and loses nothing to closing or cancellation."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from zerver.errors import MailboxFull
from zerver.runtime.mailbox import Mailbox


@pytest.mark.parametrize("capacity", [0, -1])
def test_it_holds_at_least_one_message(capacity: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Mailbox[int](capacity)


async def test_a_full_mailbox_refuses_send_nowait_and_makes_send_wait(nursery: trio.Nursery) -> None:
    mailbox = Mailbox[int](2)
    mailbox.send_nowait(1)
    mailbox.send_nowait(2)
    with pytest.raises(MailboxFull, match="2 messages wait"):
        mailbox.send_nowait(3)
    nursery.start_soon(mailbox.send, 3)
    await trio.testing.wait_all_tasks_blocked()
    assert mailbox.statistics().senders_waiting == 1
    assert [await mailbox.receive() for _ in range(3)] == [1, 2, 3]
    after = mailbox.statistics()
    assert (after.waiting, after.senders_waiting, after.received) == (0, 0, 3)


async def test_closing_refuses_senders_and_keeps_what_is_inside(nursery: trio.Nursery) -> None:
    mailbox = Mailbox[int](1)
    mailbox.send_nowait(1)

    async def wait_and_be_refused() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await mailbox.send(2)

    nursery.start_soon(wait_and_be_refused)
    await trio.testing.wait_all_tasks_blocked()
    mailbox.close()
    mailbox.close()
    with pytest.raises(trio.ClosedResourceError):
        mailbox.send_nowait(3)
    assert mailbox.statistics().closed
    assert await mailbox.receive() == 1
    with pytest.raises(trio.EndOfChannel):
        await mailbox.receive()


async def test_closing_wakes_a_receiver_that_waits(nursery: trio.Nursery) -> None:
    mailbox = Mailbox[int](1)

    async def wait_for_the_end() -> None:
        with pytest.raises(trio.EndOfChannel):
            await mailbox.receive()

    nursery.start_soon(wait_for_the_end)
    await trio.testing.wait_all_tasks_blocked()
    mailbox.close()


async def test_cancelling_loses_no_message_and_adds_none() -> None:
    mailbox = Mailbox[int](1)
    with trio.move_on_after(0):
        await mailbox.receive()
    mailbox.send_nowait(1)
    with trio.move_on_after(0):
        await mailbox.send(2)
    assert mailbox.seize() == [1]
    assert mailbox.seize() == []


@given(st.integers(1, 4), st.lists(st.sampled_from(["send", "receive", "close", "seize"]), max_size=40))
def test_it_behaves_like_a_bounded_list(capacity: int, verbs: list[str]) -> None:
    async def play() -> None:
        mailbox = Mailbox[int](capacity)
        model: list[int] = []
        closed = False
        for number, verb in enumerate(verbs):
            match verb:
                case "send" if closed:
                    with pytest.raises(trio.ClosedResourceError):
                        mailbox.send_nowait(number)
                case "send" if len(model) == capacity:
                    with pytest.raises(MailboxFull):
                        mailbox.send_nowait(number)
                case "send":
                    mailbox.send_nowait(number)
                    model.append(number)
                case "receive" if model:
                    assert await mailbox.receive() == model.pop(0)
                case "close":
                    mailbox.close()
                    closed = True
                case "seize":
                    assert mailbox.seize() == model
                    model, closed = [], True
            assert mailbox.statistics().waiting == len(model)

    trio.run(play)
