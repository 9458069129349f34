"""``certjob pause`` and ``certjob unpause``: a person's pause, with the hide or the show at once."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from certjob.errors import (
    BrokenMentorError,
    CertjobError,
    ConfigurationError,
    DatabaseError,
    MentorBusyError,
    UsageError,
)
from certjob.jobs import pauses, resync
from certjob.jobs.resync import PauseDone, Resync
from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import TODAY
from tests.support.nights import delivery, new_job
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
PAUSES = "SELECT reason, actor, lifted_at IS NULL, lifted_by FROM mentor_pauses ORDER BY paused_at, reason"
LATER_RUN = (
    "INSERT INTO job_runs (id, command, as_of, host, version) VALUES (gen_random_uuid(), 'run', %s, 'test', '1')"
)
TOO_MANY_CERTIFICATES = """
    SET LOCAL session_replication_role = replica;  -- without the trigger that rejects them
    INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
    SELECT id, 'kurs' || n, '2024-01-01', '2099-01-01' FROM mentors, generate_series(1, 201) AS n;
"""
CONSTRAINT_OF_THE_APP = """
    UPDATE certificates SET expires_on = '2026-03-09';
    ALTER TABLE certificates ADD CONSTRAINT nothing_expires CHECK (status <> 'expired') NOT VALID;
"""
TRIGGER_OF_THE_APP = """
    CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE insufficient_privilege USING MESSAGE = 'not by kari@example.org'; END $$;
    CREATE TRIGGER reject BEFORE UPDATE OF certified_until ON mentors FOR EACH ROW EXECUTE FUNCTION reject();
"""


@pytest.fixture(autouse=True)
def _eva(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eva types the commands with sudo."""
    monkeypatch.setenv("SUDO_USER", "eva")


@pytest.fixture
def shown(scene: Scene) -> UUID:
    """A mentor who is certified, and visible on the portal."""
    organisation = scene.facts.organisation()
    mentor = scene.facts.certified_mentor(organisation, NEXT_YEAR, contact_id=CONTACT, member_no="M1042")
    scene.night(scene.portal)
    return mentor


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands wait a tenth of a second for a lock."""
    monkeypatch.setattr(pauses, "LOCK_WAIT_MS", 100)
    monkeypatch.setattr(resync, "LOCK_WAIT_SECONDS", 0.1)


def done(*, is_new: bool) -> PauseDone:
    return PauseDone(reason="complaint", by="cli:eva", is_new=is_new)


def pause(scene: Scene, mentor: UUID, **options: Any) -> Resync:
    job = new_job(scene.connection, ways_out=delivery(portal=scene.portal))
    return pauses.pause(job, mentor, **{"because": "complaint", "accept_date": TODAY, **options})


def unpause(scene: Scene, mentor: UUID, **options: Any) -> Resync:
    job = new_job(scene.connection, ways_out=delivery(portal=scene.portal))
    return pauses.unpause(job, mentor, **{"accept_date": TODAY, **options})


def test_pause_hides_the_mentor_now_and_names_the_person(scene: Scene, shown: UUID) -> None:
    """A second one with the same reason opens no second pause, but hides again."""
    first, again = (pause(scene, shown) for _ in range(2))

    assert (first.pause, again.pause) == (done(is_new=True), done(is_new=False))
    assert (first.before.pauses, first.after.pauses) == ([], ["complaint"])
    assert (scene.portal.values, first.after.acknowledged) == ([False, False], False)
    assert scene.rows(PAUSES) == [("complaint", "cli:eva", True, None)]
    assert scene.rows("SELECT command, outcome FROM job_runs WHERE command <> 'run'") == [("pause", "ok")] * 2
    assert scene.night(scene.portal).outcome == "ok"


def test_rejected_date_stops_the_review_but_not_the_pause_and_its_hide(scene: Scene, shown: UUID) -> None:
    """A full run was for a later day, so one of the clocks is wrong."""
    scene.run_sql(LATER_RUN, TODAY + timedelta(days=6))

    result = pause(scene, shown, accept_date=None)

    assert isinstance(result.not_reviewed, ConfigurationError)
    assert (scene.portal.values, scene.portal.visible) == ([False], {CONTACT: False})
    assert scene.rows(PAUSES) == [("complaint", "cli:eva", True, None)]
    with pytest.raises(ConfigurationError):
        unpause(scene, shown, accept_date=None)
    assert (scene.portal.values, scene.rows(PAUSES)) == ([False], [("complaint", "cli:eva", True, None)])


@pytest.mark.usefixtures("impatient")
def test_pause_behind_a_transaction_of_the_app_says_that_the_mentor_is_visible(scene: Scene, shown: UUID) -> None:
    """A change of a certificate locks the mentor. So the pause cannot be stored, and neither can it be lifted."""
    scene.facts.pause(shown, reason="illness", actor="kari")
    scene.app.execute("UPDATE certificates SET expires_on = %s", (NEXT_YEAR + timedelta(days=1),))

    with pytest.raises(
        MentorBusyError, match=r"^M1042 was NOT paused and may still be visible: .*; try again; if .* hide"
    ):
        pause(scene, shown)
    with pytest.raises(MentorBusyError, match=r"^the pause of M1042 was not lifted: .*; try again$"):
        unpause(scene, shown)

    assert (scene.portal.values, scene.rows(PAUSES)) == ([], [("illness", "kari", True, None)])
    scene.app.rollback()
    assert pause(scene, shown).pause == done(is_new=True)


@pytest.mark.usefixtures("impatient")
def test_lock_stops_the_review_but_not_the_pause_and_its_hide(scene: Scene, shown: UUID) -> None:
    """The app edits a certificate of the mentor."""
    scene.app.execute("SELECT FROM certificates FOR UPDATE")

    result = pause(scene, shown)

    assert isinstance(result.not_reviewed, MentorBusyError)
    assert str(result.not_reviewed).endswith("(waited 0.1 s); the next run reviews the mentor")
    assert (scene.portal.visible, result.after.pauses) == ({CONTACT: False}, ["complaint"])


@pytest.mark.parametrize(
    ("obstacle", "expected"),
    [
        pytest.param(TOO_MANY_CERTIFICATES, BrokenMentorError("more than 200 certificates"), id="broken"),
        pytest.param(CONSTRAINT_OF_THE_APP, DatabaseError("nothing_expires"), id="constraint"),
        pytest.param(TRIGGER_OF_THE_APP, DatabaseError("not by <address>; the next run"), id="trigger"),
    ],
)
def test_failed_review_does_not_stop_the_hide(scene: Scene, shown: UUID, obstacle: str, expected: CertjobError) -> None:
    """The data of the mentor, or the app's own constraints, prevent the review. The result has both errors."""
    with scene.connection.transaction():
        scene.connection.execute(obstacle.encode())

    result = pause(scene, shown)
    scene.portal.default = error(503, "dynamics_unavailable")
    failed = pause(scene, shown)

    assert type(result.not_reviewed) is type(expected)
    assert str(expected) in str(result.not_reviewed)
    assert (scene.portal.visible, result.error) == ({CONTACT: False}, None)
    assert result.after.pauses == ["complaint"]
    assert (failed.not_reviewed is None, failed.error is None, failed.after.open_push) == (False, False, "pending")


