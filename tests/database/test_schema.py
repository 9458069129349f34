"""The schema on a real PostgreSQL: defaults, triggers, constraints, deletion of mentors, and the view of alerts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


class Records:
    """An organisation with two mentors, of whom the first has one of everything. No one is due."""

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

    def mentors(self, condition: str = "review_on = '-infinity'") -> str:
        """Return which of the two mentors meet a condition; by default those that are due."""
        found = {row[0] for row in self.facts.rows(f"SELECT id FROM mentors WHERE {condition}")}
        return " ".join(name for name in ("mentor", "other") if self.names[name] in found)


@pytest.fixture
def records(facts: Facts) -> Records:
    return Records(facts)


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


def test_insert_needs_only_facts(records: Records) -> None:
    """Intents are due at once. A new mentor is due for a review and counts as visible."""
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
        records.do(statement)

    for table in ("cert_notification_log", "portal_sync_events", "coordinator_digests"):
        due = records.facts.rows(f"SELECT status, next_attempt_at <= now(), attempts FROM {table}")
        assert due == [("pending", True, 0)], table
    due = records.facts.rows("SELECT review_on = '-infinity', portal_visible FROM mentors WHERE member_no = 'M1'")
    assert due == [(True, True)]


def updates(table: str, name: str, *assignments: str) -> list[str]:
    return [f"UPDATE {table} SET {each} WHERE id = %({name})s" for each in assignments]


LIFTED = ("lifted_at = now()", "lifted_at = now(), lifted_by = 'anna'")
CHANGED_CONTACT = updates("mentors", "mentor", "dynamics_contact_id = gen_random_uuid()", "dynamics_contact_id = NULL")
(MOVED,) = updates("mentors", "mentor", "organisation_id = %(elsewhere)s")
(WITHOUT_PORTAL,) = updates("organisations", "organisation", "portal = NULL")
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
REVIEWED = {
    "mentor": [*OF_ONE, MOVED],
    "mentor other": [*OF_BOTH, WITHOUT_PORTAL],
    "other": updates("mentor_pauses", "over", "lifted_at = NULL, lifted_by = NULL"),
    "": [
        # Columns that certjob writes.
        *updates("certificates", "certificate", "status = 'expired'"),
        *updates("mentors", "mentor", "portal_visible = false"),
        *updates("mentor_pauses", "own", "lifted_at = now(), lifted_by = 'certjob'"),
        PAUSE.format("other", "certification_expired", "certjob"),
        "DELETE FROM mentor_pauses WHERE id = %(over)s",
        # Unchanged values.
        "UPDATE certificates SET mentor_id = mentor_id, kind = kind, issued_on = issued_on, expires_on = expires_on,"
        " revoked_at = revoked_at",
        f"{CERTIFICATE} SELECT mentor_id, kind, issued_on, expires_on FROM certificates {UPSERT}",
        "UPDATE mentor_pauses SET mentor_id = mentor_id, reason = reason, lifted_at = lifted_at",
        "UPDATE mentors SET left_at = left_at, email = email, organisation_id = organisation_id,"
        " dynamics_contact_id = dynamics_contact_id",
        "UPDATE organisations SET reminder_thresholds = reminder_thresholds, optional_kinds = optional_kinds,"
        " portal = portal",
        # Other columns, and facts of other mentors.
        *updates("mentors", "mentor", "full_name = 'Ola', member_no = 'M9', locale = 'nn'"),
        *updates("organisations", "organisation", "name = 'New', contact_phone = '22 00 00 00'"),
        *updates("organisations", "elsewhere", "reminder_thresholds = '{10}'"),
        "DELETE FROM certificates WHERE false",
        NEW_PORTAL,
    ],
}
"""Statements by the mentors that are due afterwards."""


def test_changed_fact_makes_exactly_its_mentors_due(records: Records) -> None:
    """The writer cannot see any mentor. A changed contact or portal also makes the visible value unknown."""
    connection, role = records.facts.connection, f"certjob_test_{uuid4().hex[:12]}"
    newcomer = records.facts.mentor(records.names["elsewhere"])
    records.do(f"UPDATE mentors SET portal_visible = false, review_on = '{LATER}'")
    expected = {statement: who for who, statements in REVIEWED.items() for statement in statements}
    unknown = dict.fromkeys(CHANGED_CONTACT, "mentor") | {WITHOUT_PORTAL: "mentor other"}
    due, newly_unknown = {}, {}

    with connection.transaction(force_rollback=True):
        records.do(
            f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA certjob TO {role}; GRANT SELECT, UPDATE ON mentors TO {role};"
            "DROP POLICY reads_own ON mentors"
        )
        for table in ("certificates", "mentor_pauses", "organisations"):
            records.do(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
            records.do(f"CREATE POLICY all_of_it ON {table} TO {role} USING (true)")
        for statement in expected:
            with connection.transaction(force_rollback=True):
                if " mentors " not in statement:
                    records.do(f"SET LOCAL ROLE {role}")
                    assert records.facts.rows("SELECT FROM mentors") == []
                records.do(f"{statement}; RESET ROLE")
                due[statement] = records.mentors()
                newly_unknown[statement] = records.mentors("portal_visible IS NULL")
    records.do(NEW_PORTAL)

    assert due == expected
    assert {each: who for each, who in newly_unknown.items() if who and each != MOVED} == unknown
    assert records.facts.rows("SELECT id FROM mentors WHERE portal_visible IS NULL") == [(newcomer,)]


def test_corrected_address_makes_failed_reminders_due(records: Records) -> None:
    """Other reminders, and those of other mentors, stay as they are."""
    records.do(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, attempts,"
        " next_attempt_at) SELECT id, days, gen_random_uuid(), '2026-03-10', status, 3, now() + interval '6 hours'"
        " FROM (VALUES (%(mentor)s, 7, 'failed'), (%(mentor)s, 14, 'sent'), (%(mentor)s, 30, 'superseded'),"
        " (%(mentor)s, 60, 'cancelled'), (%(other)s, 90, 'failed')) AS r (id, days, status)"
    )
    log = "SELECT status, attempts, next_attempt_at <= now() FROM cert_notification_log ORDER BY threshold_days"
    before = records.facts.rows(log)

    records.do("UPDATE mentors SET left_at = now(), email = email WHERE id = %(mentor)s")
    assert records.facts.rows(log) == before
    records.do("UPDATE mentors SET email = 'right@example.org' WHERE id = %(mentor)s")

    assert records.facts.rows(log) == [("pending", 0, True), *before[1:]]


def race(records: Records, app: App, statement: str, *, certjobs: str) -> None:
    """Run the app's statement while certjob has locked the mentor, then certjob's statement, and commit both."""

    def commit() -> None:
        with app.transaction():
            records.do(statement, app)

    certjob = records.facts.connection
    with psycopg.connect(certjob.info.dsn, autocommit=True) as observer, ThreadPoolExecutor(1) as background:
        with certjob.transaction():
            records.do("SELECT FROM mentors WHERE id = %(mentor)s FOR NO KEY UPDATE")
            other_session = background.submit(commit)
            until(lambda: waits_for_a_lock(observer, app))
            records.do(certjobs)
        other_session.result(20)


def test_fact_written_during_a_review_makes_the_mentor_due(facts: Facts, app: App) -> None:
    """The app waits for certjob's lock and then overwrites its review day."""
    lost = []
    for number, statement in enumerate((*OF_ONE, *OF_BOTH)):
        records = Records(facts, f"hlf-{number}")
        records.do("UPDATE mentors SET review_on = '-infinity' WHERE id = %(mentor)s")
        race(records, app, statement, certjobs=f"UPDATE mentors SET review_on = '{LATER}' WHERE id = %(mentor)s")
        lost += [statement] if "mentor" not in records.mentors() else []

    assert lost == []


