"""The reports of the commands: a JSON document with fixed keys, and one line for each reason for attention."""

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any
from uuid import UUID, uuid4

from certjob.domain.alert_kinds import Kind, count_in_words
from certjob.domain.causes import why_pushes_fail
from certjob.domain.models import Status
from certjob.errors import Outcome, StageEnd
from certjob.mail.stage import MailCounts
from certjob.outbox.claims import StageStop
from certjob.outbox.open_work import NO_WORK, OpenWork
from certjob.portal.comparison import Comparison, Difference
from certjob.portal.sync import PortalCounts
from certjob.review.attention import Attention
from certjob.review.plan import LOCKED, PlannedChange, ReviewCounts
from certjob.sorting import SortedRows

NOTHING: Set[str] = frozenset()
SEE_ALERTS = "; see `certjob alerts`"
_MOST_NAMES = 5


@dataclass(slots=True, kw_only=True)
class MailResult:
    """The mails of a run or a delivery."""

    reminders: MailCounts = field(default_factory=MailCounts)
    digests: MailCounts = field(default_factory=MailCounts)

    def to_document(self, open_work: Mapping[str, OpenWork]) -> dict[str, Any]:
        """Return ``digests``."""
        counts = {"sent": self.digests.sent, "failed": self.digests.failed}
        return {"digests": counts | {"pending": open_work["digests"].pending}}


NO_PARTS: Mapping[str, Any] = {}


