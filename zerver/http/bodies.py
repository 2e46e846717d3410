"""Bodies that are more than bytes: opened when their request is at hand, sent, and closed in every case.

Law: a step's answer is data, as an effect is. A step names a file, or an async generator function that makes a stream;
the edge opens it when the run has ended, with the app's resources, and sends it outside of the run. So a step stays
pure, a stream of hours holds no ticket of admission, and a run's timeline ends where it says: with the decision. What
is sent after it is the connection's business, under the connection's own limits.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, TypeVar

import attrs
import trio

from zerver.core.effects import CallInfo, IdempotencyKey, injected_parameters
from zerver.errors import DefinitionError
from zerver.http.messages import Deferred, RequestHead, Response, Send, Writer

T = TypeVar("T")

_NO_RESOURCES: Final[Mapping[type, Any]] = {}


async def finish(response: Response, head: RequestHead, resources: Mapping[type, Any] = _NO_RESOURCES) -> Response:
    """The response with its body opened, if it is one that waits for that. Raises what opening it raises.

    Whoever calls this sends the answer, or disposes of its body, without an await in between.
    """
    body = response.body
    return await body.open(response, head, resources) if isinstance(body, Deferred) else response


async def pour(body: AsyncIterator[bytes] | Writer, send: Send) -> None:
    """Send all pieces of a body."""
    if isinstance(body, Writer):
        await body.write_to(send)
    else:
        async for piece in body:
            await send(piece)


async def close_body(body: object) -> None:
    """Free what a body holds, if it can be closed. Cleanup: to be shielded and bounded; `dispose` does that."""
    aclose = getattr(body, "aclose", None)
    if aclose is not None:
        await aclose()


async def dispose(body: object, seconds: float, report: Callable[[Exception], None]) -> None:
    """Close a body, also when cancelled: its `finally` may hold a transaction or a file. report: told of errors."""
    with trio.move_on_after(seconds, shield=True) as scope:
        try:
            await close_body(body)
        except Exception as defect:
            report(defect)
    if scope.cancelled_caught:
        report(TimeoutError("the body of a response did not close in time"))


@attrs.frozen
class Source(Deferred):
    """A stream that is made when it is to be sent."""

    make: Callable[..., AsyncIterator[bytes]]

    async def open(self, response: Response, head: RequestHead, resources: Mapping[type, Any]) -> Response:
        return Response(response.status, response.headers, call_source(self.make, resources))


def call_source(make: Callable[..., AsyncIterator[T]], resources: Mapping[type, Any]) -> AsyncIterator[T]:
    """Call a function that makes a stream. Its parameters with a default of INJECTED are filled in by their type.

    Raises DefinitionError for a type that no capability of the app opens.
    """
    function = make
    while isinstance(function, functools.partial):
        function = function.func
    label = f"stream {getattr(function, '__name__', 'source')!r}"
    filled = {}
    for name, type_ in injected_parameters(label, function).items():
        if type_ is CallInfo or type_ is IdempotencyKey:
            raise DefinitionError(
                f"{label} wants a {type_.__name__}, and it is no effect: its run is over", "pass what it needs to know"
            )
        if type_ not in resources:
            raise DefinitionError(
                f"{label} wants a {type_.__name__} for {name!r}, but no capability opens one",
                f"add a capability to App(capabilities=[…]) whose resources open a {type_.__name__}",
            )
        filled[name] = resources[type_]
    return make(**filled)
