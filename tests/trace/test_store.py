"""Proves that kept runs are found again, quickly, by several processes, within bounds; and that no file can do harm."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zerver.errors import TraceError
from zerver.trace.keeping.keep import WHYS
from zerver.trace.keeping.packing import MOST_UNPACKED, pack, unpack
from zerver.trace.keeping.queries import cleaned, queries
from zerver.trace.keeping.schema import SCHEMA
from zerver.trace.keeping.store import DamagedTrace, TraceStore, make_store, open_store
from zerver.trace.recording import Recording
from zerver.trace.summary import Filter, Summary

ROOT = Path(__file__).parents[2]
S = 1_000_000_000


def summary(number: int, **how: Any) -> Summary:
    fields: dict[str, Any] = {
        "run_id": f"req_{number:024x}",
        "began_unix_ns": number * S,
        "label": "GET /orders",
        "flow": "orders",
        "version": "1",
        "tenant": "acme",
        "priority": "default",
        "status": "done",
        "http": 200,
        "took_ns": 5_000_000,
        "kept": "sample",
    }
    return Summary(**fields | how)


def recording(it: Summary, body: bytes = b"{}", plan: bytes = b'{"steps":["charge"]}') -> Recording:
    plan_id = f"{it.flow}{it.version}"
    return Recording(run_id=it.run_id, began_unix_ns=it.began_unix_ns, plan_id=plan_id, plan=plan, body=body)


def write(store: TraceStore, *summaries: Summary, body: bytes = b"{}") -> None:
    store.write([(it, recording(it, body)) for it in summaries])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    with make_store(tmp_path / "traces.db") as made:
        yield made


def numbers(found: list[Summary]) -> list[int]:
    return [int(it.run_id.removeprefix("req_"), 16) for it in found]


# ---- what is written is found ---------------------------------------------------------------


def test_a_run_is_read_as_it_was_written(store: TraceStore) -> None:
    it = summary(1, http=None, cause="FAILED sql: \x1b[31m", unresolved=2, slow=True, trace_id="ab" * 16, records=7)
    body = os.urandom(100_000)
    write(store, it, body=body)
    with open_store(store.path) as reader:
        assert reader.search() == [it]
        assert reader.read(it.run_id) == recording(it, body)
        assert reader.read("req_none") is None


def test_a_run_that_is_written_again_is_replaced(store: TraceStore) -> None:
    write(store, summary(1), summary(2))
    write(store, summary(1, status="failed", kept="error"), body=b"[1]")
    assert store.search(Filter(failed=True)) == [summary(1, status="failed", kept="error")]
    found = store.find(summary(1).run_id)
    assert found is not None
    assert found.body == b"[1]"
    assert dict(store.statistics().runs) == {"sample": 1, "error": 1}


def test_an_id_is_found_by_whatever_somebody_copied(store: TraceStore) -> None:
    one = summary(1, run_id="req_7a8f3c2b1111", trace_id="4bf92f3577b34da6a3ce929d0e0e4736")
    two = summary(2, run_id="req_7a8f3c2b2222", trace_id="4bf92f3577b34da6a3ce929d0e0e4736")
    write(store, one, two, summary(3, run_id="req_7"))
    for said in (
        "req_7a8f3c2b1111",
        "7a8f3c2b1",
        "[req_7a8f3c2b1…]",
        "`7a8f3c2b1`",
        " req_7a8f3c2b1...\n",
        '"7a8f3c2b1",',
    ):
        assert store.matching(said) == [one]
        assert store.find(said) == recording(one)
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert store.matching(traceparent) == store.matching(one.trace_id) == store.matching("7a8f") == [two, one]
    assert store.find("7a8f") is None
    assert store.matching("req_7") == [summary(3, run_id="req_7")]  # whole ids come before beginnings
    assert store.matching("7a8f", 1) == [two]
    for said in ("", "[]", "x", "%", "req_8", "\udcff", "7a8f\x00", "'; drop table runs"):
        assert store.matching(said) == []


summaries = st.builds(
    summary,
    st.integers(1, 40),
    label=st.sampled_from(["GET /a", "GET /b", ""]),
    flow=st.sampled_from(["a", "b"]),
    version=st.sampled_from(["1", "2"]),
    tenant=st.sampled_from(["acme", "zeta", ""]),
    status=st.sampled_from(["done", "failed", "deadline"]),
    http=st.sampled_from([None, 200, 404, 500, 503]),
    took_ns=st.integers(0, 100),
    kept=st.sampled_from(WHYS),
    slow=st.booleans(),
    unresolved=st.sampled_from([0, 0, 2]),
)
filters = st.builds(
    Filter,
    route=st.sampled_from(["", "GET /a", "a", "c"]),
    status=st.sampled_from(["", "done", "failed", "503", "5xx", "4XX", "nonsense"]),
    tenant=st.sampled_from([None, "acme", ""]),
    failed=st.booleans(),
    unresolved=st.booleans(),
    slow=st.booleans(),
    slower_than_ns=st.none() | st.integers(0, 100),
    since_unix_ns=st.none() | st.integers(0, 40).map(lambda number: number * S),
    until_unix_ns=st.none() | st.integers(0, 40).map(lambda number: number * S),
    kept=st.sampled_from(["", "error"]),
)


def test_a_search_finds_what_fits_and_reads_no_more_than_it_shows(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the filter: as a plain loop over the runs finds it, by an index that is in the order of the list."""
    folder = tmp_path_factory.mktemp("search")

    @given(st.lists(summaries, max_size=30, unique_by=lambda it: it.run_id), filters, st.integers(1, 10))
    def check(listed: list[Summary], wanted: Filter, count: int) -> None:
        path = folder / "traces.db"
        path.unlink(missing_ok=True)
        with make_store(path) as store:
            write(store, *listed)
            expected = sorted(filter(wanted.fits, listed), key=lambda it: -it.began_unix_ns)[:count]
            assert store.search(wanted, count) == expected
            told: list[str] = []
            store._db.set_trace_callback(told.append)
            store.search(wanted, count)
            store._db.set_trace_callback(None)
            for statement in told:
                check_plan(store._db, statement)

    check()


