"""The commands that change something every night or for one mentor: run, deliver, resync."""

from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from certjob.cli.help import EVERY_NIGHT
from certjob.cli.options import (
    AcceptDate,
    Allow,
    MentorArgument,
    OrganisationSlug,
    parse_allowed,
    parse_day,
)
from certjob.cli.session import Call, Commands, Session, delivery_from
from certjob.errors import UsageError

if TYPE_CHECKING:
    from certjob.jobs.report import RunReport

app = Commands()


DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan and change nothing: no write, no lock, no call.")
]
AsOf = Annotated[
    date | None,
    typer.Option(parser=parse_day, metavar="DATE", help="Plan for another day, YYYY-MM-DD; needs --dry-run."),
]
Everybody = Annotated[
    bool,
    typer.Option(
        "--everybody",
        help="Review every mentor, due or not: after a restore, or when facts were changed without the triggers.",
    ),
]


@app.command(
    group=EVERY_NIGHT,
    starts_again=True,
    short_help="The nightly run: certificates, pauses, portal, mail.",
    examples=("certjob run --dry-run", "certjob run --dry-run --as-of 2027-01-31 --organisation hlf"),
)
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
    """Run tonight's work: bring certificates and mentors to the right state, push to the portal, send reminders.

    Safe to repeat and to run twice at once. --organisation limits the review; what is queued is delivered for all.
    Exits 3 while anything needs attention.
    """
    from certjob.jobs import runs
    from certjob.jobs.deliveries import RUN_SECONDS

    if as_of is not None and not dry_run:
        message = "--as-of requires --dry-run"
        raise UsageError(message, next_step="add it, or leave --as-of out: a real run is for today")
    with call.session(
        interruptible=dry_run,
        pings=not dry_run and organisation is None,  # one organisation's is no night: it would hide that none ran
    ) as opened:
        with opened.output.progress() as progress:
            report = runs.run(
                opened.connection,
                today=as_of or opened.settings.today,
                delivery=delivery_from(opened.settings, deadline_seconds=RUN_SECONDS),
                stop=opened.stop,
                progress=progress,
                organisation=organisation,
                dry_run=dry_run,
                allow=parse_allowed(allow),
                accept_date=as_of or accept_date,
                everybody=everybody,
                run_id=opened.run_id,
            )
        return report_on(call, opened, report)


@app.command(
    group=EVERY_NIGHT,
    starts_again=True,
    short_help="Deliver what is queued and due.",
    examples=("certjob deliver",),
)
def deliver(
    call: Call,
    *,
    accept_date: AcceptDate = None,
) -> int:
    """Deliver what is queued and due, portal first, then mail: the background job between the nightly runs.

    It first reviews the due mentors who have an open push, so that no outdated push goes out.
    Exits 3 only if something failed for the first time or for another reason, if a stage stopped for a new reason, or
    if a guard held something new.
    """
    from certjob.jobs import runs

    with call.session() as opened:
        delivery = delivery_from(opened.settings)
        with opened.output.progress() as progress:
            report = runs.deliver(
                opened.connection,
                today=opened.settings.today,
                accept_date=accept_date,
                delivery=delivery,
                stop=opened.stop,
                progress=progress,
                run_id=opened.run_id,
            )
        return report_on(call, opened, report)


@app.command(
    group=EVERY_NIGHT,
    short_help="Review one mentor now and push the visibility.",
    examples=("certjob resync M1042", "certjob resync 'kari nordmann' --organisation hlf"),
)
def resync(
    call: Call,
    mentor: MentorArgument,
    *,
    organisation: OrganisationSlug = None,
    accept_date: AcceptDate = None,
) -> int:
    """Review one mentor now and push the portal visibility, whatever the retry time says.

    Reminders are queued, not sent. Exits 3 when the push did not succeed.
    """
    from certjob.cli.documents import print_document
    from certjob.cli.pages import night
    from certjob.facts import lookup
    from certjob.jobs import resync as resyncing

    with call.session() as opened:
        mentor_id = lookup.find_mentor(opened.connection, mentor, organisation=organisation)
        result = resyncing.resync(
            opened.connection,
            mentor_id,
            today=opened.settings.today,
            accept_date=accept_date,
            delivery=delivery_from(opened.settings),
            stop=opened.stop,
            run_id=opened.run_id,
        )
        if call.json:
            document = result.report.to_document() | {"mentor_id": mentor_id}
            if result.error is not None:
                document |= {"outcome": "attention", "error": result.error.to_document()}
            print_document(opened.connection, document)
        elif not call.quiet:
            night.show_resync(opened.output, result.before, result.after)
    if result.error is not None:
        call.attention(str(result.error))
        return result.error.exit_code
    return call.end(result.report.outcome, result.report.reasons)


def report_on(call: Call, opened: Session, report: "RunReport") -> int:
    """Print a run's report and return its exit code."""
    from functools import partial

    from certjob.cli.documents import print_document
    from certjob.cli.pages import night
    from certjob.cli.terminal.streams import stderr_is_complete
    from certjob.facts.lookup import name_mentors
    from certjob.jobs.job_runs import note_told

    opened.ping_body.update(report.to_ping())
    if call.json:
        print_document(opened.connection, report.to_document())
    elif report.dry_run and report.command == "reconcile":
        night.show_differences(opened.output, report, find_names=partial(name_mentors, opened.connection))
    elif report.dry_run:
        night.show_plan(opened.output, report, find_names=partial(name_mentors, opened.connection))
    elif opened.output.interactive:
        night.show_totals(opened.output, report)
    # cron mails what is printed: it gets the whole once a day, then what is new
    is_watched = opened.output.on_terminal or opened.output.interactive
    exit_code = call.end(report.outcome, report.reasons if is_watched else report.news)
    if not report.dry_run and stderr_is_complete():
        note_told(opened.connection, report.run_id)
    return exit_code
