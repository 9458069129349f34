"""request_portal_resync: the app's "try again now", for coordinators of the mentor's organisation only."""

from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from tests.conftest import Certjob
from tests.support.app_rows import DENIED, Organisation
from tests.support.command_line import today
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer
from tests.support.supabase import acting, logged_in

REQUEST = "SELECT event_id, event_version, visible, in_flight FROM public.request_portal_resync(%s)"


def request(api: database.Connection, ours: Organisation, mentor_id: UUID | None = None) -> tuple[object, ...]:
    """Ask as our coordinator; return the answer."""
    with logged_in(api, ours.coordinator):
        rows: list[tuple[object, ...]] = api.execute(REQUEST, (mentor_id or ours.mentor,)).fetchall()
    assert len(rows) == 1
    return rows[0]


def event(owner: database.Connection, mentor_id: UUID) -> dict[str, object]:
    """The mentor's open event."""
    rows = owner.execute(
        "SELECT jsonb_build_object('id', id, 'version', version, 'status', status, 'visible', visible,"
        " 'attempts', attempts, 'due', next_attempt_at <= now(), 'claimed', claim_token IS NOT NULL,"
        " 'error', last_error) FROM portal_sync_events WHERE mentor_id = %s AND status IN ('pending', 'blocked')",
        (mentor_id,),
    ).fetchall()
    assert len(rows) == 1
    return dict(rows[0][0])


