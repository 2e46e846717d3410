"""`zerver jobs`: what is to be done is listed and told, and what somebody does about it is done, after a question."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.cli.commands import COMMAND, Ended, environment, zerver
from tests.cli.working import SHOP, known, mail, opened
from zerver.jobs.places import open_postgres_jobs
from zerver.jobs.port import Order, QueueRule, Verdict

APP = ("--app", "shop:app")
RULES = [QueueRule("mail"), QueueRule("reports")]
HOUR = 3_600_000_000_000


def jobs(folder: Path, *arguments: str, place: tuple[str, ...] = APP) -> Ended:
    return zerver(folder, "jobs", *arguments, *place, shop=SHOP)


def told(folder: Path, *arguments: str, place: tuple[str, ...] = APP) -> Any:
    said = jobs(folder, *arguments, "--json", place=place)
    assert said.status == 0, said
    return json.loads(said.out)


def answered(folder: Path, answer: str, *arguments: str) -> Ended:
    """The command, with an answer on its standard input."""
    (folder / "shop.py").write_text(SHOP)
    done = subprocess.run(
        [*COMMAND, "jobs", *arguments, *APP],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False, input=answer,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


async def prepare(folder: Path) -> None:
    """A job of each state, as if a worker had been there: `ada` is done, `bob` dead, `cid` is tried again in an hour,
    `dan` runs, `eve` and `report` are available, and `last` waits for `eve`.
    """
    async with opened(folder) as store:
        await store.renew("worker", 3600.0)
        await store.order([attrs.evolve(mail(name), tenant="acme") for name in ("ada", "bob", "cid", "dan")])
        verdicts = {
            "ada": Verdict("done", result='{"sent": "ada"}'),
            "bob": Verdict("dead", error="there is no \x1b[31mbob\nhere"),
            "cid": Verdict("scheduled", time.time_ns() + HOUR, error="the post is closed"),
        }
        for job in await store.take("worker", RULES, 4):
            if job.job_id in verdicts:
                await store.settle([(job.job_id, job.fence, verdicts[job.job_id])])
        await store.progress("dan", 3, 10, "sorting")
        await store.order([attrs.evolve(mail("eve"), releases="last"), Order("last", "send_mail", "mail", awaits=1)])
        await store.order([mail("report", "send_report")])


async def test_jobs_are_listed_the_newest_first(tmp_path: Path) -> None:
    await prepare(tmp_path)
    listed = jobs(tmp_path, "list")
    assert listed.status == 0, listed
    header, *lines = listed.out.splitlines()
    assert header.split() == ["JOB", "FLOW", "QUEUE", "TENANT", "STATE", "TRY", "SINCE", "WHAT"]
    assert [line.split()[0] for line in lines] == ["report", "last", "eve", "dan", "cid", "bob", "ada"]
    by_name = {line.split()[0]: line for line in lines}
    assert by_name["dan"].endswith("3/10 sorting")
    assert by_name["last"].endswith("waits for 1 job")
    assert by_name["cid"].endswith(": the post is closed")
    assert by_name["bob"].endswith(r"there is no \x1b[31mbob")


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (("--state", "dead", "--state", "done"), ["bob", "ada"]),
        (("--queue", "reports"), ["report"]),
        (("--flow", "send_report"), ["report"]),
        (("--tenant", "acme", "--text", "closed"), ["cid"]),
        (("--limit", "2"), ["report", "last"]),
        (("--since", "1h", "--state", "done"), ["ada"]),
        (("--since", "2100-01-01T00:00:00Z"), []),
    ],
)
async def test_filters_choose(filters: tuple[str, ...], names: list[str], tmp_path: Path) -> None:
    await prepare(tmp_path)
    assert [job["job_id"] for job in told(tmp_path, "list", *filters)] == names


async def test_a_job_is_told_in_full(tmp_path: Path) -> None:
    await prepare(tmp_path)
    dan = jobs(tmp_path, "show", "dan").out
    assert "state     running\n" in dan
    assert "progress  3/10 sorting\n" in dan
    assert 'body      {"to": "dan"}\n' in dan
    assert dan.endswith("runs      job_dan.1\n          zerver trace job_dan.1\n")
    assert "state     scheduled: it is to begin at" in jobs(tmp_path, "show", "job_cid.1").out
    assert "error     there is no \\x1b[31mbob\n          here\n" in jobs(tmp_path, "show", "bo").out
    assert 'result    {"sent": "ada"}\n' in jobs(tmp_path, "show", "ada").out
    last = told(tmp_path, "show", "last")
    assert (last["why"], last["runs"], last["body"]) == ("it waits for 1 job to be done", [], None)
    assert last["ordered"].endswith("Z")


async def test_what_the_settings_hide_is_hidden(tmp_path: Path) -> None:
    await prepare(tmp_path)
    (tmp_path / "zerver.toml").write_text('[trace]\nhide = ["to"]\n\n[serve]\napp = "shop:app"\n')
    shown = jobs(tmp_path, "show", "dan", place=())
    assert 'body      {"to": "‹secret›"}' in shown.out


async def test_queues_are_counted(tmp_path: Path) -> None:
    await prepare(tmp_path)
    header, mails, reports = jobs(tmp_path, "queues").out.splitlines()
    assert header.split()[:4] == ["QUEUE", "WAITING", "SCHEDULED", "AVAILABLE"]
    assert mails.split()[:9] == ["mail", "1", "1", "1", "1", "0", "1", "1", "0"]
    assert reports.split()[:4] == ["reports", "0", "0", "1"]
    assert told(tmp_path, "queues")[0]["counts"]["dead"] == 1


async def test_a_store_is_found_by_its_url_or_by_the_app(tmp_path: Path) -> None:
    await prepare(tmp_path)
    url = f"sqlite:///{tmp_path}/shop.db"
    assert len(told(tmp_path, "list", place=("--jobs", url))) == 7
    (tmp_path / "zerver.toml").write_text(f'[work]\njobs = "{url}"\n')
    assert len(told(tmp_path, "list", place=())) == 7
    elsewhere = (
        'from zerver import App\nfrom zerver.jobs import jobs\napp = App(capabilities=[jobs("sqlite:///shop.db")])'
    )
    assert zerver(tmp_path, "jobs", "show", "dan", "--app", "other", other=elsewhere).status == 0


async def test_a_dead_job_begins_again(tmp_path: Path) -> None:
    await prepare(tmp_path)
    assert jobs(tmp_path, "retry", "bob").out == "1 job will begin again\n"
    done = jobs(tmp_path, "retry", "bob", "ada", "dan")
    assert (done.status, done.out) == (1, "0 jobs will begin again\n")
    assert "3 of 3 jobs cannot begin again: only those can that are dead, cancelled, scheduled" in done.err
    async with opened(tmp_path) as store:
        job = await known(store, "bob")
        assert (job.state, job.attempt, job.error) == ("available", 0, "")
    assert jobs(tmp_path, "retry", "--all").status == 2


async def test_whoever_means_many_is_asked(tmp_path: Path) -> None:
    await prepare(tmp_path)
    no = answered(tmp_path, "n\n", "cancel", "--tenant", "acme")
    assert no.status == 1
    assert "2 jobs would be cancelled: 1 running, 1 scheduled. Go on?" in no.err
    assert answered(tmp_path, "", "cancel", "--tenant", "acme").status == 1
    async with opened(tmp_path) as store:
        assert (await known(store, "cid")).state == "scheduled"
    yes = answered(tmp_path, "y\n", "cancel", "--tenant", "acme", "--reason", "the account is gone")
    assert (yes.status, yes.out) == (0, "2 jobs cancelled\n")
    async with opened(tmp_path) as store:
        assert (await known(store, "cid")).error == "the account is gone"
        assert await store.cancelled("worker") == {"dan": "the account is gone"}
    assert jobs(tmp_path, "delete", "--all", "--yes").out == "3 jobs deleted\n"
    assert [job["job_id"] for job in told(tmp_path, "list")] == ["report", "last", "eve", "dan"]


async def test_a_queue_is_paused_and_goes_on(tmp_path: Path) -> None:
    await prepare(tmp_path)
    assert jobs(tmp_path, "pause", "mail").out == "queue mail is paused; `zerver jobs resume mail` lets it go on\n"
    assert "state     available: queue mail is paused\n" in jobs(tmp_path, "show", "eve").out
    assert jobs(tmp_path, "queues").out.splitlines()[1].endswith("PAUSED")
    wrong = jobs(tmp_path, "pause", "mial")
    assert wrong.status == 2
    assert "there is no queue 'mial' in shop:app; there are: default, mail, reports;" in wrong.err
    assert jobs(tmp_path, "resume", "mail").out == "queue mail goes on\n"
    again = jobs(tmp_path, "resume", "mail")
    assert again.status == 2
    assert "queue 'mail' is not paused in shop:app; those that are: none" in again.err


async def test_a_job_is_enqueued_as_the_app_declares_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        first = jobs(tmp_path, "enqueue", "send_mail", "--body", '{"to": "ada"}', "--key", "once")
        assert first.status == 0, first
        assert jobs(tmp_path, "enqueue", "send_mail", "--body", '{"to": "ada"}', "--key", "once").out == first.out
        job = await known(store, first.out.strip())
        assert (job.queue, job.body, job.state, job.priority) == ("mail", '{"to": "ada"}', "available", "batch")
        later = jobs(tmp_path, "enqueue", "send_mail", "--delay", "2h", "--queue", "reports", "--tenant", "acme")
        job = await known(store, later.out.strip())
        assert (job.queue, job.state, job.tenant) == ("reports", "scheduled", "acme")
        at = jobs(tmp_path, "enqueue", "send_mail", "--at", "2100-01-01T00:00:00+02:00")
        assert (await known(store, at.out.strip())).at_unix_ns == 4_102_437_600_000_000_000
        one = jobs(tmp_path, "enqueue", "send_mail", "--unique", "x")
        other = jobs(tmp_path, "enqueue", "send_mail", "--unique", "x")
        assert one.out == other.out
        assert "stands there already" in other.err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("send_mial",), 1, "flow 'send_mial' is no job of this app; known are count, send_mail, send_report"),
        (("send_mail", "--body", "{"), 2, "--body is no JSON"),
        (("send_mail", "--at", "2100-01-01T00:00:00"), 2, "write it with its zone"),
        (("send_mail", "--delay", "soon"), 2, "give a time, as 10, 250ms, 15m or 7d"),
        (("send_mail", "--delay", "1", "--at", "2100-01-01T00:00:00Z"), 2, "give one of them"),
        (("send_mail", "--queue", "mial"), 1, "queue 'mial' is not declared"),
    ],
)
async def test_what_cannot_be_enqueued_is_said(
    arguments: tuple[str, ...], status: int, says: str, tmp_path: Path
) -> None:
    async with opened(tmp_path):
        said = jobs(tmp_path, "enqueue", *arguments)
    assert said.status == status, said
    assert says in said.err
    assert "Traceback" not in said.err


async def test_schedules_are_told_in_words(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        new = jobs(tmp_path, "schedules").out
        assert new.splitlines()[1].endswith("no worker has asked after it yet")
        await store.due("nightly", "0 3 * * * Europe/Berlin", 4_102_437_600_000_000_000)
        await store.due("older", "*/5 * * * * UTC", 4_102_437_600_000_000_000)
    nightly, older = told(tmp_path, "schedules")
    assert nightly == {
        "schedule": "nightly",
        "expression": "0 3 * * *",
        "when": "At 03:00 every day",
        "zone": "Europe/Berlin",
        "due": "2099-12-31T22:00:00Z",
        "note": None,
    }
    assert older["note"] == "the app has it no more"


async def test_old_jobs_are_forgotten_and_dead_ones_stay(tmp_path: Path) -> None:
    await prepare(tmp_path)
    assert jobs(tmp_path, "prune").out == "0 jobs forgotten\n"
    assert jobs(tmp_path, "prune", "--older", "0").out == "1 job forgotten\n"
    assert [job["job_id"] for job in told(tmp_path, "list", "--tenant", "acme")] == ["dan", "cid", "bob"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("list",), "jobs of which app? Give --app MODULE:APP"),
        (("list", "--app", "shop:app"), "there is no shop.db; a worker makes it"),
        (("list", "--app", "shop:idle"), "shop:idle keeps no jobs: add jobs()"),
        (("list", "--jobs", "sqlite:///no.db"), "there is no no.db"),
        (("list", "--jobs", "mysql://root:pass@db"), "--jobs: makes no sense: give sqlite:///FILE"),
        (("list", "--jobs", "sqlite:///empty.db"), "empty.db has no jobs in it"),
        (("enqueue", "send_mail", "--jobs", "sqlite:///empty.db"), "jobs of which app?"),
        (("list", "--app", "memory:app"), "in the memory of its process"),
        (("list", "--since", "yesterday"), "'yesterday' is no time"),
    ],
)
def test_a_store_that_is_not_there_is_said_and_not_made(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    memory = (
        "from zerver import App\nfrom zerver.jobs import jobs\nfrom zerver.sql import sqlite\n"
        'app = App(capabilities=[sqlite(":memory:"), jobs()])\n'
    )
    said = zerver(tmp_path, "jobs", *arguments, shop=SHOP, memory=memory)
    assert said.status == 2, said
    assert says in said.err
    assert "Traceback" not in said.err
    assert "pass" not in said.err
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["empty.db"]
    assert not (tmp_path / "empty.db").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "zoe"), "no job in shop:app begins with 'zoe'"),
        (("retry",), "which jobs? Give their ids, or a filter"),
        (("cancel", "ada", "--all"), "give ids, or filters, not both"),
        (("delete", "--state", "running"), "jobs that are running cannot be deleted"),
        (("show", ""), "'' may be any of these: give more of the id"),
        (("cancel", "--text", "nowhere"), "no such jobs in shop:app"),
    ],
)
async def test_what_makes_no_sense_is_said(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    await prepare(tmp_path)
    said = jobs(tmp_path, *arguments)
    assert said.status == 2, said
    assert says in said.err
    assert "Traceback" not in said.err


async def test_a_store_in_the_postgresql_of_the_app(conninfo: str, tmp_path: Path) -> None:
    source = (
        "from zerver import App, Done, Flow, step\nfrom zerver.jobs import jobs\nfrom zerver.sql import postgres\n\n\n"
        "@step\ndef nothing() -> Done:\n    return Done()\n\n\n"
        f"app = App(capabilities=[postgres({conninfo!r}), jobs()])\napp.job(Flow('idle', [nothing]))\n"
    )
    async with open_postgres_jobs(conninfo) as store:
        made = zerver(tmp_path, "jobs", "enqueue", "idle", "--app", "bank:app", bank=source)
        assert made.status == 0, made
        assert (await known(store, made.out.strip())).state == "available"
        paused = zerver(tmp_path, "jobs", "pause", "default", "--app", "bank:app")
        assert paused.status == 0, paused
        shown = zerver(tmp_path, "jobs", "show", made.out.strip(), "--app", "bank:app")
        assert "state     available: queue default is paused\n" in shown.out
