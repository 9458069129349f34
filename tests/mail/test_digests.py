"""Coordinators' digests: what has happened and what needs attention, at most once a day."""

import itertools
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, statements
from certjob.errors import PermanentPortalError, StoppedBySignalError
from certjob.jobs import runs
from certjob.mail import digests
from certjob.mail.digest_contents import read_digest
from certjob.mail.digests import queue_digests
from certjob.mail.message import OutgoingMessage
from certjob.outbox.claims import Answer, Settlement
from certjob.reports.alerts import read_alerts
from certjob.stopping import StopFlag
from tests.mail.conftest import CUT, DOWN, REFUSED, Messages, Nights, day
from tests.support.channels import digest_mail, run_stage
from tests.support.facts import TODAY
from tests.support.mails import breakable
from tests.support.nights import FlakyPortal, delivery, new_job, night

NAMES = ("Kari", "Ola", "Pia", "Tor")


def told(*nights: Messages) -> list[str]:
    """Return the mentors in the digests of each night, or "-" without a digest."""
    return [" ".join(name for page in pages for name in NAMES if name in page.text) or "-" for pages in nights]


def digests_of(desk: Nights, *numbers: int, **options: Any) -> dict[int, OutgoingMessage]:
    """Run a night on each of these days, and return the digests by day."""
    return {number: page for number in numbers for page in desk.digests(number, **options)}


def queue(desk: Nights, number: int = 0) -> None:
    """Run a night without deliveries."""
    night(desk.connection, day(number), portal=FlakyPortal(), deliver=False)


def deliver(desk: Nights, number: int = 0) -> Messages:
    """Run `certjob deliver`, and return its digests."""
    before = len(desk.channel.sent)
    desk.channel.on_send = None
    ways_out = delivery(portal=FlakyPortal(), channel=desk.channel)
    runs.deliver(new_job(desk.connection, day(number), ways_out=ways_out))
    return [message for message in desk.channel.sent[before:] if message.kind == "digest"]


def rows(desk: Nights) -> list[tuple[object, ...]]:
    """Return day, counted from TODAY, and status of each digest."""
    return desk.rows("SELECT digest_on - %s::date, status FROM coordinator_digests ORDER BY id", TODAY)


@pytest.fixture
def nhf(desk: Nights) -> UUID:
    """Another organisation, without a portal, with six due reminders, one mentor to pause and a coordinator."""
    organisation = desk.facts.organisation("nhf", portal=None, thresholds=(30,))
    for number in (5, 5, 5, 5, 5, 5, -1):
        desk.facts.certified_mentor(organisation, day(number))
    desk.coordinator("nhf@example.org", of=organisation)
    return organisation


def test_digest_names_paused_and_returned_mentors_with_the_reason(desk: Nights) -> None:
    """It says if another pause is open, if no certificate is left, and if someone had ended the pause."""
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
    assert (back.subject, "Nye på pause" in back.text) == ("3 er ikke lenger på pause (HLF)", False)
    assert "* Kari (M1001)\n" in back.text
    assert "* Pia (M1002), fortsatt på pause av en annen grunn" in back.text
    assert back.text.count("* Tor (M1003)\n") == 2, "back, and without a certificate"
    assert "Noen hadde avsluttet pausen" in reopened.text


def test_open_push_is_news_once_a_week(desk: Nights) -> None:
    """It is also in each digest with other news, until it is done."""
    desk.ended("Kari")
    desk.certified("Ola", until=8)
    desk.execute("UPDATE coordinators SET locale = 'en'")
    refusing = FlakyPortal(failures=99, error=lambda: PermanentPortalError("404 contact_not_found"))

    pages = digests_of(desk, 0, 1, 6, 7, 8, 9, 10, portal=refusing)

    assert list(pages) == [0, 7, 9]
    for page in pages.values():
        assert all("Dynamics did not accept" in part for part in (page.text, page.html))
    assert pages[0].subject.startswith("Urgent: 1 may still be visible on the portal")
    assert pages[9].subject.startswith("Urgent: 2 may still be visible on the portal")
    assert (pages[9].text.count("Kari"), pages[9].text.count("Ola")) == (1, 2)
    desk.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
    assert desk.digests(20) == []


