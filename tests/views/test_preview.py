"""A reminder before it is sent: which one is shown, that it reads as it will go out, and a copy for somebody else."""

import json
import mailbox
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import ConfigurationError, RecipientRefusedError, UnknownMentorError
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages import OUR_TEMPLATES
from certjob.views.preview import NOBODY, Preview, PreviewRequest, preview_reminder, send_copy
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line
from tests.support.facts import TODAY, Facts
from tests.support.intents import review
from tests.support.nights import CollectingChannel, night
from tests.support.smtp_server import HOST, Mailbox, real_server, scripted_server

IN_20_DAYS = TODAY + timedelta(days=20)
"""The threshold 30 is due, the next one is 14."""


def previewed(connection: Connection, mentor_id: UUID, **request: Any) -> Preview:
    return preview_reminder(
        connection,
        mentor_id,
        request=PreviewRequest(**{"today": TODAY} | request),
        templates=OUR_TEMPLATES,
    )


def refusal(connection: Connection, mentor_id: UUID, **request: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        previewed(connection, mentor_id, **request)
    assert raised.value.exit_code == 2
    return str(raised.value)


def what(preview: Preview) -> tuple[int | None, str]:
    """Threshold and day."""
    return preview.message.threshold_days, str(preview.sends_on)


class TestAsItWillGoOut:
    """What the night then sends is what was shown."""

    @pytest.mark.parametrize("days", [60, 30, 20, 1, 0, -1, -10])
    @pytest.mark.parametrize("optional", [True, False])
    def test_the_night_sends_what_was_shown(
        self, connection: Connection, facts: Facts, *, days: int, optional: bool
    ) -> None:
        """Word for word, although the review, which pauses and queues, comes between the two."""
        organisation = facts.organisation(portal=None, optional_kinds=["likeperson"] if optional else [])
        mentor_id = facts.certified_mentor(organisation, TODAY + timedelta(days=days), locale="nn")
        shown = previewed(connection, mentor_id)
        channel = CollectingChannel()

        night(connection, channel=channel)

        sent = channel.sent[0]
        assert (sent.subject, sent.text, sent.html, sent.to) == (
            shown.message.subject,
            shown.message.text,
            shown.message.html,
            shown.message.to,
        )
        assert not shown.queued

    def test_a_queued_one_has_its_message_id(self, connection: Connection, facts: Facts) -> None:
        """The very one, of the log row and its cycle; the domain is the sender's."""
        mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)
        review(connection)

        shown = previewed(connection, mentor_id)

        assert shown.queued
        ((log_id,),) = facts.rows("SELECT id FROM cert_notification_log")
        assert shown.message.idempotency_key == f"reminder-{log_id}-0"

    @pytest.mark.parametrize("cancel", [True, False])
    def test_an_extension_is_a_new_cycle(self, connection: Connection, facts: Facts, *, cancel: bool) -> None:
        """As queueing it will make it: another Message-ID, no repeat."""
        mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)
        channel = CollectingChannel()
        night(connection, channel=channel)
        facts.connection.execute("UPDATE certificates SET expires_on = expires_on + 365")
        if cancel:  # a typo for a while, noticed before it was sent
            facts.connection.execute("UPDATE cert_notification_log SET status = 'cancelled', maybe_sent = true")
        later = TODAY + timedelta(days=365)

        shown = previewed(connection, mentor_id, today=later)

        night(connection, later, channel=channel)
        ((log_id,),) = facts.rows("SELECT id FROM cert_notification_log WHERE threshold_days = 30")
        assert shown.message.idempotency_key == f"reminder-{log_id}-1"
        assert channel.sent[-1].idempotency_key == f"reminder-{log_id}-1"
        assert (shown.message.repeat, channel.sent[-1].repeat) == (False, False)

    @pytest.mark.parametrize("status", ["pending", "cancelled"])
    def test_after_an_unknown_outcome_it_says_that_it_may_be_a_repeat(
        self, connection: Connection, facts: Facts, status: str
    ) -> None:
        """As the message will, also when the row was cancelled meanwhile and comes back."""
        mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS, locale="en")
        review(connection)
        facts.connection.execute("UPDATE cert_notification_log SET maybe_sent = true, status = %s", (status,))

        shown = previewed(connection, mentor_id)

        assert "You may already have received this reminder" in shown.message.text

    def test_another_language_on_request(self, connection: Connection, facts: Facts) -> None:
        """Whatever the mentor's own is."""
        mentor_id = facts.certified_mentor(facts.organisation(), IN_20_DAYS, locale="nb")

        assert "Vennleg helsing" in previewed(connection, mentor_id, locale="nn").message.text
        assert "Kind regards" in previewed(connection, mentor_id, locale="en").message.text

    def test_who_is_not_yet_paused_is_on_the_day(self, connection: Connection, facts: Facts) -> None:
        """The message after the expiry speaks of the pause that the night will have opened by then."""
        mentor_id = facts.certified_mentor(facts.organisation(), IN_20_DAYS)

        shown = previewed(connection, mentor_id, threshold_days=-1)

        assert "Derfor er du på pause nå" in shown.message.text

    def test_it_writes_nothing_and_needs_no_right_to(
        self, connection: Connection, facts: Facts, database_url: str
    ) -> None:
        """default_transaction_read_only=on."""
        mentor_id = facts.certified_mentor(facts.organisation(), IN_20_DAYS)
        review(connection)
        read_only = psycopg.conninfo.make_conninfo(database_url, options="-c default_transaction_read_only=on")

        with database.connect(read_only) as own:
            shown = previewed(own, mentor_id)

        assert what(shown) == (30, str(TODAY))


