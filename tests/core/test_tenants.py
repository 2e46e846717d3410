"""What an operator says about tenants is checked when it is said, and the unnamed are treated alike and alone."""

from __future__ import annotations

import pytest

from zerver.core.tenants import Identity, Tenant, Tenants, classify
from zerver.errors import DefinitionError


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": 0}, {"weight": -1.0}, {"weight": float("inf")}, {"weight": float("nan")}, {"rate": 0.0},
        {"rate": float("inf")}, {"rate": 1.0, "burst": 0.5}, {"burst": 5}, {"runs": 0}, {"effects": 0},
        {"parallel": -1}, {"priority": "urgent"}, {"rate": "3"}, {"weight": True}, {"rate": 1.0, "burst": "2"},
        {"runs": 2.5}, {"runs": True}, {"effects": "4"},
    ],
)  # fmt: skip
def test_a_rule_that_bounds_nothing_or_everything_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DefinitionError, match=next(reversed(wrong))):
        Tenant(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_what_is_no_rule_and_no_class_is_refused_when_it_is_said() -> None:
    with pytest.raises(DefinitionError, match="tenant 'acme' has 3 for a rule"):
        Tenants({"acme": 3})  # type: ignore[dict-item]  # wrong on purpose
    with pytest.raises(DefinitionError, match="tenant 'default' has None for a rule"):
        Tenants({}, None)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(DefinitionError, match="identity of tenant 'acme': priority 'urgent' is unknown"):
        Identity("acme", priority="urgent")  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("rule", "bucket"),
    [(Tenant(rate=10), 10.0), (Tenant(rate=0.1), 1.0), (Tenant(rate=10, burst=30), 30.0), (Tenant(), 1.0)],
)
def test_how_many_may_begin_at_once(rule: Tenant, bucket: float) -> None:
    assert rule.bucket == bucket


def test_who_is_not_named_is_treated_by_the_default() -> None:
    tenants = Tenants({"acme": Tenant(weight=4)}, Tenant(rate=5))
    assert tenants.get("acme") == Tenant(weight=4)
    assert tenants.get("nobody knows") == Tenant(rate=5)
    assert Tenants().get("") == Tenant()


def test_a_class_is_lowered_by_the_rule_and_the_client_and_replaced_by_the_credential() -> None:
    assert classify("interactive", Tenant()) == "interactive"
    assert classify("interactive", Tenant(priority="default")) == "default"
    assert classify("batch", Tenant(priority="interactive")) == "batch"
    assert classify("batch", Tenant(priority="batch"), credential="interactive") == "interactive"
    assert classify("interactive", Tenant(), asked="batch") == "batch"
    assert classify("batch", Tenant(), asked="interactive") == "batch"
