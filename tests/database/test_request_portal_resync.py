"""request_portal_resync: the app's "try again now", for coordinators of the mentor's organisation only."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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

REQUEST = "SELECT event_version, visible, in_flight FROM public.request_portal_resync(%s)"
UNDECIDED = pytest.raises(psycopg.errors.RaiseException, match="waits for a review")
DAY = timedelta(days=1)
YESTERDAY, LASTING = -1, 300
"""Days that a certificate has left."""


def request(api: Connection, ours: Organisation, mentor_id: UUID | None = None) -> tuple[object, ...]:
    """Ask as our coordinator; return version, value and whether a call is in flight."""
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


@pytest.fixture
def mentor(owner: Connection, ours: Organisation) -> UUID:
    """A mentor without any event yet."""
    return Facts(owner).mentor(ours.id)


def test_an_event_is_reopened_or_inserted_and_the_next_deliver_pushes_it(
    certjob: Certjob, supabase_url: str, api: Connection, owner: Connection, ours: Organisation
) -> None:
    """From the app's button to the portal, as certjob_worker. An impatient finger does no harm; it looks no younger."""
    owner.execute(
        "UPDATE mentors SET portal_visible = false; UPDATE portal_sync_events SET status = 'blocked', attempts = 3,"
        " next_attempt_at = now() + interval '6 hours', last_error = 'down', wanted_at = '2026-03-01';"
        "DELETE FROM coordinator_digests; DELETE FROM cert_notification_log"
    )
    ((contact_id,),) = owner.execute("SELECT dynamics_contact_id FROM mentors").fetchall()
    assert [request(api, ours) for _ in range(3)] == [(version, False, False) for version in (2, 3, 4)]
    assert events(owner, ours.mentor) == [(4, "pending", False, 0, True, False, None)]
    assert owner.execute("SELECT wanted_at < '2026-03-02' FROM portal_sync_events").fetchall() == [(True,)]

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
    assert events(owner, ours.mentor) == []
    assert request(api, ours) == (1, False, False), "somebody edited the portal by hand"
    assert events(owner, ours.mentor) == [(1, "pending", False, 0, True, False, None)]
    # A call in flight keeps its lease: its settle finds the raised version and leaves the event pending, due at once.
    owner.execute("UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + '5 min'")
    assert request(api, ours) == (2, False, True)
    assert [event[4:6] for event in events(owner, ours.mentor)] == [(False, True)]


PAUSED = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'ill', 'eva')"
UPDATE = "UPDATE {} SET {} WHERE {} = %(mentor)s"


@pytest.mark.parametrize(
    ("certificates", "change", "visible"),
    [
        pytest.param([], PAUSED, False, id="paused"),
        pytest.param([], UPDATE.format("mentors", "left_at = now()", "id"), False, id="left"),
        pytest.param([LASTING], UPDATE.format("mentors", "portal_visible = false", "id"), False, id="hidden before"),
        pytest.param([LASTING], UPDATE.format("mentors", "portal_visible = NULL", "id"), True, id="corrected contact"),
        pytest.param(
            [0], UPDATE.format("mentors", "review_on = current_date + 1", "id"), True, id="reviewed, last day"
        ),
        pytest.param([YESTERDAY], "UPDATE organisations SET optional_kinds = '{kind 0}'", True, id="optional ended"),
        pytest.param([YESTERDAY], "SELECT", "waits for a review", id="ended"),
        pytest.param([], "UPDATE organisations SET portal = NULL", "HLF has no portal", id="nothing to push"),
        pytest.param(
            [LASTING],
            UPDATE.format("certificates", "revoked_at = now()", "mentor_id"),
            "waits for a review",
            id="revoked",
        ),
    ],
)
def test_what_is_certain_is_pushed_and_nobody_is_shown_whom_the_next_review_may_hide(
    certificates: Sequence[int],
    change: str,
    visible: bool | str,
    api: Connection,
    owner: Connection,
    ours: Organisation,
    mentor: UUID,
) -> None:
    """The desired value follows, so that the review after the pause shows the mentor again. Else it says why not."""
    for number, days in enumerate(certificates):
        Facts(owner).certificate(mentor, today() + days * DAY, kind=f"kind {number}")
    owner.execute(change.encode(), {"mentor": mentor})

    if isinstance(visible, str):
        with pytest.raises(psycopg.errors.RaiseException, match=visible) as refused:
            request(api, ours, mentor)
        assert visible != "waits for a review" or "certjob run" in (refused.value.diag.message_hint or "")
        assert events(owner, mentor) == []
    else:
        assert request(api, ours, mentor)[1] is visible
        wanted = owner.execute("SELECT portal_visible FROM mentors WHERE id = %s", (mentor,))
        assert wanted.fetchone() == (visible,)


