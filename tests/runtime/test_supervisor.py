"""Proves who is restarted, when a supervisor gives up, in which order all ends, and that no ask is ever lost."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from zerver.errors import ActorCrashed, ActorError, ActorStopped, AskTimeout, DefinitionError
from zerver.runtime.actor import Actor, ActorRef, ActorStatistics
from zerver.runtime.supervisor import (
    Intensity,
    Restart,
    Strategy,
    Supervisor,
    SupervisorStatistics,
    check_restart,
    choose_affected,
    open_supervisor,
)


class Boom(Exception):
    pass


class Member(Actor[str, str]):
    """Writes its starts and stops into a log shared by the family."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    async def started(self) -> None:
        self.log.append(f"+{self.name}")

    async def handle(self, message: str) -> str:
        match message:
            case "crash":
                raise Boom(self.name)
            case "forever":
                await trio.sleep_forever()
            case "second":
                await trio.sleep(1)
            case "finish":
                self.finish()
        self.log.append(f"{self.name}:{message}")
        return message

    async def stopped(self) -> None:
        self.log.append(f"-{self.name}")


async def start_family(supervisor: Supervisor, names: str, log: list[str], **options: Any) -> list[ActorRef[str, str]]:
    def factory_of(name: str) -> Callable[[], Member]:
        return lambda: Member(name, log)

    return [await supervisor.start(factory_of(name), name=name, **options) for name in names]


async def crash(ref: ActorRef[str, str]) -> None:
    with pytest.raises(ActorCrashed):
        await ref.ask("crash")
    await trio.testing.wait_all_tasks_blocked()


def states(supervisor: Supervisor) -> dict[str, str]:
    return {child.name: child.state for child in supervisor.statistics().children}


# ---- the decisions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "affected"), [("one_for_one", "b"), ("one_for_all", "abc"), ("rest_for_one", "bc")]
)
def test_who_is_affected(strategy: Strategy, affected: str) -> None:
    assert list(choose_affected(strategy, list("abc"), "b")) == list(affected)


@pytest.mark.parametrize(
    ("restart", "after_crash", "after_end"),
    [("permanent", True, True), ("transient", True, False), ("temporary", False, False)],
)
def test_who_is_started_again(restart: Restart, after_crash: bool, after_end: bool) -> None:
    assert check_restart(restart, crashed=True) is after_crash
    assert check_restart(restart, crashed=False) is after_end


@given(
    max_restarts=st.integers(0, 5),
    within=st.integers(1, 20),
    gaps=st.lists(st.integers(0, 10), max_size=30),
)
def test_intensity_counts_a_sliding_window(max_restarts: int, within: int, gaps: list[int]) -> None:
    intensity = Intensity(max_restarts, within)
    times: list[int] = []
    for gap in gaps:
        now = (times[-1] if times else 0) + gap
        times.append(now)
        recent = [time for time in times if time > now - within]
        assert intensity.spend(now) is (len(recent) <= max_restarts)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategy": "all_for_one"},
        {"max_restarts": -1},
        {"within": 0},
        {"within": math.inf},
        {"within": math.nan},
        {"shutdown_timeout": math.inf},
        {"shutdown_timeout": math.nan},
        {"shutdown_timeout": -1},
    ],
)
async def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        async with open_supervisor(**wrong):
            pass


# ---- strategies ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("one_for_one", ["-b", "+b"]),
        ("one_for_all", ["-b", "-c", "-a", "+a", "+b", "+c"]),
        ("rest_for_one", ["-b", "-c", "+b", "+c"]),
    ],
)
async def test_a_strategy_restarts_in_start_order_and_references_stay_valid(
    strategy: Strategy, expected: list[str]
) -> None:
    log: list[str] = []
    async with open_supervisor(strategy=strategy) as supervisor:
        refs = await start_family(supervisor, "abc", log)
        log.clear()
        await crash(refs[1])
        assert log == expected
        assert supervisor.statistics().restarts == 1
        for ref in refs:
            assert await ref.ask("hello") == "hello"
        log.clear()
    assert log == ["-c", "-b", "-a"]


