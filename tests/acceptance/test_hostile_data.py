"""Whatever stands in the facts, a night goes through: mail, terminal and JSON stay whole; what is not sent says why."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from certjob.domain.addresses import parse_sender
from certjob.errors import PermanentPortalError
from certjob.mail.message import compose
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from tests.conftest import Certjob
from tests.support.command_line import on_terminal, today, without_escapes
from tests.support.facts import Facts
from tests.support.hostile_texts import HOSTILE, SPY, ReceivedMail, assert_harmless, read_mail
from tests.support.mails import MESSAGE, Page
from tests.support.smtp_server import HOST, Mailbox, real_server

PLAIN = "PLAINTEXT"
"""What one organisation has wherever the hostile ones have their texts: its mail shows how mail is to look."""
HOSTILE_BY_SLUG = {f"h{number}": hostile for number, hostile in enumerate(HOSTILE.values())}
TEXTS = {slug: hostile.text for slug, hostile in HOSTILE_BY_SLUG.items()} | {"plain": PLAIN}

Run = Callable[..., str]


@pytest.fixture
def mailbox(environment: dict[str, str]) -> Iterator[Mailbox]:
    """What the mail server of this file's environment took."""
    mailbox = Mailbox()
    with real_server(mailbox, enable_SMTPUTF8=True) as server:
        environment["CERTJOB_NOTIFY_URL"] = f"smtp://{HOST}:{server.port}"
        environment["CERTJOB_MAIL_FROM"] = "certjob@hlf.example"
        yield mailbox


@pytest.fixture
def run(here: Certjob, environment: dict[str, str], tmp_path: Path) -> Run:
    """Run a command: nothing that it prints is an order to a terminal, on one none but Rich's own.

    The terminal is as wide as this so that nothing short is wrapped.
    """

    def run(*arguments: str, code: int = 0, shown: bool = False) -> str:
        if shown:
            returned, text = on_terminal(arguments, environment=environment, folder=tmp_path, columns=4_000)
        else:
            result = here(*arguments)
            returned, text = result.returncode, result.stdout
            assert_harmless(result.stderr)
        assert returned == code, text
        assert_harmless(text, on_terminal=shown, is_document="--json" in arguments or "--html" in arguments)
        return without_escapes(text) if shown else text

    return run


def add_organisation(facts: Facts, text: str, *, slug: str) -> tuple[UUID, UUID]:
    """One with the text in every field, a coordinator, a mentor who lapsed (id and contact id), one without address."""
    organisation, contact_id = facts.organisation(slug), uuid4()
    facts.connection.execute(
        "UPDATE organisations SET name = %s, contact_email = %s, contact_phone = %s, renewal_url = %s WHERE id = %s",
        (text, text, f"+47 {text}", f"https://hlf.example/?{text}", organisation),
    )
    coordinator = {"full_name": text, "email": f"coordinator@{slug}.example", "locale": "en"}
    facts.insert("coordinators", organisation_id=organisation, **coordinator)
    who = {"full_name": text, "email": f"mentor@{slug}.example", "locale": "en", "contact_id": contact_id}
    lapsed = facts.certified_mentor(organisation, today() - timedelta(days=1), member_no=f"{text}1", **who)
    unreachable = {"member_no": f"{text}2", "full_name": text, "email": None}
    facts.certified_mentor(organisation, today() + timedelta(days=5), **unreachable)
    facts.connection.execute("UPDATE certificates SET kind = %s WHERE kind = 'likeperson'", (text,))
    return lapsed, contact_id


def assert_whole(messages: dict[str, ReceivedMail]) -> None:
    """The mail about a hostile organisation is that about the plain one, with another word in it."""
    assert messages.keys() == {f"{who}@{slug}.example" for who in ("mentor", "coordinator") for slug in TEXTS}
    for who, (slug, hostile) in itertools.product(("mentor", "coordinator"), HOSTILE_BY_SLUG.items()):
        plain, message = messages[f"{who}@plain.example"], messages[f"{who}@{slug}.example"]
        assert message.subject == plain.subject.replace(PLAIN, hostile.in_message)
        with_text = plain.text.replace(PLAIN, hostile.in_message).replace("plain.example", f"{slug}.example")
        assert message.text == with_text
        assert message.page.shape == plain.page.shape, hostile
        assert message.page.all_words == plain.page.all_words.replace(PLAIN, hostile.in_message)
        assert {link.partition(":")[0] for link in message.page.links} <= {"https", "mailto", "tel"}, hostile


