"""Rates: counts of the last minute by route and tenant, percentiles of the newest, and bounded whatever comes."""

from __future__ import annotations

from zerver.core.timeline import Ending, Record, Status, Timeline
from zerver.runtime import Result
from zerver.ui.rates import WINDOW, Rates, took_ns


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def result(label: str = "GET /", status: Status = "done", took: int = 5, tenant: str = "t") -> Result:
    records: list[Record] = [("received", 10, "f", None), ("ended", 10 + took, "f", Ending(status))]
    return Result(Timeline("req_1", "f", "1", tenant, "default", records, label=label), Ending(status))


def test_what_is_counted() -> None:
    clock = Clock()
    rates = Rates(clock)
    clock.now += 30
    rates.take([result(), result(status="failed"), result(status="refused"), result(status="cancelled")])
    (route,) = rates.routes()
    assert (route["label"], route["flow"], route["count"], route["errors"], route["refused"]) == ("GET /", "f", 4, 1, 1)
    assert route["rate"] == 4 / 30
    assert route["spark"] == [0] * (WINDOW - 1) + [4]


def test_a_minute_later_it_is_forgotten() -> None:
    clock = Clock()
    rates = Rates(clock)
    rates.take([result()])
    clock.now += WINDOW - 1
    rates.take([result()])
    (route,) = rates.routes()
    assert (route["count"], route["spark"][0], route["spark"][-1]) == (2, 1, 1)
    clock.now += WINDOW + 1
    (route,) = rates.routes()
    assert (route["count"], route["rate"], route["p50_ns"]) == (0, 0.0, None)


def test_percentiles_are_of_runs_that_were_let_in() -> None:
    rates = Rates(Clock())
    rates.take([result(took=took) for took in range(1, 101)])
    rates.take([result(status="refused", took=10**9)])
    (route,) = rates.routes()
    assert (route["p50_ns"], route["p99_ns"]) == (51, 100)


def test_the_busiest_come_first_by_tenant_too() -> None:
    rates = Rates(Clock())
    rates.take([result("GET /a", tenant="x"), result("GET /b", tenant="y"), result("GET /b", tenant="y")])
    assert [one["label"] for one in rates.routes()] == ["GET /b", "GET /a"]
    assert [one["name"] for one in rates.tenants()] == ["y", "x"]


def test_names_that_strangers_invent_push_out_what_nobody_asks_for() -> None:
    rates = Rates(Clock())
    for number in range(5000):
        rates.take([result(f"GET /{number}", tenant=str(number)), result("GET /real", tenant="real")])
    assert len(rates.routes()) == len(rates.tenants()) == 500
    assert rates.routes()[0]["label"] == "GET /real"
    assert rates.routes()[0]["count"] == 5000


def test_parked_time_is_left_out() -> None:
    records: list[Record] = [
        ("received", 0, "f", None),
        ("parked", 5, "n", None),
        ("signalled", 1005, "n", None),
        ("ended", 1010, "f", Ending("done")),
    ]
    parked = Result(Timeline("req_1", "f", "1", "t", "default", records), Ending("done"))
    assert took_ns(parked) == 10
    assert took_ns(Result(Timeline("req_1", "f", "1", "t", "default", []), Ending("done"))) == 0
