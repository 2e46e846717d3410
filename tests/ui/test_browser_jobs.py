"""Proves in a headless Chromium that jobs and cases are found, opened, and changed, by mouse and by keys, and that no
text of theirs becomes markup; with a clean console.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import attrs
import pytest
from selenium.webdriver.common.keys import Keys

from tests.ui import gallery
from tests.ui.browser import Browser, check_installed, open_browser
from tests.ui.serving import Served, open_served
from tests.ui.workshop import SECRET, Mail, Workshop, settled
from zerver import Flow
from zerver.jobs import JobDesk, enqueue
from zerver.jobs.port import Wanted
from zerver.journal import open_journal

DAY = 86_400.0
CANARY = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@attrs.frozen(eq=False)
class World:
    """A workshop that is served."""

    shop: Workshop
    served: Served

    def do(self, act: Any, *args: Any, **options: Any) -> Any:
        return self.served.do(partial(act, *args, **options))

    def order(self, flow: Flow, body: object = None, state: str = "", **options: Any) -> str:
        runtime = self.served.serving.runtime
        job_id: str = self.do(enqueue, runtime, flow, body, **options)
        if state:
            self.do(settled, runtime, job_id, state)
        return job_id

    def letter(self, how: str = "fine", state: str = "", to: str = "ada", **options: Any) -> str:
        return self.order(self.shop.letter, Mail(to, how), state, **options)

    def store(self, verb: str, *args: Any) -> Any:
        return self.do(getattr(self.served.serving.runtime.resources[JobDesk].store, verb), *args)

    def states(self) -> dict[str, str]:
        return {job.job_id: job.state for job in self.store("search", Wanted(), 1000)}

    def unresolved(self, name: str = "7") -> str:
        while not self.served.ended.empty():  # of jobs, and of cases that were tried again
            self.served.ended.get()
        return self.served.run("POST", f"/orders/{name}", {})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    check_installed()
    shop = Workshop()
    url = f"sqlite:///{tmp_path_factory.mktemp('journal')}/workshop.journal"
    with open_served(shop.app, partial(open_journal, url, keep_secrets=True)) as served:
        yield World(shop, served)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory, world: World) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(world.served.url)
        browser.has("#live-word", "live")
        yield browser


@pytest.fixture
def browser(window: Browser, world: World) -> Iterator[Browser]:
    """The window at a list of jobs that is empty; its console must stay clean."""
    for queue in ("mail", "legal"):
        world.store("pause", queue, False)
    world.store("cancel", Wanted(), "the test before has ended")
    for job_id, state in world.states().items():
        if state == "running":
            world.do(settled, world.served.serving.runtime, job_id, "cancelled")
    world.store("delete", Wanted())
    world.shop.away = True
    window.size(1360, 860)
    window.scheme("light")
    window.open("about:blank")
    window.open(f"{world.served.bare}#/jobs")
    window.has("#live-word", "live")
    window.complaints()
    yield window
    assert window.complaints() == []


def rows(browser: Browser) -> list[str]:
    return list(browser.script("return [...document.querySelectorAll('.jobs tbody tr')].map((row) => row.dataset.id)"))


# ---- the list -------------------------------------------------------------------------------


def test_jobs_and_queues_are_listed_and_followed(browser: Browser, world: World) -> None:
    browser.has(".empty", "No job yet.")
    first = world.letter("refused", "dead")
    browser.has(f"tr[data-id='{first}'] .status[data-status=dead]", "dead")
    browser.has(f"tr[data-id='{first}'] .why", "not_found: reader ada")
    second = world.letter(delay=DAY)
    browser.has(f"tr[data-id='{second}'] .status", "scheduled")
    assert rows(browser) == [second, first]
    browser.has("[data-queue=mail] .queue-numbers", "dead 1")
    browser.has("[data-queue=mail]", "3 at once, 2 of a tenant")
    browser.has("[data-queue=legal]", "nothing in it")


def test_a_filter_of_jobs_is_part_of_the_url(browser: Browser, world: World) -> None:
    dead, done = world.letter("refused", "dead"), world.letter("fine", "done")
    browser.has(f"tr[data-id='{done}']")
    browser.click("[data-queue=mail] button", "dead")
    browser.gone(".jobs .status", "done")
    browser.wait(lambda: "state=dead" in browser.hash and "queue=mail" in browser.hash)
    browser.driver.refresh()
    browser.has(f"tr[data-id='{dead}']")
    assert rows(browser) == [dead]
    assert browser.find("select[name=state]").get_property("value") == "dead"
    browser.press("/")
    browser.press(*"torn")
    browser.has(".empty", "No job fits the filter.")
    browser.wait(lambda: "text=torn" in browser.hash)


def test_older_jobs_are_a_button_away(browser: Browser, world: World) -> None:
    ids = [world.letter(delay=DAY) for _ in range(60)]
    browser.has(f"tr[data-id='{ids[-1]}']")
    assert len(rows(browser)) == 50
    browser.click("button", "Older jobs")
    browser.has(f"tr[data-id='{ids[0]}']")
    assert rows(browser) == ids[::-1]


def test_the_list_of_jobs_is_walked_with_keys(browser: Browser, world: World) -> None:
    older, newer = world.letter("refused", "dead"), world.letter("fine", "done")
    browser.has(f"tr[data-id='{newer}'] .status", "done")
    browser.press("j", "j")
    browser.has(f"tr[data-id='{older}'][aria-selected=true]")
    browser.wait(lambda: f"job={older}" in browser.hash)
    assert browser.script("return document.activeElement.dataset.id") == older
    browser.press("k", Keys.ENTER)
    browser.has("h1", "job letter")
    assert browser.hash == f"#/jobs/{newer}"
    browser.press(Keys.ESCAPE)
    browser.has(f"tr[data-id='{newer}'][aria-selected=true]")
    browser.press("g", "r")
    browser.has(".runs .what", "job letter")
    browser.press("g", "j")
    browser.has(f"tr[data-id='{newer}']")


def test_a_queue_is_paused_and_goes_on_from_the_page(browser: Browser, world: World) -> None:
    browser.click("button[aria-label='Pause queue mail']")
    browser.has("[data-queue=mail][data-paused=true]", "paused")
    job_id = world.letter()
    browser.go(f"#/jobs/{job_id}")
    browser.has(".job-why", "queue mail is paused")
    browser.go("#/jobs")
    browser.has("[data-queue=mail]", "the oldest has waited for")
    browser.click("button[aria-label='Go on with queue mail']")
    browser.has(f"tr[data-id='{job_id}'] .status", "done")
    browser.has("[data-queue=mail][data-paused=false]")


def test_all_that_a_filter_finds_is_changed_when_it_was_agreed_to(browser: Browser, world: World) -> None:
    dead = [world.letter("refused", "dead") for _ in range(3)]
    kept = world.letter("fine", "done")
    world.store("pause", "mail", True)
    browser.go("#/jobs?state=dead")
    browser.has(f"tr[data-id='{dead[0]}']")
    browser.gone(f"tr[data-id='{kept}']")
    browser.click("button[data-verb=retry]")
    browser.has("dialog.ask h2", "Retry 3 jobs?")
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: browser.all("dialog.ask") == [])
    assert [world.states()[job_id] for job_id in dead] == ["dead"] * 3
    browser.click("button[data-verb=retry]")
    browser.click("dialog.ask button[type=submit]", "Retry 3")
    browser.has(".picked", "Retry: 3 jobs.")
    browser.has(".empty", "No job fits the filter.")
    assert [world.states()[job_id] for job_id in dead] == ["available"] * 3
    browser.click("button[data-verb=delete]")
    browser.has(".picked", "None of these jobs can be deleted.")
    browser.go("#/jobs?state=available")
    browser.has(f"tr[data-id='{dead[0]}']")
    browser.click("button[data-verb=cancel]")
    browser.has("dialog.ask h2", "Cancel 3 jobs?")
    browser.press(*"too late", Keys.ENTER)
    browser.has(".picked", "Cancel: 3 jobs.")
    assert {job.error for job in world.store("search", Wanted(states=("cancelled",)))} == {"too late"}
    assert world.states()[kept] == "done"


def test_more_than_was_agreed_to_is_left_alone(browser: Browser, world: World) -> None:
    first = world.letter("refused", "dead")
    browser.has(f"tr[data-id='{first}']")
    browser.click("button[data-verb=delete]")
    browser.has("dialog.ask h2", "Delete 1 job?")
    second = world.letter("refused", "dead")
    browser.click("dialog.ask button[type=submit]", "Delete 1")
    browser.has("[role=alert]", "there are 2 by now, and not 1: look again")
    assert set(world.states()) == {first, second}
    assert any("409" in line for line in browser.complaints())


# ---- one job --------------------------------------------------------------------------------


def test_a_job_leads_to_its_runs_and_they_lead_back(browser: Browser, world: World) -> None:
    job_id = world.letter("broken", "dead", tenant="acme")
    browser.go(f"#/jobs/{job_id}")
    browser.has(".job-error", "ZeroDivisionError: the letter to ada is torn")
    browser.has(".value", '"to":"ada"')
    assert browser.texts(".job-runs tbody th") == [f"job_{job_id}.2", f"job_{job_id}.1"]
    browser.click(".job-runs a", f"job_{job_id}.1")
    browser.has(".waterfall [data-kind=step][data-status=failed]", "letter.write")
    browser.has(".run-title", "defect")
    browser.click(".run-facts a", "its job")
    browser.has(".job-error", "the letter to ada is torn")
    browser.press(Keys.ENTER)
    browser.wait(lambda: browser.hash.startswith(f"#/runs/job_{job_id}.2"))
    browser.has(".waterfall [role=treeitem]", "job letter")


def test_a_job_is_followed_and_cancelled(browser: Browser, world: World) -> None:
    job_id = world.letter("waits", "running", to="zoe")
    browser.go(f"#/jobs/{job_id}")
    browser.has(".facts", "3 of 10 writing to zoe")
    browser.has(".job-runs .status", "running")
    browser.click("button[data-verb=cancel]")
    browser.has("dialog.ask", "is cancelled; if it runs, it is ended and undone")
    browser.click("dialog.ask button[type=submit]", "Cancel")
    browser.has(".run-title .status", "cancelled")
    browser.click("button[data-verb=delete]")
    browser.click("dialog.ask button[type=submit]", "Delete")
    browser.wait(lambda: browser.hash == "#/jobs")
    assert world.states() == {}


def test_a_dead_job_is_retried(browser: Browser, world: World) -> None:
    job_id = world.letter("refused", "dead")
    browser.go(f"#/jobs/{job_id}")
    browser.click("button[data-verb=retry]")
    browser.has(".job-runs tbody th", f"job_{job_id}.2")


def test_no_secret_of_a_job_is_in_the_page(browser: Browser, world: World) -> None:
    for flow, body, state in (
        (world.shop.pins, {"name": "c", "pin": SECRET}, "done"),
        (world.shop.tokens, Mail("d", x_api_key=SECRET), "dead"),
    ):
        browser.go(f"#/jobs/{world.order(flow, body, state)}")
        browser.has(".value", "‹secret›")
        assert SECRET not in browser.driver.page_source
    browser.go("#/jobs")
    browser.has(".jobs .why", "d may not use ‹secret›")
    assert SECRET not in browser.driver.page_source


def test_a_job_that_is_not_there_is_said(window: Browser, world: World) -> None:
    window.open("about:blank")
    window.open(f"{world.served.bare}#/jobs/nothing")
    window.has("h1", "No such job")
    assert all("404" in line for line in window.complaints())


# ---- parked runs ----------------------------------------------------------------------------


def test_a_parked_run_and_the_same_taken_up(browser: Browser, world: World) -> None:
    job_id = world.order(world.shop.contract, None, "parked")
    run_id = f"job_{job_id}.1"
    browser.go(f"#/runs/{run_id}")
    browser.has(".run-title .status[data-status=parked]", "parked")
    browser.has(".causes", "it waits for 'signed', until")
    browser.has(".waterfall [data-kind=park]", "signed")
    browser.go(f"#/runs/{run_id}/graph")
    browser.has(".dag .node[data-status=none]", "contract.keep")
    assert world.do(world.served.serving.runtime.signal, run_id, "signed", "Ada")
    browser.has(".run-title .status", "done")
    browser.has(".dag .node[data-status=ok]", "contract.keep")
    browser.go(f"#/runs/{run_id}")
    browser.has(".waterfall [data-kind=park][data-status=ok]", "signed")
    browser.has(".waterfall [data-kind=step]", "contract.keep")
    browser.go(f"#/runs/{run_id}/text")
    browser.has(".lines li", "taken up by")


# ---- cases ----------------------------------------------------------------------------------


def test_a_case_is_tried_again_until_it_comes_right(browser: Browser, world: World) -> None:
    run_id = world.unresolved("a")
    browser.press("g", "c")
    case = f".case[data-id='{run_id}']"
    browser.has(case, "bank.charge('a') in order.pay happened, and was not undone")
    browser.has(f"{case} .key", f"{run_id}:order.pay:1")
    browser.click(f"{case} button", "Try again")
    browser.has(".picked", "is unresolved as before.")
    world.shop.away = False
    browser.click(f"{case} button", "Try again")
    browser.has(".picked", "is failed, and nothing of it is unresolved.")
    browser.gone(case)


def test_a_case_is_resolved_with_a_reason(browser: Browser, world: World) -> None:
    run_id = world.unresolved("b")
    browser.go("#/cases")
    case = f".case[data-id='{run_id}']"
    browser.click(f"{case} button", "Resolve")
    browser.click("dialog.ask button[type=submit]")
    assert browser.find("dialog.ask input[name=reason]").get_attribute("aria-invalid") == "true"
    browser.press(*"refunded by hand", Keys.TAB, *"ann", Keys.ENTER)
    browser.has(".picked", "is resolved.")
    browser.gone(case)


def test_cases_are_walked_with_keys_and_lead_to_their_runs(browser: Browser, world: World) -> None:
    ids = [world.unresolved("c"), world.unresolved("d")]
    browser.go("#/cases")
    browser.has(f".case[data-id='{ids[1]}']")
    shown = browser.script("return [...document.querySelectorAll('.case')].map((one) => one.dataset.id)")
    browser.press("j", "j")
    browser.has(f".case[data-id='{shown[1]}'][aria-current=true]")
    browser.wait(lambda: f"run={shown[1]}" in browser.hash)
    browser.press(Keys.ENTER)
    browser.has(".causes", "bank.charge")
    browser.click("a", "Look at it among the cases")
    browser.has(".case[aria-current=true]")


# ---- everything else ------------------------------------------------------------------------


def test_markup_in_jobs_and_cases_stays_text(browser: Browser, world: World) -> None:
    to = CANARY
    broken = world.letter("broken", "dead", to=to, tenant=CANARY)
    fine = world.letter("fine", "done", to=to)
    waits = world.letter("waits", "running", to=to)
    browser.has(f"tr[data-id='{broken}'] .why", CANARY)
    browser.has(f"tr[data-id='{broken}'] .tenant", CANARY)
    browser.has(f"tr[data-id='{waits}'] .why", CANARY)
    browser.go(f"#/jobs?tenant={CANARY}")
    browser.has(f"tr[data-id='{broken}']")
    browser.click("button[data-verb=retry]")
    browser.has("dialog.ask", CANARY)
    browser.press(Keys.ESCAPE)
    for job_id, where in ((broken, ".job-error"), (fine, ".value"), (waits, ".facts")):
        browser.go(f"#/jobs/{job_id}")
        browser.has(where, CANARY)
        assert browser.all("main img, main script, dialog img, dialog script") == []
    run_id = world.unresolved("%3Cimg%20src=x%20onerror=alert(1)%3E")
    browser.go("#/cases")
    browser.has(f".case[data-id='{run_id}']", "<img src=x onerror=alert(1)>")
    assert browser.all("main img, main script") == []


@pytest.mark.parametrize("view", ["jobs", "jobs/{id}", "cases", "runs/job_{id}.1"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_jobs_and_cases(browser: Browser, world: World, view: str, scheme: str) -> None:
    job_id = world.letter("broken", "dead", tenant="a" * 60, to="b" * 200)
    world.unresolved("e")
    browser.size(360, 740)
    browser.scheme(scheme)
    browser.go(f"#/{view.replace('{id}', job_id)}")
    browser.has("main .status")
    assert browser.script("return document.documentElement.scrollWidth") <= 360


def test_an_app_without_jobs_shows_nothing_of_them(window: Browser) -> None:
    with open_served(gallery.app) as bare:
        window.open(bare.url)
        window.has("#live-word", "live")
        shown = (
            "return [...document.querySelectorAll('#nav a')].filter((one) => !one.hidden).map((one) => one.textContent)"
        )
        assert window.script(shown) == ["Runs", "Flows", "Admission", "Targets", "System"]
        for room in ("jobs", "cases"):
            window.go(f"#/{room}")
            window.has("h1", "Nothing is here.")
        window.open("about:blank")


def test_a_write_about_jobs_needs_its_proof(window: Browser, world: World) -> None:
    job_id = world.letter("refused", "dead")
    window.open(f"{world.served.bare}#/jobs")
    window.has("#live-word", "live")
    for path, body in ((f"jobs/{job_id}/delete", "{}"), ("queues/mail/pause", '{"paused": true}')):
        status = window.driver.execute_async_script(
            "const done = arguments[2]; fetch(`/_zerver/api/${arguments[0]}`, {method: 'POST', body: arguments[1],"
            " headers: {'content-type': 'application/json'}}).then((answer) => done(answer.status))",
            path,
            body,
        )
        assert status == 403
    assert job_id in world.states()
    window.complaints()
