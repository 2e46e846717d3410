"""Admission: who waits is answered in time, seats and queues are bounded, shares are kept, nothing is left behind."""

from __future__ import annotations

from collections import Counter

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zerver.core.admission import INF, Admission
from zerver.core.classes import BATCH, DEFAULT, AdmissionPolicy
from zerver.core.load import Load, Usage
from zerver.core.priorities import PRIORITIES, RANK, Priority
from zerver.core.quotas import Quota
from zerver.core.tenants import Tenant, Tenants
from zerver.core.tickets import Refusal, Ticket, Waiting
from zerver.core.work import Work

#: Patience for tests that are not about it.
PATIENT = AdmissionPolicy(running=1, default=attrs.evolve(DEFAULT, patience=1000.0, slack=1000.0))


def ticket(answer: object) -> Ticket:
    assert isinstance(answer, Ticket), answer
    return answer


def waiting(answer: object) -> Waiting:
    assert isinstance(answer, Waiting), answer
    return answer


def refusal(answer: object) -> Refusal:
    assert isinstance(answer, Refusal), answer
    return answer


def known(cpu: float, duration: float = 0.01) -> Work:
    return Work(cpu, duration)


def admission(policy: AdmissionPolicy = PATIENT, **tenants: Tenant) -> Admission:
    return Admission(policy, Tenants(tenants))


class Elsewhere:
    """Neighbours that have done what the test says."""

    def __init__(self) -> None:
        self.usage = Usage(0, 0.0, 0.0)
        self.heard: list[tuple[str, int, float, float]] = []

    def publish(self, tenant: str, running: int, refill: float, cost: float) -> None:
        self.heard.append((tenant, running, refill, cost))

    def elsewhere(self, tenant: str) -> Usage:
        return self.usage if tenant == "heavy" else Usage(0, 0.0, 0.0)


# ---- seats ----------------------------------------------------------------------------------


def test_while_seats_are_free_nobody_waits_and_nothing_is_charged() -> None:
    state = admission(AdmissionPolicy(running=3))
    tickets = [ticket(state.arrive("default", "acme", 0.0)) for _ in range(3)]
    assert [one.cost for one in tickets] == [0.0] * 3
    assert (state.running, state.due) == (3, INF)
    first = waiting(state.arrive("default", "acme", 0.0))
    assert state.answers(0.0) == []
    state.leave(tickets[0], 0.1, 0.001)
    [(entry, answer)] = state.answers(0.1)
    assert entry is first
    assert ticket(answer).cost > 0
    assert (state.running, state.queued) == (3, 0)


def test_a_ticket_is_given_back_once() -> None:
    state = admission()
    one = ticket(state.arrive("default", "acme", 0.0))
    state.leave(one, 1.0)
    with pytest.raises(ValueError, match="acme"):
        state.leave(one, 1.0)
    assert state.running == 0


def test_who_went_away_owes_nothing() -> None:
    state = admission(acme=Tenant(rate=1, burst=2))
    one = ticket(state.arrive("default", "acme", 0.0))
    entry = waiting(state.arrive("default", "acme", 0.0))
    assert state.quota("acme", 0.0) == Quota(2, 0, 2.0, 2.0)
    state.abandon(entry, 0.0)
    assert state.quota("acme", 0.0) == Quota(2, 1, 1.0, 2.0)
    state.leave(one, 0.0)
    assert (state.answers(0.0), state.queued, state.running) == ([], 0, 0)
    with pytest.raises(KeyError):
        state.abandon(entry, 0.0)


def test_the_highest_class_goes_first_and_the_others_get_their_part() -> None:
    promises = {name: attrs.evolve(one, patience=1e9, slack=1.0) for name, one in zip(
        PRIORITIES, AdmissionPolicy().classes, strict=True)}  # fmt: skip
    state = admission(AdmissionPolicy(running=1, queued=10_000, **promises))  # type: ignore[arg-type]  # by class
    holder = ticket(state.arrive("default", "acme", 0.0))
    for priority in PRIORITIES:
        for _ in range(1000):
            waiting(state.arrive(priority, "acme", 0.0, INF, known(0.01)))
    told: Counter[str] = Counter()
    for _ in range(800):
        state.leave(holder, 0.0)
        [(_, answer)] = state.answers(0.0)
        holder = ticket(answer)
        told[holder.priority] += 1
    assert {name: round(count / 8) for name, count in told.items()} == {"interactive": 70, "default": 25, "batch": 5}


