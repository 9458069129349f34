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
from certjob.facts.loading import FactChange
from certjob.facts.roster import Problem
from certjob.jobs.load import Loaded
from certjob.jobs.report import RunReport
from certjob.review.plan import PlannedChange

COMMAND = "certjob load"
MOST_LINES: Final = 20
"""Lines of one kind of problem, and changes of one kind. --json has all of them."""
_NUMBERS = ("rows", "skipped", "mentors_added", "mentors_changed", "certificates_added", "certificates_changed")
_LIFTS: Final = {"revoked_on": " (revocation lifted)", "left_on": " (departure lifted)"}
"""The changes that --exact makes if the value is removed. All of them are named."""


def show_load(output: Output, loaded: Loaded, *, json: bool, dry_run: bool) -> None:
    """Print the result of a load, the problems of the file, and the forecast of the next run."""
    report = loaded.report
    numbers = {name: getattr(report, name) for name in _NUMBERS}
    if json:
        plain.print_json(_to_document(loaded, numbers, dry_run=dry_run))
    elif output.interactive or dry_run:
        rows = [(name.replace("_", " "), f"{value:,}") for name, value in numbers.items() if value]
        output.show_rows(("What", ">Number"), rows)
    for line in () if json else _change_lines(loaded, dry_run=dry_run):
        output.text(line)
    _show_problems(report.problems)
    if report.skipped:
        text = f"{report.skipped:,} of {report.rows:,} rows were skipped, {report.rows - report.skipped:,} loaded"
        plain.print_attention(COMMAND, text)
    for line in _foreseen(loaded.next_run, always=dry_run):
        plain.print_note(COMMAND, line)
    if dry_run:
        plain.print_note(COMMAND, "--dry-run: nothing was loaded")


def _to_document(loaded: Loaded, numbers: dict[str, int], *, dry_run: bool) -> dict[str, Any]:
    """Return the JSON document. Only a dry run has the plan of the next run."""
    report, next_run = loaded.report, loaded.next_run
    changes = [{name: value for name, value in asdict(each).items() if name != "number"} for each in report.changes]
    return {
        "outcome": "attention" if report.skipped else "ok",
        **numbers,
        **_next_run(next_run),
        "new_kinds": [asdict(each) for each in report.new_kinds],
        "problems": list(map(_problem, report.problems)),
        "dry_run": dry_run,
        "changes": changes,
        "next_run": itertools.chain.from_iterable(map(_effects, next_run.changes)) if dry_run else [],
    }


def _change_lines(loaded: Loaded, *, dry_run: bool) -> Iterator[str]:
    """Yield a line for each change of a fact, each new kind, and each group of mentors that the next run changes."""
    shown: Counter[str] = Counter()
    for change in loaded.report.changes:
        is_named = change.what == "stays" or (change.what in _LIFTS and change.new is None)
        if not (dry_run or is_named):
            continue
        shown[change.what] += 1
        if is_named or shown[change.what] <= MOST_LINES:
            yield f"{change.organisation} {change.member_no}: {_words(change)}"
        elif shown[change.what] == MOST_LINES + 1:
            yield f"… and {change.number - MOST_LINES:,} more: {change.what}"
    if dry_run:
        for each in loaded.report.new_kinds:
            yield f"{each.organisation}: new kind {each.kind} ({number(each.certificates, 'certificate')})"
        yield from _groups(loaded.next_run.changes)


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


def _groups(changes: Iterable[PlannedChange]) -> Iterator[str]:
    """Yield the forecast of the next run, with the first mentors of each group."""
    groups: dict[str, list[str]] = defaultdict(list)
    numbers: Counter[str] = Counter()
    for effect in itertools.chain.from_iterable(map(_effects, changes)):
        name = effect["what"] + (" (held back)" if effect["held"] else "")
        numbers[name] += 1
        if numbers[name] <= MOST_LINES:
            groups[name].append(f"{effect['organisation']} {effect['member_no']}")
    for name, mentors in groups.items():
        rest = f", … and {numbers[name] - MOST_LINES:,} more" if numbers[name] > MOST_LINES else ""
        yield f"next run: {numbers[name]:,} {name}: {', '.join(mentors)}{rest}"


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


def _foreseen(next_run: RunReport, *, always: bool) -> Iterator[str]:
    """Yield lines about the next run: a sum if it pauses anyone, and each hold with the command that permits it."""
    numbers = _next_run(next_run)
    paused, back = numbers["paused_next_run"], numbers["brought_back_next_run"]
    if paused or next_run.held or always:
        reminders = number(numbers["reminders_next_run"], "reminder")
        yield f"the next run will pause {number(paused, 'mentor')}, reinstate {back:,} and queue {reminders}"
    yield from (f"the next run will hold back {line}" for line in next_run.held)


def _next_run(next_run: RunReport) -> dict[str, Any]:
    """Return the numbers of the next run, without held changes."""
    document = next_run.to_document()
    return {
        "paused_next_run": document["mentors"]["paused"],
        "brought_back_next_run": document["mentors"]["resumed"],
        "reminders_next_run": document["reminders"]["queued"],
        "held_next_run": next_run.held,
    }


def _show_problems(problems: Sequence[Problem]) -> None:
    """Print the first lines of each kind of problem, then the number of the others."""
    shown: Counter[tuple[str, str, bool]] = Counter()
    for problem in problems:
        kind = (problem.column, problem.reason, problem.loaded)
        shown[kind] += 1
        if shown[kind] <= MOST_LINES:
            where = [f"line {problem.line}", *([problem.mentor[1]] if problem.mentor else []), problem.column]
            _say(problem.is_warning, f"{': '.join(where)}: {problem.reason} ({_result(loaded=problem.loaded)})")
    for (column, reason, loaded), count in shown.items():
        if count > MOST_LINES:
            more = f"… and {count - MOST_LINES:,} more: {column}: {reason} ({_result(loaded=loaded)})"
            _say(loaded, more)


def _say(is_warning: bool, text: str) -> None:
    say = plain.print_warning if is_warning else plain.print_attention
    say(COMMAND, text)


def _result(*, loaded: bool) -> str:
    return "loaded" if loaded else "skipped"


def _problem(problem: Problem) -> dict[str, Any]:
    """Return the entry of ``problems``."""
    document = asdict(problem) | {"member_no": problem.mentor[1] if problem.mentor else None}
    del document["mentor"]
    return document
