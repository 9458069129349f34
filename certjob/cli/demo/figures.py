"""What the demo counts after each scene, from the database, the Maildir and the portal's stand-in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from uuid import UUID

from psycopg.rows import class_row

from certjob.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the portal shows, against what the database says about the same people."""

    shown: int
    hidden: int
    wrongly_shown: int
    wrongly_hidden: int

    def __str__(self) -> str:
        """As a sentence."""
        if not self.wrongly_shown + self.wrongly_hidden:
            everybody = self.shown + self.hidden
            return f"portal and database agree about all {everybody} contacts: {self.shown} shown, {self.hidden} hidden"
        return (
            f"portal and database disagree: {self.wrongly_shown} are shown who are paused, "
            f"{self.wrongly_hidden} are hidden who are active"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRun:
    """One line of ``job_runs``."""

    as_of: date
    command: str
    outcome: str
    reviewed: int
    paused: int
    resumed: int
    sent: int
    delivered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mails:
    """The reminders that were marked as sent, and those that are in the Maildir."""

    marked: int
    files: int
    message_ids: int
    """Different ones."""


def compare_portal(connection: Connection, visible: Mapping[UUID, bool]) -> Agreement:
    """Compare what the portal shows with who is active."""
    active = connection.execute(
        "SELECT m.dynamics_contact_id, m.left_at IS NULL AND NOT EXISTS ("
        "    SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL"
        ") FROM mentors AS m WHERE m.dynamics_contact_id IS NOT NULL"
    ).fetchall()
    return Agreement(
        shown=sum(visible.values()),
        hidden=len(visible) - sum(visible.values()),
        wrongly_shown=sum(visible[contact_id] and not wanted for contact_id, wanted in active),
        wrongly_hidden=sum(wanted and not visible[contact_id] for contact_id, wanted in active),
    )


def count_failures(connection: Connection) -> tuple[int, int]:
    """Return how many rows of ``dynamics_sync_failures`` there are, and how many of them are resolved."""
    row = connection.execute("SELECT count(*), count(resolved_at) FROM dynamics_sync_failures").fetchone()
    return row or (0, 0)


def read_runs(connection: Connection) -> list[PastRun]:
    """Return every run that was recorded, in the order in which they ended."""
    with connection.cursor(row_factory=class_row(PastRun)) as cursor:
        return cursor.execute(
            "SELECT as_of, command, outcome,"
            "    coalesce((counts #>> '{mentors,reviewed}')::integer, 0) AS reviewed,"
            "    coalesce((counts #>> '{mentors,paused}')::integer, 0) AS paused,"
            "    coalesce((counts #>> '{mentors,resumed}')::integer, 0) AS resumed,"
            "    coalesce((counts #>> '{reminders,sent}')::integer, 0) AS sent,"
            "    coalesce((counts #>> '{portal,delivered}')::integer, 0) AS delivered"
            " FROM job_runs ORDER BY finished_at"
        ).fetchall()


def count_mails(connection: Connection, maildir: Path) -> Mails:
    """Count the reminders on both sides."""
    row = connection.execute("SELECT count(*) FROM cert_notification_log WHERE status = 'sent'").fetchone()
    messages = _reminders(maildir)
    return Mails(
        marked=row[0] if row else 0,
        files=len(messages),
        message_ids=len({message["Message-ID"] for message in messages}),
    )


def find_week_reminder(connection: Connection, maildir: Path) -> EmailMessage | None:
    """Return the latest reminder in Norwegian that was sent a week before an expiry."""
    row = connection.execute(
        "SELECT l.id FROM cert_notification_log AS l JOIN mentors AS m ON m.id = l.mentor_id"
        " WHERE l.status = 'sent' AND l.threshold_days = 7 AND m.locale = 'nb' ORDER BY l.sent_at DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return None
    return next((m for m in _reminders(maildir) if m["Message-ID"].startswith(f"<certjob-reminder-{row[0]}-")), None)


def _reminders(maildir: Path) -> Sequence[EmailMessage]:
    """The Maildir's reminders; another kind of mail may lie there too."""
    messages = [message_from_bytes(path.read_bytes(), policy=default) for path in sorted(maildir.glob("new/*"))]
    return [message for message in messages if "-reminder-" in message["Message-ID"]]