class TestWhich:
    """The due reminder, else the next one; the most urgent of several kinds."""

    def test_the_one_that_is_due(self, connection: Connection, facts: Facts) -> None:
        """With the days of today."""
        shown = previewed(connection, facts.certified_mentor(facts.organisation(), IN_20_DAYS))

        assert what(shown) == (30, "2026-03-10")
        assert "om 20\u00a0dager" in shown.message.subject
        assert shown.explanation == "the reminder that is due today, for the threshold 30"

    def test_once_sent_the_next_one(self, connection: Connection, facts: Facts) -> None:
        """With the days of its day, 14, and not of today."""
        mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)
        night(connection, channel=CollectingChannel())

        shown = previewed(connection, mentor_id)

        assert what(shown) == (14, "2026-03-16")
        assert "om 14\u00a0dager" in shown.message.subject
        assert shown.explanation == "the next reminder, due 2026-03-16"

    def test_long_before_the_first_one(self, connection: Connection, facts: Facts) -> None:
        """Nothing is due for months."""
        shown = previewed(connection, facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=365)))

        assert what(shown) == (60, "2027-01-09")

    def test_a_certificate_still_to_begin_is_reminded_of_from_its_first_day_on(
        self, connection: Connection, facts: Facts
    ) -> None:
        """A short one begins after its threshold's day."""
        mentor_id = facts.mentor(facts.organisation())
        facts.certificate(mentor_id, TODAY + timedelta(days=25), issued_on=TODAY + timedelta(days=5))

        assert what(previewed(connection, mentor_id)) == (30, "2026-03-15")

    def test_a_renewed_certificate_is_not_the_one(self, connection: Connection, facts: Facts) -> None:
        """The new one's first reminder is next."""
        mentor_id = facts.certified_mentor(facts.organisation(), IN_20_DAYS)
        facts.certificate(mentor_id, TODAY + timedelta(days=700), issued_on=TODAY)

        shown = previewed(connection, mentor_id)

        assert (shown.message.threshold_days, shown.message.expires_on) == (60, TODAY + timedelta(days=700))

    def test_of_several_kinds_the_most_urgent(self, connection: Connection, facts: Facts) -> None:
        mentor_id = facts.certified_mentor(facts.organisation(), IN_20_DAYS)
        facts.certificate(mentor_id, TODAY + timedelta(days=5), kind="kurs")
        facts.certificate(mentor_id, TODAY + timedelta(days=50), kind="førstehjelp")

        assert what(previewed(connection, mentor_id)) == (7, "2026-03-10")

    @pytest.mark.parametrize(
        ("threshold", "day", "days"),
        [
            (60, "2026-01-29", "om 60\u00a0dager"),
            (30, "2026-03-10", "om 20\u00a0dager"),
            (7, "2026-03-23", "om 7\u00a0dager"),
        ],
    )
    def test_any_threshold_as_on_its_day(
        self, connection: Connection, facts: Facts, threshold: int, day: str, days: str
    ) -> None:
        """Past, due, to come; the one that is due today counts from today."""
        mentor_id = facts.certified_mentor(facts.organisation(), IN_20_DAYS)

        shown = previewed(connection, mentor_id, threshold_days=threshold)

        assert what(shown) == (threshold, day)
        assert days in shown.message.subject

    def test_a_threshold_is_shown_of_the_certificate_that_counts_now(
        self, connection: Connection, facts: Facts
    ) -> None:
        """Not of those of years ago."""
        mentor_id = facts.mentor(facts.organisation())
        facts.certificate(mentor_id, TODAY - timedelta(days=400), issued_on=TODAY - timedelta(days=800))
        facts.certificate(mentor_id, TODAY + timedelta(days=10), issued_on=TODAY - timedelta(days=300))

        assert what(previewed(connection, mentor_id, threshold_days=60)) == (60, "2026-01-19")

    def test_it_says_what_has_become_of_it(self, connection: Connection, facts: Facts) -> None:
        """Sent, or refused, or without an address."""
        organisation = facts.organisation(portal=None)
        sent = facts.certified_mentor(organisation, IN_20_DAYS)
        night(connection, channel=CollectingChannel())
        refused = facts.certified_mentor(organisation, IN_20_DAYS)

        def refuse(_message: OutgoingMessage) -> None:
            text = "the mail server refused the recipient (550 gone)"
            raise RecipientRefusedError(text)

        night(connection, channel=CollectingChannel(on_send=refuse))
        homeless = facts.certified_mentor(organisation, IN_20_DAYS, email=None)

        assert "it has been sent" in previewed(connection, sent, threshold_days=30).explanation
        assert "could not be delivered: the mail server refused" in previewed(connection, refused).explanation
        assert "no e-mail address" in previewed(connection, homeless).explanation


