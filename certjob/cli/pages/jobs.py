"""The pages of `run`, `deliver`, `reconcile` and `resync`: the plan, the totals, a mentor before and after."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from certjob.cli.terminal.lines import PageLine
from certjob.cli.terminal.output import Output
from certjob.domain.causes import HELD_REASONS
from certjob.domain.explanations import number, reason_words
from certjob.domain.models import Decision, PauseChange
from certjob.facts.lookup import MentorName
from certjob.jobs.report import ReconcileReport, Report, RunReport
from certjob.jobs.resync import MentorState
from certjob.portal.comparison import Difference
from certjob.review.plan import PlannedChange

MOST_PLANNED_ROWS: Final = 50
"""Mentors of a plan on a terminal. --json has all of them."""
_TITLES: Final = {"run": "Run", "reconcile": "Comparison with the portal"}

FindNames = Callable[[Sequence[UUID]], Mapping[UUID, MentorName]]
"""Called on a terminal only, because plain lines have no names."""


def show_report(output: Output, report: Report, *, find_names: FindNames) -> None:
    """Print the changes that a dry run would make, mentor by mentor, then the totals of any run."""
    if isinstance(report, RunReport) and report.changes:
        _show_changes(output, report, find_names)
    if isinstance(report, ReconcileReport) and report.comparison is not None:
        _show_differences(output, report.corrections, find_names, dry_run=report.dry_run)
        for contact_id in report.comparison.unknown[:MOST_PLANNED_ROWS]:
            text = f"contact {contact_id}: visible on the portal, belongs to no mentor"
            output.show_lines([PageLine(text=text, bullet="- " if output.on_terminal else "")])
    totals = list(_totals(report))
    if output.on_terminal:
        what = "Plan" if report.dry_run and isinstance(report, RunReport) else _TITLES.get(report.command, "Delivery")
        if isinstance(report, RunReport) and report.changes:
            output.gap()
        output.show_table(("=", ""), totals, title=f"{what} of {report.today}", header=False)
    else:
        output.result("; ".join(f"{name}: {figures}" for name, figures in totals))


def show_resync(output: Output, before: MentorState, after: MentorState) -> None:
    """Print one mentor's state before and after."""
    for when, state in (("before: ", before), ("after:  ", after)):
        output.show_lines([PageLine(bullet=when, text=_state_line(state))])


def _show_changes(output: Output, report: RunReport, find_names: FindNames) -> None:
    """Print a table of the first and all held mentors, with columns for holds and organisations if they are needed."""
    shown = []
    if output.on_terminal:
        shown = [each for row, each in enumerate(report.changes) if row < MOST_PLANNED_ROWS or each.is_held]
    names = find_names([change.decision.mentor_id for change in shown]) if shown else {}
    slug, *others = {change.decision.organisation.slug for change in report.changes} if shown else {""}
    has_holds = any(change.is_held for change in shown)
    rows = []
    for change in shown:
        decision, name = change.decision, names.get(change.decision.mentor_id)
        held = [(change.held_because or "").replace("_", " ")] if has_holds else []
        organisation = [decision.organisation.slug] if others else []
        cells = _planned_cells(change).values()
        rows.append([decision.member_no, name and name.full_name, *cells, *held, *organisation])
    headings = ["=No.", "~Name", "Certificates", "=Pause", "Reminder", "=Portal"]
    headings += (["Held back"] if has_holds else []) + (["~Org"] if others else [])
    title = f"What `certjob run` would do on {report.today}" + ("" if others else f" for {slug}")
    output.show_rows(headings, rows, title=title, plain=map(_planned_line, report.changes))
    _show_more(output, len(report.changes), most=max(len(shown), MOST_PLANNED_ROWS))
    if has_holds:
        output.result("`certjob resync MENTOR` permits the held changes of one mentor.")


def _show_differences(
    output: Output, differences: Sequence[Difference], find_names: FindNames, *, dry_run: bool
) -> None:
    """Print a line for each difference, on a terminal with names and only the first."""
    if not output.on_terminal:
        for each in differences:
            words = _difference_words(each, dry_run=dry_run)
            output.result(f"{each.organisation} {each.member_no}: {words} (contact {each.contact_id})")
        return
    shown = differences[:MOST_PLANNED_ROWS]
    names = find_names([each.mentor_id for each in shown])
    for each in shown:
        name, who = names.get(each.mentor_id), f"{each.member_no} of {each.organisation}, contact {each.contact_id}"
        who = f"{name.full_name} ({who})" if name and name.full_name else who
        words = _difference_words(each, dry_run=dry_run)
        output.show_lines([PageLine(text=f"{who}: {words}", bullet="- ")])
    _show_more(output, len(differences))


def _show_more(output: Output, count: int, *, most: int = MOST_PLANNED_ROWS) -> None:
    if output.on_terminal and count > most:
        output.result(f"… and {count - most:,} more; --json lists all of them")


