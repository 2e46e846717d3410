"""What the tests of the core share: random flows that must check.

A flow is drawn as a small value (the `Draw*` classes) and built from it, so that a failing example prints as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import attrs
from hypothesis import strategies as st

from zerver import (
    Continue,
    Deadline,
    Done,
    Effect,
    Fail,
    Flow,
    Insert,
    Need,
    Pause,
    Replace,
    Slot,
    branch,
    dag,
    parallel,
    pivot,
)
from zerver import join as joins
from zerver.core.effects import EffectKind
from zerver.core.plan import UNWRITTEN
from zerver.core.stages import Stage
from zerver.core.steps import Step
from zerver.errors import EffectError

# ---- effects: data only, the pump performs them ---------------------------------------------

READ: EffectKind[..., str] = EffectKind("test.read", "read", target="test")
WRITE: EffectKind[..., str] = EffectKind("test.write", "write", takes_key=True, target="test")
UNDO: EffectKind[..., None] = EffectKind("test.undo", "write", takes_key=True, target="test")
ASK: EffectKind[..., str | None] = EffectKind("test.ask", "read", target="test")


@attrs.frozen
class DrawEffect:
    """One effect. how: which of undo, by_key and resolve its compensation has. form: what the step is given."""

    access: str = "write"
    how: frozenset[str] = frozenset()
    form: str = "value"

    def build(self) -> Effect[Any]:
        effect: Effect[Any] = WRITE() if self.access == "write" else READ()
        if self.how:
            effect = effect.compensate(
                UNDO if "undo" in self.how else None,
                by_key=UNDO if "by_key" in self.how else None,
                resolve=ASK if "resolve" in self.how else None,
            )
        return _formed(effect, self.form)


@attrs.frozen
class DrawJoin:
    """Several effects as one."""

    rule: str
    members: tuple[DrawEffect | DrawJoin, ...]
    k: int = 1
    form: str = "value"

    def build(self) -> Effect[Any]:
        members = [member.build() for member in self.members]
        if self.rule == "quorum":
            return _formed(joins.quorum(self.k, *members), self.form)
        if self.rule == "hedge":
            return joins.hedge(members[0], after=1.0, limit=3)
        return _formed(getattr(joins, self.rule)(*members), self.form)


def _formed(effect: Effect[Any], form: str) -> Effect[Any]:
    return effect if form == "value" else effect.optional() if form == "optional" else effect.outcome()


FORMS = st.sampled_from(["value", "value", "value", "optional", "outcome"])
HOWS = st.frozensets(st.sampled_from(["undo", "by_key", "resolve"]), min_size=1)
EFFECTS = st.one_of(
    st.builds(DrawEffect, access=st.just("read"), form=FORMS),
    st.builds(DrawEffect, how=HOWS, form=FORMS),
    st.builds(DrawEffect, how=st.just(frozenset({"undo"}))),
)


def _joins(members: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(members, min_size=1, max_size=3).map(tuple)
    plain = st.builds(DrawJoin, rule=st.sampled_from(["all", "settle", "race"]), members=several, form=FORMS)
    quorum = several.flatmap(
        lambda m: st.builds(DrawJoin, rule=st.just("quorum"), members=st.just(m), k=st.integers(1, len(m)), form=FORMS)
    )
    hedge = st.builds(DrawJoin, rule=st.just("hedge"), members=EFFECTS.map(lambda e: (e,)))
    return st.one_of(plain, quorum, hedge)


ASKED = st.one_of(EFFECTS, EFFECTS, _joins(st.one_of(EFFECTS, EFFECTS, _joins(EFFECTS))))

# ---- stages ---------------------------------------------------------------------------------

ANSWERS = ("value", "continue", "done", "fail", "defect", "none", "pause", "pause_resume", "need", "insert", "replace")


@attrs.frozen
class DrawStep:
    """One step. asks: (effect, whether its failure is caught). answer: one of ANSWERS. more: stages it inserts."""

    name: str
    reads: tuple[str, ...]
    maybes: tuple[str, ...]
    writes: tuple[str, ...]
    asks: tuple[tuple[DrawEffect | DrawJoin, bool], ...] = ()
    answer: str = "value"
    clocked: bool = False
    more: tuple[DrawStage, ...] = ()

    def build(self) -> Step[..., Any]:
        step = Step(_function(self), self.name, ())
        step._mentions = ()  # reading the source of this file for each drawn step would take most of the test's time
        return step


@attrs.frozen
class DrawBranch:
    answer: bool
    reads: tuple[str, ...]
    then: tuple[DrawStage, ...]
    otherwise: tuple[DrawStage, ...]

    def build(self) -> Stage:
        def predicate(*_: object) -> bool:
            return self.answer

        _sign(predicate, [(f"r{i}", cell(slot)) for i, slot in enumerate(self.reads)], bool)
        return branch(predicate, build_all(self.then), build_all(self.otherwise))


@attrs.frozen
class DrawParallel:
    members: tuple[DrawStage, ...]

    def build(self) -> Stage:
        return parallel(*build_all(self.members))


@attrs.frozen
class DrawDag:
    members: tuple[DrawStage, ...]

    def build(self) -> Stage:
        return dag(*build_all(self.members))


@attrs.frozen
class DrawFlow:
    name: str
    stages: tuple[DrawStage, ...]
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    deadline: float | None = None

    def build(self) -> Flow:
        return Flow(
            self.name,
            build_all(self.stages),
            takes=[cell(slot) for slot in self.takes],
            gives=[cell(slot) for slot in self.gives],
            deadline=self.deadline,
        )


@attrs.frozen
class DrawPivot:
    stage: DrawStage

    def build(self) -> Stage:
        return pivot(self.stage.build())


DrawStage: TypeAlias = DrawStep | DrawBranch | DrawParallel | DrawDag | DrawFlow | DrawPivot


def build_all(stages: Sequence[DrawStage]) -> list[Stage]:
    return [stage.build() for stage in stages]


def cell(slot: str) -> Any:
    """The alias of a slot."""
    return Annotated[str, Slot(slot)]


class ReadTooEarly(BaseException):
    """No Exception, so that the machine does not take it for a defect of the step."""


def _sign(function: Callable[..., Any], parameters: Sequence[tuple[str, Any]], returns: Any) -> None:
    """Give a function of *args the signature that was drawn."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shape = inspect.Signature([inspect.Parameter(name, kind, annotation=hint) for name, hint in parameters])
    function.__signature__ = shape  # type: ignore[attr-defined]  # where inspect looks first
    function.__annotations__ = {**dict(parameters), "return": returns}


