"""A mail that came back is an alert and in the digest, and is sent again after the address is corrected."""

import json
import re

import pytest

from certjob.domain.addresses import parse_sender
from certjob.mail.bounces import LARGEST_REPORT_OCTETS, ReportResult, take_report
from certjob.mail.message import OutgoingMessage, message_id
from certjob.reports.alerts import read_alerts
from tests.conftest import Certjob
from tests.mail.conftest import Mailing
from tests.support.bounces import exim, in_utf8, microsoft_365, postfix
from tests.support.facts import TODAY

KARI, BERIT = "kari@example.org", "berit@example.org"
ROWS = "SELECT status, failure_code, claim_token FROM cert_notification_log ORDER BY id"
WHOLE = "SELECT l::text FROM cert_notification_log AS l UNION ALL SELECT d::text FROM coordinator_digests AS d"
BOUNCED = [("failed", "wrong_address", None)]


def one(mailing: Mailing, kind: str, number: int = 0) -> OutgoingMessage:
    """Run a night and return its only message of this kind."""
    (message,) = (message for message in mailing.mails(number) if message.kind == kind)
    return message


def id_of(message: OutgoingMessage) -> str:
    return message_id(message.idempotency_key, sender=parse_sender("post@example.org"))


@pytest.fixture
def sent(mailing: Mailing) -> str:
    """The Message-ID of Kari's reminder, which a mail server has accepted."""
    mailing.coordinator(BERIT)
    mailing.certified(until=5, email=KARI)
    mailing.review()
    mailing.stage()
    return id_of(mailing.sent[0])


def test_returned_reminder_fails_until_the_address_is_corrected(mailing: Mailing, sent: str) -> None:
    """Operators read the server's words without the address. A report about the old address has no effect."""
    assert take_report(mailing.connection, postfix(sent, KARI)) is ReportResult.BOUNCED

    assert mailing.rows(ROWS) == BOUNCED
    (alert,) = read_alerts(mailing.connection, today=TODAY)
    assert str(alert.error).startswith("the mail came back (5.1.1 550 5.1.1")
    assert "kari" not in str(alert.error)
    assert "postadressen er feil eller kan ikke brukes." in one(mailing, "digest", 1).text
    mailing.execute("UPDATE mentors SET email = 'kari.n@example.org'")
    again = one(mailing, "reminder", 2)
    assert (again.to, id_of(again), again.repeat) == ("kari.n@example.org", sent, False)
    assert take_report(mailing.connection, postfix(sent, KARI)) is ReportResult.NOT_OURS
    assert mailing.rows(ROWS) == [("sent", None, None)]


def test_report_of_each_mail_server_is_read(mailing: Mailing, sent: str) -> None:
    """RFC 6533 has other content types for any letters, and servers return only the headers of a large mail."""
    mailing.execute("UPDATE mentors SET email = 'kåre@blåkors.example'")
    in_dns = "Kåre@XN--blkors-jua.example"
    headers = postfix(sent, in_dns, returned="text/rfc822-headers")
    for report in (exim(sent, in_dns), microsoft_365(sent, in_dns), headers, in_utf8(sent, "kåre@blåkors.example")):
        mailing.execute("UPDATE cert_notification_log SET status = 'sent'")
        assert take_report(mailing.connection, report) is ReportResult.BOUNCED


@pytest.mark.parametrize(
    ("state", "is_bounced"),
    [
        ("'pending', maybe_sent = true", True),
        ("'pending', claim_token = gen_random_uuid()", True),  # the report came before the settle
        ("'pending'", False),
        ("'cancelled'", False),
    ],
)
def test_only_a_reminder_that_may_have_been_sent_fails(
    mailing: Mailing, sent: str, state: str, *, is_bounced: bool
) -> None:
    """A report ends the claim of a mail that was not settled yet."""
    mailing.execute(f"UPDATE cert_notification_log SET status = {state}")

    verdict = take_report(mailing.connection, postfix(sent, KARI))

    assert (verdict is ReportResult.BOUNCED) == is_bounced
    assert (mailing.rows(ROWS) == BOUNCED) == is_bounced


