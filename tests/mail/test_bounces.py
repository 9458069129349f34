"""Mails that came back: an alert, a line in the digest, and sent again once the address is corrected."""

import itertools
import json
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.mail.bounces import LARGEST_REPORT_OCTETS, Verdict, take_report
from certjob.mail.message import OutgoingMessage, message_id
from certjob.views.alerts import read_alerts
from tests.conftest import Certjob, installed_command
from tests.support.bounces import exim, in_utf8, microsoft_365, postfix
from tests.support.channels import reminder_mail
from tests.support.facts import TODAY, Facts
from tests.support.intents import review
from tests.support.nights import CollectingChannel, FlakyPortal, night
from tests.support.smtp_server import Mailbox, real_server

KARI = "kari@example.org"
ROWS = "SELECT status, failure_code, claim_token FROM cert_notification_log ORDER BY id"
WHOLE = "SELECT l::text FROM cert_notification_log AS l UNION ALL SELECT d::text FROM coordinator_digests AS d"
BOUNCED = [("failed", "bounced", None)]

Write = Callable[[str, str], bytes]
SERVERS = pytest.mark.parametrize("write", [postfix, exim, microsoft_365])


@pytest.fixture
def organisation(connection: Connection, facts: Facts) -> UUID:
    organisation = facts.organisation("nhf", portal=None)
    connection.execute(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'berit@example.org')", (organisation,)
    )
    return organisation


@pytest.fixture
def mentor(facts: Facts, organisation: UUID) -> UUID:
    """Kari, whose certificate ends in five days."""
    return facts.certified_mentor(organisation, TODAY + timedelta(days=5), email=KARI, full_name="Kari Nordmann")


@pytest.fixture
def sent(connection: Connection, mentor: UUID) -> str:
    """The Message-ID of the reminder, which a mail server has taken."""
    (message,) = (message for message in deliver(connection) if message.kind == "reminder")
    return message_id_of(message)


def message_id_of(message: OutgoingMessage) -> str:
    """As a channel writes it."""
    return message_id(message.idempotency_key, sender=parse_sender("post@example.org"))


def deliver(connection: Connection, days: int = 0) -> list[OutgoingMessage]:
    """What a night sends, so many days on."""
    channel = CollectingChannel()
    night(connection, TODAY + timedelta(days=days), portal=FlakyPortal(), channel=channel)
    return channel.sent


