"""The schema on a real PostgreSQL: defaults, triggers, constraints, row-level security, the view, the hot query."""

import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from certjob import database
from certjob.database import migrations
from tests.support.facts import TODAY, Facts
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

LATER = "2030-01-01"
"""A review day that no trigger writes."""

PATIENCE_SECONDS = 20
"""How long a test waits for another session before it says that something is wrong."""

TABLES = {
    "certificate_transitions",
    "cert_notification_log",
    "certificates",
    "certjob_migrations",
    "coordinator_digests",
    "coordinators",
    "dynamics_sync_failures",
    "held_reviews",
    "job_runs",
    "mentor_pauses",
    "mentors",
    "organisations",
    "portal_last_reading",
    "portal_sync_events",
    "portal_unknown_contacts",
    "review_problems",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An organisation with a mentor who has one of everything, and another mentor beside."""

    facts: Facts
    organisation: UUID
    elsewhere: UUID
    """Another organisation, without a portal."""
    mentor: UUID
    other: UUID
    certificate: UUID
    manual_pause: UUID
    own_pause: UUID

    @property
    def names(self) -> dict[str, UUID]:
        """The ids, by the names that statements use."""
        return {
            "organisation": self.organisation,
            "elsewhere": self.elsewhere,
            "mentor": self.mentor,
            "other": self.other,
            "certificate": self.certificate,
            "manual_pause": self.manual_pause,
            "own_pause": self.own_pause,
        }

    def do(self, connection: psycopg.Connection[Any], statement: str) -> None:
        """Run a statement with the scene's ids."""
        connection.execute(statement.encode(), self.names)

    def looked_at_now(self) -> set[str]:
        """Which of the two mentors certjob will look at on its next run."""
        rows = self.facts.rows("SELECT id FROM mentors WHERE review_on = '-infinity'")
        due = {row[0] for row in rows}
        return {name for name in ("mentor", "other") if self.names[name] in due}


@pytest.fixture
def scene(facts: Facts) -> Scene:
    """Everybody has been reviewed: nothing is due."""
    organisation = facts.organisation("hlf")
    mentor = facts.mentor(organisation)
    scene = Scene(
        facts=facts,
        organisation=organisation,
        elsewhere=facts.organisation("elsewhere", portal=None),
        mentor=mentor,
        other=facts.mentor(organisation),
        certificate=facts.certificate(mentor, TODAY),
        manual_pause=facts.pause(mentor, reason="illness"),
        own_pause=facts.pause(mentor, reason="certification_expired", actor="certjob"),
    )
    facts.connection.execute("UPDATE mentors SET review_on = %s", (LATER,))
    return scene


def one(connection: psycopg.Connection[Any], statement: str, *parameters: object) -> Mapping[str, Any]:
    """The single row that a statement returns, by column."""
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        rows = cursor.execute(statement.encode(), parameters).fetchall()
    assert len(rows) == 1
    return rows[0]


class TestDefaults:
    """Every table takes an insert of its facts alone."""

    def test_an_organisation_needs_a_slug_and_a_name(self, connection: database.Connection) -> None:
        """No portal, six thresholds, no optional kinds."""
        row = one(connection, "INSERT INTO organisations (slug, name) VALUES ('hlf', 'HLF') RETURNING *")

        assert isinstance(row["id"], UUID)
        assert row["portal"] is None
        assert row["reminder_thresholds"] == [60, 30, 14, 7, 1, -1]
        assert row["optional_kinds"] == []
        assert (row["contact_email"], row["contact_phone"], row["renewal_url"]) == (None, None, None)

    def test_a_coordinator_needs_an_organisation_and_an_address(self, facts: Facts) -> None:
        """The id may be the app's, or is made up."""
        row = one(
            facts.connection,
            "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@example.org') RETURNING *",
            facts.organisation(),
        )

        assert isinstance(row["id"], UUID)
        assert row["locale"] == "nb"
        assert row["full_name"] is None

    def test_a_mentor_needs_an_organisation_and_a_member_number(self, facts: Facts) -> None:
        """Shown on the portal as far as certjob knows, and to be looked at now."""
        row = one(
            facts.connection,
            "INSERT INTO mentors (organisation_id, member_no) VALUES (%s, 'M1') RETURNING id, locale, full_name, email,"
            " dynamics_contact_id, left_at, portal_visible, review_on = '-infinity' AS due",
            facts.organisation(),
        )

        assert isinstance(row["id"], UUID)
        assert row["locale"] == "nb"
        assert (row["full_name"], row["email"], row["dynamics_contact_id"], row["left_at"]) == (None,) * 4
        assert row["portal_visible"] is True
        assert row["due"] is True

    def test_a_certificate_needs_a_mentor_a_kind_and_two_dates(self, facts: Facts) -> None:
        """Recorded until certjob sees it."""
        row = one(
            facts.connection,
            "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
            " VALUES (%s, 'likeperson', '2024-01-01', '2024-01-01') RETURNING *",
            facts.mentor(facts.organisation()),
        )

        assert isinstance(row["id"], UUID)
        assert row["status"] == "recorded"
        assert row["revoked_at"] is None

    def test_a_pause_needs_a_mentor_a_reason_and_an_actor(self, facts: Facts) -> None:
        """Open from now on."""
        row = one(
            facts.connection,
            "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'illness', 'anna') RETURNING *",
            facts.mentor(facts.organisation()),
        )

        assert isinstance(row["id"], UUID)
        assert isinstance(row["paused_at"], datetime)
        assert (row["lifted_at"], row["lifted_by"]) == (None, None)

    def test_a_transition_needs_no_run(self, facts: Facts) -> None:
        """A resync writes one too."""
        row = one(
            facts.connection,
            "INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of)"
            " VALUES (gen_random_uuid(), %s, 'valid', 'expired', '2026-03-10') RETURNING *",
            facts.mentor(facts.organisation()),
        )

        assert isinstance(row["id"], int)
        assert isinstance(row["at"], datetime)
        assert row["run_id"] is None

    def test_a_reminder_is_pending_and_due_at_once(self, facts: Facts) -> None:
        """No attempt, no claim, no earlier cycle."""
        row = one(
            facts.connection,
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
            " VALUES (%s, 7, gen_random_uuid(), '2026-03-10') RETURNING *, next_attempt_at <= now() AS due",
            facts.mentor(facts.organisation()),
        )

        assert (row["status"], row["attempts"], row["maybe_sent"], row["history"]) == ("pending", 0, False, [])
        assert row["due"] is True
        assert isinstance(row["queued_at"], datetime)
        assert (row["claim_token"], row["sent_at"], row["last_error"], row["run_id"]) == (None,) * 4

    def test_a_portal_event_is_pending_and_due_at_once(self, facts: Facts) -> None:
        """The first version of the wish."""
        row = one(
            facts.connection,
            "INSERT INTO portal_sync_events (mentor_id, visible) VALUES (%s, false)"
            " RETURNING *, next_attempt_at <= now() AS due",
            facts.mentor(facts.organisation()),
        )

        assert (row["status"], row["attempts"], row["version"]) == ("pending", 0, 1)
        assert row["due"] is True
        assert isinstance(row["wanted_at"], datetime)
        assert (row["claim_token"], row["delivered_at"], row["last_error"], row["run_id"]) == (None,) * 4

    def test_a_failure_is_unresolved(self, facts: Facts) -> None:
        """Kind stage: no call was made."""
        row = one(
            facts.connection,
            "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error)"
            " VALUES (%s, false, 'stage', 'no URL') RETURNING *",
            facts.mentor(facts.organisation()),
        )

        assert row["attempts"] == 0
        assert isinstance(row["created_at"], datetime)
        assert isinstance(row["last_failed_at"], datetime)
        assert (row["event_id"], row["correlation_id"], row["resolved_at"]) == (None,) * 3

    def test_a_digest_is_pending_and_due_at_once(self, facts: Facts) -> None:
        """One per coordinator and day."""
        row = one(
            facts.connection,
            "WITH c AS (INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@example.org') RETURNING id)"
            " INSERT INTO coordinator_digests (coordinator_id, digest_on) SELECT id, '2026-03-10' FROM c"
            " RETURNING *, next_attempt_at <= now() AS due",
            facts.organisation(),
        )

        assert (row["status"], row["attempts"], row["due"]) == ("pending", 0, True)
        assert isinstance(row["queued_at"], datetime)
        assert (row["claim_token"], row["covers_from"], row["sent_at"], row["last_error"]) == (None,) * 4

    def test_a_run_begins_unfinished(self, connection: database.Connection) -> None:
        """Its id is made by the client."""
        row = one(
            connection,
            "INSERT INTO job_runs (id, command, as_of, host, version)"
            " VALUES (gen_random_uuid(), 'run', '2026-03-10', 'h', '1') RETURNING *",
        )

        assert row["counts"] == {}
        assert row["started_at"] == row["last_seen_at"]
        assert (row["finished_at"], row["outcome"], row["organisation"]) == (None,) * 3


WAKES_THE_MENTOR = {
    "certificate inserted": """INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        VALUES (%(mentor)s, 'first_aid', '2025-01-01', '2027-01-01')""",
    "certificate upserted": """INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        VALUES (%(mentor)s, 'likeperson', '2024-01-01', '2027-01-01')
        ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE SET expires_on = excluded.expires_on""",
    "certificate deleted": "DELETE FROM certificates WHERE id = %(certificate)s",
    "certificate of another kind": "UPDATE certificates SET kind = 'first_aid' WHERE id = %(certificate)s",
    "certificate issued on another day": "UPDATE certificates SET issued_on = '2024-01-02' WHERE id = %(certificate)s",
    "certificate extended": "UPDATE certificates SET expires_on = '2027-01-01' WHERE id = %(certificate)s",
    "certificate revoked": "UPDATE certificates SET revoked_at = now() WHERE id = %(certificate)s",
    "pause opened": "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'leave', 'anna')",
    "pause lifted": """UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE id = %(manual_pause)s""",
    "pause lifted without a name": "UPDATE mentor_pauses SET lifted_at = now() WHERE id = %(manual_pause)s",
    "pause deleted": "DELETE FROM mentor_pauses WHERE id = %(manual_pause)s",
    "own pause lifted by a person": """UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna'
        WHERE id = %(own_pause)s""",
    "own pause lifted without a name": "UPDATE mentor_pauses SET lifted_at = now() WHERE id = %(own_pause)s",
    "own pause deleted": "DELETE FROM mentor_pauses WHERE id = %(own_pause)s",
    "mentor left": "UPDATE mentors SET left_at = now() WHERE id = %(mentor)s",
    "mentor has another address": "UPDATE mentors SET email = 'new@example.org' WHERE id = %(mentor)s",
    "mentor has no address any more": "UPDATE mentors SET email = NULL WHERE id = %(mentor)s",
    "mentor changed organisation": "UPDATE mentors SET organisation_id = %(elsewhere)s WHERE id = %(mentor)s",
    "mentor has another contact": "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %(mentor)s",
    "mentor has no contact any more": "UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %(mentor)s",
}

WAKES_BOTH = {
    "certificate moved": "UPDATE certificates SET mentor_id = %(other)s WHERE id = %(certificate)s",
    "pause moved": "UPDATE mentor_pauses SET mentor_id = %(other)s WHERE id = %(manual_pause)s",
    "certificates inserted at once": """INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        VALUES (%(other)s, 'first_aid', '2025-01-01', '2027-01-01'),
               (%(mentor)s, 'first_aid', '2025-01-01', '2027-01-01')""",
    "other thresholds": "UPDATE organisations SET reminder_thresholds = '{10}' WHERE id = %(organisation)s",
    "other optional kinds": "UPDATE organisations SET optional_kinds = '{first_aid}' WHERE id = %(organisation)s",
    "portal gone": "UPDATE organisations SET portal = NULL WHERE id = %(organisation)s",
}

WAKES_NOBODY = {
    "certjob moves a certificate": "UPDATE certificates SET status = 'expired' WHERE id = %(certificate)s",
    "certjob opens its pause": """INSERT INTO mentor_pauses (mentor_id, reason, actor)
        VALUES (%(other)s, 'certification_expired', 'certjob')""",
    "certjob lifts its pause": """UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'certjob'
        WHERE id = %(own_pause)s""",
    "certjob writes what it wants on the portal": "UPDATE mentors SET portal_visible = false WHERE id = %(mentor)s",
    "certificate written as it was": """UPDATE certificates SET mentor_id = mentor_id, kind = kind,
        issued_on = issued_on, expires_on = expires_on, revoked_at = revoked_at WHERE id = %(certificate)s""",
    "certificate upserted as it was": """INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        SELECT mentor_id, kind, issued_on, expires_on FROM certificates WHERE id = %(certificate)s
        ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE SET expires_on = excluded.expires_on""",
    "pause written as it was": """UPDATE mentor_pauses SET mentor_id = mentor_id, reason = reason,
        lifted_at = lifted_at WHERE id = %(manual_pause)s""",
    "mentor written as they were": """UPDATE mentors SET left_at = left_at, email = email,
        organisation_id = organisation_id, dynamics_contact_id = dynamics_contact_id WHERE id = %(mentor)s""",
    "mentor renamed": """UPDATE mentors SET full_name = 'Ola', member_no = 'M9', locale = 'nn'
        WHERE id = %(mentor)s""",
    "organisation written as it was": """UPDATE organisations SET reminder_thresholds = reminder_thresholds,
        optional_kinds = optional_kinds, portal = portal WHERE id = %(organisation)s""",
    "organisation renamed": """UPDATE organisations SET name = 'New', contact_phone = '22 00 00 00'
        WHERE id = %(organisation)s""",
    "another organisation changed": "UPDATE organisations SET reminder_thresholds = '{10}' WHERE id = %(elsewhere)s",
    "nothing inserted": """INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        SELECT id, 'first_aid', '2025-01-01', '2027-01-01' FROM mentors WHERE false""",
    "nothing deleted": "DELETE FROM certificates WHERE false",
}


class TestFactsMakeCertjobLook:
    """Whoever changes a fact, by whatever way, sets review_on to -infinity; certjob's own writes do not."""

    @pytest.mark.parametrize("statement", WAKES_THE_MENTOR.values(), ids=WAKES_THE_MENTOR.keys())
    def test_a_changed_fact_of_a_mentor_makes_certjob_look_at_that_mentor(self, scene: Scene, statement: str) -> None:
        """And at nobody else."""
        scene.do(scene.facts.connection, statement)

        assert scene.looked_at_now() == {"mentor"}

    @pytest.mark.parametrize("statement", WAKES_BOTH.values(), ids=WAKES_BOTH.keys())
    def test_a_changed_fact_of_several_mentors_makes_certjob_look_at_all_of_them(
        self, scene: Scene, statement: str
    ) -> None:
        """A moved certificate: both the mentor who lost it and the one who got it."""
        scene.do(scene.facts.connection, statement)

        assert scene.looked_at_now() == {"mentor", "other"}

    @pytest.mark.parametrize("statement", WAKES_NOBODY.values(), ids=WAKES_NOBODY.keys())
    def test_what_certjob_writes_and_what_changes_nothing_wakes_nobody(self, scene: Scene, statement: str) -> None:
        """A night costs what is due, and certjob does not make itself work."""
        scene.do(scene.facts.connection, statement)

        assert scene.looked_at_now() == set()

    def test_a_bulk_copy_of_certificates_makes_certjob_look(self, scene: Scene) -> None:
        """An import does not use INSERT."""
        with (
            scene.facts.connection.cursor() as cursor,
            cursor.copy("COPY certificates (mentor_id, kind, issued_on, expires_on) FROM STDIN") as copy,
        ):
            copy.write_row((scene.other, "likeperson", date(2025, 1, 1), date(2027, 1, 1)))

        assert scene.looked_at_now() == {"other"}

    def test_reopening_a_pause_that_certjob_lifted_makes_certjob_look(self, scene: Scene) -> None:
        """A person who takes certjob's lift back has changed a fact."""
        scene.do(
            scene.facts.connection,
            "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'certjob' WHERE id = %(own_pause)s",
        )
        assert scene.looked_at_now() == set()

        scene.do(
            scene.facts.connection,
            "UPDATE mentor_pauses SET lifted_at = NULL, lifted_by = NULL WHERE id = %(own_pause)s",
        )

        assert scene.looked_at_now() == {"mentor"}

    def test_deleting_a_pause_that_was_lifted_long_ago_wakes_nobody(self, scene: Scene) -> None:
        """Old rows are pruned by the thousand, and none of them says anything about today."""
        connection = scene.facts.connection
        scene.do(
            connection, "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE id = %(manual_pause)s"
        )
        connection.execute("UPDATE mentors SET review_on = %s", (LATER,))

        scene.do(connection, "DELETE FROM mentor_pauses WHERE id = %(manual_pause)s")

        assert scene.looked_at_now() == set()

    @pytest.mark.parametrize(
        ("statement", "portal_visible"),
        [
            ("UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %(mentor)s", None),
            ("UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %(mentor)s", None),
            ("UPDATE organisations SET portal = NULL WHERE id = %(organisation)s", None),
            ("UPDATE organisations SET optional_kinds = '{a}' WHERE id = %(organisation)s", False),
            ("UPDATE mentors SET email = 'new@example.org' WHERE id = %(mentor)s", False),
            ("UPDATE mentors SET left_at = now() WHERE id = %(mentor)s", False),
            ("UPDATE mentors SET dynamics_contact_id = dynamics_contact_id WHERE id = %(mentor)s", False),
        ],
    )
    def test_only_a_changed_contact_or_portal_makes_the_shown_value_unknown(
        self, scene: Scene, statement: str, portal_visible: bool | None
    ) -> None:
        """Null: the next wanted value is pushed, whatever it is."""
        scene.facts.connection.execute("UPDATE mentors SET portal_visible = false")

        scene.do(scene.facts.connection, statement)

        assert scene.facts.rows("SELECT portal_visible FROM mentors WHERE id = %s", scene.mentor) == [(portal_visible,)]

    def test_a_portal_that_is_new_makes_the_shown_value_of_its_mentors_unknown(self, scene: Scene) -> None:
        """And of no other organisation's."""
        newcomer = scene.facts.mentor(scene.elsewhere)

        scene.do(scene.facts.connection, "UPDATE organisations SET portal = 'dynamics' WHERE id = %(elsewhere)s")

        rows = scene.facts.rows("SELECT id, portal_visible FROM mentors")
        assert {row[0]: row[1] for row in rows} == {newcomer: None, scene.mentor: True, scene.other: True}

    def test_a_corrected_address_makes_failed_reminders_due_at_once(self, scene: Scene) -> None:
        """Those of this mentor, and those that failed; sent ones stay sent."""
        connection = scene.facts.connection
        for mentor, threshold, status in (
            (scene.mentor, 7, "failed"),
            (scene.mentor, 14, "sent"),
            (scene.mentor, 30, "superseded"),
            (scene.mentor, 60, "cancelled"),
            (scene.other, 7, "failed"),
        ):
            connection.execute(
                "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, attempts,"
                " next_attempt_at) VALUES (%s, %s, %s, %s, %s, 3, now() + interval '6 hours')",
                (mentor, threshold, uuid4(), TODAY, status),
            )

        scene.do(connection, "UPDATE mentors SET email = 'right@example.org' WHERE id = %(mentor)s")

        assert scene.facts.rows(
            "SELECT mentor_id = %s, threshold_days, status, attempts, next_attempt_at <= now()"
            " FROM cert_notification_log ORDER BY id",
            scene.mentor,
        ) == [
            (True, 7, "pending", 0, True),
            (True, 14, "sent", 3, False),
            (True, 30, "superseded", 3, False),
            (True, 60, "cancelled", 3, False),
            (False, 7, "failed", 3, False),
        ]

    def test_a_failed_reminder_stays_failed_when_something_else_changes(self, scene: Scene) -> None:
        """Another attempt would meet the same refusal."""
        connection = scene.facts.connection
        connection.execute(
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)"
            " VALUES (%s, 7, %s, %s, 'failed')",
            (scene.mentor, scene.certificate, TODAY),
        )

        scene.do(connection, "UPDATE mentors SET left_at = now(), email = email WHERE id = %(mentor)s")

        assert scene.facts.rows("SELECT status FROM cert_notification_log") == [("failed",)]


