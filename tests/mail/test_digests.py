"""Coordinators' digests: news and open problems, at most once a day."""

import json
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import statements
from certjob.jobs import runs
from certjob.mail import steps
from certjob.mail.digests import QueuedDigest
from certjob.mail.message import OutgoingMessage
from certjob.reports.alerts import read_alerts
from tests.mail.channels import digest_mail
from tests.mail.conftest import CUT, DOWN, REFUSED, REJECTED, Mailing, Messages, day, reject_reminders
from tests.mail.written import breakable
from tests.support.facts import TODAY
from tests.support.nights import delivery, new_job, night
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer

NAMES = ("Kari", "Ola", "Pia", "Tor")


def named(messages: Messages) -> list[str]:
    """Return the mentors that these digests name."""
    return [name for name in NAMES if any(name in message.text for message in messages)]


def queue(desk: Mailing, number: int = 0) -> None:
    """Run a night without deliveries."""
    night(desk.connection, day(number), deliver=False)


def deliver(desk: Mailing, number: int = 0) -> Messages:
    """Run `certjob deliver`, and return its digests."""
    before = len(desk.channel.sent)
    desk.channel.on_send = None
    ways_out = delivery(portal=desk.portal, channel=desk.channel)
    runs.deliver(new_job(desk.connection, day(number), ways_out=ways_out))
    return [message for message in desk.channel.sent[before:] if message.kind == "digest"]


def rows(desk: Mailing) -> list[tuple[object, ...]]:
    """Return day, counted from TODAY, and status of each digest."""
    return desk.rows("SELECT digest_on - %s::date, status FROM coordinator_digests ORDER BY id", TODAY)


def test_digest_names_paused_and_reinstated_mentors_with_the_reason(desk: Mailing) -> None:
    """It says if another pause is open, and if someone had ended the pause."""
    kari, pia, tor = desk.ended("Kari", "Pia", "Tor")
    ola = desk.facts.mentor(desk.home, full_name="Ola", member_no="M2")
    desk.facts.certificate(ola, day(365), revoked_at=datetime.now(UTC))
    desk.facts.pause(pia)

    (paused,) = desk.digests()
    desk.execute("DELETE FROM certificates WHERE mentor_id = %s", tor)
    for mentor in (kari, pia):
        desk.facts.certificate(mentor, day(365), issued_on=TODAY)
    (back,) = desk.digests(1)
    desk.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'Berit' WHERE mentor_id = %s", ola)
    (reopened,) = desk.digests(2)

    assert (paused.to, paused.subject) == ("berit@example.org", "4 nye på pause (HLF)")
    assert "* Kari (M1001): sertifikatet «likeperson» gikk ut 9. mars 2026" in breakable(paused.text)
    assert "* Ola (M2): sertifikatet «likeperson» er trukket tilbake" in paused.text
    assert (back.subject, "Nye på pause" in back.text) == ("2 er ikke lenger på pause (HLF)", False)
    assert "* Kari (M1001)\n" in back.text
    assert "* Pia (M1002), fortsatt på pause av en annen grunn" in back.text
    assert "Tor" not in back.text, "a deleted certificate ends no pause"
    assert "Noen hadde avsluttet pausen" in reopened.text


def test_open_push_is_news_once_a_week(desk: Mailing, portal: PortalServer) -> None:
    """It is also in each digest with other news."""
    desk.ended("Kari")
    desk.certified("Ola", until=2)
    desk.execute("UPDATE coordinators SET locale = 'en'")
    portal.default = error(422, "dynamics_rejected")

    (first,), nothing, (other_news,), (next_week,) = (desk.digests(number) for number in (0, 1, 3, 10))

    assert first.subject.startswith("Urgent: 1 peer mentor may still be visible on the portal")
    assert "Dynamics did not accept" in first.text
    assert nothing == []
    assert (other_news.text.count("Kari"), other_news.text.count("Ola")) == (1, 2), "Ola is also newly paused"
    assert named([next_week]) == ["Kari", "Ola"]


def test_subject_is_the_news_and_not_the_oldest_problem(desk: Mailing, portal: PortalServer) -> None:
    """A mentor may be visible since the first day. Another cause of that is news again."""
    desk.execute("UPDATE coordinators SET locale = 'en'")
    desk.ended("Kari")
    portal.default = error(422, "dynamics_rejected")
    (first,) = desk.digests()

    desk.certified("Pia", until=31)
    (about_pia,) = desk.digests(1)
    desk.execute("UPDATE dynamics_sync_failures SET failure_code = 'contact_not_found'")
    (about_kari,) = desk.digests(2)

    may_be_visible = "Urgent: 1 peer mentor may still be visible on the portal"
    assert first.subject.startswith(may_be_visible)
    assert about_pia.subject.startswith("1 certificate expires within 30")
    assert "may still be visible on the portal" in about_pia.text
    assert about_kari.subject.startswith(may_be_visible)


