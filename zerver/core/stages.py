"""Stages: how steps are put together. A stage is a step, a `parallel`, a `branch`, a `dag`, a `pivot`, or a flow.

Law: a stage is shape only. It says what may follow what; the checker says whether that makes sense, the plan how it is
run, and the machine runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from zerver.core.signatures import Signature, read_predicate
from zerver.core.slots import Slot
from zerver.core.steps import Step
from zerver.errors import DefinitionError


class Block:
    """A named sequence of stages: what a flow is to the checker, the plan and the graph."""

    __slots__ = ("deadline", "gives", "name", "stages", "takes")

    def __init__(
        self,
        name: str,
        stages: Sequence[Stage],
        takes: Sequence[tuple[Slot, Any]] = (),
        gives: Sequence[tuple[Slot, Any]] = (),
        deadline: float | None = None,
    ) -> None:
        self.name = name
        self.stages = tuple(stages)
        self.takes = tuple(takes)
        self.gives = tuple(gives)
        self.deadline = deadline


class Parallel:
    """Members that run at once; it ends when all have ended. Made by `parallel`."""

    __slots__ = ("members",)

    def __init__(self, members: tuple[Stage, ...]) -> None:
        self.members = members

    @property
    def name(self) -> str:
        return f"parallel({', '.join(member.name for member in self.members)})"


class Dag:
    """Members that run as soon as what they read is written. Made by `dag`."""

    __slots__ = ("after", "members")

    def __init__(self, members: tuple[Stage, ...], after: Mapping[Stage, tuple[Stage, ...]]) -> None:
        self.members = members
        self.after = after

    @property
    def name(self) -> str:
        return f"dag({', '.join(member.name for member in self.members)})"


class Branch:
    """One of two ways, chosen by a pure predicate. Made by `branch`."""

    __slots__ = ("otherwise", "predicate", "signature", "then")

    def __init__(self, predicate: Callable[..., bool], then: tuple[Stage, ...], otherwise: tuple[Stage, ...]) -> None:
        self.predicate = predicate
        self.signature: Signature = read_predicate(f"predicate {predicate.__name__!r}", predicate)
        self.then = then
        self.otherwise = otherwise

    @property
    def name(self) -> str:
        return f"branch({self.predicate.__name__})"


class Pivot:
    """A stage after which there is no way back, only forward. Made by `pivot`."""

    __slots__ = ("stage",)

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @property
    def name(self) -> str:
        return f"pivot({self.stage.name})"


Stage: TypeAlias = Step[..., Any] | Parallel | Dag | Branch | Pivot | Block
StageOrStages: TypeAlias = Stage | Sequence[Stage]


def as_stages(where: str, stages: StageOrStages) -> tuple[Stage, ...]:
    """A stage or a sequence of them as a tuple, with a clear error for what is neither."""
    listed: tuple[Any, ...] = tuple(stages) if isinstance(stages, Sequence) else (stages,)
    for stage in listed:
        if not isinstance(stage, Step | Parallel | Dag | Branch | Pivot | Block):
            name = getattr(stage, "__name__", None) or repr(stage)
            raise DefinitionError(
                f"{where}: {name} is not a stage",
                f"put @step on {name}"
                if callable(stage)
                else "a stage is a step, parallel, branch, dag, pivot or flow",
            )
    return listed


def parallel(*members: Stage) -> Parallel:
    """Run the members at once. When one fails the others are cancelled, and the run is rolled back."""
    if len(members) < 2:
        raise DefinitionError(
            f"parallel was given {len(members)} stages", "give it two or more, or name the stage alone"
        )
    return Parallel(as_stages("parallel", members))


def dag(*members: Stage, after: Mapping[Stage, Stage | Iterable[Stage]] | None = None) -> Dag:
    """Run each member as soon as the slots it reads are written: the edges come from the signatures.

    after: further edges, `{later: earlier}` or `{later: [earlier, ...]}`, for order that no slot shows.
    """
    if not members:
        raise DefinitionError("dag was given no stages", "give it one or more")
    listed = as_stages("dag", members)
    if len(set(map(id, listed))) != len(listed):
        raise DefinitionError("dag was given the same stage twice", "name each member once")
    edges: dict[Stage, tuple[Stage, ...]] = {}
    for later, earlier in (after or {}).items():
        befores = tuple(earlier) if isinstance(earlier, Iterable) else (earlier,)
        for stage in (later, *befores):
            if not any(stage is member for member in listed):
                raise DefinitionError(
                    f"dag: after= names {getattr(stage, 'name', stage)!r}, which is not a member",
                    "add it to the dag",
                )
        edges[later] = befores
    return Dag(listed, edges)


def branch(predicate: Callable[..., bool], then: StageOrStages, otherwise: StageOrStages = ()) -> Branch:
    """Go one way if the predicate holds, the other way if not. The predicate reads slots as a step does."""
    return Branch(predicate, as_stages("branch", then), as_stages("branch", otherwise))


def pivot(stage: Stage) -> Pivot:
    """Mark the point of no return: once the stage is done, nothing committed so far is undone any more."""
    return Pivot(as_stages("pivot", stage)[0])
