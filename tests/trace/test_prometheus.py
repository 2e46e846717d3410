"""The text says what the snapshot says, to a parser that knows nothing of us, whatever labels hold."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trace.test_metrics import ended
from zerver.trace.telemetry.instruments import (
    INSTRUMENTS,
    Distribution,
    Exemplar,
    Family,
    Instrument,
    MetricsSnapshot,
    Number,
)
from zerver.trace.telemetry.metrics import Metrics
from zerver.trace.telemetry.prometheus import OPENMETRICS, PLAIN, metric_name, negotiate, prometheus

# ---- a parser of its own, after the grammars ------------------------------------------------

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,?)')
_NUMBER = re.compile(r"[+-]?(?:Inf|NaN|[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)")
_ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


@attrs.frozen
class Sample:
    name: str
    labels: tuple[tuple[str, str], ...]
    value: float
    exemplar: tuple[tuple[tuple[str, str], ...], float, float] | None = None


@attrs.frozen
class Parsed:
    types: dict[str, str]
    units: dict[str, str]
    helps: dict[str, str]
    samples: list[Sample]


def parse(text: str, openmetrics: bool) -> Parsed:
    """Strict: raises for whatever the grammar does not have."""
    assert text.endswith("\n") or not text
    lines = text.split("\n")[:-1]
    if openmetrics:
        assert lines.pop() == "# EOF"
    parsed = Parsed({}, {}, {}, [])
    family = ""
    for line in lines:
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            table = {"TYPE": parsed.types, "UNIT": parsed.units, "HELP": parsed.helps}[word]
            assert _NAME.fullmatch(name)
            assert name not in table
            table[name] = rest
            family = name
        else:
            sample = _sample(line, openmetrics)
            assert sample.name.startswith(family)
            assert parsed.types[family]
            parsed.samples.append(sample)
    assert len({(one.name, one.labels) for one in parsed.samples}) == len(parsed.samples)
    return parsed


def _sample(line: str, openmetrics: bool) -> Sample:
    name = _NAME.match(line)
    assert name
    labels, at = _labels(line, name.end())
    value, at = _value(line, at)
    if at == len(line):
        return Sample(name[0], labels, value)
    assert openmetrics
    assert line.startswith(" # ", at)
    of, at = _labels(line, at + 3)
    assert sum(len(key) + len(text) for key, text in of) <= 128
    seen, at = _value(line, at)
    when, at = _value(line, at)
    assert at == len(line)
    return Sample(name[0], labels, value, (of, seen, when))


def _labels(line: str, at: int) -> tuple[tuple[tuple[str, str], ...], int]:
    found: list[tuple[str, str]] = []
    if line[at] != "{":
        return (), at
    at += 1
    while line[at] != "}":
        label = _LABEL.match(line, at)
        assert label, line[at:]
        found.append((label[1], re.sub(r'\\["\\n]', lambda escape: _ESCAPES[escape[0]], label[2])))
        at = label.end()
        assert label[3] or line[at] == "}"
    assert len(dict(found)) == len(found)
    return tuple(found), at + 1


def _value(line: str, at: int) -> tuple[float, int]:
    assert line[at] == " "
    number = _NUMBER.match(line, at + 1)
    assert number
    return float(number[0]), number.end()


# ---- any snapshot ---------------------------------------------------------------------------

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["\\", '"', "\n", "\\n", '"} 1\n# EOF', "a\r\nb", "\x00\x1b[2J", "‹x›", ""]
)
_VALUES = st.floats(allow_nan=False) | st.integers(0, 1 << 40).map(float)


@st.composite
def families(draw: Any) -> Family:
    kind = draw(st.sampled_from(["counter", "gauge", "histogram"]))
    instrument: Instrument = draw(st.sampled_from([one for one in INSTRUMENTS.values() if one.kind == kind]))
    keys = draw(st.lists(st.tuples(*(_TEXT for _ in instrument.labels)), max_size=4, unique=True))
    if kind != "histogram":
        return Family(instrument, tuple(Number(key, draw(_VALUES)) for key in keys))
    return Family(instrument, tuple(draw(distributions(key, len(instrument.bounds) + 1)) for key in keys))


@st.composite
def distributions(draw: Any, labels: tuple[str, ...], buckets: int) -> Distribution:
    counts = draw(st.lists(st.integers(0, 1000), min_size=buckets, max_size=buckets))
    one = st.none() | st.builds(
        Exemplar,
        st.floats(0, 1e9),
        st.integers(0, 1 << 62),
        st.text("abc0", min_size=1, max_size=60),
        st.sampled_from(["", "1" * 32]),
        st.sampled_from(["", "2" * 16]),
    )
    exemplars = draw(st.lists(one, min_size=buckets, max_size=buckets))
    return Distribution(labels, tuple(counts), draw(st.floats(0, 1e9)), tuple(exemplars))


snapshots = st.lists(families(), max_size=4, unique_by=lambda family: family.instrument.name).map(
    lambda found: MetricsSnapshot(1_700_000_000_000_000_000, 1_700_000_001_000_000_000, tuple(found))
)


def expected(snapshot: MetricsSnapshot) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float]]:
    """What the samples must say, apart from `_created`."""
    for family in snapshot.families:
        name = metric_name(family.instrument)
        names = [label.replace(".", "_") for label in family.instrument.labels]
        for point in family.points:
            labels = tuple((key, value) for key, value in zip(names, point.labels, strict=True) if value)
            if isinstance(point, Number):
                yield name + ("_total" if family.instrument.kind == "counter" else ""), labels, point.value
                continue
            for index, bound in enumerate((*family.instrument.bounds, math.inf)):
                le = ("le", "+Inf" if bound == math.inf else repr(bound))
                yield f"{name}_bucket", (*labels, le), sum(point.counts[: index + 1])
            yield f"{name}_count", labels, sum(point.counts)
            yield f"{name}_sum", labels, point.sum


@given(snapshots, st.booleans())
def test_a_parser_reads_what_the_snapshot_says(snapshot: MetricsSnapshot, openmetrics: bool) -> None:
    parsed = parse(prometheus(snapshot, openmetrics=openmetrics).decode(), openmetrics)
    told = [(one.name, one.labels, one.value) for one in parsed.samples if not one.name.endswith("_created")]
    assert told == list(expected(snapshot))
    for family in snapshot.families:
        name = metric_name(family.instrument)
        titled = name if openmetrics or family.instrument.kind != "counter" else f"{name}_total"
        assert parsed.types[titled] == family.instrument.kind
        if openmetrics and family.instrument.unit == "s":
            assert parsed.units[titled] == "seconds"
            assert titled.endswith("_seconds")


@given(snapshots)
def test_exemplars_are_for_openmetrics_alone(snapshot: MetricsSnapshot) -> None:
    plain = parse(prometheus(snapshot).decode(), False)
    assert all(one.exemplar is None for one in plain.samples)
    given_ = [
        (dict(one.exemplar[0]).get("trace_id", ""), one.exemplar[1])
        for one in parse(prometheus(snapshot, openmetrics=True).decode(), True).samples
        if one.exemplar
    ]
    points = [point for family in snapshot.families for point in family.points]
    known = [one for point in points if isinstance(point, Distribution) for one in point.exemplars if one is not None]
    assert given_ == [(one.trace_id, one.value) for one in known]


@given(snapshots)
def test_an_installed_parser_agrees(snapshot: MetricsSnapshot) -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    names = {family.name for family in parser.text_string_to_metric_families(
        prometheus(snapshot, openmetrics=True).decode())}  # fmt: skip
    assert names == {metric_name(family.instrument) for family in snapshot.families}


# ---- examples -------------------------------------------------------------------------------


def test_the_text_of_a_run() -> None:
    metrics = Metrics(clock=lambda: 1_700_000_000_123_000_000)
    metrics.take([ended(run_id="req_" + "0" * 23 + "a", parent=f"00-{'1' * 32}-{'2' * 16}-01")])
    text = prometheus(metrics.snapshot(), openmetrics=True).decode()
    lines = text.splitlines()
    assert lines[:3] == [
        f"# HELP http_server_request_duration_seconds {INSTRUMENTS['http.server.request.duration'].help}",
        "# TYPE http_server_request_duration_seconds histogram",
        "# UNIT http_server_request_duration_seconds seconds",
    ]
    route = 'http_request_method="GET",http_route="/orders/{id}",http_response_status_code="200"'
    bucket = next(line for line in lines if line.startswith("http_server") and 'le="0.025"' in line)
    assert bucket.startswith(f'http_server_request_duration_seconds_bucket{{{route},le="0.025"}} 1 # {{trace_id="1111')
    assert bucket.endswith(' 0.02 1700000000.123')  # fmt: skip
    assert 'zerver_runs_total{zerver_route="GET /orders/{id}",zerver_class="default",zerver_status="done"} 1.0' in lines
    assert "# TYPE zerver_runs counter" in lines
    assert "# TYPE zerver_runs_total counter" in prometheus(metrics.snapshot()).decode().splitlines()
    assert lines[-1] == "# EOF"


def test_no_two_metrics_have_one_name() -> None:
    names = [metric_name(instrument) for instrument in INSTRUMENTS.values()]
    assert len(names) == len(set(names))
    assert all(_NAME.fullmatch(name) and not name.endswith(("_total", "_count", "_sum", "_bucket")) for name in names)


def test_nothing_is_an_empty_text() -> None:
    nothing = MetricsSnapshot(0, 0, ())
    assert prometheus(nothing) == b""
    assert prometheus(nothing, openmetrics=True) == b"# EOF\n"


def test_half_a_character_does_not_fail_the_scrape() -> None:
    family = Family(INSTRUMENTS["zerver.tenant.runs"], (Number(("\ud800", "done"), 1.0),))
    assert b"\\\\ud800" in prometheus(MetricsSnapshot(0, 0, (family,)))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, PLAIN),
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/plain", PLAIN),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3", OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", OPENMETRICS),
        ("application/openmetrics-text;version=2.0.0", PLAIN),
        ("application/openmetrics-text;q=0", PLAIN),
        ("text/plain;q=0.5, Application/OpenMetrics-Text ; Version=1.0.0", OPENMETRICS),
        (";;;,,,", PLAIN),
    ],
)
def test_who_asks_for_openmetrics_gets_it(accept: str | None, kind: str) -> None:
    assert negotiate(accept) == kind
