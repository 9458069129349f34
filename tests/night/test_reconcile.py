"""``certjob reconcile``: the portal is read as a set, and only what differs is pushed."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import StoppedBySignalError
from certjob.night import reconcile as reconciling
from certjob.night.report import RunReport
from certjob.portal import comparison
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.stopping import StopFlag
from certjob.views.alerts import read_alerts
from certjob.views.metrics import read_metrics
from tests.conftest import Certjob
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, run_out
from tests.support.nights import CollectingChannel, NoProgress, delivery, in_background, night
from tests.support.portal_answers import Behaviour, Exchange, answer, error, hang, ok
from tests.support.portal_server import PortalServer
from tests.support.programmes import everything
from tests.support.waiting import until

EXPIRED, IN_FORCE = TODAY - timedelta(days=1), TODAY + timedelta(days=300)
OUTCOME = "SELECT outcome FROM job_runs WHERE command = 'reconcile'"
App = psycopg.Connection[tuple[object, ...]]


@dataclass
class Scene:
    """A database, a portal that lists three contacts a page, and readings of it."""

    connection: Connection
    facts: Facts
    portal: PortalServer

    def mentors(self, count: int, *, expired: int = 0, slug: str = "hlf") -> list[UUID]:
        """Contact ids of so many mentors of a new organisation, the first ones without a certificate in force."""
        organisation = self.facts.organisation(slug, thresholds=())
        contacts = [uuid4() for _ in range(count)]
        for number, contact_id in enumerate(contacts):
            self.facts.certified_mentor(organisation, EXPIRED if number < expired else IN_FORCE, contact_id=contact_id)
        return contacts

    def agreed(self, *contacts: UUID) -> list[UUID]:
        """Mentors whom the portal has shown, until a night hid whoever must not be shown."""
        self.portal.visible |= dict.fromkeys(contacts, True)
        self.night(allow_mass_change=True)
        self.portal.requests.clear()
        return list(contacts)

    def night(self, today: date = TODAY, **options: Any) -> RunReport:
        return night(self.connection, today, **({"portal": self.portal} | options))

    def reconcile(self, *, stop: StopFlag | None = None, **options: Any) -> RunReport:
        return reconciling.reconcile(
            self.connection,
            ignore_database_clock=True,
            today=TODAY,
            **options,
            make_reader=lambda: HLFDynamicsSyncService(self.portal.url, self.portal.key, deadline_seconds=5),
            delivery=delivery(portal=self.portal),
            stop=stop or StopFlag(),
            progress=NoProgress(),
        )

    def differences(self) -> dict[str, int]:
        """The figures of a reading that are not nothing."""
        document = self.reconcile().to_document()
        return {name: number for name, number in document["differences"].items() if number}

    @property
    def pushes(self) -> list[tuple[UUID | None, bool | None]]:
        return [(request.contact_id, request.visible) for request in self.portal.requests if request.method == "POST"]


@pytest.fixture
def scene(connection: Connection, facts: Facts) -> Iterator[Scene]:
    with PortalServer(default=ok(page_size=3)) as portal:
        yield Scene(connection, facts, portal)
        portal.release()


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another session."""
    with database.connect(database_url) as connection:
        yield connection


def test_agreement_costs_reads_and_a_hand_edit_exactly_its_pushes(scene: Scene) -> None:
    """The hide comes first; nobody has to act. With the key of yesterday's call the portal would do nothing."""
    contacts = scene.agreed(*scene.mentors(9, expired=2))
    report = scene.reconcile()
    assert [request.method for request in scene.portal.requests] == ["GET"] * 3
    assert (report.outcome, report.to_document()["read"]) == ("ok", {"pages": 3, "visible": 7})
    assert not any(report.to_document()["differences"].values())

    for _ in range(2):
        scene.portal.visible |= {contacts[0]: True, contacts[5]: False}

        report = scene.reconcile()

        assert scene.pushes[-2:] == [(contacts[0], False), (contacts[5], True)]
        assert report.outcome == "ok"
        counts = {"queued": 2, "delivered": 2, "failed": 0, "blocked": 0, "lost": 0, "pending": 0}
        assert report.to_document()["portal"] == counts
        found = report.to_document()["differences"]
        assert (found["shown_wrongly"], found["hidden_wrongly"], sum(found.values())) == (1, 1, 2)
    assert scene.differences() == {}
    assert len({request.idempotency_key for request in scene.portal.requests if request.method == "POST"}) == 4


