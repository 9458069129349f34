"""The schema on a real PostgreSQL: defaults, triggers, constraints, what may be deleted, the view of alerts."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from certjob import database
from certjob.database import Connection, migrations
from tests.support.facts import TODAY, Facts
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

LATER = "2030-01-01"
"""A review day that no trigger writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An organisation with a mentor who has one of everything and another mentor beside; nobody is due."""

    facts: Facts
    names: Mapping[str, UUID]
    """The ids, by the names that statements use."""

    def do(self, statement: str, connection: psycopg.Connection[Any] | None = None) -> psycopg.Cursor[Any]:
        return (connection or self.facts.connection).execute(statement.encode(), self.names)

    def tried(self, statement: str) -> set[str]:
        """Whom certjob would look at after this statement, which is rolled back."""
        with self.facts.connection.transaction(force_rollback=True):
            self.do(statement)
            return self.looked_at_now()

    def looked_at_now(self) -> set[str]:
        due = {row[0] for row in self.facts.rows("SELECT id FROM mentors WHERE review_on = '-infinity'")}
        return {name for name in ("mentor", "other") if self.names[name] in due}


def furnished(facts: Facts, slug: str = "hlf") -> Scene:
    organisation = facts.organisation(slug)
    mentor = facts.mentor(organisation)
    names = {
        "organisation": organisation,
        "elsewhere": facts.organisation(f"{slug}-elsewhere", portal=None),
        "mentor": mentor,
        "other": facts.mentor(organisation),
        "certificate": facts.certificate(mentor, TODAY),
        "manual_pause": facts.pause(mentor, reason="illness"),
        "own_pause": facts.pause(mentor, reason="certification_expired", actor="certjob"),
    }
    facts.connection.execute("UPDATE mentors SET review_on = %s", (LATER,))
    return Scene(facts=facts, names=names)


@pytest.fixture
def scene(facts: Facts) -> Scene:
    return furnished(facts)


DEFAULTS: dict[str, tuple[str, dict[str, object]]] = {
    "organisations": (
        "(slug, name) VALUES ('new', 'New')",
        {"id": "made", "reminder_thresholds": [60, 30, 14, 7, 1, -1], "optional_kinds": []},
    ),
    "coordinators": (
        "(organisation_id, email) VALUES (%(organisation)s, 'k@example.org')",
        {"id": "made", "locale": "nb"},
    ),
    "mentors": (
        "(organisation_id, member_no) VALUES (%(organisation)s, 'M1')",
        {"id": "made", "locale": "nb", "portal_visible": True, "review_on": "-infinity"},
    ),
    "certificates": (
        "(mentor_id, kind, issued_on, expires_on) VALUES (%(other)s, 'likeperson', '2024-01-01', '2024-01-01')",
        {"id": "made", "status": "recorded"},
    ),
    "mentor_pauses": (
        "(mentor_id, reason, actor) VALUES (%(other)s, 'illness', 'anna')",
        {"id": "made", "paused_at": "now"},
    ),
    "certificate_transitions": (
        "(certificate_id, mentor_id, from_status, to_status, as_of)"
        " VALUES (%(certificate)s, %(mentor)s, 'valid', 'expired', '2026-03-10')",
        {"id": "made", "at": "now"},
    ),
    "cert_notification_log": (
        "(mentor_id, threshold_days, cert_id, expires_on) VALUES (%(mentor)s, 7, %(certificate)s, '2026-03-10')",
        {"id": "made", "status": "pending", "attempts": 0, "maybe_sent": False, "history": []}
        | {"queued_at": "now", "next_attempt_at": "now"},
    ),
    "portal_sync_events": (
        "(mentor_id, visible) VALUES (%(mentor)s, false)",
        {"id": "made", "status": "pending", "attempts": 0, "version": 1, "corrects_portal": False}
        | {"wanted_at": "now", "next_attempt_at": "now"},
    ),
    "dynamics_sync_failures": (
        "(mentor_id, visible, kind, error) VALUES (%(mentor)s, false, 'stage', 'no URL')",
        {"id": "made", "attempts": 0, "created_at": "now", "last_failed_at": "now"},
    ),
    "coordinator_digests": (
        "(coordinator_id, digest_on) SELECT id, '2026-03-10' FROM coordinators",
        {"id": "made", "status": "pending", "attempts": 0, "maybe_sent": False, "reported": []}
        | {"queued_at": "now", "next_attempt_at": "now"},
    ),
    "job_runs": (
        "(id, command, as_of, host, version) VALUES (gen_random_uuid(), 'run', '2026-03-10', 'h', '1')",
        {"counts": {}, "started_at": "now", "last_seen_at": "now"},
    ),
}
"""Of each table its facts alone, and what the columns hold that were not given; the others are null."""


def test_every_table_takes_an_insert_of_its_facts_alone(scene: Scene) -> None:
    found = {}
    with scene.facts.connection.transaction():
        ((now,),) = scene.facts.rows("SELECT to_jsonb(now())")
        for table, (facts, _) in DEFAULTS.items():
            ((row,),) = scene.do(f"INSERT INTO {table} AS t {facts} RETURNING to_jsonb(t)")
            given = facts.partition("(")[2].partition(")")[0].split(", ")
            found[table] = {
                name: "now" if value == now else "made" if name == "id" else value
                for name, value in row.items()
                if value is not None and name not in given
            }

    assert found == {table: defaults for table, (_, defaults) in DEFAULTS.items()}


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
    "pause lifted": "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE id = %(manual_pause)s",
    "pause lifted without a name": "UPDATE mentor_pauses SET lifted_at = now() WHERE id = %(manual_pause)s",
    "pause deleted": "DELETE FROM mentor_pauses WHERE id = %(manual_pause)s",
    "own pause lifted by a person": """UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna'
        WHERE id = %(own_pause)s""",
    "own pause lifted without a name": "UPDATE mentor_pauses SET lifted_at = now() WHERE id = %(own_pause)s",
    "own pause deleted": "DELETE FROM mentor_pauses WHERE id = %(own_pause)s",
}

WAKES_BOTH = {
    "certificate moved": "UPDATE certificates SET mentor_id = %(other)s WHERE id = %(certificate)s",
    "pause moved": "UPDATE mentor_pauses SET mentor_id = %(other)s WHERE id = %(manual_pause)s",
    "certificates inserted at once": """INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        VALUES (%(other)s, 'first_aid', '2025-01-01', '2027-01-01'),
               (%(mentor)s, 'first_aid', '2025-01-01', '2027-01-01')""",
    "other thresholds": "UPDATE organisations SET reminder_thresholds = '{10}' WHERE id = %(organisation)s",
    "no thresholds": "UPDATE organisations SET reminder_thresholds = '{}' WHERE id = %(organisation)s",
    "other optional kinds": "UPDATE organisations SET optional_kinds = '{first_aid}' WHERE id = %(organisation)s",
    "portal gone": "UPDATE organisations SET portal = NULL WHERE id = %(organisation)s",
}

CHANGED_MENTOR = {
    "mentor left": "UPDATE mentors SET left_at = now() WHERE id = %(mentor)s",
    "mentor has another address": "UPDATE mentors SET email = 'new@example.org' WHERE id = %(mentor)s",
    "mentor has no address any more": "UPDATE mentors SET email = NULL WHERE id = %(mentor)s",
    "mentor changed organisation": "UPDATE mentors SET organisation_id = %(elsewhere)s WHERE id = %(mentor)s",
    "mentor has another contact": "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %(mentor)s",
    "mentor has no contact any more": "UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %(mentor)s",
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

    @pytest.mark.parametrize(
        ("statements", "who"),
        [(WAKES_THE_MENTOR | CHANGED_MENTOR, {"mentor"}), (WAKES_BOTH, {"mentor", "other"}), (WAKES_NOBODY, set())],
        ids=["the mentor", "both", "nobody"],
    )
    def test_a_changed_fact_makes_certjob_look_at_whoever_it_is_about(
        self, scene: Scene, statements: dict[str, str], who: set[str]
    ) -> None:
        looked_at = {name: scene.tried(statement) for name, statement in statements.items()}

        assert looked_at == dict.fromkeys(statements, who)

    def test_also_when_the_mentors_are_hidden_from_the_writer(self, scene: Scene, role: str) -> None:
        """Policies hide every mentor from the role, and the private schema is closed to it."""
        connection = scene.facts.connection
        for table in ("certificates", "mentor_pauses", "organisations"):
            grant(connection, role, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {{}}")
            grant(connection, role, f"CREATE POLICY all_of_it ON {table} TO {{}} USING (true) WITH CHECK (true)")
        grant(connection, role, "GRANT SELECT, UPDATE ON mentors TO {}")
        unseen = {}

        for name, statement in (WAKES_THE_MENTOR | WAKES_BOTH).items():
            with connection.transaction(force_rollback=True):
                with acting_as(connection, role):
                    assert scene.facts.rows("SELECT id FROM mentors") == []
                    scene.do(statement)
                unseen[name] = "mentor" not in scene.looked_at_now()

        assert [name for name, is_unseen in unseen.items() if is_unseen] == []

    def test_a_bulk_copy_of_certificates_makes_certjob_look(self, scene: Scene) -> None:
        copying = "COPY certificates (mentor_id, kind, issued_on, expires_on) FROM STDIN"
        with scene.facts.connection.cursor() as cursor, cursor.copy(copying) as copy:
            copy.write_row((scene.names["other"], "likeperson", date(2025, 1, 1), date(2027, 1, 1)))

        assert scene.looked_at_now() == {"other"}

    def test_a_lift_of_certjobs_that_a_person_takes_back_is_a_fact_and_an_old_pause_is_none(self, scene: Scene) -> None:
        scene.do("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'certjob' WHERE id = %(own_pause)s")
        assert scene.tried("DELETE FROM mentor_pauses WHERE id = %(own_pause)s") == set()

        scene.do("UPDATE mentor_pauses SET lifted_at = NULL, lifted_by = NULL WHERE id = %(own_pause)s")

        assert scene.looked_at_now() == {"mentor"}

    def test_only_a_changed_contact_or_portal_makes_the_shown_value_unknown(self, scene: Scene) -> None:
        """Null: the next desired value is pushed, whatever it is; of that organisation's mentors only."""
        newcomer = scene.facts.mentor(scene.names["elsewhere"])
        scene.facts.connection.execute("UPDATE mentors SET portal_visible = false")
        unknown = {}
        statements = {name: CHANGED_MENTOR[name] for name in CHANGED_MENTOR if "organisation" not in name}
        for name, statement in (
            statements
            | WAKES_BOTH
            | WAKES_NOBODY
            | {"new portal": "UPDATE organisations SET portal = 'dynamics' WHERE id = %(elsewhere)s"}
        ).items():
            with scene.facts.connection.transaction(force_rollback=True):
                scene.do(statement)
                rows = scene.facts.rows("SELECT id FROM mentors WHERE portal_visible IS NULL")
                unknown[name] = {row[0] for row in rows}

        mentor, other = scene.names["mentor"], scene.names["other"]
        assert {name: who for name, who in unknown.items() if who} == {
            "mentor has another contact": {mentor},
            "mentor has no contact any more": {mentor},
            "portal gone": {mentor, other},
            "new portal": {newcomer},
        }

    def test_a_corrected_address_makes_failed_reminders_due_at_once(self, scene: Scene, role: str) -> None:
        """Those of this mentor, and those that failed; also when the writer may not see the log."""
        connection = scene.facts.connection
        grant(connection, role, "GRANT SELECT, UPDATE ON mentors TO {}")
        grant(connection, role, "CREATE POLICY all_of_it ON mentors TO {} USING (true)")
        for who, threshold, status in (
            ("mentor", 7, "failed"),
            ("mentor", 14, "sent"),
            ("mentor", 30, "superseded"),
            ("mentor", 60, "cancelled"),
            ("other", 7, "failed"),
        ):
            scene.do(
                "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, attempts,"
                f" next_attempt_at) VALUES (%({who})s, {threshold}, gen_random_uuid(), '2026-03-10', '{status}', 3,"
                " now() + interval '6 hours')"
            )
        before = scene.facts.rows(
            "SELECT threshold_days, status, attempts, false FROM cert_notification_log ORDER BY id"
        )
        left = (
            "SELECT threshold_days, status, attempts, next_attempt_at <= now() FROM cert_notification_log ORDER BY id"
        )

        with acting_as(connection, role):
            scene.do("UPDATE mentors SET left_at = now(), email = email WHERE id = %(mentor)s")
        assert scene.facts.rows(left) == before
        with acting_as(connection, role):
            scene.do("UPDATE mentors SET email = 'right@example.org' WHERE id = %(mentor)s")

        assert scene.facts.rows(left) == [(7, "pending", 0, True), *before[1:]]


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
            self._session.rollback()
            self._error = error

    def join(self) -> None:
        """Wait for the commit; raise what went wrong."""
        self._thread.join(20)
        assert not self._thread.is_alive(), "the other session never ended"
        if self._error:
            raise self._error