@dataclass(slots=True, kw_only=True)
class Report(ABC):
    """The common parts of every report. Each command has its own class for the other parts."""

    command: str
    today: date
    dry_run: bool = False
    run_id: UUID = field(default_factory=uuid4)
    review: ReviewCounts = field(default_factory=ReviewCounts)
    portal: PortalCounts = field(default_factory=PortalCounts)
    mail: MailResult = field(default_factory=MailResult)
    open_work: Mapping[str, OpenWork] = field(default_factory=lambda: NO_WORK)
    """The open work at the end of the run."""
    held: list[str] = field(default_factory=list)
    """One line for each hold: of a run all open ones, of another command the new ones."""
    stopped: list[StageStop] = field(default_factory=list)
    crashed: bool = False
    """Whether a stage ended with an unexpected error."""
    told: Set[str] = NOTHING
    """The keys of alerts and stops that this command does not print again, because one of this day has printed them."""
    confirmed: Sequence[str] = ()
    """A line for each hide that a coordinator has confirmed and no run has printed. No exit code has it."""
    _started: float = field(default_factory=time.monotonic)

    def lines(self, told: Set[str] = NOTHING) -> list[str]:
        """Return one line for each reason for attention, without those that have been told."""
        return [*self.held, *self._stops(told), *_named(self.review), *self._failed(), *self._lost()]

    @property
    def reasons(self) -> list[str]:
        """Return the lines that decide the outcome; none means that all is well."""
        return self.lines()

    @property
    def news(self) -> list[str]:
        """Return the lines that cron mails."""
        return self.lines(self.told)

    def keys(self) -> list[str]:
        """Return the keys of the alerts and stops that this report names."""
        return [stop.key for stop in self.stopped]

    @property
    def outcome(self) -> Outcome:
        """Return ``failed`` after a crash, ``attention`` while there is a reason, otherwise ``ok``."""
        return Outcome.FAILED if self.crashed else Outcome.ATTENTION if self.reasons else Outcome.OK

    @property
    def corrections(self) -> Sequence[Difference]:
        """Return the differences on the portal that a reading corrects, or in a dry run would correct."""
        return ()

    @property
    def duration_seconds(self) -> float:
        """Return the seconds since the start of the run."""
        return round(time.monotonic() - self._started, 3)

    def to_counts(self) -> dict[str, Any]:
        """Return the numbers of the JSON document, and the corrected mentors. It has no data about people."""
        document = self.to_document()
        parts = ("mentors", "certificates", "reminders", "read", "differences", "portal", "digests")
        corrected: dict[str, list[str]] = defaultdict(list)
        for each in self.corrections:
            corrected[each.what].append(str(each.mentor_id))
        counts = {name: document[name] for name in parts if name in document}
        return counts | ({"corrected": corrected} if corrected else {})

    @abstractmethod
    def to_document(self) -> dict[str, Any]:
        """Return the JSON document, with only the parts that the command has."""

    def _document(
        self, *, before: Mapping[str, Any] = NO_PARTS, portal: Mapping[str, int], after: Mapping[str, Any] = NO_PARTS
    ) -> dict[str, Any]:
        """Return the document with these numbers of pushes, and with the parts before and after them."""
        hides, shows = self.open_work["portal_hides"], self.open_work["portal_shows"]
        pushes = {
            "delivered": self.portal.delivered,
            "failed": self.portal.failed,
            "blocked": hides.blocked + shows.blocked,
            "lost": self.portal.lost,
            "pending": hides.pending + shows.pending,
        }
        head = {
            "run_id": str(self.run_id),
            "command": self.command,
            "today": self.today.isoformat(),
            "dry_run": self.dry_run,
            "outcome": str(self.outcome),
            "duration_seconds": self.duration_seconds,
        }
        document = {**head, **before, "portal": {**portal, **pushes}, **after}
        document |= {"held": self.held, "stopped": list(map(str, self.stopped))}
        if self.crashed:
            crashes = [str(stop) for stop in self.stopped if stop.code is StageEnd.CRASH]
            document["error"] = {"code": StageEnd.CRASH, "message": "; ".join(crashes), "next_step": None}
        return document

    def _stops(self, told: Set[str]) -> list[str]:
        return [str(stop) for stop in self.stopped if stop.code is StageEnd.CRASH or stop.key not in told]

    def _failed(self, *, pushes: int | None = None, see: str = SEE_ALERTS) -> list[str]:
        """Return the numbers of failures; of ``pushes`` instead of all failed ones, if given."""
        pushes = self.portal.failed if pushes is None else pushes
        why = why_pushes_fail(self.portal.causes)
        return [
            *_counted(pushes, f"portal push failed{why}{see}", f"portal pushes failed{why}{see}"),
            *_counted(self.mail.reminders.failed, f"reminder failed{see}", f"reminders failed{see}"),
            *_counted(self.mail.digests.failed, f"digest failed{see}", f"digests failed{see}"),
        ]

    def _lost(self) -> list[str]:
        return [
            *_counted(self.portal.lost, "portal push lost its lease", "portal pushes lost their lease"),
            *_counted(self.mail.reminders.lost, "reminder lost its lease", "reminders lost their lease"),
            *_counted(self.mail.digests.lost, "digest lost its lease", "digests lost their lease"),
        ]