def test_nobody_is_shown_who_waits_for_a_review(scene: Scene) -> None:
    """The pause of this afternoon counts, though no night has seen it; a hide goes all the same.

    Before the first review nobody knows who is certified; and their contacts are not unknown.
    """
    hidden, shown = scene.mentors(2, expired=1)
    scene.portal.visible[hidden] = True
    assert scene.differences() == {}
    assert scene.pushes == []
    scene.agreed(hidden, shown)
    pause = "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'illness', 'coordinator' FROM mentors"
    scene.connection.execute(pause)
    scene.portal.visible = {hidden: True, shown: False}

    scene.reconcile()

    assert scene.pushes == [(hidden, False)]


def test_nobody_is_shown_whose_contact_belongs_to_somebody_else_who_waits_for_a_review(scene: Scene) -> None:
    """The pause of this afternoon in one organisation counts for the other's mentor, too."""
    contact = uuid4()
    for slug in ("hlf", "nhf"):
        scene.facts.certified_mentor(scene.facts.organisation(slug, thresholds=()), IN_FORCE, contact_id=contact)
    scene.agreed(contact)
    pause = "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'illness', 'anna' FROM mentors LIMIT 1"
    scene.connection.execute(pause)
    scene.portal.visible = {contact: False}

    scene.reconcile()

    assert scene.pushes == []


def test_whoever_certjob_has_shown_is_shown_again_and_nobody_who_was_never_certified(scene: Scene) -> None:
    """Nobody watches these; hidden by hand they stay hidden. Whoever has left is hidden again."""
    organisation = scene.facts.organisation(thresholds=())
    scene.facts.mentor(organisation)
    upcoming = scene.facts.mentor(organisation)
    scene.facts.certificate(upcoming, IN_FORCE, issued_on=TODAY + timedelta(days=30))
    left = scene.facts.certified_mentor(organisation, IN_FORCE, contact_id=(left_contact := uuid4()))
    lapsed = scene.facts.mentor(organisation, contact_id=(lapsed_contact := uuid4()))
    scene.facts.certificate(lapsed, EXPIRED, kind="course")
    scene.night()
    scene.connection.execute("UPDATE organisations SET optional_kinds = '{course}'")  # it pauses nobody any more
    scene.connection.execute("UPDATE mentors SET left_at = now() WHERE id = %s", (left,))
    scene.night()
    assert scene.portal.visible == {lapsed_contact: True, left_contact: False}
    scene.portal.visible = {lapsed_contact: False, left_contact: True}
    scene.portal.requests.clear()

    assert scene.reconcile().outcome == "ok"

    assert scene.pushes == [(left_contact, False), (lapsed_contact, True)]


def test_nobody_who_has_an_event_under_way_is_touched(scene: Scene) -> None:
    """A blocked event and a waiting one have their own way and alert; what is due is pushed as in any delivery."""
    contacts = scene.mentors(2, expired=2)
    scene.portal.visible |= dict.fromkeys(contacts, True)
    scene.portal.then(error(404, "contact_not_found"), *[error(503, "token_unavailable")] * 3)
    scene.night()
    scene.portal.requests.clear()

    assert scene.differences() == {}
    assert scene.pushes == []
    events = scene.facts.rows("SELECT status, version FROM portal_sync_events ORDER BY status")
    assert events == [("blocked", 1), ("pending", 1)]
    make_due(scene.facts)
    assert scene.differences() == {}
    assert len(scene.pushes) == 1


