"""The schema on a real PostgreSQL: defaults, triggers, constraints, what may be deleted, the view of alerts."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.support.facts import TODAY, Facts
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

LATER = "2030-01-01"
"""A review day that no trigger writes."""


class Scene:
    """An organisation with a mentor who has one of everything and another mentor beside; nobody is due."""

    def __init__(self, facts: Facts, slug: str = "hlf") -> None:
        self.facts = facts
        organisation, elsewhere = facts.organisation(slug), facts.organisation(f"{slug}-elsewhere", portal=None)
        mentor, other = facts.mentor(organisation), facts.mentor(organisation)
        self.names = {"organisation": organisation, "elsewhere": elsewhere, "mentor": mentor, "other": other}
        self.names["certificate"] = facts.certificate(mentor, TODAY)
        self.names["pause"] = facts.pause(mentor)
        for name, who in (("own", mentor), ("over", other)):
            self.names[name] = facts.pause(who, reason="certification_expired", actor="certjob")
        self.do("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'certjob' WHERE id = %(over)s")
        self.do(f"UPDATE mentors SET review_on = '{LATER}'")

    def do(self, statements: str, connection: psycopg.Connection[Any] | None = None) -> None:
        cursor = psycopg.ClientCursor(connection or self.facts.connection)  # takes several statements
        cursor.execute(statements.encode(), self.names)

    def mentors(self, condition: str) -> str:
        """Which of the two mentors it holds for."""
        found = {row[0] for row in self.facts.rows(f"SELECT id FROM mentors WHERE {condition}")}
        return " ".join(name for name in ("mentor", "other") if self.names[name] in found)


@pytest.fixture
def scene(facts: Facts) -> Scene:
    return Scene(facts)


LOOKED_AT = "review_on = '-infinity'"


EVENT = "INSERT INTO portal_sync_events (mentor_id, visible, status) VALUES (%(mentor)s, false, '{}')"
SENT = (
    "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)"
    " VALUES (%(mentor)s, 7, %(certificate)s, '2026-03-10', 'sent')"
)
DIGEST = (
    "INSERT INTO coordinator_digests (coordinator_id, digest_on, status) SELECT id, '2026-03-1{}', '{}'"
    " FROM coordinators"
)
FAILURE = (
    "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error) VALUES (%(mentor)s, false, 'transient', 'x')"
)
TRANSITION = (
    "INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of)"
    " VALUES (%(certificate)s, %(mentor)s, 'valid', 'expired', '2026-03-10')"
)
COORDINATOR = "INSERT INTO coordinators (organisation_id, email) VALUES (%(organisation)s, '{}')"
CERTIFICATE = "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
UPSERT = "ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE SET expires_on = excluded.expires_on"
PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%({})s, '{}', '{}')"
ILL = PAUSE.format("other", "illness", "anna")
TWIN = (
    "INSERT INTO mentors (organisation_id, member_no, dynamics_contact_id) SELECT organisation_id, {}, {}"
    " FROM mentors WHERE id = %(mentor)s"
)
ELSEWHERE = TWIN.replace("SELECT organisation_id", "SELECT %(elsewhere)s").format("member_no", "NULL")


def test_every_table_takes_an_insert_of_its_facts_alone(scene: Scene) -> None:
    """An intent is due at once, and so is the review of a new mentor, who counts as shown."""
    for statement in (
        "INSERT INTO organisations (slug, name) VALUES ('new', 'New')",
        COORDINATOR.format("k@example.org"),
        "INSERT INTO mentors (organisation_id, member_no) VALUES (%(organisation)s, 'M1')",
        f"{CERTIFICATE} VALUES (%(other)s, 'likeperson', '2024-01-01', '2024-01-01')",
        ILL,
        TRANSITION,
        SENT.replace(", status", "").replace(", 'sent'", ""),
        EVENT.replace(", status", "").replace(", '{}'", ""),
        FAILURE,
        "INSERT INTO coordinator_digests (coordinator_id, digest_on) SELECT id, '2026-03-10' FROM coordinators",
        "INSERT INTO job_runs (id, command, as_of, host, version) VALUES (gen_random_uuid(), 'x', now(), 'h', '1')",
    ):
        scene.do(statement)

    for table in ("cert_notification_log", "portal_sync_events", "coordinator_digests"):
        due = scene.facts.rows(f"SELECT status, next_attempt_at <= now(), attempts FROM {table}")
        assert due == [("pending", True, 0)], table
    due = scene.facts.rows("SELECT review_on = '-infinity', portal_visible FROM mentors WHERE member_no = 'M1'")
    assert due == [(True, True)]


def updates(table: str, name: str, *assignments: str) -> list[str]:
    return [f"UPDATE {table} SET {each} WHERE id = %({name})s" for each in assignments]


LIFTED = ("lifted_at = now()", "lifted_at = now(), lifted_by = 'anna'")
CHANGED_CONTACT = updates("mentors", "mentor", "dynamics_contact_id = gen_random_uuid()", "dynamics_contact_id = NULL")
(LEFT_FOR_ANOTHER,) = updates("mentors", "mentor", "organisation_id = %(elsewhere)s")
(PORTAL_GONE,) = updates("organisations", "organisation", "portal = NULL")
(NEW_PORTAL,) = updates("organisations", "elsewhere", "portal = 'dynamics'")
OF_ONE = [
    f"{CERTIFICATE} VALUES (%(mentor)s, 'first_aid', '2025-01-01', '2027-01-01')",
    f"{CERTIFICATE} VALUES (%(mentor)s, 'likeperson', '2024-01-01', '2027-01-01') {UPSERT}",
    *updates("certificates", "certificate", "kind = 'first_aid'", "issued_on = '2024-01-02'"),
    *updates("certificates", "certificate", "expires_on = '2027-01-01'", "revoked_at = now()"),
    "DELETE FROM certificates WHERE id = %(certificate)s",
    PAUSE.format("mentor", "leave", "anna"),
    *updates("mentor_pauses", "pause", *LIFTED),
    *updates("mentor_pauses", "own", *LIFTED),
    "DELETE FROM mentor_pauses WHERE id = %(pause)s",
    "DELETE FROM mentor_pauses WHERE id = %(own)s",
    *updates("mentors", "mentor", "left_at = now()", "email = 'new@x.org'", "email = NULL"),
    *CHANGED_CONTACT,
]
OF_BOTH = [
    f"{CERTIFICATE} SELECT id, 'first_aid', '2025-01-01', '2027-01-01' FROM mentors"
    " WHERE organisation_id = %(organisation)s",
    *updates("certificates", "certificate", "mentor_id = %(other)s"),
    *updates("mentor_pauses", "pause", "mentor_id = %(other)s"),
    *updates("organisations", "organisation", "reminder_thresholds = '{10}'", "reminder_thresholds = '{}'"),
    *updates("organisations", "organisation", "optional_kinds = '{first_aid}'"),
]
CHANGES = {
    "mentor": [*OF_ONE, LEFT_FOR_ANOTHER],
    "mentor other": [*OF_BOTH, PORTAL_GONE],
    "other": updates("mentor_pauses", "over", "lifted_at = NULL, lifted_by = NULL"),
    "": [
        # What certjob itself writes.
        *updates("certificates", "certificate", "status = 'expired'"),
        *updates("mentors", "mentor", "portal_visible = false"),
        *updates("mentor_pauses", "own", "lifted_at = now(), lifted_by = 'certjob'"),
        PAUSE.format("other", "certification_expired", "certjob"),
        "DELETE FROM mentor_pauses WHERE id = %(over)s",
        # What stays as it was.
        "UPDATE certificates SET mentor_id = mentor_id, kind = kind, issued_on = issued_on, expires_on = expires_on,"
        " revoked_at = revoked_at",
        f"{CERTIFICATE} SELECT mentor_id, kind, issued_on, expires_on FROM certificates {UPSERT}",
        "UPDATE mentor_pauses SET mentor_id = mentor_id, reason = reason, lifted_at = lifted_at",
        "UPDATE mentors SET left_at = left_at, email = email, organisation_id = organisation_id,"
        " dynamics_contact_id = dynamics_contact_id",
        "UPDATE organisations SET reminder_thresholds = reminder_thresholds, optional_kinds = optional_kinds,"
        " portal = portal",
        # What is no fact, or none of theirs.
        *updates("mentors", "mentor", "full_name = 'Ola', member_no = 'M9', locale = 'nn'"),
        *updates("organisations", "organisation", "name = 'New', contact_phone = '22 00 00 00'"),
        *updates("organisations", "elsewhere", "reminder_thresholds = '{10}'"),
        "DELETE FROM certificates WHERE false",
        NEW_PORTAL,
    ],
}


def test_a_changed_fact_makes_certjob_look_also_when_the_mentors_are_hidden_from_the_writer(scene: Scene) -> None:
    """At whoever it is about. Only a changed contact or portal makes the shown value unknown: what is wanted is pushed.

    Policies hide every mentor from the role, and the private schema is closed to it.
    """
    connection, role = scene.facts.connection, f"certjob_test_{uuid4().hex[:12]}"
    newcomer = scene.facts.mentor(scene.names["elsewhere"])
    scene.do(f"UPDATE mentors SET portal_visible = false, review_on = '{LATER}'")
    looked_at = {statement: who for who, statements in CHANGES.items() for statement in statements}
    unknown = dict.fromkeys(CHANGED_CONTACT, "mentor") | {PORTAL_GONE: "mentor other"}
    found, newly_unknown = {}, {}

    with connection.transaction(force_rollback=True):
        scene.do(
            f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA certjob TO {role}; GRANT SELECT, UPDATE ON mentors TO {role}"
        )
        scene.do("DROP POLICY reads_own ON mentors")
        for table in ("certificates", "mentor_pauses", "organisations"):
            scene.do(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
            scene.do(f"CREATE POLICY all_of_it ON {table} TO {role} USING (true)")
        for statement in looked_at:
            with connection.transaction(force_rollback=True):
                if " mentors " not in statement:
                    scene.do(f"SET LOCAL ROLE {role}")
                    assert scene.facts.rows("SELECT FROM mentors") == []
                scene.do(f"{statement}; RESET ROLE")
                found[statement] = scene.mentors(LOOKED_AT)
                newly_unknown[statement] = scene.mentors("portal_visible IS NULL")
    scene.do(NEW_PORTAL)

    assert found == looked_at
    assert {each: who for each, who in newly_unknown.items() if who and each != LEFT_FOR_ANOTHER} == unknown
    assert scene.facts.rows("SELECT id FROM mentors WHERE portal_visible IS NULL") == [(newcomer,)]


def test_a_corrected_address_makes_failed_reminders_due_at_once(scene: Scene) -> None:
    """Those of this mentor, and those that failed."""
    scene.do(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, attempts,"
        " next_attempt_at) SELECT id, days, gen_random_uuid(), '2026-03-10', status, 3, now() + interval '6 hours'"
        " FROM (VALUES (%(mentor)s, 7, 'failed'), (%(mentor)s, 14, 'sent'), (%(mentor)s, 30, 'superseded'),"
        " (%(mentor)s, 60, 'cancelled'), (%(other)s, 90, 'failed')) AS r (id, days, status)"
    )
    log = "SELECT status, attempts, next_attempt_at <= now() FROM cert_notification_log ORDER BY threshold_days"
    before = scene.facts.rows(log)

    scene.do("UPDATE mentors SET left_at = now(), email = email WHERE id = %(mentor)s")
    assert scene.facts.rows(log) == before
    scene.do("UPDATE mentors SET email = 'right@example.org' WHERE id = %(mentor)s")

    assert scene.facts.rows(log) == [("pending", 0, True), *before[1:]]


def race(scene: Scene, app: App, statement: str, *, certjobs: str) -> None:
    """Hold the mentor as certjob does, let the app begin its statement, do certjob's own, and commit both."""

    def commit() -> None:
        with app.transaction():
            scene.do(statement, app)

    certjob = scene.facts.connection
    with psycopg.connect(certjob.info.dsn, autocommit=True) as observer, ThreadPoolExecutor(1) as background:
        with certjob.transaction():
            scene.do("SELECT FROM mentors WHERE id = %(mentor)s FOR NO KEY UPDATE")
            other_session = background.submit(commit)
            until(lambda: waits_for_a_lock(observer, app))
            scene.do(certjobs)
        other_session.result(20)


