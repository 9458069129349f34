"""Whatever stands in the facts, a night goes through: mail, terminal and JSON stay whole; what is not sent says why."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.errors import PermanentPortalError
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.message import Channel, OutgoingMessage, compose
from tests.support.command_line import on_terminal, run_in_process, without_escapes
from tests.support.command_line import today as real_today
from tests.support.facts import TODAY, Facts
from tests.support.hostile_texts import HOSTILE, SPY, Page, ReceivedMail, assert_harmless, read_mail
from tests.support.nights import night
from tests.support.smtp_server import HOST, Mailbox, real_server

SENDER = parse_sender("certjob@hlf.example")
PLAIN = "PLAINTEXT"
"""What one organisation has wherever the hostile ones have their texts: its mail shows how mail is to look."""
HOSTILE_BY_SLUG = {f"h{number}": hostile for number, hostile in enumerate(HOSTILE.values())}
TEXTS = {slug: hostile.text for slug, hostile in HOSTILE_BY_SLUG.items()} | {"plain": PLAIN}
"""By the slug of the organisation that has it everywhere."""


class RefusingPortal:
    """A portal that refuses every contact, in words of its own for each."""

    def __init__(self, words: dict[UUID, str]) -> None:
        self.words = words

    async def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
        raise PermanentPortalError(self.words[contact_id])


def add_organisation(facts: Facts, text: str, *, slug: str, today: date) -> tuple[UUID, UUID]:
    """An organisation with the text in every field, its coordinator, a mentor who lapsed, one without an address.

    Returns the id of the former, and the contact id.
    """
    organisation = facts.organisation(slug)
    facts.connection.execute(
        "UPDATE organisations SET name = %s, contact_email = %s, contact_phone = %s, renewal_url = %s WHERE id = %s",
        (text, text, f"+47 {text}", f"https://hlf.example/?{text}", organisation),
    )
    facts.connection.execute(
        "INSERT INTO coordinators (organisation_id, full_name, email, locale) VALUES (%s, %s, %s, 'en')",
        (organisation, text, f"coordinator@{slug}.example"),
    )
    contact_id = uuid4()
    lapsed = facts.mentor(
        organisation,
        member_no=f"{text}1",
        full_name=text,
        email=f"mentor@{slug}.example",
        locale="en",
        contact_id=contact_id,
    )
    facts.certificate(lapsed, today - timedelta(days=1), kind=text)
    unreachable = facts.mentor(organisation, member_no=f"{text}2", full_name=text, email=None)
    facts.certificate(unreachable, today + timedelta(days=5), kind=text)
    return lapsed, contact_id


@contextmanager
def smtp_channel(mailbox: Mailbox, **options: object) -> Iterator[Channel]:
    with real_server(mailbox, **options) as server:
        yield SmtpChannel(HOST, port=server.port, sender=SENDER)


def received(mailbox: Mailbox) -> dict[str, ReceivedMail]:
    """The messages by recipient; nobody has got two."""
    messages = {}
    for envelope in mailbox.envelopes:
        (recipient,) = envelope.rcpt_tos
        assert envelope.mail_from == SENDER.specification
        assert recipient not in messages
        messages[recipient] = read_mail(envelope.content)
    return messages


def in_maildir(folder: Path) -> dict[str, ReceivedMail]:
    messages = [read_mail(file.read_bytes(), line_end=b"\n") for file in (folder / "new").iterdir()]
    assert len({message.to for message in messages}) == len(messages)
    return {message.to: message for message in messages}


def assert_whole(messages: dict[str, ReceivedMail]) -> None:
    """The mail about a hostile organisation is that about the plain one, with another word in it."""
    assert messages.keys() == {f"{who}@{slug}.example" for who in ("mentor", "coordinator") for slug in TEXTS}
    for who in ("mentor", "coordinator"):
        plain = messages[f"{who}@plain.example"]
        for slug, hostile in HOSTILE_BY_SLUG.items():
            message = messages[f"{who}@{slug}.example"]
            assert message.subject == plain.subject.replace(PLAIN, hostile.in_message)
            with_text = plain.text.replace(PLAIN, hostile.in_message).replace("plain.example", f"{slug}.example")
            assert message.text == with_text
            assert message.page.tags == plain.page.tags, hostile
            assert message.page.text == plain.page.text.replace(PLAIN, hostile.in_message)
            assert {link.partition(":")[0] for link in message.page.links} <= {"https", "mailto", "tel"}, hostile


def test_no_text_breaks_a_message_or_a_digest(connection: Connection, facts: Facts) -> None:
    """In names, kinds, contact fields and error texts: the headers and both parts are what they should be."""
    mailbox = Mailbox()
    words = {add_organisation(facts, text, slug=slug, today=TODAY)[1]: text for slug, text in TEXTS.items()}

    with smtp_channel(mailbox) as channel:
        report = night(connection, portal=RefusingPortal(words), channel=channel)

    assert_whole(received(mailbox))
    assert report.reminders is not None
    assert (report.reminders.sent, report.reminders.failed) == (len(TEXTS), len(TEXTS))
    assert not report.crashed
    assert [str(stop) for stop in report.stopped] == []
    failed = facts.rows("SELECT DISTINCT last_error FROM cert_notification_log WHERE status = 'failed'")
    assert failed == [("no address",)]


@pytest.fixture
def environment(bare_environment: dict[str, str], database_url: str, tmp_path: Path) -> dict[str, str]:
    return bare_environment | {
        "CERTJOB_DATABASE_URL": database_url,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
        "CERTJOB_MAIL_FROM": SENDER.specification,
    }


def test_no_text_breaks_what_a_command_prints(facts: Facts, environment: dict[str, str], tmp_path: Path) -> None:
    """Off a terminal a line stays a line, JSON stays JSON, the preview is the message; a Maildir gets all of it."""
    mentors = {
        slug: str(add_organisation(facts, text, slug=slug, today=real_today())[0]) for slug, text in TEXTS.items()
    }

    def run(*arguments: str, code: int) -> str:
        result = run_in_process(*arguments, environment=environment, folder=tmp_path)
        assert result.returncode == code, result
        assert_harmless(result.stderr)
        assert_harmless(result.stdout, is_document={"--json", "--html"}.intersection(arguments) != set())
        return result.stdout

    plan = run("run", "--dry-run", code=0)
    changes = json.loads(run("run", "--dry-run", "--json", code=0))["changes"]
    previews = {slug: run("preview", mentor, code=0) for slug, mentor in mentors.items()}
    pages = {slug: Page(run("preview", mentor, "--html", code=0)) for slug, mentor in mentors.items()}
    outcome = json.loads(run("run", "--json", code=3))
    alerts = run("alerts", code=3)
    alerts_document = json.loads(run("alerts", "--json", code=3))

    assert len(plan.splitlines()) == 2 * len(TEXTS) + 1  # two mentors of each organisation, and the figures
    assert Counter(change["member_no"] for change in changes) == Counter(
        f"{text}{number}" for text in TEXTS.values() for number in (1, 2)
    )
    counts = outcome["reminders"]["sent"], outcome["reminders"]["failed"], outcome["digests"]["sent"]
    assert counts == (len(TEXTS),) * 3
    assert_whole(in_maildir(tmp_path / "mail"))
    assert len(alerts.splitlines()) == 2 * len(TEXTS)  # a push and a reminder of each organisation
    names = [alert["full_name"] for part in ("alerts", "failed_reminders") for alert in alerts_document[part]]
    assert Counter(names) == Counter([*TEXTS.values()] * 2)
    for slug, hostile in HOSTILE_BY_SLUG.items():
        assert len(previews[slug].splitlines()) == len(previews["plain"].splitlines()), hostile
        assert pages[slug].tags == pages["plain"].tags, hostile
        assert hostile.in_message in previews[slug] or not hostile.in_message.isprintable()
        for printed in (plan, alerts):
            assert hostile.text in printed or not hostile.text.isprintable()


def test_no_text_breaks_a_terminal(facts: Facts, environment: dict[str, str], tmp_path: Path) -> None:
    """On one, with colours, tables and a progress bar: no order but Rich's own, and markup is only text."""
    mentor, *_ = [add_organisation(facts, text, slug=slug, today=real_today())[0] for slug, text in TEXTS.items()]
    short = {text for text in TEXTS.values() if len(text) < 100}
    facts.connection.execute(
        "UPDATE mentors SET full_name = %s WHERE id = %s", (" ".join(sorted(short))[:1000], mentor)
    )

    def run(*arguments: str, code: int) -> str:
        # As wide as this so that nothing short is wrapped.
        returned, shown = on_terminal(arguments, environment=environment, folder=tmp_path, columns=4_000)
        assert returned == code, shown
        assert_harmless(shown, on_terminal=True)
        return without_escapes(shown)

    plan = run("run", "--dry-run", code=0)
    preview = run("preview", str(mentor), code=0)
    night_of = run("run", code=3)
    alerts = run("alerts", code=3)

    for text in filter(str.isprintable, short):
        assert " ".join(text.split()) in preview
    for printed in (plan, alerts):
        assert sum(text in printed for text in filter(str.isprintable, short)) > 10  # the others are only counted
    assert "K\ufffd[2J\ufffd[5mK" in alerts
    assert "Night of" in night_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What becomes of mail for an address."""

    address: str
    arrives_at: str = ""
    """As the server and the header have it; empty: nowhere."""
    why_not: str = "the e-mail address is not an address that mail can be sent to; correct it"
    international: bool = False
    """Only servers with SMTPUTF8 take it."""


NOT_IN_DNS = "the e-mail address has a domain that cannot be written in DNS; correct it"

FATES = (
    Fate(address=f"kari@a.example\r\nBcc: {SPY}"),
    Fate(address=f"Bcc: {SPY}\nkari@a.example"),
    Fate(address=f"kari@a.example>\r\nRCPT TO:<{SPY}"),
    Fate(address="ka\x85ri@a.example"),
    Fate(address="ka\x07ri@a.example"),
    Fate(address="kari@a\x1b[2J.example"),
    Fate(address=f"kari@a.example, {SPY}"),
    Fate(address=f"kari@{SPY}"),
    Fate(address="Kari <kari@a.example>"),
    Fate(address="kari(Nordmann)@a.example"),
    Fate(address='"kari nordmann"@a.example'),
    Fate(address="@b.example:kari@a.example"),
    Fate(address="kari@a.example SIZE=1"),
    Fate(address="mailto:kari@a.example"),
    Fate(address="=?utf-8?q?spy?=@a.example"),
    Fate(address="=?utf-8?q?=0D=0ABcc=3Aspy?=@a.example"),
    Fate(address="=?utf-8?b?DQpCY2M6IHNweQ==?=@a.example"),
    Fate(address="<script>@a.example"),
    Fate(address="[red]kari[/]@a.example"),
    Fate(address="\u202ekari@a.example"),
    Fate(address="👩\u200d🏫@a.example"),
    Fate(address=f"{'k' * 980}@a.example"),
    Fate(address=f"kari@{'a' * 980}.example"),
    Fate(address="kari"),
    Fate(address="kari@ⓐ.example", why_not=NOT_IN_DNS),
    Fate(address="kari@a\u202e.example", why_not=NOT_IN_DNS),
    Fate(address="{{7*7}}@a.example", arrives_at="{{7*7}}@a.example"),
    Fate(address="`id`$HOME'@a.example", arrives_at="`id`$HOME'@a.example"),
    Fate(address="%s{0}@a.example", arrives_at="%s{0}@a.example"),
    Fate(address="kari@blåbær.example", arrives_at="kari@xn--blbr-roah.example"),
    Fate(address="kåre@a.example", arrives_at="kåre@a.example", international=True),
    Fate(address="kåre@blåbær.example", arrives_at="kåre@xn--blbr-roah.example", international=True),
    Fate(address="علي@a.example", arrives_at="علي@a.example", international=True),
    Fate(address="😀@a.example", arrives_at="😀@a.example", international=True),
    Fate(address="a\u0301\u0489@a.example", arrives_at="a\u0301\u0489@a.example", international=True),
)


def add_addressees(facts: Facts) -> None:
    """A mentor and a coordinator with each address, and a mentor with a usual one."""
    organisation = facts.organisation(portal=None)
    facts.certified_mentor(organisation, TODAY + timedelta(days=5), email="usual@b.example")
    for fate in FATES:
        facts.certified_mentor(organisation, TODAY + timedelta(days=5), email=fate.address)
        facts.connection.execute(
            "INSERT INTO coordinators (organisation_id, email) VALUES (%s, %s)", (organisation, fate.address)
        )


def assert_fates(facts: Facts, addressees: Sequence[str]) -> None:
    """Reminder and digest have arrived there, or both have failed with this reason; the usual one has arrived."""
    expected = Counter(fate.arrives_at for fate in FATES if fate.arrives_at)
    assert Counter(addressees) == expected + expected + Counter(["usual@b.example"])
    reminders = facts.rows(
        "SELECT email, status, last_error FROM cert_notification_log AS l JOIN mentors AS m ON m.id = l.mentor_id"
    )
    digests = facts.rows(
        "SELECT email, status, last_error FROM coordinator_digests AS d JOIN coordinators AS c ON c.id = coordinator_id"
    )
    wanted = {(fate.address, *(("sent", None) if fate.arrives_at else ("failed", fate.why_not))) for fate in FATES}
    assert set(digests) == wanted
    assert set(reminders) == wanted | {("usual@b.example", "sent", None)}


def test_an_address_is_used_as_it_is_or_not_at_all(connection: Connection, facts: Facts) -> None:
    """No copy goes anywhere else; what cannot be sent is failed, and the address is no part of the reason."""
    mailbox = Mailbox()
    add_addressees(facts)

    with smtp_channel(mailbox, enable_SMTPUTF8=True) as channel:
        report = night(connection, channel=channel)

    international = {fate.arrives_at for fate in FATES if fate.international}
    recipients = [recipient for envelope in mailbox.envelopes for recipient in envelope.rcpt_tos]
    for envelope in mailbox.envelopes:
        [recipient] = envelope.rcpt_tos
        assert read_mail(envelope.content, utf8=recipient in international).to == recipient
    assert_fates(facts, recipients)
    assert report.outcome == "attention"
    assert not [fate.address for fate in FATES if fate.address in " ".join(report.reasons)]


@pytest.mark.parametrize(
    "words",
    [
        "Sertifikatet ditt går ut om 30 dager, 9. mars (førstehjelp på sykehuset) «øre» å – likeperson",
        "Your certificate expires in 30 days, on 9 March (peer mentor at the University Hospital) antidisestablishment",
    ],
    ids=["Norwegian", "English"],
)
def test_a_subject_arrives_letter_by_letter(words: str) -> None:
    """However long it is and wherever its letters beyond ASCII stand: no space is lost or doubled where a line ends."""
    chance = random.Random(7)
    subjects = [" ".join(chance.choices(words.split(), k=length)) for length in range(1, 30) for _ in range(3)]

    letters = [
        compose(message(subject, to="kåre@a.example" if number % 2 else "kari@a.example"), sender=SENDER)[1]
        for number, subject in enumerate(subjects)
    ]

    assert [read_mail(letter, line_end=b"\n", utf8=True).subject for letter in letters] == subjects
    assert all(b"=?" not in letter for letter in letters) == words.isascii(), "plain words travel as they are"


def message(subject: str, *, to: str) -> OutgoingMessage:
    return OutgoingMessage(
        to=to,
        subject=subject,
        text="Hei!\n",
        html="<p>Hei!</p>\n",
        idempotency_key="1",
        locale="nb",
        kind="reminder",
        repeat=False,
    )
