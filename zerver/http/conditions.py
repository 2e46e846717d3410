"""Conditional requests and ranges: whether a client has what it asks for already, and which part of it it wants. Pure.

Law: RFC 9110 §13 and §14, as far as it can be told from a head and two validators; in the order of §13.2.2. A field
that cannot be read is as if it were not there: the answer is then the whole thing, which is never wrong. The cost is
linear in the length of the fields (Starlette's was not: CVE-2025-62727).

One range at most. A request for several is answered with the whole, as §14.2 allows: hardly a client asks for them, and
their answer is a format of its own, in which a few bytes of head can ask for gigabytes of body.
"""

from __future__ import annotations

import calendar
import re
from email.utils import formatdate
from typing import Final, Literal

import attrs

from zerver.http.messages import RequestHead

#: One entity tag. It starts and ends at a quote and has none inside, so that a search for all is linear.
_TAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_DATE: Final = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_RANGE: Final = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")

Verdict = Literal[200, 304, 412]


@attrs.frozen
class Validators:
    """What tells one state of a thing from the next.

    etag: in quotes, after W/ if it is weak. modified: in whole seconds since 1970.
    """

    etag: str
    modified: int

    @property
    def last_modified(self) -> str:
        """As the header says it."""
        return formatdate(self.modified, usegmt=True)


def judge(head: RequestHead, now: Validators) -> Verdict:
    """200: go on. 304: the client has it. 412: it is not what the client takes it for. For GET and HEAD."""
    headers = head.headers
    if_match = headers.get("if-match")
    if if_match is not None:
        if not _matches(if_match, now.etag, weakly=False):
            return 412
    elif (since := read_date(headers.get("if-unmodified-since"))) is not None and now.modified > since:
        return 412
    if_none_match = headers.get("if-none-match")
    if if_none_match is not None:
        return 304 if _matches(if_none_match, now.etag, weakly=True) else 200
    since = read_date(headers.get("if-modified-since"))
    return 304 if since is not None and now.modified <= since else 200


def read_range(head: RequestHead, now: Validators, size: int) -> range | None:
    """The bytes that are wanted of `size`; None for all. An empty range: none of them are there (416)."""
    asked = head.headers.get("range")
    if asked is None or head.method != "GET" or not _may_continue(head.headers.get("if-range"), now):
        return None
    unit, _, what = asked.partition("=")
    found = _RANGE.fullmatch(what)
    if unit.lower() != "bytes" or found is None or what == "-":
        return None
    first, last = found.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    start, stop = int(first), int(last) + 1 if last else size
    if stop <= start and last:
        return None  # the last before the first: no range at all (§14.1.1)
    return range(min(start, size), min(stop, size))


def read_date(value: str | None) -> int | None:
    """Seconds since 1970 of an IMF-fixdate, the one form that is sent today; None for anything else."""
    found = _DATE.fullmatch(value) if value is not None and len(value) == 29 else None
    if found is None or found[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(found[group]) for group in (1, 3, 4, 5, 6))
    month = _MONTHS.index(found[2]) + 1
    if not (1 <= day <= 31 and year and hour < 24 and minute < 60 and second < 61):
        return None
    return calendar.timegm((year, month, day, hour, minute, second))


def _matches(listed: str, etag: str, *, weakly: bool) -> bool:
    if listed.strip(" \t") == "*":
        return True
    if not weakly:
        return not etag.startswith("W/") and etag in _TAG.findall(listed)
    bare = etag.removeprefix("W/")
    return any(tag.removeprefix("W/") == bare for tag in _TAG.findall(listed))


def _may_continue(if_range: str | None, now: Validators) -> bool:
    """Whether what the client has of it is of the same state. A weak tag cannot tell (§13.1.5)."""
    if if_range is None:
        return True
    if '"' in if_range:
        return not now.etag.startswith("W/") and if_range == now.etag
    return not now.etag.startswith("W/") and read_date(if_range) == now.modified