def test_a_call_that_died_before_its_event_was_withdrawn_is_not_waited_for_for_ever(scene: Scene) -> None:
    """Its token stays, its lease ends."""
    (contact,) = scene.agreed(*scene.mentors(1, expired=1))
    scene.connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible, status, claim_token, next_attempt_at)"
        " SELECT id, true, 'withdrawn', gen_random_uuid(), now() + interval '1 minute' FROM mentors"
    )
    scene.portal.visible[contact] = True
    scene.reconcile()
    assert scene.pushes == []

    run_out(scene.facts)
    scene.reconcile()

    assert scene.pushes == [(contact, False)]


def test_a_page_that_fails_for_good_changes_nothing(scene: Scene) -> None:
    """Though the first page showed somebody who must be hidden: without the rest nobody can say who is missing."""
    scene.portal.visible = dict.fromkeys(scene.agreed(*scene.mentors(5, expired=1)), True)
    scene.portal.then(ok(page_size=3))
    scene.portal.default = error(502, "dynamics_unavailable")

    report = scene.reconcile()

    (reason,) = report.reasons
    assert "502 dynamics_unavailable" in reason
    assert reason.endswith("the portal was not read to its end, nothing was compared and nothing changed")
    assert (report.to_document()["differences"], scene.pushes) == (None, [])
    assert scene.facts.rows("SELECT count(*) FROM portal_last_reading") == [(0,)]
    assert scene.facts.rows(OUTCOME) == [("attention",)]


def test_a_signal_ends_the_reading(scene: Scene) -> None:
    """When its grace is over."""
    scene.portal.default = hang()
    stop = StopFlag()

    def send_signal() -> None:
        scene.portal.wait_until(lambda: bool(scene.portal.requests))
        stop.set()
        stop.break_off()

    with in_background(send_signal), pytest.raises(StoppedBySignalError):
        scene.reconcile(stop=stop)

    assert scene.facts.rows(OUTCOME) == [("failed",)]


@pytest.mark.parametrize("comes", [ok(), error(401, "unauthorized")])
def test_a_signal_is_the_reason_whatever_the_page_that_was_asked_for_brings(scene: Scene, comes: Behaviour) -> None:
    """Nothing is compared, and the portal is not blamed."""
    stop = StopFlag()

    def answer_after_signal(exchange: Exchange) -> None:
        stop.set()
        comes(exchange)

    scene.portal.default = answer_after_signal

    with pytest.raises(StoppedBySignalError):
        scene.reconcile(stop=stop)

    assert scene.facts.rows(OUTCOME) == [("failed",)]
    assert scene.facts.rows("SELECT count(*) FROM portal_last_reading") == [(0,)]


def test_nobody_visible_is_held_until_the_flag_lets_it_through(scene: Scene, certjob: Certjob) -> None:
    """A wrong column says of everybody that they are hidden. Meanwhile it is an alert, and nobody is gone.

    Small organisations are held where together they are too many: 20 may be shown, a small programme whose portal was
    cleared by hand. It is over with the first night without a portal, too: no reading will ever come to say so.
    """
    contacts = scene.agreed(*(contact for slug in "abc" for contact in scene.mentors(7, slug=slug)))
    scene.portal.visible[uuid4()] = True
    scene.reconcile()
    scene.portal.visible.clear()

    report = scene.reconcile()

    assert (scene.pushes, report.outcome, len(report.held)) == ([], "attention", 3)
    assert report.held[0].startswith("a: 7 mentors would be shown again, the portal shows nobody at all; none of them")
    assert "`certjob reconcile --allow-mass-change`" in report.held[0]
    assert scene.facts.rows("SELECT gone_at FROM portal_unknown_contacts") == [(None,)]
    documents = read_alerts(scene.connection, today=TODAY).to_document()["held"]
    command = "certjob reconcile --allow-mass-change"
    assert {(each["what"], each["mentors"], each["command"]) for each in documents} == {("portal", 7, command)}
    assert "Held: b: 7 mentors would be shown again" in certjob("alerts").stdout
    since = "SELECT organisation_id, since FROM held_reviews ORDER BY organisation_id"
    began = scene.facts.rows(since)
    assert scene.reconcile().held == report.held
    assert scene.facts.rows(since) == began
    assert scene.reconcile(allow_mass_change=True).outcome == "ok"
    assert len(scene.pushes) == 21
    assert certjob("alerts").returncode == 0

    scene.portal.visible.clear()
    assert scene.reconcile().held
    scene.connection.execute("UPDATE mentors SET left_at = now() WHERE dynamics_contact_id = %s", (contacts[0],))
    scene.night()
    scene.portal.requests.clear()
    assert scene.reconcile().outcome == "ok"
    assert len(scene.pushes) == 20

    scene.portal.visible.clear()
    scene.connection.execute("UPDATE mentors SET left_at = NULL")
    scene.night()
    scene.portal.visible.clear()
    assert scene.reconcile().held
    scene.connection.execute("UPDATE organisations SET portal = NULL")
    assert scene.night(portal=None).outcome == "ok"
    assert certjob("alerts").returncode == certjob("status", "-q").returncode == 0


