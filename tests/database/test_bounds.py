"""Limits for rows per mentor and for the length of texts, and rows that exceed them."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import psycopg
import pytest

from certjob.database import Connection
from certjob.facts import reading
from tests.conftest import Certjob
from tests.database.supabase import Organisation
from tests.facts.loading import REQUIRED, Loader
from tests.support.command_line import today
from tests.support.facts import TODAY, Facts
from tests.support.nights import night
from tests.support.waiting import until, waits_for_a_lock

MOST = 200
YESTERDAY = TODAY - timedelta(days=1)

CERTIFICATES = (
    "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
    " SELECT %(mentor)s, '{}', date '1900-01-01' + number, date '2030-01-01' FROM generate_series(1, {}) AS number"
)
PAUSES = (
    "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " SELECT %(mentor)s, '{}' || number, %(me)s FROM generate_series(1, {}) AS number"
)


def from_before_the_bounds(connection: Connection, statement: str, **values: object) -> None:
    """Write rows without firing triggers."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(statement.encode(), {"me": "anna"} | values)


TOO_MANY = (
    CERTIFICATES.format("b", 51),
    f"WITH first AS ({CERTIFICATES.format('a', 30)} RETURNING 1) {CERTIFICATES.format('b', 30)}",
    CERTIFICATES.format("a", 60) + " ON CONFLICT (mentor_id, kind, issued_on) DO NOTHING",
    "UPDATE certificates SET mentor_id = %(mentor)s",
    CERTIFICATES.format("a", 40_000),
)
"""Statements that exceed the limit when the mentor has 150 certificates."""


def test_mentor_has_at_most_200_certificates(ours: Organisation) -> None:
    """Every form of INSERT and UPDATE is checked."""
    mentor = ours.facts.mentor(ours.id)
    ours.asks(CERTIFICATES.format("likeperson", MOST - 50), mentor=mentor)
    ours.asks(CERTIFICATES.format("to be moved", 60))
    began, taken = time.monotonic(), []

    for statement in TOO_MANY:
        with suppress(psycopg.errors.CheckViolation):
            ours.asks(statement, mentor=mentor)
            taken.append(statement)
    ours.asks(CERTIFICATES.format("up to the bound", 50), mentor=mentor)

    assert taken == []
    assert time.monotonic() - began < 30


def test_concurrent_inserts_cannot_exceed_the_limit(facts: Facts, app: Connection) -> None:
    """An old snapshot fails at the lock of the mentor. A second session counts after the first has committed."""
    connection, mentor = facts.connection, {"mentor": facts.mentor(facts.organisation())}
    app.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM certificates")
    connection.execute(CERTIFICATES.format("first", 150).encode(), mentor)
    with pytest.raises(psycopg.errors.SerializationFailure):
        app.execute(CERTIFICATES.format("second", 150).encode(), mentor)
    app.rollback()

    app.execute(CERTIFICATES.format("second", 30).encode(), mentor)
    with psycopg.connect(connection.info.dsn, autocommit=True) as observer, ThreadPoolExecutor(1) as background:
        third = background.submit(connection.execute, CERTIFICATES.format("third", 30).encode(), mentor)
        until(lambda: waits_for_a_lock(observer, connection))
        app.commit()
        with pytest.raises(psycopg.errors.CheckViolation):
            third.result(60)


def test_mentor_has_at_most_200_open_pauses_besides_certjobs(ours: Organisation) -> None:
    """Otherwise 200 pauses would prevent certjob from pausing."""
    mentor = ours.facts.certified_mentor(ours.id, YESTERDAY)
    ours.asks(PAUSES.format("reason", MOST), mentor=mentor)
    with pytest.raises(psycopg.errors.CheckViolation, match="more than 200 open pauses"):
        ours.asks(PAUSES.format("one more", 1), mentor=mentor)

    night(ours.facts.connection)

    own = "SELECT count(*) FROM mentor_pauses WHERE mentor_id = %s AND actor = 'certjob'"
    assert ours.facts.rows(own, mentor) == [(1,)]


