"""Recordings: a run as bytes, and back.

Law: JSON, versioned, never pickle. What is written reads back as the same Result with the same Timeline, times and all,
made of inert things; every reader of a live run reads it too. Secrets are masked before they are written. What is read
may come from anybody: it is a Result or a TraceError, whatever the bytes are.

    plan     as `zerver.trace.recording.skeleton` has it, once for all runs of one flow version
    body     {"v": 1, "run": …, "flow": …, "values": […], "kinds": […], "nodes": […], "calls": […], "entries": […],
              "endings": […], "records": [[kind, nanoseconds since the record before, subject, detail], …], …}
    subject  "" the flow, "=name" a text, "p" the plan, "n3" a node, "c5" a call, "e1" an entry
"""

from __future__ import annotations

from typing import Final

import attrs
import msgspec

from zerver.errors import TraceError
from zerver.runtime.result import Result
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.recording.reading import RunReader
from zerver.trace.recording.skeleton import plan_id
from zerver.trace.recording.vocabulary import NO_VOCABULARY, Vocabulary
from zerver.trace.recording.writing import RunWriter
from zerver.trace.recording.written import VERSION, Body

#: Bytes of one value, by default; beyond, what is left of it is how it begins.
MOST_BYTES: Final = 64 * 1024

#: Bytes of a body that is read, and arrays and objects in it: each takes sixty bytes or more in memory.
MOST_READ: Final = 64 * 1024 * 1024
MOST_BRACKETS: Final = 2_000_000


@attrs.frozen
class Recording:
    """A run as bytes. began_unix_ns: wall time of its first record. plan_id: names `plan`, which runs share; ""
    when the run never came to have one.
    """

    run_id: str
    began_unix_ns: int
    plan_id: str
    plan: bytes = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)


def encode_run(
    result: Result, *, began_unix_ns: int, hidden: Hidden = NOTHING_HIDDEN, most_bytes: int = MOST_BYTES
) -> Recording:
    """A run, written; it may be under way still. hidden: names that are masked beside what the code calls secret.
    most_bytes: about how much one value may take. Whatever the values of the run are, it is written.
    """
    written = RunWriter(result, hidden, most_bytes).write()
    return Recording(result.run_id, began_unix_ns, written.plan_id, written.plan, written.body)


def decode_run(recording: Recording, *, vocabulary: Vocabulary | None = None) -> Result:
    """The run that was written. vocabulary: whose classes its values have again; without, they are stand-ins.

    Raises TraceError for bytes that are no recording, or one that was torn or tampered with.
    """
    reader: RunReader | None = None
    try:
        _check_size(recording.body)
        body = msgspec.json.decode(recording.body, type=Body)
        if body.v != VERSION:
            raise TraceError(f"a recording of version {body.v}, and this code reads {VERSION}")
        if recording.plan and plan_id(recording.plan) != recording.plan_id:
            raise TraceError("the plan is not the one of the recording")
        reader = RunReader(body, recording.plan, vocabulary or NO_VOCABULARY)
        return reader.result()
    except TraceError:
        raise
    except Exception as error:  # whatever hostile bytes make Python stumble over
        where = "" if reader is None else f" at {reader.where}"
        raise TraceError(f"no recording of a run{where}: {type(error).__name__}") from error


def _check_size(body: bytes) -> None:
    if len(body) > MOST_READ:
        raise TraceError(f"a recording of {len(body)} bytes; {MOST_READ} are read at most")
    if body.count(b"[") + body.count(b"{") > MOST_BRACKETS:
        raise TraceError("a recording that would fill the memory with brackets")