LEFT = "UPDATE mentors SET left_at = now(), portal_visible = false WHERE id = %(mentor)s"
DELETE = "DELETE FROM mentors WHERE id = %(mentor)s"


def test_mentor_is_not_deleted_while_certjob_queues_a_push(records: Records, app: App) -> None:
    """The DELETE waits for the lock and then finds the new intent."""
    records.do("UPDATE mentors SET portal_visible = false")

    with pytest.raises(psycopg.errors.RestrictViolation):
        race(records, app, DELETE, certjobs=EVENT.format("pending"))


@dataclass(frozen=True, kw_only=True)
class OnlyOne:
    """A second row that is rejected beside the first, and a similar one that is allowed."""

    first: str = ""
    second: str
    allowed: str = ""


ONLY_ONE = {
    "open pause of a reason": OnlyOne(
        first=ILL, second=ILL, allowed=f"UPDATE mentor_pauses SET lifted_at = now(); {ILL}"
    ),
    "pending push beside a blocked one": OnlyOne(
        first=EVENT.format("blocked"),
        second=EVENT.format("pending"),
        allowed=EVENT.format("pending").replace("(mentor)", "(other)"),
    ),
    "blocked push beside a pending one": OnlyOne(
        first=EVENT.format("pending"),
        second=EVENT.format("blocked"),
        allowed="; ".join(map(EVENT.format, 2 * ("delivered", "withdrawn"))),
    ),
    "reminder of a threshold": OnlyOne(
        first=SENT,
        second=SENT.replace("2026", "2027"),
        allowed=SENT.replace("7", "14", 1) + "; " + SENT.replace("(mentor)", "(other)"),
    ),
    "unresolved failure": OnlyOne(
        first=FAILURE,
        second=FAILURE,
        allowed=f"UPDATE dynamics_sync_failures SET resolved_at = now(); {FAILURE}",
    ),
    **{
        f"digest beside a {status} one": OnlyOne(
            first=DIGEST.format(1, status), second=DIGEST.format(2, "pending"), allowed=DIGEST.format(2, "sent")
        )
        for status in ("pending", "failed", "cancelled")
    },
    "slug": OnlyOne(second="INSERT INTO organisations (slug, name) VALUES ('hlf', 'Another')"),
    "member number": OnlyOne(second=TWIN.format("member_no", "NULL"), allowed=ELSEWHERE),
    "certificate of a kind and issue date": OnlyOne(
        second=f"{CERTIFICATE} SELECT mentor_id, kind, issued_on, expires_on + 1 FROM certificates"
    ),
    "contact ID": OnlyOne(
        first=TWIN.format("'none'", "NULL"),
        second=TWIN.format("'twin'", "dynamics_contact_id"),
        allowed=TWIN.format("'another'", "NULL"),
    ),
}


