"""The checker: each message to the letter, no valid flow refused, no broken one passed."""

from __future__ import annotations

from typing import Annotated, Any

import attrs
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.core.strategies import (
    DrawBranch,
    DrawDag,
    DrawFlow,
    DrawParallel,
    DrawPivot,
    DrawStage,
    DrawStep,
    flows,
)
from zerver import (
    INJECTED,
    App,
    Deadline,
    Done,
    Fail,
    Flow,
    IdempotencyKey,
    Policy,
    Slot,
    branch,
    dag,
    effect,
    join,
    parallel,
    pivot,
    step,
)
from zerver.core.check import dag_order
from zerver.core.effects import EffectKind
from zerver.errors import DefinitionError

Cart = Annotated[str, Slot("cart")]
User = Annotated[str, Slot("user")]
Paid = Annotated[int, Slot("paid")]
PaidText = Annotated[str, Slot("paid")]


@effect(kind="pay.charge", access="write")
async def charge_effect(cents: int, *, key: IdempotencyKey = INJECTED) -> int:
    return cents


@effect(kind="pay.blind", access="write")
async def blind_effect(cents: int) -> int:
    return cents


@effect(kind="pay.look", access="read", policy=Policy(timeout=3.0))
async def look_effect() -> int:
    return 1


UNHANDLED: EffectKind[..., int] = EffectKind("sql.fetch", "read")


@step
def load_cart() -> Cart:
    return "cart"


@step
def load_user() -> User:
    return "user"


@step
def charge(cart: Cart) -> Paid:
    return 1


@step
def charge_again(cart: Cart) -> Paid:
    return 2


@step
def charge_text(cart: Cart) -> PaidText:
    return "1"


@step
def render(paid: Paid) -> Done:
    return Done(paid)


@step
def render_perhaps(paid: Paid | None) -> Done:
    return Done(paid)


@step
def finish() -> Done | Fail:
    return Done()


@step
def log() -> None:
    return None


def is_open(cart: Cart) -> bool:
    return True


def refused(build: Any) -> str:
    with pytest.raises(DefinitionError) as caught:
        build()
    return str(caught.value)


def test_a_read_with_no_earlier_write() -> None:
    assert refused(lambda: Flow("checkout", [charge, render])) == (
        "flow 'checkout': step 'charge' reads slot 'cart', but no earlier step writes it\n"
        "  add a step that writes 'cart' before 'charge'; these steps can: load_cart"
    )


def test_a_read_before_its_write() -> None:
    assert refused(lambda: Flow("checkout", [charge, load_cart, render])) == (
        "flow 'checkout': step 'charge' reads slot 'cart', but no earlier step writes it\n"
        "  move 'load_cart', which writes 'cart', before 'charge'"
    )


def test_members_of_a_parallel_do_not_see_each_other() -> None:
    assert refused(lambda: Flow("checkout", [parallel(load_cart, charge), render])) == (
        "flow 'checkout': step 'charge' reads slot 'cart', but no earlier step writes it\n"
        "  move 'load_cart', which writes 'cart', before 'charge'"
    )


def test_a_slot_that_only_one_way_writes() -> None:
    assert refused(lambda: Flow("checkout", [load_cart, branch(is_open, charge), render])) == (
        "flow 'checkout': step 'render' reads slot 'paid', which may be unwritten: "
        "not every way of branch 'is_open' writes it\n"
        "  read it as `paid: … | None`"
    )
    Flow("checkout", [load_cart, branch(is_open, charge), render_perhaps])
    Flow("checkout", [load_cart, branch(is_open, charge, charge_again), render])


def test_a_way_that_ends_the_run_need_not_write() -> None:
    Flow("checkout", [load_cart, branch(is_open, charge, finish), render])