class Background:
    """A statement of another session, run in a thread and committed."""

    def __init__(self, session: App, statement: str, names: Mapping[str, object]) -> None:
        self._session = session
        self._statement = statement
        self._names = names
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._session.execute(self._statement.encode(), self._names)
            self._session.commit()
        except Exception as error:  # noqa: BLE001 - raised again by join
            self._error = error

    def join(self) -> None:
        """Wait for the commit; raise what went wrong."""
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the other session never ended"
        if self._error:
            raise self._error


RACES = {
    name: WAKES_THE_MENTOR[name]
    for name in (
        "certificate inserted",
        "certificate upserted",
        "certificate deleted",
        "certificate revoked",
        "pause opened",
        "pause lifted",
        "own pause lifted by a person",
        "mentor left",
        "mentor has another contact",
    )
} | {name: WAKES_BOTH[name] for name in ("certificate moved", "other thresholds", "portal gone")}


class TestFactsThatComeWhileCertjobWorks:
    """certjob holds the mentor and is about to write a later review day: the fact must not be lost."""

    @pytest.mark.parametrize("statement", RACES.values(), ids=RACES.keys())
    def test_a_fact_written_while_certjob_holds_the_mentor_is_looked_at_afterwards(
        self, scene: Scene, app: App, database_url: str, statement: str
    ) -> None:
        """The app waits for certjob, then overwrites its date: -infinity wins."""
        certjob = scene.facts.connection
        certjob.execute("UPDATE mentors SET review_on = '-infinity' WHERE id = %s", (scene.mentor,))

        with psycopg.connect(database_url, autocommit=True) as observer, certjob.transaction():
            certjob.execute("SELECT FROM mentors WHERE id = %s FOR NO KEY UPDATE", (scene.mentor,))
            other_session = Background(app, statement, scene.names)
            until(lambda: waits_for_a_lock(observer, app))
            certjob.execute("UPDATE mentors SET review_on = %s WHERE id = %s", (LATER, scene.mentor))
        other_session.join()

        assert "mentor" in scene.looked_at_now()

    def test_certjob_skips_a_mentor_whose_fact_is_not_committed_yet(self, scene: Scene, app: App) -> None:
        """It neither waits nor reads half a fact; the mentor is due once the app has committed."""
        scene.do(app, WAKES_THE_MENTOR["certificate inserted"])

        free = scene.facts.rows("SELECT id FROM mentors ORDER BY id FOR NO KEY UPDATE SKIP LOCKED")
        app.commit()

        assert free == [(scene.other,)]
        assert scene.looked_at_now() == {"mentor"}

    def test_a_mentor_is_not_deleted_while_certjob_queues_a_push(
        self, scene: Scene, app: App, database_url: str
    ) -> None:
        """The DELETE waits, then sees the intent that was not there when it began."""
        certjob = scene.facts.connection
        certjob.execute("UPDATE mentors SET portal_visible = false")

        with psycopg.connect(database_url, autocommit=True) as observer, certjob.transaction():
            certjob.execute("SELECT FROM mentors WHERE id = %s FOR NO KEY UPDATE", (scene.mentor,))
            other_session = Background(app, "DELETE FROM mentors WHERE id = %(mentor)s", scene.names)
            until(lambda: waits_for_a_lock(observer, app))
            scene.do(certjob, "INSERT INTO portal_sync_events (mentor_id, visible) VALUES (%(mentor)s, false)")

        with pytest.raises(psycopg.errors.RestrictViolation):
            other_session.join()