RACES = [
    "certificate inserted",
    "certificate upserted",
    "certificate deleted",
    "certificate revoked",
    "certificate moved",
    "pause opened",
    "pause lifted",
    "mentor left",
    "mentor has another contact",
    "other thresholds",
    "portal gone",
]


class TestFactsThatComeWhileCertjobWorks:
    """certjob holds the mentor and is about to write a later review day: the fact must not be lost."""

    def test_a_fact_written_while_certjob_holds_the_mentor_is_looked_at_afterwards(
        self, facts: Facts, app: App, database_url: str
    ) -> None:
        """The app waits for certjob, then overwrites its date: -infinity wins."""
        statements = WAKES_THE_MENTOR | WAKES_BOTH | CHANGED_MENTOR
        certjob, lost = facts.connection, []
        with psycopg.connect(database_url, autocommit=True) as observer:
            for number, name in enumerate(RACES):
                scene = furnished(facts, f"hlf-{number}")
                scene.do("UPDATE mentors SET review_on = '-infinity' WHERE id = %(mentor)s")
                with certjob.transaction():
                    scene.do("SELECT FROM mentors WHERE id = %(mentor)s FOR NO KEY UPDATE")
                    other_session = Background(app, statements[name], scene.names)
                    until(lambda: waits_for_a_lock(observer, app))
                    scene.do(f"UPDATE mentors SET review_on = '{LATER}' WHERE id = %(mentor)s")
                other_session.join()
                if "mentor" not in scene.looked_at_now():
                    lost.append(name)

        assert lost == []

    def test_certjob_skips_a_mentor_whose_fact_is_not_committed_yet(self, scene: Scene, app: App) -> None:
        """It neither waits nor reads half a fact; the mentor is due once the app has committed."""
        scene.do(WAKES_THE_MENTOR["certificate inserted"], app)

        free = scene.facts.rows("SELECT id FROM mentors ORDER BY id FOR NO KEY UPDATE SKIP LOCKED")
        app.commit()

        assert free == [(scene.names["other"],)]
        assert scene.looked_at_now() == {"mentor"}

    def test_a_mentor_is_not_deleted_while_certjob_queues_a_push(
        self, scene: Scene, app: App, database_url: str
    ) -> None:
        """The DELETE waits, then sees the intent that was not there when it began."""
        certjob = scene.facts.connection
        certjob.execute("UPDATE mentors SET portal_visible = false")

        with psycopg.connect(database_url, autocommit=True) as observer, certjob.transaction():
            scene.do("SELECT FROM mentors WHERE id = %(mentor)s FOR NO KEY UPDATE")
            other_session = Background(app, "DELETE FROM mentors WHERE id = %(mentor)s", scene.names)
            until(lambda: waits_for_a_lock(observer, app))
            scene.do("INSERT INTO portal_sync_events (mentor_id, visible) VALUES (%(mentor)s, false)")

        with pytest.raises(psycopg.errors.RestrictViolation):
            other_session.join()


