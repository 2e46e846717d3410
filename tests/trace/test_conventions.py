"""docs/reference/conventions.md tells every record, span, event, attribute and metric under the names that are sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from zerver.core import timeline as t
from zerver.trace.bars import Kind
from zerver.trace.telemetry.conventions import ATTRIBUTES, EVENTS, RECORDS, SPANS
from zerver.trace.telemetry.instruments import INSTRUMENTS

PAGE = (Path(__file__).parent.parent.parent / "docs" / "reference" / "conventions.md").read_text(encoding="utf-8")


def tables() -> dict[str, list[tuple[str, ...]]]:
    """By section, the rows that the page must have."""
    return {
        "Records": [(f"`{kind}`", told) for kind, told in RECORDS.items()],
        "Spans": [(f"`{kind}`", f"`{span.name}`", span.kind, span.of) for kind, span in SPANS.items()],
        "Events": [(f"`{event.name}`", event.of, _names(event.attributes.values())) for event in EVENTS.values()],
        "Attributes": [(f"`{a.name}`", a.type, a.on, a.of) for a in ATTRIBUTES],
        "Metrics": [(f"`{i.name}`", i.kind, f"`{i.unit}`", i.help, _names(i.labels)) for i in INSTRUMENTS.values()],
    }


def _names(names: object) -> str:
    return ", ".join(f"`{name}`" for name in names)  # type: ignore[attr-defined]  # any iterable of names


def told(section: str) -> Iterator[tuple[str, ...]]:
    """The rows of a section, without its head."""
    found = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    for line in found[1].splitlines():
        if line.startswith("| `"):
            yield tuple(cell.strip() for cell in line.strip("|").split(" | "))


@pytest.mark.parametrize("section", tables())
def test_the_page_says_what_the_code_says(section: str) -> None:
    assert list(told(section)) == [tuple(cell.strip() for cell in row) for row in tables()[section]]


def test_every_record_and_every_span_has_its_convention() -> None:
    kinds = {line.split()[0] for line in re.findall(r"^    ([a-z_]+) {2,}\S.*", str(t.__doc__), re.MULTILINE)}
    assert set(RECORDS) == kinds - {"kind"}
    assert set(SPANS) == set(get_args(Kind))


def test_events_say_nothing_that_is_not_declared() -> None:
    declared = {attribute.name for attribute in ATTRIBUTES}
    assert {name for event in EVENTS.values() for name in event.attributes.values()} <= declared
    assert len(declared) == len(ATTRIBUTES)