def test_undelivered_reminder_is_news_once_per_address(desk: Mailing) -> None:
    """The reminder of the next threshold, on the third day, is news again."""
    desk.execute("UPDATE organisations SET portal = NULL, reminder_thresholds = '{14,12}'")
    desk.certified("Kari", until=14, email=None)

    (first,), again, (next_threshold,) = (desk.digests(number) for number in (0, 1, 2))
    desk.execute("UPDATE mentors SET email = 'wrong@example.org'")
    (wrong,) = desk.digests(3, on_send=reject_reminders)

    action = "E-postadressen mangler. Legg den inn i appen, så sender vi påminnelsen.\n* Kari (M1001), gjelder"
    assert [action in breakable(page.text) for page in (first, next_threshold, wrong)] == [True, True, False]
    assert again == []


def test_certificate_that_ends_within_30_days_is_news_once(desk: Mailing) -> None:
    """Not one that continues, one of a mentor who has left, or a revoked one of an optional kind."""
    desk.execute("UPDATE organisations SET optional_kinds = '{first-aid}'")
    desk.facts.certificate(desk.certified("Ola", until=31), day(365), issued_on=day(32))
    desk.certified("Pia", until=31, left_at=datetime.now(UTC))
    tor = desk.certified("Tor", until=365)
    desk.facts.certificate(tor, day(31), kind="first-aid", revoked_at=datetime.now(UTC))
    desk.certified("Kari", until=33)

    before, (page,), after = (desk.digests(number) for number in (2, 3, 4))

    assert (before, named([page]), after) == ([], ["Kari"], [])
    assert "* 12. april 2026 (30 dager igjen): Kari (M1004)\n" in breakable(page.text)


def test_digest_is_about_one_organisation_in_the_coordinators_language(desk: Mailing) -> None:
    """A coordinator of two organisations gets two digests."""
    desk.ended("Kari")
    lhl = desk.facts.organisation("lhl", portal=None, thresholds=())
    desk.facts.certified_mentor(lhl, day(-1), full_name="Ola")
    desk.coordinator(of=lhl, locale="nn")
    desk.coordinator("en@example.org", of=lhl, locale="en")

    nb, nn, en = pages = sorted(desk.digests(), key=lambda page: "nb nn en".index(page.locale))

    assert [page.to for page in pages] == ["berit@example.org", "berit@example.org", "en@example.org"]
    assert [named([page]) for page in pages] == [["Kari"], ["Ola"], ["Ola"]]
    assert len({page.idempotency_key for page in pages}) == 3
    assert "gikk ut 9. mars 2026" in breakable(nb.text)
    assert "gjekk ut 9. mars 2026" in breakable(nn.text)
    assert "expired on 9 March 2026" in breakable(en.text)


def test_digest_has_everything_since_the_last_one(desk: Mailing) -> None:
    """There is one a day, and one after nights without a mail server."""
    desk.ended("Kari")
    morning = desk.digests()
    desk.ended("Ola")
    noon, tomorrow = desk.digests(), desk.digests(1)
    desk.ended("Pia")
    desk.digests(2, on_send=lambda _message: DOWN)
    assert desk.report.to_document()["digests"] == {"sent": 0, "failed": 0, "pending": 1}
    assert desk.rows("SELECT attempts FROM coordinator_digests WHERE status = 'pending'") == [(0,)]
    desk.make_due()
    desk.ended("Tor")

    assert (named(morning), noon, named(tomorrow)) == (["Kari"], [], ["Ola"])
    assert named(desk.digests(3)) == ["Pia", "Tor"]
    assert rows(desk) == [(0, "sent"), (1, "sent"), (3, "sent")]
    assert desk.rows("SELECT count(sent_at) FROM coordinator_digests") == [(3,)]


@pytest.mark.parametrize(
    ("error", "code", "sent"),
    [pytest.param(REFUSED, "all_refused", 1, id="rejected"), pytest.param(DOWN, "channel_down", 0, id="down")],
)
def test_rejected_reminders_do_not_stop_the_digests(desk: Mailing, error: Exception, code: str, sent: int) -> None:
    """A server that is down stops both."""
    desk.execute("UPDATE organisations SET reminder_thresholds = '{30}'")
    for _ in range(20):
        desk.certified(until=5)
    desk.ended("Kari")

    def reject(message: OutgoingMessage) -> Exception | None:
        return error if message.kind == "reminder" else None

    assert len(desk.digests(on_send=reject, allow={"hlf": 20})) == sent

    assert [stop.code for stop in desk.report.stopped] == [code]
    assert desk.report.to_document()["digests"] == {"sent": sent, "failed": 0, "pending": 1 - sent}