def test_second_row_is_rejected_by_a_named_constraint(records: Records) -> None:
    """The app shows the name of the constraint, so each name exists once."""
    connection = records.facts.connection
    records.do(COORDINATOR.format("k@example.org"))
    for what, rows in ONLY_ONE.items():
        with connection.transaction(force_rollback=True):
            records.do(rows.first)
            with pytest.raises(psycopg.IntegrityError) as rejected, connection.transaction():
                records.do(rows.second)
            assert rejected.value.diag.constraint_name, what
            records.do(rows.allowed)

    twice = "SELECT conname FROM pg_constraint WHERE connamespace = 'certjob'::regnamespace GROUP BY 1"
    assert records.facts.rows(twice + " HAVING count(*) > 1") == []


INVALID = (
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


def test_invalid_value_is_rejected_by_a_named_constraint(records: Records) -> None:
    """The widest range of dates is accepted."""
    records.facts.certificate(records.names["other"], date(9999, 12, 31), issued_on=date(1, 1, 1))

    for statement in INVALID:
        with pytest.raises(psycopg.IntegrityError) as rejected, records.facts.connection.transaction():
            records.do(statement)
        assert rejected.value.diag.constraint_name, statement


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(f"{LEFT}; {EVENT.format('pending')}", id="pending push"),
        pytest.param(f"{LEFT}; {EVENT.format('blocked')}", id="blocked push"),
        pytest.param(f"{LEFT}; {SENT.replace('sent', 'pending')}", id="pending reminder"),
        pytest.param("UPDATE mentors SET portal_visible = true", id="visible"),
        pytest.param("UPDATE mentors SET portal_visible = NULL", id="unknown on the portal"),
    ],
)
def test_mentor_with_open_work_cannot_be_deleted(records: Records, state: str) -> None:
    """The error names the mentor, and the hint says how to delete."""
    records.do(state)

    with pytest.raises(psycopg.errors.RestrictViolation, match=str(records.names["mentor"])) as refused:
        records.do(DELETE)

    assert "set left_at" in (refused.value.diag.message_hint or "")


