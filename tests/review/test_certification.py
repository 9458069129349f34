"""Reviews beside other sessions: no half-written mentor, and no locked or broken one that stops a run."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.review import certification
from certjob.review.certification import CertificationManagementService
from certjob.review.guards import MassChangeGuard
from certjob.review.plan import ReviewCounts
from certjob.stopping import StopFlag
from tests.support.facts import TODAY
from tests.support.scene import YESTERDAY, Scene

PROBLEMS = "SELECT mentor_id, reason FROM still_due"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certification, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0.1)


def apply_due(scene: Scene, **options: Any) -> ReviewCounts:
    run_id = uuid4()
    guard = MassChangeGuard(scene.connection, today=TODAY)
    given: dict[str, Any] = {"today": TODAY, "run_id": run_id, "guard": guard, "stop": StopFlag()}
    return CertificationManagementService(scene.connection, **given | options).apply_due()


def break_writes(scene: Scene, table: str, column: str, *, when: str = "true") -> None:
    """Let the database reject changes of a column."""
    scene.run_sql("CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'it is broken'; END $$")
    trigger = f"CREATE TRIGGER reject BEFORE UPDATE OF {column} ON {table} FOR EACH ROW WHEN ({when})"
    scene.run_sql(f"{trigger} EXECUTE FUNCTION reject()")


def due(scene: Scene) -> list[UUID]:
    return [row[0] for row in scene.rows("SELECT id FROM mentors WHERE review_on <= %s ORDER BY id", TODAY)]


def test_state_audit_and_intents_are_committed_together(scene: Scene) -> None:
    """If the last statement of a chunk fails, all of its writes are undone."""
    mentor_id = scene.facts.certified_mentor(scene.facts.organisation(), YESTERDAY)
    break_writes(scene, "mentors", "review_on")

    assert list(apply_due(scene).broken) == [mentor_id]

    for table in ("certificate_transitions", "mentor_pauses", "cert_notification_log", "portal_sync_events"):
        assert scene.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    assert scene.rows("SELECT status FROM certificates") == [("recorded",)]


def test_broken_mentor_is_named_and_the_others_are_reviewed(scene: Scene) -> None:
    """The mentor stays due. A review of the mentor deletes the stored reason; one of another organisation does not."""
    mentors = [scene.expired() for _ in range(3)]
    scene.facts.organisation("nhf", portal=None)
    break_writes(scene, "certificates", "status", when=f"NEW.mentor_id = '{mentors[1]}'")

    report = scene.night(deliver=False)

    assert (report.outcome, report.to_document()["mentors"]["reviewed"], due(scene)) == ("attention", 2, [mentors[1]])
    assert str(mentors[1]) in report.reasons[0]
    scene.night(deliver=False, organisation="nhf")
    assert scene.rows(PROBLEMS) == [(mentors[1], "RaiseException: it is broken")]
    scene.run_sql("DROP TRIGGER reject ON certificates")
    scene.night(deliver=False)
    assert scene.rows(PROBLEMS) == []


@pytest.mark.parametrize(
    "lock",
    [
        pytest.param("SELECT FROM certificates WHERE mentor_id = %s FOR UPDATE", id="certificate"),
        pytest.param("SELECT FROM mentors WHERE id = %s FOR UPDATE", id="mentor"),
        pytest.param(
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
            " SELECT mentor_id, -1, id, expires_on FROM certificates WHERE mentor_id = %s",
            id="reminder, which times out the whole chunk",
        ),
    ],
)
def test_mentor_locked_for_long_is_skipped(scene: Scene, lock: str) -> None:
    """The others are reviewed."""
    organisation = scene.facts.organisation(portal=None)
    locked, _ = (scene.facts.certified_mentor(organisation, YESTERDAY) for _ in range(2))
    scene.app.execute(lock.encode(), (locked,))

    counts = apply_due(scene)

    assert counts.skipped == due(scene) == [locked]
    assert counts.paused == 1


@pytest.mark.parametrize(
    "lock",
    [
        pytest.param("SELECT FROM mentors FOR UPDATE", id="mentors"),
        pytest.param("LOCK TABLE mentors", id="table of mentors"),
        pytest.param("LOCK TABLE certificates", id="table of certificates"),
    ],
)
def test_lock_that_ends_in_time_delays_the_review(scene: Scene, monkeypatch: pytest.MonkeyPatch, lock: str) -> None:
    """Each mentor is reviewed once."""
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 30.0)
    for _ in range(2):
        scene.expired()
    scene.app.execute(lock.encode())

    class Waiting(StopFlag):
        def sleep(self, seconds: float) -> None:
            scene.app.rollback()

    counts = apply_due(scene, stop=Waiting())

    assert (counts.skipped, counts.broken, counts.paused) == ([], {}, 2)
    assert scene.rows("SELECT count(*) FROM certificate_transitions") == [(2,)]


def test_table_that_stays_locked_ends_the_run(scene: Scene) -> None:
    scene.expired()
    scene.app.execute("LOCK TABLE mentors")

    with pytest.raises(DatabaseUnavailableError) as caught:
        apply_due(scene)

    assert str(caught.value) == "the table mentors is locked by another session; end that session and run again"


def test_signal_ends_the_review_between_chunks(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk stays committed."""
    monkeypatch.setattr(certification, "CHUNK_SIZE", 2)
    for _ in range(6):
        scene.expired()
    stop = StopFlag()

    with pytest.raises(StoppedBySignalError):
        apply_due(scene, stop=stop, on_progress=lambda _done: stop.set())

    assert len(due(scene)) == 4
