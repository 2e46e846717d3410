"""A TOML text becomes Tenants, and whatever is wrong with it is named by line or key, with its cure."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core.priorities import PRIORITIES
from zerver.core.tenancy import read_tenants
from zerver.core.tenants import Tenant, Tenants
from zerver.errors import DefinitionError

WHOLE = """
[default]
rate = 10

[tenants.acme]
weight = 4
rate = 100
burst = 200
runs = 50
effects = 4
parallel = 2
priority = "default"

[tenants."a b.c"]
rate = 0.5
"""


def test_every_key_is_read() -> None:
    acme = Tenant(weight=4, rate=100, burst=200, runs=50, effects=4, parallel=2, priority="default")
    assert read_tenants(WHOLE) == Tenants({"acme": acme, "a b.c": Tenant(rate=0.5)}, Tenant(rate=10))


def test_nothing_said_bounds_nothing() -> None:
    assert read_tenants("") == read_tenants("[tenants]\n[default]\n") == Tenants()


@pytest.mark.parametrize("key", attrs.fields_dict(Tenant))
def test_no_field_of_a_tenant_is_missing(key: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        read_tenants(f"[default]\n{key} = []")
    assert raised.value.problem == f"default.{key} is []"


@pytest.mark.parametrize(
    ("text", "problem", "cure"),
    [
        ("[tenants.acme\n", "it is not TOML: Expected ']'", "mend that line"),
        ("rate = 1", "'rate' is no table of this file", "there are [default] and [tenants.NAME]: remove it"),
        ("[tenant.acme]", "'tenant' is no table", "there are [default] and [tenants.NAME]: did you mean tenants?"),
        ("tenants = 3", "tenants is 3", "make it a table, [tenants], with keys below it"),
        ("[tenants]\nacme = 3", "tenants.acme is 3", "make it a table, [tenants.acme], with keys below it"),
        ("default = 'x'", "default is 'x'", "make it a table, [default], with keys below it"),
        ("[tenants.acme]\nrat = 1", "tenants.acme.rat is unknown", "did you mean rate?"),
        ("[tenants.acme]\nzzz = 1", "tenants.acme.zzz is unknown", "remove it"),
        ("[tenants.'a b']\nrate = 'x'", "tenants.'a b'.rate is 'x'", "give a number, as 100 or 0.5"),
        ("[default]\nrate = true", "default.rate is True", "give a number, as 100 or 0.5"),
        ("[default]\nruns = 1.5", "default.runs is 1.5", "give a whole number, as 50"),
        ("[default]\nruns = true", "default.runs is True", "give a whole number, as 50"),
        ("[default]\nruns = 99999999999999999999", "default.runs is 99999999999999999999", "give a whole number"),
        (
            "[default]\nruns = 0",
            "default: tenant runs=0 is not a whole number of at least 1",
            "give at least 1, or leave it out",
        ),
        ("[default]\nrate = nan", "default: tenant rate=nan is not a number above 0", "give a number above 0"),
        ("[default]\nburst = 3", "default: tenant burst=3 without a rate", "give a rate too"),
        ("[default]\npriority = 1", "default.priority is 1", "give a class in quotes"),
        ("[default]\npriority = 'high'", "tenant priority 'high' is unknown", "choose one of interactive, default"),
    ],
)
def test_what_is_wrong_is_named_with_its_cure(text: str, problem: str, cure: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        read_tenants(text)
    assert problem in raised.value.problem
    assert cure in raised.value.cure
    assert "\n" not in raised.value.problem + raised.value.cure


_RULES = st.builds(
    Tenant,
    weight=st.integers(1, 100) | st.floats(0.01, 100),
    rate=st.none() | st.floats(0.01, 1e6),
    runs=st.none() | st.integers(1, 10**6),
    effects=st.none() | st.integers(1, 100),
    parallel=st.none() | st.integers(1, 100),
    priority=st.none() | st.sampled_from(PRIORITIES),
)


@given(_RULES)
def test_what_a_rule_says_can_be_written(rule: Tenant) -> None:
    said = {name: value for name, value in attrs.asdict(rule).items() if value is not None}
    text = "[tenants.acme]\n" + "".join(
        f'{key} = "{value}"\n' if isinstance(value, str) else f"{key} = {value!r}\n" for key, value in said.items()
    )
    assert read_tenants(text).get("acme") == rule


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_tenants(text)
    except DefinitionError:
        pass
