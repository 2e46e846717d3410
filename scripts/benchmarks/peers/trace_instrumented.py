"""The three steps of `trace_fastapi`, traced and exported as OpenTelemetry's documentation has it.

`FastAPIInstrumentor` makes the request's span and, as it comes, one for each ASGI message that is sent; the steps and
the effect have the spans of `spans`, made by hand. OTLPSpanExporter encodes them as protobuf and sends them to the
collector that OTEL_EXPORTER_OTLP_ENDPOINT names, in the processor's thread, which takes the interpreter's lock from the
requests; spans that find its queue full are dropped, and cost no more. The collector is `sink`, another process, whose
time is counted for nobody.
"""

import spans
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from trace_fastapi import app as traced

FastAPIInstrumentor.instrument_app(traced, tracer_provider=spans.provider)
