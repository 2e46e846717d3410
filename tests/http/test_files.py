"""Files are sent whole or in part, once they are known to be where they belong, and are closed whatever happens."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from zerver import App, Done, Flow, step
from zerver.errors import DefinitionError
from zerver.http import file, finish, static
from zerver.http.files import PIECE, FilePieces, content_type_of
from zerver.http.messages import Headers, RequestHead, Response
from zerver.testing import Client, cancel_sweep, client

LONG = bytes(range(256)) * 1024  # 256 KiB: four pieces


@pytest.fixture
def public(tmp_path: Path) -> Path:
    root = tmp_path / "public"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"0123456789")
    (root / "long.bin").write_bytes(LONG)
    (root / "index.html").write_text("<p>home")
    (root / "sub" / "page.html").write_text("<p>page")
    (root / "sub" / "ünï.txt").write_text("u")
    (root / ".env").write_text("secret")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret")
    (tmp_path / "secret.txt").write_text("secret")
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "up").symlink_to(tmp_path)
    (root / "in.txt").symlink_to(root / "a.txt")
    os.mkfifo(root / "pipe")
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (1_000_000_000, 1_000_000_000))
    return root


@asynccontextmanager
async def serving(root: Path, **options: object) -> AsyncGenerator[Client, None]:
    app = App()
    app.route("GET", "/assets/{path:path}", static(root, **options))  # type: ignore[arg-type]  # the tests' business
    async with client(app) as c:
        yield c


async def opened(response: Response, method: str = "GET", **fields: str) -> Response:
    headers = Headers.of({name.replace("_", "-"): value for name, value in fields.items()})
    return await finish(response, RequestHead(method, "/", headers))


def open_files() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _exists(fd)}


def _exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


# ---- what is sent ---------------------------------------------------------------------------


async def test_a_file_with_what_belongs_to_it(public: Path) -> None:
    async with serving(public, headers={"cache-control": "max-age=60"}) as c:
        reply = await c.get("/assets/a.txt")
        assert (reply.status, reply.body) == (200, b"0123456789")
        expected = {
            "content-type": "text/plain; charset=utf-8",
            "content-length": "10",
            "cache-control": "max-age=60",
            "x-content-type-options": "nosniff",
            "accept-ranges": "bytes",
            "last-modified": "Sun, 09 Sep 2001 01:46:40 GMT",
            "etag": '"de0b6b3a7640000-a"',
        }
        assert {name: reply.headers.get(name) for name in expected} == expected
        assert (await c.get("/assets/long.bin")).body == LONG
        assert (await c.get("/assets/sub/%C3%BCn%C3%AF.txt")).body == b"u"


async def test_head_has_the_fields_and_no_body(public: Path) -> None:
    async with serving(public) as c:
        whole, head = await c.get("/assets/long.bin"), await c.head("/assets/long.bin")
        assert (head.status, head.body) == (200, b"")
        skipped = ("date", "x-request-id")
        assert [f for f in head.headers if f[0] not in skipped] == [f for f in whole.headers if f[0] not in skipped]


async def test_conditions_and_ranges(public: Path) -> None:
    async with serving(public) as c:
        tag = '"de0b6b3a7640000-a"'
        unchanged = await c.get("/assets/a.txt", headers={"if-none-match": tag})
        assert (unchanged.status, unchanged.body, unchanged.headers.get("etag")) == (304, b"", tag)
        assert "content-type" not in unchanged.headers
        assert (await c.get("/assets/a.txt", headers={"if-match": '"x"'})).status == 412
        part = await c.get("/assets/a.txt", headers={"range": "bytes=2-4", "if-range": tag})
        assert (part.status, part.body, part.headers.get("content-range")) == (206, b"234", "bytes 2-4/10")
        beyond = await c.get("/assets/a.txt", headers={"range": "bytes=10-"})
        assert (beyond.status, beyond.headers.get("content-range")) == (416, "bytes */10")
        several = await c.get("/assets/a.txt", headers={"range": "bytes=0-1,4-5"})
        assert (several.status, several.body) == (200, b"0123456789")
        large = await c.get("/assets/long.bin", headers={"range": f"bytes=1-{PIECE + 5}"})
        assert (large.status, large.body) == (206, LONG[1 : PIECE + 6])


async def test_other_methods_and_statuses_get_the_whole(public: Path) -> None:
    answer = await opened(file(public / "a.txt"), "POST", range="bytes=0-1", if_none_match="*")
    assert (answer.status, answer.body) == (200, b"0123456789")
    answer = await opened(file(public / "a.txt", status=404), range="bytes=0-1", if_none_match="*")
    assert (answer.status, answer.body, "etag" in answer.headers) == (404, b"0123456789", False)


async def test_an_empty_file(public: Path) -> None:
    (public / "empty").write_bytes(b"")
    assert (await opened(file(public / "empty"))).body == b""
    assert (await opened(file(public / "empty"), range="bytes=0-")).status == 416


async def test_a_file_that_may_still_change_has_a_weak_tag(public: Path) -> None:
    (public / "new.txt").write_text("new")
    answer = await opened(file(public / "new.txt"))
    assert str(answer.headers.get("etag")).startswith('W/"')
    assert (await opened(file(public / "new.txt"), if_none_match=str(answer.headers.get("etag")))).status == 304


async def test_the_callers_words_win(public: Path) -> None:
    answer = await opened(file(public / "a.txt", content_type="text/x-own", etag="v1", filename='a"\r\n\\é/.txt'))
    assert answer.headers.get("content-type") == "text/x-own"
    assert answer.headers.get("etag") == '"v1"'
    said = "attachment; filename=\"a______.txt\"; filename*=UTF-8''a%22%0D%0A%5C%C3%A9%2F.txt"
    assert answer.headers.get("content-disposition") == said
    with pytest.raises(ValueError, match="entity tag"):
        file("a", etag='a"b')


def test_content_types_do_not_depend_on_the_machine() -> None:
    assert content_type_of("x/a.HTML") == "text/html; charset=utf-8"
    assert content_type_of("a.tar.gz") == "application/gzip"
    for unknown in ("a", "a.exe", ".html", "a.", "a.html."):
        assert content_type_of(unknown) == "application/octet-stream"


# ---- where it may come from -----------------------------------------------------------------

TRAVERSALS = [
    "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "%2e%2e%2fsecret.txt", "..%5csecret.txt",
    "sub/../../secret.txt", "sub/..%2f..%2fsecret.txt", ".%2e/secret.txt", "./a.txt", "sub//page.html", "%2fetc/passwd",
    "/etc/passwd", "//etc/passwd", "C:/x", "c%3a%5cx", "%5c%5chost%5cshare", "a.txt/", "a.txt/x", "sub", "pipe",
    ".env", ".git/config", "sub/.%2fx", "out.txt", "up/secret.txt", "in.txt", "no.txt", "a.txt%20", "a.txt%0a",
    "x" * 300, "a%2etxt%2f..%2f..%2fsecret.txt", "..;/secret.txt", "%252e%252e/secret.txt", "~root", "sub/%2e",
]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
async def test_nothing_leads_out_or_to_what_is_hidden(public: Path, path: str) -> None:
    async with serving(public) as c:
        reply = await c.get(f"/assets/{path}")
        assert reply.status == 404
        assert b"secret" not in reply.body.replace(b"secret.txt", b"")


async def test_nul_is_refused_by_the_edge(public: Path) -> None:
    async with serving(public) as c:
        assert (await c.get("/assets/a.txt%00")).status == 400


@pytest.mark.parametrize(
    "path", ["../secret.txt", "/etc/passwd", "a\0b", "up/secret.txt", "sub\\page.html", "", "a//b"]
)
async def test_a_name_from_a_client_stays_below(public: Path, path: str) -> None:
    assert (await opened(file(path, under=public))).status == 404


async def test_a_path_of_ones_own_may_be_anywhere(public: Path) -> None:
    assert (await opened(file(public / "in.txt"))).body == b"0123456789"
    for missing in (public / "no", public, public / "pipe", "a\0b"):
        assert (await opened(file(missing))).status == 404


async def test_index(public: Path) -> None:
    async with serving(public) as c:
        assert (await c.get("/assets/")).body == b"<p>home"
        assert (await c.get("/assets/sub/")).status == 404
    async with serving(public, index="page.html") as c:
        assert (await c.get("/assets/sub/")).body == b"<p>page"
    async with serving(public, index=None) as c:
        assert (await c.get("/assets/")).status == 404


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="no such directory"):
        static(tmp_path / "no")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_that_may_not_be_read_is_a_fault_of_ours(public: Path) -> None:
    (public / "a.txt").chmod(0)
    defects: list[Exception] = []
    app = App()
    app.route("GET", "/{path:path}", static(public))
    async with client(app, on_defect=defects.append) as c:
        reply = await c.get("/a.txt")
    assert (reply.status, reply.headers.get("x-request-id")) == (500, reply.run and reply.run.run_id)
    assert [type(defect) for defect in defects] == [PermissionError]


# ---- what is left behind --------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _every_file_is_closed(tmp_path: Path) -> Iterator[None]:
    yield
    assert not [path for path in open_files() if path.startswith(str(tmp_path))]


async def test_only_a_long_file_is_open_while_it_is_sent(public: Path) -> None:
    assert isinstance((await opened(file(public / "a.txt"))).body, bytes)
    body = (await opened(file(public / "long.bin"))).body
    assert isinstance(body, FilePieces)
    assert len(await anext(body)) == PIECE
    await body.aclose()


async def test_a_file_that_becomes_shorter_breaks_the_answer_off(public: Path) -> None:
    body = (await opened(file(public / "long.bin"))).body
    assert isinstance(body, FilePieces)
    os.truncate(public / "long.bin", PIECE + 1)
    await anext(body)
    with pytest.raises(EOFError):
        await anext(body)
    await body.aclose()


async def test_a_client_that_leaves_in_the_middle(public: Path) -> None:
    async with serving(public) as c:
        async with c.open_request("GET", "/assets/long.bin") as request:
            await anext(request.pieces())
        await c.wait_idle()


def test_cancelled_at_any_step(public: Path) -> None:
    @step
    def send() -> Done:
        return Done(file(public / "long.bin"))

    app = App()
    app.route("GET", "/", Flow("send", [send]))

    async def program() -> None:
        async with client(app) as c:
            assert (await c.get("/")).body == LONG

    def none_is_open() -> None:
        if any(path.startswith(str(public)) for path in open_files()):
            raise AssertionError("a file is open")

    report = cancel_sweep(program, check=none_is_open, clock=None, max_points=60)
    assert report.delivered > 20


async def test_threads_for_files_are_few(public: Path) -> None:
    async with serving(public) as c, trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(c.get, "/assets/long.bin")