def test_a_fact_written_while_certjob_holds_the_mentor_is_looked_at_afterwards(facts: Facts, app: App) -> None:
    """The app waits for certjob, then overwrites its date: -infinity wins, though the mentor was due already."""
    lost = []
    for number, statement in enumerate((*OF_ONE, *OF_BOTH)):
        scene = Scene(facts, f"hlf-{number}")
        scene.do("UPDATE mentors SET review_on = '-infinity' WHERE id = %(mentor)s")
        race(scene, app, statement, certjobs=f"UPDATE mentors SET review_on = '{LATER}' WHERE id = %(mentor)s")
        lost += [statement] if "mentor" not in scene.mentors(LOOKED_AT) else []

    assert lost == []


def test_a_mentor_is_not_deleted_while_certjob_queues_a_push(scene: Scene, app: App) -> None:
    """The DELETE waits, then sees the intent that was not there when it began."""
    scene.do("UPDATE mentors SET portal_visible = false")

    with pytest.raises(psycopg.errors.RestrictViolation):
        race(scene, app, DELETE, certjobs=EVENT.format("pending"))


NOT_SENT = ("pending", "failed", "cancelled")
ONCE = [
    # What is there, what is one too many, and what may be beside it.
    (ILL, ILL, f"UPDATE mentor_pauses SET lifted_at = now(); {ILL}"),
    (EVENT.format("blocked"), EVENT.format("pending"), EVENT.format("pending").replace("(mentor)", "(other)")),
    (EVENT.format("pending"), EVENT.format("blocked"), "; ".join(map(EVENT.format, 2 * ("delivered", "withdrawn")))),
    (SENT, SENT.replace("2026", "2027"), SENT.replace("7", "14", 1) + "; " + SENT.replace("(mentor)", "(other)")),
    (FAILURE, FAILURE, f"UPDATE dynamics_sync_failures SET resolved_at = now(); {FAILURE}"),
    *((DIGEST.format(1, status), DIGEST.format(2, "pending"), DIGEST.format(2, "sent")) for status in NOT_SENT),
    ("", "INSERT INTO organisations (slug, name) VALUES ('hlf', 'Another')", ""),
    ("", TWIN.format("member_no", "NULL"), ELSEWHERE),
    ("", f"{CERTIFICATE} SELECT mentor_id, kind, issued_on, expires_on + 1 FROM certificates", ""),
    # With one contact they would hide and show each other.
    (TWIN.format("'none'", "NULL"), TWIN.format("'twin'", "dynamics_contact_id"), TWIN.format("'nobody'", "NULL")),
]


