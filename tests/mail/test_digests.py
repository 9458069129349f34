"""The coordinators' daily page: what happened and what needs a person, once a day, and only if there is something."""

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, statements
from certjob.errors import (
    ChannelDownError,
    ConfigurationError,
    Outcome,
    OutcomeUnknownError,
    PermanentPortalError,
    RecipientDeferredError,
    RecipientRefusedError,
    StoppedBySignalError,
)
from certjob.mail.digest_contents import read_digest
from certjob.mail.digests import CoordinatorDigestService, DigestMail, QueuedDigest
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages import OUR_TEMPLATES, Templates
from certjob.mail.queue import Unsent, Writer
from certjob.night import nightly
from certjob.night.report import RunReport
from certjob.outbox.claims import Answer
from certjob.stopping import StopFlag
from certjob.views import alerts
from tests.support.channels import BlockingStage, digest_mail
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, review, run_out
from tests.support.mails import breakable
from tests.support.nights import CollectingChannel, FlakyPortal, NoProgress, delivery, night
from tests.support.waiting import until

App = psycopg.Connection[tuple[object, ...]]

YESTERDAY = TODAY - timedelta(days=1)
NEXT_YEAR = TODAY + timedelta(days=365)
ROWS = "SELECT digest_on, status FROM coordinator_digests ORDER BY id"
SENTENCE = "Dynamics sync pending — mentor may still be visible on portal"


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def hlf(facts: Facts) -> UUID:
    """An organisation with a portal, without reminders to mentors."""
    return facts.organisation(thresholds=())


def coordinator(facts: Facts, organisation: UUID, *, email: str = "berit@example.org", locale: str = "nb") -> UUID:
    row = facts.connection.execute(
        "INSERT INTO coordinators (organisation_id, full_name, email, locale) VALUES (%s, 'Berit Berg', %s, %s)"
        " RETURNING id",
        (organisation, email, locale),
    ).fetchone()
    assert row is not None
    return UUID(str(row[0]))


def digests(channel: CollectingChannel) -> list[OutgoingMessage]:
    return [message for message in channel.sent if message.kind == "digest"]


def failing(error: Exception, *, kind: str = "digest") -> CollectingChannel:
    """A channel on which no digest can be handed over."""

    def on_send(message: OutgoingMessage) -> None:
        if message.kind == kind:
            raise error

    return CollectingChannel(on_send=on_send)


def news_of_everybody(connection: Connection, today: date) -> list[UUID]:
    """Those who would have something to hear if they were asked now, queued or not."""
    with connection.transaction(force_rollback=True):
        connection.execute(
            "INSERT INTO coordinator_digests (coordinator_id, digest_on) SELECT id, %s FROM coordinators"
            " ON CONFLICT (coordinator_id) WHERE status IN ('pending', 'failed', 'cancelled') DO NOTHING",
            (today,),
        )
        rows = connection.execute("SELECT id FROM coordinator_digests WHERE status <> 'sent'").fetchall()
        read = [read_digest(connection, row[0], today=today, zone=UTC) for row in rows]
        return [digest.coordinator.id for digest in read if digest is not None and digest.has_news]


def deliver(connection: Connection, channel: CollectingChannel, today: date = TODAY) -> RunReport:
    return nightly.deliver(
        connection,
        today=today,
        delivery=delivery(portal=FlakyPortal(), channel=channel),
        stop=StopFlag(),
        progress=NoProgress(),
    )


class ProcessDiedError(Exception):
    """Stands for kill -9."""


class Dying:
    """In place of ``database.query``: before so many statements, counted from the queueing on, the process is gone."""

    connection: Connection

    def __init__(self, query: Callable[[str], bytes], *, before: int) -> None:
        self._query = query
        self._left = before
        self._counting = False
        self.struck = False

    def __call__(self, name: str) -> bytes:
        self._counting = self._counting or name == "queue_digests"
        self._left -= self._counting
        if self._left <= 0:
            self.struck = True
            self.connection.close()
            raise ProcessDiedError(name)
        return self._query(name)


