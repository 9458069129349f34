"""Mail through Debian's Exim, in a folder of its own and on loopback; where Exim is missing the tests say so."""

import email
import email.policy
import json
import re
from collections.abc import Iterator
from datetime import date, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import SecretStr

from certjob.database import Connection
from certjob.errors import ChannelDownError
from certjob.mail import stage as mail_stage
from certjob.mail.message import OutgoingMessage
from certjob.outbox.retry import constant
from tests.conftest import Certjob
from tests.support.command_line import Finished, today
from tests.support.cutting_proxy import Place, cutting_proxy
from tests.support.exim import LOGIN, MISSING, PROGRAM, Exim, exim
from tests.support.facts import TODAY, Facts
from tests.support.mails import MESSAGE
from tests.support.smtp_outcomes import (
    EVERYBODY,
    LATER,
    NEVER,
    REPEAT_LINE,
    ROWS,
    channel_to,
    make_good,
    queue_two,
    run_stage,
    smtp_channel,
    text_of,
)
from tests.support.smtp_server import CERTIFICATE, client_tls

pytestmark = pytest.mark.real_mail_server

CREDENTIALS = {"user": LOGIN[0], "password": SecretStr(LOGIN[1]), "tls": client_tls()}


@pytest.fixture(scope="module")
def running_exim() -> Iterator[Exim]:
    """One server for all tests of a worker."""
    if not PROGRAM.exists():
        pytest.skip(MISSING)
    with exim() as server:
        yield server


@pytest.fixture
def server(running_exim: Exim) -> Iterator[Exim]:
    """The server, on its best behaviour and with an empty mailbox."""
    running_exim.behave()
    yield running_exim
    running_exim.behave()
    running_exim.delivered(0)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tries without the seconds between them."""
    monkeypatch.setattr(mail_stage, "exponential", lambda **_: constant(seconds=0))


def parsed(data: bytes) -> EmailMessage:
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def arrived(server: Exim, count: int) -> list[EmailMessage]:
    """What lies in the Maildir once so many messages are there, by recipient; one more would be in it, too."""
    messages = [parsed(data) for data in server.delivered(count)]
    return sorted(messages, key=lambda message: str(message["Envelope-to"]))


# What arrives


def test_a_message_arrives_whole(server: Exim) -> None:
    """Both parts and all headers as they were written, lines that begin with a dot included."""
    with channel_to(server.port) as channel:
        channel.send(MESSAGE)

    (message,) = arrived(server, 1)
    assert message["Envelope-to"] == MESSAGE.to
    assert (message["Subject"], message["Message-ID"]) == (MESSAGE.subject, "<certjob-reminder-4711-0@hlf.example>")
    assert message["Auto-Submitted"] == "auto-generated"
    parts = [part.get_content() for part in message.iter_parts()]
    assert parts == [MESSAGE.text, MESSAGE.html]


def test_an_address_with_a_letter_beyond_ascii_arrives(server: Exim) -> None:
    """Exim knows SMTPUTF8; the message before and the one after it travel as always."""
    with channel_to(server.port) as channel:
        for address in ("kari@example.org", "pål@example.org", "ola@example.org"):
            channel.send(OutgoingMessage(**{**fields(MESSAGE), "to": address}))

    assert {message["To"] for message in arrived(server, 3)} == {
        "kari@example.org",
        "pål@example.org",
        "ola@example.org",
    }


def fields(message: OutgoingMessage) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__slots__}


def test_a_hundred_messages_renew_the_connection(server: Exim) -> None:
    """Each arrives once, over two connections; a server may limit what it takes over one."""
    before = server.sessions()
    with channel_to(server.port) as channel:
        for number in range(101):
            channel.send(OutgoingMessage(**{**fields(MESSAGE), "idempotency_key": f"reminder-{number}-0"}))

    assert len({message["Message-ID"] for message in arrived(server, 101)}) == 101
    assert server.sessions() - before == 2


# TLS and login


@pytest.mark.parametrize("implicit_tls", [False, True], ids=["STARTTLS", "implicit TLS"])
def test_a_login_over_tls(server: Exim, *, implicit_tls: bool) -> None:
    """With letters beyond ASCII in the password."""
    port = server.tls_port if implicit_tls else server.port

    with channel_to(port, implicit_tls=implicit_tls, **CREDENTIALS) as channel:
        channel.send(MESSAGE)

    (message,) = arrived(server, 1)
    assert "esmtpsa" in str(message["Received"])  # s for TLS, a for the login (RFC 3848)


def test_a_look_at_the_server_sends_nothing(server: Exim) -> None:
    """What `certjob check` does: connection, TLS, login, goodbye."""
    with channel_to(server.port, **CREDENTIALS) as channel:
        channel.probe()

    assert arrived(server, 0) == []


def test_a_wrong_password_is_everybodys_trouble(server: Exim) -> None:
    """The line says which settings to correct, and not what was tried."""
    wrong = CREDENTIALS | {"password": SecretStr("hemmelig-7")}

    with channel_to(server.port, **wrong) as channel, pytest.raises(ChannelDownError) as caught:
        channel.send(MESSAGE)

    assert str(caught.value).startswith("the mail server refused the login (535 ")
    assert "hemmelig" not in str(caught.value)


def test_without_starttls_no_password_leaves(server: Exim) -> None:
    """Exim that offers no TLS hears nothing but the greeting."""
    server.answer("no-starttls", "")

    with (
        channel_to(server.port, **CREDENTIALS) as channel,
        pytest.raises(ChannelDownError, match="never logs in without"),
    ):
        channel.send(MESSAGE)

    assert arrived(server, 0) == []


@pytest.mark.usefixtures("nothing_is_loopback")
def test_without_starttls_no_mail_leaves_this_machine(server: Exim) -> None:
    """The rule for servers elsewhere, with this one taken for one of them; with STARTTLS it goes."""
    server.answer("no-starttls", "")
    with channel_to(server.port, tls=client_tls()) as channel:
        with pytest.raises(ChannelDownError, match="offers no STARTTLS"):
            channel.send(MESSAGE)
        server.behave()
        channel.send(MESSAGE)

    (message,) = arrived(server, 1)
    assert "esmtps" in str(message["Received"])


@pytest.fixture
def nothing_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat this machine's address as one far away."""
    monkeypatch.setattr("certjob.mail.channels.smtp.LOOPBACK_HOSTS", frozenset())