def check_plan(db: sqlite3.Connection, statement: str) -> None:
    """A list is read in order: no sort, and no table from end to end."""
    for *_, detail in db.execute(f"explain query plan {statement}"):
        if "TEMP B-TREE" in detail:  # two small lists of numbers of routes are put together
            assert "UNION" in detail, f"{detail}: {statement}"
        assert not re.fullmatch(r"SCAN (runs|routes|bodies|plans)", detail), f"{detail}: {statement}"


def test_each_filter_alone_reads_its_own_index() -> None:
    chosen = {
        "runs_by_age": Filter(),
        "runs_by_route": Filter(route="GET /a"),
        "runs_by_tenant": Filter(tenant="acme"),
        "runs_by_http": Filter(status="503"),
        "runs_by_kept": Filter(kept="error"),
        "failed_by_age": Filter(failed=True),
        "failed_by_route": Filter(failed=True, route="GET /a"),
        "slow_by_age": Filter(slow=True),
        "slow_by_route": Filter(slow=True, route="GET /a"),
        "unresolved_by_age": Filter(unresolved=True),
    }
    assert {index: index for index in chosen} == {
        index: next(queries(wanted, [1], [503]))[0] for index, wanted in chosen.items()
    }
    made = set(re.findall(r"create index (\w+_by_\w+) on runs", SCHEMA))
    assert made - set(chosen) == {"runs_by_trace"}


def test_reading_one_run_among_many_scans_nothing(store: TraceStore) -> None:
    write(store, *map(summary, range(50)))
    told: list[str] = []
    store._db.set_trace_callback(told.append)
    store.matching("req_0000")
    store.matching("ab" * 16)
    store.read(summary(7).run_id)
    store.after(40)
    store._db.set_trace_callback(None)
    for statement in told:
        for *_, detail in store._db.execute(f"explain query plan {statement}"):
            assert not detail.startswith("SCAN"), f"{detail}: {statement}"


@example("0;\r{")
@given(st.text(max_size=20))
def test_an_id_that_was_cleaned_is_clean(said: str) -> None:
    assert cleaned(said) == cleaned(cleaned(said))


