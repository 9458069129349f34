"""``certjob reconcile``: the portal is read as a set, and only what differs is pushed."""

import json
from collections import Counter
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from certjob import database
from certjob.errors import ConfigurationError, StoppedBySignalError
from certjob.portal import comparison
from certjob.reports.alerts import read_alerts
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.facts import TODAY
from tests.support.nights import EVERYTHING, in_background
from tests.support.portal_answers import Behaviour, Exchange, answer, error, hang, ok
from tests.support.programmes import everything
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene
from tests.support.waiting import until

PAUSE = (
    "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " SELECT id, 'illness', 'anna' FROM mentors WHERE organisation_id = %s"
)


def mentors(scene: Scene, count: int, *, expired: int = 0, slug: str = "hlf") -> list[UUID]:
    """Contacts of so many mentors of an organisation, the first ones without a certificate in force."""
    organisation = scene.hlf if slug == "hlf" else scene.facts.organisation(slug, thresholds=())
    contacts = [uuid4() for _ in range(count)]
    for number, contact in enumerate(contacts):
        expires_on = YESTERDAY if number < expired else NEXT_YEAR
        scene.facts.certified_mentor(organisation, expires_on, contact_id=contact)
    return contacts


def agree(scene: Scene, contacts: list[UUID]) -> list[UUID]:
    """Let the portal show them, and a night hide whoever must not be shown."""
    scene.portal.visible |= dict.fromkeys(contacts, True)
    scene.night(scene.portal, allow=EVERYTHING)
    scene.portal.requests.clear()
    return contacts


def differences(scene: Scene) -> dict[str, int]:
    """The figures of a reading that are not nothing."""
    found = scene.reconcile().to_document()["differences"]
    return {name: number for name, number in found.items() if number}


def pushes(scene: Scene) -> list[tuple[UUID | None, bool | None]]:
    return [(request.contact_id, request.visible) for request in scene.portal.requests if request.method == "POST"]


def test_agreement_costs_reads_and_a_hand_edit_exactly_its_pushes(scene: Scene) -> None:
    """The hide comes first; nobody has to act. With the key of yesterday's call the portal would do nothing."""
    scene.portal.default = ok(page_size=3)
    contacts = agree(scene, mentors(scene, 9, expired=2))
    report = scene.reconcile()
    assert [request.method for request in scene.portal.requests] == ["GET"] * 3
    assert (report.outcome, report.to_document()["read"]) == ("ok", {"pages": 3, "visible": 7})

    for _ in range(2):
        scene.portal.visible |= {contacts[0]: True, contacts[5]: False}
        report = scene.reconcile()
        assert report.outcome == "ok"
        counts = {"queued": 2, "delivered": 2, "failed": 0, "blocked": 0, "lost": 0, "pending": 0}
        assert report.to_document()["portal"] == counts

    assert pushes(scene) == [(contacts[0], False), (contacts[5], True)] * 2
    assert differences(scene) == {}
    assert len({request.idempotency_key for request in scene.portal.requests if request.method == "POST"}) == 4


def test_wrong_days_are_corrected_and_counted(scene: Scene) -> None:
    """Whether the day on the portal is missing, later or earlier."""
    missing, later, earlier, right = agree(scene, mentors(scene, 4))
    scene.portal.until = {
        later: str(NEXT_YEAR + timedelta(days=1)),
        earlier: str(NEXT_YEAR - timedelta(days=1)),
        right: str(NEXT_YEAR),
    }

    assert differences(scene) == {"wrong_day": 3}
    assert scene.portal.until == dict.fromkeys([missing, later, earlier, right], str(NEXT_YEAR))
    assert differences(scene) == {}


def test_days_are_not_compared_without_the_column(scene: Scene) -> None:
    """And no push is queued for them."""
    agree(scene, mentors(scene, 2))

    assert (differences(scene), pushes(scene)) == ({}, [])


def test_many_wrong_days_are_corrected(scene: Scene) -> None:
    """A column that was emptied is filled again, and earlier days are corrected."""
    contacts = agree(scene, mentors(scene, 50))
    scene.portal.until = dict.fromkeys(contacts[:25], "2026-01-01")

    report = scene.reconcile()

    assert report.to_document()["differences"]["wrong_day"] == 50
    assert {scene.portal.until[contact] for contact in contacts} == {str(NEXT_YEAR)}


