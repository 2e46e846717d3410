"""Prometheus: a snapshot as the text that Prometheus scrapes, in its own format (0.0.4) or as OpenMetrics 1.0.

Law: pure; bytes that both grammars allow, whatever labels hold: a name of ours has no other characters than theirs, and
a value from outside is escaped. Names are translated as OpenTelemetry says: dots become underscores, the unit is
spelled out behind the name, a counter ends in `_total`. Exemplars are for OpenMetrics alone, as the other format has no
place for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final

from zerver.trace.telemetry.instruments import Distribution, Exemplar, Family, Instrument, MetricsSnapshot

PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_UNITS: Final = {"s": "seconds", "By": "bytes"}
_LABEL: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_HELP: Final = str.maketrans({"\\": "\\\\", "\n": "\\n"})

#: Characters that the labels of an exemplar may have together, names and values.
_EXEMPLAR: Final = 128


def negotiate(accept: str | None) -> str:
    """The content type to answer with. accept: the request's header; Prometheus has asked for OpenMetrics since 2.5.

    Whoever says nothing of it, as curl, gets the plain one.
    """
    for word in (accept or "").split(","):
        kind, *parameters = (part.strip().lower() for part in word.split(";"))
        version = next((one for one in parameters if one.startswith("version=")), "version=1.0.0")
        if kind == "application/openmetrics-text" and version == "version=1.0.0" and not _is_refused(parameters):
            return OPENMETRICS
    return PLAIN


def prometheus(snapshot: MetricsSnapshot, *, openmetrics: bool = False) -> bytes:
    """The text of a snapshot, for the content type OPENMETRICS, or PLAIN."""
    lines = [line for family in snapshot.families for line in _family(family, openmetrics, snapshot.began)]
    if openmetrics:
        lines.append("# EOF")
    return "".join(f"{line}\n" for line in lines).encode()


def metric_name(instrument: Instrument) -> str:
    """`zerver_run_duration_seconds`, without the `_total` of a counter."""
    unit = _UNITS.get(instrument.unit)
    name = instrument.name.replace(".", "_")
    return f"{name}_{unit}" if unit is not None else name


# ---- lines ----------------------------------------------------------------------------------


def _family(family: Family, openmetrics: bool, began: int) -> Iterator[str]:
    instrument = family.instrument
    name = metric_name(instrument)
    total = f"{name}_total" if instrument.kind == "counter" else name
    titled = name if openmetrics else total  # OpenMetrics names the family, the older format its samples
    yield f"# HELP {titled} {_help(instrument.help, openmetrics)}"
    yield f"# TYPE {titled} {instrument.kind}"
    if openmetrics and instrument.unit in _UNITS:
        yield f"# UNIT {titled} {_UNITS[instrument.unit]}"
    names = [label.replace(".", "_").replace("-", "_") for label in instrument.labels]
    for point in family.points:
        labels = [(name, value) for name, value in zip(names, point.labels, strict=True) if value]  # "" is: none
        if isinstance(point, Distribution):
            yield from _buckets(name, labels, instrument.bounds, point, openmetrics)
        else:
            yield f"{total}{_labels(labels)} {_number(point.value)}"
        if openmetrics and instrument.kind != "gauge":
            yield f"{name}_created{_labels(labels)} {_seconds(began)}"


def _buckets(
    name: str, labels: list[tuple[str, str]], bounds: tuple[float, ...], point: Distribution, openmetrics: bool
) -> Iterator[str]:
    below = 0
    for bound, count, exemplar in zip((*bounds, math.inf), point.counts, point.exemplars, strict=True):
        below += count
        said = _exemplar(exemplar) if openmetrics and exemplar is not None else ""
        yield f"{name}_bucket{_labels([*labels, ('le', _number(bound))])} {below}{said}"
    yield f"{name}_count{_labels(labels)} {below}"
    yield f"{name}_sum{_labels(labels)} {_number(point.sum)}"


def _exemplar(exemplar: Exemplar) -> str:
    said = (("trace_id", exemplar.trace_id), ("span_id", exemplar.span_id), ("run_id", exemplar.run_id))
    labels = [(name, value) for name, value in said if value]
    while sum(len(name) + len(value) for name, value in labels) > _EXEMPLAR:
        labels.pop()
    return f" # {_labels(labels) or '{}'} {_number(exemplar.value)} {_seconds(exemplar.at)}"


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    said = ",".join(f'{name}="{_whole(value).translate(_LABEL)}"' for name, value in labels)
    return f"{{{said}}}" if said else ""


def _whole(text: str) -> str:
    """Half a character, which UTF-8 cannot say, is spelled out; and that before the backslash is escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _help(text: str, openmetrics: bool) -> str:
    return text.translate(_LABEL if openmetrics else _HELP)


def _number(value: float) -> str:
    """`0.005`, `1.0`, `+Inf`: as both grammars have it, and as Go prints it in labels."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))


def _seconds(ns: int) -> str:
    return f"{ns // 1_000_000_000}.{ns % 1_000_000_000 // 1_000_000:03}"


def _is_refused(parameters: Iterable[str]) -> bool:
    return any(one in ("q=0", "q=0.0", "q=0.00", "q=0.000") for one in parameters)