def test_a_slot_that_may_hold_none() -> None:
    @step
    def perhaps(cart: Cart) -> Paid | None:
        return None

    assert refused(lambda: Flow("checkout", [load_cart, perhaps, render])) == (
        "flow 'checkout': step 'render' reads slot 'paid', which may be unwritten: "
        "step 'perhaps' may write None to it\n"
        "  read it as `paid: … | None`"
    )
    Flow("checkout", [load_cart, perhaps, render_perhaps])


def test_two_writers_of_one_slot() -> None:
    for stages in ([load_cart, charge, charge_again, render], [load_cart, parallel(charge, charge_again), render]):
        assert refused(lambda stages=stages: Flow("checkout", stages)) == (
            "flow 'checkout': slot 'paid' is written by 'charge' and by 'charge_again'\n"
            "  a slot has exactly one writer: let one of them write a slot of its own"
        )


def test_a_slot_that_the_caller_and_a_step_write() -> None:
    assert refused(lambda: Flow("checkout", [load_cart, charge, render], takes=[Cart])) == (
        "flow 'checkout': slot 'cart' is written by 'the caller' and by 'load_cart'\n"
        "  a slot has exactly one writer: let one of them write a slot of its own"
    )


def test_a_slot_nobody_reads() -> None:
    assert refused(lambda: Flow("checkout", [load_cart, load_user, charge, render])) == (
        "flow 'checkout': slot 'user', written by 'load_user', is read by nobody\n"
        "  read it, name it in gives=[…], or let 'load_user' write nothing"
    )
    Flow("checkout", [load_cart, load_user, charge, render], gives=[User])


def test_a_slot_that_a_nested_flow_gives_need_not_be_read() -> None:
    inner = Flow("inner", [load_user, load_cart], gives=[User, Cart])
    Flow("checkout", [inner, charge, render])


def test_a_gift_that_nobody_writes() -> None:
    assert refused(lambda: Flow("checkout", [load_cart, charge], gives=[Paid, User])) == (
        "flow 'checkout': gives slot 'user', but no step writes it\n"
        "  add a step that writes 'user'; these steps can: load_user"
    )


def test_a_cycle_in_a_dag() -> None:
    a, b = Annotated[int, Slot("a")], Annotated[int, Slot("b")]

    def reads_b(x: b) -> a:
        return x

    def reads_a(x: a) -> b:
        return x

    reads_b.__annotations__ = {"x": b, "return": a}
    reads_a.__annotations__ = {"x": a, "return": b}
    assert refused(lambda: Flow("f", [dag(step(reads_b), step(reads_a))])) == (
        "flow 'f': the dag has a cycle: 'reads_b' → 'reads_a' → 'reads_b'\n"
        "  let one of them read something that is written before the dag"
    )
    assert refused(lambda: Flow("f", [dag(log, after={log: log})])) == (
        "flow 'f': the dag has a cycle: 'log' → 'log'\n  let one of them read something that is written before the dag"
    )


def test_a_dag_runs_its_members_in_any_order_of_writing() -> None:
    Flow("checkout", [dag(render, charge, load_cart)])


def test_a_dag_whose_member_ends_the_run_lets_nothing_follow() -> None:
    assert refused(lambda: Flow("checkout", [dag(load_cart, charge, render), log])) == (
        "flow 'checkout': stage 'log' can never run: 'dag(load_cart, charge, render)' before it always ends the run\n"
        "  let 'dag(load_cart, charge, render)' return something else on some path, or remove 'log'"
    )


@pytest.mark.parametrize(
    "ending", [finish, parallel(finish, log), pivot(finish), Flow("inner", [finish])], ids=lambda stage: stage.name
)
def test_a_stage_that_can_never_run(ending: Any) -> None:
    assert refused(lambda: Flow("checkout", [ending, log])) == (
        f"flow 'checkout': stage 'log' can never run: {ending.name!r} before it always ends the run\n"
        f"  let {ending.name!r} return something else on some path, or remove 'log'"
    )