def test_undelivered_reminder_is_news_once_per_address(desk: Nights) -> None:
    """The reminder of the next threshold, on the third day, is news again."""
    desk.execute("UPDATE organisations SET portal = NULL, reminder_thresholds = '{14,12}'")
    desk.certified("Kari", until=14, email=None)
    pages: dict[int, OutgoingMessage] = {}
    for number in (0, 1, 2, 6, 7, 8, 9):
        if number in (8, 9):
            desk.execute("UPDATE mentors SET email = %s", f"wrong{number}@example.org")
        pages |= digests_of(desk, number, fails=REFUSED, kind="reminder")

    assert list(pages) == [0, 2, 8, 9]
    text = breakable(pages[0].text)
    assert "E-postadressen mangler. Legg den inn i appen, så sender vi påminnelsen.\n* Kari (M1001), gjelder" in text
    log = desk.rows("SELECT threshold_days, status FROM cert_notification_log ORDER BY 1")
    assert log == [(12, "failed"), (14, "superseded")]


def test_certificate_that_ends_within_30_days_is_news_once(desk: Nights) -> None:
    """Not one that continues, one of a mentor who has left, or a revoked one of an optional kind."""
    desk.execute("UPDATE organisations SET optional_kinds = '{first-aid}'")
    desk.facts.certificate(desk.certified("Ola", until=31), day(365), issued_on=day(32))
    desk.certified("Pia", until=31, left_at=datetime.now(UTC))
    tor = desk.certified("Tor", until=365)
    desk.facts.certificate(tor, day(31), kind="first-aid", revoked_at=datetime.now(UTC))
    desk.certified("Kari", until=33)

    pages = digests_of(desk, 0, 1, 2, 3, 4)

    assert (list(pages), told([pages[3]])) == ([3], ["Kari"])
    assert "* 12. april 2026 (30 dager igjen): Kari (M1004)\n" in breakable(pages[3].text)


def test_digest_is_about_one_organisation_in_the_coordinators_language(desk: Nights) -> None:
    """A coordinator of two organisations gets two digests, and one without news gets none."""
    desk.ended("Kari")
    lhl = desk.facts.organisation("lhl", portal=None, thresholds=())
    desk.facts.certified_mentor(lhl, day(-1), full_name="Ola")
    desk.coordinator(of=lhl, locale="nn")
    desk.coordinator("en@example.org", of=lhl, locale="en")
    desk.coordinator("quiet@example.org", of=desk.facts.organisation("quiet", portal=None))

    nb, nn, en = pages = sorted(desk.digests(), key=lambda page: "nb nn en".index(page.locale))

    assert [page.to for page in pages] == ["berit@example.org", "berit@example.org", "en@example.org"]
    assert (told([nb], [nn], [en]), len({page.idempotency_key for page in pages})) == (["Kari", "Ola", "Ola"], 3)
    assert nn.subject.endswith(" (LHL)")
    assert "gjekk ut 9. mars 2026" in breakable(nn.text)
    assert "expired on 9 March 2026" in breakable(en.text)


def test_digest_has_everything_since_the_last_one(desk: Nights) -> None:
    """There is one a day, and one after three nights without a mail server."""
    assert (desk.digests(-1), rows(desk)) == ([], [])
    desk.ended("Kari")
    morning = desk.digests()
    desk.ended("Ola")
    noon, tomorrow = desk.digests(), desk.digests(1)
    for number, name in ((2, "Kari"), (3, "Pia"), (4, "Tor")):
        desk.ended(name)
        desk.digests(number, fails=DOWN)
        assert desk.report.to_document()["digests"] == {"sent": 0, "failed": 0, "pending": 1}
        desk.make_due()

    assert told(morning, noon, tomorrow, desk.digests(5)) == ["Kari", "-", "Ola", "Kari Pia Tor"]
    assert rows(desk) == [(0, "sent"), (1, "sent"), (5, "sent")]
    assert desk.rows("SELECT count(sent_at) FROM coordinator_digests") == [(3,)]


def test_run_of_one_organisation_queues_only_its_digests(desk: Nights, nhf: UUID) -> None:
    """Without a channel they wait for the next `certjob deliver`."""
    desk.ended("Kari")
    desk.review()

    assert (desk.digests(organisation="nhf", channel=None), bool(nhf)) == ([], True)

    assert "mail: CERTJOB_NOTIFY_URL is not set; the mails stay pending" in desk.report.reasons
    assert [page.to for page in deliver(desk)] == ["nhf@example.org"]
    assert rows(desk) == [(0, "sent")]