class TestTheEvent:
    """It is reopened or inserted, version + 1, due now unless leased."""

    def test_a_blocked_event_is_reopened_and_due_now(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """The contact was corrected in Dynamics; nobody needs to wait for an operator."""
        owner.execute(
            "UPDATE mentors SET portal_visible = false; UPDATE portal_sync_events"
            " SET status = 'blocked', attempts = 3, next_attempt_at = now() + interval '6 hours', last_error = 'down'"
        )
        before = event(owner, ours.mentor)

        answer = request(api, ours)

        assert answer == (before["id"], 2, False, False)
        assert event(owner, ours.mentor) == {
            "id": before["id"],
            "version": 2,
            "status": "pending",
            "visible": False,
            "attempts": 0,
            "due": True,
            "claimed": False,
            "error": None,
        }

    def test_without_an_open_event_one_is_inserted(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """Somebody edited the portal by hand."""
        owner.execute("UPDATE mentors SET portal_visible = false")
        owner.execute("UPDATE portal_sync_events SET status = 'delivered', delivered_at = now()")

        answer = request(api, ours)

        assert answer[1:] == (1, False, False)
        assert event(owner, ours.mentor)["due"] is True

    def test_a_call_in_flight_keeps_its_lease_and_the_answer_says_so(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """Its settle finds the raised version and leaves the event pending, due at once."""
        owner.execute(
            "UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + interval '5 min'"
        )

        answer = request(api, ours)

        assert answer[1:] == (2, False, True)
        after = event(owner, ours.mentor)
        assert (after["version"], after["claimed"], after["due"]) == (2, True, False)

    def test_asking_twice_raises_the_version_twice(self, api: database.Connection, ours: Organisation) -> None:
        """An impatient finger does no harm."""
        assert [request(api, ours)[1] for _ in range(3)] == [2, 3, 4]

    def test_the_time_since_when_it_is_wanted_stays(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """The alert must not look younger for being asked about."""
        owner.execute("UPDATE portal_sync_events SET wanted_at = '2026-03-01'")

        request(api, ours)

        assert owner.execute("SELECT wanted_at < '2026-03-02' FROM portal_sync_events").fetchall() == [(True,)]

    def test_the_next_deliver_pushes_it(
        self,
        certjob: Certjob,
        supabase_url: str,
        api: database.Connection,
        owner: database.Connection,
        ours: Organisation,
    ) -> None:
        """From the app's button to the portal, through the command that cron runs, as certjob_worker."""
        owner.execute("UPDATE portal_sync_events SET status = 'blocked'")
        owner.execute("DELETE FROM coordinator_digests")
        owner.execute("DELETE FROM cert_notification_log")
        worker_url = psycopg.conninfo.make_conninfo(supabase_url, options="-c role=certjob_worker")
        contact_id = owner.execute("SELECT dynamics_contact_id FROM mentors").fetchall()[0][0]
        request(api, ours)

        with PortalServer() as portal:
            result = certjob(
                "deliver",
                CERTJOB_DATABASE_URL=worker_url,
                CERTJOB_PORTAL_URL=portal.url,
                CERTJOB_PORTAL_KEY=portal.key,
                CERTJOB_NOTIFY_URL="maildir:mail",
            )

        assert result.returncode == 0, result
        assert portal.visible == {contact_id: False}
        assert owner.execute("SELECT count(*) FROM portal_alerts").fetchone() == (0,)


class TestTheValue:
    """What certjob wanted last; hidden whoever is not active; shown nobody about whom certjob has yet to decide."""

    @pytest.fixture
    def mentor(self, owner: database.Connection, ours: Organisation) -> UUID:
        """A mentor without any event yet."""
        return Facts(owner).mentor(ours.id)

    @pytest.mark.parametrize("change", ["a pause", "left"])
    def test_whoever_is_not_active_is_hidden_though_no_night_has_seen_it_yet(
        self, change: str, api: database.Connection, owner: database.Connection, ours: Organisation, mentor: UUID
    ) -> None:
        """The wanted value follows, so that the review after the pause shows the mentor again."""
        if change == "left":
            owner.execute("UPDATE mentors SET left_at = now() WHERE id = %s", (mentor,))
        else:
            Facts(owner).pause(mentor)

        assert request(api, ours, mentor)[2] is False
        wanted = owner.execute("SELECT portal_visible FROM mentors WHERE id = %s", (mentor,)).fetchone()
        assert wanted == (False,)

    def test_whoever_was_hidden_stays_hidden_until_a_review(
        self, api: database.Connection, owner: database.Connection, ours: Organisation, mentor: UUID
    ) -> None:
        """The pause was lifted a minute ago: showing is for certjob to decide."""
        owner.execute("UPDATE mentors SET portal_visible = false WHERE id = %s", (mentor,))

        assert request(api, ours, mentor)[2] is False

    def test_a_certified_mentor_is_shown_though_the_review_is_still_to_come(
        self, api: database.Connection, owner: database.Connection, ours: Organisation, mentor: UUID
    ) -> None:
        """A corrected contact, and a certificate that is in force beyond doubt."""
        Facts(owner).certificate(mentor, today() + timedelta(days=300))
        owner.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %s", (mentor,))

        assert request(api, ours, mentor)[2] is True
        wanted = owner.execute("SELECT portal_visible FROM mentors WHERE id = %s", (mentor,)).fetchone()
        assert wanted == (True,)

    def test_a_reviewed_mentor_is_shown_on_the_last_day_too(
        self, api: database.Connection, owner: database.Connection, ours: Organisation, mentor: UUID
    ) -> None:
        """What the last review wanted holds until the next one."""
        Facts(owner).certificate(mentor, today())
        owner.execute("UPDATE mentors SET review_on = current_date + 1 WHERE id = %s", (mentor,))

        assert request(api, ours, mentor)[2] is True

    @pytest.mark.parametrize("ended", ["yesterday", "revoked", "one kind of two"])
    def test_nobody_is_shown_whom_the_next_review_may_hide(
        self, ended: str, api: database.Connection, owner: database.Connection, ours: Organisation, mentor: UUID
    ) -> None:
        """Refused, with what will happen; nothing is queued."""
        facts = Facts(owner)
        facts.certificate(mentor, today() + timedelta(days=-1 if ended == "yesterday" else 300))
        if ended == "revoked":
            owner.execute("UPDATE certificates SET revoked_at = now() WHERE mentor_id = %s", (mentor,))
        if ended == "one kind of two":
            facts.certificate(mentor, today() - timedelta(days=1), kind="first_aid")

        with pytest.raises(psycopg.errors.RaiseException, match="waits for a review") as refused:
            request(api, ours, mentor)

        assert "certjob run" in (refused.value.diag.message_hint or "")
        queued = owner.execute("SELECT count(*) FROM portal_sync_events WHERE mentor_id = %s", (mentor,))
        assert queued.fetchone() == (0,)

    def test_an_optional_kind_hides_nobody_here_either(
        self, api: database.Connection, owner: database.Connection, ours: Organisation, mentor: UUID
    ) -> None:
        """As the rules have it."""
        Facts(owner).certificate(mentor, today() - timedelta(days=1), kind="first_aid")
        owner.execute("UPDATE organisations SET optional_kinds = '{first_aid}'")

        assert request(api, ours, mentor)[2] is True


class TestWhoMayAsk:
    """42501 for anybody but that organisation's coordinators."""

    def test_another_organisations_coordinator_may_not_and_learns_nothing(
        self, api: database.Connection, owner: database.Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """The same words for a mentor who exists and for one who does not."""
        said = set()
        for mentor_id in (theirs.mentor, uuid4(), None):
            with pytest.raises(DENIED) as denied, logged_in(api, ours.coordinator):
                api.execute(REQUEST, (mentor_id,))
            said.add(str(denied.value))

        assert len(said) == 1
        assert event(owner, theirs.mentor)["version"] == 1

    @pytest.mark.parametrize("role", ["anon", "service_role", "certjob_worker"])
    def test_only_logged_in_users_may_call_it_at_all(
        self, role: str, api: database.Connection, ours: Organisation
    ) -> None:
        """Whatever the claims say."""
        with pytest.raises(DENIED, match="permission denied for function"), acting(api, role, sub=ours.coordinator):
            api.execute(REQUEST, (ours.mentor,))

    def test_a_deleted_coordinator_may_not(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """Though the token is good for another hour."""
        owner.execute("DELETE FROM coordinators")

        with pytest.raises(DENIED):
            request(api, ours)

    def test_a_user_without_an_id_may_not(self, api: database.Connection, ours: Organisation) -> None:
        """NULL is no coordinator."""
        with pytest.raises(DENIED), acting(api, "authenticated"):
            api.execute(REQUEST, (ours.mentor,))

    def test_an_organisation_without_a_portal_has_nothing_to_push(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """Said in words that the app can show."""
        owner.execute("UPDATE organisations SET portal = NULL")

        with pytest.raises(psycopg.errors.RaiseException, match="HLF has no portal"):
            request(api, ours)

    def test_temporary_tables_of_the_same_names_deceive_nobody(
        self, api: database.Connection, owner: database.Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """The function runs as its owner: it must read its own tables, not the caller's."""
        api.execute("SET search_path = pg_temp, public")
        with logged_in(api, ours.coordinator):
            for table in ("mentors", "organisations", "coordinators", "portal_sync_events", "mentor_pauses"):
                api.execute(f"CREATE TABLE pg_temp.{table} AS SELECT * FROM public.{table}".encode())
            api.execute("UPDATE pg_temp.mentors SET id = %s", (theirs.mentor,))

        with pytest.raises(DENIED), logged_in(api, ours.coordinator):
            api.execute(REQUEST, (theirs.mentor,))
        assert request(api, ours)[1] == 2
        assert event(owner, ours.mentor)["version"] == 2

    def test_a_request_waits_for_a_mentor_whom_certjob_holds(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """Mentor before event, as certjob locks them: with the mentor held, no event is touched."""
        with owner.transaction():
            owner.execute("SELECT FROM mentors FOR NO KEY UPDATE")
            api.execute("SET lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                request(api, ours)
            free = owner.execute("SELECT version FROM portal_sync_events FOR UPDATE NOWAIT").fetchall()

        assert free == [(1,)]