@pytest.mark.usefixtures("impatient")
def test_lift_is_reported_and_its_show_waits_for_the_review_that_failed(scene: Scene, shown: UUID) -> None:
    """The app has locked a certificate, and an older show is open. The next run shows the mentor."""
    scene.queue(shown, visible=True)
    scene.facts.pause(shown, reason="illness", actor="kari")
    scene.app.execute("SELECT FROM certificates FOR UPDATE")

    result = unpause(scene, shown)

    assert isinstance(result.not_reviewed, MentorBusyError)
    assert str(result.not_reviewed).endswith("(waited 0.1 s); the next run reviews the mentor")
    assert (scene.portal.values, result.error, result.after.pauses, result.after.open_push) == ([], None, [], "pending")
    scene.app.rollback()
    scene.night(scene.portal)
    assert scene.portal.visible == {CONTACT: True}


def test_mentor_who_was_never_on_the_portal_is_paused_without_a_push(scene: Scene) -> None:
    """A hide without a contact ID would only be an alert."""
    mentor = scene.facts.mentor(scene.facts.organisation(), contact_id=None)

    result = pause(scene, mentor)

    assert (scene.portal.values, result.after.open_push, result.after.pauses) == ([], None, ["complaint"])


def test_pause_of_a_mentor_without_a_contact_id_who_was_shown_is_an_alert(scene: Scene, shown: UUID) -> None:
    """The contact may still be visible, and someone must enter its ID again."""
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL")
    scene.run_sql(LATER_RUN, TODAY + timedelta(days=6))  # a review would queue the hide as well

    result = pause(scene, shown, accept_date=None)

    assert (result.after.open_push, result.after.pauses) == ("blocked", ["complaint"])
    assert ("may_be_visible", "no_contact_id") in scene.rows("SELECT kind, cause FROM alerts")


def test_reason_of_a_pause_is_a_text_of_a_person(scene: Scene, shown: UUID) -> None:
    for reason in ("", " ", "x" * 201, "certification_expired"):
        with pytest.raises(UsageError):
            pause(scene, shown, because=reason)

    assert scene.rows(PAUSES) == []


