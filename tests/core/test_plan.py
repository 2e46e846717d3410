"""Plans: one cell per slot and per distinct part, names that are all different, calls that pass what was asked for."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.strategies import DrawFlow, flows
from zerver import Flow, Part, Slot, step
from zerver.core.plan import UNWRITTEN, compile_call, compile_plan
from zerver.core.replan import steps_in


@attrs.frozen
class Query(Part):
    source: ClassVar[str] = "query"


Secret = Annotated[str, Slot("token", secret=True)]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(flows())
def test_cells_and_names_are_all_different(flow: DrawFlow) -> None:
    plan = compile_plan(flow.build())
    cells = [*plan.slots.values(), *plan.part_cells]
    assert len(set(cells)) == len(cells)
    assert all(0 < cell < plan.size for cell in cells)
    names = [node.name for node in steps_in(plan.line)]
    assert len(set(names)) == len(names)


def test_parts_that_are_the_same_share_a_cell() -> None:
    @step
    def one(page: Annotated[int, Query()], name: Annotated[str, Query("page")]) -> None: ...

    @step
    def two(*, page: Annotated[int, Query()], other: Annotated[int, Query()] = 3) -> None: ...

    plan = compile_plan(Flow("f", [one, two]))
    assert [(read.name, read.type, read.required) for read in plan.parts] == [
        ("page", int, True),
        ("page", str, True),
        ("other", int, False),
    ]


def test_secrets_are_known() -> None:
    @step
    def write() -> Secret:
        return "x"

    assert compile_plan(Flow("f", [write], gives=[Secret])).secret == {"token"}


def test_a_before_chain_brings_what_the_flow_takes() -> None:
    @step
    def write() -> Secret:
        return "x"

    @step
    def read(token: Secret) -> None: ...

    flow = Flow("f", [read], takes=[Secret])
    assert [slot.name for slot in compile_plan(flow).takes] == ["token"]
    assert compile_plan(flow, [write]).takes == ()


@given(st.integers(0, 6), st.integers(0, 3), st.booleans(), st.randoms())
def test_a_compiled_call_passes_each_value_to_its_parameter(plain: int, keyed: int, perhaps: bool, random: Any) -> None:
    names = [f"p{i}" for i in range(plain)] + [f"k{i}" for i in range(keyed)]
    space: dict[str, Any] = {}
    star = ["*"] if keyed else []
    parameters = ", ".join([*names[:plain], *star, *names[plain:]])
    exec(f"def made({parameters}): return [{', '.join(names)}]", space)
    cells = random.sample(range(20), len(names))
    values: list[Any] = list(range(20))
    assert compile_call(space["made"], cells, perhaps)(values) == cells
    if cells and perhaps:
        values[cells[0]] = UNWRITTEN
        assert compile_call(space["made"], cells, True)(values) == [None, *cells[1:]]


def test_what_an_unwritten_cell_holds_says_so() -> None:
    assert repr(UNWRITTEN) == "UNWRITTEN"


@pytest.mark.parametrize("deadline", [None, 2.0])
def test_a_nested_flow_costs_nothing_but_its_deadline(deadline: float | None) -> None:
    @step
    def log() -> None: ...

    (node,) = compile_plan(Flow("outer", [Flow("inner", [log], deadline=deadline)])).line
    assert type(node).__name__ == ("StepNode" if deadline is None else "BlockNode")