class TestUniqueness:
    """What may exist only once."""

    def test_one_open_pause_for_each_reason(self, scene: Scene) -> None:
        """A second illness is the same illness, until the first is lifted."""
        with pytest.raises(psycopg.errors.UniqueViolation):
            scene.facts.pause(scene.mentor, reason="illness")

        scene.facts.connection.execute(
            "UPDATE mentor_pauses SET lifted_at = now() WHERE id = %s", (scene.manual_pause,)
        )
        scene.facts.pause(scene.mentor, reason="illness")

    def test_one_open_portal_event_for_each_mentor(self, scene: Scene) -> None:
        """Pending and blocked are open; delivered and withdrawn ones may be many."""
        insert = "INSERT INTO portal_sync_events (mentor_id, visible, status) VALUES (%s, false, %s)"
        for status in ("delivered", "delivered", "withdrawn", "withdrawn", "blocked"):
            scene.facts.connection.execute(insert, (scene.mentor, status))

        for status in ("pending", "blocked"):
            with pytest.raises(psycopg.errors.UniqueViolation):
                scene.facts.connection.execute(insert, (scene.mentor, status))

        scene.facts.connection.execute(insert, (scene.other, "pending"))

    def test_one_reminder_for_each_mentor_threshold_and_certificate(self, scene: Scene) -> None:
        """Whatever its date and status: the same row is re-armed, never a second one written."""
        insert = (
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)"
            " VALUES (%s, %s, %s, %s, 'sent')"
        )
        scene.facts.connection.execute(insert, (scene.mentor, 7, scene.certificate, TODAY))

        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            scene.facts.connection.execute(insert, (scene.mentor, 7, scene.certificate, TODAY + timedelta(days=365)))

        assert caught.value.diag.constraint_name == "cert_notification_log_once"
        scene.facts.connection.execute(insert, (scene.mentor, 14, scene.certificate, TODAY))
        scene.facts.connection.execute(insert, (scene.mentor, 7, uuid4(), TODAY))

    def test_one_unresolved_failure_for_each_mentor(self, scene: Scene) -> None:
        """Resolved ones stay as history."""
        insert = (
            "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error) VALUES (%s, false, 'transient', 'x')"
        )
        scene.facts.connection.execute(insert, (scene.mentor,))

        with pytest.raises(psycopg.errors.UniqueViolation):
            scene.facts.connection.execute(insert, (scene.mentor,))

        scene.facts.connection.execute("UPDATE dynamics_sync_failures SET resolved_at = now()")
        scene.facts.connection.execute(insert, (scene.mentor,))

    @pytest.mark.parametrize("status", ["pending", "failed", "cancelled"])
    def test_one_open_digest_for_each_coordinator(self, scene: Scene, status: str) -> None:
        """Two runs send one mail, and what waits is what will be sent; sent ones are history."""
        (coordinator,) = scene.facts.rows(
            "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@example.org') RETURNING id",
            scene.organisation,
        )
        insert = "INSERT INTO coordinator_digests (coordinator_id, digest_on, status) VALUES (%s, %s, %s)"
        scene.facts.connection.execute(insert, (coordinator[0], TODAY, "sent"))
        scene.facts.connection.execute(insert, (coordinator[0], TODAY, status))

        with pytest.raises(psycopg.errors.UniqueViolation):
            scene.facts.connection.execute(insert, (coordinator[0], TODAY + timedelta(days=1), "pending"))

    @pytest.mark.parametrize(
        "statement",
        [
            "INSERT INTO organisations (slug, name) VALUES ('hlf', 'Another')",
            "INSERT INTO mentors (organisation_id, member_no) SELECT organisation_id, member_no FROM mentors LIMIT 1",
            "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
            " SELECT mentor_id, kind, issued_on, expires_on + 1 FROM certificates",
        ],
        ids=["slug", "member number within the organisation", "kind and first day of a mentor"],
    )
    def test_facts_have_natural_keys(self, scene: Scene, statement: str) -> None:
        """An import can say which row it means."""
        with pytest.raises(psycopg.errors.UniqueViolation):
            scene.facts.connection.execute(statement.encode())

    def test_a_member_number_is_unique_only_within_its_organisation(self, scene: Scene) -> None:
        """Two organisations count for themselves."""
        scene.facts.mentor(scene.organisation, member_no="1")

        scene.facts.mentor(scene.elsewhere, member_no="1")

        assert scene.facts.rows("SELECT count(*) FROM mentors WHERE member_no = '1'") == [(2,)]