def test_load_skips_a_mentor_with_too_many_certificates(facts: Facts) -> None:
    """The problem names the limit, and the others are loaded."""
    facts.organisation()
    loader = Loader(facts.connection)
    rows = [f"hlf,M1,likeperson,{TODAY - timedelta(days=number)},2030-01-01" for number in range(MOST + 1)]

    report = loader("\n".join([REQUIRED, *rows, "hlf,M2,likeperson,2024-01-01,2030-01-01"]))

    (problem,) = report.problems
    assert (problem.line, problem.reason) == (2, "the mentor would have more than 200 certificates")
    assert (report.skipped, report.mentors_added) == (MOST + 1, 1)


def test_mentor_with_too_many_rows_is_named_and_others_are_reviewed(here: Certjob, facts: Facts) -> None:
    """The mentor is reviewed again when enough rows were deleted, in one or more steps."""
    organisation = facts.organisation()
    crowded = facts.mentor(organisation, member_no="M-crowded")
    from_before_the_bounds(facts.connection, CERTIFICATES.format("likeperson", 40_000), mentor=crowded)
    facts.certified_mentor(organisation, today() - timedelta(days=1), member_no="M-other")
    what = "more than 200 certificates; delete some of them"

    for command, says in (
        ("run --dry-run", f"1 mentor could not be processed: {crowded} ({what})"),
        ("run", f"1 mentor could not be processed: {crowded} ({what})"),
        ("resync M-crowded", f"1 mentor could not be processed: {crowded} ({what})"),
        ("explain M-crowded", f"could not be processed: {what}"),
        ("list", f"is left out: {what}"),
        ("forecast", f"is left out: {what}"),
    ):
        result = here(*command.split())
        assert (result.returncode, says in result.stderr, str(crowded) in result.stderr) == (3, True, True), result

    paused = "SELECT m.member_no FROM mentor_pauses AS p JOIN mentors AS m ON m.id = p.mentor_id"
    assert facts.rows(f"{paused} WHERE actor = 'certjob'") == [("M-other",)]
    for number in (39_000, 800):
        few = f"SELECT id FROM certificates WHERE mentor_id = '{crowded}' LIMIT {number}"
        facts.connection.execute(f"DELETE FROM certificates WHERE id IN ({few})".encode())
    assert "could not be processed" not in here("run").stderr


def test_reading_leaves_out_a_mentor_beyond_a_limit_with_the_reason(facts: Facts) -> None:
    """A mentor at the limit is read. Old rows beyond a limit accept certjob's UPDATE of status."""
    connection, organisation = facts.connection, facts.organisation()
    within, many, kind, pauses, reason = (facts.mentor(organisation) for _ in range(5))
    for statement in (CERTIFICATES.format("k" * MOST, MOST), PAUSES.format("reason", MOST)):
        connection.execute(statement.encode(), {"mentor": within, "me": "anna"})
    for mentor, statement in (
        (many, CERTIFICATES.format("likeperson", MOST + 1)),
        (kind, CERTIFICATES.format("k" * 230_000, 1)),
        (pauses, PAUSES.format("reason", MOST + 1)),
        (reason, PAUSES.format("r" * 230_000, 1)),
    ):
        from_before_the_bounds(connection, statement, mentor=mentor)

    with connection.transaction():
        read = reading.read(connection, [many, kind, pauses, reason, within], lock=True)

    assert read.broken == {
        many: "more than 200 certificates; delete some of them",
        kind: "a certificate kind of more than 200 characters; shorten it",
        pauses: "more than 200 open pauses; delete some of them",
        reason: "a pause reason of more than 200 characters; shorten it",
    }
    found = [(mentor.id, len(mentor.certificates), len(mentor.open_pauses)) for mentor in read.mentors]
    assert found == [(within, MOST, MOST)]
    assert connection.execute("UPDATE certificates SET status = 'valid'").rowcount == 2 * MOST + 2


BOUNDS = {
    200: "certificates.kind mentor_pauses.reason mentor_pauses.actor mentor_pauses.lifted_by mentors.member_no",
    1000: "mentors.full_name mentors.email coordinators.full_name coordinators.email organisations.name"
    " organisations.contact_email organisations.contact_phone organisations.renewal_url",
}
"""Columns by their maximum number of characters."""


