"""``certjob reconcile``: the portal is read, and only the differences are pushed."""

from collections import Counter
from datetime import UTC, timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest

from certjob import database
from certjob.errors import ConfigurationError, StoppedBySignalError
from certjob.facts.lookup import name_mentors
from certjob.jobs.acknowledge import acknowledge
from certjob.jobs.pages import report_page
from certjob.portal import comparison
from certjob.reports.alerts import read_alerts
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.command_line import flat, terminal, today
from tests.support.facts import TODAY, Facts
from tests.support.nights import EVERYTHING
from tests.support.portal_answers import Exchange, error, ok
from tests.support.portal_server import PortalServer
from tests.support.programmes import all_rows
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

UNKNOWN = "SELECT contact_id, gone_at IS NOT NULL FROM portal_unknown_contacts ORDER BY first_seen_at, contact_id"


def reconciled(scene: Scene, count: int, *, expired: int = 0) -> list[UUID]:
    """Create mentors of HLF and run certjob, so the portal shows the certified ones; return their contacts."""
    contacts = [uuid4() for _ in range(count)]
    for number, contact in enumerate(contacts):
        scene.certified(YESTERDAY if number < expired else NEXT_YEAR, contact_id=contact)
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
    """One request for each page of contacts. This portal has no date column, so days are not compared."""
    scene.portal.default = ok(page_size=3)
    reconciled(scene, 9, expired=2)

    report = scene.reconcile()

    assert [request.method for request in scene.portal.requests] == ["GET"] * 3
    assert (report.outcome, report.to_document()["read"]) == ("ok", {"pages": 3, "visible": 7})


def test_manual_changes_are_corrected_hides_first(scene: Scene, here: Certjob) -> None:
    """The second one has a new idempotency key, because the portal would ignore the old one. `explain` has both."""
    contacts = reconciled(scene, 9, expired=2)

    for _ in range(2):
        scene.portal.visible |= {contacts[0]: True, contacts[5]: False}
        report = scene.reconcile()
        assert (report.outcome, report.portal.delivered) == ("ok", 2)

    assert pushes(scene) == [(contacts[0], False), (contacts[5], True)] * 2
    assert len({request.idempotency_key for request in scene.portal.pushes}) == 4
    assert "the mentor was visible" in here("explain", "M1001").stdout
    assert "the mentor was not visible" in here("explain", "M1006").stdout


def test_wrong_days_are_corrected(scene: Scene) -> None:
    """The days are missing, too early or too late."""
    contacts = reconciled(scene, 4)
    right, early, late = (str(NEXT_YEAR + timedelta(days=days)) for days in (0, -1, 1))
    scene.portal.until = dict(zip(contacts, (right, early, late, None), strict=True))

    assert differences(scene) == {"with_another_day": 2, "without_day": 1}

    assert scene.portal.until == dict.fromkeys(contacts, right)
    assert differences(scene) == {}


def test_mentor_due_for_a_review_is_hidden_but_not_shown(scene: Scene) -> None:
    """The review may find that the mentor must not be shown."""
    hidden, shown = reconciled(scene, 2, expired=1)
    scene.run_sql("INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'illness', 'anna' FROM mentors")
    scene.portal.visible = {hidden: True, shown: False}

    scene.reconcile()

    assert pushes(scene) == [(hidden, False)]


def test_mentor_with_an_open_push_is_left_alone(scene: Scene) -> None:
    """A blocked push and a delayed one have alerts of their own. Once the delayed one is due, reconcile sends it."""
    scene.expired()
    scene.expired()
    scene.portal.then(error(404, "contact_not_found"), *[error(503, "token_unavailable")] * 3)
    scene.night(scene.portal)
    scene.portal.requests.clear()

    assert (differences(scene), pushes(scene)) == ({}, [])
    events = scene.rows("SELECT status, version FROM portal_sync_events ORDER BY status")
    assert events == [("blocked", 1), ("pending", 1)]
    scene.make_due()
    assert (differences(scene), len(pushes(scene))) == ({}, 1)


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
    """The portal was read four days ago."""
    scene.certified()
    scene.reconcile()
    scene.run_sql("UPDATE portal_last_reading SET read_at = now() - interval '4 days'")
    scene.portal.default = error(502, "dynamics_unavailable")

    scene.reconcile()

    alert = "SELECT cause, error FROM current_alerts(%s) WHERE kind = 'portal_not_read'"
    ((cause, said),) = scene.rows(alert, TODAY)
    assert cause == "reading_failed"
    assert "; `certjob reconcile` stopped: the portal answered 502 dynamics_unavailable" in str(said)
    report = scene.night(scene.portal)
    assert "1 portal was not read for three days; see `certjob alerts`" in report.reasons


