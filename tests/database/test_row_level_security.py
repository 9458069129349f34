"""What coordinators see and change through the app: their own organisation's facts, and nothing derived.

On a database of Supabase's shape, through its real roles, as PostgREST would ask.
"""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from certjob import database
from tests.support.app_rows import CERTJOBS_OWN, DENIED, READABLE, Organisation, count
from tests.support.supabase import logged_in


class TestReading:
    """Whole rows of the own organisation."""

    @pytest.mark.parametrize("table", READABLE)
    def test_a_coordinator_reads_whole_rows_of_the_own_organisation_only(
        self,
        table: str,
        api: database.Connection,
        owner: database.Connection,
        ours: Organisation,
        theirs: Organisation,
    ) -> None:
        """There are two rows; each coordinator sees one."""
        assert count(owner, table) == 2

        for organisation in (ours, theirs):
            with logged_in(api, organisation.coordinator):
                assert count(api, table) == 1
                if table == "portal_alerts":
                    seen = api.execute("SELECT organisation_id FROM portal_alerts").fetchall()
                    assert seen == [(organisation.id,)]

    @pytest.mark.parametrize("table", CERTJOBS_OWN)
    def test_what_is_certjobs_own_business_is_closed(
        self, table: str, api: database.Connection, ours: Organisation
    ) -> None:
        """The ledgers and the digests' queue."""
        with pytest.raises(DENIED), logged_in(api, ours.coordinator):
            count(api, table)

    def test_a_coordinator_hears_of_the_own_organisations_unresolved_failures_only(
        self, api: database.Connection, owner: database.Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """Realtime asks for the changed row by its key, as each listener; what it gets, it tells."""
        published = owner.execute("SELECT tablename FROM pg_publication_tables WHERE pubname = 'supabase_realtime'")
        by_key = "SELECT 1 FROM dynamics_sync_failures WHERE id = %s"
        keys = dict(owner.execute("SELECT mentor_id, id FROM dynamics_sync_failures").fetchall())

        with logged_in(api, ours.coordinator):
            own = api.execute(by_key, (keys[ours.mentor],)).fetchall()
            other = api.execute(by_key, (keys[theirs.mentor],)).fetchall()
        owner.execute("UPDATE dynamics_sync_failures SET resolved_at = now()")
        with logged_in(api, ours.coordinator):
            resolved = api.execute(by_key, (keys[ours.mentor],)).fetchall()

        assert published.fetchall() == [("dynamics_sync_failures",)]
        assert (own, other, resolved) == ([(1,)], [], [])

    @pytest.mark.parametrize("table", READABLE)
    def test_a_policy_reads_the_coordinator_once_and_the_own_rows_by_an_index(
        self, table: str, api: database.Connection, ours: Organisation
    ) -> None:
        """Not once for each row: (SELECT …) makes it a value that is found before the scan begins."""
        with logged_in(api, ours.coordinator):
            api.execute("SET LOCAL enable_seqscan = off")
            plan = "\n".join(
                row[0] for row in api.execute(f"EXPLAIN (VERBOSE) SELECT * FROM {table}".encode()).fetchall()
            )

        filters = [line for line in plan.splitlines() if "Filter" in line or "Cond" in line]
        assert "InitPlan" in plan
        assert not any("coordinator_organisation_id" in line for line in filters), plan


class TestChanging:
    """The fact columns, and nothing derived."""

    def test_a_coordinator_enters_and_corrects_a_certificate(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """And certjob will look at the mentor: the trigger sees what the coordinator may not write."""
        owner.execute("UPDATE mentors SET review_on = 'infinity'")

        with logged_in(api, ours.coordinator):
            api.execute(
                "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
                " VALUES (%s, 'likeperson', '2026-03-01', '2028-03-01')",
                (ours.mentor,),
            )
            changed = api.execute("UPDATE certificates SET expires_on = '2028-04-01' WHERE issued_on = '2026-03-01'")
            revoked = api.execute("UPDATE certificates SET revoked_at = now() WHERE id = %s", (ours.certificate,))

        assert (changed.rowcount, revoked.rowcount) == (1, 1)
        due = owner.execute("SELECT count(*) FROM mentors WHERE review_on = '-infinity' AND id = %s", (ours.mentor,))
        assert due.fetchone() == (1,)

    def test_a_coordinator_changes_a_mentors_name_address_language_contact_and_leaving(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """A corrected contact reopens the push, and a corrected address the failed reminder, as always."""
        owner.execute("UPDATE cert_notification_log SET status = 'failed'")
        owner.execute("UPDATE portal_sync_events SET status = 'blocked'")

        with logged_in(api, ours.coordinator):
            changed = api.execute(
                "UPDATE mentors SET full_name = 'Kari', email = 'k@example.org', locale = 'nn', left_at = now(),"
                " dynamics_contact_id = gen_random_uuid()"
            )

        assert changed.rowcount == 1
        assert owner.execute("SELECT status FROM cert_notification_log").fetchall() == [("pending",)]
        assert owner.execute("SELECT status FROM portal_sync_events").fetchall() == [("pending",)]

    def test_a_coordinator_opens_a_pause_and_lifts_it_in_their_own_name(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """And lifts a colleague's, too."""
        with logged_in(api, ours.coordinator):
            api.execute(
                "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'leave', %s)",
                (ours.mentor, str(ours.coordinator)),
            )
            lifted = api.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = %s", (str(ours.coordinator),))

        assert lifted.rowcount == 2
        assert owner.execute("SELECT DISTINCT lifted_by FROM mentor_pauses").fetchall() == [(str(ours.coordinator),)]

    def test_a_pause_may_be_entered_with_the_day_on_which_it_began(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """Somebody fell ill on Sunday, and the app hears of it on Tuesday."""
        began = datetime(2026, 3, 1, tzinfo=UTC)

        with logged_in(api, ours.coordinator):
            api.execute(
                "INSERT INTO mentor_pauses (id, mentor_id, reason, actor, paused_at) VALUES (%s, %s, 'leave', %s, %s)",
                (uuid4(), ours.mentor, str(ours.coordinator), began),
            )

        assert owner.execute("SELECT paused_at FROM mentor_pauses WHERE reason = 'leave'").fetchall() == [(began,)]
