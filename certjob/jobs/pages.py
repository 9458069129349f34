"""The pages of `run`, `deliver`, `reconcile` and `resync`: the plan, the totals, a mentor before and after."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from uuid import UUID

from certjob.domain.causes import held_words
from certjob.domain.explanations import number, reason_words
from certjob.domain.models import Decision, PauseChange
from certjob.facts.lookup import MentorName
from certjob.jobs.report import ReconcileReport, Report, RunReport
from certjob.jobs.resync import MentorState
from certjob.page import GAP, Line, Table, heading
from certjob.portal.comparison import Comparison, Difference
from certjob.review.plan import PlannedChange

FindNames = Callable[[Sequence[UUID]], Mapping[UUID, MentorName]]

_NAMES_AT_ONCE = 1_000
_PARTS = ("mentors", "certificates", "reminders", "read", "differences", "portal", "digests")
_PLANNED = {"organisation": "Org", "member_no": "No.", "full_name": "Name", "certificates": "Certificates"}
_PLANNED |= {"pause": "Pause", "reminders": "Reminder", "portal": "Portal", "held_because": "Held back"}
_DIFFERENCES = {"organisation": "Org", "member_no": "No.", "full_name": "Name", "contact_id": "Contact"}
_DIFFERENCES |= {"correction": "Correction"}
_EMPTY: dict[str, object] = dict.fromkeys(_DIFFERENCES)
_CORRECTIONS = {"hidden": "hidden", "shown": "shown", "last_day": "with another last day"}


def report_page(report: Report, *, find_names: FindNames) -> Iterator[Line | Table]:
    """Yield the changes that a dry run would make, mentor by mentor, then the totals of any run."""
    if isinstance(report, RunReport) and report.changes:
        yield heading(f"What `certjob run` would do on {report.today}")
        yield Table(_planned_rows(report.changes, find_names), _PLANNED, count=len(report.changes))
        if report.review.held_back:
            yield Line("`certjob resync MENTOR` permits the held changes of one mentor.")
        if report.held_before:
            more = number(report.held_before, "more mentor")
            yield Line(f"Earlier runs have held the reminders of {more}, whom `certjob alerts` names.")
        yield GAP
    if isinstance(report, ReconcileReport) and report.comparison is not None:
        yield from _differences(report.corrections, report.comparison, find_names)
    yield heading(f"{'Plan' if report.dry_run else 'Totals'} of certjob {report.command} on {report.today}")
    for part, figures in _totals(report):
        yield Line(figures, head=f"{part}: ")


def resync_page(before: MentorState, after: MentorState) -> Iterator[Line]:
    """Yield one mentor's state before and after."""
    yield Line(_state_line(before), indent="before: ")
    yield Line(_state_line(after), indent="after:  ")


def _planned_rows(changes: Iterable[PlannedChange], find_names: FindNames) -> Iterator[dict[str, object]]:
    """Yield the changes of each mentor's certificates, pause, reminders and visibility."""
    rest = iter(changes)
    while some := list(islice(rest, _NAMES_AT_ONCE)):
        names = find_names([change.decision.mentor_id for change in some])
        for change in some:
            decision = change.decision
            name = names.get(decision.mentor_id)
            transitions = Counter(str(each.to_status) for each in decision.transitions)
            yield {
                "organisation": decision.organisation.slug,
                "member_no": decision.member_no,
                "full_name": name and name.full_name,
                "certificates": ", ".join(f"{n} {words}" if n > 1 else words for words, n in transitions.items()),
                "pause": {PauseChange.OPEN: "starts", PauseChange.LIFT: "ends", None: None}[decision.pause],
                "reminders": _reminders(change),
                "portal": _push_words(decision),
                "held_because": change.held_because and held_words(change.held_because, **change.last_days),
            }


def _reminders(change: PlannedChange) -> str:
    words = [_threshold(reminder.threshold_days) for reminder in change.new_reminders]
    if words and not change.has_address:
        words.append("no address")
    return ", ".join(words)


def _push_words(decision: Decision) -> str | None:
    if not decision.push:
        return None
    if decision.new_last_day:
        return "new last day"
    return "show" if decision.visible else "hide"


def _threshold(days: int) -> str:
    """Return a threshold for a narrow column.

    >>> _threshold(30), _threshold(0), _threshold(-1)
    ('30 d before', 'last day', '1 d after')
    """
    return "last day" if days == 0 else f"{abs(days)} d {'before' if days > 0 else 'after'}"


def _differences(
    corrections: Sequence[Difference], comparison: Comparison, find_names: FindNames
) -> Iterator[Line | Table]:
    """Yield the corrections of a reading, and the contacts that belong to no mentor."""
    names = find_names([each.mentor_id for each in corrections]) if corrections else {}
    rows: list[dict[str, object]] = []
    for each in corrections:
        if each.what == "first_day":
            continue
        name = names.get(each.mentor_id)
        rows.append(asdict(each) | {"full_name": name and name.full_name, "correction": _CORRECTIONS[each.what]})
    rows += [{"contact_id": contact_id, "correction": "belongs to no mentor"} for contact_id in comparison.unknown]
    if rows:
        yield from (heading("Differences on the portal"), Table([_EMPTY | row for row in rows], _DIFFERENCES), GAP)
    if words := _dated_words(corrections):
        yield from (Line(words), GAP)


def correction_words(report: Report) -> Iterator[str]:
    """Yield one line with the corrections of a reading, and one about the mentors who have got a last day there."""
    counts = Counter[str](difference.what for difference in report.corrections)
    if parts := [f"{counts[what]:,} {text}" for what, text in _CORRECTIONS.items() if counts[what]]:
        corrected = number(counts.total() - counts["first_day"], "difference")
        yield f"corrected {corrected} on the portal: {', '.join(parts)}"
    yield from filter(None, [_dated_words(report.corrections)])


def _dated_words(corrections: Sequence[Difference]) -> str | None:
    dated = sum(each.what == "first_day" for each in corrections)
    return f"the portal now hides {number(dated, 'mentor')} by itself after the last day" if dated else None


def _totals(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the parts of a report with their figures that are not 0."""
    document = report.to_document()
    for part in (each for each in _PARTS if document.get(each) is not None):
        figures = dict(document[part])
        if isinstance(report, RunReport):
            figures |= {"held back": _held_back(report).get(part, 0)}
        words = [f"{count:,} {name.replace('_', ' ')}" for name, count in figures.items() if count]
        yield part, ", ".join(words).replace("1 pages,", "1 page,") or "nothing"
    if document.get("acknowledged"):
        yield "acknowledged", f"{document['acknowledged']:,} of the alerts"


def _held_back(report: RunReport) -> dict[str, int]:
    return {"mentors": report.review.held_back, "reminders": report.review.reminders_held_back}


def _state_line(state: MentorState) -> str:
    words = {True: "visible", False: "hidden", None: "unknown"}
    certificates = ", ".join(state.certificates) or "no certificate"
    pauses = f"paused: {', '.join(map(reason_words, state.pauses))}" if state.pauses else "not paused"
    portal = "no portal"
    if state.has_portal:
        portal = f"portal wanted {words[state.desired]}, confirmed {words[state.acknowledged]}"
        portal += f", push {state.open_push}" if state.open_push else ""
    return f"{state.member_no}: {certificates}; {pauses}; {portal}"
