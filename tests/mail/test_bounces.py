"""Mails that came back: an alert, a line in the digest, and sent again once the address is corrected."""

import json
import re
from collections.abc import Callable

import pytest

from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.mail.bounces import LARGEST_REPORT_OCTETS, Verdict, take_report
from certjob.mail.message import OutgoingMessage, message_id
from certjob.reports.alerts import read_alerts
from tests.conftest import Certjob
from tests.mail.conftest import Scene
from tests.support.bounces import exim, in_utf8, microsoft_365, postfix
from tests.support.facts import TODAY

KARI, BERIT = "kari@example.org", "berit@example.org"
ROWS = "SELECT status, failure_code, claim_token FROM cert_notification_log ORDER BY id"
WHOLE = "SELECT l::text FROM cert_notification_log AS l UNION ALL SELECT d::text FROM coordinator_digests AS d"
BOUNCED = [("failed", "wrong_address", None)]


def one(scene: Scene, kind: str, number: int = 0) -> OutgoingMessage:
    """The one message of the kind that a night sends, so many days on."""
    (message,) = (message for message in scene.night(number) if message.kind == kind)
    return message


def id_of(message: OutgoingMessage) -> str:
    """Its Message-ID, as a channel writes it."""
    return message_id(message.idempotency_key, sender=parse_sender("post@example.org"))


@pytest.fixture
def sent(scene: Scene) -> str:
    """The Message-ID of Kari's reminder, which a mail server has taken."""
    scene.coordinator(BERIT)
    scene.certified(until=5, email=KARI)
    return id_of(one(scene, "reminder"))


@pytest.mark.parametrize("write", [postfix, exim, microsoft_365])
def test_a_reminder_has_failed_until_the_address_is_corrected(
    scene: Scene, sent: str, write: Callable[[str, str], bytes]
) -> None:
    """Operators see the server's words, without the address. A second report about the old one is nothing."""
    assert take_report(scene.connection, write(sent, KARI)) is Verdict.BOUNCED

    assert scene.rows(ROWS) == BOUNCED
    (alert,) = read_alerts(scene.connection, today=TODAY)
    assert str(alert.error).startswith("the mail came back (5.")
    assert (" 550 5.1.1" in str(alert.error), "kari" in str(alert.error)) == (True, False)
    assert "postadressen er feil eller kan ikke brukes." in one(scene, "digest", 1).text
    scene.execute("UPDATE mentors SET email = 'kari.n@example.org'")
    again = one(scene, "reminder", 2)
    assert (again.to, id_of(again), again.repeat) == ("kari.n@example.org", sent, False)
    assert take_report(scene.connection, write(sent, KARI)) is Verdict.NOT_OURS
    assert scene.rows(ROWS) == [("sent", None, None)]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ("'pending', maybe_sent = true", Verdict.BOUNCED),
        ("'pending', claim_token = gen_random_uuid()", Verdict.BOUNCED),
        ("'cancelled'", Verdict.NOT_OURS),
        ("'superseded'", Verdict.NOT_OURS),
        ("'failed'", Verdict.NOT_OURS),
        ("'pending'", Verdict.NOT_OURS),
    ],
)
def test_what_was_or_may_have_been_sent_has_failed_and_nothing_else(
    scene: Scene, sent: str, change: str, verdict: Verdict
) -> None:
    """A report faster than the settle ends the claim."""
    scene.execute(f"UPDATE cert_notification_log SET status = {change}")
    before = scene.rows(WHOLE)

    assert take_report(scene.connection, postfix(sent, KARI)) is verdict

    assert scene.rows(ROWS) == BOUNCED if verdict is Verdict.BOUNCED else scene.rows(WHOLE) == before


def test_after_an_extension_in_place_the_row_is_about_another_mail(scene: Scene, sent: str) -> None:
    scene.execute("UPDATE certificates SET expires_on = expires_on + 30")
    later = id_of(one(scene, "reminder", 30))

    verdicts = [take_report(scene.connection, postfix(each, KARI)) for each in (sent, later)]

    assert verdicts == [Verdict.NOT_OURS, Verdict.BOUNCED]


