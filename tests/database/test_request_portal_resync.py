"""request_portal_resync: the app's "try again now", for coordinators of the mentor's organisation only."""

import random
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.facts import reading
from tests.conftest import Certjob
from tests.support.app_rows import DENIED, Organisation
from tests.support.command_line import today
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer
from tests.support.supabase import acting, logged_in
from tests.support.waiting import until, waits_for_a_lock

REQUEST = "SELECT event_id, event_version, visible, in_flight FROM public.request_portal_resync(%s)"


def request(api: Connection, ours: Organisation, mentor_id: UUID | None = None) -> tuple[object, ...]:
    """Ask as our coordinator; return event, version, value and whether a call is in flight."""
    with logged_in(api, ours.coordinator):
        ((*answer,),) = api.execute(REQUEST, (mentor_id or ours.mentor,)).fetchall()
    return tuple(answer)


def events(owner: Connection, mentor_id: UUID) -> list[tuple[object, ...]]:
    """The mentor's open event: version, status, value, attempts, whether due, claimed, last error."""
    return owner.execute(
        "SELECT version, status, visible, attempts, next_attempt_at <= now(), claim_token IS NOT NULL, last_error"
        " FROM portal_sync_events WHERE mentor_id = %s AND status IN ('pending', 'blocked')",
        (mentor_id,),
    ).fetchall()


