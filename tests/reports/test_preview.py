"""`certjob preview`: which reminder is shown, and that it is sent like this."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from certjob.errors import ConfigurationError, RecipientRejectedError
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


def preview(facts: Facts, mentor_id: UUID, threshold_days: int | None = None, locale: str | None = None) -> Preview:
    asked: dict[str, Any] = {"threshold_days": threshold_days, "locale": locale, "templates": OUR_TEMPLATES}
    return preview_reminder(facts.connection, mentor_id, today=TODAY, **asked)


@pytest.mark.parametrize("days", [20, -1], ids=["while certified", "after the last day"])
def test_run_sends_the_reminder_as_shown(facts: Facts, days: int) -> None:
    """Word for word, although the review in between pauses the mentor."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), TODAY + days * DAY, locale="nn")
    shown, channel = preview(facts, mentor_id).message, CollectingChannel()

    night(facts.connection, channel=channel)

    (sent,) = channel.sent
    assert (sent.to, sent.subject, sent.text, sent.html) == (shown.to, shown.subject, shown.text, shown.html)


def test_preview_tells_a_possible_repeat(facts: Facts) -> None:
    """A reminder about another last day is not a repeat."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), TODAY - DAY, locale="en")
    review(facts.connection)
    facts.connection.execute("UPDATE cert_notification_log SET maybe_sent = true")
    assert "You may have received this reminder before" in preview(facts, mentor_id).message.text

    facts.connection.execute("UPDATE certificates SET expires_on = expires_on + 365")

    assert not preview(facts, mentor_id, -1).message.repeat


def test_due_reminder_is_shown_until_it_was_sent_then_the_next_one(facts: Facts) -> None:
    """Each counts the days from the day of its sending, in the language asked for or else in the mentor's."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)
    due = preview(facts, mentor_id, locale="en")
    night(facts.connection, channel=CollectingChannel())

    coming = preview(facts, mentor_id)

    assert due.explanation == "the reminder that is due today, for the threshold 30"
    assert (due.message.threshold_days, due.sends_on, "Kind regards" in due.message.text) == (30, TODAY, True)
    assert coming.explanation == "the next reminder, due 2026-03-16"
    assert (coming.message.threshold_days, "om 14\u00a0dager" in coming.message.subject) == (14, True)


def test_most_urgent_certificate_is_shown_first(facts: Facts) -> None:
    """A renewed one is left out. The reminders of an upcoming one start on its first day."""
    organisation = facts.organisation()
    several = facts.certified_mentor(organisation, IN_20_DAYS)
    facts.certificate(several, TODAY + 5 * DAY, kind="kurs")
    facts.certificate(several, TODAY + 50 * DAY, kind="førstehjelp")
    upcoming = facts.mentor(organisation)
    facts.certificate(upcoming, TODAY + 25 * DAY, issued_on=TODAY + 5 * DAY)
    renewed = facts.certified_mentor(organisation, IN_20_DAYS)
    facts.certificate(renewed, TODAY + 700 * DAY, issued_on=TODAY)

    for mentor_id, threshold, day in (
        (several, 7, TODAY),
        (upcoming, 30, TODAY + 5 * DAY),
        (renewed, 60, TODAY + 640 * DAY),
    ):
        shown = preview(facts, mentor_id)
        assert (shown.message.threshold_days, shown.sends_on) == (threshold, day)


def test_explanation_says_why_a_reminder_will_not_be_sent(facts: Facts) -> None:
    hlf = facts.organisation()
    sent = facts.certified_mentor(hlf, IN_20_DAYS)
    night(facts.connection, channel=CollectingChannel())
    rejected = facts.certified_mentor(hlf, IN_20_DAYS)
    rejection = RecipientRejectedError("the mail server rejected the recipient (550 gone)")
    night(facts.connection, channel=CollectingChannel(on_send=lambda _message: rejection))

    for mentor_id, threshold, phrase in (
        (sent, 30, "it has been sent"),
        (rejected, None, "could not be delivered: the mail server rejected"),
        (facts.certified_mentor(hlf, IN_20_DAYS, email=None), None, "no e-mail address"),
        (facts.certified_mentor(hlf, TODAY - 400 * DAY), -1, "its day was 2025-02-04"),
    ):
        assert phrase in preview(facts, mentor_id, threshold).explanation