class TestNothingToShow:
    """A line that says why, and exit 2: what was asked for is not there."""

    def test_no_certificate(self, connection: Connection, facts: Facts) -> None:
        mentor_id = facts.mentor(facts.organisation(), member_no="M1042")

        assert refusal(connection, mentor_id) == "M1042 of hlf has no certificate, and so nothing to be reminded of"

    def test_left(self, connection: Connection, facts: Facts) -> None:
        left_at = datetime(2026, 1, 1, tzinfo=UTC)
        mentor_id = facts.certified_mentor(facts.organisation(), IN_20_DAYS, left_at=left_at)

        assert "has left" in refusal(connection, mentor_id)

    def test_an_organisation_that_reminds_nobody(self, connection: Connection, facts: Facts) -> None:
        mentor_id = facts.certified_mentor(facts.organisation(thresholds=[]), IN_20_DAYS)

        assert "hlf reminds nobody; `certjob organisation set hlf --thresholds" in refusal(connection, mentor_id)

    def test_a_threshold_that_is_none(self, connection: Connection, facts: Facts) -> None:
        mentor_id = facts.certified_mentor(facts.organisation(thresholds=[30, -1]), IN_20_DAYS)

        assert refusal(connection, mentor_id, threshold_days=7) == "--threshold 7 is none of hlf's, which are 30,-1"

    def test_everything_is_over(self, connection: Connection, facts: Facts) -> None:
        """A certificate of long ago; its last notice can still be looked at."""
        mentor_id = facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=400))

        assert "no upcoming reminder; use --threshold" in refusal(connection, mentor_id)
        assert "its day was 2025-02-04" in previewed(connection, mentor_id, threshold_days=-1).explanation

    def test_only_revoked(self, connection: Connection, facts: Facts) -> None:
        mentor_id = facts.mentor(facts.organisation())
        facts.certificate(mentor_id, IN_20_DAYS, revoked_at=datetime(2026, 1, 1, tzinfo=UTC))

        assert "no upcoming reminder" in refusal(connection, mentor_id)
        assert "renewed or revoked" in refusal(connection, mentor_id, threshold_days=30)

    def test_a_certificate_for_ever(self, connection: Connection, facts: Facts) -> None:
        """Days past the calendar's end are no days; its first reminder is in eight thousand years."""
        mentor_id = facts.certified_mentor(facts.organisation(), datetime(9999, 12, 31, tzinfo=UTC).date())

        assert what(previewed(connection, mentor_id)) == (60, "9999-11-01")
        assert "no reminder for the threshold -1" in refusal(connection, mentor_id, threshold_days=-1)

    def test_a_mentor_deleted_meanwhile(self, connection: Connection) -> None:
        with pytest.raises(UnknownMentorError):
            previewed(connection, NOBODY)


