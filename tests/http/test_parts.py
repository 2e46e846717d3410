"""Markers name their piece of the request, and a step's signature carries them unchanged."""

from __future__ import annotations

from typing import Annotated

import pytest

from zerver import Done, Part, step
from zerver.http.messages import Request
from zerver.http.parts import Body, Cookie, Header, Path, Query, WholeRequest


@pytest.mark.parametrize(
    ("marker", "source"),
    [
        (Path, "path"),
        (Query, "query"),
        (Header, "header"),
        (Cookie, "cookie"),
        (Body, "body"),
        (WholeRequest, "request"),
    ],
)
def test_every_marker_is_a_part_with_a_source_of_its_own(marker: type[Part], source: str) -> None:
    assert issubclass(marker, Part)
    assert marker().source == source
    assert marker("x").named("y") == "x"
    assert marker() == marker()
    assert marker() != marker("x")


def test_markers_of_different_sources_are_different_even_when_they_name_the_same() -> None:
    assert len({Path("a"), Query("a"), Header("a"), Cookie("a"), Body("a")}) == 5


def test_a_header_is_called_as_its_parameter_with_dashes() -> None:
    assert Header().named("x_request_id") == "x-request-id"
    assert Header("X_Odd").named("x_odd") == "X_Odd"
    assert Query().named("page_size") == "page_size"


def test_a_signature_reads_parts_as_instances_and_as_classes() -> None:
    @step
    def show(
        id: Annotated[int, Path()],
        x_tenant: Annotated[str, Header],
        session: Annotated[str | None, Cookie()],
        request: Request,
        tags: Annotated[list[str], Query("tag")] = [],  # noqa: B006 - never changed, as no value of a step is
    ) -> Done:
        return Done(None)

    reads = [(read.part.source, read.name, read.required) for read in show.signature.parts]
    assert reads == [
        ("path", "id", True),
        ("header", "x-tenant", True),
        ("cookie", "session", False),
        ("request", "request", True),
        ("query", "tag", False),
    ]