def test_no_text_breaks_a_message_a_terminal_or_what_a_command_prints(
    facts: Facts, run: Run, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In names, kinds, contact fields and the portal's own words: a line stays a line, JSON JSON, a mail a mail."""
    mentors, words = {}, {}
    for slug, text in TEXTS.items():
        mentors[slug], contact_id = add_organisation(facts, text, slug=slug)
        words[contact_id] = text

    async def refuse(_portal: object, contact_id: UUID, **_wish: object) -> None:
        raise PermanentPortalError(words[contact_id])

    monkeypatch.setattr(HLFDynamicsSyncService, "update_portal_visibility", refuse)

    plan, plan_shown = run("run", "--dry-run"), run("run", "--dry-run", shown=True)
    changes = json.loads(run("run", "--dry-run", "--json"))["changes"]
    previews = {slug: run("preview", str(mentor)) for slug, mentor in mentors.items()}
    (markup,) = [slug for slug, hostile in HOSTILE_BY_SLUG.items() if "<script>" in hostile.text]
    page, plain = (Page(run("preview", str(mentors[slug]), "--html")) for slug in (markup, "plain"))
    outcome = json.loads(run("run", "--json", code=3))
    alerts, alerts_shown = run("alerts", code=3), run("alerts", code=3, shown=True)
    document = json.loads(run("alerts", "--json", code=3))

    assert len(plan.splitlines()) == 2 * len(TEXTS) + 1  # two mentors of each organisation, and the figures
    assert Counter(change["member_no"] for change in changes) == Counter(
        f"{text}{number}" for text in TEXTS.values() for number in (1, 2)
    )
    counts = outcome["reminders"]["sent"], outcome["reminders"]["failed"], outcome["digests"]["sent"]
    assert (*counts, outcome["portal"]["blocked"]) == (len(TEXTS),) * 4
    messages = [read_mail(envelope.content) for envelope in mailbox.envelopes]
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [[message.to] for message in messages]
    assert len({message.to for message in messages}) == len(messages)
    assert_whole({message.to: message for message in messages})
    assert facts.rows("SELECT DISTINCT last_error FROM cert_notification_log WHERE status = 'failed'") == [
        ("no address",)
    ]
    assert len(alerts.splitlines()) == 2 * len(TEXTS)  # a push and a reminder of each organisation
    names = [alert["full_name"] for alert in document["alerts"]]
    assert Counter(names) == Counter([*TEXTS.values()] * 2)
    assert page.shape == plain.shape
    for slug, hostile in HOSTILE_BY_SLUG.items():
        assert len(previews[slug].splitlines()) == len(previews["plain"].splitlines()), hostile
        assert hostile.in_message in previews[slug] or not hostile.in_message.isprintable()
        for printed in (plan, alerts):
            assert hostile.text in printed or not hostile.text.isprintable()
    short = [text for text in TEXTS.values() if text.isprintable() and len(text) < 100]
    for shown in (plan_shown, alerts_shown):
        assert sum(text in shown for text in short) > 10, "markup is only text; the others are only counted"
    assert "K\ufffd[2J\ufffd[5mK" in alerts_shown


NO_ADDRESS = "the e-mail address is not an address that mail can be sent to; correct it"
WHY_NOT = {
    f"kari@a.example>\r\nRCPT TO:<{SPY}": NO_ADDRESS,
    f"kari@a.example, {SPY}": NO_ADDRESS,
    "@b.example:kari@a.example": NO_ADDRESS,
    "=?utf-8?q?=0D=0ABcc=3Aspy?=@a.example": NO_ADDRESS,
    f"kari@{'a' * 980}.example": NO_ADDRESS,
    "kari@a\u202e.example": "the e-mail address has a domain that cannot be written in DNS; correct it",
}
"""Addresses that no mail goes to; more of them are in tests/mail/test_addresses.py."""
ARRIVES_AT = {
    "%s{{7*7}}`id`$HOME'@a.example": "%s{{7*7}}`id`$HOME'@a.example",
    "kåre@blåbær.example": "kåre@xn--blbr-roah.example",
    "😀علي@a.example": "😀علي@a.example",
    "a\u0301\u0489@a.example": "a\u0301\u0489@a.example",
}
"""Others, as the server and the header have them."""


def test_an_address_is_used_as_it_is_or_not_at_all(facts: Facts, mailbox: Mailbox, here: Certjob) -> None:
    """No copy goes anywhere else; what cannot be sent is failed, and the address is no part of the reason."""
    organisation = facts.organisation(portal=None)
    for address in (*WHY_NOT, *ARRIVES_AT):
        facts.certified_mentor(organisation, today() + timedelta(days=5), email=address)
        facts.insert("coordinators", organisation_id=organisation, email=address)

    night = here("run")

    for envelope in mailbox.envelopes:
        (recipient,) = envelope.rcpt_tos
        assert read_mail(envelope.content, utf8=not recipient.isascii()).to == recipient
    arrived = Counter(recipient for envelope in mailbox.envelopes for recipient in envelope.rcpt_tos)
    assert arrived == Counter([*ARRIVES_AT.values()] * 2), "a reminder and a digest each"
    wanted: set[tuple[object, ...]] = {(address, "failed", reason) for address, reason in WHY_NOT.items()}
    wanted |= {(address, "sent", None) for address in ARRIVES_AT}
    for table in ("cert_notification_log AS t JOIN mentors", "coordinator_digests AS t JOIN coordinators"):
        key = table.split()[-1].removesuffix("s")
        found = facts.rows(f"SELECT email, status, last_error FROM {table} AS r ON r.id = t.{key}_id")
        assert set(found) == wanted
    assert not [address for address in (*WHY_NOT, *ARRIVES_AT) if address in night.stdout + night.stderr]
    assert night.returncode == 3


def test_a_subject_in_plain_words_travels_as_it_is() -> None:
    """Whatever else there is, a search in a mail program finds it."""
    subject = "Your certificate expires on 9 March, in 30 days"

    _, letter = compose(replace(MESSAGE, subject=subject), sender=parse_sender("certjob@hlf.example"))

    assert f"\nSubject: {subject}\n".encode() in letter