class TestReminders:
    """A reminder that was sent and did not arrive."""

    @SERVERS
    def test_it_has_failed_and_people_hear_of_it(
        self, connection: Connection, facts: Facts, sent: str, write: Write
    ) -> None:
        """In the alerts and in the next digest, with the server's words and without the address."""
        assert take_report(connection, write(sent, KARI)) is Verdict.BOUNCED

        assert facts.rows(ROWS) == BOUNCED
        (alert,) = read_alerts(connection, today=TODAY).reminders
        assert str(alert.error).startswith("the mail came back (5.")
        assert " 550 5.1.1" in str(alert.error)
        assert "kari" not in str(alert.error)
        (digest,) = deliver(connection, 1)
        assert digest.kind == "digest"
        assert "Meldingen ble sendt, men kom i retur (5." in digest.text

    @SERVERS
    def test_it_is_sent_again_once_the_address_is_corrected(
        self, connection: Connection, facts: Facts, sent: str, write: Write
    ) -> None:
        """The same message to the new address; a second report about the old one changes nothing."""
        take_report(connection, write(sent, KARI))
        connection.execute("UPDATE mentors SET email = 'kari.n@example.org'")

        again = [message for message in deliver(connection, 1) if message.kind == "reminder"]

        assert [(message.to, message_id_of(message), message.repeat) for message in again] == [
            ("kari.n@example.org", sent, False)
        ]
        assert take_report(connection, write(sent, KARI)) is Verdict.NOT_OURS
        assert facts.rows(ROWS) == [("sent", None, None)]

    def test_a_report_that_is_faster_than_the_settle_stands(
        self, connection: Connection, facts: Facts, mentor: UUID
    ) -> None:
        """The claim is lost: nobody writes that it was sent."""
        review(connection)
        queue = reminder_mail(connection)
        reminder, _ = queue.claim()
        assert reminder is not None

        assert (
            take_report(connection, postfix(f"<certjob-reminder-{reminder.id}-0@hlf.example>", KARI)) is Verdict.BOUNCED
        )

        assert not queue.settle(reminder, "sent")
        assert facts.rows(ROWS) == BOUNCED

    def test_one_whose_outcome_was_unknown_has_failed(self, connection: Connection, facts: Facts, sent: str) -> None:
        """It was not sent twice, and will not be."""
        connection.execute("UPDATE cert_notification_log SET status = 'pending', maybe_sent = true, sent_at = NULL")

        assert take_report(connection, postfix(sent, KARI)) is Verdict.BOUNCED
        assert facts.rows(ROWS) == BOUNCED

    def test_letters_beyond_ascii_and_headers_alone_are_read(
        self, connection: Connection, facts: Facts, sent: str
    ) -> None:
        """RFC 6533 has names of its own; large mails come back as their headers."""
        connection.execute("UPDATE mentors SET email = 'kåre@blåkors.example'")
        connection.execute("UPDATE cert_notification_log SET status = 'sent'")
        assert take_report(connection, in_utf8(sent, "kåre@blåkors.example")) is Verdict.BOUNCED
        connection.execute("UPDATE cert_notification_log SET status = 'sent'")

        short = postfix(sent, "Kåre@XN--blkors-jua.example", returned="text/rfc822-headers")
        assert take_report(connection, short) is Verdict.BOUNCED

    def test_a_more_urgent_reminder_takes_its_place(self, connection: Connection, facts: Facts, sent: str) -> None:
        """As that of any that failed."""
        take_report(connection, postfix(sent, KARI))

        deliver(connection, 4)

        assert facts.rows("SELECT status FROM cert_notification_log ORDER BY threshold_days DESC") == [
            ("superseded",),
            ("sent",),
        ]


