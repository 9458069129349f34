"""The coordinators' daily page: what happened and what needs a person, once a day, and only if there is something."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
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
    RecipientRefusedError,
    StoppedBySignalError,
)
from certjob.mail.digest_contents import read_digest
from certjob.mail.digests import CoordinatorDigestService, DigestMail, QueuedDigest
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages import OUR_TEMPLATES, Templates
from certjob.mail.queue import Unsent, Writer
from certjob.night import nightly
from certjob.outbox.claims import Answer
from certjob.stopping import StopFlag
from certjob.views import alerts
from tests.support.channels import BlockingStage, digest_mail
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, review, run_out
from tests.support.mails import breakable
from tests.support.nights import CollectingChannel, FlakyPortal, NoProgress, delivery, in_background, night
from tests.support.waiting import until

App = psycopg.Connection[tuple[object, ...]]

YESTERDAY = TODAY - timedelta(days=1)
TOMORROW = TODAY + timedelta(days=1)
NEXT_YEAR = TODAY + timedelta(days=365)
ROWS = "SELECT digest_on, status FROM coordinator_digests ORDER BY id"
SENTENCE = "Dynamics sync pending — mentor may still be visible on portal"
NOBODY, DOWN, CUT = RecipientRefusedError("550 no such user"), ChannelDownError("no route"), OutcomeUnknownError("cut")


@pytest.fixture
def hlf(facts: Facts) -> UUID:
    """An organisation with a portal, a coordinator, and no reminders to mentors."""
    organisation = facts.organisation(thresholds=())
    coordinator(facts, organisation)
    return organisation


@pytest.fixture
def nhf(facts: Facts) -> UUID:
    """One without a portal: six mentors to remind, one to pause, a coordinator."""
    organisation = facts.organisation("nhf", portal=None, thresholds=(30,))
    for _ in range(6):
        facts.certified_mentor(organisation, TODAY + timedelta(days=5))
    facts.certified_mentor(organisation, YESTERDAY)
    coordinator(facts, organisation)
    return organisation


@pytest.fixture
def kari(facts: Facts, hlf: UUID) -> UUID:
    """Somebody to tell of: her certificate ended yesterday."""
    return facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")


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


def pages(connection: Connection, number: int = 0, *, channel: CollectingChannel | None = None, **options: Any) -> Any:
    """The digests of a night, so many days on."""
    channel = channel or CollectingChannel()
    night(connection, TODAY + timedelta(days=number), channel=channel, **({"portal": FlakyPortal()} | options))
    return digests(channel)


def queue(connection: Connection, number: int = 0) -> None:
    """A night that delivers nothing."""
    night(connection, TODAY + timedelta(days=number), portal=FlakyPortal(), deliver=False)


def failing(error: Exception, *, kind: str = "digest") -> CollectingChannel:
    """A channel on which no message of the kind can be handed over."""

    def on_send(message: OutgoingMessage) -> None:
        if message.kind == kind:
            raise error

    return CollectingChannel(on_send=on_send)


def deliver(connection: Connection, number: int = 0, *, channel: CollectingChannel | None = None) -> Any:
    """The digests of the job between the nights."""
    channel = channel or CollectingChannel()
    nightly.deliver(
        connection,
        today=TODAY + timedelta(days=number),
        delivery=delivery(portal=FlakyPortal(), channel=channel),
        stop=StopFlag(),
        progress=NoProgress(),
    )
    return digests(channel)


class TestContents:
    """What it tells."""

    def test_who_was_paused_and_why(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """With the kind and the day it ended, or that it was revoked. A name does no harm in either part."""
        facts.certified_mentor(hlf, YESTERDAY, full_name="<b>Kari</b>\nBcc: a@b.example\u202e {{ 7 * 7 }}")
        revoked = facts.mentor(hlf, full_name="Ola Hansen", member_no="M2")
        facts.certificate(revoked, NEXT_YEAR, revoked_at=datetime.now(UTC))

        (digest,) = pages(connection)

        assert (digest.to, digest.subject) == ("berit@example.org", "HLF: 2 nye på pause")
        kari = "* <b>Kari</b> Bcc: a@b.example {{ 7 * 7 }} (M1001): sertifikatet «likeperson» gikk ut 9. mars 2026"
        assert kari in breakable(digest.text)
        assert "* Ola Hansen (M2): sertifikatet «likeperson» er trukket tilbake" in digest.text
        assert "&lt;b&gt;Kari&lt;/b&gt;" in digest.html

    def test_who_is_back_again(self, connection: Connection, facts: Facts, hlf: UUID, kari: UUID) -> None:
        """Whether another pause still holds them; whether nobody watches them, the certificate being deleted."""
        ill, deleted = (facts.certified_mentor(hlf, YESTERDAY, full_name=name) for name in ("Ola", "Per"))
        facts.pause(ill)
        pages(connection)
        connection.execute("DELETE FROM certificates WHERE mentor_id = %s", (deleted,))
        for mentor in (kari, ill):
            facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY)

        (digest,) = pages(connection, 1)

        assert digest.subject == "HLF: 3 er tilbake"
        assert "* Kari (M1001)\n" in digest.text
        assert "* Ola (M1002), er fortsatt på pause av en annen grunn" in digest.text
        warning = "Likepersonen har ikke lenger noe sertifikat registrert"
        assert f"* Per (M1003)\n  {warning}" in digest.text
        assert (digest.text.count(warning), digest.html.count(warning)) == (1, 1)
        assert "Nye på pause" not in digest.text

    def test_a_pause_that_a_person_had_lifted(self, connection: Connection, kari: UUID) -> None:
        """It is open again, and the page says what to do instead."""
        pages(connection)
        connection.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'Berit'")

        (digest,) = pages(connection, 1)

        assert "Noen har opphevet pausen" in digest.text

    def test_a_push_that_waits_is_news_once_a_week_and_comes_along_with_other_news(
        self, connection: Connection, facts: Facts, hlf: UUID, kari: UUID
    ) -> None:
        """Nobody should take what is missing for what is done."""
        facts.certified_mentor(hlf, TODAY + timedelta(days=8), full_name="Ola")
        connection.execute("UPDATE coordinators SET locale = 'en'")
        refusing = FlakyPortal(failures=99, error=lambda: PermanentPortalError("404 contact_not_found"))

        told = {number: pages(connection, number, portal=refusing) for number in range(11)}

        assert {number: len(digests) for number, digests in told.items() if digests} == {0: 1, 7: 1, 9: 1}
        for number in (0, 7, 9):
            (digest,) = told[number]
            assert SENTENCE in digest.text
            assert SENTENCE in digest.html
            assert "404 contact_not_found" in digest.text
        assert told[0][0].subject.startswith("HLF: 1 mentor may still be visible on the portal")
        assert told[9][0].subject.startswith("HLF: 2 mentors may still be visible on the portal and ")
        assert (told[9][0].text.count("Kari"), told[9][0].text.count("Ola")) == (1, 2)
        connection.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
        assert pages(connection, 20) == []

    def test_long_names_make_shorter_lists(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """Gmail cuts a page at about 102 KB; a name may have a thousand characters, and each ``&`` takes five."""
        for _ in range(30):
            facts.certified_mentor(hlf, TODAY + timedelta(days=25), full_name="&" * 1000)

        (digest,) = pages(connection)

        assert len(digest.html.encode()) <= 100_000
        assert "* og 18 til\n" in digest.text

    def test_a_reminder_that_could_not_be_delivered_is_news_once_a_week(
        self, connection: Connection, facts: Facts
    ) -> None:
        """A mentor without an address is one line, however many reminders fail: the next threshold is no news."""
        organisation = facts.organisation(portal=None, thresholds=(14, 12))
        coordinator(facts, organisation)
        facts.certified_mentor(organisation, TODAY + timedelta(days=14), full_name="Kari", email=None)
        told = []
        for number in range(8):
            told.append(pages(connection, number))
            connection.execute("UPDATE cert_notification_log SET queued_at = %s", (TODAY,))  # not by the server's clock

        assert [len(digests) for digests in told] == [1, 0, 0, 0, 0, 0, 0, 1]
        line = "* Kari (M1001), gjelder sertifikatet som går ut 24. mars 2026: Det mangler en e-postadresse."
        assert line in breakable(told[0][0].text)
        assert facts.rows("SELECT threshold_days, status FROM cert_notification_log ORDER BY 1") == [
            (12, "failed"),
            (14, "superseded"),
        ]

    def test_a_corrected_address_that_is_refused_too_is_news(self, connection: Connection, facts: Facts) -> None:
        """Whoever corrected it wants to know."""
        organisation = facts.organisation(portal=None)
        coordinator(facts, organisation)
        facts.certified_mentor(organisation, TODAY + timedelta(days=40))
        first = pages(connection, channel=failing(NOBODY, kind="reminder"))
        connection.execute("UPDATE mentors SET email = 'also-wrong@example.org'")

        second = pages(connection, 1, channel=failing(NOBODY, kind="reminder"))

        assert (len(first), len(second)) == (1, 1)

    def test_what_ends_soon_counts_when_it_is_new(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """A certificate that comes within 30 days; the same one again is no reason for another page."""
        facts.certified_mentor(hlf, TODAY + timedelta(days=31), full_name="Kari")

        told = [pages(connection, number) for number in range(3)]

        assert [len(digests) for digests in told] == [0, 1, 0]
        assert "* 10. april 2026: Kari (M1001), «likeperson», 30 dager igjen" in breakable(told[1][0].text)

    def test_what_ends_soon_and_needs_nobody_is_no_reason_for_a_page(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Continued without a gap, somebody's who has left, revoked in a kind that pauses nobody."""
        ends = TODAY + timedelta(days=31)
        facts.certificate(facts.certified_mentor(hlf, ends), NEXT_YEAR, issued_on=ends + timedelta(days=1))
        facts.certified_mentor(hlf, ends, left_at=datetime.now(UTC))
        connection.execute("UPDATE organisations SET optional_kinds = '{first-aid}'")
        facts.certificate(facts.certified_mentor(hlf, NEXT_YEAR), ends, kind="first-aid", revoked_at=datetime.now(UTC))
        pages(connection)
        connection.execute("DELETE FROM coordinator_digests")

        assert [pages(connection, number) for number in (1, 2, 3)] == [[], [], []]
        assert {status for _, status in facts.rows(ROWS)} <= {"cancelled"}

    @pytest.mark.parametrize(("locale", "says"), [("nn", "gjekk ut 9. mars 2026"), ("en", "expired on 9 March 2026")])
    def test_of_the_own_organisation_in_the_own_language(
        self, connection: Connection, facts: Facts, hlf: UUID, kari: UUID, locale: str, says: str
    ) -> None:
        """One person of two organisations gets a page of each, under two ids; who has nothing to hear gets none."""
        lhl = facts.organisation("lhl", portal=None, thresholds=())
        coordinator(facts, lhl, locale=locale)
        facts.certified_mentor(lhl, YESTERDAY, full_name="Ola")
        coordinator(facts, facts.organisation("quiet", portal=None), email="quiet@example.org")

        bokmaal, translated = sorted(pages(connection), key=lambda digest: str(digest.subject))

        assert bokmaal.to == translated.to == "berit@example.org"
        assert bokmaal.idempotency_key != translated.idempotency_key
        assert ("Ola" in bokmaal.text, "Kari" in translated.text) == (False, False)
        assert translated.subject.startswith("LHL: ")
        assert says in breakable(translated.text)
        assert f'<html lang="{locale}">' in translated.html


