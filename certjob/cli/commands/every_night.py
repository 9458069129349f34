"""The commands that change data every night, or for one mentor, mail or alert."""

import sys
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from certjob.cli.options import (
    AcceptDate,
    Allow,
    HiddenBecause,
    HiddenByHand,
    MentorArgument,
    OrganisationSlug,
    parse_allowed,
    parse_day,
)
from certjob.cli.session import Call, Commands
from certjob.errors import UsageError

if TYPE_CHECKING:
    from certjob.jobs.report import Report
    from certjob.jobs.resync import Resync

app = Commands(group="Every night")

TRY_LATER = 75
"""EX_TEMPFAIL of sysexits.h: the mail server keeps the report and retries later."""

_RESULTS = {
    "bounced": "the mail came back, see `certjob alerts`",
    "not_failed": "a report about no failure",
    "not_ours": "a report about no open mail of certjob",
    "unreadable": "not a readable delivery report",
}
"""The words of ``ReportResult`` for `certjob bounces`."""

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan only, without writes, locks or calls.")]
AsOf = Annotated[
    date | None,
    typer.Option(parser=parse_day, metavar="DATE", help="Plan for another day, YYYY-MM-DD; needs --dry-run."),
]
Everybody = Annotated[
    bool,
    typer.Option(
        "--everybody",
        help="Review all mentors, due or not: after a restore, or after changes of facts without the triggers.",
    ),
]


@app.command(examples=("certjob run --dry-run", "certjob run --dry-run --as-of 2027-01-31 --organisation hlf"))
def run(
    call: Call,
    *,
    dry_run: DryRun = False,
    as_of: AsOf = None,
    organisation: OrganisationSlug = None,
    everybody: Everybody = False,
    allow: Allow = [],  # noqa: B006 - typer copies it
    accept_date: AcceptDate = None,
) -> int:
    """Update certificates and pauses, push visibility to the portal, and send mail.

    It is safe to repeat, and safe to run twice at once. --organisation limits the review, not the delivery of queued
    pushes and mails. Exits with 3 while there is any alert that no one has acknowledged.
    """
    from certjob.jobs import runs
    from certjob.jobs.job import RUN_SECONDS

    if as_of is not None and not dry_run:
        message = "--as-of requires --dry-run"
        raise UsageError(message, next_step="add it, or omit --as-of, because a real run always uses today's date")
    with call.session(
        interruptible=dry_run,
        pings=not dry_run and organisation is None,  # a run for one organisation must not hide a missed full run
    ):
        with call.progress() as progress:
            job = call.job(progress, seconds=RUN_SECONDS)
            report = runs.run(
                replace(job, today=as_of or job.today),
                organisation=organisation,
                dry_run=dry_run,
                allow=parse_allowed(allow),
                accept_date=as_of or accept_date,
                everybody=everybody,
            )
        call.ping_body.update(report.to_ping())
        return _report_on(call, report, allowed=bool(allow))


@app.command(examples=("certjob deliver",))
def deliver(
    call: Call,
    *,
    accept_date: AcceptDate = None,
) -> int:
    """Deliver queued pushes and mails that are due, pushes first. Run it in the background between nightly runs.

    It first reviews the due mentors who have an open push, so outdated pushes are not sent. Exits with 3 if something
    failed, if a stage ended early, or if a full run is overdue. It prints only what no command of the day has printed.
    """
    from certjob.jobs import runs

    with call.session():
        with call.progress() as progress:
            report = runs.deliver(call.job(progress), accept_date=accept_date)
        return _report_on(call, report)


