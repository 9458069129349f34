"""The page of `certjob status`: a screen of 24 lines on a terminal, otherwise one line per fact."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, tzinfo

from certjob.cli.terminal.lines import PageLine, wrap
from certjob.cli.terminal.output import Output
from certjob.domain.alert_kinds import Kind, summarize
from certjob.domain.explanations import number
from certjob.outbox.open_work import OpenWork
from certjob.reports.status import EXPOSURE_DAYS, Exposure, Run, SystemStatus

_SORTS = {"portal_hides": "hides", "portal_shows": "shows", "reminders": "reminders", "digests": "digests"}
_STATES = ("open", "due", "later", "busy", "blocked")
_MOST_RUNS, _FEWEST_RUNS = 7, 3
"""Runs on a terminal of 24 lines. With more, the first line would scroll away."""
_OTHER_LINES = 13
"""The last good run, both tables without the runs, the blank lines, and the shell's line."""


def show_status(output: Output, status: SystemStatus, *, zone: tzinfo) -> None:
    """Print a screen on a terminal, otherwise a line for each fact, with more of the last runs."""
    figures = list(_figures(status, zone))
    _show_facts(output, [("Last good run", _last_good(status, zone))])
    output.gap()
    backlog = [(_SORTS[name], work) for name, work in status.backlog.items()]
    output.show_rows(
        ("Backlog", *(f">{state.capitalize()}" for state in _STATES), "=Oldest"),
        (
            (sort, *(f"{count:,}" for count in _numbers(work)), work.oldest_at and _moment(work.oldest_at, zone))
            for sort, work in backlog
        ),
        plain=(_backlog_line(sort, work, zone) for sort, work in backlog),
    )
    output.gap()
    runs = [_run_cells(run, zone) for run in _most_telling(status.runs, most=_most_runs(output, status, figures, zone))]
    output.show_rows(
        ("=Last runs", "Command", "=Outcome", "=Took", "~Host"),
        runs or [("none", "", "", "", "")],
        plain=(_run_line(run, zone) for run in status.runs),
    )
    output.gap()
    _show_facts(output, figures)


def _show_facts(output: Output, facts: Iterable[tuple[str, str]]) -> None:
    """Print the name and the text of each fact; a plain line begins with a small letter."""
    for name, text in facts:
        head = name if output.on_terminal else f"{name[:1].lower()}{name[1:]}"
        output.show_lines([PageLine(head=f"{head}: ", text=text)])


def _most_runs(output: Output, status: SystemStatus, figures: Iterable[tuple[str, str]], zone: tzinfo) -> int:
    """Return the number of runs that fit on the screen."""
    below = [PageLine(head=f"{name}: ", text=text) for name, text in figures]
    if above := why_attention(status, zone=zone):
        below.append(PageLine(text=f"certjob status: warning: {above}"))
    return max(_FEWEST_RUNS, min(_MOST_RUNS, output.out.height - _OTHER_LINES - len(list(wrap(output.out, below)))))


def why_attention(status: SystemStatus, *, zone: tzinfo) -> str | None:
    """Return why the command exits with 3, or None."""
    summary = summarize({kind: number for kind, number in status.alerts.items() if kind != Kind.NO_FULL_RUN})
    alerts = f"{summary}; see `certjob alerts`" if summary else ""
    stale = status.overdue or (_why_stale(status, zone=zone) if status.stale else "")
    return ". Also ".join(filter(None, [stale, alerts])) or None


def _why_stale(status: SystemStatus, *, zone: tzinfo) -> str:
    good = status.last_good_run
    if good is None:
        return "no nightly run has finished yet; run `certjob run`, and check that cron does so"
    age, limit = duration_words(good.age_seconds), duration_words(status.max_age_seconds)
    return (
        f"the last good run ended {age} ago ({_moment(good.finished_at, zone)}), more than {limit}; "
        "see how the last runs ended, whether cron runs, and `certjob check`"
    )


def _backlog_line(sort: str, work: OpenWork, zone: tzinfo) -> str:
    counts = zip(_numbers(work)[1:], _STATES[1:], strict=True)
    parts = ", ".join(f"{count:,} {state}" for count, state in counts if count)
    since = f" ({parts}), the oldest since {_moment(work.oldest_at, zone)}" if work.oldest_at else ""
    return f"waiting {sort}: {work.open:,}{since}"