EVENT = "INSERT INTO portal_sync_events (mentor_id, visible, status) VALUES (%(mentor)s, false, '{}')"
REMINDER = (
    "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)"
    " VALUES (%(mentor)s, {}, {}, '{}', 'sent')"
)
DIGEST = (
    "INSERT INTO coordinator_digests (coordinator_id, digest_on, status) SELECT id, date '2026-03-10' + {}, '{}'"
    " FROM coordinators"
)
FAILURE = (
    "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error) VALUES (%(mentor)s, false, 'transient', 'x')"
)
PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'illness', 'anna')"
CONTACT = "INSERT INTO mentors (organisation_id, member_no, dynamics_contact_id) SELECT {}, 'twin', {} FROM mentors"

ONCE: dict[str, tuple[list[str], str, list[str]]] = {
    "an open pause for each reason": (
        [],
        PAUSE,
        ["UPDATE mentor_pauses SET lifted_at = now() WHERE id = %(manual_pause)s", PAUSE],
    ),
    "an open event, pending beside blocked": (
        [EVENT.format(status) for status in ("delivered", "delivered", "withdrawn", "withdrawn", "blocked")],
        EVENT.format("pending"),
        [EVENT.format("pending").replace("(mentor)", "(other)")],
    ),
    "an open event, blocked beside pending": ([EVENT.format("pending")], EVENT.format("blocked"), []),
    "a reminder, whatever its date": (
        [REMINDER.format(7, "%(certificate)s", "2026-03-10")],
        REMINDER.format(7, "%(certificate)s", "2027-03-10"),
        [REMINDER.format(14, "%(certificate)s", "2026-03-10"), REMINDER.format(7, "%(other)s", "2026-03-10")],
    ),
    "an unresolved failure": ([FAILURE], FAILURE, ["UPDATE dynamics_sync_failures SET resolved_at = now()", FAILURE]),
    **{
        f"an open digest, {status}": (
            [DIGEST.format(0, "sent"), DIGEST.format(0, status)],
            DIGEST.format(1, "pending"),
            [DIGEST.format(1, "sent")],
        )
        for status in ("pending", "failed", "cancelled")
    },
    "a slug": ([], "INSERT INTO organisations (slug, name) VALUES ('hlf', 'Another')", []),
    "a member number within the organisation": (
        [],
        "INSERT INTO mentors (organisation_id, member_no) SELECT organisation_id, member_no FROM mentors LIMIT 1",
        ["INSERT INTO mentors (organisation_id, member_no) SELECT %(elsewhere)s, member_no FROM mentors LIMIT 1"],
    ),
    "kind and first day of a mentor": (
        [],
        "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
        " SELECT mentor_id, kind, issued_on, expires_on + 1 FROM certificates",
        [],
    ),
    "a contact within the organisation": (
        [],
        CONTACT.format("organisation_id", "dynamics_contact_id") + " WHERE id = %(mentor)s",
        [
            CONTACT.format("%(elsewhere)s", "dynamics_contact_id") + " WHERE id = %(mentor)s",
            CONTACT.format("organisation_id", "NULL").replace("'twin'", "n::text") + ", generate_series(1, 2) AS n"
            " WHERE id = %(mentor)s",
        ],
    ),
}
"""What may exist only once: what is there, what is one too many, and what may be beside it."""