def test_pause_committed_after_the_digest_is_in_the_next_one(
    desk: Mailing, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """Its time is that of the beginning of its transaction, which is before the digest."""
    late = desk.facts.mentor(desk.home, full_name="Ola")
    desk.facts.certificate(late, day(400), issued_on=day(-2))
    pause = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'certification_expired', 'certjob')"
    app.execute(pause, (late,))
    desk.ended("Kari")

    first = desk.digests(on_send=lambda _message: app.commit())
    desk.execute("UPDATE certificates SET expires_on = %s WHERE mentor_id = %s", day(-1), late)

    assert (named(first), named(desk.digests(1))) == (["Kari"], ["Ola"])


def test_digest_repeats_the_two_days_before_the_last_one(desk: Mailing) -> None:
    """A pause is committed later than it is dated. An older one was in the last digest."""
    desk.ended("Kari")
    desk.digests()
    for name, days in (("Ola", -2), ("Pia", -3)):
        (mentor,) = desk.ended(name)
        when = datetime(TODAY.year, TODAY.month, TODAY.day + days, 12, tzinfo=UTC)
        about = {"reason": "certification_expired", "actor": "certjob", "paused_at": when}
        desk.facts.insert("mentor_pauses", mentor_id=mentor, **about)

    assert named(desk.digests(1)) == ["Ola"]


def test_cancelled_digest_that_is_queued_again_has_a_new_key(desk: Mailing) -> None:
    """Otherwise its Message-ID would be that of the first attempt."""
    desk.ended("Kari")
    keys: list[str] = []
    desk.digests(on_send=lambda message: keys.append(message.idempotency_key) or CUT)  # type: ignore[func-returns-value]
    desk.execute("DELETE FROM mentors")
    desk.make_due()
    assert (deliver(desk), rows(desk)) == ([], [(0, "cancelled")])
    desk.ended("Ola")

    (second,) = desk.digests()

    assert second.idempotency_key not in keys


def test_digest_sent_with_a_wrong_clock_hides_nothing(desk: Mailing) -> None:
    """Neither a digest nor a pause of 2130 delays news until 2130."""
    desk.ended("Kari")
    desk.certified("Ola", until=0)
    desk.digests()
    desk.execute("UPDATE coordinator_digests SET digest_on = '2130-01-01', sent_at = '2130-01-01'")
    desk.execute("SET session_replication_role = replica; UPDATE mentor_pauses SET paused_at = '2130-01-01'; RESET ALL")

    assert (named(desk.digests(1)), desk.digests(2)) == (["Ola"], [])


def claim(desk: Mailing) -> QueuedDigest:
    claimed = steps.claim(digest_mail(desk.connection))
    assert claimed is not None
    return claimed


def test_claimed_digest_belongs_to_its_claim(desk: Mailing) -> None:
    """No other run queues, sends or writes it until the lease has expired."""
    desk.ended("Kari")
    queue(desk)
    first = claim(desk)
    queue(desk, 1)
    assert (deliver(desk, 1), rows(desk)) == ([], [(0, "pending")])

    desk.expire_leases()
    claim(desk)

    assert steps.prepare(digest_mail(desk.connection), first) is None


def test_deliver_queues_no_digest_unless_a_full_run_is_missing(desk: Mailing) -> None:
    desk.digests()
    desk.ended("Kari")
    desk.review(1)

    assert deliver(desk, 1) == []


def test_second_digest_of_a_day_is_not_sent(desk: Mailing) -> None:
    """Another run has sent the first one after this one was queued."""
    desk.ended("Kari")
    assert len(desk.digests()) == 1
    desk.ended("Ola")
    desk.review()
    desk.execute("INSERT INTO coordinator_digests (coordinator_id, digest_on) SELECT id, %s FROM coordinators", TODAY)

    assert deliver(desk) == []
    assert named(desk.digests(1)) == ["Ola"]


def test_coordinator_who_was_deleted_after_the_claim_gets_no_digest(desk: Mailing) -> None:
    """The digest was deleted, too."""
    desk.ended("Kari")
    queue(desk)
    claimed = claim(desk)
    desk.execute("DELETE FROM coordinators")

    assert steps.prepare(digest_mail(desk.connection), claimed) is None