def _function(drawn: DrawStep) -> Callable[..., Any]:
    """A pure function that does what was drawn: the same each time, whatever it is given."""

    def value(seen: object) -> object:
        if not drawn.writes:
            return None
        texts = tuple(f"{drawn.name} wrote {slot} of {seen!r}" for slot in drawn.writes)
        return texts if len(texts) > 1 else texts[0]

    def answer(seen: object) -> object:
        made = value(seen)
        match drawn.answer:
            case "continue":
                return Continue(made)
            case "done":
                return Done(seen)
            case "fail":
                return Fail.conflict(drawn.name)
            case "defect":
                raise LookupError(drawn.name)
            case "none":
                return None if drawn.writes else "something"
            case "pause":  # what the signal brings is what the step writes
                return Pause(f"signal of {drawn.name}", 5.0, expired=Continue(made))
            case "pause_resume":
                return Pause(f"signal of {drawn.name}", 5.0, resume=value)
            case "need":
                return Need(DrawEffect(how=frozenset({"undo"})).build(), value)
            case "insert":
                return Insert(build_all(drawn.more), made)
            case "replace":
                return Replace(build_all(drawn.more), made)
            case _:
                return made

    def check(args: Sequence[object]) -> None:
        unread = [arg for arg in args[: len(drawn.reads)] if not isinstance(arg, str)]
        if unread or UNWRITTEN in args:
            raise ReadTooEarly(f"{drawn.name} was given {args}")

    async def waiting(*args: object) -> object:
        check(args)
        seen: list[object] = [arg.remaining for arg in args if isinstance(arg, Deadline)]
        for ask, caught in drawn.asks:
            try:
                seen.append(await ask.build())
            except EffectError as error:
                if not caught:
                    raise
                seen.append(error.reason)
        return answer(seen)

    def plain(*args: object) -> object:
        check(args)
        # A value that depends on the time shows whether a replay gives the same time.
        return answer([arg.remaining for arg in args if isinstance(arg, Deadline)])

    function = waiting if drawn.asks else plain
    reads = [(f"r{i}", cell(slot)) for i, slot in enumerate(drawn.reads)]
    reads += [(f"m{i}", cell(slot) | None) for i, slot in enumerate(drawn.maybes)]
    if drawn.clocked:
        reads.append(("left", Deadline))
    written = [cell(slot) for slot in drawn.writes]
    value_type: Any = None if not written else written[0] if len(written) == 1 else tuple[tuple(written)]  # type: ignore[misc]  # made at run time
    _sign(function, reads, value_type | Done | Fail if value_type is not None else Done | Fail | None)
    return function


# ---- random flows that must check -----------------------------------------------------------


