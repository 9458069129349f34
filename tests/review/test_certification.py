"""Reviews beside other sessions: no deadlock, no lost fact, and no broken mentor that stops a run."""

import threading
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.facts import reading
from certjob.review import certification
from certjob.review.certification import CertificationManagementService
from certjob.review.guards import MassChangeGuard
from certjob.review.plan import ReviewCounts
from certjob.stopping import StopFlag
from tests.support.facts import TODAY
from tests.support.programmes import everything
from tests.support.scene import YESTERDAY, Scene
from tests.support.waiting import until, waits_for_a_lock

PAUSES = "SELECT reason FROM mentor_pauses WHERE lifted_at IS NULL ORDER BY reason"
PROBLEMS = "SELECT mentor_id, reason FROM review_problems"
CHANGE = "UPDATE certificates SET issued_on = %s, expires_on = %s"
RENEW = "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) SELECT id, 'likeperson', %s, %s FROM mentors"


def apply_due(scene: Scene, **options: Any) -> ReviewCounts:
    guard = MassChangeGuard(scene.connection, today=TODAY)
    given: dict[str, Any] = {"today": TODAY, "run_id": uuid4(), "guard": guard, "stop": StopFlag()}
    return CertificationManagementService(scene.connection, **given | options).apply_due()


def break_writes(scene: Scene, table: str, column: str, *, when: str = "true") -> None:
    """Let the database refuse changes of a column."""
    scene.run_sql("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'it is broken'; END $$")
    trigger = f"CREATE TRIGGER refuse BEFORE UPDATE OF {column} ON {table} FOR EACH ROW WHEN ({when})"
    scene.run_sql(f"{trigger} EXECUTE FUNCTION refuse()")


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
    mentors = [scene.expired() for _ in range(5)]
    break_writes(scene, "certificates", "status", when=f"NEW.mentor_id = '{mentors[2]}'")
    reason = "RaiseException: it is broken"

    report = scene.night(deliver=False)

    assert (report.outcome, report.to_document()["mentors"]["reviewed"], due(scene)) == ("attention", 4, [mentors[2]])
    assert str(mentors[2]) in report.reasons[0]
    scene.facts.organisation("nhf", portal=None)
    scene.night(deliver=False, organisation="nhf")
    assert scene.rows(PROBLEMS) == [(mentors[2], reason)]
    scene.run_sql("DROP TRIGGER refuse ON certificates")
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
def test_mentor_locked_for_long_is_skipped(scene: Scene, monkeypatch: pytest.MonkeyPatch, lock: str) -> None:
    """So is a mentor with facts that keep changing. The others are reviewed."""
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0.5)
    organisation = scene.facts.organisation(portal=None)
    locked, changing, _ = (scene.facts.certified_mentor(organisation, YESTERDAY) for _ in range(3))
    scene.app.execute(lock.encode(), (locked,))
    passes: list[int] = []

    def change(_done: int) -> None:
        passes.append(1)
        left = "UPDATE mentors SET left_at = now() + random() * interval '1 day' WHERE id = %s"
        scene.run_sql(left, changing)

    counts = apply_due(scene, on_progress=change)

    assert len(passes) > 2
    assert counts.skipped == due(scene) == sorted([locked, changing])


def test_mentor_unlocked_in_time_is_reviewed(scene: Scene) -> None:
    scene.expired()
    scene.app.execute("SELECT FROM mentors FOR UPDATE")

    class Waiting(StopFlag):
        def sleep(self, seconds: float) -> None:
            scene.app.rollback()

    counts = apply_due(scene, stop=Waiting())

    assert (counts.reviewed, counts.skipped) == (1, [])


