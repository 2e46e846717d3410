"""HTTP beside its peers: plaintext; a JSON echo of an order with 20 items, which is validated; a flow of three steps
and an effect; and a path parameter on one of 200 routes. Requests per second, and CPU per request.

Zerver is as `zerver serve` is without any setting: full timeline, trace file, admission, a deadline. Peers are bare,
but for those with OpenTelemetry spans, which tell of the three steps what a timeline tells: "with spans" makes them as
cheaply as can be and throws them away (peers/spans.py), "instrumented, exporting" has them made and sent to a collector
as OpenTelemetry's documentation says (peers/trace_instrumented.py). Needs `wrk` (a Debian package) and two cores. Takes
three minutes.
"""

from __future__ import annotations

import sys

from _load import Ask
from _rates import System, arguments, granian, hypercorn, instrumented, present, rates, uvicorn, zerver
from _report import write_json
from _server import PEERS

sys.path.insert(0, str(PEERS))
from orders import ORDER

STEPS = "three steps and an effect"
CASES = {
    "plaintext": Ask("/plain"),
    "JSON echo, validated": Ask("/echo", "POST", ORDER),
    STEPS: Ask("/steps/7"),
    "a path parameter, 200 routes": Ask("/area150/7"),
}

SYSTEMS = [
    zerver("zerver", "zerver_app:app"),
    uvicorn("uvicorn, raw ASGI", "asgi_raw:app"),
    granian("granian, raw ASGI", "asgi", "asgi_raw:app"),
    granian("granian, raw RSGI", "rsgi", "rsgi_raw:app"),
    uvicorn("starlette on uvicorn", "starlette_app:app", "starlette"),
    uvicorn("fastapi on uvicorn", "fastapi_app:app", "fastapi"),
    uvicorn("litestar on uvicorn", "litestar_app:app", "litestar"),
    uvicorn("blacksheep on uvicorn", "blacksheep_app:app", "blacksheep", "pydantic"),
    System(
        "sanic",
        (sys.executable, "-m", "sanic", "sanic_app:app", "--single-process", "--no-access-logs", "--no-motd"),
        ("sanic",),
    ),
    hypercorn("quart-trio on hypercorn", "quart_trio_app:app", "quart-trio"),
    uvicorn("fastapi with spans", "trace_fastapi:traced", "fastapi", "opentelemetry-sdk", cases=(STEPS,)),
    uvicorn("litestar with spans", "trace_litestar:traced", "litestar", "opentelemetry-sdk", cases=(STEPS,)),
    instrumented(STEPS),
]


def main() -> None:
    options = arguments(__doc__).parse_args()
    write_json(options.json, rates(present(SYSTEMS, options), CASES, options))


if __name__ == "__main__":
    main()