def test_a_branch_that_ends_both_ways() -> None:
    assert refused(lambda: Flow("checkout", [load_cart, branch(is_open, finish, finish), log])) == (
        "flow 'checkout': stage 'log' can never run: 'branch(is_open)' before it always ends the run\n"
        "  let 'branch(is_open)' return something else on some path, or remove 'log'"
    )


def test_an_unreachable_branch() -> None:
    message = (
        "flow 'checkout': branch 'is_open' asks the same again inside: its inner 'otherwise' can never run\n"
        "  remove the inner branch and keep the way that can run"
    )
    inner = branch(is_open, log)
    assert refused(lambda: Flow("checkout", [load_cart, branch(is_open, inner)])) == message
    assert refused(lambda: Flow("checkout", [load_cart, branch(is_open, parallel(inner, log))])) == message
    assert "its inner 'then'" in refused(lambda: Flow("checkout", [load_cart, branch(is_open, log, inner)]))


def test_a_question_about_time_may_be_asked_again() -> None:
    def hurry(left: Deadline) -> bool:
        return left.remaining < 1.0

    Flow("checkout", [branch(hurry, log, [log, branch(hurry, log)])])


def test_one_slot_name_with_two_types() -> None:
    assert refused(lambda: Flow("checkout", [load_cart, charge_text, render])) == (
        "flow 'checkout': slot 'paid' is str to 'charge_text' and int to 'render'\n"
        "  define one alias for the slot and use it in both places"
    )


def test_a_parameter_that_nothing_explains() -> None:
    def lost(cart: str) -> None: ...

    lost.__annotations__ = {"cart": str, "return": None}
    assert refused(lambda: step(lost)) == (
        "step 'lost': parameter 'cart' is neither a slot nor a part of the request\n"
        '  annotate it: Annotated[str, Slot("…")], or with Path, Query, Header, Cookie or Body'
    )


def test_an_effect_that_nothing_handles() -> None:
    @step
    async def look() -> None:
        await UNHANDLED()

    app = App()
    app.route("GET", "/", Flow("looking", [look]))
    assert refused(app.check) == (
        "route GET /: step 'look' asks for 'sql.fetch', but nothing handles it\n"
        '  add a capability that does to App(capabilities=[…]), as zerver.sql.sqlite("file.db")'
    )
    app.check(frozenset({"sql.fetch"}))


def test_an_effect_that_only_a_helper_handed_on_asks_for() -> None:
    @step
    async def look() -> None:
        await charge_effect(1).compensate(_undo_unhandled)

    app = App()
    app.route("GET", "/", Flow("looking", [look]))
    assert "asks for 'sql.fetch', but nothing handles it" in refused(app.check)


def _undo_unhandled(cents: int) -> Any:
    return UNHANDLED(cents)


def test_a_retried_write_whose_handler_takes_no_key() -> None:
    @step
    async def pay() -> None:
        await blind_effect(1).with_policy(retries=2)

    assert refused(lambda: Flow("checkout", [pay])) == (
        "flow 'checkout': step 'pay' retries the write 'pay.blind', but its handler takes no key\n"
        "  give the handler a parameter `key: IdempotencyKey` and send it along, or drop the retries"
    )


def test_a_retried_write_with_a_key_is_fine() -> None:
    @step
    async def pay() -> None:
        await charge_effect(1).with_policy(retries=2)

    Flow("checkout", [pay])


def test_a_compensation_on_a_read() -> None:
    @step
    async def look() -> None:
        await look_effect().compensate(charge_effect)

    assert refused(lambda: Flow("checkout", [look])) == (
        "flow 'checkout': step 'look' compensates 'pay.look', which is a read\n"
        '  drop .compensate(), or declare the kind with access="write"'
    )


