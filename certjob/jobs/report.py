"""RunReport: what a run did, as one document with fixed keys."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any
from uuid import UUID, uuid4

from certjob.domain.models import Decision, PauseChange, Reminder, Status
from certjob.errors import Outcome, StageEnd
from certjob.jobs.reasons import counted, differing, named
from certjob.mail.stage import MailCounts
from certjob.outbox.claims import StageStop
from certjob.outbox.open_work import NO_WORK, OpenWork
from certjob.portal.comparison import Comparison
from certjob.portal.sync import PortalCounts
from certjob.review.attention import Attention, Kind
from certjob.review.plan import ReviewCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChange:
    """What the plan would do to one mentor."""

    decision: Decision
    new_reminders: tuple[Reminder, ...]
    has_address: bool = True
    """Whether they can be sent; only looked at where there are new ones."""
    is_held: bool = False
    """The guard holds everything about this mentor."""
    reminders_are_held: bool = False

    def sort_key(self) -> tuple[str, bool, bool, bool, str]:
        """By organisation: pauses, returns, reminders, then those whose status alone changes."""
        pause = self.decision.pause
        return (
            self.decision.organisation.slug,
            pause is not PauseChange.OPEN,
            pause is not PauseChange.LIFT,
            not self.new_reminders,
            self.decision.member_no,
        )

    def to_document(self) -> dict[str, Any]:
        """Return the entry of ``changes``."""
        decision = self.decision
        return {
            "mentor_id": str(decision.mentor_id),
            "member_no": decision.member_no,
            "organisation": decision.organisation.slug,
            "transitions": [
                {"certificate_id": str(t.certificate_id), "from": str(t.from_status), "to": str(t.to_status)}
                for t in decision.transitions
            ],
            "pause": str(decision.pause) if decision.pause else None,
            "reminders": [
                {
                    "certificate_id": str(r.cert_id),
                    "threshold_days": r.threshold_days,
                    "expires_on": r.expires_on.isoformat(),
                    "has_address": self.has_address,
                    "held": self.reminders_are_held,
                }
                for r in self.new_reminders
            ],
            "portal": decision.visible if decision.push else None,
            "held": self.is_held,
        }


@dataclass(slots=True, kw_only=True)
class RunReport:
    """Everything a run says about itself; filled while it goes on. What a command does not touch stays None."""

    command: str
    today: date
    dry_run: bool = False
    run_id: UUID = field(default_factory=uuid4)
    review: ReviewCounts | None = None
    reminders: MailCounts | None = None
    digests: MailCounts | None = None
    portal: PortalCounts = field(default_factory=PortalCounts)
    comparison: Comparison | None = None
    """None, too, if the portal could not be read."""
    reopened: int | None = None
    """How many open pushes were reopened."""
    open_work: Mapping[str, OpenWork] = field(default_factory=lambda: NO_WORK)
    """What is open at its end."""
    mail_waits_until: datetime | None = None
    """When mail may be sent again; None: the run ended at an hour for mail, or sends none."""
    held: list[str] = field(default_factory=list)
    """What this run held back."""
    attention: Attention | None = None
    """What needs attention at its end, whichever run found it; None: not asked."""
    overdue: str = ""
    """That no full run has finished for 26 hours; empty if one has, or if a delivery has said it today."""
    is_first_today: bool = True
    """No run of this day has reported what needs attention."""
    stopped: list[StageStop] = field(default_factory=list)
    known_stops: frozenset[str] = frozenset()
    """The keys of stops that were told today and are not over."""
    changes: list[PlannedChange] = field(default_factory=list)
    crashed: bool = False
    """A stage ended by an error nobody foresaw."""
    _started: float = field(default_factory=time.monotonic)

    @property
    def duration_seconds(self) -> float:
        """How long it has taken so far."""
        return round(time.monotonic() - self._started, 3)

    @property
    def reasons(self) -> list[str]:
        """Why this needs attention, a line each; empty when it does not."""
        return self._lines(only_new=False)

    @property
    def news(self) -> list[str]:
        """The same, without what an earlier run of the same day has reported: an hourly run does not repeat itself.

        Beside other lines it says how much is acknowledged.
        """
        lines = self._lines(only_new=not (self.is_first_today or self.crashed or self.attention is None))
        number = self.attention.acknowledged if self.attention is not None else 0
        return [*lines, f"{number:,} acknowledged; see `certjob alerts --acknowledged`"] if lines and number else lines

    @property
    def every_line(self) -> list[str]:
        """The reasons, and also why stages stopped if that was told before."""
        return self._lines(only_new=False, known_stops=frozenset())

    def _lines(self, *, only_new: bool, known_stops: frozenset[str] | None = None) -> list[str]:
        known_stops = self.known_stops if known_stops is None else known_stops
        attention = self.attention
        lines = [self.overdue] if self.overdue else []
        if attention is None or attention.counts[Kind.HELD].new or not only_new:
            lines += self.held if attention is None else attention.held
        quiet = only_new or self.review is None  # deliver every 15 minutes does not repeat itself
        lines += [
            str(stop)
            for stop in self.stopped
            if not quiet or stop.code is StageEnd.CRASH or stop.key not in known_stops
        ]
        if self.review is not None:
            is_old = only_new and attention is not None and not attention.counts[Kind.NEVER_REVIEWED].new
            known = attention.known_mentors if attention is not None else frozenset[UUID]()
            lines += [] if is_old else named(self.review, known=known)
        if attention is not None:
            lines += self._of_the_list(attention, only_new=only_new)
        return lines + self._of_this_run()

    def _of_the_list(self, attention: Attention, *, only_new: bool) -> list[str]:
        """Return what no line of this run says already."""
        review = self.review
        by_name = len(review.skipped) + len(review.broken) if review is not None else 0
        said = {Kind.HELD} | (
            {Kind.NEVER_REVIEWED} if attention.counts[Kind.NEVER_REVIEWED].number <= by_name else set()
        )
        return [line for kind, line in attention.lines(only_new=only_new).items() if kind not in said]

    def _of_this_run(self) -> list[str]:
        """Return what went wrong in this run; what the list of alerts has anyway is not repeated."""
        if self.dry_run:
            return []
        lines = differing(self.comparison) if self.comparison is not None else []
        portal = self.portal
        reminders, digests = self.reminders or MailCounts(), self.digests or MailCounts()
        if self.attention is None:
            failed = portal.news if self.command == "deliver" else portal.failed
            has_shown_alerts = self.reopened is not None
            lines += counted(failed, "portal push failed", "portal pushes failed", see_alerts=not has_shown_alerts)
            lines += counted(reminders.failed, "reminder failed", "reminders failed", see_alerts=True)
            lines += counted(digests.failed, "digest failed", "digests failed", see_alerts=True)
        lines += counted(portal.lost, "portal push lost its lease", "portal pushes lost their lease")
        lines += counted(reminders.lost, "reminder lost its lease", "reminders lost their lease")
        return lines + counted(digests.lost, "digest lost its lease", "digests lost their lease")

    @property
    def outcome(self) -> Outcome:
        """``attention`` while anything needs a person."""
        if self.crashed:
            return Outcome.FAILED
        return Outcome.ATTENTION if self.reasons else Outcome.OK

    def to_counts(self) -> dict[str, Any]:
        """Return the numbers of the JSON document, and the keys of what stopped: nothing about any person."""
        document = self.to_document()
        names = ("command", "today", "outcome", "duration_seconds")
        parts = ("mentors", "certificates", "reminders", "read", "differences", "portal", "digests")
        return {name: document[name] for name in (*names, *parts) if name in document} | {
            "stop_codes": [stop.key for stop in self.stopped],
            "worked": self._worked(),
        }

    def _worked(self) -> list[str]:
        """Return the stages that did something: an earlier reason why they stopped is over."""
        mails = [counts for counts in (self.reminders, self.digests) if counts is not None]
        worked = {
            "portal": self.portal.delivered,
            "mail": sum(counts.sent for counts in mails),
            "alerts": self.attention is not None,
        }
        return [stage for stage, number in worked.items() if number]

    def to_ping(self) -> dict[str, Any]:
        """Return what a ping may tell others: how many alerts of each kind, and the keys of what stopped."""
        numbers = self.attention.numbers if self.attention is not None else {}
        return {
            "alerts": {kind: number for kind, number in numbers.items() if number},
            "stopped": [stop.key for stop in self.stopped],
        }

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document; a command leaves out what it does not touch."""
        document: dict[str, Any] = {
            "run_id": str(self.run_id),
            "command": self.command,
            "today": self.today.isoformat(),
            "dry_run": self.dry_run,
            "outcome": str(self.outcome),
            "duration_seconds": self.duration_seconds,
        }
        review = self.review
        if review is not None:
            document["mentors"] = {
                "reviewed": review.reviewed,
                "paused": review.paused,
                "resumed": review.resumed,
                "skipped": len(review.skipped),
                "without_certificate": review.without_certificate,
            }
            document["certificates"] = {
                str(status): review.transitions[status] for status in Status if status is not Status.RECORDED
            }
        if self.command == "reconcile":
            reading = self.comparison.reading if self.comparison is not None else None
            document["read"] = {"pages": reading.pages, "visible": len(reading.visible)} if reading else None
            document["differences"] = self.comparison.counts() if self.comparison is not None else None
        if review is not None or self.reminders is not None:
            document["reminders"] = self._reminders()
        document["portal"] = self._portal()
        if self.digests is not None:
            pending = self.open_work["digests"].pending
            document["digests"] = {"sent": self.digests.sent, "failed": self.digests.failed, "pending": pending}
            waits = self.mail_waits_until if pending or self.open_work["reminders"].pending else None
            document["mail_waits_until"] = waits and waits.isoformat()
        if review is not None:
            document["problems"] = [
                {"mentor_id": str(mentor_id), "reason": reason} for mentor_id, reason in review.problems
            ]
        document["held"] = self.held
        if self.attention is not None:
            document["alerts"] = self.attention.numbers
            document["acknowledged"] = self.attention.acknowledged
        document["stopped"] = [*filter(None, [self.overdue]), *map(str, self.stopped)]
        if self.crashed:
            crashes = [str(stop) for stop in self.stopped if stop.code is StageEnd.CRASH]
            document["error"] = {"code": StageEnd.CRASH, "message": "; ".join(crashes), "next_step": None}
        if self.dry_run:
            differences = self.comparison.admitted if self.comparison is not None else ()
            document["changes"] = [change.to_document() for change in (*self.changes, *differences)]
        return document

    def _reminders(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        if self.review is not None:
            counts["queued"] = self.review.reminders_queued
        if self.reminders is not None:
            counts |= asdict(self.reminders)
        return counts | {"pending": self.open_work["reminders"].pending}

    def _portal(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        if self.review is not None:
            counts["queued"] = self.review.portal_queued
        if self.command == "reconcile":
            counts["queued"] = self.comparison.raised if self.comparison is not None else 0
        if self.reopened is not None:
            counts["reopened"] = self.reopened
        hides, shows = self.open_work["portal_hides"], self.open_work["portal_shows"]
        return counts | {
            "delivered": self.portal.delivered,
            "failed": self.portal.failed,
            "blocked": hides.blocked + shows.blocked,
            "lost": self.portal.lost,
            "pending": hides.pending + shows.pending,
        }
