"""Load a file or undo the last load, plan the next run, and describe both."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, tzinfo
from functools import partial
from typing import Any, Final

from certjob.database import Connection
from certjob.domain.explanations import moment_words, number
from certjob.domain.models import PauseChange
from certjob.domain.rules import COURSE_DAYS
from certjob.facts import loading
from certjob.facts.loading import FactChange
from certjob.facts.lookup import name_mentors
from certjob.facts.roster import Problem
from certjob.jobs.acknowledge import user_name
from certjob.jobs.planning import plan_next_run
from certjob.page import Line, Table
from certjob.review.plan import PlannedChange

MOST_LINES: Final = 20
"""Lines of one kind of problem. --json has all of them."""
_MOST_NAMES: Final = 10
_NUMBERS = ("rows", "skipped", "mentors_added", "mentors_changed", "certificates_added", "certificates_changed")
_CHANGES = {"organisation": "Org", "member_no": "No.", "kind": "Kind", "issued_on": "Issued", "what": "Change"}
_CHANGES |= {"old": "Old", "new": "New"}
_EFFECTS: Final = {"what": "Next run", "organisation": "Org", "member_no": "No.", "full_name": "Name", "held": "Guard"}
_HARM: Final = ("paused", "hidden", "earlier last day", "reinstated and shown", "reinstated", "shown", "later last day")
"""The effects of a run, the most harmful first. Reminders are the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The plan of the next run with the facts after a load, or after its undoing."""

    effects: Sequence[dict[str, Any]]
    """The effects of the next run, by mentor."""
    held: Sequence[str]
    """A line for each kind of changes that the guards will hold back."""
    dry_run: bool

    def notes(self) -> Iterator[str]:
        """Yield the plan in lines: the numbers with names, and the changes that guards will hold back."""
        groups: dict[tuple[int, str], list[str]] = defaultdict(list)
        for each in self.effects:
            place = _HARM.index(each["what"]) if each["what"] in _HARM else len(_HARM)
            name = f"{each['member_no']} {each['full_name'] or ''}".strip()
            groups[place, f"{each['what']}{', held back' if each['held'] else ''}"].append(name)
        words = []
        for (_, what), names in sorted(groups.items()):
            more = ["…"] if len(names) > _MOST_NAMES else []
            words.append(f"{len(names):,} {what} ({', '.join(names[:_MOST_NAMES] + more)})")
        yield f"next run: {'; '.join(words) or 'no change'}"
        yield from (f"the next run will hold back {line}" for line in self.held)
        if self.dry_run:
            yield "--dry-run: nothing was changed"

    def tables(self, changes: Sequence[FactChange]) -> Iterator[Table]:
        """Yield, of a dry run, each change of a fact by the load, and each change of the next run."""
        rows = [each | {"held": "held back" if each["held"] else None} for each in self.effects]
        for table in (Table([asdict(each) for each in changes], _CHANGES), Table(rows, _EFFECTS)):
            if self.dry_run and table.rows:
                yield table

    def document(self) -> dict[str, Any]:
        """Return the keys of the JSON document."""
        return {"dry_run": self.dry_run, "held_next_run": self.held, "next_run": self.effects}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The result of a load."""

    report: loading.LoadReport
    next_run: Planned

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document."""
        document = asdict(self.report) | self.next_run.document() | {"doubts": list(self.doubts())}
        for problem in document["problems"]:
            mentor = problem.pop("mentor")
            problem["member_no"] = mentor[1] if mentor else None
        del document["old_certificates"]
        return {"outcome": "attention" if self.report.skipped else "ok"} | document

    def page(self, *, with_numbers: bool) -> Iterator[Line | Table]:
        """Yield the numbers and, of a dry run, each change."""
        for name in _NUMBERS if with_numbers or self.next_run.dry_run else ():
            if value := getattr(self.report, name):
                yield Line(f"{value:,}", head=f"{name.replace('_', ' ')}: ")
        yield from self.next_run.tables(self.report.changes)

    def doubts(self) -> Iterator[str]:
        """Yield a line for each unusual fact, because a person should look at it."""
        if old := self.report.old_certificates:
            examples = ", ".join(f"{each.member_no} {each.kind} from {each.issued_on}" for each in old)
            certificates = number(old[0].number, "new certificate")
            yield f"{certificates} of known mentors began more than {COURSE_DAYS} days ago ({examples})"
        for each in self.report.new_kinds:
            yield f"{each.organisation}: new kind {each.kind} ({each.certificates:,}): its end pauses these mentors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """The result of undoing the last load."""

    undone: loading.Undone
    next_run: Planned

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document."""
        outcome = "attention" if self.undone.kept else "ok"
        return {"outcome": outcome} | asdict(self.undone) | self.next_run.document()

    def page(self, *, today: date, zone: tzinfo) -> Iterator[Line | Table]:
        """Yield the load, and of a dry run each change that it made and each change of the next run."""
        undone = self.undone
        at = moment_words(undone.loaded_at.astimezone(zone), today)
        yield Line(f"{at}, by {undone.loaded_by}, {number(len(undone.changes), 'change')}", head="undone load: ")
        yield from self.next_run.tables(undone.changes)

    def kept(self) -> Iterator[str]:
        """Yield a line for each row that was left as it is."""
        for each in self.undone.kept:
            row = f"{each.kind} of {each.issued_on}" if each.kind else "the mentor"
            who = " ".join(filter(None, [each.organisation, each.member_no, each.full_name]))
            yield f"not undone: {who}: {row}, {each.why}"