REFUSED = (
    *updates("certificates", "certificate", "issued_on = '2026-03-11'", "expires_on = 'infinity'", "status = 'lapsed'"),
    *updates("certificates", "certificate", "expires_on = '10000-01-01'", "issued_on = '0001-12-31 BC'"),
    *updates("organisations", "organisation", "reminder_thresholds = '{7,null}'", "reminder_thresholds = '{3651}'"),
    *updates("organisations", "organisation", "reminder_thresholds = '{-3651}'", "optional_kinds = '{null}'"),
    *updates("organisations", "organisation", "reminder_thresholds = array(SELECT generate_series(1, 51))"),
    *updates("organisations", "organisation", "portal = 'sharepoint'", "slug = 'Hørsels Landsforbund'"),
    *updates("mentors", "other", "id = '00000000-0000-0000-0000-000000000000'", "locale = 'fr'"),
    COORDINATOR.format(""),
    PAUSE.format("other", "certification_expired", "anna"),
    PAUSE.format("other", "illness", "certjob"),
    *updates("mentor_pauses", "pause", "lifted_at = now(), lifted_by = 'certjob'", "lifted_by = 'anna'"),
    SENT.replace("status", "history").replace("sent", "{}"),
)


def test_the_database_refuses_what_may_exist_only_once_and_what_no_program_should_write(scene: Scene) -> None:
    """With the name of the check, of which there is only one, so that the app can say what is wrong."""
    connection, taken = scene.facts.connection, []
    scene.facts.certificate(scene.names["other"], date(9999, 12, 31), issued_on=date(1, 1, 1))  # the widest range
    scene.do(COORDINATOR.format("k@example.org"))
    for there, refused, beside in (*ONCE, *(("", statement, "") for statement in REFUSED)):
        with connection.transaction(force_rollback=True):
            scene.do(there)
            try:
                with connection.transaction():
                    scene.do(refused)
                taken.append(refused)
            except psycopg.IntegrityError as error:
                taken += [] if error.diag.constraint_name else [refused]
            scene.do(beside)

    assert taken == []
    twice = "SELECT conname FROM pg_constraint WHERE connamespace = 'certjob'::regnamespace GROUP BY 1"
    assert scene.facts.rows(twice + " HAVING count(*) > 1") == []