def test_too_many_shows_of_an_organisation_are_held_and_hides_go_on(scene: Scene) -> None:
    """However many hides, and the shows of the others."""
    many = scene.mentors(62, expired=25)
    few = scene.mentors(2, slug="nhf")
    scene.agreed(*many, *few)
    scene.portal.visible = dict.fromkeys([*many[:25], few[0]], True)

    report = scene.reconcile()

    assert set(scene.pushes) == {*((contact, False) for contact in many[:25]), (few[1], True)}
    assert report.held == [
        "hlf: 37 mentors would be shown again, the limit is 20 (of 62 on the portal); none of them was shown, hides "
        "went on. Check DYNAMICS_VISIBILITY_FIELD and DYNAMICS_URL of the function, then `certjob reconcile "
        "--allow-mass-change`"
    ]


def test_contacts_of_no_mentor_are_alerts_until_they_are_gone_or_accepted(scene: Scene, certjob: Certjob) -> None:
    """Somebody has shown them by hand. certjob does not hide them: they may be anybody's, such as staff's.

    The page has the number and five of them; of a mentor of an organisation without a portal, who it is.
    """
    deleted, *_ = scene.agreed(*scene.mentors(3))
    scene.connection.execute("UPDATE mentors SET left_at = now() WHERE dynamics_contact_id = %s", (deleted,))
    scene.night()
    scene.connection.execute("DELETE FROM mentors WHERE dynamics_contact_id = %s", (deleted,))
    scene.portal.requests.clear()
    for _ in range(2):
        scene.portal.visible[deleted] = True
        report = scene.reconcile()
        assert report.outcome == "attention"
        assert report.reasons == ["1 contact on the portal is no mentor's; see `certjob alerts`"]
    scene.portal.visible[deleted] = False
    assert scene.reconcile().outcome == "ok"
    unknown = scene.facts.rows("SELECT contact_id, gone_at > first_seen_at FROM portal_unknown_contacts")
    assert unknown == [(deleted, True)]

    theirs, *staff = some = [uuid4() for _ in range(7)]
    their_mentor = scene.facts.mentor(scene.facts.organisation("nhf", portal=None), contact_id=theirs)
    assert not comparison.accept(scene.connection, theirs, because="a typo accepts nobody in advance", who="kari")
    scene.portal.visible |= dict.fromkeys(some, True)
    assert scene.differences() == {"unknown": 7}
    page = certjob("alerts")
    assert (page.returncode, page.stdout.count("certjob reconcile --accept")) == (3, 7)
    documents = read_alerts(scene.connection, today=TODAY).to_document()["unknown_contacts"]
    assert {each["contact_id"]: each["organisation"] for each in documents} == {theirs: "nhf"} | dict.fromkeys(staff)
    for option in ("--dry-run", "--allow-mass-change"):  # neither has a meaning there, and a dry run writes nothing
        refused = certjob("reconcile", "--accept", str(theirs), "--because", "the office", option)
        assert refused.returncode == 2
        assert option in refused.stderr
    assert scene.facts.rows("SELECT FROM portal_unknown_contacts WHERE accepted_at IS NOT NULL") == []

    scene.portal.visible |= dict.fromkeys(staff, False)
    assert certjob("reconcile", "--accept", str(theirs), "--because", "the office").returncode == 0
    assert scene.reconcile().outcome == "ok"
    assert certjob("alerts").returncode == 0
    assert scene.differences() == {"accepted": 1}
    scene.connection.execute("UPDATE organisations SET portal = 'dynamics'")  # now it is a mentor's
    assert scene.differences() == {}
    scene.connection.execute("UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %s", (their_mentor,))
    assert scene.differences() == {"unknown": 1}
    assert scene.pushes == []


