"""Apply under real concurrency: nobody deadlocks, no fact is lost, one bad mentor never stops the night."""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.facts import reading
from certjob.review import certification
from certjob.review.certification import CertificationManagementService
from certjob.review.guards import MassChangeGuard
from certjob.stopping import StopFlag
from tests.support.facts import TODAY
from tests.support.programmes import everything
from tests.support.scene import YESTERDAY, Scene
from tests.support.waiting import until, waits_for_a_lock

STATUSES = "SELECT status FROM certificates ORDER BY issued_on"
PAUSES = "SELECT reason FROM mentor_pauses WHERE lifted_at IS NULL ORDER BY reason"
CHANGE = "UPDATE certificates SET issued_on = %s, expires_on = %s"
RENEW = "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) SELECT id, 'likeperson', %s, %s FROM mentors"


def apply_due(scene: Scene, **options: Any) -> Any:
    guard = MassChangeGuard(scene.connection, today=TODAY, allow=Counter())
    given: dict[str, Any] = {"today": TODAY, "run_id": uuid4(), "guard": guard, "stop": StopFlag()}
    return CertificationManagementService(scene.connection, **given | options).apply_due()


def refuse(scene: Scene, table: str, column: str, *, when: str = "true") -> None:
    """Let the database refuse every change of a column, or some."""
    scene.run_sql("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'it is broken'; END $$")
    trigger = f"CREATE TRIGGER refuse BEFORE UPDATE OF {column} ON {table} FOR EACH ROW WHEN ({when})"
    scene.run_sql(f"{trigger} EXECUTE FUNCTION refuse()")


def due(scene: Scene) -> list[UUID]:
    return [row[0] for row in scene.rows("SELECT id FROM mentors WHERE review_on <= %s ORDER BY id", TODAY)]


def test_state_audit_and_intents_are_committed_together(scene: Scene) -> None:
    """One transaction per chunk: when its last statement fails, nothing of it is there."""
    mentor_id = scene.facts.certified_mentor(scene.facts.organisation(), YESTERDAY)
    refuse(scene, "mentors", "review_on")

    assert list(apply_due(scene).broken) == [mentor_id]

    for table in ("certificate_transitions", "mentor_pauses", "cert_notification_log", "portal_sync_events"):
        assert scene.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    assert scene.rows(STATUSES) == [("recorded",)]


def test_one_broken_mentor_is_named_and_the_others_are_reviewed(scene: Scene) -> None:
    """It stays due, and is written down until a run that would review it does so."""
    mentors = [scene.expired() for _ in range(5)]
    refuse(scene, "certificates", "status", when=f"NEW.mentor_id = '{mentors[2]}'")
    broken = {mentors[2]: "RaiseException: it is broken"}
    written_down = "SELECT mentor_id, reason FROM review_problems"

    report = scene.night(deliver=False)

    assert report.review is not None
    assert (report.outcome, report.review.reviewed, report.review.broken) == ("attention", 4, broken)
    assert str(mentors[2]) in report.reasons[0]
    assert due(scene) == [mentors[2]]
    scene.facts.organisation("nhf", portal=None)
    scene.night(deliver=False, organisation="nhf")  # reviews nobody of ours
    assert scene.rows(written_down) == list(broken.items())
    scene.run_sql("DROP TRIGGER refuse ON certificates")
    scene.night(deliver=False)
    assert scene.rows(written_down) == []


@pytest.mark.parametrize(
    "lock",
    [
        "SELECT FROM certificates WHERE mentor_id = %s FOR UPDATE",
        "SELECT FROM mentors WHERE id = %s FOR UPDATE",
        # the upsert waits for it until lock_timeout; the chunk is done again mentor by mentor
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
        " SELECT mentor_id, -1, id, expires_on FROM certificates WHERE mentor_id = %s",
    ],
    ids=["a certificate", "the mentor", "the reminder"],
)
def test_whom_an_idle_transaction_of_the_app_holds_is_skipped_and_named(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    """After a bounded wait. So is one whose facts keep changing; the others are reviewed."""
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0.5)
    organisation = scene.facts.organisation(portal=None)
    locked, changing, _ = (scene.facts.certified_mentor(organisation, YESTERDAY) for _ in range(3))
    scene.app.execute(lock.encode(), (locked,))
    touched: list[int] = []

    def touch(_done: int) -> None:
        touched.append(1)
        left = "UPDATE mentors SET left_at = now() + random() * interval '1 day' WHERE id = %s"
        scene.run_sql(left, changing)

    counts = apply_due(scene, on_progress=touch)

    assert len(touched) > 2
    assert counts.skipped == due(scene) == sorted([locked, changing])