def test_a_copy_cannot_be_taken_for_the_reminder(connection: Connection, facts: Facts) -> None:
    """Another Message-ID each time, a mark before the subject, and no mentor that a webhook could hand it to."""
    mentor_id = facts.certified_mentor(facts.organisation(), IN_20_DAYS, locale="nn")
    review(connection)
    shown = previewed(connection, mentor_id)
    channel = CollectingChannel()

    send_copy(shown, channel, to="me@example.org")
    send_copy(shown, channel, to="me@example.org")

    first, second = channel.sent
    assert first.to == "me@example.org"
    assert first.subject == f"[førehandsvising] {shown.message.subject}"
    assert (first.text, first.html) == (shown.message.text, shown.message.html)
    assert (first.kind, first.mentor_id) == ("preview", NOBODY)
    identities = {m.idempotency_key for m in (first, second, shown.message)}
    assert len(identities) == len({m.idempotency_key for m in (first, second, shown.message)}) == 3


# The installed command


@pytest.fixture
def mentor(facts: Facts) -> Iterator[str]:
    """M1042, with 20 days left today, whichever day it is; nothing but reading may happen to the database."""
    today = datetime.now(ZoneInfo("Europe/Oslo")).date()
    facts.certified_mentor(facts.organisation(), today + timedelta(days=20), member_no="M1042", locale="en")
    name = facts.connection.info.dbname
    facts.connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    yield "M1042"
    assert facts.rows("SELECT count(*) FROM cert_notification_log") == [(0,)]
    assert facts.rows("SELECT count(*) FROM job_runs") == [(0,)]


def test_the_command_prints_the_message(certjob: Certjob, mentor: str) -> None:
    """Headers, an empty line, the text part; which one it is goes to stderr."""
    result = certjob("preview", mentor, CERTJOB_MAIL_FROM="HLF Øst <post@hlf.example>")

    assert result.returncode == 0, result
    assert_one_line(result, "the reminder that is due today, for the threshold 30", code=0, command="certjob preview")
    head, _, body = result.stdout.partition("\n\n")
    assert head.splitlines()[0] == "From: HLF Øst <post@hlf.example>"
    assert head.splitlines()[1] == "To: m1042@example.org"
    assert head.splitlines()[2].startswith("Subject: Your certificate expires in 20 days, on ")
    assert head.splitlines()[3] == "Message-ID: (given when the reminder is queued)"
    assert head.splitlines()[4:] == ["Reply-To: kontakt@hlf.example"]
    assert body.startswith(
        "Hello Kari Nordmann,\n\nThis is a reminder from HLF. Your certificate “likeperson” expires on "
    )
    assert body.endswith("\nKind regards\nHLF\n")


def test_the_headers_are_those_of_the_mail(certjob: Certjob, mentor: str, tmp_path: Path) -> None:
    """Each that is printed, but for those that a copy has of its own."""
    folder = {"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}", "CERTJOB_MAIL_FROM": "HLF <post@hlf.example>"}

    head = certjob("preview", mentor, **folder).stdout.partition("\n\n")[0]
    document = json.loads(certjob("preview", mentor, "--json", **folder).stdout)
    certjob("preview", mentor, "--send-to", "me@example.org", **folder)

    (message,) = mailbox.Maildir(tmp_path / "mail")
    printed = dict(line.split(": ", 1) for line in head.splitlines())
    assert {name: message[name] for name in ("From", "Reply-To")} == {
        name: printed[name] for name in ("From", "Reply-To")
    }
    assert document["reply_to"] == printed["Reply-To"] == "kontakt@hlf.example"


def test_what_it_says_beside_the_message_is_json_if_the_log_is(certjob: Certjob, mentor: str) -> None:
    """CERTJOB_LOG_FORMAT=json: each line on stderr is one object, this one too; no level holds it back."""
    result = certjob("preview", mentor, CERTJOB_LOG_FORMAT="json")

    line = json.loads(result.stderr)
    assert (result.returncode, line["level"], line["event"], line["command"]) == (0, "info", "note", "certjob preview")
    assert line["message"] == "the reminder that is due today, for the threshold 30"


def test_the_command_prints_the_page_alone(certjob: Certjob, mentor: str) -> None:
    """--html > file, in another language and for another day."""
    result = certjob("preview", mentor, "--html", "--locale", "nn", "--threshold", "-1")

    assert result.returncode == 0
    assert re.fullmatch(r"certjob preview: the reminder for the threshold -1, due \S+\n", result.stderr)
    assert result.stdout.startswith('<!doctype html>\n<html lang="nn">')
    assert result.stdout.endswith("</html>\n")
    assert "gjekk ut" in result.stdout


