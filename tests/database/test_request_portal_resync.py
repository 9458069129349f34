"""request_portal_resync: the app's "try again now", for coordinators of the mentor's organisation only."""

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob.domain import rules
from certjob.facts import reading
from tests.conftest import Certjob
from tests.support.app_rows import DENIED, Organisation
from tests.support.command_line import today
from tests.support.portal_server import PortalServer
from tests.support.supabase import acting
from tests.support.waiting import until, waits_for_a_lock

REQUEST = "SELECT event_version, visible, in_flight FROM certjob.request_portal_resync(%(mentor)s)"
DAY = timedelta(days=1)


def request(ours: Organisation, mentor_id: UUID | None = None) -> tuple[object, ...]:
    """Ask as our coordinator; return version, value and whether a call is in flight."""
    (answer,) = ours.asks(REQUEST, mentor=mentor_id or ours.mentor)
    return answer


def events(ours: Organisation, mentor_id: UUID) -> list[tuple[object, ...]]:
    """The mentor's open event: version, status, value, attempts, whether due, claimed, last error."""
    return ours.facts.rows(
        "SELECT version, status, visible, attempts, next_attempt_at <= now(), claim_token IS NOT NULL, last_error"
        " FROM portal_sync_events WHERE mentor_id = %s AND status IN ('pending', 'blocked')",
        mentor_id,
    )


def test_an_event_is_reopened_or_inserted_and_the_next_deliver_pushes_it(
    certjob: Certjob, supabase_url: str, portal: PortalServer, ways_out: dict[str, str], ours: Organisation
) -> None:
    """From the app's button to the portal, as certjob_worker. An impatient finger does no harm; it looks no younger."""
    owner = ours.facts.connection
    owner.execute(
        "UPDATE mentors SET portal_visible = false; UPDATE portal_sync_events SET status = 'blocked', attempts = 3,"
        " next_attempt_at = now() + interval '6 hours', last_error = 'down', wanted_at = '2026-03-01';"
        "DELETE FROM coordinator_digests; DELETE FROM cert_notification_log"
    )
    assert [request(ours) for _ in range(3)] == [(version, False, False) for version in (2, 3, 4)]
    assert events(ours, ours.mentor) == [(4, "pending", False, 0, True, False, None)]
    assert ours.facts.rows("SELECT wanted_at < '2026-03-02' FROM portal_sync_events") == [(True,)]

    as_worker = psycopg.conninfo.make_conninfo(supabase_url, options="-c role=certjob_worker")
    result = certjob("deliver", CERTJOB_DATABASE_URL=as_worker, **ways_out)

    assert result.returncode == 0, result
    assert list(portal.visible.items()) == [(*ours.facts.rows("SELECT dynamics_contact_id FROM mentors")[0], False)]
    assert events(ours, ours.mentor) == []
    assert request(ours) == (1, False, False), "somebody edited the portal by hand"
    assert events(ours, ours.mentor) == [(1, "pending", False, 0, True, False, None)]
    # A call in flight keeps its lease: its settle finds the raised version and leaves the event pending, due at once.
    owner.execute("UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + '5 min'")
    assert request(ours) == (2, False, True)
    assert [event[4:6] for event in events(ours, ours.mentor)] == [(False, True)]


PAUSED = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'ill', 'eva')"
REVOKED = "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %(mentor)s"
MENTOR = "UPDATE mentors SET {} WHERE id = %(mentor)s"
YESTERDAY, LASTING = -1, 300
"""Days that a certificate has left."""
CERTAIN = {
    # The mentor's certificate, what happens, and what is pushed.
    "paused": (None, PAUSED, False),
    "left": (None, MENTOR.format("left_at = now()"), False),
    "hidden before": (LASTING, MENTOR.format("portal_visible = false"), False),
    "corrected contact": (LASTING, MENTOR.format("portal_visible = NULL"), True),
    "reviewed, last day": (0, MENTOR.format("review_on = current_date + 1"), True),
}
REFUSED = {
    "ended": (YESTERDAY, "SELECT", "waits for a review"),
    "revoked": (LASTING, REVOKED, "waits for a review"),
    "nothing to push": (None, "UPDATE organisations SET portal = NULL", "HLF has no portal"),
}


@pytest.mark.parametrize("case", [*CERTAIN, *REFUSED])
def test_what_is_certain_is_pushed_and_nobody_is_shown_whom_the_next_review_may_hide(
    case: str, ours: Organisation
) -> None:
    """The desired value follows, so that the review after the pause shows the mentor again. Else it says why not."""
    days, change, answer = (CERTAIN | REFUSED)[case]
    mentor = ours.facts.mentor(ours.id)
    if days is not None:
        ours.facts.certificate(mentor, today() + days * DAY)
    ours.facts.connection.execute(change.encode(), {"mentor": mentor})

    if isinstance(answer, bool):
        assert request(ours, mentor)[1] is answer
        assert ours.facts.rows("SELECT portal_visible FROM mentors WHERE id = %s", mentor) == [(answer,)]
    else:
        with pytest.raises(psycopg.errors.RaiseException, match=answer) as refused:
            request(ours, mentor)
        assert answer == "HLF has no portal" or "certjob run" in (refused.value.diag.message_hint or "")
        assert events(ours, mentor) == []


