"""The report of a run: a JSON document with fixed keys, and one line for each reason for attention."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from itertools import chain
from typing import Any
from uuid import UUID, uuid4

from certjob.domain.alert_kinds import Kind
from certjob.domain.models import Decision, Effect, PauseChange, Reminder, Status
from certjob.errors import Outcome, StageEnd
from certjob.jobs.reasons import counted, differing, named
from certjob.mail.stage import MailCounts
from certjob.outbox.claims import StageStop
from certjob.outbox.open_work import NO_WORK, OpenWork
from certjob.portal.comparison import Comparison, Difference
from certjob.portal.exposures import Exposure
from certjob.portal.sync import PortalCounts
from certjob.review.attention import Attention
from certjob.review.plan import ReviewCounts
from certjob.sorting import SortedRows


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChange:
    """The changes that a run would make for one mentor."""

    decision: Decision
    new_reminders: tuple[Reminder, ...]
    has_address: bool = True
    """Whether the new reminders, if there are any, can be sent."""
    held_because: Effect | None = None
    """The effect for which a guard holds the whole decision."""
    reminders_are_held: bool = False

    @property
    def is_held(self) -> bool:
        """Whether a guard holds the whole decision."""
        return self.held_because is not None

    def sort_key(self) -> tuple[str, int, bool, bool, bool, str]:
        """Sort by organisation: held changes by their harm, pauses, returns, reminders, changes of a status only."""
        pause, effects = self.decision.pause, list(Effect)
        return (
            self.decision.organisation.slug,
            effects.index(self.held_because) if self.held_because else len(effects),
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
            "held_because": str(self.held_because) if self.held_because else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What other runs of the same day have printed."""

    stops: Set[str] = frozenset()
    """The keys of stops that are not over."""
    old_alerts: bool = False
    """The alerts that are not new."""


NOTHING = Told()


