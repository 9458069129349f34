"""A reminder before it is sent: which one is shown, that it reads as it will go out, and a copy for somebody else."""

import json
import mailbox
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

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


# What the night then sends is what was shown.


@pytest.mark.parametrize(("days", "optional"), [(60, False), (20, True), (0, False), (-1, False), (-10, True)])
def test_the_night_sends_what_was_shown(connection: Connection, facts: Facts, *, days: int, optional: bool) -> None:
    """Word for word, although the review, which pauses and queues, comes between the two."""
    organisation = facts.organisation(portal=None, optional_kinds=["likeperson"] if optional else [])
    mentor_id = facts.certified_mentor(organisation, TODAY + timedelta(days=days), locale="nn")
    shown = previewed(connection, mentor_id)
    channel = CollectingChannel()

    night(connection, channel=channel)

    (sent,) = channel.sent
    for part in ("subject", "text", "html", "to"):
        assert getattr(sent, part) == getattr(shown.message, part)
    assert not shown.queued


@pytest.mark.parametrize("cancel", [True, False])
def test_it_has_the_message_id_of_its_log_row_and_cycle(connection: Connection, facts: Facts, *, cancel: bool) -> None:
    """Of the queued one; an extension is a new cycle, as queueing will make it, and no repeat."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)
    channel = CollectingChannel()
    review(connection)
    queued = previewed(connection, mentor_id)
    ((log_id,),) = facts.rows("SELECT id FROM cert_notification_log")
    assert (queued.queued, queued.message.idempotency_key) == (True, f"reminder-{log_id}-0")

    night(connection, channel=channel)
    facts.connection.execute("UPDATE certificates SET expires_on = expires_on + 365")
    if cancel:  # a typo for a while, noticed before it was sent
        facts.connection.execute("UPDATE cert_notification_log SET status = 'cancelled', maybe_sent = true")
    later = TODAY + timedelta(days=365)
    extended = previewed(connection, mentor_id, today=later)
    night(connection, later, channel=channel)

    assert extended.message.idempotency_key == channel.sent[-1].idempotency_key == f"reminder-{log_id}-1"
    assert (extended.message.repeat, channel.sent[-1].repeat) == (False, False)


def test_after_an_unknown_outcome_it_says_that_it_may_be_a_repeat(connection: Connection, facts: Facts) -> None:
    """As the message will, also when the row was cancelled meanwhile and comes back."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS, locale="en")
    review(connection)
    for status in ("pending", "cancelled"):
        facts.connection.execute("UPDATE cert_notification_log SET maybe_sent = true, status = %s", (status,))
        assert "You may already have received this reminder" in previewed(connection, mentor_id).message.text


# Which one: the due reminder, else the next one; the most urgent of several kinds.


