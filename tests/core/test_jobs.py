"""What is asked for becomes orders in one way, and what an attempt came to becomes one fate."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver import App, Done, Fail, Flow, step
from zerver.core.decisions import FAIL_KINDS
from zerver.core.jobs import (
    Ask,
    Asker,
    Backoff,
    Declared,
    Discard,
    JobRule,
    Snooze,
    Unique,
    fate,
    job_id_for,
    job_of_run,
    orders_for,
    run_id_for,
)
from zerver.core.orders import check_orders
from zerver.core.tickets import Refusal
from zerver.errors import DefinitionError, EffectError, InvalidData
from zerver.http import Header


@step
def nothing() -> Done:
    return Done()


FLOW = Flow("mail", [nothing])
OTHER = Flow("mail", [nothing])

DECLARED = Declared()
DECLARED.add_job(JobRule(FLOW, "mail", 7, unique=Unique()))
DECLARED.add_job(JobRule(Flow("album", [nothing])))

ASKER = Asker("req_1:step:1", "acme", "00-trace", 1_000)

# ---- fates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "value", "cause", "said"),
    [
        ("done", "it", None, "done"),
        ("done", None, None, "done"),
        ("done", Snooze(3), None, "snoozed"),
        ("done", Discard("gone"), None, "cancelled"),
        ("refused", None, Refusal("queue full"), "back"),
        ("failed", None, EffectError("bank.charge", "it is down"), "again"),
        ("failed", None, InvalidData([("body", "is wrong")]), "dead"),
        ("defect", None, ZeroDivisionError(), "again"),
        ("deadline", None, None, "again"),
        ("cancelled", None, None, "again"),
    ],
)
def test_the_table(status: Any, value: object, cause: object, said: str) -> None:
    assert fate(status, value, cause) == said
    assert fate(status, value, cause, unresolved=True) == "dead"
    assert fate(status, value, cause, drained=True) == ("back" if status == "cancelled" else said)


@pytest.mark.parametrize("kind", sorted(FAIL_KINDS))
def test_each_kind_of_fail_is_a_no_or_a_not_now(kind: Any) -> None:
    again = kind in ("unavailable", "rate_limited", "failed", "conflict")
    assert fate("failed", None, Fail(kind, "it")) == ("again" if again else "dead")


# ---- times ----------------------------------------------------------------------------------


@given(failures=st.integers(1, 10_000), draw=st.floats(0, 1, exclude_max=True), base=st.floats(0.001, 1e3))
def test_a_backoff_is_within_its_bounds_and_doubles_up_to_them(failures: int, draw: float, base: float) -> None:
    backoff = Backoff(base, 86_400.0)
    most = min(86_400.0, base * 2.0 ** min(failures - 1, 60))
    assert 0 <= backoff.seconds(failures, draw) <= most
    assert backoff.seconds(failures, draw) == draw * most


def test_twenty_attempts_reach_over_a_weekend() -> None:
    mean = sum(Backoff().seconds(n, 0.5) for n in range(1, 20))
    assert 3.5 * 86_400 < mean < 5 * 86_400


@pytest.mark.parametrize(("base", "cap"), [(0, 1), (-1, 1), (2, 1), (1, float("inf")), (float("nan"), 1)])
def test_a_backoff_that_is_none_is_refused(base: float, cap: float) -> None:
    with pytest.raises(DefinitionError, match="Backoff"):
        Backoff(base, cap)


# ---- orders ---------------------------------------------------------------------------------

ASKS = st.builds(
    Ask,
    flow=st.sampled_from(["mail", "album"]),
    body=st.none() | st.text(),
    delay=st.floats(0, 1e6),
    priority=st.sampled_from([None, "interactive", "batch"]),
    tenant=st.none() | st.text(min_size=1),
    attempts=st.none() | st.integers(1, 100),
)


@given(
    shape=st.sampled_from(["each", "chain", "fan_out"]),
    asks=st.lists(ASKS, min_size=2, max_size=8),
    key=st.text(min_size=1),
)
def test_orders_are_such_as_stores_take_and_the_same_when_asked_again(shape: Any, asks: list[Ask], key: str) -> None:
    asker = Asker(key, "acme", "", 1_000)
    orders = orders_for(shape, asks, DECLARED, asker)
    check_orders(orders)
    assert orders == orders_for(shape, asks, DECLARED, asker)
    assert [order.flow for order in orders] == [ask.flow for ask in asks]
    waits = [order.awaits for order in orders]
    released = [order.releases for order in orders]
    ids = [order.job_id for order in orders]
    if shape == "each":
        assert set(waits) == {0}
        assert set(released) == {""}
    elif shape == "chain":
        assert waits == [0] + [1] * (len(asks) - 1)
        assert released == [*ids[1:], ""]
    else:
        assert waits == [0] * (len(asks) - 1) + [len(asks) - 1]
        assert released == [ids[-1]] * (len(asks) - 1) + [""]


@given(st.lists(st.tuples(st.text(), st.integers(0, 5)), unique=True))
def test_ids_of_different_effects_do_not_meet(asked: list[tuple[str, int]]) -> None:
    assert len({job_id_for(key, number) for key, number in asked}) == len(asked)


@given(st.text(alphabet="0123456789abcdef", min_size=24, max_size=24), st.integers(1, 99))
def test_a_run_tells_whose_it_is(job_id: str, number: int) -> None:
    assert job_of_run(run_id_for(job_id, number)) == job_id
    assert job_of_run(f"req_{job_id}") == ""


@given(
    one=st.tuples(st.text(max_size=3), st.text(max_size=3)),
    other=st.tuples(st.text(max_size=3), st.text(max_size=3)),
)
def test_jobs_are_alike_if_what_they_are_unique_by_is(one: tuple[str, str], other: tuple[str, str]) -> None:
    def text(tenant: str, body: str) -> str:
        asker = Asker("k", tenant)
        (order,) = orders_for("each", [Ask("mail", body)], DECLARED, asker)
        return order.unique

    assert (text(*one) == text(*other)) == (one == other)


def test_what_is_said_wins_over_what_is_declared() -> None:
    (order,) = orders_for("each", [Ask("mail", "{}")], DECLARED, ASKER)
    assert (order.queue, order.attempts, order.tenant, order.priority, order.parent, order.at_unix_ns) == (
        *("mail", 7, "acme", "batch", "00-trace", 0),
    )
    asked = Ask("mail", "{}", 2.0, priority="default", tenant="b", unique="x", attempts=1, queue="default")
    (order,) = orders_for("each", [asked], DECLARED, ASKER)
    assert (order.queue, order.attempts, order.tenant, order.priority, order.at_unix_ns) == (
        *("default", 1, "b", "default", 2_000_001_000),
    )


# ---- declarations ---------------------------------------------------------------------------


def app_with_other() -> App:
    app = App()
    app.job(FLOW)
    return app


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda app: app.job(FLOW), "job 'mail' is declared twice"),
        (lambda app: app.job(OTHER), "another flow of this name is a job already"),
        (lambda app: app.cron("* * * * *", OTHER), "another flow called 'mail' is a job already"),
        (lambda app: app.job(Flow("a", [nothing]), attempts=0), "attempts=0"),
        (lambda app: app.job(Flow("a", [nothing]), queue=""), "queue=''"),
        (lambda app: app.job(Flow("a", [nothing]), deadline=0), "deadline=0"),
        (lambda app: app.job(Flow("a", [nothing]), priority="low"), "priority='low'"),
        (lambda app: app.job("a"), "which is no flow"),
        (lambda app: app.cron("* * * * *", "a"), "which is no flow"),
        (lambda app: app.queue("mail", limit=0), "limit=0"),
        (lambda app: app.queue("mail", per_tenant=-1), "per_tenant=-1"),
        (lambda app: app.queue(""), "has no name"),
        (lambda app: (app.queue("mail"), app.queue("mail")), "queue 'mail' is declared twice"),
        (lambda app: Snooze(-1), r"Snooze\(-1\)"),
    ],
)
def test_what_cannot_work_is_said_with_its_name(declare: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        declare(app_with_other())


def test_a_flow_of_a_schedule_is_a_job_and_may_be_declared_before_or_after() -> None:
    for declare in ((0, 1), (1, 0)):
        app = App()
        steps = (lambda: app.cron("* * * * *", FLOW), lambda: app.job(FLOW, attempts=3))  # noqa: B023  # called here
        for number in declare:
            steps[number]()
        assert app.jobs["mail"].attempts == 3
    app = App()
    app.cron("* * * * *", FLOW)
    assert app.jobs["mail"].flow is FLOW


def test_a_job_that_reads_more_of_a_request_than_its_body_is_refused() -> None:
    @step
    def look(token: Annotated[str, Header()]) -> Done:
        return Done(token)

    app = App()
    app.job(Flow("look", [look]))
    with pytest.raises(DefinitionError, match="job look reads the header 'token', and a job has nothing but a body"):
        app.check()


def test_a_route_and_a_job_of_one_name_are_one_flow() -> None:
    app = app_with_other()
    app.route("POST", "/mail", OTHER)
    with pytest.raises(DefinitionError, match="job 'mail': a route serves another flow of this name"):
        app.check()