def test_nobody_is_shown_who_waits_for_a_review(scene: Scene) -> None:
    """The pause of this afternoon counts; a hide goes all the same.

    Before the first review nobody knows who is certified; and their contacts are not unknown.
    """
    hidden, shown = mentors(scene, 2, expired=1)
    scene.portal.visible[hidden] = True
    assert differences(scene) == {}
    agree(scene, [hidden, shown])
    scene.run_sql(PAUSE, scene.hlf)
    scene.portal.visible = {hidden: True, shown: False}
    scene.reconcile()
    assert pushes(scene) == [(hidden, False)]


def test_only_a_certified_mentor_is_shown_again(scene: Scene) -> None:
    """A mentor who has left, has no certificate, or only a future one is hidden again."""
    certified, left, bare, future = (uuid4() for _ in range(4))
    scene.certified(contact_id=certified)
    scene.certified(contact_id=left)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE dynamics_contact_id = %s", left)
    scene.mentor(contact_id=bare)
    scene.facts.certificate(scene.mentor(contact_id=future), NEXT_YEAR, issued_on=TODAY + timedelta(days=30))
    scene.night(scene.portal)
    scene.portal.visible = {certified: False, left: True, bare: True, future: True}
    scene.portal.requests.clear()

    assert scene.reconcile().outcome == "ok"

    assert scene.portal.visible == {certified: True, left: False, bare: False, future: False}


def test_nobody_who_has_an_event_under_way_is_touched(scene: Scene) -> None:
    """A blocked event and a waiting one have their own way and alert; what is due is pushed as in any delivery."""
    scene.portal.visible |= dict.fromkeys(mentors(scene, 2, expired=2), True)
    scene.portal.then(error(404, "contact_not_found"), *[error(503, "token_unavailable")] * 3)
    scene.night(scene.portal)
    scene.portal.requests.clear()

    assert (differences(scene), pushes(scene)) == ({}, [])
    events = scene.rows("SELECT status, version FROM portal_sync_events ORDER BY status")
    assert events == [("blocked", 1), ("pending", 1)]
    scene.make_due()
    assert (differences(scene), len(pushes(scene))) == ({}, 1)


def test_a_call_that_died_before_its_event_was_withdrawn_is_not_waited_for_for_ever(scene: Scene) -> None:
    """Its token stays, its lease ends."""
    (contact,) = agree(scene, mentors(scene, 1, expired=1))
    scene.run_sql(
        "INSERT INTO portal_sync_events (mentor_id, visible, status, claim_token, next_attempt_at)"
        " SELECT id, true, 'withdrawn', gen_random_uuid(), now() + interval '1 minute' FROM mentors"
    )
    scene.portal.visible[contact] = True
    scene.reconcile()
    assert pushes(scene) == []

    scene.run_out()
    scene.reconcile()

    assert pushes(scene) == [(contact, False)]


def test_a_page_that_fails_for_good_changes_nothing(scene: Scene) -> None:
    """Though the first page showed somebody who must be hidden: without the rest nobody can say who is missing."""
    scene.portal.visible = dict.fromkeys(agree(scene, mentors(scene, 5, expired=1)), True)
    scene.portal.then(ok(page_size=3))
    scene.portal.default = error(502, "dynamics_unavailable")

    report = scene.reconcile()

    (reason,) = report.reasons
    assert "502 dynamics_unavailable" in reason
    assert reason.endswith("the portal was not read to its end, so no contact was compared or changed")
    assert (report.outcome, report.to_document()["differences"], pushes(scene)) == ("attention", None, [])
    assert scene.rows("SELECT count(*) FROM portal_last_reading") == [(0,)]


