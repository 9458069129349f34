"""How much one account may write: rows of one mentor, letters of one value; and what was there before the bounds."""

import re
import time
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection
from certjob.facts import reading
from certjob.night.report import RunReport
from certjob.review.plan import Problem
from tests.support.app_rows import Organisation
from tests.support.command_line import Finished, run_in_process, today
from tests.support.facts import TODAY, Facts
from tests.support.loading import Loader
from tests.support.nights import in_background, night
from tests.support.supabase import logged_in
from tests.support.waiting import until, waits_for_a_lock

MOST = 200

CERTIFICATES = (
    "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
    " SELECT %s, %s, date '1900-01-01' + number, date '2030-01-01' FROM generate_series(1, %s) AS number"
)
PAUSES = (
    "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " SELECT %s, 'reason ' || number, %s FROM generate_series(1, %s) AS number"
)


def from_before_the_bounds(connection: Connection, statement: str, *parameters: object) -> None:
    """Write what no trigger sees, as if it had been there already."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(statement.encode(), parameters)


def problems_of(report: RunReport) -> list[Problem]:
    assert report.review is not None
    return report.review.problems


@pytest.fixture
def mentor(owner: Connection, ours: Organisation) -> UUID:
    return Facts(owner).mentor(ours.id)


TOO_MANY = {
    "one more": CERTIFICATES % ("%(mentor)s", "'another kind'", 51),
    "two in one": "WITH first AS ({} RETURNING 1) {}".format(
        CERTIFICATES % ("%(mentor)s", "'a'", 30), CERTIFICATES % ("%(mentor)s", "'b'", 30)
    ),
    "merge": "MERGE INTO certificates AS c USING generate_series(1, 60) AS n"
    " ON c.mentor_id = %(mentor)s AND c.kind = 'a' AND c.issued_on = date '1900-01-01' + n"
    " WHEN NOT MATCHED THEN INSERT (mentor_id, kind, issued_on, expires_on)"
    "     VALUES (%(mentor)s, 'a', date '1900-01-01' + n, '2030-01-01')",
    "on conflict": CERTIFICATES % ("%(mentor)s", "'a'", 60) + " ON CONFLICT (mentor_id, kind, issued_on) DO NOTHING",
    "moved": CERTIFICATES % ("%(other)s", "'a'", 60) + ";UPDATE certificates SET mentor_id = %(mentor)s",
    "very many": CERTIFICATES % ("%(mentor)s", "'a'", 40_000),
}
"""On top of 150; what counts is what is there when the statement ends."""


class TestTheRowsOfAMentor:
    """At most 200 certificates and 200 open pauses of other people's."""

    def test_a_coordinator_may_enter_200_certificates_and_not_one_more(
        self, api: Connection, owner: Connection, ours: Organisation, mentor: UUID
    ) -> None:
        """One of them, of 40,000, used to cost every organisation its night. No form of statement gets past it."""
        with logged_in(api, ours.coordinator):
            api.execute(CERTIFICATES.encode(), (mentor, "likeperson", MOST - 50))
        names = {"mentor": mentor, "other": ours.mentor}
        began = time.monotonic()

        for what, statement in TOO_MANY.items():
            too_many = pytest.raises(psycopg.errors.CheckViolation, match=f"{mentor} would have more than 200 certif")
            with too_many, psycopg.ClientCursor(api) as cursor, logged_in(api, ours.coordinator):
                cursor.execute(statement.encode(), names)
                pytest.fail(what)
        with logged_in(api, ours.coordinator):
            api.execute(CERTIFICATES.encode(), (mentor, "up to the bound", 50))

        assert time.monotonic() - began < 30

    @pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
    def test_an_old_snapshot_does_not_get_past_it(
        self, isolation: str, connection: Connection, facts: Facts, app: Connection
    ) -> None:
        """It counts too few, and fails on the mentor's row, which the other one has written meanwhile."""
        mentor_id = facts.mentor(facts.organisation())
        app.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
        app.execute("SELECT count(*) FROM certificates")
        connection.execute(CERTIFICATES.encode(), (mentor_id, "first", 150))

        with pytest.raises(psycopg.errors.SerializationFailure):
            app.execute(CERTIFICATES.encode(), (mentor_id, "second", 150))

    def test_two_at_once_do_not_get_past_it_together(
        self, connection: Connection, facts: Facts, app: Connection
    ) -> None:
        """The second one counts under the mentor's lock, after the first one has committed."""
        mentor_id = facts.mentor(facts.organisation())
        app.execute(CERTIFICATES.encode(), (mentor_id, "first", 150))
        refused: list[str] = []

        def insert() -> None:
            try:
                connection.execute(CERTIFICATES.encode(), (mentor_id, "second", 150))
            except psycopg.errors.CheckViolation as error:
                refused.append(str(error))

        with in_background(insert), psycopg.connect(facts.connection.info.dsn, autocommit=True) as observer:
            until(lambda: waits_for_a_lock(observer, connection))
            app.commit()

        assert len(refused) == 1
        assert facts.rows("SELECT count(*) FROM certificates") == [(150,)]

    def test_a_coordinator_may_open_200_pauses_and_certjob_its_own_beside_them(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """Else 200 pauses would be a way to keep certjob from pausing."""
        mentor_id = Facts(owner).certified_mentor(ours.id, TODAY - timedelta(days=1))
        with logged_in(api, ours.coordinator):
            api.execute(PAUSES.encode(), (mentor_id, str(ours.coordinator), MOST))
        too_many = pytest.raises(psycopg.errors.CheckViolation, match="more than 200 open pauses")
        with too_many, logged_in(api, ours.coordinator):
            api.execute(
                "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'one more', %s)",
                (mentor_id, str(ours.coordinator)),
            )

        assert problems_of(night(owner)) == []
        paused = owner.execute(
            "SELECT count(*) FROM mentor_pauses WHERE mentor_id = %s AND actor = 'certjob'", (mentor_id,)
        )
        assert paused.fetchone() == (1,)

    def test_a_file_with_too_many_for_one_mentor_has_the_rest_of_its_rows_rejected(
        self, connection: Connection, facts: Facts, tmp_path: Path
    ) -> None:
        """Each with the limit; the others are loaded."""
        facts.organisation()
        loader = Loader(connection, tmp_path)
        first = TODAY - timedelta(days=1000)

        report = loader.rows(
            *(f"hlf,M1,likeperson,{first + timedelta(days=day)},2030-01-01" for day in range(MOST + 3)),
            "hlf,M2,likeperson,2024-01-01,2030-01-01",
        )

        assert (report.loaded, report.rejected) == (MOST + 1, 3)
        assert all(row.reason.endswith("would have more than 200 certificates") for row in loader.rejected)


@pytest.fixture
def crowded(facts: Facts) -> UUID:
    """A mentor with 40,000 certificates of one kind from before the bounds, beside one whose certificate has ended."""
    organisation_id = facts.organisation()
    mentor_id = facts.mentor(organisation_id, member_no="M-crowded")
    from_before_the_bounds(facts.connection, CERTIFICATES, mentor_id, "likeperson", 40_000)
    facts.certified_mentor(organisation_id, today() - timedelta(days=1), member_no="M-other")
    return mentor_id


class TestRowsFromBefore:
    """A mentor beyond the bounds is broken: named, exit 3, and nothing of theirs is read."""

    def test_a_night_names_the_mentor_and_reviews_the_others_and_every_command_says_so(
        self, worker_url: str, crowded: UUID, facts: Facts, tmp_path: Path
    ) -> None:
        """It used to sit in its first chunk for minutes, holding everybody else's locks."""
        what = "more than 200 certificates; delete what is too much"
        for arguments, says in (
            (("run", "--dry-run"), f"1 mentor is broken ({what})"),
            (("run",), f"1 mentor is broken ({what}): {crowded}"),
            (("resync", "M-crowded"), f"1 mentor is broken ({what})"),
            (("explain", "M-crowded"), f"is broken: {what}"),
            (("list",), f"is left out: {what}"),
            (("forecast",), f"is left out: {what}"),
            (("organisation", "set", "hlf", "--thresholds", "90", "--dry-run"), f"is left out: {what}"),
        ):
            result = run_in_process(*arguments, environment={"CERTJOB_DATABASE_URL": worker_url}, folder=tmp_path)

            assert result.returncode == 3, result
            assert says in result.stderr
            assert str(crowded) in result.stderr

        assert facts.rows(
            "SELECT m.member_no FROM mentor_pauses AS p JOIN mentors AS m ON m.id = p.mentor_id WHERE actor = 'certjob'"
        ) == [("M-other",)]

    def test_the_reader_of_facts_leaves_the_mentor_out_with_the_reason(
        self, connection: Connection, facts: Facts
    ) -> None:
        """One more than the bound is enough; what is exactly within it is read."""
        hlf = facts.organisation()
        within, many, kind, pauses, reason = (facts.mentor(hlf) for _ in range(5))
        connection.execute(CERTIFICATES.encode(), (within, "k" * MOST, MOST))
        connection.execute(PAUSES.encode(), (within, "somebody", MOST))
        from_before_the_bounds(connection, CERTIFICATES, many, "likeperson", MOST + 1)
        from_before_the_bounds(connection, CERTIFICATES, kind, "k" * 230_000, 1)
        from_before_the_bounds(connection, PAUSES, pauses, "somebody", MOST + 1)
        from_before_the_bounds(
            connection,
            "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, %s, 'somebody')",
            reason,
            "r" * 230_000,
        )

        with connection.transaction():
            read = reading.read(connection, [many, kind, pauses, reason, within], lock=True)

        assert read.broken == {
            many: "more than 200 certificates; delete what is too much",
            kind: "a certificate kind of more than 200 characters; shorten it",
            pauses: "more than 200 open pauses; delete what is too much",
            reason: "a pause reason of more than 200 characters; shorten it",
        }
        assert [(mentor.id, len(mentor.certificates), len(mentor.open_pauses)) for mentor in read.mentors] == [
            (within, MOST, MOST)
        ]

    def test_rows_may_be_deleted_until_the_mentor_is_within_the_bounds_again(
        self, connection: Connection, facts: Facts
    ) -> None:
        """By the rule that the line says, and in any number of steps."""
        mentor_id = facts.mentor(facts.organisation())
        from_before_the_bounds(connection, CERTIFICATES, mentor_id, "likeperson", MOST + 20)

        for _ in range(2):
            connection.execute("DELETE FROM certificates WHERE id IN (SELECT id FROM certificates LIMIT 10)")

        assert problems_of(night(connection)) == []


BOUNDS = [
    ("certificates", "kind", 200),
    ("mentor_pauses", "reason", 200),
    ("mentor_pauses", "actor", 200),
    ("mentor_pauses", "lifted_by", 200),
    ("mentors", "member_no", 200),
    ("mentors", "full_name", 1000),
    ("mentors", "email", 1000),
    ("coordinators", "full_name", 1000),
    ("coordinators", "email", 1000),
    ("organisations", "name", 1000),
    ("organisations", "contact_email", 1000),
    ("organisations", "contact_phone", 1000),
    ("organisations", "renewal_url", 1000),
]


class TestLongValues:
    """200 characters for what is read with each certificate or pause, 1,000 for names and addresses."""

    @pytest.mark.usefixtures("ours")
    def test_a_longer_value_is_refused_by_its_name_and_the_limit(self, owner: Connection) -> None:
        """Counted in characters; what has exactly so many is taken."""
        owner.execute("UPDATE mentor_pauses SET lifted_at = now()")
        for table, column, most in BOUNDS:
            update = f"UPDATE {table} SET {column} = %s".encode()

            owner.execute(update, ("å" * most,))
            says = f"{table}.{column} is too long, at most {most:,} characters are allowed"
            with pytest.raises(psycopg.errors.StringDataRightTruncation, match=re.escape(says)):
                owner.execute(update, ("å" * (most + 1),))

    def test_so_is_a_list_of_optional_kinds(self, facts: Facts) -> None:
        """It is read with every chunk."""
        with pytest.raises(psycopg.errors.StringDataRightTruncation, match="optional_kinds is too long"):
            facts.organisation(optional_kinds=[f"{number:0200}" for number in range(51)])

    def test_no_text_that_a_coordinator_may_write_is_without_a_bound(self, owner: Connection) -> None:
        """A new column of theirs needs one, too."""
        writable = owner.execute(
            "SELECT c.relname::text, a.attname::text FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped"
            " AND a.atttypid NOT IN ('uuid'::regtype, 'date'::regtype, 'timestamptz'::regtype)"
            " AND (has_column_privilege('authenticated', c.oid, a.attnum, 'INSERT')"
            " OR has_column_privilege('authenticated', c.oid, a.attnum, 'UPDATE'))"
        ).fetchall()

        assert set(writable) - {(table, column) for table, column, _ in BOUNDS} == {("mentors", "locale")}

    def test_the_status_of_a_longer_row_from_before_can_be_written(self, connection: Connection, facts: Facts) -> None:
        """A CHECK would refuse certjob's own UPDATE."""
        mentor_id = facts.mentor(facts.organisation())
        from_before_the_bounds(connection, CERTIFICATES, mentor_id, "k" * 300, 1)

        connection.execute("UPDATE certificates SET status = 'valid'")

        assert facts.rows("SELECT status FROM certificates") == [("valid",)]


class TestTruncate:
    """It fires no row trigger, and is noticed nevertheless."""

    def test_whoever_may_have_lost_facts_is_due(self, connection: Connection, facts: Facts) -> None:
        """All mentors: what they had, nobody can say any more."""
        facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=300))
        for table in ("certificates", "mentor_pauses"):
            connection.execute("UPDATE mentors SET review_on = 'infinity'")
            connection.execute(f"TRUNCATE {table}".encode())
            assert facts.rows("SELECT review_on = '-infinity' FROM mentors") == [(True,)], table

    def test_mentors_who_may_still_be_shown_are_not_truncated_and_others_are(
        self, connection: Connection, facts: Facts
    ) -> None:
        """As each of them could not be deleted; neither with their organisations."""
        facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=300))
        for table in ("mentors", "organisations"):
            with pytest.raises(psycopg.errors.RestrictViolation, match="may still be shown on the portal"):
                connection.execute(f"TRUNCATE {table} CASCADE".encode())

        connection.execute("UPDATE organisations SET portal = NULL")
        connection.execute("TRUNCATE mentors CASCADE")

        assert facts.rows("SELECT count(*) FROM certificates") == [(0,)]

    def test_a_hide_that_was_truncated_is_queued_again(self, connection: Connection, facts: Facts) -> None:
        """Else somebody uncertified would stay visible, and nobody would know."""
        facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1))
        night(connection, deliver=False)

        connection.execute("TRUNCATE portal_sync_events, dynamics_sync_failures")
        night(connection, deliver=False)

        assert facts.rows("SELECT visible, status FROM portal_sync_events") == [(False, "pending")]


