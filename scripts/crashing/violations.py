"""What a check tells, and how keys are read."""

from __future__ import annotations

from collections import defaultdict

import attrs

from scripts.crashing.evidence import Call, Evidence


@attrs.frozen
class Violation:
    """invariant: its number. run_id: "" where no run can be named."""

    invariant: str
    run_id: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}  {self.run_id or '-'}  {self.what:.500}"


def by_key(evidence: Evidence) -> dict[str, list[Call]]:
    """The calls that the provider saw."""
    found: defaultdict[str, list[Call]] = defaultdict(list)
    for call in evidence.calls:
        found[call.key].append(call)
    return dict(found)


def run_of(key: str) -> str:
    """Of a key, as `zerver.core.calls` makes them: run, step, ordinal."""
    return key.split(":", 1)[0]
