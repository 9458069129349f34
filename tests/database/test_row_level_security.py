"""Coordinators read and change the facts of their own organisation, but no derived columns; and docs/dashboard.md."""

import re

import psycopg
import pytest
from jinja2 import Environment

from certjob.database import Connection
from certjob.errors import Cause
from tests.conftest import Certjob
from tests.database.supabase import DENIED, READABLE, Organisation, acting, logged_in
from tests.support.docs import read

STRANGER = "6f1f6a2e-3c0b-4b0a-9d55-0d5a6a3c9b11"
"""A user of the app who is not a coordinator."""

CERTIFICATE = (
    "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%({})s, 'x', '2026-03-01', '2028-03-01')"
)
PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%({})s, '{}', {})"
LIFT = "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = {}"

ALLOWED = (
    CERTIFICATE.format("mentor"),
    "UPDATE certificates SET issued_on = '2020-01-01', expires_on = '2028-04-01', revoked_at = now(), kind = 'y',"
    " mentor_id = mentor_id",
    "UPDATE mentors SET full_name = 'Kari', email = 'k@example.org', locale = 'nn', left_at = now(),"
    " dynamics_contact_id = gen_random_uuid()",
    "INSERT INTO mentor_pauses (id, mentor_id, reason, actor, paused_at)"
    " VALUES (gen_random_uuid(), %(mentor)s, 'leave', %(me)s, '2026-03-01')",
    LIFT.format("%(me)s"),  # a colleague's pause, in their own name
)
"""Statements that change one row of the own organisation."""

REFUSED = (
    "UPDATE certificates SET status = 'valid'",
    "DELETE FROM certificates",
    PAUSE.format("mentor", "certification_expired", "%(me)s"),
    PAUSE.format("mentor", "leave", "'somebody'"),
    LIFT.format("'somebody'"),
    "SELECT certjob_private.coordinator_organisation_id()",
    CERTIFICATE.format("other_mentor"),
    "UPDATE certificates SET mentor_id = %(other_mentor)s",
    PAUSE.format("other_mentor", "leave", "%(me)s"),
)
"""Statements that fail with 42501, by a policy or a missing right."""

IN_VAIN = (
    "UPDATE mentors SET full_name = 'x' WHERE id = %(other_mentor)s",
    "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %(other_mentor)s",
    LIFT.format("%(me)s") + " WHERE mentor_id = %(other_mentor)s",
    LIFT.format("%(me)s") + " WHERE reason = 'certification_expired'",
    "UPDATE mentor_pauses SET lifted_by = %(me)s WHERE reason = 'over'",
)
"""Statements that find no row."""


def seen(connection: Connection) -> set[int]:
    """Return the numbers of visible rows in the tables of facts and intents."""
    return {connection.execute(f"SELECT * FROM certjob.{table}".encode()).rowcount for table in READABLE}