def test_run_everybody_sees_facts_that_were_changed_without_the_triggers(
    worker_url: str, facts: Facts, tmp_path: Path
) -> None:
    """As by a restore or a replication: an ordinary run does not. With one organisation, everybody of that one."""
    for slug in ("hlf", "nhf"):
        facts.certified_mentor(facts.organisation(slug, portal=None), today() + timedelta(days=300), member_no=slug)

    def certjob(*arguments: str) -> Finished:
        return run_in_process(*arguments, environment={"CERTJOB_DATABASE_URL": worker_url}, folder=tmp_path)

    assert certjob("run").returncode == 0
    from_before_the_bounds(facts.connection, "UPDATE certificates SET expires_on = %s", today() - timedelta(days=1))

    def paused_by(*arguments: str) -> list[tuple[object, ...]]:
        certjob(*arguments)
        return facts.rows(
            "SELECT m.member_no FROM mentor_pauses AS p JOIN mentors AS m ON m.id = p.mentor_id ORDER BY m.member_no"
        )

    assert '"paused": 2' in certjob("run", "--everybody", "--dry-run", "--json").stdout
    assert paused_by("run") == []
    assert paused_by("run", "--everybody", "--organisation", "nhf") == [("nhf",)]
    assert paused_by("run", "--everybody") == [("hlf",), ("nhf",)]
