"""A reminder before it is sent: which one is shown, that it reads as it will go out."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob.errors import ConfigurationError, RecipientRefusedError, UnknownMentorError
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.templates import OUR_TEMPLATES
from certjob.reports.preview import Preview, preview_reminder
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, today
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, night, review

DAY = timedelta(days=1)
IN_20_DAYS = TODAY + 20 * DAY
"""The threshold 30 is due, the next one is 14."""
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def previewed(facts: Facts, mentor_id: UUID, threshold_days: int | None = None, locale: str | None = None) -> Preview:
    asked: dict[str, Any] = {"threshold_days": threshold_days, "locale": locale, "templates": OUR_TEMPLATES}
    return preview_reminder(facts.connection, mentor_id, today=TODAY, **asked)


def what(preview: Preview) -> tuple[int | None, str]:
    """Threshold and day."""
    return preview.message.threshold_days, str(preview.sends_on)


@pytest.mark.parametrize(("days", "optional"), [(60, False), (20, True), (0, False), (-1, False), (-10, True)])
def test_the_night_sends_what_was_shown(facts: Facts, *, days: int, optional: bool) -> None:
    """Word for word, although the review, which pauses and queues, comes between the two."""
    organisation = facts.organisation(portal=None, optional_kinds=["likeperson"] if optional else [])
    mentor_id = facts.certified_mentor(organisation, TODAY + days * DAY, locale="nn")
    shown, channel = previewed(facts, mentor_id), CollectingChannel()

    night(facts.connection, channel=channel)

    (sent,) = channel.sent
    for part in ("subject", "text", "html", "to"):
        assert getattr(sent, part) == getattr(shown.message, part)


def test_it_says_that_it_may_be_a_repeat_and_that_the_mentor_is_paused(facts: Facts) -> None:
    """As long as the reminder is about that last day; a pause of an earlier night is one, too."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), TODAY - DAY, locale="en")
    review(facts.connection)
    assert "We have therefore paused you as a peer mentor" in previewed(facts, mentor_id).message.text
    for status in ("cancelled", "pending"):
        facts.connection.execute("UPDATE cert_notification_log SET maybe_sent = true, status = %s", (status,))
        assert "You may have received this reminder before" in previewed(facts, mentor_id).message.text

    facts.connection.execute("UPDATE certificates SET expires_on = expires_on + 365")
    assert not previewed(facts, mentor_id, -1).message.repeat