class TestNothingChanges:
    """What is no proof that this mail did not reach this address."""

    @pytest.mark.parametrize(
        ("report", "verdict"),
        [
            (lambda sent: postfix(sent, KARI, action="delayed", status="4.4.1"), Verdict.NOT_FAILED),
            (lambda sent: postfix(sent, KARI, action="relayed", status="2.0.0"), Verdict.NOT_FAILED),
            (lambda sent: postfix(sent, "ola@example.org"), Verdict.NOT_OURS),
            (lambda sent: postfix(sent, "kari@example.org.evil.example"), Verdict.NOT_OURS),
            (lambda _: postfix("<4711@shop.example>", KARI), Verdict.NOT_OURS),
            (lambda _: postfix("<certjob-reminder-999999-0@example.org>", KARI), Verdict.NOT_OURS),
            (lambda sent: postfix(sent.replace("-0@", "-1@"), KARI), Verdict.NOT_OURS),
            (lambda _: postfix("<certjob-reminder-9999999999999999999-0@example.org>", KARI), Verdict.NOT_OURS),
            (lambda _: postfix("<certjob-preview-0123456789abcdef@example.org>", KARI), Verdict.NOT_OURS),
            (lambda _: postfix(f"<certjob-digest-{uuid4()}-20260310-0123abcd@example.org>", KARI), Verdict.NOT_OURS),
            (lambda _: postfix(f"<certjob-digest-{'-' * 36}-20269999-0123abcd@x>", KARI), Verdict.NOT_OURS),
            (lambda _: postfix("", KARI), Verdict.NOT_OURS),
            (lambda sent: postfix(sent, KARI).replace(b"Message-ID: ", b"X-Message-ID: "), Verdict.NOT_OURS),
            (lambda sent: f"Subject: Undeliverable\r\n\r\n{sent} to {KARI} failed".encode(), Verdict.UNREADABLE),
            (lambda sent: postfix(sent, KARI).replace(b"message/delivery-status", b"text/plain"), Verdict.UNREADABLE),
            (lambda sent: postfix(sent, KARI).replace(b"Final-Recipient", b"Recipient"), Verdict.UNREADABLE),
            (lambda sent: postfix(sent, KARI) + b"x" * LARGEST_REPORT_OCTETS, Verdict.UNREADABLE),
            (lambda _: b"", Verdict.UNREADABLE),
            (lambda _: b"\x00\xff" * 1000, Verdict.UNREADABLE),
            (lambda _: b"Content-Type: multipart/report; boundary=b\n\n" + b"--b\n" * 50_000, Verdict.UNREADABLE),
            (
                lambda _: b"".join(
                    b'Content-Type: multipart/report; boundary="%d"\n\n--%d\n' % (n, n) for n in range(5000)
                ),
                Verdict.UNREADABLE,
            ),
        ],
        ids=itertools.count(),
    )
    def test_delayed_foreign_forged_broken_and_huge_ones(
        self, connection: Connection, facts: Facts, sent: str, report: Callable[[str], bytes], verdict: Verdict
    ) -> None:
        """They are counted, and no row is another one after."""
        before = facts.rows(WHOLE)

        assert take_report(connection, report(sent)) is verdict

        assert facts.rows(WHOLE) == before

    @pytest.mark.parametrize("change", ["status = 'cancelled'", "status = 'superseded'", "status = 'failed'"])
    def test_a_row_that_is_not_sent_stays(self, connection: Connection, facts: Facts, sent: str, change: str) -> None:
        """One that failed is known to have, and one that waits was not sent."""
        for row in (change, "status = 'pending', maybe_sent = false"):
            connection.execute(f"UPDATE cert_notification_log SET {row}")
            before = facts.rows(WHOLE)

            assert take_report(connection, postfix(sent, KARI)) is Verdict.NOT_OURS

            assert facts.rows(WHOLE) == before

    def test_an_earlier_mail_of_the_same_row_is_not_this_one(
        self, connection: Connection, facts: Facts, sent: str
    ) -> None:
        """The certificate was extended in place since then, and the mail about the new date arrived."""
        connection.execute("UPDATE certificates SET expires_on = expires_on + 30")
        (later,) = (message for message in deliver(connection, 30) if message.kind == "reminder")
        assert message_id_of(later) != sent

        assert take_report(connection, postfix(sent, KARI)) is Verdict.NOT_OURS
        assert take_report(connection, postfix(message_id_of(later), KARI)) is Verdict.BOUNCED

    def test_a_report_that_was_cut_off_anywhere_raises_nothing(self, connection: Connection, sent: str) -> None:
        """Until the Message-ID it is no proof."""
        whole = microsoft_365(sent, KARI)
        until = whole.index(b"Message-ID: <certjob")

        verdicts = {take_report(connection, whole[:cut]) for cut in range(0, until, 41)}

        assert verdicts <= {Verdict.UNREADABLE, Verdict.NOT_OURS, Verdict.NOT_FAILED}


