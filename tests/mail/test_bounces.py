"""Mails that came back: an alert, a line in the digest, and sent again once the address is corrected."""

import json
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.mail.bounces import LARGEST_REPORT_OCTETS, Verdict, take_report
from certjob.mail.message import OutgoingMessage, message_id
from certjob.views.alerts import read_alerts
from tests.conftest import Certjob
from tests.support.bounces import exim, in_utf8, microsoft_365, postfix
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night

KARI, BERIT = "kari@example.org", "berit@example.org"
ROWS = "SELECT status, failure_code, claim_token FROM cert_notification_log ORDER BY id"
WHOLE = "SELECT l::text FROM cert_notification_log AS l UNION ALL SELECT d::text FROM coordinator_digests AS d"
BOUNCED = [("failed", "bounced", None)]

by_each_server = pytest.mark.parametrize("write", [postfix, exim, microsoft_365])
Write = Callable[[str, str], bytes]


@pytest.fixture
def organisation(connection: Connection, facts: Facts) -> UUID:
    organisation = facts.organisation("nhf", portal=None)
    connection.execute("INSERT INTO coordinators (organisation_id, email) VALUES (%s, %s)", (organisation, BERIT))
    return organisation


@pytest.fixture
def sent(connection: Connection, facts: Facts, organisation: UUID) -> str:
    """The Message-ID of Kari's reminder, which a mail server has taken."""
    facts.certified_mentor(organisation, TODAY + timedelta(days=5), email=KARI, full_name="Kari Nordmann")
    return message_id_of(deliver(connection, kind="reminder"))


@pytest.fixture
def digest(connection: Connection, facts: Facts, organisation: UUID) -> str:
    """The Message-ID of one that was sent, and tells of a pause."""
    facts.certified_mentor(organisation, TODAY - timedelta(days=1), full_name="Ola Hansen")
    return message_id_of(deliver(connection, kind="digest"))


def message_id_of(message: OutgoingMessage) -> str:
    """As a channel writes it."""
    return message_id(message.idempotency_key, sender=parse_sender("post@example.org"))


def deliver(connection: Connection, days: int = 0, *, kind: str) -> OutgoingMessage:
    """The one message of the kind that a night sends, so many days on."""
    channel = CollectingChannel()
    night(connection, TODAY + timedelta(days=days), portal=FlakyPortal(), channel=channel)
    (message,) = (message for message in channel.sent if message.kind == kind)
    return message


@by_each_server
def test_a_reminder_has_failed_and_is_sent_again_once_the_address_is_corrected(
    connection: Connection, facts: Facts, sent: str, write: Write
) -> None:
    """People hear of it with the server's words, without the address. A second report about the old one is nothing."""
    assert take_report(connection, write(sent, KARI)) is Verdict.BOUNCED

    assert facts.rows(ROWS) == BOUNCED
    (alert,) = read_alerts(connection, today=TODAY).failed_reminders
    assert str(alert.error).startswith("the mail came back (5.")
    assert (" 550 5.1.1" in str(alert.error), "kari" in str(alert.error)) == (True, False)
    assert "Meldingen ble sendt, men kom i retur (5." in deliver(connection, 1, kind="digest").text
    connection.execute("UPDATE mentors SET email = 'kari.n@example.org'")
    again = deliver(connection, 2, kind="reminder")
    assert (again.to, message_id_of(again), again.repeat) == ("kari.n@example.org", sent, False)
    assert take_report(connection, write(sent, KARI)) is Verdict.NOT_OURS
    assert facts.rows(ROWS) == [("sent", None, None)]


def test_what_was_or_may_have_been_sent_has_failed_and_nothing_else(
    connection: Connection, facts: Facts, sent: str
) -> None:
    """A report faster than the settle ends the claim. After an extension in place the row is about another mail."""
    for change, verdict in {
        "'pending', maybe_sent = true": Verdict.BOUNCED,
        "'pending', claim_token = gen_random_uuid()": Verdict.BOUNCED,
        "'cancelled'": Verdict.NOT_OURS,
        "'superseded'": Verdict.NOT_OURS,
        "'failed'": Verdict.NOT_OURS,
        "'pending'": Verdict.NOT_OURS,
    }.items():
        connection.execute("UPDATE cert_notification_log SET maybe_sent = false, failure_code = NULL")
        connection.execute(f"UPDATE cert_notification_log SET status = {change}".encode())
        before = facts.rows(WHOLE)
        assert take_report(connection, postfix(sent, KARI)) is verdict, change
        assert facts.rows(ROWS) == BOUNCED if verdict is Verdict.BOUNCED else facts.rows(WHOLE) == before
    connection.execute("UPDATE certificates SET expires_on = expires_on + 30")
    later = message_id_of(deliver(connection, 30, kind="reminder"))

    assert later != sent
    assert take_report(connection, postfix(sent, KARI)) is Verdict.NOT_OURS
    assert take_report(connection, postfix(later, KARI)) is Verdict.BOUNCED