def test_where_two_organisations_contradict_each_other_only_the_hide_is_raised(scene: Scene, certjob: Certjob) -> None:
    """Night after night, with no push, somebody is told, until they agree; whether the portal is read again or not."""
    contact = uuid4()
    for slug, expires_on in (("hlf", EXPIRED), ("nhf", IN_FORCE)):
        scene.facts.certified_mentor(scene.facts.organisation(slug, thresholds=()), expires_on, contact_id=contact)
    scene.agreed(contact)
    scene.portal.visible[contact] = True

    assert scene.differences() == {"shown_wrongly": 1, "contradictory": 1}

    report = scene.reconcile()
    assert scene.pushes == [(contact, False)]
    assert report.outcome == "attention"
    assert "is to be visible for one organisation and hidden for another" in report.reasons[0]
    page = certjob("alerts")
    assert page.returncode == 3
    assert f"contact {contact}, visible for nhf M1002, hidden for hlf M1001" in page.stdout

    scene.connection.execute("UPDATE certificates SET expires_on = %s", (EXPIRED,))
    scene.night()
    assert certjob("alerts").returncode == 0
    scene.portal.visible[contact] = True
    assert scene.differences() == {"shown_wrongly": 2}
    assert scene.portal.visible == {contact: False}


def test_of_two_readings_at_once_the_one_that_began_last_is_what_is_known(scene: Scene) -> None:
    contact = uuid4()
    old = comparison.Reading(read_at=database.clock(scene.connection), pages=1, visible=[])
    scene.portal.visible[contact] = True
    scene.reconcile()

    found = comparison.compare(scene.connection, old, today=TODAY, allow_mass_change=False)
    comparison.store(scene.connection, found, run_id=uuid4())

    assert scene.facts.rows("SELECT contact_id, gone_at FROM portal_unknown_contacts") == [(contact, None)]
    assert scene.facts.rows("SELECT visible FROM portal_last_reading") == [([contact],)]


def test_a_push_that_is_confirmed_while_the_portal_is_read_is_left_alone(scene: Scene, other: Connection) -> None:
    """The page may have been read before it."""
    contacts = scene.agreed(*scene.mentors(2))

    def read_then_night(exchange: Exchange) -> None:
        other.execute("UPDATE certificates SET expires_on = %s", (EXPIRED,))
        night(other, portal=scene.portal)
        answer(200, {"visible": sorted(map(str, contacts)), "next": None})(exchange)

    scene.portal.then(read_then_night)

    assert scene.differences() == {}
    assert len(scene.pushes) == 2


def test_a_hide_that_is_committed_after_the_comparison_is_not_undone(scene: Scene, other: Connection) -> None:
    """Under the lock the same question is asked again."""
    scene.agreed(*scene.mentors(1))
    reading = comparison.Reading(read_at=database.clock(scene.connection), pages=1, visible=[])
    found = comparison.compare(scene.connection, reading, today=TODAY, allow_mass_change=False)
    assert [each.visible for each in found.differences] == [True]
    other.execute("UPDATE certificates SET expires_on = %s", (EXPIRED,))
    night(other, deliver=False)

    comparison.raise_events(scene.connection, found, today=TODAY, run_id=uuid4(), stop=StopFlag())

    assert (found.raised, found.locked) == (0, [])
    assert scene.facts.rows("SELECT visible, version FROM portal_sync_events") == [(False, 1)]