class TestTheEvent:
    """It is reopened or inserted, version + 1, due now unless leased."""

    def test_a_blocked_event_is_reopened_and_due_now_and_looks_no_younger(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """The contact was corrected in Dynamics; an impatient finger does no harm."""
        owner.execute(
            "UPDATE mentors SET portal_visible = false; UPDATE portal_sync_events SET status = 'blocked', attempts = 3,"
            " next_attempt_at = now() + interval '6 hours', last_error = 'down', wanted_at = '2026-03-01'"
        )

        answers = [request(api, ours)[1:] for _ in range(3)]

        assert answers == [(version, False, False) for version in (2, 3, 4)]
        assert events(owner, ours.mentor) == [(4, "pending", False, 0, True, False, None)]
        assert owner.execute("SELECT wanted_at < '2026-03-02' FROM portal_sync_events").fetchall() == [(True,)]

    def test_without_an_open_event_one_is_inserted(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """Somebody edited the portal by hand."""
        owner.execute("UPDATE mentors SET portal_visible = false")
        owner.execute("UPDATE portal_sync_events SET status = 'delivered', delivered_at = now()")

        assert request(api, ours)[1:] == (1, False, False)
        assert events(owner, ours.mentor) == [(1, "pending", False, 0, True, False, None)]

    def test_a_call_in_flight_keeps_its_lease_and_the_answer_says_so(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """Its settle finds the raised version and leaves the event pending, due at once."""
        owner.execute(
            "UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + interval '5 min'"
        )

        assert request(api, ours)[1:] == (2, False, True)
        assert [event[4:6] for event in events(owner, ours.mentor)] == [(False, True)]

    def test_the_next_deliver_pushes_it(
        self, certjob: Certjob, supabase_url: str, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """From the app's button to the portal, through the command that cron runs, as certjob_worker."""
        owner.execute("UPDATE portal_sync_events SET status = 'blocked'")
        owner.execute("DELETE FROM coordinator_digests")
        owner.execute("DELETE FROM cert_notification_log")
        ((contact_id,),) = owner.execute("SELECT dynamics_contact_id FROM mentors").fetchall()
        request(api, ours)

        with PortalServer() as portal:
            result = certjob(
                "deliver",
                CERTJOB_DATABASE_URL=psycopg.conninfo.make_conninfo(supabase_url, options="-c role=certjob_worker"),
                CERTJOB_PORTAL_URL=portal.url,
                CERTJOB_PORTAL_KEY=portal.key,
                CERTJOB_NOTIFY_URL="maildir:mail",
            )

        assert result.returncode == 0, result
        assert portal.visible == {contact_id: False}
        assert owner.execute("SELECT count(*) FROM portal_alerts").fetchone() == (0,)


YESTERDAY, LASTING = -1, 300
"""Days that a certificate has left."""


@pytest.fixture
def mentor(owner: Connection, ours: Organisation) -> UUID:
    """A mentor without any event yet."""
    return Facts(owner).mentor(ours.id)


class TestTheValue:
    """What certjob wanted last; hidden whoever is not active; shown nobody about whom certjob has yet to decide."""

    @pytest.mark.parametrize(
        ("certificates", "change", "visible"),
        [
            ([], "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'ill', 'eva')", False),
            ([], "UPDATE mentors SET left_at = now() WHERE id = %(mentor)s", False),
            ([LASTING], "UPDATE mentors SET portal_visible = false WHERE id = %(mentor)s", False),
            ([LASTING], "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %(mentor)s", True),
            ([0], "UPDATE mentors SET review_on = current_date + 1 WHERE id = %(mentor)s", True),
            ([YESTERDAY], "UPDATE organisations SET optional_kinds = '{kind 0}'", True),
        ],
        ids=["paused", "left", "hidden before", "corrected contact", "reviewed, last day", "optional kind ended"],
    )
    def test_what_is_certain_is_pushed_though_the_review_is_still_to_come(
        self,
        certificates: Sequence[int],
        change: str,
        visible: bool,
        api: Connection,
        owner: Connection,
        ours: Organisation,
        mentor: UUID,
    ) -> None:
        """The desired value follows, so that the review after the pause shows the mentor again."""
        for number, days in enumerate(certificates):
            Facts(owner).certificate(mentor, today() + timedelta(days=days), kind=f"kind {number}")
        owner.execute(change.encode(), {"mentor": mentor})

        assert request(api, ours, mentor)[2] is visible
        wanted = owner.execute("SELECT portal_visible FROM mentors WHERE id = %s", (mentor,))
        assert wanted.fetchone() == (visible,)

    @pytest.mark.parametrize(
        ("certificates", "change"),
        [
            ([YESTERDAY], ""),
            ([LASTING], "UPDATE certificates SET revoked_at = now()"),
            ([LASTING, YESTERDAY], ""),
            ([LASTING], "UPDATE certificates SET revoked_at = now(), issued_on = current_date + 30"),
        ],
        ids=["ended", "revoked", "one kind of two ended", "revoked before it began"],
    )
    def test_nobody_is_shown_whom_the_next_review_may_hide(
        self,
        certificates: Sequence[int],
        change: str,
        api: Connection,
        owner: Connection,
        ours: Organisation,
        mentor: UUID,
    ) -> None:
        """Refused, with what will happen; nothing is queued."""
        for number, days in enumerate(certificates):
            Facts(owner).certificate(mentor, today() + timedelta(days=days), kind=f"kind {number}")
        if change:
            owner.execute(f"{change} WHERE mentor_id = %s".encode(), (mentor,))

        with pytest.raises(psycopg.errors.RaiseException, match="waits for a review") as refused:
            request(api, ours, mentor)

        assert "certjob run" in (refused.value.diag.message_hint or "")
        assert events(owner, mentor) == []

    @pytest.mark.parametrize("zone", ["UTC", "Etc/GMT+12", "Far+167"])
    def test_the_callers_time_zone_does_not_make_an_ended_certificate_hold(
        self, zone: str, api: Connection, owner: Connection, ours: Organisation, mentor: UUID
    ) -> None:
        """PostgREST lets a request choose one, and PostgreSQL knows some that are a week away."""
        Facts(owner).certificate(mentor, today() - timedelta(days=2))
        api.execute("SELECT set_config('timezone', %s, false)", (zone,))

        with pytest.raises(psycopg.errors.RaiseException, match="waits for a review"):
            request(api, ours, mentor)

    def test_an_organisation_whose_rules_change_meanwhile_is_read_after_the_wait(
        self, api: Connection, owner: Connection, ours: Organisation, mentor: UUID, supabase_url: str
    ) -> None:
        """The request waits for the mentor whom that change holds: what was optional before it is not any more."""
        owner.execute("UPDATE organisations SET optional_kinds = '{first_aid}'")
        Facts(owner).certificate(mentor, today() + timedelta(days=300))
        Facts(owner).certificate(mentor, today() - timedelta(days=3), kind="first_aid")
        ended: list[object] = []

        def ask() -> None:
            try:
                ended.append(request(api, ours, mentor))
            except psycopg.Error as error:
                ended.append(str(error))

        thread = threading.Thread(target=ask, daemon=True)
        with database.connect(supabase_url) as observer, owner.transaction():
            owner.execute("UPDATE organisations SET optional_kinds = '{}'")
            thread.start()
            until(lambda: waits_for_a_lock(observer, api), seconds=60)
        thread.join(60)

        assert len(ended) == 1
        assert "waits for a review" in str(ended[0])
        assert events(owner, mentor) == []

    def test_nobody_is_shown_whom_the_rules_would_hide_wherever_the_programme_lives(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """200 mentors with whatever certificates and pauses: asked today, decided on the day of every time zone."""
        made, dice, began = Facts(owner), random.Random(5), datetime.now(UTC).date()
        owner.execute("UPDATE organisations SET optional_kinds = '{optional}'")
        mentors = [made.mentor(ours.id) for _ in range(200)]
        for mentor_id in mentors:
            for kind in dice.sample(("likeperson", "first_aid", "optional"), dice.randint(0, 3)):
                for begins_in_days in dice.sample((-60, -2, -1, 0, 1, 2, 3), dice.randint(1, 2)):
                    issued_on = began + timedelta(days=begins_in_days)
                    made.certificate(
                        mentor_id,
                        issued_on + timedelta(days=dice.choice((0, 1, 2, 59, 60, 61, 90))),
                        kind=kind,
                        issued_on=issued_on,
                        revoked_at=dice.choice((None, None, None, datetime.now(UTC))),
                    )
            if dice.random() < 0.1:
                made.pause(mentor_id)
            owner.execute(
                "UPDATE mentors SET portal_visible = %s WHERE id = %s", (dice.choice((None, True)), mentor_id)
            )
        shown, refused = [], 0
        for mentor_id in mentors:
            try:
                if request(api, ours, mentor_id)[2]:
                    shown.append(mentor_id)
            except psycopg.errors.RaiseException:
                refused += 1

        zones = [timedelta(days=offset) for offset in (-1, 0, 1)]
        days = {began + offset for offset in zones} | {datetime.now(UTC).date() + offset for offset in zones}
        wrong = [
            (each, day)
            for each in reading.read(owner, shown, lock=False).mentors
            for day in days
            if not rules.decide(each, day).visible
        ]

        assert wrong == []
        assert min(len(shown), refused) > 25


class TestWhoMayAsk:
    """42501 for anybody but that organisation's coordinators."""

    def test_another_organisations_coordinator_may_not_and_learns_nothing(
        self, api: Connection, owner: Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """The same words for a mentor who exists and for one who does not."""
        said = set()
        for mentor_id in (theirs.mentor, uuid4(), None):
            with pytest.raises(DENIED) as denied, logged_in(api, ours.coordinator):
                api.execute(REQUEST, (mentor_id,))
            said.add(str(denied.value))

        assert len(said) == 1
        assert [event[0] for event in events(owner, theirs.mentor)] == [1]

    def test_only_logged_in_users_who_coordinate_something_may_call_it_at_all(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """Whatever the claims say; NULL is no coordinator, and a deleted one is none though the token lives on."""
        for role in ("anon", "service_role", "certjob_worker"):
            refused = pytest.raises(DENIED, match="permission denied for function")
            with refused, acting(api, role, sub=ours.coordinator):
                api.execute(REQUEST, (ours.mentor,))
        with pytest.raises(DENIED), acting(api, "authenticated"):
            api.execute(REQUEST, (ours.mentor,))
        owner.execute("DELETE FROM coordinators")
        with pytest.raises(DENIED):
            request(api, ours)

    def test_an_organisation_without_a_portal_has_nothing_to_push(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        owner.execute("UPDATE organisations SET portal = NULL")

        with pytest.raises(psycopg.errors.RaiseException, match="HLF has no portal"):
            request(api, ours)

    def test_temporary_tables_of_the_same_names_deceive_nobody(
        self, api: Connection, owner: Connection, ours: Organisation, theirs: Organisation
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
        assert [event[0] for event in events(owner, ours.mentor)] == [2]

    def test_a_request_waits_for_a_mentor_whom_certjob_holds(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """Mentor before event, as certjob locks them: with the mentor held, no event is touched."""
        with owner.transaction():
            owner.execute("SELECT FROM mentors FOR NO KEY UPDATE")
            api.execute("SET lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                request(api, ours)
            free = owner.execute("SELECT version FROM portal_sync_events FOR UPDATE NOWAIT").fetchall()

        assert free == [(1,)]
