"""``certjob reconcile``: the portal is read, and only the differences are pushed."""

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

UNKNOWN = "SELECT contact_id, gone_at IS NOT NULL FROM portal_unknown_contacts ORDER BY first_seen_at, contact_id"


def mentors(scene: Scene, count: int, *, expired: int = 0, slug: str = "hlf") -> list[UUID]:
    """Create mentors of an organisation and return their contacts. The first ones have expired certificates."""
    organisation = scene.hlf if slug == "hlf" else scene.facts.organisation(slug, thresholds=())
    contacts = [uuid4() for _ in range(count)]
    for number, contact in enumerate(contacts):
        expires_on = YESTERDAY if number < expired else NEXT_YEAR
        scene.facts.certified_mentor(organisation, expires_on, contact_id=contact)
    return contacts


def reconciled(scene: Scene, count: int, *, expired: int = 0, slug: str = "hlf") -> list[UUID]:
    """Create mentors, show them, and run certjob: the portal then shows the certified ones only."""
    contacts = mentors(scene, count, expired=expired, slug=slug)
    scene.portal.visible |= dict.fromkeys(contacts, True)
    scene.night(scene.portal, allow=EVERYTHING)
    scene.portal.requests.clear()
    return contacts


def differences(scene: Scene) -> dict[str, int]:
    """Reconcile and return the numbers of differences above zero."""
    found = scene.reconcile().to_document()["differences"]
    return {name: number for name, number in found.items() if number}


def pushes(scene: Scene) -> list[tuple[UUID | None, bool | None]]:
    return [(request.contact_id, request.visible) for request in scene.portal.requests if request.method == "POST"]


def test_agreement_costs_only_reads(scene: Scene) -> None:
    """One request for each page of contacts. Without the column, days are not compared."""
    scene.portal.default = ok(page_size=3)
    reconciled(scene, 9, expired=2)

    report = scene.reconcile()

    assert [request.method for request in scene.portal.requests] == ["GET"] * 3
    assert (report.outcome, report.to_document()["read"]) == ("ok", {"pages": 3, "visible": 7})


def test_manual_changes_are_corrected_hides_first(scene: Scene) -> None:
    """The second correction has a new idempotency key, because the portal would ignore the old one."""
    contacts = reconciled(scene, 9, expired=2)

    for _ in range(2):
        scene.portal.visible |= {contacts[0]: True, contacts[5]: False}
        report = scene.reconcile()
        assert report.outcome == "ok"
        counts = {"queued": 2, "delivered": 2, "failed": 0, "blocked": 0, "lost": 0, "pending": 0}
        assert report.to_document()["portal"] == counts

    assert pushes(scene) == [(contacts[0], False), (contacts[5], True)] * 2
    assert len({request.idempotency_key for request in scene.portal.requests if request.method == "POST"}) == 4


def test_wrong_days_are_corrected_however_many_there_are(scene: Scene) -> None:
    """The days are missing, too early or too late."""
    contacts = reconciled(scene, 50)
    early, late = (str(NEXT_YEAR + timedelta(days=days)) for days in (-1, 1))
    days = [None] * 10 + [early] * 20 + [late] * 18 + [str(NEXT_YEAR)] * 2
    scene.portal.until = dict(zip(contacts, days, strict=True))

    assert differences(scene) == {"wrong_day": 48}

    assert scene.portal.until == dict.fromkeys(contacts, str(NEXT_YEAR))
    assert differences(scene) == {}


def test_mentor_due_for_a_review_is_hidden_but_not_shown(scene: Scene) -> None:
    """Before the first review the mentor is not a difference, and the contact is not unknown."""
    hidden, shown = mentors(scene, 2, expired=1)
    scene.portal.visible[hidden] = True
    assert differences(scene) == {}
    scene.night(scene.portal)
    scene.run_sql("INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'illness', 'anna' FROM mentors")
    scene.portal.visible = {hidden: True, shown: False}
    scene.portal.requests.clear()

    scene.reconcile()

    assert pushes(scene) == [(hidden, False)]


def test_only_certified_mentors_are_shown_again(scene: Scene) -> None:
    """A mentor who has left, has no certificate, or only a future one is hidden again."""
    certified, left, bare, future = (uuid4() for _ in range(4))
    scene.certified(contact_id=certified)
    scene.certified(contact_id=left)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE dynamics_contact_id = %s", left)
    scene.mentor(contact_id=bare)
    scene.facts.certificate(scene.mentor(contact_id=future), NEXT_YEAR, issued_on=TODAY + timedelta(days=30))
    scene.night(scene.portal)
    scene.portal.visible = {certified: False, left: True, bare: True, future: True}

    assert scene.reconcile().outcome == "ok"

    assert scene.portal.visible == {certified: True, left: False, bare: False, future: False}


