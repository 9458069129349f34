"""How much one account may write: rows of one mentor, letters of one value; and what was there before the bounds."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection
from certjob.facts import reading
from tests.support.app_rows import Organisation
from tests.support.command_line import Finished, run_in_process, today
from tests.support.facts import TODAY, Facts
from tests.support.loading import Loader
from tests.support.nights import night
from tests.support.supabase import logged_in
from tests.support.waiting import until, waits_for_a_lock

MOST = 200

CERTIFICATES = (
    "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
    " SELECT %s, %s, date '1900-01-01' + number, date '2030-01-01' FROM generate_series(1, %s) AS number"
)
PAUSES = (
    "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " SELECT %s, %s || number, %s FROM generate_series(1, %s) AS number"
)


def from_before_the_bounds(connection: Connection, statement: str, *parameters: object) -> None:
    """Write what no trigger sees, as if it had been there already."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(statement.encode(), parameters)


def broken_in_a_night(connection: Connection) -> set[UUID]:
    report = night(connection)
    assert report.review is not None
    return {mentor_id for mentor_id, _ in report.review.problems}


A, B = CERTIFICATES % ("%(mentor)s", "'a'", "{}"), CERTIFICATES % ("%(mentor)s", "'b'", "{}")
TOO_MANY = (
    B.format(51),
    f"WITH first AS ({A.format(30)} RETURNING 1) {B.format(30)}",
    "MERGE INTO certificates AS c USING generate_series(1, 60) AS n"
    " ON c.mentor_id = %(mentor)s AND c.kind = 'a' AND c.issued_on = date '1900-01-01' + n"
    " WHEN NOT MATCHED THEN INSERT (mentor_id, kind, issued_on, expires_on)"
    "     VALUES (%(mentor)s, 'a', date '1900-01-01' + n, '2030-01-01')",
    A.format(60) + " ON CONFLICT (mentor_id, kind, issued_on) DO NOTHING",
    A.format(60).replace("(mentor)", "(other)") + ";UPDATE certificates SET mentor_id = %(mentor)s",
    A.format(40_000),
)
"""On top of 150; what counts is what is there when the statement ends."""


