"""Replays: what the page shows of a run that was told once more, perhaps with other values.

Law: offline, and no way round the veil: a value that is secret is never taken from a page, and whatever is told of the
new run is masked by the secrets of the recorded one too, since what was recorded is what it was made of.
"""

from __future__ import annotations

from typing import Any

import attrs

from zerver.core.codec import encode_json
from zerver.core.plan import Plan
from zerver.errors import InvalidData
from zerver.trace.comparing.diff import diff, diff_json
from zerver.trace.recording import decode_run
from zerver.trace.recording.vocabulary import Vocabulary
from zerver.trace.replaying.changes import input_name
from zerver.trace.replaying.story import retell
from zerver.trace.replaying.telling import format_story
from zerver.trace.view import Opened, view
from zerver.ui.desk import Desk, Found

_MOST_CHANGES = 100


@attrs.frozen
class Wanted:
    """The body of a replay: JSON by the name of a slot or an input, and the step after which it ends."""

    changes: dict[str, Any] = attrs.field(factory=dict)
    until: str | None = None


def replayed(desk: Desk, found: Found, opened: Opened, plan: Plan, wanted: Wanted) -> bytes:
    """The answer to a replay, as JSON; it runs the app's own steps. Raises InvalidData, TraceError."""
    _check_changes(opened, plan, wanted)
    recorded = found.result
    if found.recording is not None:  # with the code at hand its values are of their own classes again
        recorded = decode_run(found.recording, vocabulary=Vocabulary.of(plan))
    changes = {name: encode_json(value) for name, value in wanted.changes.items()}
    version = desk.version_of(recorded.timeline.flow) if found.recording is not None else None
    story = retell(plan, recorded, changes=changes, until=wanted.until, version=version, hidden=desk.hidden)
    told = {
        "run": recorded.run_id,
        "faithful": story.faithful,
        "divergence": story.to_plain()["divergence"],
        "until": wanted.until,
        "text": format_story(story),
        "not_done": [str(absence) for absence in story.absent],
        "story": story.to_plain(),
        "view": view(story.result, began_unix_ns=found.began_unix_ns, hidden=desk.hidden),
        "diff": diff_json(diff(recorded, story.result, desk.hidden)),
    }
    return encode_json(_masked(told, opened))


def _check_changes(opened: Opened, plan: Plan, wanted: Wanted) -> None:
    if len(wanted.changes) > _MOST_CHANGES:
        raise InvalidData([("changes", f"are more than {_MOST_CHANGES}")])
    secret = opened.secret | plan.secret | {input_name(read) for read in plan.parts if opened.hides(read)}
    hidden = [(name, "is secret, and cannot be changed from here") for name in wanted.changes if name in secret]
    if hidden:
        raise InvalidData(hidden)


def _masked(told: Any, opened: Opened) -> Any:
    """The same with every secret of the recorded run masked."""
    if isinstance(told, str):
        return opened.veil.text(told)
    if isinstance(told, dict):
        return {opened.veil.text(name): _masked(inner, opened) for name, inner in told.items()}
    if isinstance(told, list | tuple):
        return [_masked(inner, opened) for inner in told]
    return told