def test_the_command_prints_one_document(certjob: Certjob, mentor: str) -> None:
    """--json, with both parts."""
    result = certjob("preview", mentor, "--json", "--organisation", "hlf")

    document = json.loads(result.stdout)
    assert (result.returncode, result.stderr, document["outcome"]) == (0, "", "ok")
    assert (document["to"], document["threshold_days"], document["locale"]) == ("m1042@example.org", 30, "en")
    assert document["html"].startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["nobody"], "no mentor 'nobody'; give an id, a member number, an e-mail address or part of a name"),
        (["M1042", "--threshold", "31"], "--threshold 31 is none of hlf's, which are 60,30,14,7,1,-1"),
        (["M1042", "--locale", "se"], "'--locale': 'se' is not one of 'nb', 'nn', 'en'"),
        (["M1042", "--html", "--send-to", "me@example.org"], "leave out --json and --send-to"),
        (["M1042", "--send-to", "me"], "'--send-to': the address is no address that mail can be sent to"),
    ],
)
def test_the_command_says_in_a_line_what_is_not_there(
    certjob: Certjob, mentor: str, arguments: list[str], phrase: str
) -> None:
    """Exit 2, and nothing on stdout."""
    del mentor

    result = certjob("preview", *arguments)

    assert result.stdout == ""
    assert_one_line(result, phrase, code=2, command="certjob preview")


def test_no_order_to_the_terminal_comes_out_of_a_template(certjob: Certjob, mentor: str, tmp_path: Path) -> None:
    """A page that is shown is text."""
    (tmp_path / "reminder.en.txt").write_text("Subject\n\n\x1b[31mred {{ name }}\n")

    result = certjob("preview", mentor, CERTJOB_TEMPLATES_DIR=str(tmp_path))

    assert result.returncode == 0, result
    assert "\x1b" not in result.stdout
    assert "red Kari Nordmann" in result.stdout


def test_a_copy_goes_into_a_maildir(certjob: Certjob, mentor: str, tmp_path: Path) -> None:
    """And nowhere else: stdout is empty, the database as it was."""
    result = certjob(
        "preview", mentor, "--send-to", "me@example.org", CERTJOB_NOTIFY_URL=f"maildir:{tmp_path / 'mail'}"
    )

    assert (result.returncode, result.stdout) == (0, ""), result
    (message,) = mailbox.Maildir(tmp_path / "mail")
    subject = str(make_header(decode_header(message["Subject"])))
    assert message["To"] == "me@example.org"
    assert subject.startswith("[preview] Your certificate expires in 20\u00a0days")
    assert "certjob-preview-" in message["Message-ID"]


def test_a_copy_goes_through_the_mail_server(certjob: Certjob, mentor: str) -> None:
    """Over SMTP to that address only, with both parts."""
    box = Mailbox()
    with real_server(box) as server:
        result = certjob(
            "preview",
            mentor,
            "--send-to",
            "me@example.org",
            "--json",
            CERTJOB_NOTIFY_URL=f"smtp://{HOST}:{server.port}",
            CERTJOB_MAIL_FROM="post@hlf.example",
        )

    assert result.returncode == 0, result
    assert json.loads(result.stdout)["sent_to"] == "me@example.org"
    (envelope,) = box.envelopes
    assert envelope.rcpt_tos == ["me@example.org"]
    message = BytesParser(EmailMessage, policy=default).parsebytes(envelope.content)
    parts = [part.get_content() for kind in ("plain", "html") if (part := message.get_body((kind,)))]
    assert "Hello Kari Nordmann," in parts[0]
    assert "<p>Hello Kari Nordmann,</p>" in parts[1]


@pytest.mark.parametrize(
    ("answers", "phrase"),
    [
        ({"RCPT": b"550 no such user"}, "refused the recipient (550 no such user)"),
        ({"MAIL": b"550 not you"}, "refused the sender"),
        ({"END": b"451 later"}, "put the message off (451 later)"),
    ],
)
def test_a_server_that_does_not_take_it_is_exit_3(
    certjob: Certjob, mentor: str, answers: dict[str, bytes], phrase: str
) -> None:
    """Done, but somebody has to look; the server's words are in the line."""
    with scripted_server(answers) as server:
        result = certjob(
            "preview",
            mentor,
            "--send-to",
            "me@example.org",
            CERTJOB_NOTIFY_URL=f"smtp://{HOST}:{server.port}",
            CERTJOB_MAIL_FROM="post@hlf.example",
        )

    assert_one_line(result, "not sent: ", phrase, code=3, command="certjob preview")


def test_a_copy_needs_a_way_out(certjob: Certjob, mentor: str) -> None:
    """Exit 2, naming the variable."""
    result = certjob("preview", mentor, "--send-to", "me@example.org")

    assert_one_line(result, "CERTJOB_NOTIFY_URL is not set", code=2, command="certjob preview")