def test_who_takes_a_free_seat_credits_the_classes_that_wait() -> None:
    state = admission(AdmissionPolicy())
    batch = [ticket(state.arrive("batch", "acme", 0.0, INF, known(0.05))) for _ in range(40)]
    waiting(state.arrive("batch", "acme", 0.0, INF, known(0.05)))
    for _ in range(20):
        ticket(state.arrive("interactive", "acme", 0.0, INF, known(0.01)))
    assert state._credits.owed[2] == pytest.approx(0.05 * 0.2)
    for one in batch[:20]:
        state.leave(one, 0.1)
        assert state.answers(0.1) == [], "the seats of the higher are not the lower's"
    state.leave(batch[20], 0.1)
    assert len(state.answers(0.1)) == 1
    assert state._credits.owed == [0.0, 0.0, 0.0]


# ---- bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("priority", "patience"), [("interactive", 0.05), ("default", 0.25), ("batch", 10.0)])
def test_who_waits_is_answered_within_the_patience_of_its_class(priority: Priority, patience: float) -> None:
    state = admission(AdmissionPolicy(running=1))
    ticket(state.arrive(priority, "acme", 0.0))
    entry = waiting(state.arrive(priority, "acme", 1.0))
    assert state.due == entry.due == 1.0 + patience
    assert state.answers(1.0 + patience - 1e-6) == []
    [(told, answer)] = state.answers(1.0 + patience)
    assert told is entry
    assert refusal(answer).reason == "waited too long"
    assert refusal(answer).status == (429 if priority == "batch" else 503)
    assert state.due == INF


def test_a_deadline_that_comes_first_is_the_end_of_the_wait() -> None:
    state = admission()
    ticket(state.arrive("default", "acme", 0.0))
    entry = waiting(state.arrive("default", "acme", 0.0, 2.0))
    assert state.due == 2.0
    assert [(one, refusal(answer).reason) for one, answer in state.answers(2.0)] == [
        (entry, "deadline passed while waiting")
    ]


def test_what_cannot_be_done_in_time_is_refused_at_once_or_when_its_turn_comes() -> None:
    state = admission()
    holder = ticket(state.arrive("default", "acme", 0.0, 0.5, known(0.01, 1.0)))  # a free seat is not argued about
    assert refusal(state.arrive("default", "acme", 0.0, 0.9, known(0.01, 1.0))).reason == "deadline too close"
    waiting(state.arrive("default", "acme", 0.0, 5.0, known(0.01, 1.0)))
    state.leave(holder, 4.5)
    [(_, answer)] = state.answers(4.5)
    assert refusal(answer) == Refusal("deadline too close", 503, 1.0)
    assert (state.running, state.queued) == (0, 0)


def test_what_is_queued_is_bounded_by_how_long_it_would_take() -> None:
    state = admission(AdmissionPolicy(running=1))
    ticket(state.arrive("interactive", "acme", 0.0, INF, known(0.01)))
    entries = [waiting(state.arrive("interactive", "acme", 0.0, INF, known(0.01))) for _ in range(20)]
    dropped = [entry for entry, _ in state.answers(0.0)]
    assert dropped == entries[: len(dropped)], "a tenant's own oldest makes room for its newest"
    assert 5 <= state.queued <= 1 + 1.5 * 0.050 * 0.7 / 0.01
    light = [waiting(state.arrive("interactive", "other", 0.0, INF, known(0.01))) for _ in range(2)]
    assert state.answers(0.0) == [], "the length of one line is no reason to refuse another tenant"
    waiting(state.arrive("interactive", "acme", 0.0, INF, known(0.01)))
    [(_, answer)] = state.answers(0.0)
    assert (refusal(answer).reason, refusal(answer).status) == ("tenant over its share", 429)
    assert all(one.waits for one in light)