def test_mentor_with_an_open_push_is_left_alone(scene: Scene) -> None:
    """A blocked push and a delayed one have alerts of their own. Reconcile pushes what is due, as deliver does."""
    scene.portal.visible |= dict.fromkeys(mentors(scene, 2, expired=2), True)
    scene.portal.then(error(404, "contact_not_found"), *[error(503, "token_unavailable")] * 3)
    scene.night(scene.portal)
    scene.portal.requests.clear()

    assert (differences(scene), pushes(scene)) == ({}, [])
    events = scene.rows("SELECT status, version FROM portal_sync_events ORDER BY status")
    assert events == [("blocked", 1), ("pending", 1)]
    scene.make_due()
    assert (differences(scene), len(pushes(scene))) == ({}, 1)


def test_claim_of_a_withdrawn_push_delays_the_correction_up_to_its_lease(scene: Scene) -> None:
    """The process died in its call, so the token stays."""
    (contact,) = reconciled(scene, 1, expired=1)
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


def test_unreadable_page_changes_nothing(scene: Scene) -> None:
    """Not even for a mentor on the first page who must be hidden."""
    scene.portal.visible = dict.fromkeys(reconciled(scene, 5, expired=1), True)
    scene.portal.then(ok(page_size=3))
    scene.portal.default = error(502, "dynamics_unavailable")

    report = scene.reconcile()

    (reason,) = report.reasons
    assert "502 dynamics_unavailable" in reason
    assert reason.endswith("the portal was not read to its end, so no contact was compared or changed")
    assert (report.outcome, report.to_document()["differences"], pushes(scene)) == ("attention", None, [])
    assert scene.rows("SELECT count(*) FROM portal_last_reading") == [(0,)]


def test_old_reading_is_an_alert_with_the_reason_of_the_last_reconcile(scene: Scene) -> None:
    """The portal was read four days ago. Without a later reconcile the alert has no reason."""
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
    report = scene.night(scene.portal)
    assert "1 portal was not read for three days; see `certjob alerts`" in report.reasons


@pytest.mark.parametrize("comes", [ok(), error(401, "unauthorized"), None], ids=["page", "error", "no_answer"])
def test_signal_is_the_reason_whatever_the_portal_answers(scene: Scene, comes: Behaviour | None) -> None:
    """No contact is compared. Without an answer, the call is cancelled when the grace period is over."""
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
    """It may be a wrong column or another Dynamics. Hides are sent, and no unknown contact counts as gone."""
    for slug in "abc":
        reconciled(scene, 7, slug=slug)
    (hidden,) = reconciled(scene, 1, expired=1, slug="d")
    scene.portal.visible[uuid4()] = True
    scene.reconcile()
    scene.portal.visible = {uuid4(): True, hidden: True}
    scene.portal.requests.clear()

    report = scene.reconcile()

    assert (pushes(scene), report.outcome, len(report.held)) == ([(hidden, False)], "attention", 3)
    assert report.held[0].startswith("a: the portal lists none of the 21 mentors who should be visible; no one")
    assert "`certjob reconcile --allow a=7`" in report.held[0]
    assert [is_gone for _, is_gone in scene.rows(UNKNOWN)] == [False, False]
    held = [alert for alert in read_alerts(scene.connection, today=TODAY) if alert.kind == "held"]
    assert {(each.cause, each.number) for each in held} == {("portal", 7)}
    assert f"{held[0].sentence}: b:held:portal, " in certjob("alerts").stdout
    since = "SELECT organisation_id, since FROM held_reviews ORDER BY organisation_id"
    began = scene.rows(since)
    assert (scene.reconcile().held, scene.rows(since)) == (report.held, began)


def test_held_portal_is_corrected_with_consent(scene: Scene, certjob: Certjob) -> None:
    """After it, there is no hold. A mistyped slug is refused."""
    reconciled(scene, 21)
    scene.portal.visible.clear()
    assert scene.reconcile().held
    with pytest.raises(ConfigurationError, match="hfl"):
        scene.reconcile(allow=Counter(hfl=21))

    assert scene.reconcile(allow=Counter(hlf=21)).outcome == "ok"

    assert (len(pushes(scene)), certjob("alerts").returncode) == (21, 0)


