"""Asking a database that keeps what must survive: what its driver says, in the journal's words.

Law: three answers are kept apart. It was not done and may be asked again (JournalUnavailable); it can never be done so
(NotKeepable, DamagedJournal); nobody knows, which is JournalUnavailable too, since what is asked twice is done once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import attrs
import trio

from zerver.errors import (
    ConnectionLost,
    DamagedJournal,
    DatabaseDown,
    DriverError,
    JournalUnavailable,
    NotKeepable,
    StatementError,
)

T = TypeVar("T")

#: Errors of values that no column can hold.
_VALUES: Final = ("SQLITE_TOOBIG", "SQLITE_MISMATCH", "TEXT", "PARAMETER", "Unicode", "Overflow", "22", "54")


@attrs.frozen
class Asker:
    """Asks. place: how errors call the database. patience: seconds after which there is taken to be no answer. doubt:
    of what nobody knows whether it was done. damage: of a database that is not what it was, by what is wrong with it.
    """

    place: str
    patience: float = float("inf")
    doubt: Callable[[str], JournalUnavailable] = JournalUnavailable
    damage: Callable[[str], DamagedJournal] | None = None

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call answers. Raises JournalUnavailable, NotKeepable and DamagedJournal."""
        if self.patience == float("inf"):
            return await self._asked(call)
        with trio.move_on_after(self.patience):
            return await self._asked(call)
        raise self.doubt(f"{self.place} has not answered for {self.patience:g} s")

    async def _asked(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except DatabaseDown as error:
            raise JournalUnavailable(f"{self.place}: {error}", error.retry_after) from error
        except StatementError as error:
            if error.passes:
                raise JournalUnavailable(f"{self.place}: {error}") from error
            if error.code.startswith(_VALUES):
                raise NotKeepable(f"{self.place}: {error}") from error
            raise self._damaged(str(error)) from error
        except ConnectionLost as error:
            raise self.doubt(f"{self.place}: nobody knows whether it was done: {error}") from error
        except DriverError as error:
            raise JournalUnavailable(f"{self.place}: {error}") from error

    def _damaged(self, what: str) -> DamagedJournal:
        return DamagedJournal(f"{self.place}: {what}") if self.damage is None else self.damage(what)