def test_batch_that_does_not_fit_is_refused_and_keeps_its_place_in_the_queue() -> None:
    state = admission(AdmissionPolicy(running=1))
    ticket(state.arrive("batch", "acme", 0.0, INF, known(0.1)))
    answers = [state.arrive("batch", "acme", 0.0, INF, known(0.1)) for _ in range(20)]
    kept = [isinstance(answer, Waiting) for answer in answers]
    assert kept == sorted(kept, reverse=True)
    assert 3 <= sum(kept) <= 1 + 0.8 * 10 * 0.05 / 0.1
    last = refusal(answers[-1])
    assert (last.reason, last.status) == ("queue full", 429)
    assert last.retry_after is not None
    assert last.retry_after >= 8.0, "it takes so long until what waits has been served"


def test_a_full_queue() -> None:
    state = admission(attrs.evolve(PATIENT, queued=2))
    ticket(state.arrive("default", "acme", 0.0))
    oldest = waiting(state.arrive("default", "acme", 0.0))
    waiting(state.arrive("default", "acme", 0.0))
    assert refusal(state.arrive("default", "other", 0.0)) == Refusal("queue full", 503, 1.0)
    assert refusal(state.arrive("batch", "acme", 0.0)).status == 429
    newest = waiting(state.arrive("default", "acme", 0.0))
    assert [(entry, refusal(answer).reason) for entry, answer in state.answers(0.0)] == [(oldest, "queue full")]
    assert newest.waits
    assert (state.queued, state.refused) == (2, {"queue full": 3})


def test_batch_never_takes_the_last_places() -> None:
    state = admission(AdmissionPolicy(running=1, queued=8))
    ticket(state.arrive("batch", "acme", 0.0))
    free = {
        priority: sum(isinstance(state.arrive(priority, f"t{number}", 0.0), Waiting) for number in range(20))
        for priority in reversed(PRIORITIES)
    }
    assert free == {"batch": 4, "default": 2, "interactive": 2}


def test_an_overloaded_class_serves_the_newest_and_drops_who_will_not_make_it() -> None:
    state = admission(AdmissionPolicy(running=1))
    holder = ticket(state.arrive("default", "acme", 0.0))
    first = waiting(state.arrive("default", "acme", 0.0, 0.30, known(0.01, 0.01)))
    second = waiting(state.arrive("default", "acme", 0.0))
    assert state.answers(0.10) == []
    assert state.answers(0.10) == []
    third = waiting(state.arrive("default", "acme", 0.205))
    assert [one.overloaded for one in state.statistics()] == [False, True, False]
    assert [(entry, refusal(answer).reason) for entry, answer in state.answers(0.205)] == [
        (first, "deadline too close")
    ]
    state.leave(holder, 0.21)
    [(entry, _)] = state.answers(0.21)
    assert entry is third
    assert second.waits


def test_batch_stays_first_come_first_served() -> None:
    state = admission(AdmissionPolicy(running=1, batch=attrs.evolve(BATCH, slack=100.0)))
    holder = ticket(state.arrive("batch", "acme", 0.0))
    entries = [waiting(state.arrive("batch", "acme", 0.0)) for _ in range(5)]
    for second in range(5):
        state.answers(float(second))
    assert state.statistics()[2].overloaded
    for entry in entries:
        state.leave(holder, 5.0)
        [(told, answer)] = state.answers(5.0)
        assert told is entry
        holder = ticket(answer)


# ---- tenants --------------------------------------------------------------------------------


def test_a_rate_is_kept_and_refused_with_the_time_it_takes() -> None:
    state = admission(AdmissionPolicy(), acme=Tenant(rate=0.1, burst=2))
    tickets = [ticket(state.arrive("interactive", "acme", 0.0)) for _ in range(2)]
    assert tickets[0].quota(0.0) == Quota(2, 0, 20.0, 20.0)
    answer = refusal(state.arrive("interactive", "acme", 0.0))
    assert (answer.reason, answer.status, answer.quota) == ("tenant over its rate", 429, Quota(2, 0, 20.0, 20.0))
    assert answer.retry_after == pytest.approx(12.5), "10 seconds, and a quarter for the jitter"
    assert ticket(state.arrive("interactive", "other", 0.0)).quota(0.0) is None
    ticket(state.arrive("interactive", "acme", 10.0))