@dataclass(slots=True, kw_only=True)
class RunReport:
    """The results of a run so far. Parts that its command does not have stay None."""

    command: str
    today: date
    dry_run: bool = False
    run_id: UUID = field(default_factory=uuid4)
    review: ReviewCounts | None = None
    reminders: MailCounts = field(default_factory=MailCounts)
    digests: MailCounts = field(default_factory=MailCounts)
    portal: PortalCounts = field(default_factory=PortalCounts)
    comparison: Comparison | None = None
    """None also if the portal could not be read."""
    reopened: int | None = None
    """The number of reopened pushes."""
    open_work: Mapping[str, OpenWork] = field(default_factory=lambda: NO_WORK)
    """The open work at the end of the run."""
    mail_waits_until: datetime | None = None
    """When mail may be sent again, or None if it may be sent now."""
    held: list[str] = field(default_factory=list)
    """One line for each hold of this run."""
    attention: Attention | None = None
    """All alerts at the end of the run. Only ``run`` reads them."""
    exposure: Exposure | None = None
    """How long someone was visible who must not be. Only ``run`` reads it."""
    overdue: str = ""
    """The alert of an overdue full run, unless another delivery of this day has reported it."""
    new_alerts: Sequence[tuple[str, str]] = ()
    """The id and the fingerprint of each alert of this report that no other run of this day has printed."""
    acknowledged_in_app: Mapping[str, str] = field(default_factory=dict)
    """A line for each alert that a coordinator has acknowledged and no run has printed, by id. No exit code has it."""
    stopped: list[StageStop] = field(default_factory=list)
    told: Told = NOTHING
    changes: SortedRows[PlannedChange] = field(default_factory=lambda: SortedRows(PlannedChange.sort_key))
    crashed: bool = False
    """Whether a stage ended with an unexpected error."""
    _started: float = field(default_factory=time.monotonic)

    @property
    def duration_seconds(self) -> float:
        """Return the seconds since the start of the run."""
        return round(time.monotonic() - self._started, 3)

    @property
    def sends_mail(self) -> bool:
        """Return whether the command has mail stages."""
        return self.command in ("run", "deliver")

    @property
    def reasons(self) -> list[str]:
        """Return the lines that decide the outcome; none means that all is well.

        A delivery leaves out what has been told, because cron starts one every 15 minutes.
        """
        return self.lines(self.told if self.command == "deliver" else NOTHING)

    @property
    def news(self) -> list[str]:
        """Return the lines that cron mails, and a last one with the number of acknowledged alerts."""
        lines = self.reasons if self.crashed else self.lines(self.told)
        number = self.attention.acknowledged if self.attention is not None else 0
        return [*lines, f"{number:,} acknowledged; see `certjob alerts --acknowledged`"] if lines and number else lines

    @property
    def corrections(self) -> Sequence[Difference]:
        """Return the differences on the portal that a reading corrects, or in a dry run would correct."""
        if self.comparison is None:
            return ()
        return self.comparison.admitted if self.dry_run else self.comparison.corrected

    @property
    def outcome(self) -> Outcome:
        """Return ``failed`` after a crash, ``attention`` while there is a reason, otherwise ``ok``."""
        if self.crashed:
            return Outcome.FAILED
        return Outcome.ATTENTION if self.reasons else Outcome.OK

    def lines(self, told: Told = NOTHING) -> list[str]:
        """Return one line for each reason for attention, without those that have been told.

        Each reason has one line: alerts follow only where no line of this run says the same.
        """
        review, attention = self.review, self.attention
        counts = attention.counts if attention is not None else {}
        kinds = {kind for kind, count in counts.items() if count.new or not told.old_alerts}
        lines = [self.overdue] if self.overdue else []
        if attention is None:
            lines += self.held
        elif Kind.HELD in kinds:
            lines += attention.held
        lines += [str(stop) for stop in self.stopped if stop.code is StageEnd.CRASH or stop.key not in told.stops]
        if review is not None and (attention is None or Kind.NEVER_REVIEWED in kinds):
            lines += named(review, known=attention.known_mentors if attention is not None else frozenset())
        if attention is not None:
            by_name = len(review.skipped) + len(review.broken) if review is not None else 0
            said = {Kind.HELD} | {Kind.FACTS_MISSING for stop in self.stopped if stop.stage == "mirror"}
            if attention.counts[Kind.NEVER_REVIEWED].number <= by_name:
                said.add(Kind.NEVER_REVIEWED)
            alerts = attention.lines(only_new=told.old_alerts)
            lines += [line for kind, line in alerts.items() if kind not in said]
        return lines + ([] if self.dry_run else self._failures())

    def _failures(self) -> list[str]:
        """Return what failed in this run; failures are among the alerts if the run has read them."""
        lines = differing(self.comparison) if self.comparison is not None else []
        done: list[tuple[str, str, PortalCounts | MailCounts]] = [
            ("portal push", "portal pushes", self.portal),
            ("reminder", "reminders", self.reminders),
            ("digest", "digests", self.digests),
        ]
        if self.attention is None:
            see = "; see `certjob alerts`" if self.reopened is None else ""  # --retry-all shows them itself
            for singular, plural, counts in done:
                is_delivery = isinstance(counts, PortalCounts) and self.command == "deliver"
                failed = self.portal.news if is_delivery else counts.failed
                lines += counted(failed, f"{singular} failed{see}", f"{plural} failed{see}")
        for singular, plural, counts in done:
            lines += counted(counts.lost, f"{singular} lost its lease", f"{plural} lost their lease")
        return lines

    def to_counts(self) -> dict[str, Any]:
        """Return the numbers of the JSON document, the keys of the stops, and the stages that did something.

        An earlier stop of a stage is over once the stage has done something. It has no data about people.
        """
        document = self.to_document()
        parts = ("mentors", "certificates", "reminders", "read", "differences", "portal", "digests")
        worked = {
            "portal": self.portal.delivered,
            "mail": self.reminders.sent + self.digests.sent,
            "alerts": self.attention is not None,
        }
        corrected: dict[str, list[str]] = defaultdict(list)
        for each in self.corrections:
            corrected[each.what].append(str(each.mentor_id))
        return {name: document[name] for name in parts if name in document} | {
            **({"corrected": corrected} if corrected else {}),
            "stop_codes": [stop.key for stop in self.stopped],
            "worked": [stage for stage, number in worked.items() if number],
        }

    def to_ping(self) -> dict[str, Any]:
        """Return the body of a ping: the number of alerts of each kind, the exposures, and the keys of the stops."""
        numbers = self.attention.numbers if self.attention is not None else {}
        return {
            "alerts": {kind: number for kind, number in numbers.items() if number},
            "exposure": self.exposure.numbers() if self.exposure is not None else None,
            "stopped": [stop.key for stop in self.stopped],
        }

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document, with only the parts that the command can fill."""
        document: dict[str, Any] = {
            "run_id": str(self.run_id),
            "command": self.command,
            "today": self.today.isoformat(),
            "dry_run": self.dry_run,
            "outcome": str(self.outcome),
            "duration_seconds": self.duration_seconds,
            **self._review_parts(),
            **self._reading_parts(),
            **self._delivery_parts(),
        }
        if self.review is not None:
            document["problems"] = [
                {"mentor_id": str(mentor_id), "reason": reason} for mentor_id, reason in self.review.problems
            ]
        document["held"] = self.held
        if self.attention is not None:
            document["alerts"] = self.attention.numbers
            document["acknowledged"] = self.attention.acknowledged
        document["stopped"] = [*filter(None, [self.overdue]), *map(str, self.stopped)]
        if self.crashed:
            crashes = [str(stop) for stop in self.stopped if stop.code is StageEnd.CRASH]
            document["error"] = {"code": StageEnd.CRASH, "message": "; ".join(crashes), "next_step": None}
        if self.command == "reconcile":
            document["unknown_contacts"] = list(map(str, self.comparison.unknown)) if self.comparison else []
        if self.dry_run or self.command == "reconcile":
            planned = (change.to_document() for change in self.changes)
            document["changes"] = chain(planned, (each.to_document() for each in self.corrections))
        return document

    def _review_parts(self) -> dict[str, Any]:
        """Return the changes of mentors and certificates."""
        review = self.review
        if review is None:
            return {}
        return {
            "mentors": {
                "reviewed": review.reviewed,
                "paused": review.paused,
                "resumed": review.reinstated,
                "skipped": len(review.skipped),
                "without_certificate": review.without_certificate,
            },
            "certificates": {
                str(status): review.transitions[status] for status in Status if status is not Status.RECORDED
            },
        }

    def _reading_parts(self) -> dict[str, Any]:
        """Return the numbers of a reading of the portal. They are None if the portal could not be read."""
        if self.command != "reconcile":
            return {}
        if self.comparison is None:
            return {"read": None, "differences": None}
        reading = self.comparison.reading
        read = {"pages": reading.pages, "visible": len(reading.visible_until)}
        return {"read": read, "differences": self.comparison.counts()}

    def _delivery_parts(self) -> dict[str, Any]:
        """Return the numbers of reminders, pushes and digests."""
        review, open_work, parts = self.review, self.open_work, dict[str, Any]()
        pending = {kind: work.pending for kind, work in open_work.items()}
        if review is not None or self.sends_mail:
            parts["reminders"] = (
                ({"queued": review.reminders_queued} if review is not None else {})
                | (asdict(self.reminders) if self.sends_mail else {})
                | {"pending": pending["reminders"]}
            )
        parts["portal"] = {"queued": review.portal_queued} if review is not None else {}
        if self.command == "reconcile":
            parts["portal"]["queued"] = len(self.comparison.corrected) if self.comparison is not None else 0
        if self.reopened is not None:
            parts["portal"]["reopened"] = self.reopened
        parts["portal"] |= {
            "delivered": self.portal.delivered,
            "failed": self.portal.failed,
            "blocked": open_work["portal_hides"].blocked + open_work["portal_shows"].blocked,
            "lost": self.portal.lost,
            "pending": pending["portal_hides"] + pending["portal_shows"],
        }
        if self.sends_mail:
            parts["digests"] = {"sent": self.digests.sent, "failed": self.digests.failed, "pending": pending["digests"]}
            waits = self.mail_waits_until if pending["reminders"] or pending["digests"] else None
            parts["mail_waits_until"] = waits and waits.isoformat()
        return parts