class TestContents:
    """What it tells."""

    def test_who_was_paused_and_why(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """With the kind and the day it ended, or that it was revoked."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari Nordmann", member_no="M1")
        revoked = facts.mentor(hlf, full_name="Ola Hansen", member_no="M2")
        facts.certificate(revoked, NEXT_YEAR, revoked_at=datetime.now(UTC))
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel)

        (digest,) = digests(channel)
        assert digest.to == "berit@example.org"
        assert digest.subject == "HLF: 2 nye på pause"
        assert "* Kari Nordmann (M1): sertifikatet «likeperson» gikk ut 9. mars 2026" in breakable(digest.text)
        assert "* Ola Hansen (M2): sertifikatet «likeperson» er trukket tilbake" in digest.text
        assert "Kari Nordmann" in digest.html

    def test_who_is_back_again(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """And whether another pause still holds them."""
        coordinator(facts, hlf)
        back, ill = (facts.certified_mentor(hlf, YESTERDAY, full_name=name) for name in ("Kari", "Ola"))
        facts.pause(ill)
        night(connection, portal=FlakyPortal(), channel=CollectingChannel())
        for mentor in (back, ill):
            facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY)
        channel = CollectingChannel()

        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), channel=channel)

        (digest,) = digests(channel)
        assert digest.subject == "HLF: 2 er tilbake"
        assert "* Ola (M1002), er fortsatt på pause av en annen grunn" in digest.text
        assert "Nye på pause" not in digest.text

    @pytest.mark.parametrize(
        ("locale", "says"),
        [
            ("nb", "Likepersonen har ikke lenger noe sertifikat registrert"),
            ("nn", "Likepersonen har ikkje lenger noko sertifikat registrert"),
            ("en", "This mentor no longer has a certificate on file"),
        ],
    )
    def test_who_is_back_because_the_certificate_was_deleted(
        self, connection: Connection, facts: Facts, hlf: UUID, locale: str, says: str
    ) -> None:
        """Shown again, certified by nothing and watched by nobody: the page must not say that all is well."""
        coordinator(facts, hlf, locale=locale)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")
        renewed = facts.certified_mentor(hlf, YESTERDAY, full_name="Ola")
        night(connection, portal=FlakyPortal(), channel=CollectingChannel())
        connection.execute("DELETE FROM certificates WHERE mentor_id <> %s", (renewed,))
        facts.certificate(renewed, NEXT_YEAR, issued_on=TODAY)
        channel = CollectingChannel()

        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), channel=channel)

        (digest,) = digests(channel)
        kari, _, ola = digest.text.partition("* Ola (M1002)")
        assert f"* Kari (M1001)\n  {says}" in kari
        assert says not in ola
        assert digest.html.count(says) == 1

    def test_a_pause_that_a_person_had_lifted(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """It is open again, and the page says what to do instead."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY)
        night(connection, portal=FlakyPortal(), channel=CollectingChannel())
        connection.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'Berit'")
        channel = CollectingChannel()

        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), channel=channel)

        (digest,) = digests(channel)
        assert "Noen har opphevet pausen" in digest.text

    def test_a_push_that_waits(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """With the sentence of the view, in English; the same again is no news before a week has passed."""
        coordinator(facts, hlf, locale="en")
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari Nordmann")
        refusing = FlakyPortal(failures=99, error=lambda: PermanentPortalError("404 contact_not_found"))

        told: dict[int, list[OutgoingMessage]] = {}
        for number in range(9):
            channel = CollectingChannel()
            night(connection, TODAY + timedelta(days=number), portal=refusing, channel=channel)
            told[number] = digests(channel)
        connection.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
        channel = CollectingChannel()
        night(connection, TODAY + timedelta(days=20), portal=FlakyPortal(), channel=channel)

        assert {number: len(messages) for number, messages in told.items() if messages} == {0: 1, 7: 1}
        for number in (0, 7):
            (digest,) = told[number]
            assert SENTENCE in digest.text
            assert SENTENCE in digest.html
            assert "404 contact_not_found" in digest.text
            assert digest.subject.startswith("HLF: 1 mentor may still be visible on the portal")
        assert digests(channel) == []

    def test_what_waits_comes_along_with_any_news(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """Nobody should take what is missing for what is done."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")
        facts.certified_mentor(hlf, TODAY, full_name="Ola")
        refusing = FlakyPortal(failures=99, error=lambda: PermanentPortalError("404 contact_not_found"))
        channel = CollectingChannel()
        night(connection, portal=refusing, channel=CollectingChannel())

        night(connection, TODAY + timedelta(days=1), portal=refusing, channel=channel)

        (digest,) = digests(channel)
        assert digest.subject == "HLF: 2 likepersoner kan fortsatt være synlige på portalen og 1 annen nyhet"
        assert digest.text.count("Kari") == 1
        assert digest.text.count("Ola") == 2

    def test_long_names_make_shorter_lists(self, connection: Connection, facts: Facts) -> None:
        """Gmail cuts a page at about 102 KB; a name may have a thousand characters, and each ``&`` takes five."""
        organisation = facts.organisation(portal=None, thresholds=())
        coordinator(facts, organisation)
        for _ in range(30):
            facts.certified_mentor(organisation, TODAY + timedelta(days=25), full_name="&" * 1000)
        channel = CollectingChannel()

        night(connection, channel=channel)

        (digest,) = digests(channel)
        assert len(digest.html.encode()) <= 100_000
        assert "* og 18 til\n" in digest.text

    def test_a_reminder_that_could_not_be_delivered(self, connection: Connection, facts: Facts) -> None:
        """Told once, and once more for each week."""
        organisation = facts.organisation(portal=None, thresholds=(60,))
        coordinator(facts, organisation)
        facts.certified_mentor(organisation, TODAY + timedelta(days=45), full_name="Kari", email=None)
        first, second = CollectingChannel(), CollectingChannel()

        night(connection, channel=first)
        night(connection, TODAY + timedelta(days=1), channel=second)

        connection.execute(
            "UPDATE cert_notification_log SET queued_at = %s", (TODAY,)
        )  # the server's own today is another
        week = CollectingChannel()
        night(connection, TODAY + timedelta(days=7), channel=week)

        (digest,) = digests(first)
        assert (
            "* Kari (M1001), gjelder sertifikatet som går ut 24. april 2026: Det mangler en e-postadresse."
            in breakable(digest.text)
        )
        assert digests(second) == []
        assert len(digests(week)) == 1

    def test_a_mentor_without_an_address_is_one_line_however_many_reminders_fail(
        self, connection: Connection, facts: Facts
    ) -> None:
        """The next threshold is no news about a mentor whose lack of an address was told."""
        organisation = facts.organisation(portal=None, thresholds=(14, 12))
        coordinator(facts, organisation)
        facts.certified_mentor(organisation, TODAY + timedelta(days=14), email=None)

        sent = []
        for number in range(4):
            channel = CollectingChannel()
            night(connection, TODAY + timedelta(days=number), channel=channel)
            sent.append(len(digests(channel)))

        assert facts.rows("SELECT threshold_days, status FROM cert_notification_log ORDER BY 1") == [
            (12, "failed"),
            (14, "superseded"),
        ]
        assert sent == [1, 0, 0, 0]

    def test_a_corrected_address_that_is_refused_too_is_news(self, connection: Connection, facts: Facts) -> None:
        """Whoever corrected it wants to know."""
        organisation = facts.organisation(portal=None)
        coordinator(facts, organisation)
        facts.certified_mentor(organisation, TODAY + timedelta(days=40))
        first, second = (failing(RecipientRefusedError("550 no such user"), kind="reminder") for _ in range(2))
        night(connection, channel=first)
        connection.execute("UPDATE mentors SET email = 'also-wrong@example.org'")

        night(connection, TODAY + timedelta(days=1), channel=second)

        assert [len(digests(channel)) for channel in (first, second)] == [1, 1]

    def test_what_ends_soon_comes_along_and_counts_when_it_is_new(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """A certificate that comes within 30 days is told; the same one again is no reason for another page."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, TODAY + timedelta(days=31), full_name="Kari")
        continued = facts.certified_mentor(hlf, TODAY + timedelta(days=20))
        facts.certificate(continued, NEXT_YEAR, issued_on=TODAY)
        today, tomorrow, day_after = CollectingChannel(), CollectingChannel(), CollectingChannel()

        night(connection, TODAY, portal=FlakyPortal(), channel=today)
        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), channel=tomorrow)
        night(connection, TODAY + timedelta(days=2), portal=FlakyPortal(), channel=day_after)

        assert digests(today) == []
        (digest,) = digests(tomorrow)
        assert "* 10. april 2026: Kari (M1001), «likeperson», 30 dager igjen" in breakable(digest.text)
        assert "M1002" not in digest.text
        assert digests(day_after) == []

    def test_only_the_own_organisation(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """What happens elsewhere is nobody else's business."""
        coordinator(facts, hlf, email="hlf@example.org")
        coordinator(facts, facts.organisation("nhf", portal=None), email="nhf@example.org")
        facts.certified_mentor(hlf, YESTERDAY)
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel)

        assert [digest.to for digest in digests(channel)] == ["hlf@example.org"]

    @pytest.mark.parametrize(
        ("locale", "says"),
        [("nb", "gikk ut 9. mars 2026"), ("nn", "gjekk ut 9. mars 2026"), ("en", "expired on 9 March 2026")],
    )
    def test_in_the_coordinators_language(
        self, connection: Connection, facts: Facts, hlf: UUID, locale: str, says: str
    ) -> None:
        """Each their own."""
        coordinator(facts, hlf, locale=locale)
        facts.certified_mentor(hlf, YESTERDAY)
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel)

        (digest,) = digests(channel)
        assert says in breakable(digest.text)
        assert says in breakable(digest.html)
        assert f'<html lang="{locale}">' in digest.html

    def test_a_long_list_is_cut_and_counted(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """A first night pauses hundreds; the page stays one that people read."""
        coordinator(facts, hlf)
        for _ in range(60):
            facts.certified_mentor(hlf, YESTERDAY)
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel, allow_mass_change=True)

        (digest,) = digests(channel)
        assert digest.subject == "HLF: 60 nye på pause"
        assert "* og 35 til" in digest.text
        assert "<li>og 35 til</li>" in digest.html

    def test_hostile_names_do_no_harm(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """No markup, no line of its own, no turned text."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY, full_name="<b>Kari</b>\nBcc: a@b.example\u202e {{ 7 * 7 }}")
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel)

        (digest,) = digests(channel)
        assert "* <b>Kari</b> Bcc: a@b.example {{ 7 * 7 }} (M1001)" in digest.text
        assert "&lt;b&gt;Kari&lt;/b&gt;" in digest.html


class TestOnceADay:
    """One page per coordinator and day, and none without news."""

    def test_nothing_to_say_is_no_mail(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """Not even a row."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, NEXT_YEAR)
        channel = CollectingChannel()

        report = night(connection, portal=FlakyPortal(), channel=channel)

        assert channel.sent == []
        assert facts.rows(ROWS) == []
        assert report.to_document()["digests"] == {"sent": 0, "failed": 0, "pending": 0}

    def test_what_comes_later_on_the_same_day_is_told_tomorrow(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """The run of every hour mails nobody twice."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")
        morning, noon, tomorrow = CollectingChannel(), CollectingChannel(), CollectingChannel()
        night(connection, portal=FlakyPortal(), channel=morning)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Ola")

        night(connection, portal=FlakyPortal(), channel=noon)
        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), channel=tomorrow)

        assert [len(digests(channel)) for channel in (morning, noon, tomorrow)] == [1, 0, 1]
        assert "Ola" in digests(tomorrow)[0].text
        assert "Kari" not in digests(tomorrow)[0].text

    def test_three_nights_without_a_mail_server_are_one_page(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """About all of them: the one that waits."""
        coordinator(facts, hlf)
        for day, name in enumerate(["Kari", "Ola", "Per"]):
            facts.certified_mentor(hlf, TODAY + timedelta(days=day - 1), full_name=name)
            night(
                connection,
                TODAY + timedelta(days=day),
                portal=FlakyPortal(),
                channel=failing(ChannelDownError("no route")),
            )
            make_due(facts, "coordinator_digests")
        channel = CollectingChannel()

        night(connection, TODAY + timedelta(days=3), portal=FlakyPortal(), channel=channel)

        (digest,) = digests(channel)
        assert all(name in digest.text for name in ("Kari", "Ola", "Per"))
        assert facts.rows(ROWS) == [(TODAY + timedelta(days=3), "sent")]

    def test_runs_at_once_send_one_each(
        self, connection: Connection, facts: Facts, database_url: str, hlf: UUID
    ) -> None:
        """Four processes, three coordinators, three mails."""
        for number in range(3):
            coordinator(facts, hlf, email=f"c{number}@example.org")
        facts.certified_mentor(hlf, YESTERDAY)
        channels = [CollectingChannel() for _ in range(4)]
        barrier = threading.Barrier(4)

        def run(channel: CollectingChannel) -> None:
            with database.connect(database_url) as own:
                barrier.wait(20)
                night(own, portal=FlakyPortal(), channel=channel)

        threads = [threading.Thread(target=run, args=(channel,)) for channel in channels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        deliver(connection, channels[0])

        sent = [digest.to for channel in channels for digest in digests(channel)]
        assert sorted(sent) == ["c0@example.org", "c1@example.org", "c2@example.org"]

    def test_a_run_that_died_before_it_queued_loses_nothing(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """The next one asks the same question, though it changes nothing itself."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")
        review(connection)
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel)

        assert "Kari" in digests(channel)[0].text

    def test_what_another_run_is_just_committing_belongs_to_the_next_page(
        self, connection: Connection, facts: Facts, other: Connection, hlf: UUID
    ) -> None:
        """Its rows carry the time at which its transaction began, before this page was written."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")
        night(connection, portal=FlakyPortal(), deliver=False)
        late = facts.mentor(hlf, full_name="Ola")
        first, second = CollectingChannel(), CollectingChannel()

        with other.transaction():
            other.execute(
                "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'certification_expired', 'certjob')",
                (late,),
            )
            night(connection, TODAY, portal=FlakyPortal(), channel=first)
        facts.certificate(late, YESTERDAY)
        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), channel=second)

        told = [digest.text for channel in (first, second) for digest in digests(channel)]
        assert sum("Ola" in text for text in told) == 1
        assert sum("Kari" in text for text in told) == 1

    def test_without_a_channel_it_waits(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """It is queued, and the line says so."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY)

        report = night(connection, portal=FlakyPortal())

        assert "mail: CERTJOB_NOTIFY_URL is not set; 1 digest stays pending" in report.reasons
        channel = CollectingChannel()
        sent = deliver(connection, channel)
        assert len(digests(channel)) == 1
        assert sent.to_document()["digests"] == {"sent": 1, "failed": 0, "pending": 0}

    def test_a_night_that_delivers_nothing_still_queues(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """--no-deliver is for the state alone; the job between the nights sends what it queued."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY)
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel, deliver=False)
        assert facts.rows(ROWS) == [(TODAY, "pending")]
        deliver(connection, channel)

        assert len(digests(channel)) == 1

    def test_a_night_of_one_organisation_queues_that_ones_alone(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """--organisation: the others' coordinators hear of theirs in the full night."""
        organisations = [hlf, facts.organisation("nhf", portal=None)]
        for number, organisation in enumerate(organisations):
            coordinator(facts, organisation, email=f"c{number}@example.org")
            facts.certified_mentor(organisation, YESTERDAY)
        review(connection)
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel, organisation="nhf")

        assert [digest.to for digest in digests(channel)] == ["c1@example.org"]
        assert facts.rows("SELECT count(*) FROM coordinator_digests") == [(1,)]


