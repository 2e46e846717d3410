"""Proves that `zerver diff` finds stored runs by what people say, compares them, and says so when it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from click.testing import Result as Done

from tests.trace import shop
from zerver.cli.diff import diff
from zerver.runtime import Result
from zerver.trace.keeping.store import make_store
from zerver.trace.recording import encode_run
from zerver.trace.summary import summarize

ROUTE = "POST /checkout"


@attrs.define
class Kept:
    """A trace file under way."""

    path: Path
    count: int = 0

    def keep(self, result: Result, run_id: str = "", **summary: Any) -> str:
        """Keep a run under another id, as if it had come over HTTP."""
        self.count += 1
        run_id = run_id or f"req_{self.count:024x}"
        timeline = attrs.evolve(result.timeline, run_id=run_id, label=ROUTE)
        named = attrs.evolve(result, timeline=timeline)
        recording = encode_run(named, began_unix_ns=self.count)
        about = attrs.evolve(summarize(named, began_unix_ns=self.count, kept="sample"), **summary)
        with make_store(self.path) as store:
            store.write([(about, recording)])
        return run_id

    def diff(self, *words: str) -> Done:
        return CliRunner().invoke(diff, ["--db", str(self.path), *words])


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "traces.db")


async def test_two_runs(kept: Kept, autojump_clock: object) -> None:
    one = kept.keep(await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out}), "req_aaaa1111")
    other = kept.keep(await shop.run(shop.CHECKOUT, {}), "req_bbbb2222")
    done = kept.diff("aaaa", other)
    assert done.exit_code == 0
    assert done.output.startswith(f"- {ROUTE}  failed  [{one}]")
    assert "first divergence: reserve\n  - cart: sold out" in done.output
    told = json.loads(kept.diff(one, other, "--json").output)
    assert told["first"]["step"] == "reserve"
    assert told["same"] is False


async def test_a_run_that_is_not_there(kept: Kept, autojump_clock: object) -> None:
    run = kept.keep(await shop.run(shop.CHECKOUT, {}))
    done = kept.diff(run, "req_ffff")
    assert done.exit_code == 2
    assert "no run in" in done.output
    assert "'req_ffff'" in done.output
    assert len(done.output.splitlines()) == 1


async def test_a_beginning_that_fits_several(kept: Kept, autojump_clock: object) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    one, other = kept.keep(result, "req_aaaa1111"), kept.keep(result, "req_aaaa2222")
    done = kept.diff("aaaa", other)
    assert done.exit_code == 2
    assert one in done.output
    assert other in done.output


@pytest.mark.parametrize("words", [[], ["one"], ["one", "two", "three"], ["--slow"], ["--slow", "--fast"]])
async def test_a_wrong_command_line(words: list[str], kept: Kept, autojump_clock: object) -> None:
    kept.keep(await shop.run(shop.CHECKOUT, {}))
    assert kept.diff(*words).exit_code == 2


def test_no_file(kept: Kept) -> None:
    done = kept.diff("one", "two")
    assert done.exit_code == 2
    assert "Traceback" not in done.output


async def slow(number: int) -> Result:
    return await shop.run(shop.CHECKOUT, {"payments.charge": shop.keyed((9, 0), (0.040 + number / 1000, 71))})


async def test_cohorts(kept: Kept, autojump_clock: object) -> None:
    for number in range(6):
        kept.keep(await slow(number), slow=True, kept="slow")
        kept.keep(await shop.run(shop.CHECKOUT, {}))
    done = kept.diff("--slow", "--fast", "POST", "/checkout")
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{ROUTE}: 6 slow runs (9")
    assert "charge explains 100% of the difference" in done.output
    told = json.loads(kept.diff("--slow", "--fast", "checkout", "--json").output)
    assert told["parts"][0]["name"] == "charge"
    assert (told["chosen"]["found_slow"], told["chosen"]["found_fast"]) == (6, 6)


async def test_too_few_runs(kept: Kept, autojump_clock: object) -> None:
    kept.keep(await shop.run(shop.CHECKOUT, {}))
    done = kept.diff("--slow", "--fast", ROUTE)
    assert done.exit_code == 2
    assert f"too few runs of {ROUTE} are stored: 0 slow and 1 fast ones of 1" in done.output


async def test_a_route_without_runs(kept: Kept, autojump_clock: object) -> None:
    kept.keep(await shop.run(shop.CHECKOUT, {}))
    done = kept.diff("--slow", "--fast", "GET /nothing")
    assert done.exit_code == 2
    assert f"no run of GET /nothing is stored; there are runs of: {ROUTE}" in done.output