def test_coordinator_reads_rows_of_the_own_organisation_only(ours: Organisation, theirs: Organisation) -> None:
    """Each table has two rows. Each coordinator sees one, service_role sees both."""
    assert seen(ours.facts.connection) == {2}
    with acting(ours.api, "service_role"):
        assert ours.api.execute("SELECT FROM mentors").rowcount == 2

    for organisation in (ours, theirs):
        with logged_in(ours.api, organisation.coordinator):
            assert seen(ours.api) == {1}
        assert organisation.asks("SELECT organisation_id FROM alerts") == [(organisation.id,)]


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize(
    ("acknowledgement", "number"),
    [
        ({}, 0),
        ({"until": "tomorrow"}, 0),
        ({"until": "yesterday"}, 1),
        ({"cause": "no_address"}, 1),
        ({"ended_at": "now"}, 1),
        ({"alert_id": "nhf:failed_reminders:nhf-1"}, 1),
    ],
    ids=str,
)
def test_view_lists_what_the_command_lists(ours: Organisation, acknowledgement: dict[str, str], number: int) -> None:
    """With the same times, for a failed reminder that someone has acknowledged. After 14 days it is not an alert."""
    facts = ours.facts
    facts.connection.execute(
        "DELETE FROM portal_sync_events; UPDATE cert_notification_log"
        " SET status = 'failed', failure_code = 'wrong_address', expires_on = current_date + threshold_days"
    )
    known = {"alert_id": "hlf:failed_reminders:hlf-1", "cause": "wrong_address", "because": "x", "acknowledged_by": "x"}
    facts.insert("acknowledgements", **known | acknowledgement)
    own = "SELECT alert_id, since FROM current_alerts(current_date) WHERE NOT is_acknowledged AND organisation = 'hlf'"

    shown = ours.asks("SELECT alert_id, since FROM alerts")

    assert (len(shown), shown) == (number, facts.rows(own))
    late = "UPDATE cert_notification_log SET expires_on = expires_on - 15, queued_at = now() - interval '15 days'"
    facts.connection.execute(late.encode())
    assert ours.asks("SELECT FROM alerts") == facts.rows(own) == []


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


@pytest.mark.parametrize(
    ("certified_until", "expected"),
    [(None, None), ("0001-01-01", None), ("2026-05-01", "2026-05-01"), ("9999-12-31", "2099-12-31")],
)
def test_visible_until_is_unknown_without_a_review(
    ours: Organisation, certified_until: str | None, expected: str | None
) -> None:
    """A day after 2099 is shown as it is sent."""
    ours.facts.rows("UPDATE mentors SET certified_until = %s RETURNING 1", certified_until)

    assert ours.asks("SELECT visible_until::text FROM alerts") == [(expected,)]


def test_policies_read_the_coordinator_once_per_statement(ours: Organisation) -> None:
    """The planner evaluates (SELECT …) before the scan."""
    ours.api.execute("SET enable_seqscan = off")
    for table in READABLE:
        lines = [row[0] for row in ours.asks(f"EXPLAIN (VERBOSE) SELECT * FROM {table}")]

        filters = [line for line in lines if "Filter" in line or "Cond" in line]
        assert any("InitPlan" in line for line in lines), table
        assert not any("coordinator_organisation_id" in line for line in filters), table


def test_coordinator_changes_facts_of_the_own_organisation_only(ours: Organisation, theirs: Organisation) -> None:
    """Derived columns, other organisations, and pauses of certjob are protected."""
    ours.facts.pause(ours.mentor, reason="certification_expired", actor="certjob")
    over = {"reason": "over", "actor": "somebody", "lifted_at": "2026-03-01", "lifted_by": "somebody"}
    ours.facts.insert("mentor_pauses", mentor_id=ours.mentor, **over)
    values = {"me": str(ours.coordinator), "mentor": ours.mentor, "other_mentor": theirs.mentor}
    expected = dict.fromkeys(ALLOWED, "1") | dict.fromkeys(REFUSED, "42501") | dict.fromkeys(IN_VAIN, "0")
    found: dict[str, str | None] = {}

    for statement in expected:
        try:
            with ours.api.transaction(force_rollback=True), logged_in(ours.api, ours.coordinator):
                found[statement] = str(ours.api.execute(statement.encode(), values).rowcount)
        except psycopg.Error as error:
            found[statement] = error.sqlstate

    assert found == expected


def test_only_the_claim_sub_identifies_a_coordinator(ours: Organisation) -> None:
    """Other claims of a token have no effect."""
    for claims in (
        {},
        {"sub": STRANGER, "role": "service_role", "app_metadata": {"organisation_id": str(ours.id)}},
        {"sub": None, "user_id": str(ours.coordinator), "email": "eva@example.org"},
    ):
        with acting(ours.api, "authenticated", **claims):
            assert seen(ours.api) == {0}, claims
        with pytest.raises(DENIED), acting(ours.api, "authenticated", **claims):
            ours.api.execute(CERTIFICATE.format("mentor").encode(), {"mentor": ours.mentor})
    with pytest.raises(psycopg.errors.InvalidTextRepresentation), acting(ours.api, "authenticated", sub="' OR true --"):
        seen(ours.api)