class TestOnceADay:
    """One page per coordinator and day, and none without news."""

    def test_nothing_to_say_is_no_mail(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """Not even a row; and templates that take a while to be tried are not opened."""
        facts.certified_mentor(hlf, NEXT_YEAR)
        channel, opened = CollectingChannel(), []

        def open_own() -> Templates:
            opened.append("opened")
            return OUR_TEMPLATES

        ways_out = replace(delivery(portal=FlakyPortal(), channel=channel), open_templates=open_own)
        report = night(connection, ways_out=ways_out)

        assert (channel.sent, opened, facts.rows(ROWS)) == ([], [], [])
        assert report.outcome is Outcome.OK
        assert report.to_document()["digests"] == {"sent": 0, "failed": 0, "pending": 0}

    def test_what_comes_later_on_the_same_day_is_told_tomorrow(
        self, connection: Connection, facts: Facts, hlf: UUID, kari: UUID
    ) -> None:
        """The run of every hour mails nobody twice."""
        morning = pages(connection)
        facts.certified_mentor(hlf, YESTERDAY, full_name="Ola")

        noon, tomorrow = pages(connection), pages(connection, 1)

        assert [len(digests) for digests in (morning, noon, tomorrow)] == [1, 0, 1]
        assert ("Ola" in tomorrow[0].text, "Kari" in tomorrow[0].text) == (True, False)

    def test_three_nights_without_a_mail_server_are_one_page(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """About all of them: the one that waits."""
        for number, name in enumerate(["Kari", "Ola", "Per"]):
            facts.certified_mentor(hlf, TODAY + timedelta(days=number - 1), full_name=name)
            channel = failing(DOWN)
            report = night(connection, TODAY + timedelta(days=number), portal=FlakyPortal(), channel=channel)
            assert report.digests_pending == 1
            make_due(facts, "coordinator_digests")

        (digest,) = pages(connection, 3)

        assert all(name in digest.text for name in ("Kari", "Ola", "Per"))
        assert facts.rows(ROWS) == [(TODAY + timedelta(days=3), "sent")]

    def test_runs_at_once_send_one_each(
        self, connection: Connection, facts: Facts, database_url: str, hlf: UUID, kari: UUID
    ) -> None:
        """Four processes, three coordinators, three mails."""
        for number in range(2):
            coordinator(facts, hlf, email=f"c{number}@example.org")
        sent: list[OutgoingMessage] = []
        barrier = threading.Barrier(4)

        def run() -> None:
            with database.connect(database_url) as own:
                barrier.wait(20)
                sent.extend(pages(own))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        sent.extend(deliver(connection))

        assert sorted(digest.to for digest in sent) == ["berit@example.org", "c0@example.org", "c1@example.org"]

    def test_a_run_that_died_before_it_queued_loses_nothing(self, connection: Connection, kari: UUID) -> None:
        """The next one asks the same question, though it changes nothing itself."""
        review(connection)

        assert "Kari" in pages(connection)[0].text

    def test_without_a_channel_or_delivery_it_waits(self, connection: Connection, facts: Facts, kari: UUID) -> None:
        """It is queued, and the line says so; the job between the nights sends it."""
        report = night(connection, portal=FlakyPortal())
        assert "mail: CERTJOB_NOTIFY_URL is not set; 1 digest stays pending" in report.reasons
        connection.execute("DELETE FROM coordinator_digests")
        queue(connection)

        assert facts.rows(ROWS) == [(TODAY, "pending")]
        assert len(deliver(connection)) == 1

    def test_a_night_of_one_organisation_queues_that_ones_alone(
        self, connection: Connection, facts: Facts, kari: UUID, nhf: UUID
    ) -> None:
        """--organisation: the others' coordinators hear of theirs in the full night."""
        review(connection)

        assert [digest.subject[:3] for digest in pages(connection, organisation="nhf")] == ["NHF"]
        assert facts.rows("SELECT count(*) FROM coordinator_digests") == [(1,)]


class TestAfterTheReminders:
    """Digests tell what became of the reminders, so they are sent after them."""

    @pytest.mark.parametrize(
        ("error", "code", "sent"),
        [(RecipientRefusedError("554 relay access denied"), "refused", 1), (DOWN, "down", 0), (CUT, "unknown", 0)],
    )
    def test_five_refused_mentors_do_not_silence_the_coordinators(
        self, connection: Connection, nhf: UUID, error: Exception, code: str, sent: int
    ) -> None:
        """The stage of the reminders stops, that of the digests does its work. A server that is down stops both."""
        channel = failing(error, kind="reminder")

        report = night(connection, channel=channel)

        assert [stop.code for stop in report.stopped] == [code]
        assert len(digests(channel)) == sent
        assert report.to_document()["digests"] == {"sent": sent, "failed": 0, "pending": 1 - sent}

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
        assert len(deliver(connection)) == 1

    @pytest.mark.parametrize(
        "error", [None, ConfigurationError("layout.html line 1: no end"), PermissionError(13, "Permission denied")]
    )
    def test_templates_of_ones_own_are_opened_once_or_give_way_to_ours(
        self, connection: Connection, nhf: UUID, error: Exception | None
    ) -> None:
        """A night is written in one voice, and goes out in time; what is broken is one line that needs a person."""
        channel, opened = CollectingChannel(), []

        def open_own() -> Templates:
            opened.append("opened")
            if error is not None:
                raise error
            return OUR_TEMPLATES

        report = night(connection, ways_out=replace(delivery(channel=channel), open_templates=open_own))

        assert [message.kind for message in channel.sent] == ["reminder"] * 6 + ["digest"]
        assert opened == ["opened"]
        assert report.outcome is (Outcome.ATTENTION if error else Outcome.OK)
        assert [stop.code for stop in report.stopped] == (["templates"] if error else [])
        assert error is None or str(error) in report.reasons[0]


class TestExactlyOnce:
    """A page covers what its snapshot showed; everything else is in the next one."""

    def test_what_is_committed_while_the_page_is_written_is_in_the_next_one(
        self, connection: Connection, facts: Facts, app: App, hlf: UUID
    ) -> None:
        """Though its rows carry an earlier time: that of the beginning of its transaction."""
        late = facts.mentor(hlf, full_name="Ola")
        pause = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'certification_expired', 'certjob')"
        app.execute(pause, (late,))
        facts.certified_mentor(hlf, YESTERDAY, full_name="Kari")

        first = pages(connection, channel=CollectingChannel(on_send=lambda _message: app.commit()))
        facts.certificate(late, YESTERDAY)
        second = pages(connection, 1)

        assert [(("Kari" in d.text), ("Ola" in d.text)) for d in [*first, *second]] == [(True, False), (False, True)]

    def test_a_return_is_told_once_though_the_mentor_returns_twice(
        self, connection: Connection, facts: Facts, kari: UUID
    ) -> None:
        """Two pauses that ended, on two days: two pages."""
        days = []
        for number in range(5):
            if number in (1, 3):
                connection.execute("UPDATE certificates SET expires_on = %s, revoked_at = NULL", (NEXT_YEAR,))
            if number == 2:
                connection.execute("UPDATE certificates SET revoked_at = now()")
            days += [digest.subject for digest in pages(connection, number)]

        assert days == ["HLF: 1 ny på pause", "HLF: 1 er tilbake"] * 2

    def test_what_happens_while_nothing_to_tell_is_noted_is_told_today(
        self, connection: Connection, facts: Facts, other: Connection, kari: UUID
    ) -> None:
        """The night that queues again waits for the row, and finds it cancelled: it comes back."""
        queue(connection)
        connection.execute("DELETE FROM mentor_pauses")
        connection.execute("UPDATE mentors SET review_on = '-infinity'")
        nights: list[Any] = []

        class Interrupted(DigestMail):
            def _draft(self, item: QueuedDigest) -> Writer | str | None:
                draft = super()._draft(item)
                if isinstance(draft, str):
                    nights.append(in_background(lambda: night(other, portal=FlakyPortal(), deliver=False)))
                    nights[0].__enter__()
                    until(lambda: facts.rows("SELECT count(*) FROM pg_locks WHERE NOT granted") != [(0,)])
                return draft

        stage = BlockingStage(connection, Interrupted(connection, today=TODAY, zone=UTC), CollectingChannel())
        assert stage.run() is None
        nights[0].__exit__(None, None, None)
        assert stage.run() is None

        assert (stage.counts.cancelled, stage.counts.sent) == (1, 1)

    def test_a_page_that_tells_more_than_a_lost_one_is_another_message(
        self, connection: Connection, facts: Facts, hlf: UUID, kari: UUID
    ) -> None:
        """Mail programs and webhooks drop what has the id of a message that they have. The same again is the same."""
        tried: list[OutgoingMessage] = []

        def lose(message: OutgoingMessage) -> None:
            tried.append(message)
            raise CUT

        for number in range(3):
            pages(connection, channel=CollectingChannel(on_send=lose))
            make_due(facts, "coordinator_digests")
            if number == 1:
                facts.certified_mentor(hlf, YESTERDAY, full_name="Ola")

        first, same, more = tried
        assert (first.repeat, same.repeat, more.repeat) == (False, True, True)
        assert first.idempotency_key == same.idempotency_key != more.idempotency_key
        assert "Har du allerede fått denne oversikten?" in same.text

    def test_a_servers_clock_that_was_wrong_hides_nothing(
        self, connection: Connection, facts: Facts, hlf: UUID, kari: UUID
    ) -> None:
        """Neither a page that was sent in 2130 by that clock, nor a lease that it gave, makes anybody wait for 2130."""
        facts.certified_mentor(hlf, TODAY, full_name="Ola")
        pages(connection)
        connection.execute("UPDATE coordinator_digests SET covers_until = '2130-01-01', sent_at = '2130-01-01'")
        connection.execute("UPDATE mentor_pauses SET paused_at = '2130-01-01'")
        queue(connection, 1)
        digest_mail(connection, today=TOMORROW).claim()
        connection.execute(
            "UPDATE coordinator_digests SET next_attempt_at = '2130-01-01' WHERE claim_token IS NOT NULL"
        )

        (digest,) = pages(connection, 2)

        assert ("Ola" in digest.text, "Kari" in digest.text, digest.repeat) == (True, False, True)
        assert pages(connection, 3) == []

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
            if not pages(connection, number, portal=portal):
                missed += news_of_everybody(connection, TODAY + timedelta(days=number))

        assert missed == []
        assert facts.rows("SELECT count(*) > 3 FROM coordinator_digests WHERE status = 'sent'") == [(True,)]


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


class TestDays:
    """A digest belongs to a day, and nights overlap, or run on a wrong one."""

    def test_a_job_of_the_day_before_leaves_the_new_days_alone(
        self, connection: Connection, facts: Facts, kari: UUID
    ) -> None:
        """It neither sends nor cancels it, and queues none of its own beside it."""
        queue(connection, 1)

        assert CoordinatorDigestService(connection, today=TODAY).queue() == 0
        assert digest_mail(connection).claim()[0] is None

        assert facts.rows(ROWS) == [(TOMORROW, "pending")]
        assert len(deliver(connection, 1)) == 1

    def test_one_of_a_wrong_later_day_gives_way(self, connection: Connection, facts: Facts, kari: UUID) -> None:
        """Nobody waits for 2030, and nobody gets two."""
        queue(connection)
        CoordinatorDigestService(connection, today=date(2030, 1, 1)).queue()
        assert facts.rows(ROWS) == [(date(2030, 1, 1), "pending")]

        assert len(pages(connection)) == 1
        assert facts.rows(ROWS) == [(TODAY, "sent")]

    def test_what_was_reported_last_is_what_was_sent_last(
        self, connection: Connection, facts: Facts, hlf: UUID, kari: UUID
    ) -> None:
        """Though the last one was of an earlier day: the new day's had nothing to say yet."""
        queue(connection, 1)
        connection.execute("DELETE FROM mentor_pauses")
        deliver(connection, 1)
        assert facts.rows(ROWS) == [(TOMORROW, "cancelled")]
        connection.execute("UPDATE mentors SET review_on = '-infinity'")
        review(connection)
        CoordinatorDigestService(connection, today=TODAY).queue()
        channel = CollectingChannel()
        assert BlockingStage(connection, digest_mail(connection), channel).run() is None
        facts.certified_mentor(hlf, YESTERDAY, full_name="Ola")

        told = [digests(channel), pages(connection, 1), pages(connection, 2)]

        assert facts.rows(ROWS)[:2] == [(TODAY, "sent"), (TOMORROW, "sent")]
        assert [["Ola" in digest.text for digest in digests] for digests in told] == [[False], [True], []]

    def test_one_that_is_being_tried_is_left_alone_and_is_the_new_days_once_it_is_put_off(
        self, connection: Connection, facts: Facts, kari: UUID
    ) -> None:
        """The next day's night does not disturb it; a later run takes the row and keeps what is unknown."""
        queue(connection)
        mails = digest_mail(connection)
        tried, _ = mails.claim()
        assert tried is not None
        queue(connection, 1)
        assert facts.rows(ROWS) == [(TODAY, "pending")]
        assert mails.put_off(tried, CUT, delay_seconds=0, maybe_sent=True)

        assert [digest.repeat for digest in pages(connection, 1)] == [True]
        assert facts.rows(ROWS) == [(TOMORROW, "sent")]

    @pytest.mark.parametrize("number", [0, 1], ids=["the same day", "after midnight"])
    def test_one_whose_process_vanished_is_sent_by_another(
        self, connection: Connection, facts: Facts, hlf: UUID, kari: UUID, number: int
    ) -> None:
        """After the lease, as a possible repeat; the one after that is none."""
        queue(connection)
        digest_mail(connection).claim()
        assert deliver(connection) == []
        run_out(facts, "coordinator_digests")

        sent = deliver(connection) if number == 0 else pages(connection, 1)

        assert [digest.repeat for digest in sent] == [True]
        facts.certified_mentor(hlf, YESTERDAY)
        assert [digest.repeat for digest in pages(connection, number + 1)] == [False]

    def test_the_next_day_waits_for_one_that_is_being_sent(
        self, connection: Connection, facts: Facts, other: Connection, kari: UUID
    ) -> None:
        """It begins where that one ends; two with the same contents would be one too many."""
        first = pages(connection, channel=CollectingChannel(on_send=lambda _message: queue(other, 1)))

        assert (len(first), pages(connection, 1)) == (1, [])
        assert facts.rows(ROWS)[0] == (TODAY, "sent")


class TestFailures:
    """In the same outbox form as the reminders."""

    def test_an_address_that_is_refused_fails_and_tomorrows_tells_all(
        self, connection: Connection, facts: Facts, kari: UUID
    ) -> None:
        """Exit 3; what it would have told is told by the next one."""
        report = night(connection, portal=FlakyPortal(), channel=failing(NOBODY))

        assert report.outcome is Outcome.ATTENTION
        assert "1 digest was not delivered; see `certjob alerts`" in report.reasons
        assert facts.rows("SELECT status, last_error FROM coordinator_digests") == [("failed", "550 no such user")]
        assert len(alerts.read_alerts(connection, today=TODAY)) == 1
        assert "M1001" in pages(connection, 1)[0].text
        assert len(alerts.read_alerts(connection, today=TODAY)) == 0

    def test_five_refused_in_a_row_are_the_servers_fault(
        self, connection: Connection, facts: Facts, hlf: UUID, kari: UUID
    ) -> None:
        """They are pending again."""
        for number in range(4):
            coordinator(facts, hlf, email=f"c{number}@example.org")

        report = night(connection, portal=FlakyPortal(), channel=failing(NOBODY))

        assert [stop.code for stop in report.stopped] == ["refused"]
        assert facts.rows(ROWS) == [(TODAY, "pending")] * 5

    def test_a_corrected_address_is_tried_without_waiting_for_the_night(
        self, connection: Connection, facts: Facts, kari: UUID
    ) -> None:
        """As a mentor's is."""
        pages(connection, channel=failing(NOBODY))
        connection.execute("UPDATE coordinators SET full_name = 'Berit Bakke'")
        assert facts.rows("SELECT status FROM coordinator_digests") == [("failed",)]
        connection.execute("UPDATE coordinators SET email = 'new@example.org'")

        assert [(digest.to, digest.repeat) for digest in deliver(connection)] == [("new@example.org", False)]

    def test_an_address_that_somebody_is_just_correcting_is_not_failed_for_the_old_one(
        self, connection: Connection, facts: Facts, app: App, kari: UUID
    ) -> None:
        """The correction was made before the refusal and committed after it."""

        def refuse(_message: OutgoingMessage) -> None:
            app.execute("UPDATE coordinators SET email = 'new@example.org'")
            raise NOBODY

        report = night(connection, portal=FlakyPortal(), channel=CollectingChannel(on_send=refuse))
        app.commit()

        assert report.to_document()["digests"] == {"sent": 0, "failed": 0, "pending": 1}
        make_due(facts, "coordinator_digests")
        assert [digest.to for digest in deliver(connection)] == ["new@example.org"]

    def test_what_changes_under_a_queued_one_is_as_it_is_when_it_is_sent(
        self, connection: Connection, kari: UUID
    ) -> None:
        """The organisation's name, the coordinator's address and language."""
        queue(connection)
        connection.execute("UPDATE organisations SET name = 'Hørselshjelpen', slug = 'hh'")
        connection.execute("UPDATE coordinators SET email = 'new@example.org', locale = 'en'")

        (digest,) = deliver(connection)

        assert (digest.to, digest.subject) == ("new@example.org", "Hørselshjelpen: 1 newly paused")

    def test_a_claimed_one_follows_its_coordinator_to_the_apps_user_id(
        self, connection: Connection, facts: Facts, kari: UUID
    ) -> None:
        """`organisation set --coordinator` with the id, between the claim and the message."""
        queue(connection)
        mails = digest_mail(connection)
        claimed, _ = mails.claim()
        assert claimed is not None

        (old_id,) = facts.rows("SELECT id FROM coordinators")[0]
        database.execute(connection, "replace_coordinator_id", {"id": old_id, "new_id": uuid4()})

        assert not isinstance(mails.draft(claimed), Unsent)
        assert mails.refuse(claimed, NOBODY, address="berit@example.org") is Answer.SETTLED

    def test_a_coordinator_who_is_removed_breaks_nothing(
        self, connection: Connection, facts: Facts, other: Connection, hlf: UUID, kari: UUID
    ) -> None:
        """While the page is sent, or before: the row is gone with them, and the next coordinator gets theirs."""
        coordinator(facts, hlf, email="z@example.org")

        def remove(message: OutgoingMessage) -> None:
            if message.to == "berit@example.org":
                other.execute("DELETE FROM coordinators WHERE email = 'berit@example.org'")

        sent = pages(connection, channel=CollectingChannel(on_send=remove))

        assert "z@example.org" in [digest.to for digest in sent]
        facts.certified_mentor(hlf, YESTERDAY)
        queue(connection, 1)
        connection.execute("DELETE FROM coordinators")
        assert (deliver(connection, 1), facts.rows(ROWS)) == ([], [])

    def test_the_lock_of_a_claim_passes_by_what_somebody_settles(
        self, connection: Connection, other: Connection, kari: UUID
    ) -> None:
        """SKIP LOCKED, as for the other deliveries."""
        queue(connection)
        mails = digest_mail(connection)

        with other.transaction():
            other.execute("SELECT FROM coordinator_digests FOR UPDATE")
            assert mails.claim()[0] is None

        assert mails.claim()[0] is not None


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


def test_a_process_that_dies_anywhere_loses_nothing_and_repeats_nothing_unsaid(
    database_url: str, connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each statement from the queueing on: every pause is told, a second time only as a repeat."""
    organisation = facts.organisation(portal=None, thresholds=())
    coordinator(facts, organisation)
    real_query = database.query
    died = 0
    for number in itertools.count(1):
        name = f"Mentor {number} of them"
        facts.certified_mentor(organisation, YESTERDAY, full_name=name)
        channel = CollectingChannel()
        dying = Dying(real_query, before=number)
        monkeypatch.setattr(statements, "query", dying)
        try:
            with database.connect(database_url) as doomed:
                dying.connection = doomed
                pages(doomed, 2 * number, channel=channel, portal=None)
        except ProcessDiedError:
            died += 1
        finally:
            monkeypatch.setattr(statements, "query", real_query)
        first = [digest for digest in digests(channel) if name in digest.text]
        run_out(facts, "coordinator_digests")
        pages(connection, 2 * number + 1, channel=channel)

        told = [digest.repeat for digest in digests(channel) if name in digest.text]
        assert told in ([False], [False, True], [True]), (number, told)
        assert told != [True] or not first, number
        assert facts.rows("SELECT count(*) FROM coordinator_digests WHERE status = 'pending'") == [(0,)], number
        if not dying.struck:
            break
    assert died > 8