REFUSED = {
    "expires before it is issued": "UPDATE certificates SET issued_on = '2026-03-11', expires_on = '2026-03-10'",
    "expires never": "UPDATE certificates SET expires_on = 'infinity'",
    "expires after year 9999": "UPDATE certificates SET expires_on = '10000-01-01'",
    "was always issued": "UPDATE certificates SET issued_on = '-infinity'",
    "was issued before Christ": "UPDATE certificates SET issued_on = '0001-12-31 BC'",
    "kind without a name": "UPDATE certificates SET kind = ''",
    "unknown certificate status": "UPDATE certificates SET status = 'lapsed'",
    "unknown portal": "UPDATE organisations SET portal = 'sharepoint'",
    "slug that is no word": "UPDATE organisations SET slug = 'Hørselshemmedes Landsforbund'",
    "organisation without a name": "UPDATE organisations SET name = ''",
    "threshold of no number": "UPDATE organisations SET reminder_thresholds = '{7,null}'",
    "threshold beyond ten years": "UPDATE organisations SET reminder_thresholds = '{3651}'",
    "threshold beyond ten years after": "UPDATE organisations SET reminder_thresholds = '{-3651}'",
    "more than fifty thresholds": """UPDATE organisations
        SET reminder_thresholds = array(SELECT generate_series(1, 51))""",
    "optional kind without a name": "UPDATE organisations SET optional_kinds = '{null}'",
    "mentor in an unknown language": "UPDATE mentors SET locale = 'fr'",
    "mentor without a number": "UPDATE mentors SET member_no = '' WHERE id = %(mentor)s",
    "mentor with the nil id": """INSERT INTO mentors (id, organisation_id, member_no)
        VALUES ('00000000-0000-0000-0000-000000000000', %(organisation)s, 'nil')""",
    "coordinator without an address": """INSERT INTO coordinators (organisation_id, email)
        VALUES (%(organisation)s, '')""",
    "a person who opens certjob's pause": """INSERT INTO mentor_pauses (mentor_id, reason, actor)
        VALUES (%(other)s, 'certification_expired', 'anna')""",
    "certjob opening another's pause": """INSERT INTO mentor_pauses (mentor_id, reason, actor)
        VALUES (%(other)s, 'illness', 'certjob')""",
    "certjob lifting another's pause": """UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'certjob'
        WHERE id = %(manual_pause)s""",
    "a lifter of an open pause": "UPDATE mentor_pauses SET lifted_by = 'anna' WHERE id = %(manual_pause)s",
    "pause without a reason": "UPDATE mentor_pauses SET reason = '' WHERE id = %(manual_pause)s",
    "pause without an actor": "UPDATE mentor_pauses SET actor = '' WHERE id = %(manual_pause)s",
    "unknown reminder status": """INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on,
        status) VALUES (%(mentor)s, 7, %(certificate)s, '2026-03-10', 'queued')""",
    "history that is no list": """INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on,
        history) VALUES (%(mentor)s, 7, %(certificate)s, '2026-03-10', '{}')""",
    "unknown event status": """INSERT INTO portal_sync_events (mentor_id, visible, status)
        VALUES (%(mentor)s, true, 'sent')""",
    "less than no attempt": """INSERT INTO portal_sync_events (mentor_id, visible, attempts)
        VALUES (%(mentor)s, true, -1)""",
    "version before the first": """INSERT INTO portal_sync_events (mentor_id, visible, version)
        VALUES (%(mentor)s, true, 0)""",
    "unknown kind of failure": """INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error)
        VALUES (%(mentor)s, true, 'odd', 'x')""",
    "unknown outcome of a run": """INSERT INTO job_runs (id, command, as_of, host, version, outcome)
        VALUES (gen_random_uuid(), 'run', '2026-03-10', 'h', '1', 'fine')""",
}