def _run_line(run: Run, zone: tzinfo) -> str:
    started, command, outcome, took, host = _run_cells(run, zone)
    took = f"last seen {took}" if outcome == "died" else took
    return f"run: {started}, {command}, {outcome}, {took}, on {host}{_because(run)}"


def _last_good(status: SystemStatus, zone: tzinfo) -> str:
    good = status.last_good_run
    return f"{_moment(good.finished_at, zone)}, {duration_words(good.age_seconds)} ago" if good else "never"


def _numbers(work: OpenWork) -> tuple[int, ...]:
    """Return the number in each of _STATES."""
    return (work.open, work.due, work.waiting, work.in_flight, work.blocked)


def _run_cells(run: Run, zone: tzinfo) -> tuple[str, str, str, str, str]:
    command = run.command if run.organisation is None else f"{run.command} --organisation {run.organisation}"
    took = duration_words(run.duration_seconds)
    took = {"running": f"for {took} now", "died": f"after {took}"}.get(run.outcome, took)
    return (_moment(run.started_at, zone), command, run.outcome, took, run.host)


def _figures(status: SystemStatus, zone: tzinfo) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each fact below the tables."""
    tonight, coming = status.coming[0].mentors, sum(night.mentors for night in status.coming)
    yield "Mentors to review", f"{tonight:,} today, {coming:,} within {len(status.coming)} days"
    if status.without_certificate:
        mentors = number(status.without_certificate, "active mentor")
        names = ", ".join(status.first_without_certificate)
        more = ", …" if status.without_certificate > len(status.first_without_certificate) else ""
        yield "Without a certificate", f"{mentors}, hidden on every portal: {names}{more}"
    if status.exposure.mentors:
        yield "Exposure", _exposure_words(status.exposure)
    if status.acknowledged:
        yield "Acknowledged", f"{number(status.acknowledged, 'alert')}; see `certjob alerts --acknowledged`"
    if failed := next((run for run in status.runs if run.outcome == "failed" and run.lines), None):
        yield f"{failed.command.capitalize()} failed at {_moment(failed.started_at, zone)}", _because(failed)[2:]
    if status.mail_waits_until is not None:
        yield "Mail waits until", f"{_moment(status.mail_waits_until, zone)} (CERTJOB_MAIL_HOURS)"


def _exposure_words(exposure: Exposure) -> str:
    """Return how long someone was visible who must not be, in the last days."""
    words = f"{number(exposure.mentors, 'mentor')}, {duration_words(exposure.seconds)} in all"
    if exposure.longest is not None and exposure.longest_seconds is not None:
        cause = f", {exposure.cause.replace('_', ' ')}" if exposure.cause else ""
        words += f", the longest {duration_words(exposure.longest_seconds)}: {exposure.longest}{cause}"
    still = f"; {exposure.open:,} {'lasts' if exposure.open == 1 else 'last'}" if exposure.open else ""
    return f"{words} (last {EXPOSURE_DAYS} days){still}"


def _because(run: Run) -> str:
    """Return the first of a run's lines, and the number of the others."""
    more = f" (and {len(run.lines) - 1:,} more)" if len(run.lines) > 1 else ""
    return f": {run.lines[0]}{more}" if run.lines else ""


def _moment(at: datetime, zone: tzinfo) -> str:
    return f"{at.astimezone(zone):%Y-%m-%d %H:%M}"


def _most_telling(runs: Sequence[Run], *, most: int) -> list[Run]:
    """Return at most ``most`` runs: first running and failed ones and the last of each command, then the others."""
    newest = {run.command: run for run in reversed(runs)}
    chosen = sorted(runs, key=lambda run: run.outcome in ("ok", "attention") and newest[run.command] is not run)[:most]
    return [run for run in runs if run in chosen]


def duration_words(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> duration_words(26 * 3600), duration_words(3.21), duration_words(0.2), duration_words(9 * 86_400)
    ('1 d 2 h', '3 s', 'under 1 s', '9 d')
    """
    if seconds < 1:
        return "under 1 s"
    parts: list[tuple[int, str]] = []
    rest = int(seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, length)
        if number or parts:
            parts.append((number, unit))
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)