@pytest.mark.parametrize(
    ("moment", "statement", "waits", "mentors_read", "paused"),
    [
        pytest.param("before the read", CHANGE, True, 0, 0, id="changed before the read"),
        pytest.param("after the read", RENEW, True, 1, 1, id="renewed after the read"),
        pytest.param("before the read", RENEW, False, 1, 0, id="committed between lock and read"),
    ],
)
def test_fact_that_changes_during_a_review_is_not_lost(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    statement: str,
    waits: bool,
    mentors_read: int,
    paused: int,
) -> None:
    """The app waits for the locked mentor. certjob skips a locked certificate, which prevents a deadlock."""
    scene.expired()
    read, reads = reading.read, list[int]()

    def write() -> None:
        if not waits:  # the trigger would wait for the mentor
            scene.app.execute("ALTER TABLE certificates DISABLE TRIGGER certificates_inserted")
        scene.app.execute(statement.encode(), (TODAY, TODAY + timedelta(days=700)))
        scene.app.commit()

    writing = threading.Thread(target=write)

    def read_beside_the_app(*arguments: Any, **options: Any) -> reading.FactsRead:
        found = read(*arguments, **options) if moment == "after the read" else None
        if not reads:
            writing.start()
            until(lambda: waits_for_a_lock(scene.other, scene.app) if waits else not writing.is_alive())
        found = found or read(*arguments, **options)
        reads.append(len(found.mentors))
        return found

    monkeypatch.setattr(reading, "read", read_beside_the_app)
    first = apply_due(scene)
    writing.join()
    second = apply_due(scene)

    assert reads[0] == mentors_read
    assert (first.skipped + second.skipped, first.paused + second.paused) == ([], paused)
    assert scene.rows("SELECT status FROM certificates ORDER BY issued_on")[-1] == ("valid",)
    assert scene.rows(PAUSES) == []


@pytest.mark.parametrize("table", ["mentors", "certificates"])
def test_table_locked_for_a_while_delays_the_review(scene: Scene, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """For example by a migration of the app. Each mentor is reviewed once."""
    for _ in range(6):
        scene.expired()
    monkeypatch.setattr(certification, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(certification, "CHUNK_SIZE", 2)
    scene.app.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
    release = threading.Timer(0.4, scene.app.rollback)
    release.start()

    counts = apply_due(scene)
    release.join()

    assert (counts.skipped, counts.broken, counts.paused) == ([], {}, 6)
    assert scene.rows("SELECT count(*) FROM certificate_transitions") == [(6,)]


def test_table_that_stays_locked_ends_the_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.expired()
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0)
    scene.app.execute("LOCK TABLE mentors IN EXCLUSIVE MODE")

    with pytest.raises(DatabaseUnavailableError) as caught:
        apply_due(scene)

    assert caught.value.message == "the table mentors is locked by another session"
    assert caught.value.next_step == "end that session and run again"


def test_signal_ends_the_review_between_chunks(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk stays committed."""
    monkeypatch.setattr(certification, "CHUNK_SIZE", 2)
    for _ in range(6):
        scene.expired()
    stop = StopFlag()

    with pytest.raises(StoppedBySignalError):
        apply_due(scene, stop=stop, on_progress=lambda _done: stop.set())

    assert len(due(scene)) == 4


def test_second_run_changes_nothing(scene: Scene) -> None:
    """No mentor is due in it. Neither does a third run that reviews everyone."""
    organisation = scene.facts.organisation()
    for days in (-40, -1, 0, 3, 45, 400):
        scene.facts.certified_mentor(organisation, TODAY + timedelta(days=days))
    scene.night(deliver=False)
    before = everything(scene.facts) | {"job_runs": []}

    for reviewed in (0, 6):
        report = scene.night(deliver=False)

        assert report.to_document()["mentors"]["reviewed"] == reviewed
        assert everything(scene.facts) | {"job_runs": []} == before
        scene.run_sql("UPDATE mentors SET review_on = '-infinity'")


def test_pause_lifted_by_a_person_is_opened_again(scene: Scene) -> None:
    """While the mentor is not certified. A person's pause stays."""
    scene.facts.pause(scene.expired())
    scene.night(deliver=False)
    scene.run_sql("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE reason <> 'illness'")

    scene.night(deliver=False)

    assert scene.rows(PAUSES) == [("certification_expired",), ("illness",)]