class TestDigests:
    """A coordinator's daily mail."""

    @pytest.fixture
    def digest(self, connection: Connection, facts: Facts, organisation: UUID) -> str:
        """The Message-ID of one that was sent, and tells of a pause."""
        facts.certified_mentor(organisation, TODAY - timedelta(days=1), full_name="Ola Hansen")
        (message,) = (message for message in deliver(connection) if message.kind == "digest")
        assert "Ola Hansen" in message.text
        return message_id_of(message)

    @SERVERS
    def test_it_is_an_alert_and_reports_the_same_to_the_corrected_address(
        self, connection: Connection, facts: Facts, digest: str, write: Write
    ) -> None:
        """What nobody has read was not reported."""
        assert take_report(connection, write(digest, "berit@example.org")) is Verdict.BOUNCED
        assert [alert.code for alert in read_alerts(connection, today=TODAY).digests] == ["bounced"]
        connection.execute("UPDATE coordinators SET email = 'berit.n@example.org'")

        (again,) = deliver(connection)

        assert (again.to, "Ola Hansen" in again.text) == ("berit.n@example.org", True)
        assert facts.rows("SELECT status, failure_code FROM coordinator_digests") == [("sent", None)]

    def test_the_open_one_gives_way(
        self, connection: Connection, facts: Facts, digest: str, organisation: UUID
    ) -> None:
        """There is one open digest: that which came back, with what the other would have reported."""
        facts.certified_mentor(organisation, TODAY, full_name="Per Berg")
        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal(), deliver=False)

        assert take_report(connection, postfix(digest, "berit@example.org")) is Verdict.BOUNCED

        assert facts.rows("SELECT status FROM coordinator_digests ORDER BY id") == [("failed",), ("superseded",)]
        connection.execute("UPDATE coordinators SET email = 'berit.n@example.org'")
        (again,) = (message for message in deliver(connection, 1) if message.kind == "digest")
        assert all(name in again.text for name in ("Ola Hansen", "Per Berg"))

    def test_another_address_changes_nothing(self, connection: Connection, facts: Facts, digest: str) -> None:
        """Nor a second report."""
        before = facts.rows(WHOLE)
        assert take_report(connection, postfix(digest, "someone@example.org")) is Verdict.NOT_OURS
        assert facts.rows(WHOLE) == before
        take_report(connection, postfix(digest, "berit@example.org"))

        assert take_report(connection, postfix(digest, "berit@example.org")) is Verdict.NOT_OURS