def test_deadlines_that_cannot_add_up() -> None:
    @step
    async def pay() -> None:
        await charge_effect(1).with_policy(timeout=5.0)

    @step
    async def look() -> None:
        await look_effect()

    @step
    async def hedged() -> None:
        await join.hedge(look_effect().with_policy(timeout=0.5), after=0.5)

    assert refused(lambda: Flow("checkout", [pay], deadline=2.0)) == (
        "flow 'checkout': step 'pay' gives 'pay.charge' a timeout of 5 s, but the flow's deadline is 2 s\n"
        "  shorten the timeout below 2 s, or lengthen the deadline"
    )
    assert "'pay.look' a timeout of 3 s" in refused(lambda: Flow("checkout", [look], deadline=2.0))
    inner = Flow("inner", [log], deadline=3.0)
    assert refused(lambda: Flow("checkout", [inner], deadline=2.0)) == (
        "flow 'checkout': nested flow 'inner' has a deadline of 3 s, but 2 s are all there is\n"
        "  shorten it, or give 'checkout' a deadline of 3 s or more"
    )
    assert refused(lambda: Flow("checkout", [hedged])) == (
        "flow 'checkout': step 'hedged' hedges 'pay.look' after 0.5 s, but its timeout is 0.5 s\n"
        "  hedge before the timeout, or not at all"
    )


def test_what_a_nested_flow_takes_must_surely_be_written() -> None:
    inner = Flow("inner", [charge, render], takes=[Cart])
    assert refused(lambda: Flow("outer", [inner])) == (
        "flow 'outer': nested flow 'inner' takes slot 'cart', but no earlier step writes it\n"
        "  add a step that writes 'cart' before 'inner'; these steps can: load_cart"
    )

    def asked(user: User) -> bool:
        return True

    assert refused(lambda: Flow("outer", [load_user, branch(asked, load_cart), inner])) == (
        "flow 'outer': nested flow 'inner' takes slot 'cart', which may be unwritten: "
        "not every way of branch 'asked' writes it\n"
        "  write 'cart' on every path to 'inner'"
    )
    Flow("outer", [load_cart, inner])


# ---- before-chains --------------------------------------------------------------------------


@step
def audit(user: User) -> None:
    return None


def served(flow: Flow, *before: Any) -> App:
    app = App()
    app.use(*before)
    app.route("GET", "/", flow)
    return app


def test_a_before_chain_writes_what_the_flow_takes() -> None:
    flow = Flow("checkout", [audit, finish], takes=[User])
    app = served(flow, load_user)
    app.check()
    assert app.routes[0].plan().takes == ()
    assert refused(served(flow).check) == (
        "route GET /: flow 'checkout' takes slot 'user', but no before-chain writes it\n"
        "  add a step that writes 'user' with app.use(...) or scope(..., before=[...])"
    )
    assert refused(served(flow, log).check) == (
        "route GET /: flow 'checkout': the flow takes slot 'user', but no earlier step writes it\n"
        "  add a step that writes 'user' before 'checkout'; these steps can: load_user"
    )


def test_a_before_chain_does_not_see_what_the_flow_takes() -> None:
    flow = Flow("checkout", [audit, finish], takes=[User])
    assert "step 'audit' reads slot 'user', but no earlier step writes it" in refused(served(flow, audit).check)
    served(flow, load_user, audit).check()


def test_a_before_chain_may_write_what_nobody_reads_but_not_twice() -> None:
    served(Flow("checkout", [finish]), load_user).check()
    twice = served(Flow("checkout", [load_user, audit, finish]), load_user)
    assert "slot 'user' is written by 'load_user' and by 'load_user'" in refused(twice.check)


def test_a_before_chain_that_always_ends_the_run_serves_nothing() -> None:
    assert "stage 'log' can never run: 'finish' before it" in refused(served(Flow("f", [log]), finish).check)


def test_routes_that_no_request_can_tell_apart() -> None:
    app = App()
    app.route("GET", "/orders/{id}", Flow("a", [finish]))
    app.route("GET", "/orders/{name}", Flow("b", [finish]))
    assert refused(app.check) == ("route GET /orders/{name} is the same path as GET /orders/{id}\n  remove one of them")