def test_too_long_text_is_rejected_with_column_and_limit(ours: Organisation) -> None:
    """The limit counts characters. Every text column that a coordinator may write has one."""
    owner = ours.facts.connection
    owner.execute("UPDATE mentor_pauses SET lifted_at = now()")
    for most, columns in BOUNDS.items():
        for table, _, column in (each.partition(".") for each in columns.split()):
            update = f"UPDATE {table} SET {column} = %s".encode()
            owner.execute(update, ("å" * most,))
            says = f"{table}.{column} is too long, at most {most:,} characters are allowed"
            with pytest.raises(psycopg.errors.StringDataRightTruncation, match=re.escape(says)):
                owner.execute(update, ("å" * (most + 1),))
    with pytest.raises(psycopg.errors.StringDataRightTruncation, match="optional_kinds is too long"):
        ours.facts.organisation("many", optional_kinds=[f"{number:0200}" for number in range(51)])

    writable = ours.facts.rows(
        "SELECT DISTINCT table_name || '.' || column_name FROM information_schema.column_privileges"
        " JOIN information_schema.columns AS c USING (table_schema, table_name, column_name)"
        " WHERE grantee = 'authenticated' AND privilege_type IN ('INSERT', 'UPDATE')"
        " AND c.data_type NOT IN ('uuid', 'date', 'timestamp with time zone')"
    )
    assert {row[0] for row in writable} - set(" ".join(BOUNDS.values()).split()) == {"mentors.locale"}


def test_truncate_is_noticed(facts: Facts) -> None:
    """Mentors are reviewed again, lost pushes are queued again, and visible mentors cannot be truncated."""
    connection = facts.connection
    facts.certified_mentor(facts.organisation(), YESTERDAY)
    for table in ("mentors", "organisations"):
        with pytest.raises(psycopg.errors.RestrictViolation, match="may still be shown on the portal"):
            connection.execute(f"TRUNCATE {table} CASCADE".encode())

    night(connection, deliver=False)
    connection.execute("TRUNCATE portal_sync_events, dynamics_sync_failures")
    night(connection, deliver=False)
    assert facts.rows("SELECT visible, status FROM portal_sync_events") == [(False, "pending")]

    for table in ("certificates", "mentor_pauses"):
        connection.execute("UPDATE mentors SET review_on = 'infinity'")
        connection.execute(f"TRUNCATE {table}".encode())
        assert facts.rows("SELECT review_on = '-infinity' FROM mentors") == [(True,)], table

    for table in ("portal_sync_events", "cert_notification_log"):
        with pytest.raises(psycopg.errors.RestrictViolation, match="open intents"):
            connection.execute("TRUNCATE mentors CASCADE")
        connection.execute(f"DELETE FROM {table}".encode())
    connection.execute("UPDATE organisations SET portal = NULL; TRUNCATE mentors CASCADE")
    assert facts.rows("SELECT count(*) FROM certificates") == [(0,)]


def test_run_everybody_finds_changes_without_triggers(here: Certjob, facts: Facts) -> None:
    """A restore or replication fires no triggers. --organisation limits the run to one organisation."""
    for slug in ("hlf", "nhf"):
        facts.certified_mentor(facts.organisation(slug, portal=None), today() + timedelta(days=300), member_no=slug)
    assert here("run").returncode == 0
    from_before_the_bounds(facts.connection, "UPDATE certificates SET expires_on = current_date - 2")
    assert '"paused": 2' in here("run", "--everybody", "--dry-run", "--json").stdout

    paused = "SELECT m.member_no FROM mentor_pauses AS p JOIN mentors AS m ON m.id = p.mentor_id ORDER BY 1"
    for arguments, expected in (
        ("", []),
        ("--everybody --organisation nhf", [("nhf",)]),
        ("--everybody", [("hlf",), ("nhf",)]),
    ):
        here("run", *arguments.split())
        assert facts.rows(paused) == expected