class TestChecks:
    """What the database refuses, whoever writes it."""

    @pytest.mark.parametrize("statement", REFUSED.values(), ids=REFUSED.keys())
    def test_the_database_refuses(self, scene: Scene, statement: str) -> None:
        """With the name of the check, so that the app can say what is wrong."""
        with pytest.raises(psycopg.errors.CheckViolation) as caught:
            scene.do(scene.facts.connection, statement)

        assert caught.value.diag.constraint_name

    def test_constraint_names_are_unique_within_the_schema(self, connection: database.Connection) -> None:
        """Two checks of one name would make an error ambiguous."""
        rows = connection.execute(
            "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
            " GROUP BY conname HAVING count(*) > 1"
        ).fetchall()

        assert rows == []

    def test_an_organisation_may_want_no_reminders_at_all(self, scene: Scene) -> None:
        """The empty list is a list."""
        scene.do(
            scene.facts.connection, "UPDATE organisations SET reminder_thresholds = '{}' WHERE id = %(organisation)s"
        )

        assert scene.looked_at_now() == {"mentor", "other"}

    def test_the_last_day_of_year_9999_serves_as_never(self, scene: Scene) -> None:
        """The widest range that programs can read."""
        scene.facts.certificate(scene.other, date(9999, 12, 31), issued_on=date(1, 1, 1))

        stored = scene.facts.rows("SELECT issued_on, expires_on FROM certificates WHERE mentor_id = %s", scene.other)
        assert (date(1, 1, 1), date(9999, 12, 31)) in stored


