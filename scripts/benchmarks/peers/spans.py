"""OpenTelemetry spans of the detail that a Zerver timeline of the three steps has.

A span for the request, one for each step, one for the effect, with the attributes that the timeline's header and rows
have. The processor is the SDK's own batching one. `Traced` is the least that such spans can cost: the request's span is
made by hand, too, which is less than what an instrumentation package does, and where no collector is named by
OTEL_EXPORTER_OTLP_ENDPOINT the exporter throws batches away, so that no serialization and no network is paid for.
OTEL_TRACES_SAMPLER_ARG: which share of the runs has spans, decided at their beginning.
"""

import os

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased


class Nowhere(SpanExporter):
    def export(self, spans):
        return SpanExportResult.SUCCESS


def exporter() -> SpanExporter:
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        return Nowhere()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # a package of its own

    return OTLPSpanExporter()


share = float(os.environ.get("OTEL_TRACES_SAMPLER_ARG", "1"))
provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)), resource=Resource({"service.name": "steps"}))
provider.add_span_processor(BatchSpanProcessor(exporter()))
tracer = provider.get_tracer("zerver.bench")


async def load(id: int) -> dict:
    with tracer.start_as_current_span("zerver.step.load") as span:
        attributes = {"zerver.effect.access": "read", "zerver.effect.target": "users", "zerver.effect.attempts": 1}
        with tracer.start_as_current_span("zerver.effect.users.find", attributes=attributes) as effect:
            user = {"id": id, "name": f"user {id}"}
            effect.set_attribute("zerver.effect.outcome", "success")
        span.set_attribute("zerver.step.decision", "continue")
        span.set_attribute("zerver.step.writes", "user")
        return user


async def add_up(user: dict) -> int:
    with tracer.start_as_current_span("zerver.step.add_up", attributes={"zerver.step.reads": "user"}) as span:
        total = user["id"] * 2
        span.set_attribute("zerver.step.decision", "continue")
        span.set_attribute("zerver.step.writes", "total")
        return total


def render(user: dict, total: int) -> dict:
    with tracer.start_as_current_span("zerver.step.render", attributes={"zerver.step.reads": "user total"}) as span:
        span.set_attribute("zerver.step.decision", "done")
        return {"user": user, "total": total}


class Traced:
    """The request's own span, as an ASGI middleware without the layers of a framework's."""

    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "http.route": "/steps/{id}",
            "zerver.tenant": "default",
            "zerver.priority": "default",
            "zerver.flow": "steps",
        }
        name = f"{scope['method']} /steps/{{id}}"
        with tracer.start_as_current_span(name, kind=trace.SpanKind.SERVER, attributes=attributes) as span:

            async def told(message):
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self.inner(scope, receive, told)