@pytest.mark.parametrize("for_a_moment", [True, False])
def test_a_mentor_whom_the_app_locks_is_waited_for_and_then_reported(
    scene: Scene, other: Connection, app: App, monkeypatch: pytest.MonkeyPatch, for_a_moment: bool
) -> None:
    """The others are corrected; this one may still be shown."""
    contacts = scene.agreed(*scene.mentors(3, expired=3))
    scene.portal.visible = dict.fromkeys(contacts, True)
    app.execute("SELECT FROM mentors WHERE dynamics_contact_id = %s FOR UPDATE", (contacts[0],))
    if not for_a_moment:
        monkeypatch.setattr(comparison, "_LOCKED_FOR_SECONDS", 0.0)

    def let_go() -> None:
        corrected = "SELECT count(*) = 2 FROM portal_sync_events WHERE corrects_portal"
        until(lambda: other.execute(corrected).fetchone() == (True,))
        if for_a_moment:
            app.rollback()

    with in_background(let_go):
        report = scene.reconcile()

    assert sum(scene.portal.visible.values()) == (0 if for_a_moment else 1)
    locked = "1 mentor is locked by another session and not corrected, run `certjob reconcile` again: M1001"
    assert report.reasons == ([] if for_a_moment else [locked])


def test_a_dry_run_says_it_and_writes_nothing_and_explain_metrics_and_digest_tell_what_was_done(
    scene: Scene, certjob: Certjob
) -> None:
    """Before the first reading they say nothing of it. The digest tells once: coordinators should know who edits it.

    A reading older than three days is an alert, where the portal was ever read.
    """
    contacts = scene.mentors(3, expired=1)
    coordinator = "INSERT INTO coordinators (organisation_id, email, locale) SELECT id, 'ola@example.org', 'en'"
    scene.connection.execute(f"{coordinator} FROM organisations".encode())
    scene.agreed(*contacts)
    scene.night(channel=CollectingChannel())
    scene.portal.visible |= {contacts[0]: True, contacts[1]: False, uuid4(): True}
    before = everything(scene.facts)

    planned = scene.reconcile(dry_run=True).to_document()

    changes = [(each["organisation"], each["portal"]) for each in planned["changes"]]
    assert (changes, planned["differences"]["unknown"]) == ([("hlf", False), ("hlf", True)], 1)
    assert (scene.pushes, everything(scene.facts)) == ([], before)
    page = json.loads(certjob("explain", "M1001", "--json").stdout)["portal"]
    assert (page["read_at"], page["was_shown"]) == (None, None)
    assert "certjob_portal" not in read_metrics(scene.connection, today=TODAY).decode()

    scene.reconcile()

    assert "the mentor was visible" in certjob("explain", "M1001").stdout
    assert "the mentor was not visible" in certjob("explain", "M1002").stdout
    metrics = read_metrics(scene.connection, today=TODAY).decode()
    found = re.findall(r'^certjob_portal_differences\{what="(\w+)"\} 1.0$', metrics, flags=re.MULTILINE)
    assert set(found) == {"shown_wrongly", "hidden_wrongly", "unknown"}
    assert "certjob_portal_read_timestamp_seconds" in metrics
    channel, tomorrow = CollectingChannel(), TODAY + timedelta(days=1)
    for _ in range(2):
        scene.night(tomorrow := tomorrow + timedelta(days=1), channel=channel)
    (text,) = [message.text for message in channel.sent if "Corrected on the portal (2)" in message.text]
    for words in ("was visible, and is hidden again", "was hidden, and is visible again"):
        assert words in text

    scene.connection.execute("UPDATE portal_last_reading SET read_at = now() - interval '73 hours'")
    assert "run `certjob reconcile`" in certjob("alerts").stdout
    assert "1 portal was not read for three days; see `certjob alerts`" in scene.night(today=tomorrow).reasons