async def test_siblings_finish_what_they_had_begun_and_keep_what_waits(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    log: list[str] = []
    async with open_supervisor(strategy="one_for_all") as supervisor:
        a, b = await start_family(supervisor, "ab", log)
        await b.tell("second")
        await b.tell("waits")
        await trio.testing.wait_all_tasks_blocked()
        log.clear()
        nursery.start_soon(crash, a)
        await trio.sleep(2)
        assert log == ["-a", "b:second", "-b", "+a", "+b", "b:waits"]


async def test_siblings_that_are_late_are_cancelled_and_their_askers_answered(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    log: list[str] = []
    async with open_supervisor(strategy="one_for_all", shutdown_timeout=2) as supervisor:
        a, b = await start_family(supervisor, "ab", log)

        async def be_refused() -> None:
            with pytest.raises(ActorStopped):
                await b.ask("forever", timeout=100)
            assert trio.current_time() - began == pytest.approx(2)

        began = trio.current_time()
        nursery.start_soon(be_refused)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ActorCrashed):
            await a.ask("crash")
        assert await b.ask("again", timeout=100) == "again"


async def test_a_temporary_sibling_is_ended_by_a_group_restart() -> None:
    log: list[str] = []
    async with open_supervisor(strategy="one_for_all") as supervisor:
        (a,) = await start_family(supervisor, "a", log)
        (b,) = await start_family(supervisor, "b", log, restart="temporary")
        await crash(a)
        assert states(supervisor) == {"a": "running"}
        with pytest.raises(ActorStopped):
            await b.ask("gone")


async def test_a_group_restart_whose_start_fails_is_tried_again_from_there() -> None:
    log: list[str] = []
    failures = [Boom("not yet")]

    class Shaky(Member):
        async def started(self) -> None:
            await super().started()
            if len(log) > 3 and failures:
                raise failures.pop()

    async with open_supervisor(strategy="rest_for_one") as supervisor:
        (a,) = await start_family(supervisor, "a", log)
        b = await supervisor.start(lambda: Shaky("b", log), name="b")
        (c,) = await start_family(supervisor, "c", log)
        await crash(a)
        assert log == ["+a", "+b", "+c", "-a", "-c", "-b", "+a", "+b", "+b", "+c"]
        assert [await ref.ask("x") for ref in (a, b, c)] == ["x"] * 3
        assert supervisor.statistics().restarts == 2


async def test_no_two_lives_of_one_child_ever(autojump_clock: trio.testing.MockClock) -> None:
    log: list[str] = []

    class Slow(Member):
        cleanup_timeout = 60.0

        async def stopped(self) -> None:
            await trio.sleep(10)  # far over the supervisor's own bound
            await super().stopped()

    async with open_supervisor(strategy="one_for_all", shutdown_timeout=1) as supervisor:
        (a,) = await start_family(supervisor, "a", log)
        b = await supervisor.start(lambda: Slow("b", log), name="b")
        with pytest.raises(ActorCrashed):
            await a.ask("crash")
        await trio.sleep(0.5)
        assert states(supervisor) == {"a": "down", "b": "stopping"}
        assert await b.ask("x", timeout=30) == "x"
        assert log == ["+a", "+b", "-a", "-b", "+a", "+b", "b:x"]


# ---- giving up -------------------------------------------------------------------------------


async def test_too_many_restarts_raise_the_defect_bare_and_end_everything() -> None:
    log: list[str] = []
    with pytest.raises(Boom) as caught:
        async with open_supervisor("shop", max_restarts=2, within=5) as supervisor:
            a, b = await start_family(supervisor, "ab", log)
            for _ in range(3):
                with pytest.raises(ActorCrashed):
                    await a.ask("crash")
            await trio.sleep_forever()
    assert caught.value.__notes__ == ["supervisor 'shop' gave up: 'a' would have been more than 2 restarts within 5 s"]
    assert log[-2:] == ["-a", "-b"]
    assert supervisor.statistics().state == "ended"
    for ref in (a, b):
        assert ref.statistics().state == "ended"
        with pytest.raises(ActorStopped):
            await ref.ask("x")
    with pytest.raises(ActorStopped, match="is ended: it starts nothing"):
        await supervisor.start(lambda: Member("late", log))


async def test_restarts_far_apart_are_not_too_many(autojump_clock: trio.testing.MockClock) -> None:
    async with open_supervisor(max_restarts=1, within=5) as supervisor:
        (a,) = await start_family(supervisor, "a", [])
        for _ in range(5):
            await crash(a)
            await trio.sleep(5)
        assert a.statistics().restarts == 5


async def test_what_waits_is_answered_when_the_supervisor_gives_up(nursery: trio.Nursery) -> None:
    async def be_refused(ref: ActorRef[str, str]) -> None:
        with pytest.raises(ActorStopped):
            await ref.ask("behind", timeout=100)

    with pytest.raises(Boom):
        async with open_supervisor(max_restarts=0) as supervisor:
            (a,) = await start_family(supervisor, "a", [], capacity=2)
            a.tell_nowait("crash")
            for _ in range(4):
                nursery.start_soon(be_refused, a)
            await trio.sleep_forever()


async def test_a_permanent_child_that_keeps_ending_is_a_failure_too() -> None:
    with pytest.raises(ActorError, match="gave up"):
        async with open_supervisor(max_restarts=0) as supervisor:
            (a,) = await start_family(supervisor, "a", [])
            await a.ask("finish")
            await trio.sleep_forever()


async def test_a_defect_that_is_a_group_reaches_the_owner_whole() -> None:
    class Nurse(Actor[str, str]):
        async def handle(self, message: str) -> str:
            raise ExceptionGroup("the actor's own", [Boom(), ValueError()])

    with pytest.RaisesGroup(Boom, ValueError, match="the actor's own"):
        async with open_supervisor(max_restarts=0) as supervisor:
            ref = await supervisor.start(Nurse)
            await ref.tell("x")
            await trio.sleep_forever()


async def test_the_program_s_exceptions_are_no_crash() -> None:
    class Leaving(Actor[str, str]):
        async def handle(self, message: str) -> str:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with open_supervisor(max_restarts=100) as supervisor:
            ref = await supervisor.start(Leaving)
            await ref.tell("x")
            await trio.sleep_forever()
    assert ref.statistics().state == "ended"


async def test_a_defect_wins_over_a_cancellation_that_comes_while_all_is_ended() -> None:
    with trio.CancelScope() as scope, pytest.raises(Boom):
        async with open_supervisor(max_restarts=0) as supervisor:
            a, b = await start_family(supervisor, "ab", [])
            await b.tell("forever")
            await crash(a)
            assert supervisor.state == "stopping"  # b is asked to end, and does not
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert not scope.cancelled_caught


async def test_a_body_that_fails_on_its_way_out_carries_the_defect_as_a_note() -> None:
    with pytest.raises(KeyError) as caught:
        async with open_supervisor(max_restarts=0) as supervisor:
            (a,) = await start_family(supervisor, "a", [])
            a.tell_nowait("crash")
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("cleanup")
    assert "Boom: a" in caught.value.__notes__[0]


# ---- the owner -------------------------------------------------------------------------------


async def test_the_body_s_error_leaves_as_it_is_and_children_end_in_reverse_order() -> None:
    log: list[str] = []
    with pytest.RaisesGroup(Boom):
        async with open_supervisor() as supervisor:
            await start_family(supervisor, "abc", log)
            log.clear()
            async with trio.open_nursery():
                raise Boom
    assert log == ["-c", "-b", "-a"]


async def test_a_cancelled_owner_ends_the_children_in_reverse_order() -> None:
    log: list[str] = []
    with trio.CancelScope() as scope:
        async with open_supervisor() as supervisor:
            inner = await supervisor.start_supervisor(name="inner")
            await start_family(supervisor, "a", log)
            await start_family(inner, "bc", log)
            log.clear()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert log == ["-a", "-c", "-b"]


async def test_an_orderly_end_handles_what_waits() -> None:
    log: list[str] = []
    async with open_supervisor() as supervisor:
        (a,) = await start_family(supervisor, "a", log)
        for number in range(5):
            a.tell_nowait(str(number))
    assert log == ["+a", "a:0", "a:1", "a:2", "a:3", "a:4", "-a"]


async def test_an_orderly_end_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    log: list[str] = []
    async with open_supervisor(shutdown_timeout=3) as supervisor:
        a, _b = await start_family(supervisor, "ab", log)
        await a.tell("forever")
        await a.tell("never")
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(3)
    assert log == ["+a", "+b", "-b", "-a"]


async def test_names_are_unique_and_made_up_if_not_given() -> None:
    async with open_supervisor() as supervisor:
        await start_family(supervisor, "a", [])
        with pytest.raises(DefinitionError, match="has a child 'a' already"):
            await start_family(supervisor, "a", [])
        with pytest.raises(DefinitionError, match="no restart is called"):
            await supervisor.start(lambda: Member("x", []), restart="always")  # type: ignore[arg-type]  # on purpose
        with pytest.raises(ValueError, match="at least one"):
            await supervisor.start(lambda: Member("x", []), capacity=0)

        class Echo(Actor[str, str]):
            async def handle(self, message: str) -> str:
                return message

        ref = await supervisor.start(Echo)
        assert ref.name.startswith("Echo-")


async def test_an_actor_may_start_its_sibling() -> None:
    log: list[str] = []

    class Parent(Actor[str, str]):
        async def started(self) -> None:
            (self.child,) = await start_family(supervisor, "c", log)

        async def handle(self, message: str) -> str:
            return await self.child.ask(message)

    async with open_supervisor() as supervisor:
        ref = await supervisor.start(Parent, name="p")
        assert await ref.ask("through") == "through"


# ---- trees -----------------------------------------------------------------------------------


async def test_a_child_supervisor_that_gives_up_is_one_crash_and_comes_back_with_its_children() -> None:
    log: list[str] = []
    async with open_supervisor() as root:
        inner = await root.start_supervisor(name="inner", max_restarts=0)
        a, b = await start_family(inner, "ab", log)
        log.clear()
        await crash(a)
        assert log == ["-a", "-b", "+a", "+b"]
        assert [await ref.ask("x") for ref in (a, b)] == ["x", "x"]
        assert root.statistics().restarts == 1
        assert inner.statistics().restarts == 0


async def test_a_fault_that_stays_climbs_the_tree_to_the_owner() -> None:
    with pytest.raises(Boom) as caught:
        async with open_supervisor(max_restarts=1) as root:
            inner = await root.start_supervisor(name="inner", max_restarts=1)
            (a,) = await start_family(inner, "a", [])
            for _ in range(4):
                with pytest.raises(ActorCrashed):
                    await a.ask("crash")
            await trio.sleep_forever()
    assert [note.split(":")[0] for note in caught.value.__notes__] == [
        "supervisor 'inner' gave up",
        "supervisor 'root' gave up",
    ]


async def test_statistics_are_the_tree() -> None:
    async with open_supervisor("shop", strategy="one_for_all") as root:
        await start_family(root, "a", [])
        inner = await root.start_supervisor(name="inner")
        await start_family(inner, "b", [], capacity=7)
        tree = root.statistics()
        assert (tree.name, tree.state, tree.strategy, tree.restarts) == ("shop", "running", "one_for_all", 0)
        a, below = tree.children
        assert isinstance(a, ActorStatistics)
        assert isinstance(below, SupervisorStatistics)
        (b,) = below.children
        assert isinstance(b, ActorStatistics)
        assert (b.name, b.state, b.restarts, b.mailbox.capacity) == ("b", "running", 0, 7)
        assert repr(root) == "<Supervisor 'shop' running>"


async def test_a_supervisor_is_stopped_for_good() -> None:
    log: list[str] = []
    async with open_supervisor() as root:
        inner = await root.start_supervisor(name="inner")
        a, b = await start_family(inner, "ab", log)
        a.tell_nowait("last")
        await inner.stop()
        assert "a:last" in log
        assert log.index("-b") < log.index("-a")
        assert root.statistics().children == ()
        assert b.statistics().state == "ended"
        with pytest.raises(ActorStopped):
            await inner.start(lambda: Member("x", log))
        await root.stop()  # the body goes on without it
        await trio.lowlevel.checkpoint()
        assert root.state == "ended"


async def test_a_supervisor_stopped_between_two_lives_has_no_second_one(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    log: list[str] = []

    class Slow(Member):
        async def started(self) -> None:
            await super().started()
            await trio.sleep(1)

    async with open_supervisor(strategy="one_for_all") as root:
        a = await root.start(lambda: Slow("a", log), name="a")
        inner = await root.start_supervisor(name="inner")
        (b,) = await start_family(inner, "b", log)
        nursery.start_soon(crash, a)
        await trio.sleep(0.5)
        assert states(root) == {"a": "starting", "inner": "down"}
        await inner.stop()
        assert log == ["+a", "+b", "-a", "-b", "+a"]
        assert b.statistics().state == "ended"


# ---- any sequence ----------------------------------------------------------------------------

verbs = st.sampled_from(["hello", "hello", "second", "crash", "finish", "ask late", "cancel", "wait", "stop"])
steps = st.lists(st.tuples(verbs, st.integers(0, 2)), max_size=30)


@attrs.define
class Ledger:
    """Every ask is one entry; every entry gets one fate."""

    fates: list[list[str]] = attrs.field(factory=list)

    async def ask(
        self, ref: ActorRef[str, str], message: str, *, timeout: float, cancel_after: float = math.inf
    ) -> None:
        fate: list[str] = []
        self.fates.append(fate)
        with trio.move_on_after(cancel_after) as scope:
            try:
                assert await ref.ask(message, timeout=timeout) == message
                fate.append("answered")
            except (ActorCrashed, ActorStopped, AskTimeout) as error:
                fate.append(type(error).__name__)
        if scope.cancelled_caught:
            fate.append("cancelled")


@settings(max_examples=150, deadline=None)
@given(
    script=steps,
    strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]),
    restarts=st.tuples(*[st.sampled_from(["permanent", "transient", "temporary"])] * 3),
    max_restarts=st.integers(0, 4),
    capacity=st.integers(1, 3),
    ending=st.sampled_from(["body ends", "body raises", "cancelled"]),
    seed=st.randoms(use_true_random=False),
)
def test_each_ask_is_answered_exactly_once_whatever_happens(
    script: list[tuple[str, int]],
    strategy: Strategy,
    restarts: tuple[Restart, ...],
    max_restarts: int,
    capacity: int,
    ending: str,
    seed: Any,
) -> None:
    ledger = Ledger()
    log: list[str] = []

    async def play(outside: trio.Nursery, supervisor: Supervisor) -> None:
        inner = await supervisor.start_supervisor(name="inner", strategy=strategy, max_restarts=max_restarts)
        (first,) = await start_family(supervisor, "a", log, restart=restarts[0], capacity=capacity)
        refs = [first]
        for name, restart in zip("bc", restarts[1:], strict=True):
            refs += await start_family(inner, name, log, restart=restart, capacity=capacity)
        for verb, whom in script:
            ref = refs[whom]
            match verb:
                case "ask late":
                    outside.start_soon(lambda ref=ref: ledger.ask(ref, "second", timeout=0.5))
                case "cancel":
                    outside.start_soon(lambda ref=ref: ledger.ask(ref, "second", timeout=1e6, cancel_after=0.5))
                case "wait":
                    await trio.sleep(seed.choice([0, 0.25, 1]))
                case "stop":
                    outside.start_soon(ref.stop)
                case message:
                    outside.start_soon(lambda ref=ref, message=message: ledger.ask(ref, message, timeout=1e6))
            if seed.random() < 0.5:
                with contextlib.suppress(ActorStopped, ActorError):
                    ref.tell_nowait(seed.choice(["hello", "crash"]))
        if ending == "body raises":
            raise KeyError("the body's own")

    async def main() -> None:
        with trio.fail_after(1e5):  # all deadlines of asks are later: only a lost answer gets here
            async with trio.open_nursery() as outside:
                with trio.CancelScope() as scope, contextlib.suppress(Boom, KeyError, ActorError):
                    async with open_supervisor(strategy=strategy, max_restarts=max_restarts) as supervisor:
                        await play(outside, supervisor)
                        if ending == "cancelled":
                            scope.cancel()
                            await trio.lowlevel.checkpoint()
        assert supervisor.statistics().children == ()
        assert supervisor.state == "ended"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert all(len(fate) == 1 for fate in ledger.fates), ledger.fates
    starts, ends = (Counter(entry[1] for entry in log if entry[0] == sign) for sign in "+-")
    assert starts == ends  # every life that began was cleaned up
