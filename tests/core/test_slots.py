"""Slots, parts and deadlines: names that hold no values."""

from __future__ import annotations

import pytest

from zerver import Deadline, Part, Slot
from zerver.errors import DefinitionError


def test_slots_are_equal_by_name_and_secrecy() -> None:
    assert Slot("a") == Slot("a") != Slot("b")
    assert Slot("a", secret=True).secret
    assert len({Slot("a"), Slot("a")}) == 1


@pytest.mark.parametrize("name", ["", " a", "a ", "\n"])
def test_names_that_nobody_could_find_again(name: str) -> None:
    with pytest.raises(DefinitionError, match="is empty or has blanks around it"):
        Slot(name)


def test_a_part_is_called_as_its_parameter_unless_it_says_otherwise() -> None:
    assert Part().named("user_id") == "user_id"
    assert Part("user-id").named("user_id") == "user-id"


def test_a_deadline_is_a_value() -> None:
    assert Deadline(1.5) == Deadline(1.5)
