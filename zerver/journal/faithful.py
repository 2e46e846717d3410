"""Faithful values: written so that a run can go on with them, and told apart from those that cannot be.

Law: nothing is masked, cut or left out in silence. What would not come back as what it is (an object without declared
fields, a function, a value that nests without end) is written as well as it can be, and `lost` says so: of a step's
answer that does no harm, since a replay computes it again; of an effect's outcome it does.
"""

from __future__ import annotations

from typing import Any, Final

from zerver.core.secret import Secret
from zerver.trace.hidden import Hidden, Secrets
from zerver.trace.inert import type_name
from zerver.trace.recording.masking import placeholder
from zerver.trace.recording.values import Encoder, Tree

#: Bytes of one value, and of all of a run's: no bound that a journal would come to before the disk does.
_NO_BOUND: Final = 1 << 40

#: Whole numbers from here on are written as texts.
_LARGE: Final = 1 << 62


class NothingHidden(Hidden):
    """Hides not even the names that traces always hide: a run cannot go on with a masked header."""

    def hides(self, name: str) -> bool:
        return False


class FaithfulEncoder(Encoder):
    """Writes the values of one run. keeps_secrets: whether a Secret is written as what it holds, or masked and lost.

    lost: the class of a value that cannot be read again, "" if there was none; whoever looks at it resets it.
    """

    def __init__(self, keeps_secrets: bool) -> None:
        super().__init__(Secrets(), NothingHidden(), _NO_BOUND, _NO_BOUND)
        self.lost = ""
        self._keeps_secrets = keeps_secrets
        self._lossy: dict[int, str] = {}  # entries of `values` that cannot be read again, and why

    def go_on(self, values: int, kinds: int) -> None:
        """Number values and kinds from here on: there are so many already, written by an earlier owner of the run."""
        self.values.extend([None] * values)
        self._weights.extend([0] * values)
        self.asked.kinds.extend({} for _ in range(kinds))

    def refer(self, value: object, *, whole: bool = False, trace: bool = False) -> Tree:
        if _is_plain(value) and not whole:  # most values of most runs
            return value
        before, self.lost = self.lost, ""
        count = len(self.values)
        tree = super().refer(value, whole=whole, trace=trace)
        if len(self.values) > count and self.lost:
            self._lossy[count] = self.lost
        elif isinstance(tree, dict) and tree.keys() == {"$"}:
            self.lost = self._lossy.get(tree["$"], self.lost)
        self.lost = self.lost or before
        return tree

    def _known(self, value: object) -> Tree | None:
        tree = super()._known(value)
        if tree is not None:
            self.lost = self.lost or self._lossy.get(tree["$"], "")
        return tree

    def _other(self, value: Any, cls: type, deep: int) -> Tree:
        try:
            tree = super()._other(value, cls, deep)
        except Exception:  # as a property that fails: the encoder writes what is left
            self._lose(cls)
            raise
        if isinstance(tree, dict) and tree.get("$") in ("opaque", "function"):
            self._lose(cls)
        return tree

    def _strange(self, value: Any, cls: type, deep: int) -> Tree:
        if not isinstance(value, Secret):
            return super()._strange(value, cls, deep)
        if self._keeps_secrets:
            return {"$": "secret", "is": self._node(value.reveal(), deep + 1)}
        self._lose(cls)
        return placeholder("Secret")

    def _headed(self, name: str, size: int, head: str) -> Tree:
        self.lost = self.lost or name
        return super()._headed(name, size, head)

    def _lose(self, cls: type) -> None:
        self.lost = self.lost or type_name(cls)


def _is_plain(value: object) -> bool:
    """Whether a value is JSON as it is, and nothing else."""
    if type(value) is str:
        return value.isascii()
    if type(value) is int:
        return -_LARGE < value < _LARGE
    return value is None or type(value) is bool
