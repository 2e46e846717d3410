"""Three grave overruns within a minute put a flow one class down, and a clean minute puts it back."""

from __future__ import annotations

from zerver.core import timeline as t
from zerver.core.overruns import Offenders, Overrun, longest_stretch


def overrun(step: str = "s", took: int = 9, place: str = "", seen: bool = False) -> Overrun:
    return Overrun(step, took, 3, place, seen)


def test_three_within_a_minute_demote_and_a_clean_minute_promotes() -> None:
    offenders = Offenders()
    for now in (0.0, 30.0, 61.0):
        offenders.note("f", overrun(), now)
    assert offenders.demoted("f", 61.0) == 0, "the first was more than a minute ago"
    offenders.note("f", overrun(), 62.0)
    assert (offenders.demoted("f", 62.0), offenders.demoted("g", 62.0)) == (1, 0)
    offenders.note("f", overrun(), 100.0)
    assert offenders.flows(159.0) == ("f",)
    assert offenders.demoted("f", 160.0) == 0
    offenders.note("f", overrun(), 161.0)
    assert offenders.demoted("f", 161.0) == 0, "it begins anew"


def test_a_machine_that_is_slow_for_a_while_demotes_nobody() -> None:
    offenders = Offenders()
    for now in range(10):
        offenders.note("f", overrun(took=5), float(now))
    assert offenders.demoted("f", 10.0) == 0
    assert offenders.statistics()[0].count == 10
    for _ in range(3):
        offenders.note("f", overrun(took=6), 10.0)
    offenders.note("f", overrun(took=5), 69.0)
    assert offenders.demoted("f", 69.0) == 1
    assert offenders.demoted("f", 70.0) == 0, "the last grave one was a minute ago"


def test_steps_are_counted_and_where_one_was_seen_is_kept() -> None:
    offenders = Offenders()
    offenders.note("f", overrun(place="a.py:1"), 0.0)
    offenders.note("f", overrun(took=4_000_000, place="a.py:7", seen=True), 0.0)
    offenders.note("f", overrun(place="a.py:1"), 0.0)
    offenders.note("f", overrun("other"), 0.0)
    first, second = offenders.statistics()
    assert (first.step, first.count, first.longest, first.place) == ("s", 3, 0.004, "a.py:7")
    assert (second.step, second.count) == ("other", 1)


def test_names_made_up_as_they_come_do_not_pile_up() -> None:
    offenders = Offenders()
    for number in range(3_000):
        offenders.note("f", overrun(f"s{number}"), 0.0)
    told = offenders.statistics()
    assert len(told) == 1_001
    assert (told[0].step, told[0].count) == ("other steps", 2_000)


def test_the_longest_stretch_of_a_turn_belongs_to_the_record_at_its_end() -> None:
    records: list[t.Record] = [(t.STEP, 10, "before", None), (t.STEP, 25, "a", None), (t.STEP, 65, "b", None)]
    assert longest_stretch(records, 20, 70) == (40, "b")
    assert longest_stretch(records, 20, 170) == (105, "b")
    assert longest_stretch(records, 61, 66) == (4, "b")


def test_the_time_before_a_step_that_was_not_begun_is_not_the_steps() -> None:
    records: list[t.Record] = [(t.INPUT, 20, "plan", None), (t.BREATH, 65, "a", None)]
    assert longest_stretch(records, 20, 66) == (45, None)