@dataclass(slots=True, kw_only=True)
class RunReport(Report):
    """The report of ``run``, also of a dry run."""

    command: str = "run"
    attention: Attention | None = None
    """All alerts at the end of the run, or None if it has not read them."""
    changes: SortedRows[PlannedChange] = field(default_factory=lambda: SortedRows(PlannedChange.sort_key))
    """The changes that a dry run has planned."""
    held_before: int = 0
    """Mentors of the holds whom a dry run does not list, because earlier runs hold their reminders."""

    def lines(self, told: Set[str] = NOTHING) -> list[str]:
        """Return the lines. Each reason has one: alerts follow only where no line of this run says the same."""
        review, attention = self.review, self.attention
        if attention is None:
            return Report.lines(self, told)
        about = attention.lines(told)
        said = {Kind.HELD} | {Kind.FACTS_MISSING for stop in self.stopped if stop.stage == "mirror"}
        if attention.counts[Kind.NEVER_REVIEWED].number <= len(review.skipped) + len(review.broken):
            said.add(Kind.NEVER_REVIEWED)
        return [
            *(attention.held if Kind.HELD in about else ()),
            *self._stops(told),
            *(_named(review) if Kind.NEVER_REVIEWED in about else ()),
            *(line for kind, line in about.items() if kind not in said),
            *self._lost(),
        ]

    def keys(self) -> list[str]:
        """Return the keys of the stops and of all alerts."""
        return [*Report.keys(self), *(self.attention.keys() if self.attention is not None else ())]

    @property
    def news(self) -> list[str]:
        """Return the lines that cron mails, and a last one with the number of acknowledged alerts."""
        lines = self.reasons if self.crashed else self.lines(self.told)
        number = self.attention.acknowledged if self.attention is not None else 0
        return [*lines, f"{number:,} acknowledged; see `certjob alerts --acknowledged`"] if lines and number else lines

    def to_ping(self) -> dict[str, Any]:
        """Return the body of a ping: the number of alerts of each kind, and the keys of the stops."""
        numbers = self.attention.numbers if self.attention is not None else {}
        return {
            "alerts": {kind: number for kind, number in numbers.items() if number},
            "stopped": [stop.key for stop in self.stopped],
        }

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document, in a dry run with the planned changes."""
        queued, pending = {"queued": self.review.reminders_queued}, {"pending": self.open_work["reminders"].pending}
        after = self.mail.to_document(self.open_work) | _problems(self.review) | {"held": self.held}
        if self.attention is not None:
            after |= {"alerts": self.attention.numbers, "acknowledged": self.attention.acknowledged}
        document = self._document(
            before=_reviewed(self.review) | {"reminders": queued | asdict(self.mail.reminders) | pending},
            portal={"queued": self.review.portal_queued},
            after=after,
        )
        return document | ({"changes": (each.to_document() for each in self.changes)} if self.dry_run else {})


@dataclass(slots=True, kw_only=True)
class DeliverReport(Report):
    """The report of ``deliver``. It prints only news, because cron starts one every 15 minutes."""

    command: str = "deliver"
    overdue: Mapping[str, str] = field(default_factory=dict)
    """The line about an overdue full run, by its key."""

    def lines(self, told: Set[str] | None = None) -> list[str]:
        """Return the lines; with ``told``, of the failed pushes only those that are news."""
        failed = self._failed() if told is None else self._failed(pushes=self.portal.news)
        told = told or NOTHING
        overdue = [line for key, line in self.overdue.items() if key not in told]
        return [*overdue, *self.held, *self._stops(told), *failed, *self._lost()]

    def keys(self) -> list[str]:
        """Return the keys of the stops and of an overdue full run."""
        return [*Report.keys(self), *self.overdue]

    def to_document(self) -> dict[str, Any]:
        reminders = asdict(self.mail.reminders) | {"pending": self.open_work["reminders"].pending}
        after = self.mail.to_document(self.open_work)
        document = self._document(before={"reminders": reminders}, portal={}, after=after)
        return document | {"stopped": [*self.overdue.values(), *document["stopped"]]}


@dataclass(slots=True, kw_only=True)
class RetryReport(Report):
    """The report of ``alerts --retry-all``, which shows the failures itself."""

    command: str = "alerts"
    reopened: int = 0
    """The number of reopened pushes."""
    mail_reopened: int = 0
    """The number of reminders and digests that are due now."""

    def lines(self, told: Set[str] = NOTHING) -> list[str]:
        return [*self.held, *self._stops(told), *self._failed(see=""), *self._lost()]

    def to_document(self) -> dict[str, Any]:
        return self._document(portal={"reopened": self.reopened}, after={"mail": {"reopened": self.mail_reopened}})


@dataclass(slots=True, kw_only=True)
class ResyncReport(Report):
    """The report of ``resync``, ``pause`` and ``unpause``."""

    def to_document(self) -> dict[str, Any]:
        reminders = {"queued": self.review.reminders_queued, "pending": self.open_work["reminders"].pending}
        before, portal = _reviewed(self.review) | {"reminders": reminders}, {"queued": self.review.portal_queued}
        return self._document(before=before, portal=portal, after=_problems(self.review))


@dataclass(slots=True, kw_only=True)
class ReconcileReport(Report):
    """The report of ``reconcile``, also of a dry run."""

    command: str = "reconcile"
    comparison: Comparison | None = None
    """None if the portal could not be read."""

    def lines(self, told: Set[str] = NOTHING) -> list[str]:
        """Return the lines, in a dry run only those about the reading."""
        differences = [] if self.comparison is None or self.dry_run else _differing(self.comparison)
        found = [line for line in (*self.held, *differences) if line not in told]
        return [*found, *self._stops(told), *self._failed(), *self._lost()]

    def keys(self) -> list[str]:
        """Return the keys of the stops, and the lines about the reading, because cron starts it twice a night."""
        return [*Report.keys(self), *self.lines()]

    @property
    def corrections(self) -> Sequence[Difference]:
        """Return the differences that the reading corrects, or in a dry run would correct."""
        if self.comparison is None:
            return ()
        return self.comparison.admitted if self.dry_run else self.comparison.corrected

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document. Without a reading, its numbers are None."""
        before: dict[str, Any] = {"read": None, "differences": None}
        queued, unknown = 0, list[str]()
        if (found := self.comparison) is not None:
            read = {"pages": found.reading.pages, "visible": len(found.reading.visible_until)}
            before = {"read": read, "differences": found.counts()}
            queued, unknown = len(found.corrected), list(map(str, found.unknown))
        changes = (each.to_document() for each in self.corrections)
        document = self._document(before=before, portal={"queued": queued})
        return document | {"unknown_contacts": unknown, "changes": changes}