def test_the_one_that_is_due_and_once_sent_the_next_one(facts: Facts) -> None:
    """With the days of its day; in another language on request, whatever the mentor's own is; any threshold as then."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)
    due = previewed(facts, mentor_id)
    assert (what(due), due.explanation) == ((30, "2026-03-10"), "the reminder that is due today, for the threshold 30")
    assert "Kind regards" in previewed(facts, mentor_id, locale="en").message.text

    night(facts.connection, channel=CollectingChannel())

    facts.connection.execute(
        "UPDATE cert_notification_log SET maybe_sent = true"
    )  # it was a repeat: the preview is not
    assert not previewed(facts, mentor_id, 30).message.repeat
    assert previewed(facts, mentor_id).explanation == "the next reminder, due 2026-03-16"
    for asked, threshold, day, days in (
        (None, 14, "2026-03-16", "om 14\u00a0dager"),
        (60, 60, "2026-01-29", "om 60\u00a0dager"),
        (30, 30, "2026-03-10", "om 20\u00a0dager"),
    ):
        shown = previewed(facts, mentor_id, asked)
        assert (what(shown), days in shown.message.subject) == ((threshold, day), True)
    # The message after the expiry speaks of the pause that the night will have opened by then.
    assert "Derfor har vi satt deg på pause" in previewed(facts, mentor_id, -1).message.text


def test_of_several_certificates_the_one_that_counts(facts: Facts) -> None:
    """The most urgent kind; one still to begin from its first day on; not one that is renewed, or of years ago."""
    organisation = facts.organisation()
    several = facts.certified_mentor(organisation, IN_20_DAYS)
    facts.certificate(several, TODAY + 5 * DAY, kind="kurs")
    facts.certificate(several, TODAY + 50 * DAY, kind="førstehjelp")
    to_begin = facts.mentor(organisation)
    facts.certificate(to_begin, TODAY + 25 * DAY, issued_on=TODAY + 5 * DAY)
    renewed = facts.certified_mentor(organisation, IN_20_DAYS)
    facts.certificate(renewed, TODAY + 700 * DAY, issued_on=TODAY)
    again = facts.certified_mentor(organisation, TODAY + 10 * DAY)
    facts.certificate(again, TODAY - 400 * DAY, issued_on=TODAY - 800 * DAY)
    coming = facts.certified_mentor(organisation, IN_20_DAYS)
    facts.certificate(coming, TODAY + 160 * DAY, kind="kurs")  # the other one's day is nearer, and past
    for_ever = facts.certified_mentor(organisation, date.max)  # days past the calendar's end are no days

    for mentor_id, asked, threshold, day in (
        (several, None, 7, TODAY),
        (to_begin, None, 30, TODAY + 5 * DAY),
        (to_begin, 30, 30, TODAY + 5 * DAY),
        (renewed, None, 60, TODAY + 640 * DAY),
        (again, 60, 60, TODAY - 50 * DAY),
        (coming, 60, 60, TODAY + 100 * DAY),
        (for_ever, None, 60, date(9999, 11, 1)),
    ):
        assert what(previewed(facts, mentor_id, asked)) == (threshold, str(day))


def test_it_says_what_has_become_of_it_or_why_there_is_none(facts: Facts) -> None:
    """Sent, or refused, or without an address; what was asked for and is not there is a line, and exit 2."""
    hlf, nhf = facts.organisation(), facts.organisation("nhf", thresholds=[])
    sent = facts.certified_mentor(hlf, IN_20_DAYS)
    night(facts.connection, channel=CollectingChannel())
    refused = facts.certified_mentor(hlf, IN_20_DAYS)

    def refuse(_message: OutgoingMessage) -> None:
        text = "the mail server refused the recipient (550 gone)"
        raise RecipientRefusedError(text)

    night(facts.connection, channel=CollectingChannel(on_send=refuse))
    over = facts.certified_mentor(hlf, TODAY - 400 * DAY)
    for mentor_id, threshold, phrase in (
        (sent, 30, "it has been sent"),
        (refused, None, "could not be delivered: the mail server refused"),
        (facts.certified_mentor(hlf, IN_20_DAYS, email=None), None, "no e-mail address"),
        (over, -1, "its day was 2025-02-04"),
    ):
        assert phrase in previewed(facts, mentor_id, threshold).explanation
    later = "UPDATE certificates SET expires_on = expires_on + %s WHERE mentor_id = ANY (%s)"
    facts.connection.execute(later, (365, [sent, refused]))
    assert "delivered" not in previewed(facts, refused, 30).explanation, "that was about another day"
    night(facts.connection, TODAY + 365 * DAY, channel=CollectingChannel())
    facts.connection.execute(later, (-365, [sent]))
    assert "it has been sent" in previewed(facts, sent, 30).explanation, "in an earlier cycle"

    revoked = facts.mentor(hlf)
    facts.certificate(revoked, IN_20_DAYS, revoked_at=LONG_AGO)
    for mentor_id, threshold, phrase in (
        (facts.mentor(hlf, member_no="M1042"), None, "M1042 of hlf has no certificate, and gets no reminders"),
        (facts.certified_mentor(hlf, IN_20_DAYS, left_at=LONG_AGO), None, "has left"),
        (
            facts.certified_mentor(nhf, IN_20_DAYS),
            None,
            "sends no reminders; `certjob organisation set nhf --thresholds",
        ),
        (over, None, "no upcoming reminder; use --threshold"),
        (over, 31, "hlf has no threshold 31, but 60,30,14,7,1,-1"),
        (revoked, None, "no upcoming reminder"),
        (revoked, 30, "renewed or revoked"),
        (facts.certified_mentor(hlf, date.max), -1, "no reminder for the threshold -1"),
    ):
        with pytest.raises(ConfigurationError) as refusal:
            previewed(facts, mentor_id, threshold)
        assert phrase in str(refusal.value)
    with pytest.raises(UnknownMentorError):  # deleted meanwhile
        previewed(facts, uuid4())


@pytest.fixture
def mentor(facts: Facts) -> Iterator[str]:
    """M1042, with 20 days left today, whichever day it is; nothing but reading may happen to the database."""
    facts.certified_mentor(facts.organisation(), today() + 20 * DAY, member_no="M1042", locale="en")
    name = facts.connection.info.dbname
    facts.connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    yield "M1042"
    assert facts.rows("SELECT FROM cert_notification_log UNION ALL SELECT FROM job_runs") == []


def test_preview_prints_headers_and_text(here: Certjob, mentor: str, tmp_path: Path) -> None:
    """The explanation goes to stderr, as a JSON line if the log is JSON."""
    settings = {"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}", "CERTJOB_MAIL_FROM": "HLF Øst <post@hlf.example>"}
    result = here("preview", mentor, **settings)
    logged = json.loads(here("preview", mentor, CERTJOB_LOG_FORMAT="json").stderr)

    said = "the reminder that is due today, for the threshold 30"
    assert_one_line(result, said, code=0, command="certjob preview")
    assert (logged["level"], logged["event"], logged["message"]) == ("info", "note", said)
    assert result.stdout.startswith("From: HLF Øst <post@hlf.example>\nTo: m1042@example.org\nSubject: Your certif")
    assert "\nReply-To: kontakt@hlf.example\n" in result.stdout


def test_the_command_prints_the_page_alone_or_one_document(here: Certjob, mentor: str) -> None:
    """--html > file, in another language and for another day; --json, with both parts."""
    page = here("preview", mentor, "--html", "--locale", "nn", "--threshold", "-1")
    document = json.loads(here("preview", mentor, "--json", "--organisation", "hlf").stdout)

    assert_one_line(page, "the reminder for the threshold -1, due ", code=0, command="certjob preview")
    assert page.stdout.startswith('<!doctype html>\n<html lang="nn">')
    assert (page.stdout.endswith("</html>\n"), "gjekk ut" in page.stdout) == (True, True)
    assert (document["to"], document["threshold_days"], document["locale"]) == ("m1042@example.org", 30, "en")
    assert (document["reply_to"], document["html"][:15]) == ("kontakt@hlf.example", "<!doctype html>")