def test_what_may_exist_only_once(scene: Scene) -> None:
    """Two mentors of an organisation with one contact would hide and show each other; across organisations they may."""
    connection = scene.facts.connection
    scene.do("INSERT INTO coordinators (organisation_id, email) VALUES (%(organisation)s, 'k@example.org')")
    taken = []
    for what, (there, too_many, beside) in ONCE.items():
        with connection.transaction(force_rollback=True):
            for statement in there:
                scene.do(statement)
            with suppress(psycopg.errors.UniqueViolation), connection.transaction():
                scene.do(too_many)
                taken.append(what)
            for statement in beside:
                scene.do(statement)

    assert taken == []


REFUSED = (
    "UPDATE certificates SET issued_on = '2026-03-11', expires_on = '2026-03-10'",
    "UPDATE certificates SET expires_on = 'infinity'",
    "UPDATE certificates SET expires_on = '10000-01-01'",
    "UPDATE certificates SET issued_on = '-infinity'",
    "UPDATE certificates SET issued_on = '0001-12-31 BC'",
    "UPDATE certificates SET kind = ''",
    "UPDATE certificates SET status = 'lapsed'",
    "UPDATE organisations SET portal = 'sharepoint'",
    "UPDATE organisations SET slug = 'Hørselshemmedes Landsforbund'",
    "UPDATE organisations SET name = ''",
    "UPDATE organisations SET reminder_thresholds = '{7,null}'",
    "UPDATE organisations SET reminder_thresholds = '{3651}'",
    "UPDATE organisations SET reminder_thresholds = '{-3651}'",
    "UPDATE organisations SET reminder_thresholds = array(SELECT generate_series(1, 51))",
    "UPDATE organisations SET optional_kinds = '{null}'",
    "UPDATE mentors SET locale = 'fr'",
    "UPDATE mentors SET member_no = '' WHERE id = %(mentor)s",
    "UPDATE mentors SET id = '00000000-0000-0000-0000-000000000000' WHERE id = %(other)s",
    "INSERT INTO coordinators (organisation_id, email) VALUES (%(organisation)s, '')",
    "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(other)s, 'certification_expired', 'anna')",
    "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(other)s, 'illness', 'certjob')",
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'certjob' WHERE id = %(manual_pause)s",
    "UPDATE mentor_pauses SET lifted_by = 'anna' WHERE id = %(manual_pause)s",
    "UPDATE mentor_pauses SET reason = '' WHERE id = %(manual_pause)s",
    "UPDATE mentor_pauses SET actor = '' WHERE id = %(manual_pause)s",
    REMINDER.format(7, "%(certificate)s", "2026-03-10").replace("sent", "queued"),
    REMINDER.format(7, "%(certificate)s", "2026-03-10").replace("status", "history").replace("sent", "{}"),
    EVENT.format("sent"),
    "INSERT INTO portal_sync_events (mentor_id, visible, attempts) VALUES (%(mentor)s, true, -1)",
    "INSERT INTO portal_sync_events (mentor_id, visible, version) VALUES (%(mentor)s, true, 0)",
    FAILURE.replace("transient", "odd"),
    "INSERT INTO job_runs (id, command, as_of, host, version, outcome)"
    " VALUES (gen_random_uuid(), 'run', '2026-03-10', 'h', '1', 'fine')",
)


