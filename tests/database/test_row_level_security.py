"""Coordinators read and change the facts of their own organisation, but no derived columns; and docs/dashboard.md."""

import json
import re

import pytest

from tests.conftest import Certjob
from tests.database.supabase import DENIED, Organisation, acting, logged_in
from tests.support.docs import read

CERTIFICATE = (
    "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
    " VALUES (%(mentor)s, 'x', '2026-03-01', '2028-03-01')"
)
PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'leave', %(me)s)"

READ_BY_ORGANISATION = (
    *("organisations", "coordinators", "mentors", "certificates", "mentor_pauses", "certificate_transitions"),
    *("cert_notification_log", "portal_sync_events", "dynamics_sync_failures", "open_pushes", "alerts"),
)


def test_coordinator_reads_rows_of_the_own_organisation_only(ours: Organisation, theirs: Organisation) -> None:
    """Each table has a row of each organisation. The app's server sees both, a visitor none."""
    for table in READ_BY_ORGANISATION:
        assert len(ours.facts.rows(f"SELECT 1 FROM {table}")) == 2, table
        assert len(ours.asks(f"SELECT 1 FROM {table}")) == 1, table
    assert ours.asks("SELECT id FROM mentors") == [(ours.mentor,)]
    assert theirs.asks("SELECT organisation_id FROM alerts") == [(theirs.id,)]
    with acting(ours.api, "service_role"):
        assert ours.api.execute("SELECT FROM mentors").rowcount == 2
    with pytest.raises(DENIED), acting(ours.api, "anon"):
        ours.api.execute("SELECT FROM certjob.mentors")


def test_app_receives_open_failures_and_a_delete_only_with_the_key(ours: Organisation) -> None:
    """Realtime sends changes to those who may read the row, but a DELETE to every subscriber."""
    key = "SELECT relreplident::text FROM pg_class WHERE relname = 'dynamics_sync_failures'"
    assert ours.facts.rows("SELECT tablename FROM pg_publication_tables") == [("dynamics_sync_failures",)]
    assert ours.facts.rows(key) == [("d",)]
    assert len(ours.asks("SELECT id FROM dynamics_sync_failures")) == 1

    ours.facts.connection.execute("UPDATE dynamics_sync_failures SET resolved_at = now()")

    assert ours.asks("SELECT id FROM dynamics_sync_failures") == []


ALLOWED = (
    CERTIFICATE,
    "UPDATE certificates SET issued_on = '2020-01-01', expires_on = '2028-04-01', revoked_at = now(), kind = 'y'",
    "UPDATE mentors SET full_name = 'Kari', email = 'k@example.org', locale = 'nn', left_at = now(),"
    " dynamics_contact_id = gen_random_uuid()",
    PAUSE,
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = %(me)s",  # a colleague's pause, in their own name
)


def test_coordinator_changes_facts_of_the_own_organisation(ours: Organisation, theirs: Organisation) -> None:
    """An UPDATE without a WHERE reaches only their own rows."""
    ours.facts.pause(theirs.mentor, reason="certification_expired", actor="certjob")

    for statement in ALLOWED:
        with ours.api.transaction(force_rollback=True), logged_in(ours.api, ours.coordinator):
            changed = ours.api.execute(statement.encode(), {"me": str(ours.coordinator), "mentor": ours.mentor})
            assert changed.rowcount == 1, statement


REJECTED = (
    "UPDATE mentors SET review_on = 'infinity'",
    "UPDATE certificates SET status = 'valid'",
    "DELETE FROM certificates",
    PAUSE.replace("leave", "certification_expired"),
    PAUSE.replace("%(me)s", "'somebody'"),
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'somebody' WHERE reason = 'illness'",
    CERTIFICATE.replace("mentor)s", "other)s"),
    "UPDATE certificates SET mentor_id = %(other)s",
    PAUSE.replace("mentor)s", "other)s"),
)
NOT_FOUND = (
    "UPDATE mentors SET full_name = 'x' WHERE id = %(other)s RETURNING 1",
    "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %(other)s RETURNING 1",
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = %(me)s WHERE mentor_id = %(other)s RETURNING 1",
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = %(me)s WHERE actor = 'certjob' RETURNING 1",
    "UPDATE mentor_pauses SET lifted_by = %(me)s WHERE reason = 'over' RETURNING 1",
)


def test_coordinator_cannot_change_other_rows_or_derived_columns(ours: Organisation, theirs: Organisation) -> None:
    """Pauses of certjob, lifted pauses and a colleague's name are protected as well."""
    ours.facts.pause(ours.mentor, reason="certification_expired", actor="certjob")
    over = {"reason": "over", "actor": "somebody", "lifted_at": "2026-03-01", "lifted_by": "somebody"}
    ours.facts.insert("mentor_pauses", mentor_id=ours.mentor, **over)

    for statement in REJECTED:
        with pytest.raises(DENIED):
            ours.asks(statement, other=theirs.mentor)
    for statement in NOT_FOUND:
        assert ours.asks(statement, other=theirs.mentor) == [], statement


def test_only_the_claim_sub_and_the_table_identify_a_coordinator(ours: Organisation) -> None:
    """Other claims have no effect. A removed coordinator loses access although the token is still valid."""
    stranger = {"sub": "6f1f6a2e-3c0b-4b0a-9d55-0d5a6a3c9b11", "app_metadata": {"organisation_id": str(ours.id)}}
    for claims in ({}, stranger, {"user_id": str(ours.coordinator), "email": "eva@example.org"}):
        with acting(ours.api, "authenticated", **claims):
            assert ours.api.execute("SELECT FROM mentors").rowcount == 0
        with pytest.raises(DENIED), acting(ours.api, "authenticated", **claims):
            ours.api.execute(CERTIFICATE.encode(), {"mentor": ours.mentor})

    ours.facts.connection.execute("DELETE FROM coordinators")

    assert ours.asks("SELECT id FROM mentors") == []
    with pytest.raises(DENIED):
        ours.asks(PAUSE)