def load(connection: Connection, content: bytes, *, today: date, dry_run: bool) -> Loaded:
    """Load a file as ``load_file`` does. Plan the next run with the facts after the load, also of a dry run.

    The plan has all due mentors, and the guards of a run without --allow.
    """
    plans: list[Planned] = []
    plan = partial(_plan, connection, plans, today=today, dry_run=dry_run)
    report = loading.load_file(connection, content, today=today, by=_signature(), dry_run=dry_run, before_rollback=plan)
    if not dry_run:
        plan()
    return Loaded(report=report, next_run=plans[-1])


def undo(connection: Connection, *, today: date, dry_run: bool) -> Undone:
    """Undo the last load as ``undo_load`` does, and plan the next run as ``load`` does."""
    plans: list[Planned] = []
    plan = partial(_plan, connection, plans, today=today, dry_run=dry_run)
    undone = loading.undo_load(connection, by=_signature(), dry_run=dry_run, before_rollback=plan)
    if not dry_run:
        plan()
    return Undone(undone=undone, next_run=plans[-1])


def problem_lines(problems: Iterable[Problem]) -> Iterator[tuple[str, bool]]:
    """Yield the first lines of each kind of problem and the number of the others, and whether it is a warning only."""
    kinds: dict[tuple[str, bool], list[Problem]] = defaultdict(list)
    for problem in problems:
        text = problem.reason if problem.column == "line" else f"{problem.column}: {problem.reason}"
        kinds[text, problem.loaded].append(problem)
    for (text, loaded), same in kinds.items():
        outcome = "loaded" if loaded else "skipped"
        for problem in same[:MOST_LINES]:
            who = problem.mentor[1] if problem.mentor else None
            yield ": ".join(filter(None, [f"line {problem.line} {outcome}", who, text])), problem.is_warning
        if len(same) > MOST_LINES:
            yield f"… and {len(same) - MOST_LINES:,} more {outcome}: {text}", loaded


def _signature() -> str:
    return f"cli:{user_name()}"


def _plan(connection: Connection, plans: list[Planned], *, today: date, dry_run: bool) -> None:
    """Append the plan of the next run."""
    report = plan_next_run(connection, today=today)
    effects = [effect for change in report.changes for effect in _effects(change)]
    names = name_mentors(connection, {each["mentor_id"] for each in effects})
    for each in effects:
        each["full_name"] = names[each["mentor_id"]].full_name if each["mentor_id"] in names else None
    plans.append(Planned(effects=effects, held=report.held, dry_run=dry_run))


def _effects(change: PlannedChange) -> Iterator[dict[str, Any]]:
    """Yield the effects of the next run on a mentor, and whether a guard holds them."""
    decision, what = change.decision, None
    mentor: dict[str, Any] = {"organisation": decision.organisation.slug, "member_no": decision.member_no}
    mentor |= {"mentor_id": decision.mentor_id}
    old, new = change.last_days.values()
    shows = decision.push and decision.visible and not decision.new_last_day
    if decision.pause is PauseChange.OPEN:
        what = "paused"
    elif decision.push and not decision.visible:
        what = "hidden"
    elif decision.pause is PauseChange.LIFT:
        what = "reinstated and shown" if shows else "reinstated"
    elif shows:
        what = "shown"
    elif old and new and old != new:
        what = "later last day" if old < new else "earlier last day"
    if what:
        yield mentor | {"what": what, "held": change.is_held}
    if change.new_reminders:
        yield mentor | {"what": "reminded", "held": change.held_because is not None}