def test_runs_at_once_count_those_that_wait_and_those_elsewhere() -> None:
    elsewhere = Elsewhere()
    state = Admission(PATIENT, Tenants({"heavy": Tenant(runs=3)}), elsewhere)
    ticket(state.arrive("default", "heavy", 0.0))
    waiting(state.arrive("default", "heavy", 0.0))
    elsewhere.usage = Usage(1, 0.0, 0.0)
    answer = refusal(state.arrive("default", "heavy", 0.0))
    assert (answer.reason, answer.status) == ("tenant over its runs", 429)
    elsewhere.usage = Usage(0, 0.0, 0.0)
    waiting(state.arrive("default", "heavy", 0.0))


def test_rules_are_replaced_while_runs_run_and_wait() -> None:
    state = admission(acme=Tenant(rate=1, burst=5, runs=2))
    one = ticket(state.arrive("default", "acme", 0.0))
    entry = waiting(state.arrive("default", "acme", 0.0))
    assert refusal(state.arrive("default", "acme", 0.0)).reason == "tenant over its runs"
    state.treat(Tenants({"acme": Tenant(runs=3, weight=5.0)}), 0.0)
    assert state.quota("acme", 0.0) is None
    other = waiting(state.arrive("default", "acme", 0.0))
    assert refusal(state.arrive("default", "acme", 0.0)).reason == "tenant over its runs"
    state.treat(Tenants(), 0.0)
    state.leave(one, 0.0)
    [(told, answer)] = state.answers(0.0)
    assert (told, ticket(answer).rule, one.rule.runs) == (entry, Tenant(), 2)
    state.abandon(other, 0.0)
    state.leave(ticket(answer), 0.0)
    assert (state.running, state.queued) == (0, 0)


def test_no_tenant_takes_all_seats_while_others_wait() -> None:
    state = admission(AdmissionPolicy(running=10, tenant_part=0.5))
    held = [ticket(state.arrive("default", "heavy", 0.0, INF, known(1e-4))) for _ in range(10)]
    light = [waiting(state.arrive("default", "light", 0.0, INF, known(0.02))) for _ in range(5)]
    for _ in range(5):
        waiting(state.arrive("default", "heavy", 0.0, INF, known(1e-4)))
    told = []
    for one in held[:5]:
        state.leave(one, 0.0)
        told += [entry for entry, _ in state.answers(0.0)]
    assert told == light, "by cost alone the other one would go first, most of the time"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.001, 0.002, 0.004]), min_size=3, max_size=3))
def test_backlogged_tenants_get_cpu_by_weight(costs: list[float]) -> None:
    """Whatever the estimates are: every flow is unknown at first, and learnt from its runs."""
    weights = {"one": 1.0, "two": 2.0, "four": 4.0}
    generous = attrs.evolve(DEFAULT, patience=1e9, slack=1.0)
    state = admission(
        AdmissionPolicy(running=1, queued=10**6, default=generous), **{n: Tenant(weight=w) for n, w in weights.items()}
    )
    works = {name: Work() for name in weights}
    cost = dict(zip(weights, costs, strict=True))
    holder = ticket(state.arrive("default", "other", 0.0))
    for name in weights:
        for _ in range(1200):
            waiting(state.arrive("default", name, 0.0, INF, works[name]))
    spent: Counter[str] = Counter()
    now = 0.0
    while sum(spent.values()) < 7 * 0.3:
        seconds = cost.get(holder.tenant, 0.0)
        now += seconds
        spent[holder.tenant] += seconds  # type: ignore[assignment]  # a Counter of seconds
        state.leave(holder, now, seconds)
        [(_, answer)] = state.answers(now)
        holder = ticket(answer)
    for name, weight in weights.items():
        assert spent[name] / weight == pytest.approx(0.3, rel=0.05)


def test_who_hammers_is_told_to_stay_away_and_nobody_else() -> None:
    state = admission(AdmissionPolicy(), abuser=Tenant(rate=1, burst=1), victim=Tenant(rate=1, burst=1))
    for tenth in range(600):
        hammering = state.arrive("default", "abuser", tenth / 10)
        if isinstance(hammering, Ticket):
            state.leave(hammering, tenth / 10)
    assert refusal(hammering).retry_after == pytest.approx(32 * 1.25)
    ticket(state.arrive("default", "victim", 60.0))
    assert refusal(state.arrive("default", "victim", 60.0)).retry_after == pytest.approx(1.25)