def test_signal_during_the_reading_changes_nothing(scene: Scene) -> None:
    """The page that arrives after it is not compared."""
    scene.portal.visible = dict.fromkeys(reconciled(scene, 1, expired=1), True)
    stop = StopFlag()

    def answer_after_signal(exchange: Exchange) -> None:
        stop.set()
        ok()(exchange)

    scene.portal.default = answer_after_signal

    with pytest.raises(StoppedBySignalError):
        scene.reconcile(stop=stop)

    assert scene.rows("SELECT outcome FROM job_runs WHERE command = 'reconcile'") == [("failed",)]
    assert (pushes(scene), scene.rows("SELECT count(*) FROM portal_last_reading")) == ([], [(0,)])


def test_portal_that_lists_no_wanted_mentor_is_held(scene: Scene) -> None:
    """It may be a wrong column or another Dynamics. Hides are sent, and no unknown contact counts as gone."""
    hidden = reconciled(scene, 22, expired=1)[0]
    scene.portal.visible[uuid4()] = True
    scene.reconcile()
    scene.portal.visible = {hidden: True, uuid4(): True}
    scene.portal.requests.clear()

    report = scene.reconcile()

    assert (pushes(scene), report.outcome) == ([(hidden, False)], "attention")
    assert report.held[0].startswith("hlf: the portal lists 0 of the 21 mentors who should be visible, so ")
    assert "`certjob reconcile --allow hlf=21`" in report.held[0]
    assert [is_gone for _, is_gone in scene.rows(UNKNOWN)] == [False, False]
    (held,) = (alert for alert in read_alerts(scene.connection, today=TODAY) if alert.kind == "held")
    assert (held.cause, held.number) == ("portal", 21)


@pytest.mark.parametrize(("listed", "is_held"), [(1, True), (10, True), (11, False)])
def test_portal_that_lists_fewer_than_half_of_the_mentors_is_held(scene: Scene, listed: int, is_held: bool) -> None:
    """A single show, of a delivery or by hand, does not end the hold of all others."""
    contacts = reconciled(scene, 21)
    scene.portal.visible.clear()
    assert scene.reconcile().held
    scene.portal.visible = dict.fromkeys(contacts[:listed], True)

    report = scene.reconcile()

    assert (bool(report.held), len(pushes(scene))) == (is_held, 0 if is_held else 21 - listed)


def test_held_portal_is_corrected_with_consent(scene: Scene) -> None:
    """After it, there is no hold. A mistyped slug is rejected."""
    reconciled(scene, 21)
    scene.portal.visible.clear()
    assert scene.reconcile().held
    with pytest.raises(ConfigurationError, match="hfl"):
        scene.reconcile(allow=Counter(hfl=21))

    assert scene.reconcile(allow=Counter(hlf=21)).outcome == "ok"

    assert (len(pushes(scene)), read_alerts(scene.connection, today=TODAY)) == (21, [])


def test_hold_ends_with_the_portal(scene: Scene) -> None:
    """Without a portal no later reading can end it."""
    reconciled(scene, 21)
    scene.portal.visible.clear()
    assert scene.reconcile().held
    scene.run_sql("UPDATE organisations SET portal = NULL")

    assert scene.night().outcome == "ok"


def test_missing_mentors_of_a_small_programme_are_shown_again(scene: Scene) -> None:
    """Someone has hidden them by hand. There is no hold for 20 mentors."""
    reconciled(scene, 20)
    scene.portal.visible.clear()

    assert scene.reconcile().outcome == "ok"

    assert len(pushes(scene)) == 20


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