# Refusals


@pytest.mark.parametrize(
    ("stage", "answer", "fault"),
    [
        (stage, f"{code} no", {421: EVERYBODY, 450: LATER, 550: NEVER}[code] if is_about_one else EVERYBODY)
        for stage, is_about_one in [
            ("connect", False),
            ("helo", False),
            ("mail", False),
            ("rcpt", True),
            ("predata", True),
            ("data", True),
        ]
        for code in (421, 450, 550)
    ],
)
def test_a_refusal_has_its_owner_and_each_mentor_one_message(
    server: Exim, connection: Connection, facts: Facts, stage: str, answer: str, fault: str
) -> None:
    """Exim's own answers, at each stage; then it takes mail again, and everybody gets the one that waited."""
    queue_two(facts)
    server.answer(stage, answer)

    stopped = run_stage(connection, smtp_channel(server.port))

    assert (stopped is not None) == (fault is EVERYBODY)
    assert facts.rows("SELECT status, attempts, maybe_sent FROM cert_notification_log") == [ROWS[fault][:3]] * 2
    assert arrived(server, 0) == []

    server.behave()
    make_good(facts)
    assert run_stage(connection, smtp_channel(server.port)) is None

    messages = arrived(server, 2)
    assert len({message["Message-ID"] for message in messages}) == len(messages) == 2
    assert not any(REPEAT_LINE in text_of(message) for message in messages)


@pytest.mark.parametrize("stage", ["connect", "rcpt", "data"])
def test_a_slow_server_gets_the_message_once(server: Exim, stage: str) -> None:
    """An answer that comes a second late is an answer."""
    server.answer(f"slow-{stage}", "")

    with channel_to(server.port) as channel:
        channel.send(MESSAGE)

    assert len(arrived(server, 1)) == 1


# A cable that breaks


@pytest.mark.parametrize("place", get_args(Place))
def test_a_cut_around_the_final_dot(server: Exim, connection: Connection, facts: Facts, place: Place) -> None:
    """The dot has left, and only Exim knows whether it came: each gets a message that says that it may be a repeat.

    Where Exim had taken the first one, the second has its Message-ID, by which mail programs know it again.
    """
    queue_two(facts)
    with cutting_proxy(server.port, place) as cable:
        run_stage(connection, smtp_channel(cable.port))
    first = arrived(server, 2 if place == "after the final dot" else 0)
    make_good(facts)

    assert run_stage(connection, smtp_channel(server.port)) is None

    second = arrived(server, 2)
    assert cable.cuts == 2
    assert facts.rows("SELECT DISTINCT status FROM cert_notification_log") == [("sent",)]
    assert [REPEAT_LINE in text_of(message) for message in (*first, *second)] == [False] * len(first) + [True] * 2
    assert len(first) == (2 if place == "after the final dot" else 0)
    assert {message["Message-ID"] for message in first} <= {message["Message-ID"] for message in second}


# Three nights without a mail server

REPEAT = re.compile("Har du allerede fått denne|Har du alt fått denne|already have received this")

MOVED_CALENDAR = """
import datetime, os
from certjob.settings import Settings
Settings.today = property(lambda self: datetime.date.fromisoformat(os.environ["TODAY_OF_THE_TEST"]))
"""


class Nights:
    """The installed command on any day: a new process each time, in which only the calendar is moved."""

    def __init__(self, certjob: Certjob, server: Exim, folder: Path) -> None:
        self._certjob = certjob
        (folder / "calendar").mkdir()
        (folder / "calendar" / "sitecustomize.py").write_text(MOVED_CALENDAR)
        self._settings = {
            "PYTHONPATH": str(folder / "calendar"),
            "SSL_CERT_FILE": str(CERTIFICATE),
            "CERTJOB_NOTIFY_URL": f"smtp://localhost:{server.port}",
            "CERTJOB_NOTIFY_USER": LOGIN[0],
            "CERTJOB_NOTIFY_PASSWORD": LOGIN[1],
            "CERTJOB_MAIL_FROM": "Hørselshjelpen, likepersontjenesten <post@hlf.example>",
        }

    def __call__(self, command: str, today: date) -> Finished:
        return self._certjob(command, **self._settings, TODAY_OF_THE_TEST=today.isoformat())


