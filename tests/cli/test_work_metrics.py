"""`zerver work --metrics HOST:PORT`: a worker that can be scraped; a bad address is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.cli.commands import zerver
from tests.cli.working import SHOP, mail, opened, until_state, working
from zerver.cli.options import WrongOption
from zerver.cli.scrape import open_metrics_listeners, read_address


async def test_a_worker_tells_what_a_server_tells(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    async with opened(tmp_path) as store:
        await store.order([mail("ada")])
        async with working(tmp_path, "--metrics", "127.0.0.1:0") as worker:
            await until_state(store, "ada", "done")
            with trio.fail_after(30):
                while 'outcome="done"} 1.0\n' not in (told := await worker.ask("GET /metrics")):
                    pass
            assert told.startswith("HTTP/1.1 200 ")
            assert "zerver_jobs_seats" in told
            assert "zerver_queue_jobs" in told
            assert (await worker.ask("GET /")).startswith("HTTP/1.1 404 ")
            assert (await worker.ask("GET /metrics/more")).startswith("HTTP/1.1 404 ")
            refused = await worker.ask("POST /metrics")
            assert refused.startswith("HTTP/1.1 405 ")
            assert "\nallow: get, head" in refused.lower()
            assert (await worker.ask("HEAD /metrics")).startswith("HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "address",
    ["9100", ":9100", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:9100", "[]:1", "[a]:1"],
)
def test_what_is_no_address_is_refused_in_one_line(address: str) -> None:
    with pytest.raises(WrongOption, match=r"is no address: write HOST:PORT"):
        read_address(address)


def test_addresses() -> None:
    assert read_address("127.0.0.1:9100") == ("127.0.0.1", 9100)
    assert read_address("[::1]:0") == ("::1", 0)
    assert read_address("localhost:80") == ("localhost", 80)


async def test_an_address_that_is_taken_is_refused() -> None:
    (taken,) = await open_metrics_listeners("127.0.0.1:0")
    async with taken:
        with pytest.raises(WrongOption, match="cannot listen there: Address already in use; give an address of this"):
            await open_metrics_listeners(f"127.0.0.1:{taken.socket.getsockname()[1]}")


def test_the_command_says_so_with_status_2(tmp_path: Path) -> None:
    for options, words in (
        (("--metrics", "nowhere"), "is no address"),
        (("--metrics", "192.0.2.1:1"), "cannot listen there"),
    ):
        ended = zerver(tmp_path, "work", "shop:app", *options, shop=SHOP)
        assert ended.status == 2
        assert words in ended.err
        assert "Traceback" not in ended.err
