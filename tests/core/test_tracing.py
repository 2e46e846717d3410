"""Proves that ids of traces and spans are W3C's, come from the run alone, and that nothing malformed is believed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core.tracing import (
    TraceParent,
    effect_span_id,
    outgoing,
    read_traceparent,
    root_span_id,
    span_id,
    trace_id,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = f"00-{TRACE}-{SPAN}-01"
RUN = "req_7a8f3c2b7a8f3c2b7a8f3c2b"


def test_a_traceparent_is_read() -> None:
    assert read_traceparent(CALLER) == TraceParent(TRACE, SPAN, 1)
    assert str(read_traceparent(CALLER)) == CALLER


@pytest.mark.parametrize(
    "text",
    [
        "",
        CALLER + " ",
        " " + CALLER,
        CALLER + "\n",
        CALLER + "-",
        CALLER + "-more",
        CALLER.upper(),
        CALLER.replace("-", "_"),
        f"{CALLER}, {CALLER}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE[:-1]}١-{SPAN}-01",  # a digit, but not an ASCII one
        f"cc-{TRACE}-{SPAN}-01.more",
        f"cc-{TRACE}-{SPAN}-011",
    ],
)
def test_what_is_malformed_is_ignored(text: str) -> None:
    assert read_traceparent(text) is None
    assert trace_id(RUN, text) == trace_id(RUN)
    assert outgoing(RUN, text, "key") == outgoing(RUN, "", "key")


@pytest.mark.parametrize("more", ["", "-what-the-future-says", "-"])
def test_a_later_version_is_read_as_far_as_it_is_known(more: str) -> None:
    assert read_traceparent(f"cc-{TRACE}-{SPAN}-ff{more}") == TraceParent(TRACE, SPAN, 3)


def test_flags_that_nobody_knows_are_not_passed_on() -> None:
    assert outgoing(RUN, f"00-{TRACE}-{SPAN}-fe", "key").endswith("-02")


@given(st.text())
def test_reading_never_fails(text: str) -> None:
    parent = read_traceparent(text)
    assert parent is None or read_traceparent(str(parent)) == parent


def test_the_trace_is_the_callers() -> None:
    assert trace_id(RUN, CALLER) == TRACE


def test_without_a_caller_the_trace_ends_in_the_runs_id() -> None:
    assert re.fullmatch("[0-9a-f]{8}7a8f3c2b7a8f3c2b7a8f3c2b", trace_id(RUN))


@given(st.text(), st.text(), st.text())
def test_ids_are_ids_whatever_a_run_is_called(run_id: str, kind: str, path: str) -> None:
    assert read_traceparent(f"00-{trace_id(run_id)}-{span_id(run_id, kind, path)}-01") is not None
    assert read_traceparent(outgoing(run_id, "", path)) is not None


def test_spans_are_told_apart() -> None:
    ids = [root_span_id(RUN), span_id(RUN, "step", "a"), span_id(RUN, "turn", "a"), effect_span_id(f"{RUN}:a:1")]
    ids += [root_span_id(RUN + "0"), effect_span_id(f"{RUN}:a:2")]
    assert len(set(ids)) == len(ids)


def test_a_request_names_the_span_of_its_effect() -> None:
    assert outgoing(RUN, "", "key") == f"00-{trace_id(RUN)}-{effect_span_id('key')}-01"
    assert outgoing(RUN, CALLER, "key") == f"00-{TRACE}-{effect_span_id('key')}-01"
    assert outgoing(RUN, CALLER[:-1] + "0", "key").endswith("-00")  # the caller has not kept its part