# ---- random flows ---------------------------------------------------------------------------

MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def _steps(stages: tuple[DrawStage, ...]) -> list[DrawStep]:
    found: list[DrawStep] = []
    for stage in stages:
        match stage:
            case DrawStep():
                found.append(stage)
            case DrawBranch():
                found += _steps((*stage.then, *stage.otherwise))
            case DrawParallel() | DrawDag():
                found += _steps(stage.members)
            case DrawFlow():
                found += _steps(stage.stages)
            case DrawPivot():
                found += _steps((stage.stage,))
    return found


def _changed(stages: tuple[DrawStage, ...], old: DrawStep, new: DrawStage) -> tuple[DrawStage, ...]:
    """The same stages with one step, found by identity, in another's place."""

    def change(stage: DrawStage) -> DrawStage:
        if stage is old:
            return new
        match stage:
            case DrawBranch():
                then, otherwise = _changed(stage.then, old, new), _changed(stage.otherwise, old, new)
                return attrs.evolve(stage, then=then, otherwise=otherwise)
            case DrawParallel() | DrawDag():
                return attrs.evolve(stage, members=_changed(stage.members, old, new))
            case DrawFlow():
                return attrs.evolve(stage, stages=_changed(stage.stages, old, new))
            case DrawPivot():
                return attrs.evolve(stage, stage=change(stage.stage))
        return stage

    return tuple(change(stage) for stage in stages)


@MANY
@given(flows())
def test_every_valid_flow_passes(flow: DrawFlow) -> None:
    flow.build()


@MANY
@given(flows(), st.data())
def test_every_single_break_is_found(flow: DrawFlow, data: st.DataObject) -> None:
    steps = _steps(flow.stages)
    assume(steps)
    at = data.draw(st.sampled_from(steps))
    writers = [s for s in steps if s.writes]
    match data.draw(st.sampled_from(["read", "twice", "dead", "unwrite", "end"])):
        case "read":  # a slot that nothing writes
            new: DrawStage = attrs.evolve(at, reads=(*at.reads, "nowhere"))
        case "dead":  # a slot that nothing reads
            new = attrs.evolve(at, writes=(*at.writes, "unread"))
        case "twice":  # a second writer: the caller, or the step itself behind the whole flow
            assume(flow.takes or writers)
            slot = data.draw(st.sampled_from([*flow.takes, *(slot for s in writers for slot in s.writes)]))
            again = DrawStep("again", (), (), (slot,))
            broken = attrs.evolve(flow, stages=(*flow.stages, again))
            refused(broken.build)
            return
        case "unwrite":  # the only writer of a slot that is given or read
            assume(at.writes)
            new = attrs.evolve(at, writes=())
        case _:  # a stage behind the end
            refused(lambda: Flow("f", [*[s.build() for s in flow.stages], finish, log], takes=[], gives=[]))
            return
    refused(attrs.evolve(flow, stages=_changed(flow.stages, at, new)).build)


@given(st.permutations(range(6)), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
def test_a_dag_is_ordered_or_refused(order: list[int], pairs: list[tuple[int, int]]) -> None:
    members = [step(name=f"m{i}")(_nothing()) for i in range(6)]
    after: dict[Any, list[Any]] = {}
    for later, earlier in pairs:
        after.setdefault(members[later], []).append(members[earlier])
    stage = dag(*[members[i] for i in order], after=after)
    forward = {(later, earlier) for later, earlier in pairs}
    while True:  # the transitive closure, by brute force
        more = {(a, d) for a, b in forward for c, d in forward if b == c} - forward
        if not more:
            break
        forward |= more
    if any(a == b for a, b in forward):
        assert "the dag has a cycle" in refused(lambda: dag_order("f", stage))
        return
    found = dag_order("f", stage)
    for later, earlier in pairs:
        assert found.index(members[earlier]) < found.index(members[later])


def _nothing() -> Any:
    def nothing() -> None: ...

    return nothing