def test_letters_beyond_ascii_and_headers_alone_are_read(scene: Scene, sent: str) -> None:
    """RFC 6533 has names of its own; large mails come back as their headers."""
    scene.execute("UPDATE mentors SET email = 'kåre@blåkors.example'")
    headers = postfix(sent, "Kåre@XN--blkors-jua.example", returned="text/rfc822-headers")
    for report in (in_utf8(sent, "kåre@blåkors.example"), headers):
        scene.execute("UPDATE cert_notification_log SET status = 'sent'")
        assert take_report(scene.connection, report) is Verdict.BOUNCED


def test_delayed_foreign_forged_broken_and_huge_ones_change_nothing(
    connection: Connection, scene: Scene, sent: str
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
            postfix("<certjob-reminder-999999-0123abcd@example.org>", KARI),
            postfix(re.sub(r"-[0-9a-f]{8}@", "-0123abcd@", sent), KARI),
            postfix("<certjob-reminder-9999999999999999999-0123abcd@example.org>", KARI),
            postfix("<certjob-test-0123456789abcdef@example.org>", KARI),
            postfix("<certjob-digest-999999-1-0123abcd@example.org>", KARI),
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
    before = scene.rows(WHOLE)

    for verdict, data in reports.items():
        assert [take_report(connection, each) for each in data] == [verdict] * len(data)
    whole = microsoft_365(sent, KARI)
    cuts = range(0, whole.index(b"Message-ID: <certjob"), 193)
    assert Verdict.BOUNCED not in {take_report(connection, whole[:cut]) for cut in cuts}

    assert scene.rows(WHOLE) == before


def test_a_digest_reports_the_same_to_the_corrected_address(connection: Connection, desk: Scene) -> None:
    """What nobody has read was not reported. The open digest gives way to that which came back: there is one."""
    desk.ended("Ola Hansen")
    digest = id_of(one(desk, "digest"))
    desk.certified("Per Berg", until=0)
    desk.night(1, deliver=False)

    reports = [postfix(digest, address) for address in ("someone@example.org", BERIT, BERIT)]
    assert [take_report(connection, report).value for report in reports] == ["not_ours", "bounced", "not_ours"]

    assert desk.rows("SELECT status FROM coordinator_digests ORDER BY id") == [("failed",), ("superseded",)]
    assert [alert.cause for alert in read_alerts(connection, today=TODAY)] == ["wrong_address"]
    desk.execute("UPDATE coordinators SET email = 'berit.n@example.org'")
    again = one(desk, "digest", 1)
    assert (again.to, "Ola Hansen" in again.text, "Per Berg" in again.text) == ("berit.n@example.org", True, True)


@pytest.mark.parametrize(
    ("write", "verdict"),
    [
        (microsoft_365, "bounced"),
        (lambda sent, address: b"From MAILER-DAEMON Tue Mar 10 08:00:07 2026\n" + exim(sent, address), "bounced"),
        (lambda sent, _address: postfix(sent, "x@example.org"), "not_ours"),
        (lambda sent, address: postfix(sent, address, action="delayed"), "not_failed"),
        (lambda _sent, _address: b"", "unreadable"),
        (lambda _sent, _address: b"x" * (3 * LARGEST_REPORT_OCTETS), "unreadable"),
    ],
    ids=["a report", "as it stands in an mbox", "another address", "a delay", "nothing", "too large"],
)
def test_bounces_reads_one_report_on_standard_input(
    certjob: Certjob, scene: Scene, sent: str, write: Callable[[str, str], bytes], verdict: str
) -> None:
    """It exits with 0 once it has read the report, and prints nothing off a terminal."""
    report = write(sent, KARI)

    quiet = certjob("bounces", given=report)

    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert (scene.rows(ROWS) == BOUNCED) is (verdict == "bounced")
    scene.execute("UPDATE cert_notification_log SET status = 'sent'")
    assert json.loads(certjob("bounces", "--json", given=report).stdout) == {"outcome": "ok", "report": verdict}


@pytest.mark.parametrize("url", ["postgresql://certjob@127.0.0.1:1/certjob", ""], ids=["away", "not set"])
def test_bounces_exits_75_if_the_report_was_not_saved(certjob: Certjob, url: str) -> None:
    """A mail server keeps the report then and tries again."""
    away = certjob("bounces", given=b"Hello", CERTJOB_DATABASE_URL=url)

    assert (away.returncode, away.stderr[:17], away.stderr.count("\n")) == (75, "certjob bounces: ", 1)