class TestTheRowsOfAMentor:
    """At most 200 certificates and 200 open pauses of other people's."""

    def test_a_coordinator_may_enter_200_certificates_and_not_one_more(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """One of them, of 40,000, used to cost every organisation its night. No form of statement gets past it."""
        mentor = Facts(owner).mentor(ours.id)
        with logged_in(api, ours.coordinator):
            api.execute(CERTIFICATES.encode(), (mentor, "likeperson", MOST - 50))
        began = time.monotonic()

        for statement in TOO_MANY:
            too_many = pytest.raises(psycopg.errors.CheckViolation, match=f"{mentor} would have more than 200 certif")
            with too_many, psycopg.ClientCursor(api) as cursor, logged_in(api, ours.coordinator):
                cursor.execute(statement.encode(), {"mentor": mentor, "other": ours.mentor})
                pytest.fail(statement)
        with logged_in(api, ours.coordinator):
            api.execute(CERTIFICATES.encode(), (mentor, "up to the bound", 50))

        assert time.monotonic() - began < 30

    def test_neither_an_old_snapshot_nor_two_at_once_get_past_it(
        self, connection: Connection, facts: Facts, app: Connection
    ) -> None:
        """The snapshot counts too few, and fails on the mentor's row, which the other one has written meanwhile.

        The second of two counts under the mentor's lock, after the first one has committed.
        """
        mentor_id = facts.mentor(facts.organisation())
        app.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM certificates")
        connection.execute(CERTIFICATES.encode(), (mentor_id, "first", 150))
        with pytest.raises(psycopg.errors.SerializationFailure):
            app.execute(CERTIFICATES.encode(), (mentor_id, "second", 150))
        app.rollback()

        app.execute(CERTIFICATES.encode(), (mentor_id, "second", 30))
        with psycopg.connect(connection.info.dsn, autocommit=True) as observer, ThreadPoolExecutor(1) as background:
            third = background.submit(connection.execute, CERTIFICATES.encode(), (mentor_id, "third", 30))
            until(lambda: waits_for_a_lock(observer, connection))
            app.commit()
            with pytest.raises(psycopg.errors.CheckViolation):
                third.result(60)

    def test_a_coordinator_may_open_200_pauses_and_certjob_its_own_beside_them(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """Else 200 pauses would be a way to keep certjob from pausing."""
        mentor_id, me = Facts(owner).certified_mentor(ours.id, TODAY - timedelta(days=1)), str(ours.coordinator)
        with logged_in(api, ours.coordinator):
            api.execute(PAUSES.encode(), (mentor_id, "reason", me, MOST))
        too_many = pytest.raises(psycopg.errors.CheckViolation, match="more than 200 open pauses")
        with too_many, logged_in(api, ours.coordinator):
            api.execute(PAUSES.encode(), (mentor_id, "one more", me, 1))

        assert broken_in_a_night(owner) == set()
        own = "SELECT count(*) FROM mentor_pauses WHERE mentor_id = %s AND actor = 'certjob'"
        assert owner.execute(own, (mentor_id,)).fetchone() == (1,)

    def test_of_a_file_the_rows_too_many_are_rejected_with_the_limit(
        self, connection: Connection, facts: Facts, tmp_path: Path
    ) -> None:
        facts.organisation()
        loader, begins = Loader(connection, tmp_path), [TODAY - timedelta(days=number) for number in range(MOST + 3)]

        report = loader.rows(
            *(f"hlf,M1,likeperson,{day},2030-01-01" for day in begins), "hlf,M2,likeperson,2024-01-01,2030-01-01"
        )

        assert (report.loaded, report.rejected) == (MOST + 1, 3)
        assert all(row.reason.endswith("would have more than 200 certificates") for row in loader.rejected)


class TestRowsFromBefore:
    """A mentor beyond the bounds is broken: named, exit 3, and nothing of theirs is read."""

    def test_a_night_names_the_mentor_and_reviews_the_others_and_every_command_says_so(
        self, worker_url: str, facts: Facts, tmp_path: Path
    ) -> None:
        """It used to sit in its first chunk for minutes, holding everybody else's locks.

        Rows may be deleted until the mentor is within the bounds again, in any number of steps.
        """
        organisation_id = facts.organisation()
        crowded = facts.mentor(organisation_id, member_no="M-crowded")
        from_before_the_bounds(facts.connection, CERTIFICATES, crowded, "likeperson", 40_000)
        facts.certified_mentor(organisation_id, today() - timedelta(days=1), member_no="M-other")
        what = "more than 200 certificates; delete what is too much"
        for arguments, says in (
            (("run", "--dry-run"), f"1 mentor is broken: {crowded} ({what})"),
            (("run",), f"1 mentor is broken: {crowded} ({what})"),
            (("resync", "M-crowded"), f"1 mentor is broken: {crowded} ({what})"),
            (("explain", "M-crowded"), f"is broken: {what}"),
            (("list",), f"is left out: {what}"),
            (("forecast",), f"is left out: {what}"),
        ):
            result = run_in_process(*arguments, environment={"CERTJOB_DATABASE_URL": worker_url}, folder=tmp_path)
            assert result.returncode == 3, result
            assert says in result.stderr
            assert str(crowded) in result.stderr

        paused = "SELECT m.member_no FROM mentor_pauses AS p JOIN mentors AS m ON m.id = p.mentor_id"
        assert facts.rows(f"{paused} WHERE actor = 'certjob'") == [("M-other",)]
        delete = "DELETE FROM certificates WHERE id IN (SELECT id FROM certificates WHERE mentor_id = %s LIMIT %s)"
        for number in (39_000, 800):
            facts.connection.execute(delete, (crowded, number))
        last = run_in_process("run", environment={"CERTJOB_DATABASE_URL": worker_url}, folder=tmp_path)
        assert "is broken" not in last.stderr

    def test_the_reader_of_facts_leaves_the_mentor_out_with_the_reason(
        self, connection: Connection, facts: Facts
    ) -> None:
        """One more than the bound is enough; what is exactly within it is read."""
        hlf = facts.organisation()
        within, many, kind, pauses, reason = (facts.mentor(hlf) for _ in range(5))
        connection.execute(CERTIFICATES.encode(), (within, "k" * MOST, MOST))
        connection.execute(PAUSES.encode(), (within, "reason", "somebody", MOST))
        from_before_the_bounds(connection, CERTIFICATES, many, "likeperson", MOST + 1)
        from_before_the_bounds(connection, CERTIFICATES, kind, "k" * 230_000, 1)
        from_before_the_bounds(connection, PAUSES, pauses, "reason", "somebody", MOST + 1)
        from_before_the_bounds(connection, PAUSES, reason, "r" * 230_000, "somebody", 1)

        with connection.transaction():
            read = reading.read(connection, [many, kind, pauses, reason, within], lock=True)

        assert read.broken == {
            many: "more than 200 certificates; delete what is too much",
            kind: "a certificate kind of more than 200 characters; shorten it",
            pauses: "more than 200 open pauses; delete what is too much",
            reason: "a pause reason of more than 200 characters; shorten it",
        }
        found = [(mentor.id, len(mentor.certificates), len(mentor.open_pauses)) for mentor in read.mentors]
        assert found == [(within, MOST, MOST)]


BOUNDS = {
    200: "certificates.kind mentor_pauses.reason mentor_pauses.actor mentor_pauses.lifted_by mentors.member_no",
    1000: "mentors.full_name mentors.email coordinators.full_name coordinators.email organisations.name"
    " organisations.contact_email organisations.contact_phone organisations.renewal_url",
}
"""Characters: few for what is read with each certificate or pause, more for names and addresses."""


@pytest.mark.usefixtures("ours")
def test_a_longer_value_is_refused_by_its_name_and_the_limit(owner: Connection) -> None:
    """Counted in characters; what has exactly so many is taken. No text that a coordinator may write is without one."""
    owner.execute("UPDATE mentor_pauses SET lifted_at = now()")
    for most, columns in BOUNDS.items():
        for table, _, column in (each.partition(".") for each in columns.split()):
            update = f"UPDATE {table} SET {column} = %s".encode()
            owner.execute(update, ("å" * most,))
            says = f"{table}.{column} is too long, at most {most:,} characters are allowed"
            with pytest.raises(psycopg.errors.StringDataRightTruncation, match=re.escape(says)):
                owner.execute(update, ("å" * (most + 1),))
    with pytest.raises(psycopg.errors.StringDataRightTruncation, match="optional_kinds is too long"):
        Facts(owner).organisation("many", optional_kinds=[f"{number:0200}" for number in range(51)])

    writable = owner.execute(
        "SELECT c.relname || '.' || a.attname FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped"
        " AND a.atttypid NOT IN ('uuid'::regtype, 'date'::regtype, 'timestamptz'::regtype)"
        " AND (has_column_privilege('authenticated', c.oid, a.attnum, 'INSERT')"
        " OR has_column_privilege('authenticated', c.oid, a.attnum, 'UPDATE'))"
    ).fetchall()
    assert {row[0] for row in writable} - set(" ".join(BOUNDS.values()).split()) == {"mentors.locale"}


def test_the_status_of_a_longer_row_from_before_can_be_written(connection: Connection, facts: Facts) -> None:
    """A CHECK would refuse certjob's own UPDATE."""
    from_before_the_bounds(connection, CERTIFICATES, facts.mentor(facts.organisation()), "k" * 300, 1)

    assert connection.execute("UPDATE certificates SET status = 'valid'").rowcount == 1


def test_truncate_fires_no_row_trigger_and_is_noticed_nevertheless(connection: Connection, facts: Facts) -> None:
    """Whoever may have lost facts is due; a hide that was lost is queued again; who may be shown is not truncated."""
    facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1))
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
    connection.execute("UPDATE organisations SET portal = NULL")
    connection.execute("TRUNCATE mentors CASCADE")
    assert facts.rows("SELECT count(*) FROM certificates") == [(0,)]


def test_run_everybody_sees_facts_that_were_changed_without_the_triggers(
    worker_url: str, facts: Facts, tmp_path: Path
) -> None:
    """As by a restore or a replication: an ordinary run does not. With one organisation, everybody of that one."""
    for slug in ("hlf", "nhf"):
        facts.certified_mentor(facts.organisation(slug, portal=None), today() + timedelta(days=300), member_no=slug)

    def certjob(*arguments: str) -> Finished:
        return run_in_process("run", *arguments, environment={"CERTJOB_DATABASE_URL": worker_url}, folder=tmp_path)

    assert certjob().returncode == 0
    from_before_the_bounds(facts.connection, "UPDATE certificates SET expires_on = %s", today() - timedelta(days=1))
    assert '"paused": 2' in certjob("--everybody", "--dry-run", "--json").stdout
    paused = "SELECT m.member_no FROM mentor_pauses AS p JOIN mentors AS m ON m.id = p.mentor_id ORDER BY 1"
    for arguments, expected in (
        ((), []),
        (("--everybody", "--organisation", "nhf"), [("nhf",)]),
        (("--everybody",), [("hlf",), ("nhf",)]),
    ):
        certjob(*arguments)
        assert facts.rows(paused) == expected