def test_the_database_refuses_what_no_program_should_write(scene: Scene) -> None:
    """With the name of the check, of which there is only one, so that the app can say what is wrong."""
    taken = list(REFUSED)
    for statement in REFUSED:
        try:
            with scene.facts.connection.transaction(force_rollback=True):
                scene.do(statement)
        except psycopg.errors.CheckViolation as error:
            if error.diag.constraint_name:
                taken.remove(statement)

    assert taken == []
    twice = "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace GROUP BY 1"
    assert scene.facts.rows(twice + " HAVING count(*) > 1") == []


def test_the_widest_range_that_programs_can_read_is_taken(scene: Scene) -> None:
    scene.facts.certificate(scene.names["other"], date(9999, 12, 31), issued_on=date(1, 1, 1))

    assert scene.facts.rows("SELECT issued_on FROM certificates WHERE expires_on = '9999-12-31'") == [(date(1, 1, 1),)]


class TestDeleting:
    """Nothing that somebody still waits for, and no history, is lost by a DELETE."""

    HIDDEN = "UPDATE mentors SET left_at = now(), portal_visible = false"
    KEPT: Mapping[str, list[str]] = {
        "pending push": [HIDDEN, EVENT.format("pending")],
        "blocked push": [HIDDEN, EVENT.format("blocked")],
        "pending reminder": [HIDDEN, REMINDER.format(7, "%(certificate)s", "2026-03-10").replace("sent", "pending")],
        "still shown": ["UPDATE mentors SET portal_visible = true"],
        "perhaps still shown": ["UPDATE mentors SET portal_visible = NULL"],
    }

    def test_a_mentor_for_whom_something_is_open_cannot_be_deleted(self, scene: Scene, role: str) -> None:
        """The message names the mentor, the hint the way; also when the queue is hidden from whoever deletes."""
        connection = scene.facts.connection
        grant(connection, role, "GRANT SELECT, DELETE ON mentors TO {}")
        grant(connection, role, "CREATE POLICY all_of_it ON mentors TO {} USING (true)")
        refused = []
        for what, statements in self.KEPT.items():
            for as_whom in (nullcontext(), acting_as(connection, role)):
                with connection.transaction(force_rollback=True):
                    for statement in statements:
                        scene.do(statement)
                    try:
                        with as_whom, connection.transaction():
                            scene.do("DELETE FROM mentors WHERE id = %(mentor)s")
                    except psycopg.errors.RestrictViolation as error:
                        said, hint = error.diag.message_primary or "", error.diag.message_hint or ""
                        refused += [what] if str(scene.names["mentor"]) in said and "left_at" in hint else []

        assert refused == [what for what in self.KEPT for _ in range(2)]

    def test_whom_no_portal_can_show_can_be_deleted(self, scene: Scene) -> None:
        """Without a contact id a hide is blocked for ever; without a portal there is none."""
        scene.facts.connection.execute("UPDATE mentors SET dynamics_contact_id = NULL")
        scene.facts.connection.execute(self.HIDDEN)
        scene.do(EVENT.format("blocked"))
        elsewhere = scene.facts.certified_mentor(scene.names["elsewhere"], TODAY)

        scene.do("DELETE FROM mentors WHERE id = %(mentor)s")
        scene.facts.connection.execute("DELETE FROM mentors WHERE id = %s", (elsewhere,))

        assert scene.facts.rows("SELECT id FROM mentors") == [(scene.names["other"],)]

    def test_a_mentor_who_left_can_be_deleted_once_everything_is_settled(self, scene: Scene) -> None:
        """Their rows go with them; other people's stay."""
        for statement in (
            self.HIDDEN + " WHERE id = %(mentor)s",
            EVENT.format("delivered"),
            "INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, error, resolved_at)"
            " SELECT mentor_id, id, false, 'transient', '503', now() FROM portal_sync_events",
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)"
            " SELECT %(mentor)s, n, %(certificate)s, '2026-03-10', s"
            " FROM unnest('{sent,failed,cancelled,superseded}'::text[]) WITH ORDINALITY AS t (s, n)",
            DEFAULTS["certificate_transitions"][0].join(["INSERT INTO certificate_transitions ", ""]),
            "DELETE FROM mentors WHERE id = %(mentor)s",
        ):
            scene.do(statement)

        tables = ("certificates", "mentor_pauses", "certificate_transitions", "cert_notification_log")
        for table in (*tables, "portal_sync_events", "dynamics_sync_failures"):
            assert scene.facts.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
        assert scene.facts.rows("SELECT id FROM mentors") == [(scene.names["other"],)]
        with pytest.raises(psycopg.errors.IntegrityError):
            scene.do("DELETE FROM organisations WHERE id = %(organisation)s")

    def test_history_does_not_hang_on_what_it_is_about(self, scene: Scene) -> None:
        """A deleted certificate leaves its reminders and its audit, a pruned event the failure that told of it."""
        for statement in (
            REMINDER.format(7, "%(certificate)s", "2026-03-10"),
            DEFAULTS["certificate_transitions"][0].join(["INSERT INTO certificate_transitions ", ""]),
            EVENT.format("delivered"),
            "INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, error, resolved_at)"
            " SELECT mentor_id, id, false, 'transient', '503', now() FROM portal_sync_events",
            "DELETE FROM certificates WHERE id = %(certificate)s",
            "DELETE FROM portal_sync_events",
        ):
            scene.do(statement)

        about = [(scene.names["certificate"],)]
        assert scene.facts.rows("SELECT cert_id FROM cert_notification_log") == about
        assert scene.facts.rows("SELECT certificate_id FROM certificate_transitions") == about
        assert scene.facts.rows("SELECT event_id, error FROM dynamics_sync_failures") == [(None, "503")]