class TestCommand:
    """`certjob bounces`."""

    @pytest.fixture
    def maildir(self, tmp_path: Path) -> Path:
        folder = tmp_path / "reports"
        for part in ("new", "cur", "tmp"):
            (folder / part).mkdir(parents=True)
        return folder

    @staticmethod
    def counts(result: subprocess.CompletedProcess[str]) -> dict[str, int]:
        assert (result.returncode, result.stderr) == (0, ""), result
        document: dict[str, Any] = json.loads(result.stdout)
        assert document.pop("outcome") == "ok"
        return document

    def test_a_maildir_is_read_once(self, certjob: Certjob, facts: Facts, sent: str, maildir: Path) -> None:
        """From new to cur, whatever it was; what is no file is left."""
        for name, data in {
            "1.a": postfix(sent, KARI),
            "2.b:2,": postfix(sent, "x@example.org"),
            "3.c": b"Hello",
            "4.d": postfix(sent, KARI, action="delayed"),
            "5.e": b"x" * (2 * LARGEST_REPORT_OCTETS),
        }.items():
            (maildir / "new" / name).write_bytes(data)
        (maildir / "new" / "folder").mkdir()
        (maildir / "new" / "link").symlink_to("/etc/hostname")

        first = self.counts(certjob("bounces", str(maildir), "--json"))
        second = self.counts(certjob("bounces", str(maildir), "--json"))

        assert first == {"read": 5, "bounced": 1, "not_failed": 1, "not_ours": 1, "unreadable": 2}
        assert second == {"read": 0, "bounced": 0, "not_failed": 0, "not_ours": 0, "unreadable": 0}
        assert sorted(path.name for path in (maildir / "cur").iterdir()) == [
            f"{name}:2,S" for name in ("1.a", "2.b", "3.c", "4.d", "5.e")
        ]
        assert facts.rows(ROWS) == BOUNCED
        quiet = certjob("bounces", str(maildir))
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")

    def test_a_message_that_cannot_be_moved_does_not_keep_the_others(
        self, certjob: Certjob, facts: Facts, sent: str, maildir: Path
    ) -> None:
        """They are read, and then it is said."""
        (maildir / "new" / "1").write_bytes(b"Hello")
        (maildir / "cur" / "1:2,S").mkdir()
        (maildir / "new" / "2").write_bytes(postfix(sent, KARI))

        result = certjob("bounces", str(maildir))

        assert result.returncode == 2
        assert "new/1 cannot be read and moved to cur" in result.stderr
        assert result.stderr.count("\n") == 1
        assert facts.rows(ROWS) == BOUNCED
        assert [path.name for path in (maildir / "new").iterdir()] == ["1"]

    def test_an_mbox_a_file_and_standard_input_are_read(
        self,
        certjob: Certjob,
        facts: Facts,
        sent: str,
        tmp_path: Path,
        worker_url: str,
        bare_environment: dict[str, str],
    ) -> None:
        """Broken and huge ones do not keep it from the rest."""
        parts = [b"Hello", b"x" * (3 * LARGEST_REPORT_OCTETS), postfix(sent, KARI), exim(sent, KARI)]
        mbox = tmp_path / "mbox"
        mbox.write_bytes(b"".join(b"From MAILER-DAEMON Tue Mar 10 08:00:07 2026\n" + part + b"\n\n" for part in parts))
        single = tmp_path / "report.eml"
        single.write_bytes(b"From MAILER-DAEMON Tue Mar 10 08:00:07 2026\n" + exim(sent, KARI))

        assert self.counts(certjob("bounces", str(mbox), "--json")) == {
            "read": 4, "bounced": 1, "not_failed": 0, "not_ours": 1, "unreadable": 2,
        }  # fmt: skip
        assert facts.rows(ROWS) == BOUNCED
        facts.connection.execute("UPDATE cert_notification_log SET status = 'sent'")
        assert self.counts(certjob("bounces", str(single), "--json"))["bounced"] == 1
        facts.connection.execute("UPDATE cert_notification_log SET status = 'sent'")
        piped = pipe(microsoft_365(sent, KARI), bare_environment | {"CERTJOB_DATABASE_URL": worker_url})
        assert (piped.returncode, piped.stdout, piped.stderr) == (0, b"", b"")
        assert facts.rows(ROWS) == BOUNCED

    def test_a_pipe_is_told_to_keep_it_while_the_database_is_away(self, bare_environment: dict[str, str]) -> None:
        """75 for whatever keeps certjob from noting it: a mail server tries again."""
        nowhere = {"CERTJOB_DATABASE_URL": "postgresql://certjob@127.0.0.1:1/certjob"}
        away = pipe(b"Hello", bare_environment | nowhere)
        unset = pipe(b"Hello", {name: value for name, value in bare_environment.items() if "DATABASE" not in name})

        assert (away.returncode, unset.returncode) == (75, 75)
        assert away.stderr.startswith(b"certjob bounces: ")
        assert away.stderr.count(b"\n") == 1
        file = subprocess.run(
            [installed_command(), "bounces", "/nowhere"],
            env=bare_environment | nowhere,
            capture_output=True,
            check=False,
        )
        assert file.returncode == 1

    def test_a_path_that_is_neither_is_said(self, certjob: Certjob, tmp_path: Path) -> None:
        """Exit 2."""
        for path, phrase in ((tmp_path, "is not a Maildir"), (tmp_path / "none", "cannot be read")):
            result = certjob("bounces", str(path))

            assert result.returncode == 2
            assert phrase in result.stderr

    def test_reports_come_back_to_the_address_that_is_set(self, certjob: Certjob, facts: Facts, mentor: UUID) -> None:
        """The envelope has it; the sender that people see stays."""
        facts.connection.execute("UPDATE certificates SET expires_on = current_date + 5")
        mailbox = Mailbox()
        with real_server(mailbox) as server:
            settings = {
                "CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}",
                "CERTJOB_MAIL_FROM": "HLF <post@hlf.example>",
            }
            certjob("run", **settings, CERTJOB_BOUNCE_ADDRESS="bounces@hlf.example")
            wrong = certjob("run", **settings, CERTJOB_BOUNCE_ADDRESS="HLF <bounces@hlf.example>")

        assert {envelope.mail_from for envelope in mailbox.envelopes} == {"bounces@hlf.example"}
        assert all(b"From: HLF <post@hlf.example>" in envelope.content for envelope in mailbox.envelopes)
        assert wrong.returncode == 2
        assert "CERTJOB_BOUNCE_ADDRESS" in wrong.stderr


def pipe(data: bytes, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """What a mail server does with a report."""
    return subprocess.run(
        [installed_command(), "bounces", "-"], input=data, env=environment, capture_output=True, check=False, timeout=60
    )
