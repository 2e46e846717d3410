"""`zerver work --metrics HOST:PORT`: what a scraper asks a worker for, over the HTTP edge that serves apps.

Law: GET /metrics answers with what `zerver serve` tells where its page is, and nothing else is answered. There is no
token: what is told are numbers, names of flows and queues, and of tenants where they are counted by name; so listen
where only the scraper can connect. An address that cannot be listened on is refused before any job is taken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from zerver.cli.options import WrongOption
from zerver.http import Exchange, Response, open_http_listeners, problem
from zerver.trace.telemetry.metrics import Metrics
from zerver.trace.telemetry.prometheus import OPENMETRICS, negotiate, prometheus

PATH = ("metrics",)


async def open_metrics_listeners(address: str) -> Sequence[trio.SocketListener]:
    """Listen for scrapers at HOST:PORT. Raises WrongOption."""
    host, port = read_address(address)
    try:
        return await open_http_listeners(host, port)
    except OSError as error:
        raise WrongOption(
            f"--metrics {address}: cannot listen there: {error.strerror or error}; give an address of this machine, "
            "and a port that nobody listens on"
        ) from error


def read_address(text: str) -> tuple[str, int]:
    """HOST:PORT, or [ADDRESS]:PORT for IPv6. Raises WrongOption."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_bracketed = host != bare
    if not (colon and bare and port.isascii() and port.isdigit() and int(port) <= 65535) or (
        is_bracketed != (":" in bare)
    ):
        raise WrongOption(f"--metrics {text!r} is no address: write HOST:PORT, as 127.0.0.1:9100 or [::1]:9100")
    return bare, int(port)


def scraped(metrics: Metrics) -> Callable[[Exchange], Awaitable[Response]]:
    """The handler of requests."""

    async def handle(exchange: Exchange) -> Response:
        await trio.lowlevel.checkpoint()
        head = exchange.head
        if tuple(head.segments) != PATH:
            return problem(404)
        if head.method not in ("GET", "HEAD"):
            refused = problem(405)
            return attrs.evolve(refused, headers=refused.headers.adding("allow", "GET, HEAD"))
        kind = negotiate(head.headers.get("accept"))
        return Response(200, (("content-type", kind),), prometheus(metrics.snapshot(), openmetrics=kind == OPENMETRICS))

    return handle