def test_hold_ends_with_the_portal(scene: Scene, certjob: Certjob) -> None:
    """Without a portal no later reading can end it."""
    reconciled(scene, 21)
    scene.portal.visible.clear()
    assert scene.reconcile().held
    scene.run_sql("UPDATE organisations SET portal = NULL")

    assert scene.night().outcome == "ok"

    assert certjob("alerts").returncode == certjob("status", "-q").returncode == 0


@pytest.mark.parametrize(
    ("wanted", "listed"), [pytest.param(20, 0, id="small_programme"), pytest.param(60, 1, id="one_is_listed")]
)
def test_missing_mentors_are_shown_again(scene: Scene, wanted: int, listed: int) -> None:
    """Someone has hidden them by hand. The portal is the right one."""
    contacts = reconciled(scene, wanted)
    scene.portal.visible = dict.fromkeys(contacts[:listed], True)

    assert scene.reconcile().outcome == "ok"

    assert len(pushes(scene)) == wanted - listed


def test_contact_of_no_mentor_is_an_alert_until_it_is_gone(scene: Scene) -> None:
    """Someone shows it a second time later. certjob never hides it, because it may be that of staff."""
    contact, reason = uuid4(), "1 contact on the portal does not belong to any mentor; see `certjob alerts`"
    outcomes = []
    for is_shown in (True, False, True):
        scene.portal.visible[contact] = is_shown
        report = scene.reconcile()
        outcomes.append((report.reasons, scene.rows(UNKNOWN)))

    assert outcomes == [([reason], [(contact, False)]), ([], [(contact, True)]), ([reason], [(contact, False)])]
    assert pushes(scene) == []


def test_unknown_contact_names_an_organisation_without_a_portal(scene: Scene, certjob: Certjob) -> None:
    """Each unknown contact is one alert with its action. Staff have no organisation."""
    some = [uuid4() for _ in range(7)]
    scene.facts.mentor(scene.facts.organisation("nhf", portal=None), contact_id=some[0])
    scene.portal.visible |= dict.fromkeys(some, True)

    assert differences(scene) == {"unknown": 7}

    alerts = {alert.alert_id: alert.organisation for alert in read_alerts(scene.connection, today=TODAY)}
    assert alerts == {f"-:unknown_contacts:{each}": "nhf" if each == some[0] else None for each in some}
    page = certjob("alerts")
    assert (page.returncode, page.stdout.count("what to do: Hide it in Dynamics, or run")) == (3, 7)


def test_acknowledged_contact_is_no_alert_until_it_was_a_mentors(scene: Scene, certjob: Certjob) -> None:
    """A contact that belonged to a mentor in the meantime is a new alert."""
    contact = uuid4()
    mentor = scene.facts.mentor(scene.facts.organisation("nhf", portal=None), contact_id=contact)
    scene.portal.visible[contact] = True
    scene.reconcile()

    acknowledged = certjob("acknowledge", f"-:unknown_contacts:{contact}", "--because", "the office")

    assert (acknowledged.returncode, scene.reconcile().outcome, certjob("alerts").returncode) == (0, "ok", 0)
    assert differences(scene) == {"acknowledged": 1}
    scene.run_sql("UPDATE organisations SET portal = 'dynamics'")
    assert differences(scene) == {}
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %s", mentor)
    assert (differences(scene), pushes(scene)) == ({"unknown": 1}, [])


def read_nothing(scene: Scene) -> comparison.Reading:
    """Return a reading that begins now, of a portal that shows no one."""
    return comparison.Reading(read_at=database.clock(scene.connection), pages=1, visible_until={}, dates=False)


def test_last_begun_of_two_readings_is_stored(scene: Scene) -> None:
    """The older one ends later, and is compared but not stored."""
    contact, old = uuid4(), read_nothing(scene)
    scene.portal.visible[contact] = True
    scene.reconcile()

    found = comparison.compare(scene.connection, old, today=TODAY)
    comparison.store(scene.connection, found, run_id=uuid4())

    assert scene.rows(UNKNOWN) == [(contact, False)]
    assert scene.rows("SELECT visible FROM portal_last_reading") == [([contact],)]