@app.command(examples=("certjob resync M1042", "certjob resync M1042 --hidden-by-hand --because 'left, no contact'"))
def resync(
    call: Call,
    mentor: MentorArgument,
    *,
    hidden_by_hand: HiddenByHand = False,
    because: HiddenBecause = "",
    organisation: OrganisationSlug = None,
    accept_date: AcceptDate = None,
) -> int:
    """Review one mentor and push the portal visibility now, even if a retry is scheduled for later.

    Reminders are queued, and failed ones are due again, but none is sent. Exits with 3 if the push fails. With
    --hidden-by-hand, it only stores that a person has hidden the contact; the next reading of the portal checks it.
    """
    from certjob.facts.lookup import find_mentor
    from certjob.jobs import resync as resyncing
    from certjob.jobs.acknowledge import confirm_hidden

    if because and not hidden_by_hand:
        message = "--because requires --hidden-by-hand"
        raise UsageError(message, next_step="add it if a person has hidden the contact")
    with call.session():
        mentor_id = find_mentor(call.connection, mentor, organisation=organisation)
        if hidden_by_hand:
            by = confirm_hidden(call.connection, [mentor_id], because=because)
            call.show({"mentor_id": mentor_id, "hidden_by": by}, success="stored; the next reading checks it")
            return 0
        result = resyncing.resync(call.job(), mentor_id, accept_date=accept_date)
        return _report_on_one(call, mentor_id, result)


@app.command(examples=("certjob pause M1042 --because complaint",))
def pause(
    call: Call,
    mentor: MentorArgument,
    *,
    because: Annotated[str, typer.Option(metavar="TEXT", help="The reason of the pause.", show_default=False)],
    organisation: OrganisationSlug = None,
    accept_date: AcceptDate = None,
) -> int:
    """Pause one mentor as a person, review the mentor, and hide the mentor on the portal at once.

    certjob never lifts this pause; `certjob unpause` or the app does. An error of the review, such as
    a wrong date, does not stop the hide. Exits with 3 if the push fails, or if the mentor was not reviewed.
    """
    from certjob.facts.lookup import find_mentor
    from certjob.jobs import pauses

    with call.session():
        mentor_id = find_mentor(call.connection, mentor, organisation=organisation)
        result = pauses.pause(call.job(), mentor_id, because=because, accept_date=accept_date)
        return _report_on_one(call, mentor_id, result)


@app.command(examples=("certjob unpause M1042", "certjob unpause M1042 --reason complaint"))
def unpause(
    call: Call,
    mentor: MentorArgument,
    *,
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The pause to lift; required if several are open.")
    ] = None,
    organisation: OrganisationSlug = None,
    accept_date: AcceptDate = None,
) -> int:
    """Lift an open pause, review the mentor, and push the visibility at once.

    certjob's own pause is lifted only if certjob would not open it again, for example after a certificate was entered
    by mistake and deleted. Otherwise, enter a certificate. Exits with 3 if the push fails, or if the mentor was not
    reviewed.
    """
    from certjob.facts.lookup import find_mentor
    from certjob.jobs import pauses

    with call.session():
        mentor_id = find_mentor(call.connection, mentor, organisation=organisation)
        result = pauses.unpause(call.job(), mentor_id, reason=reason, accept_date=accept_date)
        return _report_on_one(call, mentor_id, result)


@app.command(examples=("certjob reconcile --dry-run",))
def reconcile(
    call: Call,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the portal and print the differences, without writes.")
    ] = False,
    allow: Allow = [],  # noqa: B006 - typer copies it
    accept_date: AcceptDate = None,
) -> int:
    """Read the visible contacts of the portal, and push the differences from the desired visibility.

    Run it every night after `certjob run`. If more than 20 mentors should be visible and the portal lists fewer than
    half of them, it shows no one. It reports visible contacts of no mentor until they are hidden or acknowledged. Exits
    with 3 if a change was held back or someone has to act.
    """
    from certjob.jobs import reconcile as reconciling

    with call.session():
        with call.progress() as progress:
            report = reconciling.reconcile(
                call.job(progress), dry_run=dry_run, allow=parse_allowed(allow), accept_date=accept_date
            )
        return _report_on(call, report, allowed=bool(allow))