class TestAfterTheReminders:
    """Digests tell what became of the reminders, so they are sent after them."""

    @pytest.fixture
    def nhf(self, facts: Facts) -> UUID:
        """Six mentors to remind, one to pause, one coordinator."""
        organisation = facts.organisation("nhf", portal=None, thresholds=(30,))
        for _ in range(6):
            facts.certified_mentor(organisation, TODAY + timedelta(days=5))
        facts.certified_mentor(organisation, YESTERDAY)
        coordinator(facts, organisation)
        return organisation

    def test_five_mentors_whose_mail_was_refused_do_not_silence_the_coordinators(
        self, connection: Connection, facts: Facts, nhf: UUID
    ) -> None:
        """The stage of the reminders stops, that of the digests does its work."""
        channel = failing(RecipientRefusedError("554 relay access denied"), kind="reminder")

        report = night(connection, channel=channel)

        assert [stop.code for stop in report.stopped] == ["refused"]
        assert len(digests(channel)) == 1
        assert report.to_document()["digests"] == {"sent": 1, "failed": 0, "pending": 0}

    @pytest.mark.parametrize(
        ("error", "code"),
        [(ChannelDownError("no route"), "down"), (OutcomeUnknownError("cut"), "unknown")],
    )
    def test_what_is_wrong_with_the_server_stops_both(
        self, connection: Connection, facts: Facts, nhf: UUID, error: Exception, code: str
    ) -> None:
        """Tried again by the next job; no coordinator gets the page twice for it."""
        channel = failing(error, kind="reminder")

        report = night(connection, channel=channel)

        assert [stop.code for stop in report.stopped] == [code]
        assert digests(channel) == []
        assert report.to_document()["digests"] == {"sent": 0, "failed": 0, "pending": 1}

    def test_at_the_deadline_they_wait(self, connection: Connection, facts: Facts, nhf: UUID) -> None:
        """For the job between the nights."""
        channel = CollectingChannel()

        report = night(connection, ways_out=delivery(channel=channel, deadline_seconds=0))

        assert [stop.code for stop in report.stopped] == ["deadline"]
        assert channel.sent == []
        assert report.to_document()["digests"] == {"sent": 0, "failed": 0, "pending": 1}

    @pytest.mark.parametrize("where", ["portal", "mail"])
    def test_a_night_that_a_signal_ends_has_queued_them(self, connection: Connection, facts: Facts, where: str) -> None:
        """A night that is too long may be ended so every time: the job after it tells the coordinators."""
        organisation = facts.organisation(thresholds=(30,))
        coordinator(facts, organisation)
        facts.certified_mentor(organisation, YESTERDAY)
        facts.certified_mentor(organisation, TODAY + timedelta(days=5))
        stop, channel = StopFlag(), CollectingChannel()

        class Stopping(FlakyPortal):
            async def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
                await super().update_portal_visibility(contact_id, visible=visible, idempotency_key=idempotency_key)
                if where == "portal":
                    stop.set()

        if where == "mail":
            channel.on_send = lambda _message: stop.set()

        with pytest.raises(StoppedBySignalError):
            night(connection, portal=Stopping(), channel=channel, stop=stop)

        assert facts.rows(ROWS) == [(TODAY, "pending")]
        channel.on_send = None
        deliver(connection, channel)
        assert len(digests(channel)) == 1