def test_moved_coordinator_loses_access_although_the_token_is_valid(ours: Organisation, theirs: Organisation) -> None:
    """A moved coordinator sees only the new organisation, a deleted one no rows."""
    move = "UPDATE coordinators SET organisation_id = %s, email = 'm@x.org' WHERE id = %s RETURNING 1"
    ours.facts.rows(move, theirs.id, ours.coordinator)
    assert ours.asks("SELECT id FROM mentors") == [(theirs.mentor,)]
    ours.facts.connection.execute("DELETE FROM coordinators")

    assert ours.asks("SELECT id FROM mentors") == []
    with pytest.raises(DENIED):
        ours.asks(PAUSE.format("mentor", "leave", "%(me)s"))


def test_temporary_types_run_no_code_as_the_owner(ours: Organisation) -> None:
    """PostgreSQL searches pg_temp first unless it is named, and the CHECK of a domain is code of the caller."""
    ours.facts.connection.execute("CREATE SCHEMA evil; GRANT ALL ON SCHEMA evil TO authenticated")
    ran_as: list[str] = []
    ours.api.add_notice_handler(lambda notice: ran_as.append(notice.message_primary or ""))
    ours.asks(
        "CREATE FUNCTION evil.tell(text) RETURNS boolean LANGUAGE plpgsql"
        " AS $$ BEGIN RAISE NOTICE '%%', current_user; RETURN true; END $$"
    )
    for name in ("uuid", "text", "date", "bool", "int4", "int8", "timestamptz"):
        ours.asks(f"CREATE DOMAIN pg_temp.{name} AS pg_catalog.{name} CHECK (evil.tell(VALUE::pg_catalog.text))")
    ours.asks(
        "CREATE TYPE pg_temp.record AS (id pg_temp.uuid, left_at pg_temp.timestamptz, portal_visible pg_temp.bool,"
        " review_on pg_temp.date, portal pg_temp.text, organisation pg_temp.text, optional_kinds pg_catalog.text[])"
    )

    assert ours.asks("SELECT visible FROM certjob.request_portal_resync(%(mentor)s)") == [(False,)]
    ours.asks("UPDATE mentors SET email = 'new@example.org', dynamics_contact_id = gen_random_uuid()")
    ours.asks("UPDATE certificates SET revoked_at = now()")
    ours.asks(CERTIFICATE.format("mentor"))
    ours.asks(LIFT.format("(SELECT auth.uid())::pg_catalog.text"))

    assert set(ran_as) <= {"authenticated"}, "code of the caller ran as another user"


def test_unusual_times_stop_neither_run_nor_explain(
    here: Certjob, ours: Organisation, theirs: Organisation, supabase_url: str
) -> None:
    """The app can write times such as infinity, which Python cannot represent."""
    for organisation, time in ((ours, "infinity"), (theirs, "0044-03-15 BC")):
        for statement in (
            LIFT.format("%(me)s").replace("now()", "%(time)s"),
            "UPDATE mentors SET left_at = %(time)s",
            "UPDATE certificates SET revoked_at = %(time)s",
            "INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at)"
            " VALUES (%(mentor)s, 'x', %(me)s, %(time)s)",
        ):
            organisation.asks(statement, time=time)

    for number in ("hlf-1", "nhf-1"):
        story = here("explain", number, CERTJOB_DATABASE_URL=supabase_url)
        assert (story.returncode, story.stderr, "Has left" in story.stdout) == (0, "", True)
    night = here("run", CERTJOB_DATABASE_URL=supabase_url)

    assert night.returncode == 3, night  # the pushes are alerts
    assert ours.facts.rows("SELECT status FROM certificates") == [("revoked",)] * 2


