"""`certjob preview`: which reminder is shown, and that it is sent like this."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob.errors import ConfigurationError, RecipientRefusedError, UnknownMentorError
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


class Previews(Facts):
    def preview(self, mentor_id: UUID, threshold_days: int | None = None, locale: str | None = None) -> Preview:
        asked: dict[str, Any] = {"threshold_days": threshold_days, "locale": locale, "templates": OUR_TEMPLATES}
        return preview_reminder(self.connection, mentor_id, today=TODAY, **asked)

    def what(self, mentor_id: UUID, threshold_days: int | None = None) -> tuple[int | None, date]:
        """Return the threshold and the day of the preview."""
        shown = self.preview(mentor_id, threshold_days)
        return shown.message.threshold_days, shown.sends_on


@pytest.fixture
def facts(facts: Facts) -> Previews:
    return Previews(facts.connection)


@pytest.mark.parametrize(("days", "optional"), [(60, False), (20, True), (0, False), (-1, False), (-10, True)])
def test_run_sends_the_reminder_as_shown(facts: Previews, *, days: int, optional: bool) -> None:
    """Word for word, although the review in between pauses the mentor."""
    organisation = facts.organisation(portal=None, optional_kinds=["likeperson"] if optional else [])
    mentor_id = facts.certified_mentor(organisation, TODAY + days * DAY, locale="nn")
    shown, channel = facts.preview(mentor_id), CollectingChannel()

    night(facts.connection, channel=channel)

    (sent,) = channel.sent
    for part in ("subject", "text", "html", "to"):
        assert getattr(sent, part) == getattr(shown.message, part)


def test_preview_tells_a_possible_repeat_and_an_earlier_pause(facts: Previews) -> None:
    """A repeat is about the same last day."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), TODAY - DAY, locale="en")
    review(facts.connection)
    assert "We have therefore paused you as a peer mentor" in facts.preview(mentor_id).message.text
    for status in ("cancelled", "pending"):
        facts.connection.execute("UPDATE cert_notification_log SET maybe_sent = true, status = %s", (status,))
        assert "You may have received this reminder before" in facts.preview(mentor_id).message.text

    facts.connection.execute("UPDATE certificates SET expires_on = expires_on + 365")

    assert not facts.preview(mentor_id, -1).message.repeat


def test_due_reminder_is_shown_in_any_language(facts: Previews) -> None:
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)

    assert facts.what(mentor_id) == (30, TODAY)
    assert facts.preview(mentor_id).explanation == "the reminder that is due today, for the threshold 30"
    assert "Kind regards" in facts.preview(mentor_id, locale="en").message.text