def _planned_line(change: PlannedChange) -> str:
    cells = "; ".join(f"{name}: {cell}" for name, cell in _planned_cells(change).items() if cell)
    decision = change.decision
    held = f" (held back: {HELD_REASONS[change.held_because]})" if change.held_because else ""
    return f"{decision.organisation.slug} {decision.member_no}: {cells}{held}"


def _planned_cells(change: PlannedChange) -> dict[str, str]:
    """Return the changes of a mentor's certificates, pause, reminders and visibility."""
    decision = change.decision
    transitions = Counter(str(transition.to_status) for transition in decision.transitions)
    reminders = ", ".join(_threshold(reminder.threshold_days) for reminder in change.new_reminders)
    if reminders and not change.has_address:
        reminders += ", no address"
    if reminders and change.reminders_are_held and not change.is_held:
        reminders += " (held back)"
    return {
        "certificates": ", ".join(words if count == 1 else f"{count} {words}" for words, count in transitions.items()),
        "pause": {PauseChange.OPEN: "starts", PauseChange.LIFT: "ends", None: ""}[decision.pause],
        "reminder": reminders,
        "portal": _push_words(decision),
    }


def _push_words(decision: Decision) -> str:
    if not decision.push:
        return ""
    if decision.moved_from is not None:
        return "new last day"
    return "show" if decision.visible else "hide"


def _threshold(days: int) -> str:
    """Return a threshold for a narrow column.

    >>> _threshold(30), _threshold(0), _threshold(-1)
    ('30 d before', 'last day', '1 d after')
    """
    return "last day" if days == 0 else f"{abs(days)} d {'before' if days > 0 else 'after'}"


def _difference_words(difference: Difference, *, dry_run: bool) -> str:
    match difference.what:
        case "last_day":
            return f"visible on the portal until another day, which {'would be' if dry_run else 'was'} corrected"
        case "shown":
            return f"hidden on the portal, {'would be shown' if dry_run else 'a show was pushed'}"
        case "hidden":
            return f"visible on the portal, {'would be hidden' if dry_run else 'a hide was pushed'}"


def correction_words(report: Report) -> str | None:
    """Return the corrections of a reading in one line, or None."""
    counts = Counter[str](difference.what for difference in report.corrections)
    words = (("hidden", "hidden"), ("shown", "shown"), ("last_day", "with another last day"))
    parts = ", ".join(f"{counts[what]:,} {text}" for what, text in words if counts[what])
    return f"corrected {number(counts.total(), 'difference')} on the portal: {parts}" if parts else None


def _totals(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the parts of a report with their figures. Digests are left out if there are none."""
    document, held = report.to_document(), dict[str, int]()
    if isinstance(report, RunReport):
        held = {"mentors": report.review.held_back, "reminders": report.review.reminders_held_back}
    for part in ("mentors", "certificates", "reminders", "read", "differences", "portal", "digests"):
        figures = document.get(part) or {}
        held_back = f"{held[part]:,} held back" if held.get(part) else ""
        words = "; ".join(filter(None, [_figures(figures), held_back]))
        if words or (figures and part != "digests"):
            yield part, words or "nothing"
    if document.get("acknowledged"):
        yield "acknowledged", f"{document['acknowledged']:,} of the alerts"
    if waits := document.get("mail_waits_until"):
        yield "mail", f"waits until {datetime.fromisoformat(waits):%H:%M} (CERTJOB_MAIL_HOURS)"


def _figures(figures: Mapping[str, int]) -> str:
    """Return the figures that are not 0: done by this run, new, and open at the end, from any run.

    >>> _figures({"queued": 19, "delivered": 16, "failed": 3, "blocked": 2, "pending": 1}), _figures({"queued": 2})
    ('16 delivered, 3 failed; 19 new; 3 open, of these 2 blocked', '2 new')
    """
    counts = {name: value for name, value in figures.items() if value}
    new, blocked, pending = (counts.pop(name, 0) for name in ("queued", "blocked", "pending"))
    done = []
    for name, count in counts.items():
        words = {"resumed": "reinstated"}.get(name, name).replace("_", " ")
        done.append(f"{count:,} {words.removesuffix('s') if count == 1 else words}")
    of_these = f", of these {blocked:,} blocked" if blocked else ""
    parts = [
        ", ".join(done),
        f"{new:,} new" if new else "",
        f"{pending + blocked:,} open{of_these}" if pending + blocked else "",
    ]
    return "; ".join(filter(None, parts))


def _state_line(state: MentorState) -> str:
    words = {True: "visible", False: "hidden", None: "unknown"}
    certificates = ", ".join(state.certificates) or "no certificate"
    pauses = f"paused: {', '.join(map(reason_words, state.pauses))}" if state.pauses else "not paused"
    portal = "no portal"
    if state.has_portal:
        portal = f"portal wanted {words[state.desired]}, confirmed {words[state.acknowledged]}"
        portal += f", push {state.open_push}" if state.open_push else ""
    return f"{state.member_no}: {certificates}; {pauses}; {portal}"
