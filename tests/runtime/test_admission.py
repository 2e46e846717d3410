"""A ticket is given at once when there is a seat; else who waits is served in order, refused honestly, or may leave."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver import AdmissionPolicy
from zerver.core.admission import Refusal
from zerver.core.priorities import Priority
from zerver.runtime.admission import AdmissionActor

INF = float("inf")


def actor(running: int = 1, queued: int = 10) -> AdmissionActor:
    return AdmissionActor(AdmissionPolicy(running=running, queued=queued))


async def test_a_free_seat_is_given_without_a_checkpoint() -> None:
    admission = actor()
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await admission.acquire("default", INF) is None
    assert not scope.cancelled_caught
    assert admission.statistics().running == 1
    admission.release()
    assert admission.statistics().running == 0


async def in_line(
    admission: AdmissionActor, nursery: trio.Nursery, served: list[str], *names: tuple[str, Priority]
) -> None:
    """Each waits for a ticket, writes its name, and leaves."""

    async def one(name: str, priority: Priority) -> None:
        refusal = await admission.acquire(priority, INF)
        served.append(name if refusal is None else f"{name}: {refusal.reason}")
        if refusal is None:
            admission.release()

    for name, priority in names:
        nursery.start_soon(one, name, priority)
        await wait_all_tasks_blocked()


async def test_within_a_class_first_come_is_first_served(nursery: trio.Nursery) -> None:
    admission, served = actor(), list[str]()
    await admission.acquire("default", INF)
    await in_line(admission, nursery, served, ("a", "default"), ("b", "default"), ("c", "default"))
    assert (served, admission.statistics().queued) == ([], 3)
    admission.release()
    await wait_all_tasks_blocked()
    assert served == ["a", "b", "c"]
    assert admission.statistics().running == 0


async def test_the_interactive_are_served_before_the_batch(nursery: trio.Nursery) -> None:
    admission, served = actor(), list[str]()
    await admission.acquire("default", INF)
    await in_line(
        admission, nursery, served, ("b1", "batch"), ("b2", "batch"), ("i1", "interactive"), ("i2", "interactive")
    )
    admission.release()
    await wait_all_tasks_blocked()
    assert served.index("i2") < served.index("b2")
    assert sorted(served) == ["b1", "b2", "i1", "i2"]  # and nobody starves


async def test_who_leaves_gives_up_the_place_and_owes_nothing(nursery: trio.Nursery) -> None:
    admission, served = actor(), list[str]()
    await admission.acquire("default", INF)
    with trio.CancelScope() as scope:
        nursery.start_soon(_cancel_soon, scope)
        await admission.acquire("default", INF)
    assert scope.cancelled_caught
    assert admission.statistics().queued == 0
    await in_line(admission, nursery, served, ("a", "default"))
    admission.release()
    await wait_all_tasks_blocked()
    assert served == ["a"]
    assert admission.statistics().running == 0


async def _cancel_soon(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.parametrize(("priority", "status"), [("batch", 429), ("interactive", 503)])
async def test_a_full_queue_refuses(nursery: trio.Nursery, priority: Priority, status: int) -> None:
    admission = actor(queued=1)
    await admission.acquire("default", INF)
    await in_line(admission, nursery, [], ("a", "default"))
    refusal = await admission.acquire(priority, INF)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.status) == ("queue full", status)
    assert admission.statistics().refused == 1
    admission.release()


async def test_who_waited_past_its_deadline_is_refused_when_its_turn_comes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    admission, answers = actor(), list[Refusal | None]()
    await admission.acquire("default", INF)

    async def hurried() -> None:
        answers.append(await admission.acquire("default", trio.current_time() + 1))

    nursery.start_soon(hurried)
    await trio.sleep(5)
    admission.release()
    await wait_all_tasks_blocked()
    assert isinstance(answers[0], Refusal)
    assert answers[0].reason == "deadline passed while waiting"
    assert admission.statistics().running == 0


async def test_draining_refuses_new_runs_and_waits_for_the_old(nursery: trio.Nursery) -> None:
    admission = actor(running=2)
    await admission.acquire("default", INF)
    admission.drain()
    refusal = await admission.acquire("default", INF)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "draining"
    done = trio.Event()

    async def wait() -> None:
        await admission.wait_idle()
        done.set()

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    assert not done.is_set()
    admission.release()
    await done.wait()
    await admission.wait_idle()  # at once, when it is idle already