class TestDeleting:
    """Nothing that somebody still waits for, and no history, is lost by a DELETE."""

    @pytest.mark.parametrize(
        "intent",
        [
            "INSERT INTO portal_sync_events (mentor_id, visible) VALUES (%(mentor)s, false)",
            "INSERT INTO portal_sync_events (mentor_id, visible, status) VALUES (%(mentor)s, false, 'blocked')",
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
            " VALUES (%(mentor)s, 7, %(certificate)s, '2026-03-10')",
        ],
        ids=["pending push", "blocked push", "pending reminder"],
    )
    def test_a_mentor_with_an_open_intent_cannot_be_deleted(self, scene: Scene, intent: str) -> None:
        """The message names the mentor, the hint the way."""
        connection = scene.facts.connection
        connection.execute("UPDATE mentors SET portal_visible = false")
        scene.do(connection, intent)

        with pytest.raises(psycopg.errors.RestrictViolation) as caught:
            scene.do(connection, "DELETE FROM mentors WHERE id = %(mentor)s")

        assert str(scene.mentor) in str(caught.value.diag.message_primary)
        assert "left_at" in str(caught.value.diag.message_hint)

    def test_a_mentor_whom_the_portal_never_knew_can_be_deleted(self, scene: Scene) -> None:
        """Without a contact id a hide is blocked for ever, and there is nobody to hide."""
        connection = scene.facts.connection
        connection.execute("UPDATE mentors SET dynamics_contact_id = NULL, left_at = now()")
        connection.execute("UPDATE mentors SET portal_visible = false")
        scene.do(
            connection,
            "INSERT INTO portal_sync_events (mentor_id, visible, status) VALUES (%(mentor)s, false, 'blocked')",
        )

        scene.do(connection, "DELETE FROM mentors WHERE id = %(mentor)s")

        assert scene.facts.rows("SELECT count(*) FROM portal_sync_events") == [(0,)]

    @pytest.mark.parametrize("portal_visible", [True, None])
    def test_a_mentor_who_may_still_be_shown_on_the_portal_cannot_be_deleted(
        self, scene: Scene, portal_visible: bool | None
    ) -> None:
        """Deleted with us, visible there, and nobody left to hide them: the first harm to avoid."""
        connection = scene.facts.connection
        connection.execute("UPDATE mentors SET portal_visible = %s", (portal_visible,))

        with pytest.raises(psycopg.errors.RestrictViolation) as caught:
            scene.do(connection, "DELETE FROM mentors WHERE id = %(mentor)s")

        assert "left_at" in str(caught.value.diag.message_hint)

    def test_a_mentor_who_left_can_be_deleted_once_everything_is_settled(self, scene: Scene) -> None:
        """Their rows go with them; other people's stay."""
        connection = scene.facts.connection
        for statement in (
            "UPDATE mentors SET left_at = now(), portal_visible = false WHERE id = %(mentor)s",
            "INSERT INTO portal_sync_events (mentor_id, visible, status) VALUES (%(mentor)s, false, 'delivered')",
            "INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, error, resolved_at)"
            " SELECT mentor_id, id, false, 'transient', '503', now() FROM portal_sync_events",
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)"
            " SELECT %(mentor)s, n, %(certificate)s, '2026-03-10', s"
            " FROM unnest('{sent,failed,cancelled,superseded}'::text[]) WITH ORDINALITY AS t (s, n)",
            "INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of)"
            " VALUES (%(certificate)s, %(mentor)s, 'valid', 'expired', '2026-03-11')",
        ):
            scene.do(connection, statement)

        scene.do(connection, "DELETE FROM mentors WHERE id = %(mentor)s")

        for table in (
            "certificates",
            "mentor_pauses",
            "certificate_transitions",
            "cert_notification_log",
            "portal_sync_events",
            "dynamics_sync_failures",
        ):
            assert scene.facts.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
        assert scene.facts.rows("SELECT id FROM mentors") == [(scene.other,)]

    def test_a_mentor_of_an_organisation_without_a_portal_can_be_deleted_at_any_time(self, scene: Scene) -> None:
        """No portal shows them."""
        mentor = scene.facts.certified_mentor(scene.elsewhere, TODAY)

        scene.facts.connection.execute("DELETE FROM mentors WHERE id = %s", (mentor,))

        assert scene.facts.rows("SELECT id FROM mentors WHERE id = %s", mentor) == []

    def test_an_organisation_with_mentors_cannot_be_deleted(self, scene: Scene) -> None:
        """Nor can they all vanish at once."""
        with pytest.raises(psycopg.errors.IntegrityError):
            scene.do(scene.facts.connection, "DELETE FROM organisations WHERE id = %(organisation)s")

    def test_a_deleted_certificate_leaves_its_reminders_and_its_audit(self, scene: Scene) -> None:
        """Neither refers to it by a foreign key."""
        connection = scene.facts.connection
        scene.do(
            connection,
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)"
            " VALUES (%(mentor)s, 7, %(certificate)s, '2026-03-10', 'sent')",
        )
        scene.do(
            connection,
            "INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of)"
            " VALUES (%(certificate)s, %(mentor)s, 'valid', 'expired', '2026-03-11')",
        )

        scene.do(connection, "DELETE FROM certificates WHERE id = %(certificate)s")

        assert scene.facts.rows("SELECT cert_id FROM cert_notification_log") == [(scene.certificate,)]
        assert scene.facts.rows("SELECT certificate_id FROM certificate_transitions") == [(scene.certificate,)]

    def test_a_pruned_event_leaves_the_failure_that_told_of_it(self, scene: Scene) -> None:
        """History does not hang on history."""
        connection = scene.facts.connection
        scene.do(
            connection,
            "WITH e AS (INSERT INTO portal_sync_events (mentor_id, visible, status)"
            " VALUES (%(mentor)s, false, 'delivered') RETURNING id)"
            " INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, error, resolved_at)"
            " SELECT %(mentor)s, id, false, 'transient', '503', now() FROM e",
        )

        connection.execute("DELETE FROM portal_sync_events")

        assert scene.facts.rows("SELECT event_id, error FROM dynamics_sync_failures") == [(None, "503")]


@pytest.fixture
def role(connection: database.Connection) -> Iterator[str]:
    """A database role of this test's own that may do nothing yet."""
    name = f"certjob_test_{uuid.uuid4().hex[:12]}"
    connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
    yield name
    connection.execute("RESET ROLE")
    connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
    connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def grant(connection: database.Connection, role: str, *statements: str) -> None:
    """Run GRANT and CREATE POLICY statements in which {} stands for the role."""
    for statement in statements:
        connection.execute(sql.SQL(statement).format(sql.Identifier(role)))


@contextmanager
def acting_as(connection: database.Connection, role: str) -> Iterator[None]:
    """Be that role for a while."""
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    try:
        yield
    finally:
        connection.execute("RESET ROLE")