@pytest.mark.usefixtures("theirs")
def test_view_lists_what_the_command_lists(ours: Organisation) -> None:
    """With the same times, for a failed reminder that someone has acknowledged. After 14 days it is not an alert."""
    facts = ours.facts
    facts.connection.execute(
        "DELETE FROM portal_sync_events; UPDATE cert_notification_log"
        " SET status = 'failed', failure_code = 'wrong_address', expires_on = current_date + threshold_days;"
        "INSERT INTO acknowledgements (alert_id, until, because, acknowledged_by)"
        " SELECT alert_id, current_date, 'x', 'x' FROM all_alerts WHERE alert_id LIKE 'hlf:failed_reminders:hlf-1:%'"
    )
    own = "SELECT alert_id, since FROM current_alerts(current_date) WHERE NOT is_acknowledged AND organisation = 'hlf'"

    for change, number in (
        ("until = current_date", 0),
        ("until = current_date - 1", 1),
        ("until = current_date, acknowledged_at = now() - interval '100 days'", 1),
        ("acknowledged_at = now(), alert_id = 'nhf:failed_reminders:nhf-1'", 1),
    ):
        facts.connection.execute(f"UPDATE acknowledgements SET {change}".encode())
        shown = ours.asks("SELECT alert_id, since FROM alerts")
        assert (len(shown), shown) == (number, facts.rows(own)), change

    late = "UPDATE cert_notification_log SET expires_on = expires_on - 15, queued_at = now() - interval '15 days'"
    facts.connection.execute(late.encode())
    assert ours.asks("SELECT alert_id FROM alerts") == facts.rows(own) == []


def test_hide_of_a_given_away_contact_is_no_alert_for_coordinators(ours: Organisation, theirs: Organisation) -> None:
    """The mentor who has the contact now may be invisible to them."""
    contact = "aaaaaaaa-0000-4000-8000-000000000000"
    ours.facts.connection.execute(
        f"UPDATE mentors SET dynamics_contact_id = CASE id WHEN '{theirs.mentor}' THEN '{contact}'::uuid END;"
        f"UPDATE portal_sync_events SET claim_contact_id = '{contact}' WHERE mentor_id = '{ours.mentor}'".encode()
    )

    assert ours.asks("SELECT is_alert FROM open_pushes") == [(False,)]
    ours.facts.connection.execute("UPDATE mentors SET dynamics_contact_id = NULL")
    assert ours.asks("SELECT is_alert FROM open_pushes") == [(True,)]


def test_unusual_times_stop_no_command(
    here: Certjob, ours: Organisation, theirs: Organisation, supabase_url: str
) -> None:
    """The app can write times such as infinity, which Python cannot represent."""
    long_ago = "0044-03-15 BC"
    for organisation, time, paused_at in ((ours, "-infinity", "-infinity"), (theirs, long_ago, long_ago)):
        organisation.asks("UPDATE mentor_pauses SET lifted_at = %(time)s, lifted_by = %(me)s", time=time)
        organisation.asks("UPDATE mentors SET left_at = %(time)s", time=time)
        organisation.asks("UPDATE certificates SET revoked_at = %(time)s", time=time)
        pause = PAUSE.replace("actor)", "actor, paused_at)").replace("%(me)s", "%(me)s, %(time)s")
        organisation.asks(pause, time=paused_at)

        story = here("explain", f"{organisation.mentor}", CERTJOB_DATABASE_URL=supabase_url)
        assert (story.returncode, story.stderr, "Left on" in story.stdout) == (0, "", True)

    assert here("run", CERTJOB_DATABASE_URL=supabase_url).returncode == 3  # the pushes are alerts
    for page in ("status", "list", "alerts"):
        assert here(page, CERTJOB_DATABASE_URL=supabase_url).returncode in (0, 3), page
    changes = here("changes", "--csv", CERTJOB_DATABASE_URL=supabase_url)
    assert (changes.returncode, changes.stderr, changes.stdout.count("likeperson revoked")) == (0, "", 2)
    assert ours.facts.rows("SELECT status FROM certificates") == [("revoked",)] * 2


@pytest.mark.usefixtures("theirs")
def test_sql_of_the_dashboard_page_answers_a_coordinator(ours: Organisation) -> None:
    """Each statement of docs/examples/coordinator.sql returns the row of the own organisation."""
    ours.facts.connection.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
        " SELECT id, 'certification_expired', 'certjob' FROM mentors;"
        "UPDATE cert_notification_log SET status = 'failed';"
        "UPDATE certificates SET expires_on = current_date + 30, status = 'expiring'"
    )
    statements = read("docs/examples/coordinator.sql").split(";")[:-1]

    for statement in statements:
        assert [row[0] for row in ours.asks(statement)] == ["hlf-1"], statement
    explained = {*re.findall(r"^\| `(\w+)` \|", read("docs/dashboard.md"), re.MULTILINE)}
    explained |= json.loads(read("docs/samples/alerts.json"))["alerts"][0].keys()
    for asked in ("alerts", "request_portal_resync(%(mentor)s)"):
        ((answer,),) = ours.asks(f"SELECT to_json(a) FROM {asked} AS a LIMIT 1")
        assert answer.keys() <= explained
