"""CoordinatorDigestService: one page a day that tells a coordinator what happened and what needs a person.

Queued when something has happened since the coordinator's last sent digest, and written when it is sent: three nights
without a mail server are one digest. Level-triggered like everything here: a run that dies before it queues loses
nothing, the next one asks the same question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import persist
from certjob.domain import rules
from certjob.domain.models import Mentor
from certjob.errors import FailureCode
from certjob.facts import reading
from certjob.mail.digest_contents import (
    EXPIRING_WITHIN_DAYS,
    Coordinator,
    Digest,
    ExpiringCertificate,
    Lapse,
    PausedMentor,
    PendingPush,
    ReturnedMentor,
    UndeliveredReminder,
)
from certjob.outbox.claims import Answer, Lease, Outbox

LEASE_SECONDS = 900.0
HELD_DELAY_SECONDS = 60.0
"""When to look again at a digest whose coordinator somebody was just changing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedDigest:
    """A claimed row of ``coordinator_digests``."""

    id: int
    coordinator_id: UUID
    digest_on: date
    attempts: int
    claim_token: UUID
    maybe_sent: bool


class CoordinatorDigestService:
    """Queues, claims, writes and settles digests; the mail stage sends them."""

    def __init__(self, connection: database.Connection, *, today: date, lease_seconds: float = LEASE_SECONDS) -> None:
        self._connection = connection
        self._today = today
        self._outbox = Outbox(
            connection,
            table="digests",
            item=QueuedDigest,
            lease_seconds=lease_seconds,
            columns=("ids", "tokens", "statuses", "delays", "uncounts", "errors", "codes", "maybe_sent"),
        )

    def queue(self, organisation_id: UUID | None = None) -> int:
        """Queue today's digest for each coordinator, or those of one organisation, with something to be told."""

        def write() -> int:
            parameters = {"today": self._today, "organisation_id": organisation_id}
            return database.execute(self._connection, "queue_digests", parameters)

        queued = persist(self._connection, write)
        self._supersede()
        return queued

    def claim(self, *, limit: int = 20) -> tuple[list[QueuedDigest], Lease]:
        """Claim due digests up to today's: of each coordinator the newest, and none while another is being sent."""
        self._supersede()
        return self._outbox.claim_by("lock_due_digests", {"limit": limit, "today": self._today})

    def release(self, digests: Sequence[QueuedDigest]) -> None:
        """Give claimed digests back; their attempts were none."""
        self._outbox.release(digests)

    def coordinator(self, digest: QueuedDigest) -> Coordinator | None:
        """Whom it is for now; None if the coordinator is gone, and with them the row."""
        parameters = {"digest_id": digest.id, "today": self._today}
        rows = database.fetch(self._connection, "read_digest_coordinator", parameters, into=Coordinator)
        return rows[0] if rows else None

    def read(self, digest: QueuedDigest) -> Digest | None:
        """Read everything the page tells, as of one moment; None if the coordinator is gone."""
        with database.read_only_snapshot(self._connection):
            coordinator = self.coordinator(digest)
            return None if coordinator is None else self._read(coordinator)

    def settle(
        self,
        digest: QueuedDigest,
        status: str,
        *,
        error: str | None = None,
        code: FailureCode | None = None,
        delay_seconds: float = 0.0,
        uncount: bool = False,
        maybe_sent: bool = False,
        told: Digest | None = None,
    ) -> bool:
        """Write what became of a claimed digest, committed on return; False if its lease was lost.

        ``told`` is the page that was sent: the next one tells what was not in it.
        """

        def note(answers: dict[int, Answer]) -> None:
            if told is not None and answers[digest.id] is Answer.SETTLED:
                covers = {
                    "id": digest.id,
                    "covers_from": told.coordinator.since,
                    "covers_until": told.coordinator.read_at,
                    "told_on": told.today,
                    "told": list(told.told),
                }
                database.execute(self._connection, "note_digest_cover", covers)

        settled = self._outbox.settle_one(
            digest,
            status,
            error=error,
            code=code,
            delay_seconds=delay_seconds,
            uncount=uncount,
            maybe_sent=maybe_sent,
            then=note,
        )
        return settled is not Answer.LOST

    def cancel(self, digest: QueuedDigest) -> Answer:
        """Cancel a claimed digest if there is still nothing to tell; see ``MailQueue``.

        Its row is held meanwhile: a night that queues it again, just now, finds it pending or finds it cancelled.
        """

        def write() -> Answer:
            database.execute(self._connection, "lock_digests", {"ids": [digest.id]})
            coordinator = self.coordinator(digest)
            if coordinator is not None and self._read(coordinator).has_news:
                return Answer.RAISED if self.settle(digest, "pending", uncount=True) else Answer.LOST
            held = self.settle(digest, "cancelled", error="nothing to tell", uncount=True)
            return Answer.SETTLED if held else Answer.LOST

        return persist(self._connection, write)

    def fail(self, digest: QueuedDigest, *, error: str, code: FailureCode, address: str, uncount: bool) -> Answer:
        """Fail a claimed digest if ``address`` is still the coordinator's; see ``MailQueue``."""

        def write() -> Answer:
            status, answer, delay_seconds, counted = "failed", Answer.SETTLED, 0.0, not uncount
            if not database.fetch(self._connection, "hold_coordinator", {"digest_id": digest.id}):
                status, answer, delay_seconds = "pending", Answer.HELD, HELD_DELAY_SECONDS
            else:
                coordinator = self.coordinator(digest)
                if coordinator is not None and coordinator.email != address:
                    status, answer, counted = "pending", Answer.RAISED, False
            held = self.settle(digest, status, error=error, code=code, delay_seconds=delay_seconds, uncount=not counted)
            return answer if held else Answer.LOST

        return persist(self._connection, write)

    def reopen_refused(self, digests: Sequence[QueuedDigest], *, delay_seconds: float) -> None:
        """Put digests that were refused and should not be failed back to pending."""
        parameters = {"ids": [digest.id for digest in digests], "delay_seconds": delay_seconds}
        persist(self._connection, lambda: database.execute(self._connection, "reopen_refused_digests", parameters))

    def _supersede(self) -> None:
        """Leave each coordinator one open digest at most, but for one that is just being sent."""
        parameters = {"today": self._today}
        persist(self._connection, lambda: database.execute(self._connection, "supersede_digests", parameters))

    def _read(self, coordinator: Coordinator) -> Digest:
        window = {
            "organisation_id": coordinator.organisation_id,
            "since": coordinator.since,
            "today": self._today,
        }
        paused = database.fetch(self._connection, "read_paused_mentors", window)
        returned = self._returned(database.fetch(self._connection, "read_returned_mentors", window))
        pending = database.fetch(self._connection, "read_pending_pushes", window, into=PendingPush)
        undelivered = database.fetch(self._connection, "read_undelivered_reminders", window, into=UndeliveredReminder)
        known = frozenset(coordinator.told)
        return Digest(
            coordinator=coordinator,
            today=self._today,
            paused=self._paused([row for row in paused if row[-1] not in known]),
            returned=tuple(item for item in returned if item.line not in known),
            expiring=self._expiring(coordinator),
            pending=tuple(pending),
            undelivered=tuple(undelivered),
            told=(
                *(row[-1] for row in paused),
                *(item.line for item in returned),
                *(item.line for item in pending),
                *(item.line for item in undelivered),
            ),
        )

    def _paused(self, rows: Sequence[tuple[Any, ...]]) -> tuple[PausedMentor, ...]:
        mentors = self._mentors([row[0] for row in rows])
        return tuple(
            PausedMentor(
                name=name,
                member_no=member_no,
                lapses=_lapses(mentors[mentor_id], self._today) if mentor_id in mentors else (),
                reopened=reopened,
                line=line,
            )
            for mentor_id, name, member_no, reopened, line in rows
        )

    def _returned(self, rows: Sequence[tuple[Any, ...]]) -> tuple[ReturnedMentor, ...]:
        mentors = self._mentors([row[0] for row in rows])
        return tuple(
            ReturnedMentor(
                name=name,
                member_no=member_no,
                still_paused=still_paused,
                without_certificate=mentor_id in mentors and rules.holds_nothing(mentors[mentor_id], self._today),
                line=line,
            )
            for mentor_id, name, member_no, still_paused, line in rows
        )

    def _expiring(self, coordinator: Coordinator) -> tuple[ExpiringCertificate, ...]:
        """Those that end within 30 days and that nothing continues."""
        rows = database.fetch(
            self._connection,
            "read_expiring_mentors",
            {
                "organisation_id": coordinator.organisation_id,
                "today": self._today,
                "within_days": EXPIRING_WITHIN_DAYS,
            },
        )
        names = {row[0]: row[1] for row in rows}
        found = [
            ExpiringCertificate(
                name=names[mentor.id],
                member_no=mentor.member_no,
                kind=certificate.kind,
                expires_on=certificate.expires_on,
                days_left=(certificate.expires_on - self._today).days,
            )
            for mentor in self._mentors(list(names)).values()
            for certificate in rules.ending_certificates(mentor, self._today, within_days=EXPIRING_WITHIN_DAYS)
        ]
        found.sort(key=lambda item: (item.expires_on, item.name, item.member_no))
        return tuple(found)

    def _mentors(self, ids: Sequence[UUID]) -> dict[UUID, Mentor]:
        return {mentor.id: mentor for mentor in reading.read(self._connection, ids, lock=False).mentors}


def _lapses(mentor: Mentor, today: date) -> tuple[Lapse, ...]:
    return tuple(
        Lapse(kind=certificate.kind, ended_on=None if certificate.revoked else certificate.expires_on)
        for certificate in rules.lapsed_certificates(mentor, today)
    )