def test_the_time_until_the_next_token_is_told_in_full() -> None:
    state = admission(AdmissionPolicy(), acme=Tenant(rate=0.001, burst=1))
    ticket(state.arrive("default", "acme", 0.0))
    assert refusal(state.arrive("default", "acme", 0.0)).retry_after == pytest.approx(1250.0)


def test_what_a_tenant_spends_elsewhere_counts_while_its_queue_is_served() -> None:
    """Nobody arrives any more, and still who gets seats in other processes lets others go first in this one."""
    elsewhere, told = Elsewhere(), Counter[str]()
    state = Admission(PATIENT, neighbours=elsewhere)
    holder = ticket(state.arrive("default", "other", 0.0))
    for _ in range(40):
        for name in ("heavy", "light"):
            waiting(state.arrive("default", name, 0.0, INF, known(0.01)))
    for number in range(40):
        elsewhere.usage = Usage(0, 0.0, number * 0.03)
        state.leave(holder, number / 10, 0.01)
        [(_, answer)] = state.answers(number / 10)
        holder = ticket(answer)
        told[holder.tenant] += 1
    assert told["light"] >= 28, "three quarters of all that both get, or nearly: it has nothing elsewhere"


def test_who_goes_away_is_not_counted_elsewhere_any_more() -> None:
    elsewhere = Elsewhere()
    state = Admission(PATIENT, Tenants({"acme": Tenant(runs=3, rate=1, burst=3)}), elsewhere)
    holder = ticket(state.arrive("default", "acme", 0.0))
    entry = waiting(state.arrive("default", "acme", 0.0))
    assert elsewhere.heard[-1] == ("acme", 2, 2.0, 0.0)
    state.abandon(entry, 0.5)
    assert elsewhere.heard[-1] == ("acme", 1, 0.5, 0.0)
    assert refusal(state.arrive("default", "acme", 0.5, 0.5)).reason == "deadline too close"
    assert elsewhere.heard[-1] == ("acme", 1, 0.5, 0.0), "a claim that came to nothing is taken back"
    state.leave(holder, 2.0, 0.1)
    assert elsewhere.heard[-1] == ("acme", 0, 0.0, 0.1)
    state.leave(state.beside("acme", "default", 2.0), 3.0, 0.2)
    assert elsewhere.heard[-1][3] == pytest.approx(0.3), "a run in place of a refused one costs, too"


# ---- parked ---------------------------------------------------------------------------------


def test_a_parked_run_leaves_its_seat_and_takes_one_when_it_goes_on() -> None:
    work = known(0.01)
    state = admission(AdmissionPolicy(running=1), acme=Tenant(runs=2))
    approval = ticket(state.arrive("default", "acme", 0.0, INF, work))
    entry = waiting(state.arrive("default", "other", 0.1))
    state.park(approval, 0.1)
    [(told, answer)] = state.answers(0.1)
    assert (told, state.running, state.parked) == (entry, 1, 1)
    state.leave(ticket(answer), 0.2)
    second = ticket(state.arrive("default", "acme", 1.0))
    assert refusal(state.arrive("default", "acme", 1.0)).reason == "tenant over its runs", "it takes memory here"
    state.resume(approval, 3600.1)
    assert (state.running, state.parked) == (2, 0), "what has begun is not refused in its midst"
    waiting(state.arrive("default", "other", 3600.1))
    state.leave(second, 3600.2)
    assert state.answers(3600.2) == [], "there was one seat too few"
    state.leave(approval, 3600.3, 0.01)
    assert len(state.answers(3600.3)) == 1
    assert work.duration == pytest.approx(0.3), "an hour's sleep is not how long it takes"