PAGE = read("docs/dashboard.md")


def blocks(*languages: str) -> list[str]:
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def table_under(heading: str) -> list[str]:
    """Return the first column of the page's table with this heading."""
    rows = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
    assert rows is not None
    return re.findall(r"^\| `([^`]+)` \|", rows[1], flags=re.MULTILINE)


@pytest.mark.usefixtures("theirs")
def test_sql_of_the_dashboard_page_answers_a_coordinator(ours: Organisation) -> None:
    """Each statement returns the row of the own organisation, with the columns that the page lists."""
    ours.facts.connection.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
        " SELECT id, 'certification_expired', 'certjob' FROM mentors;"
        "UPDATE cert_notification_log SET status = 'failed';"
        "UPDATE certificates SET expires_on = current_date + 30, status = 'expiring'"
    )

    for statement in "".join(blocks("sql")).split(";")[:-1]:
        assert [row[0] for row in ours.asks(statement)] == ["hlf-1"], statement
    for asked, heading in (("alerts", "column"), ("request_portal_resync(%(mentor)s)", "it answers")):
        ((answer,),) = ours.asks(f"SELECT to_json(a) FROM {asked} AS a LIMIT 1")
        assert list(answer) == table_under(heading)
    assert table_under("SQLSTATE") == ["42501", "P0001", "P0001"]  # as test_request_portal_resync.py has them


def test_code_of_the_dashboard_page_names_existing_objects(ours: Organisation) -> None:
    """It uses views, columns, functions, parameters and published tables."""
    published = {row[0] for row in ours.facts.rows("SELECT tablename FROM pg_publication_tables")}
    for code in blocks("js", "dart"):
        tables = re.findall(r"\bfrom\(['\"](\w+)['\"]\)\s*\.select\(['\"]([^'\"]+)", code)
        calls = re.findall(r"rpc\(['\"](\w+)['\"], (?:params: )?\{ ?'?(\w+)", code)
        assert (len(tables), len(calls)) == (code.count("from(") - code.count("update("), code.count("rpc("))
        for table, columns in tables:
            ours.asks(f"SELECT {columns} FROM {table}")
        for function, name in calls:
            ours.asks(f"SELECT * FROM {function}({name} => %(mentor)s)")
        for table in re.findall(r"table: ['\"](\w+)['\"]", code):
            assert table in published


@pytest.mark.parametrize(("number", "language"), [(1, "nb"), (2, "nn"), (3, "en")])
def test_dashboard_page_has_the_words_of_the_digests(number: int, language: str) -> None:
    """A coordinator reads the same sentence in the app and in the mail, for each cause that the view can have."""
    words = Environment(autoescape=True).from_string(read(f"certjob/mail/messages/digest.{language}.words"))
    causes: dict[str, str] = words.make_module({"operator_address": ""}).causes  # type: ignore[attr-defined]
    sentences = {cause: str(sentence).replace("\u2011", "-") for cause, sentence in causes.items()}
    table = re.findall(
        r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE.partition("## Words")[2].partition("## ")[0], re.M
    )

    printed = {row[0]: row[number] for row in table if row[0] not in ("cause", "not_reviewed")}

    assert printed == sentences == {cause: sentences[cause] for cause in Cause}


def test_view_names_no_action_that_the_page_does_not_explain(ours: Organisation) -> None:
    """The operator is the answer to whatever has no other one."""
    named = set(re.findall(r"`(\w+)`", PAGE.partition("`action` says")[2].partition("## ")[0]))

    ((view,),) = ours.facts.rows("SELECT pg_get_viewdef('all_alerts'::regclass)")
    actions = str(view).partition("END AS sentence")[2].partition(" AS action")[0]

    assert set(re.findall(r"(?:THEN|ELSE) '(\w+)'", actions)) == named