def test_letters_beyond_ascii_and_headers_alone_are_read(connection: Connection, sent: str) -> None:
    """RFC 6533 has names of its own; large mails come back as their headers."""
    connection.execute("UPDATE mentors SET email = 'kåre@blåkors.example'")
    for report in (
        in_utf8(sent, "kåre@blåkors.example"),
        postfix(sent, "Kåre@XN--blkors-jua.example", returned="text/rfc822-headers"),
    ):
        connection.execute("UPDATE cert_notification_log SET status = 'sent'")
        assert take_report(connection, report) is Verdict.BOUNCED


def test_delayed_foreign_forged_broken_and_huge_ones_change_nothing(
    connection: Connection, facts: Facts, sent: str
) -> None:
    """They are counted, and no row is another one after. Until the Message-ID a report that was cut off is no proof."""
    good = postfix(sent, KARI)
    nested = b"".join(b'Content-Type: multipart/report; boundary="%d"\n\n--%d\n' % (n, n) for n in range(1000))
    reports = {
        Verdict.NOT_FAILED: [
            postfix(sent, KARI, action="delayed", status="4.4.1"),
            postfix(sent, KARI, action="relayed", status="2.0.0"),
        ],
        Verdict.NOT_OURS: [
            postfix(sent, "kari@example.org.evil.example"),
            postfix("<4711@shop.example>", KARI),
            postfix("<certjob-reminder-999999-0@example.org>", KARI),
            postfix(sent.replace("-0@", "-1@"), KARI),
            postfix("<certjob-reminder-9999999999999999999-0@example.org>", KARI),
            postfix("<certjob-preview-0123456789abcdef@example.org>", KARI),
            postfix("<certjob-digest-999999-0123abcd@example.org>", KARI),
            good.replace(b"Message-ID: ", b"X-Message-ID: "),
        ],
        Verdict.UNREADABLE: [
            f"Subject: Undeliverable\r\n\r\n{sent} to {KARI} failed".encode(),
            good.replace(b"message/delivery-status", b"text/plain"),
            good.replace(b"Final-Recipient", b"Recipient"),
            good + b"x" * LARGEST_REPORT_OCTETS,
            *(b"", b"\x00\xff" * 1000, b"Content-Type: multipart/report; boundary=b\n\n" + b"--b\n" * 50_000, nested),
        ],
    }
    before = facts.rows(WHOLE)

    for verdict, data in reports.items():
        assert [take_report(connection, each) for each in data] == [verdict] * len(data)
    whole = microsoft_365(sent, KARI)
    cuts = range(0, whole.index(b"Message-ID: <certjob"), 193)
    assert Verdict.BOUNCED not in {take_report(connection, whole[:cut]) for cut in cuts}

    assert facts.rows(WHOLE) == before


@by_each_server
def test_a_digest_is_an_alert_and_reports_the_same_to_the_corrected_address(
    connection: Connection, facts: Facts, digest: str, organisation: UUID, write: Write
) -> None:
    """What nobody has read was not reported. The open digest gives way to that which came back: there is one."""
    facts.certified_mentor(organisation, TODAY, full_name="Per Berg")
    night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), deliver=False)

    assert take_report(connection, write(digest, "someone@example.org")) is Verdict.NOT_OURS
    assert take_report(connection, write(digest, BERIT)) is Verdict.BOUNCED
    assert take_report(connection, write(digest, BERIT)) is Verdict.NOT_OURS

    assert facts.rows("SELECT status FROM coordinator_digests ORDER BY id") == [("failed",), ("superseded",)]
    assert [alert.code for alert in read_alerts(connection, today=TODAY).failed_digests] == ["bounced"]
    connection.execute("UPDATE coordinators SET email = 'berit.n@example.org'")
    again = deliver(connection, 1, kind="digest")
    assert (again.to, "Ola Hansen" in again.text, "Per Berg" in again.text) == ("berit.n@example.org", True, True)