def test_the_one_that_is_due_and_once_sent_the_next_one(connection: Connection, facts: Facts) -> None:
    """With the days of its day; in another language on request, whatever the mentor's own is; any threshold as then."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)
    due = previewed(connection, mentor_id)
    assert what(due) == (30, "2026-03-10")
    assert "om 20\u00a0dager" in due.message.subject
    assert due.explanation == "the reminder that is due today, for the threshold 30"
    assert "Kind regards" in previewed(connection, mentor_id, locale="en").message.text

    night(connection, channel=CollectingChannel())

    shown = previewed(connection, mentor_id)
    assert what(shown) == (14, "2026-03-16")
    assert "om 14\u00a0dager" in shown.message.subject
    assert shown.explanation == "the next reminder, due 2026-03-16"
    for threshold, day, days in (
        (60, "2026-01-29", "om 60\u00a0dager"),
        (30, "2026-03-10", "om 20\u00a0dager"),
        (7, "2026-03-23", "om 7\u00a0dager"),
    ):
        past = previewed(connection, mentor_id, threshold_days=threshold)
        assert what(past) == (threshold, day)
        assert days in past.message.subject
    # The message after the expiry speaks of the pause that the night will have opened by then.
    assert "Derfor er du på pause nå" in previewed(connection, mentor_id, threshold_days=-1).message.text


def test_of_several_certificates_the_one_that_counts(connection: Connection, facts: Facts) -> None:
    """The most urgent kind; one still to begin from its first day on; not one that is renewed, or of years ago."""
    organisation = facts.organisation()
    several = facts.certified_mentor(organisation, IN_20_DAYS)
    facts.certificate(several, TODAY + timedelta(days=5), kind="kurs")
    facts.certificate(several, TODAY + timedelta(days=50), kind="førstehjelp")
    to_begin = facts.mentor(organisation)
    facts.certificate(to_begin, TODAY + timedelta(days=25), issued_on=TODAY + timedelta(days=5))
    renewed = facts.certified_mentor(organisation, IN_20_DAYS)
    facts.certificate(renewed, TODAY + timedelta(days=700), issued_on=TODAY)
    again = facts.mentor(organisation)
    facts.certificate(again, TODAY - timedelta(days=400), issued_on=TODAY - timedelta(days=800))
    facts.certificate(again, TODAY + timedelta(days=10), issued_on=TODAY - timedelta(days=300))

    assert what(previewed(connection, several)) == (7, "2026-03-10")
    assert what(previewed(connection, to_begin)) == (30, "2026-03-15")
    assert previewed(connection, renewed).message.expires_on == TODAY + timedelta(days=700)
    assert what(previewed(connection, again, threshold_days=60)) == (60, "2026-01-19")


def test_it_says_what_has_become_of_it(connection: Connection, facts: Facts) -> None:
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


def test_where_there_is_nothing_to_show_it_says_why(connection: Connection, facts: Facts) -> None:
    """A line, and exit 2: what was asked for is not there."""
    hlf = facts.organisation()
    bare = facts.mentor(hlf, member_no="M1042")
    assert refusal(connection, bare) == "M1042 of hlf has no certificate, and so nothing to be reminded of"
    left = facts.certified_mentor(hlf, IN_20_DAYS, left_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert "has left" in refusal(connection, left)
    quiet = facts.certified_mentor(facts.organisation("nhf", thresholds=[]), IN_20_DAYS)
    assert "nhf reminds nobody; `certjob organisation set nhf --thresholds" in refusal(connection, quiet)
    over = facts.certified_mentor(hlf, TODAY - timedelta(days=400))
    assert "no upcoming reminder; use --threshold" in refusal(connection, over)
    assert "its day was 2025-02-04" in previewed(connection, over, threshold_days=-1).explanation
    facts.certificate(bare, IN_20_DAYS, revoked_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert "no upcoming reminder" in refusal(connection, bare)
    assert "renewed or revoked" in refusal(connection, bare, threshold_days=30)
    for_ever = facts.certified_mentor(hlf, date.max)  # days past the calendar's end are no days
    assert what(previewed(connection, for_ever)) == (60, "9999-11-01")
    assert "no reminder for the threshold -1" in refusal(connection, for_ever, threshold_days=-1)
    with pytest.raises(UnknownMentorError):  # deleted meanwhile
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
    assert (first.to, first.kind, first.mentor_id) == ("me@example.org", "preview", NOBODY)
    assert first.subject == f"[førehandsvising] {shown.message.subject}"
    assert (first.text, first.html) == (shown.message.text, shown.message.html)
    assert len({m.idempotency_key for m in (first, second, shown.message)}) == 3


# The installed command.


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
    """Headers, an empty line, the text part; which one it is goes to stderr, as JSON if the log is."""
    result = certjob("preview", mentor, CERTJOB_MAIL_FROM="HLF Øst <post@hlf.example>")
    logged = json.loads(certjob("preview", mentor, CERTJOB_LOG_FORMAT="json").stderr)

    said = "the reminder that is due today, for the threshold 30"
    assert_one_line(result, said, code=0, command="certjob preview")
    assert (logged["level"], logged["event"], logged["command"]) == ("info", "note", "certjob preview")
    assert logged["message"] == said
    head, _, body = result.stdout.partition("\n\n")
    sender, to, subject, message_id, reply_to = head.splitlines()
    assert (sender, to) == ("From: HLF Øst <post@hlf.example>", "To: m1042@example.org")
    assert subject.startswith("Subject: Your certificate expires in 20 days, on ")
    assert message_id == "Message-ID: (given when the reminder is queued)"
    assert reply_to == "Reply-To: kontakt@hlf.example"
    assert body.startswith(
        "Hello Kari Nordmann,\n\nThis is a reminder from HLF. Your certificate “likeperson” expires on "
    )
    assert body.endswith("\nKind regards\nHLF\n")


def test_a_copy_has_the_headers_that_were_printed(certjob: Certjob, mentor: str, tmp_path: Path) -> None:
    """In a Maildir, and nowhere else: stdout is empty, the database as it was."""
    folder = {"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}", "CERTJOB_MAIL_FROM": "HLF <post@hlf.example>"}

    head = certjob("preview", mentor, **folder).stdout.partition("\n\n")[0]
    result = certjob("preview", mentor, "--send-to", "me@example.org", **folder)

    assert (result.returncode, result.stdout) == (0, ""), result
    (message,) = mailbox.Maildir(tmp_path / "mail")
    printed = dict(line.split(": ", 1) for line in head.splitlines())
    assert [message[name] for name in ("From", "Reply-To")] == [printed[name] for name in ("From", "Reply-To")]
    assert message["To"] == "me@example.org"
    subject = str(make_header(decode_header(message["Subject"])))
    assert subject.startswith("[preview] Your certificate expires in 20\u00a0days")
    assert "certjob-preview-" in message["Message-ID"]


def test_the_command_prints_the_page_alone_or_one_document(certjob: Certjob, mentor: str) -> None:
    """--html > file, in another language and for another day; --json, with both parts."""
    page = certjob("preview", mentor, "--html", "--locale", "nn", "--threshold", "-1")
    result = certjob("preview", mentor, "--json", "--organisation", "hlf")

    assert page.returncode == 0
    assert re.fullmatch(r"certjob preview: the reminder for the threshold -1, due \S+\n", page.stderr)
    assert page.stdout.startswith('<!doctype html>\n<html lang="nn">')
    assert page.stdout.endswith("</html>\n")
    assert "gjekk ut" in page.stdout
    document = json.loads(result.stdout)
    assert (result.returncode, result.stderr, document["outcome"]) == (0, "", "ok")
    assert (document["to"], document["threshold_days"], document["locale"]) == ("m1042@example.org", 30, "en")
    assert document["reply_to"] == "kontakt@hlf.example"
    assert document["html"].startswith("<!doctype html>")


def test_the_command_says_in_a_line_what_is_not_there(certjob: Certjob, mentor: str) -> None:
    """Exit 2, and nothing on stdout."""
    del mentor
    for arguments, phrase in (
        (["nobody"], "no mentor 'nobody'; give an id, a member number, an e-mail address or part of a name"),
        (["M1042", "--threshold", "31"], "--threshold 31 is none of hlf's, which are 60,30,14,7,1,-1"),
        (["M1042", "--locale", "se"], "'--locale': 'se' is not one of 'nb', 'nn', 'en'"),
        (["M1042", "--html", "--send-to", "me@example.org"], "leave out --json and --send-to"),
        (["M1042", "--send-to", "me"], "'--send-to': the address is not an address that mail can be sent to"),
        (["M1042", "--send-to", "me@example.org"], "CERTJOB_NOTIFY_URL is not set"),
    ):
        result = certjob("preview", *arguments)

        assert result.stdout == ""
        assert_one_line(result, phrase, code=2, command="certjob preview")


def test_no_order_to_the_terminal_comes_out_of_a_template(certjob: Certjob, mentor: str, tmp_path: Path) -> None:
    """A page that is shown is text."""
    (tmp_path / "reminder.en.txt").write_text("Subject\n\n\x1b[31mred {{ name }}\n")

    result = certjob("preview", mentor, CERTJOB_TEMPLATES_DIR=str(tmp_path))

    assert "\x1b" not in result.stdout
    assert "red Kari Nordmann" in result.stdout


def test_a_copy_goes_through_the_mail_server(certjob: Certjob, mentor: str) -> None:
    """To that address only, with both parts; a server that does not take it is exit 3, its words are in the line."""
    box = Mailbox()
    copy = ["preview", mentor, "--send-to", "me@example.org"]

    def smtp(port: int) -> dict[str, str]:
        return {"CERTJOB_NOTIFY_URL": f"smtp://{HOST}:{port}", "CERTJOB_MAIL_FROM": "post@hlf.example"}

    with real_server(box) as server:
        result = certjob(*copy, "--json", **smtp(server.port))
    assert (result.returncode, json.loads(result.stdout)["sent_to"]) == (0, "me@example.org"), result
    (envelope,) = box.envelopes
    assert envelope.rcpt_tos == ["me@example.org"]
    assert b"Hello Kari Nordmann," in envelope.content
    assert b"<p>Hello Kari Nordmann,</p>" in envelope.content
    for answers, phrase in (
        ({"RCPT": b"550 no such user"}, "refused the recipient (550 no such user)"),
        ({"MAIL": b"550 not you"}, "refused the sender"),
        ({"END": b"451 later"}, "put the message off (451 later)"),
    ):
        with scripted_server(answers) as scripted:
            refused = certjob(*copy, **smtp(scripted.port))
        assert_one_line(refused, "not sent: ", phrase, code=3, command="certjob preview")