class TestTemplatesOfOnesOwn:
    """Opened with the first message, since trying them takes a while."""

    def test_without_a_message_they_are_not_opened(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """A night with nothing to send pays nothing for them."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, NEXT_YEAR)
        opened: list[str] = []

        def open_own() -> Templates:
            opened.append("opened")
            return OUR_TEMPLATES

        ways_out = replace(delivery(portal=FlakyPortal(), channel=CollectingChannel()), open_templates=open_own)
        report = night(connection, ways_out=ways_out)

        assert report.outcome is Outcome.OK
        assert opened == []

    def test_once_for_reminders_and_digests(self, connection: Connection, facts: Facts) -> None:
        """A night is written in one voice."""
        organisation = facts.organisation(portal=None)
        coordinator(facts, organisation)
        facts.certified_mentor(organisation, YESTERDAY)
        channel = CollectingChannel()
        opened: list[str] = []

        def open_own() -> Templates:
            opened.append("opened")
            return OUR_TEMPLATES

        night(connection, ways_out=replace(delivery(channel=channel), open_templates=open_own))

        assert [message.kind for message in channel.sent] == ["reminder", "digest"]
        assert opened == ["opened"]

    @pytest.mark.parametrize(
        "error", [ConfigurationError("layout.html line 1: no end"), PermissionError(13, "Permission denied")]
    )
    def test_those_that_cannot_be_opened_give_way_to_ours_and_one_line(
        self, connection: Connection, facts: Facts, error: Exception
    ) -> None:
        """Reminders and digests go out in time; the run needs a person."""
        organisation = facts.organisation(portal=None)
        coordinator(facts, organisation)
        facts.certified_mentor(organisation, YESTERDAY)
        channel = CollectingChannel()

        def open_own() -> Templates:
            raise error

        report = night(connection, ways_out=replace(delivery(channel=channel), open_templates=open_own))

        assert [message.kind for message in channel.sent] == ["reminder", "digest"]
        assert report.outcome is Outcome.ATTENTION
        assert [stop.code for stop in report.stopped] == ["templates"]
        assert str(error) in report.reasons[0]


class TestExactlyOnce:
    """A page covers what its snapshot showed; everything else is in the next one."""

    def test_what_is_committed_while_the_page_is_written_is_in_the_next_one(
        self, connection: Connection, facts: Facts, app: App, hlf: UUID
    ) -> None:
        """Though its rows carry an earlier time: that of the beginning of its transaction."""
        coordinator(facts, hlf)
        late = facts.mentor(hlf, full_name="Ola")
        pause = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'certification_expired', 'certjob')"
        app.execute(pause, (late,))
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")
        first, second = CollectingChannel(on_send=lambda _message: app.commit()), CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=first)
        facts.certificate(late, YESTERDAY)
        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), channel=second)

        assert [(("Kari" in d.text), ("Ola" in d.text)) for d in [*digests(first), *digests(second)]] == [
            (True, False),
            (False, True),
        ]

    def test_a_return_is_told_once_though_the_mentor_returns_twice(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Two pauses that ended, on two days: two pages."""
        coordinator(facts, hlf)
        mentor = facts.certified_mentor(hlf, YESTERDAY)
        days = []
        for number in range(5):
            if number in (1, 3):
                connection.execute("UPDATE certificates SET expires_on = %s", (NEXT_YEAR,))
            if number == 2:
                connection.execute("UPDATE certificates SET revoked_at = now()")
            if number == 3:
                connection.execute("UPDATE certificates SET revoked_at = NULL")
            channel = CollectingChannel()
            night(connection, TODAY + timedelta(days=number), portal=FlakyPortal(), channel=channel)
            days.append([digest.subject for digest in digests(channel)])

        assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE mentor_id = %s", mentor) == [(2,)]
        assert days == [
            ["HLF: 1 ny på pause"],
            ["HLF: 1 er tilbake"],
            ["HLF: 1 ny på pause"],
            ["HLF: 1 er tilbake"],
            [],
        ]

    def test_what_happens_while_nothing_to_tell_is_noted_is_told_today(
        self, connection: Connection, facts: Facts, other: Connection, hlf: UUID
    ) -> None:
        """The night that queues again waits for the row, and finds it cancelled: it comes back."""
        coordinator(facts, hlf)
        mentor = facts.certified_mentor(hlf, YESTERDAY)
        night(connection, portal=FlakyPortal(), deliver=False)
        connection.execute("DELETE FROM mentor_pauses")
        connection.execute("UPDATE mentors SET review_on = '-infinity' WHERE id = %s", (mentor,))
        threads: list[threading.Thread] = []

        class Interrupted(DigestMail):
            def _draft(self, item: QueuedDigest) -> Writer | str | None:
                draft = super()._draft(item)
                if isinstance(draft, str):
                    threads.append(threading.Thread(target=lambda: night(other, portal=FlakyPortal(), deliver=False)))
                    threads[0].start()
                    until(lambda: facts.rows("SELECT count(*) FROM pg_locks WHERE NOT granted") != [(0,)])
                return draft

        channel = CollectingChannel()
        queue = Interrupted(connection, today=TODAY, zone=UTC)
        stage = BlockingStage(connection, queue, channel)
        assert stage.run() is None
        threads[0].join(60)
        assert stage.run() is None

        assert (stage.counts.cancelled, stage.counts.sent) == (1, 1)

    def test_a_page_that_tells_more_than_a_lost_one_is_another_message(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Mail programs and webhooks drop what has the id of a message that they have."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")
        tried: list[OutgoingMessage] = []

        def lose(message: OutgoingMessage) -> None:
            tried.append(message)
            text = "no answer"
            raise OutcomeUnknownError(text)

        night(connection, portal=FlakyPortal(), channel=CollectingChannel(on_send=lose))
        facts.certified_mentor(hlf, YESTERDAY, full_name="Ola")
        make_due(facts, "coordinator_digests")
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel)

        (digest,) = digests(channel)
        assert digest.idempotency_key != tried[0].idempotency_key
        assert digest.idempotency_key != tried[0].idempotency_key
        assert digest.repeat

    def test_a_servers_clock_that_was_wrong_hides_nothing(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """A page that was sent in 2030 by that clock does not make the next ones wait for 2030."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")
        facts.certified_mentor(hlf, TODAY, full_name="Ola")
        night(connection, portal=FlakyPortal(), channel=CollectingChannel())
        connection.execute("UPDATE coordinator_digests SET covers_until = '2130-01-01', sent_at = '2130-01-01'")
        connection.execute("UPDATE mentor_pauses SET paused_at = '2130-01-01'")
        channels = CollectingChannel(), CollectingChannel()

        for number, channel in enumerate(channels, start=1):
            night(connection, TODAY + timedelta(days=number), portal=FlakyPortal(), channel=channel)

        (digest,) = digests(channels[0])
        assert "Ola" in digest.text
        assert "Kari" not in digest.text
        assert digests(channels[1]) == []

    def test_what_ends_soon_and_needs_nobody_is_no_reason_for_a_page(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Continued without a gap, somebody's who has left, revoked in a kind that pauses nobody."""
        coordinator(facts, hlf)
        ends = TODAY + timedelta(days=31)
        facts.certificate(facts.certified_mentor(hlf, ends), NEXT_YEAR, issued_on=ends + timedelta(days=1))
        facts.certified_mentor(hlf, ends, left_at=datetime.now(UTC))
        connection.execute("UPDATE organisations SET optional_kinds = '{first-aid}'")
        facts.certificate(facts.certified_mentor(hlf, NEXT_YEAR), ends, kind="first-aid", revoked_at=datetime.now(UTC))
        night(connection, portal=FlakyPortal(), channel=CollectingChannel())
        connection.execute("DELETE FROM coordinator_digests")

        channel = CollectingChannel()
        for number in range(1, 4):
            night(connection, TODAY + timedelta(days=number), portal=FlakyPortal(), channel=channel)

        assert digests(channel) == []
        assert {status for _, status in facts.rows(ROWS)} <= {"cancelled"}

    def test_whoever_has_something_to_hear_is_queued(self, connection: Connection, facts: Facts) -> None:
        """Whatever happens in ten nights: queueing asks less exactly than writing, and misses nothing."""
        organisation = facts.organisation(thresholds=(30, 7, 1))
        coordinator(facts, organisation)
        for number in range(12):
            mentor = facts.certified_mentor(
                organisation, TODAY + timedelta(days=3 * number - 6), email=None if number % 3 else ""
            )
            if number % 4 == 0:
                facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY + timedelta(days=number))
            if number % 5 == 0:
                facts.certificate(mentor, TODAY + timedelta(days=28 + number), kind="first-aid")
        connection.execute("UPDATE mentors SET left_at = now() WHERE member_no = 'M1007'")
        portal = FlakyPortal(failures=9)

        missed = []
        for number in range(10):
            make_due(facts)
            today = TODAY + timedelta(days=number)
            night(connection, today, portal=portal, channel=(channel := CollectingChannel()))
            if not digests(channel):
                missed += news_of_everybody(connection, today)

        assert missed == []
        sent = facts.rows("SELECT count(*) > 3 FROM coordinator_digests WHERE status = 'sent'")
        assert sent == [(True,)]