def test_an_organisation_whose_rules_change_meanwhile_is_read_after_the_wait(
    ours: Organisation, supabase_url: str
) -> None:
    """The request waits for the mentor whom that change holds: what was optional before it is not any more.

    Mentor before event, as certjob locks them: while it waits, no event is touched.
    """
    owner = ours.facts.connection
    owner.execute("UPDATE organisations SET optional_kinds = '{likeperson}'")
    owner.execute("UPDATE mentor_pauses SET lifted_at = now(); UPDATE certificates SET expires_on = current_date - 3")

    with psycopg.connect(supabase_url, autocommit=True) as observer, ThreadPoolExecutor(1) as background:
        with owner.transaction():
            owner.execute("UPDATE organisations SET optional_kinds = '{}'")
            asked = background.submit(request, ours)
            until(lambda: waits_for_a_lock(observer, ours.api), seconds=60)
            assert len(owner.execute("SELECT FROM portal_sync_events FOR UPDATE NOWAIT").fetchall()) == 1
        with pytest.raises(psycopg.errors.RaiseException, match="waits for a review"):
            asked.result(60)


def test_nobody_is_shown_whom_the_rules_would_hide_wherever_the_programme_lives(ours: Organisation) -> None:
    """150 mentors with whatever certificates and pauses: asked today, decided on the day of every time zone.

    PostgREST lets a request choose a zone, and PostgreSQL knows some that are a week away.
    """
    ours.api.execute("SET timezone = 'Far+167'")
    dice, began = random.Random(5), datetime.now(UTC).date()
    ours.facts.connection.execute("UPDATE organisations SET optional_kinds = '{optional}'")
    shown, refused = [], 0
    for _ in range(150):
        mentor = ours.facts.mentor(ours.id)
        for kind in dice.sample(("likeperson", "first_aid", "optional"), dice.randint(0, 3)):
            for begins_in_days in dice.sample((-60, -2, -1, 0, 1, 2, 3), dice.randint(1, 2)):
                issued_on = began + begins_in_days * DAY
                ends_on = issued_on + dice.choice((0, 1, 2, 59, 60, 61, 90)) * DAY
                revoked_at = dice.choice((None, None, None, datetime.now(UTC)))
                ours.facts.certificate(mentor, ends_on, kind=kind, issued_on=issued_on, revoked_at=revoked_at)
        if dice.random() < 0.1:
            ours.facts.pause(mentor)
        wanted = dice.choice((None, True))
        ours.facts.rows("UPDATE mentors SET portal_visible = %s WHERE id = %s RETURNING 1", wanted, mentor)
        try:
            shown += [mentor] if request(ours, mentor)[1] else []
        except psycopg.errors.RaiseException:
            refused += 1

    days = {day + offset * DAY for day in (began, datetime.now(UTC).date()) for offset in (-1, 0, 1)}
    read = reading.read(ours.facts.connection, shown, lock=False).mentors
    assert [(each, day) for each in read for day in days if not rules.decide(each, day).visible] == []
    assert min(len(shown), refused) > 10


def test_nobody_but_the_organisations_coordinators_may_ask_and_others_learn_nothing(
    ours: Organisation, theirs: Organisation
) -> None:
    """The same words for a mentor who exists and for one who does not; temporary tables deceive nobody.

    Whatever the claims say; NULL is no coordinator, and a deleted one is none though the token lives on.
    """
    ours.api.execute("SET search_path = pg_temp, certjob")
    for table in ("mentors", "organisations", "coordinators", "portal_sync_events", "mentor_pauses"):
        ours.asks(f"CREATE TABLE pg_temp.{table} AS SELECT * FROM certjob.{table}")
    ours.asks("UPDATE pg_temp.mentors SET id = %(mentor)s", mentor=theirs.mentor)
    said = set()
    for mentor in (theirs.mentor, uuid4(), None):
        with pytest.raises(DENIED) as denied:
            ours.asks(REQUEST, mentor=mentor)
        said.add(str(denied.value))

    assert len(said) == 1
    assert [event[0] for event in events(ours, theirs.mentor)] == [1]
    assert request(ours)[0] == 2
    for role in ("anon", "service_role", "certjob_worker"):
        refused = pytest.raises(DENIED, match=r"permission denied for (function|schema)")
        with refused, acting(ours.api, role, sub=ours.coordinator):
            ours.api.execute(REQUEST.encode(), {"mentor": ours.mentor})
    with pytest.raises(DENIED), acting(ours.api, "authenticated"):
        ours.api.execute(REQUEST.encode(), {"mentor": ours.mentor})
    ours.facts.connection.execute("DELETE FROM coordinators")
    with pytest.raises(DENIED):
        request(ours)