# ---- following ------------------------------------------------------------------------------


def test_a_reader_notices_what_another_has_written(store: TraceStore) -> None:
    with open_store(store.path) as reader:
        assert reader.has_changed()  # nobody has looked yet
        assert not reader.has_changed()
        assert (reader.last(), reader.after(0)) == (0, [])
        write(store, summary(5), summary(3))
        assert reader.has_changed()
        assert not reader.has_changed()
        assert reader.after(0) == [(1, summary(5)), (2, summary(3))]
        assert reader.after(0, 1) == [(1, summary(5))]
        assert (reader.last(), reader.after(2)) == (2, [])


def test_numbers_are_not_used_again(store: TraceStore) -> None:
    write(store, summary(1), summary(2))
    assert store.prune(most_bytes=1 << 30, oldest_unix_ns=3 * S)
    write(store, summary(4))
    assert store.after(2) == [(3, summary(4))]


# ---- bounds ---------------------------------------------------------------------------------


def test_what_is_too_old_goes_a_slice_at_a_time(store: TraceStore) -> None:
    write(store, *map(summary, range(1, 501)))
    slices = 0
    while store.prune(most_bytes=1 << 30, oldest_unix_ns=451 * S):
        slices += 1
        assert len(store.search(count=1000)) == max(50, 500 - 200 * slices)
    assert slices == 3
    assert numbers(store.search(count=1000)) == list(range(500, 450, -1))
    assert [row[0] for row in store._db.execute("select count(*) from bodies")] == [50]
    assert dict(store.statistics().runs) == {"sample": 50}


def test_what_is_too_much_goes_and_errors_outlive_a_busy_day(store: TraceStore) -> None:
    rng = Random(1)
    most = 3 << 20
    write(
        store, *(summary(number, kept="error", status="defect") for number in range(1, 101)), body=rng.randbytes(2000)
    )
    for number in range(200, 4200, 100):
        body = rng.randbytes(2000)
        write(store, *(summary(number + at, kept="sample") for at in range(100)), body=body)
        while store.prune(most_bytes=most, oldest_unix_ns=0):
            pass
        assert store.statistics().used_bytes <= most
    assert len(store.search(Filter(failed=True), 1000)) == 100  # older than all the rest
    samples = numbers(store.search(Filter(kept="sample"), 10_000))
    assert samples == list(range(4199, 4199 - len(samples), -1))
    assert len(samples) > 500
    assert store.statistics().file_bytes < most * 1.3
    assert store.path.stat().st_size < most * 1.3


def test_a_file_of_errors_keeps_the_newest(store: TraceStore) -> None:
    body = Random(1).randbytes(20_000)
    for number in range(1, 301):
        write(store, summary(number, kept="error"), body=body)
    while store.prune(most_bytes=2 << 20, oldest_unix_ns=0):
        pass
    left = numbers(store.search(count=1000))
    assert left == list(range(300, 300 - len(left), -1))
    assert 80 < len(left) <= 100


def test_large_runs_go_in_smaller_slices_and_the_file_shrinks(store: TraceStore) -> None:
    body = Random(1).randbytes(1 << 20)
    for number in range(1, 13):
        write(store, summary(number), body=body)
    before = store.statistics().file_bytes
    assert store.prune(most_bytes=1 << 20, oldest_unix_ns=0)
    assert len(store.search()) == 8
    while store.prune(most_bytes=1 << 20, oldest_unix_ns=0):
        pass
    for _ in range(20):
        store.prune(most_bytes=1 << 20, oldest_unix_ns=0)
    assert store.statistics().file_bytes < before / 4


def test_plans_are_stored_once_and_go_with_their_last_run(store: TraceStore) -> None:
    def plans() -> list[Any]:
        return sorted(row[0] for row in store._db.execute("select hash from plans"))

    write(store, summary(1), summary(2), summary(3, label="PUT /orders"), summary(4, version="2"))
    assert plans() == ["orders1", "orders2"]
    body = Random(1).randbytes(2 << 20)
    write(store, summary(5, version="3"), body=body)
    while store.prune(most_bytes=1 << 20, oldest_unix_ns=0):
        pass
    assert plans() == []
    write(store, summary(6))  # what was swept away is made again
    assert store.find(summary(6).run_id) == recording(summary(6))