@pytest.mark.usefixtures("nhf")
@pytest.mark.parametrize(
    ("error", "code", "sent"), [(REFUSED, "all_refused", 1), (DOWN, "channel_down", 0), (CUT, "outcomes_unknown", 0)]
)
def test_five_refused_reminders_do_not_stop_the_digests(desk: Nights, error: Exception, code: str, sent: int) -> None:
    """A server that is down stops both."""
    assert len(desk.digests(fails=error, kind="reminder")) == sent

    assert [stop.code for stop in desk.report.stopped] == [code]
    assert desk.report.to_document()["digests"] == {"sent": sent, "failed": 0, "pending": 1 - sent}


@pytest.mark.parametrize("where", ["portal", "mail"])
def test_run_that_a_signal_ends_has_queued_the_digests(desk: Nights, where: str) -> None:
    """Every run may end in this way if it takes too long. The next `certjob deliver` sends them."""
    desk.ended("Kari")
    desk.execute("UPDATE organisations SET reminder_thresholds = '{30}'")
    desk.certified("Ola", until=5)
    stop = StopFlag()
    portal = FlakyPortal(lambda _number: stop.set() if where == "portal" else None)

    with pytest.raises(StoppedBySignalError):
        desk.digests(portal=portal, on_send=lambda _message: stop.set(), stop=stop)

    assert rows(desk) == [(0, "pending")]
    assert len(deliver(desk)) == 1


def test_pause_committed_after_the_digest_is_in_the_next_one(
    desk: Nights, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """Its time is that of the beginning of its transaction, which is before the digest."""
    late = desk.facts.mentor(desk.home, full_name="Ola")
    desk.facts.certificate(late, day(400), issued_on=day(-2))
    pause = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'certification_expired', 'certjob')"
    app.execute(pause, (late,))
    desk.ended("Kari")

    first = desk.digests(on_send=lambda _message: app.commit())
    desk.execute("UPDATE certificates SET expires_on = %s WHERE mentor_id = %s", day(-1), late)

    assert told(first, desk.digests(1)) == ["Kari", "Ola"]


def test_each_return_of_a_mentor_is_news_once(desk: Nights) -> None:
    """Two pauses end on two days."""
    desk.ended("Kari")
    changes = {1: "expires_on = '2027-01-01'", 2: "revoked_at = now()", 3: "revoked_at = NULL"}
    subjects = []
    for number in range(5):
        if number in changes:
            desk.execute(f"UPDATE certificates SET {changes[number]}")
        subjects += [page.subject for page in desk.digests(number)]

    assert subjects == ["1 ny på pause (HLF)", "1 er ikke lenger på pause (HLF)"] * 2