def _differing(comparison: Comparison) -> list[str]:
    """Return the unknown contacts and the locked mentors of a comparison with the portal."""
    unknown = len(comparison.unknown)
    again = "locked by another session and not corrected, run `certjob reconcile` again"
    lines = [f"{count_in_words(Kind.UNKNOWN_CONTACTS, unknown)}; see `certjob alerts`"] if unknown else []
    return lines + _listed([each.member_no for each in comparison.locked], f"mentor is {again}", f"mentors are {again}")


def _named(review: ReviewCounts) -> list[str]:
    """Return the skipped and the broken mentors by id, the first five of each. The JSON document has all of them."""
    broken = [f"{mentor_id} ({reason})" for mentor_id, reason in review.broken.items()]
    lines = _listed(review.skipped, f"mentor was skipped ({LOCKED})", f"mentors were skipped ({LOCKED})")
    return lines + _listed(broken, "mentor could not be processed", "mentors could not be processed")


def _counted(number: int, singular: str, plural: str) -> list[str]:
    """Return one line with the number, or no line for 0."""
    return [f"{number:,} {singular if number == 1 else plural}"] if number else []


def _listed(names: Sequence[object], singular: str, plural: str) -> list[str]:
    few = ", ".join(map(str, names[:_MOST_NAMES]))
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return [f"{count}: {few}{more}" for count in _counted(len(names), singular, plural)]


def _reviewed(review: ReviewCounts) -> dict[str, Any]:
    """Return the changes of mentors and certificates."""
    return {
        "mentors": {
            "reviewed": review.reviewed,
            "paused": review.paused,
            "reinstated": review.reinstated,
            "skipped": len(review.skipped),
            "without_certificate": review.without_certificate,
        },
        "certificates": {str(status): review.transitions[status] for status in Status if status is not Status.RECORDED},
    }


def _problems(review: ReviewCounts) -> dict[str, Any]:
    return {"problems": [{"mentor_id": str(mentor_id), "reason": reason} for mentor_id, reason in review.problems]}