# ---- several processes ----------------------------------------------------------------------

WRITER = """
import sys
from tests.trace.test_store import summary, write
from zerver.trace.keeping.store import make_store
first = int(sys.argv[2])
with make_store(sys.argv[1]) as store:
    for number in range(first, first + 400, 4):
        write(store, *(summary(number + at, version=str(number % 7)) for at in range(4)))
        store.prune(most_bytes=1 << 30, oldest_unix_ns=0)
"""


def test_processes_write_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "traces.db"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(first)], env=environment, cwd=ROOT)
        for first in (1000, 2000, 3000)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with open_store(path) as store:
        assert len(store.search(count=5000)) == 1200
        assert dict(store.statistics().runs) == {"sample": 1200}
        assert store._db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert [name for name in os.listdir(path.parent) if name.endswith(".new")] == []


# ---- files that are not as they should be ---------------------------------------------------


def test_a_missing_file_is_said_to_be_missing_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="there is no trace file"):
        open_store(tmp_path / "traces.db")
    assert os.listdir(tmp_path) == []


def test_a_file_is_for_its_owner_alone(store: TraceStore) -> None:
    write(store, summary(1))
    for name in os.listdir(store.path.parent):
        assert (store.path.parent / name).stat().st_mode & 0o077 == 0


def test_an_empty_file_becomes_one(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    path.touch()
    with make_store(path) as store:
        write(store, summary(1))
        assert not store.was_moved


@pytest.mark.parametrize("opens", [open_store, make_store])
@pytest.mark.parametrize("wal", [False, True])
def test_the_database_of_another_program_is_left_as_it_is(tmp_path: Path, opens: Any, wal: bool) -> None:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as db:
        if wal:
            db.execute("pragma journal_mode = wal")
        db.execute("create table runs (id text)")
    db.close()
    before, there = path.read_bytes(), os.listdir(tmp_path)
    with pytest.raises(TraceError, match=r"database of another program.*--db or ZERVER_TRACE_DB"):
        opens(path)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (before, there)


@pytest.mark.parametrize("content", [b"hello", b"SQLite format 3\x00", b"x" * 4096])
def test_what_is_no_database_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="is no trace file, and was left as it is"):
        make_store(path)
    assert path.read_bytes() == content


def test_a_folder_and_a_place_where_nothing_can_be_made_are_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read"):
        open_store(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="cannot make the trace file"):
        make_store(tmp_path / "file" / "traces.db")


@pytest.mark.parametrize(("version", "age"), [(0, "an older"), (2, "a newer")])
def test_another_version_is_refused(store: TraceStore, version: int, age: str) -> None:
    store._db.execute(f"pragma user_version = {version}")
    store.close()
    with pytest.raises(TraceError, match=f"of {age} Zerver"):
        open_store(store.path)


def test_a_file_with_a_program_of_its_own_is_refused(store: TraceStore) -> None:
    store._db.execute("create view more as select * from runs")
    store.close()
    with pytest.raises(TraceError, match="no trace file as Zerver makes them"):
        open_store(store.path)


def test_a_damaged_file_is_said_to_be_damaged(store: TraceStore) -> None:
    write(store, *map(summary, range(1, 400)))
    store.close()
    content = bytearray(store.path.read_bytes())
    for at in range(4096, len(content)):
        content[at] ^= 0x5A
    store.path.write_bytes(content)
    with pytest.raises(DamagedTrace, match=r"is damaged .*; move it away, and traces.db-wal with it"):
        open_store(store.path).search()


@given(st.integers(0, 1 << 20), st.integers(1, 400), st.integers(0, 1 << 30))
def test_no_file_does_more_harm_than_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, length: int, seed: int
) -> None:
    content = bytearray(_whole(tmp_path_factory))
    at %= len(content)
    content[at : at + length] = Random(seed).randbytes(len(content[at : at + length]))
    path = tmp_path_factory.getbasetemp() / "bent.db"
    path.write_bytes(content)
    for name in (f"{path}-wal", f"{path}-shm"):
        Path(name).unlink(missing_ok=True)
    try:
        with open_store(path) as store:
            for it in store.search(count=100):
                store.read(it.run_id)
            store.matching("req_0")
            store.search(Filter(route="GET /orders", failed=True))
            store.after(0)
            store.statistics()
    except TraceError:
        pass