def test_next_reminder_is_shown_after_the_due_one_was_sent(facts: Previews) -> None:
    """Each reminder counts the days of its own day. The last one tells the pause that a run will have opened."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)
    night(facts.connection, channel=CollectingChannel())
    facts.connection.execute("UPDATE cert_notification_log SET maybe_sent = true")

    assert not facts.preview(mentor_id, 30).message.repeat, "it was sent"
    assert facts.preview(mentor_id).explanation == "the next reminder, due 2026-03-16"
    for asked, threshold, day, words in (
        (None, 14, date(2026, 3, 16), "om 14\u00a0dager"),
        (60, 60, date(2026, 1, 29), "om 60\u00a0dager"),
        (30, 30, date(2026, 3, 10), "om 20\u00a0dager"),
    ):
        assert facts.what(mentor_id, asked) == (threshold, day)
        assert words in facts.preview(mentor_id, asked).message.subject
    assert "Derfor har vi satt deg på pause" in facts.preview(mentor_id, -1).message.text


def test_most_urgent_certificate_is_shown_first(facts: Previews) -> None:
    """Without a certificate that is renewed or ended years ago. A later one counts from its first day."""
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
    for_ever = facts.certified_mentor(organisation, date.max)  # some of its days lie after the end of the calendar

    for mentor_id, asked, threshold, day in (
        (several, None, 7, TODAY),
        (to_begin, None, 30, TODAY + 5 * DAY),
        (to_begin, 30, 30, TODAY + 5 * DAY),
        (renewed, None, 60, TODAY + 640 * DAY),
        (again, 60, 60, TODAY - 50 * DAY),
        (coming, 60, 60, TODAY + 100 * DAY),
        (for_ever, None, 60, date(9999, 11, 1)),
    ):
        assert facts.what(mentor_id, asked) == (threshold, day)


def test_outcome_of_a_past_reminder_is_told(facts: Previews) -> None:
    """Also of an earlier cycle, but not about another last day."""
    hlf = facts.organisation()
    sent = facts.certified_mentor(hlf, IN_20_DAYS)
    night(facts.connection, channel=CollectingChannel())
    refused = facts.certified_mentor(hlf, IN_20_DAYS)
    refusal = RecipientRefusedError("the mail server refused the recipient (550 gone)")
    night(facts.connection, channel=CollectingChannel(on_send=lambda _message: refusal))
    for mentor_id, threshold, phrase in (
        (sent, 30, "it has been sent"),
        (refused, None, "could not be delivered: the mail server refused"),
        (facts.certified_mentor(hlf, IN_20_DAYS, email=None), None, "no e-mail address"),
        (facts.certified_mentor(hlf, TODAY - 400 * DAY), -1, "its day was 2025-02-04"),
    ):
        assert phrase in facts.preview(mentor_id, threshold).explanation

    later = "UPDATE certificates SET expires_on = expires_on + %s WHERE mentor_id = ANY (%s)"
    facts.connection.execute(later, (365, [sent, refused]))
    assert "delivered" not in facts.preview(refused, 30).explanation
    night(facts.connection, TODAY + 365 * DAY, channel=CollectingChannel())
    facts.connection.execute(later, (-365, [sent]))
    assert "it has been sent" in facts.preview(sent, 30).explanation


def test_missing_reminder_has_a_reason(facts: Previews) -> None:
    hlf, nhf = facts.organisation(), facts.organisation("nhf", thresholds=[])
    over = facts.certified_mentor(hlf, TODAY - 400 * DAY)
    revoked = facts.mentor(hlf)
    facts.certificate(revoked, IN_20_DAYS, revoked_at=LONG_AGO)
    for mentor_id, threshold, phrase in (
        (facts.mentor(hlf, member_no="M1042"), None, "M1042 of hlf has no certificate, and gets no reminders"),
        (facts.certified_mentor(hlf, IN_20_DAYS, left_at=LONG_AGO), None, "has left"),
        (facts.certified_mentor(nhf, IN_20_DAYS), None, "nhf sends no reminders; `certjob organisation set nhf --thr"),
        (over, None, "no upcoming reminder; use --threshold"),
        (over, 31, "hlf has no threshold 31, but 60,30,14,7,1,-1"),
        (revoked, None, "no upcoming reminder"),
        (revoked, 30, "renewed or revoked"),
        (facts.certified_mentor(hlf, date.max), -1, "no reminder for the threshold -1"),
    ):
        with pytest.raises(ConfigurationError) as refusal:
            facts.preview(mentor_id, threshold)
        assert phrase in str(refusal.value)
    with pytest.raises(UnknownMentorError, match="has been deleted"):
        facts.preview(uuid4())


@pytest.fixture
def mentor(facts: Facts) -> Iterator[str]:
    """M1042, with 20 days left by the clock of this machine. The database is read-only and stays empty."""
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


def test_preview_prints_the_html_part_alone_or_a_document(here: Certjob, mentor: str) -> None:
    page = here("preview", mentor, "--html", "--locale", "nn", "--threshold", "-1")
    document = json.loads(here("preview", mentor, "--json", "--organisation", "hlf").stdout)

    assert_one_line(page, "the reminder for the threshold -1, due ", code=0, command="certjob preview")
    assert page.stdout.startswith('<!doctype html>\n<html lang="nn">')
    assert (page.stdout.endswith("</html>\n"), "gjekk ut" in page.stdout) == (True, True)
    assert (document["to"], document["threshold_days"], document["locale"]) == ("m1042@example.org", 30, "en")
    assert (document["reply_to"], document["html"][:15]) == ("kontakt@hlf.example", "<!doctype html>")