def test_rejected_digest_is_an_alert_until_the_next_day(desk: Mailing) -> None:
    """The next day's digest reports the same."""
    desk.ended("Kari")
    desk.digests(on_send=lambda _message: REJECTED)
    assert "1 digest was not delivered; see `certjob alerts`" in desk.report.reasons
    assert len(read_alerts(desk.connection, today=TODAY)) == 1

    assert named(desk.digests(1)) == ["Kari"]

    assert read_alerts(desk.connection, today=TODAY) == []


def test_corrected_address_gets_the_rejected_digest_at_once(desk: Mailing) -> None:
    """Another change of the coordinator does not send it."""
    desk.ended("Kari")
    desk.digests(on_send=lambda _message: REJECTED)
    desk.execute("UPDATE coordinators SET full_name = 'Berit Bakke'")
    assert deliver(desk) == []

    desk.execute("UPDATE coordinators SET email = 'new@example.org'")

    assert [(page.to, page.repeat) for page in deliver(desk)] == [("new@example.org", False)]


class ProcessDiedError(Exception):
    """Raised instead of a kill -9."""


@pytest.mark.parametrize(
    ("statement", "repeats"),
    [("claim_digests", [False]), ("note_reported", [True]), ("settle_digests", [False, True])],
)
def test_death_of_a_process_loses_no_news_and_marks_repeats(
    desk: Mailing, database_url: str, monkeypatch: pytest.MonkeyPatch, statement: str, repeats: list[bool]
) -> None:
    """It dies before it writes. The digest comes on the next day, as a repeat if it may have been sent."""
    desk.ended("Kari")
    queue(desk)
    query = database.query

    def die(name: str) -> bytes:
        if name == statement:
            doomed.close()
            raise ProcessDiedError
        return query(name)

    with database.connect(database_url) as doomed, monkeypatch.context() as patch:
        patch.setattr(statements, "query", die)
        with pytest.raises(ProcessDiedError):
            desk.stage(mails=digest_mail(doomed))
    desk.expire_leases()
    desk.mails(1)

    assert [(page.repeat, named([page])) for page in desk.channel.sent] == [(repeat, ["Kari"]) for repeat in repeats]
    assert len({page.idempotency_key for page in desk.channel.sent}) == len(repeats), "mail programs drop a known one"
    assert rows(desk) == [(1, "sent")]


def test_digest_names_contacts_of_no_mentor_to_users_of_the_portal(desk: Mailing) -> None:
    """When it appears, and weekly, also if other news comes in between. Organisations without a portal do not care."""
    nhf = desk.facts.organisation("nhf", portal=None, thresholds=())
    desk.coordinator("ola@example.org", of=nhf)
    contact = uuid4()
    desk.facts.insert("portal_unknown_contacts", contact_id=contact, first_seen_at=TODAY)
    named_on = []

    for number in (0, 1, 6, 7, 8):
        for organisation in (desk.home, nhf):
            desk.facts.certified_mentor(organisation, day(30 + number))
        for digest in desk.digests(number):
            if str(contact) in digest.text and str(contact) in digest.html:
                assert "Kontakter uten likeperson (1)" in digest.text
                named_on.append((digest.to, number))

    assert named_on == [("berit@example.org", 0), ("berit@example.org", 7)]
    assert len(desk.channel.sent) == 10


@pytest.mark.parametrize(
    ("corrected", "said", "is_named"),
    [
        ("shown", "var skjult, men skal være synlig", True),
        ("first_day", "Portalen skjuler nå 1 likeperson selv når sertifikatet går ut", False),
    ],
)
def test_next_digest_has_the_corrections_on_the_portal(
    desk: Mailing, corrected: str, said: str, *, is_named: bool
) -> None:
    """Once, in the digest after the reading. First last days are one line, because no one has to do anything."""
    counts = json.dumps({"corrected": {corrected: [str(desk.certified(until=400))]}})
    assert desk.digests(0) == []
    desk.facts.insert("job_runs", id=uuid4(), command="reconcile", as_of=day(0), host="h", version="1", counts=counts)

    (digest,), later = desk.digests(1), desk.digests(2)

    assert (said in digest.text, "Rettet" in digest.text, "Kari" in digest.text) == (True, is_named, is_named)
    assert later == []


def test_mentor_whose_certificate_begins_later_has_its_first_day(desk: Mailing) -> None:
    desk.ended("Pia")
    desk.facts.certificate(desk.facts.mentor(desk.home, full_name="Ola"), day(400), issued_on=day(40))
    desk.facts.mentor(desk.home, full_name="Tor")

    (digest,) = desk.digests()

    assert "* Ola (M1002), begynner 19. april\n* Tor (M1003)\n" in breakable(digest.text)