_MADE: dict[str, bytes] = {}


def _whole(factory: pytest.TempPathFactory) -> bytes:
    if not _MADE:
        path = factory.mktemp("whole") / "traces.db"
        with make_store(path) as store:
            write(store, *map(summary, range(1, 60)), body=b"[1, 2, 3]" * 20)
        _MADE["it"] = path.read_bytes()
    return _MADE["it"]


@pytest.mark.parametrize(
    ("column", "value"),
    [("began", "'soon'"), ("status", "null"), ("http", "'x'"), ("cause", "x'ff'"), ("cause", "1.5")],
)
def test_a_row_of_other_types_is_said_to_be_damaged(store: TraceStore, column: str, value: str) -> None:
    write(store, summary(1))
    store._db.execute("pragma ignore_check_constraints = on")
    try:
        store._db.execute(f"update runs set {column} = {value}")
    except sqlite3.IntegrityError:
        return  # it cannot even be written
    if store._db.execute(f"select typeof({column}) from runs").fetchone()[0] == "text" and column == "cause":
        return  # it has become what it should be
    with pytest.raises(TraceError, match="damaged"):
        store.search()


@pytest.mark.parametrize("body", [b"", b"nonsense", pack(b"x" * 1000, b"another plan")[:-3]])
def test_a_body_that_is_none_is_said_to_be_damaged(store: TraceStore, body: bytes) -> None:
    write(store, summary(1))
    store._db.execute("update bodies set body = ?", (body,))
    with pytest.raises(TraceError, match="is damaged"):
        store.read(summary(1).run_id)


def test_a_body_is_not_unpacked_beyond_all_bounds() -> None:
    with pytest.raises(ValueError, match="larger than"):
        unpack(pack(bytes(MOST_UNPACKED + 1), b"p"), b"p")


@given(st.binary(max_size=2000), st.binary(max_size=40_000))
def test_a_body_is_unpacked_as_it_was(body: bytes, plan: bytes) -> None:
    assert unpack(pack(body, plan), plan[-32768:]) == body


def test_a_full_disk_is_told_and_what_was_there_stays(store: TraceStore) -> None:
    write(store, summary(1))
    (pages,) = store._db.execute("pragma page_count").fetchone()
    store._db.execute(f"pragma max_page_count = {pages}")
    with pytest.raises(TraceError, match=r"the disk of .* is full"):
        write(store, summary(2), summary(3), body=os.urandom(100_000))
    assert store.search() == [summary(1)]
    store._db.execute("pragma max_page_count = 100000")
    write(store, summary(2))
    assert numbers(store.search()) == [2, 1]


def test_a_moved_file_is_noticed(store: TraceStore) -> None:
    assert not store.was_moved
    store.path.rename(store.path.with_name("old.db"))
    assert store.was_moved
    with make_store(store.path) as anew:
        assert store.was_moved
        assert not anew.was_moved


def test_a_closed_store_says_so(store: TraceStore) -> None:
    store.close()
    with pytest.raises(TraceError, match="closed"):
        store.search()


def test_a_copy_where_nothing_can_be_written_is_read(store: TraceStore, tmp_path: Path) -> None:
    write(store, summary(1))
    store.close()
    folder = tmp_path / "evidence"
    folder.mkdir()
    copy = folder / "traces.db"
    copy.write_bytes(store.path.read_bytes())
    copy.chmod(0o400)
    folder.chmod(0o500)
    try:
        with open_store(copy) as reader:
            assert reader.search() == [summary(1)]
    finally:
        folder.chmod(0o700)


def test_summaries_are_values() -> None:
    assert attrs.evolve(summary(1)) == summary(1)
    assert summary(1).route == "GET /orders"
    assert summary(1, label="").route == "orders"