def test_a_mentor_whose_lock_ends_in_time_is_reviewed(scene: Scene) -> None:
    """The wait at the end looks again and again, and sleeps between."""
    scene.expired()
    scene.app.execute("SELECT FROM mentors FOR UPDATE")

    class Waiting(StopFlag):
        def sleep(self, seconds: float) -> None:
            scene.app.rollback()

    counts = apply_due(scene, stop=Waiting())

    assert (counts.reviewed, counts.skipped) == (1, [])


@pytest.fixture
def around_first_read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let something happen before or after the facts are read first; how many mentors each reading left out."""

    def arrange(when: str, happening: Callable[[], object]) -> list[int]:
        left_out: list[int] = []
        usual = reading.read

        def read(*arguments: Any, **options: Any) -> reading.FactsRead:
            if when == "before" and not left_out:
                happening()
            facts_read = usual(*arguments, **options)
            left_out.append(len(arguments[1]) - len(facts_read.mentors))
            if when == "after" and len(left_out) == 1:
                happening()
            return facts_read

        monkeypatch.setattr(reading, "read", read)
        return left_out

    return arrange


@pytest.mark.parametrize(
    ("when", "statement", "waits", "left_out", "paused"),
    [
        pytest.param("before", CHANGE, True, 1, 0, id="changed before they are read"),
        pytest.param("after", RENEW, True, 0, 1, id="renewed after they are read"),
        pytest.param("before", RENEW, False, 0, 0, id="committed between lock and read"),  # in a newer snapshot
    ],
)
def test_a_fact_that_comes_while_apply_holds_the_mentor_waits_and_is_not_lost(
    scene: Scene,
    around_first_read: Callable[..., list[int]],
    when: str,
    statement: str,
    waits: bool,
    left_out: int,
    paused: int,
) -> None:
    """The app waits for the mentor. Of what it holds itself, its certificate, apply waits for nothing: no deadlock."""
    scene.expired()

    def write() -> None:
        if not waits:
            scene.app.execute("ALTER TABLE certificates DISABLE TRIGGER certificates_inserted")
        scene.app.execute(statement.encode(), (TODAY, TODAY + timedelta(days=700)))
        scene.app.commit()

    writing = threading.Thread(target=write)

    def begin_to_wait() -> None:
        writing.start()
        until(lambda: waits_for_a_lock(scene.other, scene.app) if waits else not writing.is_alive())

    incomplete = around_first_read(when, begin_to_wait)
    first = apply_due(scene)
    writing.join()
    second = apply_due(scene)

    assert (incomplete[0], first.skipped + second.skipped, first.paused + second.paused) == (left_out, [], paused)
    assert scene.rows(STATUSES)[-1] == ("valid",)
    assert scene.rows(PAUSES) == []


@pytest.mark.parametrize("table", ["mentors", "certificates"])
def test_a_table_that_is_locked_for_a_while_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """A migration of the app's, or a dump: nobody is lost, nobody is done twice."""
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


def test_a_table_that_stays_locked_ends_the_night_with_the_next_step(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong and what to do are two fields of a JSON document."""
    scene.expired()
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0)
    scene.app.execute("LOCK TABLE mentors IN EXCLUSIVE MODE")

    with pytest.raises(DatabaseUnavailableError) as caught:
        apply_due(scene)

    assert caught.value.message == "the table mentors is locked by another session"
    assert caught.value.next_step == "end that session and run again"


def test_a_stop_flag_ends_the_review_between_chunks(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed stays, the rest is still due."""
    monkeypatch.setattr(certification, "CHUNK_SIZE", 2)
    for _ in range(6):
        scene.expired()
    stop = StopFlag()

    with pytest.raises(StoppedBySignalError):
        apply_due(scene, stop=stop, on_progress=lambda _done: stop.set())

    assert len(due(scene)) == 4


def test_running_again_changes_nothing(scene: Scene) -> None:
    """The second run of a day finds nobody due. Level-triggered: even if everybody is looked at, nothing new comes."""
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


def test_a_person_who_lifts_certjobs_pause_sees_it_reopened(scene: Scene) -> None:
    """While the mentor is still not certified the pause comes back at the next review; illness is untouched."""
    scene.facts.pause(scene.expired())
    scene.night(deliver=False)
    scene.run_sql("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE reason <> 'illness'")
    assert scene.rows(PAUSES) == [("illness",)]

    scene.night(deliver=False)

    assert scene.rows(PAUSES) == [("certification_expired",), ("illness",)]
