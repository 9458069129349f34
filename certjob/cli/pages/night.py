"""What a night says to people: the plan, the totals, one mentor before and after."""

from collections.abc import Iterator, Sequence
from datetime import date

from certjob.cli.terminal.lines import PageLine
from certjob.cli.terminal.output import Output, clean, new_table
from certjob.cli.terminal.plain import harmless
from certjob.domain.explanations import reason_words, threshold_words
from certjob.domain.models import PauseChange, Status
from certjob.night.report import PlannedChange, RunReport
from certjob.night.resync import MentorState

MOST_PLANNED_ROWS = 50
"""A plan on a terminal shows so many mentors; --json has all of them."""


def show_plan(output: Output, report: RunReport) -> None:
    """Print what a run would do, mentor by mentor, and the totals."""
    if not output.on_terminal:
        for change in report.changes:
            output.result(_planned_line(change))
    elif report.changes:
        _show_changes(output, report.changes[:MOST_PLANNED_ROWS], today=report.today)
        if len(report.changes) > MOST_PLANNED_ROWS:
            output.result(f"… and {len(report.changes) - MOST_PLANNED_ROWS:,} more; --json lists all of them")
    show_totals(output, report)


def _show_changes(output: Output, changes: Sequence[PlannedChange], *, today: date) -> None:
    """Print a table, one row per mentor."""
    table = new_table(
        *("Mentor", "Organisation", "Certificates", "Pause", "Reminder", "Portal"),
        title=f"What `certjob run` would do on {today}",
    )
    for change in changes:
        hides = change.decision.pause is PauseChange.OPEN or (change.decision.push and not change.decision.visible)
        table.add_row(*map(clean, _planned_cells(change)), style="red" if hides else "")
    output.show_table(table)


def show_totals(output: Output, report: RunReport) -> None:
    """Print a run's figures as a small table, or as one line off a terminal."""
    rows = list(_totals(report))
    if not output.on_terminal:
        output.result("; ".join(f"{name}: {figures}" for name, figures in rows))
        return
    names = {"run": "Night", "reconcile": "Comparison with the portal"}
    what = "Plan" if report.dry_run and report.command == "run" else names.get(report.command, "Delivery")
    table = new_table("", "", title=f"{what} of {report.today}")
    table.show_header = False
    for name, figures in rows:
        table.add_row(name, figures)
    output.show_table(table)


def show_differences(output: Output, report: RunReport) -> None:
    """Print what `certjob reconcile` would put right, mentor by mentor, and the totals."""
    differences = report.comparison.admitted if report.comparison is not None else []
    lines = [
        f"{each.organisation} {each.member_no}: "
        + ("hidden on the portal, would be shown" if each.visible else "visible on the portal, would be hidden")
        for each in differences
    ]
    if not output.on_terminal:
        for line in lines:
            output.result(line)
    else:
        output.show_lines([PageLine(text=harmless(line), bullet="- ") for line in lines[:MOST_PLANNED_ROWS]])
        if len(lines) > MOST_PLANNED_ROWS:
            output.result(f"… and {len(lines) - MOST_PLANNED_ROWS:,} more; --json lists all of them")
    show_totals(output, report)


def show_resync(output: Output, before: MentorState, after: MentorState) -> None:
    """Print one mentor's state before and after."""
    for when, state in (("before: ", before), ("after:  ", after)):
        if output.on_terminal:
            output.show_lines([PageLine(bullet=when, text=harmless(_state_line(state)))])
        else:
            output.result(f"{when}{_state_line(state)}")


def _planned_cells(change: PlannedChange) -> tuple[str, ...]:
    decision = change.decision
    transitions = ", ".join(
        f"{transition.from_status} → {transition.to_status}"
        if transition.from_status is not Status.RECORDED
        else str(transition.to_status)
        for transition in decision.transitions
    )
    pause = {PauseChange.OPEN: "open", PauseChange.LIFT: "lift", None: ""}[decision.pause]
    reminders = ", ".join(_reminder_words(reminder.threshold_days) for reminder in change.new_reminders)
    if reminders and not change.has_address:
        reminders += " (no e-mail address)"
    portal = ("show" if decision.visible else "hide") if decision.push else ""
    return (decision.member_no, decision.organisation.slug, transitions, pause, reminders, portal)


def _planned_line(change: PlannedChange) -> str:
    member_no, organisation, transitions, pause, reminders, portal = _planned_cells(change)
    parts = [
        f"certificates: {transitions}" if transitions else "",
        f"pause: {pause}" if pause else "",
        f"reminder: {reminders}" if reminders else "",
        f"portal: {portal}" if portal else "",
    ]
    return f"{organisation} {member_no}: " + "; ".join(part for part in parts if part)


def _reminder_words(days: int) -> str:
    return threshold_words(days) if days else "on the last day"


def _totals(report: RunReport) -> Iterator[tuple[str, str]]:
    document = report.to_document()
    for part in ("mentors", "certificates", "reminders", "read", "differences", "portal", "digests"):
        figures = document.get(part) or {}
        words = ((name.replace("_", " "), value) for name, value in figures.items() if value)
        said = ", ".join(f"{value:,} {word.removesuffix('s') if value == 1 else word}" for word, value in words)
        if said or (figures and part != "digests"):  # most nights have none, and no plan has any
            yield part, said or "nothing"
    if document.get("mail_waits_until"):
        yield "mail", f"waits until {report.mail_waits_until:%H:%M} (CERTJOB_MAIL_HOURS)"


def _state_line(state: MentorState) -> str:
    words = {True: "visible", False: "hidden", None: "unknown"}
    portal = (
        f"portal wanted {words[state.desired]}, confirmed {words[state.acknowledged]}"
        + (f", push {state.open_push}" if state.open_push else "")
        if state.has_portal
        else "no portal"
    )
    return (
        f"{state.member_no}: {', '.join(state.certificates) or 'no certificate'}; "
        f"{'paused: ' + ', '.join(map(reason_words, state.pauses)) if state.pauses else 'not paused'}; {portal}"
    )
