"""What a handler raised says one thing about the attempt: whether it happened, and whether to try again."""

import pytest

from zerver import IdempotencyKey, effect
from zerver.core.effects import EffectKind
from zerver.errors import (
    ConnectFailed,
    ConnectionLost,
    DriverClosed,
    EffectError,
    EffectRefused,
    EffectTimeout,
    OutcomeUnknown,
    Rejected,
    StatementError,
)
from zerver.runtime.judge import judge, judge_timeout


@effect(kind="bank.rate", access="read")
async def READ() -> None: ...


@effect(kind="bank.charge", access="write")
async def WRITE() -> None: ...


@effect(kind="bank.keyed", access="write")
async def KEYED(*, key: IdempotencyKey) -> None: ...


EXACT = EffectKind("sql.execute", "write", exact=True)
EVERY = [READ, WRITE, KEYED, EXACT]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("raised", [Rejected("no"), StatementError("wrong")])
def test_a_definite_no_is_final_and_says_nothing_bad_of_its_target(kind: EffectKind, raised: Exception) -> None:
    judged = judge(kind, raised)
    assert (judged.again, judged.trouble, judged.doubt) == (False, False, False)
    assert type(judged.error) is EffectError
    assert judged.error.cause is raised
    assert judged.error.kind == kind.name


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("raised", [ConnectFailed("down"), DriverClosed("closed"), EffectRefused("x", "not now")])
def test_what_was_not_sent_has_not_happened_and_may_be_tried_again(kind: EffectKind, raised: Exception) -> None:
    judged = judge(kind, raised)
    assert (judged.again, judged.trouble, judged.doubt) == (True, True, False)
    assert isinstance(judged.error, EffectRefused)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("code", ["SQLITE_BUSY", "SQLITE_FULL", "40001", "53100"])
def test_a_database_that_cannot_now_is_asked_again(kind: EffectKind, code: str) -> None:
    """Found by a campaign: a file that another process held locked left a compensation undone, and a run unresolved."""
    locked = StatementError("database is locked", code)
    judged = judge(kind, locked)
    assert (judged.again, judged.trouble, judged.doubt) == (True, True, False)
    assert isinstance(judged.error, EffectRefused)
    assert judged.error.cause is locked
    assert not StatementError("no such table", "SQLITE_ERROR").passes


@pytest.mark.parametrize(("kind", "again"), [(WRITE, False), (KEYED, True)])
@pytest.mark.parametrize("raised", [ValueError("odd"), ConnectionLost("reset"), EffectError("x", "y"), TimeoutError()])
def test_a_write_is_in_doubt_and_tried_again_only_by_key(kind: EffectKind, again: bool, raised: Exception) -> None:
    judged = judge(kind, raised)
    assert (judged.again, judged.trouble, judged.doubt) == (again, True, True)
    assert isinstance(judged.error, OutcomeUnknown)
    assert judged.error.cause is raised


def test_an_outcome_unknown_is_passed_on_as_it_is() -> None:
    said = OutcomeUnknown("bank.charge", "who knows")
    assert judge(WRITE, said).error is said


@pytest.mark.parametrize("kind", [READ, EXACT])
def test_reads_and_exact_kinds_know_that_nothing_happened(kind: EffectKind) -> None:
    judged = judge(kind, ValueError("odd"))
    assert (judged.again, judged.trouble, judged.doubt) == (True, True, False)
    assert judged.error.reason == "ValueError: odd"
    assert judge(kind, KeyError()).error.reason == "KeyError"


@pytest.mark.parametrize("raised", [OutcomeUnknown("sql.execute", "?"), ConnectionLost("reset")])
def test_an_exact_kind_says_so_when_nobody_knows(raised: Exception) -> None:
    assert judge(EXACT, raised).doubt


def test_timeouts() -> None:
    early = judge_timeout(KEYED, 0.8, sent=False)
    assert isinstance(early.error, EffectTimeout)
    assert (early.again, early.trouble, early.doubt) == (True, True, False)
    assert early.error.reason == "timed out after 800ms"
    late = judge_timeout(KEYED, 0.8, sent=True)
    assert isinstance(late.error, OutcomeUnknown)
    assert (late.again, late.doubt) == (True, True)
    assert not judge_timeout(WRITE, 0.8, sent=True).again