def test_old_reading_has_the_reason_of_the_last_reconcile(scene: Scene) -> None:
    """The portal was read four days ago; since then every reconcile has failed."""
    alert = "SELECT cause, error FROM current_alerts(%s) WHERE kind = 'portal_not_read'"
    scene.certified()
    scene.reconcile()
    scene.run_sql("UPDATE portal_last_reading SET read_at = now() - interval '4 days'")
    assert [cause for cause, _ in scene.rows(alert, TODAY)] == ["not_read"]
    scene.portal.default = error(502, "dynamics_unavailable")

    scene.reconcile()

    ((cause, said),) = scene.rows(alert, TODAY)
    assert cause == "reading_failed"
    assert "; `certjob reconcile` stopped: the portal answered 502 dynamics_unavailable" in str(said)


@pytest.mark.parametrize("comes", [ok(), error(401, "unauthorized"), None], ids=["a page", "an error", "nothing"])
def test_a_signal_is_the_reason_whatever_the_page_that_was_asked_for_brings(
    scene: Scene, comes: Behaviour | None
) -> None:
    """Nothing is compared, and the portal is not blamed. What does not come is broken off when the grace is over."""
    stop = StopFlag()

    def answer_after_signal(exchange: Exchange) -> None:
        stop.set()
        if comes is None:
            stop.break_off()
        (comes or hang())(exchange)

    scene.portal.default = answer_after_signal

    with pytest.raises(StoppedBySignalError):
        scene.reconcile(stop=stop)

    assert scene.rows("SELECT outcome FROM job_runs") == [("failed",)]
    assert scene.rows("SELECT count(*) FROM portal_last_reading") == [(0,)]


def test_portal_that_lists_no_wanted_mentor_is_held(scene: Scene, certjob: Certjob) -> None:
    """A wrong column, or another Dynamics: whatever else it lists. Hides go on, and no unknown contact is gone."""
    agree(scene, [contact for slug in "abc" for contact in mentors(scene, 7, slug=slug)])
    (hidden,) = agree(scene, mentors(scene, 1, expired=1, slug="d"))
    scene.portal.visible[uuid4()] = True
    scene.reconcile()
    scene.portal.visible = {uuid4(): True, hidden: True}
    scene.portal.requests.clear()

    report = scene.reconcile()

    assert (pushes(scene), report.outcome, len(report.held)) == ([(hidden, False)], "attention", 3)
    assert report.held[0].startswith("a: the portal lists none of the 21 mentors who should be visible; no one")
    assert scene.rows("SELECT count(*) FROM portal_unknown_contacts WHERE gone_at IS NULL") == [(2,)]
    command = "certjob reconcile --allow a=7"
    assert f"`{command}`" in report.held[0]
    held = [alert for alert in read_alerts(scene.connection, today=TODAY) if alert.kind == "held"]
    assert {(each.cause, each.number) for each in held} == {("portal", 7)}
    lines = certjob("alerts").stdout
    assert f"{held[0].sentence}: b:held:portal, " in lines
    assert f"run `{command}`" in lines
    since = "SELECT organisation_id, since FROM held_reviews ORDER BY organisation_id"
    began = scene.rows(since)
    assert (scene.reconcile().held, scene.rows(since)) == (report.held, began)


def test_held_portal_is_shown_with_consent(scene: Scene, certjob: Certjob) -> None:
    """The next reading finds nothing to hold."""
    agree(scene, mentors(scene, 21))
    scene.portal.visible.clear()
    assert scene.reconcile().held

    assert scene.reconcile(allow=EVERYTHING).outcome == "ok"

    assert (len(pushes(scene)), certjob("alerts").returncode) == (21, 0)


def test_consent_for_an_unknown_organisation_is_refused(scene: Scene) -> None:
    """A typo must not be read as permission for no one."""
    with pytest.raises(ConfigurationError, match="hfl"):
        scene.reconcile(allow=Counter(hfl=60))


def test_hold_ends_with_the_portal(scene: Scene, certjob: Certjob) -> None:
    """No reading will ever come to say so."""
    agree(scene, mentors(scene, 21))
    scene.portal.visible.clear()
    assert scene.reconcile().held
    scene.run_sql("UPDATE organisations SET portal = NULL")

    assert scene.night().outcome == "ok"

    assert certjob("alerts").returncode == certjob("status", "-q").returncode == 0


