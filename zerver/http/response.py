"""Answers by their kind: a value in, a Response out. Pure; nothing here touches a connection.

Law: a value that cannot be sent is found out by the call, never when half of the answer is on its way. Text is UTF-8.
Headers given by the caller win over the ones a constructor would set.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import Any

import msgspec

from zerver.http.bodies import Source
from zerver.http.messages import PHRASES, Headers, HeadersLike, Response

_encode = msgspec.json.Encoder().encode


def json(value: Any, status: int = 200, headers: HeadersLike = ()) -> Response:
    """value as JSON: attrs and msgspec classes, dataclasses, mappings, sequences, dates, UUIDs, Decimals.

    Raises TypeError for a type that msgspec does not know.
    """
    return Response(status, _typed("application/json", headers), _encode(value))


def text(body: str, status: int = 200, headers: HeadersLike = ()) -> Response:
    """Plain text."""
    return Response(status, _typed("text/plain; charset=utf-8", headers), body.encode())


def html(body: str, status: int = 200, headers: HeadersLike = ()) -> Response:
    """A page. The body is sent as it is: escaping is the template's business."""
    return Response(status, _typed("text/html; charset=utf-8", headers), body.encode())


def no_content(headers: HeadersLike = ()) -> Response:
    """204: done, and nothing to say."""
    return Response(204, headers)


def redirect(location: str, status: int = 303, headers: HeadersLike = ()) -> Response:
    """Go to location, a URL that is percent-encoded already. 303: with GET; 307 and 308 keep the method.

    Raises ValueError for another status, and for a location with a control character, a blank, or anything
    that is not ASCII: CR and LF would write headers of their own. Whether the target may be another site is
    the caller's to decide; a location taken from a request should be checked against a list.
    """
    if status not in (301, 302, 303, 307, 308):
        raise ValueError(f"not a redirect: {status}")
    if not location or not all("\x20" < character < "\x7f" for character in location):
        raise ValueError(f"not a URL that can be sent: {location!r}")
    return Response(status, Headers.of(headers).setting("location", location))


def problem(status: int, title: str = "", detail: str = "", **extensions: Any) -> Response:
    """An error as application/problem+json (RFC 9457). title: by default the status's own phrase.

    extensions: members beside `type`, `title`, `status` and `detail`; `type` may be among them.
    """
    document: dict[str, Any] = {"type": "about:blank", "title": title or PHRASES.get(status, "Error"), "status": status}
    if detail:
        document["detail"] = detail
    return Response(status, _typed_alone("application/problem+json"), _encode(document | extensions))


def stream(
    body: AsyncIterator[bytes] | Callable[..., AsyncIterator[bytes]],
    content_type: str = "application/octet-stream",
    status: int = 200,
    headers: HeadersLike = (),
) -> Response:
    """Pieces as they come. Each is sent at once; the next is asked for when the peer has taken it.

    body: an async iterator or, better, an async generator function (`partial(rows, day)` for one with arguments). It is
    called when the run has ended and the answer begins; its parameters with a default of INJECTED are filled with the
    app's resources, as an effect's handler's are. A step that makes a generator itself only makes it: nothing runs.

    The server closes the iterator in every case: at its end, if it raises, if the peer leaves, or takes no piece within
    Limits.write_seconds. The run's deadline and its ticket of admission end with the run, before the first piece.
    """
    pieces = Source(body) if callable(body) else body
    return Response(status, _typed(content_type, headers), pieces)


def _typed(content_type: str, headers: HeadersLike) -> Headers:
    if not headers:
        return _typed_alone(content_type)
    given = Headers.of(headers)
    if "content-type" in given:
        return given
    return Headers(((b"content-type", content_type.encode("latin-1")), *given.raw))


@lru_cache(maxsize=256)
def _typed_alone(content_type: str) -> Headers:
    """Most answers have no field but this."""
    return Headers(((b"content-type", content_type.encode("latin-1")),))