@pytest.fixture
def role(connection: Connection) -> Iterator[str]:
    """A database role of this test's own that may do nothing yet."""
    name = f"certjob_test_{uuid4().hex[:12]}"
    connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(name)))
    yield name
    connection.execute("RESET ROLE")
    connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
    connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def grant(connection: Connection, role: str, statement: str) -> None:
    """Run a GRANT or CREATE POLICY in which {} stands for the role."""
    connection.execute(sql.SQL(statement).format(sql.Identifier(role)))


@contextmanager
def acting_as(connection: Connection, role: str) -> Iterator[None]:
    """Be that role for a while."""
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    try:
        yield
    finally:
        connection.execute("RESET ROLE")


def test_every_trigger_function_runs_as_its_owner_with_a_safe_search_path(connection: Connection) -> None:
    """As invoker it would miss hidden rows; with a search path it could be led astray."""
    rows = connection.execute(
        "SELECT DISTINCT p.oid::regprocedure::text, n.nspname, p.prosecdef, p.proconfig"
        " FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid"
        " JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE NOT t.tgisinternal"
    ).fetchall()

    assert {row[1:3] for row in rows} == {("certjob_private", True)}
    assert all(row[3] in (['search_path=""'], ["search_path=pg_catalog, pg_temp"]) for row in rows)