class _Author:
    """Draws stages that fit together: it knows which slots are written, on every path or on some."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], answers: Sequence[str]) -> None:
        self.draw = draw
        self.answers = answers
        self.slots = self.steps = 0

    def slot(self) -> str:
        self.slots += 1
        return f"s{self.slots}"

    def line(self, sure: set[str], maybe: set[str], depth: int, at_most: int = 3) -> tuple[DrawStage, ...]:
        """Stages in sequence; adds what they write to `sure` and `maybe`."""
        return tuple(self.stage(sure, maybe, depth) for _ in range(self.draw(st.integers(1, at_most))))

    def stage(self, sure: set[str], maybe: set[str], depth: int) -> DrawStage:
        shapes = ["step", "step"] + (["parallel", "branch", "dag", "flow", "pivot"] if depth else [])
        shape = self.draw(st.sampled_from(shapes))
        return getattr(self, f"draw_{shape}")(sure, maybe, depth)  # type: ignore[no-any-return]  # one of the methods below

    def some(self, slots: set[str], at_most: int = 3) -> tuple[str, ...]:
        if not slots:
            return ()
        return tuple(self.draw(st.lists(st.sampled_from(sorted(slots)), unique=True, max_size=at_most)))

    def draw_step(self, sure: set[str], maybe: set[str], depth: int) -> DrawStep:
        answer = self.draw(st.sampled_from(self.answers))
        writes = tuple(self.slot() for _ in range(self.draw(st.integers(0, 2))))
        if answer.startswith("pause") and len(writes) > 1:
            writes = writes[:1]
        asks = self.draw(st.lists(st.tuples(ASKED, st.booleans()), max_size=3).map(tuple))
        self.steps += 1
        step = DrawStep(
            name=f"step{self.steps}" if answer.startswith("pause") else f"step{self.steps % 3}",
            reads=self.some(sure),
            maybes=self.some(maybe),
            writes=writes,
            asks=asks,
            answer=answer,
            clocked=not answer.startswith("pause") and self.draw(st.booleans()),
        )
        if answer in ("insert", "replace"):  # what is inserted may read what is surely written by then
            step = attrs.evolve(step, more=self.line({*sure, *writes}, set(), min(depth, 1), 2))
        sure |= set(writes)
        return step

    def draw_parallel(self, sure: set[str], maybe: set[str], depth: int) -> DrawParallel:
        before, perhaps, members = set(sure), set(maybe), []
        for _ in range(self.draw(st.integers(2, 3))):
            inside, unsure = set(before), set(perhaps)
            members.append(self.stage(inside, unsure, depth - 1))
            sure |= inside
            maybe |= unsure
        return DrawParallel(tuple(members))

    def draw_dag(self, sure: set[str], maybe: set[str], depth: int) -> DrawDag:
        members = [self.stage(sure, maybe, depth - 1) for _ in range(self.draw(st.integers(1, 4)))]
        return DrawDag(tuple(self.draw(st.permutations(members))))

    def draw_branch(self, sure: set[str], maybe: set[str], depth: int) -> DrawBranch:
        reads, ways, surely, perhaps = self.some(sure, 1), [], [], set(maybe)
        for _ in range(2):
            inside, unsure = set(sure), set(maybe)
            ways.append(self.line(inside, unsure, depth - 1, 2) if self.draw(st.booleans()) else ())
            surely.append(inside)
            perhaps |= inside | unsure
        sure |= surely[0] & surely[1]
        maybe |= perhaps - sure
        return DrawBranch(self.draw(st.booleans()), reads, *ways)

    def draw_flow(self, sure: set[str], maybe: set[str], depth: int) -> DrawFlow:
        takes = self.some(sure)
        inside, unsure = set(takes), set[str]()
        stages = self.line(inside, unsure, depth - 1, 2)
        written = inside - set(takes)
        deadline = self.draw(st.sampled_from([None, None, 1e-6]))
        sure |= written
        maybe |= unsure
        return DrawFlow(
            f"inner{self.draw(st.integers(0, 99))}", stages, takes, tuple(sorted(written | unsure)), deadline
        )

    def draw_pivot(self, sure: set[str], maybe: set[str], depth: int) -> DrawPivot:
        return DrawPivot(self.stage(sure, maybe, depth - 1))


@st.composite
def flows(draw: Any, answers: Sequence[str] = ("value", "value", "value", "value", "continue", *ANSWERS)) -> DrawFlow:
    """A flow that must check, as a value."""
    author = _Author(draw, answers)
    takes = tuple(author.slot() for _ in range(draw(st.integers(0, 2))))
    sure, maybe = set(takes), set[str]()
    stages = author.line(sure, maybe, 2, 4)
    if draw(st.booleans()):  # a rollback of all that went well
        stages = (*stages, DrawStep("refuse", (), (), (), (), "fail"))
    return DrawFlow("drawn", stages, takes, tuple(sorted((sure | maybe) - set(takes))))