@pytest.mark.parametrize(("listed", "is_gone"), [(4, False), (5, True)])
def test_contact_of_no_mentor_is_gone_only_if_half_of_the_wanted_are_listed(
    scene: Scene, listed: int, is_gone: bool
) -> None:
    """A list that was cut short is no proof."""
    contacts, contact = reconciled(scene, 10), uuid4()
    scene.portal.visible[contact] = True
    scene.reconcile()

    scene.portal.visible = dict.fromkeys(contacts[:listed], True)
    scene.reconcile()

    assert scene.rows(UNKNOWN) == [(contact, is_gone)]


@pytest.mark.parametrize("new_contact", [None, uuid4()], ids=["removed", "replaced"])
def test_contact_that_a_mentor_loses_is_an_alert_at_once(scene: Scene, new_contact: UUID | None) -> None:
    """certjob has shown it and cannot hide it now. The next reading without it ends the alert."""
    contact = uuid4()
    scene.certified(contact_id=contact)
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")  # so the run pushes the value
    scene.night(scene.portal)

    scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s", new_contact)

    found = [alert.alert_id for alert in read_alerts(scene.connection, today=TODAY)]
    assert [each.split(":")[2] for each in found] == [str(contact)]
    scene.portal.visible = {}
    scene.reconcile()
    assert scene.rows(UNKNOWN) == [(contact, True)]


def test_contact_that_moves_to_another_mentor_or_was_hidden_is_no_alert(scene: Scene) -> None:
    """Two mentors swap their contacts, as an app does that corrects a mistake. Another is hidden by the last day."""
    one, other = uuid4(), uuid4()
    first, second = scene.certified(contact_id=one), scene.certified(contact_id=other)
    hidden, ended = scene.expired(), scene.certified(TODAY)
    scene.portal.until = {}
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal)

    scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL WHERE id IN (%s, %s, %s)", first, hidden, ended)
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", one, second)
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", other, first)

    assert [alert.kind for alert in read_alerts(scene.connection, today=TODAY)] == []


@pytest.mark.parametrize(("days", "number"), [(31, 0), (30, 1), (-1, 1)])
def test_last_day_of_the_client_secret_is_an_alert_thirty_days_before(
    scene: Scene, here: Certjob, days: int, number: int
) -> None:
    """The function tells it in each reading, and the date is the database's. `check` reads it itself, on its date."""
    last_day = database.clock(scene.connection).astimezone(UTC).date() + timedelta(days=days)
    scene.certified()
    scene.portal.secret_until = str(last_day)

    scene.reconcile()

    found = [alert.alert_id for alert in read_alerts(scene.connection, today=TODAY)]
    assert found == [f"all:secret_ends:{last_day}"] * number
    last_day = today() + timedelta(days=days)
    scene.portal.secret_until = str(last_day)
    warned = (
        f"warn  client secret: its last day is {last_day}; create a second one"
        in here("check", **scene.portal.settings).stdout
    )
    assert warned == bool(number)
    assert ("Create a second secret in Entra" in here("alerts").stdout) == bool(number)


def test_unusable_last_day_of_the_client_secret_is_named(scene: Scene, here: Certjob) -> None:
    """Pushes go on. The value is not shown, because it may be the secret."""
    scene.expired()
    scene.night(scene.portal)
    scene.portal.secret_until = "unusable"

    report = scene.reconcile()

    setting = "AZURE_CLIENT_SECRET_UNTIL of the function is not a day"
    assert report.reasons == [f"client secret: {setting} such as 2027-03-10; correct it"]
    assert list(scene.portal.visible.values()) == [False]
    assert f"warn  client secret: {setting}; set it to a day" in here("check", **scene.portal.settings).stdout


def test_acknowledgement_of_a_contact_ends_when_a_mentor_gets_it_or_no_reading_lists_it(scene: Scene) -> None:
    """After that, someone must decide again."""
    contact, mentor = uuid4(), scene.mentor(contact_id=None)
    scene.portal.visible[contact] = True
    scene.reconcile()

    def acknowledge_it() -> None:
        ((alert_id,),) = scene.rows("SELECT alert_id FROM current_alerts(%s) WHERE kind = 'unknown_contacts'", TODAY)
        acknowledge(scene.connection, alert_id, because="office", until=TODAY + timedelta(days=365), today=TODAY)

    acknowledge_it()
    assert scene.reconcile().outcome == "ok"
    assert differences(scene) == {"acknowledged": 1}
    for holder, found in ((contact, {}), (None, {"unknown": 1})):
        scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", holder, mentor)
        assert (differences(scene), pushes(scene)) == (found, [])
    acknowledge_it()
    for is_shown, found in ((False, {}), (True, {"unknown": 1})):
        scene.portal.visible[contact] = is_shown
        assert differences(scene) == found
    acknowledged = "SELECT is_acknowledged FROM current_alerts(%s) WHERE kind = 'unknown_contacts'"
    assert scene.rows(acknowledged, TODAY) == [(False,)]


