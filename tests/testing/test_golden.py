"""A golden text holds what a run looked like, without what differs from run to run, and says how to accept a change."""

from pathlib import Path
from typing import Annotated

import pytest

from zerver import App, Done, Flow, Slot, step
from zerver.effects import clock
from zerver.runtime import Result, open_runtime
from zerver.testing import GoldenMismatch, check_golden, normal

Name = Annotated[str, Slot("name")]
ID, OTHER = "req_d8f16adf91b7584a2265b1f5", "req_0123456789abcdef01234567"


@step
async def rest() -> Name:
    await clock.sleep(1.5)
    return "you"


@step
def greet(name: Name) -> Done:
    return Done(f"hello {name}")


async def a_run(seed: int) -> Result:
    async with open_runtime(App(), seed=seed) as runtime:
        return await runtime.run(Flow("greet", [rest, greet]))


def test_ids_get_names_in_order_of_appearance_and_keys_follow() -> None:
    text = f"{ID}:pay:1 {OTHER}:pay:1 {ID}"
    assert normal(text) == "run#1:pay:1 run#2:pay:1 run#1\n"


def test_a_shortened_id_is_the_same_run() -> None:
    assert normal(f"[{ID[:12]}…] key={ID}:pay:1") == "[run#1] key=run#1:pay:1\n"


def test_uuids_get_names() -> None:
    one, two = "0b7e5f8c-57ab-4a86-9a0e-3e9d2f6f3a10", "0B7E5F8C-57AB-4A86-9A0E-3E9D2F6F3A11"
    assert normal(f"{one} {two} {one.upper()}") == "uuid#1 uuid#2 uuid#1\n"


def test_what_only_looks_like_an_id_stays() -> None:
    assert normal("req_short prereq_0123456789abcdef01234567x") == "req_short prereq_0123456789abcdef01234567x\n"


def test_times_are_kept_or_blanked() -> None:
    text = "  0.0ms  pay  → x\n 12.5ms  pay  ✓ 12.5ms  io 2.25s\ntotal 12.5ms = admission 0.0 + io 12.5"
    assert "12.5ms" in normal(text)
    assert normal(text, times=False) == "  _  pay  → x\n  _  pay  ✓ _  io _\ntotal _\n"


def test_trailing_blanks_do_not_matter() -> None:
    assert normal("a  \nb\n\n") == normal("a\nb")


async def test_a_run_has_the_same_text_under_any_seed(autojump_clock: object) -> None:
    first, second = await a_run(1), await a_run(2)
    assert first.run_id != second.run_id
    assert normal(first) == normal(second) == normal(second.timeline)
    assert "rest   ✓ 1500.0ms" in normal(first)


async def test_golden(autojump_clock: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "golden" / "greet.txt"
    monkeypatch.delenv("ZERVER_GOLDEN", raising=False)
    result = await a_run(1)
    with pytest.raises(GoldenMismatch, match=r"there is no golden file .*\n(.*\n)*.*ZERVER_GOLDEN=write"):
        check_golden(result, file)
    assert not file.exists()

    monkeypatch.setenv("ZERVER_GOLDEN", "write")
    check_golden(result, file)
    monkeypatch.delenv("ZERVER_GOLDEN")
    check_golden(await a_run(2), file)

    with pytest.raises(GoldenMismatch) as caught:
        check_golden(normal(result).replace("1500.0ms", "1600.0ms"), file)
    message = str(caught.value)
    assert "-1500.0ms  rest   ✓ 1500.0ms" in message
    assert "+1600.0ms  rest   ✓ 1600.0ms" in message
    assert message.endswith("if it is right, accept it: ZERVER_GOLDEN=write and run the test again")