@app.command(examples=("certjob bounces < report.eml",))
def bounces(
    call: Call,
) -> int:
    """Read one delivery report (RFC 3464) on standard input and record that its reminder or digest came back.

    `certjob alerts` shows it. Exits with 75 if the report could not be saved, and the mail server retries.
    """
    import psycopg

    from certjob.errors import CertjobError, DatabaseUnavailableError
    from certjob.mail.bounces import LARGEST_REPORT_OCTETS, take_report

    if sys.stdin.isatty():
        message = "there is no report on standard input, which is a terminal"
        raise UsageError(message, next_step="run `certjob bounces < report.eml`")
    try:
        with call.session():
            verdict = take_report(call.connection, sys.stdin.buffer.read(LARGEST_REPORT_OCTETS + 1))
    except (CertjobError, psycopg.Error) as error:
        text = f"the report was not saved ({type(error).__name__}); the mail server keeps it and tries again"
        kept = error if isinstance(error, CertjobError) else DatabaseUnavailableError(text)
        kept.exit_code = TRY_LATER
        raise kept from error
    call.show({"report": verdict}, success=_RESULTS[verdict])
    return 0


@app.command(examples=("certjob acknowledge hlf:failed_reminders:M1042:17 --because phoned --until 2027-01-15",))
def acknowledge(
    call: Call,
    alert: Annotated[
        str, typer.Argument(metavar="ALERT", help="Its id, as `certjob alerts` prints it.", show_default=False)
    ],
    *,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why no one has to act now.", show_default=False)],
    until: Annotated[date, typer.Option(parser=parse_day, metavar="DATE", help="The last day.", show_default=False)],
) -> int:
    """Mute one alert in lists, exit codes and digests until a date, at most 31 days ahead.

    A contact of no mentor can be muted for a year. No one can mute that a mentor may be visible: see
    `certjob resync --hidden-by-hand`.
    """
    from certjob.jobs import acknowledge as job

    with call.session():
        today = call.settings.today
        who = job.acknowledge(call.connection, alert, because=because, until=until, today=today)
    call.show({"alert_id": alert, "until": until, "by": who}, success=f"{alert} is acknowledged until {until}.")
    return 0


def _report_on_one(call: Call, mentor_id: UUID, result: "Resync") -> int:
    """Print the result for one mentor and return the exit code."""
    from certjob.cli.documents import add_names
    from certjob.jobs.pages import resync_page

    errors = [error for error in (result.not_reviewed, result.error) if error is not None]
    document = result.report.to_document() | {"mentor_id": mentor_id}
    if result.pause is not None:
        document |= {"pause": asdict(result.pause)}
    if errors:
        document |= {"outcome": "attention", "error": errors[-1].to_document()}
    add_names(call.connection, [document, *document.get("problems", ())])
    call.show(document, resync_page(result.before, result.after))
    if result.not_reviewed is not None:
        done = "lifted" if result.report.command == "unpause" else "stored"
        call.say(f"the pause is {done}, but the mentor was not reviewed: {result.not_reviewed}")
    if result.error is not None:
        call.say(str(result.error))
    return 3 if errors else call.end(result.report.outcome, result.report.reasons)


def _report_on(call: Call, report: "Report", *, allowed: bool = False) -> int:
    """Print a run's report and return its exit code. With ``--allow``, someone reads it, so it has every problem."""
    from certjob.cli.documents import add_names
    from certjob.cli.output import stderr_is_complete
    from certjob.facts.lookup import name_mentors
    from certjob.jobs.job_runs import note_told
    from certjob.jobs.pages import correction_words, report_page

    document = report.to_document()
    add_names(call.connection, document.get("problems", ()))
    page = report_page(report, find_names=partial(name_mentors, call.connection))
    call.show(document, page if report.dry_run or call.output.interactive else ())
    is_watched = call.output.on_terminal or call.output.interactive
    # cron mails the output: the first run of a day prints every problem, later runs print new ones
    exit_code = call.end(report.outcome, report.reasons if is_watched or allowed else report.news)
    for line in () if is_watched or report.dry_run or call.json or call.quiet else correction_words(report):
        call.say(line, "note")
    for line in report.confirmed:
        call.say(line, "note")
    if not report.dry_run and stderr_is_complete():
        note_told(call.connection, report)
    return exit_code