def test_hide_queued_after_the_comparison_is_not_replaced(scene: Scene) -> None:
    """The mentors are compared again under their locks."""
    reconciled(scene, 2)
    read_at = database.clock(scene.connection)
    no_one = comparison.Reading(read_at=read_at, pages=1, visible_until={}, dates=False)
    found = comparison.compare(scene.connection, no_one, today=TODAY)
    assert [each.visible for each in found.differences] == [True, True]
    scene.run_sql("UPDATE certificates SET expires_on = %s", YESTERDAY)
    scene.night(deliver=False)

    comparison.raise_events(scene.connection, found, today=TODAY, run_id=uuid4(), stop=StopFlag())

    assert (len(found.corrected), found.locked) == (0, [])
    assert scene.rows("SELECT DISTINCT visible FROM portal_sync_events WHERE status = 'pending'") == [(False,)]


def test_older_reading_does_not_replace_a_newer_one(scene: Scene) -> None:
    """Two processes have read the portal, and the one that began first ends last."""
    began, contact = database.clock(scene.connection), uuid4()
    old = comparison.Reading(read_at=began - timedelta(minutes=1), pages=1, visible_until={contact: None}, dates=True)
    new = comparison.Reading(read_at=began, pages=2, visible_until={}, dates=True)

    for reading in (old, new, old):
        found = comparison.compare(scene.connection, reading, today=TODAY)
        comparison.store(scene.connection, found)

    assert scene.rows("SELECT read_at, visible FROM portal_last_reading") == [(began, [])]
    assert scene.rows(UNKNOWN) == [(contact, True)]


def test_two_readings_correct_a_mentor_once(scene: Scene) -> None:
    """Also if the first correction is delivered before the second process begins its own."""
    contacts = reconciled(scene, 2)
    reading = comparison.Reading(
        read_at=database.clock(scene.connection), pages=1, visible_until={contacts[0]: None}, dates=False
    )
    first, second, third = (comparison.compare(scene.connection, reading, today=TODAY) for _ in range(3))

    for found in (first, second):
        comparison.raise_events(scene.connection, found, today=TODAY, run_id=uuid4(), stop=StopFlag())
    scene.run_stage()
    comparison.raise_events(scene.connection, third, today=TODAY, run_id=uuid4(), stop=StopFlag())

    assert [len(found.corrected) for found in (first, second, third)] == [1, 0, 0]
    assert pushes(scene) == [(contacts[1], True)]


def test_signal_between_two_slices_keeps_the_first_hundred_corrections(scene: Scene) -> None:
    """Each slice is one transaction. The next run corrects the others."""

    class Second(StopFlag):
        """A signal that arrives before the second slice."""

        slices = iter((False, True))

        def check(self) -> None:
            if next(self.slices):
                self.set()
            super().check()

    contacts = scene.backlog(101, visible=False)
    scene.run_sql("DELETE FROM portal_sync_events")
    shown = dict.fromkeys(sorted(contacts))
    reading = comparison.Reading(read_at=database.clock(scene.connection), pages=1, visible_until=shown, dates=False)
    found = comparison.compare(scene.connection, reading, today=TODAY)

    with pytest.raises(StoppedBySignalError):
        comparison.raise_events(scene.connection, found, today=TODAY, run_id=uuid4(), stop=Second())

    assert (len(found.corrected), scene.rows("SELECT count(*) FROM portal_sync_events")) == (100, [(100,)])