def counts(result: subprocess.CompletedProcess[str]) -> list[int]:
    """How many were read, bounced, not failed, not ours, unreadable."""
    assert (result.returncode, result.stderr) == (0, ""), result
    document: dict[str, Any] = json.loads(result.stdout)
    assert document.pop("outcome") == "ok"
    return [document[name] for name in ("read", "bounced", "not_failed", "not_ours", "unreadable")]


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    folder = tmp_path / "reports"
    for part in ("new", "cur", "tmp"):
        (folder / part).mkdir(parents=True)
    return folder


def test_a_maildir_is_read_once(certjob: Certjob, facts: Facts, sent: str, maildir: Path) -> None:
    """From new to cur, whatever it was; what is no file is left. One that cannot be moved does not keep the others."""
    for name, data in {
        "2.b:2,": postfix(sent, "x@example.org"),
        "3.c": b"Hello",
        "4.d": postfix(sent, KARI, action="delayed"),
        "5.e": b"x" * (2 * LARGEST_REPORT_OCTETS),
    }.items():
        (maildir / "new" / name).write_bytes(data)
    (maildir / "new" / "folder").mkdir()
    (maildir / "new" / "link").symlink_to("/etc/hostname")

    assert counts(certjob("bounces", str(maildir), "--json")) == [4, 0, 1, 1, 2]
    quiet = certjob("bounces", str(maildir))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert sorted(path.name for path in (maildir / "cur").iterdir()) == ["2.b:2,S", "3.c:2,S", "4.d:2,S", "5.e:2,S"]

    (maildir / "new" / "1").write_bytes(b"Hello")
    (maildir / "cur" / "1:2,S").mkdir()
    (maildir / "new" / "2").write_bytes(postfix(sent, KARI))
    for path, phrase in (
        (maildir, "new/1 cannot be read and moved to cur"),
        (maildir.parent, "is not a Maildir"),
        (maildir / "none", "cannot be read"),
    ):
        result = certjob("bounces", str(path))
        assert (result.returncode, result.stderr.count("\n"), phrase in result.stderr) == (2, 1, True)
    assert facts.rows(ROWS) == BOUNCED
    assert sorted(path.name for path in (maildir / "new").iterdir()) == ["1", "folder", "link"]


def test_an_mbox_a_file_and_standard_input_are_read(certjob: Certjob, facts: Facts, sent: str, tmp_path: Path) -> None:
    """Broken and huge ones do not keep it from the rest."""
    separator = b"From MAILER-DAEMON Tue Mar 10 08:00:07 2026\n"
    parts = [b"Hello", b"x" * (3 * LARGEST_REPORT_OCTETS), postfix(sent, KARI), exim(sent, KARI)]
    (tmp_path / "mbox").write_bytes(b"".join(separator + part + b"\n\n" for part in parts))
    (tmp_path / "report.eml").write_bytes(separator + exim(sent, KARI))

    assert counts(certjob("bounces", str(tmp_path / "mbox"), "--json")) == [4, 1, 0, 1, 2]
    assert facts.rows(ROWS) == BOUNCED
    facts.connection.execute("UPDATE cert_notification_log SET status = 'sent'")
    assert counts(certjob("bounces", str(tmp_path / "report.eml"), "--json"))[1] == 1
    facts.connection.execute("UPDATE cert_notification_log SET status = 'sent'")
    piped = certjob("bounces", "-", given=microsoft_365(sent, KARI))
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, "", "")
    assert facts.rows(ROWS) == BOUNCED


def test_a_pipe_is_told_to_keep_it_while_the_database_is_away(certjob: Certjob) -> None:
    """75 for whatever keeps certjob from noting it: a mail server tries again. From a file it is a failure."""
    nowhere = {"CERTJOB_DATABASE_URL": "postgresql://certjob@127.0.0.1:1/certjob"}
    away = certjob("bounces", "-", given=b"Hello", **nowhere)

    assert (away.returncode, away.stderr[:17], away.stderr.count("\n")) == (75, "certjob bounces: ", 1)
    assert certjob("bounces", "-", given=b"Hello", CERTJOB_DATABASE_URL="").returncode == 75
    assert certjob("bounces", "/nowhere", **nowhere).returncode == 1
