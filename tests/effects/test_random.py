"""The constructors of zerver.effects.random make data of the right kind; a seed repeats them, but for secrets."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from zerver import App, Done, Flow, step
from zerver.effects import random
from zerver.errors import DefinitionError
from zerver.runtime import open_runtime


def test_an_effect_is_data() -> None:
    assert (random.uniform(1, 2).kind, random.uniform(1, 2).args) == (random.UNIFORM, (1, 2))
    assert (random.choice("ab").kind, random.choice("ab").args) == (random.CHOICE, ("ab",))
    assert (random.token(8).kind, random.token(8).args) == (random.TOKEN, (8,))
    assert (random.uuid().kind, random.uuid().args) == (random.UUID4, ())
    kinds = (random.UNIFORM, random.CHOICE, random.TOKEN, random.UUID4)
    assert all(kind.access == "read" and kind.instant and kind.target == "random" for kind in kinds)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DefinitionError, match="no options"):
        random.choice([])
    with pytest.raises(DefinitionError, match=r"random\.token\(0\)"):
        random.token(0)


@step
async def draw() -> Done:
    number, option = await random.uniform(5, 6), await random.choice(["a", "b"])
    return Done((number, option, await random.uuid(), await random.token(4)))


def test_every_constructor_is_found_in_the_code_of_a_step() -> None:
    assert [m.kind for m in draw.mentions] == [random.UNIFORM, random.CHOICE, random.UUID4, random.TOKEN]


async def drawn(seed: int) -> Any:
    async with open_runtime(App(), seed=seed) as runtime:
        return (await runtime.run(Flow("draw", [draw]))).unwrap()


async def test_a_seed_repeats_all_but_secrets() -> None:
    *first, secret = await drawn(1)
    *again, other_secret = await drawn(1)
    assert first == again
    assert secret != other_secret
    assert first != (await drawn(2))[:3]
    number, option, uuid = first
    assert 5 <= number <= 6
    assert option in ("a", "b")
    assert isinstance(uuid, UUID)
    assert uuid.version == 4
