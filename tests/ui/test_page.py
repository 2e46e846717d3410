"""The page over HTTP: locked, guarded headers on every answer, static files that lead nowhere, bounded, no secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from tests.ui.looking import HOST, SECRET, TOKEN, Browser, open_browser
from zerver.core.codec import decode_json
from zerver.testing.client import Reply
from zerver.trace.telemetry.instruments import MetricsSnapshot
from zerver.ui.assets import STATIC, read_assets
from zerver.ui.page import AT_ONCE

GUARD = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def check_guarded(reply: Reply) -> None:
    assert reply.headers.get_all("content-security-policy") == [POLICY]
    assert {name: reply.headers.get(name) for name in GUARD} == GUARD
    assert reply.headers.get("cache-control") in ("no-store", "private, no-cache")
    assert "access-control-allow-origin" not in reply.headers


# ---- locked ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["/_zerver", "/_zerver/", "/_zerver/app.js", "/_zerver/api/runs", "/_zerver/metrics", "/_zerver/nothing"]
)
async def test_without_the_token_every_path_says_the_same(target: str) -> None:
    async with open_browser() as browser:
        reply = await browser.client.get(target, headers={"host": HOST})
        other = await browser.client.get("/_zerver/", headers={"host": HOST})
        assert (reply.status, reply.body) == (401, other.body)
        assert b"shop" not in reply.body
        assert b"version" not in reply.body
        check_guarded(reply)


async def test_the_token_leaves_the_url_and_the_cookie_opens_the_page() -> None:
    async with open_browser() as browser:
        reply = await browser.client.get(f"/_zerver/?token={TOKEN}&run=req_1", headers={"host": HOST})
        assert (reply.status, reply.headers["location"]) == (303, "/_zerver/?run=req_1")
        assert "HttpOnly; SameSite=Strict" in reply.headers["set-cookie"]
        check_guarded(reply)
        await browser.enter()
        page = await browser.get("/_zerver/")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        check_guarded(page)


async def test_a_wrong_token_is_told_nothing_and_soon_not_even_that() -> None:
    async with open_browser() as browser:
        statuses = [
            (await browser.client.get("/_zerver/?token=wrong", headers={"host": HOST})).status for _ in range(11)
        ]
        assert statuses == [401] * 10 + [429]
        reply = await browser.client.get(f"/_zerver/?token={TOKEN}", headers={"host": HOST})
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) > 0
        check_guarded(reply)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example"])
async def test_a_rebound_name_gets_nothing(host: str) -> None:
    async with open_browser() as browser:
        await browser.enter()
        reply = await browser.get("/_zerver/api/overview", host=host)
        assert reply.status == 403
        assert b"shop" not in reply.body
        check_guarded(reply)


async def test_the_app_beside_it_is_none_of_its_business() -> None:
    async with open_browser() as browser:
        reply = await browser.client.get("/_zerverx", headers={"host": "evil.example"})
        assert (reply.status, "content-security-policy" in reply.headers) == (404, False)


# ---- static files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "../page.py",
        "..%2Fpage.py",
        "%2e%2e/page.py",
        "static/../../page.py",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "..\\page.py",
        "..%5Cpage.py",
        "app.js/",
        "app.js%2F..",
        ".",
        "index.html/../app.js",
        "app%00.js",
        "%ff",
    ],
)
async def test_no_path_leads_out_of_the_static_files(path: str) -> None:
    async with open_browser() as browser:
        await browser.enter()
        reply = await browser.get(f"/_zerver/{path}")
        assert reply.status in (400, 404)
        assert b"Law:" not in reply.body
        assert b"root:" not in reply.body


async def test_every_file_has_its_type_and_a_tag_and_is_sent_once() -> None:
    async with open_browser() as browser:
        await browser.enter()
        types = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
        for name, asset in read_assets().items():
            reply = await browser.get(f"/_zerver/{name}")
            assert (reply.status, reply.body) == (200, asset.body)
            assert reply.headers["content-type"] == types.get(Path(name).suffix, asset.content_type)
            check_guarded(reply)
            again = await browser.get(f"/_zerver/{name}", **{"if-none-match": reply.headers["etag"]})
            assert (again.status, again.body) == (304, b"")
            check_guarded(again)


def test_no_file_asks_anybody_else_for_anything() -> None:
    for path in STATIC.rglob("*"):
        if path.is_file() and path.suffix in (".html", ".js", ".css"):
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "https://" not in text, path.name
            assert "http://" not in text, path.name


def test_hidden_files_and_kinds_that_a_page_has_no_use_for_are_not_served(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("1")
    (tmp_path / ".env.js").write_text("secret")
    (tmp_path / "a.py").write_text("secret")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "b.js").write_text("secret")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.css").write_text("")
    assert sorted(read_assets(tmp_path)) == ["a.js", "sub/c.css"]
    assert read_assets(tmp_path / "none") == {}


async def test_only_looking_is_possible() -> None:
    async with open_browser() as browser:
        await browser.enter()
        own = {"host": HOST, "cookie": browser.cookie, "x-zerver-csrf": browser.csrf, "origin": f"http://{HOST}"}
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            reply = await browser.client.request(method, "/_zerver/app.js", headers=own)
            assert (reply.status, reply.headers.get("allow")) == (405, "GET, HEAD")


# ---- secrets --------------------------------------------------------------------------------

LOOKS = ["", "/records", "/spans", "/text"]


async def test_no_answer_has_a_secret_in_it() -> None:
    async with open_browser() as browser:
        await browser.enter()
        bought, failed = await browser.buy(), await browser.buy(stock=False)
        targets = [
            "session",
            "overview",
            "runs",
            "flows",
            "flows/checkout/graph",
            f"diff?a={bought.run_id}&b={failed.run_id}",
        ]
        targets += [f"runs/{run.run_id}{look}" for run in (bought, failed) for look in LOOKS]
        for target in targets:
            reply = await browser.get(f"/_zerver/api/{target}")
            assert reply.status == 200, (target, reply.text)
            check_clean(reply, browser)
            check_guarded(reply)
        replayed = await browser.post(
            f"runs/{bought.run_id}/replay", {"changes": {"cart": {"id": "c", "cents": 5, "stock": True}}}
        )
        assert replayed.status == 200, replayed.text
        check_clean(replayed, browser)
        check_guarded(replayed)


def check_clean(reply: Reply, browser: Browser) -> None:
    assert SECRET not in reply.text
    assert TOKEN not in reply.text
    assert browser.cookie.partition("=")[2] not in reply.text


# ---- bounded --------------------------------------------------------------------------------


async def test_so_many_requests_at_once_and_no_more(autojump_clock: object) -> None:
    async with open_browser() as browser:
        await browser.enter()
        statuses: list[int] = []

        async def ask() -> None:
            reply = await browser.get("/_zerver/api/overview")
            statuses.append(reply.status)
            if reply.status == 503:
                assert reply.headers["retry-after"] == "1"
                check_guarded(reply)

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE + 5):
                nursery.start_soon(ask)
        assert sorted(statuses) == [200] * AT_ONCE + [503] * 5
        assert (await browser.get("/_zerver/api/overview")).status == 200


async def test_it_answers_while_the_app_refuses_everybody() -> None:
    async with open_browser() as browser:
        await browser.enter()
        with trio.move_on_after(0):
            await browser.client.runtime.drain(0.0)
        assert (await browser.client.get("/waiting")).status == 503
        overview = await browser.json("overview")
        assert overview["admission"]["draining"] is True


async def test_a_body_that_is_too_large_is_refused_like_everything_else() -> None:
    async with open_browser() as browser:
        await browser.enter()
        run = await browser.buy()
        reply = await browser.post(f"runs/{run.run_id}/replay", {"changes": {"cart": "x" * 300_000}})
        assert reply.status == 413
        check_guarded(reply)


async def test_a_defect_of_the_page_is_told_and_guarded_too() -> None:
    defects: list[Exception] = []

    def fails() -> MetricsSnapshot:
        raise RuntimeError(SECRET)

    async with open_browser(metrics=fails, on_defect=defects.append) as browser:
        await browser.enter()
        reply = await browser.get("/_zerver/metrics")
        assert (reply.status, [str(defect) for defect in defects]) == (500, [SECRET])
        assert SECRET not in reply.text
        check_guarded(reply)


async def test_before_the_app_is_open_it_says_so() -> None:
    async with open_browser(attached=False) as browser:
        reply = await browser.client.get(
            "/_zerver/api/overview", headers={"host": HOST, "authorization": f"Bearer {TOKEN}"}
        )
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert decode_json(reply.body, dict)["detail"] == "the app is not open yet"
