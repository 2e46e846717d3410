"""Proves in a headless Chromium that the page shows what happened, by mouse and by keys, with a clean console."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys

from tests.ui import gallery
from tests.ui.browser import Browser, check_installed, open_browser
from tests.ui.serving import Served, open_served
from zerver.trace.text import format_timeline


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    check_installed()
    with open_served(gallery.app) as served:
        yield served


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory, served: Served) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(served.url)
        browser.has("#live-word", "live")
        yield browser


@pytest.fixture
def browser(window: Browser, served: Served) -> Iterator[Browser]:
    """The window, at the list of runs, as a reader finds it the first time; its console must stay clean."""
    window.size(1360, 860)
    window.scheme("light")
    window.forget(served.address)
    window.open("about:blank")
    window.open(f"{served.bare}#/runs")
    window.has("#live-word", "live")
    window.complaints()
    yield window
    assert window.complaints() == []


def checkout(served: Served, how: str = "clean", cart: str = "tea") -> str:
    return served.run("POST", "/checkout", {"cart": cart, "how": how})


def spans(browser: Browser) -> list[str]:
    return browser.texts(".waterfall [role=treeitem]")


# ---- the list -------------------------------------------------------------------------------


def test_runs_arrive_by_themselves(browser: Browser, served: Served) -> None:
    first = checkout(served)
    row = browser.find(f"tr[data-id='{first}']")
    browser.wait(lambda: "done201" in (row.get_property("textContent") or ""))
    second = checkout(served, "soldout")
    browser.has(f"tr[data-id='{second}'] .why", "FAILED cart: sold out")
    assert browser.texts(".runs tbody tr td.what a")[0] == "POST /checkout"
    assert browser.script("return document.querySelector('.runs tbody tr').dataset.id") == second


def test_a_run_under_way_is_shown_and_then_its_end(browser: Browser, served: Served) -> None:
    done = served.start("/approval/a", "approval a")
    browser.has(".runs .status[data-status=running]", "running")
    done()
    browser.gone(".runs .status[data-status=running]")
    browser.has(".runs .what", "GET /approval/{id}")


def test_a_filter_is_part_of_the_url_and_survives_a_reload(browser: Browser, served: Served) -> None:
    checkout(served)
    failed = checkout(served, "broken")
    browser.has(".runs .what", "POST /checkout")
    browser.find("input[name=failed]").click()
    browser.gone(".runs .status[data-status=done]")
    browser.wait(lambda: "failed=1" in browser.hash)
    browser.driver.refresh()
    browser.has(f"tr[data-id='{failed}'] .status", "defect500")
    assert browser.texts(".runs .status[data-status=done]") == []
    assert browser.find("input[name=failed]").is_selected()
    checkout(served)
    again = checkout(served, "broken")
    browser.has(f"tr[data-id='{again}']")
    assert browser.texts(".runs .status[data-status=done]") == []


def test_paused_the_list_stands_still(browser: Browser, served: Served) -> None:
    known = checkout(served)
    browser.has(f"tr[data-id='{known}']")
    browser.press("p")
    browser.has("button[aria-pressed=true]", "Go on")
    late = checkout(served)
    browser.has(".chip", "1 new")
    assert browser.all(f"tr[data-id='{late}']") == []
    browser.press("p")
    browser.has(f"tr[data-id='{late}']")


def test_the_list_is_walked_with_keys(browser: Browser, served: Served) -> None:
    older, newer = checkout(served), checkout(served)
    browser.has(f"tr[data-id='{newer}']")
    browser.press("j", "j")
    browser.has(f"tr[data-id='{older}'][aria-selected=true]")
    assert older in browser.hash
    browser.press("k")
    browser.has(f"tr[data-id='{newer}'][aria-selected=true]")
    assert browser.script("return document.activeElement.dataset.id") == newer
    browser.press(Keys.ENTER)
    browser.has("h1", "POST /checkout")
    assert browser.hash.startswith(f"#/runs/{newer}")
    browser.driver.back()
    browser.has(f"tr[data-id='{newer}'][aria-selected=true]")


def test_routes_are_filters_too(browser: Browser, served: Served) -> None:
    served.run("GET", "/home")
    checkout(served)
    browser.find("button.route", "GET /home").click()
    browser.gone(".runs .what", "POST /checkout")
    browser.has(".runs .what", "GET /home")
    assert "route=GET" in browser.hash


# ---- a run ----------------------------------------------------------------------------------


def test_the_waterfall_shows_retries_and_the_rollback(browser: Browser, served: Served) -> None:
    run = checkout(served, "soldout")
    browser.go(f"#/runs/{run}")
    browser.has(".causes", "FAILED cart: sold out")
    browser.has(".accounts", "io")
    browser.has(".waterfall [data-kind=undo]", "undo payments.charge")
    browser.has(".waterfall [data-kind=step][data-status=failed]", "stock.take")
    browser.go(f"#/runs/{checkout(served, 'slow')}")
    browser.has(".causes [data-cause=SLOW]", "payment.charge")
    browser.has(".waterfall [data-kind=attempt][data-status=failed]", "attempt 1, attempt, failed")
    seen = browser.seen()
    assert seen["drawn"] == len(spans(browser)) > 15


def test_losers_and_hedges_are_told_from_winners(window: Browser) -> None:
    with open_served(gallery.app) as fresh:  # hedges have a budget, and the others have spent it
        run = fresh.run("GET", "/home")
        window.open(fresh.url)
        window.has("#live-word", "live")
        window.go(f"#/runs/{run}")
        window.has(".waterfall [data-kind=join]", "join.race")
        window.has(".waterfall [data-status=cut]", "service.ask")
        window.has(".waterfall [data-kind=hedge]", "attempt 2")
        window.open("about:blank")


def test_a_selected_span_is_in_the_url_and_its_details_beside_it(browser: Browser, served: Served) -> None:
    run = checkout(served)
    browser.go(f"#/runs/{run}")
    browser.has(".waterfall [role=treeitem]", "payments.charge, effect")
    passed = [""]
    while not passed[-1].startswith("auth.verify, step, ok"):  # behind the run, and what it may have waited for
        assert len(passed) < 9
        browser.press("j")
        passed.append(str(browser.find(".waterfall [aria-selected=true]").get_property("textContent")))
    assert len(passed) > 4
    browser.has(".details h2", "auth.verify")
    browser.has(".details dt", "took")
    assert f"span={browser.seen()['selected']}" in browser.hash
    browser.driver.refresh()
    browser.has(".details h2", "auth.verify")
    browser.has(".waterfall [aria-selected=true]", "auth.verify")
    assert browser.script("return document.querySelector('.waterfall').getAttribute('aria-activedescendant')")
    browser.press(Keys.ARROW_LEFT)  # folded
    browser.gone(".waterfall [role=treeitem]", "users.find")
    browser.press(Keys.ARROW_RIGHT)
    browser.has(".waterfall [role=treeitem]", "users.find")


def test_the_next_trouble_is_a_key_away(browser: Browser, served: Served) -> None:
    browser.go(f"#/runs/{checkout(served, 'soldout')}?span=0")
    browser.has(".waterfall [aria-selected=true]", "POST /checkout")
    browser.press("n")
    browser.has(".waterfall [aria-selected=true]", "stock.take, step, failed")


def test_the_waterfall_is_zoomed_by_keys_and_by_dragging(browser: Browser, served: Served) -> None:
    browser.go(f"#/runs/{checkout(served)}")
    browser.has(".waterfall [role=treeitem]", "payments.charge")
    whole = browser.seen()["window"]
    browser.press("+", "+")
    browser.wait(lambda: browser.seen()["window"][1] - browser.seen()["window"][0] < (whole[1] - whole[0]) / 2)
    browser.press("0")
    browser.wait(lambda: browser.seen()["window"] == whole)
    box = browser.find(".waterfall").rect
    for kind, x in (("mousePressed", 0.6), ("mouseMoved", 0.8), ("mouseReleased", 0.8)):
        where = {"x": box["x"] + box["width"] * x, "y": box["y"] + 60, "button": "left", "buttons": 1, "clickCount": 1}
        browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **where})
    browser.wait(lambda: browser.seen()["window"][1] - browser.seen()["window"][0] < (whole[1] - whole[0]) / 2)
    browser.press("0")
    browser.wait(lambda: browser.seen()["window"] == whole)


def test_a_click_selects_the_row_under_it(browser: Browser, served: Served) -> None:
    browser.go(f"#/runs/{checkout(served)}")
    browser.has(".waterfall [role=treeitem]", "payments.charge")
    browser.script("""
        const box = document.querySelector(".waterfall");
        const area = box.getBoundingClientRect();
        const rows = [...box.querySelectorAll("[role=treeitem]")];
        const nth = rows.findIndex((row) => row.textContent.startsWith("auth.verify"));  // a busy machine adds a wait
        const [x, y] = [area.left + 200, area.top + 26 + 22 * nth + 8];
        const at = { bubbles: true, clientX: x, clientY: y, button: 0, pointerId: 1 };
        box.setPointerCapture = () => {};
        box.dispatchEvent(new PointerEvent("pointerdown", at));
        box.dispatchEvent(new PointerEvent("pointerup", at));
    """)
    browser.has(".details h2", "auth.verify")


def test_a_long_silence_is_squeezed(browser: Browser, served: Served) -> None:
    done = served.start("/approval/b", "approval b")
    browser.has(".runs .status[data-status=running]", "running")
    browser.go(f"#/runs/{done()}")
    browser.has(".waterfall [data-kind=park]", "approval b")
    assert browser.seen()["squeezed"] == 1
    browser.press("s")
    browser.wait(lambda: browser.seen()["squeezed"] == 0)


def test_of_a_long_run_only_what_is_seen_is_drawn(browser: Browser, served: Served) -> None:
    count = 4000
    browser.go(f"#/runs/{served.run('GET', f'/many/{count}')}")
    browser.has(".waterfall [role=treeitem]", "tick, effect")
    seen = browser.seen()
    assert seen["rows"] > count
    assert 10 < seen["drawn"] < 60
    assert seen["loaded"] < count
    assert len(spans(browser)) == seen["drawn"]
    browser.script("const box = document.querySelector('.waterfall'); box.scrollTop = box.scrollHeight")
    browser.wait(lambda: browser.seen()["loaded"] == seen["rows"])
    browser.script("const box = document.querySelector('.waterfall'); box.scrollTop = box.scrollHeight")
    last = "return document.querySelector('.waterfall [role=treeitem]:last-child')?.ariaPosInSet"
    browser.wait(lambda: browser.script(last) == str(seen["rows"]))
    assert browser.seen()["drawn"] < 60
    browser.press("2")
    browser.has(".lines li", "tick")
    assert len(browser.all(".lines li")) < 120


def test_a_run_under_way_is_followed(browser: Browser, served: Served) -> None:
    done = served.start("/approval/c", "approval c")
    browser.find(".runs tr:has([data-status=running]) .what a").click()
    browser.has(".run-title .tag", "under way")
    done()
    browser.has(".run-title .status", "done200")
    browser.has(".waterfall [role=treeitem]", "approval.render")


def test_the_text_is_that_of_zerver_trace(browser: Browser, served: Served) -> None:
    result = served.result("POST", "/checkout", {"cart": "ink", "how": "slow"})
    browser.go(f"#/runs/{result.run_id}/text")
    browser.has(".lines li", "payment.charge")
    rows = browser.script(
        "return [...document.querySelectorAll('.lines li')]"
        ".map((row) => [...row.children].map((cell) => cell.textContent).join(' '))"
    )
    told = [" ".join(row.split()) for row in rows]
    lines = [" ".join(line.split()) for line in format_timeline(result.timeline).splitlines()]
    assert told
    assert told == lines[1 : 1 + len(told)]
    assert any("attempt 2 failed" in line for line in told)


def test_the_graph_has_the_times_laid_over_it(browser: Browser, served: Served) -> None:
    browser.go(f"#/runs/{checkout(served, 'soldout')}/graph")
    browser.has(".dag .node[data-status=ok]", "payment.charge")
    browser.has(".dag .node[data-status=failed]", "stock.take")
    browser.has(".dag .node[data-status=none]", "not reached")
    browser.has(".dag .node[data-shape=choice]", "is_risky")
    assert len(browser.all(".dag .edge.taken")) > 5
    assert len(browser.all(".dag .stretch")) > 5
    node = browser.find(".dag .node", "payment.charge")
    browser.script("arguments[0].focus()", node)
    browser.press(Keys.ENTER)
    browser.has(".details h2", "payment.charge")
    browser.has(".details dd", "card.token")
    assert "step=" in browser.hash
    browser.driver.refresh()
    browser.has(".dag .node[aria-pressed=true]", "payment.charge")


def test_slots_tell_who_wrote_and_read_them_and_no_secret(browser: Browser, served: Served) -> None:
    browser.go(f"#/runs/{checkout(served)}/slots")
    browser.has("table.table tr", "payment.charge")
    rows = browser.texts("table.table tbody tr")
    cart = next(row for row in rows if row.startswith("cartCart"))
    assert "cart.load" in cart
    assert "payment.charge" in cart
    assert '"cents":1250' in cart
    token = next(row for row in rows if row.startswith("card.token"))
    assert "secret" in token
    assert "tok_4242" not in browser.driver.page_source
    browser.press("5")
    browser.has("table.table tr", "payments.charge")
    assert "tok_4242" not in browser.driver.page_source


# ---- replay and diff ------------------------------------------------------------------------


def test_a_replay_with_another_slot_tells_what_would_have_happened(browser: Browser, served: Served) -> None:
    run = checkout(served, "soldout")
    browser.go(f"#/runs/{run}/slots")
    browser.find("a[aria-label='Replay with another stock']").click()
    field = browser.find("textarea[name=stock]")
    assert field.get_property("value") == "0"
    before = dict(gallery.charged)
    field.clear()
    field.send_keys("none")
    browser.has(".field .loud", "not JSON")
    field.clear()
    field.send_keys("3")
    browser.find("button.main", "Replay").click()
    browser.has(".verdict", "another way at stock.take")
    browser.has(".story", "stock.take")
    browser.has(".diff [data-same=false]", "stock.take")
    assert gallery.charged == before  # nothing was performed


def test_a_replay_without_changes_goes_the_same_way(browser: Browser, served: Served) -> None:
    browser.go(f"#/runs/{checkout(served, 'slow')}")
    browser.has(".waterfall [role=treeitem]", "payments.charge")
    browser.press("r")
    browser.find("button.main", "Replay").click()
    browser.has(".verdict[data-same=true]", "the same way")
    browser.has(".replayed .waterfall [role=treeitem]", "payments.charge")


def test_two_runs_are_picked_and_compared(browser: Browser, served: Served) -> None:
    fine, sold_out = checkout(served), checkout(served, "soldout")
    browser.has(f"tr[data-id='{sold_out}']")
    browser.press("j", "j", "d")
    browser.has(".picked", "A")
    browser.has(f"tr[data-id='{fine}'] .pick", "A")
    browser.press("k", "d")
    browser.has("h1", "Diff")
    browser.wait(lambda: f"a={fine}" in browser.hash and f"b={sold_out}" in browser.hash)
    browser.has(".verdict[data-same=false]", "stock.take")
    browser.has(".diff [data-step='auth.verify'][data-same=true]")
    browser.has(".diff [data-step='stock.take'] .differences", "sold out")
    browser.press("x")
    browser.wait(lambda: f"a={sold_out}" in browser.hash)
    browser.has(".card[aria-label='Run A']", "failed409")


# ---- everything else ------------------------------------------------------------------------


def test_admission_targets_system_and_flows(browser: Browser, served: Served) -> None:
    checkout(served)
    browser.press("g", "a")
    browser.has("h1", "Admission")
    browser.has("table", "interactive")
    browser.has("table a", "POST /checkout")
    browser.press("g", "t")
    browser.has("tr", "payments")
    browser.has(".status[data-status=ok]", "closed")
    browser.press("g", "s")
    browser.has(".actors", "admission")
    browser.has(".facts", "gallery")
    browser.press("g", "f")
    browser.find("table a", "checkout").click()
    browser.has(".dag .node", "payment.charge")
    browser.press("g", "r")
    browser.has(".runs .what", "POST /checkout")


def test_keys_are_helped_with_and_none_fires_while_typing(browser: Browser, served: Served) -> None:
    browser.press("?")
    browser.has("dialog[open] dd", "Pick for a diff")
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: browser.all("dialog[open]") == [])
    browser.press("/")
    browser.press("g", "a", "p")
    assert browser.find("input[name=route]").get_property("value") == "gap"
    assert browser.hash.startswith("#/runs")
    browser.press(Keys.ESCAPE, "f")
    assert browser.script("return document.activeElement.name") == "status"


def test_light_and_dark_follow_the_system_until_chosen(browser: Browser, served: Served) -> None:
    def ground() -> str:
        return str(browser.script("return getComputedStyle(document.documentElement).backgroundColor"))

    light = ground()
    browser.scheme("dark")
    browser.wait(lambda: ground() != light)
    dark = ground()
    browser.find("#theme").click()  # light, whatever the system says
    browser.wait(lambda: ground() == light)
    browser.driver.refresh()
    browser.has("#theme", "Theme: light")
    assert ground() == light
    browser.press("t")
    browser.scheme("light")
    browser.wait(lambda: ground() == dark)


@pytest.mark.parametrize("side", ["", "/text", "/graph", "/slots", "/effects", "/replay"])
def test_a_telephone_shows_every_side_of_a_run(browser: Browser, served: Served, side: str) -> None:
    browser.size(360, 740)
    browser.go(f"#/runs/{checkout(served, 'soldout')}{side}")
    browser.has(".side *")
    assert browser.script("return document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("view", ["runs", "admission", "targets", "system", "flows"])
def test_a_telephone_shows_every_page(browser: Browser, served: Served, view: str) -> None:
    checkout(served)
    browser.size(360, 740)
    browser.go(f"#/{view}")
    browser.has("main table, main form")
    assert browser.script("return document.documentElement.scrollWidth") <= 360


def test_markup_in_values_stays_text(browser: Browser, served: Served) -> None:
    nasty = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    browser.go(f"#/runs/{checkout(served, cart=nasty)}/slots")
    browser.has("table.table tr", nasty)
    assert browser.all("main img, main script") == []


def test_a_run_that_is_not_there_is_said(window: Browser, served: Served) -> None:
    window.open("about:blank")
    window.open(f"{served.bare}#/runs/req_000000000000000000000000")
    window.has("h1", "No such run")
    assert all("404" in line for line in window.complaints())


# ---- locks ----------------------------------------------------------------------------------


def test_without_the_token_there_is_nothing(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    with open_browser(tmp_path_factory.mktemp("stranger")) as stranger:
        stranger.open(served.bare)
        stranger.has("body", "locked")
        assert stranger.all("#main") == []
        stranger.open(f"{served.bare}?token=wrong-wrong-wrong-wrong")
        stranger.has("body", "locked")
        status = stranger.driver.execute_async_script(
            "const done = arguments[0]; fetch('/_zerver/api/runs').then((answer) => done(answer.status))"
        )
        assert status == 401
        stranger.open(served.url)
        stranger.has("#live-word", "live")
        assert "token" not in str(stranger.script("return location.href"))  # it is in no history and no referrer


def test_a_write_needs_its_proof(window: Browser, served: Served) -> None:
    run = checkout(served)
    window.open(f"{served.bare}#/runs")
    window.has("#live-word", "live")
    status = window.driver.execute_async_script(
        "const done = arguments[1]; fetch(`/_zerver/api/runs/${arguments[0]}/replay`, {method: 'POST', body: '{}',"
        " headers: {'content-type': 'application/json'}}).then((answer) => done(answer.status))",
        run,
    )
    assert status == 403
    window.complaints()


def test_a_session_that_has_ended_is_said(window: Browser, served: Served) -> None:
    window.open(f"{served.bare}#/runs")
    window.has("#live-word", "live")
    window.driver.delete_all_cookies()
    window.go("#/flows")
    window.has("[role=alert]")
    window.open(served.url)
    window.has("#live-word", "live")
    window.complaints()
