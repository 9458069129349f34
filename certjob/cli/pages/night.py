"""What a night says to people: the plan, the totals, one mentor before and after."""

from collections.abc import Iterator, Sequence
from datetime import date

from rich.table import Table

from certjob.cli.terminal.lines import PageLine, keep_words_whole
from certjob.cli.terminal.output import Output, clean
from certjob.cli.terminal.plain import harmless
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
    """Print a table, a line for each mentor where the terminal is too narrow for it."""
    table = Table(title=f"What `certjob run` would do on {today}", title_justify="left", expand=False)
    for heading in ("Mentor", "Organisation", "Certificates", "Pause", "Reminder", "Portal"):
        table.add_column(heading, overflow="fold")
    for change in changes:
        table.add_row(*(clean(cell) for cell in _planned_cells(change)))
    if keep_words_whole(output.out, table):
        output.out.print(table)
        return
    output.show_lines([PageLine(head=str(table.title), text=""), *(_planned_page_line(change) for change in changes)])


def show_totals(output: Output, report: RunReport) -> None:
    """Print a run's figures as a small table, or as one line off a terminal."""
    rows = list(_totals(report))
    if not output.on_terminal:
        output.result("; ".join(f"{name}: {figures}" for name, figures in rows))
        return
    names = {"run": "Night", "reconcile": "Comparison with the portal"}
    what = "Plan" if report.dry_run and report.command == "run" else names.get(report.command, "Delivery")
    title = f"{what} of {report.today}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column()
    for name, figures in rows:
        table.add_row(name, figures)
    if keep_words_whole(output.out, table):
        output.out.print(table)
    else:
        output.show_lines([PageLine(head=title, text=""), *(PageLine(text=": ".join(row), indent=2) for row in rows)])


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
    pause = {PauseChange.OPEN: "pause", PauseChange.LIFT: "lift", None: ""}[decision.pause]
    reminders = ", ".join(_threshold_words(reminder.threshold_days) for reminder in change.new_reminders)
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


def _planned_page_line(change: PlannedChange) -> PageLine:
    return PageLine(text=harmless(_planned_line(change)), bullet="- ")


def _threshold_words(days: int) -> str:
    if days == 0:
        return "on the day"
    return f"{days} d before" if days > 0 else f"{-days} d after"


def _totals(report: RunReport) -> Iterator[tuple[str, str]]:
    document = report.to_document()
    for part in ("mentors", "certificates", "reminders", "read", "differences", "portal", "digests"):
        figures = document.get(part) or {}
        said = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in figures.items() if value)
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
        f"{'paused: ' + ', '.join(state.pauses) if state.pauses else 'not paused'}; {portal}"
    )