def test_unpause_lifts_the_only_pause_and_shows_the_mentor(scene: Scene, shown: UUID) -> None:
    """Also one that a coordinator has opened in the app."""
    scene.facts.pause(shown, reason="illness", actor="kari")
    scene.night(scene.portal)

    result = unpause(scene, shown)

    assert (result.before.pauses, result.after.pauses) == (["illness"], [])
    assert result.pause == PauseDone(reason="illness", by="cli:eva", is_new=True)
    assert scene.portal.values == [False, True]
    assert scene.rows(PAUSES) == [("illness", "kari", False, "cli:eva")]
    with pytest.raises(UsageError, match="M1042 has no open pause"):
        unpause(scene, shown)


def test_one_of_several_pauses_must_be_named(scene: Scene, shown: UUID) -> None:
    """The message lists them, also with a time that Python cannot represent.

    A reason is chosen as it is printed; the app stored two spaces and a line end.
    """
    for reason in ("a  b\nc", "complaint"):
        scene.facts.pause(shown, reason=reason, actor="kari")
    scene.run_sql("UPDATE mentor_pauses SET paused_at = '-infinity'")

    with pytest.raises(UsageError, match=r"(?s)several open pauses: .*a  b\nc \(by kari since -infinity\)"):
        unpause(scene, shown)
    with pytest.raises(UsageError, match=r"(?s)no such open pause, but .*complaint"):
        unpause(scene, shown, reason="leave")

    assert unpause(scene, shown, reason="a b c").after.pauses == ["complaint"]


def test_name_and_reason_with_strange_bytes_are_stored_as_one_line(
    scene: Scene, shown: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in Latin-1 must not prevent the pause."""
    monkeypatch.setenv("SUDO_USER", "j\udcf8rn\nx")

    result = pause(scene, shown, because="bad\x1b[2J  \udcff")

    by = "cli:j\N{REPLACEMENT CHARACTER}rn x"
    reason = "bad\N{REPLACEMENT CHARACTER}[2J \N{REPLACEMENT CHARACTER}"
    assert result.pause == PauseDone(reason=reason, by=by, is_new=True)
    assert scene.rows("SELECT actor, reason FROM mentor_pauses") == [(by, reason)]


def test_own_pause_is_lifted_only_if_certjob_would_not_open_it_again(scene: Scene) -> None:
    """Otherwise the next run would, and the message says what helps. A certificate of someone else was deleted here."""
    mentor = scene.expired(contact_id=CONTACT, member_no="M1042")
    scene.night(scene.portal)

    for departure in (None, YESTERDAY):  # also if the mentor comes back later
        scene.run_sql("UPDATE mentors SET left_at = %s", departure)
        with pytest.raises(UsageError, match=r"would pause M1042 again: .*ended.*; enter a certificate"):
            unpause(scene, mentor)
    scene.run_sql("UPDATE mentors SET left_at = NULL")
    assert scene.rows(PAUSES) == [("certification_expired", "certjob", True, None)]

    scene.run_sql("DELETE FROM certificates WHERE expires_on = %s", YESTERDAY)
    unpause(scene, mentor)

    assert scene.rows(PAUSES) == [("certification_expired", "certjob", False, "cli:eva")]


def test_commands_work_as_the_worker(here: Certjob, scene: Scene, portal: PortalServer) -> None:
    """The document has the pause; the page has both states. The portal rejects the hide."""
    organisation = scene.facts.organisation()
    scene.facts.certified_mentor(organisation, today() + timedelta(days=300), member_no="M1042", full_name="Kari")

    portal.then(error(404, "contact_not_found"))
    paused = here("pause", "M1042", "--because", "complaint", "--json", **portal.settings)
    lifted = here("unpause", "kari", **portal.settings)

    assert (paused.returncode, lifted.returncode, lifted.stderr) == (3, 0, "")
    assert '"pause": {' in paused.stdout
    before, after = lifted.stdout.splitlines()
    assert "paused: complaint; portal wanted hidden, confirmed unknown, push blocked" in before
    assert "not paused; portal wanted visible, confirmed visible" in after
    assert [request.json["visible"] for request in portal.requests] == [False, True]


def test_pause_needs_a_signature(scene: Scene, shown: UUID) -> None:
    """Also from a program that has the rights of the worker."""
    scene.facts.pause(shown, reason="illness", actor="kari")
    scene.connection.execute("SET ROLE certjob_worker")

    for statement in (
        "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'x', %s FROM mentors",
        "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = %s",
    ):
        for who in ("eva", "cli:", "cli: "):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                scene.run_sql(statement, who)

    assert scene.rows(PAUSES) == [("illness", "kari", True, None)]