def test_other_reports_change_nothing(mailing: Mailing, sent: str) -> None:
    """Delayed, foreign, forged, broken and huge ones."""
    good = postfix(sent, KARI)
    nested = b"".join(b'Content-Type: multipart/report; boundary="%d"\n\n--%d\n' % (n, n) for n in range(1000))
    reports = {
        ReportResult.NOT_FAILED: [postfix(sent, KARI, action="delayed", status="4.4.1")],
        ReportResult.NOT_OURS: [
            postfix(sent, "kari@example.org.evil.example"),
            postfix("<4711@shop.example>", KARI),
            postfix("<certjob-reminder-999999-0123456789abcdef@example.org>", KARI),
            postfix(re.sub(r"-[0-9a-f]{16}@", "-0123456789abcdef@", sent), KARI),
            postfix("<certjob-reminder-9999999999999999999-0123456789abcdef@example.org>", KARI),
            postfix("<certjob-digest-999999-1-0123456789abcdef@example.org>", KARI),
        ],
        ReportResult.UNREADABLE: [
            f"Subject: Undeliverable\r\n\r\n{sent} to {KARI} failed".encode(),
            good.replace(b"message/delivery-status", b"text/plain"),
            good.replace(b"Final-Recipient", b"Recipient"),
            good + b"x" * LARGEST_REPORT_OCTETS,
            nested,
        ],
    }
    before = mailing.rows(WHOLE)

    for verdict, data in reports.items():
        assert [take_report(mailing.connection, each) for each in data] == [verdict] * len(data)

    assert mailing.rows(WHOLE) == before


@pytest.mark.parametrize("status", ["5.2.2", "5.7.1", "5.4.4"])
def test_mail_that_came_back_with_a_right_address_is_tried_again_a_day_later(
    mailing: Mailing, sent: str, status: str
) -> None:
    """The mailbox is full, or a server on the way is at fault. The reminder is cancelled when it is outdated."""
    full = postfix(sent, KARI, status=status)
    assert take_report(mailing.connection, full) is ReportResult.BOUNCED

    due_in = "ceil(extract(epoch FROM next_attempt_at - now()) / 3600)"
    assert mailing.rows(f"SELECT status, failure_code, {due_in} FROM cert_notification_log") == [
        ("pending", "mail_delayed", 24)
    ]
    mailing.make_due()
    assert id_of(one(mailing, "reminder", 1)) == sent
    assert take_report(mailing.connection, full) is ReportResult.BOUNCED
    mailing.make_due()
    mailing.stage(number=6)
    assert mailing.rows("SELECT status, last_error FROM cert_notification_log") == [("cancelled", "too late")]


def test_digest_for_a_full_mailbox_is_tried_again_a_day_later(desk: Mailing) -> None:
    desk.ended("Ola Hansen")
    digest = id_of(one(desk, "digest"))

    assert take_report(desk.connection, postfix(digest, BERIT, status="5.2.2")) is ReportResult.BOUNCED

    assert desk.rows("SELECT status, failure_code FROM coordinator_digests") == [("pending", "mail_delayed")]
    assert "Ola Hansen" in one(desk, "digest", 1).text


def test_returned_digest_goes_to_the_corrected_address(desk: Mailing) -> None:
    """No one has read it, so it replaces the open digest and reports the contents of both."""
    desk.ended("Ola Hansen")
    digest = id_of(one(desk, "digest"))
    desk.certified("Per Berg", until=0)
    desk.mails(1, deliver=False)

    forged = re.sub(r"-[0-9a-f]{16}@", "-0123456789abcdef@", digest)
    reports = [postfix(digest, "someone@example.org"), postfix(forged, BERIT), *[postfix(digest, BERIT)] * 2]
    read = [take_report(desk.connection, report).value for report in reports]
    assert read == ["not_ours", "not_ours", "bounced", "not_ours"]

    assert desk.rows("SELECT status FROM coordinator_digests ORDER BY id") == [("failed",), ("superseded",)]
    assert [alert.cause for alert in read_alerts(desk.connection, today=TODAY)] == ["wrong_address"]
    desk.execute("UPDATE coordinators SET email = 'berit.n@example.org'")
    again = one(desk, "digest", 1)
    assert (again.to, "Ola Hansen" in again.text, "Per Berg" in again.text) == ("berit.n@example.org", True, True)


def test_bounces_reads_one_report_from_standard_input(here: Certjob, mailing: Mailing, sent: str) -> None:
    """Some mail servers add the first line of an mbox. The command prints a result only with ``--json``."""
    report = b"From MAILER-DAEMON Tue Mar 10 08:00:07 2026\n" + exim(sent, KARI)

    quiet = here("bounces", given=report)

    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert mailing.rows(ROWS) == BOUNCED
    mailing.execute("UPDATE cert_notification_log SET status = 'sent'")
    assert json.loads(here("bounces", "--json", given=report).stdout) == {"outcome": "ok", "report": "bounced"}
    too_large = here("bounces", "--json", given=b"x" * (3 * LARGEST_REPORT_OCTETS))
    assert (too_large.returncode, json.loads(too_large.stdout)["report"]) == (0, "unreadable")


@pytest.mark.parametrize("url", ["postgresql://certjob@127.0.0.1:1/certjob", ""], ids=["away", "not set"])
def test_bounces_exits_75_if_the_report_was_not_saved(here: Certjob, url: str) -> None:
    """The mail server then keeps the report and retries."""
    away = here("bounces", given=b"Hello", CERTJOB_DATABASE_URL=url)

    assert (away.returncode, away.stderr[:17], away.stderr.count("\n")) == (75, "certjob bounces: ", 1)