def test_reading_replaces_one_from_a_wrong_later_clock(scene: Scene) -> None:
    """Both clocks were a year ahead for one night."""
    contact = uuid4()
    scene.portal.visible[contact] = True
    scene.reconcile()
    scene.run_sql("UPDATE portal_last_reading SET read_at = read_at + interval '1 year'")
    year = "first_seen_at = first_seen_at + interval '1 year', last_seen_at = last_seen_at + interval '1 year'"
    scene.run_sql(f"UPDATE portal_unknown_contacts SET {year}")
    scene.portal.visible.clear()

    scene.reconcile()

    assert scene.rows("SELECT read_at <= now(), visible FROM portal_last_reading") == [(True, [])]
    assert scene.rows(UNKNOWN) == [(contact, True)]


def test_push_confirmed_during_the_reading_is_no_difference(scene: Scene) -> None:
    """The page may have been read before the push."""
    contacts = reconciled(scene, 2)

    def read_then_night(exchange: Exchange) -> None:
        scene.other.execute("UPDATE certificates SET expires_on = %s", (YESTERDAY,))
        scene.night(scene.portal, connection=scene.other)
        shown = [{"contact_id": str(each), "visible_until": None} for each in sorted(contacts)]
        answer(200, {"contacts": shown, "next": None, "dates": False})(exchange)

    scene.portal.then(read_then_night)

    assert (differences(scene), len(pushes(scene))) == ({}, 2)


def test_hide_queued_after_the_comparison_is_not_replaced(scene: Scene) -> None:
    """The mentors are compared again under their locks."""
    reconciled(scene, 2)
    found = comparison.compare(scene.connection, read_nothing(scene), today=TODAY)
    assert [each.visible for each in found.differences] == [True, True]
    scene.run_sql("UPDATE certificates SET expires_on = %s", YESTERDAY)
    scene.night(deliver=False)

    comparison.raise_events(scene.connection, found, today=TODAY, run_id=uuid4(), stop=StopFlag())

    assert (found.raised, found.locked) == (0, [])
    assert scene.rows("SELECT DISTINCT visible FROM portal_sync_events WHERE status = 'pending'") == [(False,)]


@pytest.mark.parametrize("is_released", [True, False], ids=["released", "kept"])
def test_locked_mentor_is_corrected_later_or_reported(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, is_released: bool
) -> None:
    """The other mentors are corrected in the meantime."""
    contacts = reconciled(scene, 3, expired=3)
    scene.portal.visible = dict.fromkeys(contacts, True)
    scene.app.execute("SELECT FROM mentors WHERE dynamics_contact_id = %s FOR UPDATE", (contacts[0],))
    if not is_released:
        monkeypatch.setattr(comparison, "_LOCKED_FOR_SECONDS", 0.0)

    def release() -> None:
        corrected = "SELECT count(*) >= 2 FROM portal_sync_events WHERE NOT visible"
        until(lambda: scene.other.execute(corrected).fetchone() == (True,))
        if is_released:
            scene.app.rollback()

    with in_background(release):
        report = scene.reconcile()

    assert sum(scene.portal.visible.values()) == (0 if is_released else 1)
    locked = "1 mentor is locked by another session and not corrected, run `certjob reconcile` again: M1001"
    assert report.reasons == ([] if is_released else [locked])


def test_dry_run_lists_the_differences_and_only_reads(scene: Scene) -> None:
    """It changes neither the database nor the portal."""
    contacts = reconciled(scene, 3, expired=1)
    scene.portal.visible |= {contacts[0]: True, contacts[1]: False, uuid4(): True}
    before = everything(scene.facts)

    planned = scene.reconcile(dry_run=True).to_document()

    changes = [(each["organisation"], each["portal"]) for each in planned["changes"]]
    assert (changes, planned["differences"]["unknown"]) == ([("hlf", False), ("hlf", True)], 1)
    assert (pushes(scene), everything(scene.facts)) == ([], before)


def test_explain_has_what_the_last_reading_showed(scene: Scene, certjob: Certjob) -> None:
    """Before the first reading, both fields are empty."""
    contacts = reconciled(scene, 2, expired=1)
    scene.portal.visible |= {contacts[0]: True, contacts[1]: False}
    page = json.loads(certjob("explain", "M1001", "--json").stdout)["portal"]
    assert (page["read_at"], page["was_shown"]) == (None, None)

    scene.reconcile()

    assert "the mentor was visible" in certjob("explain", "M1001").stdout
    assert "the mentor was not visible" in certjob("explain", "M1002").stdout
