"""What a night says to people: the plan, the totals, one mentor before and after."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from uuid import UUID

from certjob.cli.terminal.lines import PageLine
from certjob.cli.terminal.output import Output
from certjob.domain.explanations import reason_words
from certjob.domain.models import Decision, PauseChange
from certjob.facts.lookup import MentorName
from certjob.jobs.report import PlannedChange, RunReport
from certjob.jobs.resync import MentorState
from certjob.portal.comparison import Difference

MOST_PLANNED_ROWS = 50
"""A plan on a terminal shows so many mentors; --json has all of them."""

FindNames = Callable[[Sequence[UUID]], Mapping[UUID, MentorName]]
"""Called only on a terminal: elsewhere mentors have no name."""


def show_plan(output: Output, report: RunReport, *, find_names: FindNames) -> None:
    """Print what a run would do, mentor by mentor, and the totals."""
    if not output.on_terminal:
        for change in report.changes:
            output.result(_planned_line(change))
    elif report.changes:
        _show_changes(output, report.changes, today=report.today, find_names=find_names)
        _show_rest(output, len(report.changes))
    show_totals(output, report)


def _show_changes(output: Output, changes: Sequence[PlannedChange], *, today: date, find_names: FindNames) -> None:
    """Print a table, one row per mentor as far as a terminal shows them."""
    shown = changes[:MOST_PLANNED_ROWS]
    names = find_names([change.decision.mentor_id for change in shown])
    slug, *others = {change.decision.organisation.slug for change in changes}  # of those left out, too
    rows = []
    for change in shown:
        decision = change.decision
        name = names.get(decision.mentor_id)
        member_no = decision.member_no + (" (held)" if change.is_held else "")
        cells = [member_no, name and name.full_name, *_planned_cells(change).values()]
        rows.append(cells + ([decision.organisation.slug] if others else []))
    headings = ("=No.", "~Name", "Certificates", "=Pause", "Reminder", "=Portal", *(["~Org"] if others else []))
    title = f"What `certjob run` would do on {today}" + ("" if others else f" for {slug}")
    output.show_table(headings, rows, title=title)


def _show_rest(output: Output, number: int) -> None:
    if number > MOST_PLANNED_ROWS:
        output.result(f"… and {number - MOST_PLANNED_ROWS:,} more; --json lists all of them")


def show_totals(output: Output, report: RunReport) -> None:
    """Print a run's figures as a small table, or as one line off a terminal."""
    rows = list(_totals(report))
    if not output.on_terminal:
        output.result("; ".join(f"{name}: {figures}" for name, figures in rows))
        return
    names = {"run": "Night", "reconcile": "Comparison with the portal"}
    what = "Plan" if report.dry_run and report.command == "run" else names.get(report.command, "Delivery")
    output.show_table(("=", ""), rows, title=f"{what} of {report.today}", header=False)


def show_differences(output: Output, report: RunReport, *, find_names: FindNames) -> None:
    """Print what `certjob reconcile` would put right, mentor by mentor, and the totals."""
    differences = report.comparison.admitted if report.comparison is not None else []
    if not output.on_terminal:
        for each in differences:
            output.result(f"{each.organisation} {each.member_no}: {_difference_words(each)}")
    else:
        shown = differences[:MOST_PLANNED_ROWS]
        names = find_names([each.mentor_id for each in shown])
        for each in shown:
            name = names.get(each.mentor_id)
            who = f"{each.member_no} of {each.organisation}"
            who = f"{name.full_name} ({who})" if name and name.full_name else who
            output.show_lines([PageLine(text=f"{who}: {_difference_words(each)}", bullet="- ")])
        _show_rest(output, len(differences))
    show_totals(output, report)


def _difference_words(difference: Difference) -> str:
    if difference.wrong_day:
        return "visible on the portal until another day, which would be corrected"
    if difference.visible:
        return "hidden on the portal, would be shown"
    return "visible on the portal, would be hidden"


def show_resync(output: Output, before: MentorState, after: MentorState) -> None:
    """Print one mentor's state before and after."""
    for when, state in (("before: ", before), ("after:  ", after)):
        output.show_lines([PageLine(bullet=when, text=_state_line(state))])


def _planned_cells(change: PlannedChange) -> dict[str, str]:
    """Return what would happen to a mentor's certificates, pause, reminder and portal."""
    decision = change.decision
    transitions = Counter(str(transition.to_status) for transition in decision.transitions)
    reminders = ", ".join(_threshold(reminder.threshold_days) for reminder in change.new_reminders)
    if reminders and not change.has_address:
        reminders += ", no address"
    if reminders and change.reminders_are_held and not change.is_held:
        reminders += " (held)"
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


def _planned_line(change: PlannedChange) -> str:
    cells = _planned_cells(change)
    who = f"{change.decision.organisation.slug} {change.decision.member_no}"
    held = " (held)" if change.is_held else ""
    return f"{who}: " + "; ".join(f"{name}: {cell}" for name, cell in cells.items() if cell) + held


def _threshold(days: int) -> str:
    """Return a threshold for a narrow column.

    >>> _threshold(30), _threshold(0), _threshold(-1)
    ('30 d before', 'last day', '1 d after')
    """
    return "last day" if days == 0 else f"{abs(days)} d {'before' if days > 0 else 'after'}"


def _totals(report: RunReport) -> Iterator[tuple[str, str]]:
    document = report.to_document()
    for part in ("mentors", "certificates", "reminders", "read", "differences", "portal", "digests"):
        figures = document.get(part) or {}
        said = _figures(figures)
        if said or (figures and part != "digests"):  # most nights have none, and no plan has any
            yield part, said or "nothing"
    if document.get("acknowledged"):
        yield "acknowledged", f"{document['acknowledged']:,} of the alerts"
    if document.get("mail_waits_until"):
        yield "mail", f"waits until {report.mail_waits_until:%H:%M} (CERTJOB_MAIL_HOURS)"


def _figures(figures: Mapping[str, int]) -> str:
    """Return what is not 0. Nothing is counted twice: blocked pushes have failed, and what is new has an outcome.

    >>> _figures({"queued": 19, "delivered": 16, "failed": 3, "blocked": 3}), _figures({"queued": 2, "sent": 0})
    ('16 delivered, 3 failed (3 blocked); 19 new', '2 queued')
    """
    counts = {name: value for name, value in figures.items() if value}
    new, blocked = counts.pop("queued", 0), counts.pop("blocked", 0)
    parts = []
    for name, count in counts.items():
        words = name.replace("_", " ")
        of_them = f" ({blocked:,} blocked)" if blocked and name == "failed" else ""
        parts.append(f"{count:,} {words.removesuffix('s') if count == 1 else words}{of_them}")
    if not parts:
        return f"{new:,} queued" if new else ""
    return ", ".join(parts) + (f"; {new:,} new" if new else "")


def _state_line(state: MentorState) -> str:
    words = {True: "visible", False: "hidden", None: "unknown"}
    certificates = ", ".join(state.certificates) or "no certificate"
    pauses = f"paused: {', '.join(map(reason_words, state.pauses))}" if state.pauses else "not paused"
    portal = "no portal"
    if state.has_portal:
        portal = f"portal wanted {words[state.desired]}, confirmed {words[state.acknowledged]}"
        portal += f", push {state.open_push}" if state.open_push else ""
    return f"{state.member_no}: {certificates}; {pauses}; {portal}"