@pytest.fixture
def nights(certjob: Certjob, server: Exim, tmp_path: Path) -> Nights:
    """``certjob run`` and the others, by way of Exim."""
    return Nights(certjob, server, tmp_path)


def test_after_three_nights_without_a_mail_server_each_mentor_has_one_message(
    nights: Nights, server: Exim, facts: Facts
) -> None:
    """About the day on which it is sent, not about the night that wanted it; and the coordinator has one page."""
    organisation = facts.organisation(portal=None)
    for name, days, locale in [
        ("far", 30, "nb"),  # the threshold of 30 stays the nearest one
        ("near", 15, "nn"),  # the one of 14 comes on the second night, and takes its place
        ("over", 1, "en"),  # it expires meanwhile
        ("renewed", 7, "nb"),
    ]:
        facts.certified_mentor(
            organisation, TODAY + timedelta(days=days), email=f"{name}@example.org", locale=locale, full_name=name
        )
    facts.connection.execute(
        "INSERT INTO coordinators (organisation_id, full_name, email) VALUES (%s, 'Berit Berg', 'berit@example.org')",
        (organisation,),
    )

    server.stop()
    for number in range(3):
        result = nights("run", TODAY + timedelta(days=number))
        assert result.returncode == 3, result
        assert "the mail server cannot be used: Connection refused" in result.stderr
        if number == 1:
            facts.connection.execute(
                "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
                " SELECT id, 'likeperson', %s, %s FROM mentors WHERE full_name = 'renewed'",
                (TODAY + timedelta(days=1), TODAY + timedelta(days=800)),
            )
    server.start()
    last = TODAY + timedelta(days=3)
    fourth = nights("run", last)
    again = [nights(command, last) for command in ("run", "deliver")]

    assert (fourth.returncode, fourth.stderr) == (0, "")
    assert [(result.returncode, result.stderr) for result in again] == [(0, "")] * 2
    page, far, near, over = arrived(server, 4)
    assert [message["Envelope-to"] for message in (page, far, near, over)] == [
        f"{name}@example.org" for name in ("berit", "far", "near", "over")
    ]
    assert far["Subject"] == "Sertifikatet ditt går ut om 27\u00a0dager, 9.\u00a0april («likeperson»)"
    assert near["Subject"] == "Sertifikatet ditt går ut om 12\u00a0dagar, 25.\u00a0mars («likeperson»)"
    assert over["Subject"] == "Your certificate expired on 11\u00a0March (“likeperson”)"
    assert "is therefore paused" in text_of(over)
    assert not any(REPEAT.search(text_of(message)) for message in (page, far, near, over))
    assert far["From"] == '"Hørselshjelpen, likepersontjenesten" <post@hlf.example>'
    assert "over" in text_of(page)
    assert facts.rows(
        "SELECT m.full_name, l.threshold_days, l.status, l.maybe_sent FROM cert_notification_log AS l"
        " JOIN mentors AS m ON m.id = l.mentor_id ORDER BY m.full_name, l.threshold_days DESC"
    ) == [
        ("far", 30, "sent", False),
        ("near", 30, "superseded", False),
        ("near", 14, "sent", False),
        ("over", 1, "superseded", False),
        ("over", -1, "sent", False),
        ("renewed", 7, "cancelled", False),
    ]


# Mails that come back


def test_a_mail_that_exim_returns_is_an_alert_and_goes_to_the_corrected_address(
    server: Exim, certjob: Certjob, facts: Facts, tmp_path: Path
) -> None:
    """Exim takes it, finds nobody of that name, and reports it to the envelope's sender."""
    organisation = facts.organisation("nhf", portal=None)
    facts.certified_mentor(organisation, today() + timedelta(days=5), email="kari@example.org")
    settings = {
        "CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}",
        "CERTJOB_MAIL_FROM": "post@example.org",
        "CERTJOB_BOUNCE_ADDRESS": "bounces@example.org",
    }
    server.know_nobody("kari")
    assert certjob("run", **settings).returncode == 0
    (report,) = server.delivered(1)
    (tmp_path / "report.eml").write_bytes(report)

    read = certjob("bounces", str(tmp_path / "report.eml"), "--json")

    assert parsed(report)["Envelope-to"] == "bounces@example.org"
    assert json.loads(read.stdout)["bounced"] == 1, report.decode()
    alerts = certjob("alerts")
    assert alerts.returncode == 3
    assert "the mail came back (5.0.0); correct the e-mail address" in alerts.stdout
    server.behave()
    facts.connection.execute("UPDATE mentors SET email = 'kari.n@example.org'")
    assert certjob("deliver", **settings).returncode == 0
    assert [message["Envelope-to"] for message in arrived(server, 1)] == ["kari.n@example.org"]
