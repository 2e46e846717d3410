"""OpenTelemetry: sends spans and metrics over OTLP/HTTP. The only file that knows its packages.

Law: translates and adds nothing. Spans have ended long before they come here, so there is no tracer, no context and no
processor: the SDK's span is made as it is exported, and the exporter is called directly. It is imported when somebody
exports (`pip install zerver[otel]`), and never by a process that does not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Final, cast

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import Exemplar as OtelExemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from zerver.trace.telemetry.conventions import SCHEMA
from zerver.trace.telemetry.exported import ExportedSpan
from zerver.trace.telemetry.instruments import Distribution, Exemplar, Family, Instrument, MetricsSnapshot, Number

_KINDS: Final = {kind.name: kind for kind in SpanKind}
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE


class OtlpSender:
    """Sends to the collector at `endpoint`, as `http://collector:4318`, where /v1/traces and /v1/metrics are.

    headers: of each request; they may be secrets. timeout: seconds for one batch, all that is tried again included.
    service: `service.name`. What OTEL_RESOURCE_ATTRIBUTES says is sent too, and certificates are as OTEL_… says.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
        service: str = "",
        resource: Mapping[str, str] | None = None,
    ) -> None:
        base = endpoint.rstrip("/").removesuffix("/v1/traces")
        said = {"service.instance.id": f"{os.uname().nodename}:{os.getpid()}", **(resource or {})}
        if service:
            said["service.name"] = service
        self._resource = Resource.create(dict(said))
        self._scope = InstrumentationScope("zerver", version("zerver"), SCHEMA)
        given = dict(headers or {})
        self._spans = OTLPSpanExporter(f"{base}/v1/traces", headers=given, timeout=timeout)
        self._metrics = OTLPMetricExporter(f"{base}/v1/metrics", headers=given, timeout=timeout)

    def send_spans(self, spans: Sequence[ExportedSpan]) -> bool:
        """Send spans, in the calling thread."""
        return self._spans.export([self._span(span) for span in spans]) is SpanExportResult.SUCCESS

    def send_metrics(self, snapshot: MetricsSnapshot) -> bool:
        """Send a snapshot, in the calling thread."""
        metrics = [_metric(family, snapshot) for family in snapshot.families]
        scoped = ScopeMetrics(self._scope, metrics, SCHEMA)
        data = MetricsData([ResourceMetrics(self._resource, [scoped], "")])
        return self._metrics.export(data) is MetricExportResult.SUCCESS

    def close(self) -> None:
        """Wake what waits to try again; it gives up."""
        self._spans.shutdown()  # type: ignore[no-untyped-call]  # the SDK has not annotated it
        self._metrics.shutdown()

    def _span(self, span: ExportedSpan) -> ReadableSpan:
        trace_id = int(span.trace_id, 16)
        parent = None
        if span.parent_id is not None:
            parent = SpanContext(trace_id, int(span.parent_id, 16), span.remote, _SAMPLED)
        return ReadableSpan(
            span.name,
            context=SpanContext(trace_id, int(span.span_id, 16), False, _SAMPLED),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(name, attributes, timestamp=at) for at, name, attributes in span.events],
            kind=_KINDS[span.kind],
            status=Status(StatusCode.UNSET) if span.error is None else Status(StatusCode.ERROR, span.error or None),
            start_time=span.began,
            end_time=span.ended,
            instrumentation_scope=self._scope,
        )


# ---- metrics --------------------------------------------------------------------------------


def _metric(family: Family, snapshot: MetricsSnapshot) -> Metric:
    instrument = family.instrument
    numbers = [_number(instrument, point, snapshot) for point in family.points if isinstance(point, Number)]
    data: Sum | Gauge | Histogram
    if instrument.kind == "counter":
        data = Sum(numbers, _CUMULATIVE, is_monotonic=True)
    elif instrument.kind == "gauge":
        data = Gauge(numbers)
    else:
        points = [_histogram(instrument, p, snapshot) for p in family.points if isinstance(p, Distribution)]
        data = Histogram(points, _CUMULATIVE)
    return Metric(instrument.name, instrument.help, instrument.unit, data)


def _labels(instrument: Instrument, labels: Sequence[str]) -> dict[str, str | int]:
    """By name; an empty one is not there, and a status is a number, as the conventions have it."""
    named = zip(instrument.labels, labels, strict=True)
    return {name: int(text) if name in _NUMBERS and text.isdecimal() else text for name, text in named if text}


_NUMBERS: Final = frozenset(["http.response.status_code"])


def _number(instrument: Instrument, point: Number, snapshot: MetricsSnapshot) -> NumberDataPoint:
    return NumberDataPoint(_labels(instrument, point.labels), snapshot.began, snapshot.at, point.value)


def _histogram(instrument: Instrument, point: Distribution, snapshot: MetricsSnapshot) -> HistogramDataPoint:
    return HistogramDataPoint(
        _labels(instrument, point.labels),
        snapshot.began,
        snapshot.at,
        point.count,
        point.sum,
        point.counts,
        instrument.bounds,
        # What was least and most since the start is not kept. The fields are optional on the wire, not in their class.
        cast("float", None),
        cast("float", None),
        [_exemplar(exemplar) for exemplar in point.exemplars if exemplar is not None],
    )


def _exemplar(exemplar: Exemplar) -> OtelExemplar:
    return OtelExemplar(
        {"zerver.run.id": exemplar.run_id},
        exemplar.value,
        exemplar.at,
        int(exemplar.span_id, 16) if exemplar.span_id else None,
        int(exemplar.trace_id, 16) if exemplar.trace_id else None,
    )