def test_missing_reminder_has_a_reason(facts: Facts) -> None:
    hlf, nhf = facts.organisation(), facts.organisation("nhf", thresholds=[])
    over = facts.certified_mentor(hlf, TODAY - 400 * DAY)
    revoked = facts.mentor(hlf)
    facts.certificate(revoked, IN_20_DAYS, revoked_at=LONG_AGO)

    for mentor_id, threshold, phrase in (
        (facts.mentor(hlf, member_no="M1042"), None, "M1042 of hlf has no upcoming reminder"),
        (facts.certified_mentor(hlf, IN_20_DAYS, left_at=LONG_AGO), None, "no upcoming reminder"),
        (facts.certified_mentor(nhf, IN_20_DAYS), None, "no upcoming reminder; see `certjob explain "),
        (over, None, "or use --threshold with 60, 30, 14, 7, 1, -1"),
        (over, 31, "no reminder for the threshold 31; see"),
        (revoked, 30, "no reminder for the threshold 30"),
    ):
        with pytest.raises(ConfigurationError) as rejection:
            preview(facts, mentor_id, threshold)
        assert phrase in str(rejection.value)


@pytest.fixture
def mentor(facts: Facts) -> Iterator[str]:
    """M1042, with 20 days left by the clock of this machine. The database is read-only."""
    facts.certified_mentor(facts.organisation(), today() + 20 * DAY, member_no="M1042", locale="en")
    name = facts.connection.info.dbname
    facts.connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    yield "M1042"
    assert facts.rows("SELECT FROM cert_notification_log UNION ALL SELECT FROM job_runs") == []


def test_preview_prints_headers_and_text(here: Certjob, mentor: str, tmp_path: Path) -> None:
    """The explanation goes to stderr."""
    settings = {"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}", "CERTJOB_MAIL_FROM": "HLF Øst <post@hlf.example>"}

    result = here("preview", mentor, **settings)

    said = "the reminder that is due today, for the threshold 30"
    assert_one_line(result, said, code=0, command="certjob preview")
    assert result.stdout.startswith("From: HLF Øst <post@hlf.example>\nTo: m1042@example.org\nSubject: Your certif")
    assert "\nReply-To: kontakt@hlf.example\n" in result.stdout


def test_preview_document_has_the_html_part(here: Certjob, mentor: str) -> None:
    shown = json.loads(here("preview", mentor, "--locale", "nn", "--threshold", "-1", "--json").stdout)

    assert shown["explanation"].startswith("the reminder for the threshold -1, due ")
    assert shown["html"].startswith('<!doctype html>\n<html lang="nn">')
    assert "gjekk ut" in shown["html"]


def test_coordinator_gets_the_digest_as_shown(here: Certjob, facts: Facts) -> None:
    """The preview sends and stores no mail. After the digest was sent, it says that there is no news."""
    home = facts.organisation(portal=None, thresholds=())
    facts.insert("coordinators", organisation_id=home, full_name="Berit", email="berit@hlf.example", locale="nb")
    facts.certified_mentor(home, today() - DAY, full_name="Ola Hansen")
    review(facts.connection, today())

    shown = json.loads(here("preview", "--digest", "Berit@HLF.example", "--json").stdout)
    assert facts.rows("SELECT count(*) FROM coordinator_digests") == [(0,)]
    channel = CollectingChannel()
    night(facts.connection, today(), channel=channel)
    again = here("preview", "--digest", "berit@hlf.example")

    (sent,) = channel.sent
    assert (sent.subject, sent.text, sent.html) == (shown["subject"], shown["text"], shown["html"])
    assert "Ola Hansen" in sent.text
    assert "nothing is new since the digest of" in again.stderr


def test_preview_of_a_digest_needs_one_coordinator(here: Certjob, facts: Facts) -> None:
    for slug in ("hlf", "nhf"):
        facts.insert("coordinators", organisation_id=facts.organisation(slug), email="b@hlf.example", locale="nb")
    several = "several coordinators have this address: hlf, nhf; name one with --organisation"

    for arguments, said in (
        ("--digest nobody@hlf.example", "no coordinator has this address"),
        ("--digest b@hlf.example", several),
        ("", "preview takes a mentor"),
        ("M1 --digest b@hlf.example", "preview takes a mentor"),
        ("--digest b@hlf.example --threshold 30", "preview takes a mentor"),
    ):
        assert_one_line(here("preview", *arguments.split()), said, code=2, command="certjob preview")
    assert here("preview", "--digest", "b@hlf.example", "--organisation", "nhf").returncode == 0