HIDE, SHOW = (f"Dynamics sync pending — mentor may still be {how} on portal" for how in ("visible", "hidden"))
DOWN = "503 dynamics_unavailable"


def test_the_alerts_are_what_failed_or_has_waited_for_more_than_an_hour(facts: Facts) -> None:
    """Of open events; hides first, the oldest before the others, each once; a mentor without a name by the number."""
    organisation = facts.organisation()
    for number, (visible, status, wanted, error, failures) in enumerate(
        (
            (False, "pending", "59 minutes", None, []),
            (False, "pending", "61 minutes", "released", []),
            (False, "pending", "1 minute", None, ["resolved", "resolved", "open"]),
            (False, "pending", "2 minutes", None, ["resolved"]),
            (True, "pending", "9 days", None, []),
            (True, "pending", "2 hours", None, []),
            (False, "blocked", "5 hours", None, ["open"]),
            (False, "delivered", "5 hours", None, ["open"]),
            (False, "withdrawn", "5 hours", None, ["open"]),
        )
    ):
        mentor = facts.mentor(organisation, member_no=f"M{number}", full_name=None if number == 5 else "Kari")
        ((event,),) = facts.rows(
            "INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, last_error)"
            " VALUES (%s, %s, %s, now() - %s::interval, %s) RETURNING id",
            mentor,
            visible,
            status,
            wanted,
            error,
        )
        for failure in failures:
            facts.connection.execute(
                "INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, error, attempts, resolved_at)"
                " VALUES (%s, %s, false, 'transient', %s, 3, CASE WHEN %s = 'resolved' THEN now() END)",
                (mentor, event, DOWN, failure),
            )

    assert facts.rows(
        "SELECT member_no, full_name, sentence, error, attempts, last_failed_at IS NULL FROM portal_alerts"
    ) == [
        ("M6", "Kari", HIDE, DOWN, 3, False),
        ("M1", "Kari", HIDE, "released", 0, True),
        ("M2", "Kari", HIDE, DOWN, 3, False),
        ("M4", "Kari", SHOW, None, 0, True),
        ("M5", "M5", SHOW, None, 0, True),
    ]


@pytest.mark.parametrize("scope", ["", "FOR ALL TABLES", "FOR TABLES IN SCHEMA public"])
def test_the_failures_are_in_supabases_publication(empty_database_url: str, scope: str) -> None:
    """And nothing else of certjob's; PostgreSQL refuses to add a table to one for all tables."""
    with database.connect(empty_database_url) as connection:
        connection.execute(f"CREATE PUBLICATION supabase_realtime {scope}".encode())

        migrations.migrate(connection)

        published = connection.execute("SELECT tablename FROM pg_publication_tables").fetchall()
        assert ("dynamics_sync_failures",) in published
        assert scope or len(published) == 1
