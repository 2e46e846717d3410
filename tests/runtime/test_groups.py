"""Proves that one bare exception leaves an inner nursery: the right one, whole, with no cancellation lost."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import AsyncGenerator, Callable

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from zerver.runtime.groups import bare, open_body_nursery, unwrapped


class Boom(Exception):
    pass


class MeaningfulGroup(ExceptionGroup[Exception]):
    """What cattrs does: a group that is an error in its own right."""

    def derive(self, excs):  # type: ignore[no-untyped-def, override]  # only the shape matters here
        return MeaningfulGroup(self.message, excs)


async def raising(exc: BaseException) -> None:
    raise exc


async def test_one_leaf_arrives_bare_with_its_own_traceback_and_cause() -> None:
    async def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise Boom("outer") from inner

    with pytest.raises(Boom, match="outer") as caught, unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
    assert isinstance(caught.value.__cause__, KeyError)
    assert isinstance(caught.value.__context__, KeyError)
    assert "fail" in {frame.name for frame in caught.traceback}
    assert not hasattr(caught.value, "__notes__")


async def test_nested_groups_are_taken_apart() -> None:
    with pytest.raises(Boom), unwrapped():
        async with trio.open_nursery() as outer:
            async with trio.open_nursery() as inner:
                inner.start_soon(raising, Boom())
            outer.cancel_scope.cancel()


async def test_several_errors_give_the_first_and_note_the_others() -> None:
    async def second() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("the echo")

    with pytest.raises(Boom) as caught, unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            raise Boom("the cause")
    (note,) = caught.value.__notes__
    assert "ValueError: the echo" in note
    assert "in second" in note  # the other's traceback is kept


def test_the_program_s_exceptions_come_before_errors() -> None:
    group = BaseExceptionGroup("", [Boom(), BaseExceptionGroup("", [KeyboardInterrupt()]), SystemExit(1)])
    assert isinstance(bare(group), KeyboardInterrupt)


def test_a_subclass_of_exception_group_is_one_error() -> None:
    meaning = MeaningfulGroup("two fields are wrong", [ValueError("a"), ValueError("b")])
    assert bare(ExceptionGroup("", [meaning])) is meaning
    with pytest.raises(MeaningfulGroup) as caught, unwrapped():
        raise meaning
    assert caught.value is meaning


async def test_cancelled_alone_reaches_its_scope() -> None:
    with trio.CancelScope() as scope, unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
    assert scope.cancelled_caught


async def test_an_error_beside_cancelled_wins_and_the_cancellation_is_still_there() -> None:
    async def fail_while_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise Boom

    with trio.CancelScope() as scope:
        with pytest.raises(Boom) as caught, unwrapped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_while_cancelled)
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()
        assert not hasattr(caught.value, "__notes__")  # a Cancelled is no news
        with pytest.raises(trio.Cancelled):
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught


async def test_no_reference_cycle_is_left() -> None:
    class Witness:
        pass

    async def fail() -> None:
        witness = Witness()
        seen.append(weakref.ref(witness))
        raise Boom

    async def caller() -> None:
        with unwrapped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)

    seen: list[weakref.ref[Witness]] = []
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(Boom):
            await caller()
        assert seen[0]() is None  # freed by reference counts alone, so nothing pointed in a circle
    finally:
        gc.enable()


errors: st.SearchStrategy[BaseException] = st.sampled_from([Boom, ValueError, KeyboardInterrupt]).map(
    lambda kind: kind()
)


def nested(children: st.SearchStrategy[BaseException]) -> st.SearchStrategy[BaseException]:
    return st.lists(children, min_size=1, max_size=4).map(lambda members: BaseExceptionGroup("", members))


@given(st.recursive(errors, nested, max_leaves=12))
def test_whatever_the_nesting_the_choice_is_a_leaf_and_follows_the_rule(exc: BaseException) -> None:
    def leaves(one: BaseException) -> list[BaseException]:
        return [x for e in one.exceptions for x in leaves(e)] if isinstance(one, BaseExceptionGroup) else [one]

    everything = leaves(exc)
    of_the_program = [leaf for leaf in everything if not isinstance(leaf, Exception)]
    assert bare(exc) is (of_the_program or everything)[0]


# ---- open_body_nursery ----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_thing(*tasks: Callable[[], object]) -> AsyncGenerator[None, None]:
    async with open_body_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)  # type: ignore[arg-type]  # each is an async function
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


async def test_the_body_s_own_group_leaves_whole() -> None:
    with pytest.RaisesGroup(Boom, ValueError):
        async with open_thing(trio.sleep_forever):
            raise ExceptionGroup("the body's own", [Boom(), ValueError()])


async def test_a_task_s_error_cancels_the_body_and_leaves_bare() -> None:
    async def fail() -> None:
        raise Boom

    with pytest.raises(Boom):
        async with open_thing(fail):
            await trio.sleep_forever()


async def test_a_task_that_fails_on_the_way_out_is_a_note_of_the_body_s_error() -> None:
    async def fail_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("on the way out")

    async with open_body_nursery() as nursery:  # the same path with no error is silent
        nursery.cancel_scope.cancel()
    with pytest.raises(Boom) as caught:
        async with open_body_nursery() as nursery:
            nursery.start_soon(fail_late)
            await trio.testing.wait_all_tasks_blocked()
            raise Boom
    assert "ValueError: on the way out" in caught.value.__notes__[0]
    assert caught.value.__context__ is None


async def test_an_outer_cancellation_stays_one() -> None:
    with trio.move_on_after(0) as scope:
        async with open_thing(trio.sleep_forever):
            await trio.sleep_forever()
    assert scope.cancelled_caught
