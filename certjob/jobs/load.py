"""Load a file, plan the next run, and describe both."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Final

from certjob.database import Connection
from certjob.domain.explanations import number
from certjob.domain.models import PauseChange
from certjob.facts.loading import FactChange, LoadReport, load_file
from certjob.facts.roster import Problem
from certjob.jobs.planning import plan_next_run
from certjob.jobs.report import RunReport
from certjob.page import Line, Table
from certjob.review.plan import PlannedChange

MOST_LINES: Final = 20
"""Lines of one kind of problem, and mentors of one effect. --json has all of them."""
_NUMBERS = ("rows", "skipped", "mentors_added", "mentors_changed", "certificates_added", "certificates_changed")
_LIFTS: Final = {"revoked_on": "revocation lifted", "left_on": "departure lifted"}
"""The changes that --exact makes if the value is removed. All of them are named."""
_CHANGES = {"organisation": "Org", "member_no": "No.", "kind": "Kind", "issued_on": "Issued", "what": "Change"}
_CHANGES |= {"old": "Old", "new": "New"}
_EFFECTS: Final = {"what": "Next run", "organisation": "Org", "member_no": "No.", "held": "Guard"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The result of a load, and the plan of the next run with the facts after it."""

    report: LoadReport
    next_run: RunReport
    dry_run: bool

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document."""
        report, planned = self.report, self.next_run.to_document()
        return {
            "outcome": "attention" if report.skipped else "ok",
            **{name: getattr(report, name) for name in _NUMBERS},
            "paused_next_run": planned["mentors"]["paused"],
            "brought_back_next_run": planned["mentors"]["resumed"],
            "reminders_next_run": planned["reminders"]["queued"],
            "held_next_run": self.next_run.held,
            "new_kinds": [asdict(each) for each in report.new_kinds],
            "problems": [_without(each, "mentor") | {"member_no": _member_no(each)} for each in report.problems],
            "dry_run": self.dry_run,
            "changes": [_without(each, "number") for each in report.changes],
            "next_run": self._effects(),
        }

    def page(self, *, with_numbers: bool) -> Iterator[Line | Table]:
        """Yield the numbers, each change of a fact, and the next run; without --dry-run only what --exact names."""
        for name in _NUMBERS if with_numbers or self.dry_run else ():
            if value := getattr(self.report, name):
                yield Line(f"{value:,}", head=f"{name.replace('_', ' ')}: ")
        rows = [
            asdict(each) | {"what": _words(each)} for each in self.report.changes if self.dry_run or _is_named(each)
        ]
        if rows:
            yield Table(rows, _CHANGES)
        for each in self.report.new_kinds if self.dry_run else ():
            yield Line(f"{each.organisation}: new kind {each.kind} ({number(each.certificates, 'certificate')})")
        if effects := list(self._effects()):
            yield Table([each | {"held": "held back" if each["held"] else None} for each in effects], _EFFECTS)

    def notes(self) -> Iterator[str]:
        """Yield the plan of the next run in lines."""
        planned = self.to_document()
        if planned["paused_next_run"] or self.next_run.held or self.dry_run:
            paused, queued = (
                number(planned["paused_next_run"], "mentor"),
                number(planned["reminders_next_run"], "reminder"),
            )
            back = planned["brought_back_next_run"]
            yield f"the next run will pause {paused}, reinstate {back:,} and queue {queued}"
        for line in self.next_run.held:
            yield f"the next run will hold back {line}"
        if self.dry_run:
            yield "--dry-run: nothing was loaded"

    def _effects(self) -> Iterator[dict[str, Any]]:
        return itertools.chain.from_iterable(map(_effects, self.next_run.changes if self.dry_run else ()))


def load(connection: Connection, content: bytes, *, today: date, dry_run: bool, exact: bool) -> Loaded:
    """Load a file as ``load_file`` does. Plan the next run with the facts after the load, also of a dry run.

    The plan has all due mentors, and the guards of a run without --allow.
    """
    plans: list[RunReport] = []

    def plan() -> None:
        plans.append(plan_next_run(connection, today=today))

    report = load_file(connection, content, today=today, dry_run=dry_run, exact=exact, before_rollback=plan)
    if not dry_run:
        plan()
    return Loaded(report=report, next_run=plans[-1], dry_run=dry_run)


def problem_lines(problems: Iterable[Problem]) -> Iterator[tuple[str, bool]]:
    """Yield the first lines of each kind of problem and the number of the others, and whether it is a warning only."""
    kinds: dict[tuple[str, bool], list[Problem]] = defaultdict(list)
    for problem in problems:
        text = problem.reason if problem.column == "line" else f"{problem.column}: {problem.reason}"
        kinds[text, problem.loaded].append(problem)
    for (text, loaded), same in kinds.items():
        outcome = "loaded" if loaded else "skipped"
        for problem in same[:MOST_LINES]:
            who = _member_no(problem)
            yield ": ".join(filter(None, [f"line {problem.line} {outcome}", who, text])), problem.is_warning
        if len(same) > MOST_LINES:
            yield f"… and {len(same) - MOST_LINES:,} more {outcome}: {text}", loaded


def _without(row: FactChange | Problem, name: str) -> dict[str, Any]:
    document = asdict(row)
    del document[name]
    return document


def _member_no(problem: Problem) -> str | None:
    return problem.mentor[1] if problem.mentor else None


def _is_named(change: FactChange) -> bool:
    return change.what == "stays" or (change.what in _LIFTS and change.new is None)


def _words(change: FactChange) -> str:
    if change.what == "stays":
        return "not in the file, stays"
    return f"{change.what} ({_LIFTS[change.what]})" if _is_named(change) else change.what


def _effects(change: PlannedChange) -> Iterator[dict[str, Any]]:
    """Yield each change of a mentor in the next run, and whether a guard holds it."""
    decision, held = change.decision, change.is_held
    mentor = {
        "organisation": decision.organisation.slug,
        "member_no": decision.member_no,
        "mentor_id": decision.mentor_id,
    }
    if decision.pause:
        yield mentor | {"what": "paused" if decision.pause is PauseChange.OPEN else "reinstated", "held": held}
    if decision.push and not decision.new_last_day:
        yield mentor | {"what": "shown" if decision.visible else "hidden", "held": held}
    if change.new_reminders:
        yield mentor | {"what": "reminded", "held": change.reminders_are_held}