def test_row_and_coordinator_are_locked_while_the_digest_is_read(
    desk: Nights, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that queues again waits, finds the row cancelled and reopens it."""

    def look(*args: Any, **options: Any) -> Any:
        for table in ("coordinators", "coordinator_digests"):
            assert other.execute(f"SELECT FROM {table} FOR NO KEY UPDATE SKIP LOCKED".encode()).fetchall() == []
        return read_digest(*args, **options)

    desk.ended("Kari")
    queue(desk)
    desk.execute("DELETE FROM mentor_pauses")
    desk.execute("UPDATE mentors SET review_on = 'infinity'")
    monkeypatch.setattr(digests, "read_digest", look)
    assert (deliver(desk), rows(desk)) == ([], [(0, "cancelled")])
    desk.execute("UPDATE coordinator_digests SET queued_at = '2020-01-01'")
    desk.execute("UPDATE mentors SET review_on = '-infinity'")
    desk.ended("Ola")

    assert told(desk.digests()) == ["Kari Ola"]
    assert desk.rows("SELECT queued_at > '2020-01-01' FROM coordinator_digests") == [(True,)], "it waits from now"


def test_each_attempt_has_its_own_message_id(desk: Nights) -> None:
    """Mail programs drop a second mail with the same ID, but a repeat may report more than the lost digest."""
    desk.ended("Kari")
    tried: Messages = []
    for number in range(3):
        desk.digests(on_send=tried.append, fails=CUT)
        desk.make_due()
        if number == 1:
            desk.ended("Ola")

    assert [page.repeat for page in tried] == [False, True, True]
    assert len({page.idempotency_key for page in tried}) == 3
    assert "Du har kanskje fått denne oversikten før." in tried[1].text


def test_digest_after_a_restore_has_its_own_key(desk: Nights) -> None:
    """The restored sequence gives the digest of another day or coordinator the same id."""
    keys = set()
    for number in range(2):
        desk.ended("Kari")
        keys |= {page.idempotency_key for page in desk.digests(number)}
        desk.execute("DELETE FROM coordinator_digests")
        desk.execute("ALTER TABLE coordinator_digests ALTER COLUMN id RESTART")

    assert {key.rpartition("-")[0] for key in keys} == {"digest-1-1"}
    assert len(keys) == 2


def test_digest_sent_with_a_wrong_clock_hides_nothing(desk: Nights) -> None:
    """Neither a digest nor a pause of 2130 delays news until 2130."""
    desk.ended("Kari")
    desk.certified("Ola", until=0)
    desk.digests()
    desk.execute("UPDATE coordinator_digests SET digest_on = '2130-01-01', sent_at = '2130-01-01'")
    desk.execute("UPDATE mentor_pauses SET paused_at = '2130-01-01'")

    assert told(desk.digests(1), desk.digests(2)) == ["Ola", "-"]


def test_job_of_the_day_before_leaves_a_digest_alone(desk: Nights) -> None:
    """It neither sends, cancels nor duplicates it. A digest of a wrong later day is replaced."""
    desk.ended("Kari")
    queue(desk, 1)

    assert queue_digests(desk.connection, today=TODAY) == 0
    assert digest_mail(desk.connection).claim()[0] is None
    assert rows(desk) == [(1, "pending")]

    queue_digests(desk.connection, today=day(20))
    assert rows(desk) == [(20, "pending")]
    assert (told(desk.digests(1)), rows(desk)) == (["Kari"], [(1, "sent")])


def test_last_sent_digest_counts_whatever_its_day(desk: Nights) -> None:
    """The digest of the new day had no news yet, and the one of the day before was sent after it."""
    desk.ended("Kari")
    queue(desk, 1)
    desk.execute("DELETE FROM mentor_pauses")
    desk.execute("UPDATE mentors SET review_on = 'infinity'")
    deliver(desk, 1)
    assert rows(desk) == [(1, "cancelled")]
    desk.execute("UPDATE mentors SET review_on = '-infinity'")
    desk.review()
    queue_digests(desk.connection, today=TODAY)
    assert desk.stage(queue=digest_mail(desk.connection)) is None
    desk.ended("Ola")

    assert told(desk.sent, desk.digests(1), desk.digests(2)) == ["Kari", "Ola", "-"]
    assert rows(desk)[:2] == [(0, "sent"), (1, "sent")]


@pytest.mark.parametrize("ends", ["deferred after midnight", "vanished", "vanished after midnight"])
def test_claimed_digest_is_left_alone_and_then_repeated(desk: Nights, ends: str) -> None:
    """It is repeated after its lease or its delay. The digest after it is not a repeat."""
    desk.ended("Kari")
    queue(desk)
    mails = digest_mail(desk.connection)
    tried, _ = mails.claim()
    assert tried is not None
    number = int("midnight" in ends)
    queue(desk, number)
    assert (deliver(desk, number), rows(desk)) == ([], [(0, "pending")])

    if "vanished" in ends:
        desk.run_out()
        mails.claim()
        assert mails.draft(tried) is None, "the row belongs to another claim"
        desk.run_out()
    else:
        assert mails.settle(tried, Settlement(status="pending", maybe_sent=True)) is Answer.SETTLED

    assert [page.repeat for page in desk.digests(number)] == [True]
    desk.ended("Ola")
    assert [page.repeat for page in desk.digests(number + 1)] == [False]
    assert rows(desk) == [(number, "sent"), (number + 1, "sent")]


def test_refused_digest_is_an_alert_until_the_next_day(desk: Nights) -> None:
    """The next day's digest reports the same."""
    desk.ended("Kari")
    desk.digests(fails=REFUSED)
    assert "1 digest was not delivered; see `certjob alerts`" in desk.report.reasons
    assert desk.rows("SELECT status, last_error FROM coordinator_digests") == [("failed", "550 no such user")]
    assert len(read_alerts(desk.connection, today=TODAY)) == 1

    assert told(desk.digests(1)) == ["Kari"]

    assert read_alerts(desk.connection, today=TODAY) == []


def test_corrected_address_gets_the_refused_digest_at_once(desk: Nights) -> None:
    """Another change of the coordinator does not send it."""
    desk.ended("Kari")
    desk.digests(fails=REFUSED)
    desk.execute("UPDATE coordinators SET full_name = 'Berit Bakke'")
    assert rows(desk) == [(0, "failed")]

    desk.execute("UPDATE coordinators SET email = 'new@example.org'")

    assert [(page.to, page.repeat) for page in deliver(desk)] == [("new@example.org", False)]


def test_five_refused_digests_stay_pending(desk: Nights) -> None:
    """The server is at fault."""
    desk.ended("Kari")
    for number in range(4):
        desk.coordinator(f"c{number}@example.org")
    desk.digests(fails=REFUSED)
    assert [stop.code for stop in desk.report.stopped] == ["all_refused"]
    assert rows(desk) == [(0, "pending")] * 5


def test_digest_uses_the_current_name_address_and_language(desk: Nights, other: Connection) -> None:
    """Also after `organisation set --coordinator` has changed the id."""
    desk.ended("Kari")
    queue(desk)
    desk.execute("UPDATE organisations SET name = 'Hørselshjelpen', slug = 'hh'")
    desk.execute("UPDATE coordinators SET email = 'new@example.org', locale = 'en'")
    mails = digest_mail(desk.connection)
    with other.transaction():
        other.execute("SELECT FROM coordinator_digests FOR UPDATE")
        assert mails.claim()[0] is None  # SKIP LOCKED, as for the other deliveries
    claimed, _ = mails.claim()
    assert claimed is not None
    desk.execute("UPDATE coordinators SET id = gen_random_uuid()")

    page = mails.draft(claimed)

    assert isinstance(page, OutgoingMessage)
    assert (page.to, page.subject) == ("new@example.org", "1 newly paused (Hørselshjelpen)")
    assert mails.refuse(claimed, REFUSED, address="new@example.org") is Answer.SETTLED


def test_missing_run_is_news_once_a_week(desk: Nights) -> None:
    """Only `certjob deliver` runs, so it queues the digest."""
    desk.night(channel=None)
    desk.certified("Kari", until=1)
    desk.execute("UPDATE certificates SET status = 'valid'")
    desk.execute("UPDATE job_runs SET finished_at = now() - interval '27 hours', as_of = %s", TODAY)
    desk.execute("UPDATE coordinators SET locale = 'en'")

    pages = {number: page for number in (2, 2, 3, 9) for page in deliver(desk, number)}

    assert list(pages) == [2, 9]
    assert breakable(pages[2].subject) == "Urgent: no check since 10 March (HLF)"
    ended = "1 certificate has expired since then, and the peer mentor may still be visible on the portal."
    assert f"10 March. {ended} Please tell the people who run the system.\n" in breakable(pages[2].text)


class ProcessDiedError(Exception):
    """Raised in place of a kill -9."""


def test_death_of_a_process_loses_no_news_and_marks_repeats(
    desk: Nights, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies before each statement in turn. Every pause is reported, a second time only as a repeat."""
    query = database.query

    def tell(number: int, on: Connection) -> None:
        queue_digests(on, today=day(number))
        run_stage(digest_mail(on, today=day(number)), desk.channel)

    for number in itertools.count(1):
        asked: list[str] = []

        def die(name: str, *, asked: list[str] = asked, number: int = number) -> bytes:
            asked.append(name)
            if len(asked) == number:
                doomed.close()
                raise ProcessDiedError(name)
            return query(name)

        name = f"Mentor {number} of them"
        desk.ended(name)
        desk.review()
        with database.connect(database_url) as doomed, monkeypatch.context() as patch, suppress(ProcessDiedError):
            patch.setattr(statements, "query", die)
            tell(2 * number, doomed)
        desk.run_out()
        tell(2 * number + 1, desk.connection)

        repeats = [page.repeat for page in desk.channel.sent if name in page.text]
        assert repeats in ([False], [True], [False, True]), number
        assert "pending" not in [status for _, status in rows(desk)], number
        if len(asked) < number:
            break
    assert number > 8