LEFT = "UPDATE mentors SET left_at = now(), portal_visible = false WHERE id = %(mentor)s"
DELETE = "DELETE FROM mentors WHERE id = %(mentor)s"


def test_a_mentor_for_whom_something_is_open_cannot_be_deleted(scene: Scene) -> None:
    """The message names the mentor, the hint the way."""
    for what in (
        f"{LEFT}; {EVENT.format('pending')}",
        f"{LEFT}; {EVENT.format('blocked')}",
        f"{LEFT}; {SENT.replace('sent', 'pending')}",
        "UPDATE mentors SET portal_visible = true",
        "UPDATE mentors SET portal_visible = NULL",
    ):
        with pytest.raises(psycopg.errors.RestrictViolation) as refused, scene.facts.connection.transaction():
            scene.do(f"{what}; {DELETE}")
        said = f"{refused.value} {refused.value.diag.message_hint}"
        assert (str(scene.names["mentor"]) in said, "set left_at" in said) == (True, True), what


def test_a_mentor_who_left_can_be_deleted_once_everything_is_settled(scene: Scene) -> None:
    """Their rows go with them, other people's stay; whom no portal can show need not have left.

    History does not hang on what it is about: a deleted certificate leaves its reminders and its audit, a pruned event
    the failure that told of it. A hide without a contact is blocked for ever, and holds nobody.
    """
    elsewhere = scene.facts.certified_mentor(scene.names["elsewhere"], TODAY)
    scene.do("; ".join((SENT, TRANSITION, EVENT.format("delivered"), FAILURE)))
    scene.do("UPDATE dynamics_sync_failures SET resolved_at = now(), event_id = (SELECT id FROM portal_sync_events)")
    scene.do("DELETE FROM certificates; DELETE FROM portal_sync_events")
    for asked in ("cert_id FROM cert_notification_log", "certificate_id FROM certificate_transitions"):
        assert scene.facts.rows(f"SELECT {asked}") == [(scene.names["certificate"],)]
    assert scene.facts.rows("SELECT event_id, error FROM dynamics_sync_failures") == [(None, "x")]

    others = EVENT.format("pending").replace("(mentor)", "(other)")
    claim = "UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + '1 minute'"
    scene.do(f"{others}; {claim}; {EVENT.format('delivered')}")
    scene.do(f"{CHANGED_CONTACT[-1]}; {LEFT}; {EVENT.format('blocked')}; {DELETE}")
    scene.facts.connection.execute("DELETE FROM mentors WHERE id = %s", (elsewhere,))

    for table, number in (("certificate_transitions", 0), ("cert_notification_log", 0), ("portal_sync_events", 1)):
        assert scene.facts.rows(f"SELECT count(*) FROM {table}") == [(number,)], table
    assert scene.facts.rows("SELECT id FROM mentors") == [(scene.names["other"],)]
    with pytest.raises(psycopg.errors.IntegrityError):
        scene.do("DELETE FROM organisations WHERE id = %(organisation)s")


