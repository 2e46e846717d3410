"""Redirects: what is asked next when an answer says that the thing is elsewhere. Pure.

Law: a redirect is followed only as far as it was asked for, and only by a read. A write's redirect is its answer:
what it has changed is known already, and nothing is written to an address that nobody has written down. Another origin
is told what one may tell anybody, and nothing that began under TLS goes on without it.

Clients of the field drop Authorization and Cookie, and pass all else on: a key in `X-Api-Key` too. No list of the names
that keys go by is complete, so here stands the list of what is none.
"""

from __future__ import annotations

from urllib.parse import urldefrag, urljoin

from zerver.errors import DefinitionError
from zerver.http.messages import ResponseHead
from zerver.http.outgoing import READS, Outgoing, read_url

_ELSEWHERE = frozenset({301, 302, 303, 307, 308})
_FOR_ANYBODY = frozenset({b"accept", b"accept-encoding", b"accept-language", b"range", b"user-agent"})


def next_hop(asked: Outgoing, answer: ResponseHead) -> Outgoing | None:
    """What to ask next, or None when the answer is the answer; as it is when its Location is nothing to ask for."""
    location = answer.headers.get("location")
    if asked.method not in READS or answer.status not in _ELSEWHERE or location is None:
        return None
    try:
        url = urldefrag(urljoin(f"{asked.origin}{asked.target}", location)).url
        there = read_url(url)[0]
    except (DefinitionError, ValueError):  # ValueError: urllib's own word for a host like "["
        return None
    if asked.origin.scheme == "https" and there.scheme != "https":
        return None
    return asked.sent_on(url, None if there == asked.origin else _FOR_ANYBODY)