def test_locked_mentor_is_reported(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other mentors are corrected."""
    monkeypatch.setattr(comparison, "_LOCKED_FOR_SECONDS", 0.0)
    contacts = reconciled(scene, 3, expired=3)
    scene.portal.visible = dict.fromkeys(contacts, True)
    scene.app.execute("SELECT FROM mentors WHERE dynamics_contact_id = %s FOR UPDATE", (contacts[0],))

    report = scene.reconcile()

    assert scene.portal.visible == {contacts[0]: True, contacts[1]: False, contacts[2]: False}
    locked = "1 mentor is locked by another session and not corrected, run `certjob reconcile` again: M1001"
    assert report.reasons == [locked]


def test_report_has_the_corrections_and_a_dry_run_only_reads(scene: Scene) -> None:
    """The run stores the ids of the mentors. The page, on a terminal, has their names."""
    expired, certified = reconciled(scene, 2, expired=1)
    unknown = uuid4()
    scene.portal.visible |= {expired: True, certified: False, unknown: True}
    ids = dict(scene.rows("SELECT dynamics_contact_id, id FROM mentors"))
    before = all_rows(scene.facts)

    planned = scene.reconcile(dry_run=True).to_document()
    assert (pushes(scene), all_rows(scene.facts)) == ([], before)
    report = scene.reconcile()
    output, shown = terminal(160)
    output.show(report_page(report, find_names=partial(name_mentors, scene.connection)))

    for document in (planned, report.to_document()):
        changes = [(each["organisation"], each["contact_id"], each["what"]) for each in document["changes"]]
        assert changes == [("hlf", str(expired), "hidden"), ("hlf", str(certified), "shown")]
        assert (document["unknown_contacts"], document["differences"]["unknown"]) == ([str(unknown)], 1)
    stored = "SELECT counts -> 'corrected' FROM job_runs WHERE command = 'reconcile'"
    assert scene.rows(stored) == [({"hidden": [str(ids[expired])], "shown": [str(ids[certified])]},)]
    assert f"hlf M1001 Kari Nordmann {expired} hidden" in flat(shown.getvalue())
    assert f"{unknown} belongs to no mentor" in flat(shown.getvalue())


def test_command_names_the_corrections(facts: Facts, here: Certjob, portal: PortalServer) -> None:
    """cron mails one line with the numbers. A dry run has a line for each mentor and contact."""
    hlf, unknown = facts.organisation(), uuid4()
    expired, certified = uuid4(), uuid4()
    facts.certified_mentor(hlf, today() - timedelta(days=5), member_no="M1", contact_id=expired)
    facts.certified_mentor(hlf, today() + timedelta(days=400), member_no="M2", contact_id=certified)
    facts.connection.execute("UPDATE mentors SET portal_visible = NULL")
    here("run", **portal.settings)
    portal.visible |= {expired: True, certified: False, unknown: True}

    planned = here("reconcile", "--dry-run", **portal.settings).stdout.splitlines()
    done = here("reconcile", **portal.settings)

    assert planned[2:5] == [
        f"hlf,M1,Kari Nordmann,{expired},hidden",
        f"hlf,M2,Kari Nordmann,{certified},shown",
        f",,,{unknown},belongs to no mentor",
    ]
    assert "certjob reconcile: corrected 2 differences on the portal: 1 hidden, 1 shown\n" in done.stderr
    lines = [line for line in done.stderr.splitlines() if "corrected" not in line]
    assert lines == ["certjob reconcile: 1 contact on the portal does not belong to any mentor; see `certjob alerts`"]
    again = here("reconcile", **portal.settings)  # cron starts it twice a night
    assert (again.returncode, again.stderr) == (3, "")
    assert (portal.visible[expired], portal.visible[certified]) == (False, True)


def test_first_filling_of_the_date_column_is_one_line(facts: Facts, here: Certjob, portal: PortalServer) -> None:
    """Not a correction of each mentor."""
    hlf = facts.organisation()
    contacts = [uuid4() for _ in range(3)]
    for contact in contacts:
        facts.certified_mentor(hlf, today() + timedelta(days=400), contact_id=contact, portal_visible=None)
    here("run", **portal.settings)
    portal.until = dict.fromkeys(contacts)

    planned, done = (
        here("reconcile", "--dry-run", **portal.settings).stdout,
        here("reconcile", **portal.settings).stderr,
    )

    assert planned.splitlines()[0] == "the portal now hides 3 mentors by itself after the last day"
    assert done == "certjob reconcile: the portal now hides 3 mentors by itself after the last day\n"
    assert here("reconcile", **portal.settings).stderr == ""
