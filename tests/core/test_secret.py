"""A secret is a mask wherever it is shown, and is written nowhere."""

from __future__ import annotations

import copy
import pickle

import attrs
import msgspec
import pytest

from zerver.core.codec import encode_json
from zerver.core.secret import MASK, Secret
from zerver.errors import InvalidData

TOKEN = Secret("hunter2")


@attrs.frozen
class Holder:
    token: Secret[str]


def test_it_is_shown_as_a_mask_alone_and_within_anything() -> None:
    shown = [repr(TOKEN), str(TOKEN), f"{TOKEN}", f"{TOKEN:>20}", f"{TOKEN!r}", "%s" % TOKEN, repr([TOKEN])]  # noqa: UP031 - one more way
    shown += [repr(Holder(TOKEN)), repr(attrs.asdict(Holder(TOKEN))), repr(ValueError(TOKEN)), str({TOKEN: TOKEN})]
    assert all(MASK in text and "hunter2" not in text for text in shown)


def test_it_is_given_to_who_asks() -> None:
    assert TOKEN.reveal() == "hunter2"


@pytest.mark.parametrize("write", [encode_json, msgspec.json.encode, pickle.dumps])
def test_it_is_not_written(write: object) -> None:
    for value in (TOKEN, Holder(TOKEN), [TOKEN]):
        with pytest.raises((TypeError, InvalidData)) as raised:
            write(value)  # type: ignore[operator]
        assert "hunter2" not in str(raised.value)


def test_copies_are_itself() -> None:
    assert copy.copy(TOKEN) is TOKEN
    assert copy.deepcopy({"a": TOKEN})["a"] is TOKEN


def test_it_equals_what_holds_the_same() -> None:
    assert Secret("hunter2") == TOKEN
    assert hash(TOKEN) == hash(Secret("hunter2"))
    assert Secret("hunter3") != TOKEN
    assert TOKEN != "hunter2"
    assert Secret(5) == Secret(5) != Secret("5")
    assert not Secret("")
