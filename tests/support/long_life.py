"""A mentor over years: people change the facts by day, certjob runs by night, and a diary keeps what it did.

A line of the diary is a date and what was seen outside of certjob that night: a status in the audit, certjob's own
pause, a value that the portal was given, a message that the mail server took.
"""

import email
import email.policy
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from uuid import UUID

from certjob.domain.addresses import parse_sender
from certjob.errors import Outcome
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.message import Channel
from tests.support.facts import Facts
from tests.support.mails import breakable
from tests.support.nights import delivery, night
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import HOST, Mailbox, real_server

ADDRESS = "kari@example.org"
SUBJECT = "Your certificate "
"""What every subject begins with; the diary leaves it out."""


def days(first: str, last: str) -> frozenset[date]:
    """Every day from the first to the last one."""
    begin, end = date.fromisoformat(first), date.fromisoformat(last)
    return frozenset(begin + timedelta(days=number) for number in range((end - begin).days + 1))


@dataclass
class Life:
    """One mentor of an organisation with a portal, reading English, and everything certjob is seen to do about them."""

    facts: Facts
    mailbox: Mailbox
    mail_port: int
    portal: PortalServer
    mentor_id: UUID
    organisation_id: UUID
    certificates: dict[str, UUID] = field(default_factory=dict)
    """By the names that the diary calls them."""
    diary: list[str] = field(default_factory=list)
    messages: list[EmailMessage] = field(default_factory=list)
    attention: set[date] = field(default_factory=set)
    """The nights that needed a person."""
    again: list[str] = field(default_factory=list)
    """What a second run of a night still did; should stay empty."""

    # What people do.

    def certify(self, name: str, kind: str, issued_on: str, expires_on: str) -> None:
        """Insert a certificate row."""
        self.certificates[name] = self.facts.certificate(
            self.mentor_id, date.fromisoformat(expires_on), kind=kind, issued_on=date.fromisoformat(issued_on)
        )

    def change_expiry(self, name: str, expires_on: str) -> None:
        """Write another last day into a certificate's row, rightly or by a slip."""
        self._execute("UPDATE certificates SET expires_on = %s WHERE id = %s", expires_on, self.certificates[name])

    def revoke(self, name: str) -> None:
        self._execute("UPDATE certificates SET revoked_at = now() WHERE id = %s", self.certificates[name])

    def unrevoke(self, name: str) -> None:
        self._execute("UPDATE certificates SET revoked_at = NULL WHERE id = %s", self.certificates[name])

    def pause(self, reason: str) -> None:
        """Pause the mentor, as a coordinator does."""
        self.facts.pause(self.mentor_id, reason=reason)

    def lift(self, reason: str) -> None:
        self._execute(
            "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator'"
            " WHERE mentor_id = %s AND reason = %s AND lifted_at IS NULL",
            self.mentor_id,
            reason,
        )

    def leave(self) -> None:
        self._execute("UPDATE mentors SET left_at = %s WHERE id = %s", datetime.now(UTC), self.mentor_id)

    def come_back(self) -> None:
        self._execute("UPDATE mentors SET left_at = NULL WHERE id = %s", self.mentor_id)

    def set_thresholds(self, *thresholds: int) -> None:
        self._execute(
            "UPDATE organisations SET reminder_thresholds = %s WHERE id = %s", list(thresholds), self.organisation_id
        )

    def make_optional(self, kind: str) -> None:
        self._execute("UPDATE organisations SET optional_kinds = %s WHERE id = %s", [kind], self.organisation_id)

    def _execute(self, statement: str, *parameters: object) -> None:
        assert self.facts.connection.execute(statement.encode(), parameters).rowcount == 1, statement

    # What certjob does.

    def live(
        self,
        nights: Iterable[date],
        events: Mapping[date, Iterable[Callable[["Life"], None]]],
        *,
        without_mail: frozenset[date],
    ) -> None:
        """Let each day's events happen and then its night; where the night did anything, it is run a second time."""
        pending = sorted(events)
        for today in nights:
            while pending and pending[0] <= today:  # those of missed nights are seen by the next one
                for event in events[pending.pop(0)]:
                    event(self)
            seen = self._night(today, without_mail=today in without_mail)
            self.diary += seen
            if seen:
                self.again += self._night(today, without_mail=today in without_mail)
        assert not pending, "the life was over before its last event"

    def _night(self, today: date, *, without_mail: bool) -> list[str]:
        """Run one night; return what was seen of it, as lines of the diary."""
        before = self._own_pauses(), len(self.portal.requests), len(self.mailbox.envelopes), self._last_transition()
        channel = _channel(_closed_port() if without_mail else self.mail_port)
        report = night(self.facts.connection, today, ways_out=delivery(portal=self.portal, channel=channel))
        if report.outcome is not Outcome.OK:
            self.attention.add(today)
        (opened, lifted), requests, envelopes, transition = before
        lines = [*self._transitions_after(transition)]
        lines += ["pause"] * (self._own_pauses()[0] - opened)
        lines += ["lift"] * (self._own_pauses()[1] - lifted)
        lines += [f"portal {'show' if request.visible else 'hide'}" for request in self.portal.requests[requests:]]
        lines += [self._read(envelope) for envelope in self.mailbox.envelopes[envelopes:]]
        return [f"{today} {line}" for line in lines]

    def _own_pauses(self) -> tuple[int, int]:
        """How many pauses certjob has opened so far, and how many it has lifted."""
        rows = self.facts.rows(
            "SELECT count(*), count(*) FILTER (WHERE lifted_by = 'certjob') FROM mentor_pauses WHERE actor = 'certjob'"
        )
        return rows[0]  # type: ignore[return-value]

    def _last_transition(self) -> int:
        rows = self.facts.rows("SELECT coalesce(max(id), 0) FROM certificate_transitions")
        return rows[0][0]  # type: ignore[return-value]

    def _transitions_after(self, number: int) -> Iterator[str]:
        names = {certificate_id: name for name, certificate_id in self.certificates.items()}
        for certificate_id, from_status, to_status in self.facts.rows(
            "SELECT certificate_id, from_status, to_status FROM certificate_transitions WHERE id > %s ORDER BY id",
            number,
        ):
            yield f"{names[certificate_id]} {from_status} → {to_status}"  # type: ignore[index]

    def _read(self, envelope: object) -> str:
        """Keep a message; return the threshold that it is about, by its row in the log, and what its subject says."""
        message = email.message_from_bytes(getattr(envelope, "content", b""), policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        assert getattr(envelope, "rcpt_tos", []) == [ADDRESS]
        assert message["To"].addresses[0].addr_spec == ADDRESS
        self.messages.append(message)
        log_id = message["Message-ID"].split("-")[2]
        rows = self.facts.rows("SELECT threshold_days FROM cert_notification_log WHERE id = %s", log_id)
        subject = breakable(str(message["Subject"]))
        assert subject.startswith(SUBJECT)
        return f"mail {rows[0][0]}: {subject.removeprefix(SUBJECT)}"


def _channel(port: int) -> Channel:
    return SmtpChannel(HOST, port=port, sender=parse_sender("certjob@hlf.example"))


def _closed_port() -> int:
    """A port at which nobody answers."""
    with socket.create_server((HOST, 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


@contextmanager
def born(facts: Facts) -> Iterator[Life]:
    """A life without any certificate yet, with a mail server and a portal beside it."""
    mailbox = Mailbox()
    facts.connection.execute("SET synchronous_commit = off")  # two thousand nights, and no power cut
    organisation_id = facts.organisation()
    mentor_id = facts.mentor(organisation_id, email=ADDRESS, locale="en")
    with real_server(mailbox) as server, PortalServer() as portal:
        yield Life(
            facts=facts,
            mailbox=mailbox,
            mail_port=server.port,
            portal=portal,
            mentor_id=mentor_id,
            organisation_id=organisation_id,
        )
