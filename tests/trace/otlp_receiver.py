"""A collector of the tests' own, in a process of its own: takes OTLP over HTTP, prints each request as a line of JSON.

Usage: otlp_receiver.py [STATUS | hang]. Its first line is its port. STATUS is what it answers, 200 by default; with
`hang` it takes requests and never answers.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ANSWER = sys.argv[1] if len(sys.argv) > 1 else "200"


def value(any_value: Any) -> Any:
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(item) for item in any_value.array_value.values]
    return getattr(any_value, kind) if kind else None


def named(attributes: Any) -> dict[str, Any]:
    return {item.key: value(item.value) for item in attributes}


def spans(body: bytes) -> list[dict[str, Any]]:
    return [
        {
            "resource": named(resource.resource.attributes),
            "scope": scope.scope.name,
            "schema": scope.schema_url,
            "trace": span.trace_id.hex(),
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "remote": bool(span.flags & 0x200),
            "name": span.name,
            "kind": span.kind,
            "began": span.start_time_unix_nano,
            "ended": span.end_time_unix_nano,
            "attributes": named(span.attributes),
            "status": span.status.code,
            "message": span.status.message,
            "events": [
                {"name": event.name, "at": event.time_unix_nano, "attributes": named(event.attributes)}
                for event in span.events
            ],
        }
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def points(metric: Any) -> list[dict[str, Any]]:
    kind = metric.WhichOneof("data")
    found = []
    for point in getattr(metric, kind).data_points:
        said: dict[str, Any] = {"attributes": named(point.attributes)}
        said["exemplars"] = [
            {"trace": e.trace_id.hex(), "id": e.span_id.hex(), "value": e.as_double, **named(e.filtered_attributes)}
            for e in point.exemplars
        ]
        if kind == "histogram":
            said |= {"counts": list(point.bucket_counts), "bounds": list(point.explicit_bounds), "sum": point.sum}
            said["min"] = point.min if point.HasField("min") else None
        else:
            said["value"] = point.as_double if point.HasField("as_double") else point.as_int
        found.append(said)
    return found


def metrics(body: bytes) -> list[dict[str, Any]]:
    return [
        {"name": metric.name, "unit": metric.unit, "kind": metric.WhichOneof("data"), "points": points(metric)}
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]


DECODE = {"/v1/traces": spans, "/v1/metrics": metrics}


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        told = {"path": self.path, "headers": dict(self.headers), "sent": DECODE[self.path](body)}
        print(json.dumps(told), flush=True)
        if ANSWER == "hang":
            threading.Event().wait()
        self.send_response(int(ANSWER))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    print(json.dumps(server.server_port), flush=True)
    server.serve_forever()
