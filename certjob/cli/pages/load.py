"""The page of `certjob load`: the numbers, the changes, the next run, and the problems on stderr."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from certjob.cli.terminal import plain
from certjob.cli.terminal.output import Output
from certjob.domain.explanations import number
from certjob.domain.models import PauseChange
from certjob.facts.loading import FactChange, LoadReport
from certjob.facts.roster import Problem
from certjob.jobs.report import RunReport
from certjob.review.plan import PlannedChange

COMMAND = "certjob load"
MOST_LINES: Final = 20
"""Lines of one kind of problem, and changes of one kind. --json has all of them."""
_NUMBERS = ("rows", "skipped", "mentors_added", "mentors_changed", "certificates_added", "certificates_changed")
_LIFTS: Final = {"revoked_on": " (revocation lifted)", "left_on": " (departure lifted)"}
"""The changes that --exact makes if the value is removed. All of them are named."""


def show_load(output: Output, report: LoadReport, next_run: RunReport, *, json: bool, dry_run: bool) -> None:
    """Print the result of a load, the problems of the file, and the plan of the next run."""
    numbers = {name: getattr(report, name) for name in _NUMBERS}
    planned = next_run.to_document()
    paused, back = planned["mentors"]["paused"], planned["mentors"]["resumed"]
    reminders = planned["reminders"]["queued"]
    effects = itertools.chain.from_iterable(map(_effects, next_run.changes if dry_run else ()))
    if json:
        document = {
            "outcome": "attention" if report.skipped else "ok",
            **numbers,
            "paused_next_run": paused,
            "brought_back_next_run": back,
            "reminders_next_run": reminders,
            "held_next_run": next_run.held,
            "new_kinds": [asdict(each) for each in report.new_kinds],
            "problems": [_without(each, "mentor") | {"member_no": _member_no(each)} for each in report.problems],
            "dry_run": dry_run,
            "changes": [_without(each, "number") for each in report.changes],
            "next_run": effects,
        }
        plain.print_json(document)
    else:
        if output.interactive or dry_run:
            rows = [(name.replace("_", " "), f"{value:,}") for name, value in numbers.items() if value]
            output.show_rows(("What", ">Number"), rows)
        for line in itertools.chain(_change_lines(report, dry_run=dry_run), _groups(effects)):
            output.text(line)
    _show_problems(report.problems)
    if report.skipped:
        text = f"{report.skipped:,} of {report.rows:,} rows were skipped, {report.rows - report.skipped:,} loaded"
        plain.print_attention(COMMAND, text)
    if paused or next_run.held or dry_run:
        queued = number(reminders, "reminder")
        plan = f"the next run will pause {number(paused, 'mentor')}, reinstate {back:,} and queue {queued}"
        plain.print_note(COMMAND, plan)
    for line in next_run.held:
        plain.print_note(COMMAND, f"the next run will hold back {line}")
    if dry_run:
        plain.print_note(COMMAND, "--dry-run: nothing was loaded")


def _without(row: FactChange | Problem, name: str) -> dict[str, Any]:
    document = asdict(row)
    del document[name]
    return document


def _member_no(problem: Problem) -> str | None:
    return problem.mentor[1] if problem.mentor else None


def _change_lines(report: LoadReport, *, dry_run: bool) -> Iterator[str]:
    """Yield a line for each change of a fact, and each new kind; without --dry-run only for what --exact names."""
    shown: Counter[str] = Counter()
    for change in report.changes:
        is_named = change.what == "stays" or (change.what in _LIFTS and change.new is None)
        shown[change.what] += is_named or dry_run
        if is_named or (dry_run and shown[change.what] <= MOST_LINES):
            yield f"{change.organisation} {change.member_no}: {_words(change)}"
        elif dry_run and shown[change.what] == MOST_LINES + 1:
            yield f"… and {change.number - MOST_LINES:,} more: {change.what}"
    for each in report.new_kinds if dry_run else ():
        yield f"{each.organisation}: new kind {each.kind} ({number(each.certificates, 'certificate')})"


def _words(change: FactChange) -> str:
    """Return the changes of a load, from the old value to the new one."""
    about = f"{change.kind} of {change.issued_on}: " if change.kind else ""
    match change.what:
        case "mentor":
            return f"new mentor {change.new or ''}".rstrip()
        case "certificate":
            return f"{about}new, until {change.new}"
        case "stays":
            return f"{about}not in the file, stays until {change.old}"
    lift = _LIFTS.get(change.what, "") if change.new is None else ""
    return f"{about}{change.what}: {change.old or 'none'} → {change.new or 'none'}{lift}"


def _groups(effects: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each kind of effect of the next run, with the first mentors."""
    groups: dict[str, list[str]] = defaultdict(list)
    for effect in effects:
        name = effect["what"] + (" (held back)" if effect["held"] else "")
        groups[name].append(f"{effect['organisation']} {effect['member_no']}")
    for name, mentors in groups.items():
        rest = f", … and {len(mentors) - MOST_LINES:,} more" if len(mentors) > MOST_LINES else ""
        yield f"next run: {len(mentors):,} {name}: {', '.join(mentors[:MOST_LINES])}{rest}"


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
    if decision.push and decision.moved_from is None:
        yield mentor | {"what": "shown" if decision.visible else "hidden", "held": held}
    if change.new_reminders:
        yield mentor | {"what": "reminded", "held": change.reminders_are_held}


def _show_problems(problems: Sequence[Problem]) -> None:
    """Print the first lines of each kind of problem, then the number of the others."""
    shown: Counter[tuple[str, bool]] = Counter()
    for problem in problems:
        text = problem.reason if problem.column == "line" else f"{problem.column}: {problem.reason}"
        shown[text, problem.loaded] += 1
        if shown[text, problem.loaded] <= MOST_LINES:
            line = f"line {problem.line} {'loaded' if problem.loaded else 'skipped'}"
            _say(problem.is_warning, ": ".join(filter(None, [line, _member_no(problem), text])))
    for (text, loaded), count in shown.items():
        if count > MOST_LINES:
            _say(loaded, f"… and {count - MOST_LINES:,} more {'loaded' if loaded else 'skipped'}: {text}")


def _say(is_warning: bool, text: str) -> None:
    (plain.print_warning if is_warning else plain.print_attention)(COMMAND, text)