def test_an_organisation_whose_rules_change_meanwhile_is_read_after_the_wait(
    api: Connection, owner: Connection, ours: Organisation, mentor: UUID, supabase_url: str
) -> None:
    """The request waits for the mentor whom that change holds: what was optional before it is not any more.

    Mentor before event, as certjob locks them: while it waits, no event is touched.
    """
    owner.execute("UPDATE organisations SET optional_kinds = '{first_aid}'")
    Facts(owner).certificate(mentor, today() + 300 * DAY)
    Facts(owner).certificate(mentor, today() - 3 * DAY, kind="first_aid")

    with database.connect(supabase_url) as observer, ThreadPoolExecutor(1) as background:
        with owner.transaction():
            owner.execute("UPDATE organisations SET optional_kinds = '{}'")
            asked = background.submit(request, api, ours, mentor)
            until(lambda: waits_for_a_lock(observer, api), seconds=60)
            assert len(owner.execute("SELECT FROM portal_sync_events FOR UPDATE NOWAIT").fetchall()) == 1
        with UNDECIDED:
            asked.result(60)


def test_nobody_is_shown_whom_the_rules_would_hide_wherever_the_programme_lives(
    api: Connection, owner: Connection, ours: Organisation
) -> None:
    """150 mentors with whatever certificates and pauses: asked today, decided on the day of every time zone.

    PostgREST lets a request choose a zone, and PostgreSQL knows some that are a week away.
    """
    api.execute("SET timezone = 'Far+167'")
    made, dice, began = Facts(owner), random.Random(5), datetime.now(UTC).date()
    owner.execute("UPDATE organisations SET optional_kinds = '{optional}'")
    shown, refused = [], 0
    for _ in range(150):
        mentor_id = made.mentor(ours.id)
        for kind in dice.sample(("likeperson", "first_aid", "optional"), dice.randint(0, 3)):
            for begins_in_days in dice.sample((-60, -2, -1, 0, 1, 2, 3), dice.randint(1, 2)):
                issued_on = began + begins_in_days * DAY
                ends_on = issued_on + dice.choice((0, 1, 2, 59, 60, 61, 90)) * DAY
                revoked_at = dice.choice((None, None, None, datetime.now(UTC)))
                made.certificate(mentor_id, ends_on, kind=kind, issued_on=issued_on, revoked_at=revoked_at)
        if dice.random() < 0.1:
            made.pause(mentor_id)
        owner.execute("UPDATE mentors SET portal_visible = %s WHERE id = %s", (dice.choice((None, True)), mentor_id))
        try:
            shown += [mentor_id] if request(api, ours, mentor_id)[1] else []
        except psycopg.errors.RaiseException:
            refused += 1

    days = {day + offset * DAY for day in (began, datetime.now(UTC).date()) for offset in (-1, 0, 1)}
    read = reading.read(owner, shown, lock=False).mentors
    assert [(each, day) for each in read for day in days if not rules.decide(each, day).visible] == []
    assert min(len(shown), refused) > 20


class TestWhoMayAsk:
    """42501 for anybody but that organisation's coordinators."""

    def test_another_organisations_coordinator_may_not_and_learns_nothing(
        self, api: Connection, owner: Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """The same words for a mentor who exists and for one who does not; temporary tables deceive nobody."""
        api.execute("SET search_path = pg_temp, public")
        with logged_in(api, ours.coordinator):
            for table in ("mentors", "organisations", "coordinators", "portal_sync_events", "mentor_pauses"):
                api.execute(f"CREATE TABLE pg_temp.{table} AS SELECT * FROM public.{table}".encode())
            api.execute("UPDATE pg_temp.mentors SET id = %s", (theirs.mentor,))
        said = set()
        for mentor_id in (theirs.mentor, uuid4(), None):
            with pytest.raises(DENIED) as denied, logged_in(api, ours.coordinator):
                api.execute(REQUEST, (mentor_id,))
            said.add(str(denied.value))

        assert len(said) == 1
        assert [event[0] for event in events(owner, theirs.mentor)] == [1]
        assert request(api, ours)[0] == 2

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