class TestRowLevelSecurity:
    """No table is exposed by mistake, and no trigger misses what is hidden from the writer."""

    def test_it_is_enabled_on_every_table_the_ledger_too(self, connection: database.Connection) -> None:
        """On Supabase a table without it is public as soon as somebody grants."""
        rows = connection.execute(
            "SELECT relname, relrowsecurity FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        ).fetchall()

        assert dict(rows) == dict.fromkeys(TABLES, True)

    def test_every_trigger_function_runs_as_its_owner_with_an_empty_search_path(
        self, connection: database.Connection
    ) -> None:
        """As invoker it would miss hidden rows; with a search path it could be led astray."""
        rows = connection.execute(
            "SELECT DISTINCT p.oid::regprocedure::text, n.nspname, p.prosecdef, p.proconfig"
            " FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid"
            " JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE NOT t.tgisinternal"
        ).fetchall()

        assert rows
        assert {row[1:3] for row in rows} == {("certjob_private", True)}
        assert all(row[3] in (['search_path=""'], ["search_path=pg_catalog, pg_temp"]) for row in rows)

    def test_nobody_is_granted_anything_by_the_migrations(self, connection: database.Connection, role: str) -> None:
        """Whoever exposes a table does so on purpose."""
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')"
            " AND has_table_privilege(%s, oid, 'SELECT, INSERT, UPDATE, DELETE')",
            (role,),
        ).fetchall()

        assert rows == []

    @pytest.mark.parametrize(
        "statement",
        [
            WAKES_THE_MENTOR["certificate inserted"],
            WAKES_THE_MENTOR["certificate extended"],
            WAKES_THE_MENTOR["certificate deleted"],
            WAKES_THE_MENTOR["pause opened"],
            WAKES_THE_MENTOR["pause lifted"],
            WAKES_THE_MENTOR["pause deleted"],
            "UPDATE organisations SET reminder_thresholds = '{10}' WHERE id = %(organisation)s",
        ],
    )
    def test_a_writer_from_whom_mentors_are_hidden_still_makes_certjob_look(
        self, scene: Scene, role: str, statement: str
    ) -> None:
        """Policies hide every mentor from the role, and the private schema is closed to it."""
        connection = scene.facts.connection
        for table in ("certificates", "mentor_pauses", "organisations"):
            grant(
                connection,
                role,
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {{}}",
                f"CREATE POLICY everything ON {table} TO {{}} USING (true) WITH CHECK (true)",
            )
        grant(connection, role, "GRANT SELECT, UPDATE ON mentors TO {}")

        with acting_as(connection, role):
            hidden = scene.facts.rows("SELECT id FROM mentors")
            scene.do(connection, statement)

        assert hidden == []
        assert "mentor" in scene.looked_at_now()

    def test_a_writer_from_whom_the_log_is_hidden_still_revives_failed_reminders(self, scene: Scene, role: str) -> None:
        """The app corrects an address; it need not see the log."""
        connection = scene.facts.connection
        grant(
            connection,
            role,
            "GRANT SELECT, UPDATE ON mentors TO {}",
            "CREATE POLICY everything ON mentors TO {} USING (true)",
        )
        connection.execute(
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)"
            " VALUES (%s, 7, %s, %s, 'failed')",
            (scene.mentor, scene.certificate, TODAY),
        )

        with acting_as(connection, role):
            scene.do(connection, "UPDATE mentors SET email = 'right@example.org' WHERE id = %(mentor)s")

        assert scene.facts.rows("SELECT status FROM cert_notification_log") == [("pending",)]

    def test_deleting_a_mentor_sees_the_open_intents_that_are_hidden_from_the_writer(
        self, scene: Scene, role: str
    ) -> None:
        """Otherwise an app without rights on the queue could drop a hide."""
        connection = scene.facts.connection
        grant(
            connection,
            role,
            "GRANT SELECT, DELETE ON mentors TO {}",
            "CREATE POLICY everything ON mentors TO {} USING (true)",
        )
        connection.execute("UPDATE mentors SET portal_visible = false")
        scene.do(connection, "INSERT INTO portal_sync_events (mentor_id, visible) VALUES (%(mentor)s, false)")

        with acting_as(connection, role), pytest.raises(psycopg.errors.RestrictViolation):
            scene.do(connection, "DELETE FROM mentors WHERE id = %(mentor)s")


HIDE_SENTENCE = "Dynamics sync pending — mentor may still be visible on portal"
SHOW_SENTENCE = "Dynamics sync pending — mentor may still be hidden on portal"