class TestDays:
    """A digest belongs to a day, and nights overlap, or run on a wrong one."""

    def test_a_job_of_the_day_before_leaves_the_new_days_alone(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """It neither sends nor cancels it, and queues none of its own beside it."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY)
        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), deliver=False)
        channel = CollectingChannel()
        old = CoordinatorDigestService(connection, today=TODAY)

        assert old.queue() == 0
        assert digest_mail(connection).claim()[0] is None

        assert facts.rows(ROWS) == [(TODAY + timedelta(days=1), "pending")]
        deliver(connection, channel, TODAY + timedelta(days=1))
        assert len(digests(channel)) == 1

    def test_one_of_a_wrong_later_day_gives_way(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """Nobody waits for 2030, and nobody gets two."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY)
        night(connection, date(2030, 1, 1), portal=FlakyPortal(), deliver=False)
        channel = CollectingChannel()

        options = nightly.NightOptions(today=TODAY, allow_earlier_date=True)
        nightly.run(
            connection,
            options=options,
            delivery=delivery(portal=FlakyPortal(), channel=channel),
            stop=StopFlag(),
            progress=NoProgress(),
        )

        assert len(digests(channel)) == 1
        assert facts.rows(ROWS) == [(TODAY, "sent")]

    def test_todays_comes_back_after_a_night_on_a_wrong_later_day(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Its row had been taken for the one of 2030; the next real night takes it back."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY)
        night(connection, portal=FlakyPortal(), deliver=False)
        CoordinatorDigestService(connection, today=date(2030, 1, 1)).queue()
        assert facts.rows(ROWS) == [(date(2030, 1, 1), "pending")]
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel)

        assert len(digests(channel)) == 1
        assert facts.rows(ROWS) == [(TODAY, "sent")]

    def test_what_was_reported_last_is_what_was_sent_last(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Though the last one was of an earlier day: the new day's had nothing to say yet."""
        coordinator(facts, hlf)
        tomorrow = TODAY + timedelta(days=1)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")
        night(connection, tomorrow, portal=FlakyPortal(), deliver=False)
        connection.execute("DELETE FROM mentor_pauses")
        deliver(connection, CollectingChannel(), tomorrow)
        assert facts.rows(ROWS) == [(tomorrow, "cancelled")]
        connection.execute("UPDATE mentors SET review_on = '-infinity'")
        review(connection)
        CoordinatorDigestService(connection, today=TODAY).queue()
        channels = [CollectingChannel() for _ in range(3)]
        assert BlockingStage(connection, digest_mail(connection), channels[0]).run() is None
        facts.certified_mentor(hlf, YESTERDAY, full_name="Ola")

        night(connection, tomorrow, portal=FlakyPortal(), channel=channels[1])
        night(connection, tomorrow + timedelta(days=1), portal=FlakyPortal(), channel=channels[2])

        assert facts.rows(ROWS)[:2] == [(TODAY, "sent"), (tomorrow, "sent")]
        assert [["Ola" in digest.text for digest in digests(channel)] for channel in channels] == [[False], [True], []]

    def test_there_is_one_open_digest_however_long_the_server_is_down(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """What waits is what will be sent."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY)
        for number in range(3):
            report = night(
                connection,
                TODAY + timedelta(days=number),
                portal=FlakyPortal(),
                channel=failing(ChannelDownError("no route")),
            )
            assert report.digests_pending == 1

    def test_one_that_is_being_tried_is_left_alone_and_is_the_new_days_once_it_is_put_off(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """The next day's night does not disturb it; a later run takes the row and keeps what is unknown."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY)
        night(connection, portal=FlakyPortal(), deliver=False)
        queue = digest_mail(connection)
        tried, _ = queue.claim()
        assert tried is not None
        tomorrow = TODAY + timedelta(days=1)
        night(connection, tomorrow, portal=FlakyPortal(), deliver=False)
        assert facts.rows(ROWS) == [(TODAY, "pending")]
        assert queue.settle(tried, "pending", error=OutcomeUnknownError("cut"), maybe_sent=True)
        channel = CollectingChannel()

        night(connection, tomorrow, portal=FlakyPortal(), channel=channel)

        assert [digest.repeat for digest in digests(channel)] == [True]
        assert facts.rows(ROWS) == [(tomorrow, "sent")]

    @pytest.mark.parametrize("crashed", [False, True])
    def test_that_it_may_be_a_repeat_survives_midnight(
        self, connection: Connection, facts: Facts, hlf: UUID, crashed: bool
    ) -> None:
        """The outcome of yesterday's is unknown; today's tells the same and more, and says so."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY)
        if crashed:
            night(connection, portal=FlakyPortal(), deliver=False)
            digest_mail(connection).claim()
            run_out(facts, "coordinator_digests")
        else:
            night(connection, portal=FlakyPortal(), channel=failing(OutcomeUnknownError("cut")))
        channel, after = CollectingChannel(), CollectingChannel()

        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), channel=channel)
        facts.certified_mentor(hlf, YESTERDAY)
        night(connection, TODAY + timedelta(days=2), portal=FlakyPortal(), channel=after)

        assert [digest.repeat for digest in digests(channel)] == [True]
        assert [digest.repeat for digest in digests(after)] == [False]

    def test_a_lease_from_the_future_holds_nobody_up(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """A server whose clock was wrong gave it; whoever had it is long gone."""
        coordinator(facts, hlf)
        facts.certified_mentor(hlf, YESTERDAY)
        night(connection, portal=FlakyPortal(), deliver=False)
        digest_mail(connection).claim()
        connection.execute("UPDATE coordinator_digests SET next_attempt_at = '2130-01-01'")
        channel = CollectingChannel()

        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), channel=channel)

        assert [digest.repeat for digest in digests(channel)] == [True]


class TestFailures:
    """In the same outbox form as the reminders."""

    @pytest.fixture
    def waiting(self, facts: Facts, hlf: UUID) -> UUID:
        """Something to tell one coordinator."""
        facts.certified_mentor(hlf, YESTERDAY)
        return coordinator(facts, hlf)

    def test_an_address_that_is_refused_fails_and_tomorrows_tells_all(
        self, connection: Connection, facts: Facts, waiting: UUID
    ) -> None:
        """Exit 3; what it would have told is told by the next one."""
        report = night(connection, portal=FlakyPortal(), channel=failing(RecipientRefusedError("550 no such user")))

        assert report.outcome is Outcome.ATTENTION
        assert "1 digest was not delivered; see `certjob alerts`" in report.reasons
        assert facts.rows("SELECT status, last_error FROM coordinator_digests") == [("failed", "550 no such user")]
        assert len(alerts.read_alerts(connection, today=TODAY)) == 1
        channel = CollectingChannel()
        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), channel=channel)
        assert "M1001" in digests(channel)[0].text
        assert len(alerts.read_alerts(connection, today=TODAY)) == 0

    def test_a_corrected_address_is_tried_without_waiting_for_the_night(
        self, connection: Connection, facts: Facts, waiting: UUID
    ) -> None:
        """As a mentor's is."""
        night(connection, portal=FlakyPortal(), channel=failing(RecipientRefusedError("550 no such user")))
        connection.execute("UPDATE coordinators SET full_name = 'Berit Bakke'")
        assert facts.rows("SELECT status FROM coordinator_digests") == [("failed",)]
        connection.execute("UPDATE coordinators SET email = 'new@example.org'")
        channel = CollectingChannel()

        deliver(connection, channel)

        assert [(digest.to, digest.repeat) for digest in digests(channel)] == [("new@example.org", False)]

    def test_an_address_that_somebody_is_just_correcting_is_not_failed_for_the_old_one(
        self, connection: Connection, facts: Facts, app: App, waiting: UUID
    ) -> None:
        """The correction was made before the refusal and committed after it."""

        def refuse(_message: OutgoingMessage) -> None:
            app.execute("UPDATE coordinators SET email = 'new@example.org'")
            text = "550 no such user"
            raise RecipientRefusedError(text)

        report = night(connection, portal=FlakyPortal(), channel=CollectingChannel(on_send=refuse))
        app.commit()

        assert report.to_document()["digests"] == {"sent": 0, "failed": 0, "pending": 1}
        make_due(facts, "coordinator_digests")
        channel = CollectingChannel()
        deliver(connection, channel)
        assert [digest.to for digest in digests(channel)] == ["new@example.org"]

    def test_one_person_of_two_organisations_gets_a_page_of_each(
        self, connection: Connection, facts: Facts, waiting: UUID
    ) -> None:
        """The same address twice: two messages, under two ids, each about its own."""
        nhf = facts.organisation("nhf", portal=None)
        coordinator(facts, nhf)
        facts.certified_mentor(nhf, YESTERDAY, full_name="Ola")
        channel = CollectingChannel()

        night(connection, portal=FlakyPortal(), channel=channel)

        assert {digest.to for digest in digests(channel)} == {"berit@example.org"}
        assert len({message.idempotency_key for message in digests(channel)}) == 2
        assert sorted(("Ola" in digest.text, digest.subject.partition(" ")[0]) for digest in digests(channel)) == [
            (False, "HLF:"),
            (True, "NHF:"),
        ]

    def test_what_changes_under_a_queued_one_is_as_it_is_when_it_is_sent(
        self, connection: Connection, facts: Facts, waiting: UUID
    ) -> None:
        """The organisation's name, the coordinator's address and language."""
        night(connection, portal=FlakyPortal(), deliver=False)
        connection.execute("UPDATE organisations SET name = 'Hørselshjelpen', slug = 'hh'")
        connection.execute("UPDATE coordinators SET email = 'new@example.org', locale = 'en'")
        channel = CollectingChannel()

        deliver(connection, channel)

        (digest,) = digests(channel)
        assert (digest.to, digest.subject) == ("new@example.org", "Hørselshjelpen: 1 newly paused")

    def test_a_claimed_one_follows_its_coordinator_to_the_apps_user_id(
        self, connection: Connection, facts: Facts, waiting: UUID
    ) -> None:
        """`organisation set --coordinator` with the id, between the claim and the message."""
        night(connection, portal=FlakyPortal(), deliver=False)
        queue = digest_mail(connection)
        claimed, _ = queue.claim()
        assert claimed is not None

        database.execute(connection, "replace_coordinator_id", {"id": waiting, "new_id": uuid4()})

        assert not isinstance(queue.draft(claimed), Unsent)
        assert queue.refuse(claimed, RecipientRefusedError("550"), address="berit@example.org") is Answer.SETTLED

    def test_a_process_that_dies_anywhere_loses_nothing_and_repeats_nothing_unsaid(
        self, database_url: str, connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed before each statement from the queueing on: every pause is told, a second time only as a repeat."""
        organisation = facts.organisation(portal=None, thresholds=())
        coordinator(facts, organisation)
        real_query = database.query
        died = 0
        for number in itertools.count(1):
            name = f"Mentor {number} of them"
            facts.certified_mentor(organisation, YESTERDAY, full_name=name)
            day = TODAY + timedelta(days=2 * number)
            channel = CollectingChannel()
            dying = Dying(real_query, before=number)
            monkeypatch.setattr(statements, "query", dying)
            try:
                with database.connect(database_url) as doomed:
                    dying.connection = doomed
                    night(doomed, day, channel=channel)
            except ProcessDiedError:
                died += 1
            finally:
                monkeypatch.setattr(statements, "query", real_query)
            first = [digest for digest in digests(channel) if name in digest.text]
            run_out(facts, "coordinator_digests")
            deliver(connection, channel, day)
            night(connection, day + timedelta(days=1), channel=channel)

            told = [digest.repeat for digest in digests(channel) if name in digest.text]
            assert told in ([False], [False, True], [True]), (number, told)
            assert told != [True] or not first, number
            assert facts.rows("SELECT count(*) FROM coordinator_digests WHERE status = 'pending'") == [(0,)], number
            if not dying.struck:
                break
        assert died > 8

    def test_a_coordinator_removed_while_the_page_is_sent_breaks_nothing(
        self, connection: Connection, facts: Facts, other: Connection, waiting: UUID
    ) -> None:
        """The row is gone with them; the next coordinator gets theirs."""
        coordinator(facts, facts.rows("SELECT id FROM organisations")[0][0], email="z@example.org")  # type: ignore[arg-type]

        def remove(message: OutgoingMessage) -> None:
            if message.to == "berit@example.org":
                other.execute("DELETE FROM coordinators WHERE id = %s", (waiting,))

        channel = CollectingChannel(on_send=remove)

        report = night(connection, portal=FlakyPortal(), channel=channel)

        assert "z@example.org" in [digest.to for digest in digests(channel)]
        assert report.to_document()["digests"]["pending"] == 0

    def test_one_that_is_put_off_is_tried_again(self, connection: Connection, facts: Facts, waiting: UUID) -> None:
        """By the job between the nights, once its time has come."""
        night(connection, portal=FlakyPortal(), channel=failing(RecipientDeferredError("450 later")))
        assert facts.rows("SELECT status, attempts, next_attempt_at > now() FROM coordinator_digests") == [
            ("pending", 1, True)
        ]
        make_due(facts, "coordinator_digests")
        channel = CollectingChannel()

        deliver(connection, channel)

        assert len(digests(channel)) == 1

    def test_after_an_unknown_outcome_it_says_that_it_may_be_a_repeat(
        self, connection: Connection, facts: Facts, waiting: UUID
    ) -> None:
        """Under the same Message-ID."""
        tried: list[OutgoingMessage] = []

        def lose(message: OutgoingMessage) -> None:
            tried.append(message)
            text = "no answer"
            raise OutcomeUnknownError(text)

        night(connection, portal=FlakyPortal(), channel=CollectingChannel(on_send=lose))
        make_due(facts, "coordinator_digests")
        channel = CollectingChannel()

        deliver(connection, channel)

        (repeat,) = digests(channel)
        assert repeat.idempotency_key == tried[0].idempotency_key
        assert (tried[0].repeat, repeat.repeat) == (False, True)
        assert "Har du allerede fått denne oversikten?" in repeat.text

    def test_one_whose_process_vanished_is_sent_by_another(
        self, connection: Connection, facts: Facts, waiting: UUID
    ) -> None:
        """After the lease, as a possible repeat."""
        night(connection, portal=FlakyPortal(), deliver=False)
        digest_mail(connection).claim()
        channel = CollectingChannel()
        deliver(connection, channel)
        assert digests(channel) == []

        run_out(facts, "coordinator_digests")
        deliver(connection, channel)

        assert [digest.repeat for digest in digests(channel)] == [True]

    def test_the_next_day_waits_for_one_that_is_being_sent(
        self, connection: Connection, facts: Facts, other: Connection, waiting: UUID
    ) -> None:
        """It begins where that one ends; two with the same contents would be one too many."""
        tomorrow = TODAY + timedelta(days=1)

        def next_night(_message: OutgoingMessage) -> None:
            night(other, tomorrow, portal=FlakyPortal(), deliver=False)

        channel = CollectingChannel(on_send=next_night)
        night(connection, portal=FlakyPortal(), channel=channel)
        channel.on_send = None

        night(connection, tomorrow, portal=FlakyPortal(), channel=channel)

        assert len(digests(channel)) == 1
        assert facts.rows(ROWS)[0] == (TODAY, "sent")

    def test_a_coordinator_who_is_gone_gets_none(self, connection: Connection, facts: Facts, waiting: UUID) -> None:
        """Removed between the claim and the sending."""
        night(connection, portal=FlakyPortal(), deliver=False)
        CoordinatorDigestService(connection, today=TODAY).queue()

        channel = CollectingChannel()
        connection.execute("DELETE FROM coordinators WHERE id = %s", (waiting,))

        deliver(connection, channel)

        assert channel.sent == []
        assert facts.rows(ROWS) == []

    def test_a_mail_server_that_is_down_stops_the_digests_too(
        self, connection: Connection, facts: Facts, waiting: UUID
    ) -> None:
        """One line, and they stay pending."""
        organisation = facts.organisation("nhf", portal=None)
        facts.certified_mentor(organisation, TODAY + timedelta(days=5))
        channel = failing(ChannelDownError("no route to the mail server"), kind="reminder")

        report = night(connection, portal=FlakyPortal(), channel=channel)

        assert [stop.code for stop in report.stopped] == ["down"]
        assert report.to_document()["digests"] == {"sent": 0, "failed": 0, "pending": 1}


def test_the_lock_of_a_claim_passes_by_what_somebody_settles(
    connection: Connection, facts: Facts, other: Connection, hlf: UUID
) -> None:
    """SKIP LOCKED, as for the other deliveries."""
    coordinator(facts, hlf)
    facts.certified_mentor(hlf, YESTERDAY)
    night(connection, portal=FlakyPortal(), deliver=False)
    queue = digest_mail(connection)

    with other.transaction():
        other.execute("SELECT FROM coordinator_digests FOR UPDATE")
        assert queue.claim()[0] is None

    assert queue.claim()[0] is not None
