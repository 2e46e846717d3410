"""Tracing: the ids under which other systems know a run and its spans. W3C Trace Context, and no more of it than that.

Law: ids are made of what a run is (its id, its calls' keys), never of chance. So a header can name the span of an
effect that is under way, long before anybody knows whether the run will be kept, and the span that is exported an hour
later, or out of a file, has that very id.

A trace is the caller's if there is a caller's. Otherwise it ends in the 24 digits of the run's id: whoever has the one
can search for the other. `tracestate` is not read: it is what other vendors tell each other, and none of them needs it
to stay in the trace. Only the proxy passes it on, as it passes on all that came.

Source: https://www.w3.org/TR/trace-context/ (level 2, which level 1 readers understand).
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from zerver.core.values import value

_RUN_ID: Final = re.compile(r"req_([0-9a-f]{24})")
# ASCII digits and lower case alone; \Z, since $ also matches before a line break.
_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
_SAMPLED: Final = 0x01
_RANDOM: Final = 0x02


@value
class TraceParent:
    """Who called: a `traceparent`. trace_id, span_id: 32 and 16 lower-case hexadecimal digits, not all zero.

    flags: 1: it may have kept its part of the trace ("sampled"); 2: the trace's id is random. Others are left out.
    """

    trace_id: str
    span_id: str
    flags: int = _SAMPLED

    @property
    def sampled(self) -> bool:
        """Whether who called may have kept its part of the trace."""
        return bool(self.flags & _SAMPLED)

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def read_traceparent(text: str) -> TraceParent | None:
    """What a `traceparent` says; None for one that must be ignored, in whose place a new trace begins.

    A version that is not known yet is read as far as it is like this one (it may be longer, behind a dash). Refused:
    capitals, blanks, ids that are all zero, version ff, and two headers joined by a comma. Nothing is repaired.
    """
    found = _PARENT.match(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN or (version == "00" and more is not None):
        return None
    return TraceParent(trace_id, span_id, int(flags, 16) & (_SAMPLED | _RANDOM))


def trace_id(run_id: str, parent: str = "") -> str:
    """The trace that a run is part of: 32 digits. parent: the `traceparent` that it came with, as received."""
    caller = read_traceparent(parent) if parent else None
    if caller is not None:
        return caller.trace_id
    own = _RUN_ID.fullmatch(run_id)
    return _digits(run_id, 16) if own is None else _digits(run_id, 4) + own[1]


def root_span_id(run_id: str) -> str:
    """The span of the whole run: 16 digits."""
    return span_id(run_id, "run", "")


def span_id(run_id: str, kind: str, path: str) -> str:
    """The span of a part of a run: 16 digits. kind, path: of a `zerver.trace.spans.Span`."""
    return _digits(f"{run_id}\0{kind}\0{path}", 8)


def effect_span_id(key: str) -> str:
    """The span of the effect whose call has this key."""
    return _digits(key, 8)


def outgoing(run_id: str, parent: str, key: str) -> str:
    """The `traceparent` of a request that is sent for the call of this key, in the run's own span of it.

    Sampled as who called says; a run that nobody called may be kept, and its trace begins with it.
    """
    trace, flags = _part_of(run_id, parent)
    return f"00-{trace}-{effect_span_id(key)}-{flags}"


@lru_cache(maxsize=256)  # it is asked for with each effect of a run
def _part_of(run_id: str, parent: str) -> tuple[str, str]:
    """The trace's id, and its flags as they are written."""
    caller = read_traceparent(parent) if parent else None
    return trace_id(run_id, parent), f"{_SAMPLED if caller is None else caller.flags:02x}"


def _digits(text: str, size: int) -> str:
    """So many bytes of a hash, as digits; never all zero, which would be no id."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()
    return digest if digest.strip("0") else digest[:-1] + "1"