def test_a_seat_is_left_once_and_taken_once() -> None:
    state = admission(AdmissionPolicy(running=1))
    one = ticket(state.arrive("default", "acme", -5.0))  # a clock may begin anywhere
    with pytest.raises(ValueError, match="is not parked"):
        state.resume(one, -5.0)
    state.park(one, -5.0)
    with pytest.raises(ValueError, match="no seat to leave"):
        state.park(one, -4.0)
    state.leave(one, -3.0)
    assert (state.running, state.parked) == (0, 0)
    with pytest.raises(ValueError, match="no seat to leave"):
        state.park(one, -2.0)
    beside = state.beside("acme", "default", 0.0)
    state.park(beside, 0.0)
    state.leave(beside, 1.0)
    assert (state.running, state.parked) == (0, 0)


def test_a_parked_hour_says_nothing_of_how_many_runs_are_needed() -> None:
    state = admission(AdmissionPolicy())
    for hour in range(50):
        one = ticket(state.arrive("default", "acme", hour * 3600.0))
        state.park(one, hour * 3600.0 + 0.01)
        state.leave(one, hour * 3600.0 + 3599.0, 0.005)
    assert max(state.limits[1:]) < 20
    assert state.statistics()[1].guaranteed < 10


# ---- draining, load, what can be seen -------------------------------------------------------


def test_draining_refuses_who_waits_and_who_comes() -> None:
    state = admission()
    one = ticket(state.arrive("default", "acme", 0.0))
    entries = [waiting(state.arrive(priority, "acme", 0.0)) for priority in PRIORITIES]
    assert state.drain(1.0) == [(entry, Refusal("draining", 503, 1.0)) for entry in entries]
    assert refusal(state.arrive("batch", "acme", 1.0)) == Refusal("draining", 503, 1.0)
    assert (state.queued, state.running) == (0, 1)
    state.leave(one, 1.0)


def test_limits_follow_the_load_and_who_waits_is_served() -> None:
    state = admission(AdmissionPolicy())
    for _ in range(40):
        ticket(state.arrive("default", "acme", 0.0, INF, known(0.001)))
    entries = [waiting(state.arrive("default", "acme", 0.0, INF, known(0.001))) for _ in range(6)]
    assert [state.waits(level) for level in range(3)] == [False, True, True]
    state.tell(Load((0.0, 0.0, 0.0), (0.0, 0.008, 0.008), 0.1))
    assert [entry for entry, _ in state.answers(0.1)] == entries[:4]
    assert state.limits == (40.0, 44.0, 44.0)
    seen = state.statistics()[1]
    assert (seen.priority, seen.running, seen.queued, seen.limit, seen.admitted) == ("default", 44, 2, 44.0, 44)


def test_what_is_not_measured_is_not_learnt() -> None:
    state, work = admission(), Work()
    state.leave(ticket(state.arrive("default", "acme", 0.0, INF, work)), 1.0)
    assert (work.cpu, work.runs) == (None, 0)
    state.leave(ticket(state.arrive("default", "acme", 1.0, INF, work)), 3.0, 0.5)
    assert (work.cpu, work.duration) == (0.5, 2.0)


def test_policies_that_promise_nothing_are_refused() -> None:
    for wrong in ({"running": 0}, {"queued": -1}, {"tenant_part": 0.0}):
        with pytest.raises(ValueError):
            AdmissionPolicy(**wrong)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError):
        attrs.evolve(DEFAULT, patience=0.0)
    assert [one.share for one in AdmissionPolicy().classes] == [0.50, 0.25, 0.05]