@pytest.mark.parametrize(
    ("wanted", "listed"), [pytest.param(20, 0, id="a small programme"), pytest.param(60, 1, id="one is listed")]
)
def test_missing_mentors_are_shown_again(scene: Scene, wanted: int, listed: int) -> None:
    """Someone has hidden them by hand; however many they are, the portal is the right one."""
    contacts = agree(scene, mentors(scene, wanted))
    scene.portal.visible = dict.fromkeys(contacts[:listed], True)

    assert scene.reconcile().outcome == "ok"

    assert len(pushes(scene)) == wanted - listed


def test_contact_of_no_mentor_is_an_alert_until_gone_or_acknowledged(scene: Scene, certjob: Certjob) -> None:
    """Somebody has shown them by hand. certjob does not hide them: they may be anybody's, such as staff's.

    The page has the number and five of them; of a mentor of an organisation without a portal, who it is.
    """
    deleted, *_ = agree(scene, mentors(scene, 3))
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE dynamics_contact_id = %s", deleted)
    scene.night(scene.portal)
    scene.run_sql("DELETE FROM mentors WHERE dynamics_contact_id = %s", deleted)
    scene.portal.requests.clear()
    for _ in range(2):
        scene.portal.visible[deleted] = True
        report = scene.reconcile()
        assert report.outcome == "attention"
        assert report.reasons == ["1 contact on the portal does not belong to any mentor; see `certjob alerts`"]
    scene.portal.visible[deleted] = False
    assert scene.reconcile().outcome == "ok"
    unknown = scene.rows("SELECT contact_id, gone_at > first_seen_at FROM portal_unknown_contacts")
    assert unknown == [(deleted, True)]

    theirs, *staff = some = [uuid4() for _ in range(7)]
    their_mentor = scene.facts.mentor(scene.facts.organisation("nhf", portal=None), contact_id=theirs)
    scene.portal.visible |= dict.fromkeys(some, True)
    assert differences(scene) == {"unknown": 7}
    page = certjob("alerts")
    assert (page.returncode, page.stdout.count("what to do: Hide it in Dynamics, or run")) == (3, 7)
    alerts = {alert.alert_id: alert.organisation for alert in read_alerts(scene.connection, today=TODAY)}
    assert alerts == {f"-:unknown_contacts:{each}": "nhf" if each == theirs else None for each in some}
    scene.portal.visible |= dict.fromkeys(staff, False)
    assert certjob("acknowledge", f"-:unknown_contacts:{theirs}", "--because", "the office").returncode == 0
    assert scene.reconcile().outcome == "ok"
    assert certjob("alerts").returncode == 0
    assert differences(scene) == {"acknowledged": 1}
    scene.run_sql("UPDATE organisations SET portal = 'dynamics'")  # now it is a mentor's
    assert differences(scene) == {}
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %s", their_mentor)
    assert (differences(scene), pushes(scene)) == ({"unknown": 1}, [])


def test_of_two_readings_at_once_the_one_that_began_last_is_what_is_known(scene: Scene) -> None:
    contact = uuid4()
    old = comparison.Reading(read_at=database.clock(scene.connection), pages=1, visible_until={}, dates=False)
    scene.portal.visible[contact] = True
    scene.reconcile()

    found = comparison.compare(scene.connection, old, today=TODAY)
    comparison.store(scene.connection, found, run_id=uuid4())

    assert scene.rows("SELECT contact_id, gone_at FROM portal_unknown_contacts") == [(contact, None)]
    assert scene.rows("SELECT visible FROM portal_last_reading") == [([contact],)]


def test_reading_replaces_one_of_a_wrong_later_clock(scene: Scene) -> None:
    """Both clocks were a year ahead for a night: the next reading counts, and an unknown contact can be gone."""
    scene.portal.visible[uuid4()] = True
    scene.reconcile()
    for table, times in (
        ("portal_last_reading", ("read_at",)),
        ("portal_unknown_contacts", ("first_seen_at", "last_seen_at")),
    ):
        for time in times:
            scene.run_sql(f"UPDATE {table} SET {time} = {time} + interval '1 year'")
    scene.portal.visible.clear()

    scene.reconcile()

    assert scene.rows("SELECT read_at <= now(), visible FROM portal_last_reading") == [(True, [])]
    assert scene.rows("SELECT gone_at IS NOT NULL FROM portal_unknown_contacts") == [(True,)]