def test_mentor_who_never_had_a_contact_can_be_deleted(facts: Facts) -> None:
    """After a removed contact, the portal may still show it, so the next review comes first."""
    new, former = (facts.mentor(facts.organisation(slug), contact_id=None) for slug in ("hlf", "nhf"))
    for contact in (uuid4(), None):
        facts.rows("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s RETURNING 1", contact, former)

    facts.rows("DELETE FROM mentors WHERE id = %s RETURNING 1", new)
    with pytest.raises(psycopg.errors.RestrictViolation, match="may still be shown"):
        facts.rows("DELETE FROM mentors WHERE id = %s RETURNING 1", former)


def test_history_outlives_its_certificate_and_event(records: Records) -> None:
    """A deleted certificate leaves its reminders and its audit, a pruned event leaves its failure."""
    records.do("; ".join((SENT, TRANSITION, EVENT.format("delivered"), FAILURE)))
    records.do("UPDATE dynamics_sync_failures SET event_id = (SELECT id FROM portal_sync_events)")

    records.do("DELETE FROM certificates; DELETE FROM portal_sync_events")

    for column in ("cert_id FROM cert_notification_log", "certificate_id FROM certificate_transitions"):
        assert records.facts.rows(f"SELECT {column}") == [(records.names["certificate"],)]
    assert records.facts.rows("SELECT event_id, error FROM dynamics_sync_failures") == [(None, "x")]


def test_mentor_without_open_work_is_deleted_with_all_rows(records: Records) -> None:
    """Rows of other mentors stay. A blocked hide without a contact, or an organisation without a portal, allows it."""
    elsewhere = records.facts.certified_mentor(records.names["elsewhere"], TODAY)
    others = EVENT.format("pending").replace("(mentor)", "(other)")
    claim = "UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + '1 minute'"
    records.do("; ".join((SENT, TRANSITION, FAILURE, others, claim, EVENT.format("delivered"))))
    records.do(f"UPDATE dynamics_sync_failures SET resolved_at = now(); {CHANGED_CONTACT[-1]}; {LEFT}")

    records.do(f"{EVENT.format('blocked')}; {DELETE}")
    records.facts.connection.execute("DELETE FROM mentors WHERE id = %s", (elsewhere,))

    for table, number in (("certificate_transitions", 0), ("cert_notification_log", 0), ("portal_sync_events", 1)):
        assert records.facts.rows(f"SELECT count(*) FROM {table}") == [(number,)], table
    assert records.facts.rows("SELECT id FROM mentors") == [(records.names["other"],)]
    with pytest.raises(psycopg.errors.IntegrityError):
        records.do("DELETE FROM organisations WHERE id = %(organisation)s")


def test_alerts_are_failed_pushes_and_those_older_than_an_hour(facts: Facts) -> None:
    """A time in the future counts as old, because a wrong clock wrote it. A mentor without a name has a number."""
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