# ---- whatever happens -----------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """Arrivals, ends, departures, loads and new rules in any order."""

    @initialize(policy=st.sampled_from([AdmissionPolicy(), AdmissionPolicy(running=2, queued=6), PATIENT]))
    def open(self, policy: AdmissionPolicy) -> None:
        self.policy = policy
        self.state = Admission(policy, Tenants({"b": Tenant(runs=3), "c": Tenant(rate=5, weight=4)}))
        self.now = 0.0
        self.running: list[Ticket] = []
        self.waiting: list[Waiting] = []
        self.works = [Work(), Work(0.05, 0.1), Work(0.0001, 0.001)]

    def told(self) -> None:
        for entry, answer in self.state.answers(self.now):
            self.waiting.remove(entry)
            assert not entry.waits
            if isinstance(answer, Ticket):
                assert self.now < entry.deadline
                assert answer.tenant == entry.tenant
                self.running.append(answer)

    @rule(
        priority=st.sampled_from(PRIORITIES), tenant=st.sampled_from("abc"),
        seconds=st.floats(0.001, 20) | st.just(INF), work=st.integers(0, 2), count=st.integers(1, 15),
    )  # fmt: skip
    def arrive(self, priority: Priority, tenant: str, seconds: float, work: int, count: int) -> None:
        for _ in range(count):
            answer = self.state.arrive(priority, tenant, self.now, self.now + seconds, self.works[work])
            if isinstance(answer, Ticket):
                self.running.append(answer)
            elif isinstance(answer, Waiting):
                assert answer.due <= self.now + self.policy.classes[RANK[priority]].patience
                self.waiting.append(answer)
            else:
                assert answer.status in (429, 503)
                assert answer.retry_after is not None
                assert 1.0 <= answer.retry_after <= 48.0
            self.told()

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1000), cpu=st.none() | st.floats(0, 0.2), count=st.integers(1, 10))
    def leave(self, which: int, cpu: float | None, count: int) -> None:
        for _ in range(min(count, len(self.running))):
            self.state.leave(self.running.pop(which % len(self.running)), self.now, cpu)
            self.told()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 1000))
    def abandon(self, which: int) -> None:
        self.state.abandon(self.waiting.pop(which % len(self.waiting)), self.now)
        self.told()

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1000))
    def park_or_resume(self, which: int) -> None:
        one = self.running[which % len(self.running)]
        if one.parked is None:
            self.state.park(one, self.now)
        else:
            self.state.resume(one, self.now)
        self.told()

    @rule(seconds=st.floats(0.0, 0.3) | st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.told()

    @rule(standing=st.floats(0, 0.02), starved=st.floats(0, 0.1))
    def tell(self, standing: float, starved: float) -> None:
        self.state.tell(Load((standing,) * 3, (starved,) * 3, 0.1))
        self.told()

    @rule(weight=st.sampled_from([1.0, 4.0]), runs=st.none() | st.integers(1, 5), rate=st.none() | st.floats(0.1, 50))
    def treat(self, weight: float, runs: int | None, rate: float | None) -> None:
        self.state.treat(Tenants({"b": Tenant(weight=weight, runs=runs)}, Tenant(rate=rate)), self.now)
        self.told()

    @invariant()
    def counts_are_right(self) -> None:
        state = self.state
        assert state.parked == sum(ticket.parked is not None for ticket in self.running)
        assert state.running == len(self.running) - state.parked
        assert state.queued == len(self.waiting) <= self.policy.queued
        assert [one.running for one in state.statistics()] == [
            sum(ticket.priority == priority and ticket.parked is None for ticket in self.running)
            for priority in PRIORITIES
        ]
        assert [one.queued for one in state.statistics()] == [
            sum(entry.priority == priority for entry in self.waiting) for priority in PRIORITIES
        ]

    @invariant()
    def nobody_waits_past_its_bound_nor_beside_a_free_seat(self) -> None:
        assert all(entry.due > self.now for entry in self.waiting)
        assert self.state.due == min((entry.due for entry in self.waiting), default=INF)
        for entry in self.waiting:
            assert not self.state._seats.free(entry.rank)

    @invariant()
    def credit_is_bounded(self) -> None:
        for rank, promise in enumerate(self.policy.classes):
            assert self.state._credits.owed[rank] <= promise.share + 1e-9
            if not self.state._queues[rank]:
                assert self.state._credits.owed[rank] == 0.0

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        for entry in self.waiting:
            self.state.abandon(entry, self.now)
        for one in self.running:
            self.state.leave(one, self.now)
        state = self.state
        assert state.answers(self.now) == []
        assert (state.running, state.queued, state.due) == (0, 0, INF)
        assert [queue.backlog for queue in state._queues] == [0.0] * 3
        assert state._seats.running == [0, 0, 0]
        self.now += 1000.0
        assert all(tally.idle(self.now) for tally in state._tallies._by_name.values())


class TestLife(Life.TestCase):  # type: ignore[misc]  # as hypothesis makes it
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