def test_what_is_decided_meanwhile_is_left_alone(scene: Scene) -> None:
    """A push that is confirmed while the portal is read: the page may have been read before it.

    A hide that is committed after the comparison: under the lock the same question is asked again.
    """
    contacts = agree(scene, mentors(scene, 2))

    def read_then_night(exchange: Exchange) -> None:
        scene.other.execute("UPDATE certificates SET expires_on = %s", (YESTERDAY,))
        scene.night(scene.portal, connection=scene.other)
        shown = [{"contact_id": str(each), "visible_until": None} for each in sorted(contacts)]
        answer(200, {"contacts": shown, "next": None, "dates": False})(exchange)

    scene.portal.then(read_then_night)
    assert (differences(scene), len(pushes(scene))) == ({}, 2)

    scene.run_sql("UPDATE certificates SET expires_on = %s", NEXT_YEAR)
    agree(scene, contacts)
    reading = comparison.Reading(read_at=database.clock(scene.connection), pages=1, visible_until={}, dates=False)
    found = comparison.compare(scene.connection, reading, today=TODAY)
    assert [each.visible for each in found.differences] == [True, True]
    scene.run_sql("UPDATE certificates SET expires_on = %s", YESTERDAY)
    scene.night(deliver=False)
    comparison.raise_events(scene.connection, found, today=TODAY, run_id=uuid4(), stop=StopFlag())
    assert (found.raised, found.locked) == (0, [])
    assert scene.rows("SELECT DISTINCT visible FROM portal_sync_events WHERE status = 'pending'") == [(False,)]


@pytest.mark.parametrize("for_a_moment", [True, False])
def test_a_mentor_whom_the_app_locks_is_waited_for_and_then_reported(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, for_a_moment: bool
) -> None:
    """The others are corrected; this one may still be shown."""
    contacts = agree(scene, mentors(scene, 3, expired=3))
    scene.portal.visible = dict.fromkeys(contacts, True)
    scene.app.execute("SELECT FROM mentors WHERE dynamics_contact_id = %s FOR UPDATE", (contacts[0],))
    if not for_a_moment:
        monkeypatch.setattr(comparison, "_LOCKED_FOR_SECONDS", 0.0)

    def let_go() -> None:
        corrected = "SELECT count(*) >= 2 FROM portal_sync_events WHERE NOT visible"
        until(lambda: scene.other.execute(corrected).fetchone() == (True,))
        if for_a_moment:
            scene.app.rollback()

    with in_background(let_go):
        report = scene.reconcile()

    assert sum(scene.portal.visible.values()) == (0 if for_a_moment else 1)
    locked = "1 mentor is locked by another session and not corrected, run `certjob reconcile` again: M1001"
    assert report.reasons == ([] if for_a_moment else [locked])


def test_a_dry_run_writes_nothing_and_explain_tells_what_the_portal_showed(scene: Scene, certjob: Certjob) -> None:
    """Nothing before the first reading. A reading older than three days is an alert."""
    contacts = agree(scene, mentors(scene, 3, expired=1))
    scene.portal.visible |= {contacts[0]: True, contacts[1]: False, uuid4(): True}
    before = everything(scene.facts)

    planned = scene.reconcile(dry_run=True).to_document()

    changes = [(each["organisation"], each["portal"]) for each in planned["changes"]]
    assert (changes, planned["differences"]["unknown"]) == ([("hlf", False), ("hlf", True)], 1)
    assert (pushes(scene), everything(scene.facts)) == ([], before)
    page = json.loads(certjob("explain", "M1001", "--json").stdout)["portal"]
    assert (page["read_at"], page["was_shown"]) == (None, None)

    scene.reconcile()

    assert "the mentor was visible" in certjob("explain", "M1001").stdout
    assert "the mentor was not visible" in certjob("explain", "M1002").stdout
    scene.run_sql("UPDATE portal_last_reading SET read_at = now() - interval '73 hours'")
    assert "Run `certjob reconcile`" in certjob("alerts").stdout
    report = scene.night(scene.portal, today=TODAY + timedelta(days=3))
    assert "1 portal was not read for three days; see `certjob alerts`" in report.reasons
