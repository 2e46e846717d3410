"""Lines: a run's records as JSON, one line each, written a few at a time.

Law: the lines of a run, put together, are the body of a recording: there is one encoding (zerver.trace.recording). A
line says what it needs that no line before it has said. Each begins with a checksum of all lines up to it and of the
run's id, so that a line which is missing, changed, in the wrong place or of another run is found. What is read is the
whole run or DamagedJournal.

    5f3c09a1 {"r": ["asked", 1200, "c0"], "v": [values], "k": [kinds], "n": [nodes], "c": [calls], "e": [[0, entry]],
              "x": [endings]}

    r: [kind, nanoseconds since the record before, subject, detail]; the other lists are what is new, left out if
    empty. e: an entry is written anew whenever something happens to it. The first line has "z", the version.

Values are written as they are, credentials in headers included: a run has to go on with them. `cipher` encrypts every
line. Without one, whoever can read the journal can read the runs; its file is for its owner alone, but so are backups
not. Flows with secret slots are refused then, unless `keep_secrets=True` says that this was thought about.

The checksum is CRC-32: it finds accidents. Against people who write to the disk there is the cipher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeAlias
from zlib import crc32

import attrs
import msgspec

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.plan import Node, Plan
from zerver.core.saga import Entry
from zerver.core.timeline import Ending, Record, Timeline
from zerver.errors import DamagedJournal, NotKeepable, TraceError
from zerver.journal.faithful import FaithfulEncoder
from zerver.runtime.journal import Notation, Pen, Reader, StoredRun
from zerver.trace.inert import unknown_class
from zerver.trace.recording.reading import RunReader
from zerver.trace.recording.skeleton import line_tree, nodes_in, read_line, read_plan, skeleton_of
from zerver.trace.recording.vocabulary import Vocabulary
from zerver.trace.recording.writing import RecordWriter, Tree, printable
from zerver.trace.recording.written import VERSION as BODY_VERSION
from zerver.trace.recording.written import Body

#: The version of a line. Another one is refused.
VERSION: Final = 1

#: Records whose values a replay takes as they are; those of others it computes again.
_NEEDED: Final = frozenset({t.INPUT, t.SETTLED, t.LATE, t.COMMITTED, t.RESOLVED, t.UNDONE, t.SIGNALLED})


class Cipher(Protocol):
    """Encrypts and authenticates. `cryptography.fernet.Fernet` is one; MultiFernet is one whose keys rotate."""

    def encrypt(self, data: bytes, /) -> bytes: ...

    def decrypt(self, token: bytes, /) -> bytes:
        """What was encrypted. Raises for anything else."""
        ...


class Line(msgspec.Struct, omit_defaults=True, frozen=True):
    """One line: see the law."""

    r: list[Any]
    z: int = 0
    v: list[Any] = []
    k: list[dict[str, Any]] = []
    n: list[dict[str, Any]] = []
    c: list[list[Any]] = []
    e: list[tuple[int, list[Any]]] = []
    x: list[list[Any]] = []


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


@attrs.frozen
class Lines(Notation):
    """The notation of lines. cipher: encrypts them. keep_secrets: values of secret slots may be kept in the clear."""

    cipher: Cipher | None = attrs.field(default=None, repr=False)
    keep_secrets: bool = False

    @property
    def keeps_secrets(self) -> bool:
        return self.cipher is not None or self.keep_secrets

    def pen(self, timeline: Timeline, plan: Plan, after: StoredRun | None = None) -> Pen:
        pen = LineWriter(timeline.run_id, timeline.flow, plan, self)
        if after is not None:
            pen.go_on(after)
        return pen

    def seal(self, value: bytes) -> bytes:
        return value if self.cipher is None else self.cipher.encrypt(value)

    def unseal(self, sealed: bytes) -> bytes:
        try:
            return sealed if self.cipher is None else self.cipher.decrypt(sealed)
        except Exception as error:  # each library has its own
            raise DamagedJournal("the value of a signal does not open with this key") from error

    def reader(self, *code: Any) -> Reader:
        return LineReader(self, Vocabulary.of(*code))


# ---- writing --------------------------------------------------------------------------------


#: How much of each list stands in lines already: values, kinds, nodes, calls, endings.
_Said: TypeAlias = tuple[int, int, int, int, int]


class LineWriter(Pen):
    """Writes one run, see `Pen`."""

    def __init__(self, run_id: str, flow: str, plan: Plan, notation: Lines) -> None:
        self._skeleton = skeleton_of(plan)
        self._values = FaithfulEncoder(notation.keeps_secrets)
        self._writer = _Continued(flow, plan, self._values)
        self._notation = notation
        self._run_id = run_id
        self._count = 0
        self._checksum = _seed(run_id)
        self._before = 0  # when the last record was
        self._said: _Said = (0, 0, 0, 0, 0)

    @property
    def plan_id(self) -> str:
        return self._skeleton.id

    @property
    def plan(self) -> bytes:
        return self._skeleton.body

    @property
    def count(self) -> int:
        return self._count

    def lines(self, records: Sequence[Record]) -> list[bytes]:
        written: list[bytes] = []
        before, said, checksum, count = self._before, self._said, self._checksum, self._count
        cipher = self._notation.cipher
        for record in records:
            payload, said = self._payload(record, before, said, first=count == 0)
            if cipher is not None:
                payload = cipher.encrypt(payload)
            checksum = crc32(payload, checksum)
            written.append(b"%08x %b" % (checksum, payload))
            before, count = record[1], count + 1
        self._before, self._said, self._checksum, self._count = before, said, checksum, count
        return written

    def _payload(self, record: Record, before: int, said: _Said, *, first: bool) -> tuple[bytes, _Said]:
        writer, values = self._writer, self._values
        values.lost = ""
        tree = writer.record(record, before)
        if values.lost and record[0] in _NEEDED:
            raise NotKeepable(
                f"run {self._run_id}: a {values.lost} in record {record[0]!r} could not be read again\n"
                "  give it declared fields (attrs, dataclass, msgspec), or run the flow with durability='off'"
            )
        entries = [(writer.entry(record[2]), writer.entry_tree(record[2]))] if isinstance(record[2], Entry) else []
        asked = values.asked.kinds
        counts = len(values.values), len(asked), len(writer.nodes), len(writer.calls), len(writer.endings)
        if counts == said and not entries and not first:  # two lines of three bring nothing new
            return _encoded_alone(tree), said
        line = Line(
            r=tree,
            z=VERSION if first else 0,
            v=values.values[said[0] :],
            k=asked[said[1] :],
            n=writer.nodes[said[2] :],
            c=writer.calls[said[3] :],
            e=entries,
            x=writer.endings[said[4] :],
        )
        return _encoded(line), counts

    def go_on(self, run: StoredRun) -> None:
        """Write behind the lines of this run."""
        body, checksum = _put_together(run, self._notation)
        self._values.go_on(len(body.values), len(body.kinds))
        self._writer.go_on(body, same_plan=run.plan_id == self.plan_id)
        self._count, self._checksum = len(run.lines), checksum
        self._before = sum(record[1] for record in body.records)
        self._said = len(body.values), len(body.kinds), len(body.nodes), len(body.calls), len(body.endings)


class _Continued(RecordWriter):
    """Knows calls, entries, nodes and the ending of an earlier owner's lines again, by what they are.

    A call is its step and its ordinal: that is what its key is made of. An entry is the next one of its call. A node
    that a step has put into the plan is the next one that says the same. A run has one ending.
    """

    values: FaithfulEncoder

    def __init__(self, flow: str, plan: Plan, values: FaithfulEncoder) -> None:
        super().__init__(flow, plan, values)
        self._of_call: dict[tuple[str, str], int] = {}
        self._of_entry: dict[int, list[int]] = {}
        self._of_node: dict[bytes, list[int]] = {}
        self._of_ending: int | None = None
        self._alive: list[object] = []  # whose ids are in the tables

    def go_on(self, body: Body, *, same_plan: bool) -> None:
        self.calls += body.calls
        self._of_call = {(step, ordinal): number for number, (step, ordinal, *_) in enumerate(body.calls)}
        self.entries += body.entries
        for number, (call, *_) in enumerate(body.entries):
            self._of_entry.setdefault(call, []).append(number)
        if not same_plan:
            self.numbers.clear()
        self.nodes += body.nodes
        for node in nodes_in(read_line(list(body.nodes))):
            self._of_node.setdefault(_said_by(node), []).append(self.count)
            self.count += 1
        self.endings += body.endings
        self._of_ending = len(body.endings) - 1 if body.endings else None

    def subject(self, subject: Any) -> str:
        if subject.__class__ is Call:  # most records are about one that stands there already
            number = self.known_calls.get(id(subject))
            return f"c{self.call(subject) if number is None else number}"
        return super().subject(subject)

    def call(self, call: Call) -> int:
        number = self.known_calls.get(id(call))
        if number is None:
            self._alive.append(call)
            number = self._of_call.get((call.step, call.ordinal))
            if number is None:
                return super().call(call)
            self.known_calls[id(call)] = number
        return number

    def entry(self, entry: Entry) -> int:
        number = self.known_entries.get(id(entry))
        if number is None:
            self._alive.append(entry)
            earlier = self._of_entry.get(self.call(entry.call))
            if not earlier:
                return super().entry(entry)
            number = self.known_entries[id(entry)] = earlier.pop(0)
        return number

    def entry_tree(self, entry: Entry) -> Tree:
        """The entry as it is now."""
        value, error = self.values.refer(entry.value), self.values.refer(entry.error)
        return [self.call(entry.call), entry.state, value, error, entry.loser, entry.asked]

    def node(self, node: Node) -> int:
        number = self.numbers.get(id(node))
        if number is None:
            self._alive.append(node)
            earlier = self._of_node.get(_said_by(node)) if self._of_node else None
            if not earlier:
                return super().node(node)
            number = self.numbers[id(node)] = earlier.pop(0)
        return number

    def ending(self, ending: Ending) -> int:
        if self._of_ending is not None:
            return self._of_ending
        self._alive.append(ending)
        return super().ending(ending)


def _said_by(node: Node) -> bytes:
    return msgspec.json.encode(line_tree((node,)))


def _seed(run_id: str) -> int:
    return crc32(run_id.encode("utf-8", "surrogatepass"))


def _encoded_alone(tree: Tree) -> bytes:
    """A line of which there is nothing but its record, without the object that a line is."""
    try:
        return b'{"r":%b}' % _encode(tree)
    except UnicodeEncodeError:
        return _encoded(Line(tree))


def _encoded(line: Line) -> bytes:
    try:
        return _encode(line)
    except UnicodeEncodeError:  # half a character, in a name or a reason
        return msgspec.json.encode(printable(msgspec.to_builtins(line)))


# ---- reading --------------------------------------------------------------------------------


class LineReader(Reader):
    """Reads runs of known code."""

    def __init__(self, notation: Lines, vocabulary: Vocabulary) -> None:
        self._notation = notation
        self._vocabulary = vocabulary

    def read(self, run: StoredRun) -> Timeline:
        body, _ = _put_together(run, self._notation)
        try:
            return RunReader(body, run.plan, self._vocabulary).timeline()
        except TraceError as error:
            raise _damaged(run, str(error)) from error
        except Exception as error:  # whatever lines that never were a run make Python stumble over
            raise _damaged(run, type(error).__name__) from error

    def unknown(self, value: object) -> str:
        return unknown_class(value)


def _put_together(run: StoredRun, notation: Lines) -> tuple[Body, int]:
    """All lines as one body, and the checksum behind the last."""
    values: list[Any] = []
    kinds: list[dict[str, Any]] = []
    nodes: list[dict[str, Any]] = []
    calls: list[list[Any]] = []
    endings: list[list[Any]] = []
    records: list[list[Any]] = []
    entries: dict[int, list[Any]] = {}
    checksum = _seed(run.head.run_id)
    for number, written in enumerate(run.lines):
        payload = written[9:]
        checksum = crc32(payload, checksum)
        if written[:9] != b"%08x " % checksum:
            raise _damaged(run, f"line {number} is not what was written there")
        line = _line_of(run, number, payload, notation.cipher)
        if number == 0 and line.z != VERSION:
            raise _damaged(run, f"its lines are of version {line.z}, and this code reads {VERSION}")
        records.append(line.r)
        values += line.v
        kinds += line.k
        nodes += line.n
        calls += line.c
        endings += line.x
        entries.update(line.e)
    head = run.head
    body = Body(
        v=BODY_VERSION,
        run=head.run_id,
        flow=head.flow,
        version=head.version,
        tenant=head.tenant,
        priority=head.priority,
        label=head.label,
        parent=head.parent,
        secret=_secret_slots(run),
        values=values,
        kinds=kinds,
        nodes=nodes,
        calls=calls,
        entries=[entries[number] for number in sorted(entries)],
        endings=endings,
        records=records,
    )
    return body, checksum


def _line_of(run: StoredRun, number: int, payload: bytes, cipher: Cipher | None) -> Line:
    if cipher is not None:
        try:
            payload = cipher.decrypt(payload)
        except Exception as error:  # each library has its own
            raise _damaged(run, f"line {number} does not open with this key") from error
    try:
        return _decode(payload)
    except (msgspec.MsgspecError, ValueError) as error:
        what = "is encrypted, and the journal was opened without a cipher" if cipher is None else "is no line"
        raise _damaged(run, f"line {number} {what}") from error


def _secret_slots(run: StoredRun) -> list[str]:
    try:
        return sorted(read_plan(run.plan).secret)
    except TraceError as error:
        raise _damaged(run, str(error)) from error


def _damaged(run: StoredRun, what: str) -> DamagedJournal:
    return DamagedJournal(
        f"run {run.head.run_id} of flow {run.head.flow!r} cannot be read: {what}\n"
        "  other runs are not affected; what it did can be seen in traces and in what it called"
    )