class TestPortalAlerts:
    """What a coordinator must know: one view for the CLI and the app's dashboard."""

    @staticmethod
    def event(
        facts: Facts,
        mentor_id: UUID,
        *,
        visible: bool = False,
        status: str = "pending",
        wanted: str = "5 minutes",
        last_error: str | None = None,
    ) -> int:
        """A portal event wanted so long ago."""
        row = one(
            facts.connection,
            "INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, last_error)"
            " VALUES (%s, %s, %s, now() - %s::interval, %s) RETURNING id",
            mentor_id,
            visible,
            status,
            wanted,
            last_error,
        )
        return int(row["id"])

    @staticmethod
    def failure(facts: Facts, mentor_id: UUID, event_id: int, *, resolved: bool = False) -> None:
        """A failure of that event, three calls made."""
        facts.connection.execute(
            "INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, error, attempts, resolved_at)"
            " VALUES (%s, %s, false, 'transient', '503 dynamics_unavailable', 3, CASE WHEN %s THEN now() END)",
            (mentor_id, event_id, resolved),
        )

    def test_it_has_exactly_the_columns_that_the_dashboard_reads(self, connection: database.Connection) -> None:
        """Names and order are a contract."""
        cursor = connection.execute("SELECT * FROM portal_alerts")

        assert [column.name for column in cursor.description or ()] == [
            "event_id",
            "mentor_id",
            "organisation_id",
            "member_no",
            "full_name",
            "visible",
            "sentence",
            "error",
            "attempts",
            "wanted_at",
            "last_failed_at",
            "code",
        ]

    def test_an_event_with_an_unresolved_failure_is_shown_with_what_went_wrong(self, facts: Facts) -> None:
        """At once, not after an hour."""
        organisation = facts.organisation()
        mentor = facts.mentor(organisation, member_no="M1042", full_name="Kari Nordmann")
        event = self.event(facts, mentor)
        self.failure(facts, mentor, event)

        alert = one(facts.connection, "SELECT * FROM portal_alerts")

        assert alert["event_id"] == event
        assert alert["mentor_id"] == mentor
        assert alert["organisation_id"] == organisation
        assert (alert["member_no"], alert["full_name"], alert["visible"]) == ("M1042", "Kari Nordmann", False)
        assert alert["sentence"] == HIDE_SENTENCE
        assert (alert["error"], alert["attempts"]) == ("503 dynamics_unavailable", 3)
        assert isinstance(alert["wanted_at"], datetime)
        assert isinstance(alert["last_failed_at"], datetime)

    def test_a_show_that_waits_says_that_the_mentor_may_still_be_hidden(self, facts: Facts) -> None:
        """The other harm, with its own sentence."""
        self.event(facts, facts.mentor(facts.organisation()), visible=True, wanted="2 hours")

        assert one(facts.connection, "SELECT * FROM portal_alerts")["sentence"] == SHOW_SENTENCE

    def test_an_event_without_a_failure_is_shown_when_it_has_waited_for_more_than_an_hour(self, facts: Facts) -> None:
        """Nothing waits unseen, even if no run ever tried."""
        organisation = facts.organisation()
        self.event(facts, facts.mentor(organisation, member_no="fresh"), wanted="59 minutes")
        self.event(facts, facts.mentor(organisation, member_no="stale"), wanted="61 minutes", last_error="released")

        alert = one(facts.connection, "SELECT * FROM portal_alerts")

        assert alert["member_no"] == "stale"
        assert (alert["error"], alert["attempts"], alert["last_failed_at"]) == ("released", 0, None)

    def test_a_mentor_without_a_name_is_shown_by_the_member_number(self, facts: Facts) -> None:
        """A coordinator can always tell who it is."""
        mentor = facts.mentor(facts.organisation(), member_no="M7", full_name=None)
        self.event(facts, mentor, wanted="2 hours")

        assert one(facts.connection, "SELECT * FROM portal_alerts")["full_name"] == "M7"

    def test_only_open_events_are_shown(self, facts: Facts) -> None:
        """Pending and blocked; delivered and withdrawn ones trouble nobody, resolved failures neither."""
        organisation = facts.organisation()
        for status in ("pending", "blocked", "delivered", "withdrawn"):
            mentor = facts.mentor(organisation, member_no=status)
            self.failure(facts, mentor, self.event(facts, mentor, status=status, wanted="2 days"))
        resolved = facts.mentor(organisation, member_no="resolved")
        self.failure(facts, resolved, self.event(facts, resolved), resolved=True)

        shown = facts.rows("SELECT member_no FROM portal_alerts")

        assert sorted(shown) == [("blocked",), ("pending",)]

    def test_hides_come_first_and_the_oldest_of_each_before_the_others(self, facts: Facts) -> None:
        """Somebody uncertified who stays visible is the worst; whoever waits longest is next."""
        organisation = facts.organisation()
        for member_no, visible, wanted in (
            ("young show", True, "2 hours"),
            ("young hide", False, "3 hours"),
            ("old show", True, "9 days"),
            ("old hide", False, "5 hours"),
        ):
            self.event(facts, facts.mentor(organisation, member_no=member_no), visible=visible, wanted=wanted)

        shown = [row[0] for row in facts.rows("SELECT member_no FROM portal_alerts")]

        assert shown == ["old hide", "young hide", "old show", "young show"]

    def test_each_event_is_shown_once_even_after_many_failures(self, facts: Facts) -> None:
        """Resolved failures are history."""
        mentor = facts.mentor(facts.organisation())
        event = self.event(facts, mentor, wanted="2 hours")
        for _ in range(3):
            self.failure(facts, mentor, event, resolved=True)
        self.failure(facts, mentor, event)

        assert facts.rows("SELECT event_id FROM portal_alerts") == [(event,)]

    def test_it_shows_each_reader_only_what_their_own_rights_reach(self, facts: Facts, role: str) -> None:
        """security_invoker: the policies of the tables hold in the view."""
        mine, foreign = facts.organisation("mine"), facts.organisation("foreign")
        for organisation in (mine, foreign):
            self.event(facts, facts.mentor(organisation), wanted="2 hours")
        grant(
            facts.connection,
            role,
            "GRANT SELECT ON portal_alerts, portal_sync_events, mentors, dynamics_sync_failures TO {}",
            f"CREATE POLICY mine ON mentors TO {{}} USING (organisation_id = '{mine}')",
            "CREATE POLICY everything ON portal_sync_events TO {} USING (true)",
        )

        with acting_as(facts.connection, role):
            shown = facts.rows("SELECT organisation_id FROM portal_alerts")

        assert shown == [(mine,)]

    def test_the_right_to_the_view_alone_opens_nothing(self, facts: Facts, role: str) -> None:
        """The reader needs rights on the tables, too."""
        grant(facts.connection, role, "GRANT SELECT ON portal_alerts TO {}")

        with acting_as(facts.connection, role), pytest.raises(psycopg.errors.InsufficientPrivilege):
            facts.rows("SELECT event_id FROM portal_alerts")


class TestRealtime:
    """Where Supabase's publication exists, a dashboard hears of failures without polling."""

    @staticmethod
    def published(connection: database.Connection) -> set[str]:
        rows = connection.execute("SELECT tablename FROM pg_publication_tables WHERE pubname = 'supabase_realtime'")
        return {row[0] for row in rows}

    def test_the_failures_are_in_the_publication_that_was_there_before(self, empty_database_url: str) -> None:
        """And nothing else of certjob's."""
        with database.connect(empty_database_url) as connection:
            connection.execute("CREATE PUBLICATION supabase_realtime")

            migrations.migrate(connection)

            assert self.published(connection) == {"dynamics_sync_failures"}

    @pytest.mark.parametrize("scope", ["FOR ALL TABLES", "FOR TABLES IN SCHEMA public"])
    def test_a_publication_of_everything_is_as_good(self, empty_database_url: str, scope: str) -> None:
        """PostgreSQL refuses to add a table to one for all tables; the failures are in it anyhow."""
        with database.connect(empty_database_url) as connection:
            connection.execute(f"CREATE PUBLICATION supabase_realtime {scope}".encode())

            migrations.migrate(connection)

            assert "dynamics_sync_failures" in self.published(connection)

    def test_a_plain_postgresql_migrates_without_it(self, connection: database.Connection) -> None:
        """No publication is made."""
        assert connection.execute("SELECT count(*) FROM pg_publication").fetchone() == (0,)


class TestHotQuery:
    """A night costs what is due, not what exists."""

    @pytest.mark.parametrize(
        ("review_on", "due"), [("2030-01-01", 0), ("-infinity", 500)], ids=["nothing is due", "everybody is due"]
    )
    def test_the_due_mentors_are_found_and_ordered_by_the_index(self, facts: Facts, review_on: str, due: int) -> None:
        """Among 50,000 no table is scanned and nothing is sorted."""
        connection = facts.connection
        organisation = facts.organisation()
        connection.execute(
            "INSERT INTO mentors (organisation_id, member_no, review_on)"
            " SELECT %s, n::text, %s FROM generate_series(1, 50000) AS n",
            (organisation, review_on),
        )
        connection.execute("ANALYZE mentors")
        statement = database.query("lock_due_mentors")
        parameters = {
            "today": TODAY,
            "after_review": "-infinity",
            "after_id": UUID(int=0),
            "organisation_id": None,
            "held": [],
            "ids": None,
            "limit": 500,
        }

        plan = json.dumps(connection.execute(b"EXPLAIN (FORMAT JSON) " + statement, parameters).fetchall())

        assert "mentors_review_on_id_idx" in plan
        assert "Seq Scan" not in plan
        assert '"Sort"' not in plan
        assert len(connection.execute(statement, parameters).fetchall()) == due


def test_two_mentors_of_an_organisation_cannot_share_a_contact(facts: Facts) -> None:
    """They would hide and show each other on the portal; without a contact there may be many."""
    organisation = facts.organisation()
    contact = uuid4()
    facts.mentor(organisation, contact_id=contact)
    facts.mentor(organisation, contact_id=None)
    facts.mentor(organisation, contact_id=None)

    with pytest.raises(psycopg.errors.UniqueViolation, match="mentors_one_per_contact"):
        facts.mentor(organisation, contact_id=contact)
