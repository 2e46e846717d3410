"""`zerver work`, and jobs beside `zerver serve`, as processes: what is asked for is done once, whatever ends them."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import attrs
import pytest
import trio

from tests.cli.commands import serving, zerver
from tests.cli.working import (
    SHOP,
    SHORT_LEASE,
    all_jobs,
    children,
    ended,
    known,
    lines,
    mail,
    opened,
    until,
    until_lines,
    until_state,
    working,
)


async def test_what_is_enqueued_over_http_is_done_by_a_worker_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    async with serving(tmp_path, "--no-jobs", source=SHOP) as server, opened(tmp_path) as store:
        answer = await server.ask("POST /orders/ada")
        assert answer.startswith("HTTP/1.1 200 ")
        (job,) = await all_jobs(store)
        assert job.job_id in answer
        assert job.state == "available"
        async with working(tmp_path):
            done = await until_state(store, job.job_id, "done")
    assert (done.result, done.attempt) == ('{"sent":"ada"}', 1)
    assert [line.split()[0] for line in lines(tmp_path / "sent")] == ["ada"]


async def test_a_server_works_on_its_jobs_itself(tmp_path: Path) -> None:
    async with serving(tmp_path, source=SHOP) as server, opened(tmp_path) as store:
        await server.ask("POST /orders/ada")
        await until_lines(tmp_path / "begun")
        server.process.terminate()
        assert await server.err_line() == "draining; a second signal ends at once"
        (tmp_path / "go").touch()
        assert await ended(server) == 0
        (job,) = await all_jobs(store)
    assert job.state == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_job_under_way_finish_and_begins_no_other(
    number: signal.Signals, tmp_path: Path
) -> None:
    async with working(tmp_path, "--seats", "1", "--drain", "60") as worker, opened(tmp_path) as store:
        await store.order([mail("ada")])
        await until_lines(tmp_path / "begun")
        await store.order([mail("bob")])
        worker.process.send_signal(number)
        assert await worker.err_line() == "draining; a second signal ends at once"
        (tmp_path / "go").touch()
        assert await ended(worker) == 0
        assert ((await known(store, "ada")).state, (await known(store, "bob")).state) == ("done", "available")
    assert lines(tmp_path / "begun") == ["ada"]


async def test_a_job_that_takes_longer_than_the_drain_is_put_back_as_if_it_had_not_been_begun(tmp_path: Path) -> None:
    async with working(tmp_path, "--drain", "0.1") as worker, opened(tmp_path) as store:
        await store.order([mail("ada")])
        await until_lines(tmp_path / "begun")
        worker.process.terminate()
        assert await ended(worker) == 0
        job = await known(store, "ada")
        assert job.state in ("scheduled", "available")
        assert (job.attempt, job.owner) == (0, "")
        (tmp_path / "go").touch()
        async with working(tmp_path):
            await until_state(store, "ada", "done")
    assert len(lines(tmp_path / "sent")) == 1


async def test_a_second_signal_ends_at_once_and_the_next_worker_rescues(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with working(tmp_path, "--drain", "60", said=SHORT_LEASE) as worker:
            await store.order([mail("ada")])
            await until_lines(tmp_path / "begun")
            worker.process.terminate()
            await worker.err_line()
            worker.process.terminate()
            assert await ended(worker) == 128 + signal.SIGTERM
        assert (await known(store, "ada")).state == "running"
        (tmp_path / "go").touch()
        async with working(tmp_path, said=SHORT_LEASE):
            job = await until_state(store, "ada", "done")
    assert job.rescues >= 1


async def test_a_job_whose_worker_was_killed_is_begun_again_with_the_same_keys(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, working(tmp_path, said=SHORT_LEASE) as worker:
        await store.order([mail("ada")])
        await until_lines(tmp_path / "begun")
        before = await known(store, "ada")
        worker.process.kill()
        await worker.process.wait()
        (tmp_path / "go").touch()
        async with working(tmp_path, said=SHORT_LEASE):
            job = await until_state(store, "ada", "done")
    assert before.run_id == job.run_id
    ((to, key),) = {tuple(line.split()) for line in lines(tmp_path / "sent")}
    assert to == "ada"
    assert key.startswith(job.run_id)
    assert job.rescues >= 1
    assert job.attempt == 1


async def test_the_jobs_of_a_killed_worker_are_another_ones_that_is_there_already(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, working(tmp_path, "--seats", "2", said=SHORT_LEASE) as first:
        await store.order([mail("ada"), mail("bob")])
        await until_lines(tmp_path / "begun", 2)
        async with working(tmp_path, said=SHORT_LEASE):
            first.process.kill()
            await first.process.wait()
            await until_lines(tmp_path / "begun", 4)
            (tmp_path / "go").touch()
            for name in ("ada", "bob"):
                assert (await until_state(store, name, "done")).rescues >= 1
    assert sorted(line.split()[0] for line in set(lines(tmp_path / "sent"))) == ["ada", "bob"]


async def test_a_durable_job_whose_worker_was_killed_is_carried_on_from_where_it_was(tmp_path: Path) -> None:
    options = ("--journal", "sqlite:///shop.journal")
    async with opened(tmp_path) as store, working(tmp_path, *options, app="shop:durable") as worker:
        await store.order([attrs.evolve(mail("ada"), flow="send_parcel")])
        await until_lines(tmp_path / "begun")
        worker.process.kill()
        await worker.process.wait()
        (tmp_path / "go").touch()
        async with working(tmp_path, *options, app="shop:durable"):
            job = await until_state(store, "ada", "done")
    assert len(lines(tmp_path / "charged")) == 1
    assert [line.split()[0] for line in lines(tmp_path / "sent")] == ["ada"]
    assert job.result == '{"sent":"ada"}'


async def test_a_job_that_is_cancelled_by_hand_is_cut_where_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, working(tmp_path, "--seats", "1") as worker:
        await store.order([mail("ada"), mail("bob")])
        (begun,) = await until_lines(tmp_path / "begun")
        other = "bob" if begun == "ada" else "ada"
        cancelled = await trio.to_thread.run_sync(zerver, tmp_path, "jobs", "cancel", begun, "--app", "shop:app")
        assert (cancelled.status, cancelled.out) == (0, "1 job cancelled\n")
        assert (await until_state(store, begun, "cancelled")).error
        await until_lines(tmp_path / "begun", 2)
        (tmp_path / "go").touch()
        await until_state(store, other, "done")
        worker.process.terminate()
        assert await ended(worker) == 0
    assert [line.split()[0] for line in lines(tmp_path / "sent")] == [other]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who the workers are")
async def test_the_job_of_a_serving_worker_that_was_killed_is_done_by_those_after_it(tmp_path: Path) -> None:
    async with serving(tmp_path, "--workers", "2", source=SHOP, said=SHORT_LEASE) as server, opened(tmp_path) as store:
        await store.order([mail("ada")])
        await until_lines(tmp_path / "begun")
        for child in children(server.process.pid):
            os.kill(child, signal.SIGKILL)
        (tmp_path / "go").touch()
        assert (await until_state(store, "ada", "done")).rescues >= 1
        server.process.terminate()
        assert await ended(server) == 0


async def test_a_worker_of_some_queues_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    async with opened(tmp_path) as store, working(tmp_path, "--queues", "reports"):
        await store.order([mail("ada"), mail("sums", "send_report")])
        await until_state(store, "sums", "done")
        assert (await known(store, "ada")).state == "available"
        async with working(tmp_path, said={"ZERVER_WORK_QUEUES": "mail"}):
            await until_state(store, "ada", "done")


async def test_no_more_jobs_are_begun_than_there_are_seats(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, working(tmp_path, "--seats", "2"):
        await store.order([mail(f"number {n}") for n in range(5)])
        await until_lines(tmp_path / "begun", 2)
        (queue,) = await store.queues()
        assert (queue.counts["running"], queue.counts["available"]) == (2, 3)
        (tmp_path / "go").touch()
        for n in range(5):
            await until_state(store, f"number {n}", "done")


async def test_several_workers_that_serve_do_each_job_once(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    async with serving(tmp_path, "--workers", "2", source=SHOP) as server, opened(tmp_path) as store:

        async def order(name: str) -> None:
            assert (await server.ask(f"POST /orders/{name}")).startswith("HTTP/1.1 200 ")

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(order, f"number{n}")

        async def all_done() -> bool:
            return [job.state for job in await all_jobs(store)] == ["done"] * 20

        await until(all_done)
        server.process.terminate()
        assert await ended(server) == 0
    assert Counter(line.split()[0] for line in lines(tmp_path / "sent")) == {f"number{n}": 1 for n in range(20)}


async def test_an_order_and_its_job_are_both_there_or_neither_though_the_server_is_killed(tmp_path: Path) -> None:
    """Killed in the middle of many: an order without its mail, or a mail without its order, would be left behind."""
    async with serving(tmp_path, "--no-jobs", source=SHOP) as server:

        async def order(name: str) -> None:
            try:
                await server.ask(f"POST /orders/{name}")
            except (OSError, trio.BrokenResourceError):  # it was killed by now
                return

        async with trio.open_nursery() as nursery:
            for n in range(60):
                nursery.start_soon(order, f"number{n}")
            with closing(sqlite3.connect(tmp_path / "shop.db")) as database:

                async def some() -> bool:
                    return bool(database.execute("select count(*) from orders").fetchone()[0])

                await until(some)
            server.process.kill()
            await server.process.wait()
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database:
        ordered = {row[0] for row in database.execute("select customer from orders")}
        enqueued = {row[0] for row in database.execute("select json_extract(body, '$.to') from zerver_jobs")}
    assert ordered
    assert ordered == enqueued


def test_an_app_that_has_nothing_to_work_on_says_so(tmp_path: Path) -> None:
    said = zerver(tmp_path, "work", "shop:idle", shop=SHOP)
    assert said.status == 2
    assert "shop:idle has no jobs, and there is no journal" in said.err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((), 2, "which app? Write MODULE:APP"),
        (("nothing:app",), 2, "there is no module 'nothing'"),
        (("shop:send_mail",), 2, "is a Flow, not an App"),
        (("shop:app", "--queues", "mial"), 1, "queue 'mial' is not declared; known are default, mail, reports"),
        (("shop:app", "--seats", "0"), 2, "--seats"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: tuple[str, ...], status: int, says: str) -> None:
    said = zerver(tmp_path, "work", *arguments, shop=SHOP)
    assert said.status == status, said
    assert says in said.err
    assert "Traceback" not in said.err
