"""Admission keeps to its figures on a virtual clock: the real decisions, every scenario, beside what others do.

Each scenario is a law of `zerver.core.admission`: when its decisions get worse, a figure leaves its allowed range here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import attrs
import cattrs
import pytest

from scripts.simulations import admission, plots
from scripts.simulations.admission import ABLATIONS, FAILED, POLICIES, Line, judge
from scripts.simulations.figures import FIGURES, max_min, quantile
from scripts.simulations.scenario import Phase, Scenario, load, load_all
from scripts.simulations.world import Recording, merged, simulate

SCENARIOS = load_all()
#: The suite runs twice, and slower with -X dev: the run that is quick takes all seeds.
SEEDS = range(admission.SEEDS if sys.flags.optimize else 2)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_design_keeps_to_what_is_allowed(name: str) -> None:
    scenario = SCENARIOS[name]
    # A pooled figure is one of all seeds together, as one seed has too few calls for it; so have two.
    line = judge(scenario, "zerver", range(admission.SEEDS) if scenario.pooled else SEEDS)
    assert [f"{what}: {figure}" for what, figure in line.figures.items() if not figure.ok] == []


@pytest.mark.parametrize("policy", ABLATIONS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_proves_something(name: str, policy: str) -> None:
    """What an ablation passes too proves nothing; none is known that does."""
    assert not judge(SCENARIOS[name], policy, range(1)).ok


@pytest.mark.parametrize(("name", "policy"), [(s.name, policy) for s in SCENARIOS.values() for policy in s.failed])
def test_a_design_that_failed_fails_still(name: str, policy: str) -> None:
    assert not judge(SCENARIOS[name], policy, range(1)).ok


def test_every_design_that_failed_is_run_somewhere() -> None:
    assert {policy for scenario in SCENARIOS.values() for policy in scenario.failed} == set(FAILED)


def test_every_figure_is_measured_somewhere() -> None:
    assert {name.split(".")[0] for scenario in SCENARIOS.values() for name in scenario.allowed} == set(FIGURES)


def test_hedges_cut_the_tail_within_their_budget() -> None:
    line = admission.hedges(len(SEEDS))
    assert [f"{what}: {figure}" for what, figure in line.figures.items() if not figure.ok] == []


# ---- the simulator itself -------------------------------------------------------------------


def short(name: str) -> Scenario:
    return attrs.evolve(SCENARIOS[name], seconds=4.0, window=(0.0, 4.0))


def played(policy: str, seed: int, name: str = "ten-times") -> Recording:
    scenario = short(name)
    return simulate(scenario, POLICIES[policy](scenario, seed), seed)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_run(policy: str) -> None:
    assert played(policy, 1) == played(policy, 1)
    assert played(policy, 1).calls != played(policy, 2).calls


def test_all_policies_are_offered_the_same_calls() -> None:
    offered = {policy: played(policy, 1).arrivals for policy in POLICIES}
    assert all(arrivals == offered["none"] for arrivals in offered.values())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_more_is_done_than_the_cpu_can_do(name: str, policy: str) -> None:
    scenario = short(name)
    recording = simulate(scenario, POLICIES[policy](scenario, 1), 1)
    ingress = len(recording.arrivals) * scenario.ingress
    spent = sum(seconds for *_, seconds in recording.spent)
    assert 0 < spent <= scenario.seconds
    assert spent + ingress <= scenario.seconds * 1.01  # those that arrived last were not looked at any more


@pytest.mark.parametrize("policy", POLICIES)
def test_a_call_is_served_in_time_or_not_at_all(policy: str) -> None:
    recording = played(policy, 1)
    for call in recording.calls:
        assert not call.ok or call.ended - call.called <= recording.scenario.flows[call.name].deadline


def test_the_seeds_of_a_pooled_scenario_are_one() -> None:
    runs = [played("fixed", seed) for seed in (1, 2)]
    assert merged(runs).calls == runs[0].calls + runs[1].calls


def test_a_scenario_says_nothing_that_nobody_reads(tmp_path: Path) -> None:
    odd = tmp_path / "odd.toml"
    odd.write_text('title = "x"\nseconds = 1\nphase = []\n[allowed]\n')
    with pytest.raises(cattrs.ClassValidationError):
        load(odd)


def test_an_idle_worker_serves_all_that_is_offered() -> None:
    quiet = attrs.evolve(short("quiet"), phases=(Phase(at=0.0, load=0.05),))
    for policy in POLICIES:
        recording = simulate(quiet, POLICIES[policy](quiet, 1), 1)
        assert recording.calls
        assert all(call.ok for call in recording.calls)


def test_what_one_leaves_is_shared_by_the_others() -> None:
    even = dict.fromkeys("abc", 1.0)
    assert max_min({"a": 1.0, "b": 5.0, "c": 5.0}, 7.0, even) == {"a": 1.0, "b": 3.0, "c": 3.0}
    assert max_min({"a": 1.0, "b": 1.0, "c": 1.0}, 7.0, even) == even
    assert max_min({"a": 9.0, "b": 9.0}, 3.0, {"a": 1.0, "b": 2.0}) == {"a": 1.0, "b": 2.0}


def test_a_quantile_of_nothing_is_no_good_news() -> None:
    assert quantile([], 0.99) == float("inf")
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0


# ---- the command ----------------------------------------------------------------------------


def test_the_command_prints_and_writes_what_it_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "scripts.simulations.admission", "--scenario", "quiet", "--seeds", "1"]
    told = subprocess.run([*command, "--json", str(figures)], capture_output=True, text=True, check=True)
    assert "quiet:" in told.stdout
    lines = {line["policy"]: line for line in json.loads(figures.read_text())}
    assert lines["zerver"]["pass"]
    assert lines["zerver"]["figures"]["served.interactive"]["low"] == 1.0


def test_leaving_a_range_is_a_problem_and_so_is_a_blind_scenario() -> None:
    bad = attrs.evolve(SCENARIOS["quiet"], seconds=5.0, window=(0.0, 5.0), allowed={"goodput": (2.0, 3.0)})
    line = judge(bad, "zerver", range(1))
    assert admission.problems(bad, [line]) != []
    failed = next(iter(FAILED))
    assert "blind" in admission.problems(bad, [Line("quiet", failed, {})])[0]


def test_without_matplotlib_plots_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="matplotlib"):
        plots.draw(SCENARIOS, POLICIES, tmp_path)