def test_the_alerts_are_what_failed_or_has_waited_for_more_than_an_hour(facts: Facts) -> None:
    """Of open events; hides first, the oldest before the others, each once; a mentor without a name by the number.

    What is wanted in the future was written by a wrong clock.
    """
    facts.connection.execute(
        "INSERT INTO mentors (organisation_id, member_no, full_name, review_on)"
        f" SELECT '{facts.organisation()}', 'M' || n, CASE WHEN n <> 5 THEN 'Kari' END, '9999-12-31'"
        " FROM generate_series(0, 9) AS n;"
        "INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, last_error)"
        " SELECT m.id, visible, status, now() - ago::interval, 'no' FROM mentors AS m JOIN (VALUES"
        " ('M0', false, 'pending', '59 minutes'), ('M1', false, 'pending', '61 minutes'),"
        " ('M2', false, 'pending', '1 minute'), ('M3', false, 'pending', '2 minutes'),"
        " ('M4', true, 'pending', '9 days'), ('M5', true, 'pending', '2 hours'),"
        " ('M6', false, 'blocked', '5 hours'), ('M7', false, 'delivered', '5 hours'),"
        " ('M8', false, 'withdrawn', '5 hours'), ('M9', true, 'pending', '-61 minutes')"
        ") AS v (number, visible, status, ago) ON m.member_no = number;"
        "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error, attempts, resolved_at) SELECT m.id,"
        " false, 'transient', '503', 3, CASE WHEN is_resolved THEN now() END FROM mentors AS m JOIN (VALUES"
        " ('M2', true), ('M2', true), ('M2', false), ('M3', true), ('M6', false), ('M7', false), ('M8', false)"
        ") AS f (number, is_resolved) ON m.member_no = number".encode()
    )
    hide, show = (f"Dynamics sync pending — mentor may still be {how} on portal" for how in ("visible", "hidden"))

    alerts = facts.rows(
        "SELECT member_no, full_name, sentence, error, calls, last_failed_at IS NULL FROM alerts"
        " WHERE cause <> 'hide_by_hand' ORDER BY kind DESC, since"
    )
    assert alerts == [
        ("M6", "Kari", hide, "503", 3, False),
        ("M1", "Kari", hide, "no", 0, True),
        ("M2", "Kari", hide, "503", 3, False),
        ("M4", "Kari", show, "no", 0, True),
        ("M5", "M5", show, "no", 0, True),
        ("M9", "Kari", show, "no", 0, True),
    ]
